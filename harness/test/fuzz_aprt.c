/* Any bytes given as an APRT stage, and any name given as a tap's, are understood or refused: no crash, no read
 * outside.
 */
#include "tap/import_source.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fwd_error err;
    struct par_tap_name is;
    uint32_t n_values;
    int layer;
    if (par_aprt_header(data, size, "fuzz", &layer, &n_values, &err) == FWD_OK &&
        (12 + 4 * (uint64_t)n_values != size || layer < -1))
        abort();
    char *name = fwd_strndup((const char *)data, size);
    if (name && par_tap_name_find(name, NULL, &is) && (is.layer < -1 || (is.pos0 >= 0 && is.pos1 <= is.pos0)))
        abort();
    fwd_free(name);
    return 0;
}
