"""Vectors of NIfTI files, read by the package itself: those of SimpleITK."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.transforms.formats.field_image import read_field, write_vectors
from tests.grids import turned


def written(folder: Path, d: int, dtype: str, order: str, intent: int, slope: float = 1.0) -> Path:
    """A field in a file, of either byte order: made by SimpleITK, then turned round by hand."""
    grid = Geometry.make([7, 6, 5][:d], [1.1, 1.7, 2.3][:d], [-40, 25, 90][:d], turned(d, 0.4, 0.3))
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, d)).astype(dtype)
    save_image(vectors, grid, folder / "made.nii", compression=0)
    raw = (folder / "made.nii").read_bytes()
    head = bytearray(raw[:348])
    struct.pack_into("<h", head, 68, intent)
    struct.pack_into("<f", head, 112, slope)
    body = np.frombuffer(raw[352:], "<" + np.dtype(dtype).str[1:])
    if order == ">":
        for form, at, count in (
            ("i", 0, 1), ("i", 32, 1), ("h", 36, 1), ("h", 40, 8), ("f", 56, 3), ("h", 68, 4), ("f", 76, 11),
            ("h", 120, 1), ("f", 124, 4), ("i", 140, 2), ("h", 252, 2), ("f", 256, 18),
        ):  # fmt: skip
            struct.pack_into(f">{count}{form}", head, at, *struct.unpack_from(f"<{count}{form}", head, at))
        body = body.astype(body.dtype.newbyteorder(">"))
    target = folder / "f.nii.gz"
    target.write_bytes(gzip.compress(bytes(head) + raw[348:352] + body.tobytes()))
    return target


@pytest.mark.parametrize(("d", "intent"), [(2, 1007), (3, 1007), (3, 1006)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_vectors_are_those_of_simpleitk(
    d: int, intent: int, dtype: str, order: str, slope: float, tmp_path: Path
) -> None:
    path = written(tmp_path, d, dtype, order, intent, slope)
    wanted = sitk.ReadImage(str(path))
    field = read_field(path, "field")
    np.testing.assert_array_equal(field.vectors, sitk.GetArrayFromImage(wanted).astype(np.float32))
    assert field.geometry == Geometry.make(
        wanted.GetSize(), wanted.GetSpacing(), wanted.GetOrigin(), wanted.GetDirection()
    )


@pytest.mark.parametrize("name", ["f.nii", "f.nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ras_vectors_come_back(name: str, dtype: type, tmp_path: Path) -> None:
    grid = Geometry.make([7, 6, 5], [1.1, 1.7, 2.3])
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(dtype)
    write_vectors(vectors, grid, tmp_path / name, ras=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read_field(tmp_path / name, "field").vectors, vectors.astype(np.float32))


def test_a_field_that_is_cut_or_not_finite_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 3, "float32", "<", 1007)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        read_field(path, "field")
    grid = Geometry.make([4, 4])
    save_image(np.full((4, 4, 2), np.nan, np.float32), grid, tmp_path / "n.nii.gz")
    with pytest.raises(InputError, match="NaN or infinite"):
        read_field(tmp_path / "n.nii.gz", "field")
