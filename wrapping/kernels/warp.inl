// An image seen through a displacement field and a linear map, with its gradient.

// Where the voxels of a run of a row come from: a vector of them at a time. `Spline`: `u` is a spline whose last axis is
// still to be evaluated.
template <bool WithGradient, bool Spline>
struct Origins {
  static constexpr int run = 64;

  Origins(Size m, const Displacement &u, Size n, const double *grid_to_moving, const double *displacement_to_moving)
      : m(m), n(n), u(u), points(grid_to_moving) {
    for (int k = 0; k < 9; ++k) a[k] = float(displacement_to_moving[k]);
  }

  // Voxels x0 … x0 + length - 1 of a row.
  void find(long row, int x0, int length) {
    const long count = n.count(), first = row * n.x + x0;
    const int z = static_cast<int>(row / n.y), y = static_cast<int>(row % n.y);
    if (Spline) {
      const long plane = static_cast<long>(n.x) * n.y;
      const float *w = u.weights + static_cast<long>(z) * u.taps;
      for (int c = 0; c < 3; ++c) {
        const float *nodes = u.values + (static_cast<long>(c) * u.planes + u.start[z]) * plane + y * n.x + x0;
        float *__restrict to = evaluated + c * run;
        const float first_weight = w[0];
        for (int x = 0; x < length; ++x) to[x] = first_weight * nodes[x];
        for (int k = 1; k < u.taps; ++k) {
          const float *__restrict from = nodes + k * plane;
          const float weight = w[k];
          for (int x = 0; x < length; ++x) to[x] += weight * from[x];
        }
      }
    }
    const float *__restrict ux = Spline ? evaluated : u.values + first;
    const float *__restrict uy = ux + (Spline ? run : count);
    const float *__restrict uz = uy + (Spline ? run : count);
    const float a00 = a[0], a01 = a[1], a02 = a[2];
    const float a10 = a[3], a11 = a[4], a12 = a[5];
    const float a20 = a[6], a21 = a[7], a22 = a[8];
    const double *const rx = points, *const ry = rx + 4, *const rz = ry + 4;
    const float tx = float(rx[0]), ty = float(ry[0]), tz = float(rz[0]);
    const float bx = float(rx[1] * y + rx[2] * z + rx[3]);
    const float by = float(ry[1] * y + ry[2] * z + ry[3]);
    const float bz = float(rz[1] * y + rz[2] * z + rz[3]);
    const float hx = float(m.x - 1), hy = float(m.y - 1), hz = float(m.z - 1);
    const float lx = float(std::max(0, m.x - 2)), ly = float(std::max(0, m.y - 2)), lz = float(std::max(0, m.z - 2));
    const int px = m.x, pxy = m.x * m.y;
#pragma omp simd
    for (int x = 0; x < length; ++x) {
      const float i = float(x0 + x), dx = ux[x], dy = uy[x], dz = uz[x];
      const float qx = a00 * dx + a01 * dy + a02 * dz + tx * i + bx;
      const float qy = a10 * dx + a11 * dy + a12 * dz + ty * i + by;
      const float qz = a20 * dx + a21 * dy + a22 * dz + tz * i + bz;
      const float cx = qx > 0.f ? (qx < hx ? qx : hx) : 0.f;
      const float cy = qy > 0.f ? (qy < hy ? qy : hy) : 0.f;
      const float cz = qz > 0.f ? (qz < hz ? qz : hz) : 0.f;
      const int ix = int(cx < lx ? cx : lx), iy = int(cy < ly ? cy : ly), iz = int(cz < lz ? cz : lz);
      fx[x] = cx - float(ix);
      fy[x] = cy - float(iy);
      fz[x] = cz - float(iz);
      at[x] = ix + iy * px + iz * pxy;
      if (WithGradient) {
        // Beyond the edge the value is constant.
        ox[x] = qx == cx ? 1.f : 0.f;
        oy[x] = qy == cy ? 1.f : 0.f;
        oz[x] = qz == cz ? 1.f : 0.f;
      }
    }
  }

  const Size m, n;
  const Displacement u;
  const double *const points;
  float a[9];
  // The lower corner of the cell of `moving` that a voxel comes from, where in the cell, and whether it may move.
  int at[run];
  float fx[run], fy[run], fz[run], ox[run], oy[run], oz[run];
  float evaluated[Spline ? 3 * run : 1];
};

// Rows are done in runs: where each voxel comes from; then a plain loop that fetches the eight neighbours, two at once
// along x (faster than gather instructions, and every instruction set has it); then the interpolation, again a vector
// at a time. `Line`: `moving` is longer than one voxel along x.
template <bool WithGradient, bool Line, bool Spline>
void warp_rows(const float *__restrict moving, Size m, const Displacement &u, Size n, const double *grid_to_moving,
               const double *displacement_to_moving, float *__restrict warped, float *__restrict gradient, long row0,
               long row1) {
  using From = Origins<WithGradient, Spline>;
  constexpr int run = From::run;
  From from(m, u, n, grid_to_moving, displacement_to_moving);
  const long count = n.count();
  const float a00 = from.a[0], a01 = from.a[1], a02 = from.a[2];
  const float a10 = from.a[3], a11 = from.a[4], a12 = from.a[5];
  const float a20 = from.a[6], a21 = from.a[7], a22 = from.a[8];
  const long sy = m.y > 1 ? m.x : 0, sz = m.z > 1 ? static_cast<long>(m.x) * m.y : 0;
  const int *const at = from.at;
  const float *const fx = from.fx, *const fy = from.fy, *const fz = from.fz;
  const float *const ox = from.ox, *const oy = from.oy, *const oz = from.oz;
  float p00[2 * run], p10[2 * run], p01[2 * run], p11[2 * run];
  for (long row = row0; row < row1; ++row) {
    for (int x0 = 0; x0 < n.x; x0 += run) {
      const int length = std::min(run, n.x - x0);
      const long first = row * n.x + x0;
      from.find(row, x0, length);
      for (int x = 0; x < length; ++x) {
        const float *v = moving + at[x];
        if (Line) {
          std::memcpy(p00 + 2 * x, v, 2 * sizeof(float));
          std::memcpy(p10 + 2 * x, v + sy, 2 * sizeof(float));
          std::memcpy(p01 + 2 * x, v + sz, 2 * sizeof(float));
          std::memcpy(p11 + 2 * x, v + sy + sz, 2 * sizeof(float));
        } else {
          p00[2 * x] = p00[2 * x + 1] = v[0];
          p10[2 * x] = p10[2 * x + 1] = v[sy];
          p01[2 * x] = p01[2 * x + 1] = v[sz];
          p11[2 * x] = p11[2 * x + 1] = v[sy + sz];
        }
      }
      float *__restrict out = warped + first;
      float *__restrict gx = gradient + (WithGradient ? first : 0);
      float *__restrict gy = gx + (WithGradient ? count : 0);
      float *__restrict gz = gy + (WithGradient ? count : 0);
#pragma omp simd
      for (int x = 0; x < length; ++x) {
        const float v00 = p00[2 * x], v10 = p10[2 * x], v01 = p01[2 * x], v11 = p11[2 * x];
        const float d00 = p00[2 * x + 1] - v00, d10 = p10[2 * x + 1] - v10;
        const float d01 = p01[2 * x + 1] - v01, d11 = p11[2 * x + 1] - v11;
        const float w00 = v00 + fx[x] * d00, w10 = v10 + fx[x] * d10;
        const float w01 = v01 + fx[x] * d01, w11 = v11 + fx[x] * d11;
        const float e0 = w10 - w00, e1 = w11 - w01;
        const float r0 = w00 + fy[x] * e0, r1 = w01 + fy[x] * e1;
        out[x] = r0 + fz[x] * (r1 - r0);
        if (WithGradient) {
          const float t0 = d00 + fy[x] * (d10 - d00), t1 = d01 + fy[x] * (d11 - d01);
          const float mx = ox[x] * (t0 + fz[x] * (t1 - t0));
          const float my = oy[x] * (e0 + fz[x] * (e1 - e0));
          const float mz = oz[x] * (r1 - r0);
          gx[x] = a00 * mx + a10 * my + a20 * mz;
          gy[x] = a01 * mx + a11 * my + a21 * mz;
          gz[x] = a02 * mx + a12 * my + a22 * mz;
        }
      }
    }
  }
}

template <bool WithGradient, bool Spline>
auto warp_rows_of(bool line) {
  return line ? warp_rows<WithGradient, true, Spline> : warp_rows<WithGradient, false, Spline>;
}

void warp(const float *moving, Size m, const Displacement &u, Size n, const double *grid_to_moving,
          const double *displacement_to_moving, float *warped, float *gradient, int threads) {
  const bool line = m.x > 1;
  const auto rows_of = u.taps ? (gradient ? warp_rows_of<true, true>(line) : warp_rows_of<false, true>(line))
                              : (gradient ? warp_rows_of<true, false>(line) : warp_rows_of<false, false>(line));
  const long rows = static_cast<long>(n.y) * n.z;
  const long step = std::max<long>(1, 16384 / n.x);
  const int tasks = static_cast<int>((rows + step - 1) / step);
  parallel_for(tasks, threads, [&](int t) {
    const long first = t * step, last = std::min(rows, first + step);
    rows_of(moving, m, u, n, grid_to_moving, displacement_to_moving, warped, gradient, first, last);
  });
}
