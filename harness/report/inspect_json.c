/* harness/report/inspect_json.c: `parity inspect --json`: one object, everything that the directory says.
 *
 * Strings are valid UTF-8 (bytes that are not are shown as \xNN). An array longer than 64 items gives its first 8 and
 * the checksum of all its bytes. Integers above 2^53 are strings of digits; reals have 17 digits, which is exact
 * (cJSON's own 15 are not); NaN and infinities are strings. */
#include "report/inspect.h"

#include "report/report_escape.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <string.h>

enum { WHOLE_ITEMS = 64, HEAD_ITEMS = 8 };

/* Every step is tried; one failure (memory) is enough to refuse the whole. */
struct builder {
    bool ok;
};

static void put_node(struct builder *b, cJSON *object, const char *key, cJSON *node) {
    bool added =
        node && (cJSON_IsArray(object) ? cJSON_AddItemToArray(object, node) : cJSON_AddItemToObject(object, key, node));
    if (!added) {
        cJSON_Delete(node);
        b->ok = false;
    }
}

static cJSON *put_new(struct builder *b, cJSON *object, const char *key, cJSON *node) {
    put_node(b, object, key, node);
    return b->ok ? node : NULL;
}

static cJSON *text_node(const char *s, size_t len) {
    char *copy = fwd_strndup(s, len), *clean;
    for (size_t i = 0; copy && i < len; i++)
        if (!copy[i])
            copy[i] = ' '; /* cJSON strings end at a NUL */
    clean = copy ? par_utf8_clean(copy) : NULL;
    cJSON *node = clean ? cJSON_CreateString(clean) : NULL;
    fwd_free(copy);
    fwd_free(clean);
    return node;
}

static void put_text(struct builder *b, cJSON *object, const char *key, const char *s) {
    put_node(b, object, key, text_node(s, strlen(s)));
}

static void put_u64(struct builder *b, cJSON *object, const char *key, uint64_t v) {
    char digits[24];
    (void)snprintf(digits, sizeof digits, "%" PRIu64, v);
    put_node(b, object, key, v <= 1ull << 53 ? cJSON_CreateNumber((double)v) : cJSON_CreateString(digits));
}

static cJSON *real_node(double v) {
    char digits[40];
    if (v - v != 0)
        return cJSON_CreateString(v > 0 ? "inf" : v < 0 ? "-inf" : "nan");
    (void)snprintf(digits, sizeof digits, "%.17g", v);
    return cJSON_CreateRaw(digits);
}

static cJSON *item_node(const struct fwd_gguf_kv *kv, uint64_t i) {
    char digits[32];
    int64_t n;
    double real;
    if (kv->item_type == FWD_KV_BOOL && fwd_gguf_item_i64(kv, i, &n))
        return cJSON_CreateBool(n != 0);
    if (fwd_gguf_item_f64(kv, i, &real))
        return real_node(real);
    if (!fwd_gguf_item_i64(kv, i, &n))
        return cJSON_CreateString("above 2^63");
    (void)snprintf(digits, sizeof digits, "%" PRId64, n);
    return n <= 1ll << 53 && n >= -(1ll << 53) ? cJSON_CreateNumber((double)n) : cJSON_CreateString(digits);
}

static const char *kind_name(enum fwd_kv_type kind) {
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return names[kind];
}

static void put_kv(struct builder *b, cJSON *keys, const struct fwd_gguf_kv *kv) {
    cJSON *o = put_new(b, keys, NULL, cJSON_CreateObject()), *items;
    char checksum[20];
    uint64_t cursor = 0, n = kv->n_items <= WHOLE_ITEMS ? kv->n_items : HEAD_ITEMS;
    if (!o)
        return;
    put_text(b, o, "key", kv->key);
    put_text(b, o, "kind", kind_name(kv->type));
    items = o;
    if (kv->type == FWD_KV_ARRAY) {
        put_text(b, o, "item_kind", kind_name(kv->item_type));
        put_u64(b, o, "n_items", kv->n_items);
        (void)snprintf(checksum, sizeof checksum, "%016" PRIx64, fwd_hash64(kv->data, kv->n_bytes));
        put_text(b, o, "checksum", checksum);
        items = put_new(b, o, n == kv->n_items ? "items" : "head", cJSON_CreateArray());
    }
    for (uint64_t i = 0; b->ok && i < n; i++) {
        const char *s;
        size_t len;
        bool is_text = fwd_gguf_next_str(kv, &cursor, &s, &len);
        put_node(b, items, "value", is_text ? text_node(s, len) : item_node(kv, i));
    }
}

static void put_tensor(struct builder *b, cJSON *tensors, const struct fwd_gguf_tensor *t) {
    cJSON *o = put_new(b, tensors, NULL, cJSON_CreateObject());
    if (!o)
        return;
    put_text(b, o, "name", t->name);
    put_text(b, o, "type", fwd_type_name(t->type));
    cJSON *ne = put_new(b, o, "ne", cJSON_CreateArray());
    for (int d = 0; b->ok && d < t->n_dims; d++)
        put_u64(b, ne, NULL, t->ne[d]);
    put_u64(b, o, "offset", t->file_offset);
    put_u64(b, o, "bytes", t->n_bytes);
    put_u64(b, o, "file", (uint64_t)t->split);
}

static void put_config(struct builder *b, cJSON *root, const struct fwd_config *c) {
    cJSON *o = put_new(b, root, "config", cJSON_CreateObject());
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"n_layer", c->n_layer}, {"n_embd", c->n_embd},       {"n_ff", c->n_ff},
                   {"n_head", c->n_head},   {"n_kv_head", c->n_kv_head}, {"head_dim", c->head_dim},
                   {"n_rope", c->n_rope},   {"n_vocab", c->n_vocab},     {"n_ctx_train", c->n_ctx_train}};
    if (!o)
        return;
    put_text(b, o, "arch", c->arch);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        put_u64(b, o, numbers[i].key, (uint64_t)numbers[i].value);
    put_text(b, o, "rope_pairing", c->rope_pairing == FWD_ROPE_NEOX ? "neox" : "norm");
    put_node(b, o, "rope_theta", real_node(c->rope_theta));
    put_node(b, o, "norm_eps", real_node((double)c->norm_eps));
    put_node(b, o, "rope_factors", cJSON_CreateBool(c->rope_factors != NULL));
    put_node(b, o, "tied_head", cJSON_CreateBool(c->tied_head));
}

static void put_tokenizer(struct builder *b, cJSON *root, const struct fwd_tokenizer *t) {
    struct fwd_tokenizer_info info;
    cJSON *o = put_new(b, root, "tokenizer", cJSON_CreateObject());
    if (!o)
        return;
    fwd_tokenizer_info(t, &info);
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"n_vocab", info.n_vocab},
                   {"n_merges", info.n_merges},
                   {"n_special", info.n_special},
                   {"bos", info.bos},
                   {"eos", info.eos},
                   {"eot", info.eot},
                   {"unk", info.unk},
                   {"pad", info.pad}};
    put_text(b, o, "model", info.model);
    put_text(b, o, "pre", info.pre);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].value >= 0) /* -1: none */
            put_u64(b, o, numbers[i].key, (uint64_t)numbers[i].value);
    put_node(b, o, "add_bos", cJSON_CreateBool(info.add_bos));
}

static void put_types(struct builder *b, cJSON *root, const struct par_inspect_facts *f) {
    cJSON *types = put_new(b, root, "types", cJSON_CreateArray());
    for (int i = 0; b->ok && i < f->n_types; i++) {
        const struct fwd_type_info *type = fwd_type_info(f->types[i].type);
        cJSON *o = put_new(b, types, NULL, cJSON_CreateObject());
        if (!o)
            return;
        put_u64(b, o, "id", f->types[i].type);
        put_text(b, o, "type", fwd_type_name(f->types[i].type));
        put_u64(b, o, "tensors", f->types[i].n_tensors);
        put_u64(b, o, "bytes", f->types[i].n_bytes);
        put_u64(b, o, "values", f->types[i].n_values);
        put_node(b, o, "decodable", cJSON_CreateBool(type && type->decodable));
    }
}

static void put_file(struct builder *b, cJSON *root, const struct par_inspect_facts *f) {
    put_text(b, root, "path", fwd_gguf_path(f->file));
    put_u64(b, root, "gguf_version", fwd_gguf_version(f->file));
    put_u64(b, root, "alignment", fwd_gguf_alignment(f->file));
    put_u64(b, root, "bytes", fwd_gguf_file_bytes(f->file));
    put_u64(b, root, "values", f->n_params);
    cJSON *files = put_new(b, root, "files", cJSON_CreateArray());
    for (int i = 0; b->ok && i < fwd_gguf_n_splits(f->file); i++)
        put_text(b, files, NULL, fwd_gguf_split_path(f->file, i));
}

static void build_root(struct builder *b, cJSON *root, const struct par_inspect_facts *f) {
    put_text(b, root, "schema", "parity-inspect-v1");
    put_file(b, root, f);
    if (f->model)
        put_config(b, root, &f->model->config);
    else
        put_text(b, root, "refused", f->refusal.message);
    if (f->tokenizer)
        put_tokenizer(b, root, f->tokenizer);
    put_types(b, root, f);
    cJSON *notes = put_new(b, root, "unusual", cJSON_CreateArray());
    for (int i = 0; b->ok && i < f->notes.n; i++)
        put_text(b, notes, NULL, f->notes.text[i]);
    cJSON *keys = put_new(b, root, "keys", cJSON_CreateArray());
    for (uint64_t i = 0; b->ok && i < fwd_gguf_n_kv(f->file); i++)
        put_kv(b, keys, fwd_gguf_kv(f->file, i));
    cJSON *tensors = put_new(b, root, "tensors", cJSON_CreateArray());
    for (uint64_t i = 0; b->ok && i < fwd_gguf_n_tensors(f->file); i++)
        put_tensor(b, tensors, fwd_gguf_tensor(f->file, i));
}

enum fwd_status par_inspect_print_json(FILE *out, const struct par_inspect_facts *f, struct fwd_error *err) {
    struct builder b = {.ok = true};
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;
    if (root)
        build_root(&b, root, f);
    if (root && b.ok)
        text = cJSON_Print(root);
    cJSON_Delete(root);
    FWD_FAIL_IF(!text, FWD_ENOMEM, err, "no memory for the JSON of %s", fwd_gguf_path(f->file));
    bool written = fprintf(out, "%s\n", text) > 0;
    cJSON_free(text);
    FWD_FAIL_IF(!written, FWD_EIO, err, "cannot write the JSON of %s", fwd_gguf_path(f->file));
    return FWD_OK;
}
