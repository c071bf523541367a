"""Every op of the engine on small images, to be held against float64 on the CPU: on a card, or with the native module.

The reference in torch, which runs wherever a type is float64, says what an op is; a case is one op on images of its
own, drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Banded, Domain, shape_of
from itk_nir.engine.ops import reference_matching
from itk_nir.engine.whole_cases import whole_cases

Shape = tuple[int, int, int]

#: ``(z, y, x)`` of the cases: odd sizes that no block divides.
SHAPES: tuple[Shape, ...] = ((17, 21, 33), (1, 41, 57))


@dataclass(frozen=True, eq=False)
class OpCase:
    """One op on small images.

    Parameters
    ----------
    name : str
        Of the op, and how it is called.
    op : callable
        Tensors like `inputs`, of any float type and on any device → value. What else it needs it makes like them.
    inputs : tuple of Tensor
        float32 on the CPU.
    tolerance, gradient_tolerance : float
        Norm of the difference from float64, over the norm; there is no gradient where the latter is 0.
    keeps_nan : bool
        Whether the value must show it where one number of the first input is none.
    """

    name: str
    op: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    tolerance: float = 2e-5
    gradient_tolerance: float = 2e-4
    keeps_nan: bool = False


@dataclass(frozen=True)
class OpResult:
    """How an op compares with float64.

    Parameters
    ----------
    name : str
        As of the case.
    value_error, gradient_error : float or None
        Norm of the difference from float64, over the norm; None for what was not computed.
    repeats : bool
        Whether a second run gave the same bits.
    keeps_nan : bool
        Whether what is not a number came through, where it must.
    passed : bool
        Whether both are within the tolerances, it repeats, and keeps what is not a number.
    error : str
        What was raised, if anything.
    """

    name: str
    value_error: float | None = None
    gradient_error: float | None = None
    repeats: bool = False
    keeps_nan: bool = False
    passed: bool = False
    error: str = ""


@dataclass
class _Images:
    """Random images of a case."""

    shape: Shape
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def smooth(self, *shape: int) -> Tensor:
        """Noise blurred along the last three axes, where they are longer than one."""
        x = self.noise(*shape)
        for axis in range(-3, 0):
            if x.shape[axis] > 1:
                for _ in range(2):
                    x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
        return x / x.std()

    def image(self) -> Tensor:
        return self.smooth(*self.shape)

    def displacement(self, size: float, shape: Shape | None = None) -> Tensor:
        """Voxels; in the plane where there is only one."""
        z, y, x = shape or self.shape
        u = size * self.smooth(3, z, y, x)
        if self.shape[0] == 1:
            u[2] = 0
        return u

    def weight(self) -> Tensor:
        return (self.noise(*self.shape) > -1).float()

    def holes(self) -> Tensor:
        """A weight that is 0 in a part larger than a window, as in a lesion: noise leaves something in every window."""
        return (self.image() < 0.4).float()

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """An oblique map to the voxels of a moving image of the same size, which keeps a 2D image in its plane."""
        points = np.array([[0.97, 0.05, -0.03, 1.3], [-0.04, 0.98, 0.05, -0.7], [0.03, -0.05, 0.96, 1.2]])
        vectors = np.array([[0.8, 0.1, 0.0], [-0.05, 0.9, 0.1], [0.02, -0.1, 0.85]])
        if self.shape[0] == 1:
            for matrix in (points, vectors):
                matrix[2] = matrix[:, 2] = 0
        return points, vectors

    def spline(self) -> tuple[list[Banded], Shape]:
        """Lattice → voxels, and the size of the lattice."""
        z, y, x = self.shape
        domain = Domain((0, 0, 0), (x, y, z))
        axes = domain.lattice((4.0, 4.0, 4.0))
        matrices = [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)]
        return matrices, shape_of(axes)


def op_cases(shape: Shape, threads: int = 1) -> Iterator[OpCase]:
    """All ops on images of one size.

    Parameters
    ----------
    shape : tuple of int
        ``(z, y, x)``; a single plane for a 2D image.
    threads : int
        Of the native ops.

    Yields
    ------
    OpCase
    """
    images = _Images(shape)
    yield from _warps(images, threads)
    yield from _metrics(images, threads)
    yield from _displacements(images, threads)
    yield from _others(images, threads)
    yield from (OpCase(*case) for case in whole_cases(images, threads))


def _warps(images: _Images, threads: int) -> Iterator[OpCase]:
    moving, (points, vectors), (matrices, lattice) = images.image(), images.maps(), images.spline()
    yield OpCase("warp", lambda u: ops.warp(moving.to(u), u, points, vectors, threads), (images.displacement(1.5),))
    yield OpCase(
        "warp_spline", lambda v: ops.warp_spline(moving.to(v), v, matrices, points, vectors, threads),
        (images.displacement(1.5, lattice),),
    )  # fmt: skip
    sizes = lattice, images.shape
    ways = matrices, [m.transpose for m in matrices]
    for name, size, way in zip(("separable", "separable, back"), sizes, ways, strict=True):
        yield OpCase(
            name, lambda x, way=way: ops.separable(x, way, threads), (images.noise(3, *size),), 5e-6, 5e-6, True
        )


def _metrics(images: _Images, threads: int) -> Iterator[OpCase]:
    fixed, weight = images.image(), images.weight()
    moving = 0.6 * fixed + 0.8 * images.image()
    for radius in (2, 5, 8):
        yield OpCase(
            f"lncc, radius {radius}", lambda m, r=radius: ops.Lncc.make(fixed.to(m), None, r, 1e-4, threads)(m),
            (moving,), keeps_nan=True,
        )  # fmt: skip
    yield OpCase("lncc, weights", lambda m: ops.Lncc.make(fixed.to(m), weight.to(m), 3, 1e-4, threads)(m), (moving,))
    holes, anywhere = images.holes(), torch.ones(images.shape)
    yield OpCase(
        "lncc, windows centred in holes",
        lambda m: ops.Lncc.make(fixed.to(m), holes.to(m), 3, 1e-4, threads, anywhere.to(m))(m), (moving,),
    )  # fmt: skip
    yield OpCase(
        "global_sums", lambda m: ops.global_sums(fixed.to(m), m, weight.to(m), threads), (moving,), keeps_nan=True
    )
    low, high = -3.5, 3.5
    for name, normalised in (("mutual information", False), ("mutual information, normalised", True)):
        yield OpCase(
            name,
            lambda m, n=normalised: ops.MutualInformation.make(
                fixed.to(m), weight.to(m), (low, high), (low, high), normalised=n, threads=threads
            )(m),
            (moving,),
            keeps_nan=True,
        )
    dimension = 2 if images.shape[0] == 1 else 3
    channels = ops.MIND_CHANNELS[dimension]
    steps = np.eye(3)
    yield OpCase(
        "mind_descriptors",
        lambda x: ops.mind_descriptors(x, steps, 1, dimension, threads).to(x.dtype), (fixed,), 5e-3, 0,
    )  # fmt: skip
    (points, vectors), (matrices, lattice) = images.maps(), images.spline()
    # Made once: descriptors are whole numbers, and the same ones for every type.
    f, m = (ops.mind_descriptors(x.double(), steps, 1, dimension) for x in (fixed, moving))
    yield OpCase(
        "mind_difference",
        lambda u: ops.mind_difference(
            f.to(u.device), m.to(u.device), weight.to(u), u, points, vectors, channels, threads
        ),
        (images.displacement(1.5),),
    )
    yield OpCase(
        "mind_difference_spline",
        lambda v: ops.mind_difference_spline(
            f.to(v.device), m.to(v.device), weight.to(v), v, matrices, points, vectors, channels, threads
        ),
        (images.displacement(1.5, lattice),),
    )


def _displacements(images: _Images, threads: int) -> Iterator[OpCase]:
    u, v = images.displacement(1.3), images.displacement(0.8)
    yield OpCase("compose", lambda a, b: ops.compose(a, b, threads), (u, v), keeps_nan=True)
    yield OpCase("exponential", lambda v: ops.exponential(v, 4, 1.0, threads), (v,), keeps_nan=True)
    yield OpCase("exponential, inverse", lambda v: ops.exponential(v, 4, -0.5, threads), (v,), keeps_nan=True)
    yield OpCase("exponential, then another", lambda v, w: ops.exponential(v, 4, 1.0, threads, outer=w), (v, u))
    yield OpCase("diffusion", lambda u: ops.diffusion(u, threads=threads), (u,), keeps_nan=True)
    yield OpCase("diffusion, Lorentzian", lambda u: ops.diffusion(u, 0.4, threads), (u,), keeps_nan=True)
    for corner in (0, 3, 7):
        yield OpCase(
            f"jacobian_penalty, corner {corner}", lambda u, c=corner: ops.jacobian_penalty(u, 0.6, c, threads), (u,)
        )
    yield OpCase("jacobian_map", lambda u: ops.jacobian_map(u, threads), (u,), gradient_tolerance=0, keeps_nan=True)
    gentle = images.displacement(0.8)
    yield OpCase("invert", lambda u: ops.invert(u, -u, threads)[0], (gentle,), 2e-3, 0)
    scale = (1.0, 1.5, 0.8)
    yield OpCase("inverse_pair", lambda u: ops.inverse_pair(u, -u, scale, threads)[0], (gentle,), 2e-3, 0)


def _others(images: _Images, threads: int) -> Iterator[OpCase]:
    gradients = [images.noise(*images.shape) for _ in range(3)]

    def adam(x: Tensor) -> Tensor:
        parameter = x.detach().clone()
        optimiser = ops.Adam([parameter], threads=threads)
        for gradient in gradients:
            parameter.grad = gradient.to(x)
            optimiser.step(0.1)
        return parameter

    yield OpCase("adam", adam, (images.noise(*images.shape),), 5e-6, 0, True)
    z, y, x = images.shape
    reach: ops.Whole = (2, 2, 0 if z == 1 else 2)
    block: ops.Whole = (4, 4, 1 if z == 1 else 4)
    around = [n + 2 * r for n, r in zip((z, y, x), reach[::-1], strict=True)]
    a, b = images.noise(z, y, x, 16), images.noise(*around, 16)
    features, others = ((128 + 40 * t).clamp(0, 255).to(torch.uint8) for t in (a, b))

    def costs(like: Tensor) -> Tensor:
        where = like.device
        counts, there = (torch.ones(t.shape[:3], dtype=torch.uint8, device=where) for t in (features, others))
        arguments = features.to(where), counts, others.to(where), there, reach, block, 400
        # Whole numbers: the type of the images does not say which implementation is wanted.
        if like.dtype == torch.float64:
            return reference_matching.match_costs(*arguments)
        return ops.match_costs(*arguments, threads)

    wanted = images.noise(3, len(costs(features)))
    yield OpCase("match_costs", lambda w: costs(w).to(torch.int32).to(w.dtype), (wanted,), 0, 0)
    yield OpCase(
        "best_matches", lambda w: torch.cat([t.reshape(-1) for t in ops.best_matches(costs(w), w, reach, 0.05)]),
        (wanted,), 1e-6, 0,
    )  # fmt: skip


def value_and_gradients(case: OpCase, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The value of an op, then its gradients by all inputs, where it has any.

    Parameters
    ----------
    case : OpCase
        The op.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        In which it runs.

    Returns
    -------
    list of Tensor
        Where they were computed. The gradients are those of the product of the value with numbers from -1 to 1.
    """
    inputs = [x.to(device=device, dtype=dtype) for x in case.inputs]
    if not case.gradient_tolerance:
        with torch.no_grad():
            return [case.op(*inputs)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = case.op(*leaves)
    if value.ndim:
        factors = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).reshape(value.shape)
        total = (value * factors.to(device=device, dtype=value.dtype)).sum()
    else:
        total = value
    return [value.detach(), *torch.autograd.grad(total, leaves)]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Norm of a difference over the norm.

    Parameters
    ----------
    found, wanted : Tensor
        Of one shape, any device and type.

    Returns
    -------
    float
        Not a number where `found` holds what is none.
    """
    a, b = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def _poison(device: torch.device) -> None:
    """Fill memory that is free with what is no number: an op that does not write all of its result shows it then."""
    blocks = [torch.full((1 << power,), torch.nan, device=device) for power in range(4, 21, 2)]
    del blocks


def _keeps_nan(case: OpCase, device: torch.device) -> bool:
    """Whether one number that is none shows in the value, and is not taken for some number."""
    first = case.inputs[0].clone()
    first.view(-1)[first.numel() // 2 + 3] = torch.nan
    inputs = [x.to(device) for x in (first, *case.inputs[1:])]
    with torch.no_grad():
        return bool(case.op(*inputs).isnan().any())


def compared(case: OpCase, device: torch.device, wanted: Sequence[Tensor]) -> OpResult:
    """Run an op twice on a device and compare it with float64.

    Parameters
    ----------
    case : OpCase
        The op.
    device : torch.device
        Where it runs, in float32.
    wanted : sequence of Tensor
        Of `value_and_gradients` in float64 on the CPU.

    Returns
    -------
    OpResult
    """
    try:
        found = value_and_gradients(case, device, torch.float32)
        _poison(device)
        again = value_and_gradients(case, device, torch.float32)
        value, *gradients = (distance(f, w) for f, w in zip(found, wanted, strict=True))
        repeats = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        keeps_nan = not case.keeps_nan or _keeps_nan(case, device)
    except Exception as error:  # whatever it is, the other ops are looked at too
        return OpResult(case.name, error=f"{type(error).__name__}: {error}".strip().splitlines()[0])
    slope = max(gradients, default=None)
    # So written that what is not a number does not pass.
    good = value <= case.tolerance and (not gradients or all(g <= case.gradient_tolerance for g in gradients))
    return OpResult(case.name, value, slope, repeats, keeps_nan, good and repeats and keeps_nan)
