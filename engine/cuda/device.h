/* engine/cuda/device.h: the card: is there one that these kernels run on, how much memory has it left, what did the
 * runtime say. One stream computes, one copies; memory is one plain allocation, laid out by the caller. */
#ifndef ENGINE_CUDA_DEVICE_H
#define ENGINE_CUDA_DEVICE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct CUstream_st;
struct CUevent_st;

struct cuda_device {
    int id;
    char name[128];
    int n_sm, major, minor;
    size_t total_bytes, free_bytes; /* free: when it was opened */
    struct CUstream_st *compute, *copy;
};

/* FWD_OK, or FWD_EUNAVAILABLE with the driver's own words: no driver, a driver older than the toolkit, no card that it
 * shows, a card older than compute capability 8.0. */
enum fwd_status cuda_device_probe(struct fwd_error *err);
/* The first card that the driver shows. */
enum fwd_status cuda_device_open(struct cuda_device *out, struct fwd_error *err);
void cuda_device_close(struct cuda_device *d);

/* A cudaError_t as a status: FWD_OK, FWD_ENOMEM or FWD_EDEVICE with the runtime's words after `what`. */
enum fwd_status cuda_status(int code, const char *what, struct fwd_error *err);
/* What went wrong in the launches since the last look, without waiting for them. */
enum fwd_status cuda_launched(const char *what, struct fwd_error *err);
/* Waits for the stream; what had been launched before has then run. */
enum fwd_status cuda_wait(struct CUstream_st *stream, const char *what, struct fwd_error *err);

/* n_bytes on the device. Refused before it is tried, with the figures, where the card has less than that left. */
enum fwd_status cuda_alloc(void **out, size_t n_bytes, const char *what, struct fwd_error *err);
void cuda_free(void *p);
/* Page-locked host memory, so that copies run beside kernels. */
enum fwd_status cuda_alloc_host(void **out, size_t n_bytes, const char *what, struct fwd_error *err);
void cuda_free_host(void *p);

/* GB/s that the card reads from its memory at most: the best of a few passes over n_bytes of a fresh buffer. */
enum fwd_status cuda_read_ceiling(size_t n_bytes, double *gb_s, struct fwd_error *err);

/* Lays buffers out one behind the other: once with base NULL to learn `used`, once more in the block of that size. */
struct cuda_layout {
    uint8_t *base;
    size_t used;
};
void *cuda_take(struct cuda_layout *l, size_t n, size_t size);

#endif
