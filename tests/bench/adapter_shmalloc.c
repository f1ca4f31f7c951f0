/* SPDX-License-Identifier: MIT */
/*
 * adapter_shmalloc.c - a heap file, with both families of functions.
 *
 * Owns the one handle of the process.
 */
#include "adapter.h"

shmalloc_heap *adapter_heap;

void adapter_open(const struct bench_options *options)
{
    shmalloc_options open_options = SHMALLOC_OPTIONS_INIT;
    open_options.flags = SHMALLOC_CREATE;
    open_options.initial_size = options->heap_size;
    open_options.arenas = options->arenas;
    if (!options->heap)
        bench_die("this program needs --heap");
    if (shmalloc_open(options->heap, &open_options, &adapter_heap) < 0)
        adapter_failed("shmalloc_open");
}

void adapter_close(void)
{
    if (shmalloc_close(adapter_heap) < 0)
        adapter_failed("shmalloc_close");
}

bench_slot *adapter_slots(size_t count)
{
#if defined(BENCH_LINKED)
    shmalloc_ref ref;
    if (shmalloc_ref_alloc_zeroed(adapter_heap, count * sizeof(bench_slot), &ref) < 0)
        adapter_failed("shmalloc_ref_alloc_zeroed");
    return memset(shmalloc_ptr(adapter_heap, ref), 0, count * sizeof(bench_slot));
#else
    return bench_pages(count * sizeof(bench_slot));
#endif
}

uint64_t *adapter_shared_words(size_t count)
{
    shmalloc_ref ref;
    if (shmalloc_root_get_or_create(adapter_heap, "words", 0, count * sizeof(uint64_t), NULL, NULL,
                                    &ref) < 0)
        adapter_failed("shmalloc_root_get_or_create");
    return shmalloc_ptr(adapter_heap, ref);
}

uint64_t adapter_used_bytes(const struct bench_options *options)
{
    return bench_stored_bytes(options->heap);
}

void adapter_trim(void)
{
    if (shmalloc_trim(adapter_heap) < 0)
        adapter_failed("shmalloc_trim");
}

uint64_t adapter_lock_waits(void)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    if (shmalloc_get_stats(adapter_heap, &stats) < 0)
        adapter_failed("shmalloc_get_stats");
    return stats.lock_waits;
}

const char *adapter_library(void)
{
    return bench_library_of("shmalloc_malloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, shmalloc_errmsg());
}
