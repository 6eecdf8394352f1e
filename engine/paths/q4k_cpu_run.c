/* engine/paths/q4k_cpu_run.c: one run call of path q4k-cpu: which op follows which, with what inputs. Taps and
 * overrides act between ops, so that with and without them the same kernels see the same bytes. */
#include "paths/q4k_cpu.h"

#include <string.h>

struct run {
    struct fwd_session *s;
    const struct fwd_run_args *args;
    int n_pos, pos0;
    struct fwd_error *err;
};

static struct fwd_view make_view(const struct run *r, enum fwd_op op, int layer, void *data, enum fwd_dtype dtype,
                                 int64_t n) {
    int64_t row_bytes = (int64_t)fwd_dtype_row_bytes(dtype, n);
    bool blocks = dtype == FWD_Q8_K || dtype == FWD_Q8_32;
    struct fwd_view view = {.size = sizeof view,
                            .op = op,
                            .layer = layer,
                            .seq = r->args->seq,
                            .pos0 = r->pos0,
                            .n_pos = r->n_pos,
                            .dtype = dtype,
                            .ne = {n, r->n_pos, 1, 1},
                            .nb = {blocks ? 0 : (int64_t)fwd_dtype_row_bytes(dtype, 1), row_bytes, row_bytes * r->n_pos,
                                   row_bytes * r->n_pos},
                            .data = data};
    return view;
}

static struct fwd_view make_f32(const struct run *r, enum fwd_op op, int layer, float *data, int64_t n) {
    return make_view(r, op, layer, data, FWD_F32, n);
}

static struct fwd_view make_cache(const struct run *r, enum fwd_op op, int layer) {
    const struct fwd_kv_cache *kv = r->s->kv;
    const struct fwd_config *c = &r->s->model->config;
    enum fwd_kv_part part = op == FWD_OP_K_CACHE ? FWD_KV_K : FWD_KV_V;
    uint8_t *data = fwd_kv_cache_rows(kv, r->args->seq, layer, part);
    struct fwd_view view = make_view(r, op, layer, data, fwd_kv_cache_type(kv), c->head_dim);
    view.ne[1] = c->n_kv_head;
    view.ne[2] = r->pos0 + r->n_pos;
    view.nb[1] = fwd_kv_cache_head_stride(kv);
    view.nb[2] = fwd_kv_cache_row_stride(kv);
    view.nb[3] = view.nb[2] * view.ne[2];
    return view;
}

/* What an op needs besides its views. */
struct parts {
    q4k_builtin_fn *builtin;
    const struct fwd_weight *weight;
    const struct q4k_linear *linear;
};

/* One op: its override or its builtin, then the tap. in1 and in2 may be NULL. */
static enum fwd_status do_op(const struct run *r, struct fwd_view *out, struct parts parts, const struct fwd_view *in0,
                             const struct fwd_view *in1, const struct fwd_view *in2) {
    struct q4k_step step = {.session = r->s, .linear = parts.linear};
    const struct q4k_linear *linear = parts.linear;
    struct fwd_op_call call = {.size = sizeof call,
                               .op = out->op,
                               .layer = out->layer,
                               .seq = out->seq,
                               .pos0 = r->pos0,
                               .n_pos = r->n_pos,
                               .n_in = in2   ? 3
                                       : in1 ? 2
                                             : 1,
                               .in = {in0, in1, in2},
                               .out = out,
                               .weight = linear ? linear->weight : parts.weight,
                               .bias = linear ? linear->bias : NULL,
                               .config = &r->s->model->config,
                               .pool = r->s->pool,
                               .builtin = parts.builtin,
                               .path_state = &step};
    const struct q4k_override *override = q4k_override_at(r->s, out->op, out->layer);
    if (override->fn)
        FWD_TRY(override->fn(override->ud, &call, r->err));
    else
        FWD_TRY(parts.builtin(&call, r->err));
    if (r->args->tap && r->args->tap(r->args->tap_ud, out) != 0)
        FWD_FAIL(FWD_ESTOPPED, r->err, "q4k-cpu: the tap stopped the run at %s, layer %d", fwd_op_name(out->op),
                 out->layer);
    return FWD_OK;
}

/* ---- activations in the formats that the matrices ask for ---------------------------------------------------------
 */

/* One op input as the products read it: floats, and its quantised forms where some product needs them. */
struct activation {
    struct fwd_view f32, q8_k, q8_32;
};

static enum fwd_status quantise(const struct run *r, struct activation *a, enum fwd_op op,
                                const struct q4k_linear *const *users, int n_users) {
    bool needs[2] = {false, false};
    for (int i = 0; i < n_users; i++) {
        needs[0] |= users[i]->act == FWD_Q8_K;
        needs[1] |= users[i]->act == FWD_Q8_32;
    }
    const struct q4k_buffers *b = &r->s->buf;
    struct parts parts = {.builtin = q4k_quantise};
    if (needs[0]) {
        a->q8_k = make_view(r, op, a->f32.layer, b->q8_k, FWD_Q8_K, a->f32.ne[0]);
        FWD_TRY(do_op(r, &a->q8_k, parts, &a->f32, NULL, NULL));
    }
    if (needs[1]) {
        a->q8_32 = make_view(r, op, a->f32.layer, b->q8_32, FWD_Q8_32, a->f32.ne[0]);
        FWD_TRY(do_op(r, &a->q8_32, parts, &a->f32, NULL, NULL));
    }
    return FWD_OK;
}

static enum fwd_status multiply(const struct run *r, struct fwd_view *out, enum fwd_op op, float *data,
                                const struct activation *a, const struct q4k_linear *linear) {
    *out = make_f32(r, op, a->f32.layer, data, linear->weight->n_rows);
    const struct fwd_view *in = linear->act == FWD_Q8_K ? &a->q8_k : linear->act == FWD_Q8_32 ? &a->q8_32 : &a->f32;
    struct parts parts = {.builtin = q4k_multiply, .linear = linear};
    return do_op(r, out, parts, in, NULL, NULL);
}

static enum fwd_status normalise(const struct run *r, struct activation *a, enum fwd_op op, int layer,
                                 const struct fwd_weight *w, const struct fwd_view *in) {
    a->f32 = make_f32(r, op, layer, r->s->buf.norm, w->n_cols);
    struct parts parts = {.builtin = q4k_norm, .weight = w};
    return do_op(r, &a->f32, parts, in, NULL, NULL);
}

/* ---- a layer ------------------------------------------------------------------------------------------------------
 */

/* kqv_out into *out. */
static enum fwd_status run_attention(const struct run *r, int layer, const struct fwd_view *residual,
                                     struct fwd_view *out) {
    struct fwd_session *s = r->s;
    const struct q4k_layer *l = &s->layers[layer];
    const struct q4k_buffers *b = &s->buf;
    struct activation a = {0};
    FWD_TRY(normalise(r, &a, FWD_OP_ATTN_NORM, layer, &l->weights->attn_norm, residual));
    const struct q4k_linear *users[] = {&l->wq, &l->wk, &l->wv};
    FWD_TRY(quantise(r, &a, FWD_OP_ATTN_NORM_Q8, users, 3));
    struct fwd_view q, k, v;
    FWD_TRY(multiply(r, &q, FWD_OP_QCUR, b->q, &a, &l->wq));
    FWD_TRY(multiply(r, &k, FWD_OP_KCUR, b->k, &a, &l->wk));
    FWD_TRY(multiply(r, &v, FWD_OP_VCUR, b->v, &a, &l->wv));

    struct parts rope = {.builtin = q4k_rope}, store = {.builtin = q4k_store}, attend = {.builtin = q4k_attend};
    struct fwd_view q_rot = make_f32(r, FWD_OP_QCUR_ROPE, layer, b->q_rot, q.ne[0]);
    FWD_TRY(do_op(r, &q_rot, rope, &q, NULL, NULL));
    struct fwd_view k_rot = make_f32(r, FWD_OP_KCUR_ROPE, layer, b->k_rot, k.ne[0]);
    FWD_TRY(do_op(r, &k_rot, rope, &k, NULL, NULL));

    struct fwd_view k_cache = make_cache(r, FWD_OP_K_CACHE, layer);
    FWD_TRY(do_op(r, &k_cache, store, &k_rot, NULL, NULL));
    struct fwd_view v_cache = make_cache(r, FWD_OP_V_CACHE, layer);
    FWD_TRY(do_op(r, &v_cache, store, &v, NULL, NULL));

    *out = make_f32(r, FWD_OP_KQV_OUT, layer, b->heads, q.ne[0]);
    return do_op(r, out, attend, &q_rot, &k_cache, &v_cache);
}

/* ffn_out into *out. */
static enum fwd_status run_ffn(const struct run *r, int layer, const struct fwd_view *mid, struct fwd_view *out) {
    struct fwd_session *s = r->s;
    const struct q4k_layer *l = &s->layers[layer];
    const struct q4k_buffers *b = &s->buf;
    struct activation a = {0}, h = {0};
    FWD_TRY(normalise(r, &a, FWD_OP_FFN_NORM, layer, &l->weights->ffn_norm, mid));
    const struct q4k_linear *users[] = {&l->gate, &l->up};
    FWD_TRY(quantise(r, &a, FWD_OP_FFN_NORM_Q8, users, 2));
    struct fwd_view gate, up;
    FWD_TRY(multiply(r, &gate, FWD_OP_FFN_GATE, b->gate, &a, &l->gate));
    FWD_TRY(multiply(r, &up, FWD_OP_FFN_UP, b->up, &a, &l->up));

    struct parts swiglu = {.builtin = q4k_swiglu};
    h.f32 = make_f32(r, FWD_OP_FFN_SWIGLU, layer, b->swiglu, gate.ne[0]);
    FWD_TRY(do_op(r, &h.f32, swiglu, &gate, &up, NULL));
    const struct q4k_linear *down[] = {&l->down};
    FWD_TRY(quantise(r, &h, FWD_OP_FFN_SWIGLU_Q8, down, 1));
    return multiply(r, out, FWD_OP_FFN_OUT, b->block, &h, &l->down);
}

/* residual is replaced by l_out. */
static enum fwd_status run_layer(const struct run *r, int layer, struct fwd_view *residual) {
    const struct q4k_layer *l = &r->s->layers[layer];
    const struct q4k_buffers *b = &r->s->buf;
    int64_t n = residual->ne[0];
    struct parts add = {.builtin = q4k_add};
    struct activation heads = {0};
    FWD_TRY(run_attention(r, layer, residual, &heads.f32));
    const struct q4k_linear *wo[] = {&l->wo};
    FWD_TRY(quantise(r, &heads, FWD_OP_KQV_OUT_Q8, wo, 1));
    struct fwd_view out;
    FWD_TRY(multiply(r, &out, FWD_OP_ATTN_OUT, b->block, &heads, &l->wo));
    struct fwd_view mid = make_f32(r, FWD_OP_FFN_INP, layer, b->mid, n);
    FWD_TRY(do_op(r, &mid, add, &out, residual, NULL));

    FWD_TRY(run_ffn(r, layer, &mid, &out));
    struct fwd_view next = make_f32(r, FWD_OP_L_OUT, layer, b->x, n);
    FWD_TRY(do_op(r, &next, add, &out, &mid, NULL));
    *residual = next;
    return FWD_OK;
}

/* ---- the head, for wanted positions only --------------------------------------------------------------------------
 */

/* Positions begin .. begin + n_pos - 1 of the call, logits to out. */
static enum fwd_status run_head(const struct run *whole, const struct fwd_view *residual, int begin, int n_pos,
                                float *logits) {
    struct fwd_session *s = whole->s;
    struct run part = *whole;
    part.pos0 += begin;
    part.n_pos = n_pos;
    struct fwd_view in = make_f32(&part, residual->op, residual->layer,
                                  (float *)residual->data + begin * residual->ne[0], residual->ne[0]);
    struct activation a = {0};
    FWD_TRY(normalise(&part, &a, FWD_OP_RESULT_NORM, -1, &s->model->output_norm, &in));
    const struct q4k_linear *users[] = {&s->output};
    FWD_TRY(quantise(&part, &a, FWD_OP_RESULT_NORM_Q8, users, 1));
    struct fwd_view out;
    return multiply(&part, &out, FWD_OP_RESULT_OUTPUT, logits, &a, &s->output);
}

static bool is_wanted(const struct fwd_run_args *args, int i) {
    return args->want_logits ? args->want_logits[i] != 0 : i == args->n_tokens - 1;
}

/* Each run of neighbouring wanted positions goes through the head together. */
static enum fwd_status run_heads(const struct run *r, const struct fwd_view *residual) {
    float *logits = r->args->logits;
    for (int i = 0; i < r->n_pos;) {
        int end = i;
        while (end < r->n_pos && is_wanted(r->args, end))
            end++;
        if (end > i) {
            FWD_TRY(run_head(r, residual, i, end - i, logits));
            logits += (end - i) * r->s->model->config.n_vocab;
        }
        i = end + 1;
    }
    return FWD_OK;
}

/* ---- the call -----------------------------------------------------------------------------------------------------
 */

static enum fwd_status check_args(const struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    FWD_FAIL_IF(args->seq < 0 || args->seq >= s->n_seq, FWD_ERANGE, err,
                "q4k-cpu: got sequence slot %d, expected 0 to %d", args->seq, s->n_seq - 1);
    FWD_FAIL_IF(args->n_tokens < 1 || args->n_tokens > s->n_batch, FWD_ERANGE, err,
                "q4k-cpu: got %d tokens in one call, expected 1 to %d", args->n_tokens, s->n_batch);
    int n_past = fwd_kv_cache_n_past(s->kv, args->seq);
    FWD_FAIL_IF(args->pos0 < 0 || args->pos0 > n_past, FWD_ESTATE, err,
                "q4k-cpu: got position %d for sequence %d, of which %d positions were run: expected at most %d",
                args->pos0, args->seq, n_past, n_past);
    FWD_FAIL_IF(args->n_tokens > s->n_ctx - args->pos0, FWD_ERANGE, err,
                "q4k-cpu: got positions %d to %d, expected them below the context of %d", args->pos0,
                args->pos0 + args->n_tokens - 1, s->n_ctx);
    bool any = false;
    for (int i = 0; i < args->n_tokens; i++) {
        FWD_FAIL_IF(args->tokens[i] < 0 || args->tokens[i] >= s->model->config.n_vocab, FWD_ERANGE, err,
                    "q4k-cpu: got token id %d at position %d, expected 0 to %lld", args->tokens[i], args->pos0 + i,
                    (long long)s->model->config.n_vocab - 1);
        any |= is_wanted(args, i);
    }
    FWD_FAIL_IF(args->digest, FWD_EUNSUPPORTED, err, "q4k-cpu: got digest, expected NULL: it hands out taps");
    FWD_FAIL_IF(args->argmax, FWD_EUNSUPPORTED, err, "q4k-cpu: got argmax, expected NULL: it hands out logits");
    FWD_FAIL_IF(any && !args->logits, FWD_EINPUT, err, "q4k-cpu: logits are wanted and their place is NULL");
    return FWD_OK;
}

/* All-ones: a NaN in every float. The table of angles ends what a run overwrites from scratch. */
static void scribble(struct fwd_session *s) {
    char *begin = s->arena, *table = (char *)s->rope_table, *rest = (char *)s->attention_scratch;
    memset(begin, 0xff, (size_t)(table - begin));
    memset(rest, 0xff, s->arena_bytes - (size_t)(rest - begin));
}

enum fwd_status q4k_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    FWD_TRY(check_args(s, args, err));
    if (s->scribble)
        scribble(s);
    struct run r = {.s = s, .args = args, .n_pos = args->n_tokens, .pos0 = args->pos0, .err = err};
    /* Rows from here on are about to change: if the call fails they must not count. */
    fwd_kv_cache_set_n_past(s->kv, args->seq, args->pos0);
    int32_t *ids = (int32_t *)(uintptr_t)args->tokens;
    struct fwd_view tokens = make_view(&r, FWD_OP_INP_EMBD, -1, ids, FWD_I32, 1);
    struct fwd_view residual = make_f32(&r, FWD_OP_INP_EMBD, -1, s->buf.x, s->model->config.n_embd);
    struct parts embed = {.builtin = q4k_embed, .weight = &s->model->tok_embd};
    FWD_TRY(do_op(&r, &residual, embed, &tokens, NULL, NULL));
    for (int layer = 0; layer < s->model->config.n_layer; layer++)
        FWD_TRY(run_layer(&r, layer, &residual));
    FWD_TRY(run_heads(&r, &residual));
    fwd_kv_cache_set_n_past(s->kv, args->seq, args->pos0 + args->n_tokens);
    return FWD_OK;
}
