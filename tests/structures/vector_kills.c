/* SPDX-License-Identifier: MIT */
/*
 * vector_kills.c - a vector under random SIGKILL, against a model outside of the heap.
 *
 *   vector_kills [KILLS] [SEED]
 *
 * Two processes append, set and truncate under a lock of the model's own, two read. Who is killed
 * leaves its operation done or not done; all else is as the model has it. Elements of 40 bytes are
 * whole whenever they are read. At the end no block is left but the vector's.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/vector.h>

#include "format/layout.h"
#include "support.h"

#define WRITERS 2
#define READERS 2
#define WORKERS (WRITERS + READERS)
#define ELEMENT 40
#define MOST 3000

enum { NOTHING, APPEND, SET, TRUNCATE };

/* What the vector has, as of the last operation that was seen to end; the one under way, which may
 * have happened. */
static struct model {
    volatile uint32_t locked_by; /* worker + 1, 0 nobody */
    volatile int failed;
    volatile uint64_t operations, reads, length;
    volatile uint64_t stamp[MOST + 1];
    volatile int what;
    volatile uint64_t index, value;
} *model;

static _Noreturn void report(const char *text, uint64_t index)
{
    fprintf(stderr, "vector_kills: element %llu %s (%s)\n", (unsigned long long)index, text,
            shmalloc_errmsg());
    model->failed = 1;
    _exit(3);
}

static void fill(uint64_t element[ELEMENT / 8], uint64_t stamp)
{
    for (unsigned i = 0; i < ELEMENT / 8; i++)
        element[i] = stamp + i;
}

/* The stamp of an element that is whole. */
static uint64_t stamp_of(const uint64_t element[ELEMENT / 8], uint64_t index)
{
    for (unsigned i = 1; i < ELEMENT / 8; i++)
        if (element[i] != element[0] + i)
            report("is torn", index);
    return element[0];
}

/* The model takes over what is true of the operation that was under way. */
static void settle_model(const shmalloc_vector *v)
{
    uint64_t element[ELEMENT / 8], count = (uint64_t)shmalloc_vector_count(v);
    if (model->what == APPEND && count == model->length + 1) {
        model->stamp[model->length] = model->value;
        model->length = count;
    } else if (model->what == TRUNCATE && count == model->index) {
        model->length = count;
    } else if (model->what == SET) {
        must_work(shmalloc_vector_get(v, model->index, element));
        if (stamp_of(element, model->index) == model->value)
            model->stamp[model->index] = model->value;
    }
    model->what = NOTHING;
    if (count != model->length)
        report("is the last, the model has another length", count);
}

static void change_once(shmalloc_vector *v, struct rng *rng)
{
    uint64_t element[ELEMENT / 8], length = model->length;
    int what = length == 0 || (length < MOST && rng_below(rng, 2)) ? APPEND
               : rng_below(rng, 200)                               ? SET
                                                                   : TRUNCATE;
    model->index = what == SET        ? rng_below(rng, length)
                   : what == TRUNCATE ? rng_below(rng, length + 1)
                                      : length;
    model->value = rng_next(rng);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    model->what = what;
    fill(element, model->value);
    must_work(what == APPEND ? shmalloc_vector_append(v, element, NULL)
              : what == SET  ? shmalloc_vector_set(v, model->index, element)
                             : shmalloc_vector_truncate(v, model->index));
    settle_model(v);
    uint64_t at = model->length ? rng_below(rng, model->length) : 0;
    if (model->length == 0)
        return;
    must_work(shmalloc_vector_get(v, at, element));
    if (stamp_of(element, at) != model->stamp[at])
        report("is another", at);
}

static void write_for_ever(shmalloc_vector *v, int worker, struct rng *rng)
{
    for (;;) {
        uint32_t nobody = 0;
        if (!__atomic_compare_exchange_n(&model->locked_by, &nobody, (uint32_t)worker + 1, 0,
                                         __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            usleep(20);
            continue;
        }
        for (int i = 0; i < 50; i++, model->operations++)
            change_once(v, rng);
        __atomic_store_n(&model->locked_by, 0, __ATOMIC_SEQ_CST);
    }
}

static void read_for_ever(shmalloc_vector *v, struct rng *rng)
{
    uint64_t element[ELEMENT / 8];
    for (;; model->reads++) {
        uint64_t index = rng_below(rng, MOST);
        int rc = shmalloc_vector_get(v, index, element);
        if (rc == 0)
            stamp_of(element, index);
        else if (rc != -34)
            report("cannot be read", index);
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
    shmalloc_vector v;
    shmalloc_heap *heap = heap_open(job->path);
    must_work(shmalloc_vector_open_root(heap, "vector", ELEMENT, &v));
    /* the one before was killed with it */
    if (job->worker < WRITERS && model->locked_by == (uint32_t)job->worker + 1) {
        settle_model(&v);
        __atomic_store_n(&model->locked_by, 0, __ATOMIC_SEQ_CST);
    }
    if (job->worker < WRITERS)
        write_for_ever(&v, job->worker, &rng);
    read_for_ever(&v, &rng);
    return 0;
}

static int count_block(const shmalloc_block *block, void *arg)
{
    *(uint64_t *)arg += block->tag < SMF_TAG_RESERVED;
    return 0;
}

static int look_at_the_rest(const char *path)
{
    uint64_t blocks = 0, element[ELEMENT / 8];
    shmalloc_vector v;
    shmalloc_heap *heap = heap_open(path);
    must_work(shmalloc_vector_open_root(heap, "vector", ELEMENT, &v));
    settle_model(&v);
    for (uint64_t i = 0; i < model->length; i++) {
        must_work(shmalloc_vector_get(&v, i, element));
        if (stamp_of(element, i) != model->stamp[i])
            return fprintf(stderr, "vector_kills: element %llu is another\n",
                           (unsigned long long)i),
                   1;
    }
    must_be_sound(heap);
    must_work(shmalloc_vector_remove(heap, "vector"));
    must_work(shmalloc_each_block(heap, count_block, &blocks));
    must_work(shmalloc_close(heap));
    printf("%llu operations, %llu reads, %llu elements left, %llu blocks\n",
           (unsigned long long)model->operations, (unsigned long long)model->reads,
           (unsigned long long)model->length, (unsigned long long)blocks);
    return blocks != 0;
}

int main(int argc, char **argv)
{
    struct fixture f;
    shmalloc_vector v;
    pid_t pid[WORKERS] = {0};
    unsigned kills = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 500;
    struct rng rng = rng_from(argc > 2 ? strtoull(argv[2], NULL, 0) : test_seed());
    model = shared_memory(sizeof(*model));
    fixture_begin_heap(&f, 0);
    must_code(shmalloc_vector_open_root(f.heap, "vector", ELEMENT, &v), SHMALLOC_CREATED);
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    for (unsigned k = 0; k <= kills && !model->failed; k++) {
        for (int w = 0; w < WORKERS; w++) {
            struct job job = {f.path, w, rng_next(&rng)};
            if (pid[w] == 0)
                pid[w] = start_child(work, &job);
        }
        usleep((useconds_t)rng_below(&rng, 3000));
        int victim = (int)rng_below(&rng, WORKERS);
        for (int w = 0; w < WORKERS; w++) {
            int status = 0;
            if (w != victim && k % 100 != 99 && k != kills)
                continue;
            kill(pid[w], SIGKILL);
            waitpid(pid[w], &status, 0);
            pid[w] = 0;
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
                model->failed = 1;
        }
    }
    int rc = model->failed || look_at_the_rest(f.path);
    fixture_end(&f);
    return rc;
}
