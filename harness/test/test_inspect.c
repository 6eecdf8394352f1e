/* `parity inspect` on the committed small models: the JSON is strict and says what the file says, the text shows the
 * same, and each unusual thing is noted. */
#include "report/inspect.h"
#include "report/json.h"
#include "report/report_stream.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

struct inspected {
    struct fwd_gguf *file;
    struct fwd_model *model;
    struct fwd_tokenizer *tokenizer;
    struct par_inspect_facts *facts;
    char *text, *json;
    struct par_json *doc;
};

static void inspect(struct inspected *it, const char *path) {
    struct fwd_error err = {0};
    struct par_stream text, json;
    *it = (struct inspected){0};
    ck_assert_msg(fwd_gguf_open(&it->file, path, &err) == FWD_OK, "%s", err.message);
    it->facts = fwd_calloc(1, sizeof *it->facts);
    ck_assert_ptr_nonnull(it->facts);
    it->facts->file = it->file;
    (void)fwd_model_bind(&it->model, it->file, NULL, NULL, &it->facts->refusal);
    (void)fwd_tokenizer_open(&it->tokenizer, it->file, &it->facts->tokenizer_refusal);
    it->facts->model = it->model;
    it->facts->tokenizer = it->tokenizer;
    par_inspect_count_types(it->facts);
    par_inspect_find_notes(it->facts);
    par_stream_begin(&text);
    ck_assert_ptr_nonnull(text.out);
    par_inspect_print_text(text.out, it->facts, true, true);
    it->text = par_stream_end(&text);
    par_stream_begin(&json);
    ck_assert_ptr_nonnull(json.out);
    ck_assert_msg(par_inspect_print_json(json.out, it->facts, &err) == FWD_OK, "%s", err.message);
    it->json = par_stream_end(&json);
    ck_assert_ptr_nonnull(it->text);
    ck_assert_ptr_nonnull(it->json);
    ck_assert_msg(par_json_parse(&it->doc, it->json, strlen(it->json), path, &err) == FWD_OK, "%s", err.message);
}

static void let_go(struct inspected *it) {
    par_json_free(it->doc);
    fwd_free(it->text);
    fwd_free(it->json);
    fwd_free(it->facts);
    fwd_model_free(it->model);
    fwd_tokenizer_close(it->tokenizer);
    fwd_gguf_close(it->file);
}

static int64_t int_of(const struct inspected *it, const struct cJSON *object, const char *key) {
    int64_t v = -1;
    struct fwd_error err = {0};
    ck_assert_msg(par_json_get_int(it->doc, object, key, 0, INT64_MAX >> 11, &v, &err) == FWD_OK, "%s", err.message);
    return v;
}

static const struct cJSON *find_named(const struct cJSON *array, const char *key, const char *value) {
    for (const struct cJSON *n = par_json_first(array); n; n = par_json_next(n)) {
        const char *text = par_json_text(par_json_get(n, key));
        if (text && !strcmp(text, value))
            return n;
    }
    ck_abort_msg("no item with %s = %s", key, value);
}

static bool has_note(const struct inspected *it, const char *says) {
    bool in_facts = false, in_json = false;
    for (int i = 0; i < it->facts->notes.n; i++)
        in_facts |= strstr(it->facts->notes.text[i], says) != NULL;
    const struct cJSON *notes = par_json_get(par_json_root(it->doc), "unusual");
    for (const struct cJSON *n = par_json_first(notes); n; n = par_json_next(n))
        in_json |= strstr(par_json_text(n), says) != NULL;
    ck_assert_msg(in_facts == in_json, "%s", says);
    return in_facts;
}

START_TEST(test_good_model) {
    struct inspected it;
    double real;
    inspect(&it, "fixtures/fuzz/gguf/qwen2-bias.gguf");
    const struct cJSON *root = par_json_root(it.doc), *config = par_json_get(root, "config");
    ck_assert_str_eq(par_json_text(par_json_get(root, "schema")), "parity-inspect-v1");
    ck_assert_str_eq(par_json_text(par_json_get(config, "arch")), "qwen2");
    ck_assert_int_eq(int_of(&it, config, "n_embd"), 64);
    ck_assert_int_eq(int_of(&it, config, "n_ff"), 32);
    ck_assert_int_eq(int_of(&it, config, "n_vocab"), 4);
    ck_assert(par_json_number(par_json_get(config, "norm_eps"), &real) && real == (double)1e-5f);
    const struct cJSON *t = find_named(par_json_get(root, "tensors"), "name", "blk.0.ffn_down.weight");
    const struct fwd_gguf_tensor *expected = fwd_gguf_find(it.file, "blk.0.ffn_down.weight");
    ck_assert_str_eq(par_json_text(par_json_get(t, "type")), "Q8_0");
    ck_assert_uint_eq((uint64_t)int_of(&it, t, "offset"), expected->file_offset);
    ck_assert_uint_eq((uint64_t)int_of(&it, t, "bytes"), 64 * 34);
    const struct cJSON *type = find_named(par_json_get(root, "types"), "type", "F32");
    ck_assert_int_eq(int_of(&it, type, "tensors"), 6);
    ck_assert_int_eq(int_of(&it, type, "bytes"), 4 * (64 * 4 + 32 * 2));
    const struct cJSON *key = find_named(par_json_get(root, "keys"), "key", "tokenizer.ggml.tokens");
    const struct cJSON *token = par_json_first(par_json_get(key, "items"));
    ck_assert_str_eq(par_json_text(token), "a");
    ck_assert_int_eq(int_of(&it, key, "n_items"), 4);
    ck_assert_ptr_nonnull(strstr(it.text, "1 layers, hidden 64, feed-forward 32, vocabulary 4, context 64"));
    ck_assert_ptr_nonnull(strstr(it.text, "2 query heads over 1 KV heads of 32"));
    ck_assert_ptr_nonnull(strstr(it.text, "blk.0.ffn_down.weight"));
    ck_assert_ptr_nonnull(strstr(it.text, "tokenizer.ggml.tokens = [4] a, b, ab, <|end|>"));
    ck_assert(!has_note(&it, "refuses") && !has_note(&it, "tied head") && has_note(&it, "rows of 64 values"));
    let_go(&it);
}
END_TEST

START_TEST(test_notes) {
    static const struct {
        const char *path, *note;
    } cases[] = {
        {"fixtures/fuzz/gguf/llama-tied.gguf", "tied head: token_embd.weight (Q8_0)"},
        {"fixtures/fuzz/gguf/llama-two-layers-v2.gguf", "GGUF version 2"},
        {"fixtures/fuzz/gguf/qwen2-alignment-64.gguf", "aligned to 64 bytes"},
        {"fixtures/fuzz/gguf/keys-of-all-kinds.gguf", "1 tensors are IQ2_XXS, which"},
        {"fixtures/fuzz/gguf/keys-of-all-kinds.gguf", "general.architecture is missing"},
        {"fixtures/fuzz/gguf/no-tensors.gguf", "no tokenizer.ggml.tokens"},
        {"fixtures/bad/nan-norm.gguf", "refuses this file: blk.0.ffn_norm.weight: value 31 is nan"},
        {"fixtures/bad/more-tokens-than-rows.gguf", "5 tokens, but token_embd.weight has 4 rows"},
        {"fixtures/bad/type-unknown.gguf", "1 tensors are type 99, which"},
        {"fixtures/bad/wrong-shape.gguf", "ne[1] is 63, expected 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct inspected it;
        inspect(&it, cases[i].path);
        ck_assert_msg(has_note(&it, cases[i].note), "%s: not noted: %s", cases[i].path, cases[i].note);
        let_go(&it);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("inspect");
    TCase *t = tcase_create("inspect");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_good_model);
    tcase_add_test(t, test_notes);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_NORMAL);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    if (n_run == 0)
        return 3;
    return n_failed ? 1 : 0;
}
