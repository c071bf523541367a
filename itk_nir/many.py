"""`register_many`: many pairs at once, in worker processes that share a card or the cores."""

from __future__ import annotations

import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from itk_nir.checkpoint import checked_seconds
from itk_nir.engine import ops
from itk_nir.engine.execution import device_named, thread_count
from itk_nir.errors import InputError, ItkNirError, OptionError
from itk_nir.expectation import expected_card_memory, expected_memory, free_memory
from itk_nir.images import load_channels
from itk_nir.options import nearest_name, shown, whole_number
from itk_nir.places import InputFiles, named_files
from itk_nir.problem import checked_words
from itk_nir.registration import register
from itk_nir.report import Report
from itk_nir.result import RegistrationResult
from itk_nir.saving import check_result, result_files, shared_file
from itk_nir.settings import ARGUMENTS, make_settings
from itk_nir.transforms.save import check_format
from itk_nir.workers import Answer, Workers

if TYPE_CHECKING:
    from itk_nir.settings import Settings

#: What a pair may say beside the arguments of `itk_nir.register`: where its files go, and whose they are.
_OUTPUT = ("output", "format")
#: Which arguments `checked_words` takes.
_WORDS = ("linear", "deformable", "seed", "nan", "resample_shear", "strict_input")

#: What each process takes of a card for its context, bytes.
_CONTEXT = 0.3e9

#: Workers that share one card by default, at most: more gain little there.
_MOST_ON_CARD = 8

#: Of the free memory, what the pairs in flight may take by default.
_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class PairResult:
    """What came of one of many pairs.

    Parameters
    ----------
    index : int
        Its place among the pairs, from 0.
    pair : object
        The pair as it was given.
    result : RegistrationResult or None
        None where the files were written (`output`), and where the registration failed.
    report : Report or None
        Numbers about the registration; None where it failed.
    error : Exception or None
        Why it failed: what `itk_nir.register` or saving raised, or how its worker process ended.
    trace : str
        Where an error that is none of this package's was raised.
    files : dict of str to Path
        The files that were written, as of `RegistrationResult.save`.
    warnings : tuple of UserWarning
        What was warned of, among it a `VerdictWarning` where the evidence does not support the result.
    seconds : float
        From reading to the last file, in its process.

    Examples
    --------
    >>> import itk_nir
    >>> [one] = itk_nir.register_many([("no such image.nii.gz", "nor this.nii.gz")], in_flight=1)
    >>> one.index, one.ok, type(one.error).__name__
    (0, False, 'InputError')
    """

    index: int
    pair: Any
    result: RegistrationResult | None = None
    report: Report | None = None
    error: Exception | None = None
    trace: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    warnings: tuple[UserWarning, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the pair was registered and, where that was asked for, its files were written."""
        return self.error is None


def register_many(
    pairs: Iterable[Any],
    *,
    device: str = "auto",
    in_flight: int | None = None,
    threads: int | None = None,
    callback: Callable[[int, int | None, PairResult], Any] | None = None,
    **arguments: Any,
) -> Iterator[PairResult]:
    """Register many pairs, several at a time, and give each result as it comes.

    Each pair is registered as `itk_nir.register` does it, to the same bits. A pair that fails gives its error, and the
    others go on.

    Parameters
    ----------
    pairs : iterable
        ``(fixed, moving)``, or a mapping with arguments of `itk_nir.register` that hold for this pair alone, and:
        ``"output"``, a prefix for its files (as of `RegistrationResult.save`): its worker writes them and only the
        report comes back; ``"format"``, whose files they are. Taken one by one as they are needed, at most twice
        `in_flight` ahead of what has been given out. No pair may write over what another one reads: of a list or tuple
        all pairs are looked at, else those that have been taken.
    device : str
        As of `itk_nir.register`; the pairs in flight share it.
    in_flight : int, optional
        Pairs at the same time, each in a worker process; 1 registers in this one. Left out: on a CPU one for each core,
        on a card up to eight and half the cores, and fewer where memory is short or there are fewer pairs.
    threads : int, optional
        CPU threads for each pair; left out, the cores are shared evenly.
    callback : callable, optional
        Called as ``callback(done, total, pair_result)`` before each result is given; `total` is None where `pairs` does
        not tell its length.
    **arguments
        Any other argument and option of `itk_nir.register`, for all pairs; those of a pair go first. ``format`` too;
        ``fixed`` or ``moving``, where it is the same for all.

    Returns
    -------
    iterator of PairResult
        In the order in which they come; `PairResult.index` says which it is. Closing the iterator, or an exception in
        the loop over it, ends the workers.

    Raises
    ------
    OptionError
        An argument that cannot be, before any work.
    WorkerDied
        No worker process can be started.

    Notes
    -----
    Workers import this package, not the script that was started: what is defined there (a metric of one's own) has to
    be in a module for them, or `in_flight` 1.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = ((a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> pairs = [(fixed, moving), {"fixed": moving, "moving": fixed, "linear": "rigid"}]
    >>> for one in itk_nir.register_many(pairs, preset="fast", iterations=2, in_flight=1):
    ...     print(one.index, one.report.preset, one.result.affine.matrix.shape)
    0 fast (3, 3)
    1 fast (3, 3)
    """
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise OptionError(f"pairs is an iterable of (fixed, moving) or of mappings, got {shown(pairs)}")
    if callback is not None and not callable(callback):
        raise OptionError(f"callback is a function of done, total and a PairResult, got {shown(callback)}")
    settings = _checked(arguments)
    where = device_named(device)
    if threads is not None:
        threads = thread_count(threads)
    if in_flight is not None and ((count := whole_number(in_flight)) is None or count < 1):
        raise OptionError(f"in_flight is a whole number of at least 1, got {shown(in_flight)}")
    total = len(pairs) if isinstance(pairs, Sized) else None
    shared = {**arguments, "device": device}
    taken = _Taken()
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        taken.inputs.add(_files_of(_merged_or_none(pair, shared) or {}))
    return _results(iter(pairs), total, shared, (in_flight, threads), where, settings, callback, taken)


def _checked(arguments: Mapping[str, Any]) -> Settings:
    """The settings that hold for all pairs.

    Raises
    ------
    OptionError
        An argument that no pair could be registered with.
    """
    for name, instead in (
        ("output", "one prefix for each pair goes into its mapping"),
        ("checkpoint", "a folder for each pair goes into its mapping"),
    ):
        if arguments.get(name) is not None:
            raise OptionError(f"{name}: would be the same for all pairs; {instead}")
    check_format(arguments.get("format", "itk"), 3)
    checked_words(**{k: arguments[k] for k in _WORDS if k in arguments})
    checked_seconds(arguments.get("checkpoint_seconds", 60.0))
    own = {*ARGUMENTS, *_OUTPUT}
    return make_settings(arguments.get("preset", "default"), **{k: v for k, v in arguments.items() if k not in own})


def _results(
    pairs: Iterator[Any], total: int | None, shared: dict[str, Any], wanted: tuple[int | None, int | None],
    device: torch.device, settings: Settings, callback: Callable[[int, int | None, PairResult], Any] | None,
    taken: _Taken,
) -> Iterator[PairResult]:  # fmt: skip
    """The results, as they come."""
    try:
        first = next(pairs)
    except StopIteration:
        return
    room = math.inf if wanted[0] is not None else _room(_merged_or_none(first, shared), device, settings)
    count, threads = shares(*wanted, cores=thread_count(None), pairs=total, room=room, card=device.type != "cpu")
    if threads is not None:
        shared["threads"] = threads
    done = 0
    source = _numbered(first, pairs)
    found = _here(source, shared, taken) if count == 1 else _in_workers(source, shared, taken, count)
    try:
        for one in found:
            done += 1
            if callback is not None:
                callback(done, total, one)
            yield one
            del one  # it is the caller's now
    finally:
        found.close()


def _numbered(first: Any, rest: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    yield 0, first
    del first
    yield from enumerate(rest, 1)


def shares(
    in_flight: int | None, threads: int | None, *, cores: int, pairs: int | None, room: float, card: bool
) -> tuple[int, int | None]:
    """How many pairs are registered at a time, and on how many threads each.

    Parameters
    ----------
    in_flight, threads : int or None
        What the user says.
    cores : int
        Of the machine.
    pairs : int or None
        How many there are, where that is known.
    room : float
        Pairs for which there is memory.
    card : bool
        Whether they share a card.

    Returns
    -------
    tuple of (int, int or None)
        None for all threads.

    Examples
    --------
    >>> shares(None, None, cores=16, pairs=None, room=100, card=False)
    (16, 1)
    >>> shares(None, None, cores=16, pairs=None, room=5, card=True)
    (5, 3)
    >>> shares(2, None, cores=16, pairs=100, room=100, card=False)
    (2, 8)
    """
    if in_flight is None:
        usual = min(_MOST_ON_CARD, cores // 2) if card else cores // (threads or 1)
        in_flight = max(1, int(min(usual, room)))
    if pairs is not None:
        in_flight = max(1, min(in_flight, pairs))
    if threads is None and in_flight > 1:
        threads = max(1, cores // in_flight)
    return in_flight, threads


def _room(arguments: Mapping[str, Any] | None, device: torch.device, settings: Settings) -> float:
    """How many pairs like the first there is memory for; one that cannot be read says nothing."""
    if arguments is None or arguments.get("fixed") is None or arguments.get("moving") is None:
        return math.inf
    how = {name: arguments[name] for name in ("nan", "resample_shear") if name in arguments}
    try:
        fixed, moving = (load_channels(arguments[name], name, **how) for name in ("fixed", "moving"))
    except ItkNirError:  # its own turn will tell
        return math.inf
    grids, free = (fixed[0].geometry, moving[0].geometry), free_memory()
    needed = expected_memory(*grids, settings, len(fixed))
    room = math.inf if needed is None or free is None else _SHARE * free / needed
    if device.type == "cuda":
        needed = expected_card_memory(*grids, settings, device, len(fixed)) or 0
        room = min(room, _SHARE * torch.cuda.mem_get_info(device)[0] / (_CONTEXT + needed))
    return room


def _merged(pair: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pair: its own, and those that hold for all.

    Raises
    ------
    OptionError
        What is no pair, or lacks an image.
    """
    if isinstance(pair, Mapping):
        own = dict(pair)
    elif isinstance(pair, (tuple, list)) and len(pair) == 2:
        own = {"fixed": pair[0], "moving": pair[1]}
    else:
        raise OptionError(f"a pair is (fixed, moving) or a mapping with arguments of register, got {shown(pair)}")
    for name in own:
        if not isinstance(name, str) or name in ("callback", "in_flight"):
            raise OptionError(f"{shown(name)}: is nothing that a pair may say; it is for the whole call")
    merged = {**shared, **own}
    missing = [name for name in ("fixed", "moving") if merged.get(name) is None]
    if missing:
        hint = "".join(nearest_name(name, ["fixed", "moving"]) for name in own if name not in merged)
        raise OptionError(f"the pair has no {' and no '.join(missing)} image{hint}; give both")
    return merged


def _merged_or_none(pair: Any, shared: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return _merged(pair, shared)
    except OptionError:  # its own turn will tell
        return None


@dataclass(frozen=True, eq=False)
class _Taken:
    """What the pairs of a call write, by file whose it is, and what they read."""

    files: dict[str, int] = field(default_factory=dict)
    inputs: InputFiles = field(default_factory=InputFiles)


def _files_of(call: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a pair reads: a word such as "rigid" is none, though there may be a folder of that name."""
    words = (*_WORDS, "preset", "device")
    return named_files(*(value for name, value in call.items() if name in ARGUMENTS and name not in words))


def _call(index: int, pair: Any, shared: Mapping[str, Any], taken: _Taken) -> dict[str, Any]:
    """The arguments of a pair, whose files no other pair of the call writes or reads.

    Raises
    ------
    OptionError, InputError
        What cannot be a pair, or an output that is an output or an input of another one.
    """
    call = _merged(pair, shared)
    taken.inputs.add(_files_of(call))
    output, kind = call.get("output"), call.get("format", "itk")
    check_format(kind, 3)
    if output is not None:
        if not isinstance(output, (str, os.PathLike)):
            raise OptionError(f"output is the start of the names of files, got {shown(output)}")
        name = os.fsdecode(output)
        files = result_files(name, kind)
        shared_too = shared_file(files, taken.files, index)
        if shared_too is not None:
            file, before = shared_too
            raise InputError(
                f"output {name}: its file {file} is that of pair {before} too, which it would replace; give another"
            )
        taken.inputs.refuse(files)
    return call


@dataclass(frozen=True)
class _Done:
    """What comes back from where a pair was registered."""

    result: RegistrationResult | None
    report: Report
    files: dict[str, Path]
    warnings: tuple[UserWarning, ...]
    seconds: float

    def of(self, index: int, pair: Any) -> PairResult:
        return PairResult(
            index, pair, self.result, self.report, files=self.files, warnings=self.warnings, seconds=self.seconds
        )  # fmt: skip


def _registered(call: dict[str, Any]) -> _Done:
    """Register one pair, and write its files where it says where."""
    began = time.perf_counter()
    output, kind = call.pop("output", None), call.pop("format", "itk")
    if output is not None:
        check_result(output, kind, (), _files_of(call))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = register(**call)
        files = {} if output is None else result.save(output, kind)
    told = tuple(w.message for w in caught if isinstance(w.message, UserWarning))
    seconds = time.perf_counter() - began
    return _Done(result if output is None else None, result.report, files, told, seconds)


def register_in_worker(call: dict[str, Any]) -> Any:
    """Register one pair in a process that is there for nothing else.

    Parameters
    ----------
    call : dict
        Arguments of `itk_nir.register`, `output` and `format`.

    Returns
    -------
    object
        What came of it, for the process that asked.
    """
    # Away from a CPU the engine leaves the number of torch's threads as it is: that of the whole machine, here.
    torch.set_num_threads(thread_count(call.get("threads")))
    ops.return_blocks_from(8 << 20)
    return _registered(call)


def _here(
    pairs: Iterator[tuple[int, Any]], shared: Mapping[str, Any], taken: _Taken
) -> Generator[PairResult, None, None]:
    """One pair after the other, in this process."""
    for index, pair in pairs:
        try:
            found = _registered(_call(index, pair, shared, taken)).of(index, pair)
        except Exception as error:
            trace = "" if isinstance(error, ItkNirError) else traceback.format_exc()
            error.__traceback__ = None  # it holds the images
            found = PairResult(index, pair, error=error, trace=trace)
        yield found
        del found, pair


def _in_workers(
    pairs: Iterator[tuple[int, Any]], shared: Mapping[str, Any], taken: _Taken, count: int
) -> Generator[PairResult, None, None]:
    """Several pairs at a time, each in a worker; as many more wait, so that no worker does."""
    workers = Workers(count, ("itk_nir.many",))
    waiting: dict[int, Any] = {}
    more = True
    try:
        while more or waiting:
            if more and len(waiting) < 2 * count and not workers.answered():
                index, pair = next(pairs, (-1, None))
                if index < 0:
                    more = False
                    continue
                try:
                    workers.submit(index, register_in_worker, _call(index, pair, shared, taken))
                    waiting[index] = pair
                    del pair
                    continue
                except ItkNirError as error:
                    found = PairResult(index, pair, error=error)
            else:
                index, answer = workers.next()
                found = _of_answer(index, waiting.pop(index), answer)
                del answer
            yield found
            del found
    finally:
        workers.close()


def _of_answer(index: int, pair: Any, answer: Answer) -> PairResult:
    if isinstance(answer.value, _Done):
        return answer.value.of(index, pair)
    return PairResult(index, pair, error=answer.error, trace=answer.trace)
