/* SPDX-License-Identifier: MIT */
/*
 * queue_steps.c - a process dies at each instruction of each operation on a queue: with everybody
 * else, or while another one goes on. The kit does it (shmalloc/crashtest.h).
 *
 *   queue_steps [NAME]     all operations, or those whose names contain NAME
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <shmalloc/crashtest.h>
#include <shmalloc/queue.h>

#include "life/adopt.h"
#include "structures/structures.h"
#include "support.h"

#define CALLBACK(name) static int name(shmalloc_heap *heap, void *arg __attribute__((unused)))

static char bytes[700];

static shmalloc_queue queue_in(shmalloc_heap *heap)
{
    shmalloc_queue q;
    must_work(shmalloc_queue_open_root(heap, "queue", NULL, &q));
    return q;
}

static shmalloc_ref *word_in(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "word", 0, &ref));
    return shmalloc_ptr(heap, ref);
}

static void send_filled(shmalloc_queue *q, char letter, size_t length)
{
    memset(bytes, letter, length);
    must_work(shmalloc_queue_send(q, bytes, length, 0));
}

/* ---- states to begin with ---- */

CALLBACK(only_word)
{
    shmalloc_ref ref;
    return shmalloc_root_get_or_create(heap, "word", 0, 8, NULL, NULL, &ref) < 0;
}

CALLBACK(two_messages)
{
    shmalloc_queue q;
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    o.capacity = 4;
    if (only_word(heap, NULL) || shmalloc_queue_open_root(heap, "queue", &o, &q) < 0)
        return 1;
    send_filled(&q, 'a', 300);
    send_filled(&q, 'b', 30);
    return 0;
}

CALLBACK(small_message_first)
{
    shmalloc_queue q;
    if (two_messages(heap, NULL))
        return 1;
    q = queue_in(heap);
    must_work(shmalloc_queue_receive(&q, bytes, sizeof(bytes), &(size_t){0}, 0));
    return 0;
}

CALLBACK(a_block_in_the_word)
{
    return two_messages(heap, NULL) || shmalloc_ref_alloc_zeroed(heap, 40, word_in(heap)) < 0;
}

CALLBACK(a_ref_alone)
{
    shmalloc_queue q;
    if (a_block_in_the_word(heap, NULL))
        return 1;
    q = queue_in(heap);
    for (int i = 0; i < 2; i++)
        must_work(shmalloc_queue_receive(&q, bytes, sizeof(bytes), &(size_t){0}, 0));
    return shmalloc_queue_send_ref(&q, word_in(heap), 0);
}

CALLBACK(a_queue_in_the_word)
{
    shmalloc_queue q;
    shmalloc_ref inner;
    if (only_word(heap, NULL) || shmalloc_queue_create(heap, NULL, word_in(heap)) < 0 ||
        shmalloc_queue_create(heap, NULL, &inner) < 0 || shmalloc_queue_open(heap, inner, &q) < 0)
        return 1;
    send_filled(&q, 'i', 200);
    must_work(shmalloc_queue_open(heap, *word_in(heap), &q));
    must_work(shmalloc_queue_send_ref(&q, &inner, 0));
    send_filled(&q, 'o', 200);
    return 0;
}

/* Somebody took the first message and died, without having moved `first` on, too. */
CALLBACK(taken_by_the_dead)
{
    shmalloc_message m;
    if (two_messages(heap, NULL))
        return 1;
    pid_t pid = fork();
    if (pid == 0) {
        shmalloc_queue q = queue_in(heap);
        if (shmalloc_queue_take(&q, &m, 0) == 0)
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    return wait_child(pid) != -SIGKILL;
}

/* ---- operations ---- */

CALLBACK(send_small)
{
    shmalloc_queue q = queue_in(heap);
    memset(bytes, 'c', 40);
    return shmalloc_queue_send(&q, bytes, 40, 0);
}

CALLBACK(send_long)
{
    shmalloc_queue q = queue_in(heap);
    memset(bytes, 'c', 400);
    return shmalloc_queue_send(&q, bytes, 400, 0);
}

CALLBACK(send_word)
{
    shmalloc_queue q = queue_in(heap);
    return shmalloc_queue_send_ref(&q, word_in(heap), 0);
}

CALLBACK(take)
{
    shmalloc_message m;
    shmalloc_queue q = queue_in(heap);
    return shmalloc_queue_take(&q, &m, 0);
}

CALLBACK(take_and_ack)
{
    shmalloc_message m;
    shmalloc_queue q = queue_in(heap);
    int rc = shmalloc_queue_take(&q, &m, 0);
    return rc < 0 ? rc : shmalloc_queue_ack(&q, &m);
}

CALLBACK(take_and_return)
{
    shmalloc_message m;
    shmalloc_queue q = queue_in(heap);
    int rc = shmalloc_queue_take(&q, &m, 0);
    return rc < 0 ? rc : shmalloc_queue_return(&q, &m);
}

CALLBACK(take_and_ack_ref)
{
    shmalloc_message m;
    shmalloc_queue q = queue_in(heap);
    int rc = shmalloc_queue_take(&q, &m, 0);
    return rc < 0 ? rc : shmalloc_queue_ack_ref(&q, &m, word_in(heap));
}

CALLBACK(receive)
{
    size_t length;
    shmalloc_queue q = queue_in(heap);
    return shmalloc_queue_receive(&q, bytes, sizeof(bytes), &length, 0);
}

CALLBACK(take_from_the_dead)
{
    shmalloc_message m;
    shmalloc_queue q = queue_in(heap);
    int rc = smi_adopt(heap, SMI_ADOPT_ALL);
    if (rc == 0)
        rc = shmalloc_queue_take(&q, &m, 0);
    return rc < 0 ? rc : m.length != 300 || !m.redelivered ? 1 : shmalloc_queue_ack(&q, &m);
}

CALLBACK(create_in_word)
{
    return shmalloc_queue_create(heap, NULL, word_in(heap));
}

CALLBACK(create_root)
{
    shmalloc_queue q;
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    return shmalloc_queue_open_root(heap, "queue", &o, &q) < 0;
}

CALLBACK(free_word)
{
    return shmalloc_queue_free(heap, word_in(heap));
}

CALLBACK(remove_root)
{
    return shmalloc_queue_remove(heap, "queue");
}

/* ---- what is there ---- */

static int print_message(const struct smi_item *item, void *arg)
{
    const char *first = item->bytes;
    shmalloc_crashtest_print("%s: %llu bytes of %c%s\n", (const char *)arg,
                             (unsigned long long)item->length, first ? *first : '-',
                             first ? "" : ", a ref");
    return 0;
}

static int reach(uint64_t ref, void *arg)
{
    (void)arg;
    shmalloc_crashtest_reached(ref);
    return 0;
}

struct look {
    struct smi_view *view;
    uint64_t root, word;
};

/* Those that are being made or freed are reached, too: they come back with the thread slot. */
static int print_structure(const struct smi_structure_seen *seen, void *arg)
{
    struct look *look = arg;
    uint64_t state = seen->head->life & SMF_LIFE_STATE;
    const char *name = seen->ref == look->root   ? "root"
                       : seen->ref == look->word ? "word"
                                                 : "other";
    reach(seen->ref, NULL);
    if (state == SMF_LIFE_NONE)
        return 0;
    seen->type->each_ref(look->view, seen->ref, reach, NULL);
    if (state != SMF_LIFE_LIVE || strcmp(name, "other") == 0)
        return 0;
    shmalloc_crashtest_print("%s is a queue\n", name);
    return seen->type->each_item(look->view, seen->ref, print_message, (void *)name);
}

CALLBACK(describe_all)
{
    struct smi_view view;
    struct look look = {&view, 0, 0};
    if (shmalloc_root_get(heap, "queue", 0, &look.root) < 0)
        look.root = 0;
    look.word = *word_in(heap);
    shmalloc_crashtest_print("the word has %s\n", look.word ? "a ref" : "none");
    if (look.word)
        shmalloc_crashtest_reached(look.word);
    shmalloc_crashtest_reached(shmalloc_ref_of(heap, word_in(heap)));
    smi_view_of_mapping(&view, heap->base, heap->state->size, heap->path);
    int rc = smi_structures_each(&view, print_structure, &look);
    smi_view_finish(&view);
    return rc;
}

/* ---- going on ---- */

CALLBACK(adopt_the_dead)
{
    return smi_adopt(heap, SMI_ADOPT_ALL);
}

/* All messages come, and as many again; then no block is left but the queue's. */
CALLBACK(go_on)
{
    shmalloc_message m;
    shmalloc_queue q;
    if (shmalloc_queue_open_root(heap, "queue", NULL, &q) < 0)
        return 0;
    for (int round = 0; round < 2; round++) {
        while (shmalloc_queue_take(&q, &m, 0) == 0) {
            shmalloc_ref ref = 0;
            int rc = m.ref ? shmalloc_queue_ack_ref(&q, &m, &ref) : shmalloc_queue_ack(&q, &m);
            if (rc < 0 || (ref && shmalloc_ref_free(heap, &ref) < 0))
                return shmalloc_crashtest_fail("a message cannot be acknowledged: %s",
                                               shmalloc_errmsg());
        }
        if (shmalloc_queue_count(&q) != 0)
            return shmalloc_crashtest_fail("%lld messages are left",
                                           (long long)shmalloc_queue_count(&q));
        for (int i = 0; i < 4 && round == 0; i++)
            if (shmalloc_queue_send(&q, bytes, i % 2 ? 500 : 5, 0) < 0)
                return shmalloc_crashtest_fail("there is no room: %s", shmalloc_errmsg());
    }
    return 0;
}

/* ---- the cases ---- */

static const struct {
    const char *name;
    shmalloc_crashtest_fn *setup, *operation;
} cases[] = {
    {"send", two_messages, send_small},
    {"send, a block", two_messages, send_long},
    {"send_ref", a_block_in_the_word, send_word},
    {"take", two_messages, take},
    {"take and ack, inline", small_message_first, take_and_ack},
    {"take and ack, a block", two_messages, take_and_ack},
    {"take and return", two_messages, take_and_return},
    {"take and ack_ref", a_ref_alone, take_and_ack_ref},
    {"receive, inline", small_message_first, receive},
    {"receive, a block", two_messages, receive},
    {"take what the dead took", taken_by_the_dead, take_from_the_dead},
    {"create in a word", only_word, create_in_word},
    {"create as a root", only_word, create_root},
    {"free, a queue inside", a_queue_in_the_word, free_word},
    {"remove", two_messages, remove_root},
};

int main(int argc, char **argv)
{
    int faults = 0;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (argc > 1 && !strstr(cases[i].name, argv[1]))
            continue;
        shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
        test.name = cases[i].name;
        test.setup = cases[i].setup;
        test.operation = cases[i].operation;
        test.recover = adopt_the_dead;
        test.describe = describe_all;
        test.proceed = go_on;
        test.seconds = 20;
        int rc = shmalloc_crashtest_run(&test);
        printf("%s: %s\n", cases[i].name, rc == 0 ? "no fault" : "FAULTS");
        fflush(stdout);
        faults += rc != 0;
    }
    return faults;
}
