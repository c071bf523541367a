"""Worker processes: answers, errors, deaths, and that none outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.errors import InputError, OptionError, WorkerDied
from itk_nir.workers import Workers, packed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workers() -> Iterator[Workers]:
    threads = threading.active_count()
    made = Workers(2, ("operator",))
    yield made
    made.close()
    assert threading.active_count() == threads


def answers(workers: Workers, count: int) -> dict[Any, Any]:
    return dict(workers.next() for _ in range(count))


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_and_errors(workers: Workers, capfd: pytest.CaptureFixture[str]) -> None:
    """Values and large arrays come back, also what is printed stays out of the answers."""
    array = np.arange(300_000, dtype=np.float32)
    workers.submit("array", np.negative, array)
    workers.submit("print", print, "printed")
    workers.submit("divide", truediv, 1, 0)
    workers.submit("ours", InputError("x").__class__, "made there")
    workers.submit("pid", os.getpid)
    found = answers(workers, 5)
    assert found["print"].value is None
    assert found["print"].error is None
    np.testing.assert_array_equal(found["array"].value, -array)
    assert found["array"].value.flags.writeable
    assert isinstance(found["divide"].error, ZeroDivisionError)
    assert "function(*arguments)" in found["divide"].trace
    assert isinstance(found["ours"].value, InputError)
    assert found["pid"].value != os.getpid()
    assert capfd.readouterr().err == "printed\n"


def test_one_that_dies_is_replaced(workers: Workers) -> None:
    """What killed it is said for its call alone; one that dies while it waits costs no call."""
    workers.submit("sleep", time.sleep, 60)
    workers.submit("pid", os.getpid)
    key, pid = workers.next()
    assert key == "pid"
    workers.submit("exit", os._exit, 3)
    key, ended = workers.next()
    assert key == "exit"
    assert isinstance(ended.error, WorkerDied)
    assert "status 3" in str(ended.error)
    assert not is_there(pid.value)
    workers.submit("again", os.getpid)
    again = workers.next()[1].value
    assert again != pid.value
    os.kill(again, signal.SIGKILL)
    time.sleep(0.2)
    workers.submit("third", os.getpid)
    third = workers.next()[1]
    assert third.error is None
    assert third.value != again
    [sleeping] = [w.process.pid for w in workers._workers if w.process is not None and w.process.pid != third.value]
    os.kill(sleeping, signal.SIGKILL)
    key, killed = workers.next()
    assert key == "sleep"
    assert "signal SIGKILL" in str(killed.error)


def test_one_in_the_middle_of_something_clears_away_first(workers: Workers, tmp_path: Path) -> None:
    """Closed, a worker raises KeyboardInterrupt where it is, so that half a file does not stay."""
    program = (
        "import pathlib, time\nbegun, left = map(pathlib.Path, names)\n"
        "try:\n    begun.touch(); time.sleep(60)\nfinally:\n    left.touch()"
    )
    begun, left = tmp_path / "begun", tmp_path / "left"
    workers.submit("x", exec, program, {"names": (str(begun), str(left))})
    last = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < last:
        time.sleep(0.02)
    workers.close()
    assert left.exists()


def test_what_cannot_be_sent(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def here() -> None:
        """Of no module."""

    with pytest.raises(OptionError, match="the pair cannot be sent"):
        workers.submit("x", print, threading.Lock())
    here.__module__ = "__main__"
    with pytest.raises(OptionError, match=r"here is defined in the script .* in_flight=1"):
        packed(here, "x")
    workers.submit("lock", threading.Lock)
    assert "the result cannot be sent" in str(workers.next()[1].error)


def test_a_program_that_is_no_python() -> None:
    """What no worker can be started with is said once, not for every call."""
    workers = Workers(1, ("no_such_module_anywhere",))
    try:
        workers.submit("x", print)
        with pytest.raises(WorkerDied, match="no_such_module_anywhere"):
            workers.next()
    finally:
        workers.close()


#: Starts workers without a guard, tells their processes, and is killed while one is at work and will not be disturbed.
OWNER = '''
import os, sys, time
from itk_nir.workers import Workers
STUBBORN = """
import time
while True:
    try:
        open(begun, "w").close()
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
workers = Workers(2, ())
workers.submit(0, os.getpid)
workers.submit(1, exec, STUBBORN, {"begun": sys.argv[1]})
first = workers.next()[1].value
workers.submit(2, os.getpid)
workers.next()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
print(*(w.process.pid for w in workers._workers), flush=True)
time.sleep(60)
'''


def test_none_outlives_its_owner(tmp_path: Path) -> None:
    """The owner is killed: workers that wait and workers that are in the middle of something end."""
    script = tmp_path / "script.py"
    script.write_text(OWNER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path / "begun")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(set(pids)) == 2
        assert all(map(is_there, pids))
        owner.kill()
    last = time.monotonic() + 30
    while any(map(is_there, pids)) and time.monotonic() < last:
        time.sleep(0.05)
    assert not any(map(is_there, pids))
