/* harness/report/report_stats.h: what several writers count in a report, so that they all say the same. */
#ifndef HARNESS_REPORT_REPORT_STATS_H
#define HARNESS_REPORT_REPORT_STATS_H

#include "report/report.h"

enum par_side { PAR_SIDE_REF, PAR_SIDE_CAND };

static inline const struct par_op_row *par_side_row(const struct par_report_op *op, enum par_side side) {
    return side == PAR_SIDE_REF ? &op->ref : &op->cand;
}
const char *par_side_path(const struct par_report *r, enum par_side side);
/* The row's verdict; HELD with nothing judged is UNMEASURED. */
enum par_verdict par_row_shown(const struct par_op_row *row);
/* Outside its bound, non-finite or not to be trusted (as opposed to held or not measured). */
bool par_verdict_accuses(enum par_verdict v);
/* Elements judged on one side, over all ops. */
uint64_t par_report_n_judged(const struct par_report *r, enum par_side side);

/* All layers of one op on one side; rows of an op that the path does not have are left out: n_rows == 0 is absent. */
struct par_op_group {
    int n_rows, n_held, n_unmeasured, n_accused;
    uint64_t n_judged, n_over;
    enum par_verdict verdict;            /* the strongest; UNMEASURED with no rows or nothing judged */
    const struct par_op_row *worst;      /* the accused row with the largest ratio, else any row's; NULL: no rows */
    const struct par_op_row *unmeasured; /* the first that is; NULL: none */
};
void par_op_group_fill(const struct par_report *r, enum par_side side, enum fwd_op op, struct par_op_group *g);

/* "Qcur-3", or "result_norm" outside layers. */
const char *par_op_label(enum fwd_op op, int layer, char *buf, size_t n);

#endif
