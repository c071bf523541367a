"""What a registration was given, as checksums: the same inputs and options have the same, on any machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import torch

from itk_nir.images import Volume
from itk_nir.problem import Problem
from itk_nir.report import as_json
from itk_nir.version import __version__

#: The images of a `Problem`, by the arguments of `itk_nir.register`.
_IMAGES = (
    "fixed", "moving", "fixed_mask", "moving_mask", "fixed_lesion", "moving_lesion", "rigid_regions", "volume_regions",
)  # fmt: skip


def checksum(*values: Any) -> str:
    """SHA-256 of values of any kind: of images the voxels and the grid, not their names.

    Parameters
    ----------
    *values : object
        Arrays, tensors, images, dataclasses, mappings, sequences and plain values.

    Returns
    -------
    str
        Hexadecimal.

    Examples
    --------
    >>> checksum(1.0, (2, "a"))[:8] == checksum(1.0, (2, "a"))[:8] != checksum(1.0, (2, "b"))[:8]
    True
    """
    found = hashlib.sha256()
    for value in values:
        _feed(found, value)
    return found.hexdigest()


def _feed(into: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Volume):
        _feed(into, (value.array, value.geometry))
    elif isinstance(value, np.ndarray):
        into.update(f"<{value.dtype.str}{value.shape}>".encode())
        into.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(into, (type(value).__name__, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}))
    elif isinstance(value, Mapping):
        _feed(into, [(str(k), value[k]) for k in sorted(value, key=str)])
    elif isinstance(value, (tuple, list)):
        into.update(f"<{len(value)}>".encode())
        for part in value:
            _feed(into, part)
    elif value is None or isinstance(value, (bool, int, float, str, np.generic)):
        plain = value.item() if isinstance(value, np.generic) else value
        into.update(f"<{type(plain).__name__} {plain!r}>".encode())
    else:  # an object of the caller's, such as a metric: its class, and what it holds
        into.update(f"<{type(value).__module__}.{type(value).__qualname__}>".encode())
        _feed(into, getattr(value, "__dict__", None) or None)


def inputs_of(problem: Problem) -> dict[str, str]:
    """Checksum of everything that a registration was given to look at.

    Parameters
    ----------
    problem : Problem
        What is registered.

    Returns
    -------
    dict of str to str
        By the arguments of `itk_nir.register`, those that were given. Images count as the voxels that are worked on
        (float32, masks on the grid of their image) and their grid.
    """
    out = {name: checksum(getattr(problem, name)) for name in _IMAGES if getattr(problem, name) is not None}
    if problem.more:
        out["fixed"] = checksum(out["fixed"], [f for f, _ in problem.more])
        out["moving"] = checksum(out["moving"], [m for _, m in problem.more])
    if problem.given is not None:
        out["landmarks and labels"] = checksum(problem.given.points, problem.given.maps, problem.given.values)
    if problem.start is not None:
        out["initial_transform"] = checksum(problem.start)
    return out


def inputs_soon(problem: Problem) -> Callable[[], dict[str, str]]:
    """`inputs_of` on a thread of its own where there may be one, so that nothing waits: checksums leave Python free.

    Parameters
    ----------
    problem : Problem
        What is registered.

    Returns
    -------
    callable
        Gives the checksums, and waits for them where it must.
    """
    if problem.threads == 1:
        return partial(inputs_of, problem)
    found: Future[dict[str, str]] = Future()

    def work() -> None:
        try:
            found.set_result(inputs_of(problem))
        except BaseException as error:
            found.set_exception(error)

    try:
        Thread(target=work, name="itk-nir checksums", daemon=True).start()
    except RuntimeError:  # no thread can be had: too many, or the process ends
        return partial(inputs_of, problem)
    return found.result


def fingerprint(problem: Problem) -> dict[str, Any]:
    """All that the result depends on.

    Parameters
    ----------
    problem : Problem
        What is registered.

    Returns
    -------
    dict
        JSON's values by what a user calls them.
    """
    options = {
        f"option {field.name}": as_json(getattr(part, field.name))
        if not callable(getattr(part, field.name))
        else checksum(getattr(part, field.name))
        for part in problem.settings.parts.values()
        for field in dataclasses.fields(part)
    }
    return {
        **inputs_of(problem),
        "linear": problem.linear,
        "deformable": problem.deformable,
        "seed": problem.seed,
        "device": problem.device.type,
        **options,
        "version of itk-nir": __version__,
        "version of torch": torch.__version__,
    }
