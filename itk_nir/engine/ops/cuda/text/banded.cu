// A banded matrix along the middle axis of (outer, n, inner): row i holds `taps` weights from column start[i] on.

// Which row of the matrix, and where its first value and its result lie.
struct Entry {
  int row;
  Index first, column;
};
__device__ __forceinline__ Entry entry_of(Index i, const int *start, int n_in, int n_out, int inner) {
  const Voxel v = voxel_of(i, {inner, n_out, 1});
  return {v.y, (static_cast<Index>(v.z) * n_in + start[v.y]) * inner + v.x,
          static_cast<Index>(start[v.y]) * inner + v.x};
}

KERNEL(banded, (const float *__restrict__ x, float *__restrict__ out, const int *__restrict__ start,
                const float *__restrict__ weights, int taps, int outer, int n_in, int n_out, int inner)) {
  const Index i = this_thread();
  if (i >= static_cast<Index>(outer) * n_out * inner) return;
  const Entry e = entry_of(i, start, n_in, n_out, inner);
  const float *from = x + e.first, *w = weights + e.row * taps;
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
  const Entry e = entry_of(i, start, n_in, n_out, inner);
  const float *from = x + e.first, *by = factor + e.column, *w = weights + e.row * taps;
  float sum = 0.f;
  for (int k = 0; k < taps; ++k) {
    const Index step = static_cast<Index>(k) * inner;
    sum += w[k] * (from[step] * by[step]);
  }
  out[i] = sum;
}
