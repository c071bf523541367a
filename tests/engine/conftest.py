"""What the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.engine.pairs import Make, make


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
