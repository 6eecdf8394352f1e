/* engine/ops/matmul_q/matmul_q_avx2.c: matmul_q with AVX2 and FMA, 8 rows a vector (matmul_q_layout.h).
 *
 * An int32 lane is a row. `maddubs` multiplies four unsigned weights of each row by the same four activations into two
 * int16 sums; as many of them are added up in int16 as cannot overflow (flush_groups), then `madd` multiplies by the
 * scale and widens in one instruction. Weights are used unsigned; what the offset adds is taken off again by the
 * activations' block sums. One unpacked vector serves up to 4 positions. */
#include "format/gguf.h"
#include "ops/act_quant/act_quant.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/matmul_q/matmul_q_kernel.h"

#include <immintrin.h>
#include <string.h>

matmul_q_fn matmul_q_avx2;

#define INLINE static inline __attribute__((always_inline))
/* Loops over positions, groups and words are unrolled wholly, so that their arrays are registers. */
#define UNROLL _Pragma("GCC unroll 16")

enum { ROWS = 8, WORD = ROWS * 4, HALF = ROWS * 2, MAX_COLS = 4 };

/* Planes a format has beside its scales. */
enum { Q = 1, C2 = 2, C1 = 4 };

/* All members are constants where a kernel is instantiated. */
struct format {
    int planes;
    int sub;    /* values per scale; 0: a block of 32 */
    int offset; /* what the unsigned weight exceeds the value by */
    int has_min;
};

/* Groups whose maddubs results an int16 can hold: n * 2 * max weight * 127 <= 32767. */
INLINE int flush_groups(const struct format f) {
    int max = f.planes == Q ? 15 : f.planes == (Q | C1) ? 31 : f.planes == (Q | C2) ? 63 : f.planes == C2 ? 3 : 7;
    int n = 32767 / (2 * max * 127), most = f.sub == 16 ? 4 : 8;
    return n >= most ? most : n >= 4 ? 4 : 2;
}

INLINE __m256i load_vector(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

INLINE __m256i broadcast_word(const void *p) {
    int32_t w;
    memcpy(&w, p, sizeof w);
    return _mm256_set1_epi32(w);
}

INLINE __m256 load_halves(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE __m256i byte_mask(int m) {
    return _mm256_set1_epi8((char)m);
}

/* (a & mask) | b */
INLINE __m256i merge_masked(__m256i a, __m256i mask, __m256i b) {
    return _mm256_or_si256(_mm256_and_si256(a, mask), b);
}

/* Bits `from`.. of every byte moved to `to`; the caller masks. */
INLINE __m256i move_bits(__m256i x, int from, int to) {
    return from > to ? _mm256_srli_epi32(x, from - to) : to > from ? _mm256_slli_epi32(x, to - from) : x;
}

/* Group g of a quarter: the low values' weights and the high values'. */
INLINE void unpack_group(const struct format f, const uint8_t *quarter, int g, __m256i *low, __m256i *high) {
    const uint8_t *p = quarter;
    if (f.planes & Q) {
        __m256i q = load_vector(p + g * WORD);
        *low = _mm256_and_si256(q, byte_mask(15));
        *high = _mm256_and_si256(_mm256_srli_epi32(q, 4), byte_mask(15));
        p += 8 * WORD;
    }
    if (f.planes & C2) {
        __m256i c = load_vector(p + g / 2 * WORD);
        int at = g % 2 * 4, to = f.planes & Q ? 4 : 0;
        __m256i c_low = move_bits(c, at, to), c_high = move_bits(c, at + 2, to), mask = byte_mask(3 << to);
        *low = to ? merge_masked(c_low, mask, *low) : _mm256_and_si256(c_low, mask);
        *high = to ? merge_masked(c_high, mask, *high) : _mm256_and_si256(c_high, mask);
        p += 4 * WORD;
    }
    if (f.planes & C1) {
        __m256i c = load_vector(p + g / 4 * WORD);
        int at = g % 4 * 2, to = f.planes & Q ? 4 : 2;
        *low = merge_masked(move_bits(c, at, to), byte_mask(1 << to), *low);
        *high = merge_masked(move_bits(c, at + 1, to), byte_mask(1 << to), *high);
    }
}

INLINE int quarter_words(const struct format f) {
    return (f.planes & Q ? 8 : 0) + (f.planes & C2 ? 4 : 0) + (f.planes & C1 ? 2 : 0);
}

/* Bytes of a packed superblock. */
INLINE int superblock_bytes(const struct format f) {
    int scale_words = f.planes == C2 || f.planes == (Q | C2) ? 4 : 3;
    return HALF * (1 + f.has_min) + WORD * (scale_words + 4 * quarter_words(f));
}

/* Scales of a superblock, twice in each lane as int16, and the factors of the activation sums as int16 pairs: factor j
 * goes with sum16[2j], sum16[2j + 1]. */
struct scales {
    __m256i scale[16];
    __m256i factor[8];
};

/* Bytes a, b of every word as an int16 pair. */
INLINE __m256i take_pair(__m256i x, int a, int b) {
    int p = (int)(0x80008000u | (unsigned)b << 16 | (unsigned)a);
    __m128i lane = _mm_set_epi32(p + 0x000c000c, p + 0x00080008, p + 0x00040004, p);
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(lane));
}

/* Q4_K, Q5_K: eight scales and mins of 6 bits (numerics.md, 3.1), a word of four at a time. */
INLINE void expand_6bit_min(const uint8_t *words, struct scales *s) {
    __m256i w0 = load_vector(words), w1 = load_vector(words + WORD), w2 = load_vector(words + 2 * WORD);
    __m256i m6 = byte_mask(0x3f), m4 = byte_mask(0x0f), m2 = byte_mask(0x30);
    __m256i scale[2] = {_mm256_and_si256(w0, m6), merge_masked(_mm256_srli_epi32(w0, 2), m2, _mm256_and_si256(w2, m4))};
    __m256i min[2] = {_mm256_and_si256(w1, m6),
                      merge_masked(_mm256_srli_epi32(w1, 2), m2, _mm256_and_si256(_mm256_srli_epi32(w2, 4), m4))};
    UNROLL
    for (int j = 0; j < 8; j++) {
        s->scale[j] = take_pair(scale[j / 4], j % 4, j % 4);
        s->factor[j] = take_pair(min[j / 4], j % 4, j % 4);
    }
}

/* Both int16 of a lane from its lower (0) or upper (1) one. */
INLINE __m256i double_half(__m256i x, int upper) {
    int p = upper ? 0x03020302 : 0x01000100;
    __m128i lane = _mm_set_epi32(p + 0x0c0c0c0c, p + 0x08080808, p + 0x04040404, p);
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(lane));
}

/* Q6_K: 16 signed bytes. Q3_K: 16 of 6 bits, minus 32. */
INLINE void expand_signed(const __m256i *words, struct scales *s) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(words[i], 8), 8), odd = _mm256_srai_epi16(words[i], 8);
        s->scale[4 * i] = double_half(even, 0);
        s->scale[4 * i + 1] = double_half(odd, 0);
        s->scale[4 * i + 2] = double_half(even, 1);
        s->scale[4 * i + 3] = double_half(odd, 1);
        s->factor[2 * i] = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
        s->factor[2 * i + 1] = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
    }
}

INLINE void expand_3_k(const uint8_t *words, struct scales *s) {
    __m256i w0 = load_vector(words), w1 = load_vector(words + WORD), w2 = load_vector(words + 2 * WORD);
    __m256i m4 = byte_mask(0x0f), m2 = byte_mask(0x30), w[4];
    w[0] = merge_masked(_mm256_slli_epi32(w2, 4), m2, _mm256_and_si256(w0, m4));
    w[1] = merge_masked(_mm256_slli_epi32(w2, 2), m2, _mm256_and_si256(w1, m4));
    w[2] = merge_masked(w2, m2, _mm256_and_si256(_mm256_srli_epi32(w0, 4), m4));
    w[3] = merge_masked(_mm256_srli_epi32(w2, 2), m2, _mm256_and_si256(_mm256_srli_epi32(w1, 4), m4));
    UNROLL
    for (int i = 0; i < 4; i++)
        w[i] = _mm256_sub_epi8(w[i], byte_mask(32));
    expand_signed(w, s);
}

INLINE void expand_2_k(const uint8_t *words, struct scales *s) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        __m256i w = load_vector(words + i * WORD);
        __m256i scale = _mm256_and_si256(w, byte_mask(15));
        __m256i min = _mm256_and_si256(_mm256_srli_epi32(w, 4), byte_mask(15));
        UNROLL
        for (int j = 0; j < 4; j++)
            s->scale[4 * i + j] = take_pair(scale, j, j);
        s->factor[2 * i] = take_pair(min, 0, 1);
        s->factor[2 * i + 1] = take_pair(min, 2, 3);
    }
}

/* Returns where the quarters begin. */
INLINE const uint8_t *expand_scales(const struct format f, const uint8_t *words, struct scales *s) {
    if (f.planes == (Q | C2)) {
        __m256i w[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            w[i] = load_vector(words + i * WORD);
        expand_signed(w, s);
        return words + 4 * WORD;
    }
    if (f.planes == C2) {
        expand_2_k(words, s);
        return words + 4 * WORD;
    }
    if (f.planes == (C2 | C1))
        expand_3_k(words, s);
    else
        expand_6bit_min(words, s);
    return words + 3 * WORD;
}

/* Adds scale * part to every position's sum and clears the parts. */
INLINE void flush_parts(int n, __m256i *sum, __m256i *part, __m256i scale) {
    UNROLL
    for (int m = 0; m < n; m++) {
        sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(part[m], scale));
        part[m] = _mm256_setzero_si256();
    }
}

/* The empty asm keeps the additions in this order: the compiler would otherwise collect all products of a quarter first
 * and add them as a tree, which takes four times the registers there are. */
INLINE __m256i add_products(__m256i part, __m256i weights, const int8_t *act) {
    part = _mm256_add_epi16(part, _mm256_maddubs_epi16(weights, broadcast_word(act)));
    __asm__("" : "+x"(part));
    return part;
}

/* One superblock of 8 rows times n positions; rows[m] is position m's activations. */
INLINE void step_superblock(const struct format f, int n, const uint8_t *packed, const uint8_t *const *rows, int64_t b,
                            __m256 *acc) {
    const struct fwd_q8_k *act[MAX_COLS];
    __m256i sum[MAX_COLS], low[MAX_COLS], high[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++) {
        act[m] = (const struct fwd_q8_k *)(const void *)rows[m] + b;
        sum[m] = low[m] = high[m] = _mm256_setzero_si256();
    }
    struct scales s;
    const uint8_t *quarter = expand_scales(f, packed + HALF * (1 + f.has_min), &s);
    const __m256i *scale = s.scale;
    const int flush = flush_groups(f);
    for (int k = 0; k < 256; k += 64, quarter += quarter_words(f) * WORD) {
        UNROLL
        for (int g = 0; g < 8; g++) {
            __m256i w_low, w_high;
            unpack_group(f, quarter, g, &w_low, &w_high);
            UNROLL
            for (int m = 0; m < n; m++) {
                low[m] = add_products(low[m], w_low, act[m]->q + k + 4 * g);
                high[m] = add_products(high[m], w_high, act[m]->q + k + 32 + 4 * g);
            }
            if (g % flush == flush - 1) {
                flush_parts(n, sum, low, scale[g * 4 / f.sub]);
                flush_parts(n, sum, high, scale[(32 + g * 4) / f.sub]);
            }
        }
        scale += 64 / f.sub;
    }
    __m256 d = load_halves(packed), dmin = f.has_min ? load_halves(packed + HALF) : d;
    UNROLL
    for (int m = 0; m < n; m++) {
        __m256i sums = _mm256_setzero_si256();
        UNROLL
        for (int j = 0; j < 8; j++)
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(s.factor[j], broadcast_word(act[m]->sum16 + 2 * j)));
        __m256 da = _mm256_set1_ps(act[m]->d);
        if (f.offset)
            sum[m] = _mm256_sub_epi32(sum[m], _mm256_mullo_epi32(sums, _mm256_set1_epi32(f.offset)));
        acc[m] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(sum[m]), acc[m]);
        if (f.has_min)
            acc[m] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, da), _mm256_cvtepi32_ps(sums), acc[m]);
    }
}

INLINE int block32_bytes(const struct format f) {
    return HALF * (1 + f.has_min) + WORD * (f.planes == Q ? 4 : f.planes == (Q | C1) ? 5 : 8);
}

/* Signed bytes: |w| times the activation with w's sign, at most 128 * 127 * 2, so that every result is widened. */
INLINE void dot_signed(int n, const uint8_t *words, const struct fwd_q8_32 *const *act, __m256i *sum) {
    UNROLL
    for (int g = 0; g < 8; g++) {
        __m256i w = load_vector(words + g * WORD), size = _mm256_abs_epi8(w);
        UNROLL
        for (int m = 0; m < n; m++) {
            __m256i a = _mm256_sign_epi8(broadcast_word(act[m]->q + 4 * g), w);
            sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(_mm256_maddubs_epi16(size, a), _mm256_set1_epi16(1)));
        }
    }
}

INLINE void dot_nibbles(const struct format f, int n, const uint8_t *words, const struct fwd_q8_32 *const *act,
                        __m256i *sum) {
    const int flush = f.planes & C1 ? 2 : 4; /* groups of 4 + 4 values: 16 or 32 maddubs products, as flush_groups */
    __m256i part[MAX_COLS], fifth = load_vector(words);
    words += f.planes & C1 ? WORD : 0;
    UNROLL
    for (int m = 0; m < n; m++)
        part[m] = _mm256_setzero_si256();
    UNROLL
    for (int g = 0; g < 4; g++) {
        __m256i q = load_vector(words + g * WORD);
        __m256i w_low = _mm256_and_si256(q, byte_mask(15));
        __m256i w_high = _mm256_and_si256(_mm256_srli_epi32(q, 4), byte_mask(15));
        if (f.planes & C1) {
            w_low = merge_masked(move_bits(fifth, 2 * g, 4), byte_mask(16), w_low);
            w_high = merge_masked(move_bits(fifth, 2 * g + 1, 4), byte_mask(16), w_high);
        }
        UNROLL
        for (int m = 0; m < n; m++) {
            part[m] = add_products(part[m], w_low, act[m]->q + 4 * g);
            part[m] = add_products(part[m], w_high, act[m]->q + 16 + 4 * g);
        }
        if (g % flush == flush - 1)
            flush_parts(n, sum, part, _mm256_set1_epi16(1));
    }
}

/* One block of 32 of 8 rows times n positions. planes == 0: signed bytes. */
INLINE void step_block32(const struct format f, int n, const uint8_t *packed, const uint8_t *const *rows, int64_t b,
                         __m256 *acc) {
    const struct fwd_q8_32 *act[MAX_COLS];
    __m256i sum[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++) {
        act[m] = (const struct fwd_q8_32 *)(const void *)rows[m] + b;
        sum[m] = _mm256_set1_epi32(-f.offset * act[m]->sum);
    }
    const uint8_t *words = packed + HALF * (1 + f.has_min);
    if (f.planes)
        dot_nibbles(f, n, words, act, sum);
    else
        dot_signed(n, words, act, sum);
    __m256 d = load_halves(packed), min = f.has_min ? load_halves(packed + HALF) : d;
    UNROLL
    for (int m = 0; m < n; m++) {
        __m256 da = _mm256_set1_ps(act[m]->d);
        acc[m] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(sum[m]), acc[m]);
        if (f.has_min)
            acc[m] = _mm256_fmadd_ps(_mm256_mul_ps(min, da), _mm256_set1_ps((float)act[m]->sum), acc[m]);
    }
}

/* The job's blocks of one strip for n positions from `col` on. */
INLINE void run_columns(const struct format f, int n, const struct fwd_matmul_q_job *job, int64_t strip, int64_t col) {
    int64_t row = strip * ROWS, left = job->n_rows - row;
    __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(left < ROWS ? (int)left : ROWS),
                                       _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    int bytes = f.sub ? superblock_bytes(f) : block32_bytes(f);
    const uint8_t *packed = job->packed + (strip * job->n_blocks + job->block_begin) * bytes;
    float *y = job->y + col * job->ld_y + row;
    const uint8_t *rows[MAX_COLS];
    __m256 acc[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++) {
        rows[m] = job->act + (col + m) * job->act_stride;
        acc[m] = job->block_begin ? _mm256_maskload_ps(y + m * job->ld_y, lanes) : _mm256_setzero_ps();
    }
    for (int64_t b = job->block_begin; b < job->block_end; b++, packed += bytes) {
        if (f.sub)
            step_superblock(f, n, packed, rows, b, acc);
        else
            step_block32(f, n, packed, rows, b, acc);
    }
    bool last = job->block_end == job->n_blocks;
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    UNROLL
    for (int m = 0; m < n; m++) {
        if (last && job->bias)
            acc[m] = _mm256_add_ps(acc[m], _mm256_maskload_ps(job->bias + row, lanes));
        if (last)
            acc[m] = _mm256_blendv_ps(acc[m], nan, _mm256_cmp_ps(acc[m], acc[m], _CMP_UNORD_Q));
        _mm256_maskstore_ps(y + m * job->ld_y, lanes, acc[m]);
    }
}

/* X(name, planes, values per scale, offset, has a min) */
#define FORMATS                                                                                                        \
    X(q4_0, Q, 0, 8, 0)                                                                                                \
    X(q4_1, Q, 0, 0, 1)                                                                                                \
    X(q5_0, Q | C1, 0, 16, 0)                                                                                          \
    X(q5_1, Q | C1, 0, 0, 1)                                                                                           \
    X(q8_0, 0, 0, 0, 0)                                                                                                \
    X(q2_k, C2, 16, 0, 1)                                                                                              \
    X(q3_k, C2 | C1, 16, 4, 0)                                                                                         \
    X(q4_k, Q, 32, 0, 1)                                                                                               \
    X(q5_k, Q | C1, 32, 0, 1)                                                                                          \
    X(q6_k, Q | C2, 16, 32, 0)

#define X(name, planes, sub, offset, has_min)                                                                          \
    static void run_##name(const struct fwd_matmul_q_job *job) {                                                       \
        const struct format f = {planes, sub, offset, has_min};                                                        \
        for (int64_t strip = job->strip_begin; strip < job->strip_end; strip++) {                                      \
            int64_t col = 0;                                                                                           \
            for (; col + 4 <= job->n_pos; col += 4)                                                                    \
                run_columns(f, 4, job, strip, col);                                                                    \
            if (job->n_pos - col >= 2) {                                                                               \
                run_columns(f, 2, job, strip, col);                                                                    \
                col += 2;                                                                                              \
            }                                                                                                          \
            if (job->n_pos - col >= 1)                                                                                 \
                run_columns(f, 1, job, strip, col);                                                                    \
        }                                                                                                              \
    }                                                                                                                  \
    static const struct fwd_matmul_q_kernel kernel_##name = {"rows8", ROWS, run_##name};
FORMATS
#undef X

const struct fwd_matmul_q_kernel *matmul_q_avx2(uint32_t weight_type) {
    switch (weight_type) {
    case FWD_TYPE_Q4_0:
        return &kernel_q4_0;
    case FWD_TYPE_Q4_1:
        return &kernel_q4_1;
    case FWD_TYPE_Q5_0:
        return &kernel_q5_0;
    case FWD_TYPE_Q5_1:
        return &kernel_q5_1;
    case FWD_TYPE_Q8_0:
        return &kernel_q8_0;
    case FWD_TYPE_Q2_K:
        return &kernel_q2_k;
    case FWD_TYPE_Q3_K:
        return &kernel_q3_k;
    case FWD_TYPE_Q4_K:
        return &kernel_q4_k;
    case FWD_TYPE_Q5_K:
        return &kernel_q5_k;
    case FWD_TYPE_Q6_K:
        return &kernel_q6_k;
    default:
        return NULL;
    }
}
