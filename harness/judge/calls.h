/* harness/judge/calls.h: the tensors of a capture as the calls that a judge expects: op, layer, positions, values in
 * rows, in an order in which inputs come before what reads them. Internal to harness/judge. */
#ifndef HARNESS_JUDGE_CALLS_H
#define HARNESS_JUDGE_CALLS_H

#include "spec/judge.h"
#include "tap/import.h"

struct par_call {
    const struct par_import_tensor *tensor;
    enum fwd_op op;
    int layer, pos0, n_pos;
    int64_t width;          /* values in a row */
    int64_t column, stride; /* first value of the row in the tensor's row, and that row's values */
    bool transposed;        /* the tensor is [width, positions] */
    bool guessed;           /* its positions are not said: one row, taken for the last */
};
struct par_calls {
    struct par_call *calls;
    int n;
    size_t n_unknown;
    const char *unknown; /* the first, owned by the import */
};
/* n_ids: of the sequence. FWD_ESHAPE for a tensor that is not one of this model's, FWD_ERANGE for positions or layers
 * that are not there. */
enum fwd_status par_calls_find(struct par_calls *out, const struct par_import *im, const struct par_spec_config *c,
                               int n_ids, struct fwd_error *err);
void par_calls_free(struct par_calls *c);
/* Values in a row of the op. */
int64_t par_op_width(const struct par_spec_config *c, enum fwd_op op);
/* The call's values as a view in forms the judge takes; *bytes (fwd_free) holds them. */
enum fwd_status par_call_read(const struct par_call *call, const struct par_import *im, const struct par_spec_config *c,
                              struct fwd_view *view, uint8_t **bytes, struct fwd_error *err);

#endif
