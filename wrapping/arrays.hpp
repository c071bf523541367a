// The arrays that the module takes, and what is asked of their shapes.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#include "kernels.hpp"

namespace itk_nir {

namespace nb = nanobind;

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Constant = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::uint8_t, nb::c_contig, nb::device::cpu>;
using ConstantBytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using ConstantCosts = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Costs = nb::ndarray<std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstantTable = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;
using Square = nb::ndarray<const double, nb::shape<3, 3>, nb::c_contig, nb::device::cpu>;

inline void need(bool condition, const char *message) {
  if (!condition) throw std::invalid_argument(message);
}

// The size of a grid whose axes z, y, x are those of `a` from `first` on.
template <class A>
Size grid_size(const A &a, size_t first) {
  const size_t z = a.shape(first), y = a.shape(first + 1), x = a.shape(first + 2);
  need(z > 0 && y > 0 && x > 0, "empty array");
  // Positions along an axis are floats, offsets of voxels are ints.
  const size_t longest = size_t(1) << 24;
  need(z <= longest && y <= longest && x <= longest, "an axis of more than 2^24 voxels");
  need(z * y < (size_t(1) << 31) && z * y * x < (size_t(1) << 31), "more than 2^31 voxels");
  return {int(x), int(y), int(z)};
}

// Of a (z, y, x) array, after `first` axes of another kind.
template <class A>
Size size_of(const A &a, size_t first) {
  need(a.ndim() == first + 3, "expected a (z, y, x) array, with components first where it has any");
  return grid_size(a, first);
}

template <class A>
Size packed_size(const A &a) {
  need(a.ndim() == 4 && a.shape(3) == 4, "expected a packed (z, y, x, 4) array");
  return grid_size(a, 0);
}

// The sixteen bytes of a voxel side by side.
template <class A>
Size descriptors_size(const A &a) {
  need(a.ndim() == 4 && a.shape(3) == 16, "expected descriptors, a (z, y, x, 16) array");
  return grid_size(a, 0);
}

inline bool same(Size a, Size b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

// The rows of a banded matrix: `n_out` of them, within `n_in` columns.
inline void need_rows(const Integers &start, const Constant &weights, size_t n_out, size_t n_in) {
  need(weights.ndim() == 2 && weights.shape(0) == n_out && start.shape(0) == n_out && weights.shape(1) > 0,
       "banded: one start and weight row an output");
  need(n_out < (size_t(1) << 31) && n_in < (size_t(1) << 31), "banded: more than 2^31 rows or columns");
  for (size_t i = 0; i < n_out; ++i) {
    need(start.data()[i] >= 0 && size_t(start.data()[i]) + weights.shape(1) <= n_in,
         "banded: a row reaches beyond the input");
  }
}

}  // namespace itk_nir
