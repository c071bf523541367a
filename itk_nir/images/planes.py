"""Single slices: 3D images of one voxel along an axis, as the 2D images that they are.

The coordinates in a plane follow from its orientation alone, so that two slices of one orientation share them: where
the plane is perpendicular to an axis of LPS space, they are the other two coordinates in order (axial ``x, y``; coronal
``x, z``; sagittal ``y, z``); an oblique plane has those of the nearest such plane, turned with it by the smallest turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.findings import Finding, note, warning
from itk_nir.geometry import Geometry

if TYPE_CHECKING:
    from itk_nir.images.volume import Volume

#: Degrees between two planes from which on it is told.
TURNED = 15.0


@dataclass(frozen=True)
class Plane:
    """Where a single slice lies in space.

    Attributes
    ----------
    geometry : Geometry
        Its grid in 3D, with one voxel along an axis.
    """

    geometry: Geometry

    @property
    def axis(self) -> int:
        """The axis of one voxel: 0, 1 or 2 for ``x, y, z``."""
        return self.geometry.size.index(1)

    @property
    def normal(self) -> NDArray[np.float64]:
        """``(3,)``, LPS, of length 1; its largest component is above 0."""
        n = self.geometry.rotation[:, self.axis]
        n = n / np.linalg.norm(n)
        return np.asarray(n if n[np.abs(n).argmax()] > 0 else -n)

    @property
    def frame(self) -> NDArray[np.float64]:
        """``(3, 2)``: the directions of the two coordinates in the plane, LPS."""
        n = self.normal
        k = int(np.abs(n).argmax())
        # The smallest turn that takes axis k to the normal (Rodrigues).
        cross, cosine = np.cross(np.eye(3)[k], n), n[k]
        skew = np.cross(np.eye(3), cross)
        turn = np.eye(3) + skew + skew @ skew / (1 + cosine)
        return np.asarray(turn[:, [j for j in range(3) if j != k]])

    @property
    def flat(self) -> Geometry:
        """Its grid in 2D, in the coordinates of the plane."""
        g, frame = self.geometry, self.frame
        axes = [j for j in range(3) if j != self.axis]
        direction = frame.T @ g.rotation[:, axes]
        left, _, right = np.linalg.svd(direction)
        return Geometry.make(
            [g.size[j] for j in axes], [g.spacing[j] for j in axes], frame.T @ np.asarray(g.origin), left @ right
        )

    def put_back(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of the plane as one of the slice in 3D.

        Parameters
        ----------
        array : ndarray
            ``flat.shape``, or with several values a pixel in a last axis.

        Returns
        -------
        ndarray
            ``geometry.shape``, or with that last axis.
        """
        return np.expand_dims(array, 2 - self.axis)


def is_slice(geometry: Geometry) -> bool:
    """Whether a grid is a single slice in 3D.

    Parameters
    ----------
    geometry : Geometry
        Any grid.

    Returns
    -------
    bool
        One voxel along exactly one of three axes.
    """
    return geometry.dimension == 3 and geometry.size.count(1) == 1


def flattened(volume: Volume) -> Volume:
    """A single slice as the 2D image that it is; any other image as it is.

    Parameters
    ----------
    volume : Volume
        Of any dimension; several values a pixel are the last axis.

    Returns
    -------
    Volume
        With its `plane`.
    """
    if not is_slice(volume.geometry):
        return volume
    plane = Plane(volume.geometry)
    axis = 2 - plane.axis
    missing = None if volume.missing is None else np.ascontiguousarray(volume.missing.squeeze(axis))
    array = np.ascontiguousarray(volume.array.squeeze(axis))
    return replace(volume, array=array, geometry=plane.flat, plane=plane, missing=missing)


def in_their_planes(
    fixed: Sequence[Volume], moving: Sequence[Volume]
) -> tuple[list[Volume], list[Volume], list[Finding]]:
    """The channels of two images; in 2D where both are single slices (or 2D images).

    Parameters
    ----------
    fixed, moving : sequence of Volume
        At least one channel each.

    Returns
    -------
    fixed, moving : list of Volume
        In the plane where they are slices.
    findings : list of Finding
        That they are slices, and whether their planes are turned to each other.

    Raises
    ------
    InputError
        A slice and a volume of more than one.
    """
    slices = [is_slice(v[0].geometry) for v in (fixed, moving)]
    if not any(slices):
        return list(fixed), list(moving), []
    for one, other, single in ((fixed[0], moving[0], slices[0]), (moving[0], fixed[0], slices[1])):
        if single and other.dimension == 3 and not is_slice(other.geometry):
            size = "x".join(map(str, other.geometry.size))
            raise InputError(
                f"{one.name}: is a single slice, but {other.name} is a volume ({size}); give two slices (that of "
                "the volume which shows the same), or two volumes"
            )
    found = []
    for image, single in zip((fixed[0], moving[0]), slices, strict=True):
        if single:
            size = "x".join(map(str, image.geometry.size))
            found.append(note(f"{image.name}: is a single slice ({size})", "registered in 2D, in its own plane"))
    a, b = [flattened(v) for v in fixed], [flattened(v) for v in moving]
    if a[0].plane is not None and b[0].plane is not None:
        cosine = abs(float(a[0].plane.normal @ b[0].plane.normal))
        angle = float(np.degrees(np.arccos(min(1.0, cosine))))
        if angle > TURNED:
            found.append(
                warning(
                    f"{b[0].name}: its plane is turned by {angle:.0f} degrees to that of {a[0].name}",
                    "each is registered in its own plane; check that they show the same section",
                    degrees=angle,
                )
            )
    return a, b, found


def refuse_slices(**sizes: Sequence[int]) -> None:
    """Refuse single slices in 3D, where an interface promises transforms of the images' own dimension.

    Parameters
    ----------
    **sizes : sequence of int
        The size of each image, ``(x, y[, z])``, by what it is: ``fixed``, ``moving``.

    Raises
    ------
    InputError
        One of them has a single voxel along one of three axes.
    """
    for role, size in sizes.items():
        if len(size) == 3 and list(size).count(1) == 1:
            raise InputError(
                f"{role} image: is a single slice ({'x'.join(map(str, size))}), whose transform would be 2D; give it "
                "as a 2D image (image[:, :, 0]), or give it to itk_nir.register as it is"
            )
