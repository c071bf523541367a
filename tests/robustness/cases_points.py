"""Tables of points."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import itk_nir
from itk_nir.cli import main
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom
from itk_nir.points import load_points, save_points
from itk_nir.transforms import CompositeTransform, DisplacementField
from itk_nir.transforms.formats.itk_h5 import write_h5
from tests.robustness.campaign import Case

P = np.array([[1.5, -2.25, 3.0], [-40.0, 55.5, 6.125]])
FCSV = (
    "# Markups fiducial file version = {}\n# CoordinateSystem = {}\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label\n"
)


def read(name: str, text: str, frame: str | None = None) -> Callable[[Path], float]:
    """Read, write back, and read again."""

    def run(folder: Path) -> float:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        table = load_points(path, frame=frame)
        save_points(table, table.points, folder / f"again_{name}")
        again = load_points(folder / f"again_{name}", frame=frame).points
        return float(max(np.abs(table.points - P).max(), np.abs(again - P).max()))

    return run


def fcsv(system: str, flip: int, version: str = "4.11") -> Callable[[Path], float]:
    rows = "".join(f"{k},{flip * x},{flip * y},{z},0,0,0,1,1,1,0,p\n" for k, (x, y, z) in enumerate(P))
    return read("p.fcsv", FCSV.format(version, system) + rows)


def markups(flip: int = 1, **change: object) -> Callable[[Path], float]:
    controls = [{"label": "p", "position": [flip * x, flip * y, z]} for x, y, z in P]
    whole = {"coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls, **change}
    return read("p.mrk.json", json.dumps({"markups": [whole]}))


def outside(folder: Path) -> float:
    """`apply --points` of points that the field does not reach: moved not at all, and told."""
    phantom = brain_phantom(2, (24, 28))
    field = DisplacementField(phantom.geometry, np.full((28, 24, 2), 3.0))
    write_h5(CompositeTransform((field,)), folder / "t.h5")
    (folder / "p.csv").write_text("x,y\n0,0\n900,0\n")
    told = io.StringIO()
    with contextlib.redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("default")
        status = main(
            ["apply", "--points", f"{folder}/p.csv", "--transform", f"{folder}/t.h5", "--output", f"{folder}/q.csv"]
        )
    if "1 of 2 points lie outside" not in told.getvalue() or "(row 2; up to" not in told.getvalue():
        return 1.0
    found = load_points(folder / "q.csv").points
    return float(status + np.abs(found - [[3, 3], [900, 0]]).max())


def landmarks(folder: Path) -> float:
    """Landmarks of unlike formats, on images that are the same: nothing moves."""
    phantom = brain_phantom(2, (40, 48))
    image = to_sitk(phantom.fixed, phantom.geometry)
    p = phantom.geometry.index_to_physical([[10, 12], [30, 30], [20, 36]])
    (folder / "a.csv").write_text("x;y\n" + "".join(f"{x};{y}\n".replace(".", ",") for x, y in p))
    (folder / "b.tsv").write_text("name\tx\ty\n" + "".join(f"n\t{x}\t{y}\n" for x, y in p))
    result = itk_nir.register(
        image, image, linear="none", metric="none", preset="fast", iterations=3, threads=1,
        fixed_landmarks=folder / "a.csv", moving_landmarks=folder / "b.tsv",
    )  # fmt: skip
    return float(np.abs(result.transform_points(p) - p).max())


VTK = "# vtk DataFile Version 4.2\n{}\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n"

CASES = [
    Case("CSV with commas", read("p.csv", "x,y,z\n1.5,-2.25,3\n-40,55.5,6.125\n")),
    Case("CSV with semicolons and decimal commas", read("p.csv", "x;y;z\n1,5;-2,25;3\n-40;55,5;6,125\n")),
    Case("CSV with tabs, columns in another order", read("p.csv", "z\ty\tx\n3\t-2.25\t1.5\n6.125\t55.5\t-40\n")),
    Case("BIDS .tsv in RAS", read("p.tsv", "name\tx\ty\tz\na\t-1.5\t2.25\t3\nb\t40\t-55.5\t6.125\n", "ras")),
    Case("a header of R, A, S", read("p.csv", "R,A,S\n-1.5,2.25,3\n40,-55.5,6.125\n")),
    Case("a byte order mark and Windows' line ends", read("p.csv", "\ufeffx,y,z\r\n1.5,-2.25,3\r\n-40,55.5,6.125\r\n")),
    Case(".fcsv, CoordinateSystem = 0", fcsv("0", -1)),
    Case(".fcsv, CoordinateSystem = 1", fcsv("1", 1)),
    Case(".fcsv, CoordinateSystem = LPS", fcsv("LPS", 1, "5.4")),
    Case(".fcsv, CoordinateSystem = RAS", fcsv("RAS", -1, "5.4")),
    Case(".fcsv, CoordinateSystem = 2", fcsv("2", 1), refused=r"voxel indices \(IJK\)"),
    Case(".fcsv without its header", read("p.fcsv", "a,1,2,3\n"), refused="CoordinateSystem"),
    Case(".mrk.json in LPS", markups()),
    Case(".mrk.json in RAS", markups(-1, coordinateSystem="RAS")),
    Case(".mrk.json in micrometres", markups(coordinateUnits="um"), refused="are in um"),
    Case(".mrk.json of a point not placed", markups(controlPoints=[{"position": None}]), refused="has no position"),
    Case(".mrk.json cut off", read("p.mrk.json", '{"markups": ['), refused="damaged"),
    Case("VTK legacy", read("p.vtk", VTK.format("t") + "1.5 -2.25 3 -40 55.5 6.125\n")),
    Case("VTK of 3D Slicer in RAS", read("p.vtk", VTK.format("SPACE=RAS") + "-1.5 2.25 3 40 -55.5 6.125\n")),
    Case("VTK legacy cut off", read("p.vtk", VTK.format("t") + "1.5 -2.25 3 -40 55.5"), refused="truncated"),
    Case(
        ".vtp in text",
        read(
            "p.vtp", '<VTKFile type="PolyData"><PolyData><Piece NumberOfPoints="2"><Points><DataArray format="ascii" '
            'NumberOfComponents="3">1.5 -2.25 3 -40 55.5 6.125</DataArray></Points></Piece></PolyData></VTKFile>'
        ),
    ),
    Case(".vtp with appended data", read("p.vtp", "<VTKFile><AppendedData>_\x00\x01"), refused="zero|damaged"),
    Case("transformix' points", read("p.txt", "point\n2\n1.5 -2.25 3\n-40 55.5 6.125\n")),
    Case("transformix' indices", read("p.txt", "index\n2\n1 2 3\n4 5 6\n"), refused="voxel indices"),
    Case("transformix' points, one less", read("p.pts", "point\n3\n1 2 3\n4 5 6\n"), refused="says 3 points"),
    Case("decimal commas between commas", read("p.csv", "x,y,z\n1,5,2,5,3,5\n"), refused="line 2.*6 cells"),
    Case("decimal points and commas", read("p.csv", "x;y;z\n1,5;2.5;3\n"), refused="decimal point"),
    Case("a column twice", read("p.csv", "x,y,z,x\n1,2,3,4\n"), refused="column x twice"),
    Case("digits with an underscore", read("p.csv", "x,y\n1_0,2\n"), refused="'1_0' is no finite number"),
    Case("NaN", read("p.csv", "x,y\n1,2\n3,nan\n"), refused=r"line 3 \(row 2\): 'nan'"),
    Case("a missing cell", read("p.tsv", "x\ty\tz\n1\tn/a\t3\n"), refused="'n/a'.*remove that row"),
    Case("no header", read("p.csv", "1,2,3\n"), refused="no column x"),
    Case("UTF-16 of a spreadsheet", read("p.csv", "x\x00,\x00y\x00"), refused="no CSV text"),
    Case("a frame against the file's", lambda folder: _against(folder), refused="says that it is in RAS"),
    Case("points outside the grid", outside, within=1e-5),
    Case("landmarks of unlike formats", landmarks),
]  # fmt: skip


def _against(folder: Path) -> float:
    (folder / "p.fcsv").write_text(FCSV.format("4.11", 0) + "a,1,2,3,0,0,0,1,1,1,0,p\n")
    load_points(folder / "p.fcsv", frame="lps")
    return 0.0
