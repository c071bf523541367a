"""`NIRRegistrationMethod`: registration as a filter in an ITK pipeline, and its functional form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from itk_nir.compat.itk.inputs import INPUT_NAMES, dimension_of_type, output_of
from itk_nir.compat.itk.lifetime import release
from itk_nir.compat.itk.options import Option, camel_case, method_hint, method_synonyms, old_names, option_table
from itk_nir.compat.itk.process import ProcessObject
from itk_nir.errors import InputError, ItkNirError, warn_renamed
from itk_nir.options import nearest_name

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

#: What users call on an ITK filter and the C++ filter answers as it is.
DELEGATED = (
    "AbortGenerateDataOff", "DebugOff", "DebugOn", "GetAbortGenerateData", "GetDebug", "GetMTime",
    "GetNumberOfIndexedOutputs", "GetNumberOfOutputs", "GetObjectName", "GetOutput", "GetProgress", "GetReferenceCount",
    "GetReleaseDataFlag", "GetTimeStamp", "InvokeEvent", "Modified", "PropagateRequestedRegion", "ReleaseDataFlagOff",
    "ReleaseDataFlagOn", "ResetPipeline", "SetDebug", "SetObjectName", "SetReleaseDataFlag", "UpdateProgress",
)  # fmt: skip


class NIRRegistrationMethod:
    """Deformable registration as an ITK filter.

    Inputs are the fixed image, the moving image and, where set, a mask of each: ``itk.Image`` objects or the filters
    that make them, 2D or 3D, of any real scalar pixel type, on any grids. The output is the moving image on the fixed
    grid, ``itk.Image[itk.F, d]``. Transforms map fixed points to moving points (LPS mm).

    For every argument of `itk_nir.register` and every option of its presets, public or expert, there is a ``Set`` and a
    ``Get``, in ITK's spelling: ``SetPreset``, ``SetSeed``, ``SetLinear``, ``SetFixedMask``, ``SetInitialTransform``,
    ``SetIterations``, ``SetLearningRates``, ...

    Notes
    -----
    An ``Update()``, here or downstream, runs the registration if and only if an input, a mask, the initial transform,
    an option or something upstream has changed since the last one.

    Events: Start, MultiResolutionIteration (a level begins), Iteration, Progress, and End or Abort.

    Examples
    --------
    >>> from itk_nir.compat.itk import NIRRegistrationMethod
    >>> from itk_nir.images import to_itk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_itk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> registration = NIRRegistrationMethod.New(fixed, moving, preset="fast", iterations=2)
    >>> registration.Update()
    >>> warped, transform = registration.GetOutput(), registration.GetTransform()
    >>> tuple(warped.GetLargestPossibleRegion().GetSize()), transform.GetNameOfClass()
    ((48, 56), 'DisplacementFieldTransform')
    """

    _dimension_of_class: ClassVar[int | None] = None

    def __class_getitem__(cls, types: Any) -> type[NIRRegistrationMethod]:
        """``NIRRegistrationMethod[FixedImageType, MovingImageType]``, as ITK's classes are instantiated.

        Parameters
        ----------
        types : type or tuple of type
            Image types, of one dimension.

        Returns
        -------
        type
            This class for that dimension.

        Raises
        ------
        InputError
            More than two types, unlike dimensions, or no types of 2D or 3D images.
        """
        types = types if isinstance(types, (tuple, list)) else (types,)
        dimensions = {dimension_of_type(t) for t in types}
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
        fixed, moving : itk.Image or ITK filter, optional
        **options
            What there is a ``Set`` for, as ``fixed_mask=…`` or ``FixedMask=…``.

        Returns
        -------
        NIRRegistrationMethod

        Raises
        ------
        AttributeError
            An unknown option, with the nearest name.
        InputError
            An image that cannot be registered.
        """
        new = cls()
        for name, image in (("FixedImage", fixed), ("MovingImage", moving)):
            if image is not None:
                getattr(new, f"Set{name}")(image)
        for name, value in options.items():
            getattr(new, f"Set{camel_case(name)}")(value)
        return new

    def __init__(self) -> None:
        self._process = ProcessObject()
        if self._dimension_of_class is not None:
            self._process.create(self._dimension_of_class)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def SetFixedImage(self, image: Any) -> None:
        """Set the image that stays, and gives the output its grid.

        Parameters
        ----------
        image : itk.Image or ITK filter
        """
        self._process.connect("FixedImage", image)

    def SetMovingImage(self, image: Any) -> None:
        """Set the image that is brought onto the fixed one.

        Parameters
        ----------
        image : itk.Image or ITK filter
            On any grid.
        """
        self._process.connect("MovingImage", image)

    def SetFixedMask(self, mask: Any) -> None:
        """Set where in the fixed image similarity counts.

        Parameters
        ----------
        mask : itk.Image, ITK filter or None
            Above 0 where it counts; None for everywhere.
        """
        self._process.connect("FixedMask", mask)

    def SetMovingMask(self, mask: Any) -> None:
        """Set where in the moving image similarity counts.

        Parameters
        ----------
        mask : itk.Image, ITK filter or None
            Above 0 where it counts; None for everywhere.
        """
        self._process.connect("MovingMask", mask)

    def SetInput(self, *arguments: Any) -> None:
        """``SetInput(image)`` sets the fixed image, ``SetInput(n, image)`` input n.

        Parameters
        ----------
        *arguments : (itk.Image or ITK filter) or (int, itk.Image or ITK filter)
            Inputs are numbered 0 fixed image, 1 moving image, 2 fixed mask, 3 moving mask.

        Raises
        ------
        InputError
            Another number.
        """
        number, image = (0, *arguments) if len(arguments) == 1 else arguments
        if number not in range(len(INPUT_NAMES)):
            raise InputError(f"SetInput: inputs are numbered 0 to {len(INPUT_NAMES) - 1} ({', '.join(INPUT_NAMES)})")
        self._process.connect(INPUT_NAMES[number], image)

    def GetInput(self, number: int = 0) -> Any:
        """The image set as an input, in its own pixel type.

        Parameters
        ----------
        number : int
            As for `SetInput`.

        Returns
        -------
        itk.Image or None
        """
        return output_of(self._process.given_input(INPUT_NAMES[number]))

    def GetFixedImage(self) -> Any:
        """The fixed image, in its own pixel type, or None."""
        return output_of(self._process.given_input("FixedImage"))

    def GetMovingImage(self) -> Any:
        """The moving image, in its own pixel type, or None."""
        return output_of(self._process.given_input("MovingImage"))

    def GetFixedMask(self) -> Any:
        """The fixed mask, in its own pixel type, or None."""
        return output_of(self._process.given_input("FixedMask"))

    def GetMovingMask(self) -> Any:
        """The moving mask, in its own pixel type, or None."""
        return output_of(self._process.given_input("MovingMask"))

    def SetInitialTransform(self, transform: Any) -> None:
        """Set where to start from, fixed → moving.

        Parameters
        ----------
        transform : itk.Transform, SimpleITK.Transform, array, path, list of these, or None
            Anything that `itk_nir.register` takes. An ITK transform that is changed later makes the next ``Update()``
            register again.
        """
        given = self._process.options.given
        if transform is given.get("initial_transform"):
            return
        if transform is None:
            given.pop("initial_transform", None)
        else:
            given["initial_transform"] = transform
        self._process.unwatch("InitialTransform")
        if hasattr(transform, "AddObserver"):
            self._process.watch("InitialTransform", transform, self._process.link.modified)
        self._process.modified()

    # --- running -----------------------------------------------------------------------------------------------------

    def Update(self) -> None:
        """Register, if anything has changed since the last time.

        Raises
        ------
        InputError, OptionError
            As `itk_nir.register` does.
        RegistrationCancelled
            An observer called ``AbortGenerateDataOn()``.
        """
        self._process.run("Update")

    def UpdateLargestPossibleRegion(self) -> None:
        """`Update`: the output is always made as a whole."""
        self._process.run("UpdateLargestPossibleRegion")

    def UpdateOutputInformation(self) -> None:
        """Give the output its grid (the fixed image's) without registering."""
        self._process.run("UpdateOutputInformation")

    def AbortGenerateDataOn(self) -> None:
        """Stop the running registration at its next iteration; its ``Update()`` raises `RegistrationCancelled`."""
        self._process.set_abort(True)

    def SetAbortGenerateData(self, abort: bool) -> None:
        """``AbortGenerateDataOn()`` where true.

        Parameters
        ----------
        abort : bool
        """
        self._process.set_abort(bool(abort))

    # --- results -----------------------------------------------------------------------------------------------------

    def GetResult(self) -> RegistrationResult:
        """What the last run found: transforms, numbers, ``save``.

        Returns
        -------
        RegistrationResult

        Raises
        ------
        ItkNirError
            Nothing has been registered yet.
        """
        if self._process.result is None:
            raise ItkNirError("NIRRegistrationMethod: nothing has been registered yet; call Update() first")
        return self._process.result

    def GetTransform(self) -> Any:
        """The transform that ``itk.ResampleImageFilter`` takes, fixed → moving.

        Returns
        -------
        itk.DisplacementFieldTransform[itk.D, d]
        """
        return self.GetResult().transform

    def GetInverseTransform(self) -> Any:
        """The inverse transform, moving → fixed.

        Returns
        -------
        itk.DisplacementFieldTransform[itk.D, d]
        """
        return self.GetResult().inverse_transform

    def GetDisplacementField(self) -> Any:
        """The whole transform as displacements on the fixed grid, fixed → moving.

        Returns
        -------
        itk.Image[itk.Vector[itk.F, d], d]
            In mm along LPS axes.
        """
        if self._process.displacement_field is None:
            from itk_nir.images import to_itk

            result = self.GetResult()
            grid = result.fixed.geometry
            self._process.displacement_field = to_itk(result.mapping.displacement_on(grid).vectors, grid)
        return self._process.displacement_field

    def GetCurrentStage(self) -> str:
        """``"linear"``, ``"deformable"`` or ``"sampling"`` while running; the last one after; ``""`` before."""
        return self._process.progress.stage if self._process.progress else ""

    def GetCurrentLevel(self) -> int:
        """Resolution level of the stage, from 0."""
        return self._process.progress.level if self._process.progress else 0

    def GetCurrentIteration(self) -> int:
        """Iteration in the level, from 0."""
        return self._process.progress.iteration if self._process.progress else 0

    def GetMetricValue(self) -> float:
        """Similarity at the current iteration: 1 is perfect."""
        return self._process.progress.metric if self._process.progress else 0.0

    # --- observers ---------------------------------------------------------------------------------------------------

    def AddObserver(self, event: Any, command: Any) -> int:
        """Call a command at every event of a kind.

        Parameters
        ----------
        event : itk.EventObject
        command : callable or itk.Command
            Called without arguments. An exception that it raises stops the registration and comes out of ``Update()``.

        Returns
        -------
        int
            Tag for `RemoveObserver`.
        """
        return self._process.add_observer(event, command)

    def RemoveObserver(self, tag: int) -> None:
        """Take one observer away.

        Parameters
        ----------
        tag : int
            From `AddObserver`.
        """
        self._process.remove_observer(tag)

    def RemoveAllObservers(self) -> None:
        """Take all observers away."""
        for tag in list(self._process.observers):
            self._process.remove_observer(tag)

    def HasObserver(self, event: Any) -> bool:
        """Whether there is an observer of an event.

        Parameters
        ----------
        event : itk.EventObject

        Returns
        -------
        bool
        """
        return any(known.CheckEvent(event) for known, _ in self._process.observers.values())

    # --- the object itself -------------------------------------------------------------------------------------------

    def GetNameOfClass(self) -> str:
        """``"NIRRegistrationMethod"``."""
        return "NIRRegistrationMethod"

    def __repr__(self) -> str:
        inputs = ", ".join(name for name in INPUT_NAMES if name in self._process.connections) or "no inputs"
        return f"<itk.NIRRegistrationMethod: {inputs}; options {self._process.options.given}>"

    def __dir__(self) -> list[str]:
        options = [f"{verb}{name}" for name in option_table() for verb in ("Get", "Set")]
        return sorted({*super().__dir__(), *options, *DELEGATED})

    def __getattr__(self, name: str) -> Any:
        """The options' ``Set`` and ``Get``, and what the C++ filter answers."""
        if name.startswith("__") or name == "_process":
            raise AttributeError(name)
        if name in DELEGATED:
            return getattr(self._process.existing_filter(), name)
        verb, now = name[:3], old_names().get(name[3:], name[3:])
        option = option_table().get(now)
        if option is not None and verb in ("Get", "Set"):
            method = self._getter(option) if verb == "Get" else self._setter(option)
            method.__name__ = f"{verb}{now}"
            return method if now == name[3:] else _renamed(name, method)
        hint = method_hint(name) or nearest_name(name, dir(self), method_synonyms())
        raise AttributeError(f"NIRRegistrationMethod has no {name!r}{hint}")

    def _getter(self, option: Option) -> Callable[..., Any]:
        def get() -> Any:
            return self._process.options.get(option)

        get.__doc__ = f"The option ``{option.name}`` of `itk_nir.register`: as set, or the default.\n\n{option.help}"
        return get

    def _setter(self, option: Option) -> Callable[..., Any]:
        def set_(value: Any) -> None:
            if self._process.options.set(option, value):
                self._process.modified()

        set_.__doc__ = f"Set the option ``{option.name}`` of `itk_nir.register`.\n\n{option.help}"
        return set_

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        process = getattr(self, "_process", None)
        if not (_ending() or process is None or process.filter is None):
            release(process)


def _renamed(old: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method under its name of before 0.2, with a warning."""

    def call(*values: Any) -> Any:
        warn_renamed(f"NIRRegistrationMethod.{old}", method.__name__)
        return method(*values)

    call.__name__ = old
    call.__doc__ = f"Deprecated: `{method.__name__}`."
    return call


@cache
def _of_dimension(cls: Any, dimension: int) -> type[NIRRegistrationMethod]:
    return type(cls.__name__, (cls,), {"_dimension_of_class": dimension, "__doc__": cls.__doc__})


def nir_registration_method(fixed: Any, moving: Any, **options: Any) -> tuple[Any, Any]:
    """Register two ITK images; the functional form of `NIRRegistrationMethod`.

    Parameters
    ----------
    fixed, moving : itk.Image or ITK filter
        Scalar, 2D or 3D, any grids and pixel types.
    **options
        Those of `itk_nir.register` and of its presets (``preset``, ``linear``, ``fixed_mask``, ``initial_transform``,
        ``iterations``, ...).

    Returns
    -------
    warped : itk.Image[itk.F, d]
        The moving image on the fixed grid.
    transform : itk.DisplacementFieldTransform[itk.D, d]
        Fixed → moving (LPS mm), with its inverse.

    Raises
    ------
    InputError, OptionError, AttributeError
        An image or an option that cannot be used.

    Examples
    --------
    >>> from itk_nir.compat.itk import nir_registration_method
    >>> from itk_nir.images import to_itk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_itk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> warped, transform = nir_registration_method(fixed, moving, preset="fast", iterations=2)
    >>> tuple(warped.GetLargestPossibleRegion().GetSize()), transform.GetNameOfClass()
    ((48, 56), 'DisplacementFieldTransform')
    """
    registration = NIRRegistrationMethod.New(fixed, moving, **options)
    registration.Update()
    warped = registration.GetOutput()
    warped.DisconnectPipeline()
    return warped, registration.GetTransform()


def nir_registration_method_init_docstring() -> None:
    """ITK's loader calls this for every function it finds; the docstring above is complete as it is."""
