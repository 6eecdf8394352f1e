/* engine/cuda/tc_numerics.c: what the tensor-core ops promise. The steps and the bits are those that test_cuda_tc's
 * probes see on the card (Hopper), and for older cards what is published of them. */
#include "cuda/kernels_tc.h"

/* BF16 and binary16: 16 products a step and 25 bits on Hopper, 8 and 24 before. */
static void fill_tensor(int major, struct fwd_numerics *n) {
    n->accumulator = FWD_ACC_TENSOR;
    n->chain_block = major >= 9 ? 16 : 8;
    n->chain_per_block = 1;
    n->cut_bits = major >= 9 ? 25 : 24;
}

void cuda_tc_numerics_matmul(int major, enum cuda_form form, bool fast, bool has_bias, struct fwd_numerics *out) {
    bool bf16 = form == CUDA_FORM_BF16;
    enum fwd_dtype format = bf16 ? FWD_BF16 : FWD_E4M3;
    struct fwd_numerics n = {.size = sizeof n, .act = format, .operand = format, .store = FWD_F32};
    n.act_rule = bf16 ? FWD_ACT_NEAREST : FWD_ACT_AMAX448;
    fill_tensor(major, &n);
    n.chain_extra = 32;                            /* parts of a split of k */
    n.final_roundings = (bf16 ? 0 : 2) + has_bias; /* two scales */
    if (!bf16) {
        n.chain_block = 32;
        n.cut_bits = 13;
        n.promote = fast ? 0 : 128;
    }
    *out = n;
}

void cuda_tc_numerics_convert(enum cuda_form form, struct fwd_numerics *out) {
    bool bf16 = form == CUDA_FORM_BF16;
    struct fwd_numerics n = {.size = sizeof n, .act = FWD_F32, .accumulator = FWD_ACC_EXACT};
    n.store = bf16 ? FWD_BF16 : FWD_E4M3;
    n.act_rule = bf16 ? FWD_ACT_NEAREST : FWD_ACT_AMAX448;
    *out = n;
}

void cuda_tc_numerics_attention(int major, struct fwd_numerics *out) {
    struct fwd_numerics n = {.size = sizeof n, .act = FWD_F32, .operand = FWD_F16, .store = FWD_F32};
    fill_tensor(major, &n);
    n.key_lanes = 4;
    n.key_segment = 64;
    n.final_roundings = 2; /* the sum's reciprocal, and times it */
    n.exp_ulp = 4;         /* 2^x: 2; its argument (s - m) c: 2 more, of a constant rounded twice */
    n.div_ulp = 0.5f;
    *out = n;
}
