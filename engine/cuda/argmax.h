/* engine/cuda/argmax.h: greedy choice on the device, so that a token need not wait for its logits to cross the bus. */
#ifndef ENGINE_CUDA_ARGMAX_H
#define ENGINE_CUDA_ARGMAX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
/* out[m]: the lowest index among the largest of logits[m][0 .. n-1]; NaN never wins; -1 where all are NaN. */
void cuda_argmax(struct CUstream_st *stream, const float *logits, int64_t n, int n_rows, int32_t *out);

#ifdef __cplusplus
}
#endif
#endif
