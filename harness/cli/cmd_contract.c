/* harness/cli/cmd_contract.c: parity contract: list, validate, and run: the runs that a set's measures need, one for
 * each distinct measure, and every test held against the first run that is what it asks for. */
#include "cli/cmd.h"
#include "cli/fresh.h"
#include "cli/options.h"
#include "contract/contract_eval.h"
#include "contract/vocabulary.h"
#include "report/sha256.h"
#include "run/run.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { MAX_WORDS = 256, MAX_RUNS = 64, DEFAULT_DECODE = 5, EXIT_OK = 0, EXIT_USAGE = 2, EXIT_REFUSED = 4 };

/* Every contract of the folder, here or where the program has its own. */
static const char *default_glob(char *buffer, size_t n) {
    char folder[4096];
    (void)snprintf(buffer, n, "%s/*.json", par_data_path("contracts", folder, sizeof folder) ? folder : "contracts");
    return buffer;
}

struct contract_options {
    const char *report_dir, *caps;
    int threads;
};

struct planned {
    struct par_measure is; /* every field that a run has is filled; the ids only where they are pinned */
    bool nocache;
    struct par_report report;
    struct par_figures *figures;
    char *text; /* the greedy text, or NULL */
    struct par_contract_run run;
};

struct session {
    const struct contract_options *o;
    const char *model;
    char sha256[65];
    struct par_contract_set set;
    struct planned *runs; /* [MAX_RUNS] */
    int n_runs;
};

static int fail_usage(const char *fmt, const char *word) {
    struct fwd_error err = {0};
    (void)fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, fmt, word);
    return par_complain(&err);
}

/* ---- list and validate ---- */

static void print_contract(const struct par_contract *c) {
    (void)printf("%s %s: %s, %s; %d equations, %d obligations, %d falsification tests, %d bounded harnesses\n", c->name,
                 c->version, c->kind, *c->status ? c->status : "no status", c->n_equations, c->n_obligations,
                 c->n_falsifications, c->n_harnesses);
    for (int i = 0; i < c->n_tests; i++) {
        const struct par_contract_test *t = &c->tests[i];
        (void)printf("  %s%-30s %s%s\n", t->is_equation ? "equation " : "", t->id, t->is_equation ? "" : t->rule,
                     t->check ? "" : " (no check)");
    }
}

static int list(const char *const *words, int n_words) {
    char glob[4200];
    const char *const all[] = {default_glob(glob, sizeof glob)};
    struct par_contract_set set;
    struct fwd_error err = {0};
    if (par_contracts_load(&set, n_words ? words : all, n_words ? n_words : 1, &err) != FWD_OK)
        return par_complain(&err);
    for (int i = 0; i < set.n; i++)
        print_contract(&set.contracts[i]);
    par_contracts_free(&set);
    return EXIT_OK;
}

static int figures(void) {
    const char *name, *meaning;
    for (int i = 0; par_vocabulary_row(i, &name, &meaning); i++)
        (void)printf("%-28s %s\n", name, meaning);
    return EXIT_OK;
}

/* Every file is looked at, also after one was refused; then the files as a set, for ids that two of them share. */
static int validate(const char *const *words, int n_words) {
    struct fwd_error err = {0};
    bool refused = false;
    if (n_words == 0)
        return fail_usage("%s: FILE is missing", "contract validate");
    for (int i = 0; i < n_words; i++) {
        struct par_contract_set one;
        if (par_contracts_load(&one, &words[i], 1, &err) != FWD_OK) {
            refused = true;
            (void)par_complain(&err);
            continue;
        }
        for (int k = 0; k < one.n; k++)
            (void)printf("%s: valid, version %s, %d falsification tests\n", par_json_file(one.contracts[k].doc),
                         one.contracts[k].version, one.contracts[k].n_falsifications);
        par_contracts_free(&one);
    }
    struct par_contract_set set;
    if (!refused && n_words > 1 && par_contracts_load(&set, words, n_words, &err) != FWD_OK)
        return par_complain(&err);
    if (!refused && n_words > 1)
        par_contracts_free(&set);
    return refused ? EXIT_REFUSED : EXIT_OK;
}

/* ---- run: which runs ---- */

/* False where no run of this program on this model can be what the test asks for. */
static bool is_possible(const struct session *s, const struct par_measure *m, char *why, size_t n) {
    const char *names[] = {m->path, m->ref};
    struct fwd_error err = {0};
    if (m->model_sha256 && strcmp(m->model_sha256, s->sha256) != 0) {
        (void)snprintf(why, n, "this run has another model: sha256 %.12s..., expected %.12s...", s->sha256,
                       m->model_sha256);
        return false;
    }
    for (int i = 0; i < 2; i++) {
        const struct fwd_path *path = names[i] ? fwd_path_find(names[i]) : NULL;
        if (names[i] && !path) {
            (void)snprintf(why, n, "this program has no path %s", names[i]);
            return false;
        }
        if (path && path->probe(&err) != FWD_OK) {
            (void)snprintf(why, n, "path %.40s: %.180s", names[i], err.message);
            return false;
        }
    }
    return true;
}

static struct planned *find_run(const struct session *s, const struct par_measure *want) {
    char why[256];
    for (int i = 0; i < s->n_runs; i++)
        if (par_measure_fits(want, &s->runs[i].is, why, sizeof why))
            return &s->runs[i];
    return NULL;
}

static enum fwd_status plan_test(struct session *s, const struct par_contract_test *t, struct fwd_error *err) {
    char why[256];
    if (!t->check || !is_possible(s, &t->measure, why, sizeof why))
        return FWD_OK;
    struct planned *p = find_run(s, &t->measure);
    if (!p) {
        FWD_FAIL_IF(s->n_runs == MAX_RUNS, FWD_ERANGE, err, "contracts: more than %d different runs", MAX_RUNS);
        p = &s->runs[s->n_runs++];
        p->is = t->measure;
        p->is.model_sha256 = s->sha256;
        p->is.path = p->is.path ? p->is.path : "q4k-cpu";
        p->is.ref = p->is.ref ? p->is.ref : "f32";
        p->is.schedule = p->is.schedule ? p->is.schedule : "prefill";
        p->is.head = p->is.head ? p->is.head : "quant";
        p->is.kv = p->is.kv ? p->is.kv : "f16";
        p->is.decode = p->is.decode >= 0 ? p->is.decode : DEFAULT_DECODE;
    }
    p->nocache = p->nocache || t->measure.nocache_arm;
    return FWD_OK;
}

/* Pinned prompts first: what asks for less may then use their runs. */
static enum fwd_status plan(struct session *s, struct fwd_error *err) {
    for (int pinned = 1; pinned >= 0; pinned--)
        for (int k = 0; k < s->set.n; k++)
            for (int i = 0; i < s->set.contracts[k].n_tests; i++)
                if ((s->set.contracts[k].tests[i].measure.n_ids > 0) == pinned)
                    FWD_TRY(plan_test(s, &s->set.contracts[k].tests[i], err));
    return FWD_OK;
}

/* ---- run: one of them ---- */

static void show_progress(void *ud, const char *what, int64_t done, int64_t total) {
    (void)ud;
    par_progress(what, done, total);
}

static void write_command(const struct session *s, const struct planned *p, char *out, size_t n) {
    const char *typed = p->is.prompt && !strchr(p->is.prompt, '\'') ? p->is.prompt : NULL;
    size_t used =
        (size_t)snprintf(out, n, "parity run %s%s%s%s%s --ref %s --paths %s --decode %d --schedule %s", s->model,
                         typed ? " -p '" : "", typed ? typed : "", typed ? "'" : "",
                         typed && p->is.chat ? " --chat" : "", p->is.ref, p->is.path, p->is.decode, p->is.schedule);
    for (int i = 0; !typed && i < p->is.n_ids && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%d", i ? "," : " --tokens ", p->is.ids[i]);
}

static enum fwd_status run_on(const struct session *s, struct planned *p, const struct par_common *common,
                              const struct par_input *in, struct fwd_error *err) {
    char command[8192];
    int32_t *loss;
    struct par_fresh fresh = {common, in, p->is.path, NULL};
    struct par_run_options options = {.file = in->file,
                                      .model_name = s->model,
                                      .prompt = in->text,
                                      .ids = in->ids,
                                      .n_prompt = in->n_ids,
                                      .n_decode = p->is.decode,
                                      .depth = PAR_DEFAULT,
                                      .with_nocache = p->nocache,
                                      .fresh_hashes = par_fresh_hashes,
                                      .fresh_ud = &fresh,
                                      .command = command,
                                      .progress = show_progress};
    write_command(s, p, command, sizeof command);
    FWD_TRY(par_find_path(p->is.ref, &options.ref, err));
    FWD_TRY(par_find_path(p->is.path, &options.cand, err));
    FWD_TRY(par_common_knobs(common, in->n_ids + p->is.decode, &options.knobs, &options.schedule, err));
    p->figures = par_figures_create();
    FWD_FAIL_IF(!p->figures, FWD_ENOMEM, err, "contracts: no memory for figures");
    FWD_TRY(par_loss_ids(in, &loss, &options.n_loss_ids, err));
    options.loss_ids = loss;
    enum fwd_status rc = par_run(&options, &p->report, p->figures, err);
    fwd_free(loss);
    if (rc != FWD_OK)
        return rc;
    par_contract_run_fill(&p->run, &p->report, p->figures, p->is.schedule, p->is.head, p->is.kv);
    if (in->tokenizer)
        FWD_TRY(par_contract_text(&p->report, in->tokenizer, &p->text, err));
    p->run.text = p->text;
    return FWD_OK;
}

/* The prompt is encoded afresh; that it gives the pinned ids is looked at when the tests are. */
static enum fwd_status make_run(const struct session *s, struct planned *p, struct fwd_error *err) {
    struct par_common common = {.model = s->model,
                                .prompt = p->is.prompt,
                                .chat = p->is.chat,
                                .n_decode = p->is.decode,
                                .threads = s->o->threads,
                                .caps = s->o->caps,
                                .kv = p->is.kv,
                                .head = p->is.head,
                                .schedule = p->is.schedule};
    struct par_input in;
    char ids[PAR_MEASURE_MAX_IDS * 12];
    size_t used = 0;
    for (int i = 0; !p->is.prompt && i < p->is.n_ids && used < sizeof ids; i++)
        used += (size_t)snprintf(ids + used, sizeof ids - used, "%s%d", i ? "," : "", p->is.ids[i]);
    if (used)
        common.tokens = ids;
    FWD_TRY(par_input_open(&in, &common, err));
    enum fwd_status rc = run_on(s, p, &common, &in, err);
    par_input_close(&in);
    return rc;
}

/* ---- run: all ---- */

static enum fwd_status evaluate(const struct session *s, struct par_report *out, struct fwd_error *err) {
    for (int k = 0; k < s->set.n; k++)
        for (int i = 0; i < s->set.contracts[k].n_tests; i++) {
            const struct par_contract_test *t = &s->set.contracts[k].tests[i];
            char why[256] = "no run is what it asks for";
            const struct planned *p = is_possible(s, &t->measure, why, sizeof why) ? find_run(s, &t->measure) : NULL;
            FWD_TRY(par_contract_eval(&s->set.contracts[k], i, p ? &p->run : NULL, why, out, err));
        }
    return FWD_OK;
}

static void print_rows(const struct session *s, const struct par_report *report) {
    int n[PAR_REFUSED + 1] = {0};
    for (int i = 0; i < s->n_runs; i++)
        (void)printf("run %d        %s\n             %s\n", i + 1, s->runs[i].report.command, s->runs[i].report.answer);
    for (int i = 0; i < report->n_contracts; i++) {
        const struct par_report_contract *row = &report->contracts[i];
        n[row->verdict]++;
        (void)printf("%-12s %s: %s\n             %s\n", par_verdict_name(row->verdict), row->contract, row->id,
                     row->detail);
    }
    enum par_verdict verdict = par_contracts_verdict(report);
    (void)printf("verdict      %s (exit %d): %d held, %d diverged, %d unmeasured, %d mistrusted\n",
                 par_verdict_name(verdict), par_verdict_exit(verdict), n[PAR_HELD], n[PAR_DIVERGED], n[PAR_UNMEASURED],
                 n[PAR_MISTRUSTED]);
}

/* DIR/junit.xml has every row; DIR/run-N is the whole report of each run. */
static enum fwd_status write_reports(const struct session *s, const struct par_report *report, struct fwd_error *err) {
    char path[4096];
    if (!s->o->report_dir)
        return FWD_OK;
    for (int i = 0; i < s->n_runs; i++) {
        (void)snprintf(path, sizeof path, "%s/run-%d", s->o->report_dir, i + 1);
        FWD_TRY(par_report_write(&s->runs[i].report, path, err));
    }
    FWD_TRY(par_report_make_folder(s->o->report_dir, err));
    char *xml = par_report_junit_contracts(report);
    FWD_FAIL_IF(!xml, FWD_ENOMEM, err, "contracts: no memory for junit.xml");
    (void)snprintf(path, sizeof path, "%s/junit.xml", s->o->report_dir);
    enum fwd_status rc = fwd_file_write(path, xml, strlen(xml), err);
    fwd_free(xml);
    return rc;
}

/* An old junit.xml must not speak for a run that came to no end. */
static enum fwd_status remove_old(const char *dir, struct fwd_error *err) {
    char path[4096];
    if (!dir)
        return FWD_OK;
    (void)snprintf(path, sizeof path, "%s/junit.xml", dir);
    FWD_FAIL_IF(unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR, FWD_EIO, err, "%s: cannot be removed: %s",
                path, strerror(errno));
    return FWD_OK;
}

static enum fwd_status run_all(struct session *s, struct par_report *report, struct fwd_error *err) {
    struct par_common common = {.model = s->model};
    char path[4096];
    struct fwd_gguf *file;
    FWD_FAIL_IF(!common.model, FWD_EINPUT, err, "contract run: MODEL is missing");
    FWD_TRY(par_check_report_dir(s->o->report_dir, err));
    FWD_TRY(remove_old(s->o->report_dir, err));
    FWD_TRY(par_resolve_model(s->model, path, sizeof path, err));
    FWD_TRY(fwd_gguf_open(&file, path, err));
    enum fwd_status rc = par_sha256_model(file, s->sha256, err);
    fwd_gguf_close(file);
    if (rc != FWD_OK)
        return rc;
    FWD_TRY(plan(s, err));
    for (int i = 0; i < s->n_runs; i++)
        FWD_TRY(make_run(s, &s->runs[i], err));
    FWD_TRY(evaluate(s, report, err));
    print_rows(s, report);
    return write_reports(s, report, err);
}

static int run(const struct contract_options *o, const char *const *words, int n_words) {
    char glob[4200];
    const char *const all[] = {default_glob(glob, sizeof glob)};
    struct fwd_error err = {0};
    if (n_words == 0)
        return fail_usage("%s: MODEL is missing", "contract run");
    struct session s = {.o = o, .model = words[n_words - 1], .runs = fwd_calloc(MAX_RUNS, sizeof *s.runs)};
    struct par_report report = {.text = par_text_create()};
    enum fwd_status rc = s.runs && report.text
                             ? FWD_OK
                             : fwd_fail(&err, FWD_ENOMEM, __FILE__, __LINE__, "contracts: no memory for the runs");
    if (rc == FWD_OK)
        rc = par_contracts_load(&s.set, n_words > 1 ? words : all, n_words > 1 ? n_words - 1 : 1, &err);
    if (rc == FWD_OK)
        rc = run_all(&s, &report, &err);
    int code = rc == FWD_OK ? par_verdict_exit(par_contracts_verdict(&report)) : par_complain(&err);
    for (int i = 0; i < s.n_runs; i++) {
        par_text_free(s.runs[i].report.text);
        par_figures_free(s.runs[i].figures);
        fwd_free(s.runs[i].text);
    }
    fwd_free(s.runs);
    par_text_free(report.text);
    par_contracts_free(&s.set);
    return code;
}

int cmd_contract(int argc, char **argv) {
    struct contract_options o = {0};
    const struct par_opt rows[] = {
        {"report", 0, PAR_OPT_STRING, &o.report_dir, 0, 0, "DIR", "run: write junit.xml, and run-N with each report"},
        {"threads", 0, PAR_OPT_INT, &o.threads, 0, 4096, "N", "run: threads (default 0: one per core)"},
        {"caps", 0, PAR_OPT_STRING, &o.caps, 0, 0, "LEVEL", "run: CPU level: ref, avx2, avx512"},
    };
    enum { N_ROWS = sizeof rows / sizeof *rows };
    const char *words[MAX_WORDS];
    struct fwd_error err = {0};
    int n_words;
    bool help;
    if (par_options_parse(rows, N_ROWS, argc, argv, words, MAX_WORDS, &n_words, &help, &err) != FWD_OK)
        return par_complain(&err);
    if (help) {
        par_options_help(
            stdout, "contract list [GLOB..] | validate FILE.. | figures | run [GLOB..] MODEL [options]",
            "Falsification tests as data (default: contracts/*.json). run makes the runs that the tests ask\n"
            "for on MODEL and holds every test against them. Exit: 0 held, 1 diverged, 3 nothing measured,\n"
            "4 a contract or the model is refused.",
            rows, N_ROWS);
        return EXIT_OK;
    }
    if (n_words && !strcmp(words[0], "list"))
        return list(words + 1, n_words - 1);
    if (n_words && !strcmp(words[0], "figures"))
        return figures();
    if (n_words && !strcmp(words[0], "validate"))
        return validate(words + 1, n_words - 1);
    if (n_words && !strcmp(words[0], "run"))
        return run(&o, words + 1, n_words - 1);
    return fail_usage("contract: \"%s\", expected list, validate, figures or run", n_words ? words[0] : "");
}
