"""What a registration gives back."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.caching import cached_property
from itk_nir.engine.sampling import SampledField
from itk_nir.errors import InputError, warn_renamed
from itk_nir.geometry import Geometry, checked_points
from itk_nir.images import Volume, like
from itk_nir.neural_field import NeuralField
from itk_nir.options import truth_value
from itk_nir.places import named_files
from itk_nir.report import Report
from itk_nir.saving import save_result
from itk_nir.transforms.composition import cover, own_grid, surface
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.warping import in_place, load_pair, pixels_on, values_on


@dataclass(frozen=True, eq=False, repr=False)
class RegistrationResult:
    """The transform between two images, and everything that follows from it.

    The map is ``phi(p) = T(A(p + u(p)))`` for a fixed physical point ``p`` (LPS mm): the `displacement` ``u``, the
    linear part `affine` ``A``, and the caller's own `initial` transform ``T`` where that is not linear. Transforms map
    **fixed** physical points to **moving** physical points, as ITK's resampling wants them; inverses map back. Images
    and ITK objects are made when they are first asked for, and kept.

    Parameters
    ----------
    fixed, moving : Volume
        The images that were registered.
    affine : LinearTransform
        The linear part, fixed → moving.
    displacement, inverse_displacement : DisplacementField or None
        ``u`` on a grid over fixed space, mm LPS, and that of its inverse, whose grid is longer where the faces of the
        fixed image are moved outwards; None without a deformable stage.
    initial : CompositeTransform or None
        The caller's initial transform where it is not linear; a linear one is part of `affine`.
    report : Report
        Numbers about the run.
    field : NeuralField or None
        The trained field, which can be saved and sampled again; None without a deformable stage.
    inputs : tuple of str
        The files that were read, which `save` does not write over.
    moving_values : tuple of Volume
        The second and further values of a pixel of a moving image in colour.
    fill : float or None
        Value of warped images outside the moving image; its background for None.

    Examples
    --------
    >>> import tempfile, itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, preset="fast", iterations=2)

    The moving image on the fixed grid, in the kind of the fixed image, and the map as ITK's transform:

    >>> result.warped.GetSize()
    (48, 56)
    >>> result.transform.GetNameOfClass()
    'DisplacementFieldTransform'
    >>> bool((result.jacobian_array > 0).all()), result.jacobian_determinant().GetSize()
    (True, (48, 56))

    Points of fixed space to moving space, and back:

    >>> there = result.transform_points([[10.0, -5.0]])
    >>> back = result.transform_points(there, inverse=True)
    >>> bool(abs(back - [[10.0, -5.0]]).max() < 0.5)
    True
    >>> bool(abs(result.mapping.map([[10.0, -5.0]]) - there).max() < 0.5)
    True

    Files for other programs, and the trained field, to be sampled again later:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = result.save(folder + "/", format="ants")
    ...     sorted(path.name for path in files.values())
    ...     kept = itk_nir.load_field(result.save_field(folder + "/field.safetensors"))
    ['0GenericAffine.mat', '1InverseWarp.nii.gz', '1Warp.nii.gz', 'Warped.nii.gz', 'report.json']
    >>> finer = itk_nir.RegistrationResult.from_field(kept, fixed, moving, field_spacing=1)
    >>> finer.report.field_spacing_voxels
    1
    """

    fixed: Volume
    moving: Volume
    affine: LinearTransform
    displacement: DisplacementField | None = None
    inverse_displacement: DisplacementField | None = None
    initial: CompositeTransform | None = None
    report: Report = dataclasses.field(default_factory=Report)
    field: NeuralField | None = None
    inputs: tuple[str, ...] = ()
    moving_values: tuple[Volume, ...] = ()
    fill: float | None = None

    @classmethod
    def of_field(
        cls, fixed: Volume, moving: Volume, trained: NeuralField, sampled: SampledField, report: Report
    ) -> RegistrationResult:
        """The result of a trained field that was sampled.

        What was measured on the grid goes into the report.

        Parameters
        ----------
        fixed, moving : Volume
            The images of the registration.
        trained : NeuralField
            The field.
        sampled : SampledField
            Its displacement grids.
        report : Report
            Numbers about the run so far.

        Returns
        -------
        RegistrationResult
        """
        return cls(
            fixed,
            moving,
            trained.linear,
            DisplacementField(sampled.geometry, sampled.forward),
            DisplacementField(sampled.inverse_geometry, sampled.inverse),
            trained.start,
            replace(
                report,
                folded_voxels=sampled.folded,
                folded_percent=sampled.folded_percent,
                jacobian_range=sampled.jacobian_range,
                log_jacobian_sd=sampled.log_jacobian_sd,
                inverse_error_mean_voxels=sampled.inverse_error_mean,
                inverse_error_p99_voxels=sampled.inverse_error_p99,
                field_spacing_voxels=sampled.spacing,
                interpolation_error_voxels=sampled.interpolation_error,
                affine_matrix=trained.linear.matrix.tolist(),
            ),
            trained,
        )

    @classmethod
    def from_field(
        cls,
        trained: NeuralField,
        fixed: Any,
        moving: Any,
        *,
        max_interpolation_error: float | None = None,
        field_spacing: int | None = None,
    ) -> RegistrationResult:
        """A trained field of `itk_nir.load_field` with its two images: to be saved, exported and drawn.

        Parameters
        ----------
        trained : NeuralField
            The field.
        fixed, moving : itk.Image, SimpleITK.Image or path
            The images of the registration.
        max_interpolation_error : float, optional
            As of `NeuralField.sample`, which samples the field again.
        field_spacing : int, optional
            As of `NeuralField.sample`.

        Returns
        -------
        RegistrationResult

        Raises
        ------
        InputError
            A fixed image on another grid than the one that was registered, or images of unlike dimensions.
        """
        a, b, more = load_pair(fixed, moving, trained.geometry.dimension)
        grid = trained.geometry
        if a.dimension != grid.dimension or not a.geometry.same_grid(grid):
            raise InputError(
                f"{a.name}: lies on a grid of size {a.geometry.size}, spacing {a.geometry.spacing} and origin "
                f"{a.geometry.origin}, but the field was trained on {grid.size}, {grid.spacing}, {grid.origin}; give "
                "the fixed image of that registration"
            )
        if b.dimension != a.dimension:
            raise InputError(f"{b.name}: is {b.dimension}D and the fixed image {a.dimension}D; both must be alike")
        known = {n: trained.about[n] for n in ("preset", "seed", "device", "versions") if n in trained.about}
        report = Report(**known, threads=trained.trained.threads)
        sampled = trained.sampled(max_interpolation_error, field_spacing, b.geometry)
        return replace(
            cls.of_field(a, b, trained, sampled, report), inputs=named_files(fixed, moving), moving_values=more
        )

    def __repr__(self) -> str:
        def size(grid: Any) -> str:
            return "x".join(map(str, grid.size))

        parts = [
            "affine" if self.displacement is None else f"displacement on {size(self.displacement.geometry)}, affine"
        ]
        if self.initial is not None:
            parts.append("initial transform")
        r = self.report
        numbers = [f"preset {r.preset!r}"]
        if r.similarity is not None and r.similarity_start is not None:
            numbers.append(f"similarity {r.similarity_start:.4f} to {r.similarity:.4f}")
        if r.folded_percent is not None:
            numbers.append(f"folds {r.folded_percent:.4f} %")
        if "total" in r.seconds:
            numbers.append(f"{r.seconds['total']:.1f} s")
        return (
            f"RegistrationResult(fixed {size(self.fixed.geometry)}, moving {size(self.moving.geometry)}\n"
            f"  {', '.join(parts)}\n"
            f"  {', '.join(numbers)})"
        )

    @cached_property
    def mapping(self) -> CompositeTransform:
        """The whole map as plain data, fixed → moving, with its inverse: `displacement`, `affine`, `initial`."""
        forward: list[Any] = [self.affine]
        backward: list[Any] = [self.affine.inverse()]
        if self.displacement is not None:
            undo = self.inverse_displacement or self.displacement.inverse()
            forward, backward = [self.displacement, *forward], [*backward, undo]
        if self.initial is not None:
            forward = [*forward, *self.initial.transforms]
            backward = [*self.initial.inverse().transforms, *backward]
        return CompositeTransform(tuple(forward), tuple(backward))

    @cached_property
    def transform(self) -> Any:
        """The whole map as ONE ``itk.DisplacementFieldTransform[itk.D, d]``, fixed → moving, with its inverse set.

        ITK keeps both directions on one grid, so it covers the fixed image and where that lies in moving space. Where
        the two are so far apart that such a grid would have more than eight times the voxels of the fixed image's
        own, the inverse is left out with a warning (`inverse_transform` has it).
        """
        from itk_nir.transforms.as_itk import field_to_itk

        forward, inverse = self._whole_fields
        return field_to_itk(forward, inverse if inverse.geometry == forward.geometry else None)

    @cached_property
    def inverse_transform(self) -> Any:
        """The inverse map as one ``itk.DisplacementFieldTransform[itk.D, d]``, moving → fixed, with its inverse."""
        from itk_nir.transforms.as_itk import field_to_itk

        forward, inverse = self._whole_fields
        return field_to_itk(inverse, forward if inverse.geometry == forward.geometry else None)

    @cached_property
    def composite(self) -> Any:
        """The map as an ``itk.CompositeTransform[itk.D, d]`` of its parts, fixed → moving."""
        from itk_nir.transforms.as_itk import to_itk

        return to_itk(self.mapping)

    @cached_property
    def inverse_composite(self) -> Any:
        """The inverse as an ``itk.CompositeTransform[itk.D, d]`` of its parts, moving → fixed."""
        from itk_nir.transforms.as_itk import to_itk

        return to_itk(self.mapping.inverse())

    @cached_property
    def warped_array(self) -> NDArray[Any]:
        """The moving image (its first channel) on the fixed grid, ``([D,] H, W)`` float32 or wider; outside, `fill`."""
        return values_on(self.moving, self.mapping, self.fixed, self.fill, self._threads)

    @cached_property
    def warped_pixels(self) -> tuple[NDArray[Any], Geometry]:
        """The moving image in its own pixel type and colour (last axis) on the fixed grid, a slice in 3D; that grid."""
        values = (self.moving, *self.moving_values)
        return pixels_on(values, self.mapping, self.fixed, self.fill, self._threads)

    @cached_property
    def warped(self) -> Any:
        """`warped_pixels` as an image of the kind that the fixed image was given as (``itk.Image`` for a path)."""
        return like(*self.warped_pixels, self.fixed.kind, self.fixed.space_code)

    @cached_property
    def jacobian_array(self) -> NDArray[np.float32]:
        """Jacobian determinant of the whole map on the fixed grid, ``([D,] H, W)`` float32.

        The volume that a small cube of fixed space takes in moving space: above 1 grows, 0 or less folds. Central
        differences inside, one-sided at the rim, right for any direction matrix.
        """
        import torch

        from itk_nir.engine.jacobian import jacobian_determinant
        from itk_nir.engine.torch_state import engine_state, quiet_state

        grid = self.fixed.geometry
        with engine_state() if self._threads == 1 else quiet_state(), torch.inference_mode():
            vectors = torch.from_numpy(self.mapping.displacement_on(grid).vectors).movedim(-1, 0)
            return jacobian_determinant(vectors, grid.spacing, grid.direction).contiguous().numpy()

    def jacobian_determinant(self) -> Any:
        """`jacobian_array` as an image of the kind that the fixed image was given as (``itk.Image`` for a path).

        Returns
        -------
        itk.Image or SimpleITK.Image
            float32, on the fixed grid.
        """
        return like(*in_place(self.jacobian_array, self.fixed), self.fixed.kind, self.fixed.space_code)

    def transform_points(self, points: ArrayLike, inverse: bool = False) -> NDArray[np.float64]:
        """Map physical points.

        Points go the way opposite to images: a landmark of the fixed image is taken to its place in the moving image.

        Parameters
        ----------
        points : array_like
            ``(N, d)``, LPS mm, in fixed space (in moving space with `inverse`).
        inverse : bool
            Moving → fixed.

        Returns
        -------
        ndarray
            ``(N, d)``, LPS mm. Forward uses the continuous map where the result has one, so no grid comes between.

        Raises
        ------
        InputError
            Points of another shape, or what is no finite real number.
        OptionError
            `inverse` is neither True nor False.
        """
        p = checked_points(points, self.mapping.dimension)
        if truth_value(inverse, "inverse"):
            return self.mapping.inverse().map(p)
        return self.mapping.map(p) if self.field is None else self.field.map(p)

    def save_field(self, path: str | os.PathLike[str]) -> Path:
        """Write the trained field as ``.safetensors``, for `itk_nir.load_field` and another sampling later.

        Parameters
        ----------
        path : path
            Ends in ``.safetensors``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        InputError
            A result without one (a linear map), another ending, or no such folder.
        """
        if self.field is None:
            raise InputError("this result is a linear map: it has no trained field to save; save the transform")
        return self.field.save(path)

    def save(
        self,
        prefix: str | os.PathLike[str],
        format: Literal["itk", "ants", "elastix", "slicer", "nifti"] = "itk",  # noqa: A002 - the word users know
    ) -> dict[str, Path]:
        """Write the transform and its inverse for another program, the warped image and a report.

        All files appear, complete, or none; those of an earlier save with the same names are replaced together. Folders
        of the prefix that do not exist are created. Every transform is
        read back and applied in its format's own convention at random points; the largest difference (mm) goes into
        the report. Where it is above a thousandth of a voxel, the files are kept, the report says so, and so does a
        warning.

        Parameters
        ----------
        prefix : path
            Start of the names of all files; a folder if it ends in a slash.
        format : {"itk", "ants", "elastix", "slicer", "nifti"}
            Whose files (`docs/formats.md` has the details):

            - ``"itk"``: ``Composite.h5``, ``InverseComposite.h5``, ``Warped.nii.gz``; ITK, SimpleITK, ANTs, 3D Slicer
            - ``"ants"``: ``1Warp.nii.gz``, ``0GenericAffine.mat``, ``1InverseWarp.nii.gz``, ``Warped.nii.gz``
            - ``"elastix"``: ``TransformParameters.N.txt`` and ``DeformationField.mha``, the same with ``Inverse`` in
              front, ``result.nii.gz``; the highest N is the whole transform
            - ``"slicer"``: ``Displacement.nrrd``, ``InverseDisplacement.nrrd`` (the whole map, LPS), ``Warped.nrrd``
            - ``"nifti"``: ``DisplacementField.nii.gz``, ``InverseDisplacementField.nii.gz`` (the whole map, **RAS**,
              intent 1006), ``Warped.nii.gz``

        Returns
        -------
        dict of str to Path
            Paths by key; ``warped`` and ``report`` are always among them.

        Raises
        ------
        OptionError
            A format that does not exist.
        InputError
            ``"nifti"`` in 2D, which ITK's reader gets wrong; names that cannot be; a file that an input is, or that no
            registration has written.
        WriteError
            The disk is full, or refuses otherwise. Files of an earlier save are as they were.
        ItkNirError
            A file that cannot be read back.

        Warns
        -----
        SelfCheckWarning
            A file that, read back, is not the transform to a thousandth of a voxel.
        UserWarning
            Files of another run, in another format, have the same prefix.
        """
        return save_result(self, prefix, format)

    @property
    def _threads(self) -> int | None:
        """What the registration was allowed; a result that was put together by hand may use all."""
        return self.report.threads if self.report.versions else None

    @cached_property
    def _whole_fields(self) -> tuple[DisplacementField, DisplacementField]:
        """The whole map and its inverse as one displacement field each."""
        base = own_grid(self.mapping, self.fixed.geometry)
        landed = self.mapping.map(surface(self.fixed.geometry))
        shared = cover(base, np.concatenate([self.fixed.geometry.corners(), landed]))
        if np.prod(shared.size) <= 8 * np.prod(base.size):
            return self.mapping.displacement_on(shared), self.mapping.inverse().displacement_on(shared)
        warnings.warn(
            "fixed and moving space lie too far apart for one grid, so .transform has no inverse set; use "
            ".inverse_transform",
            stacklevel=4,
        )
        forward = self.mapping.displacement_on(cover(base, self.fixed.geometry.corners()))
        start = base.physical_to_index(landed).min(axis=0)
        there = base.crop(np.floor(start).tolist(), [1] * base.dimension)
        return forward, self.mapping.inverse().displacement_on(cover(there, landed))

    # --- names of before 0.2 -----------------------------------------------------------------------------------------

    @property
    def metrics(self) -> dict[str, Any]:
        """Deprecated: `report`, as a dictionary with the old keys too."""
        warn_renamed("RegistrationResult.metrics", ".report")
        values = self.report.as_dict()
        old = {
            "linear_matrix": "affine_matrix",
            "bake_spacing_voxels": "field_spacing_voxels",
            "bake_error_voxels": "interpolation_error_voxels",
        }
        return values | {name: values[now] for name, now in old.items()}

    @property
    def chain(self) -> CompositeTransform:
        """Deprecated: `mapping`."""
        warn_renamed("RegistrationResult.chain", ".mapping")
        return self.mapping

    @property
    def network(self) -> NeuralField | None:
        """Deprecated: `field`."""
        warn_renamed("RegistrationResult.network", ".field")
        return self.field

    def save_network(self, path: str | os.PathLike[str]) -> Path:
        """Deprecated: `save_field`.

        Parameters
        ----------
        path : path
            As of `save_field`.

        Returns
        -------
        Path
            The file.
        """
        warn_renamed("RegistrationResult.save_network", ".save_field")
        return self.save_field(path)
