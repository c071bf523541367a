"""What holds the house together: the order of imports, the size of files, the public face and its types."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

import itk_nir

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "itk_nir"
#: Runs the import contract on the package in the current folder, past the import hook of an editable install.
LINT = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
from importlinter.cli import lint_imports_command

lint_imports_command()
"""
#: The package of this checkout, whatever is installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def tool(*command: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def pyright(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    # It looks for packages in the environment whose python comes first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", "pyright", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_keep_their_order() -> None:
    done = tool("-c", LINT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_an_import_against_the_order_is_seen(tmp_path: Path) -> None:
    """The contract is live: a file of the engine that imports what stands above it breaks it, and each one is named."""
    copy = tmp_path / "itk_nir"
    for file in PACKAGE.rglob("*.py"):
        target = copy / file.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    late = {
        "lattice": ("itk_nir.registration", "from itk_nir.registration import register"),
        "jacobian": ("itk_nir.paper.settings", "import itk_nir.paper.settings"),
    }
    for name, (_, line) in late.items():
        file = copy / "engine" / f"{name}.py"
        file.write_text(file.read_text(encoding="utf-8") + f"\n\ndef late():\n    {line}\n", encoding="utf-8")
    done = tool("-c", LINT, folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    for name, (above, _) in late.items():
        assert re.search(rf"itk_nir\.engine\.{name}\b\s*->\s*{re.escape(above)}\b", done.stdout), done.stdout


def test_no_file_is_long() -> None:
    sizes = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    sizes |= {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "wrapping").rglob("*.*pp")}
    sizes |= {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / "wrapping").rglob("*.inl")}
    assert len(sizes) > 100
    assert {str(file): lines for file, lines in sizes.items() if lines > 500} == {}


@pytest.mark.slow
def test_no_private_name_crosses_a_module() -> None:
    """Neither in the package nor in its tests."""
    found = []
    # Only files with such a name behind the word "import", on its line or between its parentheses, are worth parsing.
    likely = re.compile(r"\bimport\b(?:[ \t]*\([^)]*?|(?:\\\n|[^\n])*?)(?<!\w)_(?!_)")
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        if not likely.search(text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("itk_nir"):
                found += [f"{file.name}: {a.name}" for a in node.names if re.match(r"_(?!_|native\b)", a.name)]
    assert found == []


def test_the_public_names() -> None:
    names = sorted(itk_nir.__all__)
    assert names == itk_nir.__all__
    assert dir(itk_nir) == sorted([*names, "__version__"])
    for name in names:
        assert getattr(itk_nir, name) is not None
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [a.asname for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names]
    listed = next(node.value for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(filter(None, imported)) == ast.literal_eval(listed) == names


def test_import_is_instant() -> None:
    """The public names come when they are asked for: neither torch nor an image library is loaded before."""
    code = "import sys, itk_nir; print([m for m in ('torch', 'numpy', 'itk', 'SimpleITK') if m in sys.modules])"
    assert tool("-c", code).stdout.strip() == "[]"


WRONG = """
    import itk_nir

    itk_nir.register("f", "m", stepz=3)
    itk_nir.register("f", "m", preset="fats")
    itk_nir.register("f", "m", metric=3)
    itk_nir.register("f", "m", linear="affin")
    itk_nir.register("f", "m", iterations="many")
"""
RIGHT = """
    import itk_nir
    from itk_nir.engine.metrics import LNCC

    result: itk_nir.RegistrationResult = itk_nir.register("f", "m", preset="fast", iterations=(3, 2, 1), smoothness=1.0)
    itk_nir.register("f", "m", preset=itk_nir.make_settings("fast", jacobian_weight=0), metric=LNCC(epsilon=1e-3))
    itk_nir.register("f", "m", metric=("0.5*nmi + 0.5*mind", LNCC()), channel_weights=(1, 0.5))
    itk_nir.apply("image", result, interpolation="nearest")
    similarity: float | None = result.report.similarity
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_refuse_what_is_wrong(tmp_path: Path, checker: str) -> None:
    for name, text in (("wrong.py", WRONG), ("right.py", RIGHT)):
        (tmp_path / name).write_text(textwrap.dedent(text))
    if checker == "mypy":
        # Most of the time would go into torch, of whose types none of these calls makes use.
        without_torch = "[mypy]\nignore_missing_imports = True\n[mypy-torch.*]\nfollow_imports = skip\n"
        (tmp_path / "mypy.ini").write_text(without_torch)
        options = ["--config-file", "mypy.ini", "--follow-imports", "silent", "--cache-dir", os.devnull]
        done = tool("-m", "mypy", *options, "wrong.py", "right.py", folder=tmp_path)
        errors = re.findall(r"^(\w+)\.py:(\d+): error", done.stdout, re.MULTILINE)
    else:
        done = pyright("--outputjson", "wrong.py", "right.py", folder=tmp_path)
        found = json.loads(done.stdout)["generalDiagnostics"]
        errors = [
            (Path(d["file"]).stem, str(d["range"]["start"]["line"] + 1)) for d in found if d["severity"] == "error"
        ]
    lines = [str(number) for number, line in enumerate(WRONG.splitlines(), start=1) if "register(" in line]
    assert sorted(set(errors)) == [("wrong", line) for line in lines], done.stdout + done.stderr


@pytest.mark.slow
def test_the_types_are_complete(tmp_path: Path) -> None:
    done = pyright("--verifytypes", "itk_nir", "--ignoreexternal", "--outputjson", folder=tmp_path)
    found = json.loads(done.stdout)["typeCompleteness"]
    assert found["packageName"] == "itk_nir"
    assert found["completenessScore"] >= 0.98
