"""Docstrings: their examples run and show what they say, and their sections say what the signatures say."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

import itk_nir
from itk_nir.engine.coordinate_networks import ACTIVATIONS, ENCODINGS, FIELDS
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.regularisers import REGULARISERS

#: Module or package whose import or examples need a library that is not a dependency → that library's module.
OPTIONAL = {
    "itk_nir.compat.ants": "ants",
    "itk_nir.compat.dreg": "itk_dreg",
    "itk_nir.compat.elastix": "itk.itkElastixRegistrationMethodPython",
    "itk_nir.compat.nipype": "nipype",
    "itk_nir.plot": "matplotlib",
}

#: What is not held to the signatures: the command line, classes with the methods of torch, ITK and SimpleITK, and the
#: formats, whose methods are documented where they are declared (`itk_nir.transforms.formats.base`).
UNCHECKED = (
    "itk_nir.cli",
    "itk_nir.compat.itk",
    "itk_nir.compat.sitk",
    "itk_nir.engine.ops",
    "itk_nir.transforms.formats.ants",
    "itk_nir.transforms.formats.elastix.writing",
    "itk_nir.transforms.formats.field_image",
    "itk_nir.transforms.formats.itk_h5",
    "itk_nir.transforms.formats.itk_text",
)

_HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
_BARE = re.compile(r"^\S.*\n(?! {4}\S)", re.MULTILINE)
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : \S.*)?$", re.MULTILINE)


def module_names() -> list[str]:
    found = pkgutil.walk_packages(itk_nir.__path__, "itk_nir.")
    return ["itk_nir", *(m.name for m in found if not m.name.endswith("__main__") and "._native" not in m.name)]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def missing(name: str) -> str:
    """The optional library that a module needs and that is not installed, or nothing."""
    needed = [library for package, library in OPTIONAL.items() if within(name, package)]
    return next((library for library in needed if find_spec(library) is None), "")


def doctests() -> list[Any]:
    """One test for every docstring with examples; one that is skipped for a module whose library is missing."""
    found: list[Any] = []
    for name in module_names():
        if library := missing(name):
            skip = pytest.mark.skip(reason=f"needs {library}")
            found.append(pytest.param(name, "", marks=skip, id=name))
            continue
        tests = doctest.DocTestFinder().find(import_module(name))
        found += [pytest.param(name, test.name, id=test.name) for test in tests if test.examples]
    return found


@pytest.fixture
def tables() -> Iterator[None]:
    """What an example adds to a table of names is taken out again."""
    found = (FIELDS, ENCODINGS, ACTIVATIONS, METRICS, REGULARISERS)
    before: list[dict[str, Any]] = [dict(table) for table in found]
    yield
    for table, entries in zip(found, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("module", "name"), doctests())
def test_examples(module: str, name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of one docstring run and show what they say."""
    tests = [test for test in doctest.DocTestFinder().find(import_module(module)) if test.name == name]
    assert tests, f"no examples in {name}"
    monkeypatch.chdir(tmp_path)
    out: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test, out=out.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(out)


def sections(doc: str) -> dict[str, str]:
    """Heading → text of the sections of a numpydoc docstring; the text before the first under an empty heading."""
    parts = _HEADING.split(inspect.cleandoc(doc))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def names_in(section: str) -> list[str]:
    """The names of the entries ``name : type`` or ``a, b : type`` of a section."""
    return [name for entry in _ENTRY.findall(section) for name in entry.split(", ")]


def parameters_of(function: Any) -> list[str]:
    """Names of the parameters as numpydoc writes them: with stars, without self."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = [stars.get(p.kind, "") + p.name for p in inspect.signature(function).parameters.values()]
    return [name for name in found if name not in ("self", "cls")]


def public_members(module: Any) -> Iterator[tuple[str, Any, Any]]:
    """(qualified name, object, its class or None) of the functions and classes of a module, and of their members."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value, None
        elif inspect.isclass(value):
            yield name, value, None
            for member, what in vars(value).items():
                plain = what.__func__ if isinstance(what, (classmethod, staticmethod)) else what
                is_property = isinstance(what, property) or type(what).__name__ == "cached_property"
                if not member.startswith("_") and (inspect.isfunction(plain) or is_property):
                    yield f"{name}.{member}", plain, value


def wrong_with(name: str, value: Any, owner: Any) -> list[str]:
    """What a docstring leaves out or says wrongly, one sentence each."""
    doc = inspect.getdoc(getattr(owner, name.split(".")[-1]) if owner is not None else value)
    if not doc or not doc.strip():
        return [f"{name}: no docstring"]
    parts = sections(doc)
    wrong = []
    if "\n" in parts[""].strip().split("\n\n")[0]:
        wrong.append(f"{name}: the summary is longer than a line")
    if inspect.isclass(value):
        own = dataclasses.is_dataclass(value) or "__init__" in vars(value)
        if not own or issubclass(value, BaseException) or getattr(value, "_is_protocol", False):
            return wrong
        expected = parameters_of(value.__init__)
        # A constructor with the signature of a base class need not be documented again.
        documented = (sections(inspect.getdoc(base) or "") for base in value.__mro__)
        parts = next((found for found in documented if {"Parameters", "Attributes"} & set(found)), parts)
    elif inspect.isfunction(value):
        expected = parameters_of(value)
        returned = value.__annotations__.get("return", "None")
        if returned not in ("None", None, "NoReturn") and not {"Returns", "Yields"} & set(parts):
            wrong.append(f"{name}: no Returns section")
    else:
        return wrong
    said = names_in(parts.get("Parameters", ""))
    if _BARE.search(parts.get("Parameters", "").rstrip() + "\n"):
        wrong.append(f"{name}: a parameter without its meaning on the next line")
    if inspect.isclass(value) and dataclasses.is_dataclass(value) and "Parameters" not in parts:
        said = names_in(parts.get("Attributes", ""))
    if sorted(said) != sorted(expected):
        wrong.append(f"{name}: Parameters are {', '.join(expected) or 'none'}, the docstring has {', '.join(said)}")
    return wrong


@pytest.mark.parametrize(
    "module",
    [name for name in module_names() if not any(within(name, package) for package in UNCHECKED)],
)
def test_docstrings_say_what_the_signatures_say(module: str) -> None:
    """Every public function, class, method and property has a docstring with the names of its parameters."""
    if library := missing(module):
        pytest.skip(f"needs {library}")
    wrong = [text for member in public_members(import_module(module)) for text in wrong_with(*member)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", itk_nir.__all__)
def test_public_names_have_parameters_and_examples(name: str) -> None:
    """Every stable name says what it takes or holds, and shows its use."""
    value = getattr(itk_nir, name)
    parts = sections(inspect.getdoc(value) or "")
    assert ">>> " in parts.get("Examples", ""), f"{name} has no example"
    if not issubclass(value, BaseException) if inspect.isclass(value) else parameters_of(value):
        assert "Parameters" in parts or "Attributes" in parts, f"{name} does not say what it takes"
