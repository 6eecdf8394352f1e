/* engine/ops/act_quant/act_quant_ref.c: the rule of act_quant.h in plain C; it is the definition. */
#include "core/half.h"
#include "ops/act_quant/act_quant.h"

#include <math.h>

act_quant_k_fn act_quant_k_ref;
act_quant_32_fn act_quant_32_ref;

/* Quantises n values of one block and returns its scale. */
static float quantise_block(const float *x, int8_t *q, int n) {
    float amax = 0.0f;
    int finite = 1;
    for (int i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
        q[i] = 0;
    }
    if (!finite)
        return fwd_bits_f32(0x7fc00000u);
    if (amax < 0x1p-100f)
        return 0.0f;
    float id = 127.0f / amax;
    for (int i = 0; i < n; i++) {
        int r = (int)rintf(x[i] * id);
        q[i] = (int8_t)(r > 127 ? 127 : r < -127 ? -127 : r);
    }
    return amax / 127.0f;
}

void act_quant_k_ref(const float *x, struct fwd_q8_k *out, int64_t n) {
    for (int64_t b = 0; b < n / 256; b++) {
        out[b].d = quantise_block(x + b * 256, out[b].q, 256);
        for (int j = 0; j < 16; j++) {
            int sum = 0;
            for (int i = 0; i < 16; i++)
                sum += out[b].q[16 * j + i];
            out[b].sum16[j] = (int16_t)sum;
        }
    }
}

void act_quant_32_ref(const float *x, struct fwd_q8_32 *out, int64_t n) {
    for (int64_t b = 0; b < n / 32; b++) {
        out[b].d = quantise_block(x + b * 32, out[b].q, 32);
        out[b].sum = 0;
        for (int i = 0; i < 32; i++)
            out[b].sum += out[b].q[i];
    }
}
