/* Made models: the same bytes for any number of threads, pinned; a file that the engine binds; the shapes' sizes. */
#include "fixture/cut.h"
#include "fixture/gguf_writer.h"
#include "fixture/make.h"
#include "fixture/vocab.h"

#include <check.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The built-in model that `make parity` uses. A change of the generator changes it on purpose, or is wrong. */
#define TINY_SHA256 "2363853d60c4059f9291a346f93d8acbca176ed4a2aee1affac1694ddf30b63f"

static char folder[] = "/tmp/test_fixture_XXXXXX";

static void sha256_of(const char *path, char hex[65]) {
    unsigned char digest[EVP_MAX_MD_SIZE], block[4096];
    unsigned n_digest = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(EVP_DigestInit_ex(ctx, EVP_sha256(), NULL), 1);
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;)
        ck_assert_int_eq(EVP_DigestUpdate(ctx, block, n), 1);
    ck_assert_int_eq(EVP_DigestFinal_ex(ctx, digest, &n_digest), 1);
    (void)fclose(f);
    EVP_MD_CTX_free(ctx);
    ck_assert_uint_eq(n_digest, 32);
    for (size_t i = 0; i < 32; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

static void make_tiny(const char *path, uint64_t seed, int n_threads) {
    struct fwd_error err = {0};
    struct fwd_pool *pool = NULL;
    if (n_threads > 1)
        ck_assert_int_eq(fwd_pool_create(&pool, n_threads, &err), FWD_OK);
    struct par_make_args args = {.shape = par_shape_at(0), .seed = seed, .path = path, .pool = pool};
    ck_assert_msg(par_model_make(&args, &err) == FWD_OK, "%s", err.message);
    fwd_pool_free(pool);
}

static void in_folder(char *path, size_t n, const char *name) {
    (void)snprintf(path, n, "%s/%s", folder, name);
}

START_TEST(same_bytes) {
    char path[100], hex[65];
    in_folder(path, sizeof path, "tiny.gguf");
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        make_tiny(path, 1, n_threads);
        sha256_of(path, hex);
        ck_assert_msg(!strcmp(hex, TINY_SHA256), "%d threads: %s", n_threads, hex);
    }
    make_tiny(path, 2, 1);
    sha256_of(path, hex);
    ck_assert_str_ne(hex, TINY_SHA256);
}
END_TEST

START_TEST(binds) {
    char path[100];
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    struct fwd_model *m;
    in_folder(path, sizeof path, "bound.gguf");
    make_tiny(path, 1, 1);
    ck_assert_msg(fwd_gguf_open(&g, path, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_model_bind(&m, g, NULL, NULL, &err) == FWD_OK, "%s", err.message);
    ck_assert_uint_lt(fwd_gguf_file_bytes(g), 5000000);
    ck_assert_str_eq(m->config.arch, "qwen2");
    ck_assert_int_eq(m->config.n_layer, 6);
    ck_assert_int_eq(m->config.n_head, 8);
    ck_assert_int_eq(m->config.n_kv_head, 2);
    ck_assert_int_eq(m->config.n_vocab, 512);
    ck_assert(!m->config.tied_head);
    ck_assert_ptr_nonnull(m->layers[0].bk.data);
    ck_assert_uint_eq(m->tok_embd.type, FWD_TYPE_Q4_K);
    ck_assert_uint_eq(m->output.type, FWD_TYPE_Q6_K);
    for (int i = 0; i < 6; i++) {
        uint32_t expected = i == 2 || i == 5 ? FWD_TYPE_Q6_K : FWD_TYPE_Q4_K;
        ck_assert_uint_eq(m->layers[i].wv.type, expected);
        ck_assert_uint_eq(m->layers[i].down.type, expected);
        ck_assert_uint_eq(m->layers[i].wq.type, FWD_TYPE_Q4_K);
    }
    fwd_model_free(m);
    fwd_gguf_close(g);
}
END_TEST

START_TEST(vocabulary) {
    char path[100];
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    struct fwd_tokenizer *t;
    in_folder(path, sizeof path, "vocab.gguf");
    make_tiny(path, 1, 1);
    ck_assert_int_eq(fwd_gguf_open(&g, path, &err), FWD_OK);
    ck_assert_msg(fwd_tokenizer_open(&t, g, &err) == FWD_OK, "%s", err.message);
    static const char text[] = "<|im_start|>user\nof the license caf\xc3\xa9 {1}<|im_end|>";
    int32_t *ids;
    size_t n_ids, n;
    char *back;
    ck_assert_int_eq(fwd_tokenizer_encode(t, text, strlen(text), FWD_TOK_PARSE_SPECIAL, &ids, &n_ids, &err), FWD_OK);
    ck_assert_int_eq(ids[0], PAR_VOCAB_IM_START);
    ck_assert_int_eq(ids[n_ids - 1], PAR_VOCAB_IM_END);
    ck_assert_uint_lt(n_ids, 22); /* of 31 without merges */
    ck_assert_int_eq(fwd_tokenizer_decode(t, ids, n_ids, true, &back, &n, &err), FWD_OK);
    ck_assert_uint_eq(n, strlen(text));
    ck_assert_mem_eq(back, text, n);
    for (int32_t id = 0; id < PAR_VOCAB_TEXT; id++) { /* the spelling of every token, against the tokenizer's */
        const char *bytes;
        uint8_t first, last;
        ck_assert(fwd_tokenizer_piece(t, id, &bytes, &n));
        par_vocab_ends(id, &first, &last);
        ck_assert_int_eq((uint8_t)bytes[0], first);
        ck_assert_int_eq((uint8_t)bytes[n - 1], last);
        ck_assert_uint_lt(n, 33);
    }
    fwd_free(ids);
    fwd_free(back);
    fwd_tokenizer_close(t);
    fwd_gguf_close(g);
}
END_TEST

/* Tensor bytes of the real files of these shapes: the type mix decides them. */
START_TEST(shapes) {
    static const struct {
        const char *name;
        uint64_t n_bytes;
    } expected[] = {{"tiny", 2857216}, {"tiny-64", 2979328}, {"qwen2.5-1.5b", 1111370240}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const struct par_shape *s = par_shape_find(expected[i].name);
        ck_assert_ptr_nonnull(s);
        ck_assert_uint_eq(par_shape_bytes(s), expected[i].n_bytes);
    }
    ck_assert_ptr_nonnull(par_shape_find("qwen2.5-7b"));
    ck_assert_ptr_nonnull(par_shape_find("qwen2.5-0.5b"));
    ck_assert_ptr_null(par_shape_find("qwen"));
}
END_TEST

static void stop_at_once(void *ud, uint64_t done, uint64_t total) {
    ck_assert_uint_le(done, total);
    ++*(int *)ud;
}

START_TEST(failures_leave_nothing) {
    struct fwd_error err = {0};
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .path = "/nonexistent/x.gguf"};
    ck_assert_int_eq(par_model_make(&args, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, "/nonexistent/x.gguf") != NULL, "%s", err.message);
    char path[100];
    in_folder(path, sizeof path, "cut.gguf");
    struct rlimit limit = {1000000, 1000000};
    int n_calls = 0;
    args.path = path;
    args.progress = stop_at_once;
    args.progress_ud = &n_calls;
    ck_assert_int_eq(par_model_make(&args, &err), FWD_OK);
    ck_assert_int_gt(n_calls, 10);
    (void)remove(path);
    (void)signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(par_model_make(&args, &err), FWD_EIO);
    ck_assert_int_ne(access(path, F_OK), 0);
}
END_TEST

START_TEST(writer_counts) {
    char path[100];
    struct fwd_error err = {0};
    uint64_t ne[1] = {3};
    float data[4] = {1, 2, 3, 4};
    in_folder(path, sizeof path, "short.gguf");
    struct par_gguf_writer *w = par_gguf_writer_create();
    par_gguf_add_str(w, "general.architecture", "x");
    par_gguf_add_tensor(w, "a", FWD_TYPE_F32, 1, ne);
    ck_assert_int_eq(par_gguf_writer_begin(w, path, &err), FWD_OK);
    ck_assert_int_eq(par_gguf_writer_data(w, data, 8, &err), FWD_OK);
    ck_assert_int_eq(par_gguf_writer_commit(w, &err), FWD_ESTATE);
    ck_assert_int_eq(par_gguf_writer_data(w, data, 8, &err), FWD_ESTATE);
    par_gguf_writer_free(w);
    ck_assert_int_ne(access(path, F_OK), 0);
}
END_TEST

/* A cut with its source still open. */
struct cut_pair {
    struct fwd_gguf *old, *new;
    struct par_cut_result result;
};

static enum fwd_status cut_tiny(struct cut_pair *p, const char *layers, int64_t n_vocab, struct fwd_error *err) {
    char from[100], to[100];
    struct par_cut_args args = {.n_vocab = n_vocab, .path = to};
    in_folder(from, sizeof from, "whole.gguf");
    in_folder(to, sizeof to, "part.gguf");
    make_tiny(from, 1, 1);
    ck_assert_int_eq(fwd_gguf_open(&p->old, from, err), FWD_OK);
    args.file = p->old;
    FWD_TRY(par_cut_layers(&args, layers, err));
    FWD_TRY(par_model_cut(&args, &p->result, err));
    ck_assert_msg(fwd_gguf_open(&p->new, to, err) == FWD_OK, "%s", err->message);
    ck_assert_uint_eq(fwd_gguf_file_bytes(p->new), p->result.n_bytes);
    return FWD_OK;
}

static void expect_same_tensor(const struct cut_pair *p, const char *new_name, const char *old_name) {
    const struct fwd_gguf_tensor *a = fwd_gguf_find(p->new, new_name), *b = fwd_gguf_find(p->old, old_name);
    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_nonnull(b);
    ck_assert_uint_eq(a->type, b->type);
    ck_assert_uint_eq(a->n_bytes, b->n_bytes);
    ck_assert_mem_eq(a->data, b->data, a->n_bytes);
}

START_TEST(cuts_layers_and_tokens) {
    struct cut_pair p = {0};
    struct fwd_error err = {0};
    struct fwd_model *m;
    ck_assert_msg(cut_tiny(&p, "0,2,5", 300, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_eq(p.result.n_tokens, 303); /* and three specials */
    ck_assert_int_eq(p.result.n_merges, 44);  /* 256 bytes + 44 merges: every one of them is expressible */
    ck_assert_msg(fwd_model_bind(&m, p.new, NULL, NULL, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_eq(m->config.n_layer, 3);
    ck_assert_int_eq(m->config.n_vocab, 303);
    fwd_model_free(m);
    expect_same_tensor(&p, "blk.0.attn_q.weight", "blk.0.attn_q.weight");
    expect_same_tensor(&p, "blk.1.ffn_down.weight", "blk.2.ffn_down.weight");
    expect_same_tensor(&p, "blk.2.attn_k.bias", "blk.5.attn_k.bias");
    expect_same_tensor(&p, "output_norm.weight", "output_norm.weight");
    ck_assert_ptr_null(fwd_gguf_find(p.new, "blk.3.attn_q.weight"));
    const struct fwd_gguf_tensor *a = fwd_gguf_find(p.new, "output.weight"), *b = fwd_gguf_find(p.old, "output.weight");
    ck_assert_uint_eq(a->ne[1], 303);
    ck_assert_mem_eq(a->data, b->data, 300 * 210);
    ck_assert_mem_eq(a->data + 300 * 210, b->data + PAR_VOCAB_END * 210, 3 * 210);
    fwd_gguf_close(p.new);
    fwd_gguf_close(p.old);
}
END_TEST

START_TEST(cut_tokenizer) {
    struct cut_pair p = {0};
    struct fwd_error err = {0};
    struct fwd_tokenizer *t;
    struct fwd_tokenizer_info info;
    static const char text[] = "<|im_start|>the theory of <|im_end|>";
    int32_t *ids;
    size_t n_ids, n;
    char *back;
    ck_assert_msg(cut_tiny(&p, "1", 300, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_tokenizer_open(&t, p.new, &err) == FWD_OK, "%s", err.message);
    fwd_tokenizer_info(t, &info);
    ck_assert_int_eq(info.n_vocab, 303);
    ck_assert_int_eq(info.n_merges, 44);
    ck_assert_int_eq(info.bos, 300);
    ck_assert_int_eq(info.eos, 302);
    ck_assert_int_eq(fwd_tokenizer_encode(t, text, strlen(text), FWD_TOK_PARSE_SPECIAL, &ids, &n_ids, &err), FWD_OK);
    ck_assert_int_eq(ids[0], 301);
    ck_assert_int_eq(ids[n_ids - 1], 302);
    ck_assert_int_eq(fwd_tokenizer_decode(t, ids, n_ids, true, &back, &n, &err), FWD_OK);
    ck_assert_str_eq(back, text);
    fwd_free(ids);
    fwd_free(back);
    fwd_tokenizer_close(t);
    fwd_gguf_close(p.new);
    fwd_gguf_close(p.old);
}
END_TEST

static const struct {
    const char *layers;
    enum fwd_status code;
} bad_layers[] = {{"", FWD_EINPUT},    {"a", FWD_EINPUT},          {"1,", FWD_EINPUT},   {"2,1", FWD_EINPUT},
                  {"1,1", FWD_EINPUT}, {"-1", FWD_EINPUT},         {"0, 1", FWD_EINPUT}, {"1x", FWD_EINPUT},
                  {"6", FWD_EINPUT},   {"99999999999", FWD_EINPUT}};

START_TEST(cut_refuses) {
    struct cut_pair p = {0};
    struct fwd_error err = {0};
    char to[100];
    in_folder(to, sizeof to, "part.gguf");
    ck_assert_msg(cut_tiny(&p, bad_layers[_i].layers, 300, &err) == bad_layers[_i].code, "%s: %s",
                  bad_layers[_i].layers, err.message);
    ck_assert_int_ne(access(to, F_OK), 0);
    fwd_gguf_close(p.old);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("fixture");
    TCase *tc = tcase_create("fixture");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, same_bytes);
    tcase_add_test(tc, binds);
    tcase_add_test(tc, vocabulary);
    tcase_add_test(tc, shapes);
    tcase_add_test(tc, failures_leave_nothing);
    tcase_add_test(tc, writer_counts);
    tcase_add_loop_test(tc, cut_refuses, 0, (int)(sizeof bad_layers / sizeof *bad_layers));
    tcase_add_test(tc, cuts_layers_and_tokens);
    tcase_add_test(tc, cut_tokenizer);
    suite_add_tcase(suite, tc);
    if (!mkdtemp(folder))
        return 3;
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    static const char *const left[] = {"tiny.gguf", "bound.gguf", "vocab.gguf", "cut.gguf", "whole.gguf", "part.gguf"};
    char path[100];
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        in_folder(path, sizeof path, left[i]);
        (void)remove(path);
    }
    (void)rmdir(folder);
    return n_run == 0 ? 3 : n_failed != 0;
}
