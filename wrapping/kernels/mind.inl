// Modality independent neighbourhood descriptors with the self-similarity context (MIND-SSC: Heinrich et al., MICCAI
// 2013), by window sums (box.inl), and their difference through a displacement field and a linear map (warp.inl).

// Twelve channels in 3D, four in 2D, and zeros: a voxel is one load.
constexpr int descriptor_bytes = 16;

// From a voxel to one of its neighbours: whole voxels down, and the share of the next one up.
struct Shift {
  int x, y, z;
  float fx, fy, fz;
};

inline Shift shift_along(const double *offsets, int axis, double sign) {
  double low[3], share[3];
  for (int a = 0; a < 3; ++a) {
    const double step = sign * offsets[3 * a + axis];
    low[a] = std::floor(step);
    share[a] = step - low[a];
  }
  return {int(low[0]), int(low[1]), int(low[2]), float(share[0]), float(share[1]), float(share[2])};
}

// One row of the image seen through a shift: trilinear, the value at the edge beyond it. `row` is scratch. Every step
// is a + f (b - a): a constant stays what it is, to the bit.
inline void shifted_row(const float *image, Size n, int z, int y, const Shift &s, float *__restrict row,
                        float *__restrict out) {
  const auto within = [](int i, int size) { return std::max(0, std::min(i, size - 1)); };
  const auto at = [&](int dz, int dy) {
    const long plane = within(z + s.z + dz, n.z);
    return image + (plane * n.y + within(y + s.y + dy, n.y)) * n.x;
  };
  const float *const r00 = at(0, 0), *const r01 = at(0, 1), *const r10 = at(1, 0), *const r11 = at(1, 1);
  const float *from = r00;
  if (s.fy != 0.f || s.fz != 0.f) {
#pragma omp simd
    for (int x = 0; x < n.x; ++x) {
      const float a = r00[x] + s.fy * (r01[x] - r00[x]), b = r10[x] + s.fy * (r11[x] - r10[x]);
      row[x] = a + s.fz * (b - a);
    }
    from = row;
  }
  // Between the voxels whose two sources along x lie both in the row.
  const int first = std::max(0, std::min(-s.x, n.x)), last = std::max(first, std::min(n.x - 1 - s.x, n.x));
  for (int x = 0; x < first; ++x) out[x] = from[0];
  const float *const source = from + s.x;
#pragma omp simd
  for (int x = first; x < last; ++x) out[x] = source[x] + s.fx * (source[x + 1] - source[x]);
  for (int x = last; x < n.x; ++x) out[x] = from[n.x - 1];
}

// exp(-t) for t >= 0, to 3e-6: what eight bits need many times over.
inline float exp_of_minus(float t) {
  const float y = (t < 80.f ? t : 80.f) * 1.44269504f;
  const int whole = int(y + 0.5f);
  const float r = float(whole) - y;  // the logarithm to base 2, -1/2 to 1/2, by its series
  float p = 1.33335581e-3f;
  p = p * r + 9.61812911e-3f;
  p = p * r + 5.55041087e-2f;
  p = p * r + 0.240226507f;
  p = p * r + 0.693147181f;
  p = p * r + 1.f;
  const int bits = (127 - whole) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// The 4 (Q = 4) or 12 mean squared differences D over a window, between neighbours at right angles, less the smallest;
// their mean is the variance V. Without `descriptors` the sum of V over the image is returned; with them exp(-D / V) is
// written, with V between `least` and `most`. Done anew each time: to keep twelve D a voxel would take more memory than
// anything else in a registration.
template <int Q>
double mind_pass(const float *image, Size n, const Shift *neighbours, int radius, float least, float most,
                 std::uint8_t *descriptors, int threads) {
  constexpr int axes = Q == 4 ? 2 : 3, words = Q / 4;
  // Smaller tiles than those of box_sums, as there are more quantities: they too should stay in the second-level cache.
  // Wide windows ask for larger ones, as every tile repeats the work of `2 radius` rows and planes.
  const int lines = std::max(8, 2 * radius), planes = std::max(32, 8 * radius);
  const int ty = (n.y + lines - 1) / lines, tz = (n.z + planes - 1) / planes;
  const auto inside = [radius](int i, int size) {
    return float(std::min(i, radius) + 1 + std::min(size - 1 - i, radius));
  };
  std::vector<float> inverse(n.x);  // 1 / the voxels of a window, along x
  for (int x = 0; x < n.x; ++x) inverse[x] = 1.f / inside(x, n.x);
  std::vector<double> rows(descriptors ? 0 : static_cast<long>(n.y) * n.z);
  parallel_for(ty * tz, threads, [&](int t) {
    std::vector<float> scratch(static_cast<long>(2 * axes + 2) * n.x);
    std::vector<int> packed(static_cast<long>(words) * n.x);
    float *const row = scratch.data() + 2L * axes * n.x;
    float *const one_over = row + n.x;
    const auto fill = [&](int z, int y, float **out) {
      const float *shifted[2 * axes];
      for (int k = 0; k < 2 * axes; ++k) {
        float *const to = scratch.data() + static_cast<long>(k) * n.x;
        shifted_row(image, n, z, y, neighbours[k], row, to);
        shifted[k] = to;
      }
      int q = 0;
      for (int a = 0; a < axes; ++a) {
        for (int b = a + 1; b < axes; ++b) {
          for (int k = 0; k < 4; ++k, ++q) {
            const float *__restrict p = shifted[2 * a + k / 2];
            const float *__restrict o = shifted[2 * b + k % 2];
            float *__restrict to = out[q];
            for (int x = 0; x < n.x; ++x) to[x] = (p[x] - o[x]) * (p[x] - o[x]);
          }
        }
      }
    };
    const auto use = [&](int z, int y, float **sum) {
      const long index = static_cast<long>(z) * n.y + y;
      const float one = 1.f / (inside(y, n.y) * inside(z, n.z));
      const float *__restrict along = inverse.data();
      float *__restrict low = one_over;
      float *__restrict variance = sum[Q];
      std::memcpy(low, sum[0], sizeof(float) * n.x);
      for (int q = 1; q < Q; ++q) {
        const float *__restrict d = sum[q];
#pragma omp simd
        for (int x = 0; x < n.x; ++x) low[x] = d[x] < low[x] ? d[x] : low[x];
      }
      for (int x = 0; x < n.x; ++x) variance[x] = 0.f;
      for (int q = 0; q < Q; ++q) {
        float *__restrict d = sum[q];
#pragma omp simd
        for (int x = 0; x < n.x; ++x) variance[x] += d[x] -= low[x];
      }
#pragma omp simd
      for (int x = 0; x < n.x; ++x) variance[x] *= one / float(Q) * along[x];
      if (!descriptors) {
        rows[index] = row_sum(n.x, [&](int x) { return variance[x]; });
        return;
      }
      const float v0 = least, v1 = most;
      float *__restrict rate = one_over;
#pragma omp simd
      for (int x = 0; x < n.x; ++x) {
        const float v = variance[x], bounded = v < v1 ? v : v1;
        rate[x] = one * along[x] / (bounded > v0 ? bounded : v0);
      }
      for (int w = 0; w < words; ++w) {
        int *__restrict to = packed.data() + static_cast<long>(w) * n.x;
        const float *__restrict d0 = sum[4 * w];
        const float *__restrict d1 = sum[4 * w + 1];
        const float *__restrict d2 = sum[4 * w + 2];
        const float *__restrict d3 = sum[4 * w + 3];
#pragma omp simd
        for (int x = 0; x < n.x; ++x) {
          const int b0 = int(255.f * exp_of_minus(d0[x] * rate[x]) + 0.5f);
          const int b1 = int(255.f * exp_of_minus(d1[x] * rate[x]) + 0.5f);
          const int b2 = int(255.f * exp_of_minus(d2[x] * rate[x]) + 0.5f);
          const int b3 = int(255.f * exp_of_minus(d3[x] * rate[x]) + 0.5f);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
          to[x] = int(unsigned(b0) << 24 | unsigned(b1) << 16 | unsigned(b2) << 8 | unsigned(b3));
#else
          to[x] = int(unsigned(b3) << 24 | unsigned(b2) << 16 | unsigned(b1) << 8 | unsigned(b0));
#endif
        }
      }
      std::uint8_t *const to = descriptors + index * n.x * descriptor_bytes;
      for (int x = 0; x < n.x; ++x) {
        int voxel[4] = {0, 0, 0, 0};
        for (int w = 0; w < words; ++w) voxel[w] = packed[static_cast<long>(w) * n.x + x];
        std::memcpy(to + static_cast<long>(x) * descriptor_bytes, voxel, descriptor_bytes);
      }
    };
    const int y0 = t % ty * lines, y1 = std::min(n.y, y0 + lines);
    const int z0 = t / ty * planes, z1 = std::min(n.z, z0 + planes);
    switch (radius) {
      case 1: box_tile<3, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 2: box_tile<5, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      default: box_tile<0, Q>(n, radius, y0, y1, z0, z1, fill, use);
    }
  });
  return sum_rows(rows);
}

void mind_descriptors(const float *image, Size n, const double *offsets, int radius, int dimension,
                      std::uint8_t *descriptors, int threads) {
  Shift neighbours[6];
  for (int k = 0; k < 6; ++k) neighbours[k] = shift_along(offsets, k / 2, k % 2 ? -1. : 1.);
  const auto pass = dimension == 2 ? mind_pass<4> : mind_pass<12>;
  const double mean = pass(image, n, neighbours, radius, 0.f, 0.f, nullptr, threads) / double(n.count());
  // Above zero: where nothing varies, all D are 0, and the descriptor is 1.
  const float least = std::max(float(1e-3 * mean), 1e-36f), most = std::max(float(1e3 * mean), least);
  pass(image, n, neighbours, radius, least, most, descriptors, threads);
}

// The squared difference of one voxel, summed over its channels, and half its derivatives along the axes of `moving`.
// `p`: the lower corner of the cell; sx, sy, sz: from there to its neighbours; x, y, z: where in the cell.
template <int Lanes, bool WithGradient>
inline void descriptor_difference(const std::uint8_t *f, const std::uint8_t *p, long sx, long sy, long sz, float x,
                                  float y, float z, float *out) {
  const V8 fx = splat8(x), fy = splat8(y), fz = splat8(z);
  V8 square = splat8(0.f), along_x = square, along_y = square, along_z = square;
  for (int c = 0; c < Lanes; c += 8) {
    const std::uint8_t *const p00 = p + c, *const p10 = p00 + sy, *const p01 = p00 + sz, *const p11 = p10 + sz;
    const V8 v00 = load8(p00), v10 = load8(p10), v01 = load8(p01), v11 = load8(p11);
    const V8 d00 = load8(p00 + sx) - v00, d10 = load8(p10 + sx) - v10;
    const V8 d01 = load8(p01 + sx) - v01, d11 = load8(p11 + sx) - v11;
    const V8 w00 = v00 + fx * d00, w10 = v10 + fx * d10;
    const V8 w01 = v01 + fx * d01, w11 = v11 + fx * d11;
    const V8 e0 = w10 - w00, e1 = w11 - w01;
    const V8 r0 = w00 + fy * e0, r1 = w01 + fy * e1;
    const V8 error = r0 + fz * (r1 - r0) - load8(f + c);
    square += error * error;
    if (WithGradient) {
      const V8 t0 = d00 + fy * (d10 - d00), t1 = d01 + fy * (d11 - d01);
      along_x += error * (t0 + fz * (t1 - t0));
      along_y += error * (e0 + fz * (e1 - e0));
      along_z += error * (r1 - r0);
    }
  }
  // Four sums at once.
  const V4 s = lower(square) + upper(square), a = lower(along_x) + upper(along_x);
  const V4 b = lower(along_y) + upper(along_y), c = lower(along_z) + upper(along_z);
  const V4 sa = shuffle<0, 4, 1, 5>(s, a) + shuffle<2, 6, 3, 7>(s, a);
  const V4 bc = shuffle<0, 4, 1, 5>(b, c) + shuffle<2, 6, 3, 7>(b, c);
  store4(out, shuffle<0, 1, 4, 5>(sa, bc) + shuffle<2, 3, 6, 7>(sa, bc));
}

// The warped descriptors are never held: a voxel at a time, all its channels at once. `scale`: from the sum of squares
// of bytes to the difference of a voxel.
template <int Lanes, bool WithGradient, bool Spline>
void mind_rows(const std::uint8_t *fixed, const float *weight, const std::uint8_t *moving, Size m,
               const Displacement &u, Size n, const double *grid_to_moving, const double *displacement_to_moving,
               float scale, float *__restrict gradient, double *sums, long row0, long row1) {
  using From = Origins<WithGradient, Spline>;
  constexpr int run = From::run;
  From from(m, u, n, grid_to_moving, displacement_to_moving);
  const long count = n.count();
  const float *const a = from.a;
  const long sx = m.x > 1 ? descriptor_bytes : 0, sy = m.y > 1 ? static_cast<long>(m.x) * descriptor_bytes : 0;
  const long sz = m.z > 1 ? static_cast<long>(m.x) * m.y * descriptor_bytes : 0;
  float found[4 * run];
  for (long row = row0; row < row1; ++row) {
    double sum = 0;
    for (int x0 = 0; x0 < n.x; x0 += run) {
      const int length = std::min(run, n.x - x0);
      const long first = row * n.x + x0;
      from.find(row, x0, length);
      for (int x = 0; x < length; ++x) {
        if (weight && !(weight[first + x] > 0.5f)) {
          for (int k = 0; k < 4; ++k) found[4 * x + k] = 0.f;
        } else {
          descriptor_difference<Lanes, WithGradient>(
              fixed + (first + x) * descriptor_bytes, moving + static_cast<long>(from.at[x]) * descriptor_bytes, sx,
              sy, sz, from.fx[x], from.fy[x], from.fz[x], found + 4 * x);
        }
      }
      sum += row_sum(length, [&](int x) { return found[4 * x]; });
      if (WithGradient) {
        float *__restrict gx = gradient + first;
        float *__restrict gy = gx + count;
        float *__restrict gz = gy + count;
#pragma omp simd
        for (int x = 0; x < length; ++x) {
          const float mx = 2.f * scale * from.ox[x] * found[4 * x + 1];
          const float my = 2.f * scale * from.oy[x] * found[4 * x + 2];
          const float mz = 2.f * scale * from.oz[x] * found[4 * x + 3];
          gx[x] = a[0] * mx + a[3] * my + a[6] * mz;
          gy[x] = a[1] * mx + a[4] * my + a[7] * mz;
          gz[x] = a[2] * mx + a[5] * my + a[8] * mz;
        }
      }
    }
    sums[row] = scale * sum;
  }
}

template <int Lanes>
auto mind_rows_of(bool with_gradient, bool spline) {
  return spline ? (with_gradient ? mind_rows<Lanes, true, true> : mind_rows<Lanes, false, true>)
                : (with_gradient ? mind_rows<Lanes, true, false> : mind_rows<Lanes, false, false>);
}

double mind_difference(const std::uint8_t *fixed, const float *weight, const std::uint8_t *moving, Size m,
                       const Displacement &u, Size n, const double *grid_to_moving,
                       const double *displacement_to_moving, int channels, float *gradient, int threads) {
  const bool with_gradient = gradient, spline = u.taps;
  const auto rows_of = channels == 4 ? mind_rows_of<8>(with_gradient, spline) : mind_rows_of<16>(with_gradient, spline);
  const float scale = 1.f / (255.f * 255.f * float(channels));
  const long rows = static_cast<long>(n.y) * n.z;
  const long step = std::max<long>(1, 8192 / n.x);
  const int tasks = static_cast<int>((rows + step - 1) / step);
  std::vector<double> sums(rows);
  parallel_for(tasks, threads, [&](int t) {
    const long first = t * step, last = std::min(rows, first + step);
    rows_of(fixed, weight, moving, m, u, n, grid_to_moving, displacement_to_moving, scale, gradient, sums.data(), first,
            last);
  });
  return sum_rows(sums);
}
