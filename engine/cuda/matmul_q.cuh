/* engine/cuda/matmul_q.cuh: the kernels behind cuda_matmul_q. */
#ifndef ENGINE_CUDA_MATMUL_Q_CUH
#define ENGINE_CUDA_MATMUL_Q_CUH

#include "cuda/kernels.h"

/* One product's arguments as every kernel reads them. */
struct matmul_q_args {
    const uint8_t *tiles;
    const int8_t *q;
    const float *d;
    const int16_t *sum;
    const float *bias; /* or NULL */
    float *y;
    long long ld_y;
    int n_rows, n_pos, n_sb;
    int n_block; /* real blocks of 32 a row */
};

/* One position. */
void matmul_q_gemv(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a);
/* Any number of positions; 32: the types with blocks of 32. */
void matmul_q_gemm(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a);
void matmul_q_gemm32(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a);

#endif
