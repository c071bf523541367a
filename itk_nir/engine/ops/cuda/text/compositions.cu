// Displacements on their own grid: packed into four floats a node, composed, and the gradients of that.

KERNEL(pack, (const float *__restrict__ u, float4 *__restrict__ out, Size n, float scale)) {
  const Index i = this_thread(), count = count_of(n);
  if (i < count) out[i] = make_float4(scale * u[i], scale * u[count + i], scale * u[2 * count + i], 0.f);
}

KERNEL(unpack, (const float4 *__restrict__ u, float *__restrict__ out, Size n, float scale)) {
  const Index i = this_thread(), count = count_of(n);
  if (i >= count) return;
  const float4 v = u[i];
  out[i] = scale * v.x, out[count + i] = scale * v.y, out[2 * count + i] = scale * v.z;
}

__device__ __forceinline__ Cell cell_after(Index i, float4 u, Size n) {
  const Voxel v = voxel_of(i, n);
  return locate(n, v.x + u.x, v.y + u.y, v.z + u.z);
}

// out = inner + outer(x + inner(x)).
KERNEL(compose, (const float4 *__restrict__ outer, const float4 *__restrict__ inner, float4 *__restrict__ out, Size n)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  float4 sum = inner[i];
  const Cell c = cell_after(i, sum, n);
  for (int k = 0; k < 8; ++k) {
    const float4 v = outer[c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0)];
    const float w = (k & 1 ? c.fx : 1.f - c.fx) * (k & 2 ? c.fy : 1.f - c.fy) * (k & 4 ? c.fz : 1.f - c.fz);
    sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z;
  }
  out[i] = sum;
}

// The largest component as the bits of a float.
KERNEL(largest, (const float4 *__restrict__ values, unsigned *__restrict__ bits, Size n)) {
  const Index i = this_thread();
  unsigned most = 0;
  if (i < count_of(n)) {
    const float4 v = values[i];
    const unsigned sign = 0x7fffffffu;
    most = max(__float_as_uint(v.x) & sign, max(__float_as_uint(v.y) & sign, __float_as_uint(v.z) & sign));
  }
  keep_largest(most, bits);
}

// The adjoint of compose: grad_inner is written, what goes to `outer` is added to its sums (three a node), if any.
KERNEL(compose_adjoint, (const float4 *__restrict__ outer, const float4 *__restrict__ inner,
                         const float4 *__restrict__ grad, Sum *__restrict__ sums, float4 *__restrict__ grad_inner,
                         const unsigned *__restrict__ bits, Size n)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  const float scale = sums ? sum_scale(bits) : 0.f;
  const float4 u = inner[i], g = grad[i];
  const Cell c = cell_after(i, u, n);
  float dx = 0.f, dy = 0.f, dz = 0.f;
  for (int k = 0; k < 8; ++k) {
    const Index at = c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0);
    const float4 v = outer[at];
    const float wx = k & 1 ? c.fx : 1.f - c.fx, wy = k & 2 ? c.fy : 1.f - c.fy, wz = k & 4 ? c.fz : 1.f - c.fz;
    const float dot = v.x * g.x + v.y * g.y + v.z * g.z, w = wx * wy * wz;
    dx += (k & 1 ? dot : -dot) * wy * wz, dy += (k & 2 ? dot : -dot) * wx * wz, dz += (k & 4 ? dot : -dot) * wx * wy;
    if (sums && w != 0.f) {
      add_to_sum(sums + 3 * at, w * g.x, scale), add_to_sum(sums + 3 * at + 1, w * g.y, scale);
      add_to_sum(sums + 3 * at + 2, w * g.z, scale);
    }
  }
  const float inside_x = n.x > 1 ? c.ox : 0.f, inside_y = n.y > 1 ? c.oy : 0.f, inside_z = n.z > 1 ? c.oz : 0.f;
  grad_inner[i] = make_float4(g.x + inside_x * dx, g.y + inside_y * dy, g.z + inside_z * dz, 0.f);
}

// The sums as floats, plus what is to be added to them, if anything.
KERNEL(settle, (const Sum *__restrict__ sums, const float4 *__restrict__ plus, float4 *__restrict__ out,
                const unsigned *__restrict__ bits, Size n)) {
  const Index i = this_thread();
  if (i >= count_of(n)) return;
  const float4 before = plus ? plus[i] : make_float4(0.f, 0.f, 0.f, 0.f);
  out[i] = make_float4(before.x + value_of(sums[3 * i], bits), before.y + value_of(sums[3 * i + 1], bits),
                       before.z + value_of(sums[3 * i + 2], bits), 0.f);
}
