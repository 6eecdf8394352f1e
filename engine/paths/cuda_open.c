/* engine/paths/cuda_open.c: the CUDA paths: opened, closed, and told about. cuda_session.h says what lies where. */
#include "paths/cuda_session.h"

#include "ops/attention/attention.h"
#include "ops/rope/rope.h"
#include "ops/variant_table.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

extern const struct fwd_path fwd_path_f32_cuda, fwd_path_q4k_cuda, fwd_path_q4k_cuda_graph, fwd_path_bf16_cuda,
    fwd_path_fp8_cuda;

static const struct cuda_kind f32_kind = {"f32-cuda", "GPU: dequantised weights, F32 products without TF32, KV cache",
                                          CUDA_FORM_F32, false};
static const struct cuda_kind q4k_kind = {
    "q4k-cuda", "GPU: quantised weights and activations, fused block dots, one fused step a token", CUDA_FORM_TILES,
    false};
static const struct cuda_kind graph_kind = {
    "q4k-cuda-graph", "GPU: q4k-cuda, the step of one token replayed as a CUDA graph", CUDA_FORM_TILES, true};
static const struct cuda_kind bf16_kind = {
    "bf16-cuda", "GPU: weights and activations in BF16 on tensor cores through cuBLASLt", CUDA_FORM_BF16, false};
static const struct cuda_kind fp8_kind = {
    "fp8-cuda", "GPU: weights and activations in E4M3 on tensor cores through cuBLASLt", CUDA_FORM_E4M3, false};

static bool on_tensor_cores(const struct cuda_kind *k) {
    return k->form == CUDA_FORM_BF16 || k->form == CUDA_FORM_E4M3;
}

static bool is_q8(enum fwd_op op) {
    return op == FWD_OP_ATTN_NORM_Q8 || op == FWD_OP_KQV_OUT_Q8 || op == FWD_OP_FFN_NORM_Q8 ||
           op == FWD_OP_FFN_SWIGLU_Q8 || op == FWD_OP_RESULT_NORM_Q8;
}

static void describe(const struct cuda_kind *k, struct fwd_path_info *out) {
    bool tiles = k->form == CUDA_FORM_TILES;
    *out = (struct fwd_path_info){.size = sizeof *out,
                                  .name = k->name,
                                  .summary = k->summary,
                                  .uses_cache = true,
                                  .quantised = tiles || on_tensor_cores(k),
                                  .on_device = true,
                                  .has_plan = tiles,
                                  .overlaps = tiles,
                                  .fp8 = k->form == CUDA_FORM_E4M3,
                                  .scribbles = true,
                                  .argmax = true,
                                  .digests = true,
                                  .chunks_change_bits = on_tensor_cores(k),
                                  .shares = cuda_form_name(k->form),
                                  .same_bits_as = tiles ? "q4k-cpu" : NULL};
    for (int op = 0; op < FWD_OP_COUNT; op++)
        out->taps[op] = k->form == CUDA_FORM_F32 && is_q8((enum fwd_op)op) ? FWD_TAP_ABSENT : FWD_TAP_READ;
}

/* ---- what serves what ---------------------------------------------------------------------------------------------
 */

static void note(struct fwd_session *s, struct fwd_variant_choice row) {
    for (int i = 0; i < s->n_choices; i++) {
        const struct fwd_variant_choice *c = &s->choices[i];
        if (!strcmp(c->op, row.op) && !strcmp(c->detail, row.detail) && !strcmp(c->variant, row.variant) &&
            c->n_rows == row.n_rows && c->n_cols == row.n_cols && c->m_first == row.m_first)
            return;
    }
    if (s->n_choices < CUDA_MAX_CHOICES)
        s->choices[s->n_choices++] = row;
}

static void note_matrix(struct fwd_session *s, const struct cuda_matrix *m, bool in_step) {
    struct fwd_variant_choice row = {.op = m->dev.form == CUDA_FORM_TILES ? "matmul_q" : "matmul_f",
                                     .detail = fwd_type_name(m->dev.type),
                                     .n_rows = m->dev.n_rows,
                                     .n_cols = m->dev.n_cols,
                                     .m_first = 1,
                                     .m_last = 1};
    if (on_tensor_cores(s->kind) && m->dev.form != CUDA_FORM_F32) {
        row.variant = m->dev.form == CUDA_FORM_BF16 ? "cublaslt-bf16" : "cublaslt-e4m3";
        row.why = s->fp8_fast ? "the path's form, fast accumulation" : "the path's form";
        row.m_last = 0;
        note(s, row);
        return;
    }
    bool tiles = m->dev.form == CUDA_FORM_TILES;
    row.variant = in_step ? "fused-step" : tiles ? "cuda-gemv" : "cuda-gemv-f32";
    row.why = in_step ? "one token" : s->ops_forced ? "forced" : "one position, op by op";
    note(s, row);
    row.m_first = 2;
    row.m_last = 0;
    row.variant = tiles ? "cuda-mma-s8" : "cuda-gemm-f32";
    row.why = "several positions";
    note(s, row);
}

static void note_choices(struct fwd_session *s) {
    bool step = s->stepper && !s->ops_forced;
    for (int i = 0; i < s->model->config.n_layer; i++) {
        struct cuda_matrix *m[CUDA_LAYER_MATRICES];
        cuda_layer_matrices(&s->layers[i], m);
        for (int j = 0; j < CUDA_LAYER_MATRICES; j++)
            note_matrix(s, m[j], step);
    }
    note_matrix(s, &s->output, step && cuda_stepper_has_head(s));
    const char *why = step             ? "one token"
                      : s->ops_forced  ? "forced"
                      : s->why_no_step ? s->why_no_step
                                       : "the path's form";
    note(s, (struct fwd_variant_choice){.op = "step",
                                        .detail = "",
                                        .variant = !step            ? "ops"
                                                   : s->kind->graph ? "fused-graph"
                                                                    : "fused",
                                        .why = why,
                                        .m_first = 1,
                                        .m_last = 1});
    if (s->ops_fused)
        note(s, (struct fwd_variant_choice){
                    .op = "norm, rope, swiglu", .detail = "", .variant = "fused", .why = "forced", .m_first = 1});
    note(s, (struct fwd_variant_choice){.op = "attention",
                                        .detail = fwd_dtype_name(s->kv_type),
                                        .variant = cuda_attends_on_tensor_cores(s) ? "cuda-flash-f16" : "cuda-exact",
                                        .why = cuda_attends_on_tensor_cores(s) ? "the path's form" : "canonical order",
                                        .m_first = 1});
}

/* The items that mean something here: step=fused and step=ops for one token; ops=fused, small ops in one launch. */
static enum fwd_status read_force(struct fwd_session *s, const char *force, struct fwd_error *err) {
    if (!force)
        return FWD_OK;
    s->force = fwd_strdup(force);
    FWD_FAIL_IF(!s->force, FWD_ENOMEM, err, "%s: no memory for the text \"%s\"", s->kind->name, force);
    for (const char *at = force; *at;) {
        size_t n = strcspn(at, ",");
        bool fused = n == 10 && !memcmp(at, "step=fused", n), ops = n == 8 && !memcmp(at, "step=ops", n);
        bool small = n == 9 && !memcmp(at, "ops=fused", n);
        FWD_FAIL_IF(!fused && !ops && !small, FWD_ENOTFOUND, err,
                    "force: got \"%.*s\", expected step=fused, step=ops or ops=fused on %s", (int)n, at, s->kind->name);
        s->step_forced |= fused;
        s->ops_forced |= ops;
        s->ops_fused |= small;
        at += n + (at[n] == ',');
    }
    FWD_FAIL_IF(s->step_forced && s->kind->form != CUDA_FORM_TILES, FWD_EUNSUPPORTED, err,
                "force: step=fused serves quantised weights, %s has %s", s->kind->name, cuda_form_name(s->kind->form));
    return FWD_OK;
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void lay_out_act(struct cuda_layout *l, struct cuda_act *a, enum fwd_dtype format, size_t rows, size_t n_sb) {
    a->format = format;
    a->q = cuda_take(l, rows * n_sb, FWD_TILE_COLS);
    a->d = cuda_take(l, rows * n_sb * (format == FWD_Q8_K ? 1 : 8), sizeof *a->d);
    a->sum = cuda_take(l, rows * n_sb * 16, sizeof *a->sum);
}

/* buf.x to the end of the activations is one range: scribble overwrites it. */
static void lay_out(struct fwd_session *s, struct cuda_layout *l) {
    const struct fwd_config *c = &s->model->config;
    size_t n = ((size_t)s->n_batch + 15) / 16 * 16, f = sizeof(float), embd = (size_t)c->n_embd, ff = (size_t)c->n_ff;
    size_t heads = (size_t)c->n_head * (size_t)c->head_dim, kv = (size_t)c->n_kv_head * (size_t)c->head_dim;
    int64_t widest = larger(larger(c->n_embd, c->n_ff), (int64_t)heads);
    size_t n_sb = ((size_t)widest + FWD_TILE_COLS - 1) / FWD_TILE_COLS;
    struct cuda_buffers *b = &s->buf;
    b->ids = cuda_take(l, n, sizeof *b->ids);
    b->argmax = cuda_take(l, CUDA_HEAD_ROWS, sizeof *b->argmax);
    b->argmax_rows = cuda_take(l, CUDA_HEAD_ROWS, sizeof *b->argmax_rows);
    b->x = cuda_take(l, n * embd, f);
    b->norm = cuda_take(l, n * embd, f);
    b->q = cuda_take(l, n * heads, f);
    b->q_rot = cuda_take(l, n * heads, f);
    b->k = cuda_take(l, n * kv, f);
    b->k_rot = cuda_take(l, n * kv, f);
    b->v = cuda_take(l, n * kv, f);
    b->heads = cuda_take(l, n * heads, f);
    b->block = cuda_take(l, n * embd, f);
    b->mid = cuda_take(l, n * embd, f);
    b->gate = cuda_take(l, n * ff, f);
    b->up = cuda_take(l, n * ff, f);
    b->swiglu = cuda_take(l, n * ff, f);
    lay_out_act(l, &b->act_k, FWD_Q8_K, n, n_sb);
    lay_out_act(l, &b->act_32, FWD_Q8_32, n, n_sb);
    b->tap_k = cuda_take(l, n, fwd_dtype_row_bytes(FWD_Q8_K, (widest + 255) / 256 * 256));
    b->tap_32 = cuda_take(l, n, fwd_dtype_row_bytes(FWD_Q8_32, (widest + 31) / 32 * 32));
    if (on_tensor_cores(s->kind)) {
        b->tc.data = cuda_take(l, n * (((size_t)widest + 15) / 16 * 16), 2);
        b->tc.scale = cuda_take(l, n, f);
        b->tap_tc = cuda_take(l, n, 2 * (size_t)widest + 4);
    }
    size_t exact = cuda_attention_scratch(c->n_head, c->head_dim, s->n_batch, s->n_ctx);
    size_t flash =
        on_tensor_cores(s->kind) ? cuda_tc_attention_scratch(c->n_head, c->head_dim, s->n_batch, s->n_ctx) : 0;
    b->attention = cuda_take(l, exact > flash ? exact : flash, 1);
    b->logits = cuda_take(l, CUDA_HEAD_ROWS * (size_t)c->n_vocab, f);

    int64_t value = (int64_t)fwd_dtype_row_bytes(s->kv_type, 1);
    s->kv_row = c->head_dim * value;
    s->kv_head = s->kv_row * s->n_ctx;
    s->kv_part = s->kv_head * c->n_kv_head;
    s->kv_layer = 2 * s->kv_part;
    s->kv_slot = s->kv_layer * c->n_layer;
    s->kv = cuda_take(l, (size_t)s->n_seq, (size_t)s->kv_slot);
    s->rope_table = cuda_take(l, (size_t)s->n_ctx * (size_t)(c->n_rope / 2) * 2, f);
}

static enum fwd_status send_rope_table(struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    size_t n = (size_t)s->n_ctx * (size_t)(c->n_rope / 2) * 2;
    float *table = fwd_alloc(n, sizeof *table);
    FWD_FAIL_IF(!table, FWD_ENOMEM, err, "%s: no memory for the angles of %d positions", s->kind->name, s->n_ctx);
    fwd_rope_table(c, 0, s->n_ctx, table);
    enum fwd_status rc =
        cuda_status(cudaMemcpy(s->rope_table, table, n * sizeof *table, cudaMemcpyHostToDevice), "the angles", err);
    fwd_free(table);
    return rc;
}

static enum fwd_status allocate(struct fwd_session *s, struct fwd_error *err) {
    struct cuda_layout l = {0};
    lay_out(s, &l);
    char what[96];
    (void)snprintf(what, sizeof what, "buffers and cache of %d tokens a call, %d x %d positions", s->n_batch, s->n_seq,
                   s->n_ctx);
    s->arena_bytes = l.used;
    FWD_TRY(cuda_alloc(&s->arena, l.used, what, err));
    l = (struct cuda_layout){.base = s->arena};
    lay_out(s, &l);
    s->n_past = fwd_calloc((size_t)s->n_seq, sizeof *s->n_past);
    s->overrides = fwd_calloc((size_t)FWD_OP_COUNT * (size_t)(s->model->config.n_layer + 1), sizeof *s->overrides);
    FWD_FAIL_IF(!s->n_past || !s->overrides, FWD_ENOMEM, err, "%s: no memory for %d sequences", s->kind->name,
                s->n_seq);
    FWD_TRY(cuda_status(cudaMemset(s->buf.argmax_rows, 0, CUDA_HEAD_ROWS * sizeof *s->buf.argmax_rows), what, err));
    return send_rope_table(s, err);
}

/* ---- open, close --------------------------------------------------------------------------------------------------
 */

static void close_session(struct fwd_session *s) {
    if (!s)
        return;
    cuda_stepper_free(s);
    cuda_host_free(s);
    cuda_lt_free(s->lt);
    cuda_free(s->arena);
    cuda_free(s->weights);
    cuda_device_close(&s->device);
    fwd_free(s->layers);
    fwd_free(s->n_past);
    fwd_free(s->overrides);
    fwd_free(s->force);
    fwd_model_free(s->model);
    fwd_pool_free(s->pool);
    fwd_free(s);
}

static enum fwd_status check_knobs(const struct cuda_kind *kind, const struct fwd_knobs *k, struct fwd_error *err) {
    FWD_FAIL_IF(k->size != sizeof *k, FWD_EVERSION, err, "%s: knobs of %u bytes, expected %zu", kind->name, k->size,
                sizeof *k);
    FWD_FAIL_IF(k->n_ctx < 1 || k->n_seq < 1 || k->n_batch < 1, FWD_ERANGE, err,
                "%s: got n_ctx %d, n_seq %d, n_batch %d, expected 1 or more of each", kind->name, k->n_ctx, k->n_seq,
                k->n_batch);
    FWD_FAIL_IF(k->head != FWD_HEAD_QUANT && k->head != FWD_HEAD_F32, FWD_EINPUT, err,
                "%s: got head form %d, expected quant (0) or f32 (1)", kind->name, (int)k->head);
    FWD_FAIL_IF(k->kv_type != FWD_F16 && k->kv_type != FWD_F32, FWD_EINPUT, err,
                "%s: got a KV cache of %s, expected F16 or F32", kind->name, fwd_dtype_name(k->kv_type));
    FWD_FAIL_IF(k->act && strcmp(k->act, "none") != 0, FWD_EINPUT, err,
                "%s: got act \"%s\"; its activations are always its own, expected none", kind->name, k->act);
    FWD_FAIL_IF(k->fp8_fast && kind->form != CUDA_FORM_E4M3, FWD_EINPUT, err,
                "%s: got fp8_fast, which means nothing to it", kind->name);
    FWD_FAIL_IF(k->no_overlap && kind->form != CUDA_FORM_TILES, FWD_EINPUT, err,
                "%s: got no_overlap, which means nothing to it", kind->name);
    return FWD_OK;
}

static enum fwd_status fill_session(struct fwd_session *s, const struct fwd_knobs *k, struct fwd_error *err) {
    FWD_TRY(read_force(s, k->force, err));
    FWD_TRY(cuda_device_open(&s->device, err));
    if (on_tensor_cores(s->kind))
        FWD_TRY(cuda_lt_create(&s->lt, err));
    FWD_TRY(fwd_pool_create(&s->pool, k->n_threads, err));
    FWD_TRY(fwd_model_bind(&s->model, s->file, k->config_hook, k->config_hook_ud, err));
    if (k->model_hook)
        k->model_hook(k->model_hook_ud, s->model);
    FWD_TRY(cuda_weights_load(s, err));
    FWD_TRY(allocate(s, err));
    FWD_TRY(cuda_host_create(s, err));
    if (s->kind->form == CUDA_FORM_TILES) {
        s->has_plan_fault = k->plan_hook && k->plan_hook(k->plan_hook_ud, &s->plan_fault);
        FWD_TRY(cuda_stepper_create(s, err));
    }
    note_choices(s);
    return FWD_OK;
}

static enum fwd_status open_session(const struct cuda_kind *kind, struct fwd_session **out, const struct fwd_gguf *file,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    FWD_TRY(check_knobs(kind, knobs, err));
    struct fwd_session *s = fwd_calloc(1, sizeof *s);
    FWD_FAIL_IF(!s, FWD_ENOMEM, err, "%s: no memory for a session of %zu bytes", kind->name, sizeof *s);
    s->kind = kind;
    s->file = file;
    s->n_ctx = knobs->n_ctx;
    s->n_seq = knobs->n_seq;
    s->n_batch = knobs->n_batch;
    s->head = kind->form == CUDA_FORM_F32 ? FWD_HEAD_F32 : knobs->head;
    s->kv_type = knobs->kv_type;
    s->scribble = knobs->scribble;
    s->fp8_fast = knobs->fp8_fast;
    s->no_overlap = knobs->no_overlap;
    s->share = knobs->share;
    enum fwd_status status = fill_session(s, knobs, err);
    if (status != FWD_OK) {
        close_session(s);
        return status;
    }
    *out = s;
    return FWD_OK;
}

static enum fwd_status begin_sequence(struct fwd_session *s, int seq, struct fwd_error *err) {
    FWD_FAIL_IF(seq < 0 || seq >= s->n_seq, FWD_ERANGE, err, "%s: got sequence slot %d, expected 0 to %d",
                s->kind->name, seq, s->n_seq - 1);
    s->n_past[seq] = 0;
    return FWD_OK;
}

/* ---- told about a session -----------------------------------------------------------------------------------------
 */

static bool is_head(enum fwd_op op) {
    return op == FWD_OP_RESULT_NORM || op == FWD_OP_RESULT_NORM_Q8 || op == FWD_OP_RESULT_OUTPUT;
}

static void put_override(struct fwd_session *s, enum fwd_op op, int layer, struct cuda_override value) {
    struct cuda_override *o = cuda_override_at(s, op, layer);
    int change = (value.fn != NULL) - (o->fn != NULL);
    s->n_overrides += change;
    s->n_body_overrides += is_head(op) ? 0 : change;
    *o = value;
}

static enum fwd_status set_override(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                                    struct fwd_error *err) {
    int n_layer = s->model->config.n_layer;
    FWD_FAIL_IF((unsigned)op >= FWD_OP_COUNT, FWD_EINPUT, err, "override: got op %d, expected 0 to %d", (int)op,
                FWD_OP_COUNT - 1);
    FWD_FAIL_IF(layer < -1 || layer >= n_layer || (layer >= 0 && !fwd_op_in_layer(op)), FWD_ERANGE, err,
                "override: got layer %d for %s, expected %s", layer, fwd_op_name(op),
                fwd_op_in_layer(op) ? "a layer of the model or -1 for all" : "-1");
    struct cuda_override value = {fn, ud};
    if (layer >= 0 || !fwd_op_in_layer(op)) {
        put_override(s, op, layer, value);
        return FWD_OK;
    }
    for (int i = 0; i < n_layer; i++)
        put_override(s, op, i, value);
    return FWD_OK;
}

static const struct fwd_config *get_config(const struct fwd_session *s) {
    return &s->model->config;
}

static bool get_variant(const struct fwd_session *s, int i, struct fwd_variant_choice *out) {
    if (i < 0 || i >= s->n_choices)
        return false;
    *out = s->choices[i];
    return true;
}

static const struct cuda_matrix *matrix_of(const struct fwd_session *s, enum fwd_op op, int layer) {
    if (op == FWD_OP_RESULT_OUTPUT)
        return &s->output;
    const struct cuda_layer *l = &s->layers[layer];
    switch (op) {
    case FWD_OP_QCUR:
        return &l->wq;
    case FWD_OP_KCUR:
        return &l->wk;
    case FWD_OP_VCUR:
        return &l->wv;
    case FWD_OP_ATTN_OUT:
        return &l->wo;
    case FWD_OP_FFN_GATE:
        return &l->gate;
    case FWD_OP_FFN_UP:
        return &l->up;
    default:
        return &l->down;
    }
}

static struct fused_product product_of(const void *session, enum fwd_op op, int layer) {
    const struct cuda_matrix *m = matrix_of(session, op, layer);
    return (struct fused_product){m->dev.act, m->dev.type, m->bias_file != NULL};
}

static bool is_product(enum fwd_op op) {
    return op == FWD_OP_QCUR || op == FWD_OP_KCUR || op == FWD_OP_VCUR || op == FWD_OP_ATTN_OUT ||
           op == FWD_OP_FFN_GATE || op == FWD_OP_FFN_UP || op == FWD_OP_FFN_OUT || op == FWD_OP_RESULT_OUTPUT;
}

static bool get_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct fwd_config *c = &s->model->config;
    if ((unsigned)op >= FWD_OP_COUNT || (fwd_op_in_layer(op) ? layer < 0 || layer >= c->n_layer : layer != -1))
        return false;
    const struct cuda_matrix *m = is_product(op) ? matrix_of(s, op, layer) : NULL;
    if (m && (m->dev.form == CUDA_FORM_BF16 || m->dev.form == CUDA_FORM_E4M3)) {
        cuda_tc_numerics_matmul(s->device.major, m->dev.form, s->fp8_fast, m->bias_file != NULL, out);
        return true;
    }
    if (!fused_numerics(s, product_of, s->kv_type, op, layer, out))
        return false;
    if (is_q8(op) && (out->store == FWD_BF16 || out->store == FWD_E4M3))
        cuda_tc_numerics_convert(out->store == FWD_BF16 ? CUDA_FORM_BF16 : CUDA_FORM_E4M3, out);
    if (op == FWD_OP_KQV_OUT && cuda_attends_on_tensor_cores(s))
        cuda_tc_numerics_attention(s->device.major, out);
    return true;
}

/* One weight as bound: a matrix in its form, or a vector or table as in the file. */
struct bound {
    const struct fwd_weight *file;
    const struct cuda_matrix *matrix; /* NULL: `device` has the file's bytes */
    const void *device;
    int layer;
};

enum { LAYER_WEIGHTS = 12 };

static struct bound layer_weight(const struct fwd_session *s, int layer, int i) {
    const struct cuda_layer *l = &s->layers[layer];
    const struct cuda_matrix *m[] = {NULL, &l->wq, &l->wk, &l->wv,   NULL,   NULL,
                                     NULL, &l->wo, NULL,   &l->gate, &l->up, &l->down};
    const struct fwd_layer *f = l->file;
    switch (i) {
    case 0:
        return (struct bound){&f->attn_norm, NULL, l->attn_norm, layer};
    case 4:
        return (struct bound){&f->bq, NULL, l->wq.dev.bias, layer};
    case 5:
        return (struct bound){&f->bk, NULL, l->wk.dev.bias, layer};
    case 6:
        return (struct bound){&f->bv, NULL, l->wv.dev.bias, layer};
    case 8:
        return (struct bound){&f->ffn_norm, NULL, l->ffn_norm, layer};
    default:
        return (struct bound){m[i]->file, m[i], NULL, layer};
    }
}

/* Number i of all that can be bound; file->data NULL: absent here. */
static struct bound nth_weight(const struct fwd_session *s, int i) {
    const struct fwd_model *m = s->model;
    int n_in_layers = LAYER_WEIGHTS * m->config.n_layer;
    if (i == 0)
        return (struct bound){&m->tok_embd, NULL, s->embedding, -1};
    if (i <= n_in_layers)
        return layer_weight(s, (i - 1) / LAYER_WEIGHTS, (i - 1) % LAYER_WEIGHTS);
    if (i == n_in_layers + 1)
        return (struct bound){&m->output_norm, NULL, s->output_norm, -1};
    return (struct bound){s->output.file, &s->output, NULL, -1};
}

static bool get_bound_weight(const struct fwd_session *s, int i, struct fwd_bound_weight *out) {
    int n_all = LAYER_WEIGHTS * s->model->config.n_layer + 3;
    for (int j = 0; j < n_all && i >= 0; j++) {
        struct bound b = nth_weight(s, j);
        if (!b.file->data || i-- > 0)
            continue;
        *out = (struct fwd_bound_weight){.name = b.file->name,
                                         .layer = b.layer,
                                         .type = b.file->type,
                                         .n_rows = b.file->n_rows,
                                         .n_cols = b.file->n_cols,
                                         .layout = b.matrix ? cuda_form_name(b.matrix->dev.form) : "file"};
        /* A device that cannot be read gives a checksum that is no file's. */
        size_t n_bytes = (size_t)b.file->n_rows * (size_t)b.file->row_bytes;
        if ((b.matrix ? cuda_matrix_checksum(s, b.matrix, &out->checksum, NULL)
                      : cuda_bytes_checksum(b.device, n_bytes, &out->checksum, NULL)) != FWD_OK)
            out->checksum = 0;
        return true;
    }
    return false;
}

static enum fwd_status device_info(struct fwd_device_info *out, bool measure, struct fwd_error *err) {
    enum { MEASURED_BYTES = 1 << 30 };
    struct cuda_device d;
    int driver = 0, runtime = 0;
    FWD_TRY(cuda_device_open(&d, err));
    *out = (struct fwd_device_info){.size = sizeof *out, .memory_bytes = (int64_t)d.total_bytes};
    (void)snprintf(out->name, sizeof out->name, "%.90s", d.name);
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    (void)snprintf(out->driver, sizeof out->driver, "driver for CUDA %d.%d, runtime %d.%d", driver / 1000,
                   driver % 100 / 10, runtime / 1000, runtime % 100 / 10);
    cuda_device_close(&d);
    return measure ? cuda_read_ceiling(4 * (size_t)MEASURED_BYTES, &out->read_gb_s, err) : FWD_OK;
}

/* ---- the paths ----------------------------------------------------------------------------------------------------
 */

#define CUDA_PATH(id, row, path_name)                                                                                  \
    static void describe_##id(struct fwd_path_info *out) {                                                             \
        describe(&row, out);                                                                                           \
    }                                                                                                                  \
    static enum fwd_status open_##id(struct fwd_session **out, const struct fwd_gguf *file,                            \
                                     const struct fwd_knobs *knobs, struct fwd_error *err) {                           \
        return open_session(&row, out, file, knobs, err);                                                              \
    }                                                                                                                  \
    const struct fwd_path fwd_path_##id = {.abi = FWD_PATH_ABI,                                                        \
                                           .size = sizeof(struct fwd_path),                                            \
                                           .name = path_name,                                                          \
                                           .probe = cuda_device_probe,                                                 \
                                           .describe = describe_##id,                                                  \
                                           .open = open_##id,                                                          \
                                           .seq_begin = begin_sequence,                                                \
                                           .run = cuda_run,                                                            \
                                           .override = set_override,                                                   \
                                           .config = get_config,                                                       \
                                           .numerics = get_numerics,                                                   \
                                           .variant = get_variant,                                                     \
                                           .bound_weight = get_bound_weight,                                           \
                                           .close = close_session,                                                     \
                                           .device = device_info};

CUDA_PATH(f32_cuda, f32_kind, "f32-cuda")
CUDA_PATH(q4k_cuda, q4k_kind, "q4k-cuda")
CUDA_PATH(q4k_cuda_graph, graph_kind, "q4k-cuda-graph")
CUDA_PATH(bf16_cuda, bf16_kind, "bf16-cuda")
CUDA_PATH(fp8_cuda, fp8_kind, "fp8-cuda")
