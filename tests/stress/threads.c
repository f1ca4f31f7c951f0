/* SPDX-License-Identifier: MIT */
/*
 * threads.c - threads that share a heap as hard as they can; made to run under ThreadSanitizer too.
 *
 *   threads [-s seconds] [-t threads] [-f]      -f: also fork children that use the heap
 *
 * Not -f under ThreadSanitizer: it cannot see that a lock was handed on by way of another process.
 *
 * Threads allocate, exchange blocks through mailboxes (so most frees are of other threads' blocks),
 * bind roots, count under mutexes in the heap, and end after a while, when others take their
 * places. Fails when a pattern is not whole, a counter under a mutex is off, or anything is left at
 * the end.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

enum { MAILBOXES = 256, MUTEXES = 4, MAX_THREADS = 64, ROOTS = 16 };

/* In the heap. */
struct counter {
    shmalloc_mutex mutex;
    uint64_t value, copy;
};

static struct fixture f;
static uint64_t mailboxes[MAILBOXES]; /* refs on their way from one thread to another */
static struct counter *counters;
static shmalloc_ref rooted[ROOTS]; /* what each root is bound to */
static uint64_t deadline, seed;
static uint64_t operations, lives, forks, added;

/* A block's first word is its stamp, the second its size; the rest is the pattern. */
static uint64_t make_block(struct rng *rng)
{
    size_t size = 32 + rng_log_uniform(rng, rng_below(rng, 64) ? 11 : 18);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, size, &ref));
    uint64_t *words = shmalloc_ptr(f.heap, ref);
    words[0] = rng_next(rng);
    words[1] = size;
    pattern_fill(words + 2, 0, size - 16, words[0]);
    return ref;
}

static void end_block(uint64_t ref, struct rng *rng)
{
    if (ref == 0)
        return;
    uint64_t *words = shmalloc_ptr(f.heap, ref);
    must(pattern_check(words + 2, words[1] - 16, words[0]) == words[1] - 16, "block %#llx changed",
         (unsigned long long)ref);
    if (rng_below(rng, 8) == 0) {
        size_t size = 32 + rng_log_uniform(rng, 14), kept = words[1] < size ? words[1] : size;
        must_work(shmalloc_ref_realloc(f.heap, &ref, size));
        words = shmalloc_ptr(f.heap, ref);
        must(pattern_check(words + 2, kept - 16, words[0]) == kept - 16, "resizing changed %#llx",
             (unsigned long long)ref);
    }
    must_work(shmalloc_ref_free(f.heap, &ref));
}

static void count(struct rng *rng)
{
    struct counter *c = &counters[rng_below(rng, MUTEXES)];
    must_work(shmalloc_mutex_lock(f.heap, &c->mutex));
    must(c->value == c->copy, "two threads are inside");
    c->value++;
    c->copy++;
    must_work(shmalloc_mutex_unlock(f.heap, &c->mutex));
    __atomic_fetch_add(&added, 1, __ATOMIC_RELAXED);
}

static void use_roots(struct rng *rng)
{
    char name[16];
    shmalloc_ref ref = 0;
    uint64_t i = rng_below(rng, ROOTS);
    snprintf(name, sizeof(name), "%llu", (unsigned long long)i);
    if (rng_below(rng, 4) == 0) {
        int rc = shmalloc_root_remove(f.heap, name);
        must(rc == 0 || rc == SHMALLOC_ENOROOT, "%d", rc);
    } else if (rng_below(rng, 2)) {
        must_work(shmalloc_root_set(f.heap, name, i, rooted[i]));
    } else {
        int rc = shmalloc_root_get(f.heap, name, i, &ref);
        must(rc == SHMALLOC_ENOROOT || (rc == 0 && ref == rooted[i]), "%d", rc);
    }
}

static void *live(void *arg)
{
    struct rng rng = rng_from(seed ^ (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15ull);
    uint64_t span = 100 + rng_below(&rng, 20000), n = 0;
    for (; n < span && now_ns() < deadline; n++) {
        uint64_t *box = &mailboxes[rng_below(&rng, MAILBOXES)];
        end_block(__atomic_exchange_n(box, make_block(&rng), __ATOMIC_ACQ_REL), &rng);
        if (n % 8 == 0)
            count(&rng);
        if (n % 16 == 0)
            use_roots(&rng);
        if (n % 4096 == 4095)
            must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    }
    __atomic_fetch_add(&operations, n, __ATOMIC_RELAXED);
    return NULL;
}

/* A child takes blocks of its own, and one out of a mailbox that it frees for all. */
static int child(void *arg)
{
    struct rng rng = rng_from(*(uint64_t *)arg);
    for (int i = 0; i < 100; i++)
        end_block(make_block(&rng), &rng);
    count(&rng);
    return shmalloc_close(f.heap) < 0;
}

static void *start_lives(void *arg)
{
    uint64_t number = (uint64_t)(uintptr_t)arg;
    while (now_ns() < deadline) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, live, (void *)(uintptr_t)number) == 0, "pthread_create");
        pthread_join(thread, NULL);
        number += MAX_THREADS;
        __atomic_fetch_add(&lives, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void fork_on(void)
{
    while (now_ns() < deadline) {
        uint64_t child_seed = seed + ++forks;
        int status = wait_child_within(start_child(child, &child_seed), 20000);
        must(status == 0, "child: status %d", status);
        __atomic_fetch_add(&added, 1, __ATOMIC_RELAXED); /* the child's own copy of it is gone */
    }
}

static void end_all(shmalloc_ref counters_ref, const struct usage *empty)
{
    struct rng rng = rng_from(1);
    uint64_t sum = 0;
    char name[16];
    for (int i = 0; i < MAILBOXES; i++)
        end_block(mailboxes[i], &rng);
    for (int i = 0; i < MUTEXES; i++)
        sum += counters[i].value;
    must(sum == added, "%llu were counted under mutexes, %llu happened", (unsigned long long)sum,
         (unsigned long long)added);
    for (int i = 0; i < ROOTS; i++) {
        snprintf(name, sizeof(name), "%d", i);
        shmalloc_root_remove(f.heap, name);
        must_work(shmalloc_ref_free(f.heap, &rooted[i]));
    }
    must_work(shmalloc_ref_free(f.heap, &counters_ref));
    must_be_as_before(f.heap, empty);
}

int main(int argc, char **argv)
{
    uint64_t seconds = 5, threads = 4;
    int forking = 0;
    for (int c; (c = getopt(argc, argv, "s:t:f")) != -1;) {
        if (c == 's')
            seconds = strtoull(optarg, NULL, 0);
        else if (c == 't')
            threads = strtoull(optarg, NULL, 0);
        else if (c == 'f')
            forking = 1;
        else
            return fprintf(stderr, "usage: %s [-s seconds] [-t threads] [-f]\n", argv[0]), 2;
    }
    must(threads >= 1 && threads <= MAX_THREADS, "1 to %d threads", MAX_THREADS);
    pthread_t starters[MAX_THREADS];
    shmalloc_ref counters_ref = 0;
    seed = test_seed();
    fixture_begin_heap(&f, 0);
    struct usage empty = usage_now(f.heap);
    must_work(shmalloc_ref_alloc_zeroed(f.heap, MUTEXES * sizeof(struct counter), &counters_ref));
    counters = shmalloc_ptr(f.heap, counters_ref);
    for (int i = 0; i < ROOTS; i++)
        must_work(shmalloc_ref_alloc(f.heap, 8, &rooted[i]));
    deadline = now_ns() + seconds * 1000000000ull;
    for (uintptr_t i = 0; i < threads; i++)
        must(pthread_create(&starters[i], NULL, start_lives, (void *)i) == 0, "pthread_create");
    if (forking)
        fork_on();
    for (uint64_t i = 0; i < threads; i++)
        pthread_join(starters[i], NULL);
    end_all(counters_ref, &empty);
    fixture_end(&f);
    printf("%llu operations of %llu threads, at most %llu at once, %llu forks\n",
           (unsigned long long)operations, (unsigned long long)lives, (unsigned long long)threads,
           (unsigned long long)forks);
    return 0;
}
