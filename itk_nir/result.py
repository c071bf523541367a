"""What a registration gives back."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, like, save_image, temporary_name
from itk_nir.resample import resample_array
from itk_nir.transforms.h5 import write_h5
from itk_nir.transforms.model import Chain, DisplacementField

#: Endings of the files that `RegistrationResult.save` writes: the names that ANTs gives them.
FILES = {
    "warped": "Warped.nii.gz",
    "composite": "Composite.h5",
    "inverse_composite": "InverseComposite.h5",
    "report": "report.json",
}


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
    """

    fixed: Volume
    moving: Volume
    chain: Chain
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluate: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None

    @cached_property
    def transform(self) -> Any:
        """The whole map as ONE ``itk.DisplacementFieldTransform[itk.D, d]``, fixed → moving, with its inverse set.

        ITK keeps both directions on one grid, so it covers the fixed image and where that lies in moving space. Where
        the two are so far apart that such a grid would have more than eight times the voxels of the fixed image's
        own, the inverse is left out with a warning (`inverse_transform` has it).
        """
        from itk_nir.transforms.itk import field_to_itk

        forward, inverse = self._baked
        return field_to_itk(forward, inverse if inverse.geometry == forward.geometry else None)

    @cached_property
    def inverse_transform(self) -> Any:
        """The inverse map as one ``itk.DisplacementFieldTransform[itk.D, d]``, moving → fixed, with its inverse."""
        from itk_nir.transforms.itk import field_to_itk

        forward, inverse = self._baked
        return field_to_itk(inverse, forward if inverse.geometry == forward.geometry else None)

    @cached_property
    def composite(self) -> Any:
        """The map as an ``itk.CompositeTransform[itk.D, d]`` of its parts, fixed → moving."""
        from itk_nir.transforms.itk import to_itk

        return to_itk(self.chain)

    @cached_property
    def inverse_composite(self) -> Any:
        """The inverse as an ``itk.CompositeTransform[itk.D, d]`` of its parts, moving → fixed."""
        from itk_nir.transforms.itk import to_itk

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

        from itk_nir.engine.flow import jacobian_determinant

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

    def save(self, prefix: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``PREFIXWarped.nii.gz``, ``PREFIXComposite.h5``, ``PREFIXInverseComposite.h5``, ``PREFIXreport.json``.

        All four appear, complete, or none: they are written under temporary names and renamed at the end. Folders of
        the prefix that do not exist are created.

        Returns
        -------
        Paths by the keys ``warped``, ``composite``, ``inverse_composite``, ``report``.
        """
        # A prefix may end in a slash; Path() would drop it.
        paths = {key: Path(os.fspath(prefix) + ending) for key, ending in FILES.items()}
        folder = paths["report"].parent
        created = [p for p in (folder, *folder.parents) if not p.exists()]
        temporary = {key: temporary_name(path) for key, path in paths.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_image(self.warped_array, self.fixed.geometry, temporary["warped"])
            write_h5(self.chain, temporary["composite"])
            write_h5(self.chain.inverse(), temporary["inverse_composite"])
            temporary["report"].write_text(json.dumps(self._report(paths), indent=2, allow_nan=False) + "\n")
            _rename_all(temporary, paths)
        except BaseException:
            for path in temporary.values():
                path.unlink(missing_ok=True)
            for path in created:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            raise
        return paths

    def _report(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        return {
            "fixed": self.fixed.name,
            "moving": self.moving.name,
            "files": {key: path.name for key, path in paths.items()},
            "metrics": _plain(self.metrics),
        }

    @cached_property
    def _baked(self) -> tuple[DisplacementField, DisplacementField]:
        """The whole map and its inverse as one displacement field each."""
        base = self._own_grid
        landed = self.chain.map(_surface(self.fixed.geometry))
        shared = _cover(base, np.concatenate([self.fixed.geometry.corners(), landed]))
        if np.prod(shared.size) <= 8 * np.prod(base.size):
            return self.chain.displacement_on(shared), self.chain.inverse().displacement_on(shared)
        warnings.warn(
            "fixed and moving space lie too far apart for one grid, so .transform has no inverse set; use "
            ".inverse_transform",
            stacklevel=4,
        )
        forward = self.chain.displacement_on(_cover(base, self.fixed.geometry.corners()))
        start = base.physical_to_index(landed).min(axis=0)
        there = base.crop(np.floor(start).tolist(), [1] * base.dimension)
        return forward, self.chain.inverse().displacement_on(_cover(there, landed))

    @property
    def _own_grid(self) -> Geometry:
        """The grid of the displacement field if the rest is linear (which a linear interpolation follows exactly)."""
        fields = self.chain.fields
        own = len(fields) == 1 and fields[0] is self.chain.steps[0]
        return fields[0].geometry if own else self.fixed.geometry


def _surface(geometry: Geometry) -> NDArray[np.float64]:
    """Points on the faces of a grid, at most 64 an axis, ``(N, d)`` LPS mm. A map takes the inside within its image."""
    axes = [np.linspace(0, n - 1, min(n, 64)) for n in geometry.size]
    parts = []
    for axis, end in product(range(geometry.dimension), (0, -1)):
        face = [a[[end]] if number == axis else a for number, a in enumerate(axes)]
        parts.append(np.stack(np.meshgrid(*face, indexing="ij"), -1).reshape(-1, geometry.dimension))
    return geometry.index_to_physical(np.concatenate(parts))


def _cover(geometry: Geometry, points: NDArray[np.float64]) -> Geometry:
    """The grid continued by whole voxels until it holds all points."""
    index = geometry.physical_to_index(points)
    low = np.minimum(np.floor(index.min(axis=0) + 1e-3), 0).astype(int)
    high = np.maximum(np.ceil(index.max(axis=0) - 1e-3), np.asarray(geometry.size) - 1).astype(int)
    if not low.any() and np.array_equal(high, np.asarray(geometry.size) - 1):
        return geometry
    return geometry.crop(low.tolist(), (high - low + 1).tolist())


def _rename_all(temporary: Mapping[str, Path], paths: Mapping[str, Path]) -> None:
    """Rename every file; if one cannot be, the files that took a free name are removed again."""
    new = []
    try:
        for key, path in paths.items():
            free = not path.exists()
            os.replace(temporary[key], path)
            if free:
                new.append(path)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


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
