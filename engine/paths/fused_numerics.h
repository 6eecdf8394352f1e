/* engine/paths/fused_numerics.h: what the ops of the quantised paths promise about their arithmetic, on the CPU and on
 * the GPU alike: it is one canonical arithmetic. */
#ifndef ENGINE_PATHS_FUSED_NUMERICS_H
#define ENGINE_PATHS_FUSED_NUMERICS_H

#include "core/types.h"

#include <stdbool.h>
#include <stdint.h>

/* A matrix product as a path does it. */
struct fused_product {
    enum fwd_dtype act; /* what it multiplies with: FWD_Q8_K, FWD_Q8_32; FWD_F32: matmul_f on decoded weights */
    uint32_t type;      /* of the weight */
    bool has_bias;
};
/* The product of an op that is one (qcur .. ffn_out of a layer, result_output). */
typedef struct fused_product fused_product_fn(const void *session, enum fwd_op op, int layer);

/* False: the op is absent. layer must fit the op. */
bool fused_numerics(const void *session, fused_product_fn *product, enum fwd_dtype kv_type, enum fwd_op op, int layer,
                    struct fwd_numerics *out);

#endif
