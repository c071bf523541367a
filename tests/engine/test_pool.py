"""Memory that is used again: never while somebody still has it."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from itk_nir.engine.ops.pool import SMALL, empty, reused

SHAPE = (3, 40, 50, 60)


def test_memory_comes_back() -> None:
    with reused():
        first = empty(SHAPE)
        assert first.shape == SHAPE
        assert first.dtype == torch.float32
        assert first.is_contiguous()
        where = first.data_ptr()
        second = empty(SHAPE)
        assert second.data_ptr() != where
        del first
        assert empty(SHAPE).data_ptr() == where
        assert empty((SHAPE[0] * SHAPE[1], 50, 54)).data_ptr() == where  # a little smaller, another shape
        assert empty((10, *SHAPE)).data_ptr() != where


def test_views_and_arrays_keep_their_memory() -> None:
    with reused():
        view = empty(SHAPE).reshape(-1)[7:]
        array = empty(SHAPE).numpy()
        view.fill_(1.0)
        array.fill(2.0)
        others = [empty(SHAPE).fill_(3.0) for _ in range(4)]
        assert bool((view == 1).all())
        assert bool((array == 2).all())
        assert len(others) == 4
    # And so do they when the pool is gone.
    del others
    gc.collect()
    assert bool((view == 1).all())
    assert bool((array == 2).all())


def test_what_outlives_its_pool_keeps_nothing_else() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with reused():
            kept, late, early = empty(SHAPE), empty(SHAPE), empty(SHAPE)
            del early  # into the pool
        del late  # after it
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept.numel() * 4 <= held < 1.5 * kept.numel() * 4


def test_graphs_keep_what_they_need_for_their_gradients() -> None:
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
            ctx.factor = empty(x.shape).copy_(x)
            return ctx.factor.sum()

        @staticmethod
        def backward(ctx, *grads: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return ctx.factor * grads[0]

    x = torch.randn(SHAPE, requires_grad=True)
    with reused():
        value = Times.apply(x)
        for _ in range(3):
            empty(SHAPE).fill_(torch.nan)
        value.backward()
    assert x.grad is not None
    assert torch.equal(x.grad, x.detach())


def test_outside_and_small_things_are_plain_memory() -> None:
    assert empty((2, 0, 3)).shape == (2, 0, 3)
    kept = empty(SHAPE)
    with reused():
        assert isinstance(empty((SMALL - 1,)).numpy(), np.ndarray)
        assert empty(SHAPE).data_ptr() != kept.data_ptr()


def test_defaults_of_torch_do_not_matter() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with reused():
            assert empty((2, 3)).dtype == empty(SHAPE).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_pools_of_two_threads_are_apart() -> None:
    inside, done = threading.Event(), threading.Event()
    other: list[torch.Tensor] = []

    def work() -> None:
        with reused():
            other.append(empty(SHAPE).fill_(5.0))
            inside.set()
            done.wait(10)
            other.append(empty(SHAPE).fill_(6.0))

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with reused():
        mine = [empty(SHAPE).fill_(float(k)) for k in range(3)]
        other.pop()  # given back to its own pool, from this thread
        done.set()
        thread.join(10)
        assert [float(x.mean()) for x in mine] == [0.0, 1.0, 2.0]
    assert float(other[0].mean()) == 6.0


def test_pools_within_pools() -> None:
    with reused():
        outer = empty(SHAPE).fill_(1.0)
        with reused():
            inner = empty(SHAPE).fill_(2.0)
        again = empty(SHAPE).fill_(3.0)
    assert (float(outer.mean()), float(inner.mean()), float(again.mean())) == (1.0, 2.0, 3.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(SMALL - 2, 4 * SMALL), st.integers(0, 7)), max_size=40))
def test_nothing_is_given_twice(requests: list[tuple[int, int]]) -> None:
    """Whatever is asked for and dropped, what is alive does not overlap."""
    alive: dict[int, torch.Tensor] = {}
    with reused():
        for count, slot in requests:
            alive[slot] = empty((count,))
            alive[slot].fill_(float(slot))
            assert all(bool((x == k).all()) for k, x in alive.items())
