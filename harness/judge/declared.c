#include "judge/declared.h"

#include "run/drive.h"
#include "run/trace.h"
#include "spec/numerics_file.h"
#include "spec/spec_model.h"
#include "tap/capture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct par_declared {
    char name[300];
    struct par_numerics *numerics; /* of a file; else of a path: */
    struct par_spec_model *model;
    const struct fwd_path *path;
    struct fwd_session *session;
    char act[64], caps[128], force[512]; /* what the knobs point to */
};

/* The value of "key=" among the recorded knobs; false: not there, or longer than n. */
static bool find_knob(const char *knobs, const char *key, char *out, size_t n) {
    size_t length = strlen(key);
    for (const char *p = knobs; *p; p += strcspn(p, " "), p += strspn(p, " ")) {
        if (strncmp(p, key, length) != 0 || p[length] != '=')
            continue;
        p += length + 1;
        size_t value = strcspn(p, " ");
        if (value >= n)
            return false;
        memcpy(out, p, value);
        out[value] = 0;
        return true;
    }
    return false;
}

static const char *unless(const char *text, const char *none) {
    return strcmp(text, none) != 0 ? text : NULL;
}

static enum fwd_status read_knobs(struct par_declared *d, const char *said, struct fwd_knobs *k,
                                  struct fwd_error *err) {
    char kv[16], head[16];
    bool good = said && find_knob(said, "kv", kv, sizeof kv) && find_knob(said, "head", head, sizeof head) &&
                find_knob(said, "act", d->act, sizeof d->act) && find_knob(said, "caps", d->caps, sizeof d->caps) &&
                find_knob(said, "force", d->force, sizeof d->force);
    FWD_FAIL_IF(!good, FWD_ECORRUPT, err, "knobs \"%.80s\", expected kv, head, act, caps and force", said ? said : "");
    *k = (struct fwd_knobs){.size = sizeof *k,
                            .n_threads = 1,
                            .n_ctx = 16,
                            .n_seq = 1,
                            .n_batch = 1,
                            .kv_type = !strcmp(kv, fwd_dtype_name(FWD_F32)) ? FWD_F32 : FWD_F16,
                            .head = !strcmp(head, "f32") ? FWD_HEAD_F32 : FWD_HEAD_QUANT,
                            .act = unless(d->act, "none"),
                            .caps = unless(d->caps, "all"),
                            .force = unless(d->force, "none")};
    return FWD_OK;
}

static enum fwd_status open_own(struct par_declared *d, const struct fwd_gguf *file, const struct par_import *im,
                                struct fwd_error *err) {
    const char *path = par_import_fact(im, PAR_FACT_PATH, NULL), *hash = par_import_fact(im, PAR_FACT_NUMERICS, NULL);
    struct fwd_knobs knobs;
    char have[32];
    FWD_FAIL_IF(!par_import_is_own(im) || !path || !hash, FWD_EMISSING, err,
                "the capture records no numerics: say by which to judge it, with --numerics FILE");
    d->path = fwd_path_find(path);
    FWD_FAIL_IF(!d->path, FWD_EUNAVAILABLE, err, "the capture is of path \"%.40s\", which this build has not", path);
    FWD_TRY(par_drive_probe(d->path, err));
    FWD_TRY(read_knobs(d, par_import_fact(im, PAR_FACT_KNOBS, NULL), &knobs, err));
    FWD_TRY(d->path->open(&d->session, file, &knobs, err));
    (void)snprintf(have, sizeof have, "0x%016llx", (unsigned long long)par_numerics_hash(d->path, d->session));
    FWD_FAIL_IF(strcmp(have, hash) != 0, FWD_EVERSION, err,
                "the capture was made under other numerics of path %s (%.20s) than this build declares (%s)", path,
                hash, have);
    (void)snprintf(d->name, sizeof d->name, "of path %.40s, as recorded (%s)", path, have);
    return FWD_OK;
}

enum fwd_status par_declared_own(struct par_declared **out, const struct fwd_gguf *file, const struct par_import *im,
                                 struct fwd_error *err) {
    struct par_declared *d = fwd_calloc(1, sizeof *d);
    FWD_FAIL_IF(!d, FWD_ENOMEM, err, "no memory for numerics");
    enum fwd_status rc = open_own(d, file, im, err);
    if (rc != FWD_OK) {
        par_declared_free(d);
        return rc;
    }
    *out = d;
    return FWD_OK;
}

/* Whether the file leaves open in what order any op of this model adds. */
static bool is_open(const struct par_declared *d) {
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        const struct spec_weight *w =
            par_spec_weight(d->model, (enum fwd_op)op, fwd_op_in_layer((enum fwd_op)op) ? 0 : -1);
        if (par_numerics_order_is_open(d->numerics, (enum fwd_op)op, w ? w->type : 0))
            return true;
    }
    return false;
}

enum fwd_status par_declared_file(struct par_declared **out, const struct fwd_gguf *file, const char *path,
                                  struct fwd_error *err) {
    struct par_declared *d = fwd_calloc(1, sizeof *d);
    FWD_FAIL_IF(!d, FWD_ENOMEM, err, "no memory for numerics");
    enum fwd_status rc = par_numerics_load(&d->numerics, path, err);
    if (rc == FWD_OK)
        rc = par_spec_open(&d->model, file, err);
    if (rc != FWD_OK) {
        par_declared_free(d);
        return rc;
    }
    (void)snprintf(d->name, sizeof d->name, "%.60s, from %.120s%s", par_numerics_name(d->numerics), path,
                   is_open(d) ? "; it leaves orders of additions open: what is inside its bounds is consistent with it"
                              : "");
    *out = d;
    return FWD_OK;
}

void par_declared_free(struct par_declared *d) {
    if (!d)
        return;
    if (d->session)
        d->path->close(d->session);
    if (d->model)
        par_spec_close(d->model);
    par_numerics_free(d->numerics);
    fwd_free(d);
}

bool par_declared_numerics(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct par_declared *d = ud;
    if (d->numerics) {
        const struct spec_weight *w = par_spec_weight(d->model, op, layer), *bias = par_spec_bias(d->model, op, layer);
        return par_numerics_of(d->numerics, op, w ? w->type : 0, w ? w->n_cols : 0, bias && bias->data, out);
    }
    return d->path->numerics(d->session, op, layer, out);
}

const char *par_declared_name(const struct par_declared *d) {
    return d->name;
}
