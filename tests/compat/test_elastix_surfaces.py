"""Surfaces of what has no counterpart in the moving image (MissingStructurePenalty, ``-fmeshA1``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itk_nir.compat.elastix.parameters import understand
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.compat.elastix.run import run
from itk_nir.compat.elastix.surfaces import within_surfaces
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, save_image
from itk_nir.programs import elastix
from itk_nir.transforms.formats.elastix import as_text, read_elastix
from tests.grids import turned

GRID = Geometry.make((24, 22, 20), (1.0, 1.2, 1.1), (5.0, -8.0, 3.0), turned(3, 0.3, 0.1))
METRICS = ["AdvancedNormalizedCorrelation", "MissingStructurePenalty", "PolydataDummyPenalty"]
RIGID = {"Transform": ["EulerTransform"], "Metric": METRICS, "Metric1Weight": ["1e-7"], "Metric2Weight": ["0.0"]}


def octahedron(file: Path, radius: float, middle: np.ndarray) -> str:
    """A closed surface: all points whose distances from the middle along the three axes add up to the radius."""
    points = np.concatenate([np.eye(3), -np.eye(3)]) * radius + middle
    faces = [(x, y, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    rows = [" ".join(f"{v:.9f}" for v in p) for p in points] + [f"POLYGONS 8 {4 * len(faces)}"]
    rows += [f"3 {a} {b} {c}" for a, b, c in faces]
    head = "# vtk DataFile Version 3.0\nsurface\nASCII\nDATASET POLYDATA\nPOINTS 6 float"
    file.write_text("\n".join([head, *rows, ""]))
    return str(file)


def scene() -> np.ndarray:
    x, y, z = np.moveaxis(GRID.grid() - GRID.centre, -1, 0)
    body = np.exp(-(((x**2 + 1.2 * y**2 + z**2) / 9.0**2) ** 2))
    return np.asarray((60 + 25 * np.sin(x / 2.0 + 1) + 25 * np.cos(y / 1.9 + z / 3.0)) * body, np.float32)


def test_voxels_within_a_surface_are_those_that_geometry_says(tmp_path: Path) -> None:
    """On turned axes, with corners of the surface on voxels' centres; two surfaces are one region."""
    save_image(scene(), GRID, tmp_path / "f.nii.gz")
    fixed = load_image(tmp_path / "f.nii.gz", "fixed image")
    middles = GRID.index_to_physical(np.array([[8.0, 9.0, 9.0], [16.0, 12.0, 10.0]]))
    files = [octahedron(tmp_path / f"{n}.vtk", 4.7, middle) for n, middle in enumerate(middles)]
    apart = np.abs(GRID.grid()[..., None, :] - middles).sum(-1).min(-1)
    inside = within_surfaces(files, fixed).array
    clear = np.abs(apart - 4.7) > 1e-3
    assert (inside > 0)[clear].tolist() == (apart < 4.7)[clear].tolist()
    with pytest.raises(InputError, match=r"surface .*far.vtk: encloses no voxel"):
        within_surfaces([octahedron(tmp_path / "far.vtk", 3.0, np.full(3, 900.0))], fixed)
    (tmp_path / "bad.vtk").write_text("no surface")
    with pytest.raises(InputError, match=r"surface .*bad.vtk: cannot be read"):
        within_surfaces([str(tmp_path / "bad.vtk")], fixed)


def test_surfaces_belong_to_the_metric_of_their_number() -> None:
    request = understand(read_maps([RIGID]))
    assert (request.missing, request.surfaces) == ((1,), (2,))
    assert request.linear_metric == "ncc"
    assert understand(read_maps([RIGID | {"Metric1Use": ["false"]}])).missing == ()
    image = scene(), GRID
    with pytest.raises(OptionError, match="metric 0 is neither MissingStructurePenalty nor PolydataDummyPenalty"):
        run([image], [image], read_maps([RIGID]), surfaces={0: ["a.vtk"]})
    with pytest.raises(OptionError, match=r"give either its surfaces \(-fmeshA1 FILE\).* got neither"):
        run([image], [image], read_maps([RIGID]))
    with pytest.raises(InputError, match=r"surface a.vtk: no such file"):
        run([image], [image], read_maps([RIGID]), surfaces={1: ["a.vtk"], 2: ["b.vtk"]})


def test_what_lies_within_a_surface_is_not_looked_at(tmp_path: Path) -> None:
    """An applicator that is in the fixed image alone, and that lies where nothing else holds the map."""
    fixed, out = scene(), tmp_path / "out"
    middle = GRID.centre + np.array([2.0, 1.0, -1.0])
    surface = octahedron(tmp_path / "a.vtk", 6.0, middle)
    fixed[np.abs(GRID.grid() - middle).sum(-1) < 5.5] = 400
    save_image(fixed, GRID, tmp_path / "f.nii.gz")
    save_image(scene(), GRID, tmp_path / "m.nii.gz")
    (tmp_path / "p.txt").write_text(as_text(read_maps([RIGID])[0]))
    out.mkdir()
    words = ["-f", str(tmp_path / "f.nii.gz"), "-m", str(tmp_path / "m.nii.gz"), "-p", str(tmp_path / "p.txt")]
    assert elastix.main([*words, "-out", str(out), "-threads", "1", "-fmeshA1", surface]) == 0
    p = GRID.grid().reshape(-1, 3)
    moved = read_elastix(str(out / "TransformParameters.0.txt")).map(p) - p
    assert np.linalg.norm(moved, axis=1).max() < 0.1
    assert "MissingStructurePenalty is approximated by what lies within" in (out / "elastix.log").read_text()
