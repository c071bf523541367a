// Sums in an order that depends on nothing but the data.

double sum_rows(const std::vector<double> &rows) {
  double sum = 0;
  for (double r : rows) sum += r;
  return sum;
}

// Sixteen partial sums in a fixed order: vectorises without leave to reorder anything else.
template <class Value>
inline double row_sum(int n, const Value &value) {
  float part[16] = {0};
  int x = 0;
  for (; x + 16 <= n; x += 16) {
    for (int k = 0; k < 16; ++k) part[k] += value(x + k);
  }
  for (; x < n; ++x) part[x & 15] += value(x);
  double sum = 0;
  for (int k = 0; k < 16; ++k) sum += part[k];
  return sum;
}
