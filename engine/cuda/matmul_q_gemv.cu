/* engine/cuda/matmul_q_gemv.cu: cuda_matmul_q for one position, and its way to the kernels.
 *
 * A thread block has one strip of 8 rows. Its warps take superblocks in turn and leave the exact integers of each in
 * shared memory; then 8 lanes run the 8 rows' chains over them in order. */
#include "cuda/matmul_q.cuh"
#include "cuda/tile_lane.cuh"

enum { N_WARP = 8, N_STAGE_SB = 32 }; /* superblocks between two barriers */

/* Integers of a superblock: superblock types [row] (I, M); blocks of 32 [p][row] (I of 2p, of 2p + 1). */
template <uint32_t type>
static __device__ void dot_superblock(const struct matmul_q_args &a, const uint8_t *tile, int sb, int2 *out) {
    int lane = threadIdx.x % 32, p = lane / 8, r = lane % 8;
    struct tile_lane l;
    uint4 act[4];
    tile_load<type, true>(tile, p, r, &l);
#pragma unroll
    for (int i = 0; i < 4; i++)
        act[i] = ((const uint4 *)(a.q + 256ll * sb + 64 * p))[i];
    int2 x = tile_dot<type>(&l, act, *(const uint2 *)(a.sum + 16ll * sb + 4 * p));
    if constexpr (tile_kind<type>::super) {
        for (int m = 8; m < 32; m *= 2) {
            x.x += __shfl_xor_sync(0xffffffffu, x.x, m);
            x.y += __shfl_xor_sync(0xffffffffu, x.y, m);
        }
        if (p == 0)
            out[r] = x;
    } else {
        out[lane] = x;
    }
}

template <uint32_t type>
static __device__ float chain_superblock(const struct matmul_q_args &a, const uint8_t *tile, int sb, int r,
                                         const int2 *in, float acc) {
    if constexpr (tile_kind<type>::super) {
        acc = tile_step_super<type>(acc, tile_super_d<type>(tile, r), a.d[sb], in[r].x, in[r].y);
    } else {
        for (int b = 0; b < 8 && 8 * sb + b < a.n_block; b++) {
            int p = b / 2, shift = 16 * (b & 1);
            int2 x = in[8 * p + r];
            uint32_t d = tile_d32<type>(tile, p, r) >> shift & 0xffffu;
            uint32_t m = tile_kind<type>::min ? tile_m32<type>(tile, p, r) >> shift & 0xffffu : 0;
            const int16_t *s = a.sum + 16ll * sb + 2 * b;
            acc = tile_step_32<type>(acc, d, m, a.d[8ll * sb + b], b & 1 ? x.y : x.x, s[0] + s[1]);
        }
    }
    return acc;
}

template <uint32_t type> static __global__ void __launch_bounds__(32 * N_WARP) gemv(struct matmul_q_args a) {
    constexpr int n_out = tile_kind<type>::super ? 8 : 32;
    __shared__ int2 ints[N_STAGE_SB][n_out];
    const uint8_t *strip = a.tiles + (size_t)blockIdx.x * a.n_sb * tile_kind<type>::bytes;
    int row = blockIdx.x * 8 + threadIdx.x;
    float acc = 0;
    for (int sb0 = 0; sb0 < a.n_sb; sb0 += N_STAGE_SB) {
        int n = a.n_sb - sb0 < N_STAGE_SB ? a.n_sb - sb0 : N_STAGE_SB;
        for (int i = threadIdx.x / 32; i < n; i += N_WARP)
            dot_superblock<type>(a, strip + (size_t)(sb0 + i) * tile_kind<type>::bytes, sb0 + i, ints[i]);
        __syncthreads();
        if (threadIdx.x < 8)
            for (int i = 0; i < n; i++)
                acc = chain_superblock<type>(a, strip + (size_t)(sb0 + i) * tile_kind<type>::bytes, sb0 + i,
                                             threadIdx.x, ints[i], acc);
        __syncthreads();
    }
    if (threadIdx.x < 8 && row < a.n_rows)
        a.y[row] = tile_finish(acc, a.bias ? a.bias + row : NULL);
}

template <uint32_t type> static void launch(struct CUstream_st *stream, const struct matmul_q_args &a) {
    gemv<type><<<(unsigned)((a.n_rows + 7) / 8), 32 * N_WARP, 0, (cudaStream_t)stream>>>(a);
}

void matmul_q_gemv(struct CUstream_st *stream, uint32_t type, const struct matmul_q_args &a) {
    switch (type) {
    case FWD_TYPE_Q4_0:
        return launch<FWD_TYPE_Q4_0>(stream, a);
    case FWD_TYPE_Q4_1:
        return launch<FWD_TYPE_Q4_1>(stream, a);
    case FWD_TYPE_Q5_0:
        return launch<FWD_TYPE_Q5_0>(stream, a);
    case FWD_TYPE_Q5_1:
        return launch<FWD_TYPE_Q5_1>(stream, a);
    case FWD_TYPE_Q8_0:
        return launch<FWD_TYPE_Q8_0>(stream, a);
    case FWD_TYPE_Q2_K:
        return launch<FWD_TYPE_Q2_K>(stream, a);
    case FWD_TYPE_Q3_K:
        return launch<FWD_TYPE_Q3_K>(stream, a);
    case FWD_TYPE_Q4_K:
        return launch<FWD_TYPE_Q4_K>(stream, a);
    case FWD_TYPE_Q5_K:
        return launch<FWD_TYPE_Q5_K>(stream, a);
    case FWD_TYPE_Q6_K:
        return launch<FWD_TYPE_Q6_K>(stream, a);
    default:
        return;
    }
}
