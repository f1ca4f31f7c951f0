/* SPDX-License-Identifier: MIT */
/*
 * adapter_pmdk.c - a pool of PMDK's libpmemobj.
 *
 * Owns the one pool of the process. A pool has a fixed size. The file is made sparse beforehand, since
 * pmemobj_create() would otherwise reserve all of it.
 */
#include "adapter.h"

#include <fcntl.h>
#include <unistd.h>

PMEMobjpool *adapter_pool;

void adapter_open(const struct bench_options *options)
{
    int created = bench_sparse_file(options);
    adapter_pool = created ? pmemobj_create(options->heap, "bench", 0, 0600)
                           : pmemobj_open(options->heap, "bench");
    if (!adapter_pool)
        adapter_failed(created ? "pmemobj_create" : "pmemobj_open");
}

void adapter_close(void)
{
    pmemobj_close(adapter_pool);
}

bench_slot *adapter_slots(size_t count)
{
    PMEMoid slots;
    if (pmemobj_zalloc(adapter_pool, &slots, count * sizeof(bench_slot), 2))
        adapter_failed("pmemobj_zalloc");
    return pmemobj_direct(slots);
}

uint64_t adapter_used_bytes(const struct bench_options *options)
{
    return bench_stored_bytes(options->heap);
}

void adapter_trim(void)
{
}

uint64_t adapter_lock_waits(void)
{
    return 0;
}

const char *adapter_library(void)
{
    return bench_library_of("pmemobj_alloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, pmemobj_errormsg());
}
