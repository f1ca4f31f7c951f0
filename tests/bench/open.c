/* SPDX-License-Identifier: MIT */
/*
 * open.c - how long a new process takes to open a heap file that holds --blocks objects.
 *
 *   open-clean   the process before closed the heap in order
 *   open-killed  the process before was killed by SIGKILL with full caches, nobody else had it open
 *
 * Each sample is a process of its own that opens, allocates and frees one block, and closes. The
 * parent never opens the heap. An open has to make one word durable, whose cost is the disk's: so
 * the program defines the system's sync functions itself, which the library then calls, and reports
 * the time inside them apart.
 */
#include "bench.h"

#include <shmalloc/shmalloc.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHURN 10000 /* blocks that a writer allocates and frees again before its end */

static uint64_t sync_ns;    /* time in the functions below */
static unsigned sync_count; /* calls of them */

static long timed_sync(long number, long a, long b, long c)
{
    uint64_t start = bench_now_ns();
    long rc = syscall(number, a, b, c);
    sync_ns += bench_now_ns() - start;
    sync_count++;
    return rc;
}

int fdatasync(int fd)
{
    return (int)timed_sync(SYS_fdatasync, fd, 0, 0);
}

int fsync(int fd)
{
    return (int)timed_sync(SYS_fsync, fd, 0, 0);
}

int msync(void *address, size_t len, int flags)
{
    return (int)timed_sync(SYS_msync, (long)address, (long)len, flags);
}

static void failed(const char *what)
{
    bench_die("%s failed: %s", what, shmalloc_errmsg());
}

static shmalloc_heap *open_heap(const struct bench_options *options)
{
    shmalloc_options open_options = SHMALLOC_OPTIONS_INIT;
    open_options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    if (shmalloc_open(options->heap, &open_options, &heap) < 0)
        failed("shmalloc_open");
    return heap;
}

static shmalloc_ref allocate(shmalloc_heap *heap, uint64_t size)
{
    shmalloc_ref ref;
    if (shmalloc_alloc(heap, size, &ref) < 0)
        failed("shmalloc_alloc");
    memset(shmalloc_ptr(heap, ref), 1, size);
    return ref;
}

/* Add `count` objects that stay, then work a little, then end as the workload says. */
static void write_objects(const struct bench_options *options, uint64_t count, int killed)
{
    static shmalloc_ref churn[CHURN];
    shmalloc_heap *heap = open_heap(options);
    uint64_t random = options->seed;
    for (uint64_t i = 0; i < count; i++)
        allocate(heap, bench_random_size(&random, options));
    for (unsigned i = 0; i < CHURN; i++)
        churn[i] = allocate(heap, bench_random_size(&random, options));
    for (unsigned i = 0; i < CHURN; i++)
        if (shmalloc_free(heap, &churn[i]) < 0)
            failed("shmalloc_free");
    if (killed)
        raise(SIGKILL);
    if (shmalloc_close(heap) < 0)
        failed("shmalloc_close");
}

static void time_open(const struct bench_options *options, unsigned sample)
{
    bench_pin(0);
    sync_ns = 0;
    sync_count = 0;
    uint64_t start = bench_now_ns();
    shmalloc_heap *heap = open_heap(options);
    uint64_t opened = bench_now_ns();
    uint64_t synced = sync_ns;
    unsigned syncs = sync_count;
    shmalloc_ref ref;
    if (shmalloc_alloc(heap, options->size_min, &ref) < 0 || shmalloc_free(heap, &ref) < 0)
        failed("first allocation");
    uint64_t used = bench_now_ns();

    bench_begin(options, bench_library_of("shmalloc_open"), "us");
    bench_number("sample", sample);
    bench_number("value", (double)(opened - start) / 1e3);
    bench_number("sync", (double)synced / 1e3);
    bench_number("syncs", syncs);
    bench_number("beyond_sync", (double)(opened - start - synced) / 1e3);
    bench_number("first_pair", (double)(used - opened) / 1e3);
    bench_end();
    if (shmalloc_close(heap) < 0)
        failed("shmalloc_close");
}

static int wait_for(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            bench_die("waitpid: %s", strerror(errno));
    return status;
}

static void run_writer(const struct bench_options *options, uint64_t count, int killed)
{
    pid_t child = fork();
    if (child == 0) {
        write_objects(options, count, killed);
        _exit(0);
    }
    int status = wait_for(child);
    if (killed ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : status != 0)
        bench_die("the writer ended with status %d", status);
}

static void run_opener(const struct bench_options *options, unsigned sample)
{
    pid_t child = fork();
    if (child == 0) {
        time_open(options, sample);
        _exit(0);
    }
    if (wait_for(child) != 0)
        bench_die("the opener failed");
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    int killed = !strcmp(options.workload, "open-killed");
    if ((!killed && strcmp(options.workload, "open-clean")) || !options.heap)
        bench_die("expected --workload open-clean or open-killed, and --heap");
    run_writer(&options, options.blocks, killed);
    for (unsigned sample = 0; sample < options.samples; sample++) {
        run_opener(&options, sample);
        if (killed)
            run_writer(&options, 0, killed);
    }
    return 0;
}
