// One step of Adam on a flat array, in a single pass.
#pragma once

namespace itk_nir {

// first and second are the running moments; rate and epsilon already hold the corrections of the step.
void adam(float *parameter, const float *gradient, float *first, float *second, long count, float beta1, float beta2,
          float rate, float correction, float epsilon, int threads);

}  // namespace itk_nir
