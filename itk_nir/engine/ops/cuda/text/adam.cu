// One step of Adam, in place.
KERNEL(adam, (float *__restrict__ parameter, const float *__restrict__ gradient, float *__restrict__ first,
              float *__restrict__ second, Index count, AdamRates rates)) {
  const Index i = this_thread();
  if (i < count) adam_step(parameter, first, second, i, gradient[i], rates);
}
