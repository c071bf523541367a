// An image or a label map seen through several transforms, one after the other, by any of the usual interpolations.
#pragma once
#include <vector>

#include "kernels.hpp"

namespace itk_nir {

// One transform: a linear map of physical points, or, with `field`, a displacement that is read on a grid of its own.
struct Step {
  const double *matrix;  // 3 x 4: physical -> physical; of a field physical -> its voxels
  const float *field;    // `components` (2 or 3) values a voxel side by side, or null
  Size size;
  int components;
};

enum class Interpolation { linear, bspline, gaussian, sinc, label_linear, label_gaussian };
enum class Window { cosine, hamming, welch, lanczos, blackman };

struct HowToInterpolate {
  Interpolation kind;
  int order;          // of the spline, 0 to 5
  Window window;      // of the sinc function, three voxels to either side
  double sigma[3];    // of the Gaussian, voxels of the image
  double alpha;       // where it is cut off, in sigmas
};

// The way of a voxel of the output: `grid` (3 x 4) takes it to a physical point, the steps move that one after the
// other, `to_index` (3 x 4) takes it to a voxel of the image.
struct Path {
  const double *grid;
  std::vector<Step> steps;
  const double *to_index;
};

// The value of the image where the path ends, or `outside` where that lies more than half a voxel beyond the outermost
// centres. Of a spline `image` holds the coefficients.
void interpolate(const float *image, Size image_size, const Path &path, const HowToInterpolate &how, float outside,
                 float *out, Size size, int threads);

// The number of the voxel that is nearest, or -1 outside.
void nearest_voxels(Size image_size, const Path &path, int *out, Size size, int threads);

// Turns the voxels into the coefficients of the spline of that order that passes through them, mirrored at the ends.
void bspline_coefficients(float *image, Size size, int order, int threads);

}  // namespace itk_nir
