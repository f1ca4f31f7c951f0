/* SPDX-License-Identifier: MIT */
/*
 * adapter_shmalloc.h - a heap file, by pointers or, with BENCH_LINKED, by refs in the heap.
 */
#include <shmalloc/shmalloc.h>

#define BENCH_SHARED 1
#define BENCH_LOCK_WAITS 1

extern shmalloc_heap *adapter_heap; /* the one handle of the process */

static inline void bench_take_shared(uint64_t *word, size_t size)
{
#if defined(BENCH_LINKED)
    if (shmalloc_ref_alloc(adapter_heap, size, word) < 0)
        adapter_failed("shmalloc_ref_alloc");
    bench_touch(shmalloc_ptr(adapter_heap, *word), size);
#else
    void *block = shmalloc_malloc(adapter_heap, size);
    if (!block)
        adapter_failed("shmalloc_malloc");
    bench_touch(block, size);
    *word = shmalloc_ref_of(adapter_heap, block);
#endif
}

static inline void bench_give_shared(uint64_t *word)
{
#if defined(BENCH_LINKED)
    if (shmalloc_ref_free(adapter_heap, word) < 0)
        adapter_failed("shmalloc_ref_free");
#else
    if (shmalloc_free(adapter_heap, shmalloc_ptr(adapter_heap, *word)) < 0)
        adapter_failed("shmalloc_free");
#endif
}

#if defined(BENCH_LINKED)
typedef shmalloc_ref bench_slot;

static inline void bench_take(bench_slot *slot, size_t size)
{
    bench_take_shared(slot, size);
}

static inline void bench_give(bench_slot *slot)
{
    bench_give_shared(slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    (void)old;
    if (shmalloc_ref_realloc(adapter_heap, slot, size) < 0)
        adapter_failed("shmalloc_ref_realloc");
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(shmalloc_ptr(adapter_heap, *slot), 1, size);
}
#else
typedef void *bench_slot;

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = shmalloc_malloc(adapter_heap, size);
    if (!block)
        adapter_failed("shmalloc_malloc");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    if (shmalloc_free(adapter_heap, *slot) < 0)
        adapter_failed("shmalloc_free");
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    (void)old;
    void *block = shmalloc_realloc(adapter_heap, *slot, size);
    if (!block)
        adapter_failed("shmalloc_realloc");
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}
#endif
