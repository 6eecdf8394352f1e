/* engine/cuda/fused.cu: a prompt's small ops, several in one launch. What one op hands to the next stays in a block's
 * shared memory or in registers; the arithmetic is that of simple.cuh and tc_rows.cuh. */
#include "cuda/fused.h"

#include "cuda/simple.cuh"
#include "cuda/tc_rows.cuh"

#include <cuda_runtime.h>

enum { AHEAD = 4, WIDE_ROW = 512, SMALL_BLOCK = 128, PLAIN_SHARED = 48 << 10, MOST_SHARED = 96 << 10 };

/* ---- a row into the forms that are wanted ------------------------------------------------------------------------ */

/* struct cuda_quantised by value; a form that is not wanted has NULL for its data. */
struct forms {
    struct cuda_act k, b32;
    uint8_t *tap_k, *tap_b32;
    struct row_out tc;
};

static struct forms make_forms(const struct cuda_quantised *q, int n) {
    struct forms f = {};
    if (q->k)
        f.k = *q->k;
    if (q->b32)
        f.b32 = *q->b32;
    if (q->tc)
        f.tc = make_row_out(q->tc, n, q->tap_tc);
    f.tap_k = q->tap_k;
    f.tap_b32 = q->tap_b32;
    return f;
}

/* The warp's superblock in both block formats. */
static __device__ inline void store_blocks(const struct forms &f, int64_t m, int n, int sb, float4 a, float4 b) {
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const bool inside = sb * COLS + 8 * (int)(threadIdx.x % WARP) < n;
    if (f.k.q)
        quantise_superblock(v, inside, n, f.k, m, sb, f.tap_k);
    if (f.b32.q)
        quantise_superblock(v, inside, n, f.b32, m, sb, f.tap_b32);
}

/* Row m of n values by the whole block: value(i) gives four of them from column 4 * i on. Where a block format is
 * wanted, every thread may ask for every i. */
template <int THREADS, class Value>
static __device__ inline void store_row(const struct forms &f, int64_t m, int n, Value value) {
    const int lane = threadIdx.x % WARP, n_sb = f.k.q || f.b32.q ? (n + COLS - 1) / COLS : 0;
    for (int sb = threadIdx.x / WARP; sb < n_sb; sb += THREADS / WARP) {
        const int i = sb * COLS / 4 + 2 * lane;
        const bool inside = 4 * i < n; /* n is a multiple of 32 */
        const float4 none = make_float4(0, 0, 0, 0);
        const float4 a = inside ? value(i) : none, b = inside ? value(i + 1) : none;
        store_blocks(f, m, n, sb, a, b);
    }
    if (f.tc.data)
        convert_row<AHEAD, THREADS>(f.tc, (int)m, n, value);
}

/* ---- four values at a time --------------------------------------------------------------------------------------- */

/* Quads first, first + THREADS, ... of a row, asked for together. */
template <int THREADS>
static __device__ inline void load_ahead(float4 v[AHEAD], const float *row, int first, int n_quads) {
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        v[k] = first + k * THREADS < n_quads ? ((const float4 *)row)[first + k * THREADS] : make_float4(0, 0, 0, 0);
}

static __device__ inline float4 add_quads(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

static __device__ inline float4 scale_quad(float4 x, float s, float4 w) {
    return make_float4(x.x * s * w.x, x.y * s * w.y, x.z * s * w.z, x.w * s * w.w);
}

static __device__ inline float4 swiglu_quad(float4 gate, float4 up) {
    return make_float4(swiglu_of(gate.x, up.x), swiglu_of(gate.y, up.y), swiglu_of(gate.z, up.z),
                       swiglu_of(gate.w, up.w));
}

/* ---- addition, norm, quantising: a block a row ------------------------------------------------------------------- */

struct norm_row {
    const float *a, *b, *w;
    float *sum, *norm;
    float eps;
    int n;
    struct forms out;
};

static __global__ void __launch_bounds__(RMS_LANES) add_norm(const struct norm_row t) {
    extern __shared__ float4 row[];
    const int first = threadIdx.x, n = t.n, n_quads = n / 4;
    const int64_t begin = (int64_t)blockIdx.x * n;
    float4 w[AHEAD], x[AHEAD], y[AHEAD];
    load_ahead<RMS_LANES>(w, t.w, first, n_quads); /* before they are needed */
    for (int i = first; i < n_quads; i += AHEAD * RMS_LANES) {
        load_ahead<RMS_LANES>(x, t.a + begin, i, n_quads);
        if (t.b)
            load_ahead<RMS_LANES>(y, t.b + begin, i, n_quads);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int at = i + k * RMS_LANES;
            if (at >= n_quads)
                break;
            row[at] = t.b ? add_quads(x[k], y[k]) : x[k];
            if (t.sum)
                ((float4 *)(t.sum + begin))[at] = row[at];
        }
    }
    __syncthreads();
    double sum = 0.0;
#pragma unroll 4
    for (int i = first; i < n; i += RMS_LANES)
        sum = add_square(sum, ((const float *)row)[i]);
    const float s = rms_scale(sum, n, t.eps);
    for (int i = first; i < n_quads; i += AHEAD * RMS_LANES) {
        if (i != first)
            load_ahead<RMS_LANES>(w, t.w, i, n_quads);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int at = i + k * RMS_LANES;
            if (at >= n_quads)
                break;
            row[at] = scale_quad(row[at], s, w[k]);
            if (t.norm)
                ((float4 *)(t.norm + begin))[at] = row[at];
        }
    }
    __syncthreads();
    store_row<RMS_LANES>(t.out, blockIdx.x, n, [=](int i) { return row[i]; });
}

void cuda_add_norm(struct CUstream_st *stream, const struct cuda_add_norm *args) {
    struct norm_row t = {args->a,    args->b,   args->w, args->b ? args->sum : NULL,
                         args->norm, args->eps, args->n, make_forms(&args->out, args->n)};
    const int bytes = args->n * (int)sizeof(float);
    if (bytes > PLAIN_SHARED)
        (void)cudaFuncSetAttribute(add_norm, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    add_norm<<<(unsigned)args->n_pos, RMS_LANES, (size_t)bytes, stream>>>(t);
}

/* ---- SwiGLU, quantising ------------------------------------------------------------------------------------------ */

struct swiglu_rows {
    const float *gate, *up;
    float *y;
    int n, n_pos, n_kept;
    struct forms out;
};

/* Block formats and floats: a warp a superblock, as each stands for itself. */
static __global__ void __launch_bounds__(SMALL_BLOCK) swiglu_blocks(const struct swiglu_rows t) {
    const int lane = threadIdx.x % WARP, n_sb = (t.n + COLS - 1) / COLS;
    const int64_t warp = (int64_t)blockIdx.x * (SMALL_BLOCK / WARP) + threadIdx.x / WARP, m = warp / n_sb;
    if (m >= t.n_pos)
        return;
    const int sb = (int)(warp % n_sb), column = sb * COLS + 8 * lane;
    float4 a = make_float4(0, 0, 0, 0), b = a;
    if (column < t.n) {
        const int64_t at = (m * t.n + column) / 4;
        const float4 *gate = (const float4 *)t.gate + at, *up = (const float4 *)t.up + at;
        const float4 g0 = gate[0], g1 = gate[1], u0 = up[0], u1 = up[1];
        a = swiglu_quad(g0, u0);
        b = swiglu_quad(g1, u1);
        if (t.y) {
            ((float4 *)t.y)[at] = a;
            ((float4 *)t.y)[at + 1] = b;
        }
    }
    store_blocks(t.out, m, t.n, sb, a, b);
}

/* With a form that knows the whole row first: a block a row. What shared memory has no room for is computed again. */
static __global__ void __launch_bounds__(WIDE_ROW) swiglu_row(const struct swiglu_rows t) {
    extern __shared__ float4 row[];
    const int first = threadIdx.x, n_quads = t.n / 4, n_kept = t.n_kept / 4;
    const int64_t begin = (int64_t)blockIdx.x * t.n;
    const float *gate = t.gate + begin, *up = t.up + begin;
    for (int i = first; i < n_quads; i += AHEAD * WIDE_ROW) {
        float4 g[AHEAD], u[AHEAD];
        load_ahead<WIDE_ROW>(g, gate, i, n_quads);
        load_ahead<WIDE_ROW>(u, up, i, n_quads);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int at = i + k * WIDE_ROW;
            if (at >= n_quads)
                break;
            const float4 v = swiglu_quad(g[k], u[k]);
            if (at < n_kept)
                row[at] = v;
            if (t.y)
                ((float4 *)(t.y + begin))[at] = v;
        }
    }
    __syncthreads();
    store_row<WIDE_ROW>(t.out, blockIdx.x, t.n, [=](int i) {
        return i < n_kept ? row[i] : swiglu_quad(((const float4 *)gate)[i], ((const float4 *)up)[i]);
    });
}

void cuda_swiglu_quantise(struct CUstream_st *stream, const struct cuda_swiglu_quantise *args) {
    const int most = MOST_SHARED / (int)sizeof(float), n_kept = args->n < most ? args->n : most;
    const int bytes = n_kept * (int)sizeof(float);
    struct swiglu_rows t = {
        args->gate, args->up, args->y, args->n, args->n_pos, n_kept, make_forms(&args->out, args->n)};
    if (!args->out.tc) {
        const int64_t n_warps = (int64_t)args->n_pos * ((args->n + COLS - 1) / COLS), per_block = SMALL_BLOCK / WARP;
        swiglu_blocks<<<(unsigned)((n_warps + per_block - 1) / per_block), SMALL_BLOCK, 0, stream>>>(t);
        return;
    }
    if (bytes > PLAIN_SHARED)
        (void)cudaFuncSetAttribute(swiglu_row, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    swiglu_row<<<(unsigned)args->n_pos, WIDE_ROW, (size_t)bytes, stream>>>(t);
}

/* ---- rope and the cache's rows: WIDTH pairs, or WIDTH values, a thread ------------------------------------------- */

template <int WIDTH> static __device__ inline void load_values(float *v, const float *from) {
    if (WIDTH == 4)
        *(float4 *)v = *(const float4 *)from;
    else
        v[0] = from[0];
}

/* WIDTH values from `at` on of a head, where it is wanted: as they are, and in the cache. */
template <int WIDTH>
static __device__ inline void store_values(float *head, uint8_t *cached, enum fwd_dtype type, int at, const float *v) {
    if (head) {
        if (WIDTH == 4)
            *(float4 *)(head + at) = make_float4(v[0], v[1], v[2], v[3]);
        else
            head[at] = v[0];
    }
    if (!cached)
        return;
    if (type == FWD_F16 && WIDTH == 4)
        *(uint2 *)((uint16_t *)cached + at) = make_uint2(cuda_f32_to_f16(v[0]) | (uint32_t)cuda_f32_to_f16(v[1]) << 16,
                                                         cuda_f32_to_f16(v[2]) | (uint32_t)cuda_f32_to_f16(v[3]) << 16);
    else if (type == FWD_F16)
        ((uint16_t *)cached)[at] = cuda_f32_to_f16(v[0]);
    else
        store_values<WIDTH>((float *)cached, NULL, FWD_F32, at, v);
}

/* WIDTH pairs from pair i on of a head, turned by c and s in turns. NORM's pairs are neighbours, NEOX's half apart. */
template <int WIDTH>
static __device__ inline void turn_pairs(const float *from, float *to, uint8_t *cached, enum fwd_dtype type,
                                         const float *turn, int i, int half, bool neox) {
    const int at = neox ? i : 2 * i, gap = neox ? half : WIDTH;
    alignas(16) float x[2 * WIDTH], y[2 * WIDTH], cs[2 * WIDTH];
    load_values<WIDTH>(x, from + at);
    load_values<WIDTH>(x + WIDTH, from + at + gap);
    load_values<WIDTH>(cs, turn + 2 * i);
    load_values<WIDTH>(cs + WIDTH, turn + 2 * i + WIDTH);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float c = cs[2 * k], s = cs[2 * k + 1];
        if (neox) {
            y[k] = turned_first(x[k], x[k + WIDTH], c, s);
            y[k + WIDTH] = turned_second(x[k], x[k + WIDTH], c, s);
        } else {
            y[2 * k] = turned_first(x[2 * k], x[2 * k + 1], c, s);
            y[2 * k + 1] = turned_second(x[2 * k], x[2 * k + 1], c, s);
        }
    }
    store_values<WIDTH>(to, cached, type, at, y);
    store_values<WIDTH>(to, cached, type, at + gap, y + WIDTH);
}

static __device__ inline uint8_t *cache_row(const struct cuda_kv &kv, int head, int64_t pos) {
    return (uint8_t *)kv.data + head * kv.stride_head + pos * kv.stride_row;
}

/* blockIdx.x is the position. Items of one: q's heads, k's heads, v's heads. */
template <int WIDTH> static __global__ void __launch_bounds__(SMALL_BLOCK) rope_store(const struct cuda_rope_store t) {
    const int dim = t.cache_k.head_dim, n_kv = t.cache_k.n_kv_head, half = t.n_rope / 2, m = (int)blockIdx.x;
    const int per_head = (half + dim - t.n_rope) / WIDTH, per_v = dim / WIDTH;
    int item = (int)(blockIdx.y * SMALL_BLOCK + threadIdx.x);
    const bool is_q = item < t.n_head * per_head;
    item -= is_q ? 0 : t.n_head * per_head;
    alignas(16) float v[WIDTH];
    if (!is_q && item >= n_kv * per_head) {
        item -= n_kv * per_head;
        const int head = item / per_v, at = item % per_v * WIDTH;
        if (head >= n_kv)
            return;
        load_values<WIDTH>(v, t.v + ((int64_t)m * n_kv + head) * dim + at);
        store_values<WIDTH>(NULL, cache_row(t.cache_v, head, t.pos0 + m), t.cache_v.type, at, v);
        return;
    }
    const int head = item / per_head, i = item % per_head * WIDTH;
    const int64_t begin = ((int64_t)m * (is_q ? t.n_head : n_kv) + head) * dim;
    const float *from = (is_q ? t.q : t.k) + begin;
    float *to = is_q ? t.q_rot + begin : t.k_rot ? t.k_rot + begin : NULL;
    uint8_t *cached = is_q ? NULL : cache_row(t.cache_k, head, t.pos0 + m);
    if (i < half) {
        turn_pairs<WIDTH>(from, to, cached, t.cache_k.type, t.turn + (int64_t)(t.pos0 + m) * t.n_rope, i, half, t.neox);
        return;
    }
    load_values<WIDTH>(v, from + t.n_rope + i - half);
    store_values<WIDTH>(to, cached, t.cache_k.type, t.n_rope + i - half, v);
}

/* Whether four values of every head lie at multiples of what four values take. */
static bool in_fours(const struct cuda_kv *kv) {
    const int64_t four = kv->type == FWD_F16 ? 8 : 16;
    return kv->stride_head % four == 0 && kv->stride_row % four == 0 && (int64_t)(intptr_t)kv->data % four == 0;
}

void cuda_rope_store(struct CUstream_st *stream, const struct cuda_rope_store *args) {
    const int dim = args->cache_k.head_dim, n_kv = args->cache_k.n_kv_head;
    const bool wide = dim % 4 == 0 && args->n_rope % 8 == 0 && in_fours(&args->cache_k) && in_fours(&args->cache_v);
    const int width = wide ? 4 : 1, per_head = (dim - args->n_rope / 2) / width;
    const int n_items = (args->n_head + n_kv) * per_head + n_kv * (dim / width);
    const dim3 grid((unsigned)args->n_pos, (unsigned)((n_items + SMALL_BLOCK - 1) / SMALL_BLOCK));
    if (wide)
        rope_store<4><<<grid, SMALL_BLOCK, 0, stream>>>(*args);
    else
        rope_store<1><<<grid, SMALL_BLOCK, 0, stream>>>(*args);
}
