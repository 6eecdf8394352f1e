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

#endif
