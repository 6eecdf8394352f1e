/* The report as JSON (json_put.h says how values are written); where a bit matters (worst elements, logits) the
 * hexadecimal form stands beside the number. */
#include "report/json_put.h"
#include "report/report_stats.h"

#include <cjson/cJSON.h>

#define VERDICT_SCHEMA "parity-verdict-v1"

static bool put_verdict(cJSON *o, enum par_verdict v) {
    return par_put_text(o, "verdict", par_verdict_name(v));
}

static bool put_row(cJSON *o, const struct par_op_row *row) {
    cJSON *worst;
    if (!o || !put_verdict(o, par_row_shown(row)) || !par_put_count(o, "n_judged", row->n_judged) ||
        !par_put_count(o, "n_over", row->n_over) || !par_put_count(o, "n_systematic", row->n_systematic) ||
        !par_put_count(o, "n_nonfinite_got", row->n_nonfinite_got) ||
        !par_put_count(o, "n_nonfinite_expected", row->n_nonfinite_expected) ||
        !par_put_count(o, "n_nonfinite_mismatch", row->n_nonfinite_mismatch) || !par_put_text(o, "note", row->note) ||
        !par_put_bool(o, "absent", row->absent))
        return false;
    if (row->n_judged == 0) /* the rest would be the zeros of an empty row */
        return true;
    if (!par_put_real(o, "ratio_max", row->ratio_max) || !par_put_real(o, "ratio_p50", row->ratio_p50) ||
        !par_put_real(o, "ratio_p99", row->ratio_p99) || !par_put_real(o, "ratio_p999", row->ratio_p999) ||
        !par_put_real(o, "floor_p50", row->floor_p50) || !par_put_bool(o, "review", row->review))
        return false;
    if (row->tie_bound > 0 && !par_put_real(o, "tie_slack_share", row->tie_slack / row->tie_bound))
        return false;
    worst = par_put_object(o, "worst");
    return worst && par_put_int(worst, "pos", row->worst.pos) && par_put_int(worst, "row", row->worst.row) &&
           par_put_exact(worst, "expected", row->worst.expected) && par_put_exact(worst, "got", row->worst.got) &&
           par_put_exact(worst, "bound", row->worst.bound);
}

/* Only of ops that were looked into. */
static bool put_finding(cJSON *op, const char *side, const struct par_report_finding *f) {
    if (!f->why)
        return true;
    cJSON *o = par_put_object(op, side);
    return o && par_put_text(o, "where", f->where) && par_put_text(o, "bytes", f->bytes) &&
           par_put_text(o, "why", f->why) && par_put_text(o, "signature", f->signature) &&
           par_put_text(o, "hypothesis", f->hypothesis) && par_put_text(o, "museum", f->museum) &&
           par_put_exact(o, "share", f->share) && par_put_int(o, "n_tried", f->n_tried) &&
           par_put_count(o, "n_accused", f->n_accused) && par_put_int(o, "head", f->head) &&
           par_put_int(o, "pos_first", f->pos_first) && par_put_int(o, "pos_last", f->pos_last) &&
           par_put_int(o, "row_first", f->row_first) && par_put_int(o, "row_last", f->row_last) &&
           par_put_int(o, "block", f->block);
}

static bool put_ledger(cJSON *o, const struct par_ledger *l) {
    return o && par_put_count(o, "elements", l->n) && par_put_count(o, "n_unexplained", l->n_unexplained) &&
           par_put_bool(o, "has_source", l->has_source) && par_put_exact(o, "whole", par_ledger_share(l, l->total2)) &&
           par_put_exact(o, "weights", par_ledger_share(l, l->weight2)) &&
           par_put_exact(o, "activation", par_ledger_share(l, l->activation2)) &&
           par_put_exact(o, "rounding", par_ledger_share(l, l->rounding2)) &&
           par_put_exact(o, "unexplained", par_ledger_share(l, l->unexplained2)) &&
           par_put_exact(o, "gap_max", l->gap_max);
}

static bool put_ops(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_report_op *op = &r->ops[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "op", fwd_op_name(op->op)) || !par_put_int(o, "layer", op->layer) ||
            !put_row(par_put_object(o, "reference"), &op->ref) || !put_row(par_put_object(o, "candidate"), &op->cand))
            return false;
        if (op->has_free_run && !par_put_metrics(par_put_object(o, "free_run"), &op->free_run))
            return false;
        if (!put_finding(o, "reference_finding", &op->ref_finding) ||
            !put_finding(o, "candidate_finding", &op->cand_finding))
            return false;
        if (op->ledger.n && !put_ledger(par_put_object(o, "ledger"), &op->ledger))
            return false;
    }
    return array != NULL;
}

static bool put_logits(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_logits; i++) {
        const struct par_report_logits *l = &r->logits[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_int(o, "pos", l->pos) || !par_put_bool(o, "decode", l->decode) ||
            !put_verdict(o, l->verdict) || !par_put_text(o, "what", l->what) ||
            !par_put_hash(o, "logits_hash", l->logits_hash) || !par_put_int(o, "top_ref", l->m.top_ref) ||
            !par_put_int(o, "top_got", l->m.top_got) || !par_put_exact(o, "margin_ref", l->m.margin_ref) ||
            !par_put_exact(o, "margin_got", l->m.margin_got) || !par_put_exact(o, "gap_in_ref", l->m.gap_in_ref) ||
            !par_put_real(o, "kl", l->m.kl) || !par_put_int(o, "topk_overlap", l->m.topk_overlap) ||
            !par_put_int(o, "k", l->m.k) || !par_put_exact(o, "spread", l->spread) ||
            !par_put_exact(o, "distance", l->distance) || !par_put_exact(o, "spread_distance", l->spread_distance) ||
            !par_put_exact(o, "price", l->price) || !par_put_exact(o, "floor", l->floor) ||
            !par_put_exact(o, "distance_ref_to_f64", l->f64_ref) ||
            !par_put_exact(o, "distance_cand_to_f64", l->f64_cand) ||
            !par_put_metrics(par_put_object(o, "diff"), &l->m.diff))
            return false;
    }
    return array != NULL;
}

static bool put_arms(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_arms; i++) {
        const struct par_report_arm *a = &r->arms[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "id", a->id) || !par_put_text(o, "what", a->what) ||
            !par_put_text(o, "hypothesis", a->hypothesis) || !par_put_bool(o, "ran", a->ran) ||
            !par_put_bool(o, "expect_same_bits", a->expect_same_bits) || !par_put_text(o, "result", a->result) ||
            !par_put_text(o, "command", a->command))
            return false;
        if (a->ran && (!par_put_bool(o, "same_bits", a->same_bits) || !par_put_hash(o, "logits_hash", a->logits_hash) ||
                       !par_put_real(o, "distance_to_ref", a->distance_to_ref) ||
                       !par_put_real(o, "distance_base", a->distance_base)))
            return false;
    }
    return array != NULL;
}

static bool put_cases(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_cases; i++) {
        const struct par_report_case *c = &r->cases[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "op", fwd_op_name(c->op)) || !par_put_int(o, "layer", c->layer) ||
            !par_put_text(o, "side", c->reference ? "reference" : "candidate") || !par_put_text(o, "path", c->path) ||
            !par_put_text(o, "command", c->command) || !par_put_text(o, "note", c->note) ||
            !par_put_count(o, "bytes", c->n_bytes) || !par_put_int(o, "weight_rows", c->n_rows) ||
            !par_put_int(o, "blocks", c->n_blocks) || !par_put_int(o, "input_rows", c->n_positions) ||
            !par_put_bool(o, "verified", c->verified))
            return false;
    }
    return array != NULL;
}

static bool put_impact(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_impact; i++) {
        const struct par_report_impact *m = &r->impact[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "what", m->what) || !par_put_int(o, "ops", m->n_ops) ||
            !par_put_bool(o, "same_bits", m->same_bits) || !par_put_int(o, "positions", m->n_positions) ||
            !par_put_real(o, "before", m->before) || !par_put_real(o, "after", m->after) ||
            !par_put_real(o, "removes", m->removes))
            return false;
        if (m->op < FWD_OP_COUNT && (!par_put_text(o, "op", fwd_op_name(m->op)) || !par_put_int(o, "layer", m->layer)))
            return false;
        if (m->judged && !par_put_int(o, "still_accused", m->n_accused))
            return false;
    }
    return array != NULL;
}

static bool put_hypotheses(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_hypotheses; i++) {
        const struct par_report_hypothesis *h = &r->hypotheses[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "id", h->id) || !par_put_text(o, "title", h->title) ||
            !par_put_text(o, "verdict", h->verdict) || !par_put_text(o, "evidence", h->evidence) ||
            !par_put_text(o, "command", h->command))
            return false;
    }
    return array != NULL;
}

static bool put_contracts(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_contracts; i++) {
        const struct par_report_contract *c = &r->contracts[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "contract", c->contract) || !par_put_text(o, "id", c->id) ||
            !par_put_text(o, "rule", c->rule) || !put_verdict(o, c->verdict) || !par_put_text(o, "detail", c->detail))
            return false;
    }
    return array != NULL;
}

static bool put_figures(cJSON *object, const struct par_report *r) {
    for (int i = 0; i < r->n_figures; i++)
        if (!par_put_real(object, r->figures[i].name, r->figures[i].value))
            return false;
    return object != NULL;
}

static bool put_coverage(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_coverage; i++) {
        const struct par_report_coverage *c = &r->coverage[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "path", c->path) || !par_put_text(o, "schedule", c->schedule) ||
            !par_put_text(o, "what", c->what) || !par_put_int(o, "n_done", c->n_done) ||
            !par_put_int(o, "n_total", c->n_total))
            return false;
    }
    return array != NULL;
}

/* The coverage matrix: [done, total] of (op, position) pairs at each class of positions. */
static bool put_cells(cJSON *array, const struct par_report *r) {
    static const char *const names[PAR_POSITION_CLASSES] = {"position_0", "prompt", "decode"};
    for (int i = 0; i < r->n_cells; i++) {
        const struct par_report_cells *c = &r->cells[i];
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "path", c->path) || !par_put_text(o, "schedule", c->schedule) ||
            !par_put_text(o, "ops", c->ops))
            return false;
        for (int k = 0; k < PAR_POSITION_CLASSES; k++) {
            cJSON *cell = par_put_object(o, names[k]);
            if (!cell || !par_put_int(cell, "n_done", c->n_done[k]) || !par_put_int(cell, "n_total", c->n_total[k]))
                return false;
        }
    }
    return array != NULL;
}

static bool put_pairs(cJSON *array, const struct par_report_pair *pairs, int n) {
    for (int i = 0; i < n; i++) {
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "name", pairs[i].name) || !par_put_text(o, "value", pairs[i].value))
            return false;
    }
    return array != NULL;
}

static bool put_proofs(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_proofs; i++) {
        cJSON *o = par_push_object(array);
        if (!o || !par_put_text(o, "name", r->proofs[i].name) || !put_verdict(o, r->proofs[i].verdict) ||
            !par_put_text(o, "value", r->proofs[i].value))
            return false;
    }
    return array != NULL;
}

static bool put_input(cJSON *o, const struct par_report *r) {
    cJSON *ids;
    if (!o || !par_put_text(o, "model_path", r->model_path) || !par_put_text(o, "model_sha256", r->model_sha256) ||
        !par_put_text(o, "reference", r->ref_path) || !par_put_text(o, "candidate", r->cand_path) ||
        !par_put_text(o, "prompt", r->prompt) || !par_put_int(o, "n_prompt", r->n_prompt))
        return false;
    ids = par_put_array(o, "token_ids");
    for (int i = 0; ids && i < r->n_ids; i++)
        if (!cJSON_AddItemToArray(ids, cJSON_CreateNumber(r->ids[i])))
            return false;
    return ids != NULL;
}

static bool put_first_page(cJSON *o, const struct par_report *r) {
    enum par_verdict shown = par_report_shown(r);
    return put_verdict(o, shown) && par_put_int(o, "exit", par_verdict_exit(shown)) &&
           par_put_text(o, "scope", r->scope) && par_put_text(o, "answer", r->answer) &&
           par_put_text(o, "side", r->side) && par_put_text(o, "guilty", r->guilty) &&
           par_put_text(o, "worst", r->worst) && par_put_text(o, "tokens", r->tokens) &&
           par_put_text(o, "command", r->command) &&
           par_put_count(o, "n_judged_reference", par_report_n_judged(r, PAR_SIDE_REF)) &&
           par_put_count(o, "n_judged_candidate", par_report_n_judged(r, PAR_SIDE_CAND)) &&
           par_put_int(o, "n_logit_positions", r->n_logits);
}

char *par_report_json(const struct par_report *r) {
    cJSON *root = cJSON_CreateObject();
    bool ok = root && par_put_text(root, "schema", PAR_REPORT_SCHEMA) && put_first_page(root, r) &&
              put_input(par_put_object(root, "input"), r) && put_logits(par_put_array(root, "logits"), r) &&
              put_ops(par_put_array(root, "ops"), r) && put_arms(par_put_array(root, "arms"), r) &&
              put_impact(par_put_array(root, "impact"), r) && put_cases(par_put_array(root, "cases"), r) &&
              put_hypotheses(par_put_array(root, "hypotheses"), r) &&
              put_contracts(par_put_array(root, "contracts"), r) && put_coverage(par_put_array(root, "coverage"), r) &&
              put_cells(par_put_array(root, "coverage_matrix"), r) &&
              put_pairs(par_put_array(root, "configuration"), r->config, r->n_config) &&
              put_pairs(par_put_array(root, "variants"), r->variants, r->n_variants) &&
              put_pairs(par_put_array(root, "weights"), r->weights, r->n_weights) &&
              put_proofs(par_put_array(root, "proofs"), r) &&
              put_pairs(par_put_array(root, "receipt"), r->receipt, r->n_receipt) &&
              put_figures(par_put_object(root, "figures"), r);
    return par_put_finish(root, ok);
}

/* [{op, layer, side}] of every row that is accused. */
static bool put_guilty_rows(cJSON *array, const struct par_report *r) {
    for (int i = 0; i < r->n_ops; i++)
        for (int side = PAR_SIDE_REF; side <= PAR_SIDE_CAND; side++) {
            const struct par_op_row *row = par_side_row(&r->ops[i], (enum par_side)side);
            if (!par_verdict_accuses(par_row_shown(row)))
                continue;
            cJSON *o = par_push_object(array);
            if (!o || !par_put_text(o, "op", fwd_op_name(r->ops[i].op)) || !par_put_int(o, "layer", r->ops[i].layer) ||
                !par_put_text(o, "side", side == PAR_SIDE_REF ? "reference" : "candidate") ||
                !put_verdict(o, row->verdict) || !par_put_real(o, "ratio_max", row->ratio_max))
                return false;
        }
    return array != NULL;
}

char *par_report_verdict_json(const struct par_report *r) {
    cJSON *root = cJSON_CreateObject();
    bool ok =
        root && par_put_text(root, "schema", VERDICT_SCHEMA) && put_first_page(root, r) &&
        par_put_text(root, "model_sha256", r->model_sha256) && par_put_text(root, "reference", r->ref_path) &&
        par_put_text(root, "candidate", r->cand_path) &&
        par_put_hash(root, "token_ids_hash", r->n_ids ? fwd_hash64(r->ids, (size_t)r->n_ids * sizeof *r->ids) : 0) &&
        put_guilty_rows(par_put_array(root, "guilty_ops"), r) && put_coverage(par_put_array(root, "coverage"), r) &&
        put_contracts(par_put_array(root, "contracts"), r) && put_proofs(par_put_array(root, "proofs"), r);
    return par_put_finish(root, ok);
}
