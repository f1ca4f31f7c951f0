/* SPDX-License-Identifier: MIT */
/*
 * maps.c - threads at work on one map; a plain program, so that the thread sanitizer can watch it.
 *
 *   maps [seconds]
 *
 * Writers put, replace, remove and count keys, some in transactions; readers get, get_many and
 * visit all meanwhile. Each value repeats its key's number, so half a value or another key's shows.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <shmalloc/map.h>

#include "support.h"

enum {
    KEYS = 600,
    WRITERS = 3,
    READERS = 3,
    WORDS = 9
};

static shmalloc_map map;
static uint32_t stop;

static size_t key_of(char *key, unsigned i)
{
    return (size_t)sprintf(key, "key %u", i);
}

static void put(struct rng *rng)
{
    uint64_t value[WORDS];
    char key[24];
    unsigned i = (unsigned)rng_below(rng, KEYS), words = 2 + (unsigned)rng_below(rng, WORDS - 2);
    for (unsigned k = 0; k < words; k++)
        value[k] = i;
    int rc = rng_below(rng, 3) ? shmalloc_map_put(&map, key, key_of(key, i), value, words * 8)
                               : shmalloc_map_remove(&map, key, key_of(key, i));
    must(rc >= 0 || rc == SHMALLOC_ECONFLICT, "%s", shmalloc_errmsg());
}

static void *write_on(void *arg)
{
    struct rng rng = rng_from(test_seed() + (uintptr_t)arg);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        int transaction = rng_below(&rng, 8) == 0;
        if (transaction)
            must_work(shmalloc_tx_begin(map.heap));
        for (unsigned i = 0; i < 4; i++)
            put(&rng);
        if (transaction && rng_below(&rng, 2))
            must_work(shmalloc_tx_commit(map.heap));
        else if (transaction)
            must_work(shmalloc_tx_abort(map.heap));
        must(shmalloc_map_add(&map, "count", 5, 1, NULL) >= 0, "%s", shmalloc_errmsg());
    }
    return NULL;
}

static void check_value(unsigned i, const uint64_t *value, size_t length)
{
    must(length % 8 == 0 && length >= 16 && length <= WORDS * 8, "a value of %zu bytes", length);
    for (size_t k = 0; k < length / 8; k++)
        must(value[k] == i, "key %u has a value of key %llu", i, (unsigned long long)value[k]);
}

static int visit(const void *key, size_t klen, const void *value, size_t vlen, void *arg)
{
    char text[24] = {0};
    unsigned i;
    (void)arg;
    must(klen < sizeof(text), "a key of %zu bytes", klen);
    memcpy(text, key, klen);
    if (sscanf(text, "key %u", &i) == 1) {
        uint64_t words[WORDS];
        must(vlen <= sizeof(words), "a value of %zu bytes", vlen);
        memcpy(words, value, vlen);
        check_value(i, words, vlen);
    }
    return 0;
}

static void *read_on(void *arg)
{
    struct rng rng = rng_from(test_seed() + 100 + (uintptr_t)arg);
    for (unsigned round = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); round++) {
        uint64_t value[WORDS];
        char key[24];
        size_t length;
        unsigned i = (unsigned)rng_below(&rng, KEYS);
        int rc = shmalloc_map_get(&map, key, key_of(key, i), value, sizeof(value), &length);
        must(rc >= 0, "%s", shmalloc_errmsg());
        if (rc == 1)
            check_value(i, value, length);
        if (round % 200 == 0)
            must_work(shmalloc_map_each(&map, visit, NULL));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 2;
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    struct fixture f;
    pthread_t threads[WRITERS + READERS];
    options.stripes = 4;
    test_seed();
    fixture_begin_heap(&f, 0);
    must(shmalloc_map_open_root(f.heap, "map", &options, &map) == 1, "%s", shmalloc_errmsg());
    for (uintptr_t i = 0; i < WRITERS + READERS; i++)
        must(pthread_create(&threads[i], NULL, i < WRITERS ? write_on : read_on, (void *)i) == 0,
             "pthread_create");
    uint64_t end = now_ns() + seconds * 1000000000ull;
    while (now_ns() < end)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < WRITERS + READERS; i++)
        pthread_join(threads[i], NULL);
    must_work(shmalloc_check(f.heap));
    must_work(shmalloc_map_free_root(f.heap, "map"));
    fixture_end(&f);
    return 0;
}
