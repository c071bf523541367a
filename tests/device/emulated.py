"""The kernels' text compiled by the C++ compiler of this machine, behind the package's own launcher.

CPU tensors go in, and what a card would compute comes out, in an order of threads and blocks that a seed draws.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from itk_nir.engine.ops.cuda import launching
from itk_nir.engine.ops.cuda.compiler import text_of

HERE = Path(__file__).parent
#: Flags of the compiler: a barrier is a change of stacks, which inlining must not see through.
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-DEMULATE")

_libraries: list[ctypes.CDLL] = []


def compiler() -> str:
    """The C++ compiler; the test is skipped where there is none."""
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler: the kernels cannot be emulated")
    return found


def build(folder: Path, text: str, name: str, defines: tuple[str, ...] = ()) -> Path:
    """A library with the kernels of a text. Test processes that run side by side share the folder."""
    library = folder / ("-".join([name, *defines]).replace("=", "") + ".so")
    part = folder / f"{library.stem}.{os.getpid()}.so"
    source = part.with_suffix(".cpp")
    source.write_text(text)
    command = [compiler(), *FLAGS, *(f"-D{d}" for d in defines), f"-I{HERE}", str(source), "-o", str(part)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    part.replace(library)
    return library


@contextmanager
def emulated_kernels(folder: Path, without: tuple[str, int] | None = None, hip: bool = False) -> Iterator[ModuleType]:
    """The ops of `engine.ops.cuda` on CPU tensors.

    `without` leaves out a barrier: of which file, and which one of its text, counted from 0; `hip` launches them by the
    functions of HIP's driver.
    """
    from itk_nir.engine.ops import cuda

    @cache
    def module_on(file: str, defines: tuple[str, ...], device: torch.device) -> launching.Module:
        name = Path(file).stem
        wanted = folder / ("-".join([name, *defines]).replace("=", "") + ".so")
        library = ctypes.CDLL(str(wanted if wanted.exists() else build(folder, text_of(file), name, defines)))
        library.emulate_order(order[0])
        if without is not None and file == without[0]:
            library.emulate_without(without[1])
        _libraries.append(library)
        return launching.Module(launching.Driver(library, hip), b"")

    def launch(
        file: str, kernel: str, grid: tuple, block: tuple, *arguments: object, shared: int = 0, defines: tuple = ()
    ) -> None:
        device = next(a for a in arguments if isinstance(a, torch.Tensor)).device
        module_on(file, defines, device).launch(kernel, grid, block, arguments, shared, 0)

    def prepare(
        file: str, kernel: str, grid: tuple, block: tuple, *arguments: object, shared: int = 0, defines: tuple = ()
    ) -> launching.Prepared:
        device = next(a for a in arguments if isinstance(a, torch.Tensor)).device
        return launching.Prepared(module_on(file, defines, device), kernel, grid, block, arguments, shared)

    def repeat(launches: list[launching.Prepared], device: torch.device) -> None:
        for one in launches:
            one.launch(None)

    order = [1]
    by = {"launch": launch, "prepare": prepare, "repeat": repeat, "most_shared": lambda device: 227 * 1024}
    by["module_on"] = module_on
    with launched_by(by):
        try:
            yield cuda
        finally:
            for library in _libraries:
                library.emulate_without(-1)


@contextmanager
def launched_by(by: dict[str, Any]) -> Iterator[None]:
    """Functions of `launching`, by their names, replaced wherever the kernels' package has taken them from there."""
    from itk_nir.engine.ops import cuda

    names = [(module, name) for module in _modules(cuda) for name in by if hasattr(module, name)]
    before = [(module, name, getattr(module, name)) for module, name in names]
    for module, name in names:
        setattr(module, name, by[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _modules(package: ModuleType) -> list[ModuleType]:
    import importlib
    import pkgutil

    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return [package, *(importlib.import_module(f"{package.__name__}.{name}") for name in names)]


def set_order(seed: int) -> None:
    """Draw the order of threads and blocks from a seed; 0 is their natural order."""
    for library in _libraries:
        library.emulate_order(seed)
