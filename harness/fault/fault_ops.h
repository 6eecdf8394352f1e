/* harness/fault/fault_ops.h: the broken ops and hooks of the catalogue in fault.c, by the file that has them, and the
 * kinds that each knows. As an override or a hook, ud is the struct par_fault. Internal to harness/fault. */
#ifndef HARNESS_FAULT_FAULT_OPS_H
#define HARNESS_FAULT_FAULT_OPS_H

#include "engine.h"

struct par_fault;
struct fault_block;

/* ---- fault_place.c: tensors of the model file by op; NULL: none. A tied head is the embedding. ---- */
const struct fwd_gguf_tensor *par_fault_tensor(const struct fwd_gguf *file, enum fwd_op op, int layer);
const struct fwd_gguf_tensor *par_fault_bias(const struct fwd_gguf *file, enum fwd_op op, int layer);
/* The next layer whose weight (or bias) for the op has the same shape, and for a shared fault the same type; -1: none.
 */
int par_fault_other_layer(const struct par_fault *f, const struct fwd_gguf *file, enum fwd_op op, int layer,
                          int n_layer, bool bias);
/* The op whose tensor a PAR_NEED_TWIN fault takes instead. */
enum fwd_op par_fault_twin(enum fwd_op op);

/* ---- fault_block.c: blocks of a weight read wrongly ---- */
enum fault_block_kind {
    FAULT_BLOCK_MIN_DROPPED,    /* min terms left out */
    FAULT_BLOCK_MIN_ADDED,      /* and added instead of subtracted (Q4_1, Q5_1: subtracted instead of added) */
    FAULT_BLOCK_MIN_OTHER,      /* min of the next sub-block, the last one's of the first */
    FAULT_BLOCK_SCALE_OTHER,    /* scale of the next sub-block likewise */
    FAULT_BLOCK_NIBBLES,        /* nibbles taken in the order low 0, high 0, low 1, ... */
    FAULT_BLOCK_HIGH_MISPLACED, /* high bits of the value 16 (blocks of 32) or 32 places away */
    FAULT_BLOCK_HIGH_DROPPED,
    FAULT_BLOCK_ONE_WEIGHT, /* one code one off */
    FAULT_BLOCK_SCALE_CODE, /* one sub-block's scale one off */
    FAULT_BLOCK_MIN_CODE,   /* one sub-block's min one off */
    FAULT_BLOCK_D_ULP,      /* the block's scale one binary16 ulp off */
    FAULT_BLOCK_LOST,       /* reads as zero */
    FAULT_BLOCK_K_TAIL,     /* the last block reads as zero */
    FAULT_BLOCK_HALF_TWICE, /* the second half of K counts twice */
    FAULT_BLOCK_NEXT_ROW,   /* the block of the next row */
    FAULT_BLOCK_LANE,       /* every eighth value reads as zero */
    FAULT_BLOCK_REVERSED,   /* codes reversed in groups of 16 */
    FAULT_BLOCK_OFFSET,     /* the offset one too high */
    FAULT_BLOCK_SWAPPED,    /* scale and min codes exchanged */
    FAULT_BLOCK_PACKING,    /* scales and minima from the fifth on without their high two bits */
    FAULT_BLOCK_NEXT_D      /* d (and dmin) of the next block of the row */
};
void fault_break_block(const struct par_fault *f, uint32_t type, const uint8_t *row, int64_t n_cols, int64_t at,
                       const uint8_t *next_row, struct fault_block *b);

/* ---- fault_matmul.c: products with broken or other weights: true result plus (broken - true row) . x in F64 ---- */
enum fault_weight_kind {
    FAULT_WEIGHT_OTHER_LAYER = 100, /* the next layer's tensor */
    FAULT_WEIGHT_OTHER_HEAD,        /* rows of the next head */
    FAULT_WEIGHT_TWIN,              /* K's tensor for V, gate's for up and so on */
    FAULT_WEIGHT_OTHER_TYPE,        /* bytes read as a type with blocks no longer than the true ones */
    FAULT_WEIGHT_STRIDE,            /* row n starts n blocks too early */
    FAULT_WEIGHT_TILE_EDGE,         /* rows 15 and 16, 31 and 32, ... exchanged */
    FAULT_WEIGHT_ROTATED,           /* rows of every four in the order 1 2 3 0 */
    FAULT_WEIGHT_THREAD,            /* rows of every other thread have the next row's last block */
    FAULT_WEIGHT_PAST_END,          /* 16 products more: the start of the next row with the start of x */
    FAULT_WEIGHT_TRANSPOSED         /* the [N,K] values read as [K,N] */
};
fwd_override_fn par_fault_weight; /* block and weight kinds */

/* ---- fault_sum.c: right weights, wrong sums ---- */
enum fault_sum_kind {
    FAULT_SUM_F16,       /* sum over blocks kept in binary16 */
    FAULT_SUM_INT16,     /* pairs of (code + 128) * q saturate at 16 bits, as maddubs does */
    FAULT_SUM_ACT_F16,   /* the sum of a sub-block's activations, which the min multiplies, through binary16 */
    FAULT_SUM_CLIPPED,   /* a block's integer dot cut to what binary16 can hold */
    FAULT_SUM_DESCALED,  /* the finished sum, before it is scaled back from E4M3's range, stored as binary16 */
    FAULT_SUM_BIAS_NONE, /* biases */
    FAULT_SUM_BIAS_TWICE,
    FAULT_SUM_BIAS_OTHER_LAYER,
    FAULT_SUM_BIAS_ELEMENT, /* one element's last mantissa bits */
    FAULT_SUM_BIAS_SCALED   /* bias multiplied by the activation's block scale 0 */
};
fwd_override_fn par_fault_sum;

/* ---- fault_store.c: any op of floats, its result changed on the way to memory ---- */
enum fault_store_kind {
    FAULT_STORE_BF16,
    FAULT_STORE_F16,       /* rounded to binary16, cut at 65504 */
    FAULT_STORE_NAN,       /* one value NaN */
    FAULT_STORE_INF,       /* the largest value of a position overflows */
    FAULT_STORE_EXCHANGED, /* rows of neighbouring positions exchanged */
    FAULT_STORE_TAIL,      /* the last 16 values zero */
    FAULT_STORE_FIRST,     /* positions of a call but the first zero */
    FAULT_STORE_SHIFTED,   /* values of a row one place further, the last one first */
    FAULT_STORE_HEADS,     /* heads reversed */
    FAULT_STORE_PREVIOUS,  /* position pos keeps the value of the sequence before */
    FAULT_STORE_NUDGED     /* one value 4 % of the row's largest off */
};
fwd_override_fn par_fault_store;
/* A result that is not written: what the layer below (of q8 taps: the q8 tap before) left in the same buffer. The other
 * op is remembered by an override of its own. */
fwd_override_fn par_fault_stale, par_fault_remember;
enum fwd_op par_fault_source(enum fwd_op op, int *layer);

/* ---- fault_act.c: activations quantised wrongly; the q8 tap is the op ---- */
enum fault_act_kind {
    FAULT_ACT_OTHER_BLOCK, /* scale of the next block */
    FAULT_ACT_PER_ROW,     /* one scale for a row */
    FAULT_ACT_PER_BATCH,   /* one for all positions of a call */
    FAULT_ACT_TIE,         /* ties away from zero */
    FAULT_ACT_TRUNCATED,
    FAULT_ACT_AMAX128, /* amax / 128, the peak cut */
    FAULT_ACT_SUMS,    /* the sums of a block are those of the next; codes and scale right */
    FAULT_ACT_F16,     /* scale through binary16 after quantising */
    FAULT_ACT_CODE,    /* one code one off, sums with it */
    FAULT_ACT_SIGNED   /* the largest value, not the largest magnitude, makes the scale */
};
fwd_override_fn par_fault_act;

/* ---- fault_attention.c ---- */
enum fault_attention_kind {
    FAULT_ATT_GQA,     /* query head h reads KV head h % n */
    FAULT_ATT_NEXT_KV, /* it reads the KV head after its own */
    FAULT_ATT_SEES_NEXT,
    FAULT_ATT_MISSES_SELF,
    FAULT_ATT_WINDOW, /* the last half of the prompt's length only */
    FAULT_ATT_NO_SCALE,
    FAULT_ATT_SCALE_TWICE,
    FAULT_ATT_NO_MAX,  /* F32 exponentials of whole scores; only where their sum overflows or vanishes */
    FAULT_ATT_SUM_F16, /* values summed in binary16 */
    FAULT_ATT_KQ_F16,  /* scores through binary16 */
    FAULT_ATT_SOFTCAP, /* 50 * tanh(score / 50) */
    FAULT_ATT_SPLIT,   /* two halves of the keys, each with its own maximum, added without rescaling */
    FAULT_ATT_TILE,    /* keys 8 to 11 skipped by later queries */
    FAULT_ATT_SINK,    /* exp(0) of no key in the sum */
    FAULT_ATT_P_BF16,  /* weights through bfloat16 */
    FAULT_ATT_MASKED,  /* position 0 has no key: 0 / 0 */
    FAULT_ATT_V_STRIDE /* V rows of head h taken from the next head at odd positions */
};
fwd_override_fn par_fault_attention;

/* ---- fault_cache.c: K and V rows; what is written stays for later calls ---- */
enum fault_cache_kind {
    FAULT_CACHE_STALE,     /* after the prompt row pos holds the row before it */
    FAULT_CACHE_SHIFTED,   /* rows of a call stored one row further up, the first one twice */
    FAULT_CACHE_TRUNCATED, /* binary16 by dropping bits */
    FAULT_CACHE_ULP,       /* one value one binary16 ulp off */
    FAULT_CACHE_HEADS,     /* neighbouring heads exchanged */
    FAULT_CACHE_MOVED,     /* after the prompt two rows exchanged */
    FAULT_CACHE_SCALE,     /* row pos by 127 / 128 */
    FAULT_CACHE_PREVIOUS,  /* row pos of the sequence before stays */
    FAULT_CACHE_BF16,
    FAULT_CACHE_HALVES,   /* halves of each head's row exchanged */
    FAULT_CACHE_LAST_ZERO /* the last row of a call of several positions is zero */
};
fwd_override_fn par_fault_cache;

/* ---- fault_simple.c ---- */
enum fault_norm_kind {
    FAULT_NORM_EPS, /* 1e-5 for small ones, else 1e-6 */
    FAULT_NORM_NO_WEIGHT,
    FAULT_NORM_OTHER_LAYER,
    FAULT_NORM_MEAN,    /* mean subtracted, as LayerNorm does */
    FAULT_NORM_TAIL,    /* the sum of squares without its last 16 values */
    FAULT_NORM_FIRST,   /* scale of the call's first position for all */
    FAULT_NORM_F16,     /* the sum of squares through binary16 */
    FAULT_NORM_ONE_PLUS /* weight + 1, as Gemma does */
};
enum fault_rope_kind {
    FAULT_ROPE_PAIRING,
    FAULT_ROPE_BASE,     /* 10000, or 1000000 where it is 10000 */
    FAULT_ROPE_POSITION, /* one too high */
    FAULT_ROPE_SIGN,
    FAULT_ROPE_MISSING,
    FAULT_ROPE_TWICE,
    FAULT_ROPE_UNSCALED, /* without the factors */
    FAULT_ROPE_HALF,     /* only the first half of the pairs */
    FAULT_ROPE_TABLE,    /* cosines and sines through binary16 */
    FAULT_ROPE_CAPPED,   /* positions from 64 on count as position - 64 */
    FAULT_ROPE_HEAD,     /* pair j of head h turned by the frequency of pair j + h, of the first after the last */
    FAULT_ROPE_REVERSED  /* frequencies in reverse order */
};
enum fault_swiglu_kind {
    FAULT_SWIGLU_SWAPPED,
    FAULT_SWIGLU_GELU,
    FAULT_SWIGLU_NO_SILU,
    FAULT_SWIGLU_NEIGHBOUR, /* gate k with up k ^ 1 */
    FAULT_SWIGLU_FAST,      /* exponential by a power of (1 + x / 1024) */
    FAULT_SWIGLU_CUT        /* gate cut to [-7, 7], as GPT-OSS does */
};
enum fault_residual_kind { FAULT_RESIDUAL_MISSING, FAULT_RESIDUAL_TWICE, FAULT_RESIDUAL_F16, FAULT_RESIDUAL_OTHER };
enum fault_embed_kind {
    FAULT_EMBED_SHIFTED,   /* position i gets the id of position i - 1 */
    FAULT_EMBED_OTHER_ID,  /* another token's */
    FAULT_EMBED_BOS,       /* position 0 gets id 11 */
    FAULT_EMBED_ONE_TOKEN, /* the row of one token with one block wrong */
    FAULT_EMBED_SCALED     /* by sqrt(n_embd), as Gemma does */
};
fwd_override_fn par_fault_norm, par_fault_rope, par_fault_swiglu, par_fault_residual, par_fault_embed;

/* ---- fault_tap.c: taps that show something else; what reads them gets the true values back ---- */
enum fault_tap_kind {
    FAULT_TAP_PRE_BIAS,
    FAULT_TAP_LAST, /* every position shows the call's last one */
    FAULT_TAP_HEADS /* heads reversed */
};
fwd_override_fn par_fault_tap, par_fault_restore;
/* The op whose builtin reads what the op's tap shows, and nothing else does; FWD_OP_COUNT: none. */
enum fwd_op par_fault_tap_reader(enum fwd_op op);

/* ---- fault_shared.c: what all paths share ---- */
enum fault_config_kind {
    FAULT_CONFIG_GQA,
    FAULT_CONFIG_EPS,
    FAULT_CONFIG_ROPE_BASE,
    FAULT_CONFIG_ROPE_PAIRING,
    FAULT_CONFIG_ROPE_HALF,
    FAULT_CONFIG_ROPE_UNSCALED,
    FAULT_CONFIG_KV_HEAD /* one query head reads the next KV head */
};
enum fault_binding_kind {
    FAULT_BIND_OTHER_LAYER, /* the op's weight is the next layer's of the same shape and type */
    FAULT_BIND_TWIN,        /* K and V, gate and up, the two norms exchanged */
    FAULT_BIND_NO_BIAS,
    FAULT_BIND_BIAS_OTHER_LAYER,
    FAULT_BIND_TIED /* the head is the embedding although the file has a head */
};
fwd_config_hook par_fault_config;
fwd_model_hook par_fault_binding;

#endif
