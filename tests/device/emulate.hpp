// A block of a GPU on one CPU thread: every thread of the block is a fiber, a barrier hands over to the next. Fibers
// and blocks run in an order drawn from a seed, and shared memory begins as NaN: a missing barrier, or a read of what
// nobody wrote, changes the result from seed to seed. Beside it the few functions of the driver that a launch needs, so
// that the package's own launcher drives it.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static float *emulated_shared;
#define __device__ static inline
#define __forceinline__
#define __restrict__
#define SHARED(name) float *const name = emulated_shared
#define KERNEL(name, parameters)                                           \
  static void name parameters;                                             \
  static const emulated::Known known_##name(#name, emulated::unpacked(name)); \
  static void name parameters

// All of it static: libraries of several radii are loaded side by side, and must not share a table.
namespace emulated {
using Run = std::function<void(const char *)>;
static inline std::map<std::string, Run> &table() {
  static std::map<std::string, Run> kernels;
  return kernels;
}
// The arguments lie one after the other, each where its alignment allows it, as the driver wants them.
template <class T>
static T read(const char *buffer, size_t &at) {
  at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
  T value;
  std::memcpy(&value, buffer + at, sizeof(T));
  at += sizeof(T);
  return value;
}
template <class... A>
static Run unpacked(void (*kernel)(A...)) {
  return [kernel](const char *buffer) {
    size_t at = 0;
    std::tuple<std::decay_t<A>...> values{read<std::decay_t<A>>(buffer, at)...};
    std::apply(kernel, values);
  };
}
struct Known {
  Known(const char *name, Run run) { table()[name] = std::move(run); }
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  dim3 index;
  bool done = false;
  long barriers = 0;
};
static ucontext_t scheduler;
static Fiber *running;
static std::function<void()> body;
static unsigned seed = 1;
static inline void enter() {
  body();
  running->done = true;
  swapcontext(&running->context, &scheduler);
}
static inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel) {
  std::mt19937 random(seed);
  body = kernel;
  blockDim = block, gridDim = grid;
  const unsigned threads = block.x * block.y * block.z;
  std::vector<float> shared(shared_bytes / sizeof(float) + 4);
  emulated_shared = shared.data() + (16 - reinterpret_cast<std::uintptr_t>(shared.data()) % 16) % 16 / 4;
  std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y * grid.z), turn(threads);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  for (unsigned i = 0; i < threads; ++i) turn[i] = i;
  if (seed) std::shuffle(order.begin(), order.end(), random);
  static std::vector<Fiber> fibers;
  if (fibers.size() < threads) fibers.resize(threads);
  for (auto &f : fibers) f.stack.resize(1 << 16);
  for (unsigned b : order) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    std::fill(shared.begin(), shared.end(), NAN);
    for (unsigned t = 0; t < threads; ++t) {
      Fiber &f = fibers[t];
      f.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      f.done = false, f.barriers = 0;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = nullptr;
      makecontext(&f.context, enter, 0);
    }
    for (unsigned left = threads; left;) {
      if (seed) std::shuffle(turn.begin(), turn.end(), random);
      for (unsigned t : turn) {
        Fiber &f = fibers[t];
        if (f.done) continue;
        running = &f, threadIdx = f.index;
        swapcontext(&scheduler, &f.context);
        left -= f.done;
      }
      for (unsigned t = 1; t < threads; ++t) {
        if (fibers[t].done != fibers[0].done || fibers[t].barriers != fibers[0].barriers) {
          std::fprintf(stderr, "a barrier that not all threads of a block reach\n");
          std::abort();
        }
      }
    }
  }
}
}  // namespace emulated

static inline void __syncthreads() {
  ++emulated::running->barriers;
  swapcontext(&emulated::running->context, &emulated::scheduler);
}
template <class T>
static inline T atomicAdd(T *p, T v) {
  T old = *p;
  *p = old + v;
  return old;
}
static inline unsigned atomicMax(unsigned *p, unsigned v) {
  unsigned old = *p;
  *p = std::max(old, v);
  return old;
}
static inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
using std::fabs;
using std::fmaxf;
using std::fminf;
using std::max;
using std::min;

extern "C" {
void emulate_order(unsigned seed) { emulated::seed = seed; }
int cuModuleLoadData(void **module, const void *) {
  *module = &emulated::table();
  return 0;
}
int cuModuleGetFunction(void **f, void *, const char *name) {
  auto at = emulated::table().find(name);
  if (at == emulated::table().end()) return 500;
  *f = &at->second;
  return 0;
}
int cuFuncSetAttribute(void *, int, int) { return 0; }
int cuGetErrorString(int, const char **text) {
  *text = "emulated";
  return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **, void **extra) {
  if (bx * by * bz > 256 || !gx || !gy || !gz || shared > 227 * 1024) return 1;
  const emulated::Run &run = *static_cast<emulated::Run *>(f);
  emulated::launch({gx, gy, gz}, {bx, by, bz}, shared, [&] { run(static_cast<const char *>(extra[1])); });
  return 0;
}
}
