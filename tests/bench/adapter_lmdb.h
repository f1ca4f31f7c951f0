/* SPDX-License-Identifier: MIT */
/*
 * adapter_lmdb.h - a database of LMDB. A slot has no bytes of its own worth: its address and the
 * process that owns it are the key.
 */
#include <lmdb.h>

typedef uint64_t bench_slot;

void adapter_put(const bench_slot *slot, size_t size, int fill);
void adapter_delete(const bench_slot *slot);

static inline void bench_take(bench_slot *slot, size_t size)
{
    adapter_put(slot, size, 0);
}

static inline void bench_give(bench_slot *slot)
{
    adapter_delete(slot);
}

static inline void bench_resize(bench_slot *slot, size_t old, size_t size)
{
    (void)old;
    adapter_put(slot, size, 0);
}

static inline void bench_fill(bench_slot *slot, size_t size)
{
    adapter_put(slot, size, 1);
}
