/* SPDX-License-Identifier: MIT */
/*
 * map_steps.c - shmalloc_map, killed at every instruction of each of its operations: everybody
 * dies, or one of two processes.
 *
 *   map_steps [--op "part of a name"] [options of the kit]
 *   map_steps --planted             each planted fault has to be found
 *
 * A map of one stripe, whose seed and keys are always the same, so that each operation takes the
 * wanted way: keys are looked for that fall into one bucket. What is left after each death must be
 * the map before or after, with no block lost, must be sound where a repair was due and not done
 * yet, and must take further changes, after which nothing is under way any more.
 */
static int planted;
enum { NO_FAULT, COUNT_NOT_MENDED, SPLIT_NOT_FINISHED, MOVED_NOT_CLEARED, FAULTS };
#define SMI_PLANTED(fault) (planted == (fault))
#include "../../src/structures/map_stripe.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/crashtest.h>

#include "map_walk.h"
#include "structures/map.h"
#include "support.h"

enum {
    MOST = 80
};

static shmalloc_map open_map(shmalloc_heap *heap)
{
    shmalloc_map map;
    must(shmalloc_map_open_root(heap, "map", NULL, &map) == 0, "open: %s", shmalloc_errmsg());
    return map;
}

static const uint64_t seed[2] = {0x243f6a8885a308d3,
                                 0x13198a2e03707344}; /* so that each run goes the same way */
static char keys[8][MOST + 10][8]; /* by the bucket of eight that they fall into */

/* Looked for before anything is stepped through. */
static void find_keys(void)
{
    unsigned found[8] = {0}, full = 0;
    for (unsigned n = 0; full < 8; n++) {
        char key[8];
        size_t length = (size_t)snprintf(key, sizeof(key), "k%u", n);
        uint64_t bucket = smi_map_bucket_of(smi_map_hash(seed, key, length), 8);
        if (found[bucket] == MOST + 10)
            continue;
        memcpy(keys[bucket][found[bucket]], key, sizeof(key));
        full += ++found[bucket] == MOST + 10;
    }
}

static int put(const shmalloc_map *map, unsigned bucket, unsigned i, size_t length)
{
    char value[400];
    memset(value, 'a' + (int)(length % 26), length);
    return shmalloc_map_put(map, keys[bucket][i], strlen(keys[bucket][i]), value, length) < 0;
}

static int remove_key(const shmalloc_map *map, unsigned bucket, unsigned i)
{
    return shmalloc_map_remove(map, keys[bucket][i], strlen(keys[bucket][i])) < 0;
}

/* ---- states to begin with ---- */

static int empty(shmalloc_heap *heap, void *arg)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    shmalloc_map map;
    (void)arg;
    options.stripes = 1;
    if (shmalloc_map_open_root(heap, "map", &options, &map) < 0)
        return 1;
    struct smf_map *header = smi_at(heap, map.ref);
    memcpy(header->seed, seed, sizeof(seed));
    return 0;
}

static int some(shmalloc_heap *heap, void *arg)
{
    if (empty(heap, arg))
        return 1;
    shmalloc_map map = open_map(heap);
    for (unsigned i = 0; i < 8; i++)
        if (put(&map, i, 0, 20))
            return 1;
    return shmalloc_map_add(&map, "counter", 7, 5, NULL) < 0;
}

/* Bucket 0 is full: 7 keys. */
static int full_bucket(shmalloc_heap *heap, void *arg)
{
    if (empty(heap, arg))
        return 1;
    shmalloc_map map = open_map(heap);
    for (unsigned i = 0; i < SMF_MAP_SLOTS; i++)
        if (put(&map, 0, i, 20))
            return 1;
    return 0;
}

/* One entry less than what is split: `first` keys in bucket 0, which is split first, the others
 * elsewhere. */
static int before_split(shmalloc_heap *heap, unsigned first)
{
    if (empty(heap, NULL))
        return 1;
    shmalloc_map map = open_map(heap);
    for (unsigned i = 0; i < 32; i++)
        if (put(&map, i < first ? 0 : 1 + i % 7, i, 20))
            return 1;
    return 0;
}

static int even(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return before_split(heap, 6);
}

static int chained(shmalloc_heap *heap,
                   void *arg) /* three buckets, of which the split leaves about half */
{
    (void)arg;
    return before_split(heap, 20);
}

/* The next split needs a longer array of segments: that one has been made short. */
static int short_array(shmalloc_heap *heap, void *arg)
{
    shmalloc_ref short_ref = 0;
    if (empty(heap, arg))
        return 1;
    shmalloc_map map = open_map(heap);
    for (unsigned i = 0; i < 64; i++)
        if (put(&map, i % 8, i / 8, 20))
            return 1;
    struct smf_stripe *s = smi_map_stripe(&map, 0);
    if (smi_stripe_buckets(s) != 16 || shmalloc_ref_alloc(heap, 16, &short_ref) < 0)
        return 1;
    memcpy(smi_at(heap, short_ref), smi_at(heap, s->dir), 16);
    if (shmalloc_ref_free(heap, &s->dir) < 0)
        return 1;
    s->dir = short_ref;
    return 0;
}

/* ---- operations ---- */

static int put_new(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return put(&map, 0, 60, 20);
}
static int put_replaces(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return put(&map, 0, 0, 21);
}
static int put_longer(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return put(&map, 0, 0, 300);
}
static int removes(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return remove_key(&map, 0, 0);
}
static int adds(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_map_add(&map, "counter", 7, 3, NULL) != 0;
}
static int adds_new(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_map_add(&map, "other", 5, 3, NULL) != 1;
}
static int put_if(shmalloc_heap *heap, void *arg)
{
    int64_t five = 5, six = 6;
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_map_put_if(&map, "counter", 7, &five, 8, &six, 8) != 1;
}

/* A new key, one with another value, one with a longer one twice, one that goes, a counter. */
static int change_all(const shmalloc_map *map)
{
    return put(map, 0, 60, 20) || put(map, 0, 0, 21) || put(map, 1, 0, 60) || put(map, 1, 0, 300) ||
           remove_key(map, 2, 0) || shmalloc_map_add(map, "counter", 7, 3, NULL) < 0;
}

static int commits(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_tx_begin(heap) < 0 || change_all(&map) || shmalloc_tx_commit(heap) < 0;
}
static int aborts(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_tx_begin(heap) < 0 || change_all(&map) || shmalloc_tx_abort(heap) < 0;
}
/* The new key makes the stripe split, in the middle of the transaction. */
static int splits_and_commits(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_tx_begin(heap) < 0 || put(&map, 0, 0, 21) || put(&map, 0, 60, 20) ||
           put(&map, 0, 61, 20) || shmalloc_tx_commit(heap) < 0;
}
static int splits_and_aborts(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_map map = open_map(heap);
    return shmalloc_tx_begin(heap) < 0 || put(&map, 0, 0, 21) || put(&map, 0, 60, 20) ||
           put(&map, 0, 61, 20) || shmalloc_tx_abort(heap) < 0;
}

static int frees(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return shmalloc_map_free_root(heap, "map") < 0;
}
static int nothing(shmalloc_heap *heap, void *arg)
{
    (void)heap;
    (void)arg;
    return 0;
}

/* ---- judging ---- */

struct list {
    char *line[MOST + 2];
    unsigned count;
};

static int note(const void *key, size_t klen, const void *value, size_t vlen, void *arg)
{
    struct list *list = arg;
    char text[600];
    int64_t counter = 0;
    memcpy(&counter, value, vlen < 8 ? vlen : 8);
    int n =
        snprintf(text, sizeof(text), "%.*s: %zu %.*s %lld\n", (int)klen, (const char *)key, vlen,
                 vlen == 8 ? 0 : 1, (const char *)value, vlen == 8 ? (long long)counter : 0);
    if (n < 0 || list->count > MOST)
        return -1;
    list->line[list->count++] = strdup(text);
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int reach(uint64_t part, void *arg)
{
    (void)arg;
    shmalloc_crashtest_reached(part);
    return 0;
}

static int describe(shmalloc_heap *heap, void *arg)
{
    struct list list = {.count = 0};
    (void)arg;
    shmalloc_map map;
    for (shmalloc_ref unused = heap->state->structure_headers; unused;
         unused = ((struct smf_structure *)smi_at(heap, unused))->next)
        shmalloc_crashtest_reached(unused);
    if (shmalloc_map_open_root(heap, "map", NULL, &map) == SHMALLOC_ENOROOT) {
        shmalloc_crashtest_print("no map\n");
        return 0;
    }
    if (shmalloc_map_each(&map, note, &list) != 0)
        return shmalloc_crashtest_fail("each: %s", shmalloc_errmsg());
    qsort(list.line, list.count, sizeof(list.line[0]), by_text);
    for (unsigned i = 0; i < list.count; i++)
        shmalloc_crashtest_print("%s", list.line[i]);
    map_each_block(&map, reach, NULL);
    return 0;
}

/* What waits in bags of the process that looks is not lost. */
static int recover(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return shmalloc_trim(heap) < 0;
}

static int verify(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return shmalloc_check(heap) < 0 ? shmalloc_crashtest_fail("%s", shmalloc_errmsg()) : 0;
}

/* Changes that mend, split, and leave nothing under way. */
static int proceed(shmalloc_heap *heap, void *arg)
{
    struct map_walk walk;
    (void)arg;
    shmalloc_map map;
    if (shmalloc_map_open_root(heap, "map", NULL, &map) == SHMALLOC_ENOROOT && empty(heap, NULL))
        return shmalloc_crashtest_fail("a new map: %s", shmalloc_errmsg());
    map = open_map(heap);
    for (unsigned i = 0; i < 12; i++)
        if (put(&map, 0, 70 + i, 24) || put(&map, 3, 70 + i, 24))
            return shmalloc_crashtest_fail("put: %s", shmalloc_errmsg());
    for (unsigned i = 0; i < 12; i++)
        if (remove_key(&map, 3, 70 + i))
            return shmalloc_crashtest_fail("remove: %s", shmalloc_errmsg());
    map_walk(&map, 1, &walk);
    return 0;
}

static const struct {
    const char *name;
    shmalloc_crashtest_fn *setup, *operation;
} ops[] = {
    {"make", nothing, empty},
    {"free, chained buckets", chained, frees},
    {"first put", empty, put_new},
    {"put, new", some, put_new},
    {"put, new, chained bucket", full_bucket, put_new},
    {"put, replaces", some, put_replaces},
    {"put, replaces by more", some, put_longer},
    {"put_if", some, put_if},
    {"remove", some, removes},
    {"add", some, adds},
    {"add, new", some, adds_new},
    {"split", even, put_new},
    {"split, chained buckets", chained, put_new},
    {"split, longer array of segments", short_array, put_new},
    {"transaction, commit", some, commits},
    {"transaction, abort", some, aborts},
    {"transaction, split, commit", chained, splits_and_commits},
    {"transaction, split, abort", chained, splits_and_aborts},
};

static shmalloc_crashtest test_of(size_t i)
{
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    test.name = ops[i].name;
    test.setup = ops[i].setup;
    test.operation = ops[i].operation;
    test.recover = recover;
    test.verify = verify;
    test.describe = describe;
    test.proceed = proceed;
    test.seconds = 60;
    test.kills = 2000;
    return test;
}

static int find_planted(void)
{
    static const char *const in[FAULTS] = {"", "put, new", "split, chained buckets",
                                           "transaction, split, abort"};
    static const char *const names[FAULTS] = {"none", "count not mended", "split not finished",
                                              "moved words not cleared before rollback"};
    struct fixture f;
    int missed = 0;
    fixture_begin(&f);
    for (planted = 1; planted < FAULTS; planted++)
        for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
            if (strcmp(ops[i].name, in[planted]) != 0)
                continue;
            shmalloc_crashtest test = test_of(i);
            test.modes = SHMALLOC_CRASHTEST_DEAD;
            test.keep = f.dir;
            test.report = fopen("/dev/null", "w");
            int found = shmalloc_crashtest_run(&test) == 1;
            fclose(test.report);
            printf("planted: %s: %s\n", names[planted], found ? "found" : "NOT FOUND");
            missed |= !found;
        }
    fixture_end(&f);
    return missed;
}

int main(int argc, char **argv)
{
    const char *only = argc > 2 && strcmp(argv[1], "--op") == 0 ? argv[2] : "";
    int failed = 0, run = 0;
    find_keys();
    if (argc > 1 && strcmp(argv[1], "--planted") == 0)
        return find_planted();
    if (*only) {
        argv[2] = argv[0];
        argv += 2;
        argc -= 2;
    }
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        if (!strstr(ops[i].name, only))
            continue;
        shmalloc_crashtest test = test_of(i);
        failed |= shmalloc_crashtest_main(argc, argv, &test);
        run++;
    }
    return run ? failed : 2;
}
