/* capture.h: writes a capture that `parity judge` and `parity diff` read, from any engine, with nothing but stdio.
 *
 *     struct capture c;
 *     capture_begin(&c);
 *     capture_fact(&c, "model_sha256", "b179...");             what is known; see below
 *     ... after each op, for the positions pos0 .. pos1-1 that it computed:
 *     long long shape[2] = {pos1 - pos0, n_embd};
 *     capture_tensor(&c, "attn_norm", layer, pos0, pos1, "F32", shape, 2, data);
 *     if (capture_end(&c, "theirs.safetensors") != 0) ...
 *
 * Taps, in the order in which a layer computes them: inp_embd attn_norm Qcur Kcur Vcur (with their bias) Qcur_rope
 * Kcur_rope K_cache V_cache kqv_out (before the output product) attn_out ffn_inp ffn_norm ffn_gate ffn_up ffn_swiglu
 * ffn_out l_out, and outside layers result_norm result_output (layer -1, as inp_embd's). Leave out what you cannot
 * read. Shapes are slowest index first and start with the positions: [positions, values], heads side by side; K_cache
 * and V_cache are [pos1, heads, values of a head], all rows from position 0 on. Types: F32 F64 F16 BF16 I32.
 *
 * Facts that decide whether a capture may be judged beside another: model_sha256 (of the model file), token_ids
 * ("1,2,3": prompt and decode steps) and n_prompt. Worth having: path (the engine's name), knobs, build, chunk. */
#ifndef CAPTURE_H
#define CAPTURE_H

#include <stdio.h>

/* Facts, header and bytes wait in unnamed temporary files, since a safetensors file begins with its header. */
struct capture {
    FILE *facts, *header, *data;
    unsigned long long n_bytes;
    int n_facts, failed;
};

static void capture_string(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++)
        if (*s == '"' || *s == '\\' || (unsigned char)*s < 0x20)
            fprintf(f, "\\u%04x", (unsigned)(unsigned char)*s);
        else
            fputc(*s, f);
    fputc('"', f);
}

/* value: UTF-8. Each key once. */
static void capture_fact(struct capture *c, const char *key, const char *value) {
    if (c->failed)
        return;
    fputs(c->n_facts++ ? "," : "", c->facts);
    capture_string(c->facts, key);
    fputc(':', c->facts);
    capture_string(c->facts, value);
}

static void capture_begin(struct capture *c) {
    c->facts = tmpfile();
    c->header = tmpfile();
    c->data = tmpfile();
    c->n_bytes = 0;
    c->n_facts = 0;
    c->failed = !c->facts || !c->header || !c->data;
    capture_fact(c, "schema", "parity-capture-v1");
}

/* data: contiguous, in the machine's own byte order, which must be little endian. layer -1: outside layers. */
static void capture_tensor(struct capture *c, const char *tap, int layer, int pos0, int pos1, const char *dtype,
                           const long long *shape, int n_dims, const void *data) {
    unsigned long long n = dtype[1] == '6' ? 8 : dtype[1] == '1' || dtype[0] == 'B' ? 2 : 4;
    if (c->failed)
        return;
    fprintf(c->header, ",\"%s", tap);
    if (layer >= 0)
        fprintf(c->header, "-%d", layer);
    fprintf(c->header, "@%d:%d\":{\"dtype\":\"%s\",\"shape\":[", pos0, pos1, dtype);
    for (int i = 0; i < n_dims; i++) {
        fprintf(c->header, "%s%lld", i ? "," : "", shape[i]);
        n *= (unsigned long long)shape[i];
    }
    fprintf(c->header, "],\"data_offsets\":[%llu,%llu]}", c->n_bytes, c->n_bytes + n);
    c->n_bytes += n;
    if (fwrite(data, 1, n, c->data) != n)
        c->failed = 1;
}

static void capture_copy(FILE *from, FILE *to) {
    char block[4096];
    size_t n;
    rewind(from);
    while ((n = fread(block, 1, sizeof block, from)) > 0)
        fwrite(block, 1, n, to);
}

/* 0: the file is there, whole. Else something failed, and path may hold half a file. */
static int capture_end(struct capture *c, const char *path) {
    FILE *f = c->failed ? NULL : fopen(path, "wb");
    if (f) {
        unsigned long long n = sizeof "{\"__metadata__\":{}}" - 1;
        n += (unsigned long long)ftell(c->facts) + (unsigned long long)ftell(c->header);
        for (int i = 0; i < 8; i++)
            fputc((int)(n >> (8 * i) & 255), f);
        fputs("{\"__metadata__\":{", f);
        capture_copy(c->facts, f);
        fputs("}", f);
        capture_copy(c->header, f);
        fputs("}", f);
        capture_copy(c->data, f);
        c->failed = ferror(f) || ferror(c->facts) || ferror(c->header) || ferror(c->data);
        c->failed |= fclose(f) != 0;
    } else
        c->failed = 1;
    if (c->facts)
        fclose(c->facts);
    if (c->header)
        fclose(c->header);
    if (c->data)
        fclose(c->data);
    return c->failed ? -1 : 0;
}

#endif
