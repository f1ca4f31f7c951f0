/* SPDX-License-Identifier: MIT */
/*
 * test_trim.c - memory goes back to the file system and the file gets shorter, and what is kept
 * stays.
 *
 * Would fail if a page in use were punched, a punched page handed out without storage or believed
 * to be dirty, or a tail in use cut off.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(trim, 0, 60);

static uint64_t storage(void)
{
    struct stat st;
    must(stat(f.path, &st) == 0, "stat");
    return (uint64_t)st.st_blocks * 512;
}

static int64_t trim(void)
{
    int64_t bytes = shmalloc_trim(f.heap);
    must(bytes >= 0, "trim: %s", shmalloc_errmsg());
    return bytes;
}

Test(trim, everything_freed_goes_back)
{
    uint64_t before_storage = storage(), before_size = heap_stats(f.heap).file_size;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 64 << 20, &ref));
    memset(shmalloc_ptr(f.heap, ref), 1, 64 << 20);
    must_work(shmalloc_ref_free(f.heap, &ref));
    cr_assert_geq(storage(), 64u << 20);
    cr_assert_geq(trim(), 64 << 20);
    cr_assert_eq(heap_stats(f.heap).file_size, before_size, "the tail is cut off");
    cr_assert_leq(storage(), before_storage + (1 << 20));
    cr_assert_leq(trim(), 0, "nothing left to give");
}

/* 64 MiB are used and freed while nothing goes back by itself; then the heap gets this policy and
 * is closed `wait_ms` later. */
static uint64_t stored_after_close(uint64_t decay_ms, uint64_t retain, unsigned wait_ms)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_set_give_back(f.heap, SHMALLOC_NEVER, 0));
    must_work(shmalloc_ref_alloc(f.heap, 64 << 20, &ref));
    memset(shmalloc_ptr(f.heap, ref), 1, 64 << 20);
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_set_give_back(f.heap, decay_ms, retain));
    usleep(wait_ms * 1000);
    cr_assert_geq(storage(), 64u << 20);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    uint64_t stored = storage();
    must_be_sound_on_disk(f.path);
    f.heap = heap_open(f.path);
    must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    must_work(shmalloc_set_give_back(f.heap, 10000, 0));
    return stored;
}

Test(trim, the_last_close_does_what_is_due)
{
    cr_assert_leq(stored_after_close(0, 0, 0), 2u << 20);
    cr_assert_leq(stored_after_close(50, 0, 100), 2u << 20);
    uint64_t retained = stored_after_close(0, 20 << 20, 0);
    cr_assert(retained >= 20u << 20 && retained <= 23u << 20, "%llu", (unsigned long long)retained);
    cr_assert_geq(stored_after_close(100000, 0, 0), 64u << 20, "it was not free that long");
    cr_assert_geq(stored_after_close(SHMALLOC_NEVER, 0, 0), 64u << 20);
}

static int close_in_child(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref ref = 0;
    must_work(shmalloc_set_give_back(heap, SHMALLOC_NEVER, 0));
    must_work(shmalloc_ref_alloc(heap, 8 << 20, &ref));
    memset(shmalloc_ptr(heap, ref), 1, 8 << 20);
    must_work(shmalloc_ref_free(heap, &ref));
    must_work(shmalloc_set_give_back(heap, 0, 0));
    return shmalloc_close(heap) < 0;
}

Test(trim, a_close_that_is_not_the_last_gives_nothing)
{
    cr_assert_eq(run_child(close_in_child, NULL), 0);
    cr_assert_geq(storage(), 8u << 20);
    must(trim() >= 8 << 20, "the child gave it back");
    must_work(shmalloc_set_give_back(f.heap, 10000, 0));
}

enum { COUNT = 200 };
static shmalloc_ref refs[COUNT];

Test(trim, what_is_kept_keeps_its_contents)
{
    for (int i = 0; i < COUNT; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 300000, &refs[i]));
        pattern_fill(shmalloc_ptr(f.heap, refs[i]), 0, 300000, (uint64_t)i);
    }
    for (int i = 0; i < COUNT; i += 2)
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    cr_assert_gt(trim(), COUNT / 2 * 250000);
    must_be_sound(f.heap);
    for (int i = 1; i < COUNT; i += 2)
        cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, refs[i]), 300000, (uint64_t)i), 300000);
    for (int i = 0; i < COUNT; i += 2) { /* into the holes */
        must_work(shmalloc_ref_alloc(f.heap, 300000, &refs[i]));
        pattern_fill(shmalloc_ptr(f.heap, refs[i]), 0, 300000, (uint64_t)i);
    }
    trim();
    for (int i = 0; i < COUNT; i++) {
        cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, refs[i]), 300000, (uint64_t)i), 300000);
        must_work(shmalloc_ref_free(f.heap, &refs[i]));
    }
}

Test(trim, slabs_and_caches_go_back_too)
{
    enum { SMALL = 200000 };
    static shmalloc_ref small[SMALL];
    for (int i = 0; i < SMALL; i++)
        must_work(shmalloc_ref_alloc(f.heap, 100, &small[i]));
    for (int i = 0; i < SMALL; i++)
        must_work(shmalloc_ref_free(f.heap, &small[i]));
    cr_assert_gt(trim(), SMALL * 90);
    shmalloc_stats s = heap_stats(f.heap);
    cr_assert_eq(s.cached, 0);
    cr_assert_eq(s.central_free, 0, "empty slabs are kept");
}

static int uses_heap_across_growth(void *arg)
{
    uint32_t *turn = arg;
    shmalloc_heap *heap = fixture_join(&f);
    for (uint32_t i = 0; i < 20; i++) {
        await_word(&turn[0], i + 1); /* the parent has cut the file and grown it again */
        shmalloc_ref ref;
        must_work(shmalloc_root_get(heap, "grown", 0, &ref));
        must(pattern_check(shmalloc_ptr(heap, ref), 8 << 20, i) == 8 << 20, "round %u", i);
        must_work(shmalloc_ref_free(heap, &ref));
        must(shmalloc_trim(heap) >= 0, "%s", shmalloc_errmsg());
        signal_word(&turn[1]);
    }
    return shmalloc_close(heap) < 0;
}

/* Any ref can be asked about, also one that lies beyond a cut. */
static void ask_about_everything(const uint8_t *base)
{
    for (uint64_t ref = 1; ref < 24 << 20; ref += 9973) {
        size_t size = shmalloc_usable_size(f.heap, base + ref);
        cr_assert(size == 0 || shmalloc_ptr_range(f.heap, ref, size), "%#llx: %zu",
                  (unsigned long long)ref, size);
        cr_assert_eq(shmalloc_tag(f.heap, ref), 0);
    }
}

Test(trim, other_processes_follow_cuts_and_growth)
{
    uint32_t *turn = shared_memory(8);
    pid_t pid = start_child(uses_heap_across_growth, turn);
    for (uint32_t i = 0; i < 20; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 8 << 20, &ref));
        const uint8_t *block = shmalloc_ptr(f.heap, ref);
        cr_assert_eq(shmalloc_usable_size(f.heap, block), 8 << 20);
        pattern_fill(shmalloc_ptr(f.heap, ref), 0, 8 << 20, i);
        must_work(shmalloc_root_set(f.heap, "grown", 0, ref));
        signal_word(&turn[0]);
        await_word(&turn[1], i + 1);
        cr_assert_eq(shmalloc_usable_size(f.heap, block), 0); /* it lies beyond the end now */
        ask_about_everything(block - ref);
        must_code(shmalloc_ref_free(f.heap, &ref), SHMALLOC_EBADREF);
        must_be_sound(f.heap);
    }
    cr_assert_eq(wait_child(pid), 0);
    must_work(shmalloc_root_remove(f.heap, "grown"));
}

static int grow_and_cut(void *arg)
{
    uint32_t *stop = arg;
    shmalloc_heap *heap = fixture_join(&f);
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(heap, 4 << 20, &ref));
        must_work(shmalloc_ref_free(heap, &ref));
        must(shmalloc_trim(heap) >= 0, "%s", shmalloc_errmsg());
    }
    return shmalloc_close(heap) < 0;
}

static int count_block(const shmalloc_block *block, void *arg)
{
    (void)block;
    ++*(int *)arg;
    return 0;
}

/* Walkers look at metadata of a tail that another process is cutting off: no SIGBUS; nor in front
 * of it. */
Test(trim, readers_survive_a_file_that_is_cut_under_them)
{
    uint32_t *stop = shared_memory(4);
    shmalloc_ref small = 0, large = 0;
    must_work(shmalloc_ref_alloc_tagged(f.heap, 100, 7, &small));
    must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &large));
    pid_t pid = start_child(grow_and_cut, stop);
    for (uint64_t end = now_ns() + 1500000000ull; now_ns() < end;) {
        int count = 0;
        heap_stats(f.heap);
        must_work(shmalloc_each_block(f.heap, count_block, &count));
        must_be_sound(f.heap);
        for (int i = 0; i < 100; i++) {
            cr_assert_geq(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, small)), 100);
            cr_assert_geq(shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, large)), 1 << 20);
            cr_assert_eq(shmalloc_tag(f.heap, small), 7);
        }
    }
    *stop = 1;
    cr_assert_eq(wait_child(pid), 0);
    must_work(shmalloc_ref_free(f.heap, &small));
    must_work(shmalloc_ref_free(f.heap, &large));
}

Test(trim, read_only_handles_cannot)
{
    must_work(shmalloc_close(f.heap));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    cr_assert_eq(shmalloc_trim(f.heap), SHMALLOC_EREADONLY);
    fixture_reopen(&f);
}
