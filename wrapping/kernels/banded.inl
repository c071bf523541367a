// A banded matrix along one axis of an array, and its adjoint.

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
