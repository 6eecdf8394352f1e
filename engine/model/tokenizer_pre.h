/* engine/model/tokenizer_pre.h: cutting text into the words that merges do not cross. Private to engine/model.
 *
 * The patterns are those that the models' own tokenizer.json files publish, run by PCRE2 in UTF mode with Unicode
 * properties. A pre-tokenizer is one or two patterns: the second one sees each piece of the first as a text of its own,
 * so that a look-ahead ends at the piece's end. */
#ifndef ENGINE_MODEL_TOKENIZER_PRE_H
#define ENGINE_MODEL_TOKENIZER_PRE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

#define TOK_PRE_STAGES 2

/* How a tokenizer.ggml.pre name is read: llama.cpp's mapping of names to patterns and flags. */
struct tok_pre_kind {
    const char *name;
    const char *pattern[TOK_PRE_STAGES]; /* NULL: no second one */
    bool ignore_merges;                  /* a word that is a token as a whole is that token, merges or not */
    bool add_bos;                        /* unless tokenizer.ggml.add_bos_token says otherwise */
};
/* Row i, NULL past the end. */
const struct tok_pre_kind *tok_pre_kind(size_t i);
const struct tok_pre_kind *tok_pre_find(const char *name, size_t len);

struct tok_pre;

/* use_jit false: PCRE2's interpreter even where its compiler works (same words, slower). */
enum fwd_status tok_pre_open(struct tok_pre **out, const struct tok_pre_kind *kind, bool use_jit,
                             struct fwd_error *err);
void tok_pre_close(struct tok_pre *p);

typedef enum fwd_status tok_word_fn(void *ud, const char *word, size_t len, struct fwd_error *err);

/* Calls fn with the words of text in order; together they are the text, as repaired.
 *
 * Bytes that are not UTF-8 are read as llama.cpp reads them: a sequence with the right shape keeps its code point even
 * if it is overlong or a surrogate (so C0 80 becomes one NUL, and ED A0 80 stays as it is); each byte that starts no
 * such sequence becomes U+FFFD. Above U+10FFFF, where llama.cpp aborts, each byte becomes U+FFFD too. There is no
 * Unicode normalisation. */
enum fwd_status tok_pre_split(struct tok_pre *p, const char *text, size_t len, tok_word_fn *fn, void *ud,
                              struct fwd_error *err);

#endif
