"""Memory that the iterations of an optimisation use again.

Every iteration needs the same large arrays. Taken from the system and given back each time, they cost more time in page
faults than some of the ops cost in arithmetic; kept by the C library for reuse, they lie about in pieces that larger
arrays do not fit in. Within `reused`, what `empty` gave comes back to a pool of its own as soon as nothing refers to
it any more, and goes back to the system at the end.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Elements below which the C library keeps what is freed anyway.
SMALL = 1 << 15
#: A block is not given to what needs less than this share of it.
LEAST_SHARE = 0.8

_here = threading.local()


class _Lent(np.ndarray):
    """A view of a block that gives it back to its pool when it dies. A tensor made of it keeps it alive."""

    home: _Pool | None = None

    def __del__(self) -> None:
        if self.home is not None and isinstance(self.base, np.ndarray):
            self.home.give_back(self.base)


class _Pool:
    def __init__(self) -> None:
        # What dies in another thread, or while the pool is being searched, may append at any time.
        self.returned: deque[NDArray[np.float32]] = deque()
        self.free: list[NDArray[np.float32]] = []
        self.closed = False

    def take(self, count: int) -> NDArray[np.float32]:
        while self.returned:
            self.free.append(self.returned.popleft())
        fit = [k for k, b in enumerate(self.free) if count <= b.size and LEAST_SHARE * b.size <= count]
        block = self.free.pop(min(fit, key=lambda k: self.free[k].size)) if fit else np.empty(count, np.float32)
        lent = block[:count].view(_Lent)
        lent.home = self
        return lent

    def give_back(self, block: NDArray[np.float32]) -> None:
        if not self.closed:
            self.returned.append(block)

    def close(self) -> None:
        """What is still lent lives on, and keeps this pool alive: it must hold nothing any more."""
        self.closed = True
        self.returned.clear()
        self.free.clear()


@contextmanager
def reused() -> Iterator[None]:
    """Within it, `empty` on this thread takes memory that it gave before and that is no longer used."""
    before = getattr(_here, "pool", None)
    _here.pool = pool = _Pool()
    try:
        yield
    finally:
        _here.pool = before
        pool.close()


def empty(shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A contiguous float32 tensor on the CPU, of any content."""
    pool: _Pool | None = getattr(_here, "pool", None)
    count = math.prod(shape)
    if pool is None or count < SMALL:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    return torch.from_numpy(pool.take(count)).reshape(shape)
