/* harness/cli/cmd_trace.c: parity trace MODEL --path P -o FILE: one path's taps in a capture. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "report/json_put.h"
#include "report/sha256.h"
#include "run/trace.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct trace_options {
    struct par_common common;
    const char *path, *out, *filter, *layers, *forced;
    bool all_logits, json;
};

static int fill_options(struct trace_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"path", 0, PAR_OPT_STRING, &o->path, 0, 0, "PATH", "the path to run (`parity paths` lists them)"},
        {"output", 'o', PAR_OPT_STRING, &o->out, 0, 0, "FILE", "the capture to write"},
        {"tensor-filter", 0, PAR_OPT_STRING, &o->filter, 0, 0, "REGEX", "keep taps whose name (Qcur-3) matches"},
        {"layers", 0, PAR_OPT_STRING, &o->layers, 0, 0, "A..B", "keep taps of these layers, and those outside layers"},
        {"continue", 0, PAR_OPT_STRING, &o->forced, 0, 0, "IDS",
         "decode steps with these ids (default: --decode of the path's own greedy choice)"},
        {"all-logits", 0, PAR_OPT_FLAG, &o->all_logits, 0, 0, NULL, "logits at every position of the prompt too"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    memcpy(rows, own, sizeof own);
    par_common_opts(&o->common, rows + N_OWN);
    return N_OWN + PAR_COMMON_OPTS;
}

static enum fwd_status parse_layers(const char *text, int *first, int *last, struct fwd_error *err) {
    char *end;
    long a = 0, b = -1;
    *first = 0;
    *last = -1;
    if (!text)
        return FWD_OK;
    errno = 0;
    a = strtol(text, &end, 10);
    bool bad = end == text;
    if (!bad && !strncmp(end, "..", 2)) {
        text = end + 2;
        b = strtol(text, &end, 10);
        bad = end == text;
    } else {
        b = a;
    }
    FWD_FAIL_IF(bad || *end || errno || a < 0 || b < a || b > FWD_MAX_LAYERS, FWD_EINPUT, err,
                "--layers: expected A..B with 0 <= A <= B, or one layer");
    *first = (int)a;
    *last = (int)b;
    return FWD_OK;
}

static enum fwd_status print_result(const struct trace_options *o, const struct par_trace_result *r,
                                    struct fwd_error *err) {
    struct stat st = {0};
    (void)stat(o->out, &st);
    if (!o->json) {
        (void)printf("verdict    %s (exit %d)%s\n", par_verdict_name(r->verdict), par_verdict_exit(r->verdict),
                     r->verdict == PAR_MISTRUSTED   ? ": the logits are others when nobody reads the taps"
                     : r->verdict == PAR_UNMEASURED ? ": no tap passed the filter"
                                                    : "");
        (void)printf("capture    %s, %zu tensors, %lld bytes\n", o->out, r->n_tensors, (long long)st.st_size);
        (void)printf("logits     0x%016llx with taps, 0x%016llx without\n", (unsigned long long)r->logits_hash,
                     (unsigned long long)r->aa_hash);
        (void)printf("tokens     %d, greedy choice after them: %d\n", r->n_ids, (int)r->next);
        return FWD_OK;
    }
    cJSON *root = cJSON_CreateObject();
    char *text = par_put_finish(
        root, root && par_put_text(root, "schema", "parity-trace-v1") &&
                  par_put_text(root, "verdict", par_verdict_name(r->verdict)) &&
                  par_put_int(root, "exit", par_verdict_exit(r->verdict)) && par_put_text(root, "capture", o->out) &&
                  par_put_count(root, "n_tensors", r->n_tensors) && par_put_int(root, "n_bytes", st.st_size) &&
                  par_put_hash(root, "logits_hash", r->logits_hash) && par_put_hash(root, "aa_hash", r->aa_hash) &&
                  par_put_int(root, "n_tokens", r->n_ids) && par_put_int(root, "next_token", r->next));
    FWD_FAIL_IF(!text, FWD_ENOMEM, err, "no memory for the JSON");
    (void)fputs(text, stdout);
    fwd_free(text);
    return FWD_OK;
}

static void show_progress(void *ud, const char *what, int64_t done, int64_t total) {
    (void)ud;
    par_progress(what, done, total);
}

static enum fwd_status run(struct trace_options *o, const struct par_input *in, struct par_trace_result *result,
                           struct fwd_error *err) {
    char sha[65];
    int32_t *forced = NULL;
    int n_forced = 0;
    struct par_trace_options t = {.file = in->file,
                                  .path = fwd_path_find(o->path),
                                  .chunk = o->common.chunk,
                                  .ids = in->ids,
                                  .n_prompt = in->n_ids,
                                  .n_decode = o->common.n_decode,
                                  .all_logits = o->all_logits,
                                  .model_path = in->path,
                                  .model_sha256 = sha,
                                  .tokenizer = in->tokenizer,
                                  .capture = {&o->filter, o->filter != NULL, 0, -1},
                                  .progress = show_progress};
    FWD_FAIL_IF(!t.path, FWD_EINPUT, err, "--path: there is no path \"%s\" (`parity paths` lists them)", o->path);
    FWD_TRY(parse_layers(o->layers, &t.capture.layer_first, &t.capture.layer_last, err));
    if (o->forced) {
        FWD_TRY(par_parse_ids("--continue", o->forced, &forced, &n_forced, err));
        t.forced = forced;
        t.n_decode = n_forced;
    }
    enum fwd_status rc = par_common_knobs(&o->common, in->n_ids + t.n_decode, &t.knobs, &t.schedule, err);
    if (rc == FWD_OK)
        rc = par_sha256_model(in->file, sha, err);
    if (rc == FWD_OK)
        rc = par_trace(&t, o->out, result, err);
    fwd_free(forced);
    return rc;
}

int cmd_trace(int argc, char **argv) {
    struct trace_options o = {0};
    struct par_opt rows[PAR_COMMON_OPTS + 8];
    struct par_trace_result result;
    struct par_input in;
    struct fwd_error err;
    int n_words;
    bool help;
    int n_rows = fill_options(&o, rows);
    enum fwd_status rc = par_options_parse(rows, n_rows, argc, argv, &o.common.model, 1, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(
            stdout, "trace MODEL --path PATH -o FILE [options]",
            "Runs one path over the prompt and its decode steps and keeps its taps in FILE: safetensors\n"
            "inside zstd, so that `zstd -d` gives a file that any safetensors reader opens. Runs it again\n"
            "without taps: other logits are MISTRUSTED (exit 3). `parity diff` compares two captures.",
            rows, n_rows);
        return 0;
    }
    if (rc == FWD_OK && (!o.path || !o.out))
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "%s is missing (--help tells)",
                      o.path ? "-o FILE" : "--path PATH");
    if (rc == FWD_OK)
        rc = par_input_open(&in, &o.common, &err);
    if (rc != FWD_OK)
        return par_complain(&err);
    rc = run(&o, &in, &result, &err);
    if (rc == FWD_OK)
        rc = print_result(&o, &result, &err);
    par_input_close(&in);
    return rc == FWD_OK ? par_verdict_exit(result.verdict) : par_complain(&err);
}
