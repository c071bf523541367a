// The inverse of a packed displacement.

double invert(const float *u, float *v, Size n, int iterations, float tolerance, int threads) {
  std::vector<double> worst(n.z, 0.0);
  const bool flat = n.z == 1;
  parallel_for(n.z, threads, [&](int z) {
    double most = 0;
    for (int y = 0; y < n.y; ++y) {
      const long row = (static_cast<long>(z) * n.y + y) * n.x;
      for (int x = 0; x < n.x; ++x) {
        V4 w = load4(v + 4 * (row + x)), best = w;
        float least = 1e30f;
        for (int k = 0; k <= iterations; ++k) {
          const Cell c = locate(n, x + w[0], y + w[1], z + w[2]);
          const float *a = u + c.at;
          const float *b = a + c.sz;
          const V4 fx = splat(c.fx), fy = splat(c.fy), fz = splat(c.fz);
          const V4 v000 = load4(a), v100 = load4(a + c.sx), v010 = load4(a + c.sy), v110 = load4(a + c.sx + c.sy);
          const V4 v001 = load4(b), v101 = load4(b + c.sx), v011 = load4(b + c.sy), v111 = load4(b + c.sx + c.sy);
          const V4 d00 = v100 - v000, d10 = v110 - v010, d01 = v101 - v001, d11 = v111 - v011;
          const V4 w00 = v000 + fx * d00, w10 = v010 + fx * d10, w01 = v001 + fx * d01, w11 = v011 + fx * d11;
          const V4 e0 = w10 - w00, e1 = w11 - w01;
          const V4 r0 = w00 + fy * e0, r1 = w01 + fy * e1;
          const V4 residual = w + r0 + fz * (r1 - r0);
          const float size = dot3(residual, residual);
          if (size < least) {
            least = size;
            best = w;
          }
          if (size <= tolerance * tolerance || k == iterations) break;
          const V4 t0 = d00 + fy * (d10 - d00), t1 = d01 + fy * (d11 - d01);
          const V4 jx = (t0 + fz * (t1 - t0)) * splat(c.ox), jy = (e0 + fz * (e1 - e0)) * splat(c.oy),
                   jz = (r1 - r0) * splat(c.oz);
          const double m00 = 1.0 + jx[0], m01 = jy[0], m02 = jz[0];
          const double m10 = jx[1], m11 = 1.0 + jy[1], m12 = jz[1];
          const double m20 = jx[2], m21 = jy[2], m22 = flat ? 1.0 : 1.0 + jz[2];
          const double k00 = m11 * m22 - m12 * m21, k01 = m02 * m21 - m01 * m22, k02 = m01 * m12 - m02 * m11;
          const double k10 = m12 * m20 - m10 * m22, k11 = m00 * m22 - m02 * m20, k12 = m02 * m10 - m00 * m12;
          const double k20 = m10 * m21 - m11 * m20, k21 = m01 * m20 - m00 * m21, k22 = m00 * m11 - m01 * m10;
          const double det = m00 * k00 + m01 * k10 + m02 * k20;
          V4 step;
          // Where the map is close to singular or folded, Newton's step is worthless: fall back on the fixed point.
          if (det > 0.05) {
            const float i = float(1.0 / det);
            step = V4{float(k00 * residual[0] + k01 * residual[1] + k02 * residual[2]) * i,
                      float(k10 * residual[0] + k11 * residual[1] + k12 * residual[2]) * i,
                      float(k20 * residual[0] + k21 * residual[1] + k22 * residual[2]) * i, 0.f};
            const float length = std::sqrt(dot3(step, step));
            if (length > 2.f) step *= splat(2.f / length);
          } else {
            step = residual * splat(0.5f);
          }
          w -= step;
        }
        store4(v + 4 * (row + x), best);
        most = std::max(most, double(std::sqrt(least)));
      }
    }
    worst[z] = most;
  });
  return *std::max_element(worst.begin(), worst.end());
}
