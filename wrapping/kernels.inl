// The kernels themselves; included by one file an instruction set, inside its own namespace. Everything here has
// internal linkage, so that no inline function compiled for one set can be merged with that of another.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace itk_nir {
namespace {

typedef float V4 __attribute__((vector_size(16), aligned(16)));

inline V4 load4(const float *p) {
  V4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store4(float *p, V4 v) { std::memcpy(p, &v, sizeof(v)); }
inline V4 splat(float s) { return V4{s, s, s, s}; }
inline float dot3(V4 a, V4 b) {
  V4 p = a * b;
  return p[0] + p[1] + p[2];
}

// ---------------------------------------------------------------------------------------------------- banded matrix

void banded(const float *in, float *out, long outer, int n_in, int n_out, long inner, const int *start,
            const float *weights, int taps, int threads) {
  if (inner == 1) {
    const long block = std::max<long>(1, 16384 / std::max(1, n_out));
    const int tasks = static_cast<int>((outer + block - 1) / block);
    parallel_for(tasks, threads, [&](int t) {
      const long end = std::min(outer, (t + 1) * block);
      for (long o = t * block; o < end; ++o) {
        const float *src = in + o * n_in;
        float *dst = out + o * n_out;
        for (int i = 0; i < n_out; ++i) {
          const float *w = weights + static_cast<long>(i) * taps;
          const float *s = src + start[i];
          float sum = 0;
          for (int k = 0; k < taps; ++k) sum += w[k] * s[k];
          dst[i] = sum;
        }
      }
    });
    return;
  }
  // Blocks of the inner axis that stay in the first-level cache while the taps run over them.
  const long block = 2048;
  const long blocks = (inner + block - 1) / block;
  const long rows = outer * n_out;
  const long rows_a_task = std::max<long>(1, 65536 / std::min(inner, block * blocks));
  const int tasks = static_cast<int>((rows + rows_a_task - 1) / rows_a_task);
  parallel_for(tasks, threads, [&](int t) {
    const long last = std::min(rows, (t + 1) * rows_a_task);
    for (long row = t * rows_a_task; row < last; ++row) {
      const long o = row / n_out;
      const int i = static_cast<int>(row % n_out);
      const float *w = weights + static_cast<long>(i) * taps;
      const float *src = in + (o * n_in + start[i]) * inner;
      float *dst = out + row * inner;
      for (long b = 0; b < inner; b += block) {
        const long n = std::min(block, inner - b);
        float *__restrict d = dst + b;
        const float *__restrict s = src + b;
        int k = 0;
        if (taps >= 4) {
          const float *__restrict s1 = s + inner;
          const float *__restrict s2 = s + 2 * inner;
          const float *__restrict s3 = s + 3 * inner;
          const float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
          for (long j = 0; j < n; ++j) d[j] = w0 * s[j] + w1 * s1[j] + w2 * s2[j] + w3 * s3[j];
          k = 4;
        } else {
          const float w0 = w[0];
          for (long j = 0; j < n; ++j) d[j] = w0 * s[j];
          k = 1;
        }
        for (; k + 1 < taps; k += 2) {
          const float wa = w[k], wb = w[k + 1];
          const float *__restrict sa = s + k * inner;
          const float *__restrict sb = sa + inner;
          for (long j = 0; j < n; ++j) d[j] += wa * sa[j] + wb * sb[j];
        }
        if (k < taps) {
          const float wk = w[k];
          const float *__restrict sk = s + k * inner;
          for (long j = 0; j < n; ++j) d[j] += wk * sk[j];
        }
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------------------- warp

template <bool WithGradient>
void warp_rows(const float *__restrict moving, Size m, const float *__restrict disp, Size n,
               const double *index, const double *vector, float *__restrict warped, float *__restrict gradient, long row0, long row1) {
  const long count = n.count();
  const float a00 = float(vector[0]), a01 = float(vector[1]), a02 = float(vector[2]);
  const float a10 = float(vector[3]), a11 = float(vector[4]), a12 = float(vector[5]);
  const float a20 = float(vector[6]), a21 = float(vector[7]), a22 = float(vector[8]);
  const float tx = float(index[0]), ty = float(index[4]), tz = float(index[8]);
  const float hx = float(m.x - 1), hy = float(m.y - 1), hz = float(m.z - 1);
  const float lx = float(std::max(0, m.x - 2)), ly = float(std::max(0, m.y - 2)), lz = float(std::max(0, m.z - 2));
  const int sx = m.x > 1 ? 1 : 0, sy = m.y > 1 ? m.x : 0, sz = m.z > 1 ? m.x * m.y : 0;
  const int px = m.x, pxy = m.x * m.y;
  for (long row = row0; row < row1; ++row) {
    const int z = static_cast<int>(row / n.y), y = static_cast<int>(row % n.y);
    const float bx = float(index[1] * y + index[2] * z + index[3]);
    const float by = float(index[5] * y + index[6] * z + index[7]);
    const float bz = float(index[9] * y + index[10] * z + index[11]);
    const float *__restrict ux = disp + row * n.x;
    const float *__restrict uy = ux + count;
    const float *__restrict uz = uy + count;
    float *__restrict out = warped + row * n.x;
    float *__restrict gx = gradient + row * n.x;
    float *__restrict gy = gx + count;
    float *__restrict gz = gy + count;
#pragma omp simd
    for (int x = 0; x < n.x; ++x) {
      const float i = float(x), dx = ux[x], dy = uy[x], dz = uz[x];
      const float qx = a00 * dx + a01 * dy + a02 * dz + tx * i + bx;
      const float qy = a10 * dx + a11 * dy + a12 * dz + ty * i + by;
      const float qz = a20 * dx + a21 * dy + a22 * dz + tz * i + bz;
      const float cx = qx > 0.f ? (qx < hx ? qx : hx) : 0.f;
      const float cy = qy > 0.f ? (qy < hy ? qy : hy) : 0.f;
      const float cz = qz > 0.f ? (qz < hz ? qz : hz) : 0.f;
      const int ix = int(cx < lx ? cx : lx), iy = int(cy < ly ? cy : ly), iz = int(cz < lz ? cz : lz);
      const float fx = cx - float(ix), fy = cy - float(iy), fz = cz - float(iz);
      const int k = ix + iy * px + iz * pxy;
      const float v000 = moving[k], v100 = moving[k + sx], v010 = moving[k + sy], v110 = moving[k + sx + sy];
      const float v001 = moving[k + sz], v101 = moving[k + sx + sz], v011 = moving[k + sy + sz],
                  v111 = moving[k + sx + sy + sz];
      const float d00 = v100 - v000, d10 = v110 - v010, d01 = v101 - v001, d11 = v111 - v011;
      const float w00 = v000 + fx * d00, w10 = v010 + fx * d10, w01 = v001 + fx * d01, w11 = v011 + fx * d11;
      const float e0 = w10 - w00, e1 = w11 - w01;
      const float r0 = w00 + fy * e0, r1 = w01 + fy * e1;
      out[x] = r0 + fz * (r1 - r0);
      if (WithGradient) {
        const float t0 = d00 + fy * (d10 - d00), t1 = d01 + fy * (d11 - d01);
        // Beyond the edge the value is constant.
        const float mx = qx == cx ? t0 + fz * (t1 - t0) : 0.f;
        const float my = qy == cy ? e0 + fz * (e1 - e0) : 0.f;
        const float mz = qz == cz ? r1 - r0 : 0.f;
        gx[x] = a00 * mx + a10 * my + a20 * mz;
        gy[x] = a01 * mx + a11 * my + a21 * mz;
        gz[x] = a02 * mx + a12 * my + a22 * mz;
      }
    }
  }
}

void warp(const float *moving, Size m, const float *disp, Size n, const double *index, const double *vector,
          float *warped, float *gradient, int threads) {
  const long rows = static_cast<long>(n.y) * n.z;
  const long step = std::max<long>(1, 16384 / n.x);
  const int tasks = static_cast<int>((rows + step - 1) / step);
  parallel_for(tasks, threads, [&](int t) {
    const long r0 = t * step, r1 = std::min(rows, r0 + step);
    if (gradient) {
      warp_rows<true>(moving, m, disp, n, index, vector, warped, gradient, r0, r1);
    } else {
      warp_rows<false>(moving, m, disp, n, index, vector, warped, nullptr, r0, r1);
    }
  });
}

// ------------------------------------------------------------------------------------------------------- box sums

template <int W>
inline void add_rows(const float *const *rows, float *__restrict out, int n, int) {
  const float *r[W];
  for (int k = 0; k < W; ++k) r[k] = rows[k];
#pragma omp simd
  for (int x = 0; x < n; ++x) {
    float s = r[0][x];
    for (int k = 1; k < W; ++k) s += r[k][x];
    out[x] = s;
  }
}

template <>
inline void add_rows<0>(const float *const *rows, float *__restrict out, int n, int count) {
  std::memcpy(out, rows[0], sizeof(float) * n);
  for (int k = 1; k < count; ++k) {
    const float *__restrict r = rows[k];
    for (int x = 0; x < n; ++x) out[x] += r[x];
  }
}

// Sums of Q quantities over (2r+1)^3 windows cut at the border of the image, a tile of the volume at a time. Each sum
// is taken directly, axis by axis and always in the same order: no running error, and no dependence on the tiles.
//   fill(z, y, rows): writes the Q quantities of one image row into rows[0..Q-1].
//   use(z, y, rows): gets the Q rows of window sums centred on (z, y), and one spare row to write to.
template <int W, int Q, class Fill, class Use>
void box_tile(Size n, int radius, int y0, int y1, int z0, int z1, const Fill &fill, const Use &use) {
  const int width = 2 * radius + 1;
  const int ya = std::max(0, y0 - radius), yb = std::min(n.y, y1 + radius);
  const int za = std::max(0, z0 - radius), zb = std::min(n.z, z1 + radius);
  const int pad = n.x + 2 * radius;
  const long tile_rows = y1 - y0;
  // The scratch of a thread lives as long as the thread: allocating it anew for every tile costs page faults.
  thread_local std::vector<float> buffer;
  const long need = static_cast<long>(pad) * Q + static_cast<long>(yb - ya) * n.x * Q + width * tile_rows * n.x * Q +
                    static_cast<long>(n.x) * (Q + 1) + n.x;
  if (static_cast<long>(buffer.size()) < need) buffer.resize(need);
  float *row = buffer.data();
  float *plane = row + static_cast<long>(pad) * Q;
  float *ring = plane + static_cast<long>(yb - ya) * n.x * Q;
  float *sums = ring + width * tile_rows * n.x * Q;
  float *zero = sums + static_cast<long>(n.x) * (Q + 1);
  std::fill(row, row + static_cast<long>(pad) * Q, 0.f);
  std::fill(zero, zero + n.x, 0.f);
  std::vector<const float *> pointers(width);
  float *inside[Q];
  for (int q = 0; q < Q; ++q) inside[q] = row + static_cast<long>(q) * pad + radius;
  for (int z = za; z < zb + radius; ++z) {
    if (z < zb) {
      for (int y = ya; y < yb; ++y) {
        fill(z, y, inside);
        for (int q = 0; q < Q; ++q) {
          for (int k = 0; k < width; ++k) pointers[k] = row + static_cast<long>(q) * pad + k;
          add_rows<W>(pointers.data(), plane + (static_cast<long>(q) * (yb - ya) + (y - ya)) * n.x, n.x, width);
        }
      }
      for (int q = 0; q < Q; ++q) {
        for (int y = y0; y < y1; ++y) {
          for (int k = 0; k < width; ++k) {
            const int yy = y - radius + k;
            pointers[k] = yy >= ya && yy < yb ? plane + (static_cast<long>(q) * (yb - ya) + (yy - ya)) * n.x : zero;
          }
          add_rows<W>(pointers.data(), ring + ((z % width) * Q + q) * tile_rows * n.x + (y - y0) * static_cast<long>(n.x),
                      n.x, width);
        }
      }
    }
    const int centre = z - radius;
    if (centre < z0 || centre >= z1) continue;
    float *out[Q + 1];
    out[Q] = sums + static_cast<long>(Q) * n.x;
    for (int y = y0; y < y1; ++y) {
      for (int q = 0; q < Q; ++q) {
        for (int k = 0; k < width; ++k) {
          const int zz = centre - radius + k;
          pointers[k] = zz >= za && zz < zb
                            ? ring + ((zz % width) * Q + q) * tile_rows * n.x + (y - y0) * static_cast<long>(n.x)
                            : zero;
        }
        out[q] = sums + static_cast<long>(q) * n.x;
        add_rows<W>(pointers.data(), out[q], n.x, width);
      }
      use(centre, y, out);
    }
  }
}

template <int Q, class Fill, class Use>
void box_sums(Size n, int radius, int threads, const Fill &fill, const Use &use) {
  const int tile_y = 32, tile_z = 32;
  const int ty = (n.y + tile_y - 1) / tile_y, tz = (n.z + tile_z - 1) / tile_z;
  parallel_for(ty * tz, threads, [&](int t) {
    const int y0 = (t % ty) * tile_y, y1 = std::min(n.y, y0 + tile_y);
    const int z0 = (t / ty) * tile_z, z1 = std::min(n.z, z0 + tile_z);
    switch (radius) {
      case 1: box_tile<3, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 2: box_tile<5, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 3: box_tile<7, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 4: box_tile<9, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 5: box_tile<11, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      default: box_tile<0, Q>(n, radius, y0, y1, z0, z1, fill, use);
    }
  });
}

// ------------------------------------------------------------------------------------------------------------- LNCC

double sum_rows(const std::vector<double> &rows) {
  double sum = 0;
  for (double r : rows) sum += r;
  return sum;
}

// Sixteen partial sums in a fixed order: vectorises without leave to reorder anything else.
template <class Value>
inline double row_sum(int n, const Value &value) {
  float part[16] = {0};
  int x = 0;
  for (; x + 16 <= n; x += 16) {
    for (int k = 0; k < 16; ++k) part[k] += value(x + k);
  }
  for (; x < n; ++x) part[x & 15] += value(x);
  double sum = 0;
  for (int k = 0; k < 16; ++k) sum += part[k];
  return sum;
}

double lncc_prepare(const float *fixed, const float *weight, Size n, int radius, float epsilon, float *inverse_count,
                    float *mean, float *inverse_variance, int threads) {
  std::vector<double> rows(static_cast<long>(n.y) * n.z);
  box_sums<3>(
      n, radius, threads,
      [&](int z, int y, float **out) {
        const long at = (static_cast<long>(z) * n.y + y) * n.x;
        for (int x = 0; x < n.x; ++x) {
          const float w = weight ? weight[at + x] : 1.f, f = fixed[at + x];
          out[0][x] = w;
          out[1][x] = w * f;
          out[2][x] = w * f * f;
        }
      },
      [&](int z, int y, float **sum) {
        const long row = static_cast<long>(z) * n.y + y, at = row * n.x;
        double counted = 0;
        for (int x = 0; x < n.x; ++x) {
          const float c = sum[0][x];
          const bool some = c > 0.5f;
          const float ic = some ? 1.f / c : 0.f;
          const float mu = sum[1][x] * ic;
          const float variance = sum[2][x] - sum[1][x] * mu;
          // A window counts where its centre does and the fixed image varies in it.
          const bool counts = some && variance > epsilon * c && (!weight || weight[at + x] > 0.5f);
          inverse_count[at + x] = ic;
          mean[at + x] = mu;
          inverse_variance[at + x] = counts ? 1.f / (variance + epsilon * c) : 0.f;
          counted += counts;
        }
        rows[row] = counted;
      });
  return sum_rows(rows);
}

double lncc(const LnccFixed &fixed, const float *moving, Size n, int radius, float epsilon, float *gradient,
            bool centre_only, float *scratch, int threads) {
  const long count = n.count();
  float *sa = scratch, *sc = scratch + count, *sq = scratch + 2 * count;
  std::vector<double> rows(static_cast<long>(n.y) * n.z);
  box_sums<3>(
      n, radius, threads,
      [&](int z, int y, float **out) {
        const long at = (static_cast<long>(z) * n.y + y) * n.x;
        const float *__restrict m = moving + at;
        const float *__restrict f = fixed.image + at;
        float *__restrict o0 = out[0];
        float *__restrict o1 = out[1];
        float *__restrict o2 = out[2];
        if (fixed.weight) {
          const float *__restrict w = fixed.weight + at;
          for (int x = 0; x < n.x; ++x) {
            const float wm = w[x] * m[x];
            o0[x] = wm;
            o1[x] = wm * m[x];
            o2[x] = wm * f[x];
          }
        } else {
          for (int x = 0; x < n.x; ++x) {
            o0[x] = m[x];
            o1[x] = m[x] * m[x];
            o2[x] = m[x] * f[x];
          }
        }
      },
      [&](int z, int y, float **sum) {
        const long row = static_cast<long>(z) * n.y + y, at = row * n.x;
        const float *__restrict ic = fixed.inverse_count + at;
        const float *__restrict mu = fixed.mean + at;
        const float *__restrict iv = fixed.inverse_variance + at;
        const float *__restrict m1 = sum[0];
        const float *__restrict m2 = sum[1];
        const float *__restrict fm = sum[2];
        float *__restrict cc = sum[3];
        if (!gradient) {
#pragma omp simd
          for (int x = 0; x < n.x; ++x) {
            const float mm = m1[x] * ic[x];
            const float variance = m2[x] - m1[x] * mm, cross = fm[x] - mu[x] * m1[x];
            const float positive = variance > 0.f ? variance : 0.f;
            const float scale = ic[x] > 0.f ? ic[x] : 1.f;
            cc[x] = cross * cross * iv[x] / (positive + epsilon / scale);
          }
        } else {
          float *__restrict a = sa + at;
          float *__restrict c = sc + at;
          float *__restrict q = sq + at;
#pragma omp simd
          for (int x = 0; x < n.x; ++x) {
            const float mm = m1[x] * ic[x];
            const float variance = m2[x] - m1[x] * mm, cross = fm[x] - mu[x] * m1[x];
            const float positive = variance > 0.f ? variance : 0.f;
            const float scale = ic[x] > 0.f ? ic[x] : 1.f;
            const float im = 1.f / (positive + epsilon / scale);
            const float cv = 2.f * cross * iv[x] * im;
            const float value = 0.5f * cv * cross;
            const float qv = 2.f * value * im;
            cc[x] = value;
            a[x] = qv * mm - cv * mu[x];
            c[x] = cv;
            q[x] = -qv;
          }
        }
        rows[row] = row_sum(n.x, [&](int x) { return cc[x]; });
      });
  if (!gradient) return sum_rows(rows);
  const auto combine = [&](long at, const float *a, const float *c, const float *q) {
    const float *__restrict m = moving + at;
    const float *__restrict f = fixed.image + at;
    float *__restrict g = gradient + at;
#pragma omp simd
    for (int x = 0; x < n.x; ++x) g[x] = a[x] + f[x] * c[x] + m[x] * q[x];
    if (fixed.weight) {
      const float *__restrict w = fixed.weight + at;
      for (int x = 0; x < n.x; ++x) g[x] *= w[x];
    }
  };
  if (centre_only) {
    parallel_for(n.z, threads, [&](int z) {
      for (int y = 0; y < n.y; ++y) {
        const long at = (static_cast<long>(z) * n.y + y) * n.x;
        combine(at, sa + at, sc + at, sq + at);
      }
    });
  } else {
    box_sums<3>(
        n, radius, threads,
        [&](int z, int y, float **out) {
          const long at = (static_cast<long>(z) * n.y + y) * n.x;
          std::memcpy(out[0], sa + at, sizeof(float) * n.x);
          std::memcpy(out[1], sc + at, sizeof(float) * n.x);
          std::memcpy(out[2], sq + at, sizeof(float) * n.x);
        },
        [&](int z, int y, float **sum) {
          combine((static_cast<long>(z) * n.y + y) * n.x, sum[0], sum[1], sum[2]);
        });
  }
  return sum_rows(rows);
}

// ------------------------------------------------------------------------------------- composition on a packed lattice

void pack(const float *planar, float *packed, long count, float scale, int threads) {
  const long step = 16384;
  parallel_for(static_cast<int>((count + step - 1) / step), threads, [&](int t) {
    const long end = std::min(count, (t + 1) * step);
    for (long i = t * step; i < end; ++i) {
      store4(packed + 4 * i, V4{planar[i], planar[count + i], planar[2 * count + i], 0.f} * splat(scale));
    }
  });
}

void unpack(const float *packed, float *planar, long count, float scale, int threads) {
  const long step = 16384;
  parallel_for(static_cast<int>((count + step - 1) / step), threads, [&](int t) {
    const long end = std::min(count, (t + 1) * step);
    for (long i = t * step; i < end; ++i) {
      for (int c = 0; c < 3; ++c) planar[c * count + i] = scale * packed[4 * i + c];
    }
  });
}

struct Cell {
  long at;           // packed offset of the lower corner
  long sx, sy, sz;   // packed strides to the upper corners (0 along an axis of one)
  float fx, fy, fz;  // position within the cell
  float ox, oy, oz;  // 1 inside the grid, 0 where the position was clamped
};

inline Cell locate(Size n, float x, float y, float z) {
  const float hx = float(n.x - 1), hy = float(n.y - 1), hz = float(n.z - 1);
  const float cx = x > 0.f ? (x < hx ? x : hx) : 0.f;
  const float cy = y > 0.f ? (y < hy ? y : hy) : 0.f;
  const float cz = z > 0.f ? (z < hz ? z : hz) : 0.f;
  const int ix = std::min(int(cx), std::max(0, n.x - 2)), iy = std::min(int(cy), std::max(0, n.y - 2)),
            iz = std::min(int(cz), std::max(0, n.z - 2));
  Cell c;
  c.at = 4 * (ix + static_cast<long>(n.x) * (iy + static_cast<long>(n.y) * iz));
  c.sx = n.x > 1 ? 4 : 0;
  c.sy = n.y > 1 ? 4L * n.x : 0;
  c.sz = n.z > 1 ? 4L * n.x * n.y : 0;
  c.fx = cx - ix;
  c.fy = cy - iy;
  c.fz = cz - iz;
  c.ox = cx == x ? 1.f : 0.f;
  c.oy = cy == y ? 1.f : 0.f;
  c.oz = cz == z ? 1.f : 0.f;
  return c;
}

inline V4 interpolate(const float *p, const Cell &c) {
  const V4 fx = splat(c.fx), fy = splat(c.fy), fz = splat(c.fz);
  const float *a = p + c.at;
  const V4 v000 = load4(a), v100 = load4(a + c.sx), v010 = load4(a + c.sy), v110 = load4(a + c.sx + c.sy);
  const float *b = a + c.sz;
  const V4 v001 = load4(b), v101 = load4(b + c.sx), v011 = load4(b + c.sy), v111 = load4(b + c.sx + c.sy);
  const V4 w00 = v000 + fx * (v100 - v000), w10 = v010 + fx * (v110 - v010);
  const V4 w01 = v001 + fx * (v101 - v001), w11 = v011 + fx * (v111 - v011);
  const V4 r0 = w00 + fy * (w10 - w00), r1 = w01 + fy * (w11 - w01);
  return r0 + fz * (r1 - r0);
}

void compose(const float *outer, const float *inner, float *out, Size n, int threads) {
  parallel_for(n.z, threads, [&](int z) {
    for (int y = 0; y < n.y; ++y) {
      const long row = (static_cast<long>(z) * n.y + y) * n.x;
      for (int x = 0; x < n.x; ++x) {
        const V4 u = load4(inner + 4 * (row + x));
        const Cell c = locate(n, x + u[0], y + u[1], z + u[2]);
        store4(out + 4 * (row + x), u + interpolate(outer, c));
      }
    }
  });
}

void compose_adjoint(const float *outer, const float *inner, const float *grad, float *grad_outer, float *grad_inner,
                     Size n, int threads) {
  const bool together = grad_outer == grad_inner;
  const long plane = 4L * n.x * n.y;
  // Each slab of planes scatters into memory of its own, which covers only the planes it can reach; the slabs are
  // then added in order. Their number depends on the grid alone.
  const int slabs = std::min(8, n.z);
  std::vector<int> low(slabs), high(slabs);
  std::vector<std::vector<float>> reach(slabs);
  parallel_for(slabs, threads, [&](int s) {
    const int z0 = static_cast<int>(static_cast<long>(n.z) * s / slabs);
    const int z1 = static_cast<int>(static_cast<long>(n.z) * (s + 1) / slabs);
    float least = float(n.z - 1), most = 0.f;
    for (int z = z0; z < z1; ++z) {
      for (long i = 0; i < static_cast<long>(n.x) * n.y; ++i) {
        const float q = float(z) + inner[z * plane + 4 * i + 2];
        least = q < least ? q : least;
        most = q > most ? q : most;
      }
    }
    const int lo = std::max(0, std::min(int(std::max(least, 0.f)), n.z - 2));
    const int hi = std::max(lo, std::min(int(std::min(most, float(n.z - 1))) + 1, n.z - 1));
    low[s] = lo;
    high[s] = hi + 1;
    std::vector<float> &mine = reach[s];
    mine.assign((hi + 1 - lo) * plane, 0.f);
    float *base = mine.data() - lo * plane;
    for (int z = z0; z < z1; ++z) {
      for (int y = 0; y < n.y; ++y) {
        const long row = (static_cast<long>(z) * n.y + y) * n.x;
        for (int x = 0; x < n.x; ++x) {
          const V4 u = load4(inner + 4 * (row + x));
          const V4 g = load4(grad + 4 * (row + x));
          const Cell c = locate(n, x + u[0], y + u[1], z + u[2]);
          const float *a = outer + c.at;
          const float *b = a + c.sz;
          const float v000 = dot3(load4(a), g), v100 = dot3(load4(a + c.sx), g);
          const float v010 = dot3(load4(a + c.sy), g), v110 = dot3(load4(a + c.sx + c.sy), g);
          const float v001 = dot3(load4(b), g), v101 = dot3(load4(b + c.sx), g);
          const float v011 = dot3(load4(b + c.sy), g), v111 = dot3(load4(b + c.sx + c.sy), g);
          const float gx = 1.f - c.fx, gy = 1.f - c.fy, gz = 1.f - c.fz;
          const float d00 = v100 - v000, d10 = v110 - v010, d01 = v101 - v001, d11 = v111 - v011;
          const float w00 = v000 + c.fx * d00, w10 = v010 + c.fx * d10, w01 = v001 + c.fx * d01,
                      w11 = v011 + c.fx * d11;
          const V4 back = {c.ox * (gz * (gy * d00 + c.fy * d10) + c.fz * (gy * d01 + c.fy * d11)),
                           c.oy * (gz * (w10 - w00) + c.fz * (w11 - w01)),
                           c.oz * ((gy * w01 + c.fy * w11) - (gy * w00 + c.fy * w10)), 0.f};
          store4(grad_inner + 4 * (row + x), g + back);
          float *o = base + c.at;
          const V4 g0 = g * splat(gz), g1 = g * splat(c.fz);
          const V4 g00 = g0 * splat(gy), g10 = g0 * splat(c.fy), g01 = g1 * splat(gy), g11 = g1 * splat(c.fy);
          const V4 lx = splat(gx), hx = splat(c.fx);
          store4(o, load4(o) + g00 * lx);
          store4(o + c.sx, load4(o + c.sx) + g00 * hx);
          store4(o + c.sy, load4(o + c.sy) + g10 * lx);
          store4(o + c.sx + c.sy, load4(o + c.sx + c.sy) + g10 * hx);
          o += c.sz;
          store4(o, load4(o) + g01 * lx);
          store4(o + c.sx, load4(o + c.sx) + g01 * hx);
          store4(o + c.sy, load4(o + c.sy) + g11 * lx);
          store4(o + c.sx + c.sy, load4(o + c.sx + c.sy) + g11 * hx);
        }
      }
    }
  });
  parallel_for(n.z, threads, [&](int z) {
    float *__restrict out = grad_outer + z * plane;
    if (!together) std::fill(out, out + plane, 0.f);
    for (int s = 0; s < slabs; ++s) {
      if (z < low[s] || z >= high[s]) continue;
      const float *__restrict add = reach[s].data() + (z - low[s]) * plane;
      for (long i = 0; i < plane; ++i) out[i] += add[i];
    }
  });
}

double invert(const float *u, float *v, Size n, int iterations, float tolerance, int threads) {
  std::vector<double> worst(n.z, 0.0);
  const bool flat = n.z == 1;
  parallel_for(n.z, threads, [&](int z) {
    double most = 0;
    for (int y = 0; y < n.y; ++y) {
      const long row = (static_cast<long>(z) * n.y + y) * n.x;
      for (int x = 0; x < n.x; ++x) {
        V4 w = load4(v + 4 * (row + x)), best = w;
        float least = 1e30f;
        for (int k = 0; k <= iterations; ++k) {
          const Cell c = locate(n, x + w[0], y + w[1], z + w[2]);
          const float *a = u + c.at;
          const float *b = a + c.sz;
          const V4 fx = splat(c.fx), fy = splat(c.fy), fz = splat(c.fz);
          const V4 v000 = load4(a), v100 = load4(a + c.sx), v010 = load4(a + c.sy), v110 = load4(a + c.sx + c.sy);
          const V4 v001 = load4(b), v101 = load4(b + c.sx), v011 = load4(b + c.sy), v111 = load4(b + c.sx + c.sy);
          const V4 d00 = v100 - v000, d10 = v110 - v010, d01 = v101 - v001, d11 = v111 - v011;
          const V4 w00 = v000 + fx * d00, w10 = v010 + fx * d10, w01 = v001 + fx * d01, w11 = v011 + fx * d11;
          const V4 e0 = w10 - w00, e1 = w11 - w01;
          const V4 r0 = w00 + fy * e0, r1 = w01 + fy * e1;
          const V4 residual = w + r0 + fz * (r1 - r0);
          const float size = dot3(residual, residual);
          if (size < least) {
            least = size;
            best = w;
          }
          if (size <= tolerance * tolerance || k == iterations) break;
          const V4 t0 = d00 + fy * (d10 - d00), t1 = d01 + fy * (d11 - d01);
          const V4 jx = (t0 + fz * (t1 - t0)) * splat(c.ox), jy = (e0 + fz * (e1 - e0)) * splat(c.oy),
                   jz = (r1 - r0) * splat(c.oz);
          const double m00 = 1.0 + jx[0], m01 = jy[0], m02 = jz[0];
          const double m10 = jx[1], m11 = 1.0 + jy[1], m12 = jz[1];
          const double m20 = jx[2], m21 = jy[2], m22 = flat ? 1.0 : 1.0 + jz[2];
          const double k00 = m11 * m22 - m12 * m21, k01 = m02 * m21 - m01 * m22, k02 = m01 * m12 - m02 * m11;
          const double k10 = m12 * m20 - m10 * m22, k11 = m00 * m22 - m02 * m20, k12 = m02 * m10 - m00 * m12;
          const double k20 = m10 * m21 - m11 * m20, k21 = m01 * m20 - m00 * m21, k22 = m00 * m11 - m01 * m10;
          const double det = m00 * k00 + m01 * k10 + m02 * k20;
          V4 step;
          // Where the map is close to singular or folded, Newton's step is worthless: fall back on the fixed point.
          if (det > 0.05) {
            const float i = float(1.0 / det);
            step = V4{float(k00 * residual[0] + k01 * residual[1] + k02 * residual[2]) * i,
                      float(k10 * residual[0] + k11 * residual[1] + k12 * residual[2]) * i,
                      float(k20 * residual[0] + k21 * residual[1] + k22 * residual[2]) * i, 0.f};
            const float length = std::sqrt(dot3(step, step));
            if (length > 2.f) step *= splat(2.f / length);
          } else {
            step = residual * splat(0.5f);
          }
          w -= step;
        }
        store4(v + 4 * (row + x), best);
        most = std::max(most, double(std::sqrt(least)));
      }
    }
    worst[z] = most;
  });
  return *std::max_element(worst.begin(), worst.end());
}

// ------------------------------------------------------------------------------------------------------- regularity

// sum_a w_a sum_i (u(i + e_a) - u(i))^2 and its gradient, one component plane after another.
double diffusion(const float *u, float *gradient, int components, Size n, const double *weights, int threads) {
  const long count = n.count(), stride_y = n.x, stride_z = static_cast<long>(n.x) * n.y;
  const float wx = float(weights[0]), wy = float(weights[1]), wz = float(weights[2]);
  std::vector<double> sums(static_cast<long>(components) * n.z);
  parallel_for(components * n.z, threads, [&](int t) {
    const int z = t % n.z;
    const float *base = u + (t / n.z) * count + z * stride_z;
    float *out = gradient + (t / n.z) * count + z * stride_z;
    double total = 0;
    for (int y = 0; y < n.y; ++y) {
      const float *__restrict c = base + y * stride_y;
      // A neighbour beyond the border is the voxel itself: its difference is zero.
      const float *__restrict ya = y > 0 ? c - stride_y : c;
      const float *__restrict yb = y + 1 < n.y ? c + stride_y : c;
      const float *__restrict za = z > 0 ? c - stride_z : c;
      const float *__restrict zb = z + 1 < n.z ? c + stride_z : c;
      float *__restrict g = out + y * stride_y;
      for (int x = 0; x < n.x; ++x) g[x] = 2.f * (wy * (2.f * c[x] - ya[x] - yb[x]) + wz * (2.f * c[x] - za[x] - zb[x]));
      for (int x = 1; x < n.x; ++x) g[x] += 2.f * wx * (c[x] - c[x - 1]);
      for (int x = 0; x + 1 < n.x; ++x) g[x] += 2.f * wx * (c[x] - c[x + 1]);
      // sum of squared differences = half of u . gradient
      total += 0.5 * row_sum(n.x, [&](int x) { return c[x] * g[x]; });
    }
    sums[t] = total;
  });
  return sum_rows(sums);
}

// sum over cells of relu(margin - det(I + du))^2 by forward differences, u planar in voxels; adds nothing to
// `gradient` but overwrites it. Planes are done in two passes (even, odd): each writes to itself and the next one.
double jacobian_penalty(const float *u, float *gradient, Size n, float margin, long *folded, int threads) {
  const long count = n.count(), sy = n.x, sz = static_cast<long>(n.x) * n.y;
  std::fill(gradient, gradient + 3 * count, 0.f);
  const int cx = std::max(1, n.x - 1), cy = std::max(1, n.y - 1), cz = std::max(1, n.z - 1);
  const long dx = n.x > 1 ? 1 : 0, dy = n.y > 1 ? sy : 0, dz = n.z > 1 ? sz : 0;
  std::vector<double> sums(cz);
  std::vector<long> folds(cz);
  for (int parity = 0; parity < 2; ++parity) {
    parallel_for((cz + 1 - parity) / 2, threads, [&](int t) {
      const int z = 2 * t + parity;
      double total = 0;
      long below = 0;
      for (int y = 0; y < cy; ++y) {
        for (int x = 0; x < cx; ++x) {
          const long at = z * sz + y * sy + x;
          float m[3][3];
          for (int i = 0; i < 3; ++i) {
            const float *c = u + i * count + at;
            m[i][0] = c[dx] - c[0];
            m[i][1] = c[dy] - c[0];
            m[i][2] = c[dz] - c[0];
            m[i][i] += 1.f;
          }
          const float k00 = m[1][1] * m[2][2] - m[1][2] * m[2][1], k01 = m[1][2] * m[2][0] - m[1][0] * m[2][2],
                      k02 = m[1][0] * m[2][1] - m[1][1] * m[2][0];
          const float det = m[0][0] * k00 + m[0][1] * k01 + m[0][2] * k02;
          const float lack = margin - det;
          below += det <= 0.f;
          if (lack <= 0.f) continue;
          total += double(lack) * lack;
          const float s = -2.f * lack;
          const float k[3][3] = {{k00, k01, k02},
                                 {m[0][2] * m[2][1] - m[0][1] * m[2][2], m[0][0] * m[2][2] - m[0][2] * m[2][0],
                                  m[0][1] * m[2][0] - m[0][0] * m[2][1]},
                                 {m[0][1] * m[1][2] - m[0][2] * m[1][1], m[0][2] * m[1][0] - m[0][0] * m[1][2],
                                  m[0][0] * m[1][1] - m[0][1] * m[1][0]}};
          for (int i = 0; i < 3; ++i) {
            float *g = gradient + i * count + at;
            const float a = dx ? s * k[i][0] : 0.f, b = dy ? s * k[i][1] : 0.f, c = dz ? s * k[i][2] : 0.f;
            g[0] -= a + b + c;
            g[dx] += a;
            g[dy] += b;
            g[dz] += c;
          }
        }
      }
      sums[z] = total;
      folds[z] = below;
    });
  }
  *folded = 0;
  for (long f : folds) *folded += f;
  return sum_rows(sums);
}

}  // namespace

extern const Kernels ITK_NIR_TABLE;
const Kernels ITK_NIR_TABLE = {ITK_NIR_NAME, banded,  warp,            lncc_prepare, lncc,
                               pack,         unpack,  compose,         compose_adjoint, invert,
                               diffusion,    jacobian_penalty};

}  // namespace itk_nir
