"""The metrics as they are defined, in plain NumPy and float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from itk_nir.engine import ops
from itk_nir.engine.lattice import Banded
from itk_nir.engine.metrics import LevelImages

Array = np.ndarray
#: An image of the moving side, ``(Z', Y', X'[, C])`` → on the fixed grid.
See = Callable[[Array], Array]


def warped(image: Array, u: Array, grid_to_moving: Array, displacement_to_moving: Array) -> Array:
    """An image through a displacement, then a linear map: trilinear, the value at the edge beyond it."""
    shape = u.shape[1:]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")[::-1]).astype(float)
    at = np.tensordot(grid_to_moving[:, :3], index, 1) + np.tensordot(displacement_to_moving, u, 1)
    at += grid_to_moving[:, 3].reshape(3, 1, 1, 1)
    last = np.array(image.shape[2::-1]).reshape(3, 1, 1, 1) - 1
    low = np.floor(at)
    out = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.ones(shape)
        for axis, c in enumerate(corner):
            share = at[axis] - low[axis]
            weight = weight * (share if c else 1 - share)
        x, y, z = np.clip(low + np.reshape(corner, (3, 1, 1, 1)), 0, last).astype(int)
        found = image[z, y, x].astype(float)
        out = out + weight.reshape(weight.shape + (1,) * (found.ndim - 3)) * found
    return np.asarray(out)


def splined(coefficients: Array, spline: list[Banded]) -> Array:
    """``(3, z, y, x)`` coefficients → ``(3, Z, Y, X)``."""
    x, y, z = (m.dense() for m in spline)
    return np.asarray(np.einsum("Zz,Yy,Xx,czyx->cZYX", z, y, x, coefficients))


def lncc(images: LevelImages, see: See, kept: Array, epsilon: float) -> tuple[float, float]:
    """Mean squared correlation over the windows around voxels that count, of the voxels in them that count."""
    fixed, moving, r = images.fixed.double().numpy(), see(images.moving.double().numpy()), images.radius
    values = []
    for at in zip(*np.nonzero(kept), strict=True):
        window = tuple(slice(max(0, k - r), k + r + 1) for k in at)
        inside = kept[window]
        f, m = fixed[window][inside], moving[window][inside]
        if f.var() > epsilon:
            cross = ((f - f.mean()) * (m - m.mean())).mean()
            values.append(cross**2 / ((f.var() + epsilon) * (m.var() + epsilon)))
    return float(np.mean(values)), len(values)


def information(f: Array, m: Array, ranges: list[tuple[float, float]], bins: int, normalised: bool) -> float:
    """Mutual information of the joint histogram, smoothed by the cubic B-spline; bins divide the ranges."""

    def in_bins(x: Array, low: float, high: float) -> Array:
        t = np.clip((x - low) / (high - low) * (bins - 1), 0, bins - 1)
        return np.asarray(np.clip(1 - np.abs(t[:, None] - np.arange(bins)), 0, None))

    smoothing = (4 * np.eye(bins) + np.eye(bins, k=1) + np.eye(bins, k=-1)) / 6
    smoothing[0, 0] = smoothing[-1, -1] = 5 / 6
    p = smoothing @ (in_bins(f, *ranges[0]).T @ in_bins(m, *ranges[1]) / len(f)) @ smoothing

    def entropy(q: Array) -> float:
        q = q[q > 0]
        return float(-(q * np.log(q)).sum())

    a, b = entropy(p.sum(1)), entropy(p.sum(0))
    mutual = a + b - entropy(p)
    return mutual / np.sqrt(a * b) if normalised else mutual


def similarity(name: str, images: LevelImages, see: See) -> tuple[float, float]:
    """A metric by its name in the table, and at how many positions the images are compared."""
    if "*" in name:
        parts = [part.split("*") for part in name.split("+")]
        found = [(float(w), *similarity(n.strip(), images, see)) for w, n in parts]
        return sum(w * v for w, v, _ in found) / sum(w for w, _, _ in found), max(c for _, _, c in found)
    kept = np.ones(tuple(images.fixed.shape), bool) if images.weight is None else images.weight.numpy() > 0.5
    if name == "lncc":
        return lncc(images, see, kept, 1e-4)
    f, count = images.fixed.double().numpy()[kept], float(kept.sum())
    if name == "mind":
        axes = np.eye(3) if images.axes is None else images.axes
        channels = ops.MIND_CHANNELS[images.dimension]
        a, b = (
            ops.mind_descriptors(x, steps, 1, images.dimension).numpy()[..., :channels].astype(float) / 255
            for x, steps in ((images.fixed, np.eye(3)), (images.moving, axes))
        )
        difference = np.square(a - see(b))[kept].mean()
        return float(1 - difference / a[kept].var(0).mean()), count
    m = see(images.moving.double().numpy())[kept]
    if name == "ncc":
        return float(np.corrcoef(f, m)[0, 1]), count
    if name == "mse":
        scale, offset = images.moving_in_fixed_units
        return float(1 - np.square(f - scale * m - offset).mean() / f.var()), count
    ranges = [
        (float(x.min()), float(x.max())) if r is None else r
        for x, r in ((images.fixed, images.fixed_range), (images.moving, images.moving_range))
    ]
    return information(f, m, ranges, 32, normalised=name == "nmi"), count
