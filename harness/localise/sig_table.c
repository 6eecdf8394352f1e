/* The names of the signatures, the simplest first: where two explain the same elements the earlier one is taken. */
#include "localise/explain.h"

#include <stddef.h>

static const struct par_signature_info infos[] = {
    {"norm-weight-missing", "H5", "the norm's weight is not applied", "aprender 26: a norm left out on one path"},
    {"norm-weight-plus-one", "H5", "the norm is multiplied by 1 + weight", "llama.cpp PR 8197: Gemma's norm"},
    {"norm-weight-other-layer", "H5", "the weight of another norm", "aprender 10: entries of a cache confused"},
    {"norm-mean-subtracted", "H5", "a layer norm in place of the RMS norm", "class of llama.cpp PR 8197"},
    {"norm-not-divided", "H5", "the row is scaled by something else than its RMS", "class of aprender 25"},
    {"eps-other", "H5", "another epsilon, or in another place", "aprender 25: kernel cache key without eps"},
    {"rope-missing", "H3", "the rotation is left out", "aprender 26, entrenar 270"},
    {"rope-pairing", "H3", "the other pairing of dimensions", "candle 3410; candle PR 518; llama2.c PR 286"},
    {"rope-sign", "H3", "rotates the other way round", "class of llama.cpp 3825: shift delta applied wrongly"},
    {"rope-twice", "H3", "rotated more than once", "llama.cpp 5652: rotated again after a shift"},
    {"rope-position", "H3", "rotated as for another position", "llama.cpp PR 7107; llama.cpp 3825"},
    {"rope-scaling-ignored", "H3", "frequency factors not applied", "tiny-vllm PR 1; unsloth PR 6197"},
    {"rope-base", "H3", "another base, exponent or number of dimensions", "mistral.rs 19; aprender 25"},
    {"bias-after-rope", "H4", "the bias is added after instead of before", "aprender 39: before or after the bias"},
    {"tap-pre-bias", "H4", "a tap that holds the value without its bias", "aprender 39: 9x at layer 0"},
    {"gate-up-swapped", "H5", "gate and up exchanged", "class of aprender 5: dispatch of the wrong tensor"},
    {"gelu-for-silu", "H5", "gelu in place of silu", "class of llama.cpp PR 8197"},
    {"silu-missing", "H5", "no silu, or relu or sigmoid in its place", "class of llama.cpp PR 8197"},
    {"up-missing", "H5", "up is not multiplied in", "class of aprender 7: an operand not recorded"},
    {"residual-missing", "H5", "one term of a sum is left out", "class of aprender 7: a node not recorded"},
    {"residual-twice", "H5", "one term of a sum is added twice", "class of aprender 23: args not renewed"},
    {"residual-sign", "H5", "one term of a sum is subtracted", "class of llama.cpp PR 8197"},
    {"weight-other-layer", "H4", "the matrix of another layer", "aprender 10: cache keyed by pointer and count"},
    {"weight-other-matrix", "H4", "the matrix of another op", "SHIP-007 40.5: fused QKV slices"},
    {"weight-other-head", "H4", "rows or columns of another head", "llama.cpp 3018: GQA permutation"},
    {"weight-transposed", "H1", "[N, K] read as [K, N]", "aprender 1, 29: the SHIP-007 defect"},
    {"weight-stride", "H1", "another row is read", "mlx-lm PR 1896; aprender 30"},
    {"weight-other-type", "H4", "decoded as another block type", "aprender 4, 5, 6, 34; ik_llama PR 75"},
    {"nibble-order", "H1", "values of a byte in another order", "aprender 31; aprender 32"},
    {"scale-other-subblock", "H1", "scale of another sub-block or block", "llama.cpp 12657"},
    {"min-other-subblock", "H1", "minimum of another sub-block or block", "llama.cpp 12657; PR 7921"},
    {"min-dropped", "H1", "the minimum (or offset) is left out", "llama.cpp PR 7921"},
    {"min-added", "H1", "the minimum (or offset) has the wrong sign", "llama.cpp PR 7921"},
    {"k-tail-skipped", "H1", "the last columns are left out", "museum: tails; mlx PR 3509; llama.cpp 28151"},
    {"high-bits-misplaced", "H1", "high bits of another value", "aprender 32: Q5 high-bit index"},
    {"high-bits-dropped", "H1", "high bits not read", "aprender 32; ik_llama PR 348"},
};

const struct par_signature_info *par_signature_info(int i) {
    return i >= 0 && i < (int)(sizeof infos / sizeof *infos) ? &infos[i] : NULL;
}
