"""Neural fields: functions of a coordinate whose shape is learned, ``(N, d)`` field coordinates → ``(N, d)``.

A field is either a coordinate network (an encoding, then a multi-layer perceptron with sine or ReLU activation) or a
stack of feature grids read by splines and decoded by a linear map or a small perceptron. Every part is chosen by its
name in `ENCODINGS`, `ACTIVATIONS` or `FIELDS`. A field of any kind is exactly zero before its first step, so that a
registration starts from the identity. All random numbers come from the generator that is passed in; the modules of
`torch.nn` that draw from the global generator when they are built are not used.

References
----------
.. [1] Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.
.. [2] Sitzmann, Martel, Bergman, Lindell, Wetzstein, "Implicit Neural Representations with Periodic Activation
   Functions", NeurIPS 2020: the sine layer and its initialisation (section 3.2).
.. [3] Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains",
   NeurIPS 2020: Gaussian Fourier features (section 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from itk_nir.engine.interpolation import sample

#: Half-width of the uniform start of feature grids that a perceptron decodes: enough to tell places apart, too little
#: to print noise into the first displacements.
FEATURE_START = 1e-2


@dataclass(frozen=True)
class FieldConfig:
    """What a field is made of.

    Attributes
    ----------
    kind : a name in `FIELDS`: ``"mlp"`` or ``"grid"``.
    encoding : a name in `ENCODINGS`: ``"none"``, ``"positional"`` or ``"fourier"`` (``mlp`` only).
    activation : a name in `ACTIVATIONS`: ``"sine"`` or ``"relu"``.
    width, depth : units of a hidden layer, and how many hidden layers there are (at least one).
    omega : frequency inside the sine, ``sin(omega * (W x + b))``; the initialisation is divided by the same number.
    frequencies : Gaussian vectors of ``fourier`` (twice as many features), octaves of ``positional``.
    scale : standard deviation of the Gaussian vectors, in periods per largest extent of the image.
    bound : with a number, the output is ``bound * tanh(output / bound)``, in field units.
    cells : cells of each feature grid along the largest extent, coarse to fine.
    features : features a node of each grid.
    spline : ``"linear"`` or ``"cubic"`` reading of the grids.
    decoder : ``"linear"`` or ``"mlp"`` (with `width`, `depth`, `activation`, `omega`) behind the grids.
    """

    kind: str = "mlp"
    encoding: str = "fourier"
    activation: str = "sine"
    width: int = 128
    depth: int = 2
    omega: float = 30.0
    frequencies: int = 128
    scale: float = 1.5
    bound: float | None = None
    cells: tuple[int, ...] = (8, 16, 32)
    features: int = 4
    spline: str = "cubic"
    decoder: str = "mlp"

    def __post_init__(self) -> None:
        for value, what, known in (
            (self.kind, "field", FIELDS),
            (self.encoding, "encoding", ENCODINGS),
            (self.activation, "activation", ACTIVATIONS),
            (self.spline, "spline", SPLINES),
            (self.decoder, "decoder", ("linear", "mlp")),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are {', '.join(known)}")
        if min(self.width, self.depth, self.frequencies, self.features) < 1 or not self.cells or min(self.cells) < 1:
            raise ValueError(f"width, depth, frequencies, features and cells must be at least 1, got {self}")
        if self.omega <= 0 or self.scale <= 0 or (self.bound is not None and self.bound <= 0):
            raise ValueError(f"omega, scale and bound must be above 0, got {self}")


def build_field(
    config: FieldConfig,
    dimension: int,
    generator: Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    extent: Sequence[float] | None = None,
) -> nn.Module:
    """A field that maps ``(N, dimension)`` field coordinates to ``(N, dimension)`` vectors in field units.

    Parameters
    ----------
    config : what the field is made of.
    dimension : 2 or 3.
    generator : a CPU generator; the only source of randomness, so the same state gives the same field on any device.
    device, dtype : where the parameters end up, and their type.
    extent : half-extent of the image along ``(x, y[, z])`` in field units (the largest is 1): the box that feature
        grids cover. Left out: 1 for every axis.

    Returns
    -------
    A module whose output is exactly zero until its parameters change.
    """
    if dimension not in (2, 3):
        raise ValueError(f"a field has 2 or 3 dimensions, got {dimension}")
    box = tuple(1.0 for _ in range(dimension)) if extent is None else tuple(float(e) for e in extent)
    if len(box) != dimension or min(box) <= 0:
        raise ValueError(f"extent needs {dimension} lengths above 0, got {extent}")
    return FIELDS[config.kind](config, dimension, generator, box).to(device=device, dtype=dtype)


def uniform(shape: Sequence[int], half_width: float, generator: Generator) -> Tensor:
    """Numbers in ``[-half_width, half_width)``."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) * half_width


# --- encodings -------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The coordinates as they are."""

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__()
        self.size = dimension

    def forward(self, points: Tensor) -> Tensor:
        return points


class Positional(nn.Module):
    """The coordinates, and ``sin, cos(2^k pi q)`` for ``k = 0 … frequencies - 1``, axis by axis."""

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__()
        self.size = dimension * (1 + 2 * config.frequencies)
        self.octaves: Tensor
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(config.frequencies))

    def forward(self, points: Tensor) -> Tensor:
        phase = (points[:, :, None] * self.octaves).flatten(1)
        return torch.cat([points, torch.sin(phase), torch.cos(phase)], dim=1)


class Fourier(nn.Module):
    """``sin, cos(pi B q)`` with rows of ``B`` drawn from N(0, scale²) [3]_; 1 is one period over the largest extent."""

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__()
        self.size = 2 * config.frequencies
        self.frequencies: Tensor
        draw = torch.randn(dimension, config.frequencies, generator=generator)
        self.register_buffer("frequencies", draw * (math.pi * config.scale))

    def forward(self, points: Tensor) -> Tensor:
        phase = points @ self.frequencies
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)


# --- perceptrons -----------------------------------------------------------------------------------------------------


class Sine(nn.Module):
    """``sin(omega x)``; weights start in ±√(6/n)/omega, and in ±1/n in the first layer [2]_."""

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        self.omega = config.omega

    def half_width(self, inputs: int, first: bool) -> float:
        return 1.0 / inputs if first else math.sqrt(6.0 / inputs) / self.omega

    def bias_half_width(self, inputs: int) -> float:
        return 1.0 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


class Relu(nn.Module):
    """``max(x, 0)``; weights start in ±√(6/n) (He et al. 2015), biases at zero."""

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()

    def half_width(self, inputs: int, first: bool) -> float:
        return math.sqrt(6.0 / inputs)

    def bias_half_width(self, inputs: int) -> float:
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Dense(nn.Module):
    """``W x + b`` from given tensors."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def perceptron(config: FieldConfig, inputs: int, outputs: int, generator: Generator) -> nn.Sequential:
    """`depth` hidden layers of `width` units and a last layer that starts at zero."""
    layers: list[nn.Module] = []
    for layer in range(config.depth):
        activation = ACTIVATIONS[config.activation](config)
        weight = uniform((config.width, inputs), activation.half_width(inputs, layer == 0), generator)
        bias = uniform((config.width,), activation.bias_half_width(inputs), generator)
        layers += [Dense(weight, bias), activation]
        inputs = config.width
    layers.append(Dense(torch.zeros(outputs, inputs), torch.zeros(outputs)))
    return nn.Sequential(*layers)


def bounded(x: Tensor, bound: float | None) -> Tensor:
    """`x`, or ``bound * tanh(x / bound)``: slope 1 at zero, never beyond the bound."""
    return x if bound is None else bound * torch.tanh(x / bound)


class CoordinateNetwork(nn.Module):
    """Encoding, then a perceptron."""

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator, extent: tuple[float, ...]) -> None:
        super().__init__()
        self.bound = config.bound
        self.encoding = ENCODINGS[config.encoding](config, dimension, generator)
        self.decoder = perceptron(config, self.encoding.size, dimension, generator)

    def forward(self, points: Tensor) -> Tensor:
        """``(N, d)`` → ``(N, d)``."""
        return bounded(self.decoder(self.encoding(points)), self.bound)


# --- feature grids ---------------------------------------------------------------------------------------------------


class FeatureGrids(nn.Module):
    """Feature grids of growing resolution, read by splines, their features side by side before the decoder.

    The cells of a level are cubes, ``2 / cells`` field units wide. Beyond its outer nodes a grid repeats (linear) or
    mirrors (cubic) its values; a cubic grid has one more node than the box on every side, so the box itself is never
    touched by that rule.
    """

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator, extent: tuple[float, ...]) -> None:
        super().__init__()
        self.bound = config.bound
        self.mode = SPLINES[config.spline]
        margin = 1 if config.spline == "cubic" else 0
        self.cells = config.cells
        self.grids = nn.ParameterList()
        for cells in config.cells:
            nodes = [math.ceil(cells * e - 1e-6) + 1 + 2 * margin for e in extent]
            shape = (config.features, *nodes[::-1])
            # Behind a linear decoder the features start at zero and the decoder at random; behind a perceptron, whose
            # last layer starts at zero, it is the other way round. Either way the gradient flows from the first step.
            linear = config.decoder == "linear"
            self.grids.append(nn.Parameter(torch.zeros(shape) if linear else uniform(shape, FEATURE_START, generator)))
        inputs = config.features * len(config.cells)
        self.decoder: nn.Module
        if config.decoder == "linear":
            weight = uniform((dimension, inputs), math.sqrt(3.0 / inputs), generator)
            self.decoder = Dense(weight, torch.zeros(dimension))
        else:
            self.decoder = perceptron(config, inputs, dimension, generator)

    def features(self, points: Tensor) -> Tensor:
        """``(N, d)`` → ``(N, levels * features)``."""
        read = []
        for cells, grid in zip(self.cells, self.grids, strict=True):
            # Field coordinate 0 is the middle of the grid, whatever the number of nodes along the axis.
            middle = points.new_tensor([(n - 1) / 2 for n in grid.shape[:0:-1]])
            read.append(sample(grid, points * (cells / 2) + middle, self.mode, "edge", prefiltered=True))
        return torch.cat(read).T

    def forward(self, points: Tensor) -> Tensor:
        """``(N, d)`` → ``(N, d)``."""
        return bounded(self.decoder(self.features(points)), self.bound)


#: Encodings by name.
ENCODINGS: dict[str, type[Plain] | type[Positional] | type[Fourier]] = {
    "none": Plain,
    "positional": Positional,
    "fourier": Fourier,
}

#: Activations by name.
ACTIVATIONS: dict[str, type[Sine] | type[Relu]] = {"sine": Sine, "relu": Relu}

#: Reading of feature grids by name, as the mode of `itk_nir.engine.interpolation.sample`.
SPLINES = {"linear": "linear", "cubic": "bspline"}

#: Fields by name.
FIELDS: dict[str, Callable[[FieldConfig, int, Generator, tuple[float, ...]], nn.Module]] = {
    "mlp": CoordinateNetwork,
    "grid": FeatureGrids,
}
