/* SPDX-License-Identifier: MIT */
/*
 * test_mutex.c - shmalloc_mutex: exclusion between threads and processes, time-outs, owners that
 * die.
 *
 * Would fail if two owners were inside at once, a dead owner kept the mutex, its death went
 * unreported, a stranger could unlock, or a mutex held at the time of a reboot stayed held.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(mutex, 0, 60);

static shmalloc_ref block_ref;

struct block {
    shmalloc_mutex mutex;
    shmalloc_mutex second;
    uint64_t a, b;
    uint64_t link;
};

static struct block *make_block(void)
{
    must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct block), &block_ref));
    return shmalloc_ptr(f.heap, block_ref);
}

static void drop_block(void)
{
    must_work(shmalloc_ref_free(f.heap, &block_ref));
}

Test(mutex, zeroed_bytes_are_an_unlocked_mutex)
{
    struct block *b = make_block();
    for (int i = 0; i < 3; i++) {
        must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
        must_work(shmalloc_mutex_trylock(f.heap, &b->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
        must_work(shmalloc_mutex_timedlock(f.heap, &b->mutex, 1000000));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    }
    drop_block();
}

Test(mutex, relocking_is_a_deadlock_that_is_reported)
{
    struct block *b = make_block();
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    must_code(shmalloc_mutex_lock(f.heap, &b->mutex), -EDEADLK);
    must_code(shmalloc_mutex_trylock(f.heap, &b->mutex), -EBUSY);
    int rc = shmalloc_mutex_timedlock(f.heap, &b->mutex, 1000000);
    cr_assert(rc == -EDEADLK || rc == -ETIMEDOUT, "%d", rc);
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_code(shmalloc_mutex_unlock(f.heap, &b->mutex), SHMALLOC_ENOTOWNER);
    drop_block();
}

Test(mutex, what_is_not_in_the_heap_is_refused)
{
    shmalloc_mutex mine = {{0}};
    must_code(shmalloc_mutex_lock(f.heap, &mine), -EINVAL);
    must_code(shmalloc_mutex_trylock(f.heap, &mine), -EINVAL);
    must_code(shmalloc_mutex_timedlock(f.heap, &mine, 1), -EINVAL);
    must_code(shmalloc_mutex_unlock(f.heap, &mine), -EINVAL);
    must_code(shmalloc_mutex_lock(f.heap, NULL), -EINVAL);
}

/* ---- between threads ---- */

enum { THREADS = 8, ROUNDS = 5000 };

static void *count_up(void *arg)
{
    struct block *b = arg;
    for (int i = 0; i < ROUNDS; i++) {
        must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
        must(b->a == b->b, "somebody else is inside");
        __atomic_store_n(&b->a, b->a + 1, __ATOMIC_RELAXED);
        __atomic_store_n(&b->b, b->b + 1, __ATOMIC_RELAXED);
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    }
    return NULL;
}

Test(mutex, excludes_threads)
{
    struct block *b = make_block();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, count_up, b);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(b->a, THREADS * ROUNDS);
    drop_block();
}

static void *try_others_lock(void *arg)
{
    struct block *b = arg;
    must_code(shmalloc_mutex_trylock(f.heap, &b->mutex), -EBUSY);
    uint64_t start = now_ns();
    must_code(shmalloc_mutex_timedlock(f.heap, &b->mutex, 20000000), -ETIMEDOUT);
    uint64_t waited = now_ns() - start;
    must(waited >= 20000000 && waited < 3000000000ull, "waited %llu ns",
         (unsigned long long)waited);
    must_code(shmalloc_mutex_timedlock(f.heap, &b->mutex, 0), -ETIMEDOUT);
    must_code(shmalloc_mutex_unlock(f.heap, &b->mutex), SHMALLOC_ENOTOWNER);
    return NULL;
}

Test(mutex, others_are_kept_out_time_out_and_cannot_unlock)
{
    struct block *b = make_block();
    pthread_t thread;
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    pthread_create(&thread, NULL, try_others_lock, b);
    pthread_join(thread, NULL);
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    drop_block();
}

static void *lock_and_exit(void *arg)
{
    struct block *b = arg;
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    b->a = 1;
    return NULL;
}

Test(mutex, a_thread_that_exits_holding_it_counts_as_dead)
{
    struct block *b = make_block();
    pthread_t thread;
    pthread_create(&thread, NULL, lock_and_exit, b);
    pthread_join(thread, NULL);
    must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
    must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    drop_block();
}

/* ---- between processes ---- */

static int count_up_in_child(void *arg)
{
    (void)arg;
    fixture_join(&f);
    shmalloc_ref ref;
    must_work(shmalloc_root_get(f.heap, "block", 0, &ref));
    count_up(shmalloc_ptr(f.heap, ref));
    return shmalloc_close(f.heap) < 0;
}

Test(mutex, excludes_processes)
{
    struct block *b = make_block();
    must_work(shmalloc_root_set(f.heap, "block", 0, block_ref));
    pid_t pids[4];
    for (int i = 0; i < 4; i++)
        pids[i] = start_child(count_up_in_child, NULL);
    count_up(b);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    cr_assert_eq(b->a, 5 * ROUNDS);
    must_work(shmalloc_root_remove(f.heap, "block"));
    drop_block();
}

static int lock_and_die(void *arg)
{
    struct block *b = arg;
    int rc = shmalloc_mutex_lock(f.heap, &b->mutex);
    must(rc >= 0, "%d", rc);
    b->a++;
    raise(SIGKILL);
    return 1;
}

Test(mutex, a_killed_owners_mutex_passes_on_with_that_answer)
{
    struct block *b = make_block();
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(run_child(lock_and_die, b), -SIGKILL);
        if (i % 3 == 0)
            must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
        else if (i % 3 == 1)
            must_code(shmalloc_mutex_trylock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
        else
            must_code(shmalloc_mutex_timedlock(f.heap, &b->mutex, 1000000000), SHMALLOC_OWNER_DIED);
        must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    }
    cr_assert_eq(b->a, 20);
    drop_block();
}

struct waiting {
    struct block *block;
    uint32_t locked;
};

static int lock_and_stay(void *arg)
{
    struct waiting *w = arg;
    must_work(shmalloc_mutex_lock(f.heap, &w->block->mutex));
    signal_word(&w->locked);
    pause();
    return 1; /* to be killed in pause() */
}

static void *kill_soon(void *arg)
{
    for (int i = 0; i < 200; i++)
        sched_yield(); /* let the main thread begin to wait */
    kill(*(pid_t *)arg, SIGKILL);
    return NULL;
}

Test(mutex, a_waiter_wakes_when_the_owner_is_killed)
{
    struct waiting *w = shared_memory(sizeof(*w));
    w->block = make_block();
    for (int i = 0; i < 20; i++) {
        w->locked = 0;
        pid_t pid = start_child(lock_and_stay, w);
        await_word(&w->locked, 1);
        pthread_t killer;
        pthread_create(&killer, NULL, kill_soon, &pid);
        must_code(shmalloc_mutex_lock(f.heap, &w->block->mutex), SHMALLOC_OWNER_DIED);
        pthread_join(killer, NULL);
        must_work(shmalloc_mutex_consistent(f.heap, &w->block->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &w->block->mutex));
        wait_child(pid);
    }
    drop_block();
}

/* Two deaths in a row, the second while holding what it got so. */
Test(mutex, an_heir_may_die_too)
{
    struct block *b = make_block();
    for (int i = 0; i < 5; i++)
        cr_assert_eq(run_child(lock_and_die, b), -SIGKILL);
    must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
    cr_assert_eq(b->a, 5);
    must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    drop_block();
}

static int lock_two_and_exit(void *arg)
{
    struct block *b = arg;
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_lock(f.heap, &b->second));
    return 0; /* _exit without unlocking or closing */
}

Test(mutex, an_exit_without_unlock_counts_as_death_of_all_it_held)
{
    struct block *b = make_block();
    cr_assert_eq(run_child(lock_two_and_exit, b), 0);
    must_code(shmalloc_mutex_lock(f.heap, &b->second), SHMALLOC_OWNER_DIED);
    must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
    must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->second));
    drop_block();
}

/* Who unlocks without a word hands on what it was told, over more deaths and through its own
 * locks. */
Test(mutex, left_inconsistent_it_says_so_to_each_owner)
{
    struct block *b = make_block();
    cr_assert_eq(run_child(lock_and_die, b), -SIGKILL);
    for (int i = 0; i < 3; i++) {
        must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
        if (i == 1)
            cr_assert_eq(run_child(lock_and_die, b), -SIGKILL);
    }
    fixture_reopen(&f);
    b = shmalloc_ptr(f.heap, block_ref);
    must_code(shmalloc_mutex_trylock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
    must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
    must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_code(shmalloc_mutex_consistent(f.heap, &b->mutex), SHMALLOC_ENOTOWNER);
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    drop_block();
}

/* ---- who holds it ---- */

static void message_has(const char *text)
{
    cr_assert(strstr(shmalloc_errmsg(), text) != NULL, "no \"%s\" in: %s", text, shmalloc_errmsg());
}

Test(mutex, messages_name_the_holder)
{
    struct waiting *w = shared_memory(sizeof(*w));
    char process[64];
    w->block = make_block();
    pid_t pid = start_child(lock_and_stay, w);
    snprintf(process, sizeof(process), "is held by process %d (", (int)pid);
    await_word(&w->locked, 1);
    must_code(shmalloc_mutex_trylock(f.heap, &w->block->mutex), -EBUSY);
    message_has(process);
    message_has("), thread ");
    message_has(", for 0.");
    must_code(shmalloc_mutex_timedlock(f.heap, &w->block->mutex, 1000), -ETIMEDOUT);
    message_has(process);
    kill_child(pid);
    must_code(shmalloc_mutex_lock(f.heap, &w->block->mutex), SHMALLOC_OWNER_DIED);
    must_code(shmalloc_mutex_lock(f.heap, &w->block->mutex), -EDEADLK);
    message_has("the calling thread itself");
    must_work(shmalloc_mutex_unlock(f.heap, &w->block->mutex));
    drop_block();
}

/* More than are noted, unlocked in another order: notes are for people, and never keep anybody
 * out. */
Test(mutex, many_are_held_and_unlocked_in_any_order)
{
    enum { MANY = 20 };
    shmalloc_mutex *m = shmalloc_calloc(f.heap, MANY, sizeof(*m));
    for (unsigned step = 1; step < MANY; step += 2) {
        for (unsigned i = 0; i < MANY; i++)
            must_work(shmalloc_mutex_lock(f.heap, &m[i]));
        for (unsigned i = 0, at = 0; i < MANY; i++, at += step)
            if (step % 5 != 0) /* coprime to their number */
                must_work(shmalloc_mutex_unlock(f.heap, &m[at % MANY]));
            else
                must_work(shmalloc_mutex_unlock(f.heap, &m[MANY - 1 - i]));
    }
    must_work(shmalloc_free(f.heap, m));
}

/* ---- over the end of all processes ---- */

Test(mutex, held_when_everybody_died_it_is_free_after_reopening)
{
    struct block *b = make_block();
    must_work(shmalloc_root_set(f.heap, "block", 0, block_ref));
    must_work(shmalloc_mutex_lock(f.heap, &b->second));
    must_work(shmalloc_mutex_unlock(f.heap, &b->second));
    must_work(shmalloc_close(f.heap));
    f.heap = heap_open(f.path); /* the child inherits this handle and attaches by itself */
    b = shmalloc_ptr(f.heap, block_ref);
    struct waiting *w = shared_memory(sizeof(*w));
    w->block = b;
    pid_t pid = start_child(lock_and_stay, w);
    await_word(&w->locked, 1);
    must_work(shmalloc_close(f.heap)); /* the child is the last one, and dies holding the mutex */
    kill_child(pid);
    f.heap = heap_open(f.path);
    b = shmalloc_ptr(f.heap, block_ref);
    int rc = shmalloc_mutex_timedlock(f.heap, &b->mutex, 2000000000);
    cr_assert(rc == 0 || rc == SHMALLOC_OWNER_DIED, "%d %s", rc, shmalloc_errmsg());
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    must_work(shmalloc_root_remove(f.heap, "block"));
    drop_block();
}

Test(mutex, held_at_close_it_is_free_after_reopening)
{
    struct block *b = make_block();
    must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
    fixture_reopen(&f);
    b = shmalloc_ptr(f.heap, block_ref);
    int rc = shmalloc_mutex_timedlock(f.heap, &b->mutex, 2000000000);
    cr_assert(rc == 0 || rc == SHMALLOC_OWNER_DIED, "%d %s", rc, shmalloc_errmsg());
    must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    drop_block();
}

Test(mutex, works_again_after_reopening)
{
    struct block *b = make_block();
    for (int i = 0; i < 5; i++) {
        must_work(shmalloc_mutex_lock(f.heap, &b->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
        fixture_reopen(&f);
        b = shmalloc_ptr(f.heap, block_ref);
    }
    drop_block();
}

Test(mutex, read_only_handles_cannot_lock)
{
    struct block *b = make_block();
    (void)b;
    must_work(shmalloc_close(f.heap));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    shmalloc_mutex *m = shmalloc_ptr(f.heap, block_ref);
    must_code(shmalloc_mutex_lock(f.heap, m), SHMALLOC_EREADONLY);
    must_code(shmalloc_mutex_trylock(f.heap, m), SHMALLOC_EREADONLY);
    fixture_reopen(&f);
    drop_block();
}

/* A dead owner had linked a block under the mutex: whoever comes next finds it linked. */
static int link_and_die(void *arg)
{
    struct block *b = arg;
    int rc = shmalloc_mutex_lock(f.heap, &b->mutex);
    must(rc >= 0, "%d", rc);
    must_work(b->link ? shmalloc_ref_free(f.heap, &b->link)
                      : shmalloc_ref_alloc(f.heap, 300, &b->link));
    raise(SIGKILL);
    return 1;
}

Test(mutex, what_was_linked_before_the_death_stays_linked)
{
    struct block *b = make_block();
    for (int i = 0; i < 6; i++) {
        cr_assert_eq(run_child(link_and_die, b), -SIGKILL);
        must_code(shmalloc_mutex_lock(f.heap, &b->mutex), SHMALLOC_OWNER_DIED);
        cr_assert_eq(b->link != 0, i % 2 == 0, "step %d", i);
        must_work(shmalloc_mutex_consistent(f.heap, &b->mutex));
        must_work(shmalloc_mutex_unlock(f.heap, &b->mutex));
    }
    drop_block();
}
