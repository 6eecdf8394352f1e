/* Cutting: the directory of a small model with the shapes of the large one, the weight rows and the input rows. */
#include "localise/case_cut.h"

#include "fixture/gguf_writer.h"
#include "spec/spec_model.h"

#include <stdio.h>
#include <string.h>

enum { WINDOW = 256, SMALL_FF = 256, SMALL_VOCAB = 32 };

struct cutter {
    const struct par_case_context *x;
    const struct par_evidence *item;
    const struct par_evidence_call *call;
    const struct par_case_element *e;
    const struct par_cut *cut;
    struct par_case *c;
    int first_layer, n_layer; /* of the original that are kept */
    int n_ff;
    int64_t n_vocab;
    struct fwd_error *err;
};

static bool reads_vocabulary(enum fwd_op op) {
    return op == FWD_OP_INP_EMBD || op == FWD_OP_RESULT_OUTPUT;
}

/* The row of the op's matrix that makes the accused element; -1: it has none. */
static int64_t accused_row(const struct cutter *k) {
    enum fwd_op op = k->item->op;
    return op == FWD_OP_INP_EMBD ? k->x->ids[k->e->pos] : par_case_is_matmul(op) ? k->e->row : -1;
}

static bool is_result(enum fwd_op op) {
    return op == FWD_OP_RESULT_NORM || op == FWD_OP_RESULT_NORM_Q8 || op == FWD_OP_RESULT_OUTPUT;
}

bool par_cut_fits(const struct par_cut *cut, enum fwd_op op) {
    bool history = par_case_is_cache(op) || op == FWD_OP_KQV_OUT; /* reads earlier positions */
    if (cut->at_zero && history)
        return false;
    if (cut->one_pos && par_case_is_cache(op))
        return false;
    return !cut->one_row || cut->layer || cut->below || par_case_is_matmul(op) || op == FWD_OP_INP_EMBD;
}

/* ---- the directory ---------------------------------------------------------------------------------------------- */
static void choose_sizes(struct cutter *k) {
    const struct par_spec_config *config = par_spec_config(k->x->spec);
    enum fwd_op op = k->item->op;
    bool in_ffn = op >= FWD_OP_FFN_GATE && op <= FWD_OP_FFN_OUT;
    bool whole = k->cut->layer || k->cut->below;
    int layer = k->item->layer < 0 ? 0 : k->item->layer;
    k->first_layer = k->cut->below && layer > 0 ? layer - 1 : layer;
    k->n_layer = k->cut->below ? PAR_CASE_LAYERS : 1;
    if (k->n_layer > config->n_layer - k->first_layer)
        k->n_layer = config->n_layer - k->first_layer;
    k->n_ff = whole || in_ffn || config->n_ff < SMALL_FF ? config->n_ff : SMALL_FF;
    k->n_vocab = config->n_vocab < SMALL_VOCAB ? config->n_vocab : SMALL_VOCAB;
    if (!reads_vocabulary(op))
        return;
    k->n_vocab = config->n_vocab;
    if (k->cut->one_row && config->n_vocab > WINDOW) {
        k->c->row_from = accused_row(k) / WINDOW * WINDOW;
        k->n_vocab = config->n_vocab - k->c->row_from < WINDOW ? config->n_vocab - k->c->row_from : WINDOW;
    }
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* The keys of the architecture, with the sizes that changed. */
static void add_keys(const struct cutter *k, struct par_gguf_writer *w) {
    const struct fwd_gguf *file = k->x->file;
    const char *arch = par_spec_config(k->x->spec)->arch;
    size_t n = strlen(arch);
    for (uint64_t i = 0; i < fwd_gguf_n_kv(file); i++) {
        const struct fwd_gguf_kv *kv = fwd_gguf_kv(file, i);
        bool own = !strncmp(kv->key, arch, n) && kv->key[n] == '.';
        const char *name = kv->key + n + 1;
        if (own && !strcmp(name, "block_count"))
            par_gguf_add_u32(w, kv->key, (uint32_t)k->n_layer);
        else if (own && !strcmp(name, "feed_forward_length"))
            par_gguf_add_u32(w, kv->key, (uint32_t)k->n_ff);
        else if ((own && strcmp(name, "vocab_size") != 0) || !strcmp(kv->key, "general.architecture"))
            par_gguf_add_copy(w, kv);
    }
}

/* The name that a tensor of the original has in the case; false: it has none. */
static bool map_name(const struct cutter *k, const char *name, char *out, size_t n) {
    int layer, at = 0;
    if (sscanf(name, "blk.%d.%n", &layer, &at) != 1 || at == 0) {
        (void)snprintf(out, n, "%s", name);
        return true;
    }
    if (layer < k->first_layer || layer >= k->first_layer + k->n_layer)
        return false;
    (void)snprintf(out, n, "blk.%d.%s", layer - k->first_layer, name + at);
    return true;
}

static void add_tensors(const struct cutter *k, struct par_gguf_writer *w) {
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(k->x->file); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(k->x->file, i);
        char name[64];
        uint64_t ne[4];
        if (!map_name(k, t->name, name, sizeof name))
            continue;
        memcpy(ne, t->ne, sizeof ne);
        if (!strcmp(name, "token_embd.weight") || !strcmp(name, "output.weight"))
            ne[1] = (uint64_t)k->n_vocab;
        if (ends_with(name, "ffn_gate.weight") || ends_with(name, "ffn_up.weight"))
            ne[1] = (uint64_t)k->n_ff;
        if (ends_with(name, "ffn_down.weight"))
            ne[0] = (uint64_t)k->n_ff;
        par_gguf_add_tensor(w, name, t->type, t->n_dims, ne);
    }
}

static enum fwd_status make_directory(const struct cutter *k) {
    struct par_gguf_writer *w = par_gguf_writer_create();
    FWD_FAIL_IF(!w, FWD_ENOMEM, k->err, "case: no memory for a model's directory");
    add_keys(k, w);
    add_tensors(k, w);
    enum fwd_status rc = par_gguf_writer_head(w, &k->c->gguf, &k->c->n_gguf, &k->c->n_image, k->err);
    par_gguf_writer_free(w);
    return rc;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */
/* Rows from .. from + n - 1 of a tensor of the original, as rows 0 .. n - 1 of the case's. */
static enum fwd_status add_rows(const struct cutter *k, const struct fwd_gguf_tensor *t, int64_t from, int64_t row,
                                int64_t n) {
    struct par_case_weight *w = &k->c->weights[k->c->n_weights];
    int64_t n_rows = (int64_t)(t->ne[1] * t->ne[2] * t->ne[3]);
    if (!map_name(k, t->name, w->name, sizeof w->name))
        return FWD_OK;
    k->c->n_weights++;
    w->row_bytes = (int64_t)t->n_bytes / n_rows;
    n = n < n_rows - row ? n : n_rows - row;
    w->rows = fwd_alloc((size_t)n, sizeof *w->rows);
    w->bytes = fwd_alloc((size_t)n, (size_t)w->row_bytes);
    FWD_FAIL_IF(!w->rows || !w->bytes, FWD_ENOMEM, k->err, "case: no memory for %lld rows of %s", (long long)n,
                t->name);
    w->n = (int)n;
    for (int64_t i = 0; i < n; i++)
        w->rows[i] = row + i - from;
    memcpy(w->bytes, t->data + row * w->row_bytes, (size_t)(n * w->row_bytes));
    return FWD_OK;
}

static enum fwd_status add_op_weights(const struct cutter *k) {
    enum fwd_op op = k->item->op;
    const struct spec_weight *w = par_spec_weight(k->x->spec, op, k->item->layer);
    const struct spec_weight *bias = par_spec_bias(k->x->spec, op, k->item->layer);
    if (w && w->tensor) {
        int64_t row = k->c->row_from, n = k->n_vocab;
        if (!reads_vocabulary(op)) {
            row = 0;
            n = w->n_rows;
        }
        if (k->cut->one_row) {
            row = accused_row(k);
            n = 1;
        }
        FWD_TRY(add_rows(k, w->tensor, k->c->row_from, row, n));
    }
    return bias && bias->tensor ? add_rows(k, bias->tensor, 0, 0, 1) : FWD_OK;
}

/* A tensor that the op does not read, as far as it should; of a matrix with one_row only the accused row. */
static enum fwd_status add_whole(const struct cutter *k, const struct fwd_gguf_tensor *t) {
    int64_t n_rows = (int64_t)(t->ne[1] * t->ne[2] * t->ne[3]), row = accused_row(k);
    if (!k->cut->one_row || n_rows == 1)
        return add_rows(k, t, 0, 0, INT64_MAX);
    return row >= 0 && row < n_rows ? add_rows(k, t, k->c->row_from, row, 1) : FWD_OK;
}

static enum fwd_status add_weights(const struct cutter *k) {
    const struct fwd_gguf *file = k->x->file;
    uint64_t n = fwd_gguf_n_tensors(file);
    bool whole = k->cut->layer || k->cut->below;
    k->c->weights = fwd_calloc(n + 2, sizeof *k->c->weights);
    FWD_FAIL_IF(!k->c->weights, FWD_ENOMEM, k->err, "case: no memory for its weights");
    const struct spec_weight *own = par_spec_weight(k->x->spec, k->item->op, k->item->layer);
    for (uint64_t i = 0; i < n; i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(file, i);
        bool factors = !strcmp(t->name, "rope_freqs.weight"); /* a factor of zero is no model */
        bool outside = reads_vocabulary(k->item->op) || t == (own ? own->tensor : NULL);
        if (factors || (whole && (outside || !strncmp(t->name, "blk.", 4))))
            FWD_TRY(add_whole(k, t));
    }
    return whole ? FWD_OK : add_op_weights(k);
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */
static bool keeps_row(const struct cutter *k, int input, int pos) {
    bool history = par_case_is_cache(k->item->op) || (k->item->op == FWD_OP_KQV_OUT && input > 0);
    if (history)
        return pos < k->c->n_ids;
    if (k->cut->at_zero || k->cut->one_pos)
        return pos == k->e->pos;
    int i = pos - k->call->out.pos0;
    return pos < k->c->n_ids && i >= 0 && i < k->call->out.n_pos && k->call->judge_pos[i];
}

static enum fwd_status add_input(const struct cutter *k, int i, const struct par_case_tap *tap) {
    const struct fwd_view *v = &k->call->in[i];
    struct par_case_input *in = &k->c->in[i];
    FWD_FAIL_IF(!v->data, FWD_EMISSING, k->err, "case: input %d of %s was not kept", i, fwd_op_name(k->item->op));
    bool cache = par_case_is_cache(v->op), q8 = tap->op_q8 != FWD_OP_COUNT && v->op == tap->op_q8;
    int first = cache ? 0 : v->pos0, n = cache ? (int)v->ne[2] : v->n_pos;
    *in = (struct par_case_input){
        .op = q8 ? tap->op_q8 : tap->op, .dtype = v->dtype, .n_values = cache ? v->ne[0] * v->ne[1] : v->ne[0]};
    size_t row = fwd_dtype_row_bytes(v->dtype, in->n_values);
    in->pos = fwd_alloc((size_t)n, sizeof *in->pos);
    in->bytes = fwd_alloc((size_t)n, row);
    k->c->n_in = i + 1;
    FWD_FAIL_IF(!in->pos || !in->bytes, FWD_ENOMEM, k->err, "case: no memory for %d rows of %s", n,
                fwd_op_name(in->op));
    for (int p = first; p < first + n; p++) /* copies of evidence are packed */
        if (keeps_row(k, i, p)) {
            memcpy(in->bytes + (size_t)in->n * row, (const uint8_t *)v->data + (size_t)(p - first) * row, row);
            in->pos[in->n++] = k->cut->at_zero ? 0 : p;
        }
    return FWD_OK;
}

/* ---- the sequence ----------------------------------------------------------------------------------------------- */
static bool uses_cache(const struct fwd_path *path) {
    struct fwd_path_info info = {.size = sizeof info};
    path->describe(&info);
    return info.uses_cache;
}

static void choose_sequence(const struct cutter *k) {
    struct par_case *c = k->c;
    const struct par_case_context *x = k->x;
    const struct fwd_view *out = &k->call->out;
    c->schedule = x->schedule;
    c->chunk = x->chunk;
    c->n_prompt = x->n_prompt;
    c->call_end = par_case_is_cache(c->op) ? out->pos0 + out->n_pos : 0;
    int last = c->call_end ? c->call_end - 1 : k->e->pos;
    c->n_ids = !uses_cache(x->path) ? x->n_ids : last < x->n_prompt ? x->n_prompt : last + 1;
    if (!k->cut->at_zero)
        return;
    c->pos_from = k->e->pos;
    c->schedule = PAR_SCHEDULE_PREFILL;
    c->chunk = 0;
    c->n_prompt = c->n_ids = 1;
}

static enum fwd_status fill_sequence(const struct cutter *k) {
    struct par_case *c = k->c;
    c->ids = fwd_calloc((size_t)c->n_ids, sizeof *c->ids);
    c->want = fwd_calloc((size_t)c->n_ids, 1);
    FWD_FAIL_IF(!c->ids || !c->want, FWD_ENOMEM, k->err, "case: no memory for %d ids", c->n_ids);
    for (int i = 0; i < c->n_ids; i++) {
        int pos = i + c->pos_from;
        int64_t id = c->op == FWD_OP_INP_EMBD ? k->x->ids[pos] - c->row_from : 0;
        c->ids[i] = id >= 0 && id < k->n_vocab ? (int32_t)id : 0;
        /* Without a wanted step nocache does not run it. */
        bool step = c->schedule == PAR_SCHEDULE_NOCACHE && i >= c->n_prompt;
        c->want[i] = (is_result(c->op) || step) && (!k->x->want || k->x->want[pos]);
    }
    return FWD_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */
/* The faults that could act here, with layers as the case counts them. */
static void list_faults(const struct cutter *k) {
    struct par_case *c = k->c;
    size_t used = 0;
    for (int i = 0; i < k->x->n_faults; i++) {
        struct par_fault f = k->x->faults[i];
        char text[160];
        bool everywhere = f.row->hook != NULL; /* the configuration is of no layer */
        bool inside = f.layer >= k->first_layer && f.layer < k->first_layer + k->n_layer;
        if (!par_fault_in(&f, k->x->role) || !(everywhere || inside || f.layer < 0))
            continue;
        f.layer = inside ? f.layer - k->first_layer : -1;
        (void)par_fault_describe(&f, text, sizeof text);
        if (used + strlen(text) + 2 < sizeof c->faults)
            used += (size_t)snprintf(c->faults + used, sizeof c->faults - used, "%s%s", used ? "," : "", text);
    }
}

static void copy_text(char *to, size_t n, const char *from) {
    (void)snprintf(to, n, "%s", from ? from : "");
}

static void fill_names(const struct cutter *k) {
    struct par_case *c = k->c;
    const struct fwd_knobs *knobs = k->x->knobs;
    c->op = k->item->op;
    c->layer = k->item->layer < 0 ? -1 : k->item->layer - k->first_layer;
    c->model_layer = k->item->layer;
    c->role = k->x->role;
    c->bound = k->x->bound;
    c->kv_type = knobs->kv_type;
    c->head = knobs->head;
    c->n_threads = knobs->n_threads;
    memcpy(&c->numerics, &k->item->numerics, sizeof c->numerics);
    copy_text(c->model_name, sizeof c->model_name, k->x->model_name);
    copy_text(c->path, sizeof c->path, k->x->path->name);
    copy_text(c->act, sizeof c->act, knobs->act);
    copy_text(c->caps, sizeof c->caps, knobs->caps);
    copy_text(c->force, sizeof c->force, knobs->force);
    list_faults(k);
}

static enum fwd_status cut_all(struct cutter *k) {
    struct par_case *c = k->c;
    struct par_case_tap taps[PAR_CASE_INPUTS];
    choose_sizes(k);
    fill_names(k);
    choose_sequence(k);
    FWD_TRY(fill_sequence(k));
    FWD_TRY(make_directory(k));
    FWD_TRY(add_weights(k));
    int n = par_case_taps(c->op, c->layer, taps);
    for (int i = 0; i < n; i++)
        FWD_TRY(add_input(k, i, &taps[i]));
    c->elements[0] = *k->e;
    c->elements[0].pos -= c->pos_from;
    c->elements[0].row -= c->op == FWD_OP_RESULT_OUTPUT ? c->row_from : 0;
    c->n_elements = 1;
    return FWD_OK;
}

enum fwd_status par_case_cut(struct par_case *out, const struct par_case_context *context,
                             const struct par_evidence *item, int call, const struct par_case_element *e,
                             const struct par_cut *cut, struct fwd_error *err) {
    struct cutter k = {
        .x = context, .item = item, .call = &item->calls[call], .e = e, .cut = cut, .c = out, .err = err};
    *out = (struct par_case){0};
    enum fwd_status rc = cut_all(&k);
    if (rc != FWD_OK)
        par_case_free(out);
    return rc;
}
