/* harness/cli/cmd_replay.c: parity replay CASE: one recorded failure, run again. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "localise/replay.h"
#include "report/json_put.h"

#include <cjson/cJSON.h>
#include <string.h>

struct replay_options {
    const char *path, *force, *caps;
    int threads;
    bool no_fault, json;
};

static int fill_options(struct replay_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"path", 0, PAR_OPT_STRING, &o->path, 0, 0, "PATH", "another path than the recorded one"},
        {"force", 0, PAR_OPT_STRING, &o->force, 0, 0, "OP=VARIANT", "another kernel, as in `parity run`"},
        {"caps", 0, PAR_OPT_STRING, &o->caps, 0, 0, "LEVEL", "another CPU level: ref, avx2, avx512, all"},
        {"threads", 0, PAR_OPT_INT, &o->threads, 1, 4096, "N", "threads (default: as recorded)"},
        {"no-fault", 0, PAR_OPT_FLAG, &o->no_fault, 0, 0, NULL, "leave out faults that were planted on purpose"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout"},
    };
    memcpy(rows, own, sizeof own);
    return sizeof own / sizeof *own;
}

/* As the run called them, before the case was cut out. */
static int run_position(const struct par_case *c, int pos) {
    return pos + c->pos_from;
}

static int64_t run_row(const struct par_case *c, int64_t row) {
    return c->op == FWD_OP_RESULT_OUTPUT ? row + c->row_from : row;
}

static void print_name(const struct par_case *c) {
    if (c->model_layer >= 0)
        (void)printf("%s-%d", fwd_op_name(c->op), c->model_layer);
    else
        (void)printf("%s", fwd_op_name(c->op));
}

static const char *reason(const struct par_replay *r) {
    if (r->same_reason)
        return ", for the recorded reason";
    return r->n_over ? ", but not by what was recorded" : "";
}

static void print_text(const struct par_case *c, const struct par_replay *r, const char *file) {
    (void)printf("verdict    %s (exit %d)%s: %llu of %llu elements outside their bound\n", par_verdict_name(r->verdict),
                 par_verdict_exit(r->verdict), reason(r), (unsigned long long)r->n_over,
                 (unsigned long long)r->n_judged);
    (void)printf("case       %s: ", file);
    print_name(c);
    (void)printf(" of %s, path %s, schedule %s\n", c->model_name, c->path, par_schedule_name(c->schedule));
    (void)printf("ran        %s%s%s, fault %s%s\n", r->path, *r->variant ? ", " : "", r->variant,
                 *r->faults   ? r->faults
                 : *c->faults ? "left out: "
                              : "none",
                 *r->faults ? "" : c->faults);
    if (r->other_numerics)
        (void)printf("declared   other numerics than recorded: judged by this path's own\n");
    for (int i = 0; i < r->n_elements; i++) {
        const struct par_case_element *e = &r->elements[i], *was = &c->elements[i];
        (void)printf("element    position %d, row %lld\n", run_position(c, e->pos), (long long)run_row(c, e->row));
        (void)printf("  recorded expected %.9g, got %.9g, bound %.3g, ratio %.4g\n", was->expected, was->got,
                     was->bound, par_case_ratio(was));
        (void)printf("  now      expected %.9g, got %.9g, bound %.3g, ratio %.4g\n", e->expected, e->got, e->bound,
                     par_case_ratio(e));
    }
    if (r->n_over)
        (void)printf("worst      position %d, row %lld: expected %.9g, got %.9g, bound %.3g, ratio %.4g\n",
                     run_position(c, r->worst.pos), (long long)run_row(c, r->worst.row), r->worst.expected,
                     r->worst.got, r->worst.bound, r->ratio_max);
    if (*r->note)
        (void)printf("note       %s\n", r->note);
    if (*c->note)
        (void)printf("           %s\n", c->note);
}

static bool put_element(cJSON *o, const struct par_case *c, const struct par_case_element *e) {
    return o && par_put_int(o, "position", run_position(c, e->pos)) && par_put_int(o, "row", run_row(c, e->row)) &&
           par_put_exact(o, "expected", e->expected) && par_put_exact(o, "got", e->got) &&
           par_put_exact(o, "bound", e->bound) && par_put_real(o, "ratio", par_case_ratio(e));
}

static bool put_elements(cJSON *root, const struct par_case *c, const struct par_replay *r) {
    cJSON *list = par_put_array(root, "elements");
    bool ok = list != NULL;
    for (int i = 0; ok && i < r->n_elements; i++) {
        cJSON *o = par_push_object(list);
        ok = o && put_element(par_put_object(o, "recorded"), c, &c->elements[i]) &&
             put_element(par_put_object(o, "now"), c, &r->elements[i]);
    }
    return ok;
}

static enum fwd_status print_json(const struct par_case *c, const struct par_replay *r, const char *file,
                                  struct fwd_error *err) {
    cJSON *root = cJSON_CreateObject();
    const struct par_case_element worst = {r->worst.pos, r->worst.row, r->worst.expected, r->worst.got, r->worst.bound};
    bool ok = root && par_put_text(root, "schema", "parity-replay-v1") && par_put_text(root, "case", file) &&
              par_put_text(root, "verdict", par_verdict_name(r->verdict)) &&
              par_put_int(root, "exit", par_verdict_exit(r->verdict)) &&
              par_put_bool(root, "same_reason", r->same_reason) && par_put_text(root, "op", fwd_op_name(c->op)) &&
              par_put_int(root, "layer", c->model_layer) && par_put_text(root, "model", c->model_name) &&
              par_put_text(root, "recorded_path", c->path) && par_put_text(root, "path", r->path) &&
              par_put_text(root, "variant", r->variant) && par_put_text(root, "faults", r->faults) &&
              par_put_bool(root, "other_numerics", r->other_numerics) && par_put_count(root, "n_judged", r->n_judged) &&
              par_put_count(root, "n_over", r->n_over) && par_put_real(root, "ratio_max", r->ratio_max) &&
              put_elements(root, c, r) && (!r->n_over || put_element(par_put_object(root, "worst"), c, &worst)) &&
              par_put_text(root, "note", r->note);
    char *text = par_put_finish(root, ok);
    FWD_FAIL_IF(!text, FWD_ENOMEM, err, "no memory for the JSON");
    (void)fputs(text, stdout);
    fwd_free(text);
    return FWD_OK;
}

static enum fwd_status replay(const struct replay_options *o, const char *file, int *code, struct fwd_error *err) {
    struct par_replay_options options = {
        .caps = o->caps, .force = o->force, .n_threads = o->threads, .no_fault = o->no_fault};
    struct par_case c;
    struct par_replay r;
    if (o->path)
        FWD_TRY(par_find_path(o->path, &options.path, err));
    FWD_TRY(par_case_read(&c, file, err));
    enum fwd_status rc = fwd_pool_create(&options.pool, o->threads ? o->threads : c.n_threads, err);
    if (rc == FWD_OK)
        rc = par_case_replay(&c, &options, &r, err);
    if (rc == FWD_OK && o->json)
        rc = print_json(&c, &r, file, err);
    else if (rc == FWD_OK)
        print_text(&c, &r, file);
    *code = rc == FWD_OK ? par_verdict_exit(r.verdict) : 0;
    fwd_pool_free(options.pool);
    par_case_free(&c);
    return rc;
}

int cmd_replay(int argc, char **argv) {
    struct replay_options o = {0};
    struct par_opt rows[8];
    struct fwd_error err;
    const char *file = NULL;
    int n_words, code;
    bool help;
    int n_rows = fill_options(&o, rows);
    enum fwd_status rc = par_options_parse(rows, n_rows, argc, argv, &file, 1, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(stdout, "replay CASE [options]",
                         "Runs a recorded failure again: one op of one layer, on the rows and weights that matter,\n"
                         "judged as in the run that accused it. Exit 1: it still fails; 0: it holds.",
                         rows, n_rows);
        return 0;
    }
    if (rc == FWD_OK && !file)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "CASE is missing (--help tells)");
    if (rc == FWD_OK)
        rc = replay(&o, file, &code, &err);
    return rc == FWD_OK ? code : par_complain(&err);
}
