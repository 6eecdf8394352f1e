#include "model/tokenizer_vocab.h"

#include "core/hash.h"
#include "core/memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES "tokenizer.ggml.token_type"
#define KEY_MERGES "tokenizer.ggml.merges"

/* More than any published vocabulary by a factor of 50, and small enough that every index fits 32 bits. */
#define MAX_TOKENS (1 << 24)
#define MAX_TEXT_BYTES (1u << 30)

/* ---- GPT-2's byte alphabet ---------------------------------------------------------------------------------------
 * Each byte is one printable letter: 0x21-0x7e, 0xa1-0xac and 0xae-0xff stand for themselves (as code points), the
 * other 68 bytes, in rising order, are U+0100 onwards. All letters take one or two bytes of UTF-8. */
static bool stands_for_itself(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

static unsigned byte_letter(unsigned byte) {
    if (stands_for_itself(byte))
        return byte;
    unsigned rank = 0;
    for (unsigned b = 0; b < byte; b++)
        rank += !stands_for_itself(b);
    return 0x100 + rank;
}

/* -1: not a letter of the alphabet. */
static int letter_byte(unsigned code_point) {
    if (code_point < 0x100)
        return stands_for_itself(code_point) ? (int)code_point : -1;
    unsigned rank = code_point - 0x100;
    for (unsigned b = 0; b < 256; b++)
        if (!stands_for_itself(b) && rank-- == 0)
            return (int)b;
    return -1;
}

static size_t put_letter(char *out, unsigned code_point) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    out[0] = (char)(0xc0 | code_point >> 6);
    out[1] = (char)(0x80 | (code_point & 0x3f));
    return 2;
}

struct alphabet {
    char spelling[256][2];
    uint8_t spelling_len[256];
    int16_t byte_of[0x144]; /* by code point */
};

static void fill_alphabet(struct alphabet *a) {
    for (unsigned b = 0; b < 256; b++)
        a->spelling_len[b] = (uint8_t)put_letter(a->spelling[b], byte_letter(b));
    for (unsigned c = 0; c < 0x144; c++)
        a->byte_of[c] = (int16_t)letter_byte(c);
}

/* Writes the bytes that a byte-level text spells; false when it is not one (nothing useful in out then). */
static bool spell_to_bytes(const struct alphabet *a, const char *text, size_t len, char *out, size_t *n_out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        unsigned c = (unsigned char)text[i++];
        if (c >= 0x80) {
            if ((c & 0xe0) != 0xc0 || i == len || ((unsigned char)text[i] & 0xc0) != 0x80)
                return false;
            c = (c & 0x1f) << 6 | ((unsigned char)text[i++] & 0x3f);
        }
        if (c >= 0x144 || a->byte_of[c] < 0)
            return false;
        out[n++] = (char)a->byte_of[c];
    }
    *n_out = n;
    return true;
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */
static uint32_t table_size(uint64_t n) {
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size;
}

static size_t text_len(const struct tok_vocab *v, int32_t id) {
    return v->text_end[id + 1] - v->text_end[id];
}

static const char *text_of(const struct tok_vocab *v, int32_t id) {
    return v->text + v->text_end[id];
}

static uint32_t slot_of(const struct tok_vocab *v, const char *text, size_t len) {
    uint32_t slot = (uint32_t)fwd_hash64(text, len) & v->slot_mask;
    for (;; slot = (slot + 1) & v->slot_mask) {
        int32_t id = v->slots[slot];
        if (id < 0 || (text_len(v, id) == len && !memcmp(text_of(v, id), text, len)))
            return slot;
    }
}

int32_t tok_vocab_find(const struct tok_vocab *v, const char *text, size_t len) {
    return v->slots[slot_of(v, text, len)];
}

static uint32_t pair_slot(const struct tok_vocab *v, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t slot = (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32) & v->pair_mask;
    while (v->pairs[slot].out >= 0 && (v->pairs[slot].left != left || v->pairs[slot].right != right))
        slot = (slot + 1) & v->pair_mask;
    return slot;
}

const struct tok_merge *tok_vocab_pair(const struct tok_vocab *v, int32_t left, int32_t right) {
    const struct tok_merge *pair = &v->pairs[pair_slot(v, left, right)];
    return pair->out < 0 ? NULL : pair;
}

int32_t tok_vocab_find_bytes(const struct tok_vocab *v, const char *bytes, size_t len, char *scratch) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t id = v->byte_id[(unsigned char)bytes[i]];
        if (id < 0)
            return -1;
        memcpy(scratch + n, text_of(v, id), text_len(v, id));
        n += text_len(v, id);
    }
    return tok_vocab_find(v, scratch, n);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */
static enum fwd_status find_array(const struct fwd_gguf *file, const char *key, enum fwd_kv_type item,
                                  const struct fwd_gguf_kv **out, struct fwd_error *err) {
    const struct fwd_gguf_kv *kv = fwd_gguf_find_kv(file, key);
    FWD_FAIL_IF(!kv, FWD_EMISSING, err, "%s: the file has no key %s", fwd_gguf_path(file), key);
    FWD_FAIL_IF(kv->type != FWD_KV_ARRAY || kv->item_type != item, FWD_ECORRUPT, err, "%s: %s is not an array of %s",
                fwd_gguf_path(file), key, item == FWD_KV_STRING ? "strings" : "i32");
    *out = kv;
    return FWD_OK;
}

static enum fwd_status read_types(struct tok_vocab *v, const struct fwd_gguf *file, struct fwd_error *err) {
    v->type = fwd_alloc((size_t)v->n_tokens, 1);
    FWD_FAIL_IF(!v->type, FWD_ENOMEM, err, "no memory for the types of %d tokens", v->n_tokens);
    memset(v->type, TOK_TYPE_NORMAL, (size_t)v->n_tokens);
    if (!fwd_gguf_find_kv(file, KEY_TYPES))
        return FWD_OK;
    const struct fwd_gguf_kv *kv;
    FWD_TRY(find_array(file, KEY_TYPES, FWD_KV_I32, &kv, err));
    FWD_FAIL_IF(kv->n_items != (uint64_t)v->n_tokens, FWD_ECORRUPT, err,
                "%s has %" PRIu64 " items, and there are %d tokens", KEY_TYPES, kv->n_items, v->n_tokens);
    for (int32_t i = 0; i < v->n_tokens; i++) {
        int64_t type;
        FWD_FAIL_IF(!fwd_gguf_item_i64(kv, (uint64_t)i, &type) || type < TOK_TYPE_NORMAL || type > TOK_TYPE_BYTE,
                    FWD_ECORRUPT, err, "%s[%d] is not a type from 1 to 6", KEY_TYPES, i);
        v->type[i] = (uint8_t)type;
    }
    return FWD_OK;
}

static enum fwd_status read_texts(struct tok_vocab *v, const struct fwd_gguf *file, struct fwd_error *err) {
    const struct fwd_gguf_kv *kv;
    FWD_TRY(find_array(file, KEY_TOKENS, FWD_KV_STRING, &kv, err));
    FWD_FAIL_IF(kv->n_items == 0 || kv->n_items > MAX_TOKENS || kv->n_bytes > MAX_TEXT_BYTES, FWD_ECORRUPT, err,
                "%s has %" PRIu64 " items in %" PRIu64 " bytes, expected 1 to %d items in at most %u bytes", KEY_TOKENS,
                kv->n_items, kv->n_bytes, MAX_TOKENS, MAX_TEXT_BYTES);
    v->n_tokens = (int32_t)kv->n_items;
    v->text = fwd_alloc((size_t)kv->n_bytes, 1);
    v->text_end = fwd_alloc((size_t)v->n_tokens + 1, sizeof *v->text_end);
    uint32_t n_slots = table_size(kv->n_items);
    v->slots = fwd_alloc(n_slots, sizeof *v->slots);
    FWD_FAIL_IF(!v->text || !v->text_end || !v->slots, FWD_ENOMEM, err, "no memory for %d tokens", v->n_tokens);
    memset(v->slots, 0xff, n_slots * sizeof *v->slots);
    v->slot_mask = n_slots - 1;
    v->text_end[0] = 0;
    uint64_t cursor = 0;
    for (int32_t i = 0; i < v->n_tokens; i++) {
        const char *s;
        size_t len;
        FWD_FAIL_IF(!fwd_gguf_next_str(kv, &cursor, &s, &len), FWD_ECORRUPT, err, "%s[%d] cannot be read", KEY_TOKENS,
                    i);
        FWD_FAIL_IF(len == 0, FWD_ECORRUPT, err, "%s[%d] is empty", KEY_TOKENS, i);
        FWD_FAIL_IF(len > kv->n_bytes - v->text_end[i], FWD_ECORRUPT, err, "%s[%d] is longer than the array",
                    KEY_TOKENS, i);
        memcpy(v->text + v->text_end[i], s, len);
        v->text_end[i + 1] = v->text_end[i] + (uint32_t)len;
        uint32_t slot = slot_of(v, s, len);
        FWD_FAIL_IF(v->slots[slot] >= 0, FWD_ECORRUPT, err, "%s[%d] and [%d] are the same text, '%.*s'", KEY_TOKENS,
                    v->slots[slot], i, (int)(len < 64 ? len : 64), s);
        v->slots[slot] = i;
    }
    return FWD_OK;
}

/* The bytes of every token, and the tokens of single bytes. Control, user-defined, unknown and unused tokens stand for
 * their own text; so does a normal token that is not spelt in the byte alphabet (an added token of an old file). */
static enum fwd_status make_bytes(struct tok_vocab *v, struct fwd_error *err) {
    struct alphabet a;
    fill_alphabet(&a);
    v->bytes = fwd_alloc(v->text_end[v->n_tokens], 1);
    v->bytes_end = fwd_alloc((size_t)v->n_tokens + 1, sizeof *v->bytes_end);
    FWD_FAIL_IF(!v->bytes || !v->bytes_end, FWD_ENOMEM, err, "no memory for the bytes of %d tokens", v->n_tokens);
    v->bytes_end[0] = 0;
    for (int32_t i = 0; i < v->n_tokens; i++) {
        char *out = v->bytes + v->bytes_end[i];
        size_t n;
        if (v->type[i] != TOK_TYPE_NORMAL || !spell_to_bytes(&a, text_of(v, i), text_len(v, i), out, &n)) {
            n = text_len(v, i);
            memcpy(out, text_of(v, i), n);
        }
        v->bytes_end[i + 1] = v->bytes_end[i] + (uint32_t)n;
    }
    for (unsigned b = 0; b < 256; b++) {
        v->byte_id[b] = tok_vocab_find(v, a.spelling[b], a.spelling_len[b]);
        v->n_missing_bytes += v->byte_id[b] < 0;
    }
    FWD_FAIL_IF(v->n_missing_bytes == 256, FWD_ECORRUPT, err,
                "%s has no token for any single byte: not a byte-level vocabulary", KEY_TOKENS);
    return FWD_OK;
}

static enum fwd_status read_merge(struct tok_vocab *v, int32_t line, const char *s, size_t len, char *joined,
                                  struct fwd_error *err) {
    int shown = (int)(len < 64 ? len : 64);
    const char *space = len > 1 ? memchr(s + 1, ' ', len - 1) : NULL;
    FWD_FAIL_IF(!space || space + 1 == s + len, FWD_ECORRUPT, err,
                "%s[%d] is '%.*s', expected two tokens with a space between", KEY_MERGES, line, shown, s);
    size_t n_left = (size_t)(space - s), n_right = len - n_left - 1;
    memcpy(joined, s, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    struct tok_merge m = {.left = tok_vocab_find(v, s, n_left),
                          .right = tok_vocab_find(v, space + 1, n_right),
                          .rank = line,
                          .out = tok_vocab_find(v, joined, n_left + n_right)};
    FWD_FAIL_IF(m.left < 0 || m.right < 0 || m.out < 0, FWD_ECORRUPT, err,
                "%s[%d] is '%.*s', and its %s is not in the vocabulary", KEY_MERGES, line, shown, s,
                m.left < 0    ? "left half"
                : m.right < 0 ? "right half"
                              : "result");
    uint32_t slot = pair_slot(v, m.left, m.right);
    if (v->pairs[slot].out < 0) /* of equal lines the first one counts */
        v->pairs[slot] = m;
    return FWD_OK;
}

static enum fwd_status read_merges(struct tok_vocab *v, const struct fwd_gguf *file, struct fwd_error *err) {
    const struct fwd_gguf_kv *kv;
    FWD_TRY(find_array(file, KEY_MERGES, FWD_KV_STRING, &kv, err));
    FWD_FAIL_IF(kv->n_items > MAX_TOKENS || kv->n_bytes > MAX_TEXT_BYTES, FWD_ECORRUPT, err,
                "%s has %" PRIu64 " items in %" PRIu64 " bytes, expected at most %d items in %u bytes", KEY_MERGES,
                kv->n_items, kv->n_bytes, MAX_TOKENS, MAX_TEXT_BYTES);
    uint32_t n_slots = table_size(kv->n_items);
    v->pairs = fwd_alloc(n_slots, sizeof *v->pairs);
    char *joined = fwd_alloc((size_t)kv->n_bytes, 1); /* no string is longer than the array */
    if (!v->pairs || !joined) {
        fwd_free(joined);
        FWD_FAIL(FWD_ENOMEM, err, "no memory for %" PRIu64 " merges", kv->n_items);
    }
    for (uint32_t i = 0; i < n_slots; i++)
        v->pairs[i].out = -1;
    v->pair_mask = n_slots - 1;
    v->n_merges = (int32_t)kv->n_items;
    uint64_t cursor = 0;
    enum fwd_status status = FWD_OK;
    for (int32_t line = 0; line < v->n_merges && status == FWD_OK; line++) {
        const char *s;
        size_t len;
        if (!fwd_gguf_next_str(kv, &cursor, &s, &len) || len > kv->n_bytes)
            status = fwd_fail(err, FWD_ECORRUPT, __FILE__, __LINE__, "%s[%d] cannot be read", KEY_MERGES, line);
        else
            status = read_merge(v, line, s, len, joined, err);
    }
    fwd_free(joined);
    return status;
}

/* ---- special tokens ---------------------------------------------------------------------------------------------- */
struct special {
    const char *text;
    size_t len;
    int32_t id;
};

static int compare_special(const void *pa, const void *pb) {
    const struct special *a = pa, *b = pb;
    int order = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);
    return order ? order : (a->len > b->len) - (a->len < b->len);
}

static bool is_marked(uint8_t type) {
    return type == TOK_TYPE_CONTROL || type == TOK_TYPE_USER_DEFINED || type == TOK_TYPE_UNKNOWN;
}

static enum fwd_status sort_specials(struct tok_vocab *v, struct fwd_error *err) {
    for (int32_t i = 0; i < v->n_tokens; i++)
        v->n_special += is_marked(v->type[i]);
    struct special *list = fwd_alloc((size_t)v->n_special, sizeof *list);
    v->special = fwd_alloc((size_t)v->n_special, sizeof *v->special);
    if (!list || !v->special) {
        fwd_free(list);
        FWD_FAIL(FWD_ENOMEM, err, "no memory for %d special tokens", v->n_special);
    }
    int32_t n = 0;
    for (int32_t i = 0; i < v->n_tokens; i++)
        if (is_marked(v->type[i])) {
            list[n++] = (struct special){text_of(v, i), text_len(v, i), i};
            v->special_first[(unsigned char)*text_of(v, i)] = true;
        }
    qsort(list, (size_t)n, sizeof *list, compare_special);
    for (int32_t i = 0; i < n; i++)
        v->special[i] = list[i].id;
    fwd_free(list);
    return FWD_OK;
}

/* The first special token from lo on, below hi, whose byte at `depth` is >= byte. A text that ends before depth sorts
 * first and counts as smaller. */
static int32_t lower_bound(const struct tok_vocab *v, int32_t lo, int32_t hi, size_t depth, unsigned byte) {
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2, id = v->special[mid];
        if (text_len(v, id) <= depth || (unsigned char)text_of(v, id)[depth] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int32_t tok_vocab_special_at(const struct tok_vocab *v, const char *text, size_t len, bool control) {
    int32_t lo = 0, hi = v->n_special, found = -1;
    for (size_t depth = 0; depth < len && lo < hi; depth++) {
        unsigned byte = (unsigned char)text[depth];
        lo = lower_bound(v, lo, hi, depth, byte);
        hi = lower_bound(v, lo, hi, depth, byte + 1);
        /* Texts differ, so at most one ends here, and it is the first of those that share this beginning. */
        if (lo < hi && text_len(v, v->special[lo]) == depth + 1 &&
            (control || v->type[v->special[lo]] == TOK_TYPE_USER_DEFINED))
            found = v->special[lo];
    }
    return found;
}

enum fwd_status tok_vocab_read(struct tok_vocab *v, const struct fwd_gguf *file, struct fwd_error *err) {
    memset(v, 0, sizeof *v);
    FWD_TRY(read_texts(v, file, err));
    FWD_TRY(read_types(v, file, err));
    FWD_TRY(make_bytes(v, err));
    FWD_TRY(read_merges(v, file, err));
    return sort_specials(v, err);
}

void tok_vocab_free(struct tok_vocab *v) {
    fwd_free(v->text);
    fwd_free(v->text_end);
    fwd_free(v->bytes);
    fwd_free(v->bytes_end);
    fwd_free(v->type);
    fwd_free(v->slots);
    fwd_free(v->pairs);
    fwd_free(v->special);
    memset(v, 0, sizeof *v);
}
