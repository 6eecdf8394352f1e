/* engine/ops/variant_table.h: the kernel variants of variants.def as data, and the one rule that chooses among them. */
#ifndef ENGINE_OPS_VARIANT_TABLE_H
#define ENGINE_OPS_VARIANT_TABLE_H

#include "core/status.h"

#include <stdbool.h>

/* Cast to the op's own type (<op>_fn) before the call. */
typedef void fwd_any_fn(void);

struct fwd_variant {
    const char *op, *variant;
    unsigned needs; /* enum fwd_cpu bits */
    fwd_any_fn *fn;
};

/* Row i in the order of variants.def (fastest first within an op); NULL past the end. */
const struct fwd_variant *fwd_variant_row(int i);
/* The row of that name; NULL when there is none. */
const struct fwd_variant *fwd_variant_find(const char *op, const char *variant);

/* The first row of `op` whose needs lie within caps. `force` is the knob "op=variant[,op=variant...]" or NULL: an item
 * for this op names the variant instead. Fails with FWD_ENOTFOUND for an op or variant that does not exist,
 * FWD_EUNAVAILABLE for a forced variant that caps does not allow, FWD_EINPUT for a malformed item; items for other ops
 * are not looked at (fwd_variant_check_force). */
enum fwd_status fwd_variant_pick(const struct fwd_variant **out, const char *op, unsigned caps, const char *force,
                                 struct fwd_error *err);
/* Every item of `force` names an existing row that caps allows. To be called once when a session opens. */
enum fwd_status fwd_variant_check_force(unsigned caps, const char *force, struct fwd_error *err);
/* Whether `force` has an item for op: the reason to report is then "forced". */
bool fwd_variant_is_forced(const char *op, const char *force);

#endif
