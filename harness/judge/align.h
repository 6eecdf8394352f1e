/* harness/judge/align.h: is a tap what its name says? Its values are judged at one position as named; where they do not
 * fit, the other forms of tap_names.h are tried. One that fits is believed unless what reads the tap fits the values
 * as they are: then it is the op that is wrong, and it will be accused. Internal to harness/judge. */
#ifndef HARNESS_JUDGE_ALIGN_H
#define HARNESS_JUDGE_ALIGN_H

#include "judge/calls.h"

struct par_align {
    const struct par_spec_model *model;
    struct par_judge *judge; /* which has seen the taps before this one */
    struct fwd_pool *pool;
    const struct par_import *import;
    const struct par_calls *calls;
    par_numerics_fn *numerics;
    void *numerics_ud;
};
/* Puts the rows of a float view in `form` into the form that its name means. FWD_EUNSUPPORTED: an op or type without
 * that form. */
enum fwd_status par_align_apply(const struct par_spec_model *m, enum par_tap_form form, struct fwd_view *view,
                                struct fwd_error *err);
/* The form in which view's values stand; PAR_FORM_NAMED where they fit as named, where none fits, or where nothing can
 * be said. *tried: they could be judged (another call need not be asked). */
enum fwd_status par_align_find(const struct par_align *a, const struct fwd_view *view, enum par_tap_form *form,
                               bool *tried, struct fwd_error *err);

#endif
