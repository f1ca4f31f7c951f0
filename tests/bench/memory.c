/* SPDX-License-Identifier: MIT */
/*
 * memory.c - what blocks cost in memory: at once, after long use, and after most of them were
 * freed.
 *
 *   footprint  memory taken for --blocks live blocks, per byte requested, and the page faults on
 *              the way
 *   shift      --blocks bytes stay alive while the sizes of the blocks move from 16..64 bytes up to
 *              4..16 KiB and back: a record at each of many points in time. Where an allocator
 *              cannot use the room of yesterday's sizes for today's, the figure grows.
 *   give-back  --blocks blocks are allocated, the older 90 % freed, and then the program does a
 *              little work for --sample-ms: a record at each of some points in time, and one after
 *              asking
 *
 * Memory of a heap file: the blocks the file system keeps for it, everything included. Of the
 * others: growth of the process's resident pages, so what their libraries took before is not
 * counted. Every byte of every block is written.
 */
#include "adapter.h"

#include <sys/resource.h>
#include <time.h>

static uint64_t before; /* memory that does not count */

static uint64_t used(const struct bench_options *options)
{
    return adapter_used_bytes(options) - before;
}

/* Table of the workload itself, touched now rather than later. */
static uint32_t *make_table(uint64_t count)
{
    return bench_pages(count * sizeof(uint32_t));
}

static void start(const struct bench_options *options)
{
    bench_pin(0);
    adapter_open(options);
}

static void record(const struct bench_options *options, const char *unit, double value)
{
    bench_begin(options, adapter_library(), unit);
    bench_number("used", (double)used(options));
    bench_number("value", value);
}

static uint64_t page_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt;
}

/* ---- footprint ------------------------------------------------------------------------------- */

static void footprint(const struct bench_options *options)
{
    bench_slot *slots = adapter_slots(options->blocks);
    before = options->heap ? 0 : adapter_used_bytes(options);
    uint64_t random = options->seed, requested = 0, faults = page_faults();
    for (uint64_t i = 0; i < options->blocks; i++) {
        uint32_t size = bench_random_size(&random, options);
        bench_take(&slots[i], size);
        bench_fill(&slots[i], size);
        requested += size;
    }
    faults = page_faults() - faults;
    record(options, "bytes/byte", (double)used(options) / (double)requested);
    bench_number("requested", (double)requested);
    bench_number("faults", (double)faults);
    bench_end();
}

/* ---- shift ----------------------------------------------------------------------------------- */

#define SMALLEST 16
#define STEPS 9           /* ranges of sizes on the way up and down */
#define POINTS_PER_STEP 8 /* records */

/* Blocks that live, in no order. */
struct live {
    bench_slot *slots;
    uint32_t *sizes;
    uint64_t count;
    uint64_t bytes;
};

static const uint32_t lowest_of[STEPS] = {16, 64, 256, 1024, 4096, 1024, 256, 64, 16};

static void add_block(struct live *live, uint32_t size)
{
    bench_take(&live->slots[live->count], size);
    bench_fill(&live->slots[live->count], size);
    live->sizes[live->count++] = size;
    live->bytes += size;
}

/* The last one takes the place of the block that goes: a copy of the slot, which both keeps and
 * frees. */
static void remove_block(struct live *live, uint64_t index)
{
    live->bytes -= live->sizes[index];
    bench_give(&live->slots[index]);
    live->count--;
    live->slots[index] = live->slots[live->count];
    live->sizes[index] = live->sizes[live->count];
}

static void shift(const struct bench_options *options)
{
    uint64_t room = options->blocks / SMALLEST + 1;
    struct live live = {adapter_slots(room), make_table(room), 0, 0};
    before = options->heap ? 0 : adapter_used_bytes(options);
    uint64_t random = options->seed, churned = 0;
    for (unsigned point = 0; point < STEPS * POINTS_PER_STEP; point++) {
        uint32_t low = lowest_of[point / POINTS_PER_STEP];
        /* In each step everything that lives is replaced about three times. */
        uint64_t until = churned + options->blocks * 3 / POINTS_PER_STEP;
        while (churned < until) {
            uint32_t size = low + bench_random_below(&random, low * 3 + 1);
            while (live.count && live.bytes + size > options->blocks)
                remove_block(&live, bench_random_below(&random, (uint32_t)live.count));
            add_block(&live, size);
            churned += size;
        }
        record(options, "bytes/byte", (double)used(options) / (double)live.bytes);
        bench_number("churned", (double)churned);
        bench_number("low", low);
        bench_end();
    }
}

/* ---- give-back ------------------------------------------------------------------------------- */

static void work_a_little(const struct bench_options *options, bench_slot *slots)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    uint64_t random = options->seed;
    for (unsigned i = 0; i < 500; i++)
        bench_take(&slots[i], bench_random_size(&random, options));
    for (unsigned i = 0; i < 500; i++)
        bench_give(&slots[i]);
    /* Now and then programs need a large block, and allocators look after themselves only when
     * called. */
    bench_take(&slots[0], 100000);
    bench_give(&slots[0]);
    nanosleep(&pause, NULL);
}

static void give_back_point(const struct bench_options *options, uint64_t peak, double seconds,
                            int asked)
{
    record(options, "part", (double)used(options) / (double)peak);
    bench_number("seconds", seconds);
    bench_number("asked", asked);
    bench_end();
}

static void give_back(const struct bench_options *options)
{
    uint64_t blocks = options->blocks < 500 ? 500 : options->blocks;
    bench_slot *slots = adapter_slots(blocks);
    before = options->heap ? 0 : adapter_used_bytes(options);
    uint64_t random = options->seed;
    for (uint64_t i = 0; i < blocks; i++) {
        uint32_t size = bench_random_size(&random, options);
        bench_take(&slots[i], size);
        bench_fill(&slots[i], size);
    }
    uint64_t peak = used(options);
    give_back_point(options, peak, -1, 0);
    for (uint64_t i = 0; i < blocks / 10 * 9; i++)
        bench_give(&slots[i]);
    uint64_t begin = bench_now_ns(), end = begin + options->sample_ms * 1000000ull;
    uint64_t step = (end - begin) / 24, next = begin;
    for (uint64_t now = begin; now < end; now = bench_now_ns()) {
        if (now >= next) {
            give_back_point(options, peak, (double)(now - begin) / 1e9, 0);
            next += step;
        }
        work_a_little(options, slots);
    }
    adapter_trim();
    give_back_point(options, peak, (double)(bench_now_ns() - begin) / 1e9, 1);
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    start(&options);
    if (!strcmp(options.workload, "footprint"))
        footprint(&options);
    else if (!strcmp(options.workload, "shift"))
        shift(&options);
    else if (!strcmp(options.workload, "give-back"))
        give_back(&options);
    else
        bench_die("no workload \"%s\"", options.workload);
    adapter_close();
    return 0;
}
