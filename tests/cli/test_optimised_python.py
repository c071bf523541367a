"""Python without docstrings and assertions (``-OO``): nothing the user sees is made of them."""

from __future__ import annotations

import pytest

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
COMMANDS = """
for words in (["presets"], ["presets", "default"], ["register", "--help"]):
    try:
        itk_nir.cli.main(words)
    except SystemExit as stop:
        print("status", stop.code)
print("docstring", bool(itk_nir.cli.main.__doc__))
"""


@pytest.mark.slow
def test_the_same_text_without_docstrings() -> None:
    plain = process("-c", PROGRAM.replace("assert False", "assert True") + COMMANDS)
    optimised = process("-OO", "-c", PROGRAM + COMMANDS)
    assert optimised.stderr == ""
    assert optimised.returncode == 0
    assert plain.stdout.endswith("status 0\ndocstring True\n")
    assert optimised.stdout == plain.stdout.replace("docstring True", "docstring False")
