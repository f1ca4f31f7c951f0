/* SPDX-License-Identifier: MIT */
/*
 * test_descriptors.c - descriptors that the library keeps, in programs that close what they did not
 * open.
 *
 * Would fail if the heap's file got a number that the program's output goes to, or if the library
 * used or closed a number of its own that is the program's by now: another file's, or the same file
 * opened by the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "handle/handle.h"
#include "heap_suite.h"

HEAP_SUITE(descriptors, 0, 60);

/* ---- standard input, output and errors ---- */

static void must_be_away_from_streams(void)
{
    struct stat heap, st;
    must(stat(f.path, &heap) == 0, "stat");
    for (int fd = 0; fd < 3; fd++)
        must(fstat(fd, &st) < 0 || st.st_dev != heap.st_dev || st.st_ino != heap.st_ino,
             "the heap is descriptor %d", fd);
}

static int closed; /* a bit for each that the program has closed */

/* What the program says there goes nowhere. */
static void say_something(void)
{
    must_be_away_from_streams();
    for (int fd = 1; fd < 3; fd++)
        if (closed >> fd & 1)
            must(write(fd, "a warning\n", 10) < 0 && errno == EBADF, "descriptor %d is open", fd);
}

static int grow(void *arg)
{
    shmalloc_heap *heap = arg;
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref));
    say_something();
    pattern_fill(shmalloc_ptr(heap, ref), 0, 20 << 20, 1);
    must_work(shmalloc_ref_free(heap, &ref));
    must(shmalloc_trim(heap) > 0, "%s", shmalloc_errmsg());
    must_be_sound(heap);
    return 0;
}

static shmalloc_heap *open_with(unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = flags;
    must_work(shmalloc_open(f.path, &options, &heap));
    return heap;
}

/* The whole life of a heap, as a program has it that was started without some of the three. */
static int life_without_streams(void *arg)
{
    shmalloc_heap *heap;
    (void)arg;
    must_work(shmalloc_close(f.heap)); /* inherited */
    unlink(f.path);
    for (int fd = 0; fd < 3; fd++)
        if (closed >> fd & 1)
            close(fd);
    heap = open_with(SHMALLOC_CREATE);
    grow(heap);
    must(run_child(grow, heap) == 0, "the forked child");
    shmalloc_heap *reader = open_with(SHMALLOC_READ_ONLY);
    say_something();
    must_work(shmalloc_close(reader));
    must_work(shmalloc_close(heap));
    must_work(shmalloc_recover(f.path));
    int fd = fcntl(open(f.path, O_RDWR), F_DUPFD, 20);
    for (int low = 0; low < 3; low++)
        if (closed >> low & 1)
            close(low);
    must_work(shmalloc_open_fd(fd, NULL, &heap));
    grow(heap);
    must_work(shmalloc_close(heap));
    heap = open_with(0);
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

Test(descriptors, programs_without_standard_streams)
{
    must_work(shmalloc_close(f.heap));
    for (closed = 1; closed < 8; closed++) {
        f.heap = heap_open(f.path);
        cr_assert_eq(run_child(life_without_streams, NULL), 0, "closed %d", closed);
        must_work(shmalloc_close(f.heap)); /* whose file the child removed */
    }
    closed = 0;
    f.heap = heap_open(f.path);
}

/* ---- numbers that the program took ---- */

enum { FIRST = 3, TAKEN = 10 };
static struct stat taken;

/* What a daemon does: it closes all, and opens its own on every number that the library may have
 * had. */
static void take_numbers(const char *path, int flags)
{
    closefrom(FIRST);
    for (int i = 0; i < TAKEN; i++)
        must(open(path, flags, 0600) == FIRST + i, "a number is taken");
    must(fstat(FIRST, &taken) == 0, "fstat");
}

static const char *log_path(void)
{
    return fixture_path(&f, "log");
}

/* They are open still, and the same files. */
static void must_have_numbers(void)
{
    struct stat st;
    for (int fd = FIRST; fd < FIRST + TAKEN; fd++)
        must(fstat(fd, &st) == 0 && st.st_ino == taken.st_ino && st.st_dev == taken.st_dev,
             "descriptor %d", fd);
}

static void take_numbers_for_log(void)
{
    take_numbers(log_path(), O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
    must(write(FIRST + 1, "started\n", 8) == 8, "write");
}

static void must_have_log(void)
{
    char text[64] = "";
    must_have_numbers();
    for (int fd = FIRST; fd < FIRST + TAKEN; fd++)
        must(write(fd, "x", 1) == 1, "write");
    must(pread(FIRST, text, sizeof(text), 0) == 8 + TAKEN &&
             strcmp(text, "started\nxxxxxxxxxx") == 0,
         "the log holds \"%s\"", text);
}

static int daemon_that_works(void *arg)
{
    (void)arg;
    take_numbers_for_log();
    grow(f.heap);
    must_work(shmalloc_sync(f.heap, 0, 0));
    must_work(shmalloc_close(f.heap));
    must_have_log();
    return 0;
}

Test(descriptors, a_forked_daemon_has_its_log)
{
    grow(f.heap);
    cr_assert_eq(run_child(daemon_that_works, NULL), 0);
    pid_t pid = fork();
    if (pid == 0) /* the parent's shutdown, while the child is at work, is nothing to it */
        _exit(daemon_that_works(NULL));
    cr_assert_eq(wait_child(pid), 0);
    grow(f.heap);
}

static int daemon_that_only_closes(void *arg)
{
    (void)arg;
    take_numbers_for_log();
    must_work(shmalloc_close(f.heap));
    must_have_log();
    return 0;
}

Test(descriptors, a_child_that_never_called_closes_nothing_of_its_own)
{
    cr_assert_eq(run_child(daemon_that_only_closes, NULL), 0);
}

/* Without its name the file is out of reach for the child: an error, and nobody's number is
 * touched. */
static int daemon_without_file(void *arg)
{
    shmalloc_ref ref = 0;
    (void)arg;
    unlink(f.path);
    take_numbers_for_log();
    must_code(shmalloc_ref_alloc(f.heap, 100, &ref), -EBADF);
    must(strstr(shmalloc_errmsg(), f.path), "%s", shmalloc_errmsg());
    must_code(shmalloc_check(f.heap), -EBADF);
    must_work(shmalloc_close(f.heap));
    must_have_log();
    return 0;
}

Test(descriptors, a_child_that_cannot_come_back_says_so)
{
    cr_assert_eq(link(f.path, fixture_path(&f, "aside")), 0);
    cr_assert_eq(run_child(daemon_without_file, NULL), 0);
    cr_assert_eq(rename(fixture_path(&f, "aside"), f.path), 0);
}

static int reader_as_daemon(void *arg)
{
    const int *called_before = arg;
    shmalloc_heap *reader = open_with(SHMALLOC_READ_ONLY);
    if (*called_before)
        must_work(shmalloc_check(reader));
    take_numbers_for_log();
    if (*called_before)
        must_work(shmalloc_check(reader));
    must_work(shmalloc_close(reader));
    must_have_log();
    return 0;
}

Test(descriptors, readers_leave_the_log_alone)
{
    for (int called_before = 0; called_before < 2; called_before++)
        cr_assert_eq(run_child(reader_as_daemon, &called_before), 0);
}

/* Where another file's description is at the very offset that the library knows its own by, nothing
 * is written there. */
static int program_at_the_mark(void *arg)
{
    (void)arg;
    grow(f.heap); /* which makes this child a process of the heap */
    for (int in_child = 0; in_child < 2; in_child++) {
        take_numbers(log_path(), O_RDWR | O_CREAT | O_TRUNC);
        must(ftruncate(FIRST, 64 << 20) == 0 && pwrite(FIRST, "all", 3, 40 << 20) == 3, "%s",
             strerror(errno));
        for (int fd = FIRST; fd < FIRST + TAKEN; fd++)
            must(lseek(fd, (off_t)f.heap->mark, SEEK_SET) == (off_t)f.heap->mark, "lseek");
        must(in_child ? run_child(grow, f.heap) == 0 : grow(f.heap) == 0, "%d", in_child);
        must_have_numbers();
        must(fstat(FIRST, &taken) == 0 && taken.st_size == 64 << 20 && taken.st_blocks == 8,
             "%lld bytes, %lld stored", (long long)taken.st_size, (long long)taken.st_blocks * 512);
    }
    take_numbers_for_log();
    return shmalloc_close(f.heap) < 0;
}

Test(descriptors, files_at_the_mark_are_not_written)
{
    cr_assert_eq(run_child(program_at_the_mark, NULL), 0);
}

/* The program itself has the heap's file open, to copy it say: that descriptor is as little
 * ours. */
static int program_that_reads_the_file(void *arg)
{
    const int *access = arg;
    shmalloc_heap *reader = open_with(SHMALLOC_READ_ONLY);
    take_numbers(f.path, *access);
    grow(f.heap);
    must_work(shmalloc_check(reader));
    must_work(shmalloc_close(reader));
    must_work(shmalloc_close(f.heap));
    must_have_numbers();
    return 0;
}

Test(descriptors, the_programs_own_descriptors_of_the_file_stay)
{
    int read_only = O_RDONLY, read_write = O_RDWR;
    cr_assert_eq(run_child(program_that_reads_the_file, &read_only), 0);
    cr_assert_eq(run_child(program_that_reads_the_file, &read_write), 0);
}

/* Two handles that lost their descriptors do not take each other's for their own. */
static int two_handles(void *arg)
{
    (void)arg;
    must_work(shmalloc_close(f.heap)); /* inherited */
    closefrom(FIRST); /* so that the numbers come again in the same order */
    for (int first = 0; first < 2; first++) {
        shmalloc_heap *heap = open_with(0), *reader = open_with(SHMALLOC_READ_ONLY);
        closefrom(FIRST);
        if (first == 0)
            must_work(shmalloc_check(reader));
        grow(heap);
        must_work(shmalloc_check(reader));
        must_work(shmalloc_close(reader));
        grow(heap);
        must_work(shmalloc_close(heap));
    }
    must(fcntl(FIRST, F_GETFD) < 0, "a descriptor was left");
    return 0;
}

Test(descriptors, two_handles_of_one_file)
{
    cr_assert_eq(run_child(two_handles, NULL), 0);
}
