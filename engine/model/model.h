/* engine/model/model.h: a model file bound once: hyper-parameters read, tensors found by name, types and every
 * dimension checked. Views into the mapping; hot code never looks anything up. */
#ifndef ENGINE_MODEL_MODEL_H
#define ENGINE_MODEL_MODEL_H

#include "core/status.h"
#include "format/gguf.h"

#include <stdbool.h>
#include <stdint.h>

enum fwd_rope_pairing {
    FWD_ROPE_NORM = 0, /* pairs (2i, 2i+1) */
    FWD_ROPE_NEOX = 2  /* pairs (i, i + d/2) */
};

enum { FWD_MAX_HEADS = 1024, FWD_MAX_LAYERS = 1024 };

/* Plain data, so that a fault can be planted in it and a report can print it. */
struct fwd_config {
    char arch[32];
    int n_layer, n_embd, n_ff, n_head, n_kv_head, head_dim;
    int n_rope; /* dimensions that are rotated */
    int64_t n_vocab;
    int n_ctx_train;
    enum fwd_rope_pairing rope_pairing;
    double rope_theta;
    const float *rope_factors; /* [n_rope / 2] divisors of the frequencies (llama-3 scaling), or NULL */
    float norm_eps;
    bool tied_head;
    int kv_head_of[FWD_MAX_HEADS]; /* which KV head query head h reads: h / (n_head / n_kv_head) */
};

/* A weight as bound: N rows of K values in file layout. N = 1 for vectors. */
struct fwd_weight {
    const char *name;
    uint32_t type;
    int64_t n_rows; /* N */
    int64_t n_cols; /* K, contiguous */
    int64_t row_bytes;
    const uint8_t *data; /* in the mapping; NULL for an optional weight that the file lacks */
    const struct fwd_gguf_tensor *tensor;
};

struct fwd_layer {
    struct fwd_weight attn_norm, wq, wk, wv, bq, bk, bv, wo; /* norms, biases: F32 vectors */
    struct fwd_weight ffn_norm, gate, up, down;
};

struct fwd_model {
    const struct fwd_gguf *file; /* borrowed */
    struct fwd_config config;
    struct fwd_weight tok_embd, output_norm, output; /* output is tok_embd again when tied */
    struct fwd_layer *layers;
};

/* Called after the configuration was read and before anything uses it: the place where faults in shared code go. */
typedef void fwd_config_hook(void *ud, struct fwd_config *config);
/* Called by a path after fwd_model_bind and before anything is made from the weights: faults in the binding go here. A
 * weight may become another one of the same shape; its bytes must stay valid as long as the file. */
typedef void fwd_model_hook(void *ud, struct fwd_model *model);

/* `file` must outlive *out. hook may be NULL. */
enum fwd_status fwd_model_bind(struct fwd_model **out, const struct fwd_gguf *file, fwd_config_hook *hook,
                               void *hook_ud, struct fwd_error *err);
void fwd_model_free(struct fwd_model *m);
/* Calls fn for every bound weight in a fixed order (embedding, layer by layer, output norm, output); absent ones and a
 * tied output are skipped. */
void fwd_model_each_weight(const struct fwd_model *m, void (*fn)(void *ud, int layer, const struct fwd_weight *w),
                           void *ud);

#endif
