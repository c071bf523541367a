"""`NIRRegistrationMethod`: registration as a filter in an ITK pipeline, on top of ``itk.PyImageFilter``.

Who holds whom: the Python object holds the C++ filter; the filter holds a `_Link`, which knows the Python object by a
weak reference only. So nothing leaks, and nothing dangles. As in ITK, a pipeline holds images but not the filters that
make them; so when the Python object goes while its output is still in use elsewhere, it is kept (see `_kept`) until
the output is in use no more.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import inspect
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from itk_nir.errors import InputError, ItkNirError, RegistrationCancelled

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.result import RegistrationResult

#: Pipeline inputs in the order of their number.
_INPUTS = ("FixedImage", "MovingImage", "FixedMask", "MovingMask")
#: What users call on an ITK filter and the C++ filter answers as it is.
_DELEGATED = (
    "AbortGenerateDataOff",
    "DebugOff",
    "DebugOn",
    "GetAbortGenerateData",
    "GetDebug",
    "GetMTime",
    "GetNumberOfIndexedOutputs",
    "GetNumberOfOutputs",
    "GetObjectName",
    "GetOutput",
    "GetProgress",
    "GetReferenceCount",
    "GetReleaseDataFlag",
    "GetTimeStamp",
    "InvokeEvent",
    "Modified",
    "PropagateRequestedRegion",
    "ReleaseDataFlagOff",
    "ReleaseDataFlagOn",
    "ResetPipeline",
    "SetDebug",
    "SetObjectName",
    "SetReleaseDataFlag",
    "UpdateProgress",
)
_ANY_GRID = 1e30


class NIRRegistrationMethod:
    """Deformable registration as an ITK filter.

    Inputs are the fixed image, the moving image and, where set, a mask of each: ``itk.Image`` objects or the filters
    that make them, 2D or 3D, of any real scalar pixel type, on any grids. The output is the moving image on the fixed
    grid, ``itk.Image[itk.F, d]``. Transforms map fixed points to moving points (LPS mm).

    >>> registration = NIRRegistrationMethod.New(fixed, moving, preset="fast")
    >>> registration.Update()
    >>> warped, transform = registration.GetOutput(), registration.GetTransform()

    For every option of `itk_nir.register` there is a ``Set`` and a ``Get``, in ITK's spelling: ``SetPreset``,
    ``SetSeed``, ``SetLinear``, ``SetFixedMask``, ``SetInitialTransform``, ``SetSteps``, ``SetLearningRates``, ...
    An ``Update()``, here or downstream, runs the registration if and only if an input, a mask, the initial transform,
    an option or something upstream has changed since the last one.

    Events: Start, MultiResolutionIteration (a level begins), Iteration, Progress, and End or Abort.
    """

    _dimension_of_class: ClassVar[int | None] = None

    def __class_getitem__(cls, types: Any) -> type[NIRRegistrationMethod]:
        """``NIRRegistrationMethod[FixedImageType, MovingImageType]``, as ITK's classes are instantiated."""
        types = types if isinstance(types, (tuple, list)) else (types,)
        dimensions = {_dimension_of_type(t) for t in types}
        if len(types) > 2 or len(dimensions) != 1:
            names = ", ".join(getattr(t, "__name__", str(t)) for t in types)
            raise InputError(
                f"NIRRegistrationMethod[{names}]: give the types of the fixed and the moving image, of one dimension"
            )
        kind: Any = cls
        return _of_dimension(kind, dimensions.pop())

    @classmethod
    def New(cls, fixed: Any = None, moving: Any = None, **options: Any) -> NIRRegistrationMethod:
        """A new filter.

        Parameters
        ----------
        fixed, moving : ``itk.Image`` or ITK filter.
        **options : what there is a ``Set`` for, as ``fixed_mask=…`` or ``FixedMask=…``.

        Raises
        ------
        AttributeError : an unknown option, with the nearest name.
        InputError : an image that cannot be registered.
        """
        new = cls()
        for name, image in (("FixedImage", fixed), ("MovingImage", moving)):
            if image is not None:
                getattr(new, f"Set{name}")(image)
        for name, value in options.items():
            getattr(new, f"Set{_camel(name)}")(value)
        return new

    def __init__(self) -> None:
        self._filter: Any = None
        self._link = _Link(self)
        self._given: dict[str, Any] = {}  # input → what the user set: an image or a filter
        self._sources: dict[str, Any] = {}  # input → what the C++ filter is connected to
        self._watched: dict[str, tuple[Any, int]] = {}  # input or transform that tells of its own changes
        self._options: dict[str, Any] = {}
        self._observers: dict[int, tuple[Any, Any]] = {}
        self._tags: dict[int, int] = {}  # ours → the C++ filter's
        self._next_tag = 0
        self._firing = ""
        self._error: BaseException | None = None
        self._direct = False
        self._abort = False
        self._state: Progress | None = None
        self._result: RegistrationResult | None = None
        self._field: Any = None
        if self._dimension_of_class is not None:
            self._make_filter(self._dimension_of_class)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def SetFixedImage(self, image: Any) -> None:
        """The image that stays: ``itk.Image`` or ITK filter. Gives the output its grid."""
        self._set_input("FixedImage", image)

    def SetMovingImage(self, image: Any) -> None:
        """The image that is brought onto the fixed one: ``itk.Image`` or ITK filter, on any grid."""
        self._set_input("MovingImage", image)

    def SetFixedMask(self, mask: Any) -> None:
        """Where in the fixed image similarity counts: an image above 0 there, or None for everywhere."""
        self._set_input("FixedMask", mask)

    def SetMovingMask(self, mask: Any) -> None:
        """Where in the moving image similarity counts: an image above 0 there, or None for everywhere."""
        self._set_input("MovingMask", mask)

    def SetInput(self, *arguments: Any) -> None:
        """``SetInput(image)`` sets the fixed image, ``SetInput(n, image)`` input n: fixed, moving, and their masks."""
        number, image = (0, *arguments) if len(arguments) == 1 else arguments
        if number not in range(len(_INPUTS)):
            raise InputError(f"SetInput: inputs are numbered 0 to {len(_INPUTS) - 1} ({', '.join(_INPUTS)})")
        self._set_input(_INPUTS[number], image)

    def GetInput(self, number: int = 0) -> Any:
        """The image set as input `number`, in its own pixel type; None where there is none."""
        return self._get_input(_INPUTS[number])

    def GetFixedImage(self) -> Any:
        return self._get_input("FixedImage")

    def GetMovingImage(self) -> Any:
        return self._get_input("MovingImage")

    def GetFixedMask(self) -> Any:
        return self._get_input("FixedMask")

    def GetMovingMask(self) -> Any:
        return self._get_input("MovingMask")

    def SetInitialTransform(self, transform: Any) -> None:
        """Where to start from, fixed → moving: anything that `itk_nir.register` takes, or None.

        An ITK transform that is changed later makes the next ``Update()`` register again.
        """
        if transform is self._options.get("initial_transform"):
            return
        if transform is None:
            self._options.pop("initial_transform", None)
        else:
            self._options["initial_transform"] = transform
        self._unwatch("InitialTransform")
        if hasattr(transform, "AddObserver"):
            self._watch("InitialTransform", transform, self._link.modified)
        self._modified()

    # --- running -----------------------------------------------------------------------------------------------------

    def Update(self) -> None:
        """Register, if anything has changed since the last time.

        Raises
        ------
        InputError, OptionError : as `itk_nir.register` does.
        RegistrationCancelled : an observer called ``AbortGenerateDataOn()``.
        """
        self._run("Update")

    def UpdateLargestPossibleRegion(self) -> None:
        """`Update`: the output is always made as a whole."""
        self._run("UpdateLargestPossibleRegion")

    def UpdateOutputInformation(self) -> None:
        """Give the output its grid (the fixed image's) without registering."""
        self._run("UpdateOutputInformation")

    def AbortGenerateDataOn(self) -> None:
        """Stop the running registration at its next iteration; its ``Update()`` raises `RegistrationCancelled`."""
        self._abort = True
        self._itk().AbortGenerateDataOn()

    def SetAbortGenerateData(self, abort: bool) -> None:
        """``AbortGenerateDataOn()`` where true."""
        self._abort = bool(abort)
        self._itk().SetAbortGenerateData(bool(abort))

    # --- results -----------------------------------------------------------------------------------------------------

    def GetResult(self) -> RegistrationResult:
        """The `RegistrationResult` of the last run: transforms, numbers, ``save``.

        Raises
        ------
        ItkNirError : nothing has been registered yet.
        """
        if self._result is None:
            raise ItkNirError("NIRRegistrationMethod: nothing has been registered yet; call Update() first")
        return self._result

    def GetTransform(self) -> Any:
        """``itk.DisplacementFieldTransform[itk.D, d]``, fixed → moving: what ``itk.ResampleImageFilter`` takes."""
        return self.GetResult().transform

    def GetInverseTransform(self) -> Any:
        """``itk.DisplacementFieldTransform[itk.D, d]``, moving → fixed."""
        return self.GetResult().inverse_transform

    def GetDisplacementField(self) -> Any:
        """``itk.Image[itk.Vector[itk.F, d], d]`` on the fixed grid, mm along LPS axes, fixed → moving."""
        if self._field is None:
            from itk_nir.images import to_itk

            result = self.GetResult()
            grid = result.fixed.geometry
            self._field = to_itk(result.chain.displacement_on(grid).vectors, grid)
        return self._field

    def GetCurrentStage(self) -> str:
        """``"linear"``, ``"deformable"`` or ``"bake"`` while running; the last one after; ``""`` before."""
        return self._state.stage if self._state else ""

    def GetCurrentLevel(self) -> int:
        """Resolution level of the stage, from 0."""
        return self._state.level if self._state else 0

    def GetCurrentIteration(self) -> int:
        """Iteration in the level, from 0."""
        return self._state.step if self._state else 0

    def GetMetricValue(self) -> float:
        """Similarity at the current iteration: 1 is perfect."""
        return self._state.metric if self._state else 0.0

    # --- observers ---------------------------------------------------------------------------------------------------

    def AddObserver(self, event: Any, command: Any) -> int:
        """Call `command` (no arguments) at every `event`; returns a tag for ``RemoveObserver``.

        An exception that it raises stops the registration and comes out of ``Update()``.
        """
        self._next_tag += 1
        tag = self._next_tag
        self._observers[tag] = (event, command)
        if self._filter is not None:
            self._connect_observer(tag)
        return tag

    def RemoveObserver(self, tag: int) -> None:
        self._observers.pop(tag, None)
        if tag in self._tags:
            self._filter.RemoveObserver(self._tags.pop(tag))

    def RemoveAllObservers(self) -> None:
        for tag in list(self._observers):
            self.RemoveObserver(tag)

    def HasObserver(self, event: Any) -> bool:
        return any(known.CheckEvent(event) for known, _ in self._observers.values())

    # --- the object itself -------------------------------------------------------------------------------------------

    def GetNameOfClass(self) -> str:
        return "NIRRegistrationMethod"

    def __repr__(self) -> str:
        inputs = ", ".join(name for name in _INPUTS if name in self._sources) or "no inputs"
        return f"<itk.NIRRegistrationMethod: {inputs}; options {self._options}>"

    def __dir__(self) -> list[str]:
        options = [f"{verb}{_camel(name)}" for name in _options() for verb in ("Get", "Set")]
        return sorted({*super().__dir__(), *options, *_DELEGATED})

    def __getattr__(self, name: str) -> Any:
        """The options, and what the C++ filter answers."""
        if name.startswith("__") or name in ("_filter", "_options"):
            raise AttributeError(name)
        if name in _DELEGATED:
            return getattr(self._itk(), name)
        verb, option = name[:3], _options_by_camel().get(name[3:])
        if option is not None and verb == "Set":
            return lambda value: self._set_option(option, value)
        if option is not None and verb == "Get":
            return lambda: self._get_option(option)
        close = difflib.get_close_matches(name, dir(self), n=1, cutoff=0.6)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"NIRRegistrationMethod has no {name!r}{hint}")

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if _ending() or getattr(self, "_filter", None) is None:
            return
        if self._output_in_use():
            _keep(self)
        else:
            self._unwatch_all()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _itk(self) -> Any:
        """The C++ filter."""
        if self._filter is None:
            raise InputError(
                "NIRRegistrationMethod: its dimension is not known yet; set an image first, or make it with "
                "NIRRegistrationMethod[ImageType, ImageType].New()"
            )
        return self._filter

    def _make_filter(self, dimension: int) -> None:
        import itk

        kind = itk.Image[itk.F, dimension]
        new = itk.PyImageFilter[kind, kind].New()
        new.SetCoordinateTolerance(_ANY_GRID)
        new.SetDirectionTolerance(_ANY_GRID)
        # Beside the two bound methods, which keep the link, ITK has a bare pointer to it: so it lives as long as `new`.
        new.SetPyGenerateData(self._link.generate)
        new.SetPyGenerateInputRequestedRegion(self._link.request_inputs)
        new.SetPyEnlargeOutputRequestedRegion(_whole_output)
        new._SetSelf(self._link)
        new.AddObserver(itk.StartEvent(), self._link.started)
        self._filter = new
        for tag in self._observers:
            self._connect_observer(tag)

    def _connect_observer(self, tag: int) -> None:
        event, command = self._observers[tag]
        # Anything else is an itk.Command.
        what = _Observer(self._link, tag, event.GetEventName()) if callable(command) else command
        self._tags[tag] = self._filter.AddObserver(event, what)

    def _set_input(self, name: str, image: Any) -> None:
        old = self._given.get(name)
        if image is None or old is None:
            if image is old:
                return
        elif _output(image).this == _output(old).this:
            return
        if image is None:
            self._disconnect(name)
            return
        source, dimension = _as_float(image, _ROLES[name])
        if self._filter is None:
            self._make_filter(dimension)
        mine = int(self._filter.GetOutput().GetImageDimension())
        if dimension != mine:
            raise InputError(f"{_ROLES[name]}: is {dimension}D, but this filter is {mine}D; make a new one for it")
        self._disconnect(name)
        self._given[name], self._sources[name] = image, source
        if isinstance(source, _Copy):
            self._watch(name, source.original, _Recopy(self._link, name))
            source = source.image
        self._filter.SetInput(_INPUTS.index(name), _output(source))

    def _disconnect(self, name: str) -> None:
        self._unwatch(name)
        self._given.pop(name, None)
        self._sources.pop(name, None)
        if self._filter is not None:
            self._filter.SetInput(_INPUTS.index(name), None)

    def _get_input(self, name: str) -> Any:
        image = self._given.get(name)
        return None if image is None else _output(image)

    def _recopy(self, name: str) -> None:
        """An image that ITK cannot cast has changed."""
        source = self._sources[name]
        source.image = _copied(source.original, _ROLES[name])
        self._filter.SetInput(_INPUTS.index(name), source.image)

    def _watch(self, name: str, thing: Any, command: Callable[[], None]) -> None:
        import itk

        self._watched[name] = (thing, thing.AddObserver(itk.ModifiedEvent(), command))

    def _unwatch(self, name: str) -> None:
        thing, tag = self._watched.pop(name, (None, 0))
        if thing is not None:
            thing.RemoveObserver(tag)

    def _unwatch_all(self) -> None:
        for name in list(self._watched):
            self._unwatch(name)

    def _set_option(self, name: str, value: Any) -> None:
        value = tuple(value) if isinstance(value, list) else value
        if name == "preset":
            from itk_nir.settings import preset_settings

            preset_settings(value)  # refuses an unknown one
        old = self._get_option(name)
        if value is old or (type(value) is type(old) and not isinstance(value, np.ndarray) and value == old):
            return
        self._options[name] = value
        self._modified()

    def _get_option(self, name: str) -> Any:
        if name in self._options:
            return self._options[name]
        if name in _register_options():
            return _register_options()[name]
        from itk_nir.settings import options_of

        return options_of(self._get_option("preset")).get(name)

    def _modified(self) -> None:
        if self._filter is not None:
            self._filter.Modified()

    def _run(self, method: str) -> None:
        for name in ("FixedImage", "MovingImage"):
            if name not in self._sources:
                raise InputError(f"NIRRegistrationMethod: has no {_ROLES[name]}; call Set{name}(image) first")
        self._error, self._direct = None, True
        try:
            # PyImageFilter's own Update() would put itself in the place of the link, see `_make_filter`.
            getattr(super(type(self._filter), self._filter), method)()
        except RuntimeError:
            self._filter.ResetPipeline()  # else ITK takes what failed, here or upstream, for still running
            error, self._error = self._error, None
            if error is not None:
                raise error from None
            raise
        finally:
            self._direct = False
        error, self._error = self._error, None
        if error is not None:  # of an observer of the end
            raise error

    def _generate(self) -> None:
        """Register and fill the output."""
        import itk

        from itk_nir.registration import register

        self._result = self._field = self._state = None
        fixed, moving, *masks = (_detached(self._filter.GetInput(number)) for number in range(len(_INPUTS)))
        self._check_abort()
        options = dict(self._options)
        user = options.pop("callback", None)

        def step(progress: Progress) -> bool:
            self._report(progress)
            return bool(user is not None and user(progress))

        result = register(fixed, moving, fixed_mask=masks[0], moving_mask=masks[1], callback=step, **options)
        output = self._filter.GetOutput()
        output.SetBufferedRegion(output.GetLargestPossibleRegion())
        output.Allocate()
        itk.array_view_from_image(output)[...] = result.warped_array
        self._result = result

    def _report(self, progress: Progress) -> None:
        """Tell the observers of one step."""
        last, self._state = self._state, progress
        if progress.stage != "bake":
            if last is None or (last.stage, last.level) != (progress.stage, progress.level):
                self._fire("MultiResolutionIterationEvent")
            self._fire("IterationEvent")
        self._filter.UpdateProgress(min(max(progress.fraction, 0.0), 1.0))
        self._check_abort()

    def _fire(self, event: str) -> None:
        import itk

        self._firing = event
        try:
            self._filter.InvokeEvent(getattr(itk, event)())
        finally:
            self._firing = ""
        self._check_abort()

    def _check_abort(self) -> None:
        if self._error is not None:
            raise self._error
        if self._abort or self._filter.GetAbortGenerateData():
            raise RegistrationCancelled("registration: aborted by AbortGenerateDataOn(); call Update() to start again")

    def _attempt(self) -> bool:
        """`_generate`; whether it succeeded. What went wrong is kept for `_run` to raise."""
        try:
            self._generate()
        except BaseException as error:
            if isinstance(error, RegistrationCancelled):
                self._fire_abort()
            if self._direct:
                self._error = error
            else:  # nobody will raise it; and its frames hold what is downstream
                self._error = None
                print(f"itk-nir: registration failed: {type(error).__name__}: {error}", file=sys.stderr)
            return False
        return True

    def _fire_abort(self) -> None:
        import itk

        self._filter.InvokeEvent(itk.AbortEvent())

    def _output_in_use(self) -> bool:
        """Whether anything but this filter holds its output; 2: the filter, and the name here."""
        output = self._filter.GetOutput()
        return bool(output.GetReferenceCount() > 2)


def nir_registration_method(fixed: Any, moving: Any, **options: Any) -> tuple[Any, Any]:
    """Register two ITK images; the functional form of `NIRRegistrationMethod`.

    Parameters
    ----------
    fixed, moving : ``itk.Image`` or ITK filter; scalar, 2D or 3D, any grids and pixel types.
    **options : those of `itk_nir.register` (``preset``, ``linear``, ``fixed_mask``, ``initial_transform``, ...).

    Returns
    -------
    The moving image on the fixed grid, ``itk.Image[itk.F, d]``, and the ``itk.DisplacementFieldTransform[itk.D, d]``,
    fixed → moving (LPS mm), with its inverse.

    Raises
    ------
    InputError, OptionError, AttributeError : an image or an option that cannot be used.
    """
    registration = NIRRegistrationMethod.New(fixed, moving, **options)
    registration.Update()
    warped = registration.GetOutput()
    warped.DisconnectPipeline()
    return warped, registration.GetTransform()


def nir_registration_method_init_docstring() -> None:
    """ITK's loader calls this for every function it finds; the docstring above is complete as it is."""


# --- what the C++ side holds -----------------------------------------------------------------------------------------


class _Failed(RuntimeError):
    """Tells ITK that the registration failed; the reason is kept by the filter."""


class _Link:
    """What the C++ filter calls. Holds the Python object weakly."""

    def __init__(self, owner: NIRRegistrationMethod) -> None:
        self.owner = weakref.ref(owner)

    def GetOutput(self) -> Any:
        # ITK asks for it and cannot cope with an exception.
        owner = self.owner()
        return None if owner is None else owner._filter.GetOutput()

    def generate(self, _: Any) -> None:
        owner = self.owner()
        done = owner is not None and owner._attempt()
        quiet = owner is not None
        # ITK prints an exception before it throws its own, and the interpreter remembers that one's frames.
        del owner
        if not done:
            if quiet:
                _print_once_without_traceback()
            raise _Failed("the registration failed, or its Python object is gone")

    def request_inputs(self, _: Any) -> None:
        owner = self.owner()
        if owner is not None:
            for number in range(len(_INPUTS)):
                image = owner._filter.GetInput(number)
                if image is not None:
                    image.SetRequestedRegionToLargestPossibleRegion()

    def started(self) -> None:
        # ITK clears its own flag after this event; an observer of it may abort all the same.
        owner = self.owner()
        if owner is not None:
            owner._abort, owner._error = False, None

    def modified(self) -> None:
        owner = self.owner()
        if owner is not None:
            owner._modified()


class _Observer:
    """A user's command as the C++ filter holds it: without holding what the command holds."""

    def __init__(self, link: _Link, tag: int, event: str) -> None:
        self.link, self.tag, self.event = link, tag, event

    def __call__(self) -> None:
        owner = self.link.owner()
        if owner is None or self.tag not in owner._observers:
            return
        # In ITK the start of a level is an iteration too; who counts iterations does not want it.
        if owner._firing == "MultiResolutionIterationEvent" and self.event == "IterationEvent":
            return
        try:
            owner._observers[self.tag][1]()
        except BaseException as error:
            if not owner._direct:
                raise
            owner._error = owner._error or error  # ITK would make it a RuntimeError; `Update` raises it


class _Recopy:
    def __init__(self, link: _Link, name: str) -> None:
        self.link, self.name = link, name

    def __call__(self) -> None:
        owner = self.link.owner()
        if owner is not None:
            owner._recopy(self.name)


def _whole_output(_: Any, output: Any) -> None:
    if output is not None:
        output.SetRequestedRegionToLargestPossibleRegion()


def _print_once_without_traceback() -> None:
    """ITK prints the next exception through ``sys.excepthook``; ours has been, or will be, told in its own words.

    The interpreter notes what it prints in ``sys.last_*``, and with it the frames of all callers and what they hold;
    so that is undone.
    """
    before = sys.excepthook
    noted = {name: getattr(sys, name) for name in _NOTED if hasattr(sys, name)}

    def hook(kind: Any, value: Any, traceback: Any) -> None:
        sys.excepthook = before
        if not issubclass(kind, _Failed):
            before(kind, value, traceback)
            return
        for name in _NOTED:
            if name in noted:
                setattr(sys, name, noted[name])
            elif hasattr(sys, name):
                delattr(sys, name)

    sys.excepthook = hook


_NOTED = ("last_exc", "last_type", "last_value", "last_traceback")


# --- filters that outlive their name ---------------------------------------------------------------------------------

_kept: set[NIRRegistrationMethod] = set()


def _keep(registration: NIRRegistrationMethod) -> None:
    """Keep a filter that nobody names any more as long as its output is in use: downstream, or as an image."""
    registration._link.owner = weakref.ref(registration)  # the garbage collector may have cut it
    registration._result = registration._field = None  # nobody can ask for them
    if not _kept:
        gc.callbacks.append(_sweep)
    _kept.add(registration)


def _sweep(phase: str = "stop", _: Any = None) -> None:
    """Let go of kept filters whose output is in use no more; called after every run of the garbage collector."""
    if phase != "stop":
        return
    while idle := [one for one in _kept if not one._output_in_use()]:
        for one in idle:
            one._unwatch_all()
        _kept.difference_update(idle)
        del idle, one  # now they go, and with them what is upstream of them may become idle
    if not _kept and _sweep in gc.callbacks:
        gc.callbacks.remove(_sweep)


@atexit.register
def _release_all() -> None:
    # While there is still an interpreter for ITK to call.
    _kept.clear()


# --- images ----------------------------------------------------------------------------------------------------------

_ROLES = {
    "FixedImage": "fixed image",
    "MovingImage": "moving image",
    "FixedMask": "fixed mask",
    "MovingMask": "moving mask",
}


class _Copy:
    """A float copy of an image that ITK's wheels have no cast for."""

    def __init__(self, original: Any, image: Any) -> None:
        self.original, self.image = original, image


def _output(thing: Any) -> Any:
    import itk

    return itk.output(thing)


def _as_float(thing: Any, role: str) -> tuple[Any, int]:
    """What to connect for an image or a filter of any pixel type, and its dimension."""
    import itk

    image = _output(thing)
    if not hasattr(image, "GetLargestPossibleRegion"):
        raise InputError(
            f"{role}: got {type(thing).__name__}; an ITK pipeline takes an itk.Image or an ITK filter "
            "(itk.imread(path) reads a file)"
        )
    dimension, components = int(image.GetImageDimension()), int(image.GetNumberOfComponentsPerPixel())
    if dimension not in (2, 3):
        raise InputError(
            f"{role}: is {dimension}D, but a registration takes 2D and 3D images; extract one volume first"
        )
    if components != 1 or "complex" in str(itk.template(image)[1][0]):
        raise InputError(f"{role}: has pixels of type {itk.template(image)[1][0]}; make it a real scalar image first")
    kind = itk.Image[itk.F, dimension]
    if isinstance(image, kind):
        return thing, dimension
    if (type(image), kind) in itk.CastImageFilter.keys():  # noqa: SIM118 - itkTemplate's own `in` recurses for ever
        cast = itk.CastImageFilter[type(image), kind].New()
        cast.SetInput(image)
        cast.ReleaseDataFlagOn()
        return cast, dimension
    return _Copy(image, _copied(image, role)), dimension


def _copied(image: Any, role: str) -> Any:
    from itk_nir.images import load_image, to_itk

    volume = load_image(image, role)
    return to_itk(volume.array, volume.geometry)


def _detached(image: Any) -> Any:
    """The same pixels without the pipeline behind them, whose updates are under way already."""
    if image is None:
        return None
    copy = type(image).New()
    copy.Graft(image)
    return copy


def _dimension_of_type(image_type: Any) -> int:
    import itk

    try:
        template, (_, dimension, *_) = itk.template(image_type)
    except (KeyError, TypeError, ValueError):
        template = dimension = None
    if template is not itk.Image or dimension not in (2, 3):
        name = getattr(image_type, "__name__", str(image_type))
        raise InputError(f"NIRRegistrationMethod[…]: {name} is no 2D or 3D itk.Image type, such as itk.Image[itk.F, 3]")
    return int(dimension)


@cache
def _of_dimension(cls: Any, dimension: int) -> type[NIRRegistrationMethod]:
    return type(cls.__name__, (cls,), {"_dimension_of_class": dimension, "__doc__": cls.__doc__})


# --- options ---------------------------------------------------------------------------------------------------------


@cache
def _register_options() -> dict[str, Any]:
    """Option of `register` → default, for those that are no pipeline inputs."""
    from itk_nir.registration import register

    return {
        name: parameter.default
        for name, parameter in inspect.signature(register).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and _camel(name) not in _INPUTS
    }


@cache
def _options() -> tuple[str, ...]:
    """Every option: those of `register`, then those of all presets."""
    from itk_nir.settings import PRESETS, options_of

    return tuple(dict.fromkeys([*_register_options(), *(name for preset in PRESETS for name in options_of(preset))]))


@cache
def _options_by_camel() -> dict[str, str]:
    return {_camel(name): name for name in _options()}


def _camel(name: str) -> str:
    """``learning_rates`` → ``LearningRates``, and so is ``LearningRates``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))
