/* engine/cuda/step_gemv.cu: one activation vector by the matrices of one launch (step_kernels.h).
 *
 * One warp fetches job after job into a ring of shared memory by bulk copies: the first ones are on their way before
 * the launch waits for its predecessor, since weights do not depend on it. Of a job's superblocks each of a team's
 * warps takes one, always the same of every chunk, so that its activations stay in registers; it leaves the exact sums
 * with their factors. One warp runs the chains of a whole batch, a lane two rows, in the order of the superblocks,
 * while the next batch is multiplied, and does what follows the product. */
#include "cuda/expf.cuh"
#include "cuda/step_kernels.h"
#include "cuda/step_lane.cuh"
#include "cuda/step_prologue.cuh"

enum { MOST_SLOTS = 24 };
/* Enough bytes on their way to cover the memory's latency; more only makes it longer. */
#define RING_BYTES 98304u

/* Barriers of a block. */
struct barriers {
    uint64_t full[MOST_SLOTS], empty[MOST_SLOTS]; /* jobs in the ring */
    uint64_t done[2], taken[2];                   /* batches of sums */
    double lanes[257];
};

/* ---- where a warp is in the block's run ---- */

struct walk {
    int unit, n_units; /* the group's first unit, and how many it has */
    int chunk, strip;  /* strip: 0 .. strips_of() - 1 */
};

static __device__ __forceinline__ bool is_paired(const struct step_gemv &p) {
    return p.epilogue == STEP_SWIGLU;
}

static __device__ __forceinline__ int strips_of(const struct step_gemv &p, const struct walk &w) {
    return is_paired(p) ? 2 * w.n_units : w.n_units;
}

static __device__ __forceinline__ void enter_group(const struct step_gemv &p, struct walk *w, int unit, int unit1) {
    w->unit = unit;
    w->n_units = min(p.group_units, unit1 - unit);
    w->chunk = w->strip = 0;
}

static __device__ __forceinline__ void next_batch(const struct step_gemv &p, struct walk *w, int unit1) {
    w->strip = 0;
    if (++w->chunk == p.n_chunks)
        enter_group(p, w, w->unit + w->n_units, unit1);
}

/* The matrix of strip s, and the strip's number there. */
static __device__ __forceinline__ int matrix_of(const struct step_gemv &p, const struct walk &w, int s, int *strip) {
    if (is_paired(p)) {
        int up = s >= w.n_units;
        *strip = w.unit + s - (up ? w.n_units : 0);
        return up;
    }
    int unit = w.unit + s, m = (p.n_mat > 1 && unit >= p.mat[1].unit0) + (p.n_mat > 2 && unit >= p.mat[2].unit0);
    *strip = unit - p.mat[m].unit0;
    return m;
}

static __device__ __forceinline__ const uint8_t *job_at(const struct step_gemv &p, const struct walk &w, int s,
                                                        int *m) {
    int strip;
    *m = matrix_of(p, w, s, &strip);
    return p.mat[*m].tiles + ((int64_t)strip * p.n_sb + w.chunk * p.chunk_sb) * p.mat[*m].tile_bytes;
}

static __device__ __forceinline__ int superblocks_of(const struct step_gemv &p, const struct walk &w) {
    return min(p.chunk_sb, p.n_sb - w.chunk * p.chunk_sb);
}

static __device__ __forceinline__ bool is_k(int type) {
    return type >= FWD_TYPE_Q2_K;
}

static __host__ __device__ __forceinline__ bool has_min(int type) {
    return type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q2_K || type == FWD_TYPE_Q4_1 ||
           type == FWD_TYPE_Q5_1;
}

/* float2 that a tile leaves. */
static __host__ __device__ __forceinline__ int pairs_of(int type) {
    return type >= FWD_TYPE_Q2_K ? 16 : has_min(type) ? 128 : 64;
}

/* ---- fetching ---- */

#if STEP_HOPPER
static __device__ void fetch_jobs(const struct step_gemv &p, struct barriers *bar, uint8_t *ring, struct walk *w,
                                  int unit1, int *slot, unsigned *phase, bool first_round) {
    for (; w->unit < unit1; next_batch(p, w, unit1)) {
        int n_bytes = superblocks_of(p, *w);
        for (; w->strip < strips_of(p, *w); w->strip++) {
            if (*slot == p.n_slots) {
                *slot = 0;
                *phase ^= 1;
                if (first_round)
                    return;
            }
            if (!first_round)
                barrier_wait(bar->empty + *slot, *phase ^ 1);
            int m;
            const uint8_t *src = job_at(p, *w, w->strip, &m);
            bulk_load(ring + *slot * p.slot_bytes, src, (unsigned)(n_bytes * p.mat[m].tile_bytes), bar->full + *slot);
            ++*slot;
        }
    }
}
#endif

/* ---- multiplying ---- */

static __device__ __forceinline__ void load_act(struct lane_act &a, const struct shared_act &from, int b, bool k) {
    int part = (int)threadIdx.x >> 3 & 3;
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
        give_back();                                                                                                   \
        multiply_tile<T>(&l, act, to);                                                                                 \
        break;                                                                                                         \
    }

template <bool COMMON, typename GIVE_BACK>
static __device__ __forceinline__ void multiply_any(int type, const uint8_t *tile, const struct lane_act &act,
                                                    float2 *to, GIVE_BACK give_back) {
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

/* One warp's share of every job of its team. */
template <bool COMMON>
static __device__ __forceinline__ void multiply_jobs(const struct step_gemv &p, struct barriers *bar,
                                                     const uint8_t *ring, float2 *pairs, const struct shared_act &k,
                                                     const struct shared_act &b32, int unit0, int unit1) {
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    int team = warp / p.chunk_sb, column = warp - team * p.chunk_sb;
    if (team >= p.n_teams)
        return;
    struct lane_act act;
    struct walk w;
    int act_of = -1, slot = team, turn = team, n_batches = 0, batch_pairs = p.group_units * p.job_pairs;
    unsigned phase = 0;
    if (is_paired(p))
        batch_pairs *= 2;
    for (enter_group(p, &w, unit0, unit1); w.unit < unit1; next_batch(p, &w, unit1), n_batches++) {
        int b = w.chunk * p.chunk_sb + column, n_strips = strips_of(p, w), buffer = n_batches & 1;
        if (n_batches > 1)
            barrier_wait(bar->taken + buffer, (unsigned)(n_batches / 2 - 1) & 1);
        for (; turn < n_strips; turn += p.n_teams) {
            int strip, m = matrix_of(p, w, turn, &strip), type = p.mat[m].type;
            bool of_k = COMMON || is_k(type);
#if STEP_HOPPER
            barrier_wait(bar->full + slot, phase);
            const uint8_t *tile = ring + slot * p.slot_bytes + column * p.mat[m].tile_bytes;
#else
            const uint8_t *tile = p.mat[m].tiles + ((int64_t)strip * p.n_sb + b) * p.mat[m].tile_bytes;
#endif
            if (b < p.n_sb) {
                if (act_of != 2 * b + of_k) {
                    load_act(act, of_k ? k : b32, b, of_k);
                    act_of = 2 * b + of_k;
                }
                float2 *to =
                    pairs + buffer * batch_pairs + turn * p.job_pairs + column * (COMMON ? 16 : pairs_of(type));
                multiply_any<COMMON>(type, tile, act, to, [&] {
#if STEP_HOPPER
                    __syncwarp();
                    if (lane == 0)
                        barrier_arrive(bar->empty + slot);
#endif
                });
            } else if (lane == 0) {
                barrier_arrive(bar->empty + slot);
            }
            slot += p.n_teams;
            if (slot >= p.n_slots) {
                slot = team;
                phase ^= 1;
            }
        }
        turn -= n_strips;
        __syncwarp();
        if (lane == 0)
            barrier_arrive(bar->done + buffer);
    }
}

/* ---- the chains and what follows ---- */

static __device__ __forceinline__ float swiglu(float g, float up) {
    float e = cuda_expf(-fabsf(g));
    float num = g < 0.0f ? g * e : g;
    return num / (1.0f + e) * up;
}

/* A lane's row of one strip: which, and what it needs beside the product. */
struct chain_row {
    bool on;
    int m, row, stride, n;
    bool with_min;
    float acc, bias, residual;
    float *tap;
};

static __device__ __forceinline__ struct chain_row enter_row(const struct step_gemv &p, const struct walk &w, int s,
                                                             bool there, const struct cuda_step_taps *taps) {
    struct chain_row r = {};
    if (!there)
        return r;
    int strip, lane = (int)threadIdx.x & 31;
    r.m = matrix_of(p, w, s, &strip);
    const struct step_mat *mat = &p.mat[r.m];
    r.row = 8 * strip + (lane & 7);
    r.on = r.row < mat->n_rows;
    r.with_min = has_min(mat->type);
    r.stride = is_k(mat->type) || r.with_min ? 16 : 8;
    r.n = is_k(mat->type) ? p.n_sb : (p.n + 31) / 32; /* blocks left */
    r.bias = r.on && mat->bias ? mat->bias[r.row] : 0.0f;
    r.residual = r.on && p.epilogue == STEP_RESIDUAL ? __ldcg(p.residual + r.row) : 0.0f;
    r.tap = (float *)tap_pointer(taps, mat->tap);
    return r;
}

/* The blocks of one chunk. */
static __device__ __forceinline__ void run_chain(const struct step_gemv &p, struct chain_row *r, const float2 *at) {
    int n = min(r->n, r->stride == 16 && p.mat[r->m].type >= FWD_TYPE_Q2_K ? p.chunk_sb : 8 * p.chunk_sb);
    float acc = r->acc;
    at += threadIdx.x & 7;
    r->n -= n;
    if (r->with_min) {
#pragma unroll 4
        for (int b = 0; b < n; b++, at += r->stride) {
            float2 x = at[0], m = at[8];
            acc = __fmaf_rn(x.x, x.y, acc);
            acc = __fmaf_rn(m.x, m.y, acc);
        }
    } else {
#pragma unroll 4
        for (int b = 0; b < n; b++, at += r->stride) {
            float2 x = at[0];
            acc = __fmaf_rn(x.x, x.y, acc);
        }
    }
    r->acc = acc;
}

static __device__ __forceinline__ float finish_row(const struct step_gemv &p, const struct chain_row &r) {
    if (!r.on)
        return 0.0f;
    float y = r.acc;
    if (p.mat[r.m].bias)
        y += r.bias;
    y = plain_nan(y);
    if (r.tap)
        r.tap[r.row] = y;
    return y;
}

static __device__ __forceinline__ void store_row(const struct step_gemv &p, const struct chain_row &r, float y,
                                                 float *tap_out) {
    if (!r.on)
        return;
    if (p.epilogue == STEP_STORE) {
        p.mat[r.m].y[r.row] = y;
        return;
    }
    if (p.epilogue == STEP_RESIDUAL)
        y = plain_nan(y + r.residual);
    p.out[r.row] = y;
    if (tap_out)
        tap_out[r.row] = y;
}

static __device__ __forceinline__ void chain_batches(const struct step_gemv &p, struct barriers *bar,
                                                     const float2 *pairs, int unit0, int unit1,
                                                     const struct cuda_step_taps *taps) {
    int lane = (int)threadIdx.x & 31, n_batches = 0, batch_pairs = p.group_units * p.job_pairs;
    float *tap_out = (float *)tap_pointer(taps, p.tap_out);
    struct chain_row a = {}, b = {};
    struct walk w;
    if (is_paired(p))
        batch_pairs *= 2;
    for (enter_group(p, &w, unit0, unit1); w.unit < unit1; next_batch(p, &w, unit1), n_batches++) {
        int n_strips = strips_of(p, w), buffer = n_batches & 1;
        int s = lane >> 3, s2 = s + (is_paired(p) ? w.n_units : 4);
        bool first = s < (is_paired(p) ? w.n_units : n_strips);
        if (w.chunk == 0) {
            a = enter_row(p, w, s, first, taps);
            b = enter_row(p, w, s2, first && s2 < n_strips, taps);
        }
        barrier_wait(bar->done + buffer, (unsigned)(n_batches / 2) & 1);
        const float2 *at = pairs + buffer * batch_pairs;
        if (first)
            run_chain(p, &a, at + s * p.job_pairs);
        if (first && s2 < n_strips)
            run_chain(p, &b, at + s2 * p.job_pairs);
        __syncwarp();
        if (lane == 0)
            barrier_arrive(bar->taken + buffer);
        if (w.chunk < p.n_chunks - 1)
            continue;
        float ya = finish_row(p, a), yb = finish_row(p, b);
        if (is_paired(p)) {
            store_row(p, a, plain_nan(swiglu(ya, yb)), tap_out);
        } else {
            store_row(p, a, ya, tap_out);
            store_row(p, b, yb, tap_out);
        }
    }
}

/* ---- the kernel ---- */

/* COMMON: every matrix is Q4_K or Q6_K. One block a multiprocessor: with 56 registers blocks of two launches fit side
 * by side and fetch earlier, but a token then took 2414 us instead of 1761 (H200, 7B shape): nothing keeps two blocks
 * of the same launch from sharing one multiprocessor while another has none. */
template <bool COMMON>
static __global__ void __launch_bounds__(32 * STEP_WARPS, 1)
    step_gemv_kernel(const __grid_constant__ struct step_gemv p, const __grid_constant__ struct step_layout at) {
    extern __shared__ __align__(128) uint8_t shared[];
    let_next_start();
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    int unit0 = (int)((unsigned)blockIdx.x * (unsigned)p.n_units / (unsigned)p.n_blocks);
    int unit1 = (int)((unsigned)(blockIdx.x + 1) * (unsigned)p.n_units / (unsigned)p.n_blocks);
    struct barriers *bar = (struct barriers *)shared;
    uint8_t *ring = shared + at.ring;
    float2 *pairs = (float2 *)(shared + at.pairs);
    struct walk w;
    int slot = 0;
    unsigned phase = 0;
    if (warp == STEP_FETCHER && lane == 0) {
        for (int s = 0; s < p.n_slots; s++) {
            barrier_init(bar->full + s, 1);
            barrier_init(bar->empty + s, (unsigned)p.chunk_sb);
        }
        for (int s = 0; s < 2; s++) {
            barrier_init(bar->done + s, (unsigned)(p.n_teams * p.chunk_sb));
            barrier_init(bar->taken + s, 1);
        }
#if STEP_HOPPER
        barrier_init_done();
        enter_group(p, &w, unit0, unit1);
        fetch_jobs(p, bar, ring, &w, unit1, &slot, &phase, true);
#endif
    }
    __syncthreads();
    if (warp == STEP_FETCHER) {
#if STEP_HOPPER
        if (lane == 0)
            fetch_jobs(p, bar, ring, &w, unit1, &slot, &phase, false);
#endif
        return;
    }
    const struct cuda_step_taps *taps = p.taps && p.state->taps ? p.taps : NULL;
    if (warp == STEP_CHAINER) {
        wait_for_previous();
        chain_batches(p, bar, pairs, unit0, unit1, taps);
        return;
    }
    struct shared_act k = {(int8_t *)shared + at.q_k, (float *)(shared + at.d_k), (int16_t *)(shared + at.sum_k)};
    struct shared_act b32 = {(int8_t *)shared + at.q_32, (float *)(shared + at.d_32), (int16_t *)(shared + at.sum_32)};
    eight first_w;
    if (p.norm)
        first_w = read_eight(p.norm, 256 * warp + 8 * lane, p.n);
    wait_for_previous();
    prepare_activations(&p, COMMON || p.has_k ? &k : NULL, !COMMON && p.has_32 ? &b32 : NULL, bar->lanes, first_w,
                        blockIdx.x == 0 ? taps : NULL);
    multiply_jobs<COMMON>(p, bar, ring, pairs, k, b32, unit0, unit1);
}

/* ---- host ---- */

static unsigned round_up(unsigned n, unsigned to) {
    return (n + to - 1) / to * to;
}

struct step_layout step_gemv_layout(const struct step_gemv *p) {
    struct step_layout at = {};
    unsigned n_sb = (unsigned)p->n_sb, next = (unsigned)sizeof(struct barriers);
    at.q_k = next = round_up(next, 16), next += p->has_k ? 256 * n_sb : 0;
    at.sum_k = next, next += p->has_k ? 32 * n_sb : 0;
    at.d_k = next, next += p->has_k ? 4 * n_sb : 0;
    at.q_32 = next = round_up(next, 16), next += p->has_32 ? 256 * n_sb : 0;
    at.sum_32 = next, next += p->has_32 ? 32 * n_sb : 0;
    at.d_32 = next, next += p->has_32 ? 32 * n_sb : 0;
    at.pairs = next = round_up(next, 128);
    next += 16u * (unsigned)(p->job_pairs * p->group_units * (p->epilogue == STEP_SWIGLU ? 2 : 1));
    at.ring = next = round_up(next, 128);
    at.size = next + (unsigned)(p->n_slots * p->slot_bytes);
    return at;
}

bool step_gemv_plan(struct step_gemv *p, unsigned max_bytes) {
    enum { MOST_STRIPS = 8, PAIRS_BYTES = 32 * 1024 };
    int tile_bytes = 0, tile_pairs = 0, strips_each = p->epilogue == STEP_SWIGLU ? 2 : 1;
    p->has_k = p->has_32 = false;
    for (int m = 0; m < p->n_mat; m++) {
        int type = p->mat[m].type;
        tile_pairs = pairs_of(type) > tile_pairs ? pairs_of(type) : tile_pairs;
        tile_bytes = p->mat[m].tile_bytes > tile_bytes ? p->mat[m].tile_bytes : tile_bytes;
        p->has_k |= type >= FWD_TYPE_Q2_K;
        p->has_32 |= type < FWD_TYPE_Q2_K;
    }
    p->n_chunks = (p->n_sb + STEP_MULTIPLIERS - 1) / STEP_MULTIPLIERS;
    p->chunk_sb = (p->n_sb + p->n_chunks - 1) / p->n_chunks;
    p->n_teams = STEP_MULTIPLIERS / p->chunk_sb;
    p->slot_bytes = p->chunk_sb * tile_bytes;
    p->job_pairs = p->chunk_sb * tile_pairs;
    p->group_units = MOST_STRIPS / strips_each;
    while (p->group_units > 1 && 16 * p->job_pairs * p->group_units * strips_each > PAIRS_BYTES)
        p->group_units /= 2;
    p->n_slots = 0;
    unsigned fixed = step_gemv_layout(p).size, round = (unsigned)(p->n_teams * p->slot_bytes);
    if (fixed + 2 * round > max_bytes)
        return false;
    unsigned bytes = max_bytes - fixed < RING_BYTES ? max_bytes - fixed : RING_BYTES;
    int rounds = (int)(bytes / round), most = MOST_SLOTS / p->n_teams;
    rounds = rounds < 2 ? 2 : rounds > most ? most : rounds;
    p->n_slots = rounds * p->n_teams;
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
