"""However it is run: settings of torch and NumPy, processes and threads, checkpoints, repeats, nonsense options."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

import itk_nir
from itk_nir import checkpoint
from itk_nir.compat.sitk import ImageRegistrationMethod
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom
from itk_nir.problem import Problem
from tests.robustness.campaign import Case

#: Without a linear stage, which takes most of such a registration's time; cases in which it has a part ask for one.
OPTIONS: dict[str, Any] = {"preset": "fast", "iterations": (6, 3, 2), "linear": "none", "threads": 1}


@cache
def _pair() -> Any:
    phantom = brain_phantom(2, (40, 44))
    return phantom, to_sitk(phantom.fixed, phantom.geometry), to_sitk(phantom.moving, phantom.moving_geometry)


def _register(**options: Any) -> itk_nir.RegistrationResult:
    _, fixed, moving = _pair()
    return itk_nir.register(fixed, moving, **{**OPTIONS, **options})


def _network() -> itk_nir.Settings:
    return itk_nir.make_settings("fast", network_above=0.0, iterations=(6, 3, 2))


def _everything() -> tuple[np.ndarray, ...]:
    """A registration with a network, its map, its samples, and images through it."""
    phantom, _, moving = _pair()
    points = np.array([[3.0, 4.0], [-5.0, 6.0]])
    result = itk_nir.register(_pair()[1], moving, preset=_network(), threads=1)
    labels = to_sitk(phantom.moving_labels, phantom.moving_geometry)
    return (
        result.warped_array,
        result.jacobian_array,
        result.field.map(points),
        result.field.displacement(points, inverse=True),
        result.field.sample(field_spacing=1).map(points),
        *(
            sitk.GetArrayFromImage(itk_nir.apply(labels, result, interpolation=how, threads=threads))
            for how, threads in (("nearest", 1), ("linear", 2), ("bspline", 1), ("bspline", 2))
        ),
    )


@cache
def _usual() -> tuple[np.ndarray, ...]:
    return _everything()


@cache
def _warped() -> np.ndarray:
    return _register().warped_array


def _unlike(found: Any, truth: Any) -> float:
    """0 where all bits are the same, else how far they are apart."""
    if isinstance(found, tuple):
        return max(_unlike(a, b) for a, b in zip(found, truth, strict=True))
    a, b = np.asarray(found), np.asarray(truth)
    if a.dtype != b.dtype or a.shape != b.shape:
        return math.inf
    return 0.0 if np.array_equal(a, b) else max(1e-12, float(np.abs(a.astype(float) - b.astype(float)).max()))


def _state() -> str:
    """Everything global that a caller may have set."""
    return repr(
        (
            torch.get_default_dtype(), torch.empty(0).device, torch.is_grad_enabled(), torch.get_num_threads(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.random.get_rng_state().double().sum().item(), np.geterr(), np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
            random.getstate(), sys.getrecursionlimit(), warnings.filters, np.get_printoptions(), dict(os.environ),
            np.float32(1e-40) * np.float32(1), signal.getsignal(signal.SIGINT), os.getcwd(),
        )
    )  # fmt: skip


@contextlib.contextmanager
def _set(on: Callable[[], Any], off: Callable[[], Any]) -> Iterator[None]:
    on()
    try:
        yield
    finally:
        off()


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    with _set(lambda: torch.set_num_threads(count), lambda: torch.set_num_threads(before)):
        yield


def _in(setting: Callable[[], Any]) -> Callable[[Path], float]:
    """The same bits under a setting, which is still there afterwards."""

    def run(folder: Path) -> float:
        truth = _usual()
        with setting():
            before = _state()
            found = _everything()
            if _state() != before:
                return math.inf
        return _unlike(found, truth)

    return run


def _callback_sees_the_callers_settings(folder: Path) -> float:
    seen = set()
    with _set(lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)):
        with torch.no_grad(), np.errstate(under="raise"):
            before = _state()
            result = _register(callback=lambda _: seen.add(_state()))
        return _unlike(result.warped_array, _warped()) if seen == {before} else math.inf


def _after_an_error(folder: Path) -> float:
    with torch.no_grad():
        before = _state()
        with contextlib.suppress(ZeroDivisionError):
            _register(callback=lambda _: 1 / 0)
        return 0.0 if _state() == before else math.inf


# --- processes and threads -------------------------------------------------------------------------------------------


def _saved() -> np.ndarray:
    """A registration, saved and read back: all that another process may do."""
    import tempfile

    result = _register()
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder + "/r_")
        points = np.array([[3.0, 4.0]])
        itk_nir.load_transform(folder + "/r_Composite.h5").map(points)
    return result.warped_array


def _child(work: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What a forked child finds; an error where it hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            data = pickle.dumps(work())
        except BaseException as error:
            data = pickle.dumps(repr(error))
        with os.fdopen(writing, "wb") as stream:
            stream.write(data)
        os._exit(0)
    os.close(writing)
    end = time.monotonic() + seconds
    import select

    data = b""
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while time.monotonic() < end:
            if select.select([stream], [], [], 0.1)[0]:
                part = stream.read(1 << 20)
                if not part:
                    break
                data += part
        else:
            os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not data:
        raise RuntimeError("the child hung")
    return pickle.loads(data)


def _fork_after_use(folder: Path) -> float:
    truth = _warped()
    return _unlike(_child(_saved), truth)


def _fork_while_busy(folder: Path) -> float:
    truth, stop, worst = _warped(), threading.Event(), 0.0

    def busy() -> None:
        while not stop.is_set():
            _saved()

    before = torch.get_num_threads(), torch.get_default_dtype()
    other = threading.Thread(target=busy)
    other.start()
    try:
        for pause in (0.05, 0.12):
            time.sleep(pause)
            found = _child(lambda: (_saved(), torch.get_num_threads(), torch.get_default_dtype()))
            worst = max(worst, _unlike(found[0], truth) if found[1:] == before else math.inf)
    finally:
        stop.set()
        other.join()
    return worst


def _fork_in_a_callback(folder: Path) -> float:
    truth, found = _warped(), list[Any]()

    def callback(_: Any) -> None:
        if not found:
            found.append(_child(_saved))

    return max(_unlike(_register(callback=callback).warped_array, truth), _unlike(found[0], truth))


def _in_a_pool(result: Any) -> tuple[Any, ...]:
    """In another process: what came with the pickle, and a registration of its own."""
    return result.warped_array, result.field.map([[3.0, 4.0]]), _register().warped_array


def _other_process(method: str) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        result = _register()
        with multiprocessing.get_context(method).Pool(1) as pool:
            found = pool.apply(_in_a_pool, (result,))
        return _unlike(found, (result.warped_array, result.field.map([[3.0, 4.0]]), _warped()))

    return run


def _threads_at_once(folder: Path) -> float:
    truth = _warped()
    with ThreadPoolExecutor(4) as pool:
        return max(_unlike(r.result().warped_array, truth) for r in [pool.submit(_register) for _ in range(6)])


def _asyncio(folder: Path) -> float:
    import asyncio

    async def work() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, _register) for _ in range(3)))

    return max(_unlike(r.warped_array, _warped()) for r in asyncio.run(work()))


def _script(folder: Path, lines: str) -> tuple[int, str]:
    """Run a program of its own; its exit status and what it wrote."""
    import subprocess

    head = (
        "import sys; sys.path[:0] = " + repr(sys.path) + "\n"
        "import atexit, threading, time\nfrom tests.robustness.cases_running import _register, _warped, _unlike\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + lines], capture_output=True, text=True, timeout=60, cwd=folder
    )
    return found.returncode, found.stdout + found.stderr


def _at_exit(folder: Path) -> float:
    status, text = _script(folder, "atexit.register(lambda: print(_unlike(_register().warped_array, _warped())))\n")
    return float(text.splitlines()[-1]) if status == 0 else math.inf


def _daemon_at_exit(folder: Path) -> float:
    lines = (
        "def busy():\n    while True: _register()\n"
        "_warped(); threading.Thread(target=busy, daemon=True).start(); time.sleep(0.4); print('end')\n"
    )
    status, text = _script(folder, lines)
    return 0.0 if (status, text.strip()) == (0, "end") else math.inf


# --- pickles and copies ----------------------------------------------------------------------------------------------


def _carried(make: Callable[[], Any], look: Callable[[Any], Any]) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        thing = make()
        truth = look(thing)
        ways = (copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)))
        return max(_unlike(look(way(thing)), truth) for way in ways)

    return run


def _used() -> itk_nir.RegistrationResult:
    """A result whose images and transforms were looked at."""
    result = _register()
    assert result.warped is not None
    return result


def _text(value: Any) -> np.ndarray:
    return np.frombuffer(repr(value).encode(), np.uint8)


# --- checkpoints -----------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The machine went down."""


def _stopped_after(folder: Path, writes: int, **options: Any) -> None:
    """A registration that is ended when it has written so many checkpoints."""
    plain, count = checkpoint.Checkpoints.write, 0

    def write(self: Any, entries: Any) -> None:
        nonlocal count
        plain(self, entries)
        count += 1
        if count == writes:
            raise _Stopped

    checkpoint.Checkpoints.write = write  # type: ignore[method-assign]
    try:
        with contextlib.suppress(_Stopped):
            _register(checkpoint=folder, checkpoint_seconds=0, **options)
    finally:
        checkpoint.Checkpoints.write = plain  # type: ignore[method-assign]
    assert any(folder.iterdir()), "it ended before"


def _resumed(writes: int, **options: Any) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        truth = _register(**options)
        _stopped_after(folder, writes, **options)
        found = _register(checkpoint=folder, checkpoint_seconds=0, **options)
        if any(folder.iterdir()) or found.report.trace != truth.report.trace:
            return math.inf
        return _unlike(found.warped_array, truth.warped_array)

    return run


def _resumed_from(change: Callable[[list[Path]], Any], **options: Any) -> Callable[[Path], float]:
    """From checkpoints that something happened to; the newest file comes first."""

    def run(folder: Path) -> float:
        _stopped_after(folder, 8)
        change(sorted(folder.iterdir(), reverse=True))
        return _unlike(_register(checkpoint=folder, **options).warped_array, _warped())

    return run


def _flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0x10
    path.write_bytes(bytes(data))


def _of_other(**options: Any) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        _stopped_after(folder, 3)
        _register(checkpoint=folder, **options)
        return 0.0

    return run


def _of_another_image(folder: Path) -> float:
    phantom, fixed, _ = _pair()
    _stopped_after(folder, 3)
    other = phantom.moving.copy()
    other[20, 20] += 1
    itk_nir.register(fixed, to_sitk(other, phantom.moving_geometry), checkpoint=folder, **OPTIONS)
    return 0.0


def _checkpoint_in_a_file(folder: Path) -> float:
    (folder / "f").write_text("x")
    _register(checkpoint=folder / "f")
    return 0.0


def _stopped_by_the_callback(folder: Path) -> float:
    count = iter(range(1000))
    first = _register(checkpoint=folder, checkpoint_seconds=0, callback=lambda _: next(count) > 7)
    assert first.report.stop == "cancelled"
    return _unlike(_register(checkpoint=folder).warped_array, _warped())


# --- repeats ---------------------------------------------------------------------------------------------------------


def _saved_run(folder: Path, **options: Any) -> itk_nir.RegistrationResult:
    _, fixed, moving = _pair()
    for name, image in (("f", fixed), ("m", moving)):
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    result = itk_nir.register(folder / "f.nii.gz", folder / "m.nii.gz", **{**OPTIONS, **options})
    result.save(folder / "r_")
    return result


def _repeated(change: Callable[[Path], dict[str, Any]] = lambda _: {}, **options: Any) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        truth = _saved_run(folder, **options)
        anew = change(folder)
        return _unlike(itk_nir.repeat(folder / "r_report.json", **anew).warped_array, truth.warped_array)

    return run


def _moved(folder: Path) -> dict[str, Any]:
    (folder / "m.nii.gz").rename(folder / "n.nii.gz")
    return {"moving": folder / "n.nii.gz"}


def _changed(folder: Path) -> dict[str, Any]:
    (folder / "m.nii.gz").write_bytes((folder / "f.nii.gz").read_bytes())
    return {}


def _report_with(**values: Any) -> Callable[[Path], dict[str, Any]]:
    def change(folder: Path) -> dict[str, Any]:
        report = json.loads((folder / "r_report.json").read_text())
        report["metrics"].update(values)
        (folder / "r_report.json").write_text(json.dumps(report))
        return {}

    return change


def _cut(folder: Path) -> dict[str, Any]:
    text = (folder / "r_report.json").read_text()
    (folder / "r_report.json").write_text(text[: len(text) // 2])
    return {}


def _from_memory(folder: Path) -> float:
    itk_nir.repeat(_register().report)
    return 0.0


# --- options ---------------------------------------------------------------------------------------------------------


def _asked(**options: Any) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        _register(**options)
        return 0.0

    return run


@cache
def _linear() -> itk_nir.RegistrationResult:
    return _register(linear="affine", deformable=False)


def _not_worse(**options: Any) -> Callable[[Path], float]:
    """How much farther from the truth than the linear map alone an extreme option leads, voxels."""

    def run(folder: Path) -> float:
        phantom, _, _ = _pair()
        inside = phantom.fixed_labels > 0
        points = phantom.geometry.grid()[inside]
        truth = points + phantom.displacement[inside]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = np.array(_linear().report.affine_matrix)
            found = _register(initial_transform=start, preset=itk_nir.make_settings("fast", **options))
            errors = [
                np.linalg.norm(r.transform_points(points) - truth, axis=1).mean() / min(phantom.geometry.spacing)
                for r in (_linear(), found)
            ]
        return float(max(0.0, errors[1] - errors[0]))

    return run


def _as_usual(**options: Any) -> Callable[[Path], float]:
    return lambda folder: _unlike(_register(**options).warped_array, _warped())


def _wide(folder: Path) -> float:
    """A radius beyond the image is one of its size, and nothing of it stays in memory."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = _register(radius=10**6, linear="affine", preset=itk_nir.make_settings("fast", linear_radius=10**6))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 0.0 if grown < 200_000 and found.report.verdict is not None else math.inf


CASES = [
    Case(
        "torch's default type is float64",
        _in(
            lambda: _set(lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32))
        ),
        within=0,
    ),
    Case(
        "torch's default type is bfloat16",
        _in(
            lambda: _set(
                lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_dtype(torch.float32)
            )
        ),
        within=0,
    ),
    Case(
        "torch's default device is another",
        _in(lambda: _set(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None))),
        within=0,
    ),
    Case("within torch.device", _in(lambda: torch.device("meta")), within=0),
    Case("within no_grad", _in(torch.no_grad), within=0),
    Case("within inference_mode", _in(torch.inference_mode), within=0),
    Case("within autocast", _in(lambda: torch.autocast("cpu", dtype=torch.bfloat16)), within=0),
    Case(
        "deterministic algorithms only",
        _in(
            lambda: _set(
                lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
            )
        ),
        within=0,
    ),
    Case("detection of anomalies", _in(lambda: torch.autograd.set_detect_anomaly(True)), within=0),
    Case(
        "matrix products of medium precision",
        _in(
            lambda: _set(
                lambda: torch.set_float32_matmul_precision("medium"),
                lambda: torch.set_float32_matmul_precision("highest"),
            )
        ),
        within=0,
    ),
    Case(
        "denormal numbers are flushed",
        _in(lambda: _set(lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False))),
        within=0,
    ),
    Case("seven torch threads", _in(lambda: _torch_threads(7)), within=0),
    Case("NumPy raises for every floating-point error", _in(lambda: np.errstate(all="raise")), within=0),
    Case(
        "other random generators",
        _in(lambda: _set(lambda: (torch.manual_seed(3), np.random.seed(3), random.seed(3)), lambda: None)),  # noqa: NPY002
        within=0,
    ),
    Case(
        "a low recursion limit",
        _in(lambda: _set(lambda: sys.setrecursionlimit(200), lambda: sys.setrecursionlimit(1000))),
        within=0,
    ),
    Case("print options", _in(lambda: np.printoptions(precision=1, threshold=2)), within=0),
    Case("a callback under the caller's settings", _callback_sees_the_callers_settings, within=0),
    Case("settings after an error in a callback", _after_an_error, within=0),
    Case("fork after use", _fork_after_use, within=0),
    Case("fork while another thread registers and saves", _fork_while_busy, within=0),
    Case("fork in a callback", _fork_in_a_callback, within=0),
    Case("a pool of forked processes", _other_process("fork"), within=0),
    Case("several threads at once", _threads_at_once, within=0),
    Case("asyncio's executor", _asyncio, within=0),
    Case("in an atexit handler", _at_exit, within=0),
    Case("a daemon thread at the end of the process", _daemon_at_exit, within=0),
    Case("a result is carried", _carried(_register, lambda r: (r.warped_array, r.jacobian_array)), within=0),
    Case(
        "a result that was used is carried",
        _carried(_used, lambda r: (r.warped_array, r.transform_points([[1.0, 2.0]]))),
        within=0,
    ),
    Case(
        "a trained field is carried",
        _carried(lambda: _register(preset=_network()).field, lambda f: f.map([[1.0, 2.0]])),
        within=0,
    ),
    Case("a report is carried", _carried(lambda: _register().report, lambda r: _text(r.as_dict())), within=0),
    Case("settings are carried", _carried(lambda: itk_nir.make_settings("paper"), _text), within=0),
    Case("a geometry is carried", _carried(lambda: _pair()[0].geometry, lambda g: g.grid()), within=0),
    Case(
        "a transform and its inverse are carried",
        _carried(lambda: _register().mapping, lambda t: (t.map(np.ones((1, 2))), t.inverse().map(np.ones((1, 2))))),
        within=0,
    ),
    Case(
        "a problem is carried",
        _carried(
            lambda: Problem.prepare(*_pair()[1:], itk_nir.make_settings("fast")), lambda p: p.pair().moving.numpy()
        ),
        within=0,
    ),
    Case(
        "the method in SimpleITK's words is carried",
        _carried(
            lambda: ImageRegistrationMethod(preset="fast", iterations=(6, 3, 2)),
            lambda m: np.array(m.Execute(*_pair()[1:]).TransformPoint((1.0, 2.0))),
        ),
        within=0,
    ),
    Case("resumed after the linear stage", _resumed(1, linear="affine"), within=0),
    Case("resumed within the first level", _resumed(4), within=0),
    Case("resumed after the first level", _resumed(7), within=0),
    Case("resumed at the last iteration", _resumed(11), within=0),
    Case("resumed within the training of a network", _resumed(3, preset=_network()), within=0),
    Case("resumed after the search", _resumed(9, search="always"), within=0),
    Case("resumed with a callback", _resumed(5, callback=lambda _: False), within=0),
    Case("resumed with another number of threads", _resumed_from(lambda files: None, threads=2), within=0),
    Case(
        "a checkpoint with a bit changed", _resumed_from(lambda files: _flip(files[0], 0.9)), within=0, warned="damaged"
    ),
    Case(
        "a checkpoint whose text is changed",
        _resumed_from(lambda files: _flip(files[0], 0.02)),
        within=0,
        warned="damaged",
    ),
    Case(
        "half a checkpoint",
        _resumed_from(lambda files: files[0].write_bytes(files[0].read_bytes()[:300])),
        within=0,
        warned="damaged",
    ),
    Case("an empty checkpoint", _resumed_from(lambda files: files[0].write_bytes(b"")), within=0, warned="damaged"),
    Case(
        "all checkpoints damaged",
        _resumed_from(lambda files: [f.write_bytes(b"x") for f in files]),
        within=0,
        warned="damaged",
    ),
    Case(
        "a folder with other files",
        _resumed_from(lambda files: (files[0].parent / "notes.txt").write_text("x")),
        within=0,
    ),
    Case("a checkpoint of another seed", _of_other(seed=1), refused="another seed"),
    Case("a checkpoint of another option", _of_other(smoothness=3.0), refused="another option smoothness"),
    Case("a checkpoint of another linear stage", _of_other(linear="rigid"), refused="another linear"),
    Case("a checkpoint of another image", _of_another_image, refused="another moving"),
    Case(
        "a checkpoint of another preset", _of_other(preset="accurate", iterations=(6, 3, 2)), refused="another option"
    ),
    Case(
        "a checkpoint for the published design",
        lambda folder: itk_nir.register(*_pair()[1:], preset="paper", checkpoint=folder) and 0.0,
        refused="has no checkpoints",
    ),
    Case("a file for the folder of checkpoints", _checkpoint_in_a_file, refused="no folder that can be written"),
    Case("a number for the folder of checkpoints", _asked(checkpoint=3), refused="name of a folder"),
    Case("resumed after a callback stopped it", _stopped_by_the_callback, within=0),
    Case("repeated from a report", _repeated(linear="affine"), within=0),
    Case(
        "repeated with infinity among the options",
        _repeated(preset=itk_nir.make_settings("fast", lorentzian_scale=math.inf, network=None)),
        within=0,
    ),
    Case("repeated with a matrix to start from", _repeated(initial_transform=np.eye(3)), within=0),
    Case("repeated with a moved file", _repeated(_moved), within=0),
    Case("repeated with another image under the name", _repeated(_changed), refused="moving is not what it was"),
    Case(
        "repeated with another version",
        _repeated(_report_with(versions={"numpy": "0.1"})),
        within=0,
        warned="numpy 0.1",
    ),
    Case(
        "repeated with an option beside the report",
        _repeated(lambda _: {"smoothness": 3}),
        refused="smoothness.*says it already",
    ),
    Case("repeated from half a report", _repeated(_cut), refused="cannot be read as a report"),
    Case("repeated from a report of before", _repeated(_report_with(call={})), refused="older version"),
    Case("repeated from images in memory", _from_memory, refused="fixed, moving was in memory"),
    Case("a radius of a million", _wide, within=0),
    Case("a radius beyond 32 bits", _asked(radius=2**31), refused="radius must be"),
    Case("threads beyond 32 bits", _as_usual(threads=2**31), within=0),
    Case("no preset", _asked(preset=None), refused="unknown preset None"),
    Case("a list for the preset", _asked(preset=["fast"]), refused="unknown preset"),
    Case("an array for the linear stage", _asked(linear=np.array(["rigid"])), refused="linear is one of"),
    Case("an array for the device", _asked(device=np.array([1, 2])), refused="device is"),
    Case("a word for the callback", _asked(callback="x"), refused="callback is a function"),
    Case(
        "ragged rows to start from",
        _asked(initial_transform=[[1, 0, 0], [0, 1]]),
        refused="initial transform: rows that are no matrix",
    ),
    Case(
        "words to start from",
        _asked(initial_transform=[["a", "b"], ["c", "d"]]),
        refused="initial transform",
    ),
    Case("a word for True", _asked(deformable="no"), refused="deformable is True or False"),
    Case("a word for the width of a network", lambda folder: itk_nir.FieldConfig(width="a") and 0.0, refused="width"),  # type: ignore[arg-type]
    Case("a smoothing of infinity", _asked(smoothing_sigmas=math.inf), refused="smoothing_sigmas must be"),
    Case("a thousand levels", _asked(shrink_factors=[1] * 1000), refused="levels"),
    Case(
        "NumPy's whole numbers",
        _as_usual(seed=np.int64(0), threads=np.int32(1), iterations=np.array([6, 3, 2])),
        within=0,
    ),
    Case(
        "voxels larger than the image",
        _asked(shrink_factors=(1024, 512, 256), preset=itk_nir.make_settings("fast", coarsest_grid_spacing=1024.0)),
        refused="nothing to compare",
    ),
    Case("an extreme smoothness", _not_worse(smoothness=1e4), within=0.1),
    Case("an extreme smoothness of the velocity", _not_worse(velocity_smoothness=1e4), within=0.1),
    Case("an extreme learning rate", _not_worse(learning_rates=20.0), within=0.1),
    Case("an extreme step of the network", _not_worse(network_radius=100.0, network_above=0.0), within=0.1),
    Case(
        "an extreme frequency of the network",
        _not_worse(network=itk_nir.FieldConfig(omega=1000.0), network_above=0.0),
        within=0.1,
    ),
]
