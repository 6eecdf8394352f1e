/* harness/cli/options.h: command lines as tables, and the options that several commands share. */
#ifndef HARNESS_CLI_OPTIONS_H
#define HARNESS_CLI_OPTIONS_H

#include "engine.h"
#include "run/drive.h"

#include <stdio.h>

enum par_opt_kind { PAR_OPT_FLAG, PAR_OPT_STRING, PAR_OPT_INT };

struct par_opt {
    const char *name; /* "threads": --threads N or --threads=N */
    char letter;      /* 'p': -p TEXT; 0: none */
    enum par_opt_kind kind;
    void *out;         /* bool *, const char **, int * */
    int min, max;      /* of an int, both included */
    const char *value; /* "N" in the help */
    const char *help;
};

/* Fills the outs; words that are no options go to positional[0 .. *n_positional - 1], at most max_positional.
 * FWD_EINPUT names the word. *help becomes true for --help or -h (then nothing else is checked). */
enum fwd_status par_options_parse(const struct par_opt *opts, int n_opts, int argc, char **argv,
                                  const char **positional, int max_positional, int *n_positional, bool *help,
                                  struct fwd_error *err);
void par_options_help(FILE *out, const char *usage, const char *what, const struct par_opt *opts, int n_opts);

/* What run, trace and their like have in common: the model, the ids, the knobs. Zero it, set other defaults, parse. */
struct par_common {
    const char *model;
    const char *prompt, *prompt_file, *tokens; /* one of them, or none: the built-in default prompt */
    bool chat;
    int n_decode; /* teacher-forced decode steps after the prompt; -1: the command's default */
    int threads;
    const char *kv, *head, *caps, *force, *act;
    const char *schedule;
    int chunk;
    bool scribble, no_overlap, fp8_fast;
    int n_ctx;
};
enum { PAR_COMMON_OPTS = 17 };
/* Writes PAR_COMMON_OPTS rows. */
void par_common_opts(struct par_common *c, struct par_opt *rows);
/* Knobs of a session that has room for n_ids positions; strings point into c. */
enum fwd_status par_common_knobs(const struct par_common *c, int n_ids, struct fwd_knobs *knobs,
                                 enum par_schedule *schedule, struct fwd_error *err);

/* MODEL as typed (a path, or a registered name whose file is in the user's cache) to the path of its file. */
enum fwd_status par_resolve_model(const char *model, char *path, size_t n, struct fwd_error *err);

/* "1,2,3" or "1 2 3" into *ids (fwd_free), in the order given; option is the name in messages. */
enum fwd_status par_parse_ids(const char *option, const char *text, int32_t **ids, int *n_ids, struct fwd_error *err);

/* "all", "last" or "sample:N" into what par_run_options calls every; NULL: 0. */
enum fwd_status par_parse_judge(const char *option, const char *text, int *every, struct fwd_error *err);

/* A model file opened, and the ids that every path gets. */
struct par_input {
    char path[4096];
    struct fwd_gguf *file;
    struct fwd_tokenizer *tokenizer; /* NULL when ids were given and the file has no usable tokenizer */
    char *text;                      /* the prompt as encoded (after the chat form), or NULL with --tokens */
    size_t text_len;
    int32_t *ids;
    int n_ids;
};
enum fwd_status par_input_open(struct par_input *in, const struct par_common *c, struct fwd_error *err);
void par_input_close(struct par_input *in);

/* A path by name, or the names there are. */
enum fwd_status par_find_path(const char *name, const struct fwd_path **out, struct fwd_error *err);
/* The ids of the committed text on which a reference's loss must be plausible (fwd_free); 0 without a tokenizer. */
enum fwd_status par_loss_ids(const struct par_input *in, int32_t **ids, int *n, struct fwd_error *err);
/* Tries to write in the folder, or where it would be made: an unwritable one should be known before minutes of work,
 * not after. Makes nothing. An old verdict.json is removed: it must not speak for a run that was refused. NULL: no
 * folder. */
enum fwd_status par_check_report_dir(const char *dir, struct fwd_error *err);

/* Where a file or folder that the program comes with (contracts/hypotheses) is: in the current folder, where `make
 * install` puts it beside the program, or in the tree that the program was built in. False: nowhere. */
bool par_data_path(const char *name, char *path, size_t n);

/* Says an error on stderr as "parity: message" and returns the exit code of its class: 2 for FWD_EINPUT (the command
 * line makes no sense, whatever the files hold), 4 for every other. */
int par_complain(const struct fwd_error *err);

/* The first of a list "a,b,c" into name, and where the rest begins; FWD_EINPUT for one that is too long or empty. */
enum fwd_status par_next_name(const char **list, char name[64], struct fwd_error *err);

/* Progress on stderr when it is a terminal; done < 0 clears the line. */
void par_progress(const char *what, int64_t done, int64_t total);

#endif
