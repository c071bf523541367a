// Matches over long distances: how unlike two images are around a node for every displacement of a whole number of
// voxels, and the choice among those. All sums are of whole numbers: exact, in any order.

// One at which a cost is that of positions which have nothing to do with each other.
constexpr float cost_scale = 8192.f;

// Sum of the absolute differences of the sixteen bytes of two voxels.
inline int byte_differences(const std::uint8_t *a, const std::uint8_t *b) {
#if defined(__SSE2__)
  // The one instruction that does it, which compilers do not always find.
  const __m128i va = _mm_loadu_si128(reinterpret_cast<const __m128i *>(a));
  const __m128i halves = _mm_sad_epu8(va, _mm_loadu_si128(reinterpret_cast<const __m128i *>(b)));
  return _mm_cvtsi128_si32(halves) + _mm_extract_epi16(halves, 4);
#else
  int sum = 0;
  for (int c = 0; c < descriptor_bytes; ++c) sum += std::abs(int(a[c]) - int(b[c]));
  return sum;
#endif
}

// The sums over three neighbouring blocks along an axis, in place; beyond the image there is nothing. `stride` from one
// block to the next along it, `run` numbers a block.
inline void add_neighbours(int *values, int count, long stride, int run, int *previous) {
  if (count == 1) return;
  std::fill(previous, previous + run, 0);
  for (int k = 0; k < count; ++k) {
    int *const here = values + k * stride;
    const int *const next = k + 1 < count ? here + stride : nullptr;
    for (int i = 0; i < run; ++i) {
      const int old = here[i];
      here[i] = previous[i] + old + (next ? next[i] : 0);
      previous[i] = old;
    }
  }
}

// A row of displacements along x at a time: the block sums of the whole image, then those of the blocks around.
void match_costs(const std::uint8_t *fixed, const std::uint8_t *fixed_counts, Size n, const std::uint8_t *moving,
                 const std::uint8_t *moving_counts, Size reach, Size block, int unrelated, std::uint16_t *costs,
                 int threads) {
  const Size m = {n.x + 2 * reach.x, n.y + 2 * reach.y, n.z + 2 * reach.z};
  const auto blocks = [](int size, int edge) { return (size + edge - 1) / edge; };
  const Size nodes = {blocks(n.x, block.x), blocks(n.y, block.y), blocks(n.z, block.z)};
  const int lx = 2 * reach.x + 1, ly = 2 * reach.y + 1, lz = 2 * reach.z + 1;
  const long labels = static_cast<long>(lx) * ly * lz, plane = static_cast<long>(nodes.x) * nodes.y;
  const auto around = [](int count) { return count > 1 ? 3 : 1; };
  const float scale = cost_scale / (float(unrelated) * float(block.count()) * float(around(nodes.x)) *
                                    float(around(nodes.y)) * float(around(nodes.z)));
  parallel_for(ly * lz, threads, [&](int task) {
    const int dy = task % ly, dz = task / ly;
    std::vector<int> sums(nodes.count() * lx, 0), previous(plane * lx);
    for (int z = 0; z < n.z; ++z) {
      for (int y = 0; y < n.y; ++y) {
        const long row = (static_cast<long>(z) * n.y + y) * n.x;
        const long other = (static_cast<long>(z + dz) * m.y + (y + dy)) * m.x;
        int *const to = sums.data() + ((z / block.z) * plane + static_cast<long>(y / block.y) * nodes.x) * lx;
        for (int x = 0; x < n.x; ++x) {
          if (!fixed_counts[row + x]) continue;
          const std::uint8_t *const f = fixed + (row + x) * descriptor_bytes;
          const std::uint8_t *const g = moving + (other + x) * descriptor_bytes;
          const std::uint8_t *const counts = moving_counts + other + x;
          int *const sum = to + static_cast<long>(x / block.x) * lx;
          for (int d = 0; d < lx; ++d) {
            const int far = byte_differences(f, g + static_cast<long>(d) * descriptor_bytes);
            sum[d] += counts[d] ? far : unrelated;
          }
        }
      }
    }
    for (int k = 0; k < nodes.y * nodes.z; ++k) {
      add_neighbours(sums.data() + static_cast<long>(k) * nodes.x * lx, nodes.x, lx, lx, previous.data());
    }
    for (int z = 0; z < nodes.z; ++z) {
      add_neighbours(sums.data() + z * plane * lx, nodes.y, static_cast<long>(nodes.x) * lx, nodes.x * lx,
                     previous.data());
    }
    add_neighbours(sums.data(), nodes.z, plane * lx, int(plane) * lx, previous.data());
    const long first = (static_cast<long>(dz) * ly + dy) * lx;
    for (long node = 0; node < nodes.count(); ++node) {
      const int *const from = sums.data() + node * lx;
      std::uint16_t *const to = costs + node * labels + first;
      for (int d = 0; d < lx; ++d) to[d] = std::uint16_t(std::min(65535.f, float(from[d]) * scale + 0.5f));
    }
  });
}

// For every node the displacement d of least cost(d) + weight |d - wanted|^2, the first of several, and its cost.
void best_matches(const std::uint16_t *costs, const float *wanted, long nodes, Size reach, float weight, float *found,
                  float *cost, int threads) {
  const int lx = 2 * reach.x + 1, ly = 2 * reach.y + 1, lz = 2 * reach.z + 1;
  const long labels = static_cast<long>(lx) * ly * lz, step = 16;
  parallel_for(int((nodes + step - 1) / step), threads, [&](int task) {
    std::vector<float> along(lx), row(lx);
    for (long node = task * step; node < std::min(nodes, (task + 1) * step); ++node) {
      const std::uint16_t *const own = costs + node * labels;
      const float ux = wanted[node], uy = wanted[nodes + node], uz = wanted[2 * nodes + node];
      for (int i = 0; i < lx; ++i) along[i] = weight * (float(i - reach.x) - ux) * (float(i - reach.x) - ux);
      float least = INFINITY;
      long at = 0;
      for (int k = 0; k < lz; ++k) {
        for (int j = 0; j < ly; ++j) {
          const float dy = float(j - reach.y) - uy, dz = float(k - reach.z) - uz, across = weight * (dy * dy + dz * dz);
          if (!(across < least)) continue;
          const long first = (static_cast<long>(k) * ly + j) * lx;
          const std::uint16_t *__restrict from = own + first;
          float *__restrict to = row.data();
          const float *__restrict add = along.data();
#pragma omp simd
          for (int i = 0; i < lx; ++i) to[i] = float(from[i]) * (1.f / cost_scale) + (add[i] + across);
          for (int i = 0; i < lx; ++i) {
            if (to[i] < least) {
              least = to[i];
              at = first + i;
            }
          }
        }
      }
      found[node] = float(int(at % lx) - reach.x);
      found[nodes + node] = float(int(at / lx % ly) - reach.y);
      found[2 * nodes + node] = float(int(at / lx / ly) - reach.z);
      cost[node] = float(own[at]) / cost_scale;
    }
  });
}
