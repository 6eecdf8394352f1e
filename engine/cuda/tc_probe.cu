/* engine/cuda/tc_probe.cu: one matrix instruction on chosen numbers, to see what it keeps of them. */
#include "cuda/kernels_tc.h"
#include "cuda/tc_mma.cuh"
#include "cuda/tc_wgmma.cuh"

#include <cuda_runtime.h>

static __global__ void probe(bool bf16, const uint32_t *ab, float *sum) {
    int lane = (int)threadIdx.x, t = lane & 3;
    uint32_t a[4] = {0, 0, 0, 0}, b0 = 0, b1 = 0;
    float d[4] = {0, 0, 0, 0};
    if (lane < 4) { /* row 0 of a, column 0 of b */
        a[0] = ab[t];
        a[2] = ab[4 + t];
        b0 = ab[8 + t];
        b1 = ab[12 + t];
    }
    if (lane == 0)
        d[0] = *sum;
    if (bf16)
        mma_bf16(d, a, b0, b1);
    else
        mma_f16(d, a, b0, b1);
    if (lane == 0)
        *sum = d[0];
}

extern "C" void cuda_tc_probe(struct CUstream_st *stream, bool bf16, const uint16_t *ab, float *sum) {
    probe<<<1, 32, 0, (cudaStream_t)stream>>>(bf16, (const uint32_t *)ab, sum);
}

/* The same through a warpgroup's instruction: row 0 of a and row 0 of b, the rest zeros. */
static __global__ void __launch_bounds__(128) probe_group(const uint32_t *ab, float *sum) {
    __shared__ __align__(1024) uint32_t tiles[2][64 * 32]; /* rows of 128 bytes; row 0 has its chunks in order */
    for (int i = (int)threadIdx.x; i < 2 * 64 * 32; i += 128)
        (&tiles[0][0])[i] = 0;
    __syncthreads();
    if (threadIdx.x < 16)
        tiles[threadIdx.x / 8][threadIdx.x % 8] = ab[threadIdx.x];
    wgmma_publish();
    __syncthreads();
    float d[8][4] = {};
    if (threadIdx.x == 0)
        d[0][0] = *sum;
    wgmma_begin();
    wgmma_64(d, wgmma_operand((uint32_t)__cvta_generic_to_shared(tiles[0]), 16),
             wgmma_operand((uint32_t)__cvta_generic_to_shared(tiles[1]), 16), true);
    wgmma_end();
    if (threadIdx.x == 0)
        *sum = d[0][0];
}

extern "C" bool cuda_tc_probe_group(struct CUstream_st *stream, const uint16_t *ab, float *sum) {
    struct cudaFuncAttributes code;
    if (cudaFuncGetAttributes(&code, probe_group) != cudaSuccess || code.binaryVersion != 90)
        return false;
    probe_group<<<1, 128, 0, (cudaStream_t)stream>>>((const uint32_t *)ab, sum);
    return true;
}
