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

// The partial sums of m, m^2 and f m over the voxels that count (`weight`, if any, above 0.5), `span` voxels a block:
// partial[quantity][block].
KERNEL(global_sums, (const float *__restrict__ fixed, const float *__restrict__ moving, const float *__restrict__ weight,
                     Index count, int span, float *__restrict__ partial)) {
  SHARED(shared);
  const Index first = static_cast<Index>(blockIdx.x) * span, end = first + span < count ? first + span : count;
  float sums[3] = {0.f, 0.f, 0.f};
  for (Index i = first + threadIdx.x; i < end; i += 256) {
    // Selected, not multiplied: what does not count may be anything, also not a number.
    if (weight && !(weight[i] > 0.5f)) continue;
    const float m = moving[i];
    sums[0] += m, sums[1] += m * m, sums[2] += fixed[i] * m;
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const float sum = block_sum(sums[k], shared, threadIdx.x);
    if (threadIdx.x == 0) partial[static_cast<Index>(k) * gridDim.x + blockIdx.x] = sum;
  }
}

// The gradient of what has these derivatives by the three sums.
KERNEL(global_sums_adjoint, (const float *__restrict__ fixed, const float *__restrict__ moving,
                             const float *__restrict__ weight, Index count, const double *__restrict__ derivative,
                             float *__restrict__ gradient)) {
  const Index i = this_thread();
  if (i >= count) return;
  const float g0 = static_cast<float>(derivative[0]), g1 = static_cast<float>(2 * derivative[1]);
  const float g2 = static_cast<float>(derivative[2]);
  gradient[i] = weight && !(weight[i] > 0.5f) ? 0.f : g0 + g1 * moving[i] + g2 * fixed[i];
}

// Where a voxel lies in a joint histogram: the lower of its two bins along either axis, and how far beyond it.
struct Place {
  int i, j;
  float a, b;
};

// `position`: where the fixed image lies in its bins, 0 to bins - 1; `t`: where the moving one does. What is not a number
// comes to lie in the first cell.
__device__ __forceinline__ Place place_of(float position, float t, int bins) {
  const float top = static_cast<float>(bins - 1), p = fminf(fmaxf(position, 0.f), top), q = fminf(fmaxf(t, 0.f), top);
  Place c;
  c.i = min(static_cast<int>(p), bins - 2), c.j = min(static_cast<int>(q), bins - 2);
  c.a = p - c.i, c.b = q - c.j;
  return c;
}

// What a voxel adds to the four bins around it are whole numbers, in units of 2^(-2 bits): their sums have the same bits
// in every order, and what a voxel adds to all of them is 1 to the last bit.
__device__ __forceinline__ unsigned whole(float a, int bits) {
  return static_cast<unsigned>(a * static_cast<float>(1 << bits) + 0.5f);
}

// The joint histogram: a block counts its `span` voxels in shared memory, each bin in two halves of 20 bits and more,
// `copies` times, which 32 neighbours take turns in; where that is too much (copies = 0), all of them in `sums`. What is
// not a number marks its four bins in `marks` instead.
KERNEL(joint_histogram, (const float *__restrict__ position, const float *__restrict__ moving, Index count, int bins,
                         float low, float scale, int bits, int span, int copies, Sum *__restrict__ sums,
                         unsigned *__restrict__ marks)) {
  SHARED(shared);
  unsigned *const halves = reinterpret_cast<unsigned *>(shared);
  const int cells = bins * bins, half = 20;
  for (int k = threadIdx.x; k < 2 * copies * cells; k += 256) halves[k] = 0;
  __syncthreads();
  const Index first = static_cast<Index>(blockIdx.x) * span, end = first + span < count ? first + span : count;
  const int one = 1 << bits;
  for (Index i = first + threadIdx.x; i < end; i += 256) {
    const float p = position[i], t = (moving[i] - low) * scale;
    if (!(p >= 0.f)) continue;
    const Place c = place_of(p, t, bins);
    const int at = c.i * bins + c.j;
    if (t != t) {
      marks[at] = marks[at + 1] = marks[at + bins] = marks[at + bins + 1] = 1;
      continue;
    }
    const unsigned a1 = whole(c.a, bits), b1 = whole(c.b, bits), a0 = one - a1, b0 = one - b1;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Sum add = static_cast<Sum>(k & 2 ? a1 : a0) * (k & 1 ? b1 : b0);
      const int to = at + (k & 2 ? bins : 0) + (k & 1);
      if (!add) continue;
      if (copies) {
        unsigned *const into = halves + 2 * (threadIdx.x % copies * cells + to);
        atomicAdd(into, static_cast<unsigned>(add) & ((1u << half) - 1));
        atomicAdd(into + 1, static_cast<unsigned>(add >> half));
      } else {
        atomicAdd(sums + to, add);
      }
    }
  }
  __syncthreads();
  if (!copies) return;
  for (int k = threadIdx.x; k < cells; k += 256) {
    Sum sum = 0;
    for (int copy = 0; copy < copies; ++copy) {
      const unsigned *const from = halves + 2 * (copy * cells + k);
      sum += from[0] + (static_cast<Sum>(from[1]) << half);
    }
    if (sum) atomicAdd(sums + k, sum);
  }
}

// The sums as numbers.
KERNEL(settle_histogram, (const Sum *__restrict__ sums, const unsigned *__restrict__ marks, int cells, int bits,
                          double *__restrict__ out)) {
  const Index i = this_thread();
  if (i >= cells) return;
  const double unit = 1.0 / (static_cast<double>(1 << bits) * static_cast<double>(1 << bits));
  out[i] = marks[i] ? static_cast<double>(__uint_as_float(0x7fc00000u)) : static_cast<double>(sums[i]) * unit;
}

// The gradient of a cell at its lower fixed bin, and what it grows by to the upper one.
KERNEL(histogram_slopes, (const double *__restrict__ derivative, int bins, float scale, float2 *__restrict__ slopes)) {
  const Index k = this_thread();
  const int side = bins - 1;
  if (k >= side * side) return;
  const double *const d = derivative + k / side * bins + k % side;
  const double lower = (d[1] - d[0]) * scale, upper = (d[bins + 1] - d[bins]) * scale;
  slopes[k] = make_float2(static_cast<float>(lower), static_cast<float>(upper - lower));
}

KERNEL(joint_histogram_adjoint, (const float *__restrict__ position, const float *__restrict__ moving, Index count,
                                 int bins, float low, float scale, const float2 *__restrict__ slopes,
                                 float *__restrict__ gradient)) {
  const Index i = this_thread();
  if (i >= count) return;
  const float p = position[i], t = (moving[i] - low) * scale;
  float slope = 0.f;
  // Beyond the outer bins, and where the moving image is not a number, there is no gradient.
  if (p >= 0.f && t >= 0.f && t <= static_cast<float>(bins - 1)) {
    const Place c = place_of(p, t, bins);
    const float2 s = slopes[c.i * (bins - 1) + c.j];
    slope = s.x + c.a * s.y;
  }
  gradient[i] = slope;
}

// The sum of a value of each of the 256 threads of a block, for all of them.
__device__ __forceinline__ double sum_for_all(double value) {
  SHARED(shared);
  double *const sums = reinterpret_cast<double *>(shared);
  __syncthreads();
  sums[threadIdx.x] = value;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

// So written that what is not a number is passed on.
__device__ __forceinline__ double not_below(double x, double least) { return x < least ? least : x; }
__device__ __forceinline__ double log_of(double p) { return log(not_below(p, 1e-12)); }

// Smoothed by the cubic B-spline along the first axis and transposed, the outer bins repeated, times `scale`.
__device__ __forceinline__ void smooth(const double *from, int bins, double scale, double *to) {
  __syncthreads();
#pragma unroll 1
  for (int k = threadIdx.x; k < bins * bins; k += 256) {
    const int i = k / bins, j = k % bins;
    const double before = from[(i > 0 ? i - 1 : 0) * bins + j], after = from[min(i + 1, bins - 1) * bins + j];
    to[j * bins + i] = (4 * from[k] + before + after) * scale;
  }
  __syncthreads();
}

// The (normalised) mutual information of a joint histogram of `voxels` voxels, and its derivative by the histogram; one
// block. `p`, `slope`: as large as the histogram; `alone`: twice the bins.
KERNEL(information, (const double *__restrict__ histogram, int bins, Index voxels, int normalised, double *p,
                     double *slope, double *alone, float *__restrict__ value, double *__restrict__ derivative)) {
  const int cells = bins * bins, t = threadIdx.x;
  const double unit = 1 / (6 * static_cast<double>(voxels));
  smooth(histogram, bins, unit, slope);
  smooth(slope, bins, 1.0 / 6, p);
  // The probabilities of either image, the fixed one first.
#pragma unroll 1
  for (int k = t; k < 2 * bins; k += 256) {
    double sum = 0;
#pragma unroll 1
    for (int i = 0; i < bins; ++i) sum += k < bins ? p[k * bins + i] : p[i * bins + k - bins];
    alone[k] = sum;
  }
  __syncthreads();
  double sum = 0;
#pragma unroll 1
  for (int k = t; k < cells; k += 256) {
    const double independent = alone[k / bins] * alone[bins + k % bins];
    // A bin that is empty in either image favours nothing.
    const double ratio = independent == 0 ? 0 : log_of(p[k] / not_below(independent, 1e-100));
    slope[k] = ratio - 1;
    sum += p[k] * ratio;
  }
  double information = sum_for_all(sum);
  if (normalised) {
#pragma unroll 1
    for (int image = 0; image < 2; ++image) {
      double part = 0;
#pragma unroll 1
      for (int k = t; k < bins; k += 256) part -= alone[image * bins + k] * log_of(alone[image * bins + k]);
      const double entropy = not_below(sum_for_all(part), 1e-12), root = 1 / sqrt(entropy);
      const double factor = information / (2 * entropy);
#pragma unroll 1
      for (int k = t; k < cells; k += 256) {
        const double q = alone[image * bins + (image ? k % bins : k / bins)];
        slope[k] = (slope[k] + (log_of(q) + 1) * factor) * root;
      }
      information *= root;
    }
  }
  smooth(slope, bins, 1.0 / 6, p);
  smooth(p, bins, unit, derivative);
  if (t == 0) *value = static_cast<float>(information);
}

// The similarity of an iteration, `windows` partial sums times `scale`, and the loss: 1 less the similarity, `more`, if
// any, and the weighted penalties, `blocks` partial sums of either. They become row `iteration` of `numbers`.
KERNEL(iteration_totals, (const float *__restrict__ partial, int windows, float scale, const float *__restrict__ more,
                          const float *__restrict__ penalties, int blocks, float diffusion_weight,
                          float jacobian_weight, float *__restrict__ numbers, int iteration)) {
  SHARED(shared);
  double *const sums = reinterpret_cast<double *>(shared);
  const int t = threadIdx.x;
  double sum[3] = {0, 0, 0};
  for (int i = t; i < windows; i += 256) sum[0] += partial[i];
  for (int i = t; i < blocks; i += 256) sum[1] += penalties[i], sum[2] += penalties[blocks + i];
#pragma unroll
  for (int q = 0; q < 3; ++q) sums[3 * t + q] = sum[q];
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (t >= half) continue;
#pragma unroll
    for (int q = 0; q < 3; ++q) sums[3 * t + q] += sums[3 * (t + half) + q];
  }
  if (t) return;
  const double similarity = scale * sums[0], others = more ? *more : 0;
  numbers[2 * iteration] = float(similarity);
  numbers[2 * iteration + 1] = float(1 - similarity + others + diffusion_weight * sums[1] + jacobian_weight * sums[2]);
}
