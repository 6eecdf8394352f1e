#include "tap/seekable.h"

#include <string.h>
#include <zstd.h>

enum {
    FOOTER_BYTES = 9,
    SKIPPABLE_HEAD_BYTES = 8,
    CHECKSUM_PRESENT = 0x80,
    RESERVED_BITS = 0x7c,
    FRAME_HEAD_CHECKSUM = 0x04, /* bit 2 of a zstd frame's descriptor byte */
    OUT_BYTES = 1 << 17,
    LEVEL = 1,
    MOST_EXPANSION = 1 << 17 /* a block of 128 KiB takes at least 4 bytes of input */
};
#define SKIPPABLE_MAGIC 0x184D2A5Eu
#define SEEKABLE_MAGIC 0x8F92EAB1u
#define FRAME_MAGIC 0xFD2FB528u

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(uint8_t *p, uint32_t x) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static enum fwd_status fill_frames(struct par_frame *frames, size_t n, const uint8_t *entry, size_t entry_bytes,
                                   uint64_t table_at, const char *file, struct fwd_error *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++, entry += entry_bytes) {
        struct par_frame *f = &frames[i];
        f->at = at;
        f->n_compressed = get_u32(entry);
        f->n_plain = get_u32(entry + 4);
        f->checksum = get_u32(entry + 8);
        FWD_FAIL_IF(f->n_compressed > table_at - at, FWD_ECORRUPT, err,
                    "%s: frame %zu has %u bytes at offset %llu, but the seek table begins at %llu", file, i,
                    (unsigned)f->n_compressed, (unsigned long long)at, (unsigned long long)table_at);
        FWD_FAIL_IF(f->n_plain > PAR_FRAME_MAX || f->n_plain > (uint64_t)f->n_compressed * MOST_EXPANSION, FWD_ECORRUPT,
                    err, "%s: frame %zu says %u bytes from %u compressed ones", file, i, (unsigned)f->n_plain,
                    (unsigned)f->n_compressed);
        at += f->n_compressed;
    }
    FWD_FAIL_IF(at != table_at, FWD_ECORRUPT, err, "%s: the frames end at %llu, but the seek table begins at %llu",
                file, (unsigned long long)at, (unsigned long long)table_at);
    return FWD_OK;
}

enum fwd_status par_seekable_parse(struct par_frame **frames, size_t *n_frames, const uint8_t *data, size_t n_bytes,
                                   const char *file, struct fwd_error *err) {
    FWD_FAIL_IF(n_bytes < SKIPPABLE_HEAD_BYTES + FOOTER_BYTES, FWD_ETRUNCATED, err,
                "%s: %zu bytes, too few for a seek table", file, n_bytes);
    const uint8_t *footer = data + n_bytes - FOOTER_BYTES;
    FWD_FAIL_IF(get_u32(footer + 5) != SEEKABLE_MAGIC, FWD_ETRUNCATED, err,
                "%s: ends in 0x%08x, expected the seek table's 0x%08x: cut off, or not a seekable zstd file (`zstd -d` "
                "gives a plain safetensors file)",
                file, (unsigned)get_u32(footer + 5), SEEKABLE_MAGIC);
    uint8_t descriptor = footer[4];
    FWD_FAIL_IF((descriptor & RESERVED_BITS) || !(descriptor & CHECKSUM_PRESENT), FWD_EUNSUPPORTED, err,
                "%s: seek table descriptor 0x%02x, expected 0x80 (checksums present, reserved bits 0)", file,
                (unsigned)descriptor);
    const size_t entry_bytes = 12;
    uint64_t n = get_u32(footer);
    uint64_t payload = n * entry_bytes + FOOTER_BYTES; /* below 2^36 */
    FWD_FAIL_IF(n == 0 || payload + SKIPPABLE_HEAD_BYTES > n_bytes, FWD_ECORRUPT, err,
                "%s: a seek table of %llu frames does not fit in %zu bytes", file, (unsigned long long)n, n_bytes);
    uint64_t table_at = n_bytes - payload - SKIPPABLE_HEAD_BYTES;
    const uint8_t *head = data + table_at;
    FWD_FAIL_IF(get_u32(head) != SKIPPABLE_MAGIC || get_u32(head + 4) != payload, FWD_ECORRUPT, err,
                "%s: seek table at offset %llu begins with 0x%08x and size %u, expected 0x%08x and %llu", file,
                (unsigned long long)table_at, (unsigned)get_u32(head), (unsigned)get_u32(head + 4), SKIPPABLE_MAGIC,
                (unsigned long long)payload);
    *frames = fwd_alloc((size_t)n, sizeof **frames);
    FWD_FAIL_IF(!*frames, FWD_ENOMEM, err, "%s: no memory for %llu frames", file, (unsigned long long)n);
    *n_frames = (size_t)n;
    enum fwd_status rc = fill_frames(*frames, (size_t)n, head + SKIPPABLE_HEAD_BYTES, entry_bytes, table_at, file, err);
    if (rc != FWD_OK) {
        fwd_free(*frames);
        *frames = NULL;
    }
    return rc;
}

enum fwd_status par_seekable_read(const struct par_frame *frame, const uint8_t *data, size_t n_bytes, void *out,
                                  const char *file, struct fwd_error *err) {
    unsigned long long at = frame->at;
    FWD_FAIL_IF(frame->at > n_bytes || frame->n_compressed > n_bytes - frame->at, FWD_ETRUNCATED, err,
                "%s: frame at offset %llu ends beyond the file's %zu bytes", file, at, n_bytes);
    const uint8_t *p = data + frame->at;
    FWD_FAIL_IF(frame->n_compressed < 9 || get_u32(p) != FRAME_MAGIC, FWD_ECORRUPT, err,
                "%s: no zstd frame at offset %llu", file, at);
    FWD_FAIL_IF(!(p[4] & FRAME_HEAD_CHECKSUM) || get_u32(p + frame->n_compressed - 4) != frame->checksum, FWD_ECORRUPT,
                err, "%s: frame at offset %llu: checksum is missing or is not the seek table's 0x%08x", file, at,
                (unsigned)frame->checksum);
    size_t one = ZSTD_findFrameCompressedSize(p, frame->n_compressed);
    FWD_FAIL_IF(ZSTD_isError(one) || one != frame->n_compressed, FWD_ECORRUPT, err,
                "%s: frame at offset %llu is not one frame of %u bytes", file, at, (unsigned)frame->n_compressed);
    size_t got = ZSTD_decompress(out, frame->n_plain, p, frame->n_compressed);
    FWD_FAIL_IF(ZSTD_isError(got), FWD_ECORRUPT, err, "%s: frame at offset %llu: %s", file, at, ZSTD_getErrorName(got));
    FWD_FAIL_IF(got != frame->n_plain, FWD_ECORRUPT, err, "%s: frame at offset %llu has %zu bytes, expected %u", file,
                at, got, (unsigned)frame->n_plain);
    return FWD_OK;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

struct par_frame_writer {
    ZSTD_CCtx *zstd;
    par_sink_fn *sink;
    void *sink_ud;
    uint64_t n_plain, n_added, n_compressed;
    uint8_t last[4]; /* of what went to the sink: at the end of a frame, its checksum */
    uint8_t out[OUT_BYTES];
};

enum fwd_status par_frame_writer_create(struct par_frame_writer **out, par_sink_fn *sink, void *sink_ud,
                                        struct fwd_error *err) {
    struct par_frame_writer *w = fwd_alloc(1, sizeof *w);
    ZSTD_CCtx *zstd = ZSTD_createCCtx();
    bool ok = w && zstd && !ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, LEVEL)) &&
              !ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_checksumFlag, 1));
    if (!ok) {
        (void)ZSTD_freeCCtx(zstd);
        fwd_free(w);
        FWD_FAIL(FWD_ENOMEM, err, "no memory for a zstd compressor");
    }
    w->zstd = zstd;
    w->sink = sink;
    w->sink_ud = sink_ud;
    *out = w;
    return FWD_OK;
}

void par_frame_writer_free(struct par_frame_writer *w) {
    if (!w)
        return;
    (void)ZSTD_freeCCtx(w->zstd);
    fwd_free(w);
}

enum fwd_status par_frame_begin(struct par_frame_writer *w, uint64_t n_plain, struct fwd_error *err) {
    FWD_FAIL_IF(n_plain > PAR_FRAME_MAX, FWD_ERANGE, err, "a frame of %llu bytes, at most %d are possible",
                (unsigned long long)n_plain, PAR_FRAME_MAX);
    (void)ZSTD_CCtx_reset(w->zstd, ZSTD_reset_session_only);
    size_t rc = ZSTD_CCtx_setPledgedSrcSize(w->zstd, n_plain);
    FWD_FAIL_IF(ZSTD_isError(rc), FWD_ESTATE, err, "zstd: %s", ZSTD_getErrorName(rc));
    w->n_plain = n_plain;
    w->n_added = w->n_compressed = 0;
    return FWD_OK;
}

static enum fwd_status hand_on(struct par_frame_writer *w, size_t n, struct fwd_error *err) {
    for (size_t i = n > 4 ? n - 4 : 0; i < n; i++) {
        memmove(w->last, w->last + 1, 3);
        w->last[3] = w->out[i];
    }
    w->n_compressed += n;
    return n ? w->sink(w->sink_ud, w->out, n, err) : FWD_OK;
}

static enum fwd_status compress(struct par_frame_writer *w, ZSTD_inBuffer *in, ZSTD_EndDirective directive,
                                struct fwd_error *err) {
    for (;;) {
        ZSTD_outBuffer out = {w->out, OUT_BYTES, 0};
        size_t left = ZSTD_compressStream2(w->zstd, &out, in, directive);
        FWD_FAIL_IF(ZSTD_isError(left), FWD_ESTATE, err, "zstd: %s", ZSTD_getErrorName(left));
        FWD_TRY(hand_on(w, out.pos, err));
        if (directive == ZSTD_e_end ? left == 0 : in->pos == in->size)
            return FWD_OK;
    }
}

enum fwd_status par_frame_add(struct par_frame_writer *w, const void *data, size_t n_bytes, struct fwd_error *err) {
    FWD_FAIL_IF(n_bytes > w->n_plain - w->n_added, FWD_ESTATE, err, "a frame of %llu bytes was given more",
                (unsigned long long)w->n_plain);
    w->n_added += n_bytes;
    return compress(w, &(ZSTD_inBuffer){data, n_bytes, 0}, ZSTD_e_continue, err);
}

enum fwd_status par_frame_end(struct par_frame_writer *w, struct par_frame *frame, struct fwd_error *err) {
    FWD_FAIL_IF(w->n_added != w->n_plain, FWD_ESTATE, err, "a frame of %llu bytes was given %llu",
                (unsigned long long)w->n_plain, (unsigned long long)w->n_added);
    FWD_TRY(compress(w, &(ZSTD_inBuffer){NULL, 0, 0}, ZSTD_e_end, err));
    FWD_FAIL_IF(w->n_compressed > UINT32_MAX, FWD_ERANGE, err, "a frame of %llu compressed bytes",
                (unsigned long long)w->n_compressed);
    frame->n_compressed = (uint32_t)w->n_compressed;
    frame->n_plain = (uint32_t)w->n_plain;
    frame->checksum = get_u32(w->last);
    return FWD_OK;
}

enum fwd_status par_seekable_table(const struct par_frame *frames, size_t n_frames, par_sink_fn *sink, void *sink_ud,
                                   struct fwd_error *err) {
    uint8_t buf[12];
    FWD_FAIL_IF(n_frames > (UINT32_MAX - FOOTER_BYTES) / 12, FWD_ERANGE, err, "%zu frames in a seek table", n_frames);
    put_u32(buf, SKIPPABLE_MAGIC);
    put_u32(buf + 4, (uint32_t)(n_frames * 12 + FOOTER_BYTES));
    FWD_TRY(sink(sink_ud, buf, SKIPPABLE_HEAD_BYTES, err));
    for (size_t i = 0; i < n_frames; i++) {
        put_u32(buf, frames[i].n_compressed);
        put_u32(buf + 4, frames[i].n_plain);
        put_u32(buf + 8, frames[i].checksum);
        FWD_TRY(sink(sink_ud, buf, 12, err));
    }
    put_u32(buf, (uint32_t)n_frames);
    buf[4] = CHECKSUM_PRESENT;
    put_u32(buf + 5, SEEKABLE_MAGIC);
    return sink(sink_ud, buf, FOOTER_BYTES, err);
}
