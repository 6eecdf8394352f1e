/* harness/run/run_report.c: from measurements to figures, and from figures to the verdict and the first page. */
#include "run/run_state.h"

#include "report/embedded.h"
#include "report/sha256.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>

/* ---- figures of the ops ---- */

struct tally {
    double accused[PAR_CLASS_COUNT], judged_in[PAR_CLASS_COUNT], total_accused, nonfinite, unmeasured, mistrusted,
        judged, ratio_max, systematic, ratio_in[PAR_CLASS_COUNT];
};

static void add_row(struct tally *t, const struct par_op_row *row) {
    t->judged += (double)row->n_judged;
    t->accused[par_class_of(row->op)] += par_row_accused(row);
    t->judged_in[par_class_of(row->op)] += (double)row->n_judged;
    t->total_accused += par_row_accused(row);
    t->nonfinite += row->verdict == PAR_NONFINITE;
    t->unmeasured += row->verdict == PAR_UNMEASURED && !row->absent;
    t->mistrusted += row->verdict == PAR_MISTRUSTED;
    t->ratio_max = row->ratio_max > t->ratio_max ? row->ratio_max : t->ratio_max;
    t->systematic += (double)row->n_systematic;
    double *ratio = &t->ratio_in[par_class_of(row->op)];
    *ratio = row->ratio_max > *ratio ? row->ratio_max : *ratio;
}

static void set_side(struct par_run *r, const char *side, const struct tally *t) {
    const struct {
        const char *name;
        double value;
    } rows[] = {{"accused", t->total_accused},     {"nonfinite", t->nonfinite},    {"unmeasured_ops", t->unmeasured},
                {"mistrusted_ops", t->mistrusted}, {"judged_elements", t->judged}, {"residue_max", t->ratio_max},
                {"systematic", t->systematic}};
    char name[96];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        (void)snprintf(name, sizeof name, "%s.%s", side, rows[i].name);
        par_figures_set(r->figures, name, rows[i].value);
    }
    for (int c = 0; c < PAR_CLASS_COUNT; c++) {
        (void)snprintf(name, sizeof name, "%s.accused.%s", side, par_class_name((enum par_op_class)c));
        par_figures_set(r->figures, name, t->accused[c]);
        (void)snprintf(name, sizeof name, "%s.judged.%s", side, par_class_name((enum par_op_class)c));
        par_figures_set(r->figures, name, t->judged_in[c]);
        if (t->judged_in[c] > 0) {
            (void)snprintf(name, sizeof name, "%s.residue_max.%s", side, par_class_name((enum par_op_class)c));
            par_figures_set(r->figures, name, t->ratio_in[c]);
        }
    }
}

/* ---- the logits against the explained spread ---- */

static void judge_position(const struct par_run *r, int i, struct par_report_logits *row) {
    const float *ref = r->logits_ref + (int64_t)i * r->n_vocab, *got = r->logits_cand + (int64_t)i * r->n_vocab;
    row->pos = r->want_pos[i];
    row->decode = row->pos >= r->n_prompt;
    row->logits_hash = fwd_hash64(got, (size_t)r->n_vocab * sizeof *got);
    par_logits_compare(ref, got, r->n_vocab, 10, &row->m);
    row->distance = par_centred_distance(ref, got, r->n_vocab);
    row->spread = r->n_spread ? r->spread_flip[i] : (double)NAN;
    row->spread_distance = r->n_spread ? r->spread_distance[i] : (double)NAN;
    row->price = r->n_spread ? r->price[i] : (double)NAN;
    row->floor = r->n_spread ? r->floor[i] : (double)NAN;
    row->f64_ref = r->f64_ref[i];
    row->f64_cand = r->f64_cand[i];
    bool flip = row->m.top_ref != row->m.top_got;
    if (row->m.diff.n_nonfinite_mismatch || !isfinite(row->distance)) {
        row->verdict = PAR_NONFINITE;
        row->what = "NaN or infinity on one side";
    } else if (!r->n_spread) {
        row->verdict = PAR_UNMEASURED;
        row->what = flip ? "flip, no spread measured" : "same token, no spread measured";
    } else if (flip && !(row->m.gap_in_ref <= row->spread)) {
        row->verdict = PAR_DIVERGED;
        row->what = "flip beyond the spread";
    } else if (!(row->distance <= row->spread_distance)) {
        row->verdict = PAR_DIVERGED;
        row->what = "distance beyond the spread";
    } else {
        row->verdict = PAR_HELD;
        row->what = flip ? "certified near-tie" : "same token";
    }
}

struct judged_rows {
    const struct par_run *r;
    struct par_report_logits *rows;
};

static void judge_positions(void *ctx, int thread, int n_threads) {
    const struct judged_rows *job = ctx;
    for (int i = thread; i < job->r->n_want; i += n_threads)
        judge_position(job->r, i, &job->rows[i]);
}

/* The candidate's greedy tokens: its best one at the last prompt position and at every decode step. */
static void figure_greedy(struct par_run *r, const struct par_report_logits *rows) {
    double n = 0, equal = 0, certified = 0, unmeasured = 0;
    for (int i = 0; i < r->n_want; i++) {
        if (rows[i].pos < r->n_prompt - 1)
            continue;
        bool flip = rows[i].m.top_ref != rows[i].m.top_got;
        n++;
        equal += !flip && rows[i].m.top_got >= 0;
        certified += flip && rows[i].verdict == PAR_HELD;
        unmeasured += flip && rows[i].verdict == PAR_UNMEASURED;
        if (rows[i].pos == r->n_prompt - 1) {
            par_figures_set(r->figures, "first_token.elements", (double)rows[i].m.diff.n);
            par_figures_set(r->figures, "first_token.max_abs", rows[i].m.diff.max_abs);
            par_figures_set(r->figures, "first_token.distance", rows[i].distance);
            par_figures_set(r->figures, "first_token.spread_distance", rows[i].spread_distance);
        }
    }
    par_figures_set(r->figures, "greedy.tokens", n);
    par_figures_set(r->figures, "greedy.equal", equal);
    par_figures_set(r->figures, "greedy.certified", certified);
    par_figures_set(r->figures, "greedy.equal_or_certified", unmeasured > 0 ? (double)NAN : equal + certified);
}

static void figure_logits(struct par_run *r) {
    struct par_report_logits *rows = par_text_alloc(r->text, (size_t)r->n_want * sizeof *rows);
    if (!rows)
        return;
    double flips = 0, uncertified = 0, beyond = 0, nonfinite = 0, kl = 0, first_equal = NAN, first_held = NAN;
    double distance_share = 0, gap_share = 0, equal_or_certified = 0, spread = 0;
    struct judged_rows job = {r, rows};
    fwd_pool_run(r->pool, judge_positions, &job);
    for (int i = 0; i < r->n_want; i++) {
        bool flip = rows[i].m.top_ref != rows[i].m.top_got, bad = rows[i].verdict == PAR_DIVERGED;
        flips += flip;
        uncertified += flip && bad;
        beyond += bad;
        nonfinite += rows[i].verdict == PAR_NONFINITE;
        kl = rows[i].m.kl > kl ? rows[i].m.kl : kl;
        distance_share = fmax(distance_share, rows[i].distance / rows[i].spread_distance);
        gap_share = fmax(gap_share, rows[i].m.gap_in_ref / rows[i].spread);
        spread = fmax(spread, rows[i].spread_distance);
        equal_or_certified += !flip || rows[i].verdict == PAR_HELD;
        if (rows[i].pos == r->n_prompt - 1) {
            first_equal = !flip;
            first_held = rows[i].verdict == PAR_HELD;
        }
    }
    r->report->logits = rows;
    r->report->n_logits = r->n_want;
    par_figures_set(r->figures, "logits.positions", r->n_want);
    par_figures_set(r->figures, "logits.flips", flips);
    par_figures_set(r->figures, "logits.flips_uncertified", uncertified);
    par_figures_set(r->figures, "logits.beyond_spread", beyond);
    par_figures_set(r->figures, "logits.nonfinite", nonfinite);
    par_figures_set(r->figures, "kl", kl);
    if (r->n_spread) {
        par_figures_set(r->figures, "explained_spread", spread);
        par_figures_set(r->figures, "top1_equal_or_certified", equal_or_certified / r->n_want);
    }
    par_figures_set(r->figures, "logits.distance_of_spread", distance_share);
    par_figures_set(r->figures, "logits.gap_of_spread", gap_share);
    par_figures_set(r->figures, "first_token.equal", first_equal);
    par_figures_set(r->figures, "first_token.held", first_held);
    figure_greedy(r, rows);
}

static void figure_ledger(struct par_run *r) {
    struct par_ledger all = {0};
    for (int i = 0; i < r->n_ops; i++)
        par_ledger_merge(&all, &r->ops[i].ledger);
    if (all.n == 0)
        return;
    par_figures_set(r->figures, "ledger.elements", (double)all.n);
    if (all.has_source)
        par_figures_set(r->figures, "ledger.weights", par_ledger_share(&all, all.weight2));
    par_figures_set(r->figures, "ledger.activation", par_ledger_share(&all, all.activation2));
    par_figures_set(r->figures, "ledger.rounding", par_ledger_share(&all, all.rounding2));
    par_figures_set(r->figures, "unexplained", par_ledger_share(&all, all.unexplained2));
    par_figures_set(r->figures, "ledger.gap_max", all.gap_max);
}

void par_run_figures(struct par_run *r) {
    struct tally ref = {0}, cand = {0};
    for (int i = 0; i < r->n_ops; i++) {
        add_row(&ref, &r->ops[i].ref);
        add_row(&cand, &r->ops[i].cand);
    }
    set_side(r, "ref", &ref);
    set_side(r, "cand", &cand);
    if (ref.judged + cand.judged > 0)
        par_figures_set(r->figures, "residue_max", fmax(ref.ratio_max, cand.ratio_max));
    for (int c = 0; c < PAR_CLASS_COUNT; c++) {
        char name[96];
        (void)snprintf(name, sizeof name, "accused.%s", par_class_name((enum par_op_class)c));
        par_figures_set(r->figures, name, ref.accused[c] + cand.accused[c]);
    }
    figure_ledger(r);
    if (!r->report->logits)
        figure_logits(r);
    double beyond = 0, nonfinite = 0;
    (void)par_figures_get(r->figures, "logits.beyond_spread", &beyond);
    (void)par_figures_get(r->figures, "logits.nonfinite", &nonfinite);
    r->diverged = ref.total_accused > 0 || cand.total_accused > 0 || beyond > 0 || nonfinite > 0;
    par_figures_set(r->figures, "positions.prompt", r->n_prompt);
    par_figures_set(r->figures, "taps.views", r->n_views);
    par_figures_set(r->figures, "taps.on_device", r->n_views_on_device);
    par_figures_set(r->figures, "positions.decode", r->n_ids - r->n_prompt);
}

/* ---- the rest ---- */

static void add_pair(const struct par_run *r, const struct par_report_pair **list, int *n, const char *name,
                     const char *value) {
    struct par_report_pair *rows = par_text_alloc(r->text, (size_t)(*n + 1) * sizeof *rows);
    if (!rows)
        return;
    if (*n)
        memcpy(rows, *list, (size_t)*n * sizeof *rows);
    rows[*n] = (struct par_report_pair){name, value};
    *list = rows;
    (*n)++;
}

void par_run_add_proof(struct par_run *r, const char *name, enum par_verdict verdict, const char *value) {
    struct par_report *p = r->report;
    struct par_report_proof *rows = par_text_alloc(r->text, (size_t)(p->n_proofs + 1) * sizeof *rows);
    if (!rows)
        return;
    if (p->n_proofs)
        memcpy(rows, p->proofs, (size_t)p->n_proofs * sizeof *rows);
    rows[p->n_proofs++] = (struct par_report_proof){name, value, verdict};
    p->proofs = rows;
}

static const char *cpu_model(struct par_text *text) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    const char *found = "unknown";
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        found = par_text_printf(text, "%s", colon + 2);
        break;
    }
    if (f)
        (void)fclose(f);
    return found;
}

static void fill_receipt(struct par_run *r) {
    static const char *const phases[] = {"open and greedy steps",
                                         "reference",
                                         "candidate, judged, and repeats",
                                         "explained spread",
                                         "arms, same session",
                                         "interventions",
                                         "arms, reopened",
                                         "all"};
    struct par_report *p = r->report;
    struct utsname host;
    struct rusage usage;
    char caps[32], date[40] = "";
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        (void)strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    add_pair(r, &p->receipt, &p->n_receipt, "date", par_text_printf(r->text, "%s", date));
    if (uname(&host) == 0)
        add_pair(r, &p->receipt, &p->n_receipt, "host",
                 par_text_printf(r->text, "%s %s %s", host.sysname, host.release, host.machine));
    add_pair(r, &p->receipt, &p->n_receipt, "cpu",
             par_text_printf(r->text, "%s, %s, %d threads", cpu_model(r->text),
                             fwd_cpu_text(fwd_cpu_detect(), caps, sizeof caps), fwd_pool_size(r->pool)));
    add_pair(r, &p->receipt, &p->n_receipt, "build",
             par_text_printf(r->text, "%s, gcc %s", par_build_id(), __VERSION__));
    add_pair(r, &p->receipt, &p->n_receipt, "bound",
             r->o->bound == PAR_BOUND_WORST
                 ? "worst case: no correct element leaves it"
                 : par_text_printf(r->text, "likely: all of %.2g correct elements stay inside with probability 1 - %g",
                                   PAR_BOUND_ELEMENTS, PAR_BOUND_DELTA));
    for (int i = 0; i < 8; i++)
        add_pair(r, &p->receipt, &p->n_receipt, par_text_printf(r->text, "seconds: %s", phases[i]),
                 par_text_printf(r->text, "%.2f", r->seconds[i]));
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        add_pair(r, &p->receipt, &p->n_receipt, "peak RSS",
                 par_text_printf(r->text, "%.0f MB (model file %.0f MB)", (double)usage.ru_maxrss / 1024,
                                 (double)fwd_gguf_file_bytes(r->o->file) / 1048576));
    for (int i = 0; i < r->o->n_faults; i++) {
        char place[128];
        add_pair(r, &p->receipt, &p->n_receipt, "planted fault",
                 par_text_printf(r->text, "%s", par_fault_describe(&r->o->faults[i], place, sizeof place)));
    }
}

/* ---- what the candidate says of itself, against the file ---- */

static void record_config(struct par_run *r, struct fwd_session *session) {
    char lines[2048] = "";
    const struct fwd_config *c = r->o->cand->config(session);
    const struct par_spec_config *s = par_spec_config(r->spec);
    int n = par_spec_compare_config(r->spec, c, lines, sizeof lines);
    struct par_report *p = r->report;
    par_figures_set(r->figures, "config.differs", n);
    add_pair(r, &p->config, &p->n_config, "architecture",
             par_text_printf(r->text, "engine %s, file %s", c->arch, s->arch));
    add_pair(r, &p->config, &p->n_config, "layers, width, ffn",
             par_text_printf(r->text, "engine %d, %d, %d; file %d, %d, %d", c->n_layer, c->n_embd, c->n_ff, s->n_layer,
                             s->n_embd, s->n_ff));
    add_pair(r, &p->config, &p->n_config, "heads, KV heads, head size",
             par_text_printf(r->text, "engine %d, %d, %d; file %d, %d, %d", c->n_head, c->n_kv_head, c->head_dim,
                             s->n_head, s->n_kv_head, s->head_dim));
    add_pair(r, &p->config, &p->n_config, "rope pairing, base",
             par_text_printf(r->text, "engine %s, %g; file %s, %g", c->rope_pairing == FWD_ROPE_NEOX ? "neox" : "norm",
                             c->rope_theta, s->rope_neox ? "neox" : "norm", s->rope_theta));
    add_pair(r, &p->config, &p->n_config, "norm eps",
             par_text_printf(r->text, "engine %g, file %g", (double)c->norm_eps, s->norm_eps));
    if (n) {
        add_pair(r, &p->config, &p->n_config, "DIFFERENCES", par_text_printf(r->text, "%s", lines));
        r->config_difference = par_text_printf(r->text, "%.*s", (int)strcspn(lines, "\n"), lines);
    }
}

/* The bytes the kernels read, unpacked again, against the bytes of the file. */
static void audit_weights(struct par_run *r, struct fwd_session *session) {
    struct fwd_bound_weight w;
    int n = 0, n_differ = 0;
    const char *first = "";
    if (r->o->depth == PAR_QUICK)
        return;
    for (; r->o->cand->bound_weight(session, n, &w); n++) {
        par_run_progress(r, "weights as bound, against the file", n, 0);
        const struct fwd_gguf_tensor *t = fwd_gguf_find(r->o->file, w.name);
        bool same = t && t->type == w.type && t->data && fwd_hash64(t->data, t->n_bytes) == w.checksum;
        add_pair(r, &r->report->weights, &r->report->n_weights, par_text_printf(r->text, "%s", w.name),
                 par_text_printf(r->text, "%s %lld x %lld, %s, %016llx%s", fwd_type_name(w.type), (long long)w.n_rows,
                                 (long long)w.n_cols, w.layout, (unsigned long long)w.checksum,
                                 same ? "" : ", not the file's"));
        if (t)
            fwd_gguf_drop_pages(r->o->file, t);
        if (!same && !n_differ++)
            first = par_text_printf(r->text, ", the first is %s", w.name);
    }
    par_figures_set(r->figures, "weights.audited", n);
    par_figures_set(r->figures, "weights.differ", n_differ);
    add_pair(r, &r->report->config, &r->report->n_config, "weights as bound",
             par_text_printf(r->text, "%d unpacked and compared with the file, %d differ%s", n, n_differ, first));
    if (n_differ)
        r->weight_difference =
            par_text_printf(r->text, "%d of %d weights as bound are not the file's%s", n_differ, n, first);
}

/* What ran where: a result of the CPU must not read as one of a device. */
static void record_device(struct par_run *r) {
    struct fwd_path_info info = {.size = sizeof info};
    struct fwd_device_info device = {.size = sizeof device};
    struct fwd_error why = {.message = ""};
    const struct fwd_path *path = r->o->cand;
    path->describe(&info);
    bool answered = info.on_device && path->device && path->device(&device, false, &why) == FWD_OK;
    if (!info.on_device || answered)
        par_figures_set(r->figures, "cand.on_device", info.on_device);
    add_pair(r, &r->report->receipt, &r->report->n_receipt, "candidate ran on",
             !info.on_device ? "the CPU"
             : answered ? par_text_printf(r->text, "%s, %.0f MB, %s", device.name, 1e-6 * (double)device.memory_bytes,
                                          device.driver)
                        : par_text_printf(r->text, "a device that did not say which: %s", why.message));
}

/* "matmul_q Q4_K, M 1, 8960 x 1536": op and what of it the row is about. */
static const char *choice_text(struct par_text *text, const struct fwd_variant_choice *v) {
    char calls[48] = "", shape[56] = "";
    if (v->m_first == v->m_last && v->m_first)
        (void)snprintf(calls, sizeof calls, ", M %d", v->m_first);
    else if (v->m_last)
        (void)snprintf(calls, sizeof calls, ", M %d to %d", v->m_first, v->m_last);
    else if (v->m_first)
        (void)snprintf(calls, sizeof calls, ", M from %d", v->m_first);
    if (v->n_rows)
        (void)snprintf(shape, sizeof shape, ", %lld x %lld", (long long)v->n_rows, (long long)v->n_cols);
    return par_text_printf(text, "%s%s%s%s%s", v->op, *v->detail ? " " : "", v->detail, calls, shape);
}

void par_run_record_candidate(struct par_run *r, struct fwd_session *session) {
    struct fwd_variant_choice v = {0};
    for (int i = 0; r->o->cand->variant(session, i, &v); i++)
        add_pair(r, &r->report->variants, &r->report->n_variants, choice_text(r->text, &v),
                 par_text_printf(r->text, "%s (%s)", v.variant, v.why));
    record_device(r);
    par_figures_set(r->figures, "variants.recorded", r->report->n_variants);
    record_config(r, session);
    audit_weights(r, session);
}

static void add_loss_proof(struct par_run *r) {
    double loss = par_run_figure(r, "ref.loss", NAN), uniform = par_run_figure(r, "ref.loss_uniform", NAN);
    enum par_verdict verdict = isnan(loss) ? PAR_UNMEASURED : loss < uniform ? PAR_HELD : PAR_MISTRUSTED;
    par_run_add_proof(r, "reference is a language model", verdict,
                      isnan(loss)
                          ? "not measured: no tokenizer for the committed text"
                          : par_text_printf(r->text, "loss %.3f nats a token on the committed text, guessing has %.3f",
                                            loss, uniform));
}

static enum fwd_status copy_figures(struct par_run *r, struct fwd_error *err) {
    const char *name;
    double value;
    int n = 0;
    while (par_figures_at(r->figures, n, &name, &value))
        n++;
    struct par_report_figure *rows = par_text_alloc(r->text, (size_t)n * sizeof *rows);
    FWD_FAIL_IF(!rows, FWD_ENOMEM, err, "report: no memory for %d figures", n);
    for (int i = 0; par_figures_at(r->figures, i, &name, &value); i++)
        rows[i] = (struct par_report_figure){par_text_printf(r->text, "%s", name), value};
    r->report->figures = rows;
    r->report->n_figures = n;
    return FWD_OK;
}

enum fwd_status par_run_fill_report(struct par_run *r, struct fwd_error *err) {
    struct par_report *p = r->report;
    char sha[65];
    struct par_sha256_job *job = r->sha;
    r->sha = NULL;
    FWD_TRY(par_sha256_finish(job, sha, err));
    p->model_path = par_text_printf(r->text, "%s", fwd_gguf_path(r->o->file));
    p->model_sha256 = par_text_printf(r->text, "%s", sha);
    p->ref_path = r->o->ref->name;
    p->cand_path = r->o->cand->name;
    p->prompt = r->o->prompt ? par_text_printf(r->text, "%s", r->o->prompt) : NULL;
    p->command = par_text_printf(r->text, "%s", r->o->command);
    int32_t *ids = par_text_alloc(r->text, (size_t)r->n_ids * sizeof *ids);
    FWD_FAIL_IF(!ids, FWD_ENOMEM, err, "report: no memory for %d ids", r->n_ids);
    memcpy(ids, r->ids, (size_t)r->n_ids * sizeof *ids);
    p->ids = ids;
    p->n_ids = r->n_ids;
    p->n_prompt = r->n_prompt;
    p->ops = r->ops;
    p->n_ops = r->n_ops;
    par_run_first_page(r);
    add_loss_proof(r);
    fill_receipt(r);
    FWD_TRY(copy_figures(r, err));
    FWD_FAIL_IF(!par_figures_ok(r->figures), FWD_ENOMEM, err, "report: no memory for the figures");
    return FWD_OK;
}
