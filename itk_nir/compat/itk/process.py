"""The process behind a `NIRRegistrationMethod`: its C++ filter, what is connected to it, and how it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from itk_nir.compat.itk.inputs import (
    INPUT_NAMES,
    INPUTS,
    Connection,
    as_float,
    float_copy,
    output_of,
    same_input,
    without_pipeline,
)
from itk_nir.compat.itk.lifetime import Link, whole_output
from itk_nir.compat.itk.options import Options
from itk_nir.errors import InputError, RegistrationCancelled
from itk_nir.images.itk_classes import image_view
from itk_nir.images.planes import refuse_slices

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.result import RegistrationResult

#: ITK refuses inputs on unlike grids; a registration takes any.
ANY_GRID = 1e30


class ProcessObject:
    """An ``itk.PyImageFilter`` that registers, made when its dimension is known.

    It is apart from the `NIRRegistrationMethod` that users hold because it may have to outlive it, see `lifetime`.

    Attributes
    ----------
    filter : itk.PyImageFilter or None
        The C++ filter; None as long as the dimension is not known.
    link : Link
        What the C++ filter calls.
    options : Options
    connections : dict of str to Connection
        Inputs by their name.
    observers : dict of int to (itk.EventObject, callable or itk.Command)
        What the user added, by tag.
    progress : Progress or None
        The last iteration of the last run.
    result : RegistrationResult or None
        Of the last run, if it succeeded.
    displacement_field : itk.Image or None
        Made from `result` when first asked for.
    """

    def __init__(self) -> None:
        self.filter: Any = None
        self.link = Link(self)
        self.options = Options()
        self.connections: dict[str, Connection] = {}
        self.observers: dict[int, tuple[Any, Any]] = {}
        self.progress: Progress | None = None
        self.result: RegistrationResult | None = None
        self.displacement_field: Any = None
        self._watched: dict[str, tuple[Any, int]] = {}  # input or transform that tells of its own changes
        self._tags: dict[int, int] = {}  # ours → the C++ filter's
        self._next_tag = 0
        self._firing = ""
        self._error: BaseException | None = None
        self._direct = False  # whether our own Update() is running, which raises what goes wrong
        self._abort = False

    # --- the C++ filter ----------------------------------------------------------------------------------------------

    def create(self, dimension: int) -> None:
        """Make the C++ filter.

        Parameters
        ----------
        dimension : int
            2 or 3.
        """
        import itk

        kind = itk.Image[itk.F, dimension]
        new = itk.PyImageFilter[kind, kind].New()
        new.SetCoordinateTolerance(ANY_GRID)
        new.SetDirectionTolerance(ANY_GRID)
        # Beside the two bound methods, which keep the link, ITK has a bare pointer to it: so it lives as long as `new`.
        new.SetPyGenerateData(self.link.generate)
        new.SetPyGenerateInputRequestedRegion(self.link.request_inputs)
        new.SetPyEnlargeOutputRequestedRegion(whole_output)
        new._SetSelf(self.link)
        new.AddObserver(itk.StartEvent(), self.link.started)
        self.filter = new
        for tag in self.observers:
            self._connect_observer(tag)

    def existing_filter(self) -> Any:
        """The C++ filter.

        Returns
        -------
        itk.PyImageFilter

        Raises
        ------
        InputError
            There is none yet.
        """
        if self.filter is None:
            raise InputError(
                "NIRRegistrationMethod: its dimension is not known yet; set an image first, or make it with "
                "NIRRegistrationMethod[ImageType, ImageType].New()"
            )
        return self.filter

    def modified(self) -> None:
        """What the result depends on has changed: the next update registers again."""
        if self.filter is not None:
            self.filter.Modified()

    def output_in_use(self) -> bool:
        """Whether anything but the C++ filter holds its output.

        Returns
        -------
        bool
        """
        output = self.filter.GetOutput()
        return bool(output.GetReferenceCount() > 2)  # the filter, and the name here

    def drop_results(self) -> None:
        """Nobody can ask for the results any more."""
        self.result = self.displacement_field = None

    # --- inputs ------------------------------------------------------------------------------------------------------

    def connect(self, name: str, image: Any) -> None:
        """Set an input.

        Parameters
        ----------
        name : str
            One of `INPUTS`.
        image : itk.Image, ITK filter or None

        Raises
        ------
        InputError
            An image that cannot be registered, or is of another dimension.
        """
        if same_input(image, self.given_input(name)):
            return
        if image is None:
            self._disconnect(name)
            return
        connection = as_float(image, INPUTS[name])
        if self.filter is None:
            self.create(connection.dimension)
        mine = int(self.existing_filter().GetOutput().GetImageDimension())
        if connection.dimension != mine:
            raise InputError(
                f"{INPUTS[name]}: is {connection.dimension}D, but this filter is {mine}D; make a new one for it"
            )
        self._disconnect(name)
        self.connections[name] = connection
        if connection.original is not None:
            self.watch(name, connection.original, partial(self.link.copy_again, name))
        self.existing_filter().SetInput(INPUT_NAMES.index(name), output_of(connection.source))

    def given_input(self, name: str) -> Any:
        """An input as it was set.

        Parameters
        ----------
        name : str
            One of `INPUTS`.

        Returns
        -------
        itk.Image, ITK filter or None
        """
        connection = self.connections.get(name)
        return None if connection is None else connection.given

    def copy_again(self, name: str) -> None:
        """An image that ITK cannot cast has changed.

        Parameters
        ----------
        name : str
            One of `INPUTS`.
        """
        old = self.connections[name]
        copy = float_copy(old.original, INPUTS[name])
        self.connections[name] = Connection(old.given, copy, old.dimension, old.original)
        self.filter.SetInput(INPUT_NAMES.index(name), copy)

    def watch(self, name: str, thing: Any, command: Callable[[], None]) -> None:
        """Call `command` whenever `thing` says that it has changed.

        Parameters
        ----------
        name : str
            For `unwatch`.
        thing : itk.Object
        command : callable
            Must not hold this process.
        """
        import itk

        self._watched[name] = (thing, thing.AddObserver(itk.ModifiedEvent(), command))

    def unwatch(self, name: str) -> None:
        """End `watch`.

        Parameters
        ----------
        name : str
            One that is not watched is well.
        """
        thing, tag = self._watched.pop(name, (None, 0))
        if thing is not None:
            thing.RemoveObserver(tag)

    def unwatch_all(self) -> None:
        """End every `watch`."""
        for name in list(self._watched):
            self.unwatch(name)

    def _disconnect(self, name: str) -> None:
        self.unwatch(name)
        self.connections.pop(name, None)
        if self.filter is not None:
            self.filter.SetInput(INPUT_NAMES.index(name), None)

    # --- observers ---------------------------------------------------------------------------------------------------

    def add_observer(self, event: Any, command: Any) -> int:
        """Call `command` at every `event`, also where there is no C++ filter yet.

        Parameters
        ----------
        event : itk.EventObject
        command : callable or itk.Command

        Returns
        -------
        int
            Tag for `remove_observer`.
        """
        self._next_tag += 1
        tag = self._next_tag
        self.observers[tag] = (event, command)
        if self.filter is not None:
            self._connect_observer(tag)
        return tag

    def remove_observer(self, tag: int) -> None:
        """Take an observer away.

        Parameters
        ----------
        tag : int
        """
        self.observers.pop(tag, None)
        if tag in self._tags:
            self.filter.RemoveObserver(self._tags.pop(tag))

    def notify(self, tag: int, event: str) -> None:
        """Call a user's command.

        Parameters
        ----------
        tag : int
            Of the observer.
        event : str
            Name of the event that it was added for.
        """
        # In ITK the start of a level is an iteration too; who counts iterations does not want it.
        if tag not in self.observers or (self._firing, event) == ("MultiResolutionIterationEvent", "IterationEvent"):
            return
        try:
            self.observers[tag][1]()
        except BaseException as error:
            if not self._direct:
                raise
            self._error = self._error or error  # ITK would make it a RuntimeError; `run` raises it

    def _connect_observer(self, tag: int) -> None:
        event, command = self.observers[tag]
        # Anything else is an itk.Command.
        what = partial(self.link.notify, tag, event.GetEventName()) if callable(command) else command
        self._tags[tag] = self.filter.AddObserver(event, what)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self, method: str) -> None:
        """Call one of the C++ filter's ways to update, and raise what goes wrong as it is.

        Parameters
        ----------
        method : str
            ``"Update"``, ``"UpdateLargestPossibleRegion"`` or ``"UpdateOutputInformation"``.

        Raises
        ------
        InputError
            An image is not set.
        """
        for name in ("FixedImage", "MovingImage"):
            if name not in self.connections:
                raise InputError(f"NIRRegistrationMethod: has no {INPUTS[name]}; call Set{name}(image) first")
        self._error, self._direct = None, True
        try:
            # PyImageFilter's own Update() would put itself in the place of the link, see `create`.
            getattr(super(type(self.filter), self.filter), method)()
        except RuntimeError:
            self.filter.ResetPipeline()  # else ITK takes what failed, here or upstream, for still running
            error, self._error = self._error, None
            if error is not None:
                raise error from None
            raise
        finally:
            self._direct = False
        error, self._error = self._error, None
        if error is not None:  # of an observer of the end
            raise error

    def started(self) -> None:
        """A run begins. ITK clears its own flag after this event; an observer of it may abort all the same."""
        self._abort, self._error = False, None

    def set_abort(self, abort: bool) -> None:
        """Ask the running registration to stop at its next iteration.

        Parameters
        ----------
        abort : bool
        """
        self._abort = abort
        self.existing_filter().SetAbortGenerateData(abort)

    def attempt(self) -> bool:
        """Register and fill the output. What goes wrong is kept for `run` to raise.

        Returns
        -------
        bool
            Whether it succeeded.
        """
        try:
            self._generate()
        except BaseException as error:
            if isinstance(error, RegistrationCancelled):
                self._invoke("AbortEvent")
            if self._direct:
                self._error = error
            else:  # nobody will raise it; and its frames hold what is downstream
                self._error = None
                print(f"itk-nir: registration failed: {type(error).__name__}: {error}", file=sys.stderr)
            return False
        return True

    def _generate(self) -> None:

        from itk_nir.registration import register

        self.result = self.displacement_field = self.progress = None
        fixed, moving, fixed_mask, moving_mask = (
            without_pipeline(self.filter.GetInput(number)) for number in range(len(INPUTS))
        )
        self._check_abort()
        refuse_slices(**{
            role: [int(n) for n in image.GetLargestPossibleRegion().GetSize()]
            for role, image in (("fixed", fixed), ("moving", moving))
        })  # fmt: skip
        arguments = self.options.arguments()
        user = arguments.pop("callback", None)

        def step(progress: Progress) -> bool:
            self._report(progress)
            return bool(user is not None and user(progress))

        result = register(fixed, moving, fixed_mask=fixed_mask, moving_mask=moving_mask, callback=step, **arguments)
        output = self.filter.GetOutput()
        output.SetBufferedRegion(output.GetLargestPossibleRegion())
        output.Allocate()
        image_view(output)[...] = result.warped_array
        self.result = result

    def _report(self, progress: Progress) -> None:
        """Tell the observers of one iteration."""
        last, self.progress = self.progress, progress
        if progress.stage != "sampling":
            if last is None or (last.stage, last.level) != (progress.stage, progress.level):
                self._fire("MultiResolutionIterationEvent")
            self._fire("IterationEvent")
        self.filter.UpdateProgress(min(max(progress.fraction, 0.0), 1.0))
        self._check_abort()

    def _fire(self, event: str) -> None:
        self._firing = event
        try:
            self._invoke(event)
        finally:
            self._firing = ""
        self._check_abort()

    def _invoke(self, event: str) -> None:
        import itk

        self.filter.InvokeEvent(getattr(itk, event)())

    def _check_abort(self) -> None:
        if self._error is not None:
            raise self._error
        if self._abort or self.filter.GetAbortGenerateData():
            raise RegistrationCancelled("registration: aborted by AbortGenerateDataOn(); call Update() to start again")
