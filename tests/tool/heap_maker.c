/* SPDX-License-Identifier: MIT */
/*
 * heap_maker.c - heaps in every state, for the tests of shmalloc-inspect.
 *
 * Usage: heap_maker FILE STEP...
 *   create, hardened   open FILE, made if need be (in hardened mode)
 *   fill=N             allocate N blocks of many sizes, free every third
 *   keep=N             allocate N large blocks and free them all: the thread keeps them (12 at
 *                      most)
 *   pile=N             allocate N small blocks of one size and free them all (10,000 at most)
 *   roots=N            bind N roots
 *   dangle             bind the root "freed" to a block, free that
 *   transaction        begin one and add, allocate, free and store in it; it stays open
 *   map-transaction    make a map with the key "a", begin a transaction and change that key and
 *                      another one in it; it stays open
 *   retire=N           allocate N small blocks and retire them in a read section, which stays
 *                      open
 *   structures         bind a queue of three messages, of which one is taken, and a vector; leave a
 *                      header out of use
 *   odd-names          bind roots whose names hold control characters and invalid UTF-8
 *   close              close the heap in order
 *   hold               print "ready", wait for end of input
 *   weave              print "ready", replace and resize linked blocks for ever in two threads;
 *                      none is ever leaked
 *   churn              print "ready", allocate and free for ever in two threads
 *   stop-in-lock       a child allocates and is stopped where the log of a class lock is armed;
 *                      print "ready PID", wait for end of input, let the child go on
 *   deadlock           two threads hold a mutex each and wait for the other's, one waits for a
 *                      word, one has a mutex that another left by ending; print "ready", wait for
 *                      end of input, end without a word
 *   die                die by SIGKILL
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/map.h>
#include <shmalloc/queue.h>
#include <shmalloc/vector.h>

#include "format/sizeclass.h"
#include "look/view.h"

#define KEPT_SIZE 100000 /* bytes of the blocks that are kept: of 13 pages */
#define PILED_SIZE 48
#define MOST_AT_ONCE 10000
#define STOPPED_SIZE 200 /* bytes of the blocks that the stopped child allocates */

static const char *path;
static shmalloc_heap *heap;

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "heap_maker: %s: %s\n", what, shmalloc_errmsg());
    _exit(9);
}

static void open_heap(unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE | flags;
    options.layout = "maker";
    options.layout_version = 7;
    if (shmalloc_open(path, &options, &heap) < 0)
        fail("open");
}

static void make_structures(void)
{
    char bytes[300];
    shmalloc_ref ref;
    shmalloc_queue queue;
    shmalloc_vector vector;
    shmalloc_message message;
    shmalloc_queue_options options = SHMALLOC_QUEUE_OPTIONS_INIT;
    memset(bytes, 0xab, sizeof(bytes));
    if (shmalloc_queue_open_root(heap, "jobs", &options, &queue) < 0 ||
        shmalloc_queue_send(&queue, "make coffee", 12, 0) < 0 ||
        shmalloc_queue_send(&queue, bytes, 300, 0) < 0 || shmalloc_ref_alloc(heap, 100, &ref) < 0 ||
        shmalloc_queue_send_ref(&queue, &ref, 0) < 0 ||
        shmalloc_queue_take(&queue, &message, 0) < 0 ||
        shmalloc_vector_open_root(heap, "values", 8, &vector) < 0)
        fail("structures");
    for (uint64_t i = 0; i < 100; i++)
        if (shmalloc_vector_append(&vector, &i, NULL) < 0)
            fail("append");
    if (shmalloc_queue_create(heap, NULL, &ref) < 0 || shmalloc_queue_free(heap, &ref) < 0)
        fail("a header out of use");
}

static void fill(long count)
{
    shmalloc_ref refs[3];
    for (long i = 0; i < count; i++) {
        size_t size = (size_t)(i * 37 % 700) + 1;
        int rc = i % 50 == 49 ? shmalloc_ref_alloc(heap, size * 400, &refs[i % 3])
                 : i % 7 == 6
                     ? shmalloc_ref_alloc_tagged(heap, size, (uint16_t)(i % 1000 + 1), &refs[i % 3])
                     : shmalloc_ref_alloc(heap, size, &refs[i % 3]);
        if (rc < 0)
            fail("alloc");
        if (i % 3 == 2 && shmalloc_ref_free(heap, &refs[i / 3 % 3]) < 0)
            fail("free");
    }
}

static void take_and_give(size_t size, long count)
{
    static shmalloc_ref refs[MOST_AT_ONCE];
    for (long i = 0; i < count && i < MOST_AT_ONCE; i++)
        if (shmalloc_ref_alloc(heap, size, &refs[i]) < 0)
            fail("alloc");
    for (long i = 0; i < count && i < MOST_AT_ONCE; i++)
        if (shmalloc_ref_free(heap, &refs[i]) < 0)
            fail("free");
}

/* Leaves an entry of each kind but retire. */
static void leave_transaction(void)
{
    uint64_t *words;
    shmalloc_ref root, ref;
    if (shmalloc_root_get_or_create(heap, "changed", 0, 64, NULL, NULL, &root) < 0 ||
        shmalloc_ref_alloc(heap, 40, &ref) < 0)
        fail("what a transaction changes");
    words = shmalloc_ptr(heap, root);
    if (shmalloc_tx_begin(heap) < 0 || shmalloc_tx_add(heap, words, 16) < 0)
        fail("tx_add");
    words[0] = words[1] = 1;
    shmalloc_ref made;
    if (shmalloc_tx_alloc(heap, 40, &made) < 0 || shmalloc_tx_free(heap, &ref) < 0 ||
        shmalloc_tx_store(heap, &words[2], 2) < 0)
        fail("transaction");
}

static void change_map(void)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    shmalloc_map map;
    if (shmalloc_map_open_root(heap, "map", &options, &map) < 0 ||
        shmalloc_map_put(&map, "a", 1, "before", 6) < 0 || shmalloc_tx_begin(heap) < 0 ||
        shmalloc_map_put(&map, "a", 1, "after", 5) < 0 ||
        shmalloc_map_put(&map, "b", 1, "after", 5) < 0)
        fail("a map in a transaction");
}

static void retire(long count)
{
    shmalloc_ref ref;
    if (shmalloc_read_begin(heap) < 0)
        fail("read_begin");
    for (long i = 0; i < count; i++)
        if (shmalloc_ref_alloc(heap, PILED_SIZE, &ref) < 0 || shmalloc_retire(heap, &ref) < 0)
            fail("retire");
}

static void make_roots(long count)
{
    for (long i = 0; i < count; i++) {
        char name[32];
        shmalloc_ref ref;
        snprintf(name, sizeof(name), "root %ld", i);
        if (shmalloc_root_get_or_create(heap, name, (uint64_t)i, 48, NULL, NULL, &ref) < 0)
            fail("root");
    }
}

static void make_dangling_root(void)
{
    shmalloc_ref ref;
    if (shmalloc_root_get_or_create(heap, "freed", 7, 64, NULL, NULL, &ref) < 0 ||
        shmalloc_ref_free(heap, &ref) < 0)
        fail("dangle");
}

static void make_odd_roots(void)
{
    static const char *const names[] = {"tab\tbell\a", "esc\033[31mred", "bad\xff\xfe",
                                        "gr\xc3\xbc\xc3\x9f", "\u202eturned"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (shmalloc_root_set(heap, names[i], 0xfeedfacecafebeefull, 0) < 0)
            fail("root");
}

static void say(const char *text)
{
    puts(text);
    fflush(stdout);
}

static void wait_for_end_of_input(void)
{
    while (getchar() != EOF)
        ;
}

#define WOVEN 2000

/* Every block is linked, from the root, or from a block that the root names, at every instant. */
static void *weave(void *arg)
{
    shmalloc_ref *words = arg;
    unsigned long random = (unsigned long)(uintptr_t)arg;
    for (;;) {
        random = random * 6364136223846793005ul + 1442695040888963407ul;
        shmalloc_ref *word = &words[(random >> 40) % WOVEN];
        size_t size = (random >> 33) % 200 == 0 ? 100000 : (random >> 20) % 600 + 8;
        int rc = *word == 0                 ? shmalloc_ref_alloc_zeroed(heap, size, word)
                 : (random >> 13) % 3 == 0 ? shmalloc_ref_realloc(heap, word, size)
                                           : shmalloc_ref_free(heap, word);
        if (rc < 0)
            fail("weave");
    }
    return NULL;
}

static void weave_for_ever(void)
{
    shmalloc_ref refs[2];
    char name[32];
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "woven by %d, %d", (int)getpid(), i);
        if (shmalloc_root_get_or_create(heap, name, 0, WOVEN * sizeof(shmalloc_ref), NULL, NULL,
                                        &refs[i]) < 0)
            fail("root");
    }
    say("ready");
    pthread_create(&thread, NULL, weave, shmalloc_ptr(heap, refs[1]));
    weave(shmalloc_ptr(heap, refs[0]));
}

struct churner {
    unsigned long seed;
    pthread_barrier_t *both;
};

/* Enough at once to empty and overflow caches, so that locks are taken. Both threads use the heap
 * from "ready" on. */
static void *churn(void *arg)
{
    enum { SLOTS = 2000 };
    static _Thread_local shmalloc_ref refs[SLOTS];
    struct churner *me = arg;
    unsigned long random = me->seed;
    for (unsigned long round = 0;; round++) {
        if (round == 1 && pthread_barrier_wait(me->both) == PTHREAD_BARRIER_SERIAL_THREAD)
            say("ready");
        random = random * 6364136223846793005ul + 1442695040888963407ul;
        shmalloc_ref *ref = &refs[(random >> 40) % SLOTS];
        size_t size = (random >> 33) % 100 == 0 ? 100000 : (random >> 20) % 600 + 1;
        if ((*ref ? shmalloc_ref_free(heap, ref) : shmalloc_ref_alloc(heap, size, ref)) < 0)
            fail("churn");
    }
    return NULL;
}

static void churn_for_ever(void)
{
    pthread_t thread;
    pthread_barrier_t both;
    struct churner churners[] = {{1, &both}, {2, &both}};
    pthread_barrier_init(&both, NULL, 2);
    pthread_create(&thread, NULL, churn, &churners[1]);
    churn(&churners[0]);
}

/* In the heap. */
struct waited_for {
    shmalloc_mutex first, second, left;
    uint32_t word;
};

struct waiter {
    struct waited_for *at;
    pthread_barrier_t *all;
};

static void lock(shmalloc_mutex *mutex)
{
    if (shmalloc_mutex_lock(heap, mutex) < 0)
        fail("mutex_lock");
}

static void *lock_first_then_second(void *arg)
{
    struct waiter *me = arg;
    lock(&me->at->first);
    pthread_barrier_wait(me->all);
    lock(&me->at->second);
    return NULL;
}

static void *lock_second_then_first(void *arg)
{
    struct waiter *me = arg;
    lock(&me->at->second);
    pthread_barrier_wait(me->all);
    lock(&me->at->first);
    return NULL;
}

static void *wait_for_word(void *arg)
{
    struct waiter *me = arg;
    while (shmalloc_wait(heap, &me->at->word, 0, SHMALLOC_FOREVER) == 0)
        continue;
    return NULL;
}

static void *lock_and_end(void *arg)
{
    lock(&((struct waited_for *)arg)->left);
    return NULL;
}

static void deadlock(void)
{
    pthread_t thread;
    pthread_barrier_t all;
    struct waiter me = {shmalloc_calloc(heap, 1, sizeof(*me.at)), &all};
    if (!me.at)
        fail("calloc");
    pthread_create(&thread, NULL, lock_and_end, me.at);
    pthread_join(thread, NULL);
    lock(&me.at->left);
    pthread_barrier_init(&all, NULL, 3);
    pthread_create(&thread, NULL, lock_first_then_second, &me);
    pthread_create(&thread, NULL, lock_second_then_first, &me);
    pthread_create(&thread, NULL, wait_for_word, &me);
    pthread_barrier_wait(&all);
    say("ready");
    wait_for_end_of_input();
    _exit(0);
}

/* Is the log of a class that the child allocates from armed in the file, half full? */
static int log_is_armed(struct smi_view *view)
{
    for (uint32_t arena = 0; arena < view->header.arena_count; arena++) {
        uint64_t at =
            view->header.areas.central +
            (arena * SMF_CLASSES + smi_class_of(STOPPED_SIZE)) * sizeof(struct smf_central);
        uint64_t count;
        if (smi_view_read_now(view, at, sizeof(count), &count) == 0 && count >= 3)
            return 1;
    }
    return 0;
}

static void stop_in_lock(void)
{
    struct smi_view view;
    if (smi_view_open(&view, path) < 0)
        fail("view");
    pid_t child = fork();
    if (child == 0) {
        shmalloc_ref ref;
        if (shmalloc_ref_alloc(heap, STOPPED_SIZE, &ref) < 0)
            fail("alloc in the child");
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        for (int i = 0; i < 100; i++)
            if (shmalloc_ref_alloc(heap, STOPPED_SIZE, &ref) < 0)
                fail("alloc in the child");
        _exit(0);
    }
    int status;
    do { /* one instruction after the other */
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status) || ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) < 0)
            fail("the child was never inside a lock");
    } while (!log_is_armed(&view));
    smi_view_finish(&view);
    waitpid(child, &status, 0);
    ptrace(PTRACE_DETACH, child, NULL, SIGSTOP);
    printf("ready %d\n", (int)child);
    fflush(stdout);
    wait_for_end_of_input();
    kill(child, SIGCONT);
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("the child did not go on");
}

static void run(const char *step)
{
    const char *equals = strchr(step, '=');
    long count = equals ? atol(equals + 1) : 0;
    if (strcmp(step, "create") == 0)
        open_heap(0);
    else if (strcmp(step, "hardened") == 0)
        open_heap(SHMALLOC_HARDENED);
    else if (strncmp(step, "fill=", 5) == 0)
        fill(count);
    else if (strncmp(step, "keep=", 5) == 0)
        take_and_give(KEPT_SIZE, count);
    else if (strncmp(step, "pile=", 5) == 0)
        take_and_give(PILED_SIZE, count);
    else if (strcmp(step, "transaction") == 0)
        leave_transaction();
    else if (strcmp(step, "map-transaction") == 0)
        change_map();
    else if (strncmp(step, "retire=", 7) == 0)
        retire(count);
    else if (strncmp(step, "roots=", 6) == 0)
        make_roots(count);
    else if (strcmp(step, "odd-names") == 0)
        make_odd_roots();
    else if (strcmp(step, "structures") == 0)
        make_structures();
    else if (strcmp(step, "dangle") == 0)
        make_dangling_root();
    else if (strcmp(step, "hold") == 0)
        say("ready"), wait_for_end_of_input();
    else if (strcmp(step, "weave") == 0)
        weave_for_ever();
    else if (strcmp(step, "churn") == 0)
        churn_for_ever();
    else if (strcmp(step, "stop-in-lock") == 0)
        stop_in_lock();
    else if (strcmp(step, "deadlock") == 0)
        deadlock();
    else if (strcmp(step, "die") == 0)
        raise(SIGKILL);
    else if (strcmp(step, "close") != 0)
        fail(step);
    else if (shmalloc_close(heap) < 0)
        fail("close");
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 9;
    path = argv[1];
    for (int i = 2; i < argc; i++)
        run(argv[i]);
    return 0;
}
