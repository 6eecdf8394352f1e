/* The strict JSON reader: what it refuses, on which line, and what the getters give. */
#include "report/json.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct par_json *parse(const char *text) {
    struct par_json *doc = NULL;
    struct fwd_error err = {0};
    ck_assert_msg(par_json_parse(&doc, text, strlen(text), "t.json", &err) == FWD_OK, "%s", err.message);
    return doc;
}

static const struct {
    const char *text;
    int line; /* of the fault; 0: good */
} texts[] = {
    {"{}", 0},
    {" [1, -0.5e+3, \"\\u00e9\\ud83d\\ude00\", true, null]\n", 0},
    {"\"caf\xc3\xa9\"", 0},
    {"", 1},
    {"{} x", 1},
    {"{}\n\n]", 3},
    {"[01]", 1},
    {"[+1]", 1},
    {"[1.]", 1},
    {"[.5]", 1},
    {"[-]", 1},
    {"[1e]", 1},
    {"[1,\n]", 2},
    {"{\"a\":1,\n}", 2},
    {"{\"a\" 1}", 1},
    {"{a:1}", 1},
    {"[\"\n\"]", 1},
    {"[\"\\q\"]", 1},
    {"[\"\\u12g4\"]", 1},
    {"[\"\\u0000\"]", 1},
    {"[\"\\ud800x\"]", 1},
    {"[\"\\udc00\"]", 1},
    {"[\"\xc0\x80\"]", 1},
    {"[\"\xed\xa0\x80\"]", 1},
    {"[\"\xf4\x90\x80\x80\"]", 1},
    {"[\"\xe2\x82\"]", 1},
    {"[\"open", 1},
    {"[NaN]", 1},
    {"[tru]", 1},
    {"\xef\xbb\xbf{}", 1},
    {"[1]\v", 1},
    {"{\"a\":1,\n\"b\":{\"c\":1,\n\n\"c\":2}}", 4},
    {"[1111111111111111111111111111111111111111111111111111111111111111111]", 1},
};

START_TEST(strict) {
    struct par_json *doc = NULL;
    struct fwd_error err = {0};
    const char *text = texts[_i].text;
    enum fwd_status rc = par_json_parse(&doc, text, strlen(text), "t.json", &err);
    if (texts[_i].line == 0) {
        ck_assert_msg(rc == FWD_OK, "%s", err.message);
    } else {
        ck_assert_msg(rc == FWD_ECORRUPT, "accepted: %s", text);
        ck_assert_ptr_null(doc);
        ck_assert_msg(!strncmp(err.message, "t.json:", 7) && strtol(err.message + 7, NULL, 10) == texts[_i].line,
                      "%s: %s", text, err.message);
    }
    par_json_free(doc);
}
END_TEST

START_TEST(depth_is_limited) {
    char text[200];
    struct par_json *doc = NULL;
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    ck_assert_int_eq(par_json_parse(&doc, text, 128, "t.json", NULL), FWD_OK);
    par_json_free(doc);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    ck_assert_int_eq(par_json_parse(&doc, text, 130, "t.json", NULL), FWD_ECORRUPT);
    ck_assert_int_eq(par_json_parse(&doc, "{}\0", 3, "t.json", NULL), FWD_ECORRUPT);
}
END_TEST

START_TEST(getters) {
    struct par_json *doc = parse("{\"n\": 7, \"big\": \"18446744073709551615\", \"hex\": \"0xfF\",\n"
                                 " \"x\": \"-0x1.8p+1\", \"inf\": \"-inf\", \"half\": 0.5, \"on\": true,\n"
                                 " \"list\": [1, 2, 3], \"o\": {\"k\": \"v\"}}");
    const struct cJSON *root = par_json_root(doc), *node;
    struct fwd_error err = {0};
    int64_t i;
    uint64_t u;
    double d;
    bool b;
    const char *s;
    ck_assert_int_eq(par_json_get_int(doc, root, "n", 0, 9, &i, &err), FWD_OK);
    ck_assert_int_eq(i, 7);
    ck_assert_int_eq(par_json_get_int(doc, root, "n", 0, 6, &i, &err), FWD_ECORRUPT);
    ck_assert_str_eq(err.message, "t.json:1: \"n\" is 7, expected 0 to 6");
    ck_assert_int_eq(par_json_get_int(doc, root, "half", 0, 6, &i, &err), FWD_ECORRUPT);
    ck_assert_int_eq(par_json_get_u64(doc, root, "big", &u, &err), FWD_OK);
    ck_assert_uint_eq(u, UINT64_MAX);
    ck_assert_int_eq(par_json_get_u64(doc, root, "hex", &u, &err), FWD_OK);
    ck_assert_uint_eq(u, 255);
    ck_assert_int_eq(par_json_get_f64_hex(doc, root, "x", &d, &err), FWD_OK);
    ck_assert_double_eq(d, -3.0);
    ck_assert_int_eq(par_json_get_f64_hex(doc, root, "inf", &d, &err), FWD_OK);
    ck_assert(isinf(d) && d < 0);
    ck_assert_int_eq(par_json_get_f64_hex(doc, root, "half", &d, &err), FWD_OK);
    ck_assert_double_eq(d, 0.5);
    ck_assert_int_eq(par_json_get_f64_hex(doc, root, "big", &d, &err), FWD_ECORRUPT);
    ck_assert_int_eq(par_json_get_bool(doc, root, "on", &b, &err), FWD_OK);
    ck_assert(b);
    ck_assert_int_eq(par_json_get_text(doc, root, "on", &s, &err), FWD_ECORRUPT);
    ck_assert_str_eq(err.message, "t.json:2: \"on\" is a truth value, expected a string");
    ck_assert_int_eq(par_json_get_text(doc, root, "N", &s, &err), FWD_ECORRUPT);
    ck_assert_str_eq(err.message, "t.json:1: the key \"N\" is missing");
    ck_assert_int_eq(par_json_get_array(doc, root, "list", &node, &err), FWD_OK);
    int64_t sum = 0;
    for (const struct cJSON *item = par_json_first(node); item; item = par_json_next(item)) {
        ck_assert(par_json_int(item, &i));
        ck_assert_ptr_null(par_json_name(item));
        sum = 10 * sum + i;
    }
    ck_assert_int_eq(sum, 123);
    ck_assert_int_eq(par_json_get_object(doc, root, "o", &node, &err), FWD_OK);
    ck_assert_int_eq(par_json_line(doc, node), 3);
    par_json_free(doc);
}
END_TEST

static const char *const bad_u64[] = {
    "\"-1\"", "\"18446744073709551616\"", "\" 1\"", "\"0x\"", "\"0x0x1\"", "\"\"", "\"12a\"", "7"};

START_TEST(u64_refuses) {
    char text[100];
    uint64_t u;
    (void)snprintf(text, sizeof text, "{\"u\": %s}", bad_u64[_i]);
    struct par_json *doc = parse(text);
    ck_assert_msg(par_json_get_u64(doc, par_json_root(doc), "u", &u, NULL) == FWD_ECORRUPT, "%s", text);
    par_json_free(doc);
}
END_TEST

START_TEST(unknown_keys) {
    static const char *const allowed[] = {"a", "b", NULL};
    struct fwd_error err = {0};
    struct par_json *doc = parse("{\"a\": 1,\n \"c\": 2}");
    ck_assert_int_eq(par_json_keys_only(doc, par_json_root(doc), allowed, &err), FWD_ECORRUPT);
    ck_assert_str_eq(err.message, "t.json:2: unknown key \"c\"");
    par_json_free(doc);
    doc = parse("{\"a\": 1, \"b\": 2}");
    ck_assert_int_eq(par_json_keys_only(doc, par_json_root(doc), allowed, &err), FWD_OK);
    par_json_free(doc);
    doc = parse("[1]");
    ck_assert_int_eq(par_json_keys_only(doc, par_json_root(doc), allowed, &err), FWD_ECORRUPT);
    par_json_free(doc);
}
END_TEST

START_TEST(files) {
    struct par_json *doc = NULL;
    struct fwd_error err = {0};
    ck_assert_int_eq(par_json_read(&doc, "/nonexistent/x.json", 100, &err), FWD_ENOTFOUND);
    char path[] = "/tmp/test_json_XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    FILE *f = fdopen(fd, "wb");
    for (int i = 0; i < 70000; i++)
        (void)fputc(' ', f);
    (void)fputs("{\"a\":1}", f);
    (void)fclose(f);
    ck_assert_int_eq(par_json_read(&doc, path, 70006, &err), FWD_ERANGE);
    ck_assert_int_eq(par_json_read(&doc, path, 70007, &err), FWD_OK);
    ck_assert_ptr_nonnull(par_json_get(par_json_root(doc), "a"));
    ck_assert_str_eq(par_json_file(doc), path);
    par_json_free(doc);
    (void)remove(path);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("json");
    TCase *tc = tcase_create("json");
    tcase_set_timeout(tc, 20);
    tcase_add_loop_test(tc, strict, 0, (int)(sizeof texts / sizeof *texts));
    tcase_add_test(tc, depth_is_limited);
    tcase_add_test(tc, getters);
    tcase_add_loop_test(tc, u64_refuses, 0, (int)(sizeof bad_u64 / sizeof *bad_u64));
    tcase_add_test(tc, unknown_keys);
    tcase_add_test(tc, files);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
