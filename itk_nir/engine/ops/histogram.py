"""The joint histogram of two images, and their mutual information."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.limits import thread_count

#: Fewest and most bins along either axis: those of the smoothing, and what stays in the cache.
LEAST_BINS, MOST_BINS = 4, 128
#: Weights are summed on a GPU in units of one over this; a histogram may hold 2^31 voxels.
WHOLE = 2.0**32
#: Logarithms are taken of no less: what an empty bin costs, and how steep it is, stays finite.
LEAST_PROBABILITY = 1e-12
#: What keeps a division by the probability of nothing from being one by 0.
LEAST_DIVISOR = 1e-100


def _scale(intensities: tuple[float, float], bins: int) -> float:
    """Bins per unit of intensity. Where all intensities are one, they lie in the first bin."""
    low, high = intensities
    return (bins - 1) / (high - low) if high > low else 0.0


def joint_histogram(position: Tensor, moving: Tensor, bins: int, low: float, scale: float) -> Tensor:
    """The joint histogram of two images, with linear weights (first-order B-splines) in both.

    A voxel adds to the two bins around its intensity along both axes, the nearer the more; beyond the outer bins it
    adds to these alone, and has no gradient.

    Parameters
    ----------
    position : Tensor
        ``(Z, Y, X)``, where the fixed image lies in its bins, 0 to `bins` - 1; below 0 where a voxel does not count.
    moving : Tensor
        ``(Z, Y, X)``, which lies at ``(moving - low) scale`` in its bins.
    bins : int
        Along either axis.
    low, scale : float
        See `moving`.

    Returns
    -------
    Tensor
        ``(bins, bins)`` float64, bins of the fixed image by those of the moving one.
    """
    counts = position >= 0
    # Where a voxel does not count, the moving image may be anything.
    both = position.double(), (moving.double() - low) * scale
    fixed_bin, moving_bin = (torch.where(counts, t, 0.0).clamp(0, bins - 1) for t in both)
    at, weights = _shares(fixed_bin, moving_bin, bins)
    sums: Tensor = _BinSums.apply((weights * counts).reshape(-1), at.reshape(-1), bins * bins)
    return sums.reshape(bins, bins)


def _shares(fixed: Tensor, moving: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The four bins that each pair of positions, 0 to `bins` - 1 along either axis, adds to, and what it adds."""
    along = []
    for t in (fixed, moving):
        # What is not a number has a bin as well, and makes that no number.
        lower = t.detach().nan_to_num(0.0).floor().clamp(max=bins - 2)
        along.append((lower.long(), 1 - (t - lower), t - lower))
    (i, a0, a1), (j, b0, b1) = along
    at = i * bins + j
    return (
        torch.stack([at + offset for offset in (0, 1, bins, bins + 1)]),
        torch.stack([a0 * b0, a0 * b1, a1 * b0, a1 * b1]),
    )


def whole_bin_sums(weights: Tensor, at: Tensor, bins: int) -> Tensor:
    """Sums of weights by bins, as sums of whole numbers: the same bits in whatever order they are added.

    Parameters
    ----------
    weights : Tensor
        ``(N,)`` float64, 0 to 1; one that is not a number makes every sum none.
    at : Tensor
        ``(N,)`` whole numbers, the bin of each.
    bins : int
        How many there are.

    Returns
    -------
    Tensor
        ``(bins,)`` float64.
    """
    whole = (weights.nan_to_num(0.0) * WHOLE).round_().long()
    sums = torch.zeros(bins, dtype=torch.long, device=at.device).index_add_(0, at, whole)
    # What is not a number must not become a whole one.
    return sums.to(weights.dtype) / WHOLE + weights.sum() * 0


class _BinSums(torch.autograd.Function):
    """Sums of weights by bins, the same bits every time.

    A CPU adds one after the other; a GPU adds in any order, which for whole numbers is all the same.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, at: Tensor, bins: int) -> Tensor:
        ctx.save_for_backward(at)
        if weights.device.type == "cpu":
            return weights.new_zeros(bins).index_add_(0, at, weights)
        return whole_bin_sums(weights, at, bins)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (at,) = ctx.saved_tensors
        return grads[0][at], None, None


def _smoothed(x: Tensor) -> Tensor:
    """Square matrices smoothed by the cubic B-spline along both axes, the outer bins repeated: its own adjoint."""
    # No product of matrices: those of the libraries start threads, which wait longer for one another than this takes.
    for _ in range(2):
        before, after = (x[..., :1, :], x[..., :-1, :]), (x[..., 1:, :], x[..., -1:, :])
        x = (4 * x + torch.cat(before, -2) + torch.cat(after, -2)).transpose(-1, -2) / 6
    return x


def _log(x: Tensor) -> Tensor:
    # Not by `log`, which starts threads however little there is to do.
    return torch.xlogy(1.0, x.clamp(min=LEAST_PROBABILITY))


class Similarity(torch.autograd.Function):
    """(Normalised) mutual information of a raw joint histogram, whose derivative is made along with it."""

    @staticmethod
    def forward(ctx: Any, histogram: Tensor, count: float, normalised: bool) -> Tensor:
        count = max(1.0, count)
        p = _smoothed(histogram / count)
        value, slope = _information(p, normalised)
        ctx.slope = _smoothed(slope) / count
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.slope * grads[0], None, None


def _checked(bins: int, **ranges: tuple[float, float]) -> int:
    bins = operator.index(bins)
    if not LEAST_BINS <= bins <= MOST_BINS:
        raise ValueError(f"bins must be {LEAST_BINS} to {MOST_BINS}, got {bins}")
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"{name} must be two finite numbers, the lower first, got {low}, {high}")
    return bins


@dataclass(frozen=True)
class MutualInformation:
    """Mutual information with one fixed image, whose bins are found once (see `make`).

    Both images have linear weights in their bins; the joint histogram is smoothed by a cubic B-spline along both axes,
    a Parzen window [1]_. Normalised, it is ``(H(F) + H(M) - H(F, M)) / sqrt(H(F) H(M))`` [2]_: 0 for independent
    images, and less than 1 even for like ones, by what the smoothing spreads.

    Attributes
    ----------
    fixed : Tensor
        ``(Z, Y, X)``.
    weight : Tensor or None
        ``(Z, Y, X)``: a voxel counts where it is above 0.5; None where every voxel does. One that is not a number in
        the fixed image never does.
    bins : int
        Of either image, 4 to 128.
    fixed_range, moving_range : tuple of float
        The intensities of the first and the last bin; what lies beyond counts as these.
    normalised : bool
        Whether it is divided by the geometric mean of the two entropies, else in nats.
    threads : int
        Of the native op.
    count : float
        Number of voxels that count.
    prepared : Tensor
        ``(Z, Y, X)``, where the fixed image lies in its bins, -1 where a voxel does not count.

    References
    ----------
    .. [1] Mattes et al., "PET-CT image registration in the chest using free-form deformations", IEEE Trans. Med.
       Imaging 22(1), 2003; the linear weights of both images are ours.
    .. [2] Strehl and Ghosh, "Cluster ensembles", J. Mach. Learn. Res. 3, 2002.
    """

    fixed: Tensor
    weight: Tensor | None
    bins: int
    fixed_range: tuple[float, float]
    moving_range: tuple[float, float]
    normalised: bool
    threads: int
    count: float
    prepared: Tensor

    @classmethod
    def make(
        cls, fixed: Tensor, weight: Tensor | None, fixed_range: tuple[float, float], moving_range: tuple[float, float],
        bins: int = 32, normalised: bool = True, threads: int = 1,
    ) -> MutualInformation:  # fmt: skip
        """Find the bins of a fixed image.

        Parameters
        ----------
        fixed, weight, fixed_range, moving_range, bins, normalised, threads
            See the attributes.

        Returns
        -------
        MutualInformation
            What measures moving images on the grid of `fixed`.

        Raises
        ------
        ValueError
            `bins` is out of its range, or a range is none.
        """
        threads, bins = thread_count(threads), _checked(bins, fixed_range=fixed_range, moving_range=moving_range)
        position = ((fixed.detach() - fixed_range[0]) * _scale(fixed_range, bins)).clamp_(0, bins - 1)
        counts = ~position.isnan()
        if weight is not None:
            counts &= weight > 0.5
        position = position.masked_fill_(~counts, -1).contiguous()
        count = float(counts.sum())
        return cls(fixed, weight, bins, fixed_range, moving_range, normalised, threads, count, position)

    def _joint(self, moving: Tensor) -> Tensor:
        low, scale = self.moving_range[0], _scale(self.moving_range, self.bins)
        native = native_for(moving)
        if native and native_for(self.prepared):
            result: Tensor = native.JointHistogram.apply(self.prepared, moving, self.bins, low, scale, self.threads)
            return result
        return joint_histogram(self.prepared, moving, self.bins, low, scale)

    def histogram(self, moving: Tensor) -> Tensor:
        """The joint histogram with a moving image, not smoothed, without a gradient.

        Parameters
        ----------
        moving : Tensor
            ``(Z, Y, X)``, on the grid of the fixed image.

        Returns
        -------
        Tensor
            ``(bins, bins)`` float64, bins of the fixed image by those of the moving one; its sum is `count`.
        """
        return self._joint(moving.detach())

    def __call__(self, moving: Tensor) -> Tensor:
        """Mutual information with a moving image, with its gradient.

        Parameters
        ----------
        moving : Tensor
            ``(Z, Y, X)``, on the grid of the fixed image.

        Returns
        -------
        Tensor
            Scalar; 0 where either image is constant or nothing counts, not a number where a voxel that counts is none.
        """
        similarity = getattr(native_for(moving), "Information", Similarity)
        value: Tensor = similarity.apply(self._joint(moving), self.count, self.normalised)
        return value.to(moving.dtype)


def many_informations(
    fixed: Tensor, moving: Tensor, counts: Tensor, bins: int, fixed_range: tuple[float, float],
    moving_range: tuple[float, float], normalised: bool,
) -> Tensor:  # fmt: skip
    """`MutualInformation` of many pairs of images of few voxels at once, without a gradient.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(n, voxels)``: a pair in each row.
    counts : Tensor
        ``(n, voxels)`` bool: where a voxel counts.
    bins, fixed_range, moving_range, normalised
        As of `MutualInformation`, for all pairs.

    Returns
    -------
    Tensor
        ``(n,)`` float64; 0 where nothing counts, or the fixed image is constant where it does.
    """
    n = len(moving)
    low, scale = moving_range[0], _scale(moving_range, bins)
    position = ((fixed - fixed_range[0]) * _scale(fixed_range, bins)).clamp(0, bins - 1)
    counts = counts & ~position.isnan()
    several = position.masked_fill(~counts, -math.inf).amax(1) > position.masked_fill(~counts, math.inf).amin(1)
    where = torch.arange(n, device=moving.device)[:, None] * bins * bins
    at, weights = _shares(position, ((moving - low) * scale).clamp(0, bins - 1), bins)
    weights = torch.where(counts, weights, 0.0).nan_to_num(0.0).double()
    sums = whole_bin_sums(weights.reshape(-1), (at + where).reshape(-1), n * bins * bins)
    histogram = sums.reshape(n, bins, bins)
    p = _smoothed(histogram / counts.sum(1).clamp(min=1)[:, None, None])
    value, _ = _information(p, normalised)
    return torch.where(several, value, torch.zeros_like(value))


def _information(p: Tensor, normalised: bool) -> tuple[Tensor, Tensor]:
    """The mutual information of joint probabilities ``(..., bins, bins)``, and its derivative by them."""
    fixed, moving = p.sum(-1, keepdim=True), p.sum(-2, keepdim=True)
    independent = fixed * moving
    log_ratio = _log(p / independent.clamp(min=LEAST_DIVISOR))
    # A bin that is empty in either image favours nothing.
    log_ratio = log_ratio.masked_fill(independent == 0, 0.0)
    value = (p * log_ratio).sum((-2, -1))
    slope = log_ratio - 1
    if normalised:
        for q in (fixed, moving):
            log_q = _log(q)
            entropy = (q * -log_q).sum((-2, -1)).clamp(min=LEAST_PROBABILITY)
            root = entropy.rsqrt()
            slope = (slope + (log_q + 1) * (value / (2 * entropy))[..., None, None]) * root[..., None, None]
            value = value * root
    return value, slope
