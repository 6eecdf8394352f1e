/* engine/quant/quant.h: block formats to F32 (one file per format holds layout and decoder).
 *
 * Decoding is bit-identical to the `gguf` Python package's dequantize: every product and sum is a separate F32
 * rounding, in its order (no FMA). Reads exactly n / block_values * block_bytes bytes of src, any alignment. */
#ifndef ENGINE_QUANT_QUANT_H
#define ENGINE_QUANT_QUANT_H

#include <stdint.h>

/* n values (a multiple of the block) from src to dst. */
typedef void fwd_decode_fn(const void *src, float *dst, int64_t n);

fwd_decode_fn fwd_decode_f32, fwd_decode_f16, fwd_decode_bf16, fwd_decode_q4_0, fwd_decode_q4_1, fwd_decode_q5_0,
    fwd_decode_q5_1, fwd_decode_q8_0, fwd_decode_q2_k, fwd_decode_q3_k, fwd_decode_q4_k, fwd_decode_q5_k,
    fwd_decode_q6_k;

/* NULL when the type cannot be decoded. */
fwd_decode_fn *fwd_decode_for(uint32_t type);

#endif
