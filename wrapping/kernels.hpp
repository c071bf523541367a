// The kernels, compiled once for every instruction set (see kernels.inl) and chosen when the module is loaded.
// Arrays are float32, C order, 3D (z, y, x); a 2D image is a 3D one with a single plane. Displacements are in voxels of
// their own grid, component planes x, y, z first; "packed" ones hold the components of a point side by side, padded
// to four.
#pragma once
#include <cstdint>

namespace itk_nir {

struct Size {
  int x, y, z;
  long count() const { return static_cast<long>(x) * y * z; }
};

// Local statistics of the fixed image, made once a level by lncc_prepare. One value a voxel.
struct LnccFixed {
  const float *image;             // f
  const float *weight;            // w, or null where every weight is 1
  const float *inverse_count;     // 1 / sum of w over the window, 0 where the window is empty
  const float *mean;              // weighted mean of f
  const float *inverse_variance;  // 1 / (sum w (f - mean)^2 + epsilon n), 0 where the window does not count
};

// A displacement u(z, y, x), component planes x, y, z first: at every voxel (taps = 0), or as a spline that has been
// evaluated along x and y, u[c](z) = sum_k weights[z, k] values[c](start[z] + k) with `planes` planes a component.
struct Displacement {
  const float *values;
  const int *start;
  const float *weights;
  int taps, planes;
};

// The bins of a joint histogram, as many along both axes; a moving intensity m lies at (m - low) scale in them, clamped to
// 0 … count - 1.
struct JointBins {
  int count;
  float low, scale;
};

struct Kernels {
  const char *name;
  // out[o, i, j] = sum_k weights[i, k] in[o, start[i] + k, j]: a banded matrix applied along one axis.
  void (*banded)(const float *in, float *out, long outer, int n_in, int n_out, long inner, const int *start,
                 const float *weights, int taps, int threads);
  // out[o, start[i] + k, j] = sum_i,k weights[i, k] in[o, i, j] factor[i, j]: its adjoint on a product.
  void (*banded_adjoint)(const float *in, const float *factor, float *out, int outer, int n_in, int n_out, long inner,
                         const int *start, const float *weights, int taps, int threads);
  // warped(i) = moving(grid_to_moving (i, 1) + displacement_to_moving u(i)), gradient = d warped / d u; trilinear,
  // clamped to the edge. The matrices are 3x4 (voxels of the output → voxels of `moving`) and 3x3 (unit of u → voxels
  // of `moving`).
  void (*warp)(const float *moving, Size moving_size, const Displacement &u, Size size,
               const double *grid_to_moving, const double *displacement_to_moving, float *warped,
               float *gradient, int threads);
  // Returns the number of windows that count.
  double (*lncc_prepare)(const float *fixed, const float *weight, Size size, int radius, float epsilon,
                         float *inverse_count, float *mean, float *inverse_variance, int threads);
  // Returns the sum of the squared local correlation; gradient of that sum with respect to `moving` where not null.
  double (*lncc)(const LnccFixed &fixed, const float *moving, Size size, int radius, float epsilon, float *gradient,
                 float *scratch, int threads);
  // Self-similarity descriptors, sixteen bytes a voxel. `offsets` (3x3): column k is a step along axis k, voxels.
  void (*mind_descriptors)(const float *image, Size size, const double *offsets, int radius, int dimension,
                           std::uint8_t *descriptors, int threads);
  // Returns the sum over the voxels that count of the mean squared difference of `channels` channels, each 0 to 1;
  // gradient of that sum with respect to u where not null. Positions as for `warp`.
  double (*mind_difference)(const std::uint8_t *fixed, const float *weight, const std::uint8_t *moving,
                            Size moving_size, const Displacement &u, Size size, const double *grid_to_moving,
                            const double *displacement_to_moving, int channels, float *gradient, int threads);
  void (*pack)(const float *planar, float *packed, long count, float scale, int threads);
  void (*unpack)(const float *packed, float *planar, long count, float scale, int threads);
  // out = inner + outer(x + inner(x)), packed, trilinear, clamped.
  void (*compose)(const float *outer, const float *inner, float *out, Size size, int threads);
  // Adds nothing: grad_outer and grad_inner are overwritten (they may be the same array: then their sum is written).
  void (*compose_adjoint)(const float *outer, const float *inner, const float *grad, float *grad_outer,
                          float *grad_inner, Size size, int threads);
  // Solves y + v(y) + u(y + v(y)) = y for v by Newton's method from `v` as given; returns the largest residual, voxels.
  double (*invert)(const float *u, float *v, Size size, int iterations, float tolerance, int threads);
  // Return the energy, overwrite the gradient. `scale` > 0, may be infinite.
  double (*diffusion)(const float *u, float *gradient, int components, Size size, double scale, int threads);
  double (*jacobian_penalty)(const float *u, float *gradient, Size size, float margin, int corner, int threads);
  // histogram[i, j], row i of the fixed and column j of the moving image: every voxel adds to the two bins around it along
  // both. `position` is that of the fixed image in its bins, below 0 or not a number where a voxel does not count.
  void (*joint_histogram)(const float *position, const float *moving, long count, JointBins bins, double *histogram,
                          int threads);
  // Overwrites gradient = d / d moving of what has this derivative by the histogram; 0 where `moving` is clamped.
  void (*joint_histogram_adjoint)(const float *position, const float *moving, long count, JointBins bins,
                                  const double *derivative, float *gradient, int threads);
  // sums = (sum m, sum m^2, sum f m) over the voxels whose weight is above one half (null: all).
  void (*global_sums)(const float *fixed, const float *moving, const float *weight, Size size, double *sums,
                      int threads);
  // Overwrites gradient = d / d moving of what has this derivative by the three sums.
  void (*global_sums_adjoint)(const float *fixed, const float *moving, const float *weight, long count,
                              const double *derivative, float *gradient, int threads);
  // costs[node, label], the nodes blocks of the fixed image, the labels displacements of whole voxels up to `reach` along
  // each axis, x fastest: the mean absolute difference of descriptors over a block and those around it (positions that
  // the fixed image does not count are no difference, those that the moving image does not are `unrelated`), as a share
  // of `unrelated`, times 8192. The moving image reaches beyond the fixed one by `reach` on every side.
  void (*match_costs)(const std::uint8_t *fixed, const std::uint8_t *fixed_counts, Size size, const std::uint8_t *moving,
                      const std::uint8_t *moving_counts, Size reach, Size block, int unrelated, std::uint16_t *costs,
                      int threads);
  // The displacement of least cost + weight |d - wanted|^2 of every node, component planes first, and its cost.
  void (*best_matches)(const std::uint16_t *costs, const float *wanted, long nodes, Size reach, float weight,
                       float *found, float *cost, int threads);
};

extern const Kernels kernels_base;
#if ITK_NIR_AVX2
extern const Kernels kernels_avx2;
#endif
#if ITK_NIR_AVX512
extern const Kernels kernels_avx512;
#endif

}  // namespace itk_nir
