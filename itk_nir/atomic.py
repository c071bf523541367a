"""Several files that appear together, complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def all_or_none(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a hidden folder to write into; when the block ends, everything in it moves to `folder` under its own name.

    Where anything fails, in the block or while the files move, nothing is left: neither files that took a free name
    nor folders that had to be created. Files of the same name are replaced.
    """
    target = Path(folder)
    created = [p for p in (target, *target.parents) if not p.exists()]
    moved: list[Path] = []
    stage: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Within the target, so that moving is a rename; hidden, so that a killed run leaves no half-written name.
        stage = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=target))
        yield stage
        for path in sorted(stage.iterdir()):
            free = not (target / path.name).exists()
            os.replace(path, target / path.name)
            if free:
                moved.append(target / path.name)
        stage.rmdir()
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def split_prefix(prefix: str | os.PathLike[str]) -> tuple[Path, str]:
    """``"out/case_"`` → (folder ``out``, ``"case_"``); ``"out/"`` → (folder ``out``, ``""``)."""
    text = os.fspath(prefix)
    if text.endswith(("/", os.sep)):
        return Path(text), ""
    return Path(text).parent, Path(text).name
