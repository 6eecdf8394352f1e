/* The judge's own reading of a model file: keys and their defaults, tensors by name, refusals; and what the streaming
 * judge may remember from one run to the next. Files are made here, each tensor filled with a number of its own. */
#include "spec/judge.h"
#include "spec/spec_model.h"

#include "test/gguf_bytes.h"

#include <check.h>
#include <math.h>
#include <stdio.h>

enum { EMBD = 8, HEADS = 4, FF = 6, VOCAB = 5, LAYERS = 2 };

/* What a file has beside the keys that every file needs. 0, NULL: not there. */
struct spec_file {
    const char *arch, *no_tensor, *no_key, *scaling;
    uint32_t kv_heads, head_dim, n_rope;
    float theta;
    bool bias, own_head, factors;
};

static void add_filled(struct gguf_bytes *g, const struct spec_file *f, const char *name, uint64_t n_cols,
                       uint64_t n_rows, float value) {
    float x[256];
    uint64_t ne[2] = {n_cols, n_rows};
    ck_assert_uint_le(n_cols * n_rows, 256);
    for (int i = 0; i < 256; i++)
        x[i] = value;
    if (!f->no_tensor || strcmp(name, f->no_tensor) != 0)
        add_tensor(g, name, FWD_TYPE_F32, n_rows > 1 ? 2 : 1, ne, x);
}

/* Tensor number t of layer il holds 100 * (il + 1) + t. */
static void add_layer(struct gguf_bytes *g, const struct spec_file *f, uint32_t dim, uint32_t kv, int il) {
    const struct {
        const char *name;
        uint32_t n_cols, n_rows;
    } list[] = {{"attn_norm.weight", EMBD, 1},
                {"attn_q.weight", EMBD, HEADS * dim},
                {"attn_k.weight", EMBD, kv * dim},
                {"attn_v.weight", EMBD, kv * dim},
                {"attn_output.weight", HEADS * dim, EMBD},
                {"ffn_norm.weight", EMBD, 1},
                {"ffn_gate.weight", EMBD, FF},
                {"ffn_up.weight", EMBD, FF},
                {"ffn_down.weight", FF, EMBD},
                {"attn_q.bias", HEADS * dim, 1},
                {"attn_k.bias", kv * dim, 1},
                {"attn_v.bias", kv * dim, 1}};
    for (int t = 0; t < (f->bias ? 12 : 9); t++) {
        char name[64];
        (void)snprintf(name, sizeof name, "blk.%d.%s", il, list[t].name);
        add_filled(g, f, name, list[t].n_cols, list[t].n_rows, (float)(100 * (il + 1) + t));
    }
}

static void add_key(struct gguf_bytes *g, const struct spec_file *f, const char *suffix, uint32_t v, float real) {
    char key[96];
    (void)snprintf(key, sizeof key, "%s.%s", f->arch, suffix);
    if (f->no_key && !strcmp(f->no_key, suffix))
        return;
    if (real != 0)
        add_f32(g, key, real);
    else if (v)
        add_u32(g, key, v);
}

struct opened {
    uint8_t *bytes;
    struct fwd_gguf *file;
    struct par_spec_model *m;
};

static enum fwd_status open_file(struct opened *o, const struct spec_file *f, struct fwd_error *err) {
    struct gguf_bytes g = {0};
    size_t n_bytes;
    uint32_t kv = f->kv_heads ? f->kv_heads : HEADS, dim = f->head_dim ? f->head_dim : EMBD / HEADS;
    *o = (struct opened){0};
    add_str(&g, "general.architecture", f->arch);
    add_key(&g, f, "block_count", LAYERS, 0);
    add_key(&g, f, "embedding_length", EMBD, 0);
    add_key(&g, f, "feed_forward_length", FF, 0);
    add_key(&g, f, "attention.head_count", HEADS, 0);
    add_key(&g, f, "attention.head_count_kv", f->kv_heads, 0);
    add_key(&g, f, "attention.key_length", f->head_dim, 0);
    add_key(&g, f, "rope.dimension_count", f->n_rope, 0);
    add_key(&g, f, "rope.freq_base", 0, f->theta);
    add_key(&g, f, "attention.layer_norm_rms_epsilon", 0, 0x1p-17f);
    if (f->scaling) {
        char key[96];
        (void)snprintf(key, sizeof key, "%s.rope.scaling.type", f->arch);
        add_str(&g, key, f->scaling);
    }
    add_filled(&g, f, "token_embd.weight", EMBD, VOCAB, 1);
    add_filled(&g, f, "output_norm.weight", EMBD, 1, 2);
    if (f->own_head)
        add_filled(&g, f, "output.weight", EMBD, VOCAB, 3);
    if (f->factors)
        add_filled(&g, f, "rope_freqs.weight", (f->n_rope ? f->n_rope : dim) / 2, 1, 4);
    for (int il = 0; il < LAYERS; il++)
        add_layer(&g, f, dim, kv, il);
    o->bytes = finish_gguf(&g, 3, &n_bytes, NULL);
    ck_assert_msg(fwd_gguf_parse(&o->file, o->bytes, n_bytes, err) == FWD_OK, "%s", err->message);
    return par_spec_open(&o->m, o->file, err);
}

static void close_file(struct opened *o) {
    par_spec_close(o->m);
    fwd_gguf_close(o->file);
    free(o->bytes);
}

static void open_good(struct opened *o, const struct spec_file *f) {
    struct fwd_error err = {.message = ""};
    ck_assert_msg(open_file(o, f, &err) == FWD_OK, "%s", err.message);
}

START_TEST(keys_that_are_not_there) {
    /* Every head its own keys, heads of n_embd / n_head values that rotate as a whole, base 10000, tied head. */
    const struct spec_file f = {.arch = "llama"};
    struct opened o;
    open_good(&o, &f);
    const struct par_spec_config *c = par_spec_config(o.m);
    ck_assert_str_eq(c->arch, "llama");
    ck_assert_msg(c->n_layer == LAYERS && c->n_embd == EMBD && c->n_ff == FF && c->n_vocab == VOCAB, "sizes");
    ck_assert_msg(c->n_head == HEADS && c->n_kv_head == HEADS && c->head_dim == 2 && c->n_rope == 2, "%d %d %d %d",
                  c->n_head, c->n_kv_head, c->head_dim, c->n_rope);
    ck_assert_msg(c->rope_theta == 10000 && c->norm_eps == 0x1p-17, "%g %g", c->rope_theta, c->norm_eps);
    ck_assert_msg(!c->rope_neox && !c->qkv_bias && c->tied_head, "llama rotates neighbours and has no biases");
    close_file(&o);
}
END_TEST

START_TEST(keys_that_are_there) {
    const struct spec_file f = {
        .arch = "qwen2", .kv_heads = 2, .head_dim = 6, .n_rope = 4, .theta = 500000, .bias = true};
    struct opened o;
    open_good(&o, &f);
    const struct par_spec_config *c = par_spec_config(o.m);
    ck_assert_msg(c->n_kv_head == 2 && c->head_dim == 6 && c->n_rope == 4, "%d %d %d", c->n_kv_head, c->head_dim,
                  c->n_rope);
    ck_assert_msg(c->rope_theta == 500000 && c->rope_neox && c->qkv_bias, "theta %g", c->rope_theta);
    close_file(&o);
}
END_TEST

static double first_of(const struct spec_weight *w) {
    float x = -1;
    if (w && w->data)
        memcpy(&x, w->data, sizeof x);
    return (double)x;
}

START_TEST(tensors_by_name) {
    static const struct {
        enum fwd_op op;
        int weight, bias; /* number in add_layer; -1: none */
    } rows[] = {{FWD_OP_ATTN_NORM, 0, -1}, {FWD_OP_QCUR, 1, 9},      {FWD_OP_KCUR, 2, 10},
                {FWD_OP_VCUR, 3, 11},      {FWD_OP_ATTN_OUT, 4, -1}, {FWD_OP_FFN_NORM, 5, -1},
                {FWD_OP_FFN_GATE, 6, -1},  {FWD_OP_FFN_UP, 7, -1},   {FWD_OP_FFN_OUT, 8, -1}};
    for (int own = 0; own < 2; own++) {
        const struct spec_file f = {.arch = "qwen2", .kv_heads = 2, .bias = true, .own_head = own, .factors = own};
        struct opened o;
        open_good(&o, &f);
        for (int il = 0; il < LAYERS; il++)
            for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
                const char *op = fwd_op_name(rows[i].op);
                double weight = first_of(par_spec_weight(o.m, rows[i].op, il)), want = 100 * (il + 1) + rows[i].weight;
                ck_assert_msg(weight == want, "%s of layer %d: weight %g, expected %g", op, il, weight, want);
                double bias = first_of(par_spec_bias(o.m, rows[i].op, il));
                want = rows[i].bias < 0 ? -1 : 100 * (il + 1) + rows[i].bias;
                ck_assert_msg(bias == want, "%s of layer %d: bias %g, expected %g", op, il, bias, want);
            }
        ck_assert(first_of(par_spec_weight(o.m, FWD_OP_INP_EMBD, -1)) == 1);
        ck_assert(first_of(par_spec_weight(o.m, FWD_OP_RESULT_NORM, -1)) == 2);
        ck_assert_msg(first_of(par_spec_weight(o.m, FWD_OP_RESULT_OUTPUT, -1)) == (own ? 3 : 1), "own %d", own);
        ck_assert(first_of(&o.m->rope_factors) == (own ? 4 : -1));
        close_file(&o);
    }
}
END_TEST

START_TEST(refused) {
    static const struct {
        struct spec_file file;
        const char *says;
    } cases[] = {
        {{.arch = "qwen2", .bias = true, .no_tensor = "blk.1.attn_v.bias"}, "blk.1.attn_v.bias: missing"},
        {{.arch = "llama", .no_tensor = "blk.0.ffn_norm.weight"}, "blk.0.ffn_norm.weight: missing"},
        {{.arch = "llama", .no_tensor = "output_norm.weight"}, "output_norm.weight: missing"},
        {{.arch = "llama", .no_key = "attention.layer_norm_rms_epsilon"}, "rms_epsilon: absent"},
        {{.arch = "llama", .no_key = "block_count"}, "block_count: absent"},
        {{.arch = "llama", .kv_heads = 3}, "4 heads are no multiple of 3"},
        {{.arch = "llama", .n_rope = 4}, "rotates 4 of 2"},
        {{.arch = "llama", .scaling = "yarn"}, "yarn, expected none"},
        {{.arch = "gpt2"}, "architecture gpt2"},
    };
    struct opened o;
    struct fwd_error err = {.message = ""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_msg(open_file(&o, &cases[i].file, &err) != FWD_OK, "case %zu was accepted", i);
        ck_assert_msg(strstr(err.message, cases[i].says) != NULL, "%s, expected %s", err.message, cases[i].says);
        close_file(&o);
    }
}
END_TEST

/* ---- what the streaming judge remembers
 * -------------------------------------------------------------------------------------------------------------- */
static bool declare(void *ud, enum fwd_op op, int il, struct fwd_numerics *out) {
    (void)ud, (void)op, (void)il;
    *out = (struct fwd_numerics){.size = sizeof *out, .act = FWD_F32, .store = FWD_F32, .accumulator = FWD_ACC_F32};
    out->final_roundings = 1;
    return true;
}

static void tap(struct par_judge *j, enum fwd_op op, float *rows, int64_t n, int pos0, int n_pos) {
    struct fwd_view v = {.size = sizeof v, .op = op, .layer = fwd_op_in_layer(op) ? 0 : -1, .pos0 = pos0, .data = rows};
    bool cache = op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
    v.n_pos = n_pos;
    v.dtype = FWD_F32;
    v.ne[0] = cache ? n / HEADS : n;
    v.ne[1] = cache ? HEADS : n_pos;
    v.ne[2] = cache ? pos0 + n_pos : 1;
    v.ne[3] = 1;
    v.nb[0] = 4;
    v.nb[1] = 4 * v.ne[0];
    v.nb[2] = 4 * n;
    ck_assert_int_eq(par_judge_tap(j, &v), 0);
}

static const struct par_op_row *row_of(struct par_judge *j, enum fwd_op op) {
    const struct par_op_row *rows;
    int n;
    struct fwd_error err = {.message = ""};
    ck_assert_msg(par_judge_rows(j, &rows, &n, &err) == FWD_OK, "%s", err.message);
    for (int i = 0; i < n; i++)
        if (rows[i].op == op && rows[i].layer <= 0)
            return &rows[i];
    ck_abort_msg("no row of %s", fwd_op_name(op));
    return NULL;
}

START_TEST(nothing_of_an_older_run) {
    const struct spec_file f = {.arch = "llama"};
    struct par_judge_options options = {.numerics = declare, .sample_every = 1};
    struct fwd_error err = {.message = ""};
    struct par_judge *j;
    struct opened o;
    int32_t ids[] = {1, 2, 3, 4};
    float ones[2 * EMBD], zeros[2 * EMBD] = {0};
    for (int i = 0; i < 2 * EMBD; i++)
        ones[i] = 1;
    open_good(&o, &f);
    ck_assert_msg(par_judge_open(&j, o.m, &options, &err) == FWD_OK, "%s", err.message);
    /* The first run shows what the residual is made of; the sum itself, 1 + 0, is right. */
    ck_assert_int_eq(par_judge_seq_begin(j, &err), FWD_OK);
    ck_assert_int_eq(par_judge_tokens(j, ids, 4, &err), FWD_OK);
    tap(j, FWD_OP_INP_EMBD, ones, EMBD, 0, 2);
    tap(j, FWD_OP_VCUR, ones, EMBD, 0, 2);
    tap(j, FWD_OP_ATTN_OUT, zeros, EMBD, 0, 2);
    tap(j, FWD_OP_FFN_INP, ones, EMBD, 0, 2);
    ck_assert_msg(row_of(j, FWD_OP_FFN_INP)->verdict == PAR_HELD, "%s", row_of(j, FWD_OP_FFN_INP)->note);
    /* The next one does not: what is left of the first must not pass for its input. */
    tap(j, FWD_OP_INP_EMBD, ones, EMBD, 0, 2);
    tap(j, FWD_OP_FFN_INP, ones, EMBD, 0, 2);
    ck_assert_msg(row_of(j, FWD_OP_FFN_INP)->verdict == PAR_UNMEASURED, "judged with an older run's attn_out");
    /* A new sequence of which only the end is shown: its cache may hold anything at the positions before. */
    ck_assert_int_eq(par_judge_seq_begin(j, &err), FWD_OK);
    ck_assert_int_eq(par_judge_tokens(j, ids, 4, &err), FWD_OK);
    float cache[3 * EMBD];
    for (int i = 0; i < 3 * EMBD; i++)
        cache[i] = i < 2 * EMBD ? 7 : 1;
    tap(j, FWD_OP_INP_EMBD, ones, EMBD, 2, 1);
    tap(j, FWD_OP_VCUR, ones, EMBD, 2, 1);
    tap(j, FWD_OP_V_CACHE, cache, EMBD, 2, 1);
    const struct par_op_row *row = row_of(j, FWD_OP_V_CACHE);
    ck_assert_msg(row->verdict == PAR_HELD && row->n_judged == EMBD, "%s, %llu judged: rows of the sequence before",
                  par_verdict_name(row->verdict), (unsigned long long)row->n_judged);
    par_judge_close(j);
    close_file(&o);
}
END_TEST

START_TEST(positions_of_a_sample) {
    /* Every 4th position with 1 among them: 1 and 5; and 0 and 6 whatever the step. One element wrong at 6, one at 3.
     */
    const struct spec_file f = {.arch = "llama"};
    struct par_judge_options options = {
        .numerics = declare, .sample_every = 4, .sample_at = 1, .judge_also = true, .also = {0, 6}};
    struct fwd_error err = {.message = ""};
    struct par_judge *j;
    struct opened o;
    int32_t ids[7] = {0};
    float ones[7 * EMBD], zeros[7 * EMBD] = {0};
    for (int i = 0; i < 7 * EMBD; i++)
        ones[i] = i == 3 * EMBD || i == 6 * EMBD ? 2 : 1;
    open_good(&o, &f);
    ck_assert_msg(par_judge_open(&j, o.m, &options, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_eq(par_judge_tokens(j, ids, 7, &err), FWD_OK);
    tap(j, FWD_OP_INP_EMBD, ones, EMBD, 0, 7);
    const struct par_op_row *row = row_of(j, FWD_OP_INP_EMBD); /* the table is all ones */
    ck_assert_msg(row->n_judged == 4 * EMBD && row->n_over == 1 && row->worst.pos == 6, "%llu judged, %llu over at %d",
                  (unsigned long long)row->n_judged, (unsigned long long)row->n_over, row->worst.pos);
    tap(j, FWD_OP_ATTN_OUT, zeros, EMBD, 0, 7);
    tap(j, FWD_OP_FFN_INP, ones, EMBD, 0, 7);
    int n_positions;
    uint64_t n_elements;
    ck_assert_uint_eq(row_of(j, FWD_OP_FFN_INP)->n_judged, 4 * EMBD);
    par_judge_coverage(j, &n_positions, &n_elements);
    ck_assert_int_eq(n_positions, 4);
    par_judge_close(j);
    close_file(&o);
}
END_TEST

int main(void) {
    Suite *s = suite_create("spec, model");
    TCase *t = tcase_create("model");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, keys_that_are_not_there);
    tcase_add_test(t, keys_that_are_there);
    tcase_add_test(t, tensors_by_name);
    tcase_add_test(t, refused);
    tcase_add_test(t, nothing_of_an_older_run);
    tcase_add_test(t, positions_of_a_sample);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
