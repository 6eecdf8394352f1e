/* A device that is lost in the middle of a run: the run and every later one end with FWD_EDEVICE in the driver's words,
 * nothing crashes, nothing computes on the CPU instead, and the session closes. A program of its own: what it does to
 * the device's context cannot be undone. */
#include "cuda/kernels.h"
#include "engine.h"
#include "test/cuda_test.h"

START_TEST(a_lost_device_is_an_error) {
    const struct fwd_path *path = fwd_path_find("q4k-cuda-graph");
    struct fwd_knobs knobs = {.size = sizeof knobs, .n_ctx = 32, .n_seq = 1, .n_batch = 8, .kv_type = FWD_F16};
    struct fwd_gguf *file;
    struct fwd_session *s;
    struct fwd_error err;
    int32_t ids[] = {1, 2, 3, 4}, best[4];
    ck_assert_int_eq(fwd_gguf_open(&file, "fixtures/golden/forward-tiny-llama.gguf", &err), FWD_OK);
    ck_assert_msg(path->open(&s, file, &knobs, &err) == FWD_OK, "%s", err.message);
    struct fwd_run_args args = {.size = sizeof args, .tokens = ids, .n_tokens = 4, .argmax = best};
    ck_assert_msg(path->run(s, &args, &err) == FWD_OK, "%s", err.message);

    cuda_scribble(NULL, (void *)(uintptr_t)256, 1 << 20); /* no memory of ours: the context is gone from here on */
    (void)cudaDeviceSynchronize();
    for (int i = 0; i < 2; i++) {
        enum fwd_status rc = path->run(s, &args, &err);
        ck_assert_msg(rc == FWD_EDEVICE, "run %d: status %s: %s", i, fwd_status_name(rc), err.message);
        ck_assert_msg(strstr(err.message, "cudaErrorIllegalAddress") != NULL, "\"%s\"", err.message);
    }
    struct fwd_session *another = NULL;
    ck_assert_int_ne(path->open(&another, file, &knobs, &err), FWD_OK);
    ck_assert_ptr_null(another);
    path->close(s);
    fwd_gguf_close(file);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_lost");
    TCase *t = tcase_create("lost");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, a_lost_device_is_an_error);
    suite_add_tcase(suite, t);
    return cuda_test_main("test_cuda_lost", suite);
}
