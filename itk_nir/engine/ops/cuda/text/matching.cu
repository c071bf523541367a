// Matches over long distances: how unlike two images are around a node for every displacement of a whole number of
// voxels, and the choice among those. All sums are of whole numbers: exact, in any order. A voxel is 16 bytes, loaded as
// four floats, whose bits alone count.

// Sum of the absolute differences of four bytes.
__device__ __forceinline__ int byte_differences(float a, float b) {
  const unsigned p = __float_as_uint(a), q = __float_as_uint(b);
  int sum = 0;
#pragma unroll
  for (int k = 0; k < 32; k += 8) {
    const int far = static_cast<int>(p >> k & 255u) - static_cast<int>(q >> k & 255u);
    sum += far < 0 ? -far : far;
  }
  return sum;
}

__device__ __forceinline__ int number_of(int size, int edge) { return (size + edge - 1) / edge; }

// The differences summed over the block of every node: out[node][label], labels of the planes dz0 … dz0 + planes - 1 of
// all displacements, x fastest.
KERNEL(block_differences, (const float4 *__restrict__ fixed, const unsigned char *__restrict__ fixed_counts, Size n,
                           const float4 *__restrict__ moving, const unsigned char *__restrict__ moving_counts, Size reach,
                           Size block, int unrelated, int dz0, int planes, int *__restrict__ out)) {
  const int lx = 2 * reach.x + 1, ly = 2 * reach.y + 1;
  const int nx = number_of(n.x, block.x), ny = number_of(n.y, block.y), nz = number_of(n.z, block.z);
  const int labels = lx * ly * planes;
  const int i = static_cast<int>(this_thread());  // there are fewer sums than that
  if (i >= labels * nx * ny * nz) return;
  const Voxel which = voxel_of(i, {labels, nx * ny * nz, 1});  // label and node
  const Voxel label = voxel_of(which.x, {lx, ly, planes}), node = voxel_of(which.y, {nx, ny, nz});
  const int dx = label.x, dy = label.y, dz = dz0 + label.z;
  const int x0 = node.x * block.x, y0 = node.y * block.y, z0 = node.z * block.z;
  const int wide = min(block.x, n.x - x0), high = min(block.y, n.y - y0), deep = min(block.z, n.z - z0);
  const int m_x = n.x + 2 * reach.x, m_y = n.y + 2 * reach.y;
  int here = (z0 * n.y + y0) * n.x + x0, there = ((z0 + dz) * m_y + y0 + dy) * m_x + x0 + dx;
  int sum = 0;
#pragma unroll 1
  for (int z = 0; z < deep; ++z) {
#pragma unroll 1
    for (int y = 0; y < high; ++y) {
#pragma unroll 1
      for (int x = 0; x < wide; ++x) {
        if (!fixed_counts[here + x]) continue;
        if (!moving_counts[there + x]) {
          sum += unrelated;
          continue;
        }
        const float4 a = fixed[here + x], b = moving[there + x];
        sum += byte_differences(a.x, b.x) + byte_differences(a.y, b.y) + byte_differences(a.z, b.z) +
               byte_differences(a.w, b.w);
      }
      here += n.x, there += m_x;
    }
    // To the next plane.
    here += n.x * (n.y - high), there += m_x * (m_y - high);
  }
  out[i] = sum;
}

// The sums over the nodes around as well, as costs: costs[node][label], of all displacements, from label `first` on.
KERNEL(costs_around, (const int *__restrict__ sums, Size nodes, int labels, float scale, Index first, Index all,
                      unsigned short *__restrict__ costs)) {
  const int i = static_cast<int>(this_thread());
  if (i >= count_of(nodes) * labels) return;
  const Voxel which = voxel_of(i, {labels, static_cast<int>(count_of(nodes)), 1}), v = voxel_of(which.y, nodes);
  const Index label = which.x, node = which.y;
  int sum = 0;
  for (int c = max(v.z - 1, 0); c <= min(v.z + 1, nodes.z - 1); ++c) {
    for (int b = max(v.y - 1, 0); b <= min(v.y + 1, nodes.y - 1); ++b) {
      for (int a = max(v.x - 1, 0); a <= min(v.x + 1, nodes.x - 1); ++a) {
        sum += sums[((static_cast<Index>(c) * nodes.y + b) * nodes.x + a) * labels + label];
      }
    }
  }
  // Rounded twice, as on the CPU.
  const float cost = __fmul_rn(static_cast<float>(sum), scale) + 0.5f;
  costs[node * all + first + label] = static_cast<unsigned short>(fminf(cost, 65535.f));
}

// For every node, a block each, the displacement d of least cost(d) + weight |d - wanted|^2, the first of several, and
// its cost.
KERNEL(best_matches, (const unsigned short *__restrict__ costs, const float *__restrict__ wanted, Index nodes, Size reach,
                      float weight, float *__restrict__ found, float *__restrict__ cost)) {
  SHARED(shared);
  float *const values = shared;
  int *const indices = reinterpret_cast<int *>(shared + 256);
  const int lx = 2 * reach.x + 1, ly = 2 * reach.y + 1, lz = 2 * reach.z + 1, labels = lx * ly * lz;
  const Index node = blockIdx.x;
  const unsigned short *const own = costs + node * labels;
  const float ux = wanted[node], uy = wanted[nodes + node], uz = wanted[2 * nodes + node], unit = 1.f / 8192.f;
  const int t = threadIdx.x;
  float least = __uint_as_float(0x7f800000u);
  int at = 0;
  for (int i = t; i < labels; i += 256) {
    const float dx = static_cast<float>(i % lx - reach.x) - ux, dy = static_cast<float>(i / lx % ly - reach.y) - uy;
    const float dz = static_cast<float>(i / lx / ly - reach.z) - uz;
    const float value = static_cast<float>(own[i]) * unit + weight * (dx * dx + dy * dy + dz * dz);
    if (value < least) least = value, at = i;
  }
  values[t] = least, indices[t] = at;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (t >= half) continue;
    const float other = values[t + half];
    const int its = indices[t + half];
    if (other < values[t] || (other == values[t] && its < indices[t])) values[t] = other, indices[t] = its;
  }
  if (t) return;
  const int best = indices[0];
  found[node] = static_cast<float>(best % lx - reach.x);
  found[nodes + node] = static_cast<float>(best / lx % ly - reach.y);
  found[2 * nodes + node] = static_cast<float>(best / lx / ly - reach.z);
  cost[node] = static_cast<float>(own[best]) * unit;
}
