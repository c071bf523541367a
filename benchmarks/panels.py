"""A row of images beside each other, as the pictures of the documents have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def save_panels(panels: Sequence[tuple[str, np.ndarray, float | None]], path: Path) -> None:
    """Draw four panels, (title, image, largest error): an error in mm, or a plain image where there is none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown, most) in zip(figure.subplots(1, 4), panels, strict=True):
        drawn = axes.imshow(shown, cmap="gray" if most is None else "magma", vmin=0, vmax=most)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.colorbar(drawn, ax=figure.axes, shrink=0.7, label="mm")
    figure.savefig(path, dpi=110)
