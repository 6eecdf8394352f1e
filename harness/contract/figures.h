/* harness/contract/figures.h: what a run measured, as named numbers, and conditions on them.
 *
 * Contracts and hypotheses are data that speak of figures by name: this is their whole vocabulary. A figure that was
 * not measured does not exist, and a condition on it is UNKNOWN, never true or false: unmeasured is not zero. */
#ifndef HARNESS_CONTRACT_FIGURES_H
#define HARNESS_CONTRACT_FIGURES_H

#include "engine.h"
#include "report/json.h"

struct par_figures;

struct par_figures *par_figures_create(void); /* NULL: no memory */
void par_figures_free(struct par_figures *f);
/* Sets or replaces. Names are at most 95 characters. Running out of memory is remembered: see par_figures_ok. */
void par_figures_set(struct par_figures *f, const char *name, double value);
bool par_figures_ok(const struct par_figures *f);
bool par_figures_get(const struct par_figures *f, const char *name, double *value);
/* Figure i in the order of setting; false past the end. */
bool par_figures_at(const struct par_figures *f, int i, const char **name, double *value);

enum par_truth { PAR_FALSE = 0, PAR_TRUE = 1, PAR_UNKNOWN = 2 };

/* A condition is {"figure": NAME, "is": "<" "<=" "=" "!=" ">=" ">", "value": NUMBER}, {"all": [...]}, {"any": [...]} or
 * {"not": CONDITION}. UNKNOWN follows Kleene's three-valued logic: `any` with one true is true whatever else is
 * unknown. NaN makes a comparison UNKNOWN. */
enum fwd_status par_condition_check(const struct par_json *doc, const struct cJSON *node, struct fwd_error *err);
/* Of a checked condition. why: "accused.rope = 2 > 0; arm.kv.heals not measured": the figures it looked at. */
enum par_truth par_condition_eval(const struct cJSON *node, const struct par_figures *f, char *why, size_t n);

#endif
