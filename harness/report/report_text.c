/* The report as text for a terminal. The first page answers the six questions; the rest is the evidence. */
#include "report/report_escape.h"
#include "report/report_plot.h"
#include "report/report_stats.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 110, LABEL = 15, MOST_POSITIONS = 24, MOST_GUILTY = 40 };

static const char *text_or(const char *s, const char *otherwise) {
    return s && *s ? s : otherwise;
}

static void put_line(FILE *out, const char *label, const char *value) {
    (void)fprintf(out, "%-*s", LABEL, label);
    par_put_wrapped(out, LABEL, WIDTH, text_or(value, "not known"));
}

static void put_command(FILE *out, const char *label, const char *command) {
    (void)fprintf(out, "%-*s", LABEL, label);
    par_put_plain(out, text_or(command, "not known"));
    (void)fputc('\n', out);
}

static void put_title(FILE *out, const char *title) {
    (void)fprintf(out, "\n== %s ", title);
    for (int i = (int)strlen(title) + 4; i < WIDTH; i++)
        (void)fputc('=', out);
    (void)fputc('\n', out);
}

static void put_first_page(const struct par_report *r, FILE *out) {
    put_line(out, "bug or noise", r->answer);
    put_line(out, "which side", r->side);
    put_line(out, "guilty op", r->guilty);
    put_line(out, "worst element", r->worst);
    put_line(out, "tokens", r->tokens);
    put_command(out, "reproduce", r->command);
    enum par_verdict shown = par_report_shown(r);
    (void)fprintf(out, "%-*s%s (exit %d)\n", LABEL, "verdict", par_verdict_name(shown), par_verdict_exit(shown));
    put_line(out, "covers", r->scope);
    (void)fprintf(out, "%-*s%llu elements of %s and %llu of %s against their declared arithmetic", LABEL, "judged",
                  (unsigned long long)par_report_n_judged(r, PAR_SIDE_CAND), par_side_path(r, PAR_SIDE_CAND),
                  (unsigned long long)par_report_n_judged(r, PAR_SIDE_REF), par_side_path(r, PAR_SIDE_REF));
    (void)fprintf(out, ", %d positions of logits\n", r->n_logits);
}

static void put_input(const struct par_report *r, FILE *out) {
    put_title(out, "input");
    put_line(out, "model", r->model_path);
    put_line(out, "sha256", r->model_sha256);
    (void)fprintf(out, "%-*s%s (reference), %s (candidate)\n", LABEL, "paths", par_side_path(r, PAR_SIDE_REF),
                  par_side_path(r, PAR_SIDE_CAND));
    if (r->prompt)
        put_line(out, "prompt", r->prompt);
    (void)fprintf(out, "%-*s%d of the prompt, %d teacher-forced\n", LABEL, "tokens", r->n_prompt,
                  r->n_ids - r->n_prompt);
    (void)fprintf(out, "%-*s", LABEL, "ids");
    int column = LABEL;
    for (int i = 0; i < r->n_ids; i++) {
        char id[16];
        int n = snprintf(id, sizeof id, "%s%d", i ? "," : "", (int)r->ids[i]);
        if (column + n > WIDTH) {
            (void)fprintf(out, "\n%*s", LABEL, "");
            column = LABEL;
        }
        (void)fputs(id, out);
        column += n;
    }
    (void)fputc('\n', out);
}

static void put_logit_row(const struct par_report_logits *l, FILE *out) {
    (void)fprintf(out, "%6d%c %-10s %6d %6d %8.3g %8.3g %8.3g %8.3g %8.3g %8.2g ", l->pos, l->decode ? 'd' : ' ',
                  par_verdict_name(l->verdict), (int)l->m.top_ref, (int)l->m.top_got, l->m.margin_ref, l->distance,
                  l->price, l->floor, l->spread_distance, l->m.kl);
    par_put_plain(out, l->what);
    (void)fputc('\n', out);
    if (l->m.top_ref != l->m.top_got)
        (void)fprintf(out,
                      "%18sthe reference has token %d ahead of %d by %.4g; correct runs move the two by up to %.4g\n",
                      "", (int)l->m.top_ref, (int)l->m.top_got, l->m.gap_in_ref, l->spread);
}

/* Every position that is not HELD, and the last one of the prompt and of the decode steps; all of them when few. */
static bool logit_row_matters(const struct par_report *r, int i) {
    bool last_of_kind = i + 1 == r->n_logits || r->logits[i + 1].decode != r->logits[i].decode;
    return last_of_kind || r->logits[i].verdict != PAR_HELD || r->logits[i].m.top_ref != r->logits[i].m.top_got;
}

static void put_logits(const struct par_report *r, enum par_report_detail detail, FILE *out) {
    put_title(out, "logits, position by position");
    if (r->n_logits == 0) {
        (void)fprintf(out, "UNMEASURED: no position's logits were compared\n");
        return;
    }
    bool all = detail == PAR_DETAIL_FULL || r->n_logits <= MOST_POSITIONS;
    (void)fprintf(out, "%6s  %-10s %6s %6s %8s %8s %8s %8s %8s %8s\n", "pos", "verdict", "ref", "cand", "margin",
                  "distance", "price", "floor", "spread", "KL");
    int n_shown = 0;
    for (int i = 0; i < r->n_logits; i++) {
        if (!all && !logit_row_matters(r, i))
            continue;
        put_logit_row(&r->logits[i], out);
        n_shown++;
    }
    if (n_shown < r->n_logits)
        (void)fprintf(out, "and %d more positions, HELD with the same token\n", r->n_logits - n_shown);
    (void)fprintf(out, "d: a decode step; ref, cand: the best token; margin: best minus second best of the reference;\n"
                       "distance, price, floor, spread: relative L2 of candidate to reference, of correct runs to the\n"
                       "reference, between correct runs, and what the distance may be at most\n");
}

static void put_profile(const struct par_report *r, FILE *out) {
    enum { MOST_LAYERS = FWD_MAX_LAYERS };
    double *y = fwd_calloc(MOST_LAYERS, sizeof *y);
    unsigned char *has = fwd_calloc(MOST_LAYERS, 1);
    int n = 0, n_has = 0;
    for (int i = 0; y && has && i < r->n_ops; i++) {
        const struct par_report_op *op = &r->ops[i];
        if (op->op != FWD_OP_L_OUT || op->layer < 0 || op->layer >= MOST_LAYERS)
            continue;
        n = op->layer + 1 > n ? op->layer + 1 : n;
        if (!op->has_free_run || op->free_run.n == 0)
            continue;
        has[op->layer] = 1;
        n_has++;
        y[op->layer] = op->free_run.n_nonfinite_mismatch ? (double)NAN : op->free_run.rel_l2;
    }
    put_title(out, "error against depth: relative L2 of l_out, free run");
    if (n_has == 0)
        (void)fprintf(out, "UNMEASURED: no l_out was compared\n");
    else
        par_plot_log(out, y, has, n, WIDTH);
    (void)fprintf(out, "Two correct paths drift apart like this; only the judged ops below can accuse one.\n");
    fwd_free(y);
    fwd_free(has);
}

/* What the distance of each kind of matrix product to the exact result is made of. */
static void put_ledger(const struct par_report *r, FILE *out) {
    bool any = false;
    put_title(out, "error ledger of the candidate's matrix products (relative L2, at a sample of positions)");
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        struct par_ledger sum = {0};
        for (int i = 0; i < r->n_ops; i++)
            if (r->ops[i].op == (enum fwd_op)op)
                par_ledger_merge(&sum, &r->ops[i].ledger);
        if (sum.n == 0)
            continue;
        if (!any)
            (void)fprintf(out, "%-14s %10s %10s %10s %10s %12s %10s %10s\n", "op", "elements", "whole", "weights",
                          "activation", "rounding", "unexpl.", "adds up");
        any = true;
        char weight[24] = "no source";
        if (sum.has_source)
            (void)snprintf(weight, sizeof weight, "%.4g", par_ledger_share(&sum, sum.weight2));
        (void)fprintf(out, "%-14s %10llu %10.4g %10s %10.4g %12.3g %10.3g %10.1g\n", fwd_op_name((enum fwd_op)op),
                      (unsigned long long)sum.n, par_ledger_share(&sum, sum.total2), weight,
                      par_ledger_share(&sum, sum.activation2), par_ledger_share(&sum, sum.rounding2),
                      par_ledger_share(&sum, sum.unexplained2), sum.gap_max);
    }
    if (!any)
        (void)fprintf(out, "UNMEASURED: not part of this run\n");
    else
        (void)fprintf(out,
                      "adds up: largest relative gap, of any element, between the whole and the sum of its parts\n");
}

static void put_op_head(FILE *out) {
    (void)fprintf(out, "%-20s %-4s %-11s %13s %11s %9s %9s %9s %9s\n", "op", "side", "verdict", "judged", "over",
                  "ratio", "p50", "p99.9", "floor");
}

static void put_finding(const struct par_report_finding *f, FILE *out) {
    enum { INDENT = 25, TEXT = INDENT + 7 };
    if (f->where) {
        (void)fprintf(out, "%*swhere  ", INDENT, "");
        par_put_wrapped(out, TEXT, WIDTH, f->where);
    }
    if (f->bytes) {
        (void)fprintf(out, "%*sread   ", INDENT, "");
        par_put_wrapped(out, TEXT, WIDTH, f->bytes);
    }
    if (!f->why)
        return;
    (void)fprintf(out, "%*swhy    ", INDENT, "");
    char text[512];
    (void)snprintf(text, sizeof text, "%s", f->why);
    if (f->signature)
        (void)snprintf(text, sizeof text, "%s (%s, %.3g %% of the accused elements): %s", f->signature, f->hypothesis,
                       100 * f->share, f->why);
    par_put_wrapped(out, TEXT, WIDTH, text);
    if (f->museum) {
        (void)fprintf(out, "%*slike   ", INDENT, "");
        par_put_wrapped(out, TEXT, WIDTH, f->museum);
    }
}

static void put_op_row(const struct par_report_op *op, enum par_side side, FILE *out) {
    char label[48];
    const struct par_op_row *row = par_side_row(op, side);
    (void)fprintf(out, "%-20s %-4s %-11s %13llu %11llu", par_op_label(op->op, op->layer, label, sizeof label),
                  side == PAR_SIDE_REF ? "ref" : "cand", par_verdict_name(par_row_shown(row)),
                  (unsigned long long)row->n_judged, (unsigned long long)row->n_over);
    if (row->n_judged) {
        (void)fprintf(out, " %9.3g %9.3g %9.3g %9.2g\n", row->ratio_max, row->ratio_p50, row->ratio_p999,
                      row->floor_p50);
        (void)fprintf(out, "%25sworst: position %d, row %lld: got %.9g, expected %.9g, bound %.3g\n", "",
                      row->worst.pos, (long long)row->worst.row, row->worst.got, row->worst.expected, row->worst.bound);
    } else {
        (void)fputc('\n', out);
    }
    if (row->note[0]) {
        (void)fprintf(out, "%25s", "");
        par_put_wrapped(out, 25, WIDTH, row->note);
    }
    put_finding(side == PAR_SIDE_REF ? &op->ref_finding : &op->cand_finding, out);
    if (row->n_nonfinite_got || row->n_nonfinite_expected)
        (void)fprintf(out, "%25snot finite: %llu got, %llu expected, %llu of them differ\n", "",
                      (unsigned long long)row->n_nonfinite_got, (unsigned long long)row->n_nonfinite_expected,
                      (unsigned long long)row->n_nonfinite_mismatch);
}

static void put_guilty_ops(const struct par_report *r, FILE *out) {
    int n_guilty = 0;
    put_title(out, "guilty ops: outside the rounding bound, given their own inputs");
    for (int i = 0; i < r->n_ops; i++)
        for (int side = PAR_SIDE_REF; side <= PAR_SIDE_CAND; side++) {
            if (!par_verdict_accuses(par_row_shown(par_side_row(&r->ops[i], (enum par_side)side))))
                continue;
            if (n_guilty == 0)
                put_op_head(out);
            if (++n_guilty <= MOST_GUILTY)
                put_op_row(&r->ops[i], (enum par_side)side, out);
        }
    if (n_guilty > MOST_GUILTY)
        (void)fprintf(out, "and %d more (--full lists them)\n", n_guilty - MOST_GUILTY);
    if (n_guilty == 0 && par_report_n_judged(r, PAR_SIDE_CAND) + par_report_n_judged(r, PAR_SIDE_REF) == 0)
        (void)fprintf(out, "UNMEASURED: no op was judged\n");
    else if (n_guilty == 0)
        (void)fprintf(out, "none among those judged\n");
}

static void put_all_ops(const struct par_report *r, FILE *out) {
    put_title(out, "every op of every layer");
    put_op_head(out);
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_report_op *op = &r->ops[i];
        put_op_row(op, PAR_SIDE_REF, out);
        put_op_row(op, PAR_SIDE_CAND, out);
        if (op->has_free_run)
            (void)fprintf(out,
                          "%25sfree run: rel L2 %.3g, cosine %.9f, max |d| %.3g at %lld (%.5g, %.5g), p50 %.2g, "
                          "p99 %.2g\n",
                          "", op->free_run.rel_l2, op->free_run.cosine, op->free_run.max_abs,
                          (long long)op->free_run.max_at, op->free_run.max_ref, op->free_run.max_got, op->free_run.p50,
                          op->free_run.p99);
    }
}

static void put_group(const struct par_op_group *g, FILE *out) {
    char ratio[16] = "-", layer[16] = "-";
    if (g->n_judged)
        (void)snprintf(ratio, sizeof ratio, "%.3g", g->worst->ratio_max);
    if (g->n_judged && g->worst->layer >= 0)
        (void)snprintf(layer, sizeof layer, "%d", g->worst->layer);
    if (g->n_rows == 0)
        (void)fprintf(out, " | %-10s %10s %8s %8s %4s", "absent", "", "", "", "");
    else
        (void)fprintf(out, " | %-10s %10llu %8llu %8s %4s", par_verdict_name(g->verdict),
                      (unsigned long long)g->n_judged, (unsigned long long)g->n_over, ratio, layer);
}

/* Where a side shows floats in place of the quantised bytes it multiplied: what of the bounds that costs. */
static void put_tie_slack(const struct par_report *r, enum par_side side, FILE *out) {
    int n = 0, worst = 0;
    double largest = -1;
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = par_side_row(&r->ops[i], side);
        if (!(row->tie_bound > 0))
            continue;
        n++;
        if (row->tie_slack / row->tie_bound > largest) {
            largest = row->tie_slack / row->tie_bound;
            worst = i;
        }
    }
    char label[64];
    if (n)
        (void)fprintf(out, "%s: %d ops hide their quantised input: tie slack up to %.3g %% of the bounds (%s)\n",
                      par_side_path(r, side), n, 100 * largest,
                      par_op_label(r->ops[worst].op, r->ops[worst].layer, label, sizeof label));
}

/* How sharp the measurement of each kind of op is: a bound that is too generous hides bugs as surely as one that is too
 * tight invents them. */
static void put_sharpness(const struct par_report *r, FILE *out) {
    put_title(out, "how sharp it is: the candidate's residue ratios, and the smallest change that would have shown");
    (void)fprintf(out, "%-14s %9s %9s %9s %12s\n", "op", "p50", "p99.9", "floor", "systematic");
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        double p50 = 0, p999 = 0, floor = 0;
        uint64_t n_systematic = 0, n_judged = 0;
        int n_review = 0, n_rows = 0;
        for (int i = 0; i < r->n_ops; i++) {
            const struct par_op_row *row = par_side_row(&r->ops[i], PAR_SIDE_CAND);
            if (r->ops[i].op != (enum fwd_op)op || row->n_judged == 0)
                continue;
            n_rows++;
            n_judged += row->n_judged;
            p50 = fmax(p50, row->ratio_p50);
            p999 = fmax(p999, row->ratio_p999);
            floor = fmax(floor, row->floor_p50);
            n_systematic += row->n_systematic;
            n_review += row->review;
        }
        if (n_rows == 0)
            continue;
        (void)fprintf(out, "%-14s %9.3g %9.3g %9.2g %12llu", fwd_op_name((enum fwd_op)op), p50, p999, floor,
                      (unsigned long long)n_systematic);
        if (floor == 0)
            (void)fprintf(out, "   bit for bit");
        if (n_review)
            (void)fprintf(out, "   REVIEW: in %d of %d layers the bound may be too generous", n_review, n_rows);
        (void)fputc('\n', out);
    }
    (void)fprintf(out,
                  "Largest of the layers' values. floor: relative change that half of an op's elements would have\n"
                  "shown; systematic: over the bound, and explained by adding up in the declared order\n");
}

static void put_op_kinds(const struct par_report *r, FILE *out) {
    put_title(out, "ops by kind, over all layers (ratio: |got - expected| / bound, at most 1 for a correct op)");
    (void)fprintf(out, "%-14s | %-44s | %s\n", "", par_side_path(r, PAR_SIDE_REF), par_side_path(r, PAR_SIDE_CAND));
    (void)fprintf(out, "%-14s", "op");
    for (int side = PAR_SIDE_REF; side <= PAR_SIDE_CAND; side++)
        (void)fprintf(out, " | %-10s %10s %8s %8s %4s", "verdict", "judged", "over", "ratio", "at");
    (void)fputc('\n', out);
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        struct par_op_group ref, cand;
        par_op_group_fill(r, PAR_SIDE_REF, (enum fwd_op)op, &ref);
        par_op_group_fill(r, PAR_SIDE_CAND, (enum fwd_op)op, &cand);
        if (ref.n_rows == 0 && cand.n_rows == 0)
            continue;
        (void)fprintf(out, "%-14s", fwd_op_name((enum fwd_op)op));
        put_group(&ref, out);
        put_group(&cand, out);
        (void)fputc('\n', out);
    }
    put_tie_slack(r, PAR_SIDE_REF, out);
    put_tie_slack(r, PAR_SIDE_CAND, out);
}

/* "removes 98 %", or why there is no share. */
static void put_removed(const struct par_report_impact *m, FILE *out) {
    if (m->same_bits)
        (void)fprintf(out, "%-24s", "same logits");
    else if (!(m->before > 0))
        (void)fprintf(out, "%-24s", "within the spread anyway");
    else if (m->removes > 0.9995)
        (void)fprintf(out, "%-24s", "removes all of it");
    else if (m->removes >= 0)
        (void)fprintf(out, "removes %5.1f %%         ", 100 * m->removes);
    else
        (void)fprintf(out, "%-24s", "makes it worse");
}

/* What each guilty op does to the logits. */
static void put_impact(const struct par_report *r, FILE *out) {
    if (r->n_impact == 0)
        return;
    put_title(out, "impact: guilty ops replaced by the spec's value, the path run on; what that does to the logits");
    (void)fprintf(out, "Divergence: distance to the reference beyond the spread, summed over %d positions: %.4g\n",
                  r->impact[0].n_positions, r->impact[0].before);
    bool ref_guilty = false;
    for (int i = 0; i < r->n_ops; i++)
        ref_guilty = ref_guilty || par_verdict_accuses(par_row_shown(par_side_row(&r->ops[i], PAR_SIDE_REF)));
    if (ref_guilty)
        (void)fprintf(out, "The reference is guilty too: a distance to it is no measure of harm.\n");
    for (int i = 0; i < r->n_impact; i++) {
        const struct par_report_impact *m = &r->impact[i];
        (void)fprintf(out, "%-52s ", text_or(m->what, "?"));
        put_removed(m, out);
        if (m->judged && m->n_accused)
            (void)fprintf(out, "  %d ops still accused\n", m->n_accused);
        else
            (void)fprintf(out, "%s\n", m->judged ? "  nothing accused any more" : "");
    }
}

static void put_arms(const struct par_report *r, enum par_report_detail detail, FILE *out) {
    put_title(out, "arms: one knob or op flipped");
    if (r->n_arms == 0)
        (void)fprintf(out, "UNMEASURED: no arm was run\n");
    else
        (void)fprintf(out, "%-28s %-4s %-22s %10s %10s  %s\n", "arm", "hyp", "bits", "distance", "base", "result");
    for (int i = 0; i < r->n_arms; i++) {
        const struct par_report_arm *a = &r->arms[i];
        const char *bits = !a->ran               ? "not run"
                           : a->same_bits        ? a->expect_same_bits ? "same, as expected" : "same"
                           : a->expect_same_bits ? "NOT THE SAME"
                                                 : "differ, as they may";
        (void)fprintf(out, "%-28s %-4s %-22s ", text_or(a->id, "?"), text_or(a->hypothesis, "-"), bits);
        if (a->ran)
            (void)fprintf(out, "%10.3g %10.3g  ", a->distance_to_ref, a->distance_base);
        else
            (void)fprintf(out, "%10s %10s  ", "-", "-");
        par_put_wrapped(out, 80, WIDTH, text_or(a->result, text_or(a->what, "")));
        if (a->command && (detail == PAR_DETAIL_FULL || (a->ran && a->expect_same_bits && !a->same_bits)))
            put_command(out, "", a->command);
    }
}

static void put_cases(const struct par_report *r, FILE *out) {
    if (r->n_cases == 0)
        return;
    put_title(out, "reproducers: one op cut out of its model");
    for (int i = 0; i < r->n_cases; i++) {
        const struct par_report_case *c = &r->cases[i];
        char label[48];
        (void)fprintf(out, "%-20s %-4s ", par_op_label(c->op, c->layer, label, sizeof label),
                      c->reference ? "ref" : "cand");
        if (c->path)
            (void)fprintf(out, "%llu bytes: %d weight rows, %d blocks, %d input rows; %s\n",
                          (unsigned long long)c->n_bytes, c->n_rows, c->n_blocks, c->n_positions,
                          c->verified ? "a fresh process fails for the same reason" : "not verified");
        else
            (void)fprintf(out, "not written\n");
        if (c->note && *c->note)
            put_line(out, "", c->note);
        if (c->command)
            put_command(out, "", c->command);
    }
}

static void put_hypotheses(const struct par_report *r, FILE *out) {
    put_title(out, "hypotheses");
    if (r->n_hypotheses == 0)
        (void)fprintf(out, "UNTESTED: none was evaluated\n");
    for (int i = 0; i < r->n_hypotheses; i++) {
        const struct par_report_hypothesis *h = &r->hypotheses[i];
        (void)fprintf(out, "%-4s%-11s", text_or(h->id, "?"), text_or(h->verdict, "UNTESTED"));
        par_put_wrapped(out, LABEL, WIDTH, h->title);
        if (h->evidence && *h->evidence)
            put_line(out, "", h->evidence);
        if (h->command && *h->command)
            put_command(out, "", h->command);
    }
}

static void put_contracts(const struct par_report *r, FILE *out) {
    put_title(out, "contracts");
    if (r->n_contracts == 0)
        (void)fprintf(out, "UNMEASURED: none was evaluated\n");
    const char *contract = "";
    for (int i = 0; i < r->n_contracts; i++) {
        const struct par_report_contract *c = &r->contracts[i];
        if (strcmp(contract, text_or(c->contract, "")) != 0) {
            contract = text_or(c->contract, "");
            par_put_plain(out, contract);
            (void)fputc('\n', out);
        }
        (void)fprintf(out, "  %-11s %-38s ", par_verdict_name(c->verdict), text_or(c->id, "?"));
        par_put_wrapped(out, 53, WIDTH, c->rule);
        if (c->detail && *c->detail)
            put_line(out, "", c->detail);
    }
}

static void put_cells(const struct par_report *r, FILE *out) {
    if (r->n_cells)
        (void)fprintf(out, "%-12s %-10s %-12s %20s %20s %20s\n", "path", "schedule", "ops", "position 0", "prompt",
                      "decode steps");
    for (int i = 0; i < r->n_cells; i++) {
        const struct par_report_cells *c = &r->cells[i];
        if (c->n_total[0] + c->n_total[1] + c->n_total[2] == 0)
            continue;
        (void)fprintf(out, "%-12s %-10s %-12s", text_or(c->path, "-"), text_or(c->schedule, "-"), c->ops);
        for (int k = 0; k < PAR_POSITION_CLASSES; k++) {
            char text[48] = "-";
            if (c->n_total[k])
                (void)snprintf(text, sizeof text, "%lld of %lld", (long long)c->n_done[k], (long long)c->n_total[k]);
            if (c->n_total[k] && c->n_done[k] == 0)
                (void)snprintf(text, sizeof text, "UNMEASURED");
            (void)fprintf(out, " %20s", text);
        }
        (void)fputc('\n', out);
    }
}

static void put_coverage(const struct par_report *r, FILE *out) {
    put_title(out, "coverage");
    if (r->n_coverage == 0)
        (void)fprintf(out, "UNMEASURED: nothing was covered\n");
    for (int i = 0; i < r->n_coverage; i++) {
        const struct par_report_coverage *c = &r->coverage[i];
        const char *state = c->n_done == 0 ? "UNMEASURED" : c->n_done < c->n_total ? "part" : "all";
        (void)fprintf(out, "%-12s %-10s %-10s %12lld of %-12lld ", text_or(c->path, "-"), text_or(c->schedule, "-"),
                      state, (long long)c->n_done, (long long)c->n_total);
        par_put_wrapped(out, 64, WIDTH, c->what);
    }
    put_cells(r, out);
}

static void put_pairs(const char *title, const struct par_report_pair *pairs, int n, FILE *out) {
    if (n == 0)
        return;
    put_title(out, title);
    for (int i = 0; i < n; i++) {
        int width = par_plain_width(pairs[i].name);
        par_put_plain(out, pairs[i].name);
        (void)fprintf(out, "%*s", width < 23 ? 24 - width : 1, "");
        par_put_wrapped(out, width < 23 ? 24 : width + 1, WIDTH, text_or(pairs[i].value, "not known"));
    }
}

static void put_proofs(const struct par_report *r, FILE *out) {
    put_title(out, "proofs that the measurement is good");
    if (r->n_proofs == 0)
        (void)fprintf(out, "UNMEASURED: none was made\n");
    for (int i = 0; i < r->n_proofs; i++) {
        (void)fprintf(out, "%-11s %-30s ", par_verdict_name(r->proofs[i].verdict), text_or(r->proofs[i].name, "?"));
        par_put_wrapped(out, 43, WIDTH, r->proofs[i].value);
    }
}

void par_report_text(const struct par_report *r, enum par_report_detail detail, FILE *out) {
    put_first_page(r, out);
    if (detail == PAR_DETAIL_BRIEF)
        return;
    put_input(r, out);
    put_logits(r, detail, out);
    put_ledger(r, out);
    put_profile(r, out);
    put_guilty_ops(r, out);
    put_op_kinds(r, out);
    put_sharpness(r, out);
    if (detail == PAR_DETAIL_FULL)
        put_all_ops(r, out);
    put_impact(r, out);
    put_arms(r, detail, out);
    put_cases(r, out);
    put_hypotheses(r, out);
    put_contracts(r, out);
    put_coverage(r, out);
    put_pairs("configuration, read twice", r->config, r->n_config, out);
    put_pairs("what really ran", r->variants, r->n_variants, out);
    put_proofs(r, out);
    put_pairs("receipt", r->receipt, r->n_receipt, out);
}
