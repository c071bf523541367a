"""A run while it goes on: its state, the events it sends, and what SimpleITK's getters say about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.sitk.options import OPTIONS
from itk_nir.errors import OptionError

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress

#: Iterations over which the convergence value is measured.
CONVERGENCE_WINDOW = 10


@dataclass(eq=False)
class Run:
    """One execution.

    Attributes
    ----------
    stage : {"linear", "deformable"}
        The stage whose iterations are told: the last one that runs.
    dimension : int
        Of the fixed image.
    fire : callable
        Takes the name of an event and calls its commands.
    live : bool
        Whether it still goes on.
    ending : {"stop", "abort"}, optional
        How a command has asked it to end.
    latest : Progress, optional
        What the engine said about the latest iteration of the stage.
    iteration : int
        Of the level, counted from 0.
    values : list of float
        Metric of every iteration of the level, smaller is better.
    value : float
        The latest of them, or that of the result.
    progress : float
        Share of the work that is done, 0 to 1.
    stop_condition : str
        Why it ended.
    position : tuple of float, optional
        The parameters where they are told: at the start, or at the latest position of an exhaustive search.
    parameters : callable, optional
        Takes `Progress.mapping`, gives the parameters of the optimised transform.
    transform : SimpleITK.Transform, optional
        What it returned.
    """

    stage: str
    dimension: int
    fire: Callable[[str], None]
    parameters: Callable[[Any], tuple[float, ...]] | None = None
    position: tuple[float, ...] | None = None
    live: bool = True
    ending: str | None = None
    latest: Progress | None = None
    iteration: int = 0
    values: list[float] = field(default_factory=list)
    value: float = 0.0
    progress: float = 0.0
    stop_condition: str = ""
    transform: Any = None

    @property
    def local_parameters(self) -> int:
        """How many parameters move a point: all of a linear transform, one an axis of any other."""
        return len(self.position) if self.stage == "linear" and self.position else self.dimension

    def ended(self) -> None:
        """Nothing runs any more: what stands for the engine's state at an iteration is let go."""
        self.live, self.parameters = False, None
        if self.latest is not None:
            self.latest = replace(self.latest, mapping=None)

    def report(self, progress: Progress) -> bool:
        """Take what the engine says after every iteration, send the events, and say whether it shall end."""
        self.progress = progress.fraction
        if progress.stage == self.stage:
            if self.latest is None or progress.level != self.latest.level:
                self.latest, self.iteration, self.values = progress, 0, []
                self.fire("MultiResolutionIteration")
            else:
                self.latest = progress
                self.iteration += 1
            self.value = -progress.metric
            self.values.append(self.value)
            self.fire("Iteration")
        self.fire("Progress")
        return self.ending is not None

    def visited(self, position: tuple[float, ...], value: float) -> bool:
        """Take a position of an exhaustive search and its metric, send the events; say whether it shall end."""
        self.position, self.value = position, value
        self.iteration = len(self.values)
        self.values.append(value)
        self.fire("Iteration")
        self.fire("Progress")
        return self.ending is not None

    def end(self, how: str) -> bool:
        """Ask it to end after this iteration; returns whether it was still going on."""
        if self.live:
            self.ending = how
        return self.live


class ObservedRegistration:
    """The commands and getters of ``SimpleITK.ImageRegistrationMethod``, about the latest execution."""

    def __init__(self) -> None:
        self._commands: list[tuple[int, Callable[[], Any]]] = []
        self._run: Run | None = None

    # --- commands ----------------------------------------------------------------------------------------------------

    def AddCommand(self, event: int, command: Any) -> int:
        """Call a command whenever an event happens.

        Parameters
        ----------
        event : int
            ``sitk.sitkIterationEvent`` and the like.
        command : callable or SimpleITK.Command
            A callable without arguments.

        Returns
        -------
        int
            Number of the command.

        Raises
        ------
        OptionError
            Another event than Start, MultiResolutionIteration, Iteration, Progress, Abort, End and Any, or something
            that cannot be called.
        """
        function = command if callable(command) else getattr(command, "Execute", None)
        if function is None:
            raise OptionError(f"AddCommand takes a function or a SimpleITK.Command, got {type(command).__name__}")
        if event not in events().values():
            raise OptionError(f"AddCommand: there is no event {event!r}; give one of {', '.join(events())}")
        self._commands.append((event, function))
        return len(self._commands) - 1

    def HasCommand(self, event: int) -> bool:
        """Whether there is a command for this event."""
        return any(e == event for e, _ in self._commands)

    def RemoveAllCommands(self) -> None:
        """Forget all commands."""
        self._commands.clear()

    def _fire(self, name: str) -> None:
        """Call the commands of an event."""
        number, any_event = events()[f"sitk{name}Event"], events()["sitkAnyEvent"]
        for event, function in list(self._commands):
            if event in (number, any_event):
                function()

    def StopRegistration(self) -> bool:
        """End the run after this iteration, with the best so far. Returns whether there is a run."""
        return self._run is not None and self._run.end("stop")

    def Abort(self) -> None:
        """End the run after this iteration; `Execute` raises `RegistrationCancelled`."""
        if self._run is not None:
            self._run.end("abort")

    # --- getters -----------------------------------------------------------------------------------------------------

    def GetOptimizerIteration(self) -> int:
        """Iterations of the level before this one, counted from 0."""
        return 0 if self._run is None else self._run.iteration

    def GetCurrentLevel(self) -> int:
        """The resolution level, counted from 0, the coarsest."""
        return 0 if self._run is None or self._run.latest is None else self._run.latest.level

    def GetMetricValue(self) -> float:
        """Minus the similarity under the metric: smaller is better, -1 is perfect."""
        return 0.0 if self._run is None else self._run.value

    def GetProgress(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return 0.0 if self._run is None else self._run.progress

    def GetOptimizerLearningRate(self) -> float:
        """The learning rate of this iteration, as the optimiser is given it.

        In voxels of the level for a linear stage, in voxels of the fixed image for a deformation, in the unit of the
        network's weights with preset ``"paper"``; 0 before the first iteration.
        """
        return 0.0 if self._run is None or self._run.latest is None else self._run.latest.learning_rate

    def GetOptimizerConvergenceValue(self) -> float:
        """Decrease of the metric per iteration, over the last 10 of the level; the largest float before."""
        values = [] if self._run is None else self._run.values[-CONVERGENCE_WINDOW:]
        if len(values) < CONVERGENCE_WINDOW:
            return sys.float_info.max
        return float(-np.polyfit(np.arange(CONVERGENCE_WINDOW), values, 1)[0])

    def GetOptimizerPosition(self) -> tuple[float, ...]:
        """Parameters of the optimised transform: at this iteration, or as `Execute` returned it."""
        run = self._run
        if run is None:
            raise OptionError("GetOptimizerPosition is refused before Execute: there is no position yet")
        if not run.live and run.transform is not None:
            return tuple(run.transform.GetParameters())
        mapping = None if run.latest is None else run.latest.mapping
        if mapping is not None and run.parameters is not None:
            return run.parameters(mapping)
        if run.position is None or run.latest is not None:
            raise OptionError(
                "GetOptimizerPosition is refused while this runs: its parameters are those of a neural field; ask "
                "after Execute"
            )
        return run.position

    def GetOptimizerStopConditionDescription(self) -> str:
        """Why the run ended."""
        return "" if self._run is None else self._run.stop_condition

    # --- debugging ---------------------------------------------------------------------------------------------------

    def DebugOff(self) -> None:
        """What happens anyway."""

    def DebugOn(self) -> None:
        """Refused, see `SetDebug`."""
        self.SetDebug(True)

    def GetDebug(self) -> bool:
        """False."""
        return False

    def SetDebug(self, debugFlag: bool) -> None:
        """False only."""
        if debugFlag:
            raise OPTIONS["SetDebug"].refusal("SetDebug(True)")

    def GetName(self) -> str:
        """``"ImageRegistrationMethod"``."""
        return "ImageRegistrationMethod"


def events() -> dict[str, int]:
    """Names of the events that are sent -> SimpleITK's numbers for them."""
    import SimpleITK as sitk

    names = ("Start", "MultiResolutionIteration", "Iteration", "Progress", "Abort", "End", "Any")
    return {f"sitk{name}Event": int(getattr(sitk, f"sitk{name}Event")) for name in names}
