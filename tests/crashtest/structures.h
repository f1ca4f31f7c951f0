/* SPDX-License-Identifier: MIT */
/*
 * structures.h - structures with and without bugs, and what the kit has to say about each.
 */
#ifndef TEST_CRASHTEST_STRUCTURES_H
#define TEST_CRASHTEST_STRUCTURES_H

#include <shmalloc/crashtest.h>

struct planted {
    const char *name;
    shmalloc_crashtest test; /* its callbacks, and what else the case needs */
    int result;              /* of shmalloc_crashtest_run() */
    const char *says[3];     /* parts of the report */
};

extern const struct planted stepped[], at_random[];
extern const unsigned stepped_count, at_random_count;

/* An operation whose result is always the same, and whose instructions are others from the third
 * run on, the first that is judged; `arg` is a counter of the runs, in shared memory. */
shmalloc_crashtest_fn uneven;

#endif
