/* harness/fault/fault_math.h: what the broken ops are made of: values of views as F64, weight rows as codes, scales and
 * minima in the open, and choices that follow from a seed. Internal to harness/fault. */
#ifndef HARNESS_FAULT_FAULT_MATH_H
#define HARNESS_FAULT_FAULT_MATH_H

#include "engine.h"

struct par_fault;

/* ---- views ---- */
/* Row i of a view of rows (position pos0 + i), whatever its dtype. */
char *fault_row(const struct fwd_view *v, int64_t i);
/* Value k of such a row; of Q8 rows the product d * q. Token ids too. */
double fault_get(const struct fwd_view *v, int64_t i, int64_t k);
/* Stores into an F32 or F64 row. */
void fault_put(const struct fwd_view *v, int64_t i, int64_t k, double x);
/* Value d of head h of cache row r, and storing it (F16: half to even). */
double fault_cache_get(const struct fwd_view *v, int64_t r, int64_t h, int64_t d);
void fault_cache_put(const struct fwd_view *v, int64_t r, int64_t h, int64_t d, double x);
/* All n values of row i. */
void fault_get_row(const struct fwd_view *v, int64_t i, double *out);

double fault_half_value(uint16_t h);
/* Half to even; magnitudes above 65504 become infinity. */
uint16_t fault_to_half(double x);
/* x rounded to binary16 and back, and to bfloat16 (half to even) and back. */
double fault_as_half(double x);
double fault_as_bf16(double x);

/* ---- weights ---- */
/* One block of a weight with its fields in the open: value i = d * scale[g] * (code[i] - offset) - dmin * min[g] with
 * g = i / group. Types without sub-blocks have one group and scale 1; Q4_1 and Q5_1 have dmin = -m and min 1. Of float
 * types a "block" is 32 values (fewer at the end of a row) in `real`, and is_float is set. */
struct fault_block {
    int n, group, n_groups, offset;
    bool has_min, is_float;
    double d, dmin;
    int scale[16], min[16];
    int code[256], high_shift; /* bits of a code from high_shift on are stored apart; 0: none */
    double real[256];
};
/* Values of a block of the type (32 for float types) and its bytes in the file. */
int fault_block_values(uint32_t type);
int64_t fault_block_bytes(uint32_t type);
/* n_left: values that the row still has, for float types. */
void fault_open_block(uint32_t type, const uint8_t *bytes, int64_t n_left, struct fault_block *out);
double fault_block_value(const struct fault_block *b, int i);
/* Row n of a weight decoded; stride in bytes, 0 for the weight's own. */
void fault_decode_row(uint32_t type, const uint8_t *row, int64_t n_cols, double *out);

/* ---- choices ---- */
/* A number that follows from the fault's seed, its name and salt. */
uint64_t fault_hash(const struct par_fault *f, uint64_t salt);
/* Does the fault act on this position (all, or the one of its place)? */
bool fault_at(const struct par_fault *f, const struct fwd_op_call *call, int i);
/* What a fault remembers between the calls of its op, in whatever session it is planted. */
struct par_fault_memory {
    int n_calls;
    void *data;
    size_t n_bytes;
};
/* Room for n bytes in it, zeroed when new; NULL: no memory. */
void *fault_keep(struct par_fault *f, size_t n);

#endif
