/* The report as Markdown: the first page, and the tables a person pastes into an issue. */
#include "report/report_escape.h"
#include "report/report_stats.h"
#include "report/report_stream.h"

#include <string.h>

enum { MOST_ROWS = 50 };

static void put_fact(FILE *out, const char *name, const char *value) {
    (void)fprintf(out, "| %s | ", name);
    par_put_markdown(out, value && *value ? value : "not known");
    (void)fprintf(out, " |\n");
}

/* A fenced block: longer than any run of backquotes inside it. */
static void put_code(FILE *out, const char *text) {
    int longest = 2, run = 0;
    for (const char *p = text ? text : ""; *p; p++) {
        run = *p == '`' ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    for (int fence = 0; fence < 2; fence++) {
        for (int i = 0; i <= longest; i++)
            (void)fputc('`', out);
        (void)fputc('\n', out);
        if (fence == 0) {
            par_put_plain(out, text);
            (void)fputc('\n', out);
        }
    }
}

static void put_first_page(const struct par_report *r, FILE *out) {
    enum par_verdict shown = par_report_shown(r);
    (void)fprintf(out, "# parity: %s\n\n| | |\n| --- | --- |\n", par_verdict_name(shown));
    put_fact(out, "bug or noise", r->answer);
    put_fact(out, "which side", r->side);
    put_fact(out, "guilty op", r->guilty);
    put_fact(out, "worst element", r->worst);
    put_fact(out, "tokens", r->tokens);
    put_fact(out, "covers", r->scope);
    put_fact(out, "reference", r->ref_path);
    put_fact(out, "candidate", r->cand_path);
    put_fact(out, "model", r->model_path);
    put_fact(out, "model sha256", r->model_sha256);
    (void)fprintf(out, "| judged | %llu elements of the candidate, %llu of the reference, %d positions of logits |\n\n",
                  (unsigned long long)par_report_n_judged(r, PAR_SIDE_CAND),
                  (unsigned long long)par_report_n_judged(r, PAR_SIDE_REF), r->n_logits);
    (void)fprintf(out, "Reproduce:\n\n");
    put_code(out, r->command);
}

static void put_guilty(const struct par_report *r, FILE *out) {
    int n = 0;
    for (int i = 0; i < r->n_ops; i++)
        for (int side = PAR_SIDE_REF; side <= PAR_SIDE_CAND; side++) {
            char label[48];
            const struct par_op_row *row = par_side_row(&r->ops[i], (enum par_side)side);
            if (!par_verdict_accuses(par_row_shown(row)))
                continue;
            if (n == 0)
                (void)fprintf(out,
                              "\n## Guilty ops\n\n| op | side | verdict | over / judged | ratio | position, row | "
                              "got | expected | bound |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
            if (++n > MOST_ROWS)
                continue;
            (void)fprintf(out, "| %s | %s | %s | %llu / %llu | %.3g | %d, %lld | %.9g | %.9g | %.3g |\n",
                          par_op_label(r->ops[i].op, r->ops[i].layer, label, sizeof label),
                          side == PAR_SIDE_REF ? "reference" : "candidate", par_verdict_name(row->verdict),
                          (unsigned long long)row->n_over, (unsigned long long)row->n_judged, row->ratio_max,
                          row->worst.pos, (long long)row->worst.row, row->worst.got, row->worst.expected,
                          row->worst.bound);
        }
    if (n > MOST_ROWS)
        (void)fprintf(out, "\nand %d more.\n", n - MOST_ROWS);
}

static void put_logits(const struct par_report *r, FILE *out) {
    int n = 0;
    (void)fprintf(out, "\n## Logits\n\n");
    if (r->n_logits == 0) {
        (void)fprintf(out, "UNMEASURED: no position's logits were compared.\n");
        return;
    }
    (void)fprintf(out, "| position | verdict | top ref | top got | margin | distance | explained | KL | what |\n"
                       "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < r->n_logits; i++) {
        const struct par_report_logits *l = &r->logits[i];
        bool shown = r->n_logits <= MOST_ROWS || l->verdict != PAR_HELD || l->m.top_ref != l->m.top_got ||
                     i + 1 == r->n_logits || r->logits[i + 1].decode != l->decode;
        if (!shown || n >= 2 * MOST_ROWS)
            continue;
        n++;
        (void)fprintf(out, "| %d%s | %s | %d | %d | %.3g | %.3g | %.3g | %.2g | ", l->pos, l->decode ? " (decode)" : "",
                      par_verdict_name(l->verdict), (int)l->m.top_ref, (int)l->m.top_got, l->m.margin_ref, l->distance,
                      l->spread_distance, l->m.kl);
        par_put_markdown(out, l->what);
        (void)fprintf(out, " |\n");
    }
    if (n < r->n_logits)
        (void)fprintf(out, "\n%d more positions are in report.json.\n", r->n_logits - n);
}

static void put_cells(FILE *out, int n, const char *const *cells) {
    for (int i = 0; i < n; i++) {
        (void)fprintf(out, "| ");
        par_put_markdown(out, cells[i]);
        (void)fputc(' ', out);
    }
    (void)fprintf(out, "|\n");
}

static void put_tables(const struct par_report *r, FILE *out) {
    if (r->n_hypotheses)
        (void)fprintf(out, "\n## Hypotheses\n\n| | | verdict | evidence |\n| --- | --- | --- | --- |\n");
    for (int i = 0; i < r->n_hypotheses; i++) {
        const struct par_report_hypothesis *h = &r->hypotheses[i];
        put_cells(out, 4, (const char *const[]){h->id, h->title, h->verdict, h->evidence});
    }
    if (r->n_impact)
        (void)fprintf(out, "\n## Impact\n\n| replaced by the spec's | of the divergence removed |\n| --- | --- |\n");
    for (int i = 0; i < r->n_impact; i++) {
        char share[32] = "within the spread anyway";
        if (r->impact[i].before > 0)
            (void)snprintf(share, sizeof share, "%.1f %%", 100 * r->impact[i].removes);
        put_cells(out, 2, (const char *const[]){r->impact[i].what, share});
    }
    if (r->n_arms)
        (void)fprintf(out, "\n## Arms\n\n| arm | hypothesis | bits | result |\n| --- | --- | --- | --- |\n");
    for (int i = 0; i < r->n_arms; i++) {
        const struct par_report_arm *a = &r->arms[i];
        const char *bits = !a->ran               ? "not run"
                           : a->same_bits        ? "same"
                           : a->expect_same_bits ? "NOT THE SAME"
                                                 : "differ";
        put_cells(out, 4, (const char *const[]){a->id, a->hypothesis, bits, a->result});
    }
    if (r->n_contracts)
        (void)fprintf(out, "\n## Contracts\n\n| id | verdict | rule | detail |\n| --- | --- | --- | --- |\n");
    for (int i = 0; i < r->n_contracts; i++) {
        const struct par_report_contract *c = &r->contracts[i];
        put_cells(out, 4, (const char *const[]){c->id, par_verdict_name(c->verdict), c->rule, c->detail});
    }
    (void)fprintf(out, "\n## Coverage\n\n| path | schedule | what | done | of |\n| --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < r->n_coverage; i++) {
        char done[32], total[32];
        const struct par_report_coverage *c = &r->coverage[i];
        (void)snprintf(done, sizeof done, "%lld", (long long)c->n_done);
        (void)snprintf(total, sizeof total, "%lld", (long long)c->n_total);
        put_cells(out, 5, (const char *const[]){c->path, c->schedule, c->what, c->n_done ? done : "UNMEASURED", total});
    }
    if (r->n_proofs)
        (void)fprintf(out, "\n## Proofs\n\n| proof | verdict | |\n| --- | --- | --- |\n");
    for (int i = 0; i < r->n_proofs; i++)
        put_cells(out, 3,
                  (const char *const[]){r->proofs[i].name, par_verdict_name(r->proofs[i].verdict), r->proofs[i].value});
    if (r->n_receipt)
        (void)fprintf(out, "\n## Receipt\n\n| | |\n| --- | --- |\n");
    for (int i = 0; i < r->n_receipt; i++)
        put_cells(out, 2, (const char *const[]){r->receipt[i].name, r->receipt[i].value});
}

char *par_report_markdown(const struct par_report *r) {
    struct par_stream s;
    par_stream_begin(&s);
    if (!s.out)
        return NULL;
    put_first_page(r, s.out);
    put_guilty(r, s.out);
    put_logits(r, s.out);
    put_tables(r, s.out);
    return par_stream_end(&s);
}
