/* A case in memory: copies, its model, and which taps an op reads. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "localise/case_parts.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

/* ---- ops -------------------------------------------------------------------------------------------------------- */
bool par_case_is_matmul(enum fwd_op op) {
    return op == FWD_OP_QCUR || op == FWD_OP_KCUR || op == FWD_OP_VCUR || op == FWD_OP_ATTN_OUT ||
           op == FWD_OP_FFN_GATE || op == FWD_OP_FFN_UP || op == FWD_OP_FFN_OUT || op == FWD_OP_RESULT_OUTPUT;
}

bool par_case_is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

/* The float input of ops that have one, RESIDUAL for the stream between layers. */
#define RESIDUAL FWD_OP_INP_EMBD
static const enum fwd_op first_input[FWD_OP_COUNT] = {
    [FWD_OP_ATTN_NORM] = RESIDUAL,
    [FWD_OP_ATTN_NORM_Q8] = FWD_OP_ATTN_NORM,
    [FWD_OP_QCUR] = FWD_OP_ATTN_NORM,
    [FWD_OP_KCUR] = FWD_OP_ATTN_NORM,
    [FWD_OP_VCUR] = FWD_OP_ATTN_NORM,
    [FWD_OP_QCUR_ROPE] = FWD_OP_QCUR,
    [FWD_OP_KCUR_ROPE] = FWD_OP_KCUR,
    [FWD_OP_K_CACHE] = FWD_OP_KCUR_ROPE,
    [FWD_OP_V_CACHE] = FWD_OP_VCUR,
    [FWD_OP_KQV_OUT] = FWD_OP_QCUR_ROPE,
    [FWD_OP_KQV_OUT_Q8] = FWD_OP_KQV_OUT,
    [FWD_OP_ATTN_OUT] = FWD_OP_KQV_OUT,
    [FWD_OP_FFN_INP] = FWD_OP_ATTN_OUT,
    [FWD_OP_FFN_NORM] = FWD_OP_FFN_INP,
    [FWD_OP_FFN_NORM_Q8] = FWD_OP_FFN_NORM,
    [FWD_OP_FFN_GATE] = FWD_OP_FFN_NORM,
    [FWD_OP_FFN_UP] = FWD_OP_FFN_NORM,
    [FWD_OP_FFN_SWIGLU] = FWD_OP_FFN_GATE,
    [FWD_OP_FFN_SWIGLU_Q8] = FWD_OP_FFN_SWIGLU,
    [FWD_OP_FFN_OUT] = FWD_OP_FFN_SWIGLU,
    [FWD_OP_L_OUT] = FWD_OP_FFN_OUT,
    [FWD_OP_RESULT_NORM] = FWD_OP_L_OUT,
    [FWD_OP_RESULT_NORM_Q8] = FWD_OP_RESULT_NORM,
    [FWD_OP_RESULT_OUTPUT] = FWD_OP_RESULT_NORM,
};

static struct par_case_tap make_tap(enum fwd_op op, int layer) {
    struct par_case_tap t = {op, FWD_OP_COUNT, fwd_op_in_layer(op) ? layer : -1};
    if (op == FWD_OP_L_OUT)
        t.layer = PAR_CASE_LAST_LAYER;
    if (op == RESIDUAL && layer > 0)
        t = (struct par_case_tap){FWD_OP_L_OUT, FWD_OP_COUNT, layer - 1};
    return t;
}

int par_case_taps(enum fwd_op op, int layer, struct par_case_tap out[PAR_CASE_INPUTS]) {
    if (op == FWD_OP_INP_EMBD)
        return 0;
    out[0] = make_tap(first_input[op], layer);
    if (par_case_is_matmul(op))
        out[0].op_q8 = first_input[op] + 1; /* each _q8 op follows its float op */
    if (op == FWD_OP_KQV_OUT) {
        out[1] = make_tap(FWD_OP_K_CACHE, layer);
        out[2] = make_tap(FWD_OP_V_CACHE, layer);
        return 3;
    }
    if (op == FWD_OP_FFN_SWIGLU || op == FWD_OP_FFN_INP || op == FWD_OP_L_OUT) {
        out[1] = op == FWD_OP_FFN_SWIGLU ? make_tap(FWD_OP_FFN_UP, layer)
                 : op == FWD_OP_L_OUT    ? make_tap(FWD_OP_FFN_INP, layer)
                                         : make_tap(RESIDUAL, layer);
        return 2;
    }
    return 1;
}

int64_t par_case_width(const struct par_spec_config *c, enum fwd_op op) {
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

/* ---- copies ------------------------------------------------------------------------------------------------------ */
void par_case_free(struct par_case *c) {
    for (int i = 0; i < c->n_weights; i++) {
        fwd_free(c->weights[i].rows);
        fwd_free(c->weights[i].bytes);
    }
    for (int i = 0; i < PAR_CASE_INPUTS; i++) {
        fwd_free(c->in[i].pos);
        fwd_free(c->in[i].bytes);
    }
    fwd_free(c->weights);
    fwd_free(c->gguf);
    fwd_free(c->ids);
    fwd_free(c->want);
    *c = (struct par_case){0};
}

static bool copy_bytes(void *at, const void *from, size_t n) {
    void *p = fwd_alloc(n, 1);
    if (p && n)
        memcpy(p, from, n);
    memcpy(at, &p, sizeof p);
    return p != NULL;
}

/* Takes away every pointer of a struct copied from another, so that par_case_free can be called at any time. */
static void forget_pointers(struct par_case *c) {
    c->gguf = NULL;
    c->weights = NULL;
    c->n_weights = 0;
    c->ids = NULL;
    c->want = NULL;
    for (int i = 0; i < PAR_CASE_INPUTS; i++) {
        c->in[i].pos = NULL;
        c->in[i].bytes = NULL;
    }
}

static bool copy_parts(struct par_case *to, const struct par_case *from) {
    size_t n_ids = (size_t)from->n_ids;
    to->weights = fwd_calloc((size_t)from->n_weights, sizeof *to->weights);
    if (!to->weights || !copy_bytes(&to->gguf, from->gguf, from->n_gguf) ||
        !copy_bytes(&to->ids, from->ids, n_ids * sizeof *to->ids) || !copy_bytes(&to->want, from->want, n_ids))
        return false;
    for (int i = 0; i < from->n_weights; i++) {
        const struct par_case_weight *w = &from->weights[i];
        size_t n = (size_t)w->n;
        to->weights[i] = *w;
        to->weights[i].rows = NULL;
        to->weights[i].bytes = NULL;
        to->n_weights++;
        if (!copy_bytes(&to->weights[i].rows, w->rows, n * sizeof *w->rows) ||
            !copy_bytes(&to->weights[i].bytes, w->bytes, n * (size_t)w->row_bytes))
            return false;
    }
    for (int i = 0; i < from->n_in; i++) {
        const struct par_case_input *in = &from->in[i];
        size_t n = (size_t)in->n;
        if (!copy_bytes(&to->in[i].pos, in->pos, n * sizeof *in->pos) ||
            !copy_bytes(&to->in[i].bytes, in->bytes, n * fwd_dtype_row_bytes(in->dtype, in->n_values)))
            return false;
    }
    return true;
}

enum fwd_status par_case_copy(struct par_case *to, const struct par_case *from, struct fwd_error *err) {
    *to = *from;
    forget_pointers(to);
    if (copy_parts(to, from))
        return FWD_OK;
    par_case_free(to);
    FWD_FAIL(FWD_ENOMEM, err, "no memory for a copy of a case");
}

/* ---- its model --------------------------------------------------------------------------------------------------- */
void par_case_model_close(struct par_case_model *m) {
    par_spec_close(m->spec);
    fwd_gguf_close(m->file);
    if (m->image)
        (void)munmap(m->image, m->n_image);
    *m = (struct par_case_model){0};
}

static enum fwd_status place_rows(struct par_case_model *m, const struct par_case_weight *w, struct fwd_error *err) {
    const struct fwd_gguf_tensor *t = fwd_gguf_find(m->file, w->name);
    FWD_FAIL_IF(!t || !t->data, FWD_EMISSING, err, "case: rows of %s, which its model does not have", w->name);
    uint64_t n_rows = t->ne[1] * t->ne[2] * t->ne[3];
    FWD_FAIL_IF(w->row_bytes < 1 || t->n_bytes != n_rows * (uint64_t)w->row_bytes, FWD_ESHAPE, err,
                "case: rows of %s have %lld bytes, expected %llu", w->name, (long long)w->row_bytes,
                (unsigned long long)(n_rows ? t->n_bytes / n_rows : 0));
    uint8_t *data = m->image + (t->data - m->image); /* the parser's view is read-only */
    for (int i = 0; i < w->n; i++) {
        FWD_FAIL_IF(w->rows[i] < 0 || (uint64_t)w->rows[i] >= n_rows || (i > 0 && w->rows[i] <= w->rows[i - 1]),
                    FWD_ERANGE, err, "case: row %lld of %s, expected rising numbers from 0 to %llu",
                    (long long)w->rows[i], w->name, (unsigned long long)n_rows - 1);
        memcpy(data + w->rows[i] * w->row_bytes, w->bytes + i * w->row_bytes, (size_t)w->row_bytes);
    }
    return FWD_OK;
}

/* A directory may claim any number of layers: none may be allocated on its word. */
static enum fwd_status check_layers(const struct fwd_gguf *file, struct fwd_error *err) {
    const char *arch = NULL;
    size_t len = 0;
    char key[64];
    uint64_t n = 0;
    FWD_FAIL_IF(!fwd_gguf_get_str(file, "general.architecture", &arch, &len) || len > 31, FWD_EMISSING, err,
                "case: its model has no architecture");
    memcpy(key, arch, len);
    memcpy(key + len, ".block_count", sizeof ".block_count");
    FWD_FAIL_IF(!fwd_gguf_get_u64(file, key, &n) || n < 1 || n > PAR_CASE_LAYERS, FWD_ERANGE, err,
                "case: its model has %llu layers, expected 1 to %d", (unsigned long long)n, PAR_CASE_LAYERS);
    return FWD_OK;
}

static enum fwd_status fill_model(struct par_case_model *m, const struct par_case *c, struct fwd_error *err) {
    FWD_TRY(fwd_gguf_parse(&m->file, m->image, m->n_image, err));
    FWD_TRY(check_layers(m->file, err));
    for (int i = 0; i < c->n_weights; i++)
        FWD_TRY(place_rows(m, &c->weights[i], err));
    return par_spec_open(&m->spec, m->file, err);
}

enum fwd_status par_case_model_open(struct par_case_model *out, const struct par_case *c, struct fwd_error *err) {
    enum { MOST_IMAGE_MB = 8192 };
    *out = (struct par_case_model){0};
    FWD_FAIL_IF(c->n_image < c->n_gguf || c->n_image >> 20 >= MOST_IMAGE_MB, FWD_ERANGE, err,
                "case: a model of %llu bytes, expected %zu bytes to %d MiB", (unsigned long long)c->n_image, c->n_gguf,
                MOST_IMAGE_MB);
    /* Pages of zeros that nothing writes to cost nothing. */
    void *map =
        mmap(NULL, (size_t)c->n_image, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FWD_FAIL_IF(map == MAP_FAILED, FWD_ENOMEM, err, "case: no memory for a model of %llu bytes: %s",
                (unsigned long long)c->n_image, strerror(errno));
    out->image = map;
    out->n_image = (size_t)c->n_image;
    memcpy(out->image, c->gguf, c->n_gguf);
    enum fwd_status rc = fill_model(out, c, err);
    if (rc != FWD_OK)
        par_case_model_close(out);
    return rc;
}
