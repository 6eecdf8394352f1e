/* engine/ops/matmul_f/matmul_tile.h: the body of a kernel, included once by each variant file, which first defines
 *   real, vec                                     the scalar and the vector type
 *   LANES, VECS, MAX_TILE                         reals in a vec; vecs of rows and positions held in registers
 *   vec_zero, vec_load, vec_store, vec_splat, vec_add, vec_fma
 *   pack_panel                                    see struct matmul_kernel
 * and gets `kernel`. One text, so that the canonical order is written down once. */

/* The heart: VECS * LANES rows by `n` positions, n a constant after inlining. Each accumulator is the chain of one
 * output element; every MATMUL_CHAIN columns it is added to that element's sum and starts again. */
static inline __attribute__((always_inline)) void add_fixed(const real *panel, const real *x, int64_t n_k, const int n,
                                                            real *sums) {
    for (int64_t k0 = 0; k0 < n_k; k0 += MATMUL_CHAIN) {
        int64_t k1 = n_k - k0 < MATMUL_CHAIN ? n_k : k0 + MATMUL_CHAIN;
        for (int r = 0; r < MATMUL_STRIP; r += LANES * VECS) {
            vec acc[MAX_TILE][VECS];
#pragma GCC unroll 16
            for (int i = 0; i < n; i++)
#pragma GCC unroll 4
                for (int v = 0; v < VECS; v++)
                    acc[i][v] = vec_zero();
            for (int64_t k = k0; k < k1; k++) {
                vec w[VECS];
#pragma GCC unroll 4
                for (int v = 0; v < VECS; v++)
                    w[v] = vec_load(panel + k * MATMUL_STRIP + r + v * LANES);
#pragma GCC unroll 16
                for (int i = 0; i < n; i++) {
                    vec xi = vec_splat(x + k * n + i);
#pragma GCC unroll 4
                    for (int v = 0; v < VECS; v++)
                        acc[i][v] = vec_fma(w[v], xi, acc[i][v]);
                }
            }
#pragma GCC unroll 16
            for (int i = 0; i < n; i++)
#pragma GCC unroll 4
                for (int v = 0; v < VECS; v++) {
                    real *s = sums + i * MATMUL_STRIP + r + v * LANES;
                    vec_store(s, vec_add(vec_load(s), acc[i][v]));
                }
        }
    }
}

#define TILE(n)                                                                                                        \
    case n:                                                                                                            \
        add_fixed(panel, packed, n_k, n <= MAX_TILE ? n : 1, sums);                                                    \
        break
static void add_tile(const void *panel, const void *packed, int64_t n_k, int n_pos, void *sums) {
    switch (n_pos) {
        TILE(1);
        TILE(2);
        TILE(3);
        TILE(4);
        TILE(5);
        TILE(6);
#if MAX_TILE > 6
        TILE(7);
        TILE(8);
        TILE(9);
        TILE(10);
        TILE(11);
        TILE(12);
        TILE(13);
        TILE(14);
#endif
    }
}
#undef TILE

static void pack_positions(const void *x, int64_t ld, int64_t n_cols, int n_pos, void *packed) {
    const real *src = x;
    real *dst = packed;
    for (int64_t k = 0; k < n_cols; k++)
        for (int i = 0; i < n_pos; i++)
            dst[k * n_pos + i] = src[i * ld + k];
}

static void store_sums(const void *sums, const float *bias, int n_pos, int n_rows, void *y, int64_t ld) {
    const real *src = sums;
    real *dst = y;
    for (int i = 0; i < n_pos; i++)
        for (int r = 0; r < n_rows; r++)
            dst[i * ld + r] = bias ? src[i * MATMUL_STRIP + r] + (real)bias[r] : src[i * MATMUL_STRIP + r];
}

static const struct matmul_kernel kernel = {.real_bytes = sizeof(real),
                                            .max_tile = MAX_TILE,
                                            .pack_positions = pack_positions,
                                            .pack_panel = pack_panel,
                                            .add_tile = add_tile,
                                            .store_sums = store_sums};
