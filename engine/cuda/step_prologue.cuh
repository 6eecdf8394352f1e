/* engine/cuda/step_prologue.cuh: what every block of step_gemv does before it multiplies: the norm (ops/rmsnorm) and
 * the quantisation (ops/act_quant) of the activation vector into shared memory. The same bits as the ops. */
#ifndef ENGINE_CUDA_STEP_PROLOGUE_CUH
#define ENGINE_CUDA_STEP_PROLOGUE_CUH

#include "cuda/step_device.cuh"
#include "cuda/step_kernels.h"

struct shared_act {
    int8_t *q;
    float *d;
    int16_t *sum; /* of 16 values */
};

/* Sum of squares in 256 lanes of F64 by the first 256 threads, then the tree of halves by one warp. lanes: 257. */
static __device__ __forceinline__ float norm_scale(const float *x, int n, float eps, double *lanes) {
    int t = (int)threadIdx.x;
    if (t < 256) {
        double sum = 0.0;
        for (int i0 = t; i0 < n; i0 += 16 * 256) {
            float v[16];
#pragma unroll
            for (int k = 0; k < 16; k++)
                v[k] = i0 + 256 * k < n ? __ldcg(x + i0 + 256 * k) : 0.0f;
#pragma unroll
            for (int k = 0; k < 16; k++) /* adding +0 to a sum of squares leaves it as it is */
                sum = __fma_rn((double)v[k], (double)v[k], sum);
        }
        lanes[t] = sum;
    }
    multipliers_meet();
    if (t < 32) {
        double part[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            part[j] = lanes[32 * j + t];
        double s = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
#pragma unroll
        for (int width = 16; width > 0; width >>= 1)
            s += __shfl_xor_sync(~0u, s, width);
        if (t == 0)
            *(float *)(lanes + 256) = (float)(1.0 / sqrt(s / (double)n + (double)eps));
    }
    multipliers_meet();
    return *(const float *)(lanes + 256);
}

/* Eight values of one lane. */
struct eight {
    float v[8];
};

static __device__ __forceinline__ eight read_eight(const float *x, int i, int n) {
    eight e;
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = a;
    if (i < n) {
        a = __ldcg((const float4 *)(x + i));
        b = __ldcg((const float4 *)(x + i + 4));
    }
    e.v[0] = a.x, e.v[1] = a.y, e.v[2] = a.z, e.v[3] = a.w;
    e.v[4] = b.x, e.v[5] = b.y, e.v[6] = b.z, e.v[7] = b.w;
    return e;
}

/* Quantises a lane's eight values of a block that spans n_lanes lanes. Returns the block's d; *sum: of the eight.
 * |x * id| is at most 127 (1 + 2^-24)^2, so that nothing is ever cut to 127, and rounding to an integer is adding
 * 1.5 * 2^23, whose last byte then holds it. */
static __device__ __forceinline__ float quantise_eight(const eight &e, int n_lanes, uint2 *q, int *sum) {
    uint32_t top = 0; /* magnitudes order as their bits do; infinities and NaNs lie above all */
#pragma unroll
    for (int k = 0; k < 8; k++)
        top = max(top, __float_as_uint(e.v[k]) & 0x7fffffffu);
    for (int width = 1; width < n_lanes; width <<= 1)
        top = max(top, __shfl_xor_sync(~0u, top, width));
    *q = make_uint2(0, 0);
    *sum = 0;
    if (top >= 0x7f800000u)
        return __int_as_float(0x7fc00000);
    if (top < 0x0d800000u) /* 2^-100 */
        return 0.0f;
    float amax = __uint_as_float(top), id = 127.0f / amax;
    uint32_t r[8];
#pragma unroll
    for (int k = 0; k < 8; k++)
        r[k] = __float_as_uint(__fadd_rn(__fmul_rn(e.v[k], id), 0x1.8p+23f));
    q->x = __byte_perm(__byte_perm(r[0], r[1], 0x0040), __byte_perm(r[2], r[3], 0x0040), 0x5410);
    q->y = __byte_perm(__byte_perm(r[4], r[5], 0x0040), __byte_perm(r[6], r[7], 0x0040), 0x5410);
    *sum = __dp4a((int)q->x, 0x01010101, __dp4a((int)q->y, 0x01010101, 0));
    return amax / 127.0f;
}

/* Superblock sb of both formats, by one warp. tap_k, tap_32: where block 0 leaves the tap's rows, or NULL. */
static __device__ __forceinline__ void quantise_superblock(const eight &e, int sb, int n, const struct shared_act *k,
                                                           const struct shared_act *b32, uint8_t *tap_k,
                                                           uint8_t *tap_32) {
    int lane = (int)threadIdx.x & 31;
    uint2 q;
    int sum;
    if (k) {
        float d = quantise_eight(e, 32, &q, &sum);
        int pair = sum + __shfl_xor_sync(~0u, sum, 1);
        *(uint2 *)(k->q + 256 * sb + 8 * lane) = q;
        if (!(lane & 1))
            k->sum[16 * sb + lane / 2] = (int16_t)pair;
        if (lane == 0)
            k->d[sb] = d;
        if (tap_k) {
            uint8_t *row = tap_k + (size_t)292 * sb;
            if (lane == 0)
                *(float *)row = d;
            *(uint32_t *)(row + 4 + 8 * lane) = q.x;
            *(uint32_t *)(row + 8 + 8 * lane) = q.y;
            if (!(lane & 1))
                *(int16_t *)(row + 260 + lane) = (int16_t)pair;
        }
    }
    if (b32) {
        float d = quantise_eight(e, 4, &q, &sum);
        sum += __shfl_xor_sync(~0u, sum, 1);
        *(uint2 *)(b32->q + 256 * sb + 8 * lane) = q;
        if (!(lane & 1))
            b32->sum[16 * sb + lane / 2] = (int16_t)sum;
        if (!(lane & 3))
            b32->d[8 * sb + lane / 4] = d;
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (tap_32 && 256 * sb + 8 * lane < n) {
            uint8_t *row = tap_32 + (size_t)40 * (8 * sb + lane / 4);
            *(uint32_t *)(row + 8 + 8 * (lane & 3)) = q.x;
            *(uint32_t *)(row + 12 + 8 * (lane & 3)) = q.y;
            if (!(lane & 3)) {
                *(float *)row = d;
                *(int *)(row + 4) = sum;
            }
        }
    }
}

/* The prologue behind the wait, by the warps that multiply; ends with their barrier. first_w: the norm's weights of
 * the warp's first superblock, read before the wait. lanes: room for norm_scale. */
static __device__ __forceinline__ void prepare_activations(const struct step_gemv *p, const struct shared_act *k,
                                                           const struct shared_act *b32, double *lanes,
                                                           const eight &first_w, const struct cuda_step_taps *taps) {
    enum { AHEAD = 5 };
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, n = p->n;
    uint8_t *tap_k = (uint8_t *)tap_pointer(taps, p->tap_q8_k), *tap_32 = (uint8_t *)tap_pointer(taps, p->tap_q8_32);
    if (!p->norm) {
        for (int first = warp; first < p->n_sb; first += AHEAD * STEP_MULTIPLIERS) {
            eight e[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                e[a] = read_eight(p->x, 256 * (first + a * STEP_MULTIPLIERS) + 8 * lane, n);
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (first + a * STEP_MULTIPLIERS < p->n_sb)
                    quantise_superblock(e[a], first + a * STEP_MULTIPLIERS, n, k, b32, tap_k, tap_32);
        }
    } else {
        float *tap_norm = (float *)tap_pointer(taps, p->tap_norm);
        eight e = read_eight(p->x, 256 * warp + 8 * lane, n), w = first_w;
        float scale = norm_scale(p->x, n, p->eps, lanes);
        for (int sb = warp; sb < p->n_sb; sb += STEP_MULTIPLIERS) {
            int i = 256 * sb + 8 * lane;
            if (sb != warp) {
                e = read_eight(p->x, i, n);
                w = read_eight(p->norm, i, n);
            }
#pragma unroll
            for (int j = 0; j < 8; j++)
                e.v[j] = e.v[j] * scale * w.v[j];
            if (tap_norm && i < n)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    tap_norm[i + j] = plain_nan(e.v[j]);
            quantise_superblock(e, sb, n, k, b32, tap_k, tap_32);
        }
    }
    multipliers_meet();
}

#endif
