/* SPDX-License-Identifier: MIT */
/*
 * map_kills.c - real SIGKILL at random times against processes at work on one map, judged by a
 * model.
 *
 *   map_kills [-k kills] [-w workers] [-r kills in a round] [-b blocks in a bag] [-t] [-f]
 *             -t: transactions, too; -f: a fresh heap each round, so that it is small and grows
 *
 * Each worker has keys of its own: before a call it notes, outside the heap, what it is about to
 * do, and after the call that it is done. So after a kill each key has its old or its new value,
 * or, after a transaction, all have the old or all the new ones. All workers add to shared
 * counters. One dies, now and then all; while one is dead another may be stopped.
 *
 * Fails when a value, a counter, the number of entries, or the number of blocks in the heap is not
 * what the model says, when the heap or the map is not sound, or when a worker finds something
 * wrong and ends by itself.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <shmalloc/map.h>

#include "life/adopt.h"
#include "map_walk.h"
#include "structures/map_shape.h"
#include "support.h"
#include "tx/retire.h"

enum {
    KEYS = 4000,
    COUNTERS = 50,
    MOST_WORKERS = 8,
    MOST_AT_ONCE = 16,
    LONGEST = 80000
};

struct lane {
    uint32_t version[KEYS]; /* 0: the key is not there */
    uint64_t counter[COUNTERS];
    uint32_t key; /* + 1, that is being changed to `next`; 0 none */
    uint32_t next;
    uint32_t adding; /* counter + 1; 0 none */
    uint32_t committing; /* 1: the changes below are being committed */
    uint32_t change_count;
    struct {
        uint32_t key, version;
    } change[MOST_AT_ONCE];
    uint64_t operations;
};

static struct lane *lanes;
static struct fixture f;
static unsigned workers = 2, kills = 500, round_kills = 50;
static int transactions, fresh_heaps;
static char value[LONGEST], wanted[LONGEST];

#define NOTE(word, v) __atomic_store_n(&(word), (v), __ATOMIC_RELEASE)

static size_t key_of(char *key, unsigned lane, unsigned i)
{
    return (size_t)sprintf(key, "key%u:%u%.*s", lane, i, (int)(i % 20),
                           "abcdefghijklmnopqrstuvwxyz");
}

static size_t value_of(char *out, unsigned lane, unsigned i, uint32_t version)
{
    size_t length = version % 500 == 499 ? 70000 : 8 + (version * 37u + i) % 200;
    pattern_fill(out, 0, length, (uint64_t)version << 32 | lane << 16 | i);
    return length;
}

/* Does the key have that version? */
static int has(const shmalloc_map *map, unsigned lane, unsigned i, uint32_t version)
{
    char key[64];
    size_t length = 0, klen = key_of(key, lane, i);
    int rc = shmalloc_map_get(map, key, klen, value, sizeof(value), &length);
    must(rc >= 0, "get: %s", shmalloc_errmsg());
    if (version == 0 || rc == 0)
        return version == 0 && rc == 0;
    return length == value_of(wanted, lane, i, version) && memcmp(value, wanted, length) == 0;
}

static int change(const shmalloc_map *map, unsigned lane, unsigned i, uint32_t version)
{
    char key[64];
    size_t klen = key_of(key, lane, i);
    if (version == 0)
        return shmalloc_map_remove(map, key, klen);
    size_t length = value_of(value, lane, i, version);
    return shmalloc_map_put(map, key, klen, value, length);
}

/* ---- workers ---- */

struct worker {
    shmalloc_map map;
    struct lane *lane;
    unsigned number;
    uint32_t version;
    struct rng rng;
};

static void change_one(struct worker *w, int remove)
{
    struct lane *lane = w->lane;
    unsigned i = (unsigned)rng_below(&w->rng, KEYS);
    uint32_t next = remove ? 0 : ++w->version;
    NOTE(lane->next, next);
    NOTE(lane->key, i + 1);
    int rc = change(&w->map, w->number, i, next), was = lane->version[i] != 0;
    must(rc >= 0, "change: %s", shmalloc_errmsg());
    must(rc == (remove ? was : !was), "change of a key of version %u says %d", lane->version[i],
         rc);
    NOTE(lane->version[i], next);
    NOTE(lane->key, 0);
}

static void count_one(struct worker *w)
{
    unsigned i = (unsigned)rng_below(&w->rng, COUNTERS);
    char key[32];
    size_t klen = (size_t)sprintf(key, "counter%u", i);
    NOTE(w->lane->adding, i + 1);
    int rc = shmalloc_map_add(&w->map, key, klen, 1, NULL);
    must(rc >= 0, "add: %s", shmalloc_errmsg());
    NOTE(w->lane->counter[i], w->lane->counter[i] + 1);
    NOTE(w->lane->adding, 0);
}

static void read_one(struct worker *w)
{
    unsigned i = (unsigned)rng_below(&w->rng, KEYS);
    must(has(&w->map, w->number, i, w->lane->version[i]), "key %u:%u is not of version %u",
         w->number, i, w->lane->version[i]);
}

/* Several changes as one; each is seen by its own transaction at once, and after an abort by
 * nobody. */
static void change_several(struct worker *w)
{
    struct lane *lane = w->lane;
    unsigned count = 1 + (unsigned)rng_below(&w->rng, MOST_AT_ONCE - 4), done = 0;
    int rc = shmalloc_tx_begin(w->map.heap);
    must(rc == 0, "begin: %s", shmalloc_errmsg());
    for (; rc >= 0 && done < count; done++) {
        unsigned i = (unsigned)rng_below(&w->rng, KEYS);
        uint32_t next = rng_below(&w->rng, 4) ? ++w->version : 0;
        lane->change[done].key = i;
        lane->change[done].version = next;
        rc = change(&w->map, w->number, i, next);
        must(rc >= 0 || rc == SHMALLOC_ECONFLICT, "change: %s", shmalloc_errmsg());
        must(rc < 0 || has(&w->map, w->number, i, next),
             "a transaction does not see what it changed");
    }
    lane->change_count = done;
    if (rc < 0 || rng_below(&w->rng, 4) == 0) {
        must_work(shmalloc_tx_abort(w->map.heap));
        for (unsigned k = 0; k < done; k++) {
            unsigned i = lane->change[k].key;
            must(has(&w->map, w->number, i, lane->version[i]),
                 "an aborted change of key %u is seen", i);
        }
        return;
    }
    NOTE(lane->committing, 1);
    must_work(shmalloc_tx_commit(w->map.heap));
    for (unsigned k = 0; k < done; k++)
        NOTE(lane->version[lane->change[k].key], lane->change[k].version);
    NOTE(lane->committing, 0);
}

static int worker(void *arg)
{
    struct worker w = {.number = *(unsigned *)arg};
    w.lane = &lanes[w.number];
    w.rng = rng_from(now_ns() ^ (uint64_t)getpid() << 32); /* when it is killed is chance anyhow */
    shmalloc_heap *heap = fixture_join(&f);
    must(shmalloc_map_open_root(heap, "map", NULL, &w.map) == 0, "open: %s", shmalloc_errmsg());
    for (unsigned i = 0; i < KEYS; i++)
        if (w.lane->version[i] > w.version)
            w.version = w.lane->version[i];
    if (w.lane->next > w.version)
        w.version = w.lane->next;
    for (;;) {
        uint64_t what = rng_below(&w.rng, 16);
        if (what < 6)
            change_one(&w, 0);
        else if (what < 10)
            change_one(&w, 1);
        else if (what < 12)
            count_one(&w);
        else if (what < 13 && transactions)
            change_several(&w);
        else
            read_one(&w);
        w.lane->operations++;
    }
    return 0;
}

/* ---- judging ---- */

/* What the dead worker was doing happened or did not. */
static void settle(const shmalloc_map *map, unsigned number, uint64_t *uncertain)
{
    struct lane *lane = &lanes[number];
    if (lane->key != 0) {
        unsigned i = lane->key - 1;
        int was = has(map, number, i, lane->version[i]), is = has(map, number, i, lane->next);
        must(was || is, "key %u:%u is neither of version %u nor %u", number, i, lane->version[i],
             lane->next);
        if (is)
            lane->version[i] = lane->next;
        lane->key = 0;
    }
    if (lane->committing) {
        static uint32_t next[KEYS];
        int old = 1, new = 1;
        memcpy(next, lane->version, sizeof(next));
        for (unsigned k = 0; k < lane->change_count; k++)
            next[lane->change[k].key] = lane->change[k].version;
        for (unsigned k = 0; k < lane->change_count; k++) {
            unsigned i = lane->change[k].key;
            old &= has(map, number, i, lane->version[i]);
            new &= has(map, number, i, next[i]);
        }
        must(old || new, "a transaction of %u changes is neither done nor undone",
             lane->change_count);
        if (new)
            memcpy(lane->version, next, sizeof(next));
        lane->committing = 0;
    }
    *uncertain += lane->adding != 0;
    lane->adding = 0;
}

static int count_entry(const void *key, size_t klen, const void *entry, size_t length, void *arg)
{
    (void)key, (void)klen, (void)entry, (void)length;
    ++*(uint64_t *)arg;
    return 0;
}

/* Everybody is dead: the whole map against the model. */
static void audit(shmalloc_heap *heap, const shmalloc_map *map, uint64_t uncertain)
{
    struct map_walk walk;
    uint64_t entries = 0, sum = 0, least = 0, visited = 0;
    for (unsigned w = 0; w < workers; w++)
        for (unsigned i = 0; i < KEYS; i++) {
            entries += lanes[w].version[i] != 0;
            must(has(map, w, i, lanes[w].version[i]), "key %u:%u is not of version %u", w, i,
                 lanes[w].version[i]);
        }
    for (unsigned i = 0; i < COUNTERS; i++) {
        char key[32];
        int64_t count = 0;
        entries += (uint64_t)shmalloc_map_get(map, key, (size_t)sprintf(key, "counter%u", i),
                                              &count, 8, NULL);
        sum += (uint64_t)count;
        for (unsigned w = 0; w < workers; w++)
            least += lanes[w].counter[i];
    }
    must(sum >= least && sum <= least + uncertain,
         "counters: %llu, by the model %llu and %llu more at most", (unsigned long long)sum,
         (unsigned long long)least, (unsigned long long)uncertain);
    /* a change in each stripe mends it; the key is new to the model and goes again */
    for (unsigned i = 0; i < 2000; i++) {
        char key[32];
        size_t klen = (size_t)sprintf(key, "mend%u", i);
        must(shmalloc_map_remove(map, key, klen) == 0, "mend: %s", shmalloc_errmsg());
    }
    map_walk(map, 1, &walk);
    must_work(shmalloc_map_each(map, count_entry, &visited));
    must(walk.entries == entries && visited == entries &&
             shmalloc_map_count(map) == (int64_t)entries,
         "entries: model %llu, walk %llu, each %llu, count %lld", (unsigned long long)entries,
         (unsigned long long)walk.entries, (unsigned long long)visited,
         (long long)shmalloc_map_count(map));
    uint64_t blocks = map_blocks_in_use(heap);
    must(blocks == walk.blocks, "%llu blocks, of which the map has %llu",
         (unsigned long long)blocks, (unsigned long long)walk.blocks);
    must_work(shmalloc_check(heap));
}

/* ---- the run ---- */

static pid_t pids[MOST_WORKERS];

static void start(unsigned number)
{
    static unsigned numbers[MOST_WORKERS];
    numbers[number] = number;
    pids[number] = start_child(worker, &numbers[number]);
}

static void end(unsigned number)
{
    kill(pids[number], SIGKILL);
    int status = wait_child(pids[number]);
    must(status == -SIGKILL, "worker %u ended by itself: %d", number, status);
}

static shmalloc_heap *open_map(int make, shmalloc_map *map)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    options.stripes = 16;
    shmalloc_heap *heap = make ? heap_create(f.path, 0) : heap_open(f.path);
    must(shmalloc_map_open_root(heap, "map", &options, map) >= 0, "open: %s", shmalloc_errmsg());
    return heap;
}

static void kill_some(shmalloc_heap *heap, const shmalloc_map *map, struct rng *rng,
                      uint64_t *uncertain)
{
    unsigned victim = (unsigned)rng_below(rng, workers), other = (victim + 1) % workers;
    int all = rng_below(rng, 16) == 0, stop = !all && workers > 1 && rng_below(rng, 20) == 0;
    if (stop)
        kill(pids[other], SIGSTOP);
    for (unsigned w = 0; w < workers; w++)
        if (all || w == victim)
            end(w);
    if (stop) { /* it may hold a stripe; readers go on */
        usleep(3000);
        has(map, other, 5, 0);
        kill(pids[other], SIGCONT);
    }
    must_work(smi_adopt(heap, SMI_ADOPT_ALL));
    for (unsigned w = 0; w < workers; w++)
        if (all || w == victim) {
            settle(map, w, uncertain);
            for (unsigned i = 0; i < KEYS; i += 7)
                must(has(map, w, i, lanes[w].version[i]), "key %u:%u is not of version %u", w, i,
                     lanes[w].version[i]);
            start(w);
        }
}

static void run(void)
{
    shmalloc_map map;
    shmalloc_heap *heap = open_map(1, &map);
    struct rng rng = rng_from(test_seed());
    uint64_t uncertain = 0, operations = 0;
    for (unsigned w = 0; w < workers; w++)
        start(w);
    for (unsigned k = 1; k <= kills; k++) {
        usleep((useconds_t)rng_below(&rng, 3000));
        kill_some(heap, &map, &rng, &uncertain);
        if (k % round_kills != 0 && k != kills)
            continue;
        for (unsigned w = 0; w < workers; w++)
            end(w);
        must_work(smi_adopt(heap, SMI_ADOPT_ALL));
        for (unsigned w = 0; w < workers; w++)
            settle(&map, w, &uncertain);
        if (k / round_kills % 2 == 1) { /* the next one is the first to attach */
            must_work(shmalloc_close(heap));
            heap = open_map(0, &map);
        }
        audit(heap, &map, uncertain);
        operations = 0;
        for (unsigned w = 0; w < workers; w++)
            operations += lanes[w].operations;
        if (fresh_heaps) {
            must_work(shmalloc_close(heap));
            must_work(shmalloc_destroy(f.path));
            memset(lanes, 0, MOST_WORKERS * sizeof(*lanes));
            uncertain = 0;
            heap = open_map(1, &map);
        }
        for (unsigned w = 0; w < workers && k != kills; w++)
            start(w);
    }
    must_work(shmalloc_close(heap));
    printf("%u kills, %llu operations in the last heap\n", kills, (unsigned long long)operations);
}

int main(int argc, char **argv)
{
    for (int option; (option = getopt(argc, argv, "k:w:r:b:tf")) != -1;) {
        switch (option) {
        case 'k':
            kills = (unsigned)atoi(optarg);
            break;
        case 'w':
            workers = (unsigned)atoi(optarg);
            break;
        case 'r':
            round_kills = (unsigned)atoi(optarg);
            break;
        case 'b':
            smi_bag_limit = (uint32_t)atoi(optarg);
            break;
        case 't':
            transactions = 1;
            break;
        case 'f':
            fresh_heaps = 1;
            break;
        default:
            return 2;
        }
    }
    must(workers >= 1 && workers <= MOST_WORKERS && round_kills >= 1, "options");
    lanes = shared_memory(MOST_WORKERS * sizeof(*lanes));
    fixture_begin(&f);
    run();
    fixture_end(&f);
    return 0;
}
