/* engine/paths/cuda_session.h: the session of the CUDA paths and what their files share.
 *   cuda_open.c      open, close and everything that is told about a session; the path tables
 *   cuda_weights.c   the model's matrices and vectors onto the device, and back for the audit
 *   cuda_run.c       one run call, op by op: any number of positions, taps, overrides
 *   cuda_run_fused.c its neighbouring small ops in one launch, on demand
 *   cuda_override.c  an op whose value comes from the host: builtins on host views
 *   cuda_step.c      one token by the fused step, eager or as a graph
 *
 * All CUDA paths are one session: they differ in the form of the weights (tiles, F32, BF16, E4M3) and in how a single
 * token is run. Device buffers are described by struct fwd_view with device = 1; the host sees copies. */
#ifndef ENGINE_PATHS_CUDA_SESSION_H
#define ENGINE_PATHS_CUDA_SESSION_H

#include "engine.h"

#include "cuda/argmax.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/kernels_tc.h"
#include "paths/fused_numerics.h"

/* What tells one CUDA path from another. */
struct cuda_kind {
    const char *name, *summary;
    enum cuda_form form; /* of the weights */
    bool graph;          /* a single token is a replay of a captured graph */
};

struct cuda_matrix {
    const struct fwd_weight *file, *bias_file; /* bias_file: NULL or absent data: none */
    struct cuda_linear dev;
};

struct cuda_layer {
    const struct fwd_layer *file;
    float *attn_norm, *ffn_norm;
    struct cuda_matrix wq, wk, wv, wo, gate, up, down;
};
enum { CUDA_LAYER_MATRICES = 7 };
/* The seven, in the order of the struct. */
void cuda_layer_matrices(struct cuda_layer *l, struct cuda_matrix *out[CUDA_LAYER_MATRICES]);

/* Activations of one run call on the device, [n_batch] rows each, as in struct q4k_buffers. */
struct cuda_buffers {
    int32_t *ids;
    float *x, *norm, *q, *q_rot, *k, *k_rot, *v, *heads, *block, *mid, *gate, *up, *swiglu;
    struct cuda_act act_k, act_32;       /* the current op input, quantised, in planes */
    uint8_t *tap_k, *tap_32;             /* the same in the taps' layout */
    struct cuda_tc_act tc;               /* the same in BF16 or E4M3 */
    uint8_t *tap_tc;                     /* its tap */
    float *logits;                       /* [n_head_rows][n_vocab] */
    int32_t *argmax;                     /* [n_head_rows] */
    struct cuda_argmax_row *argmax_rows; /* [n_head_rows], zeros between calls */
    void *attention;
};

struct cuda_override {
    fwd_override_fn *fn;
    void *ud;
};

struct cuda_stepper; /* cuda_step.c */
struct cuda_host;    /* cuda_override.c */

enum { CUDA_MAX_CHOICES = 48, CUDA_HEAD_ROWS = 128 };

struct fwd_session {
    const struct cuda_kind *kind;
    const struct fwd_gguf *file;
    struct fwd_model *model;
    struct fwd_pool *pool;
    struct cuda_device device;
    int n_ctx, n_seq, n_batch;
    enum fwd_head head;
    enum fwd_dtype kv_type;
    bool scribble, fp8_fast, no_overlap;
    bool step_forced, ops_forced; /* --force step=fused, step=ops */
    bool ops_fused;               /* --force ops=fused */
    char *force;

    struct fwd_variant_choice choices[CUDA_MAX_CHOICES];
    int n_choices;

    const struct fwd_session *share; /* lends its weights, or NULL */
    bool shared_output;
    void *weights; /* one block */
    size_t weight_bytes;
    struct cuda_layer *layers;
    struct cuda_matrix output;
    float *output_norm;
    void *embedding;     /* file layout */
    int32_t *kv_head_of; /* device */
    float *rope_table;   /* device */

    void *arena; /* everything below */
    size_t arena_bytes;
    struct cuda_buffers buf;
    uint8_t *kv;
    int64_t kv_slot, kv_layer, kv_part, kv_head, kv_row; /* bytes from one to the next */
    int *n_past;                                         /* [n_seq], host */

    struct cuda_lt *lt;                /* BF16 and E4M3 */
    struct cuda_override *overrides;   /* [FWD_OP_COUNT][n_layer + 1], layer -1 first */
    int n_overrides, n_body_overrides; /* all; those of ops before the head */
    struct cuda_host *host;
    struct cuda_stepper *stepper; /* NULL: single tokens go op by op, too */
    const char *why_no_step;
    struct fwd_plan_fault plan_fault;
    bool has_plan_fault;
};

static inline struct cuda_override *cuda_override_at(const struct fwd_session *s, enum fwd_op op, int layer) {
    return &s->overrides[(int64_t)op * (s->model->config.n_layer + 1) + layer + 1];
}

/* ---- cuda_weights.c ---- */

/* Sizes everything, takes one block and fills it: matrices in the kind's form, norms and biases in F32, the embedding
 * as in the file. */
enum fwd_status cuda_weights_load(struct fwd_session *s, struct fwd_error *err);
/* fwd_hash64 of a matrix in file layout as what the kernels read gives it back. */
enum fwd_status cuda_matrix_checksum(const struct fwd_session *s, const struct cuda_matrix *m, uint64_t *out,
                                     struct fwd_error *err);
/* The same of n_bytes of device memory that hold file bytes. */
enum fwd_status cuda_bytes_checksum(const void *device, size_t n_bytes, uint64_t *out, struct fwd_error *err);
const char *cuda_form_name(enum cuda_form form);

/* ---- cuda_run.c ---- */

/* What an op needs besides its views. */
struct cuda_parts {
    const struct cuda_matrix *matrix;
    const struct fwd_weight *weight; /* of ops that are no products */
    const float *vector;             /* the same on the device: a norm's */
};
/* Enqueues an op on device views: in[0 .. 2] (NULL: none) to out. Quantised views are in the taps' layout; planes says
 * whether the planes hold the same already. bias: device, or NULL. */
enum fwd_status cuda_launch(struct fwd_session *s, const struct cuda_parts *parts, const struct fwd_view *const *in,
                            const struct fwd_view *out, const float *bias, int pos0, int n_pos, bool planes,
                            struct fwd_error *err);
enum fwd_status cuda_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err);
/* Shared by cuda_run.c and cuda_step.c. */
struct fwd_view cuda_view(const struct fwd_session *s, const struct fwd_run_args *args, enum fwd_op op, int layer,
                          int pos0, int n_pos, void *data, enum fwd_dtype dtype, int64_t n);
/* The kernels' own description of a quantised input of n values, in the session's buffers. */
struct cuda_act cuda_planes(const struct fwd_session *s, enum fwd_dtype format, int64_t n);
struct cuda_tc_act cuda_converted(const struct fwd_session *s, enum fwd_dtype format, int64_t n);
/* Whether a dtype is one that activations are quantised to. */
bool cuda_is_quantised(enum fwd_dtype dtype);
/* Brings the kernels' form of an input in line with its tap, which the host wrote. */
void cuda_read_tap(struct fwd_session *s, const struct fwd_view *tap, int n_pos);
/* Whether attention runs on tensor cores. */
bool cuda_attends_on_tensor_cores(const struct fwd_session *s);
struct fwd_view cuda_cache_view(const struct fwd_session *s, const struct fwd_run_args *args, enum fwd_op op, int layer,
                                int n_rows);

/* ---- cuda_override.c ---- */

/* Host staging: `n` buffers of at least the bytes that any tap of this session has. */
enum fwd_status cuda_host_create(struct fwd_session *s, struct fwd_error *err);
void cuda_host_free(struct fwd_session *s);
/* A host copy of a device view, complete when it returns. slot: which staging buffer. */
enum fwd_status cuda_to_host(struct fwd_session *s, const struct fwd_view *device, int slot, struct fwd_view *host,
                             struct fwd_error *err);
enum fwd_status cuda_from_host(struct fwd_session *s, const struct fwd_view *host, const struct fwd_view *device,
                               struct fwd_error *err);
/* Taps of ops that nobody overrides, a copy beside the computation: give hands the op's view over, flush waits for the
 * last one. The callback of one op runs while the next is computed. */
enum fwd_status cuda_tap_give(struct fwd_session *s, const struct fwd_run_args *args, const struct fwd_view *device,
                              struct fwd_error *err);
enum fwd_status cuda_tap_flush(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err);
/* The same for a digest of the view. */
enum fwd_status cuda_digest_give(struct fwd_session *s, const struct fwd_run_args *args, const struct fwd_view *device,
                                 struct fwd_error *err);
/* Calls the override of out's op with host views, then its tap. */
enum fwd_status cuda_call_override(struct fwd_session *s, const struct fwd_run_args *args,
                                   const struct cuda_parts *parts, const struct fwd_view *const *in,
                                   const struct fwd_view *out, struct fwd_error *err);

/* ---- cuda_step.c ---- */

/* s->stepper stays NULL, with s->why_no_step for people, where the fused step does not serve the model. */
enum fwd_status cuda_stepper_create(struct fwd_session *s, struct fwd_error *err);
void cuda_stepper_free(struct fwd_session *s);
/* Whether the step goes on to the logits: a head in another form is run op by op after it. */
bool cuda_stepper_has_head(const struct fwd_session *s);
/* One token. head false: the step ends with the last layer's l_out in buf.x. */
enum fwd_status cuda_stepper_run(struct fwd_session *s, const struct fwd_run_args *args, bool head,
                                 struct fwd_error *err);
/* Launch i, for the dispatch table. */
bool cuda_stepper_launch(const struct fwd_session *s, int i, const char **kernel, enum fwd_op *op, int *layer);

#endif
