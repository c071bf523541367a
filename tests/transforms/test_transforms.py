"""Transforms: signs and order against hand-made numbers, and every route in and out against ITK itself."""

from __future__ import annotations

import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform, compose
from itk_nir.transforms.as_simpleitk import from_sitk, to_sitk
from itk_nir.transforms.formats.field_image import write_vectors
from itk_nir.transforms.formats.itk_h5 import UnknownTransformType, read_h5, write_h5
from itk_nir.transforms.load import read_transform
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])


def oblique(d: int, step: float = 1.0) -> Geometry:
    """An oblique, anisotropic grid of about 20 x 25 x 27 mm far from the origin."""
    size = [round(n / step) for n in (14, 11, 9)[:d]]
    return Geometry.make(size, np.array([1.5, 2.3, 3.1])[:d] * step, [-40, 25, 90][:d], turned(d, 0.4, 0.3))


def smooth_field(grid: Geometry, seed: int = 0, size: float = 2.0) -> DisplacementField:
    """A displacement of at most `size` mm that changes over about 20 mm."""
    waves = np.random.default_rng(seed).normal(size=(grid.dimension, grid.dimension)) / 8
    return DisplacementField(grid, (size * np.sin((grid.grid() - grid.centre) @ waves + seed)).astype(np.float32))


def affine(d: int) -> LinearTransform:
    return LinearTransform.make(turned(d, 0.1, 0.3) * 1.05, [3.0, -2.0, 4.0][:d], [5.0, 6.0, 7.0][:d])


def chain_with_inverse(d: int) -> CompositeTransform:
    field = smooth_field(oblique(d))
    return compose(CompositeTransform((field,), (field.inverse(),)), affine(d))


def points_in(grid: Geometry, count: int = 400, margin: float = 0.0) -> np.ndarray:
    """Random points of a grid; with `margin`, of that many voxels around it too."""
    rng = np.random.default_rng(1)
    size = np.asarray(grid.size)
    return grid.index_to_physical(rng.uniform(-margin, size - 1 + margin, (count, grid.dimension)))


def mapped_by(transform: Any, points: np.ndarray) -> np.ndarray:
    """Any ITK-like transform at points, one by one."""
    return np.array([list(transform.TransformPoint(p.tolist())) for p in points])


# --- model -----------------------------------------------------------------------------------------------------------


def test_known_shift_and_rotation_have_the_signs_of_itk() -> None:
    shift = LinearTransform.make(np.eye(3), [5, 0, -2])
    np.testing.assert_array_equal(shift.map([1.0, 2.0, 3.0]), [6, 2, 1])
    # A positive turn about z takes x to y.
    quarter = LinearTransform.make([[0, -1, 0], [1, 0, 0], [0, 0, 1]], [0, 0, 0])
    np.testing.assert_allclose(quarter.map([1.0, 0.0, 0.0]), [0, 1, 0], atol=1e-15)
    euler = sitk.Euler3DTransform((0, 0, 0), 0, 0, np.pi / 2)
    np.testing.assert_allclose(from_sitk(euler).transforms[0].matrix, quarter.matrix, atol=1e-15)


def test_chain_applies_its_steps_first_to_last() -> None:
    shift = LinearTransform.make(np.eye(2), [10, 0])
    double = LinearTransform.make(np.eye(2) * 2, [0, 0])
    np.testing.assert_array_equal(CompositeTransform((shift, double)).map([1.0, 1.0]), [22, 2])
    np.testing.assert_array_equal(CompositeTransform((double, shift)).map([1.0, 1.0]), [12, 2])
    assert len(CompositeTransform((shift, double)).simplified().transforms) == 1
    np.testing.assert_array_equal(CompositeTransform((shift, double)).simplified().map([1.0, 1.0]), [22, 2])


@BOTH
def test_linear_inverse_and_centre(d: int) -> None:
    t = affine(d)
    p = points_in(oblique(d))
    np.testing.assert_allclose(t.inverse().map(t.map(p)), p, atol=1e-12)
    c = np.array([5.0, 6.0, 7.0])[:d]
    np.testing.assert_allclose(t.map(c), c + np.array([3.0, -2.0, 4.0])[:d], atol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [np.eye(5), np.full((3, 3), np.nan), np.diag([1.0, 1, 1, 2]), np.diag([1.0, 0, 1, 1]), np.ones(4)],
)
def test_bad_matrices_are_refused(matrix: np.ndarray) -> None:
    with pytest.raises(InputError):
        LinearTransform(matrix)


@BOTH
def test_field_is_read_as_itk_reads_it_inside_in_the_rim_and_outside(d: int) -> None:
    field = smooth_field(oblique(d))
    p = points_in(field.geometry, 1500, margin=1.5)
    wanted = mapped_by(to_sitk(CompositeTransform((field,))), p)
    np.testing.assert_allclose(field.map(p), wanted, atol=1e-6)
    outside = ~field.geometry.contains(p)
    assert outside.sum() > 100
    np.testing.assert_array_equal(field.displacement(p)[outside], 0)


@BOTH
def test_field_of_one_voxel_along_an_axis(d: int) -> None:
    grid = Geometry.make([1, 4, 3][:d], direction=turned(d, 0.4, 0.3))
    field = DisplacementField(grid, np.ones((*grid.shape, d), np.float32))
    np.testing.assert_array_equal(field.displacement(grid.grid()), 1)


def test_bad_fields_are_refused() -> None:
    grid = Geometry.make([4, 5])
    with pytest.raises(InputError, match=r"shape \(5, 4, 2\)"):
        DisplacementField(grid, np.zeros((4, 5, 2), np.float32))
    with pytest.raises(InputError, match="finite"):
        DisplacementField(grid, np.full((5, 4, 2), np.nan, np.float32))


@BOTH
@settings(max_examples=30, deadline=None)
@given(
    step=st.sampled_from([0.25, 0.5, 0.7, 1.0, 2.0]),
    start=st.floats(-3, 3),
    flip=st.booleans(),
    first=st.integers(0, 5),
)
def test_aligned_grids_are_interpolated_as_any_points_are(
    d: int, step: float, start: float, flip: bool, first: int
) -> None:
    field = smooth_field(oblique(d))
    g = field.geometry
    direction = g.rotation.copy()
    origin = g.index_to_physical(np.full(d, start))
    if flip:
        origin = origin + direction[:, 0] * g.spacing[0] * (g.size[0] - 1)
        direction[:, 0] *= -1
    target = Geometry.make([13, 12, 11][:d], np.asarray(g.spacing) * step, origin, direction)
    shift = field.rows_on(target, first, first + 4)
    assert shift is not None
    index = g.physical_to_index(target.grid()[first : first + 4])
    # On the very rim the last bit decides between inside and outside.
    clear = np.all(np.abs(np.abs(index - (np.asarray(g.size) - 1) / 2) - np.asarray(g.size) / 2) > 1e-5, axis=-1)
    np.testing.assert_allclose(shift[clear], field.displacement(target.grid()[first : first + 4])[clear], atol=2e-5)


@BOTH
def test_turned_grid_is_not_taken_for_an_aligned_one(d: int) -> None:
    field = smooth_field(oblique(d))
    assert field.rows_on(Geometry.make([5] * d, origin=field.geometry.origin), 0, 2) is None


@BOTH
def test_dense_displacement_equals_the_chain_at_every_voxel(d: int) -> None:
    chain = CompositeTransform((smooth_field(oblique(d)), affine(d), smooth_field(oblique(d), 3)))
    for grid in (oblique(d), oblique(d, 0.4), Geometry.make([15] * d, [2.0] * d, [-45, 20, 80][:d])):
        dense = chain.displacement_on(grid)
        p = grid.grid()
        np.testing.assert_allclose(p + dense.vectors, chain.map(p), atol=2e-5)


@BOTH
def test_inverse_of_a_field(d: int) -> None:
    field = smooth_field(oblique(d))
    inverse = field.inverse(tolerance=1e-4)
    # Points that come from well inside the grid: the others have their inverse where the field is cut off.
    p = points_in(field.geometry)
    back = inverse.geometry.grid().reshape(-1, d)
    source = inverse.map(back)
    index = field.geometry.physical_to_index(source)
    inner = np.all((index > 0.01) & (index < np.asarray(field.geometry.size) - 1.01), axis=-1)
    assert inner.mean() > 0.3
    np.testing.assert_allclose(field.map(source[inner]), back[inner], atol=1e-3)
    assert np.abs(field.displacement(p)).max() > 1


def test_inverse_of_a_folding_field_warns() -> None:
    grid = Geometry.make([30, 30])
    u = np.random.default_rng(0).normal(size=(30, 30, 2), scale=4).astype(np.float32)
    with pytest.warns(UserWarning, match="could not be inverted"):
        DisplacementField(grid, u).inverse()


@BOTH
def test_the_inverse_where_things_are_pressed_together(d: int) -> None:
    """To a hundredth along one axis: no fold, but the fixed point hardly moves."""
    grid = Geometry.make([41, 31, 9][:d], [1.0, 1.5, 2.0][:d], [-20.0, 4.0, 9.0][:d], turned(d, 0.3))
    x = grid.physical_to_index(grid.grid())[..., 0] - 20
    field = DisplacementField(grid, (0.1 - 0.99 * np.clip(x, -18, 18))[..., None] * grid.rotation[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse = field.inverse()
    q = grid.grid()
    far = np.linalg.norm(inverse.vectors, axis=-1)
    np.testing.assert_allclose(far[np.abs(x) < 0.5], 10, atol=1)
    stays = grid.contains(inverse.map(q))
    np.testing.assert_allclose(field.map(inverse.map(q))[stays], q[stays], atol=0.011)


def test_inverse_at_the_rim_of_a_field_without_folds() -> None:
    """A field that carries things over its rim, as readers see it: zero beyond."""
    grid = Geometry.make([60, 70])
    p = grid.grid()
    waves = np.stack([np.sin(p[..., 1] / 9), np.cos(p[..., 0] / 8 + p[..., 1] / 30)], -1)
    field = DisplacementField(grid, (2.5 * waves + [3.0, -2.0]).astype(np.float32))
    wide = Geometry.make([80, 90], origin=[-10.0, -10.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse, wider = field.inverse(), field.inverse(wide)
    there = field.map(p)
    assert (~grid.contains(there)).sum() > 300
    stays = np.all((there > 2) & (there < np.asarray(grid.size) - 3), axis=-1)
    np.testing.assert_allclose(inverse.map(there[stays]), p[stays], atol=0.1)
    # Beyond the grid: what the field carries there comes back, all else is its own inverse.
    q = wide.grid()
    back = wider.map(q)
    np.testing.assert_allclose(field.map(back)[~grid.contains(q)], q[~grid.contains(q)], atol=0.02)
    moved = np.linalg.norm(wider.vectors, axis=-1)[~grid.contains(q)]
    assert 100 < (moved > 1).sum() < 0.5 * moved.size
    assert (moved == 0).sum() > 0.5 * moved.size


@BOTH
def test_compose_keeps_the_inverse(d: int) -> None:
    chain = chain_with_inverse(d)
    assert chain.inverse_transforms is not None
    assert isinstance(chain.inverse_transforms[0], LinearTransform)
    p = points_in(oblique(d, 0.5).crop([8] * d, [4] * d))
    np.testing.assert_allclose(chain.inverse().map(chain.map(p)), p, atol=0.15)
    without = compose(smooth_field(oblique(d)), affine(d))
    assert without.inverse_transforms is None
    np.testing.assert_allclose(without.inverse().map(chain.map(p)), chain.inverse().map(chain.map(p)), atol=1e-6)


def test_chains_refuse_nothing_and_unlike_dimensions() -> None:
    with pytest.raises(InputError, match="at least one transform"):
        CompositeTransform(())
    with pytest.raises(InputError, match="one dimension"):
        CompositeTransform((LinearTransform.identity(2), LinearTransform.identity(3)))
    with pytest.raises(InputError, match=r"\(\.\.\., 3\)"):
        CompositeTransform((LinearTransform.identity(3),)).map([[1.0, 2.0]])
    with pytest.raises(InputError, match="3D"):
        CompositeTransform((LinearTransform.identity(2),)).displacement_on(Geometry.make([4, 4, 4]))


# --- in memory -------------------------------------------------------------------------------------------------------


@BOTH
def test_itk_round_trip_with_inverse(d: int) -> None:
    import itk

    from itk_nir.transforms.as_itk import from_itk, to_itk

    chain = chain_with_inverse(d)
    composite = to_itk(chain)
    assert type(composite) is type(itk.CompositeTransform[itk.D, d].New())
    p = points_in(oblique(d), margin=1.0)
    np.testing.assert_allclose(mapped_by(composite, p), chain.map(p), atol=1e-6)
    back = composite.GetInverseTransform()
    np.testing.assert_allclose(mapped_by(back, p), chain.inverse().map(p), atol=1e-6)
    again = from_itk(composite)
    np.testing.assert_array_equal(again.transforms[0].vectors, chain.transforms[0].vectors)
    np.testing.assert_allclose(again.transforms[1].matrix, chain.transforms[1].matrix, atol=1e-12)
    assert again.inverse_transforms is not None
    np.testing.assert_array_equal(again.inverse_transforms[1].vectors, chain.inverse_transforms[1].vectors)  # type: ignore


@BOTH
def test_sitk_round_trip(d: int) -> None:
    chain = chain_with_inverse(d)
    transform = to_sitk(chain)
    p = points_in(oblique(d), margin=1.0)
    np.testing.assert_allclose(mapped_by(transform, p), chain.map(p), atol=1e-6)
    again = from_sitk(transform)
    np.testing.assert_array_equal(again.transforms[0].vectors, chain.transforms[0].vectors)
    np.testing.assert_allclose(again.transforms[1].matrix, chain.transforms[1].matrix, atol=1e-12)
    field = CompositeTransform((chain.transforms[0],), (chain.inverse_transforms[1],))  # type: ignore[index]
    alone = to_sitk(field)
    np.testing.assert_allclose(mapped_by(alone.GetInverse(), p), field.inverse().map(p), atol=1e-6)
    assert from_sitk(alone).inverse_transforms is not None


def linear_sitk() -> list[sitk.Transform]:
    c = (3.0, -7.0, 11.0)
    similarity = sitk.Similarity3DTransform()
    similarity.SetCenter(c)
    similarity.SetRotation((1, 2, 3), 0.4)
    similarity.SetScale(1.2)
    scale = sitk.ScaleTransform(3, (1.1, 0.9, 1.3))
    scale.SetCenter(c)
    return [
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.TranslationTransform(3, (1, 2, 3)),
        scale,
        sitk.Euler3DTransform(c, 0.1, 0.2, 0.3, (4, 5, 6)),
        sitk.VersorRigid3DTransform((0.1, 0.2, 0.1, 0.9695359714832658), (4, 5, 6), c),
        similarity,
        sitk.Euler2DTransform(c[:2], 0.4, (4, 5)),
        sitk.CompositeTransform([sitk.TranslationTransform(2, (1, 2)), sitk.Euler2DTransform(c[:2], 0.4, (4, 5))]),
    ]


@pytest.mark.parametrize("number", range(8))
def test_every_class_of_linear_transform_comes_in(number: int, tmp_path: Path) -> None:
    transform = linear_sitk()[number]
    chain = from_sitk(transform)
    p = np.random.default_rng(0).normal(size=(20, chain.dimension)) * 50
    np.testing.assert_allclose(chain.map(p), mapped_by(transform, p), atol=1e-10)
    for suffix in (".tfm", ".h5", ".txt"):
        sitk.WriteTransform(transform, str(tmp_path / f"t{suffix}"))
        np.testing.assert_allclose(read_transform(tmp_path / f"t{suffix}").map(p), mapped_by(transform, p), atol=1e-9)


def itk_linear(name: str, d: int) -> Any:
    """One of ITK's own classes that SimpleITK has none for, with parameters of its own."""
    import itk

    kind = getattr(itk, name)
    # ITK's own `in` does not end.
    transform = (kind[itk.D, d] if (itk.D, d) in list(kind.keys()) else kind[itk.D]).New()
    parameters = transform.GetParameters()
    for k, shift in enumerate(np.random.default_rng(len(name)).normal(size=len(parameters)) * 0.1):
        parameters[k] = parameters[k] + shift
    transform.SetParameters(parameters)
    transform.SetCenter([3.0, 4.0, 5.0][:d])
    return transform


@pytest.mark.interop
@pytest.mark.parametrize("ending", [".tfm", ".mat", ".h5"])
@pytest.mark.parametrize(
    ("name", "d"),
    [
        ("CenteredAffineTransform", 2), ("CenteredAffineTransform", 3), ("FixedCenterOfRotationAffineTransform", 3),
        ("CenteredRigid2DTransform", 2), ("CenteredSimilarity2DTransform", 2), ("CenteredEuler3DTransform", 3),
        ("Rigid2DTransform", 2), ("ScalableAffineTransform", 3), ("ScaleLogarithmicTransform", 3),
        ("QuaternionRigidTransform", 3), ("ComposeScaleSkewVersor3DTransform", 3),
    ],
)  # fmt: skip
def test_linear_classes_that_simpleitk_lacks_are_read(name: str, d: int, ending: str, tmp_path: Path) -> None:
    import itk

    transform = itk_linear(name, d)
    p = np.random.default_rng(0).normal(size=(20, d)) * 50
    itk.transformwrite([transform], str(tmp_path / f"t{ending}"))
    np.testing.assert_allclose(read_transform(tmp_path / f"t{ending}").map(p), mapped_by(transform, p), atol=1e-9)


@pytest.mark.interop
@pytest.mark.parametrize("name", ["CenteredAffineTransform", "ComposeScaleSkewVersor3DTransform"])
def test_a_composite_of_simpleitks_that_keeps_a_part_to_itself_comes_in(name: str, tmp_path: Path) -> None:
    import itk

    itk.transformwrite([itk_linear(name, 3)], str(tmp_path / "t.tfm"))
    part = (tmp_path / "t.tfm").read_text().split("\n", 2)[2]
    (tmp_path / "c.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: CompositeTransform_double_3_3\n#Transform 1\n"
        f"Transform: TranslationTransform_double_3_3\nParameters: 1 2 3\nFixedParameters: \n#Transform 2\n{part}"
    )
    composite = sitk.ReadTransform(str(tmp_path / "c.tfm"))
    p = np.random.default_rng(0).normal(size=(20, 3)) * 50
    for given_ in (composite, tmp_path / "c.tfm"):
        np.testing.assert_allclose(read_transform(given_).map(p), mapped_by(composite, p), atol=1e-9)


@pytest.mark.interop
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("ending", [".txt", ".tfm", ".mat"])
def test_the_class_of_ants_affine_txt_is_read(ending: str, d: int, tmp_path: Path) -> None:
    """SimpleITK wraps `MatrixOffsetTransformBase` as a composite of itself, without end."""
    import ants

    rng = np.random.default_rng(3)
    m, t, c = np.eye(d) + 0.1 * rng.normal(size=(d, d)), rng.normal(size=d) * 9, rng.normal(size=d) * 30
    numbers, path = (np.concatenate([m.ravel(), t]), c), tmp_path / f"affine{ending}"
    names = f"MatrixOffsetTransformBase_double_{d}_{d}", "fixed"
    if ending == ".mat":
        heads = [struct.pack("<5i", 0, len(a), 1, 0, len(n) + 1) for n, a in zip(names, numbers, strict=True)]
        parts = zip(heads, names, numbers, strict=True)
        path.write_bytes(b"".join(head + n.encode() + b"\0" + a.astype("<f8").tobytes() for head, n, a in parts))
    else:
        words = [" ".join(map(repr, a.tolist())) for a in numbers]
        head = f"#Insight Transform File V1.0\n#Transform 0\nTransform: {names[0]}\n"
        path.write_text(f"{head}Parameters: {words[0]}\nFixedParameters: {words[1]}\n")
    p = rng.normal(size=(20, d)) * 50
    theirs = ants.read_transform(str(path))
    np.testing.assert_allclose((p - c) @ m.T + c + t, [theirs.apply_to_point(q.tolist()) for q in p], atol=1e-4)
    for given_ in (path, sitk.ReadTransform(str(path)), sitk.CompositeTransform([sitk.ReadTransform(str(path))])):
        np.testing.assert_allclose(read_transform(given_).map(p), (p - c) @ m.T + c + t, atol=1e-9)


@pytest.mark.interop
def test_classes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    import itk

    itk.transformwrite([itk_linear("ScaleLogarithmicTransform", 2)], str(tmp_path / "t.tfm"))
    with pytest.raises(InputError, match=r"is a ScaleLogarithmicTransform_double_2_2, which ITK does not read"):
        read_transform(tmp_path / "t.tfm")
    polar = itk.AzimuthElevationToCartesianTransform[itk.D, 3].New()
    itk.transformwrite([polar], str(tmp_path / "p.tfm"))
    with pytest.raises(InputError, match="says that it is linear, but is not"):
        read_transform(polar)
    with pytest.raises(InputError, match="has to be sampled"):
        read_transform(tmp_path / "p.tfm")


def test_itk_objects_of_other_classes_come_in() -> None:
    import itk

    from itk_nir.transforms.as_itk import from_itk, to_itk

    euler = itk.Euler3DTransform[itk.D].New()
    euler.SetCenter([3.0, -7.0, 11.0])
    euler.SetRotation(0.1, 0.2, 0.3)
    euler.SetTranslation([4.0, 5.0, 6.0])
    inner = itk.CompositeTransform[itk.D, 3].New()
    inner.AddTransform(to_itk(chain_with_inverse(3)))
    inner.AddTransform(euler)
    p = points_in(oblique(3))
    np.testing.assert_allclose(from_itk(inner).map(p), mapped_by(inner, p), atol=1e-5)


def test_other_transforms_are_sampled_on_the_reference() -> None:
    import itk

    from itk_nir.transforms.as_itk import from_itk

    grid = oblique(3)
    image = sitk.Image(grid.size, sitk.sitkFloat32)
    image.SetOrigin(grid.origin)
    image.SetSpacing(grid.spacing)
    image.SetDirection(grid.rotation.ravel().tolist())
    spline = sitk.BSplineTransformInitializer(image, [3, 3, 3])
    spline.SetParameters(np.random.default_rng(0).normal(size=len(spline.GetParameters())).tolist())
    nodes = grid.grid().reshape(-1, 3)
    # Beyond the spline's domain it is the identity, and the outermost nodes lie on that very edge.
    inner = np.all(np.abs(grid.physical_to_index(nodes) - (np.asarray(grid.size) - 1) / 2) < 4, axis=-1)
    wanted = mapped_by(spline, nodes[inner])
    np.testing.assert_allclose(from_sitk(spline, grid).map(nodes[inner]), wanted, atol=1e-5)
    with pytest.raises(InputError, match="BSplineTransform has to be sampled"):
        from_sitk(spline)

    same = itk.BSplineTransform[itk.D, 3, 3].New()
    fixed, parameters = itk.OptimizerParameters[itk.D](), itk.OptimizerParameters[itk.D]()
    for target, values in ((fixed, spline.GetFixedParameters()), (parameters, spline.GetParameters())):
        target.SetSize(len(values))
        for k, value in enumerate(values):
            target.SetElement(k, value)
    same.SetFixedParameters(fixed)
    same.SetParameters(parameters)
    np.testing.assert_allclose(from_itk(same, grid).map(nodes[inner]), wanted, atol=1e-5)
    with pytest.raises(InputError, match="BSplineTransform has to be sampled"):
        from_itk(same)


def test_itk_holds_an_inverse_on_the_same_grid_only() -> None:
    from itk_nir.transforms.as_itk import field_to_itk

    with pytest.raises(InputError, match="one grid"):
        field_to_itk(smooth_field(oblique(2)), smooth_field(oblique(2, 0.5)))


# --- files -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("precision", "compression", "error"), [("float", 0, 2e-5), ("float", 1, 2e-5), ("double", 0, 1e-6)]
)
def test_h5_is_read_alike_by_itk_sitk_and_us(
    d: int, precision: str, compression: int, error: float, tmp_path: Path
) -> None:
    import itk

    chain = chain_with_inverse(d)
    path = tmp_path / "t.h5"
    write_h5(chain, path, precision=precision, compression=compression)
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]
    p = points_in(oblique(d), margin=0.4)
    wanted = chain.map(p)
    np.testing.assert_allclose(mapped_by(sitk.ReadTransform(str(path)), p), wanted, atol=error)
    (composite,) = itk.transformread(str(path))
    np.testing.assert_allclose(mapped_by(itk.down_cast(composite), p), wanted, atol=error)
    again = read_h5(path)
    np.testing.assert_allclose(again.map(p), wanted, atol=error)
    np.testing.assert_array_equal(again.transforms[0].vectors, chain.transforms[0].vectors)
    with h5py.File(path) as file:
        assert file["TransformGroup/2/TransformType"][0].decode() == f"DisplacementFieldTransform_{precision}_{d}_{d}"


@BOTH
def test_h5_is_read_by_ants(d: int, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    chain = chain_with_inverse(d)
    write_h5(chain, tmp_path / "t.h5", compression=1)
    p = points_in(oblique(d), 50)
    transform = ants.read_transform(str(tmp_path / "t.h5"))
    got = np.array([transform.apply_to_point(q.tolist()) for q in p])
    np.testing.assert_allclose(got, chain.map(p), atol=1e-4)


@BOTH
def test_h5_written_by_sitk_and_itk_is_read(d: int, tmp_path: Path) -> None:
    import itk

    from itk_nir.transforms.as_itk import to_itk

    chain = chain_with_inverse(d)
    p = points_in(oblique(d))
    sitk.WriteTransform(to_sitk(chain), str(tmp_path / "s.h5"))
    itk.transformwrite([to_itk(chain)], str(tmp_path / "i.h5"), compression=True)
    for name in ("s.h5", "i.h5"):
        np.testing.assert_allclose(read_h5(tmp_path / name).map(p), chain.map(p), atol=1e-6)


def test_the_transforms_of_a_text_file_are_met_from_the_last_to_the_first(tmp_path: Path) -> None:
    """As with ANTs; SimpleITK takes the first alone."""
    import ants

    affine = sitk.AffineTransform(2)
    affine.SetMatrix((1.1, 0.2, -0.1, 0.9))
    shift = sitk.TranslationTransform(2, (3, 4))
    texts = []
    for number, one in enumerate((affine, shift)):
        sitk.WriteTransform(one, str(tmp_path / "one.tfm"))
        body = (tmp_path / "one.tfm").read_text().split("#Transform 0\n")[1]
        texts.append(f"#Transform {number}\n{body}")
    (tmp_path / "two.txt").write_text("#Insight Transform File V1.0\n" + "".join(texts))
    point = (5.0, -7.0)
    wanted = affine.TransformPoint(shift.TransformPoint(point))
    np.testing.assert_allclose(read_transform(tmp_path / "two.txt").map([point])[0], wanted)
    theirs = ants.read_transform(str(tmp_path / "two.txt"))
    np.testing.assert_allclose(theirs.apply_to_point(point), wanted, atol=1e-5)


def test_h5_single_transform_and_list(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.TranslationTransform(2, (3, 4)), str(tmp_path / "one.h5"))
    np.testing.assert_array_equal(read_h5(tmp_path / "one.h5").map([0.0, 0.0]), [3, 4])
    with h5py.File(tmp_path / "one.h5", "a") as file:
        file.copy("TransformGroup/0", "TransformGroup/1")
    with pytest.raises(InputError, match="a list of 2 transforms"):
        read_transform(tmp_path / "one.h5")


def test_h5_of_other_classes_is_left_to_sitk(tmp_path: Path) -> None:
    path = tmp_path / "euler.h5"
    euler = sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3, (4, 5, 6))
    sitk.WriteTransform(sitk.CompositeTransform([euler]), str(path))
    with pytest.raises(UnknownTransformType):
        read_h5(path)
    p = np.random.default_rng(0).normal(size=(9, 3)) * 40
    np.testing.assert_allclose(read_transform(path).map(p), mapped_by(euler, p), atol=1e-9)


def test_h5_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_h5(CompositeTransform((affine(3),)), tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="precision"):
        write_h5(CompositeTransform((affine(3),)), tmp_path / "t.h5", precision="half")


@BOTH
def test_warp_images_travel_as_ants_writes_them(d: int, tmp_path: Path) -> None:
    field = smooth_field(oblique(d))
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        path = tmp_path / f"warp{suffix}"
        write_vectors(field.vectors, field.geometry, path)
        again = read_transform(path).transforms[0]
        assert isinstance(again, DisplacementField)
        np.testing.assert_array_equal(again.vectors, field.vectors)
        assert again.geometry.same_grid(field.geometry)
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    header = nibabel.load(tmp_path / "warp.nii.gz").header
    assert int(header["intent_code"]) == 1007
    assert header["dim"][:6].tolist() == [5, *field.geometry.size, *[1] * (4 - d), d]


@BOTH
def test_ants_apply_transforms_gives_our_warp(d: int, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    from itk_nir.images import save_image
    from itk_nir.resample import resample_array

    chain = chain_with_inverse(d)
    fixed = oblique(d)
    moving = Geometry.make([30] * d, [1.3] * d, np.asarray(affine(d).map(fixed.centre)) - 19, np.eye(d))
    image = (100 * np.sin(moving.grid().sum(-1) / 6)).astype(np.float32)
    save_image(image, moving, tmp_path / "m.nii.gz")
    save_image(np.ones(fixed.shape, np.float32), fixed, tmp_path / "f.nii.gz")
    field = chain.fields[0]
    write_vectors(field.vectors, field.geometry, tmp_path / "Warp.nii.gz")
    sitk.WriteTransform(to_sitk(CompositeTransform((chain.transforms[1],))), str(tmp_path / "0GenericAffine.mat"))
    write_h5(chain, tmp_path / "Composite.h5")
    parts = [str(tmp_path / "Warp.nii.gz"), str(tmp_path / "0GenericAffine.mat")]
    ours = resample_array(image, moving, chain, fixed, "linear")
    assert ours.std() > 20
    for transforms in (parts, [str(tmp_path / "Composite.h5")]):
        theirs = ants.apply_transforms(
            ants.image_read(str(tmp_path / "f.nii.gz")), ants.image_read(str(tmp_path / "m.nii.gz")), transforms
        )
        np.testing.assert_allclose(theirs.numpy().T, ours, atol=0.02)
    p = points_in(fixed)
    np.testing.assert_allclose(read_transform(parts).map(p), chain.map(p), atol=1e-5)


def test_matrices_chains_and_steps_come_in() -> None:
    p = [1.0, 2.0]
    m = [[0, -1, 5], [1, 0, 0], [0, 0, 1]]
    for given_ in (m, np.array(m), LinearTransform(np.array(m)), CompositeTransform((LinearTransform(np.array(m)),))):
        np.testing.assert_array_equal(read_transform(given_).map(p), [3, 1])
    assert read_transform([np.array(m), np.array(m)]).map(p).tolist() == [4, 3]
    assert read_transform(sitk.TranslationTransform(2, (1, 1))).map(p).tolist() == [2, 3]


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a transform at all " * 40)


def _truncated(path: Path) -> None:
    sitk.WriteTransform(to_sitk(chain_with_inverse(3)), str(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


_SUFFIXES = (".h5", ".tfm", ".mat", ".txt", ".nii.gz", ".mha", ".foo")


@pytest.mark.parametrize(
    ("how", "suffix"),
    [
        *[(how, suffix) for how in ("missing", "folder", "garbage") for suffix in _SUFFIXES],
        *[("truncated", suffix) for suffix in (".h5", ".tfm", ".nii.gz")],
        *[("scalar", suffix) for suffix in (".nii.gz", ".mha")],
    ],
)
def test_bad_transform_files_are_one_line_errors(suffix: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / f"initial{suffix}"
    if how == "folder":
        path.mkdir()
    elif how == "garbage":
        _garbage(path)
    elif how == "truncated" and suffix == ".nii.gz":
        field = smooth_field(oblique(3))
        write_vectors(field.vectors, field.geometry, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "truncated":
        _truncated(path)
    elif how == "scalar":
        sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkFloat32), str(path))
    with pytest.raises(InputError) as error:
        read_transform(path, role="initial transform")
    message = str(error.value)
    assert message.startswith(f"initial transform {path}: ")
    assert "\n" not in message


def test_things_that_are_no_transform() -> None:
    with pytest.raises(InputError, match="object of type int"):
        read_transform(3)
    with pytest.raises(InputError, match="empty list"):
        read_transform([])


FIRST = """
import numpy as np, sys, itk
from itk_nir.geometry import Geometry
from itk_nir.transforms import DisplacementField
from itk_nir.transforms.as_itk import field_to_itk

grid = Geometry.make([6, 5, 4], [1.0, 2.0, 3.0], direction=np.diag([1.0, -1.0, -1.0]))
transform = field_to_itk(DisplacementField(grid, np.full((4, 5, 6, 3), 0.25, np.float32)))
print(np.asarray(transform.TransformPoint([1.0, -2.0, -3.0])).tolist())
print(itk.array_from_matrix(transform.GetDisplacementField().GetDirection()).diagonal().tolist())
image = itk.image_from_array(np.ones((4, 5, 6), np.float32))
print(itk.resample_image_filter(image, transform=transform, use_reference_image=True, reference_image=image).shape)
itk.transformwrite([transform], sys.argv[1])
print(itk.transformread(sys.argv[1])[0].GetNameOfClass())
print(type(transform) is itk.DisplacementFieldTransform[itk.D, 3], itk.template(transform)[1][1])
"""


def test_the_first_displacement_field_of_a_process_is_itks(tmp_path: Path) -> None:
    """Its class is loaded by a short cut; all of ITK must work with it, in a process that has used nothing before."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST, str(tmp_path / "t.h5")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "[1.25, -1.75, -2.75]", "[1.0, -1.0, -1.0]", "(4, 5, 6)", "DisplacementFieldTransform", "True 3",
    ]  # fmt: skip
