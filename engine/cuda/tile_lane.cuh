/* engine/cuda/tile_lane.cuh: what one lane (p, r) of a warp does with a tile (tiles.h): load its 64 weights, take their
 * exact integer dot with 64 int8 activations, and step the F32 chain of matmul_q.h. Templates over ggml's type id.
 *
 * A lane's dot is two int32:
 *   superblock types   x: its part of I (scales in, offset taken off), y: its part of M (0 without a min); the sums
 *                      over p = 0 .. 3 are those of the superblock
 *   blocks of 32       x, y: I of blocks 2p and 2p + 1, whole */
#ifndef ENGINE_CUDA_TILE_LANE_CUH
#define ENGINE_CUDA_TILE_LANE_CUH

#include "cuda/tiles.h"
#include "format/gguf.h"

#include <cuda_fp16.h>
#include <stdint.h>

/* What a type's tile holds, and where. */
template <uint32_t type> struct tile_kind {
    static constexpr bool q8 = type == FWD_TYPE_Q8_0;
    static constexpr bool packed6 = type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K; /* sc: the 16-byte unit */
    static constexpr bool super = packed6 || type == FWD_TYPE_Q6_K || type == FWD_TYPE_Q2_K || type == FWD_TYPE_Q3_K;
    static constexpr bool nib = !q8 && type != FWD_TYPE_Q2_K && type != FWD_TYPE_Q3_K;
    static constexpr bool hi2 = super && !packed6;
    static constexpr bool hi1 =
        type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q3_K || type == FWD_TYPE_Q5_0 || type == FWD_TYPE_Q5_1;
    /* superblocks: has a dmin; blocks of 32: has an m */
    static constexpr bool min = packed6 || type == FWD_TYPE_Q2_K || type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1;
    /* subtracted from every unsigned value */
    static constexpr int offset = type == FWD_TYPE_Q6_K   ? 32
                                  : type == FWD_TYPE_Q3_K ? 4
                                  : type == FWD_TYPE_Q4_0 ? 8
                                  : type == FWD_TYPE_Q5_0 ? 16
                                                          : 0;
    static constexpr int group = super && !packed6 ? 16 : 32; /* values that share an integer scale */
    static constexpr int hi2_at = nib ? 1024 : 0;
    static constexpr int hi1_at = hi2_at + (hi2 ? 512 : 0);
    static constexpr int sc_at = q8 ? 2048 : hi1_at + (hi1 ? 256 : 0);
    static constexpr int d_at = super && !packed6 ? sc_at + 128 : sc_at;
    static constexpr int m_at = d_at + 128;
    static constexpr int bytes = packed6                 ? sc_at + 128
                                 : type == FWD_TYPE_Q2_K ? d_at + 32
                                 : super                 ? d_at + 16
                                                         : d_at + (min ? 256 : 128);
};

/* A lane's share of a tile, as it lies there; fields that the type lacks are never touched and cost nothing. */
struct tile_lane {
    uint4 q[4]; /* nib: 2 of them; q8: 4 */
    uint4 hi2;
    uint2 hi1;
    uint32_t sc; /* packed6: sc0 | sc1 << 6 | m0 << 12 | m1 << 18; else the four bytes */
};

template <bool stream, class V> static __device__ __forceinline__ V tile_fetch(const void *p) {
    return stream ? __ldcs((const V *)p) : *(const V *)p;
}

/* tile: global or shared memory, 16-byte aligned. stream: global only, read once. */
template <uint32_t type, bool stream = false>
static __device__ __forceinline__ void tile_load(const uint8_t *tile, int p, int r, struct tile_lane *l) {
    using k = tile_kind<type>;
    constexpr int n_unit = k::q8 ? 4 : 2;
    if (k::nib || k::q8)
#pragma unroll
        for (int h = 0; h < n_unit; h++)
            l->q[h] = tile_fetch<stream, uint4>(tile + ((n_unit * p + h) * 8 + r) * 16);
    if (k::hi2)
        l->hi2 = tile_fetch<stream, uint4>(tile + k::hi2_at + (p * 8 + r) * 16);
    if (k::hi1)
        l->hi1 = tile_fetch<stream, uint2>(tile + k::hi1_at + (p * 8 + r) * 8);
    if (k::packed6) { /* 24 bits at bit 24p of three words */
        const uint8_t *w = tile + k::sc_at + r * 16 + 4;
        int i = 3 * p >> 2;
        uint32_t lo = tile_fetch<stream, uint32_t>(w + 4 * i);
        uint32_t hi = tile_fetch<stream, uint32_t>(w + 4 * (i < 2 ? i + 1 : 2));
        l->sc = __funnelshift_r(lo, hi, 24 * p & 31);
    } else if (k::super) {
        l->sc = tile_fetch<stream, uint32_t>(tile + k::sc_at + (p * 8 + r) * 4);
    }
}

/* Word w of a uint4, by a constant once unrolled. */
static __device__ __forceinline__ uint32_t tile_word_of(const uint4 &v, int w) {
    return w == 0 ? v.x : w == 1 ? v.y : w == 2 ? v.z : v.w;
}

/* x << n for n >= 0, x >> -n below. */
static __device__ __forceinline__ uint32_t tile_shift(uint32_t x, int n) {
    return n >= 0 ? x << n : x >> -n;
}

/* Word i (0 .. 15) of the lane: elements 4i .. 4i + 3 as bytes, unsigned before the offset (Q8_0: signed). */
template <uint32_t type> static __device__ __forceinline__ uint32_t tile_word(const struct tile_lane *l, int i) {
    using k = tile_kind<type>;
    if (k::q8)
        return tile_word_of(l->q[i >> 2], i & 3);
    uint32_t w = 0;
    if (k::nib)
        w = (tile_word_of(l->q[i >> 2 & 1], i & 3) >> (i & 8) / 2) & 0x0f0f0f0fu;
    if (k::hi2) {
        int to = k::nib ? 4 : 0;
        w |= tile_shift(tile_word_of(l->hi2, i & 3), to - 2 * (i >> 2)) & 0x03030303u << to;
    }
    if (k::hi1) {
        int to = k::nib ? 4 : 2;
        w |= tile_shift(i & 1 ? l->hi1.y : l->hi1.x, to - (i >> 1)) & 0x01010101u << to;
    }
    return w;
}

/* Sum of four products of unsigned bytes with signed ones, plus c. */
static __device__ __forceinline__ int tile_dp4a_us(uint32_t u, uint32_t s, int c) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(u), "r"(s), "r"(c));
    return d;
}

/* Byte j of a word, signed. */
static __device__ __forceinline__ int tile_signed_byte(uint32_t w, int j) {
    return (int)(w << (24 - 8 * j)) >> 24;
}

/* sum[2j] + sum[2j + 1] of the pair of 16-bit sums in a word. */
static __device__ __forceinline__ int tile_pair_sum(uint32_t pair) {
    return __dp2a_lo((int)pair, 0x01010101, 0);
}

/* a: the part's 64 activations, words 0 .. 15; sums: their four sums of 16. Exact. */
template <uint32_t type>
static __device__ __forceinline__ int2 tile_dot(const struct tile_lane *l, const uint4 a[4], uint2 sums) {
    using k = tile_kind<type>;
    int dot[4] = {0, 0, 0, 0}; /* of groups of 16 elements, or [0] and [1] of 32 */
#pragma unroll
    for (int i = 0; i < 16; i++) {
        uint32_t act = tile_word_of(a[i >> 2], i & 3);
        int j = i / (k::group / 4);
        if (k::nib && !k::hi1 && !k::hi2) /* nibbles alone: the high ones where they are, 16 times too large */
            dot[j] =
                tile_dp4a_us(tile_word_of(l->q[i >> 2 & 1], i & 3) & (i < 8 ? 0x0f0f0f0fu : 0xf0f0f0f0u), act, dot[j]);
        else
            dot[j] = __dp4a((int)tile_word<type>(l, i), (int)act, dot[j]);
    }
    if (k::nib && !k::hi1 && !k::hi2)
        dot[1] >>= 4;
    int2 x = {0, 0};
    if (k::packed6) {
        x.x = (int)(l->sc & 63) * dot[0] + (int)(l->sc >> 6 & 63) * dot[1];
        x.y = (int)(l->sc >> 12 & 63) * tile_pair_sum(sums.x) + (int)(l->sc >> 18 & 63) * tile_pair_sum(sums.y);
    } else if (type == FWD_TYPE_Q2_K) {
        uint32_t scale = l->sc & 0x0f0f0f0fu, min = l->sc >> 4 & 0x0f0f0f0fu;
#pragma unroll
        for (int j = 0; j < 4; j++)
            x.x += (int)(scale >> 8 * j & 15) * dot[j];
        x.y = __dp2a_lo((int)sums.x, (int)min, __dp2a_hi((int)sums.y, (int)min, 0));
    } else if (k::super) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            x.x += tile_signed_byte(l->sc, j) * dot[j];
        x.x -= k::offset * __dp2a_lo((int)sums.x, (int)l->sc, __dp2a_hi((int)sums.y, (int)l->sc, 0));
    } else {
        x.x = dot[0] - k::offset * (k::offset ? tile_pair_sum(sums.x) : 0);
        x.y = dot[1] - k::offset * (k::offset ? tile_pair_sum(sums.y) : 0);
    }
    return x;
}

/* ---- scales and chains ---- */

static __device__ __forceinline__ float tile_half(uint32_t bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}

/* Superblock types: f16 d, and above it dmin, of row r. */
template <uint32_t type> static __device__ __forceinline__ uint32_t tile_super_d(const uint8_t *tile, int r) {
    using k = tile_kind<type>;
    if (k::packed6)
        return *(const uint32_t *)(tile + k::sc_at + r * 16);
    if (type == FWD_TYPE_Q2_K)
        return *(const uint32_t *)(tile + k::d_at + r * 4);
    return *(const uint16_t *)(tile + k::d_at + r * 2);
}

/* Blocks of 32: f16 d of blocks 2p and, above it, 2p + 1; and m likewise. */
template <uint32_t type> static __device__ __forceinline__ uint32_t tile_d32(const uint8_t *tile, int p, int r) {
    return *(const uint32_t *)(tile + tile_kind<type>::d_at + (p * 8 + r) * 4);
}

template <uint32_t type> static __device__ __forceinline__ uint32_t tile_m32(const uint8_t *tile, int p, int r) {
    return *(const uint32_t *)(tile + tile_kind<type>::m_at + (p * 8 + r) * 4);
}

/* One superblock of the chain. d: of tile_super_d. */
template <uint32_t type>
static __device__ __forceinline__ float tile_step_super(float acc, uint32_t d, float d_act, int dot, int mins) {
    acc = __fmaf_rn(__fmul_rn(tile_half(d & 0xffffu), d_act), __int2float_rn(dot), acc);
    if (tile_kind<type>::min)
        acc = __fmaf_rn(-__fmul_rn(tile_half(d >> 16), d_act), __int2float_rn(mins), acc);
    return acc;
}

/* One block of 32. d, m: 16 bits each; sum: of the block's activations. */
template <uint32_t type>
static __device__ __forceinline__ float tile_step_32(float acc, uint32_t d, uint32_t m, float d_act, int dot, int sum) {
    acc = __fmaf_rn(__fmul_rn(tile_half(d), d_act), __int2float_rn(dot), acc);
    if (tile_kind<type>::min)
        acc = __fmaf_rn(__fmul_rn(tile_half(m), d_act), __int2float_rn(sum), acc);
    return acc;
}

/* The end of a row's chain: bias (NULL: none), and one pattern for every NaN. */
static __device__ __forceinline__ float tile_finish(float acc, const float *bias) {
    float y = bias ? __fadd_rn(acc, *bias) : acc;
    return y != y ? __uint_as_float(0x7fc00000u) : y;
}

#endif
