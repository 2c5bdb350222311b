// A CUDA driver (libcuda.so.1) that executes nothing, for Triton and for torch's own lookups.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
#define NOTHING { return 0; }
#define CREATED(p) { *p = calloc(1, 64); return 0; }
enum { NAME = 150 };

static char context[64];

// Counters are in the runtime, which is preloaded.
static void count(const char *name) {
    static void (*null_count)(const char *);
    if (!null_count) null_count = dlsym(RTLD_DEFAULT, "null_count");
    if (null_count) null_count(name);
}

R cuInit(unsigned f) NOTHING
R cuDriverGetVersion(int *v) { *v = 13000; return 0; }
R cuDeviceGetCount(int *n) { *n = 1; return 0; }
R cuDeviceGet(int *d, int n) { *d = n; return 0; }
R cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "NVIDIA H100 80GB HBM3 (null)"); return 0; }
R cuDeviceGetUuid(char *u, int d) { memset(u, 7, 16); return 0; }
R cuDeviceTotalMem_v2(size_t *n, int d) { *n = 85028175872ull; return 0; }

R cuDeviceGetAttribute(int *v, int a, int d) {
    switch (a) { // CUdevice_attribute
    case 75: *v = 9; break; // compute capability 9.0
    case 76: *v = 0; break;
    case 16: *v = 132; break; // multiprocessors
    case 1: *v = 1024; break; // threads per block
    case 39: *v = 2048; break; // threads per multiprocessor
    case 10: *v = 32; break; // threads per warp
    case 8: *v = 49152; break; // shared memory per block, at most, and per multiprocessor
    case 97: *v = 232448; break;
    case 81: *v = 233472; break;
    case 12:
    case 82: *v = 65536; break; // registers
    case 13: *v = 1980000; break; // clock and memory clock in kHz, bus in bits, cache in bytes
    case 36: *v = 2619000; break;
    case 37: *v = 5120; break;
    case 38: *v = 52428800; break;
    default: *v = 1;
    }
    return 0;
}

R cuCtxGetCurrent(void **c) { *c = context; return 0; }
R cuCtxSetCurrent(void *c) NOTHING
R cuCtxGetDevice(int *d) { *d = 0; return 0; }
R cuCtxPushCurrent_v2(void *c) NOTHING
R cuCtxPopCurrent_v2(void **c) { if (c) *c = context; return 0; }
R cuCtxGetLimit(size_t *v, int l) { *v = 1 << 20; return 0; }
R cuCtxSetLimit(int l, size_t v) NOTHING
R cuDevicePrimaryCtxRetain(void **c, int d) { *c = context; return 0; }
R cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) { *f = 0, *active = 1; return 0; }
R cuStreamGetCtx(void *s, void **c) { *c = context; return 0; }
R cuGetErrorString(R e, const char **s) { *s = "null"; return 0; }
R cuGetErrorName(R e, const char **s) { *s = "null"; return 0; }

struct function { char name[NAME]; };

R cuModuleLoad(void **m, const char *p) CREATED(m)
R cuModuleLoadData(void **m, const void *p) CREATED(m)
R cuModuleLoadDataEx(void **m, const void *p, unsigned n, void *o, void **v) CREATED(m)
R cuModuleUnload(void *m) NOTHING

R cuModuleGetFunction(void **f, void *m, const char *name) {
    struct function *own = calloc(1, sizeof *own);
    snprintf(own->name, NAME, "KERNEL triton %s", name);
    *f = own;
    return 0;
}

R cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 0 ? 1024 : a == 4 ? 32 : 0; return 0; } // threads, registers
R cuFuncSetAttribute(void *f, int a, int v) NOTHING
R cuFuncSetCacheConfig(void *f, int c) NOTHING

static R launch(void *f) {
    count(((struct function *)f)->name);
    return 0;
}

R cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void *s, void **p, void **x) { return launch(f); }
R cuLaunchKernelEx(const void *c, void *f, void **p, void **x) { return launch(f); }
R cuLaunchCooperativeKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void *s, void **p) { return launch(f); }
R cuOccupancyMaxActiveClusters(int *n, void *f, const void *c) { *n = 1; return 0; }
R cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t m) { *n = 2; return 0; }
R cuPointerGetAttribute(void *d, int a, uint64_t p) { *(uint64_t *)d = p; return 0; } // returns the same pointer
R cuTensorMapEncodeTiled() NOTHING
R cuTensorMapEncodeIm2col() NOTHING
R cuLinkAddData_v2() NOTHING
R cuLinkComplete() NOTHING
R cuLinkCreate_v2() NOTHING
R cuMemGetAddressRange_v2() NOTHING

static R nothing() NOTHING

R cuGetProcAddress_v2(const char *name, void **f, int v, uint64_t g, int *r) {
    *f = dlsym(RTLD_DEFAULT, name);
    if (!*f) *f = (void *)nothing;
    if (r) *r = 0;
    return 0;
}

// For the runtime: the newest version of a function, or one that does nothing if it is not defined here.
R null_driver(const char *name, void **f) {
    char second[NAME];
    snprintf(second, NAME, "%s_v2", name);
    *f = dlsym(RTLD_DEFAULT, second);
    if (!*f) *f = dlsym(RTLD_DEFAULT, name);
    if (!*f) *f = (void *)nothing;
    return 0;
}
