/* The harness's own reading of a model: its table of architectures, its hyper-parameters, its binding by tensor name.
 * Written from the GGUF key and tensor names alone, so that a wrong reading in the engine shows as a difference. */
#include "spec/spec_decode.h"
#include "spec/spec_model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct arch_rule {
    const char *name;
    bool rope_neox; /* rotates (i, i + d/2); else (2i, 2i + 1) */
    bool qkv_bias;  /* biases must be there; without it they must not */
};

static const struct arch_rule arch_rules[] = {
    {"qwen2", true, true},
    {"llama", false, false},
};

static const struct arch_rule *find_rule(const char *name, size_t len) {
    for (size_t i = 0; i < sizeof arch_rules / sizeof *arch_rules; i++)
        if (strlen(arch_rules[i].name) == len && !memcmp(arch_rules[i].name, name, len))
            return &arch_rules[i];
    return NULL;
}

/* Reads ARCH.suffix as a positive int; fallback < 0: the key must be there. */
static enum fwd_status read_int(const struct fwd_gguf *file, const char *arch, const char *suffix, int fallback,
                                int *out, struct fwd_error *err) {
    char key[96];
    uint64_t v = 0;
    (void)snprintf(key, sizeof key, "%s.%s", arch, suffix);
    if (!fwd_gguf_get_u64(file, key, &v)) {
        FWD_FAIL_IF(fallback < 0, FWD_EMISSING, err, "key %s: absent or not an integer", key);
        *out = fallback;
        return FWD_OK;
    }
    FWD_FAIL_IF(v == 0 || v > (1 << 28), FWD_ERANGE, err, "key %s: got %llu, expected 1 to 2^28", key,
                (unsigned long long)v);
    *out = (int)v;
    return FWD_OK;
}

static enum fwd_status read_real(const struct fwd_gguf *file, const char *arch, const char *suffix, double fallback,
                                 double *out, struct fwd_error *err) {
    char key[96];
    (void)snprintf(key, sizeof key, "%s.%s", arch, suffix);
    if (!fwd_gguf_get_f64(file, key, out)) {
        FWD_FAIL_IF(isnan(fallback), FWD_EMISSING, err, "key %s: absent or not a number", key);
        *out = fallback;
    }
    FWD_FAIL_IF(!(*out > 0 && isfinite(*out)), FWD_ERANGE, err, "key %s: got %g, expected a positive number", key,
                *out);
    return FWD_OK;
}

static enum fwd_status read_config(struct par_spec_config *c, const struct arch_rule *rule, const struct fwd_gguf *file,
                                   struct fwd_error *err) {
    const char *arch = rule->name;
    (void)snprintf(c->arch, sizeof c->arch, "%s", arch);
    FWD_TRY(read_int(file, arch, "block_count", -1, &c->n_layer, err));
    FWD_TRY(read_int(file, arch, "embedding_length", -1, &c->n_embd, err));
    FWD_TRY(read_int(file, arch, "feed_forward_length", -1, &c->n_ff, err));
    FWD_TRY(read_int(file, arch, "attention.head_count", -1, &c->n_head, err));
    FWD_TRY(read_int(file, arch, "attention.head_count_kv", c->n_head, &c->n_kv_head, err));
    FWD_TRY(read_int(file, arch, "attention.key_length", c->n_embd / c->n_head, &c->head_dim, err));
    FWD_TRY(read_int(file, arch, "rope.dimension_count", c->head_dim, &c->n_rope, err));
    FWD_TRY(read_real(file, arch, "rope.freq_base", 10000.0, &c->rope_theta, err));
    FWD_TRY(read_real(file, arch, "attention.layer_norm_rms_epsilon", NAN, &c->norm_eps, err));
    FWD_FAIL_IF(c->n_head % c->n_kv_head != 0, FWD_ESHAPE, err, "%s: %d heads are no multiple of %d KV heads", arch,
                c->n_head, c->n_kv_head);
    FWD_FAIL_IF(c->n_rope > c->head_dim || c->n_rope % 2 != 0, FWD_ESHAPE, err,
                "%s: rotates %d of %d dimensions, expected an even number of at most all", arch, c->n_rope,
                c->head_dim);
    const char *scaling = NULL;
    size_t len = 0;
    char key[96];
    (void)snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    FWD_FAIL_IF(fwd_gguf_get_str(file, key, &scaling, &len) && !(len == 4 && !memcmp(scaling, "none", 4)),
                FWD_EUNSUPPORTED, err, "key %s: %.*s, expected none", key, (int)len, scaling);
    c->rope_neox = rule->rope_neox;
    c->qkv_bias = rule->qkv_bias;
    return FWD_OK;
}

/* Binds NAME as n_rows x n_cols (n_rows == 0: any number of rows). optional: an absent tensor leaves data NULL. */
static enum fwd_status bind_tensor(struct spec_weight *w, const struct fwd_gguf *file, const char *name, int64_t n_rows,
                                   int64_t n_cols, bool optional, struct fwd_error *err) {
    *w = (struct spec_weight){0};
    const struct fwd_gguf_tensor *t = fwd_gguf_find(file, name);
    if (!t) {
        FWD_FAIL_IF(!optional, FWD_EMISSING, err, "tensor %s: missing in the file, expected for this architecture",
                    name);
        return FWD_OK;
    }
    uint64_t rows = t->ne[1] * t->ne[2] * t->ne[3];
    FWD_FAIL_IF(t->ne[0] != (uint64_t)n_cols || (n_rows && rows != (uint64_t)n_rows), FWD_ESHAPE, err,
                "tensor %s: %llu x %llu, expected %lld x %lld", name, (unsigned long long)rows,
                (unsigned long long)t->ne[0], (long long)n_rows, (long long)n_cols);
    int64_t row_bytes = par_decode_row_bytes(t->type, n_cols);
    FWD_FAIL_IF(
        row_bytes == 0, FWD_ETYPE, err,
        "tensor %s: rows of %lld values of type %u cannot be decoded, expected F32, F16, BF16, Q4_0 to Q8_0 or Q2_K "
        "to Q6_K in whole blocks",
        name, (long long)n_cols, t->type);
    FWD_FAIL_IF(t->data == NULL || t->n_bytes != rows * (uint64_t)row_bytes, FWD_ECORRUPT, err,
                "tensor %s: %llu bytes, expected %llu", name, (unsigned long long)t->n_bytes,
                (unsigned long long)(rows * (uint64_t)row_bytes));
    *w = (struct spec_weight){t->name, t->type, (int64_t)rows, n_cols, row_bytes, t->data, t};
    return FWD_OK;
}

static enum fwd_status bind_vector(struct spec_weight *w, const struct fwd_gguf *file, const char *name, int64_t n,
                                   bool optional, struct fwd_error *err) {
    FWD_TRY(bind_tensor(w, file, name, 1, n, optional, err));
    FWD_FAIL_IF(w->data && w->type != FWD_TYPE_F32, FWD_ETYPE, err, "tensor %s: type %s, expected F32", name,
                fwd_type_name(w->type));
    return FWD_OK;
}

static enum fwd_status bind_layer(struct par_spec_model *m, int il, const struct fwd_gguf *file,
                                  struct fwd_error *err) {
    const struct par_spec_config *c = &m->config;
    struct spec_layer *l = &m->layers[il];
    int64_t q_dim = (int64_t)c->n_head * c->head_dim, kv_dim = (int64_t)c->n_kv_head * c->head_dim;
    struct {
        struct spec_weight *w;
        const char *name;
        int64_t n_rows, n_cols; /* n_rows 0: an F32 vector */
        bool bias;
    } list[] = {
        {&l->attn_norm, "attn_norm.weight", 0, c->n_embd, false},
        {&l->q, "attn_q.weight", q_dim, c->n_embd, false},
        {&l->k, "attn_k.weight", kv_dim, c->n_embd, false},
        {&l->v, "attn_v.weight", kv_dim, c->n_embd, false},
        {&l->q_bias, "attn_q.bias", 0, q_dim, true},
        {&l->k_bias, "attn_k.bias", 0, kv_dim, true},
        {&l->v_bias, "attn_v.bias", 0, kv_dim, true},
        {&l->attn_out, "attn_output.weight", c->n_embd, q_dim, false},
        {&l->ffn_norm, "ffn_norm.weight", 0, c->n_embd, false},
        {&l->gate, "ffn_gate.weight", c->n_ff, c->n_embd, false},
        {&l->up, "ffn_up.weight", c->n_ff, c->n_embd, false},
        {&l->down, "ffn_down.weight", c->n_embd, c->n_ff, false},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "blk.%d.%s", il, list[i].name);
        bool optional = list[i].bias && !c->qkv_bias;
        if (list[i].n_rows)
            FWD_TRY(bind_tensor(list[i].w, file, name, list[i].n_rows, list[i].n_cols, optional, err));
        else
            FWD_TRY(bind_vector(list[i].w, file, name, list[i].n_cols, optional, err));
    }
    return FWD_OK;
}

static enum fwd_status bind_model(struct par_spec_model *m, const struct fwd_gguf *file, struct fwd_error *err) {
    const char *arch = NULL;
    size_t len = 0;
    FWD_FAIL_IF(!fwd_gguf_get_str(file, "general.architecture", &arch, &len), FWD_EMISSING, err,
                "key general.architecture: absent or not a string");
    const struct arch_rule *rule = find_rule(arch, len);
    FWD_FAIL_IF(!rule, FWD_EUNSUPPORTED, err, "architecture %.*s: expected qwen2 or llama", (int)len, arch);
    struct par_spec_config *c = &m->config;
    FWD_TRY(read_config(c, rule, file, err));
    m->layers = fwd_calloc((size_t)c->n_layer, sizeof *m->layers);
    FWD_FAIL_IF(!m->layers, FWD_ENOMEM, err, "spec: no memory for %d layers", c->n_layer);
    FWD_TRY(bind_tensor(&m->embedding, file, "token_embd.weight", 0, c->n_embd, false, err));
    c->n_vocab = m->embedding.n_rows;
    FWD_TRY(bind_vector(&m->output_norm, file, "output_norm.weight", c->n_embd, false, err));
    FWD_TRY(bind_tensor(&m->output, file, "output.weight", c->n_vocab, c->n_embd, true, err));
    c->tied_head = m->output.data == NULL;
    if (c->tied_head)
        m->output = m->embedding;
    FWD_TRY(bind_vector(&m->rope_factors, file, "rope_freqs.weight", c->n_rope / 2, true, err));
    for (int il = 0; il < c->n_layer; il++)
        FWD_TRY(bind_layer(m, il, file, err));
    return FWD_OK;
}

enum fwd_status par_spec_open(struct par_spec_model **out, const struct fwd_gguf *file, struct fwd_error *err) {
    struct par_spec_model *m = fwd_calloc(1, sizeof *m);
    FWD_FAIL_IF(!m, FWD_ENOMEM, err, "spec: no memory for a model");
    m->file = file;
    enum fwd_status st = bind_model(m, file, err);
    if (st != FWD_OK) {
        par_spec_close(m);
        return st;
    }
    *out = m;
    return FWD_OK;
}

void par_spec_close(struct par_spec_model *m) {
    if (!m)
        return;
    fwd_free(m->layers);
    fwd_free(m);
}

const struct par_spec_config *par_spec_config(const struct par_spec_model *m) {
    return &m->config;
}

const struct spec_weight *par_spec_weight(const struct par_spec_model *m, enum fwd_op op, int layer) {
    if (op == FWD_OP_INP_EMBD)
        return &m->embedding;
    if (op == FWD_OP_RESULT_NORM)
        return &m->output_norm;
    if (op == FWD_OP_RESULT_OUTPUT)
        return &m->output;
    if (layer < 0 || layer >= m->config.n_layer)
        return NULL;
    const struct spec_layer *l = &m->layers[layer];
    switch (op) {
    case FWD_OP_ATTN_NORM:
        return &l->attn_norm;
    case FWD_OP_QCUR:
        return &l->q;
    case FWD_OP_KCUR:
        return &l->k;
    case FWD_OP_VCUR:
        return &l->v;
    case FWD_OP_ATTN_OUT:
        return &l->attn_out;
    case FWD_OP_FFN_NORM:
        return &l->ffn_norm;
    case FWD_OP_FFN_GATE:
        return &l->gate;
    case FWD_OP_FFN_UP:
        return &l->up;
    case FWD_OP_FFN_OUT:
        return &l->down;
    default:
        return NULL;
    }
}

const struct spec_weight *par_spec_bias(const struct par_spec_model *m, enum fwd_op op, int layer) {
    if (layer < 0 || layer >= m->config.n_layer)
        return NULL;
    const struct spec_layer *l = &m->layers[layer];
    const struct spec_weight *w = op == FWD_OP_QCUR   ? &l->q_bias
                                  : op == FWD_OP_KCUR ? &l->k_bias
                                  : op == FWD_OP_VCUR ? &l->v_bias
                                                      : NULL;
    return w && w->data ? w : NULL;
}

/* ---- side by side --------------------------------------------------------------------------------------------------
 */
struct diff_text {
    char *buf;
    size_t n, used;
    int n_lines;
};

static void add_line(struct diff_text *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_line(struct diff_text *d, const char *fmt, ...) {
    d->n_lines++;
    if (d->used + 1 >= d->n)
        return;
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(d->buf + d->used, d->n - d->used, fmt, ap);
    va_end(ap);
    size_t room = d->n - d->used - 1;
    d->used += len < 0 ? 0 : (size_t)len < room ? (size_t)len : room;
}

static void diff_int(struct diff_text *d, const char *name, int64_t file, int64_t engine) {
    if (file != engine)
        add_line(d, "%s: file says %lld, engine has %lld\n", name, (long long)file, (long long)engine);
}

static void diff_real(struct diff_text *d, const char *name, double file, double engine) {
    if (file != engine)
        add_line(d, "%s: file says %.9g, engine has %.9g\n", name, file, engine);
}

static void diff_rope(struct diff_text *d, const struct par_spec_model *m, const struct fwd_config *e) {
    const struct par_spec_config *c = &m->config;
    if (c->rope_neox != (e->rope_pairing == FWD_ROPE_NEOX))
        add_line(d, "rope_pairing: file says %s, engine has %s\n", c->rope_neox ? "neox (i, i+d/2)" : "norm (2i, 2i+1)",
                 e->rope_pairing == FWD_ROPE_NEOX ? "neox" : "norm");
    diff_real(d, "rope_theta", c->rope_theta, e->rope_theta);
    diff_int(d, "rope_factors", m->rope_factors.data != NULL, e->rope_factors != NULL);
    if (!m->rope_factors.data || !e->rope_factors)
        return;
    for (int i = 0; i < c->n_rope / 2; i++) {
        float f;
        memcpy(&f, m->rope_factors.data + 4 * (size_t)i, sizeof f);
        if (memcmp(&f, &e->rope_factors[i], sizeof f)) {
            add_line(d, "rope_factors[%d]: file says %.9g, engine has %.9g\n", i, (double)f,
                     (double)e->rope_factors[i]);
            return;
        }
    }
}

int par_spec_compare_config(const struct par_spec_model *m, const struct fwd_config *engine, char *buf, size_t n) {
    const struct par_spec_config *c = &m->config;
    struct diff_text d = {buf, n, 0, 0};
    if (n)
        buf[0] = 0;
    if (strncmp(c->arch, engine->arch, sizeof c->arch) != 0)
        add_line(&d, "arch: file says %s, engine has %.31s\n", c->arch, engine->arch);
    diff_int(&d, "n_layer", c->n_layer, engine->n_layer);
    diff_int(&d, "n_embd", c->n_embd, engine->n_embd);
    diff_int(&d, "n_ff", c->n_ff, engine->n_ff);
    diff_int(&d, "n_head", c->n_head, engine->n_head);
    diff_int(&d, "n_kv_head", c->n_kv_head, engine->n_kv_head);
    diff_int(&d, "head_dim", c->head_dim, engine->head_dim);
    diff_int(&d, "n_rope", c->n_rope, engine->n_rope);
    diff_int(&d, "n_vocab", c->n_vocab, engine->n_vocab);
    diff_int(&d, "tied_head", c->tied_head, engine->tied_head);
    diff_real(&d, "norm_eps", (double)(float)c->norm_eps, (double)engine->norm_eps);
    diff_rope(&d, m, engine);
    int group = c->n_head / c->n_kv_head;
    for (int h = 0; h < c->n_head && h < FWD_MAX_HEADS; h++)
        if (engine->kv_head_of[h] != h / group) {
            add_line(&d, "kv_head_of[%d]: file says %d, engine has %d\n", h, h / group, engine->kv_head_of[h]);
            break;
        }
    return d.n_lines;
}
