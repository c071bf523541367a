"""The frame that the engine works in, whatever the order of an image's axes, its origin and its unit of length.

A sum of rounded numbers depends on its order, and the descent makes small differences large: two files of one image
whose axes run another way would end in maps that differ by tenths of a voxel. So the engine sees every image with its
axes in one order (that which brings the direction matrix nearest to the identity), with lengths in voxels of the fixed
image along its finest axis and positions from the middle of the fixed image, all rounded far below what matters and
far above what float64 loses. Displacements and linear maps are brought back to LPS mm on the fixed image's own grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.caching import cached_property
from itk_nir.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

F64 = NDArray[np.float64]
V = TypeVar("V")

#: Bits that spacings and directions are rounded to: the far end of an axis of 1000 voxels moves by a billionth of one.
BITS = 40

#: Origins are rounded to this, in voxels of the finer image: headers in float32 lose less, mostly.
ORIGIN_STEP = 2.0**-14

#: Landmarks are rounded to this, in voxels of the fixed image.
POINT_STEP = 2.0**-20


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a stored image lie to the canonical ones.

    Parameters
    ----------
    order : tuple of int
        For each canonical axis, ``(x, y[, z])``, which of the stored ones it is.
    flipped : tuple of bool
        Whether it runs the other way there.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    @classmethod
    def of(cls, geometry: Geometry) -> AxisOrder:
        """The order that brings a direction matrix nearest to the identity.

        Parameters
        ----------
        geometry : Geometry
            A stored grid.

        Returns
        -------
        AxisOrder
            The same physical axes for every order that the grid could be stored in: of several that are equally near,
            as under a turn of 45 degrees, that with the larger first entries.
        """
        d = geometry.dimension
        # Rounded, so that a tie is one whatever the last bits are.
        rotation = np.rint(geometry.rotation * 1e6).astype(np.int64)

        def nearness(choice: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
            matrix = rotation[:, choice[0]] * choice[1]
            return int(np.trace(matrix)), *map(int, matrix.ravel())

        order, signs = max(product(permutations(range(d)), product((1, -1), repeat=d)), key=nearness)
        return cls(order, tuple(sign < 0 for sign in signs))

    @property
    def is_identity(self) -> bool:
        """Whether the stored axes are the canonical ones."""
        return self.order == tuple(range(len(self.order))) and not any(self.flipped)

    @property
    def _axes(self) -> list[int]:
        """For each axis of a canonical array, which it is of the stored one."""
        d = len(self.order)
        return [d - 1 - k for k in self.order[::-1]]

    @property
    def _reversed(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if f else None) for f in self.flipped[::-1])

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """A stored array with its axes in the canonical order.

        Parameters
        ----------
        array : ndarray
            ``([z,] y, x, ...)`` as stored.

        Returns
        -------
        ndarray
            A view of it.
        """
        d = len(self.order)
        return array.transpose(*self._axes, *range(d, array.ndim))[self._reversed]

    def stored(self, canonical: Tensor) -> Tensor:
        """The inverse of `canonical`, for a tensor.

        Parameters
        ----------
        canonical : Tensor
            ``([z,] y, x, ...)`` in the canonical order.

        Returns
        -------
        Tensor
            As stored, contiguous.
        """
        d = len(self.order)
        flipped = [d - 1 - k for k, f in enumerate(self.flipped) if f]
        turned = canonical.flip(flipped) if flipped else canonical
        return turned.permute(*np.argsort(self._axes).tolist(), *range(d, canonical.ndim)).contiguous()

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape as stored of an array in the canonical order.

        Parameters
        ----------
        shape : sequence of int
            ``([z,] y, x)``.

        Returns
        -------
        tuple of int
            ``([z,] y, x)``.
        """
        out = list(shape)
        for axis, n in zip(self._axes, shape, strict=True):
            out[axis] = n
        return tuple(out)

    def along(self, values: Sequence[V]) -> tuple[V, ...]:
        """One value an axis, in the canonical order.

        Parameters
        ----------
        values : sequence
            One for each stored axis, ``(x, y[, z])``, or none; what follows stays where it is.

        Returns
        -------
        tuple
        """
        if not values:
            return ()
        return (*(values[k] for k in self.order), *values[len(self.order) :])

    def geometry(self, stored: Geometry) -> Geometry:
        """The grid of a stored image with its axes in the canonical order: the same voxels.

        Parameters
        ----------
        stored : Geometry
            As stored.

        Returns
        -------
        Geometry
        """
        if self.is_identity:
            return stored
        first = np.zeros(len(self.order))
        for axis, flip in zip(self.order, self.flipped, strict=True):
            first[axis] = stored.size[axis] - 1 if flip else 0
        # Adding 0 makes -0 a 0.
        direction = stored.rotation[:, self.order] * [-1.0 if flip else 1.0 for flip in self.flipped] + 0.0
        return Geometry.make(
            self.along(stored.size), self.along(stored.spacing), stored.index_to_physical(first), direction
        )


@dataclass(frozen=True)
class Frame:
    """What the engine measures in, and the way back.

    Parameters
    ----------
    stored : Geometry
        The fixed grid as stored, LPS mm.
    axes : AxisOrder
        Of the fixed image.
    centre : tuple of float
        ``(d,)`` LPS mm, where the engine has its origin. Its axes are those of LPS.
    unit : float
        mm, what the engine has as 1.
    canonical : bool
        Whether axes are in the canonical order, and grids rounded.
    """

    stored: Geometry
    axes: AxisOrder
    centre: tuple[float, ...]
    unit: float
    canonical: bool = True

    @classmethod
    def of(cls, fixed: Geometry, unit: float | None = None) -> Frame:
        """The frame of a pair of images.

        Parameters
        ----------
        fixed : Geometry
            The fixed grid as stored.
        unit : float, optional
            mm; the finest spacing of the fixed grid where left out.

        Returns
        -------
        Frame
        """
        return cls(
            fixed, AxisOrder.of(fixed), tuple(fixed.centre.tolist()), min(fixed.spacing) if unit is None else unit
        )

    @classmethod
    def plain(cls, fixed: Geometry) -> Frame:
        """LPS mm, and the axes as they are stored.

        Parameters
        ----------
        fixed : Geometry
            The fixed grid as stored.

        Returns
        -------
        Frame
        """
        d = fixed.dimension
        return cls(fixed, AxisOrder(tuple(range(d)), (False,) * d), (0.0,) * d, 1.0, False)

    @cached_property
    def geometry(self) -> Geometry:
        """The fixed grid as the engine has it."""
        return self.placed(self.axes.geometry(self.stored))

    def placed(self, geometry: Geometry) -> Geometry:
        """A grid in units of the frame.

        Parameters
        ----------
        geometry : Geometry
            LPS mm, its axes in the canonical order.

        Returns
        -------
        Geometry
            Its spacing, direction and origin rounded: float64 would tell how they came about.
        """
        if not self.canonical:
            return geometry
        finest = min(*self.stored.spacing, *geometry.spacing) / self.unit
        step = ORIGIN_STEP * 2.0 ** round(np.log2(finest))
        mantissa, exponent = np.frexp(np.divide(geometry.spacing, self.unit))
        return Geometry.make(
            geometry.size,
            np.ldexp(_to_step(mantissa, 2.0**-BITS), exponent),
            _to_step(self.points(geometry.origin), step),
            _to_step(geometry.rotation, 2.0**-BITS),
        )

    def points(self, points: ArrayLike) -> F64:
        """Physical points in the frame.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(..., d)``.
        """
        return (np.asarray(points, float) - self.centre) / self.unit

    def landmarks(self, points: ArrayLike) -> F64:
        """The same, rounded to `POINT_STEP`.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(..., d)``.
        """
        return _to_step(self.points(points), POINT_STEP * min(self.stored.spacing) / self.unit)

    def physical(self, points: ArrayLike) -> F64:
        """Points of the frame in space.

        Parameters
        ----------
        points : array_like
            ``(..., d)``.

        Returns
        -------
        ndarray
            ``(..., d)`` LPS mm.
        """
        return np.asarray(np.asarray(points, float) * self.unit + self.centre)

    def through(self, mapping: Callable[[F64], F64], points: F64) -> F64:
        """What a map of points of the frame makes of physical ones.

        Parameters
        ----------
        mapping : callable
            ``(N, d)`` points of the frame → points of it.
        points : ndarray
            ``(N, d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        return self.physical(mapping(self.points(points)))

    def matrix(self, physical: F64) -> F64:
        """A linear map of points of the frame.

        Parameters
        ----------
        physical : ndarray
            ``(d + 1, d + 1)`` LPS mm.

        Returns
        -------
        ndarray
            ``(d + 1, d + 1)``.
        """
        out = physical.copy()
        out[:-1, -1] = (physical[:-1, -1] + (physical[:-1, :-1] @ self.centre - self.centre)) / self.unit
        return out

    def physical_matrix(self, matrix: F64) -> F64:
        """A linear map of points of the frame as one of physical points.

        Parameters
        ----------
        matrix : ndarray
            ``(d + 1, d + 1)``.

        Returns
        -------
        ndarray
            ``(d + 1, d + 1)`` LPS mm.
        """
        out = matrix.copy()
        out[:-1, -1] = matrix[:-1, -1] * self.unit - (matrix[:-1, :-1] @ self.centre - self.centre)
        return out

    def stored_grid(self, start: Sequence[int], size: Sequence[int], step: int) -> Geometry:
        """A grid over the fixed image that the engine made, as it is to be stored.

        Parameters
        ----------
        start : sequence of int
            Its first node along the canonical axes ``(x, y[, z])``, in steps from the first voxel.
        size : sequence of int
            Its nodes along these.
        step : int
            Voxels of the fixed image from node to node.

        Returns
        -------
        Geometry
            LPS mm, its axes as those of the fixed image are stored.
        """
        first, nodes = np.zeros(len(size)), [0] * len(size)
        for begin, n, axis, flip in zip(start, size, self.axes.order, self.axes.flipped, strict=True):
            nodes[axis] = n
            first[axis] = (self.stored.size[axis] - 1) / step - (begin + n - 1) if flip else begin
        spacing = np.multiply(self.stored.spacing, step)
        grid = Geometry.make(nodes, spacing, self.stored.origin, self.stored.direction)
        return Geometry.make(nodes, spacing, grid.index_to_physical(first), self.stored.direction)


def _to_step(values: ArrayLike, step: float) -> F64:
    """Values rounded to a multiple of a power of 2."""
    return np.asarray(np.rint(np.asarray(values, float) / step) * step + 0.0)
