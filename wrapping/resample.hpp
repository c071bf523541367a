// Resampling of a whole image through a displacement field and a linear map, in one pass.
#pragma once
#include "kernels.hpp"

namespace itk_nir {

// out(i) = moving(grid_to_moving (i, 1) + displacement_to_moving u(i)), trilinear; `outside` where that lies more than
// half a voxel beyond the outermost centres of `moving`, as ITK has it. `displacement` holds `components` (2 or 3)
// values a voxel side by side, or is null. The matrices are as for Kernels::warp.
void resample(const float *moving, Size moving_size, const float *displacement, int components, Size size,
              const double *grid_to_moving, const double *displacement_to_moving, float outside, float *out,
              int threads);

}  // namespace itk_nir
