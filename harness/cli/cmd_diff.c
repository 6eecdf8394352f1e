/* harness/cli/cmd_diff.c: parity diff A B: two captures side by side. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "compare/diff.h"

static enum fwd_status run(const char *const files[2], const struct par_diff_options *o, bool all, bool json,
                           enum par_verdict *verdict, struct fwd_error *err) {
    struct par_capture *a = NULL, *b = NULL;
    struct par_diff *d = NULL;
    enum fwd_status rc = par_capture_open(&a, files[0], err);
    if (rc == FWD_OK)
        rc = par_capture_open(&b, files[1], err);
    if (rc == FWD_OK)
        rc = par_diff_run(&d, a, b, o, err);
    if (rc == FWD_OK) {
        *verdict = d->verdict;
        char *text = json ? par_diff_json(d) : NULL;
        if (text)
            (void)fputs(text, stdout);
        else if (json)
            rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for the JSON");
        else
            par_diff_text(d, all, stdout);
        fwd_free(text);
    }
    par_diff_free(d);
    par_capture_close(a);
    par_capture_close(b);
    return rc;
}

int cmd_diff(int argc, char **argv) {
    struct par_diff_options o = {0};
    const char *files[2] = {NULL, NULL};
    enum par_verdict verdict = PAR_REFUSED;
    struct fwd_error err;
    bool all = false, json = false, help;
    int n_files;
    const struct par_opt rows[] = {
        {"tensor-filter", 0, PAR_OPT_STRING, &o.filter, 0, 0, "REGEX", "only taps whose name (Qcur-3) matches"},
        {"exact", 0, PAR_OPT_FLAG, &o.exact, 0, 0, NULL, "any bit that differs is DIVERGED (exit 1)"},
        {"all", 0, PAR_OPT_FLAG, &all, 0, 0, NULL, "list taps that are the same too"},
        {"assert-same-model", 0, PAR_OPT_FLAG, &o.same_model, 0, 0, NULL, "vouch for it where a capture does not say"},
        {"assert-same-tokens", 0, PAR_OPT_FLAG, &o.same_tokens, 0, 0, NULL, "the same of the token ids"},
        {"assert-same-taps", 0, PAR_OPT_FLAG, &o.same_taps, 0, 0, NULL, "the same of what the taps hold"},
        {"json", 0, PAR_OPT_FLAG, &json, 0, 0, NULL, "one JSON object on stdout"},
    };
    enum { N_ROWS = sizeof rows / sizeof *rows };
    enum fwd_status rc = par_options_parse(rows, N_ROWS, argc, argv, files, 2, &n_files, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(
            stdout, "diff A B [options]",
            "Compares two captures (of `parity trace`, or plain safetensors files) by tap, layer and\n"
            "position. The same bits: HELD (0). Differences of a free run are shown and not judged:\n"
            "UNMEASURED (3), or DIVERGED (1) with --exact. NaN or infinity on one side: 5. Another model,\n"
            "other ids or other taps: REFUSED (4). What was asserted is recorded and caps the verdict.",
            rows, N_ROWS);
        return 0;
    }
    if (rc == FWD_OK && n_files != 2)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "diff needs two captures, got %d (--help tells)", n_files);
    if (rc == FWD_OK)
        rc = run(files, &o, all, json, &verdict, &err);
    return rc == FWD_OK ? par_verdict_exit(verdict) : par_complain(&err);
}
