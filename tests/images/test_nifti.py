"""NIfTI voxels, read by the package itself: the values, types and grids are those of SimpleITK, whatever the header."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import itk_nir.images.nifti as nifti
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import as_float32, load_image, save_image

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


@dataclass(frozen=True)
class Case:
    """A NIfTI-1 file, all that decides how its voxels are read."""

    code: int = 4
    order: str = "<"
    shape: tuple[int, ...] = (5, 4, 3)
    slope: float = 1.0
    intercept: float = 0.0
    offset: int = 352
    pair: bool = False
    packed: bool = False
    codes: tuple[int, int] = (1, 1)

    @property
    def values(self) -> np.ndarray:
        dtype = np.dtype(self.order + TYPES[self.code])
        rng = np.random.default_rng(self.code)
        if dtype.kind == "f":
            return (rng.normal(size=self.shape[::-1]) * 1000).astype(dtype)
        ends = np.iinfo(dtype)
        native = dtype.newbyteorder("=")
        return rng.integers(ends.min, ends.max, self.shape[::-1], native, endpoint=True).astype(dtype)

    def write(self, folder: Path, values: np.ndarray | None = None) -> Path:
        data = self.values if values is None else values
        head = bytearray(348)
        struct.pack_into(self.order + "i", head, 0, 348)
        struct.pack_into(self.order + "8h", head, 40, len(self.shape), *self.shape, *[1] * (7 - len(self.shape)))
        struct.pack_into(self.order + "2h", head, 70, self.code, data.itemsize * 8)
        struct.pack_into(self.order + "8f", head, 76, 1, 0.5, 1.5, 2.5, 1, 1, 1, 1)
        struct.pack_into(self.order + "3f", head, 108, self.offset, self.slope, self.intercept)
        head[123] = 2  # millimetres
        struct.pack_into(self.order + "2h", head, 252, *self.codes)
        struct.pack_into(self.order + "6f", head, 256, 0, 0, 0, 10, -20, 30)
        struct.pack_into(self.order + "12f", head, 280, 0.5, 0, 0, 10, 0, 1.5, 0, -20, 0, 0, 2.5, 30)
        head[344:348] = b"ni1\0" if self.pair else b"n+1\0"
        if self.pair:
            (folder / "f.hdr").write_bytes(head)
            body = bytes(self.offset) + data.tobytes()
            name = "f.img.gz" if self.packed else "f.img"
        else:
            body = bytes(head) + bytes(max(self.offset - 348, 0)) + data.tobytes()
            name = "f.nii.gz" if self.packed else "f.nii"
        (folder / name).write_bytes(gzip.compress(body, 1) if self.packed else body)
        return folder / ("f.hdr" if self.pair and not self.packed else name)


def by_simpleitk(reader: Any) -> None:
    """In the place of SimpleITK's reader of voxels."""
    raise AssertionError(f"{reader.GetFileName()} was read by SimpleITK")


def compare(path: Path) -> None:
    """What SimpleITK reads, to the last bit, without it."""
    wanted = sitk.ReadImage(str(path))
    array = sitk.GetArrayViewFromImage(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sitk.ImageFileReader, "Execute", by_simpleitk)
        volume = load_image(path, "image", native=True)
        floats = load_image(path, "image")
    assert volume.array.dtype == array.dtype == volume.pixel_type
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry == Geometry.make(
        wanted.GetSize(), wanted.GetSpacing(), wanted.GetOrigin(), wanted.GetDirection()
    )
    assert volume.array.flags.c_contiguous
    assert volume.array.flags.writeable
    assert floats.array.dtype == np.float32
    held, scale, offset = as_float32(array)
    np.testing.assert_array_equal(floats.array, held)
    assert (floats.scale, floats.offset) == (scale, offset)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    code=st.sampled_from(sorted(TYPES)),
    order=st.sampled_from("<>"),
    shape=st.sampled_from([(5, 4), (5, 4, 3), (5, 4, 1), (1, 4, 3), (7, 3, 2, 1), (7, 3, 2, 1, 1)]),
    slope=st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.3, 1e-9, 1e-15, 1e-16, 1e-40, np.nan, np.inf])
    | st.floats(-9, 9, width=32),
    intercept=st.sampled_from([0.0, 3.0, 1e-15, 1e-16, np.nan, -np.inf]) | st.floats(-99, 99, width=32),
    offset=st.sampled_from([0, 348, 352, 416]),
    pair=st.booleans(),
    packed=st.booleans(),
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (0, 0), (2, 2)]),
)
def test_voxels_are_those_of_simpleitk(tmp_path_factory: pytest.TempPathFactory, **fields: Any) -> None:
    if fields["slope"] == 0 or not np.isfinite(fields["slope"]):
        fields["intercept"] = 0.0  # ITK adds it, see below
    compare(Case(**fields).write(tmp_path_factory.mktemp("nifti")))


@pytest.mark.parametrize("sign", [-1, 1])
def test_slope_at_the_end_of_what_counts_as_none(sign: int, tmp_path: Path) -> None:
    compare(Case(16, "<", slope=sign * float(np.finfo(np.float64).eps), intercept=3.0).write(tmp_path))


@pytest.mark.parametrize("slope", [0.0, -0.0, np.nan, np.inf])
@pytest.mark.parametrize("code", [4, 16])
def test_without_a_slope_nothing_is_added(code: int, slope: float, tmp_path: Path) -> None:
    """The standard's and nibabel's reading: a slope of 0 says that the values are as they are stored."""
    case = Case(code, slope=slope, intercept=5.0)
    volume = load_image(case.write(tmp_path), "image", native=True)
    assert volume.array.dtype == case.values.dtype
    np.testing.assert_array_equal(volume.array, case.values)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", TYPES)
def test_every_type_in_either_byte_order(code: int, order: str, tmp_path: Path) -> None:
    compare(Case(code, order, packed=True).write(tmp_path))
    compare(Case(code, order, slope=0.3, intercept=-1.7, pair=True).write(tmp_path))


def test_voxels_of_nifti_2(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    nibabel.save(nibabel.Nifti2Image(Case().values.T, np.diag([2.0, 3, 4, 1])), tmp_path / "f.nii.gz")
    found = nifti.read_voxels(tmp_path / "f.nii.gz", "image")
    assert found is not None
    np.testing.assert_array_equal(found[1], Case().values)


def test_a_packed_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Case(packed=True).write(tmp_path)
    calls = []
    unpack = nifti.zlib.decompressobj
    monkeypatch.setattr(nifti.zlib, "decompressobj", lambda **options: calls.append(1) or unpack(**options))
    load_image(path, "image")
    assert len(calls) == 1


@pytest.mark.parametrize("how", ["no trailer", "half a trailer", "a wrong checksum", "one voxel less", "garbage after"])
def test_every_end_of_a_packed_file_is_looked_at(how: str, tmp_path: Path) -> None:
    path = Case(shape=(100, 80, 60), packed=True).write(tmp_path)
    content = bytearray(path.read_bytes())
    if how == "one voxel less":
        content = bytearray(gzip.compress(gzip.decompress(bytes(content))[:-2]))
    elif how == "a wrong checksum":
        content[-6] ^= 1
    elif how == "garbage after":
        content += b"garbage"
    else:
        content = content[: -8 if how == "no trailer" else -3]
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated") as error:
        load_image(path, "image")
    assert "of 960000 voxel bytes" in str(error.value)


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_members_and_zeros_at_the_end(pieces: int, tmp_path: Path) -> None:
    case = Case(shape=(60, 50, 40), packed=True)
    path = case.write(tmp_path)
    body = gzip.decompress(path.read_bytes())
    step = -(-len(body) // pieces)
    members = [gzip.compress(body[at : at + step]) for at in range(0, len(body), step)]
    path.write_bytes(b"".join(members) + bytes(100_000))
    np.testing.assert_array_equal(load_image(path, "image", native=True).array, case.values)


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("stored", ["<f4", ">f4", "<f8", ">f8"])
def test_components_are_laid_side_by_side(stored: str, step: int) -> None:
    """Whatever the pieces are that they come in."""
    values = np.random.default_rng(0).random((3, 50)).astype(stored)
    side = nifti.SideBySide(50, 3, values.dtype, np.dtype(np.float32))
    data = memoryview(values.tobytes())
    for at in range(0, len(data), step):
        side.put(data[at : at + step])
    np.testing.assert_array_equal(side.array, values.T.astype(np.float32))


@pytest.mark.parametrize("packed", [True, False])
def test_values_that_pack_well_and_headers_that_want_too_much(packed: bool, tmp_path: Path) -> None:
    flat = Case(shape=(300, 200, 100), packed=packed)
    path = flat.write(tmp_path, np.zeros(flat.shape[::-1], np.int16))
    assert not load_image(path, "image").array.any()
    huge = Case(shape=(32000, 32000, 32000), packed=packed)
    path = huge.write(tmp_path, np.zeros(10, np.int16))
    with pytest.raises(InputError, match="truncated, 20 of 65536000000000 voxel bytes"):
        load_image(path, "image")


@pytest.mark.parametrize("code", [16, 64])
@pytest.mark.parametrize("order", "<>")
def test_values_that_are_not_finite_are_counted(code: int, order: str, tmp_path: Path) -> None:
    case = Case(code, order, packed=True)
    values = case.values
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    with pytest.raises(InputError, match="has 3 NaN or infinite voxels"):
        load_image(case.write(tmp_path, values), "image")
    with pytest.raises(InputError, match="NaN or infinite voxels"):
        load_image(
            Case(16, order, slope=3e38, intercept=1.0).write(tmp_path, np.full((3, 4, 5), 9, order + "f4")), "image"
        )


def test_a_file_beside_it_is_not_taken_for_it(tmp_path: Path) -> None:
    """ITK 5.4 takes the voxels of ``f.nii`` for those of ``f.nii.gz`` where both are there."""
    other = Case(code=16).write(tmp_path)
    case = Case(code=4, packed=True)
    path = case.write(tmp_path)
    assert (other.name, path.name) == ("f.nii", "f.nii.gz")
    np.testing.assert_array_equal(load_image(path, "image", native=True).array, case.values)


def test_a_field_of_vectors_is_no_image(tmp_path: Path) -> None:
    grid = Geometry.make([6, 5, 4])
    save_image(np.zeros((*grid.shape, 3), np.float32), grid, tmp_path / "v.nii.gz")
    with pytest.raises(InputError, match="3 values a pixel"):
        load_image(tmp_path / "v.nii.gz", "image")
