/* harness/run/run_state.h: what the parts of a run share. Internal to harness/run and harness/localise. */
#ifndef HARNESS_RUN_RUN_STATE_H
#define HARNESS_RUN_RUN_STATE_H

#include "fault/fault_set.h"
#include "report/sha256.h"
#include "run/probe.h"
#include "run/run.h"
#include "spec/evidence.h"
#include "tap/store.h"

/* The candidate's classes of ops, as contracts and hypotheses name them. */
enum par_op_class {
    PAR_CLASS_EMBED,
    PAR_CLASS_NORM,
    PAR_CLASS_ACT_QUANT,
    PAR_CLASS_MATMUL,
    PAR_CLASS_HEAD,
    PAR_CLASS_ROPE,
    PAR_CLASS_KV,
    PAR_CLASS_ATTENTION,
    PAR_CLASS_SWIGLU,
    PAR_CLASS_RESIDUAL,
    PAR_CLASS_COUNT
};
const char *par_class_name(enum par_op_class c);
enum par_op_class par_class_of(enum fwd_op op);

/* One more pass of the candidate, in which something was changed. */
struct par_pass {
    uint64_t logits_hash;
    bool same_bits; /* as the base run's, at the positions looked at */
    int n_logits;   /* these positions; 0: all of the run's */
    int n_accused;  /* op rows DIVERGED or NONFINITE */
    int n_accused_of[PAR_CLASS_COUNT];
    double distance;      /* largest over positions of the logits' centred distance / spread, NaN without spread */
    double distance_last; /* relative L2 at the last position */
    double distance_last_base;
    /* What of the distances to the reference lies beyond the spread, summed over the positions looked at; and of the
     * base run's at the same positions. Logits that are not finite count as 10. */
    double excess, excess_base;
};

struct par_run {
    const struct par_run_options *o;
    struct par_fault_set planted; /* of o */
    struct par_report *report;
    struct par_figures *figures;
    struct par_text *text;
    struct par_spec_model *spec, *source; /* source: NULL unless the unquantised model was given */
    struct fwd_pool *pool;                /* the harness's own: judging, metrics */
    int32_t *ids;
    int n_ids, n_prompt;
    int64_t n_vocab;
    uint8_t *want; /* [n_ids] positions whose logits are kept */
    int n_want;
    int32_t *want_pos;                             /* [n_want] */
    float *logits_ref, *logits_cand, *logits_work; /* [n_want][n_vocab] */
    double *spread_flip;                           /* [n_want] of max_j(e_j - e_1), see run_spread.c */
    double *spread_distance;                       /* [n_want] of the centred relative L2 */
    double *price;                                 /* [n_want] mean distance of the ensemble's runs to the reference */
    double *floor;                                 /* [n_want] largest distance between two runs of the ensemble */
    double *f64_ref, *f64_cand;                    /* [n_want] distances to path f64; NaN: not run */
    int n_spread;                                  /* ensemble runs done */
    int32_t *greedy;                               /* [n_decode + 1] the candidate's own choices */
    uint64_t *greedy_hash;     /* [n_decode + 1] of the logits that chose them, in a session as new */
    struct par_store *store;   /* the reference's taps */
    struct par_report_op *ops; /* report rows, one per (op, layer) */
    int n_ops;
    uint64_t base_hash;
    int n_accused_ref, n_accused_cand;
    const char *config_difference; /* "norm_eps: file says 1e-06, engine has 1e-05", or NULL */
    const char *weight_difference; /* "3 weights as bound are not the file's, the first is ...", or NULL */
    struct par_evidence_set evidence_ref, evidence_cand;
    struct par_worst worst; /* of the candidate's worst accused row, for sampling later passes */
    enum fwd_op worst_op;
    int worst_layer;
    double n_views, n_views_on_device; /* tap views of all judged passes, and those not in host memory */
    struct par_sha256_job *sha;        /* of the model, begun with the run */
    bool diverged;                     /* an op is accused, or the logits are outside the spread */
    double seconds[16];                /* by phase, for the receipt */
};

/* Accused (run/probe.h), or an output so degenerate (constant, mostly zero) that it counts as mistrusted: worth a name
 * either way.
 */
bool par_row_suspect(const struct par_op_row *row);
double par_seconds(void); /* monotonic */
void par_run_progress(const struct par_run *r, const char *what, int64_t done, int64_t total);

/* Knobs of the candidate for this run; later ones change a copy. */
struct fwd_knobs par_run_knobs(struct par_run *r);
struct fwd_knobs par_run_reference_knobs(struct par_run *r);
/* Plants in an open session what belongs in one of its role. */
enum fwd_status par_run_plant_faults(struct par_run *r, enum par_fault_role role, const struct fwd_path *path,
                                     struct fwd_session *session, struct fwd_error *err);
/* Only what every path shares: for the paths that decide between the two sides. */
enum fwd_status par_run_plant_shared(const struct par_run *r, const struct fwd_path *path, struct fwd_session *session,
                                     struct fwd_error *err);
/* Opens the candidate with the faults planted. */
enum fwd_status par_run_open_candidate(struct par_run *r, const struct fwd_knobs *knobs, struct fwd_session **session,
                                       struct fwd_error *err);
/* Relative L2 of the two rows after each lost its mean: what softmax cannot see is not counted. */
double par_centred_distance(const float *ref, const float *got, int64_t n);

/* run_pass.c */
enum fwd_status par_run_reference(struct par_run *r, struct fwd_error *err);
enum fwd_status par_run_candidate(struct par_run *r, struct fwd_session *session, struct fwd_error *err);
/* Judges one more pass of an open candidate by a schedule, on a sample around the worst element; logits to logits_work.
 */
enum fwd_status par_run_rejudge(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                                struct par_pass *out, struct fwd_error *err);
/* The same without a judge. */
enum fwd_status par_run_relook(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                               struct par_pass *out, struct fwd_error *err);
/* Logits only. */
enum fwd_status par_run_logits(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                               float *logits, uint64_t *hash, struct fwd_error *err);

/* run_prove.c: taps are neutral, runs repeat: in this session, after another sequence, in a fresh process. */
enum fwd_status par_run_prove(struct par_run *r, struct fwd_session *session, struct fwd_error *err);
/* A longer, different sequence through both slots: what a stale state would keep. */
enum fwd_status par_run_dirty_slots(struct par_run *r, struct fwd_session *session, struct fwd_error *err);
/* run_adjudicate.c: both sides' logits against path f64. */
enum fwd_status par_run_adjudicate(struct par_run *r, struct fwd_error *err);
/* run_spread.c. cand: the open candidate, for what it declares. */
enum fwd_status par_run_spread(struct par_run *r, const struct fwd_session *cand, struct fwd_error *err);
/* run_arms.c */
enum fwd_status par_run_arms_in_session(struct par_run *r, struct fwd_session *session, struct fwd_error *err);
/* run_routes.c. base: the candidate's session where its path shares weights, else NULL. */
enum fwd_status par_run_arms_reopened(struct par_run *r, const struct fwd_session *base, struct fwd_error *err);
struct par_run_arm {
    const char *id, *hypothesis, *what, *option;
    bool same_bits; /* promised */
    bool route;     /* the same op by other code: variant, threads, launches, form of the head */
};
/* One flipped knob of an open session, into the arms table: judged when an op of the base run is accused, else only
 * hashed. */
enum fwd_status par_run_arm(struct par_run *r, struct fwd_session *session, const struct par_run_arm *arm,
                            enum par_schedule schedule, int chunk, struct fwd_error *err);
/* One that could not run, and why. */
void par_run_arm_untested(struct par_run *r, const struct par_run_arm *arm, const char *why);
/* run_findings.c: where and why, for the accused ops of both sides. */
enum fwd_status par_run_findings(struct par_run *r, struct fwd_error *err);
/* run_cases.c: reproducers, into o->cases_dir. No session may be open. */
enum fwd_status par_run_cases(struct par_run *r, struct fwd_error *err);
/* run_report.c */
void par_run_add_proof(struct par_run *r, const char *name, enum par_verdict verdict, const char *value);
/* Its configuration beside the file's, its variants, and its weights as bound. */
void par_run_record_candidate(struct par_run *r, struct fwd_session *session);
enum fwd_status par_run_fill_report(struct par_run *r, struct fwd_error *err);
void par_run_figures(struct par_run *r);
/* run_page.c: the verdict and the first page, when all is measured. */
void par_run_first_page(struct par_run *r);
/* A figure that was measured and is a number, else `otherwise`. */
double par_run_figure(const struct par_run *r, const char *name, double otherwise);

#endif
