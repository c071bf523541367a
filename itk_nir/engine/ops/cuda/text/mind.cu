// Modality independent neighbourhood descriptors with the self-similarity context (MIND-SSC), and their difference
// through a displacement and a linear map. A voxel's descriptor is 16 bytes, of which 4 (2D) or 12 (3D) are used: it is
// loaded as four floats, whose bits alone count.

// From a voxel to its six neighbours: whole voxels down, and the share of the next one up, along x, y and z.
struct Shifts {
  int low[18];
  float share[18];
};

__device__ __forceinline__ int within(int i, int size) { return max(0, min(i, size - 1)); }

// The image at a neighbour of (x, y, z): trilinear, the value at the edge beyond it. Every step is a + f (b - a): a
// constant stays what it is, to the bit.
__device__ __forceinline__ float shifted(const float *__restrict__ image, Size n, const int *low, const float *share,
                                         int x, int y, int z) {
  const int x0 = within(x + low[0], n.x), x1 = within(x + low[0] + 1, n.x);
  float planes[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    // Where there is no share of the upper plane or row, it is not looked at.
    const Index plane = within(z + low[2] + (share[2] != 0.f ? k : 0), n.z);
    float rows[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float *const row = image + (plane * n.y + within(y + low[1] + (share[1] != 0.f ? j : 0), n.y)) * n.x;
      rows[j] = row[x0] + share[0] * (row[x1] - row[x0]);
    }
    planes[k] = rows[0] + share[1] * (rows[1] - rows[0]);
  }
  return planes[0] + share[2] * (planes[1] - planes[0]);
}

// The squared differences of neighbours at right angles, summed over the window along x: `planes` planes from z0 on, in
// out[pair][plane][y][x]. Two (Q = 4) or three axes.
template <int Q>
__device__ __forceinline__ void sum_along_x(const float *__restrict__ image, Size n, const Shifts &shifts, int radius,
                                            int z0, int planes, float *__restrict__ out) {
  constexpr int axes = Q == 4 ? 2 : 3;
  const Index i = this_thread(), count = static_cast<Index>(n.x) * n.y * planes;
  if (i >= count) return;
  const Voxel v = voxel_of(i, n);
  const int x = v.x, y = v.y, z = z0 + v.z;
  float sums[Q];
#pragma unroll
  for (int q = 0; q < Q; ++q) sums[q] = 0.f;
#pragma unroll 1
  for (int at = max(x - radius, 0); at <= min(x + radius, n.x - 1); ++at) {
    float s[2 * axes];
#pragma unroll
    for (int k = 0; k < 2 * axes; ++k) s[k] = shifted(image, n, shifts.low + 3 * k, shifts.share + 3 * k, at, y, z);
    int q = 0;
#pragma unroll
    for (int a = 0; a < axes; ++a) {
#pragma unroll
      for (int b = a + 1; b < axes; ++b) {
#pragma unroll
        for (int k = 0; k < 4; ++k, ++q) {
          const float d = s[2 * a + k / 2] - s[2 * b + k % 2];
          sums[q] += d * d;
        }
      }
    }
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) out[q * count + i] = sums[q];
}

KERNEL(mind_along_x, (const float *__restrict__ image, Size n, Shifts shifts, int radius, int dimension, int z0,
                      int planes, float *__restrict__ out)) {
  if (dimension == 2) {
    sum_along_x<4>(image, n, shifts, radius, z0, planes, out);
  } else {
    sum_along_x<12>(image, n, shifts, radius, z0, planes, out);
  }
}

// Summed over the window along y as well. blockIdx.y: the pair.
KERNEL(mind_along_y, (const float *__restrict__ rows, Size n, int radius, int planes, float *__restrict__ out)) {
  const Index i = this_thread(), count = static_cast<Index>(n.x) * n.y * planes;
  if (i >= count) return;
  const int y = voxel_of(i, n).y;
  const Index first = blockIdx.y * count + i - static_cast<Index>(y) * n.x;
  float sum = 0.f;
  for (int at = max(y - radius, 0); at <= min(y + radius, n.y - 1); ++at) {
    sum += rows[first + static_cast<Index>(at) * n.x];
  }
  out[blockIdx.y * count + i] = sum;
}

__device__ __forceinline__ float inside(int i, int size, int radius) {
  return static_cast<float>(min(i, radius) + 1 + min(size - 1 - i, radius));
}

// And along z: the mean squared differences D, less the smallest of them, and their mean V. Without `descriptors` the
// partial sums of V; with them round(255 exp(-D / V)), V within 0.001 and 1000 times its `mean` over the image. Voxels of
// the planes z0 … z1 - 1; `lines` begins at plane `first`, and holds `planes`.
template <int Q>
__device__ __forceinline__ void describe(const float *__restrict__ lines, Size n, int radius, int first, int planes,
                                         int z0, int z1, const float *__restrict__ mean, float *__restrict__ partial,
                                         unsigned *__restrict__ descriptors) {
  const Index plane = static_cast<Index>(n.x) * n.y, i = this_thread();
  const bool here = i < plane * (z1 - z0);
  const Voxel v = voxel_of(i, n);
  const int x = v.x, y = v.y, z = min(z0 + v.z, z1 - 1);
  const Index in_plane = i - v.z * plane;
  float d[Q], variance = 0.f;
#pragma unroll
  for (int q = 0; q < Q; ++q) d[q] = 0.f;
#pragma unroll 1
  for (int at = max(z - radius, 0); at <= min(z + radius, n.z - 1); ++at) {
#pragma unroll
    for (int q = 0; q < Q; ++q) d[q] += lines[(static_cast<Index>(q) * planes + at - first) * plane + in_plane];
  }
  float least = d[0];
#pragma unroll
  for (int q = 1; q < Q; ++q) least = d[q] < least ? d[q] : least;
  const float one = 1.f / (inside(x, n.x, radius) * inside(y, n.y, radius) * inside(z, n.z, radius));
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    d[q] = one * (d[q] - least);
    variance += d[q];
  }
  variance *= 1.f / Q;
  if (!descriptors) {
    SHARED(shared);
    const float sum = block_sum(here ? variance : 0.f, shared, threadIdx.x);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    return;
  }
  if (!here) return;
  // Above zero: where nothing varies, all D are 0, and the descriptor is 1.
  const float low = fmaxf(1e-3f * *mean, 1e-36f), high = fmaxf(1e3f * *mean, low);
  const float rate = *mean == *mean ? 1.f / fmaxf(fminf(variance, high), low) : *mean;
  unsigned *const to = descriptors + 4 * (z0 * plane + i);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    unsigned word = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (4 * w + k >= Q) continue;
      // What is not a number is as unlike as can be: a byte cannot say so.
      const float t = d[4 * w + k < Q ? 4 * w + k : 0] * rate;
      word |= static_cast<unsigned>(t >= 0.f ? 255.f * expf(-t) + 0.5f : 0.f) << (8 * k);
    }
    to[w] = word;
  }
}

KERNEL(mind_along_z, (const float *__restrict__ lines, Size n, int radius, int dimension, int first, int planes, int z0,
                      int z1, const float *__restrict__ mean, float *__restrict__ partial,
                      unsigned *__restrict__ descriptors)) {
  if (dimension == 2) {
    describe<4>(lines, n, radius, first, planes, z0, z1, mean, partial, descriptors);
  } else {
    describe<12>(lines, n, radius, first, planes, z0, z1, mean, partial, descriptors);
  }
}

// A byte of the bits of a float, as a number.
__device__ __forceinline__ float byte_of(float bits, int k) {
  return __uint_as_float(0x4b000000u | (__float_as_uint(bits) >> (8 * k) & 255u)) - 8388608.f;
}

// The squared difference of a voxel and half its slopes, summed over four channels. v[corner], bit a of a corner: the
// upper one along axis a.
__device__ __forceinline__ void add_channels(float fixed, const float *v, const Cell &c, float4 *sum) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float v00 = byte_of(v[0], k), v10 = byte_of(v[2], k), v01 = byte_of(v[4], k), v11 = byte_of(v[6], k);
    const float d00 = byte_of(v[1], k) - v00, d10 = byte_of(v[3], k) - v10;
    const float d01 = byte_of(v[5], k) - v01, d11 = byte_of(v[7], k) - v11;
    const float w00 = v00 + c.fx * d00, w01 = v01 + c.fx * d01;
    const float e0 = v10 + c.fx * d10 - w00, e1 = v11 + c.fx * d11 - w01;
    const float r0 = w00 + c.fy * e0, r1 = w01 + c.fy * e1;
    const float error = r0 + c.fz * (r1 - r0) - byte_of(fixed, k);
    const float t0 = d00 + c.fy * (d10 - d00), t1 = d01 + c.fy * (d11 - d01);
    sum->x += error * error;
    sum->y += error * (t0 + c.fz * (t1 - t0));
    sum->z += error * (e0 + c.fz * (e1 - e0));
    sum->w += error * (r1 - r0);
  }
}

// The partial sums of the squared differences of the descriptors, in bytes, and their gradient by the displacement u
// (planar) times `scale`, if wanted.
KERNEL(mind_difference, (const float4 *__restrict__ fixed, const float *__restrict__ weight,
                         const float4 *__restrict__ moving, Size m, const float *__restrict__ u, Size n, Map map,
                         int channels, float scale, float *__restrict__ gradient, float *__restrict__ partial)) {
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 4 + threadIdx.y, z = blockIdx.z * 2 + threadIdx.z;
  const Index count = count_of(n), i = (static_cast<Index>(z) * n.y + y) * n.x + x;
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  if (x < n.x && y < n.y && z < n.z) {
    const float *const a = map.vector, *const t = map.index;
    float4 slope = sum;
    if (!weight || weight[i] > 0.5f) {
      const float ux = u[i], uy = u[count + i], uz = u[2 * count + i];
      const Cell c = locate(m, a[0] * ux + a[1] * uy + a[2] * uz + (t[0] * x + t[1] * y + t[2] * z + t[3]),
                            a[3] * ux + a[4] * uy + a[5] * uz + (t[4] * x + t[5] * y + t[6] * z + t[7]),
                            a[6] * ux + a[7] * uy + a[8] * uz + (t[8] * x + t[9] * y + t[10] * z + t[11]));
      const float4 f = fixed[i];
      float first[8], second[8], third[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float4 v = moving[c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0)];
        first[k] = v.x, second[k] = v.y, third[k] = v.z;
      }
      add_channels(f.x, first, c, &sum);
      if (channels > 4) {
        add_channels(f.y, second, c, &sum);
        add_channels(f.z, third, c, &sum);
      }
      // Beyond the edge the value is constant.
      slope = make_float4(c.ox * sum.y, c.oy * sum.z, c.oz * sum.w, 0.f);
    }
    if (gradient) {
      gradient[i] = scale * (a[0] * slope.x + a[3] * slope.y + a[6] * slope.z);
      gradient[count + i] = scale * (a[1] * slope.x + a[4] * slope.y + a[7] * slope.z);
      gradient[2 * count + i] = scale * (a[2] * slope.x + a[5] * slope.y + a[8] * slope.z);
    }
  }
  SHARED(shared);
  const int thread = threadIdx.x + 32 * (threadIdx.y + 4 * threadIdx.z);
  const float all = block_sum(sum.x, shared, thread);
  if (thread == 0) partial[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = all;
}
