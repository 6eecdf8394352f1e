/* engine/ops/variant_table.c: the rows of variants.def and the choice among them. An op's header is included here so
 * that its function type is known; nothing else is needed to add a row. */
#include "ops/variant_table.h"

#include "core/cpu.h"
#include "ops/act_quant/act_quant.h"
#include "ops/add/add.h"
#include "ops/attention/attention.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"
#include "ops/variant_info.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#define VX(op, variant, needs) V(op, variant, needs)
#else
#define VX(op, variant, needs)
#endif

#define V(op, variant, needs) op##_fn op##_##variant;
#include "ops/variants.def"
#undef V

static const struct fwd_variant rows[] = {
#define V(op, variant, needs) {#op, #variant, (needs), (fwd_any_fn *)op##_##variant},
#include "ops/variants.def"
#undef V
};

enum { N_ROWS = sizeof rows / sizeof *rows };

const struct fwd_variant *fwd_variant_row(int i) {
    return i >= 0 && i < N_ROWS ? &rows[i] : NULL;
}

bool fwd_variant_info(int i, struct fwd_variant_info *out) {
    const struct fwd_variant *row = fwd_variant_row(i);
    if (!row)
        return false;
    *out = (struct fwd_variant_info){.op = row->op, .variant = row->variant, .needs = row->needs};
    return true;
}

/* name is not NUL-terminated. */
static bool is_name(const char *s, const char *name, size_t len) {
    return strlen(s) == len && !memcmp(s, name, len);
}

static const struct fwd_variant *find_row(const char *op, size_t op_len, const char *variant, size_t variant_len) {
    for (int i = 0; i < N_ROWS; i++)
        if (is_name(rows[i].op, op, op_len) && is_name(rows[i].variant, variant, variant_len))
            return &rows[i];
    return NULL;
}

const struct fwd_variant *fwd_variant_find(const char *op, const char *variant) {
    return find_row(op, strlen(op), variant, strlen(variant));
}

/* One "op=variant" item, as slices of the text. */
struct force_item {
    const char *op, *variant;
    size_t op_len, variant_len;
};

/* Reads the item at *text and moves behind its comma; false at the end. A malformed item has variant == NULL. */
static bool next_item(const char **text, struct force_item *item) {
    const char *s = *text;
    if (!s || !*s)
        return false;
    size_t len = strcspn(s, ",");
    const char *eq = memchr(s, '=', len);
    *item = (struct force_item){.op = s, .op_len = len};
    if (eq) {
        item->op_len = (size_t)(eq - s);
        item->variant = eq + 1;
        item->variant_len = len - item->op_len - 1;
    }
    *text = s + len + (s[len] == ',');
    return true;
}

static enum fwd_status check_item(const struct force_item *item, unsigned caps, const struct fwd_variant **out,
                                  struct fwd_error *err) {
    FWD_FAIL_IF(!item->variant, FWD_EINPUT, err, "force: got \"%.*s\", expected op=variant", (int)item->op_len,
                item->op);
    const struct fwd_variant *row = find_row(item->op, item->op_len, item->variant, item->variant_len);
    FWD_FAIL_IF(!row, FWD_EINPUT, err, "force: op \"%.*s\" has no variant \"%.*s\" in this build", (int)item->op_len,
                item->op, (int)item->variant_len, item->variant);
    char need[64], have[64];
    FWD_FAIL_IF(row->needs & ~caps, FWD_EUNAVAILABLE, err, "force: %s=%s needs %s, allowed is %s", row->op,
                row->variant, fwd_cpu_text(row->needs, need, sizeof need), fwd_cpu_text(caps, have, sizeof have));
    *out = row;
    return FWD_OK;
}

enum fwd_status fwd_variant_check_force(unsigned caps, const char *force, struct fwd_error *err) {
    struct force_item item;
    const struct fwd_variant *row;
    while (next_item(&force, &item))
        FWD_TRY(check_item(&item, caps, &row, err));
    return FWD_OK;
}

bool fwd_variant_is_forced(const char *op, const char *force) {
    struct force_item item;
    while (next_item(&force, &item))
        if (is_name(op, item.op, item.op_len))
            return true;
    return false;
}

enum fwd_status fwd_variant_pick(const struct fwd_variant **out, const char *op, unsigned caps, const char *force,
                                 struct fwd_error *err) {
    struct force_item item;
    while (next_item(&force, &item))
        if (is_name(op, item.op, item.op_len))
            return check_item(&item, caps, out, err);
    for (int i = 0; i < N_ROWS; i++)
        if (!strcmp(rows[i].op, op) && !(rows[i].needs & ~caps)) {
            *out = &rows[i];
            return FWD_OK;
        }
    FWD_FAIL(FWD_ENOTFOUND, err, "variant: no row for op \"%s\"", op);
}
