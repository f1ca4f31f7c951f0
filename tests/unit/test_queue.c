/* SPDX-License-Identifier: MIT */
/*
 * test_queue.c - queues: what is sent arrives, once and in order; claims of the dead; refs;
 * waiting; wrong inputs; freeing.
 *
 * Would fail if a message were lost, changed, delivered twice unflagged or out of order, a block
 * leaked, a wait missed its wake-up or its end, or a freed, foreign or damaged queue were used.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include <shmalloc/queue.h>

#include "slots/context.h"
#include "heap_suite.h"

/* Headers that were used once stay; so some are used before the counting begins. */
static void use_headers(void)
{
    shmalloc_ref refs[4];
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_queue_create(f.heap, NULL, &refs[i]));
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_queue_free(f.heap, &refs[i]));
}
HEAP_SUITE_AFTER(queue, 0, 60, use_headers());

/* ---- helpers ---- */

static shmalloc_queue make(uint64_t capacity, uint64_t most)
{
    shmalloc_queue q;
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    o.capacity = capacity;
    o.most = most;
    must_code(shmalloc_queue_open_root(f.heap, "queue", &o, &q), SHMALLOC_CREATED);
    return q;
}

static void drop(void)
{
    must_work(shmalloc_queue_remove(f.heap, "queue"));
}

static void send_stamped(shmalloc_queue *q, uint64_t stamp, size_t length)
{
    char bytes[20000];
    pattern_fill(bytes, 0, length, stamp);
    must_work(shmalloc_queue_send(q, bytes, length, 0));
}

static void must_be_stamped(const shmalloc_message *m, uint64_t stamp, size_t length,
                            int redelivered)
{
    must(m->length == length && m->redelivered == redelivered && m->ref == 0,
         "message %llu has %zu bytes, redelivered %d", (unsigned long long)stamp, m->length,
         m->redelivered);
    must(pattern_check(m->data, length, stamp) == length, "message %llu is another",
         (unsigned long long)stamp);
}

static void take_stamped(shmalloc_queue *q, uint64_t stamp, size_t length, int redelivered)
{
    shmalloc_message m;
    must_work(shmalloc_queue_take(q, &m, 0));
    must_be_stamped(&m, stamp, length, redelivered);
    must_work(shmalloc_queue_ack(q, &m));
}

static void must_be_empty(shmalloc_queue *q)
{
    shmalloc_message m;
    must_code(shmalloc_queue_take(q, &m, 0), -EAGAIN);
    must(shmalloc_queue_count(q) == 0, "%lld messages", (long long)shmalloc_queue_count(q));
}

static const size_t lengths[] = {0, 1, 111, 112, 113, 1000, 8192, 20000};
#define LENGTHS (sizeof(lengths) / sizeof(lengths[0]))

/* ---- messages ---- */

Test(queue, messages_of_all_lengths_arrive_in_order)
{
    shmalloc_queue q = make(16, 0);
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < LENGTHS; i++)
            send_stamped(&q, 100 * (unsigned)round + i, lengths[i]);
        must(shmalloc_queue_count(&q) == LENGTHS, "%lld messages",
             (long long)shmalloc_queue_count(&q));
        for (size_t i = 0; i < LENGTHS; i++)
            take_stamped(&q, 100 * (unsigned)round + i, lengths[i], 0);
        must_be_empty(&q);
    }
    drop();
}

Test(queue, a_full_queue_takes_no_more)
{
    shmalloc_message m;
    shmalloc_queue q = make(3, 0); /* rounded up to 4 */
    for (unsigned i = 0; i < 4; i++)
        send_stamped(&q, i, 50);
    must_code(shmalloc_queue_send(&q, "x", 1, 0), -EAGAIN);
    must_code(shmalloc_queue_send(&q, "x", 1, 30000000), -ETIMEDOUT);
    must_work(shmalloc_queue_take(&q, &m, 0)); /* a place is free when its message is
                                                  acknowledged */
    must_code(shmalloc_queue_send(&q, "x", 1, 0), -EAGAIN);
    must_work(shmalloc_queue_ack(&q, &m));
    send_stamped(&q, 4, 50);
    for (unsigned i = 1; i < 5; i++)
        take_stamped(&q, i, 50, 0);
    must_be_empty(&q);
    must_code(shmalloc_queue_take(&q, &m, 30000000), -ETIMEDOUT);
    drop();
}

Test(queue, receive_copies_and_acknowledges)
{
    char bytes[200];
    size_t length = 0;
    shmalloc_queue q = make(4, 0);
    for (unsigned i = 0; i < 10; i++) {
        send_stamped(&q, i, 150);
        must_code(shmalloc_queue_receive(&q, bytes, 149, &length, 0), -EMSGSIZE); /* it stays */
        cr_assert_eq(length, 150);
        must_work(shmalloc_queue_receive(&q, bytes, sizeof(bytes), &length, 0));
        cr_assert_eq(length, 150);
        cr_assert_eq(pattern_check(bytes, length, i), length);
    }
    must_code(shmalloc_queue_receive(&q, bytes, sizeof(bytes), &length, 0), -EAGAIN);
    drop();
}

Test(queue, what_is_returned_is_delivered_again)
{
    shmalloc_message a, b;
    shmalloc_queue q = make(4, 0);
    send_stamped(&q, 1, 300);
    send_stamped(&q, 2, 30);
    must_work(shmalloc_queue_take(&q, &a, 0));
    must_work(shmalloc_queue_return(&q, &a));
    must_code(shmalloc_queue_return(&q, &a), SHMALLOC_ENOTOWNER);
    must_work(shmalloc_queue_take(&q, &b, 0));
    must_be_stamped(&b, 1, 300, 1);
    must_code(shmalloc_queue_ack(&q, &a), 0); /* it is the same message, which this thread has
                                                 again */
    must_code(shmalloc_queue_ack(&q, &b), SHMALLOC_ENOTOWNER);
    take_stamped(&q, 2, 30, 0);
    must_be_empty(&q);
    drop();
}

Test(queue, two_may_be_taken_at_once_and_acknowledged_in_any_order)
{
    shmalloc_message m[4];
    shmalloc_queue q = make(4, 0);
    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 4; i++)
            send_stamped(&q, i, i * 90);
        for (unsigned i = 0; i < 4; i++)
            must_work(shmalloc_queue_take(&q, &m[i], 0));
        for (unsigned i = 0; i < 4; i++) {
            unsigned j = (i * 3 + round) % 4;
            must_be_stamped(&m[j], j, j * 90, 0);
            must_work(shmalloc_queue_ack(&q, &m[j]));
            must_code(shmalloc_queue_ack(&q, &m[j]), SHMALLOC_ENOTOWNER);
        }
    }
    must_be_empty(&q);
    drop();
}

/* ---- refs ---- */

struct node {
    shmalloc_ref next;
    uint64_t value;
};

static shmalloc_ref *word_in_heap(void)
{
    return shmalloc_calloc(f.heap, 1, sizeof(shmalloc_ref));
}

Test(queue, a_graph_is_sent_and_received_as_a_ref)
{
    shmalloc_message m;
    shmalloc_queue q = make(4, 0);
    shmalloc_ref *from = word_in_heap(), *to = word_in_heap();
    for (unsigned i = 0; i < 10; i++) {
        must_work(shmalloc_ref_alloc(f.heap, sizeof(struct node), from));
        struct node *first = shmalloc_ptr(f.heap, *from);
        must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct node), &first->next));
        ((struct node *)shmalloc_ptr(f.heap, first->next))->value = i;
        shmalloc_ref was = *from;
        must_work(shmalloc_queue_send_ref(&q, from, 0));
        cr_assert_eq(*from, 0);
        must_work(shmalloc_queue_take(&q, &m, 0));
        cr_assert(m.ref == was && !m.data);
        must_work(shmalloc_queue_ack_ref(&q, &m, to));
        cr_assert_eq(*to, was);
        first = shmalloc_ptr(f.heap, *to);
        cr_assert_eq(((struct node *)shmalloc_ptr(f.heap, first->next))->value, i);
        must_work(shmalloc_ref_free(f.heap, &first->next));
        must_work(shmalloc_ref_free(f.heap, to));
    }
    must_be_empty(&q);
    must_code(shmalloc_queue_send_ref(&q, from, 0), SHMALLOC_EBADREF); /* 0 */
    *from = 12345;
    must_code(shmalloc_queue_send_ref(&q, from, 0), SHMALLOC_EBADREF);
    must_code(shmalloc_queue_send_ref(&q, NULL, 0), -EINVAL);
    must_work(shmalloc_free(f.heap, from));
    must_work(shmalloc_free(f.heap, to));
    drop();
}

Test(queue, refs_outside_the_heap_work_too)
{
    size_t length;
    char byte;
    shmalloc_message m;
    shmalloc_ref ref;
    shmalloc_queue q = make(4, 0);
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    shmalloc_ref was = ref, got = 0;
    must_work(shmalloc_queue_send_ref(&q, &ref, 0));
    cr_assert_eq(ref, 0);
    /* a ref must be taken */
    must_code(shmalloc_queue_receive(&q, &byte, 1, &length, 0), -EMSGSIZE);
    must_work(shmalloc_queue_take(&q, &m, 0));
    must_work(shmalloc_queue_ack_ref(&q, &m, &got));
    cr_assert_eq(got, was);
    must_work(shmalloc_ref_free(f.heap, &got));
    send_stamped(&q, 1, 10);
    must_work(shmalloc_queue_take(&q, &m, 0));
    must_code(shmalloc_queue_ack_ref(&q, &m, &got), -EINVAL); /* no ref */
    must_work(shmalloc_queue_ack(&q, &m));
    drop();
}

Test(queue, freeing_frees_messages_and_what_was_lent)
{
    shmalloc_message m;
    shmalloc_queue q = make(16, 0);
    shmalloc_ref ref;
    for (size_t i = 0; i < LENGTHS; i++)
        send_stamped(&q, i, lengths[i]);
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_queue_send_ref(&q, &ref, 0));
    must_work(shmalloc_queue_create(f.heap, NULL, &ref)); /* a queue in a queue */
    shmalloc_queue inner;
    must_work(shmalloc_queue_open(f.heap, ref, &inner));
    send_stamped(&inner, 1, 5000);
    must_work(shmalloc_queue_create(f.heap, NULL, &ref));
    must_work(shmalloc_queue_send_ref(&inner, &ref, 0));
    shmalloc_ref inner_ref = shmalloc_queue_ref(&inner);
    must_work(shmalloc_queue_send_ref(&q, &inner_ref, 0));
    must_work(shmalloc_queue_take(&q, &m, 0));
    drop();
    must_code(shmalloc_queue_take(&q, &m, 0), SHMALLOC_EGONE);
    must_code(shmalloc_queue_take(&inner, &m, 0), SHMALLOC_EGONE);
}

/* ---- the dead ---- */

struct death {
    int what;
    shmalloc_queue queue;
};

static int die_after(void *arg)
{
    struct death *d = arg;
    shmalloc_message m;
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_queue q;
    must_work(shmalloc_queue_open_root(heap, "queue", NULL, &q));
    must_work(shmalloc_queue_take(&q, &m, 0));
    if (d->what == 1)
        must_work(shmalloc_queue_ack(&q, &m));
    kill(getpid(), SIGKILL);
    return 0;
}

Test(queue, what_the_dead_took_is_delivered_again)
{
    struct death d = {.what = 0};
    shmalloc_message m;
    shmalloc_queue q = make(8, 0);
    for (size_t i = 0; i < LENGTHS; i++)
        send_stamped(&q, i, lengths[i]);
    for (unsigned round = 0; round < 2; round++) {
        d.what = (int)round;
        cr_assert_eq(run_child(die_after, &d), -SIGKILL);
        unsigned seen = 0, again = 0;
        while (shmalloc_queue_take(&q, &m, 300000000) == 0) {
            seen++;
            again += (unsigned)m.redelivered;
            must_work(shmalloc_queue_ack(&q, &m));
        }
        cr_assert_eq(seen, LENGTHS - round);
        cr_assert_eq(again, 1 - round);
        must_be_empty(&q);
        for (size_t i = 0; i < LENGTHS; i++)
            send_stamped(&q, i, lengths[i]);
    }
    drop();
}

static void *take_and_end(void *arg)
{
    shmalloc_message m;
    must_work(shmalloc_queue_take(arg, &m, 0));
    return NULL;
}

Test(queue, what_a_thread_took_that_ended_is_delivered_again)
{
    pthread_t thread;
    shmalloc_queue q = make(8, 0);
    send_stamped(&q, 7, 500);
    pthread_create(&thread, NULL, take_and_end, &q);
    pthread_join(thread, NULL);
    take_stamped(&q, 7, 500, 1); /* at once: the end of the thread is counted */
    must_be_empty(&q);
    drop();
}

Test(queue, a_message_is_its_takers_alone)
{
    shmalloc_message m, other;
    shmalloc_queue q = make(8, 0);
    send_stamped(&q, 7, 500);
    must_work(shmalloc_queue_take(&q, &m, 0));
    pid_t child = fork();
    if (child == 0) /* another process: it has not taken it, and there is no other */
        _exit(shmalloc_queue_ack(&q, &m) == SHMALLOC_ENOTOWNER &&
                      shmalloc_queue_take(&q, &other, 0) == -EAGAIN
                  ? 0
                  : 1);
    cr_assert_eq(wait_child(child), 0);
    must_work(shmalloc_queue_ack(&q, &m));
    must_be_empty(&q);
    drop();
}

/* The states that a kill leaves, planted, at every place of the ring: the thread slot that they
 * name is nobody's. */
static struct smf_cell *cell_of(const shmalloc_queue *q, uint64_t i)
{
    struct smf_queue *header = shmalloc_ptr(f.heap, shmalloc_queue_ref(q));
    return (struct smf_cell *)shmalloc_ptr(f.heap, header->cells) + i;
}

static void plant(const shmalloc_queue *q, uint64_t i, enum smf_cell_state state)
{
    struct smf_cell *cell = cell_of(q, i);
    uint64_t nobody = 1000ull << 24 | 77;
    cell->state = (cell->state >> SMF_CELL_LAP_SHIFT << SMF_CELL_LAP_SHIFT) |
                  (uint64_t)state << SMF_CELL_STATE_SHIFT | nobody;
}

Test(queue, a_taker_that_died_before_it_moved_on_loses_no_message)
{
    shmalloc_queue q = make(4, 0);
    struct smf_queue *header = shmalloc_ptr(f.heap, shmalloc_queue_ref(&q));
    send_stamped(&q, 1, 200);
    send_stamped(&q, 2, 20);
    plant(&q, 0, SMF_CELL_READING); /* `first` is 0 still */
    header->seen = f.heap->state->claims_gone; /* and its death was looked for already */
    take_stamped(&q, 1, 200, 1);
    take_stamped(&q, 2, 20, 0);
    must_be_empty(&q);
    for (unsigned i = 0; i < 9; i++) {
        send_stamped(&q, i, 20);
        take_stamped(&q, i, 20, 0);
    }
    drop();
}

Test(queue, dead_senders_leave_an_empty_place)
{
    shmalloc_queue q = make(4, 0);
    for (unsigned i = 0; i < 4; i++)
        send_stamped(&q, i, 200);
    plant(&q, 0, SMF_CELL_WRITING); /* with a block */
    plant(&q, 2, SMF_CELL_WRITING);
    take_stamped(&q, 1, 200, 0);
    take_stamped(&q, 3, 200, 0);
    must_be_empty(&q);
    for (unsigned i = 0; i < 9; i++) {
        send_stamped(&q, i, 20);
        take_stamped(&q, i, 20, 0);
    }
    drop();
}

Test(queue, what_was_acknowledged_by_the_dead_is_gone)
{
    shmalloc_message m;
    shmalloc_queue q = make(4, 0);
    for (unsigned i = 0; i < 4; i++)
        send_stamped(&q, i, 200);
    must_work(shmalloc_queue_take(&q, &m, 0));
    must_work(shmalloc_queue_ack(&q, &m));
    must_work(shmalloc_queue_take(&q, &m, 0));
    plant(&q, 1, SMF_CELL_ACKED);
    send_stamped(&q, 4, 200);
    send_stamped(&q, 5, 200); /* into the place of the dead one */
    for (unsigned i = 2; i < 6; i++)
        take_stamped(&q, i, 200, 0);
    must_be_empty(&q);
    struct smi_thread *t = smi_current;
    t->slot->queue_claims = 0; /* of the planted one */
    drop();
}

/* ---- waiting ---- */

static int send_a_bit_later(void *arg)
{
    shmalloc_queue *q = arg;
    usleep(50000);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t value = i;
        must_work(shmalloc_queue_send(q, &value, sizeof(value), SHMALLOC_NEVER));
        if (i % 30 == 0)
            usleep(3000);
    }
    return 0;
}

Test(queue, receivers_wait_for_senders_and_senders_for_room)
{
    shmalloc_queue q = make(4, 0);
    pid_t child = start_child(send_a_bit_later, &q);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t value = 0;
        size_t length;
        must_work(shmalloc_queue_receive(&q, &value, sizeof(value), &length, 20000000000ull));
        cr_assert_eq(value, i);
        if (i % 20 == 0)
            usleep(5000);
    }
    cr_assert_eq(wait_child(child), 0);
    must_be_empty(&q);
    drop();
}

static int wait_for_message(void *arg)
{
    shmalloc_message m;
    return shmalloc_queue_take(arg, &m, 20000000000ull) == SHMALLOC_EGONE ? 0 : 1;
}

Test(queue, freeing_ends_the_waiting_of_others)
{
    shmalloc_queue q = make(4, 0);
    pid_t one = start_child(wait_for_message, &q), two = start_child(wait_for_message, &q);
    usleep(50000);
    drop();
    cr_assert_eq(wait_child_within(one, 10000), 0);
    cr_assert_eq(wait_child_within(two, 10000), 0);
}

static int stop_in_a_call(void *arg)
{
    shmalloc_message m;
    must_code(shmalloc_queue_take(arg, &m, 0), -EAGAIN);
    smi_current->slot->using_structure = shmalloc_queue_ref(arg);
    while (shmalloc_queue_ref(arg) != 0)
        pause();
    return 0;
}

Test(queue, what_a_stopped_call_uses_comes_back_later)
{
    shmalloc_ref ref;
    shmalloc_queue q;
    must_work(shmalloc_queue_create(f.heap, NULL, &ref));
    must_work(shmalloc_queue_open(f.heap, ref, &q));
    pid_t child = start_child(stop_in_a_call, &q);
    usleep(100000);
    must_work(shmalloc_queue_free(f.heap, &ref));
    cr_assert_eq(ref, 0);
    must_code(shmalloc_queue_create(f.heap, NULL, &ref), SHMALLOC_EBUSY);
    kill_child(child);
    must_work(shmalloc_queue_create(f.heap, NULL, &ref));
    must_work(shmalloc_queue_free(f.heap, &ref));
}

/* ---- wrong inputs ---- */

Test(queue, wrong_refs_and_types)
{
    shmalloc_queue q, other;
    shmalloc_ref block, ref;
    must_work(shmalloc_ref_alloc(f.heap, 600, &block));
    must_code(shmalloc_queue_open(f.heap, 0, &q), SHMALLOC_EBADREF);
    must_code(shmalloc_queue_open(f.heap, 123, &q), SHMALLOC_EBADREF);
    must_code(shmalloc_queue_open(f.heap, UINT64_MAX - 63, &q), SHMALLOC_EBADREF);
    must_code(shmalloc_queue_open(f.heap, block, &q), SHMALLOC_ETYPE);
    must_code(shmalloc_queue_open(f.heap, block, NULL), -EINVAL);
    must_code(shmalloc_queue_free(f.heap, &block), SHMALLOC_ETYPE);
    must_work(shmalloc_root_set(f.heap, "block", 7, block));
    must_code(shmalloc_queue_open_root(f.heap, "block", NULL, &q), SHMALLOC_ETYPE);
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    must_code(shmalloc_queue_open_root(f.heap, "block", &o, &q), SHMALLOC_ETYPE);
    must_code(shmalloc_queue_open_root(f.heap, "none", NULL, &q), SHMALLOC_ENOROOT);
    must_code(shmalloc_queue_remove(f.heap, "none"), SHMALLOC_ENOROOT);
    must_code(shmalloc_queue_remove(f.heap, "block"), SHMALLOC_ETYPE);
    must_code(shmalloc_queue_open_root(f.heap, "", NULL, &q), -EINVAL);
    must_work(shmalloc_root_remove(f.heap, "block"));
    must_work(shmalloc_ref_free(f.heap, &block));
    shmalloc_heap *second = heap_create(fixture_path(&f, "second"), SHMALLOC_CREATE);
    must_work(shmalloc_queue_create(f.heap, NULL, &ref));
    must_code(shmalloc_queue_open(second, ref, &other), SHMALLOC_EBADREF);
    must_work(shmalloc_close(second));
    must_work(shmalloc_queue_free(f.heap, &ref));
    must_work(shmalloc_queue_free(f.heap, &ref)); /* 0 does nothing */
}

Test(queue, wrong_options_and_lengths)
{
    shmalloc_ref ref;
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    o.capacity = (1 << 24) + 1;
    must_code(shmalloc_queue_create(f.heap, &o, &ref), -EINVAL);
    o.capacity = 16;
    o.most = 1ull << 32;
    must_code(shmalloc_queue_create(f.heap, &o, &ref), -EINVAL);
    o.most = 0;
    o.struct_size = 8;
    must_code(shmalloc_queue_create(f.heap, &o, &ref), -EINVAL);
    struct {
        shmalloc_queue_options known;
        uint64_t later;
    } newer = {SHMALLOC_QUEUE_OPTIONS_INIT, 0};
    newer.known.struct_size = sizeof(newer);
    must_work(shmalloc_queue_create(f.heap, &newer.known, &ref));
    must_work(shmalloc_queue_free(f.heap, &ref));
    newer.later = 1;
    must_code(shmalloc_queue_create(f.heap, &newer.known, &ref), -EINVAL);
    must_code(shmalloc_queue_create(f.heap, NULL, NULL), -EINVAL);
    shmalloc_queue q = make(16, 200), none = {0};
    char bytes[201] = {0};
    must_code(shmalloc_queue_send(&q, bytes, 201, 0), -EMSGSIZE);
    must(strstr(shmalloc_errmsg(), "200"), "the message is: %s", shmalloc_errmsg());
    must_work(shmalloc_queue_send(&q, bytes, 200, 0));
    must_code(shmalloc_queue_send(&q, NULL, 1, 0), -EINVAL);
    must_code(shmalloc_queue_take(&q, NULL, 0), -EINVAL);
    must_code(shmalloc_queue_ack(&q, NULL), -EINVAL);
    must_code(shmalloc_queue_receive(&q, bytes, 201, NULL, 0), -EINVAL);
    must_code(shmalloc_queue_send(&none, bytes, 1, 0), -EINVAL);
    must_code((int)shmalloc_queue_count(&none), -EINVAL);
    drop();
}

Test(queue, a_freed_queue_is_refused_also_when_another_one_is_there)
{
    shmalloc_ref ref, again;
    shmalloc_queue q;
    shmalloc_message m;
    must_work(shmalloc_queue_create(f.heap, NULL, &ref));
    shmalloc_ref was = ref;
    must_work(shmalloc_queue_open(f.heap, ref, &q));
    must_work(shmalloc_queue_free(f.heap, &ref));
    must_code(shmalloc_queue_open(f.heap, was, &q), SHMALLOC_EGONE);
    must_code(shmalloc_queue_free(f.heap, &was), SHMALLOC_EGONE);
    must_work(shmalloc_queue_create(f.heap, NULL, &again));
    must_code(shmalloc_queue_send(&q, "x", 1, 0), SHMALLOC_EGONE);
    must_code(shmalloc_queue_take(&q, &m, SHMALLOC_NEVER), SHMALLOC_EGONE);
    must_code((int)shmalloc_queue_count(&q), SHMALLOC_EGONE);
    must_work(shmalloc_queue_free(f.heap, &again));
}

Test(queue, read_only_can_count)
{
    shmalloc_options o = SHMALLOC_OPTIONS_INIT;
    o.flags = SHMALLOC_READ_ONLY;
    shmalloc_heap *reader;
    shmalloc_message m;
    shmalloc_queue q = make(16, 200), seen;
    send_stamped(&q, 1, 10);
    must_work(shmalloc_close(f.heap)); /* another mapping of it, in this process */
    must_work(shmalloc_open(f.path, &o, &reader));
    must_work(shmalloc_queue_open_root(reader, "queue", NULL, &seen));
    cr_assert_eq(shmalloc_queue_count(&seen), 1);
    must_code(shmalloc_queue_send(&seen, "x", 1, 0), SHMALLOC_EREADONLY);
    must_code(shmalloc_queue_take(&seen, &m, 0), SHMALLOC_EREADONLY);
    must_work(shmalloc_close(reader));
    f.heap = heap_open(f.path);
    must_work(shmalloc_queue_open_root(f.heap, "queue", NULL, &q));
    take_stamped(&q, 1, 10, 0);
    drop();
}

Test(queue, a_private_heap_has_queues)
{
    shmalloc_heap *heap;
    shmalloc_ref ref;
    shmalloc_queue q;
    shmalloc_message m;
    must_work(shmalloc_open_private(NULL, &heap));
    must_work(shmalloc_queue_create(heap, NULL, &ref));
    must_work(shmalloc_queue_open(heap, ref, &q));
    must_work(shmalloc_queue_send(&q, "hello", 5, 0));
    must_work(shmalloc_queue_take(&q, &m, 0));
    must_work(shmalloc_queue_ack(&q, &m));
    must_code(shmalloc_queue_take(&q, &m, 30000000), -ETIMEDOUT);
    must_work(shmalloc_queue_free(heap, &ref));
    must_work(shmalloc_close(heap));
}

/* ---- damage ---- */

static int note_invariant(const char *wanted)
{
    int rc = shmalloc_check(f.heap);
    char place[16];
    snprintf(place, sizeof(place), "%s at ", wanted);
    return rc == SHMALLOC_ECORRUPT && strstr(shmalloc_errmsg(), place) != NULL;
}

/* Store a value to a word: the check must name the invariant. Then the word is what it was. */
static void must_trip(const char *invariant, void *word, size_t bytes, uint64_t value)
{
    uint64_t good = 0;
    memcpy(&good, word, bytes);
    memcpy(word, &value, bytes);
    must(note_invariant(invariant), "%#llx should trip %s; the check says: %s",
         (unsigned long long)value, invariant, shmalloc_errmsg());
    memcpy(word, &good, bytes);
    must_work(shmalloc_check(f.heap));
}

Test(queue, the_check_finds_each_damage)
{
    shmalloc_queue q = make(16, 0);
    shmalloc_ref ref;
    struct smf_queue *header = shmalloc_ptr(f.heap, shmalloc_queue_ref(&q));
    send_stamped(&q, 1, 1000);
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_queue_send_ref(&q, &ref, 0));
    must_trip("Q1", &header->head.life, 8, header->head.life | 7);
    must_trip("Q1", &header->head.tag, 8, SMF_TAG_VECTOR);
    must_trip("Q1", &f.heap->state->structure_headers, 8, shmalloc_queue_ref(&q));
    must_trip("Q1", &f.heap->state->structure_headers, 8, 12345);
    must_trip("Q1", &smi_current->slot->structure, 8, f.heap->state->size);
    must_trip("Q2", &header->capacity, 8, 15);
    must_trip("Q2", &header->capacity, 8, 1 << 20);
    must_trip("Q2", &header->cells, 8, 64);
    must_trip("Q2", &header->cells, 8, UINT64_MAX - 63);
    must_trip("Q3", &cell_of(&q, 3)->state, 8, 7ull << SMF_CELL_STATE_SHIFT);
    must_trip("Q3", &cell_of(&q, 3)->state, 8, 5ull << SMF_CELL_LAP_SHIFT);
    must_trip("Q3", &cell_of(&q, 3)->state, 8,
              (uint64_t)SMF_CELL_WRITING << SMF_CELL_STATE_SHIFT | 1500ull << 24);
    must_trip("Q4", &cell_of(&q, 3)->flags, 4, SMF_CELL_BLOCK);
    must_trip("Q4", &cell_of(&q, 0)->ref, 8, 8192);
    must_trip("Q4", &cell_of(&q, 0)->length, 4, 100000);
    must_trip("Q4", &cell_of(&q, 0)->flags, 4, 0);
    must_trip("Q4", &cell_of(&q, 1)->ref, 8, 12345);
    must_trip("Q5", &header->tail, 8, 1000);
    drop();
}

Test(queue, damaged_cells_end_in_errors_not_in_loops)
{
    struct rng rng = rng_from(test_seed());
    shmalloc_queue q = make(16, 0);
    struct smf_queue *header = shmalloc_ptr(f.heap, shmalloc_queue_ref(&q));
    struct smf_queue good = *header;
    struct smf_cell cells[16], *at = cell_of(&q, 0);
    send_stamped(&q, 1, 1000);
    send_stamped(&q, 2, 10);
    uint64_t first = header->first, tail = header->tail;
    memcpy(cells, at, sizeof(cells));
    for (unsigned i = 0; i < 3000; i++) {
        shmalloc_message m;
        char bytes[2000];
        size_t length;
        int answers[3];
        /* Not `ref`: what a damaged one names may be somebody else's block. */
        uint64_t *word = rng_below(&rng, 3) == 0
                             ? (uint64_t *)header + 8 + rng_below(&rng, 48)
                             : (uint64_t *)(at + rng_below(&rng, 16)) + rng_below(&rng, 2);
        *word = rng_below(&rng, 2) ? rng_next(&rng) : *word ^ 1ull << rng_below(&rng, 64);
        if (shmalloc_queue_take(&q, &m, 0) == 0)
            shmalloc_queue_return(&q, &m);
        answers[0] = shmalloc_queue_send(&q, "x", 1, 0); /* whatever they are */
        answers[1] = shmalloc_queue_receive(&q, bytes, 0, &length, 0);
        answers[2] = shmalloc_queue_open_root(f.heap, "queue", NULL, &(shmalloc_queue){0});
        shmalloc_queue_count(&q);
        must(answers[0] <= 0 && answers[1] <= 0 && answers[2] <= 0, "no answers");
        int is_freed = at->ref != cells[0].ref; /* a claim of nobody's for writing, or acknowledged,
                                                   is finished */
        memcpy(at, cells, sizeof(cells));
        *header = good;
        header->first = first;
        header->tail = tail;
        header->seen = f.heap->state->claims_gone;
        smi_current->slot->queue_claims = 0;
        if (is_freed) {
            at->ref = 0;
            must_work(shmalloc_ref_alloc(f.heap, 1000, &at->ref));
            pattern_fill(shmalloc_ptr(f.heap, at->ref), 0, 1000, 1);
            cells[0].ref = at->ref;
        }
    }
    take_stamped(&q, 1, 1000, 0);
    take_stamped(&q, 2, 10, 0);
    drop();
}
