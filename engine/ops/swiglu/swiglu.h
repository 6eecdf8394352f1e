/* engine/ops/swiglu/swiglu.h: y[i] = silu(gate[i]) * up[i], element by element.
 *
 * e = exp(-|g|) (ops/expf), num = g < 0 ? g * e : g, y = num / (1 + e) * up, one F32 rounding a step: the exponential
 * never overflows. The same bits in every variant. */
#ifndef ENGINE_OPS_SWIGLU_H
#define ENGINE_OPS_SWIGLU_H

#include <stdint.h>

/* y may be gate or up. */
typedef void swiglu_fn(const float *gate, const float *up, float *y, int64_t n);

#endif
