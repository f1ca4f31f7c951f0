/* SPDX-License-Identifier: MIT */
/*
 * longest.c - the longest single allocation or free, in CPU time, while one thread allocates and
 * frees a block over and over for --sample-ms of it. An allocator that now and then puts its house
 * in order in somebody's call shows here what that costs; the mean of many calls hides it.
 */
#include "adapter.h"

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t later(uint64_t longest, uint64_t *start)
{
    uint64_t now = cpu_ns(), took = now - *start;
    *start = now;
    return took > longest ? took : longest;
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    bench_pin(0);
    adapter_open(&options);
    bench_slot *slot = adapter_slots(1);
    uint64_t random = options.seed, longest = 0, now = cpu_ns(),
             end = now + options.sample_ms * 1000000ull;
    while (now < end) {
        bench_take(slot, bench_random_size(&random, &options));
        longest = later(longest, &now);
        bench_give(slot);
        longest = later(longest, &now);
    }
    bench_begin(&options, adapter_library(), "us");
    bench_number("value", (double)longest / 1e3);
    bench_end();
    adapter_close();
    return 0;
}
