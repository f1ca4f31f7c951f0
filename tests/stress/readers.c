/* SPDX-License-Identifier: MIT */
/*
 * readers.c - threads that replace blocks and threads that read them in sections.
 *
 *   readers [-s seconds] [-t threads]     half of them read
 *
 * A block repeats the number of its word and one random number. What a section that counted has
 * copied must be whole. Blocks are read and written by atomic loads and stores, because an ousted
 * section may read one that is used anew.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support.h"

enum { KEYS = 16, WORDS = 8, MOST_THREADS = 64 };

struct table {
    shmalloc_mutex mutex[KEYS];
    uint64_t word[KEYS];
};

static struct fixture f;
static struct table *table;
static uint32_t stop;
static uint64_t reads, ousts, stored;

static void put(struct rng *rng, uint64_t key)
{
    shmalloc_ref fresh, old;
    uint64_t stamp = rng_next(rng);
    must_work(shmalloc_ref_alloc(f.heap, WORDS * 8 << rng_below(rng, 4), &fresh));
    uint64_t *block = shmalloc_ptr(f.heap, fresh);
    for (unsigned i = 0; i < WORDS; i++)
        __atomic_store_n(&block[i], i == 0 ? key : stamp, __ATOMIC_RELAXED);
    must_work(shmalloc_mutex_lock(f.heap, &table->mutex[key]));
    old = table->word[key];
    __atomic_store_n(&table->word[key], fresh, __ATOMIC_RELEASE);
    must_work(shmalloc_mutex_unlock(f.heap, &table->mutex[key]));
    must_work(shmalloc_retire(f.heap, &old));
    __atomic_fetch_add(&stored, 1, __ATOMIC_RELAXED);
}

static void read_one(uint64_t key)
{
    uint64_t copy[WORDS] = {0};
    must_work(shmalloc_read_begin(f.heap));
    shmalloc_ref ref = __atomic_load_n(&table->word[key], __ATOMIC_ACQUIRE);
    int has_copy = ref != 0 && shmalloc_read_valid(f.heap);
    const uint64_t *block = has_copy ? shmalloc_ptr(f.heap, ref) : NULL;
    for (unsigned i = 0; has_copy && i < WORDS; i++)
        copy[i] = __atomic_load_n(&block[i], __ATOMIC_RELAXED);
    int rc = shmalloc_read_end(f.heap);
    __atomic_fetch_add(rc == 0 ? &reads : &ousts, 1, __ATOMIC_RELAXED);
    if (rc == SHMALLOC_EOUSTED || !has_copy)
        return;
    must_work(rc);
    must(copy[0] == key, "word %llu led to a block of word %llu", (unsigned long long)key,
         (unsigned long long)copy[0]);
    for (unsigned i = 2; i < WORDS; i++)
        must(copy[i] == copy[1], "a block of word %llu was freed under its reader",
             (unsigned long long)key);
}

static void *work(void *arg)
{
    struct rng rng = rng_from(test_seed() + (uintptr_t)arg);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        uint64_t key = rng_below(&rng, KEYS);
        if ((uintptr_t)arg % 2)
            put(&rng, key);
        else
            read_one(key);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned seconds = 3, threads = 6;
    int option;
    pthread_t thread[MOST_THREADS];
    while ((option = getopt(argc, argv, "s:t:")) != -1) {
        if (option == 's')
            seconds = (unsigned)strtoul(optarg, NULL, 0);
        else if (option == 't')
            threads = (unsigned)strtoul(optarg, NULL, 0);
        else
            return 2;
    }
    must(threads <= MOST_THREADS, "at most %d threads", MOST_THREADS);
    test_seed(); /* drawn before there are threads */
    fixture_begin_heap(&f, 0);
    table = shmalloc_calloc(f.heap, 1, sizeof(*table));
    for (unsigned i = 0; i < threads; i++)
        must(pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i) == 0, "no thread");
    sleep(seconds);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    must_be_sound(f.heap);
    uint64_t named = 1;
    for (unsigned i = 0; i < KEYS; i++)
        named += table->word[i] != 0;
    shmalloc_stats stats = heap_stats(f.heap);
    must(stats.allocated_blocks == named && stats.retired_blocks == 0,
         "%llu blocks, %llu retired, %llu are named", (unsigned long long)stats.allocated_blocks,
         (unsigned long long)stats.retired_blocks, (unsigned long long)named);
    printf("%llu stored, %llu reads, %llu ousted\n", (unsigned long long)stored,
           (unsigned long long)reads, (unsigned long long)ousts);
    fixture_end(&f);
    return 0;
}
