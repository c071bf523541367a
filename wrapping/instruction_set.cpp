#include "instruction_set.hpp"

#include <stdexcept>

namespace itk_nir {

namespace {

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

const Kernels *current = nullptr;

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets;
  for (const char *name : {"base", "avx2", "avx512"}) {
    if (runs(name)) sets.emplace_back(name);
  }
  return sets;
}

void use_instruction_set(const std::string &name) {
  if (!runs(name)) throw std::invalid_argument("instruction set '" + name + "' is not available here");
  current = &table(name);
}

const Kernels &kernels() { return *current; }

}  // namespace itk_nir
