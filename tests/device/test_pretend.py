"""The whole of a registration on a device that is not the CPU, though there is none: see `tests.device.pretend`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.device import cases

ROOT = Path(__file__).resolve().parents[2]

#: Waits and uploads an iteration: one read where somebody is told of it, else nothing.
MOST_WAITS = {"told": 1, "not told": 0}


def run(group: str) -> dict[str, dict[str, Any]]:
    """What the cases of a group found, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.device.cases", group], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: found for line in done.stdout.splitlines() for name, found in json.loads(line).items()}


@pytest.mark.slow
@pytest.mark.parametrize("group", cases.groups())
def test_all_of_a_registration_stays_on_its_device(group: str) -> None:
    """No tensor is left behind, and the same ops on the CPU give the same losses and the same transform."""
    pytest.importorskip("torch.utils.backend_registration")
    found = run(group)
    assert set(found) == set(cases.groups()[group])
    waits = {name: found.pop(name) for name in list(found) if name.startswith("waits")}
    assert {name: f for name, f in found.items() if "error" in f or not all(f.values())} == {}
    assert {name: f for name, f in waits.items() if f != MOST_WAITS} == {}
