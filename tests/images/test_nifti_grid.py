"""Where NIfTI images lie: as nibabel has it, whatever the header says, and told where something is odd about it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from itk_nir.errors import InputError
from itk_nir.findings import texts
from itk_nir.images import Volume, load_image

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (9, 8, 7)


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (i, j) = np.eye(3), [k for k in range(3) if k != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = out @ turn
    return out


def corners_off(volume: Volume, affine: np.ndarray) -> float:
    """How far the corners are from those of a RAS matrix, in voxels."""
    ends = [(0, n - 1) for n in volume.geometry.size]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    points = np.zeros((len(index), 4))
    points[:, : len(ends)], points[:, 3] = index, 1
    d = len(ends)
    there = (points @ (RAS @ affine).T)[:, :d]
    return float(np.abs(volume.geometry.physical_to_index(there) - index).max())


def write(folder: Path, version: int, order: str, packed: bool, edits: dict[str, Any]) -> Path:
    """A file by nibabel, its header's fields set one by one."""
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    header = kind.header_class(endianness=order)
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.float32)
    for name, value in edits.items():
        header[name] = value
    path = folder / ("f.nii.gz" if packed else "f.nii")
    offset = 352 if version == 1 else 544
    header["vox_offset"] = offset
    body = bytes(header.binaryblock).ljust(offset, b"\0")
    body += np.arange(np.prod(SHAPE), dtype=np.dtype(np.float32).newbyteorder(order)).tobytes()
    path.write_bytes(gzip.compress(body, 1) if packed else body)
    return path


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.sampled_from([1, 2]),
    order=st.sampled_from("<>"),
    packed=st.booleans(),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    other=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9)] * 3),
    pixdim=st.one_of(st.none(), st.tuples(*[st.sampled_from([0.0, 1.0, -2.0, 0.5, 12.0])] * 3)),
    origin=st.tuples(*[st.floats(-3000, 3000)] * 3),
    mirrored=st.booleans(),
    qfac=st.sampled_from([1.0, -1.0, 0.0]),
    units=st.sampled_from([0, 2, 10, 1, 3]),
)
def test_positions_are_those_of_nibabel(
    tmp_path_factory: pytest.TempPathFactory,
    version: int,
    order: str,
    packed: bool,
    codes: tuple[int, int],
    angles: Any,
    other: Any,
    spacing: Any,
    pixdim: Any,
    origin: Any,
    mirrored: bool,
    qfac: float,
    units: int,
) -> None:
    """Codes, matrices, voxel sizes that contradict them, byte orders, both versions."""
    assume(codes != (0, 0))  # which nibabel and ITK read as two things
    sform = np.eye(4)
    sform[:3, :3] = rotation(angles) * spacing * ([-1, 1, 1] if mirrored else [1, 1, 1])
    sform[:3, 3] = origin
    quaternion = nibabel.quaternions.mat2quat(rotation(other))
    quaternion = quaternion if quaternion[0] >= 0 else -quaternion
    edits = {
        "sform_code": codes[0], "qform_code": codes[1], "xyzt_units": units,
        "pixdim": [qfac, *(pixdim or spacing), 1, 1, 1, 1],
        "srow_x": sform[0], "srow_y": sform[1], "srow_z": sform[2],
        "quatern_b": quaternion[1], "quatern_c": quaternion[2], "quatern_d": quaternion[3],
        "qoffset_x": origin[0], "qoffset_y": origin[1], "qoffset_z": origin[2],
    }  # fmt: skip
    path = write(tmp_path_factory.mktemp("nifti"), version, order, packed, edits)
    volume = load_image(path, "image")
    theirs = nibabel.load(path)
    assert corners_off(volume, theirs.affine) < 1e-3
    np.testing.assert_array_equal(volume.array, np.asarray(theirs.dataobj).T)
    assert volume.geometry.oriented
    assert volume.space_code == (codes[0] or codes[1])


def patched(folder: Path, *edits: tuple[int, str, tuple[Any, ...]], codes: tuple[int, int] = (1, 1)) -> Path:
    affine = np.diag([-1.5, 1.5, 2.5, 1.0])
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.float32), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nibabel.save(image, folder / "f.nii")
    raw = bytearray((folder / "f.nii").read_bytes())
    for at, form, values in edits:
        struct.pack_into("<" + form, raw, at, *values)
    (folder / "f.nii").write_bytes(raw)
    return folder / "f.nii"


def test_an_ordinary_header_has_no_findings(tmp_path: Path) -> None:
    volume = load_image(patched(tmp_path), "image")
    assert volume.findings == ()
    assert volume.geometry.oriented


def test_unknown_orientation_is_said_and_marked(tmp_path: Path) -> None:
    volume = load_image(patched(tmp_path, codes=(0, 0)), "image")
    assert not volume.geometry.oriented
    assert [f.values["orientation"] for f in volume.findings] == ["unknown"]
    nibabel.AnalyzeImage(np.ones(SHAPE, np.int16), np.eye(4)).to_filename(tmp_path / "a.hdr")
    for image in (tmp_path / "a.hdr", nibabel.load(tmp_path / "a.hdr"), nibabel.load(tmp_path / "f.nii")):
        volume = load_image(image, "image")
        assert not volume.geometry.oriented
        assert volume.findings[-1].values == {"orientation": "unknown"}


def test_where_itk_places_a_file_elsewhere_is_told_whatever_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason that is not known here still shows when ITK's word is compared."""
    from itk_nir.images import nifti_image

    path = patched(tmp_path)
    moved = load_image(path, "image").geometry.crop([1, 0, 0], SHAPE)
    monkeypatch.setattr(nifti_image, "geometry_of_itk", lambda file, header: moved)
    volume = load_image(path, "image")
    assert "ITK, ANTs and 3D Slicer place this file elsewhere" in texts(volume.findings)[0]
    assert corners_off(volume, nibabel.load(path).affine) < 1e-5


def test_the_matrix_that_is_named_is_the_one_that_is_used(tmp_path: Path) -> None:
    qform = np.diag([-1.5, 1.5, 2.5, 1.0])
    sform = qform + np.outer([8, 0, 0, 0], [0, 0, 0, 1])
    for rows, named, want in ((sform[:3], "sform", sform), (np.zeros((3, 4)), "qform", qform)):
        volume = load_image(patched(tmp_path, (280, "12f", tuple(rows.ravel()))), "image")
        (said,) = texts(volume.findings)
        assert f"the {named} is used" in said
        assert corners_off(volume, want) < 1e-5


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
def test_2d_images_lie_in_their_own_plane(plane: str, tmp_path: Path) -> None:
    """The distance between two pixels is that of nibabel, in every plane; axial ones have LPS x and y."""
    turn = {"axial": np.eye(3), "coronal": np.eye(3)[:, [0, 2, 1]], "sagittal": np.eye(3)[:, [2, 0, 1]],
            "oblique": rotation((0.3, -0.4, 0.2))}[plane]  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.5, 2.0, 3.0], (4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(np.arange(72, dtype=np.float32).reshape(9, 8), affine), tmp_path / "f.nii")
    for image in (tmp_path / "f.nii", nibabel.load(tmp_path / "f.nii")):
        volume = load_image(image, "image")
        # Files of other planes are the single slices in 3D that they are.
        assert volume.array.shape in ((8, 9), (1, 8, 9))
        np.testing.assert_allclose(volume.geometry.spacing[:2], (1.5, 2.0), rtol=1e-6)
        if volume.dimension == 3:
            there = volume.geometry.index_to_physical([2, 3, 0])
            np.testing.assert_allclose(there * (-1, -1, 1), (affine @ [2, 3, 0, 1])[:3], atol=1e-5)
        if plane == "axial":
            np.testing.assert_allclose(volume.geometry.index_to_physical([2, 3]), (-4 - 3, -5 - 6), atol=1e-5)


def test_a_header_without_use_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qform \(code 1\) is no rotation"):
        load_image(patched(tmp_path, (256, "3f", (1, 1, 1)), codes=(0, 1)), "image")
    with pytest.raises(InputError, match="voxel sizes"):
        load_image(patched(tmp_path, (80, "f", (np.nan,)), codes=(0, 0)), "image")
