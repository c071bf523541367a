// A block of a GPU on one CPU thread: every thread of the block is a fiber, a barrier hands over to the next. Fibers
// and blocks run in an order drawn from a seed, and shared memory begins as NaN: a missing barrier, or a read of what
// nobody wrote, changes the result from seed to seed. Beside it the few functions of the driver that a launch needs, so
// that the package's own launcher drives it.
#pragma once
#undef _FORTIFY_SOURCE  // it takes a change of stacks for an attack
// C headers alone: those of C++ take several times as long to compile as the kernels.
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct dim3 {
  unsigned x, y, z;
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
#define KERNEL(name, parameters)                                                                                  \
  static void name parameters;                                                                                    \
  static const emulated::Known known_##name(#name, decltype(emulated::arguments_of(name))::template run<name>); \
  static void name parameters

// All of it static: libraries of several radii are loaded side by side, and must not share a table.
namespace emulated {
typedef void (*Run)(const char *);
struct Known;
static Known *table;
struct Known {
  const char *name;
  Run run;
  Known *next;
  Known(const char *name, Run run) : name(name), run(run), next(table) { table = this; }
};
// The arguments lie one after the other, each where its alignment allows it, as the driver wants them.
template <class T>
static T read(const char *buffer, size_t &at) {
  at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
  T value;
  memcpy(&value, buffer + at, sizeof(T));
  at += sizeof(T);
  return value;
}
struct Call {  // braces evaluate from left to right
  template <class... A>
  Call(void (*kernel)(A...), A... arguments) {
    kernel(arguments...);
  }
};
template <class... A>
struct Arguments {
  template <void (*kernel)(A...)>
  static void run(const char *buffer) {
    size_t at = 0;
    Call{kernel, read<A>(buffer, at)...};
  }
};
template <class... A>
Arguments<A...> arguments_of(void (*)(A...));

// A stack that threads run on, one after the other; those that wait at a barrier keep theirs. A change of stacks is a
// longjmp, but for the first: the functions of ucontext ask the system each time.
struct Fiber {
  ucontext_t context;
  char stack[1 << 16];
  jmp_buf here;
  bool begun;
  Fiber *next;
};
struct Thread {
  dim3 index;
  Fiber *fiber;
  bool done;
  long barriers;
};
static const unsigned most_threads = 256;
static jmp_buf scheduler;
static Thread *running;
static Run kernel;
static const char *arguments;
static unsigned seed = 1;
static int left_out = -1;
// Back to the scheduler, until it goes on with this fiber.
static __attribute__((noinline)) void pause() {
  if (!_setjmp(running->fiber->here)) _longjmp(scheduler, 1);
}
// The barriers of a text are counted from 0; one may be left out, to see whether it is needed.
static inline void barrier(int number) {
  if (number == left_out) return;
  ++running->barriers;
  pause();
}
static void enter() {
  for (;;) {
    kernel(arguments);
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
  fiber->context.uc_stack.ss_sp = fiber->stack, fiber->context.uc_stack.ss_size = sizeof(fiber->stack);
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, enter, 0);
  setcontext(&fiber->context);
}
static void shuffle(unsigned *order, unsigned n, uint64_t &state) {
  for (unsigned i = n; i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const unsigned j = static_cast<unsigned>((state >> 33) * i >> 31), other = order[j];
    order[j] = order[i - 1], order[i - 1] = other;
  }
}
static void launch(dim3 grid, dim3 block, size_t shared_bytes) {
  static Fiber *idle;
  uint64_t random = seed;
  blockDim = block, gridDim = grid;
  const unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
  const size_t shared_floats = shared_bytes / sizeof(float) + 4;
  float *const shared = static_cast<float *>(malloc(shared_floats * sizeof(float)));
  emulated_shared = shared + (16 - reinterpret_cast<uintptr_t>(shared) % 16) % 16 / 4;
  unsigned *const order = static_cast<unsigned *>(malloc(blocks * sizeof(unsigned))), turn[most_threads];
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  for (unsigned i = 0; i < threads; ++i) turn[i] = i;
  if (seed) shuffle(order, blocks, random);
  for (unsigned k = 0; k < blocks; ++k) {
    const unsigned b = order[k];
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    for (size_t i = 0; i < shared_floats; ++i) shared[i] = __builtin_nanf("");
    Thread all[most_threads];
    for (unsigned t = 0; t < threads; ++t) {
      all[t] = {{t % block.x, t / block.x % block.y, t / block.x / block.y}, nullptr, false, 0};
    }
    for (unsigned left = threads; left;) {
      if (seed) shuffle(turn, threads, random);
      for (unsigned i = 0; i < threads; ++i) {
        Thread &thread = all[turn[i]];
        if (thread.done) continue;
        if (!thread.fiber) {
          thread.fiber = idle ? idle : static_cast<Fiber *>(calloc(1, sizeof(Fiber)));
          idle = thread.fiber->next;
        }
        go_on(&thread);
        if (!thread.done) continue;
        thread.fiber->next = idle;
        idle = thread.fiber;
        --left;
      }
      for (unsigned t = 0; t < threads; ++t) {
        if (all[t].done != all[0].done || all[t].barriers != all[0].barriers) {
          fprintf(stderr, "a barrier that not all threads of a block reach\n");
          abort();
        }
      }
    }
  }
  free(order);
  free(shared);
}
}  // namespace emulated

#define __syncthreads() emulated::barrier(__COUNTER__)
template <class T>
static inline T atomicAdd(T *p, T v) {
  T old = *p;
  *p = old + v;
  return old;
}
static inline unsigned atomicMax(unsigned *p, unsigned v) {
  unsigned old = *p;
  if (v > old) *p = v;
  return old;
}
static inline float __uint_as_float(unsigned u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline unsigned __float_as_uint(float f) {
  unsigned u;
  memcpy(&u, &f, 4);
  return u;
}
static inline float fabsf(float x) { return __builtin_fabsf(x); }
static inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
static inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
static inline float sqrtf(float x) { return __builtin_sqrtf(x); }
static inline float expf(float x) { return __builtin_expf(x); }
static inline float logf(float x) { return __builtin_logf(x); }
static inline double sqrt(double x) { return __builtin_sqrt(x); }
static inline double exp(double x) { return __builtin_exp(x); }
static inline double log(double x) { return __builtin_log(x); }
static inline double round(double x) { return __builtin_round(x); }
template <class T>
static inline T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
static inline T min(T a, T b) {
  return b < a ? b : a;
}

extern "C" {
void emulate_order(unsigned seed) { emulated::seed = seed; }
void emulate_without(int barrier) { emulated::left_out = barrier; }
int cuModuleLoadData(void **module, const void *) {
  *module = emulated::table;
  return 0;
}
int cuModuleGetFunction(void **f, void *, const char *name) {
  for (emulated::Known *known = emulated::table; known; known = known->next) {
    if (!strcmp(known->name, name)) return *f = known, 0;
  }
  return 500;
}
int cuFuncSetAttribute(void *, int, int) { return 0; }
int cuGetErrorString(int, const char **text) {
  *text = "emulated";
  return 0;
}
// CUDA ends the list of where the arguments lie by 0, HIP by 3.
static int emulate_launch(void *f, dim3 grid, dim3 block, unsigned shared, void **extra, size_t end) {
  if (block.x * block.y * block.z > emulated::most_threads || !grid.x || !grid.y || !grid.z || shared > 227 * 1024)
    return 1;
  if (extra[0] != reinterpret_cast<void *>(1) || extra[2] != reinterpret_cast<void *>(2) ||
      extra[4] != reinterpret_cast<void *>(end))
    return 1;
  emulated::kernel = static_cast<emulated::Known *>(f)->run;
  emulated::arguments = static_cast<const char *>(extra[1]);
  emulated::launch(grid, block, shared);
  return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **, void **extra) {
  return emulate_launch(f, {gx, gy, gz}, {bx, by, bz}, shared, extra, 0);
}
int hipModuleLoadData(void **module, const void *code) { return cuModuleLoadData(module, code); }
int hipModuleGetFunction(void **f, void *module, const char *name) { return cuModuleGetFunction(f, module, name); }
const char *hipGetErrorString(int) { return "emulated"; }
int hipModuleLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *, void **, void **extra) {
  return emulate_launch(f, {gx, gy, gz}, {bx, by, bz}, shared, extra, 3);
}
}
