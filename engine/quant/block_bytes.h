/* engine/quant/block_bytes.h: fields of a block, read at any alignment; private to engine/quant. */
#ifndef ENGINE_QUANT_BLOCK_BYTES_H
#define ENGINE_QUANT_BLOCK_BYTES_H

#include "core/half.h"

#include <stdint.h>

static inline uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static inline float load_f16(const uint8_t *p) {
    return fwd_f16_to_f32(load_u16(p));
}

/* The 12 bytes that hold eight 6-bit scales and eight 6-bit minima in Q4_K and Q5_K:
 *
 *   byte 0..3    bits 0-5: scale 0..3     bits 6-7: high bits of scale 4..7
 *   byte 4..7    bits 0-5: min 0..3       bits 6-7: high bits of min 4..7
 *   byte 8..11   bits 0-3: low bits of scale 4..7      bits 4-7: low bits of min 4..7 */
static inline void unpack_scale_min(const uint8_t b[12], uint8_t scale[8], uint8_t min[8]) {
    for (int j = 0; j < 4; j++) {
        scale[j] = b[j] & 63;
        min[j] = b[j + 4] & 63;
        scale[j + 4] = (uint8_t)((b[j + 8] & 15) | (b[j] >> 6) << 4);
        min[j + 4] = (uint8_t)(b[j + 8] >> 4 | (b[j + 4] >> 6) << 4);
    }
}

#endif
