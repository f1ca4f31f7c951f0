/* SPDX-License-Identifier: MIT */
/*
 * adapter_metall.c - a datastore of Metall, a folder of files.
 */
#include "adapter.h"

/* Create the datastore; -1 when that fails. */
int metall_open(const char *path);
void metall_close(void);

void adapter_failed(const char *what)
{
    bench_die("Metall: %s failed", what);
}

void adapter_open(const struct bench_options *options)
{
    if (metall_open(options->heap))
        adapter_failed("creating the datastore");
}

void adapter_close(void)
{
    metall_close();
}

bench_slot *adapter_slots(size_t count)
{
    return bench_pages(count * sizeof(bench_slot));
}

const char *adapter_library(void)
{
    return "metall/metall.hpp"; /* there is no shared object */
}
