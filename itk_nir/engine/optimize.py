"""The fast way: two fields, composed, optimised coarse to fine on whole images.

    phi(p) = A(p + u(p)),   id + u = (id + u_1) o (id + u_2),   u_k = exp(v_k) - id   (or u_k = v_k)

The coarse field ``v_1`` is a coordinate network plus a cubic B-spline lattice, trained at the first level. The network
goes first and alone: with few degrees of freedom that all act on the whole image it finds what the linear stage has
left over, turns and shifts included, before a lattice can fit the wrong anatomy to them. Then the lattice joins it and
moves what is left at that resolution. After the level the coarse field is kept, and the levels that follow train a fine
field ``v_2`` from zero, a free velocity lattice that is refined from level to level. Each is a flow of its own: large
deformations need not be one flow's. (`composed=False` trains one field through all levels; `grids="pyramid"` makes
every field a sum of lattices of halved spacings, a feature grid with a linear decoder.)

Everything is evaluated on the finest lattice of the level and carried to voxels by separable splines. Displacements
are mm along the image axes. The loss of a level is

    1 - mean LNCC²  +  w_u / |Ω| ∫ s² log(1 + |∇u|² / s²)  +  w_v / |Ω| ∫ |∇v|²
                    +  w_j / |Ω| ∫ max(margin - det ∇phi, 0)²

with |Ω| the volume of the windows that count: all terms are dimensionless, so that weights hold for any image size,
spacing and lattice. The penalty of the displacement is that of a heavy-tailed prior on its gradients (a Lorentzian,
Black and Anandan, CVIU 63(1), 1996): diffusion where they are small, hardly more for large ones than for middling ones.
Two brains differ much in few places, two breathing states slide along the pleura; a quadratic penalty that lets those
be lets noise in everywhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from itk_nir.engine import ops
from itk_nir.engine.fields import FieldConfig, build_field
from itk_nir.engine.lattice import Axis, Banded, Domain, cubic, gaussian_matrix, shape_of
from itk_nir.engine.progress import Callback, Progress
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: The corner of the cells from which a step's Jacobian determinants are taken. A cell has eight, and a cell is only
#: free of folds where all are: taking turns costs no more than always the same, and leaves next to none.
CORNERS = (0, 7, 3, 4, 5, 2, 6, 1)


#: Adam's epsilon, as a share of the gradient of one window.
SMALLEST = 2e-3

#: Mean LNCC² below which two images give little evidence of where things belong: noise alone can be fitted to that.
WEAK = 0.25


#: The network of the coarse field: sines of Fourier features [2, 3 in `fields`]. It is evaluated on a lattice of some
#: thousand points, so its size hardly shows in the time of a step.
COARSE_NETWORK = FieldConfig(
    encoding="fourier", activation="sine", width=64, depth=2, omega=10.0, frequencies=64, scale=1.0
)

#: Most rounds of `mend`.
MEND_ROUNDS = 20


def stiffening(similarity: float) -> float:
    """Factor on the diffusion weights of a level that begins at `similarity` (mean LNCC²): 1 above `WEAK`.

    With little evidence only smooth motion can be trusted. Where it brings the images together, the next level begins
    above the threshold and is free again; where nothing does (another modality, another object), the images stay
    about where they were instead of being torn to fit noise.
    """
    return min(1e4, max(1.0, (WEAK / max(similarity, 1e-6)) ** 4))


@dataclass(frozen=True)
class LatticeSettings:
    """What the lattice engine is told. Tuples have one value a level, coarsest first.

    Attributes
    ----------
    shrink_factors : voxel size of each level, in voxels of the fixed image along its finest axis. Coarser axes are
        shrunk less, so that levels are as isotropic as they can be. Two levels of one size may differ in their lattice.
    smoothing_sigmas : Gaussian sigma of each level in voxels of the level.
    steps : most steps of each level.
    learning_rates : first step size of Adam, in voxels of the fixed image along its finest axis.
    learning_rate_end : share of it that the last step of a level has.
    lattice_spacing : spacing of the finest lattice of each level, in voxels of the level.
    coarsest_lattice : spacing of the coarsest lattice, in voxels of the fixed image; a power of two times the others.
    grids : ``"pyramid"`` (the feature field), ``"single"`` (a free lattice) or ``"none"`` (the network alone).
    network : a coordinate network added on the coarsest lattice, of the first field where fields are composed, or None.
    network_rate : step size of its weights, in learning rates (as a share of the image's half-extent, the unit of its
        output).
    network_alone : share of the first level's steps in which the network alone is trained, before the lattices join it
        (less where the images give little evidence, see `stiffening`); 0 to 1.
    composed : the first level trains a field of its own, which the field of the other levels is composed with (not
        with grids ``"none"``: the network alone is one field).
    radius : radius of the LNCC window in voxels of the level.
    epsilon : variance below which a window of the normalised images counts as flat.
    flow : ``"velocity"`` (integrated, diffeomorphic) or ``"displacement"``.
    squarings : of scaling and squaring.
    displacement_diffusion : weights w_u of the penalty on the gradients of the displacement, one a level.
    strain_scale : s, the gradient from which on that penalty grows only with the logarithm; inf for plain diffusion.
    velocity_diffusion : weights w_v of the diffusion of the velocity that is being trained, one a level.
    small_voxels : a domain of fewer voxels gets more steps, up to twice as many (see `for_size`); 0 for never.
    symmetric : also warp the fixed image by the inverse onto the moving one (seen through the linear map), and take the
        mean of both similarities.
    jacobian_weight, jacobian_margin : weight w_j and margin of the Jacobian-determinant penalty.
    momentum : the two decay rates of Adam.
    gradient_smoothing : sigma, in lattice spacings, of a Gaussian on the gradient of every lattice before its step.
    convergence_window, convergence_threshold : a level (or the steps of the network alone) ends when the mean loss of a
        window of steps is less than `threshold` below that of the window before; threshold 0 means never.
    """

    shrink_factors: tuple[int, ...] = (4, 2, 1)
    smoothing_sigmas: tuple[float, ...] = (0.4, 0.3, 0.6)
    steps: tuple[int, ...] = (40, 20, 10)
    learning_rates: tuple[float, ...] = (1.0, 0.6, 0.4)
    learning_rate_end: float = 0.3
    lattice_spacing: tuple[float, ...] = (1.0, 2.0, 2.0)
    coarsest_lattice: float = 16.0
    grids: str = "single"
    network: FieldConfig | None = COARSE_NETWORK
    network_rate: float = 0.2
    network_alone: float = 0.5
    composed: bool = True
    radius: tuple[int, ...] = (5, 6, 8)
    epsilon: float = 1e-4
    flow: str = "velocity"
    squarings: int = 2
    displacement_diffusion: tuple[float, ...] = (1.2, 0.65, 1.1)
    strain_scale: float = 0.32
    velocity_diffusion: tuple[float, ...] = (0.0, 0.0, 0.0)
    small_voxels: int = 4_000_000
    symmetric: bool = False
    jacobian_weight: float = 1.0
    jacobian_margin: float = 0.4
    momentum: tuple[float, float] = (0.9, 0.99)
    gradient_smoothing: float = 0.0
    convergence_window: int = 10
    convergence_threshold: float = 0.0

    @property
    def levels(self) -> int:
        return len(self.shrink_factors)

    def __post_init__(self) -> None:
        n = self.levels
        for name in (
            "smoothing_sigmas", "steps", "learning_rates", "lattice_spacing", "radius", "velocity_diffusion",
            "displacement_diffusion",
        ):  # fmt: skip
            if len(getattr(self, name)) != n:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values but shrink_factors has {n}; give one for each level"
                )
        if n == 0 or min(self.shrink_factors) < 1 or list(self.shrink_factors) != sorted(self.shrink_factors)[::-1]:
            raise ValueError(
                f"shrink_factors must fall from level to level and be at least 1, got {self.shrink_factors}"
            )
        if min(self.steps) < 0 or sum(self.steps) == 0:
            raise ValueError(f"steps must not be negative, nor all zero, got {self.steps}")
        if min(self.radius) < 1:
            raise ValueError(f"radius must be at least 1, got {self.radius}")
        for name in ("smoothing_sigmas", "velocity_diffusion", "displacement_diffusion"):
            if min(getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("jacobian_weight", "squarings", "convergence_threshold", "small_voxels", "gradient_smoothing"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates must be above zero, got {self.learning_rates}")
        for name in ("learning_rate_end", "network_rate", "epsilon", "convergence_window", "strain_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above zero, got {getattr(self, name)}")
        if not 0 <= self.network_alone <= 1:
            raise ValueError(f"network_alone is a share of the first level's steps, 0 to 1, got {self.network_alone}")
        if not all(0 <= m < 1 for m in self.momentum):
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if self.grids not in ("pyramid", "single", "none"):
            raise ValueError(f"grids is 'pyramid', 'single' or 'none', got {self.grids!r}")
        if self.grids == "none" and self.network is None:
            raise ValueError("grids 'none' leaves only the network: give one as network=FieldConfig(...)")
        if self.flow not in ("velocity", "displacement"):
            raise ValueError(f"flow is 'velocity' or 'displacement', got {self.flow!r}")
        if self.symmetric and self.flow != "velocity":
            raise ValueError("symmetric needs the inverse at every step, which only flow 'velocity' has")
        for s, f in zip(self.lattice_spacing, self.shrink_factors, strict=True):
            k = math.log2(self.coarsest_lattice / (s * f)) if s > 0 else math.nan
            if not (k > -1e-6 and abs(k - round(k)) < 1e-6):
                raise ValueError(
                    f"lattice_spacing {s} at shrink factor {f} is {s * f:g} voxels; coarsest_lattice "
                    f"({self.coarsest_lattice:g}) must be that, or 2, 4, 8 … times that"
                )

    def grid_of(self, level: int) -> int:
        """How many times the coarsest lattice is halved for a level."""
        return round(math.log2(self.coarsest_lattice / (self.lattice_spacing[level] * self.shrink_factors[level])))


def for_size(settings: LatticeSettings, voxels: int) -> LatticeSettings:
    """The settings with up to twice the steps where the domain is small: `small_voxels` over its voxels, 1 to 2.

    A step of a small image costs little, and its time goes to start-up and files anyway.
    """
    factor = min(2.0, settings.small_voxels / max(1, voxels))
    if factor <= 1:
        return settings
    return replace(settings, steps=tuple(round(factor * s) for s in settings.steps))


@dataclass(frozen=True)
class TraceStep:
    """What one step measured."""

    level: int
    step: int
    metric: float
    loss: float


@dataclass(frozen=True, eq=False)
class LatticeField:
    """A trained field: its velocity (or displacement) on one spline lattice over the fixed grid.

    Attributes
    ----------
    geometry : the fixed grid.
    axes : the lattice, ``[x, y, z]`` in voxels of the fixed grid.
    spacing : lattice spacing in mm (the same along all axes).
    values : ``(3, z, y, x)``, mm along the image axes.
    flow, squarings : how a displacement comes of it.
    coarse : the displacement of the field that this one is composed with, and its inverse's, each like `values`; or
        None.
    """

    geometry: Geometry
    axes: list[Axis]
    spacing: float
    values: Tensor
    flow: str
    squarings: int
    threads: int = 1
    coarse: tuple[Tensor, Tensor] | None = None

    @cached_property
    def forward(self) -> Tensor:
        """Displacement at the control points, ``(3, z, y, x)`` mm along the image axes."""
        with torch.no_grad():
            return self.displaced(self.values, self.coarse)

    @cached_property
    def backward(self) -> Tensor:
        """The inverse's: exact for velocities up to the lattice, by Newton's method for a displacement."""
        h = self.spacing
        with torch.no_grad():
            if self.flow == "displacement":
                u = self.forward / h
                return ops.invert(u, -u, self.threads)[0] * h
            u = ops.exponential(self.values, self.squarings, -1 / h, self.threads)
            if self.coarse is not None:
                u = ops.compose(u, self.coarse[1] / h, self.threads)
            return u * h

    def displaced(self, values: Tensor, coarse: tuple[Tensor, Tensor] | None) -> Tensor:
        """The displacement that `values` and `coarse` make, as `forward`."""
        h = self.spacing
        outer = None if coarse is None else coarse[0] / h
        return flowed(values, outer, self.flow, self.squarings, h, self.threads) * h

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid at `positions` (voxels of the fixed image, ``[x, y, z]``).

        ``(3, len z, len y, len x)`` mm along the image axes; zero beyond the lattice.
        """
        lattice = self.backward if inverse else self.forward
        matrices = [a.evaluate(p) for a, p in zip(self.axes, positions, strict=True)]
        return ops.separable(lattice, matrices, self.threads)

    def support(self) -> list[tuple[float, float]]:
        """First and last place of each axis (voxels of the fixed image, ``[x, y, z]``) where it may be other than 0."""
        # A spline reaches two spacings to either side.
        reach = [(a.start - 2 * a.spacing, a.start + a.spacing * (a.count + 1)) for a in self.axes]
        return [(max(0.0, a), min(n - 1.0, b)) for (a, b), n in zip(reach, sizes(self.geometry), strict=True)]

    def curvature(self) -> Tensor:
        """``(3, z, y, x)``: length of the second derivative along each axis at the control points, 1/mm."""
        return second_differences(self.forward) / self.spacing**2

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at any physical points of fixed space, ``(N, d)`` LPS mm → ``(N, d)`` LPS mm."""
        d = self.geometry.dimension
        lattice = (self.backward if inverse else self.forward).double().cpu().numpy()
        index = self.geometry.physical_to_index(points)
        out = np.zeros((len(index), d))
        for begin in range(0, len(index), 1 << 15):
            part = index[begin : begin + (1 << 15)]
            value = np.zeros((3, len(part)))
            for z, wz in _support(self.axes[2], part[:, 2] if d == 3 else np.zeros(len(part))):
                for y, wy in _support(self.axes[1], part[:, 1]):
                    for x, wx in _support(self.axes[0], part[:, 0]):
                        value += lattice[:, z, y, x] * (wx * wy * wz)
            out[begin : begin + len(part)] = value[:d].T
        return out @ self.geometry.rotation.T


def second_differences(u: Tensor) -> Tensor:
    """``|u(i - 1) - 2 u(i) + u(i + 1)|`` along x, y and z at every point, ``(3, z, y, x)``; zero at the rim."""
    out = torch.zeros_like(u)
    for a in range(3):
        axis = 3 - a
        n = u.shape[axis]
        if n > 2:
            d = u.narrow(axis, 0, n - 2) - 2 * u.narrow(axis, 1, n - 2) + u.narrow(axis, 2, n - 2)
            out[a].narrow(axis - 1, 1, n - 2).copy_(d.square().sum(0).sqrt())
    return out


def _support(axis: Axis, position: F64) -> Iterator[tuple[NDArray[np.int64], F64]]:
    if axis.count == 1:
        yield np.zeros(len(position), np.int64), np.ones(len(position))
        return
    t = (position - axis.start) / axis.spacing
    base = np.floor(t).astype(np.int64)
    for k in range(-1, 3):
        node = base + k
        inside = (node >= 0) & (node < axis.count)
        yield np.where(inside, node, 0), cubic(t - node) * inside


def as_volume(x: Tensor) -> Tensor:
    """``([1,] [D,] H, W)`` → ``(Z, Y, X)``, a 2D image as one plane."""
    while x.ndim > 3:
        x = x[0]
    return x[None] if x.ndim == 2 else x


def sizes(geometry: Geometry) -> tuple[int, int, int]:
    return tuple([*geometry.size, 1][:3])  # type: ignore[return-value]


def spacings(geometry: Geometry) -> tuple[float, float, float]:
    """``(x, y, z)`` spacing in mm; a 2D image's plane is as thick as its finest axis."""
    return tuple([*geometry.spacing, min(geometry.spacing)][:3])  # type: ignore[return-value]


def shrink(geometry: Geometry, factor: float) -> tuple[int, int, int]:
    """Whole shrink factors an axis that bring the voxels nearest to `factor` times the finest spacing."""
    finest = min(geometry.spacing)
    out = [max(1, min(n, round(factor * finest / s))) for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    return tuple([*out, 1][:3])  # type: ignore[return-value]


def voxel_map(fixed: Geometry, moving: Geometry, linear: F64) -> tuple[F64, F64]:
    """Fixed voxel index → moving voxel index through ``linear``, and mm along fixed axes → moving voxels.

    ``(3, 4)`` and ``(3, 3)``; 2D is embedded with the identity along z.
    """
    d = fixed.dimension
    whole = moving.inverse_matrix @ linear @ fixed.matrix
    index = np.eye(4)[:3]
    index[:d, :d], index[:d, 3] = whole[:d, :d], whole[:d, d]
    vector = np.zeros((3, 3))
    vector[:d, :d] = whole[:d, :d] / np.asarray(fixed.spacing)
    return index, vector


def level_map(index: F64, vector: F64, fixed: list[F64], factors: tuple[int, ...], moving: list[F64],
              moving_factors: tuple[int, ...]) -> tuple[F64, F64]:  # fmt: skip
    """`voxel_map` between the samples of two levels, given where their samples lie in voxels of the full images."""
    start = np.array([p[0] for p in fixed])
    moving_start = np.array([p[0] for p in moving])
    scale = 1 / np.asarray(moving_factors, float)
    out = np.empty((3, 4))
    out[:, :3] = scale[:, None] * index[:, :3] * np.asarray(factors, float)
    out[:, 3] = scale * (index[:, :3] @ start + index[:, 3] - moving_start)
    return out, scale[:, None] * vector


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images ready to be registered, with everything that does not change from level to level.

    Attributes
    ----------
    fixed, moving : ``(Z, Y, X)`` float32, any intensity scale.
    fixed_weight, moving_weight : masks as 0 … 1, or None.
    linear : ``(d + 1, d + 1)`` LPS, fixed → moving, after the deformation.
    """

    fixed: Tensor
    fixed_geometry: Geometry
    moving: Tensor
    moving_geometry: Geometry
    linear: F64
    fixed_weight: Tensor | None = None
    moving_weight: Tensor | None = None


def background(image: Tensor) -> float | None:
    """The value that fills the border of an image, where nine tenths of its border voxels share one, else None."""
    faces = []
    for axis, n in enumerate(image.shape):
        if n > 1:
            faces += [image.select(axis, 0).reshape(-1), image.select(axis, n - 1).reshape(-1)]
    border = torch.cat(faces)
    value = border.median()
    return float(value) if float((border == value).float().mean()) > 0.9 else None


def bounds(inside: Tensor) -> tuple[F64, F64] | None:
    """First and last index ``(x, y, z)`` of the true voxels, or None where there are none."""
    low, high = [], []
    for axis in (2, 1, 0):
        others = [a for a in range(3) if a != axis]
        line = inside
        for a in sorted(others, reverse=True):
            line = line.any(a)
        at = torch.nonzero(line)[:, 0]
        if len(at) == 0:
            return None
        low.append(float(at[0]))
        high.append(float(at[-1]))
    return np.array(low), np.array(high)


def normalised(image: Tensor, weight: Tensor | None) -> tuple[Tensor, tuple[F64, F64]]:
    """Zero mean and unit variance over the foreground, and the foreground's bounds.

    The foreground is what the mask marks, or else what differs from the `background`. LNCC itself does not see a
    change of scale; `epsilon` and the precision of float32 sums do.
    """
    if weight is not None:
        inside = weight > 0.5
    else:
        value = background(image)
        inside = torch.ones_like(image, dtype=torch.bool) if value is None else image != value
    box = bounds(inside)
    if box is None:
        inside = torch.ones_like(inside)
        box = bounds(inside)
        assert box is not None
    values = image[inside]
    mean = float(values.mean(dtype=torch.float64))
    deviation = math.sqrt(float(values.sub_(mean).square_().sum(dtype=torch.float64)) / max(1, len(values) - 1))
    del values
    out = (image - mean).mul_(1 / max(deviation, 1e-12))
    # Metal, air around a body: far outliers would set the scale of everything else.
    return out.clamp_(-6, 12), box


def common_domain(pair: Pair, fixed_box: tuple[F64, F64], moving_box: tuple[F64, F64], margin: float) -> Domain:
    """The block of the fixed grid that holds the foreground of either image, `margin` mm around included."""
    d = pair.fixed_geometry.dimension
    index, _ = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)
    back = np.linalg.inv(np.vstack([index, [0, 0, 0, 1]]))
    low, high = moving_box
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    there = corners @ back[:3, :3].T + back[:3, 3]
    size = np.asarray(sizes(pair.fixed_geometry))
    pad = np.array([margin / s for s in spacings(pair.fixed_geometry)])
    if pair.fixed_weight is None:
        first = np.minimum(fixed_box[0], there.min(0)) - pad
        last = np.maximum(fixed_box[1], there.max(0)) + pad
    else:  # nothing outside the mask is looked at
        first, last = fixed_box[0] - pad, fixed_box[1] + pad
    first = np.clip(np.floor(first + 1e-6), 0, size - 1).astype(int)
    last = np.clip(np.ceil(last - 1e-6), first, size - 1).astype(int)
    if d == 2:
        first[2] = last[2] = 0
    return Domain(tuple(int(v) for v in first), tuple(int(v) for v in last - first + 1))  # type: ignore[arg-type]


def pyramid(image: Tensor, geometry: Geometry, positions: list[F64], factors: tuple[int, ...], sigma: float,
            threads: int) -> Tensor:  # fmt: skip
    """``(Z, Y, X)`` smoothed by `sigma` (voxels of the level; none along axes that are not shrunk) and sampled."""
    matrices = [
        gaussian_matrix(n, p, sigma * f if f > 1 or sigma > 0.75 else 0.0)
        for n, p, f in zip(sizes(geometry), positions, factors, strict=True)
    ]
    return ops.separable(image[None], matrices, threads)[0].contiguous()


class _Model(nn.Module):
    """The field in training: lattices, finest last, and a network under the coarsest. And the one before it, kept."""

    def __init__(self, lattices: list[list[Axis]], settings: LatticeSettings, geometry: Geometry, seed: int,
                 device: torch.device, threads: int) -> None:  # fmt: skip
        super().__init__()
        self.lattices, self.settings, self.threads = lattices, settings, threads
        self.refine: list[list[Banded]] = [[a.refine() for a in axes] for axes in lattices[:-1]]
        self.grids = nn.ParameterDict()
        self.finest = -1
        self.network: nn.Module | None = None
        #: The kept field and its inverse, in units of the finest lattice: what a step composes with.
        self.coarse: tuple[Tensor, Tensor] | None = None
        self.geometry, self.half_extent, self.device = geometry, geometry.half_extent, device
        self.coarsest = settings.coarsest_lattice * min(geometry.spacing)
        if settings.network is not None:
            generator = torch.Generator().manual_seed(seed)
            d = geometry.dimension
            self.network = build_field(settings.network, d, generator, device, torch.float32)
            at = np.meshgrid(*[a.positions for a in lattices[0][d - 1 :: -1]], indexing="ij")[::-1]
            index = np.stack([x.ravel() for x in at], -1)
            points = geometry.physical_to_field(geometry.index_to_physical(index))
            self.points = torch.from_numpy(points).float().to(device)

    def spacing(self) -> float:
        """Of the finest lattice, mm."""
        return self.coarsest / 2**self.finest

    def displaced(self, v: Tensor) -> Tensor:
        """Velocity in mm → displacement of both fields in units of the lattice."""
        settings = self.settings
        coarse = None if self.coarse is None else self.coarse[0]
        return flowed(v, coarse, settings.flow, settings.squarings, self.spacing(), self.threads)

    def keep(self) -> None:
        """Put the field by as the coarse one, and begin another at zero."""
        with torch.no_grad():
            trained = LatticeField(
                self.geometry, self.lattices[self.finest], self.spacing(), self().detach(), self.settings.flow,
                self.settings.squarings, self.threads,
            )  # fmt: skip
            h = self.spacing()
            self.coarse = trained.forward / h, trained.backward / h
        self.grids.clear()
        self.network = None

    def reach(self, finest: int) -> None:
        """Go to the lattice `finest`: a pyramid is given the lattices up to it, a single lattice is refined."""
        before, self.finest = self.finest, finest

        def refined(value: Tensor) -> Tensor:
            for k in range(before, finest):
                value = ops.separable(value, self.refine[k], self.threads)
            return value

        wanted = {"pyramid": range(finest + 1), "single": [finest], "none": []}[self.settings.grids]
        with torch.no_grad():
            if self.coarse is not None:
                scale = 2 ** (finest - before)
                self.coarse = refined(self.coarse[0]) * scale, refined(self.coarse[1]) * scale
            start = {}
            if self.settings.grids == "single" and str(before) in self.grids and finest > before:
                start[finest] = refined(self.grids[str(before)].detach())
                del self.grids[str(before)]
            for k in wanted:
                if str(k) not in self.grids:
                    value = start.get(k, torch.zeros(3, *shape_of(self.lattices[k]), device=self.device))
                    self.grids[str(k)] = nn.Parameter(value.clone())

    def forward(self) -> Tensor:
        """The field on its finest lattice, ``(3, z, y, x)`` mm."""
        v: Tensor | None = None
        if self.network is not None:
            out = self.network(self.points) * self.half_extent
            shape = shape_of(self.lattices[0])
            v = torch.zeros(3, *shape, device=out.device).index_copy(
                0, torch.arange(out.shape[1], device=out.device), out.T.reshape(-1, *shape)
            )
        for k in range(self.finest + 1):
            if v is not None and k > 0:
                v = ops.separable(v, self.refine[k - 1], self.threads)
            if str(k) in self.grids:
                v = self.grids[str(k)] if v is None else v + self.grids[str(k)]
        assert v is not None
        return v


@dataclass(frozen=True, eq=False)
class LatticeResult:
    """A trained field, what every step measured, and why the last level ended."""

    field: LatticeField
    trace: list[TraceStep]
    stop: str


def optimise_lattice(
    pair: Pair,
    settings: LatticeSettings,
    *,
    seed: int = 0,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
) -> LatticeResult:
    """Register a pair. See the module's text for the model and the loss.

    Raises
    ------
    ValueError : no window of the fixed image counts (flat, or wholly outside the moving image).
    """
    clock = time.perf_counter() if clock is None else clock
    # In a function of its own: what the steps held is free again before the folds are looked for.
    result, domain = _train(pair, settings, seed, threads, callback, clock)
    if not settings.jacobian_weight:
        return result
    ops.release_memory()
    return replace(result, field=mend(result.field, domain))


def _train(
    pair: Pair, settings: LatticeSettings, seed: int, threads: int, callback: Callback | None, clock: float
) -> tuple[LatticeResult, Domain]:
    """All levels, and the block of the fixed grid that was worked on."""
    device = pair.fixed.device
    fixed, fixed_box = normalised(pair.fixed, pair.fixed_weight)
    moving, moving_box = normalised(pair.moving, pair.moving_weight)
    unit = min(pair.fixed_geometry.spacing)
    margin = 2 * settings.shrink_factors[-1] * unit if pair.fixed_weight is None else 8 * unit
    domain = common_domain(pair, fixed_box, moving_box, margin)
    settings = for_size(settings, math.prod(domain.size))
    knots = tuple(settings.coarsest_lattice * unit / s for s in spacings(pair.fixed_geometry))
    halvings = max(settings.grid_of(level) for level in range(settings.levels))
    lattices = domain.lattice(knots, halvings)  # type: ignore[arg-type]
    model = _Model(lattices, settings, pair.fixed_geometry, seed, device, threads)
    trace: list[TraceStep] = []
    work = [
        s * math.prod(math.ceil(n / f) for n, f in zip(domain.size, shrink(pair.fixed_geometry, k), strict=True))
        for s, k in zip(settings.steps, settings.shrink_factors, strict=True)
    ]

    def goes_on(now: TraceStep) -> bool:
        trace.append(now)
        if callback is None:
            return True
        steps = settings.steps[now.level]
        done = sum(work[: now.level]) + work[now.level] * (now.step + 1) / steps
        report = Progress(
            "deformable", now.level, settings.levels, now.step, steps, now.metric, now.loss,
            time.perf_counter() - clock, done / sum(work),
        )  # fmt: skip
        return not callback(report)

    stop = ""
    for number in range(settings.levels):
        if number == 1 and settings.composed and settings.grids != "none" and trace and stop != "cancelled":
            model.keep()
        model.reach(settings.grid_of(number))
        if settings.steps[number] == 0 or stop == "cancelled":
            continue
        ops.release_memory()
        grids = _Grids.of(pair, domain, settings.shrink_factors[number])
        sigma = settings.smoothing_sigmas[number]
        images = (
            pyramid(fixed, pair.fixed_geometry, grids.fixed, grids.factors, sigma, threads),
            pyramid(moving, pair.moving_geometry, grids.moving, grids.moving_factors, sigma, threads),
        )
        if number == settings.levels - 1:
            del fixed, moving
        with ops.reused_memory():
            level = _Level.make(number, settings, pair, domain, grids, images, model)
            stop = _descend(level, model, goes_on, keep_best=callback is not None)
            del level
    with torch.no_grad():
        values = model().detach().clone()
        h = model.spacing()
        coarse = model.coarse and (model.coarse[0] * h, model.coarse[1] * h)
    trained = LatticeField(
        pair.fixed_geometry, lattices[model.finest], h, values, settings.flow, settings.squarings, threads, coarse
    )  # fmt: skip
    return LatticeResult(trained, trace, stop), domain


@dataclass(frozen=True, eq=False)
class _Grids:
    """Where the voxels of a level lie, in voxels of the fixed and of the moving image, and how many make one."""

    fixed: list[F64]
    factors: tuple[int, int, int]
    moving: list[F64]
    moving_factors: tuple[int, int, int]

    @classmethod
    def of(cls, pair: Pair, domain: Domain, factor: float) -> _Grids:
        """The moving image is shrunk to the same millimetres."""
        same = factor * min(pair.fixed_geometry.spacing) / min(pair.moving_geometry.spacing)
        factors, moving_factors = shrink(pair.fixed_geometry, factor), shrink(pair.moving_geometry, same)
        whole = Domain((0, 0, 0), sizes(pair.moving_geometry))
        return cls(domain.level_positions(factors), factors, whole.level_positions(moving_factors), moving_factors)


@dataclass(frozen=True, eq=False)
class _Level:
    """One level: the images at its resolution, where they count, and the weights of the loss.

    cell : a cell of the lattice, as a share of the domain.
    stiff : factor on the weights of the diffusion, see `stiffening`.
    smallest : Adam's smallest number, for gradients per mm.
    """

    number: int
    settings: LatticeSettings
    moving: Tensor
    index: F64
    vector: F64
    spline: list[Banded]
    lncc: ops.Lncc
    mirror: _Mirror | None
    cell: float
    stiff: float
    smallest: float
    threads: int

    @classmethod
    def make(
        cls, number: int, settings: LatticeSettings, pair: Pair, domain: Domain, grids: _Grids,
        images: tuple[Tensor, Tensor], model: _Model,
    ) -> _Level:  # fmt: skip
        """`images`: fixed and moving, on `grids`; `model`: the field with which the level begins."""
        fixed, moving = images
        threads, h, radius = model.threads, model.spacing(), settings.radius[number]
        spline = [a.evaluate(p) for a, p in zip(model.lattices[model.finest], grids.fixed, strict=True)]
        index, vector = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)
        index, vector = level_map(index, vector, grids.fixed, grids.factors, grids.moving, grids.moving_factors)
        # The displacement is carried in units of the lattice: what scaling and squaring works in.
        vector = vector * h
        with torch.no_grad():
            start = ops.separable(model.displaced(model()), spline, threads)
            weight = _weight(pair, start, grids.fixed, moving, index, vector, grids.moving, threads)
        lncc = ops.Lncc.make(fixed, weight, radius, settings.epsilon, threads)
        if lncc.count < 1:
            raise ValueError(
                "nothing to compare: the fixed image is flat, masked out or outside the moving image everywhere; check "
                "the masks and that the images overlap (a linear stage or an initial transform may be needed)"
            )
        with torch.no_grad():
            begin = float(lncc(ops.warp(moving, start, index, vector, threads)))
        # Energies are sums of squares over cells of volume h^d; |Ω| = count * voxel volume of the level.
        size = [f * s for f, s in zip(grids.factors, spacings(pair.fixed_geometry), strict=True)]
        present = [s for s, n in zip(size, domain.size, strict=True) if n > 1]
        mirror = None
        if settings.symmetric:
            mirror = _Mirror.make(settings, radius, size, h, fixed, moving, index, vector, weight, threads)
        return cls(
            number, settings, moving, index, vector, spline, lncc, mirror,
            cell=h ** len(present) / (lncc.count * math.prod(present)),
            stiff=stiffening(begin),
            # A node's gradient is one window's share of the mean, per mm: Adam's smallest number must scale with both,
            # or the size of the image and the unit of length would show.
            smallest=SMALLEST / (lncc.count * min(pair.fixed_geometry.spacing)),
            threads=threads,
        )  # fmt: skip

    def loss(self, model: _Model, step: int) -> tuple[Tensor, Tensor]:
        """The similarity that the field has here, and the loss of this step."""
        settings, threads = self.settings, self.threads
        v = model()
        u = model.displaced(v)
        warped = ops.warp_spline(self.moving, u, self.spline, self.index, self.vector, threads)
        similarity = self.lncc(warped)
        if self.mirror is not None:
            similarity = (similarity + self.mirror(v, model.coarse, self.spline)) / 2
        loss = 1 - similarity
        if settings.displacement_diffusion[self.number]:
            weight_u = self.stiff * settings.displacement_diffusion[self.number] * self.cell
            loss = loss + weight_u * ops.diffusion(u, scale=settings.strain_scale, threads=threads)
        if settings.velocity_diffusion[self.number]:
            weight_v = self.stiff * settings.velocity_diffusion[self.number] * self.cell / model.spacing() ** 2
            loss = loss + weight_v * ops.diffusion(v, threads=threads)
        if settings.jacobian_weight:
            penalty = ops.jacobian_penalty(u, settings.jacobian_margin, CORNERS[step % 8], threads)
            loss = loss + settings.jacobian_weight * self.cell * penalty
        return similarity, loss


def _descend(level: _Level, model: _Model, goes_on: Callable[[TraceStep], bool], keep_best: bool) -> str:
    """The steps of a level; returns what ended them.

    goes_on : told of every step, and asked whether there shall be another.
    keep_best : where it says no, the field goes back to the step with the least loss, not to the last one.
    """
    settings, threads = level.settings, level.threads
    steps = settings.steps[level.number]
    lattices = list(model.grids.values())
    optimiser = ops.Adam(lattices, settings.momentum, level.smallest, threads)
    weights: ops.Adam | None = None
    if model.network is not None:
        # Its gradients are per half-extent of the image, not per mm.
        own = level.smallest * model.half_extent
        weights = ops.Adam(list(model.network.parameters()), settings.momentum, own, threads)
    rate = settings.learning_rates[level.number] * min(model.geometry.spacing)
    smooth = [
        [
            gaussian_matrix(a.count, np.arange(a.count, dtype=float), settings.gradient_smoothing)
            for a in model.lattices[int(k)]
        ]
        for k in (model.grids if settings.gradient_smoothing else ())
    ]
    best: tuple[float, dict[str, Tensor]] | None = None
    losses: list[float] = []
    both = weights is not None and len(lattices) > 0
    alone = round(settings.network_alone / level.stiff * steps) if level.number == 0 and both else 0
    for step in range(steps):
        for p in lattices:
            p.requires_grad_(step >= alone)
        similarity, loss = level.loss(model, step)
        loss.backward()
        now = TraceStep(level.number, step, float(similarity.detach()), float(loss.detach()))
        del similarity, loss  # and with them the graph and all that it holds, before the next one is made
        losses.append(now.loss)
        if keep_best and (best is None or now.loss < best[0]):
            best = now.loss, {k: p.detach().clone() for k, p in model.state_dict().items()}
        if not goes_on(now):
            if best is not None:
                model.load_state_dict(best[1])
            return "cancelled"
        if settings.gradient_smoothing:
            for p, matrices in zip(lattices, smooth, strict=True):
                if p.grad is not None:
                    p.grad = ops.separable(p.grad, matrices, threads)
        decay = 1 - (1 - settings.learning_rate_end) * step / max(1, steps - 1)
        if step >= alone:
            optimiser.step(rate * decay)
        if weights is not None:
            # A network moves the whole image at once, which no smoothness forbids: not on little evidence. The square,
            # for Adam's steps add up whatever the gradient: the images would drift apart.
            weights.step(settings.network_rate * rate / model.half_extent * decay / level.stiff**2)
        if _converged(losses, settings):
            if step + 1 >= alone:
                return "converged"
            alone = step + 1  # the network is done: the lattices' turn
            losses.clear()
    return "all steps done"


@dataclass(frozen=True, eq=False)
class _Mirror:
    """The similarity of the other direction: the fixed image through the inverse, the moving one by the linear map.

    Both lie on the fixed grid of the level, so that all there is of a backward registration is the sign of ``v`` (and
    the inverse of the coarse field, which comes first).
    """

    settings: LatticeSettings
    image: Tensor
    lncc: ops.Lncc
    index: F64
    vector: F64
    spacing: float
    threads: int

    @classmethod
    def make(
        cls, settings: LatticeSettings, radius: int, size: list[float], h: float, fixed: Tensor, moving: Tensor,
        index: F64, vector: F64, weight: Tensor | None, threads: int,
    ) -> _Mirror:  # fmt: skip
        """`size`: of the level's voxels; `h`: of its lattice (mm); the rest as in `ops.warp` and `ops.Lncc`."""
        still = torch.zeros(3, *fixed.shape, device=fixed.device)
        target = ops.warp(moving, still, index, vector, threads)
        lncc = ops.Lncc.make(target, weight, radius, settings.epsilon, threads)
        return cls(settings, fixed, lncc, np.eye(4)[:3], np.diag(h / np.array(size)), h, threads)

    def __call__(self, v: Tensor, coarse: tuple[Tensor, Tensor] | None, spline: list[Banded]) -> Tensor:
        u = ops.exponential(v, self.settings.squarings, -1 / self.spacing, self.threads)
        if coarse is not None:
            u = ops.compose(u, coarse[1], self.threads)
        warped = ops.warp_spline(self.image, u, spline, self.index, self.vector, self.threads)
        return self.lncc(warped)


@ops.reused_memory()
def mend(field: LatticeField, domain: Domain) -> LatticeField:
    """Undo the few folds that the penalty has left: smooth the field where they come from until no voxel is folded.

    A voxel is folded where the Jacobian determinant by central differences between voxels is not above zero. Which
    control points it comes from, of either field, is traced back through the integration; no others change.
    """
    positions = [start + np.arange(n, dtype=float) for start, n in zip(domain.start, domain.size, strict=True)]
    size = torch.tensor(spacings(field.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.values.device)
    smooth = [gaussian_matrix(n, np.arange(n, dtype=float), 1.0) for n in field.values.shape[:0:-1]]

    def smoothed(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where != 0, ops.separable(values, smooth, field.threads), values)

    for _ in range(MEND_ROUNDS):
        determinant = ops.jacobian_map(field.on_grid(positions).div_(size), field.threads)
        folded = torch.nonzero(determinant <= 0).cpu().numpy()
        del determinant
        if len(folded) == 0:
            break
        nodes = []
        for axis, p, at in zip(field.axes[::-1], positions[::-1], folded.T, strict=True):
            near = np.floor((p[at] - axis.start) / axis.spacing).astype(np.int64)[:, None] + np.arange(-1, 3)
            nodes.append(torch.from_numpy(near.clip(0, axis.count - 1)))
        z, y, x = nodes
        v = field.values.detach().requires_grad_()
        coarse = field.coarse and (field.coarse[0].detach().requires_grad_(), field.coarse[1])
        u = field.displaced(v, coarse)
        touched = torch.zeros_like(u)
        touched[:, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]] = 1.0
        sources = torch.autograd.grad((u * touched).sum(), [v] if coarse is None else [v, coarse[0]])
        with torch.no_grad():
            values = smoothed(field.values, sources[0])
            if field.coarse is None:
                field = replace(field, values=values)
                continue
            forward = smoothed(field.coarse[0], sources[1])
            h = field.spacing
            backward = ops.invert(forward / h, field.coarse[1] / h, field.threads)[0] * h
            field = replace(field, values=values, coarse=(forward, backward))
    return field


def flowed(v: Tensor, coarse: Tensor | None, flow: str, squarings: int, h: float, threads: int) -> Tensor:
    """``(id + coarse) o exp(v) - id``: `v` in mm, the displacements `coarse` and what comes out in lattice units."""
    if flow == "velocity":
        return ops.exponential(v, squarings, 1 / h, threads, outer=coarse)
    return v / h if coarse is None else ops.compose(coarse, v / h, threads)


def _converged(losses: list[float], settings: LatticeSettings) -> bool:
    w = settings.convergence_window
    if settings.convergence_threshold <= 0 or len(losses) < 2 * w:
        return False
    return float(np.mean(losses[-2 * w : -w]) - np.mean(losses[-w:])) < settings.convergence_threshold


def _weight(pair: Pair, displacement: Tensor, positions: list[F64], moving_level: Tensor, index: F64, vector: F64,
            moving_positions: list[F64], threads: int) -> Tensor | None:  # fmt: skip
    """Where a level looks: the fixed mask, times the moving mask and the moving image's extent under the map so far.

    None where everything counts.
    """
    weight: Tensor | None = None
    if pair.fixed_weight is not None:
        near = [torch.from_numpy(np.rint(p).astype(np.int64)).to(displacement.device) for p in positions]
        w = pair.fixed_weight
        for axis, at in zip((2, 1, 0), near, strict=True):
            w = w.index_select(axis, at)
        weight = w
    inside = _inside(displacement, index, vector, moving_level.shape)
    if inside is not None:
        weight = inside.float() if weight is None else weight * inside
    if pair.moving_weight is not None:
        start = pair.moving_weight
        full_index = index.copy()
        scale = np.array([(p[-1] - p[0]) / max(1, len(p) - 1) if len(p) > 1 else 1.0 for p in moving_positions])
        first = np.array([p[0] for p in moving_positions])
        full_index = scale[:, None] * full_index
        full_index[:, 3] += first
        there = ops.warp(start, displacement, full_index, scale[:, None] * vector, threads) > 0.5
        weight = there.float() if weight is None else weight * there
    return weight


def _inside(displacement: Tensor, index: F64, vector: F64, size: Sequence[int]) -> Tensor | None:
    """``(Z, Y, X)`` bool: which voxels `ops.warp` takes from within an image of `size`; None where all of them."""
    nz, ny, nx = displacement.shape[1:]
    axes = [torch.arange(n, dtype=torch.float32, device=displacement.device) for n in (nz, ny, nx)]
    inside: Tensor | None = None
    step = max(1, (1 << 18) // (ny * nx))  # some planes at a time: what they need stays in the cache
    for z in range(0, nz, step):
        u = displacement[:, z : z + step]
        along = axes[2], axes[1][:, None], axes[0][z : z + step, None, None]
        for row, n in enumerate(size[::-1]):
            if n == 1:
                continue
            q = torch.full_like(u[0], float(index[row, 3]))
            for c in range(3):
                q.add_(along[c], alpha=float(index[row, c])).add_(u[c], alpha=float(vector[row, c]))
            # Half a voxel around the outermost centres still belongs to the image.
            good = (q >= -0.5) & (q <= n - 0.5)
            if not bool(good.all()):
                if inside is None:
                    inside = torch.ones_like(displacement[0], dtype=torch.bool)
                inside[z : z + step] &= good
    return inside
