"""Labels are told from intensities, whatever the type of their pixels and the value of their background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.images import load_image
from itk_nir.label_maps import is_label_map


def smoothed(a: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        for axis in range(a.ndim):
            a = (np.roll(a, 1, axis) + 2 * a + np.roll(a, -1, axis)) / 4
    return a


def regions(shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every voxel has the number of the nearest of `count` points, and the points' first coordinate."""
    points = np.random.default_rng(seed).uniform(0, min(shape), (count, len(shape)))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    nearest = np.concatenate([((g[:, None] - points) ** 2).sum(-1).argmin(1) for g in np.array_split(grid, 64)])
    return nearest.reshape(shape), points[:, 0]


def labels() -> Iterator[tuple[str, Any]]:
    y, x = np.mgrid[:96, :96]
    r = np.hypot(x - 48, y - 48)
    three = np.where(np.hypot(x - 40, y - 50) < 12, 53.0, np.where(r < 28, 17.0, 0.0))
    rng = np.random.default_rng(1)
    yield "binary, float", (r < 28).astype(np.float32)
    yield "mask of 0 and 255", (255 * (r < 28)).astype(np.uint8)
    yield "mask of -1000 and 40", np.where(r < 28, 40, -1000).astype(np.int16)
    yield "bool", r < 28
    yield "constant", np.zeros((5, 5), np.uint8)
    yield "three values, float32", three.astype(np.float32)
    yield "three values, float64", three
    yield "slope of a half", 0.5 * three
    yield "slope and intercept", (0.1 * three - 3).astype(np.float32)
    yield "background -1", np.where(three == 0, -1, three).astype(np.int16)
    many = np.kron(rng.permutation(5000)[:2000].reshape(40, 50), np.ones((6, 6)))
    for kind in (np.int32, np.float32, np.float64):
        yield f"atlas of 2000, {kind.__name__}", many.astype(kind)
    yield "ids beyond 2^53", many.astype(np.uint64) + np.uint64(2**63)
    cells, first = regions((32, 32, 32), 90)
    yield "cells in 3D", cells.astype(np.int16)
    yield "cells numbered along an axis", np.argsort(np.argsort(first))[cells].astype(np.int16)
    spine = np.zeros((200, 60), np.uint8)
    for k in range(24):
        spine[8 * k + 2 : 8 * k + 9, 20:40] = k + 1
    yield "vertebrae", spine
    yield "layers", np.where(r < 27, 0, np.clip(np.ceil((45 - r) / 3), 0, 6)).astype(np.uint8)
    thin = np.zeros((128, 128), np.uint8)
    for k in range(100):
        thin[10 + k, 20 + k // 2], thin[100 - k, 30 + k // 3] = 2, 7
    yield "thin lines", thin
    points = np.zeros((64, 64), np.uint8)
    points[tuple(rng.integers(0, 64, (2, 20)))] = np.arange(1, 21)
    yield "single points", points
    yield "coarse", np.kron(rng.integers(0, 4, (4, 4)), np.ones((3, 3))).astype(np.float32)


def intensities() -> Iterator[tuple[str, Any]]:
    y, x = np.mgrid[:128, :128]
    r = np.hypot(x - 64, y - 64)
    rng = np.random.default_rng(1)
    smooth = smoothed(rng.uniform(0, 1, (128, 128)), 200)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    yield "CT blanked by -1000", np.where(r < 40, 40 * np.sin(x * 0.7) * np.cos(y * 0.9), -1000).astype(np.int16)
    yield "CT blanked by -1024", np.where(r < 40, 40 + rng.normal(0, 10, r.shape), -1024).astype(np.int16)
    yield "slide on white", np.where(r < 40, smoothed(rng.uniform(0, 255, r.shape), 3), 255).astype(np.uint8)
    yield "smooth, 8 bits", (255 * smooth).astype(np.uint8)
    yield "smooth, 8 bits, blanked", np.where(r < 50, 255 * smooth, 0).astype(np.uint8)
    yield "smooth, 8 bits, float", np.round(255 * smooth).astype(np.float32)
    yield "smooth, 8 bits, scaled", (0.0123 * np.round(255 * smooth)).astype(np.float32)
    yield "16 grey levels", (16 * smooth).astype(np.uint8)
    yield "distance", np.maximum(0, 40 - r)
    yield "distance, whole", np.maximum(0, 40 - r).astype(np.int16)
    yield "distance, signed", (40 - r).astype(np.int16)
    yield "distance, cut off", np.clip(40 - r, 0, 10).astype(np.int16)
    steep = 1 / (1 + np.exp(-40 * (smooth - 0.5)))
    yield "probability", steep.astype(np.float32)
    yield "probability, 8 bits", np.round(255 * steep).astype(np.uint8)
    yield "probability, saturated", np.clip(8 * (smooth - 0.5) + 0.5, 0, 1)
    yield "noise", rng.integers(0, 255, (64, 64)).astype(np.uint8)
    both = smoothed(rng.normal(128, 900, r.shape), 20) + rng.normal(0, 4, r.shape)
    yield "saturated at both ends", np.clip(both, 0, 255).astype(np.uint8)
    yield "few counts", rng.poisson(0.5, (96, 96)).astype(np.uint8)
    yield "counts in a body", np.where(r < 40, rng.poisson(20, r.shape), 0).astype(np.float32)
    yield "ramp", np.repeat(np.arange(64), 4)[None].repeat(64, 0).astype(np.uint8)
    yield "not finite", np.where(r < 9, np.nan, 1.0)


@pytest.mark.parametrize(("name", "array"), list(labels()), ids=lambda v: v if isinstance(v, str) else "")
def test_label_maps(name: str, array: np.ndarray) -> None:
    assert is_label_map(array)
    # Where they begin and in which order the axes stand does not matter.
    assert is_label_map(np.ascontiguousarray(array.T))


@pytest.mark.parametrize(("name", "array"), list(intensities()), ids=lambda v: v if isinstance(v, str) else "")
def test_intensities(name: str, array: np.ndarray) -> None:
    assert not is_label_map(array)
    assert not is_label_map(np.ascontiguousarray(array.T))


@pytest.mark.parametrize("size", [16, 80])
def test_no_axis_is_special(size: int) -> None:
    """Coordinates are intensities along whichever axis they run, and slabs with gaps between them labels."""
    slabs = np.where(np.arange(size) % 4 == 3, 0, np.arange(size) // 4 + 1)
    for axis in range(3):
        shape = [size if k == axis else 1 for k in range(3)]
        for values, known in ((np.arange(size) + np.float32(0.5), False), (slabs, True)):
            array = np.ascontiguousarray(np.broadcast_to(values.reshape(shape), (size,) * 3))
            assert is_label_map(array) == known


def test_a_large_image_is_judged_by_a_part() -> None:
    """More voxels than are looked at, and a structure that the part does not meet."""
    large = np.zeros((96, 96, 96), np.float32)
    assert is_label_map(large)
    large[50, 50, 30:60] = 5
    large[20, 30, 30:60] = 7
    assert is_label_map(large)
    rng = np.random.default_rng(0)
    large[40:44, 40:44] = rng.normal(100, 20, (4, 4, 96))
    assert not is_label_map(large)


def test_real_label_maps_and_images(data: Path) -> None:
    wrong = []
    for file in sorted(data.glob("*/*.nii.gz")):
        if file.parent.name not in ("brain_oasis", "slices_2d", "spine_t1_t2", "mouse_fvb", "abdomen_ct_mr"):
            continue
        known = "seg" in file.name or "mask" in file.name
        array = load_image(file, file.name, native=True).array
        kinds = [array, array.astype(np.float32), 0.5 * array] if known else [array]
        wrong += [(file.name, a.dtype) for a in kinds if is_label_map(a) != known]
    assert wrong == []
