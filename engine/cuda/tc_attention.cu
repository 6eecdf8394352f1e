/* engine/cuda/tc_attention.cu: causal attention of a prompt on tensor cores.
 *
 * A block takes 128 positions of one head, a warp 32 of them, and walks the keys in tiles of 64 from key 0 on. Per
 * position: s = q . k in F32 from q rounded to binary16 and the cache's binary16 rows, chains of 16 values a step;
 * m = the largest s so far; w = 2^((s - m) c), c = F32(scale * F32(log2 e)), by the hardware's 2^x; the sum of the w in
 * F32, in four lanes; o = w . v in F32 from w rounded to binary16, chains of 16 keys a step; where a tile raises m, sum
 * and o are multiplied by 2^((old m - m) c). At the end o times the reciprocal of the sum. The scores are never scaled
 * in 16 bits: Qwen2's layer 0 has scores above 12,000. Which keys share a step depends on nothing but the key, so a
 * position's result is the same in whatever chunk it came. */
#include "cuda/tc_attention.cuh"
#include "cuda/tc_mma.cuh"

#include <cuda_runtime.h>

enum { ROWS = 128, WARPS = 4, WARP_TILES = 2, THREADS = 32 * WARPS };

/* Byte offset of a 16-byte chunk in a tile of rows of CHUNKS chunks. */
template <int CHUNKS> static __device__ inline uint32_t chunk_at(int row, int chunk) {
    return (uint32_t)((row * CHUNKS + (chunk ^ (row & 7))) * 16);
}

/* The address of chunk c + pair * 2 of a row, from that of chunk c < 2: the bits do not overlap (tiles lie on multiples
 * of a row). */
static __device__ inline uint32_t pair_at(uint32_t chunk, int pair) {
    return chunk ^ (uint32_t)(pair * 32);
}

/* KEYS rows from key `first` on; those from `end` on are zeros. */
template <int CHUNKS>
static __device__ inline void fetch_tile(uint32_t to, const uint8_t *from, int64_t row_bytes, int first, int end) {
    enum { STEP = THREADS / CHUNKS }; /* a multiple of 8: all of a thread's rows have their chunks in the same order */
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    const uint8_t *src = from + (first + row) * row_bytes + chunk * 16;
    to += chunk_at<CHUNKS>(row, chunk);
#pragma unroll
    for (int i = 0; i < KEYS / STEP; i++) {
        bool valid = first + row + i * STEP < end;
        copy_chunk(to + i * STEP * CHUNKS * 16, valid ? src : from, valid);
        src += STEP * row_bytes;
    }
    copy_commit();
}

/* The block's positions of q, as binary16; those past the prompt are zeros. */
template <int CHUNKS> static __device__ inline void load_q(uint8_t *to, const struct tile_args &a, int row0, int head) {
    for (int at = (int)threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
        int row = at / CHUNKS, chunk = at % CHUNKS;
        uint4 packed = {0, 0, 0, 0};
        if (row0 + row < a.n_pos) {
            const float4 *src = (const float4 *)(a.q + (row0 + row) * a.ld + (int64_t)head * CHUNKS * 8 + chunk * 8);
            float4 x = src[0], y = src[1];
            packed = {pack_f16(x.x, x.y), pack_f16(x.z, x.w), pack_f16(y.x, y.y), pack_f16(y.z, y.w)};
        }
        *(uint4 *)(to + chunk_at<CHUNKS>(row, chunk)) = packed;
    }
}

/* s = q . k of a warp's 32 positions and 64 keys. */
template <int CHUNKS>
static __device__ inline void score_tile(float s[WARP_TILES][KEYS / 8][4], uint32_t q, uint32_t k, int warp, int lane) {
    q += chunk_at<CHUNKS>(warp * 16 * WARP_TILES + (lane & 15), lane >> 4);
    k += chunk_at<CHUNKS>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < CHUNKS / 2; kk++) {
        uint32_t a[WARP_TILES][4];
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++)
            load_matrices(a[t], pair_at(q, kk) + t * 16 * CHUNKS * 16);
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load_matrices(b, pair_at(k, kk) + n * 16 * CHUNKS * 16);
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++) {
                mma_f16(s[t][2 * n], a[t], b[0], b[1]);
                mma_f16(s[t][2 * n + 1], a[t], b[2], b[3]);
            }
        }
    }
}

/* o += w . v of a warp's positions and 64 keys. */
template <int CHUNKS>
static __device__ inline void add_values(float o[WARP_TILES][CHUNKS][4], const float w[WARP_TILES][KEYS / 8][4],
                                         uint32_t v, int lane) {
    v += chunk_at<CHUNKS>(lane & 15, lane >> 4);
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
        uint32_t a[WARP_TILES][4];
#pragma unroll
        for (int t = 0; t < WARP_TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[t][i] = pack_f16(w[t][2 * kk + (i >> 1)][2 * (i & 1)], w[t][2 * kk + (i >> 1)][2 * (i & 1) + 1]);
        }
#pragma unroll
        for (int n = 0; n < CHUNKS / 2; n++) {
            uint32_t b[4];
            load_matrices_transposed(b, pair_at(v, n) + kk * 16 * CHUNKS * 16);
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++) {
                mma_f16(o[t][2 * n], a[t], b[0], b[1]);
                mma_f16(o[t][2 * n + 1], a[t], b[2], b[3]);
            }
        }
    }
}

/* CHUNKS: 16-byte chunks in a head's row. Shared memory: q, then two tiles each of k and of v. */
template <int CHUNKS> __global__ void __launch_bounds__(THREADS, 2) attention_tiles(struct tile_args a) {
    extern __shared__ __align__(1024) uint8_t shared[];
    enum { TILE = KEYS * CHUNKS * 16 };
    uint32_t q = (uint32_t)__cvta_generic_to_shared(shared), k = q + ROWS * CHUNKS * 16, v = k + 2 * TILE;
    int head = (int)blockIdx.x, row0 = (int)(gridDim.y - 1 - blockIdx.y) * ROWS; /* the longest of all heads first */
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    int end = a.pos0 + min(row0 + (int)ROWS, a.n_pos); /* keys that any row here sees */
    int n_tiles = (end + KEYS - 1) / KEYS;
    const uint8_t *k_rows = a.k + a.kv_head_of[head] * a.k_head, *v_rows = a.v + a.kv_head_of[head] * a.v_head;
    fetch_tile<CHUNKS>(k, k_rows, a.k_row, 0, end);
    fetch_tile<CHUNKS>(v, v_rows, a.v_row, 0, end);
    load_q<CHUNKS>(shared, a, row0, head);

    float o[WARP_TILES][CHUNKS][4], s[WARP_TILES][KEYS / 8][4], m[WARP_TILES][2], sum[WARP_TILES][2];
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++) {
        m[t][0] = m[t][1] = __uint_as_float(0xff800000u);
        sum[t][0] = sum[t][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++)
            o[t][n][0] = o[t][n][1] = o[t][n][2] = o[t][n][3] = 0.0f;
    }
    int first_row = row0 + warp * 16 * WARP_TILES, first_pos = a.pos0 + first_row;
    for (int tile = 0; tile < n_tiles; tile++) {
        int key0 = tile * KEYS, stage = (tile & 1) * TILE, other = TILE - stage;
        bool seen = key0 <= first_pos + 16 * WARP_TILES - 1; /* by any of the warp's positions */
        fetch_tile<CHUNKS>(k + other, k_rows, a.k_row, key0 + KEYS, end);
        copy_wait<2>(); /* but for this tile's v and the next k */
        __syncthreads();
        if (seen) {
            score_tile<CHUNKS>(s, q, k + stage, warp, lane);
#pragma unroll
            for (int t = 0; t < WARP_TILES; t++) {
                if (key0 + KEYS - 1 > first_pos + 16 * t)
                    mask_tile(s[t], key0, first_pos + 16 * t + lane / 4, lane);
                weigh_tile<CHUNKS>(s[t], o[t], m[t], sum[t], a.c);
            }
        }
        fetch_tile<CHUNKS>(v + other, v_rows, a.v_row, key0 + KEYS, end);
        copy_wait<2>();
        __syncthreads();
        if (seen)
            add_values<CHUNKS>(o, s, v + stage, lane);
    }
    copy_wait<0>();
#pragma unroll
    for (int t = 0; t < WARP_TILES; t++)
        store_rows<CHUNKS>(a, o[t], sum[t], first_row + 16 * t + lane / 4, head, lane);
}

template <int CHUNKS> static void launch(cudaStream_t stream, const struct tile_args &a, int n_head) {
    int bytes = (ROWS + 4 * KEYS) * CHUNKS * 16;
    /* A failure shows in the launch that follows. */
    (void)cudaFuncSetAttribute(attention_tiles<CHUNKS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    dim3 grid((unsigned)n_head, (unsigned)(a.n_pos + ROWS - 1) / ROWS);
    attention_tiles<CHUNKS><<<grid, THREADS, (size_t)bytes, stream>>>(a);
}

extern "C" bool cuda_tc_attention_serves(const struct cuda_attention *a) {
    return (a->k.head_dim == 64 || a->k.head_dim == 128) && a->k.type == FWD_F16 && a->v.type == FWD_F16;
}

extern "C" size_t cuda_tc_attention_scratch(int n_head, int head_dim, int n_pos, int n_ctx) {
    (void)n_head, (void)head_dim, (void)n_pos, (void)n_ctx;
    return 0;
}

extern "C" void cuda_tc_attention(struct CUstream_st *stream, const struct cuda_attention *a) {
    struct tile_args t = {};
    t.q = a->q;
    t.o = a->o;
    t.k = (const uint8_t *)a->k.data;
    t.v = (const uint8_t *)a->v.data;
    t.kv_head_of = a->kv_head_of;
    t.k_head = a->k.stride_head;
    t.k_row = a->k.stride_row;
    t.v_head = a->v.stride_head;
    t.v_row = a->v.stride_row;
    t.ld = (int64_t)a->n_head * a->k.head_dim;
    t.pos0 = a->pos0;
    t.n_pos = a->n_pos;
    t.c = a->scale * 0x1.715476p+0f;
    if (launch_attention_hopper(stream, &t, a->n_head, a->k.head_dim))
        return;
    if (a->k.head_dim == 128)
        launch<16>((cudaStream_t)stream, t, a->n_head);
    else
        launch<8>((cudaStream_t)stream, t, a->n_head);
}
