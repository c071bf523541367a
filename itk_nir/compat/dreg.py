"""itk-dreg: large images registered block by block, each pair of blocks by this package.

>>> from itk_nir.compat.dreg import BlockPairRegistration
>>> schedule = itk_dreg.register.register_images(
...     block_registration_method=BlockPairRegistration(preset="fast"), ...
... )

Importing this module needs itk-dreg (``pip install itk-nir[dreg]``).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from itk_nir.settings import make_settings
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images import load_image
from itk_nir.loading import load_transform
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose

try:
    from itk_dreg.base.image_block_interface import BlockPairRegistrationResult, BlockRegStatus
    from itk_dreg.base.registration_interface import BlockPairRegistrationMethod
except ImportError as error:
    raise ImportError(f"itk_nir.compat.dreg needs itk-dreg and dask ({error}): pip install 'itk-nir[dreg]'") from error

logger = logging.getLogger(__name__)


class BlockResult(BlockPairRegistrationResult):
    """What one pair of blocks gave.

    Attributes
    ----------
    status : ``BlockRegStatus.SUCCESS``.
    transform : ``itk.CompositeTransform[itk.D, d]``: where the initial transform takes a fixed point → moving point.
        It is run *after* the initial transform, which it does not contain.
    transform_domain : image without pixels: the box where `transform` holds.
    inv_transform, inv_transform_domain : the inverse of `transform`, and the box of the moving block.
    metrics : of the registration, see `RegistrationResult.metrics`.
    """

    # The base class is not initialised: it multiplies the sizes of the domains with np.product, which NumPy 2 no longer
    # has, to find empty ones. A Geometry is never empty.
    def __init__(self, chain: CompositeTransform, domain: Geometry, inverse_domain: Geometry, metrics: dict[str, Any]) -> None:
        from itk_nir.transforms.as_itk import to_itk

        self.chain, self.domain, self.inverse_domain, self.metrics = chain, domain, inverse_domain, metrics
        self.status = BlockRegStatus.SUCCESS
        self.transform = to_itk(chain)
        self.transform_domain = _empty_image(domain)
        self.inv_transform = to_itk(chain.inverse())
        self.inv_transform_domain = _empty_image(inverse_domain)

    # ITK's objects are made again on the other side, so that a result can travel between dask's workers.
    def __getstate__(self) -> dict[str, Any]:
        return {"chain": self.chain, "domain": self.domain, "inverse_domain": self.inverse_domain,
                "metrics": self.metrics}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class BlockPairRegistration(BlockPairRegistrationMethod):
    """Registers a pair of blocks with `itk_nir.register`: the ``block_registration_method`` of `register_images`.

    Parameters
    ----------
    preset, linear, seed, device, threads : as for `itk_nir.register`. `linear` is ``"none"`` here: aligning the whole
        images is the task of the initial transform, and blocks hold too little to do it better.
    options : options of the preset, by name.

    Raises
    ------
    OptionError : an option that does not exist or does not fit, when the object is made.
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        linear: str = "none",
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        **options: Any,
    ) -> None:
        make_settings(preset, **options)
        # itk-dreg turns an exception in a block into a failed block, so what is wrong with every block is said here.
        if linear not in ("none", "rigid", "affine"):
            raise OptionError(f"linear is 'none', 'rigid' or 'affine', got {linear!r}")
        if device not in ("auto", "cpu", "cuda"):
            raise OptionError(f"device is 'auto', 'cpu' or 'cuda', got {device!r}")
        for name, value, least in (("seed", seed, 0), ("threads", 1 if threads is None else threads, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
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
        fixed_subimage, moving_subimage : ``itk.Image`` of 2 or 3 dimensions; their buffered regions are registered.
        initial_transform : an ITK transform of the whole images, fixed → moving, or None.
        block_info : where the block lies, for messages.
        **context : what `register_images` hands to every part of it (options of the reduction, ...); not looked at.

        Returns
        -------
        A `BlockResult`; where the pair cannot be registered (an empty block, no overlap), one with the status FAILURE.
        """
        where = getattr(block_info, "chunk_index", "?")
        try:
            return self._register(fixed_subimage, moving_subimage, initial_transform)
        except InputError as error:
            logger.warning("block %s: %s", where, one_line(error))
            return BlockPairRegistrationResult(status=BlockRegStatus.FAILURE)

    def _register(self, fixed_subimage: Any, moving_subimage: Any, initial_transform: Any) -> BlockResult:
        from itk_nir.registration import register

        fixed, moving = load_image(fixed_subimage, "fixed block"), load_image(moving_subimage, "moving block")
        for block in (fixed, moving):
            if block.array.min() == block.array.max():
                raise InputError(f"{block.name}: one value everywhere, nothing to register")
        start = None
        if initial_transform is not None:
            start = load_transform(initial_transform, fixed.geometry, role="initial transform")
            undo = _undo(fixed.geometry, start)
            start = CompositeTransform(start.transforms, undo.transforms)
        result = register(
            fixed, moving, preset=self.preset, linear=self.linear, seed=self.seed, device=self.device,
            threads=self.threads, initial_transform=start, **self.options,
        )  # fmt: skip
        # Ours is phi = T_initial ∘ A ∘ (id + u) from fixed space; wanted is the part that runs after T_initial.
        chain = result.chain if start is None else compose(undo, result.chain)
        domain = fixed.geometry if start is None else _box(fixed.geometry, start)
        return BlockResult(chain, domain, moving.geometry, result.metrics)


def _undo(block: Geometry, start: CompositeTransform) -> CompositeTransform:
    """The inverse of the initial transform for the points of a block, in steps that exist: ``start = L ∘ (id + w)``.

    `L` is the affine map nearest to it over the block and `w` what is left. Beyond the block `w` stays what it is at
    the rim: the transform itself may end there.
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
    import itk

    image = itk.Image[itk.F, geometry.dimension].New()
    image.SetRegions([int(n) for n in geometry.size])
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(geometry.rotation)))
    return image
