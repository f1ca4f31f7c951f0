/* SPDX-License-Identifier: MIT */
/*
 * conds.c - threads that wait for each other at mutexes, conditions and words; made to run under
 * ThreadSanitizer too.
 *
 *   conds [-n lives] [-t threads]
 *
 * Plain words under a mutex say whether it excludes and orders: ThreadSanitizer would see an access
 * that is not. Threads end and are replaced meanwhile, which others that wait are told. Fails when
 * a sum is off.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "support.h"

enum { MOST_THREADS = 64, ROOM = 4 };

/* In the heap. */
struct ring {
    shmalloc_mutex mutex;
    shmalloc_cond changed;
    uint64_t in, out, sum_in, sum_out;
    uint64_t item[ROOM];
    uint32_t ticks; /* counted by words */
};

static struct fixture f;
static struct ring *ring;
static uint64_t lives = 40;

/* Wait for a change, not for long, since all may wait for the same: 0 when none came. */
static int changes(void)
{
    int rc = shmalloc_cond_timedwait(f.heap, &ring->changed, &ring->mutex, 1000000);
    must(rc == 0 || rc == -ETIMEDOUT, "%d %s", rc, shmalloc_errmsg());
    return rc == 0;
}

static void put(uint64_t value)
{
    must_work(shmalloc_mutex_lock(f.heap, &ring->mutex));
    while (ring->in - ring->out == ROOM && changes())
        continue;
    if (ring->in - ring->out < ROOM) {
        ring->item[ring->in++ % ROOM] = value;
        ring->sum_in += value;
        must_work(shmalloc_cond_broadcast(f.heap, &ring->changed));
    }
    must_work(shmalloc_mutex_unlock(f.heap, &ring->mutex));
}

static void take(void)
{
    must_work(shmalloc_mutex_lock(f.heap, &ring->mutex));
    while (ring->in == ring->out && changes())
        continue;
    if (ring->in != ring->out)
        ring->sum_out += ring->item[ring->out++ % ROOM];
    must_work(shmalloc_mutex_unlock(f.heap, &ring->mutex));
    must_work(shmalloc_cond_signal(f.heap, &ring->changed));
}

static void tick(void)
{
    uint32_t seen = __atomic_load_n(&ring->ticks, __ATOMIC_ACQUIRE);
    if (seen % 2 == 0) {
        int rc = shmalloc_wait(f.heap, &ring->ticks, seen, 100000);
        must(rc == 0 || rc == -ETIMEDOUT, "%d %s", rc, shmalloc_errmsg());
    }
    __atomic_fetch_add(&ring->ticks, 1, __ATOMIC_ACQ_REL);
    must(shmalloc_wake(f.heap, &ring->ticks, 1) >= 0, "%s", shmalloc_errmsg());
}

static void *life(void *arg)
{
    struct rng *rng = arg;
    for (unsigned i = 0; i < 200; i++) {
        uint64_t what = rng_below(rng, 16);
        if (what == 0)
            tick();
        else if (what % 2)
            put(what);
        else
            take();
        int rc = shmalloc_mutex_trylock(f.heap, &ring->mutex);
        if (rc == 0)
            must_work(shmalloc_mutex_unlock(f.heap, &ring->mutex));
        else
            must_code(rc, -EBUSY);
    }
    return NULL;
}

/* One short life after the other. */
static void *start_lives(void *number)
{
    struct rng rng = rng_from(test_seed() + (uint64_t)(uintptr_t)number);
    for (uint64_t i = 0; i < lives; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, life, &rng) == 0, "no thread");
        pthread_join(thread, NULL);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t threads = 4;
    for (int c; (c = getopt(argc, argv, "n:t:")) != -1;) {
        if (c == 'n')
            lives = strtoull(optarg, NULL, 0);
        else if (c == 't')
            threads = strtoull(optarg, NULL, 0);
        else
            return fprintf(stderr, "usage: %s [-n lives] [-t threads]\n", argv[0]), 2;
    }
    must(threads >= 1 && threads <= MOST_THREADS, "1 to %d threads", MOST_THREADS);
    shmalloc_ref ref = 0;
    pthread_t starters[MOST_THREADS];
    test_seed();
    fixture_begin_heap(&f, 0);
    must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(*ring), &ref));
    ring = shmalloc_ptr(f.heap, ref);
    for (uintptr_t i = 0; i < threads; i++)
        must(pthread_create(&starters[i], NULL, start_lives, (void *)i) == 0, "no thread");
    for (uint64_t i = 0; i < threads; i++)
        pthread_join(starters[i], NULL);
    for (; ring->out < ring->in; ring->out++)
        ring->sum_out += ring->item[ring->out % ROOM];
    must(ring->sum_in == ring->sum_out, "%llu were put in, %llu taken out",
         (unsigned long long)ring->sum_in, (unsigned long long)ring->sum_out);
    printf("%llu items of %llu threads, %u ticks\n", (unsigned long long)ring->in,
           (unsigned long long)(threads * lives), ring->ticks);
    fixture_end(&f);
    return 0;
}
