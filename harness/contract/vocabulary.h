/* harness/contract/vocabulary.h: the names of all figures. A contract or a hypothesis may speak of these and of nothing
 * else: a misspelt figure would be UNKNOWN for ever, and a test that is never measured never fails. */
#ifndef HARNESS_CONTRACT_VOCABULARY_H
#define HARNESS_CONTRACT_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>

/* Row i: `name` with placeholders (<side>: ref or cand; <class>: a kind of op; <H>: a hypothesis' id; <id>: an arm's or
 * an intervention's; <signature>: a diagnosis), and what it is; false past the end. */
bool par_vocabulary_row(int i, const char **name, const char **meaning);
bool par_vocabulary_has(const char *figure);
/* The row nearest to an unknown name, for a message. */
const char *par_vocabulary_nearest(const char *figure);

#endif
