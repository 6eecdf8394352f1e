/* `parity judge`: a capture of our own path is held; one fault in it is found and named; taps that hold something else
 * than their names say are told from faults; captures that cannot be judged are refused with the reason. */
#include "test/made_capture.h"

static struct copy copy;
static char other[96];

static void set_up_copy(void) {
    set_up();
    copy_capture(&copy, own_path);
    (void)snprintf(other, sizeof other, "%s/other", dir);
}

static void tear_down_copy(void) {
    free_copy(&copy);
    tear_down();
}

static struct par_judgement judged(const struct asked *a) {
    struct par_judgement j;
    struct fwd_error err;
    ok(judge(a, &j, &err), &err);
    return j;
}

/* The copy as plain safetensors with the ids asserted. */
static struct par_judgement judged_copy(const char *key, const char *value) {
    write_safetensors(&copy, other);
    return judged(&(struct asked){.capture = other, .keys = {"token_ids", key}, .values = {ids_text, value}});
}

START_TEST(own_capture_is_held) {
    struct par_judgement j = judged(&(struct asked){.capture = own_path});
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_ptr_null(j.cap);
    ck_assert_int_eq(j.n_judged, j.n_ops);
    ck_assert_int_eq(j.n_unmeasured, 0);
    ck_assert_int_eq(j.n_positions, N_PROMPT);
    ck_assert_uint_gt(j.n_elements, 10000);
    par_judgement_free(&j);
}
END_TEST

static void other_epsilon(void *ud, struct fwd_config *c) {
    (void)ud;
    c->norm_eps *= 100;
}

START_TEST(fault_is_named) {
    trace_own(other, other_epsilon, NULL);
    struct par_judgement j = judged(&(struct asked){.capture = other});
    ck_assert_int_eq(j.verdict, PAR_DIVERGED);
    ck_assert_int_eq(j.ops[j.first].row.op, FWD_OP_ATTN_NORM);
    ck_assert_int_eq(j.ops[j.first].row.layer, 0);
    ck_assert_str_eq(j.ops[j.first].signature, "eps-other");
    ck_assert_int_eq(find_op(&j, FWD_OP_QCUR, 0)->row.verdict, PAR_HELD);
    par_judgement_free(&j);
}
END_TEST

START_TEST(copy_is_held_as_asserted) {
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_ptr_nonnull(strstr(j.cap, "token_ids"));
    ck_assert_ptr_nonnull(strstr(j.cap, "the model"));
    ck_assert_ptr_nonnull(strstr(j.cap, "the numerics"));
    ck_assert_int_eq(j.n_misnamed, 0);
    ck_assert_uint_gt(find_op(&j, FWD_OP_KQV_OUT, 1)->row.n_judged, 0);
    par_judgement_free(&j);
}
END_TEST

START_TEST(one_element) {
    struct copied *t = find_copied(&copy, "ffn_out-1");
    t->x[3 * t->width + 11] += 0.01f;
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_int_eq(j.verdict, PAR_DIVERGED);
    ck_assert_int_eq(j.ops[j.first].row.op, FWD_OP_FFN_OUT);
    ck_assert_int_eq(j.ops[j.first].row.layer, 1);
    ck_assert_uint_eq(j.ops[j.first].row.n_over, 1);
    ck_assert_int_eq(j.ops[j.first].row.worst.pos, 3);
    ck_assert_int_eq(j.ops[j.first].row.worst.row, 11);
    par_judgement_free(&j);
}
END_TEST

START_TEST(nan_is_nonfinite) {
    struct copied *t = find_copied(&copy, "ffn_up-0");
    t->x[5] = __builtin_nanf("");
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_int_eq(j.verdict, PAR_NONFINITE);
    ck_assert_int_eq(j.ops[j.first].row.op, FWD_OP_FFN_UP);
    par_judgement_free(&j);
}
END_TEST

/* ---- alignment --------------------------------------------------------------------------------------------------- */

static void expect_misnamed(struct par_judgement *j, enum fwd_op op, enum par_tap_form form) {
    ck_assert_msg(j->verdict == PAR_MISTRUSTED, "%s: %s", par_verdict_name(j->verdict), j->why);
    ck_assert_int_eq(j->n_accused, 0);
    ck_assert_int_eq(j->n_misnamed, 1);
    ck_assert_int_eq(j->misnamed[0].op, op);
    ck_assert_int_eq(j->misnamed[0].form, form);
    ck_assert_ptr_nonnull(strstr(j->why, "not what its name says"));
    par_judgement_free(j);
}

/* Every layer's tap of that name, in turn; NULL when there is no more. */
static struct copied *next_layer(const char *tap, int layer) {
    char name[32];
    (void)snprintf(name, sizeof name, "%s-%d", tap, layer);
    for (int i = 0; i < copy.n; i++)
        if (!strcmp(copy.t[i].name, name))
            return &copy.t[i];
    ck_assert_int_gt(layer, 1);
    return NULL;
}

START_TEST(before_bias) {
    struct copied *t;
    for (int layer = 0; (t = next_layer("Qcur", layer)); layer++) {
        char name[32];
        (void)snprintf(name, sizeof name, "blk.%d.attn_q.bias", layer);
        const struct fwd_gguf_tensor *b = fwd_gguf_find(model, name);
        ck_assert_ptr_nonnull(b);
        for (int64_t i = 0; i < t->n_rows * t->width; i++) {
            float bias;
            memcpy(&bias, b->data + 4 * (i % t->width), sizeof bias);
            t->x[i] -= bias;
        }
    }
    struct par_judgement j = judged_copy(NULL, NULL);
    expect_misnamed(&j, FWD_OP_QCUR, PAR_FORM_BEFORE_BIAS);
    j = judged_copy("tap:Qcur", "before-bias"); /* as a person may say */
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_ptr_nonnull(strstr(j.cap, "tap:Qcur"));
    par_judgement_free(&j);
}
END_TEST

static void forget_bias(void *ud, struct fwd_model *m) {
    static const uint8_t zeros[4 * 4096];
    (void)ud;
    ck_assert_int_le(m->layers[0].bq.n_cols, (int64_t)sizeof zeros / 4);
    m->layers[0].bq.data = zeros;
    m->layers[0].bv.data = zeros;
}

/* An engine that forgets the bias: what reads the tap reads it without one too. */
START_TEST(forgotten_bias_is_accused) {
    char path[128];
    (void)snprintf(path, sizeof path, "%s/forgot", dir);
    trace_own(path, NULL, forget_bias);
    free_copy(&copy);
    copy_capture(&copy, path);
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_int_eq(j.verdict, PAR_DIVERGED);
    ck_assert_int_eq(j.n_misnamed, 0);
    ck_assert_int_eq(j.n_accused, 2);
    ck_assert_int_eq(j.ops[j.first].row.op, FWD_OP_QCUR);
    ck_assert_str_eq(j.ops[j.first].signature, "bias-missing");
    ck_assert_int_eq(find_op(&j, FWD_OP_VCUR, 0)->row.verdict, PAR_DIVERGED);
    par_judgement_free(&j);
}
END_TEST

/* The pairs of the rotation apart, as one program has them, or together, as another. */
START_TEST(permuted_heads) {
    struct par_spec_model *spec;
    struct fwd_error err;
    struct copied *t;
    float row[4096];
    ok(par_spec_open(&spec, model, &err), &err);
    int64_t d = par_spec_config(spec)->head_dim;
    par_spec_close(spec);
    for (int layer = 0; (t = next_layer("Kcur", layer)); layer++)
        for (int64_t p = 0; p < t->n_rows; p++) {
            memcpy(row, t->x + p * t->width, (size_t)t->width * sizeof *row);
            for (int64_t k = 0; k < t->width; k++) {
                int64_t i = k % d, from = _i ? i % 2 * (d / 2) + i / 2 : i % (d / 2) * 2 + i / (d / 2);
                t->x[p * t->width + k] = row[k - i + from];
            }
        }
    struct par_judgement j = judged_copy(NULL, NULL);
    expect_misnamed(&j, FWD_OP_KCUR, _i ? PAR_FORM_PAIRS_JOINED : PAR_FORM_PAIRS_SPLIT);
}
END_TEST

START_TEST(transposed) {
    struct copied *t;
    for (int layer = 0; (t = next_layer("ffn_up", layer)); layer++) {
        float *x = malloc((size_t)(t->n_rows * t->width) * sizeof *x);
        ck_assert_ptr_nonnull(x);
        for (int64_t p = 0; p < t->n_rows; p++)
            for (int64_t k = 0; k < t->width; k++)
                x[k * t->n_rows + p] = t->x[p * t->width + k];
        free(t->x);
        t->x = x;
        if (_i) { /* as its shape says; else only its values do */
            int64_t n = t->n_rows;
            t->n_rows = t->width;
            t->width = n;
        }
    }
    struct par_judgement j = judged_copy(NULL, NULL);
    expect_misnamed(&j, FWD_OP_FFN_UP, PAR_FORM_TRANSPOSED);
}
END_TEST

/* One row of a sequence is the last one's. */
START_TEST(last_position_only) {
    struct copied *t = find_copied(&copy, "result_output");
    memmove(t->x, t->x + (t->n_rows - 1) * t->width, (size_t)t->width * sizeof *t->x);
    t->n_rows = 1;
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_uint_eq(find_op(&j, FWD_OP_RESULT_OUTPUT, -1)->row.n_judged, (uint64_t)t->width);
    par_judgement_free(&j);
}
END_TEST

START_TEST(other_names) {
    char map[96];
    (void)snprintf(map, sizeof map, "%s/map.json", dir);
    static const char *const names[][2] = {{"l_out-0", "model.layers.0"},
                                           {"ffn_up-1", "model.layers.1.mlp.up_proj"},
                                           {"ffn_out-0", "layer-0/ffn_out"},
                                           {"attn_out-0", "blocks.0.mixer"}};
    for (int i = 0; i < 4; i++)
        (void)snprintf(find_copied(&copy, names[i][0])->name, sizeof copy.t[0].name, "%s", names[i][1]);
    FILE *out = fopen(map, "wb");
    ck_assert_ptr_nonnull(out);
    (void)fputs("{\"blocks.#.mixer\": \"attn_out-#\"}", out);
    ck_assert_int_eq(fclose(out), 0);
    write_safetensors(&copy, other);
    struct par_judgement j =
        judged(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {ids_text}, .map = map});
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_uint_eq(j.n_unknown, 0);
    ck_assert_uint_gt(find_op(&j, FWD_OP_ATTN_OUT, 0)->row.n_judged, 0);
    ck_assert_uint_gt(find_op(&j, FWD_OP_L_OUT, 0)->row.n_judged, 0);
    par_judgement_free(&j);
}
END_TEST

START_TEST(missing_input_is_unmeasured) {
    struct copied *t = find_copied(&copy, "kqv_out-1");
    (void)snprintf(t->name, sizeof t->name, "something-1");
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_int_eq(j.verdict, PAR_HELD);
    ck_assert_int_eq(j.n_unmeasured, 2);
    ck_assert_int_eq(find_op(&j, FWD_OP_KQV_OUT, 1)->row.verdict, PAR_UNMEASURED);
    ck_assert_int_eq(find_op(&j, FWD_OP_ATTN_OUT, 1)->row.verdict, PAR_UNMEASURED);
    ck_assert_uint_eq(j.n_unknown, 1);
    ck_assert_str_eq(j.unknown, "something-1");
    par_judgement_free(&j);
}
END_TEST

/* ---- what is refused, or not trusted ----------------------------------------------------------------------------- */

static void expect_refused(const struct asked *a, enum fwd_status code, const char *words) {
    struct par_judgement j;
    struct fwd_error err = {0};
    ck_assert_int_eq(judge(a, &j, &err), code);
    ck_assert_msg(strstr(err.message, words) != NULL, "%s", err.message);
    par_judgement_free(&j);
}

START_TEST(refusals) {
    write_safetensors(&copy, other);
    expect_refused(&(struct asked){.capture = other}, FWD_EMISSING, "token ids are not known");
    expect_refused(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {"1,2,99999,4,5,6,7,8,9"}},
                   FWD_ERANGE, "other ids");
    expect_refused(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {"1,2,x"}}, FWD_ECORRUPT,
                   "no list of numbers");
    expect_refused(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {"1,2,3"}}, FWD_ESHAPE,
                   "9 rows for positions 0 to 2");
    expect_refused(&(struct asked){.capture = own_path, .keys = {"token_ids"}, .values = {"1,2,3"}}, FWD_ECORRUPT,
                   "the capture records");
    expect_refused(&(struct asked){.capture = own_path, .sha = "bb"}, FWD_ESHAPE, "another model");
    expect_refused(&(struct asked){.capture = other, .keys = {"token_ids", "positions"}, .values = {ids_text, "3:99"}},
                   FWD_ERANGE, "positions are");
    expect_refused(
        &(struct asked){.capture = other, .keys = {"token_ids", "tap:Qcur"}, .values = {ids_text, "upside-down"}},
        FWD_EINPUT, "expected as-named");
    expect_refused(&(struct asked){.capture = "/nowhere/at/all"}, FWD_ENOTFOUND, "cannot be opened");
    find_copied(&copy, "attn_norm-0")->width -= 2;
    write_safetensors(&copy, other);
    expect_refused(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {ids_text}}, FWD_ESHAPE,
                   "another model?");
}
END_TEST

START_TEST(half_written) {
    char command[256];
    (void)snprintf(command, sizeof command, "head -c 20000 %s > %s", own_path, other);
    ck_assert_int_eq(system(command), 0);
    struct par_judgement j;
    struct fwd_error err;
    ck_assert_int_ne(judge(&(struct asked){.capture = other}, &j, &err), FWD_OK);
}
END_TEST

START_TEST(other_ids_are_mistrusted) {
    write_safetensors(&copy, other);
    struct par_judgement j =
        judged(&(struct asked){.capture = other, .keys = {"token_ids"}, .values = {"5,17,300,41,2,99,7,120,34"}});
    ck_assert_int_eq(j.verdict, PAR_MISTRUSTED);
    ck_assert_ptr_nonnull(strstr(j.why, "other ids"));
    par_judgement_free(&j);
}
END_TEST

START_TEST(missing_layer_is_mistrusted) {
    int kept = 0;
    for (int i = 0; i < copy.n; i++) {
        const char *dash = strrchr(copy.t[i].name, '-');
        if (dash && !strcmp(dash, "-1"))
            free(copy.t[i].x);
        else
            copy.t[kept++] = copy.t[i];
    }
    copy.n = kept;
    struct par_judgement j = judged_copy(NULL, NULL);
    ck_assert_int_eq(j.verdict, PAR_MISTRUSTED);
    ck_assert_ptr_nonnull(strstr(j.why, "layer 1 shows no tap"));
    par_judgement_free(&j);
    j = judged_copy("layers", "0..0");
    ck_assert_int_eq(j.verdict, PAR_HELD);
    par_judgement_free(&j);
}
END_TEST

/* ---- side file, report ------------------------------------------------------------------------------------------- */

START_TEST(side_file) {
    char side[128];
    write_safetensors(&copy, other);
    (void)snprintf(side, sizeof side, "%s.facts.json", other);
    FILE *out = fopen(side, "wb");
    ck_assert_ptr_nonnull(out);
    (void)fprintf(out, "{\"token_ids\": \"%s\", \"model_sha256\": \"aa\"}", ids_text);
    ck_assert_int_eq(fclose(out), 0);
    struct par_judgement j = judged(&(struct asked){.capture = other});
    ck_assert_int_eq(j.verdict, PAR_HELD);
    ck_assert_str_eq(j.cap, "token_ids, model_sha256, the numerics");
    par_judgement_free(&j);
}
END_TEST

START_TEST(written_report) {
    char folder[96], path[128], text[4096];
    struct fwd_error err;
    (void)snprintf(folder, sizeof folder, "%s/report", dir);
    find_copied(&copy, "ffn_out-1")->x[7] += 1;
    struct par_judgement j = judged_copy(NULL, NULL);
    ok(par_judgement_write(&j, folder, &err), &err);
    par_judgement_free(&j);
    (void)snprintf(path, sizeof path, "%s/verdict.json", folder);
    FILE *in = fopen(path, "rb");
    ck_assert_ptr_nonnull(in);
    text[fread(text, 1, sizeof text - 1, in)] = 0;
    (void)fclose(in);
    ck_assert_ptr_nonnull(strstr(text, "\"DIVERGED\""));
    ck_assert_ptr_nonnull(strstr(text, "\"ffn_out\""));
    (void)snprintf(path, sizeof path, "%s/judgement.txt", folder);
    in = fopen(path, "rb");
    ck_assert_ptr_nonnull(in);
    text[fread(text, 1, sizeof text - 1, in)] = 0;
    (void)fclose(in);
    ck_assert_ptr_nonnull(strstr(text, "guilty     ffn_out of layer 1"));
    ck_assert_ptr_nonnull(strstr(text, "position 0, row 7"));
}
END_TEST

int main(void) {
    Suite *s = suite_create("judgement");
    TCase *own = tcase_create("own"), *copied = tcase_create("copied");
    tcase_add_checked_fixture(own, set_up, tear_down);
    tcase_add_checked_fixture(copied, set_up_copy, tear_down_copy);
    tcase_set_timeout(own, 120);
    tcase_set_timeout(copied, 120);
    tcase_add_test(own, own_capture_is_held);
    tcase_add_test(copied, fault_is_named);
    tcase_add_test(copied, copy_is_held_as_asserted);
    tcase_add_test(copied, one_element);
    tcase_add_test(copied, nan_is_nonfinite);
    tcase_add_test(copied, before_bias);
    tcase_add_test(copied, forgotten_bias_is_accused);
    tcase_add_loop_test(copied, permuted_heads, 0, 2);
    tcase_add_loop_test(copied, transposed, 0, 2);
    tcase_add_test(copied, last_position_only);
    tcase_add_test(copied, other_names);
    tcase_add_test(copied, missing_input_is_unmeasured);
    tcase_add_test(copied, refusals);
    tcase_add_test(copied, half_written);
    tcase_add_test(copied, other_ids_are_mistrusted);
    tcase_add_test(copied, missing_layer_is_mistrusted);
    tcase_add_test(copied, side_file);
    tcase_add_test(copied, written_report);
    suite_add_tcase(s, own);
    suite_add_tcase(s, copied);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r), run = srunner_ntests_run(r);
    srunner_free(r);
    return run == 0 ? 3 : failed != 0;
}
