/* SPDX-License-Identifier: MIT */
/*
 * adapter_shmalloc.c - a heap file, with both families of functions.
 *
 * Owns the one handle of the process.
 */
#include "adapter.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

shmalloc_heap *adapter_heap;

void adapter_open(const struct bench_options *options)
{
    shmalloc_options open_options = SHMALLOC_OPTIONS_INIT;
    open_options.flags = SHMALLOC_CREATE;
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
#if defined(BENCH_SHMALLOC_LINK)
    shmalloc_ref ref;
    if (shmalloc_alloc_zeroed(adapter_heap, count * sizeof(bench_slot), &ref) < 0)
        adapter_failed("shmalloc_alloc_zeroed");
    return memset(shmalloc_ptr(adapter_heap, ref), 0, count * sizeof(bench_slot));
#else
    void *slots = mmap(NULL, count * sizeof(bench_slot), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (slots == MAP_FAILED)
        bench_die("mmap of %zu slots failed", count);
    return slots;
#endif
}

uint64_t adapter_used_bytes(const struct bench_options *options)
{
    struct stat status;
    if (stat(options->heap, &status))
        bench_die("cannot stat %s", options->heap);
    return (uint64_t)status.st_blocks * 512;
}

const char *adapter_library(void)
{
    return bench_library_of("shmalloc_malloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, shmalloc_errmsg());
}
