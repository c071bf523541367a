"""Files and places: names, full disks, what is there already, two at a time, signals, streams."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

import itk_nir
from itk_nir.atomic import all_or_none
from itk_nir.cli import main
from itk_nir.errors import ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, save_image, to_sitk
from itk_nir.phantom import brain_phantom
from itk_nir.points import load_points
from itk_nir.result import RegistrationResult
from itk_nir.transforms import CompositeTransform, LinearTransform
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import DisplacementField
from itk_nir.transforms.save import save_transform
from tests.robustness.campaign import Case

GRID = Geometry.make([24, 20], [1.5, 2.0], [3.0, -4.0])
GREY = np.random.default_rng(0).integers(0, 250, GRID.shape).astype(np.uint8)
SHIFT = CompositeTransform((LinearTransform.make(np.eye(2), [3.0, 4.0]),))


def _result(shift: float = 3.0) -> RegistrationResult:
    image = Volume(GREY.astype(np.float32), GRID, "image", "sitk", np.dtype(np.uint8))
    field = DisplacementField(GRID, np.full((*GRID.shape, 2), 0.25 * shift, np.float32))
    undo = DisplacementField(GRID, -field.vectors)
    return RegistrationResult(image, image, LinearTransform.make(np.eye(2), [shift, 4.0]), field, undo)


@cache
def _field() -> Any:
    phantom = brain_phantom(2, (48, 48))
    pair = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    return itk_nir.register(*pair, preset="fast", linear="none", iterations=1, threads=1)


def _content(folder: Path) -> dict[str, bytes | None]:
    regular = (p for p in folder.rglob("*") if p.is_symlink() or p.is_dir() or p.is_file())
    return {str(p): p.read_bytes() if p.is_file() else None for p in regular}


def _nothing_changes(job: Callable[[Path], Any], prepare: Callable[[Path], Any] = lambda _: None) -> Callable:
    """A case that is to be refused, and must leave the folder as it is."""

    def run(folder: Path) -> float:
        prepare(folder)
        before = _content(folder)
        try:
            job(folder)
        except ItkNirError:
            if _content(folder) != before:
                raise AssertionError(f"files have changed: {sorted(_content(folder))}") from None
            raise
        return 0.0

    return run


def _command(*words: str, status: int, err: str = "") -> None:
    """Run a command line; its exit status, and one line of error that holds a text."""
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        found = main([str(word) for word in words])
    text = told.getvalue()
    if found != status or err not in text or text.count("\n") != (1 if err else 0):
        raise AssertionError(f"exit status {found}, wanted {status}; standard error: {text!r}, wanted {err!r}")


# --- names -----------------------------------------------------------------------------------------------------------


def _prefix(name: str, refused: str, prefix: str, kind: str = "itk", prepare: Any = lambda _: None) -> Case:
    def job(folder: Path) -> None:
        _result().save(prefix.format(folder), kind)  # type: ignore[arg-type]

    return Case(f"prefix: {name}", _nothing_changes(job, prepare), refused)


def _touch(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


PREFIXES = [
    _prefix("empty", "name is empty", ""),
    _prefix("of 250 bytes", r"would have 2[0-9]+ bytes, and the file system takes 255", "{}/" + 250 * "n"),
    _prefix("of 240 bytes that are 120 characters", "would have", "{}/" + 120 * "é"),
    _prefix("a folder's name of 300 bytes", "would have 300 bytes", "{}/" + 300 * "n" + "/c_"),
    _prefix(
        "a path of 5000 bytes", "cannot be written|not writable|too long|would have", "{}/" + 1000 * "abcd/" + "c_"
    ),
    _prefix("a web address", "is a web address", "https://example.org/c_"),
    _prefix("a home folder's ~", "~ is for the shell to replace", "~/c_"),
    _prefix("not UTF-8", "not UTF-8", "{}/c\udcff_"),
    _prefix("with the character 0", "character of value 0", "{}/c\0_"),
    _prefix("in /proc", "not writable", "/proc/c_"),
    _prefix("in /sys", "not writable", "/sys/c_"),
    _prefix("in /dev/null", "is a file", "/dev/null/c_"),
    _prefix("below a file", "is a file", "{}/f/c_", prepare=_touch("f", "x")),
    _prefix(
        "below a link to nothing", "link that leads nowhere", "{}/f/c_", prepare=lambda f: (f / "f").symlink_to("no")
    ),
    _prefix(
        "below a link to itself", "link that leads nowhere", "{}/f/c_", prepare=lambda f: (f / "f").symlink_to("f")
    ),
    _prefix("with a quotation mark, elastix", "cannot hold a name with a quotation mark", '{}/a"b_', "elastix"),
    _prefix("with a line end, elastix", "cannot hold a name with", "{}/a\nb_", "elastix"),
    _prefix(
        "a folder in the place of the report",
        "report.json: is a folder",
        "{}/c_",
        prepare=lambda f: (f / "c_report.json").mkdir(),
    ),
    _prefix(
        "a folder in the place of the warped image",
        "is a folder",
        "{}/c_",
        "ants",
        lambda f: (f / "c_Warped.nii.gz").mkdir(),
    ),
    _prefix(
        "a pipe in the place of a transform",
        "is a named pipe",
        "{}/c_",
        prepare=lambda f: os.mkfifo(f / "c_Composite.h5"),
    ),
    _prefix(
        "another program's report.json", "was not written by this program", "{}/", prepare=_touch("report.json", "{}")
    ),
    _prefix(
        "text that is called .h5", "was not written by this program", "{}/c_", prepare=_touch("c_Composite.h5", "notes")
    ),
    _prefix("text that is called .nii.gz", "was not written by", "{}/c_", "ants", _touch("c_1Warp.nii.gz", "notes")),
]


def _written(name: str, prefix: str, start: str, folder: str = ".") -> Case:
    """A prefix that is odd and good: the files are there, and say what they should."""

    def run(place: Path) -> float:
        before = os.getcwd()
        (place / "sub").mkdir()
        os.chdir(place / "sub")
        try:
            paths = _result().save(prefix)
            if not (place / "sub" / folder / f"{start}Composite.h5").is_file():
                raise AssertionError(str(paths))
            gap = read_transform(paths["composite"]).map(np.array([[9.0, 9.0]])) - [[12.75, 13.75]]
            return float(np.abs(gap).max()) + float(load_image(paths["warped"], "w").geometry.size != GRID.size)
        finally:
            os.chdir(before)

    return Case(f"prefix: {name}", run)


WRITTEN = [
    _written("with a line end", "two\nlines_", "two\nlines_"),
    _written("with a leading dash", "-o_", "-o_"),
    _written("with spaces and wildcards", " a *?[b]_", " a *?[b]_"),
    _written("not ASCII", "é→中_", "é→中_"),
    _written("that begins with ~", "~c_", "~c_"),
    _written("with a percent sign and braces", "%d{0}_", "%d{0}_"),
    _written("that is a dot", ".", ""),
    _written("that is two dots", "..", "", ".."),
    _written("a folder and a dot", "new/.", "", "new"),
    _written("folders that do not exist", "x/y/z/", "", "x/y/z"),
    _written("236 bytes", 236 * "n", 236 * "n"),
]


# --- inputs that are no files ----------------------------------------------------------------------------------------


def _input(name: str, refused: str, source: str, prepare: Any = lambda _: None) -> list[Case]:
    """The same as an image, as points and as a transform."""
    readers: dict[str, Callable[[str], Any]] = {
        "image": lambda path: load_image(path, "image"),
        "points": load_points,
        "transform": itk_nir.load_transform,
    }
    return [
        Case(f"{what}: {name}", _nothing_changes(lambda f, read=read: read(source.format(f)), prepare), refused)
        for what, read in readers.items()
    ]


INPUTS = [
    *_input("a named pipe", "pipe, not a file", "{}/p.nii.gz", lambda f: os.mkfifo(f / "p.nii.gz")),
    *_input("an endless device", "is a device, not a file", "/dev/zero"),
    *_input("an empty name", "the name is empty|empty file name", ""),
    *_input("a web address", "is a web address|is an address", "https://example.org/f.nii.gz"),
    *_input(
        "a link to nothing",
        "is a link to (no, which|a file that does not exist)",
        "{}/f",
        lambda f: (f / "f").symlink_to("no"),
    ),
    *_input("a name of 300 bytes", "File name too long", "{}/" + 300 * "n"),
    *_input(
        "not UTF-8",
        "not UTF-8|no NIfTI header",
        "{}/f\udcff.nii.gz",
        lambda f: (f / "f\udcff.nii.gz").write_bytes(b"x"),
    ),
    *_input("the character 0", "character of value 0|zero character", "{}/f\0"),
    Case(
        "image: SimpleITK's label map object",
        lambda _: float(load_image(sitk.Cast(to_sitk(GREY, GRID), sitk.sitkLabelUInt8), "image").dimension),
        "is a SimpleITK label map object",
    ),
]


# --- an output that is an input --------------------------------------------------------------------------------------


def _same(name: str, words: Callable[[Path], tuple[str, ...]], prepare: Callable[[Path], Any]) -> Case:
    def run(folder: Path) -> float:
        save_image(GREY, GRID, folder / "i.nii.gz")
        save_transform(SHIFT, folder / "t.tfm")
        (folder / "p.csv").write_text("x,y\n1,2\n")
        prepare(folder)
        before = _content(folder)
        _command(*words(folder), status=2, err="and would be replaced; choose another name for the output")
        return float(_content(folder) != before)

    return Case(f"output is an input: {name}", run)


def _apply(folder: Path, image: str, output: str, transform: str = "t.tfm") -> tuple[str, ...]:
    files = ["--image", f"{folder}/{image}", "--transform", f"{folder}/{transform}", "--output", f"{folder}/{output}"]
    return ("apply", *files)


SAME = [
    _same("apply, one name", lambda f: _apply(f, "i.nii.gz", "i.nii.gz"), lambda _: None),
    _same(
        "apply, a link", lambda f: _apply(f, "i.nii.gz", "l.nii.gz"), lambda f: (f / "l.nii.gz").symlink_to("i.nii.gz")
    ),
    _same(
        "apply, a second name",
        lambda f: _apply(f, "i.nii.gz", "l.nii.gz"),
        lambda f: os.link(f / "i.nii.gz", f / "l.nii.gz"),
    ),
    _same(
        "apply, the reference",
        lambda f: (*_apply(f, "i.nii.gz", "r.nii.gz"), "--reference", f"{f}/r.nii.gz"),
        lambda f: save_image(GREY, GRID, f / "r.nii.gz"),
    ),
    _same(
        "apply, a displacement field",
        lambda f: _apply(f, "i.nii.gz", "d.nii.gz", "d.nii.gz"),
        lambda f: save_transform(_result().mapping, f / "d.nii.gz", reference=GRID),
    ),
    _same("apply, the voxels of a .mhd", lambda f: _apply(f, "m.mhd", "v.nrrd"), lambda f: _detached(f)),
    _same(
        "apply, points",
        lambda f: ("apply", "--points", f"{f}/p.csv", "--transform", f"{f}/t.tfm", "--output", f"{f}/x/../p.csv"),
        lambda f: (f / "x").mkdir(),
    ),
    _same("convert, one name", lambda f: ("convert", f"{f}/t.tfm", f"{f}/t.tfm"), lambda _: None),
    _same(
        "convert, ANTs' files of the same prefix",
        lambda f: ("convert", f"{f}/a_0GenericAffine.mat", f"{f}/a_", "--format", "ants"),
        lambda f: save_transform(SHIFT, f / "a_", format="ants"),
    ),
    _same(
        "register, a first result's image as the moving one",
        lambda f: ("register", "--fixed", f"{f}/i.nii.gz", "--moving", f"{f}/r_Warped.nii.gz", "--output", f"{f}/r_"),
        lambda f: _result().save(f / "r_"),
    ),
    _same(
        "register, the initial transform",
        lambda f: (
            "register",
            "--fixed",
            f"{f}/i.nii.gz",
            "--moving",
            f"{f}/i.nii.gz",
            "--output",
            f"{f}/r_",
            "--initial-transform",
            f"{f}/r_Composite.h5",
        ),
        lambda f: _result().save(f / "r_"),
    ),
    _same(
        "ants, the mask",
        lambda f: (
            "ants",
            "-d",
            "2",
            "-f",
            f"{f}/i.nii.gz",
            "-m",
            f"{f}/i.nii.gz",
            "-o",
            f"{f}/r_",
            "-x",
            f"{f}/r_Warped.nii.gz",
        ),
        lambda f: _result().save(f / "r_"),
    ),
]


def _detached(folder: Path) -> None:
    (folder / "v.nrrd").write_bytes(b"NRRD" + bytes(24 * 20 - 4))
    header = "ObjectType = Image\nNDims = 2\nDimSize = 24 20\nElementType = MET_UCHAR\nElementDataFile = v.nrrd\n"
    (folder / "m.mhd").write_text(header)


# --- the disk takes no more ------------------------------------------------------------------------------------------


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _full(name: str, size: int, job: Callable[[Path], Any], prepare: Callable[[Path], Any] | None = None) -> Case:
    def limited(folder: Path) -> None:
        with _files_of_at_most(size):
            job(folder)

    # There is an older file of each name, which must stay.
    return Case(
        f"no more room: {name}", _nothing_changes(limited, prepare or job), "cannot be written|the disk is full"
    )


FULL = [
    *(
        _full(
            f"image {ending} after {size} bytes",
            size,
            lambda f, ending=ending: save_image(GREY, GRID, f / f"i{ending}"),
        )
        for ending, size in (
            (".nii.gz", 360),
            (".nii", 400),
            (".nrrd", 300),
            (".mha", 300),
            (".mhd", 300),
            (".png", 90),
        )
    ),
    *(
        _full(
            f"transform {ending}",
            size,
            lambda f, ending=ending: save_transform(_result().mapping, f / f"t{ending}", reference=GRID),
        )
        for ending, size in ((".h5", 2000), (".tfm", 700), (".nii.gz", 200), (".mha", 1000))
    ),
    *(
        _full(f"result in the format {kind}", 500, lambda f, kind=kind: _result().save(f / "c_", kind))
        for kind in ("itk", "ants", "elastix", "slicer")
    ),
    _full("trained field", 300, lambda f: _field().save_field(f / "f.safetensors")),
]


def _apply_when_full(folder: Path) -> float:
    save_image(GREY, GRID, folder / "i.nii.gz")
    save_transform(SHIFT, folder / "t.tfm")
    before = _content(folder)
    with _files_of_at_most(380):
        _command(*_apply(folder, "i.nii.gz", "w.nii.gz"), status=1, err="w.nii.gz: cannot be written (File too large)")
    return float(_content(folder) != before)


# --- what was there --------------------------------------------------------------------------------------------------


def _replaced(folder: Path) -> float:
    _result(3.0).save(folder / "c_")
    paths = _result(5.0).save(folder / "c_")
    return float(np.abs(read_transform(paths["composite"]).map(np.array([[9.0, 9.0]])) - [[15.25, 14.25]]).max())


def _other_format(folder: Path) -> float:
    _result().save(folder / "c_")
    _result().save(folder / "c_", "slicer")
    return 0.0


def _last_rename_fails(folder: Path) -> float:
    _result().save(folder / "c_")
    before, real = _content(folder), os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "c_report.json" and Path(source).parent.name == "files":
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    os.replace = replace
    try:
        with suppress(ItkNirError):
            _result(5.0).save(folder / "c_")
            return 1.0
    finally:
        os.replace = real
    return float(_content(folder) != before)


def _two_at_a_time(folder: Path) -> float:
    """Two results, two threads, one prefix: the files are those of one of them after every turn."""
    wanted = []
    for shift in (3.0, 5.0):
        _result(shift).save(folder / f"{shift}" / "c_")
        names = ("c_Composite.h5", "c_InverseComposite.h5", "c_Warped.nii.gz")
        wanted.append({name: (folder / f"{shift}" / name).read_bytes() for name in names})
    mixed = 0
    for _ in range(6):
        threads = [threading.Thread(target=_result(shift).save, args=(folder / "c_",)) for shift in (3.0, 5.0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mixed += {name: (folder / name).read_bytes() for name in wanted[0]} not in wanted
    sizes = json.loads((folder / "c_report.json").read_text())["bytes"]
    return float(mixed + any((folder / name).stat().st_size != size for name, size in sizes.items()))


def _killed(folder: Path) -> float:
    child = os.fork()
    if child == 0:
        with all_or_none(folder) as stage:
            (stage / "c_Composite.h5").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = [p.name for p in folder.iterdir()]
    _result().save(folder / "c_")
    return float(len(left) != 1 or any(p.name.startswith(".") for p in folder.iterdir()))


# --- processes, streams, signals -------------------------------------------------------------------------------------


def _signalled(number: int, place: str) -> Case:
    """A signal within `apply`, before its file is complete: one line, the status, nothing left."""

    def run(folder: Path) -> float:
        import itk_nir.applying as resample
        import itk_nir.images.writing as writing

        save_image(GREY, GRID, folder / "i.nii.gz")
        save_transform(SHIFT, folder / "t.tfm")
        before = _content(folder)
        module, name = (writing, "_write_bytes") if place == "writing" else (resample, "resample")
        real = getattr(module, name)

        def asked(*arguments: Any, **options: Any) -> Any:
            done = real(*arguments, **options)
            signal.raise_signal(number)
            return done

        setattr(module, name, asked)
        try:
            words = _apply(folder, "i.nii.gz", "w.nii.gz")
            _command(*words, status=128 + number, err="; nothing was left behind")
        finally:
            setattr(module, name, real)
        return float(_content(folder) != before)

    return Case(f"{signal.Signals(number).name} while {place}", run)


def _working_folder_is_gone(folder: Path) -> float:
    before = os.getcwd()
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    try:
        (folder / "gone").rmdir()
        _command("presets", status=2, err="the current folder does not exist any more")
    finally:
        os.chdir(before)
    return 0.0


def _import_where_the_folder_is_gone(folder: Path) -> float:
    """In a process of its own, which has not imported torch yet: it would be ended."""
    tried = "try: itk_nir.register\nexcept itk_nir.InputError as error: print(error)"
    script = f"import os; os.rmdir(os.getcwd())\nimport itk_nir\n{tried}"
    (folder / "gone").mkdir()
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder / "gone",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(os.path.isabs, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if (done.returncode, done.stderr) != (0, "") or "does not exist any more" not in done.stdout:
        raise AssertionError(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
    return 0.0


def _in_the_c_locale(folder: Path) -> float:
    """Names that are UTF-8 though the locale knows ASCII alone, which is settled when a process starts."""
    save_image(GREY, GRID, folder / "é.nii.gz")
    save_transform(SHIFT, folder / "t.tfm")
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    words = ["apply", "--image", folder / "é.nii.gz", "--transform", folder / "t.tfm", "--output", folder / "ü→.nii.gz"]
    done = subprocess.run(
        [sys.executable, "-m", "itk_nir.cli", *map(str, words)],
        env={
            **os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": os.pathsep.join([root, *filter(os.path.isabs, sys.path)]),
        },
        capture_output=True,
        check=False,
    )  # fmt: skip
    if (done.returncode, done.stderr) != (0, b""):
        raise AssertionError(f"exit status {done.returncode}: {done.stderr!r}")
    moved = load_image(folder / "ü→.nii.gz", "w").array[:-2, :-2]
    return float(np.abs(moved - GREY[2:, 2:].astype(np.float32)).max() / 250)


def _no_streams(folder: Path) -> float:
    save_image(GREY, GRID, folder / "i.nii.gz")
    save_transform(SHIFT, folder / "t.tfm")
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    try:
        status = main([*_apply(folder, "i.nii.gz", "w.nii.gz")])
    finally:
        sys.stdout, sys.stderr = before
    wanted = np.zeros_like(GREY, np.float32)  # moved by 2 voxels along both axes
    wanted[:-2, :-2] = GREY[2:, 2:]
    return status + float(np.abs(load_image(folder / "w.nii.gz", "w").array - wanted).max() / 250)


CASES = [
    *PREFIXES,
    *WRITTEN,
    *INPUTS,
    *SAME,
    *FULL,
    Case("no more room: apply ends with status 1 and one line", _apply_when_full),
    Case("an older result of the same names is replaced as a whole", _replaced),
    Case("an older result in another format is told", _other_format, warned="are of another run"),
    Case("the last file cannot be replaced: the older ones are there again", _last_rename_fails),
    Case("two saves to one prefix at a time", _two_at_a_time),
    Case("what a killed process left is removed by the next", _killed),
    *(
        _signalled(n, place)
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for place in ("resampling", "writing")
    ),
    Case("the working folder was removed", _working_folder_is_gone),
    Case("the working folder was removed, before torch is imported", _import_where_the_folder_is_gone),
    Case("names that are not ASCII in the C locale", _in_the_c_locale),
    Case("neither standard output nor standard error", _no_streams),
]
