/* Digests: the four figures against plain sums, the hash against chunks of another size and against exchanged values.
 */
#include "core/digest.h"
#include "core/memory.h"

#include <check.h>
#include <math.h>
#include <string.h>

enum { N = 3 * FWD_DIGEST_CHUNK + 777 };

static struct fwd_digest digest_of(const float *x, size_t n) {
    struct fwd_digest sum = {0}, chunk;
    for (size_t first = 0; first < n; first += FWD_DIGEST_CHUNK) {
        uint32_t words[FWD_DIGEST_CHUNK];
        size_t m = n - first < FWD_DIGEST_CHUNK ? n - first : FWD_DIGEST_CHUNK;
        memcpy(words, x + first, m * sizeof *words);
        fwd_digest_chunk(words, m, first, 1, &chunk);
        fwd_digest_add(&sum, &chunk);
    }
    return sum;
}

static float *made(void) {
    float *x = fwd_alloc(N, sizeof *x);
    ck_assert_ptr_nonnull(x);
    for (int i = 0; i < N; i++)
        x[i] = (float)(((unsigned)i * 2654435761u) % 2001u) / 1000.0f - 1.0f;
    return x;
}

START_TEST(figures_are_the_values) {
    float *x = made();
    x[5] = NAN;
    x[N - 1] = -INFINITY;
    x[4097] = -17.5f;
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += isfinite(x[i]) ? (double)x[i] * (double)x[i] : 0.0;
    struct fwd_digest d = digest_of(x, N);
    ck_assert_uint_eq(d.n_words, N);
    ck_assert_uint_eq(d.n_nan, 1);
    ck_assert_uint_eq(d.n_inf, 1);
    ck_assert(d.max_abs == 17.5f);
    ck_assert_double_le(fabs(d.sum_sq - sum), 1e-12 * sum);
    fwd_free(x);
}
END_TEST

START_TEST(any_change_shows) {
    float *x = made();
    struct fwd_digest before = digest_of(x, N);
    ck_assert_uint_eq(before.hash, digest_of(x, N).hash);
    x[9000] = nextafterf(x[9000], 2.0f);
    ck_assert_uint_ne(before.hash, digest_of(x, N).hash);
    x[9000] = nextafterf(x[9000], -2.0f);
    ck_assert_uint_eq(before.hash, digest_of(x, N).hash);
    float kept = x[1];
    x[1] = x[2];
    x[2] = kept;
    ck_assert_uint_ne(before.hash, digest_of(x, N).hash); /* the same values in another order */
    x[2] = x[1];
    x[1] = kept;
    ck_assert_uint_ne(before.hash, digest_of(x, N - 1).hash);
    fwd_free(x);
}
END_TEST

int main(void) {
    Suite *s = suite_create("digest");
    TCase *t = tcase_create("digest");
    tcase_add_test(t, figures_are_the_values);
    tcase_add_test(t, any_change_shows);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    return n_run == 0 ? 3 : n_failed ? 1 : 0;
}
