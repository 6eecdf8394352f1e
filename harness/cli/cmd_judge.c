/* harness/cli/cmd_judge.c: parity judge CAPTURE MODEL: someone's capture held against the spec. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "judge/declared.h"
#include "judge/judgement.h"
#include "report/sha256.h"
#include "tap/capture.h"

#include <string.h>

enum { MOST_ASSERTIONS = 32 };

struct judge_options {
    const char *capture, *model;
    const char *numerics, *ids, *ids_file, *map, *report, *bound;
    const char *assertions[MOST_ASSERTIONS];
    int n_assertions;
    int threads;
    bool all, json;
};

static int fill_options(struct judge_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"numerics", 0, PAR_OPT_STRING, &o->numerics, 0, 0, "FILE",
         "what the engine promises (contracts/numerics; default: what the capture records)"},
        {"ids", 0, PAR_OPT_STRING, &o->ids, 0, 0, "IDS", "the token ids, where the capture does not say: 1,2,3"},
        {"tokens-file", 0, PAR_OPT_STRING, &o->ids_file, 0, 0, "FILE", "the same from a file"},
        {"map", 0, PAR_OPT_STRING, &o->map, 0, 0, "FILE", "names: a JSON object {\"their.#.name\": \"Qcur-#\"}"},
        {"bound", 0, PAR_OPT_STRING, &o->bound, 0, 0, "likely|worst",
         "bounds that hold with probability 1 - 1e-6 (default), or always"},
        {"threads", 't', PAR_OPT_INT, &o->threads, 0, 1024, "N", "threads of the judge (default: one per core)"},
        {"report", 0, PAR_OPT_STRING, &o->report, 0, 0, "DIR", "write judgement.txt, judgement.json, verdict.json"},
        {"all", 0, PAR_OPT_FLAG, &o->all, 0, 0, NULL, "list the ops that held too"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout"},
    };
    memcpy(rows, own, sizeof own);
    return sizeof own / sizeof *own;
}

/* --assert may come any number of times: taken out of the words before the table of options sees them. */
static enum fwd_status take_assertions(struct judge_options *o, int *argc, char **argv, struct fwd_error *err) {
    int n = 0;
    for (int i = 0; i < *argc; i++) {
        const char *value = NULL;
        if (!strncmp(argv[i], "--assert=", 9))
            value = argv[i] + 9;
        else if (!strcmp(argv[i], "--assert") && i + 1 < *argc)
            value = argv[++i];
        if (!value) {
            argv[n++] = argv[i];
            continue;
        }
        const char *equals = strchr(value, '=');
        FWD_FAIL_IF(!equals || equals == value || !equals[1], FWD_EINPUT, err,
                    "--assert: got \"%.60s\", expected KEY=VALUE", value);
        FWD_FAIL_IF(o->n_assertions == MOST_ASSERTIONS, FWD_EINPUT, err, "--assert: more than %d of them",
                    MOST_ASSERTIONS);
        o->assertions[o->n_assertions++] = value;
    }
    *argc = n;
    return FWD_OK;
}

/* Ids as the fact that a capture would record. */
static enum fwd_status assert_ids(struct par_import *im, const char *option, const char *text, struct fwd_error *err) {
    int32_t *ids;
    int n;
    FWD_TRY(par_parse_ids(option, text, &ids, &n, err));
    char *said = fwd_alloc((size_t)n + 1, 12);
    size_t at = 0;
    for (int i = 0; said && i < n; i++)
        at += (size_t)snprintf(said + at, 12, "%s%d", i ? "," : "", (int)ids[i]);
    enum fwd_status rc = said ? par_import_assert(im, PAR_FACT_IDS, said, err)
                              : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for %d ids", n);
    fwd_free(said);
    fwd_free(ids);
    return rc;
}

static enum fwd_status assert_ids_file(struct par_import *im, const char *path, struct fwd_error *err) {
    enum { MOST = 1 << 24 };
    FILE *in = fopen(path, "rb");
    FWD_FAIL_IF(!in, FWD_ENOTFOUND, err, "--tokens-file: %s cannot be opened", path);
    char *text = fwd_alloc(MOST + 1, 1);
    size_t n = text ? fread(text, 1, MOST + 1, in) : 0;
    enum fwd_status rc = FWD_OK;
    (void)fclose(in);
    if (!text)
        return fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "--tokens-file: no memory");
    if (n > MOST || memchr(text, 0, n)) {
        rc = fwd_fail(err, FWD_ECORRUPT, __FILE__, __LINE__, "--tokens-file: %s is no list of ids", path);
    } else {
        while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' ' || text[n - 1] == '\r'))
            n--;
        text[n] = 0;
        rc = assert_ids(im, "--tokens-file", text, err);
    }
    fwd_free(text);
    return rc;
}

static enum fwd_status assert_all(const struct judge_options *o, struct par_import *im, struct fwd_error *err) {
    if (o->ids)
        FWD_TRY(assert_ids(im, "--ids", o->ids, err));
    if (o->ids_file)
        FWD_TRY(assert_ids_file(im, o->ids_file, err));
    for (int i = 0; i < o->n_assertions; i++) {
        char key[128];
        const char *equals = strchr(o->assertions[i], '=');
        FWD_FAIL_IF((size_t)(equals - o->assertions[i]) >= sizeof key, FWD_EINPUT, err, "--assert: a key of %d bytes",
                    (int)(equals - o->assertions[i]));
        (void)snprintf(key, sizeof key, "%.*s", (int)(equals - o->assertions[i]), o->assertions[i]);
        FWD_TRY(par_import_assert(im, key, equals + 1, err));
    }
    return FWD_OK;
}

static void show_progress(void *ud, const char *what, int64_t done, int64_t total) {
    (void)ud;
    par_progress(what, done, total);
}

static enum fwd_status show(const struct judge_options *o, const struct par_judgement *j, struct fwd_error *err) {
    if (o->json) {
        char *text = par_judgement_json(j);
        FWD_FAIL_IF(!text, FWD_ENOMEM, err, "no memory for the JSON");
        (void)fputs(text, stdout);
        fwd_free(text);
    } else {
        par_judgement_text(j, o->all, stdout);
    }
    return o->report ? par_judgement_write(j, o->report, err) : FWD_OK;
}

static enum fwd_status judge(const struct judge_options *o, const struct fwd_gguf *file, struct par_import *im,
                             enum par_verdict *verdict, struct fwd_error *err) {
    char sha[65];
    struct par_declared *declared = NULL;
    struct par_judgement result = {0};
    FWD_TRY(assert_all(o, im, err));
    FWD_TRY(par_sha256_model(file, sha, err));
    FWD_TRY(o->numerics ? par_declared_file(&declared, file, o->numerics, err)
                        : par_declared_own(&declared, file, im, err));
    struct par_judge_capture options = {.file = file,
                                        .model_path = o->model,
                                        .model_sha256 = sha,
                                        .capture_path = o->capture,
                                        .capture = im,
                                        .numerics = par_declared_numerics,
                                        .numerics_ud = declared,
                                        .numerics_name = par_declared_name(declared),
                                        .numerics_recorded = !o->numerics,
                                        .n_threads = o->threads,
                                        .bound =
                                            o->bound && !strcmp(o->bound, "worst") ? PAR_BOUND_WORST : PAR_BOUND_LIKELY,
                                        .progress = show_progress};
    enum fwd_status rc = par_judge_capture(&options, &result, err);
    *verdict = result.verdict;
    if (rc == FWD_OK)
        rc = show(o, &result, err);
    par_judgement_free(&result);
    par_declared_free(declared);
    return rc;
}

static enum fwd_status run(const struct judge_options *o, enum par_verdict *verdict, struct fwd_error *err) {
    char path[4096];
    struct fwd_gguf *file = NULL;
    struct par_import *im = NULL;
    struct par_tap_map *map = NULL;
    FWD_FAIL_IF(o->bound && strcmp(o->bound, "worst") != 0 && strcmp(o->bound, "likely") != 0, FWD_EINPUT, err,
                "--bound: got \"%.40s\", expected likely or worst", o->bound);
    FWD_TRY(par_check_report_dir(o->report, err));
    FWD_TRY(par_resolve_model(o->model, path, sizeof path, err));
    enum fwd_status rc = o->map ? par_tap_map_read(&map, o->map, err) : FWD_OK;
    if (rc == FWD_OK)
        rc = par_import_open(&im, o->capture, map, err);
    if (rc == FWD_OK)
        rc = fwd_gguf_open(&file, path, err);
    if (rc == FWD_OK)
        rc = judge(o, file, im, verdict, err);
    par_import_close(im);
    par_tap_map_free(map);
    if (file)
        fwd_gguf_close(file);
    return rc;
}

int cmd_judge(int argc, char **argv) {
    struct judge_options o = {0};
    struct par_opt rows[16];
    const char *words[2] = {NULL, NULL};
    enum par_verdict verdict = PAR_REFUSED;
    struct fwd_error err;
    int n_words;
    bool help;
    int n_rows = fill_options(&o, rows);
    enum fwd_status rc = take_assertions(&o, &argc, argv, &err);
    if (rc == FWD_OK)
        rc = par_options_parse(rows, n_rows, argc, argv, words, 2, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(
            stdout, "judge CAPTURE MODEL [--assert KEY=VALUE ..] [options]",
            "Judges every op that a capture shows from the inputs that it shows. CAPTURE is a file of\n"
            "`parity trace`, plain safetensors, an .npz (stored), or a folder of .npy files or of APRT\n"
            "stages. What it does not say is asserted: in CAPTURE.facts.json,\n"
            "or with --assert token_ids=1,2,3, positions=0:78, layers=0..5, tap:Qcur=pairs-split (or\n"
            "before-bias, pairs-joined, transposed, as-named). Assertions are recorded and cap the verdict.",
            rows, n_rows);
        return 0;
    }
    if (rc == FWD_OK && n_words != 2)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "judge needs a capture and a model, got %d (--help tells)",
                      n_words);
    o.capture = words[0];
    o.model = words[1];
    if (rc == FWD_OK)
        rc = run(&o, &verdict, &err);
    return rc == FWD_OK ? par_verdict_exit(verdict) : par_complain(&err);
}
