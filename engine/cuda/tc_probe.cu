/* engine/cuda/tc_probe.cu: one matrix instruction on chosen numbers, to see what it keeps of them. */
#include "cuda/kernels_tc.h"
#include "cuda/tc_mma.cuh"

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
