/* harness/report/report_plot.h: a curve over layers in characters. */
#ifndef HARNESS_REPORT_REPORT_PLOT_H
#define HARNESS_REPORT_REPORT_PLOT_H

#include <stdio.h>

/* Draws y[0 .. n-1] with a logarithmic y axis, one column (or two, when there is room) per value, in at most `width`
 * columns; with more values than columns each column shows the largest of its bin. '*' a value, '_' an exact zero,
 * '!' NaN or infinity, a blank where has[i] is 0 (not measured). Prints nothing when nothing was measured. */
void par_plot_log(FILE *out, const double *y, const unsigned char *has, int n, int width);

#endif
