"""Which part of two images is the same but for noise, so that nothing is moved there to fit noise to noise.

A metric of two noisy images prefers many a map to the right one: interpolation smooths the noise of the moving image
between voxels and not at them, windows that hold nothing but noise want contrast to come in, and control points fit
noise wherever they may. Between two scans of one object that lie on each other this is all that a registration does.
The images themselves tell: where they are the same, their difference is white noise, which no neighbouring voxel
knows anything of, while a wrong place of the least edge leaves differences of one sign side by side. So the difference
is looked at without any interpolation, on one grid, as the images lie. Where sums over its neighbourhoods are
larger than noise allows, something changed; where these places are few, and what is left of the difference has no
correlation between neighbours, the images are the same there. With ``n`` voxels the correlation of white noise is known
to ``1 / sqrt(n)``: a shift of a fiftieth of a voxel of all of a head shows in it.

Nothing of this holds, and everything is free to move, where the noise is not white (images that were interpolated,
compressed, smoothed), the contrasts differ, or the images do not lie on each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from itk_nir.engine.dilation import dilated
from itk_nir.engine.images import Channel, Pair, sizes, voxel_map
from itk_nir.engine.lattice import Axis
from itk_nir.engine.ops.box_sums import box_sum

#: Radii, in voxels, of the neighbourhoods whose sums are looked at, and how many standard deviations are a change.
NEAR, WIDE, CHANGE = 1, 3, 6.0

#: Radius, in voxels, of the neighbourhoods whose growth is looked at, one every so many voxels: what grew or shrank by
#: little shows in all its edges together alone.
GROWTH, GROWTH_STEP = 10, 2

#: The square of the standard deviations that are growth, less twice the logarithm of the number of neighbourhoods: the
#: largest of so many chances is about as large as that.
GROWTH_CHANGE = 6.0

#: Share of the most such standard deviations in the neighbourhood below which it is the same growth that shows.
LEAST_OF_MOST = 0.7

#: A correlation between neighbours above so many standard deviations is no chance.
CHANCE = 4.0

#: Classes of intensity whose noise is told, and the median of the squares of normal deviates.
NOISE_CLASSES, MEDIAN_OF_SQUARES = 16, 0.455

#: Least variance of the noise anywhere, as a share of that of most of the image. Where there is none, as in air that
#: was masked, the scale that is taken for the whole, never quite the right one, leaves differences that are no change.
LEAST_NOISE = 0.01

#: Voxels around a change within which control points are free, and beyond which nothing is left of it.
AROUND, BEYOND = 8, 12

#: The least share of the positions that must be the same for the images to be the same but for changes.
LEAST_SHARE = 0.5

#: Blocks of so many voxels a side, and how large a share of these are the edges, of which `LEAST_SHARE` must be the
#: same too. Objects 3.6 voxels apart in strong noise differ at 62 % of their edges and at 37 % of all positions.
EDGE_BLOCK, EDGES = 3, 0.1

#: Images that lie on each other are less alike where one is moved by so many voxels, along any axis either way, by more
#: than `CHANCE` standard deviations: by 4.4 and more in noise of up to 25 % of the range, by 16 and more in one of 2 %.
#: Objects 3 to 4 voxels apart become more alike along one of them, by 5.1 deviations and more.
SHIFT = 2

#: Positions of the first glance, about, and the least that anything can be told of.
GLANCE, LEAST_COUNT = 20_000, 1000

#: Edges of the first glance are told by voxels so far to either side.
NEAR_EDGE = 3

#: Covariances between neighbours of both images must be above so many standard deviations, or there is no signal.
LEAST_SIGNAL = 10.0

#: Of white noise, the difference of neighbours is sqrt(2) times as large as the noise, in the median.
LEAST_ROUGHNESS = 1.2


def free_to_move(pair: Pair) -> Tensor | None:
    """Where two images differ by more than noise, and around.

    Parameters
    ----------
    pair : Pair
        The images, and the linear map from which on they are registered.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)`` bool on the fixed grid, nowhere true where noise is all that they differ by. None where that is
        not known of most of the image: everything is free.
    """
    if pair.known is not None or pair.regions or not _on_one_grid(pair):
        return None
    counts = torch.ones_like(pair.fixed, dtype=torch.bool)
    for mask in (pair.fixed_counts, pair.moving_counts):
        if mask is not None:
            counts &= mask > 0.5
    if int(counts.sum()) < LEAST_COUNT:
        return None
    if not all(_rough(channel, counts) for channel in pair.channels):
        return None
    changed = torch.zeros_like(counts)
    normalised = pair.normalised()
    for fixed, moving in normalised:
        difference = _difference(fixed, moving, counts)
        if difference is None:
            return None
        both = fixed + moving
        # Of the neighbours: where one image has more noise than the other, sum and difference share it.
        intensity = torch.zeros_like(both)
        for _, middle, before, after in _beside(both):
            intensity[middle] += after + before
        intensity.mul_(counts)
        noise = _noise_by_intensity(difference, intensity, counts)
        changed |= _changed(difference, noise, counts) | _grown(difference, both, intensity, noise, counts)
    same = counts & ~dilated(changed, BEYOND)
    if float(same.sum()) < LEAST_SHARE * float(counts.sum()):
        return None
    for fixed, moving in normalised:
        difference = _difference(fixed, moving, same)
        if difference is None or not _white(difference):
            return None
    if not all(_lies_best(fixed, moving, counts) for fixed, moving in normalised):
        return None
    free = dilated(changed, AROUND)
    return None if any(_lies_apart(fixed, moving, free, counts) for fixed, moving in normalised) else free


def _lies_best(fixed: Tensor, moving: Tensor, counts: Tensor) -> bool:
    """Whether the images are less alike where one of them is moved a little, in any direction.

    Strong noise hides from every neighbourhood that an object lies elsewhere; all edges together tell. Sums over the
    nearest neighbours leave little of the products of noise with noise.
    """
    inside = counts.float()
    count = inside.sum()
    f, m = (box_sum((x - (x * inside).sum() / count) * inside, NEAR) for x in (fixed, moving))
    for lag in _lags(f, SHIFT, diagonal=False):
        (f0, f1), (m0, m1) = _apart(f, lag), _apart(m, lag)
        still = (f0 * m0).add_(f1 * m1).div_(2)  # of both ends: else what a border cuts off would count
        for gain in (f0 * m1 - still, f1 * m0 - still):
            total = float(gain.sum(dtype=torch.float64))
            if total > -CHANCE * math.sqrt(float(gain.square_().sum(dtype=torch.float64))):
                return False
    return True


def _lies_apart(fixed: Tensor, moving: Tensor, free: Tensor, counts: Tensor) -> bool:
    """Whether it is at the edges of both images that things differ: there things lie apart, and have not changed.

    Empty surroundings do not tell the one from the other, however much of the image they are. What changed has edges in
    one image alone.
    """
    block = tuple(min(EDGE_BLOCK, n) for n in fixed.shape)
    means = (functional.avg_pool3d(x[None, None].float(), block)[0, 0] for x in (fixed, moving, free, counts))
    *images, share, counted = (mean.cpu().double().numpy() for mean in means)
    axes = [axis for axis, n in enumerate(share.shape) if n > 1]
    inside = counted == 1
    if not axes or not inside.any():
        return False
    steepness = np.minimum(*(sum(np.gradient(image, axis=axis) ** 2 for axis in axes) for image in images))[inside]
    edges = share[inside][steepness >= np.quantile(steepness, 1 - EDGES)]
    return float(edges.mean()) > 1 - LEAST_SHARE


def at_control_points(free: Tensor, axes: list[Axis]) -> Tensor:
    """Which control points are free.

    Parameters
    ----------
    free : Tensor
        ``(Z, Y, X)`` bool, of `free_to_move`.
    axes : list of Axis
        Of the lattice, ``[x, y, z]``, in voxels of the fixed image.

    Returns
    -------
    Tensor
        ``(z, y, x)`` float32: 1 for those at a free voxel, or nearest to one where they lie beyond the image.
    """
    for dimension, axis in zip((2, 1, 0), axes, strict=True):
        nearest = np.clip(np.rint(axis.positions), 0, free.shape[dimension] - 1).astype(np.int64)
        free = free.index_select(dimension, torch.from_numpy(nearest).to(free.device))
    return free.float()


def _on_one_grid(pair: Pair) -> bool:
    """Whether every voxel of the fixed image lies on the same voxel of the moving one."""
    if sizes(pair.fixed_geometry) != sizes(pair.moving_geometry):
        return False
    index = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)[0]
    last = np.array(sizes(pair.fixed_geometry), float) - 1
    corners = np.array(list(itertools.product(*((0.0, n) for n in last))))
    return bool(np.abs(corners @ index[:, :3].T + index[:, 3] - corners).max() < 1e-3)


def _rough(channel: Channel, counts: Tensor) -> bool:
    """A glance at some positions: whether the difference is as rough as white noise near most of the edges."""
    fixed, scale = channel.fixed, channel.fixed_intensity.deviation / channel.moving_intensity.deviation
    step = max(1, fixed.numel() // GLANCE)
    # Not a multiple of a row's length, or all positions were in one column.
    step += math.gcd(step, fixed.shape[2]) > 1
    a, b, c = fixed.reshape(-1), channel.moving.reshape(-1), counts.reshape(-1)
    at = torch.arange(NEAR_EDGE, fixed.numel() - NEAR_EDGE - 1, step, device=fixed.device)
    at = at[c[at] & c[at + 1] & (a[at] != b[at])]
    if len(at) < 100:
        return False
    # Edges by voxels other than those that are looked at: noise has no part in the choice.
    edge = (a[at + 1 + NEAR_EDGE] - a[at - NEAR_EDGE]).abs()
    at = at[edge >= edge.quantile(0.75)]
    here, beside = a[at] - scale * b[at], a[at + 1] - scale * b[at + 1]
    size = (here - here.median()).abs().median()
    return bool((beside - here).abs().median() > LEAST_ROUGHNESS * size)


def _difference(fixed: Tensor, moving: Tensor, where: Tensor) -> Tensor | None:
    """``F - a M - b``, zero beyond `where`; None where the images have next to nothing in common.

    ``a`` is the ratio of covariances between neighbours, in which white noise has no part: that of the values would be
    too small by the noise of the moving image.
    """
    inside = where.float()
    count = inside.sum()
    f, m = ((x - (x * inside).sum() / count) * inside for x in (fixed, moving))
    cross = own = chance = 0.0
    for lag in _lags(fixed, 1, diagonal=False):
        (f0, f1), (m0, m1) = _apart(f, lag), _apart(m, lag)
        product = f0 * m1 + f1 * m0
        cross += float(product.sum(dtype=torch.float64)) / 2
        chance += float(product.square_().sum(dtype=torch.float64)) / 4
        own += float((m0 * m1).sum(dtype=torch.float64))
    if own <= 0 or cross < LEAST_SIGNAL * math.sqrt(chance):
        return None
    return f - (cross / own) * m


def _changed(difference: Tensor, there: Tensor, where: Tensor) -> Tensor:
    """Where the sums over neighbourhoods are larger than those of noise, whose variance `there` its intensity tells.

    Noise that grows with the signal is another on either side of an edge.
    """
    inside = where.float()
    counts = {radius: box_sum(inside, radius).clamp_(min=0.5) for radius in (NEAR, WIDE)}
    # The noise around, as far as a change has not made it larger: at most twice that of most of the image.
    noise = box_sum(difference.square(), WIDE) / counts[WIDE]
    usual = noise[where & (noise > 0)].median()
    noise.clamp_(max=4 * float(usual)).clamp_min_(max(LEAST_NOISE * float(usual), 1e-12))
    out = torch.zeros_like(where)
    for radius in (NEAR, WIDE):
        variance = torch.maximum(noise * counts[radius], box_sum(there, radius))
        out |= box_sum(difference, radius).abs() > CHANGE * variance.sqrt_()
    # An edge that moved is dark on one side and bright on the other: its sum is small, but neighbours are alike.
    alike, lags = torch.zeros_like(difference), _lags(difference, 1)
    for lag in lags:
        first, second = _apart(difference, lag)
        _apart(alike, lag)[0].add_(first * second)
    variance = torch.maximum(noise.square() * counts[WIDE], box_sum(there.square(), WIDE))
    out |= box_sum(alike, WIDE) > CHANGE * (len(lags) * variance).sqrt_()
    return out & where


def _grown(difference: Tensor, both: Tensor, intensity: Tensor, by_intensity: Tensor, where: Tensor) -> Tensor:
    """Where the difference is what growth about the middle of a neighbourhood makes of it, by more than noise allows.

    If what is around ``c`` grows by a share ``a``, the images differ by ``a (x - c) . grad I``: of one sign where what
    grew is brighter than what it displaces, of the other where it is darker. The difference is projected on that,
    beside its mean and a multiple of the intensity, as scale and bias fields make. The gradient is that of the sum of
    both images, whose noise is independent of that of their difference.
    """
    inside, gradient = where.float(), {}
    for k, middle, before, after in _beside(both):
        gradient[k] = torch.zeros_like(both)
        gradient[k][middle] = after - before
        gradient[k].mul_(inside)
    axes = list(gradient)

    def with_growth(image: Tensor) -> Tensor:
        return torch.stack([_moment(gradient[k] * image, k) for k in axes]).sum(0)

    # Sums of the products of growth g, intensity i and difference d, about the means of i and d.
    count = _moment(inside).clamp_(min=1)
    d, i, g = _moment(difference), _moment(intensity), with_growth(inside)
    ii = _moment(intensity.square()) - i * i / count
    di = _moment(difference * intensity) - d * i / count
    gi, gd = with_growth(intensity) - g * i / count, with_growth(difference) - g * d / count

    def with_square(image: Tensor) -> Tensor:
        pairs = itertools.combinations_with_replacement(axes, 2)
        return torch.stack([_moment(gradient[j] * gradient[k] * image, j, k) * (1 + (j != k)) for j, k in pairs]).sum(0)

    square = with_square(inside)
    gg = square - g * g / count
    share = gi / ii.clamp_(min=1e-6)
    # The variance of the projection is the noise's times the sum of squares of what is projected on.
    spread = (gg - share * gi).clamp_(min=0)
    noise = _moment(difference.square()).div_(count)
    usual = float(noise[noise > 0].median())
    noise.clamp_(min=LEAST_NOISE * usual, max=4 * usual)
    # At edges there may be more of it than around them: next to bright tissue, where noise grows with the signal.
    there = with_square(by_intensity) / square.clamp(min=1e-6)
    limit = torch.maximum(noise, there).mul_(spread).sqrt_().clamp_(min=1e-6)
    among = max(1.0, float(inside.sum()) / GROWTH_STEP ** len(axes))
    least = math.sqrt(GROWTH_CHANGE + 2 * math.log(among))
    found = (gd - share * di).abs_().div_(limit)
    # What grew by much shows in every neighbourhood that has a part of it: only where it shows most.
    most = _largest_around(found, GROWTH // GROWTH_STEP)
    out = torch.zeros_like(where)
    out[(slice(None, None, GROWTH_STEP),) * 3] = found > (LEAST_OF_MOST * most).clamp_(min=least)
    return out & where


def _beside(image: Tensor) -> Iterator[tuple[int, tuple[slice, ...], Tensor, Tensor]]:
    """Each axis that is long enough, the voxels that have a neighbour on both sides along it, and these neighbours."""
    for axis in (k for k, n in enumerate(image.shape) if n > 2):
        before, after = _apart(image, tuple(2 * (k == axis) for k in range(3)))
        yield axis, tuple(slice(k == axis, n - (k == axis)) for k, n in enumerate(image.shape)), before, after


def _largest_around(image: Tensor, radius: int) -> Tensor:
    """The largest value in the cube around each voxel."""
    reach = [radius * (n > 1) for n in image.shape]
    return functional.max_pool3d(image[None, None], [2 * r + 1 for r in reach], 1, reach)[0, 0]


def _noise_by_intensity(difference: Tensor, intensity: Tensor, where: Tensor) -> Tensor:
    """The variance of the difference that most voxels of about the same intensity have, zero elsewhere.

    The largest of a voxel and its neighbours: where something is thin, the intensity around it is another than its own.
    """
    values, squares = intensity[where], difference[where].square_()
    sample = values[:: max(1, len(values) // GLANCE)]
    inner = torch.linspace(0, 1, NOISE_CLASSES + 1, device=values.device)[1:-1]
    classes = torch.bucketize(values, sample.quantile(inner))
    variances = torch.zeros_like(values)
    for k in range(NOISE_CLASSES):
        members = classes == k
        if bool(members.any()):
            variances[members] = squares[members].median() / MEDIAN_OF_SQUARES
    out = torch.zeros_like(difference)
    out[where] = variances
    return _largest_around(out, 1) * where


def _moment(image: Tensor, *along: int) -> Tensor:
    """Sums over the neighbourhoods of growth, with the distance from their middle along each of some axes as weight."""
    for axis, n in enumerate(image.shape):
        if n == 1:
            continue
        ends = [GROWTH * (k == axis) for k in (2, 2, 1, 1, 0, 0)]
        padded, first = functional.pad(image, ends), (slice(None),) * axis
        image = torch.zeros_like(image[(*first, slice(None, None, GROWTH_STEP))])
        for k in range(-GROWTH, GROWTH + 1):
            part = padded[(*first, slice(k + GROWTH, k + GROWTH + n, GROWTH_STEP))]
            image.add_(part, alpha=float(k ** along.count(axis)))
    return image


def _white(difference: Tensor) -> bool:
    """Whether no neighbour knows anything of another, by any one step between them and by all together."""
    if not bool(difference.any()):
        return False  # identical images are no noisy ones
    total = chance = 0.0
    for lag in (*_lags(difference, 1), *_lags(difference, 2)):
        a, b = _apart(difference, lag)
        product = a * b
        one, square = float(product.sum(dtype=torch.float64)), float(product.square_().sum(dtype=torch.float64))
        if abs(one) > CHANCE * math.sqrt(square):
            return False
        total, chance = total + one, chance + square
    return abs(total) <= CHANCE * math.sqrt(chance)


def _lags(image: Tensor, reach: int, diagonal: bool = True) -> list[tuple[int, ...]]:
    """Steps to neighbours: along each axis that is longer than twice the reach, then along the diagonals of planes."""
    long = [k for k in range(3) if image.shape[k] > 2 * reach]
    out = [tuple(reach * (k == axis) for k in range(3)) for axis in long]
    for i, j in itertools.combinations(long if diagonal else [], 2):
        out.extend(tuple(reach * ((k == i) + sign * (k == j)) for k in range(3)) for sign in (1, -1))
    return out


def _apart(image: Tensor, lag: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An image, and what lies `lag` from each of its voxels, where both are inside."""
    first = tuple(slice(max(0, -k), image.shape[i] - max(0, k)) for i, k in enumerate(lag))
    second = tuple(slice(max(0, k), image.shape[i] - max(0, -k)) for i, k in enumerate(lag))
    return image[first], image[second]
