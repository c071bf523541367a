from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from itk_nir.errors import ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume
from itk_nir.phantom import Phantom
from itk_nir.plot import draw, picture, slice_panels
from itk_nir.result import RegistrationResult
from itk_nir.transforms.model import DisplacementField

imread = pytest.importorskip("matplotlib.image").imread


def true_result(phantom: Phantom) -> RegistrationResult:
    """What a perfect registration of the phantom would return."""
    grid = phantom.geometry

    def volume(array: np.ndarray, name: str) -> Volume:
        return Volume(array, grid, name, "sitk", np.dtype(np.float32))

    displacement = DisplacementField(grid, phantom.displacement)
    return RegistrationResult(
        volume(phantom.fixed, "fixed image"), volume(phantom.moving, "moving image"), displacement
    )


def brightness(image: np.ndarray, row: int, column: int, rows: int, columns: int) -> float:
    """Mean of the middle of one cell of the picture, its title left out."""
    height, width = image.shape[0] / rows, image.shape[1] / columns
    cell = image[round((row + 0.3) * height) : round((row + 0.9) * height)]
    return float(cell[:, round((column + 0.1) * width) : round((column + 0.9) * width), :3].mean())


@pytest.mark.slow
def test_picture_of_two_dimensions(phantom_2d: Phantom, tmp_path: Path) -> None:
    path = picture(true_result(phantom_2d), tmp_path / "p.png", title="phantom")
    image = imread(path)
    assert image.shape[0] > 700
    assert image.shape[1] > 900
    # Second row: the difference before is bright at every edge, the one after nearly gone.
    assert brightness(image, 1, 1, 2, 3) < 0.5 * brightness(image, 1, 0, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.slow
def test_picture_of_three_dimensions(phantom_3d: Phantom, tmp_path: Path) -> None:
    image = imread(picture(true_result(phantom_3d), tmp_path / "p.png"))
    for row in range(3):
        assert brightness(image, row, 4, 3, 6) < 0.7 * brightness(image, row, 3, 3, 6)
        assert brightness(image, row, 0, 3, 6) == pytest.approx(brightness(image, row, 2, 3, 6), abs=0.03)


@pytest.mark.slow
def test_same_pair_same_picture(phantom_2d: Phantom, tmp_path: Path) -> None:
    first, second = (imread(picture(true_result(phantom_2d), tmp_path / f"{n}.png")) for n in "ab")
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "direction",
    [
        np.eye(3),
        np.diag([-1.0, -1.0, 1.0]),
        np.array([[0, 0, -1.0], [1, 0, 0], [0, -1.0, 0]]),
        np.array([[0.9, -0.436, 0], [0.436, 0.9, 0], [0, 0, 1]]) @ np.array([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]]),
    ],
    ids=["LPS", "RAS", "PIR", "oblique"],
)
def test_slices_hang_as_radiologists_hang_them(direction: np.ndarray) -> None:
    """Left of the patient on the right, anterior up in axial slices, superior up in the others."""
    u, _, v = np.linalg.svd(direction)
    grid = Geometry.make((9, 10, 11), (1.0, 1.2, 0.8), (5.0, -7.0, 3.0), u @ v)
    position = grid.grid() - grid.centre
    wanted = {"axial": (0, 1, 1), "coronal": (0, 2, -1), "sagittal": (1, 2, -1)}
    panels = slice_panels(grid, np.ones(grid.shape))
    assert [p.title for p in panels] == list(wanted)
    for panel in panels:
        across, down, sign = wanted[panel.title]
        assert np.all(np.diff(panel.cut(position[..., across]), axis=1) > 0)
        assert np.all(sign * np.diff(panel.cut(position[..., down]), axis=0) > 0)
        # The index of every pixel is where its value came from.
        index = panel.index(grid)
        expected = map_coordinates(position[..., across], np.moveaxis(index[..., ::-1], -1, 0), order=1)
        assert np.allclose(panel.cut(position[..., across]), expected)


@pytest.mark.parametrize("name", ["no_such_folder/p.png", "p.unknown"])
def test_a_picture_that_cannot_be_written_leaves_nothing(phantom_2d: Phantom, tmp_path: Path, name: str) -> None:
    f = phantom_2d.fixed
    with pytest.raises(ItkNirError, match=Path(name).name):
        draw(tmp_path / name, phantom_2d.geometry, f, f, f, lambda p: p, title="")
    assert list(tmp_path.iterdir()) == []


def test_flat_images_can_be_drawn(tmp_path: Path) -> None:
    grid = Geometry.make((20, 16))
    flat = np.full(grid.shape, 3.0, np.float32)
    assert draw(tmp_path / "p.png", grid, flat, flat, flat, lambda p: p, title="flat").is_file()
