// Vectors of four and eight floats: what a point of a packed field takes, and it and its neighbour along x.

typedef float V4 __attribute__((vector_size(16), aligned(16)));
typedef int I4 __attribute__((vector_size(16), aligned(16)));

inline V4 load4(const float *p) {
  V4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store4(float *p, V4 v) { std::memcpy(p, &v, sizeof(v)); }
inline V4 splat(float s) { return V4{s, s, s, s}; }
// Lanes of `a` (0 … 3) and `b` (4 … 7).
template <int I, int J, int K, int L>
inline V4 shuffle(V4 a, V4 b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I, J, K, L);
#else
  return __builtin_shuffle(a, b, I4{I, J, K, L});
#endif
}
inline float dot3(V4 a, V4 b) {
  V4 p = a * b;
  return p[0] + p[1] + p[2];
}

// A point and its neighbour along x, side by side.
typedef float V8 __attribute__((vector_size(32), aligned(32)));

inline V8 load8(const float *p) {
  V8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// Eight bytes as numbers. (From element to element: GCC makes one instruction of it, unlike of a conversion of vectors.)
inline V8 load8(const std::uint8_t *p) {
  typedef int I8 __attribute__((vector_size(32)));
  return __builtin_convertvector((I8{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}), V8);
}
// The neighbour of an axis of one point is the point itself.
template <bool Line>
inline V8 load_pair(const float *p) {
  if (Line) return load8(p);
  const V4 a = load4(p);
  return V8{a[0], a[1], a[2], a[3], a[0], a[1], a[2], a[3]};
}
inline V8 splat8(float s) { return V8{s, s, s, s, s, s, s, s}; }
inline V8 pair(V4 a, V4 b) { return V8{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}; }
inline V4 lower(V8 a) { return V4{a[0], a[1], a[2], a[3]}; }
inline V4 upper(V8 a) { return V4{a[4], a[5], a[6], a[7]}; }
