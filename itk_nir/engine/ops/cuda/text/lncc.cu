// Local normalised cross-correlation over cubic windows of a radius that is known when this is compiled.
//
// Along x and y windows are summed directly, four neighbours at a time. Along z the axis is cut into blocks as long as
// the window, so that a window is the end of one block and the start of the next: the sums of the starts run along, the
// sums of the ends are made when a block is complete (van Herk, Pattern Recognit. Lett. 13(7), 1992). Nothing is ever
// subtracted, so no error builds up.
#ifndef RADIUS
#define RADIUS 5
#endif

constexpr int R = RADIUS, W = 2 * R + 1, TX = 32, TY = 8, PX = (TX + 2 * R + 3) / 4 * 4, PY = TY + 2 * R;

// Four neighbouring window sums of W values each, of W + 3 values.
template <class Value>
__device__ __forceinline__ void four_sums(const Value &v, float *out) {
  float common = 0.f;
#pragma unroll
  for (int k = 3; k < W; ++k) common += v(k);
  const float a = v(2), b = v(1) + a, c = v(W), d = c + v(W + 1);
  out[0] = common + (v(0) + b);
  out[1] = common + (b + c);
  out[2] = common + (a + d);
  out[3] = common + (d + v(W + 2));
}

// Window sums of three quantities: a block holds a tile of 32 x 8 columns and walks along `depth` planes.
// fill(z, y, x, into): the ARRAYS values of a voxel; quantities(values, q): three quantities of it; use(z, y, x, sums):
// what is done with the three sums of a window.
template <int ARRAYS, class Fill, class Quantities, class Use>
__device__ __forceinline__ void box_sums(Size n, int depth, const Fill &fill, const Quantities &quantities,
                                         const Use &use) {
  SHARED(shared);
  float *const tile = shared;                   // [ARRAYS][PY][PX]
  float *const rows = tile + ARRAYS * PY * PX;  // [3][PY][TX]
  float *const ring = rows + 3 * PY * TX;       // [3][W][TY][TX]
  const int t = threadIdx.x + TX * threadIdx.y, x0 = blockIdx.x * TX, y0 = blockIdx.y * TY;
  const int z0 = blockIdx.z * depth, z1 = min(z0 + depth, n.z);
  const int x = x0 + threadIdx.x, y = y0 + threadIdx.y;
  float run[3] = {0.f, 0.f, 0.f};
  for (int plane = z0 - R, k = 0; plane < z1 + R; ++plane) {
    const bool inside = plane >= 0 && plane < n.z;
    if (inside) {
      for (int i = t; i < PY * PX; i += 256) {
        const int px = x0 - R + i % PX, py = y0 - R + i / PX;
        float values[ARRAYS];
#pragma unroll
        for (int a = 0; a < ARRAYS; ++a) values[a] = 0.f;
        if (px >= 0 && px < n.x && py >= 0 && py < n.y) fill(plane, py, px, values);
#pragma unroll
        for (int a = 0; a < ARRAYS; ++a) tile[a * PY * PX + i] = values[a];
      }
    }
    __syncthreads();
    if (inside && t < PY * (TX / 4)) {
      const int row = t / (TX / 4), first = t % (TX / 4) * 4;
      // W + 3 values of a row, read four at a time.
      float values[ARRAYS][(W + 6) / 4 * 4];
#pragma unroll
      for (int a = 0; a < ARRAYS; ++a) {
        const float4 *from = reinterpret_cast<const float4 *>(tile + (a * PY + row) * PX + first);
#pragma unroll
        for (int j = 0; j < (W + 6) / 4; ++j) {
          const float4 v = from[j];
          values[a][4 * j] = v.x, values[a][4 * j + 1] = v.y, values[a][4 * j + 2] = v.z, values[a][4 * j + 3] = v.w;
        }
      }
      float made[3][W + 3];
#pragma unroll
      for (int j = 0; j < W + 3; ++j) {
        float one[ARRAYS], q[3];
#pragma unroll
        for (int a = 0; a < ARRAYS; ++a) one[a] = values[a][j];
        quantities(one, q);
#pragma unroll
        for (int i = 0; i < 3; ++i) made[i][j] = q[i];
      }
#pragma unroll
      for (int q = 0; q < 3; ++q) {
        float out[4];
        four_sums([&](int j) { return made[q][j]; }, out);
        *reinterpret_cast<float4 *>(rows + (q * PY + row) * TX + first) = make_float4(out[0], out[1], out[2], out[3]);
      }
    }
    __syncthreads();
    if (t < 3 * TX * (TY / 4)) {
      const int column = t % TX, group = t / TX % (TY / 4) * 4, q = t / TX / (TY / 4);
      float out[4] = {0.f, 0.f, 0.f, 0.f};
      if (inside) four_sums([&](int j) { return rows[(q * PY + group + j) * TX + column]; }, out);
#pragma unroll
      for (int j = 0; j < 4; ++j) ring[((q * W + k) * TY + group + j) * TX + column] = out[j];
    }
    __syncthreads();
    float sums[3];
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      float *const mine = ring + q * W * TY * TX + t;
      run[q] += mine[k * TY * TX];
      // The end of the block before; there is none in the first block, of whose windows only the last is wanted.
      sums[q] = run[q] + (k + 1 < W && plane - z0 >= R + 1 ? mine[(k + 1) * TY * TX] : 0.f);
    }
    if (plane - R >= z0 && x < n.x && y < n.y) use(plane - R, y, x, sums);
    if (++k == W) {
      k = 0;
#pragma unroll
      for (int q = 0; q < 3; ++q) {
        float *const mine = ring + q * W * TY * TX + t;
        for (int j = W - 2; j >= 0; --j) mine[j * TY * TX] += mine[(j + 1) * TY * TX];
        run[q] = 0.f;
      }
    }
  }
}

__device__ __forceinline__ Index voxel(Size n, int z, int y, int x) {
  return (static_cast<Index>(z) * n.y + y) * n.x + x;
}

__device__ __forceinline__ void write_partial(float total, float *partial) {
  SHARED(shared);
  const int t = threadIdx.x + TX * threadIdx.y;
  const float sum = block_sum(total, shared, t);
  if (t == 0) partial[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// The local sums of the fixed image, see wrapping/kernels/lncc.inl; `partial`: how many windows of a block count.
KERNEL(lncc_prepare, (const float *__restrict__ fixed, const float *__restrict__ weight, Size n, int depth,
                      float epsilon, float *__restrict__ inverse_count, float *__restrict__ mean,
                      float *__restrict__ inverse_variance, float *__restrict__ partial)) {
  float total = 0.f;
  box_sums<2>(
      n, depth,
      [&](int z, int y, int x, float *v) {
        const Index at = voxel(n, z, y, x);
        v[0] = weight ? weight[at] : 1.f, v[1] = fixed[at];
      },
      [](const float *v, float *q) { q[0] = v[0], q[1] = v[0] * v[1], q[2] = v[0] * v[1] * v[1]; },
      [&](int z, int y, int x, const float *sum) {
        const Index at = voxel(n, z, y, x);
        const bool some = sum[0] > 0.5f;
        const float ic = some ? 1.f / sum[0] : 0.f, mu = sum[1] * ic, variance = sum[2] - sum[1] * mu;
        const bool counts = some && variance > epsilon * sum[0] && (!weight || weight[at] > 0.5f);
        inverse_count[at] = ic, mean[at] = mu;
        inverse_variance[at] = counts ? 1.f / (variance + epsilon * sum[0]) : 0.f;
        total += counts ? 1.f : 0.f;
      });
  write_partial(total, partial);
}

// What the statistics of one image need of the other, and where they go.
struct Fixed {
  const float *image, *weight, *inverse_count, *mean, *inverse_variance;
};

// cc² of a window, and in `maps` what its gradient needs.
__device__ __forceinline__ float correlate(const Fixed &f, Index at, Index count, const float *sum, float least,
                                           float *maps) {
  const float ic = f.inverse_count[at], mu = f.mean[at], iv = f.inverse_variance[at];
  const float mm = sum[0] * ic, variance = sum[1] - sum[0] * mm, cross = sum[2] - mu * sum[0];
  const float positive = variance < 0.f ? 0.f : variance;
  const float im = ic / (positive * ic + least), c = 2.f * cross * iv * im, value = 0.5f * c * cross;
  if (maps) {
    const float q = 2.f * value * im;
    maps[at] = q * mm - c * mu, maps[count + at] = c, maps[2 * count + at] = -q;
  }
  return value;
}

KERNEL(lncc_statistics, (const float *__restrict__ moving, Fixed f, Size n, int depth, float least,
                         float *__restrict__ maps, float *__restrict__ partial)) {
  const Index count = count_of(n);
  float total = 0.f;
  box_sums<2>(
      n, depth,
      [&](int z, int y, int x, float *v) {
        const Index at = voxel(n, z, y, x);
        v[0] = moving[at], v[1] = f.image[at];
      },
      [](const float *v, float *q) { q[0] = v[0], q[1] = v[0] * v[0], q[2] = v[0] * v[1]; },
      [&](int z, int y, int x, const float *sum) {
        total += correlate(f, voxel(n, z, y, x), count, sum, least, maps);
      });
  write_partial(total, partial);
}

KERNEL(lncc_statistics_weighted, (const float *__restrict__ moving, Fixed f, Size n, int depth, float least,
                                  float *__restrict__ maps, float *__restrict__ partial)) {
  const Index count = count_of(n);
  float total = 0.f;
  box_sums<3>(
      n, depth,
      [&](int z, int y, int x, float *v) {
        const Index at = voxel(n, z, y, x);
        v[0] = moving[at], v[1] = f.image[at], v[2] = f.weight[at];
      },
      [](const float *v, float *q) { q[0] = v[2] * v[0], q[1] = q[0] * v[0], q[2] = q[0] * v[1]; },
      [&](int z, int y, int x, const float *sum) {
        total += correlate(f, voxel(n, z, y, x), count, sum, least, maps);
      });
  write_partial(total, partial);
}

// The gradient of the sum of cc² by the moving image: what a voxel is to every window that it lies in.
KERNEL(lncc_gradient, (const float *__restrict__ maps, const float *__restrict__ moving, Fixed f, Size n, int depth,
                       float *__restrict__ gradient)) {
  const Index count = count_of(n);
  box_sums<3>(
      n, depth,
      [&](int z, int y, int x, float *v) {
        const Index at = voxel(n, z, y, x);
        v[0] = maps[at], v[1] = maps[count + at], v[2] = maps[2 * count + at];
      },
      [](const float *v, float *q) { q[0] = v[0], q[1] = v[1], q[2] = v[2]; },
      [&](int z, int y, int x, const float *sum) {
        const Index at = voxel(n, z, y, x);
        const float g = sum[0] + f.image[at] * sum[1] + moving[at] * sum[2];
        gradient[at] = f.weight ? f.weight[at] * g : g;
      });
}
