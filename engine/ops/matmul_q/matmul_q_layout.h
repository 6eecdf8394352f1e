/* engine/ops/matmul_q/matmul_q_layout.h: the interleaved layout that the vector variants read, and the way back.
 *
 * A block of a strip holds the same bits as `rows` blocks of the file, in planes, so that one vector load gives the
 * same field of every row:
 *
 *   halves   n_half x [rows] u16     d, then dmin (or m)
 *   words    n_word x [rows] u32     scales, then values
 *
 * In a word, byte i belongs to value 4g + i of a group g of four consecutive values. Per format:
 *   Q4_0 Q4_1   4 words q: group g in the low nibbles, values 16 + 4g.. in the high ones (g = 0..3)
 *   Q5_0 Q5_1   1 word of fifth bits (bits 2g, 2g + 1 of byte i: low, high nibble's), then q as Q4_0
 *   Q8_0        8 words
 *   K-quants    the file's scale bytes (3 words of packed 6-bit ones, 4 words of 8-bit ones), then for each quarter of
 * 64 values, where "low" are its values 0..31 and "high" 32..63 (g = 0..7): q   8 words: group g, low and high nibble
 * Q4_K Q5_K Q6_K c2  4 words: bits 4(g % 2) .. + 3 of word g / 2: two bits of low, two of high   Q2_K Q3_K Q6_K c1  2
 * words: bits 2(g % 4), + 1 of word g / 4: one bit of low, one of high      Q3_K Q5_K */
#ifndef ENGINE_OPS_MATMUL_Q_LAYOUT_H
#define ENGINE_OPS_MATMUL_Q_LAYOUT_H

#include <stdint.h>

enum { FWD_LAYOUT_MAX_WORDS = 52, FWD_LAYOUT_MAX_BYTES = 210 };

struct fwd_layout {
    int n_half, n_word;
    int block_bytes; /* in the file: 2 n_half + 4 n_word */
    void (*split)(const uint8_t *src, uint16_t *half, uint32_t *word);
    void (*join)(const uint16_t *half, const uint32_t *word, uint8_t *dst);
};

/* NULL for a type that matmul_q does not serve. */
const struct fwd_layout *fwd_layout_for(uint32_t weight_type);

/* Writes one row's block, or zeros when src is NULL, into lane `row` of a packed block of `rows` rows. */
void fwd_layout_pack(const struct fwd_layout *l, int rows, int row, const uint8_t *src, uint8_t *packed_block);
/* The inverse: block_bytes bytes to dst. */
void fwd_layout_unpack(const struct fwd_layout *l, int rows, int row, const uint8_t *packed_block, uint8_t *dst);

#endif
