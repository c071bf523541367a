"""Pixel values as float32 and back: nothing that float32 could hold is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from itk_nir.errors import OptionError
from itk_nir.images import as_float32, as_pixels, checked_fill, pixel_type_named

ORDINARY = ("b1", "u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_images_are_cast(kind: str) -> None:
    array = np.array([[0, 1, 100], [17, 3, 2]]).astype(kind)
    held, scale, offset = as_float32(array)
    np.testing.assert_array_equal(held, array.astype(np.float32))
    assert (scale, offset) == (1.0, 0)
    back = as_pixels(held, array.dtype)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    "array",
    [
        np.array([5e-324, 1e-320]),
        np.array([1e300, -7e299, 0]),
        np.array([1.7e308, -1.7e308]),
        np.array([1e30, 2e30], np.float32),
        np.array([1e-42, 3e-40], np.float32),
        np.array([2**63 + 5, 2**63 + 9], np.uint64),
        np.array([-(2**63), -(2**63) + 7]),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([-(2**63), 2**63 - 1]),
        np.array([2**31 - 5, 2**31 - 1], np.int32),
        1e6 + np.linspace(0, 0.5, 7),
    ],
    ids=str,
)
def test_what_float32_does_not_hold(array: np.ndarray) -> None:
    held, scale, offset = as_float32(array)
    assert np.isfinite(held).all()
    assert np.ptp(held) > 0
    back = as_pixels(held, array.dtype, scale, offset)
    assert back.dtype == array.dtype
    reach = float(array.max()) / 2 - float(array.min()) / 2
    error = np.abs(back.astype(np.longdouble) - array.astype(np.longdouble)).max()
    assert error <= 2e-7 * reach + (5e-324 if array.dtype == np.float64 else 0)


def test_one_voxel_does_not_hide_the_others() -> None:
    for kind, far in ((np.float64, 1e300), (np.float32, 3e38)):
        array = np.linspace(1, 2, 1000).astype(kind)
        array[7] = far
        held, scale, offset = as_float32(array)
        assert (scale, offset) == (1.0, 0)
        np.testing.assert_array_equal(np.delete(held, 7), np.delete(array, 7).astype(np.float32))


def test_whole_numbers_are_rounded_and_clipped() -> None:
    values = np.array([-1e9, -0.6, 0.4, 1.5, 2.5, 254.7, 1e9], np.float32)
    assert as_pixels(values, np.dtype(np.uint8)).tolist() == [0, 0, 0, 2, 2, 255, 255]
    assert as_pixels(values, np.dtype(np.int8)).tolist() == [-128, -1, 0, 2, 2, 127, 127]
    top = as_pixels(np.array([1e30], np.float32), np.dtype(np.uint64))
    assert top.tolist() == [2**64 - 1]


@pytest.mark.parametrize(
    ("fill", "kind"),
    [(-1, "u1"), (256, "u1"), (np.nan, "i2"), (0.5, "i4"), (np.inf, "u8"), (2**64, "u8"), (1e39, "f4"), ("a", "f4")],
)
def test_fill_values_that_pixels_cannot_hold(fill: object, kind: str) -> None:
    with pytest.raises(OptionError, match="fill"):
        checked_fill(fill, np.dtype(kind))


@pytest.mark.parametrize("fill", [True, False, np.bool_(True)])
def test_a_truth_value_is_no_fill_value(fill: Any) -> None:
    with pytest.raises(OptionError, match="fill is a number, got"):
        checked_fill(fill, np.dtype(np.float32))


def test_fill_values_and_types() -> None:
    assert checked_fill(255.0, np.dtype(np.uint8)) == 255
    assert checked_fill(2**60 + 1, np.dtype(np.int64)) == 2**60 + 1
    assert np.isnan(checked_fill(np.nan, np.dtype(np.float32)))
    assert pixel_type_named("short") == pixel_type_named(np.int16) == np.int16
    for wrong in ("half", "complex64", np.complex64, object(), None):
        with pytest.raises(OptionError, match="pixel_type is one of"):
            pixel_type_named(wrong)
