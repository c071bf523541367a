// A block of a GPU on one CPU thread: every thread of the block is a fiber, a barrier hands over to the next. Fibers
// and blocks run in an order drawn from a seed, and shared memory begins as NaN: a missing barrier, or a read of what
// nobody wrote, changes the result from seed to seed. Beside it the few functions of the driver that a launch needs, so
// that the package's own launcher drives it.
#pragma once
#undef _FORTIFY_SOURCE  // it takes a change of stacks for an attack
#include <setjmp.h>
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

// A stack that threads run on, one after the other; those that wait at a barrier keep theirs. A change of stacks is a
// longjmp, but for the first: the functions of ucontext ask the system each time.
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  jmp_buf here;
  bool begun = false;
};
struct Thread {
  dim3 index;
  Fiber *fiber = nullptr;
  bool done = false;
  long barriers = 0;
};
static jmp_buf scheduler;
static Thread *running;
static std::function<void()> body;
static unsigned seed = 1;
// Back to the scheduler, until it goes on with this fiber.
static __attribute__((noinline)) void pause() {
  if (!_setjmp(running->fiber->here)) _longjmp(scheduler, 1);
}
static void enter() {
  for (;;) {
    body();
    running->done = true;
    pause();
  }
}
// Run a thread until it waits or is done.
static __attribute__((noinline)) void go_on(Thread *thread) {
  running = thread, threadIdx = thread->index;
  Fiber *const fiber = thread->fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->begun) _longjmp(fiber->here, 1);
  fiber->begun = true;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.data(), fiber->context.uc_stack.ss_size = fiber->stack.size();
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, enter, 0);
  setcontext(&fiber->context);
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
  static std::vector<Fiber *> idle;
  for (unsigned b : order) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    std::fill(shared.begin(), shared.end(), NAN);
    std::vector<Thread> all(threads);
    for (unsigned t = 0; t < threads; ++t) {
      all[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    for (unsigned left = threads; left;) {
      if (seed) std::shuffle(turn.begin(), turn.end(), random);
      for (unsigned t : turn) {
        Thread &thread = all[t];
        if (thread.done) continue;
        if (!thread.fiber) {
          if (idle.empty()) idle.push_back(new Fiber);
          thread.fiber = idle.back();
          idle.pop_back();
        }
        go_on(&thread);
        if (!thread.done) continue;
        idle.push_back(thread.fiber);
        --left;
      }
      for (const Thread &thread : all) {
        if (thread.done != all[0].done || thread.barriers != all[0].barriers) {
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
  emulated::pause();
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
