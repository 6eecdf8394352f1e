/* The tokenizer against what other people's code says: golden ids of Hugging Face tokenizers and llama.cpp on two
 * published vocabularies (fixtures/tokenizer, see its generator), golden word boundaries of four pre-tokenizers; then
 * laws (decode undoes encode), bad vocabularies and hostile text. */
#include "core/memory.h"
#include "format/gguf.h"
#include "model/tokenizer.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_pre.h"
#include "model/tokenizer_vocab.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define FOLDER "fixtures/tokenizer/"
#define LINE_BYTES 65536

/* ---- fixtures ---------------------------------------------------------------------------------------------------- */
static char *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s cannot be opened: tests run from the repository root", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    ck_assert_int_gt(size, 0);
    rewind(f);
    char *data = fwd_alloc((size_t)size + 1, 1);
    ck_assert_ptr_nonnull(data);
    ck_assert_uint_eq(fread(data, 1, (size_t)size, f), (size_t)size);
    (void)fclose(f);
    data[size] = '\0';
    *len = (size_t)size;
    return data;
}

/* A vocabulary-only model file, unpacked; *data owns the bytes. */
static struct fwd_tokenizer *open_vocab(const char *path, char **data) {
    size_t packed_len;
    char *packed = read_file(path, &packed_len);
    unsigned long long size = ZSTD_getFrameContentSize(packed, packed_len);
    ck_assert_msg(size < 1u << 26, "%s: not a zstd frame that states its size", path);
    *data = fwd_alloc((size_t)size, 1);
    ck_assert_ptr_nonnull(*data);
    size_t n = ZSTD_decompress(*data, (size_t)size, packed, packed_len);
    ck_assert_msg(!ZSTD_isError(n), "%s: %s", path, ZSTD_getErrorName(n));
    fwd_free(packed);
    struct fwd_gguf *file;
    struct fwd_tokenizer *t;
    struct fwd_error err = {0};
    ck_assert_msg(fwd_gguf_parse(&file, *data, n, &err) == FWD_OK, "%s: %s", path, err.message);
    ck_assert_msg(fwd_tokenizer_open(&t, file, &err) == FWD_OK, "%s: %s", path, err.message);
    fwd_gguf_close(file);
    return t;
}

static size_t from_hex(const char *hex, size_t n_digits, char *out) {
    for (size_t i = 0; i < n_digits / 2; i++) {
        unsigned byte;
        ck_assert_int_eq(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    return n_digits / 2;
}

/* Cuts a line at its tabs, in place; returns the number of fields. */
static int cut_fields(char *line, char **field, int most) {
    int n = 0;
    for (char *p = line; p && n < most; n++) {
        field[n] = p;
        p = strchr(p, '\t');
        if (p)
            *p++ = '\0';
    }
    return n;
}

static size_t parse_numbers(const char *text, int32_t *out, size_t most) {
    size_t n = 0;
    for (char *end; *text; text = end) {
        long value = strtol(text, &end, 10);
        if (end == text)
            break;
        ck_assert_uint_lt(n, most);
        out[n++] = (int32_t)value;
    }
    return n;
}

/* ---- golden ids -------------------------------------------------------------------------------------------------- */
struct golden {
    const char *vocab, *ids;
    int n_lines;
    const char *pre;
};
static const struct golden goldens[] = {
    {FOLDER "smollm2.gguf.zst", FOLDER "smollm2.txt", 2850, "smollm"},
    {FOLDER "qwen2.gguf.zst", FOLDER "qwen2.txt", 2700, "qwen2"},
};

static bool is_utf8_class(const char *name) {
    return strcmp(name, "invalid") && strcmp(name, "overlong") && strcmp(name, "missing-bytes");
}

static void check_golden_line(struct fwd_tokenizer *t, const char *path, int number, char *line) {
    static char bytes[LINE_BYTES];
    static int32_t want[LINE_BYTES];
    char *field[4];
    ck_assert_msg(cut_fields(line, field, 4) == 4, "%s:%d: expected four fields", path, number);
    size_t len = from_hex(field[2], strlen(field[2]), bytes);
    size_t n_want = parse_numbers(field[3], want, LINE_BYTES), n;
    int32_t *ids;
    struct fwd_error err = {0};
    unsigned flags = field[1][0] == 'p' ? FWD_TOK_PARSE_SPECIAL : 0;
    ck_assert_msg(fwd_tokenizer_encode(t, bytes, len, flags, &ids, &n, &err) == FWD_OK, "%s:%d: %s", path, number,
                  err.message);
    for (size_t i = 0; i < n && i < n_want; i++)
        ck_assert_msg(ids[i] == want[i], "%s:%d (%s): id %zu is %d, expected %d", path, number, field[0], i, ids[i],
                      want[i]);
    ck_assert_msg(n == n_want, "%s:%d (%s): %zu ids, expected %zu", path, number, field[0], n, n_want);
    char *text;
    size_t text_len;
    ck_assert_int_eq(fwd_tokenizer_decode(t, ids, n, true, &text, &text_len, &err), FWD_OK);
    if (is_utf8_class(field[0]))
        ck_assert_msg(text_len == len && !memcmp(text, bytes, len), "%s:%d (%s): decode does not undo encode", path,
                      number, field[0]);
    fwd_free(text);
    fwd_free(ids);
}

START_TEST(golden_ids_match) {
    const struct golden *g = &goldens[_i];
    char *data;
    size_t len;
    struct fwd_tokenizer *t = open_vocab(g->vocab, &data);
    struct fwd_tokenizer_info info;
    fwd_tokenizer_info(t, &info);
    ck_assert_str_eq(info.pre, g->pre);
    char *text = read_file(g->ids, &len);
    int number = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        ck_assert_ptr_nonnull(end);
        *end = '\0';
        check_golden_line(t, g->ids, ++number, line);
    }
    ck_assert_int_eq(number, g->n_lines);
    fwd_free(text);
    fwd_tokenizer_close(t);
    fwd_free(data);
}
END_TEST

/* ---- golden splits ----------------------------------------------------------------------------------------------- */
struct lengths {
    int32_t at[LINE_BYTES];
    size_t n;
};

static enum fwd_status note_length(void *ud, const char *word, size_t len, struct fwd_error *err) {
    (void)word;
    (void)err;
    struct lengths *l = ud;
    l->at[l->n++] = (int32_t)len;
    return FWD_OK;
}

START_TEST(golden_splits_match) {
    bool use_jit = _i;
    size_t len;
    char *text = read_file(FOLDER "splits.txt", &len);
    static char bytes[LINE_BYTES];
    static int32_t want[LINE_BYTES];
    static struct lengths got;
    struct tok_pre *pre = NULL;
    char open_name[32] = "";
    int number = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        ck_assert_ptr_nonnull(end);
        *end = '\0';
        char *field[3];
        ck_assert_int_eq(cut_fields(line, field, 3), 3);
        if (strcmp(field[0], open_name)) {
            tok_pre_close(pre);
            const struct tok_pre_kind *kind = tok_pre_find(field[0], strlen(field[0]));
            ck_assert_ptr_nonnull(kind);
            ck_assert_int_eq(tok_pre_open(&pre, kind, use_jit, NULL), FWD_OK);
            (void)snprintf(open_name, sizeof open_name, "%s", field[0]);
        }
        size_t n_bytes = from_hex(field[1], strlen(field[1]), bytes),
               n_want = parse_numbers(field[2], want, LINE_BYTES);
        got.n = 0;
        number++;
        ck_assert_int_eq(tok_pre_split(pre, bytes, n_bytes, note_length, &got, NULL), FWD_OK);
        ck_assert_msg(got.n == n_want && !memcmp(got.at, want, n_want * sizeof *want),
                      "splits.txt:%d: %s makes %zu words of %s, expected %zu: %s", number, field[0], got.n, field[1],
                      n_want, field[2]);
    }
    ck_assert_int_eq(number, 4 * 400);
    tok_pre_close(pre);
    fwd_free(text);
}
END_TEST

static Suite *tokenizer_suite(void) {
    Suite *s = suite_create("tokenizer");
    TCase *golden = tcase_create("golden");
    tcase_set_timeout(golden, 120);
    tcase_add_loop_test(golden, golden_ids_match, 0, (int)(sizeof goldens / sizeof *goldens));
    tcase_add_loop_test(golden, golden_splits_match, 0, 2);
    suite_add_tcase(s, golden);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(tokenizer_suite());
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner), run = srunner_ntests_run(runner);
    srunner_free(runner);
    return failed ? 1 : run ? 0 : 3;
}
