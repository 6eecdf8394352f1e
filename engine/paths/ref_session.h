/* engine/paths/ref_session.h: the reference paths f32 and f64, which differ in one thing: the type in which an op's
 * value is stored and in which matmul_f / matmul_d work. Every other op is computed row by row in double and rounded
 * once to that type. Private to engine/paths/ref_*.c, path_f32.c and path_f64.c.
 *
 * They share no arithmetic with the quantised paths. No KV cache: a run call takes a whole sequence from position 0, so
 * the knob n_ctx says how long it may be and n_batch says nothing. */
#ifndef ENGINE_PATHS_REF_SESSION_H
#define ENGINE_PATHS_REF_SESSION_H

#include "engine.h"
#include "ops/variant_table.h"

struct ref_override {
    fwd_override_fn *fn;
    void *ud;
};

struct ref_bound {
    int layer;
    const struct fwd_weight *weight;
};

struct fwd_session {
    enum fwd_dtype real; /* FWD_F32 or FWD_F64 */
    struct fwd_model *model;
    struct fwd_pool *pool;
    int n_ctx, n_seq;
    bool act;      /* "as:q4k-cpu": matmul inputs are quantised and dequantised */
    bool kv_f16;   /* then also: K and V rows are rounded to binary16 */
    bool head_f32; /* then also: the head reads its input as it is */
    const struct fwd_variant *matmul;
    const char *why;
    struct ref_override *overrides; /* [FWD_OP_COUNT][n_layer], an op outside layers in layer 0 */
    struct ref_bound *bound;
    int n_bound;

    /* Buffers for n_ctx positions, allocated once; pages that a short sequence does not touch stay unused. */
    void *values[FWD_OP_COUNT]; /* [n_ctx][width of the op]; result_output: [REF_HEAD_CHUNK][n_vocab] */
    void *unpacked;             /* [n_ctx][widest matmul input], dequantised activations */
    double *k_rows, *v_rows;    /* [n_ctx][kv width], what attention reads, widened */
    double *freq;               /* [n_rope / 2] */
    int64_t max_width;
    double *row_scratch; /* [n_threads][row_scratch_len] */
    int64_t row_scratch_len;
    void *matmul_scratch;
};

enum { REF_HEAD_CHUNK = 64 }; /* positions per call of the head when the caller gave no buffer of type `real` */

/* ref_session.c: the functions of the path table that f32 and f64 share. */
enum fwd_status ref_probe(struct fwd_error *err);
void ref_describe(struct fwd_path_info *out);
enum fwd_status ref_open(struct fwd_session **out, enum fwd_dtype real, const struct fwd_gguf *file,
                         const struct fwd_knobs *knobs, struct fwd_error *err);
enum fwd_status ref_seq_begin(struct fwd_session *s, int seq, struct fwd_error *err);
enum fwd_status ref_override(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                             struct fwd_error *err);
/* Where the override of an op is kept. */
struct ref_override *ref_override_slot(const struct fwd_session *s, enum fwd_op op, int layer);
const struct fwd_config *ref_config(const struct fwd_session *s);
bool ref_variant(const struct fwd_session *s, int i, struct fwd_variant_choice *out);
bool ref_bound_weight(const struct fwd_session *s, int i, struct fwd_bound_weight *out);
void ref_close(struct fwd_session *s);

size_t ref_real_bytes(const struct fwd_session *s);
/* Values a row of an op has. */
int64_t ref_width(const struct fwd_config *c, enum fwd_op op);
/* The op's weight (or NULL) and bias (a weight without data when there is none; NULL for ops that never have one). */
const struct fwd_weight *ref_weight(const struct fwd_model *m, enum fwd_op op, int layer);
const struct fwd_weight *ref_bias(const struct fwd_model *m, enum fwd_op op, int layer);
/* Format of the quantised input of a product with w: FWD_Q8_K, FWD_Q8_32, or FWD_F32 for "as it is". */
enum fwd_dtype ref_act_format(const struct fwd_session *s, enum fwd_op op, const struct fwd_weight *w);
/* Format of the q8 tap; FWD_F32: it is absent. */
enum fwd_dtype ref_tap_format(const struct fwd_session *s, enum fwd_op op, int layer);

/* ref_run.c */
enum fwd_status ref_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err);
/* ref_numerics.c */
bool ref_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out);

#endif
