/* harness/report/sha256.c: see sha256.h. */
#include "report/sha256.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static enum fwd_status add_file(EVP_MD_CTX *ctx, const char *path, unsigned char *buffer, size_t n,
                                struct fwd_error *err) {
    FILE *f = fopen(path, "rb");
    FWD_FAIL_IF(!f, FWD_EIO, err, "%s: %s", path, strerror(errno));
    size_t got;
    int ok = 1;
    while (ok && (got = fread(buffer, 1, n, f)) > 0)
        ok = EVP_DigestUpdate(ctx, buffer, got);
    ok = ok && !ferror(f);
    (void)fclose(f);
    FWD_FAIL_IF(!ok, FWD_EIO, err, "%s: could not be read to its end for its hash", path);
    return FWD_OK;
}

enum fwd_status par_sha256_model(const struct fwd_gguf *file, char out[65], struct fwd_error *err) {
    enum { BUFFER = 1 << 20 };
    unsigned char digest[EVP_MAX_MD_SIZE], *buffer = fwd_alloc(BUFFER, 1);
    unsigned int n = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    enum fwd_status rc = FWD_OK;
    if (!buffer || !ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL))
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "sha256: no memory");
    for (int i = 0; rc == FWD_OK && i < fwd_gguf_n_splits(file); i++)
        rc = add_file(ctx, fwd_gguf_split_path(file, i), buffer, BUFFER, err);
    if (rc == FWD_OK && !EVP_DigestFinal_ex(ctx, digest, &n))
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "sha256: the digest failed");
    for (unsigned int i = 0; rc == FWD_OK && i < n && i < 32; i++)
        (void)snprintf(out + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(ctx);
    fwd_free(buffer);
    return rc;
}

struct par_sha256_job {
    const struct fwd_gguf *file;
    pthread_t thread;
    char out[65];
    enum fwd_status rc;
    struct fwd_error err;
};

static void *run_job(void *ud) {
    struct par_sha256_job *job = ud;
    job->rc = par_sha256_model(job->file, job->out, &job->err);
    return NULL;
}

enum fwd_status par_sha256_start(struct par_sha256_job **out, const struct fwd_gguf *file, struct fwd_error *err) {
    struct par_sha256_job *job = fwd_calloc(1, sizeof *job);
    FWD_FAIL_IF(!job, FWD_ENOMEM, err, "sha256: no memory");
    job->file = file;
    int e = pthread_create(&job->thread, NULL, run_job, job);
    if (e != 0) {
        fwd_free(job);
        FWD_FAIL(FWD_ENOMEM, err, "sha256: no thread: %s", strerror(e));
    }
    *out = job;
    return FWD_OK;
}

enum fwd_status par_sha256_finish(struct par_sha256_job *job, char out[65], struct fwd_error *err) {
    FWD_FAIL_IF(!job, FWD_ESTATE, err, "sha256: no hash was begun");
    (void)pthread_join(job->thread, NULL);
    enum fwd_status rc = job->rc;
    if (rc != FWD_OK && err)
        *err = job->err;
    if (rc == FWD_OK && out)
        memcpy(out, job->out, sizeof job->out);
    fwd_free(job);
    return rc;
}
