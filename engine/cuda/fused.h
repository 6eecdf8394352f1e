/* engine/cuda/fused.h: neighbouring small ops of a prompt in one launch, the bits of the ops of kernels.h one by one.
 * What lies between two of them goes to memory only where a pointer asks for it (taps), by the same kernel. */
#ifndef ENGINE_CUDA_FUSED_H
#define ENGINE_CUDA_FUSED_H

#include "cuda/kernels.h"
#include "cuda/kernels_tc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a quantised row goes: each form that is wanted, NULL for the others; the taps' own layout beside it or NULL. */
struct cuda_quantised {
    const struct cuda_act *k, *b32; /* FWD_Q8_K, FWD_Q8_32 */
    const struct cuda_tc_act *tc;   /* BF16 or E4M3 */
    uint8_t *tap_k, *tap_b32, *tap_tc;
};

/* sum = a + b (b NULL: a itself, sum then NULL), norm = rmsnorm(sum) * w, norm quantised. sum may be a or b. norm may
 * be NULL where some form of out is wanted. n a multiple of 32, of 256 with out.k, at most 16384. */
struct cuda_add_norm {
    const float *a, *b;
    float *sum;
    const float *w;
    float eps;
    int n, n_pos;
    float *norm;
    struct cuda_quantised out;
};
void cuda_add_norm(struct CUstream_st *stream, const struct cuda_add_norm *args);

/* q and k turned by position (q_rot, k_rot; k_rot may be NULL), k_rot and v into the cache. */
struct cuda_rope_store {
    const float *q, *k, *v;
    float *q_rot, *k_rot;
    const float *turn; /* from position 0 */
    int pos0, n_pos, n_head, n_rope;
    bool neox;
    struct cuda_kv cache_k, cache_v; /* n_kv_head, head_dim of these */
};
void cuda_rope_store(struct CUstream_st *stream, const struct cuda_rope_store *args);

/* y = swiglu(gate, up) (NULL: not stored), quantised. n as in cuda_add_norm, any size. */
struct cuda_swiglu_quantise {
    const float *gate, *up;
    float *y;
    int n, n_pos;
    struct cuda_quantised out;
};
void cuda_swiglu_quantise(struct CUstream_st *stream, const struct cuda_swiglu_quantise *args);

#ifdef __cplusplus
}
#endif
#endif
