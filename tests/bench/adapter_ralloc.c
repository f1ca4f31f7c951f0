/* SPDX-License-Identifier: MIT */
/*
 * adapter_ralloc.c - a heap of Ralloc, whose files lie beside each other in /dev/shm.
 */
#include "adapter.h"

#define FOLDER "/dev/shm/" /* where a Ralloc for file systems in memory puts all heaps */
/* bytes, sparse; blocks above 14 KiB never lie where others were */
#define USUAL_SIZE (64ull << 30)

void adapter_open(const struct bench_options *options)
{
    size_t size = options->heap_size ? options->heap_size : USUAL_SIZE;
    if (strncmp(options->heap, FOLDER, strlen(FOLDER)) != 0)
        bench_die("Ralloc's heaps are in " FOLDER ", not at %s", options->heap);
    RP_init(options->heap + strlen(FOLDER), size);
}

void adapter_close(void)
{
    RP_close();
}

bench_slot *adapter_slots(size_t count)
{
    return bench_pages(count * sizeof(bench_slot));
}

const char *adapter_library(void)
{
    return "libralloc.a"; /* what its makefile builds: there is no shared object */
}

void adapter_failed(const char *what)
{
    bench_die("Ralloc: %s failed", what);
}
