// Sums of squared differences between neighbours.

// sum_i s^2 log(1 + g_i / s^2) and its gradient, g_i = sum_a |u(i + e_a) - u(i)|^2 over all components, s^2 given by its
// inverse: ordinary diffusion whose differences at a node are weighted by 1 / (1 + g_i / s^2). A task is a block of planes
// and rows, with the weights of one plane and one row before it made again: only two planes of them are held.
double robust_diffusion(const float *u, float *gradient, int components, Size n, float inverse, int threads) {
  const long count = n.count(), stride_y = n.x, stride_z = static_cast<long>(n.x) * n.y;
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
            return (dx * dx + dy * dy + dz * dz) * inverse;
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
            const float in = weight * (m - before) + wya[x] * (m - ya[x]) + wza[x] * (m - za[x]);
            const float out = (after - m) + (yb[x] - m) + (zb[x] - m);
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

// sum_a sum_i (u(i + e_a) - u(i))^2 and its gradient, one component plane after another.
double diffusion(const float *u, float *gradient, int components, Size n, double scale, int threads) {
  // Below this, the logarithm is its argument to rounding, and the scale is soon too large for the floats.
  const float inverse = float(1 / (scale * scale));
  if (inverse > 1e-30f) return robust_diffusion(u, gradient, components, n, inverse, threads);
  const long count = n.count(), stride_y = n.x, stride_z = static_cast<long>(n.x) * n.y;
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
        return 2.f * ((twice - before - after) + (twice - ya[x] - yb[x]) + (twice - za[x] - zb[x]));
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
