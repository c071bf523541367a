"""Two scans of the phantom's anatomy, their labels and the true deformation between them.

The moving image is the anatomy ``A`` on the moving grid, the fixed image is ``A(p + u(p))`` on the fixed grid, and
``u`` is the true displacement (fixed -> moving, LPS mm) at every fixed voxel, without any interpolation in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.phantom.anatomy import Anatomy, in_anatomy_frame
from itk_nir.phantom.waves import Array, Waves

#: Field of view in mm (x, y, z) that holds the whole brain.
_FIELD_OF_VIEW = (160.0, 192.0, 160.0)

_CHUNK = 1 << 15


@dataclass(frozen=True)
class Phantom:
    """A registration problem whose answer is known.

    Attributes
    ----------
    fixed, moving : float32 array, ``([D,] H, W)``
        The images: intensities of about 0 to 200, background near 0.
    fixed_labels, moving_labels : uint8 array, ``([D,] H, W)``
        What each voxel is, see `LABELS`; 0 is outside.
    geometry : Geometry
        The grid of `fixed`.
    moving_geometry : Geometry
        The grid of `moving`.
    displacement : float32 array, ``([D,] H, W, d)``
        True displacement in mm along the LPS axes, fixed -> moving: the anatomy at fixed point ``p`` is that at moving
        point ``p + u(p)``.
    """

    fixed: Array
    moving: Array
    fixed_labels: NDArray[np.uint8]
    moving_labels: NDArray[np.uint8]
    geometry: Geometry
    moving_geometry: Geometry
    displacement: Array


def brain_phantom(
    dimension: int = 3,
    size: Sequence[int] | None = None,
    seed: int = 0,
    spacing: float | Sequence[float] | None = None,
    *,
    geometry: Geometry | None = None,
    moving_geometry: Geometry | None = None,
    deformation: float = 9.0,
    wavelength: float = 90.0,
    noise: float = 3.0,
    bias: float = 0.08,
) -> Phantom:
    """A pair of brain-like images, their labels and the known diffeomorphism between them.

    The brain measures about 135 x 170 x 135 mm and sits at the centre of each grid, its axes along LPS.

    Parameters
    ----------
    dimension : int
        2 (an axial slice) or 3.
    size : sequence of int, optional
        Voxels ``(x, y[, z])``; by default what covers 160 x 192 (x 160) mm at `spacing`.
    seed : int
        Of the folds, the deformation, the bias fields and the noise.
    spacing : float or sequence of float, optional
        Voxel size in mm, one value or one an axis; by default what makes `size` cover the whole brain (1 mm without
        `size`).
    geometry : Geometry, optional
        The grid of the fixed image instead of `size` and `spacing`: any origin, direction and spacing.
    moving_geometry : Geometry, optional
        The grid of the moving image; by default that of the fixed image.
    deformation : float
        Largest velocity in mm; the largest displacement is a little below it.
    wavelength : float
        Shortest wavelength of the velocity in mm; the longest is twice this.
    noise : float
        Standard deviation of the Rician noise, in the unit of the intensities.
    bias : float
        Amplitude of the multiplicative bias field; each image has its own.

    Returns
    -------
    Phantom
        Both images, their labels and the true displacement.

    Raises
    ------
    ValueError
        If `dimension` is neither 2 nor 3, a grid has another dimension, `geometry` comes together with `size` or
        `spacing`, or an amplitude is negative.

    Notes
    -----
    ``u = exp(v) - id``, with ``v`` a sum of plane waves that fades towards the border of the field of view, integrated
    by the classical Runge-Kutta method of fourth order. The same arguments give the same arrays.

    Examples
    --------
    >>> from itk_nir.phantom import LABELS, brain_phantom
    >>> phantom = brain_phantom(dimension=2, size=(80, 96))
    >>> phantom.fixed.shape
    (96, 80)
    """
    if dimension not in (2, 3):
        raise ValueError(f"a phantom has dimension 2 or 3, got {dimension}")
    if min(deformation, noise, bias) < 0 or wavelength <= 0:
        raise ValueError(
            "deformation, noise and bias must not be negative and wavelength must be above zero, got "
            f"{deformation}, {noise}, {bias}, {wavelength}"
        )
    if geometry is None:
        geometry = _default_geometry(dimension, size, spacing)
    elif size is not None or spacing is not None:
        raise ValueError("give either geometry, or size and spacing")
    moving_geometry = geometry if moving_geometry is None else moving_geometry
    for grid in (geometry, moving_geometry):
        if grid.dimension != dimension:
            raise ValueError(f"a phantom of dimension {dimension} needs a grid of {dimension} axes, got {grid.size}")

    anatomy_seed, motion_seed, fixed_seed, moving_seed = np.random.SeedSequence(seed).spawn(4)
    anatomy = Anatomy(np.random.default_rng(anatomy_seed))
    centre = geometry.centre
    displacement = _displacement(geometry, np.random.default_rng(motion_seed), deformation, wavelength)
    fixed, fixed_labels = _scan(anatomy, geometry, centre, displacement, np.random.default_rng(fixed_seed), noise, bias)
    moving, moving_labels = _scan(
        anatomy, moving_geometry, centre, None, np.random.default_rng(moving_seed), noise, bias
    )
    return Phantom(fixed, moving, fixed_labels, moving_labels, geometry, moving_geometry, displacement)


def _default_geometry(dimension: int, size: Sequence[int] | None, spacing: float | Sequence[float] | None) -> Geometry:
    """A grid centred on the origin; whatever was left out is chosen so that the whole brain fits."""
    view = np.asarray(_FIELD_OF_VIEW[:dimension])
    if spacing is None:
        size_ = view if size is None else np.asarray(size, float)
        spacing_ = view / size_
    else:
        spacing_ = np.broadcast_to(np.asarray(spacing, float), (dimension,))
        size_ = np.ceil(view / spacing_) if size is None else np.asarray(size, float)
    origin = -(size_ - 1) / 2 * spacing_
    return Geometry.make([int(n) for n in size_], spacing_, origin)


def _displacement(geometry: Geometry, rng: np.random.Generator, largest: float, wavelength: float) -> Array:
    """``exp(v) - id`` at every voxel, integrated at knots 4 mm apart and carried to voxels by cubic interpolation."""
    d = geometry.dimension
    if largest == 0:
        return np.zeros((*geometry.shape, d), np.float32)
    waves = Waves(rng, wavelength, 2 * wavelength, 32, d)
    view = np.asarray(_FIELD_OF_VIEW[:d]) / 2

    def velocity(q: NDArray[np.float64]) -> NDArray[np.float64]:
        """At points relative to the centre; fades out over the last quarter of the way to the border."""
        fade = np.clip((1.1 - np.abs(q) / view) / 0.35, 0, 1)
        fade = np.prod(fade * fade * (3 - 2 * fade), axis=-1)
        return scale * fade[:, None] * waves(in_anatomy_frame(q, np.zeros(d))).T

    steps = [max(1, round(4.0 / s)) for s in geometry.spacing]
    counts = [-(-(n - 1) // step) + 4 for n, step in zip(geometry.size, steps, strict=True)]
    axes = np.meshgrid(*[np.arange(c) for c in counts[::-1]], indexing="ij")
    index = (np.stack(axes[::-1], -1) - 1.0) * np.asarray(steps)  # one knot before the first voxel, two after the last
    start = (geometry.index_to_physical(index) - geometry.centre).reshape(-1, d)

    # The largest velocity on a lattice of its own, so that the deformation does not depend on the grid.
    scale = 1.0
    probe = np.stack(np.meshgrid(*[np.arange(-v, v + 1, 8.0) for v in view], indexing="ij"), -1).reshape(-1, d)
    scale = largest / float(np.linalg.norm(velocity(probe), axis=1).max())
    q = start.copy()
    n_steps = 12
    h = 1 / n_steps
    for _ in range(n_steps):
        k1 = velocity(q)
        k2 = velocity(q + h / 2 * k1)
        k3 = velocity(q + h / 2 * k2)
        k4 = velocity(q + h * k3)
        q = q + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    knots = (q - start).reshape(*counts[::-1], d).astype(np.float32)
    for axis in range(d):
        j = d - 1 - axis  # array axis → index axis
        weights = _catmull_rom(geometry.size[j], steps[j], counts[j])
        knots = np.moveaxis(np.tensordot(weights, knots, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(knots)


def _catmull_rom(size: int, step: int, count: int) -> Array:
    """``(size, count)`` interpolation weights from knots `step` voxels apart, the first one a step before voxel 0."""
    position = np.arange(size) / step + 1
    first = np.floor(position).astype(int)
    t = position - first
    weights = np.zeros((size, count), np.float32)
    rows = np.arange(size)
    for offset, w in (
        (-1, -t / 2 + t**2 - t**3 / 2),
        (0, 1 - 2.5 * t**2 + 1.5 * t**3),
        (1, t / 2 + 2 * t**2 - 1.5 * t**3),
        (2, -(t**2) / 2 + t**3 / 2),
    ):
        weights[rows, first + offset] += w.astype(np.float32)
    return weights


def _scan(
    anatomy: Anatomy,
    geometry: Geometry,
    centre: NDArray[np.float64],
    displacement: Array | None,
    rng: np.random.Generator,
    noise: float,
    bias: float,
) -> tuple[Array, NDArray[np.uint8]]:
    """The anatomy on a grid, seen by a scanner: partial volume, blur, bias field, Rician noise."""
    image = np.empty(geometry.shape, np.float32)
    labels = np.empty(geometry.shape, np.uint8)
    field = Waves(rng, 150.0, 300.0, 12)
    width = float(np.mean(geometry.spacing))
    plane = int(np.prod(geometry.shape[1:]))
    rows = max(1, _CHUNK // plane)
    for begin in range(0, geometry.shape[0], rows):
        part = slice(begin, min(begin + rows, geometry.shape[0]))
        axes = np.meshgrid(np.arange(part.start, part.stop), *[np.arange(n) for n in geometry.shape[1:]], indexing="ij")
        points = geometry.index_to_physical(np.stack(axes[::-1], -1)).reshape(-1, geometry.dimension)
        if displacement is not None:
            points = points + displacement[part].reshape(-1, geometry.dimension)
        q = in_anatomy_frame(points, centre)
        value, label = anatomy(q, width)
        inside = value > 0
        value[inside] *= 1 + np.float32(bias) * field(q[:, inside])
        image[part] = value.reshape(image[part].shape)
        labels[part] = label.reshape(labels[part].shape)
    image = _blur(image)
    if noise > 0:
        for plane_image in image:  # a plane at a time: no second volume of random numbers
            real = plane_image + noise * rng.standard_normal(plane_image.shape, np.float32)
            imaginary = noise * rng.standard_normal(plane_image.shape, np.float32)
            np.copyto(plane_image, np.where(plane_image > 0, np.hypot(real, imaginary), 0))
    return image, labels


def _blur(image: Array) -> Array:
    """A narrow point-spread function, (1, 6, 1) / 8 along every axis."""
    for axis in range(image.ndim):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        n = image.shape[axis]
        before, after = (np.take(padded, range(k, k + n), axis=axis) for k in (0, 2))
        image = (image * 6 + before + after) / np.float32(8)
    return image
