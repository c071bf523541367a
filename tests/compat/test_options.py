"""What the interfaces share: other programs' metrics, and options as settings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from itk_nir.compat.options import LINEAR_METRIC, mutual_information, register_arguments
from itk_nir.engine.metrics import METRICS, MutualInformation
from itk_nir.errors import OptionError
from itk_nir.settings import make_settings


def test_mutual_information_has_the_bins_that_are_asked_for() -> None:
    assert METRICS["nmi"] == MutualInformation(32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mutual_information(32, "bins") == mutual_information(np.int64(32), "bins") == "nmi"
        for bins in (4, 50, 128):
            assert mutual_information(bins, "bins") == MutualInformation(bins)


@pytest.mark.parametrize(("bins", "taken"), [(1, 4), (3, 4), (129, 128), (4096, 128)])
def test_bins_that_cannot_be_had_become_the_nearest_with_a_warning(bins: int, taken: int) -> None:
    message = f"aff_sampling: there can be 4 to 128 bins; {taken} are taken, not {bins}"
    with pytest.warns(UserWarning, match=message) as seen:
        assert mutual_information(bins, "aff_sampling") == MutualInformation(taken)
    assert [w.filename for w in seen] == [__file__]


@pytest.mark.parametrize("bins", [0, -5, True, 32.0, "32", None])
def test_bins_are_a_whole_number(bins: Any) -> None:
    with pytest.raises(OptionError, match="aff_sampling is a whole number of bins, at least 1, got"):
        mutual_information(bins, "aff_sampling")


def test_a_metric_is_an_option_like_any_other() -> None:
    metric = MutualInformation(50)
    arguments = register_arguments("fast", {"metric": metric, "seed": 3, "radius": 2})
    assert arguments == {"preset": make_settings("fast", metric=metric, radius=2), "seed": 3}
    settings = register_arguments("fast", {"metric": "ncc", LINEAR_METRIC: "mse"})["preset"]
    assert settings.deformable.metric == "ncc"
    assert settings.linear.linear_metric == "mse"
