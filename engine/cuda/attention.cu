/* engine/cuda/attention.cu: causal attention in the arithmetic of ops/attention/attention.h.
 *
 * A block serves one KV head and ROWS rows: a row is a query head (one that reads this KV head) at a position, heads
 * fastest, so that neighbouring rows read the same keys. Segment by segment: scores of all rows into shared memory, K
 * passing through in chunks; probabilities in their place; weighted values in registers, V passing through.
 *   few rows    a block a segment as well; (max, sum, values) go to the scratch, and join_segments adds them in order
 *   many rows   a block walks its segments in order and joins them itself */
#include "cuda/expf.cuh"
#include "cuda/half.cuh"
#include "cuda/kernels.h"

#include <climits>
#include <cuda_runtime.h>

enum { THREADS = 256, SEGMENT = 256, LANES = 16 };
enum { P_STRIDE = SEGMENT + 16 };       /* two rows a warp: 16 banks apart */
static const int64_t SPLIT_ROWS = 4096; /* positions * heads up to which segments get blocks of their own */

/* What the kernels need, worked out by the host. */
struct plan {
    struct cuda_attention a;
    int n_segments;  /* of the last position */
    int padded;      /* head_dim rounded up to 16 */
    int stride;      /* floats from row to row of Q, K and V in shared memory: 16 mod 32 */
    int chunk;       /* keys in shared memory at a time, a multiple of 32 that divides 256 */
    bool vectors;    /* K and V rows can be read 4 values at a time */
    bool split;      /* a block a segment */
    float *part_o;   /* [n_pos][n_head][n_segments][head_dim] */
    float2 *part_ml; /* [n_pos][n_head][n_segments]: max, sum */
};

/* A row of the block, in shared memory. */
struct row {
    int head, pos; /* head -1: there is none */
    int n_keys;
    int n;              /* of these in the segment at hand */
    float max, sum;     /* of the segments so far */
    float old_w, new_w; /* a and b of the join */
};

static __device__ float4 widen(uint2 h) {
    return make_float4(cuda_f16_to_f32((uint16_t)h.x), cuda_f16_to_f32((uint16_t)(h.x >> 16)),
                       cuda_f16_to_f32((uint16_t)h.y), cuda_f16_to_f32((uint16_t)(h.y >> 16)));
}

static __device__ float4 widen(float4 f) {
    return f;
}

/* FOUR: four values as they are in the cache. A thread keeps to its columns; LOADS rows are on their way at a time. */
template <typename FOUR>
static __device__ void load_vectors(const struct plan &p, const uint8_t *from, int64_t stride_row, int head_dim,
                                    int n_valid, float *to) {
    enum { LOADS = 8 };
    const int quads = p.padded / 4, step = THREADS / quads, column = (int)threadIdx.x % quads;
    int key = (int)threadIdx.x / quads;
    if (key >= step)
        return;
    const bool inside = 4 * column < head_dim;
    from += column * (int)sizeof(FOUR);
    to += 4 * column;
#pragma unroll 1
    for (; key < p.chunk; key += LOADS * step) {
        FOUR raw[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            raw[i] = {};
            if (inside && key + i * step < min(n_valid, p.chunk))
                raw[i] = *(const FOUR *)(from + (key + i * step) * stride_row);
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (key + i * step < p.chunk)
                *(float4 *)(to + (key + i * step) * p.stride) = widen(raw[i]);
    }
}

/* Keys key0 .. key0 + chunk - 1 into shared memory as F32; rows from n_valid on and columns from head_dim on are 0. */
static __device__ void load_chunk(const struct plan &p, const struct cuda_kv &kv, int kv_head, int key0, int n_valid,
                                  float *to) {
    const uint8_t *from = (const uint8_t *)kv.data + kv_head * kv.stride_head + (int64_t)key0 * kv.stride_row;
    const int head_dim = kv.head_dim;
    if (p.vectors && kv.type == FWD_F16) {
        load_vectors<uint2>(p, from, kv.stride_row, head_dim, n_valid, to);
        return;
    }
    if (p.vectors) {
        load_vectors<float4>(p, from, kv.stride_row, head_dim, n_valid, to);
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < p.chunk * p.padded; i += THREADS) {
        const int key = i / p.padded, d = i % p.padded;
        float v = 0.0f;
        if (key < n_valid && d < head_dim) {
            const uint8_t *at = from + key * kv.stride_row;
            v = kv.type == FWD_F16 ? cuda_f16_to_f32(((const uint16_t *)at)[d]) : ((const float *)at)[d];
        }
        to[key * p.stride + d] = v;
    }
}

/* Keys on their way to the caches before they are asked for: `n` from key0 on, at most a chunk. */
static __device__ void prefetch_chunk(const struct plan &p, const struct cuda_kv &kv, int kv_head, int key0, int n) {
    const uint8_t *from = (const uint8_t *)kv.data + kv_head * kv.stride_head + (int64_t)key0 * kv.stride_row;
    const int line = 128, lines = (kv.head_dim * (kv.type == FWD_F16 ? 2 : 4) + line - 1) / line;
#pragma unroll 1
    for (int i = threadIdx.x; i < min(n, p.chunk) * lines; i += THREADS)
        asm volatile("prefetch.global.L1 [%0];" ::"l"(from + i / lines * kv.stride_row + i % lines * line));
}

static __device__ float4 fma4(float4 a, float4 b, float4 c) {
    return make_float4(__fmaf_rn(a.x, b.x, c.x), __fmaf_rn(a.y, b.y, c.y), __fmaf_rn(a.z, b.z, c.z),
                       __fmaf_rn(a.w, b.w, c.w));
}

/* Gives away one of two and adds what comes for the other. */
static __device__ float trade(bool upper, float a, float b, int far) {
    return (upper ? b : a) + __shfl_xor_sync(~0u, upper ? a : b, far);
}

enum { TILE_ROWS = 8, TILE_KEYS = 16 };

/* The level (l, l + 2 HALF) of the tree: of 2 HALF keys HALF stay. */
template <int HALF> static __device__ void trade_keys(int l, float sum[8][TILE_ROWS]) {
#pragma unroll
    for (int i = 0; i < HALF; i++)
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++)
            sum[i][r] = trade(l & 2 * HALF, sum[i][r], sum[i + HALF][r], 2 * HALF);
}

/* Scores of TILE_ROWS rows and TILE_KEYS keys by one warp. Thread (l = lane % 16, e = lane / 16) fuses lane l of all
 * rows times the keys 2i + e. The tree (l, l+8), (l, l+4), (l, l+2), (l, l+1) is a trade: at each level a thread gives
 * half of its sums away for the other half of its partner's, until it holds 4 whole ones. */
static __device__ void score_tile(const struct plan &p, const float *q, const float *k, float *out) {
    const int l = threadIdx.x % LANES, e = threadIdx.x % 32 / LANES;
    q += l;
    k += e * p.stride + l;
    float sum[8][TILE_ROWS]; /* [i][row] */
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++)
            sum[i][r] = 0.0f;
#pragma unroll 2
    for (int d = 0; d < p.padded; d += LANES) {
        float key[8], query[TILE_ROWS];
#pragma unroll
        for (int i = 0; i < 8; i++)
            key[i] = k[2 * i * p.stride + d];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++)
            query[r] = q[r * p.stride + d];
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++)
                sum[i][r] = __fmaf_rn(query[r], key[i], sum[i][r]);
    }
    trade_keys<4>(l, sum);
    trade_keys<2>(l, sum);
    trade_keys<1>(l, sum);
    out += (l & 1) * 4 * P_STRIDE + l / 2 * 2 + e;
#pragma unroll
    for (int r = 0; r < 4; r++)
        out[r * P_STRIDE] = trade(l & 1, sum[0][r], sum[0][r + 4], 1) * p.a.scale;
}

/* Scores of a row to probabilities, in place, by 16 threads; the row's state joins the segment. */
static __device__ void finish_row(struct row *row, float *p, bool first, float2 *out) {
    const int l = threadIdx.x % LANES, n = row->n;
    const unsigned mask = 0xffffu << (threadIdx.x % 32 / LANES * LANES);
    if (n <= 0) /* the same for the 16 */
        return;
    float v[SEGMENT / LANES], max = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SEGMENT / LANES; i++) {
        v[i] = l + LANES * i < n ? p[l + LANES * i] : -INFINITY;
        max = v[i] > max ? v[i] : max;
    }
    for (int far = LANES / 2; far > 0; far /= 2) {
        const float other = __shfl_xor_sync(mask, max, far);
        max = other > max ? other : max;
    }
    /* Past n: exp(-inf) = 0, which changes no sum; where the maximum is not finite the sum is NaN either way. */
#pragma unroll
    for (int i = 0; i < SEGMENT / LANES; i++) {
        v[i] = cuda_expf_flat(v[i] - max);
        sum += v[i];
        p[l + LANES * i] = v[i];
    }
    for (int far = LANES / 2; far > 0; far /= 2)
        sum += __shfl_xor_sync(mask, sum, far);
    if (l != 0)
        return;
    if (out != NULL)
        *out = make_float2(max, sum);
    if (first) {
        row->max = max;
        row->sum = sum;
        return;
    }
    const float top = max > row->max ? max : row->max;
    row->old_w = cuda_expf_flat(row->max - top);
    row->new_w = cuda_expf_flat(max - top);
    row->sum = __fmaf_rn(row->sum, row->old_w, sum * row->new_w);
    row->max = top;
}

/* The weighted values of 4 rows and 4 columns over a chunk that starts at key `base` of the segment; n: the rows' keys
 * in the segment. */
static __device__ void add_values(const struct plan &plan, const float *p, const float *v, int base, const int n[4],
                                  float4 o[4]) {
    const int least = min(min(n[0], n[1]), min(n[2], n[3])) - base, most = max(max(n[0], n[1]), max(n[2], n[3])) - base;
    int j = 0;
    p += base;
#pragma unroll 2
    for (; j + 4 <= plan.chunk && j + 4 <= least; j += 4) {
        float4 w[4];
#pragma unroll
        for (int r = 0; r < 4; r++)
            w[r] = *(const float4 *)(p + r * P_STRIDE + j);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 value = *(const float4 *)(v + (j + i) * plan.stride);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float x = i == 0 ? w[r].x : i == 1 ? w[r].y : i == 2 ? w[r].z : w[r].w;
                o[r] = fma4(make_float4(x, x, x, x), value, o[r]);
            }
        }
    }
    for (; j < plan.chunk && j < most; j++) {
        const float4 value = *(const float4 *)(v + j * plan.stride);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float x = p[r * P_STRIDE + j];
            if (base + j < n[r])
                o[r] = fma4(make_float4(x, x, x, x), value, o[r]);
        }
    }
}

static __device__ void store4(float *to, int d, int head_dim, float4 v) {
    if (d < head_dim)
        to[d] = v.x;
    if (d + 1 < head_dim)
        to[d + 1] = v.y;
    if (d + 2 < head_dim)
        to[d + 2] = v.z;
    if (d + 3 < head_dim)
        to[d + 3] = v.w;
}

/* Which heads read kv_head, then which of them row r of the tile is, and at which position. */
static __device__ int find_rows(const struct plan &p, int kv_head, int row0, int n_rows, struct row *rows) {
    __shared__ int n_heads;
    __shared__ int heads[THREADS], reads[THREADS]; /* reads: what one head after the other reads, THREADS at a time */
    if (threadIdx.x == 0)
        n_heads = 0;
    for (int h0 = 0; h0 < p.a.n_head; h0 += THREADS) {
        const int h = h0 + threadIdx.x, n = min(p.a.n_head - h0, (int)THREADS);
        __syncthreads();
        const int before = n_heads;
        reads[threadIdx.x] = h < p.a.n_head ? p.a.kv_head_of[h] : -1;
        __syncthreads();
        int rank = before, n_here = 0;
#pragma unroll 8
        for (int i = 0; i < n; i++) {
            rank += i < (int)threadIdx.x && reads[i] == kv_head;
            n_here += reads[i] == kv_head;
        }
        if (reads[threadIdx.x] == kv_head && rank < THREADS)
            heads[rank] = h;
        if (threadIdx.x == 0)
            n_heads = before + n_here;
    }
    __syncthreads();
    const int r = threadIdx.x, group = min(n_heads, (int)THREADS);
    if (r < n_rows) {
        const int at = row0 + r, i = group > 0 ? at / group : p.a.n_pos;
        const bool is = i < p.a.n_pos;
        rows[r].head = is ? heads[at % group] : -1;
        rows[r].pos = is ? i : -1;
        rows[r].n_keys = is ? p.a.pos0 + i + 1 : 0;
    }
    __syncthreads();
    return group * p.a.n_pos;
}

template <int ROWS> static __device__ void load_queries(const struct plan &p, const struct row *rows, float *q) {
    const int quads = p.padded / 4, head_dim = p.a.k.head_dim;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * quads; i += THREADS) {
        const int r = i / quads, d = i % quads * 4;
        const float *from = p.a.q + ((int64_t)rows[r].pos * p.a.n_head + rows[r].head) * head_dim + d;
        float4 v = make_float4(0, 0, 0, 0);
        if (rows[r].head >= 0 && head_dim % 4 == 0) {
            if (d < head_dim)
                v = *(const float4 *)from;
        } else if (rows[r].head >= 0) {
            v.x = d < head_dim ? from[0] : 0.0f;
            v.y = d + 1 < head_dim ? from[1] : 0.0f;
            v.z = d + 2 < head_dim ? from[2] : 0.0f;
            v.w = d + 3 < head_dim ? from[3] : 0.0f;
        }
        *(float4 *)(q + r * p.stride + d) = v;
    }
}

/* One segment of a tile of rows: o gets the weighted values of the thread's 4 rows (rg) and 4 columns (d), if it has
 * any (has_values). The shared arrays are free again when it returns, but for the rows' state. */
template <int ROWS>
static __device__ void run_segment(const struct plan &p, int kv_head, int segment, struct row *rows, const float *q,
                                   float *kv, float *prob, bool has_values, int rg, int d, float4 o[4]) {
    const int key0 = segment * SEGMENT;
    int n_most = 0;
    if (threadIdx.x < ROWS)
        rows[threadIdx.x].n = min(rows[threadIdx.x].n_keys - key0, (int)SEGMENT);
    __syncthreads();
    for (int r = 0; r < ROWS; r++)
        n_most = max(n_most, rows[r].n);
    for (int base = 0; base < n_most; base += p.chunk) {
        const int next = base + p.chunk;
        load_chunk(p, p.a.k, kv_head, key0 + base, n_most - base, kv);
        if (next < n_most)
            prefetch_chunk(p, p.a.k, kv_head, key0 + next, n_most - next);
        else
            prefetch_chunk(p, p.a.v, kv_head, key0, n_most);
        __syncthreads();
        for (int tile = threadIdx.x / 32; tile < ROWS / TILE_ROWS * (p.chunk / TILE_KEYS); tile += THREADS / 32) {
            const int row = tile % (ROWS / TILE_ROWS) * TILE_ROWS, key = tile / (ROWS / TILE_ROWS) * TILE_KEYS;
            if (base + key < n_most)
                score_tile(p, q + row * p.stride, kv + key * p.stride, prob + row * P_STRIDE + base + key);
        }
        __syncthreads();
    }
    for (int r = threadIdx.x / LANES; r < ROWS; r += THREADS / LANES) {
        const int64_t at = ((int64_t)rows[r].pos * p.a.n_head + rows[r].head) * p.n_segments + segment;
        finish_row(&rows[r], prob + r * P_STRIDE, p.split || segment == 0,
                   p.split && rows[r].head >= 0 ? p.part_ml + at : NULL);
    }
    for (int r = 0; r < 4; r++)
        o[r] = make_float4(0, 0, 0, 0);
    const int n[4] = {rows[rg].n, rows[rg + 1].n, rows[rg + 2].n, rows[rg + 3].n};
    for (int base = 0; base < n_most; base += p.chunk) {
        const int next = base + p.chunk;
        load_chunk(p, p.a.v, kv_head, key0 + base, n_most - base, kv);
        prefetch_chunk(p, p.a.v, kv_head, key0 + next, n_most - next);
        __syncthreads();
        if (has_values)
            add_values(p, prob + rg * P_STRIDE, kv + d, base, n, o);
        __syncthreads();
    }
}

/* A thread's 4 rows of a finished segment: to the scratch, or joined to the segments before. */
static __device__ void keep_segment(const struct plan &p, int segment, const struct row rows[4], int d,
                                    const float4 o[4], float4 total[4]) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if (rows[r].n <= 0)
            continue;
        const float a = rows[r].old_w, b = rows[r].new_w;
        const int64_t at = ((int64_t)rows[r].pos * p.a.n_head + rows[r].head) * p.n_segments + segment;
        if (p.split)
            store4(p.part_o + at * p.a.k.head_dim, d, p.a.k.head_dim, o[r]);
        else if (segment == 0)
            total[r] = o[r];
        else
            total[r] =
                fma4(total[r], make_float4(a, a, a, a), make_float4(o[r].x * b, o[r].y * b, o[r].z * b, o[r].w * b));
    }
}

static __device__ void store_rows(const struct plan &p, const struct row rows[4], int d, const float4 total[4]) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if (rows[r].head < 0)
            continue;
        const float sum = rows[r].sum;
        const float4 t = total[r];
        store4(p.a.o + ((int64_t)rows[r].pos * p.a.n_head + rows[r].head) * p.a.k.head_dim, d, p.a.k.head_dim,
               make_float4(__fdiv_rn(t.x, sum), __fdiv_rn(t.y, sum), __fdiv_rn(t.z, sum), __fdiv_rn(t.w, sum)));
    }
}

template <int ROWS> static __global__ void __launch_bounds__(THREADS, 2) attend(const struct plan p) {
    extern __shared__ float4 shared[];
    __shared__ struct row rows[ROWS];
    float *q = (float *)shared, *kv = q + ROWS * p.stride, *prob = kv + p.chunk * p.stride;
    const int kv_head = blockIdx.y, columns = p.padded / 4;
    /* four rows from rg on and four columns from d on are this thread's values */
    const int rg = (int)threadIdx.x / columns * 4, d = (int)threadIdx.x % columns * 4;
    const bool has_values = rg < ROWS;
    int n_rows = INT_MAX; /* not known yet */
    /* the last rows, which have the most keys, first */
    for (int tile = (int)(gridDim.x - 1 - blockIdx.x); tile * ROWS < n_rows; tile += (int)gridDim.x) {
        n_rows = find_rows(p, kv_head, tile * ROWS, ROWS, rows);
        load_queries<ROWS>(p, rows, q);
        int most = 0;
        for (int r = 0; r < ROWS; r++)
            most = max(most, rows[r].n_keys);
        const int begin = p.split ? (int)blockIdx.z : 0;
        const int end = p.split ? min((int)blockIdx.z + 1, p.n_segments) : p.n_segments;
        float4 total[4], o[4];
        for (int s = begin; s < end && s * SEGMENT < most; s++) {
            run_segment<ROWS>(p, kv_head, s, rows, q, kv, prob, has_values, has_values ? rg : 0, d, o);
            if (has_values)
                keep_segment(p, s, rows + rg, d, o, total);
            __syncthreads();
        }
        if (has_values && !p.split)
            store_rows(p, rows + rg, d, total);
        __syncthreads();
    }
}

/* A block a row, a thread a column: the segments' parts in order. */
static __global__ void join_segments(const struct plan p) {
    const int64_t row = blockIdx.x;
    const int head_dim = p.a.k.head_dim, n_keys = p.a.pos0 + (int)(row / p.a.n_head) + 1;
    const int n = (n_keys + SEGMENT - 1) / SEGMENT;
    const float2 *ml = p.part_ml + row * p.n_segments;
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        const float *part = p.part_o + row * p.n_segments * head_dim + d;
        float max = ml[0].x, sum = ml[0].y, o = part[0];
#pragma unroll 4
        for (int s = 1; s < n; s++) {
            const float2 next = ml[s];
            const float top = next.x > max ? next.x : max;
            const float a = cuda_expf_flat(max - top), b = cuda_expf_flat(next.x - top);
            sum = __fmaf_rn(sum, a, next.y * b);
            o = __fmaf_rn(o, a, part[(int64_t)s * head_dim] * b);
            max = top;
        }
        p.a.o[row * head_dim + d] = __fdiv_rn(o, sum);
    }
}

static int64_t segments_of(int64_t n_keys) {
    return (n_keys + SEGMENT - 1) / SEGMENT;
}

size_t cuda_attention_scratch(int n_head, int head_dim, int n_pos, int n_ctx) {
    const int64_t rows = (int64_t)n_pos * n_head, most = rows < SPLIT_ROWS ? rows : SPLIT_ROWS;
    /* max and sum rounded up to where an array may start */
    return (size_t)(most * segments_of(n_ctx)) * ((size_t)head_dim * sizeof(float) + sizeof(float2)) + 256;
}

static bool reads_vectors(const struct cuda_kv *kv) {
    const int64_t bytes = kv->type == FWD_F16 ? 8 : 16;
    return kv->head_dim % 4 == 0 && kv->stride_head % bytes == 0 && kv->stride_row % bytes == 0 &&
           (uintptr_t)kv->data % (uintptr_t)bytes == 0;
}

template <int ROWS> static void launch(struct CUstream_st *stream, const struct plan *p) {
    const int group = (p->a.n_head + p->a.k.n_kv_head - 1) / p->a.k.n_kv_head;
    const dim3 grid((unsigned)((p->a.n_pos * group + ROWS - 1) / ROWS), (unsigned)p->a.k.n_kv_head,
                    (unsigned)(p->split ? p->n_segments : 1));
    const size_t bytes = ((size_t)(ROWS + p->chunk) * (size_t)p->stride + (size_t)ROWS * P_STRIDE) * sizeof(float);
    (void)cudaFuncSetAttribute(attend<ROWS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    attend<ROWS><<<grid, THREADS, bytes, stream>>>(*p);
}

void cuda_attention(struct CUstream_st *stream, const struct cuda_attention *a) {
    struct plan p = {};
    const int64_t n_rows = (int64_t)a->n_pos * a->n_head;
    p.a = *a;
    p.n_segments = (int)segments_of((int64_t)a->pos0 + a->n_pos);
    p.padded = (a->k.head_dim + LANES - 1) / LANES * LANES;
    p.stride = p.padded % 32 == 16 ? p.padded : p.padded + 16;
    p.vectors = reads_vectors(&a->k) && reads_vectors(&a->v);
    p.split = p.n_segments > 1 && n_rows <= SPLIT_ROWS;
    p.part_o = (float *)a->scratch;
    const int64_t o_bytes = n_rows * p.n_segments * a->k.head_dim * (int64_t)sizeof(float);
    p.part_ml = (float2 *)((uint8_t *)a->scratch + (o_bytes + 255) / 256 * 256);
    /* Wide heads take small tiles, so that a card with 100 KB of shared memory a block holds them. */
    const bool small = p.padded > 128 || (int64_t)a->n_pos * a->n_head <= (int64_t)16 * a->k.n_kv_head;
    p.chunk = small && p.padded <= 128 ? 128 : 64;
    if (small)
        launch<8>(stream, &p);
    else
        launch<32>(stream, &p);
    if (p.split)
        join_segments<<<(unsigned)n_rows, (unsigned)(p.padded < 128 ? p.padded : 128), 0, stream>>>(p);
}
