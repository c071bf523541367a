"""A command line of antsRegistration, run: images, starts, the calls of `itk_nir.register`, and what they found."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.ants.files import load_initial_transform
from itk_nir.compat.options import register_arguments
from itk_nir.errors import InputError, OptionError
from itk_nir.images import Volume, in_their_planes, load_image
from itk_nir.programs.ants_plan import Call, Plan, plan_of
from itk_nir.programs.ants_request import Request, Start
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose

if TYPE_CHECKING:
    from itk_nir.programs.ants_console import Listener
    from itk_nir.result import RegistrationResult


@dataclass(frozen=True)
class Outcome:
    """What a command line found.

    Parameters
    ----------
    fixed, moving : Volume
        The images of the first metric, as they were read.
    deformation : CompositeTransform or None
        The displacement field with its inverse; None without a deformable stage.
    linear : LinearTransform
        What the linear stages found, and the linear starts before them.
    start : CompositeTransform or None
        The starts, where they are not linear.
    first : LinearTransform
        The linear starts alone: part of `linear`.
    plan : Plan
        What was done.
    result : RegistrationResult or None
        Of the last registration; None where there was nothing to do.
    """

    fixed: Volume
    moving: Volume
    deformation: CompositeTransform | None
    linear: LinearTransform
    start: CompositeTransform | None
    first: LinearTransform
    plan: Plan
    result: RegistrationResult | None

    @property
    def mapping(self) -> CompositeTransform:
        """All of it, fixed -> moving, LPS mm."""
        parts: list[Any] = [self.linear] if self.deformation is None else [self.deformation, self.linear]
        return compose(*parts, *(() if self.start is None else (self.start,)))


def run(request: Request, threads: int | None, listener: Listener | None = None) -> Outcome:
    """Do what a command line asks for.

    Parameters
    ----------
    request : Request
        The command line.
    threads : int or None
        CPU threads; all that the process may use for None.
    listener : Listener, optional
        Is told of the plan, and gives a callback for each registration.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        An image, mask or transform that cannot be used.
    OptionError
        A value that it cannot have.
    """
    images = _Images(request)
    fixed = images.first[0]
    if request.dimension not in (None, fixed.dimension):
        what = "is a single slice" if fixed.plane is not None else f"is {fixed.dimension}D"
        raise InputError(f"-d {request.dimension}: {fixed.name} {what}; give -d {fixed.dimension}")
    grid = fixed.geometry
    plan = plan_of(request, request.preset, grid.spacing, fixed.array.size)
    for call in plan.calls:
        images.read(call)
        register_arguments(request.preset, call.options)
    if listener is not None:
        listener.plan(plan)
    starts = [_start(s, images) for s in request.starts]
    start = compose(*starts) if starts else None
    # Before a linear stage an alignment of centres is one of the starts that it tries by itself.
    searched = bool(plan.calls) and plan.calls[0].linear != "none" and all(s.pair for s in request.starts)
    begin: Any = None if searched else start
    identity = LinearTransform.identity(fixed.dimension)
    first, tail = identity, start
    if start is None or start.is_linear:
        first, tail = (identity if start is None else _whole(start)), None
    linear = first
    result: RegistrationResult | None = None
    for number, call in enumerate(plan.calls):
        callback = None if listener is None else listener(number, call)
        result = _register(request, call, images, begin, threads, callback)
        begin = result.mapping
        # Behind a start that is no linear map, what a linear stage finds is part of where the next call starts.
        if tail is None or call.linear != "none":
            linear = result.affine
    if result is None:
        return Outcome(*images.first, _rest(request, fixed), first, tail, first, plan, None)
    deformation = _rest(request, fixed)
    if result.displacement is not None:
        back = result.inverse_displacement or result.displacement.inverse()
        deformation = CompositeTransform((result.displacement,), (back,))
    return Outcome(*images.first, deformation, linear, tail, first, plan, result)


def _whole(start: CompositeTransform) -> LinearTransform:
    """Linear transforms, multiplied into one."""
    (merged,) = start.simplified().transforms
    assert isinstance(merged, LinearTransform)
    return merged


def _rest(request: Request, fixed: Volume) -> CompositeTransform | None:
    """No displacement, where a deformable stage of no iterations was asked for."""
    if all(stage.linear for stage in request.stages):
        return None
    grid = fixed.geometry
    field = DisplacementField(grid, np.zeros((*grid.shape, grid.dimension), np.float32))
    return CompositeTransform((field,), (field,))


def _register(
    request: Request, call: Call, images: _Images, start: Any, threads: int | None, callback: Any
) -> RegistrationResult:
    # Here, because it imports torch: reading the line must not wait for that.
    from itk_nir.registration import register

    fixed, moving = images.channels(call)
    mask, moving_mask = images.masks(call)
    arguments = register_arguments(request.preset, call.options)
    with warnings.catch_warnings():
        if request.winsorize:
            # That is what was asked for.
            warnings.filterwarnings("ignore", message=".*: is clipped: ")
        return register(
            list(fixed), list(moving), linear=call.linear, deformable=call.deformable,  # type: ignore[arg-type]
            fixed_mask=mask, moving_mask=moving_mask, initial_transform=start, seed=request.seed or 0,
            device=request.device, threads=threads, callback=callback, **arguments,
        )  # fmt: skip


class _Images:
    """The images of a command line, each read once."""

    def __init__(self, request: Request) -> None:
        self._read: dict[tuple[str, str], Volume] = {}
        self._quantiles = request.winsorize
        self.first = self.of(request.stages[0].metrics[0].pair)

    def _image(self, name: str, role: str) -> Volume:
        key = (name, role)
        if key not in self._read:
            self._read[key] = load_image(name, role)
        return self._read[key]

    def _pair(self, pair: tuple[str, str]) -> tuple[list[Volume], list[Volume]]:
        fixed, moving = self._image(pair[0], "fixed image"), self._image(pair[1], "moving image")
        return in_their_planes([fixed], [moving])[:2]

    def of(self, pair: tuple[str, str]) -> tuple[Volume, Volume]:
        """Two images as they were read, in 2D where they are slices."""
        (fixed,), (moving,) = self._pair(pair)
        return fixed, moving

    def masks(self, call: Call) -> list[Volume | None]:
        """The masks of a call, as they were read."""
        named = zip(call.masks, ("fixed mask", "moving mask"), strict=True)
        return [None if name is None else self._image(name, role) for name, role in named]

    def read(self, call: Call) -> None:
        """Read all images of a call: what is wrong with a later one is found before the first is at work."""
        for pair in call.pairs:
            self.of(pair)
        self.masks(call)

    def channels(self, call: Call) -> tuple[list[Volume], list[Volume]]:
        """The images of a call as they are registered."""
        fixed, moving = [], []
        for pair in call.pairs:
            a, b = (self._clipped(v) for v in self.of(pair))
            fixed.append(a)
            moving.append(replace(b, array=matched(b.array, a.array)) if call.histogram_matching else b)
        return fixed, moving

    def _clipped(self, volume: Volume) -> Volume:
        if not self._quantiles:
            return volume
        return replace(volume, array=winsorized(volume.array, *self._quantiles))


def winsorized(array: NDArray[Any], lower: float, upper: float) -> NDArray[Any]:
    """Values beyond two quantiles of an image, clipped to them.

    Parameters
    ----------
    array : ndarray
        Any shape.
    lower, upper : float
        0 to 1.

    Returns
    -------
    ndarray
        Like `array`; a new one.

    Examples
    --------
    >>> winsorized(np.array([0.0, 1.0, 2.0, 3.0, 100.0]), 0.0, 0.75).tolist()
    [0.0, 1.0, 2.0, 3.0, 3.0]
    """
    low, high = np.quantile(array, [lower, upper], method="nearest")
    return np.clip(array, low, high).astype(array.dtype)


def matched(array: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """An image with the histogram of another, as ANTs matches them: 12 quantiles above the mean of either.

    Parameters
    ----------
    array : ndarray
        The image.
    reference : ndarray
        The other one; any shape.

    Returns
    -------
    ndarray
        Like `array`; a new one.

    Examples
    --------
    >>> reference = np.linspace(0, 1, 101)
    >>> bool(abs(matched(reference * 50 + 7, reference) - reference).max() < 1e-6)
    True
    """
    # In steps of equal share between the mean and the largest value; straight lines between them and below.
    shares = np.linspace(0, 1, 14)

    def landmarks(values: NDArray[Any]) -> NDArray[np.float64]:
        values = values.astype(np.float64).ravel()
        above = values[values >= values.mean()]
        return np.concatenate([[values.min()], np.quantile(above, shares)])

    source, target = landmarks(array), landmarks(reference)
    kept = np.concatenate([[True], np.diff(source) > 0])
    if kept.sum() < 2:
        return array.copy()
    return np.interp(array, source[kept], target[kept]).astype(array.dtype)


# --- starts ----------------------------------------------------------------------------------------------------------


def _start(start: Start, images: _Images) -> CompositeTransform:
    """One of the starts, fixed -> moving."""
    if not start.pair:
        text = f"[{start.file},1]" if start.inverse else start.file
        loaded = load_initial_transform(text, images.first[0].geometry)
        assert loaded is not None
        return loaded
    fixed, moving = images.of(start.pair)
    if fixed.dimension != moving.dimension:
        raise InputError(f"{moving.name}: is {moving.dimension}D and the fixed image {fixed.dimension}D")
    way = _feature(moving, start.feature) - _feature(fixed, start.feature)
    return CompositeTransform((LinearTransform.make(np.eye(fixed.dimension), way),))


def _feature(volume: Volume, feature: str) -> NDArray[np.float64]:
    """The point of an image that an alignment looks at, LPS mm."""
    grid = volume.geometry
    if feature == "origins":
        return np.asarray(grid.origin, float)
    if feature == "centres":
        return np.asarray(grid.centre, float)
    weights = volume.array.astype(np.float64)
    total = weights.sum()
    if not abs(total) > 0:
        raise OptionError(f"{volume.name}: has no centre of mass, its values sum to 0; align centres ([f,m,0]) instead")
    index = []
    for axis in range(grid.dimension):
        across = tuple(k for k in range(grid.dimension) if k != grid.dimension - 1 - axis)
        profile = weights.sum(axis=across)
        index.append(float(profile @ np.arange(len(profile))) / total)
    return np.asarray(grid.index_to_physical(np.array([index]))[0], float)
