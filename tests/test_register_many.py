"""Many pairs at once: the results of `register`, pairs that fail, workers that die, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.errors import WorkerDied
from itk_nir.images import save_image
from itk_nir.many import shares
from itk_nir.phantom import brain_phantom

QUICK: dict[str, Any] = {"preset": "fast", "linear": "none", "iterations": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    phantom = brain_phantom(2, (40, 48))
    return (phantom.fixed, phantom.geometry), (phantom.moving, phantom.geometry)


def children() -> set[int]:
    """The processes that this one has started and that are still there."""
    found = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def assert_same(a: itk_nir.RegistrationResult | None, b: itk_nir.RegistrationResult) -> None:
    """Bit for bit."""
    assert a is not None
    for name in ("displacement", "inverse_displacement"):
        np.testing.assert_array_equal(getattr(a, name).vectors, getattr(b, name).vectors)
    np.testing.assert_array_equal(a.affine.matrix, b.affine.matrix)
    np.testing.assert_array_equal(a.warped_array, b.warped_array)
    for name in ("inputs", "call", "similarity", "evidence", "verdict", "warnings"):
        assert getattr(a.report, name) == getattr(b.report, name), name


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the workers in /proc")
def test_as_register_whatever_becomes_of_the_others(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """Same bits; pairs that fail, files that a worker writes, one worker killed, one still at work at the end."""
    fixed, moving = pair
    before = children()
    taken: list[int] = []
    told: list[tuple[int, int | None, int]] = []

    def pairs() -> Iterator[Any]:
        for number in range(1000):
            taken.append(number)
            if number == 1:
                yield "no such file.nii.gz", moving
            elif number == 2:
                yield {"fixed": moving, "moving": fixed, "output": tmp_path / "two_", "format": "ants"}
            elif number == 3:
                yield [fixed]
            elif number == 4:
                yield {"fixed": fixed, "moving": moving, "output": str(tmp_path / "two_")}
            else:
                yield {"fixed": fixed, "moving": moving, "seed": number, "iterations": 2 if number < 7 else 10_000}

    many = itk_nir.register_many(
        pairs(), in_flight=2, threads=1, **QUICK, callback=lambda n, total, one: told.append((n, total, one.index))
    )
    assert taken == []
    found: dict[int, itk_nir.PairResult] = {}
    while not set(range(7)) <= set(found):
        one = next(many)
        found[one.index] = one
        assert len(taken) <= len(found) + 4  # those that were given out, and twice those in flight
    assert told == [(n, None, index) for n, index in enumerate(found, 1)]
    assert [index for index, one in found.items() if not one.ok] == sorted([1, 3, 4], key=list(found).index)
    assert isinstance(found[1].error, itk_nir.InputError)
    assert isinstance(found[3].error, itk_nir.OptionError)
    assert "is that of pair 2 too" in str(found[4].error)
    assert found[2].result is None
    assert found[2].report is not None
    assert {path.name for path in found[2].files.values()} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "two_1Warp.nii.gz").stat().st_size > 0
    for index in (0, 5, 6):
        more = {} if index == 0 else {"seed": index}
        assert_same(found[index].result, itk_nir.register(fixed, moving, threads=1, **more, **QUICK))
    assert found[5].pair["seed"] == 5
    workers = children() - before
    assert len(workers) == 2
    os.kill(min(workers), signal.SIGKILL)
    died = next(many)
    assert isinstance(died.error, WorkerDied)
    assert "SIGKILL" in str(died.error)
    many.close()  # type: ignore[attr-defined]
    assert children() == before


def test_in_this_process(pair: tuple[Any, Any]) -> None:
    """One image for all, warnings with their results, and nothing taken before its turn."""
    fixed, moving = pair
    noise = np.random.default_rng(0).normal(size=fixed[0].shape).astype(np.float32), fixed[1]
    taken: list[int] = []

    def pairs() -> Iterator[Any]:
        for number in range(2):
            taken.append(number)
            yield {"moving": (noise, moving)[number]}

    many = itk_nir.register_many(pairs(), fixed=fixed, in_flight=1, **QUICK)
    first = next(many)
    assert taken == [0]
    assert first.report is not None
    assert tuple(map(str, first.warnings)) == first.report.warnings != ()
    assert isinstance(first.warnings[-1], itk_nir.VerdictWarning)
    second = next(many)
    assert second.index == 1
    assert second.result is not None
    assert list(many) == []


def test_no_file_is_written_twice(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """Neither through another name of the folder nor by prefixes whose files overlap."""
    fixed, moving = pair
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    outputs = ["real/a", "link/a", "real/aInverse", "real/b"]
    pairs = [{"fixed": fixed, "moving": moving, "output": tmp_path / name} for name in outputs]
    found = list(itk_nir.register_many(pairs, in_flight=1, **QUICK))
    assert [one.ok for one in found] == [True, False, False, True]
    assert re.search(r"its file \S+aWarped.nii.gz is that of pair 0 too", str(found[1].error))
    assert re.search(r"its file \S+aInverseComposite.h5 is that of pair 0 too", str(found[2].error))


def test_a_format_that_does_not_exist_is_refused_without_an_output(pair: tuple[Any, Any]) -> None:
    fixed, moving = pair
    [one] = itk_nir.register_many([{"fixed": fixed, "moving": moving, "format": "bogus"}], in_flight=1, **QUICK)
    assert isinstance(one.error, itk_nir.OptionError)
    assert "bogus" in str(one.error)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pairs": "a,b"}, "pairs is an iterable"),
        ({"smoothnes": 1}, "did you mean 'smoothness'"),
        ({"linear": "rotation"}, "linear is one of"),
        ({"seed": -1}, "seed is a whole number"),
        ({"nan": "zero"}, "nan"),
        ({"threads": 0}, "threads is a whole number"),
        ({"in_flight": 0}, "in_flight is a whole number"),
        ({"device": "cuda:77"}, "device 'cuda:77'"),
        ({"format": "fsl"}, "format must be one of"),
        ({"output": "x"}, "would be the same for all pairs"),
        ({"checkpoint": "x"}, "would be the same for all pairs"),
        ({"callback": 3}, "callback is a function"),
    ],
)
def test_what_concerns_all_pairs_is_refused_at_once(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(itk_nir.OptionError, match=told):
        itk_nir.register_many(**{"pairs": iter([]), **arguments})


def test_shares_of_cores_and_card() -> None:
    for given, wanted in (
        ({"cores": 8}, (8, 1)),
        ({"cores": 8, "pairs": 3}, (3, 2)),
        ({"cores": 8, "room": 2.9}, (2, 4)),
        ({"cores": 8, "threads": 4}, (2, 4)),
        ({"cores": 8, "in_flight": 16, "room": 1}, (16, 1)),
        ({"cores": 1}, (1, None)),
        ({"cores": 16, "card": True}, (8, 2)),
        ({"cores": 64, "card": True}, (8, 8)),
        ({"cores": 16, "card": True, "room": 0.4}, (1, None)),
    ):
        arguments: dict[str, Any] = {"in_flight": None, "threads": None, "pairs": None, "room": np.inf, "card": False}
        if "in_flight" in given:
            given = {**given, "room": np.inf}
        assert shares(**{**arguments, **given}) == wanted, given


@pytest.mark.parametrize("lazy", [False, True])
def test_no_pair_writes_over_what_another_one_reads(lazy: bool, pair: tuple[Any, Any], tmp_path: Path) -> None:
    """Of a list in both directions, of an iterator what was read before; the other pairs go on."""
    files = [str(tmp_path / name) for name in ("a_Warped.nii.gz", "m.nii.gz", "b_Warped.nii.gz")]
    for file, (array, grid) in zip(files, (*pair, pair[0]), strict=True):
        save_image(array, grid, file)
    before = [Path(file).read_bytes() for file in files]
    pairs = [
        {"fixed": files[2], "moving": files[1], "output": tmp_path / "a_"},
        {"fixed": files[0], "moving": files[1], "output": tmp_path / "b_"},
        {"fixed": files[0], "moving": files[1], "output": tmp_path / "c_"},
    ]
    given = iter(pairs[1:]) if lazy else pairs
    found = list(itk_nir.register_many(given, in_flight=1, **QUICK))
    assert [one.ok for one in found] == ([True, True] if lazy else [False, False, True])
    assert all("and would be replaced" in str(one.error) for one in found[:-1] if not one.ok)
    if not lazy:
        assert [Path(file).read_bytes() for file in files] == before
    else:
        back = {"fixed": files[1], "moving": files[1], "output": tmp_path / "a_"}
        refused = list(itk_nir.register_many(iter([*pairs[2:], back]), in_flight=1, **QUICK))[1]
        assert "and would be replaced" in str(refused.error)
        assert Path(files[0]).read_bytes() == before[0]


def test_a_folder_called_as_a_word_is_no_input(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [{"fixed": pair[0], "moving": pair[1], "output": "none/"}]
    for _ in range(2):
        assert [one.error for one in itk_nir.register_many(pairs, in_flight=1, **QUICK)] == [None]
