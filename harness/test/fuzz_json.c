/* Fuzz target: any bytes. Invariant: parsed or refused with a message that starts with "f:LINE: "; and whatever parses
 * can be walked, each node's line is found, and no getter reads outside. */
#include "report/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void walk(const struct par_json *doc, const struct cJSON *node, int *budget) {
    static const char *const allowed[] = {"a", NULL};
    double d;
    uint64_t u;
    const char *s;
    if ((*budget)-- <= 0)
        return;
    if (par_json_line(doc, node) < 1)
        abort();
    (void)par_json_keys_only(doc, node, allowed, NULL);
    if (par_json_is_object(node)) {
        (void)par_json_get_f64_hex(doc, node, "a", &d, NULL);
        (void)par_json_get_u64(doc, node, "a", &u, NULL);
        (void)par_json_get_text(doc, node, "a", &s, NULL);
    }
    for (const struct cJSON *c = par_json_first(node); c; c = par_json_next(c))
        walk(doc, c, budget);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    struct par_json *doc = NULL;
    struct fwd_error err = {0};
    int budget = 200;
    enum fwd_status rc = par_json_parse(&doc, (const char *)data, n_bytes, "f", &err);
    if (rc != FWD_OK) {
        if (doc || strncmp(err.message, "f:", 2) != 0)
            abort();
        return 0;
    }
    walk(doc, par_json_root(doc), &budget);
    par_json_free(doc);
    return 0;
}
