"""Corresponding points of two images: which of them to believe, a smooth field through them, and a term of the loss.

A pair of points says where a fixed point belongs: ``A(p + u(p)) = q``, so that the deformation wanted at ``p`` is
``A^-1(q) - p``. Some pairs may be wrong. A robust similarity is taken off all of them, and what is left is predicted at
each pair from all others, as a random field whose variance grows with distance (kriging with a linear variogram): a
pair whose own displacement is many times farther from its prediction than that of most pairs is, in units of what the
field may do over the distance to its neighbours, is not believed. Neither the size of the motion nor that of the errors
needs to be known. In the loss the distances count by their logarithm, so that what is still wrong pulls less the
farther off it is. Where they shall count as they are, none is doubted, and every pair pulls alike, however far off.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.caching import cached_property
from itk_nir.engine.lattice import Axis, shape_of
from itk_nir.engine.lattice_values import neighbours
from itk_nir.engine.point_fits import fitted, least_turned
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: A pair is not believed where its distance from what the others predict is more than this many times the usual one.
UNUSUAL = 5.0

#: Distances that are within so many voxels (of the coarsest axis of either image) are always usual: nobody clicks more
#: precisely.
PRECISION = 2.0

#: Pairs determine a rotation where they reach this far to the sides of a line (in 2D, of a point), times what they may
#: always be off: half a voxel. What is less is where somebody clicked.
LEAST_EXTENT = 0.25

#: Pairs that there must be, beyond the dimension, to judge any of them by the others, and the share that may be wrong.
FEWEST_OTHERS, MOST_WRONG = 3, 0.4

#: Rounds in which pairs are left out and come back in, about.
MOST_ROUNDS = 100

#: Pairs that an affine map is fitted to, at least, for each of its ``d + 1`` columns.
AFFINE_PAIRS = 4

#: How far from its end, in voxels of the level, a distance that counts as it is begins to pull less: its gradient would
#: leap there.
ROUNDED = 0.1

#: Variance of the error of a single pair, over that of the field across the median distance of neighbours.
NUGGET = 0.1


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Pairs of corresponding points.

    Parameters
    ----------
    fixed, moving : ndarray
        ``(N, d)`` LPS mm, row k to row k; in the spaces of the two images of a `Pair`.
    weights : ndarray
        ``(N,)``, 0 and more: how much each counts.
    precision : float
        mm that a pair may always be off, see `PRECISION`.
    believed : ndarray
        ``(N,)`` bool: which pairs the others do not contradict.
    robust : bool
        Whether wrong pairs are looked for, and those that are far off pull less.
    """

    fixed: F64
    moving: F64
    weights: F64
    precision: float
    believed: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, bool))
    robust: bool = True

    @classmethod
    def judged(cls, fixed: F64, moving: F64, weights: F64, precision: float, robust: bool = True) -> Landmarks:
        """Pairs of points, with those found that the others contradict.

        Parameters
        ----------
        fixed, moving, weights, precision, robust
            As of the class.

        Returns
        -------
        Landmarks
        """
        out = cls(fixed, moving, weights, precision, robust=robust)
        return replace(out, believed=_believed(fixed, moving, precision) if robust else np.ones(len(fixed), bool))

    @cached_property
    def shares(self) -> F64:
        """``(N,)``: the share of each pair in a mean over those that are believed."""
        kept = np.where(self.believed, self.weights, 0.0)
        return kept / kept.sum()

    def wanted(self, linear: F64) -> F64:
        """The deformation that each pair asks for.

        Parameters
        ----------
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        back = np.linalg.inv(linear)
        return np.asarray(self.moving @ back[:-1, :-1].T + back[:-1, -1] - self.fixed)

    def distance(self, linear: F64, displacement: F64 | None = None) -> float:
        """The mean distance of the pairs that are believed, in the space of the moving image.

        Parameters
        ----------
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.
        displacement : ndarray, optional
            ``(N, d)`` LPS mm, the deformation at the fixed points.

        Returns
        -------
        float
            mm.
        """
        at = self.fixed if displacement is None else self.fixed + displacement
        apart = at @ linear[:-1, :-1].T + linear[:-1, -1] - self.moving
        return float(self.shares @ np.linalg.norm(apart, axis=1))

    def matrix(self, kind: str, linear: F64) -> F64 | None:
        """The linear map that brings the believed pairs together best.

        Parameters
        ----------
        kind : str
            ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``, see `supported`.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, that follows it.

        Returns
        -------
        ndarray or None
            ``(d + 1, d + 1)`` LPS mm; None where the pairs do not determine one.
        """
        return fitted(self.fixed, self.fixed + self.wanted(linear), self.shares, self.supported(kind))

    def least_turned(self, kind: str, linear: F64) -> F64 | None:
        """The linear map that brings the believed pairs together with the least turn, where they leave that open.

        Parameters
        ----------
        kind, linear
            As of `matrix`.

        Returns
        -------
        ndarray or None
            ``(d + 1, d + 1)`` LPS mm; None where the pairs determine the map.
        """
        if kind == "translation":
            return None
        targets = self.fixed + self.wanted(linear)
        return least_turned(self.fixed, targets, self.shares, kind, LEAST_EXTENT * self.precision)

    def supported(self, kind: str, once: bool = False) -> str:
        """The linear map that there are enough pairs for: few that an affine map fits say little of it elsewhere.

        Parameters
        ----------
        kind : str
            ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
        once : bool
            Whether a pair that is given several times counts once.

        Returns
        -------
        str
            ``"similarity"`` in place of ``"affine"`` with less than `AFFINE_PAIRS` believed pairs an axis.
        """
        pairs = np.hstack([self.fixed, self.moving])[self.shares > 0]
        few = len(np.unique(pairs, axis=0) if once else pairs) < AFFINE_PAIRS * (self.fixed.shape[1] + 1)
        return "similarity" if kind == "affine" and few else kind

    def smooth_displacement(self, linear: F64, points: F64) -> F64:
        """A smooth deformation that brings the believed pairs together.

        Parameters
        ----------
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.
        points : ndarray
            ``(M, d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(M, d)`` LPS mm. Far from all pairs it is about their mean.
        """
        kept = self.shares > 0
        fixed, wanted = self.fixed[kept], self.wanted(linear)[kept]
        if len(fixed) == 1:
            return np.broadcast_to(wanted, points.shape).copy()
        noise = NUGGET * _neighbour_distance(fixed) * self.shares[kept].mean() / self.shares[kept]
        system = _kriging_system(fixed, noise)
        solved = np.linalg.solve(system, np.vstack([wanted, np.zeros_like(wanted[:1])]))
        out = np.empty_like(points)
        for begin in range(0, len(points), 1 << 13):
            part = points[begin : begin + (1 << 13)]
            out[begin : begin + len(part)] = -_distances(part, fixed) @ solved[:-1] + solved[-1]
        return out


@dataclass(frozen=True, eq=False)
class LatticeLandmarks:
    """The pairs that are believed, at one level: where its lattice's splines carry them, and where they belong.

    Parameters
    ----------
    index : Tensor
        ``(N, K)``, the control points that reach each fixed point.
    spline : Tensor
        ``(N, K)``, their weights.
    wanted : Tensor
        ``(3, N)``, the deformation that is wanted, in units of the lattice.
    shares : Tensor
        ``(N,)``, summing to 1.
    unit : float
        A voxel of the fixed image along its finest axis, in units of the lattice.
    scale : float
        A voxel of the level, in voxels of the fixed image.
    robust : bool
        As of `Landmarks`.
    """

    index: Tensor
    spline: Tensor
    wanted: Tensor
    shares: Tensor
    unit: float
    scale: float
    robust: bool

    @classmethod
    def of(
        cls, landmarks: Landmarks, geometry: Geometry, axes: list[Axis], spacing: float, linear: F64, voxel: float,
        device: torch.device,
    ) -> LatticeLandmarks:  # fmt: skip
        """The pairs on a lattice.

        Parameters
        ----------
        landmarks : Landmarks
            All pairs.
        geometry : Geometry
            The fixed grid.
        axes : list of Axis
            The lattice.
        spacing : float
            Of the lattice, mm.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.
        voxel : float
            A voxel of the level, mm.
        device : torch.device
            Of the lattice's values.

        Returns
        -------
        LatticeLandmarks
        """
        d = geometry.dimension
        kept = landmarks.shares > 0
        at = geometry.physical_to_index(landmarks.fixed[kept])
        along = [(at[:, k] if k < d else np.zeros(len(at))) for k in range(3)]
        _, ny, nx = shape_of(axes)
        index, spline = [], []
        for z, wz in neighbours(axes[2], along[2]):
            for y, wy in neighbours(axes[1], along[1]):
                for x, wx in neighbours(axes[0], along[0]):
                    index.append((z * ny + y) * nx + x)
                    spline.append(wz * wy * wx)
        wanted = np.zeros((3, len(at)))
        wanted[:d] = (landmarks.wanted(linear)[kept] @ geometry.rotation).T / spacing

        def tensor(values: F64) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

        return cls(
            torch.from_numpy(np.stack(index, 1)).to(device), tensor(np.stack(spline, 1)), tensor(wanted),
            tensor(landmarks.shares[kept]), min(geometry.spacing) / spacing, voxel / min(geometry.spacing),
            landmarks.robust,
        )  # fmt: skip

    def __call__(self, u: Tensor) -> Tensor:
        """What is left: the mean over the pairs, see `left`.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` displacement on the lattice, in its units.

        Returns
        -------
        Tensor
            Scalar, with its gradient by `u`.
        """
        reached = (u.reshape(3, -1)[:, self.index.reshape(-1)].reshape(3, *self.index.shape) * self.spline).sum(-1)
        return left((reached - self.wanted) / self.unit, self.shares, self.scale, self.robust)


def left(apart: Tensor, shares: Tensor, scale: float, robust: bool) -> Tensor:
    """The mean of ``s² log(1 + r²/s²)`` over the pairs, with ``r`` the distance that is left, or that of ``r``.

    By their logarithm, small distances count by their square, large ones hardly more than middling ones; the coarser a
    level, the later that begins.

    Parameters
    ----------
    apart : Tensor
        ``(3, N)`` voxels of the fixed image along its finest axis.
    shares : Tensor
        ``(N,)``, summing to 1.
    scale : float
        ``s``, a voxel of the level in the same unit.
    robust : bool
        Whether it is that of the logarithm.

    Returns
    -------
    Tensor
        Scalar.
    """
    squared = apart.square().sum(0)
    if robust:
        return shares @ torch.log1p(squared / scale**2) * scale**2
    rounded = ROUNDED * scale
    return shares @ (torch.sqrt(squared + rounded**2) - rounded)


def _distances(a: F64, b: F64) -> F64:
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))


def _neighbour_distance(points: F64) -> float:
    """The median distance to the nearest other point."""
    apart = _distances(points, points)
    np.fill_diagonal(apart, np.inf)
    return max(float(np.median(apart.min(1))), 1e-12)


def _kriging_system(points: F64, noise: F64) -> F64:
    """Covariance up to a constant (minus the distance), errors of the pairs, and an unknown mean."""
    n = len(points)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = -_distances(points, points) + np.diag(noise)
    system[:n, n] = system[n, :n] = 1.0
    return system


def _unusual(points: F64, values: F64, noise: float) -> tuple[F64, F64]:
    """How far each value is from what all others predict, mm, and the standard deviation of that over the field's."""
    n = len(points)
    inverse = np.linalg.inv(_kriging_system(points, np.full(n, noise)))[:n, :n]
    diagonal = np.diag(inverse)
    return np.linalg.norm(inverse @ values / diagonal[:, None], axis=1), 1 / np.sqrt(diagonal)


def _robust_similarity(a: F64, b: F64) -> F64:
    """The similarity that most of the pairs agree on, by reweighting with a scale that falls (Geman and McClure)."""
    weights = np.full(len(a), 1 / len(a))
    found = fitted(a, b, weights, "similarity")
    matrix = np.eye(a.shape[1] + 1) if found is None else found
    scale: float | None = None
    for _ in range(30):
        apart = np.linalg.norm(a @ matrix[:-1, :-1].T + matrix[:-1, -1] - b, axis=1)
        usual = max(2.0 * float(np.median(apart)), 1e-12)
        scale = max(usual, float(apart.max()) if scale is None else 0.8 * scale)
        weights = 1 / np.square(1 + np.square(apart / scale))
        found = fitted(a, b, weights / weights.sum(), "similarity")
        if found is None:
            break
        matrix = found
    return matrix


def _believed(fixed: F64, moving: F64, precision: float) -> NDArray[np.bool_]:
    """Which pairs the others do not contradict.

    First the pair that stands out most is left out, again and again, down to a core that holds no wrong one unless very
    many are: several wrong pairs hide each other, and how much is usual can only be seen without them. Then pairs come
    back in, the least unusual first, as long as the core and those before them predict them.
    """
    n, d = fixed.shape
    kept = np.ones(n, bool)
    core = max(d + FEWEST_OTHERS, n - int(MOST_WRONG * n))
    if n <= core:
        return kept
    matrix = _robust_similarity(fixed, moving)
    values = moving - fixed @ matrix[:-1, :-1].T - matrix[:-1, -1]
    near = _neighbour_distance(fixed)
    noise = NUGGET * near
    step = max(1, n // MOST_ROUNDS)  # of very many pairs, some at a time
    while kept.sum() > core:
        at = np.flatnonzero(kept)
        apart, deviation = _unusual(fixed[at], values[at], noise)
        kept[at[np.argsort(apart / deviation)[-min(step, len(at) - core) :]]] = False
    while not kept.all():
        at, others = np.flatnonzero(kept), np.flatnonzero(~kept)
        apart, deviation = _unusual(fixed[at], values[at], noise)
        usual = max(float(np.median(apart / deviation)), precision / np.sqrt(near) / UNUSUAL)
        out, spread = _predicted(fixed[at], values[at], noise, fixed[others], values[others])
        best = np.argsort(out / spread)[:step]
        best = best[(out[best] <= precision) | (out[best] <= UNUSUAL * usual * spread[best])]
        if len(best) == 0:
            break
        kept[others[best]] = True
    return kept


def _predicted(points: F64, values: F64, noise: float, others: F64, theirs: F64) -> tuple[F64, F64]:
    """`_unusual` of values elsewhere, predicted from those at some points."""
    system = _kriging_system(points, np.full(len(points), noise))
    cross = np.vstack([-_distances(points, others), np.ones(len(others))])
    solved = np.linalg.solve(system, cross)
    variance = noise - (cross * solved).sum(0)
    return np.linalg.norm(solved[:-1].T @ values - theirs, axis=1), np.sqrt(np.maximum(variance, noise))
