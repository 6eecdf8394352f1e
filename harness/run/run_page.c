/* harness/run/run_page.c: the verdict of a run, and the six lines that a report starts with. */
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the verdict ---- */

double par_run_figure(const struct par_run *r, const char *name, double otherwise) {
    double v;
    return par_figures_get(r->figures, name, &v) && !isnan(v) ? v : otherwise;
}

static double figure(const struct par_run *r, const char *name, double otherwise) {
    return par_run_figure(r, name, otherwise);
}

static bool broken_promise(const struct par_run *r) {
    for (int i = 0; i < r->report->n_arms; i++)
        if (r->report->arms[i].ran && r->report->arms[i].expect_same_bits && !r->report->arms[i].same_bits)
            return true;
    return false;
}

static enum par_verdict decide(const struct par_run *r) {
    double n_accused = figure(r, "ref.accused", 0) + figure(r, "cand.accused", 0);
    if (figure(r, "neutral", 0) == 0 || figure(r, "deterministic", 0) == 0 || figure(r, "fresh_process", 1) == 0)
        return PAR_MISTRUSTED;
    if (figure(r, "ref.nonfinite", 0) + figure(r, "cand.nonfinite", 0) + figure(r, "logits.nonfinite", 0) > 0)
        return PAR_NONFINITE;
    if (n_accused > 0 || figure(r, "config.differs", 0) > 0 || figure(r, "weights.differ", 0) > 0 ||
        figure(r, "logits.behind_tap", 0) > 0)
        return PAR_DIVERGED;
    if (figure(r, "ref.loss", 0) >= figure(r, "ref.loss_uniform", HUGE_VAL))
        return PAR_MISTRUSTED; /* no op is accused, and yet the reference is no language model */
    if (figure(r, "logits.beyond_spread", 0) > 0 || broken_promise(r))
        return PAR_DIVERGED;
    if (figure(r, "ref.mistrusted_ops", 0) + figure(r, "cand.mistrusted_ops", 0) > 0)
        return PAR_MISTRUSTED;
    if (figure(r, "cand.judged_elements", 0) == 0 || figure(r, "ref.judged_elements", 0) == 0 ||
        figure(r, "logits.positions", 0) == 0 || figure(r, "cand.unmeasured_ops", 1) > 0 ||
        figure(r, "ref.unmeasured_ops", 1) > 0 || r->n_spread == 0)
        return PAR_UNMEASURED;
    return PAR_HELD;
}

/* ---- the first page ---- */

static const struct par_op_row *first_accused(const struct par_run *r, bool ref) {
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = ref ? &r->ops[i].ref : &r->ops[i].cand;
        if (par_row_suspect(row))
            return row;
    }
    return NULL;
}

static const struct par_report_finding *first_finding(const struct par_run *r, bool ref) {
    for (int i = 0; i < r->n_ops; i++)
        if (par_row_suspect(ref ? &r->ops[i].ref : &r->ops[i].cand))
            return ref ? &r->ops[i].ref_finding : &r->ops[i].cand_finding;
    return NULL;
}

static const char *guilty_text(const struct par_run *r, const struct par_op_row *row, double n) {
    char where[32] = "";
    if (row->layer >= 0)
        (void)snprintf(where, sizeof where, " of layer %d", row->layer);
    return par_text_printf(r->text, "%s%s%s", fwd_op_name(row->op), where,
                           n > 1 ? par_text_printf(r->text, ", the first of %.0f accused", n) : "");
}

/* Positions where neither side has a number among its logits: broken weights, not a difference of paths. */
static int count_numberless(const struct par_report *p) {
    int n = 0;
    for (int i = 0; i < p->n_logits; i++)
        n += p->logits[i].m.top_ref < 0 && p->logits[i].m.top_got < 0;
    return n;
}

static const char *side_text(const struct par_run *r, double n_ref, double n_cand) {
    double beyond = figure(r, "logits.beyond_spread", 0);
    if (n_ref > 0 && n_cand > 0)
        return "both: what they share is wrong";
    if (n_cand > 0)
        return par_text_printf(r->text, "the candidate, %s", r->o->cand->name);
    if (n_ref > 0)
        return par_text_printf(r->text, "the reference, %s", r->o->ref->name);
    if (r->config_difference)
        return "both: the configuration that they share";
    if (figure(r, "weights.differ", 0) > 0 || figure(r, "logits.behind_tap", 0) > 0)
        return par_text_printf(r->text, "the candidate, %s", r->o->cand->name);
    if (beyond > 0 && figure(r, "f64.ref_beyond_spread", 0) > 0 && figure(r, "f64.cand_beyond_spread", 1) == 0)
        return par_text_printf(r->text, "the reference, %s, by its logits alone", r->o->ref->name);
    if (beyond > 0 && figure(r, "f64.ref_beyond_spread", 1) == 0 && figure(r, "f64.cand_beyond_spread", 0) > 0)
        return par_text_printf(r->text, "the candidate, %s, by its logits alone", r->o->cand->name);
    return r->report->verdict == PAR_HELD ? "neither" : "not known: no op is accused";
}

/* How far either side's logits are from f64's, at most: ""; where that path did not run. */
static const char *f64_text(const struct par_run *r) {
    double ref = figure(r, "f64.ref_distance_max", -1), cand = figure(r, "f64.cand_distance_max", -1);
    if (ref < 0 || cand < 0 || r->report->verdict == PAR_HELD)
        return "";
    return par_text_printf(r->text, " (logits at most %.3g and %.3g from f64's: reference, candidate)", ref, cand);
}

/* What no verdict covers, by name: "; not covered: ffn_up of layer 3 (the bound is larger ...) and 2 more". */
static const char *gaps_text(const struct par_run *r) {
    const struct par_op_row *first = NULL;
    int n = 0;
    for (int i = 0; i < 2 * r->n_ops; i++) {
        const struct par_op_row *row = i < r->n_ops ? &r->ops[i].cand : &r->ops[i - r->n_ops].ref;
        if (row->verdict != PAR_MISTRUSTED && (row->verdict != PAR_UNMEASURED || row->absent))
            continue;
        first = first ? first : row;
        n++;
    }
    if (!first)
        return "";
    const char *where = first->layer < 0 ? "" : par_text_printf(r->text, " of layer %d", first->layer);
    return par_text_printf(r->text, "; not covered: %s%s (%s: %s)%s", fwd_op_name(first->op), where,
                           par_verdict_name(first->verdict), first->note,
                           n > 1 ? par_text_printf(r->text, " and %d more", n - 1) : "");
}

void par_run_first_page(struct par_run *r) {
    struct par_report *p = r->report;
    p->verdict = decide(r);
    double n_ref = figure(r, "ref.accused", 0), n_cand = figure(r, "cand.accused", 0);
    const struct par_op_row *ref = first_accused(r, true), *cand = first_accused(r, false);
    const struct par_op_row *shown = cand ? cand : ref;
    const struct par_report_finding *finding = first_finding(r, cand == NULL);
    p->side = par_text_printf(r->text, "%s%s", side_text(r, n_ref, n_cand), f64_text(r));
    p->guilty = shown ? guilty_text(r, shown, cand ? n_cand : n_ref) : "none";
    if (finding && finding->why)
        p->guilty = par_text_printf(r->text, "%s: %s%s%s", p->guilty, finding->signature ? finding->signature : "",
                                    finding->signature ? ", " : "", finding->why);
    if (r->config_difference)
        p->guilty = par_text_printf(r->text, "%s%s%s", shown ? p->guilty : "the configuration", shown ? "; " : ": ",
                                    r->config_difference);
    if (r->weight_difference)
        p->guilty = par_text_printf(r->text, "%s%s%s", shown || r->config_difference ? p->guilty : "binding",
                                    shown || r->config_difference ? "; " : ": ", r->weight_difference);
    p->worst =
        shown ? par_text_printf(r->text,
                                "position %d, row %lld: expected %.9g, got %.9g, bound %.3g (%.3g bounds off)%s%s%s%s",
                                shown->worst.pos, (long long)shown->worst.row, shown->worst.expected, shown->worst.got,
                                shown->worst.bound, shown->ratio_max, finding && finding->where ? "; " : "",
                                finding && finding->where ? finding->where : "", finding && finding->bytes ? "; " : "",
                                finding && finding->bytes ? finding->bytes : "")
              : "none outside its bound";
    double beyond = figure(r, "logits.beyond_spread", 0);
    int numberless = count_numberless(p);
    switch (p->verdict) {
    case PAR_HELD:
        p->answer = r->base_hash && figure(r, "kl", 0) > 0
                        ? "noise: every op computes what it declares; the logits differ by the price of the format"
                        : "neither: the same logits";
        break;
    case PAR_DIVERGED:
        p->answer = shown                                   ? "bug"
                    : figure(r, "logits.behind_tap", 0) > 0 ? "bug: no op accused; the logits handed out are not those "
                                                              "of the last tap"
                    : beyond > 0                            ? "bug: no op accused, logits outside the spread"
                    : broken_promise(r)
                        ? "bug: an arm that promises the same bits has others"
                        : "bug: the engine reads another configuration or other weights than the file has";
        break;
    case PAR_NONFINITE:
        p->answer = numberless ? "bug: NaN on both sides: look at the model's weights"
                               : "bug: NaN or infinity where the other side has a number";
        break;
    case PAR_MISTRUSTED:
        p->answer = "not known: the measurement is not to be trusted (see proofs)";
        break;
    default:
        p->answer = "not known: something was not measured (see coverage)";
        break;
    }
    double flips = figure(r, "logits.flips", 0), bad = figure(r, "logits.flips_uncertified", 0);
    p->tokens =
        numberless ? par_text_printf(r->text, "not known: %d of %d positions have no number on either side", numberless,
                                     p->n_logits)
        : flips == 0
            ? par_text_printf(r->text, "no: the same best token at all %d positions", p->n_logits)
            : par_text_printf(r->text, "at %.0f of %d positions: %.0f certified near-ties, %.0f beyond the spread",
                              flips, p->n_logits, flips - bad, bad);
    p->scope = par_text_printf(r->text,
                               "%s against %s, schedule %s, %d prompt tokens and %d decode steps, ops of all %d "
                               "layers, the candidate's at %.3g %% of the positions%s",
                               r->o->cand->name, r->o->ref->name, par_schedule_name(r->o->schedule), r->n_prompt,
                               r->n_ids - r->n_prompt, par_spec_config(r->spec)->n_layer,
                               100 * figure(r, "coverage", 0), gaps_text(r));
}
