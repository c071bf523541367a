"""Two organs that slide along a still wall, as lungs do along the ribs: motion that no smooth field has.

Far motion and a discontinuity at once: what finds the motion of the organs must not take the wall along.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.phantom.pair import Phantom
from itk_nir.phantom.waves import Array, Waves

F64 = NDArray[np.float64]

#: Labels of the phantom.
WALL, RIGHT, LEFT, FLUID = 1, 2, 3, 4

#: Field of view (x, y, z), half axes of the body, and of the two cavities; where these lie along x, and how far they
#: reach along z; mm.
_VIEW = (320.0, 230.0, 240.0)
_BODY = (150.0, 105.0)
_CAVITY, _AWAY, _CAVITY_END = (48.0, 72.0), 62.0, 105.0
#: Along z an organ is a cylinder up to the first, and rounded up to the second, mm from its middle.
_CYLINDER, _ORGAN_END = 40.0, 70.0
#: Distance and thickness of the ribs, mm.
_RIBS, _RIB = 26.0, 9.0


def sliding_phantom(
    motion: float = 25.0, spacing: Sequence[float] = (2.0, 2.0, 4.0), seed: int = 0, *, deformation: float = 3.0,
    noise: float = 3.0,
) -> Phantom:  # fmt: skip
    """A pair of chest-like images whose two organs slide along z, with the known displacement.

    Parameters
    ----------
    motion : float
        How far the organs slide from the fixed to the moving image, mm along z; at most 60.
    spacing : sequence of float
        Voxel size ``(x, y, z)``, mm.
    seed : int
        Of the textures, the deformation and the noise.
    deformation : float
        Of the organs themselves, mm: its standard deviation along each axis, none across the wall.
    noise : float
        Standard deviation, in the unit of the intensities (air 0, fluid 60, organs about 110, wall about 150).

    Returns
    -------
    Phantom
        Labels: 1 wall, 2 and 3 the organs, 4 the fluid around them, 0 air. The displacement is that of what is seen at
        a voxel; fluid and air stay.

    Raises
    ------
    ValueError
        Organs that would leave their cavities, or a negative amplitude.

    Examples
    --------
    >>> from itk_nir.phantom import sliding_phantom
    >>> chest = sliding_phantom(spacing=(8, 8, 8))
    >>> chest.fixed.shape
    (30, 29, 40)
    >>> float(chest.displacement[chest.fixed_labels == 1].max())
    0.0
    """
    if not 0 <= motion <= 60:
        raise ValueError(f"the organs slide by 0 to 60 mm within their cavities, got {motion}")
    if min(deformation, noise) < 0:
        raise ValueError(f"deformation and noise must not be negative, got {deformation}, {noise}")
    size = [round(v / s) for v, s in zip(_VIEW, spacing, strict=True)]
    geometry = Geometry.make(size, spacing, [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)])
    seeds = np.random.SeedSequence(seed).spawn(4)
    textures = [Waves(np.random.default_rng(s), 12.0, 36.0, 48) for s in seeds[:2]]
    waves = Waves(np.random.default_rng(seeds[2]), 70.0, 140.0, 24, 3)
    points = geometry.grid().reshape(-1, 3)
    moved = _moved(points, motion, deformation, waves)
    noises = np.random.default_rng(seeds[3])
    images, labels = [], []
    # The organs lie lower in the fixed image and higher in the moving one, as far from the middle.
    for seen in (moved, points):
        label = _labels(points, seen, motion / 2)
        value = _values(points, seen, label, textures)
        value += noise * noises.standard_normal(len(points), np.float32)
        images.append(value.reshape(geometry.shape).astype(np.float32))
        labels.append(label.reshape(geometry.shape))
    organ = (labels[0] == RIGHT) | (labels[0] == LEFT)
    displacement = np.where(organ[..., None], (moved - points).reshape(*geometry.shape, 3), 0).astype(np.float32)
    return Phantom(images[0], images[1], labels[0], labels[1], geometry, geometry, displacement)


def _across(points: F64) -> F64:
    """How far points lie from the middle of the nearer cavity, 1 at its wall."""
    x = (np.abs(points[:, 0]) - _AWAY) / _CAVITY[0]
    return np.asarray(np.hypot(x, points[:, 1] / _CAVITY[1]))


def _moved(points: F64, motion: float, deformation: float, waves: Waves) -> F64:
    """Where what an organ shows at points of the fixed image lies in the moving one."""
    bend = deformation * waves(points.T.astype(np.float32)).T.astype(float)
    bend[:, :2] *= np.clip(1 - _across(points) ** 2, 0, 1)[:, None]  # it stays along the wall
    return np.asarray(points + bend + [0, 0, motion])


def _labels(points: F64, seen: F64, middle: float) -> NDArray[np.uint8]:
    """What lies at points; `seen`, where an organ that is there lies in the moving image, with its middle there."""
    out = np.zeros(len(points), np.uint8)
    out[np.hypot(points[:, 0] / _BODY[0], points[:, 1] / _BODY[1]) <= 1] = WALL
    out[(_across(points) <= 1) & (np.abs(points[:, 2]) <= _CAVITY_END)] = FLUID
    cap = np.clip(np.abs(seen[:, 2] - middle) - _CYLINDER, 0, None) / (_ORGAN_END - _CYLINDER)
    organ = np.hypot(_across(seen), cap) <= 1
    out[organ] = np.where(points[organ, 0] < 0, RIGHT, LEFT)
    return out


def _values(points: F64, seen: F64, labels: NDArray[np.uint8], textures: list[Waves]) -> Array:
    """Intensities: every organ has its texture with it, the wall its own and its ribs."""
    value = np.array([0, 150, 110, 110, 60], np.float32)[labels]
    organ, wall = (labels == RIGHT) | (labels == LEFT), labels == WALL
    value[organ] += 22 * textures[0](seen[organ].T.astype(np.float32))
    value[wall] += 15 * textures[1](points[wall].T.astype(np.float32))
    rib = wall & (np.abs((points[:, 2] + _RIBS / 2) % _RIBS - _RIBS / 2) < _RIB / 2) & (_across(points) < 1.25)
    value[rib] += 60
    return value
