#include "compare/edit_distance.h"

#include <string.h>

enum { MOST = 127 };

size_t par_edit_distance(const char *typed, const char *name) {
    size_t row[MOST + 1], n = strnlen(name, MOST);
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; typed[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = 2 * i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (typed[i - 1] != name[j - 1] ? 2 : 0);
            diagonal = row[j];
            if (row[j] + 2 < best)
                best = row[j] + 2;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}
