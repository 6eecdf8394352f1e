/* The reference paths f32 and f64: against the numpy oracle's logits (fixtures/oracle_forward.py), on two tiny models
 * that hold every block type and, where they were fetched (make model), on the two real ones; then the contract of the
 * path table: taps, overrides, wanted logits, errors, the emulated activations.
 *
 * The models folder is $PARITY_MODELS, else $XDG_CACHE_HOME or ~/.cache, as `make model` has it. A model that is not
 * there is reported as skipped and its tests are not run. */
#include "core/half.h"
#include "engine.h"

#include <check.h>
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
    size_t expected = 16 + (size_t)g->n_tokens * 4 + (size_t)g->n_tokens * (8 + 12 * (size_t)g->n_kept) +
                      8 * (size_t)g->n_vocab;
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

__attribute__((unused)) static size_t logits_bytes(const struct fixture *f, int n) {
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

int main(void) {
    Suite *s = suite_create("paths_ref");
    TCase *t = tcase_create("golden");
    tcase_set_timeout(t, 240);
    int n_skipped = 0;
    for (int i = 0; i < N_MODELS; i++) {
        char file[PATH_BYTES];
        model_path(&models[i], file);
        if (models[i].real && access(file, R_OK) != 0) {
            (void)printf("skipped: 2 checks of %s: model not present (%s)\n", models[i].name, file);
            n_skipped += 2;
            continue;
        }
        tcase_add_loop_test(t, test_golden, 2 * i, 2 * i + 2);
    }
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r), ran = srunner_ntests_run(r);
    srunner_free(r);
    if (n_skipped)
        (void)printf("skipped: %d checks in all\n", n_skipped);
    return ran == 0 ? 3 : failed != 0;
}
