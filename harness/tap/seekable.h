/* harness/tap/seekable.h: the seekable zstd layout: frames that decompress on their own, and a table of their sizes in
 * a skippable frame at the end, so that `zstd -d` reads the whole and we read one frame.
 *
 * Table, little-endian, as zstd's contrib/seekable_format describes it:
 *   u32 0x184D2A5E   u32 bytes that follow
 *   per frame:       u32 compressed bytes   u32 plain bytes   u32 checksum (low half of the plain bytes' XXH64)
 *   u32 number of frames   u8 descriptor (bit 7: checksums present; bits 6-2 zero)   u32 0x8F92EAB1
 * Every frame is written with zstd's own content checksum, whose four bytes end the frame and are the table's value. */
#ifndef HARNESS_TAP_SEEKABLE_H
#define HARNESS_TAP_SEEKABLE_H

#include "engine.h"

enum { PAR_FRAME_MAX = 1 << 30 }; /* most plain bytes in a frame (the format's own limit) */

struct par_frame {
    uint64_t at; /* offset in the file */
    uint32_t n_compressed, n_plain;
    uint32_t checksum;
};

/* ---- reading: pure functions of the file's bytes ---------------------------------------------------------------- */
/* *frames (fwd_free) and *n_frames from the table at the end of data[0 .. n_bytes-1]. The frames fill the file from
 * offset 0 up to the table. `file` is the name in messages. */
enum fwd_status par_seekable_parse(struct par_frame **frames, size_t *n_frames, const uint8_t *data, size_t n_bytes,
                                   const char *file, struct fwd_error *err);
/* One frame's n_plain bytes into out; its sizes and its checksum are checked against the table. */
enum fwd_status par_seekable_read(const struct par_frame *frame, const uint8_t *data, size_t n_bytes, void *out,
                                  const char *file, struct fwd_error *err);

/* ---- writing ---------------------------------------------------------------------------------------------------- */
typedef enum fwd_status par_sink_fn(void *ud, const void *data, size_t n_bytes, struct fwd_error *err);
struct par_frame_writer;
/* Compressed bytes go to sink. */
enum fwd_status par_frame_writer_create(struct par_frame_writer **out, par_sink_fn *sink, void *sink_ud,
                                        struct fwd_error *err);
void par_frame_writer_free(struct par_frame_writer *w);
/* begin, any number of adds of together n_plain bytes, end. `frame` gets everything but `at`. */
enum fwd_status par_frame_begin(struct par_frame_writer *w, uint64_t n_plain, struct fwd_error *err);
enum fwd_status par_frame_add(struct par_frame_writer *w, const void *data, size_t n_bytes, struct fwd_error *err);
enum fwd_status par_frame_end(struct par_frame_writer *w, struct par_frame *frame, struct fwd_error *err);
/* The table of these frames, in file order, to sink. */
enum fwd_status par_seekable_table(const struct par_frame *frames, size_t n_frames, par_sink_fn *sink, void *sink_ud,
                                   struct fwd_error *err);

#endif
