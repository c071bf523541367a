"""The ops of the lattice engine: one function each, with its gradient.

float32 tensors on the CPU go to the native module (`cpu`), everything else (CUDA, float64) to the torch
implementation that defines the op (`reference`). Where the native module is missing, the reference runs everywhere,
with one warning. `threads` is the number of CPU threads of the native ops; no result depends on it.

All tensors are 3D, ``([C,] Z, Y, X)``; a 2D image is one with a single plane.
"""

from itk_nir.engine.ops.adam import Adam
from itk_nir.engine.ops.dispatch import instruction_set, native_module, release_memory, return_blocks_from
from itk_nir.engine.ops.displacements import (
    compose,
    diffusion,
    exponential,
    inverse_pair,
    invert,
    jacobian_map,
    jacobian_penalty,
)
from itk_nir.engine.ops.histogram import MutualInformation, many_informations
from itk_nir.engine.ops.images import Lncc, linear_warp, separable, warp, warp_spline, warps_linearly
from itk_nir.engine.ops.iterations import IterationTerms, Windows, whole_iterations
from itk_nir.engine.ops.matching import Whole, best_matches, match_costs
from itk_nir.engine.ops.mind import MIND_CHANNELS, mind_descriptors, mind_difference, mind_difference_spline
from itk_nir.engine.ops.pool import reused as reused_memory
from itk_nir.engine.ops.sums import global_sums

__all__ = [
    "MIND_CHANNELS",
    "Adam",
    "IterationTerms",
    "Lncc",
    "MutualInformation",
    "Whole",
    "Windows",
    "best_matches",
    "compose",
    "diffusion",
    "exponential",
    "global_sums",
    "instruction_set",
    "inverse_pair",
    "invert",
    "jacobian_map",
    "jacobian_penalty",
    "linear_warp",
    "many_informations",
    "match_costs",
    "mind_descriptors",
    "mind_difference",
    "mind_difference_spline",
    "native_module",
    "release_memory",
    "return_blocks_from",
    "reused_memory",
    "separable",
    "warp",
    "warp_spline",
    "warps_linearly",
    "whole_iterations",
]
