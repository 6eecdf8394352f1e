/* harness/cli/cmd_tokenize.c: `parity tokenize`: the ids that every path would get for a text, and their pieces. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "report/report_escape.h"

#include <limits.h>
#include <string.h>

enum { EXIT_SHOWN = 0, EXIT_USAGE = 2 };

static const char usage[] =
    "usage: parity tokenize MODEL [-p TEXT | -f FILE] [--chat] [--json]\n"
    "\n"
    "Shows the token ids of a text, as `parity run` would feed them: special-token text is turned\n"
    "into its id, and BOS is put first where the file asks for it.\n"
    "\n"
    "  -p, --prompt TEXT        the text (default: the built-in prompt)\n"
    "  -f, --prompt-file FILE   the text of FILE, any bytes\n"
    "      --chat               wrap the text in the model's ChatML form\n"
    "      --json               one object (schema parity-tokenize-v1); pieces in hex, and as text where\n"
    "                           they are UTF-8\n"
    "\n"
    "Exit: 0 shown, 2 usage, 4 the model or its tokenizer is refused.\n";

static void put_hex(FILE *out, const char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        (void)fprintf(out, "%02x", (unsigned char)bytes[i]);
}

/* s is len bytes and a NUL; false when it is not UTF-8 throughout. */
static bool is_utf8(const char *s, size_t len) {
    for (size_t i = 0; i < len;) {
        uint32_t code = 0;
        i += s[i] ? (size_t)par_utf8_next(s + i, &code) : 1;
        if (code == UINT32_MAX)
            return false;
    }
    return true;
}

static void put_json_text(FILE *out, const char *s, size_t len) {
    (void)fputc('"', out);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            (void)fprintf(out, "\\%c", c);
        else if (c < 0x20)
            (void)fprintf(out, "\\u%04x", c);
        else
            (void)fputc(c, out);
    }
    (void)fputc('"', out);
}

/* One line: what is not printable is shown as \xNN, a NUL too. */
static void put_line_text(FILE *out, const char *s, size_t len) {
    for (const char *end = s + len; s <= end; s += strlen(s) + 1) {
        par_put_plain(out, s);
        if (s + strlen(s) < end)
            (void)fputs("\\x00", out);
    }
}

static enum fwd_status show_tokens(const struct par_input *in, bool json, struct fwd_error *err) {
    for (int i = 0; i < in->n_ids; i++) {
        const char *bytes;
        size_t len;
        FWD_FAIL_IF(!fwd_tokenizer_piece(in->tokenizer, in->ids[i], &bytes, &len), FWD_ERANGE, err,
                    "token %d: id %d is not in the vocabulary", i, in->ids[i]);
        char *piece = fwd_strndup(bytes, len);
        FWD_FAIL_IF(!piece, FWD_ENOMEM, err, "no memory for a piece of %zu bytes", len);
        bool special = fwd_tokenizer_is_special(in->tokenizer, in->ids[i]);
        if (json) {
            (void)printf("%s\n{\"id\":%d,\"special\":%s,\"hex\":\"", i ? "," : "", in->ids[i],
                         special ? "true" : "false");
            put_hex(stdout, piece, len);
            (void)fputs("\",\"text\":", stdout);
            if (is_utf8(piece, len))
                put_json_text(stdout, piece, len);
            else
                (void)fputs("null", stdout);
            (void)fputc('}', stdout);
        } else {
            (void)printf("%6d %8d  %s", i, in->ids[i], special ? "special " : "");
            (void)fputc('|', stdout);
            put_line_text(stdout, piece, len);
            (void)fputs("|\n", stdout);
        }
        fwd_free(piece);
    }
    return FWD_OK;
}

/* Says on stderr when the ids stand for other bytes than the text had. */
static enum fwd_status compare_text(const struct par_input *in, const struct fwd_tokenizer_info *info,
                                    struct fwd_error *err) {
    int skip = info->add_bos ? 1 : 0;
    char *back;
    size_t len;
    FWD_TRY(fwd_tokenizer_decode(in->tokenizer, in->ids + skip, (size_t)(in->n_ids - skip), true, &back, &len, err));
    if (len != in->text_len || memcmp(back, in->text, len) != 0)
        (void)fprintf(stderr,
                      "parity: the ids stand for %zu bytes and the text has %zu: bytes that are not UTF-8, or that the "
                      "vocabulary has no token for, were changed or left out\n",
                      len, in->text_len);
    fwd_free(back);
    return FWD_OK;
}

static enum fwd_status show_input(const struct par_input *in, bool json, struct fwd_error *err) {
    struct fwd_tokenizer_info info;
    fwd_tokenizer_info(in->tokenizer, &info);
    if (json) {
        (void)fputs("{\"schema\":\"parity-tokenize-v1\",\"model\":", stdout);
        char *model = par_utf8_clean(in->path);
        FWD_FAIL_IF(!model, FWD_ENOMEM, err, "no memory for the model's path");
        put_json_text(stdout, model, strlen(model));
        fwd_free(model);
        (void)printf(",\"pre\":\"%s\",\"add_bos\":%s,\"n_bytes\":%zu,\"n_tokens\":%d,\"tokens\":[", info.pre,
                     info.add_bos ? "true" : "false", in->text_len, in->n_ids);
    } else {
        (void)printf("%d tokens from %zu bytes (pre-tokenizer %s, BOS %s)\n", in->n_ids, in->text_len, info.pre,
                     info.add_bos ? "added" : "not added");
    }
    FWD_TRY(show_tokens(in, json, err));
    if (json)
        (void)fputs("\n]}\n", stdout);
    return compare_text(in, &info, err);
}

int cmd_tokenize(int argc, char **argv) {
    struct par_common common = {.n_ctx = INT_MAX}; /* nothing is run: a text may be longer than any context */
    struct par_input in;
    struct fwd_error err = {0};
    bool json = false, help = false;
    int n_words;
    const struct par_opt opts[] = {
        {"prompt", 'p', PAR_OPT_STRING, &common.prompt, 0, 0, "TEXT", ""},
        {"prompt-file", 'f', PAR_OPT_STRING, &common.prompt_file, 0, 0, "FILE", ""},
        {"chat", 0, PAR_OPT_FLAG, &common.chat, 0, 0, NULL, ""},
        {"json", 0, PAR_OPT_FLAG, &json, 0, 0, NULL, ""},
    };
    if (par_options_parse(opts, (int)(sizeof opts / sizeof *opts), argc, argv, &common.model, 1, &n_words, &help,
                          &err) != FWD_OK)
        return par_complain(&err);
    if (help) {
        (void)fputs(usage, stdout);
        return EXIT_SHOWN;
    }
    if (n_words != 1) {
        (void)fprintf(stderr, "parity tokenize: no MODEL given\n%s", usage);
        return EXIT_USAGE;
    }
    if (par_input_open(&in, &common, &err) != FWD_OK)
        return par_complain(&err);
    enum fwd_status status = show_input(&in, json, &err);
    par_input_close(&in);
    return status == FWD_OK ? EXIT_SHOWN : par_complain(&err);
}
