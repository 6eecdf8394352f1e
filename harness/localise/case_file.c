/* A case to and from its file. Reading trusts nothing: the container checks its own frames, the directory goes through
 * the model parser, and each tensor is held against both before a byte of it is used. */
#include "localise/case_parts.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"
#include "tap/capture.h"
#include "tap/safetensors.h"
#include "tap/seekable.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the declaration, as doubles in this order ------------------------------------------------------------------ */
/* OLD_FIELDS: of the files written before the last two were added; those are then false. */
enum { OLD_FIELDS = 25, N_FIELDS = 27 };
_Static_assert(sizeof(struct fwd_numerics) == 100, "a field that is new in the declaration belongs in this list too");
static const struct {
    const char *name;
    double max;
} fields[N_FIELDS] = {
    {"act", FWD_E4M3},
    {"act_rule", FWD_ACT_INVERSE127},
    {"accumulator", FWD_ACC_TENSOR},
    {"chain_block", 1 << 24},
    {"chain_per_block", 1 << 24},
    {"chain_extra", 1 << 24},
    {"term_roundings", 1 << 24},
    {"lanes", 1 << 24},
    {"segment", 1 << 24},
    {"key_lanes", 1 << 24},
    {"key_segment", 1 << 24},
    {"final_roundings", 1 << 24},
    {"fma", 1},
    {"ftz", 1},
    {"store", FWD_E4M3},
    {"angle", FWD_ACC_EXACT},
    {"dequantised", 1},
    {"cut_bits", 64},
    {"promote", 1 << 24},
    {"operand", FWD_E4M3},
    {"exp_ulp", 1e9},
    {"div_ulp", 1e9},
    {"sqrt_ulp", 1e9},
    {"sincos_ulp", 1e9},
    {"pow_ulp", 1e9},
    {"split_blocks", 1},
    {"repeated_angle", 1},
};

/* The accuracies of functions; all others are whole. */
static bool is_real(int field) {
    return field >= 20 && field < OLD_FIELDS;
}

static void pack_numerics(const struct fwd_numerics *n, double out[N_FIELDS]) {
    const double v[N_FIELDS] = {n->act,
                                n->act_rule,
                                n->accumulator,
                                n->chain_block,
                                n->chain_per_block,
                                n->chain_extra,
                                n->term_roundings,
                                n->lanes,
                                n->segment,
                                n->key_lanes,
                                n->key_segment,
                                n->final_roundings,
                                n->fma,
                                n->ftz,
                                n->store,
                                n->angle,
                                n->dequantised,
                                n->cut_bits,
                                n->promote,
                                n->operand,
                                (double)n->exp_ulp,
                                (double)n->div_ulp,
                                (double)n->sqrt_ulp,
                                (double)n->sincos_ulp,
                                (double)n->pow_ulp,
                                n->split_blocks,
                                n->repeated_angle};
    memcpy(out, v, sizeof v);
}

static enum fwd_status unpack_numerics(struct fwd_numerics *n, const double v[N_FIELDS], const char *file,
                                       struct fwd_error *err) {
    for (int i = 0; i < N_FIELDS; i++)
        FWD_FAIL_IF(!(v[i] >= 0 && v[i] <= fields[i].max) || (!is_real(i) && v[i] != floor(v[i])), FWD_ERANGE, err,
                    "%s: the declaration says %s = %g, expected %s from 0 to %g", file, fields[i].name, v[i],
                    is_real(i) ? "a number" : "a whole number", fields[i].max);
    *n = (struct fwd_numerics){.size = sizeof *n,
                               .act = (enum fwd_dtype)(int)v[0],
                               .act_rule = (enum fwd_act_rule)(int)v[1],
                               .accumulator = (enum fwd_accumulator)(int)v[2],
                               .chain_block = (int)v[3],
                               .chain_per_block = (int)v[4],
                               .chain_extra = (int)v[5],
                               .term_roundings = (int)v[6],
                               .lanes = (int)v[7],
                               .segment = (int)v[8],
                               .key_lanes = (int)v[9],
                               .key_segment = (int)v[10],
                               .final_roundings = (int)v[11],
                               .fma = v[12] > 0,
                               .ftz = v[13] > 0,
                               .store = (enum fwd_dtype)(int)v[14],
                               .angle = (enum fwd_accumulator)(int)v[15],
                               .dequantised = v[16] > 0,
                               .cut_bits = (int)v[17],
                               .promote = (int)v[18],
                               .operand = (enum fwd_dtype)(int)v[19],
                               .exp_ulp = (float)v[20],
                               .div_ulp = (float)v[21],
                               .sqrt_ulp = (float)v[22],
                               .sincos_ulp = (float)v[23],
                               .pow_ulp = (float)v[24],
                               .split_blocks = v[25] > 0,
                               .repeated_angle = v[26] > 0};
    return FWD_OK;
}

bool par_case_same_numerics(const struct fwd_numerics *a, const struct fwd_numerics *b) {
    double x[N_FIELDS], y[N_FIELDS];
    pack_numerics(a, x);
    pack_numerics(b, y);
    return !memcmp(x, y, sizeof x);
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */
enum { MOST_FACTS = 32, MOST_TENSORS = 256, FACT_BYTES = 512, MOST_TENSOR_BYTES = 1 << 28 };

/* What a file is made of, in order; the tensors' bytes are borrowed. */
struct parts {
    struct par_st_fact facts[MOST_FACTS];
    char text[MOST_FACTS][FACT_BYTES];
    size_t n_facts;
    struct par_st_tensor tensors[MOST_TENSORS];
    char names[MOST_TENSORS][80];
    const void *bytes[MOST_TENSORS];
    size_t n_tensors;
    uint64_t n_bytes;
    double numerics[N_FIELDS];
    int64_t elements[2 * PAR_CASE_ELEMENTS];
    double values[3 * PAR_CASE_ELEMENTS];
};

static void add_text(struct parts *p, const char *key, const char *value) {
    (void)snprintf(p->text[p->n_facts], FACT_BYTES, "%s", value);
    p->facts[p->n_facts] = (struct par_st_fact){key, p->text[p->n_facts]};
    p->n_facts++;
}

static void add_number(struct parts *p, const char *key, uint64_t value) {
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    add_text(p, key, text);
}

static void add_tensor(struct parts *p, const char *name, const char *dtype, const void *bytes, int64_t rows,
                       int64_t cols) {
    struct par_st_tensor *t = &p->tensors[p->n_tensors];
    (void)snprintf(p->names[p->n_tensors], sizeof p->names[0], "%s", name);
    *t = (struct par_st_tensor){.name = p->names[p->n_tensors], .n_dims = cols ? 2 : 1, .shape = {rows, cols}};
    (void)snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
    t->begin = p->n_bytes;
    t->end = p->n_bytes + (uint64_t)(rows * (cols ? cols : 1)) * par_st_dtype_bytes(dtype);
    p->n_bytes = t->end;
    p->bytes[p->n_tensors++] = bytes;
}

static void list_facts(struct parts *p, const struct par_case *c) {
    add_text(p, PAR_FACT_SCHEMA, PAR_CASE_SCHEMA);
    add_text(p, "op", fwd_op_name(c->op));
    if (c->layer >= 0) {
        add_number(p, "layer", (uint64_t)c->layer);
        add_number(p, "model_layer", (uint64_t)c->model_layer);
    }
    add_number(p, "pos_from", (uint64_t)c->pos_from);
    add_number(p, "row_from", (uint64_t)c->row_from);
    add_text(p, "model", c->model_name);
    add_text(p, "path", c->path);
    add_text(p, "schedule", par_schedule_name(c->schedule));
    add_number(p, "chunk", (uint64_t)c->chunk);
    add_text(p, "kv", fwd_dtype_name(c->kv_type));
    add_text(p, "head", c->head == FWD_HEAD_F32 ? "f32" : "quant");
    add_text(p, "bound", c->bound == PAR_BOUND_WORST ? "worst" : "likely");
    add_text(p, "role", c->role == PAR_ROLE_REFERENCE ? "reference" : "candidate");
    add_number(p, "threads", (uint64_t)c->n_threads);
    add_text(p, "act", c->act);
    add_text(p, "caps", c->caps);
    add_text(p, "force", c->force);
    add_text(p, "faults", c->faults);
    add_text(p, "note", c->note);
    add_number(p, "model_bytes", c->n_image);
    add_number(p, "n_prompt", (uint64_t)c->n_prompt);
    add_number(p, "call_end", (uint64_t)c->call_end);
}

static const char *const input_facts[PAR_CASE_INPUTS] = {"in0", "in1", "in2"};

static void list_tensors(struct parts *p, const struct par_case *c) {
    char name[80];
    add_tensor(p, "gguf", "U8", c->gguf, (int64_t)c->n_gguf, 0);
    for (int i = 0; i < c->n_weights; i++) {
        const struct par_case_weight *w = &c->weights[i];
        (void)snprintf(name, sizeof name, "rows:%s", w->name);
        add_tensor(p, name, "I64", w->rows, w->n, 0);
        (void)snprintf(name, sizeof name, "bytes:%s", w->name);
        add_tensor(p, name, "U8", w->bytes, w->n, w->row_bytes);
    }
    for (int i = 0; i < c->n_in; i++) {
        const struct par_case_input *in = &c->in[i];
        char what[96];
        (void)snprintf(what, sizeof what, "op=%s dtype=%s ne0=%lld", fwd_op_name(in->op), fwd_dtype_name(in->dtype),
                       (long long)in->n_values);
        add_text(p, input_facts[i], what);
        (void)snprintf(name, sizeof name, "in%d:pos", i);
        add_tensor(p, name, "I32", in->pos, in->n, 0);
        (void)snprintf(name, sizeof name, "in%d:bytes", i);
        add_tensor(p, name, "U8", in->bytes, in->n, (int64_t)fwd_dtype_row_bytes(in->dtype, in->n_values));
    }
    add_tensor(p, "ids", "I32", c->ids, c->n_ids, 0);
    add_tensor(p, "want", "U8", c->want, c->n_ids, 0);
    for (int i = 0; i < c->n_elements; i++) {
        const struct par_case_element *e = &c->elements[i];
        p->elements[2 * i] = e->pos;
        p->elements[2 * i + 1] = e->row;
        p->values[3 * i] = e->expected;
        p->values[3 * i + 1] = e->got;
        p->values[3 * i + 2] = e->bound;
    }
    add_tensor(p, "elements", "I64", p->elements, c->n_elements, 2);
    add_tensor(p, "values", "F64", p->values, c->n_elements, 3);
    pack_numerics(&c->numerics, p->numerics);
    add_tensor(p, "numerics", "F64", p->numerics, N_FIELDS, 0);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */
static enum fwd_status write_sink(void *ud, const void *data, size_t n_bytes, struct fwd_error *err) {
    return fwd_file_out_write(ud, data, n_bytes, err);
}

static enum fwd_status write_frame(struct par_frame_writer *w, const void *data, uint64_t n, struct par_frame *frame,
                                   struct fwd_error *err) {
    FWD_TRY(par_frame_begin(w, n, err));
    FWD_TRY(par_frame_add(w, data, n, err));
    return par_frame_end(w, frame, err);
}

static enum fwd_status write_frames(struct fwd_file_out *file, const struct parts *p, struct fwd_error *err) {
    struct par_frame frames[MOST_TENSORS + 1];
    struct par_st_header h = {(struct par_st_tensor *)(uintptr_t)p->tensors, p->n_tensors,
                              (struct par_st_fact *)(uintptr_t)p->facts, p->n_facts, NULL};
    struct par_frame_writer *w = NULL;
    char *head = NULL;
    size_t n_head = 0;
    enum fwd_status rc = par_st_print(&head, &n_head, &h, err);
    if (rc == FWD_OK)
        rc = par_frame_writer_create(&w, write_sink, file, err);
    if (rc == FWD_OK)
        rc = write_frame(w, head, n_head, &frames[0], err);
    for (size_t i = 0; rc == FWD_OK && i < p->n_tensors; i++)
        rc = write_frame(w, p->bytes[i], p->tensors[i].end - p->tensors[i].begin, &frames[i + 1], err);
    if (rc == FWD_OK)
        rc = par_seekable_table(frames, p->n_tensors + 1, write_sink, file, err);
    par_frame_writer_free(w);
    fwd_free(head);
    return rc;
}

enum fwd_status par_case_write(const struct par_case *c, const char *path, uint64_t *n_bytes, struct fwd_error *err) {
    struct fwd_file_out *file;
    FWD_FAIL_IF(2 * c->n_weights + 12 > MOST_TENSORS, FWD_ERANGE, err, "%s: rows of %d weights in a case", path,
                c->n_weights);
    struct parts *p = fwd_calloc(1, sizeof *p);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "%s: no memory for a case", path);
    list_facts(p, c);
    list_tensors(p, c);
    enum fwd_status rc = fwd_file_out_begin(&file, path, err);
    if (rc == FWD_OK) {
        rc = write_frames(file, p, err);
        *n_bytes = fwd_file_out_size(file);
        if (rc == FWD_OK)
            rc = fwd_file_out_commit(file, err);
        else
            fwd_file_out_abort(file);
    }
    fwd_free(p);
    return rc;
}

/* ---- reading: facts --------------------------------------------------------------------------------------------- */
static enum fwd_status need_fact(const struct par_capture *f, const char *key, const char **out,
                                 struct fwd_error *err) {
    *out = par_capture_fact(f, key);
    FWD_FAIL_IF(!*out, FWD_EMISSING, err, "%s: fact \"%s\" is missing", par_capture_name(f), key);
    return FWD_OK;
}

static enum fwd_status need_text(const struct par_capture *f, const char *key, char *out, size_t n,
                                 struct fwd_error *err) {
    const char *s;
    FWD_TRY(need_fact(f, key, &s, err));
    FWD_FAIL_IF(strlen(s) >= n, FWD_ERANGE, err, "%s: fact \"%s\" has %zu characters, expected fewer than %zu",
                par_capture_name(f), key, strlen(s), n);
    memcpy(out, s, strlen(s) + 1);
    return FWD_OK;
}

static enum fwd_status parse_number(const struct par_capture *f, const char *key, const char *s, long long max,
                                    long long *out, struct fwd_error *err) {
    char *end;
    errno = 0;
    *out = *s >= '0' && *s <= '9' ? strtoll(s, &end, 10) : -1;
    FWD_FAIL_IF(*out < 0 || errno || *end || *out > max, FWD_ERANGE, err,
                "%s: %s is \"%.40s\", expected a number from 0 to %lld", par_capture_name(f), key, s, max);
    return FWD_OK;
}

static enum fwd_status need_int(const struct par_capture *f, const char *key, int max, int *out,
                                struct fwd_error *err) {
    const char *s;
    long long v;
    FWD_TRY(need_fact(f, key, &s, err));
    FWD_TRY(parse_number(f, key, s, max, &v, err));
    *out = (int)v;
    return FWD_OK;
}

static enum fwd_status need_dtype(const struct par_capture *f, const char *what, const char *name, enum fwd_dtype *out,
                                  struct fwd_error *err) {
    for (enum fwd_dtype t = FWD_F32; t <= FWD_E4M3; t++)
        if (!strcmp(fwd_dtype_name(t), name)) {
            *out = t;
            return FWD_OK;
        }
    FWD_FAIL(FWD_ETYPE, err, "%s: %s has type \"%.40s\", expected F32, F64, F16, I32, Q8_K, Q8_32, BF16 or E4M3",
             par_capture_name(f), what, name);
}

static enum fwd_status read_facts(struct par_case *c, const struct par_capture *f, struct fwd_error *err) {
    const char *file = par_capture_name(f), *s;
    long long number;
    FWD_TRY(need_fact(f, "op", &s, err));
    c->op = fwd_op_by_name(s);
    FWD_FAIL_IF(c->op == FWD_OP_COUNT, FWD_EINPUT, err, "%s: there is no op \"%.40s\"", file, s);
    c->layer = c->model_layer = -1;
    if (fwd_op_in_layer(c->op)) {
        FWD_TRY(need_int(f, "layer", PAR_CASE_LAYERS - 1, &c->layer, err));
        FWD_TRY(need_int(f, "model_layer", FWD_MAX_LAYERS, &c->model_layer, err));
    }
    FWD_TRY(need_int(f, "pos_from", INT32_MAX, &c->pos_from, err));
    FWD_TRY(need_fact(f, "row_from", &s, err));
    FWD_TRY(parse_number(f, "row_from", s, INT32_MAX, &number, err));
    c->row_from = number;
    FWD_TRY(need_text(f, "model", c->model_name, sizeof c->model_name, err));
    FWD_TRY(need_text(f, "path", c->path, sizeof c->path, err));
    FWD_TRY(need_fact(f, "schedule", &s, err));
    FWD_FAIL_IF(!par_schedule_by_name(s, &c->schedule), FWD_EINPUT, err, "%s: there is no schedule \"%.40s\"", file, s);
    FWD_TRY(need_int(f, "chunk", PAR_CASE_POSITIONS, &c->chunk, err));
    FWD_TRY(need_fact(f, "kv", &s, err));
    FWD_TRY(need_dtype(f, "kv", s, &c->kv_type, err));
    FWD_TRY(need_fact(f, "head", &s, err));
    FWD_FAIL_IF(strcmp(s, "f32") != 0 && strcmp(s, "quant") != 0, FWD_EINPUT, err,
                "%s: head is \"%.40s\", expected quant or f32", file, s);
    c->head = strcmp(s, "f32") ? FWD_HEAD_QUANT : FWD_HEAD_F32;
    FWD_TRY(need_fact(f, "bound", &s, err));
    FWD_FAIL_IF(strcmp(s, "worst") != 0 && strcmp(s, "likely") != 0, FWD_EINPUT, err,
                "%s: bound is \"%.40s\", expected likely or worst", file, s);
    c->bound = strcmp(s, "worst") ? PAR_BOUND_LIKELY : PAR_BOUND_WORST;
    FWD_TRY(need_fact(f, "role", &s, err));
    FWD_FAIL_IF(strcmp(s, "reference") != 0 && strcmp(s, "candidate") != 0, FWD_EINPUT, err,
                "%s: role is \"%.40s\", expected candidate or reference", file, s);
    c->role = strcmp(s, "reference") ? PAR_ROLE_CANDIDATE : PAR_ROLE_REFERENCE;
    FWD_TRY(need_int(f, "threads", 4096, &c->n_threads, err));
    FWD_TRY(need_text(f, "act", c->act, sizeof c->act, err));
    FWD_TRY(need_text(f, "caps", c->caps, sizeof c->caps, err));
    FWD_TRY(need_text(f, "force", c->force, sizeof c->force, err));
    FWD_TRY(need_text(f, "faults", c->faults, sizeof c->faults, err));
    FWD_TRY(need_text(f, "note", c->note, sizeof c->note, err));
    FWD_TRY(need_fact(f, "model_bytes", &s, err));
    FWD_TRY(parse_number(f, "model_bytes", s, INT64_MAX, &number, err));
    c->n_image = (uint64_t)number;
    FWD_TRY(need_int(f, "n_prompt", PAR_CASE_POSITIONS, &c->n_prompt, err));
    return need_int(f, "call_end", PAR_CASE_POSITIONS, &c->call_end, err);
}

/* ---- reading: tensors ------------------------------------------------------------------------------------------- */
/* The tensor NAME of that type; cols 0: one dimension, else two of which the second must be cols. Its bytes are
 * allocated into *out (a pointer). */
static enum fwd_status need_tensor(const struct par_capture *f, const char *name, const char *dtype, int64_t cols,
                                   int64_t *rows, void *out, struct fwd_error *err) {
    const struct par_capture_tensor *t = par_capture_find(f, name);
    FWD_FAIL_IF(!t, FWD_EMISSING, err, "%s: tensor %s is missing", par_capture_name(f), name);
    FWD_FAIL_IF(strcmp(t->dtype, dtype) != 0, FWD_ETYPE, err, "%s: tensor %s has type %s, expected %s",
                par_capture_name(f), name, t->dtype, dtype);
    FWD_FAIL_IF(t->n_dims != (cols ? 2 : 1) || (cols && t->shape[1] != cols), FWD_ESHAPE, err,
                "%s: tensor %s has %d dimensions and rows of %lld, expected %d and %lld", par_capture_name(f), name,
                t->n_dims, t->n_dims > 1 ? (long long)t->shape[1] : 1, cols ? 2 : 1, cols ? (long long)cols : 1);
    FWD_FAIL_IF(t->n_bytes > MOST_TENSOR_BYTES, FWD_ERANGE, err, "%s: tensor %s has %llu bytes, expected at most %d",
                par_capture_name(f), name, (unsigned long long)t->n_bytes, MOST_TENSOR_BYTES);
    void *bytes = fwd_alloc(t->n_bytes, 1);
    FWD_FAIL_IF(!bytes, FWD_ENOMEM, err, "%s: no memory for tensor %s", par_capture_name(f), name);
    memcpy(out, &bytes, sizeof bytes);
    *rows = t->shape[0];
    return par_capture_read(f, t, bytes, err);
}

static enum fwd_status read_weight(struct par_case *c, const struct par_capture *f, const char *name,
                                   struct fwd_error *err) {
    char other[80];
    int64_t n, n_bytes_rows;
    struct par_case_weight *w = &c->weights[c->n_weights++];
    FWD_FAIL_IF(strlen(name) >= sizeof w->name, FWD_ERANGE, err, "%s: weight name %.80s is too long",
                par_capture_name(f), name);
    memcpy(w->name, name, strlen(name) + 1);
    (void)snprintf(other, sizeof other, "rows:%s", name);
    FWD_TRY(need_tensor(f, other, "I64", 0, &n, &w->rows, err));
    (void)snprintf(other, sizeof other, "bytes:%s", name);
    const struct par_capture_tensor *t = par_capture_find(f, other);
    FWD_FAIL_IF(!t || t->n_dims != 2 || t->shape[0] != n || n > INT32_MAX, FWD_ESHAPE, err,
                "%s: tensor %s is missing or has not the %lld rows of rows:%s", par_capture_name(f), other,
                (long long)n, name);
    w->row_bytes = t->shape[1];
    w->n = (int)n;
    return need_tensor(f, other, "U8", w->row_bytes, &n_bytes_rows, &w->bytes, err);
}

static enum fwd_status read_weights(struct par_case *c, const struct par_capture *f, struct fwd_error *err) {
    size_t n;
    const struct par_capture_tensor *t = par_capture_tensors(f, &n);
    FWD_FAIL_IF(n > MOST_TENSORS, FWD_ERANGE, err, "%s: %zu tensors, expected at most %d", par_capture_name(f), n,
                MOST_TENSORS);
    c->weights = fwd_calloc(n, sizeof *c->weights);
    FWD_FAIL_IF(!c->weights, FWD_ENOMEM, err, "%s: no memory for %zu weights", par_capture_name(f), n);
    for (size_t i = 0; i < n; i++)
        if (!strncmp(t[i].name, "rows:", 5))
            FWD_TRY(read_weight(c, f, t[i].name + 5, err));
    return FWD_OK;
}

/* "op=attn_norm_q8 dtype=Q8_K ne0=1536" */
static enum fwd_status read_input_fact(struct par_case_input *in, const struct par_capture *f, int i,
                                       struct fwd_error *err) {
    const char *s;
    char op[40], dtype[16], again[96];
    FWD_TRY(need_fact(f, input_facts[i], &s, err));
    long long n = 0;
    bool ok = strlen(s) < sizeof again && sscanf(s, "op=%39s dtype=%15s ne0=%lld", op, dtype, &n) == 3;
    FWD_FAIL_IF(!ok || n < 1 || n > 1 << 28, FWD_ECORRUPT, err,
                "%s: %s is \"%.80s\", expected op=NAME dtype=TYPE ne0=NUMBER", par_capture_name(f), input_facts[i], s);
    in->op = fwd_op_by_name(op);
    in->n_values = n;
    return need_dtype(f, input_facts[i], dtype, &in->dtype, err);
}

static enum fwd_status read_input(struct par_case *c, const struct par_capture *f, int i, struct fwd_error *err) {
    struct par_case_input *in = &c->in[i];
    char name[32];
    int64_t n, n_again;
    FWD_TRY(read_input_fact(in, f, i, err));
    (void)snprintf(name, sizeof name, "in%d:pos", i);
    FWD_TRY(need_tensor(f, name, "I32", 0, &n, &in->pos, err));
    (void)snprintf(name, sizeof name, "in%d:bytes", i);
    FWD_TRY(
        need_tensor(f, name, "U8", (int64_t)fwd_dtype_row_bytes(in->dtype, in->n_values), &n_again, &in->bytes, err));
    FWD_FAIL_IF(n != n_again || n > c->n_ids, FWD_ESHAPE, err,
                "%s: input %d has %lld positions and %lld rows, expected as many, at most %d", par_capture_name(f), i,
                (long long)n, (long long)n_again, c->n_ids);
    in->n = (int)n;
    for (int k = 0; k < in->n; k++)
        FWD_FAIL_IF(in->pos[k] < 0 || in->pos[k] >= c->n_ids || (k > 0 && in->pos[k] <= in->pos[k - 1]), FWD_ERANGE,
                    err, "%s: input %d has position %d, expected rising numbers from 0 to %d", par_capture_name(f), i,
                    in->pos[k], c->n_ids - 1);
    return FWD_OK;
}

static enum fwd_status read_sequence(struct par_case *c, const struct par_capture *f, struct fwd_error *err) {
    int64_t n, n_want;
    FWD_TRY(need_tensor(f, "ids", "I32", 0, &n, &c->ids, err));
    FWD_FAIL_IF(n < 1 || n > PAR_CASE_POSITIONS, FWD_ERANGE, err, "%s: %lld ids, expected 1 to %d", par_capture_name(f),
                (long long)n, PAR_CASE_POSITIONS);
    FWD_TRY(need_tensor(f, "want", "U8", 0, &n_want, &c->want, err));
    FWD_FAIL_IF(n_want != n || c->n_prompt < 1 || c->n_prompt > n || c->call_end > n, FWD_ESHAPE, err,
                "%s: %lld ids, %lld of them marked, a prompt of %d and a call to %d, which do not fit together",
                par_capture_name(f), (long long)n, (long long)n_want, c->n_prompt, c->call_end);
    c->n_ids = (int)n;
    return FWD_OK;
}

static enum fwd_status read_elements(struct par_case *c, const struct par_capture *f, struct fwd_error *err) {
    int64_t *at = NULL, n = 0, n_values = 0, n_fields = 0;
    double *values = NULL, *numerics = NULL, padded[N_FIELDS] = {0};
    enum fwd_status rc = need_tensor(f, "elements", "I64", 2, &n, &at, err);
    if (rc == FWD_OK)
        rc = need_tensor(f, "values", "F64", 3, &n_values, &values, err);
    if (rc == FWD_OK && (n != n_values || n < 1 || n > PAR_CASE_ELEMENTS))
        rc = fwd_fail(err, FWD_ESHAPE, __FILE__, __LINE__,
                      "%s: %lld elements with the values of %lld, expected as many, 1 to %d", par_capture_name(f),
                      (long long)n, (long long)n_values, PAR_CASE_ELEMENTS);
    for (int i = 0; rc == FWD_OK && i < n; i++) {
        if (at[2 * i] < 0 || at[2 * i] >= c->n_ids)
            rc = fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%s: element %d is at position %lld, expected 0 to %d",
                          par_capture_name(f), i, (long long)at[2 * i], c->n_ids - 1);
        else
            c->elements[i] = (struct par_case_element){(int)at[2 * i], at[2 * i + 1], values[3 * i], values[3 * i + 1],
                                                       values[3 * i + 2]};
    }
    c->n_elements = (int)n;
    if (rc == FWD_OK)
        rc = need_tensor(f, "numerics", "F64", 0, &n_fields, &numerics, err);
    if (rc == FWD_OK && n_fields != N_FIELDS && n_fields != OLD_FIELDS)
        rc = fwd_fail(err, FWD_ESHAPE, __FILE__, __LINE__, "%s: a declaration of %lld numbers, expected %d",
                      par_capture_name(f), (long long)n_fields, N_FIELDS);
    for (int i = 0; rc == FWD_OK && i < n_fields; i++)
        padded[i] = numerics[i];
    if (rc == FWD_OK)
        rc = unpack_numerics(&c->numerics, padded, par_capture_name(f), err);
    fwd_free(at);
    fwd_free(values);
    fwd_free(numerics);
    return rc;
}

/* ---- reading: does it fit its own model? ------------------------------------------------------------------------ */
static enum fwd_status check_inputs(const struct par_case *c, const struct par_spec_config *config, const char *file,
                                    struct fwd_error *err) {
    struct par_case_tap taps[PAR_CASE_INPUTS];
    int n = par_case_taps(c->op, c->layer, taps);
    for (int i = 0; i < n; i++) {
        const struct par_case_input *in = &c->in[i];
        FWD_FAIL_IF(in->op != taps[i].op && (taps[i].op_q8 == FWD_OP_COUNT || in->op != taps[i].op_q8), FWD_EINPUT, err,
                    "%s: input %d of %s is %s, expected %s", file, i, fwd_op_name(c->op),
                    in->op < FWD_OP_COUNT ? fwd_op_name(in->op) : "unknown", fwd_op_name(taps[i].op));
        FWD_FAIL_IF(in->n_values != par_case_width(config, in->op), FWD_ESHAPE, err,
                    "%s: rows of %s have %lld values, expected %lld", file, fwd_op_name(in->op),
                    (long long)in->n_values, (long long)par_case_width(config, in->op));
        bool q8 = par_q8_block_values(in->dtype) || par_tensor_format(in->dtype);
        FWD_FAIL_IF(q8 != (in->op == taps[i].op_q8) || in->dtype == FWD_I32, FWD_ETYPE, err,
                    "%s: rows of %s have type %s", file, fwd_op_name(in->op), fwd_dtype_name(in->dtype));
        FWD_FAIL_IF(par_q8_block_values(in->dtype) && in->n_values % par_q8_block_values(in->dtype), FWD_ESHAPE, err,
                    "%s: rows of %lld values are no whole blocks of %s", file, (long long)in->n_values,
                    fwd_dtype_name(in->dtype));
    }
    return FWD_OK;
}

static enum fwd_status check_case(const struct par_case *c, const char *file, struct fwd_error *err) {
    struct par_case_model m;
    FWD_TRY(par_case_model_open(&m, c, err));
    const struct par_spec_config *config = par_spec_config(m.spec);
    enum fwd_status rc = check_inputs(c, config, file, err);
    int64_t width = par_case_width(config, c->op);
    width += c->op + 1 < FWD_OP_COUNT && strstr(fwd_op_name(c->op), "_q8") ? width / 32 : 0; /* and the scales */
    if (rc == FWD_OK && c->layer >= config->n_layer)
        rc = fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%s: layer %d of a model of %d", file, c->layer,
                      config->n_layer);
    for (int i = 0; rc == FWD_OK && i < c->n_elements; i++)
        if (c->elements[i].row < 0 || c->elements[i].row >= width)
            rc = fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%s: element %d is row %lld, expected 0 to %lld", file,
                          i, (long long)c->elements[i].row, (long long)width - 1);
    for (int i = 0; rc == FWD_OK && i < c->n_ids; i++)
        if (c->ids[i] < 0 || c->ids[i] >= config->n_vocab)
            rc = fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%s: id %d, the vocabulary has %lld", file, c->ids[i],
                          (long long)config->n_vocab);
    par_case_model_close(&m);
    return rc;
}

static enum fwd_status read_all(struct par_case *c, const struct par_capture *f, struct fwd_error *err) {
    struct par_case_tap taps[PAR_CASE_INPUTS];
    int64_t n;
    FWD_TRY(read_facts(c, f, err));
    FWD_TRY(need_tensor(f, "gguf", "U8", 0, &n, &c->gguf, err));
    c->n_gguf = (size_t)n;
    FWD_TRY(read_weights(c, f, err));
    FWD_TRY(read_sequence(c, f, err));
    int n_in = par_case_taps(c->op, c->layer, taps);
    for (int i = 0; i < n_in; i++) {
        FWD_TRY(read_input(c, f, i, err));
        c->n_in = i + 1;
    }
    FWD_TRY(read_elements(c, f, err));
    return check_case(c, par_capture_name(f), err);
}

static enum fwd_status read_open(struct par_case *out, struct par_capture *f, struct fwd_error *err) {
    *out = (struct par_case){0};
    enum fwd_status rc = read_all(out, f, err);
    par_capture_close(f);
    if (rc != FWD_OK)
        par_case_free(out);
    return rc;
}

enum fwd_status par_case_read(struct par_case *out, const char *path, struct fwd_error *err) {
    struct par_capture *f;
    FWD_TRY(par_container_open(&f, path, PAR_CASE_SCHEMA, err));
    return read_open(out, f, err);
}

enum fwd_status par_case_read_bytes(struct par_case *out, const uint8_t *data, size_t n_bytes, const char *name,
                                    struct fwd_error *err) {
    struct par_capture *f;
    FWD_TRY(par_container_open_bytes(&f, data, n_bytes, name, PAR_CASE_SCHEMA, err));
    return read_open(out, f, err);
}
