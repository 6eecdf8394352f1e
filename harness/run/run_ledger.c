#include "run/run_ledger.h"

#include <string.h>

enum { N_INPUTS = 5, N_MATMULS = 8 };

/* The float tap that a product reads, and the quantised one after it. */
static const struct {
    enum fwd_op plain, q8;
} inputs[N_INPUTS] = {{FWD_OP_ATTN_NORM, FWD_OP_ATTN_NORM_Q8},
                      {FWD_OP_KQV_OUT, FWD_OP_KQV_OUT_Q8},
                      {FWD_OP_FFN_NORM, FWD_OP_FFN_NORM_Q8},
                      {FWD_OP_FFN_SWIGLU, FWD_OP_FFN_SWIGLU_Q8},
                      {FWD_OP_RESULT_NORM, FWD_OP_RESULT_NORM_Q8}};
static const struct {
    enum fwd_op op;
    int input;
} products[N_MATMULS] = {{FWD_OP_QCUR, 0},     {FWD_OP_KCUR, 0},   {FWD_OP_VCUR, 0},    {FWD_OP_ATTN_OUT, 1},
                         {FWD_OP_FFN_GATE, 2}, {FWD_OP_FFN_UP, 2}, {FWD_OP_FFN_OUT, 3}, {FWD_OP_RESULT_OUTPUT, 4}};

/* Rows of the sampled positions, packed. A product does not ask where a row stands in the sequence, so the rows of one
 * call lie at positions 0, 1, .. of these views. */
struct rows {
    struct fwd_view view; /* view.data == NULL: none */
    size_t capacity;
    int first; /* position in the sequence of row 0: tells calls apart */
};

struct par_run_ledger {
    const struct par_spec_model *model, *source;
    struct fwd_pool *pool;
    par_numerics_fn *numerics;
    void *numerics_ud;
    int pos[PAR_LEDGER_POSITIONS], n_pos;
    struct rows plain[N_INPUTS], q8[N_INPUTS], out;
    struct par_ledger *table; /* [n_layer + 1][N_MATMULS], the head in the last row */
};

enum fwd_status par_run_ledger_open(struct par_run_ledger **out, const struct par_spec_model *m,
                                    const struct par_spec_model *source, struct fwd_pool *pool,
                                    par_numerics_fn *numerics, void *numerics_ud, const int *pos, int n_pos,
                                    struct fwd_error *err) {
    struct par_run_ledger *l = fwd_calloc(1, sizeof *l);
    FWD_FAIL_IF(!l, FWD_ENOMEM, err, "ledger: no memory");
    l->model = m;
    l->source = source;
    l->pool = pool;
    l->numerics = numerics;
    l->numerics_ud = numerics_ud;
    for (int i = 0; i < n_pos && i < PAR_LEDGER_POSITIONS; i++)
        if (i == 0 || pos[i] != l->pos[l->n_pos - 1])
            l->pos[l->n_pos++] = pos[i];
    l->table = fwd_calloc((size_t)(par_spec_config(m)->n_layer + 1) * N_MATMULS, sizeof *l->table);
    if (!l->table) {
        par_run_ledger_close(l);
        FWD_FAIL(FWD_ENOMEM, err, "ledger: no memory for %d layers", par_spec_config(m)->n_layer);
    }
    *out = l;
    return FWD_OK;
}

void par_run_ledger_close(struct par_run_ledger *l) {
    if (!l)
        return;
    for (int i = 0; i < N_INPUTS; i++) {
        fwd_free(l->plain[i].view.data);
        fwd_free(l->q8[i].view.data);
    }
    fwd_free(l->out.view.data);
    fwd_free(l->table);
    fwd_free(l);
}

static struct par_ledger *find_row(const struct par_run_ledger *l, int product, int layer) {
    int at = layer < 0 ? par_spec_config(l->model)->n_layer : layer;
    return &l->table[at * N_MATMULS + product];
}

const struct par_ledger *par_run_ledger_row(const struct par_run_ledger *l, enum fwd_op op, int layer) {
    for (int i = 0; i < N_MATMULS; i++)
        if (products[i].op == op) {
            const struct par_ledger *row = find_row(l, i, layer);
            return row->n ? row : NULL;
        }
    return NULL;
}

/* Copies the sampled rows of a view; none: r->view.data stays and r->view.n_pos is 0. */
static enum fwd_status keep_rows(struct par_run_ledger *l, struct rows *r, const struct fwd_view *v,
                                 struct fwd_error *err) {
    size_t row_bytes = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    size_t stride = v->nb[1] ? (size_t)v->nb[1] : row_bytes, need = row_bytes * PAR_LEDGER_POSITIONS;
    void *data = r->view.data;
    if (r->capacity < need) {
        fwd_free(data);
        data = fwd_alloc(need, 1);
        r->capacity = data ? need : 0;
    }
    r->view = *v;
    r->view.data = data;
    r->view.n_pos = 0;
    FWD_FAIL_IF(!data, FWD_ENOMEM, err, "ledger: no memory for rows of %s", fwd_op_name(v->op));
    for (int i = 0; i < l->n_pos; i++) {
        int at = l->pos[i] - v->pos0;
        if (at < 0 || at >= v->n_pos)
            continue;
        if (r->view.n_pos == 0)
            r->first = l->pos[i];
        memcpy((char *)data + (size_t)r->view.n_pos++ * row_bytes, (const char *)v->data + (size_t)at * stride,
               row_bytes);
    }
    r->view.pos0 = 0;
    r->view.ne[1] = r->view.n_pos;
    r->view.nb[1] = (int64_t)row_bytes;
    return FWD_OK;
}

static bool same_call(const struct rows *in, const struct rows *out) {
    return in->view.data && in->view.n_pos == out->view.n_pos && in->view.n_pos > 0 && in->first == out->first &&
           (in->view.layer == out->view.layer || out->view.layer < 0);
}

/* The four values of every element of the product in l->out. */
static enum fwd_status add_product(struct par_run_ledger *l, int product, const struct fwd_numerics *declared,
                                   double *values, struct fwd_error *err) {
    const struct rows *plain = &l->plain[products[product].input], *q8 = &l->q8[products[product].input];
    struct fwd_view *out = &l->out.view;
    size_t n = (size_t)out->n_pos * (size_t)out->ne[0];
    /* Exactly: float activations, no quantiser. */
    struct fwd_numerics exact = {.size = sizeof exact, .act = FWD_F64, .accumulator = FWD_ACC_EXACT, .store = FWD_F64};
    struct par_eval e = {.op = out->op, .layer = out->layer, .n_pos = out->n_pos, .n_in = 1, .out = out};
    double *from_file = values, *from_source = values + n;
    e.in[0] = &plain->view;
    e.numerics = &exact;
    FWD_TRY(par_spec_value(l->model, l->pool, &e, from_file, err));
    if (l->source)
        FWD_TRY(par_spec_value(l->source, l->pool, &e, from_source, err));
    else
        memcpy(from_source, from_file, n * sizeof *values);
    bool quantised = declared->act == FWD_Q8_K || declared->act == FWD_Q8_32;
    e.in[0] = quantised && same_call(q8, &l->out) && q8->view.dtype == declared->act ? &q8->view : &plain->view;
    e.numerics = declared;
    struct par_elements x;
    FWD_TRY(par_spec_elements(l->model, l->pool, &e, &x, err));
    struct par_ledger *row = find_row(l, product, out->layer);
    row->has_source = l->source != NULL;
    for (size_t i = 0; i < n; i++)
        par_ledger_add(row, from_source[i], from_file[i], x.expected[i], x.got[i], x.bound[i]);
    par_elements_free(&x);
    return FWD_OK;
}

enum fwd_status par_run_ledger_tap(struct par_run_ledger *l, const struct fwd_view *view, struct fwd_error *err) {
    if (view->device)
        return FWD_OK;
    for (int i = 0; i < N_INPUTS; i++) {
        if (view->op == inputs[i].plain && view->dtype == FWD_F32)
            return keep_rows(l, &l->plain[i], view, err);
        if (view->op == inputs[i].q8)
            return keep_rows(l, &l->q8[i], view, err);
    }
    struct fwd_numerics declared;
    for (int i = 0; i < N_MATMULS; i++) {
        if (view->op != products[i].op || view->dtype != FWD_F32)
            continue;
        FWD_TRY(keep_rows(l, &l->out, view, err));
        if (l->out.view.n_pos == 0 || !same_call(&l->plain[products[i].input], &l->out) ||
            !l->numerics(l->numerics_ud, view->op, view->layer, &declared))
            return FWD_OK;
        double *values = fwd_alloc(2 * (size_t)l->out.view.n_pos * (size_t)view->ne[0], sizeof *values);
        FWD_FAIL_IF(!values, FWD_ENOMEM, err, "ledger: no memory for rows of %s", fwd_op_name(view->op));
        enum fwd_status rc = add_product(l, i, &declared, values, err);
        fwd_free(values);
        return rc;
    }
    return FWD_OK;
}

enum fwd_status par_run_ledger_check_source(const struct par_spec_model *m, const struct par_spec_model *source,
                                            struct fwd_error *err) {
    const struct par_spec_config *a = par_spec_config(m), *b = par_spec_config(source);
    const struct {
        const char *name;
        int64_t model, source;
    } rows[] = {{"layers", a->n_layer, b->n_layer},       {"width", a->n_embd, b->n_embd},
                {"feed-forward width", a->n_ff, b->n_ff}, {"heads", a->n_head, b->n_head},
                {"KV heads", a->n_kv_head, b->n_kv_head}, {"head size", a->head_dim, b->head_dim},
                {"vocabulary", a->n_vocab, b->n_vocab}};
    FWD_FAIL_IF(strcmp(a->arch, b->arch) != 0, FWD_EINPUT, err, "--source: architecture %s, the model has %s", b->arch,
                a->arch);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        FWD_FAIL_IF(rows[i].model != rows[i].source, FWD_EINPUT, err, "--source: %s %lld, the model has %lld",
                    rows[i].name, (long long)rows[i].source, (long long)rows[i].model);
    return FWD_OK;
}
