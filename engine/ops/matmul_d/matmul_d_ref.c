/* engine/ops/matmul_d/matmul_d_ref.c: plain C, the definition. */
#include "ops/matmul_f/matmul_drive.h"
#include "ops/matmul_f/matmul_f.h"

#include <math.h>

typedef double real;
typedef double vec;
#define MAX_TILE 4
enum { LANES = 1, VECS = 2 };

static inline vec vec_zero(void) {
    return 0;
}
static inline vec vec_load(const real *p) {
    return *p;
}
static inline void vec_store(real *p, vec a) {
    *p = a;
}
static inline vec vec_splat(const real *p) {
    return *p;
}
static inline vec vec_add(vec a, vec b) {
    return a + b;
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return fma(a, b, c);
}

static void pack_panel(const float *rows, int64_t n_k, void *panel) {
    real *dst = panel;
    for (int64_t k = 0; k < n_k; k++)
        for (int r = 0; r < MATMUL_STRIP; r++)
            dst[k * MATMUL_STRIP + r] = rows[r * MATMUL_DEPTH + k];
}

#include "ops/matmul_f/matmul_tile.h"

matmul_d_fn matmul_d_ref;
void matmul_d_ref(const struct fwd_matmul_d_args *a) {
    struct matmul_call call = {&kernel, a->w, a->x, a->ld_x, a->n_pos, a->bias, a->y, a->ld_y, a->scratch, a->pool};
    fwd_matmul_drive(&call);
}
