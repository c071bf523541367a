// The native CPU ops of itk_nir: one module, bound here. Every function checks shapes, releases the interpreter lock and
// works on memory it is given; itk_nir/engine/ops wraps them for torch tensors and states what they compute.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <optional>
#include <stdexcept>
#include <string>

#include "adam.hpp"
#include "bake.hpp"
#include "kernels.hpp"
#include "resample.hpp"

namespace nb = nanobind;
using namespace itk_nir;

namespace {

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Constant = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;
using Square = nb::ndarray<const double, nb::shape<3, 3>, nb::c_contig, nb::device::cpu>;
using Optional = std::optional<Array>;

bool runs(const std::string &name) {
  if (name == "base") return true;
#if ITK_NIR_AVX2
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if ITK_NIR_AVX512
  if (name == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  }
#endif
  return false;
}

const Kernels &table(const std::string &name) {
#if ITK_NIR_AVX2
  if (name == "avx2") return kernels_avx2;
#endif
#if ITK_NIR_AVX512
  if (name == "avx512") return kernels_avx512;
#endif
  return kernels_base;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
  for (const char *name : {"base", "avx2", "avx512"}) {
    if (runs(name)) sets.emplace_back(name);
  }
  return sets;
}

const Kernels *current = nullptr;

void use(const std::string &name) {
  if (!runs(name)) throw std::invalid_argument("instruction set '" + name + "' is not available here");
  current = &table(name);
}

void need(bool condition, const char *message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class A>
Size size_of(const A &a, size_t first) {
  need(a.ndim() == first + 3, "expected a (z, y, x) array, with components first where it has any");
  need(a.shape(first) > 0 && a.shape(first + 1) > 0 && a.shape(first + 2) > 0, "empty array");
  need(a.shape(first) * a.shape(first + 1) * a.shape(first + 2) < (size_t(1) << 31), "more than 2^31 voxels");
  return {int(a.shape(first + 2)), int(a.shape(first + 1)), int(a.shape(first))};
}

bool same(Size a, Size b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

template <class A>
Size packed_size(const A &a) {
  need(a.ndim() == 4 && a.shape(3) == 4, "expected a packed (z, y, x, 4) array");
  return {int(a.shape(2)), int(a.shape(1)), int(a.shape(0))};
}

// The rows of a banded matrix: `n_out` of them, within `n_in` columns.
void need_rows(const Integers &start, const Constant &weights, int n_out, int n_in) {
  need(weights.ndim() == 2 && int(weights.shape(0)) == n_out && int(start.shape(0)) == n_out && weights.shape(1) > 0,
       "banded: one start and weight row an output");
  for (int i = 0; i < n_out; ++i) {
    need(start.data()[i] >= 0 && start.data()[i] + int(weights.shape(1)) <= n_in,
         "banded: a row reaches beyond the input");
  }
}

void banded(Constant in, Array out, Integers start, Constant weights, int threads) {
  need(in.ndim() == 3 && out.ndim() == 3, "banded: expected (outer, n, inner) arrays");
  const long outer = long(in.shape(0)), inner = long(in.shape(2));
  const int n_in = int(in.shape(1)), n_out = int(out.shape(1));
  need(long(out.shape(0)) == outer && long(out.shape(2)) == inner, "banded: in and out disagree");
  need_rows(start, weights, n_out, n_in);
  nb::gil_scoped_release release;
  current->banded(in.data(), out.data(), outer, n_in, n_out, inner, start.data(), weights.data(), int(weights.shape(1)),
                  threads);
}

void banded_adjoint(Constant in, Constant factor, Array out, Integers start, Constant weights, int threads) {
  need(in.ndim() == 3 && out.ndim() == 3 && factor.ndim() == 2, "banded_adjoint: expected (outer, n, inner) arrays");
  const int outer = int(in.shape(0)), n_in = int(in.shape(1)), n_out = int(out.shape(1));
  const long inner = long(in.shape(2));
  need(int(out.shape(0)) == outer && long(out.shape(2)) == inner, "banded_adjoint: in and out disagree");
  need(int(factor.shape(0)) == n_in && long(factor.shape(1)) == inner, "banded_adjoint: in and factor disagree");
  need_rows(start, weights, n_in, n_out);
  nb::gil_scoped_release release;
  current->banded_adjoint(in.data(), factor.data(), out.data(), outer, n_in, n_out, inner, start.data(), weights.data(),
                          int(weights.shape(1)), threads);
}

void warp(Constant moving, Constant displacement, Matrix index, Square vector, Array warped, Optional gradient, int threads) {
  const Size m = size_of(moving, 0), n = size_of(warped, 0);
  need(same(size_of(displacement, 1), n) && displacement.shape(0) == 3, "warp: displacement must be (3, z, y, x)");
  if (gradient) need(same(size_of(*gradient, 1), n) && gradient->shape(0) == 3, "warp: gradient must be (3, z, y, x)");
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  const Displacement u{displacement.data(), nullptr, nullptr, 0, 0};
  current->warp(moving.data(), m, u, n, index.data(), vector.data(), warped.data(), g, threads);
}

// The same, of a spline that has been evaluated along x and y: half is (3, nodes along z, y, x).
void warp_spline(Constant moving, Constant half, Integers start, Constant weights, Matrix index, Square vector,
                 Array warped, Optional gradient, int threads) {
  const Size m = size_of(moving, 0), n = size_of(warped, 0), h = size_of(half, 1);
  need(half.shape(0) == 3 && h.x == n.x && h.y == n.y, "warp_spline: the spline must be (3, nodes, y, x)");
  need_rows(start, weights, n.z, h.z);
  if (gradient) need(same(size_of(*gradient, 1), n) && gradient->shape(0) == 3, "warp: gradient must be (3, z, y, x)");
  float *g = gradient ? gradient->data() : nullptr;
  nb::gil_scoped_release release;
  const Displacement u{half.data(), start.data(), weights.data(), int(weights.shape(1)), h.z};
  current->warp(moving.data(), m, u, n, index.data(), vector.data(), warped.data(), g, threads);
}

double lncc_prepare(Constant fixed, std::optional<Constant> weight, int radius, float epsilon, Array inverse_count,
                    Array mean, Array inverse_variance, int threads) {
  const Size n = size_of(fixed, 0);
  need(radius >= 1, "lncc: radius must be at least 1");
  for (const Array *a : {&inverse_count, &mean, &inverse_variance}) need(same(size_of(*a, 0), n), "lncc: shapes");
  if (weight) need(same(size_of(*weight, 0), n), "lncc: weight and fixed disagree");
  const float *w = weight ? weight->data() : nullptr;
  nb::gil_scoped_release release;
  return current->lncc_prepare(fixed.data(), w, n, radius, epsilon, inverse_count.data(), mean.data(),
                               inverse_variance.data(), threads);
}

double lncc(Constant fixed, std::optional<Constant> weight, Constant inverse_count, Constant mean,
            Constant inverse_variance, Constant moving, int radius, float epsilon, Optional gradient, bool centre_only,
            Array scratch, int threads) {
  const Size n = size_of(fixed, 0);
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
  return current->lncc(f, moving.data(), n, radius, epsilon, g, centre_only, scratch.data(), threads);
}

void pack(Constant planar, Array packed, float scale, int threads) {
  const Size n = size_of(planar, 1);
  need(planar.shape(0) == 3 && same(packed_size(packed), n), "pack: shapes disagree");
  nb::gil_scoped_release release;
  current->pack(planar.data(), packed.data(), n.count(), scale, threads);
}

void unpack(Constant packed, Array planar, float scale, int threads) {
  const Size n = size_of(planar, 1);
  need(planar.shape(0) == 3 && same(packed_size(packed), n), "unpack: shapes disagree");
  nb::gil_scoped_release release;
  current->unpack(packed.data(), planar.data(), n.count(), scale, threads);
}

void compose(Constant outer, Constant inner, Array out, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(out), n), "compose: shapes disagree");
  nb::gil_scoped_release release;
  current->compose(outer.data(), inner.data(), out.data(), n, threads);
}

void compose_adjoint(Constant outer, Constant inner, Constant grad, Array grad_outer, Array grad_inner, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(grad), n) && same(packed_size(grad_outer), n) &&
           same(packed_size(grad_inner), n),
       "compose_adjoint: shapes disagree");
  nb::gil_scoped_release release;
  current->compose_adjoint(outer.data(), inner.data(), grad.data(), grad_outer.data(), grad_inner.data(), n, threads);
}

void compose_adjoint_inner(Constant outer, Constant inner, Constant grad, Array grad_inner, int threads) {
  const Size n = packed_size(inner);
  need(same(packed_size(outer), n) && same(packed_size(grad), n) && same(packed_size(grad_inner), n),
       "compose_adjoint_inner: shapes disagree");
  nb::gil_scoped_release release;
  current->compose_adjoint(outer.data(), inner.data(), grad.data(), nullptr, grad_inner.data(), n, threads);
}

double invert(Constant u, Array v, int iterations, float tolerance, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n), "invert: shapes disagree");
  nb::gil_scoped_release release;
  return current->invert(u.data(), v.data(), n, iterations, tolerance, threads);
}

double diffusion(Constant u, Array gradient, std::vector<double> weights, double scale, int threads) {
  const Size n = size_of(u, 1);
  need(same(size_of(gradient, 1), n) && gradient.shape(0) == u.shape(0), "diffusion: shapes disagree");
  need(weights.size() == 3, "diffusion: expected three weights");
  need(scale > 0, "diffusion: scale must be positive");
  nb::gil_scoped_release release;
  return current->diffusion(u.data(), gradient.data(), int(u.shape(0)), n, weights.data(), scale, threads);
}

double jacobian_penalty(Constant u, Array gradient, float margin, int corner, int threads) {
  const Size n = size_of(u, 1);
  need(u.shape(0) == 3 && gradient.shape(0) == 3 && same(size_of(gradient, 1), n), "jacobian_penalty: shapes disagree");
  need(corner >= 0 && corner < 8, "jacobian_penalty: corner is 0 to 7");
  nb::gil_scoped_release release;
  return current->jacobian_penalty(u.data(), gradient.data(), n, margin, corner, threads);
}

void resample_image(Constant moving, std::optional<Constant> displacement, Matrix index, Square vector, float outside,
                    Array out, int threads) {
  const Size m = size_of(moving, 0), n = size_of(out, 0);
  int components = 0;
  if (displacement) {
    const Constant &u = *displacement;
    need(u.ndim() == 4 && (u.shape(3) == 2 || u.shape(3) == 3), "resample: displacement must be (z, y, x, 2 or 3)");
    need(int(u.shape(0)) == n.z && int(u.shape(1)) == n.y && int(u.shape(2)) == n.x, "resample: shapes disagree");
    components = int(u.shape(3));
  }
  const float *u = displacement ? displacement->data() : nullptr;
  nb::gil_scoped_release release;
  resample(moving.data(), m, u, components, n, index.data(), vector.data(), outside, out.data(), threads);
}

void balance_inverse(Constant u, Array v, float relaxation, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n), "balance: shapes disagree");
  nb::gil_scoped_release release;
  balance(u.data(), v.data(), n, relaxation, threads);
}

void error_of_inverse(Constant u, Constant v, std::vector<double> scale, Array error, int threads) {
  const Size n = packed_size(u);
  need(same(packed_size(v), n) && same(size_of(error, 0), n) && scale.size() == 3, "inverse_error: shapes disagree");
  nb::gil_scoped_release release;
  inverse_error(u.data(), v.data(), n, scale.data(), error.data(), threads);
}

void jacobian_map(Constant u, Array determinant, int threads) {
  const Size n = size_of(u, 1);
  need(u.shape(0) == 3 && same(size_of(determinant, 0), n), "jacobian: shapes disagree");
  nb::gil_scoped_release release;
  jacobian(u.data(), n, determinant.data(), threads);
}

void adam_step(Array parameter, Constant gradient, Array first, Array second, float beta1, float beta2, float rate,
               float correction, float epsilon, int threads) {
  const size_t n = parameter.size();
  need(gradient.size() == n && first.size() == n && second.size() == n, "adam: sizes disagree");
  nb::gil_scoped_release release;
  adam(parameter.data(), gradient.data(), first.data(), second.data(), long(n), beta1, beta2, rate, correction, epsilon,
       threads);
}

// Gives freed memory back to the system. glibc keeps blocks of some megabytes for reuse, in pieces that larger arrays do
// not fit in; other allocators do not.
void release_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// Has the allocator take blocks from this size on straight from the system and give them back when they are freed, for
// the rest of the process. By default glibc learns to keep blocks of up to 32 MB, which then lie about in pieces.
void return_blocks_from(int bytes) {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, bytes);
#else
  (void)bytes;
#endif
}

}  // namespace

NB_MODULE(_native, m) {
  use(instruction_sets().back());
  m.def("instruction_sets", &instruction_sets, "Names of the instruction sets that this build and machine share.");
  m.def("instruction_set", [] { return std::string(current->name); }, "Name of the instruction set in use.");
  m.def("use_instruction_set", &use, nb::arg("name"), "Choose another one (the tests compare them).");
  m.def("banded", &banded, nb::arg("input"), nb::arg("output"), nb::arg("start"), nb::arg("weights"),
        nb::arg("threads"));
  m.def("banded_adjoint", &banded_adjoint, nb::arg("input"), nb::arg("factor"), nb::arg("output"), nb::arg("start"),
        nb::arg("weights"), nb::arg("threads"));
  m.def("warp_spline", &warp_spline, nb::arg("moving"), nb::arg("half"), nb::arg("start"), nb::arg("weights"),
        nb::arg("index"), nb::arg("vector"), nb::arg("warped"), nb::arg("gradient").none(), nb::arg("threads"));
  m.def("warp", &warp, nb::arg("moving"), nb::arg("displacement"), nb::arg("index"), nb::arg("vector"), nb::arg("warped"),
        nb::arg("gradient").none(), nb::arg("threads"));
  m.def("lncc_prepare", &lncc_prepare, nb::arg("fixed"), nb::arg("weight").none(), nb::arg("radius"),
        nb::arg("epsilon"), nb::arg("inverse_count"), nb::arg("mean"), nb::arg("inverse_variance"),
        nb::arg("threads"));
  m.def("lncc", &lncc, nb::arg("fixed"), nb::arg("weight").none(), nb::arg("inverse_count"), nb::arg("mean"),
        nb::arg("inverse_variance"), nb::arg("moving"), nb::arg("radius"), nb::arg("epsilon"),
        nb::arg("gradient").none(), nb::arg("centre_only"), nb::arg("scratch"), nb::arg("threads"));
  m.def("pack", &pack, nb::arg("planar"), nb::arg("packed"), nb::arg("scale"), nb::arg("threads"));
  m.def("unpack", &unpack, nb::arg("packed"), nb::arg("planar"), nb::arg("scale"), nb::arg("threads"));
  m.def("compose", &compose, nb::arg("outer"), nb::arg("inner"), nb::arg("out"), nb::arg("threads"));
  m.def("compose_adjoint_inner", &compose_adjoint_inner, nb::arg("outer"), nb::arg("inner"), nb::arg("grad"),
        nb::arg("grad_inner"), nb::arg("threads"));
  m.def("compose_adjoint", &compose_adjoint, nb::arg("outer"), nb::arg("inner"), nb::arg("grad"),
        nb::arg("grad_outer"), nb::arg("grad_inner"), nb::arg("threads"));
  m.def("resample", &resample_image, nb::arg("moving"), nb::arg("displacement").none(), nb::arg("index"),
        nb::arg("vector"), nb::arg("outside"), nb::arg("out"), nb::arg("threads"));
  m.def("adam", &adam_step, nb::arg("parameter"), nb::arg("gradient"), nb::arg("first"), nb::arg("second"),
        nb::arg("beta1"), nb::arg("beta2"), nb::arg("rate"), nb::arg("correction"), nb::arg("epsilon"),
        nb::arg("threads"));
  m.def("release_memory", &release_memory);
  m.def("return_blocks_from", &return_blocks_from, nb::arg("bytes"));
  m.def("balance", &balance_inverse, nb::arg("u"), nb::arg("v"), nb::arg("relaxation"), nb::arg("threads"));
  m.def("inverse_error", &error_of_inverse, nb::arg("u"), nb::arg("v"), nb::arg("scale"), nb::arg("error"),
        nb::arg("threads"));
  m.def("jacobian", &jacobian_map, nb::arg("u"), nb::arg("determinant"), nb::arg("threads"));
  m.def("diffusion", &diffusion, nb::arg("u"), nb::arg("gradient"), nb::arg("weights"), nb::arg("scale"),
        nb::arg("threads"));
  m.def("jacobian_penalty", &jacobian_penalty, nb::arg("u"), nb::arg("gradient"), nb::arg("margin"),
        nb::arg("corner"), nb::arg("threads"));
  m.def("invert", &invert, nb::arg("u"), nb::arg("v"), nb::arg("iterations"), nb::arg("tolerance"),
        nb::arg("threads"));
}
