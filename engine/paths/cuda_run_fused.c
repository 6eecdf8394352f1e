/* engine/paths/cuda_run_fused.c: neighbouring small ops of a run call in one launch each. With taps the same launch
 * stores what lies between the ops as well; it is handed out afterwards in the ops' order. The ops of a group write
 * different buffers, none of which the op before the group wrote (the rule at cuda_tap_give). */
#include "paths/cuda_run.h"

#include "cuda/fused.h"

enum { MOST_NORM = 16384 }; /* cuda_add_norm's largest row */

static bool is_free(const struct cuda_call *r, enum fwd_op op, int layer) {
    return r->s->ops_fused && !r->s->scribble && !cuda_override_at(r->s, op, layer)->fn;
}

/* ---- quantised forms ----------------------------------------------------------------------------------------------
 */

/* What a launch's struct cuda_quantised points to. */
struct forms {
    struct cuda_act k, b32;
    struct cuda_tc_act tc;
};

static struct cuda_quantised point_to_forms(const struct cuda_call *r, const struct cuda_input *in, struct forms *f) {
    struct cuda_quantised out = {0};
    bool taps = cuda_taps_wanted(r);
    for (int i = 0; i < CUDA_FORMATS; i++) {
        const struct fwd_view *v = &in->as[i];
        if (!v->data)
            continue;
        uint8_t *tap = taps ? v->data : NULL;
        if (v->dtype == FWD_Q8_K) {
            f->k = cuda_planes(r->s, v->dtype, v->ne[0]);
            out.k = &f->k;
            out.tap_k = tap;
        } else if (v->dtype == FWD_Q8_32) {
            f->b32 = cuda_planes(r->s, v->dtype, v->ne[0]);
            out.b32 = &f->b32;
            out.tap_b32 = tap;
        } else {
            f->tc = cuda_converted(r->s, v->dtype, v->ne[0]);
            out.tc = &f->tc;
            out.tap_tc = tap;
        }
    }
    return out;
}

/* The floats of an input go to memory where a product multiplies with them or somebody looks. */
static float *floats_wanted(const struct cuda_call *r, const struct cuda_input *in,
                            const struct cuda_matrix *const *users, int n_users) {
    bool wanted = cuda_taps_wanted(r);
    for (int i = 0; i < n_users; i++)
        wanted |= users[i]->dev.act == FWD_F32;
    return wanted ? in->f32.data : NULL;
}

static enum fwd_status hand_out_input(const struct cuda_call *r, const struct cuda_input *in) {
    FWD_TRY(cuda_hand_out(r, &in->f32));
    for (int i = 0; i < CUDA_FORMATS; i++)
        if (in->as[i].data)
            FWD_TRY(cuda_hand_out(r, &in->as[i]));
    return FWD_OK;
}

/* ---- the groups ---------------------------------------------------------------------------------------------------
 */

bool cuda_can_add_norm(const struct cuda_call *r, const struct fwd_view *sum, const struct cuda_norm *t, int64_t n) {
    return n % 32 == 0 && n <= MOST_NORM && (!sum || is_free(r, sum->op, sum->layer)) && is_free(r, t->op, t->layer) &&
           is_free(r, t->q8, t->layer);
}

enum fwd_status cuda_run_add_norm(const struct cuda_call *r, const struct fwd_view *a, const struct fwd_view *b,
                                  const struct fwd_view *sum, const struct cuda_norm *t, struct cuda_input *out) {
    struct fwd_session *s = r->s;
    struct forms f;
    out->f32 = cuda_f32_view(r, t->op, t->layer, s->buf.norm, a->ne[0]);
    cuda_choose_formats(r, out, t->q8, t->users, t->n_users);
    struct cuda_add_norm args = {.a = a->data,
                                 .b = b ? b->data : NULL,
                                 .sum = sum ? sum->data : NULL,
                                 .w = t->vector,
                                 .eps = s->model->config.norm_eps,
                                 .n = (int)a->ne[0],
                                 .n_pos = r->n_pos,
                                 .norm = floats_wanted(r, out, t->users, t->n_users),
                                 .out = point_to_forms(r, out, &f)};
    cuda_add_norm(s->device.compute, &args);
    FWD_TRY(cuda_launched(fwd_op_name(t->op), r->err));
    if (sum)
        FWD_TRY(cuda_hand_out(r, sum));
    return hand_out_input(r, out);
}

bool cuda_can_rope_store(const struct cuda_call *r, int layer) {
    return is_free(r, FWD_OP_QCUR_ROPE, layer) && is_free(r, FWD_OP_KCUR_ROPE, layer) &&
           is_free(r, FWD_OP_K_CACHE, layer) && is_free(r, FWD_OP_V_CACHE, layer);
}

enum fwd_status cuda_run_rope_store(const struct cuda_call *r, const struct fwd_view *q, const struct fwd_view *k,
                                    const struct fwd_view *v, const struct fwd_view *q_rot,
                                    const struct fwd_view *k_rot, const struct fwd_view *k_cache,
                                    const struct fwd_view *v_cache) {
    struct fwd_session *s = r->s;
    const struct fwd_config *c = &s->model->config;
    struct cuda_rope_store args = {.q = q->data,
                                   .k = k->data,
                                   .v = v->data,
                                   .q_rot = q_rot->data,
                                   .k_rot = cuda_taps_wanted(r) ? k_rot->data : NULL,
                                   .turn = s->rope_table,
                                   .pos0 = r->pos0,
                                   .n_pos = r->n_pos,
                                   .n_head = c->n_head,
                                   .n_rope = c->n_rope,
                                   .neox = c->rope_pairing == FWD_ROPE_NEOX,
                                   .cache_k = cuda_kv_of(k_cache),
                                   .cache_v = cuda_kv_of(v_cache)};
    cuda_rope_store(s->device.compute, &args);
    FWD_TRY(cuda_launched(fwd_op_name(q_rot->op), r->err));
    FWD_TRY(cuda_hand_out(r, q_rot));
    FWD_TRY(cuda_hand_out(r, k_rot));
    FWD_TRY(cuda_hand_out(r, k_cache));
    return cuda_hand_out(r, v_cache);
}

bool cuda_can_swiglu_quantise(const struct cuda_call *r, int layer, int64_t n) {
    return n % 32 == 0 && is_free(r, FWD_OP_FFN_SWIGLU, layer) && is_free(r, FWD_OP_FFN_SWIGLU_Q8, layer);
}

enum fwd_status cuda_run_swiglu_quantise(const struct cuda_call *r, const struct fwd_view *gate,
                                         const struct fwd_view *up, const struct cuda_matrix *down,
                                         struct cuda_input *out) {
    struct forms f;
    cuda_choose_formats(r, out, FWD_OP_FFN_SWIGLU_Q8, &down, 1);
    struct cuda_swiglu_quantise args = {.gate = gate->data,
                                        .up = up->data,
                                        .y = floats_wanted(r, out, &down, 1),
                                        .n = (int)gate->ne[0],
                                        .n_pos = r->n_pos,
                                        .out = point_to_forms(r, out, &f)};
    cuda_swiglu_quantise(r->s->device.compute, &args);
    FWD_TRY(cuda_launched(fwd_op_name(FWD_OP_FFN_SWIGLU), r->err));
    return hand_out_input(r, out);
}
