/* What a run says when the measurement itself, or what lies behind the last tap, is bad: paths made from the real one
 * with one lie each. A certificate that cannot fail, and a proof that cannot, would prove nothing. */
#include "test/made_run.h"

#include <math.h>

/* ---- a path that lies: its table is q4k-cpu's, with another run() ---- */
static const struct fwd_path *honest(void) {
    return fwd_path_find("q4k-cpu");
}

/* A token that is nobody's best one gets a bias on the logits handed out: no tap ever shows it. */
enum { BIASED_TOKEN = 7 };
static enum fwd_status run_with_bias(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    enum fwd_status rc = honest()->run(s, args, err);
    int64_t n_vocab = honest()->config(s)->n_vocab;
    int n = args->want_logits ? 0 : 1;
    for (int i = 0; args->want_logits && i < args->n_tokens; i++)
        n += args->want_logits[i] != 0;
    for (int i = 0; rc == FWD_OK && args->logits && i < n; i++)
        args->logits[i * n_vocab + BIASED_TOKEN] += 100;
    return rc;
}

/* Taps change the result: the last bit of the first logit. */
static enum fwd_status run_not_neutral(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    enum fwd_status rc = honest()->run(s, args, err);
    if (rc == FWD_OK && args->logits && args->tap)
        args->logits[0] = nextafterf(args->logits[0], 1e9f);
    return rc;
}

/* Something of the sequence before leaks into the next one: the longest prompt so far moves a logit. State, so this
 * test alone has a static; it is set back by the test. */
static int longest;
static enum fwd_status run_with_memory(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    enum fwd_status rc = honest()->run(s, args, err);
    if (args->pos0 + args->n_tokens > N_PROMPT + N_DECODE)
        longest = args->pos0 + args->n_tokens;
    if (rc == FWD_OK && args->logits && longest)
        args->logits[0] = nextafterf(args->logits[0], 1e9f);
    return rc;
}

static struct outcome run_lying(enum fwd_status (*run)(struct fwd_session *, const struct fwd_run_args *,
                                                       struct fwd_error *)) {
    struct fwd_path path = *honest();
    path.run = run;
    struct made_run m = {.depth = PAR_DEFAULT, .cand = &path};
    return run_made(&m);
}

static enum par_verdict proof(const struct par_report *r, const char *name) {
    for (int i = 0; i < r->n_proofs; i++)
        if (!strcmp(r->proofs[i].name, name))
            return r->proofs[i].verdict;
    ck_abort_msg("no proof \"%s\"", name);
    return PAR_UNMEASURED;
}

START_TEST(certificate_can_fail) {
    struct outcome o = run_lying(run_with_bias);
    ck_assert_int_eq(o.report.verdict, PAR_DIVERGED);
    ck_assert_double_eq(figure(&o, "cand.accused"), 0);
    ck_assert_double_eq(figure(&o, "ref.accused"), 0);
    ck_assert_double_le(figure(&o, "cand.residue_max"), 1);
    ck_assert_double_gt(figure(&o, "logits.flips_uncertified"), 0);
    ck_assert_double_gt(figure(&o, "logits.beyond_spread"), 0);
    ck_assert_double_eq(figure(&o, "f64.ref_beyond_spread"), 0);
    ck_assert_double_gt(figure(&o, "f64.cand_beyond_spread"), 0);
    ck_assert_msg(strstr(o.report.side, "candidate") != NULL, "side: %s", o.report.side);
    ck_assert_msg(strstr(o.report.answer, "last tap") != NULL, "answer: %s", o.report.answer);
    ck_assert_int_eq(proof(&o.report, "the logits are the last tap's"), PAR_DIVERGED);
    for (int i = 0; i < o.report.n_logits; i++)
        ck_assert_int_eq(o.report.logits[i].m.top_got, BIASED_TOKEN);
    drop(&o);
}
END_TEST

/* The kernels read other bytes than the file has: said on the first page, whether it shows in an op or not. */
static bool weight_not_the_files(const struct fwd_session *s, int i, struct fwd_bound_weight *out) {
    bool there = honest()->bound_weight(s, i, out);
    if (there && i == 3)
        out->checksum ^= 1;
    return there;
}

START_TEST(another_weight_is_on_the_first_page) {
    struct fwd_path path = *honest();
    path.bound_weight = weight_not_the_files;
    struct made_run m = {.depth = PAR_DEFAULT, .cand = &path};
    struct outcome o = run_made(&m);
    ck_assert_int_eq(o.report.verdict, PAR_DIVERGED);
    ck_assert_double_eq(figure(&o, "weights.differ"), 1);
    ck_assert_msg(strstr(o.report.side, "candidate") != NULL, "side: %s", o.report.side);
    ck_assert_msg(strstr(o.report.guilty, "binding: 1 of ") && strstr(o.report.guilty, "the first is blk.0."),
                  "guilty: %s", o.report.guilty);
    drop(&o);
}
END_TEST

START_TEST(taps_that_change_the_result_are_mistrusted) {
    struct outcome o = run_lying(run_not_neutral);
    ck_assert_int_eq(o.report.verdict, PAR_MISTRUSTED);
    ck_assert_double_eq(figure(&o, "neutral"), 0);
    ck_assert_int_eq(proof(&o.report, "taps are neutral"), PAR_MISTRUSTED);
    ck_assert_int_eq(proof(&o.report, "runs repeat"), PAR_HELD);
    drop(&o);
}
END_TEST

START_TEST(state_of_a_longer_sequence_is_mistrusted) {
    longest = 0;
    struct outcome o = run_lying(run_with_memory);
    longest = 0;
    ck_assert_int_eq(o.report.verdict, PAR_MISTRUSTED);
    ck_assert_double_eq(figure(&o, "deterministic"), 0);
    ck_assert_int_eq(proof(&o.report, "a longer sequence leaves nothing"), PAR_MISTRUSTED);
    drop(&o);
}
END_TEST

START_TEST(enough_repeats) {
    struct outcome o = run_with(NULL, FWD_HEAD_QUANT, PAR_DEFAULT);
    ck_assert_double_ge(figure(&o, "repeats"), 5);
    ck_assert_int_eq(proof(&o.report, "a longer sequence leaves nothing"), PAR_HELD);
    drop(&o);
}
END_TEST

/* The ledger's parts sum to the whole for each element; a fault is what stays unexplained, and only that. */
START_TEST(ledger_adds_up) {
    struct outcome clean = run_with(NULL, FWD_HEAD_QUANT, PAR_DEFAULT);
    ck_assert_double_gt(figure(&clean, "ledger.elements"), 10000);
    ck_assert_double_eq(figure(&clean, "unexplained"), 0);
    ck_assert_double_gt(figure(&clean, "ledger.activation"), 1e-4);
    ck_assert_double_gt(figure(&clean, "ledger.rounding"), 1e-9);
    ck_assert_double_lt(figure(&clean, "ledger.rounding"), 1e-5);
    ck_assert_double_lt(figure(&clean, "ledger.gap_max"), 1e-14);
    struct outcome broken = run_with("q4k-min-dropped@ffn_gate:2", FWD_HEAD_QUANT, PAR_DEFAULT);
    for (int i = 0; i < broken.report.n_ops; i++) {
        const struct par_report_op *op = &broken.report.ops[i];
        bool guilty = op->op == FWD_OP_FFN_GATE && op->layer == 2;
        ck_assert_msg((op->ledger.unexplained2 > 0) == guilty, "%s %d: unexplained %g", fwd_op_name(op->op), op->layer,
                      op->ledger.unexplained2);
    }
    drop(&clean);
    drop(&broken);
}
END_TEST

/* The price of the weights: rounding them to nearest within Q4_K's step of 2 leaves 0.577 of latents whose deviation is
 * 6.5, so about 0.09 of a product; the 6-bit matrices cost a sixth of that. */
START_TEST(ledger_prices_the_weights) {
    char path[80];
    struct fwd_gguf *source;
    struct fwd_error err = {0};
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .unquantised = true, .path = path};
    (void)snprintf(path, sizeof path, "%s.f32", model_path);
    ck_assert_msg(par_model_make(&args, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_gguf_open(&source, path, &err) == FWD_OK, "%s", err.message);
    struct made_run m = {.depth = PAR_DEFAULT, .source = source};
    struct outcome o = run_made(&m);
    ck_assert_double_eq(figure(&o, "unexplained"), 0);
    for (int i = 0; i < o.report.n_ops; i++) {
        const struct par_report_op *op = &o.report.ops[i];
        double price = par_ledger_share(&op->ledger, op->ledger.weight2);
        if (op->op == FWD_OP_FFN_UP)
            ck_assert_msg(price > 0.07 && price < 0.11, "ffn_up %d: %g", op->layer, price);
        if (op->op == FWD_OP_RESULT_OUTPUT)
            ck_assert_msg(price > 0.005 && price < 0.03, "result_output: %g", price);
    }
    drop(&o);
    fwd_gguf_close(source);
    (void)unlink(path);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("trust");
    TCase *tcase = tcase_create("made model");
    tcase_set_timeout(tcase, 300);
    tcase_add_unchecked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, certificate_can_fail);
    tcase_add_test(tcase, another_weight_is_on_the_first_page);
    tcase_add_test(tcase, taps_that_change_the_result_are_mistrusted);
    tcase_add_test(tcase, state_of_a_longer_sequence_is_mistrusted);
    tcase_add_test(tcase, enough_repeats);
    tcase_add_test(tcase, ledger_adds_up);
    tcase_add_test(tcase, ledger_prices_the_weights);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
