/* SPDX-License-Identifier: MIT */
/*
 * adapter_metall.h - a datastore of Metall (Iwabuchi, Youssef, Velusamy, Gokhale, Pearce: "Metall: A persistent memory
 * allocator for data-centric analytics", Parallel Computing 111, 2022), which one process at a time may have open and
 * which is whole only after it was closed. Only adapter_metall.cpp is C++.
 */
typedef void *bench_slot;

/* NULL when there is no room. */
void *metall_allocate(size_t size);
void metall_deallocate(void *block);

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = metall_allocate(size);
    if (!block)
        adapter_failed("allocate");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    metall_deallocate(*slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    void *block = metall_allocate(size);
    if (!block)
        adapter_failed("allocate");
    memcpy(block, *slot, old < size ? old : size);
    metall_deallocate(*slot);
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}
