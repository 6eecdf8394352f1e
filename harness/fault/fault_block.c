/* harness/fault/fault_block.c: blocks of a quantised weight read wrongly: one function turns the true fields into the
 * broken ones. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

/* Low 4 bits of the codes as they come when nibbles are read in the order of the bytes. */
static void interleave(struct fault_block *b) {
    int was[256];
    int span = b->n == 32 ? 32 : 64; /* values that share bytes: low nibbles first, then high ones */
    memcpy(was, b->code, sizeof was);
    for (int i = 0; i < b->n; i++) {
        int first = i / span * span, j = i % span;
        int from = first + j / 2 + (j % 2 ? span / 2 : 0);
        b->code[i] = (was[from] & 15) | (was[i] & ~15);
    }
}

static void misplace_high_bits(struct fault_block *b) {
    int was[256], low = (1 << b->high_shift) - 1, away = b->n == 32 ? 16 : 32;
    memcpy(was, b->code, sizeof was);
    for (int i = 0; i < b->n; i++)
        b->code[i] = (was[i] & low) | (was[i ^ away] & ~low);
}

/* The next sub-block's: of scale[] or min[]. */
static void rotate(int *codes, int n) {
    int first = codes[0];
    for (int g = 0; g + 1 < n; g++)
        codes[g] = codes[g + 1];
    codes[n - 1] = first;
}

static int largest_code(uint32_t type) {
    switch (type) {
    case FWD_TYPE_Q2_K:
        return 3;
    case FWD_TYPE_Q3_K:
        return 7;
    case FWD_TYPE_Q5_0:
    case FWD_TYPE_Q5_1:
    case FWD_TYPE_Q5_K:
        return 31;
    case FWD_TYPE_Q6_K:
        return 63;
    case FWD_TYPE_Q8_0:
        return 255;
    default:
        return 15;
    }
}

/* A code of a sub-block whose scale is not 0, so that the weight changes; a float weight moves by 2^-8 of itself. */
static void change_one_weight(const struct par_fault *f, uint32_t type, struct fault_block *b) {
    int at = (int)(fault_hash(f, 6) % (uint64_t)b->n);
    for (int tried = 0; tried < b->n; tried++, at = (at + 1) % b->n) {
        if (b->is_float ? b->real[at] != 0 : b->d != 0 && b->scale[at / b->group])
            break;
    }
    if (b->is_float)
        b->real[at] += ldexp(b->real[at], -8);
    else
        b->code[at] += b->code[at] < largest_code(type) ? 1 : -1;
}

static void change_code(const struct par_fault *f, int *codes, int n) {
    int g = (int)(fault_hash(f, 7) % (uint64_t)n);
    codes[g] += codes[g] > 0 ? -1 : 1;
}

static void reverse_groups(struct fault_block *b) {
    for (int i = 0; i < b->n; i += 16)
        for (int j = 0; j < 8; j++) {
            int kept = b->code[i + j];
            b->code[i + j] = b->code[i + 15 - j];
            b->code[i + 15 - j] = kept;
        }
}

static void drop_lane(struct fault_block *b) {
    for (int i = 0; i < b->n; i++)
        b->real[i] = i % 8 == 3 ? 0 : fault_block_value(b, i);
    b->is_float = true;
}

static void swap_codes(struct fault_block *b) {
    for (int g = 0; g < b->n_groups; g++) {
        int kept = b->scale[g];
        b->scale[g] = b->min[g];
        b->min[g] = kept;
    }
}

static void drop_packed_bits(struct fault_block *b) {
    for (int g = 4; g < b->n_groups; g++) {
        b->scale[g] &= 15;
        b->min[g] &= 15;
    }
}

static void scale_all(struct fault_block *b, double by) {
    b->d *= by;
    b->dmin *= by;
    for (int i = 0; b->is_float && i < b->n; i++)
        b->real[i] *= by;
}

static void take_next_scale(uint32_t type, const uint8_t *row, int64_t n_cols, int64_t at, struct fault_block *b) {
    struct fault_block next;
    int64_t n_blocks = n_cols / b->n;
    fault_open_block(type, row + (at + 1) % n_blocks * fault_block_bytes(type), b->n, &next);
    b->d = next.d;
    b->dmin = next.dmin;
}

static double next_half(double d) {
    return fault_half_value((uint16_t)(fault_to_half(d) ^ 1));
}

void fault_break_block(const struct par_fault *f, uint32_t type, const uint8_t *row, int64_t n_cols, int64_t at,
                       const uint8_t *next_row, struct fault_block *b) {
    int64_t n_blocks = (n_cols + fault_block_values(type) - 1) / fault_block_values(type);
    switch ((enum fault_block_kind)f->row->kind) {
    case FAULT_BLOCK_MIN_DROPPED:
        b->dmin = 0;
        break;
    case FAULT_BLOCK_MIN_ADDED:
        b->dmin = -b->dmin;
        break;
    case FAULT_BLOCK_MIN_OTHER:
        rotate(b->min, b->n_groups);
        break;
    case FAULT_BLOCK_SCALE_OTHER:
        rotate(b->scale, b->n_groups);
        break;
    case FAULT_BLOCK_NIBBLES:
        interleave(b);
        break;
    case FAULT_BLOCK_HIGH_MISPLACED:
        misplace_high_bits(b);
        break;
    case FAULT_BLOCK_HIGH_DROPPED:
        for (int i = 0; i < b->n; i++)
            b->code[i] &= (1 << b->high_shift) - 1;
        break;
    case FAULT_BLOCK_ONE_WEIGHT:
        change_one_weight(f, type, b);
        break;
    case FAULT_BLOCK_SCALE_CODE:
        change_code(f, b->scale, b->n_groups);
        break;
    case FAULT_BLOCK_MIN_CODE:
        change_code(f, b->min, b->n_groups);
        break;
    case FAULT_BLOCK_D_ULP:
        b->d = next_half(b->d);
        break;
    case FAULT_BLOCK_NEXT_ROW:
        fault_open_block(type, next_row + at * fault_block_bytes(type), b->n, b);
        break;
    case FAULT_BLOCK_LANE:
        drop_lane(b);
        break;
    case FAULT_BLOCK_REVERSED:
        reverse_groups(b);
        break;
    case FAULT_BLOCK_OFFSET:
        b->offset++;
        break;
    case FAULT_BLOCK_SWAPPED:
        swap_codes(b);
        break;
    case FAULT_BLOCK_PACKING:
        drop_packed_bits(b);
        break;
    case FAULT_BLOCK_LOST:
        scale_all(b, 0);
        break;
    case FAULT_BLOCK_K_TAIL:
        scale_all(b, at == n_blocks - 1 ? 0 : 1);
        break;
    case FAULT_BLOCK_HALF_TWICE:
        scale_all(b, at >= n_blocks / 2 ? 2 : 1);
        break;
    case FAULT_BLOCK_NEXT_D:
        take_next_scale(type, row, n_cols, at, b);
        break;
    }
}
