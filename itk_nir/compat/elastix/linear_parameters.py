"""The parameters of elastix' linear transforms: how many there are, and the map that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Class → number of parameters in 2D and in 3D, and the first of those of the translation.
_COUNTS: dict[str, dict[int, tuple[int, int]]] = {
    "TranslationTransform": {2: (2, 0), 3: (3, 0)},
    "EulerTransform": {2: (3, 1), 3: (6, 3)},
    "SimilarityTransform": {2: (4, 2), 3: (7, 3)},
    "AffineTransform": {2: (6, 4), 3: (12, 9)},
    "AffineDTITransform": {2: (7, 5), 3: (12, 9)},
}


def parameter_count(kind: str, d: int) -> int:
    """How many parameters a class has.

    Parameters
    ----------
    kind : str
        The class.
    d : {2, 3}
        Dimension.

    Returns
    -------
    int
    """
    return _COUNTS[kind][d][0]


def translation_of(kind: str, d: int) -> slice:
    """Which parameters are the translation.

    Parameters
    ----------
    kind : str
        The class.
    d : {2, 3}
        Dimension.

    Returns
    -------
    slice
        `d` of them.
    """
    first = _COUNTS[kind][d][1]
    return slice(first, first + d)


def identity_parameters(kind: str, d: int) -> list[float]:
    """The parameters of the identity.

    Parameters
    ----------
    kind : str
        The class.
    d : {2, 3}
        Dimension.

    Returns
    -------
    list of float
    """
    values = [0.0] * parameter_count(kind, d)
    ones = {
        "SimilarityTransform": (0,) if d == 2 else (6,),
        "AffineTransform": tuple(range(0, d * d, d + 1)),
        "AffineDTITransform": (3, 4) if d == 2 else (6, 7, 8),
    }
    for n in ones.get(kind, ()):
        values[n] = 1.0
    return values


def matrix_of(kind: str, d: int, values: Tensor) -> Tensor:
    """The matrix of a linear transform about its centre.

    Parameters
    ----------
    kind : str
        The class.
    d : {2, 3}
        Dimension.
    values : Tensor
        All parameters, in elastix' order.

    Returns
    -------
    Tensor
        ``(d, d)``, with a gradient.
    """
    import torch

    if kind == "TranslationTransform":
        return torch.eye(d, dtype=values.dtype)
    if kind == "AffineTransform":
        return values[: d * d].reshape(d, d)
    if kind == "SimilarityTransform":
        return values[0] * _plane(values[1]) if d == 2 else values[6] * _versor(values[:3])
    about = None if d == 2 else [_about(axis, angle) for axis, angle in enumerate(values[:3])]
    if kind == "EulerTransform":
        return _plane(values[0]) if about is None else about[2] @ about[0] @ about[1]
    # It turns the other way, and about x, then y, then z of the matrix product.
    turn = _plane(values[0]).T if about is None else about[0].T @ about[1].T @ about[2].T
    shears, scales = (values[1:3], values[3:5]) if d == 2 else (values[3:6], values[6:9])
    return turn @ _sheared(shears) @ torch.diag(scales)


def _plane(angle: Tensor) -> Tensor:
    import torch

    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


def _about(axis: int, angle: Tensor) -> Tensor:
    """A rotation about one of three axes."""
    import torch

    c, s, o, i = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = ([i, o, o, o, c, -s, o, s, c], [c, o, s, o, i, o, -s, o, c], [c, -s, o, s, c, o, o, o, i])[axis]
    return torch.stack(rows).reshape(3, 3)


def _versor(v: Tensor) -> Tensor:
    """The rotation of a unit quaternion, of which its vector part is given."""
    import torch

    x, y, z = v
    w = torch.sqrt((1 - v @ v).clamp_min(0.0))
    return torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]).reshape(3, 3)  # fmt: skip


def _sheared(shears: Tensor) -> Tensor:
    """One shear after the other."""
    import torch

    d = len(shears)
    out = torch.eye(d, dtype=shears.dtype)
    for row, shear in enumerate(shears):
        one = torch.zeros(d, d, dtype=shears.dtype)
        column = (row - 1) % d
        one[row, column] = 1.0
        out = out @ (torch.eye(d, dtype=shears.dtype) + shear * one)
    return out
