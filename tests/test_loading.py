"""Everything that holds a transform can be loaded as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.errors import InputError
from itk_nir.loading import load_transform
from itk_nir.neural_field import load_field
from itk_nir.transforms import CompositeTransform, LinearTransform
from tests.test_neural_field import lattice_field, linear, made, points_in
from tests.test_result import made as result_of


def test_a_result_is_its_transform() -> None:
    result = result_of(2)
    assert load_transform(result) is result.mapping
    assert itk_nir.load_transform is load_transform


def test_trained_fields_and_their_files(tmp_path: Path) -> None:
    trained = made(lattice_field(2), linear(2))
    path = tmp_path / "field.safetensors"
    trained.save(path)
    p = points_in(trained.geometry)
    wanted = load_field(path).sample().map(p)
    for given in (trained, path, str(path)):
        np.testing.assert_allclose(load_transform(given).map(p), wanted, atol=1e-6)


def test_lists_of_unlike_things(tmp_path: Path) -> None:
    result = result_of(2)
    trained = made(lattice_field(2), linear(2))
    trained.save(tmp_path / "field.safetensors")
    shift = LinearTransform.make(np.eye(2), [1.0, 2.0])
    p = points_in(trained.geometry)
    for second in (result, tmp_path / "field.safetensors", trained, sitk.TranslationTransform(2, (1.0, 2.0))):
        alone = load_transform(second)
        np.testing.assert_allclose(load_transform([shift, second]).map(p), alone.map(shift.map(p)), atol=1e-6)
    assert isinstance(load_transform([[1, 0, 5], [0, 1, 0], [0, 0, 1]]), CompositeTransform)


def test_what_is_missing_is_said_in_the_callers_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"initial transform .*none\.safetensors: no such file"):
        load_transform(tmp_path / "none.safetensors", role="initial transform")
    with pytest.raises(InputError, match="initial transform: cannot use an object of type int"):
        load_transform(3, role="initial transform")
