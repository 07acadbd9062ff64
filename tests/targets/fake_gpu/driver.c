/* What TVM's CUDA runtime calls of NVIDIA's driver and runtime, for a GPU that is this CPU:
   memory is memory, and a launch goes to the emulated kernels in the library named by EMULATED.
   Built as libcuda.so.1 and as libcudart.so.13. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; } Config;

static void *kernels;

int cuInit(int flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "a fake GPU"); return 0; }
int cuFuncSetAttribute() { return 0; }
int cuGetErrorName(int error, const char **text) { *text = "fake error"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "fake error"; return 0; }
int cuModuleUnload() { return 0; }
int cuTensorMapEncodeTiled() { return 1; }
int cuModuleLoadData(void **module, const char *code) {
  if (memcmp(code, "\177ELF", 4)) { fprintf(stderr, "not a cubin\n"); return 200; }
  kernels = dlopen(getenv("EMULATED"), RTLD_NOW | RTLD_GLOBAL);
  if (!kernels) { fprintf(stderr, "%s\n", dlerror()); return 200; }
  *module = kernels;
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  char called[1024];
  snprintf(called, sizeof called, "call_%s", name);
  *function = dlsym(kernels, called);
  return *function ? 0 : 500;
}
int cuLaunchKernelEx(Config *config, void *function, void **arguments, void **extra) {
  void (*run)(void *, unsigned *, unsigned *, void **) = dlsym(kernels, "run");
  run(function, config->grid, config->block, arguments);
  return 0;
}

int cudaMalloc(void **memory, size_t size) {
  *memory = aligned_alloc(256, (size + 511) / 256 * 256);
  memset(*memory, 0xAB, size);
  return 0;
}
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  memcpy(to, from, size);
  return 0;
}
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  /* cudaDevAttrComputeCapabilityMajor and Minor, WarpSize, MaxThreadsPerBlock */
  *value = attribute == 75 ? 8 : attribute == 76 ? 0 : attribute == 10 ? 32 : attribute == 1 ? 1024 : 49152;
  return 0;
}
int cudaGetDeviceProperties(char *properties, int device) { strcpy(properties, "a fake GPU"); return 0; }
const char *cudaGetErrorName(int error) { return "fake error"; }
const char *cudaGetErrorString(int error) { return "fake error"; }
#define NOTHING(name) int name() { return 0; }
NOTHING(cudaEventCreate) NOTHING(cudaEventDestroy) NOTHING(cudaEventElapsedTime)
NOTHING(cudaEventRecord) NOTHING(cudaEventSynchronize) NOTHING(cudaGetLastError)
NOTHING(cudaGraphDestroy) NOTHING(cudaGraphExecDestroy) NOTHING(cudaGraphInstantiate)
NOTHING(cudaGraphLaunch) NOTHING(cudaMemGetInfo) NOTHING(cudaMemcpyPeerAsync)
NOTHING(cudaPeekAtLastError) NOTHING(cudaSetDevice) NOTHING(cudaStreamBeginCapture)
NOTHING(cudaStreamCreate) NOTHING(cudaStreamCreateWithFlags) NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamEndCapture) NOTHING(cudaStreamSynchronize) NOTHING(cudaStreamWaitEvent)
