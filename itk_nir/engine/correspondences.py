"""What a user knows of a pair of images: landmarks and labels, as a term of the loss of every stage.

The term is ``landmark_weight`` times the mean of ``s² log(1 + r²/s²)`` over the landmarks, with ``r`` the distance that
is left and ``s`` a voxel of the level, both in voxels of the fixed image (or times the mean of ``r`` itself), plus
``label_weight`` times one minus the mean soft Dice of the labels: free of units, and 0 where all that is known holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.labels import Labels, LevelLabels
from itk_nir.engine.landmarks import Landmarks, LatticeLandmarks, left
from itk_nir.engine.lattice import Axis, Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.views import View
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: Sigma by which labels are smoothed at least, in voxels of the level: their edges must reach each other.
LABEL_SIGMA = 0.7


@dataclass(frozen=True, eq=False)
class Correspondences:
    """Landmarks, labels or both, and how much they count.

    Parameters
    ----------
    landmarks : Landmarks or None
        Pairs of points.
    labels : Labels or None
        Two label maps.
    landmark_weight, label_weight : float
        Of their terms of the loss.
    linear_landmark_weight : float
        Of that of the landmarks in the linear stage.
    """

    landmarks: Landmarks | None
    labels: Labels | None
    landmark_weight: float
    label_weight: float
    linear_landmark_weight: float

    def supported(self, kind: str) -> str:
        """The linear map that there is enough known for without the images, see `Landmarks.supported`.

        Parameters
        ----------
        kind : str
            ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.

        Returns
        -------
        str
        """
        return kind if self.landmarks is None or self.labels is not None else self.landmarks.supported(kind, once=True)

    def least_turned(self, kind: str, linear: F64, turns: bool) -> F64 | None:
        """What landmarks alone determine of a linear map, where that is less than the map.

        Parameters
        ----------
        kind : str
            ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, that follows it.
        turns : bool
            Whether the map may turn about every axis.

        Returns
        -------
        ndarray or None
            ``(d + 1, d + 1)`` LPS mm, see `Landmarks.least_turned`; None where they determine the map, where labels say
            more, and where it is no shift and may not turn.
        """
        if self.landmarks is None or self.labels is not None:
            return None
        found = self.landmarks.least_turned(kind, linear)
        d = len(linear) - 1
        return found if turns or found is None or np.array_equal(found[:d, :d], np.eye(d)) else None

    def on_lattice(
        self, pair: Pair, grids: LevelGrids, axes: list[Axis], spacing: float, voxel: float, weight: Tensor | None,
        sigma: float, threads: int,
    ) -> LevelCorrespondences:  # fmt: skip
        """What is known, at one level of the deformable stage.

        Parameters
        ----------
        pair : Pair
            The images, and the linear map after the deformation.
        grids : LevelGrids
            The voxels of the level.
        axes : list of Axis
            The lattice of the level.
        spacing : float
            Of the lattice, mm.
        voxel : float
            A voxel of the level, mm.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        sigma : float
            Of the Gaussian, in voxels of the level.
        threads : int
            CPU threads.

        Returns
        -------
        LevelCorrespondences
        """
        points = None
        if self.landmarks is not None:
            points = LatticeLandmarks.of(
                self.landmarks, pair.fixed_geometry, axes, spacing, pair.linear, voxel, pair.fixed.device
            )
        return LevelCorrespondences(self, points, self.labels_at(pair, grids, weight, sigma, threads))

    def labels_at(
        self, pair: Pair, grids: LevelGrids, weight: Tensor | None, sigma: float, threads: int
    ) -> LevelLabels | None:
        """The labels at the voxels of a level.

        Parameters
        ----------
        pair, grids, weight, sigma, threads
            As of `on_lattice`.

        Returns
        -------
        LevelLabels or None
            None where there are none that count.
        """
        if self.labels is None:
            return None
        return LevelLabels.of(self.labels, pair, grids, weight, max(sigma, LABEL_SIGMA), threads)

    def reached(self, domain: Domain, geometry: Geometry) -> Domain:
        """A block of the fixed grid that holds the landmarks too.

        Parameters
        ----------
        domain : Domain
            The block.
        geometry : Geometry
            The fixed grid.

        Returns
        -------
        Domain
        """
        if self.landmarks is None:
            return domain
        at = geometry.physical_to_index(self.landmarks.fixed[self.landmarks.shares > 0])
        first, last = np.array(domain.start), np.array(domain.start) + domain.size - 1
        d = geometry.dimension
        most = np.array(geometry.size) - 1
        first[:d] = np.minimum(first[:d], np.clip(np.floor(at.min(0)), 0, most))
        last[:d] = np.maximum(last[:d], np.clip(np.ceil(at.max(0)), 0, most))
        return Domain(tuple(int(v) for v in first), tuple(int(v) for v in last - first + 1))  # type: ignore[arg-type]

    def start(self, pair: Pair, lattices: Lattices, number: int, threads: int) -> Tensor | None:
        """Control points of a smooth deformation that brings the landmarks together: where the first level begins.

        Parameters
        ----------
        pair : Pair
            The images, and the linear map after the deformation.
        lattices : Lattices
            Of all levels.
        number : int
            The lattice of the first level.
        threads : int
            CPU threads.

        Returns
        -------
        Tensor or None
            ``(3, z, y, x)`` mm along the image axes; None without landmarks.
        """
        if self.landmarks is None:
            return None
        geometry = pair.fixed_geometry
        d = geometry.dimension
        at = np.meshgrid(*[a.positions for a in lattices.axes[0][::-1]], indexing="ij")[::-1]
        points = geometry.index_to_physical(np.stack([x.ravel() for x in at[:d]], -1))
        values = np.zeros((3, *at[0].shape), np.float32)
        found = self.landmarks.smooth_displacement(pair.linear, points) @ geometry.rotation
        values[:d] = found.T.reshape(d, *at[0].shape)
        return lattices.refined(torch.from_numpy(values).to(pair.fixed.device), 0, number, threads)


@dataclass(frozen=True, eq=False)
class LevelCorrespondences:
    """What is known, at one level of the deformable stage.

    Parameters
    ----------
    known : Correspondences
        All of it, and its weights.
    landmarks : LatticeLandmarks or None
        On the lattice of the level.
    labels : LevelLabels or None
        At the voxels of the level.
    """

    known: Correspondences
    landmarks: LatticeLandmarks | None
    labels: LevelLabels | None

    def __call__(self, u: Tensor, view: View) -> Tensor:
        """The term of the loss.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` displacement on the lattice, in its units.
        view : View
            The moving side through it.

        Returns
        -------
        Tensor
            Scalar, 0 where all that is known holds.
        """
        out = u.new_zeros(())
        if self.landmarks is not None:
            out = out + self.known.landmark_weight * self.landmarks(u)
        if self.labels is not None:
            out = out + self.known.label_weight * self.labels(view)
        return out


@dataclass(frozen=True, eq=False)
class LinearCorrespondences:
    """What is known, at one level of the linear stage.

    Parameters
    ----------
    known : Correspondences
        All of it, and its weights.
    geometry : Geometry
        The fixed grid.
    labels : LevelLabels or None
        At the voxels of the level.
    voxel : float
        Of the level, mm.
    """

    known: Correspondences
    geometry: Geometry
    labels: LevelLabels | None
    voxel: float

    @classmethod
    def of(
        cls, known: Correspondences, pair: Pair, grids: LevelGrids, weight: Tensor | None, voxel: float, threads: int
    ) -> LinearCorrespondences:
        """What is known, at a level.

        Parameters
        ----------
        known : Correspondences
            Landmarks and labels.
        pair : Pair
            The images.
        grids : LevelGrids
            The voxels of the level.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        voxel : float
            Of the level, mm.
        threads : int
            CPU threads.

        Returns
        -------
        LinearCorrespondences
        """
        return cls(known, pair.fixed_geometry, known.labels_at(pair, grids, weight, LABEL_SIGMA, threads), voxel)

    def __call__(self, matrix: Tensor, shift: Tensor, linear: F64, view: View) -> Tensor:
        """The term of the loss under a map that comes before a linear one.

        Parameters
        ----------
        matrix, shift : Tensor
            ``(3, 3)`` and ``(3,)`` mm along the fixed axes, about the centre of the fixed grid.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, that follows.
        view : View
            The moving side through both.

        Returns
        -------
        Tensor
            Scalar, 0 where all that is known holds.
        """
        out = matrix.new_zeros(())
        landmarks = self.known.landmarks
        if landmarks is not None:
            at = landmarks.fixed
            ours, theirs = (self._along_axes(p).to(matrix) for p in (at, at + landmarks.wanted(linear)))
            apart = matrix @ ours + shift[:, None] - theirs
            shares = torch.from_numpy(landmarks.shares).to(matrix)
            unit = min(self.geometry.spacing)
            apart = apart / unit
            out = out + self.known.linear_landmark_weight * left(apart, shares, self.voxel / unit, landmarks.robust)
        if self.labels is not None:
            out = out + self.known.label_weight * self.labels(view)
        return out

    def _along_axes(self, points: F64) -> Tensor:
        """``(3, N)`` mm along the fixed axes, from the centre of the fixed grid."""
        g = self.geometry
        along = (points - g.centre) @ g.rotation
        return torch.from_numpy(np.pad(along, ((0, 0), (0, 3 - g.dimension))).T.copy())
