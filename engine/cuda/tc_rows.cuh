/* engine/cuda/tc_rows.cuh: a block turns one row of floats, wherever they come from, into what a product reads: BF16,
 * or E4M3 with the row's scale. The values stay in registers between the search for the largest and the rounding. */
#ifndef ENGINE_CUDA_TC_ROWS_CUH
#define ENGINE_CUDA_TC_ROWS_CUH

#include "cuda/e4m3.cuh"
#include "cuda/kernels_tc.h"
#include "cuda/tc_mma.cuh"

enum { ROW_THREADS = 256 };

struct row_out {
    enum cuda_form form;
    uint8_t *data; /* of position 0 */
    float *scale;
    int64_t ld_bytes;
    uint8_t *tap; /* of position 0, or NULL */
    int64_t tap_bytes;
};

static inline struct row_out make_row_out(const struct cuda_tc_act *out, int n, uint8_t *tap) {
    struct row_out r;
    bool bf16 = out->form == CUDA_FORM_BF16;
    r.form = out->form;
    r.data = (uint8_t *)out->data;
    r.scale = out->scale;
    r.ld_bytes = out->ld * (bf16 ? 2 : 1);
    r.tap = tap;
    r.tap_bytes = bf16 ? 2 * (int64_t)n : (int64_t)n + 4; /* as fwd_dtype_row_bytes */
    return r;
}

static __device__ inline uint32_t magnitude_bits(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}

/* The largest value of a block of WARPS, in every thread. shared: WARPS words, free again after the next barrier. */
template <int WARPS> static __device__ inline uint32_t block_max(uint32_t x, uint32_t *shared) {
    x = __reduce_max_sync(0xffffffffu, x);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++)
        x = max(x, shared[i]);
    return x;
}

static __device__ inline uint2 bf16_quad(float4 v) {
    return {pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
}

static __device__ inline uint32_t e4m3_quad(float4 v, struct e4m3_scale s) {
    return (uint32_t)e4m3_code(v.x, s) | (uint32_t)e4m3_code(v.y, s) << 8 | (uint32_t)e4m3_code(v.z, s) << 16 |
           (uint32_t)e4m3_code(v.w, s) << 24;
}

/* Four values of row m from column 4 * i on. */
static __device__ inline void store_quad(const struct row_out &out, int m, int i, float4 v, struct e4m3_scale s) {
    if (out.form == CUDA_FORM_BF16) {
        uint2 q = bf16_quad(v);
        *(uint2 *)(out.data + m * out.ld_bytes + 8 * i) = q;
        if (out.tap)
            *(uint2 *)(out.tap + m * out.tap_bytes + 8 * i) = q;
    } else {
        uint32_t q = e4m3_quad(v, s);
        *(uint32_t *)(out.data + m * out.ld_bytes + 4 * i) = q;
        if (out.tap)
            *(uint32_t *)(out.tap + m * out.tap_bytes + 4 + 4 * i) = q;
    }
}

/* Row m of n values, n a multiple of 4: value(i) gives four of them from column 4 * i on, the same each time it is
 * asked, which thread i % THREADS does. QUADS * THREADS quads stay in registers, any further ones are asked for again.
 */
template <int QUADS, int THREADS = ROW_THREADS, class Value>
static __device__ inline void convert_row(const struct row_out &out, int m, int n, Value value) {
    __shared__ uint32_t shared[THREADS / 32];
    int first = (int)threadIdx.x, n_quads = n / 4;
    float4 kept[QUADS];
    uint32_t top = 0;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        int i = first + k * THREADS;
        kept[k] = i < n_quads ? value(i) : make_float4(0, 0, 0, 0);
        top = max(max(top, magnitude_bits(kept[k].x)), magnitude_bits(kept[k].y));
        top = max(max(top, magnitude_bits(kept[k].z)), magnitude_bits(kept[k].w));
    }
    struct e4m3_scale s = {0.0f, 0.0f};
    if (out.form == CUDA_FORM_E4M3) {
        for (int i = first + QUADS * THREADS; i < n_quads; i += THREADS) {
            float4 v = value(i);
            top = max(max(top, magnitude_bits(v.x)), magnitude_bits(v.y));
            top = max(max(top, magnitude_bits(v.z)), magnitude_bits(v.w));
        }
        s = e4m3_scale_of(block_max<THREADS / 32>(top, shared));
        if (threadIdx.x == 0) {
            out.scale[m] = s.d;
            if (out.tap)
                *(float *)(out.tap + m * out.tap_bytes) = s.d;
        }
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        if (first + k * THREADS < n_quads)
            store_quad(out, m, first + k * THREADS, kept[k], s);
    for (int i = first + QUADS * THREADS; i < n_quads; i += THREADS)
        store_quad(out, m, i, value(i), s);
}

#endif
