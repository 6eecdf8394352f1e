/* fixtures/MANIFEST.json: every file in it has the hash it says, and every golden file is in it. Run from the root. */
#include "report/json.h"

#include <check.h>
#include <dirent.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static struct par_json *doc;
static const struct cJSON *entries;

static void open_manifest(void) {
    static const char *const keys[] = {"schema", "goldens", NULL};
    struct fwd_error err = {0};
    int64_t schema;
    ck_assert_msg(par_json_read(&doc, "fixtures/MANIFEST.json", 1 << 20, &err) == FWD_OK, "%s", err.message);
    const struct cJSON *root = par_json_root(doc);
    ck_assert_msg(par_json_keys_only(doc, root, keys, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_json_get_int(doc, root, "schema", 1, 1, &schema, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_json_get_array(doc, root, "goldens", &entries, &err) == FWD_OK, "%s", err.message);
}

static void close_manifest(void) {
    par_json_free(doc);
}

static bool sha256_of(const char *path, char hex[65]) {
    unsigned char digest[EVP_MAX_MD_SIZE], block[1 << 14];
    unsigned n_digest = 0;
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    ck_assert_int_eq(EVP_DigestInit_ex(ctx, EVP_sha256(), NULL), 1);
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;)
        ck_assert_int_eq(EVP_DigestUpdate(ctx, block, n), 1);
    ck_assert_int_eq(EVP_DigestFinal_ex(ctx, digest, &n_digest), 1);
    (void)fclose(f);
    EVP_MD_CTX_free(ctx);
    for (size_t i = 0; i < 32; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return true;
}

START_TEST(hashes) {
    static const char *const keys[] = {"file", "sha256", "command", "oracle", NULL};
    int n = 0;
    for (const struct cJSON *e = par_json_first(entries); e; e = par_json_next(e), n++) {
        struct fwd_error err = {0};
        const char *file, *sha256, *text;
        char actual[65];
        ck_assert_msg(par_json_keys_only(doc, e, keys, &err) == FWD_OK, "%s", err.message);
        for (int i = 0; keys[i]; i++) {
            ck_assert_msg(par_json_get_text(doc, e, keys[i], &text, &err) == FWD_OK, "%s", err.message);
            ck_assert_msg(*text, "line %d: empty \"%s\"", par_json_line(doc, e), keys[i]);
        }
        (void)par_json_get_text(doc, e, "file", &file, &err);
        (void)par_json_get_text(doc, e, "sha256", &sha256, &err);
        ck_assert_msg(sha256_of(file, actual), "%s: listed and not there", file);
        ck_assert_msg(!strcmp(actual, sha256), "%s: has SHA-256 %s, listed as %s", file, actual, sha256);
    }
    ck_assert_int_gt(n, 20);
}
END_TEST

static int count_entries(const char *path) {
    int n = 0;
    for (const struct cJSON *e = par_json_first(entries); e; e = par_json_next(e)) {
        const char *file = par_json_text(par_json_get(e, "file"));
        n += file && !strcmp(file, path);
    }
    return n;
}

static int expect_all_listed(const char *folder) {
    int n = 0;
    DIR *d = opendir(folder);
    ck_assert_msg(d != NULL, "%s is missing", folder);
    for (struct dirent *item; (item = readdir(d));) {
        char path[512];
        struct stat st;
        if (item->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof path, "%s/%s", folder, item->d_name);
        ck_assert_int_eq(stat(path, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            n += expect_all_listed(path);
            continue;
        }
        ck_assert_msg(count_entries(path) == 1, "%s: is in the manifest %d times, expected once", path,
                      count_entries(path));
        n++;
    }
    (void)closedir(d);
    return n;
}

START_TEST(complete) {
    static const char *const folders[] = {"fixtures/golden", "fixtures/bad", "fixtures/tokenizer"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        ck_assert_int_gt(expect_all_listed(folders[i]), 0);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("manifest");
    TCase *tc = tcase_create("manifest");
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_manifest, close_manifest);
    tcase_add_test(tc, hashes);
    tcase_add_test(tc, complete);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
