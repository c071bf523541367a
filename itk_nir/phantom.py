"""A procedural head for demonstrations and tests: two T1-like images, their labels and the true deformation.

The anatomy is one analytic function of physical space (signed distances in mm, combined with `min` and `max`), so it
can be evaluated exactly at any point: the moving image is the anatomy ``A`` on the moving grid, the fixed image is
``A(p + u(p))`` on the fixed grid, and ``u`` is the true displacement (fixed → moving, LPS mm) at every fixed voxel
without any interpolation between them.

The cortical ribbon follows a folded surface: sulci are thin sheets that stand on the zero set of band-limited noise
drawn over the surface of each hemisphere, 5 to 25 mm deep, and grey matter is what lies within 2 to 3.5 mm of them or
of the outer surface. None of it is taken from an atlas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry

Array = NDArray[np.float32]
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

#: Field of view in mm (x, y, z) that holds the whole brain, and the height of the plane of a 2D phantom above its
#: middle: through the frontal horns, the caudate, the putamen and the thalamus.
_FIELD_OF_VIEW = (160.0, 192.0, 160.0)
_SLICE_Z = 3.0
#: The anatomy is written around the middle of the hemispheres; the brainstem hangs below it.
_CENTRE = np.array([0.0, 0.0, 9.0], np.float32)

_CHUNK = 1 << 15


@dataclass(frozen=True)
class Phantom:
    """A registration problem whose answer is known.

    Attributes
    ----------
    fixed, moving : float32 ``([D,] H, W)`` images, intensities about 0 to 200, background near 0.
    fixed_labels, moving_labels : uint8 arrays of the same shapes; see `LABELS`, 0 is outside.
    geometry : the grid of `fixed`.
    moving_geometry : the grid of `moving`.
    displacement : float32 ``([D,] H, W, d)`` true displacement in mm along LPS axes, fixed → moving: the anatomy at
        fixed point ``p`` is that at moving point ``p + u(p)``.
    """

    fixed: Array
    moving: Array
    fixed_labels: NDArray[np.uint8]
    moving_labels: NDArray[np.uint8]
    geometry: Geometry
    moving_geometry: Geometry
    displacement: Array


def brain_phantom(
    dimension: int = 3,
    size: Sequence[int] | None = None,
    seed: int = 0,
    spacing: float | Sequence[float] | None = None,
    *,
    geometry: Geometry | None = None,
    moving_geometry: Geometry | None = None,
    deformation: float = 9.0,
    wavelength: float = 90.0,
    noise: float = 3.0,
    bias: float = 0.08,
) -> Phantom:
    """A pair of brain-like images, their labels and the known diffeomorphism between them.

    The brain measures about 135 x 170 x 135 mm and sits at the centre of each grid, its axes along LPS.

    Parameters
    ----------
    dimension : 2 (an axial slice) or 3.
    size : voxels ``(x, y[, z])``; left out, what covers 160 x 192 (x 160) mm at `spacing`.
    seed : of the folds, the deformation, the bias fields and the noise.
    spacing : mm, one value or one an axis; left out, what makes `size` cover the whole brain (1 mm without `size`).
    geometry : the grid of the fixed image instead of `size` and `spacing`: any origin, direction and spacing.
    moving_geometry : the grid of the moving image; the fixed one where left out.
    deformation : largest velocity in mm; the largest displacement is a little below it.
    wavelength : shortest wavelength of the velocity in mm; the longest is twice this.
    noise : standard deviation of the Rician noise, in the unit of the intensities.
    bias : amplitude of the multiplicative bias field; each image has its own.

    Raises
    ------
    ValueError : a dimension other than 2 or 3, a grid of another dimension, `geometry` together with `size` or
        `spacing`, or a negative amplitude.

    Notes
    -----
    ``u = exp(v) - id``, with ``v`` a sum of plane waves that fades towards the border of the field of view,
    integrated by RK4. The same arguments give the same arrays.
    """
    if dimension not in (2, 3):
        raise ValueError(f"a phantom has dimension 2 or 3, got {dimension}")
    if min(deformation, noise, bias) < 0 or wavelength <= 0:
        raise ValueError(
            "deformation, noise and bias must not be negative and wavelength must be above zero, got "
            f"{deformation}, {noise}, {bias}, {wavelength}"
        )
    if geometry is None:
        geometry = _default_geometry(dimension, size, spacing)
    elif size is not None or spacing is not None:
        raise ValueError("give either geometry, or size and spacing")
    moving_geometry = geometry if moving_geometry is None else moving_geometry
    for grid in (geometry, moving_geometry):
        if grid.dimension != dimension:
            raise ValueError(f"a phantom of dimension {dimension} needs a grid of {dimension} axes, got {grid.size}")

    anatomy_seed, motion_seed, fixed_seed, moving_seed = np.random.SeedSequence(seed).spawn(4)
    anatomy = _Anatomy(np.random.default_rng(anatomy_seed))
    centre = geometry.centre
    displacement = _displacement(geometry, np.random.default_rng(motion_seed), deformation, wavelength)
    fixed, fixed_labels = _scan(anatomy, geometry, centre, displacement, np.random.default_rng(fixed_seed), noise, bias)
    moving, moving_labels = _scan(
        anatomy, moving_geometry, centre, None, np.random.default_rng(moving_seed), noise, bias
    )
    return Phantom(fixed, moving, fixed_labels, moving_labels, geometry, moving_geometry, displacement)


def _default_geometry(dimension: int, size: Sequence[int] | None, spacing: float | Sequence[float] | None) -> Geometry:
    """A grid centred on the origin; whatever was left out is chosen so that the whole brain fits."""
    view = np.asarray(_FIELD_OF_VIEW[:dimension])
    if spacing is None:
        size_ = view if size is None else np.asarray(size, float)
        spacing_ = view / size_
    else:
        spacing_ = np.broadcast_to(np.asarray(spacing, float), (dimension,))
        size_ = np.ceil(view / spacing_) if size is None else np.asarray(size, float)
    origin = -(size_ - 1) / 2 * spacing_
    return Geometry.make([int(n) for n in size_], spacing_, origin)


class _Waves:
    """A smooth random function of 3D points: a sum of plane waves with wavelengths in a band, unit variance."""

    def __init__(
        self, rng: np.random.Generator, shortest: float, longest: float, count: int = 32, components: int = 1
    ) -> None:
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wavelength = rng.uniform(shortest, longest, (count, 1))
        self.k = (2 * np.pi / wavelength * direction).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
        weights = rng.standard_normal((components, count))
        weights *= np.sqrt(2) / np.linalg.norm(weights, axis=1, keepdims=True)
        self.weights = weights.astype(np.float32)

    def __call__(self, points: Array) -> Array:
        """``(3, N)`` mm → ``(components, N)``, or ``(N,)`` where there is one."""
        angle = self._angle(points)
        value = np.einsum("ck,kn->cn", self.weights, np.cos(angle, out=angle))
        return value[0] if len(value) == 1 else value

    def with_gradient(self, points: Array) -> tuple[Array, Array]:
        """``(3, N)`` mm → values ``(N,)`` and gradients ``(3, N)`` per mm, for one component."""
        angle = self._angle(points)
        value = np.einsum("k,kn->n", self.weights[0], np.cos(angle))
        gradient = np.einsum("kc,kn->cn", self.k * -self.weights[0][:, None], np.sin(angle, out=angle))
        return value, gradient

    def _angle(self, points: Array) -> Array:
        # No BLAS here and above: its threads cost more than they bring on matrices this thin.
        angle = np.einsum("kc,cn->kn", self.k, points)
        angle += self.phase
        return angle


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


class _Anatomy:
    """The brain as a function of physical points (mm, LPS, centred on the field of view)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.sway = _Waves(rng, 45.0, 90.0, 24, 3)  # takes the symmetry and the straightness out of everything
        self.crinkle = _Waves(rng, 16.0, 30.0, 24, 3)  # bends the sulci on their way down
        self.folds = [_Waves(rng, 24.0, 29.0, 40) for _ in range(2)]  # one pattern a hemisphere
        self.side_folds = [_Waves(rng, 44.0, 56.0, 24) for _ in range(2)]  # fewer, deeper sulci of other directions
        self.depth = _Waves(rng, 25.0, 50.0, 24)
        self.thickness = _Waves(rng, 20.0, 45.0, 24)
        self.folia = _Waves(rng, 25.0, 45.0, 24)

    def __call__(self, points: Array, width: float) -> tuple[Array, NDArray[np.uint8]]:
        """``(3, N)`` points → T1 intensities ``(N,)`` and labels ``(N,)``.

        `width` is the length in mm over which neighbouring tissues mix: the partial volume of a voxel of that size.
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


def _in_3d(points: NDArray[np.float64], centre: NDArray[np.float64]) -> Array:
    """Physical points ``(N, d)`` of a 2D or 3D grid → float32 ``(3, N)`` in the anatomy's own frame."""
    q = np.full((3, len(points)), _SLICE_Z + _CENTRE[2], np.float32)
    q[: points.shape[1]] = (points - centre).T
    return q


def _displacement(geometry: Geometry, rng: np.random.Generator, largest: float, wavelength: float) -> Array:
    """``exp(v) - id`` at every voxel, integrated at knots 4 mm apart and carried to voxels by cubic interpolation."""
    d = geometry.dimension
    if largest == 0:
        return np.zeros((*geometry.shape, d), np.float32)
    waves = _Waves(rng, wavelength, 2 * wavelength, 32, d)
    view = np.asarray(_FIELD_OF_VIEW[:d]) / 2

    def velocity(q: NDArray[np.float64]) -> NDArray[np.float64]:
        """At points relative to the centre; fades out over the last quarter of the way to the border."""
        fade = np.clip((1.1 - np.abs(q) / view) / 0.35, 0, 1)
        fade = np.prod(fade * fade * (3 - 2 * fade), axis=-1)
        return scale * fade[:, None] * waves(_in_3d(q, np.zeros(d))).T

    steps = [max(1, round(4.0 / s)) for s in geometry.spacing]
    counts = [-(-(n - 1) // step) + 4 for n, step in zip(geometry.size, steps, strict=True)]
    axes = np.meshgrid(*[np.arange(c) for c in counts[::-1]], indexing="ij")
    index = (np.stack(axes[::-1], -1) - 1.0) * np.asarray(steps)  # one knot before the first voxel, two after the last
    start = (geometry.index_to_physical(index) - geometry.centre).reshape(-1, d)

    # The largest velocity on a lattice of its own, so that the deformation does not depend on the grid.
    scale = 1.0
    probe = np.stack(np.meshgrid(*[np.arange(-v, v + 1, 8.0) for v in view], indexing="ij"), -1).reshape(-1, d)
    scale = largest / float(np.linalg.norm(velocity(probe), axis=1).max())
    q = start.copy()
    n_steps = 12
    h = 1 / n_steps
    for _ in range(n_steps):
        k1 = velocity(q)
        k2 = velocity(q + h / 2 * k1)
        k3 = velocity(q + h / 2 * k2)
        k4 = velocity(q + h * k3)
        q = q + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    knots = (q - start).reshape(*counts[::-1], d).astype(np.float32)
    for axis in range(d):
        j = d - 1 - axis  # array axis → index axis
        weights = _catmull_rom(geometry.size[j], steps[j], counts[j])
        knots = np.moveaxis(np.tensordot(weights, knots, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(knots)


def _catmull_rom(size: int, step: int, count: int) -> Array:
    """``(size, count)`` interpolation weights from knots `step` voxels apart, the first one a step before voxel 0."""
    position = np.arange(size) / step + 1
    first = np.floor(position).astype(int)
    t = position - first
    weights = np.zeros((size, count), np.float32)
    rows = np.arange(size)
    for offset, w in (
        (-1, -t / 2 + t**2 - t**3 / 2),
        (0, 1 - 2.5 * t**2 + 1.5 * t**3),
        (1, t / 2 + 2 * t**2 - 1.5 * t**3),
        (2, -(t**2) / 2 + t**3 / 2),
    ):
        weights[rows, first + offset] += w.astype(np.float32)
    return weights


def _scan(
    anatomy: _Anatomy,
    geometry: Geometry,
    centre: NDArray[np.float64],
    displacement: Array | None,
    rng: np.random.Generator,
    noise: float,
    bias: float,
) -> tuple[Array, NDArray[np.uint8]]:
    """The anatomy on a grid, seen by a scanner: partial volume, blur, bias field, Rician noise."""
    image = np.empty(geometry.shape, np.float32)
    labels = np.empty(geometry.shape, np.uint8)
    field = _Waves(rng, 150.0, 300.0, 12)
    width = float(np.mean(geometry.spacing))
    plane = int(np.prod(geometry.shape[1:]))
    rows = max(1, _CHUNK // plane)
    for begin in range(0, geometry.shape[0], rows):
        part = slice(begin, min(begin + rows, geometry.shape[0]))
        axes = np.meshgrid(np.arange(part.start, part.stop), *[np.arange(n) for n in geometry.shape[1:]], indexing="ij")
        points = geometry.index_to_physical(np.stack(axes[::-1], -1)).reshape(-1, geometry.dimension)
        if displacement is not None:
            points = points + displacement[part].reshape(-1, geometry.dimension)
        q = _in_3d(points, centre)
        value, label = anatomy(q, width)
        inside = value > 0
        value[inside] *= 1 + np.float32(bias) * field(q[:, inside])
        image[part] = value.reshape(image[part].shape)
        labels[part] = label.reshape(labels[part].shape)
    image = _blur(image)
    if noise > 0:
        for plane_image in image:  # a plane at a time: no second volume of random numbers
            real = plane_image + noise * rng.standard_normal(plane_image.shape, np.float32)
            imaginary = noise * rng.standard_normal(plane_image.shape, np.float32)
            np.copyto(plane_image, np.where(plane_image > 0, np.hypot(real, imaginary), 0))
    return image, labels


def _blur(image: Array) -> Array:
    """A narrow point-spread function, (1, 6, 1) / 8 along every axis."""
    for axis in range(image.ndim):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        n = image.shape[axis]
        before, after = (np.take(padded, range(k, k + n), axis=axis) for k in (0, 2))
        image = (image * 6 + before + after) / np.float32(8)
    return image
