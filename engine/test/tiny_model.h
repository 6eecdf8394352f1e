/* engine/test/tiny_model.h: a complete two-layer model of either architecture made in memory, and one edit to it. */
#ifndef ENGINE_TEST_TINY_MODEL_H
#define ENGINE_TEST_TINY_MODEL_H

#include "test/gguf_bytes.h"

#include <stdbool.h>
#include <stdio.h>

enum {
    TINY_LAYERS = 2,
    TINY_EMBD = 64,
    TINY_FF = 96,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_HEAD_DIM = 16,
    TINY_VOCAB = 50
};

enum tiny_action {
    TINY_NONE,
    TINY_DROP,    /* the key or tensor of that name */
    TINY_TYPE,    /* tensor: type = value */
    TINY_NE,      /* tensor: ne[index] = value */
    TINY_ITEM,    /* F32 tensor: item index = number */
    TINY_KEY_U32, /* key = value, added when it is not there */
    TINY_KEY_F32, /* key = number */
    TINY_KEY_STR, /* key = text */
    TINY_ADD      /* a tensor of this name, F32 [value] */
};

struct tiny_edit {
    enum tiny_action action;
    const char *name;
    int index;
    uint64_t value;
    float number;
    const char *text;
};

struct tiny_maker {
    struct gguf_bytes out;
    const struct tiny_edit *edit;
    const char *arch;
};

static inline bool tiny_edited_key(struct tiny_maker *m, const char *key) {
    const struct tiny_edit *e = m->edit;
    return e && e->name && !strcmp(e->name, key) && e->action != TINY_NONE;
}

static inline void tiny_u32(struct tiny_maker *m, const char *name, uint32_t v) {
    char key[96];
    (void)snprintf(key, sizeof key, "%s.%s", m->arch, name);
    if (!tiny_edited_key(m, key))
        add_u32(&m->out, key, v);
}

static inline void tiny_f32(struct tiny_maker *m, const char *name, float v) {
    char key[96];
    (void)snprintf(key, sizeof key, "%s.%s", m->arch, name);
    if (!tiny_edited_key(m, key))
        add_f32(&m->out, key, v);
}

static inline void tiny_tensor(struct tiny_maker *m, const char *name, uint32_t type, uint64_t n_cols,
                               uint64_t n_rows) {
    const struct tiny_edit *e = m->edit && m->edit->name && !strcmp(m->edit->name, name) ? m->edit : NULL;
    uint64_t ne[4] = {n_cols, n_rows, 1, 1};
    uint32_t n_dims = n_rows > 1 ? 2 : 1;
    float *values = NULL;
    if (e && e->action == TINY_DROP)
        return;
    if (e && e->action == TINY_TYPE)
        type = (uint32_t)e->value;
    if (e && e->action == TINY_NE) {
        ne[e->index] = e->value;
        n_dims = n_dims > (uint32_t)e->index ? n_dims : (uint32_t)e->index + 1;
    }
    if (type == FWD_TYPE_F32) {
        uint64_t n = ne[0] * ne[1] * ne[2] * ne[3];
        values = malloc(n * sizeof *values);
        if (!values)
            abort();
        for (uint64_t i = 0; i < n; i++)
            values[i] = (float)(i % 7) + 0.5f;
        if (e && e->action == TINY_ITEM)
            values[e->index] = e->number;
    }
    add_tensor(&m->out, name, type, n_dims, ne, values);
    free(values);
}

static inline void tiny_layer(struct tiny_maker *m, int layer, bool bias) {
    const uint64_t n_q = TINY_HEADS * TINY_HEAD_DIM, n_kv = TINY_KV_HEADS * TINY_HEAD_DIM;
    const struct {
        const char *name;
        uint32_t type;
        uint64_t n_cols, n_rows;
        bool is_bias;
    } all[] = {
        {"attn_norm.weight", FWD_TYPE_F32, TINY_EMBD, 1, false},
        {"attn_q.weight", FWD_TYPE_Q4_0, TINY_EMBD, n_q, false},
        {"attn_k.weight", FWD_TYPE_Q4_1, TINY_EMBD, n_kv, false},
        {"attn_v.weight", FWD_TYPE_Q8_0, TINY_EMBD, n_kv, false},
        {"attn_q.bias", FWD_TYPE_F32, n_q, 1, true},
        {"attn_k.bias", FWD_TYPE_F32, n_kv, 1, true},
        {"attn_v.bias", FWD_TYPE_F32, n_kv, 1, true},
        {"attn_output.weight", FWD_TYPE_Q5_0, n_q, TINY_EMBD, false},
        {"ffn_norm.weight", FWD_TYPE_F32, TINY_EMBD, 1, false},
        {"ffn_gate.weight", FWD_TYPE_F16, TINY_EMBD, TINY_FF, false},
        {"ffn_up.weight", FWD_TYPE_BF16, TINY_EMBD, TINY_FF, false},
        {"ffn_down.weight", FWD_TYPE_Q5_1, TINY_FF, TINY_EMBD, false},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "blk.%d.%s", layer, all[i].name);
        if (bias || !all[i].is_bias)
            tiny_tensor(m, name, all[i].type, all[i].n_cols, all[i].n_rows);
    }
}

/* The caller frees. */
static inline uint8_t *make_tiny(const char *arch, bool tied, bool bias, const struct tiny_edit *edit,
                                 size_t *n_bytes) {
    struct tiny_maker m = {.edit = edit, .arch = arch};
    if (!tiny_edited_key(&m, "general.architecture"))
        add_str(&m.out, "general.architecture", arch);
    tiny_u32(&m, "block_count", TINY_LAYERS);
    tiny_u32(&m, "context_length", 128);
    tiny_u32(&m, "embedding_length", TINY_EMBD);
    tiny_u32(&m, "feed_forward_length", TINY_FF);
    tiny_u32(&m, "attention.head_count", TINY_HEADS);
    tiny_u32(&m, "attention.head_count_kv", TINY_KV_HEADS);
    tiny_f32(&m, "attention.layer_norm_rms_epsilon", 1e-5f);
    tiny_f32(&m, "rope.freq_base", 10000.0f);
    if (edit && edit->action == TINY_KEY_U32)
        add_u32(&m.out, edit->name, (uint32_t)edit->value);
    if (edit && edit->action == TINY_KEY_F32)
        add_f32(&m.out, edit->name, edit->number);
    if (edit && edit->action == TINY_KEY_STR)
        add_str(&m.out, edit->name, edit->text);
    tiny_tensor(&m, "token_embd.weight", FWD_TYPE_Q8_0, TINY_EMBD, TINY_VOCAB);
    for (int i = 0; i < TINY_LAYERS; i++)
        tiny_layer(&m, i, bias);
    tiny_tensor(&m, "output_norm.weight", FWD_TYPE_F32, TINY_EMBD, 1);
    if (!tied)
        tiny_tensor(&m, "output.weight", FWD_TYPE_Q8_0, TINY_EMBD, TINY_VOCAB);
    if (edit && edit->action == TINY_ADD)
        tiny_tensor(&m, edit->name, FWD_TYPE_F32, edit->value, 1);
    return finish_gguf(&m.out, 3, n_bytes, NULL);
}

#endif
