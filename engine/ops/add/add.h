/* engine/ops/add/add.h: y[i] = a[i] + b[i], one F32 rounding. */
#ifndef ENGINE_OPS_ADD_H
#define ENGINE_OPS_ADD_H

#include <stdint.h>

/* y may be a or b. */
typedef void add_fn(const float *a, const float *b, float *y, int64_t n);

#endif
