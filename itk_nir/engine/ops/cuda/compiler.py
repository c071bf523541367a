"""The kernels' text becomes code for a card: by NVRTC or hiprtc, which come with every torch that has CUDA or ROCm.

What was compiled is kept in the user's cache folder, named by the text, the architecture and the compiler, so that each
file is compiled once on a machine. No toolkit, no C compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from itk_nir.engine import cards


class CompilerError(RuntimeError):
    """The compiler is missing, or refuses the text."""


def text_of(file: str) -> str:
    """The text of one file of kernels, after what all of them share.

    Parameters
    ----------
    file : str
        Its name.

    Returns
    -------
    str
    """
    folder = files("itk_nir.engine.ops.cuda") / "text"
    return (folder / "common.cuh").read_text("utf-8") + (folder / file).read_text("utf-8")


@lru_cache(maxsize=64)  # a cache folder may not be writable
def compiled(file: str, architecture: str, defines: tuple[str, ...] = ()) -> bytes:
    """The code of one file of kernels for a card.

    Parameters
    ----------
    file : str
        Its name.
    architecture : str
        Such as ``"sm_90"`` or ``"gfx90a"``.
    defines : tuple of str
        Macros, such as ``"RADIUS=5"``.

    Returns
    -------
    bytes
        What the driver loads.

    Raises
    ------
    CompilerError
        There is no compiler, or it refuses the text.
    """
    text, compiler = text_of(file), runtime_compiler()
    options = [*compiler.options(architecture), *(f"-D{d}" for d in defines)]
    key = hashlib.sha256("\0".join([text, compiler.name, compiler.version, *options]).encode()).hexdigest()
    kept = cards.cache_folder() / "kernels" / f"{Path(file).stem}-{architecture}-{key[:24]}"
    try:
        return kept.read_bytes()
    except OSError:
        code = compiler.compile(text, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}.part")
        part.write_bytes(code)
        part.replace(kept)
    except OSError:
        # A cache that cannot be written to costs seconds in each process, no more.
        return code
    return code


class Compiler:
    """NVRTC or hiprtc, whose functions differ in their names alone.

    Parameters
    ----------
    library : ctypes.CDLL
        The library.
    name : str
        ``"nvrtc"`` or ``"hiprtc"``.
    """

    library: ctypes.CDLL
    name: str
    version: str

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.library, self.name = library, name
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def options(self, architecture: str) -> list[str]:
        """What the compiler is told for an architecture.

        Parameters
        ----------
        architecture : str
            Such as ``"sm_90"``.

        Returns
        -------
        list of str
        """
        if self.name == "hiprtc":
            return [f"--offload-arch={architecture}", "-std=c++17", "-O3"]
        return [f"--gpu-architecture={architecture}", "--std=c++17"]

    def compile(self, text: str, options: Sequence[str]) -> bytes:
        """Compile a text.

        Parameters
        ----------
        text : str
            CUDA C++ without an include.
        options : sequence of str
            See `options`.

        Returns
        -------
        bytes
            Code for one architecture.

        Raises
        ------
        CompilerError
            With the first lines of what the compiler says.
        """
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), b"itk_nir.cu", 0, None, None)
        try:
            words = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
            status = self._function("CompileProgram")(program, len(options), words)
            if status:
                self._call("GetProgramLogSize", program, ctypes.byref(size))
                log = ctypes.create_string_buffer(size.value + 1)
                self._call("GetProgramLog", program, log)
                raise CompilerError(f"{self.name} {self.version}: {log.value.decode(errors='replace')[:1000]}")
            what = "Code" if self.name == "hiprtc" else "CUBIN"
            self._call(f"Get{what}Size", program, ctypes.byref(size))
            code = ctypes.create_string_buffer(size.value)
            self._call(f"Get{what}", program, code)
            return code.raw
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _function(self, name: str) -> Any:
        return getattr(self.library, self.name + name)

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._function(name)(*arguments)
        if status:
            raise CompilerError(f"{self.name}{name} failed with status {status}")


@lru_cache(maxsize=1)
def runtime_compiler() -> Compiler:
    """The compiler that came with torch.

    Returns
    -------
    Compiler

    Raises
    ------
    CompilerError
        None of its libraries can be loaded.
    """
    name = "hiprtc" if torch.version.hip else "nvrtc"
    tried = []
    for library in _libraries(name):
        try:
            return Compiler(ctypes.CDLL(library), name)
        except OSError as error:
            tried.append(str(error))
    raise CompilerError(f"{name}, the compiler that comes with torch, was not found ({'; '.join(tried[:2])})")


def _libraries(name: str) -> list[str]:
    """Names and paths under which the library may be found, the likeliest first."""
    if name == "hiprtc":
        folder = Path(torch.__file__).parent / "lib"
        return [*map(str, sorted(folder.glob("libhiprtc.so*"))), "libhiprtc.so", "hiprtc.dll"]
    major = (torch.version.cuda or "12").split(".")[0]
    if sys.platform == "win32":
        folder = Path(torch.__file__).parent / "lib"
        return [*map(str, sorted(folder.glob(f"nvrtc64_{major}*_0.dll"))), f"nvrtc64_{major}0_0.dll"]
    packages = Path(torch.__file__).parent.parent / "nvidia"
    found = [
        path for folder in (f"cu{major}", "cuda_nvrtc") for path in packages.glob(f"{folder}/lib/libnvrtc.so.{major}")
    ]
    # The bare name first: where torch has loaded its own, that is the one.
    return [f"libnvrtc.so.{major}", *map(str, found), "libnvrtc.so"]
