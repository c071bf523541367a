"""elastix' call and its objects, both ways, on oblique, anisotropic, unequal grids."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.compat.elastix import (
    HONOURED,
    INSTEAD,
    INTERPOLATORS,
    METRICS,
    NO_MEANING,
    ONLY,
    PENALTIES,
    REFUSED,
    TRANSFORMS,
    registration_method,
    understand,
)
from itk_nir.compat.elastix.options import OF_SURFACES, OVERLAP, POINTS, REPLACED, STANDING_IN
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.compat.options import engine_options
from itk_nir.compat.printing import printing
from itk_nir.engine.metrics import NCC, MutualInformation, WeightedSum
from itk_nir.engine.progress import Progress
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, save_image, to_itk
from itk_nir.resample import resample_array
from itk_nir.settings import make_settings
from itk_nir.transforms.as_itk import field_to_itk
from itk_nir.transforms.formats.elastix import read_elastix
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from tests.docs_blocks import DOCS, run_blocks
from tests.grids import turned

itk = pytest.importorskip("itk")
if "ParameterObject" not in dir(itk):  # to ask for the attribute would load most of ITK, before any test runs
    pytest.skip("needs itk-elastix: pip install itk-elastix", allow_module_level=True)

BOTH = pytest.mark.parametrize("d", [2, 3])
QUICK: dict[str, Any] = {
    "preset": "fast", "device": "cpu", "number_of_threads": 1, "shrink_factors": (2, 1), "smoothing_sigmas": (0.4, 0.3),
    "iterations": (12, 4), "learning_rates": (0.4, 0.2), "grid_spacing": (2.0, 4.0), "coarsest_grid_spacing": 8.0,
    "radius": (3, 3), "velocity_smoothness": (0.05, 0.05), "smoothness": (0.0, 0.0),
    "linear_size": (24,), "linear_iterations": (25,), "linear_start_iterations": 8,
}  # fmt: skip
RIGID = {"Transform": "EulerTransform", "Metric": "AdvancedMattesMutualInformation"}
SPLINE = {
    "Transform": "BSplineTransform", "Metric": "AdvancedNormalizedCorrelation", "FinalBSplineInterpolationOrder": 1,
    "ResultImagePixelType": "float",
}  # fmt: skip
RANGE = 100.0


def texture(points: np.ndarray) -> np.ndarray:
    """Smooth structures at physical points, about 0 to 100, on an envelope that leaves a background."""
    total = np.zeros(points.shape[:-1])
    generator = np.random.default_rng(1)
    for _ in range(24):
        k = generator.normal(size=points.shape[-1])
        k *= 2 * np.pi / generator.uniform(14, 30) / np.linalg.norm(k)
        total += np.sin(points @ k + generator.uniform(0, 6))
    middle = np.array([8.0, -5.0, 40.0][: points.shape[-1]])
    envelope = np.exp(-((np.sum((points - middle) ** 2, axis=-1) / 22.0**2) ** 2))
    return np.asarray((45 + 12 * total) * envelope, np.float32)


def grids(d: int) -> tuple[Geometry, Geometry]:
    """Oblique, anisotropic and unequal, around (8, -5[, 40])."""
    middle = np.array([8.0, -5.0, 40.0][:d])
    out = []
    for size, spacing, angles in (
        ((40, 34, 26), (1.4, 1.7, 2.2), (0.3, 0.2)),
        ((36, 44, 30), (1.6, 1.3, 2.0), (-0.2, 0.4)),
    ):
        g = Geometry.make(size[:d], spacing[:d], None, turned(d, *angles))
        out.append(Geometry.make(g.size, g.spacing, middle - g.centre, g.direction))
    return out[0], out[1]


def truth(d: int, angle: float = 0.12, shift: tuple[float, ...] = (4.0, -2.5, 3.0)) -> LinearTransform:
    """A turn about the middle of the object, then a shift: fixed → moving, LPS mm."""
    return LinearTransform.make(turned(d, angle, angle / 2), shift[:d], np.array([8.0, -5.0, 40.0][:d]))


def bend(points: np.ndarray) -> np.ndarray:
    d = points.shape[-1]
    return np.stack([1.2 * np.sin(points[..., (a + 1) % d] / 12.0 + a) for a in range(d)], axis=-1)


def pair(d: int, deform: bool = True) -> tuple[Any, Any, Geometry, Geometry]:
    """Images such that fixed point ``p`` shows what moving point ``truth(p + bend(p))`` shows."""
    fixed, moving = grids(d)
    p = fixed.grid()
    f = texture(p + bend(p) if deform else p)
    m = texture(truth(d).inverse().map(moving.grid()))
    return to_itk(f, fixed), to_itk(m, moving), fixed, moving


def inside(chain: CompositeTransform, fixed: Geometry, moving: Geometry) -> np.ndarray:
    """Fixed voxels that map at least a voxel into the moving image, away from the rims of all fields."""
    p = fixed.grid()
    good = np.ones(fixed.shape, bool)
    for step in chain.transforms:
        if isinstance(step, DisplacementField):
            i = step.geometry.physical_to_index(p)
            good &= np.all((i >= 1) & (i <= np.asarray(step.geometry.size) - 2), axis=-1)
        p = step.map(p)
    i = moving.physical_to_index(p)
    return good & np.all((i >= 1) & (i <= np.asarray(moving.size) - 2), axis=-1)


def linear_of(chain: CompositeTransform) -> np.ndarray:
    m = np.eye(chain.dimension + 1)
    for step in chain.transforms:
        if isinstance(step, LinearTransform):
            m = step.matrix @ m
    return m


def elastix_map(name: str, d: int, **changes: list[str]) -> dict[str, list[str]]:
    """A few iterations of elastix, resampled linearly."""
    default = itk.ParameterObject.New().GetDefaultParameterMap(name, 2)
    quick = {
        "MaximumNumberOfIterations": ["25"], "NumberOfSpatialSamples": ["600"], "FinalBSplineInterpolationOrder": ["1"],
        "Metric": ["AdvancedNormalizedCorrelation"], "Registration": ["MultiResolutionRegistration"],
        "AutomaticTransformInitialization": ["false"],
    }  # fmt: skip
    keep = {k: list(default[k]) for k in default.keys() if not re.match(r"Metric\d", k)}  # noqa: SIM118
    return {**keep, **quick, **changes}


def elastix(fixed: Any, moving: Any, parameters: dict[str, list[str]], **options: Any) -> tuple[Any, Any]:
    po = itk.ParameterObject.New()
    po.AddParameterMap(parameters)
    return itk.elastix_registration_method(fixed, moving, parameter_object=po, number_of_threads=1, **options)


def keys(po: Any, name: str) -> list[str]:
    return [po.GetParameterMap(n)[name][0] for n in range(po.GetNumberOfParameterMaps())]


@BOTH
@pytest.mark.parametrize("order", [1, 3])
def test_transformix_reproduces_the_image(d: int, order: int, tmp_path: Path, monkeypatch: Any) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d)
    spline = {**SPLINE, "FinalBSplineInterpolationOrder": order}
    image, po = registration_method(fixed, moving, [RIGID, spline], **QUICK)
    assert isinstance(image, type(fixed))
    assert keys(po, "Transform") == ["EulerTransform", "DeformationFieldTransform"]
    assert keys(po, "FinalBSplineInterpolationOrder") == ["3", str(order)]
    gc.collect()
    monkeypatch.chdir(tmp_path)
    again = itk.array_from_image(itk.transformix_filter(moving, po))
    ours = itk.array_from_image(image)
    chain = read_elastix(po)
    seen = inside(chain, fixed_grid, moving_grid)
    assert seen.mean() > 0.4
    assert np.abs(again - ours).max() <= 1e-5 * RANGE  # in the rim and outside too
    # And it is a registration.
    f = itk.array_from_image(fixed)
    start = resample_array(
        itk.array_from_image(moving),
        moving_grid,
        CompositeTransform((LinearTransform.identity(d),)),
        fixed_grid,
        "linear",
    )
    assert np.abs(ours - f)[seen].mean() < 0.35 * np.abs(start - f)[seen].mean()
    p = fixed_grid.grid()[seen & (f > 25)]
    wanted = truth(d).map(p + bend(p))
    assert np.linalg.norm(chain.map(p) - wanted, axis=-1).mean() < 0.4 * np.linalg.norm(p - wanted, axis=-1).mean()


@BOTH
def test_files_in_the_output_directory(d: int, tmp_path: Path) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d)
    parameters = {**SPLINE, "ResultImageFormat": "mha"}
    image, po = registration_method(fixed, moving, [RIGID, parameters], output_directory=tmp_path, **QUICK)
    names = {"TransformParameters.0.txt", "TransformParameters.1.txt", "DeformationField.mha", "result.1.mha",
             "result.0.mhd", "result.0.raw"}  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == names
    assert keys(po, "CompressResultImage") == ["false"] * 2
    written = load_image(tmp_path / "result.1.mha", "result")
    ours = itk.array_from_image(image)
    np.testing.assert_array_equal(written.array, ours)
    assert written.geometry.same_grid(fixed_grid)
    seen = inside(read_elastix(po), fixed_grid, moving_grid)
    np.testing.assert_allclose(
        read_elastix(tmp_path / "TransformParameters.1.txt").map(fixed_grid.grid()[seen]),
        read_elastix(po).map(fixed_grid.grid()[seen]),
        atol=1e-6,
    )
    program = shutil.which("transformix")
    if program is None:
        pytest.skip("the rest needs Debian's transformix program: apt install elastix")
    out = tmp_path / "out"
    out.mkdir()
    save_image(itk.array_from_image(moving), moving_grid, tmp_path / "moving.mha")
    subprocess.run(
        [program, "-in", "moving.mha", "-tp", str(tmp_path / "TransformParameters.1.txt"), "-out", str(out)],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    theirs = load_image(next(out.glob("result.*")), "transformix").array
    assert np.abs(theirs - ours)[seen].max() <= 1e-4 * RANGE


@BOTH
def test_a_known_turn_and_shift_come_out_in_elastix_terms(d: int) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d, deform=False)
    image, po = registration_method(fixed, moving, RIGID, **{**QUICK, "linear_iterations": (60,)})
    assert keys(po, "Transform") == ["EulerTransform"]
    values = np.array([float(v) for v in po.GetParameterMap(0)["TransformParameters"]])
    assert len(values) == {2: 3, 3: 6}[d]
    # The angles are those that elastix would have for this turn; translations go with the centre of rotation.
    angles = [float(v) for v in by_hand(d, fixed_grid)["TransformParameters"][:-d]]
    np.testing.assert_allclose(values[:-d], angles, atol=0.03)
    centre = np.array([float(v) for v in po.GetParameterMap(0)["CenterOfRotationPoint"]])
    np.testing.assert_allclose(centre + values[-d:], truth(d).map(centre), atol=0.4)
    again = itk.array_from_image(itk.transformix_filter(moving, po))
    seen = inside(read_elastix(po), fixed_grid, moving_grid)
    assert np.abs(again - itk.array_from_image(image))[seen].max() <= 1e-4 * RANGE


def by_hand(d: int, grid: Geometry) -> dict[str, list[str]]:
    """`truth` as an EulerTransform of elastix."""
    m = truth(d).matrix[:d, :d]
    if d == 2:
        angles = [np.arctan2(m[1, 0], m[0, 0])]
    else:  # elastix' Euler angles: R = Rz Rx Ry
        angles = [np.arcsin(m[2, 1]), np.arctan2(-m[2, 0], m[2, 2]), np.arctan2(-m[0, 1], m[1, 1])]
    text = lambda values: [repr(float(v)) for v in values]  # noqa: E731
    return {
        "Transform": ["EulerTransform"], "NumberOfParameters": [str(len(angles) + d)],
        "TransformParameters": text([*angles, *(4.0, -2.5, 3.0)[:d]]),
        "CenterOfRotationPoint": text((8.0, -5.0, 40.0)[:d]),
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"], "FixedImageDimension": [str(d)], "MovingImageDimension": [str(d)],
        "Size": [str(n) for n in grid.size], "Index": ["0"] * d, "Spacing": text(grid.spacing),
        "Origin": text(grid.origin), "Direction": text(grid.rotation.T.ravel()), "UseDirectionCosines": ["true"],
        "ResampleInterpolator": ["FinalBSplineInterpolator"], "FinalBSplineInterpolationOrder": ["1"],
        "Resampler": ["DefaultResampler"], "DefaultPixelValue": ["0"], "ResultImageFormat": ["nii"],
        "ResultImagePixelType": ["float"], "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
    }  # fmt: skip


@BOTH
def test_a_known_turn_and_shift_go_in(d: int) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d, deform=False)
    start = itk.ParameterObject.New()
    start.AddParameterMap(by_hand(d, fixed_grid))
    # elastix itself agrees that this is the truth.
    seen = inside(CompositeTransform((truth(d),)), fixed_grid, moving_grid)
    theirs = itk.array_from_image(itk.transformix_filter(moving, start))
    assert np.abs(theirs - itk.array_from_image(fixed))[seen].mean() < 1.0
    _, po = registration_method(fixed, moving, SPLINE, initial_transform_parameter_object=start, **QUICK)
    chain = read_elastix(po)
    np.testing.assert_allclose(linear_of(chain), truth(d).matrix, atol=1e-9)
    # The initial transform aligns all there is, so the deformation stays small.
    p = fixed_grid.grid()[seen]
    assert np.linalg.norm(chain.map(p) - truth(d).map(p), axis=-1).mean() < 0.6


@BOTH
def test_elastix_starts_from_our_result(d: int) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d)
    _, po = registration_method(fixed, moving, [RIGID, SPLINE], **QUICK)
    ours = read_elastix(po)
    image, result = elastix(fixed, moving, elastix_map("affine", d), initial_transform_parameter_object=po)
    last = result.GetParameterMap(result.GetNumberOfParameterMaps() - 1)
    assert last["Transform"][0] == "AffineTransform"
    own = {k: list(last[k]) for k in last.keys()}  # noqa: SIM118
    own["InitialTransformParameterFileName"] = ["NoInitialTransform"]
    affine = read_elastix([own])
    whole = CompositeTransform((*ours.transforms, *affine.transforms))
    mine = resample_array(itk.array_from_image(moving), moving_grid, whole, fixed_grid, "linear")
    seen = inside(whole, fixed_grid, moving_grid)
    assert seen.mean() > 0.4
    assert np.abs(itk.array_from_image(image) - mine)[seen].max() <= 1e-4 * RANGE


@BOTH
def test_the_elastix_program_starts_from_our_files(d: int, tmp_path: Path) -> None:
    program = shutil.which("elastix")
    if program is None:
        pytest.skip("needs Debian's elastix program: apt install elastix")
    fixed, moving, fixed_grid, moving_grid = pair(d)
    ours = tmp_path / "ours"
    ours.mkdir()
    registration_method(fixed, moving, [RIGID, SPLINE], output_directory=ours, **QUICK)
    for name, image, grid in (("fixed", fixed, fixed_grid), ("moving", moving, moving_grid)):
        save_image(itk.array_from_image(image), grid, tmp_path / f"{name}.mha")
    parameters = elastix_map("affine", d, ResultImageFormat=["mha"], ResultImagePixelType=["float"])
    lines = [
        f"({k} {' '.join(v if is_number(v) else chr(34) + v + chr(34) for v in p)})" for k, p in parameters.items()
    ]
    (tmp_path / "affine.txt").write_text("\n".join(lines) + "\n")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    start = str(ours / "TransformParameters.1.txt")
    subprocess.run(
        [program, "-f", "fixed.mha", "-m", "moving.mha", "-p", "affine.txt", "-t0", start, "-out", str(theirs)],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    whole = read_elastix(theirs / "TransformParameters.0.txt")
    assert sum(isinstance(s, DisplacementField) for s in whole.transforms) == 1
    mine = resample_array(itk.array_from_image(moving), moving_grid, whole, fixed_grid, "linear")
    seen = inside(whole, fixed_grid, moving_grid)
    assert seen.mean() > 0.4
    image = load_image(theirs / "result.0.mha", "elastix").array
    assert np.abs(image - mine)[seen].max() <= 1e-4 * RANGE


def is_number(text: str) -> bool:
    return re.fullmatch(r"[-+.\deE]+", text) is not None


@BOTH
def test_a_displacement_field_transform_as_start_is_not_lost(d: int) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d, deform=False)
    shift = truth(d).map(fixed_grid.grid()) - fixed_grid.grid()
    transform = field_to_itk(DisplacementField(fixed_grid, shift.astype(np.float32)))
    image, po = registration_method(fixed, moving, SPLINE, initial_transform=transform, **QUICK)
    del transform
    gc.collect()
    assert keys(po, "Transform") == ["DeformationFieldTransform"] * 2  # the start, then ours
    for n in (0, po.GetNumberOfParameterMaps() - 1):
        assert po.GetParameterMap(n)["DeformationFieldInterpolationOrder"][0] == "1"
    seen = inside(read_elastix(po), fixed_grid, moving_grid)
    p = fixed_grid.grid()[seen]
    assert np.linalg.norm(read_elastix(po).map(p) - truth(d).map(p), axis=-1).mean() < 0.6
    again = itk.array_from_image(itk.transformix_filter(moving, po))
    assert np.abs(again - itk.array_from_image(image))[seen].max() <= 1e-4 * RANGE


@BOTH
def test_ours_starts_from_a_linear_result_of_elastix(d: int, tmp_path: Path) -> None:
    fixed, moving, fixed_grid, _ = pair(d)
    _, start = elastix(fixed, moving, elastix_map("rigid", d), output_directory=str(tmp_path))
    matrix = linear_of(read_elastix(start))
    assert np.abs(matrix - np.eye(d + 1)).max() > 0.05
    from_object = registration_method(fixed, moving, SPLINE, initial_transform_parameter_object=start, **QUICK)
    np.testing.assert_allclose(linear_of(read_elastix(from_object[1])), matrix, atol=1e-9)
    file = tmp_path / "TransformParameters.0.txt"
    from_file = registration_method(fixed, moving, SPLINE, initial_transform_parameter_file_name=file, **QUICK)
    a, b = (itk.array_from_image(x[0]) for x in (from_object, from_file))
    assert np.abs(a - b).max() <= 1e-4 * RANGE
    # As elastix has it: the object is part of the result, the file is named by it.
    assert keys(from_object[1], "Transform") == ["EulerTransform", "DeformationFieldTransform"]
    assert keys(from_file[1], "Transform") == ["DeformationFieldTransform"]
    assert keys(from_file[1], "InitialTransformParameterFileName") == [str(file)]
    assert fixed_grid.same_grid(load_image(from_file[0], "result").geometry)


@BOTH
def test_ours_starts_from_a_spline_of_elastix(d: int) -> None:
    fixed, moving, fixed_grid, moving_grid = pair(d)
    _, start = elastix(fixed, moving, elastix_map("bspline", d, FinalGridSpacingInPhysicalUnits=["24"]))
    image, po = registration_method(fixed, moving, SPLINE, initial_transform_parameter_object=start, **QUICK)
    # The spline itself comes first, not a sampled one.
    assert keys(po, "Transform") == ["BSplineTransform", "DeformationFieldTransform"]
    chain = read_elastix(po, fixed_grid)
    seen = inside(chain, fixed_grid, moving_grid)
    again = itk.array_from_image(itk.transformix_filter(moving, po))
    assert np.abs(again - itk.array_from_image(image)).max() <= 1e-5 * RANGE
    # It starts where the spline ends, and makes it better.
    p = fixed_grid.grid()[seen]
    wanted = truth(d).map(p + bend(p))
    first = read_elastix(start, fixed_grid).map(p)
    assert np.linalg.norm(chain.map(p) - wanted, axis=-1).mean() < np.linalg.norm(first - wanted, axis=-1).mean()


def test_an_itk_transform_as_start_and_its_search_switched_off() -> None:
    fixed, moving, _, _ = pair(2, deform=False)
    transform = itk.AffineTransform[itk.D, 2].New()
    transform.SetTranslation([4.0, -2.5])
    for name in ("initial_transform", "external_initial_transform"):
        _, po = registration_method(fixed, moving, SPLINE, **{name: transform}, **QUICK)
        np.testing.assert_allclose(linear_of(read_elastix(po))[:2, 2], [4.0, -2.5])
        assert "ExternalTransform" not in keys(po, "Transform")
    with pytest.raises(OptionError, match="one initial transform, got initial_transform, external"):
        registration_method(fixed, moving, initial_transform=transform, external_initial_transform=transform)
    # Without a search, the linear stage begins at the identity, as elastix does.
    far = to_itk(itk.array_from_image(fixed), Geometry.make(grids(2)[0].size, (1.4, 1.7), (3000.0, 0.0)))
    near = {**RIGID, "AutomaticTransformInitialization": "false"}
    for parameters, message in ((near, "after the initial transform"), (RIGID, "in physical space")):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            _, po = registration_method(fixed, far, parameters, **QUICK)
        assert any(f"covers only 0% of fixed image {message}" in str(w.message) for w in seen)
    assert linear_of(read_elastix(po))[0, 2] > 2000


@pytest.mark.filterwarnings("default::itk_nir.errors.VerdictWarning")  # a few iterations settle nothing
def test_pixel_types_default_value_and_interpolation() -> None:
    fixed, moving, fixed_grid, moving_grid = pair(2)
    f8 = to_itk(itk.array_from_image(fixed).clip(0, 255).astype(np.uint8), fixed_grid)
    m16 = to_itk((10 * itk.array_from_image(moving)).astype(np.int16), moving_grid)
    parameters = {**SPLINE, "ResampleInterpolator": "FinalNearestNeighborInterpolator", "DefaultPixelValue": 77}
    image, po = registration_method(f8, m16, [RIGID, parameters], **QUICK)
    assert type(image) is type(f8)
    array = itk.array_from_image(image)
    outside = ~moving_grid.contains(read_elastix(po).map(fixed_grid.grid()))
    assert outside.any()
    assert (array[outside] == 77).all()
    assert keys(po, "DefaultPixelValue") == ["0", "77"]
    moved = registration_method(f8, moving, [RIGID, {**parameters, "DefaultPixelValue": -30}], **QUICK)[0]
    values = np.unique(itk.array_from_image(moved))
    assert values[0] == 0
    assert np.isin(values[1:], np.trunc(np.clip(itk.array_from_image(moving), 0, 255))).all()


def test_masks_change_the_result_and_the_seed_does_not_vanish() -> None:
    fixed, moving, fixed_grid, moving_grid = pair(2)
    half = np.zeros(fixed_grid.shape, np.uint8)
    half[:, :20] = 1
    full = registration_method(fixed, moving, [RIGID, SPLINE], **QUICK)[0]
    part = registration_method(fixed, moving, [RIGID, SPLINE], fixed_mask=to_itk(half, fixed_grid), **QUICK)[0]
    ones = to_itk(np.ones(moving_grid.shape, np.uint8), moving_grid)
    same = registration_method(fixed, moving, [RIGID, SPLINE], moving_mask=ones, **QUICK)[0]
    a, b, c = (itk.array_from_image(x) for x in (full, part, same))
    assert np.abs(a - b).max() > 1.0
    assert np.abs(a - c).mean() < np.abs(a - b).mean()
    assert understand([{"Transform": ["AffineTransform"], "RandomSeed": ["121212"]}]).seed == 121212


def test_stages() -> None:
    def stages(*names: str) -> tuple[str, bool]:
        request = understand([{"Transform": [n]} for n in names])
        return request.linear, request.deformable

    assert understand([]).deformable
    assert stages("EulerTransform") == ("rigid", False)
    assert stages("TranslationTransform", "AffineTransform") == ("affine", False)
    assert stages("TranslationTransform", "BSplineTransform") == ("translation", True)
    assert stages("TranslationTransform") == ("translation", False)
    assert stages("EulerTransform", "SimilarityTransform") == ("similarity", False)
    assert stages("BSplineTransform", "RecursiveBSplineTransform", "BSplineTransform") == ("none", True)
    assert stages("EulerTransform", "AffineTransform", "RecursiveBSplineTransform") == ("affine", True)
    assert stages("BSplineTransform") == ("none", True)
    for names, message in (
        (("BSplineTransform", "AffineTransform"), "AffineTransform after a deformable"),
        (("BSplineTransform", "EulerTransform", "BSplineTransform"), "EulerTransform after a deformable"),
        (("SplineKernelTransform",), "SplineKernelTransform"),
        (("BSplineStackTransform",), "BSplineStackTransform"),
    ):
        with pytest.raises(OptionError, match=message):
            stages(*names)


MATTES, NORMALISED = "AdvancedMattesMutualInformation", "NormalizedMutualInformation"
CORRELATION, SQUARES = "AdvancedNormalizedCorrelation", "AdvancedMeanSquares"
BENDING = PENALTIES[0]


@pytest.mark.parametrize(
    ("parameters", "metric"),
    [
        ({}, None),
        ({"Metric": BENDING}, None),
        ({"Metric": MATTES}, "nmi"),
        ({"Metric": NORMALISED}, "nmi"),
        ({"Metric": CORRELATION, "NumberOfHistogramBins": 64}, "ncc"),
        ({"Metric": SQUARES}, "mse"),
        ({"Metric": MATTES, "NumberOfHistogramBins": [16, 32]}, "nmi"),
        ({"Metric": MATTES, "NumberOfHistogramBins": [16, 64]}, MutualInformation(64)),
        ({"Metric": NORMALISED, "NumberOfFixedHistogramBins": 40}, MutualInformation(40)),
        ({"Metric": MATTES, "NumberOfMovingHistogramBins": 50, "NumberOfHistogramBins": 20}, MutualInformation(50)),
        ({"Metric": MATTES, "NumberOfFixedHistogramBins": 16, "NumberOfMovingHistogramBins": 8}, MutualInformation(16)),
        # One similarity, and what does not count beside it.
        ({"Metric": [MATTES, BENDING], "Metric0Weight": 0.5, "Metric1Weight": 3.0}, "nmi"),
        ({"Metric": [MATTES, SQUARES], "Metric0Weight": 0.0}, "mse"),
        ({"Metric": [MATTES, SQUARES], "Metric1Use": False}, "nmi"),
        # Several: a weighted sum.
        ({"Metric": [MATTES, CORRELATION]}, "1*nmi + 1*ncc"),
        ({"Metric": [SQUARES, BENDING, MATTES], "Metric0Weight": 0.25, "Metric2Weight": [1, 0.75]},
         "0.25*mse + 0.75*nmi"),
        ({"Metric": [SQUARES, MATTES], "Metric0Weight": 7, "Metric0RelativeWeight": 0.25, "UseRelativeWeights": True},
         "0.25*mse + 1*nmi"),
        ({"Metric": [CORRELATION, MATTES], "Metric1Weight": 0.5, "NumberOfHistogramBins": 64},
         WeightedSum(((1.0, NCC()), (0.5, MutualInformation(64))))),
    ],
)  # fmt: skip
def test_metrics_are_honoured_by_the_metric_of_that_name(parameters: dict[str, Any], metric: Any) -> None:
    for kind, stage in (("BSplineTransform", "metric"), ("AffineTransform", "linear_metric")):
        request = understand(read_maps({"Transform": kind, **parameters}))
        wanted = {"metric": None, "linear_metric": None, stage: metric}
        assert {name: getattr(request, name) for name in wanted} == wanted
        assert not request.unused
        if metric is not None:  # which is a metric here
            make_settings("fast", metric=metric)


def test_every_stage_has_the_metric_of_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, *_ = pair(2)
    maps = [RIGID, {"Transform": "AffineTransform", "Metric": SQUARES}, SPLINE]
    request = understand(read_maps(maps))
    assert (request.linear_metric, request.metric) == ("mse", "ncc")
    assert request.with_metrics({"radius": 2}) == {"radius": 2, "metric": "ncc", "linear_metric": "mse"}
    assert request.with_metrics({"linear_metric": "mind"}) == {"metric": "ncc", "linear_metric": "mind"}
    assert request.with_metrics({"metric": "mind"}) == {"metric": "mind"}  # a keyword goes before all maps
    assert understand(read_maps([{"Transform": "EulerTransform"}, SPLINE])).with_metrics({}) == {"metric": "ncc"}
    assert understand([]).with_metrics({}) == {}

    class Seen(Exception):
        pass

    def look(*_: Any, preset: Any, **__: Any) -> None:
        raise Seen(preset)

    monkeypatch.setattr("itk_nir.registration.register", look)
    for options, metric in (({}, "ncc"), ({"metric": "mind"}, "mind")):
        with pytest.raises(Seen) as seen:
            registration_method(fixed, moving, maps, preset="fast", **options)
        assert seen.value.args[0].deformable.metric == metric


def test_bins_that_cannot_be_had_become_the_nearest_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="NumberOfHistogramBins of map 1: there can be 4 to 128 bins; 128 are taken"):
        request = understand(read_maps([{"Transform": "EulerTransform"}, {**RIGID, "NumberOfHistogramBins": 256}]))
    assert request.linear_metric == MutualInformation(128)


@pytest.mark.parametrize("name", ["translation", "rigid", "affine", "bspline"])
def test_elastix_default_maps_are_understood(name: str) -> None:
    default = itk.ParameterObject.New().GetDefaultParameterMap(name, 4)
    parameters = {k: list(default[k]) for k in default.keys()}  # noqa: SIM118
    last = [] if name == "bspline" else [{"Transform": ["BSplineTransform"]}]
    request = understand([parameters, *last])
    assert "MaximumNumberOfIterations" in request.unused
    assert not set(request.unused) & set(HONOURED)
    assert (request.linear_metric, request.metric) == ((None, "nmi") if name == "bspline" else ("nmi", None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Metrik": "x"}, r"Metrik of map 0: not known here.*did you mean Metric\?"),
        ({"Scales": ["1", "much", "1"]}, "Scales of map 0: are numbers"),
        ({"MovingImageDerivativeScales": [1, 0]}, "MovingImageDerivativeScales of map 0: .* hold an axis still"),
        ({"FixedImageDimension": 4}, "FixedImageDimension of map 0: .*register each volume to one of them"),
        ({"Metric": "PCAMetric2"}, "'PCAMetric2' cannot be had here.*register each volume to one of them"),
        ({"ResampleInterpolator": "FinalRayCastInterpolator"}, "X-ray projection"),
        ({"Metric": "StatisticalShapePenalty"}, "'StatisticalShapePenalty' cannot be had.*no such model here"),
        ({"SampleLastDimensionRandomly": "true", "Metric": "PCAMetric2"}, "'PCAMetric2' cannot be had"),
        ({"Metric": ["AdvancedMeanSquares", "TransformRigidityPenalty"], "UseFixedRigidityImage": False,
          "UseMovingRigidityImage": False}, "TransformRigidityPenalty needs an image of what is rigid"),
        ({"Metric0Weight": -1}, "Metric0Weight of map 0: cannot be below 0, got -1"),
        ({"Metric0Weight": "much"}, "Metric0Weight: is a number"),
        ({"Metric0Weight": 0}, "Metric of map 0: all have weight 0 or are not used"),
        ({"Metric0Use": False}, "Metric of map 0: all have weight 0 or are not used"),
        ({"NumberOfHistogramBins": 0}, "NumberOfHistogramBins of map 0 is a whole number of bins, at least 1, got 0"),
        ({"NumberOfHistogramBins": 8.5}, "NumberOfHistogramBins of map 0 is a whole number of bins"),
        ({"UseCyclicTransform": True}, "'true' cannot be had"),
        ({"HowToCombineTransforms": "Subtract"}, "'Subtract' cannot be had"),
        ({"FinalBSplineInterpolationOrder": 6}, "FinalBSplineInterpolationOrder: is 0 to 5, got 6"),
        ({"ResampleInterpolator": "FinalRayCastInterpolator"}, "FinalRayCastInterpolator"),
        ({"AutomaticTransformInitializationMethod": "Anywhere"}, "Anywhere"),
        ({"MaximumNumberOfIterations": 0}, "0 iterations"),
        ({"DefaultPixelValue": "black"}, "DefaultPixelValue: is a number"),
        ({"RandomSeed": -1}, "RandomSeed"),
        ({"WriteResultImage": "maybe"}, "WriteResultImage"),
        ({"ResultImagePixelType": "half"}, "half"),
        ({"Transform": "WeirdTransform"}, "WeirdTransform"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        registration_method(None, None, {**RIGID, **changes})


def test_wrong_calls(tmp_path: Path) -> None:
    fixed, moving, *_ = pair(2)
    for name in REFUSED:
        with pytest.raises(OptionError, match=name):
            registration_method(fixed, moving, **{name: "x"})
    with pytest.raises(OptionError, match="stepz"):
        registration_method(fixed, moving, stepz=3)
    with pytest.raises(OptionError, match="number_of_threads"):
        registration_method(fixed, moving, number_of_threads=-1)
    with pytest.raises(InputError, match="no such folder"):
        registration_method(fixed, moving, output_directory=tmp_path / "no")
    with pytest.raises(InputError, match="FixedImageDimension is 3, but fixed image is 2D"):
        registration_method(fixed, moving, {**RIGID, "FixedImageDimension": 3})
    with pytest.raises(InputError, match="no such file"):
        registration_method(fixed, moving, tmp_path / "none.txt")
    with pytest.raises(InputError, match="parameter_object"):
        registration_method(fixed, moving, 7)
    with pytest.raises(OptionError, match="UseDirectionCosines: is true in one map and false in another"):
        registration_method(fixed, moving, [RIGID, {**SPLINE, "UseDirectionCosines": False}])
    with pytest.raises(InputError, match="2 fixed and 1 moving images"):
        registration_method([fixed, fixed], moving, RIGID)
    with pytest.raises(OptionError, match="log_to_file needs an output_directory"):
        registration_method(fixed, moving, RIGID, log_to_file=True)
    with pytest.raises(OptionError, match="Transform is missing in map 1"):
        registration_method(fixed, moving, [RIGID, {"Metric": "AdvancedMeanSquares"}])


def test_the_number_of_threads_may_be_of_numpy() -> None:
    fixed, moving, *_ = pair(2)
    with pytest.raises(OptionError, match="'nowhere'"):  # which comes after the check of the threads
        registration_method(fixed, moving, preset="nowhere", number_of_threads=np.int64(2))
    for wrong in (True, 2.0):
        with pytest.raises(OptionError, match="number_of_threads"):
            registration_method(fixed, moving, preset="nowhere", number_of_threads=wrong)


def test_parameter_files_and_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed, moving, *_ = pair(2)
    file = tmp_path / "rigid.txt"
    file.write_text('(Transform "EulerTransform")\n(Optimizer "AdaptiveStochasticGradientDescent")\n// a remark\n')
    _, po = registration_method(fixed, moving, file, log_to_console=True, **QUICK)
    assert keys(po, "Transform") == ["EulerTransform"]
    out = capsys.readouterr().out
    assert "without a meaning here: Optimizer" in out
    assert re.search(r"linear level 1 of \d, iteration 1 of \d+: metric", out)


def test_the_log_tells_an_iteration_once() -> None:
    """A linear stage reports every map that it tries, all with the number of the iteration."""
    lines: list[str] = []
    told: list[Progress] = []
    report = printing(lambda now: told.append(now), lines.append)
    tried = [0] * 9 + [9] * 9 + [18] * 3 + [20] * 4 + [0] * 3 + [24] * 2
    for iteration in tried:
        report(Progress("linear", 0, 1, iteration, 25, 0.5, 0.5, 1.0, 0.0, 0.0))
    assert [now.iteration for now in told] == tried
    assert [int(line.split("iteration ")[1].split()[0]) for line in lines] == [1, 19, 21, 1, 25]


def test_own_folder_goes_when_python_ends() -> None:
    code = (
        "from itk_nir.compat.elastix.files import temporary_folder as f; "
        "p = f(); (p / 'x').touch(); print(p); print(f())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(itk_nir.__file__).resolve().parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    first, second = out.split()
    assert first != second
    assert not Path(first).exists()
    assert not Path(first).parent.exists()


def test_docs_name_every_parameter_and_run(tmp_path: Path, monkeypatch: Any) -> None:
    text = (DOCS / "coming_from_elastix.md").read_text(encoding="utf-8")
    meaningless = [name for names in NO_MEANING.values() for name in names]
    for name in (
        *HONOURED, *ONLY, *meaningless, *TRANSFORMS, *PENALTIES, POINTS, OVERLAP, *REPLACED, *INTERPOLATORS, *REFUSED
    ):  # fmt: skip
        assert f"`{name}`" in text, name
    for name, how in STANDING_IN.items():
        assert f"| `{name}` | `{METRICS[name]}`" in text
        assert how.split(":")[0].split(",", 1)[1] in text
    for name, ours in METRICS.items():
        assert f"| `{name}` | `{ours}`" in text
    for how in OF_SURFACES.values():
        assert how in text
    rows = {row[0]: row for row in (line.strip("| ").split(" | ") for line in text.splitlines()) if len(row) == 3}
    assert set(INSTEAD) == set(NO_MEANING)
    for group, instead in INSTEAD.items():
        assert rows[group][2] == instead
        assert set(NO_MEANING[group]) <= set(re.findall(r"`(\w+)`", rows[group][1]))
        assert set(re.findall(r"(\w+)=", instead)) <= engine_options("default")
    monkeypatch.chdir(tmp_path)
    fixed, moving, fixed_grid, moving_grid = pair(2)
    save_image(itk.array_from_image(fixed), fixed_grid, tmp_path / "fixed.nii.gz")
    save_image(itk.array_from_image(moving), moving_grid, tmp_path / "moving.nii.gz")
    labels = (itk.array_from_image(moving) > 40).astype(np.uint8)
    save_image(labels, moving_grid, tmp_path / "labels.nii.gz")
    (tmp_path / "out").mkdir()
    names = run_blocks("coming_from_elastix.md")
    ours, theirs = itk.array_from_image(names["result_image"]), itk.array_from_image(names["again"])
    assert np.abs(ours - itk.array_from_image(fixed)).mean() < 8
    seen = inside(read_elastix(names["parameters"]), fixed_grid, moving_grid)
    assert np.abs(ours - theirs)[seen].max() <= 1e-4 * RANGE


def test_corresponding_points_are_landmarks(tmp_path: Path) -> None:
    """As elastix writes them: a file of points, a file of indices; their weight beside that of the similarity."""
    from itk_nir.phantom import brain_phantom

    phantom = brain_phantom(2, (56, 64), seed=1)
    fixed, moving = (to_itk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    index = np.argwhere(phantom.fixed_labels > 0)[::300]
    p = phantom.geometry.index_to_physical(index[:, ::-1].astype(float))
    q = p + phantom.displacement[tuple(index.T)]
    files = [tmp_path / "f.txt", tmp_path / "m.txt"]
    for file, word, rows in zip(files, ("index", "point"), (index[:, ::-1], q), strict=True):
        text = "\n".join(" ".join(f"{x:.6f}" for x in row) for row in rows)
        file.write_text(f"{word}\n{len(rows)}\n{text}\n")
    spline = SPLINE | {"Metric": ["AdvancedNormalizedCorrelation", POINTS], "Metric1Weight": "0.5"}
    term = understand(read_maps(spline)).points
    assert term is not None
    assert (term.weight, term.similarities) == (0.5, ((0, "AdvancedNormalizedCorrelation", 1.0),))
    assert understand(read_maps(SPLINE | {"Metric": [POINTS]})).metric == "none"
    names = {"fixed_point_set_file_name": str(files[0]), "moving_point_set_file_name": str(files[1])}
    quick = {"preset": "fast", "device": "cpu", "number_of_threads": 1, "iterations": (12, 6, 3)}
    apart = []
    for given in (names, {"fixed_points": p, "moving_points": q}):
        maps = SPLINE | {"Metric": [POINTS]}
        _, parameters = registration_method(fixed, moving, maps, **given, **quick)
        end = read_elastix(parameters, phantom.geometry).map(p)
        apart.append(np.linalg.norm(end - q, axis=1).mean())
    assert apart[0] == pytest.approx(apart[1], abs=0.05)
    assert apart[0] < 0.5 * np.linalg.norm(p - q, axis=1).mean()
    with pytest.raises(OptionError, match=f"fixed_point_set_file_name.* without {POINTS}"):
        registration_method(fixed, moving, SPLINE, **names, **quick)
    with pytest.raises(OptionError, match=f"{POINTS} needs one of moving_point_set_file_name, moving_points"):
        registration_method(fixed, moving, maps, fixed_points=p, **quick)
    files[1].write_text("point\n3\n1 2\n")
    with pytest.raises(InputError, match="no point file of elastix"):
        registration_method(fixed, moving, maps, **names, **quick)
