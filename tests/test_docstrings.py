"""The examples in docstrings run and show what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "itk_nir.atomic",
    "itk_nir.images.convert",
    "itk_nir.images.volume",
    "itk_nir.images.writing",
    "itk_nir.loading",
    "itk_nir.points",
    "itk_nir.transforms.displacement",
    "itk_nir.transforms.linear",
    "itk_nir.transforms.load",
    "itk_nir.transforms.model",
    "itk_nir.transforms.save",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    done = doctest.testmod(import_module(name), verbose=False)
    assert done.attempted > 0
    assert done.failed == 0
