/* The impact of guilty ops on runs of the made model: replaced by the spec's value they are guilty no more, what they
 * did to the logits goes away, and afterwards the session is what it was. */
#include "test/made_run.h"

#include <math.h>

static const struct par_report_impact *row_of(const struct par_report *r, enum fwd_op op, int layer) {
    for (int i = 0; i < r->n_impact; i++)
        if (r->impact[i].op == op && r->impact[i].layer == layer)
            return &r->impact[i];
    ck_abort_msg("no impact of %s of layer %d", fwd_op_name(op), layer);
    return NULL;
}

/* One op of each kind whose value is put there in its own way: floats, blocks of codes, cache rows, NaN. */
static const struct single {
    const char *fault, *id;
    enum fwd_op op;
    int layer;
    bool removes; /* the logits leave the spread under it */
} singles[] = {
    {"q4k-min-dropped@ffn_up:5", "matmul", FWD_OP_FFN_UP, 5, true},
    {"rope-pairing@Qcur_rope:0", "rope", FWD_OP_QCUR_ROPE, 0, true},
    {"act-scale-other-block@ffn_swiglu_q8:2", "act_quant", FWD_OP_FFN_SWIGLU_Q8, 2, false},
    {"kv-scale@V_cache:1", "kv", FWD_OP_V_CACHE, 1, false},
    {"nan-row@ffn_out:3", "matmul", FWD_OP_FFN_OUT, 3, true},
    {"silu-missing@ffn_swiglu:2", "swiglu", FWD_OP_FFN_SWIGLU, 2, false},
    {"embedding-one-token", "embed", FWD_OP_INP_EMBD, -1, false},
};

START_TEST(one_guilty_op) {
    const struct single *s = &singles[_i];
    struct outcome o = run_with(s->fault, FWD_HEAD_QUANT, PAR_QUICK);
    char name[64];
    ck_assert_double_eq(figure(&o, "cand.accused"), 1);
    const struct par_report_impact *m = row_of(&o.report, s->op, s->layer);
    ck_assert_int_eq(o.report.n_impact, 1);
    ck_assert(m->judged && m->n_ops == 1 && m->n_positions > 0);
    ck_assert_int_eq(m->n_accused, 0);
    ck_assert(!m->same_bits);
    (void)snprintf(name, sizeof name, "intervention.%s.heals", s->id);
    ck_assert_double_eq(figure(&o, name), 1);
    ck_assert_double_eq(figure(&o, "impact.ops"), 1);
    ck_assert_msg(m->after < m->before || m->before == 0, "%s: %g before, %g after", s->fault, m->before, m->after);
    if (s->removes) {
        ck_assert_msg(m->before > 0 && m->removes > 0.9, "%s: %g before, removes %g", s->fault, m->before, m->removes);
        ck_assert_double_eq(figure(&o, "impact.together"), m->removes);
        ck_assert_double_eq(figure(&o, "impact.largest"), m->removes);
    }
    drop(&o);
}
END_TEST

/* Two bugs of two kinds: either kind heals while the other is still accused; what one alone removes is less than all.
 */
START_TEST(two_guilty_ops) {
    struct made_run m = {.fault = "q4k-min-dropped@ffn_up:5", .also = "rope-pairing@Qcur_rope:0"};
    struct outcome o = run_made(&m);
    const struct par_report *r = &o.report;
    ck_assert_double_eq(figure(&o, "cand.accused"), 2);
    ck_assert_int_eq(r->n_impact, 5); /* together, two kinds, two alone */
    ck_assert(r->impact[0].n_ops == 2 && r->impact[0].n_accused == 0 && r->impact[0].removes > 0.9);
    ck_assert(r->impact[1].n_accused == 1 && r->impact[2].n_accused == 1);
    ck_assert_double_eq(figure(&o, "intervention.matmul.heals"), 1);
    ck_assert_double_eq(figure(&o, "intervention.rope.heals"), 1);
    const struct par_report_impact *up = row_of(r, FWD_OP_FFN_UP, 5), *rope = row_of(r, FWD_OP_QCUR_ROPE, 0);
    ck_assert(!up->judged && up->removes < r->impact[0].removes && rope->removes < r->impact[0].removes);
    ck_assert_double_eq(up->before, rope->before);
    ck_assert_double_eq(figure(&o, "impact.ops"), 2);
    ck_assert_double_eq(figure(&o, "impact.largest"), fmax(up->removes, rope->removes));
    /* The arms that ran after it saw the planted bugs again. */
    for (int i = 0; i < r->n_arms; i++)
        if (r->arms[i].ran && r->arms[i].expect_same_bits)
            ck_assert_msg(r->arms[i].same_bits, "arm %s: %s", r->arms[i].id, r->arms[i].result);
    drop(&o);
}
END_TEST

/* More guilty ops than are tried alone: the worst ones are, and quick tries fewer. */
START_TEST(many_guilty_ops) {
    struct outcome o = run_with("eps-other-model", FWD_HEAD_QUANT, PAR_QUICK);
    ck_assert_double_gt(figure(&o, "cand.accused"), 8);
    ck_assert_double_eq(figure(&o, "impact.ops"), 3);
    ck_assert_int_eq(o.report.impact[0].n_accused, 0);
    drop(&o);
}
END_TEST

START_TEST(nothing_guilty) {
    struct outcome o = run_with(NULL, FWD_HEAD_QUANT, PAR_QUICK);
    double v;
    ck_assert_int_eq(o.report.n_impact, 0);
    ck_assert(!par_figures_get(o.figures, "impact.ops", &v));
    drop(&o);
}
END_TEST

int main(void) {
    Suite *s = suite_create("impact");
    TCase *t = tcase_create("made model");
    tcase_set_timeout(t, 300);
    tcase_add_unchecked_fixture(t, set_up, tear_down);
    tcase_add_loop_test(t, one_guilty_op, 0, (int)(sizeof singles / sizeof *singles));
    tcase_add_test(t, two_guilty_ops);
    tcase_add_test(t, many_guilty_ops);
    tcase_add_test(t, nothing_guilty);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
