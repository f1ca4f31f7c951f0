/* SPDX-License-Identifier: MIT */
/*
 * delays.c - how long a death holds up those who live. Prints, asserts nothing about time.
 *
 *   delays [-k kills] [-t threads]
 *
 * Heaps of 1 MiB, 64 MiB and 1 GiB (most of it a hole), full of blocks between which as many were
 * freed. A process of several threads fills its caches with slots of all slabs, works, and is
 * killed at a random moment, so that it may hold any lock; then the survivor makes calls of every
 * kind. It looks for the dead in the first of them, as it would within a second anyhow. Times are
 * without those in which the survivor had no processor.
 *
 * Then: how long the next open takes when everybody was killed, with a million blocks.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handle/handle.h"
#include "lane.h"

enum { CACHED = 40000, MOST = 1000000 };

static struct fixture f;
static uint32_t *at_work; /* threads of the victim */
static unsigned threads = 8;
static shmalloc_ref *refs; /* of the blocks that stay */

static void make_heap(uint64_t size)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.initial_size = size;
    unlink(f.path);
    must_work(shmalloc_open(f.path, &options, &f.heap));
}

/* `count` blocks that stay, and a hole beside each. */
static void fill(uint64_t count, struct rng *rng)
{
    shmalloc_ref *others = calloc(count, sizeof(*others));
    for (uint64_t i = 0; i < count; i++) {
        size_t size = 1 + rng_below(rng, 200);
        must_work(shmalloc_ref_alloc(f.heap, size, &refs[i]));
        must_work(shmalloc_ref_alloc(f.heap, size, &others[i]));
    }
    rng_shuffle(rng, others, count);
    for (uint64_t i = 0; i < count; i++)
        must_work(shmalloc_ref_free(f.heap, &others[i]));
    free(others);
}

/* Slots of many slabs in no order, so that each goes back by itself. */
static void fill_cache(shmalloc_heap *heap, struct rng *rng)
{
    shmalloc_ref *mine = calloc(CACHED, sizeof(*mine));
    for (unsigned i = 0; i < CACHED; i++)
        if (shmalloc_ref_alloc(heap, 8 + i % 8 * 16, &mine[i]) < 0)
            mine[i] = 0;
    rng_shuffle(rng, mine, CACHED);
    for (unsigned i = 0; i < CACHED; i++)
        must_work(shmalloc_ref_free(heap, &mine[i]));
    free(mine);
}

static void *work(void *arg)
{
    struct rng rng = rng_from((uint64_t)(uintptr_t)&rng ^ now_ns());
    shmalloc_heap *heap = arg;
    fill_cache(heap, &rng);
    signal_word(at_work);
    for (;;) {
        shmalloc_ref ref = 0;
        if (shmalloc_ref_alloc(heap, 1 + rng_log_uniform(&rng, 18), &ref) == 0)
            must_work(shmalloc_ref_free(heap, &ref));
    }
    return NULL;
}

static int victim(void *arg)
{
    pthread_t thread;
    (void)arg;
    fixture_join(&f);
    for (unsigned i = 0; i < threads; i++)
        must(pthread_create(&thread, NULL, work, f.heap) == 0, "no thread");
    for (;;)
        pause();
}

/* The most that a call took since it was asked last, without waiting for a processor. */
static uint64_t most, began_at, delay;

static uint64_t most_of(void)
{
    uint64_t was = most;
    most = 0;
    delay = lane_times(getpid(), (uint32_t)gettid()).waited;
    return was;
}

static void call_ended(void)
{
    uint64_t took = now_ns() - began_at;
    if (took > 1000000) {
        uint64_t before = delay;
        delay = lane_times(getpid(), (uint32_t)gettid()).waited;
        took -= delay - before < took ? delay - before : took;
    }
    most = took > most ? took : most;
}

#define timed(call) (began_at = now_ns(), must((call) >= 0, "%s", shmalloc_errmsg()), call_ended())

static void carry_on(struct rng *rng)
{
    shmalloc_ref ref = 0, root;
    for (unsigned i = 0; i < 200; i++) {
        timed(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(rng, 18), &ref));
        timed(shmalloc_ref_free(f.heap, &ref));
        timed(shmalloc_root_get_or_create(f.heap, "delays", 0, 64, NULL, NULL, &root));
    }
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure_repairs(uint64_t size, uint64_t blocks, unsigned kills)
{
    struct rng rng = rng_from(1);
    uint64_t *first = calloc(kills, sizeof(*first)), later = 0;
    make_heap(size);
    fill(blocks, &rng);
    for (unsigned k = 0; k < kills; k++) {
        *at_work = 0;
        pid_t pid = start_child(victim, NULL);
        await_word(at_work, threads);
        usleep((unsigned)rng_below(&rng, 3000));
        kill_child(pid);
        most_of();
        shmalloc_ref ref = 0;
        f.heap->looked_at = 0;
        timed(shmalloc_ref_alloc(f.heap, 100000, &ref));
        first[k] = most_of();
        timed(shmalloc_ref_free(f.heap, &ref));
        carry_on(&rng);
        uint64_t longest = most_of();
        later = longest > later ? longest : later;
    }
    qsort(first, kills, sizeof(*first), by_size);
    printf("%5llu MiB, %7llu blocks, %u kills of %u threads: the call that finds the death takes "
           "%.2f ms (median), at "
           "most %.2f ms; calls after it at most %.2f ms\n",
           (unsigned long long)(size >> 20),
           (unsigned long long)heap_stats(f.heap).allocated_blocks, kills, threads,
           (double)first[kills / 2] / 1e6, (double)first[kills - 1] / 1e6, (double)later / 1e6);
    fflush(stdout);
    must_be_sound(f.heap);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    free(first);
}

static int fill_and_die(void *arg)
{
    struct rng rng = rng_from(2);
    make_heap(256 << 20);
    fill(*(const uint64_t *)arg, &rng);
    fill_cache(f.heap, &rng);
    raise(SIGKILL);
    return 0;
}

static void measure_open(uint64_t blocks)
{
    must(run_child(fill_and_die, &blocks) == -SIGKILL, "the only user did not die");
    most_of();
    timed(shmalloc_open(f.path, NULL, &f.heap));
    printf("%7llu blocks, everybody killed: the next open takes %.2f ms\n",
           (unsigned long long)heap_stats(f.heap).allocated_blocks, (double)most_of() / 1e6);
}

int main(int argc, char **argv)
{
    unsigned kills = 50;
    for (int c; (c = getopt(argc, argv, "k:t:")) != -1;) {
        if (c == '?')
            return fprintf(stderr, "usage: %s [-k kills] [-t threads]\n", argv[0]), 2;
        *(c == 'k' ? &kills : &threads) = (unsigned)strtoul(optarg, NULL, 0);
    }
    must(kills > 0, "at least one kill");
    fixture_begin(&f);
    at_work = shared_memory(sizeof(*at_work));
    refs = calloc(MOST, sizeof(*refs));
    must(refs, "out of memory");
    measure_repairs(1 << 20, 1000, kills);
    measure_repairs(64 << 20, 200000, kills);
    measure_repairs(1 << 30, 500000, kills);
    measure_open(1000);
    must_work(shmalloc_close(f.heap));
    measure_open(MOST);
    fixture_end(&f);
    free(refs);
    return 0;
}
