// CUDA C++ on a CPU: every thread of a block is a fiber, and a barrier runs all the others.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using std::max;
using std::min;
typedef unsigned int uint;
typedef unsigned char uchar;
struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define VECTORS(T)                                                              \
  struct T##2 { T x, y; };                                                      \
  struct T##4 { T x, y, z, w; };                                                \
  static inline T##2 make_##T##2(T x, T y) { return {x, y}; }                   \
  static inline T##4 make_##T##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float) VECTORS(int) VECTORS(uint) VECTORS(uchar) VECTORS(char)

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> ended;
static std::vector<double> exchanged;
static int current;
static void (*kernel)(void **);
static void **arguments;

static void become(unsigned thread) {
  current = thread;
  unsigned plane = blockDim.x * blockDim.y;
  threadIdx = {thread % blockDim.x, thread % plane / blockDim.x, thread / plane};
}
static void __syncthreads() {
  int me = current;
  swapcontext(&fibers[me], &scheduler);
  become(me);
}
template <class T> static T exchange(T value, int from) {
  memcpy(&exchanged[current], &value, sizeof value);
  __syncthreads();
  memcpy(&value, &exchanged[from], sizeof value);
  __syncthreads();
  return value;
}
template <class T> static T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  return exchange(value, current % width + by < width ? current + by : current);
}
template <class T> static T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return exchange(value, current - current % width + lane % width);
}
static unsigned __activemask() { return ~0u; }
static void begin() {
  int me = current;
  kernel(arguments);
  ended[me] = 1;
  swapcontext(&fibers[me], &scheduler);
}
extern "C" void run(void *function, unsigned *grid, unsigned *block, void **given) {
  kernel = (void (*)(void **))function;
  arguments = given;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  unsigned threads = block[0] * block[1] * block[2], blocks = grid[0] * grid[1] * grid[2];
  const size_t size = 1 << 16;
  std::vector<std::vector<char>> stacks(threads, std::vector<char>(size));
  exchanged.assign(threads + 32, 0);
  for (unsigned b = 0; b < blocks; b++) {
    unsigned plane = grid[0] * grid[1];
    blockIdx = {b % grid[0], b % plane / grid[0], b / plane};
    fibers.assign(threads, ucontext_t());
    ended.assign(threads, 0);
    for (unsigned t = 0; t < threads; t++) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data();
      fibers[t].uc_stack.ss_size = size;
      makecontext(&fibers[t], begin, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (unsigned t = 0; t < threads; t++) {
        if (ended[t]) continue;
        left = true;
        become(t);
        swapcontext(&scheduler, &fibers[t]);
      }
    }
  }
}
