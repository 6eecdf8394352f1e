/* engine/paths/path_table.c: the built-in paths, from paths.def. */
#include "engine.h"

#include <string.h>

#define P(symbol) extern const struct fwd_path symbol;
#include "paths/paths.def"
#undef P

static const struct fwd_path *const paths[] = {
#define P(symbol) &symbol,
#include "paths/paths.def"
#undef P
    NULL};

const struct fwd_path *const *fwd_paths(int *n_paths) {
    *n_paths = (int)(sizeof paths / sizeof *paths) - 1;
    return paths;
}

const struct fwd_path *fwd_path_find(const char *name) {
    for (int i = 0; paths[i]; i++)
        if (!strcmp(paths[i]->name, name))
            return paths[i];
    return NULL;
}
