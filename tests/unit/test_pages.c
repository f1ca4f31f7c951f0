/* SPDX-License-Identifier: MIT */
/*
 * test_pages.c - spans of pages as large blocks show them: taken, given back, merged, best fit.
 *
 * A block above 64 KiB is a span of its own, so the page heap's choices can be seen from its refs.
 * Would fail if free neighbours stayed apart, an exact length missed its stack, a longer span were
 * cut although a fitting one was free, or a freed span were lost.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <criterion/criterion.h>

#include "slots/kept.h"
#include "support.h"

#define PAGE 8192ull

static struct fixture f;
static struct usage before;

/* One chunk with one free run that is longer than all that most tests take, so that blocks taken
 * one after the other lie side by side. */
static void begin(void)
{
    fixture_begin(&f);
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.initial_size = 64 << 20;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    before = usage_now(f.heap);
}

static void end(void)
{
    must_be_as_before(f.heap, &before);
    fixture_end(&f);
}

TestSuite(pages, .init = begin, .fini = end, .timeout = 60);

static shmalloc_ref take(uint64_t page_count)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, page_count * PAGE, &ref));
    must(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, ref)) == page_count * PAGE,
         "%llu pages", (unsigned long long)page_count);
    return ref;
}

/* To the page heap: the thread would keep it. */
static void give(shmalloc_ref ref)
{
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(smi_kept_release(f.heap, smi_current->slot, smi_current->slot_index));
}

/* ---- freeing in many orders ---- */

enum { MANY = 600 };
static uint64_t refs[MANY];

static void take_many(void)
{
    struct rng rng = rng_from(3);
    for (int i = 0; i < MANY; i++) {
        refs[i] = take(9 + rng_below(&rng, 40));
        *(uint64_t *)shmalloc_ptr(f.heap, refs[i]) = refs[i];
    }
    must_be_sound(f.heap);
}

static void give_checked(int i)
{
    must(*(uint64_t *)shmalloc_ptr(f.heap, refs[i]) == refs[i], "block %d was overwritten", i);
    give(refs[i]);
}

Test(pages, free_forward)
{
    take_many();
    for (int i = 0; i < MANY; i++)
        give_checked(i);
}

Test(pages, free_backward)
{
    take_many();
    for (int i = MANY; i-- > 0;)
        give_checked(i);
}

Test(pages, free_interleaved)
{
    take_many();
    for (int stride = 0; stride < 3; stride++) {
        for (int i = stride; i < MANY; i += 3)
            give_checked(i);
        must_be_sound(f.heap);
    }
}

Test(pages, free_shuffled)
{
    take_many();
    struct rng rng = rng_from(test_seed());
    rng_shuffle(&rng, refs, MANY);
    for (int i = 0; i < MANY; i++)
        give_checked(i);
}

Test(pages, taking_all_pages_leaves_no_free_run_and_freeing_brings_all_back)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 16 << 20;
    shmalloc_heap *small;
    must_work(shmalloc_open(fixture_path(&f, "small"), &options, &small));
    struct usage empty = usage_now(small);
    int count = 0;
    for (uint64_t pages = 256; pages >= 9; pages = pages > 9 ? pages / 2 < 9 ? 9 : pages / 2 : 8)
        while (shmalloc_ref_alloc(small, pages * PAGE, &refs[count]) == 0)
            count++;
    must_be_sound(small);
    cr_assert_lt(heap_stats(small).largest_free_run, 9 * PAGE);
    for (int i = 0; i < count; i++)
        must_work(shmalloc_ref_free(small, &refs[i]));
    must_be_as_before(small, &empty);
    must_work(shmalloc_close(small));
}

/* ---- merging ---- */

Test(pages, three_neighbours_merge_in_any_order)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int order = 0; order < 6; order++) {
        shmalloc_ref low = take(10), block[3] = {take(20), take(30), take(40)}, high = take(10);
        cr_assert_eq(block[0] + 20 * PAGE, block[1], "side by side");
        cr_assert_eq(block[1] + 30 * PAGE, block[2], "side by side");
        for (int i = 0; i < 3; i++) {
            give(block[orders[order][i]]);
            must_be_sound(f.heap);
        }
        shmalloc_ref whole = take(90);
        cr_assert_eq(whole, block[0], "order %d: the three are one free run", order);
        give(whole);
        give(low);
        give(high);
    }
}

Test(pages, front_and_back_of_an_aligned_block_merge_again)
{
    uint64_t run = heap_stats(f.heap).largest_free_run;
    for (int i = 0; i < 4; i++) {
        shmalloc_ref odd = take(9 + (uint64_t)i), aligned = 0;
        must_work(shmalloc_ref_alloc_aligned(f.heap, 1 << 20, 100 * PAGE, &aligned));
        cr_assert_eq(aligned % (1 << 20), 0);
        must_be_sound(f.heap);
        give(odd);
        give(aligned);
        cr_assert_eq(heap_stats(f.heap).largest_free_run, run, "pages were lost around the block");
    }
}

Test(pages, aligned_takes_of_every_alignment_and_offset)
{
    for (size_t alignment = 2 * PAGE; alignment <= 1 << 20; alignment *= 2)
        for (uint64_t offset = 9; offset < 14; offset++) {
            shmalloc_ref front = take(offset), blocks[4] = {0};
            for (int i = 0; i < 4; i++) {
                must_work(shmalloc_ref_alloc_aligned(f.heap, alignment, (9 + (uint64_t)i) * PAGE,
                                                     &blocks[i]));
                must(blocks[i] % alignment == 0, "alignment %zu", alignment);
            }
            must_be_sound(f.heap);
            give(blocks[1]);
            give(front);
            give(blocks[3]);
            give(blocks[0]);
            give(blocks[2]);
        }
}

/* ---- choosing ---- */

/* Free runs of the given lengths with taken pages between them. */
struct holes {
    shmalloc_ref at[8], guard[9];
    int count;
};

static void make_holes(struct holes *h, const uint64_t *lengths, int count)
{
    h->count = count;
    for (int i = 0; i < count; i++) {
        h->guard[i] = take(9);
        h->at[i] = take(lengths[i]);
    }
    h->guard[count] = take(9);
    for (int i = 0; i < count; i++)
        give(h->at[i]);
}

static void end_holes(struct holes *h)
{
    for (int i = 0; i <= h->count; i++)
        give(h->guard[i]);
}

Test(pages, exact_lengths_around_the_largest_bin)
{
    /* Stacks of their own end at 255 pages; 256 and 257 share the set of long spans. */
    static const uint64_t lengths[] = {257, 255, 256, 254, 300};
    struct holes h;
    make_holes(&h, lengths, 5);
    for (int i = 0; i < 5; i++) {
        shmalloc_ref ref = take(lengths[i]);
        cr_assert_eq(ref, h.at[i], "%llu pages did not get the hole of that length",
                     (unsigned long long)lengths[i]);
        give(ref);
    }
    shmalloc_ref all[5];
    for (int i = 0; i < 5; i++)
        all[i] = take(lengths[i]);
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(all[i], h.at[i]);
        give(all[i]);
    }
    end_holes(&h);
}

Test(pages, the_shortest_run_that_fits_is_taken)
{
    static const uint64_t lengths[] = {400, 40, 300, 20, 330, 60};
    struct holes h;
    make_holes(&h, lengths, 6);
    static const struct {
        uint64_t pages;
        int hole;
    } cases[] = {{15, 3}, {20, 3}, {21, 1}, {41, 5}, {61, 2}, {280, 2}, {301, 4}, {331, 0}};
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        shmalloc_ref ref = take(cases[i].pages);
        cr_assert_eq(ref, h.at[cases[i].hole], "%llu pages", (unsigned long long)cases[i].pages);
        give(ref);
    }
    end_holes(&h);
}

Test(pages, of_equal_runs_the_lowest_is_taken)
{
    static const uint64_t lengths[] = {30, 30, 30, 30, 290, 290, 290};
    struct holes h;
    make_holes(&h, lengths, 7);
    shmalloc_ref taken[7];
    for (int i = 0; i < 7; i++) {
        taken[i] = take(lengths[i]);
        cr_assert_eq(taken[i], h.at[i], "hole %d", i);
    }
    for (int i = 0; i < 7; i++)
        give(taken[i]);
    end_holes(&h);
}

/* ---- growing ---- */

Test(pages, freed_large_blocks_are_reused_without_growth)
{
    give(take(10000)); /* longer than the first chunk */
    uint64_t size = heap_stats(f.heap).file_size;
    for (int i = 0; i < 1000; i++)
        give(take(10 + (uint64_t)i * 9 % 9000));
    cr_assert_eq(heap_stats(f.heap).file_size, size);
}

Test(pages, growth_is_geometric_so_that_chunks_stay_few)
{
    enum { BLOCKS = 2000 };
    static uint64_t many[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        many[i] = take(16); /* 256 MiB in steps of 128 KiB */
    shmalloc_stats stats = heap_stats(f.heap);
    cr_assert_lt(stats.chunks, 100, "%llu chunks", (unsigned long long)stats.chunks);
    cr_assert_lt(stats.file_size, 2000 * 16 * PAGE * 5 / 4, "grown far ahead: %llu",
                 (unsigned long long)stats.file_size);
    for (int i = 0; i < BLOCKS; i++)
        give(many[i]);
}

Test(pages, the_file_is_as_long_as_stats_say)
{
    shmalloc_ref ref = take(20000);
    struct stat st;
    cr_assert_eq(stat(f.path, &st), 0);
    cr_assert_eq((uint64_t)st.st_size, heap_stats(f.heap).file_size);
    give(ref);
}

Test(pages, resize_in_place_takes_only_what_is_free_behind)
{
    shmalloc_ref a = take(100), b = take(20), c = take(50), was = a;
    give(b);
    uint64_t size = 100;
    must_work(shmalloc_ref_realloc(f.heap, &a, (size = 115) * PAGE));
    cr_assert_eq(a, was, "15 of the 20 free pages behind");
    must_work(shmalloc_ref_realloc(f.heap, &a, (size = 120) * PAGE));
    cr_assert_eq(a, was, "all of them");
    must_be_sound(f.heap);
    must_work(shmalloc_ref_realloc(f.heap, &a, (size = 121) * PAGE));
    cr_assert_neq(a, was, "the next page is taken");
    must_be_sound(f.heap);
    must_work(shmalloc_ref_realloc(f.heap, &a, 10 * PAGE));
    cr_assert_eq(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, a)), 10 * PAGE);
    give(a);
    give(c);
}
