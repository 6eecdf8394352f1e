/* engine/cuda/decode.cu: file blocks to floats: the embedding's rows, and whole matrices for the float paths. A thread
 * a value: neighbouring threads share what their block has in common through the cache. */
#include "cuda/decode.cuh"
#include "cuda/e4m3.cuh"
#include "cuda/kernels.h"

#include <cuda_runtime.h>

enum { THREADS = 256 };

/* What a kernel must know of a type. */
struct geometry {
    uint32_t type;
    int shift, block_bytes; /* 1 << shift values a block */
    int64_t row_bytes;
};

static struct geometry geometry_of(uint32_t type, int64_t n_cols) {
    struct geometry g = {type, 0, 0, 0};
    const struct fwd_type_info *info = fwd_type_info(type);
    if (info == NULL || info->block_bytes == 0)
        return g;
    while (1u << g.shift < info->block_values)
        g.shift++;
    g.block_bytes = (int)info->block_bytes;
    g.row_bytes = (n_cols >> g.shift) * g.block_bytes;
    return g;
}

static __device__ void store_as(float *to, int64_t i, float value) {
    to[i] = value;
}

static __device__ void store_as(uint16_t *to, int64_t i, float value) {
    to[i] = cuda_f32_to_bf16(value);
}

/* A block of threads a row (of ids[row], or of row itself) and, over gridDim.y, a part of it. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    decode_rows(struct geometry g, const uint8_t *src, const int32_t *ids, int64_t n_cols, T *dst) {
    const int64_t row = blockIdx.x;
    const uint8_t *from = src + (ids != NULL ? ids[row] : row) * g.row_bytes;
    T *to = dst + row * n_cols;
    for (int64_t i = (int64_t)blockIdx.y * THREADS + threadIdx.x; i < n_cols; i += (int64_t)gridDim.y * THREADS)
        store_as(to, i, decode_in_row(g.type, g.shift, g.block_bytes, from, i));
}

/* Twice over the row: its largest magnitude, then its codes. */
static __global__ void __launch_bounds__(THREADS)
    decode_rows_e4m3(struct geometry g, const uint8_t *src, int64_t n_cols, uint8_t *dst, float *scale) {
    __shared__ uint32_t shared_amax;
    const int64_t row = blockIdx.x;
    const uint8_t *from = src + row * g.row_bytes;
    uint32_t amax = 0;
    if (threadIdx.x == 0)
        shared_amax = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n_cols; i += THREADS) {
        float value = decode_in_row(g.type, g.shift, g.block_bytes, from, i);
        amax = max(amax, __float_as_uint(value) & 0x7fffffffu);
    }
    for (int far = 16; far > 0; far /= 2)
        amax = max(amax, __shfl_xor_sync(~0u, amax, far));
    if (threadIdx.x % 32 == 0)
        atomicMax(&shared_amax, amax);
    __syncthreads();
    const struct e4m3_scale s = e4m3_scale_of(shared_amax);
    if (threadIdx.x == 0)
        scale[row] = s.d;
    for (int64_t i = threadIdx.x; i < n_cols; i += THREADS)
        dst[row * n_cols + i] = e4m3_code(decode_in_row(g.type, g.shift, g.block_bytes, from, i), s);
}

/* Few rows are cut into parts, so that they still fill the card. */
static dim3 grid_for(int64_t n_rows, int64_t n_cols) {
    int64_t parts = n_rows < 512 ? (n_cols + THREADS - 1) / THREADS : 1;
    return dim3((unsigned)n_rows, (unsigned)(parts < 64 ? parts : 64));
}

void cuda_embed(struct CUstream_st *stream, uint32_t type, const void *table, int64_t n_cols, const int32_t *ids,
                int n_pos, float *y) {
    decode_rows<<<grid_for(n_pos, n_cols), THREADS, 0, stream>>>(geometry_of(type, n_cols), (const uint8_t *)table, ids,
                                                                 n_cols, y);
}

void cuda_dequantise(struct CUstream_st *stream, uint32_t type, const void *src, int64_t row_bytes, int64_t n_rows,
                     int64_t n_cols, enum cuda_form form, void *dst, float *scale) {
    struct geometry g = geometry_of(type, n_cols);
    g.row_bytes = row_bytes;
    const uint8_t *from = (const uint8_t *)src;
    const dim3 grid = grid_for(n_rows, n_cols);
    if (form == CUDA_FORM_E4M3)
        decode_rows_e4m3<<<(unsigned)n_rows, THREADS, 0, stream>>>(g, from, n_cols, (uint8_t *)dst, scale);
    else if (form == CUDA_FORM_BF16)
        decode_rows<<<grid, THREADS, 0, stream>>>(g, from, (const int32_t *)NULL, n_cols, (uint16_t *)dst);
    else
        decode_rows<<<grid, THREADS, 0, stream>>>(g, from, (const int32_t *)NULL, n_cols, (float *)dst);
}
