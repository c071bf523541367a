"""What the initial transform asks for, and the transform that `Execute` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.options import LinearStage
from itk_nir.compat.sitk.splines import refined, spline_parameters
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

TRANSLATION = ("TranslationTransform",)
SIMILARITY = ("Similarity2DTransform", "Similarity3DTransform")
RIGID = ("Euler2DTransform", "Euler3DTransform", "VersorRigid3DTransform")
AFFINE = ("AffineTransform",)
DEFORMABLE = ("DisplacementFieldTransform", "BSplineTransform")
IDENTITY = ("IdentityTransform",)

#: Class of a linear transform → the linear stage that optimises it.
_STAGES: dict[str, LinearStage] = {
    **dict.fromkeys(TRANSLATION, "translation"),
    **dict.fromkeys(RIGID, "rigid"),
    **dict.fromkeys(SIMILARITY, "similarity"),
    **dict.fromkeys((*AFFINE, *IDENTITY), "affine"),
}

#: Points ``(..., d)`` to points or vectors, LPS mm.
Mapping = Callable[[NDArray[np.float64]], NDArray[np.float64]]
#: mm between the points that a linear map is told by.
_PROBE = 100.0


@dataclass(frozen=True, eq=False)
class TransformModel:
    """What the initial transform asks for: the part that is optimised, and what a composite applies after it.

    Attributes
    ----------
    given : SimpleITK.Transform or None
        The initial transform.
    optimised : SimpleITK.Transform or None
        The part that is optimised: all of it, or the last one of a composite; None where that is the identity.
    name : str
        The class of that part; ``"IdentityTransform"`` where nothing, or the identity, is given.
    own : CompositeTransform or None
        The map of that part, where the search begins; None where it does nothing.
    tail : CompositeTransform or None
        What a composite applies after that part.
    grid : Geometry
        The fixed image's.
    """

    given: Any
    optimised: Any
    name: str
    own: CompositeTransform | None
    tail: CompositeTransform | None
    grid: Geometry

    @classmethod
    def of(cls, given: Any, grid: Geometry) -> TransformModel:
        """The model of an initial transform (None for none).

        Raises
        ------
        InputError
            A transform of another dimension than the fixed image, or a displacement field without a field.
        OptionError
            A class of transform that is not optimised here.
        """
        if given is None:
            return cls(None, None, "IdentityTransform", None, None, grid)
        if given.GetDimension() != grid.dimension:
            raise InputError(f"initial transform: is {given.GetDimension()}D but the fixed image is {grid.dimension}D")
        # ITK optimises the transform that was added last, which a fixed point meets first.
        *others, optimised = _parts(given)
        tail = compose(*(as_composite(part, grid) for part in reversed(others))) if others else None
        name = _checked_class(optimised)
        if name in IDENTITY:
            return cls(given, None, name, None, tail, grid)
        own = None if _is_zero(optimised, name) else as_composite(optimised, grid)
        return cls(given, optimised, name, own, tail, grid)

    @property
    def deformable(self) -> bool:
        """Whether a deformation is optimised."""
        return self.name in (*DEFORMABLE, *IDENTITY)

    @property
    def linear(self) -> LinearStage:
        """The linear stage: ``"translation"``, ``"rigid"``, ``"similarity"``, ``"affine"`` or ``"none"``."""
        return _STAGES.get(self.name, "none")

    @property
    def own_matrix(self) -> NDArray[np.float64]:
        """The map of a linear transform where the search begins, ``(d + 1, d + 1)`` LPS mm."""
        linear = self.own is not None and self.own.is_linear
        return _matrix(self.own) if linear else np.eye(self.grid.dimension + 1)  # type: ignore[arg-type]

    def with_parameters(self, parameters: Sequence[float]) -> TransformModel:
        """The model with other parameters of the part that is optimised, which is linear.

        Parameters
        ----------
        parameters : sequence of float
            In the order of SimpleITK.

        Returns
        -------
        TransformModel
        """
        optimised = type(self.optimised)(self.optimised)
        optimised.SetParameters(parameters)
        return replace(self, optimised=optimised, own=as_composite(optimised, self.grid))

    def start(self, after: CompositeTransform | None) -> CompositeTransform | None:
        """Everything that a fixed point meets after what is going to be found.

        Parameters
        ----------
        after : CompositeTransform or None
            The moving initial transform.

        Returns
        -------
        CompositeTransform or None
            None where the search may begin anywhere.
        """
        parts = [c for c in (self.own, self.tail, after) if c is not None]
        if parts:
            return compose(*parts)
        # A given start, if only the identity, is where the search begins; without one the best start is looked for.
        return None if self.given is None else CompositeTransform((LinearTransform.identity(self.grid.dimension),))

    def deliver(
        self, result: RegistrationResult, after: CompositeTransform | None, in_place: bool, refinement: int = 1
    ) -> Any:
        """The optimised transform as `Execute` returns it.

        Parameters
        ----------
        result : RegistrationResult
            Of the run that began at ``start(after)``: the whole map, fixed -> moving.
        after : CompositeTransform or None
            The moving initial transform, which is no part of what is returned.
        in_place : bool
            Whether the given transform becomes the result.
        refinement : int, optional
            How much finer the mesh of a B-spline that is given in place becomes.

        Returns
        -------
        SimpleITK.Transform
            The given transform (of its own class where it is a bare ``Transform``), a displacement field for a B-spline
            in place, else a composite of a copy.
        """
        import SimpleITK as sitk

        from itk_nir.transforms.as_simpleitk import to_sitk

        part = self._without_what_follows(*found_parts(result), after)
        if self.name in IDENTITY:
            found = [to_sitk(CompositeTransform((transform,))) for transform in reversed(part.transforms)]
            others = [] if self.given is None else _parts(self.given)[:-1]
            return sitk.CompositeTransform([*others, *found])
        if in_place and isinstance(self.given, sitk.DisplacementFieldTransform):
            return self._as_field(part, self.given)
        if in_place and self.name == "BSplineTransform":
            self._fit_spline(part, refinement)
        return self.handed_over(self._as_field(part) if self.deformable else self._as_linear(part), in_place)

    def handed_over(self, optimised: Any, in_place: bool) -> Any:
        """A part that was optimised, as `Execute` returns it.

        Parameters
        ----------
        optimised : SimpleITK.Transform
            That part.
        in_place : bool
            Whether the given transform becomes the result.

        Returns
        -------
        SimpleITK.Transform
        """
        import SimpleITK as sitk

        if in_place and self.name != "BSplineTransform":
            return self._put(optimised)
        held = self.given.Downcast()
        if isinstance(held, sitk.CompositeTransform):
            optimised = _with_last(sitk.CompositeTransform(held), optimised)
        return optimised if in_place else sitk.CompositeTransform([optimised])

    def parameters(self, mapping: Mapping, after: CompositeTransform | None) -> tuple[float, ...]:
        """The parameters of the optimised transform for a map of the engine's.

        Parameters
        ----------
        mapping : callable
            As of `itk_nir.Progress`: fixed points ``(N, d)``, LPS mm, to what the map makes of them before a start that
            is not linear.
        after : CompositeTransform or None
            The moving initial transform.

        Returns
        -------
        tuple of float
            Those of a B-spline fit the displacement at its control points.

        Raises
        ------
        OptionError
            No initial transform is given, so there are no parameters.
        """
        d = self.grid.dimension
        if self.name in IDENTITY:
            raise OptionError(
                "GetOptimizerPosition is refused without an initial transform while it runs: affine map and "
                "deformation have no parameters of one transform; ask after Execute"
            )
        if not self.deformable:
            probes = mapping(np.vstack([np.zeros(d), _PROBE * np.eye(d)]))
            matrix = np.eye(d + 1)
            matrix[:d, :d], matrix[:d, d] = ((probes[1:] - probes[0]) / _PROBE).T, probes[0]
            part = self._without_what_follows(LinearTransform(matrix), None, after)
            return tuple(self._as_linear(part).GetParameters())
        start = self.start(after)
        following = [c for c in (self.tail, after) if c is not None]
        last = self.own
        if start is None or start.is_linear:
            last = compose(*following).inverse() if following else None

        def displacement(points: NDArray[np.float64]) -> NDArray[np.float64]:
            moved = mapping(points)
            return (moved if last is None else last.map(moved.reshape(-1, d)).reshape(points.shape)) - points

        if self.name == "BSplineTransform":
            return spline_parameters(self.optimised, displacement)
        return tuple(displacement(self._field_grid().grid()).ravel().tolist())

    def _without_what_follows(
        self, linear: LinearTransform, deformation: CompositeTransform | None, after: CompositeTransform | None
    ) -> CompositeTransform:
        """What was found, with the own start of the optimised transform, without tail and moving initial transform."""
        start, own = self.start(after), self.own
        if start is None or start.is_linear:
            # A linear start is multiplied into the linear map.
            own = None
            following = [c for c in (self.tail, after) if c is not None]
            if following:
                linear = LinearTransform(_matrix(compose(*following).inverse()) @ linear.matrix)
        return compose(*(part for part in (deformation, linear, own) if part is not None))

    def _as_linear(self, part: CompositeTransform) -> Any:
        """A copy of the optimised transform, its centre kept, with the parameters that were found."""
        d = part.dimension
        matrix = _matrix(part)
        out = type(self.optimised)(self.optimised)
        m = matrix[:d, :d]
        if self.name in TRANSLATION:
            out.SetOffset(matrix[:d, d].tolist())
            return out
        if self.name in (*RIGID, *SIMILARITY):
            u, s, v = np.linalg.svd(m)
            m = (u @ v) * (s.mean() if self.name in SIMILARITY else 1.0)
        centre = np.asarray(self.optimised.GetCenter())
        out.SetMatrix(m.ravel().tolist())
        out.SetTranslation((matrix[:d, d] - centre + m @ centre).tolist())
        return out

    def _as_field(self, part: CompositeTransform, out: Any = None) -> Any:
        """A displacement field on the grid of the given one, or of the fixed image; with its inverse where it has one.

        It goes into `out` where that is given. The images are made for it alone: SimpleITK lets a transform share the
        memory of an image that came from another transform's ``GetDisplacementField``, and frees it with that one.
        """
        import SimpleITK as sitk

        from itk_nir.images import to_sitk as image_to_sitk

        grid = self._field_grid()
        vectors = part.displacement_on(grid).vectors.astype(np.float64)
        if out is None:
            out = sitk.DisplacementFieldTransform(part.dimension)
        out.SetDisplacementField(image_to_sitk(vectors, grid))
        if part.inverse_transforms is not None:
            back = part.inverse().displacement_on(grid).vectors.astype(np.float64)
            out.SetInverseDisplacementField(image_to_sitk(back, grid))
        return out

    def _fit_spline(self, part: CompositeTransform, refinement: int) -> None:
        """Make the B-spline that was given in place the one nearest to what was found."""

        def displacement(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return part.map(points.reshape(-1, part.dimension)).reshape(points.shape) - points

        spline = refined(self.optimised, refinement)
        spline.SetParameters(spline_parameters(spline, displacement))
        self._put(spline)

    def _field_grid(self) -> Geometry:
        """The grid of the given displacement field, else that of the fixed image."""
        if self.name != "DisplacementFieldTransform":
            return self.grid
        return _grid_of(self.optimised.GetDisplacementField())

    def _put(self, optimised: Any) -> Any:
        """The result in the object that was given in place, and that object."""
        import SimpleITK as sitk

        if isinstance(self.given, sitk.CompositeTransform):
            return _with_last(self.given, optimised)
        # A centre stays as it was, the mesh of a spline may be finer.
        self.given.SetFixedParameters(optimised.GetFixedParameters())
        self.given.SetParameters(optimised.GetParameters())
        if type(self.given) is not sitk.Transform:
            return self.given
        # As SimpleITK, which returns what a bare `Transform` holds; a field of it would have lost its inverse.
        held = self.given.Downcast()
        return held if isinstance(held, sitk.CompositeTransform) else optimised


def found_parts(result: RegistrationResult) -> tuple[LinearTransform, CompositeTransform | None]:
    """The linear map of a result (with a linear start in it), and the deformation before it with its inverse."""
    if result.displacement is None:
        return result.affine, None
    inverse = result.inverse_displacement or result.displacement.inverse()
    return result.affine, CompositeTransform((result.displacement,), (inverse,))


def as_composite(transform: Any, grid: Geometry | None) -> CompositeTransform:
    """An initial transform of SimpleITK as this package's; `grid` is that of the fixed image, where it is known."""
    from itk_nir.loading import load_transform

    return load_transform(transform, grid, role="initial transform")


def checked_transform(transform: Any, method: str) -> Any:
    """The argument of a method that takes a transform of SimpleITK.

    Raises
    ------
    InputError
        Anything else, naming the method.
    """
    import SimpleITK as sitk

    if not isinstance(transform, sitk.Transform):
        raise InputError(f"{method}: takes a SimpleITK transform, got {type(transform).__name__}")
    return transform


def _parts(transform: Any) -> list[Any]:
    """The transforms in a composite and in those within it, in SimpleITK's order; else, or if it is empty, it alone."""
    import SimpleITK as sitk

    held = transform.Downcast()
    if not isinstance(held, sitk.CompositeTransform) or not held.GetNumberOfTransforms():
        return [held]
    return [part for i in range(held.GetNumberOfTransforms()) for part in _parts(held.GetNthTransform(i))]


def _with_last(composite: Any, optimised: Any) -> Any:
    """A composite, the last of its `_parts` replaced in it."""
    import SimpleITK as sitk

    last = composite.GetBackTransform().Downcast()
    composite.RemoveTransform()
    composite.AddTransform(_with_last(last, optimised) if isinstance(last, sitk.CompositeTransform) else optimised)
    return composite


def _checked_class(transform: Any) -> str:
    """Name of the class of a transform that can be optimised; ``"IdentityTransform"`` for an empty composite too."""
    import SimpleITK as sitk

    name = type(transform).__name__
    # SimpleITK has no class for the identity, and calls it "Transform".
    if transform.GetTransformEnum() == sitk.sitkIdentity or name == "CompositeTransform":
        return IDENTITY[0]
    if name not in (*_STAGES, *DEFORMABLE):
        raise OptionError(
            f"SetInitialTransform: a {name} has no counterpart here; give a Translation, Euler, VersorRigid3D, "
            "Similarity, Affine, DisplacementField or BSpline transform, or none for affine and deformable"
        )
    if name == "DisplacementFieldTransform" and not transform.GetDisplacementField().GetNumberOfPixels():
        raise InputError(
            "initial transform: a DisplacementFieldTransform without a field; make it from an image on the fixed "
            "grid: sitk.DisplacementFieldTransform(sitk.TransformToDisplacementField(sitk.Transform(d, "
            "sitk.sitkIdentity), sitk.sitkVectorFloat64, size, origin, spacing, direction))"
        )
    return name


def _is_zero(transform: Any, name: str) -> bool:
    """Whether a deformable start does nothing."""
    if name not in DEFORMABLE:
        return False
    import SimpleITK as sitk

    if name == "DisplacementFieldTransform":
        vectors: NDArray[Any] = sitk.GetArrayViewFromImage(transform.GetDisplacementField())
        return not vectors.any()
    return not np.any(transform.GetParameters())


def _grid_of(image: Any) -> Geometry:
    """The grid of an image of SimpleITK."""
    return Geometry.make(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _matrix(transform: CompositeTransform) -> NDArray[np.float64]:
    """The homogeneous matrix of a composite of linear transforms."""
    matrix = np.eye(transform.dimension + 1)
    for part in transform.transforms:
        assert isinstance(part, LinearTransform)
        matrix = part.matrix @ matrix
    return matrix
