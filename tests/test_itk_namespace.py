"""`itk.NIRRegistrationMethod` and `itk.nir_registration_method` by ITK's own loader, as installed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

import itk_nir.compat.itk

ROOT = Path(__file__).resolve().parents[1]
FILES = {"itk/Configuration/NIRConfig.py", "itk/Configuration/NIR_snake_case.py", "itk/NIRPython.py"}
#: What a user can rely on; run where the package is installed and nowhere near its sources.
LOOK = """
import sys
import itk
assert not {"itk_nir", "torch"} & set(sys.modules), "import itk must cost nothing"
assert {"NIRRegistrationMethod", "nir_registration_method", "NIR"} <= set(dir(itk))
import itk_nir.compat.itk
assert itk.NIRRegistrationMethod is itk_nir.compat.itk.NIRRegistrationMethod is itk.NIR.NIRRegistrationMethod
assert itk.nir_registration_method is itk_nir.compat.itk.nir_registration_method
assert itk.NIRRegistrationMethod.New().GetNameOfClass() == "NIRRegistrationMethod"
print(itk_nir.__file__)
"""
REGISTER = """
import numpy as np
kind = itk.Image[itk.F, 2]
rng = np.random.default_rng(0)
fixed, moving = (itk.image_from_array(rng.random((24, 24)).astype(np.float32)) for _ in range(2))
options = dict(preset="fast", iterations=(1, 1, 1), linear="none", threads=1, device="cpu")
registration = itk.NIRRegistrationMethod[kind, kind].New(fixed, moving, **options)
registration.Update()
assert np.ptp(itk.array_from_image(registration.GetOutput())) > 0
"""
GONE = """
import itk
assert not [name for name in dir(itk) if "nir" in name.lower().split("_") or name.startswith("NIR")]
assert "MedianImageFilter" in dir(itk)
"""


def test_the_configuration_names_what_there_is() -> None:
    folder = ROOT / "wrapping" / "itk"
    assert {f"itk/{path.name}" for path in folder.iterdir() if path.suffix == ".py"} == {
        f"itk/{Path(name).name}" for name in FILES
    }
    config = runpy.run_path(str(folder / "NIRConfig.py"))
    functions = runpy.run_path(str(folder / "NIR_snake_case.py"))["snake_case_functions"]
    module = runpy.run_path(str(folder / "NIRPython.py"))
    assert [(name, held) for name, _, held, _ in config["templates"]] == [("NIRRegistrationMethod",) * 2]
    assert module["NIRRegistrationMethod"] is itk_nir.compat.itk.NIRRegistrationMethod
    for function in functions:
        # ITK's loader calls the second for each.
        assert module[function] is getattr(itk_nir.compat.itk, function)
        module[f"{function}_init_docstring"]()


def test_here() -> None:
    """Whatever way this environment was set up, if the package is installed in it."""
    try:
        files = {str(path) for path in distribution("itk-nir").files or []}
    except PackageNotFoundError:
        pytest.skip("itk-nir runs from its sources here and is not installed")
    assert {name for name in FILES if any(path.endswith(name) for path in files)} == FILES
    look(Path(sys.executable))


def look(python: Path, script: str = LOOK) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    out = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, cwd=python.parent, env=environment, check=False
    )
    assert out.returncode == 0, out.stderr
    return out.stdout.strip()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with an `itk` of its own (links) and all else from this one."""
    if os.name != "posix":
        pytest.skip("links a copy of ITK, which takes a POSIX system")
    if find_spec("scikit_build_core") is None or shutil.which("cmake") is None:
        pytest.skip("needs the build tools: pip install scikit-build-core cmake ninja")
    here = Path(sysconfig.get_path("purelib"))
    if not (here / "itkConfig.py").exists():
        pytest.skip("ITK's Python package is not in this environment's own folder")
    target = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
    there = next(target.glob("lib/python3*/site-packages"))
    (there / "itkConfig.py").symlink_to(here / "itkConfig.py")
    for libraries in here.glob("itk*.libs"):
        (there / libraries.name).symlink_to(libraries)
    for folder, _, files in os.walk(here / "itk"):
        copy = there / Path(folder).relative_to(here)
        copy.mkdir(exist_ok=True)
        for name in files:
            if not name.startswith("NIR"):
                (copy / name).symlink_to(Path(folder) / name)
    (there / "zz_the_rest.pth").write_text(f"{here}\n")
    return target / "bin" / "python"


def pip(python: Path, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--python", python, *arguments], check=True)


def build_options(folder: Path) -> list[str]:
    # The native ops take a minute to compile and have no part in this.
    return [
        "--no-build-isolation", "--no-deps", "--config-settings", f"build-dir={folder / 'build'}",
        "--config-settings", "cmake.define.ITK_NIR_NATIVE=OFF",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_wheel(environment: Path, tmp_path: Path) -> None:
    pip(environment, "wheel", *build_options(tmp_path), "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("itk/")} == FILES
    assert {f"itk_nir/{name}" for name in ("__init__.py", "compat/itk/filter.py", "cli/slicer.py")} <= names
    assert {f"itk_nir/slicer_cli/NIRRegistration.{ending}" for ending in ("py", "xml")} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"itk", "itk_nir"}
    pip(environment, "install", "--no-deps", wheel)
    assert "site-packages" in look(environment, LOOK + REGISTER)
    check_uninstall(environment)


@pytest.mark.slow
def test_an_editable_install(environment: Path, tmp_path: Path) -> None:
    pip(environment, "install", *build_options(tmp_path), "--editable", ROOT)
    assert Path(look(environment)) == ROOT / "itk_nir" / "__init__.py"
    check_uninstall(environment)


def check_uninstall(python: Path) -> None:
    pip(python, "uninstall", "--yes", "itk-nir")
    there = next(python.parents[1].glob("lib/python3*/site-packages"))
    left = [path for path in (there / "itk").rglob("*NIR*") if "__pycache__" not in path.parts]
    assert not left
    look(python, GONE)
