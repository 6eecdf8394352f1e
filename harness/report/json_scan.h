/* harness/report/json_scan.h: RFC 8259 as a yes-or-no question about bytes, with the place of the first fault. */
#ifndef HARNESS_REPORT_JSON_SCAN_H
#define HARNESS_REPORT_JSON_SCAN_H

#include <stddef.h>
#include <stdint.h>

enum { PAR_JSON_DEPTH = 64 };

struct par_json_scan {
    size_t n_values;   /* values seen: the preorder number of the next one */
    size_t find;       /* preorder number of the value whose line is wanted; SIZE_MAX: none */
    int find_line;     /* its line, from 1; 0: not found */
    int line;          /* of the fault, or of the end */
    const char *fault; /* what is wrong; NULL: the text is one JSON value and white space */
};

/* Checks n bytes of text; fills *s (s->find is read). */
void par_json_scan(const char *text, size_t n, struct par_json_scan *s);

#endif
