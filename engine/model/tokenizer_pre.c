#include "model/tokenizer_pre.h"

#include "core/memory.h"
#include "model/tokenizer_utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* White space is Unicode's White_Space, spelt out: PCRE2's \s would add U+180E. */
#define SPACES "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S "[" SPACES "]"
#define NOT_S "[^" SPACES "]"
#define OTHER "[^" SPACES "\\p{L}\\p{N}]"

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define GPT2 CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?" OTHER "+|" S "+(?!" NOT_S ")|" S "+"
#define DIGIT "\\p{N}"
/* Qwen2's and Llama 3's patterns differ in how many digits make a word. */
#define MODERN(digits)                                                                                                 \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?" OTHER "+[\\r\\n]*|" S "*[\\r\\n]+|" S          \
    "+(?!" NOT_S ")|" S "+"
#define QWEN2 MODERN("\\p{N}")
#define LLAMA3 MODERN("\\p{N}{1,3}")

static const struct tok_pre_kind kinds[] = {
    {"qwen2", {QWEN2, NULL}, false, false},      {"deepseek-r1-qwen", {QWEN2, NULL}, false, false},
    {"megrez", {QWEN2, NULL}, false, false},     {"stablelm2", {QWEN2, NULL}, false, false},
    {"hunyuan", {QWEN2, NULL}, false, false},    {"smollm", {DIGIT, GPT2}, false, false},
    {"starcoder", {DIGIT, GPT2}, false, false},  {"refact", {DIGIT, GPT2}, false, false},
    {"command-r", {DIGIT, GPT2}, false, false},  {"codeshell", {DIGIT, GPT2}, false, false},
    {"exaone", {DIGIT, GPT2}, false, false},     {"minerva-7b", {DIGIT, GPT2}, false, false},
    {"llama-bpe", {LLAMA3, NULL}, true, true},   {"llama3", {LLAMA3, NULL}, true, true},
    {"llama-v3", {LLAMA3, NULL}, true, true},    {"falcon3", {LLAMA3, NULL}, true, true},
    {"pixtral", {LLAMA3, NULL}, true, true},     {"dbrx", {LLAMA3, NULL}, false, false},
    {"smaug-bpe", {LLAMA3, NULL}, false, false}, {"gpt-2", {GPT2, NULL}, false, false},
    {"phi-2", {GPT2, NULL}, false, false},       {"mpt", {GPT2, NULL}, false, false},
    {"olmo", {GPT2, NULL}, false, false},        {"jais", {GPT2, NULL}, false, false},
    {"exaone4", {GPT2, NULL}, false, false},
};

const struct tok_pre_kind *tok_pre_kind(size_t i) {
    return i < sizeof kinds / sizeof *kinds ? &kinds[i] : NULL;
}

const struct tok_pre_kind *tok_pre_find(const char *name, size_t len) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].name) == len && !memcmp(kinds[i].name, name, len))
            return &kinds[i];
    return NULL;
}

struct tok_pre {
    pcre2_code *code[TOK_PRE_STAGES];
    int n_stages;
    pcre2_match_data *match;
    pcre2_match_context *context;
    char *repaired; /* the text to hand out, when the caller's is not UTF-8 */
    char *subject;  /* the text to match, when it has stand-ins */
    size_t capacity;
};

static void describe(int code, char *out, size_t size) {
    if (pcre2_get_error_message(code, (PCRE2_UCHAR *)out, size) < 0)
        (void)snprintf(out, size, "error %d", code);
}

static enum fwd_status compile(struct tok_pre *p, const char *pattern, bool use_jit, struct fwd_error *err) {
    int code;
    PCRE2_SIZE where;
    char why[128];
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &where, NULL);
    if (!re) {
        describe(code, why, sizeof why);
        FWD_FAIL(FWD_EUNAVAILABLE, err, "PCRE2 refuses the pre-tokenizer pattern at %zu: %s", where, why);
    }
    p->code[p->n_stages++] = re;
    /* A machine or policy without executable memory leaves the interpreter, which gives the same matches. */
    if (use_jit)
        (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
    return FWD_OK;
}

enum fwd_status tok_pre_open(struct tok_pre **out, const struct tok_pre_kind *kind, bool use_jit,
                             struct fwd_error *err) {
    struct tok_pre *p = fwd_calloc(1, sizeof *p);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "no memory for a pre-tokenizer");
    enum fwd_status status = FWD_OK;
    for (int i = 0; i < TOK_PRE_STAGES && kind->pattern[i] && status == FWD_OK; i++)
        status = compile(p, kind->pattern[i], use_jit, err);
    if (status == FWD_OK) {
        p->match = pcre2_match_data_create(1, NULL);
        p->context = pcre2_match_context_create(NULL);
        if (!p->match || !p->context)
            status = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for PCRE2's match data");
        else /* backtracking is over one repeated class at a time, so the work stays proportional to the text */
            (void)pcre2_set_match_limit(p->context, UINT32_MAX);
    }
    if (status != FWD_OK) {
        tok_pre_close(p);
        return status;
    }
    *out = p;
    return FWD_OK;
}

void tok_pre_close(struct tok_pre *p) {
    if (!p)
        return;
    for (int i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->code[i]);
    pcre2_match_data_free(p->match);
    pcre2_match_context_free(p->context);
    fwd_free(p->repaired);
    fwd_free(p->subject);
    fwd_free(p);
}

/* ---- repair ---------------------------------------------------------------------------------------------------------
 */
/* Fills repaired, the text to hand out, and subject, the text to match: stand-ins keep the two of one length. */
static enum fwd_status repair(struct tok_pre *p, const char *text, size_t len, size_t *n_out, struct fwd_error *err) {
    size_t need = 3 * len; /* one bad byte becomes three */
    if (need > p->capacity) {
        fwd_free(p->repaired);
        fwd_free(p->subject);
        p->repaired = fwd_alloc(need, 1);
        p->subject = fwd_alloc(need, 1);
        p->capacity = p->repaired && p->subject ? need : 0;
        FWD_FAIL_IF(!p->capacity, FWD_ENOMEM, err, "no memory to repair %zu bytes that are not UTF-8", len);
    }
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t c;
        i += tok_utf8_read(text + i, len - i, &c);
        (void)tok_utf8_write(p->subject + n, tok_utf8_stand_in(c));
        n += tok_utf8_write(p->repaired + n, c);
    }
    *n_out = n;
    return FWD_OK;
}

/* ---- splitting --------------------------------------------------------------------------------------------------- */
struct split {
    struct tok_pre *p;
    const char *subject, *text; /* of equal length */
    tok_word_fn *fn;
    void *ud;
};

static enum fwd_status split_stage(const struct split *s, int stage, size_t start, size_t end, struct fwd_error *err);

static enum fwd_status hand_on(const struct split *s, int stage, size_t start, size_t end, struct fwd_error *err) {
    if (start == end)
        return FWD_OK;
    if (stage + 1 < s->p->n_stages)
        return split_stage(s, stage + 1, start, end, err);
    return s->fn(s->ud, s->text + start, end - start, err);
}

/* Matches and the gaps between them are the pieces. */
static enum fwd_status split_stage(const struct split *s, int stage, size_t start, size_t end, struct fwd_error *err) {
    struct tok_pre *p = s->p;
    PCRE2_SPTR subject = (PCRE2_SPTR)s->subject + start;
    size_t len = end - start, done = 0;
    while (done < len) {
        int rc = pcre2_match(p->code[stage], subject, len, done, PCRE2_NO_UTF_CHECK, p->match, p->context);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            char why[128];
            describe(rc, why, sizeof why);
            FWD_FAIL(FWD_EUNAVAILABLE, err, "the pre-tokenizer stopped at byte %zu of %zu: %s", start + done, end, why);
        }
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(p->match);
        size_t from = found[0], to = found[1];
        FWD_FAIL_IF(to <= done || from < done, FWD_EUNAVAILABLE, err,
                    "the pre-tokenizer matched nothing at byte %zu of %zu", start + done, end);
        FWD_TRY(hand_on(s, stage, start + done, start + from, err));
        FWD_TRY(hand_on(s, stage, start + from, start + to, err));
        done = to;
    }
    return hand_on(s, stage, start + done, end, err);
}

enum fwd_status tok_pre_split(struct tok_pre *p, const char *text, size_t len, tok_word_fn *fn, void *ud,
                              struct fwd_error *err) {
    struct split s = {.p = p, .subject = text, .text = text, .fn = fn, .ud = ud};
    if (!tok_utf8_is_plain(text, len)) {
        FWD_TRY(repair(p, text, len, &len, err));
        s.subject = p->subject;
        s.text = p->repaired;
    }
    return len ? split_stage(&s, 0, 0, len, err) : FWD_OK;
}
