/* SPDX-License-Identifier: MIT */
/*
 * retires.c - processes that replace blocks and processes that read them without a lock, killed and
 * stopped at random.
 *
 *   retires [-k kills] [-s seconds] [-w workers] [-b bag] [-p] [-h]
 *         until so many are killed, within so many seconds; -b: blocks in a bag; -p: with each
 *         planted fault in turn, which has to be noticed; -h: a hardened heap
 *
 * Each worker has a thread that writes, under the mutex of a word, and one that reads all words in
 * sections. A block says of which word it is and repeats one random number, so that a reader whose
 * section counted and who saw anything else has seen a block that was freed. One worker in eight is
 * stopped for a while before it is killed: it is often in a section. After each round nobody is
 * left, and the heap must hold exactly the blocks that the words name.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "life/adopt.h"
#include "life/context.h"
#include "planted_readers.h"
#include "support.h"
#include "tx/retire.h"

enum { KEYS = 8, WORDS = 8, MOST_WORKERS = 8, ROUND = 10 };

struct table {
    struct {
        shmalloc_mutex mutex;
        uint64_t word;
        uint64_t unused[7];
    } key[KEYS];
};

/* Outside the heap. */
struct control {
    uint64_t puts, reads, ousts, faults;
};

static struct control *control;
static struct fixture f;
static unsigned heap_flags, workers = 3;
static pid_t pids[MOST_WORKERS];

struct worker {
    shmalloc_heap *heap;
    struct table *table;
    struct rng rng;
};

/* ---- writing ---- */

static void put(struct worker *w, uint64_t key)
{
    static const size_t sizes[] = {64, 64, 80, 200, 64, 700, 64, 66000};
    int rc;
    uint64_t *word = &w->table->key[key].word, stamp = rng_next(&w->rng);
    size_t size = sizes[rng_below(&w->rng, 64) ? rng_below(&w->rng, 7) : 7];
    struct smi_fresh fresh;
    struct smi_thread *t = smi_thread_enter(w->heap, &rc);
    must(t != NULL, "no context: %d", rc);
    must_work(smi_fresh_make(t, size, &fresh));
    uint64_t *block = smi_at(w->heap, fresh.ref);
    for (unsigned i = 0; i < WORDS; i++) /* may be read, by a section that does not count */
        __atomic_store_n(&block[i], i == 0 ? key : stamp, __ATOMIC_RELAXED);
    must_work(smi_fresh_publish(t, &fresh, word, (stamp | 1) << 44, *word & SMF_REF_MASK));
}

static void *writer(void *arg)
{
    struct worker *w = arg;
    for (;;) {
        uint64_t key = rng_below(&w->rng, KEYS);
        shmalloc_mutex *mutex = &w->table->key[key].mutex;
        int rc = shmalloc_mutex_lock(w->heap, mutex);
        if (rc == SHMALLOC_OWNER_DIED) /* its step is resolved: the word names a block, or 0 */
            must_work(shmalloc_mutex_consistent(w->heap, mutex));
        else
            must_work(rc);
        if (rng_below(&w->rng, 8) != 0) {
            put(w, key);
        } else {
            w->table->key[key].word &= SMF_REF_MASK;
            must_work(shmalloc_retire(w->heap, &w->table->key[key].word));
        }
        must_work(shmalloc_mutex_unlock(w->heap, mutex));
        __atomic_fetch_add(&control->puts, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* ---- reading ---- */

/* 1: a copy of the block of a key; 0: there is none, or the section does not count. */
static int copy_block(struct worker *w, uint64_t key, uint64_t copy[WORDS])
{
    uint64_t ref = __atomic_load_n(&w->table->key[key].word, __ATOMIC_ACQUIRE) & SMF_REF_MASK;
    if (ref == 0 || !shmalloc_read_valid(w->heap))
        return 0;
    if (rng_below(&w->rng, 64) == 0)
        sched_yield();
    if (rng_below(&w->rng, 512) == 0)
        usleep(200);
    const uint64_t *block = smi_at(w->heap, ref);
    for (unsigned i = 0; i < WORDS; i++)
        copy[i] = __atomic_load_n(&block[i], __ATOMIC_RELAXED);
    return 1;
}

static void read_one(struct worker *w, uint64_t key)
{
    uint64_t copy[WORDS];
    must_work(shmalloc_read_begin(w->heap));
    int has_copy = copy_block(w, key, copy), rc = shmalloc_read_end(w->heap), is_whole = 1;
    if (rc == SHMALLOC_EOUSTED) {
        __atomic_fetch_add(&control->ousts, 1, __ATOMIC_RELAXED);
        return;
    }
    must_work(rc);
    __atomic_fetch_add(&control->reads, 1, __ATOMIC_RELAXED);
    for (unsigned i = 1; has_copy && i < WORDS; i++)
        is_whole &= copy[i] == copy[1];
    if (has_copy && (!is_whole || copy[0] != key))
        __atomic_fetch_add(&control->faults, 1, __ATOMIC_RELAXED);
}

static int work(void *arg)
{
    struct worker w = {.rng = rng_from(*(uint64_t *)arg)}, other;
    shmalloc_ref ref;
    w.heap = fixture_join(&f);
    must_work(shmalloc_root_get(w.heap, "table", 0, &ref));
    w.table = shmalloc_ptr(w.heap, ref);
    other = w;
    other.rng = rng_from(rng_next(&w.rng));
    pthread_t thread;
    must(pthread_create(&thread, NULL, writer, &other) == 0, "no thread");
    for (;;)
        read_one(&w, rng_below(&w.rng, KEYS));
    return 0;
}

/* ---- killing ---- */

static void kill_one(struct rng *rng, unsigned i, uint64_t *seed)
{
    usleep((useconds_t)rng_below(rng, 3000));
    if (rng_below(rng, 8) == 0) {
        kill(pids[i], SIGSTOP);
        usleep((useconds_t)rng_below(rng, 20000));
    }
    kill_child(pids[i]);
    *seed = rng_next(rng);
    pids[i] = start_child(work, seed);
}

/* All are dead: nothing waits, and there are as many blocks as are named. */
static void audit(struct table *table)
{
    uint64_t named = 1;
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    must_be_sound(f.heap);
    for (unsigned i = 0; i < KEYS; i++)
        named += table->key[i].word != 0;
    shmalloc_stats stats = heap_stats(f.heap);
    must(stats.retired_blocks == 0, "%llu retired blocks are left",
         (unsigned long long)stats.retired_blocks);
    must(stats.allocated_blocks == named, "%llu blocks, and %llu are named",
         (unsigned long long)stats.allocated_blocks, (unsigned long long)named);
}

static uint64_t run(uint64_t kills, uint64_t seconds)
{
    struct rng rng = rng_from(test_seed());
    uint64_t seed = rng_next(&rng), done = 0, until = now_ns() + seconds * 1000000000ull;
    shmalloc_ref ref;
    fixture_begin_heap(&f, heap_flags);
    memset(control, 0, sizeof(*control));
    must_code(
        shmalloc_root_get_or_create(f.heap, "table", 0, sizeof(struct table), NULL, NULL, &ref),
        SHMALLOC_CREATED);
    struct table *table = shmalloc_ptr(f.heap, ref);
    while (done < kills && now_ns() < until && control->faults == 0) {
        for (unsigned i = 0; i < workers; i++) {
            seed = rng_next(&rng);
            pids[i] = start_child(work, &seed);
        }
        for (unsigned i = 0; i < ROUND && control->faults == 0; i++, done++)
            kill_one(&rng, (unsigned)rng_below(&rng, workers), &seed);
        for (unsigned i = 0; i < workers; i++)
            kill_child(pids[i]);
        done += workers;
        if (planted_fault == FAULT_NONE)
            audit(table);
    }
    printf("%llu kills, %llu puts, %llu reads, %llu ousted, %llu faults\n",
           (unsigned long long)done, (unsigned long long)control->puts,
           (unsigned long long)control->reads, (unsigned long long)control->ousts,
           (unsigned long long)control->faults);
    if (planted_fault == FAULT_NONE)
        must(done >= kills, "%llu kills in time", (unsigned long long)done);
    fixture_end(&f);
    return control->faults;
}

int main(int argc, char **argv)
{
    uint64_t kills = 300, seconds = 120;
    int option, planting = 0;
    smi_bag_limit = 16;
    while ((option = getopt(argc, argv, "k:s:w:b:ph")) != -1) {
        if (option == 'k')
            kills = strtoull(optarg, NULL, 0);
        else if (option == 's')
            seconds = strtoull(optarg, NULL, 0);
        else if (option == 'w')
            workers = (unsigned)strtoul(optarg, NULL, 0);
        else if (option == 'b')
            smi_bag_limit = (uint32_t)strtoul(optarg, NULL, 0);
        else if (option == 'p')
            planting = 1;
        else if (option == 'h')
            heap_flags = SHMALLOC_HARDENED;
        else
            return 2;
    }
    must(workers >= 1 && workers <= MOST_WORKERS, "1 to %d workers", MOST_WORKERS);
    control = shared_memory(sizeof(*control));
    if (!planting)
        return run(kills, seconds) != 0;
    int missed = 0;
    for (planted_fault = FAULT_NONE + 1; planted_fault < FAULTS; planted_fault++) {
        int is_noticed = run(kills, seconds) != 0;
        printf("planted fault %d: %s\n", (int)planted_fault, is_noticed ? "noticed" : "MISSED");
        missed += !is_noticed;
    }
    return missed != 0;
}
