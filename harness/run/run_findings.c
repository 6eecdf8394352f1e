/* harness/run/run_findings.c: where each accused op is wrong, and why, from the evidence that the judged passes kept.
 * No op runs again for it. */
#include "localise/explain.h"
#include "localise/pattern.h"
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A bug in what all ops share accuses hundreds of them; the first ones tell it. */
enum { MOST_FINDINGS = 48 };
#define MOST_SECONDS 40.0

static void tell_where(struct par_run *r, const struct par_pattern *p, struct par_report_finding *out) {
    out->where = par_text_printf(r->text, "%s", p->text);
    if (p->tensor[0])
        out->bytes = par_text_printf(r->text, "bytes %llu to %llu of the file (%s)", (unsigned long long)p->byte_first,
                                     (unsigned long long)p->byte_last, p->tensor);
    out->n_accused = p->n_accused;
    out->head = p->head;
    out->row_first = p->row_first;
    out->row_last = p->row_last;
    out->pos_first = p->pos_first;
    out->pos_last = p->pos_last;
    out->block = p->n_blocks ? p->block[0] : -1;
}

static void tell_why(struct par_run *r, const struct par_diagnosis *d, struct par_report_finding *out) {
    out->why = par_text_printf(r->text, "%s", d->text);
    out->share = d->share;
    out->n_tried = d->n_tried;
    if (!d->signature)
        return;
    out->signature = d->signature->name;
    out->hypothesis = d->signature->hypothesis;
    out->museum = d->signature->museum;
}

static void count(struct par_run *r, const char *what, const char *of) {
    char name[96];
    double n = 0;
    (void)snprintf(name, sizeof name, "%s.%s", what, of);
    (void)par_figures_get(r->figures, name, &n);
    par_figures_set(r->figures, name, n + 1);
}

static enum fwd_status look_at(struct par_run *r, const struct par_evidence_set *set, const struct par_evidence *item,
                               struct par_report_finding *out, struct fwd_error *err) {
    struct par_explain_context context = {r->spec, r->pool, r->ids, r->n_ids, r->n_prompt, set};
    struct par_pattern pattern;
    struct par_diagnosis diagnosis;
    FWD_TRY(par_pattern_find(r->spec, r->pool, item, &pattern, err));
    tell_where(r, &pattern, out);
    FWD_TRY(par_explain(&context, item, &diagnosis, err));
    tell_why(r, &diagnosis, out);
    return FWD_OK;
}

static enum fwd_status look_at_side(struct par_run *r, bool reference, int *n, double deadline, struct fwd_error *err) {
    const struct par_evidence_set *set = reference ? &r->evidence_ref : &r->evidence_cand;
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = reference ? &r->ops[i].ref : &r->ops[i].cand;
        struct par_report_finding *out = reference ? &r->ops[i].ref_finding : &r->ops[i].cand_finding;
        if (!par_row_suspect(row))
            continue;
        const struct par_evidence *item = par_evidence_find(set, row->op, row->layer);
        const char *class_name = par_class_name(par_class_of(row->op));
        if (!item || item->n_calls == 0 || *n >= MOST_FINDINGS || par_seconds() > deadline) {
            out->why = !item || item->n_calls == 0 ? "not looked into: no room was left to keep its inputs"
                                                   : "not looked into: other accused ops come first";
            continue;
        }
        par_run_progress(r, "where and why", i, r->n_ops);
        FWD_TRY(look_at(r, set, item, out, err));
        (*n)++;
        if (out->signature) {
            count(r, "explained", out->hypothesis);
            count(r, "signature", out->signature);
        } else {
            count(r, "unexplained", class_name);
        }
    }
    return FWD_OK;
}

enum fwd_status par_run_findings(struct par_run *r, struct fwd_error *err) {
    static const char *const hypotheses[] = {"H1", "H2", "H3", "H4", "H5"};
    double deadline = par_seconds() + MOST_SECONDS;
    int n = 0;
    char name[96];
    for (size_t i = 0; i < sizeof hypotheses / sizeof *hypotheses; i++) {
        (void)snprintf(name, sizeof name, "explained.%s", hypotheses[i]);
        par_figures_set(r->figures, name, 0);
    }
    for (int c = 0; c < PAR_CLASS_COUNT; c++) {
        (void)snprintf(name, sizeof name, "unexplained.%s", par_class_name((enum par_op_class)c));
        par_figures_set(r->figures, name, 0);
    }
    FWD_TRY(look_at_side(r, false, &n, deadline, err));
    return look_at_side(r, true, &n, deadline, err);
}
