/* SPDX-License-Identifier: MIT */
/*
 * footprint.c - memory taken for --blocks live blocks, per byte requested.
 *
 * For a heap file: the blocks the file system keeps for it, everything included. For the others:
 * growth of the process's resident pages, so what their libraries took before is not counted. Every
 * byte of every block is written. With --blocks 1 the figure is that of an almost empty heap.
 */
#include "adapter.h"

#include <string.h>

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    bench_pin(0);
    adapter_open(&options);
    bench_slot *slots = adapter_slots(options.blocks);
    uint64_t before = options.heap ? 0 : adapter_used_bytes(&options);
    uint64_t random = options.seed, requested = 0;
    for (uint64_t i = 0; i < options.blocks; i++) {
        uint32_t size = bench_random_size(&random, &options);
        bench_take(&slots[i], size);
        memset(slots[i], 1, size);
        requested += size;
    }
    uint64_t used = adapter_used_bytes(&options) - before;
    bench_begin(&options, adapter_library(), "bytes/byte");
    bench_number("requested", (double)requested);
    bench_number("used", (double)used);
    bench_number("value", (double)used / (double)requested);
    bench_end();
    adapter_close();
    return 0;
}
