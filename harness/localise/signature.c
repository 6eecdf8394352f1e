/* harness/localise/signature.c: one alternative spec, tried on the inputs of the worst matmul: the same bytes read as
 * another block type. If that explains the output, the kernel is right and the choice of kernel (H4) is wrong. */
#include "run/run_state.h"
#include "spec/spec_decode.h"
#include "spec/spec_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct sample {
    const struct par_run *r;
    enum fwd_op input_op;
    struct fwd_view in, out; /* of one position; data owned */
    bool complete;
    enum fwd_status rc;
};

static enum fwd_op input_of(enum fwd_op op, bool quantised) {
    switch (op) {
    case FWD_OP_QCUR:
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
        return quantised ? FWD_OP_ATTN_NORM_Q8 : FWD_OP_ATTN_NORM;
    case FWD_OP_ATTN_OUT:
        return quantised ? FWD_OP_KQV_OUT_Q8 : FWD_OP_KQV_OUT;
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
        return quantised ? FWD_OP_FFN_NORM_Q8 : FWD_OP_FFN_NORM;
    case FWD_OP_FFN_OUT:
        return quantised ? FWD_OP_FFN_SWIGLU_Q8 : FWD_OP_FFN_SWIGLU;
    case FWD_OP_RESULT_OUTPUT:
        return quantised ? FWD_OP_RESULT_NORM_Q8 : FWD_OP_RESULT_NORM;
    default:
        return FWD_OP_COUNT;
    }
}

static bool copy_row(struct fwd_view *to, const struct fwd_view *from, int pos) {
    size_t bytes = fwd_dtype_row_bytes(from->dtype, from->ne[0]);
    fwd_free(to->data);
    *to = *from;
    to->data = fwd_alloc(bytes, 1);
    if (!to->data)
        return false;
    size_t stride = from->nb[1] ? (size_t)from->nb[1] : bytes;
    memcpy(to->data, (const char *)from->data + (size_t)(pos - from->pos0) * stride, bytes);
    to->pos0 = pos;
    to->n_pos = 1;
    to->ne[1] = 1;
    return true;
}

static int take_sample(void *ud, const struct fwd_view *v) {
    struct sample *s = ud;
    const struct par_run *r = s->r;
    if (s->complete || v->layer != r->worst_layer || r->worst.pos < v->pos0 || r->worst.pos >= v->pos0 + v->n_pos)
        return 0;
    bool ok = true;
    if (v->op == s->input_op)
        ok = copy_row(&s->in, v, r->worst.pos);
    if (v->op == r->worst_op && s->in.data) {
        ok = copy_row(&s->out, v, r->worst.pos);
        s->complete = ok;
    }
    s->rc = ok ? FWD_OK : FWD_ENOMEM;
    return ok ? 0 : 1;
}

/* Relative L2 between the output and the spec's value under that type, over values finite on both sides; NaN: none. */
static double misfit(const double *values, const float *got, int64_t n) {
    double d2 = 0, n2 = 0;
    for (int64_t k = 0; k < n; k++)
        if (isfinite(values[k]) && isfinite((double)got[k])) {
            d2 += (values[k] - (double)got[k]) * (values[k] - (double)got[k]);
            n2 += (double)got[k] * (double)got[k];
        }
    return sqrt(d2 / n2);
}

/* The value when the weight's bytes are read as another block type, with that type's own row stride. */
static enum fwd_status value_as(const struct par_run *r, const struct par_eval *e, uint32_t type, double *values) {
    const struct spec_weight *w = par_spec_weight(r->spec, e->op, e->layer);
    struct par_spec_altered alt;
    struct spec_weight other = *w;
    other.type = type;
    other.row_bytes = par_decode_row_bytes(type, w->n_cols);
    if (other.row_bytes == 0 || other.row_bytes > w->row_bytes)
        return FWD_EUNSUPPORTED;
    FWD_TRY(par_spec_alter(&alt, r->spec, e->layer, NULL));
    *par_spec_altered_weight(&alt, e->op) = other;
    enum fwd_status rc = par_spec_value(&alt.model, r->pool, e, values, NULL);
    par_spec_alter_free(&alt);
    return rc;
}

static enum fwd_status try_types(struct par_run *r, const struct sample *s, const struct fwd_numerics *numerics,
                                 struct fwd_error *err) {
    static const uint32_t types[] = {FWD_TYPE_Q2_K, FWD_TYPE_Q3_K, FWD_TYPE_Q4_K, FWD_TYPE_Q5_K,
                                     FWD_TYPE_Q6_K, FWD_TYPE_Q4_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0,
                                     FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_F16,  FWD_TYPE_F32};
    struct par_eval e = {.op = r->worst_op,
                         .layer = r->worst_layer,
                         .pos0 = r->worst.pos,
                         .n_pos = 1,
                         .n_in = 1,
                         .in = {&s->in},
                         .out = &s->out,
                         .numerics = numerics};
    double *values = fwd_alloc((size_t)s->out.ne[0], sizeof *values);
    FWD_FAIL_IF(!values, FWD_ENOMEM, err, "signature: no memory for a row of %lld", (long long)s->out.ne[0]);
    double explained = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (value_as(r, &e, types[i], values) != FWD_OK)
            continue;
        /* F32 accumulation of the path's own order stays far below this; a wrong type is off by whole units. */
        if (misfit(values, s->out.data, s->out.ne[0]) < 1e-4) {
            explained = 1;
            r->report->worst = par_text_printf(r->text, "its output is what its bytes give when they are read as %s",
                                               fwd_type_name(types[i]));
        }
    }
    fwd_free(values);
    par_figures_set(r->figures, "signature.other_type", explained);
    return FWD_OK;
}

enum fwd_status par_run_signature(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    struct fwd_numerics numerics;
    enum par_op_class c = par_class_of(r->worst_op);
    if (!r->n_accused_cand || (c != PAR_CLASS_MATMUL && c != PAR_CLASS_HEAD) ||
        !r->o->cand->numerics(session, r->worst_op, r->worst_layer, &numerics)) {
        par_figures_set(r->figures, "signature.other_type", 0);
        return FWD_OK;
    }
    struct sample s = {.r = r};
    s.input_op = input_of(r->worst_op, numerics.act == FWD_Q8_K || numerics.act == FWD_Q8_32);
    struct par_drive drive = {.path = r->o->cand,
                              .session = session,
                              .schedule = r->o->schedule,
                              .chunk = r->o->chunk,
                              .tap = take_sample,
                              .tap_ud = &s};
    enum fwd_status rc = par_drive_run(&drive, r->ids, r->n_prompt, r->n_ids, r->want, r->logits_work, err);
    if (s.rc != FWD_OK)
        rc = fwd_fail(err, s.rc, __FILE__, __LINE__, "signature: no memory for a row");
    if (rc == FWD_OK && s.complete)
        rc = try_types(r, &s, &numerics, err);
    fwd_free(s.in.data);
    fwd_free(s.out.data);
    return rc;
}
