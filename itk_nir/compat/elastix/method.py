"""The class interface of ITKElastix: `ElastixRegistrationMethod`, for ``itk.ElastixRegistrationMethod``."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

import numpy as np

from itk_nir.compat.elastix.registration import registered
from itk_nir.compat.elastix.run import Outcome
from itk_nir.compat.elastix.splines import field_to_spline, resting_spline
from itk_nir.compat.elastix.stages import Stage, is_deformable
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk_vectors
from itk_nir.images.itk_classes import itk_matrix, new_transform
from itk_nir.transforms.as_itk import to_itk as transform_to_itk
from itk_nir.transforms.formats.elastix.steps import ShearedField, linear_class

#: Attribute → what its methods ``SetX``, ``GetX``, ``RemoveX`` hold at first.
_VALUES: dict[str, Any] = {
    "ParameterObject": None, "InitialTransformParameterObject": None, "InitialTransformParameterFileName": "",
    "InitialTransform": None, "ExternalInitialTransform": None, "FixedPointSetFileName": "",
    "MovingPointSetFileName": "", "FixedPoints": None, "MovingPoints": None, "OutputDirectory": "",
    "LogFileName": "", "LogToConsole": False, "LogToFile": False, "LogLevel": None, "NumberOfThreads": 0,
}  # fmt: skip
#: Those of which there may be several.
_LISTS = ("FixedImage", "MovingImage", "FixedMask", "MovingMask")


class ElastixRegistrationMethod:
    """A registration with the methods of ``itk.ElastixRegistrationMethod``, run by our engine.

    The methods are those of ITKElastix: ``SetX``, ``GetX``, ``RemoveX`` for each of ``ParameterObject``,
    ``InitialTransformParameterObject``, ``InitialTransformParameterFileName``, ``InitialTransform``,
    ``ExternalInitialTransform``, ``FixedPointSetFileName``, ``MovingPointSetFileName``, ``FixedPoints``,
    ``MovingPoints``, ``OutputDirectory``, ``LogFileName``, ``LogToConsole`` (and ``LogToConsoleOn``,
    ``LogToConsoleOff``), ``LogToFile``, ``NumberOfThreads``; ``SetX``, ``AddX``, ``GetX``, ``GetNumberOfXs`` for
    ``FixedImage``, ``MovingImage``, ``FixedMask``, ``MovingMask``; ``Update`` and ``UpdateLargestPossibleRegion``;
    and the results below. `options` are the keywords that only this package has.

    Parameters
    ----------
    fixed_image, moving_image : image, optional
        As of ``SetFixedImage`` and ``SetMovingImage``.
    **attributes : object
        Any attribute by its name in small letters, ``parameter_object``, ``log_to_console``, ...; and the options of
        `registration_method`: ``preset``, ``device``, ``callback``, ...

    Raises
    ------
    OptionError
        An attribute or method that does not exist.

    Examples
    --------
    >>> import itk
    >>> from itk_nir.compat.elastix import ElastixRegistrationMethod
    >>> from itk_nir.images import to_itk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_itk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> method = ElastixRegistrationMethod.New(fixed, moving, preset="fast", iterations=2)
    >>> method.SetLogToConsole(False)
    >>> method.UpdateLargestPossibleRegion()
    >>> method.GetTransformParameterObject().GetNumberOfParameterMaps()
    3
    >>> method.GetCombinationTransform().GetNumberOfTransforms()
    3
    """

    _names: ClassVar[dict[str, str]] = {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_"): name for name in (*_VALUES, *_LISTS)
    }

    def __init__(self, fixed_image: Any = None, moving_image: Any = None, **attributes: Any) -> None:
        self._values: dict[str, Any] = dict(_VALUES)
        self._lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
        self._outcome: tuple[Any, Any, Outcome] | None = None
        self.options: dict[str, Any] = {}
        for name, value in {"fixed_image": fixed_image, "moving_image": moving_image, **attributes}.items():
            known = self._names.get(name)
            if known is None:
                self.options[name] = value
            elif value is not None:
                getattr(self, f"Set{known}")(value)

    def __class_getitem__(cls, types: Any) -> type[ElastixRegistrationMethod]:
        """``ElastixRegistrationMethod[FixedImageType, MovingImageType]``: any types of images will do."""
        return cls

    @classmethod
    def New(cls, *images: Any, **attributes: Any) -> ElastixRegistrationMethod:
        """Make one, as ITK's classes are made.

        Parameters
        ----------
        *images : image
            The fixed and the moving one.
        **attributes : object
            As of the class.

        Returns
        -------
        ElastixRegistrationMethod
        """
        return cls(*images, **attributes)

    def __getattr__(self, name: str) -> Any:
        """The methods that set, add, give and remove inputs."""
        if name.startswith("__"):
            raise AttributeError(name)
        made = self._methods()
        if name in made:
            return made[name]
        public = [n for n in dir(type(self)) if not n.startswith("_")]
        close = difflib.get_close_matches(name, [*made, *public], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise AttributeError(f"ElastixRegistrationMethod has no {name!r}{hint}")

    def _methods(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key in _VALUES:
            out[f"Set{key}"] = lambda value, key=key: self._set(key, value)
            out[f"Get{key}"] = lambda key=key: self._values[key]
            out[f"Remove{key}"] = lambda key=key: self._set(key, _VALUES[key])
            if isinstance(_VALUES[key], bool):
                out[f"{key}On"] = lambda key=key: self._set(key, True)
                out[f"{key}Off"] = lambda key=key: self._set(key, False)
        for key in _LISTS:
            out[f"Set{key}"] = lambda image, key=key: self._put(key, [image])
            out[f"Add{key}"] = lambda image, key=key: self._put(key, [*self._lists[key], image])
            out[f"Get{key}"] = lambda index=0, key=key: self._lists[key][index]
            out[f"Remove{key}"] = lambda key=key: self._put(key, [])
            out[f"GetNumberOf{key}s"] = lambda key=key: len(self._lists[key])
        return out

    def _set(self, key: str, value: Any) -> None:
        if key == "LogLevel" and value is not None:
            raise OptionError("elastix: the log level cannot be had here: SetLogToConsole(True) prints what there is")
        self._values[key], self._outcome = value, None

    def _put(self, key: str, images: list[Any]) -> None:
        self._lists[key], self._outcome = images, None

    def Update(self) -> None:
        """Register, unless nothing has changed since the last time.

        Raises
        ------
        InputError
            No fixed or no moving image, several masks, or what `registration_method` refuses.
        OptionError
            As of `registration_method`.
        """
        if self._outcome is not None:
            return
        for key in ("FixedImage", "MovingImage"):
            if not self._lists[key]:
                raise InputError(f"elastix: there is no {key}; call Set{key} first")
        for key in ("FixedMask", "MovingMask"):
            if len(self._lists[key]) > 1:
                raise InputError(f"elastix: there are {len(self._lists[key])} {key}s; one holds for all images")
        values = {key: value if value != "" else None for key, value in self._values.items()}
        options = dict(self.options)
        names = {"preset": "default", "device": "auto", "callback": None}
        own = {name: options.pop(name, default) for name, default in names.items()}
        self._outcome = registered(
            list(self._lists["FixedImage"]), list(self._lists["MovingImage"]), values["ParameterObject"],
            fixed_mask=next(iter(self._lists["FixedMask"]), None),
            moving_mask=next(iter(self._lists["MovingMask"]), None),
            start={
                "initial_transform": values["InitialTransform"],
                "external_initial_transform": values["ExternalInitialTransform"],
                "initial_transform_parameter_object": values["InitialTransformParameterObject"],
                "initial_transform_parameter_file_name": values["InitialTransformParameterFileName"],
            },
            points={
                "fixed_point_set_file_name": values["FixedPointSetFileName"], "fixed_points": values["FixedPoints"],
                "moving_point_set_file_name": values["MovingPointSetFileName"],
                "moving_points": values["MovingPoints"],
            },
            output_directory=values["OutputDirectory"], log_to_console=bool(values["LogToConsole"]),
            log_to_file=bool(values["LogToFile"]), log_file_name=values["LogFileName"],
            number_of_threads=self._values["NumberOfThreads"], options=options, **own,
        )  # fmt: skip

    def UpdateLargestPossibleRegion(self) -> None:
        """Do as `Update` does."""
        self.Update()

    def _done(self) -> tuple[Any, Any, Outcome]:
        self.Update()
        if self._outcome is None:  # Update sets it
            raise InputError("elastix: nothing was registered")
        return self._outcome

    def GetOutput(self, index: int = 0) -> Any:
        """The resampled moving image, or the parameters.

        Parameters
        ----------
        index : {0, 1}
            Which.

        Returns
        -------
        itk.Image or itk.ParameterObject
        """
        return self._done()[index]

    def GetTransformParameterObject(self) -> Any:
        """The result's parameter maps, as `registration_method` gives them.

        Returns
        -------
        itk.ParameterObject
        """
        return self._done()[1]

    def GetNumberOfTransforms(self) -> int:
        """Number of transforms of the result, those of an initial transform among them.

        Returns
        -------
        int
        """
        return int(self.GetCombinationTransform().GetNumberOfTransforms())

    def GetNthTransform(self, n: int) -> Any:
        """One transform of the result.

        Parameters
        ----------
        n : int
            0 is applied first.

        Returns
        -------
        itk.Transform
        """
        whole = self.GetCombinationTransform()
        return whole.GetNthTransform(int(whole.GetNumberOfTransforms()) - 1 - n)

    def GetCombinationTransform(self) -> Any:
        """The whole map, a transform of its own class for each stage.

        Returns
        -------
        itk.CompositeTransform[itk.D, d]
            Fixed → moving, LPS mm; the initial transform first. A deformation of a B-spline map is a
            ``BSplineTransform`` with a control point at each node of the displacement field that its parameter map has.
        """
        outcome = self._done()[2]
        parts: list[Any] = []
        if outcome.start is not None:
            initial = transform_to_itk(outcome.start.transform)
            count = int(initial.GetNumberOfTransforms())
            parts.extend(initial.GetNthTransform(n) for n in reversed(range(count)))
        for stage, kind in zip(outcome.stages, outcome.request.kinds, strict=True):
            parts.append(_stage_to_itk(stage, kind, outcome.fixed.geometry))
        composite = new_transform("CompositeTransform", outcome.fixed.dimension)
        for part in reversed(parts):  # ITK applies the one that was added last first
            composite.AddTransform(part)
        return composite

    @staticmethod
    def ConvertToItkTransform(transform: Any) -> Any:
        """A transform of the result as one of ITK's, which it already is.

        Parameters
        ----------
        transform : itk.Transform
            Of `GetCombinationTransform` or `GetNthTransform`.

        Returns
        -------
        itk.Transform
            The same.
        """
        return transform


def _stage_to_itk(stage: Stage, asked: str, grid: Geometry) -> Any:
    """The transform of ITK's that a stage is, of the class that was asked for where that can hold it."""
    import itk

    d = grid.dimension
    if stage.field is not None:
        return field_to_spline(stage.field) if is_deformable(asked) else _field_to_itk(stage.field)
    if stage.linear is None:
        return resting_spline(grid.size, grid.matrix)
    plain: Any = linear_class(stage.kind, d)
    matrix, shift = stage.linear.about(grid.centre)
    name = plain.GetName()
    transform = getattr(itk, name)[itk.D].New() if name.endswith("DTransform") else new_transform(name, d)
    if name == "TranslationTransform":
        transform.SetOffset(shift.tolist())
        return transform
    transform.SetCenter(grid.centre.tolist())
    transform.SetMatrix(itk_matrix(matrix))
    transform.SetTranslation(shift.tolist())
    return transform


def _field_to_itk(field: ShearedField) -> Any:
    d = len(field.size)
    axes = field.matrix[:d, :d]
    spacing = np.linalg.norm(axes, axis=0)
    image = to_itk_vectors(field.vectors, Geometry.make(field.size, spacing, field.matrix[:d, d]), "D")
    image.SetDirection(itk_matrix(axes / spacing))
    transform = new_transform("DisplacementFieldTransform", d)
    transform.SetDisplacementField(image)
    return transform
