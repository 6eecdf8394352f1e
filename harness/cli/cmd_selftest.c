/* harness/cli/cmd_selftest.c: parity selftest [MODEL]: plants every fault, runs clean, prints how good the instrument
 * is.
 */
#include "cli/cmd.h"
#include "cli/options.h"
#include "fixture/make.h"
#include "report/sha256.h"
#include "run/selftest.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct selftest_options {
    struct par_common common;
    const char *ref, *paths, *faults, *out;
    int n_seeds, n_prompts, n_weights, clean_elements, reach;
    bool quick, json, list;
};

static int fill_options(struct selftest_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"faults", 0, PAR_OPT_STRING, &o->faults, 0, 0, "GLOB", "faults whose name matches (default all, \"\" none)"},
        {"seeds", 0, PAR_OPT_INT, &o->n_seeds, 1, 10000, "N", "places at which each is planted (default 2)"},
        {"prompts", 0, PAR_OPT_INT, &o->n_prompts, 0, 64, "N", "prompts of the clean runs (default 20, 0: none)"},
        {"weights", 0, PAR_OPT_INT, &o->n_weights, 0, 1000000, "N",
         "change one 4-bit weight by one, N times (default 1000; quick 200)"},
        {"reach", 0, PAR_OPT_INT, &o->reach, 0, 1024, "N",
         "judge only N layers above the planted one (default all; quick 1)"},
        {"clean-elements", 0, PAR_OPT_INT, &o->clean_elements, 0, INT_MAX, "N",
         "judge at least N elements in clean runs (default 1000000000)"},
        {"ref", 0, PAR_OPT_STRING, &o->ref, 0, 0, "PATH", "the reference path (default f32)"},
        {"paths", 0, PAR_OPT_STRING, &o->paths, 0, 0, "PATH", "the candidate path (default q4k-cpu)"},
        {"quick", 0, PAR_OPT_FLAG, &o->quick, 0, 0, NULL, "one place a fault, candidate only; 10^7 clean elements"},
        {"list", 0, PAR_OPT_FLAG, &o->list, 0, 0, NULL, "list the catalogue of faults and do nothing else"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout"},
        {"out", 'o', PAR_OPT_STRING, &o->out, 0, 0, "FILE", "write the JSON there as well"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    memcpy(rows, own, sizeof own);
    par_common_opts(&o->common, rows + N_OWN);
    return N_OWN + PAR_COMMON_OPTS;
}

static void show_progress(void *ud, const char *what, int64_t done, int64_t total) {
    (void)ud;
    par_progress(what, done, total);
}

static int list_faults(void) {
    const struct par_fault_row *row;
    for (int i = 0; (row = par_fault_row(i)) != NULL; i++)
        (void)printf("%-28s %s %-22s %s%s\n%-28s    museum: %s\n", row->name, row->hypothesis,
                     row->signature ? row->signature : "(unexplained)", row->summary, row->shared ? " [shared]" : "",
                     "", row->museum);
    return 0;
}

/* Without MODEL: the built-in one, made in a temporary file; for a path that runs a step as a launch plan the one whose
 * heads such plans serve. */
static const struct par_shape *builtin_for(const char *path_name) {
    const struct fwd_path *path = fwd_path_find(path_name);
    struct fwd_path_info info = {.size = sizeof info};
    if (path)
        path->describe(&info);
    return info.has_plan ? par_shape_find("tiny-64") : par_shape_at(0);
}

static enum fwd_status make_builtin(const struct par_shape *shape, char *path, size_t n, struct fwd_error *err) {
    (void)snprintf(path, n, "/tmp/parity-selftest-XXXXXX");
    int fd = mkstemp(path);
    FWD_FAIL_IF(fd < 0, FWD_EIO, err, "selftest: no temporary file %s", path);
    (void)close(fd);
    struct par_make_args args = {.shape = shape, .seed = 1, .path = path};
    enum fwd_status rc = par_model_make(&args, err);
    if (rc != FWD_OK)
        (void)unlink(path);
    return rc;
}

static void repeat_command(int argc, char **argv, char *out, size_t n) {
    size_t used = (size_t)snprintf(out, n, "parity");
    for (int i = 0; i < argc && used < n; i++) {
        bool plain = argv[i][0] && !argv[i][strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                            "0123456789@%_+=:,./-")];
        used += (size_t)snprintf(out + used, n - used, plain ? " %s" : " '%s'", argv[i]);
    }
}

static enum fwd_status output(const struct selftest_options *o, const struct par_selftest *s,
                              const struct par_selftest_receipt *receipt, struct fwd_error *err) {
    char *json = par_selftest_json(s, receipt);
    FWD_FAIL_IF(!json, FWD_ENOMEM, err, "selftest: no memory for its JSON");
    enum fwd_status rc = o->out ? fwd_file_write(o->out, json, strlen(json), err) : FWD_OK;
    if (o->json)
        (void)fputs(json, stdout);
    else
        par_selftest_text(s, receipt, stdout);
    fwd_free(json);
    return rc;
}

static int run(const struct selftest_options *o, const struct par_input *in, const char *model, const char *command) {
    struct fwd_error err = {0};
    struct par_selftest result = {0};
    enum par_schedule schedule;
    char sha[65];
    struct par_selftest_options options = {.file = in->file,
                                           .ids = in->ids,
                                           .n_ids = in->n_ids,
                                           .tokenizer = in->tokenizer,
                                           .faults = o->faults,
                                           .n_seeds = o->quick ? 1 : o->n_seeds,
                                           .n_prompts = o->n_prompts,
                                           .n_weights = o->n_weights,
                                           .reach = o->reach,
                                           .clean_elements = (uint64_t)o->clean_elements,
                                           .quick = o->quick,
                                           .progress = show_progress};
    enum fwd_status rc = par_find_path(o->ref, &options.ref, &err);
    if (rc == FWD_OK)
        rc = par_find_path(o->paths, &options.cand, &err);
    if (rc == FWD_OK)
        rc = par_common_knobs(&o->common, in->n_ids, &options.knobs, &schedule, &err);
    if (rc == FWD_OK)
        rc = par_selftest_run(&options, &result, &err);
    if (rc == FWD_OK)
        rc = par_sha256_model(in->file, sha, &err);
    struct par_selftest_receipt receipt = {model, sha, command};
    if (rc == FWD_OK)
        rc = output(o, &result, &receipt, &err);
    int code = rc == FWD_OK ? par_selftest_exit(&result) : par_complain(&err);
    par_selftest_free(&result);
    return code;
}

int cmd_selftest(int argc, char **argv) {
    struct selftest_options o = {.ref = "f32",
                                 .paths = "q4k-cpu",
                                 .n_seeds = 2,
                                 .n_prompts = 20,
                                 .n_weights = -1,
                                 .reach = -1,
                                 .clean_elements = -1};
    struct par_opt rows[PAR_COMMON_OPTS + 16];
    struct fwd_error err = {0};
    struct par_input in;
    char command[4096], builtin[PATH_MAX] = "";
    const char *model = NULL;
    int n_words;
    bool help;
    int n_rows = fill_options(&o, rows);
    enum fwd_status rc = par_options_parse(rows, n_rows, argc, argv, &model, 1, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(
            stdout, "selftest [MODEL] [options]",
            "Plants every fault of the catalogue at several places, one at a time, and says what was seen of\n"
            "it: detected, op, place inside the op, diagnosis, side; beside it what the usual gates see. Then\n"
            "clean runs over many prompts, schedules, threads and kernels: false alarms. Without MODEL: the\n"
            "built-in one (for a path with a launch plan: tiny-64). Exit 0: every figure asked is reached, 1: one is "
            "not, 3: nothing was measured.",
            rows, n_rows);
        return 0;
    }
    if (rc == FWD_OK && o.list)
        return list_faults();
    if (o.clean_elements < 0)
        o.clean_elements = o.quick ? 10000000 : 1000000000;
    if (o.quick && o.reach < 0)
        o.reach = 1;
    if (o.n_weights < 0)
        o.n_weights = o.quick ? 200 : 1000;
    if (rc == FWD_OK && !model)
        rc = make_builtin(builtin_for(o.paths), builtin, sizeof builtin, &err);
    o.common.model = model ? model : builtin;
    if (rc == FWD_OK)
        rc = par_input_open(&in, &o.common, &err);
    int code = 0;
    if (rc == FWD_OK) {
        repeat_command(argc, argv, command, sizeof command);
        char made[64];
        (void)snprintf(made, sizeof made, "the built-in %s model, seed 1", builtin_for(o.paths)->name);
        code = run(&o, &in, model ? model : made, command);
        par_input_close(&in);
    } else {
        code = par_complain(&err);
    }
    if (*builtin)
        (void)unlink(builtin);
    return code;
}
