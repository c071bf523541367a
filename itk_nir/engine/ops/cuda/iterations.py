"""The iterations of a level on a card as one list of launches, whose arguments are packed once.

Between the control points and their step kernels work on packed displacements: no autograd, no memory that comes and
goes; the host writes four numbers an iteration and launches. So is the similarity where it is a local correlation; any
other metric is evaluated by autograd, between two such lists.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compositions import FILE, LARGEST_BYTES, pack, packed_size
from itk_nir.engine.ops.cuda.images import LnccFixed, Rows, map_argument, spline_words, takes_rows
from itk_nir.engine.ops.cuda.launching import Prepared, Size, blocks, f32, pointer, prepare, repeat
from itk_nir.engine.ops.cuda.penalties import NODE_BLOCK, inverse_square, node_blocks
from itk_nir.engine.ops.cuda.sums import SUM_BYTES, WIDE_SUM_BYTES

#: Bytes of shared memory of the sums of three quantities of a block.
THREE_SUM_BYTES = 3 * WIDE_SUM_BYTES
THREADS = (256, 1, 1)
#: The arguments that change, by their numbers: of `penalties`, `iteration_totals`, `settle_adam` and `add_planar`.
CORNER = 6
SCORES, MORE, ITERATION = 0, 3, 9
RATE, CORRECTION = 10, 11
SLOPE = 0


def _each(kernel: str, count: int, *arguments: object, file: str = FILE, shared: int = 0) -> Prepared:
    """A launch with a thread for each of `count` things."""
    return prepare(file, kernel, (blocks(count), 1, 1), THREADS, *arguments, shared=shared)


def _carved(room: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """A tensor in memory that is free, or in its own where that is too little; and what is left of the memory."""
    count = math.prod(shape)
    if count > room.numel():
        return room.new_empty(shape), room
    return room[:count].view(shape), room[count:]


class _Iterations:
    """What iterations have in common, whatever measures the similarity.

    The loss is ``1 - similarity + w_d D(u) + w_j J(u)`` with the diffusion ``D`` and the Jacobian penalty ``J`` of
    `ops.displacements`, of ``u = (id + outer) o exp(scale v) - id``.

    Parameters
    ----------
    points : Tensor
        ``v``, ``(3, z, y, x)`` float32, contiguous: changed in place.
    first, second : Tensor
        Adam's moments, like `points`: changed in place.
    betas : tuple of float
        Decay rates of the moments.
    epsilon : float
        Adam's smallest number.
    iterations : int
        The most iterations.
    outer : Tensor or None
        ``(3, z, y, x)``, in units of the lattice.
    integration_steps : int
        Squarings; 0 for ``scale v`` in place of its exponential.
    scale : float
        Units of the lattice in one of `points`.
    penalties : tuple of float
        Weight and scale of the diffusion, weight and margin of the Jacobian penalty; what has weight 0 is left out.
    """

    numbers: Tensor

    def __init__(
        self, points: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], epsilon: float,
        iterations: int, outer: Tensor | None, integration_steps: int, scale: float,
        penalties: tuple[float, float, float, float],
    ) -> None:  # fmt: skip
        #: Similarity and loss of each iteration, ``(iterations, 2)``.
        self.numbers = points.new_zeros(iterations, 2)
        self._points, scale = points.detach(), scale * 0.5**integration_steps
        self._gradient = points.new_empty((*points.shape[1:], 4))
        # Three sums a node, which every kernel that takes them leaves at zero, and the sizes of what is scattered.
        self._sums = torch.zeros(3 * points[0].numel(), dtype=torch.int64, device=points.device)
        self._bits = torch.zeros(max(1, integration_steps), dtype=torch.int32, device=points.device)
        #: Where the size of the gradient of the displacement goes, if that is what is scattered first.
        self._first_bits = self._bits if integration_steps and outer is None else None
        fields = [torch.empty_like(self._gradient) for _ in range(integration_steps + 1)]
        packed_outer = None if outer is None else pack(outer.detach().contiguous(), 1.0)
        flow, self._u = self._flow(fields, packed_outer, scale)
        diffusion_weight, diffusion_scale, jacobian_weight, margin = map(float, penalties)
        self._weights, grid = (diffusion_weight, jacobian_weight), node_blocks(self._size)
        self._energies = points.new_empty(2 * math.prod(grid))
        self._penalties = prepare(
            "penalties.cu", "penalties", grid, NODE_BLOCK, self._u, self._size, inverse_square(diffusion_scale),
            diffusion_weight, margin, jacobian_weight, 0, self._gradient, self._energies, shared=SUM_BYTES,
        )  # fmt: skip
        self._begin = [*flow, self._penalties]
        self._end = _each(
            "settle_adam", self._count, self._sums if integration_steps else None, self._gradient, float(scale),
            self._bits[-1:], self._size, self._points, first, second, 1 - betas[0], 1 - betas[1], 0.0, 0.0,
            float(epsilon),
        )  # fmt: skip
        self._step = [*self._adjoint(fields, packed_outer), self._end]

    def _totals(self, scores: Tensor, scale: float) -> Prepared:
        """The launch that makes the numbers of an iteration, of the partial sums of the similarity."""
        return prepare(
            "sums.cu", "iteration_totals", (1, 1, 1), THREADS, scores, scores.numel(), scale, None, self._energies,
            self._energies.numel() // 2, *self._weights, self.numbers, 0, shared=THREE_SUM_BYTES,
        )  # fmt: skip

    @property
    def _size(self) -> Size:
        return packed_size(self._gradient)

    @property
    def _count(self) -> int:
        return self._gradient.numel() // 4

    def _flow(self, fields: list[Tensor], outer: Tensor | None, scale: float) -> tuple[list[Prepared], Tensor]:
        """The launches from the control points to the displacement, and where that is."""
        first, *squared = fields
        bits = self._bits
        launches = [
            _each(
                "begin_flow", self._count, self._points, first, squared[0] if squared else None, bits, len(bits),
                self._size, float(scale),
            )
        ]  # fmt: skip
        for u, out in itertools.pairwise(squared):
            launches.append(_each("compose", self._count, u, u, out, None, self._size))
        if outer is None:
            return launches, fields[-1]
        u = torch.empty_like(first)
        return [*launches, _each("compose", self._count, outer, fields[-1], u, None, self._size)], u

    def _adjoint(self, fields: list[Tensor], outer: Tensor | None) -> list[Prepared]:
        """The launches from the gradient of the displacement to that of the velocity, but for the last sums."""
        n, count, squared = self._size, self._count, fields[-2::-1]
        launches = []
        if outer is not None:
            following = self._bits if squared else None
            launches.append(
                _each(
                    "compose_adjoint", count, outer, fields[-1], self._gradient, None, None, following, n,
                    shared=LARGEST_BYTES if squared else 0,
                )
            )  # fmt: skip
        for number, u in enumerate(squared):
            bits = self._bits[number:]
            if number:
                launches.append(
                    _each(
                        "settle", count, self._sums, self._gradient, None, 1.0, self._bits[number - 1 :], bits, n,
                        shared=LARGEST_BYTES,
                    )
                )  # fmt: skip
            launches.append(_each("compose_adjoint", count, u, u, self._gradient, self._sums, bits, None, n))
        return launches

    def step(self, rate: float, correction: float) -> None:
        """The step of Adam along the gradient of what was evaluated last.

        Parameters
        ----------
        rate : float
            The step size, corrected for the first moment.
        correction : float
            For the second moment.
        """
        self._end.put(RATE, rate)
        self._end.put(CORRECTION, correction)
        repeat(self._step, self._points.device)


class WindowIterations(_Iterations):
    """The iterations of a level whose metric is the local correlation: nothing but launches.

    Parameters
    ----------
    *common : object
        Of all iterations: see `_Iterations`.
    moving : Tensor
        ``(Z', Y', X')``.
    fixed : LnccFixed
        The local sums of the fixed image.
    rows, back : list of tuple
        Nodes → voxels along x, y and z, and the transposes.
    grid_to_moving, displacement_to_moving : ndarray
        As for `WarpSpline`.
    """

    def __init__(
        self, *common: Any, moving: Tensor, fixed: LnccFixed, rows: list[Rows], back: list[Rows],
        grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray,
    ) -> None:  # fmt: skip
        super().__init__(*common)
        maps = map_argument(grid_to_moving, displacement_to_moving)
        similarity, scores = self._similarity(moving.detach().contiguous(), fixed, rows, back, maps)
        self._last = self._totals(scores, 1 / max(1.0, fixed.count))
        self._evaluation = [*self._begin, *similarity, self._last]

    @staticmethod
    def takes(fixed: object, rows: list[Rows], depth: int) -> bool:
        """Whether there are kernels for a level.

        Parameters
        ----------
        fixed : object
            What a local correlation has prepared.
        rows : list of tuple
            Nodes → voxels along x, y and z.
        depth : int
            Nodes along z.

        Returns
        -------
        bool
        """
        return isinstance(fixed, LnccFixed) and takes_rows(rows, depth)

    def _similarity(
        self, moving: Tensor, fixed: LnccFixed, rows: list[Rows], back: list[Rows], maps: ctypes.Structure
    ) -> tuple[list[Prepared], Tensor]:
        """The launches from the displacement to its gradient, and what its blocks have of the similarity."""
        bits = self._first_bits
        warped, by_image = (torch.empty_like(fixed.image) for _ in range(2))
        slopes, for_gradient = (warped.new_empty((3, *warped.shape)) for _ in range(2))
        scores = fixed.partial()
        launches = []
        for words, options in (
            spline_words(moving, self._u, rows, maps, warped, slopes),
            fixed.statistics(warped, for_gradient, scores),
            fixed.gradient(for_gradient, warped, by_image),
        ):
            launches.append(prepare(*words, **options))
        nz, ny, nx = warped.shape
        (_, (_, y_weights), (_, z_weights)), (lz, ly, _) = back, self._gradient.shape[:3]
        # What the gradient by the image was made of is over then.
        along_z, room = _carved(for_gradient.view(-1), 3, lz, ny, nx)
        along_y, _ = _carved(room, 3, lz, ly, nx)
        launches += [
            _each(
                "banded_product", along_z.numel(), slopes, by_image, along_z, *back[2], z_weights.shape[1], 3, nz, lz,
                ny * nx, file="banded.cu",
            ),
            _each(
                "banded", along_y.numel(), along_z, along_y, *back[1], y_weights.shape[1], 3 * lz, ny, ly, nx,
                file="banded.cu",
            ),
            _each(
                "gather_nodes", self._count, along_y, *back[0], back[0][1].shape[1], nx, self._size,
                -1 / max(1.0, fixed.count), self._gradient, bits, file="banded.cu",
                shared=0 if bits is None else LARGEST_BYTES,
            ),
        ]  # fmt: skip
        return launches, scores

    def evaluate(self, iteration: int, corner: int) -> None:
        """Put the similarity and the loss of the control points into `numbers`; nothing waits.

        Parameters
        ----------
        iteration : int
            Where in `numbers`.
        corner : int
            0 to 7, of the cells, see `displacements.jacobian_penalty`.
        """
        self._penalties.put(CORNER, corner)
        self._last.put(ITERATION, iteration)
        repeat(self._evaluation, self._points.device)


def _slope(loss: Tensor, u: Tensor) -> Tensor:
    """The gradient of a loss, which may be a constant."""
    found = torch.autograd.grad(loss, u, allow_unused=True)[0] if loss.requires_grad else None
    return torch.zeros_like(u) if found is None else found.contiguous()


class MeasuredIterations(_Iterations):
    """The iterations of a level with any other metric, which is evaluated by autograd.

    Parameters
    ----------
    *common : object
        Of all iterations: see `_Iterations`.
    measure : callable
        ``(3, z, y, x)`` displacement in units of the lattice → the similarity and, if there is any, what else is in the
        loss: scalars with their gradients.
    """

    def __init__(self, *common: Any, measure: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> None:
        super().__init__(*common)
        self._measure = measure
        self._planar = torch.empty_like(self._points)
        self._begin.append(_each("unpack", self._count, self._u, self._planar, self._size, 1.0))
        # Where what is measured will stand, whose memory comes and goes, another tensor does.
        self._add = _each(
            "add_planar", self._count, self._planar, self._gradient, self._first_bits, self._size,
            shared=0 if self._first_bits is None else LARGEST_BYTES,
        )  # fmt: skip
        self._last = self._totals(self.numbers[0, :1], 1.0)

    def evaluate(self, iteration: int, corner: int) -> None:
        """See `WindowIterations.evaluate`.

        Parameters
        ----------
        iteration, corner : int
            See there.
        """
        device = self._points.device
        self._penalties.put(CORNER, corner)
        repeat(self._begin, device)
        with torch.enable_grad():
            u = self._planar.detach().requires_grad_()
            similarity, more = self._measure(u)
            slope = _slope(-similarity if more is None else more - similarity, u)
        similarity, more = f32(similarity), None if more is None else f32(more)
        self._add.put(SLOPE, pointer(slope))
        self._last.put(SCORES, pointer(similarity))
        self._last.put(MORE, 0 if more is None else pointer(more))
        self._last.put(ITERATION, iteration)
        # The memory of what was measured is given to nobody before these are launched.
        repeat([self._add, self._last], device)
