/* engine/test/fuzz_driver.c: the main of every fuzz target.
 *
 *   fuzz_X [--seconds N] [--seed S] [--max-bytes B] FILE_OR_FOLDER...
 *
 * Replays every corpus file, then runs mutations of them until the time is over. All is in-process and nothing is
 * written; mutation i depends on (seed, i, corpus) alone, so the line printed on a crash names the case:
 * `--seed S --only I` runs it again. The sanitizers of MODE=fuzz do the judging. Exit 0, 2 for usage, 3 when there was
 * nothing to run. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    char *path;
    uint8_t *data;
    size_t n_bytes;
};

struct corpus {
    struct input *inputs;
    size_t n, cap;
    size_t max_bytes;
};

/* The iteration while corpus files run as they are. */
#define REPLAY UINT64_MAX

/* What runs now, for the signal handler and the sanitizer's callback. A test program's own state, not a library's. */
static volatile uint64_t now_seed, now_iteration = REPLAY;
static const char *volatile now_path = "";

static void write_text(const char *s) {
    ssize_t ignored = write(STDERR_FILENO, s, strlen(s));
    (void)ignored;
}

static void write_number(uint64_t v) {
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + v % 10);
    while (v /= 10);
    write_text(digits + at);
}

static void report_case(void) {
    write_text("\nfuzz: in ");
    write_text(now_path);
    if (now_iteration != REPLAY) {
        write_text(", mutated: --seed ");
        write_number(now_seed);
        write_text(" --only ");
        write_number(now_iteration);
    }
    write_text("\n");
}

/* Sanitizers call this, where they are linked, before they end the process. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void report_signal(int number) {
    report_case();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* ---- corpus ------------------------------------------------------------------------------------------------------ */

static void *must(void *p) {
    if (!p) {
        (void)fprintf(stderr, "fuzz: no memory\n");
        exit(3);
    }
    return p;
}

static void add_file(struct corpus *c, const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size > c->max_bytes) {
        (void)fprintf(stderr, "fuzz: %s: not read (%s)\n", path,
                      f ? "not a file, or over --max-bytes" : strerror(errno));
        if (f)
            (void)fclose(f);
        return;
    }
    if (c->n == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 32;
        c->inputs = must(realloc(c->inputs, c->cap * sizeof *c->inputs));
    }
    struct input *in = &c->inputs[c->n++];
    in->path = must(strdup(path));
    in->data = must(malloc((size_t)st.st_size + 1));
    in->n_bytes = fread(in->data, 1, (size_t)st.st_size, f);
    (void)fclose(f);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Files and folders below, in the order of their names: the same corpus on every machine. */
static void add_path(struct corpus *c, const char *path, int depth) {
    struct stat st;
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        add_file(c, path);
        return;
    }
    DIR *dir = depth < 8 ? opendir(path) : NULL;
    char **names = NULL;
    size_t n = 0;
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.') {
            names = must(realloc(names, (n + 1) * sizeof *names));
            names[n++] = must(strdup(entry->d_name));
        }
    if (dir)
        (void)closedir(dir);
    if (n)
        qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(path) + strlen(names[i]) + 2;
        char *full = must(malloc(len));
        (void)snprintf(full, len, "%s/%s", path, names[i]);
        add_path(c, full, depth + 1);
        free(full);
        free(names[i]);
    }
    free(names);
}

/* ---- mutation ---------------------------------------------------------------------------------------------------- */

/* Counter-based (splitmix64): draw i of case n of a seed is a function of the three. */
struct draws {
    uint64_t state;
};

static uint64_t draw(struct draws *d) {
    uint64_t z = d->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t draw_below(struct draws *d, size_t n) {
    return n ? (size_t)(draw(d) % n) : 0;
}

/* Positions near the beginning are where structure is: half of the draws fall into the first kilobyte. */
static size_t draw_place(struct draws *d, size_t n) {
    return draw_below(d, draw(d) & 1 && n > 1024 ? 1024 : n);
}

static const uint64_t extremes[] = {
    0,          1,          7,         255,        256,        65535,      INT32_MAX,      1ull << 31,
    UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX, 1ull << 61, UINT64_MAX - 7, 1ull << 40};

struct buffer {
    uint8_t *data;
    size_t n, cap;
};

static void move_tail(struct buffer *b, size_t from, size_t to) {
    if (b->n - from + to <= b->cap) {
        memmove(b->data + to, b->data + from, b->n - from);
        b->n = b->n - from + to;
    }
}

static void mutate_once(struct buffer *b, const struct corpus *c, struct draws *d) {
    static const size_t widths[] = {1, 2, 4, 8};
    size_t at = draw_place(d, b->n), n = 1 + draw_below(d, draw(d) & 1 ? 8 : 256);
    switch (draw_below(d, 8)) {
    case 0: /* one bit */
        if (b->n)
            b->data[at] ^= (uint8_t)(1 << draw_below(d, 8));
        break;
    case 1: /* noise */
        for (size_t i = at; i < b->n && i < at + n; i++)
            b->data[i] = (uint8_t)draw(d);
        break;
    case 2: { /* a field at its extreme, or one off where it was */
        size_t width = widths[draw_below(d, 4)];
        uint64_t v = extremes[draw_below(d, sizeof extremes / sizeof *extremes)];
        if (at + width > b->n)
            break;
        if (draw(d) & 1) {
            memcpy(&v, b->data + at, width);
            v += draw(d) & 1 ? 1 : UINT64_MAX;
        }
        memcpy(b->data + at, &v, width);
        break;
    }
    case 3: /* cut off the end */
        b->n = draw(d) & 1 ? at : b->n - draw_below(d, b->n < 64 ? b->n : 64);
        break;
    case 4: /* take bytes out */
        if (at + n < b->n)
            move_tail(b, at + n, at);
        break;
    case 5: /* repeat bytes */
        if (at + n < b->n)
            move_tail(b, at, at + n);
        break;
    case 6: { /* splice: this head, another's tail */
        const struct input *other = &c->inputs[draw_below(d, c->n)];
        size_t from = draw_place(d, other->n_bytes), len = other->n_bytes - from;
        if (at + len <= b->cap && len) {
            memcpy(b->data + at, other->data + from, len);
            b->n = at + len;
        }
        break;
    }
    default: { /* bytes of another place */
        size_t from = draw_below(d, b->n);
        if (from + n <= b->n && at + n <= b->n)
            memmove(b->data + at, b->data + from, n);
    }
    }
}

/* Runs on a copy exactly as long as the input, so that one byte too far is seen. */
static void run_one(const uint8_t *data, size_t n) {
    uint8_t *exact = must(malloc(n ? n : 1));
    memcpy(exact, data, n);
    (void)LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

static void run_mutation(const struct corpus *c, struct buffer *b, uint64_t seed, uint64_t iteration) {
    struct draws d = {seed * 0xd1342543de82ef95u ^ iteration};
    (void)draw(&d);
    const struct input *base = &c->inputs[draw_below(&d, c->n)];
    now_iteration = iteration;
    now_path = base->path;
    b->n = base->n_bytes;
    memcpy(b->data, base->data, base->n_bytes);
    for (size_t n = 1 + draw_below(&d, draw(&d) & 1 ? 2 : 12); n > 0; n--)
        mutate_once(b, c, &d);
    run_one(b->data, b->n);
}

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t parse_number(const char *text) {
    char *end;
    errno = 0;
    uint64_t v = text && *text ? strtoull(text, &end, 10) : 0;
    if (!text || !*text || *end || errno || *text == '-') {
        (void)fprintf(stderr, "fuzz: \"%s\" is not a number\n", text ? text : "");
        exit(2);
    }
    return v;
}

int main(int argc, char **argv) {
    uint64_t seconds = 10, seed = 1, only = REPLAY, iteration = 0;
    struct corpus c = {.max_bytes = 1u << 20};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--seconds"))
            seconds = parse_number(value), i++;
        else if (!strcmp(argv[i], "--seed"))
            seed = parse_number(value), i++;
        else if (!strcmp(argv[i], "--only"))
            only = parse_number(value), i++;
        else if (!strcmp(argv[i], "--max-bytes"))
            c.max_bytes = (size_t)parse_number(value), i++;
        else if (argv[i][0] == '-')
            return (void)fprintf(stderr, "fuzz: unknown option %s\n", argv[i]), 2;
        else
            add_path(&c, argv[i], 0);
    }
    if (!c.n)
        return (void)fprintf(stderr, "fuzz: no corpus file was read\n"), 3;
    (void)signal(SIGABRT, report_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(report_case); /* their own handlers say more about the other signals */
    } else {
        (void)signal(SIGSEGV, report_signal);
        (void)signal(SIGFPE, report_signal);
        (void)signal(SIGBUS, report_signal);
    }
    now_seed = seed;
    struct buffer b = {.cap = c.max_bytes * 2};
    b.data = must(malloc(b.cap));
    double start = now_s();
    for (size_t i = 0; i < c.n && only == REPLAY; i++) {
        now_path = c.inputs[i].path;
        run_one(c.inputs[i].data, c.inputs[i].n_bytes);
    }
    if (only != REPLAY)
        run_mutation(&c, &b, seed, only);
    else
        while (now_s() - start < (double)seconds)
            for (int i = 0; i < 64; i++)
                run_mutation(&c, &b, seed, iteration++);
    (void)printf("fuzz: %zu corpus files and %llu mutations of them in %.1f s, seed %llu: no crash\n", c.n,
                 (unsigned long long)iteration, now_s() - start, (unsigned long long)seed);
    for (size_t i = 0; i < c.n; i++) {
        free(c.inputs[i].path);
        free(c.inputs[i].data);
    }
    free(c.inputs);
    free(b.data);
    return 0;
}
