/* engine/test/fuzz_gguf.c: any bytes are parsed or refused with a message; what was parsed can be walked wholly, names
 * are found again, and a model is bound or refused; every row of a bound model decodes within its buffer. */
#include "core/memory.h"
#include "format/gguf.h"
#include "model/model.h"
#include "quant/quant.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An invariant of the reader, broken: the sanitizers' way out. */
static void require(int condition) {
    if (!condition)
        abort();
}

/* A sum that nobody can leave out: every byte that a view promises is read. */
static uint64_t sum_bytes(const uint8_t *p, uint64_t n) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += p[i];
    return sum;
}

static uint64_t walk_keys(const struct fwd_gguf *g) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < fwd_gguf_n_kv(g); i++) {
        const struct fwd_gguf_kv *kv = fwd_gguf_kv(g, i);
        uint64_t cursor = 0, n = 0, u;
        const char *s;
        size_t len;
        int64_t item;
        double real;
        bool b;
        require(fwd_gguf_find_kv(g, kv->key) == kv);
        while (fwd_gguf_next_str(kv, &cursor, &s, &len)) {
            sum += sum_bytes((const uint8_t *)s, len);
            n++;
        }
        require(kv->item_type != FWD_KV_STRING || n == kv->n_items);
        for (n = 0; n < kv->n_items && kv->item_type != FWD_KV_STRING; n++)
            require(fwd_gguf_item_i64(kv, n, &item) || fwd_gguf_item_f64(kv, n, &real) || kv->item_type == FWD_KV_U64);
        require(!fwd_gguf_item_i64(kv, kv->n_items, &item) && !fwd_gguf_item_f64(kv, kv->n_items, &real));
        sum += fwd_gguf_get_u64(g, kv->key, &u);
        sum += fwd_gguf_get_f64(g, kv->key, &real);
        sum += fwd_gguf_get_bool(g, kv->key, &b);
        sum += fwd_gguf_get_str(g, kv->key, &s, &len);
    }
    return sum;
}

static uint64_t walk_tensors(const struct fwd_gguf *g, const uint8_t *data, size_t size) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(g); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(g, i);
        require(fwd_gguf_find(g, t->name) == t);
        require(fwd_type_name(t->type) != NULL);
        if (!t->data)
            continue;
        require(t->data == data + t->file_offset && t->file_offset + t->n_bytes <= size);
        sum += sum_bytes(t->data, t->n_bytes);
    }
    return sum;
}

static void decode_first_row(void *ud, int layer, const struct fwd_weight *w) {
    float *row = fwd_alloc((size_t)w->n_cols, sizeof *row);
    (void)ud;
    (void)layer;
    require(row != NULL);
    fwd_decode_for(w->type)(w->data + (w->n_rows - 1) * w->row_bytes, row, w->n_cols);
    fwd_free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    struct fwd_model *model;
    if (fwd_gguf_parse(&g, data, size, &err) != FWD_OK) {
        require(g == NULL && err.message[0] && err.code != FWD_OK && err.code != FWD_ENOMEM);
        return 0;
    }
    volatile uint64_t sum = walk_keys(g) + walk_tensors(g, data, size);
    (void)sum;
    if (fwd_model_bind(&model, g, NULL, NULL, &err) == FWD_OK) {
        fwd_model_each_weight(model, decode_first_row, NULL);
        fwd_model_free(model);
    } else {
        require(model == NULL && err.message[0] && err.code != FWD_OK);
    }
    fwd_gguf_close(g);
    return 0;
}
