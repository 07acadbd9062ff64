/* Runs kernels without TVM's runtime and without a C library: what they need is below.

Standard input holds 64-bit words and tensors' bytes (see harness.py); the outputs' bytes go to
standard output. Parallel loops run one task after another. Every tensor lies between guards, and
holds garbage until it is written. */

typedef signed long long word;
typedef unsigned char byte;

enum { GUARD = 64, TASKS = 3, MOST = 32 };

typedef struct { int type, index; } Device;
typedef struct { byte code, bits; unsigned short lanes; } Kind;
typedef struct {
  void *data; Device device; int rank; Kind kind; word *shape, *strides; unsigned long long offset;
} Tensor;
typedef struct { int type, zero; union { word number; void *pointer; } value; } Any;
typedef int (*Kernel)(void *self, const Any *arguments, int count, Any *result);
typedef struct { void *sync; int tasks; } Group;
typedef int (*Task)(int task, Group *group, void *closure);

#define KERNEL(name) int __tvm_ffi_##name(void *, const Any *, int, Any *);
#include "kernels.h"
#undef KERNEL
#define KERNEL(name) __tvm_ffi_##name,
static const Kernel kernels[] = {
#include "kernels.h"
};

static long call(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}

static void leave(int code) { for (;;) call(94, code, 0, 0, 0, 0, 0); }

static void put(int file, const void *data, word size) {
  const byte *at = data;
  while (size > 0) {
    long done = call(64, file, (long)at, size, 0, 0, 0);
    if (done <= 0) leave(3);
    at += done, size -= done;
  }
}

static void say(const char *text) {
  word size = 0;
  while (text[size]) size++;
  put(2, text, size);
}

static void get(void *data, word size) {
  byte *at = data;
  while (size > 0) {
    long done = call(63, 0, (long)at, size, 0, 0, 0);
    if (done <= 0) { say("the input ends early\n"); leave(3); }
    at += done, size -= done;
  }
}

static word next(void) { word value; get(&value, sizeof value); return value; }

void *memset(void *to, int value, unsigned long size) {
  for (volatile byte *at = to; size--; at++) *at = value;
  return to;
}

void *memcpy(void *to, const void *from, unsigned long size) {
  volatile byte *at = to;
  for (const byte *source = from; size--; at++, source++) *at = *source;
  return to;
}

static byte *room, *end;

static void *take(word size) {
  byte *start = room;
  room += (size + 63) / 64 * 64;
  if (room > end) { say("out of memory\n"); leave(3); }
  return start;
}

/* What TVM's code calls through these variables, which its runtime fills in when it loads it. */
extern void *(*__TVMBackendAllocWorkspace)(int, int, unsigned long long, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
extern int (*__TVMBackendParallelLaunch)(Task, void *, int);
#pragma weak __TVMBackendAllocWorkspace
#pragma weak __TVMBackendFreeWorkspace
#pragma weak __TVMBackendParallelLaunch

static void *workspace(int type, int index, unsigned long long size, int code, int bits) {
  (void)type, (void)index, (void)code, (void)bits;
  byte *start = take(size + GUARD);
  memset(start, 0xA5, size);
  return start;
}

static int release(int type, int index, void *memory) {
  (void)type, (void)index, (void)memory;
  return 0;
}

static int launch(Task task, void *closure, int tasks) {
  Group group = {0, tasks ? tasks : TASKS};
  /* Backwards: nothing may depend on the order. */
  for (int i = group.tasks; i--;)
    if (task(i, &group, closure)) return -1;
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int count) {
  say(kind), say(": ");
  for (int i = 0; i < count; i++) say(parts[i]);
  say("\n");
}

static void guard(Tensor *tensor, word size, int check) {
  byte *sides[] = {(byte *)tensor->data - GUARD, (byte *)tensor->data + size};
  for (int side = 0; side < 2; side++)
    for (int i = 0; i < GUARD; i++) {
      if (check && sides[side][i] != 0x5A) { say("a kernel wrote beyond a tensor\n"); leave(4); }
      sides[side][i] = 0x5A;
    }
}

static int run(void) {
  word tensors = next(), calls = next(), outputs = next();
  Tensor *all = take(tensors * sizeof *all);
  word *sizes = take(tensors * sizeof *sizes);
  for (word i = 0; i < tensors; i++) {
    word code = next(), bits = next(), rank = next(), size = bits / 8;
    word *shape = take(16 * (rank + 1));
    for (word axis = 0; axis < rank; axis++) shape[axis] = next();
    for (word axis = rank; axis--; size *= shape[axis]) shape[rank + axis] = size / (bits / 8);
    void *data = (byte *)take(size + 2 * GUARD + 64) + GUARD;
    all[i] = (Tensor){data, {1, 0}, rank, {code, bits, 1}, shape, shape + rank, 0};
    sizes[i] = size;
    if (next()) get(data, size); else memset(data, 0xA5, size);
    guard(&all[i], size, 0);
  }
  for (word i = 0; i < calls; i++) {
    Any arguments[MOST], result = {0};
    word kernel = next(), count = next();
    if (count > MOST) { say("too many arguments\n"); return 3; }
    for (word a = 0; a < count; a++) arguments[a] = (Any){7, 0, {.pointer = &all[next()]}};
    byte *before = room;
    if (kernels[kernel](0, arguments, count, &result)) return 2;
    room = before;
    for (word t = 0; t < tensors; t++) guard(&all[t], sizes[t], 1);
  }
  while (outputs--) {
    word i = next();
    put(1, all[i].data, sizes[i]);
  }
  return 0;
}

void _start(void) {
  word size = 1LL << 28;
  room = (byte *)call(222, 0, size, 3, 0x22, -1, 0);
  end = room + size;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = release;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  leave(run());
}
