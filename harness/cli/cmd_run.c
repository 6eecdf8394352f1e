/* harness/cli/cmd_run.c: parity run MODEL: the whole question, answered on one page. */
#include "cli/cmd.h"
#include "cli/fresh.h"
#include "cli/options.h"
#include "cli/spawn.h"
#include "contract/contract_eval.h"
#include "fault/fault_set.h"
#include "run/run.h"

#include <string.h>

struct run_options {
    struct par_common common;
    const char *ref, *paths, *report_dir, *fault, *hypotheses, *contract, *source, *bound;
    const char *judge, *judge_ref;
    bool quick, full, json;
};

static int fill_options(struct run_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"ref", 0, PAR_OPT_STRING, &o->ref, 0, 0, "PATH", "the reference path (default f32)"},
        {"paths", 0, PAR_OPT_STRING, &o->paths, 0, 0, "P[,Q..]",
         "candidate paths, one after the other (default q4k-cpu)"},
        {"quick", 0, PAR_OPT_FLAG, &o->quick, 0, 0, NULL, "fewer repeats, arms and ensemble runs"},
        {"full", 0, PAR_OPT_FLAG, &o->full, 0, 0, NULL, "every arm and intervention, the reference judged in full"},
        {"report", 0, PAR_OPT_STRING, &o->report_dir, 0, 0, "DIR",
         "write report.txt, .json, .md, junit.xml, verdict.json"},
        {"fault", 0, PAR_OPT_STRING, &o->fault, 0, 0, "[ref:]NAME[@op[:layer]][+pos=N...]",
         "plant a bug; several with commas"},
        {"hypotheses", 0, PAR_OPT_STRING, &o->hypotheses, 0, 0, "DIR", "hypotheses (default contracts/hypotheses)"},
        {"contract", 0, PAR_OPT_STRING, &o->contract, 0, 0, "GLOB",
         "hold contracts against this run, and gate on them"},
        {"judge", 0, PAR_OPT_STRING, &o->judge, 0, 0, "WHICH",
         "candidate positions to judge: all (default), last of the prompt, sample:N through it"},
        {"judge-ref", 0, PAR_OPT_STRING, &o->judge_ref, 0, 0, "WHICH",
         "the same of the reference (default sample:24, with --full all)"},
        {"source", 0, PAR_OPT_STRING, &o->source, 0, 0, "FILE",
         "the unquantised model, for the ledger's price of the weights"},
        {"bound", 0, PAR_OPT_STRING, &o->bound, 0, 0, "likely|worst",
         "bounds that hold with probability 1 - 1e-6 (default), or always"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    memcpy(rows, own, sizeof own);
    par_common_opts(&o->common, rows + N_OWN);
    return N_OWN + PAR_COMMON_OPTS;
}

static enum fwd_status parse_bound(const char *text, enum par_bound_mode *out, struct fwd_error *err) {
    bool worst = text && !strcmp(text, "worst");
    FWD_FAIL_IF(text && !worst && strcmp(text, "likely") != 0, FWD_EINPUT, err,
                "--bound: got \"%.40s\", expected likely or worst", text);
    *out = worst ? PAR_BOUND_WORST : PAR_BOUND_LIKELY;
    return FWD_OK;
}

/* The judge keeps to --caps too. */
static enum fwd_status parse_judge_caps(const char *text, unsigned *out, struct fwd_error *err) {
    unsigned mask;
    if (!text)
        return FWD_OK;
    FWD_TRY(fwd_cpu_parse(text, fwd_cpu_detect(), &mask, err));
    *out = mask ? mask : PAR_CAPS_PLAIN;
    return FWD_OK;
}

static enum fwd_status open_source(const char *model, struct fwd_gguf **out, struct fwd_error *err) {
    char path[4096];
    if (!model)
        return FWD_OK;
    FWD_TRY(par_resolve_model(model, path, sizeof path, err));
    return fwd_gguf_open(out, path, err);
}

static void show_progress(void *ud, const char *what, int64_t done, int64_t total) {
    (void)ud;
    par_progress(what, done, total);
}

/* The command line again for one candidate of several (NULL: the only one), as it can be pasted. */
static void repeat_command(int argc, char **argv, const char *path, char *out, size_t n) {
    size_t used = (size_t)snprintf(out, n, "parity");
    for (int i = 0; i < argc && used < n; i++) {
        bool plain = argv[i][0] && !argv[i][strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                            "0123456789@%_+=:,./-")];
        if (!strcmp(argv[i], "--report") || (path && !strcmp(argv[i], "--paths"))) {
            i++;
            continue;
        }
        if (path && !strncmp(argv[i], "--paths=", 8))
            continue;
        used += (size_t)snprintf(out + used, n - used, plain ? " %s" : " '%s'", argv[i]);
    }
    if (path && used < n)
        (void)snprintf(out + used, n - used, " --paths %s", path);
}

static enum fwd_status output(const struct run_options *o, const char *report_dir, const struct par_report *report,
                              struct fwd_error *err) {
    if (report_dir)
        FWD_TRY(par_report_write(report, report_dir, err));
    if (!o->json) {
        par_report_text(report, o->full ? PAR_DETAIL_FULL : PAR_DETAIL_NORMAL, stdout);
        return FWD_OK;
    }
    char *json = par_report_json(report);
    FWD_FAIL_IF(!json, FWD_ENOMEM, err, "report: no memory for its JSON");
    (void)puts(json);
    fwd_free(json);
    return FWD_OK;
}

/* The contracts, held against this run. */
static enum fwd_status hold_contracts(const struct run_options *o, const struct par_run_options *options,
                                      const struct par_contract_set *set, const struct par_input *in,
                                      struct par_report *report, struct par_figures *figures, struct fwd_error *err) {
    struct par_contract_run now;
    char *text = NULL;
    if (!o->contract)
        return FWD_OK;
    par_contract_run_fill(&now, report, figures, par_schedule_name(options->schedule),
                          options->knobs.head == FWD_HEAD_F32 ? "f32" : "quant",
                          options->knobs.kv_type == FWD_F32 ? "f32" : "f16");
    if (in->tokenizer)
        FWD_TRY(par_contract_text(report, in->tokenizer, &text, err));
    now.text = text;
    enum fwd_status rc = par_contracts_eval(set, &now, report, err);
    fwd_free(text);
    if (rc == FWD_OK)
        par_contracts_gate(report);
    return rc;
}

/* One candidate. report_dir: its own, or NULL. Its verdict, and in *code the exit code where there is none. */
static enum par_verdict run(const struct run_options *o, const struct par_input *in, const char *path,
                            const char *report_dir, const char *command, int *code) {
    struct fwd_error err = {0};
    struct par_fault faults[PAR_MOST_FAULTS];
    struct par_report report = {0};
    struct par_figures *figures = par_figures_create();
    struct par_contract_set contracts = {0};
    struct par_fresh fresh = {&o->common, in, path, o->fault};
    struct fwd_gguf *source = NULL;
    char cases[4200];
    (void)snprintf(cases, sizeof cases, "%s/cases", report_dir ? report_dir : "");
    int32_t *loss = NULL;
    struct par_run_options options = {.file = in->file,
                                      .model_name = o->common.model,
                                      .prompt = in->text,
                                      .ids = in->ids,
                                      .n_prompt = in->n_ids,
                                      .n_decode = o->common.n_decode,
                                      .chunk = o->common.chunk,
                                      .depth = o->quick  ? PAR_QUICK
                                               : o->full ? PAR_FULL
                                                         : PAR_DEFAULT,
                                      .faults = faults,
                                      .hypotheses_dir = o->hypotheses,
                                      .fresh_hashes = o->quick ? NULL : par_fresh_hashes,
                                      .fresh_ud = &fresh,
                                      .cases_dir = report_dir ? cases : NULL,
                                      .verify = par_verify_case,
                                      .command = command,
                                      .progress = show_progress};
    enum fwd_status rc =
        figures ? FWD_OK : fwd_fail(&err, FWD_ENOMEM, __FILE__, __LINE__, "run: no memory for its figures");
    if (rc == FWD_OK)
        rc = par_find_path(o->ref, &options.ref, &err);
    if (rc == FWD_OK)
        rc = par_find_path(path, &options.cand, &err);
    if (rc == FWD_OK)
        rc = par_common_knobs(&o->common, in->n_ids + o->common.n_decode, &options.knobs, &options.schedule, &err);
    if (rc == FWD_OK)
        rc = par_parse_judge("judge", o->judge, &options.judge_every, &err);
    if (rc == FWD_OK)
        rc = par_parse_judge("judge-ref", o->judge_ref, &options.judge_ref_every, &err);
    if (rc == FWD_OK)
        rc = parse_bound(o->bound, &options.bound, &err);
    if (rc == FWD_OK)
        rc = parse_judge_caps(o->common.caps, &options.judge_caps, &err);
    if (rc == FWD_OK)
        rc = open_source(o->source, &source, &err);
    options.source = source;
    if (rc == FWD_OK)
        rc = par_fault_set_parse(o->fault, faults, &options.n_faults, &err);
    if (rc == FWD_OK)
        rc = par_loss_ids(in, &loss, &options.n_loss_ids, &err);
    options.loss_ids = loss;
    if (rc == FWD_OK && o->contract)
        rc = par_contracts_load(&contracts, &o->contract, 1, &err);
    options.with_nocache = par_contracts_want_nocache(&contracts);
    if (rc == FWD_OK)
        rc = par_run(&options, &report, figures, &err);
    if (rc == FWD_OK)
        rc = hold_contracts(o, &options, &contracts, in, &report, figures, &err);
    if (rc == FWD_OK)
        rc = output(o, report_dir, &report, &err);
    enum par_verdict verdict = rc == FWD_OK ? par_report_shown(&report) : PAR_REFUSED;
    *code = rc == FWD_OK ? par_verdict_exit(verdict) : par_complain(&err);
    for (int i = 0; i < options.n_faults; i++)
        par_fault_free(&faults[i]);
    par_text_free(report.text);
    par_contracts_free(&contracts);
    par_figures_free(figures);
    if (source)
        fwd_gguf_close(source);
    fwd_free(loss);
    return verdict;
}

/* Every candidate of the list, each with its own report (DIR/PATH where there are several) and verdict. Names are
 * looked up before the first of them runs; one that cannot run here is REFUSED, and the others run. */
static int run_list(const struct run_options *o, const struct par_input *in, int argc, char **argv) {
    struct fwd_error err = {0};
    enum par_verdict strongest = PAR_HELD;
    char name[64], command[4096], dir[4096];
    bool several = strchr(o->paths, ',') != NULL;
    int code = 0;
    for (const char *rest = o->paths; *rest;) {
        const struct fwd_path *path;
        if (par_next_name(&rest, name, &err) != FWD_OK || par_find_path(name, &path, &err) != FWD_OK)
            return par_complain(&err);
    }
    for (const char *rest = o->paths; *rest;) {
        int one = 0;
        (void)par_next_name(&rest, name, &err);
        repeat_command(argc, argv, several ? name : NULL, command, sizeof command);
        (void)snprintf(dir, sizeof dir, "%s/%s", o->report_dir ? o->report_dir : "", name);
        if (several && !o->json)
            (void)printf("==== candidate %s\n", name);
        enum par_verdict verdict = run(o, in, name,
                                       !o->report_dir ? NULL
                                       : several      ? dir
                                                      : o->report_dir,
                                       command, &one);
        bool stronger = par_verdict_max(strongest, verdict) != strongest;
        code = stronger || code == 0 ? one : code;
        strongest = stronger ? verdict : strongest;
        if (several && !o->json && verdict == PAR_REFUSED)
            (void)printf("verdict        REFUSED (exit %d): %s was not run\n\n", one, name);
    }
    return code;
}

int cmd_run(int argc, char **argv) {
    struct run_options o = {.ref = "f32", .paths = "q4k-cpu"};
    char hypotheses[4096];
    struct par_opt rows[PAR_COMMON_OPTS + 16];
    struct fwd_error err;
    struct par_input in;
    const char *model = NULL;
    int n_words;
    bool help;
    o.common.n_decode = 16;
    int n_rows = fill_options(&o, rows);
    enum fwd_status rc = par_options_parse(rows, n_rows, argc, argv, &model, 1, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(
            stdout, "run MODEL [options]",
            "Runs the reference and the candidate over the same ids, judges every op of both from its own\n"
            "captured inputs, and holds the logits against the explained spread. MODEL is a GGUF file or a\n"
            "name that `parity fixture list` shows.",
            rows, n_rows);
        return 0;
    }
    if (rc == FWD_OK && o.quick && o.full)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "--quick and --full exclude each other");
    o.common.model = model;
    if (rc == FWD_OK && !o.hypotheses) {
        if (par_data_path("contracts/hypotheses", hypotheses, sizeof hypotheses))
            o.hypotheses = hypotheses;
        else
            (void)fprintf(stderr, "parity: no contracts/hypotheses here or beside the program: none is evaluated\n");
    }
    if (rc == FWD_OK)
        rc = par_check_report_dir(o.report_dir, &err);
    if (rc == FWD_OK)
        rc = par_input_open(&in, &o.common, &err);
    if (rc != FWD_OK)
        return par_complain(&err);
    int code = run_list(&o, &in, argc, argv);
    par_input_close(&in);
    return code;
}
