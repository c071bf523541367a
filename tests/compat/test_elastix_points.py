"""How much corresponding points count beside the images: as in elastix, with the weights that its files have."""

from __future__ import annotations

from typing import Any

import itk
import numpy as np
import pytest
from numpy.typing import NDArray

from itk_nir.compat.elastix import registration_method
from itk_nir.compat.elastix.options import POINTS
from itk_nir.compat.elastix.parameters import understand
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.images import load_image
from itk_nir.transforms.formats.elastix import read_elastix

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore::itk_nir.errors.VerdictWarning")]

N = 48
#: Where the points say that everything belongs; the images say that nothing moves.
SHIFT = (4.0, -3.0)


def blobs() -> NDArray[np.float32]:
    """Smooth structures, 0 to 100, on an empty background."""
    y, x = np.mgrid[:N, :N] - (N - 1) / 2
    structure = 1 + 0.5 * np.sin(x / 3.1 + 0.4) * np.cos(y / 2.7) + 0.4 * np.sin((x + 2 * y) / 5.3)
    return np.asarray(100 / 1.9 * structure * np.exp(-(((x**2 + y**2) / 17.0**2) ** 3)), np.float32)


def points() -> NDArray[np.float64]:
    at = np.stack(np.meshgrid(*[np.linspace(14.0, 33.0, 4)] * 2), -1).reshape(-1, 2)
    return np.asarray(at)


def left(kind: str, metric: str, weight: float, folder: Any, *, ours: bool) -> NDArray[np.float64]:
    """The distance of each pair of points after a registration of one image to itself."""
    image, p = itk.image_from_array(blobs()), points()
    files = {}
    for side, rows in (("fixed", p), ("moving", p + SHIFT)):
        file = folder / f"{side}.txt"
        file.write_text(f"point\n{len(rows)}\n" + "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows) + "\n")
        files[f"{side}_point_set_file_name"] = str(file)
    asked = itk.ParameterObject.New()
    one = asked.GetDefaultParameterMap(kind, 2)
    one["Registration"] = ["MultiMetricMultiResolutionRegistration"]
    one["Metric"] = [metric, POINTS]
    one["Metric0Weight"], one["Metric1Weight"], one["RandomSeed"] = ["1"], [f"{weight:g}"], ["1"]
    asked.AddParameterMap(one)
    same: dict[str, Any] = {"parameter_object": asked, "number_of_threads": 1, "log_to_console": False, **files}
    if ours:
        _, found = registration_method(image, image, preset="fast", **same)
    else:
        _, found = itk.elastix_registration_method(image, image, **same)
    return np.asarray(np.linalg.norm(read_elastix(found).map(p) - p - SHIFT, axis=1))


@pytest.mark.parametrize(
    ("kind", "metric", "weight", "near"),
    [
        ("rigid", "AdvancedMattesMutualInformation", 1.0, 0.1),
        ("affine", "AdvancedNormalizedCorrelation", 0.05, 0.6),
        ("rigid", "AdvancedMeanSquares", 1.0, 0.1),
        ("rigid", "AdvancedMeanSquares", 1000.0, 0.1),
    ],
)
def test_points_are_followed_as_much_as_by_elastix(
    kind: str, metric: str, weight: float, near: float, tmp_path: Any
) -> None:
    """Points and images contradict each other, and the weights say which of them wins."""
    ours, theirs = (left(kind, metric, weight, tmp_path, ours=who).mean() for who in (True, False))
    assert ours == pytest.approx(theirs, abs=near)


def test_a_deformation_follows_its_points(tmp_path: Any) -> None:
    """Against the images, with the default weight of elastix."""
    assert left("bspline", "AdvancedMattesMutualInformation", 1.0, tmp_path, ours=True).mean() < 0.2


def test_weights_of_points_are_those_of_their_own_stage() -> None:
    """Each stage has the weight of its last map with points, in voxels and beside similarities of at most 1."""
    metric = ["AdvancedNormalizedCorrelation", POINTS]
    linear = {"Transform": ["EulerTransform"], "Metric": metric, "Metric0Weight": ["4"], "Metric1Weight": ["2"]}
    spline = {"Transform": ["BSplineTransform"], "Metric": metric[:1]}
    image = load_image(itk.image_from_array(blobs()), "image")
    told = understand(read_maps([linear, spline])).points_options([image], [image])
    assert told == {"landmark_distance": "plain", "landmark_weight": 0.0, "linear_landmark_weight": 0.5}
    squares = understand(read_maps([linear | {"Metric": ["AdvancedMeanSquares", POINTS]}]))
    told = squares.points_options([image], [image])
    assert told["linear_landmark_weight"] == pytest.approx(0.5 / float(blobs().var()), rel=1e-3)
    assert understand(read_maps([spline])).points_options([image], [image]) == {}
