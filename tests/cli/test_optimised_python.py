"""Python without docstrings and assertions (``-OO``): nothing the user sees is made of them."""

from __future__ import annotations

import pytest

from itk_nir.cli import main
from tests.cli.commands import process

#: Some commands, one after the other. What others wrote is loaded as it is compiled already: to compile torch without
#: docstrings takes longer than all the rest.
PROGRAM = """
import importlib._bootstrap_external as loading
import sys

plain = loading.cache_from_source


def cache_from_source(path, *more, **named):
    return plain(path, *more, **named) if "itk_nir" in path else plain(path, optimization="")


loading.cache_from_source = cache_from_source

import itk_nir.cli

assert False, "assertions are looked at"
"""
WORDS = [["presets"], ["presets", "default"], ["register", "--help"]]
COMMANDS = f"""
for words in {WORDS!r}:
    try:
        itk_nir.cli.main(words)
    except SystemExit as stop:
        print("status", stop.code)
print("docstring", bool(itk_nir.cli.main.__doc__))
"""


@pytest.mark.slow
def test_the_same_text_without_docstrings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.__doc__
    for words in WORDS:
        try:
            main(words)
        except SystemExit as stop:
            print("status", stop.code)
    plain = capsys.readouterr().out
    assert plain.endswith("status 0\n")
    optimised = process("-OO", "-c", PROGRAM + COMMANDS, PYTHONIOENCODING="utf-8")
    assert optimised.stderr == ""
    assert optimised.returncode == 0
    assert optimised.stdout == plain + "docstring False\n"
