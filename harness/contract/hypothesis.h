/* harness/contract/hypothesis.h: H0 to H5 and any other, as data written before the run.
 *
 * contracts/hypotheses/NAME.json: {"id", "title", "predicts" (prose), "supported_if": CONDITION, "falsified_if":
 * CONDITION, "untested_unless": CONDITION, "command_options"}. The conditions are figures.h's. UNTESTED unless
 * `untested_unless` is true; then SUPPORTED when supported_if is, FALSIFIED when falsified_if is and the other is not,
 * else UNTESTED. */
#ifndef HARNESS_CONTRACT_HYPOTHESIS_H
#define HARNESS_CONTRACT_HYPOTHESIS_H

#include "contract/figures.h"
#include "report/report.h"

/* Evaluates every *.json of dir in the order of names and appends to report->hypotheses (report->text must be there).
 * Refuses unknown keys, missing ones, and an id seen before, with file and line. */
enum fwd_status par_hypotheses_eval(const char *dir, const char *command, struct par_figures *figures,
                                    struct par_report *report, struct fwd_error *err);

#endif
