/* harness/compare/edit_distance.h: how far a typed word is from a name, so that a message can say which one was meant.
 */
#ifndef HARNESS_COMPARE_EDIT_DISTANCE_H
#define HARNESS_COMPARE_EDIT_DISTANCE_H

#include <stddef.h>

/* Wagner and Fischer 1974, from what was typed to a name: people leave parts out more than they add or change some, so
 * an inserted character costs 1, a dropped or changed one 2. Only the first 127 characters of a name count. */
size_t par_edit_distance(const char *typed, const char *name);

#endif
