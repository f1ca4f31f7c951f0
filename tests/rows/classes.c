/* SPDX-License-Identifier: MIT */
/*
 * classes.c - rows A8 to A12: size classes, caches without locks, batches, best fit, large blocks
 * without system calls.
 *
 * Linked so that every pthread_mutex_trylock and _lock passes through here and is counted. Would
 * fail if a class were too small or wasteful, the usual allocation took a lock, batches were short,
 * a longer span were cut where a shorter one fits, or recycling a large block asked the kernel.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pages/pages.h"
#include "rows.h"
#include "slots/context.h"

ROWS_SUITE(60);

static _Atomic uint64_t locks_taken;

int __real_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    locks_taken++;
    return __real_pthread_mutex_trylock(mutex);
}

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    locks_taken++;
    return __real_pthread_mutex_lock(mutex);
}

/* ---- A8 ---- */

Test(rows, a08_every_size_has_a_class_within_the_stated_waste)
{
    unsigned before = 0;
    for (size_t n = 1; n <= SMI_MAX_SMALL; n++) {
        unsigned k = smi_class_of(n);
        size_t size = smi_classes[k].size, bound = n / 8 > 15 ? n / 8 : 15;
        cr_assert(k >= before && k < SMF_CLASSES && size >= n && size - n <= bound,
                  "%zu bytes: %zu", n, size);
        before = k;
    }
    cr_assert_eq(before, SMF_CLASSES - 1);
}

Test(rows, a08_blocks_have_the_sizes_of_their_classes)
{
    f.heap = heap_create(f.path, 0);
    for (unsigned k = 0; k < SMF_CLASSES; k++)
        for (size_t n = smi_classes[k].size - 1; n <= smi_classes[k].size; n++) {
            void *block = shmalloc_malloc(f.heap, n);
            cr_assert_eq(shmalloc_usable_size(f.heap, block), smi_classes[k].size, "%zu bytes", n);
            must_work(shmalloc_free(f.heap, block));
        }
}

/* ---- A9 ---- */

Test(rows, a09_pairs_take_no_lock)
{
    enum { LIVE = 1000, PAIRS = 1000000 };
    static shmalloc_ref refs[LIVE];
    struct rng rng = rng_from(test_seed());
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < LIVE; i++)
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_below(&rng, 512), &refs[i]));
    uint64_t before = locks_taken;
    for (int i = 0; i < PAIRS; i++) {
        shmalloc_ref *ref = &refs[rng_below(&rng, LIVE)];
        must_work(shmalloc_ref_free(f.heap, ref));
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_below(&rng, 512), ref));
    }
    uint64_t locks = locks_taken - before;
    fprintf(stderr, "%llu locks for %d pairs\n", (unsigned long long)locks, PAIRS);
    cr_assert_gt(before, 0, "nothing is counted");
    cr_assert_lt(locks, PAIRS / 20);
}

static int takes_and_waits(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref refs[500];
    for (int i = 0; i < 500; i++)
        must_work(shmalloc_ref_alloc(heap, 64, &refs[i]));
    for (int i = 0; i < 500; i++)
        must_work(shmalloc_ref_free(heap, &refs[i]));
    must(heap_stats(heap).cached >= 64 * 200, "little is cached: the test proves nothing");
    signal_word(arg);
    pause();
    return 1;
}

Test(rows, a09_what_a_killed_owner_had_cached_comes_back)
{
    uint32_t *ready = shared_memory(4);
    f.heap = heap_create(f.path, 0);
    struct usage before = usage_now(f.heap);
    pid_t pid = start_child(takes_and_waits, ready);
    await_word(ready, 1);
    kill_child(pid);
    fixture_reopen(&f);
    must_be_as_before(f.heap, &before);
}

/* ---- A10 ---- */

Test(rows, a10_slots_move_in_batches)
{
    enum { COUNT = 100000, SIZE = 64, BATCH = 256 };
    static shmalloc_ref refs[COUNT];
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_ref_alloc(f.heap, SIZE, &refs[0])); /* attach the thread */
    struct smf_central *central =
        &f.heap->central[smi_current->arena * SMF_CLASSES + smi_class_of(SIZE)];
    uint64_t before = locks_taken;
    for (int i = 1; i < COUNT; i++)
        must_work(shmalloc_ref_alloc(f.heap, SIZE, &refs[i]));
    uint64_t locks = locks_taken - before, batch = central->refilled_slots / central->refills;
    fprintf(stderr, "%llu refills of %llu slots, %llu locks\n",
            (unsigned long long)central->refills, (unsigned long long)batch,
            (unsigned long long)locks);
    cr_assert_geq(central->refilled_slots, COUNT);
    cr_assert_geq(batch, 8);
    cr_assert_leq(batch, BATCH);
    /* a lock for each batch, and the page lock for each slab that is made */
    cr_assert_leq(locks, COUNT / batch + central->slabs_made + 64);
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    cr_assert_gt(central->flushes, 0);
    cr_assert_geq(central->flushed_slots / central->flushes, 8);
}

/* ---- A11 ---- */

static shmalloc_ref take_pages(uint64_t count)
{
    struct smi_take request = {.count = count, .alignment = 1, .kind = SMF_PAGE_LARGE};
    uint32_t page;
    int zero;
    must_work(smi_pages_take(f.heap, &request, &page, &zero));
    return (uint64_t)page << SMF_PAGE_SHIFT;
}

static void give_pages(shmalloc_ref ref)
{
    must_work(
        smi_pages_give(f.heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE, NULL, NULL));
}

static void take_all(void)
{
    for (uint64_t n; (n = heap_stats(f.heap).largest_free_run >> SMF_PAGE_SHIFT) > 0;)
        take_pages(n);
}

Test(rows, a11_the_shortest_span_that_fits_is_taken)
{
    static const uint64_t lengths[] = {5, 3, 257, 256, 255, 4000};
    enum { HOLES = sizeof(lengths) / sizeof(lengths[0]) };
    shmalloc_ref hole[HOLES];
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    shmalloc_ref room = take_pages(10000);
    take_all(); /* else shorter spans elsewhere would be the better fit */
    give_pages(room);
    for (int i = 0; i < HOLES; i++) {
        hole[i] = take_pages(lengths[i]);
        take_pages(1); /* keeps it from its neighbour */
    }
    take_all();
    for (int i = 0; i < HOLES; i++)
        give_pages(hole[i]);
    static const struct {
        uint64_t pages;
        int hole;
    } cases[] = {{3, 1}, {5, 0}, {255, 4}, {256, 3}, {257, 2}, {258, 5}, {4, 0}, {2, 1}, {6, 4}};
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        shmalloc_ref ref = take_pages(cases[i].pages);
        cr_assert_eq(ref, hole[cases[i].hole], "%llu pages", (unsigned long long)cases[i].pages);
        give_pages(ref);
    }
    must_be_sound(f.heap);
}

/* ---- A12 ---- */

static int recycle(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_open(f.path);
    for (int i = 0; i < 100010; i++) {
        shmalloc_ref ref = 0;
        if (i == 10)
            rows_mark_begin();
        must_work(shmalloc_ref_alloc(heap, 1 << 20, &ref));
        must_work(shmalloc_ref_free(heap, &ref));
    }
    rows_mark_end();
    return shmalloc_close(heap) < 0;
}

Test(rows, a12_large_blocks_are_recycled_without_system_calls)
{
    static struct rows_calls calls;
    must_work(shmalloc_close(heap_create(f.path, 0)));
    int status = rows_count_calls(recycle, NULL, &calls);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("ptrace is not permitted");
    cr_assert_eq(status, 0, "%d", status);
    fprintf(stderr, "%llu system calls for 100000 pairs of 1 MiB\n",
            (unsigned long long)calls.total);
    cr_assert_eq(rows_storage_calls(&calls), 0);
    cr_assert_lt(calls.total, 500, "looks for the dead, once a second, are all that is allowed");
}

Test(rows, a12_one_byte_costs_8)
{
    enum { COUNT = 10000 };
    static shmalloc_ref refs[COUNT];
    f.heap = heap_create(f.path, 0);
    uint64_t before = heap_stats(f.heap).allocated;
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_alloc(f.heap, 1, &refs[i]));
    cr_assert_eq(heap_stats(f.heap).allocated - before, 8 * COUNT);
    cr_assert_eq(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, refs[0])), 8);
}
