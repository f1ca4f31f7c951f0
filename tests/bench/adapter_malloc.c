/* SPDX-License-Identifier: MIT */
/*
 * adapter_malloc.c - malloc and free of whatever allocator the dynamic linker found first.
 */
#include "adapter.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
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
    return bench_pages(count * sizeof(bench_slot));
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

/* The functions are looked up, because only the preloaded allocator decides which of them exist. */
void adapter_trim(void)
{
    int (*mallctl)(const char *, void *, size_t *, void *, size_t);
    void (*mi_collect)(int);
    void (*release)(void);
    int (*trim)(size_t);
    *(void **)&mallctl = dlsym(RTLD_DEFAULT, "mallctl");
    *(void **)&mi_collect = dlsym(RTLD_DEFAULT, "mi_collect");
    *(void **)&release = dlsym(RTLD_DEFAULT, "MallocExtension_ReleaseFreeMemory");
    *(void **)&trim = dlsym(RTLD_DEFAULT, "malloc_trim");
    if (mallctl && !release) /* tcmalloc has a mallctl that does nothing */
        mallctl("arena.4096.purge", NULL, NULL, NULL, 0);
    else if (mi_collect)
        mi_collect(1);
    else if (release)
        release();
    else if (trim)
        trim(0);
}

const char *adapter_library(void)
{
    return bench_library_of("malloc");
}

void adapter_failed(const char *what)
{
    bench_die("%s failed: %s", what, strerror(errno));
}
