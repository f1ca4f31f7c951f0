/* SPDX-License-Identifier: MIT */
/*
 * trace.h - what a real program asked its allocator for, in a file.
 *
 * record.py makes such files, compressed with xz; run.py unpacks them before a program reads them.
 *
 *   bytes 0..7     "SHMTRACE"
 *   bytes 8..11    number of operations          all numbers little-endian
 *   bytes 12..15   number of slots: blocks that live at once at most
 *   bytes 16..19   length of the rest
 *   bytes 20..23   FNV-1a of the rest
 *   the rest       operations
 *
 * A slot is the place of a block; an operation is a number v in LEB128, seven bits a byte, low ones
 * first:
 *
 *   v & 3 = 0   allocate v >> 2 bytes, in the slot that was freed last, or in one never used if
 *               there is none
 *   v & 3 = 1   free a slot: v >> 2 says which
 *   v & 3 = 2   resize the block of a slot: v >> 2 says which, and another number follows, the new
 *               size
 *
 * A slot is said as its distance from the one of the operation before (at first 0): 2d for d >= 0,
 * else -2d - 1. Zeroing and alignment are not recorded, nor which thread called. What lives at the
 * end is freed by the player.
 */
#ifndef BENCH_TRACE_H
#define BENCH_TRACE_H

#include <stddef.h>
#include <stdint.h>

#define TRACE_MAX_SIZE (1u << 30) /* bytes of a block */

enum trace_kind {
    TRACE_ALLOCATE = 0,
    TRACE_FREE = 1,
    TRACE_RESIZE = 2,
};

struct trace_op {
    uint32_t kind : 2;
    uint32_t slot : 30;
    uint32_t size; /* bytes; when freeing 0 */
};

struct trace {
    struct trace_op *ops;
    uint32_t count;
    uint32_t slots;
    uint32_t taken; /* operations that allocate or resize */
};

/* Decode `len` bytes; every number is checked before it is used, and a block is freed or resized
 * only while it lives. NULL, or what is wrong. `out` is to be freed with trace_release(). */
const char *trace_decode(const unsigned char *bytes, size_t len, struct trace *out);

/* The same for a file. */
const char *trace_read(const char *path, struct trace *out);

void trace_release(struct trace *trace);

#endif
