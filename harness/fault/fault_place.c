/* harness/fault/fault_place.c: a fault as text, and where it goes. */
#include "compare/edit_distance.h"
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

static enum fwd_status fail_unknown(const char *text, size_t name_len, struct fwd_error *err) {
    char typed[64];
    const struct par_fault_row *near = par_fault_row(0);
    (void)snprintf(typed, sizeof typed, "%.*s", name_len < 63 ? (int)name_len : 63, text);
    for (int i = 1; par_fault_row(i); i++)
        if (par_edit_distance(typed, par_fault_row(i)->name) < par_edit_distance(typed, near->name))
            near = par_fault_row(i);
    FWD_FAIL(FWD_EINPUT, err, "--fault: no \"%s\", the nearest is %s (parity selftest --list shows all)", typed,
             near->name);
}

static enum fwd_status parse_place(const char *text, size_t len, struct par_fault *f, struct fwd_error *err) {
    char place[64];
    FWD_FAIL_IF(len == 0 || len >= sizeof place, FWD_EINPUT, err, "--fault %s: expected an op after @, got \"%.*s\"",
                f->row->name, len < 64 ? (int)len : 64, text);
    memcpy(place, text, len);
    place[len] = 0;
    char *colon = strchr(place, ':');
    if (colon) {
        char *end;
        *colon = 0;
        long layer = strtol(colon + 1, &end, 10);
        FWD_FAIL_IF(end == colon + 1 || *end || layer < 0 || layer >= FWD_MAX_LAYERS, FWD_EINPUT, err,
                    "--fault %s: got layer \"%s\", expected a number from 0", f->row->name, colon + 1);
        f->layer = (int)layer;
    }
    f->op = fwd_op_by_name(place);
    FWD_FAIL_IF(f->op == FWD_OP_COUNT, FWD_EINPUT, err, "--fault %s: no op \"%s\" (attn_norm, Qcur, ... ffn_out)",
                f->row->name, place);
    return FWD_OK;
}

static enum fwd_status parse_number(const char *text, size_t len, struct par_fault *f, struct fwd_error *err) {
    static const struct key {
        const char *name;
        uint32_t pick;
    } keys[] = {{"head=", PAR_PICK_HEAD},
                {"row=", PAR_PICK_ROW},
                {"block=", PAR_PICK_BLOCK},
                {"pos=", PAR_PICK_POS},
                {"seed=", 0}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        size_t n = strlen(keys[i].name);
        if (len <= n || strncmp(text, keys[i].name, n) != 0)
            continue;
        FWD_FAIL_IF(strspn(text + n, "0123456789") != len - n || len - n > 18, FWD_EINPUT, err,
                    "--fault %s: got \"%.*s\", expected a number from 0 after =", f->row->name, (int)len, text);
        long long value = strtoll(text + n, NULL, 10);
        FWD_FAIL_IF(keys[i].pick && !(f->row->picks & keys[i].pick), FWD_EINPUT, err,
                    "--fault %s: \"%.*s\" means nothing to it", f->row->name, (int)len, text);
        FWD_FAIL_IF(keys[i].pick & (PAR_PICK_HEAD | PAR_PICK_POS) && value > INT32_MAX, FWD_ERANGE, err,
                    "--fault %s: got \"%.*s\", expected at most %d", f->row->name, (int)len, text, INT32_MAX);
        switch (keys[i].pick) {
        case PAR_PICK_HEAD:
            f->head = (int)value;
            break;
        case PAR_PICK_POS:
            f->pos = (int)value;
            break;
        case PAR_PICK_ROW:
            f->out_row = value;
            break;
        case PAR_PICK_BLOCK:
            f->block = value;
            break;
        default:
            f->seed = (uint64_t)value;
        }
        return FWD_OK;
    }
    FWD_FAIL(FWD_EINPUT, err, "--fault %s: got \"+%.*s\", expected +head=N, +row=N, +block=N, +pos=N or +seed=N",
             f->row->name, len < 40 ? (int)len : 40, text);
}

enum fwd_status par_fault_parse(const char *text, struct par_fault *out, struct fwd_error *err) {
    memset(out, 0, sizeof *out);
    out->in_reference = strncmp(text, "ref:", 4) == 0;
    text += out->in_reference ? 4 : 0;
    size_t name_len = strcspn(text, "@+");
    out->op = FWD_OP_COUNT;
    out->layer = out->head = out->pos = -1;
    out->out_row = out->block = -1;
    for (int i = 0; par_fault_row(i); i++)
        if (strlen(par_fault_row(i)->name) == name_len && !strncmp(par_fault_row(i)->name, text, name_len))
            out->row = par_fault_row(i);
    if (!out->row)
        return fail_unknown(text, name_len, err);
    FWD_FAIL_IF(out->in_reference && out->row->shared, FWD_EINPUT, err,
                "--fault %s: is in what all paths share, so it cannot be in the reference alone", out->row->name);
    FWD_FAIL_IF(out->in_reference && out->row->needs & PAR_NEED_CANDIDATE, FWD_EINPUT, err,
                "--fault %s: the reference has nothing that it could break", out->row->name);
    for (const char *at = text + name_len; *at;) {
        size_t len = strcspn(at + 1, "@+");
        if (*at == '@') {
            FWD_FAIL_IF(!out->row->ops, FWD_EINPUT, err, "--fault %s: is in no single op: it takes no @place",
                        out->row->name);
            FWD_FAIL_IF(out->op != FWD_OP_COUNT, FWD_EINPUT, err, "--fault %s: one @place, got \"%s\"", out->row->name,
                        text + name_len);
            FWD_TRY(parse_place(at + 1, len, out, err));
        } else {
            FWD_TRY(parse_number(at + 1, len, out, err));
        }
        at += 1 + len;
    }
    return FWD_OK;
}

const char *par_fault_describe(const struct par_fault *f, char *buf, size_t n) {
    char op[40] = "", layer[16] = "";
    if (f->row->ops && f->op != FWD_OP_COUNT) {
        (void)snprintf(op, sizeof op, "@%s", fwd_op_name(f->op));
        if (f->layer >= 0)
            (void)snprintf(layer, sizeof layer, ":%d", f->layer);
    }
    size_t used = (size_t)snprintf(buf, n, "%s%s%s%s", f->in_reference ? "ref:" : "", f->row->name, op, layer);
    const struct part {
        const char *name;
        long long value;
        bool shown;
    } parts[] = {{"head", f->head, f->row->picks & PAR_PICK_HEAD && f->head >= 0},
                 {"row", f->out_row, f->row->picks & PAR_PICK_ROW && f->out_row >= 0},
                 {"block", f->block, f->row->picks & PAR_PICK_BLOCK && f->block >= 0},
                 {"pos", f->pos, f->row->picks & PAR_PICK_POS && f->pos >= 0},
                 {"seed", (long long)f->seed, f->seed != 0}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts && used < n; i++)
        if (parts[i].shown)
            used += (size_t)snprintf(buf + used, n - used, "+%s=%lld", parts[i].name, parts[i].value);
    return buf;
}

/* ---- where it can act ---- */

static const struct fwd_gguf_tensor *find_tensor(const struct fwd_gguf *file, int layer, const char *suffix) {
    char name[64];
    if (layer >= 0)
        (void)snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    else
        (void)snprintf(name, sizeof name, "%s", suffix);
    return fwd_gguf_find(file, name);
}

static const char *suffix_of(enum fwd_op op) {
    switch (op) {
    case FWD_OP_INP_EMBD:
        return "token_embd.weight";
    case FWD_OP_ATTN_NORM:
        return "attn_norm.weight";
    case FWD_OP_QCUR:
        return "attn_q.weight";
    case FWD_OP_KCUR:
        return "attn_k.weight";
    case FWD_OP_VCUR:
        return "attn_v.weight";
    case FWD_OP_ATTN_OUT:
        return "attn_output.weight";
    case FWD_OP_FFN_NORM:
        return "ffn_norm.weight";
    case FWD_OP_FFN_GATE:
        return "ffn_gate.weight";
    case FWD_OP_FFN_UP:
        return "ffn_up.weight";
    case FWD_OP_FFN_OUT:
        return "ffn_down.weight";
    case FWD_OP_RESULT_NORM:
        return "output_norm.weight";
    case FWD_OP_RESULT_OUTPUT:
        return "output.weight";
    default:
        return NULL;
    }
}

const struct fwd_gguf_tensor *par_fault_tensor(const struct fwd_gguf *file, enum fwd_op op, int layer) {
    const char *suffix = suffix_of(op);
    const struct fwd_gguf_tensor *t = suffix ? find_tensor(file, layer, suffix) : NULL;
    return t || op != FWD_OP_RESULT_OUTPUT ? t : find_tensor(file, -1, "token_embd.weight");
}

const struct fwd_gguf_tensor *par_fault_bias(const struct fwd_gguf *file, enum fwd_op op, int layer) {
    const char *suffix = op == FWD_OP_QCUR   ? "attn_q.bias"
                         : op == FWD_OP_KCUR ? "attn_k.bias"
                         : op == FWD_OP_VCUR ? "attn_v.bias"
                                             : NULL;
    return suffix ? find_tensor(file, layer, suffix) : NULL;
}

/* The matmuls that read a q8 tap. */
static int readers_of(enum fwd_op op, enum fwd_op *out) {
    switch (op) {
    case FWD_OP_ATTN_NORM_Q8:
        out[0] = FWD_OP_QCUR;
        out[1] = FWD_OP_KCUR;
        out[2] = FWD_OP_VCUR;
        return 3;
    case FWD_OP_KQV_OUT_Q8:
        out[0] = FWD_OP_ATTN_OUT;
        return 1;
    case FWD_OP_FFN_NORM_Q8:
        out[0] = FWD_OP_FFN_GATE;
        out[1] = FWD_OP_FFN_UP;
        return 2;
    case FWD_OP_FFN_SWIGLU_Q8:
        out[0] = FWD_OP_FFN_OUT;
        return 1;
    case FWD_OP_RESULT_NORM_Q8:
        out[0] = FWD_OP_RESULT_OUTPUT;
        return 1;
    default:
        return 0;
    }
}

enum fwd_op par_fault_twin(enum fwd_op op) {
    switch (op) {
    case FWD_OP_FFN_GATE:
        return FWD_OP_FFN_UP;
    case FWD_OP_FFN_UP:
        return FWD_OP_FFN_GATE;
    case FWD_OP_KCUR:
        return FWD_OP_VCUR;
    case FWD_OP_VCUR:
        return FWD_OP_KCUR;
    case FWD_OP_ATTN_NORM:
        return FWD_OP_FFN_NORM;
    case FWD_OP_FFN_NORM:
        return FWD_OP_ATTN_NORM;
    default:
        return FWD_OP_COUNT;
    }
}

static bool is_float_type(uint32_t type) {
    return fwd_type_info(type)->block_values == 1;
}

/* Blocks along K of what the op multiplies or quantises; 0: it has none. */
static int64_t blocks_of(const struct fwd_gguf *file, enum fwd_op op, int layer) {
    enum fwd_op readers[3];
    if (readers_of(op, readers))
        op = readers[0];
    const struct fwd_gguf_tensor *t = par_fault_tensor(file, op, layer);
    return t ? ((int64_t)t->ne[0] + fault_block_values(t->type) - 1) / fault_block_values(t->type) : 0;
}

struct site {
    const struct par_fault *f;
    const struct fwd_gguf *file;
    const struct par_spec_config *config;
    const struct fwd_knobs *knobs;
};

static bool same_shape(const struct fwd_gguf_tensor *a, const struct fwd_gguf_tensor *b, bool same_type) {
    return a && b && a->ne[0] == b->ne[0] && a->ne[1] == b->ne[1] && (!same_type || a->type == b->type);
}

int par_fault_other_layer(const struct par_fault *f, const struct fwd_gguf *file, enum fwd_op op, int layer,
                          int n_layer, bool bias) {
    const struct fwd_gguf_tensor *own = bias ? par_fault_bias(file, op, layer) : par_fault_tensor(file, op, layer);
    for (int i = 1; own && i < n_layer; i++) {
        int other = (layer + i) % n_layer;
        if (same_shape(own, bias ? par_fault_bias(file, op, other) : par_fault_tensor(file, op, other), f->row->shared))
            return other;
    }
    return -1;
}

static bool has_plan(const struct fwd_path *path) {
    struct fwd_path_info info = {.size = sizeof info};
    if (path)
        path->describe(&info);
    return info.has_plan;
}

/* NULL, or why the model or the path lacks what the row needs, whatever the op. */
static const char *missing_in_model(const struct site *s) {
    const struct par_spec_config *c = s->config;
    uint32_t needs = s->f->row->needs;
    if (needs & PAR_NEED_GQA && c->n_head / c->n_kv_head < 2)
        return "this model has one query head per KV head, so nothing would change";
    if (needs & (PAR_NEED_KV_HEADS | PAR_NEED_GQA) && c->n_kv_head < 2)
        return "this model has one KV head, so nothing would change";
    if (needs & PAR_NEED_HEAD_F32 && s->knobs->head != FWD_HEAD_F32)
        return "needs --head f32";
    if (needs & PAR_NEED_PLAN && !has_plan(s->f->path))
        return "this path's step is no launch plan";
    if (needs & PAR_NEED_THREADS && s->knobs->n_threads == 1)
        return "one thread: there is no second one";
    if (needs & PAR_NEED_FACTORS && !fwd_gguf_find(s->file, "rope_freqs.weight"))
        return "this model has no rope factors to ignore";
    if (needs & PAR_NEED_LONG && s->f->n_prompt && s->f->n_prompt <= 64)
        return "acts from position 64 on, and the prompt is not that long";
    if (needs & PAR_NEED_UNTIED &&
        !same_shape(fwd_gguf_find(s->file, "output.weight"), fwd_gguf_find(s->file, "token_embd.weight"), false))
        return "the head of this model is its embedding";
    return NULL;
}

/* NULL, or why the weight of the op is not one that the fault can break. */
static const char *missing_in_weight(const struct site *s, enum fwd_op op, int layer) {
    const struct par_fault_row *row = s->f->row;
    const struct fwd_gguf_tensor *t = par_fault_tensor(s->file, op, layer);
    if (row->weight_types && (!t || !(row->weight_types >> t->type & 1)))
        return "no weight of a type that it breaks";
    if (row->needs & PAR_NEED_BIAS && !par_fault_bias(s->file, op, layer))
        return "no bias";
    if (row->needs & PAR_NEED_OTHER_LAYER &&
        par_fault_other_layer(s->f, s->file, op, layer, s->config->n_layer, row->needs & PAR_NEED_BIAS) < 0)
        return "no other layer has a tensor of that shape";
    if (row->needs & PAR_NEED_BLOCKS && blocks_of(s->file, op, layer) < 2)
        return "its rows have one block";
    if (row->needs & PAR_NEED_TWIN) {
        if (!same_shape(t, par_fault_tensor(s->file, par_fault_twin(op), layer), row->shared))
            return "the other tensor has another type or shape";
    }
    return NULL;
}

/* NULL, or why the fault cannot act at that op and layer. */
static const char *missing_at(const struct site *s, enum fwd_op op, int layer) {
    enum fwd_op readers[3];
    int n_readers = readers_of(op, readers);
    if (s->f->in_reference && n_readers)
        return "the reference does not quantise activations";
    if (s->f->row->needs & PAR_NEED_BELOW && layer == 0)
        return "layer 0 has none below";
    if (n_readers) {
        bool any = false;
        for (int i = 0; i < n_readers; i++) {
            const struct fwd_gguf_tensor *t = par_fault_tensor(s->file, readers[i], layer);
            any |= t && !is_float_type(t->type);
        }
        if (!any || (op == FWD_OP_RESULT_NORM_Q8 && s->knobs->head == FWD_HEAD_F32))
            return "its activations stay in float";
    }
    return missing_in_weight(s, op, layer);
}

/* ---- choosing ---- */

struct choice {
    enum fwd_op op;
    int layer;
};

/* Every op and layer that the text leaves open and where the fault can act: the k-th into *out, their number returned.
 * own: only the row's own op. */
static int count_places(const struct site *s, bool own, int64_t k, struct choice *out, const char **why) {
    const struct par_fault *f = s->f;
    int n = 0;
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        if (!(f->row->ops >> op & 1) || (f->op != FWD_OP_COUNT && (int)f->op != op) ||
            (own && f->op == FWD_OP_COUNT && (int)f->row->op != op))
            continue;
        bool in_layer = fwd_op_in_layer((enum fwd_op)op);
        if (!in_layer && f->layer >= 0) {
            *why = "belongs to no layer";
            continue;
        }
        for (int layer = in_layer ? 0 : -1; layer < (in_layer ? s->config->n_layer : 0); layer++) {
            if (f->layer >= 0 && layer != f->layer)
                continue;
            const char *missing = missing_at(s, (enum fwd_op)op, layer);
            if (missing)
                *why = missing;
            else if (n++ == k)
                *out = (struct choice){(enum fwd_op)op, layer};
        }
    }
    return n;
}

static enum fwd_status choose_op(struct par_fault *f, const struct site *s, struct fwd_error *err) {
    const struct par_fault_row *row = f->row;
    const char *why = "cannot be planted there";
    struct choice choice = {FWD_OP_COUNT, -1};
    FWD_FAIL_IF(f->op != FWD_OP_COUNT && !(row->ops >> f->op & 1), FWD_EINPUT, err,
                "--fault %s: cannot be planted at %s", row->name, fwd_op_name(f->op));
    FWD_FAIL_IF(f->layer >= s->config->n_layer, FWD_ERANGE, err, "--fault %s: layer %d, the model has %d", row->name,
                f->layer, s->config->n_layer);
    bool own = f->seed == 0 && count_places(s, true, 0, &choice, &why) > 0;
    int n = count_places(s, own, 0, &choice, &why);
    FWD_FAIL_IF(n == 0, FWD_EINPUT, err, "--fault %s: cannot act at %s%s%s", row->name,
                f->op == FWD_OP_COUNT ? "any op" : fwd_op_name(f->op), ": ", why);
    if (f->seed)
        (void)count_places(s, own, (int64_t)(fault_hash(f, 1) % (uint64_t)n), &choice, &why);
    f->op = choice.op;
    f->layer = choice.layer;
    return FWD_OK;
}

static int heads_of(const struct par_spec_config *c, enum fwd_op op) {
    return op == FWD_OP_KCUR || op == FWD_OP_VCUR || op == FWD_OP_KCUR_ROPE || op == FWD_OP_K_CACHE ||
                   op == FWD_OP_V_CACHE
               ? c->n_kv_head
               : c->n_head;
}

/* Values that a row of the op's output has. */
static int64_t width_of(const struct fwd_gguf *file, const struct par_spec_config *c, enum fwd_op op, int layer) {
    const struct fwd_gguf_tensor *t = par_fault_tensor(file, op, layer);
    switch (op) {
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KQV_OUT:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return (int64_t)heads_of(c, op) * c->head_dim;
    case FWD_OP_FFN_SWIGLU:
    case FWD_OP_FFN_SWIGLU_Q8:
        return c->n_ff;
    default: /* matrices: their rows; the rest is as wide as the stream */
        return t && t->ne[1] > 1 && op != FWD_OP_INP_EMBD ? (int64_t)t->ne[1] : c->n_embd;
    }
}

enum fwd_status par_fault_place(struct par_fault *f, const struct fwd_gguf *file, const struct par_spec_config *config,
                                const struct fwd_knobs *knobs, struct fwd_error *err) {
    const struct par_fault_row *row = f->row;
    struct site site = {f, file, config, knobs};
    const char *missing = missing_in_model(&site);
    FWD_FAIL_IF(missing, FWD_EINPUT, err, "--fault %s: %s", row->name, missing);
    if (row->ops) {
        FWD_TRY(choose_op(f, &site, err));
    } else {
        f->op = row->op;
        f->layer = fwd_op_in_layer(row->op) ? 0 : -1;
    }
    f->file = file;
    if (!f->memory)
        f->memory = fwd_calloc(1, sizeof *f->memory);
    FWD_FAIL_IF(!f->memory, FWD_ENOMEM, err, "--fault %s: no memory", row->name);
    int64_t n_rows = width_of(file, config, f->op, f->layer), n_blocks = blocks_of(file, f->op, f->layer);
    /* Where the choice is free the last block is spared: losing it is another fault. */
    int64_t n_choices = row->needs & PAR_NEED_BLOCKS ? n_blocks - 1 : n_blocks;
    int n_heads = heads_of(config, f->op), n_pos = f->n_prompt ? f->n_prompt : 8;
    if (row->picks & PAR_PICK_ROW && f->out_row < 0)
        f->out_row = (int64_t)(fault_hash(f, 2) % (uint64_t)n_rows);
    if (row->picks & PAR_PICK_BLOCK && f->block < 0)
        f->block = (int64_t)(fault_hash(f, 3) % (uint64_t)(n_choices > 0 ? n_choices : 1));
    if (row->picks & PAR_PICK_HEAD && f->head < 0)
        f->head = (int)(fault_hash(f, 4) % (uint64_t)n_heads);
    if (row->picks & PAR_PICK_POS && f->pos < 0)
        f->pos = n_pos < 2 ? 0 : 1 + (int)(fault_hash(f, 5) % (uint64_t)(n_pos - 1));
    FWD_FAIL_IF(f->out_row >= n_rows, FWD_ERANGE, err, "--fault %s: row %" PRId64 ", %s has %" PRId64, row->name,
                f->out_row, fwd_op_name(f->op), n_rows);
    FWD_FAIL_IF(f->head >= n_heads, FWD_ERANGE, err, "--fault %s: head %d, %s has %d", row->name, f->head,
                fwd_op_name(f->op), n_heads);
    FWD_FAIL_IF(row->picks & PAR_PICK_BLOCK && f->block >= (n_blocks ? n_blocks : 1), FWD_ERANGE, err,
                "--fault %s: block %" PRId64 ", the rows of %s have %" PRId64, row->name, f->block, fwd_op_name(f->op),
                n_blocks);
    return FWD_OK;
}

/* ---- planting ---- */

bool par_fault_in(const struct par_fault *f, enum par_fault_role role) {
    return f->row->shared || f->in_reference == (role == PAR_ROLE_REFERENCE);
}

const char *par_fault_side(const struct par_fault *f) {
    return f->row->shared ? "both" : f->in_reference ? "reference" : "candidate";
}

void par_fault_hook_config(struct par_fault *f, struct fwd_config *config) {
    if (f->row->hook)
        f->row->hook(f, config);
}

void par_fault_hook_model(struct par_fault *f, struct fwd_model *model) {
    if (f->row->model_hook)
        f->row->model_hook(f, model);
}

bool par_fault_hook_plan(const struct par_fault *f, struct fwd_plan_fault *out) {
    *out = (struct fwd_plan_fault){f->row->plan, f->op, f->layer};
    return f->row->plan != 0;
}

static enum fwd_status call_planted(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    f->memory->n_calls++;
    return f->row->plant(f, call, err);
}

enum fwd_status par_fault_plant(struct par_fault *f, const struct fwd_path *path, struct fwd_session *session,
                                struct fwd_error *err) {
    if (!f->row->plant)
        return FWD_OK;
    FWD_TRY(path->override(session, f->op, f->layer, call_planted, f, err));
    if (f->row->plant == par_fault_stale) {
        int layer = f->layer;
        enum fwd_op source = par_fault_source(f->op, &layer);
        return path->override(session, source, layer, par_fault_remember, f, err);
    }
    if (f->row->change != PAR_CHANGE_TAP)
        return FWD_OK;
    return path->override(session, par_fault_tap_reader(f->op), f->layer, par_fault_restore, f, err);
}

void par_fault_forget(struct par_fault *f) {
    f->memory->n_calls = 0;
    fwd_free(f->memory->data);
    f->memory->data = NULL;
    f->memory->n_bytes = 0;
}

void par_fault_free(struct par_fault *f) {
    if (f->memory)
        fwd_free(f->memory->data);
    fwd_free(f->memory);
    f->memory = NULL;
}
