/* A stand-in for the CUDA runtime: memory is the host's, copies are real, kernels do nothing and are counted.

   What happens goes, a line an event, into the file that STAND_IN_LOG names:

       illegal FUNCTION           called while a stream is captured, which a GPU refuses
       capture ID KERNELS COPIES  a graph was captured, with so many kernels and copies from the host
       replay ID                  it was launched
       stale ID                   and reads host memory that holds something else than at its capture
       copy BYTES                 outside a capture, from or to the host

   The other libraries call stand_in_kernel for what would launch one. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "driver_types.h"

#define DONE return 0
#define GRAPHS 4096
#define COPIES 65536

static struct { const void *source; void *seen; size_t bytes; } copies[COPIES];
static struct { int first, last; } graphs[GRAPHS];
static int copied, captured, kernels, first_copy, is_capturing;
static char *const handles = (char *)0x10000;
static long handed;

void stand_in_note(const char *format, ...) {
  static FILE *log;
  if (!log) log = fopen(getenv("STAND_IN_LOG"), "a");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(log, format, arguments);
  va_end(arguments);
  fputc('\n', log);
  fflush(log);
}

void stand_in_kernel(void) { if (is_capturing) kernels++; }
static void *handle(void) { return handles + 16 * ++handed; }
static void refuse(const char *function) { if (is_capturing) stand_in_note("illegal %s", function); }

/* memory */
static long allocate(void **place, size_t bytes) {
  *place = aligned_alloc(256, (bytes + 511) / 256 * 256);
  return *place ? 0 : 2;
}
long cudaMalloc(void **place, size_t bytes) { refuse("cudaMalloc"); return allocate(place, bytes); }
long cudaMallocHost(void **place, size_t bytes) { refuse("cudaMallocHost"); return allocate(place, bytes); }
long cudaHostAlloc(void **place, size_t bytes, unsigned f) { refuse("cudaHostAlloc"); return allocate(place, bytes); }
long cudaMallocAsync(void **place, size_t bytes, void *stream) { return allocate(place, bytes); }
long cudaMallocFromPoolAsync(void **place, size_t bytes, void *pool, void *stream) { return allocate(place, bytes); }
long cudaFree(void *place) { refuse("cudaFree"); free(place); DONE; }
long cudaFreeHost(void *place) { refuse("cudaFreeHost"); free(place); DONE; }
long cudaFreeAsync(void *place, void *stream) { free(place); DONE; }
long cudaMemGetInfo(size_t *unused, size_t *all) { *unused = 70ul << 30; *all = 80ul << 30; DONE; }
long cudaMemset(void *to, int byte, size_t bytes) { refuse("cudaMemset"); memset(to, byte, bytes); DONE; }
long cudaMemsetAsync(void *to, int byte, size_t bytes, void *stream) { memset(to, byte, bytes); DONE; }
long cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  refuse("cudaMemcpy");
  memmove(to, from, bytes);
  if (kind != cudaMemcpyDeviceToDevice) stand_in_note("copy %zu", bytes);
  DONE;
}
long cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  if (is_capturing && kind == cudaMemcpyHostToDevice) {
    copies[copied].source = from;
    copies[copied].bytes = bytes;
    memcpy(copies[copied++].seen = malloc(bytes), from, bytes);
  } else if (!is_capturing && kind != cudaMemcpyDeviceToDevice) stand_in_note("copy %zu", bytes);
  memmove(to, from, bytes);
  DONE;
}
long cudaMemcpy2DAsync(void *to, size_t a, const void *from, size_t b, size_t width, size_t rows, int k, void *s) {
  for (size_t row = 0; row < rows; row++) memmove((char *)to + row * a, (const char *)from + row * b, width);
  DONE;
}
long cudaPointerGetAttributes(struct cudaPointerAttributes *of, const void *place) {
  memset(of, 0, sizeof *of);
  of->type = cudaMemoryTypeDevice;
  DONE;
}
long cudaMemPoolCreate(void **pool, const void *how) { *pool = handle(); DONE; }

/* the device */
long cudaGetDeviceCount(int *count) { *count = 1; DONE; }
long cudaGetDevice(int *device) { *device = 0; DONE; }
static long properties(struct cudaDeviceProp *of) {
  memset(of, 0, sizeof *of);
  strcpy(of->name, "NVIDIA stand-in");
  of->major = 9;
  of->multiProcessorCount = 132;
  of->totalGlobalMem = 80ul << 30;
  of->sharedMemPerBlock = 48 << 10;
  of->sharedMemPerBlockOptin = 227 << 10;
  of->sharedMemPerMultiprocessor = 228 << 10;
  of->warpSize = 32;
  of->maxThreadsPerBlock = of->maxThreadsDim[0] = of->maxThreadsDim[1] = 1024;
  of->maxThreadsDim[2] = 64;
  of->maxThreadsPerMultiProcessor = 2048;
  of->maxGridSize[0] = 2147483647;
  of->maxGridSize[1] = of->maxGridSize[2] = 65535;
  of->regsPerBlock = of->regsPerMultiprocessor = 65536;
  of->memoryPoolsSupported = 1;
  DONE;
}
long cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) { return properties(of); }
long cudaGetDeviceProperties_v2(struct cudaDeviceProp *of, int device) { return properties(of); }
long cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    default: *value = 1;
  }
  DONE;
}
long cudaRuntimeGetVersion(int *version) { *version = STAND_IN_CUDA; DONE; }
long cudaDriverGetVersion(int *version) { *version = STAND_IN_CUDA; DONE; }
const char *cudaGetErrorString(int error) { return "stand-in"; }
const char *cudaGetErrorName(int error) { return "stand-in"; }
long cudaDeviceSynchronize(void) { refuse("cudaDeviceSynchronize"); DONE; }

/* streams, events, graphs */
long cudaStreamCreate(void **stream) { *stream = handle(); DONE; }
long cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = handle(); DONE; }
long cudaStreamSynchronize(void *stream) { refuse("cudaStreamSynchronize"); DONE; }
long cudaEventCreate(void **event) { *event = handle(); DONE; }
long cudaEventCreateWithFlags(void **event, unsigned flags) { *event = handle(); DONE; }
long cudaEventSynchronize(void *event) { refuse("cudaEventSynchronize"); DONE; }
long cudaEventElapsedTime(float *milliseconds, void *begin, void *end) { *milliseconds = 0.1f; DONE; }
long cudaStreamIsCapturing(void *stream, int *status) { *status = is_capturing; DONE; }
long cudaStreamBeginCapture(void *stream, int mode) { is_capturing = 1; kernels = 0; first_copy = copied; DONE; }
long cudaStreamEndCapture(void *stream, void **graph) {
  is_capturing = 0;
  graphs[captured].first = first_copy;
  graphs[captured].last = copied;
  stand_in_note("capture %d %d %d", captured, kernels, copied - first_copy);
  *graph = handles + captured++;
  DONE;
}
long cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) { *executable = graph; DONE; }
long cudaGraphLaunch(void *executable, void *stream) {
  int id = (char *)executable - handles;
  stand_in_note("replay %d", id);
  for (int copy = graphs[id].first; copy < graphs[id].last; copy++)
    if (memcmp(copies[copy].source, copies[copy].seen, copies[copy].bytes)) {
      stand_in_note("stale %d", id);
      break;
    }
  DONE;
}

/* kernels */
static long registered;
void **__cudaRegisterFatBinary(void *binary) { return (void **)&registered; }
long __cudaGetKernel(void **kernel, const void *function) { *kernel = &registered; DONE; }
long __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream) {
  memset(grid, 1, 12);
  memset(block, 1, 12);
  *shared = 0;
  *(void **)stream = 0;
  DONE;
}
long __cudaLaunchKernel(void *kernel) { stand_in_kernel(); DONE; }
long cudaLaunchKernel(const void *kernel) { stand_in_kernel(); DONE; }
long cudaLaunchKernelExC(const void *how) { stand_in_kernel(); DONE; }
long cudaLaunchCooperativeKernel(const void *kernel) { stand_in_kernel(); DONE; }
long cudaFuncGetAttributes(struct cudaFuncAttributes *of, const void *kernel) {
  memset(of, 0, sizeof *of);
  of->maxThreadsPerBlock = 1024;
  of->numRegs = 32;
  of->binaryVersion = of->ptxVersion = 90;
  DONE;
}
long cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *k, int t, size_t s, unsigned f) {
  *blocks = 2;
  DONE;
}
