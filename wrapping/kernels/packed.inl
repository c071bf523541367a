// Packed fields, the components of a point side by side: to and from planes, and where a position lies in them.

void pack(const float *planar, float *packed, long count, float scale, int threads) {
  const long step = 16384;
  parallel_for(static_cast<int>((count + step - 1) / step), threads, [&](int t) {
    const long end = std::min(count, (t + 1) * step);
    for (long i = t * step; i < end; ++i) {
      store4(packed + 4 * i, V4{planar[i], planar[count + i], planar[2 * count + i], 0.f} * splat(scale));
    }
  });
}

void unpack(const float *packed, float *planar, long count, float scale, int threads) {
  const long step = 16384;
  parallel_for(static_cast<int>((count + step - 1) / step), threads, [&](int t) {
    const long end = std::min(count, (t + 1) * step);
    for (long i = t * step; i < end; ++i) {
      for (int c = 0; c < 3; ++c) planar[c * count + i] = scale * packed[4 * i + c];
    }
  });
}

struct Cell {
  long at;           // packed offset of the lower corner
  long sx, sy, sz;   // packed strides to the upper corners (0 along an axis of one)
  float fx, fy, fz;  // position within the cell
  float ox, oy, oz;  // 1 inside the grid, 0 where the position was clamped
};

inline Cell locate(Size n, float x, float y, float z) {
  const float hx = float(n.x - 1), hy = float(n.y - 1), hz = float(n.z - 1);
  const float cx = x > 0.f ? (x < hx ? x : hx) : 0.f;
  const float cy = y > 0.f ? (y < hy ? y : hy) : 0.f;
  const float cz = z > 0.f ? (z < hz ? z : hz) : 0.f;
  const int ix = std::min(int(cx), std::max(0, n.x - 2)), iy = std::min(int(cy), std::max(0, n.y - 2)),
            iz = std::min(int(cz), std::max(0, n.z - 2));
  Cell c;
  c.at = 4 * (ix + static_cast<long>(n.x) * (iy + static_cast<long>(n.y) * iz));
  c.sx = n.x > 1 ? 4 : 0;
  c.sy = n.y > 1 ? 4L * n.x : 0;
  c.sz = n.z > 1 ? 4L * n.x * n.y : 0;
  c.fx = cx - ix;
  c.fy = cy - iy;
  c.fz = cz - iz;
  c.ox = cx == x ? 1.f : 0.f;
  c.oy = cy == y ? 1.f : 0.f;
  c.oz = cz == z ? 1.f : 0.f;
  return c;
}

// The same for a run of points along x, a component at a time.
struct Cells {
  static constexpr int run = 64;
  int at[run];  // lower corner, in points
  float fx[run], fy[run], fz[run];

  // Points (x, y, z) … (x + length - 1, y, z) displaced by `u`, packed. `low` is a lower bound of the plane of all of
  // them; only a displacement that is not a number comes to lie below it.
  void locate(Size n, const float *__restrict u, int length, int x, int y, int z, float low) {
    const float hx = float(n.x - 1), hy = float(n.y - 1), hz = float(n.z - 1);
    const float lx = float(std::max(0, n.x - 2)), ly = float(std::max(0, n.y - 2)), lz = float(std::max(0, n.z - 2));
    const float x0 = float(x), y0 = float(y), z0 = float(z);
    const int sy = n.x, sz = n.x * n.y;
#pragma omp simd
    for (int i = 0; i < length; ++i) {
      const float px = u[4 * i] + (x0 + float(i)), py = u[4 * i + 1] + y0, pz = u[4 * i + 2] + z0;
      const float cx = px > 0.f ? (px < hx ? px : hx) : 0.f;
      const float cy = py > 0.f ? (py < hy ? py : hy) : 0.f;
      const float cz = pz > low ? (pz < hz ? pz : hz) : low;
      const int ix = int(cx < lx ? cx : lx), iy = int(cy < ly ? cy : ly), iz = int(cz < lz ? cz : lz);
      at[i] = ix + sy * iy + sz * iz;
      fx[i] = cx - float(ix);
      fy[i] = cy - float(iy);
      fz[i] = cz - float(iz);
    }
  }
};
