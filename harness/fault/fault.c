/* harness/fault/fault.c: the catalogue, and where a fault goes. The broken ops themselves are in fault_ops.c. */
#include "fault/fault.h"

#include "fault/fault_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANY_TYPE UINT32_MAX

static const struct par_fault_row rows[] = {
    {"f32-head-transposed", "H4", "F32 head GEMV indexes an [N,K] buffer as [K,N] (the story; aprender PR 1651)", false,
     FWD_OP_RESULT_OUTPUT, ANY_TYPE, par_fault_head_transposed, NULL},
    {"q4k-min-dropped", "H1", "Q4_K dot without its min term", false, FWD_OP_FFN_GATE, FWD_TYPE_Q4_K,
     par_fault_min_dropped, NULL},
    {"q6k-as-q4k", "H4", "Q6_K bytes decoded as Q4_K (aprender PR 1524 to 1529)", false, FWD_OP_FFN_OUT, FWD_TYPE_Q6_K,
     par_fault_q6k_as_q4k, NULL},
    {"rope-pairing", "H3", "RoPE rotates the other pairs (candle 3410, llama2.c PR 286)", false, FWD_OP_QCUR_ROPE,
     ANY_TYPE, par_fault_rope_pairing, NULL},
    {"rope-position", "H3", "positions after the prompt are one too high (llama.cpp PR 7107)", false, FWD_OP_QCUR_ROPE,
     ANY_TYPE, par_fault_rope_position, NULL},
    {"kv-row-stale", "H2", "one K row of the prompt is stale when decode reads it (aprender PR 2029)", false,
     FWD_OP_K_CACHE, ANY_TYPE, par_fault_kv_stale, NULL},
    {"gqa-modulo", "H5",
     "query head h reads KV head h % n instead of h / (heads / n), in all paths (llama.cpp PR 3364)", true,
     FWD_OP_COUNT, ANY_TYPE, NULL, par_fault_gqa_modulo},
    {"eps-other-model", "H5", "the norm epsilon of another model, in all paths (aprender PR 1606)", true, FWD_OP_COUNT,
     ANY_TYPE, NULL, par_fault_eps},
};

const struct par_fault_row *par_fault_row(int i) {
    return i >= 0 && i < (int)(sizeof rows / sizeof *rows) ? &rows[i] : NULL;
}

static enum fwd_status fail_unknown(const char *text, size_t name_len, struct fwd_error *err) {
    char known[320] = "";
    size_t used = 0;
    for (int i = 0; par_fault_row(i) && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", rows[i].name);
    FWD_FAIL(FWD_EINPUT, err, "--fault: got \"%.*s\", expected one of %s", name_len < 64 ? (int)name_len : 64, text,
             known);
}

enum fwd_status par_fault_parse(const char *text, struct par_fault *out, struct fwd_error *err) {
    size_t name_len = strcspn(text, "@");
    memset(out, 0, sizeof *out);
    out->layer = -1;
    for (int i = 0; par_fault_row(i); i++)
        if (strlen(rows[i].name) == name_len && !strncmp(rows[i].name, text, name_len))
            out->row = &rows[i];
    if (!out->row)
        return fail_unknown(text, name_len, err);
    out->op = out->row->op;
    if (text[name_len] == 0)
        return FWD_OK;
    FWD_FAIL_IF(out->row->shared, FWD_EINPUT, err,
                "--fault: \"%s\" is in code that all paths share: it takes no @place", out->row->name);
    char place[64];
    (void)snprintf(place, sizeof place, "%s", text + name_len + 1);
    char *colon = strchr(place, ':');
    if (colon) {
        char *end;
        *colon = 0;
        long layer = strtol(colon + 1, &end, 10);
        FWD_FAIL_IF(end == colon + 1 || *end || layer < 0 || layer >= FWD_MAX_LAYERS, FWD_EINPUT, err,
                    "--fault: layer \"%s\" of \"%s\", expected a number from 0", colon + 1, text);
        out->layer = (int)layer;
    }
    out->op = fwd_op_by_name(place);
    FWD_FAIL_IF(out->op == FWD_OP_COUNT, FWD_EINPUT, err, "--fault: no op \"%s\" (attn_norm, Qcur, ... ffn_out)",
                place);
    return FWD_OK;
}

/* The matrix an op multiplies by, "%d" for the layer; NULL: the op has none. */
static const char *weight_of(enum fwd_op op) {
    switch (op) {
    case FWD_OP_QCUR:
        return "blk.%d.attn_q.weight";
    case FWD_OP_KCUR:
        return "blk.%d.attn_k.weight";
    case FWD_OP_VCUR:
        return "blk.%d.attn_v.weight";
    case FWD_OP_ATTN_OUT:
        return "blk.%d.attn_output.weight";
    case FWD_OP_FFN_GATE:
        return "blk.%d.ffn_gate.weight";
    case FWD_OP_FFN_UP:
        return "blk.%d.ffn_up.weight";
    case FWD_OP_FFN_OUT:
        return "blk.%d.ffn_down.weight";
    case FWD_OP_RESULT_OUTPUT:
        return "output.weight";
    default:
        return NULL;
    }
}

static bool can_act(const struct par_fault *f, const struct fwd_gguf *file, int layer) {
    if (f->row->weight_type == ANY_TYPE)
        return true;
    const char *format = weight_of(f->op);
    char name[64];
    if (!format)
        return false;
    if (f->op == FWD_OP_RESULT_OUTPUT)
        (void)snprintf(name, sizeof name, "%s", format);
    else
        (void)snprintf(name, sizeof name, "blk.%d.%s", layer, strchr(format + 4, '.') + 1);
    const struct fwd_gguf_tensor *t = fwd_gguf_find(file, name);
    return t && t->type == f->row->weight_type;
}

/* Ops at which a fault makes sense: its own, or any of the same kind. */
static bool fits(const struct par_fault_row *row, enum fwd_op op) {
    if (row->weight_type != ANY_TYPE)
        return weight_of(op) != NULL;
    if (row->op == FWD_OP_QCUR_ROPE)
        return op == FWD_OP_QCUR_ROPE || op == FWD_OP_KCUR_ROPE;
    if (row->op == FWD_OP_K_CACHE)
        return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
    return op == row->op;
}

enum fwd_status par_fault_place(struct par_fault *f, const struct fwd_gguf *file, const struct par_spec_config *config,
                                const struct fwd_knobs *knobs, struct fwd_error *err) {
    const struct par_fault_row *row = f->row;
    if (row->shared) {
        FWD_FAIL_IF(row->hook == par_fault_gqa_modulo && config->n_head / config->n_kv_head < 2, FWD_EINPUT, err,
                    "--fault gqa-modulo: this model has one query head per KV head, so nothing would change");
        FWD_FAIL_IF(row->hook == par_fault_gqa_modulo && config->n_kv_head < 2, FWD_EINPUT, err,
                    "--fault gqa-modulo: this model has one KV head, so nothing would change");
        return FWD_OK;
    }
    FWD_FAIL_IF(!fits(row, f->op), FWD_EINPUT, err, "--fault %s: cannot be planted at %s", row->name,
                fwd_op_name(f->op));
    FWD_FAIL_IF(row->plant == par_fault_head_transposed && knobs->head != FWD_HEAD_F32, FWD_EINPUT, err,
                "--fault %s: needs --head f32 (the story's engine kept its head in F32)", row->name);
    if (!fwd_op_in_layer(f->op)) {
        FWD_FAIL_IF(f->layer >= 0, FWD_EINPUT, err, "--fault %s: %s belongs to no layer", row->name,
                    fwd_op_name(f->op));
        FWD_FAIL_IF(!can_act(f, file, -1), FWD_EINPUT, err, "--fault %s: the weight of %s is not %s", row->name,
                    fwd_op_name(f->op), fwd_type_name(row->weight_type));
        return FWD_OK;
    }
    FWD_FAIL_IF(f->layer >= config->n_layer, FWD_ERANGE, err, "--fault %s: layer %d, the model has %d", row->name,
                f->layer, config->n_layer);
    bool chosen = f->layer >= 0;
    for (int layer = chosen ? f->layer : 0; layer < (chosen ? f->layer + 1 : config->n_layer); layer++)
        if (can_act(f, file, layer)) {
            f->layer = layer;
            return FWD_OK;
        }
    FWD_FAIL(FWD_EINPUT, err, "--fault %s: no %s weight at %s%s", row->name, fwd_type_name(row->weight_type),
             fwd_op_name(f->op), chosen ? " of that layer" : " of any layer");
}

enum fwd_status par_fault_plant(struct par_fault *f, const struct fwd_path *path, struct fwd_session *session,
                                struct fwd_error *err) {
    if (f->row->shared)
        return FWD_OK;
    return path->override(session, f->op, f->layer, f->row->plant, f, err);
}
