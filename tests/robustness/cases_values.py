"""Shapes and values: single slices, 4D and colour, fill values, label maps, NaN, odd intensities, pixel types."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

import itk_nir
from itk_nir.cli import main
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, to_itk, to_sitk
from itk_nir.label_maps import is_label_map
from itk_nir.phantom import Phantom, brain_phantom
from tests.robustness.campaign import Case

QUICK: dict[str, Any] = {"preset": "fast", "iterations": (4, 2, 2), "linear": "none", "threads": 1}


@cache
def phantom() -> Phantom:
    return brain_phantom(2, geometry=Geometry.make((48, 56), (4.0, 4.0), (-94.0, -110.0)), noise=0.0)


def field(result: Any) -> np.ndarray:
    return np.asarray(result.mapping.displacement_on(result.fixed.geometry).vectors)


@cache
def known() -> np.ndarray:
    p = phantom()
    return field(itk_nir.register(to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry), **QUICK))


def against(fixed: Any, moving: Any, **options: Any) -> tuple[float, Any]:
    """The largest difference to the map of the ordinary images, in voxels."""
    result = itk_nir.register(fixed, moving, **QUICK | options)
    return float(np.abs(field(result) - known()).max() / 4), result


# --- single slices ---------------------------------------------------------------------------------------------------


def in_3d(array: np.ndarray, axis: int, turn: np.ndarray | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(np.expand_dims(array, 2 - axis))
    spacing, origin = [4.0, 4.0], [-94.0, -110.0]
    spacing.insert(axis, 3.0)
    origin.insert(axis, 17.0)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if turn is not None:
        image.SetDirection(turn.ravel().tolist())
    return image


def slices(axis: int, ending: str, folder: Path) -> float:
    p = phantom()
    images: list[Any] = [in_3d(p.fixed, axis), in_3d(p.moving, axis)]
    wanted = images[0]
    if ending == ".itk":
        images = [to_itk(v.array, v.geometry) for v in (load_image(i, "image") for i in images)]
    elif ending:
        for k, image in enumerate(images):
            images[k] = folder / f"{k}{ending}"
            sitk.WriteImage(image, str(images[k]))
    error, result = against(*images)
    saved = sitk.ReadImage(str(result.save(folder / "r_")["warped"]))
    for image in (load_image(result.warped, "warped"), load_image(saved, "saved")):
        assert image.geometry.same_grid(load_image(wanted, "fixed").geometry)
    return error


def oblique(folder: Path) -> float:
    a, b = np.cos(0.4), np.sin(0.4)
    turn = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    p = phantom()
    result = itk_nir.register(in_3d(p.fixed, 2, turn), in_3d(p.moving, 2, turn), **QUICK)
    plane = result.fixed.plane
    assert plane is not None
    # Turned into the axes of the image, it is the same field.
    along = field(result) @ plane.flat.rotation
    assert load_image(result.warped, "warped").geometry.same_grid(plane.geometry)
    return float(np.abs(along - known()).max() / 4)


def coronal_nifti(codes: tuple[int, int], folder: Path) -> float:
    p = phantom()
    matrix = np.array([[-4.0, 0, 0, 94], [0, 0, 1, 3], [0, 4, 0, -110], [0, 0, 0, 1]])
    for name, array in (("f", p.fixed), ("m", p.moving)):
        image = nibabel.Nifti1Image(np.ascontiguousarray(array.T), matrix)
        image.set_sform(matrix, codes[0])
        image.set_qform(matrix, codes[1])
        nibabel.save(image, folder / f"{name}.nii.gz")
    error, result = against(folder / "f.nii.gz", folder / "m.nii.gz")
    saved = nibabel.load(result.save(folder / "r_")["warped"])
    assert saved.header["sform_code"] == max(codes)
    return max(error, float(np.abs(saved.affine - matrix).max()))


def lost_axis(folder: Path) -> float:
    file = folder / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().fixed), str(file))
    file.write_bytes(file.read_bytes().replace(b"TransformMatrix = 1 0 0 1", b"TransformMatrix = 1 0 0 0"))
    volume = load_image(file, "image")
    import warnings

    for finding in volume.findings:
        warnings.warn(str(finding), stacklevel=1)
    return float(np.abs(volume.array[0] - phantom().fixed).max() + np.abs(volume.geometry.rotation[2, 1] - 1))


def slice_and_mask(folder: Path) -> float:
    p = phantom()
    mask = in_3d((p.fixed_labels > 0).astype(np.uint8), 1)
    flat = to_sitk((p.fixed_labels > 0).astype(np.uint8), p.geometry)
    a, b = to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry)
    wanted = field(itk_nir.register(a, b, fixed_mask=flat, **QUICK))
    got = field(itk_nir.register(in_3d(p.fixed, 1), in_3d(p.moving, 1), fixed_mask=mask, **QUICK))
    return float(np.abs(got - wanted).max() / 4)


def slice_and_points(dimension: int, folder: Path) -> float:
    """Points of a coronal slice, in space or in its plane, as an array and as a file."""
    p = phantom()
    flat = np.array([[-20.0, -30.0], [25.0, 10.0], [0.0, 40.0], [-30.0, 20.0]])
    there = flat + np.array([4.0, -2.0])
    a, b = in_3d(p.fixed, 1), in_3d(p.moving, 1)
    wanted = field(itk_nir.register(a, b, fixed_landmarks=flat, moving_landmarks=there, **QUICK))
    columns = "x,y"
    if dimension == 3:
        flat, there = (np.insert(x, 1, 17.0, axis=1) for x in (flat, there))
        columns = "x,y,z"
    for name, points in (("f", flat), ("m", there)):
        np.savetxt(folder / f"{name}.csv", points, delimiter=",", header=columns, comments="")
    got = [
        field(itk_nir.register(a, b, fixed_landmarks=f, moving_landmarks=m, **QUICK))
        for f, m in ((flat, there), (folder / "f.csv", folder / "m.csv"))
    ]
    return float(max(np.abs(g - wanted).max() for g in got) / 4)


def nan_outside_labels(folder: Path) -> float:
    """NaN in the place of 0 in masks and label maps."""
    p = phantom()
    a, b = to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry)
    kinds = {"plain": 0.0, "nan": np.nan}
    out = {}
    for kind, value in kinds.items():
        ours, theirs = (
            to_sitk(np.where(x > 0, x, value).astype(np.float32), p.geometry) for x in (p.fixed_labels, p.moving_labels)
        )
        mask = to_sitk(np.where(p.fixed_labels > 0, 1, value), p.geometry)
        out[kind] = field(
            itk_nir.register(a, b, fixed_mask=mask, fixed_labels=ours, moving_labels=theirs, nan="mask", **QUICK)
        )
    return float(np.abs(out["nan"] - out["plain"]).max() / 4)


def turned_planes(folder: Path) -> float:
    p = phantom()
    return against(in_3d(p.fixed, 2), in_3d(p.moving, 1))[0]


def slice_and_volume(folder: Path) -> float:
    itk_nir.register(in_3d(phantom().fixed, 2), sitk.Image(20, 20, 20, sitk.sitkFloat32), **QUICK)
    return 0.0


def slab(count: int, folder: Path) -> float:
    p = phantom()
    image = sitk.GetImageFromArray(np.repeat(p.fixed[None], count, 0))
    itk_nir.register(image, image, **QUICK)
    return 0.0


def ants_slice(dimension: str, folder: Path) -> float:
    from itk_nir.cli.console import STATUSES

    p = phantom()
    for name, array in (("f", p.fixed), ("m", p.moving)):
        sitk.WriteImage(in_3d(array, 2), str(folder / f"{name}.nii.gz"))
    files = ["-f", str(folder / "f.nii.gz"), "-m", str(folder / "m.nii.gz"), "-o", str(folder / "r_")]
    status = main(["ants", "-d", dimension, *files, "-t", "r", "-n", "1", "--preset", "fast"])
    assert status in STATUSES
    if dimension == "3":
        return float(status != 2 or any(folder.glob("r_*")))
    return float(sitk.ReadImage(str(folder / "r_Warped.nii.gz")).GetSize() != (48, 56, 1)) + status


def apply_slice(axis: int, folder: Path) -> float:
    image = in_3d(phantom().fixed, axis)
    out = itk_nir.apply(image, sitk.TranslationTransform(2, (4.0, 0.0)), fill=-5)
    assert out.GetSize() == image.GetSize()
    assert out.GetOrigin() == image.GetOrigin()
    got = load_image(out, "out").array.squeeze()
    assert (got[:, -1] == -5).all()
    return float(np.abs(got[:, :-1] - phantom().fixed[:, 1:]).max()) / 255


# --- 4D and colour ---------------------------------------------------------------------------------------------------


def series() -> tuple[np.ndarray, sitk.Image]:
    array = np.random.default_rng(0).integers(-200, 2000, (5, 6, 7, 8)).astype(np.int16)
    image = sitk.GetImageFromArray(array, isVector=False)
    direction = np.eye(4)
    direction[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    image.SetDirection(direction.ravel())
    image.SetSpacing((1.5, 2, 2.5, 3))
    image.SetOrigin((10, -5, 7, 1))
    return array, image


def one_voxel_along_x(image: sitk.Image) -> sitk.Transform:
    d = min(image.GetDimension(), 3)
    step = image.GetSpacing()[0] * np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:d, 0]
    return sitk.TranslationTransform(d, step.tolist())


def four_dimensions(ending: str, out: str, folder: Path) -> float:
    array, image = series()
    sitk.WriteImage(image, str(folder / f"a{ending}"), "packed" in out)
    out = out.removeprefix("packed ")
    sitk.WriteTransform(one_voxel_along_x(image), str(folder / "t.tfm"))
    files = ["--image", folder / f"a{ending}", "--transform", folder / "t.tfm", "--output", folder / f"o{out}"]
    assert main(["apply", *map(str, files), "--fill", "7"]) == 0
    got = sitk.ReadImage(str(folder / f"o{out}"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(got, name)(), getattr(image, name)(), atol=1e-4), name
    values = sitk.GetArrayFromImage(got)
    assert values.dtype == np.int16
    return float(np.abs(values[..., :-1] - array[..., 1:]).max() + np.abs(values[..., -1] - 7).max())


def four_dimensions_in_memory(kind: str, folder: Path) -> float:
    array, image = series()
    given: Any = image
    if kind == "itk":
        import itk

        given, image = itk.image_from_array(array), sitk.GetImageFromArray(array, isVector=False)
    out = itk_nir.apply(given, one_voxel_along_x(image), fill=7)
    if kind == "itk":
        values = np.asarray(itk.array_from_image(out))
    else:
        assert out.GetSpacing() == image.GetSpacing()
        values = sitk.GetArrayFromImage(out)
    return float(np.abs(values[..., :-1] - array[..., 1:]).max() + np.abs(values[..., -1] - 7).max())


def four_dimensional_reference(folder: Path) -> float:
    array, image = series()
    sitk.WriteImage(image, str(folder / "a.nii.gz"))
    first = image[:, :, :, 0]
    out = itk_nir.apply(first, one_voxel_along_x(first), folder / "a.nii.gz", fill=7)
    return float(np.abs(sitk.GetArrayFromImage(out)[..., :-1] - array[0][..., 1:]).max())


def truncated_series(folder: Path) -> float:
    _, image = series()
    file = folder / "a.nii"
    sitk.WriteImage(image, str(file))
    file.write_bytes(file.read_bytes()[:-700])
    sitk.WriteTransform(one_voxel_along_x(image), str(folder / "t.tfm"))
    status = main(["apply", "--image", str(file), "--transform", str(folder / "t.tfm"), "--output",
                   str(folder / "o.nii.gz")])  # fmt: skip
    assert not [p.name for p in folder.iterdir() if p.name.startswith((".", "o"))]
    if status == 2:
        raise InputError("status 2 and nothing written")
    return 0.0


def series_as_png(folder: Path) -> float:
    from itk_nir.applying import Application

    _, image = series()
    Application.prepare(image, one_voxel_along_x(image)).write(folder / "o.png")
    return 0.0


def colour(kind: str, folder: Path) -> float:
    array = np.random.default_rng(0).integers(0, 256, (20, 24, 4 if kind == "rgba" else 3)).astype(np.uint8)
    if kind == "vector":
        array = array.astype(np.float32)
    image = sitk.GetImageFromArray(array, isVector=True)
    move = one_voxel_along_x(image)
    if kind in ("png", "rgba", "tif"):
        ending = "tif" if kind == "tif" else "png"
        sitk.WriteImage(image, str(folder / f"a.{ending}"))
        sitk.WriteTransform(move, str(folder / "t.tfm"))
        files = ["--image", folder / f"a.{ending}", "--reference", folder / f"a.{ending}", "--transform",
                 folder / "t.tfm", "--output", folder / f"o.{ending}"]  # fmt: skip
        assert main(["apply", *map(str, files), "--fill", "9"]) == 0
        out = sitk.ReadImage(str(folder / f"o.{ending}"))
    elif kind == "itk":
        import itk

        given = itk.image_from_array(array, is_vector=True)
        back = itk_nir.apply(given, move, fill=9)
        assert type(back) is type(given)
        out = sitk.GetImageFromArray(np.asarray(itk.array_from_image(back)), isVector=True)
    else:
        out = itk_nir.apply(image, move, fill=9)
    values = sitk.GetArrayFromImage(out)
    assert values.dtype == array.dtype
    return float(np.abs(values[:, :-1].astype(float) - array[:, 1:]).max() + np.abs(values[:, -1] - 9.0).max())


def colour_warped(folder: Path) -> float:
    p = phantom()
    grey = [np.clip(a, 0, 255).astype(np.uint8) for a in (p.fixed, p.moving)]
    images = [to_sitk(np.stack([a, a // 2, 255 - a], -1), p.geometry) for a in grey]
    result = itk_nir.register(*images, **QUICK)
    warped = sitk.GetArrayFromImage(result.warped)
    assert warped.dtype == np.uint8
    assert warped.shape[-1] == 3
    return float(np.abs(warped[..., 0] - np.rint(result.warped_array)).max())


# --- pixel types and fill values -------------------------------------------------------------------------------------


def pixel_type(name: str, folder: Path) -> float:
    p = phantom()
    dtype = np.dtype(name)
    scale = 1.0 if dtype.kind == "f" else min(np.iinfo(dtype).max / 255, 100)
    moving = (np.clip(p.moving, 0, 255) * scale).astype(dtype)
    result = itk_nir.register(to_sitk(p.fixed, p.geometry), to_sitk(moving, p.geometry), **QUICK)
    warped = load_image(result.warped, "warped", native=True)
    saved = sitk.ReadImage(str(result.save(folder / "r_")["warped"]))
    assert warped.pixel_type == sitk.GetArrayFromImage(saved).dtype == dtype
    return float(np.abs(warped.array.astype(float) - result.warped_array).max()) * (dtype.kind == "f") + float(
        np.abs(warped.array.astype(float) - np.rint(result.warped_array)).max() * (dtype.kind != "f")
    )


def overshoot(folder: Path) -> float:
    """Cubic interpolation goes beyond the range, whole numbers do not wrap."""
    array = np.zeros((20, 20), np.uint8)
    array[8:12, 8:12] = 255
    out = itk_nir.apply(sitk.GetImageFromArray(array), sitk.TranslationTransform(2, (0.5, 0.5)),
                        interpolation="bspline")  # fmt: skip
    values = sitk.GetArrayFromImage(out)
    assert values.dtype == np.uint8
    return float(values[2:6, 2:6].max() > 30 or values[9:10, 9:10].min() < 200)


def float_out(folder: Path) -> float:
    array = np.arange(100, dtype=np.uint8).reshape(10, 10)
    out = itk_nir.apply(sitk.GetImageFromArray(array), sitk.TranslationTransform(2, (0.5, 0.0)), pixel_type="float")
    return float(np.abs(sitk.GetArrayFromImage(out)[:, :-1] - (array[:, :-1] + 0.5)).max())


def into_a_picture(kind: str, ending: str, dimension: int, folder: Path) -> float:
    from itk_nir.applying import Application

    image = sitk.GetImageFromArray(np.arange(10**dimension, dtype=kind).reshape((10,) * dimension))
    Application.prepare(image, sitk.TranslationTransform(dimension)).write(folder / f"o{ending}")
    return 0.0


def blank_first_volume(folder: Path) -> float:
    """A series whose first volume is empty is judged by the next."""
    array, image = series()
    array[0] = 0
    blank = sitk.GetImageFromArray(array, isVector=False)
    blank.CopyInformation(image)
    half = 0.5 * np.array(one_voxel_along_x(image).GetParameters())
    out = sitk.GetArrayFromImage(itk_nir.apply(blank, sitk.TranslationTransform(3, half.tolist())))
    wanted = np.rint((array[1:, ..., :-1].astype(float) + array[1:, ..., 1:]) / 2)
    return float(np.abs(out[1:, ..., :-1] - wanted).max() > 1)


def fill_refused(value: float, interpolation: str, folder: Path) -> float:
    image = sitk.GetImageFromArray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    itk_nir.apply(image, sitk.TranslationTransform(2, (3.0, 0.0)), interpolation=interpolation, fill=value)
    return 0.0


def fill_in_register(folder: Path) -> float:
    p = phantom()
    itk_nir.register(
        to_sitk(p.fixed, p.geometry), to_sitk(p.moving.astype(np.int16), p.geometry), fill=float("nan"), **QUICK
    )
    return 0.0


def ct(kind: str, folder: Path) -> float:
    """A CT whose field of view is smaller: air, not water, beyond it."""
    p = phantom()
    moving = np.where(p.moving > 20, p.moving * 5, -1024).astype(np.int16)[14:42, 12:36]
    if kind == "no border":
        moving = moving[6:-6, 5:-5]
    move = sitk.TranslationTransform(2, (300.0, 0.0))
    image = sitk.GetImageFromArray(moving)
    if kind == "register":
        grid = Geometry.make((24, 28), (4.0, 4.0), (-46.0, -54.0))
        fixed = to_sitk(p.fixed, p.geometry)
        result = itk_nir.register(fixed, to_sitk(moving, grid), **QUICK)
        return float(abs(sitk.GetArrayFromImage(result.warped)[0, 0] + 1024))
    wanted = -1024 if kind == "border" else moving.min()
    return float(np.abs(sitk.GetArrayFromImage(itk_nir.apply(image, move)) - int(wanted)).max())


def white_slide(folder: Path) -> float:
    p = phantom()
    moving = np.where(p.moving > 20, 255 - p.moving, 255).clip(0, 255).astype(np.uint8)
    out = itk_nir.apply(sitk.GetImageFromArray(moving), sitk.TranslationTransform(2, (300.0, 0.0)))
    return float(np.abs(sitk.GetArrayFromImage(out).astype(int) - 255).max())


def labels_are_filled_with_0(folder: Path) -> float:
    labels = np.kron(np.array([[5, 9], [7, 5]]), np.ones((8, 8))).astype(np.uint8)
    out = itk_nir.apply(sitk.GetImageFromArray(labels), sitk.TranslationTransform(2, (300.0, 0.0)))
    return float(sitk.GetArrayFromImage(out).max())


def label_values(change: Callable[[np.ndarray], np.ndarray], folder: Path) -> float:
    """No value that was not there."""
    labels = change(np.kron(np.array([[0, 17, 3], [53, 4, 17], [0, 53, 3]]), np.ones((8, 8))))
    out = itk_nir.apply(sitk.GetImageFromArray(labels), sitk.TranslationTransform(2, (0.4, 0.3)))
    return float(len(set(np.unique(sitk.GetArrayFromImage(out))) - {*np.unique(labels), 0}))


def scaled_labels(folder: Path) -> float:
    labels = np.kron(np.array([[0, 17, 3], [53, 4, 17], [0, 53, 3]]), np.ones((8, 8))).astype(np.int16)
    image = nibabel.Nifti1Image(np.repeat(labels.T[..., None], 8, -1), np.eye(4))
    image.header.set_slope_inter(0.5, 1.0)
    nibabel.save(image, folder / "a.nii.gz")
    raw = bytearray((folder / "a.nii.gz").read_bytes())
    assert raw
    out = itk_nir.apply(folder / "a.nii.gz", sitk.TranslationTransform(3, (0.4, 0.3, 0.2)))
    values = load_image(out, "out").array
    return float(len(np.unique(values)) - len({*np.unique(load_image(folder / "a.nii.gz", "a").array), 0.0}))


def not_labels(array: np.ndarray, folder: Path) -> float:
    return float(is_label_map(array))


def blanked(value: float) -> np.ndarray:
    y, x = np.mgrid[:96, :96]
    inside = np.hypot(x - 48, y - 48) < 28
    return np.where(inside, 40 * np.sin(x * 0.7) * np.cos(y * 0.9), value).astype(np.int16)


def space_code(folder: Path) -> float:
    p = phantom()
    for name, array in (("f", p.fixed), ("m", p.moving)):
        image = nibabel.Nifti1Image(np.repeat(array.T[..., None], 6, -1), np.diag([4.0, 4, 4, 1]))
        image.set_sform(image.affine, 4)
        image.set_qform(image.affine, 4)
        nibabel.save(image, folder / f"{name}.nii.gz")
    result = itk_nir.register(folder / "f.nii.gz", folder / "m.nii.gz", preset="fast", iterations=1, threads=1,
                              linear="none")  # fmt: skip
    header = nibabel.load(result.save(folder / "r_")["warped"]).header
    return float(abs(int(header["sform_code"]) - 4) + abs(int(header["qform_code"]) - 4))


# --- NaN, infinity ---------------------------------------------------------------------------------------------------


def with_nan(array: np.ndarray, value: float = np.nan) -> np.ndarray:
    out = array.astype(np.float32)
    out[:12] = value
    return out


def nan_register(side: str, value: float, options: dict[str, Any], folder: Path) -> float:
    p = phantom()
    mask = np.ones(p.fixed.shape, np.uint8)
    mask[:12] = 0
    images = {"fixed": p.fixed, "moving": p.moving}
    ground = images[side].copy()
    ground[:12] = 0
    masks = {f"{side}_mask": to_sitk(mask, p.geometry)}
    wanted = field(
        itk_nir.register(
            **{k: to_sitk(ground if k == side else v, p.geometry) for k, v in images.items()}, **masks, **QUICK
        )
    )
    images[side] = with_nan(images[side], value)
    result = itk_nir.register(**{k: to_sitk(v, p.geometry) for k, v in images.items()}, **options, **QUICK)
    assert np.isfinite(result.warped_array).all()
    return float(np.abs(field(result) - wanted).max() / 4)


def nan_everywhere(options: dict[str, Any], folder: Path) -> float:
    p = phantom()
    flat = to_sitk(np.full(p.fixed.shape, np.nan, np.float32), p.geometry)
    itk_nir.register(flat, flat, **options, **QUICK)
    return 0.0


def nan_outside_the_mask(folder: Path) -> float:
    p = phantom()
    mask = np.zeros(p.fixed.shape, np.uint8)
    mask[:10] = 1
    itk_nir.register(
        to_sitk(with_nan(p.fixed), p.geometry), to_sitk(p.moving, p.geometry), fixed_mask=to_sitk(mask, p.geometry),
        nan="mask", **QUICK,
    )  # fmt: skip
    return 0.0


def nan_apply(fill: float | None, folder: Path) -> float:
    p = phantom()
    image = to_sitk(with_nan(p.fixed), p.geometry)
    out = itk_nir.apply(image, sitk.TranslationTransform(2, (0.0, 2.0)), nan="mask", fill=fill)
    values = sitk.GetArrayFromImage(out)
    wanted = (p.fixed[12:-1] + p.fixed[13:]) / 2
    if fill is not None:
        np.testing.assert_array_equal(values[:12], np.float32(fill))
    assert fill is not None or np.isfinite(values).all()
    return float(np.abs(values[12:-1] - wanted).max()) / 255


def nan_in_a_file(folder: Path) -> float:
    p = phantom()
    sitk.WriteImage(to_sitk(with_nan(p.fixed), p.geometry), str(folder / "a.nii.gz"))
    sitk.WriteTransform(sitk.TranslationTransform(2), str(folder / "t.tfm"))
    files = ["--image", folder / "a.nii.gz", "--transform", folder / "t.tfm", "--output", folder / "o.nii.gz"]
    assert main(["apply", *map(str, files)]) == 2
    assert main(["apply", *map(str, files), "--nan", "mask", "--fill", "3"]) == 0
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "o.nii.gz")))
    return float(np.abs(values[:12] - 3).max() + np.abs(values[12:] - p.fixed[12:]).max() / 255)


# --- odd intensities -------------------------------------------------------------------------------------------------


def in_other_units(change: Callable[[np.ndarray], np.ndarray], folder: Path) -> float:
    p = phantom()
    _, result = against(*(to_sitk(change(np.rint(a)), p.geometry) for a in (p.fixed, p.moving)))
    # The phantom's values are no whole numbers, so the map is that of the rounded images.
    whole = [to_sitk(np.rint(a).astype(np.float32), p.geometry) for a in (p.fixed, p.moving)]
    wanted = itk_nir.register(*whole, **QUICK)
    warped = sitk.GetArrayFromImage(result.warped)
    assert np.isfinite(warped.astype(float)).all()
    return float(np.abs(field(result) - field(wanted)).mean() / 4)


def hot(side: str, factor: float, folder: Path) -> float:
    p = phantom()
    images = {"fixed": p.fixed.copy(), "moving": p.moving.copy()}
    images[side][25, 20] = factor * images[side].max()
    result = itk_nir.register(**{k: to_sitk(v, p.geometry) for k, v in images.items()}, **QUICK)
    inside = p.fixed_labels > 0
    return float(np.linalg.norm(field(result) - known(), axis=-1)[inside].mean() / 4)


def refused_image(change: Callable[[np.ndarray], np.ndarray], folder: Path) -> float:
    p = phantom()
    itk_nir.register(to_sitk(change(p.fixed), p.geometry), to_sitk(p.moving, p.geometry), **QUICK)
    return 0.0


def warned_image(change: Callable[[np.ndarray], np.ndarray], folder: Path) -> float:
    p = phantom()
    result = itk_nir.register(to_sitk(change(p.fixed), p.geometry), to_sitk(change(p.moving), p.geometry), **QUICK)
    return float(not np.isfinite(field(result)).all())


def constant_inside(folder: Path) -> float:
    p = phantom()
    mask = np.zeros(p.fixed.shape, np.uint8)
    mask[:3, :3] = 1
    a, b = to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry)
    itk_nir.register(a, b, fixed_mask=to_sitk(mask, p.geometry), **QUICK)
    return 0.0


AXES = {0: "sagittal", 1: "coronal", 2: "axial"}
CASES = [
    *(
        Case(f"{name} slice, {ending.strip('.') or 'SimpleITK'}", partial(slices, axis, ending), within=5e-3)
        for axis, name in AXES.items()
        for ending in ("", ".itk", ".nii.gz", ".nrrd", ".mha")
    ),
    Case("oblique slice", oblique, within=0.02),
    Case("coronal 2D NIfTI, sform", partial(coronal_nifti, (4, 0)), within=5e-3),
    Case("coronal 2D NIfTI, qform", partial(coronal_nifti, (0, 1)), within=5e-3),
    Case("2D MetaImage whose direction lost an axis", lost_axis, warned="taken to run along z"),
    Case("coronal slice and its mask", slice_and_mask),
    Case("coronal slice and its points in space", partial(slice_and_points, 3)),
    Case("coronal slice and points in its plane", partial(slice_and_points, 2)),
    Case("NaN around masks and labels", nan_outside_labels),
    Case("axial slice onto coronal slice", turned_planes, warned="turned by 90 degrees"),
    Case("slice and volume", slice_and_volume, refused="is a single slice, but moving image is a volume"),
    Case("slab of 2 slices", partial(slab, 2), refused="at least 4 voxels an axis are needed; give one slice"),
    Case("slab of 3 slices", partial(slab, 3), refused="at least 4 voxels an axis are needed; give one slice"),
    Case("itk-nir ants -d 2, one slice", partial(ants_slice, "2")),
    Case("itk-nir ants -d 3, one slice", partial(ants_slice, "3")),
    *(Case(f"apply, {name} slice", partial(apply_slice, axis)) for axis, name in AXES.items()),
    *(
        Case(f"4D {ending[1:]} to {out}", partial(four_dimensions, ending, out))
        for ending, out in (
            (".nii", ".nii.gz"),
            (".nii.gz", ".nrrd"),
            (".nrrd", ".mha"),
            (".mha", ".nii"),
            (".mha", "packed .mha"),
            (".nrrd", "packed .nii.gz"),
        )
    ),
    Case("4D SimpleITK image", partial(four_dimensions_in_memory, "sitk")),
    Case("4D ITK image", partial(four_dimensions_in_memory, "itk")),
    Case("4D reference", four_dimensional_reference),
    Case("4D NIfTI, truncated", truncated_series, refused="status 2 and nothing written"),
    Case("4D into a PNG", series_as_png, refused="no 4D image can be written so"),
    *(
        Case(f"colour through apply, {kind}", partial(colour, kind))
        for kind in ("png", "rgba", "tif", "itk", "sitk", "vector")
    ),
    Case("colour through register", colour_warped),
    *(
        Case(f"pixels of type {name}", partial(pixel_type, name), within=1e-2)
        for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")
    ),
    Case("cubic interpolation beyond uint8", overshoot),
    Case("whole numbers in, float out", float_out),
    Case("float into a PNG", partial(into_a_picture, "f4", ".png", 2), refused="hold pixels of type uint8 and uint16"),
    Case("int16 into a JPEG", partial(into_a_picture, "i2", ".jpg", 2), refused="hold pixels of type uint8, these"),
    Case("a volume into a PNG", partial(into_a_picture, "u1", ".png", 3), refused="hold one 2D picture"),
    Case("4D whose first volume is empty", blank_first_volume),
    Case("fill -1 for uint8", partial(fill_refused, -1, "nearest"), refused="fill=-1.*whole numbers from 0 to 255"),
    Case("fill 1000 for uint8", partial(fill_refused, 1000, "linear"), refused="fill=1000.*whole numbers from 0"),
    Case("fill NaN for uint8", partial(fill_refused, float("nan"), "nearest"), refused="fill=nan.*whole numbers"),
    Case("fill NaN for int16 in register", fill_in_register, refused="fill=nan: pixels of type int16"),
    *(Case(f"CT through apply, {kind}", partial(ct, kind)) for kind in ("border", "no border", "register")),
    Case("slide on white", white_slide),
    Case("labels outside are 0", labels_are_filled_with_0),
    Case("float labels", partial(label_values, lambda a: a.astype(np.float32))),
    Case("float64 labels", partial(label_values, lambda a: a)),
    Case("labels with a slope", scaled_labels),
    Case("labels in halves", partial(label_values, lambda a: a / 2)),
    Case("negative labels", partial(label_values, lambda a: (a - 60).astype(np.int16))),
    Case("labels beyond 2^53", partial(label_values, lambda a: a.astype(np.int64) + 2**60)),
    Case("CT blanked by -1000 is no label map", partial(not_labels, blanked(-1000))),
    Case("CT blanked by 3071 is no label map", partial(not_labels, blanked(3071))),
    Case("space code of the fixed image", space_code),
    Case("NaN in the fixed image", partial(nan_register, "fixed", np.nan, {}), refused="has 576 NaN.*nan='mask'"),
    Case("infinity in the moving image", partial(nan_register, "moving", np.inf, {}), refused="has 576 NaN"),
    Case("NaN in the fixed image, masked", partial(nan_register, "fixed", np.nan, {"nan": "mask"}), warned="has 576"),
    Case("infinity in the moving image, masked", partial(nan_register, "moving", -np.inf, {"nan": "mask"})),
    Case("nothing but NaN", partial(nan_everywhere, {}), refused="nothing but NaN"),
    Case("nothing but NaN, masked", partial(nan_everywhere, {"nan": "mask"}), refused="nothing but NaN"),
    Case("NaN in all of the mask", nan_outside_the_mask, refused="has no value inside its mask"),
    Case("nan=, another word", partial(nan_everywhere, {"nan": "zero"}), refused="nan is one of 'error', 'mask'"),
    Case("NaN through apply", partial(nan_apply, 5.0)),
    Case("NaN through apply, NaN out", partial(nan_apply, float("nan"))),
    Case("NaN through apply, background", partial(nan_apply, None)),
    Case("NaN in a file, --nan mask", nan_in_a_file),
    *(
        Case(f"intensities, {name}", partial(in_other_units, change), within=1e-3)
        for name, change in {
            "times 2^100": lambda a: (a * 2.0**100).astype(np.float32),
            "times 2^-100": lambda a: (a * 2.0**-100).astype(np.float32),
            "denormal": lambda a: (a * 2.0**-140).astype(np.float32),
            "float64 times 2^1000": lambda a: a.astype(np.float64) * 2.0**1000,
            "float64 times 2^-1060": lambda a: a.astype(np.float64) * 2.0**-1060,
            "1e6 added": lambda a: a.astype(np.float64) + 1e6,
            "1e9 added, whole": lambda a: a.astype(np.int32) + 10**9,
            "2^60 added": lambda a: a.astype(np.int64) + 2**60,
            "2^63 added": lambda a: np.maximum(a, 0).astype(np.uint64) + np.uint64(2**63),
            "times 2^50, unsigned": lambda a: np.maximum(a, 0).astype(np.uint64) * np.uint64(2**50),
            "negative": lambda a: (a - 1000).astype(np.int16),
        }.items()
    ),
    *(
        Case(f"one hot voxel, {side}, {factor:g} times", partial(hot, side, factor), within=0.05, warned="1 single vox")
        for side in ("fixed", "moving")
        for factor in (1e2, 1e4, 1e8)
    ),
    Case("constant", partial(refused_image, lambda a: np.full_like(a, 1e30)), refused=r"constant \(every voxel is 1e"),
    Case("constant, 64 bits", partial(refused_image, lambda a: np.full(a.shape, 2**60)), refused="is constant"),
    Case("constant inside the mask", constant_inside, refused="is constant inside fixed mask"),
    Case("nearly constant", partial(warned_image, lambda a: 1 + 1e-9 * a.astype(np.float64)), warned="nearly constant"),
    Case("binary", partial(warned_image, lambda a: (a > 60).astype(np.float32)), warned="is binary"),
    Case("clipped above", partial(warned_image, lambda a: np.minimum(a, 90)), warned="is clipped: .* highest"),
    Case("clipped below", partial(warned_image, lambda a: np.where(a < 20, 255, np.maximum(a, 90))), warned="lowest"),
]
