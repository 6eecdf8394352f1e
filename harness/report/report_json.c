/* The report as JSON. Reals are written with 17 digits, so that reading them back gives the same bits; where a bit
 * matters (worst elements, logits) the hexadecimal form stands beside it. Not-finite reals are strings ("NaN",
 * "Infinity", "-Infinity"), hashes are "0x..." strings, absent strings null. */
#include "report/report_escape.h"
#include "report/report_stats.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

#define VERDICT_SCHEMA "parity-verdict-v1"

/* Every put_* returns false when memory is out. */
static bool put_item(cJSON *o, const char *key, cJSON *item) {
    if (item && cJSON_AddItemToObject(o, key, item))
        return true;
    cJSON_Delete(item);
    return false;
}

static bool put_text(cJSON *o, const char *key, const char *s) {
    if (!s)
        return put_item(o, key, cJSON_CreateNull());
    char *clean = par_utf8_clean(s);
    bool ok = clean && put_item(o, key, cJSON_CreateString(clean));
    fwd_free(clean);
    return ok;
}

static bool put_bool(cJSON *o, const char *key, bool b) {
    return put_item(o, key, cJSON_CreateBool(b));
}

static bool put_int(cJSON *o, const char *key, int64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "%lld", (long long)x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

static bool put_count(cJSON *o, const char *key, uint64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "%llu", (unsigned long long)x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

static bool put_hash(cJSON *o, const char *key, uint64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "0x%016llx", (unsigned long long)x);
    return put_item(o, key, cJSON_CreateString(buf));
}

static const char *nonfinite_name(double x) {
    return isnan(x) ? "NaN" : x > 0 ? "Infinity" : "-Infinity";
}

static bool put_real(cJSON *o, const char *key, double x) {
    char buf[40];
    if (!isfinite(x))
        return put_item(o, key, cJSON_CreateString(nonfinite_name(x)));
    (void)snprintf(buf, sizeof buf, "%.17g", x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

/* KEY and KEY_hex. */
static bool put_exact(cJSON *o, const char *key, double x) {
    char hex_key[64], buf[40];
    (void)snprintf(hex_key, sizeof hex_key, "%s_hex", key);
    (void)snprintf(buf, sizeof buf, "%a", x);
    return put_real(o, key, x) && put_item(o, hex_key, cJSON_CreateString(isfinite(x) ? buf : nonfinite_name(x)));
}

static bool put_verdict(cJSON *o, enum par_verdict v) {
    return put_text(o, "verdict", par_verdict_name(v));
}

/* A new array or object inside o, or NULL. */
static cJSON *put_array(cJSON *o, const char *key) {
    return cJSON_AddArrayToObject(o, key);
}

static cJSON *put_object(cJSON *o, const char *key) {
    return cJSON_AddObjectToObject(o, key);
}

static cJSON *push_object(cJSON *array) {
    cJSON *o = cJSON_CreateObject();
    if (o && array && cJSON_AddItemToArray(array, o))
        return o;
    cJSON_Delete(o);
    return NULL;
}

static bool put_metrics(cJSON *o, const struct par_metrics *m) {
    return o && put_count(o, "n", m->n) && put_count(o, "n_nan_ref", m->n_nan_ref) &&
           put_count(o, "n_nan_got", m->n_nan_got) && put_count(o, "n_inf_ref", m->n_inf_ref) &&
           put_count(o, "n_inf_got", m->n_inf_got) && put_count(o, "n_nonfinite_mismatch", m->n_nonfinite_mismatch) &&
           put_exact(o, "max_abs", m->max_abs) && put_int(o, "max_at", m->max_at) &&
           put_exact(o, "max_ref", m->max_ref) && put_exact(o, "max_got", m->max_got) &&
           put_real(o, "rel_l2", m->rel_l2) && put_real(o, "nmse", m->nmse) && put_real(o, "cosine", m->cosine) &&
           put_real(o, "p50", m->p50) && put_real(o, "p99", m->p99) && put_real(o, "p999", m->p999);
}

static bool put_row(cJSON *o, const struct par_op_row *row) {
    cJSON *worst;
    if (!o || !put_verdict(o, par_row_shown(row)) || !put_count(o, "n_judged", row->n_judged) ||
        !put_count(o, "n_over", row->n_over) || !put_count(o, "n_nonfinite_got", row->n_nonfinite_got) ||
        !put_count(o, "n_nonfinite_expected", row->n_nonfinite_expected) ||
        !put_count(o, "n_nonfinite_mismatch", row->n_nonfinite_mismatch) || !put_text(o, "note", row->note))
        return false;
    if (row->n_judged == 0) /* the rest would be the zeros of an empty row */
        return true;
    if (!put_real(o, "ratio_max", row->ratio_max) || !put_real(o, "ratio_p50", row->ratio_p50) ||
        !put_real(o, "ratio_p99", row->ratio_p99) || !put_real(o, "ratio_p999", row->ratio_p999))
        return false;
    worst = put_object(o, "worst");
    return worst && put_int(worst, "pos", row->worst.pos) && put_int(worst, "row", row->worst.row) &&
           put_exact(worst, "expected", row->worst.expected) && put_exact(worst, "got", row->worst.got) &&
           put_exact(worst, "bound", row->worst.bound);
}

static bool put_ops(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_report_op *op = &r->ops[i];
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "op", fwd_op_name(op->op)) || !put_int(o, "layer", op->layer) ||
            !put_row(put_object(o, "reference"), &op->ref) || !put_row(put_object(o, "candidate"), &op->cand))
            return false;
        if (op->has_free_run && !put_metrics(put_object(o, "free_run"), &op->free_run))
            return false;
    }
    return array != NULL;
}

static bool put_logits(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_logits; i++) {
        const struct par_report_logits *l = &r->logits[i];
        cJSON *o = push_object(array);
        if (!o || !put_int(o, "pos", l->pos) || !put_bool(o, "decode", l->decode) || !put_verdict(o, l->verdict) ||
            !put_text(o, "what", l->what) || !put_int(o, "top_ref", l->m.top_ref) ||
            !put_int(o, "top_got", l->m.top_got) || !put_exact(o, "margin_ref", l->m.margin_ref) ||
            !put_exact(o, "margin_got", l->m.margin_got) || !put_exact(o, "gap_in_ref", l->m.gap_in_ref) ||
            !put_real(o, "kl", l->m.kl) || !put_int(o, "topk_overlap", l->m.topk_overlap) || !put_int(o, "k", l->m.k) ||
            !put_exact(o, "spread", l->spread) || !put_exact(o, "distance", l->distance) ||
            !put_exact(o, "spread_distance", l->spread_distance) || !put_metrics(put_object(o, "diff"), &l->m.diff))
            return false;
    }
    return array != NULL;
}

static bool put_arms(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_arms; i++) {
        const struct par_report_arm *a = &r->arms[i];
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "id", a->id) || !put_text(o, "what", a->what) ||
            !put_text(o, "hypothesis", a->hypothesis) || !put_bool(o, "ran", a->ran) ||
            !put_bool(o, "expect_same_bits", a->expect_same_bits) || !put_text(o, "result", a->result) ||
            !put_text(o, "command", a->command))
            return false;
        if (a->ran &&
            (!put_bool(o, "same_bits", a->same_bits) || !put_hash(o, "logits_hash", a->logits_hash) ||
             !put_real(o, "distance_to_ref", a->distance_to_ref) || !put_real(o, "distance_base", a->distance_base)))
            return false;
    }
    return array != NULL;
}

static bool put_hypotheses(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_hypotheses; i++) {
        const struct par_report_hypothesis *h = &r->hypotheses[i];
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "id", h->id) || !put_text(o, "title", h->title) || !put_text(o, "verdict", h->verdict) ||
            !put_text(o, "evidence", h->evidence) || !put_text(o, "command", h->command))
            return false;
    }
    return array != NULL;
}

static bool put_contracts(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_contracts; i++) {
        const struct par_report_contract *c = &r->contracts[i];
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "contract", c->contract) || !put_text(o, "id", c->id) || !put_text(o, "rule", c->rule) ||
            !put_verdict(o, c->verdict) || !put_text(o, "detail", c->detail))
            return false;
    }
    return array != NULL;
}

static bool put_coverage(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_coverage; i++) {
        const struct par_report_coverage *c = &r->coverage[i];
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "path", c->path) || !put_text(o, "schedule", c->schedule) ||
            !put_text(o, "what", c->what) || !put_int(o, "n_done", c->n_done) || !put_int(o, "n_total", c->n_total))
            return false;
    }
    return array != NULL;
}

static bool put_pairs(cJSON *array, const struct par_report_pair *pairs, int n) {
    for (int i = 0; i < n; i++) {
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "name", pairs[i].name) || !put_text(o, "value", pairs[i].value))
            return false;
    }
    return array != NULL;
}

static bool put_proofs(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_proofs; i++) {
        cJSON *o = push_object(array);
        if (!o || !put_text(o, "name", r->proofs[i].name) || !put_verdict(o, r->proofs[i].verdict) ||
            !put_text(o, "value", r->proofs[i].value))
            return false;
    }
    return array != NULL;
}

static bool put_input(cJSON *o, const struct par_report *r) {
    cJSON *ids;
    if (!o || !put_text(o, "model_path", r->model_path) || !put_text(o, "model_sha256", r->model_sha256) ||
        !put_text(o, "reference", r->ref_path) || !put_text(o, "candidate", r->cand_path) ||
        !put_text(o, "prompt", r->prompt) || !put_int(o, "n_prompt", r->n_prompt))
        return false;
    ids = put_array(o, "token_ids");
    for (int i = 0; ids && i < r->n_ids; i++)
        if (!cJSON_AddItemToArray(ids, cJSON_CreateNumber(r->ids[i])))
            return false;
    return ids != NULL;
}

static bool put_first_page(cJSON *o, const struct par_report *r) {
    enum par_verdict shown = par_report_shown(r);
    return put_verdict(o, shown) && put_int(o, "exit", par_verdict_exit(shown)) && put_text(o, "scope", r->scope) &&
           put_text(o, "answer", r->answer) && put_text(o, "side", r->side) && put_text(o, "guilty", r->guilty) &&
           put_text(o, "worst", r->worst) && put_text(o, "tokens", r->tokens) && put_text(o, "command", r->command) &&
           put_count(o, "n_judged_reference", par_report_n_judged(r, PAR_SIDE_REF)) &&
           put_count(o, "n_judged_candidate", par_report_n_judged(r, PAR_SIDE_CAND)) &&
           put_int(o, "n_logit_positions", r->n_logits);
}

/* Prints and deletes root; NULL when `ok` is false or memory is out. */
static char *finish(cJSON *root, bool ok) {
    char *copy = NULL;
    char *text = ok ? cJSON_Print(root) : NULL;
    if (text)
        copy = fwd_alloc(strlen(text) + 2, 1);
    if (copy) {
        size_t n = strlen(text);
        memcpy(copy, text, n);
        copy[n] = '\n';
        copy[n + 1] = 0;
    }
    cJSON_free(text);
    cJSON_Delete(root);
    return copy;
}

char *par_report_json(const struct par_report *r) {
    cJSON *root = cJSON_CreateObject();
    bool ok = root && put_text(root, "schema", PAR_REPORT_SCHEMA) && put_first_page(root, r) &&
              put_input(put_object(root, "input"), r) && put_logits(put_array(root, "logits"), r) &&
              put_ops(put_array(root, "ops"), r) && put_arms(put_array(root, "arms"), r) &&
              put_hypotheses(put_array(root, "hypotheses"), r) && put_contracts(put_array(root, "contracts"), r) &&
              put_coverage(put_array(root, "coverage"), r) &&
              put_pairs(put_array(root, "configuration"), r->config, r->n_config) &&
              put_pairs(put_array(root, "variants"), r->variants, r->n_variants) &&
              put_proofs(put_array(root, "proofs"), r) &&
              put_pairs(put_array(root, "receipt"), r->receipt, r->n_receipt);
    return finish(root, ok);
}

/* [{op, layer, side}] of every row that is accused. */
static bool put_guilty_rows(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_ops; i++)
        for (int side = PAR_SIDE_REF; side <= PAR_SIDE_CAND; side++) {
            const struct par_op_row *row = par_side_row(&r->ops[i], (enum par_side)side);
            if (!par_verdict_accuses(par_row_shown(row)))
                continue;
            cJSON *o = push_object(array);
            if (!o || !put_text(o, "op", fwd_op_name(r->ops[i].op)) || !put_int(o, "layer", r->ops[i].layer) ||
                !put_text(o, "side", side == PAR_SIDE_REF ? "reference" : "candidate") ||
                !put_verdict(o, row->verdict) || !put_real(o, "ratio_max", row->ratio_max))
                return false;
        }
    return array != NULL;
}

char *par_report_verdict_json(const struct par_report *r) {
    cJSON *root = cJSON_CreateObject();
    bool ok = root && put_text(root, "schema", VERDICT_SCHEMA) && put_first_page(root, r) &&
              put_text(root, "model_sha256", r->model_sha256) && put_text(root, "reference", r->ref_path) &&
              put_text(root, "candidate", r->cand_path) &&
              put_hash(root, "token_ids_hash", r->n_ids ? fwd_hash64(r->ids, (size_t)r->n_ids * sizeof *r->ids) : 0) &&
              put_guilty_rows(put_array(root, "guilty_ops"), r) && put_coverage(put_array(root, "coverage"), r) &&
              put_contracts(put_array(root, "contracts"), r) && put_proofs(put_array(root, "proofs"), r);
    return finish(root, ok);
}
