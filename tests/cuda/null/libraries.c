// cuBLAS, cuDNN and cuFFT that execute nothing. Only functions that return something, or that must not count as a
// launch, are here. null_cuda.py generates the others that torch needs; each call of those counts as a launch.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CREATE(name) int name(void **h) { *h = calloc(1, 64); return 0; }
#define FREE(name) int name(void *h) { free(h); return 0; }
#define NOTHING { return 0; }

extern void null_count(const char *name);

CREATE(cublasCreate_v2)
FREE(cublasDestroy_v2)
int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
int cublasSetMathMode(void *h, int m) NOTHING
int cublasSetPointerMode_v2(void *h, int m) NOTHING
int cublasSetStream_v2(void *h, void *s) NOTHING
int cublasSetWorkspace_v2(void *h, void *w, size_t n) NOTHING
int cublasSetSmCountTarget(void *h, int n) NOTHING

size_t cublasLtGetVersion(void) { return 130000; }
CREATE(cublasLtCreate)
int cublasLtMatmulDescCreate(void **d, int c, int s) { *d = calloc(1, 64); return 0; }
FREE(cublasLtMatmulDescDestroy)
int cublasLtMatmulDescSetAttribute(void *d, int a, const void *b, size_t n) NOTHING
CREATE(cublasLtMatmulPreferenceCreate)
FREE(cublasLtMatmulPreferenceDestroy)
int cublasLtMatmulPreferenceSetAttribute(void *d, int a, const void *b, size_t n) NOTHING
int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t l) { *d = calloc(1, 64); return 0; }
FREE(cublasLtMatrixLayoutDestroy)
int cublasLtMatrixLayoutSetAttribute(void *d, int a, const void *b, size_t n) NOTHING
int cublasLtMatmul(void *h) { null_count("KERNEL cublasLtMatmul"); return 0; }

// Returns one algorithm, all zeros.
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, void *results, int *found) {
    memset(results, 0, 96); // the size of cublasLtMatmulHeuristicResult_t
    *found = 1;
    return 0;
}

CREATE(cudnnCreate)
FREE(cudnnDestroy)
int cudnnSetStream(void *h, void *s) NOTHING
int cudnnGetStream(void *h, void **s) { *s = NULL; return 0; }
size_t cudnnGetVersion(void) { return 92400; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int e) { return "null"; }
void cudnnGetLastErrorString(char *s, size_t n) { if (n) *s = 0; }
int cudnnGetProperty(int t, int *v) { *v = t == 0 ? 9 : t == 1 ? 24 : 0; return 0; }
int cudnnBackendCreateDescriptor(int t, void **d) { int *p = calloc(1, 64); *p = t; *d = p; return 0; }
FREE(cudnnBackendDestroyDescriptor)
int cudnnBackendFinalize(void *d) NOTHING
int cudnnBackendSetAttribute(void *d, int a, int t, int64_t n, const void *v) NOTHING

// Returns one heuristic result and one engine, all zeros.
int cudnnBackendGetAttribute(void *d, int a, int t, int64_t asked, int64_t *found, void *v) {
    enum { HEURISTIC_RESULTS = 202, ENGINE = 300, INT64 = 3 };
    if (found) *found = a == HEURISTIC_RESULTS || a == ENGINE;
    if (v && asked >= 1 && t == INT64) memset(v, 0, 8 * asked);
    return 0;
}

int cudnnBackendExecute(void *h, void *p, void *v) { null_count("KERNEL cudnnBackendExecute"); return 0; }

int cufftCreate(int *h) { *h = 1; return 0; }

int cufftXtMakePlanMany(int p, int r, void *n, void *a, long long b, long long c, int d, void *e, long long f, long long g, int h, long long i, size_t *w, int x) {
    *w = 0;
    return 0;
}
