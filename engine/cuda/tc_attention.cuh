/* engine/cuda/tc_attention.cuh: what both attention kernels do with the scores and sums that their matrix instructions
 * leave in registers. The definition is in the head of tc_attention.cu. */
#ifndef ENGINE_CUDA_TC_ATTENTION_CUH
#define ENGINE_CUDA_TC_ATTENTION_CUH

#include "cuda/kernels_tc.h"

enum { KEYS = 64 }; /* of a tile */

struct tile_args {
    const float *q;
    float *o;
    const uint8_t *k, *v;
    const int32_t *kv_head_of;
    int64_t k_head, k_row, v_head, v_row; /* bytes */
    int64_t ld;                           /* floats from one position of q and o to the next */
    int pos0, n_pos;
    float c;
};

/* Hopper's kernel for the same; false: this device has it not. */
bool launch_attention_hopper(struct CUstream_st *stream, const struct tile_args *a, int n_head, int head_dim);

/* Keys after a row's own position count for nothing. pos: of the lane's first row. */
static __device__ inline void mask_tile(float s[KEYS / 8][4], int key0, int pos, int lane) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = key0 + n * 8 + 2 * (lane & 3) + (i & 1);
            if (key > pos + 8 * (i >> 1))
                s[n][i] = __uint_as_float(0xff800000u);
        }
    }
}

static __device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Scores become weights against the largest score so far; what was summed under a smaller one is scaled down. */
template <int CHUNKS>
static __device__ inline void weigh_tile(float s[KEYS / 8][4], float o[CHUNKS][4], float m[2], float sum[2], float c) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = m[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        float shrink = exp2_fast(__fmul_rn(__fsub_rn(m[half], top), c));
        m[half] = top;
        float part = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = exp2_fast(__fmul_rn(__fsub_rn(s[n][i], top), c));
                part = __fadd_rn(part, s[n][i]);
            }
        }
        sum[half] = __fmaf_rn(sum[half], shrink, part);
        if (!__any_sync(0xffffffffu, shrink != 1.0f))
            continue; /* times 1 */
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            o[n][2 * half] = __fmul_rn(o[n][2 * half], shrink);
            o[n][2 * half + 1] = __fmul_rn(o[n][2 * half + 1], shrink);
        }
    }
}

template <int CHUNKS>
static __device__ inline void store_rows(const struct tile_args &a, float o[CHUNKS][4], const float sum[2], int row,
                                         int head, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, 1));
        total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, 2));
        float r = __frcp_rn(total);
        if (row + 8 * half >= a.n_pos)
            continue;
        float *to = a.o + (row + 8 * half) * a.ld + (int64_t)head * CHUNKS * 8 + 2 * (lane & 3);
#pragma unroll
        for (int n = 0; n < CHUNKS; n++)
            *(float2 *)(to + 8 * n) = {__fmul_rn(o[n][2 * half], r), __fmul_rn(o[n][2 * half + 1], r)};
    }
}

#endif
