/* harness/test/made_run.h: whole runs on the built-in made model, for tests of what a run concludes. */
#ifndef HARNESS_TEST_MADE_RUN_H
#define HARNESS_TEST_MADE_RUN_H

#include "fixture/make.h"
#include "run/run.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char model_path[64];
static struct fwd_gguf *model;
static const int32_t prompt[] = {72,  101, 108, 108, 111, 44, 32, 119, 111, 114,
                                 108, 100, 33,  10,  40,  41, 59, 33,  34,  35};
enum { N_PROMPT = sizeof prompt / sizeof *prompt, N_DECODE = 4 };

static inline void set_up(void) {
    struct fwd_error err = {0};
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .path = model_path};
    (void)snprintf(model_path, sizeof model_path, "/tmp/parity-test-run-%ld.gguf", (long)getpid());
    ck_assert_msg(par_model_make(&args, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_gguf_open(&model, model_path, &err) == FWD_OK, "%s", err.message);
}

static inline void tear_down(void) {
    fwd_gguf_close(model);
    (void)unlink(model_path);
}

struct outcome {
    struct par_report report;
    struct par_figures *figures;
};

struct made_run {
    const int32_t *loss_ids;
    int n_loss_ids;
    const char *fault, *also; /* or NULL */
    enum fwd_head head;
    enum par_depth depth;
    const struct fwd_path *cand; /* NULL: q4k-cpu */
    const struct fwd_gguf *source;
};

static inline struct outcome run_made(const struct made_run *m) {
    struct outcome o = {.figures = par_figures_create()};
    struct fwd_error err = {0};
    struct par_fault fault[2];
    const char *const texts[2] = {m->fault, m->also};
    int n_faults = 0;
    struct par_run_options options = {.file = model,
                                      .model_name = "made",
                                      .ids = prompt,
                                      .n_prompt = N_PROMPT,
                                      .n_decode = N_DECODE,
                                      .loss_ids = m->loss_ids,
                                      .n_loss_ids = m->n_loss_ids,
                                      .ref = fwd_path_find("f32"),
                                      .cand = m->cand ? m->cand : fwd_path_find("q4k-cpu"),
                                      .source = m->source,
                                      .knobs = {.head = m->head, .kv_type = FWD_F16},
                                      .schedule = PAR_SCHEDULE_PREFILL,
                                      .depth = m->depth,
                                      .faults = fault,
                                      .hypotheses_dir = "contracts/hypotheses",
                                      .command = "parity run made"};
    for (int i = 0; i < 2 && texts[i]; i++)
        ck_assert_msg(par_fault_parse(texts[i], &fault[n_faults++], &err) == FWD_OK, "%s", err.message);
    options.n_faults = n_faults;
    enum fwd_status rc = par_run(&options, &o.report, o.figures, &err);
    ck_assert_msg(rc == FWD_OK, "%s", err.message);
    for (int i = 0; i < n_faults; i++)
        par_fault_free(&fault[i]);
    return o;
}

static inline struct outcome run_with(const char *fault_text, enum fwd_head head, enum par_depth depth) {
    struct made_run m = {.fault = fault_text, .head = head, .depth = depth};
    return run_made(&m);
}

static inline void drop(struct outcome *o) {
    par_text_free(o->report.text);
    par_figures_free(o->figures);
}

static inline double figure(const struct outcome *o, const char *name) {
    double v = -1;
    ck_assert_msg(par_figures_get(o->figures, name, &v), "figure %s was not set", name);
    return v;
}

#endif
