/* engine/test/made_vocab.h: a small byte-level vocabulary as a GGUF file in memory, with places to break it. */
#ifndef ENGINE_TEST_MADE_VOCAB_H
#define ENGINE_TEST_MADE_VOCAB_H

#include "test/gguf_bytes.h"

#include <stdbool.h>
#include <stdio.h>

/* What to write; zero means the usual. Strings replace the usual ones. */
struct made_vocab {
    const char *model, *pre; /* "gpt2", "gpt-2"; "" leaves the key out */
    const char *extra_token; /* one more, of extra_type */
    uint32_t extra_type;
    const char *extra_merge; /* one more line */
    bool without_bytes;      /* no token of a single byte */
    bool without_specials;
    bool without_bos;
    bool without_types, without_merges, without_tokens;
    int missing_types;   /* so many items fewer than tokens */
    uint32_t bos;        /* added to the usual id */
    int add_bos;         /* 1: the key says true, -1: false, 0: no key */
    const char *bad_key; /* this key is written as an f32 */
};

/* Ids: the token of byte b is b; then these. */
enum {
    MADE_HE = 256,
    MADE_LL,
    MADE_HELL,
    MADE_HELLO,
    MADE_SPACE_W,
    MADE_AA,
    MADE_AAAA,
    MADE_LO,
    MADE_WHOLE, /* "whole": no merges lead to it */
    MADE_IM_START,
    MADE_IM_END,
    MADE_IM, /* "<|im", a beginning of the other two */
    MADE_TOOL,
    MADE_UNUSED,
    MADE_END
};

/* The byte alphabet as the model files spell it: bytes that are no printable Latin-1 letter are U+0100 onwards. */
static inline void spell_byte(unsigned byte, char out[3]) {
    unsigned c = byte, shifted = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool plain = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);
        if (b == byte && !plain)
            c = 0x100 + shifted;
        shifted += !plain;
    }
    size_t n = 0;
    if (c >= 0x80)
        out[n++] = (char)(0xc0 | c >> 6);
    out[n++] = (char)(c >= 0x80 ? 0x80 | (c & 0x3f) : c);
    out[n] = '\0';
}

static inline const char *made_word(const struct made_vocab *m, int id) {
    static const char *const words[] = {"he", "ll",    "hell",         "hello",      "\xc4\xa0w", "aa",     "aaaa",
                                        "lo", "whole", "<|im_start|>", "<|im_end|>", "<|im",      "<tool>", "[UNUSED]"};
    return id == MADE_END ? m->extra_token : words[id - MADE_HE];
}

static inline uint32_t made_type(const struct made_vocab *m, int id) {
    if (id == MADE_END)
        return m->extra_type ? m->extra_type : 1;
    if (m->without_specials || id < MADE_IM_START)
        return 1;
    return id == MADE_TOOL ? 4 : id == MADE_UNUSED ? 5 : 3;
}

static inline bool made_key(const struct made_vocab *m, struct gguf_bytes *g, const char *key) {
    if (!m->bad_key || strcmp(m->bad_key, key))
        return true;
    add_f32(g, key, 1.0f);
    return false;
}

static inline void made_tokens(const struct made_vocab *m, struct gguf_bytes *g, int n) {
    if (m->without_tokens || !made_key(m, g, "tokenizer.ggml.tokens"))
        return;
    begin_array(g, "tokenizer.ggml.tokens", FWD_KV_STRING, (uint64_t)n);
    for (int i = 0; i < n; i++) {
        char spelt[16];
        if (i >= MADE_HE)
            put_string(&g->keys, made_word(m, i));
        else if (m->without_bytes) {
            (void)snprintf(spelt, sizeof spelt, "word%d", i);
            put_string(&g->keys, spelt);
        } else {
            spell_byte((unsigned)i, spelt);
            put_string(&g->keys, spelt);
        }
    }
}

/* The file's bytes, to be freed by free(). */
static inline uint8_t *make_vocab(const struct made_vocab *m, size_t *n_bytes) {
    static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "\xc4\xa0 w", "a a", "aa aa", "l o"};
    struct gguf_bytes g = {0};
    int n = m->extra_token ? MADE_END + 1 : MADE_END;
    const char *model = m->model ? m->model : "gpt2", *pre = m->pre ? m->pre : "gpt-2";
    if (*model && made_key(m, &g, "tokenizer.ggml.model"))
        add_str(&g, "tokenizer.ggml.model", model);
    if (*pre && made_key(m, &g, "tokenizer.ggml.pre"))
        add_str(&g, "tokenizer.ggml.pre", pre);
    made_tokens(m, &g, n);
    if (!m->without_types && made_key(m, &g, "tokenizer.ggml.token_type")) {
        begin_array(&g, "tokenizer.ggml.token_type", FWD_KV_I32, (uint64_t)(n - m->missing_types));
        for (int i = 0; i < n - m->missing_types; i++)
            put_le(&g.keys, i < MADE_HE ? 1 : made_type(m, i), 4);
    }
    if (!m->without_merges && made_key(m, &g, "tokenizer.ggml.merges")) {
        int n_merges = m->without_bytes ? 0 : (int)(sizeof merges / sizeof *merges);
        begin_array(&g, "tokenizer.ggml.merges", FWD_KV_STRING, (uint64_t)(n_merges + (m->extra_merge != NULL)));
        for (int i = 0; i < n_merges; i++)
            put_string(&g.keys, merges[i]);
        if (m->extra_merge)
            put_string(&g.keys, m->extra_merge);
    }
    if (!m->without_bos && made_key(m, &g, "tokenizer.ggml.bos_token_id"))
        add_u32(&g, "tokenizer.ggml.bos_token_id", MADE_IM_START + m->bos);
    add_u32(&g, "tokenizer.ggml.eos_token_id", MADE_IM_END);
    if (made_key(m, &g, "tokenizer.ggml.add_bos_token") && m->add_bos) {
        begin_kv(&g, "tokenizer.ggml.add_bos_token", FWD_KV_BOOL);
        put_le(&g.keys, m->add_bos > 0, 1);
    }
    return finish_gguf(&g, 3, n_bytes, NULL);
}

#endif
