"""Python without docstrings and assertions (``-OO``): nothing the user sees is made of them."""

from __future__ import annotations

import pytest

from tests.cli.commands import process


@pytest.mark.slow
@pytest.mark.parametrize("words", [("presets",), ("presets", "default"), ("register", "--help")])
def test_the_same_text_without_docstrings(words: tuple[str, ...]) -> None:
    plain, optimised = (process(*flags, "-m", "itk_nir.cli", *words) for flags in ((), ("-OO",)))
    assert optimised.stderr == ""
    assert optimised.returncode == 0
    assert optimised.stdout == plain.stdout
