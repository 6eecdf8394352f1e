/* engine/cuda/digest.h: core/digest.h on the device, bit for bit: one block a chunk, chunks added up on the host. */
#ifndef ENGINE_CUDA_DIGEST_H
#define ENGINE_CUDA_DIGEST_H

#include "core/digest.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

/* One chunk of one tensor. */
struct cuda_digest_job {
    const uint32_t *words;
    uint64_t first; /* its number in the tensor */
    uint32_t n;
    uint32_t is_f32;
};
/* jobs, out: device, [n_jobs]. */
void cuda_digest(struct CUstream_st *stream, const struct cuda_digest_job *jobs, int n_jobs, struct fwd_digest *out);
/* Every chunk of one tensor of n_words; out: device, [ceil(n_words / FWD_DIGEST_CHUNK)]. */
void cuda_digest_tensor(struct CUstream_st *stream, const void *words, size_t n_words, int is_f32,
                        struct fwd_digest *out);

#ifdef __cplusplus
}
#endif
#endif
