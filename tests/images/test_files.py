"""Files and folders: formats beside NIfTI, names, damage, and what libraries would print."""

from __future__ import annotations

import locale
import os
import shutil
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
    assert not volume.oriented
    assert "FreeSurfer" in texts(volume.findings)[0]


def series(folder: Path, uid: str, positions: list[tuple[float, float, float]], axes: str = "1\\0\\0\\0\\1\\0") -> Path:
    """DICOM slices of 1 x 2 mm."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, position in enumerate(positions):
        image = sitk.GetImageFromArray(VALUES[k % 5][None].astype(np.int16))
        image.SetSpacing([1.0, 2.0, 1.0])
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
