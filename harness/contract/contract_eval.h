/* harness/contract/contract_eval.h: contracts held against the measurements of runs.
 *
 * Beyond the figures that a run sets, a check may name these, set for each test as it is evaluated:
 *   contract.version_major .equations .obligations .falsification_tests .bounded_harnesses .unchecked_tests
 *   report.cites_contract  rows of this contract that the report has already
 *   report.identity        1: the report has the model's hash, the ids, and a command that repeats it
 *   text.matches           1: one of the measure's `expect_text` occurs in the candidate's greedy text, 0: none does */
#ifndef HARNESS_CONTRACT_CONTRACT_EVAL_H
#define HARNESS_CONTRACT_CONTRACT_EVAL_H

#include "contract/contract.h"
#include "report/report.h"

/* A finished run: its measure's fields are all filled. */
struct par_contract_run {
    struct par_measure is;
    const struct par_report *report;
    struct par_figures *figures;
    const char *text; /* the candidate's greedy tokens as text, NULL: not known */
};

/* What the report says the run was; schedule, head and kv ("f16") are not in it. Pointers stay into the report. */
void par_contract_run_fill(struct par_contract_run *run, const struct par_report *report, struct par_figures *figures,
                           const char *schedule, const char *head, const char *kv);
/* The candidate's greedy tokens (its best one at the last prompt position and at every decode step, up to one that
 * ends the text) as text. *out is freed with fwd_free. */
enum fwd_status par_contract_text(const struct par_report *report, const struct fwd_tokenizer *tokenizer, char **out,
                                  struct fwd_error *err);

/* Test i of c, held against the run (NULL: there was none, `reason` says why), appended to out->contracts: HELD,
 * DIVERGED, UNMEASURED where a figure is missing or the run is not the one asked for, MISTRUSTED where the run is. */
enum fwd_status par_contract_eval(const struct par_contract *c, int i, const struct par_contract_run *run,
                                  const char *reason, struct par_report *out, struct fwd_error *err);
/* Every test of every contract against one run. */
enum fwd_status par_contracts_eval(const struct par_contract_set *set, const struct par_contract_run *run,
                                   struct par_report *out, struct fwd_error *err);
/* What the rows together say: the strongest of DIVERGED and MISTRUSTED among them; else HELD when any row is, else
 * UNMEASURED. */
enum par_verdict par_contracts_verdict(const struct par_report *report);
/* Raises the report's verdict and changes its answer where the contracts say worse than the run. */
void par_contracts_gate(struct par_report *report);

#endif
