/* engine/paths/q4k_cpu.h: the session of path q4k-cpu and what its files share.
 *   path_q4k_cpu.c  open, close, and everything that is told about a session
 *   q4k_cpu_ops.c   one builtin per op: inputs as views, output as a view
 *   q4k_cpu_run.c   the order of the ops, taps and overrides
 *   q4k_cpu_numerics.c  what each op promises about its arithmetic
 *
 * A builtin reads data, positions and bias from its call, and weights and configuration as the session bound them. */
#ifndef ENGINE_PATHS_Q4K_CPU_H
#define ENGINE_PATHS_Q4K_CPU_H

#include "engine.h"
#include "model/kv_cache.h"
#include "ops/act_quant/act_quant.h"
#include "ops/add/add.h"
#include "ops/attention/attention.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"

/* A matrix as the session multiplies with it. */
struct q4k_linear {
    const struct fwd_weight *weight;
    const float *bias;         /* [n_rows] or NULL */
    struct fwd_packed *packed; /* NULL: in float, from the file */
    enum fwd_dtype act;        /* FWD_Q8_K, FWD_Q8_32, or FWD_F32 */
};

struct q4k_layer {
    const struct fwd_layer *weights;
    struct q4k_linear wq, wk, wv, wo, gate, up, down;
};

struct q4k_override {
    fwd_override_fn *fn;
    void *ud;
};

/* Buffers of one run call, [n_batch] rows each. */
struct q4k_buffers {
    float *x;         /* residual stream: inp_embd, l_out */
    float *norm;      /* attn_norm, ffn_norm, result_norm */
    float *q, *q_rot; /* Qcur, Qcur_rope */
    float *k, *k_rot, *v;
    float *heads; /* kqv_out */
    float *block; /* attn_out, ffn_out */
    float *mid;   /* ffn_inp */
    float *gate, *up, *swiglu;
    uint8_t *q8_k, *q8_32; /* the current op input, quantised */
};

enum { Q4K_MAX_CHOICES = 32 };

struct fwd_session {
    const struct fwd_gguf *file;
    struct fwd_model *model;
    struct fwd_pool *pool;
    unsigned caps;
    int n_ctx, n_seq, n_batch;
    enum fwd_head head;
    bool scribble;
    char *force; /* copy of the knob, or NULL */

    act_quant_k_fn *act_quant_k;
    act_quant_32_fn *act_quant_32;
    rmsnorm_fn *rmsnorm;
    rope_fn *rope;
    attention_fn *attention;
    swiglu_fn *swiglu;
    add_fn *add;
    matmul_f_fn *matmul_f;
    struct fwd_variant_choice choices[Q4K_MAX_CHOICES];
    int n_choices;
    char why_fastest[64];

    struct q4k_layer *layers;
    struct q4k_linear output;
    struct fwd_kv_cache *kv;
    struct fwd_attention_group *groups;
    int n_groups;
    struct q4k_override *overrides; /* [FWD_OP_COUNT][n_layer + 1], layer -1 first */

    void *arena; /* everything below */
    size_t arena_bytes;
    struct q4k_buffers buf;
    float *rope_table; /* [n_ctx][n_rope / 2][2] */
    float *attention_scratch;
    void *matmul_scratch; /* of fwd_matmul_q and of matmul_f, the larger one */
};

/* What a builtin finds behind fwd_op_call.path_state. */
struct q4k_step {
    struct fwd_session *session;
    const struct q4k_linear *linear; /* of matrix products */
};

typedef enum fwd_status q4k_builtin_fn(const struct fwd_op_call *call, struct fwd_error *err);
q4k_builtin_fn q4k_embed, q4k_norm, q4k_quantise, q4k_multiply, q4k_rope, q4k_store, q4k_attend, q4k_swiglu, q4k_add;

enum fwd_status q4k_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err);
bool q4k_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out);

static inline struct q4k_override *q4k_override_at(const struct fwd_session *s, enum fwd_op op, int layer) {
    return &s->overrides[(int64_t)op * (s->model->config.n_layer + 1) + layer + 1];
}

#endif
