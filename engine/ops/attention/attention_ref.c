#include "ops/attention/attention.h"

#include "core/half.h"
#include "ops/expf/expf.h"

attention_fn attention_ref;

static inline float widen(const void *row, enum fwd_dtype type, int d) {
    return type == FWD_F16 ? fwd_f16_to_f32(((const uint16_t *)row)[d]) : ((const float *)row)[d];
}

static float add_lanes(float lane[16]) {
    for (int width = 8; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

static float dot(const float *q, const void *k, enum fwd_dtype type, int head_dim) {
    float lane[16] = {0};
    for (int d = 0; d < head_dim; d++)
        lane[d % 16] = fmaf(q[d], widen(k, type, d), lane[d % 16]);
    return add_lanes(lane);
}

/* One segment of one head: probabilities into p, weighted values into o, returns (max, sum). */
static struct fwd_attention_state run_segment(const struct fwd_attention_unit *u, const float *q, int key0, int n,
                                              float *p, float *o) {
    const uint8_t *k = (const uint8_t *)u->k + key0 * u->stride_k;
    const uint8_t *v = (const uint8_t *)u->v + key0 * u->stride_v;
    float max = -INFINITY;
    for (int j = 0; j < n; j++) {
        p[j] = dot(q, k + j * u->stride_k, u->kv_type, u->head_dim) * u->scale;
        max = p[j] > max ? p[j] : max;
    }
    float lane[16] = {0};
    for (int j = 0; j < n; j++) {
        p[j] = fwd_expf(p[j] - max);
        lane[j % 16] += p[j];
    }
    for (int d = 0; d < u->head_dim; d++)
        o[d] = 0.0f;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < u->head_dim; d++)
            o[d] = fmaf(p[j], widen(v + j * u->stride_v, u->kv_type, d), o[d]);
    return (struct fwd_attention_state){max, add_lanes(lane)};
}

void attention_ref(const struct fwd_attention_unit *u) {
    float *p = u->scratch, *part = u->scratch + FWD_ATTENTION_SEGMENT;
    for (int h = 0; h < u->n_heads; h++) {
        struct fwd_attention_state state = {0};
        float *o = u->o[h];
        for (int key0 = 0; key0 < u->n_keys; key0 += FWD_ATTENTION_SEGMENT) {
            int n = u->n_keys - key0 < FWD_ATTENTION_SEGMENT ? u->n_keys - key0 : FWD_ATTENTION_SEGMENT;
            if (key0 == 0) {
                state = run_segment(u, u->q[h], 0, n, p, o);
                continue;
            }
            struct fwd_attention_state s = run_segment(u, u->q[h], key0, n, p, part);
            float a, b;
            fwd_attention_join(&state, s.max, s.sum, &a, &b);
            for (int d = 0; d < u->head_dim; d++)
                o[d] = fmaf(o[d], a, part[d] * b);
        }
        for (int d = 0; d < u->head_dim; d++)
            o[d] /= state.sum;
    }
}
