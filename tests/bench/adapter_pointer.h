/* SPDX-License-Identifier: MIT */
/*
 * adapter_pointer.h - slots of allocators that hand out pointers. Who includes it defines before
 *
 *   BENCH_ALLOCATE(size)           NULL when there is no room
 *   BENCH_FREE(block)
 *   BENCH_REALLOCATE(block, size)  only if the allocator has it
 */
typedef void *bench_slot;

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = BENCH_ALLOCATE(size);
    if (!block)
        adapter_failed("allocating");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    BENCH_FREE(*slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
#if defined(BENCH_REALLOCATE)
    (void)old;
    void *block = BENCH_REALLOCATE(*slot, size);
#else
    void *block = BENCH_ALLOCATE(size);
#endif
    if (!block)
        adapter_failed("resizing");
#if !defined(BENCH_REALLOCATE)
    memcpy(block, *slot, old < size ? old : size);
    BENCH_FREE(*slot);
#endif
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}
