/* SPDX-License-Identifier: MIT */
/*
 * test_hardened.c - the hardened mode, and what the plain mode says about the same mistakes.
 *
 * Hardened heaps promise to find every double and foreign free at once: each case here is one that
 * the plain mode's cheap checks cannot see at once.
 */
#include <pthread.h>
#include <string.h>

#include "heap_suite.h"

HEAP_SUITE(hardened, SHMALLOC_HARDENED, 60);

enum { COUNT = 2000 };
static shmalloc_ref refs[COUNT], copies[COUNT];

static void allocate_all(void)
{
    struct rng rng = rng_from(5);
    for (int i = 0; i < COUNT; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 17), &refs[i]));
        copies[i] = refs[i];
    }
}

Test(hardened, double_frees_are_found_however_long_ago)
{
    allocate_all();
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    for (int i = 0; i < COUNT; i++) {
        int rc = shmalloc_ref_free(f.heap, &copies[i]);
        must(rc == SHMALLOC_EDOUBLEFREE || rc == SHMALLOC_EBADREF, "block %d: %d", i, rc);
    }
    must_be_sound(f.heap);
}

static void *free_again(void *arg)
{
    (void)arg;
    for (int i = 0; i < COUNT; i++)
        must(shmalloc_ref_free(f.heap, &copies[i]) < 0, "block %d was freed twice", i);
    return NULL;
}

Test(hardened, double_frees_by_another_thread_are_found)
{
    allocate_all();
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    pthread_t thread;
    pthread_create(&thread, NULL, free_again, NULL);
    pthread_join(thread, NULL);
}

Test(hardened, slots_never_handed_out_are_foreign)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    int refused = 0;
    for (shmalloc_ref other = ref - 64 * 20; other <= ref + 64 * 20; other += 64) {
        shmalloc_ref word = other;
        if (other != ref)
            refused += shmalloc_ref_free(f.heap, &word) < 0;
    }
    cr_assert_eq(refused, 40);
    must_work(shmalloc_ref_free(f.heap, &ref));
}

Test(hardened, reallocated_and_pointer_blocks_are_guarded_too)
{
    void *p = shmalloc_malloc(f.heap, 100), *q = shmalloc_malloc(f.heap, 100);
    void *moved = shmalloc_realloc(f.heap, p, 5000);
    cr_assert_neq(moved, p);
    must_code(shmalloc_free(f.heap, p), SHMALLOC_EDOUBLEFREE);
    cr_assert_null(shmalloc_realloc(f.heap, p, 10));
    must_work(shmalloc_free(f.heap, q));
    must_work(shmalloc_free(f.heap, moved));
    must_code(shmalloc_free(f.heap, q), SHMALLOC_EDOUBLEFREE);
}

Test(hardened, everything_else_works_as_in_plain_heaps)
{
    struct rng rng = rng_from(6);
    static size_t sizes[COUNT];
    memset(refs, 0, sizeof(refs));
    for (int step = 0; step < 20000; step++) {
        size_t i = rng_below(&rng, COUNT);
        if (refs[i] && step % 3 == 0) {
            size_t old = sizes[i];
            sizes[i] = 1 + rng_log_uniform(&rng, 15);
            must_work(shmalloc_ref_realloc(f.heap, &refs[i], sizes[i]));
            size_t kept = old < sizes[i] ? old : sizes[i];
            must(pattern_check(shmalloc_ptr(f.heap, refs[i]), kept, i) == kept, "block %zu", i);
            pattern_fill(shmalloc_ptr(f.heap, refs[i]), 0, sizes[i], i);
        } else if (refs[i]) {
            must_work(shmalloc_ref_free(f.heap, &refs[i]));
        } else {
            sizes[i] = 1 + rng_log_uniform(&rng, 15);
            must_work(step % 2 ? shmalloc_ref_alloc_tagged(f.heap, sizes[i], 9, &refs[i])
                               : shmalloc_ref_alloc(f.heap, sizes[i], &refs[i]));
            pattern_fill(shmalloc_ptr(f.heap, refs[i]), 0, sizes[i], i);
        }
    }
    must_be_sound(f.heap);
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
}

Test(hardened, the_mode_stays_with_the_heap)
{
    shmalloc_ref a = 0, b = 0;
    fixture_reopen(&f);
    must_work(shmalloc_ref_alloc(f.heap, 64, &a));
    must_work(shmalloc_ref_alloc(f.heap, 64, &b));
    shmalloc_ref again = a;
    must_work(shmalloc_ref_free(f.heap, &a));
    must_work(shmalloc_ref_free(f.heap, &b)); /* so that `a` is not the last one freed */
    must_code(shmalloc_ref_free(f.heap, &again), SHMALLOC_EDOUBLEFREE);
}

/* In a plain heap such a double free shows when the cache is emptied: counted and reported, not
 * fatal. */
Test(hardened, plain_heaps_count_double_frees_when_caches_are_emptied)
{
    shmalloc_heap *plain = heap_create(fixture_path(&f, "plain"), 0);
    shmalloc_ref a = 0, b = 0;
    must_work(shmalloc_ref_alloc(plain, 64, &a));
    must_work(shmalloc_ref_alloc(plain, 64, &b));
    shmalloc_ref again = a;
    must_work(shmalloc_ref_free(plain, &a));
    must_work(shmalloc_ref_free(plain, &b));
    int rc = shmalloc_ref_free(plain, &again);
    cr_assert(rc == 0 || rc == SHMALLOC_EDOUBLEFREE, "%d", rc);
    shmalloc_trim(plain);
    if (rc == 0)
        cr_assert_eq(heap_stats(plain).double_frees, 1);
    must_be_sound(plain);
    cr_assert_eq(heap_stats(plain).allocated, 0);
    must_work(shmalloc_close(plain));
}

/* Blocks of this size have a slab each, which goes back as soon as its slot does: the second copy
 * in the cache is then no slot of anything. That must not condemn a heap that is sound. */
Test(hardened, double_frees_of_slots_whose_slab_is_gone_do_not_poison)
{
    shmalloc_heap *plain = heap_create(fixture_path(&f, "plain"), 0);
    shmalloc_ref a = 0, b = 0, c = 0;
    must_work(shmalloc_ref_alloc(plain, 65536, &a));
    must_work(shmalloc_ref_alloc(plain, 65536, &b));
    must_work(shmalloc_ref_alloc(plain, 65536, &c));
    shmalloc_ref again = a;
    shmalloc_ref_free(plain, &a);
    shmalloc_ref_free(plain, &c);
    shmalloc_ref_free(plain, &again);
    shmalloc_ref_free(plain, &b);
    shmalloc_trim(plain);
    must_work(shmalloc_ref_alloc(plain, 65536, &b));
    must_work(shmalloc_ref_free(plain, &b));
    must_work(shmalloc_close(plain));
}
