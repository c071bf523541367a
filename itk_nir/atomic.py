"""Files that appear complete or not at all: one (`replacing`) or several together (`all_or_none`, `together`).

What is written goes into a hidden folder beside its place first. When all of it is complete, the files that are to be
replaced are kept in that folder too, and the new ones are renamed to their places; where anything fails, the old ones
come back. A lock in the place makes savers of one folder take turns while they rename, so that two sets of files do not
mix. The hidden folder of a process that was killed is removed by the next save to that place.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from itk_nir.companions import companions
from itk_nir.errors import InputError, ItkNirError, WriteError
from itk_nir.locks import file_number, host, lock, turn
from itk_nir.places import refuse_other_kind

#: What the names of hidden folders begin and end with.
_START, _END, _UNREADY = ".itk-nir-", ".part", ".new"
#: Seconds after which a hidden folder that nobody had time to lock is left over.
_FORGOTTEN = 3600.0


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file that appears complete or not at all.

    What the block writes under the name that it is given, and other files beside it (the voxels of a ``.mhd``), are
    renamed when the block ends. Where the block fails, nothing is left of it, and a file that `target` named before
    stays as it was.

    Parameters
    ----------
    target : str or os.PathLike
        The file to write. An existing one is replaced.

    Yields
    ------
    temporary : Path
        The same name in a hidden folder beside it.

    Raises
    ------
    InputError
        The folder of `target` does not exist, or something of another kind has that name.
    WriteError
        The disk is full, or refuses otherwise.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [(path.name, path.read_text()) for path in folder.iterdir()]
    [('note.txt', 'whole')]
    """
    path = Path(target)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if _is_hidden(path.parent):
        # In the hidden folder of a larger save, whose end decides.
        try:
            with _named(path):
                yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return
    refuse_other_kind(path)
    with together([path.parent]) as (stage,):
        with _named(path):
            yield stage / path.name
        if not (stage / path.name).exists():
            raise FileNotFoundError(errno.ENOENT, "was not written", str(path))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failure that names no file, such as that of writing to an open one, gets the name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and not isinstance(error, ItkNirError):
            error.filename = str(path)
        raise


@contextmanager
def all_or_none(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Write several files that appear together, complete, or not at all.

    When the block ends, everything in the folder that it was given moves to `folder` under its own name. Where anything
    fails, in the block or while the files move, nothing is left, neither files nor folders that had to be created, and
    files that were there before are there again. Files of the same name are replaced.

    Parameters
    ----------
    folder : str or os.PathLike
        Where the files shall be; created, with the folders above it, if it does not exist.

    Yields
    ------
    stage : Path
        A hidden folder to write into.

    Raises
    ------
    InputError
        Something that is no file of this kind has the name of one of the files.
    WriteError
        The disk is full, or refuses otherwise.
    """
    with together([folder]) as (stage,):
        yield stage


@contextmanager
def together(folders: Iterable[str | os.PathLike[str]]) -> Iterator[list[Path]]:
    """Write files into several folders that appear together, complete, or not at all, as `all_or_none` does in one.

    Parameters
    ----------
    folders : iterable of str or os.PathLike
        Where the files shall be; created if they do not exist.

    Yields
    ------
    stages : list of Path
        A hidden folder to write into for each of them.

    Raises
    ------
    InputError, WriteError
        As of `all_or_none`.
    """
    targets = [Path(folder) for folder in folders]
    if all(map(_is_hidden, targets)):
        yield targets  # the end of the larger save decides
        return
    created: list[Path] = []
    stages: list[_Stage] = []
    try:
        with signals_wait():
            for target in targets:
                stages.append(_Stage.begin(target, created))
        yield [stage.files for stage in stages]
        with signals_wait():
            _move(stages)
    except BaseException as error:
        with signals_wait():
            for stage in stages:
                stage.remove()
            for path in sorted(created, key=lambda p: -len(p.parts)):
                with suppress(OSError):  # another process may have put something there
                    path.rmdir()
        if isinstance(error, OSError) and not isinstance(error, ItkNirError):
            raise _explained(error, targets[0] if targets else Path()) from error
        raise


def _is_hidden(folder: Path) -> bool:
    """Whether a folder is one that a larger save writes into."""
    base = folder.parent.name
    return folder.name == "files" and base.startswith(_START) and base.endswith(_END)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let requests to end (Ctrl-C, SIGTERM, SIGHUP) wait until the block has ended. Other threads get none anyway.

    Yields
    ------
    None
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            handler = None if number is None else signal.getsignal(number)
            if number is not None and handler is not None and handler is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda n, _: waiting.append(n))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)


@dataclass(eq=False)
class _Stage:
    """A hidden folder: new files in ``files``, those that they replace in ``old``, a file that its process holds.

    Parameters
    ----------
    target : Path
        Where the new files are to be.
    base : Path
        The hidden folder.
    owner : int
        The open file that is locked as long as the process lives.
    """

    target: Path
    base: Path
    owner: int

    @property
    def files(self) -> Path:
        return self.base / "files"

    @classmethod
    def begin(cls, target: Path, created: list[Path]) -> _Stage:
        """Make it; what of the folders above had to be made is added to `created`."""
        for attempt in range(5):
            created += [p for p in (target, *target.parents) if not os.path.lexists(p) and p not in created]
            target.mkdir(parents=True, exist_ok=True)
            _remove_left(target)
            try:
                base = Path(tempfile.mkdtemp(prefix=_START, suffix=_UNREADY, dir=target))
                break
            except FileNotFoundError:  # another process took back the folder that it had made
                if attempt == 4:
                    raise
        owner = -1
        try:
            (base / "files").mkdir()
            owner = os.open(base / "owner", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.write(owner, f"{os.getpid()} {host()}\n".encode())
            lock(owner)
            # Under this name others may look whether the process is there: it is locked by now.
            ready = base.with_name(base.name[: -len(_UNREADY)] + _END)
            os.rename(base, ready)
        except BaseException:
            if owner >= 0:
                os.close(owner)
            shutil.rmtree(base, ignore_errors=True)
            raise
        return cls(target, ready, owner)

    def prepare(self) -> None:
        """Keep what will be replaced, and note what will move."""
        old = self.base / "old"
        old.mkdir()
        moving = {}
        for path in sorted(self.files.iterdir()):
            place = self.target / path.name
            refuse_other_kind(place)
            moving[path.name] = path.stat().st_ino
            if os.path.lexists(place):
                try:
                    os.link(place, old / path.name, follow_symlinks=False)
                except (OSError, NotImplementedError):  # not every file system has links
                    os.rename(place, old / path.name)
        (self.base / "moving").write_text(json.dumps(moving), encoding="ascii")

    def move(self) -> None:
        """Give the files their names."""
        for path in sorted(self.files.iterdir()):
            os.replace(path, self.target / path.name)

    def undo(self) -> None:
        """Put back what was there before `prepare`."""
        old = self.base / "old"
        try:
            moving = json.loads((self.base / "moving").read_text(encoding="ascii"))
        except (OSError, ValueError):
            moving = {}  # nothing moved yet
        for name, number in moving.items():
            place = self.target / name
            if not (old / name).exists() and file_number(place) == number:
                place.unlink(missing_ok=True)
        for path in old.iterdir() if old.is_dir() else ():
            if file_number(self.target / path.name) in (None, moving.get(path.name)):
                os.replace(path, self.target / path.name)

    def done(self) -> None:
        """Note that all files have their names: from here on nothing is put back."""
        (self.base / "moving").unlink()

    def remove(self) -> None:
        """Remove the hidden folder."""
        if self.owner >= 0:
            shutil.rmtree(self.base, ignore_errors=True)
            os.close(self.owner)
            self.owner = -1


def _move(stages: Sequence[_Stage]) -> None:
    """Give all files their names, or none."""
    with ExitStack() as held:
        for folder in sorted({stage.target.resolve() for stage in stages}):
            held.enter_context(turn(folder))
        try:
            for stage in stages:
                stage.prepare()
            for stage in stages:
                stage.move()
        except BaseException:
            for stage in stages:
                stage.undo()
            raise
        for stage in stages:
            stage.done()
            stage.remove()


def _remove_left(target: Path) -> None:
    """Remove the hidden folders of processes of this machine that were killed; what they had replaced comes back."""
    with suppress(OSError), os.scandir(target) as entries:
        left = [Path(e) for e in entries if e.name.startswith(_START) and e.is_dir(follow_symlinks=False)]
        for base in left:
            with suppress(OSError):  # another user's, or gone meanwhile
                _remove_if_left(target, base)


def _remove_if_left(target: Path, base: Path) -> None:
    if base.name.endswith(_UNREADY):
        if time.time() - base.stat().st_mtime > _FORGOTTEN:
            shutil.rmtree(base, ignore_errors=True)
        return
    if not base.name.endswith(_END):
        return
    owner = os.open(base / "owner", os.O_RDWR)
    try:
        where = os.read(owner, 1000).decode(errors="replace").strip().partition(" ")[2]
        if where != host() or not lock(owner):  # another machine's, alive, or no way to tell
            return
        stage = _Stage(target, base, owner)
        if (base / "moving").exists():
            with turn(target.resolve()):
                stage.undo()
        shutil.rmtree(base, ignore_errors=True)
    finally:
        os.close(owner)


_REMEDIES = {
    errno.ENOSPC: "make room, or choose another disk",
    errno.EDQUOT: "make room, or choose another disk",
    errno.EFBIG: "the limit on the size of files is too small",
}


def _explained(error: OSError, folder: Path) -> WriteError:
    """The error of a save, in terms of what the user knows."""
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, (str, bytes)) else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return WriteError(f"{folder / name}: cannot be written ({reason}); {remedy}; nothing was kept")


def refuse_if_full(path: Path, size: int) -> None:
    """Refuse to let a library write a file that there is no room for: some end the process where the disk is full.

    Parameters
    ----------
    path : Path
        The file; it does not exist yet, and does not afterwards.
    size : int
        Bytes that it will have at most.

    Raises
    ------
    OSError
        There is less room.
    """
    try:
        with open(path, "xb", buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
    finally:
        path.unlink(missing_ok=True)


def refuse_cut(path: Path) -> None:
    """Refuse a file that a library may have left without its end: where there was no room for that, there is none now.

    Parameters
    ----------
    path : Path
        The file, and those that belong to it.

    Raises
    ------
    OSError
        Not one byte more can be written to it.
    """
    for part in (path, *map(Path, companions(str(path)))):
        if not part.is_file():
            continue
        size = part.stat().st_size
        with open(part, "r+b", buffering=0) as file:
            file.seek(size)
            file.write(b"\0")
            file.truncate(size)


def split_prefix(prefix: str | os.PathLike[str]) -> tuple[Path, str]:
    """Take the start of several files' names apart into their folder and the start of each name.

    Parameters
    ----------
    prefix : str or os.PathLike
        A folder, where it ends in a slash, or a folder and the start of the names.

    Returns
    -------
    folder : Path
        The folder.
    start : str
        What every name begins with; empty for a folder.

    Examples
    --------
    >>> split_prefix("out/case_")[1], split_prefix("out/")[1], split_prefix("out/..")[1]
    ('case_', '', '')
    """
    text = os.fspath(prefix)
    if text.endswith(("/", os.sep)) or os.path.basename(text) in (os.curdir, os.pardir):
        return Path(text), ""
    return Path(text).parent, Path(text).name
