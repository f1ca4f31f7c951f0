/* SPDX-License-Identifier: MIT */
/*
 * map_seen.c - what readers see of transactions on a map, whose writers are killed.
 *
 *   map_seen [-k kills]
 *   map_seen --planted             that entries are freed at once has to be found
 *
 * A writer puts one number under ten keys in a transaction, some keys twice, and commits it if the
 * number is even. It is killed at a random time and another goes on. A reader, who takes no lock,
 * must never see an odd number, nor one that is less than what it saw before, in any order of keys,
 * nor half a value.
 */
static int planted;
enum { NO_FAULT, NO_GRACE };
#define SMI_PLANTED(fault) (planted == (fault))
#include "../../src/structures/map_tx.c"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/map.h>

#include "support.h"

enum {
    KEYS = 10,
    NUMBERS = 6
};

struct shared {
    uint64_t next, reads, changes;
    uint32_t ready;
};
static struct shared *shared;
static struct fixture f;

static shmalloc_map join(void)
{
    shmalloc_map map;
    shmalloc_heap *heap = fixture_join(&f);
    must(shmalloc_map_open_root(heap, "map", NULL, &map) == 0, "open: %s", shmalloc_errmsg());
    return map;
}

static size_t key_of(char *key, unsigned i)
{
    return (size_t)sprintf(key, "k%u", i);
}

static int put(const shmalloc_map *map, unsigned i, uint64_t number, unsigned words)
{
    uint64_t value[NUMBERS];
    char key[16];
    for (unsigned k = 0; k < words; k++)
        value[k] = number;
    return shmalloc_map_put(map, key, key_of(key, i), value, words * sizeof(value[0]));
}

static int reader(void *arg)
{
    (void)arg;
    shmalloc_map map = join();
    for (uint64_t last = 0;;) {
        uint64_t before = last, value[NUMBERS];
        for (unsigned i = 0; i < KEYS; i++) {
            char key[16];
            size_t length = 0;
            int rc = shmalloc_map_get(&map, key, key_of(key, i), value, sizeof(value), &length);
            must(rc == 1 && length == sizeof(value), "key %u: %d, %s", i, rc, shmalloc_errmsg());
            must(value[0] % 2 == 0, "a value that was never committed is seen");
            must(value[0] >= last, "key %u has %llu after %llu", i, (unsigned long long)value[0],
                 (unsigned long long)last);
            must(value[NUMBERS - 1] == value[0], "half a value is seen");
            last = value[0];
        }
        shared->changes += last != before;
        shared->reads++;
        __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
    }
    return 0;
}

static int writer(void *arg)
{
    (void)arg;
    shmalloc_map map = join();
    for (;;) {
        uint64_t number = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        int rc = shmalloc_tx_begin(map.heap);
        for (unsigned i = 0; rc >= 0 && i < KEYS; i++) {
            if (i % 3 == 0) /* of another length, so that it is another entry */
                rc = put(&map, i * 7 % KEYS, number, NUMBERS - 2);
            if (rc >= 0)
                rc = put(&map, i * 7 % KEYS, number, NUMBERS);
        }
        must(rc >= 0 || rc == SHMALLOC_ECONFLICT, "put: %s", shmalloc_errmsg());
        if (rc < 0 || number % 2 != 0)
            must_work(shmalloc_tx_abort(map.heap));
        else
            must_work(shmalloc_tx_commit(map.heap));
    }
    return 0;
}

static int run(unsigned kills)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    shmalloc_map map;
    struct rng rng = rng_from(test_seed());
    shared = shared_memory(sizeof(*shared));
    shared->next = 2;
    fixture_begin_heap(&f, 0);
    must(shmalloc_map_open_root(f.heap, "map", &options, &map) == 1, "open: %s", shmalloc_errmsg());
    for (unsigned i = 0; i < KEYS; i++)
        must(put(&map, i, 0, NUMBERS) == 1, "put: %s", shmalloc_errmsg());
    pid_t reads = start_child(reader, NULL);
    await_word(&shared->ready, 1);
    for (unsigned k = 0; k < kills; k++) {
        pid_t writes = start_child(writer, NULL);
        usleep((useconds_t)rng_below(&rng, 3000) + 500);
        kill(writes, SIGKILL);
        int status = wait_child(writes);
        must(status == -SIGKILL, "the writer ended by itself: %d", status);
        must(waitpid(reads, &status, WNOHANG) == 0, "the reader ended");
    }
    kill(reads, SIGKILL);
    int status = wait_child(reads);
    must(status == -SIGKILL, "the reader ended by itself: %d", status);
    must(shared->changes > 0, "the reader saw no change");
    printf("%u kills, %llu rounds of reads, %llu saw a change\n", kills,
           (unsigned long long)shared->reads, (unsigned long long)shared->changes);
    must_work(shmalloc_map_free_root(f.heap, "map"));
    fixture_end(&f);
    return 0;
}

static int run_planted(void *arg)
{
    (void)arg;
    planted = NO_GRACE;
    return run(400);
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--planted") != 0)
        return run(argc > 2 && strcmp(argv[1], "-k") == 0 ? (unsigned)atoi(argv[2]) : 500);
    int found = 0;
    for (unsigned tries = 0; !found && tries < 100; tries++) /* chance has a say in each */
        found = run_child(run_planted, NULL) != 0;
    printf("planted: no grace period: %s\n", found ? "found" : "NOT FOUND");
    return !found;
}
