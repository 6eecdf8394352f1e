/* engine/cuda/tc_ops.cu: conversions between floats, taps, and what the tensor-core products read. */
#include "cuda/tc_rows.cuh"

#include <cuda_runtime.h>

/* cvt.rn.bf16x2 makes every NaN the same one, so that BF16 has one bit pattern for it: 0x7fff. */
template <int QUADS>
static __global__ void __launch_bounds__(ROW_THREADS) convert_rows(struct row_out out, const float *x, int n) {
    const float4 *row = (const float4 *)(x + (int64_t)blockIdx.x * n);
    convert_row<QUADS>(out, (int)blockIdx.x, n, [=](int i) { return row[i]; });
}

extern "C" void cuda_tc_convert(struct CUstream_st *stream, const float *x, int n, int n_pos,
                                const struct cuda_tc_act *out, uint8_t *tap) {
    struct row_out r = make_row_out(out, n, tap);
    if (n <= 4 * ROW_THREADS * 4)
        convert_rows<4><<<(unsigned)n_pos, ROW_THREADS, 0, (cudaStream_t)stream>>>(r, x, n);
    else
        convert_rows<10><<<(unsigned)n_pos, ROW_THREADS, 0, (cudaStream_t)stream>>>(r, x, n);
}

static __global__ void read_tap(struct row_out to, int n) {
    int m = (int)blockIdx.y, i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    bool bf16 = to.form == CUDA_FORM_BF16;
    const uint8_t *row = to.tap + m * to.tap_bytes;
    if (i < n / 2)
        ((uint16_t *)(to.data + m * to.ld_bytes))[i] = ((const uint16_t *)(row + (bf16 ? 0 : 4)))[i];
    if (bf16 && i < n / 2)
        ((uint16_t *)(to.data + m * to.ld_bytes))[i + n / 2] = ((const uint16_t *)row)[i + n / 2];
    if (!bf16 && i == 0)
        to.scale[m] = *(const float *)row;
}

extern "C" void cuda_tc_from_tap(struct CUstream_st *stream, const uint8_t *tap, int n, int n_pos,
                                 const struct cuda_tc_act *out) {
    struct row_out r = make_row_out(out, n, (uint8_t *)tap); /* only read there */
    dim3 grid((unsigned)(n / 2 + 255) / 256, (unsigned)n_pos);
    read_tap<<<grid, 256, 0, (cudaStream_t)stream>>>(r, n);
}

static __global__ void finish_rows(const float *scale_w, const float *scale_x, const float *bias, int n, float *y,
                                   int64_t ld_y) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float *row = y + (int64_t)blockIdx.y * ld_y;
    if (i >= n)
        return;
    float v = row[i];
    if (scale_w)
        v = __fmul_rn(__fmul_rn(v, scale_x[blockIdx.y]), scale_w[i]);
    row[i] = bias ? __fadd_rn(v, bias[i]) : v;
}

extern "C" void cuda_tc_finish(struct CUstream_st *stream, const float *scale_w, const float *scale_x,
                               const float *bias, int n, int n_pos, float *y, int64_t ld_y) {
    dim3 grid((unsigned)(n + 255) / 256, (unsigned)n_pos);
    finish_rows<<<grid, 256, 0, (cudaStream_t)stream>>>(scale_w, scale_x, bias, n, y, ld_y);
}
