/* SPDX-License-Identifier: MIT */
/*
 * test_threads.c - threads and processes that come and go, and how many there may be at once.
 *
 * Would fail if a thread's cache or slot were lost at its end, if a slot were given to two threads,
 * or if the thread beyond the last slot got anything but its error code.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(threads, 0, 120);

static pthread_t start_thread(void *(*fn)(void *), void *arg)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    int rc = pthread_create(&thread, &attributes, fn, arg);
    must(rc == 0, "pthread_create: %s", strerror(rc));
    pthread_attr_destroy(&attributes);
    return thread;
}

static void *allocate_and_free(void *arg)
{
    shmalloc_ref refs[100];
    struct rng rng = rng_from((uint64_t)(uintptr_t)arg);
    for (int i = 0; i < 100; i++) {
        size_t size = 1 + rng_log_uniform(&rng, 14);
        must_work(shmalloc_ref_alloc(f.heap, size, &refs[i]));
        pattern_fill(shmalloc_ptr(f.heap, refs[i]), 0, size, (uint64_t)(uintptr_t)arg);
    }
    rng = rng_from((uint64_t)(uintptr_t)arg);
    for (int i = 0; i < 100; i++) {
        size_t size = 1 + rng_log_uniform(&rng, 14);
        must(pattern_check(shmalloc_ptr(f.heap, refs[i]), size, (uint64_t)(uintptr_t)arg) == size,
             "block %d of thread %p", i, arg);
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    }
    return NULL;
}

Test(threads, a_thousand_come_and_go)
{
    pthread_t threads[8];
    uint64_t metadata = 0;
    for (uintptr_t i = 0; i < 1000; i += 8) {
        for (uintptr_t k = 0; k < 8; k++)
            threads[k] = start_thread(allocate_and_free, (void *)(i + k));
        for (int k = 0; k < 8; k++)
            pthread_join(threads[k], NULL);
        shmalloc_stats s = heap_stats(f.heap);
        must(s.threads <= 1, "%llu threads have slots", (unsigned long long)s.threads);
        must(s.cached == 0, "%llu bytes are cached by the gone", (unsigned long long)s.cached);
        if (i == 400)
            metadata = s.metadata;
    }
    cr_assert_leq(heap_stats(f.heap).metadata, metadata + (1 << 20), "slots are not used again");
}

static void *free_what_main_allocated(void *arg)
{
    shmalloc_ref *refs = arg;
    for (int i = 0; i < 1000; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    return NULL;
}

/* A block that went through other hands before its allocator frees it, with nothing allocated in
 * between: the thread remembers it as a block of 8 KiB, or as one without a tag. */
enum { SMALL_BLOCKS = 20000 };

static void *free_and_allocate_small_there(void *block)
{
    static void *blocks[SMALL_BLOCKS];
    int i = 0, found = 0;
    must_work(shmalloc_free(f.heap, block));
    must(shmalloc_trim(f.heap) >= 0, "trim: %s", shmalloc_errmsg());
    for (; i < SMALL_BLOCKS && !found; i++)
        found = (blocks[i] = shmalloc_malloc(f.heap, 32)) == block;
    must(found, "the page was not used again");
    for (int other = 0; other < i - 1; other++)
        must_work(shmalloc_free(f.heap, blocks[other]));
    return NULL;
}

/* Two blocks from the calling thread's stack. */
static void two_cached_blocks(size_t size, void *out[2])
{
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 2; i++)
            must((out[i] = shmalloc_malloc(f.heap, size)) != NULL, "%s", shmalloc_errmsg());
        for (int i = 0; i < 2 && round == 0; i++)
            must_work(shmalloc_free(f.heap, out[i]));
    }
}

Test(threads, a_remembered_block_may_come_back_in_another_class)
{
    void *two[2];
    two_cached_blocks(8192, two);
    void *first = two[0], *block = two[1];
    pthread_join(start_thread(free_and_allocate_small_there, block), NULL);
    must_work(shmalloc_free(f.heap, block));
    must_be_sound(f.heap);
    void *next = shmalloc_malloc(f.heap, 8192);
    cr_assert_neq(next, block, "a block of 32 bytes was taken for one of 8 KiB");
    must_work(shmalloc_free(f.heap, next));
    must_work(shmalloc_free(f.heap, first));
}

Test(threads, what_is_no_ref_is_no_block_even_on_the_fast_path)
{
    shmalloc_ref nothing = 0;
    must(shmalloc_trim(f.heap) >= 0, "trim: %s", shmalloc_errmsg());
    must_work(shmalloc_ref_free(f.heap, &nothing));
    must_code(shmalloc_free(f.heap, shmalloc_ptr(f.heap, 1)), SHMALLOC_EBADREF);
    must_be_sound(f.heap);
}

static void *free_and_allocate_tagged_there(void *block)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_free(f.heap, block));
    must_work(shmalloc_ref_alloc_tagged(f.heap, 64, 7, &ref));
    must(shmalloc_ptr(f.heap, ref) == block, "the slot was not used again");
    return NULL;
}

Test(threads, a_remembered_block_may_come_back_with_a_tag)
{
    void *two[2];
    two_cached_blocks(64, two);
    void *first = two[0], *block = two[1];
    pthread_join(start_thread(free_and_allocate_tagged_there, block), NULL);
    must_work(shmalloc_free(f.heap, block));
    cr_assert_eq(shmalloc_malloc(f.heap, 64), block);
    cr_assert_eq(shmalloc_tag(f.heap, shmalloc_ref_of(f.heap, block)), 0,
                 "it still has the tag that it was freed with");
    must_work(shmalloc_free(f.heap, block));
    must_work(shmalloc_free(f.heap, first));
}

Test(threads, blocks_may_be_freed_by_any_thread)
{
    static shmalloc_ref refs[1000];
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < 1000; i++)
            must_work(shmalloc_ref_alloc(f.heap, i * 10 + 1, &refs[i]));
        pthread_join(start_thread(free_what_main_allocated, refs), NULL);
    }
    cr_assert_eq(heap_stats(f.heap).allocated, 0);
}

/* Threads that end without any destructor running: their slots are found when they are needed. */
static void *leave_rawly(void *arg)
{
    allocate_and_free(arg);
    syscall(SYS_exit, 0);
    return NULL;
}

Test(threads, slots_of_raw_exits_are_used_again)
{
    if (TEST_ASAN)
        cr_skip_test("the sanitizer does not stand a thread that ends without it");
    for (uintptr_t i = 0; i < 1200; i++) {
        pthread_t thread = start_thread(leave_rawly, (void *)i);
        pthread_join(thread, NULL); /* the kernel clears the id that join waits for */
    }
    must_be_sound(f.heap);
}

/* ---- as many as there can be ---- */

enum { MOST_THREADS = 1024, MOST_PROCESSES = 128 };
static uint32_t attached, leave;
static int attach_codes[MOST_THREADS + 8];

static void *attach_and_wait(void *arg)
{
    int *code = arg;
    shmalloc_ref ref = 0;
    *code = shmalloc_ref_alloc(f.heap, 64, &ref);
    signal_word(&attached);
    await_word(&leave, 1);
    if (*code == 0)
        must_work(shmalloc_ref_free(f.heap, &ref));
    return NULL;
}

Test(threads, the_1025th_is_refused_until_one_leaves)
{
    static pthread_t threads[MOST_THREADS];
    shmalloc_ref mine = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64, &mine)); /* this thread has one of the slots */
    for (int i = 0; i < MOST_THREADS - 1; i++)
        threads[i] = start_thread(attach_and_wait, &attach_codes[i]);
    await_word(&attached, MOST_THREADS - 1);
    for (int i = 0; i < MOST_THREADS - 1; i++)
        must_code(attach_codes[i], 0);
    cr_assert_eq(heap_stats(f.heap).threads, MOST_THREADS);
    must_be_sound(f.heap);
    threads[MOST_THREADS - 1] = start_thread(attach_and_wait, &attach_codes[MOST_THREADS]);
    await_word(&attached, MOST_THREADS);
    must_code(attach_codes[MOST_THREADS], SHMALLOC_ETHREADS);
    signal_word(&leave);
    for (int i = 0; i < MOST_THREADS; i++)
        pthread_join(threads[i], NULL);
    must_work(shmalloc_ref_free(f.heap, &mine));
    pthread_join(start_thread(allocate_and_free, NULL), NULL);
    cr_assert_leq(heap_stats(f.heap).threads, 1);
}

struct crowd {
    uint32_t attached, leave;
};

static int open_and_wait(void *arg)
{
    struct crowd *crowd = arg;
    shmalloc_heap *heap = fixture_join(&f);
    signal_word(&crowd->attached);
    await_word(&crowd->leave, 1);
    return shmalloc_close(heap) < 0;
}

static int open_one_too_many(void *arg)
{
    (void)arg;
    shmalloc_heap *heap;
    must_work(shmalloc_close(f.heap)); /* inherited, and not attached */
    must_code(shmalloc_open(f.path, NULL, &heap), SHMALLOC_EPROCESSES);
    return 0;
}

static int allocate_as_forked_child(void *arg)
{
    shmalloc_ref ref = 0;
    must_code(shmalloc_ref_alloc(f.heap, 64, &ref), *(int *)arg);
    if (ref)
        must_work(shmalloc_ref_free(f.heap, &ref));
    return shmalloc_close(f.heap) < 0;
}

Test(threads, the_129th_process_is_refused_until_one_leaves)
{
    struct crowd *crowd = shared_memory(sizeof(*crowd));
    pid_t pids[MOST_PROCESSES - 1];
    int refused = SHMALLOC_EPROCESSES, works = 0;
    for (int i = 0; i < MOST_PROCESSES - 1; i++)
        pids[i] = start_child(open_and_wait, crowd);
    await_word(&crowd->attached, MOST_PROCESSES - 1);
    cr_assert_eq(heap_stats(f.heap).processes, MOST_PROCESSES);
    cr_assert_eq(run_child(allocate_as_forked_child, &refused), 0);
    kill_child(pids[0]); /* a dead one makes room as well as one that closes */
    cr_assert_eq(run_child(allocate_as_forked_child, &works), 0);
    pids[0] = start_child(open_and_wait, crowd);
    await_word(&crowd->attached, MOST_PROCESSES);
    cr_assert_eq(run_child(open_one_too_many, NULL), 0);
    signal_word(&crowd->leave);
    for (int i = 0; i < MOST_PROCESSES - 1; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    cr_assert_eq(run_child(allocate_as_forked_child, &works), 0);
    cr_assert_eq(heap_stats(f.heap).processes, 1);
}

/* ---- several heaps ---- */

Test(threads, one_thread_may_use_many_heaps)
{
    enum { HEAPS = 12 };
    shmalloc_heap *heaps[HEAPS];
    shmalloc_ref refs[HEAPS][50];
    char name[20];
    for (int i = 0; i < HEAPS; i++) {
        snprintf(name, sizeof(name), "heap-%d", i);
        heaps[i] = heap_create(fixture_path(&f, name), 0);
    }
    for (int k = 0; k < 50; k++)
        for (int i = 0; i < HEAPS; i++) {
            must_work(shmalloc_ref_alloc(heaps[i], 100, &refs[i][k]));
            pattern_fill(shmalloc_ptr(heaps[i], refs[i][k]), 0, 100, (uint64_t)(i * 100 + k));
        }
    for (int i = 0; i < HEAPS; i++) {
        for (int k = 0; k < 50; k++) {
            cr_assert_eq(
                pattern_check(shmalloc_ptr(heaps[i], refs[i][k]), 100, (uint64_t)(i * 100 + k)),
                100);
            must_work(shmalloc_ref_free(heaps[i], &refs[i][k]));
        }
        cr_assert_eq(heap_stats(heaps[i]).allocated, 0);
        must_be_sound(heaps[i]);
        must_work(shmalloc_close(heaps[i]));
    }
}

Test(threads, a_block_of_one_heap_is_foreign_to_another)
{
    shmalloc_heap *other = heap_create(fixture_path(&f, "other"), 0);
    void *p = shmalloc_malloc(other, 100);
    must_code(shmalloc_free(f.heap, p), SHMALLOC_EBADREF);
    cr_assert_eq(shmalloc_ref_of(f.heap, p), 0);
    must_work(shmalloc_free(other, p));
    must_work(shmalloc_close(other));
}
