/* harness/tap/store.h: float tap rows of one run, kept in an unlinked temporary file, so that memory stays small
 * whatever the model: put every tap of the reference, then read single rows back while the candidate runs. */
#ifndef HARNESS_TAP_STORE_H
#define HARNESS_TAP_STORE_H

#include "engine.h"

struct par_store;

/* Room for n_layer layers and n_pos positions. */
enum fwd_status par_store_create(struct par_store **out, int n_layer, int n_pos, struct fwd_error *err);
void par_store_free(struct par_store *s);
/* Keeps the rows of an F32 or F64 tap (as F32); others and the cache views are passed over. */
enum fwd_status par_store_put(struct par_store *s, const struct fwd_view *view, struct fwd_error *err);
/* Values in a row of that tap at that position; 0: it was not kept. */
int64_t par_store_width(const struct par_store *s, enum fwd_op op, int layer, int pos);
/* Reads one row into dst [par_store_width]. */
enum fwd_status par_store_get(const struct par_store *s, enum fwd_op op, int layer, int pos, float *dst,
                              struct fwd_error *err);

#endif
