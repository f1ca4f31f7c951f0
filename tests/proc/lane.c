/* SPDX-License-Identifier: MIT */
/*
 * lane.c - operations on lanes, and their audit; see lane.h for what must hold.
 *
 * Order of stores, so that a kill between any two leaves the lane true:
 *   allocate   stamp; the library stores ref; fill; filled = size
 *   resize     filled = what both sizes have; the library stores ref; fill the rest; filled = size
 *   free       filled = 0; the library stores 0 to ref
 */
#include "lane.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A store that a kill may come before or after, but that the compiler must leave where it is. */
static void put(uint64_t *word, uint64_t value)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* ---- the watch ---- */

/* A file about a thread, "" when that has ended. */
static void read_about(pid_t pid, uint32_t tid, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task/%u/%s", (int)pid, tid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    text[len > 0 ? len : 0] = 0;
}

struct lane_times lane_times(pid_t pid, uint32_t tid)
{
    char text[64], *end;
    read_about(pid, tid, "schedstat", text, sizeof(text));
    uint64_t ran = strtoull(text, &end, 10);
    return (struct lane_times){ran, strtoull(end, NULL, 10)};
}

int lane_can_run(pid_t pid, uint32_t tid)
{
    char text[512];
    read_about(pid, tid, "stat", text, sizeof(text));
    const char *name_end = strrchr(text, ')');
    return name_end && strncmp(name_end, ") R", 3) == 0;
}

void lane_call_begins(struct lane_watch *watch)
{
    __atomic_store_n(&watch->left_out, __atomic_load_n(&watch->machine->left_out, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    __atomic_store_n(&watch->began_at, now_ns(), __ATOMIC_RELEASE);
}

void lane_call_ends(struct lane_watch *watch)
{
    uint64_t end = now_ns(), took = end - watch->began_at;
    __atomic_store_n(&watch->began_at, 0, __ATOMIC_RELEASE);
    watch->longest = took > watch->longest ? took : watch->longest;
    if (took > LANE_LONG_NS && __atomic_load_n(&watch->ended.at, __ATOMIC_ACQUIRE) == 0) {
        watch->ended.took = took;
        watch->ended.left_out = watch->left_out;
        __atomic_store_n(&watch->ended.at, end, __ATOMIC_RELEASE);
    }
}

/* What the clock says of a call that took so long, at a time that has been looked at. */
static void judge(struct lane_watch *watch, uint64_t took, uint64_t left_out_before)
{
    uint64_t left_out = watch->machine->left_out - left_out_before,
             by_clock = took > left_out ? took - left_out : 0;
    watch->stalled = by_clock > watch->stalled ? by_clock : watch->stalled;
}

uint64_t lane_stalled(struct lane_watch *watch)
{
    uint64_t looked_at = watch->machine->looked_at;
    uint64_t ended_at = __atomic_load_n(&watch->ended.at, __ATOMIC_ACQUIRE);
    if (ended_at != 0 && ended_at <= looked_at) {
        judge(watch, watch->ended.took, watch->ended.left_out);
        __atomic_store_n(&watch->ended.at, 0, __ATOMIC_RELEASE);
    }
    uint64_t began = __atomic_load_n(&watch->began_at, __ATOMIC_ACQUIRE);
    uint64_t left_out = __atomic_load_n(&watch->left_out, __ATOMIC_RELAXED);
    if (began != 0 && looked_at > began + LANE_LONG_NS &&
        /* else it has ended, and left_out may be another's */
        __atomic_load_n(&watch->began_at, __ATOMIC_ACQUIRE) == began)
        judge(watch, looked_at - began, left_out);
    return watch->stalled;
}

static void begin(const struct lane_work *w)
{
    lane_call_begins(w->watch);
}

static void end(const struct lane_work *w)
{
    lane_call_ends(w->watch);
    __atomic_fetch_add(&w->watch->operations, 1, __ATOMIC_RELAXED);
}

#define timed(w, call)                                                                             \
    do {                                                                                           \
        begin(w);                                                                                  \
        must_work(call);                                                                           \
        end(w);                                                                                    \
    } while (0)

/* ---- entries ---- */

static void must_hold(shmalloc_heap *heap, const struct lane_entry *e, const char *when)
{
    if (e->ref == 0) {
        must(e->filled == 0, "%s: no block, but %llu bytes of it are filled", when,
             (unsigned long long)e->filled);
        return;
    }
    const void *block = shmalloc_ptr_range(heap, e->ref, e->filled);
    must(block, "%s: block %#llx of %llu bytes is outside", when, (unsigned long long)e->ref,
         (unsigned long long)e->filled);
    must(shmalloc_usable_size(heap, block) >= e->filled,
         "%s: block %#llx has %zu usable bytes, %llu are used", when, (unsigned long long)e->ref,
         shmalloc_usable_size(heap, block), (unsigned long long)e->filled);
    size_t at = pattern_check(block, e->filled, e->stamp);
    must(at == e->filled, "%s: byte %zu of %llu of block %#llx changed", when, at,
         (unsigned long long)e->filled, (unsigned long long)e->ref);
}

static size_t some_size(struct rng *rng)
{
    return 1 + rng_log_uniform(rng, rng_below(rng, 24) == 0  ? 20
                                    : rng_below(rng, 4) == 0 ? 16
                                                             : 10);
}

static void allocate(const struct lane_work *w, struct lane_entry *e)
{
    size_t size = some_size(w->rng);
    uint64_t way = rng_below(w->rng, 4);
    put(&e->stamp, ((uint64_t)w->number << 56) + ++w->lane->next_stamp);
    if (w->unlinked) {
        begin(w);
        void *block = shmalloc_malloc(w->heap, size);
        must(block, "%s", shmalloc_errmsg());
        put(&e->ref, shmalloc_ref_of(w->heap, block));
        end(w);
    } else if (way == 0) {
        timed(w, shmalloc_ref_alloc_zeroed(w->heap, size, &e->ref));
        must(all_zero(shmalloc_ptr(w->heap, e->ref), size), "%zu bytes are not zero", size);
    } else if (way == 1) {
        timed(w, shmalloc_ref_alloc_tagged(w->heap, size, 7, &e->ref));
    } else if (way == 2) {
        timed(w, shmalloc_ref_alloc_aligned(w->heap, 1ull << rng_below(w->rng, 15), size, &e->ref));
    } else {
        timed(w, shmalloc_ref_alloc(w->heap, size, &e->ref));
    }
    pattern_fill(shmalloc_ptr(w->heap, e->ref), 0, size, e->stamp);
    put(&e->filled, size);
}

static void resize(const struct lane_work *w, struct lane_entry *e)
{
    size_t size = some_size(w->rng), kept = size < e->filled ? size : e->filled;
    must_hold(w->heap, e, "before resizing");
    put(&e->filled, kept);
    if (w->unlinked) {
        void *block = shmalloc_ptr(w->heap, e->ref);
        put(&e->filled, 0);
        put(&e->ref, 0);
        begin(w);
        block = shmalloc_realloc(w->heap, block, size);
        must(block, "%s", shmalloc_errmsg());
        put(&e->ref, shmalloc_ref_of(w->heap, block));
        end(w);
    } else {
        timed(w, shmalloc_ref_realloc(w->heap, &e->ref, size));
    }
    void *block = shmalloc_ptr(w->heap, e->ref);
    must(pattern_check(block, kept, e->stamp) == kept, "resizing lost contents");
    pattern_fill(block, kept, size, e->stamp);
    put(&e->filled, size);
}

static void release(const struct lane_work *w, struct lane_entry *e)
{
    must_hold(w->heap, e, "before freeing");
    put(&e->filled, 0);
    if (w->unlinked) {
        void *block = shmalloc_ptr(w->heap, e->ref);
        put(&e->ref, 0);
        timed(w, shmalloc_free(w->heap, block));
    } else {
        timed(w, shmalloc_ref_free(w->heap, &e->ref));
    }
}

static void change_entry(const struct lane_work *w)
{
    struct lane_entry *e = &w->lane->entries[rng_below(w->rng, LANE_ENTRIES)];
    if (e->ref == 0)
        allocate(w, e);
    else if (rng_below(w->rng, 3) == 0)
        resize(w, e);
    else
        release(w, e);
}

/* ---- roots ---- */

enum { ROOT_SIZE = 200 };

static const char *root_name(unsigned lane)
{
    static _Thread_local char name[32];
    snprintf(name, sizeof(name), "lane %u", lane);
    return name;
}

static int init_root(shmalloc_heap *heap, void *block, void *arg)
{
    (void)heap;
    must(all_zero(block, ROOT_SIZE), "a new root's block is not zero");
    pattern_fill(block, 0, ROOT_SIZE, *(unsigned *)arg);
    return 0;
}

static void must_hold_root(shmalloc_heap *heap, unsigned number, shmalloc_ref ref)
{
    must(pattern_check(shmalloc_ptr(heap, ref), ROOT_SIZE, number) == ROOT_SIZE,
         "the block of root \"%s\" was published unfinished, or changed", root_name(number));
}

/* The root's block is named by `root_block` before the root goes, so it always has a name. */
static void remove_root(const struct lane_work *w)
{
    shmalloc_ref ref = 0;
    int rc = shmalloc_root_get(w->heap, root_name(w->number), 0, &ref);
    if (rc == 0) {
        must_hold_root(w->heap, w->number, ref);
        put(&w->lane->root_block, ref);
        timed(w, shmalloc_root_remove(w->heap, root_name(w->number)));
    }
    if (w->lane->root_block)
        timed(w, shmalloc_ref_free(w->heap, &w->lane->root_block));
}

static void change_root(const struct lane_work *w)
{
    shmalloc_ref ref = 0;
    unsigned number = w->number;
    if (w->lane->root_block || rng_below(w->rng, 2)) {
        remove_root(w);
        return;
    }
    begin(w);
    int rc = shmalloc_root_get_or_create(w->heap, root_name(number), 0, ROOT_SIZE, init_root,
                                         &number, &ref);
    end(w);
    must(rc >= 0, "%s", shmalloc_errmsg());
    must_hold_root(w->heap, number, ref);
}

/* ---- bursts ---- */

static void verify_lane(shmalloc_heap *heap, const struct lane *lane, const char *when)
{
    for (unsigned i = 0; i < LANE_ENTRIES; i++)
        must_hold(heap, &lane->entries[i], when);
}

void lane_burst(const struct lane_work *w)
{
    begin(w);
    int rc = shmalloc_mutex_lock(w->heap, &w->lane->mutex);
    end(w);
    must(rc == 0 || rc == SHMALLOC_OWNER_DIED, "lock: %d %s", rc, shmalloc_errmsg());
    if (rc == SHMALLOC_OWNER_DIED) { /* the owner died: its last call is resolved, the rest is ours
                                        to put right */
        verify_lane(w->heap, w->lane, "after the owner's death");
        w->lane->after = w->lane->before;
        if (rng_below(w->rng, 4) > 0) /* else the next owner is told, too */
            must_work(shmalloc_mutex_consistent(w->heap, &w->lane->mutex));
    }
    must(w->lane->before == w->lane->after,
         "lane %u: somebody else is inside, or died inside and nobody was told (lock %d, "
         "generation %llu)",
         w->number, rc, (unsigned long long)heap_stats(w->heap).generation);
    put(&w->lane->before, w->lane->before + 1);
    for (uint64_t n = 1 + rng_below(w->rng, 8); n > 0; n--)
        if (rng_below(w->rng, 12) == 0)
            change_root(w);
        else
            change_entry(w);
    put(&w->lane->after, w->lane->before);
    timed(w, shmalloc_mutex_unlock(w->heap, &w->lane->mutex));
    if (rng_below(w->rng, 200) == 0) {
        begin(w);
        must(shmalloc_trim(w->heap) >= 0, "%s", shmalloc_errmsg());
        end(w);
    }
}

struct lane *lane_all(shmalloc_heap *heap, unsigned count)
{
    shmalloc_ref ref = 0;
    int rc = shmalloc_root_get_or_create(heap, "lanes", 0, count * sizeof(struct lane), NULL, NULL,
                                         &ref);
    must(rc >= 0, "%s", shmalloc_errmsg());
    return shmalloc_ptr(heap, ref);
}

/* ---- audit ---- */

struct refs {
    uint64_t *list;
    size_t count;
};

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void add_ref(struct refs *refs, uint64_t ref)
{
    if (ref)
        refs->list[refs->count++] = ref;
}

/* All refs that lanes and roots name, ascending. */
static struct refs named_refs(shmalloc_heap *heap, struct lane *lanes, unsigned count)
{
    struct refs refs = {calloc(count * (LANE_ENTRIES + 2) + 1, sizeof(uint64_t)), 0};
    add_ref(&refs, shmalloc_ref_of(heap, lanes));
    for (unsigned i = 0; i < count; i++) {
        shmalloc_ref root = 0;
        for (unsigned k = 0; k < LANE_ENTRIES; k++)
            add_ref(&refs, lanes[i].entries[k].ref);
        if (shmalloc_root_get(heap, root_name(i), 0, &root) == 0)
            must_hold_root(heap, i, root);
        add_ref(&refs, root);
        if (lanes[i].root_block != root) /* else it has both names */
            add_ref(&refs, lanes[i].root_block);
    }
    qsort(refs.list, refs.count, sizeof(uint64_t), by_value);
    for (size_t i = 1; i < refs.count; i++)
        must(refs.list[i - 1] != refs.list[i], "block %#llx was handed out twice",
             (unsigned long long)refs.list[i]);
    return refs;
}

static void compare_blocks(shmalloc_heap *heap, const struct refs *refs, struct audit *out)
{
    shmalloc_block *blocks;
    size_t count = all_blocks(heap, &blocks), r = 0;
    shmalloc_stats stats = heap_stats(heap);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += blocks[i].size;
        must(r == refs->count || refs->list[r] >= blocks[i].ref,
             "block %#llx is named, but not allocated", (unsigned long long)refs->list[r]);
        if (r < refs->count && refs->list[r] == blocks[i].ref) {
            r++;
            continue;
        }
        shmalloc_ref lost = blocks[i].ref;
        must_work(shmalloc_ref_free(heap, &lost));
        out->unreferenced++;
    }
    must(r == refs->count, "block %#llx is named, but not allocated",
         (unsigned long long)refs->list[r]);
    must(stats.allocated == bytes && stats.allocated_blocks == count,
         "stats say %llu bytes in %llu blocks, the list has %llu in %zu",
         (unsigned long long)stats.allocated, (unsigned long long)stats.allocated_blocks,
         (unsigned long long)bytes, count);
    out->blocks = refs->count;
    out->bytes = bytes;
    free(blocks);
}

static void lock_lanes(shmalloc_heap *heap, struct lane *lanes, unsigned count, struct audit *out)
{
    for (unsigned i = 0; i < count; i++) {
        int rc = shmalloc_mutex_timedlock(heap, &lanes[i].mutex, 10000000000ull);
        must(rc == 0 || rc == SHMALLOC_OWNER_DIED, "lane %u: the mutex: %d %s", i, rc,
             shmalloc_errmsg());
        must(rc == SHMALLOC_OWNER_DIED || lanes[i].before == lanes[i].after,
             "lane %u: its owner died inside and nobody was told", i);
        lanes[i].after = lanes[i].before;
        out->deaths_seen += rc == SHMALLOC_OWNER_DIED;
        must_work(shmalloc_mutex_consistent(heap, &lanes[i].mutex));
        verify_lane(heap, &lanes[i], "audit");
    }
}

void lane_audit(shmalloc_heap *heap, unsigned count, struct audit *out)
{
    struct lane *lanes = lane_all(heap, count);
    memset(out, 0, sizeof(*out));
    lock_lanes(heap, lanes, count, out);
    struct refs refs = named_refs(heap, lanes, count);
    compare_blocks(heap, &refs, out);
    free(refs.list);
    must_be_sound(heap);
    for (unsigned i = 0; i < count; i++)
        must_work(shmalloc_mutex_unlock(heap, &lanes[i].mutex));
}

void lane_drop(shmalloc_heap *heap, unsigned count)
{
    struct lane *lanes = lane_all(heap, count);
    for (unsigned i = 0; i < count; i++) {
        shmalloc_ref root = 0;
        if (shmalloc_root_get(heap, root_name(i), 0, &root) == 0) {
            must_work(shmalloc_root_remove(heap, root_name(i)));
            if (root != lanes[i].root_block)
                must_work(shmalloc_ref_free(heap, &root));
        }
        must_work(shmalloc_ref_free(heap, &lanes[i].root_block));
        for (unsigned k = 0; k < LANE_ENTRIES; k++)
            must_work(shmalloc_ref_free(heap, &lanes[i].entries[k].ref));
    }
    shmalloc_ref ref = shmalloc_ref_of(heap, lanes);
    must_work(shmalloc_root_remove(heap, "lanes"));
    must_work(shmalloc_ref_free(heap, &ref));
}
