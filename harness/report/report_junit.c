/* The report as JUnit XML: a test case per kind of op and side, per position of logits, per contract and per proof.
 * UNMEASURED is <skipped>, DIVERGED and NONFINITE are <failure>, MISTRUSTED and REFUSED are <error>. */
#include "report/report_escape.h"
#include "report/report_stats.h"
#include "report/report_stream.h"

#include <string.h>

struct counts {
    int n_cases, n_failures, n_errors, n_skipped;
};

static void count_case(struct counts *c, enum par_verdict v) {
    c->n_cases++;
    c->n_failures += v == PAR_DIVERGED || v == PAR_NONFINITE;
    c->n_errors += v == PAR_MISTRUSTED || v == PAR_REFUSED;
    c->n_skipped += v == PAR_UNMEASURED;
}

/* One test case; only counted when out is NULL. */
static void put_case(FILE *out, struct counts *c, const char *class_name, const char *name, enum par_verdict v,
                     const char *message) {
    count_case(c, v);
    if (!out)
        return;
    (void)fprintf(out, "    <testcase classname=\"");
    par_put_xml(out, class_name);
    (void)fprintf(out, "\" name=\"");
    par_put_xml(out, name && *name ? name : "unnamed");
    (void)fprintf(out, "\">\n");
    const char *element = v == PAR_UNMEASURED                       ? "skipped"
                          : v == PAR_MISTRUSTED || v == PAR_REFUSED ? "error"
                                                                    : "failure";
    if (v != PAR_HELD) {
        (void)fprintf(out, "      <%s ", element);
        if (v != PAR_UNMEASURED)
            (void)fprintf(out, "type=\"%s\" ", par_verdict_name(v));
        (void)fprintf(out, "message=\"");
        par_put_xml(out, message && *message ? message : par_verdict_name(v));
        (void)fprintf(out, "\"/>\n");
    } else if (message && *message) {
        (void)fprintf(out, "      <system-out>");
        par_put_xml(out, message);
        (void)fprintf(out, "</system-out>\n");
    }
    (void)fprintf(out, "    </testcase>\n");
}

/* "Qcur-3, Qcur-4, ... (and 12 more)" of the rows with this property. */
static void list_layers(const struct par_report *r, enum par_side side, enum fwd_op op, bool accused, char *buf,
                        size_t n) {
    size_t at = 0;
    int n_listed = 0, n_more = 0;
    buf[0] = 0;
    for (int i = 0; i < r->n_ops; i++) {
        enum par_verdict v = par_row_shown(par_side_row(&r->ops[i], side));
        if (r->ops[i].op != op || (accused ? !par_verdict_accuses(v) : v != PAR_UNMEASURED))
            continue;
        char label[48];
        par_op_label(op, r->ops[i].layer, label, sizeof label);
        if (n_listed == 8 || at + strlen(label) + 32 > n) {
            n_more++;
            continue;
        }
        at += (size_t)snprintf(buf + at, n - at, "%s%s", n_listed++ ? ", " : "", label);
    }
    if (n_more)
        (void)snprintf(buf + at, n - at, " and %d more", n_more);
}

static void put_op_cases(FILE *out, struct counts *c, const struct par_report *r, enum par_side side) {
    char class_name[160], name[96], message[768], layers[320];
    (void)snprintf(class_name, sizeof class_name, "parity.ops.%s", par_side_path(r, side));
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        struct par_op_group g;
        par_op_group_fill(r, side, (enum fwd_op)op, &g);
        if (g.n_rows == 0)
            continue;
        (void)snprintf(name, sizeof name, "%s (%d)", fwd_op_name((enum fwd_op)op), g.n_rows);
        list_layers(r, side, (enum fwd_op)op, par_verdict_accuses(g.verdict), layers, sizeof layers);
        if (g.verdict == PAR_HELD)
            (void)snprintf(message, sizeof message, "%llu elements judged, largest ratio %.3g",
                           (unsigned long long)g.n_judged, g.worst->ratio_max);
        else if (g.verdict == PAR_UNMEASURED)
            (void)snprintf(message, sizeof message, "%llu elements judged; not measured: %s. %s",
                           (unsigned long long)g.n_judged, layers, g.unmeasured->note);
        else
            (void)snprintf(message, sizeof message,
                           "%s: %llu of %llu elements over the bound, ratio %.3g at position %d row %lld: got %.9g, "
                           "expected %.9g, bound %.3g. %s",
                           layers, (unsigned long long)g.n_over, (unsigned long long)g.n_judged, g.worst->ratio_max,
                           g.worst->worst.pos, (long long)g.worst->worst.row, g.worst->worst.got,
                           g.worst->worst.expected, g.worst->worst.bound, g.worst->note);
        put_case(out, c, class_name, name, g.verdict, message);
    }
}

static void put_cases(FILE *out, struct counts *c, const struct par_report *r, int suite) {
    char name[96], message[512];
    switch (suite) {
    case 0:
        put_case(out, c, "parity", "verdict", par_report_shown(r), r->answer);
        break;
    case 1:
        put_op_cases(out, c, r, PAR_SIDE_REF);
        put_op_cases(out, c, r, PAR_SIDE_CAND);
        break;
    case 2:
        for (int i = 0; i < r->n_logits; i++) {
            const struct par_report_logits *l = &r->logits[i];
            (void)snprintf(name, sizeof name, "position %d", l->pos);
            (void)snprintf(message, sizeof message, "%s: top token %d and %d, distance %.3g, explained %.3g",
                           l->what ? l->what : "", (int)l->m.top_ref, (int)l->m.top_got, l->distance,
                           l->spread_distance);
            put_case(out, c, "parity.logits", name, l->verdict, message);
        }
        break;
    case 3:
        for (int i = 0; i < r->n_contracts; i++)
            put_case(out, c, r->contracts[i].contract ? r->contracts[i].contract : "parity.contracts",
                     r->contracts[i].id, r->contracts[i].verdict, r->contracts[i].detail);
        break;
    default:
        for (int i = 0; i < r->n_proofs; i++)
            put_case(out, c, "parity.proofs", r->proofs[i].name, r->proofs[i].verdict, r->proofs[i].value);
    }
}

static void put_counts(FILE *out, const struct counts *c) {
    (void)fprintf(out, " tests=\"%d\" failures=\"%d\" errors=\"%d\" skipped=\"%d\">\n", c->n_cases, c->n_failures,
                  c->n_errors, c->n_skipped);
}

char *par_report_junit_contracts(const struct par_report *r) {
    enum { CONTRACTS = 3 };
    struct counts c = {0};
    struct par_stream s;
    par_stream_begin(&s);
    if (!s.out)
        return NULL;
    put_cases(NULL, &c, r, CONTRACTS);
    (void)fprintf(s.out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"parity\"");
    put_counts(s.out, &c);
    (void)fprintf(s.out, "  <testsuite name=\"contracts\"");
    put_counts(s.out, &c);
    put_cases(s.out, &c, r, CONTRACTS);
    (void)fprintf(s.out, "  </testsuite>\n</testsuites>\n");
    return par_stream_end(&s);
}

char *par_report_junit(const struct par_report *r) {
    static const char *const suites[] = {"verdict", "ops", "logits", "contracts", "proofs"};
    enum { N_SUITES = sizeof suites / sizeof *suites };
    struct counts total = {0};
    struct par_stream s;
    par_stream_begin(&s);
    if (!s.out)
        return NULL;
    for (int i = 0; i < N_SUITES; i++)
        put_cases(NULL, &total, r, i);
    (void)fprintf(s.out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"parity\"");
    put_counts(s.out, &total);
    for (int i = 0; i < N_SUITES; i++) {
        struct counts c = {0};
        put_cases(NULL, &c, r, i);
        (void)fprintf(s.out, "  <testsuite name=\"%s\"", suites[i]);
        put_counts(s.out, &c);
        put_cases(s.out, &c, r, i);
        (void)fprintf(s.out, "  </testsuite>\n");
    }
    (void)fprintf(s.out, "</testsuites>\n");
    return par_stream_end(&s);
}
