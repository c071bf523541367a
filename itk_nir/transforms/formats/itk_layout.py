"""Whether one of ITK's text or MATLAB transform files is whole: ITK's own readers take the rest of a cut file as zeros,
or as a shorter number."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError, warn_caller

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CLASS = re.compile(r"(\w+?)_(?:float|double)_(\d+)_(\d+)(?:_\d+)?", re.ASCII)
_COUNT = "#Number of transforms: "


def _matrix(d: int) -> int:
    return d * d + d


#: Class -> numbers of its parameters, and of its fixed parameters.
_SIZES: dict[str, tuple[Callable[[int], int], tuple[int, ...]]] = {
    "AffineTransform": (_matrix, (-1,)),
    "MatrixOffsetTransformBase": (_matrix, (-1,)),
    "TranslationTransform": (lambda d: d, (0,)),
    "ScaleTransform": (lambda d: d, (-1, 0)),
    "IdentityTransform": (lambda d: 0, (0,)),
    "Euler2DTransform": (lambda d: 3, (2,)),
    "Rigid2DTransform": (lambda d: 3, (2,)),
    "Similarity2DTransform": (lambda d: 4, (2,)),
    "CenteredAffineTransform": (lambda d: d * d + 2 * d, (-1,)),
    "CenteredRigid2DTransform": (lambda d: 5, (2,)),
    "CenteredSimilarity2DTransform": (lambda d: 6, (2,)),
    "CenteredEuler3DTransform": (lambda d: 9, (3, 4)),
    "QuaternionRigidTransform": (lambda d: 7, (3,)),
    "ScaleLogarithmicTransform": (lambda d: d, (-1, 0)),
    "Euler3DTransform": (lambda d: 6, (3, 4)),
    "VersorTransform": (lambda d: 3, (3,)),
    "VersorRigid3DTransform": (lambda d: 6, (3,)),
    "Similarity3DTransform": (lambda d: 7, (3,)),
    "ScaleVersor3DTransform": (lambda d: 9, (3,)),
    "ScaleSkewVersor3DTransform": (lambda d: 15, (3,)),
    "ComposeScaleSkewVersor3DTransform": (lambda d: 12, (3,)),
}
_ON_A_GRID = ("DisplacementFieldTransform", "BSplineTransform")


def add_count(path: Path, count: int) -> None:
    """Write the number of transforms into the head of a text file, which has no other sign of its end.

    Parameters
    ----------
    path : Path
        A file that ITK wrote.
    count : int
        How many transforms it holds; of a composite the parts.
    """
    head, rest = path.read_text(encoding="ascii").split("\n", 1)
    path.write_text(f"{head}\n{_COUNT}{count}\n{rest}", encoding="ascii")


def check_text(path: Path, label: str) -> None:
    """Refuse an ITK text file that is cut off or has other numbers of parameters than its classes have.

    Parameters
    ----------
    path : Path
        A ``.tfm`` or ``.txt``.
    label : str
        What opens every message.

    Raises
    ------
    InputError
        The file is damaged.

    Warns
    -----
    UserWarning
        A composite of one transform, as a file that was cut between two would be.
    """
    # A comment may be in any encoding.
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if not text.startswith("#Insight Transform File V1.0"):
        raise InputError(
            f"{label}: damaged or no ITK transform file (its first line is '#Insight Transform File V1.0')"
        )
    lines = text.split("\n")
    if lines[-1].strip():
        raise _damaged(label, "its last line is not complete")
    told = next((line[len(_COUNT) :].strip() for line in lines if line.startswith(_COUNT)), None)
    rest = [line.rstrip() for line in lines[1:] if line.strip() and not line.startswith(_COUNT)]
    found = composites = 0
    while rest:
        name, d, used = _block(rest, label)
        if name == "CompositeTransform":
            composites += 1
        else:
            found += 1
            _check_sizes(name, d, _numbers(rest[used - 2], label), _numbers(rest[used - 1], label), label)
        rest = rest[used:]
    if found == 0 or (told is not None and told != str(found)):
        raise _damaged(label, f"it holds {found} transforms" + ("" if told is None else f" of {told}"))
    if told is None and composites and found == 1:
        warn_caller(f"{label}: a composite of one transform, which is what a file cut after its first looks like")


def check_matlab(path: Path, label: str) -> None:
    """Refuse an ITK ``.mat`` file whose length is not the one that its header words say.

    Parameters
    ----------
    path : Path
        The file.
    label : str
        What opens every message.

    Raises
    ------
    InputError
        The file is damaged, or MATLAB's own.
    """
    raw = path.read_bytes()
    if raw.startswith(b"MATLAB 5.0"):
        raise InputError(
            f"{label}: is a MATLAB 5 file, SPM's perhaps, no transform of ITK's; make a field of it (y_*.nii) or give "
            "the matrix"
        )
    first, at = _variable(raw, 0, label)
    second, end = _variable(raw, at, label)
    match = _CLASS.fullmatch(first[0])
    if match is None or second[0] != "fixed" or end != len(raw) or match[2] != match[3]:
        raise _damaged(label, f"its variables are {first[0][:60]!r} and {second[0][:20]!r} in {len(raw)} bytes")
    _check_sizes(match[1], int(match[2]), first[1], second[1], label)


def _block(lines: list[str], label: str) -> tuple[str, int, int]:
    """Class and dimension of the transform that begins at the first line, and how many lines it has."""
    begin = next((k for k, line in enumerate(lines) if not line.startswith("#")), None)
    if begin is None:
        raise _damaged(label, "it ends before a transform that it announces")
    match = re.fullmatch(r"Transform: (\S+)", lines[begin])
    kind = None if match is None else _CLASS.fullmatch(match[1])
    if kind is None or kind[2] != kind[3]:
        raise _damaged(label, f"at {lines[begin][:60]!r}")
    if kind[1] == "CompositeTransform":
        return kind[1], int(kind[2]), begin + 1
    names = [line.split(":")[0] for line in lines[begin + 1 : begin + 3]]
    if names != ["Parameters", "FixedParameters"]:
        raise _damaged(label, f"a {kind[1]} lacks its parameters")
    return kind[1], int(kind[2]), begin + 3


def _numbers(line: str, label: str) -> np.ndarray:
    cells = line.split(":", 1)[1].split()
    # A field may have millions of numbers: NumPy reads them, and a look at the letters finds words.
    if re.search(r"[^0-9eE+\-. ]", " ".join(cells[:2000])) or any(not _NUMBER.fullmatch(c) for c in cells[-100:]):
        raise _damaged(label, "a parameter is no finite number")
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise _damaged(label, str(error)) from error


def wrong_sizes(name: str, d: int, parameters: np.ndarray, fixed: np.ndarray) -> str:
    """Say whether a transform of ITK's has other numbers of parameters than its class, or some that are not finite.

    Parameters
    ----------
    name : str
        The class.
    d : int
        The dimension.
    parameters, fixed : numpy.ndarray
        Parameters and fixed parameters, one axis each.

    Returns
    -------
    str
        What is wrong; empty where nothing is, or the class is not known.
    """
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        return f"a {name} with parameters that are not finite"
    if name in _ON_A_GRID:
        right = len(fixed) == d * (3 + d) and len(parameters) == d * int(np.prod(fixed[:d]))
    elif name in _SIZES:
        count, allowed = _SIZES[name]
        right = len(parameters) == count(d) and len(fixed) in [d if n < 0 else n for n in allowed]
    else:
        return ""
    return "" if right else f"a {name} with {len(parameters)} parameters and {len(fixed)} fixed ones"


def _check_sizes(name: str, d: int, parameters: np.ndarray, fixed: np.ndarray, label: str) -> None:
    problem = wrong_sizes(name, d, parameters, fixed)
    if problem:
        raise _damaged(label, problem)


def _variable(raw: bytes, at: int, label: str) -> tuple[tuple[str, np.ndarray], int]:
    """Name and values of a variable of a MATLAB 4 file, and where the next begins."""
    for order in "<>":
        if len(raw) < at + 20:
            break
        kind, rows, columns, imaginary, length = struct.unpack_from(order + "5i", raw, at)
        # Thousands: byte order; hundreds: 0; tens: double or single precision; ones: a full matrix.
        thousands, width = divmod(kind, 1000)
        if thousands != (order == ">") or width not in (0, 10) or imaginary or min(rows, columns) < 0:
            continue
        if not 1 <= length <= 200:
            continue
        start = at + 20 + length
        size = rows * columns * (8 if width == 0 else 4)
        name = raw[at + 20 : start]
        if len(raw) < start + size or not name.endswith(b"\0") or not name[:-1].isascii():
            break
        values = np.frombuffer(raw, order + ("f8" if width == 0 else "f4"), rows * columns, start)
        return (name[:-1].decode("ascii"), values), start + size
    raise _damaged(label, f"its {len(raw)} bytes are not what its header words say")


def _damaged(label: str, what: str) -> InputError:
    return InputError(f"{label}: damaged or no ITK transform file ({what}); get a fresh copy")
