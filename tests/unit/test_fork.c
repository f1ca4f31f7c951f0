/* SPDX-License-Identifier: MIT */
/*
 * test_fork.c - a heap that is open across fork(), _Fork() and raw clone.
 *
 * Would fail if parent and child ever used one thread cache (both would hand out the same slots),
 * if a child's exit released what the parent holds, or if a child's death left its cache lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "heap_suite.h"
#include "format/layout.h"

HEAP_SUITE(fork, 0, 60);

/* A child without the atfork handlers. */
static pid_t fork_without_handlers(void)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    return _Fork();
#else
    return fork();
#endif
}

static pid_t (*const ways[])(void) = {fork, fork_without_handlers};
enum { WAYS = 2, COUNT = 3000 };

/* Refs by [0 parent, 1.. children][i], for all to see. */
struct shared {
    uint64_t refs[4][COUNT];
    uint32_t turn[4];
};

/* Allocate and fill as process `me`, then look whether anybody else wrote there. */
static int work(struct shared *s, int me, uint32_t processes)
{
    struct rng rng = rng_from((uint64_t)me);
    for (int i = 0; i < COUNT; i++) {
        size_t size = 1 + rng_log_uniform(&rng, 12);
        must_work(shmalloc_ref_alloc(f.heap, size, &s->refs[me][i]));
        pattern_fill(shmalloc_ptr(f.heap, s->refs[me][i]), 0, size, (uint64_t)(me * COUNT + i));
    }
    signal_word(&s->turn[0]);
    await_word(&s->turn[0], processes);
    rng = rng_from((uint64_t)me);
    for (int i = 0; i < COUNT; i++) {
        size_t size = 1 + rng_log_uniform(&rng, 12);
        must(pattern_check(shmalloc_ptr(f.heap, s->refs[me][i]), size,
                           (uint64_t)(me * COUNT + i)) == size,
             "process %d, block %d was handed out twice", me, i);
        must_work(shmalloc_ref_free(f.heap, &s->refs[me][i]));
    }
    return 0;
}

/* Slots in the parent's cache that a child must not take for its own. */
static void warm_up(void)
{
    static shmalloc_ref refs[COUNT];
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_alloc(f.heap, (size_t)i % 600 + 1, &refs[i]));
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
}

Test(fork, parent_and_children_allocate_at_once)
{
    for (int way = 0; way < WAYS; way++) {
        struct shared *s = shared_memory(sizeof(*s));
        warm_up();
        pid_t pids[3];
        pid_t parent = getpid();
        for (int i = 0; i < 3; i++)
            if ((pids[i] = ways[way]()) == 0) {
                die_with_parent(parent);
                _exit(work(s, i + 1, 4));
            }
        work(s, 0, 4);
        for (int i = 0; i < 3; i++)
            cr_assert_eq(wait_child(pids[i]), 0, "way %d, child %d", way, i);
        must_be_sound(f.heap);
    }
}

Test(fork, a_child_that_does_nothing_costs_nothing)
{
    for (int way = 0; way < WAYS; way++) {
        warm_up();
        shmalloc_stats was = heap_stats(f.heap);
        for (int i = 0; i < 50; i++) {
            pid_t pid = ways[way]();
            if (pid == 0)
                _exit(0);
            cr_assert_eq(wait_child(pid), 0);
        }
        shmalloc_stats now = heap_stats(f.heap);
        cr_assert_eq(now.processes, was.processes);
        cr_assert_eq(now.cached, was.cached, "the parent's cache changed");
        cr_assert_eq(now.allocated, was.allocated);
    }
}

/* The child lives on and works after the parent, which had opened the heap, is gone. */
static int parent_that_leaves(void *arg)
{
    struct shared *s = arg;
    warm_up();
    pid_t pid = fork();
    if (pid != 0) {
        work(s, 0, 1);
        return shmalloc_close(f.heap) < 0;
    }
    await_word(&s->turn[1], 1); /* the grandparent has seen our parent exit */
    s->turn[0] = 0;
    int rc = work(s, 1, 1);
    rc |= shmalloc_close(f.heap) < 0;
    signal_word(&s->turn[2]);
    _exit(rc);
}

Test(fork, a_child_may_outlive_its_parent)
{
    struct shared *s = shared_memory(sizeof(*s));
    must_work(shmalloc_close(f.heap));
    f.heap = heap_open(f.path);
    cr_assert_eq(run_child(parent_that_leaves, s), 0);
    signal_word(&s->turn[1]);
    await_word(&s->turn[2], 1);
    must_be_sound(f.heap);
}

/* The state mark in the file: 1 says that the last process closed in order, which a power cut would
 * believe. */
static uint64_t state_mark(void)
{
    uint64_t mark = 0;
    int fd = open(f.path, O_RDONLY);
    must(fd >= 0 && pread(fd, &mark, 8, SMF_STATE_OFFSET + offsetof(struct smf_state, mark)) == 8,
         "read");
    close(fd);
    return mark;
}

static int come_to_a_heap_at_rest(void *arg)
{
    uint32_t *turn = arg;
    await_word(&turn[0], 1); /* our parent has closed it, as the last one */
    must(state_mark() == SMF_CLEAN, "the heap is at rest");
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    must(state_mark() == SMF_IN_USE, "the heap is changed and marked clean");
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_be_sound(f.heap);
    must_work(shmalloc_close(f.heap));
    must(state_mark() == SMF_CLEAN, "the child was the last one");
    return 0;
}

Test(fork, a_child_that_comes_to_a_heap_at_rest_takes_it_into_use)
{
    uint32_t *turn = shared_memory(4);
    pid_t pid = start_child(come_to_a_heap_at_rest, turn);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    signal_word(turn);
    cr_assert_eq(wait_child(pid), 0);
    f.heap = heap_open(f.path);
}

/* The parent's handle stays good when a child closes its own, in order or by dying. */
static int close_it(void *arg)
{
    (void)arg;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    return shmalloc_close(f.heap) < 0;
}

static int close_unused(void *arg)
{
    (void)arg;
    return shmalloc_close(f.heap) < 0;
}

static int die_with_a_cache(void *arg)
{
    (void)arg;
    warm_up();
    raise(SIGKILL);
    return 1;
}

Test(fork, a_childs_end_leaves_the_parent_attached)
{
    for (int i = 0; i < 20; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 500, &ref));
        cr_assert_eq(run_child(close_it, NULL), 0);
        cr_assert_eq(run_child(close_unused, NULL), 0);
        cr_assert_eq(run_child(die_with_a_cache, NULL), -SIGKILL);
        must_work(shmalloc_ref_free(f.heap, &ref));
        cr_assert_geq(heap_stats(f.heap).processes, 1);
    }
    pid_t pid = start_child(close_it, NULL); /* our liveness lock is still ours: nobody adopts us */
    warm_up();
    cr_assert_eq(wait_child(pid), 0);
    must_be_sound(f.heap);
}

static int use_fresh_open(void *arg)
{
    (void)arg;
    shmalloc_heap *again = heap_open(f.path); /* while the inherited handle is there too */
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(again, 64, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_close(again));
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    return shmalloc_close(f.heap) < 0;
}

Test(fork, a_child_may_open_the_heap_again)
{
    cr_assert_eq(run_child(use_fresh_open, NULL), 0);
}

static int fork_deeper(void *arg)
{
    int depth = *(int *)arg - 1;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    int rc = depth > 0 ? run_child(fork_deeper, &depth) : 0;
    must_work(shmalloc_ref_free(f.heap, &ref));
    return rc;
}

Test(fork, generations_of_children)
{
    int depth = 10;
    cr_assert_eq(run_child(fork_deeper, &depth), 0);
}

/* A child of raw clone has a C library that takes it for its parent, robust mutexes included: it
 * must be turned away, and the parent must not notice. */
Test(fork, a_child_of_raw_clone_is_refused)
{
    warm_up();
    uint64_t cached = heap_stats(f.heap).cached;
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        shmalloc_ref ref = 0;
        int rc = shmalloc_ref_alloc(f.heap, 64, &ref);
        _exit(rc != -ENOTSUP || ref != 0);
    }
    cr_assert_eq(wait_child(pid), 0);
    cr_assert_eq(heap_stats(f.heap).cached, cached);
}

/* ---- what a dead child had cached ---- */

Test(fork, a_killed_childs_cache_comes_back_while_the_parent_goes_on)
{
    cr_assert_eq(run_child(die_with_a_cache, NULL), -SIGKILL);
    cr_assert_eq(heap_stats(f.heap).processes, 2, "nobody has looked yet");
    shmalloc_ref ref = 0;
    uint64_t deadline = now_ns() + 5000000000ull;
    while (heap_stats(f.heap).processes > 1 && now_ns() < deadline) { /* it looks now and then */
        must_work(shmalloc_ref_alloc(f.heap, 100000, &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
    }
    cr_assert_eq(heap_stats(f.heap).processes, 1);
    cr_assert_eq(heap_stats(f.heap).threads, 1);
    must_be_as_before(f.heap, &before);
}

/* ---- fork while other threads are inside the library ---- */

static uint32_t stop;

static void *allocate_on(void *arg)
{
    struct rng rng = rng_from((uint64_t)(uintptr_t)arg);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        shmalloc_ref refs[50] = {0};
        for (int i = 0; i < 50; i++)
            must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 18), &refs[i]));
        for (int i = 0; i < 50; i++)
            must_work(shmalloc_ref_free(f.heap, &refs[i]));
    }
    return NULL;
}

static int allocate_a_little(void *arg)
{
    (void)arg;
    struct rng rng = rng_from(9);
    for (int i = 0; i < 200; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 18), &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
    }
    return 0;
}

Test(fork, while_other_threads_allocate)
{
    pthread_t threads[3];
    for (uintptr_t i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, allocate_on, (void *)i);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(wait_child_within(start_child(allocate_a_little, NULL), 10000), 0, "child %d",
                     i);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    must_be_sound(f.heap);
}
