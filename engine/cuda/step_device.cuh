/* engine/cuda/step_device.cuh: small device functions of the fused step: dependent launches, bulk copies into shared
 * memory with their barriers, and plain arithmetic. */
#ifndef ENGINE_CUDA_STEP_DEVICE_CUH
#define ENGINE_CUDA_STEP_DEVICE_CUH

#include "cuda/kernels.h"

#include <stdint.h>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define STEP_HOPPER 1
#else
#define STEP_HOPPER 0
#endif

/* The launches behind this one may start where there is room; they wait for this one themselves. */
static __device__ __forceinline__ void let_next_start(void) {
#if STEP_HOPPER
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Until the launch before this one is complete and its stores are visible. */
static __device__ __forceinline__ void wait_for_previous(void) {
#if STEP_HOPPER
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* ---- barriers in shared memory: a phase completes when n have arrived (and the bytes announced are there) ---- */

static __device__ __forceinline__ void barrier_init(uint64_t *barrier, unsigned n) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n) : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(shared_address(barrier))
                 : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, unsigned phase) {
    unsigned done;
    do
        asm volatile("{\n\t.reg .pred p;\n\t"
#if STEP_HOPPER
                     "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\t"
#else
                     "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n\t"
#endif
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(phase)
                     : "memory");
    while (!done);
}

#if STEP_HOPPER
/* After the barriers were made, before a copy reports to them. */
static __device__ __forceinline__ void barrier_init_done(void) {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}

/* n_bytes (a multiple of 16) from global to shared memory; the barrier's phase completes when they are there. */
static __device__ __forceinline__ void bulk_load(void *dst, const void *src, unsigned n_bytes, uint64_t *barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(dst)),
                 "l"(src), "r"(n_bytes), "r"(shared_address(barrier))
                 : "memory");
}
#endif

/* The warps that multiply, among themselves. */
static __device__ __forceinline__ void multipliers_meet(void) {
    asm volatile("bar.sync 1, 512;" ::: "memory");
}

/* Results that are NaN are stored as one NaN. */
static __device__ __forceinline__ float plain_nan(float x) {
    return x != x ? __int_as_float(0x7fc00000) : x;
}

/* Where the tap whose pointer lies at `offset` goes; NULL: nowhere. */
static __device__ __forceinline__ void *tap_pointer(const struct cuda_step_taps *taps, int offset) {
    return taps && offset >= 0 ? *(void *const *)((const char *)taps + offset) : NULL;
}

#endif
