/* engine/paths/ref_session.c: opening and describing a reference path. Everything it will need is allocated here. */
#include "paths/ref_session.h"

#include "ops/matmul_f/matmul_f.h"
#include "paths/ref_ops.h"

#include <string.h>

/* ---- shapes ------------------------------------------------------------------------------------------------------ */
size_t ref_real_bytes(const struct fwd_session *s) {
    return fwd_dtype_row_bytes(s->real, 1);
}

int64_t ref_width(const struct fwd_config *c, enum fwd_op op) {
    switch (op) {
    case FWD_OP_QCUR:
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KQV_OUT:
    case FWD_OP_KQV_OUT_Q8:
        return (int64_t)c->n_head * c->head_dim;
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return (int64_t)c->n_kv_head * c->head_dim;
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
    case FWD_OP_FFN_SWIGLU:
    case FWD_OP_FFN_SWIGLU_Q8:
        return c->n_ff;
    case FWD_OP_RESULT_OUTPUT:
        return c->n_vocab;
    default:
        return c->n_embd;
    }
}

const struct fwd_weight *ref_weight(const struct fwd_model *m, enum fwd_op op, int layer) {
    const struct fwd_layer *l = layer >= 0 ? &m->layers[layer] : NULL;
    switch (op) {
    case FWD_OP_INP_EMBD:
        return &m->tok_embd;
    case FWD_OP_ATTN_NORM:
        return &l->attn_norm;
    case FWD_OP_QCUR:
        return &l->wq;
    case FWD_OP_KCUR:
        return &l->wk;
    case FWD_OP_VCUR:
        return &l->wv;
    case FWD_OP_ATTN_OUT:
        return &l->wo;
    case FWD_OP_FFN_NORM:
        return &l->ffn_norm;
    case FWD_OP_FFN_GATE:
        return &l->gate;
    case FWD_OP_FFN_UP:
        return &l->up;
    case FWD_OP_FFN_OUT:
        return &l->down;
    case FWD_OP_RESULT_NORM:
        return &m->output_norm;
    case FWD_OP_RESULT_OUTPUT:
        return &m->output;
    default:
        return NULL;
    }
}

const struct fwd_weight *ref_bias(const struct fwd_model *m, enum fwd_op op, int layer) {
    switch (op) {
    case FWD_OP_QCUR:
        return &m->layers[layer].bq;
    case FWD_OP_KCUR:
        return &m->layers[layer].bk;
    case FWD_OP_VCUR:
        return &m->layers[layer].bv;
    default:
        return NULL;
    }
}

/* ---- --act ------------------------------------------------------------------------------------------------------- */
enum fwd_dtype ref_act_format(const struct fwd_session *s, enum fwd_op op, const struct fwd_weight *w) {
    if (!s->act || (op == FWD_OP_RESULT_OUTPUT && s->head_f32))
        return FWD_F32;
    const struct fwd_type_info *type = fwd_type_info(w->type);
    return type->block_values == 256 ? FWD_Q8_K : type->block_values == 32 ? FWD_Q8_32 : FWD_F32;
}

enum fwd_dtype ref_tap_format(const struct fwd_session *s, enum fwd_op op, int layer) {
    enum fwd_op reader; /* the first op that reads the tap: its weight says the format */
    switch (op) {
    case FWD_OP_ATTN_NORM_Q8:
        reader = FWD_OP_QCUR;
        break;
    case FWD_OP_KQV_OUT_Q8:
        reader = FWD_OP_ATTN_OUT;
        break;
    case FWD_OP_FFN_NORM_Q8:
        reader = FWD_OP_FFN_GATE;
        break;
    case FWD_OP_FFN_SWIGLU_Q8:
        reader = FWD_OP_FFN_OUT;
        break;
    case FWD_OP_RESULT_NORM_Q8:
        reader = FWD_OP_RESULT_OUTPUT;
        break;
    default:
        return FWD_F32;
    }
    return ref_act_format(s, reader, ref_weight(s->model, reader, layer));
}

/* ---- describe ---------------------------------------------------------------------------------------------------- */
enum fwd_status ref_probe(struct fwd_error *err) {
    (void)err;
    return FWD_OK;
}

void ref_describe(struct fwd_path_info *out) {
    memset(out, 0, sizeof *out);
    out->size = sizeof *out;
    for (int op = 0; op < FWD_OP_COUNT; op++)
        out->taps[op] = FWD_TAP_WRITE;
    out->taps[FWD_OP_ATTN_NORM_Q8] = out->taps[FWD_OP_KQV_OUT_Q8] = out->taps[FWD_OP_FFN_NORM_Q8] =
        out->taps[FWD_OP_FFN_SWIGLU_Q8] = out->taps[FWD_OP_RESULT_NORM_Q8] = FWD_TAP_ABSENT;
}

const struct fwd_config *ref_config(const struct fwd_session *s) {
    return &s->model->config;
}

bool ref_variant(const struct fwd_session *s, int i, struct fwd_variant_choice *out) {
    if (i != 0)
        return false;
    *out = (struct fwd_variant_choice){.op = s->matmul->op, .detail = "", .variant = s->matmul->variant, .why = s->why};
    return true;
}

bool ref_bound_weight(const struct fwd_session *s, int i, struct fwd_bound_weight *out) {
    if (i < 0 || i >= s->n_bound)
        return false;
    const struct fwd_weight *w = s->bound[i].weight;
    *out = (struct fwd_bound_weight){.name = w->name,
                                     .layer = s->bound[i].layer,
                                     .type = w->type,
                                     .n_rows = w->n_rows,
                                     .n_cols = w->n_cols,
                                     .layout = "file",
                                     .checksum = fwd_hash64(w->data, (size_t)(w->n_rows * w->row_bytes))};
    if (w->tensor)
        fwd_gguf_drop_pages(s->model->file, w->tensor);
    return true;
}

/* ---- open, close ------------------------------------------------------------------------------------------------- */
static void count_weight(void *ud, int layer, const struct fwd_weight *w) {
    struct fwd_session *s = ud;
    if (s->bound)
        s->bound[s->n_bound] = (struct ref_bound){layer, w};
    s->n_bound++;
}

static bool list_weights(struct fwd_session *s) {
    fwd_model_each_weight(s->model, count_weight, s);
    s->bound = fwd_alloc((size_t)s->n_bound, sizeof *s->bound);
    s->n_bound = 0;
    if (!s->bound)
        return false;
    fwd_model_each_weight(s->model, count_weight, s);
    return true;
}

static size_t value_bytes(const struct fwd_session *s, enum fwd_op op) {
    size_t real_row = (size_t)ref_width(&s->model->config, op) * ref_real_bytes(s);
    if (op == FWD_OP_RESULT_OUTPUT)
        return real_row * REF_HEAD_CHUNK;
    /* A q8 row of blocks of 32 (40 bytes for 32 values) is never longer than the same row in F32. */
    return real_row * (size_t)s->n_ctx;
}

static bool alloc_buffers(struct fwd_session *s) {
    const struct fwd_config *c = &s->model->config;
    int n_threads = fwd_pool_size(s->pool);
    size_t n_ctx = (size_t)s->n_ctx;
    int64_t widest = 0;
    for (int op = 0; op < FWD_OP_RESULT_OUTPUT; op++) {
        int64_t width = ref_width(c, (enum fwd_op)op);
        widest = width > widest ? width : widest;
        s->values[op] = fwd_alloc(value_bytes(s, (enum fwd_op)op), 1);
        if (!s->values[op])
            return false;
    }
    s->values[FWD_OP_RESULT_OUTPUT] = fwd_alloc(value_bytes(s, FWD_OP_RESULT_OUTPUT), 1);
    s->row_scratch_len = 3 * widest > 2 * c->head_dim + s->n_ctx ? 3 * widest : 2 * c->head_dim + s->n_ctx;
    s->row_scratch_len = (s->row_scratch_len + 7) / 8 * 8;
    s->unpacked = fwd_alloc(n_ctx * (s->act ? (size_t)widest : 0), ref_real_bytes(s));
    s->k_rows = fwd_alloc(n_ctx * (size_t)ref_width(c, FWD_OP_KCUR), sizeof *s->k_rows);
    s->v_rows = fwd_alloc(n_ctx * (size_t)ref_width(c, FWD_OP_KCUR), sizeof *s->v_rows);
    s->freq = fwd_alloc((size_t)c->n_rope / 2, sizeof *s->freq);
    s->row_scratch = fwd_alloc((size_t)n_threads * (size_t)s->row_scratch_len, sizeof *s->row_scratch);
    s->matmul_scratch = fwd_alloc(s->real == FWD_F32 ? fwd_matmul_f_scratch(widest, s->n_ctx, n_threads)
                                                     : fwd_matmul_d_scratch(widest, s->n_ctx, n_threads),
                                  1);
    s->overrides = fwd_calloc((size_t)(FWD_OP_COUNT * c->n_layer), sizeof *s->overrides);
    return s->values[FWD_OP_RESULT_OUTPUT] && s->unpacked && s->k_rows && s->v_rows && s->freq && s->row_scratch &&
           s->matmul_scratch && s->overrides && list_weights(s);
}

static enum fwd_status read_knobs(struct fwd_session *s, const struct fwd_knobs *knobs, struct fwd_error *err) {
    FWD_FAIL_IF(knobs->size != sizeof *knobs, FWD_EVERSION, err, "open: knobs of %u bytes, expected %zu", knobs->size,
                sizeof *knobs);
    FWD_FAIL_IF(knobs->n_ctx < 1, FWD_ERANGE, err, "open: context of %d positions, expected at least 1", knobs->n_ctx);
    FWD_FAIL_IF(knobs->n_seq < 1, FWD_ERANGE, err, "open: %d sequence slots, expected at least 1", knobs->n_seq);
    FWD_FAIL_IF(knobs->fp8_fast || knobs->no_overlap || knobs->scribble, FWD_EINPUT, err,
                "open: got %s, which means nothing to a reference path",
                knobs->fp8_fast     ? "fp8_fast"
                : knobs->no_overlap ? "no_overlap"
                                    : "scribble");
    s->n_ctx = knobs->n_ctx;
    s->n_seq = knobs->n_seq;
    if (knobs->act && strcmp(knobs->act, "none") != 0) {
        FWD_FAIL_IF(strcmp(knobs->act, "as:q4k-cpu") != 0, FWD_EUNSUPPORTED, err,
                    "act: got \"%s\", expected none or as:q4k-cpu", knobs->act);
        s->act = true;
        s->kv_f16 = knobs->kv_type == FWD_F16;
        s->head_f32 = knobs->head == FWD_HEAD_F32;
    }
    const char *op = s->real == FWD_F32 ? "matmul_f" : "matmul_d";
    unsigned caps;
    FWD_TRY(fwd_cpu_parse(knobs->caps, fwd_cpu_detect(), &caps, err));
    FWD_TRY(fwd_variant_check_force(caps, knobs->force, err));
    FWD_TRY(fwd_variant_pick(&s->matmul, op, caps, knobs->force, err));
    s->why = fwd_variant_is_forced(op, knobs->force) ? "forced" : "fastest that the caps allow";
    return FWD_OK;
}

enum fwd_status ref_open(struct fwd_session **out, enum fwd_dtype real, const struct fwd_gguf *file,
                         const struct fwd_knobs *knobs, struct fwd_error *err) {
    struct fwd_session *s = fwd_calloc(1, sizeof *s);
    FWD_FAIL_IF(!s, FWD_ENOMEM, err, "open: no memory for a session");
    s->real = real;
    enum fwd_status status = read_knobs(s, knobs, err);
    if (status == FWD_OK)
        status = fwd_model_bind(&s->model, file, knobs->config_hook, knobs->config_hook_ud, err);
    if (status == FWD_OK && knobs->model_hook)
        knobs->model_hook(knobs->model_hook_ud, s->model);
    if (status == FWD_OK)
        status = fwd_pool_create(&s->pool, knobs->n_threads, err);
    if (status == FWD_OK && !alloc_buffers(s))
        status =
            fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "open: no memory for a context of %d positions", s->n_ctx);
    if (status != FWD_OK) {
        ref_close(s);
        return status;
    }
    *out = s;
    return FWD_OK;
}

void ref_close(struct fwd_session *s) {
    if (!s)
        return;
    for (int op = 0; op < FWD_OP_COUNT; op++)
        fwd_free(s->values[op]);
    fwd_free(s->unpacked);
    fwd_free(s->k_rows);
    fwd_free(s->v_rows);
    fwd_free(s->freq);
    fwd_free(s->row_scratch);
    fwd_free(s->matmul_scratch);
    fwd_free(s->overrides);
    fwd_free(s->bound);
    fwd_pool_free(s->pool);
    fwd_model_free(s->model);
    fwd_free(s);
}

/* ---- state ------------------------------------------------------------------------------------------------------- */
enum fwd_status ref_seq_begin(struct fwd_session *s, int seq, struct fwd_error *err) {
    FWD_FAIL_IF(seq < 0 || seq >= s->n_seq, FWD_ERANGE, err, "seq_begin: sequence slot %d, expected 0 to %d", seq,
                s->n_seq - 1);
    return FWD_OK;
}

struct ref_override *ref_override_slot(const struct fwd_session *s, enum fwd_op op, int layer) {
    return &s->overrides[(int)op * s->model->config.n_layer + (layer < 0 ? 0 : layer)];
}

enum fwd_status ref_override(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                             struct fwd_error *err) {
    int n_layer = s->model->config.n_layer, slots = fwd_op_in_layer(op) ? n_layer : 1;
    FWD_FAIL_IF((unsigned)op >= FWD_OP_COUNT, FWD_ERANGE, err, "override: op %d, expected 0 to %d", (int)op,
                FWD_OP_COUNT - 1);
    FWD_FAIL_IF(layer < -1 || (layer >= 0 && (!fwd_op_in_layer(op) || layer >= n_layer)), FWD_ERANGE, err,
                "override: %s of layer %d, expected -1%s", fwd_op_name(op), layer,
                fwd_op_in_layer(op) ? " or a layer of the model" : "");
    for (int i = layer < 0 ? 0 : layer; i < (layer < 0 ? slots : layer + 1); i++)
        *ref_override_slot(s, op, i) = (struct ref_override){fn, fn ? ud : NULL};
    return FWD_OK;
}
