/* SPDX-License-Identifier: MIT */
/*
 * allocate.c - the timed workloads: pair, batch, larson, handoff, handoff-shared.
 *
 *   pair            allocate a block and free it at once
 *   batch-lifo      allocate --blocks blocks, free them in the opposite order
 *   batch-fifo      ... in the same order
 *   batch-random    ... in a random order, another for each seed
 *   larson          replace blocks chosen at random among --blocks live ones; after each run every
 *                   thread takes over its neighbour's blocks, so some are freed by another thread.
 *                   After the server simulation of Larson and Krishnan (1998), simplified.
 *   handoff         worker 0 allocates, worker 1 frees, through a ring; two threads
 *   handoff-shared  the same with two processes
 *
 * Sizes and orders are drawn before the clock starts, except in larson, where one multiplication
 * chooses both. All allocators get the same sequences in the same repetition.
 */
#include "adapter.h"
#include "team.h"

#include <stdatomic.h>

/* Number of pairs, or of steps, in one round of the workloads that have no batch of their own. */
#define ROUND 1024

/* The workloads' own tables are pages of their own, not blocks of the allocator under test. */
static uint32_t *make_sizes(struct worker *worker, uint64_t count)
{
    uint32_t *sizes = bench_pages(count * sizeof(*sizes));
    for (uint64_t i = 0; i < count; i++)
        sizes[i] = bench_random_size(&worker->random, worker->options);
    return sizes;
}

/* ---- pair ------------------------------------------------------------------------------------ */

struct pair {
    bench_slot *slot;
    uint32_t *sizes; /* ROUND of them */
};

static void *pair_prepare(struct worker *worker)
{
    struct pair *pair = bench_pages(sizeof(*pair));
    pair->slot = adapter_slots(1);
    pair->sizes = make_sizes(worker, ROUND);
    /* Another block of the class lives, as in any program: without it some allocators give a page
     * away with each free and take it back. */
    bench_take(adapter_slots(1), worker->options->size_max);
    return pair;
}

static void pair_run(struct worker *worker, uint64_t rounds)
{
    struct pair *pair = worker->state;
    for (uint64_t round = 0; round < rounds; round++)
        for (unsigned i = 0; i < ROUND; i++) {
            bench_take(pair->slot, pair->sizes[i]);
            bench_give(pair->slot);
        }
}

/* ---- batch ----------------------------------------------------------------------------------- */

struct batch {
    bench_slot *slots;
    uint32_t *sizes;
    uint32_t *order; /* of freeing: a permutation of the slots */
};

static struct batch *make_batch(struct worker *worker)
{
    uint64_t blocks = worker->options->blocks;
    struct batch *batch = bench_pages(sizeof(*batch));
    batch->slots = adapter_slots(blocks);
    batch->sizes = make_sizes(worker, blocks);
    batch->order = bench_pages(blocks * sizeof(*batch->order));
    for (uint64_t i = 0; i < blocks; i++)
        batch->order[i] = (uint32_t)i;
    return batch;
}

static void *batch_prepare_fifo(struct worker *worker)
{
    return make_batch(worker);
}

static void *batch_prepare_lifo(struct worker *worker)
{
    uint64_t blocks = worker->options->blocks;
    struct batch *batch = make_batch(worker);
    for (uint64_t i = 0; i < blocks; i++)
        batch->order[i] = (uint32_t)(blocks - 1 - i);
    return batch;
}

static void *batch_prepare_random(struct worker *worker)
{
    struct batch *batch = make_batch(worker);
    for (uint64_t i = worker->options->blocks - 1; i > 0; i--) {
        uint32_t other = bench_random_below(&worker->random, (uint32_t)i + 1);
        uint32_t moved = batch->order[i];
        batch->order[i] = batch->order[other];
        batch->order[other] = moved;
    }
    return batch;
}

static void batch_run(struct worker *worker, uint64_t rounds)
{
    struct batch *batch = worker->state;
    uint64_t blocks = worker->options->blocks;
    for (uint64_t round = 0; round < rounds; round++) {
        for (uint64_t i = 0; i < blocks; i++)
            bench_take(&batch->slots[i], batch->sizes[i]);
        for (uint64_t i = 0; i < blocks; i++)
            bench_give(&batch->slots[batch->order[i]]);
    }
}

/* ---- larson ---------------------------------------------------------------------------------- */

static void *larson_prepare(struct worker *worker)
{
    uint64_t blocks = worker->options->blocks;
    bench_slot *slots = adapter_slots(blocks);
    for (uint64_t i = 0; i < blocks; i++)
        bench_take(&slots[i], bench_random_size(&worker->random, worker->options));
    return slots;
}

static void larson_run(struct worker *worker, uint64_t rounds)
{
    const struct bench_options *options = worker->options;
    unsigned owner = worker->index;
    if (options->threads > 1)
        owner = (unsigned)((worker->index + worker->runs) % options->threads);
    bench_slot *slots = options->threads > 1 ? team_state(worker, owner) : worker->state;
    uint64_t random = worker->random;
    for (uint64_t step = 0; step < rounds * ROUND; step++) {
        bench_slot *slot = &slots[bench_random_below(&random, (uint32_t)options->blocks)];
        bench_give(slot);
        bench_take(slot, bench_random_size(&random, options));
    }
    worker->random = random;
}

/* ---- handoff --------------------------------------------------------------------------------- */

#define RING 4096        /* slots */
#define RING_PUBLISH 32  /* slots made visible at once, so that the ring's own cost stays small */

/* In the team's memory. */
struct ring {
    _Alignas(64) _Atomic uint64_t filled;  /* written by the producer */
    _Alignas(64) _Atomic uint64_t emptied; /* written by the consumer */
};
_Static_assert(sizeof(struct ring) <= TEAM_SHARED, "it fits");

/* What the ring holds, as a worker sees it. */
struct places {
    bench_slot *slots; /* RING of them: between threads */
    uint64_t *words;   /* RING of them: between processes */
    uint32_t *sizes;   /* RING of them */
};

/* Inlined below, so that handing over costs no call. */
typedef void step_fn(const struct places *places, uint64_t index);

static inline __attribute__((always_inline)) void produce(struct ring *ring,
                                                          const struct places *places,
                                                          uint64_t count, step_fn *take)
{
    uint64_t begin = atomic_load_explicit(&ring->filled, memory_order_relaxed);
    for (uint64_t at = begin; at < begin + count; at += RING_PUBLISH) {
        unsigned spins = 0;
        /* acquire: pairs with the release in consume(); those places are empty again */
        while (at - atomic_load_explicit(&ring->emptied, memory_order_acquire) >
               RING - RING_PUBLISH)
            team_relax(&spins);
        for (uint64_t i = at; i < at + RING_PUBLISH; i++)
            take(places, i % RING);
        atomic_store_explicit(&ring->filled, at + RING_PUBLISH, memory_order_release);
    }
}

static inline __attribute__((always_inline)) void consume(struct ring *ring,
                                                          const struct places *places,
                                                          uint64_t count, step_fn *give)
{
    uint64_t begin = atomic_load_explicit(&ring->emptied, memory_order_relaxed);
    for (uint64_t at = begin; at < begin + count; at += RING_PUBLISH) {
        unsigned spins = 0;
        /* acquire: pairs with the release in produce(); those places hold blocks */
        while (atomic_load_explicit(&ring->filled, memory_order_acquire) == at)
            team_relax(&spins);
        for (uint64_t i = at; i < at + RING_PUBLISH; i++)
            give(places, i % RING);
        atomic_store_explicit(&ring->emptied, at + RING_PUBLISH, memory_order_release);
    }
}

static struct places *make_places(struct worker *worker)
{
    struct places *places = bench_pages(sizeof(*places));
    places->sizes = make_sizes(worker, RING);
    return places;
}

static void *handoff_prepare(struct worker *worker)
{
    if (worker->options->threads != 2)
        bench_die("handoff needs --threads 2");
    if (worker->index != 0)
        return NULL;
    struct places *places = make_places(worker);
    places->slots = adapter_slots(RING);
    return places;
}

static void take_slot(const struct places *places, uint64_t index)
{
    bench_take(&places->slots[index], places->sizes[index]);
}

static void give_slot(const struct places *places, uint64_t index)
{
    bench_give(&places->slots[index]);
}

static void handoff_run(struct worker *worker, uint64_t rounds)
{
    struct places *places = team_state(worker, 0);
    if (worker->index == 0)
        produce(team_shared(worker), places, rounds * ROUND, take_slot);
    else
        consume(team_shared(worker), places, rounds * ROUND, give_slot);
}

#if defined(BENCH_SHARED)
static void *handoff_prepare_shared(struct worker *worker)
{
    if (worker->options->processes != 2)
        bench_die("handoff-shared needs --processes 2");
    struct places *places = make_places(worker);
    places->words = adapter_shared_words(RING);
    return places;
}

static void take_word(const struct places *places, uint64_t index)
{
    bench_take_shared(&places->words[index], places->sizes[index]);
}

static void give_word(const struct places *places, uint64_t index)
{
    bench_give_shared(&places->words[index]);
}

static void handoff_run_shared(struct worker *worker, uint64_t rounds)
{
    if (worker->index == 0)
        produce(team_shared(worker), worker->state, rounds * ROUND, take_word);
    else
        consume(team_shared(worker), worker->state, rounds * ROUND, give_word);
}
#endif

/* ---- choice ---------------------------------------------------------------------------------- */

static const struct workload workloads[] = {
    {"pair", ROUND, pair_prepare, pair_run},
    {"batch-lifo", 0, batch_prepare_lifo, batch_run},
    {"batch-fifo", 0, batch_prepare_fifo, batch_run},
    {"batch-random", 0, batch_prepare_random, batch_run},
    {"larson", ROUND, larson_prepare, larson_run},
    {"handoff", ROUND, handoff_prepare, handoff_run},
#if defined(BENCH_SHARED)
    {"handoff-shared", ROUND, handoff_prepare_shared, handoff_run_shared},
#endif
};

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
        if (!strcmp(workloads[i].name, options.workload)) {
            team_measure(&workloads[i], &options);
            return 0;
        }
    bench_die("no workload \"%s\"", options.workload);
}
