"""Who keeps whom alive between Python and ITK's C++ side.

The Python object (a `NIRRegistrationMethod`) holds its process (a `ProcessObject`), which holds the C++ filter; the C++
filter holds a `Link`, which knows the process by a weak reference only. So nothing leaks, and nothing dangles. As in
ITK, a pipeline holds images but not the filters that make them; so when the Python object goes while its output is
still in use elsewhere, its process is kept (see `release`) until the output is in use no more.
"""

from __future__ import annotations

import atexit
import gc
import sys
import weakref
from typing import Any, Protocol

from itk_nir.compat.itk.inputs import INPUT_NAMES

_NOTED = ("last_exc", "last_type", "last_value", "last_traceback")


class Owner(Protocol):
    """What the C++ side asks of the Python side: a `ProcessObject`."""

    filter: Any
    link: Link

    def attempt(self) -> bool:
        """Register; whether it succeeded."""
        ...

    def started(self) -> None:
        """A run begins."""
        ...

    def modified(self) -> None:
        """Something that the result depends on has changed."""
        ...

    def copy_again(self, name: str) -> None:
        """The image behind a copied input has changed."""
        ...

    def notify(self, tag: int, event: str) -> None:
        """An event that the observer `tag` waits for has happened."""
        ...

    def output_in_use(self) -> bool:
        """Whether anything but the filter itself holds its output."""
        ...

    def drop_results(self) -> None:
        """Nobody can ask for the results any more."""
        ...

    def unwatch_all(self) -> None:
        """Take the observers of inputs and transforms away."""
        ...


class RegistrationFailed(RuntimeError):
    """Tells ITK that the registration failed; the reason is kept by the process."""


class Link:
    """What the C++ filter calls. Holds the process weakly.

    Parameters
    ----------
    owner : Owner
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = weakref.ref(owner)

    def GetOutput(self) -> Any:
        """The output of the C++ filter, or None when the process is gone: ITK cannot cope with an exception here."""
        owner = self.owner()
        return None if owner is None else owner.filter.GetOutput()

    def generate(self, _: Any) -> None:
        """Fill the output."""
        owner = self.owner()
        done = owner is not None and owner.attempt()
        told = owner is not None
        # ITK prints an exception before it throws its own, and the interpreter remembers that one's frames.
        del owner
        if not done:
            if told:
                silence_next_failure()
            raise RegistrationFailed("the registration failed, or its Python object is gone")

    def request_inputs(self, _: Any) -> None:
        """Ask for the inputs as wholes."""
        owner = self.owner()
        if owner is not None:
            for number in range(len(INPUT_NAMES)):
                image = owner.filter.GetInput(number)
                if image is not None:
                    image.SetRequestedRegionToLargestPossibleRegion()

    def started(self) -> None:
        """Observes the start of a run."""
        owner = self.owner()
        if owner is not None:
            owner.started()

    def modified(self) -> None:
        """Observes a transform that the result depends on."""
        owner = self.owner()
        if owner is not None:
            owner.modified()

    def copy_again(self, name: str) -> None:
        """Observes an image that the input `name` is a copy of."""
        owner = self.owner()
        if owner is not None:
            owner.copy_again(name)

    def notify(self, tag: int, event: str) -> None:
        """Observes `event` for a user's command, without holding what the command holds."""
        owner = self.owner()
        if owner is not None:
            owner.notify(tag, event)


def whole_output(_: Any, output: Any) -> None:
    """The output is always made as a whole."""
    if output is not None:
        output.SetRequestedRegionToLargestPossibleRegion()


def silence_next_failure() -> None:
    """Have the next `RegistrationFailed` not printed: the reason has been, or will be, told in its own words.

    ITK prints an exception through ``sys.excepthook`` before it throws its own. The interpreter notes what it prints in
    ``sys.last_*``, and with it the frames of all callers and what they hold; so that is undone too.
    """
    before = sys.excepthook
    noted = {name: getattr(sys, name) for name in _NOTED if hasattr(sys, name)}

    def hook(kind: Any, value: Any, traceback: Any) -> None:
        sys.excepthook = before
        if not issubclass(kind, RegistrationFailed):
            before(kind, value, traceback)
            return
        for name in _NOTED:
            if name in noted:
                setattr(sys, name, noted[name])
            elif hasattr(sys, name):
                delattr(sys, name)

    sys.excepthook = hook


#: Processes whose Python object is gone and whose output is in use.
kept: set[Owner] = set()


def release(process: Owner) -> None:
    """The Python object of a process goes: keep the process for as long as its output is in use.

    Parameters
    ----------
    process : Owner
        With a C++ filter.
    """
    if not process.output_in_use():
        process.unwatch_all()
        return
    process.link.owner = weakref.ref(process)  # the garbage collector may have cut it
    process.drop_results()
    if sweep not in gc.callbacks:
        gc.callbacks.append(sweep)
    kept.add(process)


def sweep(phase: str = "stop", _: Any = None) -> None:
    """Let go of kept processes whose output is in use no more; called after every run of the garbage collector.

    Parameters
    ----------
    phase : str
        Of the garbage collector; only ``"stop"`` does anything.
    """
    if phase != "stop":
        return
    while _drop_idle():  # and with them what is upstream of them may become idle
        pass
    if not kept and sweep in gc.callbacks:
        gc.callbacks.remove(sweep)


def _drop_idle() -> bool:
    """Let go of the kept processes whose output is in use no more; whether there were any."""
    idle = [process for process in kept if not process.output_in_use()]
    for process in idle:
        process.unwatch_all()
    kept.difference_update(idle)
    return bool(idle)


# While there is still an interpreter for ITK to call.
atexit.register(kept.clear)
