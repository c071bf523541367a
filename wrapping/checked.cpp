#include "checked.hpp"

#include <algorithm>
#include <cmath>

#include "adam.hpp"
#include "bake.hpp"
#include "instruction_set.hpp"
#include "interpolate.hpp"
#include "resample.hpp"

namespace itk_nir::checked {

namespace {

const std::vector<std::pair<const char *, Interpolation>> kInterpolations = {
    {"linear", Interpolation::linear},
    {"bspline", Interpolation::bspline},
    {"gaussian", Interpolation::gaussian},
    {"sinc", Interpolation::sinc},
    {"label-linear", Interpolation::label_linear},
    {"label-gaussian", Interpolation::label_gaussian},
};
const std::vector<std::pair<const char *, Window>> kWindows = {
    {"cosine", Window::cosine},   {"hamming", Window::hamming},   {"welch", Window::welch},
    {"lanczos", Window::lanczos}, {"blackman", Window::blackman},
};

template <class T>
T place_of(const std::string &name, const std::vector<std::pair<const char *, T>> &table) {
  for (const auto &[key, value] : table) {
    if (name == key) return value;
  }
  throw std::invalid_argument("interpolate: no such interpolation: " + name);
}

Path path_of(const Matrix &grid, const std::vector<ConstantTable> &matrices,
             const std::vector<OptionalConstant> &fields, const double *to_index) {
  need(matrices.size() == fields.size(), "interpolate: one matrix a transform");
  Path path{grid.data(), {}, to_index};
  for (size_t i = 0; i < matrices.size(); ++i) {
    need(matrices[i].shape(0) == 3 && matrices[i].shape(1) == 4, "interpolate: matrices are 3 x 4");
    Step step{matrices[i].data(), nullptr, {1, 1, 1}, 0};
    if (fields[i]) {
      const Constant &u = *fields[i];
      need(u.ndim() == 4 && (u.shape(3) == 2 || u.shape(3) == 3), "interpolate: a field is (z, y, x, 2 or 3)");
      step.field = u.data();
      step.size = grid_size(u, 0);
      step.components = int(u.shape(3));
    }
    path.steps.push_back(step);
  }
  return path;
}

// The width of a window is an int, and the sums of one row of windows must fit in memory.
void need_radius(int radius) { need(radius >= 1 && radius < (1 << 15), "lncc: radius must be 1 to 32767"); }

// The bins along either axis of a joint histogram: few enough that a table of them stays in the cache.
template <class T>
int bins_of(const T &table) {
  const size_t bins = table.shape(0);
  need(table.shape(1) == bins, "joint_histogram: as many bins of the fixed as of the moving image");
  need(bins >= 4 && bins <= 128, "joint_histogram: there must be 4 to 128 bins");
  return int(bins);
}

double mind_difference_of(const ConstantBytes &fixed, const OptionalConstant &weight, const ConstantBytes &moving,
                          const Displacement &u, const Matrix &grid_to_moving, const Square &displacement_to_moving,
                          int channels, const OptionalArray &gradient, int threads) {
  const Size m = descriptors_size(moving), n = descriptors_size(fixed);
  need(channels == 4 || channels == 12, "mind_difference: channels is 4 or 12");
  if (weight) need(same(size_of(*weight, 0), n), "mind_difference: weight and fixed disagree");
  if (gradient) {
    need(same(size_of(*gradient, 1), n) && gradient->shape(0) == 3, "mind_difference: gradient must be (3, z, y, x)");
  }
  const float *w = weight ? weight->data() : nullptr;
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  return kernels().mind_difference(fixed.data(), w, moving.data(), m, u, n, grid_to_moving.data(),
                                   displacement_to_moving.data(), channels, g, threads);
}

}  // namespace

void banded(Constant in, Array out, Integers start, Constant weights, int threads) {
  need(in.ndim() == 3 && out.ndim() == 3, "banded: expected (outer, n, inner) arrays");
  need(out.shape(0) == in.shape(0) && out.shape(2) == in.shape(2), "banded: in and out disagree");
  need_rows(start, weights, out.shape(1), in.shape(1));
  if (out.size() == 0) return;
  nb::gil_scoped_release release;
  kernels().banded(in.data(), out.data(), long(in.shape(0)), int(in.shape(1)), int(out.shape(1)), long(in.shape(2)),
                   start.data(), weights.data(), int(weights.shape(1)), threads);
}

void banded_adjoint(Constant in, Constant factor, Array out, Integers start, Constant weights, int threads) {
  need(in.ndim() == 3 && out.ndim() == 3 && factor.ndim() == 2, "banded_adjoint: expected (outer, n, inner) arrays");
  need(out.shape(0) == in.shape(0) && out.shape(2) == in.shape(2), "banded_adjoint: in and out disagree");
  need(factor.shape(0) == in.shape(1) && factor.shape(1) == in.shape(2), "banded_adjoint: in and factor disagree");
  need(in.shape(0) < (size_t(1) << 31), "banded_adjoint: more than 2^31 rows");
  need_rows(start, weights, in.shape(1), out.shape(1));
  nb::gil_scoped_release release;
  kernels().banded_adjoint(in.data(), factor.data(), out.data(), int(in.shape(0)), int(in.shape(1)), int(out.shape(1)),
                           long(in.shape(2)), start.data(), weights.data(), int(weights.shape(1)), threads);
}

void warp(Constant moving, Constant displacement, Matrix grid_to_moving, Square displacement_to_moving, Array warped,
          OptionalArray gradient, int threads) {
  const Size m = size_of(moving, 0), n = size_of(warped, 0);
  need(same(size_of(displacement, 1), n) && displacement.shape(0) == 3, "warp: displacement must be (3, z, y, x)");
  if (gradient) need(same(size_of(*gradient, 1), n) && gradient->shape(0) == 3, "warp: gradient must be (3, z, y, x)");
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  const Displacement u{displacement.data(), nullptr, nullptr, 0, 0};
  kernels().warp(moving.data(), m, u, n, grid_to_moving.data(), displacement_to_moving.data(), warped.data(), g,
                 threads);
}

void warp_spline(Constant moving, Constant half, Integers start, Constant weights, Matrix grid_to_moving,
                 Square displacement_to_moving, Array warped, OptionalArray gradient, int threads) {
  const Size m = size_of(moving, 0), n = size_of(warped, 0), h = size_of(half, 1);
  need(half.shape(0) == 3 && h.x == n.x && h.y == n.y, "warp_spline: the spline must be (3, nodes, y, x)");
  need_rows(start, weights, n.z, h.z);
  if (gradient) need(same(size_of(*gradient, 1), n) && gradient->shape(0) == 3, "warp: gradient must be (3, z, y, x)");
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  const Displacement u{half.data(), start.data(), weights.data(), int(weights.shape(1)), h.z};
  kernels().warp(moving.data(), m, u, n, grid_to_moving.data(), displacement_to_moving.data(), warped.data(), g,
                 threads);
}

double lncc_prepare(Constant fixed, OptionalConstant weight, int radius, float epsilon, Array inverse_count, Array mean,
                    Array inverse_variance, int threads) {
  const Size n = size_of(fixed, 0);
  need_radius(radius);
  for (const Array *a : {&inverse_count, &mean, &inverse_variance}) need(same(size_of(*a, 0), n), "lncc: shapes");
  if (weight) need(same(size_of(*weight, 0), n), "lncc: weight and fixed disagree");
  const float *w = weight ? weight->data() : nullptr;
  nb::gil_scoped_release release;
  return kernels().lncc_prepare(fixed.data(), w, n, radius, epsilon, inverse_count.data(), mean.data(),
                                inverse_variance.data(), threads);
}

double lncc(Constant fixed, OptionalConstant weight, Constant inverse_count, Constant mean, Constant inverse_variance,
            Constant moving, int radius, float epsilon, OptionalArray gradient, Array scratch, int threads) {
  const Size n = size_of(fixed, 0);
  need_radius(radius);
  for (const Constant *a : {&inverse_count, &mean, &inverse_variance, &moving}) {
    need(same(size_of(*a, 0), n), "lncc: shapes disagree");
  }
  if (weight) need(same(size_of(*weight, 0), n), "lncc: weight and fixed disagree");
  if (gradient) {
    need(same(size_of(*gradient, 0), n), "lncc: gradient and fixed disagree");
    need(same(size_of(scratch, 1), n) && scratch.shape(0) == 3, "lncc: scratch must be (3, z, y, x)");
  }
  const LnccFixed f{fixed.data(), weight ? weight->data() : nullptr, inverse_count.data(), mean.data(),
                    inverse_variance.data()};
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  return kernels().lncc(f, moving.data(), n, radius, epsilon, g, scratch.data(), threads);
}

void joint_histogram(Constant position, Constant moving, float low, float scale, Table histogram, int threads) {
  const Size n = size_of(position, 0);
  need(same(size_of(moving, 0), n), "joint_histogram: shapes disagree");
  const JointBins bins{bins_of(histogram), low, scale};
  nb::gil_scoped_release release;
  kernels().joint_histogram(position.data(), moving.data(), n.count(), bins, histogram.data(), threads);
}

void joint_histogram_adjoint(Constant position, Constant moving, float low, float scale, ConstantTable derivative,
                             Array gradient, int threads) {
  const Size n = size_of(position, 0);
  need(same(size_of(moving, 0), n) && same(size_of(gradient, 0), n), "joint_histogram_adjoint: shapes disagree");
  const JointBins bins{bins_of(derivative), low, scale};
  nb::gil_scoped_release release;
  kernels().joint_histogram_adjoint(position.data(), moving.data(), n.count(), bins, derivative.data(), gradient.data(),
                                    threads);
}

std::vector<double> global_sums(Constant fixed, Constant moving, OptionalConstant weight, int threads) {
  const Size n = size_of(fixed, 0);
  need(same(size_of(moving, 0), n), "global_sums: shapes disagree");
  if (weight) need(same(size_of(*weight, 0), n), "global_sums: weight and fixed disagree");
  const float *w = weight ? weight->data() : nullptr;
  std::vector<double> sums(3);
  nb::gil_scoped_release release;
  kernels().global_sums(fixed.data(), moving.data(), w, n, sums.data(), threads);
  return sums;
}

void global_sums_adjoint(Constant fixed, Constant moving, OptionalConstant weight, std::vector<double> derivative,
                         Array gradient, int threads) {
  const Size n = size_of(fixed, 0);
  need(same(size_of(moving, 0), n) && same(size_of(gradient, 0), n), "global_sums_adjoint: shapes disagree");
  if (weight) need(same(size_of(*weight, 0), n), "global_sums_adjoint: weight and fixed disagree");
  need(derivative.size() == 3, "global_sums_adjoint: expected three derivatives");
  const float *w = weight ? weight->data() : nullptr;
  nb::gil_scoped_release release;
  kernels().global_sums_adjoint(fixed.data(), moving.data(), w, n.count(), derivative.data(), gradient.data(), threads);
}

void mind_descriptors(Constant image, Square offsets, int radius, int dimension, Bytes descriptors, int threads) {
  const Size n = size_of(image, 0);
  need(same(descriptors_size(descriptors), n), "mind_descriptors: shapes disagree");
  need(radius >= 1 && radius <= 32, "mind_descriptors: radius must be 1 to 32");
  need(dimension == 2 || dimension == 3, "mind_descriptors: dimension is 2 or 3");
  // Positions along an axis are ints.
  for (int k = 0; k < 9; ++k) {
    need(std::abs(offsets.data()[k]) <= 1e6, "mind_descriptors: an offset of more than 10^6 voxels");
  }
  nb::gil_scoped_release release;
  kernels().mind_descriptors(image.data(), n, offsets.data(), radius, dimension, descriptors.data(), threads);
}

double mind_difference(ConstantBytes fixed, OptionalConstant weight, ConstantBytes moving, Constant displacement,
                       Matrix grid_to_moving, Square displacement_to_moving, int channels, OptionalArray gradient,
                       int threads) {
  need(same(size_of(displacement, 1), descriptors_size(fixed)) && displacement.shape(0) == 3,
       "mind_difference: displacement must be (3, z, y, x)");
  const Displacement u{displacement.data(), nullptr, nullptr, 0, 0};
  return mind_difference_of(fixed, weight, moving, u, grid_to_moving, displacement_to_moving, channels, gradient,
                            threads);
}

double mind_difference_spline(ConstantBytes fixed, OptionalConstant weight, ConstantBytes moving, Constant half,
                              Integers start, Constant weights, Matrix grid_to_moving, Square displacement_to_moving,
                              int channels, OptionalArray gradient, int threads) {
  const Size n = descriptors_size(fixed), h = size_of(half, 1);
  need(half.shape(0) == 3 && h.x == n.x && h.y == n.y, "mind_difference: the spline must be (3, nodes, y, x)");
  need_rows(start, weights, n.z, h.z);
  const Displacement u{half.data(), start.data(), weights.data(), int(weights.shape(1)), h.z};
  return mind_difference_of(fixed, weight, moving, u, grid_to_moving, displacement_to_moving, channels, gradient,
                            threads);
}

namespace {

Size three(const std::vector<int> &values, int least, const char *message) {
  need(values.size() == 3 && std::min({values[0], values[1], values[2]}) >= least &&
           std::max({values[0], values[1], values[2]}) <= 256,
       message);
  return {values[0], values[1], values[2]};
}

long labels_of(Size reach) { return (2L * reach.x + 1) * (2L * reach.y + 1) * (2L * reach.z + 1); }

}  // namespace

void match_costs(ConstantBytes fixed, ConstantBytes fixed_counts, ConstantBytes moving, ConstantBytes moving_counts,
                 std::vector<int> reach, std::vector<int> block, int unrelated, Costs costs, int threads) {
  const Size n = descriptors_size(fixed), r = three(reach, 0, "match_costs: reach must be three numbers of 0 to 256");
  const Size b = three(block, 1, "match_costs: block must be three numbers of 1 to 256");
  const Size m = {n.x + 2 * r.x, n.y + 2 * r.y, n.z + 2 * r.z};
  need(same(descriptors_size(moving), m), "match_costs: moving must be larger than fixed by the reach on every side");
  need(same(size_of(fixed_counts, 0), n) && same(size_of(moving_counts, 0), m), "match_costs: counts of another size");
  need(unrelated >= 1 && unrelated <= 255 * 16, "match_costs: unrelated must be 1 to 4080");
  const auto blocks = [](int size, int edge) { return (size + edge - 1) / edge; };
  const long nodes = 1L * blocks(n.x, b.x) * blocks(n.y, b.y) * blocks(n.z, b.z);
  need(long(costs.shape(0)) == nodes && long(costs.shape(1)) == labels_of(r), "match_costs: costs of another size");
  need(27L * b.count() * 4080 < (1L << 31), "match_costs: the blocks are too large");
  need(nodes * (2L * r.x + 1) < (1L << 31), "match_costs: too many nodes");
  nb::gil_scoped_release release;
  kernels().match_costs(fixed.data(), fixed_counts.data(), n, moving.data(), moving_counts.data(), r, b, unrelated,
                        costs.data(), threads);
}

void best_matches(ConstantCosts costs, Constant wanted, std::vector<int> reach, float weight, Array found, Array cost,
                  int threads) {
  const Size r = three(reach, 0, "best_matches: reach must be three numbers of 0 to 256");
  const size_t nodes = costs.shape(0);
  need(long(costs.shape(1)) == labels_of(r), "best_matches: costs and reach disagree");
  need(wanted.ndim() == 2 && wanted.shape(0) == 3 && wanted.shape(1) == nodes, "best_matches: wanted must be (3, nodes)");
  need(found.ndim() == 2 && found.shape(0) == 3 && found.shape(1) == nodes, "best_matches: found must be (3, nodes)");
  need(cost.ndim() == 1 && cost.shape(0) == nodes, "best_matches: cost must be (nodes,)");
  nb::gil_scoped_release release;
  kernels().best_matches(costs.data(), wanted.data(), long(nodes), r, weight, found.data(), cost.data(), threads);
}

void pack(Constant planar, Array packed, float scale, int threads) {
  const Size n = size_of(planar, 1);
  need(planar.shape(0) == 3 && same(packed_size(packed), n), "pack: shapes disagree");
  nb::gil_scoped_release release;
  kernels().pack(planar.data(), packed.data(), n.count(), scale, threads);
}

void unpack(Constant packed, Array planar, float scale, int threads) {
  const Size n = size_of(planar, 1);
  need(planar.shape(0) == 3 && same(packed_size(packed), n), "unpack: shapes disagree");
  nb::gil_scoped_release release;
  kernels().unpack(packed.data(), planar.data(), n.count(), scale, threads);
}

void compose(Constant outer, Constant inner, Array out, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(out), n), "compose: shapes disagree");
  nb::gil_scoped_release release;
  kernels().compose(outer.data(), inner.data(), out.data(), n, threads);
}

void compose_adjoint(Constant outer, Constant inner, Constant grad, Array grad_outer, Array grad_inner, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(grad), n) && same(packed_size(grad_outer), n) &&
           same(packed_size(grad_inner), n),
       "compose_adjoint: shapes disagree");
  nb::gil_scoped_release release;
  kernels().compose_adjoint(outer.data(), inner.data(), grad.data(), grad_outer.data(), grad_inner.data(), n, threads);
}

void compose_adjoint_inner(Constant outer, Constant inner, Constant grad, Array grad_inner, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(grad), n) && same(packed_size(grad_inner), n),
       "compose_adjoint_inner: shapes disagree");
  nb::gil_scoped_release release;
  kernels().compose_adjoint(outer.data(), inner.data(), grad.data(), nullptr, grad_inner.data(), n, threads);
}

double invert(Constant u, Array v, int iterations, float tolerance, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n), "invert: shapes disagree");
  nb::gil_scoped_release release;
  return kernels().invert(u.data(), v.data(), n, iterations, tolerance, threads);
}

double diffusion(Constant u, Array gradient, double scale, int threads) {
  const Size n = size_of(u, 1);
  need(same(size_of(gradient, 1), n) && gradient.shape(0) == u.shape(0), "diffusion: shapes disagree");
  need(scale > 0, "diffusion: scale must be positive");
  nb::gil_scoped_release release;
  return kernels().diffusion(u.data(), gradient.data(), int(u.shape(0)), n, scale, threads);
}

double jacobian_penalty(Constant u, Array gradient, float margin, int corner, int threads) {
  const Size n = size_of(u, 1);
  need(u.shape(0) == 3 && gradient.shape(0) == 3 && same(size_of(gradient, 1), n), "jacobian_penalty: shapes disagree");
  need(corner >= 0 && corner < 8, "jacobian_penalty: corner is 0 to 7");
  nb::gil_scoped_release release;
  return kernels().jacobian_penalty(u.data(), gradient.data(), n, margin, corner, threads);
}

void resample(Constant moving, OptionalConstant displacement, Matrix grid_to_moving, Square displacement_to_moving,
              float outside, Array out, int threads) {
  const Size m = size_of(moving, 0), n = size_of(out, 0);
  int components = 0;
  if (displacement) {
    const Constant &u = *displacement;
    need(u.ndim() == 4 && (u.shape(3) == 2 || u.shape(3) == 3), "resample: displacement must be (z, y, x, 2 or 3)");
    need(same(grid_size(u, 0), n), "resample: shapes disagree");
    components = int(u.shape(3));
  }
  const float *u = displacement ? displacement->data() : nullptr;
  nb::gil_scoped_release release;
  itk_nir::resample(moving.data(), m, u, components, n, grid_to_moving.data(), displacement_to_moving.data(), outside,
                    out.data(), threads);
}

void interpolate(Constant image, Matrix grid, const std::vector<ConstantTable> &matrices,
                 const std::vector<OptionalConstant> &fields, Matrix to_index, const std::string &kind, int order,
                 const std::string &window, const std::vector<double> &sigma, double alpha, float outside, Array out,
                 int threads) {
  const Size m = size_of(image, 0), n = size_of(out, 0);
  const Path path = path_of(grid, matrices, fields, to_index.data());
  HowToInterpolate how{place_of(kind, kInterpolations), order, place_of(window, kWindows), {1, 1, 1}, alpha};
  need(order >= 0 && order <= 5, "interpolate: the order of a spline is 0 to 5");
  need(sigma.size() == 3, "interpolate: a sigma an axis");
  for (int a = 0; a < 3; ++a) {
    need(std::isfinite(sigma[a]) && sigma[a] > 0, "interpolate: sigma must be above 0");
    how.sigma[a] = sigma[a];
  }
  need(std::isfinite(alpha) && alpha > 0, "interpolate: alpha must be above 0");
  nb::gil_scoped_release release;
  itk_nir::interpolate(image.data(), m, path, how, outside, out.data(), n, threads);
}

void nearest(ConstantBytes image, Matrix grid, const std::vector<ConstantTable> &matrices,
             const std::vector<OptionalConstant> &fields, Matrix to_index, ConstantBytes outside, Bytes out,
             int threads) {
  need(image.ndim() == 4 && out.ndim() == 4, "nearest: images are (z, y, x, bytes of a value)");
  const Size m = grid_size(image, 0), n = grid_size(out, 0);
  const size_t bytes = image.shape(3);
  need(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8, "nearest: values have 1, 2, 4 or 8 bytes");
  need(out.shape(3) == bytes && outside.ndim() == 1 && outside.shape(0) == bytes, "nearest: values of another size");
  const Path path = path_of(grid, matrices, fields, to_index.data());
  nb::gil_scoped_release release;
  itk_nir::nearest(image.data(), m, path, int(bytes), outside.data(), out.data(), n, threads);
}

void displacements(Matrix grid, const std::vector<ConstantTable> &matrices, const std::vector<OptionalConstant> &fields,
                   Array out, int threads) {
  static const double kSame[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};
  need(out.ndim() == 4 && (out.shape(3) == 2 || out.shape(3) == 3), "displacements: out is (z, y, x, 2 or 3)");
  const Size n = grid_size(out, 0);
  const Path path = path_of(grid, matrices, fields, kSame);
  nb::gil_scoped_release release;
  itk_nir::displacements(path, int(out.shape(3)), out.data(), n, threads);
}

void bspline_coefficients(Array image, int order, int threads) {
  const Size n = size_of(image, 0);
  need(order >= 0 && order <= 5, "bspline_coefficients: the order of a spline is 0 to 5");
  nb::gil_scoped_release release;
  itk_nir::bspline_coefficients(image.data(), n, order, threads);
}

void balance(Constant u, Array v, float relaxation, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n), "balance: shapes disagree");
  nb::gil_scoped_release release;
  itk_nir::balance(u.data(), v.data(), n, relaxation, threads);
}

void inverse_error(Constant u, Constant v, std::vector<double> scale, Array error, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n) && same(size_of(error, 0), n) && scale.size() == 3, "inverse_error: shapes disagree");
  nb::gil_scoped_release release;
  itk_nir::inverse_error(u.data(), v.data(), n, scale.data(), error.data(), threads);
}

void jacobian(Constant u, Array determinant, int threads) {
  const Size n = size_of(u, 1);
  need(u.shape(0) == 3 && same(size_of(determinant, 0), n), "jacobian: shapes disagree");
  nb::gil_scoped_release release;
  itk_nir::jacobian(u.data(), n, determinant.data(), threads);
}

void adam(Array parameter, Constant gradient, Array first, Array second, float beta1, float beta2, float rate,
          float correction, float epsilon, int threads) {
  const size_t n = parameter.size();
  need(gradient.size() == n && first.size() == n && second.size() == n, "adam: sizes disagree");
  nb::gil_scoped_release release;
  itk_nir::adam(parameter.data(), gradient.data(), first.data(), second.data(), long(n), beta1, beta2, rate, correction,
                epsilon, threads);
}

}  // namespace itk_nir::checked
