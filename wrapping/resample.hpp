// Resampling of a whole image through a displacement field and a linear map, in one pass.
#pragma once
#include "kernels.hpp"

namespace itk_nir {

// out(i) = moving(index (i, 1) + vector u(i)), trilinear; `outside` where that lies more than half a voxel beyond the
// outermost centres of `moving`, as ITK has it. `displacement` holds `components` (2 or 3) values a voxel side by side,
// or is null. `index` is 3x4 (voxels of out → voxels of moving), `vector` 3x3 (unit of u → voxels of moving).
void resample(const float *moving, Size moving_size, const float *displacement, int components, Size size,
              const double *index, const double *vector, float outside, float *out, int threads);

}  // namespace itk_nir
