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

/* ---- products ---------------------------------------------------------------------------------------------------- */
/* cuBLASLt, loaded when a session opens (it is half a gigabyte: nothing links with it), with 64 MB of device memory. */
struct cuda_lt;
/* FWD_EUNAVAILABLE with the loader's reason where libcublasLt is not there. Of the current device. */
enum fwd_status cuda_lt_create(struct cuda_lt **out, struct fwd_error *err);
void cuda_lt_free(struct cuda_lt *lt);

/* An op input as the products read it: BF16 rows, or E4M3 rows with a scale each (cuda/e4m3.cuh). Rows are ld values
 * apart, ld a multiple of 16. */
struct cuda_tc_act {
    enum cuda_form form; /* CUDA_FORM_BF16 or CUDA_FORM_E4M3 */
    int64_t ld;
    void *data;
    float *scale; /* E4M3: [n_pos] */
};
/* y[m][n] F32 = x . w (+ bias where w has one), w of the form of x. fast: E4M3's fast accumulation (off: a default).
 * One after the other on one stream. The algorithm is the library's choice for the shape, made at the shape's first
 * product; the same bits each time for the same n_pos. E4M3: n_rows and n_cols are multiples of 16. */
enum fwd_status cuda_lt_matmul(struct cuda_lt *lt, struct CUstream_st *stream, const struct cuda_linear *w,
                               const struct cuda_tc_act *x, int n_pos, float *y, int64_t ld_y, bool fast,
                               struct fwd_error *err);
/* The largest number of parts into which a sum over k was split so far. */
int cuda_lt_split(const struct cuda_lt *lt);

/* ---- conversions ------------------------------------------------------------------------------------------------- */
/* x: [n_pos][n] F32 to out; n a multiple of 16. tap: NULL, or where the same goes in the tap's layout (FWD_BF16 or
 * FWD_E4M3 of core/types.h, n_pos rows). */
void cuda_tc_convert(struct CUstream_st *stream, const float *x, int n, int n_pos, const struct cuda_tc_act *out,
                     uint8_t *tap);
/* From the tap's layout: after an override wrote one. */
void cuda_tc_from_tap(struct CUstream_st *stream, const uint8_t *tap, int n, int n_pos, const struct cuda_tc_act *out);
/* y[m][i] = y[m][i] * scale_x[m] * scale_w[i] + bias[i], i < n; both scales or bias may be NULL: what cuda_lt_matmul
 * does itself where the library cannot. */
void cuda_tc_finish(struct CUstream_st *stream, const float *scale_w, const float *scale_x, const float *bias, int n,
                    int n_pos, float *y, int64_t ld_y);

/* ---- attention --------------------------------------------------------------------------------------------------- */
/* Whether the kernel below has this head size (64, 128) and KV type (F16). */
bool cuda_tc_attention_serves(const struct cuda_attention *a);
/* Causal attention of a prompt: q rounded to F16, F32 scores, sums and scaling, weights rounded to F16 before they meet
 * the values (tc_attention.cu's head). */
void cuda_tc_attention(struct CUstream_st *stream, const struct cuda_attention *a);
size_t cuda_tc_attention_scratch(int n_head, int head_dim, int n_pos, int n_ctx);

/* ---- promises ---------------------------------------------------------------------------------------------------- */
/* Of the ops above, with scalars and row conversions of kernels.h's arithmetic around them. major: of the card's
 * compute capability. form: CUDA_FORM_BF16 or CUDA_FORM_E4M3. */
void cuda_tc_numerics_matmul(int major, enum cuda_form form, bool fast, bool has_bias, struct fwd_numerics *out);
void cuda_tc_numerics_convert(enum cuda_form form, struct fwd_numerics *out);
void cuda_tc_numerics_attention(int major, struct fwd_numerics *out);

/* One m16n8k16 of BF16 or binary16: *sum += ab[0] ab[16] + .. + ab[15] ab[31]. For the test that holds the promises
 * against the instruction. */
void cuda_tc_probe(struct CUstream_st *stream, bool bf16, const uint16_t *ab, float *sum);
/* The same in binary16 through Hopper's warpgroup instruction; false: not on this card. */
bool cuda_tc_probe_group(struct CUstream_st *stream, const uint16_t *ab, float *sum);

#ifdef __cplusplus
}
#endif
#endif
