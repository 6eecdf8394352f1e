/* engine/core/types.h: the names of ops, of number formats, and of what an op promises about its arithmetic. */
#ifndef ENGINE_CORE_TYPES_H
#define ENGINE_CORE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- taps --------------------------------------------------------------------------------------------------------
 * Ops in the order in which a layer computes them. The value of each is a tap of the same name. `in` lists the views an
 * override receives, in this order, and what the op computes from them. */
enum fwd_op {
    FWD_OP_INP_EMBD = 0, /* row of the embedding, decoded.            in: token ids (I32 [n_pos]) */
    FWD_OP_ATTN_NORM, /* rmsnorm(in0) * weight.                    in: residual (inp_embd or l_out of the layer below)
                       */
    FWD_OP_ATTN_NORM_Q8, /* attn_norm as the matmul reads it.         in: attn_norm. Absent where activations stay float
                          */
    FWD_OP_QCUR,         /* wq . in0 + bq.                            in: attn_norm_q8, or attn_norm if there is none */
    FWD_OP_KCUR,         /* wk . in0 + bk.                            in: the same */
    FWD_OP_VCUR,         /* wv . in0 + bv.                            in: the same */
    FWD_OP_QCUR_ROPE,    /* rotation of in0 by position.              in: Qcur */
    FWD_OP_KCUR_ROPE,    /*                                           in: Kcur */
    FWD_OP_K_CACHE,      /* K rows 0 .. pos0+n_pos-1 of this layer as attention reads them.  in: Kcur_rope */
    FWD_OP_V_CACHE,      /* V rows likewise.                          in: Vcur */
    FWD_OP_KQV_OUT,      /* causal attention, heads concatenated.     in: Qcur_rope, K_cache, V_cache */
    FWD_OP_KQV_OUT_Q8,   /*                                           in: kqv_out */
    FWD_OP_ATTN_OUT,     /* wo . in0.                                 in: kqv_out_q8, or kqv_out */
    FWD_OP_FFN_INP,      /* in0 + in1.                                in: attn_out, residual */
    FWD_OP_FFN_NORM,     /* rmsnorm(in0) * weight.                    in: ffn_inp */
    FWD_OP_FFN_NORM_Q8,  /*                                           in: ffn_norm */
    FWD_OP_FFN_GATE,     /* gate . in0.                               in: ffn_norm_q8, or ffn_norm */
    FWD_OP_FFN_UP,       /* up . in0.                                 in: the same */
    FWD_OP_FFN_SWIGLU,   /* silu(in0) * in1.                          in: ffn_gate, ffn_up */
    FWD_OP_FFN_SWIGLU_Q8,  /*                                           in: ffn_swiglu */
    FWD_OP_FFN_OUT,        /* down . in0.                               in: ffn_swiglu_q8, or ffn_swiglu */
    FWD_OP_L_OUT,          /* in0 + in1.                                in: ffn_out, ffn_inp */
    FWD_OP_RESULT_NORM,    /* rmsnorm(in0) * weight.                    in: l_out of the last layer */
    FWD_OP_RESULT_NORM_Q8, /* absent when the head computes in float.   in: result_norm */
    FWD_OP_RESULT_OUTPUT,  /* output . in0.                             in: result_norm_q8, or result_norm */
    FWD_OP_COUNT
};

/* llama.cpp's tap name without the layer ("attn_norm", "Qcur", ...); _q8 and _cache are ours. */
const char *fwd_op_name(enum fwd_op op);
/* FWD_OP_COUNT for an unknown name. */
enum fwd_op fwd_op_by_name(const char *name);
/* False for inp_embd, result_norm, result_norm_q8, result_output: their layer is -1. */
bool fwd_op_in_layer(enum fwd_op op);

enum fwd_dtype {
    FWD_F32 = 0,
    FWD_F64 = 1,
    FWD_F16 = 2,
    FWD_I32 = 3,
    FWD_Q8_K =
        4, /* blocks of 256: { f32 d; i8 q[256]; i16 sum16[16]; } 292 bytes, sum16[j] = q[16j] + .. + q[16j+15] */
    FWD_Q8_32 = 5, /* blocks of 32:  { f32 d; i32 sum; i8 q[32]; }         40 bytes, sum = q[0] + .. + q[31] */
    FWD_BF16 = 6,
    FWD_E4M3 = 7 /* a whole row: { f32 d; u8 code[n]; } 4 + n bytes, value = d * code; n a multiple of 4. Code: sign, 4
                  * bits of exponent (bias 7), 3 of mantissa; no infinity, NaN is 0x7f, the largest 448 */
};
size_t fwd_dtype_row_bytes(enum fwd_dtype dtype, int64_t n_values);
const char *fwd_dtype_name(enum fwd_dtype dtype);

/* ---- declared numerics, as plain data (design: numerics.md, section 1) ------------------------------------------- */
enum fwd_accumulator {
    FWD_ACC_F32 = 0,
    FWD_ACC_F64 = 1,
    FWD_ACC_EXACT = 2,
    /* Tensor cores: chain_block exact products and the F32 sum so far are added in one step: each of them cut toward
     * zero to a multiple of 2^(e - cut_bits), 2^e the power of two in the largest one, and their sum cut to F32. With
     * `promote`: after so many values the sum so far is added to an F32 total, to the nearest, and begins again. The
     * whole of K may be split into parts that go on alone; they are joined in F32 in the chain_extra additions. */
    FWD_ACC_TENSOR = 3
};
enum fwd_act_rule {
    FWD_ACT_NONE = 0, /* inputs used as they are */
    FWD_ACT_AMAX127 =
        1, /* per block: d = amax/127 and id = 127/amax (F32 divisions); q = x*id rounded half to even, cut
            * to [-127, 127]; amax < 2^-100: d = 0, q = 0; a block with a NaN or infinity: d = NaN, q = 0 */
    FWD_ACT_AMAX127_AWAY = 2, /* the same, halves rounded away from zero */
    FWD_ACT_NEAREST = 3,      /* to BF16 or F16, halves to even, overflow to infinity; every BF16 NaN is 0x7fff */
    FWD_ACT_AMAX448 = 4,      /* to E4M3, per row: d = amax/448 and id = 448/amax (F32 divisions); code = x*id to the
                               * nearest, halves to even, cut to +-448; amax < 2^-100: d = 0, codes 0; a row with a NaN or
                               * infinity: d = NaN, codes 0 */
    /* Rules of other engines, for what is judged of them. The same for all: F32 arithmetic; a NaN counts for nothing
     * and its q is 0. The value of the block is d as stored; where the weights have minima and d is a binary16, the
     * block's sum is stored in binary16 too and may differ from d * (q[0] + q[1] + ..). Codes are cut to [-128, 127].
     */
    FWD_ACT_SIGNED127 = 5, /* llama.cpp's Q8_K: id = -127/m, m the value of the largest magnitude, the first of several;
                            * q = x*id, halves to even, at most 127; d = 1/id */
    FWD_ACT_HALF127 = 6,   /* its Q8_0 and Q8_1 with AVX: d = amax/127 rounded to binary16, id = 127/amax; q = x*id,
                            * halves to even; sum = d * (q[0] + ..), with d before it is rounded, to binary16 */
    FWD_ACT_HALF127_AWAY = 7,    /* the same in plain C: id = 1/(amax/127), halves away from zero */
    FWD_ACT_HALF127_DIVIDED = 8, /* CUDA's Q8_1 for few columns: d = amax/127 to binary16; q = x/(amax/127), halves away
                                  * from zero; sum = x[0] + .., as they came, to binary16 */
    FWD_ACT_INVERSE127 = 9 /* CUDA's for many columns, where its scale is an F32: id = 127/amax; q = x*id, halves away
                            * from zero; d = 1/id */
};
struct fwd_numerics {
    uint32_t size;
    enum fwd_dtype act;         /* format of the input as the op reads it: F32, F64, F16, Q8_K, Q8_32, BF16, E4M3 */
    enum fwd_act_rule act_rule; /* how it was made from the float tap before it */
    enum fwd_accumulator accumulator;
    int chain_block;     /* K values that one step of the longest chain covers: the chain has ... */
    int chain_per_block; /* ... ceil(K / chain_block) * chain_per_block + chain_extra inexact additions */
    int chain_extra;
    int term_roundings; /* of each term before it is added: the product of its scales, an integer sum above 2^24. That
                         * of the term's own product, where the steps are not fused, comes on top */
    /* The order of that chain, for a second look at a result outside its bound: term i goes to partial sum i mod lanes,
     * each in the order of i; the partial sums are added as a tree of halves ((l, l + lanes/2), ...). Every `segment`
     * terms (0: only at the end) that total is added to the sum so far and the lanes start again from 0. lanes 0: the
     * order is not declared. Terms are block products (and a min's after its block's) or single products. */
    int lanes, segment;
    /* Attention has a second kind of sum, over the keys: of the weights as above with these; of weighted values with
     * one lane and the same segments. Segments have their own maximum and are joined in order, rescaled. */
    int key_lanes, key_segment;
    int final_roundings;                                   /* c: bias, store, scaling of the finished sum */
    bool fma;                                              /* chain steps are fused */
    bool ftz;                                              /* denormals flushed */
    enum fwd_dtype store;                                  /* type of the stored result */
    float exp_ulp, div_ulp, sqrt_ulp, sincos_ulp, pow_ulp; /* accuracy of the functions used; 0: not used */
    enum fwd_accumulator angle;                            /* RoPE: precision of position * frequency */
    bool dequantised;  /* with a Q8 act: the op multiplies d * q, rounded to `store`, by decoded weights; its terms are
                        * single products. Else they are exact integer dots of whole blocks */
    bool split_blocks; /* such a dot is added in parts, each of them rounded: the parts are exact, their magnitudes up
                        * to those of its single products */
    bool repeated_angle;   /* angles of a position: each the one before times theta^(-2/d), a pow of pow_ulp */
    int cut_bits, promote; /* FWD_ACC_TENSOR */
    /* What the other operand is rounded to first, F32: nothing. Products: the decoded weight, BF16 or (by the row, rule
     * FWD_ACT_AMAX448) E4M3. Attention: q, F16; the weights of the keys, made against the largest score so far, are
     * rounded to the same before they meet the values, and the latter sum is a FWD_ACC_TENSOR one over the keys as the
     * scores' is over the head's values. Attention in F32: q, and the weights of the keys after they have been divided
     * by their sum. */
    enum fwd_dtype operand;
};

#endif
