/* engine/cuda/argmax.h: greedy choice on the device, so that a token need not wait for its logits to cross the bus. */
#ifndef ENGINE_CUDA_ARGMAX_H
#define ENGINE_CUDA_ARGMAX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
/* Of one row, while its blocks are at work; zeros before and after. */
struct cuda_argmax_row {
    unsigned long long key;
    uint32_t n_done, unused;
};
/* out[m]: the lowest index among the largest of logits[m][0 .. n-1]; NaN never wins; -1 where all are NaN. out may be
 * page-locked host memory. rows: device, [n_rows], zeros before the first call. */
void cuda_argmax(struct CUstream_st *stream, const float *logits, int64_t n, int n_rows, struct cuda_argmax_row *rows,
                 int32_t *out);

#ifdef __cplusplus
}
#endif
#endif
