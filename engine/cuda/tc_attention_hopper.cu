/* engine/cuda/tc_attention_hopper.cu: the attention of tc_attention.cu with Hopper's warpgroup instructions: the same
 * arithmetic, 64 positions a warpgroup, two warpgroups a block, two blocks at a time on a multiprocessor so that one's
 * matrix products run beside the other's exponentials. */
#include "cuda/tc_attention.cuh"
#include "cuda/tc_mma.cuh"
#include "cuda/tc_wgmma.cuh"

#include <cuda_runtime.h>

enum { GROUP_ROWS = 64, GROUPS = 2, ROWS = GROUP_ROWS * GROUPS, THREADS = 128 * GROUPS, LINE = 128, SPAN = 8 };

/* Byte offset of a 16-byte chunk in a tile of N rows: tiles of 8 chunks a row one after the other. */
template <int N> static __device__ inline uint32_t chunk_at(int row, int chunk) {
    return (uint32_t)(chunk / SPAN * N * LINE + row * LINE + ((chunk ^ row) & 7) * 16);
}

/* KEYS rows from key `first` on; those from `end` on are zeros. */
template <int CHUNKS>
static __device__ inline void fetch_tile(uint32_t to, const uint8_t *from, int64_t row_bytes, int first, int end) {
    enum { STEP = THREADS / CHUNKS }; /* a multiple of 8 */
    int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
    const uint8_t *src = from + (first + row) * row_bytes + chunk * 16;
    to += chunk_at<KEYS>(row, chunk);
#pragma unroll
    for (int i = 0; i < KEYS / STEP; i++) {
        bool valid = first + row + i * STEP < end;
        copy_chunk(to + i * STEP * LINE, valid ? src : from, valid);
        src += STEP * row_bytes;
    }
    copy_commit();
}

template <int CHUNKS> static __device__ inline void load_q(uint8_t *to, const struct tile_args &a, int row0, int head) {
    for (int at = (int)threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
        int row = at / CHUNKS, chunk = at % CHUNKS;
        uint4 packed = {0, 0, 0, 0};
        if (row0 + row < a.n_pos) {
            const float4 *src = (const float4 *)(a.q + (row0 + row) * a.ld + (int64_t)head * CHUNKS * 8 + chunk * 8);
            float4 x = src[0], y = src[1];
            packed = {pack_f16(x.x, x.y), pack_f16(x.z, x.w), pack_f16(y.x, y.y), pack_f16(y.z, y.w)};
        }
        *(uint4 *)(to + chunk_at<ROWS>(row, chunk)) = packed;
    }
}

/* s = q . k: 16 values a step. q: of the warpgroup's first row. */
template <int CHUNKS> static __device__ inline void score_tile(float s[KEYS / 8][4], uint32_t q, uint32_t k) {
    wgmma_begin();
#pragma unroll
    for (int kk = 0; kk < CHUNKS / 2; kk++)
        wgmma_64(s, wgmma_operand(q + kk / 4 * ROWS * LINE + kk % 4 * 32, 16),
                 wgmma_operand(k + kk / 4 * KEYS * LINE + kk % 4 * 32, 16), kk > 0);
    wgmma_end();
}

/* The weights as the next product reads them. */
static __device__ inline void pack_weights(uint32_t a[KEYS / 16][4], const float w[KEYS / 8][4]) {
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[kk][i] = pack_f16(w[2 * kk + (i >> 1)][2 * (i & 1)], w[2 * kk + (i >> 1)][2 * (i & 1) + 1]);
}

/* o += w . v: 16 keys a step. */
template <int CHUNKS>
static __device__ inline void add_values(float o[CHUNKS][4], const uint32_t a[KEYS / 16][4], uint32_t v) {
    wgmma_begin();
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
        uint64_t b = wgmma_operand(v + kk * 16 * LINE, KEYS * LINE);
        if (CHUNKS == 16)
            wgmma_rows_128(o, a[kk], b);
        else
            wgmma_rows_64(o, a[kk], b);
    }
    wgmma_end();
}

/* CHUNKS: 16-byte chunks in a head's row. Shared memory: q, then two tiles each of k and of v. */
template <int CHUNKS> __global__ void __launch_bounds__(THREADS, 2) attention_groups(struct tile_args a) {
    extern __shared__ __align__(1024) uint8_t shared[];
    enum { TILE = KEYS * CHUNKS * 16 };
    uint32_t q = (uint32_t)__cvta_generic_to_shared(shared), k = q + ROWS * CHUNKS * 16, v = k + 2 * TILE;
    int head = (int)blockIdx.x, row0 = (int)(gridDim.y - 1 - blockIdx.y) * ROWS; /* the longest of all heads first */
    int group = (int)threadIdx.x / 128, warp = (int)threadIdx.x / 32 & 3, lane = (int)threadIdx.x & 31;
    int end = a.pos0 + min(row0 + (int)ROWS, a.n_pos); /* keys that any row here sees */
    int n_tiles = (end + KEYS - 1) / KEYS;
    a.k += a.kv_head_of[head] * a.k_head;
    a.v += a.kv_head_of[head] * a.v_head;
    fetch_tile<CHUNKS>(k, a.k, a.k_row, 0, end);
    fetch_tile<CHUNKS>(v, a.v, a.v_row, 0, end);
    load_q<CHUNKS>(shared, a, row0, head);

    float o[CHUNKS][4], m[2], sum[2] = {0.0f, 0.0f};
    uint32_t w[KEYS / 16][4];
    m[0] = m[1] = __uint_as_float(0xff800000u);
#pragma unroll
    for (int n = 0; n < CHUNKS; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    int group_row = row0 + group * GROUP_ROWS, row = group_row + warp * 16 + lane / 4;
    for (int tile = 0; tile < n_tiles; tile++) {
        int key0 = tile * KEYS, stage = (tile & 1) * TILE, other = TILE - stage;
        bool seen = key0 <= a.pos0 + group_row + GROUP_ROWS - 1; /* by any of the warpgroup's positions */
        fetch_tile<CHUNKS>(k + other, a.k, a.k_row, key0 + KEYS, end);
        copy_wait<2>(); /* but for this tile's v and the next k */
        wgmma_publish();
        __syncthreads();
        if (seen) {
            float s[KEYS / 8][4];
            score_tile<CHUNKS>(s, q + group * GROUP_ROWS * LINE, k + stage);
            if (key0 + KEYS - 1 > a.pos0 + group_row + warp * 16)
                mask_tile(s, key0, a.pos0 + row, lane);
            weigh_tile<CHUNKS>(s, o, m, sum, a.c);
            pack_weights(w, s);
        }
        fetch_tile<CHUNKS>(v + other, a.v, a.v_row, key0 + KEYS, end);
        copy_wait<2>();
        wgmma_publish();
        __syncthreads();
        if (seen)
            add_values<CHUNKS>(o, w, v + stage);
    }
    copy_wait<0>();
    store_rows<CHUNKS>(a, o, sum, row, head, lane);
}

/* Machine code for Hopper is in this program and runs here; what is made from PTX has no such instructions. */
template <int CHUNKS> static bool launch(cudaStream_t stream, const struct tile_args &a, int n_head) {
    int bytes = (ROWS + 4 * KEYS) * CHUNKS * 16;
    struct cudaFuncAttributes code;
    if (cudaFuncGetAttributes(&code, attention_groups<CHUNKS>) != cudaSuccess || code.binaryVersion != 90)
        return false;
    /* A failure shows in the launch that follows. */
    (void)cudaFuncSetAttribute(attention_groups<CHUNKS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    dim3 grid((unsigned)n_head, (unsigned)(a.n_pos + ROWS - 1) / ROWS);
    attention_groups<CHUNKS><<<grid, THREADS, (size_t)bytes, stream>>>(a);
    return true;
}

bool launch_attention_hopper(struct CUstream_st *stream, const struct tile_args *a, int n_head, int head_dim) {
    return head_dim == 128 ? launch<16>((cudaStream_t)stream, *a, n_head) : launch<8>((cudaStream_t)stream, *a, n_head);
}
