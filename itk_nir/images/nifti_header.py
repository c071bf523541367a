"""The headers of NIfTI-1, NIfTI-2 and Analyze files."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Data types of NIfTI that NumPy has too: one real number a voxel.
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
#: Values of several bytes each: colour.
_COLOURS = {128: 3, 2304: 4}
#: What cannot be registered, in words.
_NOT_REAL = {
    1: "single bits", 32: "complex64", 1792: "complex128", 2048: "complex256", 1536: "float128"
}  # fmt: skip
#: The intent of symmetric matrices, and all intents of the fifth axis: its values belong together.
SYMMETRIC = 1005
_VECTORS = (SYMMETRIC, 1006, 1007, 2003, 2004)
#: Slopes and intercepts below this are none to ITK.
_LEAST = float(np.finfo(np.float64).eps)
#: How much longer than 1 the square of a quaternion's vector part may be by rounding.
_ROUNDED = 1e-5


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI-1 or NIfTI-2 header says of the voxels and where they are.

    Attributes
    ----------
    shape : tuple of int
        Lengths of the axes, ``(x, y, z, t, components, ...)``, as many as the header has.
    datatype : int
        NIfTI's number of the type of the values.
    offset : int
        Bytes before the first voxel.
    byte_order : str
        ``"<"`` or ``">"``.
    single_file : bool
        Whether header and voxels lie in one file (``.nii``) or in two (``.hdr``, ``.img``).
    version : int
        1 or 2; 0 for Analyze.
    qform_code, sform_code : int
        What the two orientations refer to; 0 where there is none.
    qform, sform : numpy.ndarray or None
        ``(4, 4)``, voxel index -> RAS mm; None where the code is 0, or the quaternion is none.
    pixdim : tuple of float
        Handedness of the qform and lengths of the voxels, as they stand.
    quaternion : tuple of float
        b, c, d and the offset of the qform, as they stand.
    units : int
        1 metres, 2 millimetres, 3 micrometres, 0 not said.
    slope, intercept : float
        ``value = slope * stored + intercept``, with the reading of values that mean nothing: 1 and 0 for a slope that
        is 0 or not finite, by which the standard says that nothing is scaled; as ITK 1 for a slope that is nearly 0, 0
        for an intercept that is not finite.
    intent : int
        What the values mean: 1006 a displacement (RAS), 1007 a vector.
    excess : int
        Bytes that follow the last voxel in the file.
    """

    shape: tuple[int, ...]
    datatype: int
    offset: int
    byte_order: str
    single_file: bool
    version: int
    qform_code: int
    sform_code: int
    qform: NDArray[np.float64] | None
    sform: NDArray[np.float64] | None
    pixdim: tuple[float, ...] = (1.0,) * 8
    quaternion: tuple[float, ...] = (0.0,) * 6
    units: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    intent: int = 0
    excess: int = 0

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Type of the stored values, in the file's byte order; None for those that are no real numbers."""
        code = "u1" if self.datatype in _COLOURS else _TYPES.get(self.datatype)
        return None if code is None else np.dtype(self.byte_order + code)

    @property
    def colours(self) -> int:
        """Values that are stored together for a voxel: 3 or 4 for colours, 1 for everything else."""
        return _COLOURS.get(self.datatype, 1)

    @property
    def type_name(self) -> str:
        """The type of the values in words."""
        dtype = self.dtype
        return (
            _NOT_REAL.get(self.datatype, f"number {self.datatype}") if dtype is None else str(dtype.newbyteorder("="))
        )

    @property
    def size(self) -> tuple[int, ...]:
        """Lengths of the axes of space and time, ``(x, y[, z[, t]])``, as ITK counts them.

        Axes of length 1 behind the third do not count, nor the fifth where it holds vectors; vectors in one slice are
        2D.
        """
        shape = list(self.shape)
        vectors = len(shape) == 5 and self.intent in _VECTORS
        if vectors:
            del shape[4]
        while len(shape) > 3 and shape[-1] == 1:
            del shape[-1]
        return tuple(shape[:2] if vectors and shape[2:] == [1] else shape)

    @property
    def has_tensors(self) -> bool:
        """Whether the values of a voxel are a symmetric matrix."""
        return len(self.shape) == 5 and self.intent == SYMMETRIC

    @property
    def components(self) -> int:
        """Values a voxel."""
        return self.colours * (self.shape[4] if len(self.shape) == 5 and self.intent in _VECTORS else 1)

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        width = 0 if self.dtype is None else self.dtype.itemsize * self.colours
        return int(np.prod(self.shape, dtype=object)) * width

    @property
    def is_scaled(self) -> bool:
        """Whether the stored values are to be multiplied or shifted, as ITK decides."""
        return abs(self.slope - 1) > _LEAST or abs(self.intercept) > _LEAST


def parse_header(raw: bytes) -> Header | None:
    """Read the header of a NIfTI file.

    Parameters
    ----------
    raw : bytes
        The first 540 bytes of the file (348 are enough for NIfTI-1).

    Returns
    -------
    Header or None
        None if the bytes are no NIfTI header.

    Raises
    ------
    ValueError
        A NIfTI header with a number of axes, a length of an axis, or a place of the voxels that cannot be.
    """
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(order + "i", raw)[0] == 348 and raw[344:347] in (b"n+1", b"ni1"):
            return _header(order, 1, raw[344:347] == b"n+1", *_fields(raw, order))
        if len(raw) >= 540 and struct.unpack_from(order + "i", raw)[0] == 540 and raw[4:7] in (b"n+2", b"ni2"):
            return _header(order, 2, raw[4:7] == b"n+2", *_fields_2(raw, order))
    return None


def parse_analyze(raw: bytes) -> Header | None:
    """Read the header of an Analyze 7.5 file (or one of SPM, whose scale factor is heeded).

    Parameters
    ----------
    raw : bytes
        The first 348 bytes of the file.

    Returns
    -------
    Header or None
        None if the bytes are no Analyze header. It has no orientation.

    Raises
    ------
    ValueError
        As of `parse_header`.
    """
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(order + "i", raw)[0] == 348:
            dim, kind, pixdim, place, *_ = _fields(raw, order)
            # What NIfTI has behind the scale factor, Analyze has not.
            return _header(order, 0, False, dim, (0, *kind[1:]), pixdim, (*place[:2], 0.0), (0, 0), None, None, 0)
    return None


def _fields(raw: bytes, order: str) -> tuple[Any, ...]:
    """Sizes, (intent, type), voxels, (place, slope, intercept), codes, quaternion, rows, units of NIfTI-1."""
    forms = (("8h", 40), ("2h", 68), ("8f", 76), ("3f", 108), ("2h", 252), ("6f", 256), ("12f", 280))
    return (*(struct.unpack_from(order + form, raw, at) for form, at in forms), raw[123])


def _fields_2(raw: bytes, order: str) -> tuple[Any, ...]:
    """The same of NIfTI-2."""
    forms = (("8q", 16), ("h", 12), ("8d", 104), ("q2d", 168), ("2i", 344), ("6d", 352), ("12d", 400), ("2i", 500))
    dim, kind, *more, (units, intent) = (struct.unpack_from(order + form, raw, at) for form, at in forms)
    return (dim, (intent, *kind), *more, units)


def _header(
    order: str,
    version: int,
    single: bool,
    dim: tuple[int, ...],
    kind: tuple[int, int],
    pixdim: tuple[float, ...],
    place: tuple[float, float, float],
    codes: tuple[int, int],
    quaternion: tuple[float, ...] | None,
    rows: tuple[float, ...] | None,
    units: int,
) -> Header:
    """A header of its fields, which are checked."""
    offset, slope, intercept = place
    # By the standard, and to nibabel, a slope of 0 means that there is no intercept either; ITK adds it. Where one is
    # neither below nor above the least, ITK leaves the values as they are stored.
    if slope == 0 or not np.isfinite(slope) or abs(slope) == _LEAST:
        slope, intercept = 1.0, 0.0
    if not 1 <= dim[0] <= 7:
        raise ValueError(f"its header says that it has {dim[0]} axes; 1 to 7 are possible")
    shape = dim[1 : dim[0] + 1]
    used = [k for k, n in enumerate(shape) if n > 1]
    # Axes of length 0 are written by some for axes that are not there.
    if min(shape[: (used[-1] if used else 0) + 1]) < 1 or min(shape) < 0:
        raise ValueError(f"its header says that its axes have lengths {'x'.join(map(str, shape))}")
    if not np.isfinite(offset) or offset < 0:
        raise ValueError(f"its header says that its voxels begin at byte {offset:g} (vox_offset)")
    # Where the voxels of a single file are said to begin within its header, ITK takes the header's end.
    least = (540 if version == 2 else 348) if single else 0
    sform = qform = None
    if rows is not None and codes[1] > 0:
        sform = np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]).astype(float)
    if quaternion is not None and codes[0] > 0:
        qform = qform_matrix(quaternion, pixdim)
    return Header(
        tuple(max(int(n), 1) for n in shape),
        kind[1], max(int(offset), least), order, single, version, *codes, qform, sform, pixdim,
        quaternion or (0.0,) * 6, units & 7,
        slope if abs(slope) > _LEAST else 1.0,
        intercept if np.isfinite(intercept) else 0.0,
        kind[0],
    )  # fmt: skip


def qform_matrix(quaternion: tuple[float, ...], pixdim: tuple[float, ...]) -> NDArray[np.float64] | None:
    """Give the matrix of a qform (NIfTI-1 header, method 2).

    Parameters
    ----------
    quaternion : tuple of float
        b, c, d and the offset.
    pixdim : tuple of float
        Handedness (below 0: left) and lengths of the voxels.

    Returns
    -------
    numpy.ndarray or None
        ``(4, 4)``, voxel index -> RAS; None for a quaternion longer than 1, or one that is not finite.
    """
    b, c, d = quaternion[:3]
    square = b * b + c * c + d * d
    # Single precision makes those of half a turn a little longer.
    if not np.isfinite(quaternion).all() or square > 1 + _ROUNDED:
        return None
    a = np.sqrt(max(0.0, 1.0 - square))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    if square > 1:
        rotation /= square
    scale = np.array(pixdim[1:4], float)
    scale[2] *= -1 if pixdim[0] < 0 else 1
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * scale
    matrix[:3, 3] = quaternion[3:]
    return matrix
