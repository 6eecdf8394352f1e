/* engine/test/fuzz_tokenizer.c: two things from one input. A file that starts with "GGUF" is a vocabulary, opened or
 * refused, and used on a fixed text. Anything else is text for a made vocabulary: the first byte picks the
 * pre-tokenizer and the flags. What was encoded must decode; valid text must come back whole and give the same ids
 * again; PCRE2's compiled and interpreted patterns must cut it alike. */
#include "core/memory.h"
#include "format/gguf.h"
#include "model/tokenizer.h"
#include "model/tokenizer_pre.h"
#include "model/tokenizer_utf8.h"
#include "test/made_vocab.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
    if (!condition)
        abort();
}

static bool is_utf8(const char *text, size_t len) {
    char again[4];
    uint32_t c;
    for (size_t i = 0, n; i < len; i += n) {
        n = tok_utf8_read(text + i, len - i, &c);
        if (tok_utf8_write(again, c) != n || memcmp(again, text + i, n) != 0 || (c >= 0xd800 && c <= 0xdfff))
            return false;
    }
    return true;
}

static void use(struct fwd_tokenizer *t, const char *text, size_t len, unsigned flags, bool whole) {
    int32_t *ids, *again;
    size_t n, n_back, n_again;
    char *back;
    struct fwd_error err = {0};
    require(fwd_tokenizer_encode(t, text, len, flags, &ids, &n, &err) == FWD_OK);
    require(fwd_tokenizer_decode(t, ids, n, true, &back, &n_back, &err) == FWD_OK);
    if (whole && is_utf8(text, len)) {
        require(n_back == len && !memcmp(back, text, len));
        require(fwd_tokenizer_encode(t, back, n_back, flags, &again, &n_again, &err) == FWD_OK);
        require(n_again == n && !memcmp(again, ids, n * sizeof *ids));
        fwd_free(again);
    }
    for (size_t i = 0; i < n; i++)
        (void)(fwd_tokenizer_is_end(t, ids[i]) || fwd_tokenizer_is_special(t, ids[i]));
    fwd_free(back);
    fwd_free(ids);
}

static struct fwd_tokenizer *open_bytes(const uint8_t *data, size_t size, struct fwd_error *err) {
    struct fwd_gguf *file;
    struct fwd_tokenizer *t = NULL;
    if (fwd_gguf_parse(&file, data, size, err) != FWD_OK)
        return NULL;
    if (fwd_tokenizer_open(&t, file, err) != FWD_OK)
        require(err->message[0] && err->code != FWD_ENOMEM);
    fwd_gguf_close(file);
    return t;
}

static void use_vocabulary(const uint8_t *data, size_t size) {
    static const char text[] = "hello <|im_start|>world\n\n  aaaa 'S 1234 \xe4\xb8\xad\xff\x00<tool>";
    struct fwd_error err = {0};
    struct fwd_tokenizer *t = open_bytes(data, size, &err);
    if (!t)
        return;
    use(t, text, sizeof text - 1, FWD_TOK_ADD_BOS | FWD_TOK_PARSE_SPECIAL, false);
    use(t, text, sizeof text - 1, 0, false);
    char *chat;
    size_t len;
    if (fwd_tokenizer_chatml(t, "a", "b", &chat, &len, &err) == FWD_OK)
        fwd_free(chat);
    fwd_tokenizer_close(t);
}

/* A running hash of the word ends, so that two runs compare without storing them. */
struct ends {
    uint64_t at, hash;
};

static enum fwd_status note_end(void *ud, const char *word, size_t len, struct fwd_error *err) {
    struct ends *e = ud;
    (void)word;
    (void)err;
    e->at += len;
    e->hash = (e->hash ^ e->at) * 0x9e3779b97f4a7c15u;
    return FWD_OK;
}

static const char *const pre_names[4] = {"gpt-2", "smollm", "qwen2", "llama-bpe"};

static void compare_engines(const char *pre_name, const char *text, size_t len) {
    const struct tok_pre_kind *kind = tok_pre_find(pre_name, strlen(pre_name));
    struct ends ends[2] = {{0, 0}, {0, 0}};
    for (int jit = 0; jit < 2; jit++) {
        struct tok_pre *p;
        require(tok_pre_open(&p, kind, jit, NULL) == FWD_OK);
        require(tok_pre_split(p, text, len, note_end, &ends[jit], NULL) == FWD_OK);
        tok_pre_close(p);
    }
    require(ends[0].at == ends[1].at && ends[0].hash == ends[1].hash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 4 && !memcmp(data, "GGUF", 4)) {
        use_vocabulary(data, size);
        return 0;
    }
    if (size == 0)
        return 0;
    const char *pre = pre_names[data[0] & 3];
    size_t n_bytes;
    uint8_t *vocab = make_vocab(&(struct made_vocab){.pre = pre}, &n_bytes);
    struct fwd_error err = {0};
    struct fwd_tokenizer *t = open_bytes(vocab, n_bytes, &err);
    require(t != NULL);
    use(t, (const char *)data + 1, size - 1, data[0] & 4 ? FWD_TOK_PARSE_SPECIAL : 0, true);
    fwd_tokenizer_close(t);
    free(vocab);
    compare_engines(pre, (const char *)data + 1, size - 1);
    return 0;
}
