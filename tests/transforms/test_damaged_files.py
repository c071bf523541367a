"""Damaged transform files: a file that was cut anywhere is refused, or is the very same map."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.formats.elastix import read_elastix, write_elastix
from itk_nir.transforms.formats.elastix.exact import read_chain
from itk_nir.transforms.formats.field_image import write_vectors
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.formats.itk_text import write_itk_file
from itk_nir.transforms.load import read_transform

GRID = Geometry.make([5, 4], [1.5, 2.0], [3.0, -4.0])


def field() -> DisplacementField:
    return DisplacementField(GRID, np.random.default_rng(0).normal(size=(4, 5, 2)))


def both() -> CompositeTransform:
    return CompositeTransform(
        (field(), LinearTransform.make([[1.1, 0.123456], [-0.2, 0.95]], [3.25, -4.125], [10, 20]))
    )


def affine() -> sitk.AffineTransform:
    return sitk.AffineTransform([1, 0.1, 0, 0, 1.23456789, 0, 0.05, 0, 1], [10.5, 20.25, 30.125], [3.5, 2.25, 1.123])


def by_itk(path: Path) -> None:
    sitk.WriteTransform(affine(), str(path))


def compressed(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(field().vectors, isVector=True), str(path), useCompression=True)


FILES: dict[str, Callable[[Path], object]] = {
    "affine.tfm": by_itk,
    "affine.txt": by_itk,
    "affine.mat": by_itk,
    "affine.xfm": by_itk,
    "affine.h5": by_itk,
    "euler.tfm": lambda path: sitk.WriteTransform(
        sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3, (4, 5, 6)), str(path)
    ),
    "both.tfm": lambda path: write_itk_file(both(), path),
    "both.h5": lambda path: write_h5(both(), path),
    "field.nii": lambda path: write_vectors(field().vectors, GRID, path),
    "field.nii.gz": lambda path: write_vectors(field().vectors, GRID, path),
    "field.nrrd": lambda path: write_vectors(field().vectors, GRID, path),
    "field.mha": lambda path: write_vectors(field().vectors, GRID, path),
    "packed.mha": compressed,
    "packed.nrrd": compressed,
    "TransformParameters.1.txt": lambda path: write_elastix(both(), f"{path.parent}/", GRID),
    "TransformParameters.0.txt": lambda path: write_elastix(both(), f"{path.parent}/", GRID),
    "one.aff12.1D": lambda path: path.write_text("1.1 0.1 0 3.25 0 1 0.2 4 0.1 0 1 12.75\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused_or_the_same(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    FILES[name](path)
    raw = path.read_bytes()
    whole = read_transform(path)
    p = np.random.default_rng(1).uniform(4, 8, (20, whole.dimension)) * [1, -0.1, 1][: whole.dimension]
    wanted = whole.map(p)
    cut = tmp_path / f"cut_{name}"
    refused = tried = 0
    for length in range(0, len(raw), max(1, len(raw) // 250)):
        cut.write_bytes(raw[:length])
        try:
            found = read_transform(cut).map(p)
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, wanted, err_msg=f"{length} of {len(raw)} bytes")
        tried += 1
    assert refused > 0.9 * tried
    assert capfd.readouterr().err == ""  # no library prints past the error


#: Transforms of elastix by hand, as its own examples write them: what it has a default for is left out.
BY_HAND = {
    "euler.toml": 'CenterOfRotationPoint = [ 1.0, 2.0 ]\nNumberOfParameters = 3\nTransform = "EulerTransform"\n'
    "TransformParameters = [ 0.3, 4.0, -5.0 ]\n",
    "affine.txt": '(Transform "AffineTransform")\n(NumberOfParameters 6)\n(TransformParameters 1.1 0.2 -0.1 0.9 3 -4)\n'
    "(CenterOfRotationPoint 1 2)\n",
    "shift.txt": '(NumberOfParameters 2)\n(Transform "TranslationTransform")\n(TransformParameters 3 -4)\n',
}


@pytest.mark.parametrize("name", BY_HAND)
def test_elastix_files_by_hand_are_taken_with_its_defaults(name: str, tmp_path: Path) -> None:
    import itk

    path = tmp_path / name
    path.write_text(BY_HAND[name])
    itks = itk.ParameterObject.New()
    itks.ReadParameterFile(str(path))
    values = itks.GetParameterMap(0)
    grid = {"Size": "9 8", "Index": "0 0", "Spacing": "1 1", "Origin": "0 0", "Direction": "1 0 0 1"}
    wanted = read_elastix([{**{k: values[k] for k in values}, **{k: v.split() for k, v in grid.items()}}])
    p = np.random.default_rng(2).uniform(-9, 9, (20, 2))
    np.testing.assert_array_equal(read_elastix(path, Geometry.make((9, 8), (1, 1), (0, 0))).map(p), wanted.map(p))
    chain = read_chain(path, Geometry.make((9, 8), (1, 1), (0, 0)))
    np.testing.assert_allclose(chain.map(p), wanted.map(p), rtol=1e-12)
    for length in range(0, len(BY_HAND[name]) - 2, 3):  # the last bracket and the end of the line close it
        path.write_text(BY_HAND[name][:length])
        with pytest.raises(InputError):
            read_elastix(path, Geometry.make((9, 8), (1, 1), (0, 0)))


def test_the_beginning_of_a_file_of_elastix_is_none_by_hand(tmp_path: Path) -> None:
    """What a map is without its end, among it the name of what comes before it, is another one."""
    path = tmp_path / "TransformParameters.1.txt"
    path.write_text('(Transform "TranslationTransform")\n(NumberOfParameters 2)\n(TransformParameters 3 -4)\n')
    with pytest.raises(InputError, match="lacks HowToCombineTransforms"):
        read_elastix(path, Geometry.make((9, 8), (1, 1), (0, 0)))


@pytest.mark.filterwarnings("ignore")  # some changes make another map, which may be odd
@pytest.mark.parametrize("name", ["affine.tfm", "affine.mat", "both.h5", "packed.mha"])
def test_changed_bytes_raise_nothing_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FILES[name](path)
    raw = path.read_bytes()
    changed = tmp_path / f"changed_{name}"
    random = np.random.default_rng(0)
    refused = 0
    for at in random.integers(0, len(raw), 120):
        changed.write_bytes(raw[:at] + bytes([raw[at] ^ int(random.integers(1, 256))]) + raw[at + 1 :])
        try:
            read_transform(changed)
        except InputError:
            refused += 1
    assert refused > 5


def test_counts_and_header_words(tmp_path: Path) -> None:
    text, matlab = tmp_path / "a.tfm", tmp_path / "a.mat"
    by_itk(text)
    by_itk(matlab)
    good, raw = text.read_text(), matlab.read_bytes()
    for bad, what in (
        (good.replace("FixedParameters: 3.5 2.25 1.123", "FixedParameters: 3.5 2.25"), "12 parameters and 2 fixed"),
        (good.replace("Parameters: 1 ", "Parameters: ", 1), "11 parameters"),
        (good.replace("1.23456789", "nan"), "no finite number"),
        (good.replace("1.23456789", "1.2345_6789"), "no finite number"),
        (good.rstrip("\n"), "last line is not complete"),
        (good + "#Transform 1\n", "before a transform that it announces"),
        (good.replace("#Insight", "#insight"), "first line"),
        (good.replace("Transform: Affine", "Transfrm: Affine"), "at 'Transfrm"),
    ):
        text.write_text(bad)
        with pytest.raises(InputError, match=f"damaged or no ITK transform file.*{what}"):
            read_transform(text)
    for bad_raw in (
        raw + b"\0", raw[:4] + struct.pack("<i", 13) + raw[8:], raw[:16] + struct.pack("<i", 26) + raw[20:],
        raw.replace(b"fixed", b"fixxd"), raw[:8] + struct.pack("<i", 2) + raw[12:],
        raw.replace(b"AffineTransform_double_3_3", b"Euler3DTransform_double_33"),
    ):  # fmt: skip
        matlab.write_bytes(bad_raw)
        with pytest.raises(InputError, match="damaged or no ITK transform file"):
            read_transform(matlab)
    matlab.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200))
    with pytest.raises(InputError, match="MATLAB 5 file, SPM's"):
        read_transform(matlab)


def test_composites_that_were_cut_between_two(tmp_path: Path) -> None:
    """Ours tell how many parts they have; of ITK's a composite of one is warned of."""
    path = tmp_path / "c.tfm"
    write_itk_file(both(), path)
    lines = path.read_text().splitlines(keepends=True)
    begin = next(k for k, line in enumerate(lines) if line.startswith("#Transform 2"))
    path.write_text("".join(lines[:begin]))
    with pytest.raises(InputError, match="holds 1 transforms of 2"):
        read_transform(path)
    path.write_text("".join(line for line in lines[:begin] if "Number" not in line))
    with pytest.warns(UserWarning, match="composite of one transform"):
        read_transform(path)


def test_our_text_files_are_itks(tmp_path: Path) -> None:
    """The line that counts the parts is a comment to ITK, SimpleITK and ANTs."""
    import ants
    import itk

    path = tmp_path / "c.tfm"
    write_itk_file(both(), path)
    p = [5.5, -1.25]
    wanted = both().map(p)
    np.testing.assert_allclose(sitk.ReadTransform(str(path)).TransformPoint(p), wanted, atol=1e-6)
    np.testing.assert_allclose(ants.read_transform(str(path)).apply_to_point(p), wanted, atol=1e-4)
    parts = itk.transformread(str(path))
    assert parts[0].GetNumberOfTransforms() == 2
    np.testing.assert_allclose(list(parts[0].TransformPoint(p)), wanted, atol=1e-6)
