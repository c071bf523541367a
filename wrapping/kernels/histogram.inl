// Joint histograms of two images, with linear weights (first-order B-splines) in both.

typedef double D4 __attribute__((vector_size(32), aligned(32)));

inline D4 widen(V4 a) { return D4{a[0], a[1], a[2], a[3]}; }
inline void add4(double *p, D4 a) {
  D4 sum;
  std::memcpy(&sum, p, sizeof(sum));
  sum += a;
  std::memcpy(p, &sum, sizeof(sum));
}

// A cell (i, j) is what lies between the bins i, i + 1 of the fixed and j, j + 1 of the moving image: a voxel adds to its
// four corners. Neighbours tend to lie in one cell, or in the spare ones of the voxels that do not count: where they
// take turns in two copies and eight spare cells, none waits for what the one before it has just written.
const int cell_block = 256, cell_copies = 2, cell_spares = 8;

// Where up to cell_block voxels lie.
struct CellBlock {
  int cell[cell_block];
  float a[cell_block], b[cell_block];  // 0 to 1, from the lower to the upper bin of the fixed and the moving image
};

// `position` is where the fixed image lies in its bins, below 0 or not a number where a voxel does not count; that of the
// moving image is (moving - low) scale. Whatever the arrays hold, no cell is outside the table.
inline void find_cells(const float *__restrict position, const float *__restrict moving, int n, const JointBins &bins,
                       CellBlock &out) {
  const int side = bins.count - 1, cells = side * side;
  const float top = float(side), low = bins.low, scale = bins.scale;
#pragma omp simd
  for (int k = 0; k < n; ++k) {
    const float p = position[k], t = (moving[k] - low) * scale;
    // So written that what is not a number comes to lie at 0.
    const float p0 = p > 0.f ? p : 0.f, t0 = t > 0.f ? t : 0.f;
    const float p1 = p0 < top ? p0 : top, t1 = t0 < top ? t0 : top;
    const int i0 = int(p1), j0 = int(t1);
    const int i = i0 < side ? i0 : side - 1, j = j0 < side ? j0 : side - 1;
    const int inside = (k % cell_copies) * (cells + cell_spares) + i * side + j;
    out.cell[k] = p >= 0.f ? inside : cells + k % cell_spares;
    out.a[k] = p1 - i;
    // A moving image that is not a number makes the histogram so.
    out.b[k] = t == t ? t1 - j : t;
  }
}

void joint_histogram(const float *position, const float *moving, long count, JointBins bins, double *histogram,
                     int threads) {
  const int side = bins.count - 1, cells = side * side;
  const long size = static_cast<long>(bins.count) * bins.count, copy = 4L * (cells + cell_spares);
  // Few enough tasks that what each of them clears and gathers is little beside its voxels.
  const int tasks = static_cast<int>(std::min(64L, std::max(1L, count / std::max(1L << 15, 8L * cells))));
  std::vector<double> partial(tasks * size);
  parallel_for(tasks, threads, [&](int task) {
    thread_local std::vector<double> buffer;
    const long need = cell_copies * copy + 8;
    if (static_cast<long>(buffer.size()) < need) buffer.resize(need);
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(buffer.data());
    double *const sums = buffer.data() + (64 - address % 64) % 64 / sizeof(double);
    std::fill(sums, sums + cell_copies * copy, 0.0);
    const V4 a0{1, 1, 0, 0}, a1{-1, -1, 1, 1}, b0{1, 0, 1, 0}, b1{-1, 1, -1, 1};
    CellBlock at;
    const long end = count * (task + 1) / tasks;
    for (long x = count * task / tasks; x < end; x += cell_block) {
      const int n = static_cast<int>(std::min<long>(cell_block, end - x));
      find_cells(position + x, moving + x, n, bins, at);
      for (int k = 0; k < n; ++k) {
        // Their product in double is exact: the histogram of a constant image is that of independent images.
        const V4 a = a0 + splat(at.a[k]) * a1, b = b0 + splat(at.b[k]) * b1;
        add4(sums + 4L * at.cell[k], widen(a) * widen(b));
      }
    }
    double *const out = partial.data() + task * size;
    for (int i = 0; i < side; ++i) {
      for (int j = 0; j < side; ++j) {
        const double *p = sums + 4L * (i * side + j), *q = p + copy;
        double *o = out + static_cast<long>(i) * bins.count + j;
        o[0] += p[0] + q[0];
        o[1] += p[1] + q[1];
        o[bins.count] += p[2] + q[2];
        o[bins.count + 1] += p[3] + q[3];
      }
    }
  });
  std::fill(histogram, histogram + size, 0.0);
  for (int task = 0; task < tasks; ++task) {
    for (long k = 0; k < size; ++k) histogram[k] += partial[task * size + k];
  }
}

void joint_histogram_adjoint(const float *position, const float *moving, long count, JointBins bins,
                             const double *derivative, float *gradient, int threads) {
  const int side = bins.count - 1, cells = side * side;
  const float top = float(side), low = bins.low, scale = bins.scale;
  // The gradient of a cell at its lower fixed bin, and what it grows by to the upper one; nothing in the spare cells.
  std::vector<float> slopes(2L * cell_copies * (cells + cell_spares), 0.f);
  for (int i = 0; i < side; ++i) {
    for (int j = 0; j < side; ++j) {
      const double *d = derivative + static_cast<long>(i) * bins.count + j;
      const double lower = (d[1] - d[0]) * scale, upper = (d[bins.count + 1] - d[bins.count]) * scale;
      for (int c = 0; c < cell_copies; ++c) {
        float *s = slopes.data() + 2L * (c * (cells + cell_spares) + i * side + j);
        s[0] = float(lower);
        s[1] = float(upper - lower);
      }
    }
  }
  const long length = 1L << 14;
  parallel_for(static_cast<int>((count + length - 1) / length), threads, [&](int task) {
    CellBlock at;
    const long end = std::min(count, (task + 1) * length);
    for (long x = task * length; x < end; x += cell_block) {
      const int n = static_cast<int>(std::min<long>(cell_block, end - x));
      const float *__restrict m = moving + x;
      float *__restrict g = gradient + x;
      find_cells(position + x, m, n, bins, at);
      for (int k = 0; k < n; ++k) {
        const float *s = slopes.data() + 2L * at.cell[k];
        const float t = (m[k] - low) * scale;
        const float slope = s[0] + at.a[k] * s[1];
        g[k] = t >= 0.f && t <= top ? slope : 0.f;
      }
    }
  });
}
