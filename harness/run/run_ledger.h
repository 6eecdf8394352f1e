/* harness/run/run_ledger.h: fills the error ledger of every matrix product from a pass's taps, at a stated sample of
 * positions. Streaming: it keeps the sampled rows of one layer's inputs and nothing else. */
#ifndef HARNESS_RUN_RUN_LEDGER_H
#define HARNESS_RUN_RUN_LEDGER_H

#include "compare/ledger.h"
#include "spec/judge.h"

enum { PAR_LEDGER_POSITIONS = 3 };

struct par_run_ledger;

/* source: the unquantised model of the same architecture, or NULL. pos: the sampled positions, ascending. */
enum fwd_status par_run_ledger_open(struct par_run_ledger **out, const struct par_spec_model *m,
                                    const struct par_spec_model *source, struct fwd_pool *pool,
                                    par_numerics_fn *numerics, void *numerics_ud, const int *pos, int n_pos,
                                    struct fwd_error *err);
void par_run_ledger_close(struct par_run_ledger *l);
enum fwd_status par_run_ledger_tap(struct par_run_ledger *l, const struct fwd_view *view, struct fwd_error *err);
/* NULL: the op is no matrix product, or was not seen at a sampled position. */
const struct par_ledger *par_run_ledger_row(const struct par_run_ledger *l, enum fwd_op op, int layer);
/* FWD_EINPUT names the first property in which two models of one architecture differ: a source must be the same net. */
enum fwd_status par_run_ledger_check_source(const struct par_spec_model *m, const struct par_spec_model *source,
                                            struct fwd_error *err);

#endif
