// Sums over a whole image: every one of them has the same bits on every schedule.

// Sums of `count` partial sums each, one a block, in double precision and a fixed order, times `scale`: they go to
// `out`, or to `wide` as they are.
KERNEL(totals, (const float *__restrict__ partial, int count, float scale, float *__restrict__ out,
                double *__restrict__ wide)) {
  SHARED(shared);
  double *const sums = reinterpret_cast<double *>(shared);
  const float *const from = partial + static_cast<Index>(blockIdx.x) * count;
  const int t = threadIdx.x;
  double sum = 0;
  for (int i = t; i < count; i += 256) sum += from[i];
  sums[t] = sum;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (t < half) sums[t] += sums[t + half];
  }
  if (t) return;
  if (out) out[blockIdx.x] = float(scale * sums[0]);
  if (wide) wide[blockIdx.x] = scale * sums[0];
}
