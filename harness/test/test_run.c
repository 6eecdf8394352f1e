/* The whole run on the made model: clean it is HELD, and each planted bug is DIVERGED with its op, layer and hypothesis
 * named. What the user sees from the program is tested in test_cli.sh; this is the library underneath. */
#include "contract/vocabulary.h"
#include "test/made_run.h"

/* Ids in no order that a language makes: a model that has learnt anything finds them worse than a guess. */
static const int32_t nonsense[] = {200, 3, 177, 45, 201, 9, 160, 88, 202, 14, 150, 77, 203, 21, 140, 66,
                                   204, 5, 130, 55, 205, 7, 120, 44, 206, 2,  110, 33, 207, 1,  100, 22};

static const char *hypothesis(const struct par_report *r, const char *id) {
    for (int i = 0; i < r->n_hypotheses; i++)
        if (!strcmp(r->hypotheses[i].id, id))
            return r->hypotheses[i].verdict;
    return "missing";
}

START_TEST(clean_run_is_held) {
    struct outcome o = run_with(NULL, FWD_HEAD_QUANT, PAR_DEFAULT);
    ck_assert_msg(o.report.verdict == PAR_HELD, "%s: %s; %s", par_verdict_name(o.report.verdict), o.report.guilty,
                  o.report.worst);
    ck_assert(figure(&o, "cand.judged_elements") > 100000);
    ck_assert(figure(&o, "cand.residue_max") <= 1 && figure(&o, "cand.residue_max") > 0.05);
    ck_assert(figure(&o, "weights.audited") > 10);
    ck_assert_double_eq(figure(&o, "weights.differ"), 0);
    ck_assert_str_eq(hypothesis(&o.report, "H0"), "SUPPORTED");
    ck_assert_str_eq(hypothesis(&o.report, "H1"), "FALSIFIED");
    ck_assert_str_eq(hypothesis(&o.report, "H2"), "FALSIFIED");
    ck_assert_str_eq(hypothesis(&o.report, "H3"), "FALSIFIED");
    ck_assert_str_eq(hypothesis(&o.report, "H5"), "FALSIFIED");
    for (int i = 0; i < o.report.n_arms; i++)
        ck_assert_msg(!o.report.arms[i].ran || !o.report.arms[i].expect_same_bits || o.report.arms[i].same_bits,
                      "arm %s has other bits", o.report.arms[i].id);
    drop(&o);
}
END_TEST

/* A quick run flips no variant, thread count or head form: H4 must not be called falsified by it. */
/* What a run measures can be named in a contract, whatever was wrong with it. */
START_TEST(every_figure_has_a_name) {
    static const char *const faults[] = {NULL, "rope-pairing", "q4k-min-dropped", "kv-row-stale", "eps-other-model"};
    for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
        struct outcome o = run_with(faults[k], FWD_HEAD_QUANT, PAR_DEFAULT);
        const char *name;
        double value;
        int n = 0;
        for (; par_figures_at(o.figures, n, &name, &value); n++)
            ck_assert_msg(par_vocabulary_has(name), "figure %s is not in the vocabulary", name);
        ck_assert_int_gt(n, 60);
        drop(&o);
    }
    ck_assert(!par_vocabulary_has("cand.accused.nothing"));
    ck_assert(!par_vocabulary_has("cand.accused."));
    ck_assert(!par_vocabulary_has("repeat"));
}
END_TEST

START_TEST(routes_that_did_not_run_leave_h4_untested) {
    struct outcome o = run_with(NULL, FWD_HEAD_QUANT, PAR_QUICK);
    ck_assert_msg(o.report.verdict == PAR_HELD, "%s: %s; %s; distance %.3g and gap %.3g of the spread",
                  par_verdict_name(o.report.verdict), o.report.answer, o.report.tokens,
                  figure(&o, "logits.distance_of_spread"), figure(&o, "logits.gap_of_spread"));
    ck_assert_str_eq(hypothesis(&o.report, "H4"), "UNTESTED");
    drop(&o);
}
END_TEST

/* Every op is right and the reference still is no language model on that text: something that no op shows is wrong. */
START_TEST(reference_with_an_implausible_loss_is_mistrusted) {
    struct made_run m = {.loss_ids = nonsense, .n_loss_ids = sizeof nonsense / sizeof *nonsense, .depth = PAR_QUICK};
    struct outcome o = run_made(&m);
    ck_assert_msg(figure(&o, "ref.loss") >= figure(&o, "ref.loss_uniform"), "loss %g, guessing %g",
                  figure(&o, "ref.loss"), figure(&o, "ref.loss_uniform"));
    ck_assert_double_eq(figure(&o, "cand.accused"), 0);
    ck_assert_int_eq(o.report.verdict, PAR_MISTRUSTED);
    drop(&o);
}
END_TEST

static const struct expectation {
    const char *fault, *guilty, *side, *hypothesis;
    enum fwd_head head;
} expected[] = {
    {"f32-head-transposed", "result_output", "candidate", "H4", FWD_HEAD_F32},
    {"q4k-min-dropped@ffn_gate:2", "ffn_gate of layer 2", "candidate", "H1", FWD_HEAD_QUANT},
    {"q4k-min-dropped@attn_out:1", "attn_out of layer 1", "candidate", "H1", FWD_HEAD_QUANT},
    {"q6k-as-q4k", "ffn_out of layer ", "candidate", "H4", FWD_HEAD_QUANT},
    {"rope-pairing@Kcur_rope:1", "Kcur_rope of layer 1", "candidate", "H3", FWD_HEAD_QUANT},
    {"rope-position@Qcur_rope:0", "Qcur_rope of layer 0", "candidate", "H3", FWD_HEAD_QUANT},
    {"kv-row-stale@K_cache:1", "K_cache of layer 1", "candidate", "H2", FWD_HEAD_QUANT},
    {"kv-row-stale@V_cache:0", "V_cache of layer 0", "candidate", "H2", FWD_HEAD_QUANT},
    {"gqa-modulo", "kqv_out of layer 0", "both", "H5", FWD_HEAD_QUANT},
    {"eps-other-model", "attn_norm of layer 0", "both", "H5", FWD_HEAD_QUANT},
};

START_TEST(each_fault_is_named) {
    const struct expectation *e = &expected[_i];
    struct outcome o = run_with(e->fault, e->head, PAR_DEFAULT);
    const struct par_report *r = &o.report;
    ck_assert_msg(r->verdict == PAR_DIVERGED, "%s: %s, guilty: %s", e->fault, par_verdict_name(r->verdict), r->guilty);
    ck_assert_msg(!strncmp(r->guilty, e->guilty, strlen(e->guilty)), "%s: guilty is %s, expected %s", e->fault,
                  r->guilty, e->guilty);
    ck_assert_msg(strstr(r->side, e->side) != NULL, "%s: side is %s, expected %s", e->fault, r->side, e->side);
    for (int h = 0; h <= 5; h++) {
        char id[3] = {'H', (char)('0' + h), 0};
        bool should = !strcmp(id, e->hypothesis);
        ck_assert_msg(should == !strcmp(hypothesis(r, id), "SUPPORTED"), "%s: %s is %s, expected %s to be supported",
                      e->fault, id, hypothesis(r, id), e->hypothesis);
    }
    drop(&o);
}
END_TEST

/* The same bug on the other side: the reference is named, and f64 takes the candidate's part. */
START_TEST(the_reference_is_guilty) {
    struct outcome o = run_with("ref:rope-pairing@Kcur_rope:1", FWD_HEAD_QUANT, PAR_DEFAULT);
    ck_assert_int_eq(o.report.verdict, PAR_DIVERGED);
    ck_assert_msg(!strncmp(o.report.side, "the reference, f32", 18), "side: %s", o.report.side);
    ck_assert_msg(!strncmp(o.report.guilty, "Kcur_rope of layer 1", 20), "guilty: %s", o.report.guilty);
    ck_assert_double_eq(figure(&o, "cand.accused"), 0);
    ck_assert_double_eq(figure(&o, "ref.accused"), 1);
    ck_assert_double_lt(figure(&o, "f64.cand_distance_max"), figure(&o, "f64.ref_distance_max"));
    drop(&o);
}
END_TEST

START_TEST(fault_that_cannot_act_is_refused) {
    static const char *const texts[] = {"no-such-fault", "q4k-min-dropped@ffn_gate:99", "q4k-min-dropped@nothing",
                                        "gqa-modulo@Qcur", "q4k-min-dropped@ffn_gate:x"};
    struct fwd_error err;
    struct par_fault fault;
    enum fwd_status rc = par_fault_parse(texts[_i], &fault, &err);
    if (rc == FWD_OK) {
        struct par_spec_model *spec;
        struct fwd_knobs knobs = {0};
        ck_assert_int_eq(par_spec_open(&spec, model, &err), FWD_OK);
        rc = par_fault_place(&fault, model, par_spec_config(spec), &knobs, &err);
        par_spec_close(spec);
    }
    ck_assert_msg(rc != FWD_OK, "%s was accepted", texts[_i]);
    ck_assert(strlen(err.message) > 10);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("run");
    TCase *tcase = tcase_create("made model");
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, clean_run_is_held);
    tcase_add_test(tcase, every_figure_has_a_name);
    tcase_add_test(tcase, routes_that_did_not_run_leave_h4_untested);
    tcase_add_test(tcase, reference_with_an_implausible_loss_is_mistrusted);
    tcase_add_loop_test(tcase, each_fault_is_named, 0, sizeof expected / sizeof *expected);
    tcase_add_test(tcase, the_reference_is_guilty);
    tcase_add_loop_test(tcase, fault_that_cannot_act_is_refused, 0, 5);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
