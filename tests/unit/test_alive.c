/* SPDX-License-Identifier: MIT */
/*
 * test_alive.c - ids of attachments, and who is alive: threads, forked children, readers, processes
 * that were killed.
 *
 * Would fail if anybody who lives were called dead for an instant, be it by whoever has no entry of
 * his own; if a death had to be noticed by somebody before it is told; or if an id came back.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "heap_suite.h"
#include "format/layout.h"

HEAP_SUITE(alive, 0, 60);

/* Ids that processes tell each other, and how far they are. */
struct shared {
    uint64_t id[8];
    uint32_t told, may_go, asked, wrong;
};

static struct shared *s;

static void must_answer(const shmalloc_heap *heap, uint64_t id, int answer)
{
    int rc = shmalloc_is_alive(heap, id);
    must(rc == answer, "%#llx: expected %d, found %d (%s)", (unsigned long long)id, answer, rc,
         shmalloc_errmsg());
}

static shmalloc_heap *open_for_reading(const char *path)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(path, &options, &heap));
    return heap;
}

static void *tell_in_thread(void *arg)
{
    uint64_t *id = arg;
    *id = shmalloc_self(f.heap);
    must(*id != 0 && shmalloc_self(f.heap) == *id, "%s", shmalloc_errmsg());
    must_answer(f.heap, *id, 1);
    return NULL;
}

Test(alive, threads_have_ids_of_their_own_until_they_end)
{
    uint64_t mine = shmalloc_self(f.heap), ids[20];
    must_answer(f.heap, mine, 1);
    for (int i = 0; i < 20; i++) { /* all in the same slot, one after the other */
        pthread_t thread;
        must(pthread_create(&thread, NULL, tell_in_thread, &ids[i]) == 0, "no thread");
        pthread_join(thread, NULL);
        must_answer(f.heap, ids[i], 0);
        for (int k = 0; k < i; k++)
            must(ids[k] != ids[i] && ids[i] != mine, "the id %#llx came back",
                 (unsigned long long)ids[i]);
    }
    must_answer(f.heap, mine, 1);
}

Test(alive, ids_that_nobody_was_given)
{
    uint64_t mine = shmalloc_self(f.heap);
    const uint64_t nobody[] = {0,
                               1,
                               1024,
                               1025,
                               0x7fff,
                               SMF_LEFT,
                               mine | SMF_LEFT,
                               mine + (1 << SMF_OWNER_SERIAL_SHIFT),
                               mine - (1 << SMF_OWNER_SERIAL_SHIFT),
                               mine + 1,
                               mine ^ 1ull << 63,
                               UINT64_MAX};
    for (size_t i = 0; i < sizeof(nobody) / sizeof(nobody[0]); i++)
        must_answer(f.heap, nobody[i], 0);
}

Test(alive, a_close_ends_it_and_the_next_open_begins_another)
{
    uint64_t before_close = shmalloc_self(f.heap);
    shmalloc_heap *reader = open_for_reading(f.path);
    must_answer(reader, before_close, 1);
    must_code(shmalloc_self(reader) != 0, 0); /* it changes nothing, so it has no attachment */
    must_work(shmalloc_close(f.heap));
    must_answer(reader, before_close, 0);
    f.heap = heap_open(f.path);
    must_answer(f.heap, before_close, 0);
    uint64_t again = shmalloc_self(f.heap);
    must(again != before_close, "the id came back");
    must_answer(f.heap, again, 1);
    must_answer(reader, again, 1);
    must_answer(reader, before_close, 0);
    must_work(shmalloc_close(reader));
    int rc = shmalloc_is_alive(reader, again);
    must(rc == SHMALLOC_ECLOSED, "a closed heap: %d", rc);
}

/* Attach, tell, and wait for the end. */
static int tell_and_wait(void *arg)
{
    shmalloc_heap *heap = arg ? fixture_join(&f) : f.heap;
    s->id[1] = shmalloc_self(heap);
    signal_word(&s->told);
    await_word(&s->may_go, 1);
    return shmalloc_close(heap) < 0;
}

/* Stopped, a process still is alive; killed, it is dead at once, for whoever looks and whether or
 * not anybody adopted it. */
static void kill_and_ask(pid_t pid, shmalloc_heap *reader)
{
    await_word(&s->told, 1);
    uint64_t id = s->id[1];
    must(id != 0 && id != shmalloc_self(f.heap), "the id %#llx", (unsigned long long)id);
    must_answer(f.heap, id, 1);
    must_answer(reader, id, 1);
    kill(pid, SIGSTOP);
    must_answer(f.heap, id, 1);
    must_answer(reader, id, 1);
    kill_child(pid);
    must_answer(reader, id, 0);
    must_answer(f.heap, id, 0);
    must(heap_stats(f.heap).processes == 2, "it is adopted already: nothing was shown");
    must_answer(f.heap, shmalloc_self(f.heap), 1);
    must_answer(reader, shmalloc_self(f.heap), 1);
}

Test(alive, who_is_killed_is_dead_before_anybody_adopts_it)
{
    s = shared_memory(sizeof(*s));
    shmalloc_heap *reader = open_for_reading(f.path);
    (void)!shmalloc_self(f.heap); /* now, and not after a second, when it would look around and
                                     adopt */
    kill_and_ask(start_child(tell_and_wait, NULL), reader);
    memset(s, 0, sizeof(*s));
    must_work(shmalloc_close(f.heap));
    f.heap = heap_open(f.path); /* which adopts the first */
    (void)!shmalloc_self(f.heap);
    kill_and_ask(start_child(tell_and_wait, &f), reader);
    must_work(shmalloc_close(reader));
}

/* A forked child asks before it has an entry of its own, then gets an id of its own, and loses its
 * parent. */
static int ask_right_after_fork(void *arg)
{
    uint64_t *ids = arg;
    must_answer(f.heap, ids[0], 1); /* the parent's */
    must_answer(f.heap, ids[1], 0);
    uint64_t mine = shmalloc_self(f.heap);
    must(mine != 0 && mine != ids[0], "the parent's id");
    must_answer(f.heap, ids[0], 1);
    must_answer(f.heap, mine, 1);
    return 0;
}

Test(alive, forked_children_are_others)
{
    uint64_t ids[2];
    pthread_t thread;
    must(pthread_create(&thread, NULL, tell_in_thread, &ids[1]) == 0, "no thread");
    pthread_join(thread, NULL);
    ids[0] = shmalloc_self(f.heap);
    cr_assert_eq(run_child(ask_right_after_fork, ids), 0);
    must_answer(f.heap, ids[0], 1);
}

/* A child whose own child asks after it is dead. */
static int die_and_leave_a_child(void *arg)
{
    (void)arg;
    s->id[0] = shmalloc_self(f.heap);
    pid_t me = getpid();
    if (fork() == 0) {
        while (getppid() == me)
            usleep(1000);
        int rc = shmalloc_is_alive(f.heap, s->id[0]);
        s->wrong = rc != 0;
        signal_word(&s->asked);
        _exit(0);
    }
    raise(SIGKILL);
    return 0;
}

Test(alive, an_orphan_that_never_attached_sees_its_parents_death)
{
    s = shared_memory(sizeof(*s));
    cr_assert_eq(run_child(die_and_leave_a_child, NULL), -SIGKILL);
    await_word(&s->asked, 1);
    cr_assert_eq(s->wrong, 0);
    must_answer(f.heap, s->id[0], 0);
}

/* ---- nobody who lives is ever called dead ---- */

#define ROUNDS 60

static int ask_all_the_time(void *arg)
{
    shmalloc_heap *heap = arg ? open_for_reading(f.path) : fixture_join(&f);
    uint64_t parent = s->id[0];
    signal_word(&s->told);
    while (!__atomic_load_n(&s->may_go, __ATOMIC_ACQUIRE)) {
        uint64_t held = shmalloc_load(&s->id[2]); /* of one that holds still until somebody asked */
        int rc = shmalloc_is_alive(heap, parent), other = held ? shmalloc_is_alive(heap, held) : 1;
        if (rc != 1 || (other != 1 && shmalloc_load(&s->id[2]) == held))
            signal_word(&s->wrong);
        signal_word(&s->asked);
    }
    return shmalloc_close(heap) < 0;
}

/* Be seen, do something that an adoption comes in between of, and be gone: dead or in order. */
static int come_and_go(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref ref;
    shmalloc_store(&s->id[2], shmalloc_self(heap));
    uint32_t asked = __atomic_load_n(&s->asked, __ATOMIC_RELAXED);
    for (int i = 0; i < 50; i++) {
        must_work(shmalloc_ref_alloc(heap, 100, &ref));
        must_work(shmalloc_ref_free(heap, &ref));
    }
    await_word(&s->asked, asked + 8);
    shmalloc_store(&s->id[2], 0);
    if (arg)
        raise(SIGKILL);
    return shmalloc_close(heap) < 0;
}

Test(alive, nobody_who_lives_is_called_dead_while_others_come_and_die)
{
    s = shared_memory(sizeof(*s));
    s->id[0] = shmalloc_self(f.heap);
    pid_t asking[] = {start_child(ask_all_the_time, NULL), start_child(ask_all_the_time, &f)};
    await_word(&s->told, 2);
    uint64_t last = 0;
    for (int i = 0; i < ROUNDS; i++) {
        int rc = run_child(come_and_go, i % 3 ? &f : NULL);
        must(rc == (i % 3 ? -SIGKILL : 0), "round %d: %d", i, rc);
        must_answer(f.heap, last, 0);
        must_answer(f.heap, s->id[0], 1);
    }
    must(s->wrong == 0, "%u times somebody who lives was called dead", s->wrong);
    signal_word(&s->may_go);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(wait_child(asking[i]), 0);
}

/* ---- private heaps ---- */

static shmalloc_heap *private_heap;

static void *tell_private(void *arg)
{
    *(uint64_t *)arg = shmalloc_self(private_heap);
    return NULL;
}

static int ask_in_the_copy(void *arg)
{
    uint64_t *ids = arg; /* the thread that forked, another that lived then, one that ended */
    must_answer(private_heap, ids[0], 1);
    must_answer(private_heap, ids[2], 0);
    must(shmalloc_self(private_heap) == ids[0], "the thread that forked has another id");
    must_answer(private_heap, ids[1], 0);
    return 0;
}

static void *tell_private_and_wait(void *arg)
{
    tell_private(arg);
    signal_word(&s->told);
    await_word(&s->may_go, 1);
    return NULL;
}

Test(alive, private_heaps)
{
    s = shared_memory(sizeof(*s));
    must_work(shmalloc_open_private(NULL, &private_heap));
    uint64_t ids[3] = {shmalloc_self(private_heap), 0, 0};
    pthread_t thread;
    must(pthread_create(&thread, NULL, tell_private, &ids[2]) == 0, "no thread");
    pthread_join(thread, NULL);
    must(pthread_create(&thread, NULL, tell_private_and_wait, &ids[1]) == 0, "no thread");
    await_word(&s->told, 1);
    must_answer(private_heap, ids[1], 1);
    cr_assert_eq(run_child(ask_in_the_copy, ids), 0);
    must_answer(private_heap, ids[1], 1);
    signal_word(&s->may_go);
    pthread_join(thread, NULL);
    must_answer(private_heap, ids[1], 0);
    must_answer(private_heap, ids[0], 1);
    must_work(shmalloc_close(private_heap));
}
