// Local normalised cross-correlation, by window sums (box.inl).

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
            float *scratch, int threads) {
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
  // What a voxel is to every window that it lies in.
  box_sums<3>(
      n, radius, threads,
      [&](int z, int y, float **out) {
        const long at = (static_cast<long>(z) * n.y + y) * n.x;
        std::memcpy(out[0], sa + at, sizeof(float) * n.x);
        std::memcpy(out[1], sc + at, sizeof(float) * n.x);
        std::memcpy(out[2], sq + at, sizeof(float) * n.x);
      },
      [&](int z, int y, float **sum) {
        const long at = (static_cast<long>(z) * n.y + y) * n.x;
        const float *__restrict a = sum[0];
        const float *__restrict c = sum[1];
        const float *__restrict q = sum[2];
        const float *__restrict m = moving + at;
        const float *__restrict f = fixed.image + at;
        float *__restrict g = gradient + at;
#pragma omp simd
        for (int x = 0; x < n.x; ++x) g[x] = a[x] + f[x] * c[x] + m[x] * q[x];
        if (fixed.weight) {
          const float *__restrict w = fixed.weight + at;
          for (int x = 0; x < n.x; ++x) g[x] *= w[x];
        }
      });
  return sum_rows(rows);
}
