/* SPDX-License-Identifier: MIT */
/*
 * adapter_boost.h - a segment of Boost.Interprocess in a mapped file. Only adapter_boost.cpp is
 * C++.
 */
#define BENCH_SHARED 1

/* NULL when there is no room. */
void *boost_allocate(size_t size);
void boost_deallocate(void *block);
uint64_t boost_handle(void *block);
void *boost_address(uint64_t handle);

#define BENCH_ALLOCATE boost_allocate
#define BENCH_FREE boost_deallocate
#include "adapter_pointer.h"

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
