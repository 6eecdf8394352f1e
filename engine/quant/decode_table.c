/* engine/quant/decode_table.c: type id -> decoder. */
#include "quant/quant.h"

#include "format/gguf.h"

#include <stddef.h>

fwd_decode_fn *fwd_decode_for(uint32_t type) {
    static fwd_decode_fn *const decoders[] = {
        [FWD_TYPE_F32] = fwd_decode_f32,   [FWD_TYPE_F16] = fwd_decode_f16,   [FWD_TYPE_BF16] = fwd_decode_bf16,
        [FWD_TYPE_Q4_0] = fwd_decode_q4_0, [FWD_TYPE_Q4_1] = fwd_decode_q4_1, [FWD_TYPE_Q5_0] = fwd_decode_q5_0,
        [FWD_TYPE_Q5_1] = fwd_decode_q5_1, [FWD_TYPE_Q8_0] = fwd_decode_q8_0, [FWD_TYPE_Q2_K] = fwd_decode_q2_k,
        [FWD_TYPE_Q3_K] = fwd_decode_q3_k, [FWD_TYPE_Q4_K] = fwd_decode_q4_k, [FWD_TYPE_Q5_K] = fwd_decode_q5_k,
        [FWD_TYPE_Q6_K] = fwd_decode_q6_k};
    return type < sizeof decoders / sizeof *decoders ? decoders[type] : NULL;
}
