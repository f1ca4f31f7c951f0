/* SPDX-License-Identifier: MIT */
/*
 * test_tx.c - transactions: all or nothing at commits, aborts, ends of threads and deaths; each bad
 * input.
 *
 * Would fail if a rollback missed a byte, a block leaked or was freed twice, a deferred word or
 * free came early or not at all, a dead owner's transaction stayed half done or was undone twice,
 * or a mutex was left held.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "heap_suite.h"
#include "format/layout.h"

HEAP_SUITE(tx, 0, 60);

struct world {
    shmalloc_mutex low, high;
    shmalloc_ref ref[4];
    uint64_t word[4];
    uint8_t bytes[20000];
};

static shmalloc_ref world_ref;

static struct world *make_world(void)
{
    must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct world), &world_ref));
    struct world *w = shmalloc_ptr(f.heap, world_ref);
    pattern_fill(w->bytes, 0, sizeof(w->bytes), 1);
    return w;
}

static void drop_world(void)
{
    struct world *w = shmalloc_ptr(f.heap, world_ref);
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_ref_free(f.heap, &w->ref[i]));
    must_work(shmalloc_ref_free(f.heap, &world_ref));
}

static struct world *world_in(shmalloc_heap *heap)
{
    return shmalloc_ptr(heap, world_ref);
}

static uint64_t blocks(void)
{
    return heap_stats(f.heap).allocated_blocks;
}

/* ---- ends ---- */

Test(tx, a_commit_keeps_and_an_abort_undoes)
{
    struct world *w = make_world();
    for (int commit = 0; commit < 2; commit++) {
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_lock(f.heap, &w->low));
        must_work(shmalloc_tx_add(f.heap, &w->word, sizeof(w->word)));
        w->word[0] = 7, w->word[3] = 9;
        must_work(commit ? shmalloc_tx_commit(f.heap) : shmalloc_tx_abort(f.heap));
        cr_assert(w->word[0] == (commit ? 7 : 0) && w->word[3] == (commit ? 9 : 0));
        must_work(shmalloc_mutex_trylock(f.heap, &w->low));
        must_work(shmalloc_mutex_unlock(f.heap, &w->low));
    }
    drop_world();
}

Test(tx, any_bytes_come_back)
{
    struct world *w = make_world();
    struct rng rng = rng_from(test_seed());
    for (int round = 0; round < 300; round++) {
        must_work(shmalloc_tx_begin(f.heap));
        for (int i = 0; i < 40; i++) {
            size_t len = 1 + rng_below(&rng, round % 10 == 0 ? 9000 : 200),
                   from = rng_below(&rng, sizeof(w->bytes) - len);
            must_work(shmalloc_tx_add(f.heap, w->bytes + from, len));
            for (size_t j = from; j < from + len; j++)
                w->bytes[j] = (uint8_t)rng_next(&rng);
        }
        must_be_sound(f.heap);
        must_work(shmalloc_tx_abort(f.heap));
        cr_assert_eq(pattern_check(w->bytes, sizeof(w->bytes), 1), sizeof(w->bytes));
    }
    drop_world();
}

Test(tx, blocks_are_kept_or_freed)
{
    struct world *w = make_world();
    const size_t sizes[] = {8, 100, 5000, 70000, 2 << 20};
    for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint64_t start = blocks();
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_alloc(f.heap, sizes[s], &w->ref[0]));
        memset(shmalloc_ptr(f.heap, w->ref[0]), 1, sizes[s]);
        must_work(shmalloc_tx_abort(f.heap));
        cr_assert(w->ref[0] == 0 && blocks() == start);

        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_alloc(f.heap, sizes[s], &w->ref[0]));
        must_work(shmalloc_tx_commit(f.heap));
        cr_assert(w->ref[0] != 0 && blocks() == start + 1);

        shmalloc_ref was = w->ref[0];
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_free(f.heap, &w->ref[0]));
        cr_assert(w->ref[0] == 0 && blocks() == start + 1);
        must_work(shmalloc_tx_abort(f.heap));
        cr_assert(w->ref[0] == was && blocks() == start + 1);

        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_free(f.heap, &w->ref[0]));
        must_work(shmalloc_tx_commit(f.heap));
        cr_assert(w->ref[0] == 0 && blocks() == start);

        must_work(shmalloc_tx_begin(f.heap)); /* both in one */
        must_work(shmalloc_tx_alloc(f.heap, sizes[s], &w->ref[0]));
        must_work(shmalloc_tx_free(f.heap, &w->ref[0]));
        must_work(s % 2 ? shmalloc_tx_commit(f.heap) : shmalloc_tx_abort(f.heap));
        cr_assert(w->ref[0] == 0 && blocks() == start);
    }
    drop_world();
}

Test(tx, a_ref_outside_the_heap_is_set_at_once)
{
    make_world();
    shmalloc_ref ref = 0;
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_alloc(f.heap, 50, &ref));
    cr_assert(ref != 0);
    must_work(shmalloc_tx_free(f.heap, &ref));
    cr_assert(ref == 0);
    must_work(shmalloc_tx_free(f.heap, &ref));
    must_work(shmalloc_tx_commit(f.heap));
    drop_world();
}

Test(tx, words_are_stored_by_the_commit)
{
    struct world *w = make_world();
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_store(f.heap, &w->word[0], 5));
    must_work(shmalloc_tx_store(f.heap, &w->word[1], 6));
    must_work(shmalloc_tx_store(f.heap, &w->word[0], 7));
    cr_assert(w->word[0] == 0 && w->word[1] == 0);
    must_work(shmalloc_tx_abort(f.heap));
    cr_assert(w->word[0] == 0 && w->word[1] == 0);
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_store(f.heap, &w->word[0], 5));
    must_work(shmalloc_tx_store(f.heap, &w->word[1], 6));
    must_work(shmalloc_tx_store(f.heap, &w->word[0], 7));
    must_work(shmalloc_tx_commit(f.heap));
    cr_assert(w->word[0] == 7 && w->word[1] == 6);
    drop_world();
}

Test(tx, inner_ones_join)
{
    struct world *w = make_world();
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_add(f.heap, &w->word[0], 8));
    w->word[0] = 1;
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, &w->low));
    must_work(shmalloc_tx_add(f.heap, &w->word[1], 8));
    w->word[1] = 1;
    must_work(shmalloc_tx_commit(f.heap));
    must_code(shmalloc_mutex_unlock(f.heap, &w->low), SHMALLOC_EINTX);
    must_work(shmalloc_tx_commit(f.heap));
    cr_assert(w->word[0] == 1 && w->word[1] == 1);

    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_add(f.heap, &w->word[0], 16));
    w->word[0] = 2;
    must_work(shmalloc_tx_begin(f.heap));
    w->word[1] = 2;
    must_work(shmalloc_tx_abort(f.heap));
    must_work(shmalloc_tx_add(f.heap, &w->word[2], 8));
    w->word[2] = 2;
    must_code(shmalloc_tx_commit(f.heap), -ECANCELED);
    cr_assert(w->word[0] == 1 && w->word[1] == 1 && w->word[2] == 0);
    must_code(shmalloc_tx_commit(f.heap), SHMALLOC_ENOTX);
    drop_world();
}

Test(tx, a_second_add_costs_no_log)
{
    struct world *w = make_world();
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_add(f.heap, w->bytes, 64));
    uint64_t start = heap_stats(f.heap).metadata;
    for (int i = 0; i < 100000; i++)
        must_work(shmalloc_tx_add(f.heap, w->bytes + i % 8, 56));
    cr_assert_eq(heap_stats(f.heap).metadata, start);
    must_work(shmalloc_tx_commit(f.heap));
    drop_world();
}

/* ---- mutexes ---- */

Test(tx, mutexes_that_are_held_are_not_put_back)
{
    struct world *w = make_world();
    for (int beside = 0; beside < 2; beside++) { /* the second is held outside the transaction */
        if (beside)
            must_work(shmalloc_mutex_lock(f.heap, &w->high));
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_lock(f.heap, &w->low));
        must_work(shmalloc_tx_add(f.heap, w, sizeof(*w)));
        shmalloc_mutex low = w->low, high = w->high;
        w->word[0] = 1;
        if (beside) /* while it is held nothing of it changes; were it put back unlocked, these
                       would differ */
            must_work(shmalloc_mutex_unlock(f.heap, &w->high)), high = w->high;
        w->bytes[100] ^= 1;
        must_work(shmalloc_tx_abort(f.heap));
        (void)low;
        cr_assert(memcmp(&high, &w->high, sizeof(high)) == 0 || !beside);
        cr_assert(w->word[0] == 0 &&
                  pattern_check(w->bytes, sizeof(w->bytes), 1) == sizeof(w->bytes));
        must_work(shmalloc_mutex_trylock(f.heap, &w->low));
        must_work(shmalloc_mutex_unlock(f.heap, &w->low));
        must_work(shmalloc_mutex_trylock(f.heap, &w->high));
        must_work(shmalloc_mutex_unlock(f.heap, &w->high));
    }
    drop_world();
}

Test(tx, a_mutex_in_what_was_added_is_refused)
{
    struct world *w = make_world();
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_add(f.heap, w, sizeof(*w)));
    must_code(shmalloc_tx_lock(f.heap, &w->low), -EINVAL);
    must_work(shmalloc_tx_abort(f.heap));
    drop_world();
}

Test(tx, a_block_with_a_held_mutex_is_not_freed)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 200, &w->ref[0]));
    shmalloc_mutex *m = shmalloc_ptr(f.heap, w->ref[0] + 64);
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, m));
    must_code(shmalloc_tx_free(f.heap, &w->ref[0]), -EINVAL);
    cr_assert(w->ref[0] != 0);
    must_work(shmalloc_tx_commit(f.heap));
    must_work(shmalloc_tx_begin(f.heap)); /* nor locked when it is freed */
    must_work(shmalloc_tx_free(f.heap, &w->ref[0]));
    must_code(shmalloc_tx_lock(f.heap, m), -EINVAL);
    must_work(shmalloc_tx_abort(f.heap));
    drop_world();
}

Test(tx, a_mutex_in_a_fresh_block_needs_no_lock)
{
    struct world *w = make_world();
    for (int commit = 0; commit < 2; commit++) {
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_alloc(f.heap, 200, &w->ref[0]));
        memset(shmalloc_ptr(f.heap, w->ref[0]), 0, 200);
        shmalloc_mutex *m = shmalloc_ptr(f.heap, w->ref[0]);
        must_work(shmalloc_tx_lock(f.heap, m));
        must_work(shmalloc_tx_lock(f.heap, m));
        must_work(commit ? shmalloc_tx_commit(f.heap) : shmalloc_tx_abort(f.heap));
        if (commit) {
            must_work(shmalloc_mutex_trylock(f.heap, m));
            must_work(shmalloc_mutex_unlock(f.heap, m));
        }
    }
    drop_world();
}

Test(tx, at_most_1024_mutexes)
{
    make_world();
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 1025 * sizeof(shmalloc_mutex), &ref));
    shmalloc_mutex *m = shmalloc_ptr(f.heap, ref);
    must_work(shmalloc_tx_begin(f.heap));
    for (int i = 0; i < 1024; i++)
        must_work(shmalloc_tx_lock(f.heap, &m[i % 2 ? i / 2 : 1023 - i / 2]));
    must_code(shmalloc_tx_lock(f.heap, &m[1024]), -ENOLCK);
    must_work(shmalloc_tx_lock(f.heap, &m[1023]));
    must_work(shmalloc_tx_commit(f.heap));
    for (int i = 0; i < 1025; i++) {
        must_work(shmalloc_mutex_trylock(f.heap, &m[i]));
        must_work(shmalloc_mutex_unlock(f.heap, &m[i]));
    }
    must_work(shmalloc_ref_free(f.heap, &ref));
    drop_world();
}

static void *hold_low(void *arg)
{
    uint32_t *step = arg;
    struct world *w = world_in(f.heap);
    must_work(shmalloc_mutex_lock(f.heap, &w->low));
    signal_word(&step[0]);
    await_word(&step[1], 1);
    must_work(shmalloc_mutex_unlock(f.heap, &w->low));
    return NULL;
}

Test(tx, out_of_order_is_tried_only)
{
    struct world *w = make_world();
    uint32_t step[2] = {0, 0};
    pthread_t thread;
    pthread_create(&thread, NULL, hold_low, step);
    await_word(&step[0], 1);
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, &w->high));
    must_code(shmalloc_tx_lock(f.heap, &w->low), SHMALLOC_ECONFLICT);
    must_work(shmalloc_tx_abort(f.heap));
    signal_word(&step[1]);
    pthread_join(thread, NULL);
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, &w->high));
    must_work(shmalloc_tx_lock(f.heap, &w->low));
    must_work(shmalloc_tx_lock(f.heap, &w->low));
    must_work(shmalloc_tx_commit(f.heap));
    must_work(shmalloc_mutex_lock(f.heap, &w->low)); /* held beside it */
    must_work(shmalloc_tx_begin(f.heap));
    must_code(shmalloc_tx_lock(f.heap, &w->low), -EDEADLK);
    must_work(shmalloc_tx_lock(f.heap, &w->high));
    must_code(shmalloc_tx_lock(f.heap, &w->low), -EDEADLK);
    must_work(shmalloc_tx_commit(f.heap));
    must_work(shmalloc_mutex_unlock(f.heap, &w->low));
    drop_world();
}

Test(tx, replaced_blocks_are_retired)
{
    struct world *w = make_world();
    uint64_t start = blocks();
    for (int i = 0; i < 5000; i++) { /* more than two bags have */
        shmalloc_ref fresh = 0, old = w->ref[0];
        must_work(shmalloc_tx_begin(f.heap));
        must_work(shmalloc_tx_lock(f.heap, &w->low));
        must_work(shmalloc_tx_alloc(f.heap, i % 100 ? 64 : 100000, &fresh));
        must_work(shmalloc_tx_store(f.heap, &w->ref[0], fresh));
        must_work(shmalloc_tx_retire(f.heap, &old));
        must_work(i % 3 ? shmalloc_tx_commit(f.heap) : shmalloc_tx_abort(f.heap));
    }
    cr_assert_eq(blocks(), start + 1);
    must_be_sound(f.heap);
    must_code(shmalloc_tx_retire(f.heap, &w->ref[0]), SHMALLOC_ENOTX);
    drop_world();
}

static int look_in_copy(void *arg)
{
    struct world *w = shmalloc_ptr(arg, world_ref);
    must_code(shmalloc_tx_add(arg, w->bytes, 1), SHMALLOC_ENOTX);
    must(w->word[0] == 0 && w->ref[0] == 0, "the copy has what the parent did not commit");
    must_work(shmalloc_tx_begin(arg));
    must_work(shmalloc_tx_lock(arg, &w->low)); /* which the parent holds */
    must_work(shmalloc_tx_add(arg, &w->word[0], 8));
    w->word[0] = 5;
    must_work(shmalloc_tx_commit(arg));
    must_work(shmalloc_check(arg));
    return 0;
}

Test(tx, in_a_private_heap)
{
    shmalloc_heap *heap;
    must_work(shmalloc_open_private(NULL, &heap));
    must_work(shmalloc_ref_alloc_zeroed(heap, sizeof(struct world), &world_ref));
    struct world *w = shmalloc_ptr(heap, world_ref);
    for (int commit = 0; commit < 2; commit++) {
        must_work(shmalloc_tx_begin(heap));
        must_work(shmalloc_tx_lock(heap, &w->low));
        must_work(shmalloc_tx_add(heap, w->word, sizeof(w->word)));
        w->word[0] = 1;
        must_work(shmalloc_tx_alloc(heap, 100, &w->ref[0]));
        cr_assert_eq(run_child(look_in_copy, heap), 0);
        must_work(commit ? shmalloc_tx_commit(heap) : shmalloc_tx_abort(heap));
        cr_assert(w->word[0] == (commit ? 1 : 0) && (w->ref[0] != 0) == commit);
    }
    must_work(shmalloc_check(heap));
    must_work(shmalloc_tx_begin(heap));
    must_work(shmalloc_close(heap));
}

Test(tx, in_a_hardened_heap)
{
    const char *path = fixture_path(&f, "hardened");
    shmalloc_heap *heap = heap_create(path, SHMALLOC_HARDENED);
    shmalloc_ref ref, copy, again;
    must_work(shmalloc_ref_alloc(heap, 100, &ref));
    for (int commit = 0; commit < 2; commit++) {
        must_work(shmalloc_tx_begin(heap));
        copy = again = ref;
        must_work(shmalloc_tx_free(heap, &copy));
        must_code(shmalloc_tx_free(heap, &again), SHMALLOC_EDOUBLEFREE); /* found at once */
        must_work(shmalloc_tx_alloc(heap, 100, &copy));
        must_work(commit ? shmalloc_tx_commit(heap) : shmalloc_tx_abort(heap));
        must_be_sound(heap);
        cr_assert_eq(heap_stats(heap).allocated_blocks, 1);
    }
    must_work(shmalloc_close(heap));
}

/* The owner before left it inconsistent; what a transaction mends is mended by its commit. */
static int die_beside(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    struct world *w = world_in(heap);
    must_work(shmalloc_mutex_lock(heap, &w->low));
    return raise(SIGKILL);
}

Test(tx, what_a_dead_owner_left_is_mended_by_the_commit)
{
    struct world *w = make_world();
    cr_assert_eq(run_child(die_beside, NULL), -SIGKILL);
    for (int commit = 0; commit < 2; commit++) {
        must_work(shmalloc_tx_begin(f.heap));
        must_code(shmalloc_tx_lock(f.heap, &w->low), SHMALLOC_OWNER_DIED);
        must_work(shmalloc_mutex_consistent(f.heap, &w->low));
        must_work(commit ? shmalloc_tx_commit(f.heap) : shmalloc_tx_abort(f.heap));
    }
    must_work(shmalloc_mutex_lock(f.heap, &w->low));
    must_work(shmalloc_mutex_unlock(f.heap, &w->low));
    drop_world();
}

/* ---- deaths ---- */

enum way { BY_LOW, BY_HIGH, BY_ADOPTION };

static void change(shmalloc_heap *heap, struct world *w)
{
    must_work(shmalloc_tx_begin(heap));
    must_work(shmalloc_tx_lock(heap, &w->low));
    must_work(shmalloc_tx_lock(heap, &w->high));
    must_work(shmalloc_tx_add(heap, w, sizeof(*w)));
    memset(w->bytes, 0xee, sizeof(w->bytes));
    w->word[0] = 1;
    must_work(shmalloc_tx_alloc(heap, 100, &w->ref[0]));
    must_work(shmalloc_tx_alloc(heap, 100000, &w->ref[1]));
    must_work(shmalloc_tx_free(heap, &w->ref[2]));
    must_work(shmalloc_tx_store(heap, &w->word[1], 1));
}

static int die_inside(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    change(heap, world_in(heap));
    return raise(SIGKILL);
}

static int die_after(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    change(heap, world_in(heap));
    must_work(shmalloc_tx_commit(heap));
    return raise(SIGKILL);
}

static void find_the_dead(struct world *w, enum way way)
{
    if (way == BY_ADOPTION) {
        must(shmalloc_trim(f.heap) >= 0, "trim");
        return;
    }
    shmalloc_mutex *m = way == BY_LOW ? &w->low : &w->high;
    must_work(shmalloc_mutex_lock(f.heap, m)); /* plain 0: what it guards is whole */
    must_work(shmalloc_mutex_unlock(f.heap, m));
}

Test(tx, a_death_inside_is_a_rollback)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    shmalloc_ref third = w->ref[2];
    for (enum way way = BY_LOW; way <= BY_ADOPTION; way++) {
        cr_assert_eq(run_child(die_inside, NULL), -SIGKILL);
        if (way == BY_ADOPTION)
            fixture_reopen(&f), w = world_in(f.heap);
        find_the_dead(w, way);
        cr_assert(w->word[0] == 0 && w->word[1] == 0 && w->ref[0] == 0 && w->ref[1] == 0 &&
                  w->ref[2] == third);
        cr_assert_eq(pattern_check(w->bytes, sizeof(w->bytes), 1), sizeof(w->bytes));
        must_be_sound(f.heap);
        cr_assert_eq(blocks(), 2);
        must_work(shmalloc_mutex_lock(f.heap, &w->low));
        must_work(shmalloc_mutex_lock(f.heap, &w->high));
        must_work(shmalloc_mutex_unlock(f.heap, &w->high));
        must_work(shmalloc_mutex_unlock(f.heap, &w->low));
    }
    drop_world();
}

Test(tx, a_death_after_is_none)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    cr_assert_eq(run_child(die_after, NULL), -SIGKILL);
    find_the_dead(w, BY_LOW);
    cr_assert(w->word[0] == 1 && w->word[1] == 1 && w->ref[0] != 0 && w->ref[1] != 0 &&
              w->ref[2] == 0);
    cr_assert_eq(blocks(), 3);
    must_be_sound(f.heap);
    drop_world();
}

static void *end_inside(void *arg)
{
    (void)arg;
    change(f.heap, world_in(f.heap));
    return NULL;
}

Test(tx, the_end_of_a_thread_rolls_back)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    pthread_t thread;
    pthread_create(&thread, NULL, end_inside, NULL);
    pthread_join(thread, NULL);
    find_the_dead(w, BY_LOW);
    find_the_dead(w, BY_HIGH);
    cr_assert(w->word[0] == 0 && w->ref[0] == 0 && w->ref[2] != 0 && blocks() == 2);
    cr_assert_eq(pattern_check(w->bytes, sizeof(w->bytes), 1), sizeof(w->bytes));
    drop_world();
}

static int exit_inside(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = fixture_join(&f);
    change(heap, world_in(heap));
    exit(0);
}

Test(tx, the_end_of_a_process_rolls_back)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    cr_assert_eq(run_child(exit_inside, NULL), 0);
    find_the_dead(w, BY_LOW);
    find_the_dead(w, BY_HIGH);
    cr_assert(w->word[0] == 0 && w->ref[0] == 0 && w->ref[2] != 0 && blocks() == 2);
    drop_world();
}

/* ---- closes and forks ---- */

Test(tx, a_close_rolls_the_own_back)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    change(f.heap, w);
    fixture_reopen(&f);
    w = world_in(f.heap);
    cr_assert(w->word[0] == 0 && w->ref[0] == 0 && w->ref[2] != 0 && blocks() == 2);
    drop_world();
}

static void *stay_inside(void *arg)
{
    uint32_t *step = arg;
    struct world *w = world_in(f.heap);
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, &w->low));
    signal_word(&step[0]);
    await_word(&step[1], 1);
    must_work(shmalloc_tx_commit(f.heap));
    return NULL;
}

Test(tx, a_close_waits_for_no_other_thread)
{
    make_world();
    uint32_t step[2] = {0, 0};
    pthread_t thread;
    pthread_create(&thread, NULL, stay_inside, step);
    await_word(&step[0], 1);
    must_code(shmalloc_close(f.heap), -EBUSY);
    must_be_sound(f.heap);
    signal_word(&step[1]);
    pthread_join(thread, NULL);
    drop_world();
}

static int look_from_child(void *arg)
{
    struct world *w = arg;
    must_code(shmalloc_tx_commit(f.heap), SHMALLOC_ENOTX);
    must_code(shmalloc_tx_add(f.heap, w->bytes, 1), SHMALLOC_ENOTX);
    must_code(shmalloc_mutex_trylock(f.heap, &w->low), -EBUSY); /* it is the parent's */
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_add(f.heap, &w->word[3], 8));
    w->word[3] = 3;
    must_work(shmalloc_tx_commit(f.heap));
    return 0;
}

Test(tx, a_forked_child_is_in_none)
{
    struct world *w = make_world();
    must_work(shmalloc_ref_alloc(f.heap, 300, &w->ref[2]));
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_lock(f.heap, &w->low));
    must_work(shmalloc_tx_add(f.heap, &w->word[0], 8));
    w->word[0] = 1;
    cr_assert_eq(run_child(look_from_child, w), 0);
    cr_assert(w->word[0] == 1 && w->word[3] == 3);
    must_work(shmalloc_tx_add(f.heap, &w->word[1], 8));
    w->word[1] = 1;
    must_work(shmalloc_tx_abort(f.heap));
    cr_assert(w->word[0] == 0 && w->word[1] == 0 && w->word[3] == 3);
    drop_world();
}

/* ---- bad input ---- */

Test(tx, without_begin)
{
    struct world *w = make_world();
    for (int i = 0; i < 2; i++) {
        must_code(shmalloc_tx_commit(f.heap), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_abort(f.heap), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_lock(f.heap, &w->low), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_add(f.heap, w->bytes, 8), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_alloc(f.heap, 8, &w->ref[0]), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_free(f.heap, &w->ref[0]), SHMALLOC_ENOTX);
        must_code(shmalloc_tx_store(f.heap, &w->word[0], 1), SHMALLOC_ENOTX);
        must_work(shmalloc_tx_begin(f.heap)); /* nor after one */
        must_work(shmalloc_tx_commit(f.heap));
    }
    drop_world();
}

Test(tx, what_is_not_in_the_heap)
{
    struct world *w = make_world();
    uint64_t mine = 0;
    shmalloc_mutex m = {{0}};
    must_work(shmalloc_tx_begin(f.heap));
    must_code(shmalloc_tx_add(f.heap, &mine, 8), -EINVAL);
    must_code(shmalloc_tx_add(f.heap, NULL, 8), -EINVAL);
    must_code(shmalloc_tx_add(f.heap, w, SIZE_MAX), -EINVAL);
    must_code(shmalloc_tx_add(f.heap, w, 1 << 30), -EINVAL);
    must_work(shmalloc_tx_add(f.heap, w, 0));
    must_code(shmalloc_tx_store(f.heap, &mine, 8), -EINVAL);
    must_code(shmalloc_tx_store(f.heap, (uint64_t *)(void *)(w->bytes + 1), 8), -EINVAL);
    must_code(shmalloc_tx_lock(f.heap, &m), -EINVAL);
    must_code(shmalloc_tx_lock(f.heap, NULL), -EINVAL);
    must_code(shmalloc_tx_alloc(f.heap, 8, NULL), -EINVAL);
    must_code(shmalloc_tx_alloc(f.heap, 8, (shmalloc_ref *)(void *)(w->bytes + 1)), -EINVAL);
    must_code(shmalloc_tx_free(f.heap, NULL), -EINVAL);
    must_work(shmalloc_tx_commit(f.heap));
    drop_world();
}

Test(tx, blocks_that_are_none)
{
    struct world *w = make_world();
    must_work(shmalloc_tx_begin(f.heap));
    shmalloc_ref inside = world_ref + 8, block;
    must_code(shmalloc_tx_free(f.heap, &inside), SHMALLOC_EBADREF);
    inside = 1ull << 50;
    must_code(shmalloc_tx_free(f.heap, &inside), SHMALLOC_EBADREF);
    must_work(shmalloc_ref_alloc(f.heap, 100, &block));
    shmalloc_ref again = block;
    must_work(shmalloc_ref_free(f.heap, &block));
    must_code(shmalloc_tx_free(f.heap, &again), SHMALLOC_EDOUBLEFREE);
    must_code(shmalloc_tx_alloc(f.heap, 1ull << 50, &w->ref[0]), SHMALLOC_EFULL);
    cr_assert(w->ref[0] == 0);
    must_work(shmalloc_tx_commit(f.heap));
    drop_world();
}

Test(tx, two_heaps)
{
    struct world *w = make_world();
    shmalloc_heap *other = heap_create(fixture_path(&f, "other"), 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_tx_begin(f.heap));
    must_code(shmalloc_tx_begin(other), SHMALLOC_EINTX);
    must_code(shmalloc_tx_alloc(other, 8, &ref), SHMALLOC_ENOTX);
    must_work(shmalloc_ref_alloc(other, 100, &ref)); /* what is no transaction may be done */
    must_work(shmalloc_tx_add(f.heap, &w->word[0], 8));
    w->word[0] = 1;
    must_work(shmalloc_tx_abort(f.heap));
    cr_assert_eq(w->word[0], 0);
    must_work(shmalloc_tx_begin(other));
    must_code(shmalloc_tx_begin(f.heap), SHMALLOC_EINTX);
    must_work(shmalloc_close(other)); /* ends it */
    must_work(shmalloc_tx_begin(f.heap));
    must_work(shmalloc_tx_commit(f.heap));
    drop_world();
}

Test(tx, read_only_and_closed)
{
    make_world();
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    shmalloc_heap *reader;
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_open(f.path, &options, &reader));
    must_code(shmalloc_tx_begin(reader), SHMALLOC_EREADONLY);
    must_code(shmalloc_tx_commit(reader), SHMALLOC_EREADONLY);
    must_work(shmalloc_close(reader));
    must_code(shmalloc_tx_begin(reader), SHMALLOC_ECLOSED);
    must_code(shmalloc_tx_commit(reader), SHMALLOC_ECLOSED);
    f.heap = heap_open(f.path);
    drop_world();
}

/* ---- shmalloc_tx_run ---- */

static int add_one(shmalloc_heap *heap, void *arg)
{
    struct world *w = arg;
    int rc = shmalloc_tx_lock(heap, &w->high);
    if (rc == 0)
        rc = shmalloc_tx_lock(heap, &w->low); /* the wrong way round */
    if (rc == 0)
        rc = shmalloc_tx_add(heap, w->word, sizeof(w->word));
    if (rc == 0)
        w->word[0]++, w->word[1]++;
    return rc;
}

static int add_one_upwards(shmalloc_heap *heap, void *arg)
{
    struct world *w = arg;
    int rc = shmalloc_tx_lock(heap, &w->low);
    return rc < 0 ? rc : shmalloc_tx_run(heap, add_one, arg);
}

static void *run_many(void *arg)
{
    struct world *w = world_in(f.heap);
    for (int i = 0; i < 3000; i++)
        must_work(shmalloc_tx_run(f.heap, (uintptr_t)arg % 2 ? add_one : add_one_upwards, w));
    return NULL;
}

Test(tx, run_again_after_conflicts)
{
    struct world *w = make_world();
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, run_many, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert(w->word[0] == 12000 && w->word[1] == 12000);
    drop_world();
}

static int refuse(shmalloc_heap *heap, void *arg)
{
    struct world *w = arg;
    must_work(shmalloc_tx_add(heap, w->word, sizeof(w->word)));
    w->word[0] = 77;
    return -EPROTO;
}

static int end_it(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return shmalloc_tx_commit(heap);
}

static int answer_five(shmalloc_heap *heap, void *arg)
{
    (void)heap;
    (void)arg;
    return 5;
}

Test(tx, run_answers_what_the_function_did)
{
    struct world *w = make_world();
    must_code(shmalloc_tx_run(f.heap, refuse, w), -EPROTO);
    cr_assert_eq(w->word[0], 0);
    must_code(shmalloc_tx_run(f.heap, answer_five, w), 5);
    must_code(shmalloc_tx_run(f.heap, end_it, w), SHMALLOC_ENOTX);
    must_code(shmalloc_tx_run(f.heap, NULL, w), -EINVAL);
    must_work(shmalloc_tx_begin(f.heap)); /* inside another */
    must_code(shmalloc_tx_run(f.heap, refuse, w), -EPROTO);
    must_code(shmalloc_tx_commit(f.heap), -EPROTO);
    cr_assert_eq(w->word[0], 0);
    drop_world();
}

/* ---- out of space ---- */

Test(tx, out_of_space_inside_is_sound)
{
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_destroy(f.path));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 4 << 20;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    before = usage_now(f.heap);
    struct world *w = make_world();
    struct usage start = usage_now(f.heap);
    for (int what = 0; what < 2; what++) {
        int rc = shmalloc_tx_begin(f.heap);
        must_work(rc);
        must_work(shmalloc_tx_add(f.heap, w->bytes, sizeof(w->bytes)));
        memset(w->bytes, 0x55, sizeof(w->bytes));
        for (uint64_t i = 0; rc == 0; i++) /* blocks, or a log that grows */
            rc = what == 0 ? shmalloc_tx_alloc(f.heap, 3000, &w->ref[0])
                           : shmalloc_tx_store(f.heap, &w->word[0], i);
        cr_assert_eq(rc, SHMALLOC_EFULL, "%d: %s", rc, shmalloc_errmsg());
        must_be_sound(f.heap);
        must_work(shmalloc_tx_abort(f.heap));
        cr_assert_eq(pattern_check(w->bytes, sizeof(w->bytes), 1), sizeof(w->bytes));
        cr_assert_eq(w->ref[0], 0);
        must_be_sound(f.heap);
        cr_assert_eq(usage_now(f.heap).blocks, start.blocks);
    }
    drop_world();
}
