#include "report/report_stats.h"

#include <math.h>

const char *par_side_path(const struct par_report *r, enum par_side side) {
    const char *name = side == PAR_SIDE_REF ? r->ref_path : r->cand_path;
    return name ? name : side == PAR_SIDE_REF ? "reference" : "candidate";
}

enum par_verdict par_row_shown(const struct par_op_row *row) {
    return row->verdict == PAR_HELD && row->n_judged == 0 ? PAR_UNMEASURED : row->verdict;
}

bool par_verdict_accuses(enum par_verdict v) {
    return v != PAR_HELD && v != PAR_UNMEASURED;
}

uint64_t par_report_n_judged(const struct par_report *r, enum par_side side) {
    uint64_t n = 0;
    for (int i = 0; i < r->n_ops; i++)
        n += par_side_row(&r->ops[i], side)->n_judged;
    return n;
}

enum par_verdict par_report_shown(const struct par_report *r) {
    return r->verdict == PAR_HELD && par_report_n_judged(r, PAR_SIDE_CAND) == 0 ? PAR_UNMEASURED : r->verdict;
}

/* A NaN ratio (nothing to divide by) is the worst of all. */
static bool is_worse(const struct par_op_row *a, const struct par_op_row *b) {
    bool a_accused = par_verdict_accuses(par_row_shown(a));
    bool b_accused = par_verdict_accuses(par_row_shown(b));
    if (a_accused != b_accused)
        return a_accused;
    return !isnan(b->ratio_max) && !(a->ratio_max <= b->ratio_max);
}

void par_op_group_fill(const struct par_report *r, enum par_side side, enum fwd_op op, struct par_op_group *g) {
    *g = (struct par_op_group){.verdict = PAR_HELD};
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = par_side_row(&r->ops[i], side);
        if (r->ops[i].op != op || row->absent)
            continue;
        enum par_verdict v = par_row_shown(row);
        g->n_rows++;
        g->n_held += v == PAR_HELD;
        g->n_unmeasured += v == PAR_UNMEASURED;
        if (v == PAR_UNMEASURED && !g->unmeasured)
            g->unmeasured = row;
        g->n_accused += par_verdict_accuses(v);
        g->n_judged += row->n_judged;
        g->n_over += row->n_over;
        g->verdict = par_verdict_max(g->verdict, v);
        if (!g->worst || is_worse(row, g->worst))
            g->worst = row;
    }
    if (g->n_judged == 0)
        g->verdict = par_verdict_max(g->verdict, PAR_UNMEASURED);
}

const char *par_op_label(enum fwd_op op, int layer, char *buf, size_t n) {
    if (fwd_op_in_layer(op))
        (void)snprintf(buf, n, "%s-%d", fwd_op_name(op), layer);
    else
        (void)snprintf(buf, n, "%s", fwd_op_name(op));
    return buf;
}
