/* harness/spec/spec_model.h: the harness's own binding of a model file, for the evaluators. Internal to harness/spec.
 */
#ifndef HARNESS_SPEC_SPEC_MODEL_H
#define HARNESS_SPEC_SPEC_MODEL_H

#include "spec/judge.h"

/* N rows of K values in file layout; data == NULL: an optional tensor that the file lacks. */
struct spec_weight {
    const char *name;
    uint32_t type;
    int64_t n_rows, n_cols, row_bytes;
    const uint8_t *data;
    const struct fwd_gguf_tensor *tensor; /* whose bytes these are, NULL: of no file */
};

struct spec_layer {
    struct spec_weight attn_norm, q, k, v, q_bias, k_bias, v_bias, attn_out;
    struct spec_weight ffn_norm, gate, up, down;
};

struct par_spec_model {
    struct par_spec_config config;
    const struct fwd_gguf *file;
    struct spec_weight embedding, output_norm, output; /* output is the embedding again when tied */
    struct spec_weight rope_factors;                   /* [n_rope / 2] F32, or absent */
    struct spec_layer *layers;
};

/* The matrix (and bias, may be absent) of a matmul op, the vector of a norm, the table of inp_embd; NULL for an op that
 * has no weight or a layer out of range. */
const struct spec_weight *par_spec_weight(const struct par_spec_model *m, enum fwd_op op, int layer);
const struct spec_weight *par_spec_bias(const struct par_spec_model *m, enum fwd_op op, int layer);

/* A copy of the model that may be changed: another epsilon, matrix, stride, bias, norm, ... of one layer (or, with
 * layer -1, of what lies outside layers). What is not changed stays the model's own, which must outlive it. */
struct par_spec_altered {
    struct par_spec_model model; /* its config may be written to */
    struct spec_layer *layer;    /* of `layer`, NULL for -1 */
};
enum fwd_status par_spec_alter(struct par_spec_altered *out, const struct par_spec_model *m, int layer,
                               struct fwd_error *err);
void par_spec_alter_free(struct par_spec_altered *a);
/* The changeable matrix, norm or table of an op of that layer; NULL for an op without. */
struct spec_weight *par_spec_altered_weight(struct par_spec_altered *a, enum fwd_op op);
/* Its bias; data == NULL takes it away. NULL for an op that never has one. */
struct spec_weight *par_spec_altered_bias(struct par_spec_altered *a, enum fwd_op op);

#endif
