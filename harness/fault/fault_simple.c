/* harness/fault/fault_simple.c: the ops that work on each position alone: norms, rotation, swiglu, sums, embedding.
 * Rows on which a fault acts are worked out anew in F64; the others keep the builtin's. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

/* ---- each position ---- */

typedef void row_fn(const struct par_fault *f, const struct fwd_op_call *call, int i);

struct rows_job {
    const struct par_fault *f;
    const struct fwd_op_call *call;
    row_fn *fn;
};

static void run_part(void *ctx, int thread, int n_threads) {
    const struct rows_job *job = ctx;
    int64_t begin, end;
    fwd_range_split(job->call->n_pos, 1, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        if (fault_at(job->f, job->call, (int)i))
            job->fn(job->f, job->call, (int)i);
}

static enum fwd_status each_row(const struct par_fault *f, const struct fwd_op_call *call, row_fn *fn,
                                struct fwd_error *err) {
    FWD_TRY(call->builtin(call, err));
    struct rows_job job = {f, call, fn};
    fwd_pool_run(call->n_pos > 1 ? call->pool : NULL, run_part, &job);
    return FWD_OK;
}

/* ---- norms ---- */

static double norm_weight(const struct par_fault *f, const struct fwd_op_call *call, int64_t k) {
    const uint8_t *data = call->weight->data;
    float w;
    if (f->row->kind == FAULT_NORM_NO_WEIGHT)
        return 1;
    if (f->row->kind == FAULT_NORM_OTHER_LAYER) {
        int layer = par_fault_other_layer(f, f->file, call->op, call->layer, call->config->n_layer, false);
        data = par_fault_tensor(f->file, call->op, layer)->data;
    }
    memcpy(&w, data + 4 * k, sizeof w);
    return (double)w + (f->row->kind == FAULT_NORM_ONE_PLUS ? 1 : 0);
}

static void norm_row(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    int64_t n = call->out->ne[0], counted = f->row->kind == FAULT_NORM_TAIL && n > 16 ? n - 16 : n;
    double mean = 0, sum = 0, eps = (double)call->config->norm_eps;
    for (int64_t k = 0; f->row->kind == FAULT_NORM_MEAN && k < n; k++)
        mean += fault_get(call->in[0], i, k) / (double)n;
    int from = f->row->kind == FAULT_NORM_FIRST ? 0 : i;
    for (int64_t k = 0; k < counted; k++) {
        double x = fault_get(call->in[0], from, k) - mean;
        sum += x * x;
        if (f->row->kind == FAULT_NORM_F16)
            sum = fault_as_half(sum);
    }
    if (f->row->kind == FAULT_NORM_EPS)
        eps = eps < 5e-6 ? 1e-5 : 1e-6;
    double scale = 1 / sqrt(sum / (double)n + eps);
    for (int64_t k = 0; k < n; k++)
        fault_put(call->out, i, k, (fault_get(call->in[0], i, k) - mean) * scale * norm_weight(f, call, k));
}

enum fwd_status par_fault_norm(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    FWD_FAIL_IF(call->weight->type != FWD_TYPE_F32, FWD_ETYPE, err, "fault: %s is %s, not F32", call->weight->name,
                fwd_type_name(call->weight->type));
    return each_row(ud, call, norm_row, err);
}

/* ---- rotation ---- */

struct turn {
    double cosine, sine;
};

static struct turn turn_of(const struct par_fault *f, const struct fwd_config *c, double position, int pair) {
    double base = c->rope_theta;
    if (f->row->kind == FAULT_ROPE_BASE)
        base = base > 10000 ? 10000 : 1000000;
    double frequency = pow(base, -2.0 * pair / c->n_rope);
    if (c->rope_factors && f->row->kind != FAULT_ROPE_UNSCALED)
        frequency /= (double)c->rope_factors[pair];
    struct turn t = {cos(position * frequency), sin(position * frequency)};
    if (f->row->kind == FAULT_ROPE_SIGN)
        t.sine = -t.sine;
    if (f->row->kind == FAULT_ROPE_TABLE)
        t = (struct turn){fault_as_half(t.cosine), fault_as_half(t.sine)};
    if (f->row->kind == FAULT_ROPE_MISSING || (f->row->kind == FAULT_ROPE_HALF && pair >= c->n_rope / 4))
        t = (struct turn){1, 0};
    return t;
}

static void rope_row(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    const struct fwd_config *c = call->config;
    bool neox = (c->rope_pairing == FWD_ROPE_NEOX) != (f->row->kind == FAULT_ROPE_PAIRING);
    for (int64_t head = 0; head < call->in[0]->ne[0] / c->head_dim; head++) {
        double position = call->pos0 + i;
        if (f->head >= 0 && head != f->head)
            continue;
        position += f->row->kind == FAULT_ROPE_POSITION ? 1 : 0;
        position *= f->row->kind == FAULT_ROPE_TWICE ? 2 : 1;
        position -= f->row->kind == FAULT_ROPE_CAPPED && position >= 64 ? 64 : 0;
        for (int j = 0; j < c->n_rope / 2; j++) {
            int last = c->n_rope / 2 - 1;
            int pair = f->row->kind == FAULT_ROPE_HEAD       ? (j + (int)head) % (last + 1)
                       : f->row->kind == FAULT_ROPE_REVERSED ? last - j
                                                             : j;
            struct turn t = turn_of(f, c, position, pair);
            int64_t a = head * c->head_dim + (neox ? j : 2 * j), b = neox ? a + c->n_rope / 2 : a + 1;
            double x = fault_get(call->in[0], i, a), y = fault_get(call->in[0], i, b);
            fault_put(call->out, i, a, x * t.cosine - y * t.sine);
            fault_put(call->out, i, b, x * t.sine + y * t.cosine);
        }
    }
}

enum fwd_status par_fault_rope(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    return each_row(ud, call, rope_row, err);
}

/* ---- swiglu, sums ---- */

static double sigmoid_by_power(double x) {
    double base = 1 - x / 1024, power = base > 0 ? base : 0; /* exp(-x) as (1 - x / 1024)^1024 */
    for (int squared = 0; squared < 10; squared++)
        power *= power;
    return 1 / (1 + power);
}

static void swiglu_row(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    for (int64_t k = 0; k < call->out->ne[0]; k++) {
        double gate = fault_get(call->in[0], i, k), up = fault_get(call->in[1], i, k), y;
        switch ((enum fault_swiglu_kind)f->row->kind) {
        case FAULT_SWIGLU_SWAPPED:
            y = up / (1 + exp(-up)) * gate;
            break;
        case FAULT_SWIGLU_GELU:
            y = gate * 0.5 * (1 + erf(gate * sqrt(0.5))) * up;
            break;
        case FAULT_SWIGLU_NO_SILU:
            y = gate * up;
            break;
        case FAULT_SWIGLU_NEIGHBOUR:
            up = fault_get(call->in[1], i, (k ^ 1) < call->out->ne[0] ? k ^ 1 : k);
            y = gate / (1 + exp(-gate)) * up;
            break;
        case FAULT_SWIGLU_FAST:
            y = gate * sigmoid_by_power(gate) * up;
            break;
        default: { /* FAULT_SWIGLU_CUT */
            double cut = gate > 7 ? 7 : gate < -7 ? -7 : gate;
            y = cut / (1 + exp(-cut)) * up;
        }
        }
        fault_put(call->out, i, k, y);
    }
}

enum fwd_status par_fault_swiglu(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    return each_row(ud, call, swiglu_row, err);
}

static void residual_row(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    for (int64_t k = 0; k < call->out->ne[0]; k++) {
        int from = f->row->kind == FAULT_RESIDUAL_OTHER && i > 0 ? i - 1 : i;
        double x = fault_get(call->in[0], i, k), stream = fault_get(call->in[1], from, k);
        double y = f->row->kind == FAULT_RESIDUAL_MISSING ? x
                   : f->row->kind == FAULT_RESIDUAL_TWICE ? x + 2 * stream
                   : f->row->kind == FAULT_RESIDUAL_F16   ? x + fault_as_half(stream)
                                                          : x + stream;
        fault_put(call->out, i, k, y);
    }
}

/* The sum must not overwrite an input that it still needs: l_out goes where the stream was. */
enum fwd_status par_fault_residual(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    FWD_FAIL_IF(call->out->data == call->in[0]->data || call->out->data == call->in[1]->data, FWD_EUNSUPPORTED, err,
                "fault: %s is added in place", fwd_op_name(call->op));
    return each_row(ud, call, residual_row, err);
}

/* ---- embedding ---- */

static int32_t changed_id(const struct par_fault *f, const struct fwd_op_call *call, const int32_t *ids, int i,
                          int32_t before) {
    int32_t last = (int32_t)(call->config->n_vocab - 1);
    switch (f->row->kind) {
    case FAULT_EMBED_SHIFTED:
        return i > 0 ? ids[i - 1] : call->pos0 > 0 ? before : ids[0];
    case FAULT_EMBED_OTHER_ID: /* far away, and never the same */
        return (int32_t)((ids[i] + 1 + (int64_t)(fault_hash(f, 10) % (uint64_t)(last > 1 ? last - 1 : 1))) %
                         (last + 1));
    case FAULT_EMBED_BOS:
        return call->pos0 + i > 0 ? ids[i] : ids[i] == 11 ? 12 : 11;
    default:
        return ids[i];
    }
}

static void spoil_embedding(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    int64_t n = call->out->ne[0], begin = 0, end = n;
    double by = sqrt((double)n);
    if (f->row->kind == FAULT_EMBED_ONE_TOKEN) {
        begin = f->block * fault_block_values(call->weight->type);
        end = begin + fault_block_values(call->weight->type);
        by = 1.0625;
    }
    for (int64_t k = begin; k < end && k < n; k++)
        fault_put(call->out, i, k, fault_get(call->out, i, k) * by);
}

/* The last id of the call before, for the first position of this one, stays with the fault. */
enum fwd_status par_fault_embed(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    int32_t *last = fault_keep(f, sizeof *last);
    int32_t *ids = fwd_alloc((size_t)call->n_pos, sizeof *ids);
    if (!last || !ids) {
        fwd_free(ids);
        FWD_FAIL(FWD_ENOMEM, err, "fault %s: no memory for %d ids", f->row->name, call->n_pos);
    }
    const int32_t *given = call->in[0]->data;
    for (int i = 0; i < call->n_pos; i++)
        ids[i] = fault_at(f, call, i) ? changed_id(f, call, given, i, *last) : given[i];
    *last = given[call->n_pos - 1];
    struct fwd_view changed = *call->in[0];
    struct fwd_op_call copy = *call;
    changed.data = ids;
    copy.in[0] = &changed;
    enum fwd_status rc = call->builtin(&copy, err);
    fwd_free(ids);
    for (int i = 0; rc == FWD_OK && i < call->n_pos; i++)
        if (fault_at(f, call, i) && (f->row->kind == FAULT_EMBED_ONE_TOKEN || f->row->kind == FAULT_EMBED_SCALED))
            spoil_embedding(f, call, i);
    return rc;
}
