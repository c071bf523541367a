"""Which cards ``device="auto"`` takes: those that have passed the self-test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from itk_nir.engine import cards
from itk_nir.engine.execution import device_named

CARD = {"card": "a card", "driver": "1.2", "torch": "2.11", "itk-nir": "0"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ITK_NIR_CACHE", raising=False)
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_a_verdict_holds_for_its_card_alone() -> None:
    assert not cards.has_passed(CARD)
    path = cards.remember(CARD, True)
    assert path is not None
    assert path.is_file()
    assert cards.has_passed(CARD)
    for name in CARD:
        assert not cards.has_passed(CARD | {name: "another"})
    cards.remember(CARD, False)
    assert not cards.has_passed(CARD)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": true}', '{"passed": 1, "about": {}}', "\0"])
def test_a_note_that_says_something_else_is_none(text: str) -> None:
    path = cards.remember(CARD, True)
    assert path is not None
    path.write_text(text)
    assert not cards.has_passed(CARD)


def test_a_folder_that_cannot_be_written(cache: Path) -> None:
    (cache / "itk-nir").write_text("a file in the way")
    assert cards.remember(CARD, True) is None
    assert not cards.has_passed(CARD)


def test_the_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert cards.cache_folder() == cache / "itk-nir"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cards.cache_folder() == cache / ".cache" / "itk-nir"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cards.cache_folder() == cache / "Library" / "Caches" / "itk-nir"
    monkeypatch.setattr("sys.platform", "win32")
    assert cards.cache_folder() == cache / "itk-nir" / "Cache"
    monkeypatch.setenv("ITK_NIR_CACHE", str(cache / "named"))
    assert cards.cache_folder() == cache / "named"


@pytest.mark.usefixtures("cache")
def test_auto_is_a_card_that_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    assert device_named("auto") == torch.device("cpu")
    about = cards.card(torch.device("cuda", 0))
    assert about["card"] == "a card"
    assert about["torch"] == torch.__version__
    cards.remember(about, True)
    assert device_named("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another card")
    assert device_named("auto") == torch.device("cpu")
