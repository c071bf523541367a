#include "bake.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace itk_nir {

namespace {

struct Cell {
  long at;
  long step[3];
  float f[3];
};

// The cell of a position, clamped to the grid, as packed offsets.
inline Cell cell(Size n, const float *position) {
  const int size[3] = {n.x, n.y, n.z};
  const long stride[3] = {4, 4L * n.x, 4L * n.x * n.y};
  Cell c;
  c.at = 0;
  for (int a = 0; a < 3; ++a) {
    const float q = position[a] > 0.f ? std::min(position[a], float(size[a] - 1)) : 0.f;  // NaN goes to 0
    const int i = std::min(int(q), std::max(0, size[a] - 2));
    c.f[a] = q - float(i);
    c.at += i * stride[a];
    c.step[a] = size[a] > 1 ? stride[a] : 0;
  }
  return c;
}

inline void weights(const Cell &c, float *w, long *offset) {
  for (int k = 0; k < 8; ++k) {
    w[k] = (k & 1 ? c.f[0] : 1.f - c.f[0]) * (k & 2 ? c.f[1] : 1.f - c.f[1]) * (k & 4 ? c.f[2] : 1.f - c.f[2]);
    offset[k] = c.at + (k & 1 ? c.step[0] : 0) + (k & 2 ? c.step[1] : 0) + (k & 4 ? c.step[2] : 0);
  }
}

// The residual u(x) + v(x + u(x)), and the cell it was taken from.
inline void residual(const float *u, const float *v, Size n, int x, int y, int z, float *r, float *w, long *offset) {
  const float *here = u + 4 * ((static_cast<long>(z) * n.y + y) * n.x + x);
  const float position[3] = {x + here[0], y + here[1], z + here[2]};
  weights(cell(n, position), w, offset);
  float sum[4] = {here[0], here[1], here[2], 0.f};
  for (int k = 0; k < 8; ++k) {
    const float *node = v + offset[k];
    for (int c = 0; c < 4; ++c) sum[c] += w[k] * node[c];
  }
  for (int c = 0; c < 3; ++c) r[c] = sum[c];
}

}  // namespace

void balance(const float *u, float *v, Size n, float relaxation, int threads) {
  const long plane = 4L * n.x * n.y;
  // As in compose_adjoint: slabs of planes, whose number depends on the grid alone, scatter into memory of their own.
  const int slabs = std::min(8, n.z);
  std::vector<int> low(slabs), high(slabs);
  std::vector<std::vector<float>> reach(slabs);
  parallel_for(slabs, threads, [&](int s) {
    const int z0 = static_cast<int>(static_cast<long>(n.z) * s / slabs);
    const int z1 = static_cast<int>(static_cast<long>(n.z) * (s + 1) / slabs);
    int lo = n.z - 1, hi = 0;
    for (int z = z0; z < z1; ++z) {
      for (long i = 0; i < static_cast<long>(n.x) * n.y; ++i) {
        const float q = float(z) + u[z * plane + 4 * i + 2];
        const int k = q > 0.f ? int(std::min(q, float(n.z - 1))) : 0;
        lo = std::min(lo, k);
        hi = std::max(hi, k);
      }
    }
    lo = std::max(0, std::min(lo, n.z - 2));
    hi = std::min(hi + 1, n.z - 1);
    low[s] = lo;
    high[s] = hi + 1;
    reach[s].assign((hi + 1 - lo) * plane, 0.f);
    float *base = reach[s].data() - lo * plane;
    for (int z = z0; z < z1; ++z) {
      for (int y = 0; y < n.y; ++y) {
        for (int x = 0; x < n.x; ++x) {
          float r[4] = {0, 0, 0, -1.f}, w[8];  // the fourth component sums up the weights
          long offset[8];
          residual(u, v, n, x, y, z, r, w, offset);
          for (int k = 0; k < 8; ++k) {
            float *node = base + offset[k];
            for (int c = 0; c < 4; ++c) node[c] -= w[k] * r[c];
          }
        }
      }
    }
  });
  parallel_for(n.z, threads, [&](int z) {
    std::vector<float> sum(plane, 0.f);
    for (int s = 0; s < slabs; ++s) {
      if (z < low[s] || z >= high[s]) continue;
      const float *add = reach[s].data() + (z - low[s]) * plane;
      for (long i = 0; i < plane; ++i) sum[i] += add[i];
    }
    float *out = v + z * plane;
    for (long i = 0; i < plane; i += 4) {
      const float scale = 1.f / (sum[i + 3] + relaxation);
      for (int c = 0; c < 3; ++c) out[i + c] += scale * sum[i + c];
    }
  });
}

void inverse_error(const float *u, const float *v, Size n, const double *scale, float *error, int threads) {
  const float s[3] = {float(scale[0]), float(scale[1]), float(scale[2])};
  parallel_for(n.z, threads, [&](int z) {
    for (int y = 0; y < n.y; ++y) {
      for (int x = 0; x < n.x; ++x) {
        float r[4], w[8];
        long offset[8];
        residual(u, v, n, x, y, z, r, w, offset);
        for (int c = 0; c < 3; ++c) r[c] *= s[c];
        error[(static_cast<long>(z) * n.y + y) * n.x + x] = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
      }
    }
  });
}

void jacobian(const float *u, Size n, float *determinant, int threads) {
  const long count = n.count(), stride[3] = {1, n.x, static_cast<long>(n.x) * n.y};
  parallel_for(n.z, threads, [&](int z) {
    for (int y = 0; y < n.y; ++y) {
      const long row = z * stride[2] + y * stride[1];
      for (int x = 0; x < n.x; ++x) {
        const int at[3] = {x, y, z}, size[3] = {n.x, n.y, n.z};
        float m[3][3];
        for (int a = 0; a < 3; ++a) {
          const long back = at[a] > 0 ? stride[a] : 0, on = at[a] + 1 < size[a] ? stride[a] : 0;
          const float half = back && on ? 0.5f : 1.f;
          for (int i = 0; i < 3; ++i) {
            const float *p = u + i * count + row + x;
            m[i][a] = half * (p[on] - p[-back]) + (i == a ? 1.f : 0.f);
          }
        }
        determinant[row + x] = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
                               m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
                               m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
      }
    }
  });
}

}  // namespace itk_nir
