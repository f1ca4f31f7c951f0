/* SPDX-License-Identifier: MIT */
/*
 * test_alloc.c - allocation, freeing and resizing of single blocks, by ref and by pointer.
 *
 * Would fail if two blocks overlapped, a size got a slot too small, alignment or zeroing were
 * missed, a resize lost contents, or a bad free were taken for a good one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap_suite.h"

HEAP_SUITE(alloc, 0, 60);

#define LARGEST_SMALL 65536u
#define LARGEST_KEPT (1u << 20) /* of blocks that a thread keeps when it frees them */

static shmalloc_ref allocate(size_t size)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, size, &ref));
    return ref;
}

static void release(shmalloc_ref ref)
{
    must_work(shmalloc_ref_free(f.heap, &ref));
    must(ref == 0, "free left the ref");
}

static void must_hold(shmalloc_ref ref, size_t size, uint64_t stamp)
{
    size_t at = pattern_check(shmalloc_ptr(f.heap, ref), size, stamp);
    must(at == size, "block %#llx of %zu bytes differs at %zu", (unsigned long long)ref, size, at);
}

static void fill(shmalloc_ref ref, size_t size, uint64_t stamp)
{
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, size, stamp);
}

static size_t usable(shmalloc_ref ref)
{
    return shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, ref));
}

/* All blocks live at once: each filled to its usable size, so that any overlap destroys a
 * pattern. */
static void live_together(size_t from, size_t to, size_t step)
{
    size_t count = (to - from) / step + 1, i = 0;
    shmalloc_ref *refs = calloc(count, sizeof(*refs));
    for (size_t size = from; size <= to; size += step, i++) {
        refs[i] = allocate(size);
        size_t room = usable(refs[i]);
        must(room >= size, "%zu bytes asked, %zu usable", size, room);
        must(refs[i] % (size <= 8 ? 8 : 16) == 0, "%zu bytes at %#llx", size,
             (unsigned long long)refs[i]);
        fill(refs[i], room, size);
    }
    for (i = 0; i < count; i++)
        must_hold(refs[i], usable(refs[i]), from + i * step);
    must_be_sound(f.heap);
    for (i = 0; i < count; i++)
        release(refs[i]);
    free(refs);
}

Test(alloc, every_size_up_to_8192_lives_together)
{
    live_together(1, 8192, 1);
}

Test(alloc, larger_sizes_live_together)
{
    live_together(8193, 70000, 61);
}

Test(alloc, every_size_up_to_70000)
{
    for (size_t size = 1; size <= 70000; size++) {
        shmalloc_ref ref = allocate(size);
        size_t room = usable(ref);
        must(room >= size, "%zu", size);
        must(room - size <= (size / 8 > 8191 ? size / 8 : 8191), "%zu bytes take %zu", size, room);
        must(shmalloc_ptr_range(f.heap, ref, room), "%zu", size);
        release(ref);
    }
}

Test(alloc, large_sizes)
{
    for (size_t size = LARGEST_SMALL - 1; size <= 64u << 20; size = size * 5 / 4) {
        shmalloc_ref a = allocate(size), b = allocate(size + 1);
        must(usable(a) >= size && usable(b) > size, "%zu", size);
        must(a + usable(a) <= b || b + usable(b) <= a, "overlap at %zu", size);
        uint8_t *bytes = shmalloc_ptr(f.heap, a);
        bytes[0] = bytes[size - 1] = 1; /* reserved and mapped to the last byte */
        release(a);
        release(b);
    }
}

Test(alloc, size_0_counts_as_1)
{
    shmalloc_ref a = allocate(0), b = allocate(0);
    cr_assert(a && b && a != b);
    cr_assert_geq(usable(a), 1);
    release(a);
    release(b);
    void *p = shmalloc_malloc(f.heap, 0);
    cr_assert_not_null(p);
    cr_assert_eq(shmalloc_free(f.heap, p), 0);
}

Test(alloc, absurd_sizes_are_refused)
{
    const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 8191, SIZE_MAX / 2, 1ull << 63, 1ull << 47};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        shmalloc_ref ref = 77;
        must_code(shmalloc_ref_alloc(f.heap, sizes[i], &ref), SHMALLOC_EFULL);
        must_code(shmalloc_ref_alloc_zeroed(f.heap, sizes[i], &ref), SHMALLOC_EFULL);
        must_code(shmalloc_ref_alloc_aligned(f.heap, 1 << 20, sizes[i], &ref), SHMALLOC_EFULL);
        cr_assert_eq(ref, 77, "written on failure");
        cr_assert_null(shmalloc_malloc(f.heap, sizes[i]));
        cr_assert_eq(errno, ENOMEM);
    }
    cr_assert_null(shmalloc_calloc(f.heap, SIZE_MAX / 4, 8));
    cr_assert_null(shmalloc_calloc(f.heap, 1ull << 33, 1ull << 33));
    cr_assert_eq(errno, ENOMEM);
}

Test(alloc, null_out_is_refused)
{
    must_code(shmalloc_ref_alloc(f.heap, 8, NULL), -EINVAL);
    must_code(shmalloc_ref_alloc_zeroed(f.heap, 8, NULL), -EINVAL);
    must_code(shmalloc_ref_alloc_aligned(f.heap, 16, 8, NULL), -EINVAL);
    must_code(shmalloc_ref_alloc_tagged(f.heap, 8, 1, NULL), -EINVAL);
    must_code(shmalloc_ref_dup(f.heap, "x", 1, NULL), -EINVAL);
    must_code(shmalloc_ref_free(f.heap, NULL), -EINVAL);
    must_code(shmalloc_ref_realloc(f.heap, NULL, 8), -EINVAL);
}

/* ---- alignment ---- */

Test(alloc, every_power_of_two_up_to_1_MiB)
{
    const size_t sizes[] = {0, 1, 8, 17, 100, 512, 513, 4000, 8192, 8193, 65536, 65537, 300000};
    for (size_t alignment = 1; alignment <= 1 << 20; alignment *= 2) {
        shmalloc_ref refs[sizeof(sizes) / sizeof(sizes[0])] = {0};
        for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            must_work(shmalloc_ref_alloc_aligned(f.heap, alignment, sizes[i], &refs[i]));
            must(refs[i] % alignment == 0, "%zu bytes, aligned to %zu, at %#llx", sizes[i],
                 alignment, (unsigned long long)refs[i]);
            must((uintptr_t)shmalloc_ptr(f.heap, refs[i]) % alignment == 0, "in memory");
            must(usable(refs[i]) >= sizes[i], "%zu", sizes[i]);
            fill(refs[i], usable(refs[i]), i);
        }
        must_be_sound(f.heap);
        for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            must_hold(refs[i], usable(refs[i]), i);
            release(refs[i]);
        }
    }
}

Test(alloc, bad_alignments_are_refused)
{
    const size_t bad[] = {0, 3, 12, 24, 1000, (1 << 20) + 1, 1 << 21, SIZE_MAX};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        shmalloc_ref ref = 5;
        must_code(shmalloc_ref_alloc_aligned(f.heap, bad[i], 64, &ref), -EINVAL);
        cr_assert_eq(ref, 5);
        errno = 0;
        cr_assert_null(shmalloc_aligned_alloc(f.heap, bad[i], 64));
        cr_assert_eq(errno, EINVAL);
    }
}

Test(alloc, aligned_pointers)
{
    for (size_t alignment = 1; alignment <= 1 << 20; alignment *= 4) {
        void *p = shmalloc_aligned_alloc(f.heap, alignment, 1234);
        must(p && (uintptr_t)p % alignment == 0, "%zu: %p", alignment, p);
        must(shmalloc_usable_size(f.heap, p) >= 1234, "%zu", alignment);
        must_work(shmalloc_free(f.heap, p));
    }
}

/* ---- zeroed and tagged ---- */

/* Dirty blocks first, so that only real zeroing passes. */
static void zeroed_after_dirt(size_t size, int round)
{
    shmalloc_ref dirty[4], clean[4] = {0};
    for (int i = 0; i < 4; i++) {
        dirty[i] = allocate(size);
        memset(shmalloc_ptr(f.heap, dirty[i]), 0xff, usable(dirty[i]));
    }
    for (int i = 0; i < 4; i++)
        release(dirty[i]);
    for (int i = 0; i < 4; i++) {
        if (round == 0)
            must_work(shmalloc_ref_alloc_zeroed(f.heap, size, &clean[i]));
        else if (round == 1)
            must_work(shmalloc_ref_alloc_tagged(f.heap, size, 7, &clean[i]));
        else
            clean[i] = shmalloc_ref_of(f.heap, shmalloc_calloc(f.heap, size / 2 + 1, 2));
        must(all_zero(shmalloc_ptr(f.heap, clean[i]), size), "%zu bytes, way %d", size, round);
    }
    for (int i = 0; i < 4; i++)
        release(clean[i]);
}

Test(alloc, zeroed_blocks_are_zero_on_used_memory)
{
    for (int round = 0; round < 3; round++) {
        for (size_t size = 1; size <= LARGEST_SMALL; size += size / 16 + 1)
            zeroed_after_dirt(size, round);
        zeroed_after_dirt(100000, round);
        zeroed_after_dirt(1 << 20, round);
        zeroed_after_dirt((5 << 20) + 3, round);
        must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    }
}

Test(alloc, zeroed_after_pages_went_to_the_file_system_and_back)
{
    for (int i = 0; i < 3; i++) {
        shmalloc_ref ref = allocate(4 << 20), guard = allocate(1 << 20);
        memset(shmalloc_ptr(f.heap, ref), 0xff, 4 << 20);
        release(ref);
        must(shmalloc_trim(f.heap) > 0, "nothing given back: %s", shmalloc_errmsg());
        must_work(shmalloc_ref_alloc_zeroed(f.heap, 4 << 20, &ref));
        must(all_zero(shmalloc_ptr(f.heap, ref), 4 << 20), "round %d", i);
        memset(shmalloc_ptr(f.heap, ref), 0xff, 4 << 20);
        release(ref);
        must_work(shmalloc_ref_alloc_zeroed(f.heap, 4 << 20, &ref)); /* now dirty, not punched */
        must(all_zero(shmalloc_ptr(f.heap, ref), 4 << 20), "round %d, dirty", i);
        release(ref);
        release(guard);
    }
}

Test(alloc, tags_stay_with_their_blocks)
{
    enum { COUNT = 3000 };
    static shmalloc_ref refs[COUNT];
    struct rng rng = rng_from(1);
    for (int i = 0; i < COUNT; i++) {
        size_t size = 1 + rng_log_uniform(&rng, 17);
        if (i % 3)
            must_work(shmalloc_ref_alloc_tagged(f.heap, size, (uint16_t)(i * 21 + 1), &refs[i]));
        else
            refs[i] = allocate(size);
    }
    for (int i = 0; i < COUNT; i++)
        must(shmalloc_tag(f.heap, refs[i]) == (i % 3 ? (uint16_t)(i * 21 + 1) : 0), "block %d", i);
    for (int i = 0; i < COUNT; i += 2)
        release(refs[i]);
    for (int i = 0; i < COUNT; i += 2) /* untagged blocks in slots that had tags */
        refs[i] = allocate(1 + rng_log_uniform(&rng, 17));
    for (int i = 0; i < COUNT; i++)
        must(shmalloc_tag(f.heap, refs[i]) == (i % 3 && i % 2 ? (uint16_t)(i * 21 + 1) : 0),
             "block %d has tag %u", i, shmalloc_tag(f.heap, refs[i]));
    for (int i = 0; i < COUNT; i++)
        release(refs[i]);
}

Test(alloc, tag_of_what_is_not_a_block_is_0)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc_tagged(f.heap, 100, 0xfeff, &ref));
    cr_assert_eq(shmalloc_tag(f.heap, ref), 0xfeff);
    cr_assert_eq(shmalloc_tag(f.heap, 0), 0);
    cr_assert_eq(shmalloc_tag(f.heap, ref + 1), 0);
    cr_assert_eq(shmalloc_tag(f.heap, 8), 0);
    cr_assert_eq(shmalloc_tag(f.heap, UINT64_MAX), 0);
    cr_assert_eq(shmalloc_tag(f.heap, 1ull << 43), 0);
    release(ref);
}

Test(alloc, tags_of_the_library_are_refused)
{
    const uint16_t tags[] = {0xff00, 0xff01, 0xffff};
    for (unsigned i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
        shmalloc_ref ref = 77;
        must_code(shmalloc_ref_alloc_tagged(f.heap, 100, tags[i], &ref), -EINVAL);
        must(ref == 77, "tag %#x: written on failure", tags[i]);
        char found[32];
        snprintf(found, sizeof(found), "found %#x:", tags[i]);
        must(strstr(shmalloc_errmsg(), "0 to 0xfeff") && strstr(shmalloc_errmsg(), found), "%s",
             shmalloc_errmsg());
    }
    cr_assert_eq(heap_stats(f.heap).allocated_blocks, 0, "nothing was allocated");
}

/* ---- realloc ---- */

static void resize(size_t from, size_t to)
{
    shmalloc_ref ref = allocate(from);
    fill(ref, from, from);
    must_work(shmalloc_ref_realloc(f.heap, &ref, to));
    must(usable(ref) >= to, "%zu to %zu", from, to);
    must_hold(ref, from < to ? from : to, from);
    fill(ref, usable(ref), to); /* all of it is ours */
    must_hold(ref, usable(ref), to);
    release(ref);
}

Test(alloc, realloc_keeps_contents_in_all_directions)
{
    const size_t sizes[] = {1,    8,     9,     16,    17,    500,    512,    513,     1000,
                            4096, 8191,  8192,  8193,  30000, 65535,  65536,  65537,   73728,
                            73729, 100000, 131072, 200000, 1 << 20, (1 << 20) + 1, 3 << 20};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        for (unsigned j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++)
            resize(sizes[i], sizes[j]);
}

Test(alloc, realloc_of_pointers_keeps_contents)
{
    struct rng rng = rng_from(2);
    size_t size = 10;
    void *p = shmalloc_realloc(f.heap, NULL, size); /* NULL allocates */
    for (int i = 0; i < 400; i++) {
        pattern_fill(p, 0, size, (uint64_t)i);
        size_t next = 1 + rng_log_uniform(&rng, 20);
        p = shmalloc_realloc(f.heap, p, next);
        must(p, "%s", shmalloc_errmsg());
        size_t kept = size < next ? size : next;
        must(pattern_check(p, kept, (uint64_t)i) == kept, "step %d: %zu to %zu", i, size, next);
        size = next;
    }
    p = shmalloc_realloc(f.heap, p, 0); /* counts as 1 */
    cr_assert_not_null(p);
    must_work(shmalloc_free(f.heap, p));
}

Test(alloc, realloc_of_0_allocates)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_realloc(f.heap, &ref, 100));
    cr_assert(ref);
    release(ref);
}

Test(alloc, large_blocks_grow_and_shrink_in_place)
{
    shmalloc_ref ref = allocate(1 << 20), was = ref;
    fill(ref, 1 << 20, 3);
    uint64_t allocated = heap_stats(f.heap).allocated;
    must_work(shmalloc_ref_realloc(f.heap, &ref, 512 << 10));
    cr_assert_eq(ref, was, "shrunk in place");
    cr_assert_eq(heap_stats(f.heap).allocated, allocated - (512 << 10), "the rest is free");
    must_work(shmalloc_ref_realloc(f.heap, &ref, 1 << 20));
    cr_assert_eq(ref, was, "the pages behind are free");
    must_hold(ref, 512 << 10, 3);
    must_be_sound(f.heap);
    release(ref);
}

Test(alloc, failed_realloc_leaves_the_block)
{
    shmalloc_ref ref = allocate(1000), was = ref;
    fill(ref, 1000, 4);
    must_code(shmalloc_ref_realloc(f.heap, &ref, 1ull << 50), SHMALLOC_EFULL);
    cr_assert_eq(ref, was);
    must_hold(ref, 1000, 4);
    cr_assert_null(shmalloc_realloc(f.heap, shmalloc_ptr(f.heap, ref), 1ull << 50));
    must_hold(ref, 1000, 4);
    release(ref);
}

Test(alloc, realloc_of_bad_refs_is_refused)
{
    shmalloc_ref good = allocate(1000), bad = good + 16;
    must_code(shmalloc_ref_realloc(f.heap, &bad, 2000), SHMALLOC_EBADREF);
    cr_assert_eq(bad, good + 16);
    bad = 1ull << 42;
    must_code(shmalloc_ref_realloc(f.heap, &bad, 2000), SHMALLOC_EBADREF);
    release(good);
}

/* ---- bad frees ---- */

static void must_refuse(shmalloc_ref ref, int code)
{
    shmalloc_ref given = ref;
    must_code(shmalloc_ref_free(f.heap, &given), code);
    must(given == ref, "the ref changed");
}

Test(alloc, free_of_what_is_no_block_is_refused)
{
    const size_t sizes[] = {8, 16, 48, 1000, 9000, 65536, 65537, 1 << 20};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        shmalloc_ref ref = allocate(sizes[i]);
        must_refuse(ref + 1, SHMALLOC_EBADREF);
        must_refuse(ref + 4, SHMALLOC_EBADREF);
        if (sizes[i] > 8)
            must_refuse(ref + 8, SHMALLOC_EBADREF);
        if (sizes[i] > 8192)
            must_refuse(ref + 8192, SHMALLOC_EBADREF);
        fill(ref, sizes[i], 9);
        release(ref);
    }
    must_refuse(8, SHMALLOC_EBADREF);        /* the header */
    must_refuse(8192, SHMALLOC_EBADREF);     /* the runtime area */
    must_refuse(1ull << 40, SHMALLOC_EBADREF); /* beyond the heap */
    must_refuse(UINT64_MAX, SHMALLOC_EBADREF);
    int mine = 0;
    must_code(shmalloc_free(f.heap, &mine), SHMALLOC_EBADREF);
    must_be_sound(f.heap);
}

Test(alloc, every_metadata_page_of_a_fresh_heap_is_refused)
{
    uint64_t size = heap_stats(f.heap).file_size;
    for (uint64_t ref = 8; ref < size; ref += 4096)
        must_refuse(ref, SHMALLOC_EBADREF);
    must_be_sound(f.heap);
}

Test(alloc, double_frees_that_are_found_at_once)
{
    const size_t sizes[] = {8, 16, 100, 5000, 65536, 65537, 4 << 20};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        shmalloc_ref ref = allocate(sizes[i]), again = ref;
        release(ref);
        int rc = shmalloc_ref_free(f.heap, &again);
        must(rc == (sizes[i] > LARGEST_KEPT ? SHMALLOC_EBADREF : SHMALLOC_EDOUBLEFREE),
             "%zu bytes: %d", sizes[i], rc);
        must(again, "changed");
    }
    must_be_sound(f.heap);
}

Test(alloc, free_of_0_and_NULL_does_nothing)
{
    shmalloc_ref none = 0;
    must_work(shmalloc_ref_free(f.heap, &none));
    must_work(shmalloc_free(f.heap, NULL));
    cr_assert_eq(shmalloc_usable_size(f.heap, NULL), 0);
}

Test(alloc, usable_size_of_what_is_no_block_is_0)
{
    shmalloc_ref ref = allocate(1000);
    char *p = shmalloc_ptr(f.heap, ref);
    int mine = 0;
    cr_assert_eq(shmalloc_usable_size(f.heap, p + 8), 0);
    cr_assert_eq(shmalloc_usable_size(f.heap, &mine), 0);
    release(ref);
}

/* ---- refs and pointers ---- */

Test(alloc, refs_and_pointers_translate_both_ways)
{
    shmalloc_ref ref = allocate(1000);
    char *p = shmalloc_ptr(f.heap, ref);
    uint64_t size = heap_stats(f.heap).file_size;
    int mine = 0;
    cr_assert_eq(shmalloc_ref_of(f.heap, p), ref);
    cr_assert_eq(shmalloc_ref_of(f.heap, p + 999), ref + 999);
    cr_assert_eq(shmalloc_ref_of(f.heap, NULL), 0);
    cr_assert_eq(shmalloc_ref_of(f.heap, &mine), 0);
    cr_assert_null(shmalloc_ptr(f.heap, 0));
    cr_assert_null(shmalloc_ptr(f.heap, size));
    cr_assert_null(shmalloc_ptr(f.heap, UINT64_MAX));
    cr_assert_eq(shmalloc_ptr_range(f.heap, ref, size - ref), p);
    cr_assert_null(shmalloc_ptr_range(f.heap, ref, size - ref + 1));
    cr_assert_null(shmalloc_ptr_range(f.heap, ref, UINT64_MAX));
    release(ref);
}

Test(alloc, pointers_stay_while_the_heap_grows)
{
    shmalloc_ref first = allocate(100), grown = allocate(200 << 20);
    void *p = shmalloc_ptr(f.heap, first);
    fill(first, 100, 5);
    cr_assert_eq(shmalloc_ptr(f.heap, first), p);
    must_hold(first, 100, 5);
    release(grown);
    release(first);
}

/* ---- mixed ---- */

Test(alloc, random_sizes_in_random_order_keep_their_contents)
{
    enum { COUNT = 4000, STEPS = 60000 };
    static shmalloc_ref refs[COUNT];
    static size_t sizes[COUNT];
    struct rng rng = rng_from(test_seed());
    for (int step = 0; step < STEPS; step++) {
        size_t i = rng_below(&rng, COUNT);
        if (refs[i]) {
            must_hold(refs[i], sizes[i], i);
            release(refs[i]);
            refs[i] = 0;
        } else {
            sizes[i] = 1 + rng_log_uniform(&rng, 16);
            refs[i] = allocate(sizes[i]);
            fill(refs[i], sizes[i], i);
        }
    }
    must_be_sound(f.heap);
    for (int i = 0; i < COUNT; i++)
        if (refs[i]) {
            must_hold(refs[i], sizes[i], (uint64_t)i);
            release(refs[i]);
        }
}

/* The heap is a file of the given largest size; fill it to the brim, twice. */
Test(alloc, a_full_heap_says_so_and_goes_on_after_frees)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 8 << 20;
    shmalloc_heap *small;
    must_work(shmalloc_open(fixture_path(&f, "small"), &options, &small));
    struct usage empty = usage_now(small);
    static shmalloc_ref refs[200000];
    int count[2];
    for (int round = 0; round < 2; round++) {
        int n = 0, rc;
        while ((rc = shmalloc_ref_alloc(small, 64, &refs[n])) == 0)
            n++;
        must_code(rc, SHMALLOC_EFULL);
        cr_assert_str_not_empty(shmalloc_errmsg());
        must_be_sound(small);
        count[round] = n;
        while (n-- > 0)
            must_work(shmalloc_ref_free(small, &refs[n]));
        must_be_as_before(small, &empty);
    }
    cr_assert_gt(count[0], 95000, "%d blocks of 64 bytes in 8 MiB", count[0]);
    cr_assert_geq(count[1] + 600, count[0], "%d, then %d blocks", count[0], count[1]);
    must_work(shmalloc_close(small));
}

/* In the heap and outside; all ways that a block is found: fresh, cached, kept, and a realloc's
 * neighbours. */
Test(alloc, duplicates_hold_what_they_are_copies_of)
{
    static uint8_t bytes[300000];
    const size_t sizes[] = {1, 7, 8, 9, 100, 1000, 65535, 65536, 65537, 100000, 300000};
    shmalloc_ref table, outside[3] = {0};
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 3 * sizeof(shmalloc_ref), &table));
    shmalloc_ref *inside = shmalloc_ptr(f.heap, table);
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            for (int k = 0; k < 3; k++) {
                pattern_fill(bytes, 0, sizes[i], i * 9 + (size_t)k);
                must_work(shmalloc_ref_dup(f.heap, bytes, sizes[i], &inside[k]));
                must_work(shmalloc_ref_dup(f.heap, shmalloc_ptr(f.heap, inside[k]), sizes[i],
                                           &outside[k]));
            }
            for (int k = 0; k < 3; k++) {
                const void *copies[] = {shmalloc_ptr(f.heap, inside[k]),
                                        shmalloc_ptr(f.heap, outside[k])};
                for (int c = 0; c < 2; c++) {
                    cr_assert(shmalloc_usable_size(f.heap, copies[c]) >= sizes[i]);
                    cr_assert_eq(pattern_check(copies[c], sizes[i], i * 9 + (size_t)k), sizes[i]);
                }
                memset(shmalloc_ptr(f.heap, inside[k]), 0xee, sizes[i]); /* for who gets it next */
                must_work(shmalloc_ref_free(f.heap, &inside[k]));
                must_work(shmalloc_ref_free(f.heap, &outside[k]));
            }
        }
    must_work(shmalloc_ref_free(f.heap, &table));
}

Test(alloc, duplicates_of_nothing)
{
    shmalloc_ref ref = 77;
    must_code(shmalloc_ref_dup(f.heap, NULL, 1, &ref), -EINVAL);
    must_code(shmalloc_ref_dup(f.heap, NULL, 1 << 20, &ref), -EINVAL);
    must_code(shmalloc_ref_dup(f.heap, "x", 1,
                               (shmalloc_ref *)(void *)((char *)shmalloc_ptr(f.heap, 8) + 1)),
              -EINVAL);
    cr_assert_eq(ref, 77);
    must_work(shmalloc_ref_dup(f.heap, NULL, 0, &ref));
    cr_assert(ref != 77 && shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, ref)) >= 1);
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_ref_dup(f.heap, "x", 0, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
}
