/* harness/fault/fault_math.c: views, half floats, the block types and the choices of faults. The block layouts are
 * written from their description (design: numerics.md, 3.1) and checked against the engine's decoder in test_fault.c.
 */
#include "fault/fault_math.h"

#include "fault/fault.h"

#include <math.h>
#include <string.h>

/* ---- half floats ---- */

double fault_half_value(uint16_t h) {
    int exponent = h >> 10 & 31;
    double mantissa = (double)(h & 1023);
    double v = exponent == 31  ? (mantissa > 0 ? (double)NAN : (double)INFINITY)
               : exponent == 0 ? ldexp(mantissa, -24)
                               : ldexp(1024.0 + mantissa, exponent - 25);
    return h & 0x8000 ? -v : v;
}

uint16_t fault_to_half(double x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs(x);
    if (isnan(x))
        return (uint16_t)(sign | 0x7e00);
    if (a >= 65520.0)
        return (uint16_t)(sign | 0x7c00);
    int exponent = a > 0 ? ilogb(a) : -14;
    exponent = exponent < -14 ? -14 : exponent;
    /* units of the last place, half to even by the adder; a carry into the next exponent is right as it is */
    double units = nearbyint(ldexp(a, 10 - exponent));
    return (uint16_t)(sign | (unsigned)((exponent + 14) * 1024 + (int)units));
}

double fault_as_half(double x) {
    return fault_half_value(fault_to_half(x));
}

double fault_as_bf16(double x) {
    float f = (float)x;
    uint32_t bits;
    if (!isfinite(f))
        return (double)f;
    memcpy(&bits, &f, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* ---- views ---- */

char *fault_row(const struct fwd_view *v, int64_t i) {
    return (char *)v->data + v->nb[1] * i;
}

static double block_value(const char *row, int64_t k, int block_values, int block_bytes, int codes_at) {
    const char *block = row + k / block_values * block_bytes;
    float d;
    memcpy(&d, block, sizeof d);
    return (double)d * (double)((const int8_t *)block)[codes_at + k % block_values];
}

static double bf16_value(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* Of a row with its scale in front. */
static double e4m3_value(const char *row, int64_t k) {
    float d;
    memcpy(&d, row, sizeof d);
    unsigned code = ((const uint8_t *)row)[4 + k], e = code >> 3 & 15, m = code & 7;
    double magnitude = (code & 0x7f) == 0x7f ? (double)NAN : e ? ldexp(8 + m, (int)e - 10) : ldexp(m, -9);
    return (double)d * (code & 0x80 ? -magnitude : magnitude);
}

double fault_get(const struct fwd_view *v, int64_t i, int64_t k) {
    const char *row = fault_row(v, i);
    if (v->dtype == FWD_I32) /* the ids of a call are one row or one column, contiguous either way */
        return (double)((const int32_t *)v->data)[i + k];
    switch (v->dtype) {
    case FWD_F32:
        return (double)((const float *)(const void *)row)[k];
    case FWD_F64:
        return ((const double *)(const void *)row)[k];
    case FWD_F16:
        return fault_half_value(((const uint16_t *)(const void *)row)[k]);
    case FWD_Q8_K:
        return block_value(row, k, 256, 292, 4);
    case FWD_Q8_32:
        return block_value(row, k, 32, 40, 8);
    case FWD_BF16:
        return bf16_value(((const uint16_t *)(const void *)row)[k]);
    case FWD_E4M3:
        return e4m3_value(row, k);
    case FWD_I32:
        break;
    }
    return 0;
}

void fault_put(const struct fwd_view *v, int64_t i, int64_t k, double x) {
    char *row = fault_row(v, i);
    if (v->dtype == FWD_F64)
        ((double *)(void *)row)[k] = x;
    else
        ((float *)(void *)row)[k] = (float)x;
}

static char *cache_at(const struct fwd_view *v, int64_t r, int64_t h, int64_t d) {
    return (char *)v->data + v->nb[2] * r + v->nb[1] * h + v->nb[0] * d;
}

double fault_cache_get(const struct fwd_view *v, int64_t r, int64_t h, int64_t d) {
    const void *at = cache_at(v, r, h, d);
    return v->dtype == FWD_F16   ? fault_half_value(*(const uint16_t *)at)
           : v->dtype == FWD_F64 ? *(const double *)at
                                 : (double)*(const float *)at;
}

void fault_cache_put(const struct fwd_view *v, int64_t r, int64_t h, int64_t d, double x) {
    void *at = cache_at(v, r, h, d);
    if (v->dtype == FWD_F16)
        *(uint16_t *)at = fault_to_half(x);
    else if (v->dtype == FWD_F64)
        *(double *)at = x;
    else
        *(float *)at = (float)x;
}

void fault_get_row(const struct fwd_view *v, int64_t i, double *out) {
    for (int64_t k = 0; k < v->ne[0]; k++)
        out[k] = fault_get(v, i, k);
}

/* ---- weights ---- */

int fault_block_values(uint32_t type) {
    const struct fwd_type_info *info = fwd_type_info(type);
    return info->block_values > 1 ? (int)info->block_values : 32;
}

int64_t fault_block_bytes(uint32_t type) {
    const struct fwd_type_info *info = fwd_type_info(type);
    return info->block_values > 1 ? info->block_bytes : 32 * (int64_t)info->block_bytes;
}

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static double load_half(const uint8_t *p) {
    return fault_half_value(load_u16(p));
}

/* Nibbles of 16 bytes: low ones first. */
static void open_nibbles(const uint8_t *bytes, struct fault_block *b) {
    for (int i = 0; i < 32; i++)
        b->code[i] = i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4;
}

static void add_fifth_bits(const uint8_t *bits, struct fault_block *b) {
    b->high_shift = 4;
    for (int i = 0; i < 32; i++)
        b->code[i] |= (bits[i / 8] >> i % 8 & 1) << 4;
}

static void open_small(uint32_t type, const uint8_t *p, struct fault_block *b) {
    b->d = load_half(p);
    b->group = 32;
    b->n_groups = 1;
    b->scale[0] = 1;
    b->has_min = type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1;
    if (b->has_min) {
        b->dmin = -load_half(p + 2);
        b->min[0] = 1;
    }
    switch (type) {
    case FWD_TYPE_Q4_0:
        b->offset = 8;
        open_nibbles(p + 2, b);
        break;
    case FWD_TYPE_Q4_1:
        open_nibbles(p + 4, b);
        break;
    case FWD_TYPE_Q5_0:
        b->offset = 16;
        open_nibbles(p + 6, b);
        add_fifth_bits(p + 2, b);
        break;
    case FWD_TYPE_Q5_1:
        open_nibbles(p + 8, b);
        add_fifth_bits(p + 4, b);
        break;
    default:             /* Q8_0 */
        b->offset = 128; /* so that codes are unsigned, as a kernel that biases them sees them */
        for (int i = 0; i < 32; i++)
            b->code[i] = (int8_t)p[2 + i] + 128;
    }
}

/* 6-bit scales and minima of Q4_K and Q5_K. */
static void open_six_bits(const uint8_t *s, struct fault_block *b) {
    for (int j = 0; j < 8; j++) {
        b->scale[j] = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        b->min[j] = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static void open_q4_k(const uint8_t *p, const uint8_t *nibbles, struct fault_block *b) {
    b->d = load_half(p);
    b->dmin = load_half(p + 2);
    b->has_min = true;
    b->group = 32;
    b->n_groups = 8;
    open_six_bits(p + 4, b);
    for (int i = 0; i < 256; i++) {
        int byte = nibbles[i / 64 * 32 + i % 32];
        b->code[i] = i % 64 < 32 ? byte & 15 : byte >> 4;
    }
}

static void open_q5_k(const uint8_t *p, struct fault_block *b) {
    open_q4_k(p, p + 48, b);
    b->high_shift = 4;
    for (int i = 0; i < 256; i++)
        b->code[i] |= (p[16 + i % 32] >> (i / 32) & 1) << 4;
}

static void open_q2_k(const uint8_t *p, struct fault_block *b) {
    b->d = load_half(p + 80);
    b->dmin = load_half(p + 82);
    b->has_min = true;
    b->group = 16;
    b->n_groups = 16;
    for (int g = 0; g < 16; g++) {
        b->scale[g] = p[g] & 15;
        b->min[g] = p[g] >> 4;
    }
    for (int i = 0; i < 256; i++)
        b->code[i] = p[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

static void open_q3_k(const uint8_t *p, struct fault_block *b) {
    const uint8_t *s = p + 96;
    b->d = load_half(p + 108);
    b->group = 16;
    b->n_groups = 16;
    b->offset = 4;
    b->high_shift = 2;
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> g / 4 * 2 & 3;
        b->scale[g] = (low | high << 4) - 32;
    }
    for (int i = 0; i < 256; i++) {
        int low = p[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        b->code[i] = low | (p[i % 32] >> i / 32 & 1) << 2;
    }
}

static void open_q6_k(const uint8_t *p, struct fault_block *b) {
    b->d = load_half(p + 208);
    b->group = 16;
    b->n_groups = 16;
    b->offset = 32;
    b->high_shift = 4;
    for (int g = 0; g < 16; g++)
        b->scale[g] = (int8_t)p[192 + g];
    for (int i = 0; i < 256; i++) {
        int half = i / 128, part = i % 128 / 32, l = i % 32;
        int byte = p[64 * half + part % 2 * 32 + l];
        b->code[i] = (part < 2 ? byte & 15 : byte >> 4) | (p[128 + 32 * half + l] >> 2 * part & 3) << 4;
    }
}

static void open_float(uint32_t type, const uint8_t *p, int64_t n_left, struct fault_block *b) {
    b->is_float = true;
    b->n = n_left < 32 ? (int)n_left : 32;
    b->group = 32;
    b->n_groups = 1;
    for (int i = 0; i < b->n; i++) {
        float f;
        uint32_t bits = type == FWD_TYPE_F32 ? 0 : load_u16(p + 2 * i);
        if (type == FWD_TYPE_F32)
            memcpy(&f, p + 4 * i, sizeof f);
        else {
            bits <<= 16;
            memcpy(&f, &bits, sizeof f);
        }
        b->real[i] = type == FWD_TYPE_F16 ? load_half(p + 2 * i) : (double)f;
    }
}

void fault_open_block(uint32_t type, const uint8_t *p, int64_t n_left, struct fault_block *b) {
    b->n = fault_block_values(type);
    b->offset = b->high_shift = 0;
    b->has_min = b->is_float = false;
    b->d = b->dmin = 0;
    memset(b->min, 0, sizeof b->min);
    switch (type) {
    case FWD_TYPE_F32:
    case FWD_TYPE_F16:
    case FWD_TYPE_BF16:
        open_float(type, p, n_left, b);
        break;
    case FWD_TYPE_Q2_K:
        open_q2_k(p, b);
        break;
    case FWD_TYPE_Q3_K:
        open_q3_k(p, b);
        break;
    case FWD_TYPE_Q4_K:
        open_q4_k(p, p + 16, b);
        break;
    case FWD_TYPE_Q5_K:
        open_q5_k(p, b);
        break;
    case FWD_TYPE_Q6_K:
        open_q6_k(p, b);
        break;
    default:
        open_small(type, p, b);
    }
}

double fault_block_value(const struct fault_block *b, int i) {
    if (b->is_float)
        return b->real[i];
    int g = i / b->group;
    return b->d * b->scale[g] * (b->code[i] - b->offset) - b->dmin * b->min[g];
}

void fault_decode_row(uint32_t type, const uint8_t *row, int64_t n_cols, double *out) {
    struct fault_block b;
    int values = fault_block_values(type);
    int64_t bytes = fault_block_bytes(type);
    for (int64_t k = 0; k < n_cols; k += values) {
        fault_open_block(type, row + k / values * bytes, n_cols - k, &b);
        for (int i = 0; i < b.n; i++)
            out[k + i] = fault_block_value(&b, i);
    }
}

/* ---- choices ---- */

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t fault_hash(const struct par_fault *f, uint64_t salt) {
    uint64_t h = mix(f->seed);
    for (const char *c = f->row->name; *c; c++)
        h = mix(h ^ (uint8_t)*c);
    return mix(h ^ salt);
}

bool fault_at(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    int pos = call->pos0 + i, n = call->n_pos;
    if (f->pos >= 0 && f->pos != pos)
        return false;
    switch (f->row->when) {
    case PAR_WHEN_ONE:
        return n == 1;
    case PAR_WHEN_FEW:
        return n >= 2 && n <= 8;
    case PAR_WHEN_TAIL:
        return n > 1 && i >= n - (n % 4 ? n % 4 : 1);
    case PAR_WHEN_LONG:
        return pos >= 64;
    case PAR_WHEN_LATER:
        return pos >= f->n_prompt;
    case PAR_WHEN_SOMETIMES:
        return fault_hash(f, 1000 + (uint64_t)f->memory->n_calls) & 1;
    case PAR_WHEN_ALWAYS:
        break;
    }
    return true;
}

void *fault_keep(struct par_fault *f, size_t n) {
    struct par_fault_memory *m = f->memory;
    if (m->n_bytes < n) {
        fwd_free(m->data);
        m->data = fwd_calloc(n, 1);
        m->n_bytes = m->data ? n : 0;
    }
    return m->data;
}
