/* engine/cuda/kernels_tc.h: prefill on tensor cores in BF16 and E4M3. Not the canonical arithmetic: tensor cores do not
 * round to nearest and cuBLASLt chooses its order by shape, so these declare numerics of their own (cuda_tc_numerics)
 * and chunking changes bits. */
#ifndef ENGINE_CUDA_KERNELS_TC_H
#define ENGINE_CUDA_KERNELS_TC_H

#include "core/status.h"
#include "cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cuBLASLt, loaded when a session opens (it is half a gigabyte: nothing links with it). */
struct cuda_lt;
/* FWD_EUNAVAILABLE with the loader's reason where libcublasLt is not there. */
enum fwd_status cuda_lt_create(struct cuda_lt **out, struct fwd_error *err);
void cuda_lt_free(struct cuda_lt *lt);

/* An op input as the products read it: BF16 rows, or E4M3 rows with scale[pos] = amax / 448. Rows are padded with zeros
 * to a multiple of 16 values (ld). */
struct cuda_tc_act {
    enum cuda_form form; /* CUDA_FORM_BF16 or CUDA_FORM_E4M3 */
    int64_t ld;
    void *data;
    float *scale; /* E4M3: [n_pos] */
};
/* y[m][n] F32 = x . w (+ bias where w has one), w of the form of x. fast: E4M3's fast accumulation. */
enum fwd_status cuda_lt_matmul(struct cuda_lt *lt, struct CUstream_st *stream, const struct cuda_linear *w,
                               const struct cuda_tc_act *x, int n_pos, float *y, int64_t ld_y, bool fast,
                               struct fwd_error *err);

/* x: [n_pos][n] F32 to out. tap: NULL, or the same values as F32 (scale * value), [n_pos][n]. */
void cuda_tc_convert(struct CUstream_st *stream, const float *x, int n, int n_pos, const struct cuda_tc_act *out,
                     float *tap);
/* Causal attention of a prompt on tensor cores: q rounded to the cache's 16-bit type, F32 scores and sums, weights
 * rounded to 16 bits. KV of type F16 only. */
void cuda_tc_attention(struct CUstream_st *stream, const struct cuda_attention *a);
size_t cuda_tc_attention_scratch(int n_head, int head_dim, int n_pos, int n_ctx);

#ifdef __cplusplus
}
#endif
#endif
