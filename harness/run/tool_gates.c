/* harness/run/tool_gates.c: see tool_gates.h. */
#include "run/tool_gates.h"

#include <math.h>
#include <string.h>

/* Of one tap tensor. */
struct sums {
    double diff2, ref2, got2, product;
    uint64_t n, n_outside;
};

struct par_tool_gates {
    const struct par_store *beside;
    int n_layer;
    struct sums *sums; /* [n_layer + 1][FWD_OP_COUNT] */
    float *row;        /* of the taps beside */
    int64_t row_cap;
};

const char *par_tool_gate_name(enum par_tool_gate g) {
    static const char *const names[PAR_GATE_COUNT] = {"nmse 5e-4", "cosine 0.99", "allclose 1e-3"};
    return (unsigned)g < PAR_GATE_COUNT ? names[g] : "unknown";
}

enum fwd_status par_tool_gates_open(struct par_tool_gates **out, const struct par_store *beside, int n_layer,
                                    struct fwd_error *err) {
    struct par_tool_gates *g = fwd_calloc(1, sizeof *g);
    FWD_FAIL_IF(!g, FWD_ENOMEM, err, "tool gates: no memory");
    g->beside = beside;
    g->n_layer = n_layer;
    g->sums = fwd_calloc((size_t)(n_layer + 1) * FWD_OP_COUNT, sizeof *g->sums);
    if (!g->sums) {
        fwd_free(g);
        FWD_FAIL(FWD_ENOMEM, err, "tool gates: no memory for %d layers", n_layer);
    }
    *out = g;
    return FWD_OK;
}

void par_tool_gates_close(struct par_tool_gates *g) {
    if (!g)
        return;
    fwd_free(g->sums);
    fwd_free(g->row);
    fwd_free(g);
}

void par_tool_gates_reset(struct par_tool_gates *g) {
    memset(g->sums, 0, (size_t)(g->n_layer + 1) * FWD_OP_COUNT * sizeof *g->sums);
}

static void add_value(struct sums *s, double ref, double got) {
    double d = got - ref;
    s->n++;
    s->diff2 += d * d;
    s->ref2 += ref * ref;
    s->got2 += got * got;
    s->product += ref * got;
    s->n_outside += !(fabs(d) <= 1e-3 + 1e-3 * fabs(ref)); /* a NaN is outside */
}

enum fwd_status par_tool_gates_tap(struct par_tool_gates *g, const struct fwd_view *v, struct fwd_error *err) {
    if ((v->dtype != FWD_F32 && v->dtype != FWD_F64) || v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE)
        return FWD_OK;
    struct sums *s = &g->sums[(size_t)(v->layer + 1) * FWD_OP_COUNT + (size_t)v->op];
    for (int i = 0; i < v->n_pos; i++) {
        int64_t width = par_store_width(g->beside, v->op, v->layer, v->pos0 + i);
        if (width == 0 || width != v->ne[0])
            continue;
        if (width > g->row_cap) {
            fwd_free(g->row);
            g->row = fwd_alloc((size_t)width, sizeof *g->row);
            g->row_cap = g->row ? width : 0;
            FWD_FAIL_IF(!g->row, FWD_ENOMEM, err, "tool gates: no memory for a row of %lld values", (long long)width);
        }
        FWD_TRY(par_store_get(g->beside, v->op, v->layer, v->pos0 + i, g->row, err));
        const char *row = (const char *)v->data + v->nb[1] * i;
        for (int64_t k = 0; k < width; k++)
            add_value(s, (double)g->row[k],
                      v->dtype == FWD_F32 ? (double)((const float *)(const void *)row)[k]
                                          : ((const double *)(const void *)row)[k]);
    }
    return FWD_OK;
}

static bool refuses(const struct sums *s, enum par_tool_gate gate) {
    if (s->n == 0)
        return false;
    switch (gate) {
    case PAR_GATE_NMSE:
        return !(s->diff2 <= 5e-4 * s->ref2);
    case PAR_GATE_COSINE:
        return !(s->product >= 0.99 * sqrt(s->ref2 * s->got2));
    default:
        return s->n_outside > 0;
    }
}

int par_tool_gates_failed(const struct par_tool_gates *g, const struct par_tool_gates *clean, enum par_tool_gate gate) {
    int n = 0;
    for (size_t i = 0; i < (size_t)(g->n_layer + 1) * FWD_OP_COUNT; i++)
        n += refuses(&g->sums[i], gate) && !(clean && refuses(&clean->sums[i], gate));
    return n;
}

int par_tool_gates_tensors(const struct par_tool_gates *g) {
    int n = 0;
    for (size_t i = 0; i < (size_t)(g->n_layer + 1) * FWD_OP_COUNT; i++)
        n += g->sums[i].n > 0;
    return n;
}
