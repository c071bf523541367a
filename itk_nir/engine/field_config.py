"""What a neural field can be made of: `FieldConfig`, the parts that outsiders can add, and the tables of their names.

The tables are filled by `itk_nir.engine.coordinate_networks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor, nn

from itk_nir.errors import OptionError
from itk_nir.options import check, documented, option


class FieldFactory(Protocol):
    """What `FIELDS` holds: makes an untrained field. A module class whose constructor takes these arguments is one."""

    def __call__(
        self, config: FieldConfig, dimension: int, generator: Generator, extent: tuple[float, ...]
    ) -> nn.Module:
        """An untrained field.

        Parameters
        ----------
        config : FieldConfig
            What the user chose.
        dimension : int
            2 or 3.
        generator : Generator
            On the CPU; the only source of random numbers.
        extent : tuple of float
            Half-extent of the image along ``(x, y[, z])`` in field units; the largest is 1.

        Returns
        -------
        Module
            On the CPU, float32. It maps ``(N, dimension)`` field coordinates to ``(N, dimension)`` vectors in field
            units, is exactly zero there before its first step, and each of its parameters gets a gradient by autograd.
            The same configuration and state of the generator give the same parameters, names and shapes.
        """


class Encoding(nn.Module):
    """What the coordinates become before the perceptron. A subclass has `forward`, ``(N, dimension)`` → ``(N, size)``.

    Parameters
    ----------
    config : FieldConfig
        What the user chose.
    dimension : int
        2 or 3.
    generator : Generator
        On the CPU; the only source of random numbers.

    Attributes
    ----------
    size : int
        Number of features.
    """

    size: int

    def __init__(self, config: FieldConfig, dimension: int, generator: Generator) -> None:
        super().__init__()

    def forward(self, points: Tensor) -> Tensor:
        """The features of points.

        Parameters
        ----------
        points : Tensor
            ``(N, dimension)`` field coordinates.

        Returns
        -------
        Tensor
            ``(N, size)``.
        """
        raise NotImplementedError


class Activation(nn.Module):
    """What follows the dense layers of a perceptron. A subclass has `forward`, element by element.

    Parameters
    ----------
    config : FieldConfig
        What the user chose.
    """

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """The function, element by element.

        Parameters
        ----------
        x : Tensor
            Of any shape.

        Returns
        -------
        Tensor
            Like `x`.
        """
        raise NotImplementedError

    def half_width(self, inputs: int, first: bool) -> float:
        """Half-width of the uniform distribution that the weights of a layer start from.

        Parameters
        ----------
        inputs : int
            Features that go into the layer.
        first : bool
            Whether it is the first layer.

        Returns
        -------
        float
        """
        raise NotImplementedError

    def bias_half_width(self, inputs: int) -> float:
        """Half-width of the uniform distribution that the biases of a layer start from.

        Parameters
        ----------
        inputs : int
            Features that go into the layer.

        Returns
        -------
        float
        """
        raise NotImplementedError


#: Fields by name.
FIELDS: dict[str, FieldFactory] = {}

#: Encodings by name.
ENCODINGS: dict[str, type[Encoding]] = {}

#: Activations by name.
ACTIVATIONS: dict[str, type[Activation]] = {}

#: Reading of feature grids by name, as the mode of `itk_nir.engine.interpolation.sample`.
SPLINES = {"linear": "linear", "cubic": "bspline"}


@documented
@dataclass(frozen=True)
class FieldConfig:
    """What a neural field is made of.

    Raises
    ------
    OptionError
        A value that its option does not allow.

    Examples
    --------
    Feature grids in place of the coordinate network of a preset:

    >>> import itk_nir
    >>> field = itk_nir.FieldConfig(kind="grid", cells=(8, 16), features=2)
    >>> itk_nir.make_settings("fast", network=field).deformable.network.cells
    (8, 16)
    """

    kind: str = option(
        "mlp", "what the field is: 'mlp' is a coordinate network, 'grid' are feature grids", choices=FIELDS
    )
    encoding: str = option("fourier", "what the coordinates of 'mlp' become first", choices=ENCODINGS)
    activation: str = option("sine", "what follows each hidden layer", choices=ACTIVATIONS)
    width: int = option(128, "units of a hidden layer", at_least=1, at_most=8192)
    depth: int = option(2, "hidden layers", at_least=1, at_most=64)
    omega: float = option(
        30.0,
        "frequency inside the sine, sin(omega (W x + b)); the initialisation is divided by it",
        above=0,
        at_most=1000,
    )
    frequencies: int = option(
        128, "Gaussian vectors of 'fourier' (twice as many features), octaves of 'positional'", at_least=1, at_most=8192
    )
    scale: float = option(
        1.5,
        "standard deviation of the Gaussian vectors, in periods per largest extent of the image",
        above=0,
        at_most=100,
    )
    bound: float | None = option(
        None, "with a number, the output is bound * tanh(output / bound), in field units", above=0, at_most=1e6
    )
    cells: tuple[int, ...] = option(
        (8, 16, 32), "cells of each feature grid along the largest extent, coarse to fine", at_least=1, at_most=1024
    )
    features: int = option(4, "features a node of each grid", at_least=1, at_most=1024)
    spline: str = option("cubic", "reading of the grids", choices=SPLINES)
    decoder: str = option(
        "mlp",
        "what makes vectors of the features: 'linear', or 'mlp' with width, depth, activation and omega",
        choices=("linear", "mlp"),
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.cells:
            raise OptionError("cells must hold at least one number")
