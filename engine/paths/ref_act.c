/* engine/paths/ref_act.c: what the quantised path does to the inputs of its matmuls, written again from the rule
 * (core/types.h, FWD_ACT_AMAX127) and sharing no code with that path. */
#include "paths/ref_ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* The tap formats of core/types.h. */
struct k_block {
    float d;
    int8_t q[256];
    int16_t sum16[16];
};
struct small_block {
    float d;
    int32_t sum;
    int8_t q[32];
};
_Static_assert(sizeof(struct k_block) == 292 && sizeof(struct small_block) == 40, "as in core/types.h");

/* n values to q; returns the scale d. */
static float quantise_block(const float *x, int n, int8_t *q) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        finite = finite && isfinite(a);
        amax = a > amax ? a : amax;
        q[i] = 0;
    }
    if (!finite)
        return NAN;
    if (amax < 0x1p-100f)
        return 0;
    float id = 127.0f / amax;
    for (int i = 0; i < n; i++) {
        long v = lrintf(x[i] * id); /* half to even */
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return amax / 127.0f;
}

static int sum_values(const int8_t *q, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += q[i];
    return sum;
}

static void load_floats(enum fwd_dtype real, const void *x, int64_t at, int n, float *out) {
    if (real == FWD_F32)
        memcpy(out, (const float *)x + at, (size_t)n * sizeof *out);
    else
        for (int i = 0; i < n; i++)
            out[i] = (float)((const double *)x)[at + i];
}

void ref_act_quantise(enum fwd_dtype format, enum fwd_dtype real, const void *x, int64_t n, void *blocks) {
    float values[256];
    int size = format == FWD_Q8_K ? 256 : 32;
    assert(n % size == 0);
    for (int64_t b = 0; b < n / size; b++) {
        load_floats(real, x, b * size, size, values);
        if (format == FWD_Q8_K) {
            struct k_block *block = (struct k_block *)blocks + b;
            block->d = quantise_block(values, size, block->q);
            for (int j = 0; j < 16; j++)
                block->sum16[j] = (int16_t)sum_values(block->q + 16 * j, 16);
        } else {
            struct small_block *block = (struct small_block *)blocks + b;
            block->d = quantise_block(values, size, block->q);
            block->sum = sum_values(block->q, size);
        }
    }
}

void ref_act_dequantise(enum fwd_dtype format, enum fwd_dtype real, const void *blocks, int64_t n, void *x) {
    int size = format == FWD_Q8_K ? 256 : 32;
    for (int64_t b = 0; b < n / size; b++) {
        const struct k_block *k = (const struct k_block *)blocks + b;
        const struct small_block *small = (const struct small_block *)blocks + b;
        float d = format == FWD_Q8_K ? k->d : small->d;
        const int8_t *q = format == FWD_Q8_K ? k->q : small->q;
        for (int i = 0; i < size; i++) {
            if (real == FWD_F32)
                ((float *)x)[b * size + i] = d * (float)q[i];
            else
                ((double *)x)[b * size + i] = (double)d * q[i];
        }
    }
}
