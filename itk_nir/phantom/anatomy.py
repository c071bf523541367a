"""The anatomy of the phantom: one analytic function of physical space.

Signed distances in mm, combined with `min` and `max`, so that it can be evaluated exactly at any point. The cortical
ribbon follows a folded surface: sulci are thin sheets that stand on the zero set of band-limited noise drawn over the
surface of each hemisphere, 5 to 25 mm deep, and grey matter is what lies within 2 to 3.5 mm of them or of the outer
surface. None of it is taken from an atlas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from itk_nir.phantom.waves import Array, Waves

Paint = Callable[[str, Array], None]

#: What the labels of a phantom mean; left and right share a label.
LABELS: dict[str, int] = {
    "csf": 1,
    "cortex": 2,
    "white matter": 3,
    "ventricle": 4,
    "thalamus": 5,
    "caudate": 6,
    "putamen": 7,
    "pallidum": 8,
    "hippocampus": 9,
    "cerebellar cortex": 10,
    "cerebellar white matter": 11,
    "brainstem": 12,
}

#: Intensity of each label in a T1-weighted image before bias, blur and noise.
_T1 = {
    "csf": 38.0,
    "cortex": 108.0,
    "white matter": 172.0,
    "ventricle": 26.0,
    "thalamus": 140.0,
    "caudate": 120.0,
    "putamen": 128.0,
    "pallidum": 152.0,
    "hippocampus": 114.0,
    "cerebellar cortex": 114.0,
    "cerebellar white matter": 164.0,
    "brainstem": 158.0,
}

#: Height in mm of the plane of a 2D phantom above the middle of the field of view: through the frontal horns, the
#: caudate, the putamen and the thalamus.
_SLICE_Z = 3.0
#: The anatomy is written around the middle of the hemispheres; the brainstem hangs below it.
_CENTRE = np.array([0.0, 0.0, 9.0], np.float32)


class Anatomy:
    """The brain as a function of physical points (mm, LPS, centred on the field of view).

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the folds are drawn from.
    """

    sway: Waves
    crinkle: Waves
    folds: list[Waves]
    side_folds: list[Waves]
    depth: Waves
    thickness: Waves
    folia: Waves

    def __init__(self, rng: np.random.Generator) -> None:
        self.sway = Waves(rng, 45.0, 90.0, 24, 3)  # takes the symmetry and the straightness out of everything
        self.crinkle = Waves(rng, 16.0, 30.0, 24, 3)  # bends the sulci on their way down
        self.folds = [Waves(rng, 24.0, 29.0, 40) for _ in range(2)]  # one pattern a hemisphere
        self.side_folds = [Waves(rng, 44.0, 56.0, 24) for _ in range(2)]  # fewer, deeper sulci of other directions
        self.depth = Waves(rng, 25.0, 50.0, 24)
        self.thickness = Waves(rng, 20.0, 45.0, 24)
        self.folia = Waves(rng, 25.0, 45.0, 24)

    def __call__(self, points: Array, width: float) -> tuple[Array, NDArray[np.uint8]]:
        """Intensities and labels at points.

        Parameters
        ----------
        points : ndarray
            ``(3, N)`` mm, in the anatomy's own frame.
        width : float
            Length in mm over which neighbouring tissues mix: the partial volume of a voxel of that size.

        Returns
        -------
        ndarray
            T1 intensities, ``(N,)``.
        ndarray
            Labels, ``(N,)``.
        """
        intensity = np.zeros(points.shape[1], np.float32)
        labels = np.zeros(points.shape[1], np.uint8)
        near = np.flatnonzero(_ellipsoid(points, (0, 0, -6), (78, 95, 86)) > 0)
        if near.size:
            intensity[near], labels[near] = self._tissues(points[:, near], width)
        return intensity, labels

    def _tissues(self, points: Array, width: float) -> tuple[Array, NDArray[np.uint8]]:
        points = points - _CENTRE[:, None]
        p = points + np.float32(1.6) * self.sway(points)
        left = p[0] > 0
        m = _halved(p)
        bent = _halved(p + np.float32(1.7) * self.crinkle(p))

        cerebellum = self._cerebellum_hull(m)
        stem = _smooth_max(
            _tube(m, [(0, 4, -14, 13), (0, 10, -30, 12), (0, 20, -58, 8.5), (0, 25, -90, 6.5)]),
            _ellipsoid(m, (0, 3, -36), (15, 11, 14)),
            6.0,
        )
        hull = self._cerebrum_hull(m)
        pial = np.minimum(hull, np.where(p[2] < 0, -1.5 - cerebellum, np.float32(99)))
        pial = np.minimum(pial, self._fissures(bent))
        shell = np.flatnonzero((pial > -1) & (pial < 30))
        pial[shell] = self._fold(p[:, shell], bent[:, shell], pial[shell], hull[shell], left[shell])
        ribbon = 2.7 + 0.35 * self.thickness(p)
        outer = np.maximum(np.maximum(hull, cerebellum), stem) + 1.2

        image = np.zeros(p.shape[1], np.float32)
        labels = np.zeros(p.shape[1], np.uint8)

        def paint(name: str, inside: Array, softness: float = 1.0) -> None:
            """Lay a tissue over what is there; a voxel at its border shows both."""
            share = np.clip(inside / (width * softness) + 0.5, 0, 1)
            np.copyto(image, image + share * (np.float32(_T1[name]) - image))
            labels[inside > 0] = LABELS[name]

        paint("csf", outer, 2.0)
        self._paint_cerebellum(paint, m, p, cerebellum)
        paint("brainstem", np.minimum(stem, -6 - p[2]))
        paint("cortex", pial)
        # No cortex where the hemispheres meet the brainstem: the white matter runs through.
        core = _ellipsoid(m, (0, 2, -4), (26, 24, 17))
        paint("white matter", np.maximum(pial - ribbon, np.minimum(core, hull)))
        self._paint_deep(paint, m)
        return image, labels

    @staticmethod
    def _cerebrum_hull(m: Array) -> Array:
        """Smooth outer surface: a hemisphere that narrows to the front, and the temporal lobe under it."""
        q = m.copy()
        q[0] *= 1 + 0.0022 * np.maximum(-m[1], 0)  # narrower in front
        q[2] = np.where(q[2] < 0, q[2] * np.float32(1.9), q[2])  # flat below
        upper = _ellipsoid(q, (0, 0, 0), (67, 85, 61))
        temporal = _tube(m, [(40, -28, -27, 13), (45, -8, -26, 18), (47, 14, -20, 18), (40, 40, -12, 16)])
        occipital = _ellipsoid(m, (20, 54, -4), (23, 28, 22))
        return _smooth_max(_smooth_max(upper, temporal, 9.0), occipital, 9.0)

    @staticmethod
    def _fissures(m: Array) -> Array:
        """Distance in mm to the great fissures, less their half width: between the hemispheres, Sylvian, insular."""
        x, y, z = m
        # Between the hemispheres, outside of the corpus callosum and what lies below it.
        callosum = _ellipsoid(np.stack([np.zeros_like(x), y, z]), (0, 0, -6), (1e3, 38, 31))
        between = np.hypot(x, np.maximum(callosum, 0)) - np.float32(0.9)
        # Sylvian: a sheet that rises to the back, from the side of the brain in to the insula.
        sheet = z - (-9 + 0.32 * (y + 20)) - 1.5 * np.sin(y / 9)
        sylvian = np.sqrt(
            sheet**2 + np.maximum(np.maximum(38 - x, 0), np.maximum(np.abs(y + 4) - 30, 0)) ** 2
        ) - np.float32(0.9)
        wall = x - (36 + 0.004 * (y + 3) ** 2)
        over = np.maximum(np.maximum(np.abs(y + 3) - 20, 0), np.maximum(np.abs(z + 1) - 10, 0))
        insula = np.hypot(wall, over) - np.float32(0.8)
        return np.minimum(between, np.minimum(sylvian, insula))

    def _fold(self, p: Array, m: Array, depth: Array, hull: Array, left: NDArray[np.bool_]) -> Array:
        """The distance below the smooth surface becomes the distance below the folded one."""
        scale = _column((42, 84, 58))
        v = (m - _column((26, 0, 2))) / scale
        radius = _norm(v) + np.float32(0.05)
        surface = v / radius * scale
        normal = v / scale
        normal /= _norm(normal)
        floor = self.depth(p)
        folded = depth.copy()
        for waves, base, swing, reach in ((self.folds, 13.0, 3.5, 19.0), (self.side_folds, 9.0, 9.0, 24.0)):
            value = np.empty_like(depth)
            slope = np.empty_like(depth)
            for side, chosen in ((0, np.flatnonzero(left)), (1, np.flatnonzero(~left))):
                value[chosen], gradient = waves[side].with_gradient(surface[:, chosen])
                n = normal[:, chosen]
                slope[chosen] = _norm(gradient - (gradient * n).sum(0) * n)
            # First-order distance to the zero set, in mm at this radius.
            gap = np.abs(value) / (slope + np.float32(0.02)) * np.minimum(radius, 1)
            bottom = np.clip(base + swing * floor, 1.0, reach)
            # Shallow below the insula and the fissures, which are deep already.
            sulcus = np.hypot(gap, np.maximum(np.maximum(depth - bottom, 0.6 * (hull - bottom) - 5), 0))
            opening = 0.5 + 1.6 * np.clip(1 - depth / 6, 0, 1) ** 2
            folded = np.minimum(folded, sulcus - opening)
            floor = -floor
        return folded

    @staticmethod
    def _cerebellum_hull(m: Array) -> Array:
        hemisphere = _ellipsoid(m, (24, 46, -44), (28, 30, 22))
        vermis = _ellipsoid(m, (0, 46, -42), (12, 25, 21))
        return _smooth_max(hemisphere, vermis, 5.0)

    def _paint_cerebellum(self, paint: Paint, m: Array, p: Array, hull: Array) -> None:
        near = np.flatnonzero(hull > -4)
        x, y, z = m[:, near]
        deep = hull[near]
        # Folia: sheets about an axis from side to side, a little bent.
        radius = np.hypot(y - 30, z + 42)
        phase = np.arctan2(z + 42, y - 30) * 22 + 0.05 * x + 1.2 * self.folia(p[:, near])
        pial = np.full_like(hull, -99)
        for spacing, bottom in ((5.2, 7.0), (10.4, 15.0)):
            gap = np.abs((phase / spacing) % 1 - 0.5) * spacing * np.clip(radius / 22, 0.35, 2)
            deep = np.minimum(deep, np.hypot(gap, np.maximum(hull[near] - bottom, 0)) - 0.3)
        pial[near] = deep
        paint("cerebellar cortex", pial)
        paint("cerebellar white matter", pial - 1.75)

    @staticmethod
    def _paint_deep(paint: Paint, m: Array) -> None:
        """Nuclei and ventricles; later ones cover earlier ones."""
        paint("putamen", _tilted(m, (27.5, -6, 0), (5.2, 17, 10), 0.16))
        paint("pallidum", _tilted(m, (20.5, -3, -2), (4.2, 10, 6.5), 0.30))
        paint("thalamus", _tilted(m, (10.5, 9, 2), (8.0, 14, 9), -0.35))
        paint("hippocampus", _tube(m, [(24, -10, -21, 5.5), (27, 6, -19, 5.0), (27, 20, -11, 4.0), (21, 29, -2, 2.5)]))
        paint("caudate", _tube(m, [(12, -24, 0, 6), (14, -20, 8, 6), (16, -6, 15, 4.2), (19, 10, 17, 2.8)]))
        lateral = _tube(
            m,
            [
                (10, -36, 3, 3),
                (6.5, -26, 7, 4.6),
                (5.5, -8, 13, 4.2),
                (8, 10, 15, 4.6),
                (16, 26, 12, 6),
                (23, 36, 4, 5),
            ],
        )
        horns = np.maximum(
            _tube(m, [(23, 36, 4, 5), (23, 48, 2, 3), (20, 58, 2, 1.2)]),
            _tube(m, [(23, 36, 4, 4.5), (31, 24, -9, 3), (32, 4, -17, 2)]),
        )
        septum = m[0] - np.float32(0.7)
        paint("ventricle", np.minimum(np.maximum(lateral, horns), septum))
        third = _ellipsoid(m, (0, 2, -2), (2.2, 13, 9))
        fourth = _ellipsoid(m, (0, 25, -42), (6, 4.5, 9))
        paint("ventricle", np.maximum(third, fourth))


def in_anatomy_frame(points: NDArray[np.float64], centre: NDArray[np.float64]) -> Array:
    """Physical points in the anatomy's own frame.

    Parameters
    ----------
    points : ndarray
        ``(N, d)`` LPS mm.
    centre : ndarray
        ``(d,)`` LPS mm: where the middle of the brain lies.

    Returns
    -------
    ndarray
        ``(3, N)`` float32, mm.
    """
    q = np.full((3, len(points)), _SLICE_Z + _CENTRE[2], np.float32)
    q[: points.shape[1]] = (points - centre).T
    return q


def _norm(vectors: Array) -> Array:
    """Lengths ``(N,)`` of ``(3, N)`` vectors, never exactly zero."""
    return np.sqrt(np.einsum("ij,ij->j", vectors, vectors) + np.float32(1e-9))


def _column(values: Sequence[float]) -> Array:
    return np.asarray(values, np.float32)[:, None]


def _ellipsoid(points: Array, centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Approximate signed distance in mm, positive inside; exact to first order at the surface."""
    scaled = (points - _column(centre)) / _column(radii)
    k0 = _norm(scaled)
    return k0 * (1 - k0) / _norm(scaled / _column(radii))


def _tube(points: Array, knots: Sequence[tuple[float, float, float, float]]) -> Array:
    """Signed distance (positive inside) of a chain of round cones through knots ``(x, y, z, radius)``."""
    table = np.asarray(knots, np.float32)
    best = np.full(points.shape[1], -np.inf, np.float32)
    for a, b in pairwise(table):
        axis = b[:3] - a[:3]
        gap = points - a[:3, None]
        t = np.clip((axis / (axis @ axis)) @ gap, 0, 1)
        gap -= axis[:, None] * t
        best = np.maximum(best, a[3] + t * (b[3] - a[3]) - _norm(gap))
    return best


def _smooth_max(a: Array, b: Array, width: float) -> Array:
    """Maximum with the crease rounded over `width` mm: a smooth union of signed distances."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.maximum(a, b) + h * h * (width / 4)


def _halved(points: Array) -> Array:
    """One half of the head: both sides share the plan, and differ by the noise that came before."""
    half = points.copy()
    half[0] = np.abs(half[0])
    return half


def _tilted(m: Array, centre: Sequence[float], radii: Sequence[float], angle: float) -> Array:
    """An ellipsoid turned by `angle` in the axial plane: its front comes nearer to the midline where above zero."""
    x, y, z = m - _column(centre)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return _ellipsoid(np.stack([c * x - s * y, s * x + c * y, z]), (0, 0, 0), radii)
