"""Lesions, holes of masks and halves of objects: what has no counterpart is not looked at."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import itk_nir
from itk_nir.checks import beyond_cuts, cut_by_borders, holes
from itk_nir.engine import deformable, lesions, ops
from itk_nir.engine.filling import continued
from itk_nir.engine.jacobian import jacobian_determinant
from itk_nir.engine.ops import reference
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.errors import InputError, OptionError, VerdictWarning
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom, brain_phantom

SIDES = pytest.mark.parametrize("side", ["fixed", "moving"])


# --- the image is continued ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 40, 36), (20, 24, 28)])
def test_an_image_is_continued_without_an_edge(shape: tuple[int, ...]) -> None:
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    smooth = torch.from_numpy(100 + 50 * x + 30 * y + 20 * z).float()
    false = torch.zeros(shape, dtype=torch.bool)
    false[..., 10:20, 12:24] = True
    spoilt = torch.where(false, torch.full_like(smooth, 1e4), smooth)
    out = continued(spoilt, false)
    assert torch.equal(out[~false], smooth[~false])
    assert float((out - smooth).abs().max()) < 10
    assert torch.equal(out, continued(torch.where(false, torch.full_like(smooth, -3.0), smooth), false))
    flat = continued(torch.where(false, spoilt, torch.full_like(smooth, 7.0)), false)
    assert float((flat - 7).abs().max()) < 1e-4


# --- lesions ---------------------------------------------------------------------------------------------------------


@cache
def brain(d: int) -> Phantom:
    return brain_phantom(d, (64, 76) if d == 2 else (56, 66, 56), seed=3)


def registered(phantom: Phantom, fixed: np.ndarray, moving: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    """The error in mm, and the result."""
    grid = phantom.geometry
    result = itk_nir.register(to_sitk(fixed, grid), to_sitk(moving, grid), preset="fast", threads=2, **options)
    return np.linalg.norm(result.mapping.displacement_on(grid).vectors - phantom.displacement, axis=-1), result


def ball_of(phantom: Phantom, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball of that many mm in a grid, and where it is."""
    centre = np.array([28.0, 5.0, 15.0])[: phantom.geometry.dimension]
    return np.linalg.norm(phantom.geometry.grid() - centre, axis=-1) <= radius, centre


def left_out(phantom: Phantom, side: str, how: str) -> dict[str, Any]:
    """The option that says that the ball of 20 mm is not to be looked at."""
    ball, _ = ball_of(phantom, 10)
    return {f"{side}_{how}": to_sitk((ball if how == "lesion" else ~ball).astype(np.uint8), phantom.geometry)}


@cache
def around_a_ball(d: int, side: str = "", how: str = "", value: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The error of a pair with a ball of 20 mm in the image of a side, mm, and the map; without a side, of the pair."""
    phantom = brain(d)
    images = {"fixed": phantom.fixed.copy(), "moving": phantom.moving.copy()}
    if side:
        images[side][ball_of(phantom, 10)[0]] = value
    given = left_out(phantom, side, how) if side else {}
    error, result = registered(phantom, images["fixed"], images["moving"], **given)
    return error, result.mapping.displacement_on(phantom.geometry).vectors


@pytest.mark.parametrize(
    ("d", "side", "how"),
    [(2, "fixed", "lesion"), (2, "fixed", "mask"), (2, "moving", "lesion"), (2, "moving", "mask"),
     (3, "fixed", "lesion"), (3, "moving", "mask")],
)  # fmt: skip
def test_around_a_lesion_the_error_is_as_without(d: int, side: str, how: str) -> None:
    phantom = brain(d)
    points, (_, centre) = phantom.geometry.grid(), ball_of(phantom, 10)
    there = points if side == "fixed" else points + phantom.displacement
    near = (np.linalg.norm(there - centre, axis=-1) <= 20) & (phantom.fixed_labels > 0)
    assert around_a_ball(d, side, how, 250.0)[0][near].mean() < 1.2 * around_a_ball(d)[0][near].mean()


@SIDES
@pytest.mark.parametrize("how", ["lesion", "mask"])
def test_what_a_lesion_looks_like_does_not_matter(side: str, how: str) -> None:
    assert np.array_equal(*(around_a_ball(2, side, how, value)[1] for value in (250.0, 20.0)))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ops.Lncc]:
    """The metrics that are made from now on."""
    out: list[ops.Lncc] = []
    make = ops.Lncc.make

    def noted(*args: Any, **options: Any) -> ops.Lncc:
        out.append(make(*args, **options))
        return out[-1]

    monkeypatch.setattr(ops.Lncc, "make", noted)
    return out


def test_windows_are_centred_anywhere_without_lesions(made: list[ops.Lncc]) -> None:
    phantom = brain(2)
    registered(phantom, phantom.fixed, phantom.moving, linear="none")
    assert made
    assert all(lncc.centres is None for lncc in made)


@SIDES
@pytest.mark.parametrize("how", ["lesion", "mask"])
def test_windows_that_are_centred_in_a_lesion_count(side: str, how: str, made: list[ops.Lncc]) -> None:
    """In every level."""
    phantom = brain(2)
    registered(phantom, phantom.fixed, phantom.moving, linear="none", **left_out(phantom, side, how))
    levels = [lncc for lncc in made if lncc.centres is not None]
    assert len({tuple(lncc.fixed.shape) for lncc in levels}) == 3
    for lncc in levels:
        assert lncc.weight is not None
        assert lncc.centres is not None
        hidden = float(((lncc.weight < 0.5) & (lncc.centres > 0.5)).sum())
        fewer = reference.lncc(lncc.fixed, lncc.fixed, lncc.weight, lncc.radius, lncc.epsilon)[1]
        assert lncc.count > float(fewer) + 0.5 * hidden > float(fewer)


@pytest.mark.parametrize("steps", [(1.0, 2.0, 2.0), (2.0, 4.0, 1.5)])
@pytest.mark.parametrize("shape", [(1, 40, 44), (28, 30, 32)])
def test_a_smoothing_spline_through_a_lesion(shape: tuple[int, ...], steps: tuple[float, ...]) -> None:
    z, y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in shape), indexing="ij")
    truth = torch.stack([torch.sin(x / 9) + y / 10, (x * y) / 90.0, torch.cos((y + x) / 9)]).double()
    distance = (x**2 + y**2 + z**2).double().sqrt()
    noise = 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    found = truth + torch.where(distance <= 5, truth.new_tensor(2.0), torch.where(distance < 12, noise, 0.0))
    free = distance < 9
    change = lesions._smoothing_change(found, distance > 5, free, list(steps))
    before, after = ((u - truth).norm(dim=0)[distance <= 5].mean() for u in (found, found + change))
    assert after < 0.4 * before
    around = free & (distance > 5)
    assert (found + change - truth).norm(dim=0)[around].mean() < 0.9 * (found - truth).norm(dim=0)[around].mean()
    assert not change[:, ~free].any()
    # What bends nowhere stays as it is.
    plane = torch.stack([x + y, 2.0 * y, x - y]).double()
    assert lesions._smoothing_change(plane, distance > 5, free, list(steps)).abs().max() < 1e-9


@pytest.mark.parametrize(("d", "side"), [(2, "fixed"), (2, "moving"), (3, "moving")])
def test_a_large_lesion_is_smoothed_through(d: int, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearer to the truth with it; free of folds; and nothing changes where the images are seen."""
    phantom = brain(d)
    points, (ball, centre) = phantom.geometry.grid(), ball_of(phantom, 20)
    image = (phantom.fixed if side == "fixed" else phantom.moving).copy()
    image[ball] = 250
    pair = (image, phantom.moving) if side == "fixed" else (phantom.fixed, image)
    given = {f"{side}_lesion": to_sitk(ball.astype(np.uint8), phantom.geometry)}
    there = points if side == "fixed" else points + phantom.displacement
    within = (np.linalg.norm(there - centre, axis=-1) <= 20) & (phantom.fixed_labels > 0)
    error, result = registered(phantom, *pair, linear="none", **given)
    assert result.report.folded_voxels == 0
    monkeypatch.setattr(deformable, "smooth_through_lesions", lambda field, *_: field)
    without, plain = registered(phantom, *pair, linear="none", **given)
    assert error[within].mean() < 0.98 * without[within].mean()
    found, before = (r.mapping.displacement_on(phantom.geometry).vectors for r in (result, plain))
    changed = np.abs(found - before).max(-1) > 1e-3
    assert changed.any()
    assert not changed[np.linalg.norm(there - centre, axis=-1) > 20 + 2 * max(phantom.geometry.spacing)].any()


@pytest.mark.parametrize("axis", range(3))
def test_a_lesion_on_the_faces_is_not_enclosed(axis: int) -> None:
    inside = torch.zeros((5, 6, 7), dtype=torch.bool)
    inside[2, 2:4, 3] = True
    alone = inside.clone()
    assert torch.equal(lesions._enclosed(inside), alone)
    inside.select(axis, -1)[2, 3] = True
    assert int((inside & ~lesions._enclosed(inside)).sum()) == 1
    assert torch.equal(lesions._enclosed(inside), alone)
    inside[2, 2, 3:] = True  # joins it to a face
    assert not lesions._enclosed(inside)[alone].any()
    plane = alone[2:3]  # of a single plane, which is no face
    assert torch.equal(lesions._enclosed(plane), plane)


@pytest.mark.parametrize("shape", [(1, 80, 90), (60, 64, 70)])
def test_lesions_that_lie_apart_are_parts(shape: tuple[int, ...]) -> None:
    inside = torch.zeros(shape, dtype=torch.bool)
    boxes = [(slice(20, 26), slice(20, 24)), (slice(20, 26), slice(34, 38)), (slice(50, 55), slice(60, 66))]
    for y, x in boxes:
        inside[:, y, x] = True
    found = list(lesions._apart(inside))
    together = torch.zeros_like(inside)  # their surroundings touch
    together[:, 20:26, 20:38] = inside[:, 20:26, 20:38]
    assert len(found) == 2
    assert any(torch.equal(part, together) for part in found)
    assert any(torch.equal(part, inside & ~together) for part in found)
    assert list(lesions._apart(torch.zeros_like(inside))) == []


@SIDES
def test_a_lesion_on_a_face_of_the_image_leaves_others_alone(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spline goes through one that is enclosed, and through one where the block that is worked on ends."""
    phantom = brain(2)
    fixed, moving = (
        sitk.ConstantPad(to_sitk(values, phantom.geometry), [14, 14], [14, 14])
        for values in (phantom.fixed, phantom.moving)
    )
    spacing, origin = np.array(fixed.GetSpacing()), np.array(fixed.GetOrigin())
    y, x = np.indices(sitk.GetArrayFromImage(fixed).shape)
    points = origin + spacing * np.stack([x, y], -1)  # its axes are those of space
    border = phantom.geometry.grid()[phantom.fixed_labels > 0][:, 1].max() - 4
    places = [np.linalg.norm(points - c, axis=-1) <= 12 for c in ([28.0, -25.0], [0.0, border])]
    places.append((abs(y - 45) < 5) & (x < 20))
    lesion = sitk.GetImageFromArray(np.logical_or.reduce(places).astype(np.uint8))
    lesion.CopyInformation(fixed)
    kept: list[VelocityField] = []
    smooth = deformable.smooth_through_lesions

    def noted(field: VelocityField, *args: Any) -> VelocityField:
        kept.extend((field, smooth(field, *args)))
        return kept[-1]

    monkeypatch.setattr(deformable, "smooth_through_lesions", noted)
    options = {"linear": "none", f"{side}_lesion": lesion}
    result = itk_nir.register(fixed, moving, preset="fast", threads=2, **options)
    assert result.report.folded_voxels == 0
    grid = kept[0].geometry.grid()  # that of the fixed image, in the units of the engine
    plain, found = (f.displacement(grid.reshape(-1, 2)).reshape(grid.shape) for f in kept)
    changed = np.linalg.norm(found - plain, axis=-1) > 1e-3
    if side == "moving":  # where the fixed image shows them
        there = kept[0].geometry.physical_to_index((grid + plain).reshape(-1, 2)).reshape(grid.shape)
        column, row = np.moveaxis(np.rint(there).astype(int).clip(0, np.array(fixed.GetSize()) - 1), -1, 0)
        places = [place[row, column] for place in places]
    assert [bool(changed[place].any()) for place in places] == [True, True, False]


def test_lesions_that_leave_nothing_are_refused() -> None:
    phantom = brain_phantom(2, (32, 36), seed=3)
    grid, ones = phantom.geometry, np.ones(phantom.fixed.shape, np.uint8)
    fixed, moving = to_sitk(phantom.fixed, grid), to_sitk(phantom.moving, grid)
    with pytest.raises(InputError, match="fixed lesion: leaves nothing of its image;"):
        itk_nir.register(fixed, moving, fixed_lesion=to_sitk(ones, grid))
    part = ones.copy()
    part[:10] = 0
    with pytest.raises(InputError, match="moving lesion: leaves nothing of its image inside the mask"):
        itk_nir.register(fixed, moving, moving_mask=to_sitk(part, grid), moving_lesion=to_sitk(part, grid))
    with pytest.raises(OptionError, match="'paper' knows no moving_lesion"):
        itk_nir.register(fixed, moving, preset="paper", moving_lesion=to_sitk(part, grid))


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 40), (20, 30, 25)])
def test_holes_are_what_no_path_joins_to_the_border(shape: tuple[int, ...]) -> None:
    from scipy.ndimage import binary_fill_holes

    mask = np.random.default_rng(0).random(shape) > 0.6
    found = holes(mask.astype(np.float32))
    assert np.array_equal(found, binary_fill_holes(mask) & ~mask)
    assert found.sum() > 30
    few = np.ones(shape, np.float32)
    few[(10,) * len(shape)] = 0
    assert not holes(few).any()


# --- halves ----------------------------------------------------------------------------------------------------------


@SIDES
@pytest.mark.parametrize("masked", [False, True])
def test_half_an_object(side: str, masked: bool) -> None:
    phantom = brain(3)
    points, grid = phantom.geometry.grid(), phantom.geometry
    keep = points[..., 1] > 0
    images = {"fixed": phantom.fixed, "moving": phantom.moving}
    images[side] = images[side] * keep
    there = points if side == "fixed" else points + phantom.displacement
    both = (phantom.fixed_labels > 0) & (there[..., 1] > 0)
    options = {f"{side}_mask": to_sitk(keep.astype(np.uint8), grid)} if masked else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error, result = registered(phantom, images["fixed"], images["moving"], **options)
    assert error[both].mean() < 1.0
    vectors = np.moveaxis(result.mapping.displacement_on(grid).vectors, -1, 0).copy()
    determinant = jacobian_determinant(torch.from_numpy(vectors), grid.spacing)
    assert 0.2 < float(determinant.min()) < float(determinant.max()) < 5
    told = [str(w.message) for w in caught if issubclass(w.category, VerdictWarning)]
    said = f"the images share only part of what they show: {side} image is cut off across y"
    assert (said in str(result.report.verdict)) is not masked
    assert any(said in text for text in told) is not masked


def test_only_cuts_are_cuts() -> None:
    y, x = np.mgrid[:60, :50]
    disc = (x - 25) ** 2 + (y - 28) ** 2 < 400
    assert beyond_cuts(disc, 0)[1] == []
    half = disc & (y < 30)
    beyond, axes = beyond_cuts(half, 0)
    assert axes == ["y"]
    assert np.array_equal(beyond, y >= 30)
    square = (abs(x - 25) < 12) & (abs(y - 28) < 15)
    assert beyond_cuts(square, 0)[1] == [], "cut at both ends: the object is a box"
    assert beyond_cuts(half[:30], 0)[1] == [], "the image ends there"


@pytest.mark.parametrize("glass", [0.0, 200.0])
def test_picture_on_a_canvas_of_its_glass_is_not_cut(glass: float) -> None:
    """Glass has a grain, which ends where the picture does; a tissue that is cut there is another matter."""
    y, x = np.mgrid[:90, :120]
    picture = (abs(y - 45) < 36) & (abs(x - 52) < 44)
    grain = np.random.default_rng(0).normal(0, 1.2, y.shape).round()
    # At one end of the picture most of the glass has just the value of the canvas.
    grain[(x < 20) & ((x + y) % 3 > 0)] = 0
    tissue = (y - 45) ** 2 + (x - 50) ** 2 < 30**2
    image = np.where(picture, glass + grain + 90 * tissue, glass)
    assert beyond_cuts(image != glass, 0)[1] == ["x"], "what differs at all seems cut"
    assert beyond_cuts(image, glass)[1] == []
    beyond, axes = beyond_cuts(np.where(x < 50, image, glass), glass)
    assert axes == ["x"]
    assert np.array_equal(beyond, x >= 50)


def test_cuts_through_many_planes() -> None:
    """Cross-sections are added up as bytes: 512 of them would be none."""
    _, y, x = np.mgrid[:512, :30, :20]
    half = (y >= 10) & (abs(x - 10) < 29 - y)
    beyond, axes = beyond_cuts(half, 0)
    assert axes == ["y"]
    assert np.array_equal(beyond, y < 10)
    assert beyond_cuts(np.moveaxis(half, 0, 2), 0)[1] == ["z"]
    assert beyond_cuts(np.moveaxis(half, 0, 1), 0)[1] == ["z"]


def test_a_border_that_cuts_through_what_the_other_image_shows_whole() -> None:
    y, x = np.mgrid[:60, :50]
    disc = ((x - 25) ** 2 + (y - 28) ** 2 < 400).astype(float)
    assert cut_by_borders(disc[:30], disc) == (["y"], [])
    assert cut_by_borders(disc[:, 24:], disc) == (["x"], [])
    assert cut_by_borders(disc, disc[:30]) == ([], ["y"]), "it is the other one that is cut"
    assert cut_by_borders(disc[:30], disc[:35]) == ([], []), "both are cut"
    assert cut_by_borders(disc[20:40], disc) == ([], []), "a slab, as slices are taken"
    assert cut_by_borders(disc[:47], disc) == ([], []), "a face that small is an end"
    noisy = disc + 0.01 * np.random.default_rng(0).standard_normal(disc.shape)
    assert cut_by_borders(noisy[:30], noisy) == ([], []), "the background has no one value"


@pytest.mark.parametrize("kind", ["tail", "rim", "wedge", "air"])
def test_what_is_no_object_is_cut_by_no_border(kind: str) -> None:
    """Tails of smoothing and what a resampled image is filled with beyond another one, beside the background."""
    y, x = np.mgrid[:60, :50]
    apart = (x - 25) ** 2 + (y - 28) ** 2
    disc = np.where(apart < 400, 100.0 + (7 * x + 3 * y) % 40, 0.0)
    odd = disc + 10
    if kind == "tail":
        odd = disc + 100 * np.exp(-((x - 33) ** 2 + (y - 28) ** 2) / 30.0)
    elif kind == "rim":
        odd[:, :3] = 0
    elif kind == "wedge":
        odd[30:, :3] = 0
    else:
        odd = disc - 1000
        odd[:, :2] = -1024
    assert cut_by_borders(odd, disc) == ([], [])
    assert cut_by_borders(disc, odd) == ([], [])
