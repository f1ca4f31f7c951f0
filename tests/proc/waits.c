/* SPDX-License-Identifier: MIT */
/*
 * waits.c - SIGKILL at random times of processes that wait for each other and wake each other.
 *
 *   waits [-k kills] [-s seconds] [-w workers] [-t threads] [-m way] [-p]
 *
 *   -m cond       a bounded box with a mutex and two conditions (the default)
 *   -m broadcast  the same; who changes it wakes all
 *   -m words      turns by words: shmalloc_wait() and shmalloc_wake()
 *   -p            a planted fault: conditions that trust wake-ups; to pass, it must be caught
 *
 * Half of the workers put into the box, the others take out, and the box holds one item: so each
 * step of one sleeps until another has made its own. A worker that was killed is replaced after the
 * others have gone on without it. Fails when nothing moves for `seconds` although the workers live:
 * then a wake-up was lost. How long a step takes is not judged.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

enum { MOST_WORKERS = 32 };
enum way { COND, BROADCAST, WORDS };

/* In the heap. The box is full when one more was put in than taken out. */
struct box {
    shmalloc_mutex mutex;
    shmalloc_cond filled, emptied;
    uint64_t put, taken;
    uint32_t turn; /* of words: even, an item may be put in; odd, it may be taken out */
    uint64_t owners_died;
};

/* A condition as one writes it first: whoever was woken is trusted to act, and waiters are
 * counted. */
struct naive {
    uint32_t sequence, waiters;
};

static struct fixture f;
static uint64_t kills = 300, patience_s = 20;
static unsigned workers = 4, threads = 1;
static enum way way;
static int planted;
static struct box *box;
static pid_t pids[MOST_WORKERS];
static _Thread_local struct rng chance;

static void nap(void)
{
    struct timespec pause = {0, 20000};
    nanosleep(&pause, NULL);
}

/* ---- conditions ---- */

static void naive_wait(struct naive *c)
{
    uint32_t seen = __atomic_load_n(&c->sequence, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&c->waiters, 1, __ATOMIC_SEQ_CST);
    must_work(shmalloc_mutex_unlock(f.heap, &box->mutex));
    syscall(SYS_futex, &c->sequence, FUTEX_WAIT, seen, NULL, NULL, 0);
    __atomic_fetch_sub(&c->waiters, 1, __ATOMIC_SEQ_CST);
}

static void naive_signal(struct naive *c)
{
    __atomic_fetch_add(&c->sequence, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->waiters, __ATOMIC_SEQ_CST) > 0)
        syscall(SYS_futex, &c->sequence, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void enter(int rc)
{
    must(rc == 0 || rc == SHMALLOC_OWNER_DIED, "%d %s", rc, shmalloc_errmsg());
    must(box->put == box->taken || box->put == box->taken + 1, "%llu put in, %llu taken out",
         (unsigned long long)box->put, (unsigned long long)box->taken);
    if (rc == SHMALLOC_OWNER_DIED) { /* each step is one store, so there is nothing to mend */
        box->owners_died++;
        must_work(shmalloc_mutex_consistent(f.heap, &box->mutex));
    }
}

static void await(shmalloc_cond *cond)
{
    if (planted)
        naive_wait((struct naive *)(void *)cond);
    enter(planted ? shmalloc_mutex_lock(f.heap, &box->mutex)
                  : shmalloc_cond_wait(f.heap, cond, &box->mutex));
}

static void tell(shmalloc_cond *cond)
{
    if (planted)
        naive_signal((struct naive *)(void *)cond);
    else
        must_work(way == BROADCAST ? shmalloc_cond_broadcast(f.heap, cond)
                                   : shmalloc_cond_signal(f.heap, cond));
}

/* ---- workers ---- */

static void step_in_box(int puts)
{
    enter(shmalloc_mutex_lock(f.heap, &box->mutex));
    while ((box->put == box->taken) != puts)
        await(puts ? &box->emptied : &box->filled);
    uint64_t *count = puts ? &box->put : &box->taken;
    __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
    if (rng_below(&chance, 8) == 0)
        nap(); /* a kill here is an owner's */
    must_work(shmalloc_mutex_unlock(f.heap, &box->mutex));
    if (rng_below(&chance, 4) == 0)
        nap(); /* a kill here is not that of an owner, and yet nobody was told */
    tell(puts ? &box->filled : &box->emptied);
}

static void step_by_words(int puts)
{
    uint32_t turn = __atomic_load_n(&box->turn, __ATOMIC_ACQUIRE);
    while (turn % 2 == (uint32_t)puts) {
        must_work(shmalloc_wait(f.heap, &box->turn, turn, SHMALLOC_FOREVER));
        turn = __atomic_load_n(&box->turn, __ATOMIC_ACQUIRE);
    }
    if (__atomic_compare_exchange_n(&box->turn, &turn, turn + 1, 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED))
        must(shmalloc_wake(f.heap, &box->turn, UINT32_MAX) >= 0, "%s", shmalloc_errmsg());
}

static void *work(void *puts)
{
    chance = rng_from(test_seed() + (uint64_t)getpid());
    for (;;)
        if (way == WORDS)
            step_by_words(puts != NULL);
        else
            step_in_box(puts != NULL);
    return NULL;
}

static int run_worker(void *arg)
{
    unsigned number = *(unsigned *)arg;
    shmalloc_ref ref;
    fixture_join(&f);
    must_work(shmalloc_root_get(f.heap, "box", 0, &ref));
    box = shmalloc_ptr(f.heap, ref);
    for (unsigned i = 1; i < threads; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, work, (number + i) % 2 ? &box : NULL) == 0, "no thread");
    }
    work(number % 2 ? &box : NULL);
    return 1;
}

/* ---- who kills and looks on ---- */

static uint64_t progress(void)
{
    return __atomic_load_n(&box->put, __ATOMIC_RELAXED) +
           __atomic_load_n(&box->taken, __ATOMIC_RELAXED) +
           __atomic_load_n(&box->turn, __ATOMIC_RELAXED);
}

/* Until that many steps more were made: 1; 0 when nothing moved for all of the patience. */
static int moves(uint64_t steps)
{
    uint64_t last = progress(), wanted = last + steps, since = now_ns();
    while (progress() < wanted) {
        nap();
        if (progress() != last) {
            last = progress();
            since = now_ns();
        } else if (now_ns() - since > patience_s * 1000000000u) {
            return 0;
        }
    }
    return 1;
}

static void start(unsigned i)
{
    pids[i] = start_child(run_worker, &i);
}

static void end_workers(void)
{
    for (unsigned i = 0; i < workers; i++)
        kill_child(pids[i]);
}

static void parse(int argc, char **argv)
{
    for (int c; (c = getopt(argc, argv, "k:s:w:t:m:p")) != -1;)
        switch (c) {
        case 'k': kills = strtoull(optarg, NULL, 10); break;
        case 's': patience_s = strtoull(optarg, NULL, 10); break;
        case 'w': workers = (unsigned)strtoul(optarg, NULL, 10); break;
        case 't': threads = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'm':
            way = strcmp(optarg, "words") == 0       ? WORDS
                  : strcmp(optarg, "broadcast") == 0 ? BROADCAST
                                                     : COND;
            break;
        case 'p': planted = 1; break;
        default: exit(2);
        }
    must(workers >= 4 && workers <= MOST_WORKERS && threads >= 1, "4 to %d workers", MOST_WORKERS);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    struct rng rng = rng_from(test_seed());
    fixture_begin_heap(&f, 0);
    shmalloc_ref ref;
    must(shmalloc_root_get_or_create(f.heap, "box", 0, sizeof(*box), NULL, NULL, &ref) >= 0, "%s",
         shmalloc_errmsg());
    box = shmalloc_ptr(f.heap, ref);
    for (unsigned i = 0; i < workers; i++)
        start(i);
    uint64_t killed = 0;
    int moved = 1;
    while (killed < kills && (moved = moves(rng_below(&rng, 60)))) {
        unsigned i = (unsigned)rng_below(&rng, workers);
        kill_child(pids[i]);
        killed++;
        moved = moves(1 + rng_below(&rng, 20)); /* without it */
        start(i);
    }
    uint64_t steps = progress();
    end_workers();
    must_be_sound(f.heap);
    printf("%llu kills, %llu steps, %llu owners died; %s\n", (unsigned long long)killed,
           (unsigned long long)steps, (unsigned long long)box->owners_died,
           moved ? "all wake-ups arrived" : "nothing moves any more");
    fixture_end(&f);
    if (planted)
        return moved ? (fprintf(stderr, "the planted fault was not caught\n"), 1) : 0;
    return moved ? 0 : (fprintf(stderr, "a wake-up was lost\n"), 1);
}
