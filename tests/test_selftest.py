"""The self-test of a device, on the one that every machine has; and that it finds what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from itk_nir.engine.op_cases import SHAPES, OpCase, compared, op_cases, value_and_gradients

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]

#: A machine without image libraries: what a user with a card may have at hand.
ENGINE_ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"itk", "SimpleITK", "h5py", "safetensors", "nibabel", "scipy", "matplotlib", "zarr"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
from itk_nir.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_cpu_passes_without_image_libraries(tmp_path: Path) -> None:
    file = tmp_path / "selftest.json"
    command = ["selftest", "--device", "cpu", "--size", "40,48", "--threads", "1", "--quiet", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-c", ENGINE_ALONE, *command],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = json.loads(file.read_text())
    assert found["passed"]
    assert found["failures"] == []
    names = [op["name"] for op in found["ops"]]
    wanted = [[case.name for case in op_cases(shape)] for shape in SHAPES]
    assert names == [f"{d} {name}" for d, part in zip(("3D", "2D"), wanted, strict=True) for name in part]
    assert all(op["passed"] and op["repeats"] for op in found["ops"])
    assert len(found["times"]) == 6
    (run,) = found["registrations"]
    assert run["error_after"] < 0.35 * run["error_before"]
    assert done.stdout.rstrip().endswith("passed")
    assert all(name in done.stdout for name in names)


def _twice(x: Tensor) -> Tensor:
    return 2 * x


class _WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return 2 * x

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        return grads[0] * (2 if grads[0].dtype == torch.float64 else 2.01)


def test_what_is_wrong_is_found() -> None:
    x = torch.linspace(-1, 1, 20)
    drift = iter(range(100))
    cases = {
        "right": _twice,
        "value": lambda x: 2 * x if x.dtype == torch.float64 else 2.001 * x,
        "slope": _WrongSlope.apply,
        "no number": lambda x: 2 * x if x.dtype == torch.float64 else x * torch.nan,
        "other bits": lambda x: 2 * x + (0 if x.dtype == torch.float64 else 1e-6 * next(drift)),
        "hides": lambda x: 2 * x if x.dtype == torch.float64 else 2 * x.nan_to_num(0.0),
        "raises": lambda x: 2 * x if x.dtype == torch.float64 else x @ torch.eye(3),
    }
    found = {}
    for name, op in cases.items():
        case = OpCase(name, op, (x,), keeps_nan=True)
        found[name] = compared(case, CPU, value_and_gradients(case, CPU, torch.float64))
    assert [name for name, result in found.items() if result.passed] == ["right"]
    assert not found["other bits"].repeats
    assert not found["hides"].keeps_nan
    assert found["hides"].repeats
    assert found["value"].repeats
    assert found["raises"].error.startswith("RuntimeError: ")
    assert found["slope"].value_error == pytest.approx(0, abs=1e-7)
    assert found["slope"].gradient_error == pytest.approx(0.005, rel=0.01)
