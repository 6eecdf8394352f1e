/* Signatures of matrix products and of where values stand. Each must be diagnosed as itself and as nothing else; noise
 * must stay unexplained; right values must not be explained at all. */
#include "test/made_evidence.h"

START_TEST(decoding) {
    static const struct {
        const char *name;
        uint32_t type;
        enum bug bug;
    } list[] = {{"nibble-order", FWD_TYPE_Q4_K, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q4_K, ZIP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q6_K, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q4_0, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q5_0, ZIP_NIBBLES},
                {"scale-other-subblock", FWD_TYPE_Q4_K, NEXT_SCALE},
                {"scale-other-subblock", FWD_TYPE_Q6_K, NEXT_SCALE},
                {"scale-other-subblock", FWD_TYPE_Q4_K, FIRST_SCALE},
                {"min-other-subblock", FWD_TYPE_Q4_K, NEXT_MIN},
                {"min-dropped", FWD_TYPE_Q4_K, NO_MIN},
                {"min-dropped", FWD_TYPE_Q6_K, NO_MIN},
                {"min-dropped", FWD_TYPE_Q4_0, NO_MIN},
                {"min-added", FWD_TYPE_Q5_K, PLUS_MIN},
                {"high-bits-misplaced", FWD_TYPE_Q5_K, HIGH_ELSEWHERE},
                {"high-bits-misplaced", FWD_TYPE_Q6_K, HIGH_ELSEWHERE},
                {"high-bits-misplaced", FWD_TYPE_Q5_0, HIGH_ELSEWHERE},
                {"high-bits-dropped", FWD_TYPE_Q5_K, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q6_K, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q5_0, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q4_K, SIX_BIT_CUT}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        for (int where = 0; where < 3; where++) { /* everywhere; some rows of late positions; one block of a few rows */
            make_model(list[i].type);
            matmul_call(where == 1 ? FWD_OP_FFN_OUT : FWD_OP_KCUR, 1, where == 1);
            struct wrong b = like_spec();
            b.bug = list[i].bug;
            b.from = where == 1 ? 4 : 0;
            b.row = where ? 30 : 0;
            b.row_end = where == 1 ? 60 : where == 2 ? 33 : 0;
            b.only_block = where == 2 ? 1 : -1;
            multiply(&b);
            expect(list[i].name);
        }
}
END_TEST

START_TEST(weights) {
    make_model(FWD_TYPE_Q4_K);
    struct wrong b;
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[2].v;
    multiply(&b);
    expect("weight-other-layer");
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[0].v;
    b.bias = &layers[0].v_bias;
    multiply(&b);
    expect("weight-other-layer");
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[1].k;
    multiply(&b);
    expect("weight-other-matrix");
    matmul_call(FWD_OP_FFN_GATE, 1, true);
    b = like_spec();
    b.w = &layers[1].up;
    multiply(&b);
    expect("gate-up-swapped");
    matmul_call(FWD_OP_QCUR, 1, false);
    b = like_spec();
    b.row = 2 * HEAD;
    b.row_end = 3 * HEAD;
    b.shift = HEAD;
    multiply(&b);
    expect("weight-other-head");
    matmul_call(FWD_OP_ATTN_OUT, 1, false);
    b = like_spec();
    b.shift = 1;
    multiply(&b);
    expect("weight-stride");
    matmul_call(FWD_OP_FFN_UP, 1, false);
    b = like_spec();
    b.stride = layers[1].up.row_bytes - 144;
    multiply(&b);
    expect("weight-stride");
}
END_TEST

/* The flat matrix read with rows and columns exchanged, and bytes taken for another type's. */
START_TEST(layouts) {
    make_model(FWD_TYPE_Q4_K);
    for (int wide = 0; wide < 2; wide++) {
        matmul_call(wide ? FWD_OP_FFN_UP : FWD_OP_ATTN_OUT, 1, wide != 0);
        const struct spec_weight *w = par_spec_weight(&model, item.op, 1);
        for (int pos = 0; pos < N_POS; pos++)
            for (int64_t r = 0; r < w->n_rows; r++) {
                double sum = 0;
                for (int64_t k = 0; k < w->n_cols; k++) {
                    int64_t at = k * w->n_rows + r;
                    sum += act(pos, k) * value(w->data + at / w->n_cols * w->row_bytes, w->type, at % w->n_cols, NONE);
                }
                out_row(pos)[r] = (float)sum;
            }
        expect("weight-transposed");
    }
    make_model(FWD_TYPE_Q6_K);
    matmul_call(FWD_OP_FFN_UP, 1, false);
    struct spec_weight taken = layers[1].up;
    taken.type = FWD_TYPE_Q4_K;
    struct wrong b = like_spec();
    b.w = &taken;
    multiply(&b);
    expect("weight-other-type");
}
END_TEST

/* ---- terms -------------------------------------------------------------------------------------------------------
 */
START_TEST(biases) {
    make_model(FWD_TYPE_Q4_K);
    static const char *const names[] = {"bias-missing", "bias-twice", "bias-other-layer", "bias-twice"};
    static const double times[] = {0, 2, 1, -1};
    for (int i = 0; i < 4; i++) {
        matmul_call(FWD_OP_QCUR, 1, i == 3);
        struct wrong b = like_spec();
        b.from = i;
        b.row_end = i ? 2 * HEAD : 0;
        b.bias_times = times[i];
        b.bias = i == 2 ? &layers[0].q_bias : b.bias;
        multiply(&b);
        expect(names[i]);
    }
}
END_TEST

START_TEST(tails) {
    make_model(FWD_TYPE_Q6_K);
    for (int i = 0; i < 2; i++) {
        matmul_call(FWD_OP_FFN_OUT, 1, i != 0);
        struct wrong b = like_spec();
        b.k_end = i ? N_FF - 16 : N_FF - 256;
        b.row = 40;
        b.row_end = 50;
        multiply(&b);
        expect("k-tail-skipped");
        matmul_call(i ? FWD_OP_KCUR : FWD_OP_FFN_OUT, 1, i != 0);
        const struct spec_weight *bias = par_spec_bias(&model, item.op, 1);
        for (int pos = 2; pos < N_POS; pos++)
            for (int64_t r = call.out.ne[0] - 5; r < call.out.ne[0]; r++)
                out_row(pos)[r] = bias ? ((const float *)(const void *)bias->data)[r] : 0;
        expect("rows-tail-skipped");
    }
    matmul_call(FWD_OP_FFN_OUT, 1, false);
    struct wrong b = like_spec(); /* a block in the middle */
    b.k_end = 256;
    b.row_end = 3;
    multiply(&b);
    for (int pos = 0; pos < N_POS; pos++)
        for (int64_t r = 0; r < 3; r++)
            for (int64_t k = 512; k < N_FF; k++)
                out_row(pos)[r] += (float)(act(pos, k) * value(layers[1].down.data + r * layers[1].down.row_bytes,
                                                               FWD_TYPE_Q6_K, k, NONE));
    expect("k-block-skipped");
}
END_TEST

/* Every block added up in F16, or operands rounded to it. */
START_TEST(narrow) {
    make_model(FWD_TYPE_Q4_K);
    for (int kind = 0; kind < 3; kind++) {
        matmul_call(kind == 1 ? FWD_OP_KCUR : FWD_OP_FFN_UP, 1, kind == 2);
        const struct spec_weight *w = par_spec_weight(&model, item.op, 1), *bias = par_spec_bias(&model, item.op, 1);
        for (int pos = 0; pos < N_POS; pos++)
            for (int64_t r = 8; r < 40; r++) {
                float sum = 0;
                double wide = 0;
                for (int64_t k = 0; k < N_EMBD; k++) {
                    double v = value(w->data + r * w->row_bytes, w->type, k, NONE);
                    sum = half_of((double)sum + (double)half_of(v * act(pos, k)));
                    wide += (double)half_of(v) * (double)half_of(act(pos, k));
                }
                out_row(pos)[r] = kind == 2 ? (float)wide : sum;
                if (bias)
                    out_row(pos)[r] += ((const float *)(const void *)bias->data)[r];
            }
        expect("accumulate-f16");
    }
    float_call(FWD_OP_L_OUT, 1, 2, N_EMBD, N_EMBD);
    for (int pos = 3; pos < N_POS; pos++)
        for (int k = 0; k < N_EMBD; k++)
            out_row(pos)[k] = half_of((double)out_row(pos)[k]);
    expect("saturate-f16");
}
END_TEST

START_TEST(overflows) {
    make_model(FWD_TYPE_Q4_K);
    for (int kind = 0; kind < 3; kind++) {
        float_call(FWD_OP_FFN_SWIGLU, 1, 2, N_FF, N_FF);
        for (int i = 0; i < N_FF * N_POS; i++)
            ((float *)call.in[1].data)[i] *= 30000;
        fill_right();
        for (int pos = 0; pos < N_POS; pos++)
            for (int k = 0; k < N_FF; k++) {
                float y = out_row(pos)[k];
                out_row(pos)[k] = fabsf(y) <= 65504 ? y : kind ? copysignf(65504, y) : copysignf(INFINITY, y);
            }
        expect("saturate-f16");
    }
    matmul_call(FWD_OP_FFN_UP, 1, true); /* activations beyond the range, cut to it */
    for (int pos = 0; pos < N_POS; pos++)
        in_row(0, pos)[17] = 2e5f;
    fill_right();
    for (int pos = 0; pos < N_POS; pos++)
        in_row(0, pos)[17] = 65504;
    struct wrong b = like_spec();
    multiply(&b);
    for (int pos = 0; pos < N_POS; pos++)
        in_row(0, pos)[17] = 2e5f;
    expect("saturate-f16");
}
END_TEST

/* Codes made unsigned, pairs of products cut to 16 bits. */
START_TEST(int16_pairs) {
    make_model(FWD_TYPE_Q8_0);
    matmul_call(FWD_OP_FFN_UP, 1, false);
    const struct spec_weight *w = &layers[1].up;
    for (int pos = 0; pos < N_POS; pos++)
        for (int64_t r = 0; r < N_FF; r++) {
            double sum = 0;
            for (int64_t b = 0; b < N_EMBD / 32; b++) {
                const uint8_t *p = w->data + r * w->row_bytes + b * 34,
                              *x = (const uint8_t *)call.in[0].data + pos * call.in[0].nb[1] + b * 40;
                float d;
                memcpy(&d, x, 4);
                int total = 0, codes = 0;
                for (int i = 0; i < 32; i += 2) {
                    int a0 = (int8_t)x[8 + i], a1 = (int8_t)x[9 + i];
                    int pair = ((int8_t)p[2 + i] + 128) * a0 + ((int8_t)p[3 + i] + 128) * a1;
                    total += pair > 32767 ? 32767 : pair < -32768 ? -32768 : pair;
                    codes += a0 + a1;
                }
                sum += half(p) * (double)d * (total - 128 * codes);
            }
            out_row(pos)[r] = (float)sum;
        }
    expect("saturate-int16");
}
END_TEST

/* ---- single values -----------------------------------------------------------------------------------------------
 */
static void add_column(int64_t r, int64_t k, double by) {
    for (int pos = 0; pos < N_POS; pos++)
        out_row(pos)[r] = (float)((double)out_row(pos)[r] + by * act(pos, k));
}

START_TEST(single) {
    make_model(FWD_TYPE_Q4_K);
    const struct spec_weight *w = &layers[1].up;
    int64_t k = 300;
    const uint8_t *block = w->data + 11 * w->row_bytes + 144;
    matmul_call(FWD_OP_FFN_UP, 1, false);
    add_column(11, k, half(block) * six_bits(block + 4, (int)(k % 256) / 32, false, false));
    expect("one-weight");
    matmul_call(FWD_OP_FFN_UP, 1, false); /* not a whole step: no code does that */
    add_column(11, k, 0.37 * half(block) * six_bits(block + 4, (int)(k % 256) / 32, false, false));
    expect("unexplained");
    matmul_call(FWD_OP_FFN_UP, 1, false);
    for (int pos = 0; pos < N_POS; pos++)
        for (int64_t r = 9; r < 12; r++) {
            const uint8_t *row = w->data + r * w->row_bytes;
            double scale = 0;
            for (int e = 256; e < 512; e++) {
                double codes = value(row, w->type, e, NONE) - value(row, w->type, e, NO_MIN);
                scale += act(pos, e) * (value(row, w->type, e, NO_MIN) + 0 * codes);
            }
            out_row(pos)[r] = (float)((double)out_row(pos)[r] + 0.25 * scale);
        }
    expect("scale-changed");
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int pos = 1; pos < N_POS; pos++)
        for (int i = 0; i < N_EMBD; i++)
            out_row(pos)[i] *= 1.75f;
    expect("scale-changed");
}
END_TEST

/* ---- values in other places --------------------------------------------------------------------------------------
 */
START_TEST(places) {
    make_model(FWD_TYPE_Q4_K);
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int i = 0; i < N_EMBD; i++) { /* positions 1 and 3 exchanged */
        float x = out_row(1)[i];
        out_row(1)[i] = out_row(3)[i];
        out_row(3)[i] = x;
    }
    expect("rows-exchanged");
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int pos = 0; pos < N_POS - 1; pos++)
        memcpy(out_row(pos), out_row(N_POS - 1), N_EMBD * sizeof(float));
    expect("tap-last-position");
    float_call(FWD_OP_QCUR_ROPE, 1, 1, N_EMBD, N_EMBD);
    for (int pos = 0; pos < N_POS; pos++)
        for (int i = 0; i < HEAD; i++) {
            float x = out_row(pos)[2 * HEAD + i];
            out_row(pos)[2 * HEAD + i] = out_row(pos)[5 * HEAD + i];
            out_row(pos)[5 * HEAD + i] = x;
        }
    expect("head-permuted");
    matmul_call(FWD_OP_FFN_UP, 1, false); /* after the prompt, what was there before */
    memcpy(out_row(6), out_row(5), N_FF * sizeof(float));
    expect("stale-output");
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int pos = 2; pos < 4; pos++) {
        call.twins[call.n_twins++] = (struct par_twin){FWD_OP_ATTN_NORM, 1, pos, pos};
        for (int i = 0; i < N_EMBD; i++)
            out_row(pos)[i] = (float)real();
    }
    expect("stale-output");
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int pos = 2; pos < 4; pos++)
        memset(out_row(pos), 0, N_EMBD * sizeof(float));
    expect("unexplained"); /* zeros are no one's old value */
}
END_TEST

/* Equal inputs give equal outputs, wrong ones too; an op's own bits elsewhere may have been computed from there. */
START_TEST(equal_rows) {
    make_model(FWD_TYPE_Q4_K);
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    memcpy(in_row(0, 3), in_row(0, 2), N_EMBD * sizeof(float));
    fill_right();
    for (int pos = 0; pos < N_POS; pos++)
        for (int i = 0; i < N_EMBD; i++)
            out_row(pos)[i] = pos == 3 ? out_row(2)[i] : out_row(pos)[i] + (float)real();
    struct par_diagnosis d = explain();
    ck_assert_msg(!d.signature && !strstr(d.text, "stale"), "%s: %s", name_of(&d), d.text);
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    for (int i = 0; i < N_EMBD; i++)
        out_row(4)[i] = (float)real(); /* what another call gave at position 1 */
    call.twins[call.n_twins++] = (struct par_twin){FWD_OP_FFN_NORM, 1, 1, 4};
    expect("stale-output");
    d = explain();
    ck_assert_msg(strstr(d.text, "computed from that position's input") != NULL, "%s", d.text);
}
END_TEST

START_TEST(embedding) {
    make_model(FWD_TYPE_Q4_K);
    for (int kind = 0; kind < 3; kind++) {
        begin_item(FWD_OP_INP_EMBD, -1, FWD_I32);
        call.n_in = 1;
        call.in[0] = view_of(FWD_OP_COUNT, FWD_I32, 1, N_POS, tokens);
        call.out = view_of(FWD_OP_INP_EMBD, FWD_F32, N_EMBD, N_POS, floats(N_EMBD * N_POS, 1));
        fill_right();
        for (int pos = 1; pos < N_POS; pos++) {
            const uint8_t *row =
                model.embedding.data + (kind == 1 ? tokens[pos] : tokens[pos - 1]) * model.embedding.row_bytes;
            for (int64_t k = 0; k < N_EMBD && kind < 2; k++) {
                double v = value(row, FWD_TYPE_Q4_K, k, kind ? SWAP_NIBBLES : NONE);
                out_row(pos)[k] = (float)v;
            }
            for (int64_t k = 0; k < N_EMBD && kind == 2; k++)
                out_row(pos)[k] *= 22.5f;
        }
        expect(kind == 0 ? "tokens-shifted" : kind == 1 ? "nibble-order" : "scale-changed");
    }
}
END_TEST

/* ---- neither -----------------------------------------------------------------------------------------------------
 */
START_TEST(noise_is_unexplained) {
    make_model(FWD_TYPE_Q4_K);
    for (int i = 0; i < 6; i++) {
        static const enum fwd_op ops[] = {FWD_OP_QCUR_ROPE, FWD_OP_FFN_NORM, FWD_OP_L_OUT};
        float_call(ops[i % 3], 1, i % 3 == 2 ? 2 : 1, N_EMBD, N_EMBD);
        for (int pos = 2; pos < 5; pos++)
            for (int k = 7; k < (i < 3 ? 8 : N_EMBD); k++)
                out_row(pos)[k] += (float)(0.01 * real() + 0.02);
        expect("unexplained");
    }
}
END_TEST

/* Hardly outside their bounds, by amounts that a factor near 1 cannot help fitting. */
START_TEST(hardly_wrong_is_unexplained) {
    make_model(FWD_TYPE_Q4_K);
    for (double most = 1.5; most < 4; most += 1) {
        float_call(FWD_OP_FFN_SWIGLU, 1, 2, N_FF, N_FF);
        struct par_eval e;
        struct par_elements x;
        struct fwd_error err;
        par_evidence_eval(&item, 0, &e);
        ck_assert_msg(par_spec_elements(&model, NULL, &e, &x, &err) == FWD_OK, "%s", err.message);
        for (int64_t i = 0; i < x.n_pos * x.width; i++) {
            double by = most * (0.4 + 0.6 * fabs(real()));
            ((float *)call.out.data)[i] = (float)(x.expected[i] - copysign(by * x.bound[i], x.expected[i]));
        }
        par_elements_free(&x);
        expect("unexplained");
    }
}
END_TEST

START_TEST(right_is_not_explained) {
    make_model(FWD_TYPE_Q4_K);
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    struct par_diagnosis d = explain();
    ck_assert_uint_eq(d.n_accused, 0);
    ck_assert_msg(!d.signature, "right values are diagnosed as %s", name_of(&d));
}
END_TEST

START_TEST(names_are_unique) {
    const struct par_signature_info *a, *b;
    int n = 0;
    for (; (a = par_signature_info(n)) != NULL; n++)
        for (int j = 0; j < n && (b = par_signature_info(j)) != NULL; j++)
            ck_assert_str_ne(a->name, b->name);
    ck_assert_int_ge(n, 30);
    ck_assert_ptr_null(par_signature_info(n));
    ck_assert_ptr_null(par_signature_info(-1));
}
END_TEST

int main(void) {
    Suite *s = suite_create("explain");
    TCase *t = tcase_create("signatures");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, NULL, free_made);
    tcase_add_test(t, decoding);
    tcase_add_test(t, weights);
    tcase_add_test(t, layouts);
    tcase_add_test(t, biases);
    tcase_add_test(t, tails);
    tcase_add_test(t, narrow);
    tcase_add_test(t, overflows);
    tcase_add_test(t, int16_pairs);
    tcase_add_test(t, single);
    tcase_add_test(t, places);
    tcase_add_test(t, equal_rows);
    tcase_add_test(t, embedding);
    tcase_add_test(t, noise_is_unexplained);
    tcase_add_test(t, hardly_wrong_is_unexplained);
    tcase_add_test(t, right_is_not_explained);
    tcase_add_test(t, names_are_unique);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
