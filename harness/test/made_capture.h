/* harness/test/made_capture.h: captures of the built-in made model, and copies of them as another program would write
 * them. */
#ifndef HARNESS_TEST_MADE_CAPTURE_H
#define HARNESS_TEST_MADE_CAPTURE_H

#include "fixture/make.h"
#include "judge/declared.h"
#include "judge/judgement.h"
#include "run/trace.h"
#include "tap/safetensors.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], model_path[96], own_path[96];
static struct fwd_gguf *model;
static const int32_t prompt[] = {5, 17, 300, 41, 2, 99, 7, 120, 33};
static const char ids_text[] = "5,17,300,41,2,99,7,120,33";
enum { N_PROMPT = sizeof prompt / sizeof *prompt };

static inline void ok(enum fwd_status rc, const struct fwd_error *err) {
    ck_assert_msg(rc == FWD_OK, "%s", err->message);
}

static inline void trace_own(const char *path, fwd_config_hook *hook, fwd_model_hook *model_hook) {
    struct fwd_error err;
    struct par_trace_result result;
    struct par_trace_options o = {.file = model,
                                  .path = fwd_path_find("q4k-cpu"),
                                  .knobs = {.size = sizeof(struct fwd_knobs),
                                            .n_threads = 1,
                                            .n_seq = 1,
                                            .kv_type = FWD_F16,
                                            .config_hook = hook,
                                            .model_hook = model_hook},
                                  .schedule = PAR_SCHEDULE_PREFILL,
                                  .ids = prompt,
                                  .n_prompt = N_PROMPT,
                                  .all_logits = true,
                                  .model_path = model_path,
                                  .model_sha256 = "aa",
                                  .capture = {.layer_last = -1}};
    ok(par_trace(&o, path, &result, &err), &err);
    ck_assert_int_eq(result.verdict, PAR_HELD);
}

static inline void set_up(void) {
    struct fwd_error err;
    (void)snprintf(dir, sizeof dir, "/tmp/parity-judge-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(model_path, sizeof model_path, "%s/m.gguf", dir);
    (void)snprintf(own_path, sizeof own_path, "%s/own", dir);
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .path = model_path};
    ok(par_model_make(&args, &err), &err);
    ok(fwd_gguf_open(&model, model_path, &err), &err);
    trace_own(own_path, NULL, NULL);
}

/* What a test wrote lies flat in dir, or one folder deeper. */
static inline void tear_down(void) {
    char command[128];
    fwd_gguf_close(model);
    (void)snprintf(command, sizeof command, "rm -r %s", dir);
    ck_assert_int_eq(system(command), 0);
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */
struct asked {
    const char *capture;
    const char *keys[4], *values[4]; /* assertions */
    const char *sha;                 /* NULL: "aa" */
    const char *map;                 /* file, or NULL */
};

/* By the numerics that the own capture records, whatever capture it is. */
static inline enum fwd_status judge(const struct asked *a, struct par_judgement *out, struct fwd_error *err) {
    struct par_import *own, *im = NULL;
    struct par_declared *declared = NULL;
    struct par_tap_map *map = NULL;
    *out = (struct par_judgement){0};
    ok(par_import_open(&own, own_path, NULL, err), err);
    ok(par_declared_own(&declared, model, own, err), err);
    enum fwd_status rc = a->map ? par_tap_map_read(&map, a->map, err) : FWD_OK;
    if (rc == FWD_OK)
        rc = par_import_open(&im, a->capture, map, err);
    for (int i = 0; rc == FWD_OK && i < 4 && a->keys[i]; i++)
        rc = par_import_assert(im, a->keys[i], a->values[i], err);
    struct par_judge_capture o = {.file = model,
                                  .model_path = model_path,
                                  .model_sha256 = a->sha ? a->sha : "aa",
                                  .capture_path = a->capture,
                                  .capture = im,
                                  .numerics = par_declared_numerics,
                                  .numerics_ud = declared,
                                  .numerics_name = par_declared_name(declared),
                                  .numerics_recorded = rc == FWD_OK && par_import_is_own(im),
                                  .n_threads = 1};
    if (rc == FWD_OK)
        rc = par_judge_capture(&o, out, err);
    par_import_close(im);
    par_import_close(own);
    par_tap_map_free(map);
    par_declared_free(declared);
    return rc;
}

static inline const struct par_judged_op *find_op(const struct par_judgement *j, enum fwd_op op, int layer) {
    for (int i = 0; i < j->n_ops; i++)
        if (j->ops[i].row.op == op && j->ops[i].row.layer == layer)
            return &j->ops[i];
    ck_abort_msg("no row %s-%d", fwd_op_name(op), layer);
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */
struct copied {
    char name[96];
    int64_t n_rows, width;
    float *x; /* [n_rows][width] */
};
enum { MOST_COPIED = 400 };
struct copy {
    struct copied t[MOST_COPIED];
    int n;
};

/* The float taps of a capture but the caches, under names without positions. */
static inline void copy_capture(struct copy *c, const char *path) {
    struct par_capture *own;
    struct fwd_error err;
    size_t n;
    c->n = 0;
    ok(par_capture_open(&own, path, &err), &err);
    const struct par_capture_tensor *t = par_capture_tensors(own, &n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(t[i].dtype, "F32") != 0 || t[i].n_dims != 2)
            continue;
        ck_assert_int_lt(c->n, MOST_COPIED);
        struct copied *to = &c->t[c->n++];
        (void)snprintf(to->name, sizeof to->name, "%.*s", (int)strcspn(t[i].name, "@"), t[i].name);
        to->n_rows = t[i].shape[0];
        to->width = t[i].shape[1];
        to->x = malloc(t[i].n_bytes);
        ck_assert_ptr_nonnull(to->x);
        ok(par_capture_read(own, &t[i], to->x, &err), &err);
    }
    ck_assert_int_gt(c->n, 20);
    par_capture_close(own);
}

static inline void free_copy(struct copy *c) {
    for (int i = 0; i < c->n; i++)
        free(c->t[i].x);
}

static inline struct copied *find_copied(struct copy *c, const char *name) {
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->t[i].name, name))
            return &c->t[i];
    ck_abort_msg("no tap %s", name);
}

/* As plain safetensors, without any fact. */
static inline void write_safetensors(struct copy *c, const char *path) {
    struct par_st_tensor t[MOST_COPIED] = {0};
    struct fwd_error err;
    uint64_t at = 0;
    char *header;
    size_t n;
    for (int i = 0; i < c->n; i++) {
        t[i].name = c->t[i].name;
        memcpy(t[i].dtype, "F32", 4);
        t[i].n_dims = 2;
        t[i].shape[0] = c->t[i].n_rows;
        t[i].shape[1] = c->t[i].width;
        t[i].begin = at;
        at += 4 * (uint64_t)(c->t[i].n_rows * c->t[i].width);
        t[i].end = at;
    }
    struct par_st_header h = {.tensors = t, .n_tensors = (size_t)c->n};
    ok(par_st_print(&header, &n, &h, &err), &err);
    FILE *out = fopen(path, "wb");
    ck_assert_ptr_nonnull(out);
    ck_assert_uint_eq(fwrite(header, 1, n, out), n);
    for (int i = 0; i < c->n; i++)
        ck_assert_uint_eq(fwrite(c->t[i].x, 4, (size_t)(c->t[i].n_rows * c->t[i].width), out),
                          (size_t)(c->t[i].n_rows * c->t[i].width));
    ck_assert_int_eq(fclose(out), 0);
    fwd_free(header);
}

#endif
