/* engine/ops/matmul_q/matmul_q_ref.c: the definition of matmul_q in plain C. Reads the file's own bytes: a block is
 * decoded to its integers (numerics.md, section 3.1), then the sums of matmul_q.h are taken one by one. Shares no
 * layout code with the packed variants. */
#include "core/half.h"
#include "ops/act_quant/act_quant.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/matmul_q/matmul_q_kernel.h"

#include <math.h>
#include <string.h>

matmul_q_fn matmul_q_ref;

/* One block of one row: value e is d * scale[e / sub] * q[e] - dmin * min[e / sub] (K-quants), d * q[e] + dmin (blocks
 * of 32). */
struct block {
    float d, dmin;
    int16_t q[256];
    int16_t scale[16], min[16];
};

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static float load_half(const uint8_t *p) {
    return fwd_f16_to_f32(load_u16(p));
}

/* ---- blocks of 32 ---- */

static void decode_nibbles(const uint8_t *qs, int16_t *q) {
    for (int j = 0; j < 16; j++) {
        q[j] = qs[j] & 15;
        q[j + 16] = qs[j] >> 4;
    }
}

static void add_fifth_bit(const uint8_t *qh, int16_t *q) {
    for (int e = 0; e < 32; e++)
        q[e] = (int16_t)(q[e] | (qh[e / 8] >> e % 8 & 1) << 4);
}

static void add_offset(int16_t *q, int n, int offset) {
    for (int e = 0; e < n; e++)
        q[e] = (int16_t)(q[e] + offset);
}

static void decode_q4_0(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    decode_nibbles(src + 2, b->q);
    add_offset(b->q, 32, -8);
}

static void decode_q4_1(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    b->dmin = load_half(src + 2);
    decode_nibbles(src + 4, b->q);
}

static void decode_q5_0(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    decode_nibbles(src + 6, b->q);
    add_fifth_bit(src + 2, b->q);
    add_offset(b->q, 32, -16);
}

static void decode_q5_1(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    b->dmin = load_half(src + 2);
    decode_nibbles(src + 8, b->q);
    add_fifth_bit(src + 4, b->q);
}

static void decode_q8_0(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    for (int e = 0; e < 32; e++)
        b->q[e] = (int8_t)src[2 + e];
}

/* ---- superblocks of 256 ---- */

/* Two bits per value: element 128 h + 32 t + l is bits 2t, 2t+1 of byte 32 h + l. */
static int two_bits(const uint8_t *bytes, int e) {
    return bytes[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3;
}

static void decode_q2_k(const uint8_t *src, struct block *b) {
    b->d = load_half(src + 80);
    b->dmin = load_half(src + 82);
    for (int j = 0; j < 16; j++) {
        b->scale[j] = src[j] & 15;
        b->min[j] = src[j] >> 4;
    }
    for (int e = 0; e < 256; e++)
        b->q[e] = (int16_t)two_bits(src + 16, e);
}

static void decode_q3_k(const uint8_t *src, struct block *b) {
    const uint8_t *hmask = src, *qs = src + 32, *s = src + 96;
    b->d = load_half(src + 108);
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        b->scale[j] = (int16_t)((low | high << 4) - 32);
    }
    for (int e = 0; e < 256; e++) {
        int set = hmask[e % 32] >> (e / 32) & 1;
        b->q[e] = (int16_t)(two_bits(qs, e) - (set ? 0 : 4));
    }
}

/* The 12 bytes that hold eight 6-bit scales and eight 6-bit mins. */
static void decode_scales_6bit(const uint8_t *s, struct block *b) {
    for (int j = 0; j < 4; j++) {
        b->scale[j] = s[j] & 63;
        b->min[j] = s[j + 4] & 63;
        b->scale[j + 4] = (int16_t)((s[j + 8] & 15) | s[j] >> 6 << 4);
        b->min[j + 4] = (int16_t)(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}

static int nibble_of_pair(const uint8_t *qs, int e) {
    return qs[e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15;
}

static void decode_q4_k(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    b->dmin = load_half(src + 2);
    decode_scales_6bit(src + 4, b);
    for (int e = 0; e < 256; e++)
        b->q[e] = (int16_t)nibble_of_pair(src + 16, e);
}

static void decode_q5_k(const uint8_t *src, struct block *b) {
    b->d = load_half(src);
    b->dmin = load_half(src + 2);
    decode_scales_6bit(src + 4, b);
    for (int e = 0; e < 256; e++)
        b->q[e] = (int16_t)(nibble_of_pair(src + 48, e) | (src[16 + e % 32] >> (e / 32) & 1) << 4);
}

static void decode_q6_k(const uint8_t *src, struct block *b) {
    const uint8_t *ql = src, *qh = src + 128;
    b->d = load_half(src + 208);
    for (int j = 0; j < 16; j++)
        b->scale[j] = (int8_t)src[192 + j];
    for (int e = 0; e < 256; e++) {
        int h = e / 128, t = e / 32 % 4, l = e % 32;
        int low = ql[64 * h + 32 * (t & 1) + l] >> (t >= 2 ? 4 : 0) & 15;
        b->q[e] = (int16_t)((low | two_bits(qh, e) << 4) - 32);
    }
}

/* ---- the sums ---- */

typedef void decode_fn(const uint8_t *src, struct block *b);

/* sub: values per scale (superblocks). */
struct format {
    decode_fn *decode;
    int block_bytes, sub;
    bool has_min;
};

static float finish(float acc, const float *bias) {
    float y = bias ? acc + *bias : acc;
    return isnan(y) ? fwd_bits_f32(0x7fc00000u) : y;
}

static float step_superblock(const struct format *f, const struct block *w, const struct fwd_q8_k *a, float acc) {
    int32_t dot = 0, mins = 0;
    for (int j = 0; j < 256 / f->sub; j++) {
        int32_t part = 0, sum = 0;
        for (int e = j * f->sub; e < (j + 1) * f->sub; e++) {
            part += w->q[e] * a->q[e];
            sum += a->q[e];
        }
        dot += w->scale[j] * part;
        mins += w->min[j] * sum;
    }
    acc = fmaf(w->d * a->d, (float)dot, acc);
    return f->has_min ? fmaf(-(w->dmin * a->d), (float)mins, acc) : acc;
}

static float step_block32(const struct format *f, const struct block *w, const struct fwd_q8_32 *a, float acc) {
    int32_t dot = 0, sum = 0;
    for (int e = 0; e < 32; e++) {
        dot += w->q[e] * a->q[e];
        sum += a->q[e];
    }
    acc = fmaf(w->d * a->d, (float)dot, acc);
    return f->has_min ? fmaf(w->dmin * a->d, (float)sum, acc) : acc;
}

/* Block by block, so that each is decoded once for all positions; the chain of a position is parked in y. */
static void run_rows(const struct format *f, const struct fwd_matmul_q_job *job) {
    struct block w = {0};
    for (int64_t n = job->strip_begin; n < job->strip_end; n++) {
        for (int64_t b = job->block_begin; b < job->block_end; b++) {
            f->decode(job->packed + (n * job->n_blocks + b) * f->block_bytes, &w);
            for (int64_t m = 0; m < job->n_pos; m++) {
                const uint8_t *act = job->act + m * job->act_stride;
                float *y = job->y + m * job->ld_y + n;
                float acc = b == 0 ? 0.0f : *y;
                *y = f->sub ? step_superblock(f, &w, (const struct fwd_q8_k *)(const void *)act + b, acc)
                            : step_block32(f, &w, (const struct fwd_q8_32 *)(const void *)act + b, acc);
            }
        }
        if (job->block_end == job->n_blocks)
            for (int64_t m = 0; m < job->n_pos; m++)
                job->y[m * job->ld_y + n] = finish(job->y[m * job->ld_y + n], job->bias ? job->bias + n : NULL);
    }
}

/* X(name, block bytes, values per scale or 0, has a min) */
#define FORMATS                                                                                                        \
    X(q4_0, 18, 0, false)                                                                                              \
    X(q4_1, 20, 0, true)                                                                                               \
    X(q5_0, 22, 0, false)                                                                                              \
    X(q5_1, 24, 0, true)                                                                                               \
    X(q8_0, 34, 0, false)                                                                                              \
    X(q2_k, 84, 16, true)                                                                                              \
    X(q3_k, 110, 16, false)                                                                                            \
    X(q4_k, 144, 32, true)                                                                                             \
    X(q5_k, 176, 32, true)                                                                                             \
    X(q6_k, 210, 16, false)

#define X(name, bytes, sub, has_min)                                                                                   \
    static void run_##name(const struct fwd_matmul_q_job *job) {                                                       \
        run_rows(&(const struct format){decode_##name, bytes, sub, has_min}, job);                                     \
    }                                                                                                                  \
    static const struct fwd_matmul_q_kernel kernel_##name = {"file", 1, run_##name};
FORMATS
#undef X

const struct fwd_matmul_q_kernel *matmul_q_ref(uint32_t weight_type) {
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
