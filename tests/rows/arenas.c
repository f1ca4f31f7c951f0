/* SPDX-License-Identifier: MIT */
/*
 * arenas.c - rows A13 to A18: independent arenas, statistics in the file, low addresses first,
 * truths and what follows from them, gradual giving back, metadata apart from user blocks.
 *
 * Would fail if one arena's lock stopped another, a counter left what it counts, live spans stayed
 * where the churn had put them, storage went too early, too late or in spite of reuse, or writing
 * all bytes of all blocks changed a byte of the library's.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "look/check.h"
#include "handle/lock.h"
#include "slots/context.h"
#include "rows.h"

ROWS_SUITE(60);

/* ---- A13 ---- */

struct other {
    uint32_t ready, go, done, freed;
    uint32_t arena;
    shmalloc_ref ref;
};

/* Attaches; then, when told to, allocates what needs a refill. */
static void *other_thread(void *arg)
{
    struct other *o = arg;
    shmalloc_ref first = 0;
    must_work(shmalloc_ref_alloc(f.heap, 1000, &first));
    must_work(shmalloc_ref_free(f.heap, &first));
    o->arena = smi_current->arena;
    signal_word(&o->ready);
    await_word(&o->go, 1);
    must_work(shmalloc_ref_alloc(f.heap, 64, &o->ref));
    signal_word(&o->done);
    await_word(&o->freed, 1);
    return NULL;
}

/* Does a thread's refill wait while this one holds the same class of its own arena? */
static int waits_for_other(unsigned arenas)
{
    struct other o = {0};
    pthread_t thread;
    f.heap = rows_heap(f.path, 0, 0, arenas);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 1000, &ref));
    cr_assert_eq(pthread_create(&thread, NULL, other_thread, &o), 0);
    await_word(&o.ready, 1);
    cr_assert_eq(o.arena == smi_current->arena, arenas == 1);
    uint32_t lock = smi_lock_of_class(smi_current->arena, smi_class_of(64));
    must_work(smi_lock_acquire(f.heap, lock));
    signal_word(&o.go);
    int waited = 0; /* the thread either waits for the lock or gets its block */
    while (!waited && __atomic_load_n(&o.done, __ATOMIC_ACQUIRE) == 0)
        waited = __atomic_load_n(&f.heap->locks[lock].waits, __ATOMIC_RELAXED) > 0;
    smi_lock_release(f.heap, lock);
    await_word(&o.done, 1);
    cr_assert_eq(heap_stats(f.heap).lock_waits, (unsigned)waited, "the count in the file");
    must_work(shmalloc_ref_free(f.heap, &o.ref)); /* into this arena's thread's cache */
    must_work(shmalloc_ref_free(f.heap, &ref));
    signal_word(&o.freed);
    pthread_join(thread, NULL);
    return waited;
}

Test(rows, a13_one_arena_is_waited_for)
{
    cr_assert_eq(waits_for_other(1), 1);
}

Test(rows, a13_two_arenas_are_independent)
{
    cr_assert_eq(waits_for_other(2), 0);
}

static void *allocate_some(void *arg)
{
    shmalloc_ref *refs = arg;
    for (int i = 0; i < 5000; i++)
        must_work(shmalloc_ref_alloc(f.heap, 100, &refs[i]));
    return NULL;
}

Test(rows, a13_blocks_may_be_freed_in_another_arena)
{
    static shmalloc_ref refs[4][5000];
    f.heap = rows_heap(f.path, 0, 0, 4);
    struct usage before = usage_now(f.heap);
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, allocate_some, refs[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 5000; k++)
            must_work(shmalloc_ref_free(f.heap, &refs[i][k]));
    must_be_as_before(f.heap, &before);
}

/* ---- A14, A16 ---- */

enum { LIVE = 3000 };
static shmalloc_ref live[LIVE];

/* Allocations and frees of all sizes; about half of `live` is in use afterwards. */
static void churn(int steps)
{
    struct rng rng = rng_from(test_seed());
    for (int i = 0; i < steps; i++) {
        shmalloc_ref *ref = &live[rng_below(&rng, LIVE)];
        if (*ref)
            must_work(shmalloc_ref_free(f.heap, ref));
        else
            must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 18), ref));
    }
}

struct recount {
    uint64_t slabs, free_slots, used_slots;
};

static void count_slab(struct smi_view *view, const struct smi_span *span, struct recount *out)
{
    unsigned k = span->page->size_class;
    uint64_t bits = 0;
    for (uint32_t w = 0; w < (smi_classes[k].slots + 63u) / 64; w++)
        bits += (uint64_t)__builtin_popcountll(smi_view_slab_bits(view, span->first_page, k, w));
    out->slabs++;
    out->free_slots += bits;
    out->used_slots += smi_classes[k].slots - bits;
}

/* The counters of every class of every arena, in the file, against the slabs' own bits. */
static void must_equal_recount(void)
{
    struct smi_view view;
    struct smi_span span = {0};
    size_t count = (f.heap->arena_count + 1) * SMF_CLASSES;
    struct recount *by_class = calloc(count, sizeof(*by_class));
    uint64_t free_pages = 0, used = 0;
    rows_view(&view, f.path);
    while (smi_view_next_span(&view, &span))
        if (span.page->kind == SMF_PAGE_SLAB)
            count_slab(&view, &span,
                       &by_class[span.page->arena * SMF_CLASSES + span.page->size_class]);
        else if (span.page->kind == SMF_PAGE_FREE)
            free_pages += span.page_count;
    for (size_t i = 0; i < count; i++) {
        const struct smf_central *c = &f.heap->central[i];
        cr_assert_eq(c->slab_count, by_class[i].slabs, "class %zu", i);
        cr_assert_eq(c->free_slots, by_class[i].free_slots, "class %zu", i);
        cr_assert_eq(c->slabs_made - c->slabs_retired, by_class[i].slabs, "class %zu", i);
        if (i < count - SMF_CLASSES) /* the library's own take no batches */
            cr_assert_eq(c->refilled_slots - c->flushed_slots, by_class[i].used_slots, "class %zu",
                         i);
        used += by_class[i].slabs;
    }
    cr_assert_eq(f.heap->page_heap->free_pages, free_pages);
    cr_assert_gt(used, 20, "hardly anything was counted");
    smi_view_finish(&view);
    free(by_class);
}

Test(rows, a14_counters_equal_a_recount_and_survive)
{
    f.heap = heap_create(f.path, 0);
    churn(50000);
    must_equal_recount();
    struct smf_page_heap before = *f.heap->page_heap;
    uint64_t allocated = heap_stats(f.heap).allocated, refills = 0, now = 0;
    for (unsigned i = 0; i < f.heap->arena_count * SMF_CLASSES; i++)
        refills += f.heap->central[i].refills;
    fixture_reopen(&f);
    for (unsigned i = 0; i < f.heap->arena_count * SMF_CLASSES; i++)
        now += f.heap->central[i].refills;
    cr_assert_eq(now, refills);
    cr_assert_gt(refills, 0);
    cr_assert_geq(f.heap->page_heap->takes, before.takes);
    cr_assert_geq(f.heap->page_heap->gives, before.gives);
    cr_assert_eq(f.heap->page_heap->grows, before.grows);
    cr_assert_eq(heap_stats(f.heap).allocated, allocated);
    churn(50000);
    must_equal_recount();
}

static int compare_refs(const void *a, const void *b)
{
    shmalloc_ref x = *(const shmalloc_ref *)a, y = *(const shmalloc_ref *)b;
    return x < y ? -1 : x > y;
}

/* ---- A15 ---- */

Test(rows, a15_live_spans_gather_at_low_addresses)
{
    enum { MOST = 1000, LEFT = 100 };
    static shmalloc_ref refs[MOST];
    struct rng rng = rng_from(test_seed());
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < MOST; i++)
        must_work(shmalloc_ref_alloc(f.heap, 70000 + rng_below(&rng, 200000), &refs[i]));
    uint64_t size = heap_stats(f.heap).file_size;
    rng_shuffle(&rng, refs, MOST);
    for (int i = LEFT; i < MOST; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    for (int i = 0; i < 20000; i++) { /* every block is replaced about 200 times */
        shmalloc_ref *ref = &refs[rng_below(&rng, LEFT)];
        must_work(shmalloc_ref_free(f.heap, ref));
        must_work(shmalloc_ref_alloc(f.heap, 70000 + rng_below(&rng, 200000), ref));
    }
    qsort(refs, LEFT, sizeof(refs[0]), compare_refs);
    fprintf(stderr, "median at %llu, highest at %llu of %llu bytes\n",
            (unsigned long long)refs[LEFT / 2], (unsigned long long)refs[LEFT - 1],
            (unsigned long long)size);
    cr_assert_lt(refs[LEFT / 2], size / 4);
}

Test(rows, a15_live_slots_gather_at_low_addresses)
{
    enum { MOST = 100000, LEFT = 5000 };
    static shmalloc_ref refs[MOST];
    struct rng rng = rng_from(test_seed());
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < MOST; i++)
        must_work(shmalloc_ref_alloc(f.heap, 500, &refs[i]));
    uint64_t size = heap_stats(f.heap).file_size;
    rng_shuffle(&rng, refs, MOST);
    for (int i = LEFT; i < MOST; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    for (int round = 0; round < 40; round++) { /* batches, so that the cache does not just
                                                  circulate */
        for (int i = 0; i < LEFT; i++)
            must_work(shmalloc_ref_free(f.heap, &refs[i]));
        for (int i = 0; i < LEFT; i++)
            must_work(shmalloc_ref_alloc(f.heap, 500, &refs[i]));
        must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    }
    qsort(refs, LEFT, sizeof(refs[0]), compare_refs);
    cr_assert_lt(refs[LEFT / 2], size / 4, "median at %llu of %llu",
                 (unsigned long long)refs[LEFT / 2], (unsigned long long)size);
}

/* ---- A16 ---- */

static uint64_t violations_of_file(const char *path)
{
    struct smi_view view;
    struct smi_check_result result = {0};
    must_work(smi_view_open(&view, path));
    must_work(smi_check(&view, 0, NULL, NULL, &result));
    smi_view_finish(&view);
    return result.violations;
}

Test(rows, a16_what_is_derived_follows_from_the_truths)
{
    f.heap = heap_create(f.path, 0);
    churn(50000);
    must_be_sound(f.heap);
    must_work(shmalloc_check(f.heap));
    cr_assert_eq(violations_of_file(f.path), 0);
    /* Every kind of derived number: a wrong one shows. */
    unsigned k = 0;
    while (f.heap->central[k].slab_count == 0 || f.heap->central[k].set == 0)
        k++;
    struct smf_page *slab = smi_page(f.heap, f.heap->central[k].set);
    uint64_t *counts[] = {&f.heap->page_heap->free_pages, &f.heap->page_heap->set_bits[0],
                          &f.heap->central[k].slab_count, &f.heap->central[k].free_slots,
                          &f.heap->central[k].set};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        uint64_t was = *counts[i];
        *counts[i] = was ^ 1;
        cr_assert_gt(violations_of_file(f.path), 0, "number %zu", i);
        *counts[i] = was;
    }
    slab->free_slots ^= 1;
    cr_assert_gt(violations_of_file(f.path), 0, "a slab's count");
    slab->free_slots ^= 1;
    cr_assert_eq(violations_of_file(f.path), 0);
}

/* ---- A17 ---- */

enum { BLOCK = 8 << 20 };

static void take_and_give(shmalloc_heap *heap)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, BLOCK, &ref));
    memset(shmalloc_ptr(heap, ref), 1, BLOCK);
    must_work(shmalloc_ref_free(heap, &ref));
}

static int reuse_in_the_window(void *arg)
{
    shmalloc_heap *heap = heap_open(f.path);
    must_work(shmalloc_set_give_back(heap, *(uint64_t *)arg, 0));
    take_and_give(heap);
    rows_mark_begin();
    for (int i = 0; i < 50; i++)
        take_and_give(heap);
    rows_mark_end();
    return shmalloc_close(heap) < 0;
}

static uint64_t holes_made_with(uint64_t decay_ms)
{
    static struct rows_calls calls;
    int status = rows_count_calls(reuse_in_the_window, &decay_ms, &calls);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("ptrace is not permitted");
    cr_assert_eq(status, 0, "%d", status);
    return rows_storage_calls(&calls);
}

Test(rows, a17_reuse_before_the_decay_time_asks_nothing_of_the_kernel)
{
    must_work(shmalloc_close(heap_create(f.path, 0)));
    cr_assert_eq(holes_made_with(60000), 0);
    cr_assert_eq(holes_made_with(SHMALLOC_NEVER), 0);
    cr_assert_geq(holes_made_with(0), 50, "with 0 ms each free makes a hole");
}

/* Seconds until the storage of a freed block is gone, or `most`. */
static double seconds_until_gone(uint64_t decay_ms, double most)
{
    must_work(shmalloc_set_give_back(f.heap, decay_ms, 0));
    take_and_give(f.heap);
    uint64_t start = now_ns();
    for (double passed; (passed = (double)(now_ns() - start) / 1e9) < most; usleep(10000)) {
        if (rows_storage(f.path) < BLOCK)
            return passed;
        shmalloc_ref ref = 0; /* somebody has to come the long way */
        must_work(shmalloc_ref_alloc(f.heap, 100000, &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
    }
    return most;
}

Test(rows, a17_storage_goes_after_the_decay_time)
{
    f.heap = heap_create(f.path, 0);
    cr_assert_lt(seconds_until_gone(0, 5), 1, "0: at once"); /* before the first look of once a
                                                                second */
    double passed = seconds_until_gone(1500, 30);
    fprintf(stderr, "gone after %.2f s\n", passed);
    cr_assert_geq(passed, 1.4, "before its time");
    cr_assert_lt(passed, 30, "never");
    cr_assert_eq(seconds_until_gone(SHMALLOC_NEVER, 2.5), 2.5, "never: not by itself");
}

/* The last stage: what is free at the end of the file is cut off, also when its storage went
 * before. */
Test(rows, a17_a_stale_tail_is_cut_off)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    uint64_t size = heap_stats(f.heap).file_size;
    must_work(shmalloc_set_give_back(f.heap, 0, 0));
    take_and_give(f.heap);
    for (int i = 0; i < 10; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 100000, &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
    }
    cr_assert_eq(heap_stats(f.heap).file_size, size);
}

/* ---- A18 ---- */

Test(rows, a18_no_byte_of_the_library_lies_in_a_block)
{
    f.heap = heap_create(f.path, 0);
    struct usage before = usage_now(f.heap);
    churn(20000);
    shmalloc_block *blocks;
    size_t count = all_blocks(f.heap, &blocks);
    cr_assert_gt(count, LIVE / 4);
    for (int pattern = 0; pattern < 256; pattern += 85) {
        for (size_t i = 0; i < count; i++)
            memset(shmalloc_ptr(f.heap, blocks[i].ref), pattern, blocks[i].size);
        must_be_sound(f.heap);
        must_be_sound_on_disk(f.path);
    }
    free(blocks);
    for (int i = 0; i < LIVE; i++)
        must_work(shmalloc_ref_free(f.heap, &live[i]));
    must_be_as_before(f.heap, &before);
}

/* A write beyond a block's end lands in another block or in free space, never in what allocation
 * relies on: the slots of a whole slab in a row are all user bytes. */
Test(rows, a18_a_write_after_free_harms_no_list)
{
    static shmalloc_ref refs[2000];
    f.heap = heap_create(f.path, 0);
    struct usage before = usage_now(f.heap);
    for (int i = 0; i < 2000; i++)
        must_work(shmalloc_ref_alloc(f.heap, 48, &refs[i]));
    uint8_t *block[2000];
    for (int i = 0; i < 2000; i++)
        block[i] = shmalloc_ptr(f.heap, refs[i]);
    for (int i = 0; i < 1000; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    for (int i = 0; i < 1000; i++)
        memset(block[i], 0xff, 48);
    for (int i = 0; i < 1000; i++)
        must_work(shmalloc_ref_alloc(f.heap, 48, &refs[i]));
    must_be_sound(f.heap);
    for (int i = 0; i < 2000; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    must_be_as_before(f.heap, &before);
}
