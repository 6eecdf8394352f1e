#include "report/report_plot.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum { AXIS_COLUMNS = 10, MAX_COLUMNS = 240, ROWS = 10 };

enum mark { MARK_NONE, MARK_VALUE, MARK_ZERO, MARK_NONFINITE };
struct column {
    enum mark mark;
    double y;
};

static void bin_values(const double *y, const unsigned char *has, int n, struct column *columns, int n_columns) {
    for (int i = 0; i < n; i++) {
        struct column *c = &columns[(long)i * n_columns / n];
        if (!has[i])
            continue;
        enum mark mark = !isfinite(y[i]) ? MARK_NONFINITE : y[i] > 0 ? MARK_VALUE : MARK_ZERO;
        bool first = c->mark == MARK_NONE;
        if (first || mark == MARK_NONFINITE || (c->mark == MARK_ZERO && mark == MARK_VALUE))
            c->mark = mark;
        if (mark == MARK_VALUE && (first || y[i] > c->y))
            c->y = y[i];
    }
}

void par_plot_log(FILE *out, const double *y, const unsigned char *has, int n, int width) {
    struct column columns[MAX_COLUMNS];
    int room = width - AXIS_COLUMNS < MAX_COLUMNS ? width - AXIS_COLUMNS : MAX_COLUMNS;
    if (n <= 0 || room <= 0)
        return;
    int n_columns = n < room ? n : room;
    int step = n_columns * 2 <= room ? 2 : 1;
    memset(columns, 0, sizeof columns);
    bin_values(y, has, n, columns, n_columns);

    double low = INFINITY, high = -INFINITY;
    bool any = false;
    for (int i = 0; i < n_columns; i++) {
        any |= columns[i].mark != MARK_NONE;
        if (columns[i].mark != MARK_VALUE)
            continue;
        low = fmin(low, log10(columns[i].y));
        high = fmax(high, log10(columns[i].y));
    }
    if (!any)
        return;
    if (low > high) /* only zeros or non-finite values */
        low = high = 0;
    if (high - low < 1) { /* never magnify less than a decade */
        double middle = (low + high) / 2;
        low = middle - 0.5;
        high = middle + 0.5;
    }
    for (int row = 0; row < ROWS; row++) {
        double level = high - (high - low) * row / (ROWS - 1);
        (void)fprintf(out, "%8.1e |", pow(10, level));
        for (int i = 0; i < n_columns; i++) {
            const struct column *c = &columns[i];
            int at = c->mark == MARK_NONFINITE ? 0
                     : c->mark == MARK_ZERO    ? ROWS - 1
                                               : (int)lround((high - log10(c->y)) / (high - low) * (ROWS - 1));
            bool here = c->mark != MARK_NONE && at == row;
            char ch = !here ? ' ' : c->mark == MARK_VALUE ? '*' : c->mark == MARK_ZERO ? '_' : '!';
            (void)fprintf(out, step == 2 ? "%c " : "%c", ch);
        }
        (void)fputc('\n', out);
    }
    (void)fprintf(out, "%8s +", "");
    for (int i = 0; i < n_columns * step; i++)
        (void)fputc('-', out);
    (void)fprintf(out, "\n%8s  ", "layer");
    int column = 0;
    for (int i = 0; i < n_columns; i++) { /* a number every tenth of the axis or so, where it fits */
        char label[16];
        int layer = (int)((long)i * n / n_columns);
        int every = n_columns * step > 60 ? 10 : 5;
        if (n == n_columns ? layer % every : i % every)
            continue;
        int length = snprintf(label, sizeof label, "%d", layer);
        if (i * step < column || i * step + length > n_columns * step + 2)
            continue;
        (void)fprintf(out, "%*s%s", i * step - column, "", label);
        column = i * step + length;
    }
    (void)fputc('\n', out);
}
