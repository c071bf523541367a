"""Pairs of textured images whose linear map and deformation are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from itk_nir.engine.optimize import LatticeField, Pair, as_volume
from itk_nir.geometry import Geometry
from tests.grids import turned

Array = np.ndarray
Make = Callable[..., "Case"]


@dataclass(frozen=True)
class Case:
    """``fixed(p) = moving(linear (p + truth(p)))`` for an object of `radius` mm around the centre of the fixed grid."""

    pair: Pair
    truth: Callable[[Array], Array]
    linear: Array
    radius: float

    @property
    def fixed(self) -> Geometry:
        return self.pair.fixed_geometry

    def inside(self, share: float = 0.8) -> Array:
        """Voxels well within the object, of the fixed grid's shape."""
        return np.linalg.norm(self.fixed.grid() - self.fixed.centre, axis=-1) < share * self.radius

    def points(self, share: float = 0.8) -> Array:
        """Their physical positions ``(N, d)``."""
        return self.fixed.grid()[self.inside(share)]

    def error(self, field: LatticeField) -> float:
        """Mean distance of a field to the truth in mm."""
        p = self.points()
        return float(np.linalg.norm(field.displacement(p) - self.truth(p), axis=-1).mean())

    def start(self) -> float:
        """What `error` is without a registration."""
        return float(np.linalg.norm(self.truth(self.points()), axis=-1).mean())


def texture(q: Array, radius: float, seed: int = 0) -> Array:
    """Values 0 (background, exactly) to about 100 at points relative to the centre of the object."""
    d = q.shape[-1]
    rng = np.random.default_rng(seed)
    waves = np.zeros(q.shape[:-1])
    for _ in range(16):
        direction = rng.normal(size=d)
        wavelength = rng.uniform(0.2, 0.6) * radius
        waves += np.sin(q @ direction / np.linalg.norm(direction) * (2 * np.pi / wavelength) + rng.uniform(0, 6.3))
    # Not a sphere, or its rotation would be seen in the texture alone; the centre of mass is off the centre.
    r = np.linalg.norm(q * np.array([1.0, 1.25, 1.1])[:d] + 0.08 * radius, axis=-1) / radius
    body = np.clip((1.0 - r) / 0.08, 0, 1)
    return np.asarray(body * (50 + 9 * waves))


def make(
    d: int,
    n: int = 64,
    *,
    spacing: Sequence[float] | float = 1.0,
    moving_spacing: Sequence[float] | float | None = None,
    angle: float = 0.0,
    moving_angle: float = 0.0,
    linear: Array | None = None,
    given: Array | None = None,
    amplitude: float = 0.05,
    moving_size: int | None = None,
    scale: float = 1.0,
    away: float = 0.0,
) -> Case:
    """A pair of about ``n`` mm times `scale` across.

    Parameters
    ----------
    spacing, moving_spacing : mm times `scale`; the number of voxels follows.
    angle, moving_angle : of the grids' directions.
    linear : the true linear map, LPS; what the pair is told is `given`, or else the same.
    amplitude : of the deformation, as a share of the extent.
    moving_size : the moving image's extent in mm, `n` where left out; larger n cut off nothing.
    away : mm by which the centres of the grids lie from the origin.
    """
    extent = n * scale
    radius = 0.42 * extent

    def grid(step: Sequence[float] | float, angle: float, width: float, centre: Array) -> Geometry:
        steps = np.broadcast_to(np.asarray(step, float) * scale, d)
        size = [round(width / s) for s in steps]
        g = Geometry.make(size, steps, None, turned(d, angle))
        return Geometry.make(size, steps, centre - g.centre, turned(d, angle))

    matrix = np.eye(d + 1) if linear is None else np.asarray(linear, float).copy()
    matrix[:d, d] *= scale
    centre = np.full(d, away)
    fixed = grid(spacing, angle, extent, centre)
    moving = grid(
        spacing if moving_spacing is None else moving_spacing, moving_angle, (moving_size or n) * scale, centre
    )

    def truth(p: Array) -> Array:
        q = (p - centre) / extent
        waves = [np.sin(2 * np.pi * (0.9 * q[..., (a + 1) % d] + 0.35 * q[..., a]) + a) for a in range(d)]
        return np.asarray(amplitude * extent * np.stack(waves, -1))

    p = fixed.grid()
    there = (p + truth(p) - centre) @ matrix[:d, :d].T + matrix[:d, d]
    told = matrix if given is None else np.asarray(given, float)
    pair = Pair(
        fixed=as_volume(torch.from_numpy(texture(there, radius).astype(np.float32))),
        fixed_geometry=fixed,
        moving=as_volume(torch.from_numpy(texture(moving.grid() - centre, radius).astype(np.float32))),
        moving_geometry=moving,
        linear=about(told, centre),
    )
    return Case(pair, truth, about(matrix, centre), radius)


def about(matrix: Array, centre: Array) -> Array:
    """The linear map that acts on points relative to `centre`."""
    d = len(centre)
    out = np.array(matrix, float)
    out[:d, d] += centre - matrix[:d, :d] @ centre
    return out


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """As inside `register`: torch's own threads wait for one another by spinning, which a busy machine punishes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_case() -> Make:
    return make
