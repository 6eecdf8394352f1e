/* One pass over a foreign capture: facts, calls, alignment, the judge, what it found. */
#include "judge/judgement.h"

#include "judge/align.h"
#include "judge/calls.h"
#include "localise/explain.h"
#include "localise/pattern.h"
#include "report/report.h"
#include "tap/capture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EVIDENCE_BYTES ((size_t)96 << 20)
/* A bug in what all ops share accuses hundreds of them; the first ones tell it. */
enum { MOST_FINDINGS = 24, MOST_MISNAMED = 64 };
#define MOST_SECONDS 20.0

struct court {
    const struct par_judge_capture *o;
    struct par_judgement *out;
    struct par_spec_model *spec;
    struct fwd_pool *pool;
    struct par_judge *judge;
    struct par_calls calls;
    struct par_evidence_set evidence;
    int32_t *ids;
    int n_ids;
    bool ids_asserted;
    enum par_tap_form form[FWD_OP_COUNT]; /* found or asserted, of every tap of the op */
    bool settled[FWD_OP_COUNT];
};

static double seconds_now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void report(const struct court *c, const char *what, int64_t done, int64_t total) {
    if (c->o->progress)
        c->o->progress(c->o->progress_ud, what, done, total);
}

/* ---- facts ------------------------------------------------------------------------------------------------------- */

static enum fwd_status read_ids(struct court *c, struct fwd_error *err) {
    const char *said = par_import_fact(c->o->capture, PAR_FACT_IDS, &c->ids_asserted);
    int64_t n_vocab = par_spec_config(c->spec)->n_vocab;
    FWD_FAIL_IF(!said || !*said, FWD_EMISSING, err,
                "%s: the token ids are not known, and nothing can be judged without them; assert them with --ids or "
                "--tokens-file",
                c->o->capture_path);
    size_t room = strlen(said) / 2 + 1;
    c->ids = fwd_alloc(room, sizeof *c->ids);
    FWD_FAIL_IF(!c->ids, FWD_ENOMEM, err, "no memory for %zu ids", room);
    for (const char *p = said; *p; p++) {
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        FWD_FAIL_IF(end == p || errno || (*end && *end != ','), FWD_ECORRUPT, err,
                    "token_ids: \"%.20s\" after %d ids is no list of numbers", p, c->n_ids);
        FWD_FAIL_IF(id < 0 || id >= n_vocab, FWD_ERANGE, err,
                    "token_ids: %ld at position %d, but the model has ids 0 to %lld: another model, or other ids", id,
                    c->n_ids, (long long)n_vocab - 1);
        c->ids[c->n_ids++] = (int32_t)id;
        p = end;
        if (!*p)
            break;
    }
    c->out->n_ids = c->n_ids;
    return FWD_OK;
}

static enum fwd_status check_model(const struct court *c, struct fwd_error *err) {
    bool asserted;
    const char *said = par_import_fact(c->o->capture, PAR_FACT_MODEL, &asserted);
    FWD_FAIL_IF(said && strcmp(said, c->o->model_sha256) != 0, FWD_ESHAPE, err,
                "%s: a capture of another model: it %s sha256 %.16s..., %s has %.16s...", c->o->capture_path,
                asserted ? "is asserted to be of" : "records", said, c->o->model_path, c->o->model_sha256);
    return FWD_OK;
}

/* "tap:Qcur" = "before-bias": what a person says of every tap of that op. */
static enum fwd_status read_forms(struct court *c, struct fwd_error *err) {
    char key[64];
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        bool asserted;
        (void)snprintf(key, sizeof key, "tap:%s", fwd_op_name((enum fwd_op)op));
        const char *said = par_import_fact(c->o->capture, key, &asserted);
        if (!said || !asserted)
            continue;
        c->form[op] = par_tap_form_by_name(said);
        FWD_FAIL_IF(c->form[op] == PAR_FORM_COUNT, FWD_EINPUT, err,
                    "%s: \"%.40s\", expected as-named, before-bias, pairs-split, pairs-joined or transposed", key,
                    said);
        c->settled[op] = true;
    }
    return FWD_OK;
}

/* What the verdict leans on that nobody recorded, in one line. */
static void tell_cap(struct court *c) {
    const char *key, *value, *text = NULL;
    bool asserted;
    struct par_text *t = c->out->text;
    for (size_t i = 0; par_import_fact_at(c->o->capture, i, &key, &value, &asserted); i++)
        if (asserted)
            text = text ? par_text_printf(t, "%s, %s", text, key) : par_text_printf(t, "%s", key);
    if (!par_import_fact(c->o->capture, PAR_FACT_MODEL, NULL))
        text = text ? par_text_printf(t, "%s, the model", text) : "the model";
    if (!c->o->numerics_recorded)
        text = text ? par_text_printf(t, "%s, the numerics", text) : "the numerics";
    c->out->cap = text;
}

/* ---- taps -------------------------------------------------------------------------------------------------------- */

static void add_misnamed(struct court *c, const struct par_call *call, enum par_tap_form form, bool asserted) {
    struct par_judgement *out = c->out;
    if (out->n_misnamed == MOST_MISNAMED)
        return;
    if (!out->misnamed)
        out->misnamed = par_text_alloc(out->text, MOST_MISNAMED * sizeof *out->misnamed);
    if (!out->misnamed)
        return;
    const char *what = form == PAR_FORM_BEFORE_BIAS   ? "the product before its bias"
                       : form == PAR_FORM_PAIRS_SPLIT ? "its heads with the two halves of the rotated pairs apart"
                       : form == PAR_FORM_PAIRS_JOINED
                           ? "its heads with the rotated pairs side by side, where the model has halves"
                           : "[width, positions]";
    out->misnamed[out->n_misnamed++] =
        (struct par_misnamed){call->op, call->layer, form, asserted,
                              par_text_printf(out->text, "%s (%s) is not what its name says: it holds %s",
                                              call->tensor->name, fwd_op_name(call->op), what)};
}

/* Once for each op, at its first call that can be judged. */
static enum fwd_status settle_form(struct court *c, const struct par_call *call, const struct fwd_view *view,
                                   struct fwd_error *err) {
    enum fwd_op op = call->op;
    struct par_align align = {c->spec, c->judge, c->pool, c->o->capture, &c->calls, c->o->numerics, c->o->numerics_ud};
    if (call->transposed && !c->settled[op] && call->tensor->is.form == PAR_FORM_NAMED) {
        bool told = false; /* the shape itself says so, and the rows were turned when they were read */
        for (int i = 0; i < c->out->n_misnamed; i++)
            told = told || c->out->misnamed[i].op == op;
        if (!told)
            add_misnamed(c, call, PAR_FORM_TRANSPOSED, false);
    }
    if (c->settled[op] || par_import_is_own(c->o->capture))
        return FWD_OK;
    if (call->tensor->is.form != PAR_FORM_NAMED) { /* the name says it */
        c->form[op] = call->tensor->is.form;
        c->settled[op] = true;
        return FWD_OK;
    }
    FWD_TRY(par_align_find(&align, view, &c->form[op], &c->settled[op], err));
    if (c->form[op] != PAR_FORM_NAMED)
        add_misnamed(c, call, c->form[op], false);
    return FWD_OK;
}

static enum fwd_status show_call(struct court *c, const struct par_call *call, struct fwd_error *err) {
    struct fwd_view view;
    uint8_t *bytes;
    FWD_TRY(par_call_read(call, c->o->capture, par_spec_config(c->spec), &view, &bytes, err));
    enum fwd_status rc = settle_form(c, call, &view, err);
    enum par_tap_form form = c->form[call->op];
    /* A tensor whose shape shows it was turned already; without a bias both stages of a fused product are the same. */
    bool skip = (form == PAR_FORM_TRANSPOSED && call->transposed) ||
                (form == PAR_FORM_BEFORE_BIAS && !par_spec_config(c->spec)->qkv_bias);
    if (rc == FWD_OK && !skip)
        rc = par_align_apply(c->spec, form, &view, err);
    if (rc == FWD_OK)
        (void)par_judge_tap(c->judge, &view);
    fwd_free(bytes);
    return rc;
}

static enum fwd_status show_all(struct court *c, struct fwd_error *err) {
    struct par_judge_options options = {.numerics = c->o->numerics,
                                        .numerics_ud = c->o->numerics_ud,
                                        .sample_every = 1,
                                        .pool = c->pool,
                                        .caps = c->o->caps,
                                        .evidence_bytes = EVIDENCE_BYTES,
                                        .bound = c->o->bound};
    FWD_TRY(par_judge_open(&c->judge, c->spec, &options, err));
    FWD_TRY(par_judge_seq_begin(c->judge, err));
    FWD_TRY(par_judge_tokens(c->judge, c->ids, c->n_ids, err));
    for (int i = 0; i < c->calls.n; i++) {
        report(c, "judging", i, c->calls.n);
        FWD_TRY(show_call(c, &c->calls.calls[i], err));
    }
    return FWD_OK;
}

/* ---- findings ---------------------------------------------------------------------------------------------------- */

static bool is_accused(const struct par_op_row *row) {
    return row->verdict == PAR_DIVERGED || row->verdict == PAR_NONFINITE;
}

static enum fwd_status look_at(struct court *c, const struct par_evidence *item, struct par_judged_op *op,
                               struct fwd_error *err) {
    const char *n_prompt = par_import_fact(c->o->capture, PAR_FACT_N_PROMPT, NULL);
    long said = n_prompt ? strtol(n_prompt, NULL, 10) : 0;
    struct par_explain_context context = {
        c->spec, c->pool, c->ids, c->n_ids, said > 0 && said <= c->n_ids ? (int)said : c->n_ids, &c->evidence};
    struct par_pattern pattern;
    struct par_diagnosis diagnosis;
    FWD_TRY(par_pattern_find(c->spec, c->pool, item, &pattern, err));
    op->where = par_text_printf(c->out->text, "%s", pattern.text);
    if (pattern.tensor[0])
        op->bytes =
            par_text_printf(c->out->text, "bytes %llu to %llu of the file (%s)", (unsigned long long)pattern.byte_first,
                            (unsigned long long)pattern.byte_last, pattern.tensor);
    FWD_TRY(par_explain(&context, item, &diagnosis, err));
    op->why = par_text_printf(c->out->text, "%s", diagnosis.text);
    if (diagnosis.signature) {
        op->signature = diagnosis.signature->name;
        op->hypothesis = diagnosis.signature->hypothesis;
        op->museum = diagnosis.signature->museum;
    }
    return FWD_OK;
}

static enum fwd_status find_causes(struct court *c, struct fwd_error *err) {
    double deadline = seconds_now() + MOST_SECONDS;
    int n = 0;
    par_judge_take_evidence(c->judge, &c->evidence);
    for (int i = 0; i < c->out->n_ops; i++) {
        struct par_judged_op *op = &c->out->ops[i];
        if (!is_accused(&op->row))
            continue;
        const struct par_evidence *item = par_evidence_find(&c->evidence, op->row.op, op->row.layer);
        bool kept = item && item->n_calls > 0;
        if (!kept || n >= MOST_FINDINGS || seconds_now() > deadline) {
            op->why = kept ? "not looked into: other accused ops come first"
                           : "not looked into: no room was left to keep its inputs";
            continue;
        }
        report(c, "where and why", i, c->out->n_ops);
        FWD_TRY(look_at(c, item, op, err));
        n++;
    }
    return FWD_OK;
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */

/* Ops that a foreign engine need not show: what they hold follows from the others. */
static bool is_optional(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE || op == FWD_OP_ATTN_NORM_Q8 || op == FWD_OP_KQV_OUT_Q8 ||
           op == FWD_OP_FFN_NORM_Q8 || op == FWD_OP_FFN_SWIGLU_Q8 || op == FWD_OP_RESULT_NORM_Q8;
}

static bool was_shown(const struct court *c, const struct par_op_row *row) {
    for (int i = 0; i < c->calls.n; i++)
        if (c->calls.calls[i].op == row->op && c->calls.calls[i].layer == row->layer)
            return true;
    return false;
}

static enum fwd_status take_rows(struct court *c, struct fwd_error *err) {
    const struct par_op_row *rows;
    struct par_judgement *out = c->out;
    int n_rows;
    FWD_TRY(par_judge_rows(c->judge, &rows, &n_rows, err));
    out->ops = par_text_alloc(out->text, (size_t)n_rows * sizeof *out->ops);
    FWD_FAIL_IF(!out->ops, FWD_ENOMEM, err, "no memory for %d ops", n_rows);
    for (int i = 0; i < n_rows; i++) {
        if ((rows[i].absent || is_optional(rows[i].op)) && !was_shown(c, &rows[i]))
            continue;
        struct par_judged_op *op = &out->ops[out->n_ops];
        op->row = rows[i];
        out->n_judged += rows[i].n_judged > 0;
        out->n_unmeasured += rows[i].verdict == PAR_UNMEASURED;
        out->n_systematic += rows[i].n_systematic;
        if (is_accused(&rows[i])) {
            if (out->n_accused++ == 0)
                out->first = out->n_ops;
            if (out->worst < 0 || rows[i].verdict == PAR_NONFINITE ||
                rows[i].ratio_max > out->ops[out->worst].row.ratio_max)
                out->worst = out->n_ops;
        }
        out->n_ops++;
    }
    par_judge_coverage(c->judge, &out->n_positions, &out->n_elements);
    return FWD_OK;
}

/* A layer between others that shows nothing: half a capture, unless a person says which layers it has. -1: none. */
static int missing_layer(const struct court *c) {
    int first = 0, last = par_spec_config(c->spec)->n_layer - 1, used = 0;
    const char *said = par_import_fact(c->o->capture, "layers", NULL);
    if (said && (sscanf(said, "%9d..%9d%n", &first, &last, &used) != 2 || said[used]))
        return 0;
    for (int layer = first; layer <= last; layer++) {
        bool any = false;
        for (int i = 0; i < c->calls.n && !any; i++)
            any = c->calls.calls[i].layer == layer;
        if (!any)
            return layer;
    }
    return -1;
}

static const struct par_op_row *find_row(const struct par_judgement *j, enum fwd_op op) {
    for (int i = 0; i < j->n_ops; i++)
        if (j->ops[i].row.op == op)
            return &j->ops[i].row;
    return NULL;
}

static void mistrust(struct par_judgement *out, const char *why) {
    out->verdict = par_verdict_max(out->verdict, PAR_MISTRUSTED);
    if (!out->why)
        out->why = why;
}

/* What makes the capture itself no good. */
static void find_mistrust(struct court *c) {
    struct par_judgement *out = c->out;
    const char *hash = par_import_fact(c->o->capture, PAR_FACT_LOGITS, NULL);
    const char *again = par_import_fact(c->o->capture, PAR_FACT_AA, NULL);
    const struct par_op_row *embd = find_row(out, FWD_OP_INP_EMBD);
    int layer = missing_layer(c);
    if (hash && again && strcmp(hash, again) != 0)
        mistrust(out, "its engine gave other logits when nobody read the taps");
    if (embd && is_accused(embd) && (c->ids_asserted || !par_import_fact(c->o->capture, PAR_FACT_MODEL, NULL)))
        mistrust(out, par_text_printf(out->text, "inp_embd is not the embedding of the %s: other ids, or another model",
                                      c->ids_asserted ? "asserted ids" : "ids in this model"));
    if (layer >= 0)
        mistrust(out, par_text_printf(out->text,
                                      "layer %d shows no tap: half a capture (--assert layers=A..B says which it has)",
                                      layer));
    for (int i = 0; i < out->n_misnamed; i++)
        if (!out->misnamed[i].asserted)
            mistrust(out, out->misnamed[i].text);
    for (int i = 0; i < out->n_ops; i++)
        if (out->ops[i].row.verdict == PAR_MISTRUSTED)
            mistrust(out, par_text_printf(out->text, "%s: %s", fwd_op_name(out->ops[i].row.op), out->ops[i].row.note));
}

static void decide(struct court *c) {
    struct par_judgement *out = c->out;
    find_mistrust(c);
    for (int i = 0; i < out->n_ops; i++)
        if (is_accused(&out->ops[i].row))
            out->verdict = par_verdict_max(out->verdict, out->ops[i].row.verdict);
    if (out->verdict == PAR_HELD && out->n_elements == 0)
        out->verdict = PAR_UNMEASURED;
    out->scope = par_text_printf(out->text, "%d of %d ops at %d of %d positions, %llu elements", out->n_judged,
                                 out->n_ops, out->n_positions, out->n_ids, (unsigned long long)out->n_elements);
    if (out->why)
        return;
    out->why = out->verdict == PAR_UNMEASURED ? "no op could be judged"
               : out->n_accused ? par_text_printf(out->text, "%d ops are outside their bounds", out->n_accused)
               : out->n_unmeasured
                   ? par_text_printf(out->text, "every op that could be judged is inside its bound; %d could not",
                                     out->n_unmeasured)
                   : "every op is inside its bound";
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static enum fwd_status hold_court(struct court *c, struct fwd_error *err) {
    FWD_TRY(par_spec_open(&c->spec, c->o->file, err));
    FWD_TRY(fwd_pool_create(&c->pool, c->o->n_threads, err));
    FWD_TRY(check_model(c, err));
    FWD_TRY(read_ids(c, err));
    FWD_TRY(read_forms(c, err));
    FWD_TRY(par_calls_find(&c->calls, c->o->capture, par_spec_config(c->spec), c->n_ids, err));
    c->out->n_unknown = c->calls.n_unknown;
    if (c->calls.unknown)
        c->out->unknown = par_text_printf(c->out->text, "%s", c->calls.unknown);
    FWD_TRY(show_all(c, err));
    FWD_TRY(take_rows(c, err));
    FWD_TRY(find_causes(c, err));
    tell_cap(c);
    decide(c);
    return FWD_OK;
}

enum fwd_status par_judge_capture(const struct par_judge_capture *options, struct par_judgement *out,
                                  struct fwd_error *err) {
    struct court c = {.o = options, .out = out};
    double begin = seconds_now();
    *out = (struct par_judgement){.verdict = PAR_HELD, .first = -1, .worst = -1, .text = par_text_create()};
    FWD_FAIL_IF(!out->text, FWD_ENOMEM, err, "no memory for a judgement");
    (void)par_import_tensors(options->capture, &out->n_tensors);
    /* Copies: what they come from may be gone when the judgement is written. */
    out->kind = par_text_printf(out->text, "%s", par_import_kind(options->capture));
    out->capture_path = par_text_printf(out->text, "%s", options->capture_path);
    out->model_path = par_text_printf(out->text, "%s", options->model_path);
    out->model_sha256 = par_text_printf(out->text, "%s", options->model_sha256);
    out->numerics = par_text_printf(out->text, "%s", options->numerics_name);
    out->command = options->command ? par_text_printf(out->text, "%s", options->command) : NULL;
    enum fwd_status rc = hold_court(&c, err);
    report(&c, "", -1, 0);
    par_judge_close(c.judge);
    par_evidence_free(&c.evidence);
    par_calls_free(&c.calls);
    fwd_free(c.ids);
    fwd_pool_free(c.pool);
    if (c.spec)
        par_spec_close(c.spec);
    out->seconds = seconds_now() - begin;
    return rc;
}

void par_judgement_free(struct par_judgement *j) {
    par_text_free(j->text);
    *j = (struct par_judgement){0};
}
