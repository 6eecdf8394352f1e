/* engine/paths/q4k_cpu_ops.c: the ops of path q4k-cpu, from views to a view. Rows of a batch are split over threads;
 * no result depends on how. */
#include "paths/q4k_cpu.h"

#include "quant/quant.h"

#include <string.h>

static struct fwd_session *session_of(const struct fwd_op_call *call) {
    return ((const struct q4k_step *)call->path_state)->session;
}

static void *row(const struct fwd_view *view, int64_t i) {
    return (uint8_t *)view->data + i * view->nb[1];
}

/* fn once per position, in parallel where that is worth waking the workers. */
struct row_job {
    const struct fwd_op_call *call;
    void (*fn)(const struct fwd_op_call *call, int64_t i);
};

static void run_row_part(void *ctx, int thread, int n_threads) {
    const struct row_job *job = ctx;
    int64_t begin, end;
    fwd_range_split(job->call->n_pos, 1, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        job->fn(job->call, i);
}

static enum fwd_status run_rows(const struct fwd_op_call *call, void (*fn)(const struct fwd_op_call *, int64_t)) {
    struct row_job job = {.call = call, .fn = fn};
    fwd_pool_run(call->n_pos > 1 ? call->pool : NULL, run_row_part, &job);
    return FWD_OK;
}

static void embed_row(const struct fwd_op_call *call, int64_t i) {
    const struct fwd_weight *w = call->weight;
    int32_t id = ((const int32_t *)call->in[0]->data)[i];
    fwd_decode_for(w->type)(w->data + id * w->row_bytes, row(call->out, i), w->n_cols);
}

enum fwd_status q4k_embed(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return run_rows(call, embed_row);
}

static void norm_row(const struct fwd_op_call *call, int64_t i) {
    const float *w = (const float *)(const void *)call->weight->data;
    session_of(call)->rmsnorm(row(call->in[0], i), w, row(call->out, i), call->out->ne[0], call->config->norm_eps);
}

enum fwd_status q4k_norm(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return run_rows(call, norm_row);
}

static void quantise_row(const struct fwd_op_call *call, int64_t i) {
    struct fwd_session *s = session_of(call);
    if (call->out->dtype == FWD_Q8_K)
        s->act_quant_k(row(call->in[0], i), row(call->out, i), call->out->ne[0]);
    else
        s->act_quant_32(row(call->in[0], i), row(call->out, i), call->out->ne[0]);
}

enum fwd_status q4k_quantise(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return run_rows(call, quantise_row);
}

enum fwd_status q4k_multiply(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    struct fwd_session *s = session_of(call);
    const struct q4k_linear *linear = ((const struct q4k_step *)call->path_state)->linear;
    if (linear->packed) {
        struct fwd_matmul_q_args args = {.w = linear->packed,
                                         .act = call->in[0]->data,
                                         .act_stride = call->in[0]->nb[1],
                                         .n_pos = call->n_pos,
                                         .bias = call->bias,
                                         .y = call->out->data,
                                         .ld_y = call->out->nb[1] / (int64_t)sizeof(float),
                                         .scratch = s->matmul_scratch,
                                         .pool = call->pool};
        fwd_matmul_q(&args);
        return FWD_OK;
    }
    struct fwd_matmul_f_args args = {.w = linear->weight,
                                     .x = call->in[0]->data,
                                     .ld_x = call->in[0]->nb[1] / (int64_t)sizeof(float),
                                     .n_pos = call->n_pos,
                                     .bias = call->bias,
                                     .y = call->out->data,
                                     .ld_y = call->out->nb[1] / (int64_t)sizeof(float),
                                     .scratch = s->matmul_scratch,
                                     .pool = call->pool};
    s->matmul_f(&args);
    return FWD_OK;
}

static void rope_row(const struct fwd_op_call *call, int64_t i) {
    struct fwd_session *s = session_of(call);
    const struct fwd_config *c = call->config;
    const float *turn = s->rope_table + (call->pos0 + i) * (c->n_rope / 2) * 2;
    int n_heads = (int)(call->out->ne[0] / c->head_dim);
    s->rope(row(call->in[0], i), row(call->out, i), turn, n_heads, c->head_dim, c->n_rope, c->rope_pairing);
}

enum fwd_status q4k_rope(const struct fwd_op_call *call, struct fwd_error *err) {
    struct fwd_session *s = session_of(call);
    FWD_FAIL_IF(call->pos0 < 0 || call->pos0 + call->n_pos > s->n_ctx, FWD_ERANGE, err,
                "%s-%d: positions %d to %d lie outside the %d of this session", fwd_op_name(call->op), call->layer,
                call->pos0, call->pos0 + call->n_pos - 1, s->n_ctx);
    return run_rows(call, rope_row);
}

static void store_row(const struct fwd_op_call *call, int64_t i) {
    enum fwd_kv_part part = call->op == FWD_OP_K_CACHE ? FWD_KV_K : FWD_KV_V;
    fwd_kv_cache_store(session_of(call)->kv, call->seq, call->layer, part, (int)(call->pos0 + i), row(call->in[0], i));
}

enum fwd_status q4k_store(const struct fwd_op_call *call, struct fwd_error *err) {
    struct fwd_session *s = session_of(call);
    FWD_FAIL_IF(call->pos0 < 0 || call->pos0 + call->n_pos > s->n_ctx, FWD_ERANGE, err,
                "%s-%d: positions %d to %d lie outside the %d of this session", fwd_op_name(call->op), call->layer,
                call->pos0, call->pos0 + call->n_pos - 1, s->n_ctx);
    return run_rows(call, store_row);
}

enum fwd_status q4k_attend(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    struct fwd_session *s = session_of(call);
    const struct fwd_view *k = call->in[1], *v = call->in[2];
    struct fwd_attention_args args = {.config = call->config,
                                      .groups = s->groups,
                                      .n_groups = s->n_groups,
                                      .q = call->in[0]->data,
                                      .o = call->out->data,
                                      .k = k->data,
                                      .v = v->data,
                                      .stride_row_k = k->nb[2],
                                      .stride_head_k = k->nb[1],
                                      .stride_row_v = v->nb[2],
                                      .stride_head_v = v->nb[1],
                                      .kv_type = k->dtype,
                                      .pos0 = call->pos0,
                                      .n_pos = call->n_pos,
                                      .scratch = s->attention_scratch,
                                      .pool = call->pool};
    fwd_attention(&args, s->attention);
    return FWD_OK;
}

/* Element-wise ops: the rows of their views are contiguous, so a batch is one long row. */
enum { ELEMENT_GRAIN = 4096 };

static void run_elements(void *ctx, int thread, int n_threads) {
    const struct fwd_op_call *call = ctx;
    struct fwd_session *s = session_of(call);
    int64_t begin, end;
    fwd_range_split(call->out->ne[0] * call->n_pos, ELEMENT_GRAIN, thread, n_threads, &begin, &end);
    const float *a = call->in[0]->data, *b = call->in[1]->data;
    float *y = call->out->data;
    if (call->op == FWD_OP_FFN_SWIGLU)
        s->swiglu(a + begin, b + begin, y + begin, end - begin);
    else
        s->add(a + begin, b + begin, y + begin, end - begin);
}

enum fwd_status q4k_swiglu(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    bool wide = call->out->ne[0] * call->n_pos >= 4 * ELEMENT_GRAIN;
    fwd_pool_run(wide ? call->pool : NULL, run_elements, (void *)(uintptr_t)call);
    return FWD_OK;
}

enum fwd_status q4k_add(const struct fwd_op_call *call, struct fwd_error *err) {
    return q4k_swiglu(call, err);
}
