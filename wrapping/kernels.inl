// The kernels themselves; included by one file an instruction set, inside its own namespace. Everything here has
// internal linkage, so that no inline function compiled for one set can be merged with that of another.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

#if defined(__GNUC__) && !defined(__clang__)
// Vectors wider than the registers of an instruction set have no fixed calling convention: none leaves this file.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace itk_nir {
namespace {

typedef float V4 __attribute__((vector_size(16), aligned(16)));
typedef int I4 __attribute__((vector_size(16), aligned(16)));

inline V4 load4(const float *p) {
  V4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store4(float *p, V4 v) { std::memcpy(p, &v, sizeof(v)); }
inline V4 splat(float s) { return V4{s, s, s, s}; }
// Lanes of `a` (0 … 3) and `b` (4 … 7).
template <int I, int J, int K, int L>
inline V4 shuffle(V4 a, V4 b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I, J, K, L);
#else
  return __builtin_shuffle(a, b, I4{I, J, K, L});
#endif
}
inline float dot3(V4 a, V4 b) {
  V4 p = a * b;
  return p[0] + p[1] + p[2];
}

// ---------------------------------------------------------------------------------------------------- banded matrix

// out[i] = sum_k weights[i, k] in[start[i] + k]. The taps of one row side by side in a vector, four rows at a time: their
// sums then come of a transposition.
// `Four`: there are four taps, as a cubic spline has.
template <bool Four>
void dot_rows(const float *in, float *out, int n_out, const int *start, const float *weights, int taps) {
  const auto products = [&](int i) {
    const float *s = in + start[i];
    if (Four) return load4(weights + 4 * i) * load4(s);
    const float *w = weights + static_cast<long>(i) * taps;
    V4 sum = {0, 0, 0, 0};
    int k = 0;
    for (; k + 4 <= taps; k += 4) sum += load4(w + k) * load4(s + k);
    for (; k < taps; ++k) sum[0] += w[k] * s[k];
    return sum;
  };
  int i = 0;
  for (; i + 4 <= n_out; i += 4) {
    const V4 a = products(i), b = products(i + 1), c = products(i + 2), d = products(i + 3);
    const V4 ab = shuffle<0, 4, 1, 5>(a, b) + shuffle<2, 6, 3, 7>(a, b);
    const V4 cd = shuffle<0, 4, 1, 5>(c, d) + shuffle<2, 6, 3, 7>(c, d);
    store4(out + i, shuffle<0, 1, 4, 5>(ab, cd) + shuffle<2, 3, 6, 7>(ab, cd));
  }
  for (; i < n_out; ++i) {
    const V4 a = products(i);
    out[i] = (a[0] + a[2]) + (a[1] + a[3]);
  }
}

void banded(const float *in, float *out, long outer, int n_in, int n_out, long inner, const int *start,
            const float *weights, int taps, int threads) {
  if (inner == 1) {
    const long block = std::max<long>(1, 16384 / std::max(1, n_out));
    const int tasks = static_cast<int>((outer + block - 1) / block);
    parallel_for(tasks, threads, [&](int t) {
      const long end = std::min(outer, (t + 1) * block);
      const auto rows = taps == 4 ? dot_rows<true> : dot_rows<false>;
      for (long o = t * block; o < end; ++o) rows(in + o * n_in, out + o * n_out, n_out, start, weights, taps);
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

// The adjoint of `banded` on in * factor, with the rows of the matrix itself: every input is read once, and the rows of
// `out` that it goes to are still in the first-level cache from the one before.
void banded_adjoint(const float *in, const float *factor, float *out, int outer, int n_in, int n_out, long inner,
                    const int *start, const float *weights, int taps, int threads) {
  constexpr long block = 1024;
  parallel_for(static_cast<int>((inner + block - 1) / block), threads, [&](int t) {
    const long first = t * block;
    const int n = static_cast<int>(std::min(block, inner - first));
    for (long row = 0; row < static_cast<long>(outer) * n_out; ++row) std::fill_n(out + row * inner + first, n, 0.f);
    for (int i = 0; i < n_in; ++i) {
      const float *__restrict f = factor + i * inner + first;
      const float *w = weights + static_cast<long>(i) * taps;
      for (int o = 0; o < outer; ++o) {
        const float *__restrict s = in + (static_cast<long>(o) * n_in + i) * inner + first;
        float *d = out + (static_cast<long>(o) * n_out + start[i]) * inner + first;
        int k = 0;
        for (; k + 4 <= taps; k += 4, d += 4 * inner) {
          const float w0 = w[k], w1 = w[k + 1], w2 = w[k + 2], w3 = w[k + 3];
          float *__restrict d0 = d;
          float *__restrict d1 = d + inner;
          float *__restrict d2 = d + 2 * inner;
          float *__restrict d3 = d + 3 * inner;
#pragma omp simd
          for (int j = 0; j < n; ++j) {
            const float p = f[j] * s[j];
            d0[j] += w0 * p;
            d1[j] += w1 * p;
            d2[j] += w2 * p;
            d3[j] += w3 * p;
          }
        }
        for (; k < taps; ++k, d += inner) {
          const float wk = w[k];
          float *__restrict to = d;
          for (int j = 0; j < n; ++j) to[j] += wk * (f[j] * s[j]);
        }
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------------------- warp

// Rows are done in runs: where each voxel comes from, a vector of them at a time; then a plain loop that fetches the
// eight neighbours, two at once along x (faster than gather instructions, and every instruction set has it); then the
// interpolation, again a vector at a time. `Line`: `moving` is longer than one voxel along x. `Spline`: `u` is a spline
// whose last axis is still to be evaluated.
template <bool WithGradient, bool Line, bool Spline>
void warp_rows(const float *__restrict moving, Size m, const Displacement &u, Size n, const double *index,
               const double *vector, float *__restrict warped, float *__restrict gradient, long row0, long row1) {
  constexpr int run = 64;
  const long count = n.count();
  const float a00 = float(vector[0]), a01 = float(vector[1]), a02 = float(vector[2]);
  const float a10 = float(vector[3]), a11 = float(vector[4]), a12 = float(vector[5]);
  const float a20 = float(vector[6]), a21 = float(vector[7]), a22 = float(vector[8]);
  const float tx = float(index[0]), ty = float(index[4]), tz = float(index[8]);
  const float hx = float(m.x - 1), hy = float(m.y - 1), hz = float(m.z - 1);
  const float lx = float(std::max(0, m.x - 2)), ly = float(std::max(0, m.y - 2)), lz = float(std::max(0, m.z - 2));
  const int px = m.x, pxy = m.x * m.y;
  const long sy = m.y > 1 ? px : 0, sz = m.z > 1 ? pxy : 0;
  int at[run];
  float fx[run], fy[run], fz[run], ox[run], oy[run], oz[run];
  float p00[2 * run], p10[2 * run], p01[2 * run], p11[2 * run], evaluated[Spline ? 3 * run : 1];
  for (long row = row0; row < row1; ++row) {
    const int z = static_cast<int>(row / n.y), y = static_cast<int>(row % n.y);
    const float bx = float(index[1] * y + index[2] * z + index[3]);
    const float by = float(index[5] * y + index[6] * z + index[7]);
    const float bz = float(index[9] * y + index[10] * z + index[11]);
    for (int x0 = 0; x0 < n.x; x0 += run) {
      const int length = std::min(run, n.x - x0);
      const long first = row * n.x + x0;
      if (Spline) {
        const long plane = static_cast<long>(n.x) * n.y;
        const float *w = u.weights + static_cast<long>(z) * u.taps;
        for (int c = 0; c < 3; ++c) {
          const float *nodes = u.values + (static_cast<long>(c) * u.planes + u.start[z]) * plane + y * n.x + x0;
          float *__restrict to = evaluated + c * run;
          const float first_weight = w[0];
          for (int x = 0; x < length; ++x) to[x] = first_weight * nodes[x];
          for (int k = 1; k < u.taps; ++k) {
            const float *__restrict from = nodes + k * plane;
            const float weight = w[k];
            for (int x = 0; x < length; ++x) to[x] += weight * from[x];
          }
        }
      }
      const float *__restrict ux = Spline ? evaluated : u.values + first;
      const float *__restrict uy = ux + (Spline ? run : count);
      const float *__restrict uz = uy + (Spline ? run : count);
#pragma omp simd
      for (int x = 0; x < length; ++x) {
        const float i = float(x0 + x), dx = ux[x], dy = uy[x], dz = uz[x];
        const float qx = a00 * dx + a01 * dy + a02 * dz + tx * i + bx;
        const float qy = a10 * dx + a11 * dy + a12 * dz + ty * i + by;
        const float qz = a20 * dx + a21 * dy + a22 * dz + tz * i + bz;
        const float cx = qx > 0.f ? (qx < hx ? qx : hx) : 0.f;
        const float cy = qy > 0.f ? (qy < hy ? qy : hy) : 0.f;
        const float cz = qz > 0.f ? (qz < hz ? qz : hz) : 0.f;
        const int ix = int(cx < lx ? cx : lx), iy = int(cy < ly ? cy : ly), iz = int(cz < lz ? cz : lz);
        fx[x] = cx - float(ix);
        fy[x] = cy - float(iy);
        fz[x] = cz - float(iz);
        at[x] = ix + iy * px + iz * pxy;
        if (WithGradient) {
          // Beyond the edge the value is constant.
          ox[x] = qx == cx ? 1.f : 0.f;
          oy[x] = qy == cy ? 1.f : 0.f;
          oz[x] = qz == cz ? 1.f : 0.f;
        }
      }
      for (int x = 0; x < length; ++x) {
        const float *v = moving + at[x];
        if (Line) {
          std::memcpy(p00 + 2 * x, v, 2 * sizeof(float));
          std::memcpy(p10 + 2 * x, v + sy, 2 * sizeof(float));
          std::memcpy(p01 + 2 * x, v + sz, 2 * sizeof(float));
          std::memcpy(p11 + 2 * x, v + sy + sz, 2 * sizeof(float));
        } else {
          p00[2 * x] = p00[2 * x + 1] = v[0];
          p10[2 * x] = p10[2 * x + 1] = v[sy];
          p01[2 * x] = p01[2 * x + 1] = v[sz];
          p11[2 * x] = p11[2 * x + 1] = v[sy + sz];
        }
      }
      float *__restrict out = warped + first;
      float *__restrict gx = gradient + (WithGradient ? first : 0);
      float *__restrict gy = gx + (WithGradient ? count : 0);
      float *__restrict gz = gy + (WithGradient ? count : 0);
#pragma omp simd
      for (int x = 0; x < length; ++x) {
        const float v00 = p00[2 * x], v10 = p10[2 * x], v01 = p01[2 * x], v11 = p11[2 * x];
        const float d00 = p00[2 * x + 1] - v00, d10 = p10[2 * x + 1] - v10;
        const float d01 = p01[2 * x + 1] - v01, d11 = p11[2 * x + 1] - v11;
        const float w00 = v00 + fx[x] * d00, w10 = v10 + fx[x] * d10;
        const float w01 = v01 + fx[x] * d01, w11 = v11 + fx[x] * d11;
        const float e0 = w10 - w00, e1 = w11 - w01;
        const float r0 = w00 + fy[x] * e0, r1 = w01 + fy[x] * e1;
        out[x] = r0 + fz[x] * (r1 - r0);
        if (WithGradient) {
          const float t0 = d00 + fy[x] * (d10 - d00), t1 = d01 + fy[x] * (d11 - d01);
          const float mx = ox[x] * (t0 + fz[x] * (t1 - t0));
          const float my = oy[x] * (e0 + fz[x] * (e1 - e0));
          const float mz = oz[x] * (r1 - r0);
          gx[x] = a00 * mx + a10 * my + a20 * mz;
          gy[x] = a01 * mx + a11 * my + a21 * mz;
          gz[x] = a02 * mx + a12 * my + a22 * mz;
        }
      }
    }
  }
}

template <bool WithGradient, bool Spline>
auto warp_rows_of(bool line) {
  return line ? warp_rows<WithGradient, true, Spline> : warp_rows<WithGradient, false, Spline>;
}

void warp(const float *moving, Size m, const Displacement &u, Size n, const double *index, const double *vector,
          float *warped, float *gradient, int threads) {
  const bool line = m.x > 1;
  const auto rows_of = u.taps ? (gradient ? warp_rows_of<true, true>(line) : warp_rows_of<false, true>(line))
                              : (gradient ? warp_rows_of<true, false>(line) : warp_rows_of<false, false>(line));
  const long rows = static_cast<long>(n.y) * n.z;
  const long step = std::max<long>(1, 16384 / n.x);
  const int tasks = static_cast<int>((rows + step - 1) / step);
  parallel_for(tasks, threads, [&](int t) {
    rows_of(moving, m, u, n, index, vector, warped, gradient, t * step, std::min(rows, (t + 1) * step));
  });
}

// ------------------------------------------------------------------------------------------------------- box sums

// Sums of Q quantities over (2r+1)^3 windows cut at the border of the image, a tile of the volume at a time.
//   fill(z, y, rows): writes the Q quantities of one image row into rows[0..Q-1].
//   use(z, y, rows): gets the Q rows of window sums centred on (z, y), and one spare row to write to.
//
// Along x each window is summed directly. Along y and z the axis is cut into blocks as long as the window, so that a
// window is the end of one block and the start of the next: the sum of the starts runs along with the data, the sums
// of the ends are made when a block is complete (van Herk, Pattern Recognit. Lett. 13(7), 1992; Gil and Werman, IEEE
// TPAMI 15(5), 1993, there for maxima). Nothing is ever subtracted, so no error builds up, and as the blocks are those
// of the whole image, no sum depends on the tiles.
template <int W, int Q, class Fill, class Use>
void box_tile(Size n, int radius, int y0, int y1, int z0, int z1, const Fill &fill, const Use &use) {
  const int width = 2 * radius + 1;
  const int ya = std::max(0, y0 - radius), za = std::max(0, z0 - radius);
  // Rows are padded to whole vectors: no loop has a remainder.
  const int row = (n.x + 15) / 16 * 16, pad = row + (2 * radius + 15) / 16 * 16;
  const long block = static_cast<long>(Q) * row;  // one row of all quantities
  const long tile = (y1 - y0) * block;
  // The scratch of a thread lives as long as the thread: allocating it anew for every tile costs page faults.
  thread_local std::vector<float> buffer;
  const long need = Q * pad + (width + 1) * block + (width + 1) * tile + block + 2 * row + 16;
  if (static_cast<long>(buffer.size()) < need) buffer.resize(need);
  float *const input = buffer.data() + (64 - reinterpret_cast<std::uintptr_t>(buffer.data()) % 64) % 64 / sizeof(float);
  float *const ring_y = input + Q * pad, *const start_y = ring_y + width * block;
  float *const ring_z = start_y + block, *const start_z = ring_z + width * tile;
  float *const sums = start_z + tile, *const zero = sums + block + row;
  std::fill(input, input + Q * pad, 0.f);
  std::fill(zero, zero + row, 0.f);
  float *inside[Q], *out[Q + 1];
  for (int q = 0; q < Q; ++q) inside[q] = input + static_cast<long>(q) * pad + radius;
  for (int q = 0; q <= Q; ++q) out[q] = sums + static_cast<long>(q) * row;
  // Turns a complete block of rows into the sums from each of them to the last.
  const auto make_ends = [&](float *ring, long stride, int from) {
    for (int q = 0; q < Q; ++q) {
      for (int j = width - 2; j >= from; --j) {
        float *__restrict a = ring + j * stride + static_cast<long>(q) * row;
        const float *__restrict b = a + stride;
        for (int x = 0; x < row; ++x) a[x] += b[x];
      }
    }
  };
  for (int z = za; z < z1 + radius; ++z) {
    const int kz = z % width, centre_z = z - radius;
    const bool first_z = kz == 0 || z == za, ends_z = kz < width - 1 && z - width + 1 >= 0;
    const bool wanted = centre_z >= z0;
    float *const slot_z = ring_z + kz * tile;
    for (int y = z < n.z ? ya : y0 + radius; y < y1 + radius; ++y) {
      const int ky = y % width, centre = y - radius;
      const bool first_y = ky == 0 || y == ya, ends_y = ky < width - 1 && y - width + 1 >= 0;
      const long at = (centre - y0) * block;
      const bool image = z < n.z && y < n.y;
      if (image) fill(z, y, inside);
      for (int q = 0; q < Q; ++q) {
        const long shift = static_cast<long>(q) * row;
        const float *__restrict in = input + static_cast<long>(q) * pad;
        float *__restrict slot = ring_y + ky * block + shift;
        float *__restrict run = start_y + shift;
        const float *__restrict end = ends_y ? ring_y + (ky + 1) * block + shift : zero;
        float *__restrict slab = slot_z + at + shift;
        float *__restrict run_z = start_z + at + shift;
        const float *end_z = ends_z ? slot_z + tile + at + shift : zero;
        float *__restrict total = out[q];
        if (z >= n.z) {
          for (int x = 0; x < row; ++x) slab[x] = 0.f;
        } else {
          if (!image) {
            for (int x = 0; x < row; ++x) slot[x] = 0.f;
          } else if constexpr (W > 0) {
#pragma omp simd
            for (int x = 0; x < row; ++x) {
              float s = in[x];
              for (int k = 1; k < W; ++k) s += in[x + k];
              slot[x] = s;
            }
          } else {
            std::memcpy(slot, in, sizeof(float) * row);
            for (int k = 1; k < width; ++k) {
              for (int x = 0; x < row; ++x) slot[x] += in[x + k];
            }
          }
          if (first_y) {
            std::memcpy(run, slot, sizeof(float) * row);
          } else {
            for (int x = 0; x < row; ++x) run[x] += slot[x];
          }
          if (centre < y0) continue;
          for (int x = 0; x < row; ++x) slab[x] = run[x] + end[x];
        }
        if (first_z) {
          for (int x = 0; x < row; ++x) {
            const float s = slab[x];
            run_z[x] = s;
            total[x] = s + end_z[x];
          }
        } else {
          for (int x = 0; x < row; ++x) {
            const float s = run_z[x] + slab[x];
            run_z[x] = s;
            total[x] = s + end_z[x];
          }
        }
      }
      if (centre >= y0) {
        if (wanted) use(centre_z, centre, out);
        if (kz == width - 1) make_ends(ring_z + at, tile, std::max(0, kz - (z - za)));
      }
      if (ky == width - 1 && z < n.z) make_ends(ring_y, block, std::max(0, ky - (y - ya)));
    }
  }
}

template <int Q, class Fill, class Use>
void box_sums(Size n, int radius, int threads, const Fill &fill, const Use &use) {
  // What a tile works on should stay in the second-level cache; no more tiles than keep the threads busy, as every
  // tile repeats some work at its border. (The sums do not depend on the tiles.)
  const int rows = n.x > 256 ? 16 : 32;
  const int ty = (n.y + rows - 1) / rows;
  const int tz = threads > 1 ? std::max(1, std::min(n.z / 16, (4 * threads + ty - 1) / ty)) : 1;
  parallel_for(ty * tz, threads, [&](int t) {
    const int iy = t % ty, iz = t / ty;
    const int y0 = static_cast<int>(static_cast<long>(n.y) * iy / ty);
    const int y1 = static_cast<int>(static_cast<long>(n.y) * (iy + 1) / ty);
    const int z0 = static_cast<int>(static_cast<long>(n.z) * iz / tz);
    const int z1 = static_cast<int>(static_cast<long>(n.z) * (iz + 1) / tz);
    switch (radius) {
      case 1: box_tile<3, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 2: box_tile<5, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 3: box_tile<7, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 4: box_tile<9, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 5: box_tile<11, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 6: box_tile<13, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 7: box_tile<15, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 8: box_tile<17, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
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
  const float least = std::max(epsilon, 1e-30f);
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
            cc[x] = cross * cross * iv[x] * (ic[x] / (positive * ic[x] + least));
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
            const float im = ic[x] / (positive * ic[x] + least);
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

// The same for a run of points along x, a component at a time.
struct Cells {
  static constexpr int run = 64;
  int at[run];  // lower corner, in points
  float fx[run], fy[run], fz[run];

  // Points (x, y, z) … (x + length - 1, y, z) displaced by `u`, packed. `low` is a lower bound of the plane of all of
  // them; only a displacement that is not a number comes to lie below it.
  void locate(Size n, const float *__restrict u, int length, int x, int y, int z, float low) {
    const float hx = float(n.x - 1), hy = float(n.y - 1), hz = float(n.z - 1);
    const float lx = float(std::max(0, n.x - 2)), ly = float(std::max(0, n.y - 2)), lz = float(std::max(0, n.z - 2));
    const float x0 = float(x), y0 = float(y), z0 = float(z);
    const int sy = n.x, sz = n.x * n.y;
#pragma omp simd
    for (int i = 0; i < length; ++i) {
      const float px = u[4 * i] + (x0 + float(i)), py = u[4 * i + 1] + y0, pz = u[4 * i + 2] + z0;
      const float cx = px > 0.f ? (px < hx ? px : hx) : 0.f;
      const float cy = py > 0.f ? (py < hy ? py : hy) : 0.f;
      const float cz = pz > low ? (pz < hz ? pz : hz) : low;
      const int ix = int(cx < lx ? cx : lx), iy = int(cy < ly ? cy : ly), iz = int(cz < lz ? cz : lz);
      at[i] = ix + sy * iy + sz * iz;
      fx[i] = cx - float(ix);
      fy[i] = cy - float(iy);
      fz[i] = cz - float(iz);
    }
  }
};

// A point and its neighbour along x, side by side.
typedef float V8 __attribute__((vector_size(32), aligned(32)));

inline V8 load8(const float *p) {
  V8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// The neighbour of an axis of one point is the point itself.
template <bool Line>
inline V8 load_pair(const float *p) {
  if (Line) return load8(p);
  const V4 a = load4(p);
  return V8{a[0], a[1], a[2], a[3], a[0], a[1], a[2], a[3]};
}
inline V8 splat8(float s) { return V8{s, s, s, s, s, s, s, s}; }
inline V8 pair(V4 a, V4 b) { return V8{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}; }
inline V4 lower(V8 a) { return V4{a[0], a[1], a[2], a[3]}; }
inline V4 upper(V8 a) { return V4{a[4], a[5], a[6], a[7]}; }

template <bool Line>
void compose_plane(const float *__restrict outer, const float *__restrict inner, float *__restrict out, Size n, int z) {
  const long sy = n.y > 1 ? 4L * n.x : 0, sz = n.z > 1 ? 4L * n.x * n.y : 0;
  Cells c;
  for (int y = 0; y < n.y; ++y) {
    const long row = (static_cast<long>(z) * n.y + y) * n.x;
    for (int x = 0; x < n.x; x += Cells::run) {
      const int length = std::min(Cells::run, n.x - x);
      const float *u = inner + 4 * (row + x);
      float *o = out + 4 * (row + x);
      c.locate(n, u, length, x, y, z, 0.f);
      for (int i = 0; i < length; ++i) {
        const float *a = outer + 4L * c.at[i];
        const float *b = a + sz;
        const V8 fz = splat8(c.fz[i]);
        const V8 p00 = load_pair<Line>(a), p10 = load_pair<Line>(a + sy);
        const V8 p01 = load_pair<Line>(b), p11 = load_pair<Line>(b + sy);
        const V8 r0 = p00 + fz * (p01 - p00), r1 = p10 + fz * (p11 - p10);
        const V8 r = r0 + splat8(c.fy[i]) * (r1 - r0);
        const V4 low = lower(r);
        store4(o + 4 * i, load4(u + 4 * i) + low + splat(c.fx[i]) * (upper(r) - low));
      }
    }
  }
}

void compose(const float *outer, const float *inner, float *out, Size n, int threads) {
  parallel_for(n.z, threads, [&](int z) {
    if (n.x > 1) {
      compose_plane<true>(outer, inner, out, n, z);
    } else {
      compose_plane<false>(outer, inner, out, n, z);
    }
  });
}

// One plane of the adjoint: the gradient by the inner field goes to `grad_inner`, that by the outer one is added to
// `base`, which stands for the first point of the grid, unless that is null.
template <bool Line, bool Scatter>
void compose_adjoint_plane(const float *__restrict outer, const float *__restrict inner, const float *__restrict grad,
                           float *__restrict base, float *__restrict grad_inner, Size n, int z, float lowest) {
  const long sx = n.x > 1 ? 4 : 0, sy = n.y > 1 ? 4L * n.x : 0, sz = n.z > 1 ? 4L * n.x * n.y : 0;
  // Nothing is inside in the lane that pads.
  const V4 top = {float(n.x - 1), float(n.y - 1), float(n.z - 1), -1.f};
  Cells c;
  for (int y = 0; y < n.y; ++y) {
    const long row = (static_cast<long>(z) * n.y + y) * n.x;
    for (int x = 0; x < n.x; x += Cells::run) {
      const int length = std::min(Cells::run, n.x - x);
      const float *u = inner + 4 * (row + x);
      c.locate(n, u, length, x, y, z, lowest);
      V4 here = {float(x), float(y), float(z), 0.f};
      for (int i = 0; i < length; ++i) {
        const long at = 4L * c.at[i];
        const float *a = outer + at;
        const float *b = a + sz;
        const V4 g = load4(grad + 4 * (row + x + i)) * V4{1.f, 1.f, 1.f, 0.f};
        const V4 fx = splat(c.fx[i]);
        const V8 fy = splat8(c.fy[i]), fz = splat8(c.fz[i]);
        const V8 p00 = load_pair<Line>(a), p10 = load_pair<Line>(a + sy);
        const V8 p01 = load_pair<Line>(b), p11 = load_pair<Line>(b + sy);
        const V8 z0 = p01 - p00, z1 = p11 - p10;
        const V8 r0 = p00 + fz * z0, r1 = p10 + fz * z1, dy = r1 - r0;
        const V8 r = r0 + fy * dy, dz = z0 + fy * (z1 - z0);
        // g, shared out to the lower and the upper neighbour along x.
        const V4 g_high = g * fx, g_low = g - g_high;
        const V8 shares = pair(g_low, g_high);
        const V8 ty = dy * shares, tz = dz * shares;
        const V4 bx = (upper(r) - lower(r)) * g, by = lower(ty) + upper(ty), bz = lower(tz) + upper(tz);
        // The sums of the lanes of bx, by and bz, side by side.
        const V4 sxy = shuffle<0, 4, 1, 5>(bx, by) + shuffle<2, 6, 3, 7>(bx, by);
        const V4 szz = bz + shuffle<2, 3, 0, 1>(bz, bz);
        const V4 back = shuffle<0, 1, 4, 4>(sxy, szz) + shuffle<2, 3, 5, 5>(sxy, szz);
        const V4 q = here + load4(u + 4 * i);
        // Beyond the edge the field is constant.
        const I4 inside = (q >= splat(0.f)) & (q <= top);
        store4(grad_inner + 4 * (row + x + i), g + reinterpret_cast<V4>(reinterpret_cast<I4>(back) & inside));
        here += V4{1.f, 0.f, 0.f, 0.f};
        if constexpr (!Scatter) continue;
        const V8 s1 = shares * fz, s0 = shares - s1;
        const V8 s10 = s0 * fy, s00 = s0 - s10, s11 = s1 * fy, s01 = s1 - s11;
        float *o = base + at;
        store4(o, load4(o) + lower(s00));
        store4(o + sx, load4(o + sx) + upper(s00));
        store4(o + sy, load4(o + sy) + lower(s10));
        store4(o + sy + sx, load4(o + sy + sx) + upper(s10));
        o += sz;
        store4(o, load4(o) + lower(s01));
        store4(o + sx, load4(o + sx) + upper(s01));
        store4(o + sy, load4(o + sy) + lower(s11));
        store4(o + sy + sx, load4(o + sy + sx) + upper(s11));
      }
    }
  }
}

void compose_adjoint(const float *outer, const float *inner, const float *grad, float *grad_outer, float *grad_inner,
                     Size n, int threads) {
  const bool together = grad_outer == grad_inner;
  const long plane = 4L * n.x * n.y;
  if (grad_outer == nullptr) {  // only the inner field is wanted: nothing to scatter
    parallel_for(n.z, threads, [&](int z) {
      const auto adjoint = n.x > 1 ? compose_adjoint_plane<true, false> : compose_adjoint_plane<false, false>;
      adjoint(outer, inner, grad, nullptr, grad_inner, n, z, 0.f);
    });
    return;
  }
  // Each slab of planes scatters into memory of its own, which covers only the planes it can reach; the slabs are
  // then added in order. Their number depends on the grid alone.
  const int slabs = std::min(8, n.z);
  std::vector<int> low(slabs), high(slabs);
  std::vector<long> offset(slabs + 1, 0);
  const auto first_plane = [&](int s) { return static_cast<int>(static_cast<long>(n.z) * s / slabs); };
  parallel_for(slabs, threads, [&](int s) {
    float least = float(n.z - 1), most = 0.f;
    for (int z = first_plane(s); z < first_plane(s + 1); ++z) {
      V4 smallest = splat(1e30f), largest = splat(-1e30f);
      for (long i = 0; i < static_cast<long>(n.x) * n.y; ++i) {
        const V4 u = load4(inner + z * plane + 4 * i);
        smallest = u < smallest ? u : smallest;
        largest = u > largest ? u : largest;
      }
      least = std::min(least, float(z) + smallest[2]);
      most = std::max(most, float(z) + largest[2]);
    }
    const int lo = std::max(0, std::min(int(std::max(least, 0.f)), n.z - 2));
    low[s] = lo;
    high[s] = std::min(n.z, std::max(int(std::min(most, float(n.z - 1))), lo) + 2);
  });
  for (int s = 0; s < slabs; ++s) offset[s + 1] = offset[s] + (high[s] - low[s]) * plane;
  // Kept by the calling thread: allocating it anew for every call costs page faults.
  thread_local std::vector<float> kept;
  if (static_cast<long>(kept.size()) < offset[slabs]) kept.resize(offset[slabs]);
  float *const reach = kept.data();
  parallel_for(slabs, threads, [&](int s) {
    std::fill(reach + offset[s], reach + offset[s + 1], 0.f);
    float *base = reach + offset[s] - low[s] * plane;
    for (int z = first_plane(s); z < first_plane(s + 1); ++z) {
      if (n.x > 1) {
        compose_adjoint_plane<true, true>(outer, inner, grad, base, grad_inner, n, z, float(low[s]));
      } else {
        compose_adjoint_plane<false, true>(outer, inner, grad, base, grad_inner, n, z, float(low[s]));
      }
    }
  });
  parallel_for(n.z, threads, [&](int z) {
    float *__restrict out = grad_outer + z * plane;
    bool empty = !together;
    for (int s = 0; s < slabs; ++s) {
      if (z < low[s] || z >= high[s]) continue;
      const float *__restrict add = reach + offset[s] + (z - low[s]) * plane;
      if (empty) {
        std::memcpy(out, add, sizeof(float) * plane);
      } else {
        for (long i = 0; i < plane; ++i) out[i] += add[i];
      }
      empty = false;
    }
    if (empty) std::fill(out, out + plane, 0.f);
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

// sum_i s^2 log(1 + g_i / s^2) and its gradient, g_i = sum_a w_a |u(i + e_a) - u(i)|^2 over all components, inverse =
// 1 / s^2: ordinary diffusion whose differences at a node are weighted by 1 / (1 + g_i / s^2). A task is a block of
// planes and rows, with the weights of one plane and one row before it made again: only two planes of them are held.
double robust_diffusion(const float *u, float *gradient, int components, Size n, const double *weights, float inverse,
                        int threads) {
  const long count = n.count(), stride_y = n.x, stride_z = static_cast<long>(n.x) * n.y;
  const float wx = float(weights[0]), wy = float(weights[1]), wz = float(weights[2]);
  const int depth = 8, height = 32, last = n.x - 1, lanes = 16;
  const int blocks_y = (n.y + height - 1) / height, blocks_z = (n.z + depth - 1) / depth;
  const long width = static_cast<long>(lanes) * ((n.x + lanes - 1) / lanes);
  std::vector<double> sums(static_cast<long>(blocks_y) * blocks_z);
  parallel_for(blocks_y * blocks_z, threads, [&](int t) {
    const int y0 = (t % blocks_y) * height, y1 = std::min(n.y, y0 + height);
    const int z0 = (t / blocks_y) * depth, z1 = std::min(n.z, z0 + depth);
    thread_local std::vector<float> buffer;
    const size_t needed = static_cast<size_t>(width * (1 + 2 * (height + 1)));
    if (buffer.size() < needed) buffer.resize(needed);
    float *__restrict ratio = buffer.data();  // g / s^2 of one row, filled up with zeros
    const auto weight_row = [&](int z, int y) { return ratio + width * (1 + (z & 1) * (height + 1) + y - y0 + 1); };
    std::fill(ratio, ratio + width, 0.f);
    // The product of 1 + ratio over many nodes, less one (small ratios keep their digits), before one logarithm. Eight
    // floats, each below 2^128, cannot overflow a double.
    double product[lanes] = {0}, total = 0;
    int factors = 0;
    const auto take_logarithms = [&] {
      // log(1 + p), made good for what 1 + p rounds away; log1p is several times slower.
      for (double &p : product) {
        const double q = 1 + p;
        total += std::log(q) + (p - (q - 1)) / q;
        p = 0;
      }
      factors = 0;
    };
    for (int z = std::max(0, z0 - 1); z < z1; ++z) {
      for (int y = z < z0 ? y0 : std::max(0, y0 - 1); y < y1; ++y) {
        const long at = z * stride_z + y * stride_y;
        // A neighbour beyond the border is the voxel itself: its difference is zero.
        const long up_y = y + 1 < n.y ? stride_y : 0, up_z = z + 1 < n.z ? stride_z : 0;
        for (int k = 0; k < components; ++k) {
          const float *__restrict c = u + k * count + at;
          const float *__restrict cy = c + up_y, *__restrict cz = c + up_z;
          const auto squares = [&](int x, float after) {
            const float dx = after - c[x], dy = cy[x] - c[x], dz = cz[x] - c[x];
            return (wx * dx * dx + wy * dy * dy + wz * dz * dz) * inverse;
          };
          if (k == 0) {
#pragma omp simd
            for (int x = 0; x < last; ++x) ratio[x] = squares(x, c[x + 1]);
            ratio[last] = squares(last, c[last]);
          } else {
#pragma omp simd
            for (int x = 0; x < last; ++x) ratio[x] += squares(x, c[x + 1]);
            ratio[last] += squares(last, c[last]);
          }
        }
        float *__restrict w = weight_row(z, y);
#pragma omp simd
        for (int x = 0; x < n.x; ++x) w[x] = 1.f / (1.f + ratio[x]);
        if (z < z0 || y < y0) continue;
        for (long x = 0; x < width; x += lanes) {
#pragma omp simd
          for (int j = 0; j < lanes; ++j) {
            const double r = ratio[x + j];
            product[j] += r + product[j] * r;
          }
          if (++factors == 8) take_logarithms();
        }
      }
      if (z < z0) continue;
      for (int y = y0; y < y1; ++y) {
        const long at = z * stride_z + y * stride_y;
        const float *__restrict w = weight_row(z, y);
        const float *__restrict wya = y > 0 ? weight_row(z, y - 1) : w;
        const float *__restrict wza = z > 0 ? weight_row(z - 1, y) : w;
        const long down_y = y > 0 ? stride_y : 0, up_y = y + 1 < n.y ? stride_y : 0;
        const long down_z = z > 0 ? stride_z : 0, up_z = z + 1 < n.z ? stride_z : 0;
        for (int k = 0; k < components; ++k) {
          const float *__restrict c = u + k * count + at;
          const float *__restrict ya = c - down_y, *__restrict yb = c + up_y;
          const float *__restrict za = c - down_z, *__restrict zb = c + up_z;
          float *__restrict g = gradient + k * count + at;
          const auto slope = [&](int x, float before, float after, float weight) {
            const float m = c[x];
            const float in = wx * weight * (m - before) + wy * wya[x] * (m - ya[x]) + wz * wza[x] * (m - za[x]);
            const float out = wx * (after - m) + wy * (yb[x] - m) + wz * (zb[x] - m);
            return 2.f * (in - w[x] * out);
          };
          g[0] = slope(0, c[0], c[std::min(1, last)], 0.f);
#pragma omp simd
          for (int x = 1; x < last; ++x) g[x] = slope(x, c[x - 1], c[x + 1], w[x - 1]);
          if (last > 0) g[last] = slope(last, c[last - 1], c[last], w[last - 1]);
        }
      }
    }
    take_logarithms();
    sums[t] = total;
  });
  return sum_rows(sums) / inverse;
}

// sum_a w_a sum_i (u(i + e_a) - u(i))^2 and its gradient, one component plane after another.
double diffusion(const float *u, float *gradient, int components, Size n, const double *weights, double scale,
                 int threads) {
  // Below this, the logarithm is its argument to rounding, and the scale is soon too large for the floats.
  const float inverse = float(1 / (scale * scale));
  if (inverse > 1e-30f) return robust_diffusion(u, gradient, components, n, weights, inverse, threads);
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
      const auto slope = [&](int x, float before, float after) {
        const float twice = 2.f * c[x];
        return 2.f * (wx * (twice - before - after) + wy * (twice - ya[x] - yb[x]) + wz * (twice - za[x] - zb[x]));
      };
      const int last = n.x - 1;
      g[0] = slope(0, c[0], c[std::min(1, last)]);
#pragma omp simd
      for (int x = 1; x < last; ++x) g[x] = slope(x, c[x - 1], c[x + 1]);
      if (last > 0) g[last] = slope(last, c[last - 1], c[last]);
      // sum of squared differences = half of u . gradient
      total += 0.5 * row_sum(n.x, [&](int x) { return c[x] * g[x]; });
    }
    sums[t] = total;
  });
  return sum_rows(sums);
}

// sum over cells of relu(margin - det(I + du))^2, u planar in voxels; overwrites `gradient`. The differences are taken
// from one corner of each cell: bit a of `corner` says whether it is the upper one along axis a. Planes are done in two
// passes (even, odd): each writes to itself and to the next one.
double jacobian_penalty(const float *u, float *gradient, Size n, float margin, int corner, int threads) {
  const long count = n.count(), sy = n.x, sz = static_cast<long>(n.x) * n.y;
  const int cx = std::max(1, n.x - 1), cy = std::max(1, n.y - 1), cz = std::max(1, n.z - 1);
  const long dx = n.x > 1 ? 1 : 0, dy = n.y > 1 ? sy : 0, dz = n.z > 1 ? sz : 0;
  const long ox = corner & 1 ? dx : 0, oy = corner & 2 ? dy : 0, oz = corner & 4 ? dz : 0;
  // From the chosen corner: the lower and the upper end of each difference.
  const long low[3] = {oy + oz, ox + oz, ox + oy}, high[3] = {oy + oz + dx, ox + oz + dy, ox + oy + dz};
  parallel_for(3 * n.z, threads, [&](int t) {
    float *g = gradient + (t / n.z) * count + (t % n.z) * sz;
    std::fill(g, g + sz, 0.f);
  });
  std::vector<double> sums(cz, 0.0);
  for (int parity = 0; parity < 2; ++parity) {
    parallel_for((cz + 1 - parity) / 2, threads, [&](int t) {
      const int z = 2 * t + parity;
      thread_local std::vector<float> lack;
      if (static_cast<int>(lack.size()) < cx) lack.resize(cx);
      float *__restrict row = lack.data();
      double total = 0;
      for (int y = 0; y < cy; ++y) {
        const long base = z * sz + y * sy;
        const float *__restrict p = u + base;
        float worst = 0.f;
#pragma omp simd reduction(max : worst)
        for (int x = 0; x < cx; ++x) {
          float m[3][3];
          for (int i = 0; i < 3; ++i) {
            for (int a = 0; a < 3; ++a) m[i][a] = p[i * count + high[a] + x] - p[i * count + low[a] + x];
            m[i][i] += 1.f;
          }
          const float det = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) +
                            m[0][1] * (m[1][2] * m[2][0] - m[1][0] * m[2][2]) +
                            m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
          row[x] = margin - det;
          worst = row[x] > worst ? row[x] : worst;
        }
        if (!(worst > 0.f)) continue;
        for (int x = 0; x < cx; ++x) {
          if (!(row[x] > 0.f)) continue;
          const long at = base + x;
          float m[3][3];
          for (int i = 0; i < 3; ++i) {
            for (int a = 0; a < 3; ++a) m[i][a] = u[i * count + at + high[a]] - u[i * count + at + low[a]];
            m[i][i] += 1.f;
          }
          total += double(row[x]) * row[x];
          const float s = -2.f * row[x];
          for (int i = 0; i < 3; ++i) {
            const float *b = m[(i + 1) % 3], *c = m[(i + 2) % 3];
            float *g = gradient + i * count + at;
            for (int a = 0; a < 3; ++a) {
              if (high[a] == low[a]) continue;
              const int e = (a + 1) % 3, f = (a + 2) % 3;
              const float cofactor = s * (b[e] * c[f] - b[f] * c[e]);
              g[high[a]] += cofactor;
              g[low[a]] -= cofactor;
            }
          }
        }
      }
      sums[z] = total;
    });
  }
  return sum_rows(sums);
}

}  // namespace

extern const Kernels ITK_NIR_TABLE;
const Kernels ITK_NIR_TABLE = {ITK_NIR_NAME, banded, banded_adjoint, warp,            lncc_prepare, lncc,
                               pack,         unpack,  compose,         compose_adjoint, invert,
                               diffusion,    jacobian_penalty};

}  // namespace itk_nir
