/* Any bytes given as a case are read or refused: no crash, no read outside, no allocation on their word. What is read
 * fits its own model, so that it opens again. */
#include "localise/case.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct par_case c;
    struct par_case_model m;
    struct fwd_error err;
    if (par_case_read_bytes(&c, data, size, "fuzz", &err) != FWD_OK)
        return 0;
    if (par_case_model_open(&m, &c, &err) != FWD_OK || c.n_elements < 1 || c.elements[0].pos >= c.n_ids)
        abort();
    par_case_model_close(&m);
    par_case_free(&c);
    return 0;
}
