"""Files and folders: formats beside NIfTI, names, damage, and what libraries would print."""

from __future__ import annotations

import locale
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import load_channels, load_image, save_image, to_sitk
from itk_nir.images.quiet import quiet

GRID = Geometry.make([7, 6, 5], [1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
VALUES = (np.random.default_rng(0).random(GRID.shape) * 200).astype(np.float32)
PICTURE = (np.random.default_rng(1).random((40, 50)) * 255).astype(np.uint8)


def refused(path: Path) -> str:
    """The message of the error, one line that begins with the file's name."""
    with pytest.raises(InputError) as error:
        load_channels(path, "fixed image")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz", ".png", ".tif", ".bmp", ".jpg", ".mgz", ".dcm"])
def test_no_cut_is_taken_for_the_whole(suffix: str, compress: bool, tmp_path: Path) -> None:
    """Every length that a copy could have stopped at gives an error or, where only padding is gone, the same image."""
    path, cut = tmp_path / f"whole{suffix}", tmp_path / "cut" / f"f{suffix}"
    cut.parent.mkdir()
    if suffix == ".mgz":
        nibabel = pytest.importorskip("nibabel")
        nibabel.MGHImage(VALUES.T, np.eye(4)).to_filename(path)
    else:
        flat = suffix in (".png", ".tif", ".bmp", ".jpg")
        image = sitk.GetImageFromArray(PICTURE) if flat else to_sitk(VALUES, GRID)
        if suffix == ".dcm":
            image = sitk.GetImageFromArray(PICTURE[None].astype(np.int16))
        sitk.WriteImage(image, str(path), compress)
    raw = path.read_bytes()
    (whole,) = load_channels(path, "fixed image")
    lengths = sorted({0, 1, 10, 100, *np.linspace(0, len(raw) - 1, 23).astype(int).tolist()})
    for length in lengths:
        cut.write_bytes(raw[:length])
        try:
            (volume,) = load_channels(cut, "fixed image")
        except InputError:
            assert refused(cut).startswith(f"fixed image {cut}: ")
            continue
        np.testing.assert_array_equal(volume.array, whole.array)
        assert volume.geometry == whole.geometry


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz", ".png"])
def test_no_changed_byte_of_packed_voxels_goes_through(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    image = sitk.GetImageFromArray(PICTURE) if suffix == ".png" else to_sitk(VALUES, GRID)
    sitk.WriteImage(image, str(path), True)
    raw, whole = path.read_bytes(), load_image(path, "fixed image")
    start = {".mha": raw.find(b"LOCAL\n") + 6, ".nrrd": raw.find(b"\n\n") + 2}.get(suffix, 12)
    for at in np.linspace(start, len(raw) - 1, 40).astype(int):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x41]) + raw[at + 1 :])
        try:
            volume = load_image(path, "fixed image")
        except InputError:
            continue
        # What gzip's header says of names and systems is nobody's loss.
        np.testing.assert_array_equal(volume.array, whole.array)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
@pytest.mark.parametrize("name", ["f.mha", "f.mhd", "f.nrrd", "f.nhdr"])
def test_every_type_of_pixels(name: str, dtype: str, tmp_path: Path) -> None:
    for compress in (True, False):
        sitk.WriteImage(to_sitk(VALUES.astype(dtype), GRID), str(tmp_path / name), compress)
        volume = load_image(tmp_path / name, "fixed image", native=True)
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array, VALUES.astype(dtype))
        assert volume.geometry.same_grid(GRID)


def tiff(pages: int, dtype: str, kind: int, big: bool = False) -> bytes:
    """Pages of 8 x 6 pixels, one strip each, in the type's byte order."""
    order = ">" if dtype[0] == ">" else "<"
    many, word = ("Q", "Q") if big else ("H", "I")
    size = struct.calcsize(order + word)
    out = b"MM" if order == ">" else b"II"
    out += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    for k in range(pages):
        data = (np.arange(48) + k).astype(dtype).tobytes()
        start = len(out) + struct.calcsize(order + many) + 9 * (4 + 2 * size) + size
        tags = {256: 8, 257: 6, 258: 8 * np.dtype(dtype).itemsize, 259: 1, 262: 1, 273: start, 278: 6}
        tags |= {279: len(data), 339: kind}
        out += struct.pack(order + many, len(tags))
        for tag, value in tags.items():
            long = tag in (273, 279)
            out += struct.pack(order + "HH" + word, tag, 4 if long else 3, 1)
            out += struct.pack(order + ("I" if long else "H"), value).ljust(size, b"\0")
        out += struct.pack(order + word, start + len(data) if k + 1 < pages else 0) + data
    return out


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_no_page_of_a_cut_tiff_is_left_out(order: str, big: bool, tmp_path: Path) -> None:
    path, raw = tmp_path / "f.tif", tiff(4, f"{order}u2", 1, big)
    path.write_bytes(raw)
    np.testing.assert_array_equal(load_image(path, "fixed image").array[:, 0, 0], [0, 1, 2, 3])
    for length in range(4, len(raw), 7):
        path.write_bytes(raw[:length])
        assert "truncated or damaged" in refused(path)
    # The last page is said to be followed by the first.
    word = struct.Struct(order + ("Q" if big else "I"))
    at = len(raw) - 96 - word.size
    path.write_bytes(raw[:at] + word.pack(16 if big else 8) + raw[at + word.size :])
    assert "truncated or damaged" in refused(path)


@pytest.mark.parametrize("order", "<>")
def test_types_of_tiff_pixels(order: str, tmp_path: Path) -> None:
    path = tmp_path / "f.tif"
    for dtype, kind in (("u1", 1), ("i1", 2), ("u2", 1), ("i2", 2), ("u4", 1), ("i4", 2), ("f4", 3)):
        path.write_bytes(tiff(1, order + dtype, kind))
        volume = load_image(path, "fixed image", native=True)
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array.ravel(), np.arange(48))
    for dtype, kind, words in (("f2", 3, "16-bit floating-point"), ("u4", 5, "complex"), ("c8", 6, "complex")):
        path.write_bytes(tiff(1, order + dtype, kind))
        assert f"has {words} pixels, which cannot be read" in refused(path)


def meta(path: Path, data: bytes, **fields: str) -> Path:
    """A MetaImage file of 3 x 2 x 4 values."""
    said = {"NDims": "3", "DimSize": "3 2 4", "ElementSpacing": "1 1 1", "ElementType": "MET_SHORT", **fields}
    named = said.pop("ElementDataFile", "LOCAL")
    head = "".join(f"{name} = {value}\n" for name, value in {**said, "ElementDataFile": named}.items())
    path.write_bytes(head.encode() + data)
    return path


def test_a_long_of_metaimage_has_four_bytes(tmp_path: Path) -> None:
    values = np.arange(24) - 5
    for name, dtype in (("LONG", "i4"), ("ULONG", "u4"), ("LONG_LONG", "i8"), ("ULONG_LONG", "u8")):
        path = meta(tmp_path / "f.mha", values.astype(dtype).tobytes(), ElementType=f"MET_{name}")
        volume = load_image(path, "fixed image", native=True)
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array.ravel(), values.astype(dtype))
    path = meta(tmp_path / "f.mha", values.astype("i8").tobytes(), ElementType="MET_LONG")
    assert "MET_LONG, of 4 bytes, and its voxels have 8; write MET_LONG_LONG there" in refused(path)


@pytest.mark.parametrize("word", ["LIST", "LIST 2D"])
def test_metaimage_of_a_file_a_slice(word: str, tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"{k}.raw").write_bytes((np.arange(6) + k).astype("i2").tobytes())
    path = meta(tmp_path / "f.mhd", b"0.raw\n1.raw\n2.raw\n3.raw\n", ElementDataFile=word)
    np.testing.assert_array_equal(load_image(path, "fixed image").array[:, 0, 0], [0, 1, 2, 3])


def nrrd(path: Path, lines: str) -> Path:
    """An NRRD file of 3 x 2 x 4 values."""
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 3 2 4\nencoding: raw\nendian: little\n{lines}\n"
    path.write_bytes(head.encode() + bytes(48))
    return path


_LPS = "space: left-posterior-superior\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n"
_UNKNOWN = "its header does not say how the object lies"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (_LPS, []),
        ("space: RAS\nspace directions: (1, 0, 0) (0, 2, 0) (0, 0, 3)\n" + 'space units: "mm" "" "mm"\n', []),
        (_LPS + 'space units: "um" "um" "um"\n', ["that lengths are in um; the numbers are used as they are"]),
        ('spacings: 1 2 3\nunits: "cm" "cm" "cm"\n', ["that lengths are in cm", _UNKNOWN]),
        ("", ["does not say how large its voxels are; 1 mm is taken", _UNKNOWN]),
        ("spacings: nan 1 1\n", ["does not say how large its voxels are; 1 mm is taken", _UNKNOWN]),
        ("spacings: -1 2 3\n", ["has voxels of size -1 2 3; axes below 0 run backwards", _UNKNOWN]),
        ("space: scanner-xyz\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n", [_UNKNOWN]),
        ("space dimension: 3\nspace directions: (1,0,0) (0,2,0) (0,0,3)\n", [_UNKNOWN]),
    ],
)
def test_nrrd_headers_that_do_not_say_where(lines: str, told: list[str], tmp_path: Path) -> None:
    found = texts(load_image(nrrd(tmp_path / "f.nrrd", lines), "fixed image").findings)
    assert len(found) == len(told)
    assert all(words in one for words, one in zip(told, found, strict=True))


@pytest.mark.parametrize(("units", "told"), [("mm", 0), ("?", 0), ("um", 1), ("cm", 1)])
def test_units_of_metaimage(units: str, told: int, tmp_path: Path) -> None:
    found = texts(load_image(meta(tmp_path / "f.mha", bytes(48), DistanceUnits=units), "fixed image").findings)
    assert [f"lengths are in {units}; the numbers are used as they are" in one for one in found] == [True] * told


def test_mgh_files_are_where_nibabel_has_them(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[-1, 0, 0.2, 5], [0.2, 0, 2, -3], [0, -1.5, 0, 9], [0, 0, 0, 1.0]])
    u, _, vt = np.linalg.svd(affine[:3, :3])
    affine[:3, :3] = u @ vt * [1.0, 1.5, 2.0]
    for dtype in ("uint8", "int16", "int32", "float32"):
        nibabel.MGHImage(VALUES.T.astype(dtype), affine).to_filename(tmp_path / "f.mgz")
        volume = load_image(tmp_path / "f.mgz", "fixed image", native=True)
        theirs = nibabel.load(tmp_path / "f.mgz").affine
        np.testing.assert_array_equal(volume.array, VALUES.astype(dtype))
        np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ volume.geometry.matrix, theirs, atol=1e-4)
        assert volume.findings == ()
    raw = bytearray(nibabel.MGHImage(VALUES.T, affine).to_bytes())
    raw[28:30] = b"\0\0"
    (tmp_path / "f.mgh").write_bytes(raw)
    volume = load_image(tmp_path / "f.mgh", "fixed image")
    assert not volume.geometry.oriented
    assert "FreeSurfer" in texts(volume.findings)[0]


def series(
    folder: Path,
    uid: str,
    positions: list[tuple[float, float, float]],
    axes: str = "1\\0\\0\\0\\1\\0",
    spacing: tuple[float, float] = (1.0, 2.0),
) -> Path:
    """DICOM slices, of 1 x 2 mm."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, position in enumerate(positions):
        image = sitk.GetImageFromArray(VALUES[k % 5][None].astype(np.int16))
        image.SetSpacing([*spacing, 1.0])
        x, y = np.array([float(v) for v in axes.split("\\")]).reshape(2, 3)
        image.SetDirection(np.column_stack([x, y, np.cross(x, y)]).ravel().tolist())
        image.SetOrigin(position)
        tags = {"0020|000d": "1.2.3", "0020|000e": uid, "0008|0018": f"{uid}.{k}", "0008|0060": "MR"}
        tags |= {"0020|0037": axes, "0020|0032": "\\".join(map(str, position))}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}.{9 - k}.dcm"))
        writer.Execute(image)
    return folder


def test_dicom_series_in_any_plane(tmp_path: Path) -> None:
    for name, axes, step in (
        ("sagittal", "0\\1\\0\\0\\0\\-1", (-3, 0, 0)),
        ("coronal", "1\\0\\0\\0\\0\\-1", (0, 3, 0)),
    ):
        places = [tuple(float(v) for v in np.array([10, 20, 30]) + k * np.array(step)) for k in range(5)]
        folder = series(tmp_path / name, "1.2.3.4", places, axes)  # type: ignore[arg-type]
        volume = load_image(folder, "fixed image", native=True)
        for k, place in enumerate(places):
            # Whatever the order of the slices, each is at its place.
            index = volume.geometry.physical_to_index(place)
            assert np.allclose(index[:2], 0, atol=1e-6)
            np.testing.assert_array_equal(volume.array[round(index[2])], VALUES[k].astype(np.int16))


def test_the_locale_is_as_it_was(tmp_path: Path) -> None:
    """The library behind it sets another, in which no file with a name that is not ASCII could be opened."""
    folder = series(tmp_path / "s", "1.2.3.4", [(0, 0, 3.0 * k) for k in range(5)])
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    try:
        load_image(folder, "fixed image")
        assert locale.setlocale(locale.LC_CTYPE) == "C.UTF-8"
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_scouts_in_several_planes_are_single_slices(tmp_path: Path) -> None:
    series(tmp_path / "scouts", "1.2.3.4", [(10.0, 20.0, 30.0)])
    other = series(tmp_path / "other", "1.2.3.4", [(10.0, 20.0, 30.0), (0.0, 0.0, 9.0)], "1\\0\\0\\0\\0\\-1")
    shutil.copy(next(other.iterdir()), tmp_path / "scouts" / "second.dcm")
    assert "are no volume" in refused(tmp_path / "scouts")
    assert load_image(tmp_path / "scouts" / "1.2.3.4.9.dcm", "fixed image").array.shape == (6, 7)


def test_uneven_slices_are_told(tmp_path: Path) -> None:
    places = [(0.0, 0.0, z) for z in (0.0, 3.0, 6.2, 9.0, 12.0)]
    volume = load_image(series(tmp_path / "s", "1.2.3.4", places), "fixed image")
    assert "2.8 to 3.2 mm apart; they are taken for 3 mm" in texts(volume.findings)[0]


def test_slices_of_unlike_pixel_spacing_are_no_volume(tmp_path: Path) -> None:
    places = [(0.0, 0.0, 3.0 * k) for k in range(4)]
    folder = series(tmp_path / "s", "1.2.3.4", places)
    shutil.copy(series(tmp_path / "other", "1.2.3.4", places, spacing=(2.0, 3.0)) / "1.2.3.4.6.dcm", folder)
    assert "differ in size, direction or pixel spacing" in refused(folder)
    assert "differ in size, direction or pixel spacing" in refused(folder / "1.2.3.4.9.dcm")


def test_slices_that_are_cut_off_are_missed(tmp_path: Path) -> None:
    """GDCM lists the others, and nothing else would tell that the first or the last slice is not there."""
    folder = series(tmp_path / "s", "1.2.3.4", [(0.0, 0.0, 3.0 * k) for k in range(5)])
    last, raw = folder / "1.2.3.4.5.dcm", (folder / "1.2.3.4.5.dcm").read_bytes()
    for length in {0, 100, *range(132, len(raw), 11), len(raw) - 60, len(raw) - 1}:
        last.write_bytes(raw[:length])
        assert "1 of its DICOM files cannot be read, cut off or damaged: 1.2.3.4.5.dcm" in refused(folder)
    assert "1.2.3.4.5.dcm" in refused(folder / "1.2.3.4.7.dcm")
    last.write_bytes(raw)
    # Slices of another series are not missed in this one.
    other = series(folder, "1.2.3.5", [(0.0, 0.0, 3.0 * k) for k in range(2)]) / "1.2.3.5.8.dcm"
    other.write_bytes(other.read_bytes()[:-60])
    assert load_image(last, "fixed image").array.shape == (5, 6, 7)


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    length = struct.pack("<HI", 0, len(value)) if kind == b"SQ" else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def test_files_beside_a_series_that_are_no_images(tmp_path: Path) -> None:
    """A report, even one of the same series, a DICOMDIR, what macOS leaves, and anything else."""
    folder = series(tmp_path / "s", "1.2.3.4", [(0.0, 0.0, 3.0 * k) for k in range(5)])
    kind = b"1.2.840.10008.5.1.4.1.1.88.11\0"
    of_file = element(2, 2, b"UI", kind) + element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0")
    text = element(8, 0x104, b"LO", b"well")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + text + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    begin, end = struct.pack("<HH2sHI", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    for uid in (b"1.2.3.4\0", b"1.2.3.99"):
        for content in (element(0x40, 0xA730, b"SQ", b""), begin + item + end):
            report = element(8, 0x16, b"UI", kind) + element(0x20, 0xE, b"UI", uid) + content
            (folder / "report.dcm").write_bytes(bytes(128) + b"DICM" + of_file + report)
            (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + of_file[:20])
            (folder / "._1.dcm").write_bytes(b"\0\5\x16\7")
            (folder / "notes.txt").write_text("none")
            for path in (folder, folder / "1.2.3.4.7.dcm"):
                assert load_image(path, "fixed image").array.shape == (5, 6, 7)
            # One that is cut off may have been a slice.
            (folder / "report.dcm").write_bytes(bytes(128) + b"DICM" + of_file + report[:-3])
            if uid == b"1.2.3.4\0":
                assert "report.dcm" in refused(folder)


def test_levels_of_ome_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    group = zarr.open_group(str(tmp_path / "f.zarr"), mode="w", zarr_format=2)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "zyx")]
    levels = []
    for k in range(2):
        level = group.create_array(str(k), shape=(2, 4, 6, 8), dtype="u2")
        level[...] = np.arange(384).reshape(2, 4, 6, 8)
        moves = [{"type": "scale", "scale": [1, 3, 2, 1 + k]}, {"type": "translation", "translation": [0, 7, 8, 9]}]
        levels.append({"path": str(k), "coordinateTransformations": moves})
    group.attrs["multiscales"] = [{"axes": axes, "datasets": levels}]
    assert "has 2 levels; give the folder of one: f.zarr/0 (2x4x6x8), f.zarr/1" in refused(tmp_path / "f.zarr")
    first, second = load_channels(tmp_path / "f.zarr" / "1", "fixed image")
    np.testing.assert_array_equal(second.array, np.arange(192, 384).reshape(4, 6, 8))
    assert first.geometry.same_grid(Geometry.make([8, 6, 4], [2, 2, 3], [9, 8, 7]))
    assert "micrometer" in texts(first.findings, "note")[0]


def test_names_that_are_no_text_are_read_in_any_locale(tmp_path: Path) -> None:
    """SimpleITK ends the process for them."""
    for name in (b"f\xff.mha", b"g\xff.nii.gz", "é.nrrd".encode()):
        plain = tmp_path / ("plain." + name.decode("latin1").split(".", 1)[1])
        save_image(VALUES, GRID, plain)
        os.rename(plain, os.path.join(os.fsencode(tmp_path), name))
    code = (
        "import os, sys\nfrom itk_nir.images import load_image\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    print(load_image(os.path.join(sys.argv[1], name), 'fixed image').array.sum())"
    )
    plain_c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in ({}, plain_c):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, **words, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(VALUES.sum())] * 3
        assert done.stderr == ""


@pytest.mark.parametrize("name", ["\u00e9.raw.gz", "\u00c5se.raw.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_packed_voxels_under_a_name_that_is_no_ascii(name: str, end: bytes, tmp_path: Path) -> None:
    """One byte of the second name is the end of a line in Latin-1."""
    sitk.WriteImage(to_sitk(VALUES, GRID), str(tmp_path / "f.nhdr"), useCompression=True)
    (tmp_path / "f.raw.gz").rename(tmp_path / name)
    lines = (tmp_path / "f.nhdr").read_bytes().replace(b"f.raw.gz", name.encode()).split(b"\n")
    (tmp_path / "f.nhdr").write_bytes(end.join([lines[0], b"# caf\xe9 \x85 on", *lines[1:]]))
    np.testing.assert_array_equal(load_image(tmp_path / "f.nhdr", "fixed image").array, VALUES)


def test_a_detached_header_under_such_a_name_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(to_sitk(VALUES, GRID), str(tmp_path / "f.nhdr"))
    path = os.path.join(os.fsencode(tmp_path), b"f\xff.nhdr")
    os.rename(tmp_path / "f.nhdr", path)
    with pytest.raises(InputError, match="not UTF-8"):
        load_image(os.fsdecode(path), "fixed image")


def test_permissions_and_links(tmp_path: Path) -> None:
    save_image(VALUES, GRID, tmp_path / "f.mha")
    (tmp_path / "good.mha").symlink_to(tmp_path / "f.mha")
    np.testing.assert_array_equal(load_image(tmp_path / "good.mha", "fixed image").array, VALUES)
    (tmp_path / "bad.mha").symlink_to(tmp_path / "none.mha")
    assert "a link to a file that does not exist" in refused(tmp_path / "bad.mha")
    assert "no such file" in refused(tmp_path / "f.mha" / "g.mha")
    if os.getuid() != 0:
        (tmp_path / "f.mha").chmod(0)
        assert "permission denied" in refused(tmp_path / "f.mha")


def test_standard_error_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Several readers at once turn it away once, and back when the last of them ends."""
    inside, leave = threading.Barrier(3), threading.Event()

    def hold() -> None:
        with quiet():
            inside.wait(10)
            leave.wait(10)

    others = [threading.Thread(target=hold) for _ in range(2)]
    for thread in others:
        thread.start()
    with quiet():
        inside.wait(10)
        os.write(2, b"of a library")
        assert not sitk.ProcessObject.GetGlobalWarningDisplay()
    os.write(2, b"while others read")
    leave.set()
    for thread in others:
        thread.join()
    os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


def test_a_failed_reader_gives_standard_error_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.nrrd").write_text("NRRD0004\n")
    refused(tmp_path / "f.nrrd")
    os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("dtype", ["bool", "float16", "longdouble", ">f4", ">u2"])
def test_types_that_files_lack_are_written_in_a_wider_one(dtype: str, ending: str, tmp_path: Path) -> None:
    grid = Geometry.make([4, 3], spacing=[0.5, 2.0])
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    save_image(array, grid, tmp_path / f"x{ending}")
    np.testing.assert_array_equal(load_image(tmp_path / f"x{ending}", "image").array, array.astype(np.float32))
