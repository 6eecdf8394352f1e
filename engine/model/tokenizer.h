/* engine/model/tokenizer.h: GPT-2 byte-level BPE as the model file describes it, pre-tokenized through PCRE2.
 * Ids are made once, here, and shared by all paths. Not thread-safe per object (PCRE2 match data inside). */
#ifndef ENGINE_MODEL_TOKENIZER_H
#define ENGINE_MODEL_TOKENIZER_H

#include "core/status.h"
#include "format/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fwd_tokenizer;

/* Reads tokenizer.ggml.*; FWD_EUNSUPPORTED names a tokenizer model or pre-tokenizer that is not known. */
enum fwd_status fwd_tokenizer_open(struct fwd_tokenizer **out, const struct fwd_gguf *file, struct fwd_error *err);
void fwd_tokenizer_close(struct fwd_tokenizer *t);

struct fwd_tokenizer_info {
    const char *model; /* "gpt2" */
    const char *pre;   /* "qwen2" */
    int64_t n_vocab, n_merges, n_special;
    int n_missing_bytes; /* bytes that no token stands for: encoding leaves them out, as the models' own code does */
    int32_t bos, eos, eot, unk, pad; /* -1: none */
    bool add_bos;
};
void fwd_tokenizer_info(const struct fwd_tokenizer *t, struct fwd_tokenizer_info *out);

enum { FWD_TOK_ADD_BOS = 1, FWD_TOK_PARSE_SPECIAL = 2 };
/* text: any bytes, len of them (at most 2^28). *ids is allocated (fwd_free). FWD_TOK_ADD_BOS prepends BOS when the file
 * asks for it; FWD_TOK_PARSE_SPECIAL turns the text of control tokens into their ids (that of user-defined tokens
 * always is), leftmost and then longest first. There is no Unicode normalisation: like llama.cpp, and unlike Qwen2's
 * own tokenizer.json, which brings text to NFC first; text that is NFC gives the same ids in all three. Bytes that are
 * not UTF-8 become U+FFFD as in llama.cpp (model/tokenizer_pre.h). */
enum fwd_status fwd_tokenizer_encode(struct fwd_tokenizer *t, const char *text, size_t len, unsigned flags,
                                     int32_t **ids, size_t *n_ids, struct fwd_error *err);
/* The bytes of one token, not NUL-terminated; false for an id out of range. Special tokens give their text. */
bool fwd_tokenizer_piece(const struct fwd_tokenizer *t, int32_t id, const char **bytes, size_t *len);
/* True for control tokens and end-of-text ones: a greedy text ends here. */
bool fwd_tokenizer_is_end(const struct fwd_tokenizer *t, int32_t id);
bool fwd_tokenizer_is_special(const struct fwd_tokenizer *t, int32_t id);
/* ids -> bytes (*text allocated, NUL-terminated, *len without the NUL); special tokens are left out unless asked for.
 */
enum fwd_status fwd_tokenizer_decode(const struct fwd_tokenizer *t, const int32_t *ids, size_t n_ids, bool with_special,
                                     char **text, size_t *len, struct fwd_error *err);
/* The ChatML text of one user turn (no system turn unless `system` is given), ending with the assistant's opening:
 * "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n". FWD_EUNSUPPORTED when the vocabulary lacks the markers.
 */
enum fwd_status fwd_tokenizer_chatml(const struct fwd_tokenizer *t, const char *system, const char *user, char **text,
                                     size_t *len, struct fwd_error *err);

#endif
