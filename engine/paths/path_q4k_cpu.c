/* engine/paths/path_q4k_cpu.c: q4k-cpu, the production path: activations quantised once per op input, block dots on
 * the packed weights, a KV cache, any chunking. Here a session is opened, described and closed; q4k_cpu_run.c runs it.
 *
 * All memory is taken at open: one arena for buffers, one block for the KV cache, one copy of the packed weights. */
#include "paths/q4k_cpu.h"

#include "ops/variant_table.h"
#include "quant/quant.h"

#include <stdio.h>
#include <string.h>

extern const struct fwd_path fwd_path_q4k_cpu;

static enum fwd_status probe(struct fwd_error *err) {
    (void)err;
    return FWD_OK;
}

static void describe(struct fwd_path_info *out) {
    *out = (struct fwd_path_info){.size = sizeof *out,
                                  .name = "q4k-cpu",
                                  .summary = "quantised weights and activations, fused block dots, KV cache",
                                  .uses_cache = true,
                                  .quantised = true,
                                  .scribbles = true,
                                  .same_bits_as = "q4k-cpu"};
    for (int op = 0; op < FWD_OP_COUNT; op++)
        out->taps[op] = FWD_TAP_WRITE;
}

/* ---- variants -----------------------------------------------------------------------------------------------------
 */

static void note_choice(struct fwd_session *s, const char *op, const char *detail, const char *variant,
                        const char *why) {
    for (int i = 0; i < s->n_choices; i++)
        if (!strcmp(s->choices[i].op, op) && !strcmp(s->choices[i].detail, detail))
            return;
    if (s->n_choices < Q4K_MAX_CHOICES)
        s->choices[s->n_choices++] =
            (struct fwd_variant_choice){.op = op, .detail = detail, .variant = variant, .why = why};
}

static const char *why_of(const struct fwd_session *s, const char *op) {
    return fwd_variant_is_forced(op, s->force) ? "forced" : s->why_fastest;
}

static enum fwd_status pick(struct fwd_session *s, const char *op, fwd_any_fn **fn, struct fwd_error *err) {
    const struct fwd_variant *row = NULL;
    FWD_TRY(fwd_variant_pick(&row, op, s->caps, s->force, err));
    note_choice(s, op, "", row->variant, why_of(s, op));
    *fn = row->fn;
    return FWD_OK;
}

/* The vector rows of attention need whole groups of 16 dimensions; other heads go to ref. */
static enum fwd_status pick_attention(struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_variant *row = NULL;
    int head_dim = s->model->config.head_dim;
    FWD_TRY(fwd_variant_pick(&row, "attention", s->caps, s->force, err));
    const char *why = why_of(s, "attention");
    if (!fwd_attention_serves(row->variant, head_dim)) {
        FWD_FAIL_IF(fwd_variant_is_forced("attention", s->force), FWD_EUNSUPPORTED, err,
                    "force: attention=%s needs a head_dim that is a multiple of 16, got %d", row->variant, head_dim);
        row = fwd_variant_find("attention", "ref");
        why = "head_dim is no multiple of 16";
    }
    note_choice(s, "attention", "", row->variant, why);
    s->attention = (attention_fn *)row->fn;
    return FWD_OK;
}

static enum fwd_status pick_kernels(struct fwd_session *s, struct fwd_error *err) {
    fwd_any_fn *fn = NULL;
    FWD_TRY(pick(s, "act_quant_k", &fn, err));
    s->act_quant_k = (act_quant_k_fn *)fn;
    FWD_TRY(pick(s, "act_quant_32", &fn, err));
    s->act_quant_32 = (act_quant_32_fn *)fn;
    FWD_TRY(pick(s, "rmsnorm", &fn, err));
    s->rmsnorm = (rmsnorm_fn *)fn;
    FWD_TRY(pick(s, "rope", &fn, err));
    s->rope = (rope_fn *)fn;
    FWD_TRY(pick(s, "swiglu", &fn, err));
    s->swiglu = (swiglu_fn *)fn;
    FWD_TRY(pick(s, "add", &fn, err));
    s->add = (add_fn *)fn;
    FWD_TRY(pick(s, "matmul_f", &fn, err));
    s->matmul_f = (matmul_f_fn *)fn;
    return pick_attention(s, err);
}

/* ---- weights ------------------------------------------------------------------------------------------------------
 */

static enum fwd_status bind_linear(struct fwd_session *s, struct q4k_linear *out, const struct fwd_weight *w,
                                   const struct fwd_weight *bias, bool in_float, struct fwd_error *err) {
    *out = (struct q4k_linear){.weight = w, .act = in_float ? FWD_F32 : fwd_matmul_q_act(w->type)};
    if (bias && bias->data)
        out->bias = (const float *)(const void *)bias->data;
    FWD_FAIL_IF(!fwd_decode_for(w->type), FWD_ETYPE, err, "%s: type %s cannot be computed with", w->name,
                fwd_type_name(w->type));
    if (out->act == FWD_F32)
        return FWD_OK;
    const struct fwd_variant *row = NULL;
    if (fwd_variant_is_forced("matmul_q", s->force))
        FWD_TRY(fwd_variant_pick(&row, "matmul_q", s->caps, s->force, err));
    FWD_TRY(fwd_packed_create(&out->packed, s->file, w, s->caps, row ? row->variant : NULL, s->pool, err));
    note_choice(s, "matmul_q", fwd_type_name(w->type), fwd_packed_variant(out->packed), why_of(s, "matmul_q"));
    return FWD_OK;
}

static enum fwd_status bind_layer(struct fwd_session *s, int layer, struct fwd_error *err) {
    const struct fwd_layer *w = &s->model->layers[layer];
    struct q4k_layer *l = &s->layers[layer];
    l->weights = w;
    FWD_TRY(bind_linear(s, &l->wq, &w->wq, &w->bq, false, err));
    FWD_TRY(bind_linear(s, &l->wk, &w->wk, &w->bk, false, err));
    FWD_TRY(bind_linear(s, &l->wv, &w->wv, &w->bv, false, err));
    FWD_TRY(bind_linear(s, &l->wo, &w->wo, NULL, false, err));
    FWD_TRY(bind_linear(s, &l->gate, &w->gate, NULL, false, err));
    FWD_TRY(bind_linear(s, &l->up, &w->up, NULL, false, err));
    return bind_linear(s, &l->down, &w->down, NULL, false, err);
}

static enum fwd_status bind_weights(struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    s->layers = fwd_calloc((size_t)c->n_layer, sizeof *s->layers);
    s->groups = fwd_calloc((size_t)c->n_head, sizeof *s->groups);
    s->overrides = fwd_calloc((size_t)FWD_OP_COUNT * (size_t)(c->n_layer + 1), sizeof *s->overrides);
    FWD_FAIL_IF(!s->layers || !s->groups || !s->overrides, FWD_ENOMEM, err, "q4k-cpu: no memory for %d layers",
                c->n_layer);
    s->n_groups = fwd_attention_groups(c, s->groups);
    FWD_FAIL_IF(!fwd_decode_for(s->model->tok_embd.type), FWD_ETYPE, err, "%s: type %s cannot be decoded",
                s->model->tok_embd.name, fwd_type_name(s->model->tok_embd.type));
    for (int layer = 0; layer < c->n_layer; layer++)
        FWD_TRY(bind_layer(s, layer, err));
    return bind_linear(s, &s->output, &s->model->output, NULL, s->head == FWD_HEAD_F32, err);
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */

struct layout {
    uint8_t *base; /* NULL while sizes are added up */
    size_t used;
};

static void *take(struct layout *l, size_t n, size_t size) {
    void *p = l->base ? l->base + l->used : NULL;
    l->used += (n * size + FWD_ALIGN - 1) / FWD_ALIGN * FWD_ALIGN;
    return p;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void lay_out(struct fwd_session *s, struct layout *l) {
    const struct fwd_config *c = &s->model->config;
    size_t n = (size_t)s->n_batch, embd = (size_t)c->n_embd, ff = (size_t)c->n_ff, f = sizeof(float);
    size_t heads = (size_t)c->n_head * (size_t)c->head_dim, kv = (size_t)c->n_kv_head * (size_t)c->head_dim;
    size_t widest = larger(larger(embd, heads), ff);
    int threads = fwd_pool_size(s->pool);
    struct q4k_buffers *b = &s->buf;
    b->x = take(l, n * embd, f);
    b->norm = take(l, n * embd, f);
    b->q = take(l, n * heads, f);
    b->q_rot = take(l, n * heads, f);
    b->k = take(l, n * kv, f);
    b->k_rot = take(l, n * kv, f);
    b->v = take(l, n * kv, f);
    b->heads = take(l, n * heads, f);
    b->block = take(l, n * embd, f);
    b->mid = take(l, n * embd, f);
    b->gate = take(l, n * ff, f);
    b->up = take(l, n * ff, f);
    b->swiglu = take(l, n * ff, f);
    b->q8_k = take(l, n * ((widest + 255) / 256), sizeof(struct fwd_q8_k));
    b->q8_32 = take(l, n * ((widest + 31) / 32), sizeof(struct fwd_q8_32));
    s->rope_table = take(l, (size_t)s->n_ctx * (size_t)(c->n_rope / 2) * 2, f);
    s->attention_scratch = take(l, (size_t)threads * fwd_attention_scratch(c->head_dim), f);
    size_t scratch_q = fwd_matmul_q_scratch((int64_t)widest, s->n_batch, threads);
    size_t scratch_f = fwd_matmul_f_scratch((int64_t)widest, s->n_batch, threads);
    s->matmul_scratch = take(l, larger(scratch_q, scratch_f), 1);
}

static enum fwd_status allocate(struct fwd_session *s, enum fwd_dtype kv_type, struct fwd_error *err) {
    struct layout l = {0};
    lay_out(s, &l);
    s->arena = fwd_alloc(l.used, 1);
    s->arena_bytes = l.used;
    FWD_FAIL_IF(!s->arena, FWD_ENOMEM, err,
                "q4k-cpu: no memory for buffers of %zu MiB (%d tokens a call, %d positions)", l.used >> 20, s->n_batch,
                s->n_ctx);
    l = (struct layout){.base = s->arena};
    lay_out(s, &l);
    fwd_rope_table(&s->model->config, 0, s->n_ctx, s->rope_table);
    return fwd_kv_cache_create(&s->kv, &s->model->config, s->n_seq, s->n_ctx, kv_type, err);
}

/* ---- open, close --------------------------------------------------------------------------------------------------
 */

static void free_layers(struct fwd_session *s) {
    for (int i = 0; s->layers && i < s->model->config.n_layer; i++) {
        struct q4k_layer *l = &s->layers[i];
        struct q4k_linear *all[] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            fwd_packed_free(all[j]->packed);
    }
    fwd_packed_free(s->output.packed);
    fwd_free(s->layers);
}

static void close_session(struct fwd_session *s) {
    if (!s)
        return;
    free_layers(s);
    fwd_kv_cache_free(s->kv);
    fwd_free(s->groups);
    fwd_free(s->overrides);
    fwd_free(s->arena);
    fwd_free(s->force);
    fwd_model_free(s->model);
    fwd_pool_free(s->pool);
    fwd_free(s);
}

static enum fwd_status check_knobs(const struct fwd_knobs *k, struct fwd_error *err) {
    FWD_FAIL_IF(k->size != sizeof *k, FWD_EVERSION, err, "q4k-cpu: knobs of %u bytes, expected %zu", k->size,
                sizeof *k);
    FWD_FAIL_IF(k->n_ctx < 1 || k->n_seq < 1 || k->n_batch < 1, FWD_ERANGE, err,
                "q4k-cpu: got n_ctx %d, n_seq %d, n_batch %d, expected 1 or more of each", k->n_ctx, k->n_seq,
                k->n_batch);
    FWD_FAIL_IF(k->head != FWD_HEAD_QUANT && k->head != FWD_HEAD_F32, FWD_EINPUT, err,
                "q4k-cpu: got head form %d, expected quant (0) or f32 (1)", (int)k->head);
    FWD_FAIL_IF(k->act && strcmp(k->act, "none") != 0, FWD_EINPUT, err,
                "q4k-cpu: got act \"%s\"; its activations are always its own, expected none", k->act);
    FWD_FAIL_IF(k->fp8_fast || k->no_overlap, FWD_EINPUT, err, "q4k-cpu: got %s, which means nothing to it",
                k->fp8_fast ? "fp8_fast" : "no_overlap");
    return FWD_OK;
}

static enum fwd_status fill_session(struct fwd_session *s, const struct fwd_knobs *k, struct fwd_error *err) {
    FWD_TRY(fwd_cpu_parse(k->caps, fwd_cpu_detect(), &s->caps, err));
    FWD_TRY(fwd_variant_check_force(s->caps, k->force, err));
    char caps[32];
    (void)snprintf(s->why_fastest, sizeof s->why_fastest, "fastest of caps %s",
                   fwd_cpu_text(s->caps, caps, sizeof caps));
    if (k->force) {
        s->force = fwd_strdup(k->force);
        FWD_FAIL_IF(!s->force, FWD_ENOMEM, err, "q4k-cpu: no memory for the text \"%s\"", k->force);
    }
    FWD_TRY(fwd_pool_create(&s->pool, k->n_threads, err));
    FWD_TRY(fwd_model_bind(&s->model, s->file, k->config_hook, k->config_hook_ud, err));
    if (k->model_hook)
        k->model_hook(k->model_hook_ud, s->model);
    FWD_TRY(pick_kernels(s, err));
    FWD_TRY(bind_weights(s, err));
    return allocate(s, k->kv_type, err);
}

static enum fwd_status open_session(struct fwd_session **out, const struct fwd_gguf *file,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    FWD_TRY(check_knobs(knobs, err));
    struct fwd_session *s = fwd_calloc(1, sizeof *s);
    FWD_FAIL_IF(!s, FWD_ENOMEM, err, "q4k-cpu: no memory for a session of %zu bytes", sizeof *s);
    s->file = file;
    s->n_ctx = knobs->n_ctx;
    s->n_seq = knobs->n_seq;
    s->n_batch = knobs->n_batch;
    s->head = knobs->head;
    s->scribble = knobs->scribble;
    enum fwd_status status = fill_session(s, knobs, err);
    if (status != FWD_OK) {
        close_session(s);
        return status;
    }
    *out = s;
    return FWD_OK;
}

static enum fwd_status begin_sequence(struct fwd_session *s, int seq, struct fwd_error *err) {
    FWD_FAIL_IF(seq < 0 || seq >= s->n_seq, FWD_ERANGE, err, "q4k-cpu: got sequence slot %d, expected 0 to %d", seq,
                s->n_seq - 1);
    fwd_kv_cache_set_n_past(s->kv, seq, 0);
    return FWD_OK;
}

/* ---- told about a session -----------------------------------------------------------------------------------------
 */

static enum fwd_status set_override(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                                    struct fwd_error *err) {
    int n_layer = s->model->config.n_layer;
    FWD_FAIL_IF((unsigned)op >= FWD_OP_COUNT, FWD_EINPUT, err, "override: got op %d, expected 0 to %d", (int)op,
                FWD_OP_COUNT - 1);
    FWD_FAIL_IF(layer < -1 || layer >= n_layer || (layer >= 0 && !fwd_op_in_layer(op)), FWD_ERANGE, err,
                "override: got layer %d for %s, expected %s", layer, fwd_op_name(op),
                fwd_op_in_layer(op) ? "a layer of the model or -1 for all" : "-1");
    struct q4k_override value = {fn, ud};
    if (layer >= 0 || !fwd_op_in_layer(op)) {
        *q4k_override_at(s, op, layer) = value;
        return FWD_OK;
    }
    for (int i = 0; i < n_layer; i++)
        *q4k_override_at(s, op, i) = value;
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

/* Weights of a layer, in the order of struct fwd_layer; the packed form where there is one. */
enum { LAYER_WEIGHTS = 12 };

static const struct fwd_weight *layer_weight(const struct q4k_layer *l, int i, const struct fwd_packed **packed) {
    const struct fwd_layer *w = l->weights;
    const struct fwd_weight *const weights[LAYER_WEIGHTS] = {&w->attn_norm, &w->wq,   &w->wk, &w->wv,
                                                             &w->bq,        &w->bk,   &w->bv, &w->wo,
                                                             &w->ffn_norm,  &w->gate, &w->up, &w->down};
    const struct q4k_linear *const linears[LAYER_WEIGHTS] = {NULL, &l->wq, &l->wk, &l->wv,   NULL,   NULL,
                                                             NULL, &l->wo, NULL,   &l->gate, &l->up, &l->down};
    *packed = linears[i] ? linears[i]->packed : NULL;
    return weights[i];
}

/* Weight number i of all that can be bound, absent ones and a tied unpacked output as NULL. */
static const struct fwd_weight *nth_weight(const struct fwd_session *s, int i, int *layer,
                                           const struct fwd_packed **packed) {
    const struct fwd_model *m = s->model;
    int n_in_layers = LAYER_WEIGHTS * m->config.n_layer;
    *layer = -1;
    *packed = NULL;
    if (i == 0)
        return &m->tok_embd;
    if (i <= n_in_layers) {
        *layer = (i - 1) / LAYER_WEIGHTS;
        const struct fwd_weight *w = layer_weight(&s->layers[*layer], (i - 1) % LAYER_WEIGHTS, packed);
        return w->data ? w : NULL;
    }
    if (i == n_in_layers + 1)
        return &m->output_norm;
    *packed = s->output.packed;
    return m->config.tied_head && !s->output.packed ? NULL : &m->output;
}

static bool get_bound_weight(const struct fwd_session *s, int i, struct fwd_bound_weight *out) {
    int n_all = LAYER_WEIGHTS * s->model->config.n_layer + 3;
    for (int j = 0; j < n_all && i >= 0; j++) {
        int layer;
        const struct fwd_packed *packed;
        const struct fwd_weight *w = nth_weight(s, j, &layer, &packed);
        if (!w || i-- > 0)
            continue;
        *out = (struct fwd_bound_weight){.name = w->name,
                                         .layer = layer,
                                         .type = w->type,
                                         .n_rows = w->n_rows,
                                         .n_cols = w->n_cols,
                                         .layout = packed ? fwd_packed_layout(packed) : "file"};
        out->checksum =
            packed ? fwd_packed_checksum(packed) : fwd_hash64(w->data, (size_t)w->n_rows * (size_t)w->row_bytes);
        return true;
    }
    return false;
}

const struct fwd_path fwd_path_q4k_cpu = {.abi = FWD_PATH_ABI,
                                          .size = sizeof(struct fwd_path),
                                          .name = "q4k-cpu",
                                          .probe = probe,
                                          .describe = describe,
                                          .open = open_session,
                                          .seq_begin = begin_sequence,
                                          .run = q4k_run,
                                          .override = set_override,
                                          .config = get_config,
                                          .numerics = q4k_numerics,
                                          .variant = get_variant,
                                          .bound_weight = get_bound_weight,
                                          .close = close_session};
