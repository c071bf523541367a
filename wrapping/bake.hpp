// What turns a displacement grid into a pair of grids that undo one another. Displacements are packed (see kernels.hpp)
// and in voxels.
#pragma once
#include "kernels.hpp"

namespace itk_nir {

// One relaxed least-squares step on `v` towards v(x + u(x)) = -u(x) at every voxel x (trilinear): each node moves by the
// weighted sum of the residuals around it over (their weights + relaxation).
void balance(const float *u, float *v, Size size, float relaxation, int threads);

// error(x) = |S (u(x) + v(x + u(x)))| with S = diag(scale).
void inverse_error(const float *u, const float *v, Size size, const double *scale, float *error, int threads);

// det(I + ∂u_i/∂x_j) by central differences, one-sided at the rim; u planar, in voxels.
void jacobian(const float *u, Size size, float *determinant, int threads);

}  // namespace itk_nir
