"""Similarities against sums over windows written as loops, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from itk_nir.paper.similarity import EPSILON, lncc, mi, mse, ncc, nmi

SHAPES = [(2, 7, 9), (2, 5, 6, 4)]


def images(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    f = rng.normal(size=shape) + 3
    return f, 0.6 * f + rng.normal(size=shape), (rng.uniform(size=shape) < 0.7).astype(float)


def windows(shape: tuple[int, ...], radius: int) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    return [
        (p, (slice(p[0], p[0] + 1), *[slice(max(i - radius, 0), i + radius + 1) for i in p[1:]]))
        for p in itertools.product(*[range(n) for n in shape])
    ]


def lncc_by_loops(f: np.ndarray, m: np.ndarray, radius: int, w: np.ndarray) -> float:
    e_f = EPSILON * np.average((f - np.average(f, weights=w)) ** 2, weights=w)
    e_m = EPSILON * np.average((m - np.average(m, weights=w)) ** 2, weights=w)
    top = bottom = 0.0
    for place, window in windows(f.shape, radius):
        weights = w[window]
        if weights.sum() == 0 or w[place] == 0:
            continue
        fc = f[window] - np.average(f[window], weights=weights)
        mc = m[window] - np.average(m[window], weights=weights)
        var_f, var_m, cov = (np.average(v, weights=weights) for v in (fc * fc, mc * mc, fc * mc))
        if var_f <= e_f:
            continue
        top += w[place] * cov**2 / ((var_f + e_f) * (var_m + e_m))
        bottom += w[place]
    return 1 - top / bottom


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1, 2, 3, 30])
@pytest.mark.parametrize("masked", [False, True])
def test_lncc_against_loops(shape: tuple[int, ...], radius: int, masked: bool) -> None:
    f, m, w = images(shape)
    f[0, :, :4] = 2.5  # windows without variance
    wanted = lncc_by_loops(f, m, radius, w if masked else np.ones_like(f))
    mask = torch.from_numpy(w) if masked else None
    got = lncc(torch.from_numpy(f), torch.from_numpy(m), radius, mask)
    assert float(got) == pytest.approx(wanted, abs=1e-9)
    single = lncc(torch.from_numpy(f).float(), torch.from_numpy(m).float(), radius, mask)
    assert float(single) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: tuple[int, ...]) -> None:
    f, m, w = (torch.from_numpy(a) for a in images(shape))
    # The variance that epsilon is a share of is held fixed in the gradient; without it the gradient is exact.
    assert torch.autograd.gradcheck(lambda x: lncc(f, x, 2, w, epsilon=0.0), (m.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda x, y: ncc(x, y, w), (f.requires_grad_(), m))
    assert torch.autograd.gradcheck(lambda x, y: mse(x, y, w), (f, m))


def test_soft_weights_count_from_one_half_on() -> None:
    """Weights between 0 and 1 go into the sums of their neighbours' windows; whether their own counts is yes or no."""
    f, m, w = images((1, 9, 10))
    soft = np.where(w > 0, 1.0, 0.4)
    top = bottom = 0.0
    e_f = EPSILON * np.average((f - np.average(f, weights=soft)) ** 2, weights=soft)
    e_m = EPSILON * np.average((m - np.average(m, weights=soft)) ** 2, weights=soft)
    for place, window in windows(f.shape, 2):
        if soft[place] < 0.5:
            continue
        weights = soft[window]
        fc = f[window] - np.average(f[window], weights=weights)
        mc = m[window] - np.average(m[window], weights=weights)
        var_f, var_m, cov = (np.average(v, weights=weights) for v in (fc * fc, mc * mc, fc * mc))
        top += cov**2 / ((var_f + e_f) * (var_m + e_m))
        bottom += 1
    got = lncc(*(torch.from_numpy(a) for a in (f, m)), 2, torch.from_numpy(soft))
    assert float(got) == pytest.approx(1 - top / bottom, abs=1e-9)


def test_lncc_knows_no_unit_and_no_offset() -> None:
    f, m, _ = (torch.from_numpy(a) for a in images((1, 12, 13)))
    base = float(lncc(f, m))
    assert float(lncc(f * 1e-4, m * -500 + 9e3)) == pytest.approx(base, abs=1e-9)
    assert float(lncc(f, 3 - 2 * f)) == pytest.approx(0.0, abs=1e-4)


def test_lncc_of_flat_images() -> None:
    f, m, _ = (torch.from_numpy(a) for a in images((1, 12, 13)))
    flat = torch.full_like(f, 7.0)
    m.requires_grad_()
    loss = lncc(flat, m)
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert m.grad is not None
    assert (m.grad == 0).all()
    assert float(lncc(f, flat)) == pytest.approx(1.0)
    assert bool(torch.isfinite(lncc(f, m, 4, torch.zeros_like(f))))


def test_ncc_and_mse_on_points_against_numpy() -> None:
    f, m, w = images((500,))
    tf, tm, tw = (torch.from_numpy(a) for a in (f, m, w))
    assert float(ncc(tf, tm)) == pytest.approx(1 - np.corrcoef(f, m)[0, 1], abs=1e-12)
    kept = w > 0
    assert float(ncc(tf, tm, tw)) == pytest.approx(1 - np.corrcoef(f[kept], m[kept])[0, 1], abs=1e-12)
    assert float(ncc(tf, 4 - tf)) == pytest.approx(2.0)
    assert float(ncc(tf, torch.zeros_like(tf))) == 1.0
    assert float(mse(tf, tm)) == pytest.approx(((f - m) ** 2).mean())
    assert float(mse(tf, tm, tw)) == pytest.approx(((f - m)[kept] ** 2).mean())


def test_errors() -> None:
    with pytest.raises(ValueError, match="one shape"):
        mse(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="blocks"):
        lncc(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="radius"):
        lncc(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), 0)


def test_mutual_information_on_points() -> None:
    f, m, w = images((2000,))
    tf, tm, tw = (torch.from_numpy(a) for a in (f, m, w))
    # It does not see a contrast, only whether there is a relation.
    for loss in (nmi, mi):
        like, unlike = float(loss(tf, (tf - 0.3).abs())), float(loss(tf, tm[torch.randperm(len(m))]))
        assert like < unlike - 0.1
    kept = tw > 0.5
    spoilt = torch.where(kept, tm, torch.full_like(tm, float(tm.max())))
    assert float(nmi(tf, spoilt, tw)) == pytest.approx(float(nmi(tf, tm, tw)), abs=1e-2)
    x = tm.clone().requires_grad_()
    nmi(tf, x, tw).backward()
    assert x.grad is not None
    assert float(x.grad[kept].abs().max()) > 0
    assert not x.grad[~kept].any()
