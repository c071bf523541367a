"""What a registration gives back."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError, SelfCheckWarning
from itk_nir.images import Volume, like, save_image
from itk_nir.resample import resample_array
from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.transforms.save import FORMATS, Written, check_format, write_both
from itk_nir.transforms.composition import cover, own_grid, surface
from itk_nir.transforms.model import CompositeTransform, DisplacementField

if TYPE_CHECKING:
    from itk_nir.neural_field import Network


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """The transform between two images, and everything that follows from it.

    Images and ITK objects are made when they are first asked for and kept. Transforms map **fixed** physical points
    to **moving** physical points (LPS mm), as ITK's resampling wants them; inverses map back.

    Parameters
    ----------
    fixed, moving : the images that were registered.
    chain : the whole map, fixed → moving, with its inverse steps: displacement field, linear part, the caller's
        initial transform.
    metrics : numbers about the run, plain Python values (similarity trace, folds, inverse error, seconds, ...).
    evaluate : the continuous map before it was baked, ``(N, d)`` fixed points → ``(N, d)`` moving points, LPS mm.
    network : the trained field behind `evaluate`, which can be saved and baked again; None for a linear map.
    """

    fixed: Volume
    moving: Volume
    chain: CompositeTransform
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluate: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    network: Network | None = None

    @cached_property
    def transform(self) -> Any:
        """The whole map as ONE ``itk.DisplacementFieldTransform[itk.D, d]``, fixed → moving, with its inverse set.

        ITK keeps both directions on one grid, so it covers the fixed image and where that lies in moving space. Where
        the two are so far apart that such a grid would have more than eight times the voxels of the fixed image's
        own, the inverse is left out with a warning (`inverse_transform` has it).
        """
        from itk_nir.transforms.as_itk import field_to_itk

        forward, inverse = self._baked
        return field_to_itk(forward, inverse if inverse.geometry == forward.geometry else None)

    @cached_property
    def inverse_transform(self) -> Any:
        """The inverse map as one ``itk.DisplacementFieldTransform[itk.D, d]``, moving → fixed, with its inverse."""
        from itk_nir.transforms.as_itk import field_to_itk

        forward, inverse = self._baked
        return field_to_itk(inverse, forward if inverse.geometry == forward.geometry else None)

    @cached_property
    def composite(self) -> Any:
        """The map as an ``itk.CompositeTransform[itk.D, d]`` of its parts, fixed → moving."""
        from itk_nir.transforms.as_itk import to_itk

        return to_itk(self.chain)

    @cached_property
    def inverse_composite(self) -> Any:
        """The inverse as an ``itk.CompositeTransform[itk.D, d]`` of its parts, moving → fixed."""
        from itk_nir.transforms.as_itk import to_itk

        return to_itk(self.chain.inverse())

    @cached_property
    def warped_array(self) -> NDArray[np.float32]:
        """The moving image on the fixed grid, ``([D,] H, W)`` float32: one linear interpolation, 0 outside."""
        return resample_array(self.moving.array, self.moving.geometry, self.chain, self.fixed.geometry, "linear")

    @cached_property
    def warped(self) -> Any:
        """`warped_array` as an image of the kind that the fixed image was given as (``itk.Image`` for a path)."""
        return like(self.warped_array, self.fixed.geometry, self.fixed.kind)

    @cached_property
    def jacobian_array(self) -> NDArray[np.float32]:
        """Jacobian determinant of the whole map on the fixed grid, ``([D,] H, W)`` float32.

        The volume that a small cube of fixed space takes in moving space: above 1 grows, 0 or less folds. Central
        differences inside, one-sided at the rim, right for any direction matrix.
        """
        import torch

        from itk_nir.paper.flow import jacobian_determinant

        grid = self.fixed.geometry
        with torch.inference_mode():
            vectors = torch.from_numpy(self.chain.displacement_on(grid).vectors).movedim(-1, 0)
            return jacobian_determinant(vectors, grid.spacing, grid.direction).contiguous().numpy()

    def jacobian_determinant(self) -> Any:
        """`jacobian_array` as an image of the kind that the fixed image was given as (``itk.Image`` for a path)."""
        return like(self.jacobian_array, self.fixed.geometry, self.fixed.kind)

    def transform_points(self, points: ArrayLike, inverse: bool = False) -> NDArray[np.float64]:
        """Map physical points.

        Points go the way opposite to images: a landmark of the fixed image is taken to its place in the moving image.

        Parameters
        ----------
        points : ``(N, d)``, LPS mm, fixed space (moving space with `inverse`).
        inverse : moving → fixed.

        Returns
        -------
        ``(N, d)``, LPS mm. Forward uses the continuous map where the result has one, so no grid comes between.
        """
        p = np.asarray(points, float)
        if p.ndim != 2 or p.shape[1] != self.chain.dimension:
            raise InputError(f"points have shape (N, {self.chain.dimension}), got {p.shape}")
        if inverse:
            return self.chain.inverse().map(p)
        return self.chain.map(p) if self.evaluate is None else np.asarray(self.evaluate(p), np.float64)

    def save_network(self, path: str | os.PathLike[str]) -> Path:
        """Write the trained field as ``.safetensors``, for `itk_nir.load_network` and another bake later.

        Raises
        ------
        InputError : a result without one (a linear map), another ending, or no such folder.
        """
        if self.network is None:
            raise InputError("this result is a linear map: it has no trained field to save; save the transform")
        return self.network.save(path)

    def save(
        self,
        prefix: str | os.PathLike[str],
        format: str = "itk",  # noqa: A002 - the word users know
    ) -> dict[str, Path]:
        """Write the transform and its inverse for another program, the warped image and a report.

        All files appear, complete, or none. Folders of the prefix that do not exist are created. Every transform is
        read back and applied in its format's own convention at random points; the largest difference (mm) goes into
        the report. Where it is above a thousandth of a voxel, the files are kept, the report says so, and so does a
        warning.

        Parameters
        ----------
        prefix : start of the names of all files; a folder if it ends in a slash.
        format : whose files (`docs/formats.md` has the details):

            ``"itk"``: ``Composite.h5``, ``InverseComposite.h5``, ``Warped.nii.gz``; ITK, SimpleITK, ANTs, 3D Slicer
            ``"ants"``: ``1Warp.nii.gz``, ``0GenericAffine.mat``, ``1InverseWarp.nii.gz``, ``Warped.nii.gz``
            ``"elastix"``: ``TransformParameters.N.txt`` and ``DeformationField.mha``, the same with ``Inverse`` in
            front, ``result.nii.gz``; the highest N is the whole transform
            ``"slicer"``: ``Displacement.nrrd``, ``InverseDisplacement.nrrd`` (the whole map, LPS), ``Warped.nrrd``
            ``"nifti"``: ``DisplacementField.nii.gz``, ``InverseDisplacementField.nii.gz`` (the whole map, **RAS**,
            intent 1006), ``Warped.nii.gz``

        Returns
        -------
        Paths by key; ``warped`` and ``report`` are always among them.

        Raises
        ------
        OptionError : a format that does not exist.
        InputError : ``"nifti"`` in 2D, which ITK's reader gets wrong.
        ItkNirError : a file that cannot be read back.

        Warns
        -----
        SelfCheckWarning : a file that, read back, is not the transform to a thousandth of a voxel.
        """
        folder, start = split_prefix(prefix)
        check_format(format, self.chain.dimension)
        with all_or_none(folder) as stage:
            written = write_both(format, self.chain, self.fixed.geometry, self.moving.geometry, stage, start, folder)
            names = {"warped": start + FORMATS[format].warped, **written.files, "report": f"{start}report.json"}
            save_image(self.warped_array, self.fixed.geometry, stage / names["warped"])
            text = json.dumps(self._report(names, written), indent=2, allow_nan=False)
            (stage / names["report"]).write_text(text + "\n")
        for sentence in written.failed:
            warnings.warn(sentence, SelfCheckWarning, stacklevel=2)
        return {key: folder / name for key, name in names.items()}

    def _report(self, names: Mapping[str, str], written: Written) -> dict[str, Any]:
        return {
            "fixed": self.fixed.name,
            "moving": self.moving.name,
            "files": dict(names),
            "self_check": written.report(),
            "metrics": _plain(self.metrics),
        }

    @cached_property
    def _baked(self) -> tuple[DisplacementField, DisplacementField]:
        """The whole map and its inverse as one displacement field each."""
        base = own_grid(self.chain, self.fixed.geometry)
        landed = self.chain.map(surface(self.fixed.geometry))
        shared = cover(base, np.concatenate([self.fixed.geometry.corners(), landed]))
        if np.prod(shared.size) <= 8 * np.prod(base.size):
            return self.chain.displacement_on(shared), self.chain.inverse().displacement_on(shared)
        warnings.warn(
            "fixed and moving space lie too far apart for one grid, so .transform has no inverse set; use "
            ".inverse_transform",
            stacklevel=4,
        )
        forward = self.chain.displacement_on(cover(base, self.fixed.geometry.corners()))
        start = base.physical_to_index(landed).min(axis=0)
        there = base.crop(np.floor(start).tolist(), [1] * base.dimension)
        return forward, self.chain.inverse().displacement_on(cover(there, landed))


def _plain(value: Any) -> Any:
    """The value in JSON's types; numbers that JSON lacks (NaN, infinity) become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
