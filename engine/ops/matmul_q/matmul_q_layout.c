#include "ops/matmul_q/matmul_q_layout.h"

#include "format/gguf.h"

#include <stddef.h>
#include <string.h>

static const uint32_t NIBBLES = 0x0f0f0f0fu, PAIRS = 0x03030303u;

static uint32_t load_word(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

static void store_word(uint8_t *p, uint32_t w) {
    memcpy(p, &w, sizeof w);
}

static void load_words(const uint8_t *src, uint32_t *word, int n) {
    memcpy(word, src, (size_t)n * sizeof *word);
}

static void store_words(uint8_t *dst, const uint32_t *word, int n) {
    memcpy(dst, word, (size_t)n * sizeof *word);
}

static void load_halves(const uint8_t *src, uint16_t *half, int n) {
    memcpy(half, src, (size_t)n * sizeof *half);
}

static void store_halves(uint8_t *dst, const uint16_t *half, int n) {
    memcpy(dst, half, (size_t)n * sizeof *half);
}

/* ---- planes of a quarter ---- */

/* qh, and Q2_K's and Q3_K's qs: two bits of value 128 h + 32 t + l at bits 2t of byte 32 h + l. */
static uint32_t c2_word(const uint8_t *bytes, int quarter, int i) {
    const uint8_t *p = bytes + 32 * (quarter / 2) + 8 * i;
    int shift = 4 * (quarter % 2);
    return (load_word(p) >> shift & NIBBLES) | (load_word(p + 4) >> shift & NIBBLES) << 4;
}

static void put_c2_word(uint8_t *bytes, int quarter, int i, uint32_t word) {
    uint8_t *p = bytes + 32 * (quarter / 2) + 8 * i;
    int shift = 4 * (quarter % 2);
    store_word(p, load_word(p) | (word & NIBBLES) << shift);
    store_word(p + 4, load_word(p + 4) | (word >> 4 & NIBBLES) << shift);
}

/* Q5_K's qh and Q3_K's hmask: the bit of value 32 s + l is bit s of byte l. */
static uint32_t c1_word(const uint8_t *bytes, int quarter, int i) {
    uint32_t word = 0;
    for (int g = 0; g < 4; g++)
        word |= (load_word(bytes + 16 * i + 4 * g) >> 2 * quarter & PAIRS) << 2 * g;
    return word;
}

static void put_c1_word(uint8_t *bytes, int quarter, int i, uint32_t word) {
    for (int g = 0; g < 4; g++) {
        uint8_t *p = bytes + 16 * i + 4 * g;
        store_word(p, load_word(p) | (word >> 2 * g & PAIRS) << 2 * quarter);
    }
}

/* ---- blocks of 32 ---- */

static void split_q4_0(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 1);
    load_words(src + 2, word, 4);
}

static void join_q4_0(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 1);
    store_words(dst + 2, word, 4);
}

static void split_q4_1(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 2);
    load_words(src + 4, word, 4);
}

static void join_q4_1(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 2);
    store_words(dst + 4, word, 4);
}

/* Where bit e of the file's qh lies in the word. */
static int fifth_bit_place(int e) {
    return 8 * (e % 4) + 2 * (e / 4 % 4) + e / 16;
}

static uint32_t split_fifth_bits(uint32_t qh) {
    uint32_t word = 0;
    for (int e = 0; e < 32; e++)
        word |= (qh >> e & 1u) << fifth_bit_place(e);
    return word;
}

static uint32_t join_fifth_bits(uint32_t word) {
    uint32_t qh = 0;
    for (int e = 0; e < 32; e++)
        qh |= (word >> fifth_bit_place(e) & 1u) << e;
    return qh;
}

static void split_q5_0(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 1);
    word[0] = split_fifth_bits(load_word(src + 2));
    load_words(src + 6, word + 1, 4);
}

static void join_q5_0(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 1);
    store_word(dst + 2, join_fifth_bits(word[0]));
    store_words(dst + 6, word + 1, 4);
}

static void split_q5_1(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 2);
    word[0] = split_fifth_bits(load_word(src + 4));
    load_words(src + 8, word + 1, 4);
}

static void join_q5_1(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 2);
    store_word(dst + 4, join_fifth_bits(word[0]));
    store_words(dst + 8, word + 1, 4);
}

static void split_q8_0(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 1);
    load_words(src + 2, word, 8);
}

static void join_q8_0(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 1);
    store_words(dst + 2, word, 8);
}

/* ---- superblocks of 256 ---- */

static void split_q2_k(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src + 80, half, 2);
    load_words(src, word, 4);
    for (int i = 0; i < 16; i++)
        word[4 + i] = c2_word(src + 16, i / 4, i % 4);
}

static void join_q2_k(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    memset(dst, 0, 84);
    store_halves(dst + 80, half, 2);
    store_words(dst, word, 4);
    for (int i = 0; i < 16; i++)
        put_c2_word(dst + 16, i / 4, i % 4, word[4 + i]);
}

static void split_q3_k(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src + 108, half, 1);
    load_words(src + 96, word, 3);
    for (int quarter = 0; quarter < 4; quarter++) {
        uint32_t *w = word + 3 + 6 * quarter;
        for (int i = 0; i < 4; i++)
            w[i] = c2_word(src + 32, quarter, i);
        for (int i = 0; i < 2; i++)
            w[4 + i] = c1_word(src, quarter, i);
    }
}

static void join_q3_k(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    memset(dst, 0, 110);
    store_halves(dst + 108, half, 1);
    store_words(dst + 96, word, 3);
    for (int quarter = 0; quarter < 4; quarter++) {
        const uint32_t *w = word + 3 + 6 * quarter;
        for (int i = 0; i < 4; i++)
            put_c2_word(dst + 32, quarter, i, w[i]);
        for (int i = 0; i < 2; i++)
            put_c1_word(dst, quarter, i, w[4 + i]);
    }
}

static void split_q4_k(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 2);
    load_words(src + 4, word, 35);
}

static void join_q4_k(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    store_halves(dst, half, 2);
    store_words(dst + 4, word, 35);
}

static void split_q5_k(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src, half, 2);
    load_words(src + 4, word, 3);
    for (int quarter = 0; quarter < 4; quarter++) {
        uint32_t *w = word + 3 + 10 * quarter;
        load_words(src + 48 + 32 * quarter, w, 8);
        for (int i = 0; i < 2; i++)
            w[8 + i] = c1_word(src + 16, quarter, i);
    }
}

static void join_q5_k(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    memset(dst, 0, 176);
    store_halves(dst, half, 2);
    store_words(dst + 4, word, 3);
    for (int quarter = 0; quarter < 4; quarter++) {
        const uint32_t *w = word + 3 + 10 * quarter;
        store_words(dst + 48 + 32 * quarter, w, 8);
        for (int i = 0; i < 2; i++)
            put_c1_word(dst + 16, quarter, i, w[8 + i]);
    }
}

/* ql: value 128 h + 32 t + l in byte 64 h + 32 (t % 2) + l, low nibble for t < 2. A quarter is t = 0, 1 or t = 2, 3. */
static void split_q6_k(const uint8_t *src, uint16_t *half, uint32_t *word) {
    load_halves(src + 208, half, 1);
    load_words(src + 192, word, 4);
    for (int quarter = 0; quarter < 4; quarter++) {
        uint32_t *w = word + 4 + 12 * quarter;
        const uint8_t *low = src + 64 * (quarter / 2), *high = low + 32;
        int shift = 4 * (quarter % 2);
        for (int g = 0; g < 8; g++)
            w[g] = (load_word(low + 4 * g) >> shift & NIBBLES) | (load_word(high + 4 * g) >> shift & NIBBLES) << 4;
        for (int i = 0; i < 4; i++)
            w[8 + i] = c2_word(src + 128, quarter, i);
    }
}

static void join_q6_k(const uint16_t *half, const uint32_t *word, uint8_t *dst) {
    memset(dst, 0, 210);
    store_halves(dst + 208, half, 1);
    store_words(dst + 192, word, 4);
    for (int quarter = 0; quarter < 4; quarter++) {
        const uint32_t *w = word + 4 + 12 * quarter;
        uint8_t *low = dst + 64 * (quarter / 2), *high = low + 32;
        int shift = 4 * (quarter % 2);
        for (int g = 0; g < 8; g++) {
            store_word(low + 4 * g, load_word(low + 4 * g) | (w[g] & NIBBLES) << shift);
            store_word(high + 4 * g, load_word(high + 4 * g) | (w[g] >> 4 & NIBBLES) << shift);
        }
        for (int i = 0; i < 4; i++)
            put_c2_word(dst + 128, quarter, i, w[8 + i]);
    }
}

const struct fwd_layout *fwd_layout_for(uint32_t weight_type) {
    static const struct fwd_layout layouts[] = {
        [FWD_TYPE_Q4_0] = {1, 4, 18, split_q4_0, join_q4_0},   [FWD_TYPE_Q4_1] = {2, 4, 20, split_q4_1, join_q4_1},
        [FWD_TYPE_Q5_0] = {1, 5, 22, split_q5_0, join_q5_0},   [FWD_TYPE_Q5_1] = {2, 5, 24, split_q5_1, join_q5_1},
        [FWD_TYPE_Q8_0] = {1, 8, 34, split_q8_0, join_q8_0},   [FWD_TYPE_Q2_K] = {2, 20, 84, split_q2_k, join_q2_k},
        [FWD_TYPE_Q3_K] = {1, 27, 110, split_q3_k, join_q3_k}, [FWD_TYPE_Q4_K] = {2, 35, 144, split_q4_k, join_q4_k},
        [FWD_TYPE_Q5_K] = {2, 43, 176, split_q5_k, join_q5_k}, [FWD_TYPE_Q6_K] = {1, 52, 210, split_q6_k, join_q6_k},
    };
    if (weight_type >= sizeof layouts / sizeof *layouts || !layouts[weight_type].split)
        return NULL;
    return &layouts[weight_type];
}

void fwd_layout_pack(const struct fwd_layout *l, int rows, int row, const uint8_t *src, uint8_t *packed_block) {
    uint16_t half[2] = {0};
    uint32_t word[FWD_LAYOUT_MAX_WORDS] = {0};
    if (src)
        l->split(src, half, word);
    for (int i = 0; i < l->n_half; i++)
        memcpy(packed_block + 2 * (i * rows + row), &half[i], sizeof *half);
    packed_block += 2 * l->n_half * rows;
    for (int i = 0; i < l->n_word; i++)
        store_word(packed_block + 4 * (i * rows + row), word[i]);
}

void fwd_layout_unpack(const struct fwd_layout *l, int rows, int row, const uint8_t *packed_block, uint8_t *dst) {
    uint16_t half[2];
    uint32_t word[FWD_LAYOUT_MAX_WORDS];
    for (int i = 0; i < l->n_half; i++)
        memcpy(&half[i], packed_block + 2 * (i * rows + row), sizeof *half);
    packed_block += 2 * l->n_half * rows;
    for (int i = 0; i < l->n_word; i++)
        word[i] = load_word(packed_block + 4 * (i * rows + row));
    l->join(half, word, dst);
}
