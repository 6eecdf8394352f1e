#include "cuda/device.h"

#include "cuda/ceiling.h"

#include <cuda_runtime_api.h>
#include <string.h>

enum { OLDEST_MAJOR = 8, ALIGN = 256 };

enum fwd_status cuda_status(int code, const char *what, struct fwd_error *err) {
    cudaError_t e = (cudaError_t)code;
    if (e == cudaSuccess)
        return FWD_OK;
    FWD_FAIL(e == cudaErrorMemoryAllocation ? FWD_ENOMEM : FWD_EDEVICE, err, "%s: CUDA says %s: %s", what,
             cudaGetErrorName(e), cudaGetErrorString(e));
}

enum fwd_status cuda_launched(const char *what, struct fwd_error *err) {
    return cuda_status(cudaGetLastError(), what, err);
}

enum fwd_status cuda_wait(struct CUstream_st *stream, const char *what, struct fwd_error *err) {
    return cuda_status(cudaStreamSynchronize(stream), what, err);
}

/* ---- is there a card ----------------------------------------------------------------------------------------------
 */

static enum fwd_status find(struct cudaDeviceProp *prop, struct fwd_error *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        (void)cudaDriverGetVersion(&driver);
        (void)cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            FWD_FAIL(FWD_EUNAVAILABLE, err, "no NVIDIA driver is installed here (built for CUDA %d.%d)", runtime / 1000,
                     runtime % 100 / 10);
        FWD_FAIL(FWD_EUNAVAILABLE, err, "the driver knows CUDA %d.%d, this program was built with %d.%d", driver / 1000,
                 driver % 100 / 10, runtime / 1000, runtime % 100 / 10);
    }
    FWD_FAIL_IF(e != cudaSuccess, FWD_EUNAVAILABLE, err, "no CUDA device: %s: %s", cudaGetErrorName(e),
                cudaGetErrorString(e));
    FWD_FAIL_IF(n == 0, FWD_EUNAVAILABLE, err, "the driver shows no CUDA device");
    e = cudaGetDeviceProperties(prop, 0);
    FWD_FAIL_IF(e != cudaSuccess, FWD_EUNAVAILABLE, err, "CUDA device 0 cannot be asked: %s: %s", cudaGetErrorName(e),
                cudaGetErrorString(e));
    FWD_FAIL_IF(prop->major < OLDEST_MAJOR, FWD_EUNAVAILABLE, err,
                "%s has compute capability %d.%d, expected 8.0 or newer", prop->name, prop->major, prop->minor);
    return FWD_OK;
}

enum fwd_status cuda_device_probe(struct fwd_error *err) {
    struct cudaDeviceProp prop;
    return find(&prop, err);
}

enum fwd_status cuda_device_open(struct cuda_device *out, struct fwd_error *err) {
    struct cudaDeviceProp prop;
    *out = (struct cuda_device){0};
    FWD_TRY(find(&prop, err));
    FWD_TRY(cuda_status(cudaSetDevice(0), "the device", err));
    _Static_assert(sizeof out->name <= sizeof prop.name, "a device's name is cut, never overrun");
    memcpy(out->name, prop.name, sizeof out->name - 1);
    out->n_sm = prop.multiProcessorCount;
    out->major = prop.major;
    out->minor = prop.minor;
    FWD_TRY(cuda_status(cudaMemGetInfo(&out->free_bytes, &out->total_bytes), out->name, err));
    FWD_TRY(cuda_status(cudaStreamCreateWithFlags(&out->compute, cudaStreamNonBlocking), "a stream", err));
    return cuda_status(cudaStreamCreateWithFlags(&out->copy, cudaStreamNonBlocking), "a stream", err);
}

void cuda_device_close(struct cuda_device *d) {
    if (d->compute)
        (void)cudaStreamDestroy(d->compute);
    if (d->copy)
        (void)cudaStreamDestroy(d->copy);
    *d = (struct cuda_device){0};
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */

enum fwd_status cuda_alloc(void **out, size_t n_bytes, const char *what, struct fwd_error *err) {
    size_t free_bytes = 0, total = 0;
    *out = NULL;
    FWD_TRY(cuda_status(cudaMemGetInfo(&free_bytes, &total), what, err));
    FWD_FAIL_IF(n_bytes > free_bytes, FWD_ENOMEM, err, "%s: needs %zu MiB of device memory, %zu MiB of %zu are free",
                what, n_bytes >> 20, free_bytes >> 20, total >> 20);
    cudaError_t e = cudaMalloc(out, n_bytes ? n_bytes : 1);
    if (e != cudaSuccess)
        (void)cudaGetLastError(); /* a refused allocation is not an error of the launches that follow */
    return cuda_status(e, what, err);
}

void cuda_free(void *p) {
    if (p)
        (void)cudaFree(p);
}

enum fwd_status cuda_alloc_host(void **out, size_t n_bytes, const char *what, struct fwd_error *err) {
    *out = NULL;
    cudaError_t e = cudaMallocHost(out, n_bytes ? n_bytes : 1);
    if (e != cudaSuccess)
        (void)cudaGetLastError();
    FWD_FAIL_IF(e == cudaErrorMemoryAllocation, FWD_ENOMEM, err, "%s: %zu MiB of page-locked host memory refused", what,
                n_bytes >> 20);
    return cuda_status(e, what, err);
}

void cuda_free_host(void *p) {
    if (p)
        (void)cudaFreeHost(p);
}

void *cuda_take(struct cuda_layout *l, size_t n, size_t size) {
    void *p = l->base ? l->base + l->used : NULL;
    l->used += (n * size + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

/* ---- how fast it reads --------------------------------------------------------------------------------------------
 */

enum fwd_status cuda_read_ceiling(size_t n_bytes, double *gb_s, struct fwd_error *err) {
    enum { PASSES = 6 };
    struct cuda_device d;
    void *data = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    *gb_s = 0;
    enum fwd_status rc = cuda_device_open(&d, err);
    if (rc == FWD_OK)
        rc = cuda_alloc(&data, n_bytes + ALIGN, "read ceiling", err);
    if (rc == FWD_OK)
        rc = cuda_status(cudaMemsetAsync(data, 1, n_bytes + ALIGN, d.compute), "read ceiling", err);
    if (rc == FWD_OK)
        rc = cuda_status(cudaEventCreate(&begin), "an event", err);
    if (rc == FWD_OK)
        rc = cuda_status(cudaEventCreate(&end), "an event", err);
    for (int i = 0; rc == FWD_OK && i < PASSES; i++) {
        float ms = 0;
        (void)cudaEventRecord(begin, d.compute);
        cuda_read_all(d.compute, data, n_bytes, d.n_sm, (uint32_t *)(void *)((uint8_t *)data + n_bytes));
        (void)cudaEventRecord(end, d.compute);
        rc = cuda_wait(d.compute, "read ceiling", err);
        if (rc == FWD_OK)
            rc = cuda_status(cudaEventElapsedTime(&ms, begin, end), "read ceiling", err);
        if (rc == FWD_OK && ms > 0 && (double)n_bytes / 1e6 / (double)ms > *gb_s)
            *gb_s = (double)n_bytes / 1e6 / (double)ms;
    }
    if (begin)
        (void)cudaEventDestroy(begin);
    if (end)
        (void)cudaEventDestroy(end);
    cuda_free(data);
    cuda_device_close(&d);
    return rc;
}
