"""Separable matrices, warps and the local correlation on a card: the ops of `ops.images` with their gradients."""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.caching import ById
from itk_nir.engine.ops.cuda import launching
from itk_nir.engine.ops.cuda.compositions import pack, packed_size
from itk_nir.engine.ops.cuda.launching import blocks, f32, launch, launch_each, most_shared, size_of
from itk_nir.engine.ops.cuda.sums import FILE as SUMS
from itk_nir.engine.ops.cuda.sums import SPAN, SUM_BYTES, WIDE_SUM_BYTES, total

#: The arguments and the options of `launching.launch`.
Words = tuple[tuple[Any, ...], dict[str, Any]]
#: A banded matrix: where its rows start, and their weights.
Rows = tuple[Tensor, Tensor]

#: Voxels of a block of `warp_spline` along x, y and z.
SPLINE_BLOCK = (32, 4, 2)
#: Columns of a block of the local correlation along x and y.
WINDOW_BLOCK = (32, 8)
#: The file of the local correlation, and the largest radius that it is compiled for.
LNCC = "lncc.cu"
LARGEST_RADIUS = 12


class _Map(ctypes.Structure):
    _fields_ = [("index", ctypes.c_float * 12), ("vector", ctypes.c_float * 9)]


class _Places(ctypes.Structure):
    _fields_ = [("step", ctypes.c_float * 3), ("origin", ctypes.c_float * 3)]


class _Rows(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("weights", ctypes.c_void_p)]


class _Fixed(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("image", "weight", "inverse_count", "mean", "inverse_variance")]


@lru_cache(maxsize=64)
def _map_of(points: bytes, vectors: bytes) -> _Map:
    index, vector = np.frombuffer(points), np.frombuffer(vectors)
    return _Map((ctypes.c_float * 12)(*index), (ctypes.c_float * 9)(*vector))


def map_argument(grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray) -> _Map:
    """The maps of a warp as kernels take them.

    Parameters
    ----------
    grid_to_moving, displacement_to_moving : ndarray
        ``(3, 4)`` and ``(3, 3)`` float64, as of `images.warp`.

    Returns
    -------
    ctypes.Structure
    """
    return _map_of(grid_to_moving.tobytes(), displacement_to_moving.tobytes())


def banded(x: Tensor, rows: Rows, factor: Tensor | None = None) -> Tensor:
    """A banded matrix along the middle axis, see `reference.banded`.

    Parameters
    ----------
    x : Tensor
        ``(outer, n, inner)`` float32, contiguous.
    rows : tuple of Tensor
        Where the rows start (int32) and their weights (float32).
    factor : Tensor or None
        ``(n, inner)`` float32: what `x` is multiplied by first.

    Returns
    -------
    Tensor
        ``(outer, n_out, inner)``.
    """
    start, weights = rows
    outer, n_in, inner = x.shape
    n_out, taps = weights.shape
    out = x.new_empty((outer, n_out, inner))
    sizes = (taps, outer, n_in, n_out, inner)
    if factor is None:
        launch_each("banded.cu", "banded", out.numel(), x, out, start, weights, *sizes)
    else:
        launch_each("banded.cu", "banded_product", out.numel(), x, factor, out, start, weights, *sizes)
    return out


class Banded(torch.autograd.Function):
    """A banded matrix along the middle axis of ``x (outer, n, inner)``, see `reference.banded`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, back: Rows | None, threads: int) -> Tensor:
        ctx.back = back
        return banded(f32(x), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return banded(f32(grads[0]), ctx.back), None, None, None


class Warp(torch.autograd.Function):
    """See `images.warp`."""

    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, displacement: Tensor, grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray,
        threads: int,
    ) -> Tensor:  # fmt: skip
        image, u = f32(moving), f32(displacement)
        warped = u.new_empty(u.shape[1:])
        gradient = torch.empty_like(u) if displacement.requires_grad else None
        at = map_argument(grid_to_moving, displacement_to_moving)
        launch_each("warp.cu", "warp", warped.numel(), image, size_of(image), u, size_of(u), at, warped, gradient)
        ctx.gradient = gradient
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, ctx.gradient * grads[0], None, None, None


class LinearWarp(torch.autograd.Function):
    """`Warp` by a linear map that stays on the host, see `images.linear_warp`: nothing is brought to the card."""

    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, parts: Tensor, shape: tuple[int, int, int], places: np.ndarray,
        grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray,
    ) -> Tensor:  # fmt: skip
        image, linear = f32(moving), parts.detach().double().numpy()
        change = linear[:, :3] - np.eye(3)
        index = grid_to_moving.copy()
        index[:, :3] += displacement_to_moving @ (change * places[:, 0])
        index[:, 3] += displacement_to_moving @ (change @ places[:, 1] + linear[:, 3])
        warped = image.new_empty(shape)
        ctx.gradient = image.new_empty((3, *shape)) if parts.requires_grad else None
        ctx.places, at = places, map_argument(index, displacement_to_moving)
        launch_each(
            "warp.cu", "warp", warped.numel(), image, size_of(image), None, size_of(warped), at, warped, ctx.gradient
        )
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        slopes, factor = ctx.gradient, f32(grads[0])
        count = blocks(factor.numel(), SPAN)
        partial, sums = slopes.new_empty(12 * count), torch.empty(12, dtype=torch.float64, device=slopes.device)
        places = _Places(*((ctypes.c_float * 3)(*column) for column in ctx.places.T))
        launch(
            "warp.cu", "linear_sums", (count, 1, 1), (256, 1, 1), slopes, factor, size_of(factor), places, SPAN,
            partial, shared=SUM_BYTES,
        )  # fmt: skip
        launch(SUMS, "totals", (12, 1, 1), (256, 1, 1), partial, count, 1.0, None, sums, shared=WIDE_SUM_BYTES)
        return None, sums.cpu().float().reshape(3, 4), None, None, None, None


class WarpSpline(torch.autograd.Function):
    """`Warp` of a spline, which is evaluated in shared memory: the displacement of all voxels is never held."""

    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, lattice: Tensor, rows: list[Rows], back: list[Rows], grid_to_moving: np.ndarray,
        displacement_to_moving: np.ndarray, threads: int,
    ) -> Tensor:  # fmt: skip
        image, nodes = f32(moving), pack(f32(lattice), 1.0)
        shape = tuple(weights.shape[0] for _, weights in reversed(rows))
        warped = nodes.new_empty(shape)
        gradient = nodes.new_empty((3, *shape)) if lattice.requires_grad else None
        at = map_argument(grid_to_moving, displacement_to_moving)
        if takes_rows(rows, lattice.shape[1]):
            words, options = spline_words(image, nodes, rows, at, warped, gradient)
            launch(*words, **options)
        else:  # an axis of few voxels has few nodes
            u = f32(lattice)
            for axis, r in zip((3, 2, 1), rows, strict=True):
                s = list(u.shape)
                flat = u.reshape(int(np.prod(s[:axis])), s[axis], int(np.prod(s[axis + 1 :])))
                s[axis] = r[1].shape[0]
                u = banded(flat, r).reshape(s)
            launch_each("warp.cu", "warp", warped.numel(), image, size_of(image), u, size_of(u), at, warped, gradient)
        ctx.gradient, ctx.lattice, ctx.back = gradient, lattice.shape, back
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        c, lz, ly = ctx.lattice[:3]
        _, nz, ny, nx = ctx.gradient.shape
        factor = f32(grads[0]).reshape(nz, ny * nx)
        out = banded(ctx.gradient.reshape(c, nz, ny * nx), ctx.back[2], factor)
        out = banded(out.reshape(c * lz, ny, nx), ctx.back[1])
        out = banded(out.reshape(c * lz * ly, nx, 1), ctx.back[0])
        return None, out.reshape(ctx.lattice), None, None, None, None, None


def takes_rows(rows: list[Rows], depth: int) -> bool:
    """Whether the kernel evaluates a spline with these rows: an axis of few voxels has fewer weights a row.

    Parameters
    ----------
    rows : list of tuple
        Along x, y and z.
    depth : int
        Nodes along z.

    Returns
    -------
    bool
    """
    taps = [weights.shape[1] for _, weights in rows]
    return taps == [4, 4, 4 if depth > 1 else 1]


def spline_words(
    image: Tensor, nodes: Tensor, rows: list[Rows], maps: ctypes.Structure, warped: Tensor, gradient: Tensor | None
) -> Words:
    """What launches the kernel that warps by a spline.

    Parameters
    ----------
    image : Tensor
        ``(Z', Y', X')`` float32, contiguous.
    nodes : Tensor
        ``(z, y, x, 4)``, of `pack`.
    rows : list of tuple
        Along x, y and z, such that `takes_rows`.
    maps : ctypes.Structure
        Of `map_argument`.
    warped : Tensor
        ``(Z, Y, X)``: the result.
    gradient : Tensor or None
        ``(3, Z, Y, X)``: its gradient by the displacement.

    Returns
    -------
    tuple
        The arguments and the options of `launching.launch`.
    """
    width, height = (_most_nodes(ById(rows[a][0]), SPLINE_BLOCK[a]) for a in (0, 1))
    n = size_of(warped)
    grid = blocks(n.x, SPLINE_BLOCK[0]), blocks(n.y, SPLINE_BLOCK[1]), blocks(n.z, SPLINE_BLOCK[2])
    along = [_Rows(*map(launching.pointer, r)) for r in rows]
    return (
        "warp.cu", "warp_spline", grid, SPLINE_BLOCK, image, size_of(image), nodes, packed_size(nodes), *along, n, maps,
        warped, gradient, width, height,
    ), {"shared": 16 * width * (2 * height + 8)}  # fmt: skip


@lru_cache(maxsize=256)
def _most_nodes(start: ById, per: int) -> int:
    """The most nodes along an axis that a block of `warp_spline` needs: read from the card once a matrix."""
    first = start.value.cpu().numpy()
    begin = np.arange(0, len(first), per)
    return int((first[np.minimum(begin + per, len(first)) - 1] - first[begin]).max()) + 4


def takes_radius(radius: int, device: torch.device) -> bool:
    """Whether the local correlation has kernels for a radius on a card; the reference does the others.

    Parameters
    ----------
    radius : int
        Of the window, voxels.
    device : torch.device
        With its number.

    Returns
    -------
    bool
    """
    if not (1 <= radius <= LARGEST_RADIUS and _window_memory(radius, 3) <= most_shared(device)):
        return False
    try:
        launching.module_on(LNCC, radius_macros(radius), device)
    except RuntimeError as error:  # CompilerError, DriverError
        warnings.warn(
            f"itk_nir: the kernels of the local correlation are not available ({error}); torch's own ops run instead",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def radius_macros(radius: int) -> tuple[str, ...]:
    """What the file of the local correlation is compiled with for a radius.

    Parameters
    ----------
    radius : int
        Of the window, voxels.

    Returns
    -------
    tuple of str
    """
    return (f"RADIUS={radius}",)


def _window_memory(radius: int, arrays: int) -> int:
    """Bytes of shared memory of the kernels of lncc.cu."""
    width, tx, ty = 2 * radius + 1, *WINDOW_BLOCK
    px, py = (tx + 2 * radius + 3) // 4 * 4, ty + 2 * radius
    return 4 * max(arrays * py * px + 3 * py * tx + 3 * width * ty * tx, 256)


class LnccFixed:
    """The local sums of a fixed image, see `images.Lncc`: `count` windows of them count."""

    image: Tensor
    weight: Tensor | None
    radius: int
    epsilon: float
    inverse_count: Tensor
    mean: Tensor
    inverse_variance: Tensor
    count: float
    pointers: ctypes.Structure

    def __init__(self, image: Tensor, weight: Tensor | None, radius: int, epsilon: float, threads: int) -> None:
        self.image, self.weight = f32(image), None if weight is None else f32(weight)
        self.radius, self.epsilon = radius, epsilon
        self.inverse_count, self.mean, self.inverse_variance = (torch.empty_like(self.image) for _ in range(3))
        partial = self.partial()
        words, options = self.words(
            "lncc_prepare", 2, self.image, self.weight, size_of(self.image), self.depth, float(epsilon),
            self.inverse_count, self.mean, self.inverse_variance, partial,
        )  # fmt: skip
        launch(*words, **options)
        self.count = float(total(partial))
        maps = (self.image, self.weight, self.inverse_count, self.mean, self.inverse_variance)
        #: What the kernels need of the fixed image.
        self.pointers = _Fixed(*[None if m is None else launching.pointer(m) for m in maps])

    @property
    def depth(self) -> int:
        """Planes that a block walks along."""
        return max(2 * self.radius + 1, blocks(self.image.shape[0], 4))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks along x, y and z."""
        z, y, x = self.image.shape
        return blocks(x, WINDOW_BLOCK[0]), blocks(y, WINDOW_BLOCK[1]), blocks(z, self.depth)

    def partial(self) -> Tensor:
        """A number for each block."""
        x, y, z = self.grid
        return self.image.new_empty(x * y * z)

    def words(self, kernel: str, arrays: int, *arguments: Any) -> Words:
        """What launches a kernel of lncc.cu for this image.

        Parameters
        ----------
        kernel : str
            Its name.
        arrays : int
            How many values of a voxel it reads.
        *arguments : object
            See `launching.launch`.

        Returns
        -------
        tuple
            The arguments and the options of `launching.launch`.
        """
        options = {"shared": _window_memory(self.radius, arrays), "defines": radius_macros(self.radius)}
        return (LNCC, kernel, self.grid, (*WINDOW_BLOCK, 1), *arguments), options

    def statistics(self, moving: Tensor, maps: Tensor | None, partial: Tensor) -> Words:
        """What launches the sums of a moving image.

        Parameters
        ----------
        moving : Tensor
            ``(Z, Y, X)`` float32, contiguous.
        maps : Tensor or None
            ``(3, Z, Y, X)``: what the gradient needs.
        partial : Tensor
            Of `partial`: the sums of cc² of the blocks.

        Returns
        -------
        tuple
            See `words`.
        """
        kernel, arrays = ("lncc_statistics", 2) if self.weight is None else ("lncc_statistics_weighted", 3)
        least = max(self.epsilon, 1e-30)
        return self.words(kernel, arrays, moving, self.pointers, size_of(moving), self.depth, least, maps, partial)

    def gradient(self, maps: Tensor, moving: Tensor, out: Tensor) -> Words:
        """What launches the gradient of the sum of cc² by the moving image.

        Parameters
        ----------
        maps, moving : Tensor
            Of `statistics`.
        out : Tensor
            ``(Z, Y, X)``.

        Returns
        -------
        tuple
            See `words`.
        """
        return self.words("lncc_gradient", 3, maps, moving, self.pointers, size_of(moving), self.depth, out)


class Lncc(torch.autograd.Function):
    """The mean squared local correlation with a fixed image, see `images.Lncc`."""

    @staticmethod
    def forward(ctx: Any, moving: Tensor, fixed: LnccFixed, threads: int) -> Tensor:
        m, partial = f32(moving), fixed.partial()
        gradient = torch.empty_like(m) if moving.requires_grad else None
        maps = None if gradient is None else m.new_empty((3, *m.shape))
        words, options = fixed.statistics(m, maps, partial)
        launch(*words, **options)
        if gradient is not None and maps is not None:
            words, options = fixed.gradient(maps, m, gradient)
            launch(*words, **options)
        ctx.gradient, ctx.count = gradient, max(1.0, fixed.count)
        return total(partial, 1 / ctx.count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient * (grads[0] / ctx.count), None, None
