"""What becomes of a registration that needs more memory than there is."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

from itk_nir.engine import ops
from itk_nir.errors import OutOfMemory
from itk_nir.expectation import what_would_fit
from itk_nir.problem import Problem

T = TypeVar("T")


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
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays
    gc.collect()
    ops.release_memory()
    fit = what_would_fit(problem.fixed.geometry, problem.moving.geometry, problem.settings)
    raise OutOfMemory(f"out of memory: {fit}")
