"""Where the linear stage may begin: shifts, turns and sizes that bring two images together in one sense or another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Intensity, Pair
from itk_nir.engine.level_grids import is_resized
from itk_nir.engine.linear_map import cross_matrix
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: Degrees between neighbouring turns of the search, about.
TURN = 36.0

#: How far centres of mass are shifted against each other, as a share of the standard deviation of the mass.
BESIDE = 0.5


def as_they_lie(pair: Pair) -> F64:
    """The identity.

    Parameters
    ----------
    pair : Pair
        The images.

    Returns
    -------
    ndarray
        ``(d + 1, d + 1)`` LPS.
    """
    return np.eye(pair.fixed_geometry.dimension + 1)


@dataclass(frozen=True)
class Mass:
    """Where what stands out from the background of an image lies.

    Parameters
    ----------
    centre : ndarray
        ``(d,)`` LPS mm.
    covariance : ndarray
        ``(d, d)`` LPS mm².
    """

    centre: F64
    covariance: F64


def masses(pair: Pair) -> tuple[Mass, Mass]:
    """Of the fixed and of the moving image, under their masks.

    A mask of one image alone may show a part of what the other image shows whole, as one of two lungs, or mark the
    object that is all that the other one shows, as the brain in a head. Masses of like extent belong on each other: the
    masks count unless the whole images are more alike in that. Masks of both images mark the same as a rule, and count
    unless their extents differ much.

    Parameters
    ----------
    pair : Pair
        The images.

    Returns
    -------
    tuple of Mass
    """
    seen = _mass(pair, True), _mass(pair, False)
    both = pair.fixed_weight is not None and pair.moving_weight is not None
    if not pair.masked or (both and not is_resized(np.exp(_unlike_extents(pair, *seen)))):
        return seen
    # What was measured inside of the mask says nothing of the rest.
    whole = replace(
        pair.without_masks(),
        fixed_intensity=Intensity.of(pair.fixed, None, pair.fixed_lesion),
        moving_intensity=Intensity.of(pair.moving, None, pair.moving_lesion),
    )
    return min(seen, (_mass(whole, True), _mass(whole, False)), key=lambda two: _unlike_extents(pair, *two))


def shifted(pair: Pair, fixed: Mass, moving: Mass) -> list[F64]:
    """The shifts that lay the centres of the two grids, and of the two masses, on each other.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` follows what is found here.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS each.
    """
    f, m = pair.fixed_geometry, pair.moving_geometry
    out = []
    for a, b in ((f.centre, m.centre), (fixed.centre, moving.centre)):
        start = as_they_lie(pair)
        start[:-1, -1] = _back(pair, b) - a
        out.append(start)
    return out


def along_principal_axes(pair: Pair, fixed: Mass, moving: Mass, mirror: bool = False) -> list[F64]:
    """The rotations about the centre of mass that lay the principal axes of the two masses on each other.

    Parameters
    ----------
    pair : Pair
        The images.
    fixed, moving : Mass
        Of `masses`.
    mirror : bool
        Those that mirror, in their place.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS; axes have no sign, so there are two in 2D and four in 3D.
    """
    d = pair.fixed_geometry.dimension
    back = np.linalg.inv(pair.linear[:-1, :-1])
    ours, theirs = (np.linalg.eigh(c)[1] for c in (fixed.covariance, back @ moving.covariance @ back.T))
    out = []
    for signs in product((1.0, -1.0), repeat=d):
        turn = theirs @ np.diag(signs) @ ours.T
        if (np.linalg.det(turn) < 0) == mirror:
            out.append(about(turn, fixed.centre, _back(pair, moving.centre)))
    return out


def turned(pair: Pair, fixed: Mass, moving: Mass) -> list[F64]:
    """Rotations about the centre of mass, everywhere about as far apart from one another.

    Parameters
    ----------
    pair : Pair
        The images.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS, the centres of mass on each other.
    """
    a, b = fixed.centre, _back(pair, moving.centre)
    d, axes = pair.fixed_geometry.dimension, pair.fixed_geometry.rotation
    turns = _plane_turns() if d == 2 else _space_turns()
    return [about(axes @ t @ axes.T, a, b) for t in turns]


def turned_beside(pair: Pair, fixed: Mass, moving: Mass) -> list[F64]:
    """The same, with the centres of mass beside each other, as those of an object are of which one image shows a part.

    Parameters
    ----------
    pair : Pair
        The images.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS.
    """
    spread = BESIDE * np.sqrt(np.trace(fixed.covariance) / len(fixed.centre))
    out = []
    for turn in turned(pair, fixed, moving):
        for step in product((-1.0, 0.0, 1.0), repeat=len(fixed.centre)):
            if any(step):
                beside = turn.copy()
                beside[:-1, -1] += spread * pair.fixed_geometry.rotation @ step
                out.append(beside)
    return out


def by_right_angles(pair: Pair, fixed: Mass) -> list[F64]:
    """Rotations by right angles about the fixed image's axes and centre of mass: what a box or a disc does not show.

    Parameters
    ----------
    pair : Pair
        The images.
    fixed : Mass
        Of `masses`.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS, 3 of a plane and 23 of a volume.
    """
    d, axes = pair.fixed_geometry.dimension, pair.fixed_geometry.rotation
    turns = [np.diag(s) @ np.eye(d)[list(p)] for p in permutations(range(d)) for s in product((1.0, -1.0), repeat=d)]
    right = [t for t in turns if np.linalg.det(t) > 0 and not np.array_equal(t, np.eye(d))]
    return [about(axes @ t @ axes.T, fixed.centre, fixed.centre) for t in right]


def size_ratio(pair: Pair, fixed: Mass, moving: Mass) -> float:
    """How many times as large as the fixed object the moving one is, along each axis in the mean.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` follows what is found here.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    float
        From the volumes of the ellipsoids of second moments; 1 where one of the two has none.
    """
    d = pair.fixed_geometry.dimension
    ours, theirs = np.linalg.det(fixed.covariance), np.linalg.det(moving.covariance)
    scale = abs(np.linalg.det(pair.linear[:-1, :-1]))
    ratio = float(theirs / (ours * scale**2)) if ours > 0 else 0.0
    return ratio ** (0.5 / d) if 0 < ratio < np.inf else 1.0


def on_each_other(pair: Pair, ratio: float, fixed: Mass, moving: Mass) -> F64:
    """The change of size that lays the centres of mass on each other and turns nothing.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` follows what is found here.
    ratio : float
        Of `size_ratio`.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    ndarray
        ``(d + 1, d + 1)`` LPS.
    """
    return about(ratio * np.eye(len(fixed.centre)), fixed.centre, _back(pair, moving.centre))


def mirrored(pair: Pair, fixed: Mass, moving: Mass) -> list[F64]:
    """Rotations about the centre of mass of an image that is mirrored.

    A section may have been turned over and lie anyhow. A volume that lost what its header said of its axes has them in
    some order and direction, or its principal axes belong on those of the other one.

    Parameters
    ----------
    pair : Pair
        The images.
    fixed, moving : Mass
        Of `masses`.

    Returns
    -------
    list of ndarray
        ``(d + 1, d + 1)`` LPS, with a determinant below 0, the centres of mass on each other.
    """
    d, axes = pair.fixed_geometry.dimension, pair.fixed_geometry.rotation
    over = axes @ np.diag([-1.0] + [1.0] * (d - 1)) @ axes.T
    back = about(over, fixed.centre, fixed.centre)
    if d == 2:
        return [turn @ back for turn in turned(pair, fixed, moving)]
    still = about(np.eye(d), fixed.centre, _back(pair, moving.centre))
    turns = [still, *(still @ turn for turn in by_right_angles(pair, fixed))]
    return [turn @ back for turn in turns] + along_principal_axes(pair, fixed, moving, mirror=True)


def about(turn: F64, fixed_point: F64, moving_point: F64) -> F64:
    """A linear map that takes one point to another.

    Parameters
    ----------
    turn : ndarray
        ``(d, d)``, as a rule a rotation.
    fixed_point, moving_point : ndarray
        ``(d,)`` LPS mm.

    Returns
    -------
    ndarray
        ``(d + 1, d + 1)`` LPS.
    """
    out = np.eye(len(turn) + 1)
    out[:-1, :-1] = turn
    out[:-1, -1] = moving_point - turn @ fixed_point
    return out


def angle(matrix: F64) -> float:
    """By how many degrees a map turns.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)``.

    Returns
    -------
    float
        0 to 180.
    """
    u, _, v = np.linalg.svd(matrix[:-1, :-1])
    turn = u @ v
    d = len(turn)
    cosine = turn[0, 0] if d == 2 else (np.trace(turn) - 1) / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def _plane_turns() -> list[F64]:
    steps = round(360 / (TURN / 2))
    angles = 2 * np.pi * np.arange(steps) / steps
    return [np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles]


def _space_turns() -> list[F64]:
    """Directions on a Fibonacci spiral for one axis, and turns about it."""
    about_axis = round(360 / TURN)
    directions = round(4 * np.pi / np.deg2rad(TURN) ** 2)
    turns = []
    for k in range(directions):
        z = 1 - (2 * k + 1) / directions
        around = k * np.pi * (3 - np.sqrt(5))
        axis = np.array([np.sqrt(1 - z * z) * np.cos(around), np.sqrt(1 - z * z) * np.sin(around), z])
        tilt = _least_turn(axis)
        for j in range(about_axis):
            t = 2 * np.pi * j / about_axis
            spin = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
            turns.append(tilt @ spin)
    return turns


def _least_turn(axis: F64) -> F64:
    """The rotation by the least angle that takes z to `axis`."""
    v = np.array([-axis[1], axis[0], 0.0])
    cross = cross_matrix(v)
    return np.asarray(np.eye(3) + cross + cross @ cross / max(1 + axis[2], 1e-9))


def _back(pair: Pair, moving_point: F64) -> F64:
    """Where the linear map of the pair takes a moving point from."""
    back = np.linalg.inv(pair.linear)
    return np.asarray(back[:-1, :-1] @ moving_point + back[:-1, -1])


def _mass(pair: Pair, fixed: bool) -> Mass:
    """That of one of the images."""
    image, weight, geometry, intensity = (
        (pair.fixed, pair.fixed_counts, pair.fixed_geometry, pair.fixed_intensity)
        if fixed
        else (pair.moving, pair.moving_counts, pair.moving_geometry, pair.moving_intensity)
    )
    mass = _standing_out(image, weight, intensity.background, intensity.range)
    total = float(mass.sum(dtype=torch.float64))  # whatever the unit of the intensities is
    d = geometry.dimension
    if total <= 0:
        return Mass(geometry.centre, np.eye(d))
    mean, square = np.zeros(d), np.zeros((d, d))
    lines = {}
    for a in range(d):
        for b in range(a, d):
            # The mass over one axis, or over two: what first and second moments need.
            others = [k for k in range(3) if k not in (2 - a, 2 - b)]
            lines[a, b] = mass.sum(others, dtype=torch.float64).cpu().numpy()
    for a in range(d):
        line = lines[a, a]
        at = np.arange(len(line))
        mean[a] = line @ at / total
        square[a, a] = line @ (at - mean[a]) ** 2 / total
    for a in range(d):
        for b in range(a + 1, d):
            plane = lines[a, b]  # axes of the array run the other way: (b, a)
            rows, columns = (np.arange(n) - m for n, m in zip(plane.shape, (mean[b], mean[a]), strict=True))
            square[a, b] = square[b, a] = rows @ plane @ columns / total
    scale = geometry.matrix[:d, :d]
    return Mass(geometry.index_to_physical(mean[None])[0], scale @ square @ scale.T)


def _unlike_extents(pair: Pair, fixed: Mass, moving: Mass) -> float:
    """The logarithm of how many times as far the one mass extends as the other, by the traces of their covariances: a
    mask of one slice has no volume."""
    back = np.linalg.inv(pair.linear[:-1, :-1])
    ours, theirs = np.trace(fixed.covariance), np.trace(back @ moving.covariance @ back.T)
    return 0.5 * abs(float(np.log(theirs / ours))) if min(ours, theirs) > 0 else np.inf


def _standing_out(image: Tensor, weight: Tensor | None, value: float | None, ends: tuple[float, float]) -> Tensor:
    """How far each voxel lies from the background (from the least without one); no bright voxel outweighs the rest."""
    low, high = ends
    image = image.clamp(low, high)
    mass = image - low if value is None else (image - value).abs_()
    return mass if weight is None else mass * torch.as_tensor(weight)


def grid_extent(geometry: Geometry) -> float:
    """Volume (area in 2D) that the voxels of a grid fill.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    float
        mm to the power of the dimension.
    """
    return float(np.prod(geometry.size) * np.prod(geometry.spacing))
