"""What is to be registered: everything read, matched and checked, once, before any long work."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.checks import check_dimensions, check_pair, match_labels, match_mask
from itk_nir.correspondences import Given, read_given
from itk_nir.engine.execution import device_named, thread_count
from itk_nir.engine.frame import AxisOrder, Frame
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.metrics import channel_metrics
from itk_nir.engine.region_labels import regions_in
from itk_nir.engine.restriction import check_length
from itk_nir.engine.sampling import Target
from itk_nir.engine.torch_state import quietly
from itk_nir.errors import InputError, OptionError
from itk_nir.findings import Finding, texts
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, checked_fill, flattened, in_their_planes, load_channels, load_image
from itk_nir.images.missing import checked_nan, outside_missing
from itk_nir.intensities import check_contrast, for_registration, without_missing_voxels
from itk_nir.loading import load_transform
from itk_nir.options import shown, truth_value, whole_number
from itk_nir.padding import Part, cropped, grid_of, on_frame, picture, usable
from itk_nir.resample import resample_array
from itk_nir.settings import Settings
from itk_nir.stored_axes import restriction
from itk_nir.transforms.composition import field_then_linear
from itk_nir.transforms.model import CompositeTransform
from itk_nir.without_counterpart import told_cut_by_borders, with_cuts, with_holes

F64 = NDArray[np.float64]

LINEAR_STAGES = ("affine", "similarity", "rigid", "translation", "none")


@dataclass(frozen=True, eq=False)
class Problem:
    """A registration that is ready to run.

    Parameters
    ----------
    fixed, moving : Volume
        The two images; of several channels the first.
    more : tuple of (Volume, Volume)
        Fixed and moving image of the further channels.
    fixed_mask, moving_mask : Volume or None
        On their image's grid, zeros and ones.
    fixed_lesion, moving_lesion : Volume or None
        On their image's grid, ones where it has no counterpart: what was given, the holes of the mask, and
        what lies beyond a cut through the object.
    rigid_regions, volume_regions : Volume or None
        Label maps on the fixed grid.
    given : Given or None
        Landmarks and labels.
    start : CompositeTransform or None
        The caller's initial transform, fixed → moving.
    settings : Settings
        The settings of all stages.
    linear : str
        The linear stage: ``"affine"``, ``"similarity"``, ``"rigid"``, ``"translation"`` or ``"none"``.
    deformable : bool
        Whether a deformable stage follows.
    seed : int
        Of every random draw.
    device : torch.device
        Where everything is computed.
    threads : int
        CPU threads.
    findings : tuple of Finding
        What was found odd.
    doubts : tuple of str
        What the verdict is to name.
    fill : float or None
        Value of warped images outside the moving image; its background for None.
    clock : float
        ``time.perf_counter()`` when it all began.
    fixed_part, moving_part : tuple of slice or None
        What of the array of each image is looked at, where there is a frame of one value around (`itk_nir.padding`).
    """

    fixed: Volume
    moving: Volume
    more: tuple[tuple[Volume, Volume], ...]
    fixed_mask: Volume | None
    moving_mask: Volume | None
    fixed_lesion: Volume | None
    moving_lesion: Volume | None
    rigid_regions: Volume | None
    volume_regions: Volume | None
    given: Given | None
    start: CompositeTransform | None
    settings: Settings
    linear: str
    deformable: bool
    seed: int
    device: torch.device
    threads: int
    findings: tuple[Finding, ...]
    doubts: tuple[str, ...]
    fill: float | None
    clock: float
    fixed_part: Part | None = None
    moving_part: Part | None = None

    @classmethod
    @quietly
    def prepare(
        cls,
        fixed: Any,
        moving: Any,
        settings: Settings,
        *,
        linear: str = "affine",
        deformable: bool = True,
        fixed_mask: Any = None,
        moving_mask: Any = None,
        fixed_lesion: Any = None,
        moving_lesion: Any = None,
        rigid_regions: Any = None,
        volume_regions: Any = None,
        fixed_landmarks: Any = None,
        moving_landmarks: Any = None,
        landmark_weights: Any = None,
        fixed_labels: Any = None,
        moving_labels: Any = None,
        initial_transform: Any = None,
        fill: float | None = None,
        nan: str = "error",
        resample_shear: bool = False,
        strict_input: bool = False,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
    ) -> Problem:
        """Read and check what `itk_nir.register` was given.

        Parameters
        ----------
        fixed, moving : image, path or list of them
            The two images, anything that `load_channels` takes; several channels as a list, or as an image with several
            values a pixel.
        settings : Settings
            The settings of all stages.
        linear : str
            ``"affine"``, ``"similarity"``, ``"rigid"``, ``"translation"`` or ``"none"``.
        deformable : bool
            Whether a deformable stage follows.
        fixed_mask, moving_mask : image or path, optional
            Above 0 where the image counts.
        fixed_lesion, moving_lesion : image or path, optional
            Above 0 where the image shows what has no counterpart in the other.
        rigid_regions, volume_regions : image or path, optional
            Label maps of the fixed image: regions that keep their shape, or their volume.
        fixed_landmarks, moving_landmarks, landmark_weights : array_like or path, optional
            Corresponding points, ``(N, d)`` LPS mm, and how much each pair counts, ``(N,)``.
        fixed_labels, moving_labels : image or path, optional
            Label maps.
        initial_transform : transform, optional
            Anything that `itk_nir.load_transform` takes, fixed → moving.
        fill : float, optional
            Value of warped images outside the moving image.
        nan : str
            ``"error"`` or ``"mask"``: what NaN and infinite voxels are.
        resample_shear : bool
            Whether images on sheared axes are resampled.
        strict_input : bool
            Whether warnings about the input are errors.
        seed : int
            Of every random draw.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        threads : int, optional
            CPU threads; all that the process may use by default.

        Returns
        -------
        Problem

        Raises
        ------
        InputError
            An image, mask, transform, landmark or label map that cannot be used.
        OptionError
            An argument that it cannot be.
        """
        clock = time.perf_counter()
        where, count = device_named(device), thread_count(threads)
        seed, nan, shear = checked_words(linear, deformable, seed, nan, resample_shear, strict_input)
        channels = [
            load_channels(image, role, nan=nan, resample_shear=shear)
            for image, role in ((fixed, "fixed image"), (moving, "moving image"))
        ]
        (a, *fixed_more), (b, *moving_more), notes = in_their_planes(*channels)
        if fill is not None:
            checked_fill(fill, b.pixel_type)
        more = _paired(fixed_more, moving_more, settings)
        start = None
        if initial_transform is not None:
            start = load_transform(initial_transform, a.geometry, moving=b.geometry, role="initial transform")
        check_dimensions(a, b, start)
        check_length(restriction(settings), a.dimension)

        def read(source: Any, role: str, image: Volume, native: bool = False) -> Volume:
            volume = outside_missing(load_image(source, role, native=native, nan=nan, resample_shear=shear))
            return flattened(volume) if image.dimension == 2 else volume

        def matched(mask: Any, image: Volume, role: str) -> Volume | None:
            if mask is None:
                return None
            on_grid, found = match_mask(read(mask, role, image), image)
            notes.extend(found)
            return on_grid

        given = read_given(
            a, b, settings, channels=1 + len(more), linear=linear,
            fixed_landmarks=fixed_landmarks, moving_landmarks=moving_landmarks,
            landmark_weights=landmark_weights, fixed_labels=fixed_labels, moving_labels=moving_labels, read=read,
        )  # fmt: skip

        def labels(given: Any, role: str) -> Volume | None:
            if given is None:
                return None
            _check_regions(role, settings, deformable, start)
            on_grid, found = match_labels(read(given, role, a, native=True), a)
            notes.extend(found)
            return on_grid

        rigid, volume = labels(rigid_regions, "rigid regions"), labels(volume_regions, "volume regions")
        masks = matched(fixed_mask, a, "fixed mask"), matched(moving_mask, b, "moving mask")
        lesions = matched(fixed_lesion, a, "fixed lesion"), matched(moving_lesion, b, "moving lesion")
        _check_lesions(masks, lesions, settings)
        drawn = [v for v in (*masks, *lesions) if v is not None]
        masks = without_missing_voxels(masks[0], a, fixed_more), without_missing_voxels(masks[1], b, moving_more)
        parts: tuple[Part | None, Part | None] = (None, None)
        if settings.deformable.kind == "deformable":
            regions = [v for v in (rigid, volume) if v is not None]
            parts = (
                usable(picture([a, *fixed_more]), masks[0], lesions[0], regions),
                usable(picture([b, *moving_more]), masks[1], lesions[1], []),
            )
        seen = cropped(a, parts[0]), cropped(b, parts[1])
        if not more:
            for image, mask, part in zip(seen, masks, parts, strict=True):
                check_contrast(image, None if mask is None else cropped(mask, part))
        doubts: tuple[str, ...] = ()
        if settings.deformable.kind == "deformable":
            lesions = with_holes(masks[0], lesions[0]), with_holes(masks[1], lesions[1])
            (whole, cut_fixed), (other, cut_moving) = map(with_cuts, (a, b), lesions, parts)
            lesions = whole, other
            # Who gives a mask knows.
            doubts = () if drawn else (*cut_fixed, *cut_moving, *told_cut_by_borders(*seen))
        framed = [*on_frame(a, parts[0]), *on_frame(b, parts[1])]
        notes = [*check_pair(*seen, start, linear=linear), *framed, *notes]
        if strict_input and (odd := texts(notes)):
            raise InputError(f"{odd[0]} ({len(odd)} warning(s) in all; strict_input makes them errors)")
        return cls(
            a, b, more, *masks, *lesions, rigid, volume, given, start, settings, linear, deformable, seed, where, count,
            tuple(notes), doubts, fill, clock, *parts,
        )  # fmt: skip

    @property
    def tail(self) -> CompositeTransform | None:
        """The start where it is not linear: it stays a part of its own behind the linear map."""
        return None if self.start is None or self.start.is_linear else self.start

    @property
    def frame(self) -> Frame:
        """What the engine measures in."""
        # The published design has weights in mm.
        unit = None if self.settings.deformable.kind == "deformable" else 1.0
        return Frame.of(self.fixed.geometry, unit)

    def pair(self) -> Pair:
        """The images as the engine sees them, in its `frame`.

        A linear start is the linear map that the stages begin with; through any other the moving image is resampled on
        the fixed grid first.

        Returns
        -------
        Pair
            On the device, with the linear map to begin with.
        """
        frame = self.frame
        linear = np.eye(self.fixed.dimension + 1)
        ours, here = frame.axes, self.fixed_part
        # Seen through a start, the frame of the moving image is what its extent leaves out.
        there = self.moving_part if self.tail is None else None
        # What a detector got wrong in single voxels, and uneven light, are not looked at.
        source, *others = (for_registration(cropped(m, there)) for m in (self.moving, *(m for _, m in self.more)))
        mask, lesion = (None if v is None else cropped(v, there) for v in (self.moving_mask, self.moving_lesion))
        if self.tail is not None:
            source, mask = self._moving_through(self.tail, source)
            others = [self._seen_through(self.tail, m) for m in others]
            lesion = None if lesion is None else self._seen_through(self.tail, lesion)
        elif self.start is not None:
            linear = frame.matrix(field_then_linear(self.start).transforms[-1].matrix)  # type: ignore[union-attr]
        theirs = AxisOrder.of(source.geometry)
        rigid, volume = (
            None if v is None else self._tensor(cropped(v, here), ours, v.array.dtype)
            for v in (self.rigid_regions, self.volume_regions)
        )
        pair = Pair.make(
            self._tensor(for_registration(cropped(self.fixed, here)), ours),
            self._fixed_grid(),
            self._tensor(source, theirs),
            frame.placed(theirs.geometry(source.geometry)),
            linear,
            None if self.fixed_mask is None else self._tensor(cropped(self.fixed_mask, here), ours),
            None if mask is None else self._tensor(mask, theirs),
            [
                (self._tensor(for_registration(cropped(f, here)), ours), self._tensor(m, theirs))
                for (f, _), m in zip(self.more, others, strict=True)
            ],
            # Seen through a transform, a voxel that has any part in the lesion belongs to it.
            None if self.fixed_lesion is None else self._tensor(cropped(self.fixed_lesion, here), ours) > 0,
            None if lesion is None else self._tensor(lesion, theirs) > 0,
        )
        pair = replace(pair, regions=regions_in(rigid, volume))
        if self.given is None:
            return pair
        given = self.given
        if given.maps is not None:
            given = replace(given, maps=(cropped(given.maps[0], here), cropped(given.maps[1], there)))
        known = given.for_engine(self.fixed, self.moving, self.tail, self.settings, self.device, frame)
        return replace(pair, known=known)

    def _fixed_grid(self) -> Geometry:
        """The grid of what is looked at of the fixed image, voxel by voxel on that of the frame."""
        whole, axes = self.frame.geometry, self.frame.axes
        if self.fixed_part is None:
            return whole
        seen = self.frame.placed(axes.geometry(grid_of(self.fixed.geometry, self.fixed_part)))
        return whole.crop(whole.start_of(seen), seen.size)

    def target(self, pair: Pair) -> Target:
        """Where the map of the field must land to be of use.

        Parameters
        ----------
        pair : Pair
            With the linear map that follows the field.

        Returns
        -------
        Target
            The whole moving image, its frame included.
        """
        moving, frame = pair.moving_geometry, self.frame
        if self.tail is None and self.moving_part is not None:
            moving = frame.placed(AxisOrder.of(self.moving.geometry).geometry(self.moving.geometry))
        return Target.of(frame.geometry, moving, pair.linear, last=self.tail is None)

    def _tensor(self, image: Volume, axes: AxisOrder, dtype: Any = np.float32) -> torch.Tensor:
        array = np.ascontiguousarray(axes.canonical(image.array), dtype)
        return as_volume(torch.from_numpy(array).to(self.device))

    def _moving_through(self, start: CompositeTransform, moving: Volume) -> tuple[Volume, Volume | None]:
        """The moving image (and its mask) seen through the caller's transform, on the fixed grid."""
        ones = np.ones_like(self.moving.array) if self.moving_mask is None else self.moving_mask.array
        if self.moving_part is not None:
            picture_alone = np.zeros_like(ones)
            picture_alone[self.moving_part] = ones[self.moving_part]
            ones = picture_alone
        seen = self._seen_through(start, replace(self.moving, array=ones), "nearest").array > 0.5
        if not seen.any():
            raise InputError(
                "initial transform: takes the fixed image wholly outside the moving image; check its direction (fixed "
                "→ moving, LPS mm)"
            )
        moved = self._seen_through(start, moving)
        if self.moving_mask is None and seen.all():
            return moved, None
        extent = replace(moved, array=seen.astype(np.float32), name="initial transform's extent")
        return moved, extent

    def _seen_through(self, start: CompositeTransform, image: Volume, mode: str = "linear") -> Volume:
        """An image on the moving grid, on the fixed one: both in the canonical order of axes, so that no rounding
        depends on how they are stored."""
        axes, order = self.frame.axes, AxisOrder.of(image.geometry)
        grid, source = axes.geometry(self.fixed.geometry), order.geometry(image.geometry)
        array = np.ascontiguousarray(order.canonical(image.array))
        return replace(
            image, array=resample_array(array, source, start, grid, mode, threads=self.threads), geometry=grid
        )


def _paired(fixed: list[Volume], moving: list[Volume], settings: Settings) -> tuple[tuple[Volume, Volume], ...]:
    """The channels after the first.

    Raises
    ------
    InputError
        Unlike numbers of channels.
    OptionError
        A preset, metric or weight that is for another number of them.
    """
    if len(fixed) != len(moving):
        raise InputError(
            f"the fixed image has {len(fixed) + 1} channels and the moving image {len(moving) + 1}; give as "
            "many of both"
        )
    deformable = settings.deformable
    if fixed and deformable.kind != "deformable":
        raise OptionError(f"preset {settings.preset!r} registers one channel, got {len(fixed) + 1}; use another preset")
    channel_metrics(deformable.metric, getattr(deformable, "channel_weights", ()), len(fixed) + 1)
    return tuple(zip(fixed, moving, strict=True))


def _check_lesions(
    masks: tuple[Volume | None, Volume | None], lesions: tuple[Volume | None, Volume | None], settings: Settings
) -> None:
    """Refuse lesions that leave nothing, or that the engine does not know.

    Raises
    ------
    InputError
        Nothing of an image, or of its mask, is outside its lesion.
    OptionError
        A preset that knows no lesions.
    """
    for mask, lesion in zip(masks, lesions, strict=True):
        if lesion is None:
            continue
        if settings.deformable.kind != "deformable":
            name = lesion.name.replace(" ", "_")
            raise OptionError(f"preset {settings.preset!r} knows no {name}; use another preset")
        left = lesion.array < 0.5 if mask is None else (lesion.array < 0.5) & (mask.array > 0.5)
        if not left.any():
            raise InputError(
                f"{lesion.name}: leaves nothing of its image{'' if mask is None else ' inside the mask'}; it must be "
                "above 0 inside the lesion alone"
            )


def _check_regions(role: str, settings: Settings, deformable: bool, start: CompositeTransform | None) -> None:
    """Refuse rigid or volume-keeping regions where nothing could keep them.

    Raises
    ------
    InputError
        An initial transform that is not linear.
    OptionError
        A preset or stages that cannot keep them.
    """
    name, spacing = role.replace(" ", "_"), settings.sampling.field_spacing
    if settings.deformable.kind != "deformable":
        raise OptionError(f"preset {settings.preset!r} keeps no regions; leave {name} out, or use another preset")
    if not deformable:
        raise OptionError(f"{name} need the deformable stage, got deformable=False; leave one of the two out")
    if spacing not in (None, 1):
        raise OptionError(
            f"{name} are kept on the grid of the fixed image alone, got field_spacing={spacing}; leave it out"
        )
    if start is not None and not start.is_linear:
        raise InputError(f"initial transform: is not linear, so {name} cannot be kept behind it; give a linear one")


def checked_words(
    linear: str = "affine",
    deformable: bool = True,
    seed: int = 0,
    nan: str = "error",
    resample_shear: bool = False,
    strict_input: bool = False,
) -> tuple[int, str, bool]:
    """Check the arguments of `itk_nir.register` that are words or numbers and mean the same for every pair.

    Parameters
    ----------
    linear, deformable, seed, nan, resample_shear, strict_input
        As of `Problem.prepare`.

    Returns
    -------
    tuple of (int, str, bool)
        `seed`, `nan` and `resample_shear` as plain values.

    Raises
    ------
    OptionError
        A word or value that cannot be.
    """
    if not isinstance(linear, str) or linear not in LINEAR_STAGES:
        raise OptionError(f"linear is one of {', '.join(map(repr, LINEAR_STAGES))}, got {shown(linear)}")
    if not truth_value(deformable, "deformable") and linear == "none":
        raise OptionError("linear='none' with deformable=False leaves nothing to do; ask for one of the two stages")
    number = whole_number(seed)
    if number is None or number < 0:
        raise OptionError(f"seed is a whole number that is not negative, got {shown(seed)}")
    truth_value(strict_input, "strict_input")
    return number, checked_nan(nan), truth_value(resample_shear, "resample_shear")
