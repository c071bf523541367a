"""Linear maps that take points to others, in the least-squares sense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def fitted(a: F64, b: F64, weights: F64, kind: str) -> F64 | None:
    """The linear map that takes points ``a`` to ``b`` with the least weighted squared distance.

    Parameters
    ----------
    a, b : ndarray
        ``(N, d)``.
    weights : ndarray
        ``(N,)``, summing to 1.
    kind : str
        ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.

    Returns
    -------
    ndarray or None
        ``(d + 1, d + 1)``; None where the points do not determine a rotation.

    References
    ----------
    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", IEEE Trans. Pattern
    Anal. Mach. Intell. 13(4), 1991.
    """
    d = a.shape[1]
    centre, target = weights @ a, weights @ b
    x, y = a - centre, b - target
    out = np.eye(d + 1)
    if kind != "translation":
        turn, spread = nearest_rotation(y.T @ (weights[:, None] * x))
        # In d dimensions d - 1 directions determine a rotation; coincident or collinear points do not.
        if spread[d - 2] <= 1e-9 * max(spread[0], 1e-300):
            return None
        size = float(spread.sum()) / float(weights @ np.square(x).sum(1)) if kind in ("similarity", "affine") else 1.0
        out[:d, :d] = size * turn
        normal = x.T @ (weights[:, None] * x)
        if kind == "affine" and np.linalg.cond(normal) < 1e4:
            out[:d, :d] = y.T @ (weights[:, None] * x) @ np.linalg.inv(normal)
    out[:d, d] = target - out[:d, :d] @ centre
    return out


def least_turned(a: F64, b: F64, weights: F64, kind: str, least: float) -> F64 | None:
    """The linear map that takes points ``a`` to ``b`` and turns least, where these do not determine a rotation.

    Parameters
    ----------
    a, b, weights
        As of `fitted`.
    kind : str
        ``"rigid"``, ``"similarity"`` or ``"affine"``, of which a line of points determines no more than a similarity.
    least : float
        Root mean square of how far the points must reach to any side of their centre, or of a line through it, to
        determine a rotation.

    Returns
    -------
    ndarray or None
        ``(d + 1, d + 1)``: a translation where all points are one, no turn about the line where they lie on one. None
        where they determine a rotation.
    """
    d = a.shape[1]
    centre, target = weights @ a, weights @ b
    x, y = a - centre, b - target
    _, extents, along = np.linalg.svd(np.sqrt(weights)[:, None] * x, full_matrices=False)
    directions = int((extents > least).sum())
    if directions >= d - 1:
        return None
    out = np.eye(d + 1)
    if directions:
        there = y.T @ (weights * (x @ along[0]))
        size = float(np.linalg.norm(there)) / float(extents[0]) ** 2
        if size > 1e-9:
            turn = _turn_between(along[0], there / np.linalg.norm(there))
            out[:d, :d] = turn if kind == "rigid" else size * turn
    out[:d, d] = target - out[:d, :d] @ centre
    return out


def rigid_fit(points: F64, targets: F64) -> tuple[F64, F64]:
    """The rotation and shift that take points nearest to targets, in the least-squares sense [1]_.

    Parameters
    ----------
    points, targets : ndarray
        ``(N, d)``.

    Returns
    -------
    rotation : ndarray
        ``(d, d)``, of determinant 1.
    shift : ndarray
        ``(d,)``: a point ``p`` goes to ``rotation @ p + shift``.

    References
    ----------
    .. [1] Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 1976.
    """
    a, b = points.mean(0), targets.mean(0)
    rotation, _ = nearest_rotation((targets - b).T @ (points - a))
    return rotation, b - rotation @ a


def _turn_between(a: F64, b: F64) -> F64:
    """The least rotation in 3D that takes a unit vector to another."""
    cosine = float(a @ b)
    if cosine < -1 + 1e-12:  # half a turn, about any axis across
        across = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        across /= np.linalg.norm(across)
        return np.asarray(2 * np.outer(across, across) - np.eye(3))
    return np.asarray(np.eye(3) - np.outer(a + b, a + b) / (1 + cosine) + 2 * np.outer(b, a))


def nearest_rotation(matrix: F64) -> tuple[F64, F64]:
    """The rotation nearest to a matrix, and its singular values.

    Parameters
    ----------
    matrix : ndarray
        ``(d, d)``; of centred points, the sum of the outer products of targets and sources (Kabsch).

    Returns
    -------
    rotation : ndarray
        ``(d, d)``, of determinant 1.
    sizes : ndarray
        ``(d,)``, the last of a mirror image negative.
    """
    u, sizes, vt = np.linalg.svd(matrix)
    sign = np.ones(len(matrix))
    sign[-1] = np.sign(np.linalg.det(u @ vt))
    return (u * sign) @ vt, sizes * sign
