/* SPDX-License-Identifier: MIT */
/*
 * adapter_malloc.c - malloc and free of whatever allocator the dynamic linker found first.
 */
#include "adapter.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void adapter_open(const struct bench_options *options)
{
    (void)options;
}

void adapter_close(void)
{
}

bench_slot *adapter_slots(size_t count)
{
    void *slots = mmap(NULL, count * sizeof(bench_slot), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (slots == MAP_FAILED)
        adapter_failed("mmap");
    return slots;
}

uint64_t adapter_used_bytes(const struct bench_options *options)
{
    (void)options;
    char line[128];
    unsigned long long mapped, resident;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (!statm || !fgets(line, sizeof(line), statm) ||
        sscanf(line, "%llu %llu", &mapped, &resident) != 2)
        adapter_failed("/proc/self/statm");
    fclose(statm);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

const char *adapter_library(void)
{
    return bench_library_of("malloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, strerror(errno));
}
