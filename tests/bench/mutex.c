/* SPDX-License-Identifier: MIT */
/*
 * mutex.c - what it costs to lock and unlock a mutex that nobody else wants, beside a bare robust
 * one.
 *
 *   mutex [-n pairs] [-r rounds]
 *
 * The kinds take turns, and medians are compared: so what the machine does otherwise meets all.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

enum { KINDS = 3, MOST_ROUNDS = 1001 };
static const char *const names[KINDS] = {"bare robust pthread mutex", "shmalloc_mutex",
                                         "shmalloc_mutex, private heap"};

static shmalloc_heap *heaps[KINDS];
static void *mutexes[KINDS];
static pthread_mutex_t bare;
static double ns[KINDS][MOST_ROUNDS];

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmalloc_errmsg());
    exit(1);
}

static void make_bare(void)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&bare, &attr);
    pthread_mutexattr_destroy(&attr);
}

static void make_heaps(char path[64])
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    snprintf(path, 64, "/dev/shm/shmalloc-bench-mutex-%d", (int)getpid());
    if (shmalloc_open(path, &options, &heaps[1]) < 0 || shmalloc_open_private(NULL, &heaps[2]) < 0)
        fail("open");
    for (int k = 1; k < KINDS; k++)
        if (!(mutexes[k] = shmalloc_calloc(heaps[k], 1, sizeof(shmalloc_mutex))))
            fail("calloc");
}

static void pairs(int kind, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (kind == 0 ? pthread_mutex_lock(&bare) != 0 || pthread_mutex_unlock(&bare) != 0
                      : shmalloc_mutex_lock(heaps[kind], mutexes[kind]) != 0 ||
                            shmalloc_mutex_unlock(heaps[kind], mutexes[kind]) != 0)
            fail("a pair");
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    uint64_t count = 20000, rounds = 201;
    char path[64];
    for (int c; (c = getopt(argc, argv, "n:r:")) != -1;)
        if (c == 'n')
            count = strtoull(optarg, NULL, 0);
        else if (c == 'r')
            rounds = strtoull(optarg, NULL, 0);
        else
            return fprintf(stderr, "usage: %s [-n pairs] [-r rounds]\n", argv[0]), 2;
    if (count < 1 || rounds < 1 || rounds > MOST_ROUNDS)
        return fprintf(stderr, "1 to %d rounds\n", MOST_ROUNDS), 2;
    make_bare();
    make_heaps(path);
    for (uint64_t r = 0; r < rounds; r++)
        for (int k = 0; k < KINDS; k++) {
            double start = now_ns();
            pairs(k, count);
            ns[k][r] = (now_ns() - start) / (double)count;
        }
    for (int k = 0; k < KINDS; k++)
        qsort(ns[k], rounds, sizeof(ns[k][0]), ascending);
    printf("%llu rounds of %llu pairs, %ld CPUs\n", (unsigned long long)rounds,
           (unsigned long long)count, sysconf(_SC_NPROCESSORS_ONLN));
    for (int k = 0; k < KINDS; k++)
        printf("%-30s %6.1f ns a pair, least %6.1f, %.2f times the bare one\n", names[k],
               ns[k][rounds / 2], ns[k][0], ns[k][rounds / 2] / ns[0][rounds / 2]);
    shmalloc_close(heaps[1]);
    shmalloc_close(heaps[2]);
    unlink(path);
    return 0;
}
