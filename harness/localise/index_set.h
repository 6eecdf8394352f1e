/* harness/localise/index_set.h: a set of indices (rows, positions, heads) said in words, and only those that a reader
 * could check: "rows 512-767", "every 16th row from 3", "positions >= 64". */
#ifndef HARNESS_LOCALISE_INDEX_SET_H
#define HARNESS_LOCALISE_INDEX_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct par_index_set {
    int64_t n_judged, n;
    int64_t first, last; /* of the set; -1: empty */
    bool all;            /* everything judged is in it */
};
/* marks[i]: 0 not judged, 1 judged, 2 in the set. noun: "row". open_end: an end of the set at the last judged index is
 * said as ">= first" (positions), else as "the last 7 rows". */
void par_index_set_describe(const uint8_t *marks, int64_t n, const char *noun, bool open_end, struct par_index_set *out,
                            char *text, size_t text_bytes);

#endif
