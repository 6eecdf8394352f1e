/* Path q4k-cpu: the same bits for every schedule, chunk, thread count and CPU level; taps that change nothing,
 * overrides and writes that do; slots, errors, memory. On two tiny models that hold every block type and, where they
 * were fetched (make model), on the two real ones: $PARITY_MODELS, else $XDG_CACHE_HOME or ~/.cache, as `make model`
 * has it. */
#include "core/half.h"
#include "engine.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#else
#define IS_SANITIZED 0
#endif

enum { N_CTX = 64, N_TOKENS = 41, PATH_BYTES = 512 };

static const char *const tiny_files[] = {"fixtures/golden/forward-tiny-qwen2.gguf",
                                         "fixtures/golden/forward-tiny-llama.gguf"};
enum { N_TINY = 2 };
static const char *const levels[] = {"ref", "avx2", "avx512"};
enum { N_LEVELS = 3 };

static bool has_level(int i) {
    unsigned mask;
    return fwd_cpu_parse(levels[i], fwd_cpu_detect(), &mask, NULL) == FWD_OK;
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

struct fixture {
    struct fwd_gguf *file;
    const struct fwd_path *path;
    struct fwd_session *s;
    int64_t n_vocab;
    struct fwd_error err;
};

static struct fwd_knobs default_knobs(void) {
    return (struct fwd_knobs){.size = sizeof(struct fwd_knobs),
                              .n_threads = 1,
                              .n_ctx = N_CTX,
                              .n_seq = 2,
                              .n_batch = N_CTX,
                              .kv_type = FWD_F16};
}

static void open_session(struct fixture *f, const char *path, const struct fwd_knobs *knobs) {
    f->path = fwd_path_find(path);
    ck_assert_ptr_nonnull(f->path);
    ck_assert_msg(f->path->open(&f->s, f->file, knobs, &f->err) == FWD_OK, "%s", f->err.message);
    f->n_vocab = f->path->config(f->s)->n_vocab;
}

static void open_fixture(struct fixture *f, const char *file, const struct fwd_knobs *knobs) {
    memset(f, 0, sizeof *f);
    ck_assert_msg(fwd_gguf_open(&f->file, file, &f->err) == FWD_OK, "%s", f->err.message);
    open_session(f, "q4k-cpu", knobs);
}

static void close_fixture(struct fixture *f) {
    f->path->close(f->s);
    fwd_gguf_close(f->file);
}

/* Token i of test sequence number `which`. */
static int32_t token(const struct fixture *f, int which, int i) {
    return (int32_t)((uint32_t)(i * 7919 + which * 104729 + 3) * 2654435761u % (uint64_t)f->n_vocab);
}

/* Positions [begin, end) of a sequence in chunks; all logits to *logits. */
static void run_range(struct fixture *f, int seq, int which, int begin, int end, int chunk, float *logits,
                      fwd_tap_fn *tap, void *ud) {
    int32_t ids[N_CTX];
    uint8_t want[N_CTX];
    memset(want, 1, sizeof want);
    for (int i = 0; i < end; i++)
        ids[i] = token(f, which, i);
    for (int pos = begin; pos < end; pos += chunk) {
        int n = end - pos < chunk ? end - pos : chunk;
        struct fwd_run_args args = {.size = sizeof args,
                                    .seq = seq,
                                    .tokens = ids + pos,
                                    .n_tokens = n,
                                    .pos0 = pos,
                                    .want_logits = want,
                                    .logits = logits + (pos - begin) * f->n_vocab,
                                    .tap = tap,
                                    .tap_ud = ud};
        ck_assert_msg(f->path->run(f->s, &args, &f->err) == FWD_OK, "%s", f->err.message);
    }
}

static float *new_logits(const struct fixture *f, int n) {
    float *p = fwd_alloc((size_t)n * (size_t)f->n_vocab, sizeof *p);
    ck_assert_ptr_nonnull(p);
    return p;
}

static float *run_fresh(struct fixture *f, int which, int n, int chunk, fwd_tap_fn *tap, void *ud) {
    float *logits = new_logits(f, n);
    ck_assert_int_eq(f->path->seq_begin(f->s, 0, &f->err), FWD_OK);
    run_range(f, 0, which, 0, n, chunk, logits, tap, ud);
    return logits;
}

static bool same(const struct fixture *f, const float *a, const float *b, int n) {
    return !memcmp(a, b, (size_t)n * (size_t)f->n_vocab * sizeof *a);
}

static double distance(const struct fixture *f, const float *a, const float *b, int n) {
    double diff = 0.0, size = 0.0;
    for (int64_t i = 0; i < n * f->n_vocab; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / size);
}

/* ---- the same bits ------------------------------------------------------------------------------------------------
 */

static void check_schedules(const char *file, int n, const int *chunks, int n_chunks, const int *threads, int n_threads,
                            int first_level) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.caps = levels[first_level];
    knobs.n_threads = first_level ? 1 : 2;
    open_fixture(&f, file, &knobs);
    float *expected = run_fresh(&f, 0, n, n, NULL, NULL);
    ck_assert_msg(isfinite(expected[0]) && memcmp(expected, expected + 1, 4) != 0, "logits that say nothing");
    close_fixture(&f);
    for (int level = first_level; level < N_LEVELS; level++) {
        if (!has_level(level)) {
            (void)printf("SKIPPED: %s at CPU level %s: not on this machine\n", file, levels[level]);
            continue;
        }
        for (int t = 0; t < n_threads; t++) {
            knobs.caps = levels[level];
            knobs.n_threads = threads[t];
            open_fixture(&f, file, &knobs);
            for (int c = 0; c < n_chunks; c++) {
                float *got = run_fresh(&f, 0, n, chunks[c], NULL, NULL);
                ck_assert_msg(same(&f, got, expected, n), "%s: %s, %d threads, chunks of %d: other bits", file,
                              levels[level], threads[t], chunks[c]);
                fwd_free(got);
            }
            close_fixture(&f);
        }
    }
    fwd_free(expected);
}

START_TEST(test_schedules) {
    static const int chunks[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, N_TOKENS};
    static const int threads[] = {1, 2, 3};
    check_schedules(tiny_files[_i], N_TOKENS, chunks, 10, threads, 3, 0);
}
END_TEST

/* Sequences begin, end and interleave in two slots; a slot that held a longer one before gives what a fresh one does.
 */
START_TEST(test_slots) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.kv_type = _i ? FWD_F32 : FWD_F16;
    open_fixture(&f, tiny_files[0], &knobs);
    float *expected = run_fresh(&f, 1, 20, 20, NULL, NULL), *got = new_logits(&f, 20);
    close_fixture(&f);

    open_fixture(&f, tiny_files[0], &knobs);
    fwd_free(run_fresh(&f, 0, N_TOKENS, N_TOKENS, NULL, NULL)); /* longer, in slot 0 */
    float *other = new_logits(&f, 20);
    ck_assert_int_eq(f.path->seq_begin(f.s, 0, NULL), FWD_OK);
    for (int pos = 0; pos < 20; pos += 5) {
        run_range(&f, 0, 1, pos, pos + 5, 2, got + pos * f.n_vocab, NULL, NULL);
        run_range(&f, 1, 2, pos, pos + 5, 5, other + pos * f.n_vocab, NULL, NULL);
    }
    ck_assert_msg(same(&f, got, expected, 20), "a reused slot gives other bits");
    float *alone = run_fresh(&f, 2, 20, 7, NULL, NULL);
    ck_assert_msg(same(&f, other, alone, 20), "an interleaved slot gives other bits");
    run_range(&f, 1, 2, 11, 20, 9, other, NULL, NULL); /* back to position 11: rows before it stay */
    ck_assert_msg(same(&f, other, alone + 11 * f.n_vocab, 9), "a rerun from position 11 gives other bits");
    fwd_free(other);
    fwd_free(alone);
    fwd_free(expected);
    fwd_free(got);
    close_fixture(&f);
}
END_TEST

/* The chain behind the definition: quantising only activations in double must bring f64 close, plain f64 is further. */
START_TEST(test_near_reference) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.kv_type = FWD_F32;
    open_fixture(&f, tiny_files[_i], &knobs);
    float *got = run_fresh(&f, 0, N_TOKENS, 8, NULL, NULL);
    f.path->close(f.s);
    open_session(&f, "f64", &knobs);
    float *plain = run_fresh(&f, 0, N_TOKENS, N_TOKENS, NULL, NULL);
    f.path->close(f.s);
    knobs.act = "as:q4k-cpu";
    open_session(&f, "f64", &knobs);
    float *twin = run_fresh(&f, 0, N_TOKENS, N_TOKENS, NULL, NULL);
    double price = distance(&f, got, plain, N_TOKENS), rest = distance(&f, got, twin, N_TOKENS);
    (void)printf("%s: %.2e from f64, %.2e from f64 with the same activations\n", tiny_files[_i], price, rest);
    ck_assert_msg(price < 0.03 && price > 1e-4, "price of the format %.3e", price);
    ck_assert_msg(rest < 0.05 * price, "%.3e from the twin, %.3e from f64", rest, price);
    fwd_free(got);
    fwd_free(plain);
    fwd_free(twin);
    close_fixture(&f);
}
END_TEST

START_TEST(test_knobs) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[0], &knobs);
    float *f16 = run_fresh(&f, 0, N_TOKENS, 8, NULL, NULL);
    struct fwd_numerics n;
    ck_assert(f.path->numerics(f.s, FWD_OP_RESULT_NORM_Q8, -1, &n) && n.store == FWD_Q8_K);
    close_fixture(&f);

    knobs.kv_type = FWD_F32;
    open_fixture(&f, tiny_files[0], &knobs);
    float *f32 = run_fresh(&f, 0, N_TOKENS, 8, NULL, NULL);
    double d = distance(&f, f16, f32, N_TOKENS);
    ck_assert_msg(d > 0.0 && d < 0.02, "KV types are %.3e apart", d);
    close_fixture(&f);

    knobs.head = FWD_HEAD_F32;
    open_fixture(&f, tiny_files[0], &knobs);
    float *head = run_fresh(&f, 0, N_TOKENS, 8, NULL, NULL);
    d = distance(&f, head, f32, N_TOKENS);
    ck_assert_msg(d > 0.0 && d < 0.02, "head forms are %.3e apart", d);
    ck_assert(!f.path->numerics(f.s, FWD_OP_RESULT_NORM_Q8, -1, &n));
    ck_assert(f.path->numerics(f.s, FWD_OP_RESULT_OUTPUT, -1, &n) && n.act == FWD_F32);
    close_fixture(&f);
    fwd_free(f16);
    fwd_free(f32);
    fwd_free(head);
}
END_TEST

/* ---- taps ---------------------------------------------------------------------------------------------------------
 */

struct seen {
    struct fixture *f;
    int n_layer, pos0, n_pos;
    int count[FWD_OP_COUNT];
    int last_layer;
    enum fwd_op last_op;
    uint64_t hash;
};

static int read_tap(void *ud, const struct fwd_view *v) {
    struct seen *seen = ud;
    struct fwd_numerics n;
    ck_assert_uint_eq(v->size, sizeof *v);
    ck_assert_msg(seen->f->path->numerics(seen->f->s, v->op, v->layer, &n), "%s has no numerics", fwd_op_name(v->op));
    ck_assert_int_eq(n.size, sizeof n);
    ck_assert_int_eq(n.store, v->dtype);
    ck_assert_int_eq(fwd_op_in_layer(v->op), v->layer >= 0);
    ck_assert(v->layer < seen->n_layer && v->device == 0 && v->data);
    if (v->layer == seen->last_layer && v->layer >= 0)
        ck_assert_msg(v->op > seen->last_op, "%s after %s", fwd_op_name(v->op), fwd_op_name(seen->last_op));
    seen->last_layer = v->layer;
    seen->last_op = v->op;
    seen->count[v->op]++;
    int64_t rows = v->ne[1], values = v->ne[0];
    if (v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE) {
        ck_assert_int_eq(v->ne[2], v->pos0 + v->n_pos);
        ck_assert_int_eq(v->nb[0], v->dtype == FWD_F16 ? 2 : 4);
        rows = 1;
    } else {
        ck_assert_int_eq(rows, v->n_pos);
        ck_assert_uint_eq((size_t)v->nb[1], fwd_dtype_row_bytes(v->dtype, values));
    }
    for (int64_t r = 0; r < rows; r++)
        seen->hash += fwd_hash64((const uint8_t *)v->data + r * v->nb[1], fwd_dtype_row_bytes(v->dtype, values));
    return 0;
}

START_TEST(test_taps_are_neutral) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.n_threads = 2;
    open_fixture(&f, tiny_files[_i], &knobs);
    int n_layer = f.path->config(f.s)->n_layer;
    float *quiet = run_fresh(&f, 0, N_TOKENS, 9, NULL, NULL);
    struct seen a = {.f = &f, .n_layer = n_layer}, b = a;
    float *tapped = run_fresh(&f, 0, N_TOKENS, 9, read_tap, &a);
    ck_assert_msg(same(&f, quiet, tapped, N_TOKENS), "reading taps changes the logits");
    fwd_free(run_fresh(&f, 0, N_TOKENS, 9, read_tap, &b));
    ck_assert_uint_eq(a.hash, b.hash);
    int n_calls = (N_TOKENS + 8) / 9;
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        int expected = fwd_op_in_layer((enum fwd_op)op) ? n_calls * n_layer : n_calls;
        if (_i && (op == FWD_OP_FFN_NORM_Q8 || op == FWD_OP_FFN_SWIGLU_Q8))
            expected = 0; /* gate, up and down are F16, BF16, F32 there */
        ck_assert_msg(a.count[op] == expected, "%s: %d taps, expected %d", fwd_op_name((enum fwd_op)op), a.count[op],
                      expected);
    }
    fwd_free(quiet);
    fwd_free(tapped);
    close_fixture(&f);
}
END_TEST

struct scribble {
    enum fwd_op op;
    int layer;
    bool done;
};

/* Changes the last row of one op. */
static int write_tap(void *ud, const struct fwd_view *v) {
    struct scribble *s = ud;
    if (v->op != s->op || v->layer != s->layer)
        return 0;
    s->done = true;
    bool is_cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    uint8_t *row = (uint8_t *)v->data + (is_cache ? (v->ne[2] - 1) * v->nb[2] : (v->ne[1] - 1) * v->nb[1]);
    if (v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32) {
        float d;
        memcpy(&d, row, sizeof d);
        d *= 3.0f;
        memcpy(row, &d, sizeof d);
        return 0;
    }
    for (int64_t i = 0; i < v->ne[0]; i++) {
        if (v->dtype == FWD_F16) {
            uint16_t h = fwd_f32_to_f16(0.25f * (float)(i % 5) - 0.3f);
            memcpy(row + 2 * i, &h, sizeof h);
        } else {
            float x = 0.25f * (float)(i % 5) - 0.3f;
            memcpy(row + 4 * i, &x, sizeof x);
        }
    }
    return 0;
}

/* What follows a written tap uses the written values: for every op the last logits change. */
START_TEST(test_taps_can_write) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[_i], &knobs);
    float *expected = run_fresh(&f, 0, 7, 7, NULL, NULL);
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        if (_i && (op == FWD_OP_FFN_NORM_Q8 || op == FWD_OP_FFN_SWIGLU_Q8))
            continue;
        struct scribble s = {.op = (enum fwd_op)op, .layer = fwd_op_in_layer((enum fwd_op)op) ? 1 : -1};
        float *got = run_fresh(&f, 0, 7, 7, write_tap, &s);
        ck_assert_msg(s.done && memcmp(got + 6 * f.n_vocab, expected + 6 * f.n_vocab, (size_t)f.n_vocab * 4) != 0,
                      "writing %s changes nothing", fwd_op_name((enum fwd_op)op));
        ck_assert_msg(same(&f, got, expected, 6), "writing position 6 of %s changes a position before it",
                      fwd_op_name((enum fwd_op)op));
        fwd_free(got);
    }
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

static int stop_tap(void *ud, const struct fwd_view *v) {
    return v->op == *(const enum fwd_op *)ud;
}

START_TEST(test_stop) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[0], &knobs);
    float *expected = run_fresh(&f, 0, 9, 9, NULL, NULL), *got = new_logits(&f, 9);
    ck_assert_int_eq(f.path->seq_begin(f.s, 0, NULL), FWD_OK);
    run_range(&f, 0, 0, 0, 4, 4, got, NULL, NULL);
    int32_t wrong[5] = {1, 2, 3, 4, 5};
    enum fwd_op at = FWD_OP_V_CACHE;
    struct fwd_run_args args = {.size = sizeof args,
                                .tokens = wrong,
                                .n_tokens = 5,
                                .pos0 = 4,
                                .logits = got + 4 * f.n_vocab,
                                .tap = stop_tap,
                                .tap_ud = &at};
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_ESTOPPED);
    ck_assert_ptr_nonnull(strstr(f.err.message, "V_cache"));
    run_range(&f, 0, 0, 4, 9, 5, got + 4 * f.n_vocab, NULL, NULL); /* the stopped call left nothing behind */
    ck_assert(same(&f, got, expected, 9));
    fwd_free(expected);
    fwd_free(got);
    close_fixture(&f);
}
END_TEST

/* ---- overrides ----------------------------------------------------------------------------------------------------
 */

static enum fwd_status pass_on(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    ++*(int *)ud;
    ck_assert_uint_eq(call->size, sizeof *call);
    ck_assert(call->config && call->builtin && call->n_in >= 1 && call->in[call->n_in - 1]);
    return call->builtin(call, err);
}

static enum fwd_status shift(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    FWD_TRY(pass_on(ud, call, err));
    for (int64_t i = 0; i < call->out->ne[0]; i++)
        ((float *)call->out->data)[i] += 0.01f * (float)(i % 7);
    return FWD_OK;
}

static enum fwd_status fail_here(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    FWD_FAIL(FWD_EIO, err, "%s of test %d", fwd_op_name(call->op), *(int *)ud);
}

START_TEST(test_overrides) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[_i], &knobs);
    int n_layer = f.path->config(f.s)->n_layer;
    float *expected = run_fresh(&f, 0, 5, 5, NULL, NULL);
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        int n_calls = 0, per_run = fwd_op_in_layer((enum fwd_op)op) ? n_layer : 1;
        if (_i && (op == FWD_OP_FFN_NORM_Q8 || op == FWD_OP_FFN_SWIGLU_Q8))
            per_run = 0;
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, pass_on, &n_calls, NULL), FWD_OK);
        float *got = run_fresh(&f, 0, 5, 5, NULL, NULL);
        ck_assert_msg(same(&f, got, expected, 5), "%s through builtin differs", fwd_op_name((enum fwd_op)op));
        ck_assert_int_eq(n_calls, per_run);
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, NULL, NULL, NULL), FWD_OK);
        fwd_free(got);
    }
    int n_calls = 0;
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_FFN_OUT, 1, shift, &n_calls, NULL), FWD_OK);
    float *got = run_fresh(&f, 0, 5, 5, NULL, NULL);
    ck_assert(n_calls == 1 && !same(&f, got, expected, 5));
    fwd_free(got);
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_FFN_OUT, 1, fail_here, &n_calls, NULL), FWD_OK);
    int32_t id = 3;
    float *logits = new_logits(&f, 1);
    struct fwd_run_args args = {.size = sizeof args, .tokens = &id, .n_tokens = 1, .logits = logits};
    ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_EIO);
    ck_assert_str_eq(f.err.message, "ffn_out of test 1");
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_FFN_OUT, -1, NULL, NULL, NULL), FWD_OK);
    got = run_fresh(&f, 0, 5, 5, NULL, NULL);
    ck_assert(same(&f, got, expected, 5));
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_FFN_OUT, n_layer, shift, NULL, &f.err), FWD_ERANGE);
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_RESULT_NORM, 0, shift, NULL, &f.err), FWD_ERANGE);
    ck_assert_int_eq(f.path->override(f.s, FWD_OP_COUNT, -1, shift, NULL, &f.err), FWD_EINPUT);
    fwd_free(got);
    fwd_free(logits);
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

/* ---- a layer whose products want two activation formats -----------------------------------------------------------
 */

/* Turns the Q4_K matrix `name` of a file in memory into Q4_0, which has the same size, with plain values. */
static void make_q4_0(uint8_t *data, size_t n, const char *name) {
    struct fwd_gguf *g;
    ck_assert_int_eq(fwd_gguf_parse(&g, data, n, NULL), FWD_OK);
    const struct fwd_gguf_tensor *t = fwd_gguf_find(g, name);
    ck_assert(t && t->type == FWD_TYPE_Q4_K && t->n_bytes % 18 == 0);
    uint8_t *weights = data + (t->data - data);
    for (uint64_t b = 0; b < t->n_bytes / 18; b++) {
        uint16_t d = fwd_f32_to_f16(0.01f);
        memcpy(weights + b * 18, &d, 2);
        for (int i = 0; i < 16; i++)
            weights[b * 18 + 2 + (uint64_t)i] = (uint8_t)(b * 37 + (uint64_t)i * 101);
    }
    size_t len = strlen(name);
    for (size_t i = 0; i + len + 24 < n; i++) {
        if (memcmp(data + i, name, len) != 0)
            continue;
        uint32_t type = FWD_TYPE_Q4_0;
        memcpy(data + i + len + 4 + 16, &type, 4); /* behind n_dims and two dimensions */
        break;
    }
    fwd_gguf_close(g);
}

static int count_formats(void *ud, const struct fwd_view *v) {
    int *count = ud;
    if (v->op == FWD_OP_ATTN_NORM_Q8 && v->layer == 1)
        count[v->dtype == FWD_Q8_K]++;
    return 0;
}

START_TEST(test_two_formats) {
    struct fixture f = {0};
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[0], &knobs);
    uint64_t n;
    const uint8_t *original = fwd_gguf_split_data(f.file, 0, &n);
    uint8_t *data = fwd_alloc((size_t)n, 1);
    ck_assert_ptr_nonnull(data);
    memcpy(data, original, (size_t)n);
    close_fixture(&f);
    make_q4_0(data, (size_t)n, "blk.1.attn_q.weight");
    ck_assert_int_eq(fwd_gguf_parse(&f.file, data, (size_t)n, &f.err), FWD_OK);
    open_session(&f, "q4k-cpu", &knobs);
    int count[2] = {0};
    float *got = run_fresh(&f, 0, N_TOKENS, N_TOKENS, count_formats, count);
    ck_assert(count[0] == 1 && count[1] == 1);
    float *step = run_fresh(&f, 0, N_TOKENS, 1, NULL, NULL);
    ck_assert(same(&f, got, step, N_TOKENS));
    f.path->close(f.s);
    open_session(&f, "f64", &knobs);
    float *reference = run_fresh(&f, 0, N_TOKENS, N_TOKENS, NULL, NULL);
    double d = distance(&f, got, reference, N_TOKENS);
    ck_assert_msg(d < 0.03, "%.3e from f64", d);
    fwd_free(got);
    fwd_free(step);
    fwd_free(reference);
    close_fixture(&f);
    fwd_free(data);
}
END_TEST

/* ---- wanted logits, bound weights, errors -------------------------------------------------------------------------
 */

START_TEST(test_wanted) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[0], &knobs);
    float *all = run_fresh(&f, 0, 12, 12, NULL, NULL), *some = new_logits(&f, 12);
    int32_t ids[12];
    for (int i = 0; i < 12; i++)
        ids[i] = token(&f, 0, i);
    for (unsigned mask = 1; mask < 4096; mask += 37) {
        uint8_t want[12];
        for (int i = 0; i < 12; i++)
            want[i] = mask >> i & 1;
        struct fwd_run_args args = {
            .size = sizeof args, .tokens = ids, .n_tokens = 12, .want_logits = want, .logits = some};
        ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_OK);
        for (int i = 0, k = 0; i < 12; i++)
            if (want[i])
                ck_assert(!memcmp(some + k++ * f.n_vocab, all + i * f.n_vocab, (size_t)f.n_vocab * 4));
    }
    struct fwd_run_args last = {.size = sizeof last, .tokens = ids, .n_tokens = 12, .logits = some};
    ck_assert_int_eq(f.path->run(f.s, &last, &f.err), FWD_OK);
    ck_assert(!memcmp(some, all + 11 * f.n_vocab, (size_t)f.n_vocab * 4));
    uint8_t none[12] = {0};
    last.want_logits = none;
    last.logits = NULL;
    ck_assert_int_eq(f.path->run(f.s, &last, &f.err), FWD_OK);
    fwd_free(all);
    fwd_free(some);
    close_fixture(&f);
}
END_TEST

/* Every tensor of the file is bound once, and what the kernels read unpacks to the file's bytes, at every level. */
START_TEST(test_bound_weights) {
    for (int level = 0; level < N_LEVELS; level++) {
        if (!has_level(level))
            continue;
        struct fixture f;
        struct fwd_knobs knobs = default_knobs();
        knobs.caps = levels[level];
        open_fixture(&f, tiny_files[_i], &knobs);
        struct fwd_bound_weight w;
        uint64_t n_bound = 0;
        bool is_tied = f.path->config(f.s)->tied_head;
        for (int i = 0; f.path->bound_weight(f.s, i, &w); i++, n_bound++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_find(f.file, w.name);
            ck_assert_msg(t && t->type == w.type && (int64_t)t->ne[0] == w.n_cols && (int64_t)t->ne[1] == w.n_rows,
                          "%s: bound as another shape", w.name);
            ck_assert_msg(w.checksum == fwd_hash64(t->data, (size_t)t->n_bytes),
                          "%s (%s, %s): other bytes than the file", w.name, w.layout, levels[level]);
        }
        uint64_t n_tensors = fwd_gguf_n_tensors(f.file) - (fwd_gguf_find(f.file, "rope_freqs.weight") != NULL);
        ck_assert_uint_eq(n_bound, n_tensors + (is_tied ? 1 : 0)); /* a tied matrix is bound as embedding and as head */
        ck_assert(!f.path->bound_weight(f.s, -1, &w));
        close_fixture(&f);
    }
}
END_TEST

START_TEST(test_run_errors) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    knobs.n_batch = 16;
    open_fixture(&f, tiny_files[0], &knobs);
    int32_t ids[N_CTX + 1] = {0};
    float *logits = new_logits(&f, 1);
    const struct fwd_run_args good = {.size = sizeof good, .tokens = ids, .n_tokens = 4, .logits = logits};
    const struct {
        int seq, n_tokens, pos0, bad_id;
        bool no_place;
        enum fwd_status expected;
        const char *says;
    } rows[] = {
        {-1, 4, 0, 0, false, FWD_ERANGE, "slot -1"},   {2, 4, 0, 0, false, FWD_ERANGE, "slot 2"},
        {0, 0, 0, 0, false, FWD_ERANGE, "0 tokens"},   {0, 17, 0, 0, false, FWD_ERANGE, "17 tokens"},
        {0, 4, 1, 0, false, FWD_ESTATE, "position 1"}, {0, 4, -1, 0, false, FWD_ESTATE, "position -1"},
        {0, 4, 0, -1, false, FWD_ERANGE, "id -1"},     {0, 4, 0, 320, false, FWD_ERANGE, "id 320"},
        {0, 4, 0, 0, true, FWD_EINPUT, "NULL"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct fwd_run_args args = good;
        args.seq = rows[i].seq;
        args.n_tokens = rows[i].n_tokens;
        args.pos0 = rows[i].pos0;
        ids[2] = rows[i].bad_id;
        if (rows[i].no_place)
            args.logits = NULL;
        ck_assert_msg(f.path->run(f.s, &args, &f.err) == rows[i].expected, "row %zu", i);
        ck_assert_msg(strstr(f.err.message, rows[i].says), "row %zu: %s", i, f.err.message);
    }
    ids[2] = 0;
    for (int pos = 0; pos < N_CTX; pos += 16) {
        struct fwd_run_args args = good;
        args.n_tokens = 16;
        args.pos0 = pos;
        ck_assert_int_eq(f.path->run(f.s, &args, &f.err), FWD_OK);
    }
    struct fwd_run_args over = good;
    over.n_tokens = 1;
    over.pos0 = N_CTX;
    ck_assert_int_eq(f.path->run(f.s, &over, &f.err), FWD_ERANGE);
    ck_assert_ptr_nonnull(strstr(f.err.message, "context of 64"));
    ck_assert_int_eq(f.path->seq_begin(f.s, 2, &f.err), FWD_ERANGE);
    fwd_free(logits);
    close_fixture(&f);
}
END_TEST

START_TEST(test_open_errors) {
    struct fixture f = {0};
    ck_assert_int_eq(fwd_gguf_open(&f.file, tiny_files[0], &f.err), FWD_OK);
    const struct fwd_path *path = fwd_path_find("q4k-cpu");
    const struct {
        int n_ctx, n_batch;
        enum fwd_dtype kv;
        int head;
        const char *act, *caps, *force;
        enum fwd_status expected;
    } rows[] = {
        {0, 8, FWD_F16, 0, NULL, NULL, NULL, FWD_ERANGE},
        {8, 0, FWD_F16, 0, NULL, NULL, NULL, FWD_ERANGE},
        {8, 8, FWD_F64, 0, NULL, NULL, NULL, FWD_EINPUT},
        {8, 8, FWD_F16, 7, NULL, NULL, NULL, FWD_EINPUT},
        {8, 8, FWD_F16, 0, "as:q4k-cpu", NULL, NULL, FWD_EINPUT},
        {8, 8, FWD_F16, 0, NULL, "sse9", NULL, FWD_EINPUT},
        {8, 8, FWD_F16, 0, NULL, "ref", "attention=avx2", FWD_EUNAVAILABLE},
        {8, 8, FWD_F16, 0, NULL, NULL, "attention=fast", FWD_EINPUT},
        {8, 8, FWD_F16, 0, NULL, NULL, "attention", FWD_EINPUT},
        {1 << 30, 1 << 30, FWD_F16, 0, NULL, NULL, NULL, FWD_ENOMEM},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (IS_SANITIZED && rows[i].expected == FWD_ENOMEM)
            continue; /* their allocators end the program instead */
        struct fwd_knobs knobs = default_knobs();
        knobs.n_ctx = rows[i].n_ctx;
        knobs.n_batch = rows[i].n_batch;
        knobs.kv_type = rows[i].kv;
        knobs.head = (enum fwd_head)rows[i].head;
        knobs.act = rows[i].act;
        knobs.caps = rows[i].caps;
        knobs.force = rows[i].force;
        enum fwd_status status = path->open(&f.s, f.file, &knobs, &f.err);
        ck_assert_msg(status == rows[i].expected, "row %zu: got %s (%s), expected %s", i, fwd_status_name(status),
                      f.err.message, fwd_status_name(rows[i].expected));
    }
    fwd_gguf_close(f.file);
}
END_TEST

/* A forced variant is the one that runs, and says so; the bits stay. */
START_TEST(test_force) {
    struct fixture f;
    struct fwd_knobs knobs = default_knobs();
    open_fixture(&f, tiny_files[0], &knobs);
    float *expected = run_fresh(&f, 0, 9, 9, NULL, NULL);
    close_fixture(&f);
    knobs.force = "attention=ref,matmul_q=ref,swiglu=ref";
    open_fixture(&f, tiny_files[0], &knobs);
    struct fwd_variant_choice choice;
    int n_forced = 0;
    for (int i = 0; f.path->variant(f.s, i, &choice); i++) {
        bool is_named =
            !strcmp(choice.op, "attention") || !strcmp(choice.op, "matmul_q") || !strcmp(choice.op, "swiglu");
        ck_assert_msg(!is_named || (!strcmp(choice.variant, "ref") && !strcmp(choice.why, "forced")), "%s[%s] = %s, %s",
                      choice.op, choice.detail, choice.variant, choice.why);
        n_forced += is_named;
    }
    ck_assert_int_ge(n_forced, 3);
    float *got = run_fresh(&f, 0, 9, 9, NULL, NULL);
    ck_assert(same(&f, got, expected, 9));
    fwd_free(got);
    fwd_free(expected);
    close_fixture(&f);
}
END_TEST

/* ---- the real models ----------------------------------------------------------------------------------------------
 */

static void real_path(const char *name, char *path) {
    const char *folder = getenv("PARITY_MODELS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (folder)
        (void)snprintf(path, PATH_BYTES, "%s/%s.gguf", folder, name);
    else if (cache)
        (void)snprintf(path, PATH_BYTES, "%s/parity/models/%s.gguf", cache, name);
    else
        (void)snprintf(path, PATH_BYTES, "%s/.cache/parity/models/%s.gguf", home ? home : "", name);
}

static const char *const real_names[] = {"smollm2-135m", "qwen2.5-coder-1.5b"};

START_TEST(test_real) {
    char file[PATH_BYTES];
    real_path(real_names[_i], file);
    static const int threads[] = {1, 2};
    static const int whole[] = {1, 3, 9}, few[] = {1};
    if (_i == 0) {
        check_schedules(file, 9, whole, 3, threads, 2, 0);
    } else {
        static const int one[] = {2};
        check_schedules(file, 3, few, 1, one, 1, 0);
        check_schedules(file, 9, whole, 3, threads, 2, 1);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("path_q4k");
    TCase *t = tcase_create("tiny");
    tcase_set_timeout(t, 240);
    tcase_add_loop_test(t, test_schedules, 0, N_TINY);
    tcase_add_loop_test(t, test_slots, 0, 2);
    tcase_add_loop_test(t, test_near_reference, 0, N_TINY);
    tcase_add_test(t, test_knobs);
    tcase_add_loop_test(t, test_taps_are_neutral, 0, N_TINY);
    tcase_add_loop_test(t, test_taps_can_write, 0, N_TINY);
    tcase_add_test(t, test_stop);
    tcase_add_loop_test(t, test_overrides, 0, N_TINY);
    tcase_add_test(t, test_two_formats);
    tcase_add_test(t, test_wanted);
    tcase_add_loop_test(t, test_bound_weights, 0, N_TINY);
    tcase_add_test(t, test_run_errors);
    tcase_add_test(t, test_open_errors);
    tcase_add_test(t, test_force);
    suite_add_tcase(s, t);
    TCase *real = tcase_create("real");
    tcase_set_timeout(real, 1200);
    for (int i = 0; i < 2; i++) {
        char file[PATH_BYTES];
        real_path(real_names[i], file);
        if (IS_SANITIZED)
            (void)printf("SKIPPED: %s: too slow under a sanitizer\n", real_names[i]);
        else if (access(file, R_OK) != 0)
            (void)printf("SKIPPED: %s: model not present (%s)\n", real_names[i], file);
        else
            tcase_add_loop_test(real, test_real, i, i + 1);
    }
    suite_add_tcase(s, real);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    if (n_run == 0)
        return 3;
    return n_failed ? 1 : 0;
}
