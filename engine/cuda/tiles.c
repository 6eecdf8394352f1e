/* engine/cuda/tiles.c: a quantised matrix from the file's layout into tiles.h's and back. A superblock of one row moves
 * word by word: only bits change places. Little-endian, as the file. */
#include "cuda/tiles.h"

#include "format/gguf.h"

#include <string.h>

enum { ROWS = FWD_TILE_ROWS, COLS = FWD_TILE_COLS };
static const uint32_t BITS = 0x01010101u, PAIRS = 0x03030303u, NIBBLES = 0x0f0f0f0fu;

/* Bytes of the planes of a tile. */
enum { NIB = 8 * ROWS * 16, Q8 = 16 * ROWS * 16, HI2 = 4 * ROWS * 16, HI1 = 4 * ROWS * 8, SC16 = ROWS * 16 };
enum { WORDS4 = 4 * ROWS * 4 }; /* four words a row: sc of groups of 16, or the halves of 8 blocks of 32 */

static uint32_t load_word(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

static void store_word(uint8_t *p, uint32_t w) {
    memcpy(p, &w, sizeof w);
}

/* Unit u of a plane whose entries have n bytes, row r. */
static uint8_t *at(uint8_t *plane, int u, int r, int n) {
    return plane + (u * ROWS + r) * n;
}

static const uint8_t *from(const uint8_t *plane, int u, int r, int n) {
    return plane + (u * ROWS + r) * n;
}

/* ---- planes of a superblock of 256 in the file ---- */

/* Q4_K, Q5_K: the file's byte 32p + l holds elements 64p + l and 64p + 32 + l, as the plane does. */
static void put_nib(const uint8_t *qs, uint8_t *plane, int r) {
    for (int u = 0; u < 8; u++)
        memcpy(at(plane, u, r, 16), qs + 16 * u, 16);
}

static void get_nib(const uint8_t *plane, int r, uint8_t *qs) {
    for (int u = 0; u < 8; u++)
        memcpy(qs + 16 * u, from(plane, u, r, 16), 16);
}

/* Q6_K's ql: element 128h + 32t + l in byte 64h + 32 (t % 2) + l, the low nibble for t < 2. */
static void put_nib_q6(const uint8_t *ql, uint8_t *plane, int r) {
    for (int u = 0; u < 8; u++) {
        const uint8_t *src = ql + 64 * (u >> 2) + 16 * (u & 1);
        uint8_t *dst = at(plane, u, r, 16);
        int shift = (u & 2) * 2;
        for (int k = 0; k < 16; k += 4)
            store_word(dst + k, (load_word(src + k) >> shift & NIBBLES) | (load_word(src + 32 + k) >> shift & NIBBLES)
                                                                              << 4);
    }
}

static void get_nib_q6(const uint8_t *plane, int r, uint8_t *ql) {
    for (int u = 0; u < 8; u += (u & 1) ? 3 : 1) { /* the units of even parts; those of odd parts are two further */
        const uint8_t *even = from(plane, u, r, 16), *odd = from(plane, u + 2, r, 16);
        uint8_t *dst = ql + 64 * (u >> 2) + 16 * (u & 1);
        for (int k = 0; k < 16; k += 4) {
            uint32_t a = load_word(even + k), b = load_word(odd + k);
            store_word(dst + k, (a & NIBBLES) | (b & NIBBLES) << 4);
            store_word(dst + 32 + k, (a >> 4 & NIBBLES) | (b & ~NIBBLES));
        }
    }
}

/* Q6_K's qh, Q2_K's and Q3_K's qs: element 128h + 32t + l at bits 2t of byte 32h + l. */
static void put_hi2(const uint8_t *bytes, uint8_t *plane, int r) {
    for (int p = 0; p < 4; p++)
        for (int k = 0; k < 4; k++) {
            const uint8_t *src = bytes + 32 * (p >> 1) + 4 * k;
            uint32_t word = 0;
            for (int f = 0; f < 4; f++)
                word |= (load_word(src + 16 * (f & 1)) >> (4 * (p & 1) + 2 * (f >> 1)) & PAIRS) << 2 * f;
            store_word(at(plane, p, r, 16) + 4 * k, word);
        }
}

static void get_hi2(const uint8_t *plane, int r, uint8_t *bytes) {
    memset(bytes, 0, 64);
    for (int p = 0; p < 4; p++)
        for (int k = 0; k < 4; k++) {
            uint32_t word = load_word(from(plane, p, r, 16) + 4 * k);
            for (int f = 0; f < 4; f++) {
                uint8_t *dst = bytes + 32 * (p >> 1) + 4 * k + 16 * (f & 1);
                store_word(dst, load_word(dst) | (word >> 2 * f & PAIRS) << (4 * (p & 1) + 2 * (f >> 1)));
            }
        }
}

/* Q5_K's qh and Q3_K's hmask: the bit of element 32s + l is bit s of byte l. */
static void put_hi1(const uint8_t *bytes, uint8_t *plane, int r) {
    for (int p = 0; p < 4; p++)
        for (int k = 0; k < 2; k++) {
            uint32_t word = 0;
            for (int f = 0; f < 8; f++)
                word |= (load_word(bytes + 8 * (f & 3) + 4 * k) >> (2 * p + (f >> 2)) & BITS) << f;
            store_word(at(plane, p, r, 8) + 4 * k, word);
        }
}

static void get_hi1(const uint8_t *plane, int r, uint8_t *bytes) {
    memset(bytes, 0, 32);
    for (int p = 0; p < 4; p++)
        for (int k = 0; k < 2; k++) {
            uint32_t word = load_word(from(plane, p, r, 8) + 4 * k);
            for (int f = 0; f < 8; f++) {
                uint8_t *dst = bytes + 8 * (f & 3) + 4 * k;
                store_word(dst, load_word(dst) | (word >> f & BITS) << (2 * p + (f >> 2)));
            }
        }
}

/* Bytes 4p .. 4p + 3 of a row to unit p. */
static void put_words4(const uint8_t *bytes, uint8_t *plane, int r) {
    for (int p = 0; p < 4; p++)
        memcpy(at(plane, p, r, 4), bytes + 4 * p, 4);
}

static void get_words4(const uint8_t *plane, int r, uint8_t *bytes) {
    for (int p = 0; p < 4; p++)
        memcpy(bytes + 4 * p, from(plane, p, r, 4), 4);
}

/* Q4_K's and Q5_K's first 16 bytes: d, dmin and the 12 bytes with eight 6-bit scales s and eight mins m:
 * byte j: s[j] | top bits of s[j + 4];  byte 4 + j: m[j] | top bits of m[j + 4];  byte 8 + j: low nibbles of s[j + 4],
 * m[j + 4]. */
static void put_sc6(const uint8_t *head, uint8_t *plane, int r) {
    const uint8_t *b = head + 4;
    uint8_t s[8], m[8];
    for (int j = 0; j < 4; j++) {
        s[j] = b[j] & 63;
        m[j] = b[j + 4] & 63;
        s[j + 4] = (uint8_t)((b[j + 8] & 15) | b[j] >> 6 << 4);
        m[j + 4] = (uint8_t)(b[j + 8] >> 4 | b[j + 4] >> 6 << 4);
    }
    uint32_t v[4];
    for (int p = 0; p < 4; p++)
        v[p] = s[2 * p] | (uint32_t)s[2 * p + 1] << 6 | (uint32_t)m[2 * p] << 12 | (uint32_t)m[2 * p + 1] << 18;
    uint8_t *dst = at(plane, 0, r, 16);
    memcpy(dst, head, 4);
    store_word(dst + 4, v[0] | v[1] << 24);
    store_word(dst + 8, v[1] >> 8 | v[2] << 16);
    store_word(dst + 12, v[2] >> 16 | v[3] << 8);
}

static void get_sc6(const uint8_t *plane, int r, uint8_t *head) {
    const uint8_t *src = from(plane, 0, r, 16);
    uint32_t a = load_word(src + 4), b = load_word(src + 8), c = load_word(src + 12);
    uint32_t v[4] = {a, a >> 24 | b << 8, b >> 16 | c << 16, c >> 8};
    uint32_t s[8], m[8];
    for (int p = 0; p < 4; p++) {
        s[2 * p] = v[p] & 63;
        s[2 * p + 1] = v[p] >> 6 & 63;
        m[2 * p] = v[p] >> 12 & 63;
        m[2 * p + 1] = v[p] >> 18 & 63;
    }
    memcpy(head, src, 4);
    for (int j = 0; j < 4; j++) {
        head[4 + j] = (uint8_t)(s[j] | s[j + 4] >> 4 << 6);
        head[8 + j] = (uint8_t)(m[j] | m[j + 4] >> 4 << 6);
        head[12 + j] = (uint8_t)((s[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

/* Q3_K's 12 bytes with sixteen 6-bit scales, made signed: byte j % 8 holds the low nibbles of j and j + 8, byte
 * 8 + j % 4 the top bits, 2 (j / 4) up. */
static void put_sc_q3(const uint8_t *s, uint8_t *plane, int r) {
    for (int j = 0; j < 16; j++) {
        int low = s[j & 7] >> (j & 8) / 2 & 15, high = s[8 + (j & 3)] >> 2 * (j >> 2) & 3;
        at(plane, j >> 2, r, 4)[j & 3] = (uint8_t)((low | high << 4) - 32);
    }
}

static void get_sc_q3(const uint8_t *plane, int r, uint8_t *s) {
    memset(s, 0, 12);
    for (int j = 0; j < 16; j++) {
        int scale = (from(plane, j >> 2, r, 4)[j & 3] + 32) & 63;
        s[j & 7] = (uint8_t)(s[j & 7] | (scale & 15) << (j & 8) / 2);
        s[8 + (j & 3)] = (uint8_t)(s[8 + (j & 3)] | scale >> 4 << 2 * (j >> 2));
    }
}

/* ---- blocks of 32: block b is half b % 2 of part b / 2 ---- */

/* qs byte j: elements j and j + 16 of the block, which are byte j of units h = 0 and 1, the low nibbles in the even
 * blocks and the high ones in the odd. The tile's bytes must be zero in the other half, or that half written. */
static void put_nib32(const uint8_t *qs, uint8_t *plane, int b, int r) {
    int shift = (b & 1) * 4;
    for (int h = 0; h < 2; h++) {
        uint8_t *dst = at(plane, (b & ~1) + h, r, 16);
        for (int k = 0; k < 16; k += 4) {
            uint32_t keep = load_word(dst + k) & ~(NIBBLES << shift);
            store_word(dst + k, keep | (load_word(qs + k) >> 4 * h & NIBBLES) << shift);
        }
    }
}

static void get_nib32(const uint8_t *plane, int b, int r, uint8_t *qs) {
    int shift = (b & 1) * 4;
    const uint8_t *low = from(plane, b & ~1, r, 16), *high = from(plane, (b & ~1) + 1, r, 16);
    for (int k = 0; k < 16; k += 4)
        store_word(qs + k, (load_word(low + k) >> shift & NIBBLES) | (load_word(high + k) >> shift & NIBBLES) << 4);
}

/* qh: bit e of the word belongs to element e; four of them go to one bit of four bytes, and back. */
static void put_hi32(const uint8_t *qh, uint8_t *plane, int b, int r) {
    uint32_t bits = load_word(qh);
    for (int k = 0; k < 2; k++) {
        uint8_t *dst = at(plane, b >> 1, r, 8) + 4 * k;
        uint32_t word = load_word(dst) & ~(NIBBLES << 4 * (b & 1));
        for (int f = 0; f < 4; f++)
            word |= ((bits >> (8 * f + 4 * k) & 15) * 0x00204081u & BITS) << (4 * (b & 1) + f);
        store_word(dst, word);
    }
}

static void get_hi32(const uint8_t *plane, int b, int r, uint8_t *qh) {
    uint32_t bits = 0;
    for (int k = 0; k < 2; k++) {
        uint32_t word = load_word(from(plane, b >> 1, r, 8) + 4 * k) >> 4 * (b & 1);
        for (int f = 0; f < 4; f++)
            bits |= ((word >> f & BITS) * 0x10204080u >> 28) << (8 * f + 4 * k);
    }
    store_word(qh, bits);
}

static void put_half32(const uint8_t *half, uint8_t *plane, int b, int r) {
    memcpy(at(plane, b >> 1, r, 4) + 2 * (b & 1), half, 2);
}

static void get_half32(const uint8_t *plane, int b, int r, uint8_t *half) {
    memcpy(half, from(plane, b >> 1, r, 4) + 2 * (b & 1), 2);
}

/* ---- one superblock of one row, by type: n_blocks blocks of the file (1, or up to 8 of 32 values) ---- */

static void put_q4_k(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    (void)n_blocks;
    put_nib(src + 16, tile, r);
    put_sc6(src, tile + NIB, r);
}

static void get_q4_k(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    (void)n_blocks;
    get_nib(tile, r, dst + 16);
    get_sc6(tile + NIB, r, dst);
}

static void put_q5_k(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    (void)n_blocks;
    put_nib(src + 48, tile, r);
    put_hi1(src + 16, tile + NIB, r);
    put_sc6(src, tile + NIB + HI1, r);
}

static void get_q5_k(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    (void)n_blocks;
    get_nib(tile, r, dst + 48);
    get_hi1(tile + NIB, r, dst + 16);
    get_sc6(tile + NIB + HI1, r, dst);
}

static void put_q6_k(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    (void)n_blocks;
    put_nib_q6(src, tile, r);
    put_hi2(src + 128, tile + NIB, r);
    put_words4(src + 192, tile + NIB + HI2, r);
    memcpy(at(tile + NIB + HI2 + WORDS4, 0, r, 2), src + 208, 2);
}

static void get_q6_k(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    (void)n_blocks;
    get_nib_q6(tile, r, dst);
    get_hi2(tile + NIB, r, dst + 128);
    get_words4(tile + NIB + HI2, r, dst + 192);
    memcpy(dst + 208, from(tile + NIB + HI2 + WORDS4, 0, r, 2), 2);
}

static void put_q2_k(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    (void)n_blocks;
    put_hi2(src + 16, tile, r);
    put_words4(src, tile + HI2, r);
    memcpy(at(tile + HI2 + WORDS4, 0, r, 4), src + 80, 4);
}

static void get_q2_k(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    (void)n_blocks;
    get_hi2(tile, r, dst + 16);
    get_words4(tile + HI2, r, dst);
    memcpy(dst + 80, from(tile + HI2 + WORDS4, 0, r, 4), 4);
}

static void put_q3_k(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    (void)n_blocks;
    put_hi2(src + 32, tile, r);
    put_hi1(src, tile + HI2, r);
    put_sc_q3(src + 96, tile + HI2 + HI1, r);
    memcpy(at(tile + HI2 + HI1 + WORDS4, 0, r, 2), src + 108, 2);
}

static void get_q3_k(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    (void)n_blocks;
    get_hi2(tile, r, dst + 32);
    get_hi1(tile + HI2, r, dst);
    get_sc_q3(tile + HI2 + HI1, r, dst + 96);
    memcpy(dst + 108, from(tile + HI2 + HI1 + WORDS4, 0, r, 2), 2);
}

static void put_q8_0(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    for (int b = 0; b < n_blocks; b++, src += 34) {
        memcpy(at(tile, 2 * b, r, 16), src + 2, 16);
        memcpy(at(tile, 2 * b + 1, r, 16), src + 18, 16);
        put_half32(src, tile + Q8, b, r);
    }
}

static void get_q8_0(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    for (int b = 0; b < n_blocks; b++, dst += 34) {
        memcpy(dst + 2, from(tile, 2 * b, r, 16), 16);
        memcpy(dst + 18, from(tile, 2 * b + 1, r, 16), 16);
        get_half32(tile + Q8, b, r, dst);
    }
}

static void put_q4_0(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    for (int b = 0; b < n_blocks; b++, src += 18) {
        put_nib32(src + 2, tile, b, r);
        put_half32(src, tile + NIB, b, r);
    }
}

static void get_q4_0(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    for (int b = 0; b < n_blocks; b++, dst += 18) {
        get_nib32(tile, b, r, dst + 2);
        get_half32(tile + NIB, b, r, dst);
    }
}

static void put_q4_1(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    for (int b = 0; b < n_blocks; b++, src += 20) {
        put_nib32(src + 4, tile, b, r);
        put_half32(src, tile + NIB, b, r);
        put_half32(src + 2, tile + NIB + WORDS4, b, r);
    }
}

static void get_q4_1(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    for (int b = 0; b < n_blocks; b++, dst += 20) {
        get_nib32(tile, b, r, dst + 4);
        get_half32(tile + NIB, b, r, dst);
        get_half32(tile + NIB + WORDS4, b, r, dst + 2);
    }
}

static void put_q5_0(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    for (int b = 0; b < n_blocks; b++, src += 22) {
        put_nib32(src + 6, tile, b, r);
        put_hi32(src + 2, tile + NIB, b, r);
        put_half32(src, tile + NIB + HI1, b, r);
    }
}

static void get_q5_0(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    for (int b = 0; b < n_blocks; b++, dst += 22) {
        get_nib32(tile, b, r, dst + 6);
        get_hi32(tile + NIB, b, r, dst + 2);
        get_half32(tile + NIB + HI1, b, r, dst);
    }
}

static void put_q5_1(const uint8_t *src, int n_blocks, uint8_t *tile, int r) {
    for (int b = 0; b < n_blocks; b++, src += 24) {
        put_nib32(src + 8, tile, b, r);
        put_hi32(src + 4, tile + NIB, b, r);
        put_half32(src, tile + NIB + HI1, b, r);
        put_half32(src + 2, tile + NIB + HI1 + WORDS4, b, r);
    }
}

static void get_q5_1(const uint8_t *tile, int r, int n_blocks, uint8_t *dst) {
    for (int b = 0; b < n_blocks; b++, dst += 24) {
        get_nib32(tile, b, r, dst + 8);
        get_hi32(tile + NIB, b, r, dst + 4);
        get_half32(tile + NIB + HI1, b, r, dst);
        get_half32(tile + NIB + HI1 + WORDS4, b, r, dst + 2);
    }
}

/* ---- whole matrices ---- */

struct kind {
    int tile_bytes, block_bytes, block_values;
    void (*put)(const uint8_t *src, int n_blocks, uint8_t *tile, int r);
    void (*get)(const uint8_t *tile, int r, int n_blocks, uint8_t *dst);
};

static const struct kind kinds[] = {
    [FWD_TYPE_Q4_K] = {NIB + SC16, 144, 256, put_q4_k, get_q4_k},
    [FWD_TYPE_Q5_K] = {NIB + HI1 + SC16, 176, 256, put_q5_k, get_q5_k},
    [FWD_TYPE_Q6_K] = {NIB + HI2 + WORDS4 + ROWS * 2, 210, 256, put_q6_k, get_q6_k},
    [FWD_TYPE_Q2_K] = {HI2 + WORDS4 + ROWS * 4, 84, 256, put_q2_k, get_q2_k},
    [FWD_TYPE_Q3_K] = {HI2 + HI1 + WORDS4 + ROWS * 2, 110, 256, put_q3_k, get_q3_k},
    [FWD_TYPE_Q8_0] = {Q8 + WORDS4, 34, 32, put_q8_0, get_q8_0},
    [FWD_TYPE_Q4_0] = {NIB + WORDS4, 18, 32, put_q4_0, get_q4_0},
    [FWD_TYPE_Q4_1] = {NIB + 2 * WORDS4, 20, 32, put_q4_1, get_q4_1},
    [FWD_TYPE_Q5_0] = {NIB + HI1 + WORDS4, 22, 32, put_q5_0, get_q5_0},
    [FWD_TYPE_Q5_1] = {NIB + HI1 + 2 * WORDS4, 24, 32, put_q5_1, get_q5_1},
};

static const struct kind *kind_of(uint32_t type) {
    return type < sizeof kinds / sizeof *kinds && kinds[type].put ? &kinds[type] : NULL;
}

size_t fwd_tile_bytes(uint32_t type) {
    const struct kind *k = kind_of(type);
    return k ? (size_t)k->tile_bytes : 0;
}

size_t fwd_tiles_bytes(uint32_t type, int64_t n_rows, int64_t n_cols) {
    return (size_t)((n_rows + ROWS - 1) / ROWS) * (size_t)((n_cols + COLS - 1) / COLS) * fwd_tile_bytes(type);
}

/* Blocks of the file in superblock b of a row. */
static int blocks_in(const struct kind *k, int64_t n_cols, int64_t b) {
    int64_t left = n_cols - b * COLS;
    return (int)((left < COLS ? left : COLS) / k->block_values);
}

void fwd_tiles_pack(uint32_t type, const uint8_t *src, int64_t row_bytes, int64_t n_rows, int64_t n_cols,
                    int64_t strip0, int64_t n_strips, uint8_t *dst) {
    const struct kind *k = kind_of(type);
    if (!k)
        return;
    int64_t n_sb = (n_cols + COLS - 1) / COLS, sb_bytes = COLS / k->block_values * k->block_bytes;
    for (int64_t strip = strip0; strip < strip0 + n_strips; strip++) {
        int64_t row0 = strip * ROWS;
        int rows = (int)(n_rows - row0 < ROWS ? n_rows - row0 : ROWS);
        for (int64_t b = 0; b < n_sb; b++, dst += k->tile_bytes) {
            int n_blocks = blocks_in(k, n_cols, b);
            memset(dst, 0, (size_t)k->tile_bytes);
            for (int r = 0; r < rows; r++)
                k->put(src + (row0 + r) * row_bytes + b * sb_bytes, n_blocks, dst, r);
        }
    }
}

void fwd_tiles_unpack_row(uint32_t type, const uint8_t *tiles, int64_t row, int64_t n_cols, uint8_t *dst) {
    const struct kind *k = kind_of(type);
    if (!k)
        return;
    int64_t n_sb = (n_cols + COLS - 1) / COLS, sb_bytes = COLS / k->block_values * k->block_bytes;
    for (int64_t b = 0; b < n_sb; b++)
        k->get(tiles + (row / ROWS * n_sb + b) * k->tile_bytes, (int)(row % ROWS), blocks_in(k, n_cols, b),
               dst + b * sb_bytes);
}
