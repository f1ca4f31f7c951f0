/* SPDX-License-Identifier: MIT */
/*
 * test_private.c - heaps in memory of one process: what they promise alone, across fork, and with
 * many threads.
 *
 * Would fail if a child went on with a half-made change of a thread that it does not have, waited
 * for a lock that nobody has any more, shared memory with its parent, or lost what the parent's
 * threads had cached.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "handle/handle.h"
#include "slots/context.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "support.h"

TestSuite(private, .timeout = 120);

static shmalloc_heap *heap;

static void open_heap(unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    must_work(shmalloc_open_private(&options, &heap));
}

/* ---- alone ---- */

static void *filled(size_t size, uint64_t stamp)
{
    void *block = shmalloc_malloc(heap, size);
    must(block, "%zu bytes: %s", size, shmalloc_errmsg());
    pattern_fill(block, 0, size, stamp);
    return block;
}

static void check_and_free(void *block, size_t size, uint64_t stamp)
{
    must(pattern_check(block, size, stamp) == size, "block %p of %zu bytes changed", block, size);
    must_work(shmalloc_free(heap, block));
}

Test(private, every_size_from_a_byte_to_64_MiB)
{
    enum { COUNT = 300 };
    void *blocks[COUNT];
    size_t sizes[COUNT];
    struct rng rng = rng_from(test_seed());
    open_heap(0);
    struct usage before = usage_now(heap);
    for (int i = 0; i < COUNT; i++) {
        sizes[i] = 1 + rng_log_uniform(&rng, i % 10 == 0 ? 26 : 16);
        blocks[i] = filled(sizes[i], (uint64_t)i);
    }
    must_be_sound(heap);
    for (int i = 0; i < COUNT; i++)
        check_and_free(blocks[i], sizes[i], (uint64_t)i);
    must_be_as_before(heap, &before);
    must_work(shmalloc_close(heap));
}

Test(private, zeroed_blocks_are_zero_where_others_were)
{
    open_heap(0);
    for (size_t size = 1; size < 8 << 20; size = size * 3 + 1) {
        must_work(shmalloc_free(heap, filled(size, size)));
        void *block = shmalloc_calloc(heap, 1, size);
        must(block && all_zero(block, size), "%zu bytes", size);
        must_work(shmalloc_free(heap, block));
    }
    must_work(shmalloc_close(heap));
}

Test(private, trimmed_memory_goes_back_and_reads_as_zeros)
{
    enum { SIZE = 64 << 20 };
    open_heap(0);
    void *block = filled(SIZE, 1);
    must_work(shmalloc_free(heap, block));
    int64_t given = shmalloc_trim(heap);
    must(given >= SIZE, "%lld bytes went back", (long long)given);
    must_be_sound(heap);
    void *again = shmalloc_calloc(heap, 1, SIZE);
    must(again && all_zero(again, SIZE), "after a trim");
    must_work(shmalloc_close(heap));
}

Test(private, alignment_up_to_1_GiB)
{
    open_heap(0);
    for (size_t alignment = 1; alignment <= 1u << 30; alignment *= 2) {
        char *block = shmalloc_aligned_alloc(heap, alignment, 100);
        must(block && (uintptr_t)block % alignment == 0, "alignment %zu gives %p: %s", alignment,
             (void *)block, shmalloc_errmsg());
        memset(block, 1, 100);
    }
    must(!shmalloc_aligned_alloc(heap, 1ull << 31, 1) && errno == EINVAL, "2 GiB");
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

Test(private, roots_links_tags_and_statistics_work)
{
    open_heap(0);
    shmalloc_ref ref, found, word;
    must_work(shmalloc_ref_alloc_tagged(heap, 100, 7, &ref));
    cr_assert_eq(shmalloc_tag(heap, ref), 7);
    must_work(shmalloc_root_set(heap, "it", 1, ref));
    must_work(shmalloc_root_get(heap, "it", 1, &found));
    cr_assert_eq(found, ref);
    must_work(shmalloc_ref_alloc_zeroed(heap, 8, &word));
    shmalloc_ref *inside = shmalloc_ptr(heap, word);
    must_work(shmalloc_ref_alloc(heap, 50, inside));
    must_work(shmalloc_ref_realloc(heap, inside, 5000));
    must_work(shmalloc_ref_free(heap, inside));
    shmalloc_stats stats = heap_stats(heap);
    cr_assert_eq(stats.allocated_blocks, 2);
    cr_assert_eq(stats.threads, 1);
    must_code(shmalloc_sync(heap, 0, 0), -EINVAL);
    must_work(shmalloc_close(heap));
}

Test(private, a_hardened_one_finds_every_double_free)
{
    open_heap(SHMALLOC_HARDENED);
    void *a = filled(40, 1), *b = filled(40, 2);
    must_work(shmalloc_free(heap, a));
    must_work(shmalloc_free(heap, b));
    must_code(shmalloc_free(heap, a), SHMALLOC_EDOUBLEFREE);
    must_work(shmalloc_close(heap));
}

Test(private, options_of_files_are_refused)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_code(shmalloc_open_private(&options, &heap), -EINVAL);
    options.flags = 0;
    options.base = (void *)(1ull << 40);
    must_code(shmalloc_open_private(&options, &heap), -EINVAL);
    options.base = NULL;
    options.max_size = 1 << 20;
    options.initial_size = 2 << 20;
    must_code(shmalloc_open_private(&options, &heap), -EINVAL);
    must_code(shmalloc_open_private(NULL, NULL), -EINVAL);
}

Test(private, two_of_them_know_their_own_blocks)
{
    shmalloc_heap *other;
    open_heap(SHMALLOC_HUGE_PAGES);
    must_work(shmalloc_open_private(NULL, &other));
    void *block = filled(30, 1);
    must_code(shmalloc_free(other, block), SHMALLOC_EBADREF);
    check_and_free(block, 30, 1);
    must_work(shmalloc_close(heap));
    must(shmalloc_malloc(other, 5), "the other one is open still");
    must_code(shmalloc_ref_alloc(heap, 1, &(shmalloc_ref){0}), SHMALLOC_ECLOSED);
    must_work(shmalloc_close(other));
}

Test(private, the_maximum_size_is_a_limit)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.max_size = 8 << 20;
    must_work(shmalloc_open_private(&options, &heap));
    cr_assert_null(shmalloc_malloc(heap, 9 << 20));
    cr_assert_eq(errno, ENOMEM);
    cr_assert_not_null(shmalloc_malloc(heap, 6 << 20));
    must_work(shmalloc_close(heap));
}

#if !TEST_ASAN
static int within_limits(void *arg)
{
    (void)arg;
    struct rlimit limit = {1ull << 30, 1ull << 30};
    must(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
    open_heap(0);
    must(shmalloc_malloc(heap, 300 << 20), "300 MiB of the half GiB: %s", shmalloc_errmsg());
    must(!shmalloc_malloc(heap, 900 << 20) && errno == ENOMEM, "900 MiB");
    return 0;
}

Test(private, lies_within_a_limit_on_addresses)
{
    cr_assert_eq(run_child(within_limits, NULL), 0);
}
#endif

/* ---- children ---- */

static pid_t (*const ways[])(void) = {fork, _Fork};

static int child_works(void)
{
    enum { COUNT = 800 };
    static void *blocks[COUNT];
    for (int i = 0; i < COUNT; i++)
        blocks[i] = filled((size_t)i * 7 % 9000 + 1, (uint64_t)i);
    must_be_sound(heap);
    for (int i = 0; i < COUNT; i++)
        check_and_free(blocks[i], (size_t)i * 7 % 9000 + 1, (uint64_t)i);
    return 0;
}

Test(private, a_child_has_a_copy)
{
    for (int way = 0; way < 2; way++) {
        open_heap(0);
        char *block = filled(100, 1), *large = filled(1 << 20, 2);
        pid_t pid = ways[way]();
        if (pid == 0) {
            check_and_free(block, 100, 1);
            pattern_fill(large, 0, 1 << 20, 3);
            pid_t grandchild = ways[way]();
            if (grandchild == 0)
                _exit(child_works());
            must(wait_child(grandchild) == 0, "the grandchild");
            check_and_free(large, 1 << 20, 3);
            _exit(child_works());
        }
        cr_assert_eq(wait_child(pid), 0, "way %d", way);
        check_and_free(block, 100, 1);
        check_and_free(large, 1 << 20, 2);
        must_work(shmalloc_close(heap));
    }
}

Test(private, a_child_may_close_it)
{
    open_heap(0);
    void *block = filled(1, 1);
    pid_t pid = fork();
    if (pid == 0)
        _exit(shmalloc_close(heap) == 0 &&
                      shmalloc_ref_alloc(heap, 1, &(shmalloc_ref){0}) == SHMALLOC_ECLOSED
                  ? 0
                  : 1);
    cr_assert_eq(wait_child(pid), 0);
    check_and_free(block, 1, 1);
    must_work(shmalloc_close(heap));
}

static int stop;

/* Allocates and frees without end; what it holds is in its stack frame. */
static void *churn(void *arg)
{
    enum { HELD = 64 };
    void *held[HELD] = {0};
    struct rng rng = rng_from(test_seed() + (uintptr_t)arg);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        unsigned i = (unsigned)rng_below(&rng, HELD);
        if (held[i])
            must_work(shmalloc_free(heap, held[i]));
        held[i] = shmalloc_malloc(heap, 1 + rng_log_uniform(&rng, 18));
        must(held[i], "%s", shmalloc_errmsg());
        *(char *)held[i] = 1;
    }
    for (int i = 0; i < HELD; i++)
        if (held[i])
            must_work(shmalloc_free(heap, held[i]));
    return NULL;
}

/* Fork again and again while other threads are in the middle of everything. */
static void fork_under_load(unsigned flags, int times)
{
    enum { THREADS = 2 };
    pthread_t threads[THREADS];
    open_heap(flags);
    stop = 0;
    for (uintptr_t i = 0; i < THREADS; i++)
        must(pthread_create(&threads[i], NULL, churn, (void *)i) == 0, "pthread_create");
    for (int i = 0; i < times; i++) {
        void *mine = filled(200, (uint64_t)i);
        pid_t pid = ways[i % 2]();
        if (pid == 0) {
            check_and_free(mine, 200, (uint64_t)i);
            must_be_sound(heap);
            must(heap_stats(heap).threads == 1, "the slots of the parent's threads came back");
            _exit(child_works());
        }
        must(wait_child_within(pid, 20000) == 0, "child %d", i);
        check_and_free(mine, 200, (uint64_t)i);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

Test(private, forks_while_threads_are_in_the_middle)
{
    fork_under_load(0, 80);
    fork_under_load(SHMALLOC_HARDENED, 20);
}

/* The thread that comes first in a forked child brings the copy to rest. Meanwhile the other one
 * forks once more. */
static void *come_first(void *arg)
{
    (void)arg;
    signal_word((uint32_t *)&stop);
    must(shmalloc_malloc(heap, 100), "%s", shmalloc_errmsg());
    return NULL;
}

static void grandchild_of_a_settling_child(unsigned pauses)
{
    pthread_t thread;
    stop = 0;
    must(pthread_create(&thread, NULL, come_first, NULL) == 0, "pthread_create");
    await_word((uint32_t *)&stop, 1);
    for (volatile unsigned i = 0; i < pauses; i++)
        continue;
    pid_t pid = _Fork();
    if (pid == 0)
        _exit(child_works());
    must(wait_child_within(pid, 20000) == 0, "the grandchild");
    pthread_join(thread, NULL);
}

Test(private, a_child_that_settles_may_fork)
{
    enum { COUNT = 50000 };
    static void *blocks[COUNT];
    struct rng rng = rng_from(test_seed());
    for (int round = 0; round < 40; round++) {
        open_heap(0);
        for (int i = 0; i < COUNT; i++)
            blocks[i] = shmalloc_malloc(heap, (size_t)(8 + i % 60 * 16));
        for (int i = 0; i < COUNT; i++)
            must_work(shmalloc_free(heap, blocks[i])); /* full stacks, which take their time to give
                                                          back */
        pid_t pid = fork();
        if (pid == 0) {
            grandchild_of_a_settling_child((unsigned)rng_below(&rng, 500000));
            _exit(0);
        }
        must(wait_child_within(pid, 30000) == 0, "child %d", round);
        must_work(shmalloc_close(heap));
    }
}

static void *allocate_one(void *arg)
{
    (void)arg;
    must(shmalloc_malloc(heap, 100), "%s", shmalloc_errmsg());
    return NULL;
}

/* A new thread of a forked child is the first to take the long way. What belongs to the one that
 * forked stays its own: it could be in the middle of a call. */
Test(private, a_child_whose_new_thread_settles)
{
    for (int way = 0; way < 2; way++) {
        pthread_t thread;
        open_heap(0);
        void *block = shmalloc_malloc(heap, 100);
        must_work(shmalloc_free(heap, block));
        const struct smi_thread *mine = heap->contexts;
        pid_t pid = ways[way]();
        if (pid == 0) {
            must(pthread_create(&thread, NULL, allocate_one, NULL) == 0, "pthread_create");
            pthread_join(thread, NULL);
            must(mine->serves == heap && mine->slot->owner != 0,
                 "the context of the thread that forked was taken away");
            must(shmalloc_malloc(heap, 100) == block, "its stack is another");
            must(heap_stats(heap).threads == 1, "it has a second slot");
            must_be_sound(heap);
            _exit(0);
        }
        cr_assert_eq(wait_child_within(pid, 20000), 0);
        must_work(shmalloc_close(heap));
    }
}

static pthread_t first_thread;

/* In a child whose first thread ended before anybody there came to `heap`. */
static void *come_late(void *arg)
{
    shmalloc_heap *other;
    pthread_join(first_thread, NULL);
    must_work(shmalloc_open_private(NULL, &other));
    for (int i = 0; i < 3; i++)
        must(shmalloc_malloc(other, 100) && shmalloc_malloc(heap, 100), "%s", shmalloc_errmsg());
    must_be_sound(heap);
    must_be_sound(other);
    must_work(shmalloc_close(other));
    must(shmalloc_malloc(heap, 100), "%s", shmalloc_errmsg());
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    _exit(arg != NULL);
}

Test(private, a_thread_of_a_child_ends_before_the_copy_is_used)
{
    open_heap(0);
    void *block = shmalloc_malloc(heap, 100);
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        first_thread = pthread_self();
        must(pthread_create(&thread, NULL, come_late, NULL) == 0, "pthread_create");
        pthread_exit(NULL);
    }
    cr_assert_eq(wait_child_within(pid, 20000), 0);
    must_work(shmalloc_free(heap, block));
    must_work(shmalloc_close(heap));
}

static void *hold_and_wait(void *arg)
{
    must_work(shmalloc_mutex_lock(heap, arg));
    signal_word((uint32_t *)&stop);
    await_word((uint32_t *)&stop, 2);
    must_work(shmalloc_mutex_unlock(heap, arg));
    return NULL;
}

Test(private, a_mutex_is_free_in_the_child_and_says_if_it_was_held)
{
    pthread_t thread;
    open_heap(0);
    shmalloc_mutex *held = shmalloc_calloc(heap, 1, sizeof(*held)),
                   *unheld = shmalloc_calloc(heap, 1, sizeof(*held));
    must_work(shmalloc_mutex_lock(heap, unheld));
    must_work(shmalloc_mutex_unlock(heap, unheld));
    stop = 0;
    must(pthread_create(&thread, NULL, hold_and_wait, held) == 0, "pthread_create");
    await_word((uint32_t *)&stop, 1);
    pid_t pid = fork();
    if (pid == 0) {
        must_code(shmalloc_mutex_lock(heap, unheld), 0);
        must_code(shmalloc_mutex_lock(heap, held), SHMALLOC_OWNER_DIED);
        _exit(0);
    }
    cr_assert_eq(wait_child(pid), 0);
    must_code(shmalloc_mutex_trylock(heap, held), -EBUSY);
    signal_word((uint32_t *)&stop);
    pthread_join(thread, NULL);
    must_work(shmalloc_close(heap));
}

static void *hold_page_heap(void *arg)
{
    (void)arg;
    must(shmalloc_malloc(heap, 8), "%s", shmalloc_errmsg()); /* it is one of the heap's threads */
    must_work(smi_lock_acquire(heap, smi_lock_of_pages(heap)));
    signal_word((uint32_t *)&stop);
    await_word((uint32_t *)&stop, 2);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return NULL;
}

Test(private, a_child_may_begin_with_frees_of_large_blocks)
{
    enum { LARGE = 100000, COUNT = 2 * SMF_SPANS };
    void *blocks[COUNT];
    pthread_t thread;
    open_heap(0);
    for (int i = 0; i < COUNT; i++)
        must((blocks[i] = shmalloc_malloc(heap, LARGE)) != NULL, "%s", shmalloc_errmsg());
    for (unsigned i = 0; i < SMF_SPANS; i++) /* as many as a thread keeps: each that is freed later
                                                takes one's place */
        must_work(shmalloc_free(heap, blocks[i]));
    stop = 0;
    must(pthread_create(&thread, NULL, hold_page_heap, NULL) == 0, "pthread_create");
    await_word((uint32_t *)&stop, 1);
    pid_t pid = fork();
    if (pid == 0) {
        for (unsigned i = SMF_SPANS; i < COUNT; i++)
            must_work(shmalloc_free(heap, blocks[i]));
        must_be_sound(heap);
        _exit(0);
    }
    int status = wait_child_within(pid, 5000);
    signal_word((uint32_t *)&stop);
    pthread_join(thread, NULL);
    cr_assert_eq(status, 0);
    must_work(shmalloc_close(heap));
}

static void *await_second(void *arg)
{
    await_word((uint32_t *)&stop, 2);
    return arg;
}

static int forks_inside;

/* Runs in fork(), after the library's own handler. */
static void fork_in_fork(void)
{
    if (forks_inside++ > 0)
        return;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    must(wait_child_within(pid, 20000) == 0, "the inner child");
}

static int fork_in_fork_beside_a_thread(void *arg)
{
    pthread_t idle, late;
    /* the last to be registered is the first to run */
    must(pthread_atfork(fork_in_fork, NULL, NULL) == 0, "pthread_atfork");
    open_heap(0);
    must(shmalloc_malloc(heap, 8), "%s", shmalloc_errmsg());
    stop = 0;
    must(pthread_create(&idle, NULL, await_second, NULL) == 0, "pthread_create");
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    must(wait_child_within(pid, 20000) == 0, "the child");
    must(pthread_create(&late, NULL, allocate_one, NULL) == 0, "pthread_create");
    pthread_join(late, NULL);
    return arg != NULL;
}

Test(private, a_fork_inside_a_fork_leaves_no_lock_held)
{
    pid_t pid = start_child(fork_in_fork_beside_a_thread, NULL);
    cr_assert_eq(wait_child_within(pid, 10000), 0);
}

/* A handler that forks while this thread may be anywhere in the allocator. */
static volatile int forks;

static void fork_in_handler(int signal)
{
    (void)signal;
    pid_t pid = fork();
    if (pid == 0)
        return; /* the interrupted call goes on in the child */
    must(wait_child_within(pid, 20000) == 0, "the child of a handler");
    forks++;
}

static int churn_and_fork(void *arg)
{
    (void)arg;
    pid_t me = getpid();
    struct sigaction action = {.sa_handler = fork_in_handler};
    sigaction(SIGALRM, &action, NULL);
    open_heap(0);
    struct rng rng = rng_from(test_seed());
    void *held[64] = {0};
    for (int round = 0; forks < 40; round++) {
        if (round % 20 == 0)
            ualarm((useconds_t)(1 + rng_below(&rng, 300)), 0);
        for (int n = 0; n < 200 && getpid() == me; n++) {
            unsigned i = (unsigned)rng_below(&rng, 64);
            if (held[i])
                must_work(shmalloc_free(heap, held[i]));
            held[i] = shmalloc_malloc(heap, 1 + rng_log_uniform(&rng, 18));
        }
        if (getpid() != me) {
            must_be_sound(heap);
            return child_works();
        }
    }
    return 0;
}

Test(private, a_handler_may_fork_in_the_middle_of_a_call)
{
    cr_assert_eq(run_child(churn_and_fork, NULL), 0);
}

/* ---- memory that must stay ---- */

/* A program may lock its memory: then the kernel does not take any away. */
Test(private, what_is_given_back_of_locked_memory_reads_as_zeros)
{
    enum { SIZE = 20 << 20 };
    open_heap(0);
    uint8_t *block = shmalloc_malloc(heap, SIZE);
    memset(block, 0xaa, SIZE);
    if (mlock(block + (8 << 20), 4096) < 0) /* RLIMIT_MEMLOCK may forbid it */
        cr_skip_test("mlock: %s", strerror(errno));
    must_work(shmalloc_free(heap, block));
    must(shmalloc_trim(heap) >= 0, "%s", shmalloc_errmsg());
    uint8_t *again = shmalloc_calloc(heap, 1, SIZE);
    cr_assert_eq(again, block, "the test wants the same memory again");
    for (size_t i = 0; i < SIZE; i++)
        must(again[i] == 0, "byte %zu of a calloc is %#x", i, again[i]);
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

/* ---- threads ---- */

static void *one_thread(void *arg)
{
    void *block = filled(100, (uintptr_t)arg);
    check_and_free(block, 100, (uintptr_t)arg);
    return NULL;
}

Test(private, thousands_of_short_threads_leave_nothing)
{
    open_heap(0);
    struct usage before = usage_now(heap);
    for (uintptr_t i = 0; i < 5000; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, one_thread, (void *)i) == 0, "pthread_create");
        pthread_join(thread, NULL);
    }
    must_be_sound(heap);
    cr_assert_eq(heap_stats(heap).threads, 1);
    cr_assert_leq(usage_now(heap).held, before.held + 16 * SMF_THREAD_PAGES * SMF_PAGE);
    must_work(shmalloc_close(heap));
}

enum { MANY = 1500 };
static uint32_t *arrived, *leave;

static void *one_of_many(void *arg)
{
    void *block = filled(64, (uintptr_t)arg);
    signal_word(arrived);
    await_word(leave, 1);
    for (int i = 0; i < 100; i++)
        check_and_free(filled(500, (uintptr_t)arg), 500, (uintptr_t)arg);
    check_and_free(block, 64, (uintptr_t)arg);
    return NULL;
}

static int many_threads(void *arg)
{
    (void)arg;
    static pthread_t threads[MANY];
    static uint32_t words[2];
    arrived = &words[0];
    leave = &words[1];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 128 << 10);
    open_heap(0);
    for (uintptr_t i = 0; i < MANY; i++)
        must(pthread_create(&threads[i], &attr, one_of_many, (void *)i) == 0, "pthread_create %d",
             (int)i);
    await_word(arrived, MANY);
    must(heap_stats(heap).threads == SMF_THREADS, "all slots are in use, one of them by many");
    pid_t pid = fork();
    if (pid == 0)
        _exit(child_works());
    must(wait_child(pid) == 0, "a child of many threads");
    signal_word(leave);
    for (int i = 0; i < MANY; i++)
        pthread_join(threads[i], NULL);
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    return 0;
}

Test(private, more_threads_than_slots)
{
    cr_assert_eq(run_child(many_threads, NULL), 0);
}

/* Keys made after the heap's own have their destructors run after its, in every round. */
static void free_late(void *block)
{
    must_work(shmalloc_free(heap, block));
    must_work(shmalloc_free(heap, shmalloc_malloc(heap, 40)));
}

static pthread_key_t round_key;
static int rounds;

static void come_again(void *block)
{
    free_late(block);
    if (++rounds < PTHREAD_DESTRUCTOR_ITERATIONS)
        pthread_setspecific(round_key, filled(50, 1));
}

static void *thread_with_keys(void *arg)
{
    pthread_key_t *keys = arg;
    for (int i = 0; i < 8; i++)
        pthread_setspecific(keys[i], filled(30, 1));
    pthread_setspecific(round_key, filled(30, 1));
    return NULL;
}

Test(private, destructors_of_ending_threads_may_free)
{
    pthread_key_t keys[8];
    pthread_t thread;
    open_heap(0);
    shmalloc_free(heap, filled(1, 1)); /* now the heap has its key */
    for (int i = 0; i < 8; i++)
        must(pthread_key_create(&keys[i], free_late) == 0, "pthread_key_create");
    must(pthread_key_create(&round_key, come_again) == 0, "pthread_key_create");
    for (int i = 0; i < 200; i++) {
        rounds = 0;
        must(pthread_create(&thread, NULL, thread_with_keys, keys) == 0, "pthread_create");
        pthread_join(thread, NULL);
        cr_assert_eq(rounds, PTHREAD_DESTRUCTOR_ITERATIONS);
    }
    must_be_sound(heap);
    shmalloc_stats stats = heap_stats(heap);
    cr_assert_eq(stats.allocated_blocks, 0);
    cr_assert_leq(stats.threads, 2, "this thread and the shared context");
    must_work(shmalloc_close(heap));
}

static void *use_closed_later(void *arg)
{
    (void)arg;
    check_and_free(filled(10, 1), 10, 1);
    signal_word((uint32_t *)&stop);
    await_word((uint32_t *)&stop, 2);
    must_code(shmalloc_ref_alloc(heap, 1, &(shmalloc_ref){0}), SHMALLOC_ECLOSED);
    return NULL;
}

Test(private, a_thread_may_outlive_the_heap)
{
    pthread_t thread;
    open_heap(0);
    stop = 0;
    must(pthread_create(&thread, NULL, use_closed_later, NULL) == 0, "pthread_create");
    await_word((uint32_t *)&stop, 1);
    must_work(shmalloc_close(heap));
    signal_word((uint32_t *)&stop);
    pthread_join(thread, NULL);
}
