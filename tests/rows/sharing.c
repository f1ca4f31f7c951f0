/* SPDX-License-Identifier: MIT */
/*
 * sharing.c - rows A4 to A7: merging, the policy of giving back, memory freed by one used by
 * another, no header per block.
 *
 * Would fail if free neighbours stayed apart in any order of frees, storage beyond `retain` stayed
 * or storage within it went, a process kept what it freed from the others, or a block had bytes of
 * the library beside it.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rows.h"

ROWS_SUITE(60);

#define PAGES(n) ((uint64_t)(n) << SMF_PAGE_SHIFT)

Test(rows, a04_neighbours_merge_in_every_order_of_frees)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    f.heap = heap_create(f.path, 0);
    shmalloc_ref guard[2] = {0}, block[3] = {0}, whole = 0;
    must_work(shmalloc_ref_alloc(f.heap, PAGES(4000), &whole)); /* all blocks come from one chunk */
    must_work(shmalloc_ref_free(f.heap, &whole));
    char *first = NULL;
    for (int i = 0; i < 6; i++) {
        must_work(shmalloc_ref_alloc(f.heap, PAGES(300), &guard[0]));
        for (int k = 0; k < 3; k++)
            /* too long for chunk 0 */
            must_work(shmalloc_ref_alloc(f.heap, PAGES(200 + 10 * k), &block[k]));
        must_work(shmalloc_ref_alloc(f.heap, PAGES(300), &guard[1]));
        shmalloc_ref begin = block[0];
        cr_assert_eq(block[1], block[0] + PAGES(200), "not side by side: the test proves nothing");
        cr_assert_eq(block[2], block[1] + PAGES(210), "not side by side: the test proves nothing");
        for (int k = 0; k < 3; k++)
            must_work(shmalloc_ref_free(f.heap, &block[orders[i][k]]));
        char *spans = rows_free_spans(f.path), merged[40];
        snprintf(merged, sizeof(merged), "%llu+630 ",
                 (unsigned long long)(begin >> SMF_PAGE_SHIFT));
        cr_assert(strstr(spans, merged), "order %d: no %sin %s", i, merged, spans);
        if (!first)
            first = strdup(spans);
        cr_assert_str_eq(spans, first, "order %d", i);
        free(spans);
        must_work(shmalloc_ref_free(f.heap, &guard[0]));
        must_work(shmalloc_ref_free(f.heap, &guard[1]));
    }
    free(first);
}

enum { BLOCKS = 40 };
static shmalloc_ref refs[BLOCKS];

static void fill_and_free(void)
{
    for (int i = 0; i < BLOCKS; i++)
        must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &refs[i]));
    for (int i = 0; i < BLOCKS; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
}

Test(rows, a05_retained_storage_stays_and_the_rest_goes)
{
    const uint64_t retain = 16 << 20, step = 128 << 10; /* runs below 64 KiB stay, at either end of
                                                           a hole */
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, 0, retain));
    fill_and_free();
    for (int i = 0; i < 20; i++) { /* each free of a large block looks again */
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 100000, &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
        uint64_t kept = heap_stats(f.heap).free_reserved;
        cr_assert_geq(kept, retain, "look %d: %llu bytes are kept", i, (unsigned long long)kept);
        if (i == 19)
            cr_assert_lt(kept, retain + step, "%llu bytes are kept", (unsigned long long)kept);
    }
}

static int use_what_was_retained(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_open(f.path);
    shmalloc_ref warm = 0;
    must_work(shmalloc_ref_alloc(heap, 100, &warm));
    rows_mark_begin();
    for (int i = 0; i < 10; i++)
        must_work(shmalloc_ref_alloc(heap, 1 << 20, &refs[i]));
    rows_mark_end();
    return shmalloc_close(heap) < 0;
}

Test(rows, a05_retained_storage_serves_the_next_requests)
{
    static struct rows_calls calls;
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, 0, 16 << 20));
    fill_and_free();
    must_work(shmalloc_set_give_back(f.heap, 60000, 16 << 20));
    cr_assert_geq(heap_stats(f.heap).free_reserved, 16 << 20);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    int status = rows_count_calls(use_what_was_retained, NULL, &calls);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("ptrace is not permitted");
    cr_assert_eq(status, 0, "%d", status);
    cr_assert_eq(rows_storage_calls(&calls), 0,
                 "16 MiB are kept, and 10 MiB cost %llu calls for storage",
                 (unsigned long long)rows_storage_calls(&calls));
}

Test(rows, a05_never_means_never_until_trim)
{
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, 0, 0));
    fill_and_free();
    cr_assert_lt(rows_storage(f.path), 4 << 20, "with 0 ms it goes at once");
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    fill_and_free();
    usleep(1200000); /* more than the second between two looks */
    fill_and_free();
    cr_assert_geq(rows_storage(f.path), BLOCKS << 20);
    cr_assert_geq(shmalloc_trim(f.heap), BLOCKS << 20);
    cr_assert_lt(rows_storage(f.path), 4 << 20);
}

Test(rows, a05_initial_size_and_knobs_stay_with_the_heap)
{
    f.heap = rows_heap(f.path, 64 << 20, 128 << 20, 0);
    must_work(shmalloc_set_give_back(f.heap, 1234, 5 << 20));
    fixture_reopen(&f);
    cr_assert_eq(f.heap->state->decay_ns, 1234000000);
    cr_assert_eq(f.heap->state->retain, 5 << 20);
    fill_and_free();
    cr_assert_eq(f.heap->page_heap->grows, 0, "the initial size is there from the start");
}

struct turns {
    uint32_t freed, done;
    uint64_t grows, size;
    size_t block_size;
};

/* Take 80 % of the heap's maximum; free it. */
static void take_most(shmalloc_heap *heap, size_t size)
{
    size_t count = (size_t)(heap->state->max_size * 8 / 10 / size);
    shmalloc_ref *mine = calloc(count, sizeof(*mine));
    for (size_t i = 0; i < count; i++)
        must_work(shmalloc_ref_alloc(heap, size, &mine[i]));
    for (size_t i = 0; i < count; i++)
        must_work(shmalloc_ref_free(heap, &mine[i]));
    free(mine);
}

static int first_user(void *arg)
{
    struct turns *t = arg;
    shmalloc_heap *heap = fixture_join(&f);
    take_most(heap, t->block_size);
    t->grows = heap->page_heap->grows;
    t->size = heap_stats(heap).file_size;
    signal_word(&t->freed);
    await_word(&t->done, 1); /* alive, with all that it caches */
    return shmalloc_close(heap) < 0;
}

static void pass_on(size_t block_size)
{
    struct turns *t = shared_memory(sizeof(*t));
    t->block_size = block_size;
    f.heap = rows_heap(f.path, 0, 64 << 20, 0);
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    pid_t pid = start_child(first_user, t);
    await_word(&t->freed, 1);
    take_most(f.heap, block_size);
    cr_assert_eq(f.heap->page_heap->grows, t->grows, "grown from %llu to %llu",
                 (unsigned long long)t->size, (unsigned long long)heap_stats(f.heap).file_size);
    signal_word(&t->done);
    cr_assert_eq(wait_child(pid), 0);
}

Test(rows, a06_slots_freed_by_one_process_serve_another)
{
    pass_on(1024);
}

Test(rows, a06_spans_freed_by_one_process_serve_another)
{
    pass_on(100000);
}

Test(rows, a07_a_million_blocks_of_16_bytes_take_17_MiB)
{
    enum { MILLION = 1000000 };
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < MILLION; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 16, &ref));
        if (i % 1000 == 0)
            cr_assert_eq(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, ref)), 16);
    }
    uint64_t storage = rows_storage(f.path);
    cr_assert_leq(storage, 17 << 20, "%llu bytes", (unsigned long long)storage);
    cr_assert_eq(heap_stats(f.heap).allocated, 16 * MILLION);
}

/* ---- what blocks cost, and what comes back ---- */

enum { MANY = 1000000 };

/* A million blocks of 16 to 512 bytes; returns the bytes that were asked for. */
static uint64_t take_many(shmalloc_heap *heap, shmalloc_ref *blocks, struct rng *rng)
{
    uint64_t asked = 0;
    for (int i = 0; i < MANY; i++) {
        uint64_t size = 16 + rng_below(rng, 497);
        must_work(shmalloc_ref_alloc(heap, size, &blocks[i]));
        asked += size;
    }
    return asked;
}

Test(rows, a08_a_million_random_blocks_store_6_percent_more)
{
    static shmalloc_ref blocks[MANY];
    struct rng rng = rng_from(test_seed());
    f.heap = heap_create(f.path, 0);
    uint64_t asked = take_many(f.heap, blocks, &rng), stored = rows_storage(f.path);
    fprintf(stderr, "%.3f bytes of the file for a byte asked for\n",
            (double)stored / (double)asked);
    cr_assert_leq(stored, asked + asked * 6 / 100);
}

Test(rows, a17_the_oldest_nine_tenths_go_back)
{
    static shmalloc_ref blocks[MANY];
    struct rng rng = rng_from(test_seed());
    uint64_t freed = 0;
    f.heap = heap_create(f.path, 0);
    take_many(f.heap, blocks, &rng);
    uint64_t stored = rows_storage(f.path);
    for (int i = 0; i < MANY / 10 * 9; i++) {
        freed += shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, blocks[i]));
        must_work(shmalloc_ref_free(f.heap, &blocks[i]));
    }
    must(shmalloc_trim(f.heap) > 0, "%s", shmalloc_errmsg());
    uint64_t back = stored - rows_storage(f.path);
    fprintf(stderr, "%.1f %% of %llu MiB came back\n", 100.0 * (double)back / (double)freed,
            (unsigned long long)freed >> 20);
    cr_assert_geq(back, freed / 10 * 9);
}
