#include "ops/swiglu/swiglu.h"

#include "ops/expf/expf.h"

swiglu_fn swiglu_ref;

void swiglu_ref(const float *gate, const float *up, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i];
        float e = fwd_expf(-fabsf(g));
        float num = g < 0.0f ? g * e : g;
        y[i] = num / (1.0f + e) * up[i];
    }
}
