/* SPDX-License-Identifier: MIT */
/*
 * bench.h - what all benchmark programs share: options, clock, random numbers, records.
 *
 * Each program prints one JSON object per line and sample: parameters, seed, unit and value.
 * Nothing is averaged here; tests/bench/run.py starts the programs in turn and makes the tables.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

struct bench_options {
    const char *workload;  /* name of the workload */
    const char *allocator; /* label printed in every record */
    const char *heap;      /* path of the heap file; NULL for allocators without one */
    const char *trace;     /* path of a trace to replay, or NULL */
    uint64_t size_min;     /* bytes requested, uniformly distributed */
    uint64_t size_max;     /* inclusive */
    uint64_t blocks;       /* number of blocks that live at once, where the workload has such a
                              number */
    uint64_t heap_size;    /* bytes that a new heap file begins with; 0: the allocator's usual */
    uint64_t objects;      /* number of blocks that live in the heap already, and stay */
    unsigned arenas;       /* of a new heap; 0: the library's usual */
    unsigned attached;     /* number of other processes that have the heap open and do nothing */
    unsigned threads;      /* 1 or more; only one of threads and processes is above 1 */
    unsigned processes;    /* 1 or more */
    unsigned samples;      /* number of timed runs */
    unsigned sample_ms;    /* shortest length of a timed run, or the length of an observation,
                              milliseconds */
    unsigned repetition;   /* which of the runner's rounds this is; printed only */
    uint64_t seed;
};

/* Fill `out` from the command line; exits with a usage message if it makes no sense. */
void bench_parse(int argc, char **argv, struct bench_options *out);

/* Print "program: text" to stderr and exit with status 1. */
_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Start a record: everything that `options` says, and the file that serves the allocations.
 * bench_number() adds a field, bench_end() finishes the line and flushes it. */
void bench_begin(const struct bench_options *options, const char *library, const char *unit);
void bench_number(const char *name, double value);
void bench_end(void);

/* Zeroed pages of this process, touched. */
void *bench_pages(size_t len);

/* Length of a heap file that cannot grow: what was asked for, or enough for every workload. */
uint64_t bench_file_size(const struct bench_options *options);

/* Bytes of storage that the file system keeps for a file. */
uint64_t bench_stored_bytes(const char *path);

/* Wait for a child; its status as of waitpid(2). */
int bench_wait(pid_t child);

/* The file name of the shared object that defines `symbol` in this process. */
const char *bench_library_of(const char *symbol);

/* Stay on one CPU: worker 0 on the last this process may use, worker 1 on the one before, and so
 * on, because interrupts tend to come to the first. */
void bench_pin(unsigned worker);

static inline uint64_t bench_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Next of a 64-bit linear congruential sequence (Knuth's MMIX constants). The high half is good
 * enough for choosing sizes and places, and it costs one multiplication in a timed loop. */
static inline uint32_t bench_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* Uniform in 0..bound-1. */
static inline uint32_t bench_random_below(uint64_t *state, uint32_t bound)
{
    return (uint32_t)(((uint64_t)bench_random(state) * bound) >> 32);
}

static inline uint32_t bench_random_size(uint64_t *state, const struct bench_options *options)
{
    uint32_t width = (uint32_t)(options->size_max - options->size_min + 1);
    return (uint32_t)options->size_min + bench_random_below(state, width);
}

#endif
