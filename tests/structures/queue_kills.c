/* SPDX-License-Identifier: MIT */
/*
 * queue_kills.c - a queue under random SIGKILL and SIGSTOP, against a model outside of the heap.
 *
 *   queue_kills [KILLS] [SEED]      processes that send and receive are killed and replaced; all of
 *                                   them every 100 kills
 *   queue_kills --planted           each planted fault has to be found
 *
 * What was sent (the call returned) arrives; what was acknowledged never comes again; what comes
 * twice says so, and only if somebody died with it; what one sender sent arrives in order; at the
 * end no block is left that is not the queue's.
 *
 * It has the queue's source compiled in, with faults that can be planted.
 */
#include <signal.h>
#include <stdint.h>

static volatile int *planted;
enum { NO_FAULT, REDELIVERY_LOST, FREED_TWICE, FULL_TOO_EARLY, FAULTS };
#define SMI_PLANTED(fault) (planted && *planted == (fault))
#include "../../src/structures/queue.c"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define SENDERS 2
#define RECEIVERS 2
#define WORKERS (SENDERS + RECEIVERS)
#define WINDOW (1u << 20) /* messages of each sender that are remembered */

enum { HANDLED = 1, ACKNOWLEDGED = 2, SENT = 4, DONE = 8 };

struct model {
    volatile uint64_t next[SENDERS]; /* the message that is being sent, or was last */
    volatile uint64_t redelivered, handled, returned;
    volatile int stop, planted;
    uint8_t state[SENDERS][WINDOW]; /* by number % WINDOW */
    volatile int failed;
};
static struct model *model;

struct payload {
    uint32_t who, length;
    uint64_t number;
    uint8_t rest[];
};

/* Messages in the cell, in blocks, and as refs. */
static int is_ref(uint64_t number)
{
    return number % 23 == 5;
}

static size_t length_of(uint64_t who, uint64_t number)
{
    uint64_t x = (number * 2654435761u + who * 97) >> 7;
    return sizeof(struct payload) + (x % 8 == 0 ? x % 5000 : x % 96);
}

static _Noreturn void report(const char *what, uint64_t who, uint64_t number)
{
    fprintf(stderr, "queue_kills: message %llu of sender %llu %s (%s)\n",
            (unsigned long long)number, (unsigned long long)who, what, shmalloc_errmsg());
    model->failed = 1;
    _exit(3);
}

/* ---- workers ---- */

static shmalloc_ref *word_of_worker(shmalloc_heap *heap, int worker)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "words", 0, &ref));
    return (shmalloc_ref *)shmalloc_ptr(heap, ref) + worker;
}

static void fill(struct payload *p, uint64_t who, uint64_t number)
{
    *p = (struct payload){(uint32_t)who, (uint32_t)length_of(who, number), number};
    memset(p->rest, (int)(number & 255), p->length - sizeof(*p));
}

/* A ref that the worker's word names: of a killed one before, it was not sent, and goes. */
static int send_ref(shmalloc_heap *heap, shmalloc_queue *q, int who, uint64_t number)
{
    shmalloc_ref *word = word_of_worker(heap, who);
    must_work(shmalloc_ref_free(heap, word));
    int rc = shmalloc_ref_alloc(heap, length_of((uint64_t)who, number), word);
    if (rc < 0)
        return rc;
    fill(shmalloc_ptr(heap, *word), (uint64_t)who, number);
    return shmalloc_queue_send_ref(q, word, 20000000000ull);
}

static void work_as_sender(shmalloc_heap *heap, shmalloc_queue *q, int who)
{
    static _Alignas(16) uint8_t bytes[8192];
    while (!model->stop) {
        uint64_t number = model->next[who] + 1;
        uint8_t *state = &model->state[who][number % WINDOW];
        if ((*state & SENT) && !(*state & ACKNOWLEDGED))
            report("is lost: so many came after it", (uint64_t)who, number - WINDOW);
        *state = 0;
        fill((struct payload *)(void *)bytes, (uint64_t)who, number);
        model->next[who] = number;
        SMI_BARRIER(); /* from here on it may have been sent */
        int rc = is_ref(number) ? send_ref(heap, q, who, number)
                                : shmalloc_queue_send(q, bytes, length_of((uint64_t)who, number),
                                                      20000000000ull);
        if (rc < 0)
            report("cannot be sent", (uint64_t)who, number);
        __atomic_fetch_or(&model->state[who][number % WINDOW], SENT, __ATOMIC_SEQ_CST);
    }
}

static void judge(const struct payload *p, const shmalloc_message *m, size_t length,
                  uint64_t last[SENDERS])
{
    if (length < sizeof(*p) || p->who >= SENDERS || p->number > model->next[p->who] ||
        p->length != length_of(p->who, p->number))
        report("is none", 0, m->opaque[0]);
    for (size_t i = 0; i < p->length - sizeof(*p); i++)
        if (p->rest[i] != (uint8_t)p->number)
            report("has other bytes", p->who, p->number);
    uint8_t state = model->state[p->who][p->number % WINDOW];
    if (state & DONE)
        report("came again after it was acknowledged", p->who, p->number);
    if ((state & HANDLED) && !m->redelivered)
        report("came twice, and the second does not say so", p->who, p->number);
    if (!m->redelivered && p->number <= last[p->who])
        report("came after a later one", p->who, p->number);
    if (!m->redelivered)
        last[p->who] = p->number;
}

static void handle(shmalloc_heap *heap, shmalloc_queue *q, shmalloc_message *m, int worker,
                   uint64_t last[SENDERS], struct rng *rng)
{
    shmalloc_ref *word = word_of_worker(heap, worker);
    const struct payload *p = m->ref ? shmalloc_ptr(heap, m->ref) : m->data;
    judge(p, m, m->ref ? shmalloc_usable_size(heap, p) : m->length, last);
    uint8_t *state = &model->state[p->who][p->number % WINDOW];
    __atomic_fetch_or(state, HANDLED, __ATOMIC_SEQ_CST);
    model->redelivered += (unsigned)m->redelivered;
    model->handled++;
    if (rng_below(rng, 50) == 0) {
        model->returned++;
        must_work(shmalloc_queue_return(q, m));
        return;
    }
    __atomic_fetch_or(state, ACKNOWLEDGED, __ATOMIC_SEQ_CST); /* from here on it may be */
    must_work(m->ref ? shmalloc_queue_ack_ref(q, m, word) : shmalloc_queue_ack(q, m));
    __atomic_fetch_or(state, DONE, __ATOMIC_SEQ_CST);
    must_work(shmalloc_ref_free(heap, word));
}

static void work_as_receiver(shmalloc_heap *heap, shmalloc_queue *q, int worker, struct rng *rng)
{
    uint64_t last[SENDERS] = {0};
    /* of a killed one before: it had it */
    must_work(shmalloc_ref_free(heap, word_of_worker(heap, worker)));
    while (!model->stop) {
        shmalloc_message m;
        int rc = shmalloc_queue_take(q, &m, 10000000000ull);
        if (rc < 0 && !model->stop)
            report("is waited for in vain", 0, 0);
        if (rc == 0)
            handle(heap, q, &m, worker, last, rng);
    }
}

struct job {
    const char *path;
    int worker;
    uint64_t seed;
};

static int work(void *arg)
{
    struct job *job = arg;
    struct rng rng = rng_from(job->seed);
    shmalloc_queue q;
    shmalloc_heap *heap = heap_open(job->path);
    must_work(shmalloc_queue_open_root(heap, "queue", NULL, &q));
    if (job->worker < SENDERS)
        work_as_sender(heap, &q, job->worker);
    else
        work_as_receiver(heap, &q, job->worker, &rng);
    return 0;
}

/* ---- the killer ---- */

struct team {
    const char *path;
    pid_t pid[WORKERS];
    struct rng rng;
};

static void reap(struct team *team, int w, int sig)
{
    int status;
    kill(team->pid[w], sig);
    waitpid(team->pid[w], &status, 0);
    team->pid[w] = 0;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        model->failed = 1;
}

static void start_missing(struct team *team)
{
    for (int w = 0; w < WORKERS; w++) {
        struct job job = {team->path, w, rng_next(&team->rng)};
        if (team->pid[w] == 0)
            team->pid[w] = start_child(work, &job);
    }
}

static void kill_one(struct team *team, unsigned k)
{
    int victim = (int)rng_below(&team->rng, WORKERS), all = k % 100 == 99;
    int stopped = rng_below(&team->rng, 16) == 0 ? (int)rng_below(&team->rng, WORKERS) : victim;
    usleep((useconds_t)rng_below(&team->rng, 2000));
    if (stopped != victim) {
        kill(team->pid[stopped], SIGSTOP);
        usleep(1000);
    }
    for (int w = 0; w < WORKERS; w++)
        if (w == victim || all)
            reap(team, w, SIGKILL);
    if (stopped != victim && team->pid[stopped])
        kill(team->pid[stopped], SIGCONT);
}

static int count_block(const shmalloc_block *block, void *arg)
{
    *(uint64_t *)arg += block->tag < SMF_TAG_RESERVED;
    return 0;
}

/* What is left in the queue, and in the heap: 0 when all is as the model says. */
static int look_at_the_rest(struct fixture *f)
{
    uint64_t lost = 0, blocks = 0, drained = 0;
    shmalloc_queue q;
    shmalloc_message m;
    shmalloc_heap *heap = heap_open(f->path);
    must_work(shmalloc_queue_open_root(heap, "queue", NULL, &q));
    while (shmalloc_queue_take(&q, &m, 200000000) == 0) {
        shmalloc_ref ref = 0;
        const struct payload *p = m.ref ? shmalloc_ptr(heap, m.ref) : m.data;
        if (model->state[p->who][p->number % WINDOW] & DONE)
            return fprintf(stderr, "queue_kills: an acknowledged message is left\n"), 1;
        model->state[p->who][p->number % WINDOW] |= ACKNOWLEDGED;
        must_work(m.ref ? shmalloc_queue_ack_ref(&q, &m, &ref) : shmalloc_queue_ack(&q, &m));
        must_work(shmalloc_ref_free(heap, &ref));
        drained++;
    }
    for (int w = 0; w < WORKERS; w++)
        must_work(shmalloc_ref_free(heap, word_of_worker(heap, w)));
    for (uint64_t who = 0; who < SENDERS; who++)
        for (uint64_t i = 0; i < WINDOW; i++)
            lost += (model->state[who][i] & SENT) && !(model->state[who][i] & ACKNOWLEDGED);
    must_work(shmalloc_each_block(heap, count_block, &blocks));
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    printf("sent %llu and %llu, handled %llu, redelivered %llu (%llu returned), left %llu, lost "
           "%llu, blocks %llu\n",
           (unsigned long long)model->next[0], (unsigned long long)model->next[1],
           (unsigned long long)model->handled, (unsigned long long)model->redelivered,
           (unsigned long long)model->returned, (unsigned long long)drained,
           (unsigned long long)lost, (unsigned long long)blocks);
    return lost != 0 || blocks != 2; /* the cells, and the words of the workers */
}

static int run_kills(unsigned kills, int fault, uint64_t seed)
{
    struct fixture f;
    struct team team = {.rng = rng_from(seed)};
    shmalloc_queue q;
    shmalloc_ref words;
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    fixture_begin_heap(&f, 0);
    o.capacity = 64;
    must_code(shmalloc_queue_open_root(f.heap, "queue", &o, &q), SHMALLOC_CREATED);
    must_code(shmalloc_root_get_or_create(f.heap, "words", 0, 8 * WORKERS, NULL, NULL, &words),
              SHMALLOC_CREATED);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    model = shared_memory(sizeof(*model));
    model->planted = fault;
    planted = &model->planted;
    team.path = f.path;
    for (unsigned k = 0; k < kills && !model->failed; k++) {
        start_missing(&team);
        kill_one(&team, k);
    }
    for (int w = 0; w < WORKERS; w++)
        if (team.pid[w])
            reap(&team, w, SIGKILL);
    int rc = model->failed || look_at_the_rest(&f);
    fixture_end(&f);
    return rc;
}

static int find_planted(void)
{
    static const char *const names[] = {"none", "redelivery lost", "ack frees twice",
                                        "full too early"};
    for (int fault = 1; fault < FAULTS; fault++) {
        int found = 0;
        for (unsigned tries = 0; !found && tries < 100; tries++) { /* chance has a say in each */
            pid_t pid = fork(); /* a fault may end it anyhow */
            if (pid == 0)
                _exit(run_kills(300, fault, test_seed() + tries) != 0);
            found = wait_child(pid) != 0;
        }
        printf("planted: %s: %s\n", names[fault], found ? "found" : "NOT FOUND");
        if (!found)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "--planted") == 0)
        return find_planted();
    unsigned kills = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 500;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : test_seed();
    printf("%u kills, seed %llu\n", kills, (unsigned long long)seed);
    return run_kills(kills, NO_FAULT, seed);
}
