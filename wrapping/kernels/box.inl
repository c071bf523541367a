// Sums over cubic windows of an image.

// Sums of Q quantities over (2r+1)^3 windows cut at the border of the image, a tile of the volume at a time.
//   fill(z, y, rows): writes the Q quantities of one image row into rows[0..Q-1].
//   use(z, y, rows): gets the Q rows of window sums centred on (z, y), and one spare row to write to.
//
// Along x each window is summed directly. Along y and z the axis is cut into blocks as long as the window, so that a
// window is the end of one block and the start of the next: the sum of the starts runs along with the data, the sums
// of the ends are made when a block is complete (van Herk, Pattern Recognit. Lett. 13(7), 1992; Gil and Werman, IEEE
// TPAMI 15(5), 1993, there for maxima). Nothing is ever subtracted, so no error builds up, and as the blocks are those
// of the whole image, no sum depends on the tiles.
template <int W, int Q, class Fill, class Use>
void box_tile(Size n, int radius, int y0, int y1, int z0, int z1, const Fill &fill, const Use &use) {
  const int width = 2 * radius + 1;
  const int ya = std::max(0, y0 - radius), za = std::max(0, z0 - radius);
  // Rows are padded to whole vectors: no loop has a remainder.
  const int row = (n.x + 15) / 16 * 16, pad = row + (2 * radius + 15) / 16 * 16;
  const long block = static_cast<long>(Q) * row;  // one row of all quantities
  const long tile = (y1 - y0) * block;
  // The scratch of a thread lives as long as the thread: allocating it anew for every tile costs page faults.
  thread_local std::vector<float> buffer;
  const long need = Q * pad + (width + 1) * block + (width + 1) * tile + block + 2 * row + 16;
  if (static_cast<long>(buffer.size()) < need) buffer.resize(need);
  float *const input = buffer.data() + (64 - reinterpret_cast<std::uintptr_t>(buffer.data()) % 64) % 64 / sizeof(float);
  float *const ring_y = input + Q * pad, *const start_y = ring_y + width * block;
  float *const ring_z = start_y + block, *const start_z = ring_z + width * tile;
  float *const sums = start_z + tile, *const zero = sums + block + row;
  std::fill(input, input + Q * pad, 0.f);
  std::fill(zero, zero + row, 0.f);
  float *inside[Q], *out[Q + 1];
  for (int q = 0; q < Q; ++q) inside[q] = input + static_cast<long>(q) * pad + radius;
  for (int q = 0; q <= Q; ++q) out[q] = sums + static_cast<long>(q) * row;
  // Turns a complete block of rows into the sums from each of them to the last.
  const auto make_ends = [&](float *ring, long stride, int from) {
    for (int q = 0; q < Q; ++q) {
      for (int j = width - 2; j >= from; --j) {
        float *__restrict a = ring + j * stride + static_cast<long>(q) * row;
        const float *__restrict b = a + stride;
        for (int x = 0; x < row; ++x) a[x] += b[x];
      }
    }
  };
  for (int z = za; z < z1 + radius; ++z) {
    const int kz = z % width, centre_z = z - radius;
    const bool first_z = kz == 0 || z == za, ends_z = kz < width - 1 && z - width + 1 >= 0;
    const bool wanted = centre_z >= z0;
    float *const slot_z = ring_z + kz * tile;
    for (int y = z < n.z ? ya : y0 + radius; y < y1 + radius; ++y) {
      const int ky = y % width, centre = y - radius;
      const bool first_y = ky == 0 || y == ya, ends_y = ky < width - 1 && y - width + 1 >= 0;
      const long at = (centre - y0) * block;
      const bool image = z < n.z && y < n.y;
      if (image) fill(z, y, inside);
      for (int q = 0; q < Q; ++q) {
        const long shift = static_cast<long>(q) * row;
        const float *__restrict in = input + static_cast<long>(q) * pad;
        float *__restrict slot = ring_y + ky * block + shift;
        float *__restrict run = start_y + shift;
        const float *__restrict end = ends_y ? ring_y + (ky + 1) * block + shift : zero;
        float *__restrict slab = slot_z + at + shift;
        float *__restrict run_z = start_z + at + shift;
        const float *end_z = ends_z ? slot_z + tile + at + shift : zero;
        float *__restrict total = out[q];
        if (z >= n.z) {
          for (int x = 0; x < row; ++x) slab[x] = 0.f;
        } else {
          if (!image) {
            for (int x = 0; x < row; ++x) slot[x] = 0.f;
          } else if constexpr (W > 0) {
#pragma omp simd
            for (int x = 0; x < row; ++x) {
              float s = in[x];
              for (int k = 1; k < W; ++k) s += in[x + k];
              slot[x] = s;
            }
          } else {
            std::memcpy(slot, in, sizeof(float) * row);
            for (int k = 1; k < width; ++k) {
              for (int x = 0; x < row; ++x) slot[x] += in[x + k];
            }
          }
          if (first_y) {
            std::memcpy(run, slot, sizeof(float) * row);
          } else {
            for (int x = 0; x < row; ++x) run[x] += slot[x];
          }
          if (centre < y0) continue;
          for (int x = 0; x < row; ++x) slab[x] = run[x] + end[x];
        }
        if (first_z) {
          for (int x = 0; x < row; ++x) {
            const float s = slab[x];
            run_z[x] = s;
            total[x] = s + end_z[x];
          }
        } else {
          for (int x = 0; x < row; ++x) {
            const float s = run_z[x] + slab[x];
            run_z[x] = s;
            total[x] = s + end_z[x];
          }
        }
      }
      if (centre >= y0) {
        if (wanted) use(centre_z, centre, out);
        if (kz == width - 1) make_ends(ring_z + at, tile, std::max(0, kz - (z - za)));
      }
      if (ky == width - 1 && z < n.z) make_ends(ring_y, block, std::max(0, ky - (y - ya)));
    }
  }
}

template <int Q, class Fill, class Use>
void box_sums(Size n, int radius, int threads, const Fill &fill, const Use &use) {
  // What a tile works on should stay in the second-level cache; no more tiles than keep the threads busy, as every
  // tile repeats some work at its border. (The sums do not depend on the tiles.)
  const int rows = n.x > 256 ? 16 : 32;
  const int ty = (n.y + rows - 1) / rows;
  const int tz = threads > 1 ? std::max(1, std::min(n.z / 16, (4 * threads + ty - 1) / ty)) : 1;
  parallel_for(ty * tz, threads, [&](int t) {
    const int iy = t % ty, iz = t / ty;
    const int y0 = static_cast<int>(static_cast<long>(n.y) * iy / ty);
    const int y1 = static_cast<int>(static_cast<long>(n.y) * (iy + 1) / ty);
    const int z0 = static_cast<int>(static_cast<long>(n.z) * iz / tz);
    const int z1 = static_cast<int>(static_cast<long>(n.z) * (iz + 1) / tz);
    switch (radius) {
      case 1: box_tile<3, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 2: box_tile<5, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 3: box_tile<7, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 4: box_tile<9, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 5: box_tile<11, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 6: box_tile<13, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 7: box_tile<15, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      case 8: box_tile<17, Q>(n, radius, y0, y1, z0, z1, fill, use); break;
      default: box_tile<0, Q>(n, radius, y0, y1, z0, z1, fill, use);
    }
  });
}
