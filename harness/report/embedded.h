/* harness/report/embedded.h: data files that were compiled into the program (the list is in the Makefile). */
#ifndef HARNESS_REPORT_EMBEDDED_H
#define HARNESS_REPORT_EMBEDDED_H

#include <stddef.h>

/* The bytes of "fixtures/models.json" and its like, followed by a NUL that *n_bytes does not count; NULL: no such file.
 */
const char *par_embedded(const char *name, size_t *n_bytes);
/* The commit that the program was built from, with "-dirty" when the tree had changes; "unknown" outside git. */
const char *par_build_id(void);

#endif
