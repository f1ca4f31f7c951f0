/* SPDX-License-Identifier: MIT */
/*
 * team.h - runs a workload in several threads or processes at once and times it.
 *
 * All workers do the same number of rounds between two barriers; worker 0, which is the program's
 * first thread, holds the clock. So the figure is the time for one round of every worker, and a
 * workload that scales shows the same figure for one worker and for two. Beside it stands the CPU
 * time of all workers together, which other programs on the machine disturb less.
 */
#ifndef BENCH_TEAM_H
#define BENCH_TEAM_H

#include "adapter.h"

#define TEAM_MAX 64
#define TEAM_SHARED 256 /* bytes */

struct team;

struct worker {
    const struct bench_options *options;
    struct team *team; /* memory that all workers share, processes included */
    unsigned index;    /* 0..workers-1 */
    uint64_t random;   /* this worker's own sequence */
    uint64_t runs;     /* number of calls of `run` so far */
    void *state;       /* what `prepare` returned */
};

struct workload {
    const char *name;
    uint64_t pairs_per_round;                   /* allocations, each with its free; 0:
                                                   options->blocks */
    void *(*prepare)(struct worker *worker);    /* called in each worker before the first barrier */
    void (*run)(struct worker *worker, uint64_t rounds);
};

/* What `prepare` returned in another worker. Only threads can use it. */
void *team_state(const struct worker *worker, unsigned index);

/* TEAM_SHARED bytes that all workers see, processes included; zeroed, at the start of a cache
 * line. */
void *team_shared(const struct worker *worker);

unsigned team_workers(const struct bench_options *options);

/* Run the samples that `options` asks for and print a record for each, in ns per pair. */
void team_measure(const struct workload *workload, const struct bench_options *options);

/* A step of a loop that waits for another worker: `*spins` counts them. */
void team_relax(unsigned *spins);

#endif
