/* SPDX-License-Identifier: MIT */
/*
 * test_ends.c - the ways in which threads and processes end, or seem to.
 *
 * Would fail if a thread that is cancelled, exits from the middle or allocates in its last
 * destructor lost a block, held a lock or kept a slot; if a process that ends while its threads are
 * at work left the heap unsound; if a child of vfork disturbed its parent; if the lock of a dumping
 * process stayed held; or if a stopped owner were taken for dead.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_suite.h"
#include "slots/link.h"
#include "handle/lock.h"
#include "life/adopt.h"
#include "handle/undo.h"

HEAP_SUITE(ends, 0, 60);

/* Words and a mutex in the heap, and what the processes of a test tell each other. */
struct words {
    shmalloc_mutex mutex;
    shmalloc_ref word[64];
};

static struct words *make_words(shmalloc_ref *ref)
{
    must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct words), ref));
    return shmalloc_ptr(f.heap, *ref);
}

static void lock_words(struct words *words)
{
    int rc = shmalloc_mutex_lock(f.heap, &words->mutex);
    must(rc == 0 || rc == SHMALLOC_OWNER_DIED, "lock: %s", shmalloc_errmsg()); /* it ended inside */
}

static void drop_words(struct words *words, shmalloc_ref ref)
{
    lock_words(words);
    for (size_t i = 0; i < sizeof(words->word) / sizeof(words->word[0]); i++)
        must_work(shmalloc_ref_free(f.heap, &words->word[i]));
    must_work(shmalloc_mutex_unlock(f.heap, &words->mutex));
    must_work(shmalloc_ref_free(f.heap, &ref));
}

/* Allocate and free, linked to words in the heap and under its mutex, for ever. */
static void churn(struct words *words, uint64_t seed)
{
    struct rng rng = rng_from(seed);
    for (;;) {
        shmalloc_ref *word = &words->word[rng_below(&rng, 64)];
        lock_words(words);
        must_work(shmalloc_ref_free(f.heap, word));
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 17), word));
        must_work(shmalloc_mutex_unlock(f.heap, &words->mutex));
        pthread_testcancel();
    }
}

/* ---- threads ---- */

static pthread_key_t late_key;

/* Runs after the library's destructor in each round but the last. */
static void allocate_late(void *value)
{
    uintptr_t rounds = (uintptr_t)value;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    if (rounds > 1)
        pthread_setspecific(late_key, (void *)(rounds - 1));
}

static void *end_in_the_middle(void *arg)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    if (arg)
        pthread_setspecific(late_key, arg);
    pthread_exit(NULL);
}

static void run_thread(void *(*fn)(void *), void *arg)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, fn, arg), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
}

Test(ends, a_thousand_threads_by_pthread_exit)
{
    for (int i = 0; i < 1100; i++)
        run_thread(end_in_the_middle, NULL);
}

Test(ends, destructors_may_allocate_as_often_as_they_run)
{
    cr_assert_eq(pthread_key_create(&late_key, allocate_late), 0);
    for (int i = 0; i < 1100; i++)
        run_thread(end_in_the_middle, (void *)(uintptr_t)(1 + i % 4));
    pthread_key_delete(late_key);
}

struct cancelled {
    struct words *words;
    uint64_t seed;
    uint32_t started;
};

static void *churn_until_cancelled(void *arg)
{
    struct cancelled *c = arg;
    signal_word(&c->started);
    churn(c->words, c->seed);
    return NULL;
}

/* Growth, give-back and repair call the kernel, where a thread may be cancelled: not inside a call
 * of ours. */
Test(ends, a_cancelled_thread_finishes_its_call)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    struct rng rng = rng_from(test_seed());
    for (int i = 0; i < 300; i++) {
        struct cancelled c = {words, rng_next(&rng), 0};
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, churn_until_cancelled, &c), 0);
        await_word(&c.started, 1);
        usleep((unsigned)rng_below(&rng, 500));
        pthread_cancel(thread);
        cr_assert_eq(pthread_join(thread, NULL), 0);
        must_be_sound(f.heap);
    }
    drop_words(words, ref);
}

static void *leave_holding(void *arg)
{
    struct words *words = arg;
    lock_words(words);
    must_work(shmalloc_ref_alloc(f.heap, 300, &words->word[0]));
    syscall(SYS_exit, 0);
    return NULL;
}

/* No destructor runs; the kernel alone says that the owner is gone. */
Test(ends, a_thread_that_leaves_rawly_inside_counts_as_dead)
{
    if (TEST_ASAN)
        cr_skip_test("the sanitizer wants to see its threads end");
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, leave_holding, words), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    must_code(shmalloc_mutex_timedlock(f.heap, &words->mutex, 20000000000ull), SHMALLOC_OWNER_DIED);
    cr_assert_neq(words->word[0], 0);
    must_work(shmalloc_mutex_unlock(f.heap, &words->mutex));
    drop_words(words, ref);
}

/* ---- processes ---- */

struct job {
    struct words *words;
    uint32_t started; /* threads at work */
    uint32_t go_on;
    int pid; /* of a grandchild */
};

static struct job *make_job(struct words *words)
{
    struct job *job = shared_memory(sizeof(*job));
    job->words = words;
    return job;
}

static void *churn_thread(void *arg)
{
    struct job *job = arg;
    signal_word(&job->started);
    churn(job->words, job->started);
    return NULL;
}

static int exit_while_threads_work(void *arg)
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, churn_thread, arg) == 0, "no thread");
    await_word(&((struct job *)arg)->started, 1);
    usleep(20000);
    exit(0);
}

/* Destructors run while the thread goes on: what it has cached is left to whoever looks next. */
Test(ends, a_process_that_exits_while_its_threads_work)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    for (int i = 0; i < 20; i++) {
        struct job *job = make_job(words);
        cr_assert_eq(run_child(exit_while_threads_work, job), 0);
        must_be_sound(f.heap);
    }
    drop_words(words, ref);
}

/* As a signal handler does that interrupts shmalloc_ref_alloc() when it has armed the link
 * record. */
static int exit_in_a_linked_step(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref *word = shmalloc_ptr(heap, *(shmalloc_ref *)arg);
    must_work(shmalloc_ref_alloc(heap, 64, word)); /* the stack of the class is open, and has
                                                      more */
    must_work(shmalloc_ref_free(heap, word));
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top(t, smi_class_of(64));
    t->slot->link.dest = smi_link_ref_of(t, top->word);
    smi_link_arm(t, word, SMF_LINK_SHORT_TAKE);
    smi_link_store(word, top->ref);
    exit(0);
}

Test(ends, a_process_that_exits_in_a_linked_step)
{
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 64, &ref));
    cr_assert_eq(run_child(exit_in_a_linked_step, &ref), 0);
    cr_assert_eq(f.heap->state->poison, 0, "what was interrupted is no damage");
    shmalloc_ref *word = shmalloc_ptr(f.heap, ref);
    must(*word != 0, "the step is finished");
    must_work(shmalloc_ref_free(f.heap, word));
    must_be_sound(f.heap);
    must_work(shmalloc_ref_free(f.heap, &ref));
}

static int die_in_a_linked_step(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    void *block = shmalloc_malloc(heap, 64);
    must_work(shmalloc_free(heap, block));
    struct smi_thread *t = smi_current;
    t->slot->link.dest = smi_link_ref_of(t, smi_top(t, smi_class_of(64))->word);
    smi_link_arm(t, shmalloc_ptr(heap, *(shmalloc_ref *)arg), SMF_LINK_SHORT_TAKE);
    kill(getpid(), SIGKILL);
    return 0;
}

/* What the dead was about to store to was its own; who knows that it died may free it at once. */
Test(ends, a_block_with_the_word_of_a_step_is_freed_before_the_step_is_undone)
{
    enum { COUNT = 8, SIZE = 3 << 20 };
    shmalloc_ref refs[COUNT];
    for (int i = 0; i < COUNT; i++)
        /* the last one lies in the last chunk */
        must_work(shmalloc_ref_alloc_zeroed(f.heap, SIZE, &refs[i]));
    shmalloc_ref last = refs[COUNT - 1];
    uint64_t chunks = f.heap->state->chunk_count;
    cr_assert_gt(chunks, 1);
    cr_assert_eq(run_child(die_in_a_linked_step, &last), -SIGKILL);
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    cr_assert_eq(f.heap->state->poison, 0);
    must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    cr_assert_lt(f.heap->state->chunk_count, chunks, "and then it goes");
    must_be_sound(f.heap);
}

/* As one that interrupts a change of the page heap. */
static int exit_under_a_lock(void *arg)
{
    (void)arg;
    must_work(shmalloc_open(f.path, NULL, &f.heap));
    shmalloc_heap *heap = f.heap;
    struct smf_page_heap *ph = heap->page_heap;
    must_work(shmalloc_free(heap, shmalloc_malloc(heap, 8)));
    must_work(smi_lock_acquire(heap, smi_lock_of_pages(heap)));
    struct smi_op op = smi_op_begin(heap, &ph->log_count, ph->log, SMF_PAGE_LOG);
    smi_set(&op, &ph->free_pages, 1);
    exit(0);
}

Test(ends, a_process_that_exits_under_a_lock)
{
    uint64_t free_pages = f.heap->page_heap->free_pages;
    must_work(shmalloc_close(f.heap)); /* so that the child is the last */
    cr_assert_eq(run_child(exit_under_a_lock, NULL), 0);
    must_work(shmalloc_open(f.path, NULL, &f.heap));
    must_be_sound(f.heap);
    cr_assert_gt(f.heap->page_heap->free_pages, free_pages / 2, "the change is undone");
}

static void exec_true(void)
{
    execl("/bin/true", "true", (char *)NULL);
    _exit(127);
}

Test(ends, children_of_vfork)
{
    shmalloc_ref ref = 0;
    for (int i = 0; i < 20; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 1000, &ref));
        pid_t pid = vfork();
        if (pid == 0)
            exec_true();
        int status;
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert_eq(status, 0);
        must_work(shmalloc_ref_free(f.heap, &ref));
    }
}

/* The kernel ends the parent while the child of its vfork still has its memory, and its
 * descriptors. */
static int vfork_and_stay(void *arg)
{
    struct job *job = arg;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 1000, &ref)); /* slots in the cache */
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_ref_alloc(f.heap, 1000, &job->words->word[0]));
    pid_t pid = vfork();
    if (pid == 0) {
        job->pid = getpid();
        signal_word(&job->started);
        for (;;)
            pause();
    }
    return 1; /* not reached: both are killed */
}

static void vfork_and_kill(int child_first)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    struct job *job = make_job(words);
    pid_t parent = start_child(vfork_and_stay, job);
    await_word(&job->started, 1);
    if (child_first) {
        kill(job->pid, SIGKILL);
        cr_assert_eq(wait_child(parent), 1);
    } else {
        kill_child(parent);
        for (int i = 0; i < 1000; i++) /* the heap is of use while the orphan pins the parent's
                                          locks */
            must_work(shmalloc_ref_realloc(f.heap, &words->word[1 + i % 60], 1000 + (size_t)i));
        kill(job->pid, SIGKILL);
        while (kill(job->pid, 0) == 0) /* its reaper is not ours */
            usleep(1000);
    }
    must_be_sound(f.heap);
    drop_words(words, ref);
}

Test(ends, the_child_of_vfork_dies_first)
{
    vfork_and_kill(1);
}

Test(ends, the_parent_of_vfork_dies_first)
{
    vfork_and_kill(0);
}

static int dump_while_holding(void *arg)
{
    struct job *job = arg;
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    must(chdir(f.dir) == 0, "%s", f.dir);
    setrlimit(RLIMIT_CORE, &all);
    signal(SIGABRT, SIG_DFL);
    must_work(shmalloc_mutex_lock(f.heap, &job->words->mutex));
    signal_word(&job->started);
    abort();
}

/* Dumping takes a while, in which the owner is neither at work nor dead. */
Test(ends, an_owner_that_dumps_core)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    struct job *job = make_job(words);
    pid_t pid = start_child(dump_while_holding, job);
    await_word(&job->started, 1);
    must_code(shmalloc_mutex_timedlock(f.heap, &words->mutex, 20000000000ull), SHMALLOC_OWNER_DIED);
    must_work(shmalloc_mutex_unlock(f.heap, &words->mutex));
    cr_assert_eq(wait_child(pid), -SIGABRT);
    char command[256];
    snprintf(command, sizeof(command), "rm -f %s/core*", f.dir);
    cr_assert_eq(system(command), 0);
    drop_words(words, ref);
}

static int hold_and_stop(void *arg)
{
    struct job *job = arg;
    must_work(shmalloc_ref_alloc(f.heap, 500, &job->words->word[0]));
    must_work(shmalloc_mutex_lock(f.heap, &job->words->mutex));
    signal_word(&job->started);
    raise(SIGSTOP);
    must_work(shmalloc_ref_free(f.heap, &job->words->word[0]));
    must_work(shmalloc_ref_alloc(f.heap, 500, &job->words->word[0]));
    return shmalloc_mutex_unlock(f.heap, &job->words->mutex);
}

Test(ends, a_stopped_owner_is_not_dead)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    struct job *job = make_job(words);
    int status;
    pid_t pid = start_child(hold_and_stop, job);
    cr_assert_eq(waitpid(pid, &status, WUNTRACED), pid);
    cr_assert(WIFSTOPPED(status));
    must_code(shmalloc_mutex_trylock(f.heap, &words->mutex), -EBUSY);
    must_code(shmalloc_mutex_timedlock(f.heap, &words->mutex, 30000000), -ETIMEDOUT);
    uint64_t cached = heap_stats(f.heap).cached;
    for (int i = 0; i < 1000; i++) { /* everybody else goes on; nobody takes what it has cached */
        must_work(shmalloc_ref_alloc(f.heap, 500, &words->word[1]));
        must_work(shmalloc_ref_free(f.heap, &words->word[1]));
    }
    must_work(shmalloc_trim(f.heap) < 0 ? -1 : 0);
    cr_assert_gt(cached, 0);
    cr_assert_gt(heap_stats(f.heap).cached, 0, "the stopped process's slots are gone");
    kill(pid, SIGCONT);
    cr_assert_eq(wait_child(pid), 0);
    drop_words(words, ref);
}

/* A daemon closes every descriptor, also that of the lock that says it lives, and works on. */
static int close_all_and_work(void *arg)
{
    struct job *job = arg;
    must_work(shmalloc_ref_alloc(f.heap, 500, &job->words->word[0]));
    closefrom(3);
    signal_word(&job->started);
    await_word(&job->go_on, 1);
    for (int i = 0; i < 1000; i++) {
        must_work(shmalloc_ref_free(f.heap, &job->words->word[0]));
        must_work(shmalloc_ref_alloc(f.heap, 500 + (size_t)i * 100, &job->words->word[0]));
    }
    signal_word(&job->started);
    pause();
    return 1; /* not reached: it is killed */
}

Test(ends, a_daemon_without_descriptors_is_not_dead_until_it_dies)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    struct job *job = make_job(words);
    pid_t pid = start_child(close_all_and_work, job);
    await_word(&job->started, 1);
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    cr_assert_eq(heap_stats(f.heap).processes, 2, "the daemon was taken for dead");
    signal_word(&job->go_on);
    await_word(&job->started, 2);
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    cr_assert_eq(heap_stats(f.heap).processes, 2);
    kill_child(pid);
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    cr_assert_eq(heap_stats(f.heap).processes, 1, "the daemon's death went unseen");
    drop_words(words, ref);
}

static int fill_stacks(void *arg)
{
    struct job *job = arg;
    static shmalloc_ref refs[8][500];
    for (unsigned k = 0; k < 8; k++)
        for (unsigned i = 0; i < 500; i++)
            must_work(shmalloc_ref_alloc(f.heap, 10 + k * 16, &refs[k][i]));
    for (unsigned k = 0; k < 8; k++)
        for (unsigned i = 0; i < 500; i++)
            must_work(shmalloc_ref_free(f.heap, &refs[k][i]));
    must_work(shmalloc_ref_alloc(f.heap, 70000, &job->words->word[0]));
    raise(SIGKILL);
    return 0;
}

/* Whatever the dead had cached, no single call gives all of it back. */
Test(ends, adoption_goes_on_where_it_stopped)
{
    shmalloc_ref ref = 0;
    struct words *words = make_words(&ref);
    cr_assert_eq(run_child(fill_stacks, make_job(words)), -SIGKILL);
    uint64_t cached = heap_stats(f.heap).cached, rounds = 0;
    for (; heap_stats(f.heap).processes == 2; rounds++) {
        must_work(smi_adopt(f.heap, 300));
        must_be_sound(f.heap);
        uint64_t left = heap_stats(f.heap).cached;
        cr_assert(left < cached || heap_stats(f.heap).processes == 1);
        cr_assert_leq(cached - left, 300 * 128, "%llu bytes at once",
                      (unsigned long long)(cached - left));
        cached = left;
    }
    cr_assert_geq(rounds, 10);
    drop_words(words, ref);
}

/* ---- the handle ---- */

static void *use_wait_and_use(void *arg)
{
    struct job *job = arg;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    signal_word(&job->started);
    await_word(&job->go_on, 1);
    must_code(shmalloc_ref_alloc(f.heap, 100, &ref), SHMALLOC_ECLOSED);
    must(shmalloc_malloc(f.heap, 100) == NULL, "a block of a closed heap");
    return NULL;
}

Test(ends, a_handle_closed_under_another_thread)
{
    struct job job = {0};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, use_wait_and_use, &job), 0);
    await_word(&job.started, 1);
    must_work(shmalloc_close(f.heap));
    signal_word(&job.go_on);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    f.heap = heap_open(f.path);
}
