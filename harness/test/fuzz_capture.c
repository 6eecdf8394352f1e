/* Any bytes given as a capture are read or refused: no crash, no read outside, no allocation on their word. What opens
 * has tensors within the file, in one piece, each found by its name, and each read gives its bytes or an error. */
#include "tap/capture.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_BYTES = 1 << 22 }; /* larger tensors are only looked at: keeps a run short */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct par_capture *c;
    struct fwd_error err;
    const char *key, *value;
    size_t n;
    if (par_capture_open_bytes(&c, data, size, "fuzz", &err) != FWD_OK)
        return 0;
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    for (size_t i = 0; i < n; i++) {
        if (par_capture_find(c, t[i].name) != &t[i])
            abort();
        void *out = t[i].n_bytes <= MOST_BYTES ? malloc(t[i].n_bytes + 1) : NULL;
        if (out)
            (void)par_capture_read(c, &t[i], out, &err);
        free(out);
    }
    for (size_t i = 0; par_capture_fact_at(c, i, &key, &value); i++)
        if (par_capture_fact(c, key) == NULL)
            abort();
    par_capture_close(c);
    return 0;
}
