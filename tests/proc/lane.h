/* SPDX-License-Identifier: MIT */
/*
 * lane.h - the work that is killed, and the audit that finds every trace of a broken promise.
 *
 * A lane is a table in the heap whose words refer to blocks, and a mutex. One thread owns it, or all threads
 * share it; whoever works on it holds its mutex. Every change of a word is one call of the library with that
 * word as its destination, so at any kill each block is named by exactly one word or is free, and a word in
 * the lane says how many bytes of the block are the pattern of its stamp. So after any number of deaths the
 * list of allocated blocks must equal the list of named ones, with all contents in place.
 *
 * In unlinked mode blocks come from shmalloc_malloc() and words are stored by the program. A kill between
 * the two leaves one block that nobody names: at most one for each killed thread.
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
 * What one thread is at, for the killer to see; in memory outside the heap. Times are nanoseconds.
 *
 * A call stalls while it waits for others. While its thread could run and had no processor it waits for the
 * machine, which says nothing about the heap: that time, which the kernel counts (schedstat), is taken off. To
 * read it costs as much as many calls, so it is read when a burst begins and after calls of a millisecond: a
 * thread that was left without processor between two calls of a burst gets that off the second one, too. Waiting
 * for a lock whose living owner has no processor counts in full.
 */
struct lane_watch {
    uint64_t operations;
    uint64_t began_at; /* time of the call that is under way; 0 none */
    uint64_t delay;    /* that the thread had waited for processors when that was read last */
    uint64_t longest;  /* that a call took */
    uint64_t stalled;  /* the most that a call took without waiting for processors */
    uint32_t tid;
};

/* The calling thread is the one that is watched from now on. */
void lane_watch_me(struct lane_watch *watch);
void lane_call_begins(struct lane_watch *watch);
void lane_call_ends(struct lane_watch *watch);
/* How long has the call under way of a thread of that process stalled? 0 when none is. */
uint64_t lane_stalled(const struct lane_watch *watch, pid_t pid);

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
