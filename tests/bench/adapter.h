/* SPDX-License-Identifier: MIT */
/*
 * adapter.h - the allocators behind one face, chosen when a program is compiled.
 *
 *   BENCH_MALLOC         malloc and free, through the dynamic linker as in any program. LD_PRELOAD
 *                        decides whose they are: glibc's, jemalloc's, mimalloc's, tcmalloc's.
 *   BENCH_SHMALLOC       shmalloc_malloc and shmalloc_mfree on a heap file, from libshmalloc.so.
 *   BENCH_SHMALLOC_LINK  shmalloc_alloc and shmalloc_free with the ref word in the heap, so that each
 *                        call is one crash-atomic step: what a structure in the heap would use.
 *
 * The same workload source is compiled once for each, so the timed loops differ in the calls and in
 * nothing else; a table of function pointers would add an indirection that no user pays. To add an
 * allocator: a block here, a file adapter_NAME.c, a line in meson.build and one in run.py.
 *
 * bench_take() always writes the block's first word: allocators that keep their lists in free blocks
 * touch it anyway, the others must not look faster by leaving that cache miss to the program.
 */
#ifndef BENCH_ADAPTER_H
#define BENCH_ADAPTER_H

#include "bench.h"

#include <stdlib.h>

#if defined(BENCH_SHMALLOC) || defined(BENCH_SHMALLOC_LINK)
#include <shmalloc/shmalloc.h>
extern shmalloc_heap *adapter_heap;
#endif

/* A place for a block: a pointer or a ref; 0 is empty. */
#if defined(BENCH_SHMALLOC_LINK)
typedef shmalloc_ref bench_slot;
#else
typedef void *bench_slot;
#endif

/* Make the allocator ready in this process: open or create the heap file. */
void adapter_open(const struct bench_options *options);

/* End its use in this process. */
void adapter_close(void);

/* `count` empty slots, touched, where the allocator wants them; never freed. */
bench_slot *adapter_slots(size_t count);

/* Bytes of memory that the blocks and everything around them take now: of the heap file's blocks, or
 * the resident pages of the process. */
uint64_t adapter_used_bytes(const struct bench_options *options);

/* The shared object under test. */
const char *adapter_library(void);

_Noreturn void adapter_failed(const char *what);

static inline void bench_take(bench_slot *slot, size_t size)
{
#if defined(BENCH_SHMALLOC_LINK)
    if (shmalloc_alloc(adapter_heap, size, slot) < 0)
        adapter_failed("shmalloc_alloc");
    volatile uint64_t *block = shmalloc_ptr(adapter_heap, *slot);
#else
#if defined(BENCH_SHMALLOC)
    void *block_address = shmalloc_malloc(adapter_heap, size);
#else
    void *block_address = malloc(size);
#endif
    if (!block_address)
        adapter_failed("malloc");
    *slot = block_address;
    volatile uint64_t *block = block_address;
#endif
    *block = size;
}

static inline void bench_give(bench_slot *slot)
{
#if defined(BENCH_SHMALLOC_LINK)
    if (shmalloc_free(adapter_heap, slot) < 0)
        adapter_failed("shmalloc_free");
#elif defined(BENCH_SHMALLOC)
    if (shmalloc_mfree(adapter_heap, *slot) < 0)
        adapter_failed("shmalloc_mfree");
#else
    free(*slot);
#endif
}

#endif
