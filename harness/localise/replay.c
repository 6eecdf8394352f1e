/* A case run again: its model opened, its inputs written over the path's taps, its op's output judged. */
#include "localise/replay.h"

#include "localise/case_parts.h"
#include "localise/replay_faults.h"
#include "spec/eval.h"
#include "spec/ratio_histogram.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum form { FORM_FLOAT, FORM_Q8_K, FORM_Q8_32, FORM_COUNT };

/* The rows of one input as the path held them, by position; zero where it held none. */
struct seen {
    struct fwd_view view;
    uint8_t *bytes;
};

struct replay {
    const struct par_case *c;
    const struct par_replay_options *o;
    const struct fwd_path *path;
    struct fwd_path_info info;
    struct par_case_model model;
    struct replay_faults faults;
    struct fwd_session *session;
    struct par_case_tap taps[PAR_CASE_INPUTS];
    int n_taps;
    struct seen seen[PAR_CASE_INPUTS][FORM_COUNT];
    uint8_t *marks; /* [n_ids] positions of recorded elements */
    int n_marked, n_met;
    uint8_t *scratch; /* one row of any input, as doubles or floats */
    struct par_op_row row;
    struct par_ratio_histogram hist;
    struct par_replay *out;
    bool done;
    enum fwd_status rc; /* of the tap */
    struct fwd_error tap_err;
    struct fwd_error *err;
};

double par_case_ratio(const struct par_case_element *e) {
    double off = fabs(e->got - e->expected), ratio = e->bound > 0 ? off / e->bound : off > 0 ? PAR_RATIO_CAP : 0;
    if (isnan(off))
        return isnan(e->got) && isnan(e->expected) ? 0 : PAR_RATIO_CAP;
    return ratio < PAR_RATIO_CAP ? ratio : PAR_RATIO_CAP;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */
static enum form form_of(enum fwd_dtype t) {
    return t == FWD_Q8_K ? FORM_Q8_K : t == FWD_Q8_32 ? FORM_Q8_32 : FORM_FLOAT;
}

static void store_floats(enum fwd_dtype t, const double *x, int64_t n, uint8_t *dst) {
    if (t == FWD_F64) {
        memcpy(dst, x, (size_t)n * sizeof *x);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float f = (float)x[i];
        uint16_t h = par_f32_to_f16(f);
        memcpy(dst + i * (t == FWD_F16 ? 2 : 4), t == FWD_F16 ? (void *)&h : (void *)&f, t == FWD_F16 ? 2 : 4);
    }
}

/* A recorded row as doubles: floats as they are, codes times their scale. */
static void load_row(const struct par_case_input *in, const uint8_t *row, double *x) {
    int block = par_q8_block_values(in->dtype);
    if (par_tensor_format(in->dtype)) {
        double scale;
        par_tensor_read(in->dtype, row, in->n_values, x, &scale);
        for (int64_t i = 0; i < in->n_values; i++)
            x[i] *= scale;
        return;
    }
    if (!block) {
        par_load_f64(in->dtype, row, x, in->n_values);
        return;
    }
    for (int64_t b = 0; b < in->n_values / block; b++) {
        struct spec_q8 q;
        bool agree;
        par_q8_read(in->dtype, row + (size_t)b * par_q8_block_bytes(in->dtype), &q, &agree);
        for (int i = 0; i < block; i++)
            x[b * block + i] = (double)(q.d * (float)q.q[i]);
    }
}

static const uint8_t *find_row(const struct par_case_input *in, int pos) {
    for (int i = 0; i < in->n && in->pos[i] <= pos; i++)
        if (in->pos[i] == pos)
            return in->bytes + (size_t)i * fwd_dtype_row_bytes(in->dtype, in->n_values);
    return NULL;
}

/* Row `pos` of the input, in the view's own type, to dst; zeros where none was recorded. */
static void make_row(const struct replay *r, const struct par_case_input *in, int pos, enum fwd_dtype to,
                     uint8_t *dst) {
    const uint8_t *row = find_row(in, pos);
    size_t n_bytes = fwd_dtype_row_bytes(to, in->n_values);
    if (!row) {
        memset(dst, 0, n_bytes);
    } else if (to == in->dtype) {
        memcpy(dst, row, n_bytes);
    } else {
        double *x = (double *)(void *)r->scratch;
        load_row(in, row, x);
        store_floats(to, x, in->n_values, dst);
    }
}

/* Position i of a view, from or to a packed row; the rows of a cache lie a head at a time. */
static void move_row(const struct fwd_view *v, int i, uint8_t *packed, bool write) {
    int64_t heads = par_case_is_cache(v->op) ? v->ne[1] : 1;
    size_t n = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    for (int64_t h = 0; h < heads; h++) {
        uint8_t *at = (uint8_t *)v->data + (par_case_is_cache(v->op) ? i * v->nb[2] + h * v->nb[1] : i * v->nb[1]);
        if (write)
            memcpy(at, packed + (size_t)h * n, n);
        else
            memcpy(packed + (size_t)h * n, at, n);
    }
}

/* ---- an input's tap --------------------------------------------------------------------------------------------- */
static enum fwd_status make_seen(struct replay *r, struct seen *s, const struct fwd_view *v, int64_t n_values) {
    size_t row_bytes = fwd_dtype_row_bytes(v->dtype, n_values), n = (size_t)r->c->n_ids;
    s->bytes = fwd_calloc(n, row_bytes);
    FWD_FAIL_IF(!s->bytes, FWD_ENOMEM, &r->tap_err, "replay: no memory for %zu rows of %s", n, fwd_op_name(v->op));
    s->view = (struct fwd_view){.size = sizeof s->view,
                                .op = par_case_is_cache(v->op) ? FWD_OP_COUNT : v->op, /* rows, not a cache */
                                .layer = v->layer,
                                .n_pos = r->c->n_ids,
                                .dtype = v->dtype,
                                .ne = {n_values, r->c->n_ids, 1, 1},
                                .nb = {v->nb[0], (int64_t)row_bytes, 0, 0},
                                .data = s->bytes};
    return FWD_OK;
}

/* Overwrites the view with the recorded rows where it may be, and keeps what it then holds. */
static enum fwd_status take_input(struct replay *r, int k, const struct fwd_view *v) {
    const struct par_case_input *in = &r->c->in[k];
    bool cache = par_case_is_cache(v->op);
    int first = cache ? 0 : v->pos0, n = cache ? (int)v->ne[2] : v->n_pos;
    int64_t n_values = cache ? v->ne[0] * v->ne[1] : v->ne[0];
    bool q8 = par_q8_block_values(v->dtype) > 0 || par_tensor_format(v->dtype);
    FWD_FAIL_IF(v->device, FWD_EUNSUPPORTED, &r->tap_err, "replay: %s lies in device memory", fwd_op_name(v->op));
    FWD_FAIL_IF(n_values != in->n_values || first + n > r->c->n_ids || (!q8 && !par_float_bytes(v->dtype)), FWD_ESHAPE,
                &r->tap_err, "replay: %s has %d rows of %lld values of type %s, recorded were %lld", fwd_op_name(v->op),
                n, (long long)n_values, fwd_dtype_name(v->dtype), (long long)in->n_values);
    struct seen *s = &r->seen[k][form_of(v->dtype)];
    if (!s->bytes)
        FWD_TRY(make_seen(r, s, v, n_values));
    /* Codes of another format than the recorded ones the path makes itself, from the floats it was given. */
    bool write = r->info.taps[v->op] != FWD_TAP_ABSENT && (!q8 || v->dtype == in->dtype);
    for (int i = 0; i < n; i++) {
        uint8_t *row = s->bytes + (first + i) * s->view.nb[1];
        if (write) {
            make_row(r, in, first + i, v->dtype, row);
            move_row(v, i, row, true);
        }
        move_row(v, i, row, false);
    }
    return FWD_OK;
}

/* ---- the op's own tap ------------------------------------------------------------------------------------------- */
static void note_elements(struct replay *r, const struct par_elements *x) {
    const struct par_case *c = r->c;
    for (int i = 0; i < c->n_elements; i++) {
        const struct par_case_element *was = &c->elements[i];
        int64_t at = (int64_t)(was->pos - x->pos0) * x->width + was->row;
        if (was->pos < x->pos0 || was->pos >= x->pos0 + x->n_pos || was->row >= x->width)
            continue;
        r->out->elements[i] = (struct par_case_element){was->pos, was->row, x->expected[at], x->got[at], x->bound[at]};
    }
}

static enum fwd_status judge_view(struct replay *r, const struct fwd_view *v, const uint8_t *judge_pos) {
    const struct par_case *c = r->c;
    struct fwd_numerics nm = {.size = sizeof nm};
    struct par_elements x;
    FWD_FAIL_IF(!r->path->numerics(r->session, c->op, c->layer, &nm), FWD_EUNSUPPORTED, &r->tap_err,
                "replay: path %s declares no %s", r->path->name, fwd_op_name(c->op));
    r->out->other_numerics = !par_case_same_numerics(&nm, &c->numerics);
    struct fwd_view ids = {.size = sizeof ids, .dtype = FWD_I32, .n_pos = c->n_ids, .data = c->ids};
    struct par_eval e = {.op = c->op,
                         .layer = c->layer,
                         .pos0 = v->pos0,
                         .n_pos = v->n_pos,
                         .judge_pos = judge_pos,
                         .n_in = r->n_taps ? r->n_taps : 1,
                         .out = v,
                         .numerics = &nm,
                         .bound = c->bound};
    if (r->n_taps == 0)
        e.in[0] = &ids;
    for (int k = 0; k < r->n_taps; k++) {
        const struct seen *s = &r->seen[k][form_of(nm.act)];
        s = s->bytes && r->taps[k].op_q8 != FWD_OP_COUNT ? s : &r->seen[k][FORM_FLOAT];
        e.in[k] = s->bytes ? &s->view : NULL;
    }
    FWD_TRY(par_judge_eval(r->model.spec, r->o->pool, &e, &r->row, &r->hist, &r->tap_err));
    FWD_TRY(par_spec_elements(r->model.spec, r->o->pool, &e, &x, &r->tap_err));
    note_elements(r, &x);
    par_elements_free(&x);
    return FWD_OK;
}

static enum fwd_status take_output(struct replay *r, const struct fwd_view *v) {
    const struct par_case *c = r->c;
    if (par_case_is_cache(c->op)) { /* a path without a cache has one call, which goes further */
        if (v->pos0 + v->n_pos < c->call_end)
            return FWD_OK;
        r->done = true;
        return judge_view(r, v, NULL);
    }
    int n = 0;
    for (int i = 0; i < v->n_pos; i++)
        n += r->marks[v->pos0 + i] != 0;
    if (n == 0)
        return FWD_OK;
    FWD_TRY(judge_view(r, v, r->marks + v->pos0));
    r->n_met += n;
    r->done = r->n_met >= r->n_marked;
    return FWD_OK;
}

static bool is_input(const struct replay *r, const struct par_case_tap *t, const struct fwd_view *v) {
    int last = par_spec_config(r->model.spec)->n_layer - 1;
    return v->layer == (t->layer == PAR_CASE_LAST_LAYER ? last : t->layer) && (v->op == t->op || v->op == t->op_q8);
}

/* Where a tap cannot be written the op that makes it is overridden instead. */
static bool by_override(const struct replay *r, enum fwd_op op) {
    return op != FWD_OP_COUNT && r->info.taps[op] == FWD_TAP_READ;
}

static enum fwd_status put_input(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct replay *r = ud;
    FWD_TRY(call->builtin(call, err));
    for (int k = 0; k < r->n_taps; k++) {
        enum fwd_status rc = is_input(r, &r->taps[k], call->out) ? take_input(r, k, call->out) : FWD_OK;
        if (rc != FWD_OK && err)
            *err = r->tap_err;
        FWD_TRY(rc);
    }
    return FWD_OK;
}

static enum fwd_status override_inputs(struct replay *r) {
    int last = par_spec_config(r->model.spec)->n_layer - 1;
    for (int k = 0; k < r->n_taps; k++) {
        const struct par_case_tap *t = &r->taps[k];
        const enum fwd_op ops[] = {t->op, t->op_q8};
        for (int i = 0; i < 2; i++) {
            if (!by_override(r, ops[i]))
                continue;
            int layer = !fwd_op_in_layer(ops[i]) ? -1 : t->layer == PAR_CASE_LAST_LAYER ? last : t->layer;
            FWD_TRY(r->path->override(r->session, ops[i], layer, put_input, r, r->err));
        }
    }
    return FWD_OK;
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct replay *r = ud;
    for (int k = 0; r->rc == FWD_OK && k < r->n_taps; k++)
        if (!by_override(r, v->op) && is_input(r, &r->taps[k], v))
            r->rc = take_input(r, k, v);
    if (r->rc == FWD_OK && v->op == r->c->op && v->layer == r->c->layer)
        r->rc = take_output(r, v);
    return r->done || r->rc != FWD_OK;
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */
static const char *text_or_null(const char *given, const char *recorded) {
    const char *s = given ? given : recorded;
    return *s ? s : NULL;
}

static enum fwd_status open_session(struct replay *r) {
    const struct par_case *c = r->c;
    const struct par_replay_options *o = r->o;
    bool same_path = !strcmp(r->path->name, c->path);
    struct fwd_knobs knobs = {.size = sizeof knobs,
                              .n_threads = o->n_threads ? o->n_threads : c->n_threads,
                              .n_ctx = c->n_ids + 1,
                              .n_seq = 1,
                              .n_batch = par_drive_max_batch(r->path, c->schedule, c->chunk, c->n_prompt, c->n_ids),
                              .kv_type = c->kv_type,
                              .head = c->head,
                              .act = same_path ? text_or_null(NULL, c->act) : NULL,
                              .caps = text_or_null(o->caps, c->caps),
                              .force = same_path || o->force ? text_or_null(o->force, c->force) : NULL};
    if (!o->no_fault)
        FWD_TRY(replay_faults_place(&r->faults, c, !same_path, &r->model, &knobs, r->err));
    replay_faults_hook(&r->faults, &knobs);
    replay_faults_text(&r->faults, r->out->faults, sizeof r->out->faults);
    par_drive_fit_knobs(r->path, &knobs);
    FWD_TRY(r->path->open(&r->session, r->model.file, &knobs, r->err));
    FWD_TRY(override_inputs(r)); /* before the faults: a planted op stays planted */
    return replay_faults_plant(&r->faults, r->path, r->session, r->err);
}

/* The kernel that serves the op, as the session says. */
static void name_variant(const struct replay *r) {
    static const char *const kernel[FWD_OP_COUNT] = {[FWD_OP_ATTN_NORM] = "rmsnorm",
                                                     [FWD_OP_FFN_NORM] = "rmsnorm",
                                                     [FWD_OP_RESULT_NORM] = "rmsnorm",
                                                     [FWD_OP_ATTN_NORM_Q8] = "act_quant",
                                                     [FWD_OP_KQV_OUT_Q8] = "act_quant",
                                                     [FWD_OP_FFN_NORM_Q8] = "act_quant",
                                                     [FWD_OP_FFN_SWIGLU_Q8] = "act_quant",
                                                     [FWD_OP_QCUR_ROPE] = "rope",
                                                     [FWD_OP_KCUR_ROPE] = "rope",
                                                     [FWD_OP_KQV_OUT] = "attention",
                                                     [FWD_OP_FFN_SWIGLU] = "swiglu",
                                                     [FWD_OP_FFN_INP] = "add",
                                                     [FWD_OP_L_OUT] = "add",
                                                     [FWD_OP_RESULT_NORM_Q8] = "act_quant"};
    const struct spec_weight *w = par_spec_weight(r->model.spec, r->c->op, r->c->layer);
    const char *name = par_case_is_matmul(r->c->op) ? "matmul" : kernel[r->c->op];
    const char *type = par_case_is_matmul(r->c->op) && w ? fwd_type_name(w->type) : "";
    struct fwd_variant_choice v;
    for (int i = 0; name && r->path->variant(r->session, i, &v); i++)
        if (!strncmp(v.op, name, strlen(name)) && (!*v.detail || !strcmp(v.detail, type)))
            (void)snprintf(r->out->variant, sizeof r->out->variant, "%s %s%s%s", v.op, v.detail, *v.detail ? " " : "",
                           v.variant);
}

static enum fwd_status drive(struct replay *r) {
    const struct par_case *c = r->c;
    size_t n_want = 0;
    for (int i = 0; i < c->n_ids; i++)
        n_want += c->want[i] != 0;
    float *logits = fwd_alloc(n_want * (size_t)par_spec_config(r->model.spec)->n_vocab, sizeof *logits);
    FWD_FAIL_IF(!logits, FWD_ENOMEM, r->err, "replay: no memory for the logits of %zu positions", n_want);
    struct par_drive d = {
        .path = r->path, .session = r->session, .schedule = c->schedule, .chunk = c->chunk, .tap = on_tap, .tap_ud = r};
    enum fwd_status rc = par_drive_run(&d, c->ids, c->n_prompt, c->n_ids, c->want, logits, r->err);
    fwd_free(logits);
    if (r->rc != FWD_OK) /* the reason behind a stopped run */
        *r->err = r->tap_err;
    return r->rc != FWD_OK ? r->rc : rc == FWD_ESTOPPED ? FWD_OK : rc;
}

/* Whether the path lets the recorded rows in. */
static bool can_write(const struct replay *r) {
    for (int k = 0; k < r->n_taps; k++) {
        const struct par_case_tap *t = &r->taps[k];
        bool q8 = t->op_q8 != FWD_OP_COUNT && r->info.taps[t->op_q8] != FWD_TAP_ABSENT;
        if (r->info.taps[t->op] == FWD_TAP_ABSENT && !q8) {
            (void)snprintf(r->out->note, sizeof r->out->note,
                           "path %s has no %s to put the inputs in: recorded, cannot be re-run", r->path->name,
                           fwd_op_name(t->op));
            return false;
        }
    }
    return true;
}

static bool allocate(struct replay *r) {
    const struct par_case *c = r->c;
    size_t most = 1;
    for (int k = 0; k < c->n_in; k++)
        most = most > (size_t)c->in[k].n_values ? most : (size_t)c->in[k].n_values;
    r->marks = fwd_calloc((size_t)c->n_ids, 1);
    r->scratch = fwd_alloc(most, sizeof(double));
    if (!r->marks || !r->scratch)
        return false;
    for (int i = 0; i < c->n_elements; i++)
        r->marks[c->elements[i].pos] = 1;
    for (int i = 0; i < c->n_ids; i++)
        r->n_marked += r->marks[i];
    return true;
}

static bool same_element(const struct par_case_element *was, const struct par_case_element *now) {
    double before = par_case_ratio(was), after = par_case_ratio(now), off = was->got - was->expected,
           off_now = now->got - now->expected;
    if (!(after > 1))
        return false;
    if (!isfinite(off) || !isfinite(off_now))
        return isnan(was->got) == isnan(now->got) && isinf(was->got) == isinf(now->got) &&
               isfinite(was->expected) == isfinite(now->expected);
    return signbit(off) == signbit(off_now) && fabs(after - before) <= 0.1 * before;
}

static void conclude(struct replay *r) {
    struct par_replay *out = r->out;
    const struct par_op_row *row = &r->row;
    out->n_judged = row->n_judged;
    out->n_over = row->n_over + row->n_nonfinite_mismatch;
    out->ratio_max = row->n_nonfinite_mismatch ? PAR_RATIO_CAP : row->ratio_max;
    out->worst = row->worst;
    out->verdict = row->n_nonfinite_mismatch                      ? PAR_NONFINITE
                   : row->n_over                                  ? PAR_DIVERGED
                   : row->n_judged == 0 || r->hist.n_failed_calls ? PAR_UNMEASURED
                                                                  : PAR_HELD;
    if (out->verdict == PAR_UNMEASURED)
        (void)snprintf(out->note, sizeof out->note, "%s",
                       row->note[0] ? row->note : "the op's tap never came at a recorded position");
    for (int i = 0; i < r->c->n_elements && out->n_over; i++)
        out->same_reason = out->same_reason || same_element(&r->c->elements[i], &out->elements[i]);
}

static enum fwd_status run(struct replay *r) {
    const char *name = r->c->path;
    r->path = r->o->path ? r->o->path : fwd_path_find(name);
    FWD_FAIL_IF(!r->path, FWD_ENOTFOUND, r->err, "replay: there is no path \"%s\" here (`parity paths` lists them)",
                name);
    FWD_TRY(par_drive_probe(r->path, r->err));
    r->info.size = sizeof r->info;
    r->path->describe(&r->info);
    (void)snprintf(r->out->path, sizeof r->out->path, "%s", r->path->name);
    r->n_taps = par_case_taps(r->c->op, r->c->layer, r->taps);
    r->out->n_elements = r->c->n_elements;
    for (int i = 0; i < r->c->n_elements; i++) /* what is never met stays like this */
        r->out->elements[i] = (struct par_case_element){r->c->elements[i].pos, r->c->elements[i].row, NAN, NAN, NAN};
    if (!can_write(r)) {
        r->out->verdict = PAR_UNMEASURED;
        return FWD_OK;
    }
    FWD_FAIL_IF(!allocate(r), FWD_ENOMEM, r->err, "replay: no memory for %d positions", r->c->n_ids);
    FWD_TRY(par_case_model_open(&r->model, r->c, r->err));
    FWD_TRY(open_session(r));
    name_variant(r);
    FWD_TRY(drive(r));
    conclude(r);
    return FWD_OK;
}

enum fwd_status par_case_replay(const struct par_case *c, const struct par_replay_options *options,
                                struct par_replay *out, struct fwd_error *err) {
    struct fwd_error own;
    struct replay *r = fwd_calloc(1, sizeof *r);
    FWD_FAIL_IF(!r, FWD_ENOMEM, err, "replay: no memory");
    memset(out, 0, sizeof *out);
    r->c = c;
    r->o = options;
    r->out = out;
    r->err = err ? err : &own;
    enum fwd_status rc = run(r);
    if (r->session)
        r->path->close(r->session);
    replay_faults_free(&r->faults);
    par_case_model_close(&r->model);
    for (int k = 0; k < PAR_CASE_INPUTS; k++)
        for (int f = 0; f < FORM_COUNT; f++)
            fwd_free(r->seen[k][f].bytes);
    fwd_free(r->marks);
    fwd_free(r->scratch);
    fwd_free(r);
    return rc;
}
