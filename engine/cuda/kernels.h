/* engine/cuda/kernels.h: what the CUDA kernels compute, as plain C calls that enqueue work on a stream and return.
 *
 * Every function here is the op of the same name on the CPU, bit for bit: the canonical arithmetic is that of
 * ops/act_quant, ops/matmul_q, ops/matmul_f, ops/rmsnorm, ops/rope, ops/attention, ops/swiglu and ops/add, and the
 * declared numerics of q4k-cpu and of matmul_f hold for it (paths/q4k_cpu_numerics.c). Compiled without contraction; no
 * atomics on floats. What computes otherwise (tensor cores in BF16 and E4M3) is in kernels_tc.h.
 *
 * All pointers are device memory unless said otherwise, 256-byte aligned where they start a buffer. Launch errors stay
 * in the CUDA runtime until the caller asks (cudaGetLastError). */
#ifndef ENGINE_CUDA_KERNELS_H
#define ENGINE_CUDA_KERNELS_H

#include "core/types.h"
#include "cuda/tiles.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* what cudaStream_t points to */

/* Quantised activations, in planes. n_sb = ceil(n / 256) superblocks a row; the columns beyond n hold q = 0. */
struct cuda_act {
    enum fwd_dtype format; /* FWD_Q8_K or FWD_Q8_32 */
    int n_sb;
    int8_t *q;    /* [n_pos][256 * n_sb] */
    float *d;     /* [n_pos][n_sb] (Q8_K) or [n_pos][8 * n_sb] (Q8_32) */
    int16_t *sum; /* [n_pos][16 * n_sb]: sums of 16 values */
};

enum cuda_form { CUDA_FORM_NONE = 0, CUDA_FORM_TILES, CUDA_FORM_F32, CUDA_FORM_BF16, CUDA_FORM_E4M3 };

/* A matrix on the device. */
struct cuda_linear {
    enum cuda_form form;
    uint32_t type;      /* ggml type of the file's tensor */
    enum fwd_dtype act; /* what it multiplies with: FWD_Q8_K, FWD_Q8_32, or FWD_F32 for the float forms */
    int64_t n_rows, n_cols;
    int n_sb;           /* ceil(n_cols / 256) */
    const void *data;   /* TILES: tiles.h. F32, BF16, E4M3: [n_rows][n_cols] */
    const float *scale; /* E4M3: [n_rows], value = scale * e4m3; else NULL */
    const float *bias;  /* [n_rows] or NULL */
};

/* ---- one op a call, any number of positions -------------------------------------------------------------------- */

/* Rows ids[0 .. n_pos-1] of a table in file layout (any decodable type), decoded as engine/quant does. */
void cuda_embed(struct CUstream_st *stream, uint32_t type, const void *table, int64_t n_cols, const int32_t *ids,
                int n_pos, float *y);
void cuda_rmsnorm(struct CUstream_st *stream, const float *x, const float *w, float *y, int n, int n_pos, float eps);
/* tap: NULL, or where the rows go in the tap's own layout as well (struct fwd_q8_k or fwd_q8_32, ceil(n / block) of
 * them a row). n is a multiple of 256 for Q8_K, of 32 for Q8_32. */
void cuda_quantise(struct CUstream_st *stream, const float *x, int n, int n_pos, const struct cuda_act *out,
                   uint8_t *tap);
/* From the tap's own layout into planes: after an override wrote a quantised tap. */
void cuda_act_from_tap(struct CUstream_st *stream, const uint8_t *tap, int n, int n_pos, const struct cuda_act *out);
/* y[m][n]: ld_y floats from one position to the next. Forms TILES and F32. n_pos 1 takes the GEMV kernel, more the
 * tensor-core one (exact int32): the same bits. */
void cuda_matmul_q(struct CUstream_st *stream, const struct cuda_linear *w, const struct cuda_act *a, int n_pos,
                   float *y, int64_t ld_y);
void cuda_matmul_f(struct CUstream_st *stream, const struct cuda_linear *w, const float *x, int64_t ld_x, int n_pos,
                   float *y, int64_t ld_y);
/* turn: the table of fwd_rope_table from position 0. */
void cuda_rope(struct CUstream_st *stream, const float *x, float *y, const float *turn, int pos0, int n_pos,
               int n_heads, int head_dim, int n_rope, bool neox);

/* Rows of one K or V part of one sequence and layer: head h of position p at data + h * stride_head + p * stride_row.
 */
struct cuda_kv {
    enum fwd_dtype type; /* FWD_F16 or FWD_F32 */
    void *data;
    int64_t stride_head, stride_row; /* bytes */
    int n_kv_head, head_dim;
};
void cuda_kv_store(struct CUstream_st *stream, const float *x, const struct cuda_kv *kv, int pos0, int n_pos);

/* All heads of n_pos positions. scratch: cuda_attention_scratch bytes. kv_head_of: [n_head]. Any head_dim up to 256. */
struct cuda_attention {
    const float *q; /* [n_pos][n_head * head_dim] */
    float *o;       /* the same shape */
    struct cuda_kv k, v;
    const int32_t *kv_head_of;
    int n_head, pos0, n_pos;
    float scale; /* 1 / sqrtf(head_dim), made on the host */
    void *scratch;
};
size_t cuda_attention_scratch(int n_head, int head_dim, int n_pos, int n_ctx);
void cuda_attention(struct CUstream_st *stream, const struct cuda_attention *a);

void cuda_swiglu(struct CUstream_st *stream, const float *gate, const float *up, float *y, int64_t n);
void cuda_add(struct CUstream_st *stream, const float *a, const float *b, float *y, int64_t n);

/* n_rows rows of file layout (row_bytes apart) to F32, to BF16 (nearest even), or to E4M3 with one scale a row by the
 * rule of cuda/e4m3.cuh (use its functions). dst: [n_rows][n_cols]. scale: E4M3 only. */
void cuda_dequantise(struct CUstream_st *stream, uint32_t type, const void *src, int64_t row_bytes, int64_t n_rows,
                     int64_t n_cols, enum cuda_form form, void *dst, float *scale);
/* Fills n_bytes with NaNs (0x7fbadbad): what nobody wrote shows. */
void cuda_scribble(struct CUstream_st *stream, void *data, size_t n_bytes);

/* ---- one token, fused ---------------------------------------------------------------------------------------------
 * The whole step of one token: from the embedded row to the logits, in as few launches as there are real dependencies,
 * with programmatic dependent launches. Position, sequence slot and whether taps are wanted are read from device
 * memory, so that a captured graph of these launches serves every later step. The same bits as the ops above, one by
 * one. */

/* Where a step's intermediates go on the side: device memory, or NULL. Per layer; the head's are in the last entry. The
 * Q8 taps are in the tap's own layout. */
struct cuda_step_taps {
    float *attn_norm, *q, *k, *v, *q_rope, *k_rope, *heads, *attn_out, *ffn_inp, *ffn_norm, *gate, *up, *swiglu,
        *ffn_out, *l_out;
    uint8_t *attn_norm_q8_k, *attn_norm_q8_32, *heads_q8, *ffn_norm_q8_k, *ffn_norm_q8_32, *swiglu_q8;
    float *result_norm; /* head only */
    uint8_t *result_q8; /* head only */
};

struct cuda_step_layer {
    const float *attn_norm, *ffn_norm;
    struct cuda_linear wq, wk, wv, wo, gate, up, down; /* all TILES, or all F32 */
    int64_t kv_layer;                                  /* bytes from the slot's start to this layer's K part */
};

struct cuda_step_state { /* in device memory, written before each step */
    int32_t pos;         /* of this token */
    int32_t slot;
    int32_t taps;  /* 0: no taps are stored this time */
    int32_t token; /* its id: for the caller, who embeds it into x */
};

/* A launch of the step, by the op it ends with; for faults planted in the plan and for reports. */
enum cuda_plan_fault { CUDA_PLAN_OK = 0, CUDA_PLAN_SKIP, CUDA_PLAN_SHORT_GRID, CUDA_PLAN_EARLY };

struct cuda_step {
    int n_layer, n_embd, n_ff, n_head, n_kv_head, head_dim, n_rope, n_ctx, n_vocab;
    bool neox;
    float eps, scale;
    const int32_t *kv_head_of; /* [n_head] */
    const float *turn;         /* rope table from position 0 */
    const float *output_norm;
    struct cuda_linear output;            /* form NONE: no head, the last layer's l_out is left in x */
    const struct cuda_step_layer *layers; /* host array [n_layer] */
    enum fwd_dtype kv_type;
    uint8_t *kv;                               /* slot 0, layer 0, K, head 0, position 0 */
    int64_t kv_slot, kv_part, kv_head, kv_row; /* bytes: from slot to slot, K to V, head to head, row to row */
    const struct cuda_step_state *state;
    const struct cuda_step_taps *taps; /* device array [n_layer + 1], or NULL */
    float *x;                          /* [n_embd] in: the embedded row */
    float *logits;                     /* [n_vocab] out */
    void *scratch;                     /* cuda_step_scratch bytes, zeroed once before the first step */
    bool overlap;                      /* programmatic dependent launches on; off: plain stream order, the same bits */
    /* One launch of the plan may be broken on purpose. */
    enum cuda_plan_fault fault;
    enum fwd_op fault_op;
    int fault_layer; /* below 0: that launch of every layer */
    /* NULL, or called on the host after the last launch of a layer was enqueued, and with layer = n_layer after the
     * head's: the place to fork copies of what that layer stored on the side. */
    void (*after_layer)(void *ud, int layer, struct CUstream_st *stream);
    void *after_layer_ud;
};
/* Whether the fused step serves a model and its weight types; why_not gets a phrase when it does not. */
bool cuda_step_serves(const struct cuda_step *s, const char **why_not);
size_t cuda_step_scratch(const struct cuda_step *s);
void cuda_step_enqueue(const struct cuda_step *s, struct CUstream_st *stream);
/* Launches that cuda_step_enqueue makes, as (kernel name, op it ends with), for `parity paths --explain`; false past
 * the end. */
bool cuda_step_launch(const struct cuda_step *s, int i, const char **kernel, enum fwd_op *op, int *layer);

#ifdef __cplusplus
}
#endif
#endif
