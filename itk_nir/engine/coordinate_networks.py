"""Neural fields: functions of a coordinate whose shape is learned, ``(N, d)`` field coordinates → ``(N, d)``.

A field is either a coordinate network (an encoding, then a multi-layer perceptron with sine or ReLU activation) or a
stack of feature grids read by splines and decoded by a linear map or a small perceptron. Every part is chosen by its
name in `FIELDS`, `ENCODINGS` or `ACTIVATIONS`. A field of any kind is exactly zero before its first step, so that a
registration starts from the identity. All random numbers come from the generator that is passed in; the modules of
`torch.nn` that draw from the global generator when they are built are not used.

Notes
-----
An entry from outside is as good as ours: put a class (or function) with the call of `FieldFactory` into `FIELDS`, and
its name can be chosen as ``FieldConfig(kind=...)``, for the network of the deformable stage and for the phases of
preset ``paper``. What it needs to be told it takes from the `FieldConfig`, or holds itself. `ENCODINGS` takes
subclasses of `Encoding` in the same way, `ACTIVATIONS` those of `Activation`.

References
----------
.. [1] Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.
.. [2] Sitzmann, Martel, Bergman, Lindell, Wetzstein, "Implicit Neural Representations with Periodic Activation
   Functions", NeurIPS 2020: the sine layer and its initialisation (section 3.2).
.. [3] Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains",
   NeurIPS 2020: Gaussian Fourier features (section 6).
.. [4] He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015: the initialisation of ReLU layers.

Examples
--------
An affine field, for what a linear stage has left over:

>>> import torch
>>> from itk_nir.engine.coordinate_networks import FIELDS, FieldConfig, build_field
>>> class Affine(torch.nn.Module):
...     def __init__(self, config, dimension, generator, extent):
...         super().__init__()
...         self.matrix = torch.nn.Parameter(torch.zeros(dimension, dimension))
...         self.shift = torch.nn.Parameter(torch.zeros(dimension))
...     def forward(self, points):
...         return points @ self.matrix.T + self.shift
>>> FIELDS["affine"] = Affine
>>> field = build_field(FieldConfig(kind="affine"), 3, torch.Generator().manual_seed(0))
>>> with torch.no_grad():
...     _ = field.shift.copy_(torch.tensor([0.1, 0.0, -0.2]))
...     field(torch.zeros(2, 3))
tensor([[ 0.1000,  0.0000, -0.2000],
        [ 0.1000,  0.0000, -0.2000]])
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from itk_nir.engine.field_config import (
    ACTIVATIONS,
    ENCODINGS,
    FIELDS,
    SPLINES,
    Activation,
    Encoding,
    FieldConfig,
    FieldFactory,
)
from itk_nir.engine.interpolation import sample

__all__ = [
    "ACTIVATIONS",
    "ENCODINGS",
    "FIELDS",
    "SPLINES",
    "Activation",
    "CoordinateNetwork",
    "Encoding",
    "FeatureGrids",
    "FieldConfig",
    "FieldFactory",
    "build_field",
]

#: Half-width of the uniform start of feature grids that a perceptron decodes: enough to tell places apart, too little
#: to print noise into the first displacements.
FEATURE_START = 1e-2


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
    config : FieldConfig
        What the field is made of.
    dimension : int
        2 or 3.
    generator : Generator
        On the CPU; the only source of random numbers, so the same state gives the same field on any device.
    device, dtype : torch.device or str, torch.dtype
        Where the parameters end up, and their type.
    extent : sequence of float, optional
        Half-extent of the image along ``(x, y[, z])`` in field units (the largest is 1): the box that feature grids
        cover. Left out: 1 for every axis.

    Returns
    -------
    Module
        Exactly zero everywhere until its parameters change.

    Raises
    ------
    ValueError
        Another dimension, or an extent that does not belong to it.
    """
    if dimension not in (2, 3):
        raise ValueError(f"a field has 2 or 3 dimensions, got {dimension}")
    box = tuple(1.0 for _ in range(dimension)) if extent is None else tuple(float(e) for e in extent)
    if len(box) != dimension or min(box) <= 0:
        raise ValueError(f"extent needs {dimension} lengths above 0, got {extent}")
    return FIELDS[config.kind](config, dimension, generator, box).to(device=device, dtype=dtype)


def uniform(shape: Sequence[int], half_width: float, generator: Generator) -> Tensor:
    """Uniform random numbers in ``[-half_width, half_width)``.

    Parameters
    ----------
    shape : sequence of int
        Of the tensor.
    half_width : float
        Half the width of the interval.
    generator : Generator
        On the CPU.

    Returns
    -------
    Tensor
        float32, on the CPU.
    """
    return (torch.rand(*shape, generator=generator) * 2 - 1) * half_width


# --- encodings -------------------------------------------------------------------------------------------------------


class Plain(Encoding):
    """The coordinates as they are."""

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__(config, dimension, generator)
        self.size = dimension

    def forward(self, points: Tensor) -> Tensor:
        return points


class Positional(Encoding):
    """The coordinates, and ``sin, cos(2^k pi q)`` for ``k = 0 … frequencies - 1``, axis by axis."""

    size: int

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__(config, dimension, generator)
        self.size = dimension * (1 + 2 * config.frequencies)
        self.octaves: Tensor
        self.register_buffer("octaves", math.pi * 2.0 ** torch.arange(config.frequencies))

    def forward(self, points: Tensor) -> Tensor:
        phase = (points[:, :, None] * self.octaves).flatten(1)
        return torch.cat([points, torch.sin(phase), torch.cos(phase)], dim=1)


class Fourier(Encoding):
    """``sin, cos(pi B q)`` with rows of ``B`` drawn from N(0, scale²) [3]_; 1 is one period over the largest extent."""

    size: int

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__(config, dimension, generator)
        self.size = 2 * config.frequencies
        self.frequencies: Tensor
        draw = torch.randn(dimension, config.frequencies, generator=generator)
        self.register_buffer("frequencies", draw * (math.pi * config.scale))

    def forward(self, points: Tensor) -> Tensor:
        phase = points @ self.frequencies
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)


# --- perceptrons -----------------------------------------------------------------------------------------------------


class Sine(Activation):
    """``sin(omega x)``; weights start in ±√(6/n)/omega, and in ±1/n in the first layer [2]_."""

    omega: float

    def __init__(self, config: FieldConfig) -> None:
        super().__init__(config)
        self.omega = config.omega

    def half_width(self, inputs: int, first: bool) -> float:
        return 1.0 / inputs if first else math.sqrt(6.0 / inputs) / self.omega

    def bias_half_width(self, inputs: int) -> float:
        return 1.0 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


class Relu(Activation):
    """``max(x, 0)``; weights start in ±√(6/n) [4]_, biases at zero."""

    def half_width(self, inputs: int, first: bool) -> float:
        return math.sqrt(6.0 / inputs)

    def bias_half_width(self, inputs: int) -> float:
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Dense(nn.Module):
    """``W x + b`` from given tensors.

    Parameters
    ----------
    weight : Tensor
        ``(outputs, inputs)``.
    bias : Tensor
        ``(outputs,)``.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the layer.

        Parameters
        ----------
        x : Tensor
            ``(N, inputs)``.

        Returns
        -------
        Tensor
            ``(N, outputs)``.
        """
        return F.linear(x, self.weight, self.bias)


def perceptron(config: FieldConfig, inputs: int, outputs: int, generator: Generator) -> nn.Sequential:
    """A multi-layer perceptron whose last layer starts at zero.

    Parameters
    ----------
    config : FieldConfig
        Its `width`, `depth`, `activation` and `omega`.
    inputs, outputs : int
        Features in and out.
    generator : Generator
        On the CPU, of the weights of the hidden layers.

    Returns
    -------
    Sequential
        ``(N, inputs)`` → ``(N, outputs)``.
    """
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
    """`x`, or ``bound * tanh(x / bound)``: slope 1 at zero, never beyond the bound.

    Parameters
    ----------
    x : Tensor
        Of any shape.
    bound : float or None
        Largest absolute value; None for no bound.

    Returns
    -------
    Tensor
        Like `x`.
    """
    return x if bound is None else bound * torch.tanh(x / bound)


class CoordinateNetwork(nn.Module):
    """Encoding, then a perceptron.

    Parameters
    ----------
    config, dimension, generator, extent
        As of `FieldFactory`.
    """

    bound: float | None
    encoding: Encoding
    decoder: nn.Sequential

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator, extent: tuple[float, ...]) -> None:
        super().__init__()
        self.bound = config.bound
        self.encoding = ENCODINGS[config.encoding](config, dimension, generator)
        self.decoder = perceptron(config, self.encoding.size, dimension, generator)

    def forward(self, points: Tensor) -> Tensor:
        """Evaluate the field.

        Parameters
        ----------
        points : Tensor
            ``(N, d)`` field coordinates.

        Returns
        -------
        Tensor
            ``(N, d)`` vectors, field units.
        """
        return bounded(self.decoder(self.encoding(points)), self.bound)


# --- feature grids ---------------------------------------------------------------------------------------------------


class FeatureGrids(nn.Module):
    """Feature grids of growing resolution, read by splines, their features side by side before the decoder.

    The cells of a level are cubes, ``2 / cells`` field units wide. Beyond its outer nodes a grid repeats (linear) or
    mirrors (cubic) its values; a cubic grid has one more node than the box on every side, so the box itself is never
    touched by that rule.

    Parameters
    ----------
    config, dimension, generator, extent
        As of `FieldFactory`.
    """

    bound: float | None
    mode: str
    cells: tuple[int, ...]
    grids: nn.ParameterList

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
        """Read the features of all grids.

        Parameters
        ----------
        points : Tensor
            ``(N, d)`` field coordinates.

        Returns
        -------
        Tensor
            ``(N, levels * features)``.
        """
        read = []
        for cells, grid in zip(self.cells, self.grids, strict=True):
            # Field coordinate 0 is the middle of the grid, whatever the number of nodes along the axis.
            middle = points.new_tensor([(n - 1) / 2 for n in grid.shape[:0:-1]])
            read.append(sample(grid, points * (cells / 2) + middle, self.mode, "edge", prefiltered=True))
        return torch.cat(read).T

    def forward(self, points: Tensor) -> Tensor:
        """Evaluate the field.

        Parameters
        ----------
        points : Tensor
            ``(N, d)`` field coordinates.

        Returns
        -------
        Tensor
            ``(N, d)`` vectors, field units.
        """
        return bounded(self.decoder(self.features(points)), self.bound)


FIELDS.update(mlp=CoordinateNetwork, grid=FeatureGrids)
ENCODINGS.update(none=Plain, positional=Positional, fourier=Fourier)
ACTIVATIONS.update(sine=Sine, relu=Relu)
