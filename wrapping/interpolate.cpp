#include "interpolate.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.hpp"

namespace itk_nir {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kWindow = 3;  // voxels to either side of a windowed sinc
constexpr int kBlock = 8;   // edge of the blocks that may hold one label

// Of a position within the image.
long nearest_voxel(const double *c, Size n) {
  const int size[3] = {n.x, n.y, n.z};
  long at = 0, stride = 1;
  for (int a = 0; a < 3; ++a) {
    const int i = static_cast<int>(c[a] + 0.5);  // halves go up
    at += std::min(i, size[a] - 1) * stride;
    stride *= size[a];
  }
  return at;
}

// Voxels along one axis that a position is made of, and their weights.
struct Taps {
  int begin = 0, count = 0;
  double *weight = nullptr;
};

// The integral of a Gaussian around `c` over each voxel.
void gaussian_taps(double c, int n, double sigma, double alpha, Taps &t) {
  const double cut = sigma * alpha, scale = 1 / (std::sqrt(2.0) * sigma);
  const double low = std::floor(c + 0.5 - cut), high = std::ceil(c + 0.5 + cut);
  t.begin = static_cast<int>(std::max(0.0, low));
  const int end = static_cast<int>(std::min(static_cast<double>(n), high));
  t.count = std::max(0, end - t.begin);
  double last = std::erf((t.begin - 0.5 - c) * scale);
  for (int i = 0; i < t.count; ++i) {
    const double now = std::erf((t.begin + i + 0.5 - c) * scale);
    t.weight[i] = now - last;
    last = now;
  }
}

double window_of(Window window, double x) {
  switch (window) {
    case Window::cosine: return std::cos(x * kPi / (2 * kWindow));
    case Window::hamming: return 0.54 + 0.46 * std::cos(x * kPi / kWindow);
    case Window::welch: return 1 - x * x / (kWindow * kWindow);
    case Window::lanczos: {
      const double z = kPi * x / kWindow;
      return z == 0 ? 1 : std::sin(z) / z;
    }
    case Window::blackman: return 0.42 + 0.5 * std::cos(x * kPi / kWindow) + 0.08 * std::cos(2 * x * kPi / kWindow);
  }
  return 0;
}

// Voxels beyond the image count as zero: they are left out.
void sinc_taps(double c, int n, Window window, Taps &t) {
  const double base = std::floor(c), distance = c - base;
  const int first = static_cast<int>(base) - (kWindow - 1);
  t.begin = std::max(0, first);
  t.count = std::max(0, std::min(n, first + 2 * kWindow) - t.begin);
  for (int i = 0; i < t.count; ++i) {
    const double x = distance + (kWindow - 1) - (t.begin - first + i);
    t.weight[i] = distance == 0 ? (x == 0 ? 1 : 0) : window_of(window, x) * std::sin(kPi * x) / (kPi * x);
  }
}

// The `order` + 1 uniform B-splines that are not zero at a position; `begin` may lie outside the image.
void spline_taps(double c, int order, Taps &t) {
  const double shifted = order & 1 ? c : c + 0.5, base = std::floor(shifted), u = shifted - base;
  t.begin = static_cast<int>(base) - order / 2;
  t.count = order + 1;
  double *w = t.weight;
  w[0] = 1;
  for (int j = 1; j <= order; ++j) {
    double saved = 0;
    for (int r = 0; r < j; ++r) {
      const double part = w[r] / j;
      w[r] = saved + (r + 1 - u) * part;
      saved = (u + j - r - 1) * part;
    }
    w[j] = saved;
  }
}

int mirrored(int i, int n) {
  if (n == 1) return 0;
  const int period = 2 * n - 2;
  i = ((i % period) + period) % period;
  return std::min(i, period - i);
}

// What a task needs beside the image: no allocation for a voxel.
struct Scratch {
  std::vector<double> weights[3];
  std::vector<float> labels;
  std::vector<double> votes;
  Taps taps[3];
  Scratch(const Scratch &) = delete;  // the taps point into the weights
  Scratch(const HowToInterpolate &how, Size n) {
    const int size[3] = {n.x, n.y, n.z};
    for (int a = 0; a < 3; ++a) {
      const double reach = std::min(how.sigma[a] * how.alpha, static_cast<double>(size[a]));
      weights[a].resize(static_cast<size_t>(2 * reach) + 16);
      taps[a].weight = weights[a].data();
    }
  }
};

class Image {
 public:
  Image(const float *voxels, Size n, const HowToInterpolate &how, int threads) : voxels_(voxels), n_(n), how_(how) {
    if (how.kind == Interpolation::label_gaussian) find_uniform_blocks(threads);
  }

  float at(const double *c, Scratch &s) const {
    switch (how_.kind) {
      case Interpolation::linear: return linear(c);
      case Interpolation::bspline: return spline(c, s);
      case Interpolation::gaussian: {
        gaussian(c, s);
        return static_cast<float>(sum(s) / all_weights(s));
      }
      case Interpolation::sinc: {
        const int size[3] = {n_.x, n_.y, n_.z};
        for (int a = 0; a < 3; ++a) sinc_taps(c[a], size[a], how_.window, s.taps[a]);
        return static_cast<float>(sum(s));
      }
      case Interpolation::label_linear: return label_linear(c, s);
      case Interpolation::label_gaussian: return label_gaussian(c, s);
    }
    return 0;
  }

 private:
  const float *voxels_;
  Size n_;
  const HowToInterpolate &how_;
  // Whether everything within reach of a block has one label, and how many blocks there are.
  std::vector<std::uint8_t> uniform_;
  Size blocks_{0, 0, 0};

  float linear(const double *c) const {
    const Cell e(c, n_);
    const float *p = voxels_ + e.at, *q = p + e.step[2];
    const long sx = e.step[0], sy = e.step[1];
    const double a0 = p[0] + e.f[0] * (p[sx] - p[0]), a1 = p[sy] + e.f[0] * (p[sy + sx] - p[sy]);
    const double b0 = q[0] + e.f[0] * (q[sx] - q[0]), b1 = q[sy] + e.f[0] * (q[sy + sx] - q[sy]);
    const double a = a0 + e.f[1] * (a1 - a0), b = b0 + e.f[1] * (b1 - b0);
    return static_cast<float>(a + e.f[2] * (b - a));
  }

  float spline(const double *c, Scratch &s) const {
    for (int a = 0; a < 3; ++a) spline_taps(c[a], how_.order, s.taps[a]);
    int xs[8];
    for (int x = 0; x < s.taps[0].count; ++x) xs[x] = mirrored(s.taps[0].begin + x, n_.x);
    double total = 0;
    for (int z = 0; z < s.taps[2].count; ++z) {
      const long plane = static_cast<long>(mirrored(s.taps[2].begin + z, n_.z)) * n_.y;
      double in_plane = 0;
      for (int y = 0; y < s.taps[1].count; ++y) {
        const float *row = voxels_ + (plane + mirrored(s.taps[1].begin + y, n_.y)) * n_.x;
        double in_row = 0;
        for (int x = 0; x < s.taps[0].count; ++x) in_row += s.taps[0].weight[x] * row[xs[x]];
        in_plane += s.taps[1].weight[y] * in_row;
      }
      total += s.taps[2].weight[z] * in_plane;
    }
    return static_cast<float>(total);
  }

  void gaussian(const double *c, Scratch &s) const {
    const int size[3] = {n_.x, n_.y, n_.z};
    for (int a = 0; a < 3; ++a) gaussian_taps(c[a], size[a], how_.sigma[a], how_.alpha, s.taps[a]);
  }

  static double all_weights(const Scratch &s) {
    double total = 1;
    for (const Taps &t : s.taps) {
      double part = 0;
      for (int i = 0; i < t.count; ++i) part += t.weight[i];
      total *= part;
    }
    return total;
  }

  const float *row_of(const Scratch &s, int z, int y) const {
    return voxels_ + (static_cast<long>(s.taps[2].begin + z) * n_.y + s.taps[1].begin + y) * n_.x + s.taps[0].begin;
  }

  double sum(const Scratch &s) const {
    double total = 0;
    for (int z = 0; z < s.taps[2].count; ++z) {
      double in_plane = 0;
      for (int y = 0; y < s.taps[1].count; ++y) {
        const float *row = row_of(s, z, y);
        double in_row = 0;
        for (int x = 0; x < s.taps[0].count; ++x) in_row += s.taps[0].weight[x] * row[x];
        in_plane += s.taps[1].weight[y] * in_row;
      }
      total += s.taps[2].weight[z] * in_plane;
    }
    return total;
  }

  static void vote(float label, double weight, Scratch &s) {
    for (size_t k = 0; k < s.labels.size(); ++k) {
      if (s.labels[k] == label) {
        s.votes[k] += weight;
        return;
      }
    }
    s.labels.push_back(label);
    s.votes.push_back(weight);
  }

  // Of equal votes the lowest label wins.
  static size_t winner(const Scratch &s) {
    size_t best = 0;
    for (size_t k = 1; k < s.labels.size(); ++k) {
      if (s.votes[k] > s.votes[best] || (s.votes[k] == s.votes[best] && s.labels[k] < s.labels[best])) best = k;
    }
    return best;
  }

  float label_linear(const double *c, Scratch &s) const {
    const Cell e(c, n_);
    s.labels.clear();
    s.votes.clear();
    for (int corner = 0; corner < 8; ++corner) {
      double w = 1;
      long at = e.at;
      for (int a = 0; a < 3; ++a) {
        const bool up = corner >> a & 1;
        w *= up ? e.f[a] : 1 - e.f[a];
        at += up ? e.step[a] : 0;
      }
      if (w > 0) vote(voxels_[at], w, s);
    }
    return s.labels[winner(s)];
  }

  float label_gaussian(const double *c, Scratch &s) const {
    const long at = nearest_voxel(c, n_);
    const int x = static_cast<int>(at % n_.x), y = static_cast<int>(at / n_.x % n_.y);
    const int z = static_cast<int>(at / n_.x / n_.y);
    if (uniform_[(static_cast<long>(z / kBlock) * blocks_.y + y / kBlock) * blocks_.x + x / kBlock]) return voxels_[at];
    gaussian(c, s);
    s.labels.clear();
    s.votes.clear();
    const double total = all_weights(s);
    // Rows from the middle outwards: most are decided long before the last. What one label has more than half of the
    // votes for can no longer change.
    const int ny = s.taps[1].count, nz = s.taps[2].count, my = y - s.taps[1].begin, mz = z - s.taps[2].begin;
    const int rings = std::max(std::max(my, ny - 1 - my), std::max(mz, nz - 1 - mz));
    for (int ring = 0; ring <= rings; ++ring) {
      for (int j = std::max(0, mz - ring); j <= std::min(nz - 1, mz + ring); ++j) {
        const bool whole = std::abs(j - mz) == ring;
        for (int i = my - ring; i <= my + ring; i += whole || ring == 0 ? 1 : 2 * ring) {
          if (i >= 0 && i < ny) vote_row(row_of(s, j, i), s.taps[2].weight[j] * s.taps[1].weight[i], s);
        }
      }
      const size_t best = winner(s);
      if (s.votes[best] > 0.5 * total * (1 + 1e-12)) return s.labels[best];
    }
    return s.labels[winner(s)];
  }

  static void vote_row(const float *row, double weight, Scratch &s) {
    const Taps &t = s.taps[0];
    float label = row[0];
    double part = 0;
    for (int x = 0; x < t.count; ++x) {
      if (row[x] != label) {
        vote(label, weight * part, s);
        label = row[x];
        part = 0;
      }
      part += t.weight[x];
    }
    vote(label, weight * part, s);
  }

  void find_uniform_blocks(int threads) {
    blocks_ = {(n_.x + kBlock - 1) / kBlock, (n_.y + kBlock - 1) / kBlock, (n_.z + kBlock - 1) / kBlock};
    uniform_.assign(static_cast<size_t>(blocks_.x) * blocks_.y * blocks_.z, 0);
    const int size[3] = {n_.x, n_.y, n_.z};
    int reach[3];
    for (int a = 0; a < 3; ++a)
      reach[a] = static_cast<int>(std::min(std::ceil(how_.sigma[a] * how_.alpha) + 1, static_cast<double>(size[a])));
    parallel_for(blocks_.z, threads, [&](int bz) {
      for (int by = 0; by < blocks_.y; ++by) {
        for (int bx = 0; bx < blocks_.x; ++bx) {
          const int b[3] = {bx, by, bz};
          int low[3], high[3];
          for (int a = 0; a < 3; ++a) {
            low[a] = std::max(0, b[a] * kBlock - reach[a]);
            high[a] = std::min(size[a], (b[a] + 1) * kBlock + reach[a]);
          }
          uniform_[(static_cast<long>(bz) * blocks_.y + by) * blocks_.x + bx] = is_uniform(low, high);
        }
      }
    });
  }

  bool is_uniform(const int *low, const int *high) const {
    const float label = voxels_[(static_cast<long>(low[2]) * n_.y + low[1]) * n_.x + low[0]];
    for (int z = low[2]; z < high[2]; ++z) {
      for (int y = low[1]; y < high[1]; ++y) {
        const float *row = voxels_ + (static_cast<long>(z) * n_.y + y) * n_.x;
        for (int x = low[0]; x < high[0]; ++x)
          if (row[x] != label) return false;
      }
    }
    return true;
  }
};

// The poles of the recursive filter of each order.
const std::vector<double> &poles(int order) {
  static const std::vector<double> of[6] = {
      {},
      {},
      {std::sqrt(8.0) - 3},
      {std::sqrt(3.0) - 2},
      {std::sqrt(664 - std::sqrt(438976.0)) + std::sqrt(304.0) - 19,
       std::sqrt(664 + std::sqrt(438976.0)) - std::sqrt(304.0) - 19},
      {std::sqrt(67.5 - std::sqrt(4436.25)) + std::sqrt(26.25) - 6.5,
       std::sqrt(67.5 + std::sqrt(4436.25)) - std::sqrt(26.25) - 6.5},
  };
  return of[order];
}

constexpr int kLanes = 16;

// Unser's recursive filter on `lanes` lines side by side, with the exact start of a signal mirrored at its ends.
void filter(double *c, int n, int lanes, const std::vector<double> &zs) {
  double gain = 1;
  for (const double z : zs) gain *= (1 - z) * (1 - 1 / z);
  for (long i = 0; i < static_cast<long>(n) * lanes; ++i) c[i] *= gain;
  for (const double z : zs) {
    double first[kLanes] = {};
    for (int k = 0; k < n; ++k) {
      const double inner = std::pow(z, k), outer = k == 0 || k == n - 1 ? 0 : std::pow(z, 2 * n - 2 - k);
      for (int l = 0; l < lanes; ++l) first[l] += (inner + outer) * c[static_cast<long>(k) * lanes + l];
      if (std::abs(inner) < 1e-20) break;
    }
    const double whole = 1 / (1 - std::pow(z, 2 * n - 2));
    for (int l = 0; l < lanes; ++l) c[l] = first[l] * whole;
    for (int k = 1; k < n; ++k) {
      double *now = c + static_cast<long>(k) * lanes;
      for (int l = 0; l < lanes; ++l) now[l] += z * now[l - lanes];
    }
    double *end = c + static_cast<long>(n - 1) * lanes;
    for (int l = 0; l < lanes; ++l) end[l] = (end[l] + z * end[l - lanes]) * (z / (z * z - 1));
    for (int k = n - 2; k >= 0; --k) {
      double *now = c + static_cast<long>(k) * lanes;
      for (int l = 0; l < lanes; ++l) now[l] = (now[l + lanes] - now[l]) * z;
    }
  }
}

}  // namespace

void bspline_coefficients(float *image, Size size, int order, int threads) {
  const std::vector<double> &zs = poles(order);
  if (zs.empty()) return;
  const int length[3] = {size.x, size.y, size.z};
  const long stride[3] = {1, size.x, static_cast<long>(size.x) * size.y};
  for (int axis = 0; axis < 3; ++axis) {
    const int n = length[axis], along = axis == 0 ? 1 : 0, over = axis == 2 ? 1 : 2;
    if (n < 2) continue;
    // Lines lie side by side along `along`; a task is one of `over`.
    parallel_for(length[over], threads, [&](int task) {
      std::vector<double> lines(static_cast<size_t>(n) * kLanes);
      for (int first = 0; first < length[along]; first += kLanes) {
        const int lanes = std::min(kLanes, length[along] - first);
        float *const corner = image + task * stride[over] + first * stride[along];
        for (long k = 0; k < n; ++k)
          for (int l = 0; l < lanes; ++l) lines[k * lanes + l] = corner[k * stride[axis] + l * stride[along]];
        filter(lines.data(), n, lanes, zs);
        for (long k = 0; k < n; ++k)
          for (int l = 0; l < lanes; ++l)
            corner[k * stride[axis] + l * stride[along]] = static_cast<float>(lines[k * lanes + l]);
      }
    });
  }
}

namespace {

// Calls put(voxel of the output, position in the image, scratch) for all that lies within the image, else none(voxel);
// every plane has a scratch of its own, which begin() makes.
template <class Begin, class Put, class None>
void walk(Size image_size, const Path &path, Size size, int threads, const Begin &begin, const Put &put,
          const None &none) {
  const Way way(path, size);
  parallel_for(size.z, threads, [&](int z) {
    auto scratch = begin();
    for (int y = 0; y < size.y; ++y) {
      const long row = (static_cast<long>(z) * size.y + y) * size.x;
      way.row(y, z, [&](int x, const double *q) {
        if (inside(q, image_size)) {
          put(row + x, q, scratch);
        } else {
          none(row + x);
        }
      });
    }
  });
}

template <int Bytes>
void nearest_of(const std::uint8_t *image, Size image_size, const Path &path, const std::uint8_t *outside,
                std::uint8_t *out, Size size, int threads) {
  walk(
      image_size, path, size, threads, [] { return 0; },
      [&](long i, const double *q, int) {
        std::memcpy(out + i * Bytes, image + nearest_voxel(q, image_size) * Bytes, Bytes);
      },
      [&](long i) { std::memcpy(out + i * Bytes, outside, Bytes); });
}

}  // namespace

void interpolate(const float *image, Size image_size, const Path &path, const HowToInterpolate &how, float outside,
                 float *out, Size size, int threads) {
  const Image seen(image, image_size, how, threads);
  walk(
      image_size, path, size, threads, [&] { return Scratch(how, image_size); },
      [&](long i, const double *q, Scratch &scratch) { out[i] = seen.at(q, scratch); },
      [&](long i) { out[i] = outside; });
}

void nearest(const std::uint8_t *image, Size image_size, const Path &path, int bytes, const std::uint8_t *outside,
             std::uint8_t *out, Size size, int threads) {
  const auto of = bytes == 1 ? nearest_of<1> : bytes == 2 ? nearest_of<2> : bytes == 4 ? nearest_of<4> : nearest_of<8>;
  of(image, image_size, path, outside, out, size, threads);
}

}  // namespace itk_nir
