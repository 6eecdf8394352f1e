/* harness/report/report_stream.h: a FILE that becomes one string. */
#ifndef HARNESS_REPORT_REPORT_STREAM_H
#define HARNESS_REPORT_REPORT_STREAM_H

#include <stdio.h>

struct par_stream {
    FILE *out;
    char *data;
    size_t n_bytes;
};
/* s->out is NULL when memory is out. */
void par_stream_begin(struct par_stream *s);
/* Closes the stream; what was written, NUL-terminated (fwd_free), or NULL when memory ran out at any point. */
char *par_stream_end(struct par_stream *s);

#endif
