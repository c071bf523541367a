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

// The last matrix of the three that carry a gradient from the voxels to the nodes, along x of `x (3, l.z, l.y, n_in)`:
// times `scale` it is added to the packed gradient of the nodes. `bits`, if any, becomes the size of the largest
// component.
KERNEL(gather_nodes, (const float *__restrict__ x, const int *__restrict__ start, const float *__restrict__ weights,
                      int taps, int n_in, Size l, float scale, float4 *__restrict__ gradient,
                      unsigned *__restrict__ bits)) {
  const Index i = this_thread(), count = count_of(l);
  unsigned most = 0;
  if (i < count) {
    const Voxel v = voxel_of(i, l);
    const Index rows = static_cast<Index>(l.y) * l.z, row = static_cast<Index>(v.z) * l.y + v.y;
    const float *const from = x + row * n_in + start[v.x], *const w = weights + v.x * taps;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int k = 0; k < taps; ++k) {
      sum.x += w[k] * from[k], sum.y += w[k] * from[rows * n_in + k], sum.z += w[k] * from[2 * rows * n_in + k];
    }
    float4 g = gradient[i];
    g.x += scale * sum.x, g.y += scale * sum.y, g.z += scale * sum.z;
    gradient[i] = g;
    most = size_of(g);
  }
  if (bits) keep_largest(most, bits);
}
