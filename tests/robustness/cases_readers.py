"""Images in: kinds of objects, files and their formats, types of pixels, headers, places, names, damage."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import itk_nir
from itk_nir.errors import InputError
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import load_channels, load_image, save_image, to_itk, to_sitk
from itk_nir.images.volume import Volume
from itk_nir.phantom import brain_phantom
from tests.robustness.campaign import Case

Change = Callable[[bytes], bytes]
GRID = Geometry.make([7, 6, 5], [1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
VALUES = (np.random.default_rng(0).random(GRID.shape) * 200).astype(np.float32)
FLAT = Geometry.make([30, 20])
PICTURE = (np.random.default_rng(1).random((*FLAT.shape, 3)) * 255).astype(np.uint8)
#: RAS, turned, 1.5 x 1.5 x 2.5 mm.
AFFINE = np.array([[-1.2, -0.9, 0, 10], [-0.9, 1.2, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def told(volume: Volume) -> Volume:
    """Warn of what the reader found, as a registration would."""
    for text in texts(volume.findings):
        warnings.warn(text, UserWarning, stacklevel=2)
    return volume


def off(volume: Volume, values: np.ndarray = VALUES, grid: Geometry | None = GRID) -> float:
    """How far an image is from the truth: voxels, or infinity for other values."""
    told(volume)
    if volume.array.shape != values.shape or not np.array_equal(volume.array, values.astype(np.float32)):
        return np.inf
    if grid is None:
        return 0.0
    return float(
        np.abs(grid.physical_to_index(volume.geometry.corners()) - grid.physical_to_index(grid.corners())).max()
    )


def away(volume: Volume, affine: np.ndarray) -> float:
    """How far the corners of an image are from those of a RAS matrix, in voxels."""
    told(volume)
    ends = [(0, n - 1) for n in volume.geometry.size]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    points = np.column_stack([index, np.ones(len(index))]) @ (RAS @ affine).T
    return float(np.abs(volume.geometry.physical_to_index(points[:, :3]) - index).max())


def read(path: Any, **options: Any) -> Volume:
    return load_image(path, "fixed image", **options)


# --- NIfTI headers ---------------------------------------------------------------------------------------------------


def header(
    folder: Path,
    *edits: tuple[int, str, tuple[Any, ...]],
    sform: tuple[np.ndarray, int] = (AFFINE, 1),
    qform: tuple[np.ndarray, int] = (AFFINE, 1),
    shape: tuple[int, ...] = (9, 8, 7),
) -> Path:
    """A NIfTI-1 file by nibabel, some fields of its header overwritten."""
    import nibabel

    image = nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), AFFINE)
    image.set_sform(*sform)
    image.set_qform(*qform)
    nibabel.save(image, folder / "f.nii")
    raw = bytearray((folder / "f.nii").read_bytes())
    for at, form, values in edits:
        struct.pack_into("<" + form, raw, at, *values)
    (folder / "f.nii").write_bytes(raw)
    return folder / "f.nii"


def placed(
    name: str,
    *edits: tuple[int, str, tuple[Any, ...]],
    want: np.ndarray = AFFINE,
    refused: str | None = None,
    warned: str | None = None,
    within: float = 1e-3,
    **forms: Any,
) -> Case:
    """A header whose image must lie where `want` says."""
    return Case(name, lambda folder: away(read(header(folder, *edits, **forms)), want), refused, within, warned)


def shifted(x: float) -> np.ndarray:
    out = AFFINE.copy()
    out[0, 3] += x
    return out


def sheared(by: float) -> np.ndarray:
    out = AFFINE.copy()
    out[:3, 1] += by * out[:3, 0]
    return out


def scaled(by: float) -> np.ndarray:
    return AFFINE @ np.diag([by, by, by, 1])


MIRRORED = AFFINE @ np.diag([-1, 1, 1, 1.0])
ZEROS, NAN = (0.0,) * 12, float("nan")
#: What ITK takes for a file without orientation: LPS.
UNKNOWN = np.diag([1.5, 1.5, 2.5, 1.0])
SINGULAR = tuple(AFFINE[:3, [0, 1, 1, 3]].ravel())


def small(folder: Path) -> float:
    """The header says 2 slices, the file holds 7."""
    path = header(folder, (46, "h", (2,)), shape=(19, 18, 7))
    return off(read(path), np.frombuffer(path.read_bytes(), "<f4", 19 * 18 * 2, 352).reshape(2, 18, 19), None)


HEADERS = [
    placed("sform code 2 and another qform", sform=(AFFINE, 2), qform=(shifted(7), 1), warned="the sform is used"),
    placed("sform code 4 and another qform", sform=(AFFINE, 4), qform=(shifted(7), 2), warned="the sform is used"),
    placed("sform code 1 and another qform", sform=(AFFINE, 1), qform=(shifted(7), 1), warned="the sform is used"),
    placed("qform alone", sform=(shifted(9), 0)),
    placed("sform alone", qform=(shifted(9), 0)),
    placed("left-handed", sform=(MIRRORED, 1), qform=(MIRRORED, 1), want=MIRRORED),
    placed("left-handed by the qform alone", sform=(MIRRORED, 0), qform=(MIRRORED, 1), want=MIRRORED),
    placed("far from the origin", sform=(shifted(1e5), 1), qform=(shifted(1e5), 1), want=shifted(1e5)),
    placed("pixdim 1, sform 1.5 mm", (80, "3f", (1, 1, 1)), qform=(AFFINE, 0), warned="its pixdim says 1 x 1 x 1"),
    placed("pixdim ten times the sform", (80, "3f", (15, 15, 25)), warned="its pixdim says 15 x 15 x 25"),
    placed("pixdim 0 beside an sform", (80, "3f", (0, 0, 0)), qform=(AFFINE, 0), warned="its pixdim says 0"),
    placed("pixdim NaN beside an sform", (80, "3f", (NAN, 1, 1)), qform=(AFFINE, 0), warned="its pixdim says nan"),
    placed("pixdim NaN beside a qform", (80, "3f", (NAN, 1, 1)), sform=(AFFINE, 0), refused="pixdim"),
    placed("pixdim below 0 beside a qform", (80, "3f", (-1.5, 1.5, 2.5)), sform=(AFFINE, 0), warned="are taken"),
    placed("metres", (123, "B", (1,)), warned="in metres"),
    placed("micrometres", (123, "B", (3,)), warned="in micrometres"),
    placed("seconds and no unit of length", (123, "B", (8,))),
    placed("shear of 3e-4", sform=(sheared(3e-4), 1), qform=(AFFINE, 0), want=sheared(3e-4)),
    placed(
        "shear of 5e-3", sform=(sheared(5e-3), 1), qform=(AFFINE, 0), want=sheared(5e-3), within=0.25,
        warned="nearest perpendicular grid",
    ),
    placed("shear of 0.3", sform=(sheared(0.3), 1), qform=(AFFINE, 0), refused=r"by [\d.]+ voxels.*resample_shear"),
    placed("shear of 0.3 beside a good qform", sform=(sheared(0.3), 1), refused=r"not perpendicular"),
    placed("sform of zeros, good qform", (280, "12f", ZEROS), warned="the qform is used"),
    placed("sform of zeros, no qform", (280, "12f", ZEROS), qform=(AFFINE, 0), refused="sform.*singular"),
    placed("sform with NaN, good qform", (280, "f", (NAN,)), warned="the qform is used"),
    placed("sform with two equal columns, no qform", (280, "12f", SINGULAR), qform=(AFFINE, 0), refused="singular"),
    placed("quaternion longer than 1, no sform", (256, "3f", (1, 1, 1)), sform=(AFFINE, 0), refused="no rotation"),
    placed("quaternion longer than 1 beside an sform", (256, "3f", (1, 1, 1))),
    placed("quaternion with NaN, no sform", (256, "3f", (NAN, 0, 0)), sform=(AFFINE, 0), refused="no rotation"),
    placed("vox_offset NaN", (108, "f", (NAN,)), refused="vox_offset"),
    placed("vox_offset beyond the end", (108, "f", (1e7,)), refused="truncated, 0 of"),
    placed("vox_offset below 0", (108, "f", (-8.0,)), refused="vox_offset"),
    placed("bitpix against the type", (72, "h", (8,))),
    placed("type of no kind", (70, "h", (7,)), refused="type number 7"),
    placed("type float128", (70, "h", (1536,)), refused="float128"),
    placed("type complex", (70, "h", (32,)), refused="complex64"),
    placed("no axes", (40, "h", (0,)), refused="0 axes"),
    placed("nine axes", (40, "h", (9,)), refused="9 axes"),
    placed("axis of length -9", (42, "h", (-9,)), refused="lengths -9x8x7"),
    placed("axis of length 0", (44, "h", (0,)), refused="lengths 9x0x7"),
    placed("axes of 32000 voxels", (42, "3h", (32000, 32000, 32000)), refused="truncated"),
    placed("magic changed", (344, "4s", (b"n+7",)), refused="no NIfTI header"),
    placed("first word changed", (0, "i", (347,)), refused="no NIfTI header"),
    Case(
        "both codes 0",
        lambda folder: away(read(header(folder, sform=(AFFINE, 0), qform=(AFFINE, 0))), RAS @ UNKNOWN),
        warned="does not say how the object lies",
    ),
    Case("a size smaller than the file", small, warned="bytes beyond"),
    Case("a sheared image resampled on request", lambda folder: resampled(folder)),
]  # fmt: skip


def resampled(folder: Path) -> float:
    """A ramp is the same ramp on every grid: the share of its range that it is off."""
    import nibabel

    affine = sheared(0.3)
    shape = (12, 11, 10)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    ramp = points @ [1.0, 2.0, 3.0] + 500
    nibabel.save(nibabel.Nifti1Image(ramp.astype(np.float32), affine), folder / "f.nii")
    volume = read(folder / "f.nii", resample_shear=True)
    there = volume.geometry.grid() * [-1, -1, 1]
    inside = volume.array > ramp.min() + 1e-3
    inner = (there - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((inner >= 0) & (inner <= np.array(shape) - 1)).all(-1)
    assert inside.sum() > 800
    return float(np.abs(volume.array - (there @ [1.0, 2.0, 3.0] + 500))[inside].max() / np.ptp(ramp))


# --- files -----------------------------------------------------------------------------------------------------------


def nifti_2(folder: Path, order: str = "<", name: str = "f.nii.gz") -> float:
    import nibabel

    head = nibabel.Nifti2Header(endianness=order)
    image = nibabel.Nifti2Image(VALUES.T, RAS @ GRID.matrix, header=head)
    nibabel.save(image, folder / name)
    return off(read(folder / name))


def analyze(folder: Path) -> float:
    import nibabel

    nibabel.AnalyzeImage(VALUES.T.astype(np.int16), np.eye(4)).to_filename(folder / "f.hdr")
    return off(read(folder / "f.img"), VALUES.astype(np.int16), None)


def without_half(folder: Path, gone: str, given: str) -> float:
    sitk.WriteImage(to_sitk(VALUES, GRID), str(folder / "f.hdr"))
    (folder / gone).unlink()
    return off(read(folder / given))


def mgz(folder: Path, keep: float = 1.0, name: str = "f.mgz") -> float:
    import nibabel

    nibabel.MGHImage(VALUES.T, RAS @ GRID.matrix).to_filename(folder / name)
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: int(len(raw) * keep)])
    return off(read(folder / name))


def as_file(name: str, *, compress: bool = True, change: Change = lambda raw: raw) -> Callable[[Path], float]:
    """Write an image by SimpleITK, change its bytes, and read it."""

    def run(folder: Path) -> float:
        sitk.WriteImage(to_sitk(VALUES, GRID), str(folder / name), compress)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return off(read(folder / name))

    return run


def flipped(raw: bytes) -> bytes:
    """One byte of the packed voxels changed."""
    at = len(raw) * 3 // 4
    return raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]


def half(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def other(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        assert old in raw
        return raw.replace(old, new, 1)

    return change


def recompressed(raw: bytes) -> bytes:
    """The packed voxels, two too few."""
    start = raw.index(b"ElementDataFile = LOCAL\n") + 24
    packed = zlib.compress(zlib.decompress(raw[start:])[:-8])
    head = b"\n".join(x for x in raw[:start].split(b"\n") if not x.startswith(b"CompressedDataSize"))
    return head + packed


def picture(name: str, change: Change = lambda raw: raw) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        sitk.WriteImage(sitk.GetImageFromArray(PICTURE, isVector=True), str(folder / name))
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        channels = load_channels(folder / name, "fixed image")
        return float(np.abs(np.stack([c.array for c in channels], -1) - PICTURE).max() / 255)

    return run


def opaque(folder: Path) -> float:
    """The opacity of a picture that is opaque everywhere is no channel."""
    full = np.dstack([PICTURE, np.full(FLAT.shape, 255, np.uint8)])
    sitk.WriteImage(sitk.GetImageFromArray(full, isVector=True), str(folder / "f.png"))
    channels = load_channels(folder / "f.png", "fixed image")
    return float(len(channels) != 3 or np.abs(channels[2].array - PICTURE[..., 2]).max())


def slices(folder: Path, uid: str = "1.2.3.4", gaps: tuple[float, ...] = (3.0,) * 4, tilt: float = 0.0) -> Path:
    """A DICOM series of `VALUES`, its files in another order than its slices."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, z in enumerate(np.concatenate([[0.0], np.cumsum(gaps)])):
        image = sitk.GetImageFromArray(VALUES[k][None].astype(np.int16))
        image.SetSpacing([1.0, 2.0, 3.0])
        tags = {
            "0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": uid, "0008|0018": f"{uid}.{k}", "0020|0013": str(k),
            "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0032": f"10\\{20 + tilt * z}\\{30 + z}",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        image.SetOrigin([10.0, 20.0, 30.0 + z])
        writer.SetFileName(str(folder / f"{uid}-{(3 * k) % 5}.dcm"))
        writer.Execute(image)
    return folder


def dicom(name: str, **how: Any) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        slices(folder, **how)
        return off(read(folder / name if name else folder), VALUES.astype(np.int16))

    return run


def two_series(folder: Path) -> float:
    slices(folder)
    slices(folder, "1.2.3.5")
    return off(read(folder))


def one_slice(folder: Path) -> float:
    slices(folder)
    for path in folder.glob("*-[1-4].dcm"):
        path.unlink()
    grid = Geometry.make(GRID.size[:2], GRID.spacing[:2], GRID.origin[:2])
    return off(read(next(folder.iterdir())), VALUES[0].astype(np.int16), grid)


def without_zarr(folder: Path) -> float:
    import sys

    (folder / "f.zarr").mkdir()
    (folder / "f.zarr" / ".zattrs").write_text("{}")
    kept = sys.modules.get("zarr")
    sys.modules["zarr"] = None  # type: ignore[assignment]
    try:
        return off(read(folder / "f.zarr"))
    finally:
        del sys.modules["zarr"]
        if kept is not None:
            sys.modules["zarr"] = kept


def pipe(folder: Path) -> float:
    os.mkfifo(folder / "f.nii")
    return off(read(folder / "f.nii"))


def named(name: bytes) -> Callable[[Path], float]:
    """An image under a name that is odd."""

    def run(folder: Path) -> float:
        plain = folder / ("plain." + name.decode("latin1").split(".", 1)[1])
        save_image(VALUES, GRID, plain)
        path = os.path.join(os.fsencode(folder), name)
        os.rename(plain, path)
        return off(read(os.fsdecode(path)))

    return run


def quietly(run: Callable[[Path], float]) -> Callable[[Path], float]:
    """Nothing may be printed on standard error: the length of what is."""

    def watched(folder: Path) -> float:
        kept = os.dup(2)
        caught = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT)
        os.dup2(caught, 2)
        try:
            run(folder)
        except InputError:
            pass
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(caught)
        return float((folder / "stderr").stat().st_size)

    return watched


MHA = "f.mha"
FILES = [
    Case("NIfTI-2", nifti_2),
    Case("NIfTI-2, big-endian, two files", lambda folder: nifti_2(folder, ">", "f.hdr")),
    Case("Analyze", analyze, warned="Analyze file has no orientation"),
    Case("header without voxels", lambda f: without_half(f, "f.img", "f.hdr"), refused="f.img, which does not exist"),
    Case("voxels without header", lambda f: without_half(f, "f.hdr", "f.img"), refused="f.hdr, which does not exist"),
    Case("MGZ", mgz),
    Case("MGZ cut", lambda folder: mgz(folder, 0.7), refused="truncated"),
    Case("MGH cut", lambda folder: mgz(folder, 0.7, "f.mgh"), refused=r"truncated, \d+ of 840"),
    Case("packed .mha, one byte changed", as_file(MHA, change=flipped), refused="damaged"),
    Case("packed .mha, two values too few", as_file(MHA, change=recompressed), refused="832 of 840 voxel bytes"),
    Case("packed .mha, cut", as_file(MHA, change=half), refused="truncated or damaged|MetaImage"),
    Case(
        "raw .mha that says it is packed",
        as_file(MHA, compress=False, change=other(b"CompressedData = False", b"CompressedData = True")),
        refused="not compressed",
    ),
    Case("raw .mha, cut", as_file(MHA, compress=False, change=lambda raw: raw[:-9]), refused="truncated, 831 of 840"),
    Case(".mha of spacing NaN", as_file(MHA, change=other(b"Spacing = 1 2", b"Spacing = nan 2")), refused="not finite"),
    Case(".mha of spacing below 0", as_file(MHA, change=other(b"Spacing = 1", b"Spacing = -1")), refused="size -1 2 3"),
    Case(".mha of origin NaN", as_file(MHA, change=other(b"Offset = 10", b"Offset = nan")), refused="not finite"),
    Case(".mha of no size", as_file(MHA, change=other(b"DimSize = 7", b"DimSize = 0")), refused="size 0 6 5"),
    Case(
        ".mha without spacing",
        lambda f: as_file(MHA, change=other(b"ElementSpacing = 1 2 3\n", b""))(f) * 0,
        warned="1 mm is taken",
    ),
    Case("packed .nrrd, one byte changed", as_file("f.nrrd", change=flipped), refused="damaged"),
    Case(".nrrd cut", as_file("f.nrrd", change=half), refused="truncated or damaged"),
    Case(
        ".nrrd of 10^14 voxels",
        as_file("f.nrrd", compress=False, change=other(b"sizes: 7 6 5", b"sizes: 70000 60000 50000")),
        refused="GiB",
    ),
    Case(".nii.gz, one byte changed", as_file("f.nii.gz", change=flipped), refused="damaged"),
    Case("colour .png", picture("f.png")),
    Case("colour .tif", picture("f.tif")),
    Case("colour .bmp", picture("f.bmp")),
    Case("colour .jpg", picture("f.jpg"), within=1.0),
    Case("opaque .png", opaque),
    Case(".png cut", picture("f.png", half), refused="truncated"),
    Case(".png, one byte changed", picture("f.png", flipped), refused="damaged"),
    Case(".jpg cut", picture("f.jpg", half), refused="truncated"),
    Case(".bmp cut", picture("f.bmp", half), refused="truncated"),
    Case(".tif cut", picture("f.tif", half), refused="truncated"),
    Case("DICOM folder", dicom("")),
    Case("one file of a DICOM series", dicom("1.2.3.4-1.dcm")),
    Case("two DICOM series", two_series, refused=r"2 DICOM series: 1\.2\.3\.4 .*1\.2\.3\.5 .*give one file"),
    Case("DICOM slice missing", dicom("", gaps=(3.0, 6.0, 3.0, 3.0)), refused="missing"),
    Case("DICOM slices at one place", dicom("", gaps=(3.0, 0.0, 3.0, 3.0)), refused="at one place"),
    Case("DICOM, tilted gantry", dicom("", tilt=0.4), refused="not perpendicular"),
    Case("a DICOM slice", one_slice),
    Case("folder without images", read, refused="a folder without a DICOM series"),  # type: ignore[arg-type]
    Case("Zarr without its package", without_zarr, refused="pip install zarr"),
    Case("pipe as a file", pipe, refused="is a pipe"),
    Case("device as a file", lambda _: off(read("/dev/zero")), refused="is a device"),
    Case("empty name", lambda _: off(read("")), refused="empty file name"),
    Case("address", lambda _: off(read("https://example.org/f.nii.gz")), refused="https://example.org/f.nii.gz: is an"),
    Case("name with a zero character", lambda _: off(read("f\0.nii")), refused="zero character"),
    Case("name of 5000 characters", lambda _: off(read("f" * 5000)), refused="cannot be opened"),
    Case("name that is not UTF-8, .nii.gz", named(b"f\xff.nii.gz")),
    Case("name that is not UTF-8, .mha", named(b"f\xff.mha")),
    Case("name that is not UTF-8, .nrrd", named(b"f\xfe\xff.nrrd")),
    Case("name of two lines", named(b"f\ng.nrrd")),
    Case("name with accents", named("é ü 漢.mha".encode())),
    Case("nothing on stderr: sform scales", quietly(lambda f: read(header(f, (80, "3f", (1, 1, 1)))) and 0.0)),
    Case("nothing on stderr: Analyze", quietly(analyze)),
    Case("nothing on stderr: cut .jpg", quietly(picture("f.jpg", half))),
    Case("nothing on stderr: .mhd without voxels", quietly(lambda f: without_voxels(f))),
]  # fmt: skip


def without_voxels(folder: Path) -> float:
    sitk.WriteImage(to_sitk(VALUES, GRID), str(folder / "f.mhd"), False)
    (folder / "f.raw").unlink()
    return off(read(folder / "f.mhd"))


# --- objects ---------------------------------------------------------------------------------------------------------


def unallocated(regions: bool) -> Any:
    import itk

    image = itk.Image[itk.F, 3].New()
    if regions:
        image.SetRegions([4, 4, 4])
    return image


def label_map(_: Path) -> float:
    return off(read(sitk.Cast(to_sitk((VALUES > 9).astype(np.uint8), GRID), sitk.sitkLabelUInt8)))


def ants_image(_: Path) -> float:
    import ants

    image = ants.from_numpy(VALUES.T, origin=list(GRID.origin), spacing=list(GRID.spacing))
    return off(read(image))


def nibabel_image(_: Path) -> float:
    import nibabel

    return off(read(nibabel.Nifti1Image(VALUES.T, RAS @ GRID.matrix)))


def nibabel_series(_: Path) -> float:
    import nibabel

    return off(read(nibabel.Nifti1Image(np.zeros((5, 4, 3, 8), np.float32), np.eye(4))))


def tensor(_: Path) -> float:
    import torch

    return off(read((torch.from_numpy(VALUES.copy()).requires_grad_(), GRID)))


def of_type(name: str) -> Callable[[Path], float]:
    """An array of a type, read with its own values."""
    array = (VALUES > 100) if name == "bool" else VALUES.astype(name)
    return lambda _: off(read((array, GRID)), array.astype(np.float64))


def back(kind: str) -> Callable[[Path], float]:
    """A registration of images of a kind gives its result as that kind, on the fixed grid."""

    def run(_: Path) -> float:
        import torch

        from itk_nir.images import like

        phantom = brain_phantom(2, (48, 56))
        grid = phantom.geometry
        fixed, moving = (like(a, grid, kind) for a in (phantom.fixed, phantom.moving))
        pair = (fixed, moving) if kind not in ("array", "torch") else ((fixed, grid), (moving, grid))
        result = itk_nir.register(*pair, preset="fast", linear="none", iterations=2, threads=1)
        out = result.warped
        if kind in ("array", "torch"):
            assert type(out) is (np.ndarray if kind == "array" else torch.Tensor)
            return float(np.abs(np.asarray(out) - result.warped_array).max())
        assert type(out) is type(fixed)
        return off(read(out), result.warped_array, grid)

    return run


OBJECTS = [
    Case("itk.Image without a size", lambda _: off(read(unallocated(False))), refused="has no pixels"),
    Case("itk.Image without memory", lambda _: off(read(unallocated(True))), refused="no memory"),
    Case("SimpleITK label map", label_map, refused="LabelMapToLabel"),
    Case("SimpleITK complex", lambda _: off(read(sitk.Image([4, 4], sitk.sitkComplexFloat64))), refused="complex"),
    Case("SimpleITK without pixels", lambda _: off(read(sitk.Image())), refused="no pixels"),
    Case("ANTsImage", ants_image),
    Case("nibabel image", nibabel_image),
    Case("nibabel series", nibabel_series, refused="series of 8 volumes"),
    Case("tensor with a gradient", tensor),
    Case("array alone", lambda _: off(read(VALUES)), refused=r"give the pair \(array, itk_nir.Geometry"),
    Case("array of another shape", lambda _: off(read((VALUES.T, GRID))), refused=r"its geometry \(5, 6, 7\)"),
    Case("array back to front", lambda _: off(read((VALUES[::-1], GRID)), VALUES[::-1])),
    Case("array of columns", lambda _: off(read((np.asfortranarray(VALUES), GRID)))),
    Case("masked array", lambda _: off(read((np.ma.masked_less(VALUES, 9), GRID))), refused="masked"),
    *(Case(f"array of {name}", of_type(name)) for name in ("bool", "int8", "uint64", "float16", ">i2", ">f8")),
    Case("array of float128", of_type("longdouble"), refused="wider than 64 bits"),
    Case("array of objects", of_type("object"), refused="type object"),
    Case("itk.Image of RGB", lambda _: off(load_channels(to_itk(np.stack([VALUES] * 3, -1), GRID), "fixed image")[2])),
    *(Case(f"registered and back: {k}", back(k)) for k in ("itk", "sitk", "ants", "nibabel", "array", "torch")),
]  # fmt: skip

CASES = [*HEADERS, *FILES, *OBJECTS]
