"""Every kernel is compiled for the cards that there are, without one: nothing spills, and the registers are bounded."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import itk_nir
from itk_nir.engine.ops import cuda
from itk_nir.engine.ops.cuda import sums
from itk_nir.engine.ops.cuda.compiler import Compiler, CompilerError, runtime_compiler, text_of
from itk_nir.engine.ops.cuda.driving import Driver, DriverError

#: Turing, Ampere (server, desktop), Hopper, Blackwell (server, desktop).
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
#: Of a thread: two blocks of 256 threads share the registers of a multiprocessor.
MOST_REGISTERS = 128
#: AMD's servers (MI200) and desktops (RDNA 2).
AMD_ARCHITECTURES = ("gfx90a", "gfx1030")
#: Of a thread on an AMD card: three blocks of 256 threads share the vector registers of a compute unit.
MOST_VECTOR_REGISTERS = 168
#: File → the macros that it is compiled with; once without any where there are none.
DEFINES = {"lncc.cu": [("RADIUS=5",), ("RADIUS=12",)]}

TEXTS = sorted(f.name for f in (files("itk_nir.engine.ops.cuda") / "text").iterdir() if f.name.endswith(".cu"))
VARIANTS = [(file, defines) for file in TEXTS for defines in DEFINES.get(file, [()])]


@lru_cache(maxsize=1)
def nvrtc() -> Compiler | None:
    """The runtime compiler, of torch or of the wheel nvidia-cuda-nvrtc."""
    try:
        return runtime_compiler()
    except CompilerError:
        spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if "alt" not in library.name:
                return Compiler(ctypes.CDLL(str(library)), "nvrtc")
    return None


@lru_cache(maxsize=1)
def hip() -> ctypes.CDLL | None:
    """HIP's library, in which the runtime compiler and the driver are: no card is needed to load it."""
    for version in ("", *(f".{n}" for n in range(9, 4, -1))):
        try:
            return ctypes.CDLL(f"libamdhip64.so{version}")
        except OSError:
            continue
    return None


def log_of(compiler: Compiler, text: str, options: list[str]) -> str:
    """What the compiler says of each kernel."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    compiler._call("CreateProgram", ctypes.byref(program), text.encode(), b"itk_nir.cu", 0, None, None)
    words = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    status = compiler._function("CompileProgram")(program, len(options), words)
    compiler._call("GetProgramLogSize", program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    compiler._call("GetProgramLog", program, log)
    compiler._call("DestroyProgram", ctypes.byref(program))
    assert not status, log.value.decode()
    return log.value.decode()


def check(file: str, log: str, spilled: int = 0) -> int:
    """Every kernel of a file is in the log, spills no more bytes than that, and keeps within the limits.

    Returns the most registers that one of them takes.
    """
    wanted = sorted(re.findall(r"^KERNEL\((\w+)", text_of(file), re.MULTILINE))
    assert wanted
    assert sorted(re.findall(r"Function properties for (\w+)", log)) == wanted
    # nvcc, which no user's machine needs, spills a few registers where NVRTC spills none.
    assert all(int(n) <= spilled for n in re.findall(r"(\d+) bytes stack frame", log)), log
    assert all(int(n) <= spilled for n in re.findall(r"(\d+) bytes spill stores", log)), log
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(wanted)
    assert max(registers) <= MOST_REGISTERS
    # All shared memory is asked for at the launch.
    assert "smem" not in log
    return max(registers)


@cache
def checked(file: str, defines: tuple[str, ...], architecture: str) -> int:
    """The most registers that a kernel of a file takes on an architecture, all of them being within the limits."""
    compiler = nvrtc()
    if compiler is None:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc-cu12")
    options = [*compiler.options(architecture), "--ptxas-options=-v", *(f"-D{d}" for d in defines)]
    return check(file, log_of(compiler, text_of(file), options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc(architecture: str) -> None:
    for file, defines in VARIANTS:
        # A file of small kernels, which come nowhere near the limits, is compiled for the oldest and the newest alone.
        known = checked(file, defines, ARCHITECTURES[0])
        if known > MOST_REGISTERS / 2 or architecture in ARCHITECTURES[-1:]:
            checked(file, defines, architecture)


def notes_of(code: bytes, name: str) -> list[int]:
    """The values of a whole number that an AMD code object notes of each of its kernels, as MessagePack."""
    found = []
    for at in re.finditer(bytes([0xA0 | len(name)]) + re.escape(name.encode()), code):
        first, after = code[at.end()], code[at.end() + 1 :]
        wide = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(first)
        assert wide or first < 0x80, f"{name} is no whole number"
        found.append(int.from_bytes(after[:wide], "big") if wide else first)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", AMD_ARCHITECTURES)
def test_hiprtc(architecture: str) -> None:
    library = hip()
    if library is None:
        pytest.skip("no HIP here: of Debian, libamdhip64-5 and libhiprtc-builtins5")
    compiler = Compiler(library, "hiprtc")
    for file, defines in VARIANTS:
        code = compiler.compile(text_of(file), [*compiler.options(architecture), *(f"-D{d}" for d in defines)])
        kernels = len(re.findall(r"^KERNEL\((\w+)", text_of(file), re.MULTILINE))
        registers = notes_of(code, ".vgpr_count")
        assert len(registers) == kernels
        assert 0 < min(registers) <= max(registers) <= MOST_VECTOR_REGISTERS, file
        for spilled in (".vgpr_spill_count", ".sgpr_spill_count", ".private_segment_fixed_size"):
            assert notes_of(code, spilled) == [0] * kernels, (file, spilled)
        # All shared memory is asked for at the launch.
        assert notes_of(code, ".group_segment_fixed_size") == [0] * kernels, file


def test_functions_of_hip() -> None:
    """They are all there, and what one refuses is said in its words."""
    library = hip()
    if library is None:
        pytest.skip("no HIP here: of Debian, libamdhip64-5")
    driver = Driver(library, hip=True)
    with pytest.raises(DriverError, match=r"a module: hipError\w+ \(status 209\)"):
        driver.check(209, "a module")


def test_a_text_that_is_wrong_is_refused() -> None:
    compiler = nvrtc()
    if compiler is None:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc-cu12")
    with pytest.raises(CompilerError, match="undefined"):
        compiler.compile(text_of("adam.cu") + "KERNEL(wrong, (int i)) { i = nobody; }\n", compiler.options("sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "defines"), VARIANTS)
def test_nvcc(tmp_path: Path, file: str, defines: tuple[str, ...]) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on the PATH")
    source = tmp_path / file
    source.write_text(text_of(file))
    command = [nvcc, "-std=c++17", "-cubin", "-arch=sm_90", "-Xptxas", "-v", *(f"-D{d}" for d in defines)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check(file, done.stderr, spilled=16)


def test_shared_memory_of_a_histogram() -> None:
    """What every card gives without being asked is enough, and few bins are counted more than once."""
    for bins in range(4, 129):
        assert 8 * sums._copies(bins) * bins * bins <= sums.SHARED_BYTES < 48 * 1024
    assert sums._copies(32) == 4
    assert sums._copies(64) == 1
    assert sums._copies(65) == 0


def test_all_is_compiled_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A radius that cannot be had is no reason to do without the rest; a file is."""
    device, refused, asked, loaded = torch.device("cuda", 0), {("lncc.cu", ("RADIUS=8",))}, set(), []

    def compiled(file: str, architecture: str, defines: tuple[str, ...]) -> bytes:
        asked.add((file, defines))
        assert architecture == "sm_90"
        if (file, defines) in refused:
            raise CompilerError("too much shared memory")
        return b""

    monkeypatch.setattr(cuda, "compiled", compiled)
    monkeypatch.setattr(cuda, "architecture_of", lambda _: "sm_90")
    monkeypatch.setattr(cuda, "module_on", lambda file, defines, where: loaded.append(file))
    cuda.load(device)
    assert set(loaded) == {file for file in TEXTS if file != "lncc.cu"}
    assert {file for file, _ in asked} == set(TEXTS)
    refused.add(("warp.cu", ()))
    with pytest.raises(CompilerError, match="shared memory"):
        cuda.load(device)


def test_the_presets_use_no_other_radii() -> None:
    used = {itk_nir.make_settings(name).linear.linear_radius for name in ("fast", "default", "accurate")}
    for name in ("fast", "default", "accurate"):
        used |= set(itk_nir.make_settings(name).deformable.radius)
    assert used <= set(cuda.USUAL_RADII)


def test_threads_compile_to_the_same_code() -> None:
    compiler = nvrtc()
    if compiler is None:
        pytest.skip("no NVRTC here: pip install nvidia-cuda-nvrtc-cu12")

    def code(file: str) -> bytes:
        return compiler.compile(text_of(file), compiler.options("sm_90"))

    some = ("adam.cu", "banded.cu", "matching.cu", "warp.cu")
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(code, some))
    assert together == [code(file) for file in some]
