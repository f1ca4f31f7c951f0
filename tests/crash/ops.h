/* SPDX-License-Identifier: MIT */
/*
 * ops.h - the operations that are stepped through, and the world that they change.
 *
 * An operation runs in a process of its own: make the heap, prepare a state from which one public
 * call takes the wanted way, say "begin", make the call, say "end". What it does must be the same
 * in every run, because one run tells what the others are compared with.
 */
#ifndef TEST_CRASH_OPS_H
#define TEST_CRASH_OPS_H

#include <stdint.h>

#include <shmalloc/shmalloc.h>

/* What the program of the test keeps in the heap, under the root "world". */
enum { WORDS = 64 };
struct world {
    shmalloc_ref word[WORDS];
    uint64_t valid[WORDS]; /* leading bytes of the block word[i] that must keep what they are */
    shmalloc_mutex mutex;
    shmalloc_mutex cond_mutex;
    shmalloc_cond cond;
};

enum trait {
    OP_LOOSE = 1,    /* several steps, none of which is linked: a state between is allowed */
    OP_MUTEX = 2,    /* who opens the image tries world.mutex */
    OP_OWN_MARK = 4, /* run() says "begin" itself, in another thread */
    OP_REPAIR = 8,   /* of an attach, only what follows the first repair of a lock is stepped
                        through */
    OP_HARDENED = 16,
    OP_NO_FILE = 32, /* begins without a heap */
    OP_TORN = 128,   /* ... with a damaged heap that was in use when the machine stopped */
    OP_STALE = 64,   /* begins with the image of a dead heap in place */
    OP_ORPHANS = 512, /* somebody else died before, linking words that no mutex guards */
    OP_AWAY = 256,   /* comes to the heap or leaves it, so it cannot hold world.mutex meanwhile */
};

struct stage {
    const char *path;
    shmalloc_heap *heap;
    struct world *world;
    void *kept[1024]; /* blocks that nothing in the heap refers to */
    unsigned kept_count;
    shmalloc_ref kept_ref; /* of one that a word is about to name */
};

struct op {
    const char *name;
    unsigned traits;
    void (*prepare)(struct stage *stage);
    void (*run)(struct stage *stage);
};

extern const struct op ops[];
extern const unsigned op_count;

/* Shows that a block which is named before it is filled is found out. */
extern const struct op early_dup;

/* The open of an image in whose heap everybody died. */
extern const struct op reopening;

/* Shared by the stepped process and its tracer. */
struct control {
    uint32_t phase;     /* enum smi_phase */
    uint32_t survivors; /* who come to the heap before the operation is prepared, and stay; 0
                           none */
    uint32_t settled;   /* 1: there is a heap to come to; one more for each of them that has come */
};
extern struct control *control;

/* With survivors around, the stepped process holds world.mutex during the operation, if that can
 * be. */
static inline int op_holds_mutex(const struct op *op)
{
    return !(op->traits & (OP_MUTEX | OP_AWAY | OP_STALE));
}

/* The stepped process, from its first instruction on. */
_Noreturn void run_op(const struct op *op, const char *path);

#endif
