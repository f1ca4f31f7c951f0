/* SPDX-License-Identifier: MIT */
/*
 * adapter_boost.c - a segment of Boost.Interprocess in a mapped file; its size is fixed at
 * creation.
 */
#include "adapter.h"

/* Open or create the segment; -1 when that fails. */
int boost_open(const char *path, size_t size);
void boost_close(void);

/* `count` words that are found by name; NULL when there is no room. */
uint64_t *boost_words(size_t count);

void adapter_failed(const char *what)
{
    bench_die("Boost.Interprocess: %s failed", what);
}

void adapter_open(const struct bench_options *options)
{
    if (boost_open(options->heap, bench_file_size(options)))
        adapter_failed("opening the segment");
}

void adapter_close(void)
{
    boost_close();
}

bench_slot *adapter_slots(size_t count)
{
    return bench_pages(count * sizeof(bench_slot));
}

uint64_t *adapter_shared_words(size_t count)
{
    uint64_t *words = boost_words(count);
    if (!words)
        adapter_failed("find_or_construct");
    return words;
}

uint64_t adapter_used_bytes(const struct bench_options *options)
{
    return bench_stored_bytes(options->heap);
}

void adapter_trim(void)
{
}

const char *adapter_library(void)
{
    /* there is no shared object */
    return "/usr/include/boost/interprocess/managed_mapped_file.hpp";
}
