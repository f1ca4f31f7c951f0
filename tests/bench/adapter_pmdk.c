/* SPDX-License-Identifier: MIT */
/*
 * adapter_pmdk.c - a pool of PMDK's libpmemobj.
 *
 * Owns the one pool of the process. A pool has a fixed size, all of which is reserved when it is
 * created.
 */
#include "adapter.h"

#include <unistd.h>

#define USUAL_SIZE (128u << 20) /* bytes; enough for the workloads without --objects */

PMEMobjpool *adapter_pool;

void adapter_open(const struct bench_options *options)
{
    size_t size = options->heap_size ? options->heap_size : USUAL_SIZE;
    int exists = access(options->heap, F_OK) == 0;
    adapter_pool = exists ? pmemobj_open(options->heap, "bench")
                          : pmemobj_create(options->heap, "bench", size, 0600);
    if (!adapter_pool)
        adapter_failed(exists ? "pmemobj_open" : "pmemobj_create");
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

const char *adapter_library(void)
{
    return bench_library_of("pmemobj_alloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, pmemobj_errormsg());
}
