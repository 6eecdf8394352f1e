/* Sets in words. The rules are tried from the most to the least definite; one that fits only part of the set says how
 * many of its members are really there. */
#include "localise/index_set.h"

#include <stdio.h>

enum { FEW = 4 }; /* members that are listed one by one, and fewer than a progression needs */

static const char *ordinal_suffix(int64_t n) {
    if (n % 100 >= 11 && n % 100 <= 13)
        return "th";
    return n % 10 == 1 ? "st" : n % 10 == 2 ? "nd" : n % 10 == 3 ? "rd" : "th";
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t c = a % b;
        a = b;
        b = c;
    }
    return a;
}

/* Judged indices from first to last in steps. */
static int64_t count_judged(const uint8_t *marks, int64_t first, int64_t last, int64_t step) {
    int64_t n = 0;
    for (int64_t i = first; i <= last; i += step)
        n += marks[i] != 0;
    return n;
}

static int64_t common_step(const uint8_t *marks, const struct par_index_set *s) {
    int64_t g = 0;
    for (int64_t i = s->first + 1; i <= s->last; i++)
        if (marks[i] == 2)
            g = gcd(i - s->first, g);
    return g;
}

static void measure(const uint8_t *marks, int64_t n, struct par_index_set *s) {
    *s = (struct par_index_set){.first = -1, .last = -1};
    for (int64_t i = 0; i < n; i++) {
        s->n_judged += marks[i] != 0;
        if (marks[i] != 2)
            continue;
        s->first = s->first < 0 ? i : s->first;
        s->last = i;
        s->n++;
    }
    s->all = s->n > 0 && s->n == s->n_judged;
}

static void list_members(const uint8_t *marks, const struct par_index_set *s, const char *noun, char *text,
                         size_t size) {
    int at = snprintf(text, size, "%ss", noun);
    int64_t left = s->n;
    for (int64_t i = s->first; i <= s->last && at > 0 && (size_t)at < size; i++)
        if (marks[i] == 2) {
            const char *before = left == s->n ? " " : left == 1 ? " and " : ", ";
            at += snprintf(text + at, size - (size_t)at, "%s%lld", before, (long long)i);
            left--;
        }
}

static void describe_run(const uint8_t *marks, int64_t n, const char *noun, bool open_end,
                         const struct par_index_set *s, char *text, size_t size) {
    bool to_end = count_judged(marks, s->last + 1, n - 1, 1) == 0;
    bool from_start = s->first == 0 || count_judged(marks, 0, s->first - 1, 1) == 0;
    if (to_end && open_end)
        (void)snprintf(text, size, "%ss >= %lld", noun, (long long)s->first);
    else if (from_start && open_end)
        (void)snprintf(text, size, "%ss <= %lld", noun, (long long)s->last);
    else if (to_end && 2 * s->n <= s->n_judged)
        (void)snprintf(text, size, "the last %lld %ss", (long long)s->n, noun);
    else
        (void)snprintf(text, size, "%ss %lld-%lld", noun, (long long)s->first, (long long)s->last);
}

/* "every 16th row from 3": most members of a progression are there, and nothing else. */
static bool describe_steps(const uint8_t *marks, int64_t n, const char *noun, const struct par_index_set *s, char *text,
                           size_t size) {
    int64_t step = common_step(marks, s);
    if (s->n < FEW || step < 2)
        return false;
    int64_t expected = count_judged(marks, s->first, s->last, step);
    if (4 * s->n < 3 * expected)
        return false;
    char to[32] = "", part[48] = "";
    if (count_judged(marks, s->last + step, n - 1, step) > 0)
        (void)snprintf(to, sizeof to, " to %lld", (long long)s->last);
    if (s->n < expected)
        (void)snprintf(part, sizeof part, " (%lld of %lld)", (long long)s->n, (long long)expected);
    (void)snprintf(text, size, "every %lld%s %s from %lld%s%s", (long long)step, ordinal_suffix(step), noun,
                   (long long)s->first, to, part);
    return true;
}

void par_index_set_describe(const uint8_t *marks, int64_t n, const char *noun, bool open_end, struct par_index_set *out,
                            char *text, size_t text_bytes) {
    measure(marks, n, out);
    const struct par_index_set *s = out;
    if (s->n == 0) {
        (void)snprintf(text, text_bytes, "no %s", noun);
        return;
    }
    int64_t span = count_judged(marks, s->first, s->last, 1);
    if (s->all && s->n > 1)
        (void)snprintf(text, text_bytes, "every %s", noun);
    else if (s->n == 1)
        (void)snprintf(text, text_bytes, "%s %lld", noun, (long long)s->first);
    else if (s->n == span)
        describe_run(marks, n, noun, open_end, s, text, text_bytes);
    else if (describe_steps(marks, n, noun, s, text, text_bytes))
        return;
    else if (s->n <= FEW)
        list_members(marks, s, noun, text, text_bytes);
    else if (4 * s->n >= 3 * span && 10 * span < 9 * s->n_judged)
        (void)snprintf(text, text_bytes, "%ss %lld-%lld (%lld of %lld)", noun, (long long)s->first, (long long)s->last,
                       (long long)s->n, (long long)span);
    else
        (void)snprintf(text, text_bytes, "%lld of %lld %ss from %lld to %lld", (long long)s->n, (long long)s->n_judged,
                       noun, (long long)s->first, (long long)s->last);
}
