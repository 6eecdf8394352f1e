/* Any bytes given as a .npz archive or a .npy file are read or refused: no crash, no read outside. */
#include "tap/import_source.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_BYTES = 1 << 22 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct import_source s;
    struct import_item item = {0};
    struct fwd_error err;
    size_t at;
    if (par_npy_header(data, size, "fuzz", &item, &at, &err) == FWD_OK && at + item.n_bytes != size)
        abort();
    if (par_npz_open_bytes(&s, data, size, "fuzz", &err) != FWD_OK)
        return 0;
    for (size_t i = 0; i < s.n_items; i++) {
        void *out = s.items[i].n_bytes <= MOST_BYTES ? malloc((size_t)s.items[i].n_bytes + 1) : NULL;
        if (out)
            (void)s.read(s.state, &s.items[i], out, &err);
        free(out);
    }
    par_import_source_free(&s);
    return 0;
}
