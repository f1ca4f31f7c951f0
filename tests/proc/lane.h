/* SPDX-License-Identifier: MIT */
/*
 * lane.h - the work that is killed, and the audit that finds every trace of a broken promise.
 *
 * A lane is a table in the heap whose words refer to blocks, and a mutex. One thread owns it, or
 * all threads share it; whoever works on it holds its mutex. Every change of a word is one call of
 * the library with that word as its destination, so at any kill each block is named by exactly one
 * word or is free, and a word in the lane says how many bytes of the block are the pattern of its
 * stamp. So after any number of deaths the list of allocated blocks must equal the list of named
 * ones, with all contents in place.
 *
 * In unlinked mode blocks come from shmalloc_malloc() and words are stored by the program. A kill
 * between the two leaves one block that nobody names: at most one for each killed thread.
 */
#ifndef PROC_LANE_H
#define PROC_LANE_H

#include <shmalloc/shmalloc.h>

#include "support.h"

enum { LANE_ENTRIES = 48 };

struct lane_entry {
    uint64_t ref;    /* 0 none */
    uint64_t filled; /* bytes of the block that are the stamp's pattern */
    uint64_t stamp;
};

struct lane {
    shmalloc_mutex mutex;
    struct lane_entry entries[LANE_ENTRIES];
    uint64_t root_block;     /* a block on its way from a root to being freed */
    uint64_t before, after;  /* equal whenever nobody works on the lane */
    uint64_t next_stamp;
};

/*
 * Does the machine keep up? A call may wait for another thread, which may wait for a processor:
 * that says nothing about the heap. So stalls are measured by a clock that stands still while any
 * thread under watch could run and has no processor. Who watches looks, every few milliseconds, how
 * long each was kept waiting since the last look (the kernel counts it: schedstat), and the clock
 * leaves out the longest of these. With more threads at work than processors it is slow, but never
 * stands for good unless the machine does: threads that wait for a lock do not wait for processors.
 */
struct lane_machine {
    uint64_t left_out;  /* nanoseconds that the clock is behind */
    uint64_t looked_at; /* time of the last look */
};

/* What the kernel says of a thread; all 0 when it has ended, or where the kernel does not count. */
struct lane_times {
    uint64_t ran;    /* nanoseconds on a processor */
    uint64_t waited; /* that it could run and had none, without a wait that goes on */
};
struct lane_times lane_times(pid_t pid, uint32_t tid);
int lane_can_run(pid_t pid, uint32_t tid); /* it runs, or waits for a processor */

/* What one thread is at, for the killer to see; in memory outside the heap. Times are
 * nanoseconds. */
struct lane_watch {
    const struct lane_machine *machine;
    uint64_t operations;
    uint64_t began_at; /* time of the call that is under way; 0 none */
    uint64_t left_out; /* of the machine, as of then */
    uint64_t longest;  /* that a call took */
    uint64_t stalled;  /* the most that a call took by the clock; who watches sets it */
    struct {
        uint64_t at; /* time; 0 none. The thread sets it, who watches clears it */
        uint64_t took, left_out;
    } ended; /* a long call whose end has not been looked at */
    uint32_t tid;
};

#define LANE_LONG_NS 4000000ull /* shorter calls are not judged by the clock, which is no finer */

/* Neither waits for a look: the thread may hold what others wait for. */
void lane_call_begins(struct lane_watch *watch);
void lane_call_ends(struct lane_watch *watch);
/* For who watches, after a look: the most that any call of the thread has stalled by now. */
uint64_t lane_stalled(struct lane_watch *watch);

struct lane_work {
    shmalloc_heap *heap;
    struct lane *lane;
    unsigned number; /* of the lane */
    int unlinked;
    struct rng *rng;
    struct lane_watch *watch;
};

/* Lock the lane, do a few random operations, unlock. */
void lane_burst(const struct lane_work *work);

/* All lanes, in one block named by the root "lanes". Made by the first who asks. */
struct lane *lane_all(shmalloc_heap *heap, unsigned count);

struct audit {
    uint64_t blocks;       /* named ones */
    uint64_t bytes;
    uint64_t unreferenced; /* that nobody names; they are freed */
    uint64_t deaths_seen;  /* lanes whose mutex said that its owner had died */
};

/* Compare heap and lanes while nobody works on them. */
void lane_audit(shmalloc_heap *heap, unsigned count, struct audit *out);

/* Free all that the lanes name, and the lanes. */
void lane_drop(shmalloc_heap *heap, unsigned count);

#endif
