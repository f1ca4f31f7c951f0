/* SPDX-License-Identifier: MIT */
/*
 * reading.c - what readers without locks and retired blocks cost, beside what they replace, in one
 * run.
 *
 *   reading [PAIRS]     nanoseconds of each, the smallest of seven rounds that take turns
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "life/context.h"
#include "tx/retire.h"
#include "tx/section.h"

static shmalloc_heap *heap;
static struct smi_thread *t;
static uint64_t *word;
static pthread_rwlock_t lock;
static uint64_t pairs = 2000000;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmalloc_errmsg());
    exit(1);
}

static void sections(void)
{
    for (uint64_t i = 0; i < pairs; i++)
        if (shmalloc_read_begin(heap) < 0 || shmalloc_read_end(heap) < 0)
            fail("section");
}

static void sections_in_line(void)
{
    for (uint64_t i = 0; i < pairs; i++)
        if (!smi_section_begin(t) || !smi_section_end(t))
            fail("section");
}

static void read_locks(void)
{
    for (uint64_t i = 0; i < pairs; i++) {
        pthread_rwlock_rdlock(&lock);
        pthread_rwlock_unlock(&lock);
    }
}

static void alloc_and_free(void)
{
    for (uint64_t i = 0; i < pairs; i++)
        if (shmalloc_ref_alloc(heap, 64, word) < 0 || shmalloc_ref_free(heap, word) < 0)
            fail("free");
}

static void alloc_and_retire(void)
{
    for (uint64_t i = 0; i < pairs; i++)
        if (shmalloc_ref_alloc(heap, 64, word) < 0 || shmalloc_retire(heap, word) < 0)
            fail("retire");
}

static void publish_and_retire(void)
{
    struct smi_fresh fresh;
    for (uint64_t i = 0; i < pairs; i++) {
        if (smi_fresh_make(t, 64, &fresh) < 0)
            fail("make");
        *(uint64_t *)(void *)(t->base + fresh.ref) = i;
        if (smi_fresh_publish(t, &fresh, word, 0, *word) < 0)
            fail("publish");
    }
    shmalloc_ref_free(heap, word);
}

static const struct {
    const char *name;
    void (*run)(void);
} rows[] = {
    {"section", sections},
    {"section, in line", sections_in_line},
    {"read lock of a shared pthread_rwlock", read_locks},
    {"alloc and free of a ref, 64 bytes", alloc_and_free},
    {"alloc and retire of a ref, 64 bytes", alloc_and_retire},
    {"publish and retire, 64 bytes", publish_and_retire},
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]), ROUNDS = 7 };

static double ns_of(void (*run)(void))
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    run();
    clock_gettime(CLOCK_MONOTONIC, &b);
    return ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / (double)pairs;
}

int main(int argc, char **argv)
{
    const char *path = "/dev/shm/shmalloc-reading.heap";
    double best[ROWS];
    int rc;
    pthread_rwlockattr_t shared;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    if (argc > 1)
        pairs = strtoull(argv[1], NULL, 0);
    unlink(path);
    if (shmalloc_open(path, &options, &heap) < 0 || !(word = shmalloc_calloc(heap, 8, 8)) ||
        shmalloc_read_begin(heap) < 0 || shmalloc_read_end(heap) < 0 ||
        !(t = smi_thread_enter(heap, &rc)))
        fail(path);
    pthread_rwlockattr_init(&shared);
    pthread_rwlockattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&lock, &shared);
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < ROWS; i++) {
            double ns = ns_of(rows[i].run);
            best[i] = round == 0 || ns < best[i] ? ns : best[i];
        }
    for (int i = 0; i < ROWS; i++)
        printf("%-38s %7.1f ns\n", rows[i].name, best[i]);
    shmalloc_close(heap);
    unlink(path);
    return 0;
}
