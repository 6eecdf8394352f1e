/* engine/model/model.c: tensors of a file bound to the places of a model, each with its type and every dimension
 * checked, and every tensor of the file used: one that is left over belongs to a computation the engine does not do. */
#include "model/model.h"

#include "core/memory.h"
#include "model/config.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { NAME_BYTES = 64 };

struct bound_model {
    struct fwd_model model;
    struct fwd_layer *layers;
    float *rope_factors;
};

enum weight_class { MATRIX, VECTOR };

struct binder {
    const struct fwd_gguf *file;
    uint64_t n_bound;
    struct fwd_error *err;
};

static enum fwd_status check_dims(const struct fwd_gguf_tensor *t, int64_t n_cols, int64_t n_rows,
                                  struct fwd_error *err) {
    const uint64_t expected[4] = {(uint64_t)n_cols, (uint64_t)n_rows, 1, 1};
    for (int d = 0; d < 4; d++)
        FWD_FAIL_IF(t->ne[d] != expected[d], FWD_ESHAPE, err, "%s: ne[%d] is %llu, expected %llu", t->name, d,
                    (unsigned long long)t->ne[d], (unsigned long long)expected[d]);
    return FWD_OK;
}

static float vector_item(const uint8_t *data, int64_t i) {
    float v;
    memcpy(&v, data + 4 * i, sizeof v);
    return v;
}

/* Norms, biases and factors are few: a NaN among them is found here and not as a NaN of every logit. */
static enum fwd_status check_finite(const struct fwd_gguf_tensor *t, struct fwd_error *err) {
    for (int64_t i = 0; i < (int64_t)t->ne[0]; i++) {
        float v = vector_item(t->data, i);
        FWD_FAIL_IF(!isfinite(v), FWD_ECORRUPT, err, "%s: value %lld is %g, expected a finite number", t->name,
                    (long long)i, (double)v);
    }
    return FWD_OK;
}

static enum fwd_status bind_tensor(struct binder *b, struct fwd_weight *w, const struct fwd_gguf_tensor *t,
                                   enum weight_class class, int64_t n_cols, int64_t n_rows) {
    const struct fwd_type_info *type = fwd_type_info(t->type);
    if (class == VECTOR)
        FWD_FAIL_IF(t->type != FWD_TYPE_F32, FWD_ETYPE, b->err, "%s: type is %s, expected F32", t->name,
                    fwd_type_name(t->type));
    FWD_FAIL_IF(!type || !type->decodable, FWD_ETYPE, b->err,
                "%s: type is %s, expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K", t->name,
                fwd_type_name(t->type));
    FWD_TRY(check_dims(t, n_cols, n_rows, b->err));
    if (class == VECTOR)
        FWD_TRY(check_finite(t, b->err));
    *w = (struct fwd_weight){.name = t->name,
                             .type = t->type,
                             .n_rows = n_rows,
                             .n_cols = n_cols,
                             .row_bytes = n_cols / type->block_values * type->block_bytes,
                             .data = t->data,
                             .tensor = t};
    b->n_bound++;
    return FWD_OK;
}

static enum fwd_status bind_weight(struct binder *b, struct fwd_weight *w, const char *name, enum weight_class class,
                                   int64_t n_cols, int64_t n_rows) {
    const struct fwd_gguf_tensor *t = fwd_gguf_find(b->file, name);
    FWD_FAIL_IF(!t, FWD_EMISSING, b->err, "tensor %s is missing", name);
    return bind_tensor(b, w, t, class, n_cols, n_rows);
}

static enum fwd_status bind_layer(struct binder *b, struct fwd_layer *layer, int index, const struct fwd_config *c,
                                  const struct arch_row *arch) {
    int64_t n_embd = c->n_embd, n_ff = c->n_ff;
    int64_t n_q = (int64_t)c->n_head * c->head_dim, n_kv = (int64_t)c->n_kv_head * c->head_dim;
    const struct place {
        const char *name;
        size_t offset;
        enum weight_class class;
        int64_t n_cols, n_rows;
        bool optional;
    } places[] = {
        {"attn_norm.weight", offsetof(struct fwd_layer, attn_norm), VECTOR, n_embd, 1, false},
        {"attn_q.weight", offsetof(struct fwd_layer, wq), MATRIX, n_embd, n_q, false},
        {"attn_k.weight", offsetof(struct fwd_layer, wk), MATRIX, n_embd, n_kv, false},
        {"attn_v.weight", offsetof(struct fwd_layer, wv), MATRIX, n_embd, n_kv, false},
        {"attn_q.bias", offsetof(struct fwd_layer, bq), VECTOR, n_q, 1, arch->qkv_bias == ARCH_BIAS_OPTIONAL},
        {"attn_k.bias", offsetof(struct fwd_layer, bk), VECTOR, n_kv, 1, arch->qkv_bias == ARCH_BIAS_OPTIONAL},
        {"attn_v.bias", offsetof(struct fwd_layer, bv), VECTOR, n_kv, 1, arch->qkv_bias == ARCH_BIAS_OPTIONAL},
        {"attn_output.weight", offsetof(struct fwd_layer, wo), MATRIX, n_q, n_embd, false},
        {"ffn_norm.weight", offsetof(struct fwd_layer, ffn_norm), VECTOR, n_embd, 1, false},
        {"ffn_gate.weight", offsetof(struct fwd_layer, gate), MATRIX, n_embd, n_ff, false},
        {"ffn_up.weight", offsetof(struct fwd_layer, up), MATRIX, n_embd, n_ff, false},
        {"ffn_down.weight", offsetof(struct fwd_layer, down), MATRIX, n_ff, n_embd, false},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const struct place *p = &places[i];
        struct fwd_weight *w = (struct fwd_weight *)(void *)((char *)layer + p->offset);
        char name[NAME_BYTES];
        (void)snprintf(name, sizeof name, "blk.%d.%s", index, p->name);
        if (p->optional && !fwd_gguf_find(b->file, name))
            continue;
        FWD_TRY(bind_weight(b, w, name, p->class, p->n_cols, p->n_rows));
    }
    return FWD_OK;
}

/* The vocabulary is as large as the embedding; a token list longer than that has ids without a row. */
static enum fwd_status bind_embedding(struct binder *b, struct fwd_model *m) {
    struct fwd_config *c = &m->config;
    const struct fwd_gguf_tensor *t = fwd_gguf_find(b->file, "token_embd.weight");
    const struct fwd_gguf_kv *tokens = fwd_gguf_find_kv(b->file, "tokenizer.ggml.tokens");
    FWD_FAIL_IF(!t, FWD_EMISSING, b->err, "tensor token_embd.weight is missing");
    FWD_FAIL_IF(t->ne[1] > INT32_MAX, FWD_ERANGE, b->err, "token_embd.weight: ne[1] is %llu, expected at most %d",
                (unsigned long long)t->ne[1], INT32_MAX);
    c->n_vocab = (int64_t)t->ne[1];
    FWD_FAIL_IF(tokens && tokens->n_items > t->ne[1], FWD_ESHAPE, b->err,
                "token_embd.weight: ne[1] is %llu, expected at least the %llu tokens of tokenizer.ggml.tokens",
                (unsigned long long)t->ne[1], (unsigned long long)tokens->n_items);
    return bind_tensor(b, &m->tok_embd, t, MATRIX, c->n_embd, c->n_vocab);
}

static enum fwd_status bind_head(struct binder *b, struct fwd_model *m) {
    struct fwd_config *c = &m->config;
    FWD_TRY(bind_weight(b, &m->output_norm, "output_norm.weight", VECTOR, c->n_embd, 1));
    c->tied_head = !fwd_gguf_find(b->file, "output.weight");
    if (c->tied_head) {
        m->output = m->tok_embd;
        return FWD_OK;
    }
    return bind_weight(b, &m->output, "output.weight", MATRIX, c->n_embd, c->n_vocab);
}

static enum fwd_status bind_rope_factors(struct binder *b, struct bound_model *bound) {
    const struct fwd_gguf_tensor *t = fwd_gguf_find(b->file, "rope_freqs.weight");
    struct fwd_weight w;
    int64_t n = bound->model.config.n_rope / 2;
    if (!t)
        return FWD_OK;
    FWD_TRY(bind_tensor(b, &w, t, VECTOR, n, 1));
    bound->rope_factors = fwd_alloc((size_t)n, sizeof(float));
    FWD_FAIL_IF(!bound->rope_factors, FWD_ENOMEM, b->err, "no memory for %lld rope factors", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        bound->rope_factors[i] = vector_item(t->data, i);
        FWD_FAIL_IF(!(bound->rope_factors[i] > 0), FWD_ERANGE, b->err, "%s: value %lld is %g, expected above 0",
                    t->name, (long long)i, (double)bound->rope_factors[i]);
    }
    bound->model.config.rope_factors = bound->rope_factors;
    return FWD_OK;
}

struct name_search {
    const struct fwd_gguf_tensor *tensor;
    bool found;
};

static void match_tensor(void *ud, int layer, const struct fwd_weight *w) {
    struct name_search *s = ud;
    (void)layer;
    s->found |= w->tensor == s->tensor;
}

static enum fwd_status refuse_unused(const struct binder *b, const struct fwd_model *m) {
    uint64_t n = fwd_gguf_n_tensors(b->file);
    for (uint64_t i = 0; n != b->n_bound && i < n; i++) {
        struct name_search s = {.tensor = fwd_gguf_tensor(b->file, i)};
        fwd_model_each_weight(m, match_tensor, &s);
        FWD_FAIL_IF(!s.found && strcmp(s.tensor->name, "rope_freqs.weight") != 0, FWD_EUNSUPPORTED, b->err,
                    "tensor %.80s has no place in architecture %s with %d layers", s.tensor->name, m->config.arch,
                    m->config.n_layer);
    }
    return FWD_OK;
}

/* Every weight that a layer cannot do without has bytes: a place that the binding forgot is found here, and not by the
 * first kernel that reads it. */
static enum fwd_status check_bound(const struct fwd_model *m, struct fwd_error *err) {
    for (int i = 0; i < m->config.n_layer; i++) {
        const struct fwd_layer *l = &m->layers[i];
        const struct {
            const char *name;
            const struct fwd_weight *weight;
        } required[] = {{"attn_norm", &l->attn_norm}, {"attn_q", &l->wq},      {"attn_k", &l->wk},
                        {"attn_v", &l->wv},           {"attn_output", &l->wo}, {"ffn_norm", &l->ffn_norm},
                        {"ffn_gate", &l->gate},       {"ffn_up", &l->up},      {"ffn_down", &l->down}};
        for (size_t k = 0; k < sizeof required / sizeof *required; k++)
            FWD_FAIL_IF(!required[k].weight->data, FWD_ESTATE, err, "layer %d: %s is bound to no tensor", i,
                        required[k].name);
    }
    return FWD_OK;
}

static enum fwd_status bind_all(struct bound_model *bound, const struct fwd_gguf *file, fwd_config_hook *hook,
                                void *hook_ud, struct fwd_error *err) {
    struct fwd_model *m = &bound->model;
    struct binder b = {.file = file, .err = err};
    const struct arch_row *arch = NULL;
    FWD_TRY(fwd_config_read(&m->config, &arch, file, err));
    FWD_TRY(bind_embedding(&b, m));
    bound->layers = fwd_calloc((size_t)m->config.n_layer, sizeof *bound->layers);
    FWD_FAIL_IF(!bound->layers, FWD_ENOMEM, err, "no memory for %d layers", m->config.n_layer);
    m->layers = bound->layers;
    for (int i = 0; i < m->config.n_layer; i++)
        FWD_TRY(bind_layer(&b, &m->layers[i], i, &m->config, arch));
    FWD_TRY(bind_head(&b, m));
    FWD_TRY(check_bound(m, err));
    FWD_TRY(bind_rope_factors(&b, bound));
    FWD_TRY(refuse_unused(&b, m));
    if (hook) {
        hook(hook_ud, &m->config);
        FWD_TRY(fwd_config_check(&m->config, err));
    }
    return FWD_OK;
}

enum fwd_status fwd_model_bind(struct fwd_model **out, const struct fwd_gguf *file, fwd_config_hook *hook,
                               void *hook_ud, struct fwd_error *err) {
    *out = NULL;
    struct bound_model *bound = fwd_calloc(1, sizeof *bound);
    FWD_FAIL_IF(!bound, FWD_ENOMEM, err, "no memory for a model");
    bound->model.file = file;
    enum fwd_status status = bind_all(bound, file, hook, hook_ud, err);
    if (status == FWD_OK)
        *out = &bound->model;
    else
        fwd_model_free(&bound->model);
    return status;
}

void fwd_model_free(struct fwd_model *m) {
    struct bound_model *bound = (struct bound_model *)(void *)m; /* model is its first member */
    if (!m)
        return;
    fwd_free(bound->layers);
    fwd_free(bound->rope_factors);
    fwd_free(bound);
}

void fwd_model_each_weight(const struct fwd_model *m, void (*fn)(void *ud, int layer, const struct fwd_weight *w),
                           void *ud) {
    fn(ud, -1, &m->tok_embd);
    for (int i = 0; i < m->config.n_layer; i++) {
        const struct fwd_layer *l = &m->layers[i];
        const struct fwd_weight *const order[] = {&l->attn_norm, &l->wq, &l->wk,       &l->wv,   &l->bq, &l->bk,
                                                  &l->bv,        &l->wo, &l->ffn_norm, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof order / sizeof *order; j++)
            if (order[j]->data)
                fn(ud, i, order[j]);
    }
    fn(ud, -1, &m->output_norm);
    if (!m->config.tied_head)
        fn(ud, -1, &m->output);
}
