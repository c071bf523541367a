"""The ops by our own kernels on a card, CUDA or ROCm: float32, the same names, arguments and meaning as in `ops.cpu`.

Nothing here waits for the card: what an iteration computes stays there, scalars too. Sums that many threads add to are
whole numbers, so that a result has the same bits each time. `threads` is for the CPU and has no meaning here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from itk_nir.engine.ops.cuda.adam import adam
from itk_nir.engine.ops.cuda.compiler import compiled
from itk_nir.engine.ops.cuda.compositions import Compose, Exponential
from itk_nir.engine.ops.cuda.images import (
    LNCC,
    Banded,
    LinearWarp,
    Lncc,
    LnccFixed,
    Warp,
    WarpSpline,
    radius_macros,
    takes_radius,
)
from itk_nir.engine.ops.cuda.inversion import inverse_pair, invert, jacobian_map
from itk_nir.engine.ops.cuda.iterations import MeasuredIterations, WindowIterations
from itk_nir.engine.ops.cuda.launching import architecture_of, module_on
from itk_nir.engine.ops.cuda.matching import best_matches, match_costs
from itk_nir.engine.ops.cuda.mind import MindDifference, MindDifferenceSpline, mind_descriptors
from itk_nir.engine.ops.cuda.penalties import Diffusion, JacobianPenalty
from itk_nir.engine.ops.cuda.sums import GlobalSums, Information, JointHistogram

__all__ = [
    "Banded",
    "Compose",
    "Diffusion",
    "Exponential",
    "GlobalSums",
    "Information",
    "JacobianPenalty",
    "JointHistogram",
    "LinearWarp",
    "Lncc",
    "LnccFixed",
    "MeasuredIterations",
    "MindDifference",
    "MindDifferenceSpline",
    "Warp",
    "WarpSpline",
    "WindowIterations",
    "adam",
    "best_matches",
    "inverse_pair",
    "invert",
    "jacobian_map",
    "load",
    "match_costs",
    "mind_descriptors",
    "takes_radius",
]

#: The files of kernels: all are compiled before the first is used, so that none is missing on the way. That of the
#: local correlation is compiled for each radius (`takes_radius`), those of the presets with the others.
FILES = (
    "adam.cu", "banded.cu", "compositions.cu", "inversion.cu", "matching.cu", "mind.cu", "penalties.cu", "sums.cu",
    "warp.cu",
)  # fmt: skip
USUAL_RADII = (4, 5, 6, 7, 8)


def load(device: torch.device) -> None:
    """Compile the kernels, if that was never done on this machine, all at the same time, and load them.

    Parameters
    ----------
    device : torch.device
        With its number.

    Raises
    ------
    CompilerError, DriverError
        They cannot be had.
    """
    architecture = architecture_of(device)
    with ThreadPoolExecutor(thread_name_prefix="itk-nir compiler") as pool:
        needed = [pool.submit(compiled, file, architecture, ()) for file in FILES]
        for radius in USUAL_RADII:  # one that cannot be had is told of where it is asked for
            pool.submit(compiled, LNCC, architecture, radius_macros(radius))
    for file, code in zip(FILES, needed, strict=True):
        code.result()
        module_on(file, (), device)
