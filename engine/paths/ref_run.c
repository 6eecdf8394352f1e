/* engine/paths/ref_run.c: one forward pass of a reference path: the ops in the order of enum fwd_op, each through its
 * override if it has one, each handed to the tap. */
#include "paths/ref_ops.h"
#include "paths/ref_session.h"

#include <string.h>

/* The inputs of an op, by the tap they are. RESIDUAL: inp_embd, or l_out of the layer below. FWD_OP_INP_EMBD never is
 * an input by itself, so it stands for that. */
#define RESIDUAL FWD_OP_INP_EMBD

struct op_row {
    enum fwd_op op;
    ref_op_fn *fn;
    int n_in;
    enum fwd_op in[3];
};

static const struct op_row layer_ops[] = {
    {FWD_OP_ATTN_NORM, ref_op_norm, 1, {RESIDUAL}},
    {FWD_OP_ATTN_NORM_Q8, ref_op_quantise, 1, {FWD_OP_ATTN_NORM}},
    {FWD_OP_QCUR, ref_op_matmul, 1, {FWD_OP_ATTN_NORM}},
    {FWD_OP_KCUR, ref_op_matmul, 1, {FWD_OP_ATTN_NORM}},
    {FWD_OP_VCUR, ref_op_matmul, 1, {FWD_OP_ATTN_NORM}},
    {FWD_OP_QCUR_ROPE, ref_op_rope, 1, {FWD_OP_QCUR}},
    {FWD_OP_KCUR_ROPE, ref_op_rope, 1, {FWD_OP_KCUR}},
    {FWD_OP_K_CACHE, ref_op_cache, 1, {FWD_OP_KCUR_ROPE}},
    {FWD_OP_V_CACHE, ref_op_cache, 1, {FWD_OP_VCUR}},
    {FWD_OP_KQV_OUT, ref_op_attention, 3, {FWD_OP_QCUR_ROPE, FWD_OP_K_CACHE, FWD_OP_V_CACHE}},
    {FWD_OP_KQV_OUT_Q8, ref_op_quantise, 1, {FWD_OP_KQV_OUT}},
    {FWD_OP_ATTN_OUT, ref_op_matmul, 1, {FWD_OP_KQV_OUT}},
    {FWD_OP_FFN_INP, ref_op_add, 2, {FWD_OP_ATTN_OUT, RESIDUAL}},
    {FWD_OP_FFN_NORM, ref_op_norm, 1, {FWD_OP_FFN_INP}},
    {FWD_OP_FFN_NORM_Q8, ref_op_quantise, 1, {FWD_OP_FFN_NORM}},
    {FWD_OP_FFN_GATE, ref_op_matmul, 1, {FWD_OP_FFN_NORM}},
    {FWD_OP_FFN_UP, ref_op_matmul, 1, {FWD_OP_FFN_NORM}},
    {FWD_OP_FFN_SWIGLU, ref_op_swiglu, 2, {FWD_OP_FFN_GATE, FWD_OP_FFN_UP}},
    {FWD_OP_FFN_SWIGLU_Q8, ref_op_quantise, 1, {FWD_OP_FFN_SWIGLU}},
    {FWD_OP_FFN_OUT, ref_op_matmul, 1, {FWD_OP_FFN_SWIGLU}},
    {FWD_OP_L_OUT, ref_op_add, 2, {FWD_OP_FFN_OUT, FWD_OP_FFN_INP}},
};
static const struct op_row norm_op = {FWD_OP_RESULT_NORM, ref_op_norm, 1, {FWD_OP_L_OUT}};
static const struct op_row norm_q8_op = {FWD_OP_RESULT_NORM_Q8, ref_op_quantise, 1, {FWD_OP_RESULT_NORM}};
static const struct op_row head_op = {FWD_OP_RESULT_OUTPUT, ref_op_matmul, 1, {FWD_OP_RESULT_NORM}};

struct run {
    struct fwd_session *s;
    const struct fwd_run_args *args;
    struct fwd_view views[FWD_OP_COUNT]; /* the latest of each op */
};

/* ---- views ------------------------------------------------------------------------------------------------------- */
static struct fwd_view make_view(const struct run *r, enum fwd_op op, int layer) {
    const struct fwd_session *s = r->s;
    const struct fwd_config *c = &s->model->config;
    int64_t n = r->args->n_tokens, width = ref_width(c, op);
    struct fwd_view v = {.size = sizeof v,
                         .op = op,
                         .layer = layer,
                         .seq = r->args->seq,
                         .n_pos = (int)n,
                         .dtype = s->real,
                         .ne = {width, n, 1, 1},
                         .data = s->values[op]};
    if (ref_tap_format(s, op, layer) != FWD_F32)
        v.dtype = ref_tap_format(s, op, layer);
    v.nb[0] = v.dtype == s->real ? (int64_t)ref_real_bytes(s) : 0;
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(v.dtype, width);
    v.nb[2] = v.nb[3] = v.nb[1] * n;
    if (op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE) {
        v.ne[0] = c->head_dim;
        v.ne[1] = c->n_kv_head;
        v.ne[2] = n;
        v.nb[2] = v.nb[1];
        v.nb[1] = v.nb[0] * c->head_dim;
        v.nb[3] = v.nb[2] * n;
    }
    return v;
}

/* Rows from .. from + n - 1 of a view. */
static struct fwd_view sub_view(const struct fwd_view *v, int from, int n) {
    struct fwd_view part = *v;
    part.pos0 = v->pos0 + from;
    part.n_pos = n;
    part.ne[1] = n;
    part.nb[2] = part.nb[3] = part.nb[1] * n;
    part.data = (uint8_t *)v->data + from * v->nb[1];
    return part;
}

/* ---- one op ------------------------------------------------------------------------------------------------------ */
static enum fwd_status exec_op(struct run *r, const struct op_row *row, int n_in, const struct fwd_view *const *in,
                               struct fwd_view *out, struct fwd_error *err) {
    struct fwd_session *s = r->s;
    const struct fwd_weight *bias = ref_bias(s->model, row->op, out->layer);
    const struct fwd_weight *weight = ref_weight(s->model, row->op, out->layer);
    struct fwd_op_call call = {.size = sizeof call,
                               .op = row->op,
                               .layer = out->layer,
                               .seq = out->seq,
                               .pos0 = out->pos0,
                               .n_pos = out->n_pos,
                               .n_in = n_in,
                               .out = out,
                               .weight = weight,
                               .bias = bias && bias->data ? (const float *)(const void *)bias->data : NULL,
                               .config = &s->model->config,
                               .pool = s->pool,
                               .builtin = row->fn,
                               .path_state = s};
    for (int i = 0; i < n_in; i++)
        call.in[i] = in[i];
    const struct ref_override *o = ref_override_slot(s, row->op, out->layer);
    FWD_TRY(o->fn ? o->fn(o->ud, &call, err) : row->fn(&call, err));
    /* A matrix is read once per pass: let its pages go, so that another path's copy of it fits beside us. */
    if (row->fn == ref_op_matmul && weight->tensor)
        fwd_gguf_drop_pages(s->model->file, weight->tensor);
    if (r->args->tap && r->args->tap(r->args->tap_ud, out) != 0)
        FWD_FAIL(FWD_ESTOPPED, err, "run: the tap stopped at %s of layer %d", fwd_op_name(out->op), out->layer);
    return FWD_OK;
}

/* The view an op reads: a matmul takes the q8 tap that follows its input where its weight is in the same format. */
static const struct fwd_view *input_view(const struct run *r, const struct op_row *row, int i, int layer) {
    enum fwd_op in = row->in[i];
    if (in == RESIDUAL)
        return &r->views[layer > 0 ? FWD_OP_L_OUT : FWD_OP_INP_EMBD];
    if (row->fn == ref_op_matmul) {
        enum fwd_dtype wanted = ref_act_format(r->s, row->op, ref_weight(r->s->model, row->op, layer));
        if (wanted != FWD_F32 && wanted == ref_tap_format(r->s, in + 1, layer))
            in++;
    }
    return &r->views[in];
}

static bool is_q8(enum fwd_op op) {
    return op == FWD_OP_ATTN_NORM_Q8 || op == FWD_OP_KQV_OUT_Q8 || op == FWD_OP_FFN_NORM_Q8 ||
           op == FWD_OP_FFN_SWIGLU_Q8 || op == FWD_OP_RESULT_NORM_Q8;
}

static enum fwd_status run_op(struct run *r, const struct op_row *row, int layer, struct fwd_error *err) {
    if (is_q8(row->op) && ref_tap_format(r->s, row->op, layer) == FWD_F32)
        return FWD_OK;
    const struct fwd_view *in[3] = {0};
    for (int i = 0; i < row->n_in; i++)
        in[i] = input_view(r, row, i, layer);
    r->views[row->op] = make_view(r, row->op, layer);
    return exec_op(r, row, row->n_in, in, &r->views[row->op], err);
}

static enum fwd_status embed(struct run *r, struct fwd_error *err) {
    static const struct op_row row = {FWD_OP_INP_EMBD, ref_op_embed, 1, {RESIDUAL}};
    int n = r->args->n_tokens;
    struct fwd_view ids = {.size = sizeof ids,
                           .op = FWD_OP_INP_EMBD,
                           .layer = -1,
                           .seq = r->args->seq,
                           .n_pos = n,
                           .dtype = FWD_I32,
                           .ne = {n, 1, 1, 1},
                           .nb = {4, 4 * n, 4 * n, 4 * n},
                           .data = (void *)(uintptr_t)r->args->tokens};
    const struct fwd_view *in[] = {&ids};
    r->views[FWD_OP_INP_EMBD] = make_view(r, FWD_OP_INP_EMBD, -1);
    return exec_op(r, &row, 1, in, &r->views[FWD_OP_INP_EMBD], err);
}

/* ---- logits ------------------------------------------------------------------------------------------------------ */
static bool is_wanted(const struct fwd_run_args *args, int i) {
    return args->want_logits ? args->want_logits[i] != 0 : i == args->n_tokens - 1;
}

static void copy_logits(const struct fwd_session *s, const struct fwd_run_args *args, const void *src, int64_t at,
                        int64_t n) {
    const float *f32 = src;
    const double *f64 = src;
    if (args->logits && args->logits + at != f32)
        for (int64_t i = 0; i < n; i++)
            args->logits[at + i] = s->real == FWD_F32 ? f32[i] : (float)f64[i];
    if (args->logits_f64 && args->logits_f64 + at != f64)
        for (int64_t i = 0; i < n; i++)
            args->logits_f64[at + i] = s->real == FWD_F32 ? (double)f32[i] : f64[i];
}

/* The head for positions from .. from + n - 1, the n_before-th wanted one first. */
static enum fwd_status run_head(struct run *r, int from, int n, int64_t n_before, struct fwd_error *err) {
    struct fwd_session *s = r->s;
    int64_t n_vocab = s->model->config.n_vocab, at = n_before * n_vocab;
    struct fwd_view whole = make_view(r, FWD_OP_RESULT_OUTPUT, -1);
    struct fwd_view out = sub_view(&whole, from, n), in = sub_view(input_view(r, &head_op, 0, -1), from, n);
    const struct fwd_view *ins[] = {&in};
    out.data = s->values[FWD_OP_RESULT_OUTPUT];
    if (s->real == FWD_F32 && r->args->logits)
        out.data = r->args->logits + at;
    if (s->real == FWD_F64 && r->args->logits_f64)
        out.data = r->args->logits_f64 + at;
    FWD_TRY(exec_op(r, &head_op, 1, ins, &out, err));
    copy_logits(s, r->args, out.data, at, n * n_vocab);
    return FWD_OK;
}

static enum fwd_status run_wanted(struct run *r, struct fwd_error *err) {
    int n_tokens = r->args->n_tokens;
    int64_t n_before = 0;
    bool direct = r->s->real == FWD_F32 ? r->args->logits != NULL : r->args->logits_f64 != NULL;
    for (int i = 0; i < n_tokens;) {
        int n = 0, most = direct ? n_tokens : REF_HEAD_CHUNK;
        while (i + n < n_tokens && n < most && is_wanted(r->args, i + n))
            n++;
        if (n)
            FWD_TRY(run_head(r, i, n, n_before, err));
        n_before += n;
        i += n ? n : 1;
    }
    return FWD_OK;
}

/* ---- the pass ---------------------------------------------------------------------------------------------------- */
static enum fwd_status check_args(const struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    FWD_FAIL_IF(args->size != sizeof *args, FWD_EVERSION, err, "run: arguments of %u bytes, expected %zu", args->size,
                sizeof *args);
    FWD_FAIL_IF(args->digest, FWD_EUNSUPPORTED, err, "run: got digest, expected NULL: it hands out taps");
    FWD_FAIL_IF(args->argmax, FWD_EUNSUPPORTED, err, "run: got argmax, expected NULL: this path hands out logits");
    FWD_FAIL_IF(args->seq < 0 || args->seq >= s->n_seq, FWD_ERANGE, err, "run: sequence slot %d, expected 0 to %d",
                args->seq, s->n_seq - 1);
    FWD_FAIL_IF(args->n_tokens <= 0, FWD_EINPUT, err, "run: %d tokens, expected at least 1", args->n_tokens);
    FWD_FAIL_IF(args->pos0 != 0, FWD_ESTATE, err,
                "run: position %d first, expected 0: this path has no cache and takes whole sequences", args->pos0);
    FWD_FAIL_IF(args->n_tokens > s->n_ctx, FWD_ERANGE, err, "run: %d tokens, expected at most the context of %d",
                args->n_tokens, s->n_ctx);
    for (int i = 0; i < args->n_tokens; i++)
        FWD_FAIL_IF(args->tokens[i] < 0 || args->tokens[i] >= c->n_vocab, FWD_ERANGE, err,
                    "run: token %d is id %d, expected 0 to %lld", i, args->tokens[i], (long long)c->n_vocab - 1);
    return FWD_OK;
}

enum fwd_status ref_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    FWD_TRY(check_args(s, args, err));
    struct run r = {.s = s, .args = args};
    FWD_TRY(embed(&r, err));
    for (int layer = 0; layer < s->model->config.n_layer; layer++)
        for (size_t i = 0; i < sizeof layer_ops / sizeof *layer_ops; i++)
            FWD_TRY(run_op(&r, &layer_ops[i], layer, err));
    FWD_TRY(run_op(&r, &norm_op, -1, err));
    FWD_TRY(run_op(&r, &norm_q8_op, -1, err));
    return run_wanted(&r, err);
}
