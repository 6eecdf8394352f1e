/* harness/run/selftest_place.h: was a fault's place inside its op found? */
#ifndef HARNESS_RUN_SELFTEST_PLACE_H
#define HARNESS_RUN_SELFTEST_PLACE_H

#include "fault/fault.h"
#include "localise/pattern.h"

/* 1: the pattern names the fault's head, row, block and position, each with at most one neighbour; 0: it does not;
 * -1: the fault is everywhere in its op. */
int par_selftest_place_found(const struct par_fault *f, const struct par_spec_model *spec,
                             const struct par_pattern *pattern);

#endif
