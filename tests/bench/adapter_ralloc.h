/* SPDX-License-Identifier: MIT */
/*
 * adapter_ralloc.h - a heap of Ralloc (Cai, Wen, Beadle, Kjellqvist, Hedayati, Scott: "Understanding and optimizing
 * persistent memory allocation", ISMM 2020), which one process at a time may have open.
 */
#include <ralloc.hpp>

typedef void *bench_slot;

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = RP_malloc(size);
    if (!block)
        adapter_failed("RP_malloc");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    RP_free(*slot);
}

/* RP_realloc() copies the old size, also into a smaller block. */
static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    void *block = RP_malloc(size);
    if (!block)
        adapter_failed("RP_malloc");
    memcpy(block, *slot, old < size ? old : size);
    RP_free(*slot);
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}
