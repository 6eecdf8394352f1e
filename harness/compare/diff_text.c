/* A comparison of two captures as text and as JSON. */
#include "compare/diff.h"
#include "report/json_put.h"
#include "report/report_escape.h"

#include <cjson/cJSON.h>

#define DIFF_SCHEMA "parity-diff-v1"

enum { WIDTH = 110, LABEL = 11 };

static void put_side(FILE *out, const char *label, const struct par_capture *c) {
    static const char *const keys[] = {PAR_FACT_PATH, PAR_FACT_SCHEDULE, PAR_FACT_CHUNK, PAR_FACT_KNOBS};
    (void)fprintf(out, "%-*s", LABEL, label);
    par_put_plain(out, par_capture_name(c));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *value = par_capture_fact(c, keys[i]);
        if (!value)
            continue;
        (void)fprintf(out, "%s%s ", i ? ", " : ": ", keys[i]);
        par_put_plain(out, value);
    }
    (void)fputc('\n', out);
}

static void put_row(FILE *out, const struct par_diff_row *row) {
    (void)fprintf(out, "%-18s %9lld %11llu %11llu", row->label, (long long)row->n_positions,
                  (unsigned long long)row->m.n, (unsigned long long)row->n_differ);
    if (row->m.max_at >= 0)
        (void)fprintf(out, " %10.3g %10.3g %10.3g %12.9f", row->m.max_abs, row->m.rel_l2, row->m.p99, row->m.cosine);
    (void)fputc('\n', out);
    if (row->n_only_a || row->n_only_b)
        (void)fprintf(out, "%18s UNMEASURED: %lld positions in a alone, %lld in b alone\n", "",
                      (long long)row->n_only_a, (long long)row->n_only_b);
    if (row->m.n_nonfinite_mismatch)
        (void)fprintf(out, "%18s NONFINITE: %llu values; NaN %llu in a, %llu in b; infinity %llu and %llu\n", "",
                      (unsigned long long)row->m.n_nonfinite_mismatch, (unsigned long long)row->m.n_nan_ref,
                      (unsigned long long)row->m.n_nan_got, (unsigned long long)row->m.n_inf_ref,
                      (unsigned long long)row->m.n_inf_got);
}

void par_diff_text(const struct par_diff *d, bool all, FILE *out) {
    (void)fprintf(out, "%-*s%s (exit %d)\n", LABEL, "verdict", par_verdict_name(d->verdict),
                  par_verdict_exit(d->verdict));
    (void)fprintf(out, "%-*s", LABEL, "because");
    par_put_wrapped(out, LABEL, WIDTH, d->why);
    put_side(out, "a", d->a);
    put_side(out, "b", d->b);
    if (d->asserted[0]) {
        (void)fprintf(out, "%-*s", LABEL, "asserted");
        par_put_wrapped(out, LABEL, WIDTH, d->asserted);
    }
    if (d->verdict == PAR_REFUSED)
        return;
    (void)fprintf(
        out, "%-*s%llu values of %d taps; %d taps the same, %d not; %d in part or whole in a alone, %d in b alone\n",
        LABEL, "compared", (unsigned long long)d->n_values, d->n_compared, d->n_same, d->n_compared - d->n_same,
        d->n_only_a, d->n_only_b);
    if (d->first >= 0) {
        const struct par_diff_row *row = &d->rows[d->first];
        (void)fprintf(out, "%-*s%s at position %d, value %lld: a %.9g (%a), b %.9g (%a)\n", LABEL, "first", row->label,
                      row->first_pos, (long long)row->first_at, row->first_a, row->first_a, row->first_b, row->first_b);
    }
    int n_hidden = 0;
    (void)fprintf(out, "\n%-18s %9s %11s %11s %10s %10s %10s %12s\n", "tap", "positions", "values", "differ", "max |d|",
                  "rel L2", "p99", "cosine");
    for (int i = 0; i < d->n_rows; i++) {
        const struct par_diff_row *row = &d->rows[i];
        if (all || row->n_differ || row->n_only_a || row->n_only_b)
            put_row(out, row);
        else
            n_hidden++;
    }
    if (n_hidden)
        (void)fprintf(out, "and %d taps that are the same (--all lists them)\n", n_hidden);
}

static bool put_facts(cJSON *o, const struct par_capture *c) {
    const char *key, *value;
    if (!o || !par_put_text(o, "file", par_capture_name(c)))
        return false;
    cJSON *facts = par_put_object(o, "facts");
    bool ok = facts != NULL;
    for (size_t i = 0; ok && par_capture_fact_at(c, i, &key, &value); i++)
        ok = par_put_text(facts, key, value);
    return ok;
}

static bool put_rows(cJSON *array, const struct par_diff *d) {
    for (int i = 0; i < d->n_rows; i++) {
        const struct par_diff_row *row = &d->rows[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "tap", row->label) || !par_put_int(o, "n_positions", row->n_positions) ||
            !par_put_int(o, "n_only_a", row->n_only_a) || !par_put_int(o, "n_only_b", row->n_only_b) ||
            !par_put_count(o, "n_differ", row->n_differ) || !par_put_int(o, "width", row->width))
            return false;
        if (row->n_differ &&
            (!par_put_int(o, "first_position", row->first_pos) || !par_put_int(o, "first_value", row->first_at) ||
             !par_put_exact(o, "first_a", row->first_a) || !par_put_exact(o, "first_b", row->first_b)))
            return false;
        if (row->n_positions && !par_put_metrics(par_put_object(o, "metrics"), &row->m))
            return false;
    }
    return array != NULL;
}

char *par_diff_json(const struct par_diff *d) {
    cJSON *root = cJSON_CreateObject();
    bool ok = root && par_put_text(root, "schema", DIFF_SCHEMA) &&
              par_put_text(root, "verdict", par_verdict_name(d->verdict)) &&
              par_put_int(root, "exit", par_verdict_exit(d->verdict)) && par_put_text(root, "why", d->why) &&
              par_put_text(root, "asserted", d->asserted) && put_facts(par_put_object(root, "a"), d->a) &&
              put_facts(par_put_object(root, "b"), d->b) && par_put_count(root, "n_values", d->n_values) &&
              par_put_count(root, "n_differ", d->n_differ) && par_put_int(root, "n_taps_compared", d->n_compared) &&
              par_put_int(root, "n_taps_same", d->n_same) && par_put_int(root, "n_taps_only_a", d->n_only_a) &&
              par_put_int(root, "n_taps_only_b", d->n_only_b) &&
              par_put_text(root, "first", d->first < 0 ? NULL : d->rows[d->first].label) &&
              put_rows(par_put_array(root, "taps"), d);
    return par_put_finish(root, ok);
}
