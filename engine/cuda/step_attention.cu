/* engine/cuda/step_attention.cu: rotation of the new query and key, key and value into the cache, and attention of one
 * token in exact segments of 256 keys (ops/rope, ops/attention), the same bits.
 *
 * With few keys a block is one query head and one segment, so that many multiprocessors share the work; with many it is
 * all query heads of a KV head and every n_split-th segment, so that keys and values are read once. Segments that are
 * not alone leave (max, sum, values) in scratch; the last block to arrive joins them in order. */
#include "cuda/expf.cuh"
#include "cuda/half.cuh"
#include "cuda/step_device.cuh"
#include "cuda/step_kernels.h"

#include <cuda_fp16.h>
#include <stddef.h>

enum { SEGMENT = 256, THREADS = 256, MOST_HEADS = 8, FEW_SEGMENTS = 2 };

template <typename KV> struct kv_words; /* four neighbouring values of a row, as they are stored */
template <> struct kv_words<__half> { typedef uint2 type; };
template <> struct kv_words<float> { typedef float4 type; };

static __device__ __forceinline__ void spread(float *to, uint2 v) {
    to[0] = cuda_f16_to_f32((uint16_t)v.x), to[1] = cuda_f16_to_f32((uint16_t)(v.x >> 16));
    to[2] = cuda_f16_to_f32((uint16_t)v.y), to[3] = cuda_f16_to_f32((uint16_t)(v.y >> 16));
}
static __device__ __forceinline__ void spread(float *to, float4 v) {
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
static __device__ __forceinline__ float2 pair_of(const __half *p) {
    return __half22float2(*(const __half2 *)p);
}
static __device__ __forceinline__ float2 pair_of(const float *p) {
    return *(const float2 *)p;
}
static __device__ __forceinline__ void narrow(__half *to, float x) {
    *to = __ushort_as_half(cuda_f32_to_f16(x));
}
static __device__ __forceinline__ void narrow(float *to, float x) {
    *to = x;
}

static __device__ __forceinline__ void copy_16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
static __device__ __forceinline__ void copies_done(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

template <typename KV, int DIM> struct shared_parts {
    KV v[SEGMENT][DIM]; /* the values of the segment at hand */
    KV new_k[DIM], new_v[DIM];
    float q[MOST_HEADS][DIM];
    float p[MOST_HEADS][SEGMENT]; /* scores, then weights */
    float max[MOST_HEADS], sum[MOST_HEADS];
    int last;
};

/* What a block works on. */
struct share {
    int kv_head, head, n_heads; /* query heads head .. head + n_heads - 1 */
    int segment, step, n_segments;
    bool stores; /* the new key and value into the cache */
};

static __device__ __forceinline__ struct share share_of(const struct step_attention &p, int n_keys) {
    struct share s;
    int block = p.n_blocks - 1 - (int)blockIdx.x; /* number 0 always has work, and is the last one launched */
    s.n_segments = (n_keys + SEGMENT - 1) / SEGMENT;
    if (s.n_segments <= FEW_SEGMENTS) {
        s.head = block / FEW_SEGMENTS;
        s.n_heads = s.head < p.n_head;
        s.segment = block % FEW_SEGMENTS;
        s.step = FEW_SEGMENTS;
        s.kv_head = s.head / p.group;
        s.stores = s.head % p.group == 0;
    } else {
        s.kv_head = block / p.n_split;
        s.n_heads = s.kv_head < p.n_kv_head ? p.group : 0;
        s.head = s.kv_head * p.group;
        s.segment = block % p.n_split;
        s.step = p.n_split;
        s.stores = true;
    }
    s.stores = s.stores && (s.n_segments - 1 - s.segment) % s.step == 0;
    return s;
}

/* Copies rows [first, first + n) of V except that of the new position, which no one has stored yet. */
template <typename KV, int DIM>
static __device__ __forceinline__ void fetch_values(struct shared_parts<KV, DIM> *sh, const uint8_t *v, int64_t stride,
                                                    int first, int n, int pos) {
    constexpr int chunks = DIM * (int)sizeof(KV) / 16;
    for (int i = (int)threadIdx.x; i < n * chunks; i += THREADS) {
        int j = i / chunks, c = i % chunks;
        if (first + j != pos)
            copy_16((uint8_t *)sh->v[j] + 16 * c, v + (first + j) * stride + 16 * c);
    }
}

/* One head's values turned by the position: element i of 0 .. DIM-1 of x into y. */
template <int DIM, typename STORE>
static __device__ __forceinline__ void turn_head(const struct step_attention &p, const float *x, int pos, int i,
                                                 STORE store) {
    int half = p.n_rope / 2;
    if (i < half) {
        const float *turn = p.turn + ((int64_t)pos * half + i) * 2;
        int i0 = p.neox ? i : 2 * i, i1 = p.neox ? i + half : 2 * i + 1;
        float x0 = __ldcg(x + i0), x1 = __ldcg(x + i1), c = turn[0], s = turn[1];
        store(i0, x0 * c - x1 * s);
        store(i1, x0 * s + x1 * c);
    } else if (i < DIM / 2) {
        int rest = p.n_rope + 2 * (i - half);
        store(rest, __ldcg(x + rest));
        store(rest + 1, __ldcg(x + rest + 1));
    }
}

/* New queries into shared memory; the new key and value too, as the cache holds them, and into the cache. */
template <typename KV, int DIM>
static __device__ __forceinline__ void take_new(const struct step_attention &p, const struct share &s,
                                                struct shared_parts<KV, DIM> *sh, KV *k_row, KV *v_row, int pos,
                                                const struct cuda_step_taps *taps) {
    int t = (int)threadIdx.x;
    float *tap_q = (float *)tap_pointer(s.segment == 0 ? taps : NULL, (int)offsetof(struct cuda_step_taps, q_rope));
    float *tap_k = (float *)tap_pointer(s.stores ? taps : NULL, (int)offsetof(struct cuda_step_taps, k_rope));
    constexpr int half = DIM / 2;
    for (int i = t; i < (s.n_heads + 1) * half; i += THREADS) {
        int h = i / half;
        if (h < s.n_heads) {
            int64_t at = (int64_t)(s.head + h) * DIM;
            turn_head<DIM>(p, p.q + at, pos, i % half, [&](int d, float y) {
                sh->q[h][d] = y;
                if (tap_q)
                    tap_q[at + d] = y;
            });
        } else {
            int64_t at = (int64_t)s.kv_head * DIM;
            turn_head<DIM>(p, p.k + at, pos, i % half, [&](int d, float y) {
                KV stored;
                narrow(&stored, y);
                sh->new_k[d] = stored;
                if (s.stores)
                    k_row[d] = stored;
                if (tap_k)
                    tap_k[at + d] = y;
            });
        }
    }
    if (t < DIM) {
        KV stored;
        narrow(&stored, __ldcg(p.v + (int64_t)s.kv_head * DIM + t));
        sh->new_v[t] = stored;
        if (s.stores)
            v_row[t] = stored;
    }
}

/* Four threads a key, of which thread t has lanes 4t .. 4t+3 of the 16: the row's pieces that it needs. */
template <typename KV, int DIM> struct key_row { typename kv_words<KV>::type piece[DIM / 16]; };

template <typename KV, int DIM>
static __device__ __forceinline__ void read_key(struct key_row<KV, DIM> &row, const uint8_t *at, bool on) {
#pragma unroll
    for (int s = 0; s < DIM / 16; s++)
        if (on)
            row.piece[s] =
                __ldcg((const typename kv_words<KV>::type *)(at + (16 * s + 4 * (threadIdx.x & 3)) * sizeof(KV)));
}

/* q . k over the four threads of a key: every lane's chain, then the tree of 16; each thread keeps what the next step
 * of the tree needs of it. */
template <int DIM> static __device__ __forceinline__ float dot_key(const float *q, const float (*k)[4]) {
    float lane[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int t = (int)threadIdx.x & 3;
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) {
        float4 x = *(const float4 *)(q + 16 * s + 4 * t);
        lane[0] = __fmaf_rn(x.x, k[s][0], lane[0]);
        lane[1] = __fmaf_rn(x.y, k[s][1], lane[1]);
        lane[2] = __fmaf_rn(x.z, k[s][2], lane[2]);
        lane[3] = __fmaf_rn(x.w, k[s][3], lane[3]);
    }
    bool high = t & 2, odd = t & 1;
    float a = (high ? lane[2] : lane[0]) + __shfl_xor_sync(~0u, high ? lane[0] : lane[2], 2);
    float b = (high ? lane[3] : lane[1]) + __shfl_xor_sync(~0u, high ? lane[1] : lane[3], 2);
    float c = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
    c += __shfl_xor_sync(~0u, c, 2);
    return c + __shfl_xor_sync(~0u, c, 1);
}

template <typename KV, int DIM>
static __device__ __forceinline__ void score_keys(const struct step_attention &p, const struct share &s,
                                                  struct shared_parts<KV, DIM> *sh, const uint8_t *k, int first, int n,
                                                  int pos, struct key_row<KV, DIM> *ready) {
    int t = (int)threadIdx.x, own = t >> 2;
    for (int j0 = 0; j0 < n; j0 += 2 * (THREADS / 4)) {
#pragma unroll
        for (int two = 0; two < 2; two++) {
            int j = j0 + two * (THREADS / 4) + own;
            if (j0 > 0)
                read_key<KV, DIM>(ready[two], k + (first + j) * p.kv_row, j < n && first + j != pos);
        }
#pragma unroll
        for (int two = 0; two < 2; two++) {
            int j = j0 + two * (THREADS / 4) + own;
            float row[DIM / 16][4];
#pragma unroll
            for (int i = 0; i < DIM / 16; i++) {
                if (first + j == pos)
                    ready[two].piece[i] = *(const typename kv_words<KV>::type *)(sh->new_k + 16 * i + 4 * (t & 3));
                spread(row[i], ready[two].piece[i]);
            }
            for (int h = 0; h < s.n_heads; h++) {
                float score = dot_key<DIM>(sh->q[h], row) * p.scale;
                if (j < n && (t & 3) == 0)
                    sh->p[h][j] = score;
            }
        }
    }
}

/* Scores to weights, one warp a head: the largest, the exponentials, their sum in 16 lanes. */
template <typename KV, int DIM>
static __device__ __forceinline__ void weigh(const struct share &s, struct shared_parts<KV, DIM> *sh, int n) {
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    for (int h = warp; h < s.n_heads; h += THREADS / 32) {
        float *p = sh->p[h];
        float max = __int_as_float(0xff800000);
        for (int j = lane; j < n; j += 32)
            max = fmaxf(max, p[j]);
        for (int width = 16; width > 0; width >>= 1)
            max = fmaxf(max, __shfl_xor_sync(~0u, max, width));
        for (int j = lane; j < n; j += 32)
            p[j] = cuda_expf(p[j] - max);
        __syncwarp();
        float sum = 0.0f;
        if (lane < 16)
            for (int j = lane; j < n; j += 16)
                sum += p[j];
        for (int width = 8; width > 0; width >>= 1)
            sum += __shfl_xor_sync(~0u, sum, width);
        if (lane == 0) {
            sh->max[h] = max;
            sh->sum[h] = sum;
        }
    }
}

/* Two neighbouring values of some heads, summed over the segment's keys; done(head, d, o0, o1) takes them. */
template <typename KV, int DIM, typename DONE>
static __device__ __forceinline__ void sum_values(const struct share &s, const struct shared_parts<KV, DIM> *sh, int n,
                                                  DONE done) {
    constexpr int pairs = DIM / 2, heads_each = MOST_HEADS * pairs / THREADS;
    int d = 2 * ((int)threadIdx.x % pairs), h0 = (int)threadIdx.x / pairs * heads_each;
    if (h0 >= s.n_heads)
        return;
    float o[heads_each][2] = {};
#pragma unroll 8
    for (int j = 0; j < n; j++) {
        float2 v = pair_of(&sh->v[j][d]);
#pragma unroll
        for (int h = 0; h < heads_each; h++) {
            float w = sh->p[h0 + h][j];
            o[h][0] = __fmaf_rn(w, v.x, o[h][0]);
            o[h][1] = __fmaf_rn(w, v.y, o[h][1]);
        }
    }
#pragma unroll
    for (int h = 0; h < heads_each; h++)
        if (h0 + h < s.n_heads)
            done(h0 + h, d, o[h][0], o[h][1]);
}

/* The block that arrives last joins the segments of its heads. */
template <int DIM>
static __device__ void join_segments(const struct step_attention &p, const struct share &s, float *tap) {
    for (int i = (int)threadIdx.x; i < s.n_heads * DIM; i += THREADS) {
        int head = s.head + i / DIM, d = i % DIM;
        const float *part = p.partial + (int64_t)head * p.max_segments * (DIM + 2);
        float max = __ldcg(part + DIM), sum = __ldcg(part + DIM + 1), o = __ldcg(part + d);
#pragma unroll 4
        for (int g = 1; g < s.n_segments; g++) {
            part += DIM + 2;
            float max_g = __ldcg(part + DIM), sum_g = __ldcg(part + DIM + 1), o_g = __ldcg(part + d);
            float top = max_g > max ? max_g : max;
            float a = cuda_expf(max - top), b = cuda_expf(max_g - top);
            sum = __fmaf_rn(sum, a, sum_g * b);
            o = __fmaf_rn(o, a, o_g * b);
            max = top;
        }
        float y = plain_nan(o / sum);
        p.heads[(int64_t)head * DIM + d] = y;
        if (tap)
            tap[(int64_t)head * DIM + d] = y;
    }
}

template <typename KV, int DIM>
static __global__ void __launch_bounds__(THREADS, 2)
    step_attention_kernel(const __grid_constant__ struct step_attention p) {
    extern __shared__ __align__(128) uint8_t shared[];
    struct shared_parts<KV, DIM> *sh = (struct shared_parts<KV, DIM> *)shared;
    let_next_start();
    int pos = p.state->pos, n_keys = pos + 1;
    struct share s = share_of(p, n_keys);
    if (s.n_heads == 0 || s.segment >= s.n_segments)
        return;
    const struct cuda_step_taps *taps = p.taps && p.state->taps ? p.taps : NULL;
    uint8_t *k = p.kv + p.state->slot * p.kv_slot + s.kv_head * p.kv_head, *v = k + p.kv_part;
    int n = min(SEGMENT, n_keys - s.segment * SEGMENT), first = s.segment * SEGMENT;
    /* Rows of earlier positions were stored by earlier steps. */
    fetch_values<KV, DIM>(sh, v, p.kv_row, first, n, pos);
    struct key_row<KV, DIM> ready[2];
#pragma unroll
    for (int two = 0; two < 2; two++) {
        int j = two * (THREADS / 4) + ((int)threadIdx.x >> 2);
        read_key<KV, DIM>(ready[two], k + (first + j) * p.kv_row, j < n && first + j != pos);
    }
    wait_for_previous();
    take_new<KV, DIM>(p, s, sh, (KV *)(k + pos * p.kv_row), (KV *)(v + pos * p.kv_row), pos, taps);
    float *tap = (float *)tap_pointer(taps, (int)offsetof(struct cuda_step_taps, heads));
    for (int segment = s.segment; segment < s.n_segments; segment += s.step) {
        if (segment != s.segment) {
            __syncthreads();
            first = segment * SEGMENT;
            n = min(SEGMENT, n_keys - first);
            fetch_values<KV, DIM>(sh, v, p.kv_row, first, n, pos);
#pragma unroll
            for (int two = 0; two < 2; two++) {
                int j = two * (THREADS / 4) + ((int)threadIdx.x >> 2);
                read_key<KV, DIM>(ready[two], k + (first + j) * p.kv_row, j < n && first + j != pos);
            }
        }
        __syncthreads();
        score_keys<KV, DIM>(p, s, sh, k, first, n, pos, ready);
        copies_done();
        __syncthreads();
        if (first + n == n_keys)
            for (int d = (int)threadIdx.x; d < DIM; d += THREADS)
                sh->v[n - 1][d] = sh->new_v[d];
        weigh<KV, DIM>(s, sh, n);
        __syncthreads();
        sum_values<KV, DIM>(s, sh, n, [&](int h, int d, float o0, float o1) {
            if (s.n_segments == 1) {
                int64_t at = (int64_t)(s.head + h) * DIM + d;
                float sum = sh->sum[h], y0 = plain_nan(o0 / sum), y1 = plain_nan(o1 / sum);
                *(float2 *)(p.heads + at) = make_float2(y0, y1);
                if (tap)
                    tap[at] = y0, tap[at + 1] = y1;
            } else {
                float *part = p.partial + ((int64_t)(s.head + h) * p.max_segments + segment) * (DIM + 2);
                *(float2 *)(part + d) = make_float2(o0, o1);
                if (d == 0)
                    *(float2 *)(part + DIM) = make_float2(sh->max[h], sh->sum[h]);
            }
        });
    }
    if (s.n_segments == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned n_arrivals = (unsigned)min(s.step, s.n_segments);
        sh->last = atomicAdd(p.arrived + s.head, 1u) == n_arrivals - 1;
        if (sh->last)
            p.arrived[s.head] = 0;
        __threadfence();
    }
    __syncthreads();
    if (sh->last)
        join_segments<DIM>(p, s, tap);
}

template <typename KV, int DIM> static void launch(const struct step_config *config, const struct step_attention *p) {
    int size = (int)sizeof(struct shared_parts<KV, DIM>);
    cudaFuncSetAttribute(step_attention_kernel<KV, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
    cudaFuncSetAttribute(step_attention_kernel<KV, DIM>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)config->n_blocks);
    how.blockDim = dim3(THREADS);
    how.dynamicSmemBytes = (size_t)size;
    how.stream = (cudaStream_t)config->stream;
    how.attrs = &attribute;
    how.numAttrs = config->overlap ? 1 : 0;
    cudaLaunchKernelEx(&how, step_attention_kernel<KV, DIM>, *p);
}

void step_attention_launch(const struct step_config *config, const struct step_attention *p, int head_dim,
                           enum fwd_dtype kv_type) {
    if (kv_type == FWD_F16 && head_dim == 128)
        launch<__half, 128>(config, p);
    else if (kv_type == FWD_F16)
        launch<__half, 64>(config, p);
    else if (head_dim == 128)
        launch<float, 128>(config, p);
    else
        launch<float, 64>(config, p);
}
