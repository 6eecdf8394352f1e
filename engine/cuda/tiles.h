/* engine/cuda/tiles.h: a quantised matrix as the CUDA kernels read it. The file's numbers in another order: nothing is
 * rounded, added or lost, and unpacking gives the file's bytes back.
 *
 * Rows go in strips of 8 (the last filled up with zero rows), columns in superblocks of 256 (likewise zero columns). A
 * *tile* is one strip by one superblock; tile (s, b) starts at (s * n_sb + b) * fwd_tile_bytes. A lane of a warp is
 * (p, r): part p = lane / 8 of the superblock, 64 values, of row r = lane % 8. A tile is a sequence of planes, each an
 * array [unit][row r] of entries of the size given, so that the 8 lanes of one p read neighbouring entries. Element e
 * of a superblock is value 256 b + e of the row; e = 64 p + 4 i + c is byte c of *word* i (0 .. 15) of part p.
 *
 *   nib  8 units (u = 2p + h) of 16 bytes: byte j: low nibble = low 4 bits of element 64p + 16h + j, high nibble = of
 *        element 64p + 32 + 16h + j. So words 0-7 of a part are the low nibbles of its 8 stored words, 8-15 the high.
 *   q8   16 units (u = 4p + h) of 16 bytes: byte j = element 64p + 16h + j, signed
 *   hi2  4 units (p) of 16 bytes, words k = 0..3: bits 8c + 2f, 8c + 2f + 1 of word k are two bits of element
 *        64p + 4i + c with i = 4f + k
 *   hi1  4 units (p) of 8 bytes, words k = 0..1: bit 8c + f of word k is one bit of element 64p + 4i + c with i = 2f +
 * k sc, d, m as in the table
 *
 *   type   planes, in this order                                                              value of an element
 *   Q4_K   nib; sc: 1 unit of 16 bytes {f16 d, f16 dmin, 96 bits: at bit 24p of them          d*sc*n - dmin*m
 *          sc[2p] | sc[2p+1] << 6 | m[2p] << 12 | m[2p+1] << 18}
 *   Q5_K   nib; hi1 = bit 4; sc as Q4_K                                                       d*sc*n - dmin*m
 *   Q6_K   nib; hi2 = bits 4, 5; sc: 4 units (p) of 4 bytes, i8 of groups of 16: 4p .. 4p+3;  d*sc*(n - 32)
 *          d: 1 unit of 2 bytes, f16
 *   Q2_K   hi2 = n; sc: 4 units (p) of 4 bytes, sc | m << 4 of groups 4p .. 4p+3;             d*sc*n - dmin*m
 *          d: 1 unit of 4 bytes {f16 d, f16 dmin}
 *   Q3_K   hi2 = low two bits; hi1 = hmask bit; sc: 4 units (p) of 4 bytes, i8 (sc - 32);     d*sc*(n - (hi1 ? 0 : 4))
 *          d: 1 unit of 2 bytes, f16
 *   Q8_0   q8; d: 4 units (p) of 4 bytes, f16 of blocks of 32: 2p, 2p+1                       d*q
 *   Q4_0   nib; d as Q8_0                                                                     d*(n - 8)
 *   Q4_1   nib; d as Q8_0; m likewise                                                         d*n + m
 *   Q5_0   nib; hi1 = bit 4; d                                                                d*(n - 16)
 *   Q5_1   nib; hi1 = bit 4; d; m                                                             d*n + m
 * Little-endian. Every plane starts on 16 bytes. */
#ifndef ENGINE_CUDA_TILES_H
#define ENGINE_CUDA_TILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FWD_TILE_ROWS = 8, FWD_TILE_COLS = 256 };

/* Bytes of one tile of a ggml type; 0 for a type that has no tiles. */
size_t fwd_tile_bytes(uint32_t type);
/* Bytes of a whole matrix: ceil(n_rows / 8) * ceil(n_cols / 256) tiles. */
size_t fwd_tiles_bytes(uint32_t type, int64_t n_rows, int64_t n_cols);
/* Strips strip0 .. strip0 + n_strips - 1 of a matrix in file layout (src: row 0 of the matrix, row_bytes apart) into
 * dst (the first of these strips). n_cols is a multiple of the type's block. */
void fwd_tiles_pack(uint32_t type, const uint8_t *src, int64_t row_bytes, int64_t n_rows, int64_t n_cols,
                    int64_t strip0, int64_t n_strips, uint8_t *dst);
/* The way back, row `row` alone: tiles is the whole packed matrix, dst row_bytes bytes of file layout. */
void fwd_tiles_unpack_row(uint32_t type, const uint8_t *tiles, int64_t row, int64_t n_cols, uint8_t *dst);

#ifdef __cplusplus
}
#endif
#endif
