/* harness/spec/spec_decode.h: the harness's own decoders of the 13 block types (numerics.md, section 3.1).
 * One unpacker a type gives the integer parts of a block; the F32 value and the integer dot both come from those. */
#ifndef HARNESS_SPEC_SPEC_DECODE_H
#define HARNESS_SPEC_SPEC_DECODE_H

#include <stdbool.h>
#include <stdint.h>

/* A block of n = 32 or 256 quantised values: element i is worth (d * scale[i/16]) * q[i] - (dmin * min[i/16]).
 * Formats with an added minimum m have dmin = -m and min = 1. */
struct spec_block {
    float d, dmin;
    int8_t q[256];
    int16_t scale[16], min[16];
};

/* Values in a block: 1, 32 or 256; 0: a type that is not decoded here. */
int par_decode_block_values(uint32_t type);
bool par_decode_has_min(uint32_t type);
/* Bytes of a row of n values; 0 when the type is not decoded or n is no multiple of its block. */
int64_t par_decode_row_bytes(uint32_t type, int64_t n);
/* Block number `index` of a row of a block type (block_values > 1). */
void par_decode_block(uint32_t type, const uint8_t *row, int64_t index, struct spec_block *out);
/* A row to F32. Block types: d*scale rounded, dmin*min rounded, product rounded, difference rounded (section 3.1,
 * "reference dequant order"); F16 and BF16 exactly. */
void par_decode_row(uint32_t type, const uint8_t *row, float *dst, int64_t n);

/* binary16 to F32 (exact) and back (round to nearest even, overflow to infinity), in integer arithmetic. */
float par_f16_to_f32(uint16_t h);
uint16_t par_f32_to_f16(float x);

#endif
