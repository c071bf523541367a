"""Tables of points in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image
from itk_nir.points import beyond, load_points, save_points


def test_points_keep_their_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("name, X, Y, Z, t\na, 1.5, 2, -3,0\n\nb, 4, 5, 6.25,0\n")
    table = load_points(path)
    np.testing.assert_array_equal(table.points, [[1.5, 2, -3], [4, 5, 6.25]])
    save_points(table, table.points + 1, tmp_path / "q.csv")
    assert (tmp_path / "q.csv").read_text().splitlines() == [
        "name,X,Y,Z,t", "a,2.500000,3.000000,-2.000000,0", "b,5.000000,6.000000,7.250000,0",
    ]  # fmt: skip
    assert load_points(path, 2).points.shape == (2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "q.csv"]


@pytest.mark.parametrize("method", ["physical_to_index", "index_to_physical", "physical_to_field", "field_to_physical"])
def test_a_grid_refuses_what_are_no_points(method: str) -> None:
    convert = getattr(Geometry.make([8, 9, 10], [1.0, 2.0, 3.0]), method)
    for given in ([[1, 2], [3]], "abc", [["a", "b", "c"]], None):
        with pytest.raises(InputError, match=r"real numbers of shape \(..., 3\)|points have shape \(..., 3\)"):
            convert(given)
    for given in ([[1, 2]], 5, [[1, 2, 3, 4]]):
        with pytest.raises(InputError, match=r"3D points have shape \(\.\.\., 3\), got"):
            convert(given)
    assert convert([]).shape == (0, 3)
    assert convert(np.zeros((4, 5, 3))).shape == (4, 5, 3)
    assert np.isnan(convert([1, 2, np.nan])).any()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1,2,3\n4,5,6\n", "no column x, y"),
        ("", "no column x, y"),
        ("x,y\n1,2\n3\n", "row 2"),
        ("x,y\n1,two\n", "row 1"),
        ("x,y\n1,nan\n", "NaN"),
    ],
)
def test_bad_point_files(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=what) as error:
        load_points(path)
    assert str(path) in str(error.value)


def test_missing_point_files(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="no column z"):
        load_points(tmp_path / "p.csv", 3)
    with pytest.raises(InputError, match="no such file"):
        load_points(tmp_path / "q.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="no CSV"):
        load_points(tmp_path / "b.csv")
    table = load_points(tmp_path / "p.csv")
    with pytest.raises(InputError, match="coordinates"):
        save_points(table, np.zeros((2, 2)), tmp_path / "r.csv")
    for wrong in ([["1", "2"]], [[1, np.nan]], [[1j, 2]]):
        with pytest.raises(InputError, match="points"):
            save_points(table, wrong, tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()
    with pytest.raises(InputError, match="does not exist"):
        save_points(table, table.points, tmp_path / "no" / "r.csv")


def test_real_landmarks(data: Path) -> None:
    table = load_points(data / "lung_ct" / "fixed_landmarks.csv")
    assert table.points.shape == (51, 3)
    assert load_image(data / "lung_ct" / "fixed.nii.gz", "fixed image").geometry.contains(table.points).all()


# --- formats ---------------------------------------------------------------------------------------------------------

P = np.array([[1.5, -2.25, 3.0], [-40.0, 55.5, 6.125]])
SHIFT = np.array([1.0, 2.0, 3.0])

FILES: dict[str, tuple[str, str | None]] = {
    "comma.csv": ("x,y,z,name\n1.5,-2.25,3,tip\n-40,55.5,6.125,base\n", None),
    "semicolon.csv": ("name;x;y;z\ntip;1,5;-2,25;3\nbase;-40;55,5;6,125\n", None),
    "points.csv": ("name;X;Y;Z\ntip;1.5;-2.25;3\nbase;-40;55.5;6.125\n", None),
    "tabs.csv": ("z\ty\tx\tname\n3\t-2.25\t1.5\ttip\n6.125\t55.5\t-40\tbase\n", None),
    "bids.tsv": ("name\tx\ty\tz\ntip\t1.5\t-2.25\t3\nbase\t-40\t55.5\t6.125\n", None),
    "ras.tsv": ("name\tx\ty\tz\ntip\t-1.5\t2.25\t3\nbase\t40\t-55.5\t6.125\n", "ras"),
    "slicer.csv": ("label,l,p,s\ntip,1.5,-2.25,3\nbase,-40,55.5,6.125\n", None),
    "slicer_ras.csv": ("label,r,a,s,defined\ntip,-1.5,2.25,3,1\nbase,40,-55.5,6.125,1\n", None),
    "bom.csv": ("\ufeffx,y,z,label\r\n1.5,-2.25,3,tip\r\n-40,55.5,6.125,base\r\n", None),
    "ants.csv": ("x,y,z,t,label\n1.5,-2.25,3,0,1\n-40,55.5,6.125,0,2\n", None),
    "quoted.csv": ('"x","y","z","name"\n"1.5","-2.25","3","tip, left"\n-40,55.5,6.125,base\n', None),
    "v4.fcsv": (
        "# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,"
        "label,desc,associatedNodeID\nvtkMRML_0,-1.5,2.25,3,0,0,0,1,1,1,0,tip,,\nvtkMRML_1,40,-55.5,6.125,0,0,0,1,1,1,"
        '0,"base, left",,\n',
        None,
    ),
    "v5.fcsv": (
        "# Markups fiducial file version = 5.2\n# CoordinateSystem = LPS\n# columns = id,x,y,z,ow,ox,oy,oz,vis,"
        "sel,lock,label,desc,associatedNodeID\n1,1.5,-2.25,3,0,0,0,1,1,1,0,tip,,,2,0\n"
        "2,-40,55.5,6.125,0,0,0,1,1,1,0,base,,,2,0\n",
        None,
    ),
    "m.mrk.json": (
        '{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": ['
        '{"id": "1", "label": "tip", "position": [1.5, -2.25, 3], "positionStatus": "defined"},'
        '{"id": "2", "label": "base", "position": [-40, 55.5, 6.125]}]}]}',
        None,
    ),
    "ras.mrk.json": (
        '{"markups": [{"coordinateSystem": "RAS", "coordinateUnits": ["mm", "UCUM", "millimeter"], "controlPoints": ['
        '{"label": "tip", "position": [-1.5, 2.25, 3]}]}, {"coordinateSystem": "LPS", "controlPoints": ['
        '{"label": "base", "position": [-40, 55.5, 6.125]}]}]}',
        None,
    ),
    "p.vtk": (
        "# vtk DataFile Version 4.2\ntitle\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1.5 -2.25 3 -40 55.5 6.125\n\n"
        "VERTICES 2 4\n1 0\n1 1\n",
        None,
    ),
    "slicer.vtk": (
        "# vtk DataFile Version 5.1\n3D Slicer output. SPACE=RAS\nASCII\nDATASET POLYDATA\nPOINTS 2 double\n"
        "-1.5 2.25 3\n40 -55.5 6.125\n",
        None,
    ),
    "p.vtp": (
        '<?xml version="1.0"?><VTKFile type="PolyData"><PolyData><Piece NumberOfPoints="2"><Points><DataArray '
        'type="Float32" NumberOfComponents="3" format="ascii">1.5 -2.25 3\n-40 55.5 6.125</DataArray></Points></Piece>'
        "</PolyData></VTKFile>",
        None,
    ),
    "p.pts": ("point\n2\n1.5 -2.25 3\n-40 55.5 6.125\n", None),
    "p.txt": ("point\n2\n1.5 -2.25 3\n-40 55.5 6.125\n", None),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_in_and_out(name: str, tmp_path: Path) -> None:
    """Read in LPS; written back moved, in the file's own format and frame, with all else as it was."""
    text, frame = FILES[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    table = load_points(path, frame=frame)
    np.testing.assert_allclose(table.points, P, atol=1e-12)
    out = tmp_path / f"moved_{name}"
    save_points(table, P + SHIFT, out)
    again = load_points(out, frame=frame)
    np.testing.assert_allclose(again.points, P + SHIFT, atol=1e-5)
    assert (again.frame, again.kind, again.names) == (table.frame, table.kind, table.names)
    save_points(again, P, out)
    kept = out.read_text(encoding="utf-8")
    for word in ("tip", "left", "associatedNodeID", "SPACE=RAS", "VERTICES 2 4", ";", "\t", "UCUM"):
        assert (word in kept) == (word in text), word
    # The frame of the file itself: its first number has the sign that it had.
    sign = "-1.5" if "-1.5" in text or "-1,5" in text else "1.5"
    assert sign in kept.replace("1,5", "1.5")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".fcsv", ".mrk.json", ".vtk", ".vtp", ".pts"])
@pytest.mark.parametrize("source", ["slicer_ras.csv", "v4.fcsv", "ras.mrk.json", "slicer.vtk", "p.vtp", "p.pts"])
def test_the_ending_of_the_output_chooses_the_format(source: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / source
    path.write_text(FILES[source][0])
    table = load_points(path)
    save_points(table, P, tmp_path / f"out{ending}")
    again = load_points(tmp_path / f"out{ending}")
    np.testing.assert_allclose(again.points, P, atol=1e-6)
    if table.names and again.kind in ("csv", "fcsv", "markups"):
        assert again.names == table.names


def test_binary_vtk(tmp_path: Path) -> None:
    head, tail = b"# vtk DataFile Version 4.2\nt\nBINARY\nDATASET POLYDATA\nPOINTS 2 float\n", b"\nVERTICES 0 0\n"
    path = tmp_path / "b.vtk"
    path.write_bytes(head + P.astype(">f4").tobytes() + tail)
    table = load_points(path)
    np.testing.assert_array_equal(table.points, P)
    save_points(table, P + 1, path)
    assert path.read_bytes() == head + (P + 1).astype(">f4").tobytes() + tail
    path.write_bytes(head + P.astype(">f4").tobytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        load_points(path)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("p.csv", "x,y,z\n1,5,2,5,3,5\n", r"line 2 \(row 1\) has 6 cells but the header 3 columns.*decimal commas"),
        ("p.csv", 'x,y\n"1,5",2\n', r"line 2.*'1,5' is no finite number; a decimal comma"),
        ("p.csv", "x;y\n1,5;2.5\n", "decimal"),
        ("p.csv", "x\ty\n1,5\t2\n", "decimal comma"),
        ("p.csv", "x;y\n1,5,2;2\n", "no finite number"),
        ("p.csv", "x,y,X\n1,2,3\n", "column x twice"),
        ("p.csv", "x,y\n1_0,2\n", "'1_0' is no finite number"),
        ("p.csv", "x,y\n1,2\n\n\n3,inf\n", r"line 5 \(row 2\): 'inf'"),
        ("p.csv", "x,y\n0x10,2\n", "'0x10'"),
        ("p.csv", "x,y\n1,\n", "'' is no finite number; remove that row"),
        ("p.csv", 'x,y\n1,"2\n', "no CSV"),
        ("p.csv", "1,2,3\n4,5,6\n", "no column"),
        ("p.tsv", "x\ty\tz\n1\t2\tn/a\n", r"line 2 \(row 1\): 'n/a' is no finite number; remove that row"),
        ("p.fcsv", "# CoordinateSystem = 2\n1,2,3\n", r"voxel indices \(IJK\)"),
        ("p.fcsv", "# CoordinateSystem = IJK\n1,2,3\n", r"voxel indices \(IJK\)"),
        ("p.fcsv", "a,1,2,3\n", "lacks Slicer's line"),
        ("p.fcsv", "# CoordinateSystem = LPS\n# columns = id,x,y,z\na,1,2\n", "line 3 has 3 cells"),
        ("p.fcsv", "# CoordinateSystem = LPS\n# columns = id,x,y,z\na,1,2,nan\n", "line 3: 'nan'"),
        ("p.mrk.json", '{"markups": [{"controlPoints": []}]}', "coordinate system is 'None'"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "voxel indices"),
        ("p.mrk.json", '{"markups": [', "damaged"),
        ("p.mrk.json", '{"a": 1}', "no markups"),
        (
            "p.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"position": [1, 2, NaN]}]}]}',
            "point 1 has no position",
        ),
        (
            "p.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "controlPoints": '
            '[{"position": [0, 0, 0], "positionStatus": "undefined"}]}]}',
            "point 1 has no position",
        ),
        (
            "p.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "coordinateUnits": "um", "controlPoints": []}]}',
            "are in um",
        ),
        ("p.vtk", "# vtk DataFile Version 4.2\nt\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1 2 3 4 5", "truncated"),
        ("p.vtk", "# vtk DataFile Version 4.2\nt\nASCII\nDATASET POLYDATA\nPOINTS 1 float\n1 2 3", "truncated"),
        ("p.vtk", "# vtk DataFile Version 4.2\nt\nASCII\nDATASET POLYDATA\nPOINTS 1 int\n1 2 3\n", "type int"),
        ("p.vtk", "# vtk DataFile Version 4.2\nt\nASCII\nDATASET STRUCTURED_POINTS\n", "no VTK file with points"),
        ("p.vtp", '<VTKFile type="PolyData"><PolyData><Piece NumberOfPoints="1"><Points><DataArray format="binary" '
         'NumberOfComponents="3">AAAA</DataArray></Points></Piece></PolyData></VTKFile>', "write the file as ASCII"),
        ("p.vtp", '<VTKFile type="PolyData"><PolyData><Piece NumberOfPoints="2"><Points><DataArray format="ascii" '
         'NumberOfComponents="3">1 2 3</DataArray></Points></Piece></PolyData></VTKFile>', "3 numbers for 2 points"),
        ("p.vtp", "<VTKFile", "damaged"),
        ("p.vtp", '<!DOCTYPE a [<!ENTITY b "c">]><VTKFile/>', "document type"),
        ("p.pts", "point\n3\n1 2 3\n4 5 6\n", "says 3 points of 3 coordinates but has 2 rows"),
        ("p.pts", "point\n2\n1 2 3\n4 5\n", "a row of 2 numbers"),
        ("p.pts", "index\n1\n1 2 3\n", "voxel indices"),
        ("p.pts", "", "is empty"),
        ("p.pts", " \n\n", "is empty"),
        ("p.pts", "point\n²\n1 2 3\n", "but has 1 rows"),
        ("p.pts", f"point\n{'1' * 5000}\n1 2 3\n", "but has 1 rows"),
        ("p.csv", "label,r,a,s,defined\na,1,2,3,1\nb,0,0,0,0\n", r"line 3 \(row 2\) is a point that was never placed"),
        ("p.csv", f"x,y,name\n1,2,{'n' * 140_000}\n", "is no CSV text"),
        ("p.fcsv", f"# CoordinateSystem = LPS\n# columns = id,x,y,z\n{'a' * 140_000},1,2,3\n", "line 3 is no CSV text"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "controlPoints": null}]}', "no markups"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "controlPoints": 3}]}', "no markups"),
        ("p.mrk.json", '{"markups": null}', "no markups"),
        ("p.mrk.json", "[" * 100_000, "no markups"),
        (
            "p.mrk.json",
            f'{{"markups": [{{"coordinateSystem": "LPS", "controlPoints": [{{"position": [1, 2, {"9" * 400}]}}]}}]}}',
            "point 1 has no position",
        ),
        ("p.vtk", f"# vtk DataFile Version 4.2\nt\nASCII\nDATASET A\nPOINTS 1{'0' * 30} float\n1 2\n", "truncated"),
        ("p.vtk", f"# vtk DataFile Version 4.2\nt\nASCII\nDATASET A\nPOINTS {'9' * 18} float\n1 2\n", "truncated"),
        ("p.vtk", f"# vtk DataFile Version 4.2\nt\nBINARY\nDATASET A\nPOINTS {'9' * 5000} float\n1", "truncated"),
        ("p.pts", "1\n1 2 3\n", "voxel indices"),
    ],
)  # fmt: skip
def test_bad_files_of_every_format(name: str, text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=what) as error:
        load_points(path)
    assert str(error.value).startswith(f"points file {path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "page\x0cfeed", "v\x0bt", "next\x85line", 'a "quote"'])
def test_names_of_any_letters_stay_one_name(name: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / "p.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["x", "y", "z", "name", "note"], [1, 2, 3, name, name], [4, 5, 6, "b", ""]])
    table = load_points(path)
    assert table.names == (name, "b")
    for ending in (".csv", ".tsv", ".mrk.json", ".fcsv"):
        out = tmp_path / f"q{ending}"
        save_points(table, table.points + 1, out)
        again = load_points(out)
        np.testing.assert_allclose(again.points, table.points + 1)
        assert again.names == (name.replace("\n", " ") if ending == ".fcsv" else name, "b")
        save_points(again, table.points, out)
        assert load_points(out).names == again.names
    save_points(load_points(tmp_path / "q.csv"), table.points, path)
    with open(path, encoding="utf-8", newline="") as file:
        assert [row[3:] for row in csv.reader(file)] == [["name", "note"], [name, name], ["b", ""]]


def test_a_name_longer_than_csv_reads_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.mrk.json"
    path.write_text(FILES["m.mrk.json"][0].replace("tip", "t" * 140_000))
    save_points(load_points(path), P, tmp_path / "q.fcsv")
    assert "t" * 140_000 in (tmp_path / "q.fcsv").read_text()


def test_frames(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    np.testing.assert_array_equal(load_points(tmp_path / "p.csv", frame="ras").points, [[-1, -2]])
    (tmp_path / "p.fcsv").write_text(FILES["v4.fcsv"][0])
    np.testing.assert_allclose(load_points(tmp_path / "p.fcsv", frame="ras").points, P)
    with pytest.raises(InputError, match="says that it is in RAS, but the frame lps was given"):
        load_points(tmp_path / "p.fcsv", frame="lps")
    with pytest.raises(OptionError, match="frame is one of lps, ras, got 'RAS'"):
        load_points(tmp_path / "p.fcsv", frame="RAS")
    with pytest.raises(InputError, match=r"3D, 2D ones are needed"):
        load_points(tmp_path / "p.fcsv", 2)


def test_points_outside_a_grid_are_told() -> None:
    grid = Geometry.make([5, 4], [2.0, 3.0], [10.0, 20.0])
    assert beyond([[9.0, 18.5], [19.0, 30.5]], grid, "the image") is None
    found = beyond([[12.0, 22], [9.0 - 30, 18.5], [12, 22], [14, 30.5 + 4]], grid, "the image")
    assert found is not None
    assert str(found).startswith("2 of 4 points lie outside the image (row 2, 4; up to 30 mm from it)")
    assert found.values == {"outside": 2, "farthest": pytest.approx(30.0)}


def test_small_units_keep_their_digits(tmp_path: Path) -> None:
    p = np.array([[1.23456789e-6, 2e-6], [3e-6, 4.5678e-6]])
    (tmp_path / "p.csv").write_text("x,y\n" + "\n".join(",".join(map(repr, row)) for row in p.tolist()) + "\n")
    table = load_points(tmp_path / "p.csv")
    np.testing.assert_allclose(table.points, p, rtol=1e-12)
    save_points(table, p, tmp_path / "q.csv")
    np.testing.assert_allclose(load_points(tmp_path / "q.csv").points, p, atol=1e-11)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_names_of_older_programs(mark: bytes, end: bytes, tmp_path: Path) -> None:
    """A table whose names are Latin-1, of which not every byte is UTF-8."""
    lines = [b"x,y,z,t,label,comment", b"1,2,3,0,1,caf\xe9 \xb5", b"4,5,6,0,2,90\xb0"]
    (tmp_path / "p.csv").write_bytes(mark + end.join(lines) + end)
    points = load_points(tmp_path / "p.csv").points
    np.testing.assert_array_equal(points, [[1, 2, 3], [4, 5, 6]])
    lines = [b"# caf\xe9", b"# CoordinateSystem = LPS", b"# columns = id,x,y,z,label", b"1,1,2,3,caf\xe9"]
    (tmp_path / "p.fcsv").write_bytes(mark + end.join(lines) + end)
    np.testing.assert_array_equal(load_points(tmp_path / "p.fcsv").points, [[1, 2, 3]])
