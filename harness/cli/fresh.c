#include "cli/fresh.h"

#include "cli/spawn.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SECONDS = 600, MOST_WORDS = 40, ID_CHARACTERS = 12 };

struct words {
    const char *list[MOST_WORDS];
    int n;
};

static void add(struct words *w, const char *option, const char *value) {
    if (!value)
        return;
    w->list[w->n++] = option;
    w->list[w->n++] = value;
}

static void add_flag(struct words *w, const char *option, bool is_set) {
    if (is_set)
        w->list[w->n++] = option;
}

static enum fwd_status read_hashes(const char *text, int n_steps, uint64_t *hashes, int *n, struct fwd_error *err) {
    cJSON *root = text ? cJSON_Parse(text) : NULL;
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "logits_hashes");
    bool found = cJSON_IsArray(list);
    *n = 0;
    for (const cJSON *item = found ? list->child : NULL; item && *n < n_steps; item = item->next)
        hashes[(*n)++] = cJSON_IsString(item) ? strtoull(item->valuestring, NULL, 0) : 0;
    cJSON_Delete(root);
    FWD_FAIL_IF(!found, FWD_ESTATE, err, "a fresh process gave no hashes of its logits");
    return FWD_OK;
}

enum fwd_status par_fresh_hashes(void *ud, int n_steps, uint64_t *hashes, int *n, struct fwd_error *err) {
    const struct par_fresh *f = ud;
    const struct par_common *c = f->common;
    char steps[16], threads[16], chunk[16], ctx[16];
    struct words w = {.list = {"generate", f->in->path}, .n = 2};
    size_t room = (size_t)f->in->n_ids * ID_CHARACTERS + 1, used = 0;
    char *ids = fwd_alloc(room, 1);
    FWD_FAIL_IF(!ids, FWD_ENOMEM, err, "a fresh process: no memory for %d ids", f->in->n_ids);
    for (int i = 0; i < f->in->n_ids; i++)
        used += (size_t)snprintf(ids + used, room - used, "%s%d", i ? "," : "", (int)f->in->ids[i]);
    (void)snprintf(steps, sizeof steps, "%d", n_steps);
    (void)snprintf(threads, sizeof threads, "%d", c->threads);
    (void)snprintf(chunk, sizeof chunk, "%d", c->chunk);
    (void)snprintf(ctx, sizeof ctx, "%d", c->n_ctx);
    add(&w, "--tokens", ids);
    add(&w, "--decode", steps);
    add(&w, "--path", f->path);
    add(&w, "--fault", f->fault);
    add(&w, "--threads", threads);
    add(&w, "--kv", c->kv);
    add(&w, "--head", c->head);
    add(&w, "--caps", c->caps);
    add(&w, "--force", c->force);
    add(&w, "--schedule", c->schedule);
    add(&w, "--chunk", chunk);
    add(&w, "--ctx", c->n_ctx ? ctx : NULL);
    add_flag(&w, "--scribble", c->scribble);
    add_flag(&w, "--no-overlap", c->no_overlap);
    add_flag(&w, "--fp8-fast", c->fp8_fast);
    w.list[w.n++] = "--json";
    w.list[w.n] = NULL;
    struct par_spawned s;
    enum fwd_status rc = par_spawn_self(w.list, MOST_SECONDS, &s, err);
    if (rc == FWD_OK) {
        rc = read_hashes(s.out, n_steps, hashes, n, err);
        if (rc == FWD_OK && s.exit_code != 0 && s.exit_code != 5)
            rc = fwd_fail(err, FWD_ESTATE, __FILE__, __LINE__, "a fresh process ended with exit code %d", s.exit_code);
        fwd_free(s.out);
    }
    fwd_free(ids);
    return rc;
}
