/* engine/cuda/step_gemv.cu: one activation vector by the matrices of one launch (step_kernels.h).
 *
 * Each warp has a ring of tiles in shared memory, filled by bulk copies that no other warp takes part in: the first
 * ones are on their way before the launch waits for its predecessor, since weights do not depend on it. Tile t of the
 * block's run goes to warp t mod n_warps, which leaves the exact sums of the tile and their factors in the unit's slot;
 * who brings the last tile of a unit runs the chains of its rows, in the order of the superblocks. */
#include "cuda/expf.cuh"
#include "cuda/step_kernels.h"
#include "cuda/step_lane.cuh"
#include "cuda/step_prologue.cuh"

/* ---- where a warp is in the block's run ---- */

struct cursor {
    int unit, sub; /* tile `sub` of a unit */
};

static __device__ __forceinline__ void move_on(struct cursor *c, int units, int tiles, int unit_tiles) {
    c->unit += units;
    c->sub += tiles;
    if (c->sub >= unit_tiles) {
        c->sub -= unit_tiles;
        c->unit++;
    }
}

static __device__ __forceinline__ int matrix_of(const struct step_gemv &p, const struct cursor &c) {
    if (p.epilogue == STEP_SWIGLU)
        return c.sub >= p.n_sb;
    return (p.n_mat > 1 && c.unit >= p.mat[1].unit0) + (p.n_mat > 2 && c.unit >= p.mat[2].unit0);
}

/* The superblock of a tile of matrix m. */
static __device__ __forceinline__ int column_of(const struct step_gemv &p, const struct cursor &c, int m) {
    return p.epilogue == STEP_SWIGLU && m ? c.sub - p.n_sb : c.sub;
}

static __device__ __forceinline__ const uint8_t *tile_at(const struct step_gemv &p, const struct cursor &c, int m) {
    int64_t tile = (int64_t)(c.unit - p.mat[m].unit0) * p.n_sb + column_of(p, c, m);
    return p.mat[m].tiles + tile * p.mat[m].tile_bytes;
}

/* ---- the chains of a finished unit ---- */

static __device__ __forceinline__ float swiglu(float g, float up) {
    float e = cuda_expf(-fabsf(g));
    float num = g < 0.0f ? g * e : g;
    return num / (1.0f + e) * up;
}

static __device__ __forceinline__ bool is_k(int type) {
    return type >= FWD_TYPE_Q2_K;
}

static __device__ __forceinline__ bool has_min(int type) {
    return type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q2_K || type == FWD_TYPE_Q4_1 ||
           type == FWD_TYPE_Q5_1;
}

static __device__ __forceinline__ float run_chain(const float2 *at, int n, int stride, bool with_min) {
    float acc = 0.0f;
    if (with_min) {
#pragma unroll 7
        for (int b = 0; b < n; b++, at += stride) {
            float2 x = at[0], m = at[8];
            acc = __fmaf_rn(x.x, x.y, acc);
            acc = __fmaf_rn(m.x, m.y, acc);
        }
    } else {
#pragma unroll 7
        for (int b = 0; b < n; b++, at += stride) {
            float2 x = at[0];
            acc = __fmaf_rn(x.x, x.y, acc);
        }
    }
    return acc;
}

/* Lanes 0-7: the rows of the unit's strip; lanes 8-15: those of up's strip in STEP_SWIGLU. */
static __device__ __forceinline__ void finish_unit(const struct step_gemv &p, int unit, const float2 *pairs,
                                                   const struct cuda_step_taps *taps) {
    int lane = (int)threadIdx.x & 31, half = lane >> 3;
    struct cursor c = {unit, half ? p.n_sb : 0};
    int m = p.epilogue == STEP_SWIGLU ? half & 1 : matrix_of(p, c);
    const struct step_mat *mat = &p.mat[m];
    int row = 8 * (unit - mat->unit0) + (lane & 7);
    bool on = row < mat->n_rows && half <= (p.epilogue == STEP_SWIGLU);
    float y = 0.0f;
    float bias = on && mat->bias ? mat->bias[row] : 0.0f; /* on their way while the chain runs */
    float residual = on && p.epilogue == STEP_RESIDUAL ? __ldcg(p.residual + row) : 0.0f;
    if (half < 2) {
        const float2 *at = pairs + (p.epilogue == STEP_SWIGLU ? half * p.half_pairs : 0) + (lane & 7);
        bool with_min = has_min(mat->type);
        y = run_chain(at, is_k(mat->type) ? p.n_sb : (p.n + 31) / 32, is_k(mat->type) || with_min ? 16 : 8, with_min);
        if (on && mat->bias)
            y += bias;
        y = plain_nan(y);
        float *tap = (float *)tap_pointer(taps, mat->tap);
        if (on && tap)
            tap[row] = y;
    }
    float result = y;
    if (p.epilogue == STEP_RESIDUAL) {
        result = plain_nan(y + residual);
    } else if (p.epilogue == STEP_SWIGLU) {
        float up = __shfl_down_sync(~0u, y, 8);
        result = plain_nan(swiglu(y, up));
        on = on && half == 0;
    }
    if (!on)
        return;
    if (p.epilogue == STEP_STORE) {
        mat->y[row] = result;
        return;
    }
    p.out[row] = result;
    float *tap = (float *)tap_pointer(taps, p.tap_out);
    if (tap)
        tap[row] = result;
}

/* ---- tiles ---- */

static __device__ __forceinline__ void load_act(struct lane_act &a, const struct shared_act &from, int b, int part,
                                                bool k) {
    const uint4 *q = (const uint4 *)(from.q + 256 * b + 64 * part);
#pragma unroll
    for (int i = 0; i < 4; i++)
        a.q[i] = q[i];
    a.sums = *(const uint2 *)(from.sum + 16 * b + 4 * part);
    if (k) {
        a.d[0] = from.d[b];
    } else {
        float2 d = *(const float2 *)(from.d + 8 * b + 2 * part);
        a.d[0] = d.x, a.d[1] = d.y;
    }
}

/* Reads a tile, gives its place in the ring back as soon as it is read, and multiplies it. */
#define TILE(T)                                                                                                        \
    case T: {                                                                                                          \
        struct lane_tile<T> l;                                                                                         \
        read_lane<T>(&l, tile, lane >> 3, lane & 7);                                                                   \
        refill();                                                                                                      \
        multiply_tile<T>(&l, act, to);                                                                                 \
        break;                                                                                                         \
    }

template <bool COMMON, typename REFILL>
static __device__ __forceinline__ void multiply_any(int type, const uint8_t *tile, const struct lane_act &act,
                                                    float2 *to, REFILL refill) {
    int lane = (int)threadIdx.x & 31;
    if (COMMON)
        switch (type) {
            TILE(FWD_TYPE_Q4_K)
            TILE(FWD_TYPE_Q6_K)
        }
    else
        switch (type) {
            TILE(FWD_TYPE_Q4_0)
            TILE(FWD_TYPE_Q4_1)
            TILE(FWD_TYPE_Q5_0)
            TILE(FWD_TYPE_Q5_1)
            TILE(FWD_TYPE_Q8_0)
            TILE(FWD_TYPE_Q2_K)
            TILE(FWD_TYPE_Q3_K)
            TILE(FWD_TYPE_Q4_K)
            TILE(FWD_TYPE_Q5_K)
            TILE(FWD_TYPE_Q6_K)
        }
}

/* COMMON: every matrix is Q4_K or Q6_K. */
template <bool COMMON>
static __global__ void __launch_bounds__(32 * STEP_WARPS, 2)
    step_gemv_kernel(const __grid_constant__ struct step_gemv p, const __grid_constant__ struct step_layout at) {
    extern __shared__ __align__(128) uint8_t shared[];
    let_next_start();
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    int unit0 = (int)((int64_t)blockIdx.x * p.n_units / p.n_blocks);
    int unit1 = (int)((int64_t)(blockIdx.x + 1) * p.n_units / p.n_blocks);
    unsigned *arrived = (unsigned *)(shared + at.counters);
    unsigned *finished = arrived + (1u << p.unit_slots_log2);
    struct shared_act k = {(int8_t *)shared + at.q_k, (float *)(shared + at.d_k), (int16_t *)(shared + at.sum_k)};
    struct shared_act b32 = {(int8_t *)shared + at.q_32, (float *)(shared + at.d_32), (int16_t *)(shared + at.sum_32)};

    int step_units = p.n_warps / p.unit_tiles, step_tiles = p.n_warps % p.unit_tiles;
    struct cursor here = {unit0 + warp / p.unit_tiles, warp % p.unit_tiles};
    if (warp >= p.n_warps)
        here.unit = unit1;
#if STEP_HOPPER
    uint64_t *full = (uint64_t *)shared + warp * p.n_slots;
    uint8_t *ring = shared + at.ring + (unsigned)warp * (unsigned)(p.n_slots * p.slot_bytes);
    struct cursor ahead = here;
    if (lane == 0) {
        for (int s = 0; s < p.n_slots; s++)
            barrier_init(full + s);
        barrier_init_done();
    }
    for (int s = 0; s < p.n_slots; s++) {
        if (lane == 0 && ahead.unit < unit1) {
            int m = matrix_of(p, ahead);
            bulk_load(ring + s * p.slot_bytes, tile_at(p, ahead, m), (unsigned)p.mat[m].tile_bytes, full + s);
        }
        move_on(&ahead, step_units, step_tiles, p.unit_tiles);
    }
#endif
    if (threadIdx.x < 2u << p.unit_slots_log2)
        arrived[threadIdx.x] = 0;
    eight first_w;
    if (p.norm)
        first_w = read_eight(p.norm, 256 * warp + 8 * lane, p.n);
    const struct cuda_step_taps *taps = p.taps && p.state->taps ? p.taps : NULL;
    wait_for_previous();
    prepare_activations(&p, COMMON || p.has_k ? &k : NULL, !COMMON && p.has_32 ? &b32 : NULL,
                        (double *)(shared + at.pairs), first_w, blockIdx.x == 0 ? taps : NULL);
    __syncthreads();

    struct lane_act act;
    int act_of = -1, slot = 0;
    unsigned phase = 0;
    int slots_mask = (1 << p.unit_slots_log2) - 1;
    float2 *pairs = (float2 *)(shared + at.pairs);
    int unit_pairs = p.half_pairs * (p.epilogue == STEP_SWIGLU ? 2 : 1);
    for (; here.unit < unit1; move_on(&here, step_units, step_tiles, p.unit_tiles)) {
        int m = matrix_of(p, here), b = column_of(p, here, m), type = p.mat[m].type;
        bool of_k = COMMON || is_k(type);
        if (act_of != 2 * b + of_k) {
            load_act(act, of_k ? k : b32, b, lane >> 3, of_k);
            act_of = 2 * b + of_k;
        }
        int unit_slot = (here.unit - unit0) & slots_mask;
        unsigned round = (unsigned)(here.unit - unit0) >> p.unit_slots_log2;
        while (read_counter(finished + unit_slot) != round) {
        }
        bool wide = !of_k; /* eight blocks a tile */
        float2 *to = pairs + unit_slot * unit_pairs + (p.epilogue == STEP_SWIGLU && m ? p.half_pairs : 0) +
                     b * (wide ? has_min(type) ? 128 : 64 : 16);
#if STEP_HOPPER
        barrier_wait(full + slot, phase);
        multiply_any<COMMON>(type, ring + slot * p.slot_bytes, act, to, [&] {
            __syncwarp();
            if (lane == 0 && ahead.unit < unit1) {
                int ma = matrix_of(p, ahead);
                bulk_load(ring + slot * p.slot_bytes, tile_at(p, ahead, ma), (unsigned)p.mat[ma].tile_bytes,
                          full + slot);
            }
            move_on(&ahead, step_units, step_tiles, p.unit_tiles);
        });
        if (++slot == p.n_slots) {
            slot = 0;
            phase ^= 1;
        }
#else
        multiply_any<COMMON>(type, tile_at(p, here, m), act, to, [] {});
#endif
        __syncwarp();
        unsigned before = 0;
        if (lane == 0)
            before = count_up(arrived + unit_slot);
        before = __shfl_sync(~0u, before, 0);
        if (before == (unsigned)p.unit_tiles - 1) {
            finish_unit(p, here.unit, pairs + unit_slot * unit_pairs, taps);
            __syncwarp();
            if (lane == 0) {
                arrived[unit_slot] = 0;
                count_up(finished + unit_slot);
            }
        }
    }
}

/* ---- host ---- */

static unsigned round_up(unsigned n, unsigned to) {
    return (n + to - 1) / to * to;
}

struct step_layout step_gemv_layout(const struct step_gemv *p) {
    struct step_layout at = {};
    unsigned n_sb = (unsigned)p->n_sb, unit_slots = 1u << p->unit_slots_log2;
    unsigned next = 8u * STEP_WARPS * (unsigned)p->n_slots;
    at.counters = next, next += 8 * unit_slots;
    at.q_k = next = round_up(next, 16), next += p->has_k ? 256 * n_sb : 0;
    at.sum_k = next, next += p->has_k ? 32 * n_sb : 0;
    at.d_k = next, next += p->has_k ? 4 * n_sb : 0;
    at.q_32 = next = round_up(next, 16), next += p->has_32 ? 256 * n_sb : 0;
    at.sum_32 = next, next += p->has_32 ? 32 * n_sb : 0;
    at.d_32 = next, next += p->has_32 ? 32 * n_sb : 0;
    at.pairs = next = round_up(next, 128);
    unsigned pairs = 8u * (unsigned)p->half_pairs * (p->epilogue == STEP_SWIGLU ? 2 : 1) * unit_slots;
    next += pairs < 2048 ? 2048 : pairs; /* the norm's 256 lanes are there before */
    at.ring = next = round_up(next, 128);
    at.size = next + (unsigned)(p->n_warps * p->n_slots * p->slot_bytes);
    return at;
}

static int pairs_of(int type, int n_sb) {
    bool with_min = type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1;
    return n_sb * (type >= FWD_TYPE_Q2_K ? 16 : with_min ? 128 : 64);
}

bool step_gemv_plan(struct step_gemv *p, unsigned max_bytes) {
    p->unit_tiles = p->n_sb * (p->epilogue == STEP_SWIGLU ? 2 : 1);
    /* A warp that meets the same superblock in every strip keeps its activations in registers. */
    p->n_warps = p->n_sb <= STEP_WARPS ? STEP_WARPS / p->n_sb * p->n_sb : STEP_WARPS;
    p->slot_bytes = p->half_pairs = 0;
    p->has_k = p->has_32 = false;
    for (int m = 0; m < p->n_mat; m++) {
        int type = p->mat[m].type, pairs = pairs_of(type, p->n_sb);
        p->slot_bytes = p->mat[m].tile_bytes > p->slot_bytes ? p->mat[m].tile_bytes : p->slot_bytes;
        p->half_pairs = pairs > p->half_pairs ? pairs : p->half_pairs;
        p->has_k |= type >= FWD_TYPE_Q2_K;
        p->has_32 |= type < FWD_TYPE_Q2_K;
    }
    int unit_pairs = p->half_pairs * (p->epilogue == STEP_SWIGLU ? 2 : 1);
    /* As many slots as let the warps be about three rounds apart. */
    p->n_slots = 0;
    p->unit_slots_log2 = 1;
    while (p->unit_slots_log2 < 5 && (1 << p->unit_slots_log2) * p->unit_tiles < 4 * STEP_WARPS &&
           (2 << p->unit_slots_log2) * unit_pairs * 8 <= 24 * 1024)
        p->unit_slots_log2++;
    if (step_gemv_layout(p).size > max_bytes / 2)
        p->unit_slots_log2 = 0;
    unsigned fixed = step_gemv_layout(p).size, slot = (unsigned)(p->n_warps * p->slot_bytes + 8 * STEP_WARPS);
    if (fixed + 128 + 2 * slot > max_bytes)
        return false;
    p->n_slots = (int)((max_bytes - 128 - fixed) / slot);
    int most = (int)((int64_t)(p->n_units + p->n_blocks - 1) / p->n_blocks * p->unit_tiles / p->n_warps) + 1;
    p->n_slots = p->n_slots < most ? p->n_slots : most;
    return true;
}

template <bool COMMON> static void launch(const struct step_config *config, const struct step_gemv *p) {
    struct step_layout at = step_gemv_layout(p);
    cudaFuncSetAttribute(step_gemv_kernel<COMMON>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)at.size);
    cudaFuncSetAttribute(step_gemv_kernel<COMMON>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)config->n_blocks);
    how.blockDim = dim3(32 * STEP_WARPS);
    how.dynamicSmemBytes = at.size;
    how.stream = (cudaStream_t)config->stream;
    how.attrs = &attribute;
    how.numAttrs = config->overlap ? 1 : 0;
    cudaLaunchKernelEx(&how, step_gemv_kernel<COMMON>, *p, at);
}

void step_gemv_launch(const struct step_config *config, const struct step_gemv *p) {
    bool common = true;
    for (int m = 0; m < p->n_mat; m++)
        common = common && (p->mat[m].type == FWD_TYPE_Q4_K || p->mat[m].type == FWD_TYPE_Q6_K);
    if (common)
        launch<true>(config, p);
    else
        launch<false>(config, p);
}
