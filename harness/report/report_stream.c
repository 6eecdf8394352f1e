#include "report/report_stream.h"

#include "engine.h"

#include <stdlib.h>

void par_stream_begin(struct par_stream *s) {
    *s = (struct par_stream){0};
    s->out = open_memstream(&s->data, &s->n_bytes);
}

char *par_stream_end(struct par_stream *s) {
    if (!s->out)
        return NULL;
    int bad = ferror(s->out);
    bad |= fclose(s->out);
    char *text = bad || !s->data ? NULL : fwd_strndup(s->data, s->n_bytes);
    free(s->data); /* the C library's own allocation */
    *s = (struct par_stream){0};
    return text;
}
