/* harness/contract/contract.h: contracts: falsification tests as data, with the field names of the `pv` schema.
 *
 * A file is read strictly: an unknown key, a missing or empty field, an id seen before (in the file, or in another one
 * of the set), more obligations than tests are refused with file and line. Two keys are ours: `check`, a condition on
 * figures (figures.h), and `measure`, which says on what run the condition may be looked at. Both are data: a contract
 * never makes the program run a command, and the `test` text is for people. */
#ifndef HARNESS_CONTRACT_CONTRACT_H
#define HARNESS_CONTRACT_CONTRACT_H

#include "contract/figures.h"

enum { PAR_MEASURE_MAX_IDS = 512, PAR_MEASURE_MAX_TEXTS = 8 };

/* What a run must be, or what a run is. NULL, 0 ids and decode -1 mean: any. */
struct par_measure {
    const char *model_sha256;
    const char *prompt; /* the user's text, before the chat form; only with ids, which say what it must encode to */
    bool chat;
    int32_t ids[PAR_MEASURE_MAX_IDS]; /* the prompt */
    int n_ids;
    int decode;             /* teacher-forced steps: one less than the greedy tokens */
    const char *path, *ref; /* candidate and reference */
    const char *schedule, *head, *kv;
    bool nocache_arm; /* the arm schedule_nocache is wanted: a request, not a property that is compared */
    const char *expect_text[PAR_MEASURE_MAX_TEXTS]; /* any of them occurs in the candidate's greedy text */
    int n_expect;
};

struct par_contract_test { /* a falsification test, or an equation that has a check */
    const char *id, *rule, *prediction, *if_fails;
    const struct cJSON *check; /* NULL: nothing to evaluate, the row is UNMEASURED */
    struct par_measure measure;
    bool is_equation;
};

struct par_contract {
    struct par_json *doc; /* owns every string */
    char name[96];        /* the file's name without .json */
    const char *version, *kind, *status;
    int version_major;
    int n_equations, n_obligations, n_falsifications, n_harnesses;
    struct par_contract_test *tests; /* falsification tests in file order, then equations with a check */
    int n_tests;
};

struct par_contract_set {
    struct par_contract *contracts;
    int n;
};

/* One file, or its text; freed with par_contract_free. *out is zero after an error. */
enum fwd_status par_contract_read(struct par_contract *out, const char *path, struct fwd_error *err);
enum fwd_status par_contract_parse(struct par_contract *out, const char *text, size_t n, const char *file,
                                   struct fwd_error *err);
void par_contract_free(struct par_contract *c);

/* Every file of every pattern (as the shell's; a plain path is one), in order of names within a pattern. A pattern
 * without a file is FWD_ENOTFOUND; an id of two contracts is refused with the place of both. */
enum fwd_status par_contracts_load(struct par_contract_set *set, const char *const *patterns, int n_patterns,
                                   struct fwd_error *err);
/* Does any test ask for the arm schedule_nocache? */
bool par_contracts_want_nocache(const struct par_contract_set *set);
void par_contracts_free(struct par_contract_set *set);

/* The keys that an object may have, NULL-terminated: "contract", "metadata", "equation", "proof_obligation",
 * "falsification_test", "kani_harness", "qa_gate", "verification_summary", "measure"; name i is filled, false past the
 * end. So that the JSON schema can be held against the reader. */
bool par_contract_key(const char *object, int i, const char **name, bool *required);

/* False when `have` is not the run that `want` asks for; then why: "this run has another model: sha256 ..., expected
 * ...". */
bool par_measure_fits(const struct par_measure *want, const struct par_measure *have, char *why, size_t n);

#endif
