#include "path.hpp"

#include <cmath>

#include "parallel.hpp"

namespace itk_nir {

namespace {

constexpr double kSamePlace = 1e-6;  // voxels: grids that lie no farther apart are one

}  // namespace

Way::Linear Way::product(const double *after, const double *before) {
  Linear out;
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 4; ++b) {
      double sum = b == 3 ? after[4 * a + 3] : 0;
      for (int k = 0; k < 3; ++k) sum += after[4 * a + k] * before[4 * k + b];
      out.m[4 * a + b] = sum;
    }
  }
  return out;
}

bool Way::is_on_grid(const Step &step) const {
  if (step.size.x != size_.x || step.size.y != size_.y || step.size.z != size_.z) return false;
  const Linear there = product(step.matrix, first_.m);
  const double size[4] = {static_cast<double>(size_.x), static_cast<double>(size_.y), static_cast<double>(size_.z), 1};
  for (int a = 0; a < 3; ++a) {
    double apart = 0;
    for (int b = 0; b < 4; ++b) apart += std::abs(there.m[4 * a + b] - (a == b)) * size[b];
    if (!(apart <= kSamePlace)) return false;
  }
  return true;
}

Way::Way(const Path &path, Size size) : size_(size) {
  std::copy(path.grid, path.grid + 12, first_.m);
  const auto then = [this](const double *matrix) {
    Linear &last = shifts_.empty() ? first_ : shifts_.back().after;
    last = product(matrix, last.m);
  };
  for (const Step &step : path.steps) {
    if (!step.field) {
      then(step.matrix);
      continue;
    }
    Shift shift{{}, {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}}, step.field, step.size, step.components, false};
    std::copy(step.matrix, step.matrix + 12, shift.to_voxel.m);
    shift.on_grid = shifts_.empty() && is_on_grid(step);
    shifts_.push_back(shift);
  }
  then(path.to_index);
}

void displacements(const Path &path, int components, float *out, Size size, int threads) {
  const Way way(path, size);
  const double *const g = path.grid;
  parallel_for(size.z, threads, [&](int z) {
    for (int y = 0; y < size.y; ++y) {
      float *const row = out + (static_cast<long>(z) * size.y + y) * size.x * components;
      double start[3];
      for (int a = 0; a < 3; ++a) start[a] = g[4 * a + 1] * y + g[4 * a + 2] * z + g[4 * a + 3];
      way.row(y, z, [&](int x, const double *q) {
        for (int a = 0; a < components; ++a)
          row[x * components + a] = static_cast<float>(q[a] - (start[a] + g[4 * a] * x));
      });
    }
  });
}

}  // namespace itk_nir
