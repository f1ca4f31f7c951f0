/* SPDX-License-Identifier: MIT */
/*
 * open.c - fuzz target: the library on a heap file of any bytes.
 *
 * The file is recovered, opened, looked at, worked on, closed, and looked at again read-only. Every
 * call may refuse; none may fault or run on for ever, and what the walks report must lie inside the
 * file.
 */
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "look/check.h"
#include "fuzz.h"
#include "heaps.h"
#include "support.h"

enum { SLOTS = 16, MOST_OPS = 80 };

/* ---- looking -------------------------------------------------------------------------------- */

struct looking {
    const shmalloc_heap *heap;
    uint64_t blocks, sum, last;
};

static int look_at_block(const shmalloc_block *block, void *arg)
{
    struct looking *l = arg;
    const volatile uint8_t *bytes = shmalloc_ptr_range(l->heap, block->ref, block->size);
    must(bytes && block->size > 0, "block %#llx of %llu bytes lies outside the heap",
         (unsigned long long)block->ref, (unsigned long long)block->size);
    must(block->ref > l->last, "each_block is not ascending at %#llx",
         (unsigned long long)block->ref);
    l->last = block->ref;
    l->blocks++;
    l->sum += bytes[0] + bytes[block->size - 1u]; /* they can be read */
    l->sum += shmalloc_tag(l->heap, block->ref);
    l->sum += shmalloc_usable_size(l->heap, (const void *)(uintptr_t)bytes);
    return 0;
}

static int look_at_root(const shmalloc_root *root, void *arg)
{
    struct looking *l = arg;
    shmalloc_ref ref;
    l->sum += strlen(root->name);
    return shmalloc_root_get(l->heap, root->name, 0, &ref) == 0 && l->sum == UINT64_MAX;
}

static void look(const shmalloc_heap *heap)
{
    struct looking l = {.heap = heap};
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    may_fail(shmalloc_get_stats(heap, &stats));
    shmalloc_each_block(heap, look_at_block, &l);
    shmalloc_root_each(heap, look_at_root, &l);
}

/* Of the heap as it lies there; or as whoever has it open sees it, who waits whether what he found
 * goes away. */
static void check(shmalloc_heap *heap, int as_live)
{
    struct smi_view view;
    struct smi_check_result result;
    if (as_live) {
        may_fail(shmalloc_check(heap));
        return;
    }
    if (smi_view_open(&view, heaps_path()) == 0)
        smi_check(&view, 0, NULL, NULL, &result);
    smi_view_finish(&view);
}

/* ---- working -------------------------------------------------------------------------------- */

struct work {
    shmalloc_heap *heap;
    const uint8_t *at, *end;
    shmalloc_ref outside[SLOTS], *inside; /* words in the heap: NULL when it has no such block */
    shmalloc_mutex *mutex;
};

static unsigned take(struct work *w)
{
    return w->at < w->end ? *w->at++ : 0;
}

static size_t take_size(struct work *w)
{
    unsigned kind = take(w), value = take(w);
    return kind < 160   ? value
           : kind < 230 ? value * 64u
           : kind < 250 ? value * 1024u
                        : value * 16384u;
}

static shmalloc_ref *take_word(struct work *w)
{
    unsigned i = take(w);
    return (w->inside && i % 2 ? w->inside : w->outside) + i / 2 % SLOTS;
}

static const char *take_name(struct work *w)
{
    static const char *const names[] = {"root 1", "root 7", "table", "a new one"};
    return names[take(w) % 4];
}

static void allocate(struct work *w, unsigned way)
{
    shmalloc_ref *word = take_word(w);
    size_t size = take_size(w);
    if (*word != 0)
        return;
    if (way == 0)
        may_fail(shmalloc_ref_alloc(w->heap, size, word));
    else if (way == 1)
        may_fail(shmalloc_ref_alloc_zeroed(w->heap, size, word));
    else if (way == 2)
        may_fail(shmalloc_ref_alloc_tagged(w->heap, size, 7, word));
    else
        may_fail(shmalloc_ref_alloc_aligned(w->heap, 1ull << take(w) % 16, size, word));
}

/* Any ref at all. */
static void free_anything(struct work *w)
{
    shmalloc_ref ref = take(w);
    ref |= (uint64_t)take(w) << 8 | (uint64_t)take(w) << 16;
    shmalloc_ref_free(w->heap, &ref);
}

static void work_on_roots(struct work *w, unsigned way)
{
    shmalloc_ref ref;
    if (way == 0)
        may_fail(shmalloc_root_set(w->heap, take_name(w), take(w) % 3, w->outside[0]));
    else if (way == 1)
        shmalloc_root_remove(w->heap, take_name(w));
    else
        may_fail(
            shmalloc_root_get_or_create(w->heap, take_name(w), take(w) % 3, 100, NULL, NULL, &ref));
}

static void step(struct work *w)
{
    unsigned op = take(w) % 20;
    shmalloc_ref *word;
    if (op < 4) {
        allocate(w, op);
    } else if (op < 8) {
        shmalloc_ref_free(w->heap, take_word(w));
    } else if (op < 11) {
        word = take_word(w);
        may_fail(shmalloc_ref_realloc(w->heap, word, take_size(w)));
    } else if (op < 14) {
        work_on_roots(w, op - 11);
    } else if (op == 14) {
        free_anything(w);
    } else if (op == 15) {
        shmalloc_trim(w->heap);
    } else if (op == 16) {
        shmalloc_set_give_back(w->heap, take(w) % 2 ? 0 : SHMALLOC_NEVER, take(w) * 4096u);
    } else if (op == 17) {
        if (w->mutex && shmalloc_mutex_timedlock(w->heap, w->mutex, 1000000) >= 0)
            shmalloc_mutex_unlock(w->heap, w->mutex);
    } else if (op == 18) {
        for (unsigned n = take(w); n > 0; n--) /* overflows stacks, empties slabs */
            shmalloc_free(w->heap, shmalloc_malloc(w->heap, n));
    } else {
        shmalloc_ref many[128];
        size_t size = take_size(w) % 4096;
        memset(many, 0, sizeof(many));
        for (int i = 0; i < 128; i++)
            may_fail(shmalloc_ref_alloc(w->heap, size, &many[i]));
        for (int i = 0; i < 128; i++)
            shmalloc_ref_free(w->heap, &many[i]);
    }
}

static void work(shmalloc_heap *heap, const uint8_t *data, size_t size)
{
    struct work w = {.heap = heap, .at = data, .end = data + size};
    shmalloc_ref ref;
    if (shmalloc_root_get(heap, "root 3", 0, &ref) == 0 && ref % 8 == 0)
        w.inside = shmalloc_ptr_range(heap, ref, SLOTS * sizeof(ref));
    if (shmalloc_root_get(heap, "root 4", 0, &ref) == 0 && ref % 8 == 0)
        w.mutex = shmalloc_ptr_range(heap, ref, sizeof(*w.mutex));
    for (int i = 0; i < MOST_OPS && w.at < w.end; i++)
        step(&w);
}

/* ---- the target ----------------------------------------------------------------------------- */

static void open_and(const shmalloc_options *options, int check_as_live, const uint8_t *data,
                     size_t size)
{
    shmalloc_heap *heap;
    int rc = shmalloc_open(heaps_path(), options, &heap);
    must(rc <= 0, "open returned %d", rc);
    if (rc < 0) {
        must(shmalloc_errmsg()[0], "a refusal without a message");
        return;
    }
    look(heap);
    work(heap, data, size);
    check(heap, check_as_live);
    shmalloc_close(heap);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned flags = heaps_make(data, size, &data, &size);
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    if (flags & HEAPS_RECOVER)
        may_fail(shmalloc_recover(heaps_path()));
    options.flags = (flags & HEAPS_READ_ONLY ? SHMALLOC_READ_ONLY : 0u) |
                    (flags & HEAPS_ACCEPT ? SHMALLOC_ACCEPT_UNCLEAN : 0u);
    open_and(&options, (flags & HEAPS_OTHER) != 0, data, size);
    options.flags = SHMALLOC_READ_ONLY | SHMALLOC_ACCEPT_UNCLEAN;
    open_and(&options, 0, data, 0);
    heaps_end();
    return 0;
}
