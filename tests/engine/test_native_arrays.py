"""What the native functions refuse: arrays of another type, layout or size, which they would copy or run over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

native = pytest.importorskip("itk_nir._native", reason="the native module is not built")

Array = np.ndarray

Z, Y, X = 4, 5, 6


RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.uniform(0.1, 0.9, shape).astype(np.float32)


def counts(*shape: int) -> Array:
    return RNG.integers(1, 255, shape).astype(np.uint8)


def starts(count: int) -> Array:
    return np.zeros(count, np.int32)


class Function(NamedTuple):
    """How a native function is called: all its arguments by name, and which of the arrays are special.

    outputs : what is written to. optional : may be None. loose : inputs whose size may be another.
    """

    arguments: dict[str, Any]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()


IMAGE, FIELD, PACKED = (Z, Y, X), (3, Z, Y, X), (Z, Y, X, 4)
MATRICES: dict[str, Any] = {"grid_to_moving": np.eye(3, 4), "displacement_to_moving": np.eye(3)}
SUMS = {name: floats(*IMAGE) for name in ("inverse_count", "mean", "inverse_variance")}

FUNCTIONS = {
    "banded": Function(
        {"input": floats(2, 7, 3), "output": floats(2, 5, 3), "start": starts(5), "weights": floats(5, 7)}, ("output",)
    ),
    "banded_adjoint": Function(
        {"input": floats(2, 5, 3), "factor": floats(5, 3), "output": floats(2, 7, 3), "start": starts(5),
         "weights": floats(5, 7)},
        ("output",),
    ),
    "warp": Function(
        {"moving": floats(3, 4, 7), "displacement": floats(*FIELD), **MATRICES, "warped": floats(*IMAGE),
         "gradient": floats(*FIELD)},
        ("warped", "gradient"), ("gradient",), ("moving",),
    ),
    "warp_spline": Function(
        {"moving": floats(3, 4, 7), "half": floats(3, 3, Y, X), "start": starts(Z), "weights": floats(Z, 3), **MATRICES,
         "warped": floats(*IMAGE), "gradient": floats(*FIELD)},
        ("warped", "gradient"), ("gradient",), ("moving",),
    ),
    "resample": Function(
        {"moving": floats(3, 4, 7), "displacement": floats(Z, Y, X, 3), **MATRICES, "outside": 0.0,
         "out": floats(*IMAGE)},
        ("out",), ("displacement",), ("moving",),
    ),
    "interpolate": Function(
        {"image": floats(3, 4, 7), "grid": np.eye(3, 4), "matrices": [np.eye(3, 4), np.eye(3, 4)],
         "fields": [None, floats(2, 3, 4, 3)], "to_index": np.eye(3, 4), "kind": "gaussian", "order": 3,
         "window": "lanczos", "sigma": [1.0, 1.0, 1.0], "alpha": 1.0, "outside": 0.0, "out": floats(*IMAGE)},
        ("out",), (), ("image", "out"),
    ),
    "nearest": Function(
        {"image": counts(3, 4, 7, 4), "grid": np.eye(3, 4), "matrices": [np.eye(3, 4)], "fields": [None],
         "to_index": np.eye(3, 4), "outside": counts(4), "out": counts(Z, Y, X, 4)},
        ("out",), (), ("image", "out"),
    ),
    "displacements": Function(
        {"grid": np.eye(3, 4), "matrices": [np.eye(3, 4), np.eye(3, 4)], "fields": [None, floats(2, 3, 4, 3)],
         "out": floats(Z, Y, X, 3)},
        ("out",), (), ("out",),
    ),
    "bspline_coefficients": Function({"image": floats(*IMAGE), "order": 3}, ("image",), (), ("image",)),
    "lncc_prepare": Function(
        {"fixed": floats(*IMAGE), "weight": floats(*IMAGE), "radius": 1, "epsilon": 1e-3, **SUMS}, tuple(SUMS),
        ("weight",),
    ),
    "lncc": Function(
        {"fixed": floats(*IMAGE), "weight": floats(*IMAGE), **SUMS, "moving": floats(*IMAGE), "radius": 1,
         "epsilon": 1e-3, "gradient": floats(*IMAGE), "scratch": floats(*FIELD)},
        ("gradient", "scratch"), ("weight", "gradient"),
    ),
    "joint_histogram": Function(
        {"position": floats(*IMAGE), "moving": floats(*IMAGE), "low": 0.0, "scale": 4.0,
         "histogram": floats(5, 5).astype(np.float64)},
        ("histogram",),
    ),
    "joint_histogram_adjoint": Function(
        {"position": floats(*IMAGE), "moving": floats(*IMAGE), "low": 0.0, "scale": 4.0,
         "derivative": floats(5, 5).astype(np.float64), "gradient": floats(*IMAGE)},
        ("gradient",),
    ),
    "global_sums": Function(
        {"fixed": floats(*IMAGE), "moving": floats(*IMAGE), "weight": floats(*IMAGE)}, (), ("weight",)
    ),
    "global_sums_adjoint": Function(
        {"fixed": floats(*IMAGE), "moving": floats(*IMAGE), "weight": floats(*IMAGE), "derivative": [1.0, 2.0, 3.0],
         "gradient": floats(*IMAGE)},
        ("gradient",), ("weight",),
     ),
    "mind_descriptors": Function(
        {"image": floats(*IMAGE), "offsets": np.eye(3), "radius": 1, "dimension": 3,
         "descriptors": counts(Z, Y, X, 16)},
        ("descriptors",),
    ),
    "mind_difference": Function(
        {"fixed": counts(Z, Y, X, 16), "weight": floats(*IMAGE), "moving": counts(3, 4, 7, 16),
         "displacement": floats(*FIELD), **MATRICES, "channels": 12, "gradient": floats(*FIELD)},
        ("gradient",), ("weight", "gradient"), ("moving",),
    ),
    "mind_difference_spline": Function(
        {"fixed": counts(Z, Y, X, 16), "weight": floats(*IMAGE), "moving": counts(3, 4, 7, 16),
         "half": floats(3, 3, Y, X), "start": starts(Z), "weights": floats(Z, 3), **MATRICES, "channels": 12,
         "gradient": floats(*FIELD)},
        ("gradient",), ("weight", "gradient"), ("moving",),
    ),
    "match_costs": Function(
        {"fixed": counts(Z, Y, X, 16), "fixed_counts": counts(Z, Y, X), "moving": counts(Z + 2, Y + 2, X + 4, 16),
         "moving_counts": counts(Z + 2, Y + 2, X + 4), "reach": [2, 1, 1], "block": [3, 3, 2], "unrelated": 900,
         "costs": np.zeros((8, 45), np.uint16)},
        ("costs",),
    ),
    "best_matches": Function(
        {"costs": np.ones((8, 45), np.uint16), "wanted": floats(3, 8), "reach": [2, 1, 1], "weight": 0.1,
         "found": floats(3, 8), "cost": floats(8)},
        ("found", "cost"),
    ),
    "pack": Function({"planar": floats(*FIELD), "packed": floats(*PACKED), "scale": 1.0}, ("packed",)),
    "unpack": Function({"packed": floats(*PACKED), "planar": floats(*FIELD), "scale": 1.0}, ("planar",)),
    "compose": Function({"outer": floats(*PACKED), "inner": floats(*PACKED), "out": floats(*PACKED)}, ("out",)),
    "compose_adjoint": Function(
        {name: floats(*PACKED) for name in ("outer", "inner", "grad", "grad_outer", "grad_inner")},
        ("grad_outer", "grad_inner"),
    ),
    "compose_adjoint_inner": Function(
        {name: floats(*PACKED) for name in ("outer", "inner", "grad", "grad_inner")}, ("grad_inner",)
    ),
    "invert": Function({"u": floats(*PACKED), "v": floats(*PACKED), "iterations": 2, "tolerance": 1e-3}, ("v",)),
    "balance": Function({"u": floats(*PACKED), "v": floats(*PACKED), "relaxation": 0.5}, ("v",)),
    "inverse_error": Function(
        {"u": floats(*PACKED), "v": floats(*PACKED), "scale": [1.0, 1.0, 1.0], "error": floats(*IMAGE)}, ("error",)
    ),
    "jacobian": Function({"u": floats(*FIELD), "determinant": floats(*IMAGE)}, ("determinant",)),
    "jacobian_penalty": Function(
        {"u": floats(*FIELD), "gradient": floats(*FIELD), "margin": 0.5, "corner": 0}, ("gradient",)
    ),
    "diffusion": Function({"u": floats(*FIELD), "gradient": floats(*FIELD), "scale": math.inf}, ("gradient",)),
    "adam": Function(
        {**{name: floats(2, 9) for name in ("parameter", "gradient", "first", "second")}, "beta1": 0.9, "beta2": 0.99,
         "rate": 0.1, "correction": 1.0, "epsilon": 1e-6},
        ("parameter", "first", "second"),
    ),
}  # fmt: skip

#: Those without arrays.
OTHERS = {"instruction_sets", "instruction_set", "use_instruction_set", "release_memory", "return_blocks_from"}


def arrays(function: Function) -> Iterator[str]:
    return (name for name, value in function.arguments.items() if isinstance(value, np.ndarray))


def call(name: str, **changes: Any) -> Any:
    """The function on its arguments of the table (copies) but for `changes`."""
    given = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in FUNCTIONS[name].arguments.items()}
    return getattr(native, name)(**{**given, "threads": 1, **changes})


each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_array = pytest.mark.parametrize(("name", "array"), [(n, a) for n, f in FUNCTIONS.items() for a in arrays(f)])
each_output = pytest.mark.parametrize(("name", "array"), [(n, a) for n, f in FUNCTIONS.items() for a in f.outputs])


def test_every_function_is_in_the_table() -> None:
    functions = {n for n in dir(native) if not n.startswith("__") and callable(getattr(native, n))}
    assert functions == set(FUNCTIONS) | OTHERS


@each_function
def test_right_arrays_are_taken(name: str) -> None:
    """All of them, each optional one left out, tensors as well as arrays, and inputs that cannot be written to."""
    function = FUNCTIONS[name]
    call(name)
    for array in function.optional:
        call(name, **{array: None})
    call(name, **{a: torch.from_numpy(function.arguments[a].copy()) for a in arrays(function)})
    inputs = {a: function.arguments[a].copy() for a in arrays(function) if a not in function.outputs}
    for a in inputs.values():
        a.setflags(write=False)
    call(name, **inputs)


@each_output
def test_outputs_are_written(name: str, array: str) -> None:
    given = FUNCTIONS[name].arguments[array]
    if name == "lncc" and array == "scratch":
        pytest.skip("of any content")
    if name == "invert":  # what it is given is a guess, which may be right
        given = np.full_like(given, 50.0)
    out = given.copy()
    call(name, **{array: out})
    assert not np.array_equal(out, given)


OTHER = {"float32": np.float64, "float64": np.float32, "int32": np.int64, "uint8": np.int8, "uint16": np.int16}


def other_type(a: Array) -> Array:
    return a.astype(OTHER[a.dtype.name])


def strided(a: Array) -> Array:
    """The same values, every second element of a larger array."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def turned(a: Array) -> Array:
    return np.asfortranarray(a)


@each_array
@pytest.mark.parametrize("spoil", [other_type, strided, turned])
def test_other_types_and_layouts_are_refused(name: str, array: str, spoil: Callable[[Array], Array]) -> None:
    a = spoil(FUNCTIONS[name].arguments[array])
    if a.flags.c_contiguous and spoil is turned:
        assert a.ndim == 1
        pytest.skip("one axis has one order")
    for value in (a, torch.from_numpy(a)):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(name, **{array: value})


@each_output
def test_outputs_that_cannot_be_written_to_are_refused(name: str, array: str) -> None:
    a = FUNCTIONS[name].arguments[array].copy()
    a.setflags(write=False)
    before = a.copy()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call(name, **{array: a})
    np.testing.assert_array_equal(a, before)


#: Sizes that may differ: function, array, axis, and by how much.
ALLOWED = {
    # What no row of the matrix reaches is not read, or is zero; the rows may be narrower.
    ("banded", "input", 1, 1),
    ("banded", "weights", 1, -1),
    ("banded_adjoint", "output", 1, 1),
    ("banded_adjoint", "weights", 1, -1),
    ("warp_spline", "half", 1, 1),
    ("warp_spline", "weights", 1, -1),
    ("mind_difference_spline", "half", 1, 1),
    ("mind_difference_spline", "weights", 1, -1),
    # In the plane.
    ("resample", "displacement", 3, -1),
}


@pytest.mark.parametrize("name", ["interpolate", "nearest", "displacements"])
def test_transforms_in_lists_are_refused_alike(name: str) -> None:
    """Each has a matrix, 3 x 4 in double precision, and a field of 2 or 3 values a voxel or none."""
    count = len(FUNCTIONS[name].arguments["fields"])
    for spoilt in ([np.eye(3, 4)] * (count - 1), [np.eye(4)] * count):
        with pytest.raises(ValueError, match="interpolate: "):
            call(name, matrices=spoilt)
    for field in (floats(2, 3, 4, 4), floats(2, 3, 4), floats(0, 3, 4, 3)):
        with pytest.raises(ValueError, match=r"field|empty"):
            call(name, fields=[field] * count)
    for spoilt in ({"matrices": [np.eye(3, 4, dtype=np.float32)] * count}, {"fields": [np.ones((2, 3, 4, 3))] * count}):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(name, **spoilt)


def test_interpolations_that_are_none_are_refused() -> None:
    for spoilt in (
        {"kind": "cubic"}, {"window": "hann"}, {"order": 6}, {"order": -1}, {"sigma": [1.0, 1.0]},
        {"sigma": [1.0, 0.0, 1.0]}, {"sigma": [1.0, math.nan, 1.0]}, {"alpha": 0.0}, {"alpha": math.inf},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="interpolate: "):
            call("interpolate", **spoilt)
    for size in (3, 16):
        with pytest.raises(ValueError, match="nearest: values"):
            call("nearest", image=counts(3, 4, 7, size), outside=counts(size), out=counts(Z, Y, X, size))
    with pytest.raises(ValueError, match="order"):
        call("bspline_coefficients", order=6)


@each_array
def test_other_sizes_are_refused(name: str, array: str) -> None:
    """One less or one more along any axis, an axis less or more, nothing at all."""
    a = FUNCTIONS[name].arguments[array]
    wrong = [a[:0]]
    if name != "adam":  # which takes any shape
        wrong += [a[None], a[0]]
    if array not in FUNCTIONS[name].loose:
        for axis in range(a.ndim):
            for more, b in ((-1, np.delete(a, -1, axis)), (1, np.concatenate([a, a.take([-1], axis)], axis))):
                if (name, array, axis, more) in ALLOWED:
                    call(name, **{array: np.ascontiguousarray(b)})
                else:
                    wrong.append(b)
    for b in wrong:
        with pytest.raises((ValueError, TypeError)):
            call(name, **{array: np.ascontiguousarray(b)})


@pytest.mark.parametrize("radius", [-1, 0, 1 << 15, (1 << 31) - 1])
@pytest.mark.parametrize("name", ["lncc", "lncc_prepare"])
def test_radii_that_are_no_radius(name: str, radius: int) -> None:
    with pytest.raises(ValueError, match="radius must be"):
        call(name, radius=radius)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_other_than_three_derivatives(count: int) -> None:
    with pytest.raises(ValueError, match="three derivatives"):
        call("global_sums_adjoint", derivative=[1.0] * count)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mind_descriptors", {"radius": 0}, "radius must be"),
        ("mind_descriptors", {"radius": 33}, "radius must be"),
        ("mind_descriptors", {"dimension": 1}, "dimension is"),
        ("mind_descriptors", {"dimension": 4}, "dimension is"),
        ("mind_descriptors", {"offsets": np.full((3, 3), np.nan)}, "an offset of"),
        ("mind_descriptors", {"offsets": np.diag([1.0, -np.inf, 1.0])}, "an offset of"),
        ("mind_descriptors", {"offsets": np.diag([1.0, 1.0, -1.1e6])}, "an offset of"),
        ("mind_difference", {"channels": 0}, "channels is"),
        ("mind_difference", {"channels": 16}, "channels is"),
        ("mind_difference", {"moving": counts(3, 4, 7, 12)}, "expected descriptors"),
        ("mind_difference_spline", {"channels": 3}, "channels is"),
        ("mind_difference_spline", {"moving": counts(3, 4, 7, 17)}, "expected descriptors"),
        ("mind_difference_spline", {"start": np.full(Z, 1, np.int32)}, "beyond the input"),
    ],
)
def test_descriptors_of_no_kind(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, **changes)


def test_rows_far_beyond_the_input() -> None:
    """Whose end is beyond the largest int."""
    with pytest.raises(ValueError, match="beyond the input"):
        call("banded", start=np.full(5, (1 << 31) - 2, np.int32))


@pytest.mark.parametrize("shape", [(0, 7, 3), (2, 7, 0), (0, 7, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    outer, _, inner = shape
    call("banded", input=floats(*shape), output=floats(outer, 5, inner))
    out = floats(outer, 7, inner)
    call("banded_adjoint", input=floats(outer, 5, inner), factor=floats(5, inner), output=out)
    assert out.size == 0


def test_scratch_is_not_looked_at_without_a_gradient() -> None:
    value = call("lncc")
    without = call("lncc", gradient=None, scratch=np.zeros((0, 0, 0, 0), np.float32))
    assert without == pytest.approx(value, rel=1e-6)
