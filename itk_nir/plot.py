"""The picture of a registration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.resample import resample
from itk_nir.transforms.model import CompositeTransform, LinearTransform

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

_COLUMNS = ("fixed", "moving", "warped", "|difference| before", "|difference| after", "deformation")
_DIFFERENCES = (3, 4)  # columns that show one
_BACKGROUND = "#101216"
_TEXT = "#e6e6e6"
_LINES = ("#ffb454", "#5ac8fa")


@dataclass(frozen=True)
class Panel:
    """One slice plane of the fixed grid.

    Attributes
    ----------
    title : str
        What plane it is.
    image_axes : tuple of int
        The index axes ``(across, down)`` of the picture.
    flips : tuple of bool
        Whether (across, down) run against the index.
    fixed_axis : tuple of int or None
        The index axis that stands still and the index it stands at; None in 2D.
    """

    title: str
    image_axes: tuple[int, int]
    flips: tuple[bool, bool]
    fixed_axis: tuple[int, int] | None

    def extent(self, geometry: Geometry) -> tuple[float, float]:
        """Width and height of the picture in mm.

        Parameters
        ----------
        geometry : Geometry
            Of the image.

        Returns
        -------
        tuple of float
            Width, height.
        """
        across, down = (geometry.size[axis] * geometry.spacing[axis] for axis in self.image_axes)
        return across, down

    def aspect(self, geometry: Geometry) -> float:
        """Height of a pixel over its width.

        Parameters
        ----------
        geometry : Geometry
            Of the image.

        Returns
        -------
        float
        """
        across, down = self.image_axes
        return geometry.spacing[down] / geometry.spacing[across]

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """The slice of an array that the panel shows.

        Parameters
        ----------
        array : ndarray
            ``([D,] H, W)``.

        Returns
        -------
        ndarray
            ``(down, across)``.
        """
        d = array.ndim
        if self.fixed_axis is not None:
            array = np.take(array, self.fixed_axis[1], axis=d - 1 - self.fixed_axis[0])
        across, down = self.image_axes
        if across > down:  # the array has the higher index axis first
            array = array.T
        return array[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]

    def index(self, geometry: Geometry) -> NDArray[np.float64]:
        """Index of every pixel of the picture.

        Parameters
        ----------
        geometry : Geometry
            Of the image.

        Returns
        -------
        ndarray
            ``(down, across, d)``, in ``(x, y[, z])`` order.
        """
        across, down = self.image_axes
        i, j = np.arange(geometry.size[across], dtype=float), np.arange(geometry.size[down], dtype=float)
        out = np.empty((len(j), len(i), geometry.dimension))
        if self.fixed_axis is not None:
            out[..., self.fixed_axis[0]] = self.fixed_axis[1]
        out[..., across] = i[:: -1 if self.flips[0] else 1]
        out[..., down] = j[:: -1 if self.flips[1] else 1, None]
        return out


@dataclass(frozen=True)
class _Layout:
    """Where the columns of the picture go: in 2D two rows of three, in 3D one row a slice.

    Attributes
    ----------
    rows, across : int
        Number of cells down and across.
    heights : list of float
        Height of every row in mm.
    width : float
        Width of a cell in mm.
    inches : float
        Inches of the picture for one mm.
    gap : float
        Space between the rows, as a share of their height.
    """

    rows: int
    across: int
    heights: list[float]
    width: float
    inches: float
    gap: float

    @classmethod
    def of(cls, panels: Sequence[Panel], geometry: Geometry) -> _Layout:
        extents = [panel.extent(geometry) for panel in panels]
        width = max(across for across, _ in extents)
        heights = [down for _, down in extents]
        if len(panels) == 1:
            return cls(2, 3, heights * 2, width, 4.0 / width, gap=0.08)
        return cls(len(panels), len(_COLUMNS), heights, width, 2.6 / width, gap=0.03)

    def cell(self, panel: int, column: int) -> tuple[int, int]:
        """Row and column of the grid for one column of one panel."""
        return divmod(panel * len(_COLUMNS) + column, self.across)


def picture(result: RegistrationResult, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Draw a registration: fixed, moving, warped, absolute difference before and after, and the deformation.

    In 3D every row is one of three orthogonal slices through the middle of what is bright in the fixed image;
    "moving" is the moving image on the fixed grid before any registration. Each image is scaled by its own
    percentiles before they are subtracted. The lines of the last column are a regular grid of the moving space pulled
    back on the fixed image by the transform: where they crowd, the fixed anatomy is smaller than the moving one.

    Parameters
    ----------
    result : RegistrationResult
        What `itk_nir.register` returned.
    path : path
        The picture to write; the suffix says in which format (.png, .jpg, .pdf, .svg). It appears whole or not at all.
    title : str, optional
        A line above the picture.

    Returns
    -------
    pathlib.Path
        The picture.

    Raises
    ------
    ItkNirError
        If matplotlib is not installed, or the folder does not exist.
    """
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
    transform_points: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    title: str,
) -> Path:
    """Draw what `picture` draws, from arrays on one grid.

    Parameters
    ----------
    path : path
        The picture to write.
    geometry : Geometry
        The grid of the three images.
    fixed, before, after : array, ``([D,] H, W)``
        The fixed image, and the moving image on its grid before and after registration.
    transform_points : callable
        Maps ``(N, d)`` fixed points to moving points, LPS mm.
    title : str
        A line above the picture.

    Returns
    -------
    pathlib.Path
        The picture.

    Raises
    ------
    ItkNirError
        If matplotlib is not installed, or the folder does not exist.
    """
    panels = slice_panels(geometry, fixed)
    layout = _Layout.of(panels, geometry)
    figure, grid = _figure(layout, title)
    images = [_scaled(array) for array in (fixed, before, after)]
    spread = max(float(np.percentile(np.abs(images[1] - images[0]), 99.5)), 1e-6)
    for row, panel in enumerate(panels):
        for column, content in enumerate(_contents(panel, images)):
            axes = figure.add_subplot(grid[layout.cell(row, column)])
            _show(axes, content, panel.aspect(geometry), spread if column in _DIFFERENCES else None)
            if row == 0:
                axes.set_title(_COLUMNS[column], color=_TEXT, fontsize=11, pad=5)
        first, deformation = figure.axes[-len(_COLUMNS)], figure.axes[-1]
        first.text(0.02, 0.03, panel.title, color=_TEXT, fontsize=8, transform=first.transAxes)
        _grid_lines(deformation, panel, geometry, transform_points)
    return _save(figure, Path(path))


def _figure(layout: _Layout, title: str) -> tuple[Any, Any]:
    """An empty figure with its title, and the grid of its cells."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ItkNirError("pictures need matplotlib: pip install 'itk-nir[picture]'") from error
    width = layout.across * layout.width * layout.inches + 0.3
    height = sum(layout.heights) * layout.inches + 0.9
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND, dpi=130)
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=_TEXT, fontsize=13, y=1 - 0.14 / height, va="top")
    grid = figure.add_gridspec(
        layout.rows, layout.across, height_ratios=layout.heights, left=0.01, right=0.99, bottom=0.01,
        top=1 - 0.75 / height, wspace=0.03, hspace=layout.gap,
    )  # fmt: skip
    return figure, grid


def _contents(panel: Panel, images: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """What the columns of a panel show; the lines of the last one are drawn over the fixed image."""
    fixed, before, after = (panel.cut(image) for image in images)
    return fixed, before, after, np.abs(before - fixed), np.abs(after - fixed), fixed


def _show(axes: Any, content: NDArray[Any], aspect: float, spread: float | None) -> None:
    """One cell: an image from 0 to 1 in grey, or a difference from 0 to `spread` in colour."""
    axes.set_axis_off()
    axes.imshow(
        content,
        cmap="gray" if spread is None else "inferno",
        vmin=0,
        vmax=1 if spread is None else spread,
        aspect=aspect,
        interpolation="antialiased" if max(content.shape) > 300 else "bicubic",
    )


def _grid_lines(
    axes: Any, panel: Panel, geometry: Geometry, transform_points: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
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


def slice_panels(geometry: Geometry, fixed: NDArray[Any]) -> list[Panel]:
    """The slices to show: one in 2D; axial, coronal and sagittal ones as radiologists hang them in 3D.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    fixed : ndarray
        ``([D,] H, W)``: the slices go through the middle of what is in it.

    Returns
    -------
    list of Panel
    """
    if geometry.dimension == 2:
        return [Panel("", (0, 1), (False, False), None)]
    closest = _index_axes(geometry)  # LPS axis → (index axis, runs against it)
    middle = _middle(fixed)
    panels = []
    for title, across, down, still in (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0)):
        (i, i_flip), (j, j_flip) = closest[across], closest[down]
        if down == 2:  # superior is up
            j_flip = not j_flip
        at = middle[closest[still][0]]
        panels.append(Panel(title, (i, j), (i_flip, j_flip), (closest[still][0], at)))
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
