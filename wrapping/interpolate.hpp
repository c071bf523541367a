// An image or a label map seen through several transforms, one after the other, by any of the usual interpolations.
#pragma once
#include <cstdint>

#include "path.hpp"

namespace itk_nir {

enum class Interpolation { linear, bspline, gaussian, sinc, label_linear, label_gaussian };
enum class Window { cosine, hamming, welch, lanczos, blackman };

struct HowToInterpolate {
  Interpolation kind;
  int order;          // of the spline, 0 to 5
  Window window;      // of the sinc function, three voxels to either side
  double sigma[3];    // of the Gaussian, voxels of the image
  double alpha;       // where it is cut off, in sigmas
};

// The value of the image where the path ends, or `outside` where that lies more than half a voxel beyond the outermost
// centres. Of a spline `image` holds the coefficients.
void interpolate(const float *image, Size image_size, const Path &path, const HowToInterpolate &how, float outside,
                 float *out, Size size, int threads);

// The value of the voxel that is nearest, halves upwards, or `outside`; values of 1, 2, 4 or 8 bytes of any type.
void nearest(const std::uint8_t *image, Size image_size, const Path &path, int bytes, const std::uint8_t *outside,
             std::uint8_t *out, Size size, int threads);

// Turns the voxels into the coefficients of the spline of that order that passes through them, mirrored at the ends.
void bspline_coefficients(float *image, Size size, int order, int threads);

}  // namespace itk_nir
