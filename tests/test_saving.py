"""The files of a registration: complete, of one run, and over nothing that is not theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import itk_nir
from itk_nir.errors import InputError, OptionError
from itk_nir.images import save_image, to_sitk
from itk_nir.phantom import Phantom
from itk_nir.result import RegistrationResult
from itk_nir.saving import PICTURE, REPORT, file_names, save_result
from itk_nir.transforms.save import FORMATS


@pytest.fixture(scope="module")
def result(phantom_2d: Phantom) -> RegistrationResult:
    fixed, moving = (to_sitk(a, phantom_2d.geometry) for a in (phantom_2d.fixed, phantom_2d.moving))
    return itk_nir.register(fixed, moving, preset="fast", iterations=1, threads=1)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "nifti"])  # which is 3D alone
def test_the_names_are_known_before(kind: str, result: RegistrationResult, tmp_path: Path) -> None:
    """What the check before the work looks at is what is written after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = result.save(tmp_path / "x_", kind)  # type: ignore[arg-type]
    told = {f"x_{name}" for name in file_names(kind)}
    written = {path.name.replace(".1.txt", ".0.txt") for path in paths.values()}
    assert written <= told
    report = json.loads((tmp_path / f"x_{REPORT}").read_text())
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    del sizes[f"x_{REPORT}"]
    assert report["bytes"] == sizes
    assert set(report["files"].values()) == {*sizes, f"x_{REPORT}"}


def test_files_of_another_run_are_told(result: RegistrationResult, tmp_path: Path) -> None:
    result.save(tmp_path / "x_", "itk")
    first = json.loads((tmp_path / f"x_{REPORT}").read_text())["run"]
    (tmp_path / "x_Notes.txt").write_text("mine")
    (tmp_path / "y_Composite.h5").write_text("another prefix")
    with pytest.warns(UserWarning, match=r": x_Composite\.h5, x_InverseComposite\.h5 are of another run") as told:
        result.save(tmp_path / "x_", "ants")
    assert told[0].filename == __file__
    assert json.loads((tmp_path / f"x_{REPORT}").read_text())["run"] != first
    for path in tmp_path.glob("x_*Composite.h5"):
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.save(tmp_path / "x_", "ants")


def test_more_files_are_of_the_set(result: RegistrationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_result(result, f"{tmp_path}/a/", "itk", {"picture": (PICTURE, b"\x89PNG")})
    assert paths["picture"].read_bytes() == b"\x89PNG"
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert len(before) == 5
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == PICTURE and Path(source).parent.name == "files":
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Operation not permitted"):
        save_result(result, f"{tmp_path}/a/", "itk", {"picture": (PICTURE, b"\x89PNG2")})
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


@pytest.mark.parametrize("prefix", [None, 3, b"x", ["x"]])
def test_what_is_no_name_is_refused(prefix: object, result: RegistrationResult) -> None:
    with pytest.raises(InputError, match=r"^output prefix .* no name of a file; give text or a path"):
        result.save(prefix)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="format must be one of"):
        result.save("x", [prefix])  # type: ignore[arg-type]


def test_an_input_is_not_written_over(phantom_2d: Phantom, tmp_path: Path) -> None:
    grid = phantom_2d.geometry
    fixed, moving = tmp_path / "fixed.nii.gz", tmp_path / "x_Warped.nii.gz"
    save_image(phantom_2d.fixed, grid, fixed)
    save_image(phantom_2d.moving, grid, moving)
    before = moving.read_bytes()
    result = itk_nir.register(fixed, moving, preset="fast", linear="none", iterations=1, threads=1)
    assert result.inputs == (str(fixed), str(moving))
    with pytest.raises(InputError, match=r"x_Warped\.nii\.gz: is an input itself, and would be replaced"):
        result.save(tmp_path / "x_")
    assert moving.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.nii.gz", "x_Warped.nii.gz"]
    result.save(tmp_path / "y_")


FULL = """
import os, resource, sys, warnings
from pathlib import Path
import numpy as np
from itk_nir.errors import WriteError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.transforms import CompositeTransform, LinearTransform
from itk_nir.transforms.model import DisplacementField
from itk_nir.transforms.save import save_transform

folder = Path(sys.argv[1])
grid = Geometry.make([16, 14], [1.5, 2.0], [3.0, -4.0])
rng = np.random.default_rng(0)
# Zeros at the end: readers put them where a file ends too early.
grey = rng.integers(0, 200, grid.shape).astype(np.uint8)
grey[-4:] = 0
field = (rng.normal(size=(*grid.shape, 2)) / 20).astype(np.float32)
field[-4:] = 0
linear = CompositeTransform((LinearTransform.make(np.eye(2), [1.0, 2.0]),))
both = CompositeTransform((DisplacementField(grid, field), *linear.transforms))
jobs = {}
for ending in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".tif", ".png", ".jpg", ".mnc", ".gipl"):
    jobs["image" + ending] = lambda ending=ending: save_image(grey, grid, folder / f"i{ending}")
for ending in (".h5", ".tfm", ".nii.gz", ".nrrd", ".mha"):
    jobs["transform" + ending] = lambda ending=ending: save_transform(both, folder / f"t{ending}", reference=grid)
jobs["transform.mat"] = lambda: save_transform(linear, folder / "t.mat", reference=grid)
for kind in ("ants", "elastix"):
    jobs[kind] = lambda kind=kind: save_transform(both, folder / "x_", format=kind, reference=grid)


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


tried = 0
for name, job in jobs.items():
    job()
    longest = max(path.stat().st_size for path in folder.iterdir())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for size in {0, 1, 348, 352, longest // 3, longest // 2, *(longest - k for k in (1, 2, 8, 60))}:
        if not 0 <= size < longest:
            continue
        tried += 1
        limit(size)
        try:
            job()
            print(name, size, longest, "no error")
        except WriteError as error:
            if "\\n" in str(error):
                print(name, size, longest, "lines:", error)
        except Exception as error:
            print(name, size, longest, type(error).__name__, error)
        limit(resource.RLIM_INFINITY)
        if {path.name: path.read_bytes() for path in folder.iterdir()} != before:
            print(name, size, longest, "left", os.listdir(folder))
    for path in folder.iterdir():
        path.unlink()
print("tried", tried)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_no_file_is_cut_without_a_word(tmp_path: Path) -> None:
    """Every format at many sizes at which the system takes no more: an error, and the file of before is as it was."""
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:-1] == []
    assert int(lines[-1].split()[1]) > 140
