"""Torch's own threads: one, while this package computes on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Re-entrant: a callback may register another pair.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def torch_on_one_thread(device: torch.device) -> Iterator[None]:
    """Torch's own CPU loops on one thread inside, as before outside. Nothing changes where `device` is no CPU.

    The work that scales is in the native ops, whose bits do not depend on their threads; torch's reductions and matrix
    products may, so they get one. The setting is the whole process's: callers on other threads wait for their turn, or
    one that ends would change it for another that still runs. (They lose little, each uses all threads it is allowed.)
    """
    if device.type != "cpu":
        yield
        return
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
