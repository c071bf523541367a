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


#: Of an iteration of each level of a pair of 160x192x224 voxels with the compiled kernels: launches, and MB that they
#: read and write at least. (By design they were to be at most 33, 23, 23 and 200, 262, 2067.)
MOST = [(14, 120), (16, 222), (16, 1741)]
#: What tensors have at once during the iterations of such a pair, bytes.
MOST_MEMORY = 0.8e9


def printed(*words: str) -> list[Any]:
    """What a module prints, a line of JSON each, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(group: str) -> dict[str, dict[str, Any]]:
    """What the cases of a group found."""
    return {name: found for line in printed("tests.device.cases", group) for name, found in line.items()}


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


@pytest.mark.slow
def test_what_an_iteration_asks_of_a_card_with_the_kernels_in() -> None:
    """Launches and bytes of a step within limits, and neither a wait nor an upload, at the size of a brain."""
    pytest.importorskip("torch.utils.backend_registration")
    ((*levels, whole),) = printed("tests.device.count", "--kernels", "--json")
    assert len(levels) == len(MOST)
    for row, (launches, megabytes) in zip(levels, MOST, strict=True):
        assert row["waits"] == row["uploads"] == row["calls"] == 0
        assert 0.5 * launches < row["kernels"] <= launches
        assert 0.5 * megabytes < row["bytes"] / 1e6 <= megabytes
    assert whole["peak"] <= MOST_MEMORY
