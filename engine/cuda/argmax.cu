#include "cuda/argmax.h"

#include <cuda_runtime.h>

enum { THREADS = 256, VALUES = 4096 };

/* One key orders by value and then by lower index: the float's bits made monotone, then the index upside down. 0: NaN. */
static __device__ unsigned long long key_of(float x, int64_t i) {
    uint32_t u = __float_as_uint(x == 0.0f ? 0.0f : x); /* -0 equals 0 */
    if (x != x)
        return 0;
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (unsigned long long)u << 32 | (0xffffffffu - (uint32_t)i);
}

/* Maxima of integers: the order in which blocks meet changes nothing. The last block of a row hands it out. */
static __global__ void __launch_bounds__(THREADS) argmax(const float *logits, int64_t n, struct cuda_argmax_row *rows,
                                                         int32_t *out) {
    __shared__ unsigned long long best[THREADS / 32];
    const float *row = logits + blockIdx.y * n;
    struct cuda_argmax_row *r = rows + blockIdx.y;
    unsigned long long mine = 0;
    int64_t begin = (int64_t)blockIdx.x * VALUES, end = min(begin + VALUES, n);
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
        mine = max(mine, key_of(row[i], i));
    for (int d = 16; d > 0; d /= 2)
        mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, d));
    if (threadIdx.x % 32 == 0)
        best[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int w = 1; w < THREADS / 32; w++)
        mine = max(mine, best[w]);
    atomicMax(&r->key, mine);
    __threadfence();
    if (atomicAdd(&r->n_done, 1u) + 1 < gridDim.x)
        return;
    __threadfence();
    mine = atomicExch(&r->key, 0ull);
    r->n_done = 0;
    out[blockIdx.y] = mine == 0 ? -1 : (int32_t)(0xffffffffu - (uint32_t)mine);
}

void cuda_argmax(struct CUstream_st *stream, const float *logits, int64_t n, int n_rows, struct cuda_argmax_row *rows,
                 int32_t *out) {
    dim3 grid((unsigned)((n + VALUES - 1) / VALUES), (unsigned)n_rows);
    argmax<<<grid, THREADS, 0, stream>>>(logits, n, rows, out);
}
