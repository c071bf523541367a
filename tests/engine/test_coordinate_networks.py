"""Neural fields: their numbers written out by hand, their start, their randomness."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from itk_nir.engine import coordinate_networks
from itk_nir.engine.coordinate_networks import (
    ACTIVATIONS,
    ENCODINGS,
    FIELDS,
    Activation,
    Encoding,
    FieldConfig,
    build_field,
)
from itk_nir.engine.interpolation import sample
from itk_nir.options import options_in

CONFIGS = [FieldConfig(encoding=e, activation=a, width=16, frequencies=4) for e in ENCODINGS for a in ACTIVATIONS] + [
    FieldConfig(kind="grid", spline=s, decoder=d, cells=(3, 6), features=2, width=16)
    for s, d in itertools.product(("linear", "cubic"), ("linear", "mlp"))
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(dimension: int, n: int = 50, seed: int = 5) -> torch.Tensor:
    return torch.rand(n, dimension, generator=seeded(seed)) * 2 - 1


def shaken(field: nn.Module, seed: int = 7) -> nn.Module:
    """The field with every parameter moved, so that the last layer is no longer zero."""
    g = seeded(seed)
    with torch.no_grad():
        for p in field.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g).to(p)
    return field


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.kind}-{c.encoding}-{c.activation}-{c.spline}-{c.decoder}"
)
def test_starts_at_zero_learns_at_once_and_repeats(config: FieldConfig, dimension: int) -> None:
    state = torch.random.get_rng_state()
    field, twin = (build_field(config, dimension, seeded()) for _ in range(2))
    other = build_field(config, dimension, seeded(1))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    q = points(dimension)
    out = field(q)
    assert out.shape == (50, dimension)
    assert (out == 0).all()
    (out - q).square().sum().backward()
    assert max(float(p.grad.abs().max()) for p in field.parameters() if p.grad is not None) > 0
    for p, same in zip(field.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, same)
    assert any(not torch.equal(p, o) for p, o in zip(field.parameters(), other.parameters(), strict=True))
    assert float(shaken(field)(q).detach().abs().max()) > 0


def test_sine_network_against_numpy() -> None:
    config = FieldConfig(encoding="none", activation="sine", width=5, depth=2, omega=12.0)
    field = shaken(build_field(config, 3, seeded(), dtype=torch.float64))
    (w1, b1), (w2, b2), (w3, b3) = (
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in field.decoder if hasattr(m, "weight")
    )
    q = points(3).double().numpy()
    wanted = np.sin(12 * (np.sin(12 * (q @ w1.T + b1)) @ w2.T + b2)) @ w3.T + b3
    np.testing.assert_allclose(field(torch.from_numpy(q)).detach().numpy(), wanted, atol=1e-12)


def test_relu_network_against_numpy_and_bound() -> None:
    config = FieldConfig(encoding="none", activation="relu", width=6, depth=1, bound=0.05)
    field = shaken(build_field(config, 2, seeded(), dtype=torch.float64))
    (w1, b1), (w2, b2) = (
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in field.decoder if hasattr(m, "weight")
    )
    q = points(2).double().numpy()
    wanted = 0.05 * np.tanh((np.maximum(q @ w1.T + b1, 0) @ w2.T + b2) / 0.05)
    np.testing.assert_allclose(field(torch.from_numpy(q)).detach().numpy(), wanted, atol=1e-12)
    assert float(field(torch.from_numpy(q * 1e6)).detach().abs().max()) <= 0.05


def test_encodings_against_numpy() -> None:
    q = points(2).double()
    positional = build_field(FieldConfig(encoding="positional", frequencies=3), 2, seeded()).double().encoding
    got = positional(q)
    assert got.shape == (50, positional.size) == (50, 14)
    x, y = q.T.numpy()
    phases = np.stack([np.pi * 2.0**k * c for c in (x, y) for k in range(3)], 1)
    np.testing.assert_allclose(got.numpy(), np.concatenate([q, np.sin(phases), np.cos(phases)], 1), atol=1e-6)
    fourier = build_field(FieldConfig(frequencies=4000, scale=2.5), 2, seeded()).double().encoding
    b = fourier.frequencies.numpy() / np.pi
    assert abs(b.std() - 2.5) < 0.05
    assert abs(b.mean()) < 0.1
    wanted = np.concatenate([np.sin(np.pi * q.numpy() @ b), np.cos(np.pi * q.numpy() @ b)], 1)
    np.testing.assert_allclose(fourier(q).numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("omega", [10.0, 30.0])
def test_sine_keeps_the_spread_of_its_activations_at_any_depth(omega: float) -> None:
    """Sitzmann et al.: with the matching start every pre-activation has standard deviation about 1 after the first."""
    config = FieldConfig(encoding="fourier", width=256, depth=5, omega=omega)
    field = build_field(config, 3, seeded())
    x = field.encoding(points(3, 500))
    spreads = []
    for layer, module in enumerate(list(field.decoder)[:-1]):
        x = module(x)
        if layer >= 2 and layer % 2 == 0:
            weights = list(field.decoder)[layer].weight
            assert float(weights.detach().abs().max()) <= math.sqrt(6 / 256) / omega
            spreads.append(float((omega * (x - list(field.decoder)[layer].bias)).detach().std()))
    assert len(spreads) == 4
    assert all(0.5 < s < 1.5 for s in spreads)


@pytest.mark.slow
@pytest.mark.parametrize("spline", ["linear", "cubic"])
def test_grid_reads_its_nodes(spline: str) -> None:
    config = FieldConfig(kind="grid", spline=spline, decoder="linear", cells=(4, 7), features=2)
    field = shaken(build_field(config, 3, seeded(), dtype=torch.float64, extent=(1.0, 0.5, 0.8)))
    margin = 2 if spline == "cubic" else 0
    assert field.grids[0].shape == (2, 5 + margin, 3 + margin, 5 + margin)  # ceil(4 * 0.8) + 1, 4 * 0.5 + 1, 4 + 1
    q = points(3).double() * torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)
    read = []
    for cells, grid in zip((4, 7), field.grids, strict=True):
        size = np.array(grid.shape[:0:-1])
        index = (q.numpy() + size_in_units(size, cells) / 2) / (2 / cells)
        mode = {"linear": "linear", "cubic": "bspline"}[spline]
        read.append(sample(grid.detach(), torch.from_numpy(index), mode, "edge", prefiltered=True))
        assert index.min() >= margin / 2 - 1e-9
        assert (index <= size - 1 - margin / 2 + 1e-9).all()
    wanted = torch.cat(read).T @ field.decoder.weight.T + field.decoder.bias
    torch.testing.assert_close(field(q), wanted, atol=1e-12, rtol=0)


def size_in_units(size: np.ndarray, cells: int) -> np.ndarray:
    return (size - 1) * (2 / cells)


SMALL = [FieldConfig(encoding=e, activation=a, width=4, frequencies=2) for e in ENCODINGS for a in ACTIVATIONS] + [
    FieldConfig(kind="grid", spline=s, decoder=d, cells=(1, 2), features=1, width=4, depth=1)
    for s, d in itertools.product(("linear", "cubic"), ("linear", "mlp"))
]


@pytest.mark.parametrize("config", SMALL, ids=lambda c: f"{c.kind}-{c.encoding}-{c.activation}-{c.spline}-{c.decoder}")
def test_gradients(config: FieldConfig) -> None:
    field = shaken(build_field(config, 2, seeded(), dtype=torch.float64))
    q = points(2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(field, (q,))
    names = dict(field.named_parameters())

    def of_parameters(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (q.detach(),))

    assert torch.autograd.gradcheck(of_parameters, tuple(names.values()))


@pytest.mark.slow
def test_grid_gradient_has_the_same_bits_with_two_threads() -> None:
    config = FieldConfig(kind="grid", spline="linear", decoder="linear", cells=(4,), features=2)
    field = shaken(build_field(config, 3, seeded()))
    q = points(3, 60_000)
    threads, runs = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for _ in range(4):
            runs.append(torch.autograd.grad(field(q).sin().sum(), field.grids[0])[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(runs[0], run) for run in runs[1:])


def test_errors_name_what_there_is() -> None:
    with pytest.raises(ValueError, match="encoding must be one of 'none', 'positional', 'fourier', got 'hash'"):
        FieldConfig(encoding="hash")
    with pytest.raises(ValueError, match="kind must be one of 'mlp', 'grid'"):
        FieldConfig(kind="unet")
    with pytest.raises(ValueError, match="depth must be at least 1 and at most 64, got 0"):
        FieldConfig(depth=0)
    with pytest.raises(ValueError, match="cells must be at least 1"):
        FieldConfig(cells=(4, 0))
    with pytest.raises(ValueError, match="cells must hold at least one"):
        FieldConfig(cells=())
    with pytest.raises(ValueError, match="bound must be above 0"):
        FieldConfig(bound=0.0)
    with pytest.raises(ValueError, match="2 or 3"):
        build_field(FieldConfig(), 4, seeded())


def test_every_part_says_what_it_means() -> None:
    assert set(options_in(FieldConfig)) == {f.name for f in dataclasses.fields(FieldConfig)}
    assert all(what.help for what in options_in(FieldConfig).values())


def test_the_example_of_the_module_runs() -> None:
    """It adds a field of its own to the table, builds and evaluates it."""
    try:
        result = doctest.testmod(coordinate_networks)
    finally:
        FIELDS.pop("affine", None)
    assert result.attempted > 5
    assert result.failed == 0


def test_parts_from_outside_work_with_ours() -> None:
    class Squares(Encoding):
        def __init__(self, config: FieldConfig, dimension: int, generator: torch.Generator) -> None:
            super().__init__(config, dimension, generator)
            self.size = 2 * dimension

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return torch.cat([points, points.square()], 1)

    class Tanh(Activation):
        def half_width(self, inputs: int, first: bool) -> float:
            return inputs**-0.5

        def bias_half_width(self, inputs: int) -> float:
            return 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x)

    ENCODINGS["squares"], ACTIVATIONS["tanh"] = Squares, Tanh
    try:
        config = FieldConfig(encoding="squares", activation="tanh", width=5, depth=1)
        field = shaken(build_field(config, 2, seeded(), dtype=torch.float64))
        q = points(2).double()
        (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in field.decoder if hasattr(m, "weight"))
        wanted = torch.tanh(torch.cat([q, q * q], 1) @ w1.T + b1) @ w2.T + b2
        torch.testing.assert_close(field(q), wanted)
    finally:
        del ENCODINGS["squares"], ACTIVATIONS["tanh"]
