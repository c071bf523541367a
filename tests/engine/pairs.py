"""Pairs of textured images whose linear map and deformation are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.images import Pair, as_volume, sizes
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.metrics import LNCC
from itk_nir.engine.settings import DeformableSettings
from itk_nir.engine.velocity_field import SplineVelocity, VelocityField
from itk_nir.geometry import Geometry
from tests.grids import turned

Array = np.ndarray
Make = Callable[..., "Case"]

#: Sizes of the cases in 2D and 3D, mm.
N = {2: 56, 3: 34}
SMALL = FieldConfig(encoding="fourier", activation="sine", width=32, depth=2, frequencies=16, omega=10.0, scale=1.0)
#: Two levels for images of 30 to 60 voxels; a network that goes first, always, and no search.
QUICK = DeformableSettings(
    shrink_factors=(2, 1), smoothing_sigmas=(0.5, 0.5), iterations=(40, 20), learning_rates=(0.4, 0.2),
    learning_rate_end=0.3, betas=(0.9, 0.99),
    grid_spacing=(2.0, 2.0), coarsest_grid_spacing=8.0, radius=(3, 3), velocity_smoothness=(0.1, 0.1),
    smoothness=(0.0, 0.0), metric=LNCC(epsilon=1e-3), integration_steps=5, jacobian_weight=0.0, jacobian_margin=0.3,
    extra_iterations_below=0, network_above=0.0, search="never", noise_sigma=0.0, plane_sigma=0.0,
)  # fmt: skip


def unlike(image: Array) -> Array:
    """Another contrast: neither rises with the former nor falls with it."""
    low, high = np.percentile(image, (1, 99))
    t = (image - low) / (high - low)
    return np.where(t < 0.1, t, 1.2 - np.abs(t - 0.45) * 2).astype(np.float32) * 150


def volume(image: Array) -> torch.Tensor:
    """An image as the engine has it."""
    return as_volume(torch.from_numpy(np.ascontiguousarray(image, np.float32)))


def pair_of(fixed: Array, moving: Array, geometry: Geometry, *more: tuple[Array, Array]) -> Pair:
    """Images on one grid, and further channels."""
    still = np.eye(geometry.dimension + 1)
    channels = [(volume(f), volume(m)) for f, m in more]
    return Pair.make(volume(fixed), geometry, volume(moving), geometry, still, more=channels)


def quick(**changes: Any) -> DeformableSettings:
    """`QUICK` with some of it changed."""
    return dataclasses.replace(QUICK, **changes)


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

    def error(self, field: VelocityField) -> float:
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
    pair = Pair.make(
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


def changed(pair: Pair, **changes: Any) -> Pair:
    """A pair with some of what `Pair.make` takes changed; both images are measured anew."""
    kept = ("fixed", "fixed_geometry", "moving", "moving_geometry", "linear", "fixed_weight", "moving_weight")
    return Pair.make(**{name: getattr(pair, name) for name in kept} | changes)


def scaled_linear(d: int) -> Array:
    """A rotation, a scaling and a shift that a deformation could not make up for."""
    m = np.eye(d + 1)
    m[:d, :d] = 1.1 * turned(d, 0.5, 0.0)
    m[:d, d] = [4.0, -3.0, 2.0][:d]
    return m


def on_voxels(field: VelocityField, inverse: bool = False) -> torch.Tensor:
    """``(d, [D,] H, W)`` mm along the image axes."""
    g = field.geometry
    u = field.on_grid([np.arange(n, dtype=float) for n in sizes(g)], inverse)
    return u if g.dimension == 3 else u[:2, 0]


def gap(a: VelocityField, b: VelocityField, points: Array) -> Array:
    """Distances in mm between what two fields do."""
    return np.asarray(np.linalg.norm(a.displacement(points) - b.displacement(points), axis=-1))


def velocity(
    geometry: Geometry,
    lattices: Lattices,
    control_points: torch.Tensor,
    config: FieldConfig | None = None,
    seed: int = 0,
    number: int = 0,
) -> SplineVelocity:
    """A velocity with these control points on the lattice `number`, and a network with weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    out = SplineVelocity(geometry, lattices, number, config, generator, torch.device("cpu"))
    out.control_points.data.copy_(control_points)
    if out.network is not None:
        for p in out.network.parameters():  # the last layer begins at zero
            p.data += 0.02 * torch.randn(p.shape, generator=generator)
    return out.requires_grad_(False)
