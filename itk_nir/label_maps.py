"""Whether an image holds labels, which must never be interpolated, or intensities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Voxels that are looked at, at most.
_SAMPLE = 1 << 18
#: More values than this share of the voxels that are looked at are no labels.
_MOST_VALUES = 0.2
#: A value forms regions where at least this share of its neighbours has it too.
_OWN = 0.4
#: Share of the steps between neighbours that go to the next value in order: above it values are graded, not named.
_GRADED = 0.9
#: So many values may be named in the order in which they lie beside each other: vertebrae, layers.
_FEW_VALUES, _SOME_VALUES = 4, 40
#: Share of the voxels that differ from the commonest value; below it structures may be thin.
_SPARSE = 0.05


def is_label_map(array: NDArray[Any]) -> bool:
    """Whether an image looks like labels rather than intensities.

    Labels fill regions: within them neighbours are equal, and where two regions meet the step has nothing to do with
    the order of the values. Intensities vary from voxel to voxel or, where they are smooth, from one value to the next.
    The commonest value is taken for the background, whatever it is, so a blanked image is judged by what is left. The
    type of the pixels does not matter: labels are often stored as floating-point numbers, or scaled.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``. NaN or infinite values are never labels.

    Returns
    -------
    bool
        True for two values at most.

    Examples
    --------
    >>> regions = np.kron(np.array([[0, 17], [53, 4]]), np.ones((8, 8)))
    >>> is_label_map(regions), is_label_map(0.5 * regions), is_label_map(np.arange(256.0).reshape(16, 16))
    (True, True, False)
    """
    if array.dtype.kind == "b":
        return True
    if array.dtype.kind not in "iuf" or not array.size:
        return False
    rows = _some_rows(array)
    values, ranks = _ranked(rows)
    if values is None:
        return False
    if len(values) <= 2 and rows.size == array.size:
        return True
    commonest = int(np.bincount(ranks.ravel()).argmax())
    share = float(np.count_nonzero(ranks != commonest)) / ranks.size
    if share < _SPARSE:
        return _sparse_labels(array, values[commonest])
    if len(values) <= 2:
        return _has_two_values(array, values)
    return _in_regions(ranks, len(values), commonest) and not _graded(ranks, len(values), commonest)


def _some_rows(array: NDArray[Any]) -> NDArray[Any]:
    """Neighbouring rows of neighbouring planes from all over the image, ``(N, 2, 2, W)``, or a small one as a whole,
    ``(1, D, H, W)``; one of them where it has no more."""
    planes = array.reshape(-1, *array.shape[-2:])
    if array.size <= _SAMPLE:
        return planes[None]
    d, h = (min(2, n) for n in planes.shape[:2])
    across = planes.shape[1] // h
    blocks = planes.shape[0] // d * across
    wanted = max(1, _SAMPLE // (d * h * planes.shape[2]))
    picked = np.unique(np.linspace(0, blocks - 1, min(wanted, blocks)).astype(int))
    plane, row = np.divmod(picked[:, None, None], across)
    return planes[d * plane + np.arange(d)[:, None], h * row + np.arange(h)]


def _ranked(rows: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[np.int64]]:
    """The distinct values in order and the place of every voxel among them; None where they are too many."""
    none = np.zeros(0, np.int64)
    flat = rows.ravel()
    if flat.dtype.kind == "f":
        if not np.isfinite(flat).all():
            return None, none
        # A look at some of them tells most images of intensities from labels.
        few = flat[:: max(1, flat.size // 4096)]
        if len(few) > 512 and len(np.unique(few)) > 0.5 * len(few):
            return None, none
        if np.abs(flat).max() < 1 << 30 and np.array_equal(whole := flat.astype(np.int32), flat):
            flat = whole
    if flat.dtype.kind in "iu" and int(flat.max()) - int(low := flat.min()) < 1 << 16:
        above = (flat - low if flat.dtype.itemsize == 8 else flat.astype(np.int64) - int(low)).astype(np.intp)
        present = np.bincount(above) > 0
        values = low + np.flatnonzero(present).astype(flat.dtype)
        return values, (np.cumsum(present) - 1)[above].reshape(rows.shape)
    values, ranks = np.unique(flat, return_inverse=True)
    if len(values) > max(512, _MOST_VALUES * flat.size):
        return None, none
    return values, ranks.reshape(rows.shape)


def _neighbours(ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of both voxels of all pairs of neighbours: within a row, between two rows and between two planes."""
    before = (ranks[:, :, :, :-1], ranks[:, :, :-1], ranks[:, :-1])
    after = (ranks[:, :, :, 1:], ranks[:, :, 1:], ranks[:, 1:])
    a, b = (np.concatenate([part.ravel() for part in side]) for side in (before, after))
    return a, b


def _in_regions(ranks: NDArray[np.int64], count: int, commonest: int) -> bool:
    """Whether the values, and the voxels beside the commonest value, mostly have neighbours of their own value."""
    a, b = _neighbours(ranks)
    ends = np.bincount(a, minlength=count) + np.bincount(b, minlength=count)
    own = 2 * np.bincount(a[a == b], minlength=count)
    kept = np.arange(count) != commonest
    kept &= ends > 0
    if not kept.any():
        return False
    share = own[kept] / ends[kept]
    # Each value has one voice: what is cut off at one end of the range is one value among many.
    return bool(np.median(share) >= _OWN and own[kept].sum() >= _OWN * ends[kept].sum())


def _graded(ranks: NDArray[np.int64], count: int, commonest: int) -> bool:
    """Whether neighbours that differ are mostly neighbours in the order of the values, as in a smooth image."""
    if count <= _FEW_VALUES:
        return False
    a, b = _neighbours(ranks)
    differ = a != b
    steps = np.abs(a[differ] - b[differ]) == 1
    if not len(steps):
        return False
    if steps.mean() >= _GRADED:
        return True
    if count <= _SOME_VALUES:
        return False
    inside = differ & (a != commonest) & (b != commonest)
    a, b = a[inside], b[inside]
    # A noisy grey level may skip one. Each value has one voice: two large structures side by side may be numbered so.
    near = np.abs(a - b) <= 2
    ends, good = (
        np.bincount(a, weights, minlength=count) + np.bincount(b, weights, minlength=count) for weights in (None, near)
    )
    met = ends > 0
    return bool(met.any() and np.median(good[met] / ends[met]) >= 0.5)


def _has_two_values(array: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether all of an image has the values of the part that was looked at, or else does as a sparse one."""
    other = array != values[0]
    if len(values) == 2:
        other &= array != values[1]
    left = array[other]
    if not left.size:
        return True
    return len(np.unique(left[: 1 << 16])) <= max(1, int(_MOST_VALUES * min(left.size, 1 << 16)))


def _sparse_labels(array: NDArray[Any], background: Any) -> bool:
    """The same for an image that is nearly all background: its structures may be thin, so that they have few equal
    neighbours along the axes, but they hold together and their neighbours in the foreground are equal."""
    inside = array != background
    found = array[inside]
    if not found.size:
        return True
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        return False
    if found.size > _SAMPLE:
        found = found[:: found.size // _SAMPLE]
    values = np.unique(found)
    if len(values) == 1:
        return True
    equal = pairs = near = 0
    for shift in _half_of_the_neighbours(array.ndim):
        here, there = (_shifted(inside, shift, k) for k in (0, 1))
        both = here & there
        if not both.any():
            continue
        a, b = _shifted(array, shift, 0)[both], _shifted(array, shift, 1)[both]
        pairs += len(a)
        equal += int(np.count_nonzero(a == b))
        places = np.searchsorted(values, a), np.searchsorted(values, b)
        near += int(np.count_nonzero(np.abs(places[0] - places[1]) == 1))
    if pairs < 0.1 * found.size:
        # Single points: each may be a landmark of its own.
        return bool(found.size <= 1000 and np.array_equal(np.rint(found), found))
    if len(values) > _SOME_VALUES and near >= 0.5 * max(1, pairs - equal):
        return False
    return bool(equal >= 0.5 * pairs and len(values) <= max(2, _MOST_VALUES * found.size))


def _half_of_the_neighbours(d: int) -> list[tuple[int, ...]]:
    """One of each two opposite steps to a neighbour, diagonal ones too."""
    steps = [tuple(s) for s in np.ndindex(*(3,) * d)]
    return [tuple(k - 1 for k in s) for s in steps[len(steps) // 2 + 1 :]]


def _shifted(array: NDArray[Any], shift: tuple[int, ...], side: int) -> NDArray[Any]:
    """The part of an array that has a neighbour at `shift` (side 0), or that neighbour (side 1)."""
    cut = []
    for s in shift:
        first, second = (slice(None, -1), slice(1, None)) if s > 0 else (slice(1, None), slice(None, -1))
        cut.append(slice(None) if s == 0 else (first, second)[side])
    return array[tuple(cut)]
