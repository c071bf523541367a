"""Uneven light in pictures of sections: seen, divided by, told; and everything else left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import itk_nir
from itk_nir import intensities
from itk_nir.geometry import Geometry
from itk_nir.illumination import evened
from itk_nir.images import Volume, load_channels, to_sitk
from itk_nir.intensities import for_registration, odd_intensities
from itk_nir.phantom import Phantom, brain_phantom

Array = np.ndarray

#: What the light is like at y and x, each from -1 to 1.
LIGHT: dict[str, Callable[[Array, Array], Array]] = {
    "falls off to the corners": lambda y, x: 1 - 0.2 * (x**2 + y**2),
    "from one side": lambda y, x: 1 + 0.3 * x,
    "both": lambda y, x: (1 + 0.2 * y - 0.1 * x) * (1 - 0.15 * (x**2 + (y - 0.3) ** 2)),
}
lights = pytest.mark.parametrize("light", LIGHT.values(), ids=LIGHT)


@pytest.fixture(scope="module")
def brain() -> Phantom:
    return brain_phantom(2, (160, 192))


def section(tissue: Array) -> Array:
    """What a section of a tissue lets through, on glass."""
    return (240 * np.exp(-1.2 * np.clip(tissue, 0, None) / 255)).astype(np.float32)


def stained(tissue: Array) -> Array:
    """Another stain of it: neither rises with the former nor falls with it."""
    share = np.clip(tissue / 255, 0, None)
    return section(150 * np.where(share < 0.1, share, 1.2 - np.abs(share - 0.45) * 2))


def lit(picture: Array, light: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    """A picture in a light, and the light."""
    places = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in picture.shape), indexing="ij")
    of = light(*places)
    return (picture * of).astype(np.float32), of


@lights
def test_light_is_divided_by(brain: Phantom, light: Callable[[Array, Array], Array]) -> None:
    even = section(brain.fixed)
    picture, of = lit(even, light)
    found, ratio = evened(picture, 0.0)
    assert ratio == pytest.approx(of.max() / of.min(), rel=0.1)
    left = found / even
    assert left.std() / left.mean() < 0.01 < 0.05 < of.std() / of.mean()
    # As a plane of a volume, and in another unit whose black is not 0.
    plane, again = evened(picture[None], 0.0)
    np.testing.assert_array_equal(plane[0], found)
    other, third = evened(1000 * picture - 500, -500.0)
    np.testing.assert_allclose(other, 1000 * found - 500, rtol=1e-3)
    assert again == ratio == pytest.approx(third, rel=1e-4)


@settings(deadline=None, max_examples=12)
@given(st.tuples(*[st.floats(-0.25, 0.25)] * 5), st.integers(0, 3))
def test_any_smooth_light_is_made_more_even_or_left(bends: tuple[float, ...], seed: int) -> None:
    even = section(brain_phantom(2, (96, 112), seed=seed).fixed)
    a, b, c, d, e = bends
    picture, of = lit(even, lambda y, x: 1 + a * x + b * y + c * x * y + d * x**2 + e * y**2)
    found, ratio = evened(picture, 0.0)
    left = found / even
    assert (ratio == 1) == (found is picture)
    if ratio == 1:
        assert of.max() / of.min() < 1.25 or of.min() < 0.3
    else:
        assert left.std() / left.mean() < max(0.02, 0.3 * of.std() / of.mean())


def test_what_is_lit_evenly_or_has_no_bright_background_is_left(brain: Phantom) -> None:
    tissue, random = brain.fixed, np.random.default_rng(0)
    ramp = np.linspace(0.5, 1.5, tissue.size).reshape(tissue.shape)
    pictures = {
        "even": section(tissue),
        "even, stained": stained(tissue),
        "noise": section(tissue) + random.normal(0, 8, tissue.shape),
        "dark background": tissue * ramp,
        "constant": np.full(tissue.shape, 7.0),
        "black": np.zeros(tissue.shape),
        "noise alone": random.normal(100, 30, tissue.shape),
        "ramp and much else": 100 * ramp + random.normal(0, 30, tissue.shape),
        "few pixels": section(tissue[::6, ::6]) * ramp[::6, ::6],
        "line": section(tissue)[80:81] * ramp[80:81],
        "volume": np.stack([section(tissue) * ramp] * 3),
    }
    for name, picture in pictures.items():
        array = picture.astype(np.float32)
        found, ratio = evened(array, 0.0)
        assert found is array, name
        assert ratio == 1, name


def test_real_images_are_left(data: Path) -> None:
    for path in [p for pattern in ("*/*.mha", "*/*.jpg", "*/*.nii.gz") for p in sorted(data.glob(pattern))]:
        if path.stat().st_size < 2e6 and not any(word in path.name for word in ("mask", "seg")):
            for volume in load_channels(path, path.name):
                parts = [volume.array]
                if volume.array.ndim == 2:  # radiographs are bright all around, too, once cut out
                    h, w = (n // 4 for n in volume.array.shape)
                    parts += [parts[0][h:], parts[0][:-h], parts[0][:, w:], parts[0][:, :-w], parts[0][h:, w:]]
                for part in parts:
                    assert evened(np.ascontiguousarray(part), float(part.min()))[1] == 1, path


def test_it_is_told_and_kept_from_the_registration_alone(brain: Phantom) -> None:
    array = lit(section(brain.fixed), LIGHT["both"])[0]
    image = Volume(array, Geometry.make(array.shape[::-1]), "fixed image", "sitk", array.dtype)
    (found,) = odd_intensities(image)
    assert "fixed image: is lit unevenly" in found.text
    assert found.values["ratio"] > 1.3
    np.testing.assert_array_equal(for_registration(image).array, evened(array, 0.0)[0])
    np.testing.assert_array_equal(image.array, array)


def test_stains_in_uneven_light_are_registered_as_in_even_light(
    brain: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = section(brain.fixed), stained(brain.moving)
    uneven = [lit(p, LIGHT[how])[0] for p, how in zip(even, ("falls off to the corners", "from one side"), strict=True)]
    inside = brain.fixed_labels > 0
    x = brain.geometry.grid()[inside]

    def error(pictures: list[Array] | tuple[Array, Array]) -> tuple[float, itk_nir.RegistrationResult]:
        images = (to_sitk(p, brain.geometry) for p in pictures)
        result = itk_nir.register(*images, preset="fast", threads=1)
        gap = result.transform_points(x) - x - brain.displacement[inside]
        return float(np.linalg.norm(gap, axis=1).mean()), result

    least, _ = error(even)
    with pytest.warns(UserWarning, match="moving image: is lit unevenly"):
        found, result = error(uneven)
    assert found < 1.15 * least
    # What is written is what came in: as bright on one side as it was, and not on the other.
    glass = np.median(sitk.GetArrayFromImage(result.warped)[60:130], axis=0)
    assert glass[-8] / glass[8] == pytest.approx(1.3 / 0.7, rel=0.15)
    monkeypatch.setattr(intensities, "evened", lambda array, _: (array, 1.0))
    assert error(uneven)[0] > 1.3 * least
