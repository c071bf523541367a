"""The picture of a registration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.atomic import replacing

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

_COLUMNS = ("fixed", "moving", "warped", "|difference| before", "|difference| after", "deformation")
_BACKGROUND = "#101216"
_TEXT = "#e6e6e6"
_LINES = ("#ffb454", "#5ac8fa")


@dataclass(frozen=True)
class _Panel:
    """One slice plane of the fixed grid.

    title : what plane it is.
    image_axes : the index axes ``(across, down)`` of the picture.
    flips : whether (across, down) run against the index.
    fixed_axis : the index axis that stands still and the index it stands at; None in 2D.
    """

    title: str
    image_axes: tuple[int, int]
    flips: tuple[bool, bool]
    fixed_axis: tuple[int, int] | None

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """``([D,] H, W)`` → the picture ``(down, across)``."""
        d = array.ndim
        if self.fixed_axis is not None:
            array = np.take(array, self.fixed_axis[1], axis=d - 1 - self.fixed_axis[0])
        across, down = self.image_axes
        if across > down:  # the array has the higher index axis first
            array = array.T
        return array[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]

    def index(self, geometry: Geometry) -> NDArray[np.float64]:
        """Index of every pixel of the picture, ``(down, across, d)``."""
        across, down = self.image_axes
        i, j = np.arange(geometry.size[across], dtype=float), np.arange(geometry.size[down], dtype=float)
        out = np.empty((len(j), len(i), geometry.dimension))
        if self.fixed_axis is not None:
            out[..., self.fixed_axis[0]] = self.fixed_axis[1]
        out[..., across] = i[:: -1 if self.flips[0] else 1]
        out[..., down] = j[:: -1 if self.flips[1] else 1, None]
        return out


def picture(result: RegistrationResult, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Draw a registration: fixed, moving, warped, |difference| before and after, and the deformation.

    In 3D every row is one of three orthogonal slices through the middle of what is bright in the fixed image;
    "moving" is the moving image on the fixed grid before any registration. Each image is scaled by its own
    percentiles before they are subtracted. The lines of the last column are a regular grid of the moving space pulled
    back on the fixed image by the transform: where they crowd, the fixed anatomy is smaller than the moving one.

    Parameters
    ----------
    result : of `itk_nir.register`.
    path : the picture to write, the suffix says in which format (.png, .jpg, .pdf, .svg). It appears whole or not.
    title : a line above the picture.

    Returns
    -------
    The path.

    Raises
    ------
    ItkNirError : matplotlib is not installed, or the folder does not exist.
    """
    from itk_nir.resample import resample
    from itk_nir.transforms.model import CompositeTransform, LinearTransform

    geometry = result.fixed.geometry
    identity = CompositeTransform((LinearTransform.identity(geometry.dimension),))
    before = resample(result.moving, identity, geometry, "linear")
    return draw(
        path,
        geometry,
        result.fixed.array,
        before,
        result.warped_array,
        result.transform_points,
        title=title or "Registration of the moving image to the fixed image",
    )


def draw(
    path: str | os.PathLike[str],
    geometry: Geometry,
    fixed: NDArray[Any],
    before: NDArray[Any],
    after: NDArray[Any],
    transform_points: Any,
    *,
    title: str,
) -> Path:
    """`picture` for arrays on one grid: `before` and `after` are the moving image on the fixed grid.

    `transform_points` maps ``(N, d)`` fixed points to moving points, LPS mm.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ItkNirError("pictures need matplotlib: pip install 'itk-nir[picture]'") from error

    panels = _panels(geometry, fixed)
    scaled = [_scaled(a) for a in (fixed, before, after)]
    columns = len(_COLUMNS)
    sizes = [
        tuple(geometry.size[a] * geometry.spacing[a] for a in panel.image_axes) for panel in panels
    ]  # (width, height) in mm
    # 2D: two rows of three; 3D: one row a slice, six columns.
    rows, across = (2, 3) if len(panels) == 1 else (len(panels), columns)
    heights = [sizes[0][1]] * 2 if len(panels) == 1 else [s[1] for s in sizes]
    width = max(s[0] for s in sizes)
    inches = (4.0 if len(panels) == 1 else 2.6) / width
    figure = Figure(
        figsize=(across * width * inches + 0.3, sum(heights) * inches + 0.9), facecolor=_BACKGROUND, dpi=130
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows, across, height_ratios=heights, left=0.01, right=0.99, bottom=0.01, top=1 - 0.75 / figure.get_figheight(),
        wspace=0.03, hspace=0.08 if len(panels) == 1 else 0.03,
    )  # fmt: skip
    figure.suptitle(title, color=_TEXT, fontsize=13, y=1 - 0.14 / figure.get_figheight(), va="top")
    spread = max(float(np.percentile(np.abs(scaled[1] - scaled[0]), 99.5)), 1e-6)
    for row, panel in enumerate(panels):
        f, b, a = (panel.cut(s) for s in scaled)
        contents = (f, b, a, np.abs(b - f), np.abs(a - f), f)
        for column, (name, content) in enumerate(zip(_COLUMNS, contents, strict=True)):
            cell = grid[divmod(column, across)] if len(panels) == 1 else grid[row, column]
            axes = figure.add_subplot(cell)
            axes.set_axis_off()
            aspect = geometry.spacing[panel.image_axes[1]] / geometry.spacing[panel.image_axes[0]]
            difference = name.startswith("|")
            axes.imshow(
                content,
                cmap="inferno" if difference else "gray",
                vmin=0,
                vmax=spread if difference else 1,
                aspect=aspect,
                interpolation="antialiased" if max(content.shape) > 300 else "bicubic",
            )
            if row == 0:
                axes.set_title(name, color=_TEXT, fontsize=11, pad=5)
            if column == 0 and panel.title:
                axes.text(0.02, 0.03, panel.title, color=_TEXT, fontsize=8, transform=axes.transAxes)
            if name == "deformation":
                _grid_lines(axes, panel, geometry, transform_points)
    return _save(figure, Path(path))


def _grid_lines(axes: Any, panel: _Panel, geometry: Geometry, transform_points: Any) -> None:
    """Lines of constant moving position, measured along the two axes of the slice."""
    index = panel.index(geometry)
    points = geometry.index_to_physical(index)
    moved = np.asarray(transform_points(points.reshape(-1, geometry.dimension)), float).reshape(points.shape)
    along = (moved - geometry.centre) @ geometry.rotation  # mm along the index axes
    step = max(geometry.size[a] * geometry.spacing[a] for a in panel.image_axes) / 28
    for axis, colour in zip(panel.image_axes, _LINES, strict=True):
        value = along[..., axis]
        levels = np.arange(np.floor(value.min() / step), np.ceil(value.max() / step) + 1) * step
        axes.contour(value, levels=levels, colors=colour, linewidths=0.6, linestyles="solid", alpha=0.85)


def _panels(geometry: Geometry, fixed: NDArray[Any]) -> list[_Panel]:
    """The slices to show: one in 2D; axial, coronal and sagittal ones as radiologists hang them in 3D."""
    if geometry.dimension == 2:
        return [_Panel("", (0, 1), (False, False), None)]
    closest = _index_axes(geometry)  # LPS axis → (index axis, runs against it)
    middle = _middle(fixed)
    panels = []
    for title, across, down, still in (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0)):
        (i, i_flip), (j, j_flip) = closest[across], closest[down]
        if down == 2:  # superior is up
            j_flip = not j_flip
        at = middle[closest[still][0]]
        panels.append(_Panel(title, (i, j), (i_flip, j_flip), (closest[still][0], at)))
    return panels


def _index_axes(geometry: Geometry) -> list[tuple[int, bool]]:
    """For each LPS axis the index axis nearest to it, and whether that runs the other way; each is used once."""
    strength = np.abs(geometry.rotation).copy()
    found: dict[int, tuple[int, bool]] = {}
    for _ in range(geometry.dimension):
        lps, index = np.unravel_index(int(np.argmax(strength)), strength.shape)
        found[int(lps)] = (int(index), bool(geometry.rotation[lps, index] < 0))
        strength[lps, :] = -1
        strength[:, index] = -1
    return [found[a] for a in range(geometry.dimension)]


def _middle(array: NDArray[Any]) -> Sequence[int]:
    """Index ``(x, y, z)`` with half of the bright voxels (above a tenth of the brightest) on either side."""
    bright = array > array.min() + 0.1 * (np.percentile(array, 99.5) - array.min())
    middle = []
    for axis in range(array.ndim):
        share = np.cumsum(bright.sum(axis=tuple(a for a in range(array.ndim) if a != axis)))
        middle.append(int(np.searchsorted(share, share[-1] / 2)))
    return middle[::-1]


def _scaled(array: NDArray[Any]) -> NDArray[np.float32]:
    """Intensities to [0, 1] between the 1st percentile and the 99.5th of what is above it."""
    values = np.asarray(array, np.float32)
    low = float(np.percentile(values[:: max(1, values.shape[0] // 64)], 1))
    above = values[values > low]
    high = float(np.percentile(above[:: max(1, above.size // 1_000_000)], 99.5)) if above.size else low + 1
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def _save(figure: Any, target: Path) -> Path:
    with replacing(target) as temporary:
        try:
            figure.savefig(temporary, facecolor=figure.get_facecolor(), format=target.suffix.lstrip(".") or "png")
        except ValueError as error:
            raise ItkNirError(f"{target}: cannot draw this format ({error})") from error
    return target
