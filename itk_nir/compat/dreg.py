"""itk-dreg: large images registered block by block, each pair of blocks by this package.

Importing this module needs itk-dreg (``pip install itk-nir[dreg]``).

Examples
--------
>>> from itk_nir.compat.dreg import BlockPairRegistration
>>> schedule = itk_dreg.register.register_images(  # doctest: +SKIP
...     block_registration_method=BlockPairRegistration(preset="fast"), ...
... )
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from itk_nir.checks import FEWEST
from itk_nir.compat.options import Device, LinearStage
from itk_nir.devices import checked_device
from itk_nir.errors import InputError, OptionError, one_line, warn_renamed
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, refuse_slices
from itk_nir.images.itk_classes import empty_image, itk_matrix
from itk_nir.loading import load_transform
from itk_nir.options import whole_number
from itk_nir.report import Report
from itk_nir.resample import resample_array
from itk_nir.settings import Settings, make_settings, present_names
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose

try:
    from itk_dreg.base.image_block_interface import BlockPairRegistrationResult, BlockRegStatus
    from itk_dreg.base.registration_interface import BlockPairRegistrationMethod
except ImportError as error:
    raise ImportError(f"itk_nir.compat.dreg needs itk-dreg and dask ({error}): pip install 'itk-nir[dreg]'") from error

__all__ = ["BlockPairRegistration", "BlockResult"]

_log = logging.getLogger(__name__)


class BlockResult(BlockPairRegistrationResult):
    """What one pair of blocks gave.

    Parameters
    ----------
    mapping : CompositeTransform
        Where the initial transform takes a fixed point → moving point (LPS mm).
    domain : Geometry
        The box where `mapping` holds.
    inverse_domain : Geometry
        That of its inverse: the moving block.
    report : Report
        Numbers about the registration.

    Attributes
    ----------
    status : BlockRegStatus
        ``SUCCESS``.
    transform : itk.CompositeTransform[itk.D, d]
        `mapping`. It is run *after* the initial transform, which it does not contain.
    transform_domain : itk.Image[itk.F, d]
        `domain`, as an image without pixels.
    inv_transform : itk.CompositeTransform[itk.D, d]
        The inverse of `transform`.
    inv_transform_domain : itk.Image[itk.F, d]
        `inverse_domain`, as an image without pixels.
    """

    mapping: CompositeTransform
    domain: Geometry
    inverse_domain: Geometry
    report: Report
    status: Any
    transform: Any
    transform_domain: Any
    inv_transform: Any
    inv_transform_domain: Any

    # The base class is not initialised: it multiplies the sizes of the domains with np.product, which NumPy 2 no longer
    # has, to find empty ones. A Geometry is never empty.
    def __init__(self, mapping: CompositeTransform, domain: Geometry, inverse_domain: Geometry, report: Report) -> None:
        from itk_nir.transforms.as_itk import to_itk

        self.mapping, self.domain, self.inverse_domain, self.report = mapping, domain, inverse_domain, report
        self.status = BlockRegStatus.SUCCESS
        self.transform = to_itk(mapping)
        self.transform_domain = _empty_image(domain)
        self.inv_transform = to_itk(mapping.inverse())
        self.inv_transform_domain = _empty_image(inverse_domain)

    @property
    def metrics(self) -> dict[str, Any]:
        """Deprecated: `report`, as a dictionary."""
        warn_renamed("BlockResult.metrics", "BlockResult.report")
        return self.report.as_dict()

    # ITK's objects are made again on the other side, so that a result can travel between dask's workers.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mapping, self.domain, self.inverse_domain, self.report)


class BlockPairRegistration(BlockPairRegistrationMethod):
    """Registers a pair of blocks with `itk_nir.register`: the ``block_registration_method`` of `register_images`.

    Parameters
    ----------
    preset : str or Settings
        As for `itk_nir.register`.
    linear : {"none", "rigid", "affine"}
        The linear stage. ``"none"`` by default: aligning the whole images is the task of the initial transform, and
        blocks hold too little to do it better.
    seed : int
        At least 0; every random draw comes from it.
    device : str
        As for `itk_nir.register`.
    threads : int, optional
        CPU threads for one pair of blocks; all by default.
    **options
        Options of the preset, public and expert ones, as for `itk_nir.make_settings`.

    Raises
    ------
    OptionError
        An option that does not exist or does not fit, said when the object is made.
    """

    settings: Settings
    preset: Any
    linear: LinearStage
    seed: int
    device: Device
    threads: int | None
    options: dict[str, Any]

    def __init__(
        self,
        preset: str | Settings = "default",
        *,
        linear: LinearStage = "none",
        seed: int = 0,
        device: Device = "auto",
        threads: int | None = None,
        **options: Any,
    ) -> None:
        options = present_names(preset, options)
        self.settings = make_settings(preset, **options)
        # itk-dreg turns an exception in a block into a failed block, so what is wrong with every block is said here.
        if linear not in ("none", "rigid", "affine"):
            raise OptionError(f"linear is 'none', 'rigid' or 'affine', got {linear!r}")
        checked_device(device)
        for name, value, least in (("seed", seed, 0), ("threads", 1 if threads is None else threads, 1)):
            number = whole_number(value)
            if number is None or number < least:
                raise OptionError(f"{name} is a whole number of at least {least}, got {value!r}")
        self.preset, self.linear, self.seed, self.device = preset, linear, seed, device
        self.threads, self.options = threads, options

    def __call__(
        self,
        fixed_subimage: Any,
        moving_subimage: Any,
        initial_transform: Any = None,
        block_info: Any = None,
        **context: Any,
    ) -> BlockPairRegistrationResult:
        """Register one pair of blocks.

        Parameters
        ----------
        fixed_subimage, moving_subimage : itk.Image
            Of 2 or 3 dimensions; their buffered regions are registered.
        initial_transform : itk.Transform, optional
            Of the whole images, fixed → moving (LPS mm).
        block_info : itk_dreg BlockInfo, optional
            Where the block lies, for messages.
        **context
            What `register_images` hands to every part of it (options of the reduction, ...); not looked at.

        Returns
        -------
        BlockResult
            Where the pair cannot be registered (an empty block, no overlap), a result with the status ``FAILURE``.
        """
        where = getattr(block_info, "chunk_index", "?")
        try:
            return self._register(fixed_subimage, moving_subimage, initial_transform)
        except InputError as error:
            _log.warning("block %s: %s", where, one_line(error))
            return BlockPairRegistrationResult(status=BlockRegStatus.FAILURE)

    def _register(self, fixed_subimage: Any, moving_subimage: Any, initial_transform: Any) -> BlockResult:
        from itk_nir.registration import register

        fixed, moving = load_image(fixed_subimage, "fixed block"), load_image(moving_subimage, "moving block")
        refuse_slices(fixed=fixed.geometry.size, moving=moving.geometry.size)
        grid, behind = fixed.geometry, moving.geometry
        for block in (fixed, moving):
            if block.array.min() == block.array.max():
                raise InputError(f"{block.name}: one value everywhere, nothing to register")
        options: dict[str, Any] = {
            "preset": self.settings, "linear": self.linear, "seed": self.seed, "device": self.device,
            "threads": self.threads,
        }  # fmt: skip
        fixed, moving = _thick_enough(fixed), _thick_enough(moving)
        if initial_transform is None:
            result = register(fixed, moving, **options)
            return BlockResult(result.mapping, grid, behind, result.report)
        start = load_transform(initial_transform, grid, role="initial transform")
        back = _inverse_over_block(grid, start)
        start = CompositeTransform(start.transforms, back.transforms)
        result = register(fixed, moving, initial_transform=start, **options)
        # Ours is phi = T_initial ∘ A ∘ (id + u) from fixed space; wanted is the part that runs after T_initial.
        return BlockResult(compose(back, result.mapping), _box(grid, start), behind, result.report)


def _thick_enough(block: Volume) -> Volume:
    """A block of two or three voxels along an axis, sampled more finely there, unless some of its voxels are missing.

    Chunks rarely divide an image, so that the last block of a row may be thin. Its first and last voxels stay where
    they are.
    """
    grid = block.geometry
    size = [n if n < 2 else -(-FEWEST // n) * n for n in grid.size]
    if size == list(grid.size) or block.missing is not None:
        return block
    spacing = [s * (n - 1) / max(1, m - 1) for s, n, m in zip(grid.spacing, grid.size, size, strict=True)]
    finer = Geometry.make(size, spacing, grid.origin, grid.direction)
    nothing = CompositeTransform((LinearTransform.identity(grid.dimension),))
    return replace(block, array=resample_array(block.array, grid, nothing, finer, "linear"), geometry=finer)


def _inverse_over_block(block: Geometry, start: CompositeTransform) -> CompositeTransform:
    """The inverse of the initial transform for the points of a block.

    It is made of transforms that can be written, by ``start = L ∘ (id + w)``: `L` is the affine map nearest to it over
    the block and `w` what is left. Beyond the block `w` stays what it is at the rim: the transform itself may end
    there.
    """
    if start.is_linear:
        return start.inverse()
    d = block.dimension
    rest = start.displacement_on(block)
    points = np.concatenate([block.grid(), np.ones((*block.shape, 1))], axis=-1).reshape(-1, d + 1)
    fit = np.linalg.lstsq(points, rest.vectors.reshape(-1, d).astype(float), rcond=None)[0].T
    matrix = np.eye(d + 1)
    matrix[:-1] += fit
    linear = LinearTransform(matrix)
    w = CompositeTransform((*start.transforms, linear.inverse())).displacement_on(block).vectors
    pad = [2 + int(np.ceil(np.abs(w).max() / s)) for s in block.spacing]
    wide = block.crop([-n for n in pad], [size + 2 * n for size, n in zip(block.size, pad, strict=True)])
    field = DisplacementField(wide, np.pad(w, [(n, n) for n in pad[::-1]] + [(0, 0)], mode="edge"))
    return CompositeTransform((linear.inverse(), field.inverse()), (field, linear))


def _box(block: Geometry, start: CompositeTransform) -> Geometry:
    """A grid along the block's axes, with its spacing, around where the initial transform takes the block."""
    if start.is_identity:
        return block
    ends = np.stack(np.meshgrid(*[np.linspace(-0.5, n - 0.5, 9) for n in block.size], indexing="ij"), -1)
    index = block.physical_to_index(start.map(block.index_to_physical(ends.reshape(-1, block.dimension))))
    low, high = index.min(0), index.max(0)
    size = np.maximum(np.ceil(high - low - 1e-6), 1).astype(int)
    # Whole voxels, so the box is a little larger: by the same on either side.
    first = (low + high - size + 1) / 2
    return Geometry.make(size.tolist(), block.spacing, block.index_to_physical(first), block.direction)


def _empty_image(geometry: Geometry) -> Any:
    """An ``itk.Image`` that has a grid and no pixels."""
    image = empty_image(geometry.size)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(itk_matrix(geometry.rotation))
    return image
