"""The iterations of a level on a card as one list of launches, whose arguments are packed once.

Everything between the control points and their step is done by kernels that work on packed displacements: no autograd,
no memory that comes and goes; the host writes four numbers an iteration and launches.
"""

from __future__ import annotations

import ctypes
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compositions import FILE, LARGEST_BYTES, pack, packed_size
from itk_nir.engine.ops.cuda.images import LnccFixed, Rows, map_argument, spline_words, takes_rows
from itk_nir.engine.ops.cuda.launching import Prepared, Size, blocks, prepare, repeat
from itk_nir.engine.ops.cuda.penalties import NODE_BLOCK, inverse_square, node_blocks
from itk_nir.engine.ops.cuda.sums import SUM_BYTES, WIDE_SUM_BYTES

#: Bytes of shared memory of the sums of three quantities of a block.
THREE_SUM_BYTES = 3 * WIDE_SUM_BYTES
THREADS = (256, 1, 1)
#: The arguments that change, by their numbers: of `penalties`, `iteration_totals` and `settle_adam`.
CORNER, ITERATION, RATE, CORRECTION = 6, 8, 10, 11


def _each(kernel: str, count: int, *arguments: object, file: str = FILE, shared: int = 0) -> Prepared:
    """A launch with a thread for each of `count` things."""
    return prepare(file, kernel, (blocks(count), 1, 1), THREADS, *arguments, shared=shared)


def _carved(room: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """A tensor in memory that is free, or in some of its own where that is too little; and what is left of the memory."""
    count = math.prod(shape)
    if count > room.numel():
        return room.new_empty(shape), room
    return room[:count].view(shape), room[count:]


class LevelIterations:
    """The iterations of a level whose metric is the local correlation.

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
    moving : Tensor
        ``(Z', Y', X')``.
    fixed : LnccFixed
        The local sums of the fixed image.
    rows, back : list of tuple
        Nodes → voxels along x, y and z, and the transposes, such that `takes_rows`.
    grid_to_moving, displacement_to_moving : ndarray
        As for `WarpSpline`.
    diffusion_weight, diffusion_scale, jacobian_weight, jacobian_margin : float
        Of the penalties; one whose weight is 0 is left out.
    """

    numbers: Tensor

    def __init__(
        self, points: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], epsilon: float,
        iterations: int, *, outer: Tensor | None, integration_steps: int, scale: float, moving: Tensor,
        fixed: LnccFixed, rows: list[Rows], back: list[Rows], grid_to_moving: np.ndarray,
        displacement_to_moving: np.ndarray, diffusion_weight: float, diffusion_scale: float, jacobian_weight: float,
        jacobian_margin: float,
    ) -> None:  # fmt: skip
        #: Similarity and loss of each iteration, ``(iterations, 2)``.
        self.numbers = points.new_zeros(iterations, 2)
        self._points, scale = points.detach(), scale * 0.5**integration_steps
        self._gradient = points.new_empty((*points.shape[1:], 4))
        # Three sums a node, which every kernel that takes them leaves at zero, and the sizes of what is scattered.
        self._sums = torch.zeros(3 * points[0].numel(), dtype=torch.int64, device=points.device)
        self._bits = torch.zeros(max(1, integration_steps), dtype=torch.int32, device=points.device)
        fields = [torch.empty_like(self._gradient) for _ in range(integration_steps + 1)]
        packed_outer = None if outer is None else pack(outer.detach().contiguous(), 1.0)
        flow, u = self._flow(fields, packed_outer, scale)
        weights = inverse_square(diffusion_scale), diffusion_weight, jacobian_margin, jacobian_weight
        grid = node_blocks(self._size)
        energies = points.new_empty(2 * math.prod(grid))
        self._penalties = prepare(
            "penalties.cu", "penalties", grid, NODE_BLOCK, u, self._size, *map(float, weights), 0, self._gradient,
            energies, shared=SUM_BYTES,
        )  # fmt: skip
        maps = map_argument(grid_to_moving, displacement_to_moving)
        # What is scattered first is the gradient of the displacement, or of what is composed with `outer`.
        direct = self._bits if integration_steps and outer is None else None
        similarity, scores = self._similarity(moving.detach().contiguous(), fixed, u, rows, back, maps, direct)
        self._totals = prepare(
            "sums.cu", "iteration_totals", (1, 1, 1), THREADS, scores, scores.numel(), 1 / max(1.0, fixed.count),
            energies, energies.numel() // 2, float(diffusion_weight), float(jacobian_weight), self.numbers, 0,
            shared=THREE_SUM_BYTES,
        )  # fmt: skip
        self._evaluation = [*flow, self._penalties, *similarity, self._totals]
        adjoint = self._adjoint(fields, packed_outer)
        self._end = _each(
            "settle_adam", self._count, self._sums if integration_steps else None, self._gradient, float(scale),
            self._bits[-1:], self._size, self._points, first, second, 1 - betas[0], 1 - betas[1], 0.0, 0.0,
            float(epsilon),
        )  # fmt: skip
        self._step = [*adjoint, self._end]

    @staticmethod
    def takes(points: Tensor, fixed: object, rows: list[Rows]) -> bool:
        """Whether there are kernels for a level.

        Parameters
        ----------
        points : Tensor
            The control points.
        fixed : object
            What a local correlation has prepared.
        rows : list of tuple
            Nodes → voxels along x, y and z.

        Returns
        -------
        bool
        """
        return isinstance(fixed, LnccFixed) and points.is_contiguous() and takes_rows(rows, points.shape[1])

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

    def _similarity(
        self, moving: Tensor, fixed: LnccFixed, u: Tensor, rows: list[Rows], back: list[Rows], maps: ctypes.Structure,
        bits: Tensor | None,
    ) -> tuple[list[Prepared], Tensor]:  # fmt: skip
        """The launches from the displacement to its gradient, and what its blocks have of the similarity."""
        warped, by_image = (torch.empty_like(fixed.image) for _ in range(2))
        slopes, for_gradient = (warped.new_empty((3, *warped.shape)) for _ in range(2))
        scores = fixed.partial()
        launches = []
        for words, options in (
            spline_words(moving, u, rows, maps, warped, slopes),
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
        self._totals.put(ITERATION, iteration)
        repeat(self._evaluation, self._points.device)

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
