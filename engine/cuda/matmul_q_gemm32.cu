/* engine/cuda/matmul_q_gemm32.cu: the tensor-core kernel for the types with blocks of 32. */
#include "cuda/matmul_q_gemm.cuh"

void matmul_q_gemm32(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a) {
    switch (type) {
    case FWD_TYPE_Q4_0:
        return gemm_for<FWD_TYPE_Q4_0>(stream, a);
    case FWD_TYPE_Q4_1:
        return gemm_for<FWD_TYPE_Q4_1>(stream, a);
    case FWD_TYPE_Q5_0:
        return gemm_for<FWD_TYPE_Q5_0>(stream, a);
    case FWD_TYPE_Q5_1:
        return gemm_for<FWD_TYPE_Q5_1>(stream, a);
    case FWD_TYPE_Q8_0:
        return gemm_for<FWD_TYPE_Q8_0>(stream, a);
    default:
        return;
    }
}
