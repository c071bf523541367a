// What all kernels share. The same text is compiled by NVRTC and hiprtc, and with tests/device/emulate.hpp by a C++
// compiler: no #include here. float32, C order (z, y, x); a 2D image has one plane. No kernel waits for another block.
#ifdef EMULATE
#include "emulate.hpp"
#else
#define KERNEL(name, parameters) extern "C" __global__ void __launch_bounds__(256) name parameters
#define SHARED(name) float *const name = reinterpret_cast<float *>(dynamic_shared)
// Declared once: clang, which hiprtc is, takes those of a kernel and of a function that it calls for two languages.
extern __shared__ float4 dynamic_shared[];
#endif

typedef long long Index;  // `long` has 32 bits on Windows

struct Size {
  int x, y, z;
};
// moving voxel = index (i, 1) + vector u
struct Map {
  float index[12], vector[9];
};

__device__ __forceinline__ Index count_of(Size n) { return static_cast<Index>(n.x) * n.y * n.z; }
__device__ __forceinline__ Index this_thread() { return static_cast<Index>(blockIdx.x) * 256 + threadIdx.x; }

// The voxel that has a number; divisions of 64 bits take far longer, and few grids need them.
struct Voxel {
  int x, y, z;
};
__device__ __forceinline__ Voxel voxel_of(Index i, Size n) {
  if (i <= 0x7fffffff) {
    const unsigned u = static_cast<unsigned>(i), row = u / n.x, z = row / n.y;
    return {static_cast<int>(u - row * n.x), static_cast<int>(row - z * n.y), static_cast<int>(z)};
  }
  return {static_cast<int>(i % n.x), static_cast<int>(i / n.x % n.y), static_cast<int>(i / n.x / n.y)};
}

// Where a position lies among the nodes of a grid: the lower corner of its cell, the steps to the upper ones, the
// fractions, and 1 along the axes that it is inside of: beyond the edge the value is constant.
struct Cell {
  Index at;
  int sx, sy, sz;
  float fx, fy, fz, ox, oy, oz;
};

__device__ __forceinline__ Cell locate(Size n, float x, float y, float z) {
  // fminf and fmaxf drop what is not a number: the cell is the first one, and the fraction passes it on.
  const float cx = fminf(fmaxf(x, 0.f), float(n.x - 1)), cy = fminf(fmaxf(y, 0.f), float(n.y - 1)),
              cz = fminf(fmaxf(z, 0.f), float(n.z - 1));
  const int ix = min(int(cx), max(n.x - 2, 0)), iy = min(int(cy), max(n.y - 2, 0)), iz = min(int(cz), max(n.z - 2, 0));
  Cell c;
  c.at = (static_cast<Index>(iz) * n.y + iy) * n.x + ix;
  c.sx = n.x > 1 ? 1 : 0, c.sy = n.y > 1 ? n.x : 0, c.sz = n.z > 1 ? n.x * n.y : 0;
  c.fx = x == x ? cx - ix : x, c.fy = y == y ? cy - iy : y, c.fz = z == z ? cz - iz : z;
  c.ox = cx == x ? 1.f : 0.f, c.oy = cy == y ? 1.f : 0.f, c.oz = cz == z ? 1.f : 0.f;
  return c;
}

// The sum of a value of each of the 256 threads of a block; all of them call it, the result is that of thread 0.
__device__ __forceinline__ float block_sum(float value, float *shared, int thread) {
  __syncthreads();
  shared[thread] = value;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  return shared[0];
}

// The largest of the sizes of the threads of a block is made the largest of all: the bits of floats, which order like
// them; what is no number is the largest.
__device__ __forceinline__ void keep_largest(unsigned size, unsigned *bits) {
  SHARED(shared);
  unsigned *const sizes = reinterpret_cast<unsigned *>(shared);
  sizes[threadIdx.x] = size;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sizes[threadIdx.x] = max(sizes[threadIdx.x], sizes[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) atomicMax(bits, sizes[0]);
}

// The largest component of a node, as the bits of a float.
__device__ __forceinline__ unsigned size_of(float4 v) {
  const unsigned sign = 0x7fffffffu;
  return max(__float_as_uint(v.x) & sign, max(__float_as_uint(v.y) & sign, __float_as_uint(v.z) & sign));
}

// Sums that many threads add to are kept as 64-bit whole numbers, which add up to the same in any order, in units of a
// power of two: 2^20 addends of the largest size fit in. `bits` holds the largest size, as the bits of a float.
typedef unsigned long long Sum;

__device__ __forceinline__ float sum_scale(const unsigned *bits) {
  const int exponent = max(static_cast<int>(*bits >> 23), 1);
  // Not above the largest float: sizes that small are zero for all purposes.
  return __uint_as_float(static_cast<unsigned>(min(127 + 42 + 127 - exponent, 254)) << 23);
}
__device__ __forceinline__ void add_to_sum(Sum *to, float value, float scale) {
  atomicAdd(to, static_cast<Sum>(static_cast<long long>(value * scale)));
}
// What is no number must not become one: where the largest size is none, all sums are none.
__device__ __forceinline__ float value_of(Sum sum, const unsigned *bits) {
  if (*bits >= 0x7f800000u) return __uint_as_float(0x7fc00000u);
  return static_cast<float>(static_cast<long long>(sum)) / sum_scale(bits);
}

// One step of Adam for one parameter. `decay1` and `decay2` are 1 - beta1 and 1 - beta2.
struct AdamRates {
  float decay1, decay2, rate, correction, epsilon;
};
__device__ __forceinline__ void adam_step(float *parameter, float *first, float *second, Index i, float g,
                                          const AdamRates &a) {
  const float m = first[i] + a.decay1 * (g - first[i]), v = second[i] + a.decay2 * (g * g - second[i]);
  first[i] = m;
  second[i] = v;
  parameter[i] -= a.rate * m / (sqrtf(v * a.correction) + a.epsilon);
}
