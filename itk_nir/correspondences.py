"""Landmarks and labels that a user gives: read and checked before any work, brought to what the engine takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.engine.correspondences import Correspondences
from itk_nir.engine.frame import AxisOrder, Frame
from itk_nir.engine.images import as_volume
from itk_nir.engine.labels import Labels
from itk_nir.engine.landmarks import PRECISION, Landmarks
from itk_nir.engine.metrics import channel_metrics, look_at_images
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import real_numbers
from itk_nir.images import Volume
from itk_nir.options import shown
from itk_nir.points import load_points
from itk_nir.report import LandmarkDistances, Report
from itk_nir.resample import nearest_on, resample_array
from itk_nir.settings import Settings
from itk_nir.transforms.model import CompositeTransform

F64 = NDArray[np.float64]

#: Labels that there may be: each is an image of its own.
MOST_LABELS = 500


@dataclass(frozen=True, eq=False)
class Given:
    """What a user knows of a pair of images, in the spaces of the images as they were given.

    Parameters
    ----------
    points : tuple of ndarray or None
        Fixed and moving landmarks, ``(N, d)`` LPS mm, and their weights, ``(N,)``.
    maps : tuple of Volume or None
        Fixed and moving labels on the grids of the two images, int16: 0, or the number of the label in `values`,
        counted from 1.
    values : tuple of int
        The values of the labels in the user's maps.
    """

    points: tuple[F64, F64, F64] | None
    maps: tuple[Volume, Volume] | None
    values: tuple[int, ...] = ()

    def for_engine(
        self, fixed: Volume, moving: Volume, tail: CompositeTransform | None, settings: Settings, device: torch.device,
        frame: Frame,
    ) -> Correspondences:  # fmt: skip
        """What the engine takes.

        Parameters
        ----------
        fixed, moving : Volume
            The two images.
        tail : CompositeTransform or None
            A transform that is not linear and that the moving image is seen through, fixed → moving: points go back
            through its inverse, labels are resampled through it.
        settings : Settings
            How much both count.
        device : torch.device
            Where labels are compared.
        frame : Frame
            What the engine measures in.

        Returns
        -------
        Correspondences
        """
        landmarks, labels = None, None
        if self.points is not None:
            p, q, weights = self.points
            precision = PRECISION * max(*fixed.geometry.spacing, *moving.geometry.spacing) / frame.unit
            q = q if tail is None else tail.inverse().map(q)
            robust = settings.deformable.landmark_distance == "robust"
            landmarks = Landmarks.judged(frame.landmarks(p), frame.landmarks(q), weights, precision, robust)
        if self.maps is not None:
            ours, theirs = (m.array for m in self.maps)
            axes = frame.axes, AxisOrder.of(moving.geometry)
            if tail is not None:
                theirs = resample_array(theirs, moving.geometry, tail, fixed.geometry, "nearest")
                axes = frame.axes, frame.axes
            a, b = (
                as_volume(torch.from_numpy(np.ascontiguousarray(order.canonical(x))).to(device))
                for x, order in zip((ours, theirs), axes, strict=True)
            )
            labels = Labels(a, b, self.values)
        weights_of, linear = settings.deformable, settings.linear.linear_landmark_weight
        return Correspondences(
            landmarks, labels, weights_of.landmark_weight, weights_of.label_weight,
            weights_of.landmark_weight if linear is None else linear,
        )  # fmt: skip

    def distances(
        self, believed: NDArray[np.bool_], start: CompositeTransform | None, end: CompositeTransform
    ) -> LandmarkDistances | None:
        """How far the landmarks are apart under the map at the start and the one at the end.

        Parameters
        ----------
        believed : ndarray
            ``(N,)`` bool, which pairs are believed.
        start : CompositeTransform or None
            Fixed → moving; None for the identity.
        end : CompositeTransform
            The same.

        Returns
        -------
        LandmarkDistances or None
            None without landmarks.
        """
        if self.points is None:
            return None
        p, q, _ = self.points
        before, after = (
            tuple(float(x) for x in np.linalg.norm((p if map_ is None else map_.map(p)) - q, axis=1))
            for map_ in (start, end)
        )
        return LandmarkDistances(before, after, tuple(bool(b) for b in believed))

    def overlaps(
        self, start: CompositeTransform | None, end: CompositeTransform, threads: int
    ) -> dict[int, tuple[float, float]]:
        """The Dice overlap of every label under both maps, over the fixed grid.

        Parameters
        ----------
        start, end
            As of `distances`.
        threads : int
            CPU threads.

        Returns
        -------
        dict of int to tuple of float
            Value of the label → before, after; empty without labels.
        """
        if self.maps is None:
            return {}
        fixed, moving = self.maps
        grid, source = fixed.geometry, moving.geometry
        seen = [
            nearest_on(moving.array, source, grid)
            if map_ is None
            else resample_array(moving.array, source, map_, grid, "nearest", threads=threads)
            for map_ in (start, end)
        ]
        most = len(self.values) + 1
        ours = np.bincount(fixed.array.ravel(), minlength=most)
        each = []
        for found in seen:
            theirs = np.bincount(found.ravel(), minlength=most)
            both = np.bincount(fixed.array[fixed.array == found], minlength=most)
            each.append(2 * both / np.maximum(1, ours + theirs))
        return {value: (float(each[0][k]), float(each[1][k])) for k, value in enumerate(self.values, 1)}

    def reported(
        self, report: Report, believed: NDArray[np.bool_], start: CompositeTransform | None, end: CompositeTransform,
        threads: int,
    ) -> Report:  # fmt: skip
        """A report that says what became of the landmarks and labels.

        Parameters
        ----------
        report : Report
            Of the registration.
        believed, start, end
            As of `distances`.
        threads : int
            CPU threads.

        Returns
        -------
        Report
        """
        labels = self.overlaps(start, end, threads)
        return replace(report, landmarks=self.distances(believed, start, end), labels=labels)


def read_given(
    fixed: Volume, moving: Volume, settings: Settings, *, channels: int, linear: str, fixed_landmarks: Any,
    moving_landmarks: Any, landmark_weights: Any, fixed_labels: Any, moving_labels: Any, read: Callable[..., Volume],
) -> Given | None:  # fmt: skip
    """Read and check the landmarks and labels of a registration.

    Parameters
    ----------
    fixed, moving : Volume
        The two images.
    settings : Settings
        Of the registration.
    channels : int
        Of the images.
    linear : str
        The linear stage, as of `itk_nir.register`.
    fixed_landmarks, moving_landmarks, landmark_weights, fixed_labels, moving_labels
        As of `itk_nir.register`; None where they are not given.
    read : callable
        Reads a label map: what was given, its role, its image.

    Returns
    -------
    Given or None
        None where neither is given.

    Raises
    ------
    InputError
        Points or label maps that cannot be used.
    OptionError
        One without the other, a preset that has no use for them, or a metric ``"none"`` without any.
    """
    given = {
        "fixed_landmarks": fixed_landmarks, "moving_landmarks": moving_landmarks,
        "landmark_weights": landmark_weights, "fixed_labels": fixed_labels, "moving_labels": moving_labels,
    }  # fmt: skip
    present = [name for name, value in given.items() if value is not None]
    deformable = settings.deformable
    if deformable.kind != "deformable":
        if present:
            raise OptionError(
                f"preset {settings.preset!r} registers by the images alone, it cannot honour {', '.join(present)}; use "
                "another preset"
            )
        return None
    for one, other in (
        ("fixed_landmarks", "moving_landmarks"), ("moving_landmarks", "fixed_landmarks"),
        ("landmark_weights", "fixed_landmarks"), ("fixed_labels", "moving_labels"), ("moving_labels", "fixed_labels"),
    ):  # fmt: skip
        if one in present and other not in present:
            raise OptionError(f"{one} is given but not {other}; give both")
    points = maps = None
    values: tuple[int, ...] = ()
    if fixed_landmarks is not None:
        points = _points(fixed, moving, fixed_landmarks, moving_landmarks, landmark_weights)
    if fixed_labels is not None:
        maps, values = _label_maps(fixed, moving, fixed_labels, moving_labels, deformable.labels, read)
    elif deformable.labels:
        raise OptionError(
            f"labels {shown(deformable.labels)} are to count, but there are no fixed_labels and moving_labels"
        )
    if points is None and maps is None:
        stages = [("metric", deformable.metric)]
        if linear != "none" and settings.linear.linear_metric != "same":
            stages.append(("linear_metric", settings.linear.linear_metric))
        for name, metric in stages:
            if not look_at_images(channel_metrics(metric, deformable.channel_weights, channels)):
                raise OptionError(
                    f"{name} 'none' leaves landmarks and labels alone, and there are neither; give fixed_landmarks and "
                    f"moving_landmarks, or fixed_labels and moving_labels, or another {name}"
                )
        return None
    return Given(points, maps, values)


def _points(fixed: Volume, moving: Volume, ours: Any, theirs: Any, weights: Any) -> tuple[F64, F64, F64]:
    p, q = _read_points(ours, fixed, "fixed_landmarks"), _read_points(theirs, moving, "moving_landmarks")
    if len(p) != len(q):
        raise InputError(f"fixed_landmarks has {len(p)} points and moving_landmarks {len(q)}; row k belongs to row k")
    if weights is None:
        return p, q, np.ones(len(p))
    try:
        w = real_numbers(weights)
    except ValueError as error:
        raise InputError(f"landmark_weights: are numbers, got {weights!r}") from error
    if w.shape != (len(p),):
        raise InputError(f"landmark_weights has shape {w.shape}, but there are {len(p)} landmarks; give one for each")
    if not np.isfinite(w).all() or w.min() < 0 or w.max() == 0:
        raise InputError("landmark_weights: are 0 and more, and not all 0; leave out the pairs that shall not count")
    return p, q, w


def _read_points(source: Any, image: Volume, role: str) -> F64:
    d = image.dimension
    if isinstance(source, (str, os.PathLike)):
        # Of a single slice in 3D the header says whether its points are in space or in the plane.
        points = load_points(source, None if image.plane is not None else d).points
        role = f"{role} {os.fspath(source)}"
    else:
        try:
            points = real_numbers(source).copy()  # what the caller changes later is none of the result
        except ValueError as error:
            raise InputError(
                f"{role}: is an (N, {d}) array of LPS mm or a file of points, got {type(source).__name__}"
            ) from error
    if points.ndim == 2 and points.shape[1] == 3 and image.plane is not None:
        points = points @ image.plane.frame
    if points.ndim != 2 or points.shape[1] != d:
        raise InputError(f"{role}: has shape {points.shape}, but {image.name} is {d}D; give (N, {d}) LPS mm")
    if len(points) == 0:
        raise InputError(f"{role}: holds no points; give at least one pair, or leave both out")
    if not np.isfinite(points).all():
        raise InputError(f"{role}: has NaN or infinite coordinates; remove those pairs")
    outside = np.flatnonzero(~image.geometry.contains(points))
    if len(outside):
        some = "; ".join(f"row {k + 1} at ({', '.join(f'{x:g}' for x in points[k])})" for k in outside[:3])
        raise InputError(
            f"{role}: {len(outside)} of {len(points)} points lie outside {image.name} ({some}); points are LPS mm, "
            "first sign flipped against RAS"
        )
    return points


def _label_maps(
    fixed: Volume, moving: Volume, ours: Any, theirs: Any, wanted: tuple[int, ...], read: Callable[..., Volume]
) -> tuple[tuple[Volume, Volume], tuple[int, ...]]:
    maps = [_read_labels(*one, read) for one in ((ours, fixed, "fixed labels"), (theirs, moving, "moving labels"))]
    present = [set(np.unique(m.array).tolist()) - {0} for m in maps]
    common = present[0] & present[1]
    for m, there in zip(maps, present, strict=True):
        missing = sorted(set(wanted) - there)
        if missing:
            raise InputError(f"{m.name}: has no label {_list(missing)}; it has {_list(sorted(there))}")
    values = tuple(sorted(set(wanted))) if wanted else tuple(sorted(common))
    if not values:
        raise InputError(
            f"the label maps have no value in common: {maps[0].name} has {_list(sorted(present[0]))}, {maps[1].name} "
            f"{_list(sorted(present[1]))}; both must name a structure by the same number"
        )
    if len(values) > MOST_LABELS:
        raise InputError(
            f"the label maps have {len(values)} values in common, at most {MOST_LABELS} can be used; name some of "
            "them in labels"
        )
    lookup = np.array(values)
    numbered = []
    for m in maps:
        at = np.clip(np.searchsorted(lookup, m.array), 0, len(lookup) - 1)
        numbered.append(replace(m, array=np.where(lookup[at] == m.array, at + 1, 0).astype(np.int16)))
    return (numbered[0], numbered[1]), values


def _read_labels(source: Any, image: Volume, role: str, read: Callable[..., Volume]) -> Volume:
    volume = read(source, role, image, native=True)
    if volume.dimension != image.dimension:
        raise InputError(
            f"{volume.name}: is {volume.dimension}D but {image.name} is {image.dimension}D; give its own map"
        )
    array = volume.array
    if array.dtype.kind == "f" and (array != np.rint(array)).any():
        raise InputError(f"{volume.name}: has values that are not whole numbers; give a label map, not probabilities")
    if array.min() < 0:
        raise InputError(
            f"{volume.name}: has the negative value {array.min():g}; labels are above 0, the background is 0"
        )
    array = array.astype(np.int64)
    if not volume.geometry.same_grid(image.geometry):
        array = nearest_on(array, volume.geometry, image.geometry)
        if not array.any():
            raise InputError(
                f"{volume.name}: does not reach {image.name} in physical space; check the origin and direction of both"
            )
    return replace(volume, array=array, geometry=image.geometry)


def _list(values: Iterable[int]) -> str:
    some = [str(v) for v in values]
    return ", ".join(some[:12]) + (", ..." if len(some) > 12 else "") if some else "none"
