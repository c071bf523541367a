// Sums over the voxels that count, of what the correlation of two whole images is made of.

void global_sums(const float *fixed, const float *moving, const float *weight, Size n, double *sums, int threads) {
  const long rows = static_cast<long>(n.y) * n.z, block = 16;
  std::vector<double> parts[3];
  for (auto &p : parts) p.resize(rows);
  parallel_for(static_cast<int>((rows + block - 1) / block), threads, [&](int task) {
    for (long row = task * block; row < std::min(rows, (task + 1) * block); ++row) {
      const float *__restrict f = fixed + row * n.x;
      const float *__restrict m = moving + row * n.x;
      // Selected, not multiplied: what does not count may be anything, also not a number.
      const float *__restrict w = weight ? weight + row * n.x : nullptr;
      const auto sum = [&](const auto &value) {
        return w ? row_sum(n.x, [&](int x) { return w[x] > 0.5f ? value(x) : 0.f; }) : row_sum(n.x, value);
      };
      parts[0][row] = sum([&](int x) { return m[x]; });
      parts[1][row] = sum([&](int x) { return m[x] * m[x]; });
      parts[2][row] = sum([&](int x) { return f[x] * m[x]; });
    }
  });
  for (int k = 0; k < 3; ++k) sums[k] = sum_rows(parts[k]);
}

void global_sums_adjoint(const float *fixed, const float *moving, const float *weight, long count,
                         const double *derivative, float *gradient, int threads) {
  const float g0 = float(derivative[0]), g1 = float(2 * derivative[1]), g2 = float(derivative[2]);
  const long length = 1L << 14;
  parallel_for(static_cast<int>((count + length - 1) / length), threads, [&](int task) {
    const long begin = task * length, end = std::min(count, begin + length);
    const float *__restrict f = fixed;
    const float *__restrict m = moving;
    float *__restrict g = gradient;
    if (weight) {
      const float *__restrict w = weight;
#pragma omp simd
      for (long x = begin; x < end; ++x) {
        const float slope = g0 + g1 * m[x] + g2 * f[x];
        g[x] = w[x] > 0.5f ? slope : 0.f;
      }
    } else {
#pragma omp simd
      for (long x = begin; x < end; ++x) g[x] = g0 + g1 * m[x] + g2 * f[x];
    }
  });
}
