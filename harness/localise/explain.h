/* harness/localise/explain.h: what kind of bug explains an accused op. A signature is an alternative spec, the
 * description of one real bug of the museum, computed from the op's captured inputs by code of its own (none of it is a
 * fault's). The one that brings every accused element back inside its bound is the diagnosis. When none does the answer
 * is "unexplained": never a guess. */
#ifndef HARNESS_LOCALISE_EXPLAIN_H
#define HARNESS_LOCALISE_EXPLAIN_H

#include "spec/evidence.h"

/* A row of the library, for lists and tests. */
struct par_signature_info {
    const char *name;       /* "rope-pairing" */
    const char *hypothesis; /* "H3" */
    const char *summary;    /* one line */
    const char *museum;     /* "candle 3410; llama2.c PR 286" */
};
/* Row i; NULL past the end. */
const struct par_signature_info *par_signature_info(int i);

struct par_diagnosis {
    const struct par_signature_info *signature; /* NULL: unexplained */
    char text[240];                             /* "K is rotated by position + 1" with the parameters found */
    double share;                               /* of the accused elements that it brings inside their bound */
    double ratio_max;                           /* largest residue ratio over all elements of the evidence under it */
    uint64_t n_accused;                         /* elements outside their bound under the spec */
    int n_tried;                                /* signatures tried */
};
/* What else the explanation may use. */
struct par_explain_context {
    const struct par_spec_model *model;
    struct fwd_pool *pool;
    const int32_t *tokens; /* that the path was given */
    int n_tokens, n_prompt;
    const struct par_evidence_set *evidence; /* of the other accused ops of the pass, or NULL */
};
/* Tries every signature that applies to item->op. With the same outcome the simpler (earlier) row wins. */
enum fwd_status par_explain(const struct par_explain_context *context, const struct par_evidence *item,
                            struct par_diagnosis *out, struct fwd_error *err);

#endif
