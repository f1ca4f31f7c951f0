/* SPDX-License-Identifier: MIT */
/* test_sync.c - which ranges shmalloc_sync takes; what it makes durable needs a power cut to
 * see. */
#include <stdio.h>

#include "heap_suite.h"

HEAP_SUITE(sync, 0, 20);

Test(sync, ranges_inside_the_heap)
{
    shmalloc_ref small = 0, large = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &small));
    must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &large));
    must_work(shmalloc_sync(f.heap, 0, 0));
    must_work(shmalloc_sync(f.heap, small, 100));
    must_work(shmalloc_sync(f.heap, small + 3, 1));
    must_work(shmalloc_sync(f.heap, large + 5000, 77777));
    uint64_t size = heap_stats(f.heap).file_size;
    must_work(shmalloc_sync(f.heap, size - 1, 1));
    must_work(shmalloc_ref_free(f.heap, &small));
    must_work(shmalloc_ref_free(f.heap, &large));
}

Test(sync, ranges_outside_are_refused)
{
    uint64_t size = heap_stats(f.heap).file_size;
    must_code(shmalloc_sync(f.heap, size, 1), SHMALLOC_EBADREF);
    must_code(shmalloc_sync(f.heap, size - 1, 2), SHMALLOC_EBADREF);
    must_code(shmalloc_sync(f.heap, 8192, UINT64_MAX), SHMALLOC_EBADREF);
    must_code(shmalloc_sync(f.heap, UINT64_MAX, 1), SHMALLOC_EBADREF);
}

Test(sync, what_was_synced_is_in_the_file)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 5000, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, 5000, 1);
    must_work(shmalloc_sync(f.heap, ref, 5000));
    char bytes[5000];
    FILE *file = fopen(f.path, "r");
    cr_assert(file && fseek(file, (long)ref, SEEK_SET) == 0 && fread(bytes, 5000, 1, file) == 1);
    fclose(file);
    cr_assert_eq(pattern_check(bytes, 5000, 1), 5000);
    must_work(shmalloc_ref_free(f.heap, &ref));
}
