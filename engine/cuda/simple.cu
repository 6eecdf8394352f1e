/* engine/cuda/simple.cu: the ops that touch each value once or twice: norm, quantising, rope, the KV cache's rows,
 * SwiGLU, addition. Definitions: the heads of ops/rmsnorm, ops/act_quant, ops/rope, ops/swiglu, ops/add. */
#include "cuda/simple.cuh"

#include <cuda_runtime.h>

enum { THREADS = RMS_LANES };

static unsigned blocks_for(int64_t n, int per_block) {
    const int64_t most = 4096, n_blocks = (n + per_block - 1) / per_block;
    return (unsigned)(n_blocks < most ? n_blocks : most);
}

static __device__ int64_t first_item() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ int64_t item_step() {
    return (int64_t)gridDim.x * blockDim.x;
}

/* ---- rmsnorm: thread l is lane l -------------------------------------------------------------------------------- */
static __global__ void __launch_bounds__(THREADS) rmsnorm(const float *x, const float *w, float *y, int n, float eps) {
    const int l = threadIdx.x;
    x += (int64_t)blockIdx.x * n;
    y += (int64_t)blockIdx.x * n;
    double sum = 0.0;
    for (int i = l; i < n; i += THREADS)
        sum = add_square(sum, x[i]);
    const float s = rms_scale(sum, n, eps);
    for (int i = l; i < n; i += THREADS)
        y[i] = x[i] * s * w[i];
}

void cuda_rmsnorm(struct CUstream_st *stream, const float *x, const float *w, float *y, int n, int n_pos, float eps) {
    rmsnorm<<<(unsigned)n_pos, THREADS, 0, stream>>>(x, w, y, n, eps);
}

/* ---- quantised activations: a warp a superblock, 8 neighbouring values a lane ------------------------------------ */
static __global__ void __launch_bounds__(4 * WARP)
    quantise(const float *x, int n, int n_pos, const struct cuda_act out, uint8_t *tap) {
    const int lane = threadIdx.x % WARP;
    const int64_t warp = (int64_t)blockIdx.x * 4 + threadIdx.x / WARP;
    const int64_t row = warp / out.n_sb;
    if (row >= n_pos)
        return;
    const int sb = (int)(warp % out.n_sb), column = sb * COLS + 8 * lane;
    const bool inside = column < n; /* n is a multiple of 32: a lane's values are in or out together */
    const float4 *from = (const float4 *)(x + row * n + column), none = make_float4(0, 0, 0, 0);
    const float4 a = inside ? from[0] : none, b = inside ? from[1] : none;
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    quantise_superblock(v, inside, n, out, row, sb, tap);
}

void cuda_quantise(struct CUstream_st *stream, const float *x, int n, int n_pos, const struct cuda_act *out,
                   uint8_t *tap) {
    unsigned n_blocks = (unsigned)(((int64_t)n_pos * out->n_sb + 3) / 4);
    quantise<<<n_blocks, 4 * WARP, 0, stream>>>(x, n, n_pos, *out, tap);
}

/* The sums are the tap's own, so that planes mean what the tap said even where its sums are wrong: of two sums of 16
 * that make one of 32 the second is what the first leaves. */
static __global__ void __launch_bounds__(4 * WARP)
    act_from_tap(const uint8_t *tap, int n, int n_pos, const struct cuda_act out) {
    const int lane = threadIdx.x % WARP;
    const int64_t warp = (int64_t)blockIdx.x * 4 + threadIdx.x / WARP;
    const int64_t row = warp / out.n_sb;
    if (row >= n_pos)
        return;
    const int sb = (int)(warp % out.n_sb), column = sb * COLS + 8 * lane;
    struct eight q = {{0, 0}, 0};
    float d = 0.0f;
    int sum16 = 0, sum32 = 0;
    if (out.format == FWD_Q8_K) {
        const uint8_t *block = tap + (row * (n / COLS) + sb) * Q8_K_BYTES;
        const uint32_t *from = (const uint32_t *)(block + Q8_K_Q + 8 * lane);
        q.word[0] = from[0];
        q.word[1] = from[1];
        d = *(const float *)block;
        sum16 = ((const int16_t *)(block + Q8_K_SUM))[lane / 2];
    } else if (column < n) {
        const uint8_t *block = tap + (row * (n / 32) + column / 32) * Q8_32_BYTES;
        const uint32_t *from = (const uint32_t *)(block + Q8_32_Q + 8 * (lane % 4));
        q.word[0] = from[0];
        q.word[1] = from[1];
        d = *(const float *)block;
        sum32 = *(const int32_t *)(block + Q8_32_SUM);
    }
    if (out.format == FWD_Q8_32) {
        q.sum = __dp4a((int)q.word[0], 0x01010101, __dp4a((int)q.word[1], 0x01010101, 0));
        sum16 = q.sum + __shfl_xor_sync(~0u, q.sum, 1);
        int first = __shfl_sync(~0u, sum16, lane & ~3);
        sum16 = lane & 2 ? sum32 - first : sum16;
    }
    store_planes(out, row, sb, lane, q, d, sum16);
}

void cuda_act_from_tap(struct CUstream_st *stream, const uint8_t *tap, int n, int n_pos, const struct cuda_act *out) {
    unsigned n_blocks = (unsigned)(((int64_t)n_pos * out->n_sb + 3) / 4);
    act_from_tap<<<n_blocks, 4 * WARP, 0, stream>>>(tap, n, n_pos, *out);
}

/* ---- rope: an item is a pair, or a value past n_rope --------------------------------------------------------------
 */
static __global__ void rope(const float *x, float *y, const float *turn, int n_heads, int head_dim, int n_rope,
                            bool neox, int64_t n_items) {
    const int half = n_rope / 2, per_head = half + head_dim - n_rope;
    for (int64_t item = first_item(); item < n_items; item += item_step()) {
        const int64_t head = item / per_head; /* of all positions */
        const int i = (int)(item % per_head);
        const float *from = x + head * head_dim;
        float *to = y + head * head_dim;
        if (i >= half) {
            to[n_rope + i - half] = from[n_rope + i - half];
            continue;
        }
        const float *cs = turn + (head / n_heads * half + i) * 2;
        const int at = neox ? i : 2 * i, gap = neox ? half : 1;
        const float x0 = from[at], x1 = from[at + gap], c = cs[0], s = cs[1];
        to[at] = turned_first(x0, x1, c, s);
        to[at + gap] = turned_second(x0, x1, c, s);
    }
}

void cuda_rope(struct CUstream_st *stream, const float *x, float *y, const float *turn, int pos0, int n_pos,
               int n_heads, int head_dim, int n_rope, bool neox) {
    int64_t n_items = (int64_t)n_pos * n_heads * (n_rope / 2 + head_dim - n_rope);
    const float *row0 = turn + (int64_t)pos0 * (n_rope / 2) * 2;
    rope<<<blocks_for(n_items, THREADS), THREADS, 0, stream>>>(x, y, row0, n_heads, head_dim, n_rope, neox, n_items);
}

/* ---- rows into the KV cache ---------------------------------------------------------------------------------------
 */
static __global__ void kv_store(const float *x, const struct cuda_kv kv, int pos0, int64_t n_items) {
    for (int64_t item = first_item(); item < n_items; item += item_step()) {
        const int d = (int)(item % kv.head_dim);
        const int64_t head = item / kv.head_dim;
        uint8_t *row =
            (uint8_t *)kv.data + head % kv.n_kv_head * kv.stride_head + (pos0 + head / kv.n_kv_head) * kv.stride_row;
        if (kv.type == FWD_F16)
            ((uint16_t *)row)[d] = cuda_f32_to_f16(x[item]);
        else
            ((float *)row)[d] = x[item];
    }
}

void cuda_kv_store(struct CUstream_st *stream, const float *x, const struct cuda_kv *kv, int pos0, int n_pos) {
    int64_t n_items = (int64_t)n_pos * kv->n_kv_head * kv->head_dim;
    kv_store<<<blocks_for(n_items, THREADS), THREADS, 0, stream>>>(x, *kv, pos0, n_items);
}

/* ---- element by element -------------------------------------------------------------------------------------------
 */
/* How many fours of n values can be read as such: none where an array does not start on 16 bytes. */
static int64_t fours(const void *a, const void *b, const void *c, int64_t n) {
    return ((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % sizeof(float4) == 0 ? n / 4 : 0;
}

static __global__ void swiglu(const float *gate, const float *up, float *y, int64_t n4, int64_t n) {
    for (int64_t i = first_item(); i < n4; i += item_step()) {
        const float4 g = ((const float4 *)gate)[i], u = ((const float4 *)up)[i];
        ((float4 *)y)[i] =
            make_float4(swiglu_of(g.x, u.x), swiglu_of(g.y, u.y), swiglu_of(g.z, u.z), swiglu_of(g.w, u.w));
    }
    for (int64_t i = 4 * n4 + first_item(); i < n; i += item_step())
        y[i] = swiglu_of(gate[i], up[i]);
}

void cuda_swiglu(struct CUstream_st *stream, const float *gate, const float *up, float *y, int64_t n) {
    const int64_t n4 = fours(gate, up, y, n);
    swiglu<<<blocks_for(n4 > 0 ? n4 : n, THREADS), THREADS, 0, stream>>>(gate, up, y, n4, n);
}

static __global__ void add(const float *a, const float *b, float *y, int64_t n4, int64_t n) {
    for (int64_t i = first_item(); i < n4; i += item_step()) {
        const float4 v = ((const float4 *)a)[i], w = ((const float4 *)b)[i];
        ((float4 *)y)[i] = make_float4(v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w);
    }
    for (int64_t i = 4 * n4 + first_item(); i < n; i += item_step())
        y[i] = a[i] + b[i];
}

void cuda_add(struct CUstream_st *stream, const float *a, const float *b, float *y, int64_t n) {
    const int64_t n4 = fours(a, b, y, n);
    add<<<blocks_for(n4 > 0 ? n4 : n, THREADS), THREADS, 0, stream>>>(a, b, y, n4, n);
}

static __global__ void scribble(uint8_t *data, int64_t n) {
    const uint32_t nan = 0x7fbadbadu;
    for (int64_t i = first_item(); i < n / 4; i += item_step())
        ((uint32_t *)data)[i] = nan;
    if (first_item() == 0)
        for (int64_t i = n / 4 * 4; i < n; i++)
            data[i] = (uint8_t)(nan >> 8 * (i % 4));
}

void cuda_scribble(struct CUstream_st *stream, void *data, size_t n_bytes) {
    int64_t n = (int64_t)n_bytes;
    if (n > 0)
        scribble<<<blocks_for((n + 3) / 4, THREADS), THREADS, 0, stream>>>((uint8_t *)data, n);
}
