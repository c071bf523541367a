#include "resample.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace itk_nir {

void resample(const float *moving, Size m, const float *displacement, int components, Size n,
              const double *grid_to_moving, const double *displacement_to_moving, float outside, float *out,
              int threads) {
  const long sx = m.x > 1 ? 1 : 0, sy = m.y > 1 ? m.x : 0, sz = m.z > 1 ? static_cast<long>(m.x) * m.y : 0;
  const double last[3] = {m.x - 1.0, m.y - 1.0, m.z - 1.0};
  parallel_for(n.z, threads, [&](int z) {
    for (int y = 0; y < n.y; ++y) {
      const long row = (static_cast<long>(z) * n.y + y) * n.x;
      for (int x = 0; x < n.x; ++x) {
        double u[3] = {0, 0, 0};
        if (displacement) {
          for (int c = 0; c < components; ++c) u[c] = displacement[(row + x) * components + c];
        }
        float f[3];
        long at[3];
        bool inside = true;
        for (int a = 0; a < 3; ++a) {
          const double *const t = grid_to_moving + 4 * a, *const v = displacement_to_moving + 3 * a;
          const double q = t[0] * x + t[1] * y + t[2] * z + t[3] + v[0] * u[0] + v[1] * u[1] + v[2] * u[2];
          inside = inside && q >= -0.5 && q < last[a] + 0.5;  // false for NaN, too
          const double c = std::min(std::max(q, 0.0), last[a]);
          at[a] = std::min(static_cast<long>(c), static_cast<long>(std::max(0.0, last[a] - 1)));
          f[a] = static_cast<float>(c - at[a]);
        }
        if (!inside) {
          out[row + x] = outside;
          continue;
        }
        const float *p = moving + at[0] + at[1] * m.x + at[2] * static_cast<long>(m.x) * m.y;
        const float *q = p + sz;
        const float a0 = p[0] + f[0] * (p[sx] - p[0]), a1 = p[sy] + f[0] * (p[sy + sx] - p[sy]);
        const float b0 = q[0] + f[0] * (q[sx] - q[0]), b1 = q[sy] + f[0] * (q[sy + sx] - q[sy]);
        const float a = a0 + f[1] * (a1 - a0), b = b0 + f[1] * (b1 - b0);
        out[row + x] = a + f[2] * (b - a);
      }
    }
  });
}

}  // namespace itk_nir
