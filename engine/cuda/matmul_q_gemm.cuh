/* engine/cuda/matmul_q_gemm.cuh: cuda_matmul_q for two positions and more, on the integer tensor cores.
 *
 * A thread block makes BM rows by BN positions, superblock after superblock: tiles and activations come through a ring
 * of stages in shared memory. Integer products of 32 (or 16) columns are exact int32, their scales are applied in
 * int32, and once a superblock (or block of 32) the F32 chain of matmul_q.h takes its step: the bits do not depend on
 * the tiling. Lane (g, t) = (lane / 4, lane % 4) of a warp holds, of an m16n8 product, rows g and g + 8 (the same row
 * of two strips) and positions 2t, 2t + 1.
 *
 * Two conversions are made without the slow instruction, both exact:
 *   a block of 32's dot: its accumulator starts as the bits of 1.5 * 2^23, whose unit is 1, so that the sum (below
 *   2^20) is a float's bits already;
 *   M: mins (below 64) times sums of 16 activations (at most 2048 in size) are integers exact in binary16, and their
 *   sum, below 2^22, is exact in an F32 accumulator however the tensor core aligns its terms. */
#ifndef ENGINE_CUDA_MATMUL_Q_GEMM_CUH
#define ENGINE_CUDA_MATMUL_Q_GEMM_CUH

#include "cuda/matmul_q.cuh"
#include "cuda/tile_lane.cuh"

/* ---- instructions ---- */

static __device__ __forceinline__ void mma_s8_k32(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, int init) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(init));
}

static __device__ __forceinline__ void mma_s8_k16(int c[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0), "r"(0));
}

static __device__ __forceinline__ void mma_f16_k16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

static __device__ __forceinline__ void load_matrix_x4(uint32_t b[4], const uint8_t *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(at)
                 : "memory");
}

static __device__ __forceinline__ void copy_16(uint8_t *dst, const void *src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(src)
                 : "memory");
}

static __device__ __forceinline__ void copy_4(uint8_t *dst, const void *src) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(src)
                 : "memory");
}

static __device__ __forceinline__ void copy_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int n> static __device__ __forceinline__ void copy_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

/* ---- shape of a thread block ---- */

enum { ACT_STRIDE = 272, SUM_STRIDE = 48, D32_STRIDE = 48 }; /* bytes a position, padded against bank conflicts */

/* wm x wn warps of mt x nt products m16n8. */
template <uint32_t type, int wm, int wn, int mt, int nt, int n_stage> struct gemm_shape {
    using k = tile_kind<type>;
    static constexpr int threads = 32 * wm * wn, strips = 2 * wm * mt, bm = 8 * strips, bn = 8 * wn * nt;
    static constexpr int act_at = strips * k::bytes;
    static constexpr int sum_at = act_at + bn * ACT_STRIDE;
    static constexpr int d_at = sum_at + (k::min ? bn * SUM_STRIDE : 0);
    static constexpr int stage = d_at + bn * (k::super ? 4 : D32_STRIDE);
    static constexpr int shared = n_stage * stage;
};

/* Superblock sb of the block's rows and positions into a stage; rows and positions beyond the end repeat the last. */
template <uint32_t type, class shape>
static __device__ __forceinline__ void load_stage(const struct matmul_q_args &a, uint8_t *stage, int sb) {
    using k = tile_kind<type>;
    int last_strip = (a.n_rows - 1) / 8, strip0 = blockIdx.y * shape::strips, pos0 = blockIdx.x * shape::bn;
    constexpr int chunks = k::bytes / 16;
    for (int i = threadIdx.x; i < shape::strips * chunks; i += shape::threads) {
        int s = i / chunks, strip = min(strip0 + s, last_strip);
        copy_16(stage + 16 * i, a.tiles + ((size_t)strip * a.n_sb + sb) * k::bytes + 16 * (i - s * chunks));
    }
    for (int i = threadIdx.x; i < shape::bn * 16; i += shape::threads) {
        int n = i / 16, c = i % 16;
        size_t pos = min(pos0 + n, a.n_pos - 1);
        copy_16(stage + shape::act_at + n * ACT_STRIDE + 16 * c, a.q + 256 * (pos * a.n_sb + sb) + 16 * c);
    }
    for (int i = threadIdx.x; i < shape::bn * 2; i += shape::threads) {
        int n = i / 2, c = i % 2;
        size_t at = (size_t)min(pos0 + n, a.n_pos - 1) * a.n_sb + sb;
        if (k::min)
            copy_16(stage + shape::sum_at + n * SUM_STRIDE + 16 * c, a.sum + 16 * at + 8 * c);
        if (!k::super)
            copy_16(stage + shape::d_at + n * D32_STRIDE + 16 * c, a.d + 8 * at + 4 * c);
        else if (c == 0)
            copy_4(stage + shape::d_at + 4 * n, a.d + at);
    }
}

/* ---- operands ---- */

/* Values are made signed by taking the offset off as two's complement does, at the top of the byte: what the products
 * are too large by is 2^shift. */
template <uint32_t type> struct signed_values {
    using k = tile_kind<type>;
    static constexpr int bits = k::q8 ? 8 : (k::nib ? 4 : 0) + (k::hi2 ? 2 : 0) + (k::hi1 ? 1 : 0);
    static constexpr int shift = k::offset ? 8 - bits : 0;
};

/* Words 4f + t (f = 0 .. 3) of part p of row g. */
template <uint32_t type>
static __device__ __forceinline__ void load_words(const uint8_t *tile, int p, int g, int t, uint32_t w[4]) {
    using k = tile_kind<type>;
    constexpr int up = signed_values<type>::shift;
    uint32_t nib[2], hi2, hi1;
    if (k::q8) {
#pragma unroll
        for (int f = 0; f < 4; f++)
            w[f] = *(const uint32_t *)(tile + ((4 * p + f) * 8 + g) * 16 + 4 * t);
        return;
    }
    if (k::nib)
        for (int h = 0; h < 2; h++)
            nib[h] = *(const uint32_t *)(tile + ((2 * p + h) * 8 + g) * 16 + 4 * t);
    if (k::hi2)
        hi2 = *(const uint32_t *)(tile + k::hi2_at + (p * 8 + g) * 16 + 4 * t);
    if (k::hi1)
        hi1 = *(const uint32_t *)(tile + k::hi1_at + (p * 8 + g) * 8 + 4 * (t & 1)) >> (t >> 1);
#pragma unroll
    for (int f = 0; f < 4; f++) {
        constexpr int mid = (k::nib ? 4 : 0) + up, top = (k::nib ? 4 : 2) + up;
        uint32_t x = k::offset ? 0x80808080u : 0;
        if (k::nib)
            x ^= tile_shift(nib[f & 1], up - 4 * (f >> 1)) & 0x0f0f0f0fu << up;
        if (k::hi2)
            x ^= tile_shift(hi2, mid - 2 * f) & 0x03030303u << mid;
        if (k::hi1)
            x ^= tile_shift(hi1, top - 2 * f) & 0x01010101u << top;
        w[f] = x;
    }
}

/* Scales of part p of row g: for blocks of 32 elements [0] and [1], for groups of 16 all four. */
template <uint32_t type>
static __device__ __forceinline__ void load_scales(const uint8_t *tile, int p, int g, int sc[4]) {
    using k = tile_kind<type>;
    if (k::packed6) {
        const uint32_t *w = (const uint32_t *)(tile + k::sc_at + g * 16 + 4);
        int i = 3 * p >> 2;
        uint32_t x = __funnelshift_r(w[i], w[i < 2 ? i + 1 : 2], 24 * p & 31);
        sc[0] = (int)(x & 63);
        sc[1] = (int)(x >> 6 & 63);
        return;
    }
    uint32_t x = *(const uint32_t *)(tile + k::sc_at + (p * 8 + g) * 4);
#pragma unroll
    for (int f = 0; f < 4; f++)
        sc[f] = type == FWD_TYPE_Q2_K ? (int)(x >> 8 * f & 15) : tile_signed_byte(x, f);
}

/* Two integers below 1024 in the halves of a word to binary16. */
static __device__ __forceinline__ uint32_t small_to_halves(uint32_t pair) {
    __half2 x = __hsub2(*(const __half2 *)&(pair |= 0x64006400u), __floats2half2_rn(1024.0f, 1024.0f));
    return *(const uint32_t *)&x;
}

/* The mins of groups of 16 j = 2t, 2t + 1 (w[0]) and 2t + 8, 2t + 9 (w[1]) of row g, as binary16. */
template <uint32_t type>
static __device__ __forceinline__ void load_mins(const uint8_t *tile, int g, int t, uint32_t w[2]) {
    using k = tile_kind<type>;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t pair;
        if (k::packed6) { /* m[t + 4i]: both groups of its 32 */
            int bit = 24 * (t >> 1) + 12 + 6 * (t & 1) + 48 * i, at = bit >> 5;
            const uint32_t *s = (const uint32_t *)(tile + k::sc_at + g * 16 + 4);
            pair = (__funnelshift_r(s[at], s[at < 2 ? at + 1 : 2], bit & 31) & 63) * 0x00010001u;
        } else {
            uint32_t s = *(const uint16_t *)(tile + k::sc_at + (((t >> 1) + 2 * i) * 8 + g) * 4 + 2 * (t & 1));
            pair = (s >> 4 & 15) | (s >> 12 & 15) << 16;
        }
        w[i] = small_to_halves(pair);
    }
}

/* Two int16 of size at most 2048 to binary16, exact. */
static __device__ __forceinline__ uint32_t sums_to_halves(uint32_t pair) {
    __half2 x = __halves2half2(__short2half_rn((short)(pair & 0xffffu)), __short2half_rn((short)(pair >> 16)));
    return *(const uint32_t *)&x;
}

/* ---- one superblock ---- */

/* What a warp reads of a stage: its first strip, its first position's activations, sums and scales. */
struct warp_view {
    const uint8_t *strip, *act, *sum, *d;
    int g, t;
};

/* The activations of part p of 8 positions: b[f] is the operand's word for elements 16f .. 16f + 15. */
static __device__ __forceinline__ void load_act(const struct warp_view &v, int n, int p, uint32_t b[4]) {
    int lane = threadIdx.x % 32;
    load_matrix_x4(b, v.act + (8 * n + lane % 8) * ACT_STRIDE + 64 * p + 16 * (lane / 8));
}

/* The integers I of a superblock, 2^shift times. */
template <uint32_t type, int mt, int nt>
static __device__ __forceinline__ void dot_superblock(const struct warp_view &v, int dot[mt][nt][4]) {
    using k = tile_kind<type>;
    constexpr int n_group = 64 / k::group;
#pragma unroll 1
    for (int p = 0; p < 4; p++) {
        uint32_t w[mt][2][4];
        int sc[mt][2][4];
#pragma unroll
        for (int i = 0; i < 2 * mt; i++) {
            load_words<type>(v.strip + i * k::bytes, p, v.g, v.t, w[i / 2][i % 2]);
            load_scales<type>(v.strip + i * k::bytes, p, v.g, sc[i / 2][i % 2]);
        }
#pragma unroll
        for (int n = 0; n < nt; n++) {
            uint32_t b[4];
            load_act(v, n, p, b);
#pragma unroll
            for (int i = 0; i < mt * n_group; i++) {
                int m = i / n_group, f = i % n_group, c[4];
                if (k::group == 32) {
                    uint32_t a[4] = {w[m][0][2 * f], w[m][1][2 * f], w[m][0][2 * f + 1], w[m][1][2 * f + 1]};
                    mma_s8_k32(c, a, b[2 * f], b[2 * f + 1], 0);
                } else {
                    mma_s8_k16(c, w[m][0][f], w[m][1][f], b[f]);
                }
#pragma unroll
                for (int e = 0; e < 4; e++)
                    dot[m][n][e] += sc[m][e / 2][f] * c[e];
            }
        }
    }
}

template <uint32_t type, int mt, int nt>
static __device__ __forceinline__ void step_super(const struct warp_view &v, float acc[mt][nt][4]) {
    using k = tile_kind<type>;
    int dot[mt][nt][4] = {};
    dot_superblock<type, mt, nt>(v, dot);
#pragma unroll
    for (int m = 0; m < mt; m++) {
        uint32_t d[2], mins[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint8_t *tile = v.strip + (2 * m + h) * k::bytes;
            d[h] = tile_super_d<type>(tile, v.g);
            if (k::min) {
                uint32_t w[2];
                load_mins<type>(tile, v.g, v.t, w);
                mins[h] = w[0];
                mins[2 + h] = w[1];
            }
        }
#pragma unroll
        for (int n = 0; n < nt; n++) {
            float2 da = *(const float2 *)(v.d + 4 * (8 * n + 2 * v.t));
            float c[4];
            if (k::min) {
                const uint32_t *s = (const uint32_t *)(v.sum + (8 * n + v.g) * SUM_STRIDE);
                mma_f16_k16(c, mins, sums_to_halves(s[v.t]), sums_to_halves(s[v.t + 4]));
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = __int2float_rn(dot[m][n][e] >> signed_values<type>::shift), a = e & 1 ? da.y : da.x;
                acc[m][n][e] = __fmaf_rn(__fmul_rn(tile_half(d[e / 2] & 0xffffu), a), x, acc[m][n][e]);
                if (k::min)
                    acc[m][n][e] = __fmaf_rn(-__fmul_rn(tile_half(d[e / 2] >> 16), a), c[e], acc[m][n][e]);
            }
        }
    }
}

/* n_block: blocks of 32 that are real in this superblock. */
template <uint32_t type, int mt, int nt>
static __device__ __forceinline__ void step_blocks(const struct warp_view &v, int n_block, float acc[mt][nt][4]) {
    using k = tile_kind<type>;
    const float unit = 1.0f / (1 << signed_values<type>::shift), magic = 12582912.0f; /* 1.5 * 2^23 */
#pragma unroll 1
    for (int p = 0; 2 * p < n_block; p++) {
        uint32_t w[mt][2][4], d[mt][2], m32[mt][2];
#pragma unroll
        for (int i = 0; i < 2 * mt; i++) {
            const uint8_t *tile = v.strip + i * k::bytes;
            load_words<type>(tile, p, v.g, v.t, w[i / 2][i % 2]);
            d[i / 2][i % 2] = tile_d32<type>(tile, p, v.g);
            m32[i / 2][i % 2] = k::min ? tile_m32<type>(tile, p, v.g) : 0;
        }
#pragma unroll
        for (int n = 0; n < nt; n++) {
            uint32_t b[4];
            load_act(v, n, p, b);
#pragma unroll
            for (int f = 0; f < 2; f++) {
                float da[2], sum[2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int pos = 8 * n + 2 * v.t + j;
                    da[j] = *(const float *)(v.d + pos * D32_STRIDE + 4 * (2 * p + f));
                    if (k::min)
                        sum[j] = __int2float_rn(
                            tile_pair_sum(*(const uint32_t *)(v.sum + pos * SUM_STRIDE + 4 * (2 * p + f))));
                }
                if (2 * p + f < n_block)
#pragma unroll
                    for (int m = 0; m < mt; m++) {
                        int c[4];
                        uint32_t a[4] = {w[m][0][2 * f], w[m][1][2 * f], w[m][0][2 * f + 1], w[m][1][2 * f + 1]};
                        mma_s8_k32(c, a, b[2 * f], b[2 * f + 1], __float_as_int(magic));
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            float x = __fmaf_rn(__int_as_float(c[e]), unit, -magic * unit);
                            float *y = &acc[m][n][e];
                            *y = __fmaf_rn(__fmul_rn(tile_half(d[m][e / 2] >> 16 * f & 0xffffu), da[e & 1]), x, *y);
                            if (k::min)
                                *y = __fmaf_rn(__fmul_rn(tile_half(m32[m][e / 2] >> 16 * f & 0xffffu), da[e & 1]),
                                               sum[e & 1], *y);
                        }
                    }
            }
        }
    }
}

/* ---- the kernel ---- */

template <uint32_t type, int wm, int wn, int mt, int nt, int n_stage, int per_sm>
static __global__ void __launch_bounds__(32 * wm * wn, per_sm) gemm(struct matmul_q_args a) {
    using k = tile_kind<type>;
    using shape = gemm_shape<type, wm, wn, mt, nt, n_stage>;
    extern __shared__ __align__(128) uint8_t ring[];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wr = warp / wn, wc = warp % wn;
    float acc[mt][nt][4] = {};
#pragma unroll
    for (int s = 0; s < n_stage - 1; s++) {
        if (s < a.n_sb)
            load_stage<type, shape>(a, ring + s * shape::stage, s);
        copy_commit();
    }
    int slot = 0, fill = n_stage - 1;
    for (int sb = 0; sb < a.n_sb; sb++) {
        copy_wait<n_stage - 2>();
        __syncthreads();
        if (sb + n_stage - 1 < a.n_sb)
            load_stage<type, shape>(a, ring + fill * shape::stage, sb + n_stage - 1);
        copy_commit();
        const uint8_t *s = ring + slot * shape::stage;
        int pos = wc * 8 * nt;
        struct warp_view v = {s + wr * 2 * mt * k::bytes,
                              s + shape::act_at + pos * ACT_STRIDE,
                              s + shape::sum_at + pos * SUM_STRIDE,
                              s + shape::d_at + pos * (k::super ? 4 : D32_STRIDE),
                              lane / 4,
                              lane % 4};
        if constexpr (k::super)
            step_super<type, mt, nt>(v, acc);
        else
            step_blocks<type, mt, nt>(v, min(8, a.n_block - 8 * sb), acc);
        slot = slot + 1 == n_stage ? 0 : slot + 1;
        fill = fill + 1 == n_stage ? 0 : fill + 1;
    }
    int row0 = blockIdx.y * shape::bm + wr * 16 * mt + lane / 4;
    int pos0 = blockIdx.x * shape::bn + wc * 8 * nt + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < mt * nt * 4; i++) {
        int m = i / (4 * nt), n = i / 4 % nt, e = i % 4;
        int row = row0 + 16 * m + 8 * (e / 2), pos = pos0 + 8 * n + (e & 1);
        if (row < a.n_rows && pos < a.n_pos)
            a.y[pos * a.ld_y + row] = tile_finish(acc[m][n][e], a.bias ? a.bias + row : NULL);
    }
}

/* One configuration of the kernel, launched. */
template <uint32_t type, int wm, int wn, int mt, int nt, int n_stage, int per_sm>
static void launch_gemm(struct CUstream_st *stream, const struct matmul_q_args &a) {
    using shape = gemm_shape<type, wm, wn, mt, nt, n_stage>;
    void (*kernel)(struct matmul_q_args) = gemm<type, wm, wn, mt, nt, n_stage, per_sm>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape::shared);
    dim3 grid((unsigned)((a.n_pos + shape::bn - 1) / shape::bn), (unsigned)((a.n_rows + shape::bm - 1) / shape::bm));
    kernel<<<grid, shape::threads, shape::shared, (cudaStream_t)stream>>>(a);
}

/* Few positions; a batch or a short prompt; a long one. */
template <uint32_t type> static void gemm_for(struct CUstream_st *stream, const struct matmul_q_args &a) {
    if (a.n_pos <= 16)
        launch_gemm<type, 2, 2, 1, 1, 4, 2>(stream, a);
    else if (a.n_pos <= 160 || (long long)a.n_rows * a.n_pos < 128 * 64 * 132)
        launch_gemm<type, 2, 5, 1, 2, 3, 2>(stream, a);
    else
        launch_gemm<type, 4, 2, 2, 4, 2, 2>(stream, a);
}

#endif
