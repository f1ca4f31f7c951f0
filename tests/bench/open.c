/* SPDX-License-Identifier: MIT */
/*
 * open.c - how long a new process takes to open a heap file that holds --objects objects.
 *
 *   open-clean   the process before closed the heap in order
 *   open-killed  the process before was killed by SIGKILL with full caches, nobody else had it open
 *                (but for --attached processes that wait)
 *
 * Each sample is a process of its own that opens, allocates and frees one block, and closes. The
 * parent never opens the heap. An open may have to make a word durable, whose cost is the disk's:
 * so the program defines the system's sync functions itself, which the libraries then call, and
 * reports the time inside them apart.
 */
#include "scene.h"

#include <signal.h>
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

/* Let the objects be there, work a little, then end as the workload says. */
static void write_objects(const struct bench_options *options, int killed)
{
    adapter_open(options);
    scene_objects(options);
    bench_slot *churn = adapter_slots(CHURN);
    uint64_t random = options->seed;
    for (unsigned i = 0; i < CHURN; i++)
        bench_take(&churn[i], bench_random_size(&random, options));
    for (unsigned i = 0; i < CHURN; i++)
        bench_give(&churn[i]);
    if (killed)
        raise(SIGKILL);
    adapter_close();
}

static void time_open(const struct bench_options *options, unsigned sample)
{
    bench_pin(0);
    sync_ns = 0;
    sync_count = 0;
    uint64_t start = bench_now_ns();
    adapter_open(options);
    uint64_t opened = bench_now_ns();
    uint64_t synced = sync_ns;
    unsigned syncs = sync_count;
    bench_slot *slot = adapter_slots(1);
    uint64_t placed = bench_now_ns();
    bench_take(slot, options->size_min);
    bench_give(slot);
    uint64_t used = bench_now_ns();

    bench_begin(options, adapter_library(), "us");
    bench_number("sample", sample);
    bench_number("value", (double)(opened - start) / 1e3);
    bench_number("sync", (double)synced / 1e3);
    bench_number("syncs", syncs);
    bench_number("beyond_sync", (double)(opened - start - synced) / 1e3);
    bench_number("first_pair", (double)(used - placed) / 1e3);
    bench_end();
    adapter_close();
}

static void run_writer(const struct bench_options *options, int killed)
{
    pid_t child = fork();
    if (child == 0) {
        write_objects(options, killed);
        _exit(0);
    }
    int status = bench_wait(child);
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
    if (bench_wait(child) != 0)
        bench_die("the opener failed");
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    int killed = !strcmp(options.workload, "open-killed");
    if ((!killed && strcmp(options.workload, "open-clean")) || !options.heap)
        bench_die("expected --workload open-clean or open-killed, and --heap");
    struct bench_options again = options;
    again.objects = 0;
    run_writer(&options, killed);
    scene_attach(&options);
    for (unsigned sample = 0; sample < options.samples; sample++) {
        run_opener(&options, sample);
        if (killed)
            run_writer(&again, killed);
    }
    return 0;
}
