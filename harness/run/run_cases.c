/* harness/run/run_cases.c: a reproducer for the accused ops that matter: the first and the worst of each side. Made
 * from the evidence of the judged pass when no session of the run is open any more. */
#include "localise/case.h"

#include "run/run_state.h"

#include <stdio.h>
#include <string.h>

enum { MOST_CASES = 4 };

static void add_case(struct par_run *r, const struct par_report_case *row) {
    struct par_report *p = r->report;
    struct par_report_case *rows = par_text_alloc(r->text, (size_t)(p->n_cases + 1) * sizeof *rows);
    if (!rows)
        return;
    if (p->n_cases)
        memcpy(rows, p->cases, (size_t)p->n_cases * sizeof *rows);
    rows[p->n_cases++] = *row;
    p->cases = rows;
}

static struct par_case_context context_of(struct par_run *r, bool reference, const struct fwd_knobs *knobs) {
    return (struct par_case_context){.file = r->o->file,
                                     .spec = r->spec,
                                     .pool = r->pool,
                                     .model_name = r->o->model_name,
                                     .path = reference ? r->o->ref : r->o->cand,
                                     .role = reference ? PAR_ROLE_REFERENCE : PAR_ROLE_CANDIDATE,
                                     .bound = r->o->bound,
                                     .knobs = knobs,
                                     .schedule = reference ? PAR_SCHEDULE_NOCACHE : r->o->schedule,
                                     .chunk = reference ? 0 : r->o->chunk,
                                     .ids = r->ids,
                                     .n_prompt = r->n_prompt,
                                     .n_ids = r->n_ids,
                                     .want = r->want,
                                     .faults = r->o->faults,
                                     .n_faults = r->o->n_faults,
                                     .verify = r->o->verify};
}

static enum fwd_status make_case(struct par_run *r, bool reference, const struct par_evidence *item,
                                 struct fwd_error *err) {
    struct fwd_knobs knobs = reference ? par_run_reference_knobs(r) : par_run_knobs(r);
    struct par_case_context context = context_of(r, reference, &knobs);
    struct par_case_info info = {0};
    char path[4096];
    int len = snprintf(path, sizeof path, item->layer < 0 ? "%s/%s%s.case" : "%s/%s%s-%d.case", r->o->cases_dir,
                       reference ? "ref-" : "", fwd_op_name(item->op), item->layer);
    FWD_FAIL_IF(len < 0 || len >= (int)sizeof path, FWD_EINPUT, err, "the folder %s: its path is too long",
                r->o->cases_dir);
    par_run_progress(r, "cutting a case out", 0, 1);
    FWD_TRY(par_case_make(&context, item, path, &info, err));
    struct par_report_case row = {.op = item->op,
                                  .layer = item->layer,
                                  .reference = reference,
                                  .note = par_text_printf(r->text, "%s", info.note),
                                  .n_bytes = info.n_bytes,
                                  .n_rows = info.n_rows,
                                  .n_blocks = info.n_blocks,
                                  .n_positions = info.n_positions,
                                  .verified = info.verified};
    if (info.written) {
        row.path = par_text_printf(r->text, "%s", path);
        row.command = par_text_printf(r->text, "parity replay %s", path);
    }
    add_case(r, &row);
    return FWD_OK;
}

static enum fwd_status cases_of_side(struct par_run *r, bool reference, int most, struct fwd_error *err) {
    const struct par_evidence_set *set = reference ? &r->evidence_ref : &r->evidence_cand;
    const struct par_evidence *first = NULL, *worst = NULL;
    double ratio = -1;
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = reference ? &r->ops[i].ref : &r->ops[i].cand;
        const struct par_evidence *item = par_row_suspect(row) ? par_evidence_find(set, row->op, row->layer) : NULL;
        if (!item || item->n_calls == 0)
            continue;
        first = first ? first : item;
        if (row->ratio_max > ratio) {
            ratio = row->ratio_max;
            worst = item;
        }
    }
    if (first)
        FWD_TRY(make_case(r, reference, first, err));
    return worst && worst != first && most > 1 ? make_case(r, reference, worst, err) : FWD_OK;
}

enum fwd_status par_run_cases(struct par_run *r, struct fwd_error *err) {
    if (!r->o->cases_dir || r->evidence_cand.n + r->evidence_ref.n == 0)
        return FWD_OK;
    FWD_TRY(par_report_make_folder(r->o->cases_dir, err));
    FWD_TRY(cases_of_side(r, false, MOST_CASES / 2, err));
    return cases_of_side(r, true, r->n_accused_cand ? 1 : MOST_CASES / 2, err);
}
