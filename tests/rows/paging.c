/* SPDX-License-Identifier: MIT */
/*
 * paging.c - rows A22 to A24, A27 to A29: what opening, growing and a second reader cost, heaps
 * larger than memory, numbers of fragmentation.
 *
 * Costs are counted (system calls, pages, mappings), not timed. Would fail if opening looked at
 * what the heap holds, growth left mappings behind, allocation paged user data in, or a number
 * differed from what a walk finds.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rows.h"

ROWS_SUITE(90);

/* ---- A22 ---- */

/* Is there so much room where the fixture is? */
static int has_room(uint64_t bytes)
{
    struct statvfs fs;
    return statvfs(f.dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize > bytes;
}

struct opening {
    char path[256];
    uint64_t faults;
    struct rows_calls calls;
};

static int open_counted(void *arg)
{
    struct opening *o = arg;
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    rows_mark_begin();
    shmalloc_heap *heap = heap_open(o->path);
    rows_mark_end();
    getrusage(RUSAGE_SELF, &after);
    o->faults = (uint64_t)(after.ru_minflt - before.ru_minflt + after.ru_majflt - before.ru_majflt);
    return shmalloc_close(heap) < 0;
}

static int cost_of_opening(struct opening *o, uint64_t initial_size)
{
    snprintf(o->path, sizeof(o->path), "%s", fixture_path(&f, initial_size ? "large" : "small"));
    must_work(shmalloc_close(rows_heap(o->path, initial_size, 0, 0)));
    static struct rows_calls calls;
    int status = rows_count_calls(open_counted, o, &calls);
    o->calls = calls;
    return status;
}

Test(rows, a22_opening_costs_the_same_at_1_MiB_and_100_GiB)
{
    struct opening *o = shared_memory(2 * sizeof(*o));
    rows_on_disk(&f);
    if (!has_room(4ull << 30))
        ROWS_SKIP("the metadata of 100 GiB needs 1 GiB of disk");
    int status = cost_of_opening(&o[0], 0);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("ptrace is not permitted");
    cr_assert_eq(status, 0);
    cr_assert_eq(cost_of_opening(&o[1], 100ull << 30), 0);
    fprintf(
        stderr,
        "1 MiB: %llu calls, %llu faults; 100 GiB: %llu calls, %llu faults; %llu MiB of storage\n",
        (unsigned long long)o[0].calls.total, (unsigned long long)o[0].faults,
        (unsigned long long)o[1].calls.total, (unsigned long long)o[1].faults,
        (unsigned long long)rows_storage(o[1].path) >> 20);
    cr_assert_leq(o[1].calls.total, o[0].calls.total + 2);
    cr_assert_leq(o[1].faults, o[0].faults * 2 + 16);
}

/* How many of a path's folders are links is asked for each of them, and the C library may ask for
 * memory. */
static uint64_t calls_of_our_own(const struct rows_calls *calls)
{
    return calls->total - calls->of[SYS_readlink] - calls->of[SYS_brk];
}

static int close_counted(void *arg)
{
    shmalloc_heap *heap = heap_open(arg);
    rows_mark_begin();
    int rc = shmalloc_close(heap);
    rows_mark_end();
    return rc < 0;
}

/* Nothing is asked of the kernel twice without need. */
Test(rows, a22_opening_and_closing_take_few_calls)
{
    static struct rows_calls closing;
    struct opening *o = shared_memory(sizeof(*o));
    int status = cost_of_opening(o, 0);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("ptrace is not permitted");
    cr_assert_eq(status, 0);
    cr_assert_eq(rows_count_calls(close_counted, o->path, &closing), 0);
    fprintf(stderr, "open %llu calls, close %llu\n",
            (unsigned long long)calls_of_our_own(&o->calls),
            (unsigned long long)calls_of_our_own(&closing));
    cr_assert_leq(calls_of_our_own(&o->calls), 44);
    cr_assert_leq(calls_of_our_own(&closing), 18);
    cr_assert_leq(o->calls.of[SYS_lseek] + closing.of[SYS_lseek], 9);
}

/* ---- A23 ---- */

/* Bytes of the heap that are in this process's page tables. */
static uint64_t resident(const shmalloc_heap *heap)
{
    return rows_mapped(heap->base, heap->reserved, "Rss");
}

static int opens_lazily(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_open(f.path);
    uint64_t bytes = resident(heap);
    fprintf(stderr, "%llu KiB after open\n", (unsigned long long)bytes >> 10);
    must(bytes > 0 && bytes < 1 << 20, "%llu bytes after open", (unsigned long long)bytes);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 100, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    must(resident(heap) < 2 << 20, "%llu bytes after a first block",
         (unsigned long long)resident(heap));
    return shmalloc_close(heap) < 0;
}

Test(rows, a23_opening_pages_little_in)
{
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < 100; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &ref));
        memset(shmalloc_ptr(f.heap, ref), 1, 1 << 20);
    }
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    cr_assert_eq(run_child(opens_lazily, NULL), 0);
}

/* ---- A24 ---- */

Test(rows, a24_a_thousand_growths_add_no_mappings)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0, kept = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    unsigned before = rows_mappings();
    while (f.heap->page_heap->grows < 1000) {
        must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &ref));
        must_work(shmalloc_ref_alloc(f.heap, 100000, &kept)); /* a hole below each */
        must_work(shmalloc_ref_free(f.heap, &ref));
        must_work(shmalloc_ref_free(f.heap, &kept));
        must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
    }
    cr_assert_leq(rows_mappings(), before + 2, "%u mappings, there were %u", rows_mappings(),
                  before);
}

/* ---- A27 ---- */

enum { DATA = 64 << 20 };

struct reading {
    uint32_t first_has_read, second_has_read;
    long major_faults[2];
    uint64_t rss, pss;
};

static void read_all(const shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "data", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), DATA, 5) == DATA, "contents");
}

static int reader(void *arg)
{
    struct reading *r = arg;
    int second = __atomic_load_n(&r->first_has_read, __ATOMIC_ACQUIRE) != 0;
    struct rusage before, after;
    shmalloc_heap *heap = heap_open(f.path);
    getrusage(RUSAGE_SELF, &before);
    read_all(heap);
    getrusage(RUSAGE_SELF, &after);
    r->major_faults[second] = after.ru_majflt - before.ru_majflt;
    if (second) {
        r->rss = resident(heap);
        r->pss = rows_mapped(heap->base, heap->reserved, "Pss");
        signal_word(&r->second_has_read);
    } else {
        signal_word(&r->first_has_read);
        await_word(&r->second_has_read, 1);
    }
    return shmalloc_close(heap) < 0;
}

Test(rows, a27_a_second_reader_costs_no_disk_and_no_copy)
{
    struct reading *r = shared_memory(sizeof(*r));
    rows_on_disk(&f);
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, DATA, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, DATA, 5);
    must_work(shmalloc_root_set(f.heap, "data", 0, ref));
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    int fd = open(f.path, O_RDONLY); /* out of the page cache */
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    pid_t first = start_child(reader, r);
    await_word(&r->first_has_read, 1);
    cr_assert_eq(run_child(reader, r), 0);
    cr_assert_eq(wait_child(first), 0);
    fprintf(stderr,
            "major faults: %ld, then %ld; second reader: %llu MiB resident, %llu MiB its share\n",
            r->major_faults[0], r->major_faults[1], (unsigned long long)r->rss >> 20,
            (unsigned long long)r->pss >> 20);
    cr_assert_leq(r->major_faults[1], 2);
    cr_assert_geq(r->rss, DATA);
    cr_assert_lt(r->pss, r->rss * 6 / 10);
}

/* ---- A28 ---- */

#define LIMIT (24ull << 20)
#define OUT_OF_CORE (4 * LIMIT)
enum { PIECE = 1 << 20, PIECES = OUT_OF_CORE / PIECE, NODE = 4096 };

static int fill_beyond_memory(void *arg)
{
    if (rows_join_group(arg) < 0)
        return NOT_POSSIBLE;
    shmalloc_heap *heap = heap_create(f.path, 0);
    shmalloc_ref table;
    must(shmalloc_root_get_or_create(heap, "table", 0, PIECES * sizeof(shmalloc_ref), NULL, NULL,
                                     &table) >= 0,
         "%s", shmalloc_errmsg());
    for (uint64_t i = 0; i < PIECES; i++) {
        shmalloc_ref *ref = (shmalloc_ref *)shmalloc_ptr(heap, table) + i;
        must_work(shmalloc_ref_alloc(heap, PIECE, ref));
        for (uint64_t at = 0; at < PIECE; at += NODE)
            *(uint64_t *)shmalloc_ptr(heap, *ref + at) = i * PIECE + at;
    }
    return shmalloc_close(heap) < 0;
}

/*
 * Allow or forbid every access to the whole pages of user data. What is resident would tell less:
 * around each fault the kernel also maps neighbours that happen to be in its cache.
 */
static void protect_pieces(const shmalloc_heap *heap, shmalloc_ref table, int protection)
{
    const shmalloc_ref *pieces = shmalloc_ptr(heap, table);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    for (uint64_t i = 0; i < PIECES; i++) {
        uint64_t start = (uint64_t)(uintptr_t)shmalloc_ptr(heap, pieces[i]);
        uint64_t first = (start + page - 1) / page * page, end = (start + PIECE) / page * page;
        must(mprotect((void *)(uintptr_t)first, end - first, protection) == 0, "mprotect: %s",
             strerror(errno));
    }
}

static int walk_beyond_memory(void *arg)
{
    if (rows_join_group(arg) < 0)
        return NOT_POSSIBLE;
    shmalloc_heap *heap = heap_open(f.path);
    struct rng rng = rng_from(test_seed());
    shmalloc_ref table, refs[200] = {0};
    must_work(shmalloc_root_get(heap, "table", 0, &table));
    protect_pieces(heap, table, PROT_NONE);
    for (int i = 0; i < 2000; i++) { /* the allocator at work: a look at user data would end this
                                        process */
        shmalloc_ref *ref = &refs[rng_below(&rng, 200)];
        if (*ref)
            must_work(shmalloc_ref_free(heap, ref));
        else
            must_work(shmalloc_ref_alloc(heap, 70000 + rng_below(&rng, 1 << 20), ref));
    }
    for (int i = 0; i < 200; i++)
        must_work(shmalloc_ref_free(heap, &refs[i]));
    protect_pieces(heap, table, PROT_READ | PROT_WRITE);
    fprintf(stderr, "%llu KiB of %llu MiB resident before user data is looked at\n",
            (unsigned long long)resident(heap) >> 10,
            (unsigned long long)heap_stats(heap).file_size >> 20);
    for (int i = 0; i < 200; i++) { /* each costs a read of the disk */
        uint64_t piece = rng_below(&rng, PIECES), at = rng_below(&rng, PIECE / NODE) * NODE;
        shmalloc_ref ref = ((shmalloc_ref *)shmalloc_ptr(heap, table))[piece];
        must(*(uint64_t *)shmalloc_ptr(heap, ref + at) == piece * PIECE + at, "piece %llu at %llu",
             (unsigned long long)piece, (unsigned long long)at);
    }
    return shmalloc_close(heap) < 0;
}

Test(rows, a28_a_heap_four_times_as_large_as_memory)
{
    char group[128];
    rows_on_disk(&f);
    if (!has_room(2 * OUT_OF_CORE))
        ROWS_SKIP("too little disk");
    if (rows_make_group(group, LIMIT) < 0)
        ROWS_SKIP("no memory control group can be made here");
    int filled = run_child(fill_beyond_memory, group);
    int fd = open(f.path, O_RDONLY);
    if (fd >= 0) {
        fsync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    int walked = filled == 0 ? run_child(walk_beyond_memory, group) : filled;
    rmdir(group);
    if (filled == NOT_POSSIBLE)
        ROWS_SKIP("a memory control group cannot be joined here");
    cr_assert_eq(filled, 0, "filling: %d", filled);
    cr_assert_eq(walked, 0, "walking: %d", walked);
}

/* ---- A29 ---- */

struct walk {
    uint64_t free_pages, longest, spans, slot_bytes, large_bytes, library;
};

static struct walk walk_file(void)
{
    struct smi_view view;
    struct smi_span span = {0};
    struct walk w = {0};
    rows_view(&view, f.path);
    while (smi_view_next_span(&view, &span)) {
        const struct smf_page *page = span.page;
        uint64_t bytes = (uint64_t)span.page_count << SMF_PAGE_SHIFT;
        if (page->kind == SMF_PAGE_FREE) {
            w.spans++;
            w.free_pages += bytes;
            w.longest = bytes > w.longest ? bytes : w.longest;
        } else if (page->kind == SMF_PAGE_LARGE) {
            w.large_bytes += bytes;
        } else if (page->kind == SMF_PAGE_SLAB && page->arena < view.header.arena_count) {
            w.slot_bytes +=
                (uint64_t)smi_classes[page->size_class].size * smi_classes[page->size_class].slots;
        }
    }
    smi_view_finish(&view);
    return w;
}

/* A number of shmalloc-inspect's output. */
static uint64_t number_in(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof(quoted), "\"%s\":", key);
    const char *at = strstr(json, quoted);
    must(at, "no %s in %s", quoted, json);
    return strtoull(at + strlen(quoted), NULL, 10);
}

Test(rows, a29_numbers_of_fragmentation_equal_a_walk)
{
    enum { COUNT = 4000 };
    static shmalloc_ref refs[COUNT];
    struct rng rng = rng_from(test_seed());
    uint64_t asked = 0;
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < COUNT; i++)
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(&rng, 18), &refs[i]));
    for (int i = 0; i < COUNT; i++)
        if (i % 3)
            must_work(shmalloc_ref_free(f.heap, &refs[i]));
        else
            asked += shmalloc_usable_size(f.heap, shmalloc_ptr(f.heap, refs[i]));
    shmalloc_stats stats = heap_stats(f.heap);
    struct walk w = walk_file();
    cr_assert_eq(stats.free_pages, w.free_pages);
    cr_assert_eq(stats.largest_free_run, w.longest);
    cr_assert_gt(w.spans, 10, "no fragmentation: the test proves nothing");
    cr_assert_eq(stats.allocated, asked);
    cr_assert_eq(stats.allocated + stats.cached + stats.central_free, w.slot_bytes + w.large_bytes);
    const char *inspect = getenv("SHMALLOC_INSPECT");
    if (!inspect)
        return;
    char command[512];
    static char json[1 << 16];
    snprintf(command, sizeof(command), "'%s' info --json '%s'", inspect, f.path);
    FILE *pipe = popen(command, "r");
    cr_assert_gt(fread(json, 1, sizeof(json) - 1, pipe), 0);
    cr_assert_eq(pclose(pipe), 0);
    cr_assert_eq(number_in(json, "largest_free_run"), w.longest);
    cr_assert_eq(number_in(json, "free"), w.free_pages);
    cr_assert_eq(number_in(json, "allocated"), stats.allocated);
    cr_assert_eq(number_in(json, "central_free"), stats.central_free);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    cr_assert_gt(number_in(json, "minor"), 0);
    cr_assert_leq(number_in(json, "minor"), (uint64_t)usage.ru_minflt);
    cr_assert_leq(number_in(json, "major"), (uint64_t)usage.ru_majflt);
}
