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

/* Sum of squares in 256 lanes of F64 by the first 256 threads, then the tree of halves, in every warp. */
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
            for (int k = 0; k < 16; k++) /* a sum that is 0 or more stays as it is when +0 is added */
                sum = __fma_rn((double)v[k], (double)v[k], sum);
        }
        lanes[t] = sum;
    }
    __syncthreads();
    double part[8];
    for (int j = 0; j < 8; j++)
        part[j] = lanes[32 * j + (t & 31)];
    double s = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
#pragma unroll
    for (int width = 16; width > 0; width >>= 1)
        s += __shfl_xor_sync(~0u, s, width);
    return (float)(1.0 / sqrt(s / (double)n + (double)eps));
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

/* Quantises a lane's eight values of a block that spans n_lanes lanes. Returns the block's d; *sum: of the eight. */
static __device__ __forceinline__ float quantise_eight(const eight &e, int n_lanes, uint2 *q, int *sum) {
    float amax = 0.0f;
    int bad = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float a = fabsf(e.v[k]);
        bad |= !(a <= 3.402823466e+38f);
        amax = fmaxf(amax, a);
    }
    for (int width = 1; width < n_lanes; width <<= 1) {
        amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, width));
        bad |= __shfl_xor_sync(~0u, bad, width);
    }
    *q = make_uint2(0, 0);
    *sum = 0;
    if (bad)
        return __int_as_float(0x7fc00000);
    if (amax < 7.8886090522101181e-31f) /* 2^-100 */
        return 0.0f;
    float id = 127.0f / amax;
    uint32_t word[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < 8; k++) {
        int r = __float2int_rn(e.v[k] * id);
        r = max(-127, min(127, r));
        *sum += r;
        word[k >> 2] |= (uint32_t)(r & 255) << (8 * (k & 3));
    }
    *q = make_uint2(word[0], word[1]);
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

/* The whole prologue behind the wait; ends with the block's barrier still to come. first_w: the norm's weights of the
 * warp's first superblock, read before the wait. */
static __device__ __forceinline__ void prepare_activations(const struct step_gemv *p, const struct shared_act *k,
                                                           const struct shared_act *b32, double *lanes,
                                                           const eight &first_w, const struct cuda_step_taps *taps) {
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, n = p->n;
    uint8_t *tap_k = (uint8_t *)tap_pointer(taps, p->tap_q8_k), *tap_32 = (uint8_t *)tap_pointer(taps, p->tap_q8_32);
    float *tap_norm = (float *)tap_pointer(taps, p->tap_norm);
    eight e = read_eight(p->x, 256 * warp + 8 * lane, n), w = first_w;
    float scale = p->norm ? norm_scale(p->x, n, p->eps, lanes) : 1.0f;
    for (int sb = warp; sb < p->n_sb; sb += STEP_WARPS) {
        int i = 256 * sb + 8 * lane;
        if (sb != warp) {
            e = read_eight(p->x, i, n);
            if (p->norm)
                w = read_eight(p->norm, i, n);
        }
        if (p->norm) {
#pragma unroll
            for (int j = 0; j < 8; j++)
                e.v[j] = e.v[j] * scale * w.v[j];
            if (tap_norm && i < n)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    tap_norm[i + j] = plain_nan(e.v[j]);
        }
        quantise_superblock(e, sb, n, k, b32, tap_k, tap_32);
    }
}

#endif
