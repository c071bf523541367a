// The inverse of a displacement, how good it is, and its Jacobian determinants. Displacements are packed, four floats a
// node, but where it says planar.

__device__ __forceinline__ float4 plus_times(float4 a, float f, float4 b) {
  return make_float4(a.x + f * b.x, a.y + f * b.y, a.z + f * b.z, 0.f);
}

__device__ __forceinline__ float4 minus(float4 a, float4 b) { return plus_times(a, -1.f, b); }

// What to step back by from where the residual of w + u(x + w) is `r`: Newton's step, by the Jacobian whose columns are
// those of the identity and jx, jy, jz. Where the map is close to singular or folded, Newton's step is worthless: half a
// step of the fixed point.
__device__ __forceinline__ float4 newton_step(float4 r, float4 jx, float4 jy, float4 jz) {
  const float m00 = 1.f + jx.x, m01 = jy.x, m02 = jz.x;
  const float m10 = jx.y, m11 = 1.f + jy.y, m12 = jz.y;
  const float m20 = jx.z, m21 = jy.z, m22 = 1.f + jz.z;
  const float k00 = m11 * m22 - m12 * m21, k01 = m02 * m21 - m01 * m22, k02 = m01 * m12 - m02 * m11;
  const float k10 = m12 * m20 - m10 * m22, k11 = m00 * m22 - m02 * m20, k12 = m02 * m10 - m00 * m12;
  const float k20 = m10 * m21 - m11 * m20, k21 = m01 * m20 - m00 * m21, k22 = m00 * m11 - m01 * m10;
  const float determinant = m00 * k00 + m01 * k10 + m02 * k20;
  if (!(determinant > 0.05f)) return make_float4(0.5f * r.x, 0.5f * r.y, 0.5f * r.z, 0.f);
  const float one = 1.f / determinant;
  const float sx = (k00 * r.x + k01 * r.y + k02 * r.z) * one, sy = (k10 * r.x + k11 * r.y + k12 * r.z) * one,
              sz = (k20 * r.x + k21 * r.y + k22 * r.z) * one;
  const float length = sqrtf(sx * sx + sy * sy + sz * sz), shorter = length > 2.f ? 2.f / length : 1.f;
  return make_float4(shorter * sx, shorter * sy, shorter * sz, 0.f);
}

// The value in one plane of a cell, and its slopes along x and y.
__device__ __forceinline__ void in_plane(const float4 *u, int sx, int sy, float fx, float fy, float4 *value,
                                         float4 *along_x, float4 *along_y) {
  const float4 v0 = u[0], v1 = u[sy], d0 = minus(u[sx], v0), d1 = minus(u[sx + sy], v1);
  const float4 w0 = plus_times(v0, fx, d0);
  *along_y = minus(plus_times(v1, fx, d1), w0);
  *along_x = plus_times(d0, fy, minus(d1, d0));
  *value = plus_times(w0, fy, *along_y);
}

// v with v(y) + u(y + v(y)) = 0 at every node y, from the v that is there. A node ends where its residual is within
// `tolerance`, and keeps the best of what it came by. `bits`: the largest residual.
KERNEL(invert, (const float4 *__restrict__ u, float4 *__restrict__ v, Size n, int iterations, float tolerance,
                unsigned *__restrict__ bits)) {
  const Index i = this_thread();
  float worst = 0.f;
  if (i < count_of(n)) {
    const Voxel p = voxel_of(i, n);
    float4 w = v[i];
    float least = __uint_as_float(0x7f800000u);
#pragma unroll 1
    for (int k = 0; k <= iterations; ++k) {
      const Cell c = locate(n, p.x + w.x, p.y + w.y, p.z + w.z);
      const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
      float4 r0, x0, y0, r1, x1, y1;
      in_plane(u + c.at, c.sx, c.sy, c.fx, c.fy, &r0, &x0, &y0);
      in_plane(u + c.at + c.sz, c.sx, c.sy, c.fx, c.fy, &r1, &x1, &y1);
      const float4 jz = minus(r1, r0), residual = plus_times(plus_times(w, 1.f, r0), c.fz, jz);
      const float size = residual.x * residual.x + residual.y * residual.y + residual.z * residual.z;
      if (size < least) least = size, v[i] = w;
      if (size <= tolerance * tolerance || k == iterations) break;
      // Beyond the edge the value is constant.
      const float4 jx = plus_times(zero, c.ox, plus_times(x0, c.fz, minus(x1, x0)));
      const float4 jy = plus_times(zero, c.oy, plus_times(y0, c.fz, minus(y1, y0)));
      const float4 step = newton_step(residual, jx, jy, plus_times(zero, c.oz, jz));
      w = minus(w, step);
    }
    worst = sqrtf(least);
  }
  keep_largest(__float_as_uint(worst), bits);
}

// u(x) + v(x + u(x)), and the cell that v is taken from.
__device__ __forceinline__ float4 residual_at(const float4 *u, const float4 *v, Size n, Index i, Cell *cell) {
  const Voxel p = voxel_of(i, n);
  const float4 here = u[i];
  const Cell c = locate(n, p.x + here.x, p.y + here.y, p.z + here.z);
  float4 sum = here;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float w = (k & 1 ? c.fx : 1.f - c.fx) * (k & 2 ? c.fy : 1.f - c.fy) * (k & 4 ? c.fz : 1.f - c.fz);
    sum = plus_times(sum, w, v[c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0)]);
  }
  *cell = c;
  return sum;
}

__device__ __forceinline__ float largest_component(float4 r) { return fmaxf(fabsf(r.x), fmaxf(fabsf(r.y), fabsf(r.z))); }

// Whether all components are numbers, and finite ones.
__device__ __forceinline__ bool is_finite(float4 r) { return (r.x - r.x) + (r.y - r.y) + (r.z - r.z) == 0.f; }

// The largest component of the residuals that are numbers.
KERNEL(largest_residual, (const float4 *__restrict__ u, const float4 *__restrict__ v, Size n,
                          unsigned *__restrict__ bits)) {
  const Index i = this_thread();
  float size = 0.f;
  if (i < count_of(n)) {
    Cell c;
    const float4 r = residual_at(u, v, n, i, &c);
    if (is_finite(r)) size = largest_component(r);
  }
  keep_largest(__float_as_uint(size), bits);
}

// The power of two that residuals are multiplied by to become whole numbers: none is then above 2^shift.
__device__ __forceinline__ float residual_scale(const unsigned *bits, int shift) {
  const int exponent = max(static_cast<int>(*bits >> 23), 1);
  return __uint_as_float(static_cast<unsigned>(min(127 + 126 + shift - exponent, 254)) << 23);
}

// Every node's residual, with the weights of its interpolation, to the nodes that it is interpolated from: four sums a
// node, the last one that of the weights. A residual that is no number marks those nodes instead, in the fourth float of
// `v`, which nobody else looks at.
KERNEL(balance, (const float4 *__restrict__ u, float4 *v, Size n, int shift, const unsigned *__restrict__ bits,
                 Sum *__restrict__ sums)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  Cell c;
  const float4 r = residual_at(u, v, n, i, &c);
  const float scale = residual_scale(bits, shift), one = __uint_as_float(static_cast<unsigned>(127 + shift) << 23);
  const bool number = is_finite(r);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const Index at = c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0);
    const float w = (k & 1 ? c.fx : 1.f - c.fx) * (k & 2 ? c.fy : 1.f - c.fy) * (k & 4 ? c.fz : 1.f - c.fz);
    if (!number) {
      v[at].w = __uint_as_float(0x7fc00000u);
    } else if (w != 0.f) {
      Sum *const to = sums + 4 * at;
      add_to_sum(to, w * r.x, scale), add_to_sum(to + 1, w * r.y, scale), add_to_sum(to + 2, w * r.z, scale);
      add_to_sum(to + 3, w, one);
    }
  }
}

// One relaxed least-squares step by these sums.
KERNEL(balance_step, (float4 *__restrict__ v, Size n, float relaxation, int shift, const unsigned *__restrict__ bits,
                      const Sum *__restrict__ sums)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  const float4 here = v[i];
  if (here.w != here.w) {
    v[i] = make_float4(here.w, here.w, here.w, 0.f);
    return;
  }
  const Sum *const of = sums + 4 * i;
  const float weight = static_cast<float>(static_cast<Index>(of[3])) /
                       __uint_as_float(static_cast<unsigned>(127 + shift) << 23);
  const float by = -1.f / (residual_scale(bits, shift) * (weight + relaxation));
  v[i] = make_float4(here.x + by * static_cast<float>(static_cast<Index>(of[0])),
                     here.y + by * static_cast<float>(static_cast<Index>(of[1])),
                     here.z + by * static_cast<float>(static_cast<Index>(of[2])), 0.f);
}

// |S (u(x) + v(x + u(x)))|, S = diag(scale_x, scale_y, scale_z).
KERNEL(inverse_error, (const float4 *__restrict__ u, const float4 *__restrict__ v, Size n, float scale_x, float scale_y,
                       float scale_z, float *__restrict__ error)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  Cell c;
  const float4 r = residual_at(u, v, n, i, &c);
  const float x = scale_x * r.x, y = scale_y * r.y, z = scale_z * r.z;
  error[i] = sqrtf(x * x + y * y + z * z);
}

// det(I + du) by central differences, one-sided at the rim; u is planar.
KERNEL(jacobian_map, (const float *__restrict__ u, Size n, float *__restrict__ determinant)) {
  const Index i = this_thread(), count = count_of(n);
  if (i >= count) return;
  const Voxel p = voxel_of(i, n);
  const Index stride[3] = {1, n.x, static_cast<Index>(n.x) * n.y};
  const int at[3] = {p.x, p.y, p.z}, size[3] = {n.x, n.y, n.z};
  float m[3][3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const Index back = at[a] > 0 ? stride[a] : 0, on = at[a] + 1 < size[a] ? stride[a] : 0;
    const float half = back && on ? 0.5f : 1.f;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const float *const q = u + k * count + i;
      m[k][a] = half * (q[on] - q[-back]) + (k == a ? 1.f : 0.f);
    }
  }
  determinant[i] = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
                   m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
                   m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}
