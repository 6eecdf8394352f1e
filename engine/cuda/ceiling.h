/* engine/cuda/ceiling.h: a kernel that does nothing but read. */
#ifndef ENGINE_CUDA_CEILING_H
#define ENGINE_CUDA_CEILING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
/* Reads n_bytes (a multiple of 64 KiB) once and folds them into *sink, so that the reads are not left out. */
void cuda_read_all(struct CUstream_st *stream, const void *data, size_t n_bytes, int n_sm, uint32_t *sink);

#ifdef __cplusplus
}
#endif
#endif
