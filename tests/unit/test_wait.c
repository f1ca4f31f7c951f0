/* SPDX-License-Identifier: MIT */
/*
 * test_wait.c - sleeping on words in the heap, and condition variables.
 *
 * Would fail if a change of a word, a signal or a death went unnoticed by who sleeps, a time-out
 * came early, or a call that is not allowed were done.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(wait, 0, 60);

struct place {
    shmalloc_mutex mutex;
    shmalloc_cond cond;
    uint32_t word, woken;
    uint64_t items;
};

static shmalloc_ref place_ref;

static struct place *make_place(void)
{
    must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct place), &place_ref));
    return shmalloc_ptr(f.heap, place_ref);
}

static void drop_place(void)
{
    must_work(shmalloc_ref_free(f.heap, &place_ref));
}

static int await_change(void *arg)
{
    struct place *p = arg;
    while (__atomic_load_n(&p->word, __ATOMIC_ACQUIRE) == 0)
        must_work(shmalloc_wait(f.heap, &p->word, 0, SHMALLOC_FOREVER));
    signal_word(&p->woken);
    return 0;
}

static void *await_change_in_thread(void *arg)
{
    await_change(arg);
    return NULL;
}

/* ---- words ---- */

Test(wait, another_value_is_not_slept_on)
{
    struct place *p = make_place();
    p->word = 7;
    must_work(shmalloc_wait(f.heap, &p->word, 6, SHMALLOC_FOREVER));
    must_work(shmalloc_wait(f.heap, &p->word, 6, 0));
    drop_place();
}

Test(wait, times_out_and_not_before)
{
    struct place *p = make_place();
    uint64_t start = now_ns();
    must_code(shmalloc_wait(f.heap, &p->word, 0, 30000000), -ETIMEDOUT);
    cr_assert(now_ns() - start >= 30000000);
    must_code(shmalloc_wait(f.heap, &p->word, 0, 0), -ETIMEDOUT);
    cr_assert(strstr(shmalloc_errmsg(), "was 0 all the time") != NULL, "%s", shmalloc_errmsg());
    drop_place();
}

Test(wait, threads_and_processes_are_woken)
{
    struct place *p = make_place();
    pthread_t thread;
    pthread_create(&thread, NULL, await_change_in_thread, p);
    pid_t pid = start_child(await_change, p);
    __atomic_store_n(&p->word, 1, __ATOMIC_RELEASE);
    cr_assert_geq(shmalloc_wake(f.heap, &p->word, UINT32_MAX), 0);
    pthread_join(thread, NULL);
    cr_assert_eq(wait_child(pid), 0);
    cr_assert_eq(p->woken, 2);
    drop_place();
}

Test(wait, a_change_without_a_wake_is_noticed)
{
    struct place *p = make_place();
    pthread_t thread;
    for (int i = 0; i < 5; i++) {
        p->word = p->woken = 0;
        pthread_create(&thread, NULL, await_change_in_thread, p);
        for (int k = 0; k < 100 * i; k++)
            sched_yield();
        __atomic_store_n(&p->word, 1, __ATOMIC_RELEASE); /* as if who stores it were killed here */
        pthread_join(thread, NULL);
    }
    drop_place();
}

Test(wait, only_as_many_are_woken_as_asked_for)
{
    struct place *p = make_place();
    cr_assert_eq(shmalloc_wake(f.heap, &p->word, 0), 0);
    cr_assert_eq(shmalloc_wake(f.heap, &p->word, 1), 0);
    drop_place();
}

static int sleep_and_be_killed(void *arg)
{
    struct place *p = arg;
    must(shmalloc_mutex_lock(f.heap, &p->mutex) >= 0, "%s", shmalloc_errmsg());
    signal_word(&p->woken);
    pause();
    return 1;
}

static void *await_a_death(void *arg)
{
    struct place *p = arg;
    must_work(shmalloc_wait(f.heap, &p->word, 0, SHMALLOC_FOREVER));
    return NULL;
}

Test(wait, a_death_ends_it)
{
    struct place *p = make_place();
    pid_t pid = start_child(sleep_and_be_killed, p);
    await_word(&p->woken, 1);
    pthread_t thread;
    pthread_create(&thread, NULL, await_a_death, p);
    kill_child(pid);
    pthread_join(thread, NULL);
    must_code(shmalloc_mutex_lock(f.heap, &p->mutex), SHMALLOC_OWNER_DIED);
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
    drop_place();
}

struct mortal {
    uint64_t id;
    uint32_t known;
};

static int live_on(void *arg)
{
    struct mortal *m = arg;
    m->id = shmalloc_self(f.heap);
    signal_word(&m->known);
    pause();
    return 1;
}

Test(wait, the_end_of_a_process_is_waited_for)
{
    struct mortal *m = shared_memory(sizeof(*m));
    pid_t pid = start_child(live_on, m);
    await_word(&m->known, 1);
    must_code(shmalloc_wait_death(f.heap, m->id, 0), -ETIMEDOUT);
    must_code(shmalloc_wait_death(f.heap, m->id, 1000000), -ETIMEDOUT);
    kill(pid, SIGKILL);
    must_work(shmalloc_wait_death(f.heap, m->id, SHMALLOC_FOREVER));
    wait_child(pid);
    must_work(shmalloc_wait_death(f.heap, m->id, 0));
    must_work(shmalloc_wait_death(f.heap, 0, 0));
}

/* ---- conditions ---- */

static void *take_item(void *arg)
{
    struct place *p = arg;
    must(shmalloc_mutex_lock(f.heap, &p->mutex) >= 0, "%s", shmalloc_errmsg());
    while (p->items == 0)
        must_work(shmalloc_cond_wait(f.heap, &p->cond, &p->mutex));
    p->items--;
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
    return NULL;
}

static void add_items(struct place *p, uint64_t count)
{
    must_work(shmalloc_mutex_lock(f.heap, &p->mutex));
    p->items += count;
    must_work(count == 1 ? shmalloc_cond_signal(f.heap, &p->cond)
                         : shmalloc_cond_broadcast(f.heap, &p->cond));
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
}

Test(wait, signals_and_broadcasts_arrive)
{
    struct place *p = make_place();
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < 2 * THREADS; i++) {
        if (i % THREADS == 0)
            for (unsigned k = 0; k < THREADS; k++)
                pthread_create(&threads[k], NULL, take_item, p);
        if (i < THREADS)
            add_items(p, 1);
        else if (i == THREADS)
            add_items(p, THREADS);
        if (i % THREADS == THREADS - 1)
            for (unsigned k = 0; k < THREADS; k++)
                pthread_join(threads[k], NULL);
    }
    cr_assert_eq(p->items, 0);
    drop_place();
}

Test(wait, a_condition_times_out_with_the_mutex_held)
{
    struct place *p = make_place();
    must_work(shmalloc_mutex_lock(f.heap, &p->mutex));
    must_code(shmalloc_cond_timedwait(f.heap, &p->cond, &p->mutex, 10000000), -ETIMEDOUT);
    must_code(shmalloc_mutex_lock(f.heap, &p->mutex), -EDEADLK);
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
    drop_place();
}

Test(wait, who_does_not_hold_the_mutex_cannot_wait)
{
    struct place *p = make_place();
    must_code(shmalloc_cond_wait(f.heap, &p->cond, &p->mutex), SHMALLOC_ENOTOWNER);
    drop_place();
}

/* The killed one held the mutex, changed what others wait for, and had not signalled. */
static int change_and_be_killed(void *arg)
{
    struct place *p = arg;
    must(shmalloc_mutex_lock(f.heap, &p->mutex) >= 0, "%s", shmalloc_errmsg());
    p->items++;
    raise(SIGKILL);
    return 1;
}

static int change_unlock_and_be_killed(void *arg)
{
    struct place *p = arg;
    must(shmalloc_mutex_lock(f.heap, &p->mutex) >= 0, "%s", shmalloc_errmsg());
    p->items++;
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
    raise(SIGKILL);
    return 1;
}

struct sleeper {
    struct place *p;
    int answer;
};

static void *sleep_for_items(void *arg)
{
    struct sleeper *s = arg;
    must_work(shmalloc_mutex_lock(f.heap, &s->p->mutex));
    signal_word(&s->p->woken);
    while (s->p->items == 0)
        s->answer = shmalloc_cond_wait(f.heap, &s->p->cond, &s->p->mutex);
    must_work(shmalloc_mutex_consistent(f.heap, &s->p->mutex));
    must_work(shmalloc_mutex_unlock(f.heap, &s->p->mutex));
    return NULL;
}

static int answer_after(worker_fn *die)
{
    struct sleeper s = {make_place(), -1};
    pthread_t thread;
    pthread_create(&thread, NULL, sleep_for_items, &s);
    await_word(&s.p->woken, 1);
    cr_assert_eq(run_child(die, s.p), -SIGKILL);
    pthread_join(thread, NULL);
    drop_place();
    return s.answer;
}

Test(wait, a_signaller_that_is_killed_with_the_mutex_wakes)
{
    for (int i = 0; i < 5; i++)
        cr_assert_eq(answer_after(change_and_be_killed), SHMALLOC_OWNER_DIED);
}

Test(wait, a_signaller_that_is_killed_before_it_signals_wakes)
{
    for (int i = 0; i < 5; i++)
        cr_assert_eq(answer_after(change_unlock_and_be_killed), 0);
}

static int wait_to_be_killed(void *arg)
{
    struct place *p = arg;
    must(shmalloc_mutex_lock(f.heap, &p->mutex) >= 0, "%s", shmalloc_errmsg());
    signal_word(&p->woken);
    for (;;)
        must_work(shmalloc_cond_wait(f.heap, &p->cond, &p->mutex));
}

/* Whoever the signal wakes is stopped, and then killed: the other has it all the same. */
Test(wait, a_waiter_that_is_killed_takes_no_signal_along)
{
    for (int i = 0; i < 5; i++) {
        struct place *p = make_place();
        pid_t pid = start_child(wait_to_be_killed, p);
        await_word(&p->woken, 1);
        must_work(shmalloc_mutex_lock(f.heap, &p->mutex)); /* so it does not hold it when it
                                                              stops */
        kill(pid, SIGSTOP);
        must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
        pthread_t thread;
        pthread_create(&thread, NULL, take_item, p);
        for (int k = 0; k < 50; k++)
            sched_yield();
        add_items(p, 1);
        kill_child(pid);
        pthread_join(thread, NULL);
        drop_place();
    }
}

/* ---- what is not allowed ---- */

Test(wait, places_outside_are_refused)
{
    struct place *p = make_place(), outside;
    memset(&outside, 0, sizeof(outside));
    must_code(shmalloc_wait(f.heap, &outside.word, 0, 0), -EINVAL);
    must_code(shmalloc_wait(f.heap, NULL, 0, 0), -EINVAL);
    must_code(shmalloc_wait(f.heap, (uint32_t *)(void *)((char *)&p->word + 1), 0, 0), -EINVAL);
    must_code(shmalloc_wake(f.heap, &outside.word, 1), -EINVAL);
    must_code(shmalloc_cond_signal(f.heap, &outside.cond), -EINVAL);
    must_code(shmalloc_cond_broadcast(f.heap, &outside.cond), -EINVAL);
    must_work(shmalloc_mutex_lock(f.heap, &p->mutex));
    must_code(shmalloc_cond_wait(f.heap, &outside.cond, &p->mutex), -EINVAL);
    must_code(shmalloc_cond_wait(f.heap, &p->cond, &outside.mutex), -EINVAL);
    must_work(shmalloc_mutex_unlock(f.heap, &p->mutex));
    drop_place();
}

Test(wait, read_only_handles_cannot_wait)
{
    make_place();
    must_work(shmalloc_close(f.heap));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    struct place *p = shmalloc_ptr(f.heap, place_ref);
    must_code(shmalloc_wait(f.heap, &p->word, 0, 0), SHMALLOC_EREADONLY);
    must_code(shmalloc_wake(f.heap, &p->word, 1), SHMALLOC_EREADONLY);
    must_code(shmalloc_cond_wait(f.heap, &p->cond, &p->mutex), SHMALLOC_EREADONLY);
    must_code(shmalloc_cond_signal(f.heap, &p->cond), SHMALLOC_EREADONLY);
    fixture_reopen(&f);
    drop_place();
}

/* ---- private heaps ---- */

struct own {
    shmalloc_heap *heap;
    struct place *p;
};

static void *take_own_item(void *arg)
{
    struct own *own = arg;
    must_work(shmalloc_mutex_lock(own->heap, &own->p->mutex));
    while (own->p->items == 0)
        must_work(shmalloc_cond_wait(own->heap, &own->p->cond, &own->p->mutex));
    own->p->items--;
    must_work(shmalloc_mutex_unlock(own->heap, &own->p->mutex));
    return NULL;
}

Test(wait, works_in_a_private_heap)
{
    struct own own;
    must_work(shmalloc_open_private(NULL, &own.heap));
    own.p = shmalloc_calloc(own.heap, 1, sizeof(*own.p));
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, take_own_item, &own);
    for (int i = 0; i < 2; i++) {
        must_work(shmalloc_mutex_lock(own.heap, &own.p->mutex));
        own.p->items++;
        must_work(shmalloc_mutex_unlock(own.heap, &own.p->mutex));
        must_work(shmalloc_cond_signal(own.heap, &own.p->cond));
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    int rc = shmalloc_wait(own.heap, &own.p->word, 0, 1000000);
    if (rc == 0) /* once, because threads have ended */
        rc = shmalloc_wait(own.heap, &own.p->word, 0, 1000000);
    must_code(rc, -ETIMEDOUT);
    must_work(shmalloc_close(own.heap));
}
