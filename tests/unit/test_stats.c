/* SPDX-License-Identifier: MIT */
/* test_stats.c - figures against a model kept here, and against the list of blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "heap_suite.h"

HEAP_SUITE(stats, 0, 30);

enum { COUNT = 3000 };
static shmalloc_ref refs[COUNT];

static int by_ref(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* stats, each_block and the refs this test holds tell the same. */
static void must_agree(int count)
{
    static uint64_t sorted[COUNT];
    uint64_t bytes = 0;
    memcpy(sorted, refs, sizeof(sorted));
    qsort(sorted, (size_t)count, sizeof(sorted[0]), by_ref);
    shmalloc_block *blocks;
    size_t listed = all_blocks(f.heap, &blocks);
    must(listed == (size_t)count, "%zu blocks are listed, %d are allocated", listed, count);
    for (int i = 0; i < count; i++) {
        must(blocks[i].ref == sorted[i], "block %d is %#llx, not %#llx", i,
             (unsigned long long)blocks[i].ref, (unsigned long long)sorted[i]);
        must(blocks[i].size == shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, sorted[i])),
             "block %d has %llu bytes", i, (unsigned long long)blocks[i].size);
        must(blocks[i].tag == shmalloc_tag(f.heap, sorted[i]), "block %d has tag %u", i,
             blocks[i].tag);
        bytes += blocks[i].size;
    }
    free(blocks);
    shmalloc_stats stats = heap_stats(f.heap);
    must(stats.allocated == bytes && stats.allocated_blocks == (uint64_t)count,
         "stats say %llu bytes in %llu blocks, the list %llu in %d",
         (unsigned long long)stats.allocated, (unsigned long long)stats.allocated_blocks,
         (unsigned long long)bytes, count);
}

Test(stats, agree_with_each_block_and_the_model)
{
    struct rng rng = rng_from(test_seed());
    int count = 0;
    must_agree(0);
    for (int step = 0; step < 20000; step++) {
        if (count < COUNT && rng_below(&rng, 5) < 3) {
            size_t size = 1 + rng_log_uniform(&rng, 18);
            if (rng_below(&rng, 4) == 0)
                must_work(
                    shmalloc_ref_alloc_tagged(f.heap, size, (uint16_t)(step | 1), &refs[count]));
            else
                must_work(shmalloc_ref_alloc(f.heap, size, &refs[count]));
            count++;
        } else if (count > 0) {
            uint64_t i = rng_below(&rng, (uint64_t)count);
            shmalloc_ref ref = refs[i];
            refs[i] = refs[--count];
            must_work(shmalloc_ref_free(f.heap, &ref));
        }
        if (step % 1000 == 0)
            must_agree(count);
    }
    while (count > 0)
        must_work(shmalloc_ref_free(f.heap, &refs[--count]));
    must_agree(0);
}

Test(stats, every_byte_of_the_file_has_one_place)
{
    struct rng rng = rng_from(7);
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 17), &refs[i]));
    for (int i = 0; i < COUNT; i += 2)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    shmalloc_stats s = heap_stats(f.heap);
    uint64_t sum = s.metadata + s.allocated + s.cached + s.central_free + s.free_pages;
    cr_assert_leq(sum, s.file_size);
    cr_assert_geq(sum * 100, s.file_size * 95,
                  "more than 5 %% of the file (%llu of %llu bytes) is nowhere",
                  (unsigned long long)(s.file_size - sum), (unsigned long long)s.file_size);
    cr_assert_leq(s.free_reserved, s.free_pages);
    cr_assert_leq(s.largest_free_run, s.free_pages);
    for (int i = 1; i < COUNT; i += 2)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
}

Test(stats, largest_free_run_fits_without_growing)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 3 << 20, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    shmalloc_stats s = heap_stats(f.heap);
    must_work(shmalloc_ref_alloc(f.heap, s.largest_free_run, &ref));
    cr_assert_eq(heap_stats(f.heap).file_size, s.file_size);
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_ref_alloc(f.heap, s.largest_free_run + 1, &ref));
    cr_assert_gt(heap_stats(f.heap).file_size, s.file_size);
    must_work(shmalloc_ref_free(f.heap, &ref));
}

Test(stats, free_reserved_follows_the_file_system)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 16 << 20, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    struct stat st;
    shmalloc_stats s = heap_stats(f.heap);
    cr_assert_eq(stat(f.path, &st), 0);
    cr_assert_geq(s.free_reserved, 16u << 20);
    cr_assert_geq((uint64_t)st.st_blocks * 512, s.free_reserved);
    must(shmalloc_trim(f.heap) >= 16 << 20, "%s", shmalloc_errmsg());
    s = heap_stats(f.heap);
    cr_assert_lt(s.free_reserved, 1u << 20);
    cr_assert_eq(stat(f.path, &st), 0);
    cr_assert_lt(st.st_blocks * 512, 2 << 20);
}

static int attach_and_wait(void *arg)
{
    uint32_t *words = arg;
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 8, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    signal_word(&words[0]);
    await_word(&words[1], 1);
    return shmalloc_close(heap) < 0;
}

Test(stats, count_processes_threads_generations)
{
    shmalloc_stats s = heap_stats(f.heap);
    uint64_t generation = s.generation;
    cr_assert_eq(s.processes, 1);
    cr_assert_eq(s.threads, 1);
    uint32_t *words = shared_memory(8);
    pid_t pids[3];
    for (int i = 0; i < 3; i++)
        pids[i] = start_child(attach_and_wait, words);
    await_word(&words[0], 3);
    s = heap_stats(f.heap);
    cr_assert_eq(s.processes, 4);
    cr_assert_eq(s.threads, 4);
    cr_assert_eq(s.generation, generation, "the heap was in use all the time");
    signal_word(&words[1]);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    s = heap_stats(f.heap);
    cr_assert_eq(s.processes, 1);
    fixture_reopen(&f);
    s = heap_stats(f.heap);
    cr_assert_eq(s.generation, generation + 1);
}

Test(stats, wrong_struct_sizes_are_refused)
{
    static const size_t wrong[] = {0, 8, 15, 17, sizeof(shmalloc_stats) - 1, 1032, SIZE_MAX - 7};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        shmalloc_stats s = {.struct_size = wrong[i], .threads = 77};
        must_code(shmalloc_get_stats(f.heap, &s), -EINVAL);
        cr_assert(s.struct_size == wrong[i] && s.threads == 77, "%zu bytes", wrong[i]);
    }
    must_code(shmalloc_get_stats(f.heap, NULL), -EINVAL);
}

/* Of a program that was compiled with another header, older or newer, and what lies behind it. */
struct other_stats {
    shmalloc_stats stats;
    uint64_t beyond[4];
};

Test(stats, structs_of_older_programs_are_filled_as_far_as_they_go)
{
    shmalloc_stats whole = heap_stats(f.heap);
    for (size_t size = 16; size <= sizeof(whole); size += 8) {
        struct other_stats o;
        memset(&o, 0x5a, sizeof(o));
        o.stats.struct_size = size;
        must_work(shmalloc_get_stats(f.heap, &o.stats));
        cr_assert_eq(o.stats.struct_size, size);
        cr_assert_eq(o.stats.file_size, whole.file_size);
        cr_assert_eq(memcmp((char *)&o.stats + 8, (char *)&whole + 8, size - 8), 0, "%zu bytes",
                     size);
        for (size_t i = size; i < sizeof(o); i++)
            cr_assert_eq(((unsigned char *)&o)[i], 0x5a, "byte %zu behind %zu", i, size);
    }
}

Test(stats, structs_of_newer_programs_are_taken_if_the_rest_is_zero)
{
    for (size_t more = 8; more <= sizeof(((struct other_stats *)0)->beyond); more += 8) {
        struct other_stats o = {SHMALLOC_STATS_INIT, {0}};
        o.stats.struct_size = sizeof(shmalloc_stats) + more;
        must_work(shmalloc_get_stats(f.heap, &o.stats));
        cr_assert_eq(o.stats.struct_size, sizeof(shmalloc_stats) + more);
        cr_assert_eq(o.stats.processes, 1);
        o.beyond[more / 8 - 1] = 1ull << 56;
        o.stats.processes = 99;
        must_code(shmalloc_get_stats(f.heap, &o.stats), -EINVAL);
        cr_assert_not_null(strstr(shmalloc_errmsg(), "newer library"), "%s", shmalloc_errmsg());
        cr_assert_eq(o.stats.processes, 99);
    }
}

static int stop_at_second(const shmalloc_block *block, void *arg)
{
    (void)block;
    return ++*(int *)arg == 2 ? -55 : 0;
}

static int free_visited(const shmalloc_block *block, void *arg)
{
    shmalloc_ref ref = block->ref;
    ++*(int *)arg;
    return shmalloc_ref_free(f.heap, &ref); /* no lock may be held here */
}

Test(stats, visitors_may_stop_and_free)
{
    int count = 0;
    for (int i = 0; i < 500; i++)
        must_work(shmalloc_ref_alloc(f.heap, 100, &refs[i]));
    cr_assert_eq(shmalloc_each_block(f.heap, stop_at_second, &count), -55);
    cr_assert_eq(count, 2);
    count = 0;
    must_work(shmalloc_each_block(f.heap, free_visited, &count));
    cr_assert_eq(count, 500);
}
