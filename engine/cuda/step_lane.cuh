/* engine/cuda/step_lane.cuh: what a lane (part p, row r) of a warp makes of one tile (tiles.h): the exact integer sums
 * of its 64 weights and the scale products, ready for the chain. */
#ifndef ENGINE_CUDA_STEP_LANE_CUH
#define ENGINE_CUDA_STEP_LANE_CUH

#include "cuda/step_device.cuh"
#include "format/gguf.h"

/* The activations of one part of one superblock, in registers: 64 values, sums and scales. Q8_K: sums of 16, one
 * scale. Q8_32: sums of 32 and scales of the two blocks. */
struct lane_act {
    uint32_t q[16];
    int sum[4];
    float d[2];
};

template <int T> struct tile_type {
    static constexpr bool k = T >= FWD_TYPE_Q2_K;
    static constexpr bool has_nib = T != FWD_TYPE_Q8_0 && T != FWD_TYPE_Q2_K && T != FWD_TYPE_Q3_K;
    static constexpr bool has_hi2 = T == FWD_TYPE_Q6_K || T == FWD_TYPE_Q2_K || T == FWD_TYPE_Q3_K;
    static constexpr bool has_hi1 =
        T == FWD_TYPE_Q5_K || T == FWD_TYPE_Q5_0 || T == FWD_TYPE_Q5_1 || T == FWD_TYPE_Q3_K;
    static constexpr bool six_bit = T == FWD_TYPE_Q4_K || T == FWD_TYPE_Q5_K; /* scales of 32 values, with mins */
    static constexpr bool has_min =
        six_bit || T == FWD_TYPE_Q2_K || T == FWD_TYPE_Q4_1 || T == FWD_TYPE_Q5_1;
    static constexpr int offset = T == FWD_TYPE_Q6_K   ? 32
                                  : T == FWD_TYPE_Q5_0 ? 16
                                  : T == FWD_TYPE_Q4_0 ? 8
                                  : T == FWD_TYPE_Q3_K ? 4
                                                       : 0;
    /* where the planes begin */
    static constexpr int hi2 = has_nib ? 1024 : 0;
    static constexpr int hi1 = hi2 + (has_hi2 ? 512 : 0);
    static constexpr int sc = T == FWD_TYPE_Q8_0 ? 2048 : hi1 + (has_hi1 ? 256 : 0);
    static constexpr int d = sc + (six_bit ? 0 : k ? 128 : 0);
    static constexpr int m = d + 128;
};

static __device__ __forceinline__ int dot4_unsigned(uint32_t weights, uint32_t q, int sum) {
    int y;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(y) : "r"(weights), "r"(q), "r"(sum));
    return y;
}

/* What a lane reads of a tile. */
template <int T> struct lane_raw {
    uint32_t nib[8], hi2[4], hi1[2], q8[16];
    uint32_t sc[4]; /* six_bit: the row's entry; other K types: 4 scales in [0] */
    uint32_t d, m;
};

static __device__ __forceinline__ void read_16(uint32_t *to, const uint8_t *from) {
    uint4 v = *(const uint4 *)from;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

template <int T> static __device__ __forceinline__ void read_lane(lane_raw<T> &w, const uint8_t *tile, int p, int r) {
    typedef tile_type<T> t;
    if (t::has_nib) {
        read_16(w.nib, tile + 256 * p + 16 * r);
        read_16(w.nib + 4, tile + 256 * p + 128 + 16 * r);
    }
    if (t::has_hi2)
        read_16(w.hi2, tile + t::hi2 + 128 * p + 16 * r);
    if (t::has_hi1) {
        uint2 v = *(const uint2 *)(tile + t::hi1 + 64 * p + 8 * r);
        w.hi1[0] = v.x, w.hi1[1] = v.y;
    }
    if (T == FWD_TYPE_Q8_0)
        for (int h = 0; h < 4; h++)
            read_16(w.q8 + 4 * h, tile + 512 * p + 128 * h + 16 * r);
    if (t::six_bit)
        read_16(w.sc, tile + t::sc + 16 * r);
    else if (t::k)
        w.sc[0] = *(const uint32_t *)(tile + t::sc + 32 * p + 4 * r);
    if (t::k && !t::six_bit)
        w.d = t::has_min ? *(const uint32_t *)(tile + t::d + 4 * r) : *(const uint16_t *)(tile + t::d + 2 * r);
    if (!t::k) {
        w.d = *(const uint32_t *)(tile + t::d + 32 * p + 4 * r);
        if (t::has_min)
            w.m = *(const uint32_t *)(tile + t::m + 32 * p + 4 * r);
    }
}

/* Dots of words 4g .. 4g+3 with the activations, for the four groups g of 16 values; the types' offsets are not yet
 * taken off. */
template <int T> static __device__ __forceinline__ void dot_groups(int dot[4], const lane_raw<T> &w, const lane_act &a) {
    typedef tile_type<T> t;
#pragma unroll
    for (int g = 0; g < 4; g++) {
        dot[g] = 0;
        if (t::has_nib && !t::has_hi1 && !t::has_hi2 && g >= 2) { /* high nibbles as they stand: 16 times the dot */
#pragma unroll
            for (int k = 0; k < 4; k++)
                dot[g] = dot4_unsigned(w.nib[4 * (g - 2) + k] & 0xf0f0f0f0u, a.q[4 * g + k], dot[g]);
            dot[g] >>= 4;
            continue;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int i = 4 * g + k;
            uint32_t v = 0;
            if (t::has_nib)
                v = (i < 8 ? w.nib[i] : w.nib[i - 8] >> 4) & 0x0f0f0f0fu;
            if (t::has_hi2) {
                uint32_t two = T == FWD_TYPE_Q6_K ? (g < 2 ? w.hi2[k] << (4 - 2 * g) : w.hi2[k] >> (2 * g - 4)) & 0x30303030u
                                                  : w.hi2[k] >> (2 * g) & 0x03030303u;
                v |= two;
            }
            if (t::has_hi1)
                v |= (w.hi1[i & 1] >> (i >> 1) & 0x01010101u) << (T == FWD_TYPE_Q3_K ? 2 : 4);
            dot[g] = T == FWD_TYPE_Q8_0 ? __dp4a((int)w.q8[i], (int)a.q[i], dot[g]) : dot4_unsigned(v, a.q[i], dot[g]);
        }
    }
}

/* K types: the lane's share of I and M, and the row's d and dmin. */
template <int T>
static __device__ __forceinline__ void sum_superblock(const lane_raw<T> &w, const lane_act &a, int p, int *I, int *M,
                                                      float *d, float *dmin) {
    typedef tile_type<T> t;
    int dot[4];
    dot_groups<T>(dot, w, a);
    *M = 0;
    *dmin = 0.0f;
    if (t::six_bit) {
        uint32_t low = p < 2 ? w.sc[1] : p == 2 ? w.sc[2] : w.sc[3];
        uint32_t high = p < 2 ? w.sc[2] : w.sc[3];
        uint32_t bits = __funnelshift_r(low, high, p == 3 ? 8 : p == 0 ? 0 : 32 - 8 * p);
        int s0 = (int)(bits & 63), s1 = (int)(bits >> 6 & 63), m0 = (int)(bits >> 12 & 63), m1 = (int)(bits >> 18 & 63);
        *I = s0 * (dot[0] + dot[1]) + s1 * (dot[2] + dot[3]);
        *M = m0 * (a.sum[0] + a.sum[1]) + m1 * (a.sum[2] + a.sum[3]);
        *d = widen(w.sc[0] & 0xffff);
        *dmin = widen(w.sc[0] >> 16);
        return;
    }
    *I = 0;
#pragma unroll
    for (int g = 0; g < 4; g++) {
        int s = T == FWD_TYPE_Q2_K ? (int)(w.sc[0] >> (8 * g) & 15) : (int)(int8_t)(w.sc[0] >> (8 * g));
        *I += s * (dot[g] - t::offset * a.sum[g]);
        if (T == FWD_TYPE_Q2_K)
            *M += (int)(w.sc[0] >> (8 * g + 4) & 15) * a.sum[g];
    }
    *d = widen(w.d & 0xffff);
    if (t::has_min)
        *dmin = widen(w.d >> 16);
}

/* Types of 32: I of blocks 2p and 2p + 1. */
template <int T>
static __device__ __forceinline__ void sum_blocks(const lane_raw<T> &w, const lane_act &a, int I[2]) {
    int dot[4];
    dot_groups<T>(dot, w, a);
    I[0] = dot[0] + dot[1] - tile_type<T>::offset * a.sum[0];
    I[1] = dot[2] + dot[3] - tile_type<T>::offset * a.sum[1];
}

/* One tile, by a whole warp: what its rows' chains need, to `to`. K types: {factor, integer} of I at to[r], of M at
 * to[8 + r]. Types of 32, block j: the same at to[8 j stride + r], stride 2 with a min, else 1. */
template <int T>
static __device__ __forceinline__ void multiply_tile(const lane_raw<T> &w, const lane_act &a, int lane, float2 *to) {
    typedef tile_type<T> t;
    int p = lane >> 3, r = lane & 7;
    if (t::k) {
        int I, M;
        float d, dmin;
        sum_superblock<T>(w, a, p, &I, &M, &d, &dmin);
        bool is_min = t::has_min && (p & 1);
        if (t::has_min) { /* odd parts go on with M, even ones with I */
            int other = __shfl_xor_sync(~0u, is_min ? I : M, 8);
            I = (is_min ? M : I) + other;
        } else {
            I += __shfl_xor_sync(~0u, I, 8);
        }
        I += __shfl_xor_sync(~0u, I, 16);
        float factor = is_min ? -(dmin * a.d[0]) : d * a.d[0];
        if (lane < (t::has_min ? 16 : 8))
            to[lane] = make_float2(factor, (float)I);
    } else {
        int I[2];
        sum_blocks<T>(w, a, I);
        constexpr int stride = t::has_min ? 2 : 1;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 *at = to + 8 * (2 * p + h) * stride + r;
            at[0] = make_float2(widen(w.d >> (16 * h) & 0xffff) * a.d[h], (float)I[h]);
            if (t::has_min)
                at[8] = make_float2(widen(w.m >> (16 * h) & 0xffff) * a.d[h], (float)a.sum[h]);
        }
    }
}

#endif
