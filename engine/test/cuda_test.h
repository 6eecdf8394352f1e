/* engine/test/cuda_test.h: what the tests of CUDA kernels share: skipping where there is no device, and device memory
 * in which a write past a buffer's end shows. Every CUDA error fails the test that met it.
 *
 * Buffers come one behind the other from one allocation: [guard] buffer [guard] buffer [guard] ... A new buffer holds
 * bytes 0xcb (a float of them is -2.7e7), a guard 0xa5. */
#ifndef ENGINE_TEST_CUDA_TEST_H
#define ENGINE_TEST_CUDA_TEST_H

#include "cuda/device.h"

#include <check.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CUDA_TEST_GUARD = 256, CUDA_TEST_MOST = 64 };

static struct {
    uint8_t *base;
    size_t size, used;
    int n;
    struct {
        size_t end, next; /* of the buffer; of the guard behind it */
    } buffer[CUDA_TEST_MOST];
} cuda_test;

#define cuda_ok(call)                                                                                                  \
    do {                                                                                                               \
        cudaError_t code_ = (call);                                                                                    \
        ck_assert_msg(code_ == cudaSuccess, "%s: %s", #call, cudaGetErrorString(code_));                               \
    } while (0)

/* Forgets the buffers of before and makes room for n_bytes (guards come on top). */
static inline void cuda_test_start(size_t n_bytes) {
    n_bytes += (size_t)2 * CUDA_TEST_GUARD * (CUDA_TEST_MOST + 1);
    if (cuda_test.size < n_bytes) {
        cuda_ok(cudaFree(cuda_test.base));
        cuda_test.base = NULL;
        cuda_test.size = 0;
        cuda_ok(cudaMalloc((void **)&cuda_test.base, n_bytes));
        cuda_test.size = n_bytes;
    }
    cuda_test.n = 0;
    cuda_test.used = CUDA_TEST_GUARD;
    cuda_ok(cudaMemset(cuda_test.base, 0xa5, CUDA_TEST_GUARD));
}

/* n_bytes of device memory, aligned to 256 bytes, until the next start. */
static inline void *cuda_test_room(size_t n_bytes) {
    size_t begin = cuda_test.used, end = begin + n_bytes;
    size_t next = (end + CUDA_TEST_GUARD - 1) / CUDA_TEST_GUARD * CUDA_TEST_GUARD + CUDA_TEST_GUARD;
    ck_assert_msg(next <= cuda_test.size && cuda_test.n < CUDA_TEST_MOST, "the test asked for too little room");
    cuda_ok(cudaMemset(cuda_test.base + begin, 0xcb, n_bytes));
    cuda_ok(cudaMemset(cuda_test.base + end, 0xa5, next - end));
    cuda_test.buffer[cuda_test.n].end = end;
    cuda_test.buffer[cuda_test.n++].next = next;
    cuda_test.used = next;
    return cuda_test.base + begin;
}

/* The same with contents. */
static inline void *cuda_test_put(const void *host, size_t n_bytes) {
    void *device = cuda_test_room(n_bytes);
    cuda_ok(cudaMemcpy(device, host, n_bytes, cudaMemcpyHostToDevice));
    return device;
}

/* Waits for the kernels launched before; their errors show here. */
static inline void cuda_test_get(void *host, const void *device, size_t n_bytes) {
    cuda_ok(cudaGetLastError());
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(cudaMemcpy(host, device, n_bytes, cudaMemcpyDeviceToHost));
}

/* Every guard is as it was. */
static inline void cuda_test_end(void) {
    uint8_t guard[2 * CUDA_TEST_GUARD];
    cuda_ok(cudaGetLastError());
    cuda_ok(cudaDeviceSynchronize());
    for (int b = -1; b < cuda_test.n; b++) {
        size_t begin = b < 0 ? 0 : cuda_test.buffer[b].end;
        size_t n = b < 0 ? CUDA_TEST_GUARD : cuda_test.buffer[b].next - begin;
        cuda_ok(cudaMemcpy(guard, cuda_test.base + begin, n, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < n; i++)
            ck_assert_msg(guard[i] == 0xa5, "byte %zu behind buffer %d was written: 0x%02x", i, b, guard[i]);
    }
}

/* Milliseconds that one of n calls takes, after one that does not count; call is a statement. */
#define cuda_test_time(ms, n, call)                                                                                    \
    do {                                                                                                               \
        cudaEvent_t from_, to_;                                                                                        \
        cuda_ok(cudaEventCreate(&from_));                                                                              \
        cuda_ok(cudaEventCreate(&to_));                                                                                \
        call;                                                                                                          \
        cuda_ok(cudaEventRecord(from_, NULL));                                                                         \
        for (int i_ = 0; i_ < (n); i_++) {                                                                             \
            call;                                                                                                      \
        }                                                                                                              \
        cuda_ok(cudaEventRecord(to_, NULL));                                                                           \
        cuda_ok(cudaEventSynchronize(to_));                                                                            \
        cuda_ok(cudaGetLastError());                                                                                   \
        cuda_ok(cudaEventElapsedTime(&(ms), from_, to_));                                                              \
        (ms) /= (float)(n);                                                                                            \
        cuda_ok(cudaEventDestroy(from_));                                                                              \
        cuda_ok(cudaEventDestroy(to_));                                                                                \
    } while (0)

/* Whether the program is to end with 0 at once: there is no device; says so on one line. */
static inline bool cuda_test_skips(const char *program) {
    struct fwd_error err = {.message = ""};
    if (cuda_device_probe(&err) == FWD_OK)
        return false;
    printf("SKIPPED: %s: %s\n", program, err.message);
    return true;
}

/* What main returns. The tests run in this process, one context for all: a context does not survive a fork. */
static inline int cuda_test_main(const char *program, Suite *suite) {
    SRunner *runner = srunner_create(suite);
    if (cuda_test_skips(program)) {
        srunner_free(runner);
        return 0;
    }
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}

#endif
