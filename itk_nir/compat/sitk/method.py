"""The class: SimpleITK's setters, and the call of `register` that they lead to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.options import (
    Device,
    engine_options,
    refused,
    register_arguments,
)
from itk_nir.compat.sitk.exhaustive import best_position
from itk_nir.compat.sitk.measure import similarity
from itk_nir.compat.sitk.options import OPTIONS, Setup, register_options
from itk_nir.compat.sitk.printing import printed
from itk_nir.compat.sitk.run import Run
from itk_nir.compat.sitk.setters import ConfiguredRegistration
from itk_nir.compat.sitk.splines import check_domain
from itk_nir.compat.sitk.transforms import TransformModel, as_composite, checked_transform
from itk_nir.compat.sitk.weights import stage_for
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, refuse_slices
from itk_nir.options import SYNONYMS, nearest_name, whole_number
from itk_nir.transforms.model import CompositeTransform, LinearTransform

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult
    from itk_nir.settings import Settings

#: Arguments of `register` that the methods set.
SET_BY_METHODS = {
    "linear",
    "deformable",
    "fixed_mask",
    "moving_mask",
    "initial_transform",
    "callback",
    "preset",
    "device",
}


class ImageRegistrationMethod(ConfiguredRegistration):
    """``SimpleITK.ImageRegistrationMethod`` with this engine; see `OPTIONS` for what each method does.

    Parameters
    ----------
    preset : str or Settings
        As of `itk_nir.register`.
    device : str
        As of `itk_nir.register`.
    **options
        Other arguments of `itk_nir.register` and options of the preset, public and expert ones; what the setters say
        goes before them.

    Raises
    ------
    OptionError
        An option that does not exist, a setting that is refused or has a value it cannot have.
    InputError
        Images, masks or transforms that cannot be used; said before any work begins.

    Examples
    --------
    >>> from itk_nir.compat.sitk import ImageRegistrationMethod
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> method = ImageRegistrationMethod(preset="fast", iterations=2)
    >>> method.SetMetricAsANTSNeighborhoodCorrelation(4)
    >>> transform = method.Execute(fixed, moving)
    >>> transform.GetName(), method.result.warped.GetSize()
    ('CompositeTransform', (48, 56))
    """

    def __init__(self, *, preset: str | Settings = "default", device: Device = "auto", **options: Any) -> None:
        from itk_nir.settings import present_names

        options = present_names(preset, options)
        allowed = sorted(engine_options(preset) - SET_BY_METHODS)
        for name in options:
            if name not in allowed:
                hint = nearest_name(name, allowed, SYNONYMS)
                raise OptionError(f"unknown option {name!r}{hint}; set the rest by its methods")
        self._device = device
        super().__init__(Setup(preset, options))
        self._initial: Any = None
        self._in_place = True
        self._refinement = 1
        self._virtual: Geometry | None = None
        self._moving_initial: Any = None
        self._result: RegistrationResult | None = None

    def __getattr__(self, name: str) -> Any:
        # Only for names that the class lacks: those of SimpleITK's class that are refused, and what does not exist.
        # SimpleITK.SimpleITK has the original even where this class was put in its place.
        original = sys.modules.get("SimpleITK.SimpleITK") or import_module("SimpleITK")
        listed = [*dir(original.ImageRegistrationMethod), *OPTIONS]
        theirs = [n for n in listed if n.isalnum() and n != "thisown"]
        if name in theirs:
            support = OPTIONS.get(name, refused("settings of the whole process are not touched"))

            def refuse(*_: Any, **__: Any) -> None:
                raise support.refusal(name)

            return refuse
        raise AttributeError(f"ImageRegistrationMethod has no method {name!r}{nearest_name(name, theirs)}")

    def __str__(self) -> str:
        masks = self._fixed_mask, self._moving_mask
        return printed(self, self._setup, masks, [event for event, _ in self._commands])

    # --- transforms --------------------------------------------------------------------------------------------------

    def SetInitialTransform(self, transform: Any, inPlace: bool = True) -> None:
        """What to optimise and where from. In place, `transform` itself becomes the result of `Execute`."""
        self._initial, self._in_place = checked_transform(transform, "SetInitialTransform"), bool(inPlace)
        self._refinement = 1

    def SetInitialTransformAsBSpline(
        self, transform: Any, inPlace: bool = True, scaleFactors: Sequence[int] = ()
    ) -> None:
        """A B-spline to start from; the result is a displacement field, on levels of its own.

        In place, the spline becomes the one nearest to that field, its mesh finer by the last scale factor.
        """
        factors = [whole_number(f) for f in scaleFactors]
        if any(factor is None or factor < 1 for factor in factors):
            raise OptionError(
                f"SetInitialTransformAsBSpline: scaleFactors are whole numbers of at least 1, got {list(scaleFactors)}"
            )
        self.SetInitialTransform(transform, inPlace)
        self._refinement = (factors or [1])[-1] or 1

    def GetInitialTransform(self) -> Any:
        """What was given, the identity before."""
        return self._identity() if self._initial is None else self._initial

    def GetInitialTransformInPlace(self) -> bool:
        """Whether the initial transform becomes the result."""
        return self._in_place

    def SetMovingInitialTransform(self, transform: Any) -> None:
        """Applied after the optimised transform: fixed -> optimised -> this -> moving. Not part of what is returned."""
        self._moving_initial = checked_transform(transform, "SetMovingInitialTransform")

    def GetMovingInitialTransform(self) -> Any:
        """What was given, the identity before."""
        return self._identity() if self._moving_initial is None else self._moving_initial

    def SetVirtualDomain(
        self,
        virtualSize: Sequence[int],
        virtualOrigin: Sequence[float],
        virtualSpacing: Sequence[float],
        virtualDirection: Sequence[float],
    ) -> None:
        """The fixed image's grid only; `Execute` refuses another one."""
        try:
            self._virtual = Geometry.make(virtualSize, virtualSpacing, virtualOrigin, virtualDirection)
        except ValueError as error:
            raise OptionError(f"SetVirtualDomain: {error}") from None

    def SetVirtualDomainFromImage(self, virtualImage: Any) -> None:
        """The fixed image's grid only; `Execute` refuses another one."""
        self._virtual = load_image(virtualImage, "virtual image").geometry

    def SetFixedInitialTransform(self, transform: Any) -> None:
        """The identity only."""
        if not as_composite(checked_transform(transform, "SetFixedInitialTransform"), None).is_identity:
            raise OPTIONS["SetFixedInitialTransform"].refusal("SetFixedInitialTransform")

    def GetFixedInitialTransform(self) -> Any:
        """The identity."""
        return self._identity()

    def _identity(self) -> Any:
        """Of the dimension of the images, where that is known."""
        import SimpleITK as sitk

        known = [t.GetDimension() for t in (self._initial, self._moving_initial) if t is not None]
        if self._run is not None:
            known.insert(0, self._run.dimension)
        return sitk.Transform(known[0], sitk.sitkIdentity) if known else sitk.Transform()

    # --- the work ----------------------------------------------------------------------------------------------------

    @property
    def result(self) -> RegistrationResult:
        """Everything about the last `Execute`: inverse, report, files.

        Its transform is the whole map, with the moving initial transform.
        """
        if self._result is None:
            if self._run is not None and self._run.transform is not None:
                raise ItkNirError("an exhaustive search has no result beside the transform that Execute returned")
            raise ItkNirError("there is no result yet; call Execute first")
        return self._result

    def Execute(self, fixed: Any, moving: Any) -> Any:
        """Register.

        Parameters
        ----------
        fixed, moving : SimpleITK.Image
            Or anything that `itk_nir.register` takes, of any real scalar pixel type.

        Returns
        -------
        SimpleITK.Transform
            The optimised transform, fixed -> moving, without the moving initial transform: the object that was given in
            place, else a ``sitk.CompositeTransform``; a ``sitk.DisplacementFieldTransform`` for a B-spline in place.

        Raises
        ------
        RegistrationCancelled
            After `Abort`.
        """
        from itk_nir.registration import register

        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        refuse_slices(fixed=a.geometry.size, moving=b.geometry.size)
        model, after = self._transforms(a)
        if self._setup.exhaustive is not None:
            return self._search(a, b, model, after)
        if self._in_place and model.name == "BSplineTransform":
            check_domain(model.optimised, a.geometry)
        linear, held = stage_for(model.name, model.linear, self._setup.weights, model.own_matrix, a.geometry)
        options = register_options(self._setup, model.deformable, a.geometry) | held
        arguments = register_arguments(self._setup.preset, options)
        run = self._begin(model, after)
        try:
            self._fire("Start")
            result = register(
                a,
                b,
                device=self._device,
                linear=linear,
                deformable=model.deformable,
                fixed_mask=self._fixed_mask,
                moving_mask=self._moving_mask,
                initial_transform=model.start(after),
                callback=run.report,
                **arguments,
            )
        finally:
            run.ended()
        self._refuse_aborted(run)
        stopped = run.ending == "stop"
        run.stop_condition = f"itk-nir: {'stopped by StopRegistration' if stopped else result.report.stop}"
        if result.report.similarity is not None and not stopped:
            run.value = -result.report.similarity
        self._result = result
        run.transform = model.deliver(result, after, self._in_place, self._refinement)
        run.progress = 1.0
        self._fire("End")
        return run.transform

    def _begin(self, model: TransformModel, after: CompositeTransform | None) -> Run:
        """A run that begins at the initial transform."""
        at = None if model.optimised is None else tuple(model.optimised.GetParameters())
        self._run = Run(
            "deformable" if model.deformable else "linear", model.grid.dimension, self._fire,
            partial(model.parameters, after=after), at,
        )  # fmt: skip
        return self._run

    def _refuse_aborted(self, run: Run) -> None:
        if run.ending == "abort":
            self._fire("Abort")
            raise RegistrationCancelled("aborted by Abort(); StopRegistration() keeps what was found so far")

    def _search(self, a: Volume, b: Volume, model: TransformModel, after: CompositeTransform | None) -> Any:
        """The exhaustive optimiser."""
        grid = self._setup.exhaustive
        assert grid is not None
        if model.deformable:
            raise OptionError(
                "SetOptimizerAsExhaustive is for linear transforms: give SetInitialTransform a Translation, Euler, "
                "VersorRigid3D, Similarity or Affine transform"
            )
        positions = grid.positions(model.optimised.GetParameters(), self._setup.scales)
        run = self._begin(model, after)
        metric = self._metric_of(a, b, model.deformable)
        first = next(positions)

        def value(position: tuple[float, ...]) -> float:
            return metric(model.with_parameters(position).start(after))

        def tell(position: tuple[float, ...], now: float) -> bool:
            run.progress = (len(run.values) + 1) / grid.count
            return run.visited(position, now)

        try:
            self._fire("Start")
            self._fire("MultiResolutionIteration")
            best, least = best_position(chain((first,), positions), value, tell)
        finally:
            run.ended()
        self._refuse_aborted(run)
        run.stop_condition = f"itk-nir: {len(run.values)} of {grid.count} positions done"
        run.value, self._result = least, None
        run.transform = model.handed_over(model.with_parameters(best).optimised, self._in_place)
        self._fire("End")
        return run.transform

    def MetricEvaluate(self, fixed: Any, moving: Any) -> float:
        """The metric of the whole images where the initial transforms take them.

        Parameters
        ----------
        fixed, moving : SimpleITK.Image
            Or anything that `itk_nir.register` takes.

        Returns
        -------
        float
            Minus the similarity under the metric of what is optimised (``"lncc"`` for ``"auto"``): -1 is perfect.

        Raises
        ------
        InputError
            Images that do not overlap where the masks count.
        """
        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        refuse_slices(fixed=a.geometry.size, moving=b.geometry.size)
        model, after = self._transforms(a)
        value = self._metric_of(a, b, model.deformable)(model.start(after))
        if value == np.inf:
            raise InputError("the images do not overlap where the masks count; check the initial transforms")
        return value

    def _metric_of(self, a: Volume, b: Volume, deformable: bool) -> Callable[[CompositeTransform | None], float]:
        """What is measured under a transform fixed → moving: smaller is better, infinite without an overlap."""
        from itk_nir.checks import match_mask
        from itk_nir.resample import resample_array

        threads = self._setup.allowed_threads
        counted = np.ones(a.array.shape, bool)
        seen = np.ones_like(b.array)
        if self._moving_mask is not None:
            seen = match_mask(load_image(self._moving_mask, "moving mask"), b)[0].array
        if self._fixed_mask is not None:
            counted = match_mask(load_image(self._fixed_mask, "fixed mask"), a)[0].array > 0.5

        def value(start: CompositeTransform | None) -> float:
            start = start or CompositeTransform((LinearTransform.identity(a.dimension),))
            warped = resample_array(b.array, b.geometry, start, a.geometry, "linear", threads=threads)
            inside = resample_array(seen, b.geometry, start, a.geometry, "nearest", threads=threads) > 0.5
            if not (inside & counted).any():
                return np.inf
            return -similarity(a.array, warped, counted, inside, self._setup, deformable)

        return value

    def _transforms(self, fixed: Volume) -> tuple[TransformModel, CompositeTransform | None]:
        """What the initial transform asks for, and the moving initial transform."""
        if self._virtual is not None and not self._virtual.same_grid(fixed.geometry):
            raise OPTIONS["SetVirtualDomain"].refusal("SetVirtualDomain with another grid than the fixed image's")
        after = None if self._moving_initial is None else as_composite(self._moving_initial, fixed.geometry)
        return TransformModel.of(self._initial, fixed.geometry), after
