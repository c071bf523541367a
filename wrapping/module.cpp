// The native CPU ops of itk_nir: one module, bound here. No array is ever converted: one of another type or layout
// would be copied, and what is written to the copy of an output is lost.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <string>

#include "checked.hpp"
#include "instruction_set.hpp"

using namespace itk_nir;

namespace {

auto array(const char *name) { return nb::arg(name).noconvert(); }

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
  using nb::arg;
  use_instruction_set(instruction_sets().back());
  m.def("instruction_sets", &instruction_sets, "Names of the instruction sets that this build and machine share.");
  m.def("instruction_set", [] { return std::string(kernels().name); }, "Name of the instruction set in use.");
  m.def("use_instruction_set", &use_instruction_set, arg("name"), "Choose another one (the tests compare them).");
  m.def("release_memory", &release_memory);
  m.def("return_blocks_from", &return_blocks_from, arg("bytes"));

  m.def("banded", &checked::banded, array("input"), array("output"), array("start"), array("weights"), arg("threads"));
  m.def("banded_adjoint", &checked::banded_adjoint, array("input"), array("factor"), array("output"), array("start"),
        array("weights"), arg("threads"));

  m.def("warp", &checked::warp, array("moving"), array("displacement"), array("grid_to_moving"),
        array("displacement_to_moving"), array("warped"), array("gradient").none(), arg("threads"));
  m.def("warp_spline", &checked::warp_spline, array("moving"), array("half"), array("start"), array("weights"),
        array("grid_to_moving"), array("displacement_to_moving"), array("warped"), array("gradient").none(),
        arg("threads"));
  m.def("resample", &checked::resample, array("moving"), array("displacement").none(), array("grid_to_moving"),
        array("displacement_to_moving"), arg("outside"), array("out"), arg("threads"));
  m.def("interpolate", &checked::interpolate, array("image"), array("grid"), array("matrices"),
        array("fields"), array("to_index"), arg("kind"), arg("order"), arg("window"), arg("sigma"), arg("alpha"), arg("outside"),
        array("out"), arg("threads"));
  m.def("nearest", &checked::nearest, array("image"), array("grid"), array("matrices"), array("fields"),
        array("to_index"), array("outside"), array("out"), arg("threads"));
  m.def("displacements", &checked::displacements, array("grid"), array("matrices"), array("fields"), array("out"),
        arg("threads"));
  m.def("bspline_coefficients", &checked::bspline_coefficients, array("image"), arg("order"), arg("threads"));

  m.def("lncc_prepare", &checked::lncc_prepare, array("fixed"), array("weight").none(), arg("radius"), arg("epsilon"),
        array("inverse_count"), array("mean"), array("inverse_variance"), arg("threads"));
  m.def("lncc", &checked::lncc, array("fixed"), array("weight").none(), array("inverse_count"), array("mean"),
        array("inverse_variance"), array("moving"), arg("radius"), arg("epsilon"), array("gradient").none(),
        array("scratch"), arg("threads"));

  m.def("joint_histogram", &checked::joint_histogram, array("position"), array("moving"), arg("low"), arg("scale"),
        array("histogram"), arg("threads"));
  m.def("joint_histogram_adjoint", &checked::joint_histogram_adjoint, array("position"), array("moving"), arg("low"),
        arg("scale"), array("derivative"), array("gradient"), arg("threads"));
  m.def("global_sums", &checked::global_sums, array("fixed"), array("moving"), array("weight").none(), arg("threads"));
  m.def("global_sums_adjoint", &checked::global_sums_adjoint, array("fixed"), array("moving"), array("weight").none(),
        arg("derivative"), array("gradient"), arg("threads"));
  m.def("mind_descriptors", &checked::mind_descriptors, array("image"), array("offsets"), arg("radius"),
        arg("dimension"), array("descriptors"), arg("threads"));
  m.def("mind_difference", &checked::mind_difference, array("fixed"), array("weight").none(), array("moving"),
        array("displacement"), array("grid_to_moving"), array("displacement_to_moving"), arg("channels"),
        array("gradient").none(), arg("threads"));
  m.def("mind_difference_spline", &checked::mind_difference_spline, array("fixed"), array("weight").none(),
        array("moving"), array("half"), array("start"), array("weights"), array("grid_to_moving"),
        array("displacement_to_moving"), arg("channels"), array("gradient").none(), arg("threads"));

  m.def("match_costs", &checked::match_costs, array("fixed"), array("fixed_counts"), array("moving"),
        array("moving_counts"), arg("reach"), arg("block"), arg("unrelated"), array("costs"), arg("threads"));
  m.def("best_matches", &checked::best_matches, array("costs"), array("wanted"), arg("reach"), arg("weight"),
        array("found"), array("cost"), arg("threads"));

  m.def("pack", &checked::pack, array("planar"), array("packed"), arg("scale"), arg("threads"));
  m.def("unpack", &checked::unpack, array("packed"), array("planar"), arg("scale"), arg("threads"));
  m.def("compose", &checked::compose, array("outer"), array("inner"), array("out"), arg("threads"));
  m.def("compose_adjoint", &checked::compose_adjoint, array("outer"), array("inner"), array("grad"),
        array("grad_outer"), array("grad_inner"), arg("threads"));
  m.def("compose_adjoint_inner", &checked::compose_adjoint_inner, array("outer"), array("inner"), array("grad"),
        array("grad_inner"), arg("threads"));
  m.def("invert", &checked::invert, array("u"), array("v"), arg("iterations"), arg("tolerance"), arg("threads"));
  m.def("balance", &checked::balance, array("u"), array("v"), arg("relaxation"), arg("threads"));
  m.def("inverse_error", &checked::inverse_error, array("u"), array("v"), arg("scale"), array("error"), arg("threads"));

  m.def("jacobian", &checked::jacobian, array("u"), array("determinant"), arg("threads"));
  m.def("jacobian_penalty", &checked::jacobian_penalty, array("u"), array("gradient"), arg("margin"), arg("corner"),
        arg("threads"));
  m.def("diffusion", &checked::diffusion, array("u"), array("gradient"), arg("scale"), arg("threads"));

  m.def("adam", &checked::adam, array("parameter"), array("gradient"), array("first"), array("second"), arg("beta1"),
        arg("beta2"), arg("rate"), arg("correction"), arg("epsilon"), arg("threads"));
}
