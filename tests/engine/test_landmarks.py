"""Pairs of points: which are believed, the maps that are fitted to them, and their term of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itk_nir.engine.landmarks import Landmarks, LatticeLandmarks
from itk_nir.engine.lattice import Axis
from itk_nir.engine.point_fits import fitted, least_turned
from itk_nir.geometry import Geometry
from itk_nir.phantom import brain_phantom


def turn(d: int, degrees: float) -> np.ndarray:
    t = np.deg2rad(degrees)
    out = np.eye(d)
    out[:2, :2] = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
    return out


def pairs(d: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points within the phantom and where its true deformation takes them."""
    phantom = brain_phantom(d, (40, 48, 40)[:d], seed=seed)
    inside = np.argwhere(phantom.fixed_labels > 0)
    at = inside[np.random.default_rng(seed).choice(len(inside), count, replace=False)]
    points = phantom.geometry.index_to_physical(at[:, ::-1].astype(float))
    return points, points + phantom.displacement[tuple(at.T)]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_wrong_pairs_are_found_and_right_ones_are_believed(d: int, seed: int) -> None:
    p, q = pairs(d, 10, seed)
    assert Landmarks.judged(p, q, np.ones(10), 2.0).believed.all()
    wrong = q.copy()
    wrong[[2, 7]] += 30 * np.array([[0.6, -0.8, 0.0], [-0.8, 0.0, 0.6]])[:, :d] / (1.0 if d == 3 else [[1.0], [0.8]])
    assert np.flatnonzero(~Landmarks.judged(p, wrong, np.ones(10), 2.0).believed).tolist() == [2, 7]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("count", "wrong"), [(7, 1), (10, 2), (20, 6), (40, 12)])
def test_so_many_pairs_may_be_wrong(d: int, count: int, wrong: int) -> None:
    """As docs/landmarks_and_labels.md says."""
    generator, missed = np.random.default_rng(count), 0
    points, there = pairs(d, 400, 1)
    for _ in range(24):
        some = generator.choice(len(points), count, replace=False)
        off = generator.normal(size=(wrong, d))
        q = there[some] + generator.normal(0, 0.5, size=(count, d))
        q[:wrong] += 30 * off / np.linalg.norm(off, axis=1, keepdims=True)
        missed += int(Landmarks.judged(points[some], q, np.ones(count), 4.0).believed[:wrong].sum())
    assert missed <= 0.05 * 24 * wrong


def test_belief_depends_neither_on_the_unit_nor_on_the_linear_map_between_the_images() -> None:
    p, q = pairs(3, 12, 1)
    q[4] += 30
    mm = Landmarks.judged(p, q, np.ones(12), 2.0).believed
    assert mm.sum() == 11
    turned = q @ turn(3, 75).T * 1.4 + [300, 20, -80]
    for a, b, precision in ((1e3 * p, 1e3 * q, 2e3), (p[:, ::-1], q[:, ::-1], 2.0), (p, turned, 2.0)):
        assert np.array_equal(Landmarks.judged(a, b, np.ones(12), precision).believed, mm)


def test_too_few_pairs_are_all_believed() -> None:
    p = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    assert Landmarks.judged(p, np.array([[0.0, 0], [10, 0], [0, 10], [40, 10]]), np.ones(4), 1.0).believed.all()


@pytest.mark.parametrize("d", [2, 3])
def test_linear_maps_are_recovered(d: int) -> None:
    generator = np.random.default_rng(d)
    p = 40 * generator.normal(size=(9, d))
    weights = np.full(9, 1 / 9)
    rigid, shift = turn(d, 130), 5 * generator.normal(size=d)
    stretched = rigid @ np.diag(1 + 0.1 * np.arange(d))
    for kind, matrix in (
        ("translation", np.eye(d)),
        ("rigid", rigid),
        ("similarity", 1.3 * rigid),
        ("affine", stretched),
    ):
        found = fitted(p, p @ matrix.T + shift, weights, kind)
        assert found is not None
        np.testing.assert_allclose(found[:d, :d], matrix, atol=1e-9)
        np.testing.assert_allclose(found[:d, d], shift, atol=1e-8)
    mirrored = fitted(p, p * ([-1.0] + [1.0] * (d - 1)), weights, "rigid")
    assert mirrored is not None
    assert np.linalg.det(mirrored[:d, :d]) == pytest.approx(1)


def test_points_on_a_line_determine_no_rotation_in_space() -> None:
    line = np.outer(np.arange(5.0), [1.0, 2.0, 3.0])
    assert fitted(line, line, np.full(5, 0.2), "rigid") is None
    assert fitted(line, line + 1, np.full(5, 0.2), "translation") is not None


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("towards", [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [3.0, 0.0, -1.0]])
def test_points_on_a_line_are_not_turned_about_it(towards: list[float], noise: float) -> None:
    """From the line onto the other by the least angle, whatever clicks beside it say."""
    a = np.outer(np.arange(-4.0, 5), 4 * np.array([1.0, 2.0, 3.0]) / np.sqrt(14))
    to = np.array(towards) / np.linalg.norm(towards)
    clicks = noise * np.random.default_rng(0).normal(size=(2, 9, 3))
    b = 1.5 * np.outer(np.arange(-4.0, 5), 4 * to) + [5, 0, 0] + clicks[0]
    for kind, size in (("rigid", 1.0), ("similarity", 1.5), ("affine", 1.5)):
        found = least_turned(a + clicks[1], b, np.full(9, 1 / 9), kind, 0.5)
        assert found is not None
        turned = found[:3, :3] / np.cbrt(np.linalg.det(found[:3, :3]))
        assert np.cbrt(np.linalg.det(found[:3, :3])) == pytest.approx(size, abs=0.1 * noise + 1e-9)
        angle = np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1))
        between = np.arccos(np.clip(a[-1] @ to / np.linalg.norm(a[-1]), -1, 1))
        assert angle == pytest.approx(between, abs=0.1 * noise + 1e-6)
        np.testing.assert_allclose(found[:3, :3] @ a[-1], 16 * size * to, atol=3 * noise + 1e-6)
    off = a.copy()
    off[4] += [6, -3, 0]
    assert least_turned(off, off + 1, np.full(9, 1 / 9), "rigid", 0.5) is None


@pytest.mark.parametrize("d", [2, 3])
def test_points_at_one_place_are_shifted(d: int) -> None:
    a = np.full((4, d), 7.0) + 0.2 * np.random.default_rng(0).normal(size=(4, d))
    found = least_turned(a, a + 3, np.full(4, 0.25), "similarity", 0.5)
    assert found is not None
    np.testing.assert_array_equal(found[:d, :d], np.eye(d))
    np.testing.assert_allclose(found[:d, d], 3)
    apart = 20 * np.random.default_rng(0).normal(size=(2 if d == 2 else 3, d))
    assert least_turned(apart, apart + 3, np.full(len(apart), 1 / len(apart)), "similarity", 0.5) is None


def test_few_pairs_ask_for_a_similarity_in_place_of_an_affine_map() -> None:
    p, q = pairs(2, 11, 0)
    few = Landmarks.judged(p, q, np.ones(11), 50.0)
    assert few.supported("affine") == "similarity"
    assert few.supported("rigid") == "rigid"
    often = [np.repeat(points, 4, 0) for points in (p, q)]
    assert Landmarks.judged(*often, np.ones(44), 50.0).supported("affine", once=True) == "similarity"
    p, q = pairs(2, 12, 0)
    assert Landmarks.judged(p, q, np.ones(12), 50.0).supported("affine") == "affine"


def test_the_smooth_deformation_brings_pairs_together_and_stays_within_them_far_away() -> None:
    p, q = pairs(3, 10, 2)
    landmarks = Landmarks.judged(p, q, np.ones(10), 2.0)
    there = landmarks.smooth_displacement(np.eye(4), p)
    assert np.linalg.norm(there - (q - p), axis=1).max() < 0.35 * np.linalg.norm(q - p - (q - p).mean(0), axis=1).max()
    far = landmarks.smooth_displacement(np.eye(4), np.array([[1e4, 0, 0], [0, -1e4, 0]]))
    assert np.linalg.norm(far, axis=1).max() < 2 * np.linalg.norm(q - p, axis=1).max()


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("d", [2, 3])
def test_term_and_gradient_are_those_of_the_definition(d: int, robust: bool) -> None:
    generator = np.random.default_rng(3)
    geometry = Geometry.make(
        (20, 24, 18)[:d], (1.5, 2.0, 1.0)[:d], (3, -8, 40)[:d], turn(d, 30)
    )  # fmt: skip
    axes = [Axis(-3.0, 8 / 1.5, 8), Axis(-3.0, 4.0, 10), Axis(-3.0, 8.0, 7) if d == 3 else Axis(0.0, 8.0, 1)]
    index = generator.uniform(3, 12, size=(6, d))
    p = geometry.index_to_physical(index)
    q = p + generator.normal(size=(6, d))
    weights = generator.uniform(0.2, 1, size=6)
    linear = np.eye(d + 1)
    linear[:d, :d] += 0.05 * generator.normal(size=(d, d))
    landmarks = Landmarks(p, q, weights, 2.0, np.ones(6, bool), robust)
    term = LatticeLandmarks.of(landmarks, geometry, axes, 8.0, linear, 3.0, torch.device("cpu"))
    u = torch.from_numpy(
        generator.normal(size=(3, axes[2].count, axes[1].count, axes[0].count)).astype(np.float32) * 0.2
    )
    u[d:] = 0  # nothing leaves the plane
    u.requires_grad_()
    value = term(u)
    value.backward()

    exact = u.detach().double().requires_grad_()
    matrices = [torch.from_numpy(a.evaluate(index[:, k] if k < d else np.zeros(6)).dense()) for k, a in enumerate(axes)]
    at = torch.einsum("czyx,nx,ny,nz->nc", exact, *matrices)[:, :d] * 8.0
    wanted = torch.from_numpy((landmarks.wanted(linear)) @ geometry.rotation)
    unit = min(geometry.spacing)
    square = (at - wanted).square().sum(1) / unit**2
    s = 3.0 / unit
    # The distance itself, but for its rounded end.
    each = s * s * torch.log(1 + square / (s * s)) if robust else torch.sqrt(square + (0.1 * s) ** 2) - 0.1 * s
    reference = (torch.from_numpy(weights / weights.sum()) * each).sum()
    reference.backward()
    assert float(value.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    assert u.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(u.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)
