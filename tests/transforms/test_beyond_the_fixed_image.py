"""Forward and back, by every way that the inverse is given out, where the map leaves the fixed image."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from itk_nir.engine.frame import Frame
from itk_nir.engine.images import sizes, spacings
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.neural_field import NeuralField, load_field
from itk_nir.result import RegistrationResult
from itk_nir.transforms.as_simpleitk import to_sitk as transform_to_sitk
from itk_nir.transforms.displacement import on_one_grid
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from tests.engine.pairs import velocity
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])


@lru_cache
def cropped(d: int) -> RegistrationResult:
    """A fixed image that is a part of the moving one, whose content moves out of it by up to five voxels."""
    fixed = Geometry.make([24, 20, 17][:d], [1.1, 1.4, 1.8][:d], [-40, 25, 90][:d], turned(d, 0.4, 0.3))
    moving = Geometry.make([70, 70, 64][:d], [1.2, 1.1, 1.3][:d], [0] * d, turned(d, 0.5, 0.2))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre, moving.direction)
    domain = Domain((0, 0, 0), sizes(fixed))
    lattices = Lattices.halved(domain.lattice(tuple(8.0 / s for s in spacings(fixed))), 8.0, 0, domain.ends)  # type: ignore[arg-type]
    points = 0.6 * torch.randn(3, *shape_of(lattices.axes[0]), generator=torch.Generator().manual_seed(5))
    points += torch.tensor([4.0, -3.0, 2.5]).reshape(3, 1, 1, 1)
    points[d:] = 0
    field = VelocityField(fixed, velocity(fixed, lattices, points), None, "velocity", 4)
    linear = LinearTransform.make(turned(d, 0.08, -0.05) * 1.03, [0.4, -0.3, 0.2][:d], fixed.centre)
    trained = NeuralField("deformable", field, linear, Frame.plain(fixed))
    images = (to_sitk(np.arange(np.prod(g.size), dtype=np.float32).reshape(g.shape), g) for g in (fixed, moving))
    return RegistrationResult.from_field(trained, *images)


def one_by_one(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda points: np.array([list(transform.TransformPoint(p.tolist())) for p in points])


def comes_back(
    result: RegistrationResult,
    inverse: Callable[[np.ndarray], np.ndarray],
    forward: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    fixed = result.fixed.geometry
    p = fixed.grid().reshape(-1, fixed.dimension)
    there = (forward or result.mapping.map)(p)
    leaves = ~fixed.contains(there)
    assert leaves.mean() > 0.2
    assert result.moving.geometry.contains(there).all()
    error = np.linalg.norm(inverse(there) - p, axis=-1) / min(fixed.spacing)
    assert np.percentile(error, 99) < 0.25
    assert error[leaves].max() < 0.5


@BOTH
def test_mapping_and_the_field_sampled_again(d: int, tmp_path: Path) -> None:
    result = cropped(d)
    assert result.displacement is not None
    assert result.inverse_displacement is not None
    assert result.displacement.geometry.same_grid(result.fixed.geometry)
    assert np.prod(result.inverse_displacement.geometry.size) > np.prod(result.fixed.geometry.size)
    comes_back(result, result.mapping.inverse().map)
    comes_back(result, lambda q: result.transform_points(q, inverse=True), result.transform_points)
    again = load_field(result.save_field(tmp_path / "f.safetensors")).sample(field_spacing=2)
    comes_back(result, again.inverse().map, again.map)


@BOTH
def test_a_forward_transform_alone_has_its_inverse_beyond_the_grid(d: int) -> None:
    result = cropped(d)
    alone = CompositeTransform(result.mapping.transforms)
    comes_back(result, alone.inverse().map)
    field = alone.transforms[0]
    assert isinstance(field, DisplacementField)
    longer = np.array(field.reached().size) - field.geometry.size
    most = np.abs((field.vectors @ field.geometry.rotation / field.geometry.spacing).reshape(-1, d)).max(0)
    assert ((longer > 0) & (longer <= 2 * (most + 2))).all()
    still = DisplacementField(field.geometry, np.zeros_like(field.vectors))
    assert still.reached() == field.geometry


@BOTH
def test_objects_of_itk(d: int) -> None:
    result = cropped(d)
    whole = result.transform
    comes_back(result, one_by_one(whole.GetInverseTransform()), one_by_one(whole))
    comes_back(result, one_by_one(result.inverse_transform))
    parts = result.composite
    comes_back(result, one_by_one(parts.GetInverseTransform()), one_by_one(parts))
    comes_back(result, one_by_one(result.inverse_composite))


@BOTH
def test_objects_of_simpleitk(d: int) -> None:
    result = cropped(d)
    comes_back(result, one_by_one(transform_to_sitk(result.mapping.inverse())))
    field, undo = result.displacement, result.inverse_displacement
    assert field is not None
    assert undo is not None
    alone = transform_to_sitk(CompositeTransform((field,), (undo,)))
    p = result.fixed.geometry.grid().reshape(-1, d)
    back = one_by_one(alone.GetInverse())(one_by_one(alone)(p))
    assert np.linalg.norm(back - p, axis=-1).max() < 0.5 * min(result.fixed.geometry.spacing)


@BOTH
@pytest.mark.parametrize("kind", ["itk", "ants", "elastix", "slicer", "nifti"])
def test_files(d: int, kind: str, tmp_path: Path) -> None:
    if kind == "nifti" and d == 2:
        pytest.skip("RAS fields are 3D")
    result = cropped(d)
    paths = result.save(f"{tmp_path}/", format=kind)  # type: ignore[arg-type]
    if kind == "itk":
        comes_back(result, *(one_by_one(sitk.ReadTransform(str(paths[k]))) for k in ("inverse_composite", "composite")))
    elif kind == "ants":
        lists = [paths["affine"], paths["inverse_warp"]], [paths["warp"], paths["affine"]]
        affine = sitk.ReadTransform(str(paths["affine"])).GetInverse()
        warp = sitk.DisplacementFieldTransform(sitk.ReadImage(str(paths["inverse_warp"]), sitk.sitkVectorFloat64))
        comes_back(result, lambda q: one_by_one(warp)(one_by_one(affine)(q)))
        there = read_transform(lists[1], result.fixed.geometry)
        comes_back(result, lambda q: one_by_one(warp)(one_by_one(affine)(q)), there.map)
    else:
        keys = ("inverse_transform", "transform") if kind == "elastix" else ("inverse_displacement", "displacement")
        comes_back(result, *(read_transform(paths[k], result.fixed.geometry).map for k in keys))


@BOTH
@pytest.mark.parametrize("kind", ["ants", "itk"])
def test_ants_applies_the_inverse(d: int, kind: str, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas (of antspyx) is not installed")
    result = cropped(d)
    paths = result.save(f"{tmp_path}/", format=kind)  # type: ignore[arg-type]
    keys = ["inverse_composite"] if kind == "itk" else ["affine", "inverse_warp"]
    files, invert = [str(paths[key]) for key in keys], [key == "affine" for key in keys]

    def points(p: np.ndarray) -> np.ndarray:
        columns = list("xyz")[:d]
        out = ants.apply_transforms_to_points(d, pandas.DataFrame(p, columns=columns), files, whichtoinvert=invert)
        return np.asarray(out[columns].to_numpy())

    comes_back(result, points)


def test_fields_on_one_grid() -> None:
    grid = Geometry.make([5, 4], [2.0, 3.0], [10.0, -5.0], turned(2, 0.3))
    values = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    field = DisplacementField(grid, values)
    same = DisplacementField(grid, -values)
    assert on_one_grid(field, same) == (field, same)
    wider = grid.crop([-2, 0], [9, 5])
    inverse = DisplacementField(wider, np.zeros((5, 9, 2)))
    both = on_one_grid(field, inverse)
    assert both is not None
    assert both[1] is inverse
    assert both[0].geometry is wider
    np.testing.assert_array_equal(both[0].vectors, np.pad(values, [(0, 1), (2, 2), (0, 0)], mode="edge"))
    for other in (grid.crop([1, 0], [9, 5]), grid.crop([-2, 0], [6, 5]), Geometry.make([9, 5], [2, 3], [10.0, -5.0])):
        assert on_one_grid(field, DisplacementField(other, np.zeros((*other.shape, 2)))) is None
