// Displacements on their own grid: packed into four floats a node, composed, and the gradients of that.

__device__ __forceinline__ float4 node_of(const float *__restrict__ u, Index i, Index count, float scale) {
  return make_float4(scale * u[i], scale * u[count + i], scale * u[2 * count + i], 0.f);
}

// `bits`, if any, becomes the size of the largest component.
KERNEL(pack, (const float *__restrict__ u, float4 *__restrict__ out, unsigned *__restrict__ bits, Size n, float scale)) {
  const Index i = this_thread(), count = count_of(n);
  unsigned most = 0;
  if (i < count) {
    const float4 v = node_of(u, i, count, scale);
    out[i] = v;
    most = size_of(v);
  }
  if (bits) keep_largest(most, bits);
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

// The eight nodes of a cell: where one lies, and its share.
__device__ __forceinline__ Index corner_of(const Cell &c, int k) {
  return c.at + (k & 1 ? c.sx : 0) + (k & 2 ? c.sy : 0) + (k & 4 ? c.sz : 0);
}
__device__ __forceinline__ float share_of(const Cell &c, int k) {
  return (k & 1 ? c.fx : 1.f - c.fx) * (k & 2 ? c.fy : 1.f - c.fy) * (k & 4 ? c.fz : 1.f - c.fz);
}

// inner(x) + outer(x + inner(x)) of the node i; outer(at): the value of a node.
template <class Outer>
__device__ __forceinline__ float4 composed(const Outer &outer, float4 inner, Index i, Size n) {
  const Cell c = cell_after(i, inner, n);
  for (int k = 0; k < 8; ++k) {
    const float4 v = outer(corner_of(c, k));
    const float w = share_of(c, k);
    inner.x += w * v.x, inner.y += w * v.y, inner.z += w * v.z;
  }
  return inner;
}

// scale v, packed; and that composed with itself, where there is an `out`. The first `slots` of `bits` are cleared for
// the sizes of an iteration.
KERNEL(begin_flow, (const float *__restrict__ v, float4 *__restrict__ packed, float4 *__restrict__ out,
                    unsigned *__restrict__ bits, int slots, Size n, float scale)) {
  const Index i = this_thread(), count = count_of(n);
  if (i < slots) bits[i] = 0;
  if (i >= count) return;
  const float4 u = node_of(v, i, count, scale);
  packed[i] = u;
  if (out) out[i] = composed([&](Index at) { return node_of(v, at, count, scale); }, u, i, n);
}

// inner + outer(x + inner(x)), packed or planar.
KERNEL(compose, (const float4 *__restrict__ outer, const float4 *__restrict__ inner, float4 *__restrict__ out,
                 float *__restrict__ planar, Size n)) {
  const Index i = this_thread(), count = count_of(n);
  if (i >= count) return;
  const float4 sum = composed([&](Index at) { return outer[at]; }, inner[i], i, n);
  if (out) out[i] = sum;
  if (planar) planar[i] = sum.x, planar[count + i] = sum.y, planar[2 * count + i] = sum.z;
}

// The adjoint of compose: the gradient becomes that of `inner`, and what goes to `outer` is added to its sums (three a
// node), if any, whose unit follows from `bits`. `next`, if any, becomes the size of the largest component.
KERNEL(compose_adjoint, (const float4 *__restrict__ outer, const float4 *__restrict__ inner,
                         float4 *__restrict__ gradient, Sum *__restrict__ sums, const unsigned *__restrict__ bits,
                         unsigned *__restrict__ next, Size n)) {
  const Index i = this_thread();
  unsigned most = 0;
  if (i < count_of(n)) {
    const float scale = sums ? sum_scale(bits) : 0.f;
    const float4 g = gradient[i];
    const Cell c = cell_after(i, inner[i], n);
    float dx = 0.f, dy = 0.f, dz = 0.f;
    for (int k = 0; k < 8; ++k) {
      const Index at = corner_of(c, k);
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
    const float4 found = make_float4(g.x + inside_x * dx, g.y + inside_y * dy, g.z + inside_z * dz, 0.f);
    gradient[i] = found;
    most = size_of(found);
  }
  if (next) keep_largest(most, next);
}

// A planar gradient is added to a packed one; `bits`, if any, becomes the size of the largest component.
KERNEL(add_planar, (const float *__restrict__ planar, float4 *__restrict__ gradient, unsigned *__restrict__ bits, Size n)) {
  const Index i = this_thread(), count = count_of(n);
  unsigned most = 0;
  if (i < count) {
    const float4 v = node_of(planar, i, count, 1.f);
    float4 g = gradient[i];
    g.x += v.x, g.y += v.y, g.z += v.z;
    gradient[i] = g;
    most = size_of(g);
  }
  if (bits) keep_largest(most, bits);
}

// What a node's three sums are as floats, which are cleared for those that come next.
__device__ __forceinline__ float4 taken(Sum *__restrict__ sums, Index i, const unsigned *bits) {
  const float4 v = make_float4(value_of(sums[3 * i], bits), value_of(sums[3 * i + 1], bits),
                               value_of(sums[3 * i + 2], bits), 0.f);
  sums[3 * i] = sums[3 * i + 1] = sums[3 * i + 2] = 0;
  return v;
}

// The sums are added to the gradient, if there is one; the result, times `scale`, goes there or to `planar`. `next`, if
// any, becomes the size of the largest component.
KERNEL(settle, (Sum *__restrict__ sums, float4 *__restrict__ gradient, float *__restrict__ planar, float scale,
                const unsigned *__restrict__ bits, unsigned *__restrict__ next, Size n)) {
  const Index i = this_thread(), count = count_of(n);
  unsigned most = 0;
  if (i < count) {
    float4 v = taken(sums, i, bits);
    if (gradient) {
      const float4 before = gradient[i];
      v.x += before.x, v.y += before.y, v.z += before.z;
    }
    if (planar) {
      planar[i] = scale * v.x, planar[count + i] = scale * v.y, planar[2 * count + i] = scale * v.z;
    } else {
      gradient[i] = v;
    }
    most = size_of(v);
  }
  if (next) keep_largest(most, next);
}

// The end of an iteration: the sums, if any, are added to the gradient, which times `scale` is that of the planar
// parameters, and Adam takes its step.
KERNEL(settle_adam, (Sum *__restrict__ sums, const float4 *__restrict__ gradient, float scale,
                     const unsigned *__restrict__ bits, Size n, float *__restrict__ parameter,
                     float *__restrict__ first, float *__restrict__ second, AdamRates rates)) {
  const Index i = this_thread(), count = count_of(n);
  if (i >= count) return;
  float4 g = gradient[i];
  if (sums) {
    const float4 v = taken(sums, i, bits);
    g.x += v.x, g.y += v.y, g.z += v.z;
  }
  adam_step(parameter, first, second, i, scale * g.x, rates);
  adam_step(parameter, first, second, count + i, scale * g.y, rates);
  adam_step(parameter, first, second, 2 * count + i, scale * g.z, rates);
}
