"""Lines about the iterations of a registration, for the interfaces whose originals print some."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itk_nir.engine.progress import Callback, Progress


def printing(callback: Callback | None, say: Callable[[str], None], every: int | None = 10) -> Callback:
    """Make a callback that tells some iterations of a level and its last one, and then calls another.

    A linear stage reports every map that an iteration tries, and leaves numbers out: of several in a row that belong
    together, the first is told, once.

    Parameters
    ----------
    callback : callable or None
        The other one.
    say : callable
        Takes a line.
    every : int or None, default 10
        Of so many iterations one is told; None for the first and the last one of a level alone.

    Returns
    -------
    callable
    """

    latest: tuple[object, ...] | None = None

    def report(now: Progress) -> bool | None:
        nonlocal latest
        last = now.iteration == now.iterations - 1
        group = now.iteration // every if every else 0
        before, latest = latest, (now.stage, now.level, now.levels, now.iterations, group, last)
        if latest != before:
            say(
                f"{now.stage} level {now.level + 1} of {now.levels}, iteration {now.iteration + 1} of "
                f"{now.iterations}: metric {now.metric:.4f}"
            )
        return None if callback is None else callback(now)

    return report
