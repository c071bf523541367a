"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.engine.images_of_ops import SHAPES
from tests.engine.pairs import Make, make

try:
    from itk_nir import _native as native
except ImportError:  # the tests of the native ops are skipped
    native = None


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """As inside `register`: torch's own threads wait for one another by spinning, which a busy machine punishes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_case() -> Make:
    """Pairs of textured images, see `tests.engine.pairs`."""
    return make


@pytest.fixture(params=() if native is None else native.instruction_sets())
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Of a volume and of an image, in turn."""
    return SHAPES[request.param]
