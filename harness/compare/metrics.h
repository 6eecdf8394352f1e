/* harness/compare/metrics.h: how far two float arrays are apart, as information. All sums in F64.
 * NaN and infinity first: masks and signs are compared, the statistics are over elements finite on both sides. */
#ifndef HARNESS_COMPARE_METRICS_H
#define HARNESS_COMPARE_METRICS_H

#include <stdint.h>

struct par_metrics {
    uint64_t n, n_nan_ref, n_nan_got, n_inf_ref, n_inf_got, n_nonfinite_mismatch;
    double max_abs; /* |got - ref| */
    int64_t max_at; /* its index; -1: nothing finite was compared */
    double max_ref, max_got;
    double rel_l2, nmse; /* sum d^2 / sum ref^2 (NaN when the reference is all zero and the other is not) */
    double cosine;
    double p50, p99, p999; /* quantiles of |got - ref|, to 1/64 octave */
};
/* Adds n elements to an accumulator; `base` is the index of ref[0] in the whole. */
struct par_metrics_acc;
struct par_metrics_acc *par_metrics_begin(void); /* NULL: no memory */
void par_metrics_add(struct par_metrics_acc *acc, const float *ref, const float *got, int64_t n, int64_t base);
void par_metrics_add_f64(struct par_metrics_acc *acc, const double *ref, const double *got, int64_t n, int64_t base);
/* As if what went into `from` had gone into acc; `from` is then as new. */
void par_metrics_take(struct par_metrics_acc *acc, struct par_metrics_acc *from);
void par_metrics_end(const struct par_metrics_acc *acc, struct par_metrics *out);
void par_metrics_free(struct par_metrics_acc *acc);

struct par_logit_metrics {
    int32_t top_ref, top_got;      /* argmax, lowest id on a tie; -1: all NaN */
    double margin_ref, margin_got; /* top-1 minus top-2 */
    double gap_in_ref;             /* reference: top_ref's logit minus top_got's */
    double kl;           /* KL(ref || got) in nats, log-softmax in F64; NaN with a NaN or +infinity on a side */
    int topk_overlap, k; /* of the k best (10; at most 64) */
    struct par_metrics diff;
};
void par_logits_compare(const float *ref, const float *got, int64_t n_vocab, int k, struct par_logit_metrics *out);

#endif
