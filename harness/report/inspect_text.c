/* harness/report/inspect_text.c: `parity inspect` for people. */
#include "report/inspect.h"

#include "report/report_escape.h"

#include <string.h>

enum { SHOWN_ITEMS = 8, SHOWN_BYTES = 60 };

/* Bytes of a file, on one line and cut when long. */
static void put_bytes(FILE *out, const char *s, size_t len) {
    char text[SHOWN_BYTES + 1];
    size_t n = len < SHOWN_BYTES ? len : SHOWN_BYTES;
    for (size_t i = 0; i < n; i++)
        text[i] = s[i] ? s[i] : ' ';
    text[n] = 0;
    par_put_plain(out, text);
    if (n < len)
        (void)fprintf(out, "... (%zu bytes)", len);
}

static void put_size(FILE *out, uint64_t n_bytes) {
    if (n_bytes >= 1u << 20)
        (void)fprintf(out, "%.1f MiB", (double)n_bytes / (1 << 20));
    else
        (void)fprintf(out, "%.1f KiB", (double)n_bytes / 1024);
}

static void put_string_key(FILE *out, const struct fwd_gguf *file, const char *label, const char *key) {
    const char *s;
    size_t len;
    if (!fwd_gguf_get_str(file, key, &s, &len))
        return;
    (void)fprintf(out, "%-14s", label);
    put_bytes(out, s, len);
    (void)fputc('\n', out);
}

static void put_config(FILE *out, const struct fwd_config *c) {
    (void)fprintf(out, "%-14s%d layers, hidden %d, feed-forward %d, vocabulary %lld, context %d\n", "shape", c->n_layer,
                  c->n_embd, c->n_ff, (long long)c->n_vocab, c->n_ctx_train);
    (void)fprintf(out, "%-14s%d query heads over %d KV heads of %d\n", "attention", c->n_head, c->n_kv_head,
                  c->head_dim);
    (void)fprintf(out, "%-14s%d dimensions in pairs %s, theta %.9g%s\n", "rope", c->n_rope,
                  c->rope_pairing == FWD_ROPE_NEOX ? "(i, i+d/2)" : "(2i, 2i+1)", c->rope_theta,
                  c->rope_factors ? ", with frequency factors" : "");
    (void)fprintf(out, "%-14sRMS, epsilon %.7g\n", "norm", (double)c->norm_eps);
    (void)fprintf(out, "%-14s%s\n", "head", c->tied_head ? "tied to the embedding" : "its own matrix");
}

static void put_tokenizer(FILE *out, const struct par_inspect_facts *f) {
    if (!f->tokenizer) {
        (void)fprintf(out, "%-14snone that can be used\n", "tokenizer");
        return;
    }
    struct fwd_tokenizer_info info;
    fwd_tokenizer_info(f->tokenizer, &info);
    (void)fprintf(out, "%-14s%s, pre-tokenizer %s: %lld tokens (%lld special), %lld merges\n", "tokenizer", info.model,
                  info.pre, (long long)info.n_vocab, (long long)info.n_special, (long long)info.n_merges);
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {{"bos", info.bos}, {"eos", info.eos}, {"eot", info.eot}, {"unk", info.unk}, {"pad", info.pad}};
    (void)fprintf(out, "%-14s", "special ids");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        const char *bytes;
        size_t len;
        if (ids[i].id < 0 || !fwd_tokenizer_piece(f->tokenizer, ids[i].id, &bytes, &len))
            continue;
        (void)fprintf(out, "%s %d ", ids[i].name, ids[i].id);
        put_bytes(out, bytes, len);
        (void)fprintf(out, "  ");
    }
    (void)fprintf(out, "%s\n", info.add_bos ? "(bos is prepended)" : "(no bos is prepended)");
}

static void put_types(FILE *out, const struct par_inspect_facts *f) {
    (void)fprintf(out, "\ntypes\n");
    for (int i = 0; i < f->n_types; i++) {
        const struct par_inspect_type_count *t = &f->types[i];
        (void)fprintf(out, "  %-20s%5llu tensors  ", fwd_type_name(t->type), (unsigned long long)t->n_tensors);
        put_size(out, t->n_bytes);
        if (t->n_values && t->n_bytes)
            (void)fprintf(out, ", %.2f bits a value", 8.0 * (double)t->n_bytes / (double)t->n_values);
        (void)fputc('\n', out);
    }
}

static void put_tensors(FILE *out, const struct fwd_gguf *file) {
    (void)fprintf(out, "\ntensors\n");
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(file); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(file, i);
        (void)fprintf(out, "  %-32.200s %-8s [%llu", t->name, fwd_type_name(t->type), (unsigned long long)t->ne[0]);
        for (int d = 1; d < t->n_dims; d++)
            (void)fprintf(out, ", %llu", (unsigned long long)t->ne[d]);
        (void)fprintf(out, "]  %llu bytes at %llu", (unsigned long long)t->n_bytes, (unsigned long long)t->file_offset);
        (void)fprintf(out, t->split ? " of part %d\n" : "\n", t->split + 1);
    }
}

static void put_item(FILE *out, const struct fwd_gguf_kv *kv, uint64_t i) {
    int64_t n;
    double real;
    if (fwd_gguf_item_i64(kv, i, &n))
        (void)fprintf(out, "%lld", (long long)n);
    else if (fwd_gguf_item_f64(kv, i, &real))
        (void)fprintf(out, "%.9g", real);
    else
        (void)fprintf(out, "above 2^63");
}

static void put_keys(FILE *out, const struct fwd_gguf *file) {
    (void)fprintf(out, "\nkeys\n");
    for (uint64_t i = 0; i < fwd_gguf_n_kv(file); i++) {
        const struct fwd_gguf_kv *kv = fwd_gguf_kv(file, i);
        uint64_t cursor = 0, n = kv->n_items < SHOWN_ITEMS ? kv->n_items : SHOWN_ITEMS;
        (void)fprintf(out, "  %.120s = ", kv->key);
        if (kv->type == FWD_KV_ARRAY)
            (void)fprintf(out, "[%llu] ", (unsigned long long)kv->n_items);
        for (uint64_t j = 0; j < n; j++) {
            const char *s;
            size_t len;
            (void)fprintf(out, "%s", j ? ", " : "");
            if (fwd_gguf_next_str(kv, &cursor, &s, &len))
                put_bytes(out, s, len);
            else
                put_item(out, kv, j);
        }
        (void)fprintf(out, "%s\n", n < kv->n_items ? ", ..." : "");
    }
}

void par_inspect_print_text(FILE *out, const struct par_inspect_facts *f, bool with_tensors, bool with_keys) {
    (void)fprintf(out, "%-14s", "file");
    par_put_plain(out, fwd_gguf_path(f->file));
    (void)fprintf(out, "\n%-14sGGUF v%u, ", "format", fwd_gguf_version(f->file));
    put_size(out, fwd_gguf_file_bytes(f->file));
    (void)fprintf(out, " in %d file%s, %llu keys, %llu tensors, %.3g values\n", fwd_gguf_n_splits(f->file),
                  fwd_gguf_n_splits(f->file) > 1 ? "s" : "", (unsigned long long)fwd_gguf_n_kv(f->file),
                  (unsigned long long)fwd_gguf_n_tensors(f->file), (double)f->n_params);
    put_string_key(out, f->file, "name", "general.name");
    put_string_key(out, f->file, "architecture", "general.architecture");
    if (f->model)
        put_config(out, &f->model->config);
    put_tokenizer(out, f);
    put_types(out, f);
    (void)fprintf(out, "\nunusual\n%s", f->notes.n ? "" : "  nothing\n");
    for (int i = 0; i < f->notes.n; i++) {
        (void)fprintf(out, "  ");
        par_put_plain(out, f->notes.text[i]);
        (void)fputc('\n', out);
    }
    if (with_keys)
        put_keys(out, f->file);
    if (with_tensors)
        put_tensors(out, f->file);
}
