/* harness/run/selftest_place.c: see selftest_place.h. */
#include "run/selftest_place.h"

#include "spec/spec_decode.h"
#include "spec/spec_model.h"

static bool is_q8(enum fwd_op op) {
    return op == FWD_OP_ATTN_NORM_Q8 || op == FWD_OP_KQV_OUT_Q8 || op == FWD_OP_FFN_NORM_Q8 ||
           op == FWD_OP_FFN_SWIGLU_Q8 || op == FWD_OP_RESULT_NORM_Q8;
}

static bool is_matmul(enum fwd_op op) {
    return op == FWD_OP_QCUR || op == FWD_OP_KCUR || op == FWD_OP_VCUR || op == FWD_OP_ATTN_OUT ||
           op == FWD_OP_FFN_GATE || op == FWD_OP_FFN_UP || op == FWD_OP_FFN_OUT || op == FWD_OP_RESULT_OUTPUT;
}

/* A head, or it and its neighbour (exchanged ones are two). */
static bool found_head(const struct par_fault *f, const struct par_spec_config *c, const struct par_pattern *p) {
    int n_heads =
        f->op == FWD_OP_QCUR || f->op == FWD_OP_QCUR_ROPE || f->op == FWD_OP_KQV_OUT ? c->n_head : c->n_kv_head;
    int64_t first = (int64_t)(f->head % n_heads) * c->head_dim, last = first + c->head_dim - 1;
    bool touches = p->row_first <= last && p->row_last >= first;
    return p->head == f->head % n_heads || (touches && p->n_rows_accused <= 2 * (int64_t)c->head_dim);
}

static bool found_block(const struct par_fault *f, const struct par_spec_model *spec, const struct par_pattern *p) {
    const struct spec_weight *w = par_spec_weight(spec, f->op, f->layer);
    if (is_q8(f->op)) {
        for (int i = 0; i < p->n_blocks; i++)
            if (p->block[i] == f->block)
                return p->n_blocks <= 2;
        return false;
    }
    int values = w ? par_decode_block_values(w->type) : 0;
    values = values > 1 ? values : 32; /* a block of a float type, as faults count them */
    if (w && w->n_cols <= values && is_matmul(f->op))
        return true; /* the row is one block */
    int64_t first = f->block * values, last = first + values - 1;
    if (!is_matmul(f->op))
        return p->row_first >= first && p->row_last <= last;
    for (int i = 0; i < p->n_blocks; i++) {
        int64_t from = p->block[i] * p->block_values, to = from + p->block_values - 1;
        if (from <= last && to >= first)
            return p->n_blocks * p->block_values <= 2 * values;
    }
    return false;
}

int par_selftest_place_found(const struct par_fault *f, const struct par_spec_model *spec,
                             const struct par_pattern *p) {
    unsigned picks = f->row->picks;
    bool found = true;
    if (picks == 0)
        return -1;
    if (picks & PAR_PICK_POS)
        found = found && p->pos_first <= f->pos && p->pos_last >= f->pos && p->n_pos_accused <= 2;
    if (picks & PAR_PICK_HEAD)
        found = found && found_head(f, par_spec_config(spec), p);
    if (picks & PAR_PICK_ROW)
        found = found && p->row_first == f->out_row && p->row_last == f->out_row;
    if (picks & PAR_PICK_BLOCK)
        found = found && found_block(f, spec, p);
    return found;
}
