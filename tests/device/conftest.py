"""Fixtures of the tests of the kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.device.emulated import emulated_kernels


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulated kernels are built."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def kernels(libraries: Path) -> Iterator[ModuleType]:
    """The ops of `engine.ops.cuda` on CPU tensors."""
    with emulated_kernels(libraries) as ops:
        yield ops
