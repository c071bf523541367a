"""Files that appear complete or not at all, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import itk_nir
from itk_nir import locks
from itk_nir.atomic import all_or_none, replacing, signals_wait, split_prefix, together
from itk_nir.errors import InputError, WriteError


def write(folder: Path, text: str, names: Iterable[str] = "abc") -> None:
    with all_or_none(folder) as stage:
        for name in names:
            (stage / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too."""
    return {path.name: path.read_text() if path.is_file() else "folder" for path in folder.iterdir()}


def break_the_move_of(monkeypatch: pytest.MonkeyPatch, name: str, action: Any) -> None:
    """What happens when the new file of a name is to get it."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == name and Path(source).parent.name == "files":
            action()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def refuse() -> None:
    raise PermissionError(13, "Permission denied")


def test_old_files_come_back_where_one_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old", "abd")
    break_the_move_of(monkeypatch, "c", refuse)
    with pytest.raises(WriteError, match=r"cannot be written \(Permission denied\); .* nothing was kept"):
        write(tmp_path, "new", "abcd")
    assert content(tmp_path) == {"a": "old", "b": "old", "d": "old"}


def test_they_come_back_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path, "old")
    break_the_move_of(monkeypatch, "b", refuse)
    with pytest.raises(WriteError):
        write(tmp_path, "new")
    assert content(tmp_path) == dict.fromkeys("abc", "old")
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path, "new")
    assert content(tmp_path) == dict.fromkeys("abc", "new")


def test_a_folder_in_the_place_of_a_file_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="d: is a folder, and would be replaced"):
        write(tmp_path, "new", "abcd")
    assert content(tmp_path) == {**dict.fromkeys("abc", "old"), "d": "folder"}


def test_several_folders_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", "old", "a")
    break_the_move_of(monkeypatch, "b", refuse)

    def save() -> None:
        with together([tmp_path / "x", tmp_path / "y"]) as (x, y):
            (x / "a").write_text("new")
            (y / "b").write_text("new")

    with pytest.raises(WriteError):
        save()
    assert content(tmp_path) == {"x": "folder"}
    assert content(tmp_path / "x") == {"a": "old"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed anywhere")
def test_a_process_that_is_killed_while_it_renames_is_undone_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old", "ab")
    with monkeypatch.context() as patch:
        break_the_move_of(patch, "c", lambda: os.kill(os.getpid(), signal.SIGKILL))
        child = os.fork()
        if child == 0:
            write(tmp_path, "new", "abcd")
        os.waitpid(child, 0)
    assert content(tmp_path)["a"] == "new"  # it got that far
    with replacing(tmp_path / "other") as temporary:
        temporary.write_text("x")
    assert content(tmp_path) == {"a": "old", "b": "old", "other": "x"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed anywhere")
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with all_or_none(tmp_path) as stage:
            (stage / "half").write_text("h")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    with all_or_none(tmp_path) as mine:
        assert not left.exists()
        write(tmp_path, "x", "a")
        assert mine.is_dir()
        (mine / "b").write_text("y")
    assert content(tmp_path) == {"a": "x", "b": "y"}


def test_savers_of_one_place_take_turns(tmp_path: Path) -> None:
    seen = []

    def save(text: str) -> None:
        for _ in range(15):
            write(tmp_path, text, "abcdef")
            seen.append(text)

    threads = [threading.Thread(target=save, args=(text,)) for text in "123"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 45
    assert len(set(content(tmp_path).values())) == 1
    assert len(content(tmp_path)) == 6


def test_a_turn_that_never_comes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with locks.turn(tmp_path), pytest.raises(WriteError, match=rf"process {os.getpid()} on .* has been writing"):
        write(tmp_path, "new")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_between_two_renames_waits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(signal, name)

    class Stopped(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    try:
        break_the_move_of(monkeypatch, "b", lambda: signal.raise_signal(number))
        with pytest.raises(Stopped):
            write(tmp_path, "new")
        assert content(tmp_path) == dict.fromkeys("abc", "new")

        def save() -> None:
            with all_or_none(tmp_path) as stage:
                (stage / "a").write_text("newer")
                signal.raise_signal(number)

        with pytest.raises(Stopped):
            save()
        assert content(tmp_path) == dict.fromkeys("abc", "new")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_nobody_waits_for_what_is_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals_wait():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_file_that_was_not_written_does_not_appear(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(WriteError, match="was not written"), replacing(tmp_path / "a"):
        pass
    with pytest.raises(InputError, match="does not exist"), replacing(tmp_path / "no" / "a"):
        pass
    assert content(tmp_path) == {"a": "old"}


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    name = "n" * 255
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert content(tmp_path) == {name: "x"}
    with pytest.raises(WriteError, match="File name too long"):
        write(tmp_path, "x", [name + "n"])
    assert content(tmp_path) == {name: "x"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("data")
    (tmp_path / "a").symlink_to("data")
    write(tmp_path, "new", "a")
    assert content(tmp_path) == {"data": "data", "a": "new"}
    assert not (tmp_path / "a").is_symlink()


def test_room_is_asked_for_before_and_after(tmp_path: Path) -> None:
    """In a process of its own: the limit would hold for pytest too."""
    script = """
import resource, sys
from collections.abc import Iterable
from pathlib import Path
from itk_nir.atomic import refuse_cut, refuse_if_full
file = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
refuse_if_full(file, 1000)
for size in (1001, 10**9):
    try:
        refuse_if_full(file, size)
    except OSError as error:
        print(error.strerror)
assert not file.exists()
file.write_bytes(bytes(999))
refuse_cut(file)
assert file.stat().st_size == 999
file.write_bytes(bytes(1000))
try:
    refuse_cut(file)
except OSError as error:
    print(error.strerror)
"""
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "f.mha")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("File too large\n" * 3, "")


def test_a_dot_at_the_end_is_a_folder() -> None:
    for text in (".", "..", "a/.", "a/..", "a/"):
        assert split_prefix(text) == (Path(text), "")
    assert split_prefix("a/..b") == (Path("a"), "..b")
