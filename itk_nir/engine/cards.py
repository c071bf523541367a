"""Which cards (GPUs) have passed the self-test: a note in the user's cache folder, which ``device="auto"`` asks for."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from itk_nir.errors import InputError, WriteError
from itk_nir.version import __version__


def cache_folder() -> Path:
    """The folder where the package keeps what can be made again: by the conventions of the system.

    Returns
    -------
    Path
        ``$ITK_NIR_CACHE`` where that is set; else ``$XDG_CACHE_HOME/itk-nir`` or ``~/.cache/itk-nir`` on Linux,
        ``~/Library/Caches/itk-nir`` on macOS, ``%LOCALAPPDATA%\\itk-nir\\Cache`` on Windows. It need not exist.
    """
    named = os.environ.get("ITK_NIR_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "itk-nir" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "itk-nir"
    given = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored, says the XDG base directory specification.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "itk-nir"


def driver_version() -> str:
    """The version of the driver of NVIDIA's cards, ``""`` where the system does not tell.

    Returns
    -------
    str
        That of the driver itself (Linux), else the newest CUDA that it knows.
    """
    try:
        found = re.search(r"Module\s+(?:for \S+\s+)?([0-9.]+)", Path("/proc/driver/nvidia/version").read_text())
        if found is not None:
            return found[1]
    except OSError:  # not Linux, or no such driver
        pass
    for name in ("libcuda.so.1", "nvcuda.dll"):
        number = ctypes.c_int()
        try:
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number)) == 0:
                return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
        except (OSError, AttributeError):  # no such library on this system
            continue
    return ""


def card(device: torch.device) -> dict[str, str]:
    """What a verdict of the self-test holds for: another card, driver, torch or package has to pass for itself.

    Parameters
    ----------
    device : torch.device
        A CUDA (or ROCm) device.

    Returns
    -------
    dict of str to str
    """
    return {
        "card": torch.cuda.get_device_name(device),
        "driver": driver_version(),
        "torch": torch.__version__,
        "itk-nir": __version__,
    }


def _file(about: dict[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "selftest" / f"{name}.json"


def has_passed(about: dict[str, str]) -> bool:
    """Whether the self-test was last passed with this card, driver, torch and package.

    Parameters
    ----------
    about : dict of str to str
        Of `card`.

    Returns
    -------
    bool
        False where it never ran, or its note cannot be read.
    """
    try:
        found: Any = json.loads(_file(about).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("passed") is True and found.get("about") == about


def remember(about: dict[str, str], passed: bool) -> Path | None:
    """Keep the verdict of a self-test.

    Parameters
    ----------
    about : dict of str to str
        Of `card`.
    passed : bool
        The verdict.

    Returns
    -------
    Path or None
        The note; None where it cannot be written, so that ``device="auto"`` stays with the CPU.
    """
    from itk_nir.atomic import replacing

    path = _file(about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"about": about, "passed": passed}, indent=1), encoding="utf-8")
    except (OSError, InputError, WriteError):
        return None
    return path
