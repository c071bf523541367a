"""What an optimisation has done so far, as plain values and arrays under names: enough to take it up again.

Everything between two entries is computed again where it is needed: it depends on the inputs, the seed and the entries
alone, so that what is taken up ends in the same bits as what was never interrupted. An entry of a name of its own is
what a stage or a part of one ended with; `RUNNING` is that of the iterations that are under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from itk_nir.engine.progress import Iteration

#: The names of entries: the linear stage, all levels that are done, the iterations that are under way.
LINEAR, LEVELS, RUNNING = "linear", "levels", "running"


@dataclass(frozen=True, eq=False)
class Entry:
    """A state.

    Parameters
    ----------
    values : dict
        JSON's values.
    arrays : dict of str to Tensor
        By name.
    """

    values: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)


class Journal:
    """The entries of an optimisation.

    Parameters
    ----------
    write : callable, optional
        Called with all entries when a stage or level is done, and between iterations after `seconds`; without it
        nothing is kept.
    entries : mapping of str to Entry
        Of a run that is taken up.
    seconds : float
        Between two writings within a level, at least.
    """

    def __init__(
        self, write: Callable[[Mapping[str, Entry]], None] | None = None, entries: Mapping[str, Entry] | None = None,
        seconds: float = 60.0,
    ) -> None:  # fmt: skip
        self.write, self.entries, self.seconds = write, dict(entries or {}), seconds
        self.written = time.monotonic()

    def recalled(self, name: str) -> Entry | None:
        """An entry, None where there is none.

        Parameters
        ----------
        name : str
            Its name.

        Returns
        -------
        Entry or None
        """
        return self.entries.get(name)

    def due(self) -> bool:
        """Whether the iterations under way are to be kept now.

        Returns
        -------
        bool
        """
        return self.write is not None and time.monotonic() - self.written >= self.seconds

    def keep(self, name: str, entry: Callable[[], Entry], *, write: bool = False) -> None:
        """Keep an entry; what was under way is done with.

        Parameters
        ----------
        name : str
            Its name.
        entry : callable
            Makes it, where anything is kept at all.
        write : bool
            Whether to write all entries now.
        """
        if self.write is None:
            return
        self.entries.pop(RUNNING, None)
        self.entries[name] = entry()
        if write or name == RUNNING:
            self.write(self.entries)
            self.written = time.monotonic()

    def forget_parts(self) -> None:
        """Leave out the parts of a level, which is done or begins anew."""
        self.entries = {k: v for k, v in self.entries.items() if k in (LINEAR, LEVELS)}


def copied(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Copies on the CPU, which later iterations do not change.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Any.
    prefix : str
        Of the new names.

    Returns
    -------
    dict of str to Tensor
    """
    return {prefix + name: t.detach().cpu().clone() for name, t in tensors.items()}


def load(module: nn.Module, entry: Entry, prefix: str) -> None:
    """Put the arrays of an entry whose names have a prefix into a module.

    Parameters
    ----------
    module : torch.nn.Module
        With the same parameters.
    entry : Entry
        Of `copied`.
    prefix : str
        Of the names.
    """
    state = {k.removeprefix(prefix): v for k, v in entry.arrays.items() if k.startswith(prefix)}
    module.load_state_dict(state)


def load_list(into: list[Tensor], entry: Entry, prefix: str) -> None:
    """The same for a list of tensors, named by their numbers.

    Parameters
    ----------
    into : list of Tensor
        Of the same shapes.
    entry : Entry
        Of `copied`.
    prefix : str
        Of the names.
    """
    with torch.no_grad():
        for number, tensor in enumerate(into):
            tensor.copy_(entry.arrays[f"{prefix}{number}"])


def as_rows(trace: list[Iteration]) -> list[list[float]]:
    """Iterations as JSON's values.

    Parameters
    ----------
    trace : list of Iteration
        Any.

    Returns
    -------
    list of list
        `rows_as_trace` is the way back.
    """
    return [[i.level, i.iteration, i.metric, i.loss, i.learning_rate] for i in trace]


def rows_as_trace(rows: list[list[Any]]) -> list[Iteration]:
    """The iterations of `as_rows`.

    Parameters
    ----------
    rows : list of list
        What it gave.

    Returns
    -------
    list of Iteration
    """
    return [Iteration(*row) for row in rows]
