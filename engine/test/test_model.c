/* Binding: a complete small model of each architecture is bound to the right places, and one wrong thing at a time is
 * refused by name with the actual and the expected value. */
#include "model/model.h"
#include "test/tiny_model.h"

#include <check.h>
#include <errno.h>
#include <math.h>

struct loaded {
    uint8_t *data;
    struct fwd_gguf *file;
    struct fwd_model *model;
    struct fwd_error err;
    enum fwd_status status;
};

static void load_tiny(struct loaded *l, const char *arch, bool tied, bool bias, const struct tiny_edit *edit,
                      fwd_config_hook *hook, void *ud) {
    size_t n;
    *l = (struct loaded){0};
    l->data = make_tiny(arch, tied, bias, edit, &n);
    enum fwd_status status = fwd_gguf_parse(&l->file, l->data, n, &l->err);
    ck_assert_msg(status == FWD_OK, "%s", l->err.message);
    l->status = fwd_model_bind(&l->model, l->file, hook, ud, &l->err);
}

static void unload_tiny(struct loaded *l) {
    fwd_model_free(l->model);
    fwd_gguf_close(l->file);
    free(l->data);
}

static void check_weight(const struct fwd_weight *w, const char *name, uint32_t type, int64_t n_rows, int64_t n_cols,
                         int64_t row_bytes, const struct fwd_gguf *file) {
    ck_assert_str_eq(w->name, name);
    ck_assert_uint_eq(w->type, type);
    ck_assert_int_eq(w->n_rows, n_rows);
    ck_assert_int_eq(w->n_cols, n_cols);
    ck_assert_int_eq(w->row_bytes, row_bytes);
    ck_assert_ptr_eq(w->tensor, fwd_gguf_find(file, name));
    ck_assert_ptr_eq(w->data, w->tensor->data);
    ck_assert_uint_eq((uint64_t)(w->row_bytes * w->n_rows), w->tensor->n_bytes);
}

static void count_weight(void *ud, int layer, const struct fwd_weight *w) {
    int *n = ud;
    ck_assert(layer >= -1 && layer < TINY_LAYERS);
    ck_assert_ptr_nonnull(w->data);
    n[0]++;
}

/* _i: bit 0 qwen2, bit 1 tied, bit 2 bias */
START_TEST(test_good) {
    bool qwen = _i & 1, tied = _i & 2, bias = _i & 4;
    struct loaded l;
    load_tiny(&l, qwen ? "qwen2" : "llama", tied, bias, NULL, NULL, NULL);
    if (qwen && !bias) { /* its biases are part of the architecture */
        ck_assert_int_eq(l.status, FWD_EMISSING);
        ck_assert_str_eq(l.err.message, "tensor blk.0.attn_q.bias is missing");
        unload_tiny(&l);
        return;
    }
    ck_assert_msg(l.status == FWD_OK, "%s", l.err.message);
    const struct fwd_config *c = &l.model->config;
    ck_assert_str_eq(c->arch, qwen ? "qwen2" : "llama");
    ck_assert_int_eq(c->rope_pairing, qwen ? FWD_ROPE_NEOX : FWD_ROPE_NORM);
    ck_assert(c->n_layer == TINY_LAYERS && c->n_embd == TINY_EMBD && c->n_ff == TINY_FF && c->n_head == TINY_HEADS);
    ck_assert(c->n_kv_head == TINY_KV_HEADS && c->head_dim == TINY_HEAD_DIM && c->n_rope == TINY_HEAD_DIM);
    ck_assert(c->n_vocab == TINY_VOCAB && c->n_ctx_train == 128 && c->rope_theta == 10000.0 && !c->rope_factors);
    ck_assert(c->norm_eps == 1e-5f && c->tied_head == tied);
    ck_assert(c->kv_head_of[0] == 0 && c->kv_head_of[1] == 0 && c->kv_head_of[2] == 1 && c->kv_head_of[3] == 1);
    const struct fwd_layer *y = &l.model->layers[1];
    check_weight(&l.model->tok_embd, "token_embd.weight", FWD_TYPE_Q8_0, TINY_VOCAB, 64, 68, l.file);
    check_weight(&l.model->output, tied ? "token_embd.weight" : "output.weight", FWD_TYPE_Q8_0, TINY_VOCAB, 64, 68,
                 l.file);
    check_weight(&y->attn_norm, "blk.1.attn_norm.weight", FWD_TYPE_F32, 1, 64, 256, l.file);
    check_weight(&y->wq, "blk.1.attn_q.weight", FWD_TYPE_Q4_0, 64, 64, 36, l.file);
    check_weight(&y->wk, "blk.1.attn_k.weight", FWD_TYPE_Q4_1, 32, 64, 40, l.file);
    check_weight(&y->wv, "blk.1.attn_v.weight", FWD_TYPE_Q8_0, 32, 64, 68, l.file);
    check_weight(&y->wo, "blk.1.attn_output.weight", FWD_TYPE_Q5_0, 64, 64, 44, l.file);
    check_weight(&y->ffn_norm, "blk.1.ffn_norm.weight", FWD_TYPE_F32, 1, 64, 256, l.file);
    check_weight(&y->gate, "blk.1.ffn_gate.weight", FWD_TYPE_F16, 96, 64, 128, l.file);
    check_weight(&y->up, "blk.1.ffn_up.weight", FWD_TYPE_BF16, 96, 64, 128, l.file);
    check_weight(&y->down, "blk.1.ffn_down.weight", FWD_TYPE_Q5_1, 64, 96, 72, l.file);
    if (bias)
        check_weight(&y->bk, "blk.1.attn_k.bias", FWD_TYPE_F32, 1, 32, 128, l.file);
    else
        ck_assert_ptr_null(y->bq.data);
    int n = 0;
    fwd_model_each_weight(l.model, count_weight, &n);
    ck_assert_uint_eq((uint64_t)n, fwd_gguf_n_tensors(l.file));
    unload_tiny(&l);
}
END_TEST

static const struct refusal {
    struct tiny_edit edit;
    enum fwd_status status;
    const char *says;
} refusals[] = {
    {{TINY_DROP, "general.architecture", 0, 0, 0, NULL}, FWD_EMISSING, "general.architecture is missing"},
    {{TINY_KEY_STR, "general.architecture", 0, 0, 0, "gpt2"},
     FWD_EUNSUPPORTED,
     "\"gpt2\" is not known; known: llama, qwen2"},
    {{TINY_DROP, "llama.block_count", 0, 0, 0, NULL}, FWD_EMISSING, "llama.block_count is missing"},
    {{TINY_KEY_U32, "llama.block_count", 0, 0, 0, NULL}, FWD_ERANGE, "llama.block_count is 0, expected 1 to 1024"},
    {{TINY_KEY_U32, "llama.block_count", 0, 4000000000u, 0, NULL}, FWD_ERANGE, "is 4000000000, expected 1 to 1024"},
    {{TINY_KEY_U32, "llama.block_count", 0, 1, 0, NULL}, FWD_EUNSUPPORTED, "blk.1.attn_norm.weight has no place"},
    {{TINY_KEY_U32, "llama.block_count", 0, 3, 0, NULL}, FWD_EMISSING, "blk.2.attn_norm.weight is missing"},
    {{TINY_KEY_STR, "llama.block_count", 0, 0, 0, "2"}, FWD_ETYPE, "not an integer"},
    {{TINY_KEY_U32, "llama.context_length", 0, 0, 0, NULL}, FWD_ERANGE, "context_length is 0"},
    {{TINY_KEY_U32, "llama.embedding_length", 0, 128, 0, NULL},
     FWD_ESHAPE,
     "token_embd.weight: ne[0] is 64, expected 128"},
    {{TINY_KEY_U32, "llama.embedding_length", 0, 66, 0, NULL},
     FWD_ESHAPE,
     "66, expected a multiple of attention.head_count 4"},
    {{TINY_KEY_U32, "llama.feed_forward_length", 0, 64, 0, NULL},
     FWD_ESHAPE,
     "blk.0.ffn_gate.weight: ne[1] is 96, expected 64"},
    {{TINY_KEY_U32, "llama.attention.head_count_kv", 0, 3, 0, NULL},
     FWD_ESHAPE,
     "is 4, expected a multiple of head_count_kv 3"},
    {{TINY_KEY_U32, "llama.attention.head_count_kv", 0, 4, 0, NULL},
     FWD_ESHAPE,
     "blk.0.attn_k.weight: ne[1] is 32, expected 64"},
    {{TINY_KEY_U32, "llama.attention.head_count", 0, 1u << 30, 0, NULL}, FWD_ERANGE, "expected 1 to 1024"},
    {{TINY_KEY_U32, "llama.attention.key_length", 0, 32, 0, NULL},
     FWD_EUNSUPPORTED,
     "value_length is 16, expected the key length 32"},
    {{TINY_KEY_U32, "llama.attention.value_length", 0, 32, 0, NULL},
     FWD_EUNSUPPORTED,
     "value_length is 32, expected the key length 16"},
    {{TINY_KEY_U32, "llama.rope.dimension_count", 0, 15, 0, NULL}, FWD_ESHAPE, "15 dimensions are rotated"},
    {{TINY_KEY_U32, "llama.rope.dimension_count", 0, 18, 0, NULL}, FWD_ESHAPE, "to the head length 16"},
    {{TINY_KEY_F32, "llama.attention.layer_norm_rms_epsilon", 0, 0, 0.0f, NULL}, FWD_ERANGE, "is 0, expected a finite"},
    {{TINY_KEY_F32, "llama.attention.layer_norm_rms_epsilon", 0, 0, NAN, NULL}, FWD_ERANGE, "nan, expected a finite"},
    {{TINY_DROP, "llama.attention.layer_norm_rms_epsilon", 0, 0, 0, NULL}, FWD_EMISSING, "epsilon is missing"},
    {{TINY_KEY_F32, "llama.rope.freq_base", 0, 0, -1.0f, NULL}, FWD_ERANGE, "rope.freq_base is -1"},
    {{TINY_KEY_STR, "llama.rope.scaling.type", 0, 0, 0, "yarn"}, FWD_EUNSUPPORTED, "rope scaling \"yarn\""},
    {{TINY_KEY_F32, "llama.rope.scaling.factor", 0, 0, 4.0f, NULL}, FWD_EUNSUPPORTED, "\"linear\" with factor 4"},
    {{TINY_KEY_U32, "llama.expert_count", 0, 8, 0, NULL}, FWD_EUNSUPPORTED, "llama.expert_count"},
    {{TINY_KEY_F32, "llama.attention.scale", 0, 0, 0.5f, NULL}, FWD_EUNSUPPORTED, "attention.scale is 0.5"},
    {{TINY_KEY_F32, "llama.final_logit_softcapping", 0, 0, 30.0f, NULL}, FWD_EUNSUPPORTED, "softcapping"},
    {{TINY_DROP, "token_embd.weight", 0, 0, 0, NULL}, FWD_EMISSING, "token_embd.weight is missing"},
    {{TINY_DROP, "output_norm.weight", 0, 0, 0, NULL}, FWD_EMISSING, "output_norm.weight is missing"},
    {{TINY_DROP, "blk.1.ffn_up.weight", 0, 0, 0, NULL}, FWD_EMISSING, "blk.1.ffn_up.weight is missing"},
    {{TINY_NE, "blk.1.ffn_up.weight", 1, 95, 0, NULL}, FWD_ESHAPE, "blk.1.ffn_up.weight: ne[1] is 95, expected 96"},
    {{TINY_NE, "blk.0.attn_q.weight", 0, 96, 0, NULL}, FWD_ESHAPE, "blk.0.attn_q.weight: ne[0] is 96, expected 64"},
    {{TINY_NE, "blk.0.attn_q.weight", 2, 2, 0, NULL}, FWD_ESHAPE, "blk.0.attn_q.weight: ne[2] is 2, expected 1"},
    {{TINY_NE, "blk.0.attn_q.weight", 3, 2, 0, NULL}, FWD_ESHAPE, "blk.0.attn_q.weight: ne[3] is 2, expected 1"},
    {{TINY_NE, "blk.0.attn_norm.weight", 0, 63, 0, NULL}, FWD_ESHAPE, "attn_norm.weight: ne[0] is 63, expected 64"},
    {{TINY_NE, "blk.0.attn_v.bias", 0, 64, 0, NULL}, FWD_ESHAPE, "attn_v.bias: ne[0] is 64, expected 32"},
    {{TINY_NE, "output.weight", 1, 51, 0, NULL}, FWD_ESHAPE, "output.weight: ne[1] is 51, expected 50"},
    {{TINY_TYPE, "blk.0.attn_norm.weight", 0, FWD_TYPE_F16, 0, NULL},
     FWD_ETYPE,
     "attn_norm.weight: type is F16, expected F32"},
    {{TINY_TYPE, "blk.0.attn_q.weight", 0, 20, 0, NULL}, FWD_ETYPE, "attn_q.weight: type is IQ4_NL"},
    {{TINY_TYPE, "blk.0.attn_q.weight", 0, 31, 0, NULL}, FWD_ETYPE, "Q4_0_4_4 (removed)"},
    {{TINY_TYPE, "output.weight", 0, 99, 0, NULL}, FWD_ETYPE, "output.weight: type is type 99"},
    {{TINY_TYPE, "blk.0.ffn_down.weight", 0, FWD_TYPE_Q8_1, 0, NULL}, FWD_ETYPE, "type is Q8_1"},
    {{TINY_ITEM, "blk.1.ffn_norm.weight", 7, 0, NAN, NULL}, FWD_ECORRUPT, "blk.1.ffn_norm.weight: value 7 is nan"},
    {{TINY_ITEM, "blk.1.attn_k.bias", 31, 0, INFINITY, NULL}, FWD_ECORRUPT, "blk.1.attn_k.bias: value 31 is inf"},
    {{TINY_ITEM, "output_norm.weight", 63, 0, -INFINITY, NULL}, FWD_ECORRUPT, "output_norm.weight: value 63 is -inf"},
    {{TINY_ADD, "blk.0.attn_output.bias", 0, 64, 0, NULL},
     FWD_EUNSUPPORTED,
     "blk.0.attn_output.bias has no place in architecture llama"},
    {{TINY_ADD, "blk.2.attn_norm.weight", 0, 64, 0, NULL}, FWD_EUNSUPPORTED, "has no place"},
    {{TINY_ADD, "rope_freqs.weight", 0, 9, 0, NULL}, FWD_ESHAPE, "rope_freqs.weight: ne[0] is 9, expected 8"},
};

START_TEST(test_refusal) {
    const struct refusal *r = &refusals[_i];
    struct loaded l;
    load_tiny(&l, "llama", false, true, &r->edit, NULL, NULL);
    ck_assert_msg(l.status == r->status, "%s: status %d (%s), expected %d", r->edit.name, l.status, l.err.message,
                  r->status);
    ck_assert_ptr_null(l.model);
    ck_assert_msg(strstr(l.err.message, r->says) != NULL, "%s: \"%s\" lacks \"%s\"", r->edit.name, l.err.message,
                  r->says);
    unload_tiny(&l);
}
END_TEST

/* What is allowed to differ. */
START_TEST(test_accepted) {
    static const struct tiny_edit edits[] = {
        {TINY_DROP, "llama.rope.freq_base", 0, 0, 0, NULL},
        {TINY_DROP, "blk.0.attn_k.bias", 0, 0, 0, NULL},
        {TINY_KEY_U32, "llama.attention.key_length", 0, 16, 0, NULL},
        {TINY_KEY_U32, "llama.rope.dimension_count", 0, 8, 0, NULL},
        {TINY_KEY_STR, "llama.rope.scaling.type", 0, 0, 0, "none"},
        {TINY_KEY_F32, "llama.rope.scaling.factor", 0, 0, 1.0f, NULL},
        {TINY_KEY_U32, "llama.expert_count", 0, 0, 0, NULL},
        {TINY_KEY_F32, "llama.attention.scale", 0, 0, 0.25f, NULL},
        {TINY_TYPE, "blk.0.attn_q.weight", 0, FWD_TYPE_F32, 0, NULL},
        {TINY_ADD, "rope_freqs.weight", 0, 8, 0, NULL},
    };
    struct loaded l;
    load_tiny(&l, "llama", false, true, &edits[_i], NULL, NULL);
    ck_assert_msg(l.status == FWD_OK, "%s: %s", edits[_i].name, l.err.message);
    if (edits[_i].action == TINY_ADD) {
        ck_assert_ptr_nonnull(l.model->config.rope_factors);
        ck_assert(l.model->config.rope_factors[3] == 3.5f);
    }
    if (edits[_i].action == TINY_DROP && _i == 1)
        ck_assert(!l.model->layers[0].bk.data && l.model->layers[0].bq.data && l.model->layers[1].bk.data);
    unload_tiny(&l);
}
END_TEST

static void change_heads(void *ud, struct fwd_config *c) {
    for (int h = 0; h < c->n_head; h++)
        c->kv_head_of[h] = h % *(int *)ud;
}

START_TEST(test_hook) {
    struct loaded l;
    int modulus = TINY_KV_HEADS;
    load_tiny(&l, "qwen2", true, true, NULL, change_heads, &modulus);
    ck_assert_msg(l.status == FWD_OK, "%s", l.err.message);
    ck_assert(l.model->config.kv_head_of[1] == 1 && l.model->config.kv_head_of[2] == 0);
    unload_tiny(&l);
    modulus = TINY_HEADS; /* a hook cannot make a path read outside the cache */
    load_tiny(&l, "qwen2", true, true, NULL, change_heads, &modulus);
    ck_assert_int_eq(l.status, FWD_ERANGE);
    ck_assert_ptr_nonnull(strstr(l.err.message, "head 2 reads KV head 2, expected 0 to 1"));
    unload_tiny(&l);
}
END_TEST

/* The committed bad files (fixtures/gen_bad_gguf.py), refused by the reader or by the binding; the fuzzing corpus's
 * good models are bound. They were written by other code than gguf_bytes.h. */
static const struct file_case {
    const char *path;
    enum fwd_status status;
    const char *says;
} file_cases[] = {
    {"bad/truncated-header", FWD_ETRUNCATED, "needs 8 bytes, the file has 4 left"},
    {"bad/truncated-keys", FWD_ETRUNCATED, "needs 20 bytes, the file has 4 left"},
    {"bad/truncated-directory", FWD_ETRUNCATED, "dimension of tensor 5"},
    {"bad/truncated-data", FWD_ETRUNCATED, "\"output_norm.weight\": 128 bytes"},
    {"bad/big-endian", FWD_EVERSION, "big-endian"},
    {"bad/version-1", FWD_EVERSION, "version 1, expected 2 or 3"},
    {"bad/version-4", FWD_EVERSION, "version 4, expected 2 or 3"},
    {"bad/not-gguf", FWD_ECORRUPT, "not a GGUF file"},
    {"bad/key-length-huge", FWD_ETRUNCATED, "key 0 at byte 32 needs 18446744073709551615 bytes"},
    {"bad/tensor-count-huge", FWD_ETRUNCATED, "tensor name 11"},
    {"bad/duplicate-key", FWD_ECORRUPT, "key \"general.name\" occurs twice"},
    {"bad/duplicate-tensor", FWD_ECORRUPT, "occurs twice"},
    {"bad/dims-overflow", FWD_ECORRUPT, "overflow"},
    {"bad/offset-outside", FWD_ETRUNCATED, "do not fit"},
    {"bad/offset-unaligned", FWD_ECORRUPT, "offset 1, expected a multiple of 32"},
    {"bad/overlap", FWD_ECORRUPT, "inside tensor \"token_embd.weight\""},
    {"bad/type-unknown", FWD_ETYPE, "type 99"},
    {"bad/type-removed", FWD_ETYPE, "Q4_2 (removed)"},
    {"bad/type-undecodable", FWD_ETYPE, "IQ4_NL"},
    {"bad/wrong-shape", FWD_ESHAPE, "blk.0.ffn_up.weight: ne[1] is 63, expected 64"},
    {"bad/nan-norm", FWD_ECORRUPT, "blk.0.ffn_norm.weight: value 31 is nan"},
    {"bad/missing-tensor", FWD_EMISSING, "blk.0.attn_v.weight is missing"},
    {"bad/extra-tensor", FWD_EUNSUPPORTED, "blk.0.attn_q_norm.weight has no place"},
    {"bad/unknown-architecture", FWD_EUNSUPPORTED, "\"mamba\" is not known"},
    {"bad/more-tokens-than-rows", FWD_ESHAPE, "at least the 5 tokens"},
    {"fuzz/gguf/llama-tied", FWD_OK, ""},
    {"fuzz/gguf/llama-two-layers-v2", FWD_OK, ""},
    {"fuzz/gguf/qwen2-bias", FWD_OK, ""},
    {"fuzz/gguf/qwen2-alignment-64", FWD_OK, ""},
};

/* Allocation number fail_at, counted from 0, fails (the Makefile links this test with --wrap). */
static int fail_at = -1, n_allocations;
int __real_posix_memalign(void **out, size_t alignment, size_t n_bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t n_bytes);

int __wrap_posix_memalign(void **out, size_t alignment, size_t n_bytes) {
    return n_allocations++ == fail_at ? ENOMEM : __real_posix_memalign(out, alignment, n_bytes);
}

/* Whichever allocation fails, opening or binding says so and leaves nothing behind (leaks: ASan's run of this test). */
START_TEST(test_no_memory) {
    enum fwd_status status = FWD_ENOMEM;
    int n_refused = 0;
    for (fail_at = 0; status == FWD_ENOMEM; fail_at++, n_refused++) {
        struct fwd_error err = {0};
        struct fwd_gguf *file;
        struct fwd_model *model = NULL;
        n_allocations = 0;
        status = fwd_gguf_open(&file, "fixtures/fuzz/gguf/qwen2-bias.gguf", &err);
        if (status == FWD_OK)
            status = fwd_model_bind(&model, file, NULL, NULL, &err);
        ck_assert_msg(status == FWD_OK || (status == FWD_ENOMEM && err.message[0] && !model),
                      "allocation %d: status %d (%s)", fail_at, status, err.message);
        fwd_model_free(model);
        fwd_gguf_close(file);
    }
    ck_assert_int_eq(status, FWD_OK);
    ck_assert_int_ge(n_refused, 31 + 2); /* one for every name, and the tables */
}
END_TEST

START_TEST(test_committed_file) {
    const struct file_case *f = &file_cases[_i];
    struct fwd_error err = {0};
    struct fwd_gguf *file = NULL;
    struct fwd_model *model = NULL;
    char path[96];
    (void)snprintf(path, sizeof path, "fixtures/%s.gguf", f->path);
    enum fwd_status status = fwd_gguf_open(&file, path, &err);
    if (status == FWD_OK)
        status = fwd_model_bind(&model, file, NULL, NULL, &err);
    ck_assert_msg(status == f->status, "%s: status %d (%s), expected %d", path, status, err.message, f->status);
    ck_assert_msg(strstr(err.message, f->says) != NULL, "%s: \"%s\" lacks \"%s\"", path, err.message, f->says);
    ck_assert((model != NULL) == (f->status == FWD_OK));
    fwd_model_free(model);
    fwd_gguf_close(file);
}
END_TEST

int main(void) {
    Suite *s = suite_create("model");
    TCase *t = tcase_create("model");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_good, 0, 8);
    tcase_add_loop_test(t, test_refusal, 0, sizeof refusals / sizeof *refusals);
    tcase_add_loop_test(t, test_accepted, 0, 10);
    tcase_add_test(t, test_hook);
    tcase_add_test(t, test_no_memory);
    tcase_add_loop_test(t, test_committed_file, 0, sizeof file_cases / sizeof *file_cases);
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
