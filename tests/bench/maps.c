/* SPDX-License-Identifier: MIT */
/*
 * maps.c - shmalloc_map beside other maps, in one run.
 *
 *   maps [-n keys] [-r rounds] [-d folder] [-g keys]
 *
 * Each map gets the keys. Then, in rounds of 20,000 calls each, in turn: get, miss, replace;
 * get_many of 16 keys for shmalloc_map; by the CPU time of the thread, which other work on the
 * machine prolongs less. Then two processes at once, for maps that processes can share, by the
 * clock, since they may wait for each other. Printed are ns for a call, the median of the rounds,
 * and how many times shmalloc_map's that is. -g: growth instead: the longest put by the thread's
 * CPU time on the way to so many keys, for maps that have one.
 *
 * LMDB: MDB_NOSYNC, MDB_WRITEMAP; a transaction ends after 1,000 calls or when reading turns to
 * writing. Maps in memory (GHashTable, uthash) copy key and value into a block of malloc.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <shmalloc/map.h>

#include "maps.h"

static uint64_t keys = 1000000, growth;
static unsigned rounds = 21;
static const char *folder = "/dev/shm";
enum {
    CALLS = 20000,
    MOST_ROUNDS = 101
};

_Noreturn static void fail(const char *what, const char *why)
{
    fprintf(stderr, "maps: %s: %s\n", what, why);
    exit(1);
}

static uint64_t scramble(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void key_of(char key[MAPS_KEY], uint64_t i)
{
    uint64_t a = scramble(i), b = scramble(i + 0x1234567);
    memcpy(key, &a, 8);
    memcpy(key + 8, &b, 8);
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- shmalloc ---- */

static shmalloc_heap *heap;
static shmalloc_map map;

static int own_open(const char *path, int make, uint64_t count)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_map_options usual = SHMALLOC_MAP_OPTIONS_INIT;
    (void)count;
    options.flags = SHMALLOC_CREATE;
    if (make)
        unlink(path);
    return shmalloc_open(path, &options, &heap) < 0 ||
                   shmalloc_map_open_root(heap, "map", &usual, &map) < 0
               ? -1
               : 0;
}
static int own_put(const char *key, const char *value)
{
    return shmalloc_map_put(&map, key, MAPS_KEY, value, MAPS_VALUE) < 0 ? -1 : 0;
}
static int own_get(const char *key, char *value)
{
    return shmalloc_map_get(&map, key, MAPS_KEY, value, MAPS_VALUE, NULL);
}
static void own_close(void)
{
    shmalloc_close(heap);
}
static const struct maps_peer own = {"shmalloc", 1, own_open, own_put, own_get, NULL, own_close};

/* ---- LMDB ---- */

#ifdef BENCH_LMDB
#include <lmdb.h>

static MDB_env *env;
static MDB_dbi dbi;
static MDB_txn *txn;
static unsigned txn_calls;
static int writing;

static void lmdb_pause(void)
{
    if (txn && writing && mdb_txn_commit(txn) != 0)
        fail("lmdb", "commit");
    if (txn && !writing)
        mdb_txn_abort(txn);
    txn = NULL;
}
static int lmdb_need(int write)
{
    if (txn && (writing != write || txn_calls >= 1000))
        lmdb_pause();
    if (!txn && mdb_txn_begin(env, NULL, write ? 0 : MDB_RDONLY, &txn) != 0)
        return -1;
    txn_calls = writing == write ? txn_calls % 1000 + 1 : 1;
    writing = write;
    return 0;
}
static int lmdb_open(const char *path, int make, uint64_t count)
{
    char lock[300];
    snprintf(lock, sizeof(lock), "%s-lock", path);
    if (make) {
        unlink(path);
        unlink(lock);
    }
    txn = NULL;
    if (mdb_env_create(&env) || mdb_env_set_mapsize(env, count * 600 + (64u << 20)) ||
        mdb_env_open(env, path, MDB_NOSUBDIR | MDB_NOSYNC | MDB_WRITEMAP | MDB_NOTLS, 0600) ||
        lmdb_need(1) || mdb_dbi_open(txn, NULL, 0, &dbi))
        return -1;
    lmdb_pause();
    return 0;
}
static int lmdb_put(const char *key, const char *value)
{
    MDB_val k = {MAPS_KEY, (void *)key}, v = {MAPS_VALUE, (void *)value};
    return lmdb_need(1) || mdb_put(txn, dbi, &k, &v, 0) ? -1 : 0;
}
static int lmdb_get(const char *key, char *value)
{
    MDB_val k = {MAPS_KEY, (void *)key}, v;
    if (lmdb_need(0) || mdb_get(txn, dbi, &k, &v))
        return 0;
    memcpy(value, v.mv_data, MAPS_VALUE);
    return 1;
}
static void lmdb_close(void)
{
    lmdb_pause();
    mdb_env_close(env);
}
static const struct maps_peer lmdb = {"lmdb",   1,          lmdb_open, lmdb_put,
                                      lmdb_get, lmdb_pause, lmdb_close};
#endif

/* ---- in memory ---- */

#if defined(BENCH_GLIB) || defined(BENCH_UTHASH)
static int memory_open(const char *path, int make, uint64_t count)
{
    (void)path, (void)count;
    return make ? 0 : -1;
}
static void memory_close(void)
{
}
#endif

#ifdef BENCH_GLIB
#include <glib.h>

static GHashTable *table;

static guint glib_hash(gconstpointer key)
{
    uint64_t a, b;
    memcpy(&a, key, 8);
    memcpy(&b, (const char *)key + 8, 8);
    a ^= b * 0x9e3779b97f4a7c15ull;
    return (guint)(a ^ a >> 32);
}
static gboolean glib_equal(gconstpointer a, gconstpointer b)
{
    return memcmp(a, b, MAPS_KEY) == 0;
}
static int glib_put(const char *key, const char *value)
{
    if (!table)
        table = g_hash_table_new(glib_hash, glib_equal);
    char *entry = g_hash_table_lookup(table, key);
    if (!entry) {
        entry = malloc(MAPS_KEY + MAPS_VALUE);
        memcpy(entry, key, MAPS_KEY);
        g_hash_table_insert(table, entry, entry);
    }
    memcpy(entry + MAPS_KEY, value, MAPS_VALUE);
    return 0;
}
static int glib_get(const char *key, char *value)
{
    const char *entry = g_hash_table_lookup(table, key);
    if (entry)
        memcpy(value, entry + MAPS_KEY, MAPS_VALUE);
    return entry != NULL;
}
static const struct maps_peer glib = {"GHashTable", 0,    memory_open, glib_put,
                                      glib_get,     NULL, memory_close};
#endif

#ifdef BENCH_UTHASH
#include <uthash.h>

struct ut_entry {
    char key[MAPS_KEY], value[MAPS_VALUE];
    UT_hash_handle hh;
};
static struct ut_entry *ut_entries;

static struct ut_entry *ut_find(const char *key)
{
    struct ut_entry *entry;
    HASH_FIND(hh, ut_entries, key, MAPS_KEY, entry);
    return entry;
}
static int ut_put(const char *key, const char *value)
{
    struct ut_entry *entry = ut_find(key);
    if (!entry) {
        entry = malloc(sizeof(*entry));
        memcpy(entry->key, key, MAPS_KEY);
        HASH_ADD(hh, ut_entries, key, MAPS_KEY, entry);
    }
    memcpy(entry->value, value, MAPS_VALUE);
    return 0;
}
static int ut_get(const char *key, char *value)
{
    const struct ut_entry *entry = ut_find(key);
    if (entry)
        memcpy(value, entry->value, MAPS_VALUE);
    return entry != NULL;
}
static const struct maps_peer ut = {"uthash", 0, memory_open, ut_put, ut_get, NULL, memory_close};
#endif

static const struct maps_peer *const peers[] = {
    &own,
#ifdef BENCH_LMDB
    &lmdb,
#endif
#ifdef BENCH_BOOST
    &maps_boost,
#endif
#ifdef BENCH_GLIB
    &glib,
#endif
#ifdef BENCH_UTHASH
    &ut,
#endif
};
enum {
    PEERS = sizeof(peers) / sizeof(peers[0])
};

/* ---- what is measured ---- */

enum what {
    GET,
    MISS,
    REPLACE,
    GET_MANY,
    WHATS
};
static const char *const what_names[] = {"get", "miss", "replace", "get_many of 16"};

static void calls(const struct maps_peer *peer, enum what what, uint64_t seed, unsigned count)
{
    char key[MAPS_KEY], value[MAPS_VALUE] = {7};
    for (unsigned i = 0; i < count; i++) {
        uint64_t random = scramble(seed + i);
        key_of(key, what == MISS ? keys + random : random % keys);
        if (what == REPLACE ? peer->put(key, value) != 0 : peer->get(key, value) != (what == GET))
            fail(peer->name, what_names[what]);
    }
    if (peer->pause)
        peer->pause();
}

static void calls_many(uint64_t seed, unsigned count)
{
    char key[16][MAPS_KEY], value[16][MAPS_VALUE];
    shmalloc_map_item items[16];
    for (unsigned i = 0; i < count; i += 16) {
        for (unsigned k = 0; k < 16; k++) {
            key_of(key[k], scramble(seed + i + k) % keys);
            items[k] = (shmalloc_map_item){
                .key = key[k], .klen = MAPS_KEY, .buf = value[k], .cap = MAPS_VALUE};
        }
        if (shmalloc_map_get_many(&map, items, 16) != 16)
            fail("shmalloc", "get_many");
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, unsigned count)
{
    qsort(values, count, sizeof(*values), by_value);
    return values[count / 2];
}

static double results[PEERS][WHATS];

static unsigned peers_of(enum what what)
{
    unsigned all = PEERS;
    return what == GET_MANY ? 1u : all;
}

static void print_row(const char *row, enum what what, unsigned peer)
{
    double against = what == GET_MANY ? results[0][GET_MANY] : results[0][what];
    printf("%-22s %-11s %7.0f ns  %5.2f times\n", row, peers[peer]->name, results[peer][what],
           results[peer][what] / against);
}

static void one_process(void)
{
    static double times[PEERS][WHATS][MOST_ROUNDS];
    for (unsigned r = 0; r < rounds; r++)
        for (enum what what = GET; what < WHATS; what++)
            for (unsigned p = 0; p < peers_of(what); p++) {
                double start = now(CLOCK_THREAD_CPUTIME_ID);
                if (what == GET_MANY)
                    calls_many(r * 1000003ull + what, CALLS);
                else
                    calls(peers[p], what, r * 1000003ull + what, CALLS);
                times[p][what][r] = (now(CLOCK_THREAD_CPUTIME_ID) - start) / CALLS;
            }
    for (enum what what = GET; what < WHATS; what++)
        for (unsigned p = 0; p < peers_of(what); p++) {
            results[p][what] = median(times[p][what], rounds);
            print_row(what_names[what], what, p);
        }
#ifdef BENCH_LMDB
    printf("%-22s %-11s %7.0f ns  %5.2f times\n", "against get_many", "lmdb", results[1][GET],
           results[1][GET] / results[0][GET_MANY]);
#endif
}

/* Both at once; the mean of a call in either. */
static double two_processes(const struct maps_peer *peer, const char *path, enum what what)
{
    struct {
        uint32_t ready;
        double ns[2];
    } *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail(peer->name, "mmap");
    fflush(stdout);
    for (unsigned i = 0; i < 2; i++)
        if (fork() == 0) {
            if (peer->open(path, 0, keys) != 0)
                fail(peer->name, "open");
            calls(peer, what, 99 + i, 1000);
            __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < 2)
                ;
            double start = now(CLOCK_MONOTONIC);
            calls(peer, what, 777777 * (i + 1), CALLS * 5);
            shared->ns[i] = (now(CLOCK_MONOTONIC) - start) / (CALLS * 5);
            _exit(0);
        }
    for (int status; wait(&status) > 0;)
        if (status != 0)
            fail(peer->name, "a process failed");
    double ns = (shared->ns[0] + shared->ns[1]) / 2;
    munmap(shared, 4096);
    return ns;
}

static void several_processes(char paths[][300])
{
    static double times[PEERS][WHATS][5];
    for (unsigned p = 0; p < PEERS; p++)
        if (peers[p]->is_shared)
            peers[p]->close();
    for (unsigned r = 0; r < 5; r++)
        for (enum what what = GET; what < GET_MANY; what++)
            for (unsigned p = 0; p < PEERS; p++)
                if (peers[p]->is_shared)
                    times[p][what][r] = two_processes(peers[p], paths[p], what);
    for (enum what what = GET; what < GET_MANY; what++)
        for (unsigned p = 0; p < PEERS; p++)
            if (peers[p]->is_shared) {
                char row[64];
                snprintf(row, sizeof(row), "%s, 2 processes", what_names[what]);
                results[p][what] = median(times[p][what], 5);
                print_row(row, what, p);
            }
}

static void longest_put(const struct maps_peer *peer)
{
    char key[MAPS_KEY], value[MAPS_VALUE] = {7};
    double last = now(CLOCK_THREAD_CPUTIME_ID), longest = 0, start = last;
    for (uint64_t i = 0; i < growth; i++) {
        key_of(key, i);
        if (peer->put(key, value) != 0)
            fail(peer->name, "put");
        double t = now(CLOCK_THREAD_CPUTIME_ID);
        if (i > 1000 && t - last > longest)
            longest = t - last;
        last = t;
    }
    printf("%-11s to %llu keys: longest put %.3f ms of CPU, mean %.0f ns\n", peer->name,
           (unsigned long long)growth, longest / 1e6, (last - start) / (double)growth);
}

int main(int argc, char **argv)
{
    static char paths[PEERS][300];
    for (int option; (option = getopt(argc, argv, "n:r:d:g:")) != -1;) {
        switch (option) {
        case 'n':
            keys = strtoull(optarg, NULL, 0);
            break;
        case 'r':
            rounds = (unsigned)atoi(optarg);
            break;
        case 'd':
            folder = optarg;
            break;
        case 'g':
            growth = strtoull(optarg, NULL, 0);
            break;
        default:
            return 2;
        }
    }
    if (keys == 0 || rounds == 0 || rounds > MOST_ROUNDS)
        return 2;
    for (unsigned p = 0; p < PEERS; p++) {
        char key[MAPS_KEY], value[MAPS_VALUE] = {7};
        snprintf(paths[p], sizeof(paths[p]), "%s/maps.%d.%s", folder, (int)getpid(),
                 peers[p]->name);
        if (growth && peers[p]->pause)
            continue; /* its writes wait for the end of a transaction */
        if (peers[p]->open(paths[p], 1, growth ? growth : keys) != 0)
            fail(peers[p]->name, "open");
        if (growth) {
            longest_put(peers[p]);
            continue;
        }
        for (uint64_t i = 0; i < keys; i++) {
            key_of(key, i);
            if (peers[p]->put(key, value) != 0)
                fail(peers[p]->name, "put");
        }
        if (peers[p]->pause)
            peers[p]->pause();
    }
    if (!growth) {
        printf("%llu keys of %d bytes, values of %d; median of %u rounds of %d calls\n",
               (unsigned long long)keys, MAPS_KEY, MAPS_VALUE, rounds, CALLS);
        one_process();
        several_processes(paths);
    }
    for (unsigned p = 0; p < PEERS; p++) {
        char lock[320];
        snprintf(lock, sizeof(lock), "%s-lock", paths[p]);
        unlink(paths[p]);
        unlink(lock);
    }
    return 0;
}
