/* Copies of a matmul's input and output rows over several calls, laid out as one call's views. */
#include "spec/judge_batch.h"

#include "spec/eval.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <string.h>

enum { MOST_POSITIONS = 16, MOST_BYTES = 96 << 20 };

/* Bytes that one position of every matmul of one layer (or of the head, layer -1) takes. */
static int64_t position_bytes(const struct par_spec_model *m, int layer) {
    int64_t values = 0;
    for (enum fwd_op op = 0; op < FWD_OP_COUNT; op++)
        if (par_eval_is_matmul(op) && fwd_op_in_layer(op) == (layer >= 0)) {
            const struct spec_weight *w = par_spec_weight(m, op, layer);
            values += w->n_cols + w->n_rows;
        }
    return values * (int64_t)sizeof(float);
}

int par_batch_positions(const struct par_spec_model *m) {
    int64_t bytes = position_bytes(m, -1);
    for (int il = 0; il < m->config.n_layer; il++)
        bytes += position_bytes(m, il);
    int64_t fit = MOST_BYTES / bytes;
    return fit < MOST_POSITIONS ? (int)fit : MOST_POSITIONS;
}

static bool is_packed_float(const struct fwd_view *v) {
    return par_float_bytes(v->dtype) && v->nb[0] == (int64_t)par_float_bytes(v->dtype);
}

bool par_batch_can_wait(const struct par_eval *e, int positions) {
    const struct fwd_view *in = e->in[0], *out = e->out;
    return par_eval_is_matmul(e->op) && e->n_pos < positions && in && !in->device && !out->device &&
           (par_q8_block_values(in->dtype) || par_tensor_format(in->dtype) || is_packed_float(in)) &&
           is_packed_float(out) && in->pos0 <= e->pos0 && in->pos0 + in->n_pos >= e->pos0 + e->n_pos;
}

static bool same_rows(const struct fwd_view *a, const struct fwd_view *b) {
    return a->op == b->op && a->dtype == b->dtype && a->ne[0] == b->ne[0];
}

bool par_batch_fits(const struct judge_batch *b, const struct par_eval *e, int positions) {
    return !b->bytes ||
           (same_rows(&b->in, e->in[0]) && same_rows(&b->out, e->out) && e->pos0 >= b->out.pos0 + b->out.n_pos &&
            e->pos0 + e->n_pos <= b->out.pos0 + positions && !memcmp(&b->numerics, e->numerics, sizeof b->numerics));
}

static size_t row_bytes(const struct fwd_view *v) {
    return fwd_dtype_row_bytes(v->dtype, v->ne[0]);
}

static struct fwd_view packed_view(const struct fwd_view *like, int pos0, uint8_t *data) {
    struct fwd_view v = *like;
    v.pos0 = pos0;
    v.n_pos = 0;
    v.nb[1] = (int64_t)row_bytes(like);
    v.data = data;
    return v;
}

static enum fwd_status begin_batch(struct judge_batch *b, const struct par_eval *e, int positions,
                                   struct fwd_error *err) {
    size_t n = (size_t)positions, in = (n * row_bytes(e->in[0]) + 63) & ~(size_t)63,
           out = (n * row_bytes(e->out) + 63) & ~(size_t)63;
    b->bytes = fwd_alloc(in + out + n, 1);
    FWD_FAIL_IF(!b->bytes, FWD_ENOMEM, err, "judge: no memory for %d rows of %s", positions, fwd_op_name(e->op));
    b->in = packed_view(e->in[0], e->pos0, b->bytes);
    b->out = packed_view(e->out, e->pos0, b->bytes + in);
    b->judge_pos = b->bytes + in + out;
    memset(b->judge_pos, 0, n);
    memcpy(&b->numerics, e->numerics, sizeof b->numerics);
    return FWD_OK;
}

static void copy_row(const struct fwd_view *to, const struct fwd_view *from, int pos) {
    memcpy((uint8_t *)to->data + (pos - to->pos0) * to->nb[1], par_view_row(from, pos), row_bytes(from));
}

enum fwd_status par_batch_add(struct judge_batch *b, const struct par_eval *e, int positions, struct fwd_error *err) {
    if (!b->bytes)
        FWD_TRY(begin_batch(b, e, positions, err));
    for (int i = 0; i < e->n_pos; i++) {
        if (e->judge_pos && !e->judge_pos[i])
            continue;
        int pos = e->pos0 + i;
        copy_row(&b->in, e->in[0], pos);
        copy_row(&b->out, e->out, pos);
        b->judge_pos[pos - b->out.pos0] = 1;
    }
    b->in.n_pos = b->out.n_pos = e->pos0 + e->n_pos - b->out.pos0;
    b->in.ne[1] = b->out.ne[1] = b->out.n_pos;
    return FWD_OK;
}

void par_batch_clear(struct judge_batch *b) {
    fwd_free(b->bytes);
    *b = (struct judge_batch){0};
}
