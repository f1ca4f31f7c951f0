/* SPDX-License-Identifier: MIT */
/*
 * growth.c - rows A1 to A3: two ways of allocating, growth at the tail, giving back below a live
 * tail.
 *
 * Would fail if the limit between slots and spans moved, the file grew in small steps or in spite
 * of free storage, or a live block at the end kept the storage below it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "rows.h"

ROWS_SUITE(60);

static void check_threshold(void)
{
    shmalloc_ref small = 0, large = 0;
    must_work(shmalloc_ref_alloc(f.heap, SMI_MAX_SMALL, &small));
    must_work(shmalloc_ref_alloc(f.heap, SMI_MAX_SMALL + 1, &large));
    cr_assert_eq(rows_kind(f.path, small), SMF_PAGE_SLAB, "%u bytes", SMI_MAX_SMALL);
    cr_assert_eq(rows_kind(f.path, large), SMF_PAGE_LARGE, "%u bytes", SMI_MAX_SMALL + 1);
    must_work(shmalloc_ref_free(f.heap, &small));
    must_work(shmalloc_ref_free(f.heap, &large));
}

Test(rows, a01_threshold_between_class_and_span)
{
    f.heap = heap_create(f.path, 0);
    check_threshold();
    fixture_reopen(&f);
    check_threshold();
    cr_assert_eq(smi_classes[f.heap->header->class_count - 1].size, SMI_MAX_SMALL,
                 "the file says it, too");
}

enum { SMALL = 200000, SMALL_SIZE = 1000 };
static shmalloc_ref refs[SMALL];

static void fill(void)
{
    for (int i = 0; i < SMALL; i++)
        must_work(shmalloc_ref_alloc(f.heap, SMALL_SIZE, &refs[i]));
}

static void drain(void)
{
    for (int i = 0; i < SMALL; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
}

Test(rows, a02_growth_is_geometric)
{
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    uint64_t initial = heap_stats(f.heap).file_size, most = 2;
    fill();
    uint64_t final = heap_stats(f.heap).file_size, grows = f.heap->page_heap->grows;
    for (uint64_t size = initial; size < final; most++) /* steps of a MiB at first, then of an
                                                           eighth */
        size += size / 8 > 1 << 20 ? size / 8 : 1 << 20;
    fprintf(stderr, "%llu steps from %llu to %llu bytes\n", (unsigned long long)grows,
            (unsigned long long)initial, (unsigned long long)final);
    cr_assert_leq(grows, most);
    cr_assert_geq(grows, 1);
    cr_assert_leq(final, SMALL * 1024ull * 5 / 4, "grown far ahead");
    drain();
}

Test(rows, a02_free_space_is_used_before_growth)
{
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    fill();
    shmalloc_stats first = heap_stats(f.heap);
    for (int round = 0; round < 3; round++) {
        drain();
        fill();
    }
    shmalloc_stats last = heap_stats(f.heap);
    cr_assert_eq(last.file_size, first.file_size);
    cr_assert_eq(last.chunks, first.chunks);
    drain();
}

static int reads_last(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "last", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 1 << 20, *(uint64_t *)arg) == 1 << 20, "contents");
    return shmalloc_close(heap) < 0;
}

Test(rows, a03_a_live_tail_does_not_pin_the_storage_below)
{
    struct statvfs fs;
    cr_assert_eq(statvfs(f.dir, &fs), 0);
    uint64_t count = fs.f_bavail * fs.f_frsize > 3ull << 30 ? 1024 : 64, last = 0, stamp = 3;
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    for (uint64_t i = 0; i < count; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &refs[i]));
        last = refs[i] > refs[last] ? i : last;
    }
    pattern_fill(shmalloc_ptr(f.heap, refs[last]), 0, 1 << 20, stamp);
    must_work(shmalloc_root_set(f.heap, "last", 0, refs[last]));
    uint64_t before = rows_storage(f.path);
    cr_assert_geq(before, count << 20);
    for (uint64_t i = 0; i < count; i++)
        if (i != last)
            must_work(shmalloc_ref_free(f.heap, &refs[i]));
    int64_t given = shmalloc_trim(f.heap);
    cr_assert_geq(given, (int64_t)(count - 1) << 20);
    cr_assert_lt(rows_storage(f.path), before / 20, "%llu of %llu bytes are left",
                 (unsigned long long)rows_storage(f.path), (unsigned long long)before);
    cr_assert_eq(run_child(reads_last, &stamp), 0);
}
