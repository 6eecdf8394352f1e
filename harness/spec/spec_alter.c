/* Alternative specs: the model with one thing different. */
#include "spec/spec_model.h"

#include <string.h>

enum fwd_status par_spec_alter(struct par_spec_altered *out, const struct par_spec_model *m, int layer,
                               struct fwd_error *err) {
    size_t n = (size_t)m->config.n_layer;
    *out = (struct par_spec_altered){.model = *m};
    out->model.layers = fwd_alloc(n, sizeof *m->layers);
    FWD_FAIL_IF(!out->model.layers, FWD_ENOMEM, err, "spec: no memory for %zu layers", n);
    memcpy(out->model.layers, m->layers, n * sizeof *m->layers);
    if (layer >= 0 && layer < m->config.n_layer)
        out->layer = &out->model.layers[layer];
    return FWD_OK;
}

void par_spec_alter_free(struct par_spec_altered *a) {
    fwd_free(a->model.layers);
    *a = (struct par_spec_altered){0};
}

/* The binding's own answer, in the copy: there everything may be written to. */
struct spec_weight *par_spec_altered_weight(struct par_spec_altered *a, enum fwd_op op) {
    int layer = a->layer ? (int)(a->layer - a->model.layers) : -1;
    return (struct spec_weight *)(uintptr_t)par_spec_weight(&a->model, op, layer);
}

struct spec_weight *par_spec_altered_bias(struct par_spec_altered *a, enum fwd_op op) {
    if (!a->layer)
        return NULL;
    return op == FWD_OP_QCUR   ? &a->layer->q_bias
           : op == FWD_OP_KCUR ? &a->layer->k_bias
           : op == FWD_OP_VCUR ? &a->layer->v_bias
                               : NULL;
}
