/* engine/ops/matmul_q/matmul_q_avx512.c: matmul_q with AVX-512 and VNNI, 16 rows a vector (matmul_q_layout.h).
 *
 * An int32 lane is a row: `dpbusd` multiplies four unsigned weights of each row by the same four activations, which are
 * broadcast from memory, so that nothing is ever summed across lanes and the F32 chain of matmul_q.h costs one
 * conversion and one FMA per block for 16 rows. Weights are used unsigned; what the offset adds is taken off again by
 * the activations' block sums. One unpacked vector serves up to 8 positions. */
#include "format/gguf.h"
#include "ops/act_quant/act_quant.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/matmul_q/matmul_q_kernel.h"

#include <immintrin.h>
#include <string.h>

matmul_q_fn matmul_q_avx512;

#define INLINE static inline __attribute__((always_inline))
/* Loops over positions, groups and words are unrolled wholly, so that their arrays are registers. */
#define UNROLL _Pragma("GCC unroll 16")

enum { ROWS = 16, WORD = ROWS * 4, HALF = ROWS * 2, MAX_COLS = 8 };

/* Planes a format has beside its scales. */
enum { Q = 1, C2 = 2, C1 = 4 };

/* All members are constants where a kernel is instantiated. */
struct format {
    int planes;
    int sub;    /* values per scale; 0: a block of 32 */
    int offset; /* what the unsigned weight exceeds the value by */
    int has_min;
};

INLINE __m512i load_vector(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}

INLINE __m512i broadcast_word(const void *p) {
    int32_t w;
    memcpy(&w, p, sizeof w);
    return _mm512_set1_epi32(w);
}

INLINE __m512 load_halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE __m512i byte_mask(int m) {
    return _mm512_set1_epi8((char)m);
}

/* (a & mask) | b */
INLINE __m512i merge_masked(__m512i a, __m512i mask, __m512i b) {
    return _mm512_ternarylogic_epi32(a, mask, b, 0xea);
}

/* Bits `from`.. of every byte moved to `to`; the caller masks. */
INLINE __m512i move_bits(__m512i x, int from, int to) {
    return from > to ? _mm512_srli_epi32(x, (unsigned)(from - to)) : _mm512_slli_epi32(x, (unsigned)(to - from));
}

/* Group g of a quarter: the low values' weights and the high values'. */
INLINE void unpack_group(const struct format f, const uint8_t *quarter, int g, __m512i *low, __m512i *high) {
    const uint8_t *p = quarter;
    if (f.planes & Q) {
        __m512i q = load_vector(p + g * WORD);
        *low = _mm512_and_si512(q, byte_mask(15));
        *high = _mm512_and_si512(_mm512_srli_epi32(q, 4), byte_mask(15));
        p += 8 * WORD;
    }
    if (f.planes & C2) {
        __m512i c = load_vector(p + g / 2 * WORD);
        int at = g % 2 * 4, to = f.planes & Q ? 4 : 0;
        __m512i c_low = move_bits(c, at, to), c_high = move_bits(c, at + 2, to), mask = byte_mask(3 << to);
        *low = to ? merge_masked(c_low, mask, *low) : _mm512_and_si512(c_low, mask);
        *high = to ? merge_masked(c_high, mask, *high) : _mm512_and_si512(c_high, mask);
        p += 4 * WORD;
    }
    if (f.planes & C1) {
        __m512i c = load_vector(p + g / 4 * WORD);
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

/* Scales of a superblock, one int32 a lane, and the factors of the activation sums as int16 pairs: factor j goes with
 * sum16[2j], sum16[2j + 1]. */
struct scales {
    __m512i scale[16];
    __m512i factor[8];
};

/* Byte j of every word, zero-extended to 32 bits. */
INLINE __m512i take_byte(__m512i x, int j) {
    return _mm512_and_si512(_mm512_srli_epi32(x, (unsigned)(8 * j)), _mm512_set1_epi32(255));
}

/* Bytes a, b of every word as an int16 pair. */
INLINE __m512i take_pair(__m512i x, int a, int b) {
    const int z = -128;
    return _mm512_shuffle_epi8(
        x, _mm512_broadcast_i32x4(_mm_set_epi8((char)z, (char)(12 + b), (char)z, (char)(12 + a), (char)z, (char)(8 + b),
                                               (char)z, (char)(8 + a), (char)z, (char)(4 + b), (char)z, (char)(4 + a),
                                               (char)z, (char)b, (char)z, (char)a)));
}

/* Q4_K, Q5_K: eight scales and mins of 6 bits (numerics.md, 3.1), a word of four at a time. */
INLINE void expand_6bit_min(const uint8_t *words, struct scales *s) {
    __m512i w0 = load_vector(words), w1 = load_vector(words + WORD), w2 = load_vector(words + 2 * WORD);
    __m512i m6 = byte_mask(0x3f), m4 = byte_mask(0x0f), m2 = byte_mask(0x30);
    __m512i scale[2] = {_mm512_and_si512(w0, m6), merge_masked(_mm512_srli_epi32(w0, 2), m2, _mm512_and_si512(w2, m4))};
    __m512i min[2] = {_mm512_and_si512(w1, m6),
                      merge_masked(_mm512_srli_epi32(w1, 2), m2, _mm512_and_si512(_mm512_srli_epi32(w2, 4), m4))};
    UNROLL
    for (int j = 0; j < 8; j++) {
        s->scale[j] = take_byte(scale[j / 4], j % 4);
        s->factor[j] = take_pair(min[j / 4], j % 4, j % 4);
    }
}

/* Q6_K: 16 signed bytes. Q3_K: 16 of 6 bits, minus 32. */
INLINE void expand_signed(const __m512i *words, struct scales *s) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i w = words[i];
        s->scale[4 * i] = _mm512_srai_epi32(_mm512_slli_epi32(w, 24), 24);
        s->scale[4 * i + 1] = _mm512_srai_epi32(_mm512_slli_epi32(w, 16), 24);
        s->scale[4 * i + 2] = _mm512_srai_epi32(_mm512_slli_epi32(w, 8), 24);
        s->scale[4 * i + 3] = _mm512_srai_epi32(w, 24);
        __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), odd = _mm512_srai_epi16(w, 8);
        s->factor[2 * i] = _mm512_mask_blend_epi16(0xaaaaaaaau, even, _mm512_slli_epi32(odd, 16));
        s->factor[2 * i + 1] = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd);
    }
}

INLINE void expand_3_k(const uint8_t *words, struct scales *s) {
    __m512i w0 = load_vector(words), w1 = load_vector(words + WORD), w2 = load_vector(words + 2 * WORD);
    __m512i m4 = byte_mask(0x0f), m2 = byte_mask(0x30), w[4];
    w[0] = merge_masked(_mm512_slli_epi32(w2, 4), m2, _mm512_and_si512(w0, m4));
    w[1] = merge_masked(_mm512_slli_epi32(w2, 2), m2, _mm512_and_si512(w1, m4));
    w[2] = merge_masked(w2, m2, _mm512_and_si512(_mm512_srli_epi32(w0, 4), m4));
    w[3] = merge_masked(_mm512_srli_epi32(w2, 2), m2, _mm512_and_si512(_mm512_srli_epi32(w1, 4), m4));
    for (int i = 0; i < 4; i++)
        w[i] = _mm512_sub_epi8(w[i], byte_mask(32));
    expand_signed(w, s);
}

INLINE void expand_2_k(const uint8_t *words, struct scales *s) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i w = load_vector(words + i * WORD);
        __m512i scale = _mm512_and_si512(w, byte_mask(15));
        __m512i min = _mm512_and_si512(_mm512_srli_epi32(w, 4), byte_mask(15));
        UNROLL
        for (int j = 0; j < 4; j++)
            s->scale[4 * i + j] = take_byte(scale, j);
        s->factor[2 * i] = take_pair(min, 0, 1);
        s->factor[2 * i + 1] = take_pair(min, 2, 3);
    }
}

/* Returns where the quarters begin. */
INLINE const uint8_t *expand_scales(const struct format f, const uint8_t *words, struct scales *s) {
    if (f.planes == (Q | C2)) {
        __m512i w[4];
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
INLINE void flush_parts(int n, __m512i *sum, __m512i *part, __m512i scale) {
    UNROLL
    for (int m = 0; m < n; m++) {
        sum[m] = _mm512_add_epi32(sum[m], _mm512_mullo_epi32(part[m], scale));
        part[m] = _mm512_setzero_si512();
    }
}

/* One superblock of 16 rows times n positions; rows[m] is position m's activations. */
INLINE void step_superblock(const struct format f, int n, const uint8_t *packed, const uint8_t *const *rows, int64_t b,
                            __m512 *acc) {
    const struct fwd_q8_k *act[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++)
        act[m] = (const struct fwd_q8_k *)(const void *)rows[m] + b;
    struct scales s;
    const uint8_t *quarter = expand_scales(f, packed + HALF * (1 + f.has_min), &s);
    __m512i sum[MAX_COLS], low[MAX_COLS], high[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++)
        sum[m] = low[m] = high[m] = _mm512_setzero_si512();
    const __m512i *scale = s.scale;
    for (int k = 0; k < 256; k += 64, quarter += quarter_words(f) * WORD) {
        UNROLL
        for (int g = 0; g < 8; g++) {
            __m512i w_low, w_high;
            unpack_group(f, quarter, g, &w_low, &w_high);
            UNROLL
            for (int m = 0; m < n; m++) {
                low[m] = _mm512_dpbusd_epi32(low[m], w_low, broadcast_word(act[m]->q + k + 4 * g));
                high[m] = _mm512_dpbusd_epi32(high[m], w_high, broadcast_word(act[m]->q + k + 32 + 4 * g));
            }
            if (f.sub == 16 && g % 4 == 3) {
                flush_parts(n, sum, low, scale[g / 4]);
                flush_parts(n, sum, high, scale[2 + g / 4]);
            }
        }
        if (f.sub == 32) {
            flush_parts(n, sum, low, scale[0]);
            flush_parts(n, sum, high, scale[1]);
        }
        scale += 64 / f.sub;
    }
    __m512 d = load_halves(packed), dmin = f.has_min ? load_halves(packed + HALF) : d;
    UNROLL
    for (int m = 0; m < n; m++) {
        __m512i sums = _mm512_setzero_si512();
        UNROLL
        for (int j = 0; j < 8; j++)
            sums = _mm512_dpwssd_epi32(sums, s.factor[j], broadcast_word(act[m]->sum16 + 2 * j));
        __m512 da = _mm512_set1_ps(act[m]->d);
        if (f.offset)
            sum[m] = _mm512_sub_epi32(sum[m], _mm512_mullo_epi32(sums, _mm512_set1_epi32(f.offset)));
        acc[m] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(sum[m]), acc[m]);
        if (f.has_min)
            acc[m] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, da), _mm512_cvtepi32_ps(sums), acc[m]);
    }
}

INLINE int block32_bytes(const struct format f) {
    return HALF * (1 + f.has_min) + WORD * (f.planes == Q ? 4 : f.planes == (Q | C1) ? 5 : 8);
}

/* One block of 32 of 16 rows times n positions. planes == 0: signed bytes. */
INLINE void step_block32(const struct format f, int n, const uint8_t *packed, const uint8_t *const *rows, int64_t b,
                         __m512 *acc) {
    const struct fwd_q8_32 *act[MAX_COLS];
    __m512i sum[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++) {
        act[m] = (const struct fwd_q8_32 *)(const void *)rows[m] + b;
        sum[m] = _mm512_set1_epi32(-f.offset * act[m]->sum);
    }
    const uint8_t *words = packed + HALF * (1 + f.has_min);
    if (!f.planes) {
        UNROLL
        for (int g = 0; g < 8; g++) {
            __m512i w = _mm512_xor_si512(load_vector(words + g * WORD), byte_mask(0x80));
            UNROLL
            for (int m = 0; m < n; m++)
                sum[m] = _mm512_dpbusd_epi32(sum[m], w, broadcast_word(act[m]->q + 4 * g));
        }
    } else {
        __m512i fifth = load_vector(words);
        words += f.planes & C1 ? WORD : 0;
        UNROLL
        for (int g = 0; g < 4; g++) {
            __m512i q = load_vector(words + g * WORD);
            __m512i w_low = _mm512_and_si512(q, byte_mask(15));
            __m512i w_high = _mm512_and_si512(_mm512_srli_epi32(q, 4), byte_mask(15));
            if (f.planes & C1) {
                w_low = merge_masked(move_bits(fifth, 2 * g, 4), byte_mask(16), w_low);
                w_high = merge_masked(move_bits(fifth, 2 * g + 1, 4), byte_mask(16), w_high);
            }
            UNROLL
            for (int m = 0; m < n; m++) {
                sum[m] = _mm512_dpbusd_epi32(sum[m], w_low, broadcast_word(act[m]->q + 4 * g));
                sum[m] = _mm512_dpbusd_epi32(sum[m], w_high, broadcast_word(act[m]->q + 16 + 4 * g));
            }
        }
    }
    __m512 d = load_halves(packed), min = f.has_min ? load_halves(packed + HALF) : d;
    UNROLL
    for (int m = 0; m < n; m++) {
        __m512 da = _mm512_set1_ps(act[m]->d);
        acc[m] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(sum[m]), acc[m]);
        if (f.has_min)
            acc[m] = _mm512_fmadd_ps(_mm512_mul_ps(min, da), _mm512_set1_ps((float)act[m]->sum), acc[m]);
    }
}

/* The job's blocks of one strip for n positions from `col` on. */
INLINE void run_columns(const struct format f, int n, const struct fwd_matmul_q_job *job, int64_t strip, int64_t col) {
    int64_t row = strip * ROWS, left = job->n_rows - row;
    __mmask16 lanes = (__mmask16)(left >= ROWS ? 0xffffu : (1u << left) - 1u);
    int bytes = f.sub ? superblock_bytes(f) : block32_bytes(f);
    const uint8_t *packed = job->packed + (strip * job->n_blocks + job->block_begin) * bytes;
    float *y = job->y + col * job->ld_y + row;
    __m512 acc[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++)
        acc[m] = job->block_begin ? _mm512_maskz_loadu_ps(lanes, y + m * job->ld_y) : _mm512_setzero_ps();
    const uint8_t *rows[MAX_COLS];
    UNROLL
    for (int m = 0; m < n; m++)
        rows[m] = job->act + (col + m) * job->act_stride;
    for (int64_t b = job->block_begin; b < job->block_end; b++, packed += bytes) {
        if (f.sub)
            step_superblock(f, n, packed, rows, b, acc);
        else
            step_block32(f, n, packed, rows, b, acc);
    }
    bool last = job->block_end == job->n_blocks;
    __m512 bias = last && job->bias ? _mm512_maskz_loadu_ps(lanes, job->bias + row) : _mm512_setzero_ps();
    UNROLL
    for (int m = 0; m < n; m++) {
        if (last && job->bias)
            acc[m] = _mm512_add_ps(acc[m], bias);
        if (last)
            acc[m] = _mm512_castsi512_ps(_mm512_mask_set1_epi32(
                _mm512_castps_si512(acc[m]), _mm512_cmp_ps_mask(acc[m], acc[m], _CMP_UNORD_Q), 0x7fc00000));
        _mm512_mask_storeu_ps(y + m * job->ld_y, lanes, acc[m]);
    }
}

#define FORMATS                                                                                                        \
    X(q4_0, Q, 0, 8, 0)                                                                                                \
    X(q4_1, Q, 0, 0, 1)                                                                                                \
    X(q5_0, Q | C1, 0, 16, 0)                                                                                          \
    X(q5_1, Q | C1, 0, 0, 1)                                                                                           \
    X(q8_0, 0, 0, 128, 0)                                                                                              \
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
            for (; col + 8 <= job->n_pos; col += 8)                                                                    \
                run_columns(f, 8, job, strip, col);                                                                    \
            if (job->n_pos - col >= 4) {                                                                               \
                run_columns(f, 4, job, strip, col);                                                                    \
                col += 4;                                                                                              \
            }                                                                                                          \
            if (job->n_pos - col >= 2) {                                                                               \
                run_columns(f, 2, job, strip, col);                                                                    \
                col += 2;                                                                                              \
            }                                                                                                          \
            if (job->n_pos - col >= 1)                                                                                 \
                run_columns(f, 1, job, strip, col);                                                                    \
        }                                                                                                              \
    }                                                                                                                  \
    static const struct fwd_matmul_q_kernel kernel_##name = {"rows16", ROWS, run_##name};
FORMATS
#undef X

const struct fwd_matmul_q_kernel *matmul_q_avx512(uint32_t weight_type) {
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
