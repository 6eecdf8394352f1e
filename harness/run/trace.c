#include "run/trace.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

struct trace {
    const struct par_trace_options *o;
    struct fwd_session *session;
    struct par_capture_writer *writer;
    int32_t *ids; /* [n_ids] */
    int n_ids;
    uint8_t *want; /* [n_ids] */
    int n_want;
    float *logits; /* [n_want][n_vocab] */
    int64_t n_vocab;
    int64_t n_done, n_total; /* rows of l_out, for the progress */
};

static void report(const struct trace *t, const char *what, int64_t done, int64_t total) {
    if (t->o->progress)
        t->o->progress(t->o->progress_ud, what, done, total);
}

static int tap(void *ud, const struct fwd_view *view) {
    struct trace *t = ud;
    if (view->op == FWD_OP_L_OUT) {
        t->n_done += view->n_pos;
        report(t, "capturing", t->n_done, t->n_total);
    }
    return par_capture_tap(t->writer, view);
}

static struct par_drive drive_of(struct trace *t, bool tapped) {
    return (struct par_drive){.path = t->o->path,
                              .session = t->session,
                              .schedule = t->o->schedule,
                              .chunk = t->o->chunk,
                              .tap = tapped ? tap : NULL,
                              .tap_ud = t};
}

/* The ids after the prompt: given, or chosen by the path itself in a run of its own. */
static enum fwd_status complete_ids(struct trace *t, struct fwd_error *err) {
    const struct par_trace_options *o = t->o;
    struct par_drive d = drive_of(t, false);
    memcpy(t->ids, o->ids, (size_t)o->n_prompt * sizeof *t->ids);
    if (o->forced && o->n_decode)
        memcpy(t->ids + o->n_prompt, o->forced, (size_t)o->n_decode * sizeof *t->ids);
    if (o->forced || o->n_decode == 0)
        return FWD_OK;
    report(t, "choosing ids", 0, o->n_decode);
    FWD_TRY(par_drive_prompt(&d, t->ids, o->n_prompt, t->logits, err));
    for (int n = o->n_prompt;; n++) {
        int32_t best = par_argmax(t->logits, t->n_vocab);
        FWD_FAIL_IF(best < 0, FWD_ERANGE, err, "path %s: all logits at position %d are NaN, expected a number to go on",
                    o->path->name, n - 1);
        t->ids[n] = best;
        if (n + 1 == t->n_ids)
            return FWD_OK;
        report(t, "choosing ids", n + 1 - o->n_prompt, o->n_decode);
        FWD_TRY(par_drive_next(&d, t->ids, n + 1, t->logits, err));
    }
}

static enum fwd_status run_once(struct trace *t, bool tapped, uint64_t *hash, struct fwd_error *err) {
    struct par_drive d = drive_of(t, tapped);
    struct fwd_error why;
    size_t n_bytes = (size_t)t->n_want * (size_t)t->n_vocab * sizeof *t->logits;
    memset(t->logits, 0, n_bytes);
    enum fwd_status rc = par_drive_run(&d, t->ids, t->o->n_prompt, t->n_ids, t->want, t->logits, err);
    if (tapped && par_capture_failure(t->writer, &why) != FWD_OK) { /* the reason behind a stopped run */
        if (err)
            *err = why;
        return why.code;
    }
    *hash = fwd_hash64(t->logits, n_bytes);
    return rc;
}

/* ---- facts ----------------------------------------------------------------------------------------------------- */

uint64_t par_numerics_hash(const struct fwd_path *path, const struct fwd_session *s) {
    struct fwd_hash h;
    const struct fwd_config *config = path->config(s);
    fwd_hash_begin(&h);
    for (int layer = -1; layer < config->n_layer; layer++)
        for (int op = 0; op < FWD_OP_COUNT; op++) {
            struct fwd_numerics n = {.size = sizeof n};
            char text[320];
            if (fwd_op_in_layer((enum fwd_op)op) != (layer >= 0) || !path->numerics(s, (enum fwd_op)op, layer, &n))
                continue;
            int length = snprintf(
                text, sizeof text, "%d %d: %d %d %d %d %d %d %d %d %d %d %a %a %a %a %a %d %d %d %d %d %d %d %d %d\n",
                op, layer, (int)n.act, (int)n.act_rule, (int)n.accumulator, n.chain_block, n.chain_per_block,
                n.chain_extra, n.final_roundings, n.fma, n.ftz, (int)n.store, (double)n.exp_ulp, (double)n.div_ulp,
                (double)n.sqrt_ulp, (double)n.sincos_ulp, (double)n.pow_ulp, (int)n.angle, n.term_roundings, n.lanes,
                n.segment, n.key_lanes, n.key_segment, n.cut_bits, n.promote, (int)n.operand);
            fwd_hash_add(&h, text, (size_t)length);
        }
    return fwd_hash_end(&h);
}

static enum fwd_status put_hash(struct par_capture_writer *w, const char *key, uint64_t x, struct fwd_error *err) {
    char text[32];
    (void)snprintf(text, sizeof text, "0x%016llx", (unsigned long long)x);
    return par_capture_put(w, key, text, err);
}

static enum fwd_status put_int(struct par_capture_writer *w, const char *key, int x, struct fwd_error *err) {
    char text[32];
    (void)snprintf(text, sizeof text, "%d", x);
    return par_capture_put(w, key, text, err);
}

static enum fwd_status put_variants(struct trace *t, struct fwd_error *err) {
    char text[4096] = "";
    size_t at = 0;
    struct fwd_variant_choice v;
    for (int i = 0; t->o->path->variant(t->session, i, &v) && at < sizeof text; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s%s%s %s (%s)", i ? "; " : "", v.op,
                               *v.detail ? " " : "", v.detail, v.variant, v.why);
    return par_capture_put(t->writer, PAR_FACT_VARIANTS, text, err);
}

/* The weights as the kernels read them: one hash over names and checksums. */
static enum fwd_status put_weights(struct trace *t, struct fwd_error *err) {
    struct fwd_hash h;
    struct fwd_bound_weight w;
    fwd_hash_begin(&h);
    for (int i = 0; t->o->path->bound_weight(t->session, i, &w); i++) {
        char text[160];
        int n = snprintf(text, sizeof text, "%.100s %016llx\n", w.name, (unsigned long long)w.checksum);
        fwd_hash_add(&h, text, (size_t)n);
    }
    return put_hash(t->writer, PAR_FACT_WEIGHTS, fwd_hash_end(&h), err);
}

static enum fwd_status put_tokenizer(struct trace *t, struct fwd_error *err) {
    struct fwd_tokenizer_info info;
    struct fwd_hash h;
    if (!t->o->tokenizer)
        return par_capture_put(t->writer, PAR_FACT_TOKENIZER, "none", err);
    fwd_tokenizer_info(t->o->tokenizer, &info);
    fwd_hash_begin(&h);
    fwd_hash_add(&h, info.pre, strlen(info.pre) + 1);
    for (int64_t id = 0; id < info.n_vocab; id++) {
        const char *bytes;
        size_t n;
        if (!fwd_tokenizer_piece(t->o->tokenizer, (int32_t)id, &bytes, &n))
            continue;
        fwd_hash_add(&h, &n, sizeof n);
        fwd_hash_add(&h, bytes, n);
    }
    return put_hash(t->writer, PAR_FACT_TOKENIZER, fwd_hash_end(&h), err);
}

static enum fwd_status put_host(struct trace *t, struct fwd_error *err) {
    char text[512], cpu[64];
    struct utsname u;
    if (uname(&u) != 0)
        memset(&u, 0, sizeof u);
    (void)snprintf(text, sizeof text, "%.64s %.64s %.64s cpu=%s cores=%d", u.sysname, u.release, u.machine,
                   fwd_cpu_text(fwd_cpu_detect(), cpu, sizeof cpu), fwd_cpu_count());
    FWD_TRY(par_capture_put(t->writer, PAR_FACT_HOST, text, err));
    (void)snprintf(text, sizeof text, "path ABI %u, compiler %s", FWD_PATH_ABI, __VERSION__);
    return par_capture_put(t->writer, PAR_FACT_BUILD, text, err);
}

static enum fwd_status put_facts(struct trace *t, const struct fwd_knobs *k, struct fwd_error *err) {
    const struct par_trace_options *o = t->o;
    struct par_capture_writer *w = t->writer;
    const char *slash = o->model_path ? strrchr(o->model_path, '/') : NULL;
    char text[512];
    FWD_TRY(par_capture_put(w, PAR_FACT_MODEL, o->model_sha256, err));
    FWD_TRY(par_capture_put(w, PAR_FACT_MODEL_PATH, slash ? slash + 1 : o->model_path ? o->model_path : "", err));
    FWD_TRY(par_capture_put_ids(w, t->ids, t->n_ids, err));
    FWD_TRY(put_int(w, PAR_FACT_N_PROMPT, o->n_prompt, err));
    (void)snprintf(text, sizeof text, "0:%d", t->n_ids);
    FWD_TRY(par_capture_put(w, PAR_FACT_POSITIONS, text, err));
    FWD_TRY(par_capture_put(w, PAR_FACT_PATH, o->path->name, err));
    FWD_TRY(par_capture_put(w, PAR_FACT_SCHEDULE, par_schedule_name(o->schedule), err));
    FWD_TRY(put_int(w, PAR_FACT_CHUNK, o->chunk, err));
    (void)snprintf(text, sizeof text, "threads=%d ctx=%d batch=%d kv=%s head=%s act=%s caps=%s force=%s", k->n_threads,
                   k->n_ctx, k->n_batch, fwd_dtype_name(k->kv_type), k->head == FWD_HEAD_F32 ? "f32" : "quant",
                   k->act ? k->act : "none", k->caps ? k->caps : "all", k->force ? k->force : "none");
    FWD_TRY(par_capture_put(w, PAR_FACT_KNOBS, text, err));
    FWD_TRY(put_variants(t, err));
    FWD_TRY(par_capture_put(w, PAR_FACT_FUSION, "none", err));
    FWD_TRY(put_hash(w, PAR_FACT_NUMERICS, par_numerics_hash(o->path, t->session), err));
    FWD_TRY(put_weights(t, err));
    FWD_TRY(par_capture_put(w, PAR_FACT_FP, par_fp_environment(text, sizeof text), err));
    FWD_TRY(put_tokenizer(t, err));
    return put_host(t, err);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

static enum fwd_status open_all(struct trace *t, struct fwd_knobs *k, struct fwd_error *err) {
    const struct par_trace_options *o = t->o;
    FWD_FAIL_IF(o->n_prompt < 1 || o->n_decode < 0, FWD_EINPUT, err, "%d prompt tokens and %d decode steps",
                o->n_prompt, o->n_decode);
    FWD_TRY(par_drive_probe(o->path, err));
    t->n_ids = o->n_prompt + o->n_decode;
    *k = o->knobs;
    k->n_ctx = k->n_ctx > t->n_ids ? k->n_ctx : t->n_ids;
    int n_batch = par_drive_max_batch(o->path, o->schedule, o->chunk, o->n_prompt, t->n_ids);
    k->n_batch = k->n_batch > n_batch ? k->n_batch : n_batch;
    FWD_TRY(o->path->open(&t->session, o->file, k, err));
    t->n_vocab = o->path->config(t->session)->n_vocab;
    t->n_total = (int64_t)o->path->config(t->session)->n_layer * t->n_ids;
    t->n_want = o->all_logits ? t->n_ids : o->n_decode + 1;
    t->ids = fwd_alloc((size_t)t->n_ids, sizeof *t->ids);
    t->want = fwd_calloc((size_t)t->n_ids, 1);
    t->logits = fwd_alloc((size_t)t->n_want * (size_t)t->n_vocab, sizeof *t->logits);
    FWD_FAIL_IF(!t->ids || !t->want || !t->logits, FWD_ENOMEM, err, "no memory for the logits of %d positions",
                t->n_want);
    memset(t->want + t->n_ids - t->n_want, 1, (size_t)t->n_want);
    return FWD_OK;
}

static enum fwd_status trace_all(struct trace *t, const char *out_path, struct par_trace_result *result,
                                 struct fwd_error *err) {
    struct fwd_knobs knobs;
    FWD_TRY(open_all(t, &knobs, err));
    FWD_TRY(complete_ids(t, err));
    FWD_TRY(par_capture_create(&t->writer, out_path, &t->o->capture, err));
    FWD_TRY(run_once(t, true, &result->logits_hash, err));
    result->next = par_argmax(t->logits + (int64_t)(t->n_want - 1) * t->n_vocab, t->n_vocab);
    report(t, "running again without taps", 0, 1);
    FWD_TRY(run_once(t, false, &result->aa_hash, err));
    FWD_TRY(put_facts(t, &knobs, err));
    FWD_TRY(put_hash(t->writer, PAR_FACT_LOGITS, result->logits_hash, err));
    FWD_TRY(put_hash(t->writer, PAR_FACT_AA, result->aa_hash, err));
    result->n_ids = t->n_ids;
    result->n_tensors = par_capture_n_written(t->writer);
    result->verdict = result->logits_hash != result->aa_hash ? PAR_MISTRUSTED
                      : result->n_tensors == 0               ? PAR_UNMEASURED
                                                             : PAR_HELD;
    struct par_capture_writer *w = t->writer;
    t->writer = NULL;
    return par_capture_commit(w, err);
}

enum fwd_status par_trace(const struct par_trace_options *o, const char *out_path, struct par_trace_result *result,
                          struct fwd_error *err) {
    struct trace t = {.o = o};
    *result = (struct par_trace_result){.verdict = PAR_REFUSED};
    enum fwd_status rc = trace_all(&t, out_path, result, err);
    report(&t, "", -1, 0);
    par_capture_abort(t.writer);
    if (t.session)
        o->path->close(t.session);
    fwd_free(t.ids);
    fwd_free(t.want);
    fwd_free(t.logits);
    return rc;
}
