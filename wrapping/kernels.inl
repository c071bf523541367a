// The kernels themselves; included by one file an instruction set, inside its own namespace. Everything here has
// internal linkage, so that no inline function compiled for one set can be merged with that of another.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.hpp"
#include "parallel.hpp"

#if defined(__GNUC__) && !defined(__clang__)
// Vectors wider than the registers of an instruction set have no fixed calling convention: none leaves this file.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace itk_nir {
namespace {

// One family of kernels a file, in the order in which they use one another.
#include "kernels/vectors.inl"
#include "kernels/sums.inl"
#include "kernels/banded.inl"
#include "kernels/warp.inl"
#include "kernels/box.inl"
#include "kernels/lncc.inl"
#include "kernels/histogram.inl"
#include "kernels/global_sums.inl"
#include "kernels/mind.inl"
#include "kernels/matching.inl"
#include "kernels/packed.inl"
#include "kernels/compose.inl"
#include "kernels/invert.inl"
#include "kernels/diffusion.inl"
#include "kernels/jacobian.inl"

}  // namespace

extern const Kernels ITK_NIR_TABLE;
const Kernels ITK_NIR_TABLE = {
    ITK_NIR_NAME, banded, banded_adjoint, warp, lncc_prepare, lncc, mind_descriptors, mind_difference, pack, unpack,
    compose, compose_adjoint, invert, diffusion, jacobian_penalty, joint_histogram, joint_histogram_adjoint,
    global_sums, global_sums_adjoint, match_costs, best_matches};

}  // namespace itk_nir
