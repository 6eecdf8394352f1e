/* harness/contract/contract_eval.c: see contract_eval.h. */
#include "contract/contract_eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void par_contract_run_fill(struct par_contract_run *run, const struct par_report *report, struct par_figures *figures,
                           const char *schedule, const char *head, const char *kv) {
    memset(run, 0, sizeof *run);
    run->report = report;
    run->figures = figures;
    run->is.model_sha256 = report->model_sha256;
    run->is.decode = report->n_ids - report->n_prompt;
    run->is.path = report->cand_path;
    run->is.ref = report->ref_path;
    run->is.schedule = schedule;
    run->is.head = head;
    run->is.kv = kv;
    /* A prompt too long to be pinned fits no pinned one: its count alone says so. */
    run->is.n_ids = report->n_prompt;
    for (int i = 0; i < report->n_prompt && i < PAR_MEASURE_MAX_IDS; i++)
        run->is.ids[i] = report->ids[i];
}

enum fwd_status par_contract_text(const struct par_report *report, const struct fwd_tokenizer *tokenizer, char **out,
                                  struct fwd_error *err) {
    int32_t *ids = fwd_calloc((size_t)report->n_logits + 1, sizeof *ids);
    size_t n = 0, len;
    FWD_FAIL_IF(!ids, FWD_ENOMEM, err, "contracts: no memory for %d tokens", report->n_logits);
    for (int i = 0; i < report->n_logits; i++) {
        const struct par_report_logits *row = &report->logits[i];
        if (row->pos < report->n_prompt - 1)
            continue;
        if (row->m.top_got < 0 || fwd_tokenizer_is_end(tokenizer, row->m.top_got))
            break;
        ids[n++] = row->m.top_got;
    }
    enum fwd_status rc = fwd_tokenizer_decode(tokenizer, ids, n, false, out, &len, err);
    fwd_free(ids);
    return rc;
}

/* ---- figures of the contract and of the report that cites it ---- */

static double cited(const struct par_report *out, const struct par_contract *c) {
    double n = 0;
    for (int i = 0; i < out->n_contracts; i++)
        n += !strcmp(out->contracts[i].contract, c->name);
    return n;
}

static double has_identity(const struct par_report *r) {
    return r->model_sha256 && strlen(r->model_sha256) == 64 && r->ids && r->n_ids > 0 && r->command && *r->command;
}

static double text_matches(const struct par_measure *want, const char *text) {
    if (!want->n_expect || !text)
        return NAN;
    for (int i = 0; i < want->n_expect; i++)
        if (strstr(text, want->expect_text[i]))
            return 1;
    return 0;
}

static void set_figures(const struct par_contract *c, const struct par_contract_test *t,
                        const struct par_contract_run *run, const struct par_report *out) {
    int n_unchecked = 0;
    for (int i = 0; i < c->n_tests; i++)
        n_unchecked += !c->tests[i].check;
    par_figures_set(run->figures, "contract.version_major", c->version_major);
    par_figures_set(run->figures, "contract.equations", c->n_equations);
    par_figures_set(run->figures, "contract.obligations", c->n_obligations);
    par_figures_set(run->figures, "contract.falsification_tests", c->n_falsifications);
    par_figures_set(run->figures, "contract.bounded_harnesses", c->n_harnesses);
    par_figures_set(run->figures, "contract.unchecked_tests", n_unchecked);
    par_figures_set(run->figures, "report.cites_contract", cited(out, c));
    par_figures_set(run->figures, "report.identity", has_identity(run->report));
    par_figures_set(run->figures, "text.matches", text_matches(&t->measure, run->text));
}

/* ---- rows ---- */

static enum fwd_status append(struct par_report *out, const struct par_report_contract *row, struct fwd_error *err) {
    int n = out->n_contracts;
    struct par_report_contract *rows = par_text_alloc(out->text, (size_t)(n + 1) * sizeof *rows);
    FWD_FAIL_IF(!rows, FWD_ENOMEM, err, "contracts: no memory for row %d", n);
    if (n)
        memcpy(rows, out->contracts, (size_t)n * sizeof *rows);
    rows[n] = *row;
    out->contracts = rows;
    out->n_contracts = n + 1;
    return FWD_OK;
}

static enum par_verdict decide(const struct par_contract *c, const struct par_contract_test *t,
                               const struct par_contract_run *run, const struct par_report *out, char *why, size_t n) {
    static const enum par_verdict of_truth[] = {
        [PAR_FALSE] = PAR_DIVERGED, [PAR_TRUE] = PAR_HELD, [PAR_UNKNOWN] = PAR_UNMEASURED};
    if (!t->check) {
        (void)snprintf(why, n, "the contract has no check for it");
        return PAR_UNMEASURED;
    }
    if (!par_measure_fits(&t->measure, &run->is, why, n))
        return PAR_UNMEASURED;
    set_figures(c, t, run, out);
    enum par_truth truth = par_condition_eval(t->check, run->figures, why, n);
    if (truth == PAR_TRUE && (run->report->verdict == PAR_MISTRUSTED || run->report->verdict == PAR_REFUSED)) {
        size_t used = strlen(why);
        (void)snprintf(why + used, n - used, "; but the run itself is %s", par_verdict_name(run->report->verdict));
        return PAR_MISTRUSTED;
    }
    return of_truth[truth];
}

enum fwd_status par_contract_eval(const struct par_contract *c, int i, const struct par_contract_run *run,
                                  const char *reason, struct par_report *out, struct fwd_error *err) {
    const struct par_contract_test *t = &c->tests[i];
    char why[1024] = "";
    enum par_verdict verdict = PAR_UNMEASURED;
    if (run)
        verdict = decide(c, t, run, out, why, sizeof why);
    else
        (void)snprintf(why, sizeof why, "%s", reason);
    bool says_text = run && run->text && t->measure.n_expect && verdict != PAR_UNMEASURED;
    struct par_report_contract row = {
        .contract = par_text_printf(out->text, "%s", c->name),
        .id = par_text_printf(out->text, "%s%s", t->is_equation ? "equation " : "", t->id),
        .rule = par_text_printf(out->text, "%s", t->rule),
        .verdict = verdict,
        .detail =
            par_text_printf(out->text, "%s%s%s%s%s%s", why, says_text ? "; text \"" : "", says_text ? run->text : "",
                            says_text ? "\"" : "", verdict == PAR_DIVERGED && !t->is_equation ? ". " : "",
                            verdict == PAR_DIVERGED && !t->is_equation ? t->if_fails : "")};
    return append(out, &row, err);
}

enum fwd_status par_contracts_eval(const struct par_contract_set *set, const struct par_contract_run *run,
                                   struct par_report *out, struct fwd_error *err) {
    for (int k = 0; k < set->n; k++)
        for (int i = 0; i < set->contracts[k].n_tests; i++)
            FWD_TRY(par_contract_eval(&set->contracts[k], i, run, "", out, err));
    FWD_FAIL_IF(!par_figures_ok(run->figures), FWD_ENOMEM, err, "contracts: no memory for the figures");
    return FWD_OK;
}

/* ---- the gate ---- */

enum par_verdict par_contracts_verdict(const struct par_report *report) {
    enum par_verdict strongest = PAR_HELD;
    bool held = false;
    for (int i = 0; i < report->n_contracts; i++) {
        enum par_verdict v = report->contracts[i].verdict;
        held = held || v == PAR_HELD;
        if (v != PAR_UNMEASURED)
            strongest = par_verdict_max(strongest, v);
    }
    return strongest == PAR_HELD && !held ? PAR_UNMEASURED : strongest;
}

void par_contracts_gate(struct par_report *report) {
    enum par_verdict verdict = par_contracts_verdict(report);
    if (par_verdict_max(verdict, report->verdict) == report->verdict)
        return;
    int n = 0;
    const struct par_report_contract *first = NULL;
    for (int i = 0; i < report->n_contracts; i++)
        if (report->contracts[i].verdict == verdict && n++ == 0)
            first = &report->contracts[i];
    report->verdict = verdict;
    report->answer = par_text_printf(report->text, "%s: %s of %s%s (the run alone: %s)",
                                     verdict == PAR_DIVERGED ? "a contract is broken" : "no contract was measured",
                                     first ? first->id : "nothing", first ? first->contract : "no contract",
                                     n > 1 ? par_text_printf(report->text, ", the first of %d", n) : "",
                                     report->answer ? report->answer : "");
}
