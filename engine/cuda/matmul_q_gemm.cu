/* engine/cuda/matmul_q_gemm.cu: cuda_matmul_q, and the tensor-core kernel for the superblock types. */
#include "cuda/matmul_q_gemm.cuh"

void matmul_q_gemm(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a) {
    switch (type) {
    case FWD_TYPE_Q2_K:
        return gemm_for<FWD_TYPE_Q2_K>(stream, a);
    case FWD_TYPE_Q3_K:
        return gemm_for<FWD_TYPE_Q3_K>(stream, a);
    case FWD_TYPE_Q4_K:
        return gemm_for<FWD_TYPE_Q4_K>(stream, a);
    case FWD_TYPE_Q5_K:
        return gemm_for<FWD_TYPE_Q5_K>(stream, a);
    case FWD_TYPE_Q6_K:
        return gemm_for<FWD_TYPE_Q6_K>(stream, a);
    default:
        return matmul_q_gemm32(stream, type, a);
    }
}

void cuda_matmul_q(struct CUstream_st *stream, const struct cuda_linear *w, const struct cuda_act *a, int n_pos,
                   float *y, int64_t ld_y) {
    struct matmul_q_args args = {};
    args.tiles = (const uint8_t *)w->data;
    args.q = a->q;
    args.d = a->d;
    args.sum = a->sum;
    args.bias = w->bias;
    args.y = y;
    args.ld_y = ld_y;
    args.n_rows = (int)w->n_rows;
    args.n_pos = n_pos;
    args.n_sb = w->n_sb;
    args.n_block = (int)(w->n_cols / 32);
    if (n_pos == 1)
        matmul_q_gemv(stream, w->type, args);
    else if (n_pos > 1)
        matmul_q_gemm(stream, w->type, args);
}
