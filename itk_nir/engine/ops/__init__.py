"""The ops of the lattice engine: one function each, with its gradient.

float32 tensors on the CPU go to the native module (`cpu`), everything else (CUDA, float64) to the torch
implementation that defines the op (`reference`). Where the native module is missing, the reference runs everywhere,
with one warning. `threads` is the number of CPU threads of the native ops; no result depends on it.

All tensors are 3D, ``([C,] Z, Y, X)``; a 2D image is one with a single plane.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.lattice import Banded
from itk_nir.engine.ops import pool, reference

#: Within it, the native ops take memory for their results that they took before and that is no longer used.
reused_memory = pool.reused


@lru_cache(maxsize=1)
def native_module() -> ModuleType | None:
    """The module of native ops, or None (with one warning) where it was not built."""
    try:
        from itk_nir.engine.ops import cpu
    except ImportError as error:
        warnings.warn(
            f"itk_nir: the native CPU ops are not available ({error}); the slow torch ones run instead. "
            "Reinstall the package with a C++17 compiler at hand to get them.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return cpu


def _native(x: Tensor) -> Any:
    return native_module() if x.device.type == "cpu" and x.dtype == torch.float32 else None


@lru_cache(maxsize=256)
def _tensors(matrix: _ById, device: torch.device) -> tuple[Tensor, Tensor]:
    b = matrix.value
    return torch.from_numpy(b.start).to(device), torch.from_numpy(b.weights).to(device)


@dataclass(frozen=True)
class _ById:
    """A cache key that stands for one object, whatever it holds."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.value is self.value


def separable(x: Tensor, matrices: list[Banded], threads: int = 1) -> Tensor:
    """Apply a banded matrix along each axis of ``x (C, Z, Y, X)``; `matrices` in ``x, y, z`` order.

    The axes are done in the order that keeps the intermediate results smallest.
    """
    grows = sum(m.n_out for m in matrices) > sum(m.n_in for m in matrices)
    native = _native(x)
    for a in (0, 1, 2) if grows else (2, 1, 0):
        m, axis = matrices[a], 3 - a
        shape = list(x.shape)
        flat = x.reshape(int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :])))
        rows = _tensors(_ById(m), x.device)
        if native:
            flat = native.Banded.apply(flat, rows, _tensors(_ById(m.transpose), x.device), threads)
        else:
            flat = reference.banded(flat, *rows)
        shape[axis] = m.n_out
        x = flat.reshape(shape)
    return x


def warp(moving: Tensor, displacement: Tensor, index: np.ndarray, vector: np.ndarray, threads: int = 1) -> Tensor:
    """``moving(index (i, 1) + vector u(i))``, trilinear, clamped; see `reference.warp`."""
    native = _native(displacement)
    index, vector = np.ascontiguousarray(index, np.float64), np.ascontiguousarray(vector, np.float64)
    if native:
        result: Tensor = native.Warp.apply(moving, displacement, index, vector, threads)
        return result
    return reference.warp(moving, displacement, torch.from_numpy(index), torch.from_numpy(vector))


def warp_spline(
    moving: Tensor, lattice: Tensor, matrices: list[Banded], index: np.ndarray, vector: np.ndarray, threads: int = 1
) -> Tensor:
    """`warp` by the displacement of ``lattice (3, z, y, x)``: ``warp(moving, separable(lattice, matrices), …)``.

    The native op never holds the displacement of all voxels.
    """
    native = _native(lattice)
    if not native:
        return warp(moving, separable(lattice, matrices, threads), index, vector, threads)
    index, vector = np.ascontiguousarray(index, np.float64), np.ascontiguousarray(vector, np.float64)
    rows = [_tensors(_ById(m), lattice.device) for m in matrices]
    back = [_tensors(_ById(m.transpose), lattice.device) for m in matrices]
    result: Tensor = native.WarpSpline.apply(moving, lattice, rows, back, index, vector, threads)
    return result


@dataclass(frozen=True)
class Lncc:
    """Local normalised cross-correlation with one fixed image, whose local sums are made once.

    `count` is the number of windows that count (see `reference.lncc`).
    """

    fixed: Tensor
    weight: Tensor | None
    radius: int
    epsilon: float
    threads: int
    count: float
    prepared: Any

    @classmethod
    def make(cls, fixed: Tensor, weight: Tensor | None, radius: int, epsilon: float, threads: int = 1) -> Lncc:
        native = _native(fixed)
        if native:
            prepared = native.LnccFixed(fixed, weight, radius, epsilon, threads)
            return cls(fixed, weight, radius, epsilon, threads, prepared.count, prepared)
        _, count = reference.lncc(fixed, fixed, weight, radius, epsilon)
        return cls(fixed, weight, radius, epsilon, threads, float(count), None)

    def __call__(self, moving: Tensor, centre_only: bool = False) -> Tensor:
        """Mean squared local correlation with ``moving (Z, Y, X)``, a scalar in 0 … 1.

        `centre_only` (native ops) keeps of the gradient only the term of the window centred on each voxel, as
        ANTs and greedy do: faster, and a little noisier.
        """
        if self.prepared is not None:
            result: Tensor = _native(moving).Lncc.apply(moving, self.prepared, centre_only, self.threads)
            return result
        total, count = reference.lncc(self.fixed, moving, self.weight, self.radius, self.epsilon)
        return total / count.clamp(min=1)


def exponential(
    velocity: Tensor, squarings: int, scale: float = 1.0, threads: int = 1, outer: Tensor | None = None
) -> Tensor:
    """``exp(scale v) - id`` by scaling and squaring, ``(3, Z, Y, X)``; ``scale v`` and the result are in voxels.

    With `outer`, ``(id + outer) o exp(scale v) - id``: as `compose` of the two, faster.
    """
    native = _native(velocity)
    if native:
        result: Tensor = native.Exponential.apply(velocity, outer, squarings, scale, threads)
        return result
    u = reference.exponential(velocity, squarings, scale)
    return u if outer is None else reference.compose(outer, u)


def compose(outer: Tensor, inner: Tensor, threads: int = 1) -> Tensor:
    """``inner(x) + outer(x + inner(x))``, ``(3, Z, Y, X)`` in voxels."""
    native = _native(inner)
    result: Tensor = native.Compose.apply(outer, inner, threads) if native else reference.compose(outer, inner)
    return result


def diffusion(
    u: Tensor, weights: tuple[float, float, float] = (1.0, 1.0, 1.0), scale: float = math.inf, threads: int = 1
) -> Tensor:
    """Sum of the squared differences between neighbours, or only of the logarithm of those far beyond `scale`.

    See `reference.diffusion`; the differences of a node go into the logarithm together.
    """
    if not scale > 0:
        raise ValueError(f"diffusion: scale must be positive, got {scale}")
    native = _native(u)
    result: Tensor = (
        native.Diffusion.apply(u, weights, scale, threads) if native else reference.diffusion(u, weights, scale)
    )
    return result


def jacobian_penalty(u: Tensor, margin: float, corner: int = 0, threads: int = 1) -> Tensor:
    """``sum relu(margin - det)²`` over the cells, from one of their corners; see `reference.jacobian`."""
    native = _native(u)
    result: Tensor = (
        native.JacobianPenalty.apply(u, margin, corner, threads)
        if native
        else reference.jacobian_penalty(u, margin, corner)
    )
    return result


def invert(displacement: Tensor, start: Tensor, threads: int = 1) -> tuple[Tensor, float]:
    """``v`` with ``v(y) + u(y + v(y)) = 0`` on the same grid, and the largest residual, in voxels.

    Newton's method with the local Jacobian (native), or the fixed point (reference); from `start` on.
    """
    native = _native(displacement)
    if native:
        result: tuple[Tensor, float] = native.invert(displacement, start, 20, 1e-3, threads)
        return result
    return reference.invert(displacement, start)


def inverse_pair(
    displacement: Tensor, start: Tensor, scale: tuple[float, float, float], threads: int = 1
) -> tuple[Tensor, Tensor]:
    """The inverse of a displacement grid such that both orders of composition come back about equally close.

    Newton's method makes ``v(y) + u(y + v(y))`` vanish at every node ``y``; between the nodes, where ``v`` is
    interpolated, ``u(x) + v(x + u(x))`` does not, most of all where the map squeezes. One relaxed least-squares step on
    the latter (ours) halves the larger of the two errors.

    Parameters
    ----------
    displacement, start : ``(3, Z, Y, X)`` voxels; `start` is a first guess of the inverse.
    scale : ``(x, y, z)``, what a voxel counts in the error.

    Returns
    -------
    inverse : ``(3, Z, Y, X)`` voxels.
    error : ``(Z, Y, X)``, ``|S (u(x) + v(x + u(x)))|``.
    """
    native = _native(displacement)
    if native:
        result: tuple[Tensor, Tensor] = native.inverse_pair(displacement, start, 0.5, list(scale), threads)
        return result
    return reference.inverse_pair(displacement, start, 0.5, displacement.new_tensor(scale))


def release_memory() -> None:
    """Give freed memory back to the system, where the native module knows how."""
    native = native_module()
    if native:
        native.native.release_memory()


def return_blocks_from(size: int) -> None:
    """Have the allocator give blocks of `size` bytes and more back when they are freed: for a process of our own.

    It holds for the rest of the process, so it is the command line that asks for it, never `register`.
    """
    native = native_module()
    if native:
        native.native.return_blocks_from(size)


def jacobian_map(displacement: Tensor, threads: int = 1) -> Tensor:
    """``det(I + ∂u_i/∂x_j)`` at every voxel, ``(3, Z, Y, X)`` voxels → ``(Z, Y, X)``; see `reference.jacobian_map`."""
    native = _native(displacement)
    result: Tensor = native.jacobian_map(displacement, threads) if native else reference.jacobian_map(displacement)
    return result


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on a list of tensors, each with a rate of its own.

    Beside torch's: one pass over memory, and it does not import torch's compiler, which costs more than a second.

    Parameters
    ----------
    parameters : leaf tensors with gradients.
    betas, epsilon : as in the paper.
    """

    def __init__(
        self, parameters: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.parameters, self.betas, self.epsilon, self.threads = parameters, betas, epsilon, threads
        self.count = 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, rate: float | list[float]) -> None:
        """One step along the gradients, which are then cleared. `rate`: one for all, or one a tensor."""
        self.count += 1
        rates = rate if isinstance(rate, list) else [rate] * len(self.parameters)
        first_correction = 1 / (1 - self.betas[0] ** self.count)
        correction = 1 / (1 - self.betas[1] ** self.count)
        for p, r, first, second in zip(self.parameters, rates, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            r *= first_correction
            native = _native(p) if p.is_contiguous() else None
            if native:
                native.adam(p, p.grad, first, second, self.betas, r, correction, self.epsilon, self.threads)
            else:
                reference.adam(p, p.grad, first, second, self.betas, r, correction, self.epsilon)
            p.grad = None


class Kronecker:
    """Steps for the matrices of a small network: gradients whitened on both sides (Shampoo, Gupta et al. 2018).

    For a matrix with gradient ``G``: ``A ← βA + GGᵀ``, ``B ← βB + GᵀG``; the step goes along ``A^-1/4 M B^-1/4``, with
    ``M`` the running mean of ``G``, and is as long as Adam's on the same gradients, which also does the vectors. The
    roots are taken anew at the first four steps and at every fourth from then on.

    Parameters
    ----------
    parameters, betas, epsilon : as for `Adam`; the second of `betas` is β.
    """

    def __init__(
        self, parameters: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.parameters, self.beta = parameters, betas[1]
        self.adam = Adam(parameters, betas, epsilon, threads)
        self.factors = [
            (torch.zeros(p.shape[0], p.shape[0]).to(p), torch.zeros(p.shape[1], p.shape[1]).to(p))
            if p.ndim == 2
            else None
            for p in parameters
        ]
        self.roots: list[tuple[Tensor, Tensor] | None] = [None] * len(parameters)
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.betas = betas

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step along the gradients, which are then cleared."""
        directions: list[Tensor | None] = []
        anew = self.adam.count < 4 or self.adam.count % 4 == 0
        for k, (p, factors, mean) in enumerate(zip(self.parameters, self.factors, self.mean, strict=True)):
            if factors is None or p.grad is None:
                directions.append(None)
                continue
            left, right = factors
            left.mul_(self.beta).addmm_(p.grad, p.grad.T)
            right.mul_(self.beta).addmm_(p.grad.T, p.grad)
            mean.lerp_(p.grad, 1 - self.betas[0])
            roots = self.roots[k]
            if roots is None or anew:
                roots = self.roots[k] = _inverse_fourth_root(left), _inverse_fourth_root(right)
            directions.append(roots[0] @ mean @ roots[1])
        before = [p.detach().clone() for p in self.parameters]
        self.adam.step(rate)
        for p, old, direction in zip(self.parameters, before, directions, strict=True):
            length = None if direction is None else direction.norm()
            if direction is not None and length is not None and length > 0:
                p.copy_(old - direction * ((p - old).norm() / length))


def _inverse_fourth_root(a: Tensor) -> Tensor:
    """``(a + ε λ_max I)^-1/4`` of a symmetric positive matrix, ε = 1e-6."""
    values, vectors = torch.linalg.eigh(a)
    top = values[-1].clamp(min=torch.finfo(a.dtype).tiny)
    root = (values.clamp(min=0) + 1e-6 * top) ** -0.25
    return (vectors * root) @ vectors.T


def instruction_set() -> str:
    """The instruction set that the native ops use, or ``"torch"`` where they are missing."""
    native = native_module()
    return str(native.native.instruction_set()) if native else "torch"
