// An image through a displacement and a linear map: the value, and its gradient by the displacement.

struct Sampled {
  float value, gx, gy, gz;
};

__device__ __forceinline__ Sampled sample(const float *__restrict__ moving, Size m, const Map &map, float ux, float uy,
                                          float uz, int x, int y, int z) {
  const float *t = map.index, *a = map.vector;
  const Cell c = locate(m, a[0] * ux + a[1] * uy + a[2] * uz + (t[0] * x + t[1] * y + t[2] * z + t[3]),
                        a[3] * ux + a[4] * uy + a[5] * uz + (t[4] * x + t[5] * y + t[6] * z + t[7]),
                        a[6] * ux + a[7] * uy + a[8] * uz + (t[8] * x + t[9] * y + t[10] * z + t[11]));
  const float *p = moving + c.at, *q = p + c.sz;
  const float v000 = p[0], v100 = p[c.sx], v010 = p[c.sy], v110 = p[c.sy + c.sx];
  const float v001 = q[0], v101 = q[c.sx], v011 = q[c.sy], v111 = q[c.sy + c.sx];
  const float d00 = v100 - v000, d10 = v110 - v010, d01 = v101 - v001, d11 = v111 - v011;
  const float w00 = v000 + c.fx * d00, w10 = v010 + c.fx * d10, w01 = v001 + c.fx * d01, w11 = v011 + c.fx * d11;
  const float e0 = w10 - w00, e1 = w11 - w01, r0 = w00 + c.fy * e0, r1 = w01 + c.fy * e1;
  const float g0 = d00 + c.fy * (d10 - d00), g1 = d01 + c.fy * (d11 - d01);
  const float gx = c.ox * (g0 + c.fz * (g1 - g0)), gy = c.oy * (e0 + c.fz * (e1 - e0)), gz = c.oz * (r1 - r0);
  return {r0 + c.fz * (r1 - r0), a[0] * gx + a[3] * gy + a[6] * gz, a[1] * gx + a[4] * gy + a[7] * gz,
          a[2] * gx + a[5] * gy + a[8] * gz};
}

// Without a displacement the map alone.
KERNEL(warp, (const float *__restrict__ moving, Size m, const float *__restrict__ displacement, Size n, Map map,
              float *__restrict__ warped, float *__restrict__ gradient)) {
  const Index i = this_thread(), count = count_of(n);
  if (i >= count) return;
  const Voxel v = voxel_of(i, n);
  float u[3] = {0.f, 0.f, 0.f};
  if (displacement) u[0] = displacement[i], u[1] = displacement[count + i], u[2] = displacement[2 * count + i];
  const Sampled s = sample(moving, m, map, u[0], u[1], u[2], v.x, v.y, v.z);
  warped[i] = s.value;
  if (!gradient) return;
  gradient[i] = s.gx, gradient[count + i] = s.gy, gradient[2 * count + i] = s.gz;
}

// A cubic spline's rows along one axis: four nodes from start[i] on.
struct Rows {
  const int *start;
  const float *weights;
};

// The same where the displacement is a cubic spline of `nodes` (packed, four floats a node), which is evaluated along
// z, then y, then x in shared memory for the 32 x 4 x 2 voxels of a block; width, height: the most nodes along x and y
// that a block needs. Along z there may be one node alone, with one weight a voxel.
KERNEL(warp_spline, (const float *__restrict__ moving, Size m, const float4 *__restrict__ nodes, Size l, Rows rx,
                     Rows ry, Rows rz, Size n, Map map, float *__restrict__ warped, float *__restrict__ gradient,
                     int width, int height)) {
  SHARED(shared);
  float4 *const along_z = reinterpret_cast<float4 *>(shared);  // [2][height][width]
  float4 *const along_y = along_z + 2 * height * width;        // [2][4][width]
  const int x0 = blockIdx.x * 32, y0 = blockIdx.y * 4, z0 = blockIdx.z * 2;
  const int t = threadIdx.x + 32 * (threadIdx.y + 4 * threadIdx.z);
  const int x1 = min(x0 + 32, n.x) - 1, y1 = min(y0 + 4, n.y) - 1;
  const int lx = rx.start[x0], ly = ry.start[y0];
  const int wide = rx.start[x1] + 4 - lx, high = ry.start[y1] + 4 - ly;
  for (int i = t; i < 2 * high * wide; i += 256) {
    const int a = i % wide, b = i / wide % high, c = i / wide / high, z = min(z0 + c, n.z - 1);
    const int taps = l.z > 1 ? 4 : 1;
    const float *const w = rz.weights + taps * z;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int k = 0; k < taps; ++k) {
      const float4 v = nodes[(static_cast<Index>(rz.start[z] + k) * l.y + ly + b) * l.x + lx + a];
      sum.x += w[k] * v.x, sum.y += w[k] * v.y, sum.z += w[k] * v.z;
    }
    along_z[(c * height + b) * width + a] = sum;
  }
  __syncthreads();
  for (int i = t; i < 2 * 4 * wide; i += 256) {
    const int a = i % wide, b = i / wide % 4, c = i / wide / 4, y = min(y0 + b, n.y - 1);
    const float *w = ry.weights + 4 * y;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int k = 0; k < 4; ++k) {
      const float4 v = along_z[(c * height + ry.start[y] - ly + k) * width + a];
      sum.x += w[k] * v.x, sum.y += w[k] * v.y, sum.z += w[k] * v.z;
    }
    along_y[(c * 4 + b) * width + a] = sum;
  }
  __syncthreads();
  const int x = x0 + threadIdx.x, y = y0 + threadIdx.y, z = z0 + threadIdx.z;
  if (x >= n.x || y >= n.y || z >= n.z) return;
  float4 u = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int k = 0; k < 4; ++k) {
    const float w = rx.weights[4 * x + k];
    const float4 v = along_y[(threadIdx.z * 4 + threadIdx.y) * width + rx.start[x] - lx + k];
    u.x += w * v.x, u.y += w * v.y, u.z += w * v.z;
  }
  const Sampled s = sample(moving, m, map, u.x, u.y, u.z, x, y, z);
  const Index count = count_of(n), at = (static_cast<Index>(z) * n.y + y) * n.x + x;
  warped[at] = s.value;
  if (!gradient) return;
  gradient[at] = s.gx, gradient[count + at] = s.gy, gradient[2 * count + at] = s.gz;
}

// Where the voxels of a grid lie along its axes.
struct Places {
  float step[3], origin[3];
};

// The gradient by a linear map: the sums over the voxels of each component of `slopes` times `gradient` times each of
// the coordinates of the voxel and 1, `span` voxels a block: partial[4 component + coordinate][block].
KERNEL(linear_sums, (const float *__restrict__ slopes, const float *__restrict__ gradient, Size n, Places at, int span,
                     float *__restrict__ partial)) {
  SHARED(shared);
  const Index count = count_of(n), first = static_cast<Index>(blockIdx.x) * span;
  const Index end = first + span < count ? first + span : count;
  float sums[12] = {0.f};
  for (Index i = first + threadIdx.x; i < end; i += 256) {
    const Voxel v = voxel_of(i, n);
    const float g = gradient[i];
    const float p[4] = {at.step[0] * v.x + at.origin[0], at.step[1] * v.y + at.origin[1],
                        at.step[2] * v.z + at.origin[2], 1.f};
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const float s = slopes[r * count + i] * g;
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[4 * r + c] += s * p[c];
    }
  }
#pragma unroll
  for (int k = 0; k < 12; ++k) {
    const float sum = block_sum(sums[k], shared, threadIdx.x);
    if (threadIdx.x == 0) partial[static_cast<Index>(k) * gridDim.x + blockIdx.x] = sum;
  }
}
