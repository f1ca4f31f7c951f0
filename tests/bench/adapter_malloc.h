/* SPDX-License-Identifier: MIT */
/*
 * adapter_malloc.h - malloc and free of whatever allocator the dynamic linker found first.
 */
#include <stdlib.h>

typedef void *bench_slot;

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = malloc(size);
    if (!block)
        adapter_failed("malloc");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    free(*slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    (void)old;
    void *block = realloc(*slot, size);
    if (!block)
        adapter_failed("realloc");
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}
