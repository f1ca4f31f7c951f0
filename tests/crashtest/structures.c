/* SPDX-License-Identifier: MIT */
/* structures.c - one function for each operation that is right or wrong; see structures.h. */
#include "structures.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support.h"

/* All structures are made of one block, which the root "world" names, and of what its refs lead
 * to. */
struct world {
    shmalloc_mutex mutex;
    shmalloc_ref ref[4];
    uint64_t word[4];
};

struct node {
    shmalloc_ref next;
    uint64_t value;
};

/* Each process of a test has one heap. What it looks up before the operation is not stepped
 * through; that differs from run to run, for looking up a root includes a look at the other
 * processes once a second. */
static struct world *world_of(shmalloc_heap *heap)
{
    static struct world *known;
    shmalloc_ref ref;
    if (known)
        return known;
    int rc = shmalloc_root_get_or_create(heap, "world", 0, sizeof(struct world), NULL, NULL, &ref);
    must(rc >= 0, "world: %s", shmalloc_errmsg());
    return known = shmalloc_ptr(heap, ref);
}

#define CALLBACK(name) static int name(shmalloc_heap *heap, void *arg __attribute__((unused)))

/* ---- what all have ---- */

CALLBACK(no_nodes)
{
    return world_of(heap)->word[0] != 0;
}

CALLBACK(two_nodes) /* ref[0] -> 2 -> 1, word[0] is their number */
{
    struct world *w = world_of(heap);
    for (uint64_t value = 1; value <= 2; value++) {
        must_work(shmalloc_ref_alloc(heap, sizeof(struct node), &w->ref[1]));
        struct node *node = shmalloc_ptr(heap, w->ref[1]);
        *node = (struct node){w->ref[0], value};
        w->ref[0] = w->ref[1];
        w->ref[1] = 0;
    }
    w->word[0] = 2;
    return 0;
}

CALLBACK(describe)
{
    const struct world *w = world_of(heap);
    for (unsigned i = 0; i < 4; i++) {
        shmalloc_crashtest_print("word %u is %llu\n", i, (unsigned long long)w->word[i]);
        for (shmalloc_ref at = w->ref[i]; at;) {
            const struct node *node = shmalloc_ptr(heap, at);
            shmalloc_crashtest_reached(at);
            shmalloc_crashtest_print("list %u has %llu\n", i, (unsigned long long)node->value);
            at = node->next;
        }
    }
    return 0;
}

/* Lock, and after a death link or free the block on its way in or out, ref[1]. */
static int lock(shmalloc_heap *heap)
{
    struct world *w = world_of(heap);
    int rc = shmalloc_mutex_lock(heap, &w->mutex);
    if (rc != SHMALLOC_OWNER_DIED)
        return rc;
    if (w->ref[1] == w->ref[0])
        shmalloc_store(&w->ref[1], 0);
    rc = shmalloc_ref_free(heap, &w->ref[1]);
    return rc < 0 ? rc : shmalloc_mutex_consistent(heap, &w->mutex);
}

CALLBACK(recover)
{
    return lock(heap) < 0 ? -1 : shmalloc_mutex_unlock(heap, &world_of(heap)->mutex);
}

/* ---- lists ---- */

static int push(shmalloc_heap *heap, shmalloc_ref *held)
{
    struct world *w = world_of(heap);
    if (lock(heap) < 0 || shmalloc_ref_alloc(heap, sizeof(struct node), held) < 0)
        return -1;
    struct node *node = shmalloc_ptr(heap, *held);
    node->next = w->ref[0];
    shmalloc_store(&node->value, 3);
    shmalloc_store(&w->ref[0], *held);
    shmalloc_store(held, 0);
    return shmalloc_mutex_unlock(heap, &w->mutex);
}
CALLBACK(push_right)
{
    return push(heap, &world_of(heap)->ref[1]);
}
CALLBACK(push_leaking)
{
    shmalloc_ref held = 0;
    return push(heap, &held);
}
CALLBACK(pop_right)
{
    struct world *w = world_of(heap);
    if (lock(heap) < 0)
        return -1;
    const struct node *node = shmalloc_ptr(heap, w->ref[0]);
    if (node) {
        shmalloc_store(&w->ref[1], w->ref[0]);
        shmalloc_store(&w->ref[0], node->next);
        if (shmalloc_ref_free(heap, &w->ref[1]) < 0)
            return -1;
    }
    return shmalloc_mutex_unlock(heap, &w->mutex);
}
CALLBACK(push_losing) /* the old nodes are out of reach for a moment */
{
    struct world *w = world_of(heap);
    shmalloc_ref old = w->ref[0];
    shmalloc_store(&w->ref[0], 0);
    must_work(shmalloc_ref_alloc(heap, sizeof(struct node), &w->ref[0]));
    *(struct node *)shmalloc_ptr(heap, w->ref[0]) = (struct node){old, 3};
    return 0;
}
CALLBACK(pop_dangling) /* freed before it is unlinked */
{
    struct world *w = world_of(heap);
    shmalloc_ref first = w->ref[0], next = ((struct node *)shmalloc_ptr(heap, first))->next;
    must_work(shmalloc_ref_free(heap, &first));
    shmalloc_store(&w->ref[0], next);
    return 0;
}
CALLBACK(make_cycle)
{
    struct world *w = world_of(heap);
    struct node *first = shmalloc_ptr(heap, w->ref[0]);
    shmalloc_ref next = first->next;
    shmalloc_store(&first->next, w->ref[0]);
    shmalloc_store(&first->next, next);
    shmalloc_store(&first->value, 9);
    return 0;
}

/* ---- words ---- */

CALLBACK(one_word)
{
    shmalloc_store(&world_of(heap)->word[1], 1);
    return 0;
}
CALLBACK(two_words)
{
    shmalloc_store(&world_of(heap)->word[1], 1);
    shmalloc_store(&world_of(heap)->word[2], 1);
    return 0;
}
CALLBACK(there_and_back)
{
    for (unsigned i = 1; i <= 3; i++)
        shmalloc_store(&world_of(heap)->word[1], i % 2);
    return 0;
}
CALLBACK(verify_pair)
{
    const struct world *w = world_of(heap);
    return w->word[1] == w->word[2]
               ? 0
               : shmalloc_crashtest_fail("word 1 is %d, word 2 is not", (int)w->word[1]);
}
CALLBACK(verify_crashing)
{
    const struct world *w = world_of(heap);
    if (w->word[1] != w->word[2])
        abort();
    return 0;
}
CALLBACK(proceed_failing) /* but for the states before and after */
{
    const struct world *w = world_of(heap);
    return w->word[1] == w->word[2] ? 0 : -7;
}

/* A lock that is no shmalloc_mutex: nobody frees it when its owner dies. */
CALLBACK(spin)
{
    struct world *w = world_of(heap);
    for (uint64_t none = 0;
         !__atomic_compare_exchange_n(&w->word[3], &none, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
         none = 0)
        usleep(10);
    shmalloc_store(&w->word[1], w->word[1] + 1);
    usleep(200); /* so that random kills meet the owner */
    shmalloc_store(&w->word[3], 0);
    return 0;
}
CALLBACK(await_spin)
{
    while (shmalloc_load(&world_of(heap)->word[3]) != 0)
        usleep(1000);
    return 0;
}
CALLBACK(reset_spin) /* by who is alone only; a survivor waits for ever */
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    must_work(shmalloc_get_stats(heap, &stats));
    if (stats.processes == 1 && stats.generation != world_of(heap)->word[0])
        shmalloc_store(&world_of(heap)->word[3], 0);
    return await_spin(heap, arg);
}
CALLBACK(note_generation)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    must_work(shmalloc_get_stats(heap, &stats));
    world_of(heap)->word[0] = stats.generation;
    return 0;
}

CALLBACK(undo_as_survivor)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    must_work(shmalloc_get_stats(heap, &stats));
    if (stats.generation == world_of(heap)->word[0])
        shmalloc_store(&world_of(heap)->word[1], 0);
    return 0;
}

/* ---- large blocks, allocator ---- */

enum { LARGE = 72 << 10 };

CALLBACK(large_block)
{
    must_work(shmalloc_ref_alloc_zeroed(heap, LARGE, &world_of(heap)->ref[2]));
    return 0;
}
CALLBACK(fill_large)
{
    uint64_t *block = shmalloc_ptr(heap, world_of(heap)->ref[2]);
    for (unsigned i = 2; i < LARGE / 8; i += 16)
        shmalloc_store(&block[i], i);
    shmalloc_store(&block[1], 1); /* as a node's value: only now it counts */
    return 0;
}
CALLBACK(damage_heap)
{
    struct world *w = world_of(heap);
    char *start = (char *)w - shmalloc_ref_of(heap, w);
    shmalloc_store(&w->word[1], 1);
    for (unsigned i = 0; i < 8; i++)
        /* its size and state */
        shmalloc_store((uint64_t *)(void *)(start + 4096) + i, 0x5a5a5a5a5a5a5a5a);
    return 0;
}

/* ---- operations that are no operations ---- */

CALLBACK(crash)
{
    shmalloc_store(&world_of(heap)->word[1], 1);
    abort();
}
CALLBACK(loop)
{
    for (struct world *w = world_of(heap);;)
        shmalloc_store(&w->word[1], 1);
    return 0;
}
CALLBACK(block_forever)
{
    pause();
    return world_of(heap)->word[1] == 0;
}
CALLBACK(refuse)
{
    (void)heap;
    return shmalloc_crashtest_fail("no list today");
}
CALLBACK(free_nonsense)
{
    shmalloc_ref ref = 12345;
    return shmalloc_ref_free(heap, &ref);
}
CALLBACK(store_pid)
{
    shmalloc_store(&world_of(heap)->word[1], (uint64_t)getpid());
    return 0;
}
int uneven(shmalloc_heap *heap, void *arg)
{
    uint32_t *runs = arg;
    if (__atomic_fetch_add(runs, 1, __ATOMIC_SEQ_CST) >= 2)
        shmalloc_store(&world_of(heap)->word[2], 0);
    shmalloc_store(&world_of(heap)->word[1], 1);
    return 0;
}

/* ---- the cases ---- */

#define TEST(...) {.struct_size = sizeof(shmalloc_crashtest), .describe = describe, __VA_ARGS__}

const struct planted stepped[] = {
    {"push",
     TEST(.setup = two_nodes, .operation = push_right, .recover = recover, .proceed = pop_right),
     0,
     {"dead: everybody died at", "survivor: one of two", "no fault found"}},
    {"pop",
     TEST(.setup = two_nodes, .operation = pop_right, .recover = recover, .proceed = push_right),
     0,
     {"no fault found"}},
    {"one word", TEST(.setup = no_nodes, .operation = one_word), 0, {"no fault found"}},
    {"no recover",
     TEST(.setup = two_nodes, .operation = push_right, .modes = SHMALLOC_CRASHTEST_DEAD),
     1,
     {"neither the state before nor the one after", "list 1 has"}},
    {"lost nodes",
     TEST(.setup = two_nodes, .operation = push_losing),
     1,
     {"FAULT (dead", "- list 0 has 1", "push_losing"}},
    {"torn pair",
     TEST(.setup = no_nodes, .operation = two_words),
     1,
     {"neither the state before nor the one after", "+ word 1 is 1", "FAULT (survivor"}},
    {"torn pair, allowed",
     TEST(.setup = no_nodes, .operation = two_words, .between = 1),
     0,
     {"no fault found"}},
    {"torn pair, verified",
     TEST(.setup = no_nodes, .operation = two_words, .between = 1, .verify = verify_pair),
     1,
     {"verify(): word 1 is 1, word 2 is not", "FAULT (survivor", "the survivor: verify()"}},
    {"leak",
     TEST(.setup = two_nodes, .operation = push_leaking, .recover = recover),
     1,
     {"blocks are leaked", "called from: push", "FAULT (survivor"}},
    {"leak, allowed",
     TEST(.setup = two_nodes, .operation = push_leaking, .recover = recover, .leaks = 1),
     0,
     {"no fault found"}},
    {"dangling ref",
     TEST(.setup = two_nodes, .operation = pop_dangling),
     1,
     {"a ref dangles", "FAULT (survivor"}},
    {"undone",
     TEST(.setup = no_nodes, .operation = there_and_back),
     1,
     {"is undone by a later death"}},
    {"undone by the survivor",
     TEST(.setup = note_generation, .operation = one_word, .recover = undo_as_survivor),
     1,
     {"dead: everybody died at 2 instants, 0 faults", "the survivor finds it undone"}},
    {"cycle",
     TEST(.setup = two_nodes, .operation = make_cycle, .modes = SHMALLOC_CRASHTEST_DEAD),
     1,
     {"is there a cycle?"}},
    {"who verifies crashes",
     TEST(.setup = no_nodes, .operation = two_words, .between = 1, .verify = verify_crashing),
     1,
     {"ended by a signal", "FAULT (survivor"}},
    {"proceed fails",
     TEST(.setup = no_nodes, .operation = two_words, .between = 1, .proceed = proceed_failing),
     1,
     {"proceed() returned -7", "FAULT (survivor"}},
    {"hang",
     TEST(.setup = no_nodes, .operation = spin, .recover = await_spin, .between = 1, .timeout = 1,
          .modes = SHMALLOC_CRASHTEST_DEAD),
     1,
     {"it hung"}},
    {"hang of a survivor",
     TEST(.setup = note_generation, .operation = spin, .recover = reset_spin, .between = 1,
          .timeout = 1),
     1,
     {"dead: everybody died", "FAULT (survivor", "it hung"}},
    {"large block",
     TEST(.setup = large_block, .operation = fill_large, .modes = SHMALLOC_CRASHTEST_DEAD),
     0,
     {"more were left out", "no fault found"}},
    {"damaged heap",
     TEST(.setup = no_nodes, .operation = damage_heap, .modes = SHMALLOC_CRASHTEST_DEAD),
     1,
     {"in the state after the operation: it cannot be opened"}},
    {"the operation crashes",
     TEST(.setup = no_nodes, .operation = crash),
     1,
     {"with nobody killed, the operation failed: it was ended by a signal", "--dead --step"}},
    {"the operation loops",
     TEST(.setup = no_nodes, .operation = loop, .max_steps = 20000),
     1,
     {"did not come to its end within 20000 instructions", ": loop", "structures.c:"}},
    {"the operation blocks",
     TEST(.setup = no_nodes, .operation = block_forever, .timeout = 1),
     1,
     {"did not come to its end in time"}},
    {"the operation fails",
     TEST(.setup = no_nodes, .operation = refuse),
     1,
     {"operation(): no list today"}},
    {"a call of the heap fails",
     TEST(.setup = no_nodes, .operation = free_nonsense),
     1,
     {"operation() returned -20013"}},
    {"setup fails",
     TEST(.setup = refuse, .operation = one_word),
     -ECANCELED,
     {"before the operation: setup(): no list today"}},
    {"another result in each run",
     TEST(.setup = no_nodes, .operation = store_pid),
     -ECANCELED,
     {"not the same in two runs", "after the operation"}},
};
const unsigned stepped_count = sizeof(stepped) / sizeof(stepped[0]);

#define AT_RANDOM .modes = SHMALLOC_CRASHTEST_RANDOM

const struct planted at_random[] = {
    {"random push and pop",
     TEST(.setup = two_nodes, .operation = push_right, .recover = recover, .proceed = pop_right,
          AT_RANDOM, .seconds = 3, .kills = 40),
     0,
     {"kills of one of 4 processes", "seed ", "no fault found"}},
    {"random spin",
     TEST(.setup = no_nodes, .operation = spin, .timeout = 1, AT_RANDOM, .seconds = 20,
          .kills = 1000),
     1,
     {"FAULT (random, seed ", "hangs"}},
    {"random failure",
     TEST(.setup = no_nodes, .operation = refuse, AT_RANDOM),
     1,
     {"a worker: operation(): no list today"}},
};
const unsigned at_random_count = sizeof(at_random) / sizeof(at_random[0]);
