// A CUDA runtime that executes nothing: device memory is host memory, and kernels are counted, not run.
//
// On a machine without a GPU, torch's CUDA build dispatches, checks devices, allocates and captures graphs as on a real
// one, and its launches, copies, waits and errors are counted. Values are meaningless: this finds calls that fail or
// wait, but no wrong results.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define NOTHING { return cudaSuccess; }
#define COUNTED { count(__func__, 0); return cudaSuccess; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// Counters by name

enum { MOST_COUNTERS = 20000, SLOTS = 65536, NAME = 160 };
static struct { char name[NAME]; long long calls, bytes; } counters[MOST_COUNTERS];
static int counter_count;
static unsigned slots[SLOTS]; // index of a counter plus one, 0 if free
static void (*hook)(const char *name, long long bytes);

static unsigned hash(const char *s) {
    unsigned h = 5381;
    while (*s) h = h * 33 ^ (unsigned char)*s++;
    return h;
}

static void count(const char *name, long long bytes) {
    pthread_mutex_lock(&lock);
    unsigned h = hash(name) & (SLOTS - 1);
    while (slots[h] && strncmp(counters[slots[h] - 1].name, name, NAME - 1)) h = (h + 1) & (SLOTS - 1);
    if (!slots[h] && counter_count < MOST_COUNTERS) {
        strncpy(counters[counter_count].name, name, NAME - 1);
        slots[h] = ++counter_count;
    }
    if (slots[h]) {
        counters[slots[h] - 1].calls++;
        counters[slots[h] - 1].bytes += bytes;
    }
    pthread_mutex_unlock(&lock);
}

// Counts a call and passes it to the hook, which looks at the Python stack.
static void event(const char *name, long long bytes) {
    count(name, bytes);
    if (hook) hook(name, bytes);
}

EXPORT void null_count(const char *name) { count(name, 0); }
EXPORT void null_hook(void (*f)(const char *, long long)) { hook = f; }

EXPORT void null_reset(void) {
    pthread_mutex_lock(&lock);
    memset(slots, 0, sizeof slots);
    memset(counters, 0, sizeof counters);
    counter_count = 0;
    pthread_mutex_unlock(&lock);
}

// Writes lines of "calls TAB bytes TAB name" and returns their total length.
EXPORT int null_dump(char *out, long size) {
    long at = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < counter_count && at < size - 2 * NAME; i++)
        at += snprintf(out + at, size - at, "%lld\t%lld\t%s\n", counters[i].calls, counters[i].bytes, counters[i].name);
    pthread_mutex_unlock(&lock);
    return (int)at;
}

// Memory

enum kind { UNKNOWN, DEVICE, PINNED };
enum { MOST_BLOCKS = 200000, ALIGNMENT = 2 << 20, PAGE = 4096 };
static struct { uintptr_t at; size_t size; enum kind kind; } blocks[MOST_BLOCKS];
static int block_count;
static size_t used, total = 85028175872ull; // an H100's 80 GB

EXPORT void null_memory(size_t bytes) { total = bytes; }

static void *take(size_t size, enum kind kind) {
    size_t whole = size ? (size + PAGE - 1) & ~(size_t)(PAGE - 1) : PAGE;
    void *p = mmap(NULL, whole + ALIGNMENT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    p = (void *)(((uintptr_t)p + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < block_count && blocks[i].at) i++;
    if (i == block_count) block_count++;
    blocks[i].at = (uintptr_t)p, blocks[i].size = whole, blocks[i].kind = kind;
    if (kind == DEVICE) used += whole;
    pthread_mutex_unlock(&lock);
    return p;
}

static void give_back(void *p) {
    pthread_mutex_lock(&lock);
    for (int i = 0; p && i < block_count; i++)
        if (blocks[i].at == (uintptr_t)p) {
            if (blocks[i].kind == DEVICE) used -= blocks[i].size;
            madvise(p, blocks[i].size, MADV_DONTNEED);
            blocks[i].at = 0;
            break;
        }
    pthread_mutex_unlock(&lock);
}

static enum kind kind_of(const void *p) {
    enum kind kind = UNKNOWN;
    uintptr_t at = (uintptr_t)p;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count; i++)
        if (blocks[i].at && at >= blocks[i].at && at < blocks[i].at + blocks[i].size) {
            kind = blocks[i].kind;
            break;
        }
    pthread_mutex_unlock(&lock);
    return kind;
}

// Graph capture

enum { MOST_CAPTURES = 64 };
static struct capture { void *stream; unsigned long long id; cudaGraph_t graph; } captures[MOST_CAPTURES];
static unsigned long long next_id = 1;
static int captures_of_all;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
static __thread int own_captures;
static __thread cudaError_t last_error;

static struct capture *capture_of(cudaStream_t s) {
    for (int i = 0; i < MOST_CAPTURES; i++)
        if (captures[i].id && captures[i].stream == (void *)s) return &captures[i];
    return NULL;
}

static cudaError_t fail(const char *what, cudaError_t error) {
    char text[NAME];
    snprintf(text, sizeof text, "ERROR %s (%d)", what, (int)error);
    event(text, 0);
    return last_error = error;
}

// A call that makes the CPU wait for a stream or for all streams; an error while one of these is being captured.
static cudaError_t wait_for(const char *what, cudaStream_t stream, int is_for_all) {
    if (captures_of_all && (is_for_all ? own_captures > 0 : capture_of(stream) != NULL))
        return fail(what, cudaErrorStreamCaptureUnsupported);
    event(what, 0);
    return cudaSuccess;
}

static cudaError_t in_capture(const char *what) {
    int is_strict = own_captures && thread_mode != cudaStreamCaptureModeRelaxed;
    return is_strict ? fail(what, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

// The device

EXPORT cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int d) { return d ? cudaErrorInvalidDevice : cudaSuccess; }
EXPORT cudaError_t cudaInitDevice(int d, unsigned f, unsigned g) NOTHING
EXPORT cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return cudaSuccess; }

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H100 80GB HBM3 (null)");
    p->totalGlobalMem = total;
    p->major = 9;
    p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32, p->multiProcessorCount = 132;
    p->maxThreadsDim[0] = 1024, p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = 65535, p->maxGridSize[2] = 65535;
    p->sharedMemPerBlock = 49152, p->sharedMemPerMultiprocessor = 233472, p->sharedMemPerBlockOptin = 232448;
    p->reservedSharedMemPerBlock = 1024, p->regsPerBlock = 65536, p->regsPerMultiprocessor = 65536;
    p->totalConstMem = 65536, p->textureAlignment = 512, p->memoryBusWidth = 5120, p->l2CacheSize = 52428800;
    p->canMapHostMemory = 1, p->concurrentKernels = 1, p->asyncEngineCount = 3, p->unifiedAddressing = 1;
    p->streamPrioritiesSupported = 1, p->managedMemory = 1, p->concurrentManagedAccess = 1;
    p->cooperativeLaunch = 1, p->memoryPoolsSupported = 1, p->hostRegisterSupported = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrL2CacheSize: *v = 52428800; break;
    default: *v = 1;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *c, int a, int b) { *c = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int a, unsigned f) NOTHING
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:00:00.0"); return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) { *a = 0, *b = -5; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return wait_for("WAIT cudaDeviceSynchronize", 0, 1); }
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT const char *cudaGetErrorName(cudaError_t e) { return "cudaErrorNull"; }

EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

EXPORT const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing" : "null error";
}

// Allocation

EXPORT cudaError_t cudaMalloc(void **p, size_t n) {
    cudaError_t e = in_capture("cudaMalloc");
    if (e) return e;
    if (used + n > total) return last_error = cudaErrorMemoryAllocation;
    *p = take(n, DEVICE);
    count("cudaMalloc", n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

EXPORT cudaError_t cudaFree(void *p) { count("cudaFree", 0); give_back(p); return cudaSuccess; }
EXPORT cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { *p = take(n, DEVICE); return cudaSuccess; }
EXPORT cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { give_back(p); return cudaSuccess; }
EXPORT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { *p = take(n, PINNED); count("cudaHostAlloc", n); return cudaSuccess; }
EXPORT cudaError_t cudaFreeHost(void *p) { give_back(p); return cudaSuccess; }
EXPORT cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) COUNTED
EXPORT cudaError_t cudaHostUnregister(void *p) NOTHING
EXPORT cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = total - used, *t = total; return cudaSuccess; }

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    enum kind kind = kind_of(p);
    memset(a, 0, sizeof *a);
    a->type = kind == DEVICE ? cudaMemoryTypeDevice : kind == PINNED ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (kind != UNKNOWN) a->devicePointer = (void *)p;
    if (kind == PINNED) a->hostPointer = (void *)p;
    return cudaSuccess;
}

// Copies. No kernel runs, so device memory is never written and takes no physical memory, and copies from it return
// zeros. Only a single byte is returned as one, so that a check such as "are all values finite?" is true.

static cudaError_t copy(void *to, const void *from, size_t n, const char *how) {
    enum kind to_kind = kind_of(to), from_kind = kind_of(from);
    const char *way = to_kind == DEVICE ? (from_kind == DEVICE ? "D2D" : from_kind == PINNED ? "H2D pinned" : "H2D pageable")
                      : from_kind == DEVICE ? (to_kind == PINNED ? "D2H pinned" : "D2H pageable")
                                            : "H2H";
    char text[NAME];
    snprintf(text, sizeof text, "COPY %s %s", way, how);
    if (to_kind == DEVICE && from_kind == DEVICE) count(text, n);
    else event(text, n);
    if (to_kind != DEVICE && from_kind == DEVICE) memset(to, n == 1, n);
    else if (to_kind != DEVICE) memmove(to, from, n);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { return copy(to, from, n, "async"); }
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, cudaStream_t s) { return copy(to, from, n, "peer"); }

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) {
    cudaError_t e = wait_for("WAIT cudaMemcpy", 0, 1);
    return e ? e : copy(to, from, n, "blocking");
}

EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, enum cudaMemcpyKind k, cudaStream_t s) {
    for (size_t i = 0; i < height; i++) copy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width, "2D");
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyToSymbol(const void *y, const void *s, size_t n, size_t o, enum cudaMemcpyKind k) COUNTED
EXPORT cudaError_t cudaMemset(void *p, int v, size_t n) { count("MEMSET", n); return cudaSuccess; }
EXPORT cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }
EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *y) { static char some[1 << 16]; *p = some; return cudaSuccess; }
EXPORT cudaError_t cudaIpcCloseMemHandle(void *p) NOTHING
EXPORT cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *h, cudaEvent_t e) NOTHING
EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *h, void *p) NOTHING
EXPORT cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *e, cudaIpcEventHandle_t h) NOTHING
EXPORT cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t h, unsigned f) NOTHING
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) { *p = (void *)8; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int d, enum cudaGraphMemAttributeType a, void *v) NOTHING
EXPORT cudaError_t cudaDeviceSetGraphMemAttribute(int d, enum cudaGraphMemAttributeType a, void *v) NOTHING
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) NOTHING
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) NOTHING
EXPORT cudaError_t cudaMemPoolSetAccess(cudaMemPool_t p, const struct cudaMemAccessDesc *d, size_t n) NOTHING
EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t p, size_t n) NOTHING

// Streams and events

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) NOTHING
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) { return in_capture("cudaStreamQuery"); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for("WAIT cudaStreamSynchronize", s, 0); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) COUNTED
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t c, void *u, unsigned f) { count(__func__, 0); c(s, 0, u); return cudaSuccess; }
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *u) { count(__func__, 0); f(u); return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) NOTHING
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1.0f; return cudaSuccess; }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return in_capture("cudaEventQuery"); }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) COUNTED
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) COUNTED
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait_for("WAIT cudaEventSynchronize", 0, 1); }

// Graphs

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *m;
    *m = before;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    event("CAPTURE begin", 0);
    for (int i = 0; i < MOST_CAPTURES; i++)
        if (!captures[i].id) {
            captures[i] = (struct capture){(void *)s, next_id++, malloc(16)};
            captures_of_all++, own_captures++;
            return cudaSuccess;
        }
    return fail("cudaStreamBeginCapture", cudaErrorUnknown);
}

EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *d, const cudaGraphEdgeData *e, size_t n, enum cudaStreamCaptureMode m) { return cudaStreamBeginCapture(s, m); }

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    struct capture *c = capture_of(s);
    if (!c) return fail("cudaStreamEndCapture", cudaErrorStreamCaptureInvalidated);
    if (g) *g = c->graph;
    c->id = 0;
    captures_of_all--, own_captures--;
    event("CAPTURE end", 0);
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
    struct capture *c = capture_of(s);
    *status = c ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    if (id && c) *id = c->id;
    if (g && c) *g = c->graph;
    if (n) *n = 0;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = capture_of(s) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t *d, const cudaGraphEdgeData *e, size_t n, unsigned f) NOTHING
EXPORT cudaError_t cudaGraphAddNode(cudaGraphNode_t *p, cudaGraph_t g, const cudaGraphNode_t *d, const cudaGraphEdgeData *e, size_t n, struct cudaGraphNodeParams *q) NOTHING
EXPORT cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle *h, cudaGraph_t g, unsigned v, unsigned f) NOTHING
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t g) NOTHING
EXPORT cudaError_t cudaGraphDebugDotPrint(cudaGraph_t g, const char *p, unsigned f) NOTHING
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) NOTHING
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) { *x = malloc(16); count(__func__, 0); return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) { *x = malloc(16); count(__func__, 0); return cudaSuccess; }
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t s) { count("LAUNCH graph", 0); return cudaSuccess; }
EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t a, cudaGraphNode_t *b, cudaGraphEdgeData *c, size_t *d) { if (d) *d = 0; return cudaSuccess; }
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned c, unsigned f) NOTHING
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t *o, void *p, cudaHostFn_t d, unsigned c, unsigned f) { *o = malloc(16); return cudaSuccess; }
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t o, unsigned c) NOTHING

// Kernels. torch's libraries register theirs by name when they are loaded

struct kernel { const void *function; const char *name; };
static struct kernel *kernels;
static int kernel_count, kernel_room;
enum { MOST_PUSHED = 16 };
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed[MOST_PUSHED];
static __thread int pushed_count;

EXPORT void **__cudaRegisterFatBinary(void *f) { static void *one; return &one; }
EXPORT void __cudaRegisterFatBinaryEnd(void **h) {}
EXPORT void __cudaUnregisterFatBinary(void **h) {}
EXPORT char __cudaInitModule(void **h) { return 1; }
EXPORT void __cudaRegisterVar(void **h, char *v, char *a, const char *n, int e, size_t s, int c, int g) {}

EXPORT void __cudaRegisterFunction(void **h, const char *function, char *f, const char *name, int t, void *a, void *b, void *c, void *d, int *w) {
    pthread_mutex_lock(&lock);
    if (kernel_count == kernel_room) {
        kernel_room = kernel_room ? 2 * kernel_room : 65536;
        kernels = realloc(kernels, kernel_room * sizeof *kernels);
    }
    kernels[kernel_count++] = (struct kernel){function, name};
    pthread_mutex_unlock(&lock);
}

static int by_address(const void *a, const void *b) {
    const struct kernel *x = a, *y = b;
    return x->function < y->function ? -1 : x->function > y->function;
}

static cudaError_t launch(const void *function) {
    static int sorted;
    struct kernel key = {function, NULL};
    pthread_mutex_lock(&lock);
    if (sorted != kernel_count) qsort(kernels, kernel_count, sizeof *kernels, by_address), sorted = kernel_count;
    struct kernel *found = bsearch(&key, kernels, kernel_count, sizeof *kernels, by_address);
    pthread_mutex_unlock(&lock);
    char text[NAME];
    snprintf(text, sizeof text, "KERNEL %s", found ? found->name : "?");
    count(text, 0);
    return cudaSuccess;
}

EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, void *s) {
    if (pushed_count < MOST_PUSHED) {
        pushed[pushed_count].grid = g, pushed[pushed_count].block = b;
        pushed[pushed_count].shared = m, pushed[pushed_count].stream = s;
        pushed_count++;
    }
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *m, void *s) {
    if (pushed_count) {
        pushed_count--;
        *g = pushed[pushed_count].grid, *b = pushed[pushed_count].block;
        *m = pushed[pushed_count].shared, *(void **)s = pushed[pushed_count].stream;
    }
    return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *function) { *k = (cudaKernel_t)function; return cudaSuccess; }
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch((const void *)k); }
EXPORT cudaError_t cudaLaunchKernel(const void *function, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(function); }
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *function, void **a) { return launch(function); }

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = 90, a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
}

EXPORT cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute a, int v) NOTHING
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) NOTHING
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m, unsigned g) { *n = 2; return cudaSuccess; }
EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *k, cudaLibrary_t l, const char *n) { *k = malloc(8); return cudaSuccess; }
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *l, const void *c, enum cudaJitOption *o, void **v, unsigned n, enum cudaLibraryOption *p, void **q, unsigned m) { *l = malloc(8); return cudaSuccess; }
EXPORT cudaError_t cudaLibraryUnload(cudaLibrary_t l) NOTHING
EXPORT cudaError_t cudaProfilerStart(void) NOTHING
EXPORT cudaError_t cudaProfilerStop(void) NOTHING

extern int null_driver(const char *name, void **function); // in driver.c

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *n, void **f, unsigned v, unsigned long long g, enum cudaDriverEntryPointQueryResult *r) {
    null_driver(n, f);
    if (r) *r = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetDriverEntryPoint(const char *n, void **f, unsigned long long g, enum cudaDriverEntryPointQueryResult *r) { return cudaGetDriverEntryPointByVersion(n, f, 0, g, r); }
