#include "core/digest.h"

#include <math.h>
#include <string.h>

void fwd_digest_chunk(const uint32_t *words, size_t n, uint64_t first, int is_f32, struct fwd_digest *out) {
    double lane[FWD_DIGEST_LANES] = {0};
    *out = (struct fwd_digest){.n_words = n};
    for (size_t i = 0; i < n; i++) {
        out->hash += fwd_digest_mix(words[i] + (first + i + 1) * 0x9e3779b97f4a7c15u);
        if (!is_f32)
            continue;
        float x;
        memcpy(&x, &words[i], sizeof x);
        out->n_nan += isnan(x) != 0;
        out->n_inf += isinf(x) != 0;
        if (!isfinite(x))
            continue;
        out->max_abs = fabsf(x) > out->max_abs ? fabsf(x) : out->max_abs;
        lane[i % FWD_DIGEST_LANES] += (double)x * (double)x;
    }
    for (int width = FWD_DIGEST_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    out->sum_sq = lane[0];
}

void fwd_digest_add(struct fwd_digest *sum, const struct fwd_digest *chunk) {
    sum->hash += chunk->hash;
    sum->sum_sq += chunk->sum_sq;
    sum->n_words += chunk->n_words;
    sum->n_nan += chunk->n_nan;
    sum->n_inf += chunk->n_inf;
    sum->max_abs = chunk->max_abs > sum->max_abs ? chunk->max_abs : sum->max_abs;
}
