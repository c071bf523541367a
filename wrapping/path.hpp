// Points taken through several transforms, one after the other.
#pragma once
#include <algorithm>
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

// The way of a voxel of the output: `grid` (3 x 4) takes it to a physical point, the steps move that one after the
// other, `to_index` (3 x 4) takes it to a voxel of the image.
struct Path {
  const double *grid;
  std::vector<Step> steps;
  const double *to_index;
};

inline void mapped(const double *m, const double *p, double *q) {
  for (int a = 0; a < 3; ++a) q[a] = m[4 * a] * p[0] + m[4 * a + 1] * p[1] + m[4 * a + 2] * p[2] + m[4 * a + 3];
}

inline bool inside(const double *c, Size n) {  // false for NaN, too
  return c[0] >= -0.5 && c[0] < n.x - 0.5 && c[1] >= -0.5 && c[1] < n.y - 0.5 && c[2] >= -0.5 && c[2] < n.z - 0.5;
}

// The two neighbours of a position along each axis, the outermost voxel repeated in the rim.
struct Cell {
  long at;       // of the lower corner
  long step[3];  // to the upper neighbours
  double f[3];
  Cell(const double *c, Size n) : at(0) {
    const int size[3] = {n.x, n.y, n.z};
    long stride = 1;
    for (int a = 0; a < 3; ++a) {
      const double p = std::min(std::max(c[a], 0.0), size[a] - 1.0);
      const int lower = std::min(static_cast<int>(p), std::max(0, size[a] - 2));
      f[a] = p - lower;
      at += lower * stride;
      step[a] = size[a] > 1 ? stride : 0;
      stride *= size[a];
    }
  }
};

// A path made ready for all voxels of the output: neighbouring linear maps are one, and a first field that lies on the
// grid of the output is read voxel by voxel.
class Way {
 public:
  Way(const Path &path, Size size);

  // Calls put(x, position where the path ends) for every voxel of a row of the output.
  template <class Put>
  void row(int y, int z, const Put &put) const {
    const long begin = (static_cast<long>(z) * size_.y + y) * size_.x;
    double start[3];
    for (int a = 0; a < 3; ++a) start[a] = first_.m[4 * a + 1] * y + first_.m[4 * a + 2] * z + first_.m[4 * a + 3];
    for (int x = 0; x < size_.x; ++x) {
      double p[3], q[3];
      for (int a = 0; a < 3; ++a) p[a] = start[a] + first_.m[4 * a] * x;
      for (const Shift &s : shifts_) {
        if (s.on_grid) {
          const float *const u = s.field + (begin + x) * s.components;
          for (int a = 0; a < s.components; ++a) p[a] += u[a];
        } else if (s.components == 3) {
          displace<3>(s, p);
        } else {
          displace<2>(s, p);
        }
        mapped(s.after.m, p, q);
        std::copy(q, q + 3, p);
      }
      put(x, static_cast<const double *>(p));
    }
  }

 private:
  struct Linear {
    double m[12];
  };
  // A field, and the linear map that follows it.
  struct Shift {
    Linear to_voxel, after;
    const float *field;
    Size size;
    int components;
    bool on_grid;
  };
  Linear first_;
  std::vector<Shift> shifts_;
  Size size_;

  static Linear product(const double *after, const double *before);
  bool is_on_grid(const Step &step) const;

  template <int K>
  static void displace(const Shift &s, double *p) {
    double c[3];
    mapped(s.to_voxel.m, p, c);
    if (!inside(c, s.size)) return;
    const Cell e(c, s.size);
    const long sx = e.step[0] * K, sy = e.step[1] * K;
    const float *const near = s.field + e.at * K, *const far = near + e.step[2] * K;
    const double x1 = e.f[0], x0 = 1 - x1, y1 = e.f[1], y0 = 1 - y1, z1 = e.f[2], z0 = 1 - z1;
    const double w00 = x0 * y0, w10 = x1 * y0, w01 = x0 * y1, w11 = x1 * y1;
    for (int a = 0; a < K; ++a) {
      const double n = w00 * near[a] + w10 * near[sx + a] + w01 * near[sy + a] + w11 * near[sx + sy + a];
      const double f = w00 * far[a] + w10 * far[sx + a] + w01 * far[sy + a] + w11 * far[sx + sy + a];
      p[a] += z0 * n + z1 * f;
    }
  }
};

// Of every voxel of the output the vector from its physical point to where the steps take that, `components` (2 or 3)
// values side by side; `to_index` of the path is the identity.
void displacements(const Path &path, int components, float *out, Size size, int threads);

}  // namespace itk_nir
