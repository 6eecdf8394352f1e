/* The 13 block types, from the table of numerics.md section 3.1. Shares no code with the engine's decoders. */
#include "spec/spec_decode.h"

#include "engine.h"

#include <string.h>

float par_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = (h >> 10) & 31u, fraction = h & 1023u, bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else if (fraction) {
        /* A denormal: shift the leading one into the hidden place. */
        int up = 0;
        while (!(fraction & 1024u)) {
            fraction <<= 1;
            up++;
        }
        bits = sign | (uint32_t)(113 - up) << 23 | (fraction & 1023u) << 13;
    } else {
        bits = sign;
    }
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

uint16_t par_f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and up: beyond the last half way point */
        return sign | 0x7c00u;
    int exponent = (int)(magnitude >> 23);
    if (exponent < 102) /* below 2^-25: rounds to zero */
        return sign;
    /* 11 significant bits for normals; fewer as the result gets denormal (exponent < 113). */
    uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    int drop = exponent >= 113 ? 13 : 126 - exponent;
    uint32_t kept = significand >> drop, rest = significand & ((1u << drop) - 1), half = 1u << (drop - 1);
    if (rest > half || (rest == half && (kept & 1u)))
        kept++;
    /* A normal's hidden bit is taken out by the exponent being one less; carries go up by themselves. */
    uint32_t base = exponent >= 113 ? (uint32_t)(exponent - 113) << 10 : 0;
    return (uint16_t)(sign | (uint16_t)(base + kept));
}

static uint16_t read_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static float read_half(const uint8_t *p) {
    return par_f16_to_f32(read_u16(p));
}

static uint32_t read_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void fill_scales(struct spec_block *b, int n, int16_t scale, int16_t min) {
    for (int i = 0; i < n; i++) {
        b->scale[i] = scale;
        b->min[i] = min;
    }
}

/* ---- blocks of 32 --------------------------------------------------------------------------------------------------
 */
static void unpack_q4(const uint8_t *qs, int offset, struct spec_block *b) {
    for (int j = 0; j < 16; j++) {
        b->q[j] = (int8_t)((qs[j] & 15) - offset);
        b->q[j + 16] = (int8_t)((qs[j] >> 4) - offset);
    }
}

static void unpack_q4_0(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = 0;
    fill_scales(b, 2, 1, 0);
    unpack_q4(p + 2, 8, b);
}

static void unpack_q4_1(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = -read_half(p + 2);
    fill_scales(b, 2, 1, 1);
    unpack_q4(p + 4, 0, b);
}

static void unpack_q5(const uint8_t *qh, const uint8_t *qs, int offset, struct spec_block *b) {
    uint32_t high = read_u32(qh);
    for (int j = 0; j < 16; j++) {
        b->q[j] = (int8_t)((int)((qs[j] & 15u) | ((high >> j) & 1u) << 4) - offset);
        b->q[j + 16] = (int8_t)((int)((qs[j] >> 4) | ((high >> (j + 16)) & 1u) << 4) - offset);
    }
}

static void unpack_q5_0(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = 0;
    fill_scales(b, 2, 1, 0);
    unpack_q5(p + 2, p + 6, 16, b);
}

static void unpack_q5_1(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = -read_half(p + 2);
    fill_scales(b, 2, 1, 1);
    unpack_q5(p + 4, p + 8, 0, b);
}

static void unpack_q8_0(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = 0;
    fill_scales(b, 2, 1, 0);
    memcpy(b->q, p + 2, 32);
}

/* ---- superblocks of 256 --------------------------------------------------------------------------------------------
 */
static void unpack_q2_k(const uint8_t *p, struct spec_block *b) {
    const uint8_t *scales = p, *qs = p + 16;
    b->d = read_half(p + 80);
    b->dmin = read_half(p + 82);
    for (int j = 0; j < 16; j++) {
        b->scale[j] = scales[j] & 15;
        b->min[j] = scales[j] >> 4;
    }
    for (int h = 0; h < 2; h++)
        for (int t = 0; t < 4; t++)
            for (int l = 0; l < 32; l++)
                b->q[128 * h + 32 * t + l] = (int8_t)((qs[32 * h + l] >> (2 * t)) & 3);
}

static void unpack_q3_k(const uint8_t *p, struct spec_block *b) {
    const uint8_t *mask = p, *qs = p + 32, *s = p + 96;
    b->d = read_half(p + 108);
    b->dmin = 0;
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        int high = (s[8 + (j & 3)] >> (2 * (j >> 2))) & 3;
        b->scale[j] = (int16_t)((low | high << 4) - 32);
        b->min[j] = 0;
    }
    for (int h = 0; h < 2; h++)
        for (int t = 0; t < 4; t++)
            for (int l = 0; l < 32; l++)
                b->q[128 * h + 32 * t + l] =
                    (int8_t)(((qs[32 * h + l] >> (2 * t)) & 3) - 4 + 4 * ((mask[l] >> (4 * h + t)) & 1));
}

/* The 12 bytes that hold eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K; each serves 32 values. */
static void unpack_scales12(const uint8_t *s, struct spec_block *b) {
    for (int j = 0; j < 8; j++) {
        int scale, min;
        if (j < 4) {
            scale = s[j] & 63;
            min = s[j + 4] & 63;
        } else {
            scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
            min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
        }
        b->scale[2 * j] = b->scale[2 * j + 1] = (int16_t)scale;
        b->min[2 * j] = b->min[2 * j + 1] = (int16_t)min;
    }
}

static void unpack_q4_k(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p);
    b->dmin = read_half(p + 2);
    unpack_scales12(p + 4, b);
    for (int pair = 0; pair < 4; pair++)
        for (int l = 0; l < 32; l++) {
            uint8_t v = p[16 + 32 * pair + l];
            b->q[64 * pair + l] = (int8_t)(v & 15);
            b->q[64 * pair + 32 + l] = (int8_t)(v >> 4);
        }
}

static void unpack_q5_k(const uint8_t *p, struct spec_block *b) {
    const uint8_t *qh = p + 16, *qs = p + 48;
    b->d = read_half(p);
    b->dmin = read_half(p + 2);
    unpack_scales12(p + 4, b);
    for (int pair = 0; pair < 4; pair++)
        for (int l = 0; l < 32; l++) {
            uint8_t v = qs[32 * pair + l];
            b->q[64 * pair + l] = (int8_t)((v & 15) | ((qh[l] >> (2 * pair)) & 1) << 4);
            b->q[64 * pair + 32 + l] = (int8_t)((v >> 4) | ((qh[l] >> (2 * pair + 1)) & 1) << 4);
        }
}

static void unpack_q6_k(const uint8_t *p, struct spec_block *b) {
    b->d = read_half(p + 208);
    b->dmin = 0;
    for (int j = 0; j < 16; j++) {
        b->scale[j] = (int8_t)p[192 + j];
        b->min[j] = 0;
    }
    for (int h = 0; h < 2; h++) {
        const uint8_t *ql = p + 64 * h, *qh = p + 128 + 32 * h;
        int8_t *q = b->q + 128 * h;
        for (int l = 0; l < 32; l++) {
            q[l] = (int8_t)(((ql[l] & 15) | ((qh[l] >> 0) & 3) << 4) - 32);
            q[32 + l] = (int8_t)(((ql[32 + l] & 15) | ((qh[l] >> 2) & 3) << 4) - 32);
            q[64 + l] = (int8_t)(((ql[l] >> 4) | ((qh[l] >> 4) & 3) << 4) - 32);
            q[96 + l] = (int8_t)(((ql[32 + l] >> 4) | ((qh[l] >> 6) & 3) << 4) - 32);
        }
    }
}

/* ---- the table -----------------------------------------------------------------------------------------------------
 */
struct format {
    uint32_t type;
    int values, bytes;
    bool has_min;
    void (*unpack)(const uint8_t *block, struct spec_block *out); /* NULL: plain floats */
};

static const struct format formats[] = {
    {FWD_TYPE_F32, 1, 4, false, NULL},
    {FWD_TYPE_F16, 1, 2, false, NULL},
    {FWD_TYPE_BF16, 1, 2, false, NULL},
    {FWD_TYPE_Q4_0, 32, 18, false, unpack_q4_0},
    {FWD_TYPE_Q4_1, 32, 20, true, unpack_q4_1},
    {FWD_TYPE_Q5_0, 32, 22, false, unpack_q5_0},
    {FWD_TYPE_Q5_1, 32, 24, true, unpack_q5_1},
    {FWD_TYPE_Q8_0, 32, 34, false, unpack_q8_0},
    {FWD_TYPE_Q2_K, 256, 84, true, unpack_q2_k},
    {FWD_TYPE_Q3_K, 256, 110, false, unpack_q3_k},
    {FWD_TYPE_Q4_K, 256, 144, true, unpack_q4_k},
    {FWD_TYPE_Q5_K, 256, 176, true, unpack_q5_k},
    {FWD_TYPE_Q6_K, 256, 210, false, unpack_q6_k},
};

static const struct format *find_format(uint32_t type) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].type == type)
            return &formats[i];
    return NULL;
}

int par_decode_block_values(uint32_t type) {
    const struct format *f = find_format(type);
    return f ? f->values : 0;
}

bool par_decode_has_min(uint32_t type) {
    const struct format *f = find_format(type);
    return f && f->has_min;
}

int64_t par_decode_row_bytes(uint32_t type, int64_t n) {
    const struct format *f = find_format(type);
    return f && n > 0 && n % f->values == 0 ? n / f->values * f->bytes : 0;
}

void par_decode_block(uint32_t type, const uint8_t *row, int64_t index, struct spec_block *out) {
    const struct format *f = find_format(type);
    f->unpack(row + index * f->bytes, out);
}

static void decode_plain(uint32_t type, const uint8_t *row, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        if (type == FWD_TYPE_F16) {
            dst[i] = read_half(row + 2 * i);
            continue;
        }
        bits = type == FWD_TYPE_F32 ? read_u32(row + 4 * i) : (uint32_t)read_u16(row + 2 * i) << 16;
        memcpy(&dst[i], &bits, sizeof bits);
    }
}

void par_decode_row(uint32_t type, const uint8_t *row, float *dst, int64_t n) {
    const struct format *f = find_format(type);
    if (!f->unpack) {
        decode_plain(type, row, dst, n);
        return;
    }
    struct spec_block b;
    for (int64_t base = 0; base < n; base += f->values, row += f->bytes) {
        f->unpack(row, &b);
        for (int g = 0; g < f->values / 16; g++) {
            float scale = b.d * (float)b.scale[g];
            float min = b.dmin * (float)b.min[g];
            float *y = dst + base + 16 * g;
            const int8_t *q = b.q + 16 * g;
            if (f->has_min)
                for (int i = 0; i < 16; i++)
                    y[i] = scale * (float)q[i] - min;
            else
                for (int i = 0; i < 16; i++)
                    y[i] = scale * (float)q[i];
        }
    }
}
