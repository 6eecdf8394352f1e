/* engine/paths/cuda_run.c: one run call of a CUDA path, op by op on device views. Taps copy beside the computation;
 * an overridden op gets its values from the host. With --force ops=fused neighbouring small ops are one launch
 * (cuda_run_fused.c) where nobody comes between them. A single token without overrides takes the fused step instead. */
#include "paths/cuda_run.h"

#include <cuda_runtime_api.h>
#include <math.h>

/* ---- views of device buffers --------------------------------------------------------------------------------------
 */

struct fwd_view cuda_view(const struct fwd_session *s, const struct fwd_run_args *args, enum fwd_op op, int layer,
                          int pos0, int n_pos, void *data, enum fwd_dtype dtype, int64_t n) {
    int64_t row_bytes = (int64_t)fwd_dtype_row_bytes(dtype, n);
    bool blocks = dtype == FWD_Q8_K || dtype == FWD_Q8_32 || dtype == FWD_E4M3; /* no stride from value to value */
    return (struct fwd_view){
        .size = sizeof(struct fwd_view),
        .op = op,
        .layer = layer,
        .seq = args->seq,
        .pos0 = pos0,
        .n_pos = n_pos,
        .dtype = dtype,
        .ne = {n, n_pos, 1, 1},
        .nb = {blocks ? 0 : (int64_t)fwd_dtype_row_bytes(dtype, 1), row_bytes, row_bytes * n_pos, row_bytes * n_pos},
        .data = data,
        .device = 1,
        .stream = s->device.compute};
}

struct fwd_view cuda_cache_view(const struct fwd_session *s, const struct fwd_run_args *args, enum fwd_op op, int layer,
                                int n_rows) {
    const struct fwd_config *c = &s->model->config;
    uint8_t *data = s->kv + args->seq * s->kv_slot + layer * s->kv_layer + (op == FWD_OP_V_CACHE ? s->kv_part : 0);
    struct fwd_view v = cuda_view(s, args, op, layer, args->pos0, args->n_tokens, data, s->kv_type, c->head_dim);
    v.ne[1] = c->n_kv_head;
    v.ne[2] = n_rows;
    v.nb[1] = s->kv_head;
    v.nb[2] = s->kv_row;
    v.nb[3] = v.nb[2] * n_rows;
    return v;
}

struct fwd_view cuda_f32_view(const struct cuda_call *r, enum fwd_op op, int layer, float *data, int64_t n) {
    return cuda_view(r->s, r->args, op, layer, r->pos0, r->n_pos, data, FWD_F32, n);
}

/* ---- one op -------------------------------------------------------------------------------------------------------
 */

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

struct cuda_kv cuda_kv_of(const struct fwd_view *v) {
    return (struct cuda_kv){.type = v->dtype,
                            .data = v->data,
                            .stride_head = v->nb[1],
                            .stride_row = v->nb[2],
                            .n_kv_head = (int)v->ne[1],
                            .head_dim = (int)v->ne[0]};
}

struct cuda_act cuda_planes(const struct fwd_session *s, enum fwd_dtype format, int64_t n) {
    struct cuda_act out = format == FWD_Q8_K ? s->buf.act_k : s->buf.act_32;
    out.n_sb = (int)((n + FWD_TILE_COLS - 1) / FWD_TILE_COLS);
    return out;
}

struct cuda_tc_act cuda_converted(const struct fwd_session *s, enum fwd_dtype format, int64_t n) {
    struct cuda_tc_act out = s->buf.tc;
    out.form = format == FWD_BF16 ? CUDA_FORM_BF16 : CUDA_FORM_E4M3;
    out.ld = (n + 15) / 16 * 16;
    return out;
}

bool cuda_is_quantised(enum fwd_dtype dtype) {
    return dtype == FWD_Q8_K || dtype == FWD_Q8_32 || dtype == FWD_BF16 || dtype == FWD_E4M3;
}

void cuda_read_tap(struct fwd_session *s, const struct fwd_view *tap, int n_pos) {
    struct CUstream_st *stream = s->device.compute;
    int n = (int)tap->ne[0];
    if (tap->dtype == FWD_BF16 || tap->dtype == FWD_E4M3) {
        struct cuda_tc_act x = cuda_converted(s, tap->dtype, n);
        cuda_tc_from_tap(stream, tap->data, n, n_pos, &x);
    } else {
        struct cuda_act act = cuda_planes(s, tap->dtype, n);
        cuda_act_from_tap(stream, tap->data, n, n_pos, &act);
    }
}

static void launch_quantise(const struct fwd_session *s, const struct fwd_view *in, const struct fwd_view *out,
                            int n_pos, bool tapped) {
    struct CUstream_st *stream = s->device.compute;
    int n = (int)out->ne[0];
    uint8_t *tap = tapped ? out->data : NULL;
    if (out->dtype == FWD_BF16 || out->dtype == FWD_E4M3) {
        struct cuda_tc_act x = cuda_converted(s, out->dtype, n);
        cuda_tc_convert(stream, in->data, n, n_pos, &x, tap);
    } else {
        struct cuda_act act = cuda_planes(s, out->dtype, n);
        cuda_quantise(stream, in->data, n, n_pos, &act, tap);
    }
}

bool cuda_attends_on_tensor_cores(const struct fwd_session *s) {
    struct cuda_attention a = {.k = {.type = s->kv_type, .head_dim = s->model->config.head_dim},
                               .v = {.type = s->kv_type, .head_dim = s->model->config.head_dim}};
    return s->lt && cuda_tc_attention_serves(&a);
}

static enum fwd_status launch_product(struct fwd_session *s, const struct cuda_parts *parts, const struct fwd_view *in,
                                      const struct fwd_view *out, const float *bias, int n_pos, bool planes,
                                      struct fwd_error *err) {
    struct CUstream_st *stream = s->device.compute;
    struct cuda_linear w = parts->matrix->dev;
    w.bias = bias;
    if (!planes && cuda_is_quantised(in->dtype))
        cuda_read_tap(s, in, n_pos);
    if (w.form == CUDA_FORM_BF16 || w.form == CUDA_FORM_E4M3) {
        struct cuda_tc_act x = cuda_converted(s, in->dtype, in->ne[0]);
        return cuda_lt_matmul(s->lt, stream, &w, &x, n_pos, out->data, w.n_rows, s->fp8_fast, err);
    }
    if (in->dtype == FWD_F32) {
        cuda_matmul_f(stream, &w, in->data, in->ne[0], n_pos, out->data, w.n_rows);
        return FWD_OK;
    }
    struct cuda_act act = cuda_planes(s, in->dtype, in->ne[0]);
    cuda_matmul_q(stream, &w, &act, n_pos, out->data, w.n_rows);
    return FWD_OK;
}

enum fwd_status cuda_launch(struct fwd_session *s, const struct cuda_parts *parts, const struct fwd_view *const *in,
                            const struct fwd_view *out, const float *bias, int pos0, int n_pos, bool planes,
                            struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    struct CUstream_st *stream = s->device.compute;
    int n = (int)out->ne[0];
    switch (out->op) {
    case FWD_OP_INP_EMBD:
        cuda_embed(stream, parts->weight->type, s->embedding, n, in[0]->data, n_pos, out->data);
        break;
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        cuda_rmsnorm(stream, in[0]->data, parts->vector, out->data, n, n_pos, c->norm_eps);
        break;
    case FWD_OP_ATTN_NORM_Q8:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_FFN_NORM_Q8:
    case FWD_OP_FFN_SWIGLU_Q8:
    case FWD_OP_RESULT_NORM_Q8:
        launch_quantise(s, in[0], out, n_pos, !planes);
        break;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        cuda_rope(stream, in[0]->data, out->data, s->rope_table, pos0, n_pos, n / c->head_dim, c->head_dim, c->n_rope,
                  c->rope_pairing == FWD_ROPE_NEOX);
        break;
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE: {
        struct cuda_kv kv = cuda_kv_of(out);
        cuda_kv_store(stream, in[0]->data, &kv, pos0, n_pos);
        break;
    }
    case FWD_OP_KQV_OUT: {
        struct cuda_attention a = {.q = in[0]->data,
                                   .o = out->data,
                                   .k = cuda_kv_of(in[1]),
                                   .v = cuda_kv_of(in[2]),
                                   .kv_head_of = s->kv_head_of,
                                   .n_head = c->n_head,
                                   .pos0 = pos0,
                                   .n_pos = n_pos,
                                   .scale = 1.0f / sqrtf((float)c->head_dim),
                                   .scratch = s->buf.attention};
        if (s->lt && cuda_tc_attention_serves(&a))
            cuda_tc_attention(stream, &a);
        else
            cuda_attention(stream, &a);
        break;
    }
    case FWD_OP_FFN_SWIGLU:
        cuda_swiglu(stream, in[0]->data, in[1]->data, out->data, (int64_t)n * n_pos);
        break;
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        cuda_add(stream, in[0]->data, in[1]->data, out->data, (int64_t)n * n_pos);
        break;
    default:
        FWD_TRY(launch_product(s, parts, in[0], out, bias, n_pos, planes, err));
        break;
    }
    return cuda_launched(fwd_op_name(out->op), err);
}

bool cuda_taps_wanted(const struct cuda_call *r) {
    return r->args->tap || r->args->digest || r->s->n_overrides > 0;
}

enum fwd_status cuda_hand_out(const struct cuda_call *r, const struct fwd_view *out) {
    if (r->args->digest)
        return is_cache(out->op) ? FWD_OK : cuda_digest_give(r->s, r->args, out, r->err);
    return r->args->tap ? cuda_tap_give(r->s, r->args, out, r->err) : FWD_OK;
}

static enum fwd_status do_op(const struct cuda_call *r, const struct fwd_view *out, struct cuda_parts parts,
                             const struct fwd_view *in0, const struct fwd_view *in1, const struct fwd_view *in2) {
    struct fwd_session *s = r->s;
    const struct fwd_view *in[3] = {in0, in1, in2};
    if (cuda_override_at(s, out->op, out->layer)->fn) {
        FWD_TRY(cuda_tap_flush(s, r->args, r->err));
        return cuda_call_override(s, r->args, &parts, in, out, r->err);
    }
    if (s->scribble && !is_cache(out->op))
        cuda_scribble(s->device.compute, out->data, (size_t)(out->nb[1] * out->n_pos));
    bool quantises = cuda_is_quantised(out->dtype);
    const float *bias = parts.matrix ? parts.matrix->dev.bias : NULL;
    FWD_TRY(cuda_launch(s, &parts, in, out, bias, r->pos0, r->n_pos, !quantises || !cuda_taps_wanted(r), r->err));
    return cuda_hand_out(r, out);
}

/* ---- activations in the formats that the products ask for ---------------------------------------------------------
 */

static const enum fwd_dtype formats[CUDA_FORMATS] = {FWD_Q8_K, FWD_Q8_32, FWD_BF16, FWD_E4M3};

void cuda_choose_formats(const struct cuda_call *r, struct cuda_input *in, enum fwd_op op,
                         const struct cuda_matrix *const *users, int n_users) {
    const struct cuda_buffers *b = &r->s->buf;
    uint8_t *const taps[CUDA_FORMATS] = {b->tap_k, b->tap_32, b->tap_tc, b->tap_tc};
    for (int f = 0; f < CUDA_FORMATS; f++) {
        bool needed = false;
        for (int i = 0; i < n_users; i++)
            needed |= users[i]->dev.act == formats[f];
        in->as[f] = (struct fwd_view){0};
        if (needed)
            in->as[f] =
                cuda_view(r->s, r->args, op, in->f32.layer, r->pos0, r->n_pos, taps[f], formats[f], in->f32.ne[0]);
    }
}

static enum fwd_status quantise(const struct cuda_call *r, struct cuda_input *in, enum fwd_op op,
                                const struct cuda_matrix *const *users, int n_users) {
    cuda_choose_formats(r, in, op, users, n_users);
    for (int f = 0; f < CUDA_FORMATS; f++)
        if (in->as[f].data)
            FWD_TRY(do_op(r, &in->as[f], (struct cuda_parts){0}, &in->f32, NULL, NULL));
    return FWD_OK;
}

static enum fwd_status multiply(const struct cuda_call *r, struct fwd_view *out, enum fwd_op op, float *data,
                                const struct cuda_input *a, const struct cuda_matrix *m) {
    *out = cuda_f32_view(r, op, a->f32.layer, data, m->dev.n_rows);
    const struct fwd_view *in = &a->f32;
    for (int f = 0; f < CUDA_FORMATS; f++)
        if (m->dev.act == formats[f])
            in = &a->as[f];
    return do_op(r, out, (struct cuda_parts){.matrix = m}, in, NULL, NULL);
}

static enum fwd_status normalise(const struct cuda_call *r, const struct cuda_norm *t, const struct fwd_view *in,
                                 struct cuda_input *out) {
    if (cuda_can_add_norm(r, NULL, t, in->ne[0]))
        return cuda_run_add_norm(r, in, NULL, NULL, t, out);
    out->f32 = cuda_f32_view(r, t->op, t->layer, r->s->buf.norm, t->file->n_cols);
    FWD_TRY(do_op(r, &out->f32, (struct cuda_parts){.weight = t->file, .vector = t->vector}, in, NULL, NULL));
    return quantise(r, out, t->q8, t->users, t->n_users);
}

/* *sum, of which only the view is there yet, is a + b; then its norm. */
static enum fwd_status add_and_normalise(const struct cuda_call *r, const struct fwd_view *a, const struct fwd_view *b,
                                         const struct fwd_view *sum, const struct cuda_norm *t,
                                         struct cuda_input *out) {
    if (cuda_can_add_norm(r, sum, t, a->ne[0]))
        return cuda_run_add_norm(r, a, b, sum, t, out);
    FWD_TRY(do_op(r, sum, (struct cuda_parts){0}, a, b, NULL));
    return normalise(r, t, sum, out);
}

/* ---- a layer ------------------------------------------------------------------------------------------------------
 */

static struct cuda_norm attn_norm_of(const struct fwd_session *s, int layer) {
    const struct cuda_layer *l = &s->layers[layer];
    return (struct cuda_norm){.op = FWD_OP_ATTN_NORM,
                              .q8 = FWD_OP_ATTN_NORM_Q8,
                              .layer = layer,
                              .file = &l->file->attn_norm,
                              .vector = l->attn_norm,
                              .users = {&l->wq, &l->wk, &l->wv},
                              .n_users = 3};
}

static struct cuda_norm ffn_norm_of(const struct fwd_session *s, int layer) {
    const struct cuda_layer *l = &s->layers[layer];
    return (struct cuda_norm){.op = FWD_OP_FFN_NORM,
                              .q8 = FWD_OP_FFN_NORM_Q8,
                              .layer = layer,
                              .file = &l->file->ffn_norm,
                              .vector = l->ffn_norm,
                              .users = {&l->gate, &l->up},
                              .n_users = 2};
}

/* q and k turned by position, k and v into the cache. */
static enum fwd_status turn_and_store(const struct cuda_call *r, const struct fwd_view *q, const struct fwd_view *k,
                                      const struct fwd_view *v, const struct fwd_view *q_rot,
                                      const struct fwd_view *k_cache, const struct fwd_view *v_cache) {
    struct cuda_parts none = {0};
    struct fwd_view k_rot = cuda_f32_view(r, FWD_OP_KCUR_ROPE, k->layer, r->s->buf.k_rot, k->ne[0]);
    if (cuda_can_rope_store(r, q->layer))
        return cuda_run_rope_store(r, q, k, v, q_rot, &k_rot, k_cache, v_cache);
    FWD_TRY(do_op(r, q_rot, none, q, NULL, NULL));
    FWD_TRY(do_op(r, &k_rot, none, k, NULL, NULL));
    FWD_TRY(do_op(r, k_cache, none, &k_rot, NULL, NULL));
    return do_op(r, v_cache, none, v, NULL, NULL);
}

/* kqv_out into *out. */
static enum fwd_status run_attention(const struct cuda_call *r, int layer, const struct cuda_input *in,
                                     struct fwd_view *out) {
    struct fwd_session *s = r->s;
    const struct cuda_layer *l = &s->layers[layer];
    const struct cuda_buffers *b = &s->buf;
    struct fwd_view q, k, v;
    FWD_TRY(multiply(r, &q, FWD_OP_QCUR, b->q, in, &l->wq));
    FWD_TRY(multiply(r, &k, FWD_OP_KCUR, b->k, in, &l->wk));
    FWD_TRY(multiply(r, &v, FWD_OP_VCUR, b->v, in, &l->wv));
    struct fwd_view q_rot = cuda_f32_view(r, FWD_OP_QCUR_ROPE, layer, b->q_rot, q.ne[0]);
    struct fwd_view k_cache = cuda_cache_view(s, r->args, FWD_OP_K_CACHE, layer, r->pos0 + r->n_pos);
    struct fwd_view v_cache = cuda_cache_view(s, r->args, FWD_OP_V_CACHE, layer, r->pos0 + r->n_pos);
    FWD_TRY(turn_and_store(r, &q, &k, &v, &q_rot, &k_cache, &v_cache));
    *out = cuda_f32_view(r, FWD_OP_KQV_OUT, layer, b->heads, q.ne[0]);
    return do_op(r, out, (struct cuda_parts){0}, &q_rot, &k_cache, &v_cache);
}

/* ffn_out into *out. */
static enum fwd_status run_ffn(const struct cuda_call *r, int layer, const struct cuda_input *in,
                               struct fwd_view *out) {
    const struct cuda_layer *l = &r->s->layers[layer];
    const struct cuda_buffers *b = &r->s->buf;
    const struct cuda_matrix *down = &l->down;
    struct cuda_input h = {0};
    struct fwd_view gate, up;
    FWD_TRY(multiply(r, &gate, FWD_OP_FFN_GATE, b->gate, in, &l->gate));
    FWD_TRY(multiply(r, &up, FWD_OP_FFN_UP, b->up, in, &l->up));
    h.f32 = cuda_f32_view(r, FWD_OP_FFN_SWIGLU, layer, b->swiglu, gate.ne[0]);
    if (cuda_can_swiglu_quantise(r, layer, gate.ne[0])) {
        FWD_TRY(cuda_run_swiglu_quantise(r, &gate, &up, down, &h));
    } else {
        FWD_TRY(do_op(r, &h.f32, (struct cuda_parts){0}, &gate, &up, NULL));
        FWD_TRY(quantise(r, &h, FWD_OP_FFN_SWIGLU_Q8, &down, 1));
    }
    return multiply(r, out, FWD_OP_FFN_OUT, b->block, &h, down);
}

/* residual is replaced by l_out; in, the norm of residual, by the norm of l_out where another layer follows. */
static enum fwd_status run_layer(const struct cuda_call *r, int layer, struct fwd_view *residual,
                                 struct cuda_input *in) {
    const struct cuda_layer *l = &r->s->layers[layer];
    const struct cuda_buffers *b = &r->s->buf;
    int64_t n = residual->ne[0];
    struct cuda_input heads = {0};
    FWD_TRY(run_attention(r, layer, in, &heads.f32));
    const struct cuda_matrix *wo[] = {&l->wo};
    FWD_TRY(quantise(r, &heads, FWD_OP_KQV_OUT_Q8, wo, 1));
    struct fwd_view out;
    FWD_TRY(multiply(r, &out, FWD_OP_ATTN_OUT, b->block, &heads, &l->wo));
    struct fwd_view mid = cuda_f32_view(r, FWD_OP_FFN_INP, layer, b->mid, n);
    struct cuda_norm norm = ffn_norm_of(r->s, layer);
    FWD_TRY(add_and_normalise(r, &out, residual, &mid, &norm, in));
    FWD_TRY(run_ffn(r, layer, in, &out));
    *residual = cuda_f32_view(r, FWD_OP_L_OUT, layer, b->x, n);
    if (layer + 1 == r->s->model->config.n_layer) /* the head's norm is of wanted positions only */
        return do_op(r, residual, (struct cuda_parts){0}, &out, &mid, NULL);
    norm = attn_norm_of(r->s, layer + 1);
    return add_and_normalise(r, &out, &mid, residual, &norm, in);
}

/* ---- the head, for wanted positions only --------------------------------------------------------------------------
 */

static bool is_wanted(const struct fwd_run_args *args, int i) {
    return args->want_logits ? args->want_logits[i] != 0 : i == args->n_tokens - 1;
}

/* Positions begin .. begin + n_pos - 1 of the call; they are number `first` and following of the wanted ones. */
static enum fwd_status run_head(const struct cuda_call *whole, const struct fwd_view *residual, int begin, int n_pos,
                                int first) {
    struct fwd_session *s = whole->s;
    struct cuda_call part = *whole;
    part.pos0 += begin;
    part.n_pos = n_pos;
    float *rows = (float *)residual->data + begin * residual->ne[0];
    struct fwd_view in = cuda_f32_view(&part, residual->op, residual->layer, rows, residual->ne[0]);
    struct cuda_input a = {0};
    struct cuda_norm norm = {.op = FWD_OP_RESULT_NORM,
                             .q8 = FWD_OP_RESULT_NORM_Q8,
                             .layer = -1,
                             .file = &s->model->output_norm,
                             .vector = s->output_norm,
                             .users = {&s->output},
                             .n_users = 1};
    FWD_TRY(normalise(&part, &norm, &in, &a));
    struct fwd_view out;
    FWD_TRY(multiply(&part, &out, FWD_OP_RESULT_OUTPUT, s->buf.logits, &a, &s->output));
    int64_t n = out.ne[0];
    cudaStream_t stream = s->device.compute;
    if (whole->args->argmax) {
        cuda_argmax(stream, out.data, n, n_pos, s->buf.argmax_rows, s->buf.argmax);
        FWD_TRY(cuda_status(cudaMemcpyAsync(whole->args->argmax + first, s->buf.argmax, (size_t)n_pos * sizeof(int32_t),
                                            cudaMemcpyDeviceToHost, stream),
                            "argmax", part.err));
    }
    if (!whole->args->logits)
        return FWD_OK;
    return cuda_status(cudaMemcpyAsync(whole->args->logits + first * n, out.data, (size_t)(n * n_pos) * sizeof(float),
                                       cudaMemcpyDeviceToHost, stream),
                       "logits", part.err);
}

/* Neighbouring wanted positions go through the head together, as many as there is room for. */
static enum fwd_status run_heads(const struct cuda_call *r, const struct fwd_view *residual) {
    int n_done = 0;
    for (int i = 0; i < r->n_pos; i++) {
        int end = i;
        while (end < r->n_pos && end - i < CUDA_HEAD_ROWS && is_wanted(r->args, end))
            end++;
        if (end == i)
            continue;
        FWD_TRY(run_head(r, residual, i, end - i, n_done));
        n_done += end - i;
        i = end - 1;
    }
    return FWD_OK;
}

/* ---- the call -----------------------------------------------------------------------------------------------------
 */

static enum fwd_status check_args(const struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    const char *name = s->kind->name;
    FWD_FAIL_IF(args->seq < 0 || args->seq >= s->n_seq, FWD_ERANGE, err, "%s: got sequence slot %d, expected 0 to %d",
                name, args->seq, s->n_seq - 1);
    FWD_FAIL_IF(args->n_tokens < 1 || args->n_tokens > s->n_batch, FWD_ERANGE, err,
                "%s: got %d tokens in one call, expected 1 to %d", name, args->n_tokens, s->n_batch);
    int n_past = s->n_past[args->seq];
    FWD_FAIL_IF(args->pos0 < 0 || args->pos0 > n_past, FWD_ESTATE, err,
                "%s: got position %d for sequence %d, of which %d positions were run: expected at most %d", name,
                args->pos0, args->seq, n_past, n_past);
    FWD_FAIL_IF(args->n_tokens > s->n_ctx - args->pos0, FWD_ERANGE, err,
                "%s: got positions %d to %d, expected them below the context of %d", name, args->pos0,
                args->pos0 + args->n_tokens - 1, s->n_ctx);
    FWD_FAIL_IF(args->tap && args->digest, FWD_EINPUT, err, "%s: got a tap and a digest, expected one of them", name);
    FWD_FAIL_IF(args->logits_f64, FWD_EUNSUPPORTED, err, "%s: got logits_f64, expected NULL: it computes in F32", name);
    bool any = false;
    for (int i = 0; i < args->n_tokens; i++) {
        FWD_FAIL_IF(args->tokens[i] < 0 || args->tokens[i] >= s->model->config.n_vocab, FWD_ERANGE, err,
                    "%s: got token id %d at position %d, expected 0 to %lld", name, args->tokens[i], args->pos0 + i,
                    (long long)s->model->config.n_vocab - 1);
        any |= is_wanted(args, i);
    }
    FWD_FAIL_IF(any && !args->logits && !args->argmax, FWD_EINPUT, err, "%s: logits are wanted and their place is NULL",
                name);
    return FWD_OK;
}

/* What no call has written yet shows as NaN: every buffer, and the cache from this call's positions on. */
static enum fwd_status scribble(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    const struct cuda_buffers *b = &s->buf;
    struct CUstream_st *stream = s->device.compute;
    cuda_scribble(stream, b->x, (size_t)((uint8_t *)b->logits - (uint8_t *)b->x));
    for (int layer = 0; layer < s->model->config.n_layer; layer++)
        for (int part = 0; part < 2; part++)
            for (int h = 0; h < s->model->config.n_kv_head; h++) {
                uint8_t *head = s->kv + args->seq * s->kv_slot + layer * s->kv_layer + part * s->kv_part;
                cuda_scribble(stream, head + h * s->kv_head + args->pos0 * s->kv_row,
                              (size_t)((s->n_ctx - args->pos0) * s->kv_row));
            }
    return cuda_launched("scribble", err);
}

static enum fwd_status run_ops(const struct cuda_call *r) {
    struct fwd_session *s = r->s;
    const struct fwd_run_args *args = r->args;
    FWD_TRY(cuda_status(cudaMemcpyAsync(s->buf.ids, args->tokens, (size_t)args->n_tokens * sizeof *args->tokens,
                                        cudaMemcpyHostToDevice, s->device.compute),
                        "token ids", r->err));
    struct fwd_view tokens = cuda_view(s, args, FWD_OP_INP_EMBD, -1, r->pos0, r->n_pos, s->buf.ids, FWD_I32, 1);
    struct fwd_view residual = cuda_f32_view(r, FWD_OP_INP_EMBD, -1, s->buf.x, s->model->config.n_embd);
    FWD_TRY(do_op(r, &residual, (struct cuda_parts){.weight = &s->model->tok_embd}, &tokens, NULL, NULL));
    struct cuda_input in = {0};
    struct cuda_norm first = attn_norm_of(s, 0);
    FWD_TRY(normalise(r, &first, &residual, &in));
    for (int layer = 0; layer < s->model->config.n_layer; layer++)
        FWD_TRY(run_layer(r, layer, &residual, &in));
    FWD_TRY(run_heads(r, &residual));
    return cuda_tap_flush(s, args, r->err);
}

/* The fused step, and the head op by op where it is in another form or overridden. */
static enum fwd_status run_step(const struct cuda_call *r) {
    struct fwd_session *s = r->s;
    bool head = s->n_overrides == 0 && cuda_stepper_has_head(s);
    FWD_TRY(cuda_stepper_run(s, r->args, head, r->err));
    if (head || !is_wanted(r->args, 0))
        return FWD_OK;
    int last = s->model->config.n_layer - 1;
    struct fwd_view residual = cuda_f32_view(r, FWD_OP_L_OUT, last, s->buf.x, s->model->config.n_embd);
    FWD_TRY(run_heads(r, &residual));
    return cuda_tap_flush(s, r->args, r->err);
}

enum fwd_status cuda_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    FWD_TRY(check_args(s, args, err));
    struct cuda_call r = {.s = s, .args = args, .n_pos = args->n_tokens, .pos0 = args->pos0, .err = err};
    /* Rows from here on are about to change: if the call fails they must not count. */
    s->n_past[args->seq] = args->pos0;
    if (s->scribble)
        FWD_TRY(scribble(s, args, err));
    if (args->n_tokens == 1 && s->n_body_overrides == 0 && s->stepper && !s->ops_forced)
        FWD_TRY(run_step(&r));
    else
        FWD_TRY(run_ops(&r));
    FWD_TRY(cuda_wait(s->device.compute, s->kind->name, err));
    s->n_past[args->seq] = args->pos0 + args->n_tokens;
    return FWD_OK;
}
