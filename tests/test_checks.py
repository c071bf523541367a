"""What is refused before any work, and what is only told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from itk_nir.checks import check_dimensions, check_pair, match_mask, overlap
from itk_nir.errors import InputError
from itk_nir.findings import warning
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, save_image
from itk_nir.transforms import CompositeTransform, LinearTransform


def volume(grid: Geometry, name: str = "fixed image /a/f.nii.gz", array: np.ndarray | None = None) -> Volume:
    values = np.random.default_rng(0).random(grid.shape).astype(np.float32) if array is None else array
    return Volume(values, grid, name, "path", np.dtype(np.float32))


def mask_of(grid: Geometry, inside: slice = slice(4, 12)) -> Volume:
    array = np.zeros(grid.shape, np.float32)
    array[(inside,) * grid.dimension] = 1
    return volume(grid, "fixed mask /a/m.nii.gz", array)


def shifted(grid: Geometry, *by: float) -> Geometry:
    return replace(grid, origin=tuple(o + b for o, b in zip(grid.origin, by, strict=True)))


G2 = Geometry.make([20, 24], [1.5, 1.0], [3, 4])
G3 = Geometry.make([20, 24, 18], [1.5, 1.0, 2.0], [3, 4, 5], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
MOVING = "moving image /a/m.nii.gz"


def test_good_pair_has_no_warnings() -> None:
    for grid in (G2, G3):
        assert check_pair(volume(grid), volume(grid, MOVING), linear="none") == []
        assert match_mask(mask_of(grid), volume(grid))[1] == []


def test_warnings_of_the_readers_are_passed_on() -> None:
    odd = replace(volume(G3), findings=(warning("fixed image /a/f.nii.gz: odd"),))
    assert list(map(str, check_pair(odd, volume(G3, MOVING)))) == ["fixed image /a/f.nii.gz: odd"]


def test_unlike_dimensions() -> None:
    with pytest.raises(InputError, match=r"moving image /a/m.nii.gz: is 2D but fixed image /a/f.nii.gz is 3D"):
        check_pair(volume(G3), volume(G2, MOVING))
    with pytest.raises(InputError, match="initial transform: is 2D"):
        check_pair(volume(G3), volume(G3, MOVING), initial=CompositeTransform((LinearTransform.identity(2),)))
    with pytest.raises(InputError, match=r"fixed mask /a/m.nii.gz: is 2D"):
        match_mask(mask_of(G2), volume(G3))
    two = CompositeTransform((LinearTransform.identity(2),))
    for initial, what in ((None, MOVING), (two, "initial transform")):
        with pytest.raises(InputError, match=f"{what}: is 2D"):
            check_dimensions(volume(G3), volume(G3 if initial else G2, MOVING), initial)
    check_dimensions(volume(G2), volume(G2, MOVING), two)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_constant_images(which: str) -> None:
    flat = np.full(G3.shape, 7, np.float32)
    fixed = volume(G3, array=flat if which == "fixed" else None)
    moving = volume(G3, MOVING, flat if which == "moving" else None)
    with pytest.raises(InputError, match=rf"{which} image /a/.*is constant \(every voxel is 7\)"):
        check_pair(fixed, moving)


def test_tiny_images() -> None:
    with pytest.raises(InputError, match="20x20x3, at least 4"):
        check_pair(volume(Geometry.make([20, 20, 3])), volume(G3, MOVING))
    with pytest.raises(InputError, match="give one slice of each image"):
        check_pair(volume(Geometry.make([20, 20, 1])), volume(G3, MOVING))
    thin = Geometry.make([20, 20, 8])
    warnings = check_pair(volume(thin), volume(thin, MOVING))
    assert len(warnings) == 2
    assert "only 8 voxels" in str(warnings[0])


def test_empty_mask() -> None:
    with pytest.raises(InputError, match=r"fixed mask /a/m.nii.gz: is empty"):
        match_mask(mask_of(G3, slice(0, 0)), volume(G3))


def test_mask_on_almost_the_same_grid_is_taken_as_it_is() -> None:
    mask = mask_of(shifted(G3, 5e-4, -5e-4, 0))
    matched, warnings = match_mask(mask, volume(G3))
    assert warnings == []
    assert matched.geometry == G3
    np.testing.assert_array_equal(matched.array, mask.array)


@pytest.mark.parametrize("grid", [G2, G3])
def test_mask_on_another_grid_is_resampled_to_the_nearest_voxel(grid: Geometry) -> None:
    d = grid.dimension
    fine = Geometry.make([50, 51, 52][:d], [0.8] * d, np.asarray(grid.centre) - 20)
    radius = 8.0
    ball = (np.linalg.norm(fine.grid() - grid.centre, axis=-1) < radius).astype(np.float32) * 3
    mask = volume(fine, "moving mask /a/k.nii.gz", ball)
    matched, warnings = match_mask(mask, volume(grid))
    assert len(warnings) == 1
    assert "another grid" in str(warnings[0])
    distance = np.linalg.norm(grid.grid() - grid.centre, axis=-1)
    assert set(np.unique(matched.array)) == {0, 1}
    assert matched.array[distance < radius - 0.8].all()
    assert not matched.array[distance > radius + 0.8].any()
    assert matched.geometry == grid
    assert matched.array.dtype == np.float32


def test_mask_elsewhere() -> None:
    with pytest.raises(InputError, match="does not reach"):
        match_mask(mask_of(shifted(G3, 500, 0, 0)), volume(G3))


def test_warnings_of_the_mask_are_passed_on() -> None:
    odd = replace(mask_of(G3), findings=(warning("fixed mask /a/m.nii.gz: odd"),))
    assert list(map(str, match_mask(odd, volume(G3))[1])) == ["fixed mask /a/m.nii.gz: odd"]


def test_overlap_is_a_share_of_the_fixed_grid() -> None:
    grid = Geometry.make([16, 16])
    assert overlap(grid, grid) == 1
    assert overlap(grid, shifted(grid, 8, 0)) == pytest.approx(0.5)
    assert overlap(grid, shifted(grid, 100, 0)) == 0
    back = CompositeTransform((LinearTransform.make(np.eye(2), [100, 0]),))
    assert overlap(grid, shifted(grid, 100, 0), back) == 1


def test_images_that_lie_apart() -> None:
    fixed, moving = volume(G3), volume(shifted(G3, 0, 300, 0), MOVING)
    with pytest.raises(InputError, match=r"does not overlap .* in physical space; use linear='affine'"):
        check_pair(fixed, moving, linear="none")
    assert list(map(str, check_pair(fixed, moving, linear="affine"))) == [
        f"{MOVING}: covers only 0% of fixed image /a/f.nii.gz in physical space"
    ]
    there = CompositeTransform((LinearTransform.make(np.eye(3), [0, 300, 0]),))
    assert check_pair(fixed, moving, initial=there, linear="none") == []
    with pytest.raises(InputError, match="after the initial transform; check it"):
        check_pair(fixed, volume(G3, MOVING), initial=there, linear="none")


def test_real_spine_pair_overlaps_though_its_axes_are_named_otherwise(data: Path, tmp_path: Path) -> None:
    from itk_nir.images import load_image

    t1 = load_image(data / "spine_t1_t2" / "t1w.nii.gz", "fixed image")
    t2 = load_image(data / "spine_t1_t2" / "t2.nii.gz", "moving image")
    assert overlap(t1.geometry, t2.geometry) > 0.25
    assert check_pair(t1, t2, linear="none") == []
    # Its mask, written on the other image's grid, comes back to its own.
    mask = load_image(data / "spine_t1_t2" / "t2_seg-manual.nii.gz", "fixed mask")
    matched, warnings = match_mask(mask, t1)
    assert len(warnings) == 1
    ratio = matched.array.sum() * t1.geometry.voxel_volume / (mask.array.sum() * mask.geometry.voxel_volume)
    assert 0.8 < ratio <= 1.1
    save_image(matched.array.astype(np.uint8), matched.geometry, tmp_path / "m.nii.gz")
    assert match_mask(load_image(tmp_path / "m.nii.gz", "fixed mask"), t1)[1] == []
