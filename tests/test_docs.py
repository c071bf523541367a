"""Pages of the documentation that no other file runs, and what README promises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from itk_nir.engine.metrics import METRICS
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom
from itk_nir.settings import make_settings
from tests.docs_blocks import DOCS, run_blocks

ROOT = DOCS.parent


@pytest.mark.slow
def test_a_metric_of_ones_own(phantom_2d: Phantom) -> None:
    """Another contrast, its sign turned: normalised gradient fields do not mind."""
    grid = phantom_2d.geometry
    names = {"fixed": to_sitk(phantom_2d.fixed, grid), "moving": to_sitk(200 - phantom_2d.moving, grid)}
    try:
        result = run_blocks("own_metric.md", names)["result"]
        assert make_settings("fast", metric="ngf").deformable.metric == "ngf"
    finally:
        METRICS.pop("ngf", None)
    brain = phantom_2d.fixed_labels > 0
    points, truth = grid.grid()[brain], phantom_2d.displacement[brain]
    error = np.linalg.norm(result.transform_points(points) - points - truth, axis=1).mean()
    assert error < 0.25 * np.linalg.norm(truth, axis=1).mean()
    assert result.report.similarity > result.report.similarity_start


@pytest.mark.slow
@pytest.mark.parametrize("page", ["choosing_a_metric.md", "verdicts.md"])
def test_pages_on_metrics_and_verdicts(phantom_2d: Phantom, page: str) -> None:
    grid = phantom_2d.geometry
    names = {"fixed": to_sitk(phantom_2d.fixed, grid), "moving": to_sitk(phantom_2d.moving, grid)}
    names |= {f"{name}_t2": 255.0 - image for name, image in names.items()}
    report = run_blocks(page, names)["result"].report
    assert report.verdict.grade == "good"


def test_the_page_on_inputs() -> None:
    assert isinstance(run_blocks("inputs.md")["result"].warped, np.ndarray)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_modules_of_the_architecture_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tables = text.split("| engine |")
    for table, folder in ((tables[0], ROOT / "itk_nir"), (tables[1], ROOT / "itk_nir" / "engine")):
        rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
        named = [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
        assert len(named) > 8
        assert [name for name in named if not (folder / name).exists()] == []
