/* SPDX-License-Identifier: MIT */
/*
 * adapter_boost.h - a segment of Boost.Interprocess in a mapped file. Only adapter_boost.cpp is C++.
 */
#define BENCH_SHARED 1

typedef void *bench_slot;

/* NULL when there is no room. */
void *boost_allocate(size_t size);
void boost_deallocate(void *block);
uint64_t boost_handle(void *block);
void *boost_address(uint64_t handle);

static inline void bench_take(bench_slot *slot, size_t size)
{
    void *block = boost_allocate(size);
    if (!block)
        adapter_failed("allocate");
    *slot = block;
    bench_touch(block, size);
}

static inline void bench_give(bench_slot *slot)
{
    boost_deallocate(*slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    void *block = boost_allocate(size);
    if (!block)
        adapter_failed("allocate");
    memcpy(block, *slot, old < size ? old : size);
    boost_deallocate(*slot);
    *slot = block;
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    memset(*slot, 1, size);
}

static inline void bench_take_shared(uint64_t *word, size_t size)
{
    void *block;
    bench_take(&block, size);
    *word = boost_handle(block);
}

static inline void bench_give_shared(uint64_t *word)
{
    boost_deallocate(boost_address(*word));
}
