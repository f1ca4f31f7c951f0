/* SPDX-License-Identifier: MIT */
/* test_error.c - codes in words, messages of the thread, and codes that no other suite provokes. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sched.h>
#include <unistd.h>

#include "heap_suite.h"

HEAP_SUITE(error, 0, 60);

static const int codes[] = {
    SHMALLOC_EFULL,     SHMALLOC_ENOTHEAP,   SHMALLOC_EVERSION, SHMALLOC_EFOREIGN,
    SHMALLOC_ECORRUPT,  SHMALLOC_EPOISONED,  SHMALLOC_EUNCLEAN, SHMALLOC_ELAYOUT,
    SHMALLOC_EBUSY,     SHMALLOC_EPROCESSES, SHMALLOC_ETHREADS, SHMALLOC_EADDRESS,
    SHMALLOC_EBADREF,   SHMALLOC_EDOUBLEFREE, SHMALLOC_EREADONLY, SHMALLOC_ENOROOT,
    SHMALLOC_ETYPE,     SHMALLOC_ENOTOWNER,  SHMALLOC_ECLOSED,  SHMALLOC_EFILESYSTEM,
    SHMALLOC_EPROC,     SHMALLOC_ESIZE,      -ENOENT,            -ENOMEM,             -EIO,
};
enum { CODES = sizeof(codes) / sizeof(codes[0]) };

Test(error, every_code_has_words_of_its_own)
{
    for (int i = 0; i < CODES; i++) {
        const char *text = shmalloc_strerror(codes[i]);
        cr_assert_not_null(text);
        cr_assert_str_not_empty(text);
        cr_assert_str_neq(text, shmalloc_strerror(-4000), "code %d is unknown", codes[i]);
        for (int k = 0; k < i; k++)
            cr_assert_str_neq(text, shmalloc_strerror(codes[k]), "codes %d and %d", codes[i],
                              codes[k]);
    }
}

Test(error, numbers_never_change)
{
    for (int i = 0; i < CODES && codes[i] < -4096; i++)
        cr_assert_eq(codes[i], -20001 - i);
}

Test(error, any_number_has_an_answer)
{
    struct rng rng = rng_from(4);
    for (int code = -30000; code < 1000; code++)
        cr_assert_not_null(shmalloc_strerror(code));
    for (int i = 0; i < 1000; i++)
        cr_assert_not_null(shmalloc_strerror((int)rng_next(&rng)));
}

static void *message_of_new_thread(void *arg)
{
    (void)arg;
    must(shmalloc_errmsg()[0] == 0, "a new thread has the message \"%s\"", shmalloc_errmsg());
    shmalloc_ref ref;
    must_code(shmalloc_root_get(f.heap, "no such name", 0, &ref), SHMALLOC_ENOROOT);
    must(shmalloc_errmsg()[0], "no message");
    return NULL;
}

#define CROWD 12
static pthread_barrier_t all_failed;

/* A message that only this thread has, while the others have theirs. */
static void *fail_in_a_crowd(void *arg)
{
    shmalloc_ref ref;
    const char *name = arg;
    must(shmalloc_errmsg()[0] == 0, "a new thread has the message \"%s\"", shmalloc_errmsg());
    must_code(shmalloc_root_get(f.heap, name, 0, &ref), SHMALLOC_ENOROOT);
    pthread_barrier_wait(&all_failed);
    must(strstr(shmalloc_errmsg(), name), "\"%s\" is not about \"%s\"", shmalloc_errmsg(), name);
    return NULL;
}

Test(error, many_threads_have_a_message_each_and_later_ones_begin_without)
{
    pthread_t threads[CROWD];
    char names[CROWD][16];
    pthread_barrier_init(&all_failed, NULL, CROWD);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < CROWD; i++) {
            snprintf(names[i], sizeof(names[i]), "name %d of %d", i, round);
            cr_assert_eq(pthread_create(&threads[i], NULL, fail_in_a_crowd, names[i]), 0);
        }
        for (int i = 0; i < CROWD; i++)
            pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&all_failed);
}

static pthread_key_t reads_message;
static int read_at_the_end;

static void read_message(void *text)
{
    must(strstr(text, "no such name"), "the message is \"%s\" at the thread's end",
         (const char *)text);
    must(shmalloc_errmsg() == text, "it moved");
    read_at_the_end = 1;
}

static void *fail_and_end(void *arg)
{
    shmalloc_ref ref;
    must_code(shmalloc_root_get(f.heap, "no such name", 0, &ref), SHMALLOC_ENOROOT);
    pthread_setspecific(reads_message, shmalloc_errmsg());
    return arg;
}

Test(error, a_message_lasts_to_the_end_of_its_thread)
{
    pthread_t thread;
    cr_assert_eq(pthread_key_create(&reads_message, read_message), 0);
    pthread_create(&thread, NULL, fail_and_end, NULL);
    pthread_join(thread, NULL);
    cr_assert(read_at_the_end);
}

static int fail_in_a_child(void *arg)
{
    shmalloc_ref ref;
    must(strstr(shmalloc_errmsg(), arg), "the parent's message is \"%s\"", shmalloc_errmsg());
    must_code(shmalloc_root_get(f.heap, "another", 0, &ref), SHMALLOC_ENOROOT);
    must(strstr(shmalloc_errmsg(), "another"), "the message is \"%s\"", shmalloc_errmsg());
    return 0;
}

Test(error, a_child_goes_on_with_the_message_and_its_place)
{
    shmalloc_ref ref;
    must_code(shmalloc_root_get(f.heap, "of the parent", 0, &ref), SHMALLOC_ENOROOT);
    cr_assert_eq(run_child(fail_in_a_child, (void *)(uintptr_t)"of the parent"), 0);
    cr_assert(strstr(shmalloc_errmsg(), "of the parent"));
}

Test(error, messages_belong_to_the_thread)
{
    shmalloc_heap *none = (shmalloc_heap *)&none;
    char path[256], message[512];
    snprintf(path, sizeof(path), "%s", fixture_path(&f, "missing"));
    must_code(shmalloc_open(path, NULL, &none), -ENOENT);
    cr_assert_eq(none, (shmalloc_heap *)&none, "written on failure");
    cr_assert(strstr(shmalloc_errmsg(), path), "\"%s\" does not name the file", shmalloc_errmsg());
    snprintf(message, sizeof(message), "%s", shmalloc_errmsg());
    pthread_t thread;
    pthread_create(&thread, NULL, message_of_new_thread, NULL);
    pthread_join(thread, NULL);
    cr_assert_str_eq(shmalloc_errmsg(), message, "another thread changed it");
}

Test(error, version_is_that_of_the_headers)
{
    cr_assert_str_eq(shmalloc_version(), SHMALLOC_VERSION);
    char text[32];
    snprintf(text, sizeof(text), "%d.%d.%d", SHMALLOC_VERSION_MAJOR, SHMALLOC_VERSION_MINOR,
             SHMALLOC_VERSION_PATCH);
    cr_assert_str_eq(text, SHMALLOC_VERSION);
}

/* ---- refusals of the system ---- */

/* The heap must go on after the refusal, and nothing may have been lost. */
static void allocate_to_refusal(shmalloc_heap *heap, int code, const char *remedy)
{
    struct usage empty = usage_now(heap);
    static shmalloc_ref refs[100000];
    int count = 0, rc;
    while ((rc = shmalloc_ref_alloc(heap, 100000, &refs[count])) == 0)
        count++;
    must_code(rc, code);
    must(strstr(shmalloc_errmsg(), f.dir) && strstr(shmalloc_errmsg(), remedy), "\"%s\"",
         shmalloc_errmsg());
    must(shmalloc_ref_alloc(heap, 50u << 20, &refs[count]) < 0, "the big one is refused too");
    must_be_sound(heap);
    for (int i = 0; i < count; i++) { /* what was handed out can be written to its last byte */
        memset(shmalloc_ptr(heap, refs[i]), 0x5a, 100000);
        must_work(shmalloc_ref_free(heap, &refs[i]));
    }
    must(shmalloc_ref_alloc(heap, 100000, &refs[0]) == 0, "%s", shmalloc_errmsg());
    must_work(shmalloc_ref_free(heap, &refs[0]));
    must_be_as_before(heap, &empty);
}

static int file_size_limit(void *arg)
{
    (void)arg;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {20 << 20, 20 << 20};
    must(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
    shmalloc_heap *heap = heap_create(fixture_path(&f, "limited"), 0);
    allocate_to_refusal(heap, -EFBIG, "ulimit -f");
    return shmalloc_close(heap) < 0;
}

Test(error, a_file_size_limit_is_EFBIG)
{
    cr_assert_eq(run_child(file_size_limit, NULL), 0);
}

enum { NOT_PERMITTED = 77 };

/* A file system of 20 MiB in a mount namespace of the child's own. */
static int full_file_system(void *arg)
{
    (void)arg;
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", f.dir, "tmpfs", 0, "size=20m") < 0)
        return NOT_PERMITTED;
    shmalloc_heap *heap = heap_create(fixture_path(&f, "on a small disk"), 0);
    allocate_to_refusal(heap, -ENOSPC, "a larger file system");
    return shmalloc_close(heap) < 0;
}

Test(error, a_full_file_system_is_ENOSPC_and_never_SIGBUS)
{
    int status = run_child(full_file_system, NULL);
    if (status == NOT_PERMITTED)
        cr_skip_test("no mount namespace here");
    cr_assert_eq(status, 0, "%d", status);
}

static int refused_open(void *arg)
{
    (void)arg;
    shmalloc_heap *heap;
    must_work(shmalloc_close(f.heap));
    must_code(shmalloc_open(f.path, NULL, &heap), SHMALLOC_EFOREIGN);
    return 0;
}

static int refused_use(void *arg)
{
    (void)arg;
    shmalloc_ref ref = 0;
    must_code(shmalloc_ref_alloc(f.heap, 8, &ref), SHMALLOC_EFOREIGN);
    return 0;
}

static int in_pid_namespace(void *arg)
{
    if (unshare(geteuid() == 0 ? CLONE_NEWPID : CLONE_NEWUSER | CLONE_NEWPID) < 0)
        return NOT_PERMITTED;
    return run_child(*(worker_fn **)arg, NULL);
}

/* Thread ids of two namespaces may be equal, and then robust mutexes do not exclude. */
static void refused_in_pid_namespace(worker_fn *fn)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 8, &ref));
    int status = run_child(in_pid_namespace, &fn);
    must_work(shmalloc_ref_free(f.heap, &ref));
    if (status == NOT_PERMITTED)
        cr_skip_test("no PID namespace here");
    cr_assert_eq(status, 0, "%d", status);
}

Test(error, another_pid_namespace_is_refused_while_the_heap_is_in_use)
{
    refused_in_pid_namespace(refused_open);
}

Test(error, a_child_forked_into_another_pid_namespace_is_refused)
{
    refused_in_pid_namespace(refused_use);
}

static int address_space_limit(void *arg)
{
    (void)arg;
    must_work(shmalloc_close(f.heap)); /* its addresses count too */
    struct rlimit limit = {1u << 30, 1u << 30};
    must(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
    shmalloc_heap *heap = NULL;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    int rc = shmalloc_open(fixture_path(&f, "cramped"), &options, &heap);
    if (rc < 0) {
        must_code(rc, SHMALLOC_EADDRESS);
        return 0;
    }
    /* A smaller reservation is allowed; then blocks must work in it. */
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 1 << 20, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    must_be_sound(heap);
    /* of 1 TiB that it may grow to */
    must_code(shmalloc_ref_alloc(heap, 1u << 30, &ref), SHMALLOC_EADDRESS);
    must(strstr(shmalloc_errmsg(), "limit on address space"), "\"%s\"", shmalloc_errmsg());
    return shmalloc_close(heap) < 0;
}

/* Others make the heap longer than this process has addresses for: an error, no fault, and no
 * verdict on the heap. */
static int outgrown(void *arg)
{
    uint32_t *step = arg;
    struct rlimit limit = {400u << 20, 400u << 20};
    must_work(shmalloc_close(f.heap));
    must(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
    shmalloc_heap *heap = heap_open(f.path);
    static shmalloc_ref mine[100], more[10000], large, far;
    for (int i = 0; i < 100; i++)
        must_work(shmalloc_ref_alloc(heap, 5000, &mine[i]));
    must_work(shmalloc_ref_alloc(heap, 2 << 20, &large)); /* too large to be kept */
    signal_word(&step[0]);
    await_word(&step[1], 1);
    must_work(shmalloc_root_get(heap, "far", 0, &far));
    must_code(shmalloc_ref_free(heap, &far), SHMALLOC_EBADREF);
    int rc = 0, count = 0;
    while (rc == 0 && count < 10000)
        rc = shmalloc_ref_alloc(heap, 60000, &more[count++]);
    must_code(rc, SHMALLOC_EADDRESS);
    must(strstr(shmalloc_errmsg(), "close and open it again"), "\"%s\"", shmalloc_errmsg());
    must_code(shmalloc_ref_free(heap, &large), SHMALLOC_EADDRESS);
    must_work(shmalloc_root_set(heap, "large", 0, large)); /* for the others to free */
    while (count-- > 0)
        must_work(shmalloc_ref_free(heap, &more[count]));
    for (int i = 0; i < 100; i++)
        must_work(shmalloc_ref_free(heap, &mine[i]));
    return shmalloc_close(heap) < 0;
}

Test(error, a_heap_that_others_make_longer_than_our_addresses)
{
    if (TEST_ASAN)
        cr_skip_test("the sanitizer's own shadow does not fit under the limit");
    uint32_t *step = shared_memory(2 * sizeof(*step));
    shmalloc_ref far = 0, small[200] = {0};
    pid_t pid = start_child(outgrown, step);
    await_word(&step[0], 1);
    must_work(shmalloc_ref_alloc(f.heap, 300u << 20, &far));
    must_work(shmalloc_root_set(f.heap, "far", 0, far));
    for (int i = 0; i < 200; i++)
        must_work(shmalloc_ref_alloc(f.heap, 60000, &small[i]));
    for (int i = 0; i < 200; i += 2)
        must_work(shmalloc_ref_free(f.heap, &small[i]));
    signal_word(&step[1]);
    cr_assert_eq(wait_child(pid), 0);
    must_be_sound(f.heap);
    must_work(shmalloc_ref_free(f.heap, &far));
    must_work(shmalloc_root_get(f.heap, "large", 0, &far));
    must_work(shmalloc_ref_free(f.heap, &far));
    for (int i = 1; i < 200; i += 2)
        must_work(shmalloc_ref_free(f.heap, &small[i]));
    must_work(shmalloc_root_remove(f.heap, "far"));
    must_work(shmalloc_root_remove(f.heap, "large"));
}

Test(error, an_address_space_limit_is_answered)
{
    if (TEST_ASAN)
        cr_skip_test("the sanitizer's own shadow does not fit under the limit");
    cr_assert_eq(run_child(address_space_limit, NULL), 0);
}
