#include "cuda/digest.h"

#include <cuda_runtime.h>

static __device__ uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static __device__ void digest_chunk(struct cuda_digest_job job, struct fwd_digest *out) {
    __shared__ uint64_t hashes[FWD_DIGEST_LANES];
    __shared__ double squares[FWD_DIGEST_LANES];
    __shared__ uint32_t nans[FWD_DIGEST_LANES], infs[FWD_DIGEST_LANES], tops[FWD_DIGEST_LANES];
    int l = threadIdx.x;
    uint64_t hash = 0;
    double sum = 0;
    uint32_t n_nan = 0, n_inf = 0, top = 0;
    for (uint32_t i = l; i < job.n; i += FWD_DIGEST_LANES) {
        uint32_t w = job.words[i], m = w & 0x7fffffffu;
        hash += mix(w + (job.first + i + 1) * 0x9e3779b97f4a7c15ull);
        if (!job.is_f32)
            continue;
        n_nan += m > 0x7f800000u;
        n_inf += m == 0x7f800000u;
        if (m >= 0x7f800000u)
            continue;
        double x = __uint_as_float(w);
        sum = __dadd_rn(sum, __dmul_rn(x, x));
        top = max(top, m);
    }
    hashes[l] = hash;
    squares[l] = sum;
    nans[l] = n_nan;
    infs[l] = n_inf;
    tops[l] = top;
    for (int width = FWD_DIGEST_LANES / 2; width > 0; width /= 2) {
        __syncthreads();
        if (l < width) {
            hashes[l] += hashes[l + width];
            squares[l] = __dadd_rn(squares[l], squares[l + width]);
            nans[l] += nans[l + width];
            infs[l] += infs[l + width];
            tops[l] = max(tops[l], tops[l + width]);
        }
    }
    if (l == 0) {
        struct fwd_digest d;
        d.hash = hashes[0];
        d.sum_sq = squares[0];
        d.n_words = job.n;
        d.n_nan = nans[0];
        d.n_inf = infs[0];
        d.max_abs = __uint_as_float(tops[0]);
        d.unused = 0;
        *out = d;
    }
}

static __global__ void __launch_bounds__(FWD_DIGEST_LANES) digest(const struct cuda_digest_job *jobs,
                                                                 struct fwd_digest *out) {
    digest_chunk(jobs[blockIdx.x], out + blockIdx.x);
}

static __global__ void __launch_bounds__(FWD_DIGEST_LANES) digest_tensor(const uint32_t *words, uint64_t n_words,
                                                                        int is_f32, struct fwd_digest *out) {
    struct cuda_digest_job job;
    job.first = (uint64_t)blockIdx.x * FWD_DIGEST_CHUNK;
    job.words = words + job.first;
    job.n = (uint32_t)min((uint64_t)FWD_DIGEST_CHUNK, n_words - job.first);
    job.is_f32 = (uint32_t)is_f32;
    digest_chunk(job, out + blockIdx.x);
}

void cuda_digest(struct CUstream_st *stream, const struct cuda_digest_job *jobs, int n_jobs, struct fwd_digest *out) {
    if (n_jobs > 0)
        digest<<<n_jobs, FWD_DIGEST_LANES, 0, stream>>>(jobs, out);
}

void cuda_digest_tensor(struct CUstream_st *stream, const void *words, size_t n_words, int is_f32,
                        struct fwd_digest *out) {
    unsigned n = (unsigned)((n_words + FWD_DIGEST_CHUNK - 1) / FWD_DIGEST_CHUNK);
    if (n > 0)
        digest_tensor<<<n, FWD_DIGEST_LANES, 0, stream>>>((const uint32_t *)words, n_words, is_f32, out);
}
