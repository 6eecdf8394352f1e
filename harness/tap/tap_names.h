/* harness/tap/tap_names.h: the one table of what other programs call our taps: llama.cpp's graph names (and older
 * ones), Hugging Face's module paths, aprender's stages.
 *
 * A name may end in "@p0:p1" (the positions it holds). A pattern holds at most one '#', which stands for the layer:
 * "model.layers.#.mlp.up_proj". Of a module the output is meant; ".input" behind it means what it was given. */
#ifndef HARNESS_TAP_TAP_NAMES_H
#define HARNESS_TAP_TAP_NAMES_H

#include "engine.h"

/* How the values stand in a tensor, compared with what its tap's name says here. */
enum par_tap_form {
    PAR_FORM_NAMED = 0,    /* as named */
    PAR_FORM_BEFORE_BIAS,  /* a product whose bias is not added yet */
    PAR_FORM_PAIRS_SPLIT,  /* heads as [first halves of the pairs, second halves], where the file has neighbours */
    PAR_FORM_PAIRS_JOINED, /* the other way round */
    PAR_FORM_TRANSPOSED,   /* [width, positions] */
    PAR_FORM_COUNT
};
/* "as-named", "before-bias", ...: as a person asserts it. */
const char *par_tap_form_name(enum par_tap_form f);
/* PAR_FORM_COUNT: unknown. */
enum par_tap_form par_tap_form_by_name(const char *name);

struct par_tap_name {
    enum fwd_op op; /* FWD_OP_COUNT: a name that is known and stands for nothing that is judged */
    int layer;      /* -1 outside layers */
    int pos0, pos1; /* -1: not said */
    bool fused_qkv; /* rows of Q, K and V side by side; op is FWD_OP_QCUR */
    enum par_tap_form form;
    const char *family; /* "llama.cpp", "Hugging Face", "APRT" */
};

/* More rows, from a file {"their name": "a name that the table knows"}. */
struct par_tap_map;
enum fwd_status par_tap_map_read(struct par_tap_map **out, const char *path, struct fwd_error *err);
void par_tap_map_free(struct par_tap_map *map); /* NULL is fine */

/* False: a name that neither the map (may be NULL) nor the table knows. */
bool par_tap_name_find(const char *name, const struct par_tap_map *map, struct par_tap_name *out);

#endif
