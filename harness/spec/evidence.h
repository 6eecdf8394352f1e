/* harness/spec/evidence.h: what an accused op read and wrote, copied by the judge while the pass ran. It can be judged
 * again element by element, explained, shrunk and replayed without a second pass.
 *
 * Owned by the judge that made it, or by whoever takes it (par_judge_take_evidence). */
#ifndef HARNESS_SPEC_EVIDENCE_H
#define HARNESS_SPEC_EVIDENCE_H

#include "spec/judge.h"

/* Another tap of the same pass that holds the same bits as an accused row: op, layer and position of the other. */
struct par_twin {
    enum fwd_op op;
    int layer;
    int pos, own_pos;
};
enum { PAR_MAX_TWINS = 8 };

/* One call in which an element was accused. Views are packed copies, data owned; in[i].data == NULL: input i is
 * missing. out may hold fewer positions than the call had (then the first accused one and what follows it). */
struct par_evidence_call {
    struct fwd_view in[4], out;
    int n_in;
    uint8_t *judge_pos; /* [out.n_pos] */
    int n_twins;
    struct par_twin twins[PAR_MAX_TWINS];
};
/* One op of one layer. */
struct par_evidence {
    enum fwd_op op;
    int layer;
    struct fwd_numerics numerics;
    struct par_evidence_call *calls; /* in the order they came; the first PAR_EVIDENCE_CALLS accused ones */
    int n_calls;
    /* By absolute position, over all calls, kept or not: 1 where elements were judged, 2 where one was accused too. */
    uint8_t *positions;
    int n_positions;
    bool accused; /* false: judged so far, and clean; inside the judge only, see par_evidence_drop_clean */
};
enum { PAR_EVIDENCE_CALLS = 24 };
struct par_evidence_set {
    struct par_evidence *items;
    int n;
    int n_dropped; /* accused ops whose inputs no longer fitted the budget: they have no calls */
    size_t bytes;  /* that the copies take */
};
void par_evidence_free(struct par_evidence_set *set);
/* The item of (op, layer), or NULL if no element of it was accused. */
const struct par_evidence *par_evidence_find(const struct par_evidence_set *set, enum fwd_op op, int layer);

/* What to give par_judge_eval, par_spec_value or par_spec_elements for call i: pointers into the evidence. */
void par_evidence_eval(const struct par_evidence *item, int i, struct par_eval *e);

/* Forgets the items that were never accused: what a judge hands on has none. */
void par_evidence_drop_clean(struct par_evidence_set *set);

/* ---- for the judge --------------------------------------------------------------------------------------------- */
struct par_kept_view {
    const struct fwd_view *view;
};
/* Other taps with the same bits as a row of `out`, at positions marked 1 (marks NULL: at all), added to the *n that
 * twins holds. A row that is one value throughout has none. */
void par_evidence_twins(const struct fwd_view *out, const uint8_t *marks, const struct par_kept_view *kept, int n_kept,
                        struct par_twin twins[PAR_MAX_TWINS], int *n);
/* Adds twins that were found while the call waited to the last call of (op, layer). */
void par_evidence_add_twins(struct par_evidence_set *set, enum fwd_op op, int layer, const uint8_t *accused_pos,
                            const struct par_twin *twins, int n);
/* Adds what the judge saw of one call; accused_pos by absolute position, [e->pos0 + e->n_pos]. kept: other taps of the
 * pass, to be compared for equal bits. budget: most bytes of all copies. */
enum fwd_status par_evidence_add(struct par_evidence_set *set, const struct par_eval *e, const uint8_t *accused_pos,
                                 const struct par_kept_view *kept, int n_kept, size_t budget, struct fwd_error *err);
/* Marks positions of a clean call as judged: an op that is accused later was right there. */
enum fwd_status par_evidence_mark(struct par_evidence_set *set, const struct par_eval *e, const uint8_t *accused_pos,
                                  struct fwd_error *err);

#endif
