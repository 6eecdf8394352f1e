/* engine/cuda/simple.cuh: the arithmetic of the ops that touch each value once or twice, for simple.cu, where each is a
 * launch, and fused.cu, where several are. */
#ifndef ENGINE_CUDA_SIMPLE_CUH
#define ENGINE_CUDA_SIMPLE_CUH

#include "cuda/expf.cuh"
#include "cuda/half.cuh"
#include "cuda/kernels.h"

enum { WARP = 32, RMS_LANES = 256 };

/* ---- rmsnorm: thread l of RMS_LANES is lane l -------------------------------------------------------------------- */

/* Fused or not is the same: squares of floats are exact in F64. */
static __device__ inline double add_square(double sum, float x) {
    double v = (double)x;
    return __fma_rn(v, v, sum);
}

/* What the row's values are multiplied with, from the lanes' sums of squares. The block waits for all its threads. */
static __device__ inline float rms_scale(double sum, int n, float eps) {
    __shared__ double lane[RMS_LANES];
    __shared__ float shared_scale;
    const int l = threadIdx.x;
    lane[l] = sum;
    __syncthreads();
    if (l < WARP) {
        /* (l, l+128), (l, l+64), (l, l+32): by hand for the lanes l, l+32, l+64, l+96 */
        double a = lane[l] + lane[l + 128], b = lane[l + 32] + lane[l + 160];
        double c = lane[l + 64] + lane[l + 192], d = lane[l + 96] + lane[l + 224];
        sum = (a + c) + (b + d);
        for (int half = WARP / 2; half > 0; half /= 2)
            sum += __shfl_xor_sync(~0u, sum, half);
        if (l == 0)
            shared_scale = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    }
    __syncthreads();
    return shared_scale;
}

/* ---- quantised activations: a warp a superblock, 8 neighbouring values a lane ------------------------------------ */
enum { Q8_K_BYTES = 292, Q8_K_Q = 4, Q8_K_SUM = 260, Q8_32_BYTES = 40, Q8_32_SUM = 4, Q8_32_Q = 8, COLS = 256 };

/* The lane's 8 values as they lie in memory, and their sum. */
struct eight {
    uint32_t word[2];
    int sum;
};

static __device__ inline void store_planes(const struct cuda_act &out, int64_t row, int sb, int lane, struct eight q,
                                           float d, int sum16) {
    *(uint2 *)(out.q + row * out.n_sb * COLS + sb * COLS + 8 * lane) = make_uint2(q.word[0], q.word[1]);
    if (lane % 2 == 0)
        out.sum[row * out.n_sb * 16 + sb * 16 + lane / 2] = (int16_t)sum16;
    if (out.format == FWD_Q8_K && lane == 0)
        out.d[row * out.n_sb + sb] = d;
    if (out.format == FWD_Q8_32 && lane % 4 == 0)
        out.d[row * out.n_sb * 8 + sb * 8 + lane / 4] = d;
}

static __device__ inline void store_tap(enum fwd_dtype format, uint8_t *row, int sb, int lane, struct eight q, float d,
                                        int sum16, int sum32) {
    if (format == FWD_Q8_K) {
        uint8_t *block = row + (int64_t)sb * Q8_K_BYTES;
        uint32_t *to = (uint32_t *)(block + Q8_K_Q + 8 * lane);
        to[0] = q.word[0];
        to[1] = q.word[1];
        if (lane % 2 == 0)
            ((int16_t *)(block + Q8_K_SUM))[lane / 2] = (int16_t)sum16;
        if (lane == 0)
            *(float *)block = d;
        return;
    }
    uint8_t *block = row + (int64_t)(sb * 8 + lane / 4) * Q8_32_BYTES;
    uint32_t *to = (uint32_t *)(block + Q8_32_Q + 8 * (lane % 4));
    to[0] = q.word[0];
    to[1] = q.word[1];
    if (lane % 4 == 0) {
        *(int32_t *)(block + Q8_32_SUM) = sum32;
        *(float *)block = d;
    }
}

/* q of the lane's values in a block of which amax_bits are the largest magnitude's bits (NaN above infinity). */
static __device__ inline struct eight quantise_eight(const float v[8], uint32_t amax_bits, float *d) {
    struct eight q = {{0, 0}, 0};
    const float amax = __uint_as_float(amax_bits);
    if (amax_bits >= 0x7f800000u) {
        *d = __uint_as_float(0x7fc00000u);
        return q;
    }
    *d = 0.0f;
    if (amax < 0x1p-100f)
        return q;
    *d = __fdiv_rn(amax, 127.0f);
    const float id = __fdiv_rn(127.0f, amax);
    for (int i = 0; i < 8; i++) {
        int r = __float2int_rn(v[i] * id);
        r = r > 127 ? 127 : r < -127 ? -127 : r;
        q.word[i / 4] |= (uint32_t)(r & 255) << 8 * (i % 4);
        q.sum += r;
    }
    return q;
}

/* The warp's superblock: v is the lane's share, all zeros where it is not inside the row's n values. tap: as in
 * cuda_quantise. */
static __device__ inline void quantise_superblock(const float v[8], bool inside, int n, const struct cuda_act &out,
                                                  int64_t row, int sb, uint8_t *tap) {
    const int lane = threadIdx.x % WARP;
    uint32_t amax = 0;
    for (int i = 0; i < 8; i++)
        amax = max(amax, __float_as_uint(v[i]) & 0x7fffffffu);
    for (int far = 1; far < (out.format == FWD_Q8_K ? WARP : 4); far *= 2)
        amax = max(amax, __shfl_xor_sync(~0u, amax, far));
    float d;
    struct eight q = quantise_eight(v, amax, &d);
    int sum16 = q.sum + __shfl_xor_sync(~0u, q.sum, 1);
    int sum32 = sum16 + __shfl_xor_sync(~0u, sum16, 2);
    store_planes(out, row, sb, lane, q, d, sum16);
    if (tap != NULL && inside)
        store_tap(out.format, tap + row * (out.format == FWD_Q8_K ? n / COLS * Q8_K_BYTES : n / 32 * Q8_32_BYTES), sb,
                  lane, q, d, sum16, sum32);
}

/* ---- value by value ---------------------------------------------------------------------------------------------- */

/* A pair turned by the angle of which c and s are cosine and sine. */
static __device__ inline float turned_first(float x0, float x1, float c, float s) {
    return x0 * c - x1 * s;
}

static __device__ inline float turned_second(float x0, float x1, float c, float s) {
    return x0 * s + x1 * c;
}

static __device__ inline float swiglu_of(float gate, float up) {
    const float e = cuda_expf_flat(-fabsf(gate)), num = gate < 0.0f ? gate * e : gate;
    return __fdiv_rn(num, 1.0f + e) * up;
}

#endif
