"""`check`: everything that can be told of a registration before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from itk_nir.checks import SAMPLES, samples_inside
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.expectation import (
    expected_card_memory,
    expected_memory,
    expected_seconds,
    free_card_memory,
    free_memory,
    what_would_fit,
)
from itk_nir.findings import SEVERITIES, Finding, error, note, warning
from itk_nir.images import Volume, load_channels, load_image
from itk_nir.loading import load_transform
from itk_nir.problem import Problem
from itk_nir.settings import ARGUMENTS, Settings, make_settings
from itk_nir.transforms.model import CompositeTransform

if TYPE_CHECKING:
    from itk_nir.settings import PresetName

#: What is an image by itself among the arguments, and what it is called.
_IMAGES = (
    "fixed_mask", "moving_mask", "fixed_lesion", "moving_lesion", "rigid_regions", "volume_regions", "fixed_labels",
    "moving_labels",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Check:
    """What `itk_nir.check` found.

    Parameters
    ----------
    findings : tuple of Finding
        Errors first, then warnings, then notes.

    Examples
    --------
    >>> import itk_nir
    >>> found = itk_nir.check("no such image.nii.gz", "nor this.nii.gz")
    >>> found.ok, len(found.errors)
    (False, 2)
    """

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What would stop the registration."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What should be looked at."""
        return tuple(f for f in self.findings if f.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether `itk_nir.register` would run with these arguments."""
        return not self.errors

    def __str__(self) -> str:
        return "\n".join(f"{f.severity}: {f}" for f in self.findings)


def check(
    fixed: Any,
    moving: Any,
    *,
    preset: PresetName | Settings = "default",
    linear: Literal["affine", "similarity", "rigid", "translation", "none"] = "affine",
    initial_transform: Any = None,
    threads: int | None = None,
    **given: Any,
) -> Check:
    """Tell, before any long work, what is odd about a registration and what it will take.

    Everything is read and checked as `itk_nir.register` does, and as far as it can be done one by one, so that several
    errors are told at once.

    Parameters
    ----------
    fixed, moving : image, path or list of them
        As of `itk_nir.register`.
    preset : str or Settings
        As of `itk_nir.register`.
    linear : str
        As of `itk_nir.register`.
    initial_transform : transform, optional
        As of `itk_nir.register`.
    threads : int, optional
        As of `itk_nir.register`; the seconds are for as many.
    **given
        Any other argument of `itk_nir.register` but `callback`: masks, landmarks, options, ...

    Returns
    -------
    Check
        Findings: what is odd about each input (`error` where the registration would refuse it), how far the images
        overlap (mm and share), whether their axes have one handedness, the memory that is expected and free, and how
        long it should take.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> itk_nir.check(fixed, moving).ok
    True
    """
    arguments = set(signature(Problem.prepare).parameters) & set(given)
    options = {k: v for k, v in given.items() if k not in ARGUMENTS}
    found: list[Finding] = []

    def tried(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except (InputError, OptionError) as refused:
            text, _, remedy = one_line(refused).rpartition("; ")
            found.append(error(text or remedy, remedy if text else ""))
            return None

    settings = tried(lambda: make_settings(preset, **options))
    how = {name: given[name] for name in ("nan", "resample_shear") if name in given}
    a = tried(lambda: load_channels(fixed, "fixed image", **how))
    b = tried(lambda: load_channels(moving, "moving image", **how))
    images = {name: given[name] for name in _IMAGES if given.get(name) is not None}
    for name, image in images.items():
        images[name] = tried(partial(load_image, image, name.replace("_", " "), native=True, **how))
    start = None
    if initial_transform is not None and a is not None:
        start = tried(lambda: load_transform(initial_transform, a[0].geometry, role="initial transform"))
    if found or settings is None or a is None or b is None:
        return Check(tuple(found))
    given = {k: given[k] for k in arguments} | images
    problem = tried(
        lambda: Problem.prepare(
            list(a), list(b), settings, linear=linear, initial_transform=start, threads=threads, **given
        )
    )
    if problem is not None:
        found += problem.findings
        found += [warning(doubt) for doubt in problem.doubts]
        found.append(_overlap(a[0], b[0], problem.start))
        found += _handedness(a[0], b[0])
        found += _cost(problem)
    return Check(tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity))))


def _overlap(fixed: Volume, moving: Volume, start: CompositeTransform | None) -> Finding:
    """How much of the fixed image the moving one covers as they lie, or after the initial transform."""
    grid = fixed.geometry
    index, inside = samples_inside(grid, moving.geometry, start)
    extent = np.zeros(grid.dimension)
    if inside.any():
        # A sample stands for what lies around it.
        step = (np.asarray(grid.size) - 1) / np.maximum(np.minimum(grid.size, SAMPLES) - 1, 1)
        extent = np.minimum(np.ptp(index[inside], axis=0) + np.maximum(step, 1), grid.size) * grid.spacing
    share, where = float(inside.mean()), "as they lie" if start is None else "after the initial transform"
    along = " x ".join(f"{e:.4g}" for e in extent)
    text = f"{moving.name}: covers {share:.0%} of {fixed.name} {where}, about {along} mm along its axes"
    return note(text, share=share, extent=tuple(float(e) for e in extent))


def _handedness(fixed: Volume, moving: Volume) -> list[Finding]:
    """A note where the axes of one grid are a mirror image of the other's: headers are believed."""
    signs = {v.name: "right" if np.linalg.det(v.geometry.rotation) > 0 else "left" for v in (fixed, moving)}
    if len(set(signs.values())) == 1:
        return []
    told = " and ".join(f"{name} has {hand}-handed axes" for name, hand in signs.items())
    return [note(told, "the headers say how the images lie, and are believed", **signs)]


def _cost(problem: Problem) -> list[Finding]:
    """The memory and the time that a registration should take; a warning where there is too little memory."""
    grids = problem.fixed.geometry, problem.moving.geometry
    channels, where = 1 + len(problem.more), problem.device
    on_card = where.type == "cuda"
    found, free = [], free_card_memory(where) if on_card else free_memory()
    if on_card:
        wanted = expected_card_memory(*grids, problem.settings, where, channels)
    else:
        wanted = expected_memory(*grids, problem.settings, channels)
    if wanted is not None:
        told = f"about {wanted / 2**20:.0f} MB of {'the card' if on_card else 'memory'}"
        if free is not None and wanted > free:
            text = f"the registration needs {told}, and {free / 2**20:.0f} MB are free"
            remedy = what_would_fit(*grids, problem.settings, where, channels)
            found.append(warning(text, remedy, needed=wanted, free=free))
        else:
            left = "" if free is None else f" of {free / 2**20:.0f} MB that are free"
            found.append(note(f"the registration should need {told}{left}", needed=wanted, free=free))
    seconds = None if on_card else expected_seconds(*grids, problem.settings, problem.threads)
    if seconds is not None:
        text = f"the registration should take about {seconds:.0f} s on {problem.threads} thread(s)"
        found.append(note(text, seconds=seconds, threads=problem.threads))
    return found
