// One step of Adam, in place. `decay1` and `decay2` are 1 - beta1 and 1 - beta2.
KERNEL(adam, (float *__restrict__ parameter, const float *__restrict__ gradient, float *__restrict__ first,
              float *__restrict__ second, Index count, float decay1, float decay2, float rate, float correction,
              float epsilon)) {
  const Index i = this_thread();
  if (i >= count) return;
  const float g = gradient[i], m = first[i] + decay1 * (g - first[i]), v = second[i] + decay2 * (g * g - second[i]);
  first[i] = m;
  second[i] = v;
  parameter[i] -= rate * m / (sqrtf(v * correction) + epsilon);
}
