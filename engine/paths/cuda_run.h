/* engine/paths/cuda_run.h: what cuda_run.c (op by op) and cuda_run_fused.c (neighbouring small ops in one launch) share
 * of one run call. */
#ifndef ENGINE_PATHS_CUDA_RUN_H
#define ENGINE_PATHS_CUDA_RUN_H

#include "paths/cuda_session.h"

struct cuda_call {
    struct fwd_session *s;
    const struct fwd_run_args *args;
    int n_pos, pos0;
    struct fwd_error *err;
};

/* One op input as the products read it: floats, and its quantised forms where some product needs them (data NULL: none
 * does). */
enum { CUDA_FORMATS = 4 };
struct cuda_input {
    struct fwd_view f32, as[CUDA_FORMATS]; /* Q8_K, Q8_32, BF16, E4M3 */
};

/* A norm, and who multiplies with what it gives. */
struct cuda_norm {
    enum fwd_op op, q8;
    int layer;
    const struct fwd_weight *file;
    const float *vector;
    const struct cuda_matrix *users[3];
    int n_users;
};

/* ---- cuda_run.c ---- */

struct fwd_view cuda_f32_view(const struct cuda_call *r, enum fwd_op op, int layer, float *data, int64_t n);
/* A cache's view as the kernels describe it. */
struct cuda_kv cuda_kv_of(const struct fwd_view *v);
/* Fills in->as for in->f32 and the products with `users`. */
void cuda_choose_formats(const struct cuda_call *r, struct cuda_input *in, enum fwd_op op,
                         const struct cuda_matrix *const *users, int n_users);
/* Whether anybody will look at intermediates: they are then in memory, quantised ones in the taps' layout as well. */
bool cuda_taps_wanted(const struct cuda_call *r);
/* An op's value, which is computed or enqueued, to the call's tap or digest. */
enum fwd_status cuda_hand_out(const struct cuda_call *r, const struct fwd_view *out);

/* ---- cuda_run_fused.c ----
 * Each group: whether it is one launch here (asked for, nothing in it overridden, no scribbling between its ops, a
 * shape that the launch takes), and the launch. Bits, views and taps are those of the ops one by one. */

/* sum: the addition before the norm, or NULL. n: a row's values. */
bool cuda_can_add_norm(const struct cuda_call *r, const struct fwd_view *sum, const struct cuda_norm *t, int64_t n);
/* *sum = a + b; *out is the norm of it. sum and b NULL: of a. */
enum fwd_status cuda_run_add_norm(const struct cuda_call *r, const struct fwd_view *a, const struct fwd_view *b,
                                  const struct fwd_view *sum, const struct cuda_norm *t, struct cuda_input *out);
bool cuda_can_rope_store(const struct cuda_call *r, int layer);
enum fwd_status cuda_run_rope_store(const struct cuda_call *r, const struct fwd_view *q, const struct fwd_view *k,
                                    const struct fwd_view *v, const struct fwd_view *q_rot,
                                    const struct fwd_view *k_rot, const struct fwd_view *k_cache,
                                    const struct fwd_view *v_cache);
bool cuda_can_swiglu_quantise(const struct cuda_call *r, int layer, int64_t n);
/* out->f32 is the view of what down multiplies with. */
enum fwd_status cuda_run_swiglu_quantise(const struct cuda_call *r, const struct fwd_view *gate,
                                         const struct fwd_view *up, const struct cuda_matrix *down,
                                         struct cuda_input *out);

#endif
