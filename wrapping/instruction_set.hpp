// The instruction set whose kernels run: the best that this build and machine share, unless another is asked for.
#pragma once
#include <string>
#include <vector>

#include "kernels.hpp"

namespace itk_nir {

// Names of those that this build and machine share, the slowest first.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument where `name` is not among them.
void use_instruction_set(const std::string &name);

// The kernels in use.
const Kernels &kernels();

}  // namespace itk_nir
