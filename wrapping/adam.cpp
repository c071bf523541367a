#include "adam.hpp"

#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace itk_nir {

void adam(float *parameter, const float *gradient, float *first, float *second, long count, float beta1, float beta2,
          float rate, float correction, float epsilon, int threads) {
  // Blocks of one length, so that no element ever changes between the vectorised loop and its tail.
  const long block = 16384;
  parallel_for(static_cast<int>((count + block - 1) / block), threads, [&](int t) {
    const long begin = t * block, n = std::min(count - begin, block);
    float *__restrict p = parameter + begin;
    const float *__restrict g = gradient + begin;
    float *__restrict m = first + begin;
    float *__restrict v = second + begin;
    for (long i = 0; i < n; ++i) {
      m[i] += (1.f - beta1) * (g[i] - m[i]);
      v[i] += (1.f - beta2) * (g[i] * g[i] - v[i]);
      p[i] -= rate * m[i] / (std::sqrt(v[i] * correction) + epsilon);
    }
  });
}

}  // namespace itk_nir
