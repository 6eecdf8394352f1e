#include "ops/rope/rope.h"

#include <math.h>
#include <string.h>

rope_fn rope_ref;

void fwd_rope_table(const struct fwd_config *config, int pos0, int n_pos, float *table) {
    int half = config->n_rope / 2;
    for (int i = 0; i < half; i++) {
        double frequency = pow(config->rope_theta, -2.0 * i / config->n_rope);
        if (config->rope_factors)
            frequency /= (double)config->rope_factors[i];
        for (int p = 0; p < n_pos; p++) {
            double angle = (double)(pos0 + p) * frequency;
            float *entry = table + 2 * ((int64_t)p * half + i);
            entry[0] = (float)cos(angle);
            entry[1] = (float)sin(angle);
        }
    }
}

void rope_ref(const float *x, float *y, const float *turn, int n_heads, int head_dim, int n_rope,
              enum fwd_rope_pairing pairing) {
    int half = n_rope / 2;
    int step = pairing == FWD_ROPE_NORM ? 2 : 1;
    int gap = pairing == FWD_ROPE_NORM ? 1 : half;
    for (int h = 0; h < n_heads; h++, x += head_dim, y += head_dim) {
        for (int i = 0; i < half; i++) {
            float x0 = x[i * step], x1 = x[i * step + gap];
            float c = turn[2 * i], s = turn[2 * i + 1];
            y[i * step] = x0 * c - x1 * s;
            y[i * step + gap] = x0 * s + x1 * c;
        }
        if (y != x)
            memcpy(y + n_rope, x + n_rope, (size_t)(head_dim - n_rope) * sizeof *x);
    }
}
