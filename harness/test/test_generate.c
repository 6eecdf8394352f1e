/* The drive loop and greedy generation, on a tiny model: all schedules of the caching path give the same bits, a path
 * without a cache the same ids, and what generate chooses is the argmax of what a driven run computes. */
#include "run/generate.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPT = 11, N_IDS = 17, N_MAX = 6 };

struct rig {
    struct fwd_gguf *file;
    struct par_drive drive;
    int64_t n_vocab;
    int32_t ids[N_IDS];
};

static void open_rig(struct rig *r, const char *path, struct fwd_knobs knobs) {
    struct fwd_error err;
    memset(r, 0, sizeof *r);
    ck_assert_int_eq(fwd_gguf_open(&r->file, "fixtures/golden/forward-tiny-qwen2.gguf", &err), FWD_OK);
    r->drive.path = fwd_path_find(path);
    ck_assert_ptr_nonnull(r->drive.path);
    knobs.size = sizeof knobs;
    knobs.n_ctx = N_IDS;
    knobs.n_seq = 1;
    knobs.n_batch = N_IDS;
    ck_assert_msg(r->drive.path->open(&r->drive.session, r->file, &knobs, &err) == FWD_OK, "%s", err.message);
    r->n_vocab = r->drive.path->config(r->drive.session)->n_vocab;
    for (int i = 0; i < N_IDS; i++)
        r->ids[i] = i * 53 % 320;
}

static struct fwd_knobs f16_knobs(void) {
    return (struct fwd_knobs){.n_threads = 1, .kv_type = FWD_F16};
}

static void close_rig(struct rig *r) {
    r->drive.path->close(r->drive.session);
    fwd_gguf_close(r->file);
}

static float *drive(struct rig *r, const uint8_t *want, int n_wanted) {
    float *logits = fwd_calloc((size_t)n_wanted * (size_t)r->n_vocab, sizeof *logits);
    struct fwd_error err;
    ck_assert_msg(par_drive_run(&r->drive, r->ids, N_PROMPT, N_IDS, want, logits, &err) == FWD_OK, "%s", err.message);
    return logits;
}

START_TEST(test_schedules) {
    struct rig r;
    open_rig(&r, "q4k-cpu", f16_knobs());
    uint8_t all[N_IDS];
    memset(all, 1, sizeof all);
    size_t bytes = (size_t)r.n_vocab * sizeof(float);
    r.drive.schedule = PAR_SCHEDULE_NOCACHE;
    float *expected = drive(&r, all, N_IDS);
    static const struct {
        enum par_schedule schedule;
        int chunk;
    } rows[] = {
        {PAR_SCHEDULE_STEP, 0}, {PAR_SCHEDULE_PREFILL, 0}, {PAR_SCHEDULE_PREFILL, 4}, {PAR_SCHEDULE_PREFILL, 50}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        r.drive.schedule = rows[i].schedule;
        r.drive.chunk = rows[i].chunk;
        float *got = drive(&r, all, N_IDS);
        ck_assert_msg(!memcmp(got, expected, N_IDS * bytes), "row %zu: other bits than nocache", i);
        fwd_free(got);
        uint8_t some[N_IDS] = {[2] = 1, [3] = 1, [N_PROMPT - 1] = 1, [N_IDS - 2] = 1};
        got = drive(&r, some, 4);
        for (int p = 0, k = 0; p < N_IDS; p++)
            if (some[p])
                ck_assert(!memcmp(got + k++ * r.n_vocab, expected + p * r.n_vocab, bytes));
        fwd_free(got);
        got = drive(&r, NULL, 1);
        ck_assert(!memcmp(got, expected + (N_IDS - 1) * r.n_vocab, bytes));
        fwd_free(got);
    }
    fwd_free(expected);
    close_rig(&r);
}
END_TEST

static int count_calls(void *ud, const struct fwd_view *v) {
    int *calls = ud;
    if (v->op == FWD_OP_INP_EMBD) {
        calls[0]++;
        calls[1] = v->n_pos > calls[1] ? v->n_pos : calls[1];
    }
    return 0;
}

/* How a schedule cuts a sequence into calls, and that the declared largest call is the largest. */
START_TEST(test_calls) {
    static const struct {
        const char *path;
        enum par_schedule schedule;
        int chunk, n_calls, largest;
    } rows[] = {
        {"q4k-cpu", PAR_SCHEDULE_STEP, 0, 17, 1},    {"q4k-cpu", PAR_SCHEDULE_PREFILL, 0, 7, 11},
        {"q4k-cpu", PAR_SCHEDULE_PREFILL, 4, 9, 4},  {"q4k-cpu", PAR_SCHEDULE_PREFILL, 50, 7, 11},
        {"q4k-cpu", PAR_SCHEDULE_NOCACHE, 0, 2, 17}, /* of the decode steps only the wanted last one */
        {"f32", PAR_SCHEDULE_STEP, 0, 1, 17},        {"f32", PAR_SCHEDULE_NOCACHE, 0, 1, 17},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct rig r;
        open_rig(&r, rows[i].path, f16_knobs());
        int calls[2] = {0};
        r.drive.schedule = rows[i].schedule;
        r.drive.chunk = rows[i].chunk;
        r.drive.tap = count_calls;
        r.drive.tap_ud = calls;
        fwd_free(drive(&r, NULL, 1));
        ck_assert_msg(calls[0] == rows[i].n_calls && calls[1] == rows[i].largest, "row %zu: %d calls, largest %d", i,
                      calls[0], calls[1]);
        ck_assert_int_eq(par_drive_max_batch(r.drive.path, rows[i].schedule, rows[i].chunk, N_PROMPT, N_IDS),
                         rows[i].largest);
        close_rig(&r);
    }
}
END_TEST

struct made {
    int32_t ids[N_MAX];
    uint64_t hashes[N_MAX];
    int n;
};

static void take(void *ud, int step, int32_t id, uint64_t hash) {
    struct made *m = ud;
    ck_assert_int_eq(step, m->n);
    m->ids[m->n] = id;
    m->hashes[m->n++] = hash;
}

static void generate(struct rig *r, struct made *m) {
    int32_t ids[N_PROMPT + N_MAX];
    memset(m, 0, sizeof *m);
    memcpy(ids, r->ids, N_PROMPT * sizeof *ids);
    int n_made;
    enum par_generate_end end;
    struct fwd_error err;
    ck_assert_msg(par_generate(&r->drive, ids, N_PROMPT, N_MAX, NULL, take, m, &n_made, &end, &err) == FWD_OK, "%s",
                  err.message);
    ck_assert(n_made == N_MAX && m->n == N_MAX && end == PAR_GENERATE_COUNT);
    ck_assert(!memcmp(ids + N_PROMPT, m->ids, sizeof m->ids));
}

/* Generate is the judged computation: driven over the ids it chose, the same path gives logits with the same hashes. */
START_TEST(test_generate_is_the_driven_run) {
    static const char *const paths[] = {"q4k-cpu", "f32"};
    for (int i = 0; i < 6; i++) {
        struct rig r;
        open_rig(&r, paths[i / 3], f16_knobs());
        r.drive.schedule = (enum par_schedule)(i % 3);
        struct made m;
        generate(&r, &m);
        memcpy(r.ids + N_PROMPT, m.ids, sizeof m.ids);
        uint8_t want[N_IDS] = {0};
        memset(want + N_PROMPT - 1, 1, N_MAX);
        float *logits = drive(&r, want, N_MAX);
        for (int s = 0; s < N_MAX; s++) {
            const float *row = logits + s * r.n_vocab;
            ck_assert_int_eq(par_argmax(row, r.n_vocab), m.ids[s]);
            ck_assert_uint_eq(fwd_hash64(row, (size_t)r.n_vocab * sizeof *row), m.hashes[s]);
        }
        fwd_free(logits);
        close_rig(&r);
    }
}
END_TEST

/* ... and the hashes do tell: with another head form they differ. */
START_TEST(test_hashes_tell) {
    struct rig r;
    struct made quant, f32;
    open_rig(&r, "q4k-cpu", f16_knobs());
    generate(&r, &quant);
    close_rig(&r);
    struct fwd_knobs knobs = f16_knobs();
    knobs.head = FWD_HEAD_F32;
    open_rig(&r, "q4k-cpu", knobs);
    generate(&r, &f32);
    close_rig(&r);
    ck_assert_uint_ne(quant.hashes[0], f32.hashes[0]);
}
END_TEST

static int put_nan(void *ud, const struct fwd_view *v) {
    (void)ud;
    if (v->op == FWD_OP_RESULT_OUTPUT)
        for (int64_t i = 0; i < v->ne[0] * v->ne[1]; i++)
            ((float *)v->data)[i] = NAN;
    return 0;
}

START_TEST(test_nonfinite) {
    struct rig r;
    open_rig(&r, "q4k-cpu", f16_knobs());
    r.drive.tap = put_nan;
    int32_t ids[N_PROMPT + 1] = {0};
    int n_made = 7;
    enum par_generate_end end;
    ck_assert_int_eq(par_generate(&r.drive, ids, N_PROMPT, 1, NULL, NULL, NULL, &n_made, &end, NULL), FWD_OK);
    ck_assert(n_made == 0 && end == PAR_GENERATE_NONFINITE);
    close_rig(&r);
}
END_TEST

START_TEST(test_small_parts) {
    const float ties[] = {NAN, 1.0f, 3.0f, 3.0f, -INFINITY}, none[] = {NAN, NAN};
    ck_assert_int_eq(par_argmax(ties, 5), 2);
    ck_assert_int_eq(par_argmax(ties, 1), -1);
    ck_assert_int_eq(par_argmax(none, 2), -1);
    const float low[] = {-INFINITY, -INFINITY};
    ck_assert_int_eq(par_argmax(low, 2), 0);
    enum par_schedule s;
    for (int i = 0; i < 3; i++)
        ck_assert(par_schedule_by_name(par_schedule_name((enum par_schedule)i), &s) && (int)s == i);
    ck_assert(!par_schedule_by_name("fast", &s));
    struct rig r;
    open_rig(&r, "q4k-cpu", f16_knobs());
    float logits[320];
    struct fwd_error err;
    ck_assert_int_eq(par_drive_run(&r.drive, r.ids, 0, 3, NULL, logits, &err), FWD_EINPUT);
    ck_assert_int_eq(par_drive_run(&r.drive, r.ids, 4, 3, NULL, logits, &err), FWD_EINPUT);
    r.ids[2] = 5000;
    ck_assert_int_eq(par_drive_run(&r.drive, r.ids, 3, 3, NULL, logits, &err), FWD_ERANGE);
    close_rig(&r);
}
END_TEST

int main(void) {
    Suite *s = suite_create("generate");
    TCase *t = tcase_create("generate");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_schedules);
    tcase_add_test(t, test_calls);
    tcase_add_test(t, test_generate_is_the_driven_run);
    tcase_add_test(t, test_hashes_tell);
    tcase_add_test(t, test_nonfinite);
    tcase_add_test(t, test_small_parts);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    if (n_run == 0)
        return 3;
    return n_failed ? 1 : 0;
}
