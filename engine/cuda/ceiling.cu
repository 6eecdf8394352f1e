#include "cuda/ceiling.h"

#include <cuda_runtime.h>

/* Four independent 16-byte loads a thread in flight: enough to fill the memory of every card so far. */
static __global__ void __launch_bounds__(512) read_all(const uint4 *data, size_t n, uint32_t *sink) {
    size_t stride = (size_t)gridDim.x * blockDim.x;
    uint32_t fold = 0;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < n; i += 4 * stride) {
        uint4 a = __ldcs(data + i), b = __ldcs(data + i + stride), c = __ldcs(data + i + 2 * stride),
              d = __ldcs(data + i + 3 * stride);
        fold ^= a.x ^ b.y ^ c.z ^ d.w ^ a.y ^ b.z ^ c.w ^ d.x;
    }
    for (; i < n; i += stride)
        fold ^= data[i].x;
    if (fold == 0x12345678u) /* never, but the compiler cannot know */
        *sink = fold;
}

void cuda_read_all(struct CUstream_st *stream, const void *data, size_t n_bytes, int n_sm, uint32_t *sink) {
    read_all<<<n_sm * 4, 512, 0, stream>>>((const uint4 *)data, n_bytes / 16, sink);
}
