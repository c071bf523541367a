// The penalty on small Jacobian determinants.

// sum over cells of relu(margin - det(I + du))^2, u planar in voxels; overwrites `gradient`. The differences are taken
// from one corner of each cell: bit a of `corner` says whether it is the upper one along axis a. Planes are done in two
// passes (even, odd): each writes to itself and to the next one.
double jacobian_penalty(const float *u, float *gradient, Size n, float margin, int corner, int threads) {
  const long count = n.count(), sy = n.x, sz = static_cast<long>(n.x) * n.y;
  const int cx = std::max(1, n.x - 1), cy = std::max(1, n.y - 1), cz = std::max(1, n.z - 1);
  const long dx = n.x > 1 ? 1 : 0, dy = n.y > 1 ? sy : 0, dz = n.z > 1 ? sz : 0;
  const long ox = corner & 1 ? dx : 0, oy = corner & 2 ? dy : 0, oz = corner & 4 ? dz : 0;
  // From the chosen corner: the lower and the upper end of each difference.
  const long low[3] = {oy + oz, ox + oz, ox + oy}, high[3] = {oy + oz + dx, ox + oz + dy, ox + oy + dz};
  parallel_for(3 * n.z, threads, [&](int t) {
    float *g = gradient + (t / n.z) * count + (t % n.z) * sz;
    std::fill(g, g + sz, 0.f);
  });
  std::vector<double> sums(cz, 0.0);
  for (int parity = 0; parity < 2; ++parity) {
    parallel_for((cz + 1 - parity) / 2, threads, [&](int t) {
      const int z = 2 * t + parity;
      thread_local std::vector<float> lack;
      if (static_cast<int>(lack.size()) < cx) lack.resize(cx);
      float *__restrict row = lack.data();
      double total = 0;
      for (int y = 0; y < cy; ++y) {
        const long base = z * sz + y * sy;
        const float *__restrict p = u + base;
        float worst = 0.f;
#pragma omp simd reduction(max : worst)
        for (int x = 0; x < cx; ++x) {
          float m[3][3];
          for (int i = 0; i < 3; ++i) {
            for (int a = 0; a < 3; ++a) m[i][a] = p[i * count + high[a] + x] - p[i * count + low[a] + x];
            m[i][i] += 1.f;
          }
          const float det = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) +
                            m[0][1] * (m[1][2] * m[2][0] - m[1][0] * m[2][2]) +
                            m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
          row[x] = margin - det;
          worst = row[x] > worst ? row[x] : worst;
        }
        if (!(worst > 0.f)) continue;
        for (int x = 0; x < cx; ++x) {
          if (!(row[x] > 0.f)) continue;
          const long at = base + x;
          float m[3][3];
          for (int i = 0; i < 3; ++i) {
            for (int a = 0; a < 3; ++a) m[i][a] = u[i * count + at + high[a]] - u[i * count + at + low[a]];
            m[i][i] += 1.f;
          }
          total += double(row[x]) * row[x];
          const float s = -2.f * row[x];
          for (int i = 0; i < 3; ++i) {
            const float *b = m[(i + 1) % 3], *c = m[(i + 2) % 3];
            float *g = gradient + i * count + at;
            for (int a = 0; a < 3; ++a) {
              if (high[a] == low[a]) continue;
              const int e = (a + 1) % 3, f = (a + 2) % 3;
              const float cofactor = s * (b[e] * c[f] - b[f] * c[e]);
              g[high[a]] += cofactor;
              g[low[a]] -= cofactor;
            }
          }
        }
      }
      sums[z] = total;
    });
  }
  return sum_rows(sums);
}
