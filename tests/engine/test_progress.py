"""What a running registration tells, and where and on how many threads it computes."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from itk_nir.engine import execution
from itk_nir.engine.execution import (
    device_named,
    host_array,
    peak_memory_mb,
    thread_count,
)
from itk_nir.engine.progress import Progress
from itk_nir.engine.torch_state import TorchState, engine_state, in_state
from itk_nir.errors import OptionError

CPU = torch.device("cpu")


def test_old_names_of_progress_warn_and_work() -> None:
    p = Progress("deformable", 1, 3, 4, 20, 0.5, 0.6, 0.25, 1.5, 0.3)
    for old, now in (("step", "iteration"), ("steps", "iterations")):
        with pytest.warns(DeprecationWarning, match=rf"Progress\.{old} is called \.{now} since 0\.2") as told:
            value = getattr(p, old)
        assert told[0].filename == __file__
        assert value == getattr(p, now)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (p.iteration, p.iterations, p.learning_rate) == (4, 20, 0.25)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == CPU
    with pytest.raises(OptionError, match="finds no CUDA device; use device='cpu' or 'auto'"):
        device_named("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_named("cuda") == device_named("cuda:1") == torch.device("cuda", 1)
    assert device_named("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(OptionError, match="'cuda:2' was asked for but torch finds only cuda:0 to cuda:1"):
        device_named("cuda:2")
    with pytest.raises(OptionError, match="'mps' is not supported"):
        device_named("mps")
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:1 ", "", None, 3):
        with pytest.raises(OptionError, match="device is 'auto', 'cpu', 'cuda' or 'cuda:N'"):
            device_named(wrong)  # type: ignore[arg-type]


def test_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count(3) == 3
    assert type(thread_count(np.int64(3))) is int  # type: ignore[arg-type]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4}, raising=False)
    assert thread_count(None) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert thread_count(None) == 1
    for wrong in (0, -1, True, 1.0, "2"):
        with pytest.raises(OptionError, match="threads is a whole number of at least 1"):
            thread_count(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [1, 3])
def test_torch_has_one_thread_inside_and_what_it_had_outside(found: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(found)
    try:
        with engine_state(CPU) as told:
            assert told.threads == found
            assert torch.get_num_threads() == 1
            assert in_state(torch.get_num_threads, told)() == found
            assert torch.get_num_threads() == 1
            with engine_state(CPU):  # a callback may register another pair
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == found
        with pytest.raises(ZeroDivisionError), engine_state(CPU):
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == found
        with engine_state(CPU), pytest.raises(ZeroDivisionError):
            in_state(lambda: 1 / 0, replace(TorchState(), threads=found))()
        assert torch.get_num_threads() == found
        with engine_state(torch.device("cuda")) as told:
            assert told.threads == found
            assert torch.get_num_threads() == found, "not what runs there"
    finally:
        torch.set_num_threads(before)


def test_one_after_another() -> None:
    """While one caller has torch on one thread, another waits, and then finds what the first had found."""
    entered = threading.Event()
    told: list[int] = []

    def second() -> None:
        with engine_state(CPU) as found:
            told.append(found.threads)
            entered.set()
        told.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with engine_state(CPU):
            other = threading.Thread(target=second)
            other.start()
            assert not entered.wait(0.2)
        other.join(10)
        assert entered.is_set()
        assert told == [3, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_memory_is_told_where_the_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    peak = peak_memory_mb()
    assert peak is None or 20 < peak < 1e6
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory_mb() is None
    assert execution.peak_device_memory_mb(CPU) is None
    assert execution.device_name(CPU) == "cpu"
    execution.reset_peak_device_memory(CPU)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tensors_on_the_host(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for shape in ((0,), (3, 5), (257, 123, 91, 3)):
        x = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
        np.testing.assert_array_equal(host_array(x.to(device)), x.numpy())
        turned = x.to(device).movedim(0, -1).requires_grad_()
        found = host_array(turned)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, x.movedim(0, -1).numpy())
