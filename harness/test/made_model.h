/* harness/test/made_model.h: small models made in memory, of any shape and of every block type, for tests that run a
 * whole forward pass under the judge. Weights are noise of about 1/16; the same shape always gives the same bytes. */
#ifndef HARNESS_TEST_MADE_MODEL_H
#define HARNESS_TEST_MADE_MODEL_H

#include "spec/judge.h"

#include "test/gguf_bytes.h"

#include <check.h>
#include <stdio.h>

/* What a layer's seven matrices are stored as, in the order q k v output gate up down. */
typedef uint32_t made_types[7];

struct made_shape {
    const char *arch; /* "qwen2": neox RoPE; "llama": norm */
    uint32_t n_layer, n_embd, n_ff, n_head, n_kv_head, n_vocab, n_ctx;
    bool bias;                    /* of q, k and v */
    uint32_t embd_type, out_type; /* out_type == MADE_TIED: the embedding again */
    const made_types *types;      /* [n_layer] */
};
#define MADE_TIED UINT32_MAX

struct made {
    uint8_t *bytes;
    struct fwd_gguf *file;
    struct par_spec_model *spec;
    struct fwd_pool *pool;
};

struct made_noise {
    uint64_t seed;
};
static inline uint32_t made_noise(struct made_noise *s) {
    s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(s->seed >> 33);
}

/* Offsets of a type's F16 fields and values for them that give weights of about 1/16. */
static const struct made_scale_rule {
    uint32_t type;
    int d_at, min_at; /* -1: none */
    uint16_t d, min;  /* binary16 */
} made_scale_rules[] = {
    {FWD_TYPE_Q4_0, 0, -1, 0x22e0, 0},     {FWD_TYPE_Q4_1, 0, 2, 0x22e0, 0xae80},
    {FWD_TYPE_Q5_0, 0, -1, 0x1ee0, 0},     {FWD_TYPE_Q5_1, 0, 2, 0x1ee0, 0xae80},
    {FWD_TYPE_Q8_0, 0, -1, 0x1280, 0},     {FWD_TYPE_Q2_K, 80, 82, 0x1d00, 0x2000},
    {FWD_TYPE_Q3_K, 108, -1, 0x1600, 0},   {FWD_TYPE_Q4_K, 0, 2, 0x0c00, 0x1800},
    {FWD_TYPE_Q5_K, 0, 2, 0x0800, 0x1800}, {FWD_TYPE_Q6_K, 208, -1, 0x0300, 0},
};

static inline uint8_t *made_weight(struct made_noise *s, uint32_t type, uint64_t n, bool is_norm) {
    const struct fwd_type_info *info = fwd_type_info(type);
    size_t n_bytes = n / info->block_values * info->block_bytes;
    uint8_t *w = malloc(n_bytes);
    if (!w)
        abort();
    for (size_t i = 0; i < n_bytes; i++)
        w[i] = (uint8_t)made_noise(s);
    for (size_t r = 0; r < sizeof made_scale_rules / sizeof *made_scale_rules; r++)
        for (size_t b = 0; made_scale_rules[r].type == type && b < n_bytes; b += info->block_bytes) {
            const struct made_scale_rule *rule = &made_scale_rules[r];
            uint16_t jitter = (uint16_t)(made_noise(s) % 64);
            uint16_t d = (uint16_t)(rule->d + jitter), min = (uint16_t)(rule->min + jitter);
            memcpy(w + b + rule->d_at, &d, 2);
            if (rule->min_at >= 0)
                memcpy(w + b + rule->min_at, &min, 2);
        }
    for (uint64_t i = 0; info->block_values == 1 && i < n; i++) {
        float x = ((float)made_noise(s) * 0x1p-30f - 1) * (is_norm ? 0.3f : 0.1f) + (is_norm ? 1 : 0);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (type == FWD_TYPE_F32)
            memcpy(w + 4 * i, &bits, 4);
        else if (type == FWD_TYPE_BF16)
            memcpy(w + 2 * i, (uint8_t *)&bits + 2, 2);
        else /* F16: sign, an exponent of 2^-5 .. 2^-4, any fraction */
            w[2 * i + 1] = (uint8_t)((w[2 * i + 1] & 0x87) | 0x28);
    }
    return w;
}

static inline void made_tensor(struct gguf_bytes *g, struct made_noise *s, const char *name, uint32_t type,
                               uint64_t n_cols, uint64_t n_rows) {
    uint64_t ne[2] = {n_cols, n_rows};
    uint8_t *w = made_weight(s, type, n_cols * n_rows, strstr(name, "norm") != NULL);
    add_tensor(g, name, type, n_rows > 1 ? 2 : 1, ne, w);
    free(w);
}

/* F32 values of about 1. */
static inline void made_vector(struct gguf_bytes *g, struct made_noise *s, const char *name, uint64_t n) {
    uint64_t ne[1] = {n};
    uint8_t *w = made_weight(s, FWD_TYPE_F32, n, true);
    add_tensor(g, name, FWD_TYPE_F32, 1, ne, w);
    free(w);
}

static inline void made_layer(struct gguf_bytes *g, struct made_noise *s, const struct made_shape *m, uint32_t il) {
    uint64_t embd = m->n_embd, ff = m->n_ff, kv = embd / m->n_head * m->n_kv_head;
    const struct {
        const char *name;
        uint64_t n_cols, n_rows;
    } matrices[7] = {{"attn_q", embd, embd}, {"attn_k", embd, kv}, {"attn_v", embd, kv},  {"attn_output", embd, embd},
                     {"ffn_gate", embd, ff}, {"ffn_up", embd, ff}, {"ffn_down", ff, embd}};
    char name[64];
    for (int i = 0; i < 7; i++) {
        (void)snprintf(name, sizeof name, "blk.%u.%s.weight", il, matrices[i].name);
        made_tensor(g, s, name, m->types[il][i], matrices[i].n_cols, matrices[i].n_rows);
        (void)snprintf(name, sizeof name, "blk.%u.%s.bias", il, matrices[i].name);
        if (m->bias && i < 3)
            made_tensor(g, s, name, FWD_TYPE_F32, matrices[i].n_rows, 1);
    }
    (void)snprintf(name, sizeof name, "blk.%u.attn_norm.weight", il);
    made_tensor(g, s, name, FWD_TYPE_F32, embd, 1);
    (void)snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", il);
    made_tensor(g, s, name, FWD_TYPE_F32, embd, 1);
}

static inline void made_int(struct gguf_bytes *g, const char *arch, const char *key, uint32_t v) {
    char name[64];
    (void)snprintf(name, sizeof name, "%s.%s", arch, key);
    add_u32(g, name, v);
}

/* The caller frees it with made_free. rope_factors: with a rope_freqs.weight. */
static inline void made_open_with(struct made *m, const struct made_shape *shape, bool rope_factors) {
    struct gguf_bytes g = {0};
    struct fwd_error err = {.message = ""};
    struct made_noise s = {7};
    const char *arch = shape->arch;
    char name[64];
    size_t n_bytes;
    add_str(&g, "general.architecture", arch);
    made_int(&g, arch, "block_count", shape->n_layer);
    made_int(&g, arch, "context_length", shape->n_ctx);
    made_int(&g, arch, "embedding_length", shape->n_embd);
    made_int(&g, arch, "feed_forward_length", shape->n_ff);
    made_int(&g, arch, "attention.head_count", shape->n_head);
    made_int(&g, arch, "attention.head_count_kv", shape->n_kv_head);
    (void)snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
    add_f32(&g, name, 1e-6f);
    (void)snprintf(name, sizeof name, "%s.rope.freq_base", arch);
    add_f32(&g, name, 1000000.0f);
    made_tensor(&g, &s, "token_embd.weight", shape->embd_type, shape->n_embd, shape->n_vocab);
    for (uint32_t il = 0; il < shape->n_layer; il++)
        made_layer(&g, &s, shape, il);
    made_tensor(&g, &s, "output_norm.weight", FWD_TYPE_F32, shape->n_embd, 1);
    if (rope_factors) /* as a norm's weight: about 1 */
        made_vector(&g, &s, "rope_freqs.weight", shape->n_embd / shape->n_head / 2);
    if (shape->out_type != MADE_TIED)
        made_tensor(&g, &s, "output.weight", shape->out_type, shape->n_embd, shape->n_vocab);
    m->bytes = finish_gguf(&g, 3, &n_bytes, NULL);
    ck_assert_msg(fwd_gguf_parse(&m->file, m->bytes, n_bytes, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_spec_open(&m->spec, m->file, &err) == FWD_OK, "%s", err.message);
    /* One spinning pool a process is enough on a small machine: the sessions of these tests have one thread. */
    ck_assert_msg(fwd_pool_create(&m->pool, 2, &err) == FWD_OK, "%s", err.message);
}

static inline void made_open(struct made *m, const struct made_shape *shape) {
    made_open_with(m, shape, false);
}

static inline void made_free(struct made *m) {
    fwd_pool_free(m->pool);
    par_spec_close(m->spec);
    fwd_gguf_close(m->file);
    free(m->bytes);
}

#endif
