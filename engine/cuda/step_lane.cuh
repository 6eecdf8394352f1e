/* engine/cuda/step_lane.cuh: what a warp makes of one tile for the chains of the fused step: the exact integers and
 * their factors, left in shared memory. The lanes' arithmetic is that of tile_lane.cuh. */
#ifndef ENGINE_CUDA_STEP_LANE_CUH
#define ENGINE_CUDA_STEP_LANE_CUH

#include "cuda/tile_lane.cuh"

/* The activations of one part of one superblock, in registers: 64 values, four sums of 16, and the scale (Q8_K: one;
 * Q8_32: of the two blocks). */
struct lane_act {
    uint4 q[4];
    uint2 sums;
    float d[2];
};

/* A lane's share of a tile with its scales. */
template <uint32_t type> struct lane_tile {
    struct tile_lane w;
    uint32_t d, m;
};

template <uint32_t type>
static __device__ __forceinline__ void read_lane(struct lane_tile<type> *l, const uint8_t *tile, int p, int r) {
    tile_load<type>(tile, p, r, &l->w);
    l->d = tile_kind<type>::super ? tile_super_d<type>(tile, r) : tile_d32<type>(tile, p, r);
    l->m = !tile_kind<type>::super && tile_kind<type>::min ? tile_m32<type>(tile, p, r) : 0;
}

/* One tile, by a whole warp: what its rows' chains need, to `to`, as {factor, integer}. Superblock types: of I at
 * to[r], of M at to[8 + r]. Types of 32, block j of the tile: of I at to[8 j stride + r], of the sum at to[8 j stride +
 * 8 + r], stride 2 with a min, else 1. */
template <uint32_t type>
static __device__ __forceinline__ void multiply_tile(const struct lane_tile<type> *l, const struct lane_act &a,
                                                     float2 *to) {
    using k = tile_kind<type>;
    int lane = (int)threadIdx.x & 31, p = lane >> 3, r = lane & 7;
    int2 dot = tile_dot<type>(&l->w, a.q, a.sums);
    if (k::super) {
        bool is_min = k::min && (p & 1);
        int sum = is_min ? dot.y : dot.x;
        if (k::min) /* odd parts go on with M, even ones with I */
            sum += __shfl_xor_sync(~0u, is_min ? dot.x : dot.y, 8);
        else
            sum += __shfl_xor_sync(~0u, sum, 8);
        sum += __shfl_xor_sync(~0u, sum, 16);
        float d = __fmul_rn(tile_half(is_min ? l->d >> 16 : l->d & 0xffffu), a.d[0]);
        if (lane < (k::min ? 16 : 8))
            to[lane] = make_float2(is_min ? -d : d, __int2float_rn(sum));
    } else {
        constexpr int stride = k::min ? 2 : 1;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 *at = to + 8 * (2 * p + h) * stride + r;
            at[0] =
                make_float2(__fmul_rn(tile_half(l->d >> 16 * h & 0xffffu), a.d[h]), __int2float_rn(h ? dot.y : dot.x));
            if (k::min)
                at[8] = make_float2(__fmul_rn(tile_half(l->m >> 16 * h & 0xffffu), a.d[h]),
                                    __int2float_rn(tile_pair_sum(h ? a.sums.y : a.sums.x)));
        }
    }
}

#endif
