/* engine/ops/variant_info.h: the rows of variants.def for people: what there is and what it needs. */
#ifndef ENGINE_OPS_VARIANT_INFO_H
#define ENGINE_OPS_VARIANT_INFO_H

#include <stdbool.h>

struct fwd_variant_info {
    const char *op, *variant;
    unsigned needs; /* enum fwd_cpu bits */
};
/* Row i in the order of variants.def; false past the end. */
bool fwd_variant_info(int i, struct fwd_variant_info *out);

#endif
