// The penalties of a displacement and their gradients, planar (components one after another). A thread gathers what its
// node is part of: nothing is scattered, and a block leaves one partial sum. Blocks of 32 x 4 x 2 nodes.

__device__ __forceinline__ int thread_of_block() { return threadIdx.x + 32 * (threadIdx.y + 4 * threadIdx.z); }

__device__ __forceinline__ int number_of_block() {
  return (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
}

struct Node {
  Index at;
  int x, y, z;
};

// The squared differences of a node to those after it; at the border, where there is none, the difference is zero.
__device__ __forceinline__ float squared_differences(const float *u, int components, Size n, Node i) {
  const Index count = count_of(n);
  const int after_x = i.x + 1 < n.x ? 1 : 0, after_y = i.y + 1 < n.y ? n.x : 0, after_z = i.z + 1 < n.z ? n.x * n.y : 0;
  float sum = 0.f;
  for (int k = 0; k < components; ++k) {
    const float *p = u + k * count + i.at;
    const float here = p[0], dx = p[after_x] - here, dy = p[after_y] - here, dz = p[after_z] - here;
    sum += dx * dx + dy * dy + dz * dz;
  }
  return sum;
}

// sum_i s^2 log(1 + g_i / s^2), g_i the squared differences of node i to those after it, all components together, and
// s^2 given by its inverse; sum_i g_i where that is 0.
KERNEL(diffusion, (const float *__restrict__ u, int components, Size n, float inverse, float *__restrict__ gradient,
                   float *__restrict__ partial)) {
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 4 + threadIdx.y, z = blockIdx.z * 2 + threadIdx.z;
  float energy = 0.f;
  if (x < n.x && y < n.y && z < n.z) {
    const Index plane = static_cast<Index>(n.x) * n.y, count = plane * n.z, at = z * plane + static_cast<Index>(y) * n.x + x;
    const int before_x = x > 0 ? 1 : 0, before_y = y > 0 ? n.x : 0, before_z = z > 0 ? n.x * n.y : 0;
    const int after_x = x + 1 < n.x ? 1 : 0, after_y = y + 1 < n.y ? n.x : 0, after_z = z + 1 < n.z ? n.x * n.y : 0;
    const float g = squared_differences(u, components, n, {at, x, y, z});
    float weight = 1.f, weight_x = 1.f, weight_y = 1.f, weight_z = 1.f;
    if (inverse > 0.f) {
      // log(1 + p), made good for what 1 + p rounds away.
      const float p = g * inverse, q = 1.f + p;
      energy = (logf(q) + (p - (q - 1.f)) / q) / inverse;
      weight = 1.f / q;
      // The differences to the nodes before are weighted as those nodes are.
      if (before_x) weight_x = 1.f / (1.f + inverse * squared_differences(u, components, n, {at - 1, x - 1, y, z}));
      if (before_y) weight_y = 1.f / (1.f + inverse * squared_differences(u, components, n, {at - n.x, x, y - 1, z}));
      if (before_z) weight_z = 1.f / (1.f + inverse * squared_differences(u, components, n, {at - plane, x, y, z - 1}));
    } else {
      energy = g;
    }
#pragma unroll 1
    for (int k = 0; k < components; ++k) {
      const float *p = u + k * count + at;
      const float here = p[0];
      const float in = weight_x * (here - p[-before_x]) + weight_y * (here - p[-before_y]) +
                       weight_z * (here - p[-before_z]);
      const float out = (p[after_x] - here) + (p[after_y] - here) + (p[after_z] - here);
      gradient[k * count + at] = 2.f * (in - weight * out);
    }
  }
  SHARED(shared);
  const float sum = block_sum(energy, shared, thread_of_block());
  if (thread_of_block() == 0) partial[number_of_block()] = sum;
}

// The Jacobian matrix of the cell whose chosen corner is node (x, y, z), by the differences from there, and what its
// determinant lacks to `margin`; 0 where there is no such cell. `sign` is the way from the chosen corner to the others
// along each axis, 1 or -1; u(at): the displacement of a node.
template <class Nodes>
__device__ __forceinline__ float lack_of_cell(const Nodes &u, Size n, float margin, const int *sign, int x, int y, int z,
                                              float m[3][3]) {
  const int ox = x + sign[0], oy = y + sign[1], oz = z + sign[2];
  const bool here = x >= 0 && x < n.x && y >= 0 && y < n.y && z >= 0 && z < n.z;
  // An axis of one node counts as uniform.
  const bool whole = (n.x == 1 || (ox >= 0 && ox < n.x)) && (n.y == 1 || (oy >= 0 && oy < n.y)) &&
                     (n.z == 1 || (oz >= 0 && oz < n.z));
  if (!here || !whole) return 0.f;
  const Index plane = static_cast<Index>(n.x) * n.y, at = z * plane + static_cast<Index>(y) * n.x + x;
  const Index step[3] = {n.x > 1 ? sign[0] : 0, n.y > 1 ? static_cast<Index>(sign[1]) * n.x : 0,
                         n.z > 1 ? sign[2] * plane : 0};
  const float4 c = u(at);
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const float4 v = u(at + step[a]);
    m[0][a] = sign[a] * (v.x - c.x), m[1][a] = sign[a] * (v.y - c.y), m[2][a] = sign[a] * (v.z - c.z);
    m[a][a] += 1.f;
  }
  const float determinant = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) +
                            m[0][1] * (m[1][2] * m[2][0] - m[1][0] * m[2][2]) +
                            m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
  const float lack = margin - determinant;
  // So written that what is not a number is passed on.
  return lack <= 0.f ? 0.f : lack;
}

// The derivative of the determinant by m[i][a].
__device__ __forceinline__ float cofactor(const float m[3][3], int i, int a) {
  const int j = (i + 1) % 3, k = (i + 2) % 3, e = (a + 1) % 3, f = (a + 2) % 3;
  return m[j][e] * m[k][f] - m[j][f] * m[k][e];
}

// What a node has to do with the sum over cells of relu(margin - det(I + du))^2, u in voxels: it is the chosen corner of
// one cell, whose share of the sum is returned, and one of the others in three. `g` becomes the gradient.
template <class Nodes>
__device__ __forceinline__ float penalty_at(const Nodes &u, Size n, float margin, int corner, int x, int y, int z,
                                            float *g) {
  const int sign[3] = {corner & 1 ? -1 : 1, corner & 2 ? -1 : 1, corner & 4 ? -1 : 1};
  const int more[3] = {n.x > 1, n.y > 1, n.z > 1};
  float m[3][3];
  g[0] = g[1] = g[2] = 0.f;
  const float own = lack_of_cell(u, n, margin, sign, x, y, z, m);
  if (own != 0.f) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        if (more[a]) g[i] += 2.f * own * sign[a] * cofactor(m, i, a);
      }
    }
  }
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (!more[a]) continue;
    const float lack = lack_of_cell(u, n, margin, sign, a == 0 ? x - sign[0] : x, a == 1 ? y - sign[1] : y,
                                    a == 2 ? z - sign[2] : z, m);
    if (lack != 0.f) {
#pragma unroll
      for (int i = 0; i < 3; ++i) g[i] -= 2.f * lack * sign[a] * cofactor(m, i, a);
    }
  }
  return own * own;
}

KERNEL(jacobian_penalty, (const float *__restrict__ u, Size n, float margin, int corner, float *__restrict__ gradient,
                          float *__restrict__ partial)) {
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 4 + threadIdx.y, z = blockIdx.z * 2 + threadIdx.z;
  float energy = 0.f;
  if (x < n.x && y < n.y && z < n.z) {
    const Index plane = static_cast<Index>(n.x) * n.y, count = plane * n.z, at = z * plane + static_cast<Index>(y) * n.x + x;
    float g[3];
    energy = penalty_at([&](Index i) { return make_float4(u[i], u[count + i], u[2 * count + i], 0.f); }, n, margin,
                        corner, x, y, z, g);
#pragma unroll
    for (int i = 0; i < 3; ++i) gradient[i * count + at] = g[i];
  }
  SHARED(shared);
  const float sum = block_sum(energy, shared, thread_of_block());
  if (thread_of_block() == 0) partial[number_of_block()] = sum;
}

__device__ __forceinline__ float squared(float4 a, float4 b) {
  const float x = b.x - a.x, y = b.y - a.y, z = b.z - a.z;
  return x * x + y * y + z * z;
}

// `squared_differences` of packed displacements.
__device__ __forceinline__ float squared_differences(const float4 *__restrict__ u, Size n, Node i) {
  const float4 here = u[i.at];
  float sum = 0.f;
  if (i.x + 1 < n.x) sum += squared(here, u[i.at + 1]);
  if (i.y + 1 < n.y) sum += squared(here, u[i.at + n.x]);
  if (i.z + 1 < n.z) sum += squared(here, u[i.at + static_cast<Index>(n.x) * n.y]);
  return sum;
}

// Both penalties of an iteration, of displacements that are packed, and the gradient of their weighted sum. Where a
// weight is 0 its penalty is not evaluated. `partial`: what the blocks have of the one, then of the other.
struct Penalties {
  float inverse, diffusion_weight, margin, jacobian_weight;
};
KERNEL(penalties, (const float4 *__restrict__ u, Size n, Penalties p, int corner, float4 *__restrict__ gradient,
                   float *__restrict__ partial)) {
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 4 + threadIdx.y, z = blockIdx.z * 2 + threadIdx.z;
  float energy = 0.f, lacking = 0.f;
  if (x < n.x && y < n.y && z < n.z) {
    const Index plane = static_cast<Index>(n.x) * n.y, at = z * plane + static_cast<Index>(y) * n.x + x;
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
    if (p.diffusion_weight > 0.f) {
      const float4 here = u[at];
      const float g = squared_differences(u, n, {at, x, y, z});
      float weight = 1.f;
      if (p.inverse > 0.f) {
        // log(1 + q), made good for what 1 + q rounds away.
        const float q = g * p.inverse, whole = 1.f + q;
        energy = (logf(whole) + (q - (whole - 1.f)) / whole) / p.inverse;
        weight = 1.f / whole;
      } else {
        energy = g;
      }
      const int position[3] = {x, y, z}, size[3] = {n.x, n.y, n.z};
      const Index step[3] = {1, n.x, plane};
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        if (position[a] > 0) {
          // The differences to the nodes before are weighted as those nodes are.
          const Index before = at - step[a];
          const Node there = {before, a == 0 ? x - 1 : x, a == 1 ? y - 1 : y, a == 2 ? z - 1 : z};
          const float w = p.inverse > 0.f ? 1.f / (1.f + p.inverse * squared_differences(u, n, there)) : 1.f;
          const float4 v = u[before];
          total.x += w * (here.x - v.x), total.y += w * (here.y - v.y), total.z += w * (here.z - v.z);
        }
        if (position[a] + 1 < size[a]) {
          const float4 v = u[at + step[a]];
          total.x -= weight * (v.x - here.x), total.y -= weight * (v.y - here.y), total.z -= weight * (v.z - here.z);
        }
      }
      const float factor = 2.f * p.diffusion_weight;
      total.x *= factor, total.y *= factor, total.z *= factor;
    }
    if (p.jacobian_weight > 0.f) {
      float g[3];
      lacking = penalty_at([&](Index i) { return u[i]; }, n, p.margin, corner, x, y, z, g);
      total.x += p.jacobian_weight * g[0], total.y += p.jacobian_weight * g[1], total.z += p.jacobian_weight * g[2];
    }
    gradient[at] = total;
  }
  SHARED(shared);
  const float one = block_sum(energy, shared, thread_of_block()), other = block_sum(lacking, shared, thread_of_block());
  if (thread_of_block() == 0) {
    const int blocks = gridDim.x * gridDim.y * gridDim.z;
    partial[number_of_block()] = one, partial[blocks + number_of_block()] = other;
  }
}
