/* SPDX-License-Identifier: MIT */
/*
 * recover.c - what the death of a process costs those that live.
 *
 * Two processes work on one heap that holds --objects objects: each allocates --blocks blocks and
 * frees them, over and over, so that both are often inside the allocator. One of them is killed by
 * SIGKILL at a random time, --samples times, each time with a new victim. The other measures every
 * single call; the record says how long its longest one took in the --sample-ms around the kill,
 * and in an equal time before it, when nobody died: that is the machine's noise. Where a lock
 * stayed held, the survivor does not come back: then "stuck" is 1, the value is the time waited for
 * it, and the program ends.
 *
 * The parent never opens the heap. Owns one page that the three share.
 */
#include "scene.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define STUCK_NS 5000000000u /* no call returned for so long: it hangs */

struct shared {
    _Alignas(64) _Atomic uint64_t longest; /* ns; set to 0 by the parent */
    _Alignas(64) _Atomic uint64_t calls;   /* of the survivor */
    _Alignas(64) atomic_uint victims;      /* that have begun to work */
    atomic_uint over;                      /* the survivor ends */
};

static void sleep_ns(uint64_t ns)
{
    struct timespec rest = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&rest, &rest) && errno == EINTR)
        ;
}

/* Note how long the call that began at `start` took; the time now. */
static uint64_t note(struct shared *shared, uint64_t start)
{
    uint64_t now = bench_now_ns();
    /* relaxed: the parent reads a maximum that may be a moment old */
    if (now - start > atomic_load_explicit(&shared->longest, memory_order_relaxed))
        atomic_store_explicit(&shared->longest, now - start, memory_order_relaxed);
    atomic_store_explicit(&shared->calls,
                          atomic_load_explicit(&shared->calls, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    return now;
}

static void survive(const struct bench_options *options, struct shared *shared)
{
    bench_pin(0);
    adapter_open(options);
    scene_objects(options);
    bench_slot *slots = adapter_slots(options->blocks);
    uint64_t random = options->seed;
    while (!atomic_load_explicit(&shared->over, memory_order_relaxed)) {
        uint64_t start = bench_now_ns();
        for (uint64_t i = 0; i < options->blocks; i++) {
            bench_take(&slots[i], bench_random_size(&random, options));
            start = note(shared, start);
        }
        for (uint64_t i = 0; i < options->blocks; i++) {
            bench_give(&slots[i]);
            start = note(shared, start);
        }
    }
    adapter_close();
}

static _Noreturn void be_victim(const struct bench_options *options, struct shared *shared)
{
    bench_pin(1);
    adapter_open(options);
    bench_slot *slots = adapter_slots(options->blocks);
    uint64_t random = options->seed + (uint64_t)getpid();
    atomic_fetch_add(&shared->victims, 1);
    for (;;) {
        for (uint64_t i = 0; i < options->blocks; i++)
            bench_take(&slots[i], bench_random_size(&random, options));
        for (uint64_t i = 0; i < options->blocks; i++)
            bench_give(&slots[i]);
    }
}

static pid_t start_process(void)
{
    pid_t parent = getpid(), child = fork();
    if (child < 0)
        bench_die("fork: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return child;
}

static void kill_process(pid_t child)
{
    kill(child, SIGKILL);
    int status = bench_wait(child);
    if (!WIFSIGNALED(status))
        bench_die("a process ended before it was killed, status %d", status);
}

/* Watch the survivor for a while: its longest call in ns, or 0 when it hangs in one. */
static uint64_t watch(struct shared *shared, uint64_t ns)
{
    sleep_ns(ns);
    uint64_t calls = atomic_load_explicit(&shared->calls, memory_order_relaxed);
    /* A busy machine may not have let it run lately. */
    for (uint64_t begin = bench_now_ns();
         atomic_load_explicit(&shared->calls, memory_order_relaxed) == calls;) {
        if (bench_now_ns() - begin > STUCK_NS)
            return 0;
        sleep_ns(1000000);
    }
    return atomic_load_explicit(&shared->longest, memory_order_relaxed);
}

static void record(const struct bench_options *options, unsigned sample, uint64_t quiet,
                   uint64_t longest)
{
    bench_begin(options, adapter_library(), "us");
    bench_number("sample", sample);
    bench_number("quiet", (double)quiet / 1e3);
    bench_number("stuck", longest == 0);
    bench_number("value", (double)(longest ? longest : STUCK_NS) / 1e3);
    bench_end();
}

/* A new victim, a quiet time, a kill. Whether the survivor came back each time. */
static int sample_death(const struct bench_options *options, struct shared *shared,
                        uint64_t *random, unsigned sample)
{
    uint64_t window = options->sample_ms * 1000000ull;
    pid_t victim = start_process();
    if (victim == 0)
        be_victim(options, shared);
    while (atomic_load(&shared->victims) == sample)
        sleep_ns(1000000);
    atomic_store(&shared->longest, 0);
    uint64_t quiet = watch(shared, window + bench_random_below(random, 10000000));
    atomic_store(&shared->longest, 0);
    kill_process(victim);
    uint64_t longest = watch(shared, window);
    record(options, sample, quiet, longest);
    return longest != 0;
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        bench_die("mmap: %s", strerror(errno));
    uint64_t random = options.seed;
    pid_t survivor = start_process();
    if (survivor == 0) {
        survive(&options, shared);
        _exit(0);
    }
    while (atomic_load(&shared->calls) == 0)
        sleep_ns(1000000);
    int alive = 1;
    for (unsigned sample = 0; alive && sample < options.samples; sample++)
        alive = sample_death(&options, shared, &random, sample);
    atomic_store(&shared->over, 1);
    if (!alive)
        kill_process(survivor);
    else if (bench_wait(survivor))
        bench_die("the survivor failed");
    return 0;
}
