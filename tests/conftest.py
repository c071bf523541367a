"""What several tests share: where the real data is, and phantoms that are made once."""

from __future__ import annotations

import gc
import locale
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads of BLAS and OpenMP wait for one another by spinning, on cores that the other test processes need. They are
# told before NumPy and torch are loaded, here and in the processes that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from itk_nir.phantom import Phantom, brain_phantom
from tests.grids import centred, turned


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and tests, a million objects, stay to the end: the garbage collector never looks at them again."""
    gc.disable()
    yield
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Markers that follow from where a test stands and what it asks for; `slow` is said by the tests themselves."""
    for item in items:
        if "data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if Path(item.path).parent.name in ("compat", "transforms"):
            item.add_marker(pytest.mark.interop)


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """ITK's DICOM writer, which some tests use, sets the C locale of the process for good."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    if locale.setlocale(locale.LC_ALL) != before:
        locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell that starts a command in the background has it ignore Ctrl-C, which some tests send themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real image pairs: ``ITK_NIR_DATA``, else ``../shared/data`` beside the checkout."""
    named = os.environ.get("ITK_NIR_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is no folder; set ITK_NIR_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def phantom_2d() -> Phantom:
    """An axial slice, 80 x 96 pixels of 2 mm."""
    return brain_phantom(2, (80, 96))


@pytest.fixture(scope="session")
def phantom_3d() -> Phantom:
    """A brain of 54 x 64 x 54 voxels of about 3 mm."""
    return brain_phantom(3, (54, 64, 54))


@pytest.fixture(scope="session")
def oblique() -> dict[int, Phantom]:
    """In 2D and 3D, on anisotropic, oblique and unlike grids."""
    out = {}
    for d, size, spacing, moving_size, moving_spacing in (
        (2, (70, 60), (2.4, 3.3), (64, 86), (2.7, 2.4)),
        (3, (34, 42, 26), (5.0, 4.6, 6.5), (40, 36, 36), (4.4, 5.8, 5.0)),
    ):
        out[d] = brain_phantom(
            d,
            geometry=centred(size, spacing, turned(d, 0.3)),
            moving_geometry=centred(moving_size, moving_spacing, turned(d, -0.2)),
        )
    return out
