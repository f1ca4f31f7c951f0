/* SPDX-License-Identifier: MIT */
/* judge.c - opening, describing and emptying what somebody died in; see judge.h. */
#include "judge.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handle/handle.h"
#include "look/check.h"
#include "support.h"
#include "look/view.h"

/* ---- the heap in words ---- */

static void seen_by_view(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    if (strcmp(invariant, SMI_DANGLING) != 0) /* blocks are freed before the roots that name them */
        smi_wrong("%s: %s at %#llx: %s", (const char *)arg, invariant, (unsigned long long)ref,
                  text);
}

void judge_closed(const char *path, const char *when)
{
    struct smi_view view;
    struct smi_check_result result = {0};
    works(smi_view_open(&view, path));
    works(smi_check(&view, 0, seen_by_view, (void *)(uintptr_t)when, &result));
    smi_view_finish(&view);
}

static void describe_block(const shmalloc_block *block)
{
    smi_say("block %#llx size %llu tag %u\n", (unsigned long long)block->ref,
            (unsigned long long)block->size, block->tag);
}

/* Blocks come by ascending ref, loot lies between them. */
struct blocks {
    const struct loot *loot;
    unsigned next;
};

static int describe_up_to(const shmalloc_block *block, void *arg)
{
    struct blocks *blocks = arg;
    while (blocks->loot && blocks->next < blocks->loot->count &&
           (!block || blocks->loot->block[blocks->next].ref < block->ref))
        describe_block(&blocks->loot->block[blocks->next++]);
    if (block)
        describe_block(block);
    return 0;
}

static int describe_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    smi_say("root \"%s\" type %llu ref %#llx\n", root->name, (unsigned long long)root->type,
               (unsigned long long)root->ref);
    return 0;
}

void judge_word_line(shmalloc_heap *heap, const struct world *world, unsigned i, char *text,
                     size_t size)
{
    uint64_t ref = world->word[i], len = world->valid[i];
    text[0] = 0;
    if (ref == 0)
        return;
    right(shmalloc_usable_size(heap, shmalloc_ptr(heap, ref)) >= len,
          "word %u: %#llx is no block of %llu bytes", i, (unsigned long long)ref,
          (unsigned long long)len);
    snprintf(text, size, "word %u is %#llx, its %llu bytes have hash %llx\n", i,
             (unsigned long long)ref, (unsigned long long)len,
             (unsigned long long)smi_hash(shmalloc_ptr(heap, ref), len));
}

void judge_describe(shmalloc_heap *heap, const struct world *world, const struct loot *loot)
{
    struct blocks blocks = {loot, 0};
    char text[160];
    works(shmalloc_each_block(heap, describe_up_to, &blocks));
    describe_up_to(NULL, &blocks);
    works(shmalloc_root_each(heap, describe_root, NULL));
    if (loot)
        smi_say("%s", loot->words);
    for (unsigned i = 0; world && i < WORDS; i++) {
        judge_word_line(heap, world, i, text, sizeof(text));
        smi_say("%s", text);
    }
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    works(shmalloc_get_stats(heap, &stats));
    smi_say("maximum %llu\n", (unsigned long long)stats.max_size);
    smi_say("layout \"%.64s\" version %llu\n", heap->header->layout_name,
            (unsigned long long)heap->header->layout_version);
}

static void describe_mutex(shmalloc_heap *heap, struct world *world)
{
    int rc = shmalloc_mutex_trylock(heap, &world->mutex);
    smi_say("mutex answers %d\n", rc);
    works(rc);
    works(shmalloc_mutex_unlock(heap, &world->mutex));
    right(shmalloc_mutex_lock(heap, &world->mutex) == rc,
          "the next owner is told something else: %s", shmalloc_errmsg());
    works(shmalloc_mutex_consistent(heap, &world->mutex));
    works(shmalloc_mutex_unlock(heap, &world->mutex));
    right(shmalloc_mutex_lock(heap, &world->mutex) == 0, "not consistent: %s", shmalloc_errmsg());
    works(shmalloc_mutex_unlock(heap, &world->mutex));
}

/* ---- using it ---- */

void judge_use_cond(shmalloc_heap *heap, struct world *world)
{
    works(shmalloc_mutex_lock(heap, &world->cond_mutex));
    works(shmalloc_mutex_consistent(heap, &world->cond_mutex));
    int rc = shmalloc_cond_timedwait(heap, &world->cond, &world->cond_mutex, 1);
    right(rc == 0 || rc == -ETIMEDOUT || rc == SHMALLOC_OWNER_DIED, "cond_timedwait: %d %s", rc,
          shmalloc_errmsg());
    works(shmalloc_cond_broadcast(heap, &world->cond));
    works(shmalloc_mutex_unlock(heap, &world->cond_mutex));
}

static int collect(const shmalloc_block *block, void *arg)
{
    shmalloc_ref **next = arg;
    *(*next)++ = block->ref;
    return 0;
}

void judge_use_and_empty(shmalloc_heap *heap)
{
    static shmalloc_ref refs[16384];
    static const size_t sizes[] = {8, 16, 100, 100, 100, 100, 100, 600, 4096, 4096, 20000};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        works(shmalloc_ref_alloc(heap, sizes[i], &refs[0]));
        memset(shmalloc_ptr(heap, refs[0]), 0x55, sizes[i]);
    }
    for (size_t size = 68 << 10; size < 600 << 10; size *= 2) {
        works(shmalloc_ref_alloc_zeroed(heap, size, &refs[0]));
        right(all_zero(shmalloc_ptr(heap, refs[0]), size), "a zeroed block has other bytes");
    }
    shmalloc_ref *next = refs;
    works(shmalloc_root_remove(heap, "world"));
    int rc = shmalloc_root_remove(heap, "a root");
    right(rc == 0 || rc == SHMALLOC_ENOROOT, "root_remove: %s", shmalloc_errmsg());
    works(shmalloc_each_block(heap, collect, &next));
    for (shmalloc_ref *ref = refs; ref < next; ref++)
        works(shmalloc_ref_free(heap, ref));
    works(shmalloc_trim(heap));
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    works(shmalloc_get_stats(heap, &stats));
    right(stats.allocated_blocks == 0 && stats.cached == 0 && stats.central_free == 0 &&
              stats.double_frees == 0,
          "emptied: %llu blocks, %llu bytes cached, %llu free in slabs, %llu double frees",
          (unsigned long long)stats.allocated_blocks, (unsigned long long)stats.cached,
          (unsigned long long)stats.central_free, (unsigned long long)stats.double_frees);
}

/* A heap that is damaged and was in use when the machine stopped: until it has been checked nobody
 * may use it as if nothing had happened, and afterwards neither. */
static _Noreturn void judge_torn(const char *path)
{
    shmalloc_heap *heap;
    int rc = shmalloc_open(path, NULL, &heap);
    right(rc == 0 || rc == SHMALLOC_EUNCLEAN, "open: %s", shmalloc_errmsg());
    if (rc == 0)
        right(!shmalloc_malloc(heap, 8) && shmalloc_check(heap) < 0,
              "a damaged heap that nobody has checked is opened, without a complaint, for use");
    smi_say(rc == 0 ? "poisoned\n" : "refused as unclean\n");
    _exit(0);
}

struct case_of_death {
    const char *path;
    const struct op *op;
    int moved;
};

/* What frozen locks guard is resolved; nobody waits for them. */
static void recover_moved(const char *path)
{
    shmalloc_heap *heap;
    int rc = shmalloc_open(path, NULL, &heap);
    right(rc == SHMALLOC_EUNCLEAN, "opening a heap that was in use elsewhere: %d (%s)", rc,
          shmalloc_errmsg());
    works(shmalloc_recover(path));
}

static void judge_here(const void *arg)
{
    const struct case_of_death *c = arg;
    const char *path = c->path;
    const struct op *op = c->op;
    shmalloc_heap *heap;
    if (op->traits & OP_TORN)
        judge_torn(path);
    judge_closed(path, "before recovery");
    if (c->moved)
        recover_moved(path);
    works(shmalloc_open(path, NULL, &heap));
    judge_closed(path, "recovered");
    works(shmalloc_check(heap));
    struct world *world = NULL;
    shmalloc_ref ref;
    if (!(op->traits & OP_NO_FILE)) {
        works(shmalloc_root_get(heap, "world", 0, &ref));
        world = shmalloc_ptr(heap, ref);
    } else {
        works(shmalloc_root_set(heap, "world", 0, 0));
    }
    judge_describe(heap, world, NULL);
    if (op->traits & OP_MUTEX)
        describe_mutex(heap, world);
    if (world)
        judge_use_cond(heap, world);
    judge_use_and_empty(heap);
    works(shmalloc_check(heap));
    works(shmalloc_close(heap));
    judge_closed(path, "emptied and closed");
    works(shmalloc_open(path, NULL, &heap));
    works(shmalloc_close(heap));
}

struct in_child {
    void (*fn)(const void *arg);
    const void *arg;
};

static void call(void *arg)
{
    const struct in_child *child = arg;
    child->fn(child->arg);
}

void judge_in_child(struct smi_findings *findings, void (*fn)(const void *arg), const void *arg)
{
    smi_judge(call, &(struct in_child){fn, arg}, 30, findings);
}

void judge(const char *path, const struct op *op, struct smi_findings *findings)
{
    judge_in_child(findings, judge_here, &(struct case_of_death){path, op, 0});
}

void judge_moved(const char *path, const struct op *op, struct smi_findings *findings)
{
    judge_in_child(findings, judge_here, &(struct case_of_death){path, op, 1});
}
