/* engine/model/tokenizer_vocab.h: the vocabulary behind the tokenizer: token texts, their bytes, types and merges, read
 * from tokenizer.ggml.* once, checked, and copied, so that the file may be closed. Private to engine/model. */
#ifndef ENGINE_MODEL_TOKENIZER_VOCAB_H
#define ENGINE_MODEL_TOKENIZER_VOCAB_H

#include "core/status.h"
#include "format/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* tokenizer.ggml.token_type, as the GGUF specification numbers it. */
enum tok_type {
    TOK_TYPE_NORMAL = 1,
    TOK_TYPE_UNKNOWN = 2,
    TOK_TYPE_CONTROL = 3,
    TOK_TYPE_USER_DEFINED = 4,
    TOK_TYPE_UNUSED = 5,
    TOK_TYPE_BYTE = 6
};

struct tok_merge {
    int32_t left, right;
    int32_t rank; /* line number: lower merges first */
    int32_t out;
};

struct tok_vocab {
    int32_t n_tokens;
    int32_t n_merges;
    char *text;          /* the tokens as the file spells them, one after another */
    uint32_t *text_end;  /* [n_tokens + 1]; token i is text[text_end[i] .. text_end[i + 1]) */
    char *bytes;         /* the tokens as the bytes they stand for */
    uint32_t *bytes_end; /* [n_tokens + 1] */
    uint8_t *type;       /* [n_tokens] enum tok_type */
    int32_t *slots;      /* text -> id, open addressing; -1 is free */
    uint32_t slot_mask;
    struct tok_merge *pairs; /* (left, right) -> rank and product, open addressing; out < 0 is free */
    uint32_t pair_mask;
    int32_t byte_id[256]; /* the token of one byte, or -1 */
    int32_t n_missing_bytes;
    int32_t *special; /* control, user-defined and unknown tokens in the order of their texts' bytes */
    int32_t n_special;
    bool special_first[256]; /* bytes that a special token's text starts with */
};

enum fwd_status tok_vocab_read(struct tok_vocab *v, const struct fwd_gguf *file, struct fwd_error *err);
/* Safe on a zeroed or half-read vocabulary. */
void tok_vocab_free(struct tok_vocab *v);

/* -1: no such token. text is spelt as in the file (byte-level letters, not bytes). */
int32_t tok_vocab_find(const struct tok_vocab *v, const char *text, size_t len);
/* The same for bytes: they are spelt in byte-level letters first; scratch has 2 * len bytes. */
int32_t tok_vocab_find_bytes(const struct tok_vocab *v, const char *bytes, size_t len, char *scratch);
/* NULL: the pair does not merge. */
const struct tok_merge *tok_vocab_pair(const struct tok_vocab *v, int32_t left, int32_t right);
/* The special token whose text is the longest one that starts `text`, or -1. With `control` false only user-defined
 * tokens count. */
int32_t tok_vocab_special_at(const struct tok_vocab *v, const char *text, size_t len, bool control);

#endif
