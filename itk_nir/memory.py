"""What becomes of a registration that needs more memory than there is."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from itk_nir.engine import ops
from itk_nir.errors import OutOfMemory
from itk_nir.expectation import expected_card_memory, free_card_memory, what_would_fit
from itk_nir.problem import Problem

T = TypeVar("T")

#: The share of the expected memory that a registration takes in any case.
LEAST_SHARE = 0.7


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch and ITK say so in the text of a RuntimeError.

    Parameters
    ----------
    error : BaseException
        Any.

    Returns
    -------
    bool
    """
    text = str(error).lower()
    in_text = "out of memory" in text or "allocate memory" in text or "bad_alloc" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and in_text)


def within_memory(function: Callable[[], T], problem: Problem) -> T:
    """What a function returns; where memory runs out, one line with what would fit, and all it held is free again.

    Parameters
    ----------
    function : callable
        Without arguments.
    problem : Problem
        What is registered.

    Returns
    -------
    object
        Of `function`.

    Raises
    ------
    OutOfMemory
        Memory ran out.
    """
    require_card_memory(problem)
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays
    gc.collect()
    ops.release_memory()
    if problem.device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory(f"out of memory: {_fit(problem)}")


def require_card_memory(problem: Problem) -> None:
    """Refuse what cannot fit on a card, before any work.

    Parameters
    ----------
    problem : Problem
        What is registered.

    Raises
    ------
    OutOfMemory
        It needs much more than is free.
    """
    if problem.device.type != "cuda":
        return
    needed = expected_card_memory(
        problem.fixed.geometry, problem.moving.geometry, problem.settings, problem.device, 1 + len(problem.more)
    )
    if needed is not None and LEAST_SHARE * needed > free_card_memory(problem.device):
        raise OutOfMemory(f"out of memory: {_fit(problem)}")


def _fit(problem: Problem) -> str:
    grids = problem.fixed.geometry, problem.moving.geometry
    return what_would_fit(*grids, problem.settings, problem.device, 1 + len(problem.more))
