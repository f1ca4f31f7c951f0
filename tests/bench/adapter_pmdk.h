/* SPDX-License-Identifier: MIT */
/*
 * adapter_pmdk.h - a pool of PMDK's libpmemobj, which one process at a time may have open.
 */
#include <libpmemobj.h>

typedef PMEMoid bench_slot;

extern PMEMobjpool *adapter_pool;

static inline void bench_take(bench_slot *slot, size_t size)
{
    if (pmemobj_alloc(adapter_pool, slot, size, 1, NULL, NULL))
        adapter_failed("pmemobj_alloc");
    bench_touch(pmemobj_direct(*slot), size);
}

static inline void bench_give(bench_slot *slot)
{
    pmemobj_free(slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    (void)old;
    if (pmemobj_realloc(adapter_pool, slot, size, 1))
        adapter_failed("pmemobj_realloc");
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(pmemobj_direct(*slot), 1, size);
}
