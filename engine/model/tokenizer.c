/* The tokenizer's public face: opening, special tokens, encoding, decoding, ChatML. */
#include "model/tokenizer.h"

#include "core/memory.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_pre.h"
#include "model/tokenizer_vocab.h"

#include <inttypes.h>
#include <string.h>

#define MAX_TEXT ((size_t)1 << 28)

struct fwd_tokenizer {
    struct tok_vocab vocab;
    struct tok_pre *pre;
    const struct tok_pre_kind *kind;
    struct tok_bpe bpe;
    int32_t bos, eos, eot, unk, pad;
    bool add_bos;
    char *spelling; /* scratch for ignore_merges */
    size_t spelling_capacity;
};

/* ---- opening ----------------------------------------------------------------------------------------------------- */
static enum fwd_status get_string(const struct fwd_gguf *file, const char *key, const char **s, size_t *len,
                                  struct fwd_error *err) {
    FWD_FAIL_IF(!fwd_gguf_find_kv(file, key), FWD_EMISSING, err, "%s: the file has no key %s", fwd_gguf_path(file),
                key);
    FWD_FAIL_IF(!fwd_gguf_get_str(file, key, s, len), FWD_ECORRUPT, err, "%s: %s is not a string", fwd_gguf_path(file),
                key);
    return FWD_OK;
}

static enum fwd_status read_id(const struct fwd_tokenizer *t, const struct fwd_gguf *file, const char *key, int32_t *id,
                               struct fwd_error *err) {
    uint64_t value;
    if (!fwd_gguf_find_kv(file, key))
        return FWD_OK;
    FWD_FAIL_IF(!fwd_gguf_get_u64(file, key, &value) || value >= (uint64_t)t->vocab.n_tokens, FWD_ECORRUPT, err,
                "%s: %s is not a token id, expected 0 to %d", fwd_gguf_path(file), key, t->vocab.n_tokens - 1);
    *id = (int32_t)value;
    return FWD_OK;
}

static bool is_control(const struct fwd_tokenizer *t, int32_t id) {
    return t->vocab.type[id] == TOK_TYPE_CONTROL || t->vocab.type[id] == TOK_TYPE_UNKNOWN;
}

/* Files rarely name the end-of-turn token; it is found by its text, as llama.cpp does. */
static int32_t find_end_of_turn(const struct fwd_tokenizer *t) {
    static const char *const names[] = {"<|eot_id|>",    "<|im_end|>",      "<|end|>",
                                        "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = tok_vocab_find(&t->vocab, names[i], strlen(names[i]));
        if (id >= 0)
            return id;
    }
    return -1;
}

static enum fwd_status read_ids(struct fwd_tokenizer *t, const struct fwd_gguf *file, struct fwd_error *err) {
    t->bos = t->eos = t->eot = t->unk = t->pad = -1;
    FWD_TRY(read_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos, err));
    FWD_TRY(read_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos, err));
    FWD_TRY(read_id(t, file, "tokenizer.ggml.eot_token_id", &t->eot, err));
    FWD_TRY(read_id(t, file, "tokenizer.ggml.unknown_token_id", &t->unk, err));
    FWD_TRY(read_id(t, file, "tokenizer.ggml.padding_token_id", &t->pad, err));
    if (t->eot < 0)
        t->eot = find_end_of_turn(t);
    t->add_bos = t->kind->add_bos;
    const char *key = "tokenizer.ggml.add_bos_token";
    FWD_FAIL_IF(fwd_gguf_find_kv(file, key) && !fwd_gguf_get_bool(file, key, &t->add_bos), FWD_ECORRUPT, err,
                "%s: %s is not a bool", fwd_gguf_path(file), key);
    FWD_FAIL_IF(t->add_bos && t->bos < 0, FWD_EMISSING, err,
                "%s: a BOS token is to be added, and the file has no tokenizer.ggml.bos_token_id", fwd_gguf_path(file));
    return FWD_OK;
}

static enum fwd_status open_parts(struct fwd_tokenizer *t, const struct fwd_gguf *file, struct fwd_error *err) {
    const char *s;
    size_t len;
    FWD_TRY(get_string(file, "tokenizer.ggml.model", &s, &len, err));
    FWD_FAIL_IF(len != 4 || memcmp(s, "gpt2", 4), FWD_EUNSUPPORTED, err,
                "%s: tokenizer.ggml.model is '%.*s', expected 'gpt2' (byte-level BPE)", fwd_gguf_path(file),
                (int)(len < 64 ? len : 64), s);
    FWD_TRY(get_string(file, "tokenizer.ggml.pre", &s, &len, err));
    t->kind = tok_pre_find(s, len);
    FWD_FAIL_IF(!t->kind, FWD_EUNSUPPORTED, err,
                "%s: tokenizer.ggml.pre is '%.*s', expected qwen2, smollm, llama-bpe, gpt-2 or a name that means the "
                "same",
                fwd_gguf_path(file), (int)(len < 64 ? len : 64), s);
    FWD_TRY(tok_vocab_read(&t->vocab, file, err));
    FWD_TRY(read_ids(t, file, err));
    return tok_pre_open(&t->pre, t->kind, true, err);
}

enum fwd_status fwd_tokenizer_open(struct fwd_tokenizer **out, const struct fwd_gguf *file, struct fwd_error *err) {
    struct fwd_tokenizer *t = fwd_calloc(1, sizeof *t);
    FWD_FAIL_IF(!t, FWD_ENOMEM, err, "no memory for a tokenizer");
    enum fwd_status status = open_parts(t, file, err);
    if (status != FWD_OK) {
        fwd_tokenizer_close(t);
        return status;
    }
    *out = t;
    return FWD_OK;
}

void fwd_tokenizer_close(struct fwd_tokenizer *t) {
    if (!t)
        return;
    tok_vocab_free(&t->vocab);
    tok_pre_close(t->pre);
    tok_bpe_free(&t->bpe);
    fwd_free(t->spelling);
    fwd_free(t);
}

void fwd_tokenizer_info(const struct fwd_tokenizer *t, struct fwd_tokenizer_info *out) {
    *out = (struct fwd_tokenizer_info){.model = "gpt2",
                                       .pre = t->kind->name,
                                       .n_vocab = t->vocab.n_tokens,
                                       .n_merges = t->vocab.n_merges,
                                       .n_special = t->vocab.n_special,
                                       .n_missing_bytes = t->vocab.n_missing_bytes,
                                       .bos = t->bos,
                                       .eos = t->eos,
                                       .eot = t->eot,
                                       .unk = t->unk,
                                       .pad = t->pad,
                                       .add_bos = t->add_bos};
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */
struct encoding {
    struct fwd_tokenizer *t;
    struct tok_ids ids;
};

/* The token that is the whole word, for vocabularies whose pre-tokenizer says ignore_merges; -1: none. */
static enum fwd_status find_whole(struct fwd_tokenizer *t, const char *word, size_t len, int32_t *id,
                                  struct fwd_error *err) {
    *id = -1;
    if (2 * len > t->spelling_capacity) {
        fwd_free(t->spelling);
        t->spelling = fwd_alloc(4 * len, 1);
        t->spelling_capacity = t->spelling ? 4 * len : 0;
        FWD_FAIL_IF(!t->spelling, FWD_ENOMEM, err, "no memory to spell a word of %zu bytes", len);
    }
    *id = tok_vocab_find_bytes(&t->vocab, word, len, t->spelling);
    return FWD_OK;
}

static enum fwd_status encode_word(void *ud, const char *word, size_t len, struct fwd_error *err) {
    struct encoding *e = ud;
    int32_t id = -1;
    if (e->t->kind->ignore_merges)
        FWD_TRY(find_whole(e->t, word, len, &id, err));
    return id >= 0 ? tok_ids_push(&e->ids, id, err) : tok_bpe_word(&e->t->bpe, &e->t->vocab, word, len, &e->ids, err);
}

/* Special tokens come first, leftmost and then longest, and cut the text; what lies between is text of its own. */
static enum fwd_status encode_text(struct encoding *e, const char *text, size_t len, bool control,
                                   struct fwd_error *err) {
    const struct tok_vocab *v = &e->t->vocab;
    size_t start = 0;
    for (size_t i = 0; i < len;) {
        int32_t id = -1;
        if (v->special_first[(unsigned char)text[i]])
            id = tok_vocab_special_at(v, text + i, len - i, control);
        if (id < 0) {
            i++;
            continue;
        }
        FWD_TRY(tok_pre_split(e->t->pre, text + start, i - start, encode_word, e, err));
        FWD_TRY(tok_ids_push(&e->ids, id, err));
        start = i += v->text_end[id + 1] - v->text_end[id];
    }
    return tok_pre_split(e->t->pre, text + start, len - start, encode_word, e, err);
}

enum fwd_status fwd_tokenizer_encode(struct fwd_tokenizer *t, const char *text, size_t len, unsigned flags,
                                     int32_t **ids, size_t *n_ids, struct fwd_error *err) {
    FWD_FAIL_IF(len > MAX_TEXT, FWD_ERANGE, err, "the text has %zu bytes, expected at most %zu", len, MAX_TEXT);
    struct encoding e = {.t = t};
    enum fwd_status status = FWD_OK;
    /* Room for one id at least, so that *ids is a valid pointer for the empty text too. */
    e.ids.capacity = len / 4 + 16;
    e.ids.id = fwd_alloc(e.ids.capacity, sizeof *e.ids.id);
    FWD_FAIL_IF(!e.ids.id, FWD_ENOMEM, err, "no memory for the ids of %zu bytes", len);
    if ((flags & FWD_TOK_ADD_BOS) && t->add_bos)
        status = tok_ids_push(&e.ids, t->bos, err);
    if (status == FWD_OK)
        status = encode_text(&e, text, len, flags & FWD_TOK_PARSE_SPECIAL, err);
    if (status != FWD_OK) {
        fwd_free(e.ids.id);
        return status;
    }
    *ids = e.ids.id;
    *n_ids = e.ids.n;
    return FWD_OK;
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */
bool fwd_tokenizer_piece(const struct fwd_tokenizer *t, int32_t id, const char **bytes, size_t *len) {
    if (id < 0 || id >= t->vocab.n_tokens)
        return false;
    *bytes = t->vocab.bytes + t->vocab.bytes_end[id];
    *len = t->vocab.bytes_end[id + 1] - t->vocab.bytes_end[id];
    return true;
}

bool fwd_tokenizer_is_special(const struct fwd_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->vocab.n_tokens && is_control(t, id);
}

bool fwd_tokenizer_is_end(const struct fwd_tokenizer *t, int32_t id) {
    return id >= 0 && (id == t->eos || id == t->eot || fwd_tokenizer_is_special(t, id));
}

enum fwd_status fwd_tokenizer_decode(const struct fwd_tokenizer *t, const int32_t *ids, size_t n_ids, bool with_special,
                                     char **text, size_t *len, struct fwd_error *err) {
    const char *piece;
    size_t n_piece, total = 0, n = 0;
    for (size_t i = 0; i < n_ids; i++) {
        FWD_FAIL_IF(!fwd_tokenizer_piece(t, ids[i], &piece, &n_piece), FWD_ERANGE, err,
                    "token %zu is %d, expected 0 to %d", i, ids[i], t->vocab.n_tokens - 1);
        FWD_FAIL_IF(n_piece > SIZE_MAX - 1 - total, FWD_ERANGE, err, "the text of %zu tokens is too long", n_ids);
        total += n_piece;
    }
    char *out = fwd_alloc(total + 1, 1);
    FWD_FAIL_IF(!out, FWD_ENOMEM, err, "no memory for %zu bytes of text", total);
    for (size_t i = 0; i < n_ids; i++) {
        bool hidden = is_control(t, ids[i]) || t->vocab.type[ids[i]] == TOK_TYPE_UNUSED;
        if (hidden && !with_special)
            continue;
        (void)fwd_tokenizer_piece(t, ids[i], &piece, &n_piece);
        memcpy(out + n, piece, n_piece);
        n += n_piece;
    }
    out[n] = '\0';
    *text = out;
    *len = n;
    return FWD_OK;
}

/* ---- ChatML ------------------------------------------------------------------------------------------------------ */
#define TURN_OPEN "<|im_start|>"
#define TURN_CLOSE "<|im_end|>"

static bool has_marker(const struct fwd_tokenizer *t, const char *text) {
    int32_t id = tok_vocab_find(&t->vocab, text, strlen(text));
    return id >= 0 && (is_control(t, id) || t->vocab.type[id] == TOK_TYPE_USER_DEFINED);
}

enum fwd_status fwd_tokenizer_chatml(const struct fwd_tokenizer *t, const char *system, const char *user, char **text,
                                     size_t *len, struct fwd_error *err) {
    FWD_FAIL_IF(!has_marker(t, TURN_OPEN) || !has_marker(t, TURN_CLOSE), FWD_EUNSUPPORTED, err,
                "the vocabulary has no special tokens " TURN_OPEN " and " TURN_CLOSE ": no ChatML for this model");
    const char *parts[] = {TURN_OPEN "user\n", user, TURN_CLOSE "\n" TURN_OPEN "assistant\n"};
    const char *before[] = {TURN_OPEN "system\n", system, TURN_CLOSE "\n"};
    size_t total = 0, n = 0;
    for (size_t i = 0; i < 3; i++)
        total += strlen(parts[i]) + (system ? strlen(before[i]) : 0);
    char *out = fwd_alloc(total + 1, 1);
    FWD_FAIL_IF(!out, FWD_ENOMEM, err, "no memory for %zu bytes of text", total);
    for (size_t i = 0; i < 6; i++) {
        const char *part = i < 3 ? (system ? before[i] : "") : parts[i - 3];
        memcpy(out + n, part, strlen(part));
        n += strlen(part);
    }
    out[n] = '\0';
    *text = out;
    *len = n;
    return FWD_OK;
}
