#include "tap/tap_names.h"

#include "report/json.h"

#include <stdio.h>
#include <string.h>

enum { MAX_MAP_BYTES = 1 << 20, MAX_NAME = 256 };

static const struct row {
    const char *pattern;
    enum fwd_op op;
    bool fused_qkv;
    enum par_tap_form form;
    const char *family;
} table[] = {
    /* llama.cpp: what its graph is called where that differs from ours, and what older versions said. */
    {"embd", FWD_OP_INP_EMBD, false, PAR_FORM_NAMED, "llama.cpp"},
    {"ffn_gate_par-#", FWD_OP_FFN_SWIGLU, false, PAR_FORM_NAMED, "llama.cpp"},
    {"kqv_merged_cont-#", FWD_OP_KQV_OUT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"norm-#", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"norm", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"kq-#", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"kq_soft_max-#", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"kqv-#", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    {"ffn_silu-#", FWD_OP_COUNT, false, PAR_FORM_NAMED, "llama.cpp"},
    /* Hugging Face. Rotation takes halves there, so that Q and K of a llama file stand in another order. */
    {"model.embed_tokens", FWD_OP_INP_EMBD, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.input_layernorm", FWD_OP_ATTN_NORM, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn.q_proj", FWD_OP_QCUR, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn.k_proj", FWD_OP_KCUR, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn.v_proj", FWD_OP_VCUR, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn.o_proj.input", FWD_OP_KQV_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn.o_proj", FWD_OP_ATTN_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.self_attn", FWD_OP_ATTN_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.post_attention_layernorm.input", FWD_OP_FFN_INP, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.post_attention_layernorm", FWD_OP_FFN_NORM, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp.gate_proj", FWD_OP_FFN_GATE, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp.up_proj", FWD_OP_FFN_UP, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp.down_proj.input", FWD_OP_FFN_SWIGLU, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp.down_proj", FWD_OP_FFN_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp", FWD_OP_FFN_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#.mlp.act_fn", FWD_OP_COUNT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.layers.#", FWD_OP_L_OUT, false, PAR_FORM_NAMED, "Hugging Face"},
    {"model.norm", FWD_OP_RESULT_NORM, false, PAR_FORM_NAMED, "Hugging Face"},
    {"lm_head", FWD_OP_RESULT_OUTPUT, false, PAR_FORM_NAMED, "Hugging Face, APRT"},
    /* aprender's 22 stages; lm_head is above. */
    {"embedding", FWD_OP_INP_EMBD, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/attn_norm", FWD_OP_ATTN_NORM, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/qkv_matmul", FWD_OP_QCUR, true, PAR_FORM_BEFORE_BIAS, "APRT"},
    {"layer-#/qkv_bias", FWD_OP_QCUR, true, PAR_FORM_NAMED, "APRT"},
    {"layer-#/q_post_rope", FWD_OP_QCUR_ROPE, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/k_post_rope", FWD_OP_KCUR_ROPE, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/attn_scores", FWD_OP_COUNT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/attn_softmax", FWD_OP_COUNT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/attention", FWD_OP_KQV_OUT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/attn_out", FWD_OP_ATTN_OUT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/post_attn_residual", FWD_OP_FFN_INP, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_norm", FWD_OP_FFN_NORM, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_gate", FWD_OP_FFN_GATE, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_up", FWD_OP_FFN_UP, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_silu", FWD_OP_COUNT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_swigl", FWD_OP_FFN_SWIGLU, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/ffn_out", FWD_OP_FFN_OUT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/post_ffn_residual", FWD_OP_L_OUT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/moe_router", FWD_OP_COUNT, false, PAR_FORM_NAMED, "APRT"},
    {"layer-#/moe_ffn_out", FWD_OP_COUNT, false, PAR_FORM_NAMED, "APRT"},
    {"final_norm", FWD_OP_RESULT_NORM, false, PAR_FORM_NAMED, "APRT"},
};

static const char *const form_names[PAR_FORM_COUNT] = {"as-named", "before-bias", "pairs-split", "pairs-joined",
                                                       "transposed"};

const char *par_tap_form_name(enum par_tap_form f) {
    return (unsigned)f < PAR_FORM_COUNT ? form_names[f] : "?";
}

enum par_tap_form par_tap_form_by_name(const char *name) {
    int f = 0;
    while (f < PAR_FORM_COUNT && strcmp(name, form_names[f]) != 0)
        f++;
    return (enum par_tap_form)f;
}

/* Digits only, no sign, no leading zeros; returns what follows, or NULL. */
static const char *read_number(const char *s, int *out) {
    int64_t x = 0;
    const char *p = s;
    for (; *p >= '0' && *p <= '9' && x < INT32_MAX; p++)
        x = x * 10 + (*p - '0');
    if (p == s || x >= INT32_MAX || (*s == '0' && p - s > 1))
        return NULL;
    *out = (int)x;
    return p;
}

/* *layer: -1 for a pattern without one. */
static bool matches(const char *pattern, const char *name, int *layer) {
    *layer = -1;
    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            name = read_number(name, layer);
            if (!name)
                return false;
        } else if (*pattern != *name++) {
            return false;
        }
    }
    return *name == 0;
}

/* Our own names: llama.cpp's, "Qcur-3" or "result_norm". */
static bool find_own(const char *name, struct par_tap_name *out) {
    char tap[MAX_NAME];
    out->op = fwd_op_by_name(name);
    if (out->op != FWD_OP_COUNT)
        return !fwd_op_in_layer(out->op);
    const char *dash = strrchr(name, '-');
    if (!dash)
        return false;
    memcpy(tap, name, (size_t)(dash - name));
    tap[dash - name] = 0;
    out->op = fwd_op_by_name(tap);
    const char *end = read_number(dash + 1, &out->layer);
    return out->op != FWD_OP_COUNT && fwd_op_in_layer(out->op) && end && !*end;
}

static bool find_plain(const char *name, struct par_tap_name *out) {
    *out = (struct par_tap_name){.layer = -1, .pos0 = -1, .pos1 = -1, .family = "llama.cpp"};
    if (find_own(name, out))
        return true;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct row *r = &table[i];
        if (matches(r->pattern, name, &out->layer)) {
            out->op = r->op;
            out->fused_qkv = r->fused_qkv;
            out->form = r->form;
            out->family = r->family;
            return true;
        }
    }
    return false;
}

/* ---- a person's own rows ---------------------------------------------------------------------------------------- */

struct par_tap_map {
    struct par_json *doc;
};

static const char *one_hash(const char *s) {
    const char *hash = strchr(s, '#');
    return hash && strchr(hash + 1, '#') ? NULL : s;
}

/* The pattern with the layer in the place of '#'; false: it does not fit. */
static bool with_layer(const char *pattern, int layer, char *out, size_t n) {
    const char *hash = strchr(pattern, '#');
    int length = hash ? snprintf(out, n, "%.*s%d%s", (int)(hash - pattern), pattern, layer, hash + 1)
                      : snprintf(out, n, "%s", pattern);
    return length >= 0 && (size_t)length < n;
}

enum fwd_status par_tap_map_read(struct par_tap_map **out, const char *path, struct fwd_error *err) {
    struct par_tap_map *map = fwd_calloc(1, sizeof *map);
    FWD_FAIL_IF(!map, FWD_ENOMEM, err, "%s: no memory", path);
    enum fwd_status rc = par_json_read(&map->doc, path, MAX_MAP_BYTES, err);
    const struct cJSON *root = rc == FWD_OK ? par_json_root(map->doc) : NULL;
    if (rc == FWD_OK && !par_json_is_object(root))
        rc = par_json_fail(map->doc, root, err, "expected an object {\"their name\": \"our name\"}");
    for (const struct cJSON *i = rc == FWD_OK ? par_json_first(root) : NULL; rc == FWD_OK && i; i = par_json_next(i)) {
        char name[MAX_NAME];
        struct par_tap_name meaning;
        const char *key = par_json_name(i), *value = par_json_text(i);
        if (!value || !one_hash(key) || !one_hash(value) || (strchr(value, '#') && !strchr(key, '#')) ||
            !with_layer(value, 0, name, sizeof name) || !find_plain(name, &meaning))
            rc = par_json_fail(map->doc, i, err, "\"%.60s\" is to be \"%.60s\", expected a tap such as Qcur-#", key,
                               value ? value : "no string");
    }
    if (rc != FWD_OK) {
        par_tap_map_free(map);
        return rc;
    }
    *out = map;
    return FWD_OK;
}

void par_tap_map_free(struct par_tap_map *map) {
    if (map)
        par_json_free(map->doc);
    fwd_free(map);
}

static bool find_mapped(const char *name, const struct par_tap_map *map, struct par_tap_name *out) {
    char other[MAX_NAME];
    int layer;
    for (const struct cJSON *i = map ? par_json_first(par_json_root(map->doc)) : NULL; i; i = par_json_next(i))
        if (matches(par_json_name(i), name, &layer) && with_layer(par_json_text(i), layer, other, sizeof other))
            return find_plain(other, out);
    return false;
}

bool par_tap_name_find(const char *name, const struct par_tap_map *map, struct par_tap_name *out) {
    char plain[MAX_NAME];
    int pos0 = -1, pos1 = -1;
    const char *at = strrchr(name, '@'), *p = at ? read_number(at + 1, &pos0) : NULL;
    p = p && *p == ':' ? read_number(p + 1, &pos1) : NULL;
    bool said = p && !*p && pos1 > pos0;
    size_t n = said ? (size_t)(at - name) : strlen(name);
    if (n >= sizeof plain)
        return false;
    memcpy(plain, name, n);
    plain[n] = 0;
    if (!find_mapped(plain, map, out) && !find_plain(plain, out))
        return false;
    if (said) {
        out->pos0 = pos0;
        out->pos1 = pos1;
    }
    return true;
}
