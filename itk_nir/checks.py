"""What can be wrong with a pair of images, said before any work is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.engine.dilation import enclosed
from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.geometry import Geometry
from itk_nir.images import Volume
from itk_nir.intensities import odd_intensities
from itk_nir.resample import nearest_on
from itk_nir.transforms.model import CompositeTransform, LinearTransform

#: Voxels along an axis: fewer are refused; fewer are warned of.
FEWEST, FEW = 4, 16

#: Points along an axis at which the overlap of two grids is measured.
SAMPLES = 16

#: The share of its largest cross-section from which on the end of an object is a cut.
CUT_SHARE = 0.5

#: Share of the range of an object below which a voxel is background, and how its range is told: by this percentile of
#: what differs from the background, of so many samples along each axis.
FAINT, RANGE_PERCENTILE, RANGE_SAMPLES = 0.01, 99, 64

#: The same share where an image was put on a canvas of one value: the grain of glass, or of air, is no object.
GRAIN = 0.05

#: The share of it that a border of an image may have of an object that lies within the image.
TOUCH_SHARE = 0.05


def check_dimensions(fixed: Volume, moving: Volume, initial: CompositeTransform | None = None) -> None:
    """Refuse two images, or an initial transform, of unlike dimensions.

    Parameters
    ----------
    fixed, moving : Volume
        The two images.
    initial : CompositeTransform, optional
        The initial transform.

    Raises
    ------
    InputError
        Which is what.
    """
    if fixed.dimension != moving.dimension:
        raise InputError(
            f"{moving.name}: is {moving.dimension}D but {fixed.name} is {fixed.dimension}D; give two images of one "
            "dimension"
        )
    if initial is not None and initial.dimension != fixed.dimension:
        raise InputError(
            f"initial transform: is {initial.dimension}D but {fixed.name} is {fixed.dimension}D; give a "
            f"{fixed.dimension}D transform"
        )


def check_pair(
    fixed: Volume, moving: Volume, initial: CompositeTransform | None = None, *, linear: str = "affine"
) -> list[Finding]:
    """Refuse what cannot be registered; tell what is odd. Masks are `match_mask`'s to judge.

    Parameters
    ----------
    fixed, moving : Volume
        As `load_image` returns them: finite and scalar.
    initial : CompositeTransform, optional
        The caller's own start, fixed → moving, LPS mm.
    linear : str
        The linear stage to come; with ``"none"`` and no `initial`, images that lie apart are an error.

    Returns
    -------
    list of Finding
        What is odd.

    Raises
    ------
    InputError
        Unlike dimensions; a constant image; fewer than 4 voxels along an axis; no overlap, and no linear stage that
        could bring the images together.
    """
    check_dimensions(fixed, moving, initial)
    found = [*fixed.findings, *moving.findings]
    for image in (fixed, moving):
        found += _check_image(image)
    if initial is not None:
        found += _check_handedness(initial)
    return found + _check_overlap(fixed, moving, initial, linear)


def match_mask(mask: Volume, image: Volume) -> tuple[Volume, list[Finding]]:
    """A mask on its image's grid, as float32 zeros and ones, and what is odd about it.

    A mask on the same grid (to 1e-3 voxel: headers are rounded) is taken as it is; any other is resampled, each image
    voxel taking the nearest mask voxel, and 0 outside the mask's grid.

    Parameters
    ----------
    mask : Volume
        Above 0 where the image counts; any grid.
    image : Volume
        What it is a mask of.

    Returns
    -------
    Volume
        The mask on the image's grid.
    list of Finding
        What is odd.

    Raises
    ------
    InputError
        Unlike dimension, or no voxel above 0 on the image's grid.
    """
    if mask.dimension != image.dimension:
        raise InputError(f"{mask.name}: is {mask.dimension}D but {image.name} is {image.dimension}D; give its own mask")
    inside = mask.array > 0
    if not inside.any():
        raise InputError(f"{mask.name}: is empty; it must be above 0 where the image counts")
    found = list(mask.findings)
    if not mask.geometry.same_grid(image.geometry):
        inside = nearest_on(inside, mask.geometry, image.geometry)
        found.append(
            warning(
                f"{mask.name}: is on another grid than {image.name}",
                f"resampled to it (nearest voxel, {inside.mean():.1%} of the image inside)",
            )
        )
        if not inside.any():
            raise InputError(
                f"{mask.name}: does not reach {image.name} in physical space; check the origin and direction of both"
            )
    return replace(mask, array=inside.astype(np.float32), geometry=image.geometry), found


def holes(mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What a mask encloses but leaves out: the voxels outside it that no path outside it joins to the image's border.

    Parameters
    ----------
    mask : ndarray
        ``([D,] H, W)``, above 0.5 where the image counts.

    Returns
    -------
    ndarray
        Like `mask`, bool. Paths run along the axes. All false where there are fewer voxels than a block of three along
        each axis has: gaps that a threshold leaves.
    """
    found = enclosed(mask <= 0.5)
    return found if found.sum() >= 3**mask.ndim else np.zeros_like(found)


def beyond_cuts(image: NDArray[Any], background: float) -> tuple[NDArray[np.bool_], list[str]]:
    """Where an object was cut through, and the rest of the image filled with its background.

    An object ends in a small face; a cut is as large as the object. Where the outermost planes of the foreground across
    an axis have more than `CUT_SHARE` of its largest cross-section, at one end alone and not at the border of the
    image, the object did not end there: what lies beyond was not seen. What differs from the background by no more than
    its grain does end there wherever a picture was put on a larger canvas, and is no object (`GRAIN`).

    Parameters
    ----------
    image : ndarray
        ``([D,] H, W)``.
    background : float
        The value that it was filled with.

    Returns
    -------
    ndarray
        Like `image`, bool, true beyond the cuts.
    list of str
        The axes that are cut across: ``"x"``, ``"y"``, ``"z"``.
    """
    found = _cuts(image != background)
    sure = _cuts(_without_faint(image, background, GRAIN)) if found else {}
    axes = [axis for axis in found if axis in sure]
    beyond = np.zeros(image.shape, bool)
    for axis in axes:
        beyond[(slice(None),) * axis + (found[axis],)] = True
    return beyond, ["xyz"[image.ndim - 1 - axis] for axis in axes]


def _cuts(foreground: NDArray[np.bool_]) -> dict[int, slice]:
    """The planes beyond a cut, for each axis of the array that an object is cut across."""
    found = {}
    for axis, area in enumerate(_cross_sections(foreground)):
        there = np.flatnonzero(area)
        if len(there) < FEWEST:
            continue
        first, last = int(there[0]), int(there[-1])
        least = CUT_SHARE * area.max()
        begins, ends = (min(area[a], area[b]) > least for a, b in ((first, first + 1), (last, last - 1)))
        if begins and not ends and first > 0:
            found[axis] = slice(0, first)
        elif ends and not begins and last < len(area) - 1:
            found[axis] = slice(last + 1, None)
    return found


def cut_by_borders(first: NDArray[Any], second: NDArray[Any]) -> tuple[list[str], list[str]]:
    """The axes across which the border of either image cuts through what the other one shows whole.

    The object fills one border across an axis to more than `CUT_SHARE` of its largest cross-section and keeps away from
    the border at the other end, and from all borders of the other image. Where anything but the background touches
    those, both are views of a part, and nothing is said; nor where a border is filled by a tail, or by what an image
    was filled with beyond another one (`_without_faint`).

    Parameters
    ----------
    first, second : ndarray
        ``([D,] H, W)``, the two images on their own grids; no axis has to run as in the other.

    Returns
    -------
    tuple of list of str
        ``"x"``, ``"y"``, ``"z"`` of `first`, and of `second`.
    """
    images = first, second
    backgrounds = [float(np.median(np.concatenate([b.ravel() for b in _borders(image)]))) for image in images]
    found = _cut_axes(*(image != background for image, background in zip(images, backgrounds, strict=True)))
    if any(found):
        sure = _cut_axes(*(_without_faint(*known) for known in zip(images, backgrounds, strict=True)))
        found = tuple([axis for axis in axes if axis in there] for axes, there in zip(found, sure, strict=True))
    return found[0], found[1]


def _cut_axes(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[list[str], ...]:
    """The axes of both foregrounds across which one border alone cuts through what the other shows whole."""
    d, both = first.ndim, (_filled_ends(first), _filled_ends(second))
    cut: list[list[str]] = [[], []]
    for ends, other, found in zip(both, reversed(both), cut, strict=True):
        if max(map(max, other)) <= TOUCH_SHARE:
            across = [k for k, e in enumerate(ends) if max(e) > CUT_SHARE and min(e) <= TOUCH_SHARE]
            found += ["xyz"[d - 1 - axis] for axis in across]
    return tuple(cut)


def _borders(image: NDArray[Any]) -> list[NDArray[Any]]:
    return [image.take(end, axis=axis) for axis in range(image.ndim) for end in (0, -1)]


def _without_faint(image: NDArray[Any], background: float, share: float = FAINT) -> NDArray[np.bool_]:
    """The foreground without tails of smoothing and of interpolation, and without what an image was filled with."""
    steps = tuple(slice(None, None, 1 + n // RANGE_SAMPLES) for n in image.shape)
    apart = np.abs(image[steps].astype(np.float64) - background)
    seen = apart[apart > 0]
    # A few very bright voxels do not tell the range.
    faint = share * float(np.percentile(seen, RANGE_PERCENTILE)) if seen.size else 0.0
    foreground = (image > background + faint) | (image < background - faint)
    for plane in _borders(image):
        rim = plane[(plane > background + faint) | (plane < background - faint)]
        # One value alone is what a resampled image is filled with beyond another one, unless the object has it too.
        if rim.size and rim.min() == rim.max():
            within = foreground & (image != rim[0])
            foreground = within if 2 * within.sum() >= foreground.sum() else foreground
    return np.asarray(foreground)


def _filled_ends(foreground: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """How much of its largest cross-section the object fills of both borders across each axis of the array."""
    areas = [(area, max(1, int(area.max()))) for area in _cross_sections(foreground)]
    return [(area[0] / largest, area[-1] / largest) for area, largest in areas]


def _cross_sections(foreground: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Across each axis of the array, how many voxels of the foreground every plane has."""
    planes = foreground.reshape(-1, *foreground.shape[-2:])
    # Bytes are added up as bytes, as many as cannot overflow: numpy adds up many more of them at once than of integers.
    sums = [planes[k : k + 255].sum(axis=0, dtype=np.uint8) for k in range(0, len(planes), 255)]
    shadow = np.sum(sums, axis=0, dtype=np.int64)
    across = [shadow.sum(axis=1), shadow.sum(axis=0)]
    if foreground.ndim == 2:
        return across
    return [np.array([np.count_nonzero(plane) for plane in planes], np.int64), *across]


def match_labels(labels: Volume, image: Volume) -> tuple[Volume, list[Finding]]:
    """A label map on its image's grid, each voxel taking the label of the nearest one, and what is odd about it.

    Parameters
    ----------
    labels : Volume
        Whole numbers, 0 outside all regions; any grid.
    image : Volume
        What it is a label map of.

    Returns
    -------
    Volume
        The label map on the image's grid, int64; 0 outside its own grid.
    list of Finding
        What is odd.

    Raises
    ------
    InputError
        Unlike dimension, values that are no whole numbers, or no region on the image's grid.
    """
    if labels.dimension != image.dimension:
        raise InputError(f"{labels.name}: is {labels.dimension}D but {image.name} is {image.dimension}D")
    whole = np.rint(labels.array).astype(np.int64)
    if not np.array_equal(whole, labels.array):
        raise InputError(f"{labels.name}: has values that are no whole numbers; give a label map, 0 outside regions")
    found = list(labels.findings)
    if not labels.geometry.same_grid(image.geometry):
        whole = np.rint(nearest_on(whole.astype(np.float64), labels.geometry, image.geometry)).astype(np.int64)
        found.append(warning(f"{labels.name}: is on another grid than {image.name}", "resampled to it (nearest voxel)"))
    if not whole.any():
        raise InputError(f"{labels.name}: has no voxel but 0 on the grid of {image.name}; check that they belong")
    return replace(labels, array=whole, geometry=image.geometry), found


def overlap(fixed: Geometry, moving: Geometry, initial: CompositeTransform | None = None) -> float:
    """Share of the fixed grid that `initial` takes into the moving grid.

    Measured at `SAMPLES` points an axis.

    Parameters
    ----------
    fixed, moving : Geometry
        The two grids.
    initial : CompositeTransform, optional
        Fixed → moving, LPS mm; the identity where left out.

    Returns
    -------
    float
        0 to 1.
    """
    return float(samples_inside(fixed, moving, initial)[1].mean())


def samples_inside(
    fixed: Geometry, moving: Geometry, initial: CompositeTransform | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Which of some points of the fixed grid `initial` takes into the moving grid.

    Parameters
    ----------
    fixed, moving, initial
        As of `overlap`.

    Returns
    -------
    index : ndarray
        ``(N, d)``, voxel indices of the fixed grid: `SAMPLES` an axis, or its voxels where they are fewer.
    inside : ndarray
        ``(N,)`` bool.
    """
    axes = [np.linspace(0, n - 1, min(n, SAMPLES)) for n in fixed.size]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.dimension)
    points = fixed.index_to_physical(index)
    return index, moving.contains(points if initial is None else initial.map(points))


def _check_image(image: Volume) -> list[Finding]:
    low, high = map(float, image.extremes)
    if low == high:
        value = low * image.scale + float(image.offset)
        raise InputError(f"{image.name}: is constant (every voxel is {value:g}); give an image with some contrast")
    size = image.geometry.size
    if min(size) < FEWEST:
        hint = "; give one slice of each image, such as image[:, :, 1:2], or more" if image.dimension == 3 else ""
        raise InputError(
            f"{image.name}: has size {'x'.join(map(str, size))}, at least {FEWEST} voxels an axis are needed{hint}"
        )
    if min(size) < FEW:
        text = f"{image.name}: has only {min(size)} voxels along one axis"
        return [warning(text, "expect little from that direction", voxels=min(size)), *odd_intensities(image)]
    return odd_intensities(image)


def _check_handedness(initial: CompositeTransform) -> list[Finding]:
    mirrored = sum(np.linalg.det(s.matrix[:-1, :-1]) < 0 for s in initial.transforms if isinstance(s, LinearTransform))
    if mirrored % 2 == 0:
        return []
    text = "initial transform: mirrors (its determinant is below 0), which turns left and right round"
    return [warning(text, "check the signs of its matrix, unless one of the images is mirrored")]


def _check_overlap(fixed: Volume, moving: Volume, initial: CompositeTransform | None, linear: str) -> list[Finding]:
    share = overlap(fixed.geometry, moving.geometry, initial)
    if share > 0.25:
        return []
    where = "in physical space" if initial is None else "after the initial transform"
    if share == 0 and linear == "none":
        remedy = "use linear='affine', which first brings the centres together" if initial is None else "check it"
        raise InputError(f"{moving.name}: does not overlap {fixed.name} {where}; {remedy}")
    return [warning(f"{moving.name}: covers only {share:.0%} of {fixed.name} {where}", share=share)]
