/* The registry in the program, what its reader refuses, and how MODEL becomes a path. */
#include "fixture/registry.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ROW(name, sha, extra)                                                                                          \
    "{\"name\":\"" name "\",\"architecture\":\"a\",\"content\":\"c\",\"licence\":\"l\",\"licence_source\":\"s\","      \
    "\"bytes\":5,\"sha256\":\"" sha "\",\"sources\":[" extra "]}"
#define FILE_OF(rows) "{\"schema_version\":1,\"models\":[" rows "]}"

START_TEST(in_the_program) {
    struct par_registry *r;
    struct fwd_error err = {0};
    ck_assert_msg(par_registry_open(&r, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_ge(par_registry_size(r), 2);
    const struct par_model_entry *e = par_registry_find(r, "qwen2.5-coder-1.5b");
    ck_assert_ptr_nonnull(e);
    ck_assert_uint_eq(e->n_bytes, 1117320768);
    ck_assert_str_eq(e->sha256, "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046");
    e = par_registry_find(r, "smollm2-135m");
    ck_assert_ptr_nonnull(e);
    ck_assert_uint_eq(e->n_bytes, 98362432);
    ck_assert_str_eq(e->sha256, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    ck_assert_ptr_null(par_registry_find(r, "smollm2"));
    ck_assert_str_eq(par_registry_nearest(r, "smollm2")->name, "smollm2-135m");
    ck_assert_str_eq(par_registry_nearest(r, "smollm2-360m")->name, "smollm2-135m");
    ck_assert_str_eq(par_registry_nearest(r, "qwen-1.5b")->name, "qwen2.5-coder-1.5b");
    ck_assert_str_eq(par_registry_nearest(r, "qwen")->name, "qwen2.5-coder-1.5b");
    ck_assert_str_eq(par_registry_nearest(r, "qwen-coder-1.5b")->name, "qwen2.5-coder-1.5b");
    ck_assert_ptr_null(par_registry_at(r, par_registry_size(r)));
    par_registry_close(r);
}
END_TEST

static const struct {
    const char *text, *says;
} refused[] = {
    {"{\"schema_version\":2,\"models\":[]}", "\"schema_version\" is 2"},
    {"{\"schema_version\":1}", "\"models\" is missing"},
    {"{\"schema_version\":1,\"models\":[],\"x\":1}", "unknown key \"x\""},
    {FILE_OF(ROW("a", SHA, "") "," ROW("a", SHA, "")), "\"a\" appears twice"},
    {FILE_OF(ROW("../a", SHA, "")), "not of the form"},
    {FILE_OF(ROW("a b", SHA, "")), "not of the form"},
    {FILE_OF(ROW("a", "12", "")), "expected 64 digits"},
    {FILE_OF(ROW("a", SHA, "{\"kind\":\"tape\"}")), "expected pypi, url or folder"},
    {FILE_OF(ROW("a", SHA, "{\"kind\":\"url\"}")), "\"url\" is missing"},
    {FILE_OF(ROW("a", SHA, "{\"kind\":\"pypi\",\"wheels\":[{\"package\":\"p\",\"version\":\"1\"}]}")),
     "\"member\" is missing"},
};

START_TEST(refuses) {
    struct par_registry *r;
    struct fwd_error err = {0};
    const char *text = refused[_i].text;
    ck_assert_int_eq(par_registry_parse(&r, text, strlen(text), "r.json", &err), FWD_ECORRUPT);
    ck_assert_msg(strstr(err.message, refused[_i].says) && !strncmp(err.message, "r.json:1: ", 10), "%s", err.message);
}
END_TEST

START_TEST(cache_folder) {
    char path[64];
    ck_assert_int_eq(par_model_cache("/x", "/h", path, sizeof path, NULL), FWD_OK);
    ck_assert_str_eq(path, "/x/parity/models");
    ck_assert_int_eq(par_model_cache("", "/h", path, sizeof path, NULL), FWD_OK);
    ck_assert_str_eq(path, "/h/.cache/parity/models");
    ck_assert_int_eq(par_model_cache(NULL, NULL, path, sizeof path, NULL), FWD_ENOTFOUND);
    ck_assert_int_eq(par_model_cache("/xxxxxxxxxx", NULL, path, 16, NULL), FWD_ERANGE);
}
END_TEST

START_TEST(resolves) {
    struct par_registry *r;
    struct fwd_error err = {0};
    static const char text[] = FILE_OF(ROW("small", SHA, "") "," ROW("large-model", SHA, ""));
    char folder[] = "/tmp/test_registry_XXXXXX", file[64], path[256], tight[20];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(par_registry_parse(&r, text, strlen(text), "r.json", NULL), FWD_OK);
    (void)snprintf(file, sizeof file, "%s/small.gguf", folder);

    ck_assert_int_eq(par_model_resolve(r, "small-1", folder, path, sizeof path, &err), FWD_ENOTFOUND);
    ck_assert_msg(strstr(err.message, "the nearest is small (make model NAME=small"), "%s", err.message);
    ck_assert_int_eq(par_model_resolve(r, "small", folder, path, sizeof path, &err), FWD_ENOTFOUND);
    ck_assert_msg(strstr(err.message, "make model NAME=small"), "%s", err.message);
    ck_assert_int_eq(par_model_resolve(r, "", folder, path, sizeof path, &err), FWD_EINPUT);
    ck_assert_int_eq(par_model_resolve(r, folder, folder, path, sizeof path, &err), FWD_EUNSUPPORTED);

    ck_assert_int_eq(fwd_file_write(file, "1234", 4, NULL), FWD_OK);
    ck_assert_int_eq(par_model_resolve(r, "small", folder, path, sizeof path, &err), FWD_ESHAPE);
    ck_assert_msg(strstr(err.message, "has 4 bytes, expected 5"), "%s", err.message);
    ck_assert_int_eq(fwd_file_write(file, "12345", 5, NULL), FWD_OK);
    ck_assert_int_eq(par_model_resolve(r, "small", folder, path, sizeof path, &err), FWD_OK);
    ck_assert_str_eq(path, file);
    ck_assert_int_eq(par_model_resolve(r, file, "/nowhere", path, sizeof path, &err), FWD_OK);
    ck_assert_str_eq(path, file);
    ck_assert_int_eq(par_model_resolve(r, file, "/nowhere", tight, sizeof tight, &err), FWD_ERANGE);
    (void)remove(file);
    (void)rmdir(folder);
    par_registry_close(r);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("registry");
    TCase *tc = tcase_create("registry");
    tcase_set_timeout(tc, 20);
    tcase_add_test(tc, in_the_program);
    tcase_add_loop_test(tc, refuses, 0, (int)(sizeof refused / sizeof *refused));
    tcase_add_test(tc, cache_folder);
    tcase_add_test(tc, resolves);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
