/* A judgement as text and as JSON. Neither computes a verdict. */
#include "judge/judgement.h"

#include "report/json_put.h"
#include "report/report.h"
#include "report/report_stream.h"

#include <cjson/cJSON.h>
#include <string.h>

static bool is_accused(const struct par_op_row *row) {
    return row->verdict == PAR_DIVERGED || row->verdict == PAR_NONFINITE;
}

static void print_name(const struct par_op_row *row, FILE *out) {
    (void)fprintf(out, row->layer >= 0 ? "%s of layer %d" : "%s", fwd_op_name(row->op), row->layer);
}

/* Bounds span sixteen powers of ten: an element with a bound of 0 counts as the cap. */
static void print_worst(const struct par_op_row *row, FILE *out) {
    (void)fprintf(out, "position %d, row %lld: expected %.9g, got %.9g, bound %.3g", row->worst.pos,
                  (long long)row->worst.row, row->worst.expected, row->worst.got, row->worst.bound);
    if (row->worst.bound > 0)
        (void)fprintf(out, " (%.1f bounds off)", row->ratio_max);
}

static void print_first_page(const struct par_judgement *j, FILE *out) {
    (void)fprintf(out, "verdict    %s%s (exit %d): %s\n", par_verdict_name(j->verdict),
                  j->verdict == PAR_HELD && j->cap ? " as asserted" : "", par_verdict_exit(j->verdict), j->why);
    if (j->cap)
        (void)fprintf(out, "asserted   %s: the verdict is worth what these are\n", j->cap);
    if (j->first >= 0) {
        const struct par_judged_op *op = &j->ops[j->first];
        (void)fprintf(out, "guilty     ");
        print_name(&op->row, out);
        (void)fprintf(out, j->n_accused > 1 ? " (and %d more)\n" : "\n", j->n_accused - 1);
        if (op->where)
            (void)fprintf(out, "where      %s%s%s\n", op->where, op->bytes ? "; " : "", op->bytes ? op->bytes : "");
        (void)fprintf(out, "why        %s%s%s%s\n", op->why ? op->why : "not looked into", op->signature ? " [" : "",
                      op->signature ? op->signature : "", op->signature ? "]" : "");
        (void)fprintf(out, "worst      ");
        if (j->worst != j->first) {
            print_name(&j->ops[j->worst].row, out);
            (void)fprintf(out, ", ");
        }
        print_worst(&j->ops[j->worst].row, out);
        (void)fprintf(out, "\n");
    }
    (void)fprintf(out, "covers     %s\n", j->scope);
    (void)fprintf(out, "capture    %s (%s), %zu tensors", j->capture_path, j->kind, j->n_tensors);
    if (j->n_unknown)
        (void)fprintf(out, ", %zu of them no tap that is judged (%.60s, ..)", j->n_unknown,
                      j->unknown ? j->unknown : "");
    (void)fprintf(out, "\nmodel      %s, sha256 %.16s..\n", j->model_path, j->model_sha256);
    (void)fprintf(out, "numerics   %s\n", j->numerics);
    if (j->command)
        (void)fprintf(out, "again      %s\n", j->command);
}

static void print_row(const struct par_op_row *row, FILE *out) {
    char name[64];
    if (row->layer >= 0)
        (void)snprintf(name, sizeof name, "%s-%d", fwd_op_name(row->op), row->layer);
    else
        (void)snprintf(name, sizeof name, "%s", fwd_op_name(row->op));
    (void)fprintf(out, "  %-18s %-10s %12llu %10llu  ", name, par_verdict_name(row->verdict),
                  (unsigned long long)row->n_judged, (unsigned long long)row->n_over);
    if (row->n_judged)
        (void)fprintf(out, "%9.3g %9.3g", row->ratio_max, row->ratio_p999);
    (void)fprintf(out, "%s%s\n", row->note[0] ? "  " : "", row->note);
}

void par_judgement_text(const struct par_judgement *j, bool all, FILE *out) {
    print_first_page(j, out);
    for (int i = 0; i < j->n_misnamed; i++)
        (void)fprintf(out, "mistrusted %s (--assert tap:%s=%s says so)\n", j->misnamed[i].text,
                      fwd_op_name(j->misnamed[i].op), par_tap_form_name(j->misnamed[i].form));
    bool head = false;
    for (int i = 0; i < j->n_ops; i++) {
        if (!all && j->ops[i].row.verdict == PAR_HELD)
            continue;
        if (!head)
            (void)fprintf(out, "\n  %-18s %-10s %12s %10s  %9s %9s\n", "op", "verdict", "elements", "outside", "ratio",
                          "p99.9");
        head = true;
        print_row(&j->ops[i].row, out);
    }
    (void)fprintf(out, "\n%d ops judged, %d outside their bounds, %d UNMEASURED; %.1f s\n", j->n_judged, j->n_accused,
                  j->n_unmeasured, j->seconds);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static bool put_op(struct cJSON *array, const struct par_judged_op *op) {
    struct cJSON *o = par_push_object(array);
    const struct par_op_row *r = &op->row;
    bool ok = par_put_text(o, "op", fwd_op_name(r->op)) && par_put_int(o, "layer", r->layer) &&
              par_put_text(o, "verdict", par_verdict_name(r->verdict)) && par_put_count(o, "n_judged", r->n_judged) &&
              par_put_count(o, "n_over", r->n_over) && par_put_count(o, "n_systematic", r->n_systematic) &&
              par_put_count(o, "n_nonfinite", r->n_nonfinite_mismatch) && par_put_real(o, "ratio_max", r->ratio_max) &&
              par_put_real(o, "ratio_p999", r->ratio_p999) && par_put_text(o, "note", r->note);
    if (!ok || !is_accused(r))
        return ok;
    return par_put_int(o, "worst_pos", r->worst.pos) && par_put_int(o, "worst_row", r->worst.row) &&
           par_put_exact(o, "worst_expected", r->worst.expected) && par_put_exact(o, "worst_got", r->worst.got) &&
           par_put_exact(o, "worst_bound", r->worst.bound) && par_put_text(o, "where", op->where) &&
           par_put_text(o, "bytes", op->bytes) && par_put_text(o, "why", op->why) &&
           par_put_text(o, "signature", op->signature) && par_put_text(o, "hypothesis", op->hypothesis) &&
           par_put_text(o, "museum", op->museum);
}

static bool put_misnamed(struct cJSON *array, const struct par_misnamed *m) {
    struct cJSON *o = par_push_object(array);
    return par_put_text(o, "op", fwd_op_name(m->op)) && par_put_int(o, "layer", m->layer) &&
           par_put_text(o, "form", par_tap_form_name(m->form)) && par_put_text(o, "what", m->text);
}

static bool put_head(struct cJSON *root, const struct par_judgement *j) {
    return par_put_text(root, "schema", PAR_JUDGEMENT_SCHEMA) &&
           par_put_text(root, "verdict", par_verdict_name(j->verdict)) &&
           par_put_int(root, "exit", par_verdict_exit(j->verdict)) && par_put_text(root, "why", j->why) &&
           par_put_text(root, "asserted", j->cap) && par_put_text(root, "covers", j->scope) &&
           par_put_text(root, "capture", j->capture_path) && par_put_text(root, "kind", j->kind) &&
           par_put_text(root, "model", j->model_path) && par_put_text(root, "model_sha256", j->model_sha256) &&
           par_put_text(root, "numerics", j->numerics) && par_put_text(root, "command", j->command) &&
           par_put_text(root, "guilty", j->first >= 0 ? fwd_op_name(j->ops[j->first].row.op) : NULL) &&
           par_put_int(root, "guilty_layer", j->first >= 0 ? j->ops[j->first].row.layer : -1) &&
           par_put_int(root, "n_ops", j->n_ops) && par_put_int(root, "n_judged", j->n_judged) &&
           par_put_int(root, "n_accused", j->n_accused) && par_put_int(root, "n_unmeasured", j->n_unmeasured) &&
           par_put_count(root, "n_tensors", j->n_tensors) && par_put_count(root, "n_unknown", j->n_unknown) &&
           par_put_int(root, "n_ids", j->n_ids) && par_put_int(root, "n_positions", j->n_positions) &&
           par_put_count(root, "n_elements", j->n_elements) && par_put_count(root, "n_systematic", j->n_systematic) &&
           par_put_real(root, "seconds", j->seconds);
}

static char *to_json(const struct par_judgement *j, bool whole) {
    struct cJSON *root = cJSON_CreateObject();
    bool ok = root && put_head(root, j);
    struct cJSON *misnamed = ok ? par_put_array(root, "misnamed") : NULL;
    ok = misnamed != NULL;
    for (int i = 0; ok && i < j->n_misnamed; i++)
        ok = put_misnamed(misnamed, &j->misnamed[i]);
    struct cJSON *ops = ok && whole ? par_put_array(root, "ops") : NULL;
    ok = ok && (!whole || ops);
    for (int i = 0; ok && whole && i < j->n_ops; i++)
        ok = put_op(ops, &j->ops[i]);
    return par_put_finish(root, ok);
}

char *par_judgement_json(const struct par_judgement *j) {
    return to_json(j, true);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static char *to_text(const struct par_judgement *j) {
    struct par_stream s;
    par_stream_begin(&s);
    if (s.out)
        par_judgement_text(j, true, s.out);
    return par_stream_end(&s);
}

static enum fwd_status write_one(const char *dir, const char *name, char *text, struct fwd_error *err) {
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    enum fwd_status rc = FWD_OK;
    if (!text)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s/%s: no memory", dir, name);
    else if (n < 0 || (size_t)n >= sizeof path)
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s/%s: a name of %d bytes", dir, name, n);
    else
        rc = fwd_file_write(path, text, strlen(text), err);
    fwd_free(text);
    return rc;
}

enum fwd_status par_judgement_write(const struct par_judgement *j, const char *dir, struct fwd_error *err) {
    FWD_TRY(par_report_make_folder(dir, err));
    FWD_TRY(write_one(dir, "judgement.txt", to_text(j), err));
    FWD_TRY(write_one(dir, "judgement.json", to_json(j, true), err));
    return write_one(dir, "verdict.json", to_json(j, false), err);
}
