// A banded matrix along the middle axis of (outer, n, inner): row i holds `taps` weights from column start[i] on.

KERNEL(banded, (const float *__restrict__ x, float *__restrict__ out, const int *__restrict__ start,
                const float *__restrict__ weights, int taps, int outer, int n_in, int n_out, int inner)) {
  const Index i = this_thread();
  if (i >= static_cast<Index>(outer) * n_out * inner) return;
  const Index column = i % inner, row = i / inner % n_out, o = i / inner / n_out;
  const float *from = x + (o * n_in + start[row]) * inner + column, *w = weights + row * taps;
  float sum = 0.f;
  for (int k = 0; k < taps; ++k) sum += w[k] * from[static_cast<Index>(k) * inner];
  out[i] = sum;
}

// The same of x times a factor that all of the `outer` share: out[o, i, j] = sum_k w[i, k] x[o, s, j] factor[s, j].
KERNEL(banded_product, (const float *__restrict__ x, const float *__restrict__ factor, float *__restrict__ out,
                        const int *__restrict__ start, const float *__restrict__ weights, int taps, int outer, int n_in,
                        int n_out, int inner)) {
  const Index i = this_thread();
  if (i >= static_cast<Index>(outer) * n_out * inner) return;
  const Index column = i % inner, row = i / inner % n_out, o = i / inner / n_out;
  const Index first = static_cast<Index>(start[row]) * inner + column, whole = static_cast<Index>(n_in) * inner;
  const float *from = x + o * whole + first, *by = factor + first, *w = weights + row * taps;
  float sum = 0.f;
  for (int k = 0; k < taps; ++k) {
    const Index step = static_cast<Index>(k) * inner;
    sum += w[k] * (from[step] * by[step]);
  }
  out[i] = sum;
}
