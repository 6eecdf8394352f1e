/* The reference paths f32 and f64: against the numpy oracle's logits (fixtures/oracle_forward.py), on two tiny models
 * that hold every block type and, where they were fetched (make model), on the two real ones; then the contract of the
 * path table: taps, overrides, wanted logits, errors, the emulated activations.
 *
 * The models folder is $PARITY_MODELS, else $XDG_CACHE_HOME or ~/.cache, as `make model` has it. A model that is not
 * there is reported as skipped and its tests are not run. */
#include "core/half.h"
#include "engine.h"
#include "ops/act_quant/act_quant.h"
#include "ops/variant_table.h"
#include "paths/ref_ops.h"

#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TOKENS = 128, PATH_BYTES = 512 };

static const struct golden_model {
    const char *name, *file;
    bool real;
} models[] = {
    {"tiny-qwen2", "fixtures/golden/forward-tiny-qwen2.gguf", false},
    {"tiny-llama", "fixtures/golden/forward-tiny-llama.gguf", false},
    {"smollm2-135m", "smollm2-135m.gguf", true},
    {"qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b.gguf", true},
};
enum { N_MODELS = sizeof models / sizeof *models, N_TINY = 2 };

static void model_path(const struct golden_model *m, char *path) {
    const char *folder = getenv("PARITY_MODELS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (!m->real)
        (void)snprintf(path, PATH_BYTES, "%s", m->file);
    else if (folder)
        (void)snprintf(path, PATH_BYTES, "%s/%s", folder, m->file);
    else if (cache)
        (void)snprintf(path, PATH_BYTES, "%s/parity/models/%s", cache, m->file);
    else
        (void)snprintf(path, PATH_BYTES, "%s/.cache/parity/models/%s", home ? home : "", m->file);
}

/* ---- the oracle's file ------------------------------------------------------------------------------------------- */
struct golden {
    uint8_t *bytes;
    int n_tokens, n_vocab, n_kept;
    int32_t ids[MAX_TOKENS];
};

static void read_at(const struct golden *g, size_t at, void *out, size_t n) {
    memcpy(out, g->bytes + at, n);
}

static void open_golden(struct golden *g, const char *name) {
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "fixtures/golden/forward-%s.bin", name);
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s: cannot open (run from the repository root)", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    ck_assert_int_gt(size, 16);
    rewind(f);
    g->bytes = fwd_alloc((size_t)size, 1);
    ck_assert_uint_eq(fread(g->bytes, 1, (size_t)size, f), (size_t)size);
    (void)fclose(f);
    ck_assert_mem_eq(g->bytes, "PFWD", 4);
    read_at(g, 4, &g->n_tokens, 4);
    read_at(g, 8, &g->n_vocab, 4);
    read_at(g, 12, &g->n_kept, 4);
    ck_assert_int_le(g->n_tokens, MAX_TOKENS);
    size_t expected =
        16 + (size_t)g->n_tokens * 4 + (size_t)g->n_tokens * (8 + 12 * (size_t)g->n_kept) + 8 * (size_t)g->n_vocab;
    ck_assert_uint_eq((size_t)size, expected);
    read_at(g, 16, g->ids, (size_t)g->n_tokens * 4);
}

static size_t position_at(const struct golden *g, int pos) {
    return 16 + (size_t)g->n_tokens * 4 + (size_t)pos * (8 + 12 * (size_t)g->n_kept);
}

/* Largest |logits - oracle| over what the oracle kept of that position, over the position's largest |logit|. */
static double position_distance(const struct golden *g, int pos, const double *logits) {
    size_t at = position_at(g, pos);
    double largest, worst = 0;
    read_at(g, at, &largest, 8);
    for (int i = 0; i < g->n_kept; i++) {
        int32_t id;
        double value;
        read_at(g, at + 8 + 4 * (size_t)i, &id, 4);
        read_at(g, at + 8 + 4 * (size_t)g->n_kept + 8 * (size_t)i, &value, 8);
        worst = fmax(worst, isnan(logits[id]) ? HUGE_VAL : fabs(logits[id] - value));
    }
    if (pos == g->n_tokens - 1)
        for (int id = 0; id < g->n_vocab; id++) {
            double value;
            read_at(g, position_at(g, pos + 1) + 8 * (size_t)id, &value, 8);
            worst = fmax(worst, isnan(logits[id]) ? HUGE_VAL : fabs(logits[id] - value));
        }
    return worst / largest;
}

/* ---- a session on a model ---------------------------------------------------------------------------------------- */
struct fixture {
    struct fwd_gguf *file;
    const struct fwd_path *path;
    struct fwd_session *s;
    struct golden golden;
    int64_t n_vocab;
    struct fwd_error err;
};

static struct fwd_knobs default_knobs(void) {
    return (struct fwd_knobs){.size = sizeof(struct fwd_knobs), .n_ctx = MAX_TOKENS, .n_seq = 1, .n_batch = MAX_TOKENS};
}

static void open_fixture(struct fixture *f, const char *path, const struct golden_model *m,
                         const struct fwd_knobs *knobs) {
    char file[PATH_BYTES];
    memset(f, 0, sizeof *f);
    model_path(m, file);
    ck_assert_msg(fwd_gguf_open(&f->file, file, &f->err) == FWD_OK, "%s", f->err.message);
    f->path = fwd_path_find(path);
    ck_assert_ptr_nonnull(f->path);
    ck_assert_msg(f->path->open(&f->s, f->file, knobs, &f->err) == FWD_OK, "%s", f->err.message);
    f->n_vocab = f->path->config(f->s)->n_vocab;
    open_golden(&f->golden, m->name);
    ck_assert_int_eq(f->golden.n_vocab, f->n_vocab);
}

static void close_fixture(struct fixture *f) {
    f->path->close(f->s);
    fwd_gguf_close(f->file);
    fwd_free(f->golden.bytes);
}

/* The first n tokens; logits of all of them, in double, [n][n_vocab], to be freed. */
static double *run_all(struct fixture *f, int n, fwd_tap_fn *tap, void *ud) {
    uint8_t want[MAX_TOKENS];
    memset(want, 1, sizeof want);
    double *logits = fwd_alloc((size_t)n * (size_t)f->n_vocab, sizeof *logits);
    struct fwd_run_args args = {.size = sizeof args,
                                .tokens = f->golden.ids,
                                .n_tokens = n,
                                .want_logits = want,
                                .logits_f64 = logits,
                                .tap = tap,
                                .tap_ud = ud};
    ck_assert_msg(f->path->run(f->s, &args, &f->err) == FWD_OK, "%s", f->err.message);
    return logits;
}

static size_t logits_bytes(const struct fixture *f, int n) {
    return (size_t)n * (size_t)f->n_vocab * sizeof(double);
}

/* ---- against the oracle ------------------------------------------------------------------------------------------ */
static const struct bar {
    const char *path;
    double most;
} bars[] = {{"f64", 1e-7}, {"f32", 1e-5}};

static void check_golden(const struct golden_model *m, const struct bar *bar) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, bar->path, m, &knobs);
    double *logits = run_all(&f, f.golden.n_tokens, NULL, NULL), worst = 0;
    int worst_pos = 0;
    for (int pos = 0; pos < f.golden.n_tokens; pos++) {
        double d = position_distance(&f.golden, pos, logits + pos * f.n_vocab);
        worst_pos = d > worst ? pos : worst_pos;
        worst = fmax(worst, d);
    }
    (void)printf("%s %s: %d positions, largest difference %.2e of the largest logit (position %d)\n", bar->path,
                 m->name, f.golden.n_tokens, worst, worst_pos);
    ck_assert_msg(worst <= bar->most, "%s %s: %.3e at position %d, expected at most %.0e", bar->path, m->name, worst,
                  worst_pos, bar->most);
    fwd_free(logits);
    close_fixture(&f);
}

START_TEST(test_golden) {
    check_golden(&models[_i / 2], &bars[_i % 2]);
}
END_TEST

/* ---- the contract of the path table ------------------------------------------------------------------------------
 * Each test runs for every row: a path on a tiny model, plain or with emulated activations. */
static const struct contract_row {
    const char *path;
    int model;
    const char *act;
} rows[] = {
    {"f32", 0, NULL},         {"f32", 1, NULL},         {"f64", 0, NULL},         {"f64", 1, "none"},
    {"f32", 0, "as:q4k-cpu"}, {"f32", 1, "as:q4k-cpu"}, {"f64", 0, "as:q4k-cpu"}, {"f64", 1, "as:q4k-cpu"},
};
enum { N_ROWS = sizeof rows / sizeof *rows, N = 9 };

static bool emulates(const struct contract_row *row) {
    return row->act && strcmp(row->act, "none") != 0;
}

static struct fwd_knobs row_knobs(const struct contract_row *row) {
    struct fwd_knobs knobs = default_knobs();
    knobs.act = row->act;
    knobs.kv_type = FWD_F16;
    return knobs;
}

static void open_row(struct fixture *f, int i) {
    struct fwd_knobs knobs = row_knobs(&rows[i]);
    open_fixture(f, rows[i].path, &models[rows[i].model], &knobs);
}

static bool is_q8(enum fwd_op op) {
    return strstr(fwd_op_name(op), "_q8") != NULL;
}

/* One run more, whose logits must be the bits of `expected`. */
static void check_same(struct fixture *f, const double *expected, fwd_tap_fn *tap, void *ud, const char *what) {
    double *logits = run_all(f, N, tap, ud);
    ck_assert_msg(!memcmp(logits, expected, logits_bytes(f, N)), "%s: logits differ", what);
    fwd_free(logits);
}

static void check_differ(struct fixture *f, const double *expected, fwd_tap_fn *tap, void *ud, const char *what) {
    double *logits = run_all(f, N, tap, ud);
    ck_assert_msg(memcmp(logits, expected, logits_bytes(f, N)) != 0, "%s: logits do not change", what);
    fwd_free(logits);
}

/* -- bits: threads, variants, sessions, prefixes, wanted positions -- */
START_TEST(test_same_bits) {
    static const struct {
        const char *caps;
        int n_threads;
    } sessions[] = {{"ref", 2}, {"avx2", 3}, {"avx512", 1}, {"avx512", 2}};
    struct fixture f, other;
    open_row(&f, _i);
    double *expected = run_all(&f, N, NULL, NULL);
    check_same(&f, expected, NULL, NULL, "second run");
    for (size_t i = 0; i < sizeof sessions / sizeof *sessions; i++) {
        unsigned mask;
        if (fwd_cpu_parse(sessions[i].caps, fwd_cpu_detect(), &mask, NULL) != FWD_OK)
            continue;
        struct fwd_knobs knobs = row_knobs(&rows[_i]);
        knobs.caps = sessions[i].caps;
        knobs.n_threads = sessions[i].n_threads;
        open_fixture(&other, rows[_i].path, &models[rows[_i].model], &knobs);
        struct fwd_variant_choice choice;
        ck_assert(other.path->variant(other.s, 0, &choice));
        ck_assert_str_eq(choice.variant, sessions[i].caps);
        check_same(&other, expected, NULL, NULL, sessions[i].caps);
        close_fixture(&other);
    }
    for (int n = 1; n < N; n += 3) {
        double *prefix = run_all(&f, n, NULL, NULL);
        ck_assert_msg(!memcmp(prefix, expected, logits_bytes(&f, n)), "the first %d tokens alone: logits differ", n);
        fwd_free(prefix);
    }
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

START_TEST(test_wanted_logits) {
    struct fixture f;
    open_row(&f, _i);
    double *all = run_all(&f, N, NULL, NULL);
    static const char *const patterns[] = {"000000000", "100000001", "011011010", NULL};
    for (int p = 0; p < 4; p++) {
        uint8_t want[N];
        int n_wanted = 0;
        for (int i = 0; i < N; i++)
            n_wanted += want[i] = patterns[p] ? patterns[p][i] == '1' : i == N - 1;
        size_t n = (size_t)n_wanted * (size_t)f.n_vocab;
        float *f32 = fwd_calloc(n + 1, sizeof *f32);
        double *f64 = fwd_calloc(n + 1, sizeof *f64);
        f32[n] = 77;
        f64[n] = 77;
        struct fwd_run_args args = {.size = sizeof args,
                                    .tokens = f.golden.ids,
                                    .n_tokens = N,
                                    .want_logits = patterns[p] ? want : NULL,
                                    .logits = f32,
                                    .logits_f64 = f64};
        ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_OK);
        for (int i = 0, row = 0; i < N; i++)
            if (want[i]) {
                for (int64_t id = 0; id < f.n_vocab; id++) {
                    double expected = all[i * f.n_vocab + id];
                    ck_assert(!memcmp(&f64[row * f.n_vocab + id], &expected, sizeof expected));
                    ck_assert(f32[row * f.n_vocab + id] == (float)expected);
                }
                row++;
            }
        ck_assert(f32[n] == 77 && f64[n] == 77); /* nothing past the last wanted row */
        fwd_free(f32);
        fwd_free(f64);
    }
    fwd_free(all);
    close_fixture(&f);
}
END_TEST

/* -- taps -- */
struct tap_log {
    struct fixture *f;
    const struct contract_row *row;
    int n, n_seen[FWD_OP_COUNT];
    enum fwd_op last_op;
    int last_layer;
    enum fwd_op stop_at, write_at; /* FWD_OP_COUNT: none */
    float *k_rope;                 /* the latest Kcur_rope as F32 */
};

static double value_at(const struct fwd_view *v, int64_t i) {
    return v->dtype == FWD_F64 ? ((const double *)v->data)[i] : (double)((const float *)v->data)[i];
}

/* Changes one value in the middle of a view: of a position that sees several keys. */
static void spoil(const struct fwd_view *v) {
    int64_t middle = v->ne[0] * v->ne[1] * v->ne[2] / 2;
    if (v->dtype == FWD_F32)
        ((float *)v->data)[middle] += 1;
    else
        ((double *)v->data)[middle] += 1;
}

static void check_view(const struct tap_log *log, const struct fwd_view *v) {
    const struct fwd_config *c = log->f->path->config(log->f->s);
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    ck_assert_uint_eq(v->size, sizeof *v);
    ck_assert_int_eq(v->pos0, 0);
    ck_assert_int_eq(v->n_pos, N);
    ck_assert_int_eq(v->ne[cache ? 2 : 1], N);
    ck_assert_ptr_nonnull(v->data);
    ck_assert_int_eq(fwd_op_in_layer(v->op), v->layer >= 0);
    if (is_q8(v->op)) {
        ck_assert(v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32);
        ck_assert_int_eq(v->nb[1], (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]));
        return;
    }
    ck_assert_int_eq(v->dtype, strcmp(log->row->path, "f32") == 0 ? FWD_F32 : FWD_F64);
    ck_assert_int_eq(v->nb[1], v->ne[0] * v->nb[0]);
    if (cache) {
        ck_assert_int_eq(v->ne[0], c->head_dim);
        ck_assert_int_eq(v->ne[1], c->n_kv_head);
    }
}

/* K as attention reads it is Kcur_rope, rounded to binary16 where the emulated path stores that. */
static void check_k_rows(const struct tap_log *log, const struct fwd_view *v) {
    for (int64_t i = 0; i < v->ne[0] * v->ne[1] * v->ne[2]; i++) {
        float expected = emulates(log->row) ? fwd_f16_to_f32(fwd_f32_to_f16(log->k_rope[i])) : log->k_rope[i];
        ck_assert((float)value_at(v, i) == expected);
    }
}

static int log_tap(void *ud, const struct fwd_view *v) {
    struct tap_log *log = ud;
    check_view(log, v);
    if (log->n > 0)
        ck_assert_msg(v->layer > log->last_layer || v->op > log->last_op, "%s of layer %d after %s of layer %d",
                      fwd_op_name(v->op), v->layer, fwd_op_name(log->last_op), log->last_layer);
    struct fwd_numerics numerics;
    ck_assert(log->f->path->numerics(log->f->s, v->op, v->layer, &numerics));
    ck_assert_int_eq(numerics.store, v->dtype);
    if (v->op == FWD_OP_K_CACHE)
        check_k_rows(log, v);
    if (v->op == log->write_at)
        spoil(v);
    if (v->op == FWD_OP_KCUR_ROPE)
        for (int64_t i = 0; i < v->ne[0] * N; i++)
            log->k_rope[i] = (float)value_at(v, i);
    log->n++;
    log->n_seen[v->op]++;
    log->last_op = v->op;
    log->last_layer = v->layer;
    return v->op == log->stop_at;
}

static struct tap_log make_log(struct fixture *f, int row) {
    return (struct tap_log){.f = f,
                            .row = &rows[row],
                            .stop_at = FWD_OP_COUNT,
                            .write_at = FWD_OP_COUNT,
                            .k_rope = fwd_alloc(N * 4096, sizeof(float))};
}

START_TEST(test_taps) {
    struct fixture f;
    open_row(&f, _i);
    double *expected = run_all(&f, N, NULL, NULL);
    struct tap_log log = make_log(&f, _i);
    check_same(&f, expected, log_tap, &log, "with taps read");
    struct fwd_path_info info;
    f.path->describe(&info);
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        int layers = fwd_op_in_layer((enum fwd_op)op) ? f.path->config(f.s)->n_layer : 1;
        bool present = !is_q8((enum fwd_op)op) || emulates(&rows[_i]);
        /* The tiny llama's up and down are BF16 and F32: float inputs even where activations are emulated. */
        if (rows[_i].model == 1 && (op == FWD_OP_FFN_NORM_Q8 || op == FWD_OP_FFN_SWIGLU_Q8))
            present = false;
        ck_assert_msg(log.n_seen[op] == (present ? layers : 0), "%s: %d taps", fwd_op_name((enum fwd_op)op),
                      log.n_seen[op]);
        ck_assert_int_eq(info.taps[op], is_q8((enum fwd_op)op) ? FWD_TAP_ABSENT : FWD_TAP_WRITE);
    }
    fwd_free(log.k_rope);
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

/* What is written into a float tap is what follows uses. */
START_TEST(test_tap_writes) {
    struct fixture f;
    open_row(&f, _i);
    double *expected = run_all(&f, N, NULL, NULL);
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        if (is_q8((enum fwd_op)op))
            continue;
        struct tap_log log = make_log(&f, _i);
        log.write_at = (enum fwd_op)op;
        check_differ(&f, expected, log_tap, &log, fwd_op_name((enum fwd_op)op));
        fwd_free(log.k_rope);
    }
    check_same(&f, expected, NULL, NULL, "after the writes");
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

START_TEST(test_tap_stops) {
    struct fixture f;
    open_row(&f, _i);
    struct tap_log log = make_log(&f, _i);
    log.stop_at = FWD_OP_FFN_INP;
    struct fwd_run_args args = {
        .size = sizeof args, .tokens = f.golden.ids, .n_tokens = N, .tap = log_tap, .tap_ud = &log};
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_ESTOPPED);
    ck_assert_int_eq(log.last_op, FWD_OP_FFN_INP);
    ck_assert_int_eq(log.last_layer, 0);
    fwd_free(log.k_rope);
    close_fixture(&f);
}
END_TEST

/* -- overrides -- */
struct override_log {
    int n_calls;
    bool spoil; /* changes one value after the builtin */
    enum fwd_status fail;
};

static enum fwd_status override_op(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct override_log *log = ud;
    log->n_calls++;
    ck_assert_uint_eq(call->size, sizeof *call);
    ck_assert_int_eq(call->op, call->out->op);
    ck_assert_int_ge(call->n_in, 1);
    for (int i = 0; i < call->n_in; i++)
        ck_assert_ptr_nonnull(call->in[i]->data);
    if (log->fail != FWD_OK)
        return fwd_fail(err, log->fail, __FILE__, __LINE__, "override says no");
    struct fwd_op_call copy = *call;
    enum fwd_status status = call->builtin(&copy, err);
    if (log->spoil)
        spoil(call->out);
    return status;
}

START_TEST(test_overrides) {
    struct fixture f;
    open_row(&f, _i);
    double *expected = run_all(&f, N, NULL, NULL);
    int n_layer = f.path->config(f.s)->n_layer;
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        if (is_q8((enum fwd_op)op))
            continue;
        const char *name = fwd_op_name((enum fwd_op)op);
        bool in_layer = fwd_op_in_layer((enum fwd_op)op);
        struct override_log all = {0}, one = {.spoil = true};
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, override_op, &all, &f.err), FWD_OK);
        check_same(&f, expected, NULL, NULL, name);
        ck_assert_int_eq(all.n_calls, in_layer ? n_layer : 1);
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, NULL, NULL, &f.err), FWD_OK);
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, in_layer ? 1 : -1, override_op, &one, &f.err), FWD_OK);
        check_differ(&f, expected, NULL, NULL, name);
        ck_assert_int_eq(one.n_calls, 1);
        one.fail = FWD_EDEVICE;
        struct fwd_run_args args = {.size = sizeof args, .tokens = f.golden.ids, .n_tokens = N};
        ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_EDEVICE);
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, in_layer ? 1 : -1, NULL, NULL, &f.err), FWD_OK);
    }
    check_same(&f, expected, NULL, NULL, "all overrides removed");
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_L_OUT, n_layer, override_op, NULL, &f.err), FWD_ERANGE);
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_RESULT_NORM, 0, override_op, NULL, &f.err), FWD_ERANGE);
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_COUNT, -1, override_op, NULL, &f.err), FWD_ERANGE);
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

static void map_heads_by_modulo(void *ud, struct fwd_config *c) {
    (void)ud;
    for (int h = 0; h < c->n_head; h++)
        c->kv_head_of[h] = h % c->n_kv_head;
}

START_TEST(test_config_hook) {
    struct fixture f, faulty;
    open_row(&f, _i);
    double *expected = run_all(&f, N, NULL, NULL);
    struct fwd_knobs knobs = row_knobs(&rows[_i]);
    knobs.config_hook = map_heads_by_modulo;
    open_fixture(&faulty, rows[_i].path, &models[rows[_i].model], &knobs);
    check_differ(&faulty, expected, NULL, NULL, "heads mapped by modulo");
    close_fixture(&faulty);
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

/* -- what a report asks -- */
START_TEST(test_bound_weights) {
    struct fixture f;
    open_row(&f, _i);
    struct fwd_bound_weight w;
    int n = 0;
    for (; f.path->bound_weight(f.s, n, &w); n++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_find(f.file, w.name);
        ck_assert_ptr_nonnull(t);
        ck_assert_uint_eq(w.type, t->type);
        ck_assert_uint_eq(w.checksum, fwd_hash64(t->data, t->n_bytes));
    }
    int n_tensors = (int)fwd_gguf_n_tensors(f.file) - (fwd_gguf_find(f.file, "rope_freqs.weight") ? 1 : 0);
    ck_assert_int_eq(n, n_tensors);
    struct fwd_variant_choice choice;
    ck_assert(!f.path->variant(f.s, 1, &choice) && !f.path->variant(f.s, -1, &choice));
    close_fixture(&f);
}
END_TEST

START_TEST(test_refusals) {
    struct fixture f;
    open_row(&f, _i);
    int32_t bad[] = {0, -1};
    int32_t many[MAX_TOKENS + 1] = {0};
    const struct {
        struct fwd_run_args args;
        enum fwd_status expected;
    } cases[] = {
        {{.tokens = f.golden.ids, .n_tokens = 2, .pos0 = 1}, FWD_ESTATE},
        {{.tokens = f.golden.ids, .n_tokens = 0}, FWD_EINPUT},
        {{.tokens = bad, .n_tokens = 2}, FWD_ERANGE},
        {{.tokens = many, .n_tokens = MAX_TOKENS + 1}, FWD_ERANGE},
        {{.tokens = f.golden.ids, .n_tokens = 2, .seq = 1}, FWD_ERANGE},
        {{.tokens = f.golden.ids, .n_tokens = 2, .seq = -1}, FWD_ERANGE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fwd_run_args args = cases[i].args;
        args.size = sizeof args;
        ck_assert_int_eq(f.path->run(f.s, &args, &f.err), cases[i].expected);
        ck_assert_uint_gt(strlen(f.err.message), 10);
    }
    bad[1] = (int32_t)f.n_vocab;
    struct fwd_run_args args = {.size = sizeof args, .tokens = bad, .n_tokens = 2};
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_ERANGE);
    args.size--;
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_EVERSION);
    ck_assert_int_eq(f.path->seq_begin(f.s, 0, &f.err), FWD_OK);
    ck_assert_int_eq(f.path->seq_begin(f.s, 1, &f.err), FWD_ERANGE);
    close_fixture(&f);
}
END_TEST

START_TEST(test_open_refusals) {
    struct fixture f;
    open_row(&f, _i);
    struct fwd_knobs good = row_knobs(&rows[_i]), k[6] = {good, good, good, good, good, good};
    static const enum fwd_status expected[6] = {FWD_EUNSUPPORTED, FWD_EINPUT, FWD_EINPUT,
                                                FWD_ERANGE,       FWD_ERANGE, FWD_EVERSION};
    k[0].act = "as:somebody";
    k[1].caps = "avx1024";
    k[2].force = "matmul_f=fastest";
    k[3].n_ctx = 0;
    k[4].n_seq = 0;
    k[5].size = 1;
    for (int i = 0; i < 6; i++) {
        struct fwd_session *s = NULL;
        ck_assert_int_eq(f.path->open(&s, f.file, &k[i], &f.err), expected[i]);
        ck_assert_ptr_null(s);
    }
    close_fixture(&f);
}
END_TEST

/* -- emulated activations: two implementations of one rule -- */
START_TEST(test_act_rule) {
    enum { W = 512 };
    float x[W];
    double wide[W];
    static const float specials[] = {0, -0.0f, 0x1p-120f, 0x1p-101f, 1, 127, 3e38f, 5e-39f};
    struct fwd_q8_k k[W / 256], k_ours[W / 256];
    struct fwd_q8_32 small[W / 32], small_ours[W / 32];
    act_quant_k_fn *quant_k = (act_quant_k_fn *)fwd_variant_find("act_quant_k", "ref")->fn;
    act_quant_32_fn *quant_32 = (act_quant_32_fn *)fwd_variant_find("act_quant_32", "ref")->fn;
    uint32_t state = (uint32_t)_i * 77 + 1;
    for (int i = 0; i < W; i++) {
        state = state * 1664525u + 1013904223u;
        /* From the third round on multiples of 1/2 up to 127, so that ties come up. */
        x[i] = _i < 3 ? (float)(state >> 8) * 0x1p-23f - 1 : (float)((int)(state >> 24) - 127) * 0.5f;
        x[i] *= i / 32 % 8 == 5 ? specials[_i % 8] : 1;
    }
    if (_i >= 3)
        x[0] = x[300] = 127;
    if (_i == 7)
        x[40] = NAN;
    if (_i == 6)
        x[400] = -INFINITY;
    for (int i = 0; i < W; i++)
        wide[i] = (double)x[i];
    quant_k(x, k, W);
    quant_32(x, small, W);
    for (int real = 0; real < 2; real++) {
        memset(k_ours, 0x5a, sizeof k_ours);
        memset(small_ours, 0x5a, sizeof small_ours);
        const void *row = real ? (const void *)wide : (const void *)x;
        ref_act_quantise(FWD_Q8_K, real ? FWD_F64 : FWD_F32, row, W, k_ours);
        ref_act_quantise(FWD_Q8_32, real ? FWD_F64 : FWD_F32, row, W, small_ours);
        ck_assert_mem_eq(k_ours, k, sizeof k);
        ck_assert_mem_eq(small_ours, small, sizeof small);
    }
    ref_act_dequantise(FWD_Q8_K, FWD_F64, k, W, wide);
    ref_act_dequantise(FWD_Q8_32, FWD_F32, small, W, x);
    for (int i = 0; i < W; i++) {
        double expected = (double)k[i / 256].d * k[i / 256].q[i % 256];
        float expected_small = small[i / 32].d * (float)small[i / 32].q[i % 32];
        ck_assert(isnan(expected) ? isnan(wide[i]) : wide[i] == expected);
        ck_assert(isnan(expected_small) ? isnan(x[i]) : x[i] == expected_small);
    }
}
END_TEST

/* -- the twin -- */
/* q4k-cpu and the reference that emulates its activations share no arithmetic, and agree to F32 rounding, 10^4 times
 * closer than either is to the plain reference, until a value within rounding of a tie takes another code in each: from
 * there on that position and the later ones, which attend to it, drift apart. */
static const struct twin_row {
    int model;
    enum fwd_head head;
    enum fwd_dtype kv_type;
} twins[] = {
    {0, FWD_HEAD_QUANT, FWD_F16}, {0, FWD_HEAD_F32, FWD_F32}, {1, FWD_HEAD_QUANT, FWD_F32}, {1, FWD_HEAD_F32, FWD_F16}};
enum { N_TWINS = sizeof twins / sizeof *twins, TWIN_TOKENS = 32 };

static double *run_twin(const struct twin_row *row, const char *path, const char *act, int64_t *n_vocab) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.head = row->head;
    knobs.kv_type = row->kv_type;
    knobs.act = act;
    open_fixture(&f, path, &models[row->model], &knobs);
    uint8_t want[TWIN_TOKENS];
    memset(want, 1, sizeof want);
    size_t n = TWIN_TOKENS * (size_t)f.n_vocab;
    float *f32 = fwd_alloc(n, sizeof *f32);
    double *logits = fwd_alloc(n, sizeof *logits);
    struct fwd_run_args args = {
        .size = sizeof args, .tokens = f.golden.ids, .n_tokens = TWIN_TOKENS, .want_logits = want, .logits = f32};
    ck_assert_msg(f.path->run(f.s, &args, &f.err) == FWD_OK, "%s", f.err.message);
    for (size_t i = 0; i < n; i++)
        logits[i] = (double)f32[i];
    *n_vocab = f.n_vocab;
    fwd_free(f32);
    close_fixture(&f);
    return logits;
}

static double relative_l2(const double *a, const double *b, int64_t n) {
    double distance = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        distance += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return sqrt(distance / size);
}

START_TEST(test_twin) {
    const struct twin_row *row = &twins[_i];
    int64_t n_vocab;
    double *path = run_twin(row, "q4k-cpu", NULL, &n_vocab), *twin = run_twin(row, "f64", "as:q4k-cpu", &n_vocab);
    double *plain = run_twin(row, "f64", NULL, &n_vocab);
    int n_close = 0;
    for (int i = 0; i < TWIN_TOKENS; i++) {
        double d = relative_l2(path + i * n_vocab, twin + i * n_vocab, n_vocab);
        double price = relative_l2(path + i * n_vocab, plain + i * n_vocab, n_vocab);
        n_close += d < 2e-6;
        ck_assert_msg(price > 1e-3 && price < 0.1, "position %d: quantised activations cost %.2e", i, price);
        ck_assert_msg(d < price, "position %d: %.2e from the twin, %.2e from the plain reference", i, d, price);
    }
    ck_assert_msg(n_close >= TWIN_TOKENS / 4, "%d of %d positions agree to 2e-6", n_close, TWIN_TOKENS);
    fwd_free(path);
    fwd_free(twin);
    fwd_free(plain);
}
END_TEST

/* -- memory -- */
int __real_posix_memalign(void **p, size_t alignment, size_t n);
int __wrap_posix_memalign(void **p, size_t alignment, size_t n);
static int n_allocations, fail_at = -1;

int __wrap_posix_memalign(void **p, size_t alignment, size_t n) {
    return n_allocations++ == fail_at ? ENOMEM : __real_posix_memalign(p, alignment, n);
}

START_TEST(test_no_memory) {
    struct fixture f;
    open_row(&f, _i);
    struct fwd_knobs knobs = row_knobs(&rows[_i]);
    float *logits = fwd_alloc((size_t)f.n_vocab, sizeof *logits);
    struct fwd_run_args args = {.size = sizeof args, .tokens = f.golden.ids, .n_tokens = N, .logits = logits};
    n_allocations = 0;
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_OK);
    ck_assert_int_eq(n_allocations, 0); /* a run allocates nothing */
    enum fwd_status status = FWD_ENOMEM;
    int n_failed = -1;
    for (; status != FWD_OK; n_failed++) {
        struct fwd_session *s = NULL;
        n_allocations = 0;
        fail_at = n_failed + 1;
        status = f.path->open(&s, f.file, &knobs, &f.err);
        fail_at = -1;
        if (status == FWD_OK)
            f.path->close(s);
        else
            ck_assert_msg(status == FWD_ENOMEM && !s, "allocation %d: %s", n_failed + 1, f.err.message);
    }
    ck_assert_int_gt(n_failed, 20);
    fwd_free(logits);
    close_fixture(&f);
}
END_TEST

static void add_contract_tests(Suite *s) {
    TCase *t = tcase_create("contract");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_same_bits, 0, N_ROWS);
    tcase_add_loop_test(t, test_wanted_logits, 0, N_ROWS);
    tcase_add_loop_test(t, test_taps, 0, N_ROWS);
    tcase_add_loop_test(t, test_tap_writes, 0, N_ROWS);
    tcase_add_loop_test(t, test_tap_stops, 0, N_ROWS);
    tcase_add_loop_test(t, test_overrides, 0, N_ROWS);
    tcase_add_loop_test(t, test_config_hook, 0, N_ROWS);
    tcase_add_loop_test(t, test_bound_weights, 0, N_ROWS);
    tcase_add_loop_test(t, test_refusals, 0, N_ROWS);
    tcase_add_loop_test(t, test_open_refusals, 0, N_ROWS);
    tcase_add_loop_test(t, test_act_rule, 0, 8);
    tcase_add_loop_test(t, test_twin, 0, N_TWINS);
    tcase_add_loop_test(t, test_no_memory, 0, N_ROWS);
    suite_add_tcase(s, t);
}

int main(void) {
    Suite *s = suite_create("paths_ref");
    TCase *t = tcase_create("golden");
    tcase_set_timeout(t, 240);
    for (int i = 0; i < N_MODELS; i++) {
        char file[PATH_BYTES];
        model_path(&models[i], file);
        if (models[i].real && access(file, R_OK) != 0) {
            (void)printf("SKIPPED: 2 checks of %s: model not present (%s)\n", models[i].name, file);
            continue;
        }
        tcase_add_loop_test(t, test_golden, 2 * i, 2 * i + 2);
    }
    suite_add_tcase(s, t);
    add_contract_tests(s);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r), ran = srunner_ntests_run(r);
    srunner_free(r);
    return ran == 0 ? 3 : failed != 0;
}
