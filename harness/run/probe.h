/* harness/run/probe.h: one judged pass of one path over known ids, cheap enough to be made by the hundred: the session
 * stays open while faults are planted in it and taken out again, and what a pass leaves is small and the caller's. The
 * self-test is made of probes. */
#ifndef HARNESS_RUN_PROBE_H
#define HARNESS_RUN_PROBE_H

#include "fault/fault.h"
#include "run/drive.h"
#include "run/tool_gates.h"
#include "spec/evidence.h"
#include "tap/store.h"

/* What all probes of a session have in common. file, spec and pool must outlive it. */
struct par_prober_options {
    const struct fwd_gguf *file;
    const struct par_spec_model *spec;
    struct fwd_pool *pool; /* the judge's */
    const struct fwd_path *path;
    enum par_fault_role role;
    struct fwd_knobs knobs;  /* without hooks; n_ctx one longer than the longest sequence */
    struct par_fault *hooks; /* NULL, or a placed fault, shared or in the launch plan, whose hooks see it open */
};
struct par_prober;
enum fwd_status par_prober_open(struct par_prober **out, const struct par_prober_options *options,
                                struct fwd_error *err);
void par_prober_close(struct par_prober *p);
/* Ways in which the open session disagrees with the file: configuration lines that differ plus, with `weights`, weights
 * whose bytes as bound are not the file's. The first is said in text [n]. */
int par_prober_differences(struct par_prober *p, bool weights, char *text, size_t n);

struct par_probe_args {
    const int32_t *ids; /* prompt, then the ids of the decode steps */
    int n_prompt, n_ids;
    enum par_schedule schedule;
    int chunk;
    struct par_fault *fault; /* placed; planted for this pass when its role is the session's; or NULL */
    size_t evidence_bytes;
    bool dirty_first; /* a longer, other sequence goes before the judged one, the fault planted */
    bool repeat;      /* also without taps, and again after a longer sequence (only while no op is accused) */
    const struct par_probe *clean; /* the same pass without the fault: what still has its bits, and was made from taps
                                    * that have, is not judged again. NULL: everything is */
    int reach;                     /* of layers above the planted one judge so many; -1: all */
    struct par_store *keep;        /* taps go here, or NULL */
    struct par_tool_gates *own;    /* held beside the clean run of the same path, or NULL */
    struct par_tool_gates *other;  /* held beside the other path, or NULL */
};

struct par_probe {
    struct par_op_row *rows; /* [n_rows] as par_judge_rows, a copy */
    int n_rows;
    struct par_evidence_set evidence;
    int n_layer, n_pos;
    uint64_t *hashes; /* [n_layer + 1][FWD_OP_COUNT][n_pos], see par_probe_hash */
    uint64_t logits_hash;
    uint64_t n_elements; /* judged */
    bool repeated;       /* repeats were made, and: */
    bool same_bits;      /* all of them had the logits of the judged pass */
    /* Where bits differ when the pass is repeated: the first tap in forward order; FWD_OP_COUNT: none was caught. */
    enum fwd_op unstable_op;
    int unstable_layer;
    /* Of the planted op: the largest |faulty - clean| / bound over its elements, clean being what the path's own kernel
     * makes of the same inputs. Cut at PAR_RATIO_CAP; -1: no op was planted, it has no evaluator, or it is a cache. */
    double moved;
};
/* The tap of (op, layer) at a position: a hash of its bits (of a cache: of all rows as they were when the call that
 * ended there ran); 0: no tap came. */
uint64_t par_probe_hash(const struct par_probe *p, enum fwd_op op, int layer, int pos);
/* The first op in forward order, at the lowest position, whose tap differs from the other probe's; false: every tap and
 * the logits have the same bits. op is FWD_OP_COUNT when only the logits differ. */
bool par_probe_first_change(const struct par_probe *a, const struct par_probe *b, enum fwd_op *op, int *layer);
enum fwd_status par_probe_run(struct par_prober *p, const struct par_probe_args *args, struct par_probe *out,
                              struct fwd_error *err);
void par_probe_free(struct par_probe *p);

bool par_row_accused(const struct par_op_row *row);

#endif
