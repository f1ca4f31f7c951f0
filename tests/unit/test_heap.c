/* SPDX-License-Identifier: MIT */
/*
 * test_heap.c - opening, creating, closing, destroying; every kind of file that is not a sound
 * heap.
 *
 * Would fail if a creator could be seen half done, the umask reached the mode, two handles of one
 * file disagreed, or any damaged or foreign file led to anything but an error code.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "format/layout.h"
#include "support.h"
#include "view_check.h"

static struct fixture f;

static void begin(void)
{
    fixture_begin(&f);
}

static void end(void)
{
    fixture_end(&f);
}

TestSuite(heap, .init = begin, .fini = end, .timeout = 60);

static int open_with(const char *path, unsigned flags, shmalloc_heap **out)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    return shmalloc_open(path, &options, out);
}

static void close_sound(shmalloc_heap *heap)
{
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

/* ---- creating ---- */

Test(heap, opening_needs_a_file_creating_makes_one)
{
    shmalloc_heap *heap = NULL;
    must_code(shmalloc_open(f.path, NULL, &heap), -ENOENT);
    must_code(open_with(f.path, SHMALLOC_READ_ONLY, &heap), -ENOENT);
    cr_assert_null(heap);
    cr_assert_neq(access(f.path, F_OK), 0, "a failed open made a file");
    must_work(open_with(f.path, SHMALLOC_CREATE, &heap));
    close_sound(heap);
    must_work(shmalloc_open(f.path, NULL, &heap));
    close_sound(heap);
    must_work(open_with(f.path, SHMALLOC_CREATE, &heap));
    close_sound(heap);
    must_code(open_with(f.path, SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE, &heap), -EEXIST);
    must_work(open_with(fixture_path(&f, "new"), SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE, &heap));
    close_sound(heap);
}

Test(heap, bad_arguments_are_refused)
{
    shmalloc_heap *heap = NULL;
    must_code(shmalloc_open(NULL, NULL, &heap), -EINVAL);
    must_code(shmalloc_open(f.path, NULL, NULL), -EINVAL);
    shmalloc_options good = SHMALLOC_OPTIONS_INIT, bad;
    good.flags = SHMALLOC_CREATE;
#define refused(change)                                                                            \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        must_code(shmalloc_open(f.path, &bad, &heap), -EINVAL);                                    \
        cr_assert_neq(access(f.path, F_OK), 0, "%s made a file", #change);                         \
    } while (0)
    refused(bad.struct_size = 0);
    refused(bad.struct_size = 8);
    refused(bad.struct_size = 17);
    refused(bad.struct_size = 1032);
    refused(bad.struct_size = SIZE_MAX - 7);
    refused(bad.flags = SHMALLOC_CREATE | 1u << 30);
    refused(bad.flags = SHMALLOC_CREATE | SHMALLOC_READ_ONLY);
    refused(bad.max_size = (16ull << 40) + 1);
    refused((bad.initial_size = 8 << 20, bad.max_size = 4 << 20));
    refused(bad.arenas = 65);
    refused(bad.base = (void *)0x1234);
    refused(bad.layout = "a name of more than 63 bytes, which no application should need at all");
#undef refused
    must_code(shmalloc_open(fixture_path(&f, "no such directory/heap"), &good, &heap), -ENOENT);
    must_work(shmalloc_close(NULL));
}

/* Of a program that was compiled with another header. */
struct other_options {
    shmalloc_options options;
    uint64_t beyond[4];
};

static void must_open(const struct other_options *o, int code)
{
    shmalloc_heap *heap;
    int fd = memfd_create("other", MFD_CLOEXEC);
    must_code(shmalloc_open(f.path, &o->options, &heap), code);
    if (code == 0)
        must_work(shmalloc_close(heap));
    must_code(shmalloc_open_fd(fd, &o->options, &heap), code);
    if (code == 0)
        must_work(shmalloc_close(heap));
    must_code(shmalloc_open_private(&o->options, &heap), code);
    if (code == 0)
        must_work(shmalloc_close(heap));
    close(fd);
}

Test(heap, options_of_older_programs_end_where_they_say)
{
    for (size_t size = offsetof(shmalloc_options, initial_size); size <= sizeof(shmalloc_options);
         size += 8) {
        struct other_options o;
        memset(&o, 0xff, sizeof(o)); /* what lies behind would be refused */
        memset(&o, 0, size);
        o.options.struct_size = size;
        o.options.flags = SHMALLOC_CREATE;
        must_open(&o, 0);
    }
}

Test(heap, options_of_newer_programs_are_taken_if_the_rest_is_zero)
{
    for (size_t more = 8; more <= sizeof(((struct other_options *)0)->beyond); more += 8) {
        struct other_options o = {SHMALLOC_OPTIONS_INIT, {0}};
        o.options.flags = SHMALLOC_CREATE;
        o.options.struct_size = sizeof(shmalloc_options) + more;
        must_open(&o, 0);
        o.beyond[more / 8 - 1] = 1;
        must_open(&o, -EINVAL);
        cr_assert_not_null(strstr(shmalloc_errmsg(), "newer library"), "%s", shmalloc_errmsg());
    }
}

static unsigned mode_of(const char *path)
{
    struct stat st;
    must(stat(path, &st) == 0, "stat %s", path);
    return st.st_mode & 07777;
}

Test(heap, mode_is_0600_or_as_asked_whatever_the_umask)
{
    static const unsigned masks[] = {0, 022, 077, 0777}, modes[] = {0, 0600, 0640, 0666};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            char name[32];
            snprintf(name, sizeof(name), "heap-%d-%d", i, k);
            const char *path = fixture_path(&f, name);
            shmalloc_options options = SHMALLOC_OPTIONS_INIT;
            options.flags = SHMALLOC_CREATE;
            options.mode = modes[k];
            shmalloc_heap *heap;
            mode_t old = umask(masks[i]);
            must_work(shmalloc_open(path, &options, &heap));
            umask(old);
            unsigned wanted = modes[k] ? modes[k] : 0600;
            cr_assert_eq(mode_of(path), wanted, "mode %o under umask %o", mode_of(path), masks[i]);
            close_sound(heap);
        }
}

Test(heap, sizes_are_rounded_and_kept)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.initial_size = (5 << 20) - 7;
    options.max_size = (20 << 20) - 7;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    cr_assert_eq(heap_stats(f.heap).file_size, 5 << 20);
    uint64_t max = heap_stats(f.heap).max_size;
    cr_assert(max == 20 << 20 || max == (20 << 20) - 7, "%llu", (unsigned long long)max);
    fixture_reopen(&f);
    cr_assert_eq(heap_stats(f.heap).max_size, max);
    shmalloc_ref ref = 0;
    must_code(shmalloc_ref_alloc(f.heap, 19 << 20, &ref), SHMALLOC_EFULL);
    must_work(shmalloc_ref_alloc(f.heap, 10 << 20, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_be_sound(f.heap);
}

Test(heap, an_empty_heap_is_small)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 8, &ref));
    cr_assert_leq(heap_stats(f.heap).file_size, 1 << 20);
}

Test(heap, every_number_of_arenas_works)
{
    for (unsigned arenas = 1; arenas <= 64; arenas = arenas < 8 ? arenas + 1 : arenas * 2) {
        shmalloc_options options = SHMALLOC_OPTIONS_INIT;
        options.flags = SHMALLOC_CREATE;
        options.arenas = arenas;
        shmalloc_heap *heap;
        char name[32];
        snprintf(name, sizeof(name), "arenas-%u", arenas);
        must_work(shmalloc_open(fixture_path(&f, name), &options, &heap));
        struct usage empty = usage_now(heap);
        shmalloc_ref refs[300];
        for (size_t i = 0; i < 300; i++)
            must_work(shmalloc_ref_alloc(heap, i * 300, &refs[i]));
        must_be_sound(heap);
        for (size_t i = 0; i < 300; i++)
            must_work(shmalloc_ref_free(heap, &refs[i]));
        must_be_as_before(heap, &empty);
        must_work(shmalloc_close(heap));
    }
}

enum { CREATORS = 8, CREATIONS = 30 };
struct creation {
    uint32_t ready[CREATIONS], exclusive_winners[CREATIONS];
};

static int create_at_once(void *arg)
{
    struct creation *c = arg;
    for (int i = 0; i < CREATIONS; i++) {
        char name[32];
        snprintf(name, sizeof(name), "race-%d", i);
        const char *path = fixture_path(&f, name);
        signal_word(&c->ready[i]);
        await_word(&c->ready[i], CREATORS);
        shmalloc_heap *heap;
        unsigned exclusive = i % 2 ? SHMALLOC_EXCLUSIVE : 0;
        int rc = open_with(path, SHMALLOC_CREATE | exclusive, &heap);
        if (exclusive && rc == -EEXIST)
            continue;
        must_work(rc);
        signal_word(&c->exclusive_winners[i]);
        shmalloc_ref ref;
        must(shmalloc_root_get_or_create(heap, "r", 0, 8, NULL, NULL, &ref) >= 0, "%s",
             shmalloc_errmsg());
        __atomic_fetch_add((uint64_t *)shmalloc_ptr(heap, ref), 1, __ATOMIC_RELAXED);
        must_work(shmalloc_close(heap));
    }
    return 0;
}

Test(heap, creators_at_once_share_one_heap)
{
    struct creation *c = shared_memory(sizeof(*c));
    pid_t pids[CREATORS];
    for (int i = 0; i < CREATORS; i++)
        pids[i] = start_child(create_at_once, c);
    for (int i = 0; i < CREATORS; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    for (int i = 0; i < CREATIONS; i++) {
        char name[32];
        snprintf(name, sizeof(name), "race-%d", i);
        shmalloc_heap *heap = heap_open(fixture_path(&f, name));
        shmalloc_ref ref;
        must_work(shmalloc_root_get(heap, "r", 0, &ref));
        uint64_t count = *(uint64_t *)shmalloc_ptr(heap, ref);
        cr_assert_eq(c->exclusive_winners[i], i % 2 ? 1u : (unsigned)CREATORS);
        cr_assert_eq(count, i % 2 ? 1u : (unsigned)CREATORS, "heap %d: %llu saw it", i,
                     (unsigned long long)count);
        close_sound(heap);
    }
}

/* ---- opening twice, by descriptor, read-only ---- */

Test(heap, twice_in_one_process_is_one_mapping)
{
    shmalloc_heap *a = heap_create(f.path, 0), *b = heap_open(f.path);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(a, 100, &ref));
    cr_assert_eq(shmalloc_ptr(a, ref), shmalloc_ptr(b, ref));
    cr_assert_eq(heap_stats(b).processes, 1);
    must_work(shmalloc_close(a));
    pattern_fill(shmalloc_ptr(b, ref), 0, 100, 1); /* the mapping is still there */
    must_work(shmalloc_ref_free(b, &ref));
    cr_assert_eq(heap_stats(b).allocated, 0);
    close_sound(b);
}

Test(heap, under_two_names_it_is_still_one_heap)
{
    shmalloc_heap *a = heap_create(f.path, 0), *b;
    char other[256];
    snprintf(other, sizeof(other), "%s", fixture_path(&f, "link"));
    cr_assert_eq(link(f.path, other), 0);
    b = heap_open(other);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(a, 100, &ref));
    cr_assert_eq(shmalloc_ptr(a, ref), shmalloc_ptr(b, ref));
    must_work(shmalloc_ref_free(b, &ref));
    must_work(shmalloc_close(b));
    close_sound(a);
}

static int use_memfd(void *arg)
{
    shmalloc_heap *heap;
    shmalloc_ref ref;
    must_work(shmalloc_open_fd(*(int *)arg, NULL, &heap));
    must_work(shmalloc_root_get(heap, "x", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 1000, 8) == 1000, "contents");
    must_work(shmalloc_ref_free(heap, &ref));
    return shmalloc_close(heap) < 0;
}

Test(heap, lives_in_a_memfd_passed_on_by_descriptor)
{
    int fd = memfd_create("heap", MFD_CLOEXEC);
    shmalloc_heap *heap = NULL;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    cr_assert_geq(fd, 0);
    must_code(shmalloc_open_fd(fd, NULL, &heap), SHMALLOC_ENOTHEAP);
    options.flags = SHMALLOC_CREATE;
    must_work(shmalloc_open_fd(fd, &options, &heap));
    int again = dup(fd);
    close(fd); /* the heap does not need it */
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 1000, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 1000, 8);
    must_work(shmalloc_root_set(heap, "x", 0, ref));
    cr_assert_eq(run_child(use_memfd, &again), 0);
    cr_assert_eq(heap_stats(heap).allocated, 0);
    close_sound(heap);
    must_work(shmalloc_open_fd(again, NULL, &heap)); /* the memfd keeps the heap */
    must_work(shmalloc_root_get(heap, "x", 0, &ref));
    close_sound(heap);
    close(again);
    must_code(shmalloc_open_fd(-1, NULL, &heap), -EBADF);
}

Test(heap, open_by_descriptor_and_by_path_is_one_mapping)
{
    shmalloc_heap *a = heap_create(f.path, 0), *b;
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    must_work(shmalloc_open_fd(fd, NULL, &b));
    close(fd);
    cr_assert_eq(shmalloc_ptr(a, 8192), shmalloc_ptr(b, 8192));
    must_work(shmalloc_close(a));
    close_sound(b);
}

Test(heap, read_only_reads_and_refuses_to_write)
{
    shmalloc_heap *heap = heap_create(f.path, 0), *reader;
    shmalloc_ref ref = 0, other = 0;
    must_work(shmalloc_ref_alloc_tagged(heap, 1000, 5, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 1000, 1);
    must_work(shmalloc_root_set(heap, "x", 0, ref));
    must_work(shmalloc_close(heap));
    for (int round = 0; round < 2; round++) { /* at rest, and while a writer is attached */
        must_work(open_with(f.path, SHMALLOC_READ_ONLY, &reader));
        must_work(shmalloc_root_get(reader, "x", 0, &other));
        cr_assert_eq(other, ref);
        cr_assert_eq(pattern_check(shmalloc_ptr(reader, ref), 1000, 1), 1000);
        cr_assert_eq(shmalloc_tag(reader, ref), 5);
        cr_assert_geq(shmalloc_usable_size(reader, shmalloc_ptr(reader, ref)), 1000);
        cr_assert_eq(heap_stats(reader).allocated_blocks, 1);
        must_be_sound(reader);
        must_code(shmalloc_ref_alloc(reader, 8, &other), SHMALLOC_EREADONLY);
        must_code(shmalloc_ref_free(reader, &other), SHMALLOC_EREADONLY);
        must_code(shmalloc_ref_realloc(reader, &other, 99), SHMALLOC_EREADONLY);
        must_code(shmalloc_root_set(reader, "y", 0, 8), SHMALLOC_EREADONLY);
        must_code(shmalloc_root_remove(reader, "x"), SHMALLOC_EREADONLY);
        must_code(shmalloc_set_max_size(reader, 1ull << 41), SHMALLOC_EREADONLY);
        cr_assert_null(shmalloc_malloc(reader, 8));
        must_work(shmalloc_close(reader));
        if (round == 0)
            f.heap = heap_open(f.path);
    }
}

static int reads_what_grows(void *arg)
{
    uint32_t *turn = arg;
    shmalloc_heap *heap;
    must_work(open_with(f.path, SHMALLOC_READ_ONLY, &heap));
    signal_word(&turn[0]);
    await_word(&turn[1], 1);
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "grown", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 32 << 20, 6) == 32 << 20, "contents");
    return shmalloc_close(heap) < 0;
}

Test(heap, a_reader_follows_growth)
{
    uint32_t *turn = shared_memory(8);
    f.heap = heap_create(f.path, 0);
    pid_t pid = start_child(reads_what_grows, turn);
    await_word(&turn[0], 1);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 32 << 20, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, 32 << 20, 6);
    must_work(shmalloc_root_set(f.heap, "grown", 0, ref));
    signal_word(&turn[1]);
    cr_assert_eq(wait_child(pid), 0);
}

/* ---- layout name, base, maximum ---- */

static int open_layout(const char *layout, uint64_t version, shmalloc_heap **out)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.layout = layout;
    options.layout_version = version;
    return shmalloc_open(f.path, &options, out);
}

Test(heap, layout_name_and_version_must_match_when_given)
{
    shmalloc_heap *heap;
    must_work(open_layout("words", 3, &heap));
    must_work(shmalloc_close(heap));
    must_work(open_layout("words", 3, &heap));
    must_work(shmalloc_close(heap));
    must_work(open_layout(NULL, 0, &heap));
    must_code(open_layout("words", 4, &heap), SHMALLOC_ELAYOUT); /* also while it is open here */
    must_work(shmalloc_close(heap));
    must_code(open_layout("words", 4, &heap), SHMALLOC_ELAYOUT);
    must_code(open_layout("sentences", 3, &heap), SHMALLOC_ELAYOUT);
    must_code(open_layout("word", 3, &heap), SHMALLOC_ELAYOUT);
    must_code(open_layout("", 3, &heap), SHMALLOC_ELAYOUT);
}

/* 0, or why a program that expects this layout may not open the heap. */
static int try_layout(const char *name, uint64_t version)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.layout = name;
    options.layout_version = version;
    int rc = shmalloc_open(f.path, &options, &heap);
    return rc < 0 ? rc : shmalloc_close(heap);
}

static int expects(const char *name, uint64_t version)
{
    return -try_layout(name, version) & 0xff;
}

struct expected {
    const char *name;
    uint64_t version;
};

static int expect_in_child(void *arg)
{
    const struct expected *expected = arg;
    return expects(expected->name, expected->version);
}

static int set_in_child(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    must_code(shmalloc_set_layout(heap, "other", 1), SHMALLOC_EBUSY);
    cr_assert_not_null(strstr(shmalloc_errmsg(), "\"data\" version 2"));
    return shmalloc_close(heap) < 0;
}

Test(heap, a_layout_can_be_changed)
{
    char longest[65];
    memset(longest, 'n', sizeof(longest));
    longest[63] = 0;
    f.heap = heap_create(f.path, 0); /* without one */
    must_code(try_layout("data", 1), SHMALLOC_ELAYOUT);
    must_work(shmalloc_set_layout(f.heap, "data", 1));
    must_work(try_layout("data", 1)); /* another handle of this process */
    must_work(shmalloc_set_layout(f.heap, "data", 2));
    must_code(try_layout("data", 1), SHMALLOC_ELAYOUT);
    struct expected new = {"data", 2}, old = {"data", 1};
    cr_assert_eq(run_child(expect_in_child, &new), 0); /* others attach while it is open */
    cr_assert_eq(run_child(expect_in_child, &old), -SHMALLOC_ELAYOUT & 0xff);
    cr_assert_eq(run_child(set_in_child, NULL), 0);
    longest[63] = 'n';
    longest[64] = 0;
    must_code(shmalloc_set_layout(f.heap, longest, 1), -EINVAL);
    longest[63] = 0;
    must_work(shmalloc_set_layout(f.heap, longest, UINT64_MAX));
    must_be_sound(f.heap);
    fixture_reopen(&f);
    must_work(try_layout(longest, UINT64_MAX));
    must_work(shmalloc_set_layout(f.heap, NULL, 0));
    must_work(try_layout("", 0));
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    must_work(try_layout("", 0));
    shmalloc_heap *reader;
    must_work(open_with(f.path, SHMALLOC_READ_ONLY, &reader));
    must_code(shmalloc_set_layout(reader, "data", 1), SHMALLOC_EREADONLY);
    must_work(shmalloc_close(reader));
}

/* As a kill leaves it after the record was armed, with any part of the header stored: everybody
 * sees the new layout. What is no whole record counts for nothing. (Each instruction of the call:
 * tests/crash.) */
Test(heap, a_change_of_the_layout_that_was_begun)
{
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_set_layout(f.heap, "old data", 1));
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    for (int stored = 0; stored < 12; stored++) {
        struct smf_header header, next;
        struct smf_state state;
        int fd = open(f.path, O_RDWR);
        must(pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
                 pread(fd, &state, sizeof(state), SMF_STATE_OFFSET) == (ssize_t)sizeof(state),
             "%s", f.path);
        next = header;
        snprintf(next.layout_name, sizeof(next.layout_name), "the new data %d", stored);
        next.layout_version = 2;
        state.next_checksum = next.checksum =
            smi_hash(&next, offsetof(struct smf_header, checksum));
        state.next_layout_version = next.layout_version;
        memcpy(state.next_layout_name, next.layout_name, sizeof(next.layout_name));
        if (stored == 11) /* the record is not whole */
            state.next_layout_name[0] = 'T';
        else if (stored == 10) /* but for the disarming all is done */
            header = next;
        else
            memcpy(&header.layout_version, &next.layout_version, (size_t)stored * 8);
        must(pwrite(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
                 pwrite(fd, &state, sizeof(state), SMF_STATE_OFFSET) == (ssize_t)sizeof(state),
             "%s", f.path);
        close(fd);
        must_be_sound_on_disk(f.path);
        const char *name = stored == 11 ? header.layout_name : next.layout_name;
        shmalloc_options options = SHMALLOC_OPTIONS_INIT;
        shmalloc_heap *reader;
        options.flags = SHMALLOC_READ_ONLY;
        options.layout = name;
        options.layout_version = 2;
        must_work(shmalloc_open(f.path, &options, &reader));
        must_work(shmalloc_close(reader));
        must_work(try_layout(name, 2));
        fd = open(f.path, O_RDONLY);
        must(pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
                 pread(fd, &state, sizeof(state), SMF_STATE_OFFSET) == (ssize_t)sizeof(state),
             "%s", f.path);
        close(fd);
        cr_assert_eq(state.next_checksum, 0);
        cr_assert_str_eq(header.layout_name, name);
    }
}

#define BASE ((void *)0x200000000000)

static int maps_at_base(void *arg)
{
    shmalloc_heap *heap = heap_open(f.path);
    must(shmalloc_ptr(heap, 8192) == (char *)BASE + 8192, "mapped at %p",
         (void *)((char *)shmalloc_ptr(heap, 8192) - 8192));
    void **self = *(void **)arg; /* a raw pointer into the heap */
    must(*self == self, "raw pointer");
    return shmalloc_close(heap) < 0;
}

Test(heap, fixed_base_makes_raw_pointers_persist)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.base = BASE;
    options.max_size = 1 << 30;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    void **self = shmalloc_malloc(f.heap, sizeof(void *));
    *self = self;
    cr_assert_eq(shmalloc_ptr(f.heap, 8192), (char *)BASE + 8192);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    cr_assert_eq(run_child(maps_at_base, &self), 0);
    void *taken = mmap((char *)BASE + (16 << 20), 4096, PROT_READ, /* somewhere in the
                                                                      reservation */
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    cr_assert_neq(taken, MAP_FAILED);
    must_code(shmalloc_open(f.path, NULL, &f.heap), SHMALLOC_EADDRESS);
    munmap(taken, 4096);
    f.heap = heap_open(f.path);
    cr_assert_eq(*self, self);
}

Test(heap, maximum_size_can_be_raised_not_lowered)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 8 << 20;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    shmalloc_ref ref = 0;
    must_code(shmalloc_ref_alloc(f.heap, 20 << 20, &ref), SHMALLOC_EFULL);
    must_code(shmalloc_set_max_size(f.heap, 4 << 20), -EINVAL);
    must_code(shmalloc_set_max_size(f.heap, (16ull << 40) + 1), -EINVAL);
    must_work(shmalloc_set_max_size(f.heap, (64 << 20) - 5));
    cr_assert_eq(heap_stats(f.heap).max_size, 64 << 20, "rounded up");
    int rc = shmalloc_ref_alloc(f.heap, 20 << 20, &ref);
    cr_assert(rc == 0 || rc == SHMALLOC_EADDRESS, "%d: %s", rc, shmalloc_errmsg());
    if (rc == 0)
        must_work(shmalloc_ref_free(f.heap, &ref));
    fixture_reopen(&f);
    must_work(shmalloc_ref_alloc(f.heap, 20 << 20, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_be_sound(f.heap);
}

/* ---- destroying ---- */

static int hold_open(void *arg)
{
    uint32_t *turn = arg;
    shmalloc_heap *heap = heap_open(f.path);
    signal_word(&turn[0]);
    await_word(&turn[1], 1);
    return shmalloc_close(heap) < 0;
}

Test(heap, destroy_removes_heaps_and_nothing_else)
{
    must_code(shmalloc_destroy(f.path), -ENOENT);
    f.heap = heap_create(f.path, 0);
    must_code(shmalloc_destroy(f.path), SHMALLOC_EBUSY);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    uint32_t *turn = shared_memory(8);
    pid_t pid = start_child(hold_open, turn);
    await_word(&turn[0], 1);
    must_code(shmalloc_destroy(f.path), SHMALLOC_EBUSY);
    signal_word(&turn[1]);
    cr_assert_eq(wait_child(pid), 0);
    must_work(shmalloc_destroy(f.path));
    cr_assert_neq(access(f.path, F_OK), 0);
    const char *text = fixture_path(&f, "text");
    FILE *file = fopen(text, "w");
    fputs("not a heap\n", file);
    fclose(file);
    must_code(shmalloc_destroy(text), SHMALLOC_ENOTHEAP);
    cr_assert_eq(access(text, F_OK), 0);
}

/* ---- files that are not sound heaps ---- */

static uint8_t *image;
static size_t image_size;

/* The bytes of a heap with some blocks and roots, closed in order. */
static void make_image(void)
{
    shmalloc_heap *heap = heap_create(f.path, 0);
    for (size_t i = 0; i < 50; i++) {
        shmalloc_ref ref = 0;
        char name[20];
        snprintf(name, sizeof(name), "root %zu", i);
        must_work(shmalloc_ref_alloc(heap, i * 100 + 1, &ref));
        must_work(shmalloc_root_set(heap, name, 0, ref));
    }
    must_work(shmalloc_close(heap));
    int fd = open(f.path, O_RDONLY);
    image_size = (size_t)lseek(fd, 0, SEEK_END);
    image = malloc(image_size);
    must(pread(fd, image, image_size, 0) == (ssize_t)image_size, "read");
    close(fd);
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0 && write(fd, bytes, len) == (ssize_t)len, "write %s", path);
    close(fd);
}

static int open_any(const char *path, unsigned flags)
{
    shmalloc_heap *heap;
    int rc = open_with(path, flags, &heap);
    if (rc == 0)
        shmalloc_close(heap);
    else
        must(shmalloc_errmsg()[0], "no message");
    return rc;
}

Test(heap, files_of_other_kinds_are_refused_and_left_alone)
{
    const char *path = f.path;
    write_file(path, "", 0);
    must_code(open_any(path, 0), SHMALLOC_ENOTHEAP);
    must_code(open_any(path, SHMALLOC_READ_ONLY), SHMALLOC_ENOTHEAP);
    static char text[200000] = "#!/bin/sh\necho this is not a heap, however long it is\n";
    write_file(path, text, sizeof(text));
    must_code(open_any(path, 0), SHMALLOC_ENOTHEAP);
    must_code(open_any(path, SHMALLOC_CREATE), SHMALLOC_ENOTHEAP);
    must_code(open_any(path, SHMALLOC_READ_ONLY), SHMALLOC_ENOTHEAP);
    int fd = open(path, O_RDONLY);
    char now[sizeof(text)];
    cr_assert_eq(read(fd, now, sizeof(now)), (ssize_t)sizeof(now));
    cr_assert_eq(memcmp(text, now, sizeof(now)), 0);
    close(fd);
    must_code(open_any(f.dir, 0), -EISDIR);
    must(open_any(f.dir, SHMALLOC_READ_ONLY) < 0, "a directory");
    must(open_any("/dev/null", 0) < 0, "a device");
    must(open_any("/dev/zero", SHMALLOC_READ_ONLY) < 0, "a device");
    const char *fifo = fixture_path(&f, "fifo");
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    must(open_any(fifo, 0) < 0, "a fifo");
    must(open_any(fifo, SHMALLOC_READ_ONLY) < 0, "a fifo, which must not be waited for");
}

/* Runs in a child, so that a signal is told apart; `at` says how far it came. */
static int truncate_everywhere(void *arg)
{
    uint64_t *at = arg;
    const char *path = fixture_path(&f, "cut");
    static const size_t odd[] = {0,   1,    7,    8,    100,  543,  544,
                                 545, 4095, 4097, 4224, 8191, 8193, 8255};
    size_t count = sizeof(odd) / sizeof(odd[0]);
    for (size_t i = 0, len = 0; len < image_size; i++) {
        *at = len = i < count ? odd[i] : (i - count) * 12288;
        if (len >= image_size)
            break;
        write_file(path, image, len);
        for (unsigned flags = 0; flags <= SHMALLOC_READ_ONLY; flags += SHMALLOC_READ_ONLY) {
            int rc = open_any(path, flags);
            must(rc == SHMALLOC_ENOTHEAP || rc == SHMALLOC_ECORRUPT, "cut to %zu bytes: %d", len,
                 rc);
        }
        must(shmalloc_recover(path) < 0, "cut to %zu bytes and recovered", len);
    }
    return 0;
}

Test(heap, a_file_cut_anywhere_is_an_error)
{
    uint64_t *at = shared_memory(8);
    make_image();
    int status = run_child(truncate_everywhere, at);
    cr_assert_eq(status, 0, "status %d at %llu", status, (unsigned long long)*at);
}

static int flip_header(void *arg)
{
    uint64_t *at = arg;
    const char *path = fixture_path(&f, "flipped");
    write_file(path, image, image_size);
    int fd = open(path, O_RDWR);
    for (*at = 0; *at < 544; ++*at) {
        uint8_t byte = image[*at] ^ (uint8_t)(1 << *at % 8);
        must(pwrite(fd, &byte, 1, (off_t)*at) == 1, "pwrite");
        must(open_any(path, *at % 4 ? 0 : SHMALLOC_READ_ONLY) < 0, "byte %llu",
             (unsigned long long)*at);
        must(pwrite(fd, &image[*at], 1, (off_t)*at) == 1, "pwrite");
    }
    must_work(open_any(path, 0));
    close(fd);
    return 0;
}

Test(heap, every_flipped_byte_of_the_header_is_an_error)
{
    uint64_t *at = shared_memory(8);
    make_image();
    int status = run_child(flip_header, at);
    cr_assert_eq(status, 0, "status %d at byte %llu", status, (unsigned long long)*at);
}

/* Opens, and if it opens uses, a file that differs from a sound one in one place. Any answer will
 * do but a signal or a hang. */
static int use_damaged(void *arg)
{
    (void)arg;
    shmalloc_heap *heap;
    if (shmalloc_open(fixture_path(&f, "damaged"), NULL, &heap) < 0)
        return 0;
    shmalloc_ref refs[60] = {0};
    for (size_t i = 0; i < 60; i++)
        may_fail(shmalloc_ref_alloc(heap, i * 200 + 1, &refs[i]));
    for (int i = 0; i < 50; i++) {
        char name[20];
        snprintf(name, sizeof(name), "root %d", i);
        shmalloc_ref ref = 0;
        if (shmalloc_root_get(heap, name, 0, &ref) == 0 && i % 2) {
            shmalloc_ref_free(heap, &ref);
            shmalloc_root_remove(heap, name);
        }
    }
    shmalloc_trim(heap);
    may_fail(shmalloc_check(heap));
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    may_fail(shmalloc_get_stats(heap, &stats));
    for (size_t i = 0; i < 60; i++)
        shmalloc_ref_free(heap, &refs[i]);
    shmalloc_close(heap);
    return 0;
}

Test(heap, damage_anywhere_gives_an_answer, .timeout = 120)
{
    make_image();
    struct rng rng = rng_from(test_seed());
    const char *path = fixture_path(&f, "damaged");
    for (int i = 0; i < 300; i++) {
        /* A third in the state, a third in the fixed areas, a third anywhere. */
        uint64_t at = i % 3 == 0 ? 4096 + rng_below(&rng, 128)
                                 : rng_below(&rng, i % 3 == 1 ? 400000 : image_size);
        uint64_t was, now = i % 2 ? rng_next(&rng) : rng_log_uniform(&rng, 64);
        at &= ~7ull;
        memcpy(&was, image + at, 8);
        memcpy(image + at, i % 5 ? &now : &(uint64_t){was ^ 1ull << rng_below(&rng, 64)}, 8);
        write_file(path, image, image_size);
        int status = wait_child_within(start_child(use_damaged, NULL), 25000);
        cr_assert_eq(status, 0, "status %d with word %#llx at byte %llu (was %#llx)", status,
                     (unsigned long long)now, (unsigned long long)at, (unsigned long long)was);
        memcpy(image + at, &was, 8);
    }
}

/* ---- copies, and the clean mark ---- */

static void copy_file(const char *from, const char *to)
{
    int fd = open(from, O_RDONLY);
    size_t len = (size_t)lseek(fd, 0, SEEK_END);
    uint8_t *bytes = malloc(len);
    must(pread(fd, bytes, len, 0) == (ssize_t)len, "read %s", from);
    close(fd);
    write_file(to, bytes, len);
    free(bytes);
}

Test(heap, a_copy_of_a_closed_heap_is_a_heap)
{
    make_image();
    const char *copy = fixture_path(&f, "copy");
    copy_file(f.path, copy);
    shmalloc_heap *heap = heap_open(copy);
    cr_assert_eq(heap_stats(heap).roots, 50);
    close_sound(heap);
}

Test(heap, a_copy_of_a_heap_in_use_is_unclean_until_recovered)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, 100, 2);
    must_work(shmalloc_root_set(f.heap, "x", 0, ref));
    const char *copy = fixture_path(&f, "copy");
    copy_file(f.path, copy);
    must_code(open_any(copy, 0), SHMALLOC_EUNCLEAN);
    shmalloc_heap *heap;
    must_work(open_with(copy, SHMALLOC_ACCEPT_UNCLEAN, &heap));
    cr_assert_eq(pattern_check(shmalloc_ptr(heap, ref), 100, 2), 100);
    close_sound(heap);
    must_work(open_any(copy, 0)); /* it was closed in order */
    copy_file(f.path, copy);
    must_code(open_any(copy, 0), SHMALLOC_EUNCLEAN);
    must_work(shmalloc_recover(copy));
    must_work(open_with(copy, 0, &heap));
    shmalloc_ref got;
    must_work(shmalloc_root_get(heap, "x", 0, &got));
    cr_assert_eq(got, ref);
    must_work(shmalloc_ref_free(heap, &got));
    cr_assert_eq(heap_stats(heap).allocated, 0, "cached blocks of the copied process came back");
    close_sound(heap);
    must_code(shmalloc_recover(f.path), SHMALLOC_EBUSY);
    must_code(shmalloc_recover(fixture_path(&f, "missing")), -ENOENT);
}

/* The number of roots is wrong in the copy. */
Test(heap, recover_names_what_is_wrong_and_who_was_judged)
{
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_root_set(f.heap, "x", 0, 0));
    const char *copy = fixture_path(&f, "copy");
    copy_file(f.path, copy);
    struct smf_header header;
    uint64_t count = 2;
    int fd = open(copy, O_RDWR);
    must(fd >= 0 && pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header), "%s", copy);
    off_t at = (off_t)(header.areas.roots + offsetof(struct smf_roots, count));
    must(pwrite(fd, &count, sizeof(count), at) == (ssize_t)sizeof(count), "%s", copy);
    for (int poisoned = 0; poisoned < 2; poisoned++) { /* by the first call */
        must_code(shmalloc_recover(copy), SHMALLOC_ECORRUPT);
        const char *const fragments[] = {copy, "R2 at ", "count says 2 roots",
                                         "own data alone were judged", "check --repair"};
        for (int i = 0; i < 5; i++)
            cr_assert_not_null(strstr(shmalloc_errmsg(), fragments[i]), "\"%s\" lacks \"%s\"",
                               shmalloc_errmsg(), fragments[i]);
    }
    close(fd);
}

Test(heap, recover_of_a_sound_heap_changes_nothing)
{
    make_image();
    must_work(shmalloc_recover(f.path));
    shmalloc_heap *heap = heap_open(f.path);
    cr_assert_eq(heap_stats(heap).roots, 50);
    close_sound(heap);
}

/* ---- persistence ---- */

Test(heap, blocks_and_roots_are_there_after_reopening)
{
    enum { COUNT = 1000 };
    f.heap = heap_create(f.path, 0);
    struct usage empty = usage_now(f.heap);
    for (int round = 0; round < 3; round++) {
        struct rng rng = rng_from(8);
        for (int i = 0; i < COUNT; i++) {
            char name[20];
            snprintf(name, sizeof(name), "%d", i);
            size_t size = 1 + rng_log_uniform(&rng, 17);
            shmalloc_ref ref = 0;
            if (round == 0) {
                must_work(shmalloc_ref_alloc(f.heap, size, &ref));
                pattern_fill(shmalloc_ptr(f.heap, ref), 0, size, (uint64_t)i);
                must_work(shmalloc_root_set(f.heap, name, 0, ref));
                continue;
            }
            must_work(shmalloc_root_get(f.heap, name, 0, &ref));
            must(pattern_check(shmalloc_ptr(f.heap, ref), size, (uint64_t)i) == size, "block %d",
                 i);
            if (round == 2) {
                must_work(shmalloc_ref_free(f.heap, &ref));
                must_work(shmalloc_root_remove(f.heap, name));
            }
        }
        fixture_reopen(&f);
        must_be_sound(f.heap);
    }
    must_be_as_before(f.heap, &empty);
}

Test(heap, many_cycles_of_open_and_close_leak_nothing)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 8, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
    struct usage empty = usage_now(f.heap);
    uint64_t metadata = 0;
    int fds = 0;
    for (int i = 0; i < 300; i++) {
        fixture_reopen(&f);
        must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
        must_work(shmalloc_ref_free(f.heap, &ref));
        int fd = dup(0); /* the lowest free descriptor moves when one leaks */
        close(fd);
        must(i == 0 || fd == fds, "descriptor %d, was %d", fd, fds);
        fds = fd;
        uint64_t now = heap_stats(f.heap).metadata;
        must(i < 2 || now == metadata, "metadata %llu, was %llu", (unsigned long long)now,
             (unsigned long long)metadata);
        metadata = now;
    }
    must_be_as_before(f.heap, &empty);
}
