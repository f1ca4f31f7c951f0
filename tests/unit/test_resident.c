/* SPDX-License-Identifier: MIT */
/*
 * test_resident.c - prefault and huge pages: what they obtain, and that holes stay holes.
 *
 * The heaps are made and opened in children, so that nothing of the maker's mapping is there
 * already.
 */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(resident, 0, 60);

enum { NOT_POSSIBLE = 77, BLOCKS = 32, SIZE = 1 << 20 };

struct opening {
    char path[256];
    unsigned flags;
    uint64_t prefaulted, huge;
    long faults; /* of reading all blocks */
};

static uint64_t storage(const char *path)
{
    struct stat st;
    must(stat(path, &st) == 0, "stat");
    return (uint64_t)st.st_blocks * 512;
}

/* 32 MiB in blocks of 1 MiB that are named by a root, every eighth of them a hole. */
static int fill(void *arg)
{
    struct opening *o = arg;
    shmalloc_heap *heap = heap_create(o->path, 0);
    shmalloc_ref table;
    must(shmalloc_root_get_or_create(heap, "table", 0, BLOCKS * sizeof(table), NULL, NULL,
                                     &table) == SHMALLOC_CREATED,
         "%s", shmalloc_errmsg());
    shmalloc_ref *refs = shmalloc_ptr(heap, table);
    for (int i = 0; i < BLOCKS; i++) {
        must_work(shmalloc_ref_alloc(heap, SIZE, &refs[i]));
        memset(shmalloc_ptr(heap, refs[i]), i + 1, SIZE);
    }
    for (int i = 0; i < BLOCKS; i += 8)
        must_work(shmalloc_ref_free(heap, &refs[i]));
    must(shmalloc_trim(heap) >= BLOCKS / 8 * SIZE, "no holes");
    return shmalloc_close(heap) < 0;
}

static long faults_so_far(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}

/* Look at each page of all blocks; the index of a wrong one, or -1. Without the sanitizer's looks
 * at memory of its own, which cost faults too. */
__attribute__((no_sanitize("address"))) static int read_all(const shmalloc_heap *heap,
                                                            const shmalloc_ref *refs)
{
    for (int i = 0; i < BLOCKS; i++) {
        const volatile uint8_t *block = shmalloc_ptr(heap, refs[i]);
        for (size_t at = 0; block && at < SIZE; at += 4096)
            if (block[at] != i + 1)
                return i;
    }
    return -1;
}

static int open_and_read(void *arg)
{
    struct opening *o = arg;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    shmalloc_ref table;
    options.flags = o->flags;
    must_work(shmalloc_open(o->path, &options, &heap));
    shmalloc_stats stats = heap_stats(heap);
    o->prefaulted = stats.prefaulted;
    o->huge = stats.huge;
    must_work(shmalloc_root_get(heap, "table", 0, &table));
    const shmalloc_ref *refs = shmalloc_ptr(heap, table);
    long before_reading = faults_so_far();
    must(read_all(heap, refs) < 0, "a block has changed");
    o->faults = faults_so_far() - before_reading;
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

static struct opening *open_filled(const char *path, unsigned flags)
{
    struct opening *o = shared_memory(sizeof(*o));
    snprintf(o->path, sizeof(o->path), "%s", path);
    o->flags = flags;
    if (access(path, F_OK) < 0)
        must(run_child(fill, o) == 0, "filling");
    must(run_child(open_and_read, o) == 0, "opening");
    fprintf(stderr, "flags %u: %llu KiB prefaulted, %llu KiB huge, %ld faults\n", flags,
            (unsigned long long)o->prefaulted >> 10, (unsigned long long)o->huge >> 10, o->faults);
    return o;
}

/* 28 blocks of 1 MiB are stored. The kernel maps up to 16 pages with one fault. */
static void must_prefault(unsigned flags)
{
    const char *path = fixture_path(&f, "filled");
    struct opening *lazy = open_filled(path, flags);
    uint64_t stored = storage(path);
    struct opening *eager = open_filled(path, flags | SHMALLOC_PREFAULT);
    cr_assert_leq(storage(path), stored + (128 << 10), "%llu bytes of 4 MiB of holes got storage",
                  (unsigned long long)(storage(path) - stored));
    cr_assert_eq(lazy->prefaulted, 0);
    cr_assert_gt(lazy->faults, 300);
    cr_assert_geq(eager->prefaulted, 28 << 20);
    cr_assert_leq(eager->prefaulted, storage(path));
    cr_assert_leq(eager->faults, 8);
}

Test(resident, prefault_leaves_no_faults_to_reading)
{
    must_prefault(0);
}

Test(resident, prefault_works_read_only)
{
    must_prefault(SHMALLOC_READ_ONLY);
}

/* The same handle: what is asked for later is done then. */
Test(resident, prefault_of_a_heap_that_is_open)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *again;
    cr_assert_eq(heap_stats(f.heap).prefaulted, 0);
    options.flags = SHMALLOC_PREFAULT;
    must_work(shmalloc_open(f.path, &options, &again));
    cr_assert_eq(again, f.heap);
    cr_assert_geq(heap_stats(f.heap).prefaulted, 300 << 10, "the fixed areas alone are more");
    must_work(shmalloc_close(again));
}

static int on_huge_tmpfs(void *arg)
{
    char path[256];
    (void)arg;
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", f.dir, "tmpfs", 0, "size=128m,huge=always") < 0)
        return NOT_POSSIBLE;
    snprintf(path, sizeof(path), "%s/filled", f.dir);
    must(open_filled(path, 0)->huge == 0, "huge pages are told of to who did not ask");
    /* How many there are depends on how scattered the machine's free memory is. */
    must(open_filled(path, SHMALLOC_HUGE_PAGES)->huge >= 2 << 20, "no huge pages");
    struct opening *both = open_filled(path, SHMALLOC_HUGE_PAGES | SHMALLOC_PREFAULT);
    must(both->huge >= 2 << 20 && both->prefaulted >= 28 << 20 && both->faults <= 8,
         "too little of both");
    return 0;
}

Test(resident, huge_pages_where_the_file_system_has_them)
{
    int status = access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0
                     ? run_child(on_huge_tmpfs, NULL)
                     : NOT_POSSIBLE;
    if (status == NOT_POSSIBLE)
        cr_skip_test("no huge pages, or no mount namespace");
    cr_assert_eq(status, 0, "%d", status);
}

/* Asking where there are none costs nothing and fails nothing. */
Test(resident, huge_pages_are_a_wish)
{
    setenv("SHMALLOC_TEST_DIR", "/var/tmp", 0);
    struct fixture disk;
    fixture_begin(&disk);
    struct opening *o = open_filled(disk.path, SHMALLOC_HUGE_PAGES);
    cr_assert_leq(o->huge, 32 << 20);
    fixture_end(&disk);
}
