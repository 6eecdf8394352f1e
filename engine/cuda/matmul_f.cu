/* engine/cuda/matmul_f.cu: F32 products in the arithmetic of ops/matmul_f/matmul_f.h: chains of 64, added in order.
 *
 * Columns past the last one are filled with zeros in both operands: fma(0, 0, c) = c for every c but -0, and a chain
 * that ends in -0 instead of +0 adds the same to a sum that starts from +0. */
#include "cuda/kernels.h"

#include <cuda_runtime.h>

enum { CHAIN = 64 };

struct product {
    const float *w, *x, *bias;
    float *y;
    int64_t n, k, ld_x, ld_y; /* n rows of w, k columns */
    int m;                    /* positions */
    bool vectors;             /* rows of w and x start on 16 bytes, k is a multiple of 4 */
};

/* ---- one position: a warp 8 rows, 256 columns a step, through shared memory; a lane the chain of 64 columns of a row
 * - */
enum { V_ROWS = 8, V_COLS = 256, V_STRIDE = V_COLS + 4, V_STAGES = 3, WARP = 32 };

/* 16 or 4 bytes to shared memory without waiting; zeros where `is` is false. */
static __device__ void copy_async(float *to, const float *from, bool is, bool vector) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    if (vector)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(is ? 16 : 0));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(is ? 4 : 0));
}

static __device__ void fetch_step(const struct product &p, const float *x, int64_t row0, int64_t k0, float *stage) {
    const int lane = threadIdx.x, wide = p.vectors ? 4 : 1;
#pragma unroll 8
    for (int i = lane * wide; i < V_ROWS * V_COLS; i += WARP * wide) {
        const int64_t row = row0 + i / V_COLS, k = k0 + i % V_COLS;
        const bool is = row < p.n && k < p.k;
        copy_async(stage + i / V_COLS * V_STRIDE + i % V_COLS, is ? p.w + row * p.k + k : p.w, is, p.vectors);
    }
    for (int i = lane * wide; i < V_COLS; i += WARP * wide)
        copy_async(stage + V_ROWS * V_STRIDE + i, k0 + i < p.k ? x + k0 + i : x, k0 + i < p.k, p.vectors);
}

static __global__ void __launch_bounds__(WARP) vector_product(const struct product p) {
    __shared__ __align__(16) float stages[V_STAGES][V_ROWS * V_STRIDE + V_COLS];
    const int lane = threadIdx.x, r = lane % V_ROWS, c = lane / V_ROWS;
    const int64_t row0 = (int64_t)blockIdx.x * V_ROWS, n_steps = (p.k + V_COLS - 1) / V_COLS;
    const float *x = p.x + blockIdx.y * p.ld_x;
    float total = 0.0f;
    for (int s = 0; s < V_STAGES - 1; s++) {
        if (s < n_steps)
            fetch_step(p, x, row0, (int64_t)s * V_COLS, stages[s]);
        asm volatile("cp.async.commit_group;");
    }
    for (int64_t s = 0; s < n_steps; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(V_STAGES - 2) : "memory");
        __syncwarp();
        if (s + V_STAGES - 1 < n_steps)
            fetch_step(p, x, row0, (s + V_STAGES - 1) * V_COLS, stages[(s + V_STAGES - 1) % V_STAGES]);
        asm volatile("cp.async.commit_group;");
        const float *stage = stages[s % V_STAGES];
        const float4 *w4 = (const float4 *)(stage + r * V_STRIDE + c * CHAIN);
        const float4 *x4 = (const float4 *)(stage + V_ROWS * V_STRIDE + c * CHAIN);
        float chain = 0.0f;
#pragma unroll
        for (int i = 0; i < CHAIN / 4; i++) {
            const float4 a = w4[i], b = x4[i];
            chain = __fmaf_rn(a.x, b.x, chain);
            chain = __fmaf_rn(a.y, b.y, chain);
            chain = __fmaf_rn(a.z, b.z, chain);
            chain = __fmaf_rn(a.w, b.w, chain);
        }
#pragma unroll
        for (int i = 0; i < V_COLS / CHAIN; i++)
            total += __shfl_sync(~0u, chain, r + i * V_ROWS);
    }
    if (c == 0 && row0 + r < p.n)
        p.y[blockIdx.y * p.ld_y + row0 + r] = p.bias != NULL ? total + p.bias[row0 + r] : total;
}

/* ---- many positions: tiles of T positions by T rows, 256 threads, (T / 16)^2 outputs a thread ---------------------
 */
enum { DEPTH = 16, THREADS = 256 };

/* Four neighbouring values of a row; zeros past its end. */
static __device__ float4 load4(const float *row, bool is, int64_t k, int64_t n_k, bool vector) {
    if (!is || k >= n_k)
        return make_float4(0, 0, 0, 0);
    if (vector)
        return *(const float4 *)(row + k);
    return make_float4(row[k], k + 1 < n_k ? row[k + 1] : 0.0f, k + 2 < n_k ? row[k + 2] : 0.0f,
                       k + 3 < n_k ? row[k + 3] : 0.0f);
}

/* A thread's share of a tile of T rows and DEPTH columns of one operand. */
template <int T> struct share { float4 v[T / 64]; };

template <int T>
static __device__ void load_share(struct share<T> *to, const float *from, int64_t row0, int64_t n_rows, int64_t ld,
                                  int64_t k0, const struct product &p) {
#pragma unroll
    for (int i = 0; i < T / 64; i++) {
        const int64_t row = row0 + threadIdx.x / 4 + 64 * i;
        to->v[i] = load4(from + row * ld, row < n_rows, k0 + threadIdx.x % 4 * 4, p.k, p.vectors);
    }
}

/* Columns become rows, so that a thread's operands lie side by side. */
template <int T> static __device__ void store_share(const struct share<T> *from, float (*to)[T + 4]) {
#pragma unroll
    for (int i = 0; i < T / 64; i++) {
        const int row = (int)threadIdx.x / 4 + 64 * i, k = threadIdx.x % 4 * 4;
        to[k][row] = from->v[i].x;
        to[k + 1][row] = from->v[i].y;
        to[k + 2][row] = from->v[i].z;
        to[k + 3][row] = from->v[i].w;
    }
}

/* T / 16 values of a row of the tile: 4 from place 4 * t on, and 4 from 64 + 4 * t on where T is 128. */
template <int T> static __device__ void take(const float *row, int t, float v[T / 16]) {
#pragma unroll
    for (int i = 0; i < T / 64; i++) {
        const float4 four = *(const float4 *)(row + 64 * i + 4 * t);
        v[4 * i] = four.x;
        v[4 * i + 1] = four.y;
        v[4 * i + 2] = four.z;
        v[4 * i + 3] = four.w;
    }
}

template <int T> static __global__ void __launch_bounds__(THREADS) tile_product(const struct product p) {
    enum { N = T / 16 };
    __shared__ __align__(16) float xs[2][DEPTH][T + 4], ws[2][DEPTH][T + 4];
    const int tm = threadIdx.x / 16, tn = threadIdx.x % 16;
    const int64_t m0 = (int64_t)blockIdx.y * T, n0 = (int64_t)blockIdx.x * T;
    float chain[N][N], total[N][N];
#pragma unroll
    for (int i = 0; i < N * N; i++)
        chain[i / N][i % N] = total[i / N][i % N] = 0.0f;
    struct share<T> x_next, w_next;
    load_share<T>(&x_next, p.x, m0, p.m, p.ld_x, 0, p);
    load_share<T>(&w_next, p.w, n0, p.n, p.k, 0, p);
    store_share<T>(&x_next, xs[0]);
    store_share<T>(&w_next, ws[0]);
    __syncthreads();
    int at = 0;
    for (int64_t k0 = 0; k0 < p.k; k0 += DEPTH, at ^= 1) {
        load_share<T>(&x_next, p.x, m0, p.m, p.ld_x, k0 + DEPTH, p);
        load_share<T>(&w_next, p.w, n0, p.n, p.k, k0 + DEPTH, p);
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float a[N], b[N];
            take<T>(xs[at][k], tm, a);
            take<T>(ws[at][k], tn, b);
#pragma unroll
            for (int i = 0; i < N * N; i++)
                chain[i / N][i % N] = __fmaf_rn(b[i % N], a[i / N], chain[i / N][i % N]);
        }
        if ((k0 + DEPTH) % CHAIN == 0 || k0 + DEPTH >= p.k) {
#pragma unroll
            for (int i = 0; i < N * N; i++) {
                total[i / N][i % N] += chain[i / N][i % N];
                chain[i / N][i % N] = 0.0f;
            }
        }
        store_share<T>(&x_next, xs[at ^ 1]);
        store_share<T>(&w_next, ws[at ^ 1]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < N * N; i++) {
        const int64_t m = m0 + i / N / 4 * 64 + 4 * tm + i / N % 4, n = n0 + i % N / 4 * 64 + 4 * tn + i % 4;
        if (m < p.m && n < p.n)
            p.y[m * p.ld_y + n] = p.bias != NULL ? total[i / N][i % N] + p.bias[n] : total[i / N][i % N];
    }
}

void cuda_matmul_f(struct CUstream_st *stream, const struct cuda_linear *w, const float *x, int64_t ld_x, int n_pos,
                   float *y, int64_t ld_y) {
    /* Few positions read the matrix once each; the second time it mostly comes from the cache. */
    const int few = 4;
    /* Small tiles where big ones leave the card half empty. */
    const int64_t big = 128, small = 64, enough_blocks = 96;
    const struct product p = {(const float *)w->data,
                              x,
                              w->bias,
                              y,
                              w->n_rows,
                              w->n_cols,
                              ld_x,
                              ld_y,
                              n_pos,
                              w->n_cols % 4 == 0 && (ld_x % 4 == 0 || n_pos == 1) && (uintptr_t)x % 16 == 0 &&
                                  (uintptr_t)w->data % 16 == 0};
    const int64_t n_big = (p.n + big - 1) / big * ((p.m + big - 1) / big);
    if (n_pos <= few)
        vector_product<<<dim3((unsigned)((p.n + V_ROWS - 1) / V_ROWS), (unsigned)n_pos), WARP, 0, stream>>>(p);
    else if (n_big >= enough_blocks)
        tile_product<128>
            <<<dim3((unsigned)((p.n + big - 1) / big), (unsigned)((p.m + big - 1) / big)), THREADS, 0, stream>>>(p);
    else
        tile_product<64><<<dim3((unsigned)((p.n + small - 1) / small), (unsigned)((p.m + small - 1) / small)), THREADS,
                           0, stream>>>(p);
}
