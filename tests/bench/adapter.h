/* SPDX-License-Identifier: MIT */
/*
 * adapter.h - the allocators behind one face, chosen when a program is compiled.
 *
 *   adapter_malloc.h    malloc and free, through the dynamic linker as in any program. LD_PRELOAD
 *                       decides whose they are: glibc's, jemalloc's, mimalloc's, tcmalloc's.
 *   adapter_shmalloc.h  shmalloc_malloc and shmalloc_free on a heap file, from libshmalloc.so; or,
 *                       with BENCH_LINKED, shmalloc_ref_alloc and shmalloc_ref_free with the ref
 *                       word in the heap, so that each call is one crash-atomic step: what a
 *                       structure in the heap would use.
 *   adapter_boost.h     allocate and deallocate of Boost.Interprocess's managed_mapped_file
 *   adapter_pmdk.h      pmemobj_alloc and pmemobj_free of PMDK, with the object's id in the pool:
 *                       crash-atomic too
 *   adapter_ralloc.h    RP_malloc and RP_free of Ralloc, which finds lost blocks by a collection
 *                       after a crash
 *   adapter_metall.h    allocate and deallocate of Metall's manager, whose heap is whole after an
 *                       orderly close
 *   adapter_lmdb.h      LMDB, which is no allocator but what many programs use instead: a put and a
 *                       delete, each a transaction of its own
 *
 * The same workload source is compiled once for each, so the timed loops differ in the calls and in
 * nothing else; a table of function pointers would add an indirection that no user pays. To add an
 * allocator: adapter_NAME.h (adapter_pointer.h does most of it where blocks are pointers),
 * adapter_NAME.c, a line in meson.build and one in peers.py.
 *
 * Each header defines
 *
 *   bench_slot                    a place for a block: a pointer or a ref; zeroed bytes are an
 *                                 empty one
 *   bench_take(slot, size)        allocate into an empty slot, and write the block's first word
 *   bench_give(slot)              free what is in it; the slot's bytes are indeterminate afterwards
 *   bench_resize(slot, old, size) change the block's size, keeping what both sizes have
 *   bench_fill(slot, size)        write every byte
 *
 * and, where blocks can be handed to another process, BENCH_SHARED and
 *
 *   bench_take_shared(word, size), bench_give_shared(word)
 *
 * on a word that all processes see.
 *
 * bench_take() always writes the block's first word: allocators that keep their lists in free
 * blocks touch it anyway, the others must not look faster by leaving that cache miss to the
 * program.
 */
#ifndef BENCH_ADAPTER_H
#define BENCH_ADAPTER_H

#include "bench.h"

#include <string.h>

static inline void bench_touch(void *block, size_t size)
{
    if (size >= sizeof(uint64_t))
        *(volatile uint64_t *)block = size;
    else
        *(volatile unsigned char *)block = (unsigned char)size;
}

_Noreturn void adapter_failed(const char *what);

#include BENCH_ADAPTER

/* Make the allocator ready in this process: open or create the heap file. */
void adapter_open(const struct bench_options *options);

/* End its use in this process. */
void adapter_close(void);

/* `count` empty slots, touched, where the allocator wants them; never freed. */
bench_slot *adapter_slots(size_t count);

/* The same `count` words, 0 at first, in every process that asks; only with BENCH_SHARED. */
uint64_t *adapter_shared_words(size_t count);

/* For memory.c: bytes of memory that the blocks and everything around them take now: of the heap
 * file's blocks, or the resident pages of the process. */
uint64_t adapter_used_bytes(const struct bench_options *options);

/* For memory.c: ask the allocator to give back what it can, by the call it has for that. */
void adapter_trim(void);

/* Number of times a thread waited for a lock of the allocator so far; 0 where nobody counts. */
#if defined(BENCH_LOCK_WAITS)
uint64_t adapter_lock_waits(void);
#else
static inline uint64_t adapter_lock_waits(void)
{
    return 0;
}
#endif

/* The shared object under test. */
const char *adapter_library(void);

#endif
