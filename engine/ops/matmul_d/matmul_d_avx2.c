/* engine/ops/matmul_d/matmul_d_avx2.c: 4 rows in lanes, 2 x 6 accumulators in registers. */
#include "ops/matmul_f/matmul_drive.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/matmul_f/transpose_avx2.h"

typedef double real;
typedef __m256d vec;
#define MAX_TILE 6
enum { LANES = 4, VECS = 2 };

static inline vec vec_zero(void) {
    return _mm256_setzero_pd();
}
static inline vec vec_load(const real *p) {
    return _mm256_loadu_pd(p);
}
static inline void vec_store(real *p, vec a) {
    _mm256_storeu_pd(p, a);
}
static inline vec vec_splat(const real *p) {
    return _mm256_set1_pd(*p);
}
static inline vec vec_add(vec a, vec b) {
    return _mm256_add_pd(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_pd(a, b, c);
}

static void pack_panel(const float *rows, int64_t n_k, void *panel) {
    double *dst = panel;
    for (int64_t k = 0; k < n_k; k += 8)
        for (int r = 0; r < MATMUL_STRIP; r += 8) {
            __m256 t[8];
            transpose_8x8(rows + r * MATMUL_DEPTH + k, MATMUL_DEPTH, t);
            for (int j = 0; j < 8; j++) {
                double *out = dst + (k + j) * MATMUL_STRIP + r;
                _mm256_storeu_pd(out, _mm256_cvtps_pd(_mm256_castps256_ps128(t[j])));
                _mm256_storeu_pd(out + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(t[j], 1)));
            }
        }
}

#include "ops/matmul_f/matmul_tile.h"

matmul_d_fn matmul_d_avx2;
void matmul_d_avx2(const struct fwd_matmul_d_args *a) {
    struct matmul_call call = {&kernel, a->w, a->x, a->ld_x, a->n_pos, a->bias, a->y, a->ld_y, a->scratch, a->pool};
    fwd_matmul_drive(&call);
}
