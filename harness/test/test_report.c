/* The report writers on a report filled by hand, with hostile strings and non-finite numbers in it. */
#include "report/report.h"
#include "report/report_escape.h"
#include "report/report_plot.h"

#include <check.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const int32_t ids[] = {9707, 0, 151643, 7};
static struct par_report_op ops[] = {
    {.op = FWD_OP_INP_EMBD,
     .layer = -1,
     .ref = {.op = FWD_OP_INP_EMBD, .layer = -1, .n_judged = 100, .ratio_max = 0.25},
     .cand = {.op = FWD_OP_INP_EMBD, .layer = -1, .n_judged = 100, .ratio_max = 0.5}},
    {.op = FWD_OP_QCUR,
     .layer = 3,
     .ref = {.op = FWD_OP_QCUR, .layer = 3, .n_judged = 200, .ratio_max = 0.125},
     .cand = {.op = FWD_OP_QCUR,
              .layer = 3,
              .verdict = PAR_DIVERGED,
              .n_judged = 200,
              .n_over = 17,
              .ratio_max = 4099.5,
              .tie_bound = 8,
              .tie_slack = 2,
              .worst = {.pos = 41, .row = 1535, .expected = 0.1, .got = -0.30000000000000004, .bound = 1e-7}}},
    {.op = FWD_OP_L_OUT,
     .layer = 0,
     .ref = {.op = FWD_OP_L_OUT, .n_judged = 300, .ratio_max = 0.5},
     .cand = {.op = FWD_OP_L_OUT, .n_judged = 300, .ratio_max = 0.5},
     .has_free_run = true,
     .free_run = {.n = 300, .rel_l2 = 1e-3, .cosine = 0.999}},
    {.op = FWD_OP_L_OUT,
     .layer = 1,
     .ref = {.op = FWD_OP_L_OUT, .layer = 1, .n_judged = 300, .ratio_max = 0.5},
     .cand =
         {.op = FWD_OP_L_OUT, .layer = 1, .verdict = PAR_UNMEASURED, .note = "the tap never <came> \x01 & \"left\""},
     .has_free_run = true,
     .free_run = {.n = 300, .rel_l2 = 0.1}},
    {.op = FWD_OP_RESULT_NORM, /* claims HELD with nothing judged */
     .layer = -1,
     .ref = {.op = FWD_OP_RESULT_NORM, .layer = -1, .verdict = PAR_HELD},
     .cand = {.op = FWD_OP_RESULT_NORM, .layer = -1, .verdict = PAR_HELD}},
};
static struct par_report_logits logits[] = {
    {.pos = 2, .verdict = PAR_HELD, .what = "equal", .m = {.top_ref = 220, .top_got = 220, .margin_ref = 1.0 / 3}},
    {.pos = 3,
     .decode = true,
     .verdict = PAR_DIVERGED,
     .what = "flip beyond the spread",
     .m = {.top_ref = 220, .top_got = 1337, .kl = 0.5, .k = 10, .topk_overlap = 3}},
};
static const struct par_report_contract contracts[] = {
    {.contract = "ship-via-cpu", .id = "FALSIFY-X-001", .rule = "a < b && c", .verdict = PAR_HELD, .detail = "fine"},
    {.contract = "ship-via-cpu", .id = "FALSIFY-X-002", .rule = "r", .verdict = PAR_UNMEASURED, .detail = "no GPU"},
    {.contract = "ship-via-cpu", .id = "FALSIFY-X-003", .rule = "r", .verdict = PAR_REFUSED, .detail = "other ids"},
    {.contract = "ship-via-cpu", .id = "FALSIFY-X-004", .rule = "r", .verdict = PAR_NONFINITE, .detail = "NaN"},
};
static const struct par_report_proof proofs[] = {{"neutral", "0x1 and 0x1", PAR_HELD},
                                                 {"deterministic", "0x1, then 0x2", PAR_MISTRUSTED}};
static const struct par_report_coverage coverage[] = {{"q4k-cpu", "prefill", "positions judged", 78, 78},
                                                      {"q4k-cuda", "step", "positions judged", 0, 78}};
static const struct par_report_arm arms[] = {
    {.id = "kv=f32",
     .what = "F32 KV cache",
     .hypothesis = "H2",
     .ran = true,
     .logits_hash = 0xfedcba9876543210u,
     .distance_to_ref = 0.25,
     .distance_base = (double)INFINITY,
     .result = "no change",
     .command = "parity run --kv f32"},
    {.id = "force", .hypothesis = "H4", .ran = false, .result = "no such variant"},
};
static const struct par_report_hypothesis hypotheses[] = {
    {"H1", "fused matmul", "SUPPORTED", "Qcur of layer 3 is outside its bound", "parity run m.gguf --arm x"}};
static const struct par_report_pair config[] = {{"n_layer", "engine 28, harness 28"}};
static const struct par_report_pair receipt[] = {{"build", "abc"}, {"host", NULL}};

static struct par_report make_report(void) {
    return (struct par_report){.verdict = PAR_DIVERGED,
                               .answer = "bug",
                               .side = "candidate",
                               .guilty = "Qcur of layer 3",
                               .worst = "position 41, row 1535",
                               .tokens = "yes, at position 3",
                               .command = "parity run 'm o d e l.gguf' -p '<x> & \"y\"'",
                               .scope = "q4k-cpu, prefill",
                               .model_path = "m.gguf",
                               .model_sha256 = "cc32",
                               .ref_path = "f32",
                               .cand_path = "q4k-cpu",
                               .prompt = "caf\xc3\xa9 \xff\x01 <&>|\n",
                               .ids = ids,
                               .n_ids = 4,
                               .n_prompt = 3,
                               .ops = ops,
                               .n_ops = (int)(sizeof ops / sizeof *ops),
                               .logits = logits,
                               .n_logits = 2,
                               .arms = arms,
                               .n_arms = 2,
                               .hypotheses = hypotheses,
                               .n_hypotheses = 1,
                               .contracts = contracts,
                               .n_contracts = 4,
                               .coverage = coverage,
                               .n_coverage = 2,
                               .config = config,
                               .n_config = 1,
                               .proofs = proofs,
                               .n_proofs = 2,
                               .receipt = receipt,
                               .n_receipt = 2};
}

static char *render_text(const struct par_report *r, enum par_report_detail detail) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(f);
    par_report_text(r, detail, f);
    (void)fclose(f);
    return text;
}

/* ---- text ------------------------------------------------------------------------------------------------------ */

START_TEST(text_first_page) {
    struct par_report r = make_report();
    char *text = render_text(&r, PAR_DETAIL_BRIEF);
    static const char *const first[] = {"bug or noise   bug\n",
                                        "which side     candidate\n",
                                        "guilty op      Qcur of layer 3\n",
                                        "worst element  position 41, row 1535\n",
                                        "tokens         yes, at position 3\n",
                                        "reproduce      parity run 'm o d e l.gguf' -p '<x> & \"y\"'\n",
                                        "verdict        DIVERGED (exit 1)\n",
                                        "covers         q4k-cpu, prefill\n"};
    const char *at = text;
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        ck_assert_msg(!strncmp(at, first[i], strlen(first[i])), "line %zu is: %.80s", i, at);
        at += strlen(first[i]);
    }
    free(text);
}
END_TEST

START_TEST(text_width_and_bytes) {
    struct par_report r = make_report();
    r.answer = "a long answer whose words go on and on, well past the hundred and ten columns of the page, so that it "
               "has to be broken at a space, twice, because it is really long, as answers with a reason sometimes are";
    char *text = render_text(&r, PAR_DETAIL_FULL);
    for (char *line = text, *next; *line; line = next) {
        next = strchr(line, '\n');
        ck_assert_ptr_nonnull(next);
        *next++ = 0;
        ck_assert_msg(par_plain_width(line) <= 110 || strstr(line, "parity run"), "%d columns: %s",
                      par_plain_width(line), line);
        for (char *p = line; *p; p++)
            ck_assert_msg((unsigned char)*p >= 0x20 && *p != 0x7f, "control byte %d in: %s", *p, line);
    }
    free(text);
}
END_TEST

START_TEST(text_shows_what_was_measured) {
    struct par_report r = make_report();
    char *text = render_text(&r, PAR_DETAIL_NORMAL);
    ck_assert_ptr_nonnull(strstr(text, "Qcur-3"));
    ck_assert_ptr_nonnull(strstr(text, "got -0.3, expected 0.1"));
    ck_assert_ptr_nonnull(strstr(text, "flip beyond the spread"));
    ck_assert_ptr_nonnull(
        strstr(text, "1 ops hide their quantised input: tie slack up to 25 % of the bounds (Qcur-3)"));
    ck_assert_ptr_nonnull(strstr(text, "UNMEASURED            0 of 78"));
    ck_assert_ptr_nonnull(strstr(text, "H1  SUPPORTED"));
    ck_assert_ptr_nonnull(strstr(text, "caf\xc3\xa9 \\xff\\x01 <&>|\\n"));
    free(text);
    r = (struct par_report){.verdict = PAR_HELD};
    text = render_text(&r, PAR_DETAIL_FULL); /* an empty report is a valid one, and holds nothing */
    ck_assert_ptr_null(strstr(text, "HELD"));
    ck_assert_ptr_nonnull(strstr(text, "verdict        UNMEASURED (exit 3)"));
    free(text);
}
END_TEST

/* HELD with not one judged element: no writer says it. */
START_TEST(held_needs_comparisons) {
    static const struct par_report_op empty[] = {
        {.op = FWD_OP_QCUR, .ref = {.op = FWD_OP_QCUR, .n_judged = 5}, .cand = {.op = FWD_OP_QCUR}}};
    struct par_report r = {.verdict = PAR_HELD, .ops = empty, .n_ops = 1};
    ck_assert_int_eq(par_report_shown(&r), PAR_UNMEASURED);
    char *text[4] = {par_report_json(&r), par_report_verdict_json(&r), par_report_junit(&r), par_report_markdown(&r)};
    ck_assert_ptr_nonnull(strstr(text[0], "\"verdict\":\t\"UNMEASURED\",\n\t\"exit\":\t3"));
    ck_assert_ptr_nonnull(strstr(text[1], "\"verdict\":\t\"UNMEASURED\",\n\t\"exit\":\t3"));
    ck_assert_ptr_null(strstr(text[1], "HELD"));
    ck_assert_ptr_nonnull(strstr(text[2], "name=\"verdict\">\n      <skipped"));
    ck_assert_ptr_nonnull(strstr(text[3], "# parity: UNMEASURED"));
    for (int i = 0; i < 4; i++)
        fwd_free(text[i]);
    struct par_report_op one = empty[0];
    one.cand.n_judged = 1;
    r.ops = &one;
    ck_assert_int_eq(par_report_shown(&r), PAR_HELD);
    r.verdict = PAR_MISTRUSTED;
    ck_assert_int_eq(par_report_shown(&r), PAR_MISTRUSTED);
}
END_TEST

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static const cJSON *get(const cJSON *o, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, key);
    ck_assert_msg(item != NULL, "no member %s", key);
    return item;
}

START_TEST(json_round_trip) {
    struct par_report r = make_report();
    char *text = par_report_json(&r);
    ck_assert_ptr_nonnull(text);
    cJSON *root = cJSON_ParseWithOpts(text, NULL, true);
    ck_assert_ptr_nonnull(root);
    ck_assert_str_eq(get(root, "schema")->valuestring, PAR_REPORT_SCHEMA);
    ck_assert_str_eq(get(root, "verdict")->valuestring, "DIVERGED");
    ck_assert_str_eq(get(get(root, "input"), "prompt")->valuestring, "caf\xc3\xa9 \\xff\x01 <&>|\n");
    ck_assert_int_eq(cJSON_GetArraySize(get(get(root, "input"), "token_ids")), 4);
    ck_assert_int_eq(cJSON_GetArraySize(get(root, "ops")), r.n_ops);

    const cJSON *cand = get(cJSON_GetArrayItem(get(root, "ops"), 1), "candidate");
    const cJSON *worst = get(cand, "worst");
    ck_assert(get(worst, "expected")->valuedouble == 0.1);
    ck_assert(get(worst, "got")->valuedouble == -0.30000000000000004);
    ck_assert(strtod(get(worst, "got_hex")->valuestring, NULL) == -0.30000000000000004);
    ck_assert(strtod(get(worst, "bound_hex")->valuestring, NULL) == 1e-7);
    ck_assert_int_eq(get(cand, "n_over")->valueint, 17);
    ck_assert(get(cand, "tie_slack_share")->valuedouble == 0.25);
    /* an unjudged row has no ratio to read as 0.0, and is not HELD */
    const cJSON *unjudged = get(cJSON_GetArrayItem(get(root, "ops"), 4), "candidate");
    ck_assert_str_eq(get(unjudged, "verdict")->valuestring, "UNMEASURED");
    ck_assert_ptr_null(cJSON_GetObjectItemCaseSensitive(unjudged, "ratio_max"));

    const cJSON *arm = cJSON_GetArrayItem(get(root, "arms"), 0);
    ck_assert_str_eq(get(arm, "logits_hash")->valuestring, "0xfedcba9876543210");
    ck_assert_str_eq(get(arm, "distance_base")->valuestring, "Infinity");
    ck_assert_ptr_null(cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(get(root, "arms"), 1), "same_bits"));
    ck_assert(get(cJSON_GetArrayItem(get(root, "logits"), 0), "margin_ref")->valuedouble == 1.0 / 3);
    ck_assert(cJSON_IsNull(get(cJSON_GetArrayItem(get(root, "receipt"), 1), "value")));
    cJSON_Delete(root);
    fwd_free(text);
}
END_TEST

START_TEST(verdict_json) {
    struct par_report r = make_report();
    char *text = par_report_verdict_json(&r);
    cJSON *root = cJSON_ParseWithOpts(text, NULL, true);
    ck_assert_ptr_nonnull(root);
    ck_assert_str_eq(get(root, "schema")->valuestring, "parity-verdict-v1");
    ck_assert_int_eq(get(root, "exit")->valueint, 1);
    const cJSON *guilty = get(root, "guilty_ops");
    ck_assert_int_eq(cJSON_GetArraySize(guilty), 1);
    ck_assert_str_eq(get(guilty->child, "op")->valuestring, "Qcur");
    ck_assert_str_eq(get(guilty->child, "side")->valuestring, "candidate");
    ck_assert_int_eq(get(root, "n_judged_candidate")->valueint, 600);
    cJSON_Delete(root);
    fwd_free(text);
}
END_TEST

/* ---- JUnit ----------------------------------------------------------------------------------------------------- */

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
        n++;
    return n;
}

/* Tags nest, attributes are quoted, every & begins an entity, no control characters: well-formed enough for any
 * reader. Returns the number of elements. */
static int check_xml(const char *p) {
    char stack[16][32];
    int depth = 0, n = 0;
    ck_assert_int_eq(strncmp(p, "<?xml", 5), 0);
    p = strstr(p, "?>") + 2;
    for (; *p; p++) {
        ck_assert_msg((unsigned char)*p >= 0x20 || *p == '\n', "control byte %d", *p);
        if (*p == '&')
            ck_assert_msg(!strncmp(p, "&amp;", 5) || !strncmp(p, "&lt;", 4) || !strncmp(p, "&gt;", 4) ||
                              !strncmp(p, "&quot;", 6) || !strncmp(p, "&apos;", 6) || !strncmp(p, "&#", 2),
                          "bare & at: %.20s", p);
        if (*p != '<')
            continue;
        bool closes = p[1] == '/';
        const char *name = p + 1 + closes;
        int length = (int)strcspn(name, " />\n");
        ck_assert_int_lt(length, 31);
        for (bool quoted = false; *p != '>' || quoted; p++) {
            ck_assert(*p && !(quoted && *p == '<'));
            quoted ^= *p == '"';
        }
        if (closes) {
            ck_assert_int_gt(depth, 0);
            depth--;
            ck_assert_msg((int)strlen(stack[depth]) == length && !strncmp(stack[depth], name, (size_t)length),
                          "</%.*s> closes <%s>", length, name, stack[depth]);
        } else {
            n++;
            if (p[-1] != '/') {
                ck_assert_int_lt(depth, 16);
                (void)snprintf(stack[depth++], sizeof stack[0], "%.*s", length, name);
            }
        }
    }
    ck_assert_int_eq(depth, 0);
    return n;
}

START_TEST(junit_cases) {
    struct par_report r = make_report();
    char *text = par_report_junit(&r);
    ck_assert_ptr_nonnull(text);
    /* 1 verdict, 4 kinds of op on 2 sides, 2 positions, 4 contracts, 2 proofs */
    ck_assert_int_eq(count(text, "<testcase "), 1 + 8 + 2 + 4 + 2);
    ck_assert_ptr_nonnull(
        strstr(text, "<testsuites name=\"parity\" tests=\"17\" failures=\"4\" errors=\"2\" skipped=\"4\">"));
    ck_assert_int_eq(count(text, "<failure "), 4); /* verdict, Qcur, position 3, FALSIFY-X-004 */
    ck_assert_int_eq(count(text, "<error "), 2);   /* FALSIFY-X-003, deterministic */
    ck_assert_int_eq(count(text, "<skipped "), 4); /* l_out, result_norm twice, FALSIFY-X-002 */
    ck_assert_int_gt(check_xml(text), 17);
    ck_assert_ptr_nonnull(strstr(text, "the tap never &lt;came&gt; \\x01 &amp; &quot;left&quot;"));
    fwd_free(text);
}
END_TEST

START_TEST(xml_escape) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    par_put_xml(f, "a&b<c>\"'\n\x01\x7f\xc3\xa9\xff\xef\xbf\xbf\xed\xa0\x80");
    (void)fclose(f);
    ck_assert_str_eq(text, "a&amp;b&lt;c&gt;&quot;&apos;&#10;\\x01\\x7f\xc3\xa9\\xff\\xef\\xbf\\xbf\\xed\\xa0\\x80");
    free(text);
}
END_TEST

/* ---- the rest -------------------------------------------------------------------------------------------------- */

START_TEST(markdown) {
    struct par_report r = make_report();
    char *text = par_report_markdown(&r);
    ck_assert_ptr_nonnull(strstr(text, "# parity: DIVERGED"));
    ck_assert_ptr_nonnull(strstr(text, "| Qcur-3 | candidate | DIVERGED | 17 / 200 |"));
    ck_assert_ptr_nonnull(strstr(text, "| FALSIFY-X-001 | HELD | a &lt; b &amp;&amp; c | fine |"));
    fwd_free(text);
    r.command = "a ```` b";
    text = par_report_markdown(&r);
    ck_assert_ptr_nonnull(strstr(text, "\n`````\na ```` b\n`````\n"));
    fwd_free(text);
}
END_TEST

START_TEST(plot) {
    double y[40];
    unsigned char has[40];
    char *text = NULL;
    size_t n = 0;
    for (int i = 0; i < 40; i++) {
        y[i] = pow(10, i / 8.0 - 5);
        has[i] = 1;
    }
    y[0] = 0;
    y[20] = NAN;
    has[30] = 0;
    FILE *f = open_memstream(&text, &n);
    par_plot_log(f, y, has, 40, 110);
    (void)fclose(f);
    ck_assert_int_eq(count(text, "*"), 37);
    ck_assert_int_eq(count(text, "_"), 1);
    ck_assert_int_eq(count(text, "!"), 1);
    const char *top = strchr(text, '|'), *top_end = strchr(text, '\n');
    ck_assert_int_eq(top_end[-2], '*'); /* the largest is the last, on the top line */
    ck_assert(top < top_end);
    free(text);
    memset(has, 0, sizeof has);
    f = open_memstream(&text, &n);
    par_plot_log(f, y, has, 40, 110);
    (void)fclose(f);
    ck_assert_str_eq(text, "");
    free(text);
}
END_TEST

START_TEST(arena) {
    struct par_text *t = par_text_create();
    ck_assert_ptr_nonnull(t);
    const char *kept[200];
    for (int i = 0; i < 200; i++)
        kept[i] = par_text_printf(t, "%d %0*d", i, i * 37, 7);
    char *big = par_text_alloc(t, 1 << 20);
    for (int i = 0; i < 1 << 20; i++)
        ck_assert_int_eq(big[i], 0);
    memset(big, 1, 1 << 20);
    for (int i = 0; i < 200; i++)
        ck_assert_int_eq(strtol(kept[i], NULL, 10), i);
    ck_assert_ptr_null(par_text_alloc(t, SIZE_MAX));
    par_text_free(t);
    par_text_free(NULL);
}
END_TEST

START_TEST(write_files) {
    char dir[] = "/tmp/parity-report-XXXXXX";
    char path[128], old[128];
    struct fwd_error err;
    struct stat st;
    struct par_report r = make_report();
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/a/b", dir);
    ck_assert_msg(par_report_write(&r, path, &err) == FWD_OK, "%s", err.message);
    static const char *const names[] = {"report.txt", "report.json", "verdict.json", "junit.xml", "report.md"};
    for (size_t i = 0; i < 5; i++) {
        (void)snprintf(path, sizeof path, "%s/a/b/%s", dir, names[i]);
        ck_assert_msg(stat(path, &st) == 0 && st.st_size > 100, "%s", path);
    }
    /* a report that cannot be written leaves no verdict of an earlier run */
    (void)snprintf(path, sizeof path, "%s/a/b", dir);
    (void)snprintf(old, sizeof old, "%s/a/b/junit.xml", dir);
    ck_assert_int_eq(unlink(old), 0);
    ck_assert_int_eq(mkdir(old, 0777), 0);
    ck_assert_int_eq(par_report_write(&r, path, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, old) != NULL, "%s", err.message);
    (void)snprintf(path, sizeof path, "%s/a/b/verdict.json", dir);
    ck_assert_int_ne(stat(path, &st), 0);
    /* a file where the folder should be */
    (void)snprintf(path, sizeof path, "%s/a/b/report.md/x", dir);
    ck_assert_int_eq(par_report_write(&r, path, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, path) != NULL, "%s", err.message);
    ck_assert_int_eq(par_report_write(&r, "", &err), FWD_EIO);
    (void)rmdir(old);
    for (size_t i = 0; i < 5; i++) {
        (void)snprintf(path, sizeof path, "%s/a/b/%s", dir, names[i]);
        (void)unlink(path);
    }
    (void)snprintf(path, sizeof path, "%s/a/b", dir);
    (void)rmdir(path);
    (void)snprintf(path, sizeof path, "%s/a", dir);
    (void)rmdir(path);
    ck_assert_int_eq(rmdir(dir), 0); /* nothing half-written stayed behind */
}
END_TEST

int main(void) {
    Suite *s = suite_create("report");
    TCase *t = tcase_create("writers");
    tcase_set_timeout(t, 30);
    tcase_add_test(t, text_first_page);
    tcase_add_test(t, text_width_and_bytes);
    tcase_add_test(t, text_shows_what_was_measured);
    tcase_add_test(t, held_needs_comparisons);
    tcase_add_test(t, json_round_trip);
    tcase_add_test(t, verdict_json);
    tcase_add_test(t, junit_cases);
    tcase_add_test(t, xml_escape);
    tcase_add_test(t, markdown);
    tcase_add_test(t, plot);
    tcase_add_test(t, arena);
    tcase_add_test(t, write_files);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
