/* Two captures side by side: what may be compared, how taps are aligned, and what each difference is called. */
#include "compare/diff.h"

#include <check.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { W = 8, N_POS = 6, KV = 4 };

static char dir[32];

static void setup(void) {
    (void)snprintf(dir, sizeof dir, "/tmp/parity-diff-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void teardown(void) {
    char path[64];
    for (int i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/%c", dir, 'a' + i);
        (void)unlink(path);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

/* How one side is made. */
struct recipe {
    int chunk; /* tokens per call */
    bool f64;  /* Qcur in double */
    bool q8;   /* attn_norm_q8 present */
    const char *model, *ids;
    int bad_pos, bad_at; /* Qcur of layer 1: this value is changed ... */
    float bad;           /* ... to this (0: not) */
    bool stale_row;      /* K_cache of layer 0: row 2 is another one */
    int n_layer;         /* 0: two */
    const char *aa;      /* second logits hash */
};

static float value_of(int op, int layer, int pos, int i) {
    return (float)((op * 131 + layer * 31 + pos * 17 + i * 7) % 97) / 16.0f - 3;
}

static void put(struct par_capture_writer *w, const struct recipe *r, enum fwd_op op, int layer, int pos0, int n) {
    float rows[N_POS][W] = {{0}};
    double wide[N_POS][W];
    for (int p = 0; p < n; p++)
        for (int i = 0; i < W; i++) {
            rows[p][i] = value_of((int)op, layer, pos0 + p, i);
            if (r->bad != 0 && op == FWD_OP_QCUR && layer == 1 && pos0 + p == r->bad_pos && i == r->bad_at)
                rows[p][i] = r->bad;
            wide[p][i] = (double)rows[p][i];
        }
    struct fwd_view v = {.size = sizeof v,
                         .op = op,
                         .layer = layer,
                         .pos0 = pos0,
                         .n_pos = n,
                         .dtype = FWD_F32,
                         .ne = {W, n, 1, 1},
                         .nb = {4, 4 * W, 0, 0},
                         .data = rows};
    if (r->f64 && op == FWD_OP_QCUR) {
        v.dtype = FWD_F64;
        v.data = wide;
        v.nb[0] = 8;
        v.nb[1] = 8 * W;
    }
    ck_assert_int_eq(par_capture_tap(w, &v), 0);
}

static void put_cache(struct par_capture_writer *w, const struct recipe *r, int layer, int pos0, int n) {
    float rows[N_POS][KV];
    int end = pos0 + n;
    for (int p = 0; p < end; p++)
        for (int i = 0; i < KV; i++)
            rows[p][i] = value_of(99, layer, r->stale_row && layer == 0 && p == 2 ? 1 : p, i);
    struct fwd_view v = {.size = sizeof v,
                         .op = FWD_OP_K_CACHE,
                         .layer = layer,
                         .pos0 = pos0,
                         .n_pos = n,
                         .dtype = FWD_F32,
                         .ne = {KV, 1, end, 1},
                         .nb = {4, 4 * KV, 4 * KV, 0},
                         .data = rows};
    ck_assert_int_eq(par_capture_tap(w, &v), 0);
}

static void put_q8(struct par_capture_writer *w, int pos0, int n) {
    unsigned char rows[N_POS][40];
    memset(rows, 1, sizeof rows);
    struct fwd_view v = {.size = sizeof v,
                         .op = FWD_OP_ATTN_NORM_Q8,
                         .layer = 0,
                         .pos0 = pos0,
                         .n_pos = n,
                         .dtype = FWD_Q8_32,
                         .ne = {32, n, 1, 1},
                         .nb = {0, 40, 0, 0},
                         .data = rows};
    ck_assert_int_eq(par_capture_tap(w, &v), 0);
}

static struct par_capture *make(char side, const struct recipe *r) {
    char path[64];
    struct par_capture_writer *w;
    struct par_capture *c;
    struct fwd_error err;
    (void)snprintf(path, sizeof path, "%s/%c", dir, side);
    ck_assert_msg(par_capture_create(&w, path, NULL, &err) == FWD_OK, "%s", err.message);
    for (int p = 0; p < N_POS; p += r->chunk) {
        int n = p + r->chunk > N_POS ? N_POS - p : r->chunk;
        for (int layer = 0; layer < (r->n_layer ? r->n_layer : 2); layer++) {
            put(w, r, FWD_OP_ATTN_NORM, layer, p, n);
            put(w, r, FWD_OP_QCUR, layer, p, n);
            put_cache(w, r, layer, p, n);
        }
        if (r->q8)
            put_q8(w, p, n);
    }
    if (r->model)
        ck_assert_int_eq(par_capture_put(w, PAR_FACT_MODEL, r->model, &err), FWD_OK);
    if (r->ids)
        ck_assert_int_eq(par_capture_put(w, PAR_FACT_IDS, r->ids, &err), FWD_OK);
    if (r->aa) {
        ck_assert_int_eq(par_capture_put(w, PAR_FACT_LOGITS, "0x1", &err), FWD_OK);
        ck_assert_int_eq(par_capture_put(w, PAR_FACT_AA, r->aa, &err), FWD_OK);
    }
    ck_assert_msg(par_capture_commit(w, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_capture_open(&c, path, &err) == FWD_OK, "%s", err.message);
    return c;
}

#define GOOD .model = "cc32", .ids = "1,2,3,4,5,6"
static const struct recipe plain = {.chunk = N_POS, GOOD};

struct case_row {
    const char *name;
    struct recipe a, b;
    struct par_diff_options o;
    enum par_verdict verdict;
    const char *why;   /* part of it */
    const char *first; /* label of the first row that differs, or NULL */
};
static const struct case_row cases[] = {
    {"the same", {.chunk = 6, GOOD}, {.chunk = 6, GOOD}, {0}, PAR_HELD, "same bits", NULL},
    {"the same, exact", {.chunk = 6, GOOD}, {.chunk = 6, GOOD}, {.exact = true}, PAR_HELD, "same bits", NULL},
    {"chunked otherwise", {.chunk = 6, GOOD}, {.chunk = 1, GOOD}, {.exact = true}, PAR_HELD, "same bits", NULL},
    {"chunks of 4 and 5", {.chunk = 4, GOOD}, {.chunk = 5, GOOD}, {.exact = true}, PAR_HELD, "same bits", NULL},
    {"double and float",
     {.chunk = 6, .f64 = true, GOOD},
     {.chunk = 1, GOOD},
     {.exact = true},
     PAR_HELD,
     "same bits",
     NULL},
    {"one value",
     {.chunk = 6, GOOD},
     {.chunk = 1, .bad_pos = 4, .bad_at = 5, .bad = 1.5f, GOOD},
     {0},
     PAR_UNMEASURED,
     "nothing judged",
     "Qcur-1"},
    {"one value, exact",
     {.chunk = 6, GOOD},
     {.chunk = 1, .bad_pos = 4, .bad_at = 5, .bad = 1.5f, GOOD},
     {.exact = true},
     PAR_DIVERGED,
     "bits differ",
     "Qcur-1"},
    {"one value, filtered out",
     {.chunk = 6, GOOD},
     {.chunk = 6, .bad_pos = 4, .bad_at = 5, .bad = 1.5f, GOOD},
     {.exact = true, .filter = "norm"},
     PAR_HELD,
     "same bits",
     NULL},
    {"NaN on one side",
     {.chunk = 6, GOOD},
     {.chunk = 6, .bad_pos = 4, .bad_at = 5, .bad = (float)NAN, GOOD},
     {0},
     PAR_NONFINITE,
     "NaN or infinity",
     "Qcur-1"},
    {"infinity on one side",
     {.chunk = 6, .bad_pos = 4, .bad_at = 5, .bad = (float)INFINITY, GOOD},
     {.chunk = 6, GOOD},
     {.exact = true},
     PAR_NONFINITE,
     "NaN or infinity",
     "Qcur-1"},
    {"NaN on both",
     {.chunk = 6, .bad_pos = 4, .bad_at = 5, .bad = (float)NAN, GOOD},
     {.chunk = 2, .bad_pos = 4, .bad_at = 5, .bad = (float)NAN, GOOD},
     {.exact = true},
     PAR_HELD,
     "same bits",
     NULL},
    {"a stale row",
     {.chunk = 6, GOOD},
     {.chunk = 1, .stale_row = true, GOOD},
     {.exact = true},
     PAR_DIVERGED,
     "bits differ",
     "K_cache-0"},
    {"a tap on one side",
     {.chunk = 6, .q8 = true, GOOD},
     {.chunk = 6, GOOD},
     {0},
     PAR_UNMEASURED,
     "one side only",
     NULL},
    {"a tap on one side, left out",
     {.chunk = 6, .q8 = true, GOOD},
     {.chunk = 6, GOOD},
     {.filter = "Qcur"},
     PAR_HELD,
     "same bits",
     NULL},
    {"a layer on one side",
     {.chunk = 6, GOOD},
     {.chunk = 6, .n_layer = 1, GOOD},
     {.exact = true},
     PAR_UNMEASURED,
     "one side only",
     NULL},
    {"nothing left",
     {.chunk = 6, GOOD},
     {.chunk = 6, GOOD},
     {.filter = "no such tap"},
     PAR_UNMEASURED,
     "no value was compared",
     NULL},
    {"quantised, the same",
     {.chunk = 6, .q8 = true, GOOD},
     {.chunk = 1, .q8 = true, GOOD},
     {0},
     PAR_HELD,
     "same bits",
     NULL},
    {"another model",
     {.chunk = 6, .model = "x", .ids = "1"},
     {.chunk = 6, .model = "y", .ids = "1"},
     {.same_model = true},
     PAR_REFUSED,
     "model_sha256 differs: 'x'",
     NULL},
    {"other ids",
     {.chunk = 6, .model = "x", .ids = "1"},
     {.chunk = 6, .model = "x", .ids = "1,2"},
     {.same_tokens = true},
     PAR_REFUSED,
     "token_ids differs",
     NULL},
    {"no model said",
     {.chunk = 6, .ids = "1"},
     {.chunk = 6, .model = "y", .ids = "1"},
     {0},
     PAR_REFUSED,
     "--assert-same-model",
     NULL},
    {"no ids said",
     {.chunk = 6, .model = "y"},
     {.chunk = 6, .model = "y", .ids = "1"},
     {.same_model = true},
     PAR_REFUSED,
     "--assert-same-tokens",
     NULL},
    {"asserted caps HELD",
     {.chunk = 6, .ids = "1"},
     {.chunk = 6, .model = "y", .ids = "1"},
     {.same_model = true},
     PAR_UNMEASURED,
     "would be HELD if what was asserted (model_sha256)",
     NULL},
    {"asserted caps DIVERGED",
     {.chunk = 6},
     {.chunk = 6, .bad_pos = 0, .bad = 9, GOOD},
     {.same_model = true, .same_tokens = true, .exact = true},
     PAR_UNMEASURED,
     "would be DIVERGED if what was asserted (model_sha256, token_ids)",
     "Qcur-1"},
    {"A/A failed", {.chunk = 6, .aa = "0x2", GOOD}, {.chunk = 6, GOOD}, {0}, PAR_MISTRUSTED, "not the same", NULL},
    {"A/A held", {.chunk = 6, .aa = "0x1", GOOD}, {.chunk = 6, GOOD}, {0}, PAR_HELD, "same bits", NULL},
};

START_TEST(verdicts) {
    const struct case_row *row = &cases[_i];
    struct par_capture *a = make('a', &row->a), *b = make('b', &row->b);
    struct par_diff *d;
    struct fwd_error err;
    ck_assert_msg(par_diff_run(&d, a, b, &row->o, &err) == FWD_OK, "%s: %s", row->name, err.message);
    ck_assert_msg(d->verdict == row->verdict, "%s: %s: %s", row->name, par_verdict_name(d->verdict), d->why);
    ck_assert_msg(strstr(d->why, row->why) != NULL, "%s: %s", row->name, d->why);
    ck_assert_msg((d->first >= 0) == (row->first != NULL), "%s", row->name);
    if (row->first)
        ck_assert_str_eq(d->rows[d->first].label, row->first);
    if (d->verdict == PAR_HELD)
        ck_assert_uint_gt(d->n_values, 0);
    par_diff_free(d);
    par_capture_close(a);
    par_capture_close(b);
}
END_TEST

START_TEST(numbers) {
    struct recipe bad = {.chunk = 1, .bad_pos = 4, .bad_at = 5, .bad = 1000, GOOD};
    struct par_capture *a = make('a', &plain), *b = make('b', &bad);
    struct par_diff *d;
    struct fwd_error err;
    ck_assert_int_eq(par_diff_run(&d, a, b, &(struct par_diff_options){0}, &err), FWD_OK);
    ck_assert_int_eq(d->n_rows, 6);
    ck_assert_int_eq(d->n_compared, 6);
    ck_assert_int_eq(d->n_same, 5);
    ck_assert_int_eq(d->n_only_a + d->n_only_b, 0);
    /* 2 taps x 2 layers x 6 positions x 8, and the cache of the common end: 2 layers x 6 rows x 4 */
    ck_assert_uint_eq(d->n_values, 2 * 2 * N_POS * W + 2 * N_POS * KV);
    ck_assert_uint_eq(d->n_differ, 1);
    const struct par_diff_row *row = &d->rows[d->first];
    double was = (double)value_of(FWD_OP_QCUR, 1, 4, 5);
    ck_assert_int_eq(row->first_pos, 4);
    ck_assert_int_eq(row->first_at, 5);
    ck_assert(row->first_a == was && row->first_b == 1000);
    ck_assert_int_eq(row->m.max_at / row->width, 4);
    ck_assert_int_eq(row->m.max_at % row->width, 5);
    ck_assert(row->m.max_abs == 1000 - was);

    char *text = par_diff_json(d);
    cJSON *root = cJSON_ParseWithOpts(text, NULL, true);
    ck_assert_ptr_nonnull(root);
    ck_assert_str_eq(cJSON_GetObjectItemCaseSensitive(root, "verdict")->valuestring, "UNMEASURED");
    ck_assert_int_eq(cJSON_GetObjectItemCaseSensitive(root, "exit")->valueint, 3);
    ck_assert_str_eq(cJSON_GetObjectItemCaseSensitive(root, "first")->valuestring, "Qcur-1");
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(root, "taps")), 6);
    cJSON_Delete(root);
    fwd_free(text);

    char *out = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&out, &n);
    par_diff_text(d, false, f);
    (void)fclose(f);
    ck_assert_int_eq(strncmp(out, "verdict    UNMEASURED (exit 3)\n", 31), 0);
    ck_assert_ptr_nonnull(strstr(out, "first      Qcur-1 at position 4, value 5: a "));
    ck_assert_ptr_nonnull(strstr(out, "and 5 taps that are the same"));
    free(out);
    par_diff_free(d);
    par_capture_close(a);
    par_capture_close(b);
}
END_TEST

START_TEST(bad_filter) {
    struct par_capture *a = make('a', &plain);
    struct par_diff *d;
    struct fwd_error err;
    ck_assert_int_eq(par_diff_run(&d, a, a, &(struct par_diff_options){.filter = "a["}, &err), FWD_EINPUT);
    par_capture_close(a);
}
END_TEST

int main(void) {
    Suite *s = suite_create("diff");
    TCase *t = tcase_create("captures");
    tcase_set_timeout(t, 30);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, verdicts, 0, (int)(sizeof cases / sizeof *cases));
    tcase_add_test(t, numbers);
    tcase_add_test(t, bad_filter);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
