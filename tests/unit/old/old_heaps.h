/* SPDX-License-Identifier: MIT */
/*
 * old_heaps.h - what is in the heaps of an older format that old_heaps.pack stores, and how.
 *
 * make_old_heaps.c made them with the library of that format. Each has a root "model" that names a
 * block with the struct below; from it follows which blocks there are and what is in them.
 *
 * The pack has, for each heap, its length in four bytes, lowest first, and a stored heap: its name,
 * NUL-terminated, the file's length, and the file as pieces to its end: a number of bytes, as many
 * bytes, and then, unless the file ends there, how many bytes to copy from how far back. Numbers
 * have seven bits a byte, lowest first, 128 for one that is not the last. Locks, which mean nothing
 * at rest, are 0.
 */
#ifndef TEST_OLD_HEAPS_H
#define TEST_OLD_HEAPS_H

#include <shmalloc/shmalloc.h>

enum { OLD_ITEMS = 48, OLD_BUSY = 16 };

struct old_model {
    uint64_t mutex_is_held; /* by somebody who was killed */
    uint64_t has_others;    /* there may be blocks that nothing names */
    uint64_t sizes[OLD_ITEMS];
    shmalloc_ref items[OLD_ITEMS]; /* blocks whose first word, and last whole one, is old_stamp() */
    shmalloc_ref busy[OLD_BUSY];   /* 0, or a block that somebody was at work on when he was
                                      killed */
    shmalloc_mutex mutex;
};

static inline uint64_t old_stamp(uint64_t i)
{
    return (i + 1) * 0x9e3779b97f4a7c15ull;
}

static inline uint64_t old_last_word(uint64_t size)
{
    return size / 8 - 1;
}

#endif
