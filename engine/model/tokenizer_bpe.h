/* engine/model/tokenizer_bpe.h: merging the bytes of one word by rank. Private to engine/model. */
#ifndef ENGINE_MODEL_TOKENIZER_BPE_H
#define ENGINE_MODEL_TOKENIZER_BPE_H

#include "core/status.h"
#include "model/tokenizer_vocab.h"

#include <stddef.h>
#include <stdint.h>

struct tok_ids {
    int32_t *id;
    size_t n, capacity;
};
enum fwd_status tok_ids_push(struct tok_ids *ids, int32_t id, struct fwd_error *err);

struct tok_symbol {
    int32_t id;         /* -1: a byte the vocabulary has no token for, or a symbol that was merged into its left one */
    int32_t prev, next; /* -1: none */
};

struct tok_candidate {
    int32_t rank, at; /* at: the left symbol */
    int32_t left, right, out;
};

/* Scratch that is kept between words. Zero-initialise. */
struct tok_bpe {
    struct tok_symbol *symbols;
    size_t symbol_capacity;
    struct tok_candidate *heap;
    size_t n_heap, heap_capacity;
};
void tok_bpe_free(struct tok_bpe *b);

/* Appends the ids of word[0 .. len) to ids: the pair of lowest rank merges first, of equal ranks the leftmost, as
 * GPT-2's encoder does. Time O(len log len). Bytes that the vocabulary has no token for are left out, and nothing
 * merges across them. len is at most INT32_MAX. */
enum fwd_status tok_bpe_word(struct tok_bpe *b, const struct tok_vocab *v, const char *word, size_t len,
                             struct tok_ids *ids, struct fwd_error *err);

#endif
