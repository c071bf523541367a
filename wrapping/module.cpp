// The native ops of itk_nir: one module, bound here.

#include <nanobind/nanobind.h>

#include <thread>

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.def("hardware_threads", [] { return std::thread::hardware_concurrency(); },
        "Number of hardware threads of this machine (0 where the system does not say).");
}
