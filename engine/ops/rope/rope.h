/* engine/ops/rope/rope.h: rotation of the first n_rope values of each head by position.
 *
 * Pair i (FWD_ROPE_NORM: (2i, 2i+1); FWD_ROPE_NEOX: (i, i + n_rope/2)) turns by angle
 * pos * theta^(-2i/n_rope) / factor[i]: computed in F64, its cosine and sine rounded to F32 once, when the table is
 * made. y0 = x0*c - x1*s, y1 = x0*s + x1*c in F32, three roundings each, no fused step. Values from n_rope on are
 * copied. The C library's pow, cos and sin (1 ulp of F64) leave an entry within 0.501 ulp of the turn by an angle that
 * is off by at most 2^-51 of itself; their last bits may differ between machines, a machine reproduces its own. */
#ifndef ENGINE_OPS_ROPE_H
#define ENGINE_OPS_ROPE_H

#include "model/model.h"

/* table: [n_pos][n_rope / 2][2] as (cos, sin). */
void fwd_rope_table(const struct fwd_config *config, int pos0, int n_pos, float *table);

/* One row of n_heads heads, each head_dim values; turn: the table row of its position. y may be x. */
typedef void rope_fn(const float *x, float *y, const float *turn, int n_heads, int head_dim, int n_rope,
                     enum fwd_rope_pairing pairing);

#endif
