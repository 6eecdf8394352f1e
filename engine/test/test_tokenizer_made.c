/* The tokenizer on vocabularies made for the purpose: what each key of the file does, files that must be refused, text
 * that is meant to hurt, round trips, and memory that runs out. The golden ids are in test_tokenizer.c. */
#include "core/memory.h"
#include "format/gguf.h"
#include "model/tokenizer.h"
#include "test/made_vocab.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory that runs out: the linker sends posix_memalign here ---------------------------------------------------
 */
int __real_posix_memalign(void **p, size_t align, size_t n);
int __wrap_posix_memalign(void **p, size_t align, size_t n);
static int fail_at = -1;

int __wrap_posix_memalign(void **p, size_t align, size_t n) {
    if (fail_at >= 0 && fail_at-- == 0)
        return 12;
    return __real_posix_memalign(p, align, n);
}

/* ---- helpers ----------------------------------------------------------------------------------------------------- */
static enum fwd_status try_open(const struct made_vocab *m, struct fwd_tokenizer **t, struct fwd_error *err) {
    size_t n;
    uint8_t *bytes = make_vocab(m, &n);
    struct fwd_gguf *file;
    ck_assert_int_eq(fwd_gguf_parse(&file, bytes, n, err), FWD_OK);
    enum fwd_status status = fwd_tokenizer_open(t, file, err);
    fwd_gguf_close(file); /* the tokenizer keeps nothing of the file */
    memset(bytes, 0xee, n);
    free(bytes);
    return status;
}

static struct fwd_tokenizer *open_made(const struct made_vocab *m) {
    struct fwd_tokenizer *t;
    struct fwd_error err = {0};
    ck_assert_msg(try_open(m, &t, &err) == FWD_OK, "%s", err.message);
    return t;
}

static void expect_ids(struct fwd_tokenizer *t, const char *text, size_t len, unsigned flags, const int32_t *want,
                       size_t n_want) {
    int32_t *ids;
    size_t n;
    struct fwd_error err = {0};
    ck_assert_msg(fwd_tokenizer_encode(t, text, len, flags, &ids, &n, &err) == FWD_OK, "%s", err.message);
    for (size_t i = 0; i < n && i < n_want; i++)
        ck_assert_msg(ids[i] == want[i], "'%s': id %zu is %d, expected %d", text, i, ids[i], want[i]);
    ck_assert_msg(n == n_want, "'%s': %zu ids, expected %zu", text, n, n_want);
    fwd_free(ids);
}
#define EXPECT(t, text, flags, ...)                                                                                    \
    expect_ids((t), (text), sizeof(text) - 1, (flags), (const int32_t[]){__VA_ARGS__},                                 \
               sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* ---- what the keys do -------------------------------------------------------------------------------------------- */
START_TEST(merges_go_by_rank) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){0});
    EXPECT(t, "hello", 0, MADE_HELLO);
    EXPECT(t, "hell", 0, MADE_HELL);
    EXPECT(t, "hel", 0, MADE_HE, 'l');
    EXPECT(t, "lll", 0, MADE_LL, 'l'); /* of equal ranks the leftmost */
    EXPECT(t, "aaaaaaa", 0, MADE_AAAA, MADE_AA, 'a');
    EXPECT(t, "hello world", 0, MADE_HELLO, MADE_SPACE_W, 'o', 'r', 'l', 'd');
    EXPECT(t, "\xff\xc3\xa9", 0, 0xef, 0xbf, 0xbd, 0xc3, 0xa9);
    EXPECT(t, "\xf7\xbf\xbf\xbf", 0, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    EXPECT(t, "\xc0\x80", 0, 0);
    expect_ids(t, "", 0, FWD_TOK_ADD_BOS | FWD_TOK_PARSE_SPECIAL, NULL, 0);
    EXPECT(t, "a\0b", 0, 'a', 0, 'b');
    fwd_tokenizer_close(t);
}
END_TEST

START_TEST(special_tokens_are_longest_and_typed) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){0});
    unsigned parse = FWD_TOK_PARSE_SPECIAL;
    EXPECT(t, "<|im_start|>a", parse, MADE_IM_START, 'a');
    EXPECT(t, "<|im_start|", parse, MADE_IM, '_', 's', 't', 'a', 'r', 't', '|');
    EXPECT(t, "<<|im<|im_end|>", parse, '<', MADE_IM, MADE_IM_END);
    EXPECT(t, "<|i", parse, '<', '|', 'i');
    EXPECT(t, "<|im", 0, '<', '|', 'i', 'm');
    EXPECT(t, "<tool>", 0, MADE_TOOL); /* a user-defined token is text's own, parsed or not */
    EXPECT(t, "[UNUSED]", parse, '[', 'U', 'N', 'U', 'S', 'E', 'D', ']');
    /* a special token ends the word: no merge across it, and a look-ahead does not see it */
    EXPECT(t, "he<tool>llo", 0, MADE_HE, MADE_TOOL, MADE_LL, 'o');
    ck_assert(fwd_tokenizer_is_special(t, MADE_IM_END) && fwd_tokenizer_is_end(t, MADE_IM_END));
    ck_assert(!fwd_tokenizer_is_special(t, MADE_TOOL) && !fwd_tokenizer_is_end(t, MADE_TOOL));
    ck_assert(!fwd_tokenizer_is_special(t, -1) && !fwd_tokenizer_is_end(t, -1));
    ck_assert(!fwd_tokenizer_is_special(t, MADE_END) && !fwd_tokenizer_is_end(t, 1 << 30));
    fwd_tokenizer_close(t);
}
END_TEST

START_TEST(bos_as_the_file_says) {
    static const struct {
        const char *pre;
        int add_bos;
        bool added;
    } rows[] = {{"gpt-2", 0, false},    {"gpt-2", 1, true},     {"gpt-2", -1, false},
                {"llama-bpe", 0, true}, {"llama-bpe", 1, true}, {"llama-bpe", -1, false},
                {"qwen2", 0, false},    {"smollm", 0, false},   {"llama3", 0, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct fwd_tokenizer *t = open_made(&(struct made_vocab){.pre = rows[i].pre, .add_bos = rows[i].add_bos});
        struct fwd_tokenizer_info info;
        fwd_tokenizer_info(t, &info);
        ck_assert_msg(info.add_bos == rows[i].added, "row %zu: add_bos", i);
        ck_assert_int_eq(info.bos, MADE_IM_START);
        ck_assert_int_eq(info.eos, MADE_IM_END);
        ck_assert_int_eq(info.eot, MADE_IM_END);
        ck_assert_int_eq(info.pad, -1);
        ck_assert_str_eq(info.pre, rows[i].pre);
        if (rows[i].added)
            EXPECT(t, "a", FWD_TOK_ADD_BOS, MADE_IM_START, 'a');
        else
            EXPECT(t, "a", FWD_TOK_ADD_BOS, 'a');
        EXPECT(t, "a", 0, 'a');
        fwd_tokenizer_close(t);
    }
}
END_TEST

START_TEST(ignore_merges_takes_whole_words) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){.pre = "llama-bpe"});
    EXPECT(t, "whole", 0, MADE_WHOLE);
    EXPECT(t, "wholes", 0, 'w', 'h', 'o', 'l', 'e', 's');
    EXPECT(t, "1234", 0, '1', '2', '3', '4');
    fwd_tokenizer_close(t);
    t = open_made(&(struct made_vocab){.pre = "gpt-2"});
    EXPECT(t, "whole", 0, 'w', 'h', 'o', 'l', 'e');
    fwd_tokenizer_close(t);
}
END_TEST

START_TEST(decode_hides_special_tokens) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){0});
    const int32_t ids[] = {MADE_IM_START, MADE_HELLO, MADE_TOOL, MADE_UNUSED, 0, 0xff, MADE_SPACE_W, MADE_IM_END};
    const char shown[] = "hello<tool>\0\xff w", all[] = "<|im_start|>hello<tool>[UNUSED]\0\xff w<|im_end|>";
    char *text;
    size_t len;
    struct fwd_error err = {0};
    ck_assert_int_eq(fwd_tokenizer_decode(t, ids, 8, false, &text, &len, &err), FWD_OK);
    ck_assert_uint_eq(len, sizeof shown - 1);
    ck_assert_mem_eq(text, shown, sizeof shown);
    fwd_free(text);
    ck_assert_int_eq(fwd_tokenizer_decode(t, ids, 8, true, &text, &len, &err), FWD_OK);
    ck_assert_uint_eq(len, sizeof all - 1);
    ck_assert_mem_eq(text, all, sizeof all);
    fwd_free(text);
    ck_assert_int_eq(fwd_tokenizer_decode(t, NULL, 0, true, &text, &len, &err), FWD_OK);
    ck_assert(len == 0 && text[0] == '\0');
    fwd_free(text);
    const int32_t bad[] = {'a', MADE_END};
    ck_assert_int_eq(fwd_tokenizer_decode(t, bad, 2, true, &text, &len, &err), FWD_ERANGE);
    ck_assert_ptr_nonnull(strstr(err.message, "token 1 is 270, expected 0 to 269"));
    fwd_tokenizer_close(t);
}
END_TEST

START_TEST(chatml_text) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){0});
    char *text;
    size_t len;
    struct fwd_error err = {0};
    ck_assert_int_eq(fwd_tokenizer_chatml(t, NULL, "hi", &text, &len, &err), FWD_OK);
    ck_assert_str_eq(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    ck_assert_uint_eq(len, strlen(text));
    fwd_free(text);
    ck_assert_int_eq(fwd_tokenizer_chatml(t, "be brief", "hi", &text, &len, &err), FWD_OK);
    ck_assert_str_eq(text, "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
                           "<|im_start|>assistant\n");
    fwd_free(text);
    fwd_tokenizer_close(t);
    t = open_made(&(struct made_vocab){.without_specials = true});
    ck_assert_int_eq(fwd_tokenizer_chatml(t, NULL, "hi", &text, &len, &err), FWD_EUNSUPPORTED);
    fwd_tokenizer_close(t);
}
END_TEST

/* ---- files that must be refused -----------------------------------------------------------------------------------
 */
static const struct bad_vocab {
    struct made_vocab make;
    enum fwd_status status;
    const char *message; /* a part of it */
} bad_vocabs[] = {
    {{.model = ""}, FWD_EMISSING, "no key tokenizer.ggml.model"},
    {{.model = "llama"}, FWD_EUNSUPPORTED, "tokenizer.ggml.model is 'llama', expected 'gpt2'"},
    {{.bad_key = "tokenizer.ggml.model"}, FWD_ECORRUPT, "tokenizer.ggml.model is not a string"},
    {{.pre = ""}, FWD_EMISSING, "no key tokenizer.ggml.pre"},
    {{.pre = "qwen"}, FWD_EUNSUPPORTED, "tokenizer.ggml.pre is 'qwen', expected qwen2, smollm"},
    {{.bad_key = "tokenizer.ggml.pre"}, FWD_ECORRUPT, "tokenizer.ggml.pre is not a string"},
    {{.without_tokens = true}, FWD_EMISSING, "no key tokenizer.ggml.tokens"},
    {{.bad_key = "tokenizer.ggml.tokens"}, FWD_ECORRUPT, "tokenizer.ggml.tokens is not an array of strings"},
    {{.extra_token = ""}, FWD_ECORRUPT, "tokenizer.ggml.tokens[270] is empty"},
    {{.extra_token = "hello"}, FWD_ECORRUPT, "tokens[259] and [270] are the same text, 'hello'"},
    {{.without_bytes = true}, FWD_ECORRUPT, "no token for any single byte"},
    {{.missing_types = 3}, FWD_ECORRUPT, "token_type has 267 items, and there are 270 tokens"},
    {{.extra_token = "x1", .extra_type = 7}, FWD_ECORRUPT, "token_type[270] is not a type from 1 to 6"},
    {{.extra_token = "x1", .extra_type = 0xffffffff}, FWD_ECORRUPT, "token_type[270] is not a type"},
    {{.bad_key = "tokenizer.ggml.token_type"}, FWD_ECORRUPT, "token_type is not an array of i32"},
    {{.without_merges = true}, FWD_EMISSING, "no key tokenizer.ggml.merges"},
    {{.bad_key = "tokenizer.ggml.merges"}, FWD_ECORRUPT, "merges is not an array of strings"},
    {{.extra_merge = ""}, FWD_ECORRUPT, "merges[8] is '', expected two tokens with a space between"},
    {{.extra_merge = "hello"}, FWD_ECORRUPT, "merges[8] is 'hello', expected two tokens"},
    {{.extra_merge = " h"}, FWD_ECORRUPT, "expected two tokens"},
    {{.extra_merge = "h "}, FWD_ECORRUPT, "expected two tokens"},
    {{.extra_merge = "hellp o"}, FWD_ECORRUPT, "'hellp o', and its left half is not in the vocabulary"},
    {{.extra_merge = "h ello"}, FWD_ECORRUPT, "its right half is not in the vocabulary"},
    {{.extra_merge = "h h"}, FWD_ECORRUPT, "its result is not in the vocabulary"},
    {{.bos = 1000}, FWD_ECORRUPT, "bos_token_id is not a token id, expected 0 to 269"},
    {{.bad_key = "tokenizer.ggml.bos_token_id"}, FWD_ECORRUPT, "bos_token_id is not a token id"},
    {{.bad_key = "tokenizer.ggml.add_bos_token"}, FWD_ECORRUPT, "add_bos_token is not a bool"},
    {{.without_bos = true, .add_bos = 1}, FWD_EMISSING, "no tokenizer.ggml.bos_token_id"},
    {{.without_bos = true, .pre = "llama-bpe"}, FWD_EMISSING, "no tokenizer.ggml.bos_token_id"},
};

START_TEST(bad_vocabulary_is_refused) {
    const struct bad_vocab *row = &bad_vocabs[_i];
    struct fwd_tokenizer *t = NULL;
    struct fwd_error err = {0};
    enum fwd_status status = try_open(&row->make, &t, &err);
    ck_assert_msg(status == row->status, "row %d: status %d (%s), expected %d", _i, status, err.message, row->status);
    ck_assert_msg(strstr(err.message, row->message) != NULL, "row %d: '%s' does not say '%s'", _i, err.message,
                  row->message);
    ck_assert_ptr_null(t);
    ck_assert_int_eq(try_open(&row->make, &t, NULL), row->status);
}
END_TEST

START_TEST(odd_vocabularies_work) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){.without_types = true});
    EXPECT(t, "<tool>hello", FWD_TOK_PARSE_SPECIAL, '<', 't', 'o', 'o', 'l', '>', MADE_HELLO);
    fwd_tokenizer_close(t);
    /* a line twice: the first one counts */
    t = open_made(&(struct made_vocab){.extra_merge = "l l"});
    EXPECT(t, "hello lo", 0, MADE_HELLO, ' ', MADE_LO);
    fwd_tokenizer_close(t);
    /* a normal token that is not byte-level text stands for itself */
    t = open_made(&(struct made_vocab){.extra_token = "two words"});
    const char *piece;
    size_t len;
    ck_assert(fwd_tokenizer_piece(t, MADE_END, &piece, &len));
    ck_assert(len == 9 && !memcmp(piece, "two words", 9));
    ck_assert(!fwd_tokenizer_piece(t, MADE_END + 1, &piece, &len) && !fwd_tokenizer_piece(t, -1, &piece, &len));
    fwd_tokenizer_close(t);
}
END_TEST

/* ---- hostile text -------------------------------------------------------------------------------------------------
 */
static const char *const pre_names[] = {"gpt-2", "smollm", "qwen2", "llama-bpe"};

/* A megabyte of one thing (an eighth of most), by each pre-tokenizer: ends in time and decodes to itself. */
START_TEST(hostile_text) {
    static const char *const units[] = {"a",  " ",   "\n",   "<",  "1",        "\xe4\xb8\xad",
                                        "'s", "\t ", "<|im", "he", "\xcc\x81", "\r"};
    size_t size = 1 << 20;
    char *text = fwd_alloc(size + 2, 1);
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){.pre = pre_names[_i]});
    struct fwd_error err = {0};
    for (size_t u = 0; u < 2 * sizeof units / sizeof *units; u++) {
        const char *unit = units[u / 2];
        size_t len = 0, n_ids, n_back, most = u < 4 ? size : size / 8;
        for (size_t n = strlen(unit); len + n <= most; len += n)
            memcpy(text + len, unit, n);
        if (u % 2)
            text[len++] = 'x';
        int32_t *ids;
        char *back;
        ck_assert_msg(fwd_tokenizer_encode(t, text, len, 0, &ids, &n_ids, &err) == FWD_OK, "%s", err.message);
        ck_assert_int_eq(fwd_tokenizer_decode(t, ids, n_ids, true, &back, &n_back, &err), FWD_OK);
        ck_assert_msg(n_back == len && !memcmp(text, back, len), "unit '%s' does not come back", unit);
        fwd_free(ids);
        fwd_free(back);
    }
    memset(text, 0xff, size); /* each byte becomes three */
    int32_t *ids;
    size_t n_ids;
    ck_assert_int_eq(fwd_tokenizer_encode(t, text, size, 0, &ids, &n_ids, &err), FWD_OK);
    ck_assert_uint_eq(n_ids, 3 * size);
    fwd_free(ids);
    ck_assert_int_eq(fwd_tokenizer_encode(t, text, (size_t)1 << 40, 0, &ids, &n_ids, &err), FWD_ERANGE);
    fwd_tokenizer_close(t);
    fwd_free(text);
}
END_TEST

/* ---- round trips --------------------------------------------------------------------------------------------------
 */
static uint64_t next_random(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    uint64_t x = *state;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static size_t random_char(uint64_t *state, char *out) {
    static const uint32_t tops[] = {0x80, 0x80, 0x80, 0x800, 0xd800, 0x110000};
    uint32_t c;
    do
        c = (uint32_t)(next_random(state) % tops[next_random(state) % 6]);
    while (c >= 0xd800 && c < 0xe000);
    if (c < 0x80) {
        out[0] = next_random(state) % 3 ? "he lo\n'a1<"[c % 10] : (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; --i > 0; c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00 >> n & 0xff) | c);
    return n;
}

START_TEST(decode_undoes_encode) {
    struct fwd_tokenizer *t = open_made(&(struct made_vocab){.pre = pre_names[_i]});
    uint64_t state = 2024;
    for (int round = 0; round < 3000; round++) {
        char text[256], *back;
        size_t len = 0, n_ids, n_back;
        for (uint64_t n = next_random(&state) % 40; n > 0; n--)
            len += random_char(&state, text + len);
        int32_t *ids;
        struct fwd_error err = {0};
        unsigned flags = round % 2 ? FWD_TOK_PARSE_SPECIAL : 0;
        ck_assert_msg(fwd_tokenizer_encode(t, text, len, flags, &ids, &n_ids, &err) == FWD_OK, "%s", err.message);
        ck_assert_int_eq(fwd_tokenizer_decode(t, ids, n_ids, true, &back, &n_back, &err), FWD_OK);
        ck_assert_msg(n_back == len && !memcmp(text, back, len), "seed 2024, round %d: %zu bytes became %zu", round,
                      len, n_back);
        fwd_free(ids);
        fwd_free(back);
    }
    fwd_tokenizer_close(t);
}
END_TEST

/* ---- memory that runs out -----------------------------------------------------------------------------------------
 */
static enum fwd_status use_all(const struct fwd_gguf *file, struct fwd_error *err) {
    struct fwd_tokenizer *t;
    FWD_TRY(fwd_tokenizer_open(&t, file, err));
    char *text = NULL;
    int32_t *ids = NULL;
    size_t len, n_ids;
    static const char words[] =
        "hello whole \xff \xed\xa0\x80 <|im_start|>"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    enum fwd_status status =
        fwd_tokenizer_encode(t, words, sizeof words - 1, FWD_TOK_ADD_BOS | FWD_TOK_PARSE_SPECIAL, &ids, &n_ids, err);
    if (status == FWD_OK)
        status = fwd_tokenizer_decode(t, ids, n_ids, true, &text, &len, err);
    fwd_free(text);
    fwd_free(ids);
    if (status == FWD_OK && (status = fwd_tokenizer_chatml(t, "s", "u", &text, &len, err)) == FWD_OK)
        fwd_free(text);
    fwd_tokenizer_close(t);
    return status;
}

START_TEST(memory_runs_out_at_every_place) {
    size_t n;
    uint8_t *bytes = make_vocab(&(struct made_vocab){.pre = "llama-bpe"}, &n);
    struct fwd_gguf *file;
    ck_assert_int_eq(fwd_gguf_parse(&file, bytes, n, NULL), FWD_OK);
    int failures = 0;
    for (int at = 0;; at++) {
        struct fwd_error err = {0};
        fail_at = at;
        enum fwd_status status = use_all(file, &err);
        bool ran_out = fail_at < 0;
        fail_at = -1;
        if (!ran_out) {
            ck_assert_msg(status == FWD_OK, "%s", err.message);
            break;
        }
        ck_assert_msg(status == FWD_ENOMEM, "allocation %d failed, and the status is %d", at, status);
        failures++;
    }
    ck_assert_int_gt(failures, 12);
    fwd_gguf_close(file);
    free(bytes);
}
END_TEST

static Suite *made_suite(void) {
    Suite *s = suite_create("tokenizer_made");
    TCase *keys = tcase_create("keys");
    tcase_set_timeout(keys, 60);
    tcase_add_test(keys, merges_go_by_rank);
    tcase_add_test(keys, special_tokens_are_longest_and_typed);
    tcase_add_test(keys, bos_as_the_file_says);
    tcase_add_test(keys, ignore_merges_takes_whole_words);
    tcase_add_test(keys, decode_hides_special_tokens);
    tcase_add_test(keys, chatml_text);
    tcase_add_loop_test(keys, bad_vocabulary_is_refused, 0, (int)(sizeof bad_vocabs / sizeof *bad_vocabs));
    tcase_add_test(keys, odd_vocabularies_work);
    tcase_add_loop_test(keys, decode_undoes_encode, 0, 4);
    tcase_add_test(keys, memory_runs_out_at_every_place);
    suite_add_tcase(s, keys);
    TCase *hostile = tcase_create("hostile");
    tcase_set_timeout(hostile, 120);
    tcase_add_loop_test(hostile, hostile_text, 0, 4);
    suite_add_tcase(s, hostile);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(made_suite());
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner), run = srunner_ntests_run(runner);
    srunner_free(runner);
    return failed ? 1 : run ? 0 : 3;
}
