"""A registration that does not fit on a card is refused in one line, before it begins or when memory runs out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from itk_nir import expectation, memory
from itk_nir.errors import OutOfMemory
from itk_nir.phantom import brain_phantom
from itk_nir.problem import Problem
from itk_nir.settings import make_settings

CARD = torch.device("cuda", 0)


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """A pair on a card without kernels, which torch does not really find."""
    monkeypatch.setattr(expectation, "native_on", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    phantom = brain_phantom(2, (40, 48))
    images = (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry)
    return dataclasses.replace(Problem.prepare(*images, make_settings("fast"), device="cpu"), device=CARD)


def test_what_cannot_fit_is_refused_before_it_begins(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = problem.fixed.geometry, problem.moving.geometry
    needed = expectation.expected_card_memory(*grids, problem.settings, CARD)
    assert needed is not None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed // 2, 1 << 33))
    with pytest.raises(OutOfMemory, match=r"^out of memory: .* of the card, .* free there; .*; or use device=.cpu.$"):
        memory.within_memory(lambda: pytest.fail("it began"), problem)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed, 1 << 33))
    assert memory.within_memory(lambda: 7, problem) == 7
    assert memory.within_memory(lambda: 7, dataclasses.replace(problem, device=torch.device("cpu"))) == 7


def test_torchs_own_error_is_answered(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 33, 1 << 33))

    def runs_out() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(OutOfMemory, match=r"or use device='cpu'$"):
        memory.within_memory(runs_out, problem)


def test_kernels_need_a_tenth(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    from itk_nir import Geometry

    grid = Geometry.make((160, 192, 224))
    without = expectation.expected_card_memory(grid, grid, make_settings("default"), CARD)
    monkeypatch.setattr(expectation, "native_on", lambda _: object())
    within = expectation.expected_card_memory(grid, grid, make_settings("default"), CARD)
    assert without is not None
    assert within is not None
    assert within < 2e9 < 8e9 < without
    assert expectation.expected_card_memory(grid, grid, make_settings("paper"), CARD) is None
    assert problem.device == CARD
