/* engine/model/config.c: hyper-parameters from a file's keys, each checked; keys that would change the computation in a
 * way the engine does not know are refused by name, never ignored. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 96, MAX_WIDTH = 1 << 24, MAX_HEAD_DIM = 1 << 16 };

/* Keys (behind the architecture's name) whose only understood value is the neutral one. */
static const struct neutral_key {
    const char *name;
    double value;
} neutral_keys[] = {
    {"expert_count", 0},
    {"attention.causal", 1},
    {"attention.clamp_kqv", 0},
    {"attention.max_alibi_bias", 0},
    {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0},
    {"logit_scale", 1},
    {"residual_scale", 1},
    {"embedding_scale", 1},
    {"use_parallel_residual", 0},
    {"rope.scaling.attn_factor", 1},
    {"rope.scale_linear", 1},
};

struct reader {
    const struct fwd_gguf *file;
    const char *arch;
    char key[KEY_BYTES]; /* the last one looked up, for messages */
};

static const struct fwd_gguf_kv *find_key(struct reader *r, const char *name) {
    (void)snprintf(r->key, sizeof r->key, "%s.%s", r->arch, name);
    return fwd_gguf_find_kv(r->file, r->key);
}

static enum fwd_status read_int(struct reader *r, const char *name, int min, int max, int *out, struct fwd_error *err) {
    const struct fwd_gguf_kv *kv = find_key(r, name);
    uint64_t v;
    FWD_FAIL_IF(!kv, FWD_EMISSING, err, "key %s is missing", r->key);
    FWD_FAIL_IF(kv->type == FWD_KV_ARRAY, FWD_EUNSUPPORTED, err,
                "key %s is an array (one value a layer), expected one integer", r->key);
    FWD_FAIL_IF(!fwd_gguf_get_u64(r->file, r->key, &v), FWD_ETYPE, err, "key %s is not an integer of 0 or more",
                r->key);
    FWD_FAIL_IF(v < (uint64_t)min || v > (uint64_t)max, FWD_ERANGE, err, "key %s is %llu, expected %d to %d", r->key,
                (unsigned long long)v, min, max);
    *out = (int)v;
    return FWD_OK;
}

/* *out is the default before, and stays when the key is absent. */
static enum fwd_status read_optional_int(struct reader *r, const char *name, int min, int max, int *out,
                                         struct fwd_error *err) {
    return find_key(r, name) ? read_int(r, name, min, max, out, err) : FWD_OK;
}

static enum fwd_status read_positive(struct reader *r, const char *name, double *out, struct fwd_error *err) {
    double v;
    FWD_FAIL_IF(!find_key(r, name), FWD_EMISSING, err, "key %s is missing", r->key);
    FWD_FAIL_IF(!fwd_gguf_get_f64(r->file, r->key, &v), FWD_ETYPE, err, "key %s is not a floating-point number",
                r->key);
    FWD_FAIL_IF(!(isfinite(v) && v > 0), FWD_ERANGE, err, "key %s is %g, expected a finite number above 0", r->key, v);
    *out = v;
    return FWD_OK;
}

static bool number_of(const struct fwd_gguf_kv *kv, double *out) {
    int64_t i;
    if (kv->type == FWD_KV_ARRAY)
        return false;
    if (fwd_gguf_item_f64(kv, 0, out))
        return true;
    if (!fwd_gguf_item_i64(kv, 0, &i))
        return false;
    *out = (double)i;
    return true;
}

static enum fwd_status refuse_unknown_forms(struct reader *r, struct fwd_error *err) {
    for (size_t i = 0; i < sizeof neutral_keys / sizeof *neutral_keys; i++) {
        const struct fwd_gguf_kv *kv = find_key(r, neutral_keys[i].name);
        double v;
        if (!kv)
            continue;
        FWD_FAIL_IF(!number_of(kv, &v) || v != neutral_keys[i].value, FWD_EUNSUPPORTED, err,
                    "key %s has a value other than %g, which the engine does not implement", r->key,
                    neutral_keys[i].value);
    }
    return FWD_OK;
}

/* Context extension changes the frequencies: only "none", or a factor of 1, is what the engine computes. */
static enum fwd_status refuse_rope_scaling(struct reader *r, struct fwd_error *err) {
    const char *type = "linear";
    size_t len = 6;
    double factor = 1;
    const struct fwd_gguf_kv *kv = find_key(r, "rope.scaling.type");
    FWD_FAIL_IF(kv && !fwd_gguf_get_str(r->file, r->key, &type, &len), FWD_ETYPE, err, "key %s is not a string",
                r->key);
    if (kv && len == 4 && !memcmp(type, "none", 4))
        return FWD_OK;
    const struct fwd_gguf_kv *factor_kv = find_key(r, "rope.scaling.factor");
    bool has_factor = factor_kv && number_of(factor_kv, &factor);
    if ((kv || has_factor) && !(has_factor && factor == 1.0))
        FWD_FAIL(
            FWD_EUNSUPPORTED, err,
            "rope scaling \"%.*s\" with factor %g (key %s.rope.scaling): only type none or factor 1 is implemented",
            (int)(len < 40 ? len : 40), type, factor, r->arch);
    return FWD_OK;
}

static enum fwd_status find_arch(const struct fwd_gguf *file, const struct arch_row **out, struct fwd_error *err) {
    const char *name;
    size_t len, used = 0;
    char known[128] = "";
    FWD_FAIL_IF(!fwd_gguf_get_str(file, "general.architecture", &name, &len), FWD_EMISSING, err,
                "key general.architecture is missing or not a string");
    const struct arch_row *row;
    for (int i = 0; (row = fwd_arch_row(i)); i++) {
        if (strlen(row->name) == len && !memcmp(row->name, name, len)) {
            *out = row;
            return FWD_OK;
        }
        if (used < sizeof known)
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", row->name);
    }
    FWD_FAIL(FWD_EUNSUPPORTED, err, "architecture \"%.*s\" is not known; known: %s", (int)(len < 64 ? len : 64), name,
             known);
}

static enum fwd_status read_heads(struct reader *r, struct fwd_config *c, struct fwd_error *err) {
    int value_length;
    FWD_TRY(read_int(r, "attention.head_count", 1, FWD_MAX_HEADS, &c->n_head, err));
    c->n_kv_head = c->n_head;
    FWD_TRY(read_optional_int(r, "attention.head_count_kv", 1, FWD_MAX_HEADS, &c->n_kv_head, err));
    FWD_FAIL_IF(c->n_head % c->n_kv_head, FWD_ESHAPE, err,
                "%s.attention.head_count is %d, expected a multiple of head_count_kv %d", r->arch, c->n_head,
                c->n_kv_head);
    bool has_length = find_key(r, "attention.key_length") != NULL;
    FWD_FAIL_IF(!has_length && c->n_embd % c->n_head, FWD_ESHAPE, err,
                "%s.embedding_length is %d, expected a multiple of attention.head_count %d", r->arch, c->n_embd,
                c->n_head);
    c->head_dim = c->n_embd / c->n_head;
    value_length = c->head_dim;
    FWD_TRY(read_optional_int(r, "attention.key_length", 1, MAX_HEAD_DIM, &c->head_dim, err));
    FWD_TRY(read_optional_int(r, "attention.value_length", 1, MAX_HEAD_DIM, &value_length, err));
    FWD_FAIL_IF(value_length != c->head_dim, FWD_EUNSUPPORTED, err,
                "%s.attention.value_length is %d, expected the key length %d", r->arch, value_length, c->head_dim);
    for (int h = 0; h < c->n_head; h++)
        c->kv_head_of[h] = h / (c->n_head / c->n_kv_head);
    return FWD_OK;
}

enum fwd_status fwd_config_read(struct fwd_config *c, const struct arch_row **arch, const struct fwd_gguf *file,
                                struct fwd_error *err) {
    double eps;
    *c = (struct fwd_config){0};
    FWD_TRY(find_arch(file, arch, err));
    struct reader r = {.file = file, .arch = (*arch)->name};
    (void)snprintf(c->arch, sizeof c->arch, "%s", r.arch);
    FWD_TRY(read_int(&r, "block_count", 1, FWD_MAX_LAYERS, &c->n_layer, err));
    FWD_TRY(read_int(&r, "context_length", 1, INT32_MAX, &c->n_ctx_train, err));
    FWD_TRY(read_int(&r, "embedding_length", 1, MAX_WIDTH, &c->n_embd, err));
    FWD_TRY(read_int(&r, "feed_forward_length", 1, MAX_WIDTH, &c->n_ff, err));
    FWD_TRY(read_heads(&r, c, err));
    c->n_rope = c->head_dim;
    FWD_TRY(read_optional_int(&r, "rope.dimension_count", 2, MAX_HEAD_DIM, &c->n_rope, err));
    FWD_TRY(read_positive(&r, "attention.layer_norm_rms_epsilon", &eps, err));
    c->norm_eps = (float)eps;
    c->rope_theta = 10000.0; /* what ggml takes when the key is absent */
    if (find_key(&r, "rope.freq_base"))
        FWD_TRY(read_positive(&r, "rope.freq_base", &c->rope_theta, err));
    c->rope_pairing = (*arch)->rope_pairing;
    FWD_TRY(refuse_rope_scaling(&r, err));
    double scale;
    const struct fwd_gguf_kv *scale_kv = find_key(&r, "attention.scale");
    if (scale_kv && number_of(scale_kv, &scale))
        FWD_FAIL_IF(fabs(scale * sqrt(c->head_dim) - 1) > 1e-6, FWD_EUNSUPPORTED, err,
                    "key %s is %g: only 1/sqrt(head length) = %g is implemented", r.key, scale, 1 / sqrt(c->head_dim));
    FWD_TRY(refuse_unknown_forms(&r, err));
    return fwd_config_check(c, err);
}

enum fwd_status fwd_config_check(const struct fwd_config *c, struct fwd_error *err) {
    FWD_FAIL_IF(c->n_rope < 2 || c->n_rope % 2 || c->n_rope > c->head_dim, FWD_ESHAPE, err,
                "%d dimensions are rotated, expected an even number from 2 to the head length %d", c->n_rope,
                c->head_dim);
    FWD_FAIL_IF(!(isfinite(c->norm_eps) && c->norm_eps > 0), FWD_ERANGE, err,
                "the norms' epsilon is %g, expected a finite number above 0", (double)c->norm_eps);
    FWD_FAIL_IF(!(isfinite(c->rope_theta) && c->rope_theta > 0), FWD_ERANGE, err,
                "rope theta is %g, expected a finite number above 0", c->rope_theta);
    for (int h = 0; h < c->n_head; h++)
        FWD_FAIL_IF(c->kv_head_of[h] < 0 || c->kv_head_of[h] >= c->n_kv_head, FWD_ERANGE, err,
                    "head %d reads KV head %d, expected 0 to %d", h, c->kv_head_of[h], c->n_kv_head - 1);
    return FWD_OK;
}
