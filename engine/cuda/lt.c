/* engine/cuda/lt.c: matrix products through cuBLASLt: the library's loading, and a plan (descriptors and algorithm) for
 * each shape and form, made at its first product and kept.
 *
 * In the library's column order y[m][n] = sum_k w[n][k] x[m][k] is D (n by m) = transposed A (k by n) times B (k by m):
 * both operands run along k, the one form that E4M3 has on Hopper. */
#include "cuda/kernels_tc.h"

#include "core/memory.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PLANS = 512 };
static const size_t workspace_bytes = (size_t)64 << 20;

struct plan_key {
    enum cuda_form form;
    bool bias, fast;
    int64_t n, k, m, ld_x, ld_y;
};

struct plan {
    struct plan_key key;
    bool bias_fused;   /* by the library; else by a kernel of ours */
    bool scales_fused; /* E4M3: likewise */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
    int split_k;
};

struct cuda_lt {
    void *library;
    size_t version;
    cublasLtHandle_t handle;
    void *workspace;
    struct plan plans[MAX_PLANS];
    int n_plans;
    __typeof__(cublasLtCreate) *create;
    __typeof__(cublasLtDestroy) *destroy;
    __typeof__(cublasLtGetVersion) *get_version;
    __typeof__(cublasLtGetStatusString) *status_string;
    __typeof__(cublasLtMatmul) *matmul;
    __typeof__(cublasLtMatmulDescCreate) *desc_create;
    __typeof__(cublasLtMatmulDescDestroy) *desc_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *desc_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *heuristic;
    __typeof__(cublasLtMatmulAlgoConfigGetAttribute) *algo_get;
};

/* ---- loading ----------------------------------------------------------------------------------------------------- */
static enum fwd_status open_library(struct cuda_lt *lt, struct fwd_error *err) {
    static const char *const names[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                        "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.12"};
    char why[256] = "";
    for (size_t i = 0; i < sizeof names / sizeof *names && !lt->library; i++) {
        lt->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        const char *reason = lt->library ? NULL : dlerror();
        if (reason && i == 0)
            (void)snprintf(why, sizeof why, "%s", reason);
    }
    FWD_FAIL_IF(!lt->library, FWD_EUNAVAILABLE, err, "cuBLASLt: %s", why);
    return FWD_OK;
}

static enum fwd_status find_functions(struct cuda_lt *lt, struct fwd_error *err) {
    const struct {
        const char *name;
        void *at; /* the member: a pointer to a function, as large as one to an object on every system with dlsym */
    } wanted[] = {{"cublasLtCreate", &lt->create},
                  {"cublasLtDestroy", &lt->destroy},
                  {"cublasLtGetVersion", &lt->get_version},
                  {"cublasLtGetStatusString", &lt->status_string},
                  {"cublasLtMatmul", &lt->matmul},
                  {"cublasLtMatmulDescCreate", &lt->desc_create},
                  {"cublasLtMatmulDescDestroy", &lt->desc_destroy},
                  {"cublasLtMatmulDescSetAttribute", &lt->desc_set},
                  {"cublasLtMatrixLayoutCreate", &lt->layout_create},
                  {"cublasLtMatrixLayoutDestroy", &lt->layout_destroy},
                  {"cublasLtMatmulPreferenceCreate", &lt->preference_create},
                  {"cublasLtMatmulPreferenceDestroy", &lt->preference_destroy},
                  {"cublasLtMatmulPreferenceSetAttribute", &lt->preference_set},
                  {"cublasLtMatmulAlgoGetHeuristic", &lt->heuristic},
                  {"cublasLtMatmulAlgoConfigGetAttribute", &lt->algo_get}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(lt->library, wanted[i].name);
        FWD_FAIL_IF(!found, FWD_EUNAVAILABLE, err, "cuBLASLt: the library has no %s", wanted[i].name);
        memcpy(wanted[i].at, &found, sizeof found);
    }
    return FWD_OK;
}

static enum fwd_status start_library(struct cuda_lt *lt, struct fwd_error *err) {
    FWD_TRY(open_library(lt, err));
    FWD_TRY(find_functions(lt, err));
    lt->version = lt->get_version();
    cublasStatus_t st = lt->create(&lt->handle);
    FWD_FAIL_IF(st != CUBLAS_STATUS_SUCCESS, FWD_EUNAVAILABLE, err, "cuBLASLt %zu: cublasLtCreate: %s", lt->version,
                lt->status_string(st));
    cudaError_t got = cudaMalloc(&lt->workspace, workspace_bytes);
    FWD_FAIL_IF(got != cudaSuccess, FWD_ENOMEM, err, "cuBLASLt: %zu bytes of device memory for its workspace: %s",
                workspace_bytes, cudaGetErrorString(got));
    return FWD_OK;
}

enum fwd_status cuda_lt_create(struct cuda_lt **out, struct fwd_error *err) {
    struct cuda_lt *lt = fwd_calloc(1, sizeof *lt);
    FWD_FAIL_IF(!lt, FWD_ENOMEM, err, "cuBLASLt: no memory");
    enum fwd_status st = start_library(lt, err);
    if (st == FWD_OK)
        *out = lt;
    else
        cuda_lt_free(lt);
    return st;
}

static void drop_plan(const struct cuda_lt *lt, const struct plan *p) {
    if (p->desc)
        (void)lt->desc_destroy(p->desc);
    if (p->a)
        (void)lt->layout_destroy(p->a);
    if (p->b)
        (void)lt->layout_destroy(p->b);
    if (p->d)
        (void)lt->layout_destroy(p->d);
}

void cuda_lt_free(struct cuda_lt *lt) {
    if (!lt)
        return;
    for (int i = 0; i < lt->n_plans; i++)
        drop_plan(lt, &lt->plans[i]);
    if (lt->handle)
        (void)lt->destroy(lt->handle);
    (void)cudaFree(lt->workspace);
    if (lt->library)
        (void)dlclose(lt->library);
    fwd_free(lt);
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */
static const char *form_name(enum cuda_form form) {
    return form == CUDA_FORM_BF16 ? "BF16" : form == CUDA_FORM_E4M3 ? "E4M3" : "another form";
}

static enum fwd_status refuse(const struct cuda_lt *lt, const struct plan_key *k, const char *call, cublasStatus_t st,
                              struct fwd_error *err) {
    FWD_FAIL(st == CUBLAS_STATUS_NOT_SUPPORTED ? FWD_EUNSUPPORTED : FWD_EDEVICE, err,
             "cuBLASLt %zu: %s product of %lld x %lld weights and %lld positions: %s: %s", lt->version,
             form_name(k->form), (long long)k->n, (long long)k->k, (long long)k->m, call, lt->status_string(st));
}

#define LT_TRY(call)                                                                                                   \
    do {                                                                                                               \
        cublasStatus_t lt_try_ = lt->call;                                                                             \
        if (lt_try_ != CUBLAS_STATUS_SUCCESS)                                                                          \
            return refuse(lt, &p->key, #call, lt_try_, err);                                                           \
    } while (0)

static enum fwd_status describe_operands(struct cuda_lt *lt, struct plan *p, struct fwd_error *err) {
    const struct plan_key *k = &p->key;
    bool e4m3 = k->form == CUDA_FORM_E4M3;
    cudaDataType_t in = e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    cublasOperation_t transposed = CUBLAS_OP_T;
    LT_TRY(layout_create(&p->a, in, (uint64_t)k->k, (uint64_t)k->n, k->k));
    LT_TRY(layout_create(&p->b, in, (uint64_t)k->k, (uint64_t)k->m, k->ld_x));
    LT_TRY(layout_create(&p->d, CUDA_R_32F, (uint64_t)k->n, (uint64_t)k->m, k->ld_y));
    LT_TRY(desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (e4m3) {
        int8_t fast = k->fast;
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    }
    if (p->scales_fused) {
        int32_t outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &outer, sizeof outer));
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &outer, sizeof outer));
    }
    if (p->bias_fused) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        cudaDataType_t f32 = CUDA_R_32F;
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &f32, sizeof f32));
    }
    return FWD_OK;
}

/* Where a product's scales and bias lie; the choice of an algorithm looks at their alignment. */
static enum fwd_status point_at(struct cuda_lt *lt, struct plan *p, const struct cuda_linear *w,
                                const struct cuda_tc_act *x, struct fwd_error *err) {
    if (p->scales_fused) {
        const float *scale_w = w->scale, *scale_x = x->scale;
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale_w, sizeof scale_w));
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scale_x, sizeof scale_x));
    }
    if (p->bias_fused)
        LT_TRY(desc_set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &w->bias, sizeof w->bias));
    return FWD_OK;
}

/* Partial sums of a split of k are added in F32: in place one after the other, or from the workspace. */
static enum fwd_status choose_algorithm(struct cuda_lt *lt, struct plan *p, struct fwd_error *err) {
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t best = {.state = CUBLAS_STATUS_NOT_SUPPORTED};
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    int n = 0;
    LT_TRY(preference_create(&preference));
    cublasStatus_t st = lt->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                           sizeof workspace_bytes);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = lt->preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = lt->heuristic(lt->handle, p->desc, p->a, p->b, p->d, p->d, preference, 1, &best, &n);
    (void)lt->preference_destroy(preference);
    if (st == CUBLAS_STATUS_SUCCESS && (n < 1 || best.state != CUBLAS_STATUS_SUCCESS))
        st = CUBLAS_STATUS_NOT_SUPPORTED;
    if (st != CUBLAS_STATUS_SUCCESS)
        return refuse(lt, &p->key, "cublasLtMatmulAlgoGetHeuristic", st, err);
    p->algo = best.algo;
    size_t written;
    LT_TRY(algo_get(&p->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &p->split_k, sizeof p->split_k, &written));
    return FWD_OK;
}

static enum fwd_status make_plan(struct cuda_lt *lt, const struct plan_key *key, bool fused,
                                 const struct cuda_linear *w, const struct cuda_tc_act *x, struct plan *out,
                                 struct fwd_error *err) {
    bool bf16 = key->form == CUDA_FORM_BF16;
    struct plan p = {.key = *key, .bias_fused = fused && bf16 && key->bias, .scales_fused = fused && !bf16};
    enum fwd_status st = describe_operands(lt, &p, err);
    if (st == FWD_OK)
        st = point_at(lt, &p, w, x, err);
    if (st == FWD_OK)
        st = choose_algorithm(lt, &p, err);
    if (st == FWD_OK)
        *out = p;
    else
        drop_plan(lt, &p);
    return st;
}

static bool same_key(const struct plan_key *a, const struct plan_key *b) {
    return a->form == b->form && a->bias == b->bias && a->fast == b->fast && a->n == b->n && a->k == b->k &&
           a->m == b->m && a->ld_x == b->ld_x && a->ld_y == b->ld_y;
}

static enum fwd_status find_plan(struct cuda_lt *lt, const struct plan_key *key, const struct cuda_linear *w,
                                 const struct cuda_tc_act *x, struct plan **out, struct fwd_error *err) {
    for (int i = 0; i < lt->n_plans; i++) {
        if (same_key(&lt->plans[i].key, key)) {
            *out = &lt->plans[i];
            return FWD_OK;
        }
    }
    if (lt->n_plans == MAX_PLANS) {
        for (int i = 0; i < MAX_PLANS; i++)
            drop_plan(lt, &lt->plans[i]);
        lt->n_plans = 0;
    }
    struct plan *p = &lt->plans[lt->n_plans];
    /* Not every kernel of the library has an epilogue for an F32 bias (those of E4M3 none), and only Hopper's have a
     * scale for each row and column. */
    enum fwd_status st = make_plan(lt, key, true, w, x, p, err);
    if (st != FWD_OK)
        st = make_plan(lt, key, false, w, x, p, err);
    if (st != FWD_OK)
        return st;
    lt->n_plans++;
    *out = p;
    return FWD_OK;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */
static enum fwd_status check_product(const struct cuda_linear *w, const struct cuda_tc_act *x, int n_pos, int64_t ld_y,
                                     struct fwd_error *err) {
    FWD_FAIL_IF(w->form != x->form || (w->form != CUDA_FORM_BF16 && w->form != CUDA_FORM_E4M3), FWD_EINPUT, err,
                "cuBLASLt: weights in form %d, activations in form %d, expected BF16 or E4M3 for both", (int)w->form,
                (int)x->form);
    FWD_FAIL_IF(n_pos < 1 || x->ld < w->n_cols || ld_y < w->n_rows, FWD_ESHAPE, err,
                "cuBLASLt: %lld x %lld weights, %d positions, rows of x %lld and of y %lld apart", (long long)w->n_rows,
                (long long)w->n_cols, n_pos, (long long)x->ld, (long long)ld_y);
    if (w->form != CUDA_FORM_E4M3)
        return FWD_OK;
    FWD_FAIL_IF(w->n_rows % 16 || w->n_cols % 16 || x->ld % 16 || ld_y % 4, FWD_EUNSUPPORTED, err,
                "cuBLASLt: %lld x %lld weights in E4M3, rows of x %lld and of y %lld apart; expected multiples of 16 "
                "(of y: 4)",
                (long long)w->n_rows, (long long)w->n_cols, (long long)x->ld, (long long)ld_y);
    return FWD_OK;
}

enum fwd_status cuda_lt_matmul(struct cuda_lt *lt, struct CUstream_st *stream, const struct cuda_linear *w,
                               const struct cuda_tc_act *x, int n_pos, float *y, int64_t ld_y, bool fast,
                               struct fwd_error *err) {
    FWD_TRY(check_product(w, x, n_pos, ld_y, err));
    struct plan_key key = {.form = w->form,
                           .bias = w->bias != NULL,
                           .fast = w->form == CUDA_FORM_E4M3 && fast,
                           .n = w->n_rows,
                           .k = w->n_cols,
                           .m = n_pos,
                           .ld_x = x->ld,
                           .ld_y = ld_y};
    struct plan *p;
    FWD_TRY(find_plan(lt, &key, w, x, &p, err));
    FWD_TRY(point_at(lt, p, w, x, err));
    float one = 1.0f, zero = 0.0f;
    LT_TRY(matmul(lt->handle, p->desc, &one, w->data, p->a, x->data, p->b, &zero, y, p->d, y, p->d, &p->algo,
                  lt->workspace, workspace_bytes, stream));
    bool scales = w->form == CUDA_FORM_E4M3 && !p->scales_fused, bias = w->bias && !p->bias_fused;
    if (scales || bias)
        cuda_tc_finish(stream, scales ? w->scale : NULL, scales ? x->scale : NULL, bias ? w->bias : NULL,
                       (int)w->n_rows, n_pos, y, ld_y);
    return FWD_OK;
}

int cuda_lt_split(const struct cuda_lt *lt) {
    int most = 1;
    for (int i = 0; i < lt->n_plans; i++)
        most = lt->plans[i].split_k > most ? lt->plans[i].split_k : most;
    return most;
}
