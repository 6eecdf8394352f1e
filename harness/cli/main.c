/* harness/cli/main.c: the program: one row per subcommand. */
#include "cli/cmd.h"

#include <stdio.h>
#include <string.h>

enum { EXIT_USAGE = 2, EXIT_REFUSED = 4 };

struct command {
    const char *name;
    int (*fn)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"run", cmd_run, "compare two paths on a model: judge every op, say bug or noise, which side, which op"},
    {"trace", cmd_trace, "one path's taps in a capture file"},
    {"diff", cmd_diff, "two captures side by side"},
    {"judge", cmd_judge, "a capture of any engine: every op that it shows against the spec"},
    {"replay", cmd_replay, "a recorded failure again, on its path or any other"},
    {"tokenize", cmd_tokenize, "the token ids of a text, as every path gets them"},
    {"generate", cmd_generate, "greedy text from one path, by the schedule that a judged run uses"},
    {"selftest", cmd_selftest, "plant faults, run clean: how many are found, named, explained, and false alarms"},
    {"bench", cmd_bench, "tokens per second of a path, against the machine's measured limits"},
    {"fixture", cmd_fixture, "make a model from a seed, cut one down, list and find registered ones"},
    {"contract", cmd_contract, "falsification tests as data: list, validate, or run them on a model"},
    {"inspect", cmd_inspect, "what is in a model file"},
    {"paths", cmd_paths, "what can run on this machine"},
};

static void list(FILE *out) {
    (void)fprintf(out, "parity: do two forward paths of a language model compute the same thing, and if not, why?\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        (void)fprintf(out, "  parity %-10s %s\n", commands[i].name, commands[i].help);
    (void)fprintf(out, "\n`parity COMMAND --help` tells the rest. Exit:\n"
                       "  0  held, or done\n"
                       "  1  diverged\n"
                       "  2  usage: the command line makes no sense, whatever the files hold\n"
                       "  3  unmeasured or mistrusted\n"
                       "  4  refused: a file that is missing, corrupt or of another kind, ids or a prompt that the\n"
                       "     model has no room for, an output that cannot be written, or no memory\n"
                       "  5  non-finite\n");
}

/* A result that did not reach its reader is no result. */
static int finish(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    (void)fprintf(stderr, "parity: standard output: cannot be written (a full disk?)\n");
    return EXIT_REFUSED;
}

int main(int argc, char **argv) {
    if (argc >= 2 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        list(stdout);
        return finish(0);
    }
    for (size_t i = 0; argc >= 2 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return finish(commands[i].fn(argc - 1, argv + 1));
    if (argc >= 2)
        (void)fprintf(stderr, "parity: \"%s\" is no command\n\n", argv[1]);
    list(stderr);
    return EXIT_USAGE;
}
