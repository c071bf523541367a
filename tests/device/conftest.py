"""Fixtures of the tests of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.device.emulated import emulated_kernels


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulated kernels are built."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernels(libraries: Path) -> Iterator[ModuleType]:
    """The ops of `engine.ops.cuda` on CPU tensors."""
    with emulated_kernels(libraries) as ops:
        yield ops
