/* SPDX-License-Identifier: MIT */
/* ops.c - the operations: one function to prepare, one to run; see ops.h. */
#include "ops.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "slots/stacks.h"
#include "crashtest/stepper.h"
#include "life/context.h"
#include "life/adopt.h"
#include "slots/slab.h"
#include "support.h"
#include "tx/retire.h"

struct control *control;

/* ---- what operations are made of ---- */

static void link_block(struct stage *s, unsigned i, size_t size)
{
    must_work(shmalloc_ref_alloc(s->heap, size, &s->world->word[i]));
}

static void unlink_block(struct stage *s, unsigned i)
{
    s->world->valid[i] = 0;
    must_work(shmalloc_ref_free(s->heap, &s->world->word[i]));
}

static void keep_block(struct stage *s, size_t size)
{
    must(s->kept_count < 1024, "too many blocks");
    void *block = shmalloc_malloc(s->heap, size);
    must(block, "malloc: %s", shmalloc_errmsg());
    s->kept[s->kept_count++] = block;
}

static void drop_block(struct stage *s)
{
    must_work(shmalloc_free(s->heap, s->kept[--s->kept_count]));
}

static void keep_many(struct stage *s, unsigned count, size_t size)
{
    while (count-- > 0)
        keep_block(s, size);
}

static void drop_many(struct stage *s, unsigned count)
{
    while (count-- > 0)
        drop_block(s);
}

/* The block of word[i] gets contents that must stay: its first `bytes`. */
static void write_block(struct stage *s, unsigned i, size_t bytes)
{
    pattern_fill(shmalloc_ptr(s->heap, s->world->word[i]), 0, bytes, i);
    s->world->valid[i] = bytes;
}

static void create_heap(struct stage *s, unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE | flags;
    options.max_size = 64 << 20;
    options.arenas = 1; /* the image is small then */
    must_work(shmalloc_open(s->path, &options, &s->heap));
}

static void nothing(struct stage *s)
{
    (void)s;
}

#define SMALL 100
#define LARGE (68u << 10)
#define HUGE (1200u << 10)

/* ---- taking ---- */

static void one_small(struct stage *s)
{
    link_block(s, 0, SMALL);
}
static void four_small(struct stage *s) /* as many as the first refill brings */
{
    for (unsigned i = 0; i < 4; i++)
        link_block(s, i, SMALL);
}
static void full_slab(struct stage *s) /* 73 slots: the slab leaves the set, the next refill makes
                                          another */
{
    keep_many(s, 72, SMALL);
    link_block(s, 0, SMALL);
}
static void take_small(struct stage *s)
{
    link_block(s, 8, SMALL);
}
static void take_8(struct stage *s)
{
    link_block(s, 8, 8);
}
static void take_16(struct stage *s)
{
    link_block(s, 8, 16);
}
static void take_2048(struct stage *s)
{
    link_block(s, 8, 2048);
}
static void malloc_small(struct stage *s)
{
    keep_block(s, SMALL);
}
static void zeroed_small(struct stage *s)
{
    s->world->valid[8] = 0;
    must_work(shmalloc_ref_alloc_zeroed(s->heap, SMALL, &s->world->word[8]));
}
static void zeroed_large(struct stage *s)
{
    must_work(shmalloc_ref_alloc_zeroed(s->heap, LARGE, &s->world->word[8]));
}
static void dirty_large(struct stage *s) /* what is taken next is not zero any more, and its zeros
                                            must be seen */
{
    link_block(s, 8, LARGE);
    memset(shmalloc_ptr(s->heap, s->world->word[8]), 0xaa, LARGE);
    unlink_block(s, 8);
    s->world->valid[8] = LARGE;
}
static void take_large(struct stage *s)
{
    link_block(s, 8, LARGE);
}
static void malloc_large(struct stage *s)
{
    keep_block(s, LARGE);
}
static void take_huge(struct stage *s)
{
    link_block(s, 8, HUGE);
}
static void take_aligned(struct stage *s)
{
    must_work(shmalloc_ref_alloc_aligned(s->heap, 64 << 10, LARGE, &s->world->word[8]));
}
static void take_tagged(struct stage *s)
{
    must_work(shmalloc_ref_alloc_tagged(s->heap, SMALL, 7, &s->world->word[8]));
}
static void one_tagged(struct stage *s)
{
    must_work(shmalloc_ref_alloc_tagged(s->heap, SMALL, 6, &s->world->word[0]));
}
static void take_tagged_large(struct stage *s)
{
    must_work(shmalloc_ref_alloc_tagged(s->heap, LARGE, 7, &s->world->word[8]));
}
static uint8_t original[LARGE];
/* What word[8] names must be the pattern, whenever it names anything. */
static void will_dup(struct stage *s, size_t size)
{
    pattern_fill(original, 0, size, 8);
    s->world->valid[8] = size;
}
static void dup_dirty_small(struct stage *s) /* what is taken next has bytes that are none of the
                                                copy's */
{
    link_block(s, 8, SMALL);
    memset(shmalloc_ptr(s->heap, s->world->word[8]), 0xaa, SMALL);
    unlink_block(s, 8);
    will_dup(s, SMALL);
}
static void dup_four_small(struct stage *s)
{
    four_small(s);
    will_dup(s, SMALL);
}
static void dup_no_slab(struct stage *s)
{
    will_dup(s, SMALL);
}
static void dup_no_large(struct stage *s)
{
    will_dup(s, LARGE);
}
static void dup_small(struct stage *s)
{
    must_work(shmalloc_ref_dup(s->heap, original, SMALL, &s->world->word[8]));
}
static void dup_large(struct stage *s)
{
    must_work(shmalloc_ref_dup(s->heap, original, LARGE, &s->world->word[8]));
}
static void dup_outside(struct stage *s)
{
    shmalloc_ref mine = 0;
    must_work(shmalloc_ref_dup(s->heap, original, SMALL, &mine));
}
static void link_before_filling(struct stage *s)
{
    link_block(s, 8, SMALL);
    memcpy(shmalloc_ptr(s->heap, s->world->word[8]), original, SMALL);
}
static void grown_and_cut(struct stage *s) /* the next growth makes a chunk that was there before */
{
    take_huge(s);
    unlink_block(s, 8);
    must(shmalloc_trim(s->heap) >= 0, "trim: %s", shmalloc_errmsg());
}

/* ---- giving ---- */

static void free_first(struct stage *s)
{
    unlink_block(s, 0);
}
static void free_fourth(struct stage *s)
{
    unlink_block(s, 3);
}
static void one_kept(struct stage *s)
{
    keep_block(s, SMALL);
}
static uint64_t slots_in(const struct smi_stack *stack)
{
    return smi_stack_count(stack->array, (uint32_t)stack->capacity + 1);
}
static void stack_at_limit(struct stage *s, unsigned limit)
{
    struct smi_stack *stack = smi_stack_of(smi_current, smi_class_of(SMALL));
    for (unsigned i = 0; i < limit + 20; i++)
        keep_block(s, SMALL);
    link_block(s, 0, SMALL);
    while (s->kept_count > 0 && (stack->limit < limit || slots_in(stack) < stack->limit))
        drop_block(s);
    must(stack->limit == limit && slots_in(stack) == limit, "the stack holds %llu of %llu slots",
         (unsigned long long)slots_in(stack), (unsigned long long)stack->limit);
}
static void stack_full(struct stage *s)
{
    stack_at_limit(s, 71);
}
static void stack_full_again(struct stage *s) /* of an array in a span of its own, which is
                                                 replaced */
{
    stack_at_limit(s, 575);
}
static void stack_at_share(struct stage *s) /* no room left for a longer one: a batch goes back */
{
    struct smi_stack *stack = smi_stack_of(smi_current, smi_class_of(4096));
    keep_many(s, 30, 4096);
    link_block(s, 0, 4096);
    smi_current->room = 0;
    while (slots_in(stack) < stack->limit)
        drop_block(s);
}
/* With a tag: the thread keeps others that it frees. */
static void link_tagged(struct stage *s, unsigned i, size_t size)
{
    must_work(shmalloc_ref_alloc_tagged(s->heap, size, 7, &s->world->word[i]));
}
static void three_large(struct stage *s)
{
    for (unsigned i = 0; i < 5; i++)
        link_tagged(s, i, LARGE);
}
static void free_left(struct stage *s)
{
    three_large(s);
    unlink_block(s, 1);
}
static void free_right(struct stage *s)
{
    three_large(s);
    unlink_block(s, 3);
}
static void free_both(struct stage *s)
{
    three_large(s);
    unlink_block(s, 1);
    unlink_block(s, 3);
}
static void free_middle(struct stage *s)
{
    unlink_block(s, 2);
}
static void two_large(struct stage *s)
{
    link_block(s, 1, LARGE);
    link_block(s, 2, LARGE);
}
static void large_kept(struct stage *s)
{
    two_large(s);
    memset(shmalloc_ptr(s->heap, s->world->word[2]), 0xaa, LARGE);
    unlink_block(s, 2);
}
static void dup_large_kept(struct stage *s)
{
    large_kept(s);
    will_dup(s, LARGE);
}
static void all_kept(struct stage *s) /* as many as a thread slot has entries for: the next one
                                         drives one out */
{
    for (unsigned i = 1; i < SMF_SPANS + 2; i++)
        link_block(s, i, SMI_MAX_SMALL + 1);
    link_block(s, 0, LARGE);
    for (unsigned i = 1; i < SMF_SPANS + 2; i++)
        if (i != 2)
            unlink_block(s, i);
    link_block(s, 2, LARGE);
    unlink_block(s, 0);
}
static void at_once(struct stage *s) /* what is freed goes back to the file system within the
                                        call */
{
    three_large(s);
    must_work(shmalloc_set_give_back(s->heap, 0, 0));
}
static void huge_at_once(struct stage *s) /* a chunk goes with it */
{
    link_block(s, 2, HUGE);
    must_work(shmalloc_set_give_back(s->heap, 0, 0));
}

/* ---- resizing ---- */

static void written_small(struct stage *s)
{
    link_block(s, 0, SMALL);
    write_block(s, 0, SMALL);
}
static void written_large(struct stage *s)
{
    link_block(s, 0, LARGE);
    write_block(s, 0, LARGE);
}
static void written_large_blocked(struct stage *s)
{
    written_large(s);
    link_block(s, 1, 4096 * 17);
}
static void resize(struct stage *s, size_t size)
{
    must_work(shmalloc_ref_realloc(s->heap, &s->world->word[0], size));
}
static void to_small(struct stage *s)
{
    s->world->valid[0] = SMALL;
    resize(s, SMALL);
}
static void to_medium(struct stage *s)
{
    resize(s, 5 * SMALL);
}
static void to_large(struct stage *s)
{
    resize(s, LARGE);
}
static void to_larger(struct stage *s)
{
    resize(s, LARGE + (20u << 10));
}
static void to_huge(struct stage *s)
{
    resize(s, HUGE);
}
static void shrink_valid(struct stage *s)
{
    written_large(s);
    s->world->valid[0] = SMALL;
}
static void written_large_beside_kept(struct stage *s)
{
    written_large_blocked(s);
    unlink_block(s, 1);
}
static void written_small_large_kept(struct stage *s)
{
    large_kept(s);
    written_small(s);
}
static void to_less_large(struct stage *s)
{
    resize(s, LARGE);
}
static void very_large(struct stage *s)
{
    link_block(s, 0, 2 * LARGE);
    write_block(s, 0, LARGE);
    link_block(s, 1, LARGE);
}
static void kept_written(struct stage *s)
{
    keep_block(s, SMALL);
}
static void cache_medium(struct stage *s) /* the block that it moves to is on a stack */
{
    link_block(s, 2, 5 * SMALL);
    unlink_block(s, 2);
}
static void written_small_cached(struct stage *s)
{
    written_small(s);
    cache_medium(s);
}
static void kept_written_cached(struct stage *s)
{
    kept_written(s);
    cache_medium(s);
}
static void pointer_realloc_medium(struct stage *s)
{
    s->kept[0] = shmalloc_realloc(s->heap, s->kept[0], 5 * SMALL);
}
static void pointer_realloc_large(struct stage *s)
{
    s->kept[0] = shmalloc_realloc(s->heap, s->kept[0], LARGE);
}

/* ---- retiring ---- */

#define BAG 4 /* blocks in one, so that few steps fill it */

static void retire(struct stage *s, unsigned i)
{
    s->world->valid[i] = 0;
    must_work(shmalloc_retire(s->heap, &s->world->word[i]));
}
static void retire_first(struct stage *s)
{
    retire(s, 0);
}
static void retire_middle(struct stage *s)
{
    retire(s, 2);
}
static void retired(struct stage *s, unsigned count)
{
    smi_bag_limit = BAG;
    for (unsigned i = 10; i < 10 + count; i++) {
        link_block(s, i, i % 2 ? SMALL : 600);
        retire(s, i);
    }
    link_block(s, 0, SMALL);
}
static void one_retired(struct stage *s)
{
    retired(s, 1);
}
static void bag_full(struct stage *s)
{
    retired(s, BAG);
}
static void bags_full(struct stage *s)
{
    retired(s, 2 * BAG);
}
static void bags_full_of_all_kinds(struct stage *s) /* with a tag, and for a stack without room */
{
    smi_bag_limit = BAG;
    must_work(shmalloc_ref_alloc_tagged(s->heap, SMALL, 7, &s->world->word[10]));
    retire(s, 10);
    link_block(s, 11, 5 * SMALL);
    retire(s, 11);
    link_block(s, 12, SMALL);
    link_block(s, 13, SMALL);
    stack_full(s);
    retire(s, 12);
    retire(s, 13);
    for (unsigned i = 20; i < 20 + BAG; i++) {
        link_block(s, i, 600);
        retire(s, i);
    }
}
static void one_retired_and_large(struct stage *s)
{
    one_retired(s);
    link_block(s, 2, LARGE);
}
static void one_retired_and_tagged_large(struct stage *s)
{
    one_retired(s);
    link_tagged(s, 2, LARGE);
}
/* What a structure does: word 0 gets a new block, and its old one is retired. */
static void put(struct stage *s, size_t size)
{
    int rc;
    struct smi_fresh fresh;
    struct smi_thread *t = smi_thread_enter(s->heap, &rc);
    must_work(smi_fresh_make(t, size, &fresh));
    must_work(smi_fresh_publish(t, &fresh, &s->world->word[0], 0, s->world->word[0]));
}
static void put_small(struct stage *s)
{
    put(s, SMALL);
}
static void put_large(struct stage *s)
{
    put(s, LARGE);
}
static void retired_and_nothing(struct stage *s)
{
    one_retired(s);
    unlink_block(s, 0);
}
static void retired_and_large(struct stage *s)
{
    retired_and_nothing(s);
    link_block(s, 0, LARGE);
}
static void section(struct stage *s)
{
    must_work(shmalloc_read_begin(s->heap));
    must(shmalloc_read_valid(s->heap), "ousted");
    must_work(shmalloc_read_end(s->heap));
}
static void *last_call_retires(void *arg)
{
    bags_full(arg);
    must_work(shmalloc_read_begin(((struct stage *)arg)->heap));
    smi_stepper_mark(&control->phase, SMI_BEGUN);
    return NULL;
}
static int die_with_full_bags(void *arg)
{
    struct stage *s = arg;
    bags_full_of_all_kinds(s);
    must_work(shmalloc_read_begin(s->heap));
    raise(SIGKILL);
    return 0;
}
static void somebody_died_with_full_bags(struct stage *s)
{
    link_block(s, 1, SMALL);
    must(run_child(die_with_full_bags, s) == -SIGKILL, "the victim did not die");
}

/* ---- the heap as a whole ---- */

static void much_to_trim(struct stage *s)
{
    link_block(s, 1, 300);
    keep_many(s, 6, SMALL);
    keep_many(s, 6, 4096);
    link_block(s, 2, HUGE);
    link_block(s, 3, LARGE);
    unlink_block(s, 2);
    unlink_block(s, 3);
    drop_many(s, s->kept_count);
}
static void deep_to_trim(struct stage *s) /* with an array in a span of its own */
{
    stack_full(s);
    unlink_block(s, 0);
    keep_many(s, 66, SMALL); /* few are left to be given back one by one */
}
static void trim(struct stage *s)
{
    must(shmalloc_trim(s->heap) >= 0, "trim: %s", shmalloc_errmsg());
}
static void raise_maximum(struct stage *s)
{
    must_work(shmalloc_set_max_size(s->heap, 1ull << 30));
}

/* Refused while others have the heap open. */
static void set_layout(struct stage *s, const char *name, uint64_t version)
{
    int rc = shmalloc_set_layout(s->heap, name, version);
    must(rc == 0 || rc == SHMALLOC_EBUSY, "set_layout: %d %s", rc, shmalloc_errmsg());
}
static void has_layout(struct stage *s)
{
    set_layout(s, "what was there before, also long", 3);
}
static void change_layout(struct stage *s)
{
    set_layout(s, "a name of more than one word", 7);
}

/* ---- roots ---- */

static void root_set(struct stage *s)
{
    must_work(shmalloc_root_set(s->heap, "a root", 3, s->world->word[0]));
}
static void root_replace(struct stage *s)
{
    must_work(shmalloc_root_set(s->heap, "a root", 4, s->world->word[1]));
}
static void root_remove(struct stage *s)
{
    must_work(shmalloc_root_remove(s->heap, "a root"));
}
static void has_root(struct stage *s)
{
    link_block(s, 0, SMALL);
    link_block(s, 1, SMALL);
    root_set(s);
}
static int fill_root(shmalloc_heap *heap, void *block, void *arg)
{
    (void)heap;
    (void)arg;
    *(uint64_t *)block = 42;
    return 0;
}
static int refuse_root(shmalloc_heap *heap, void *block, void *arg)
{
    (void)fill_root(heap, block, arg);
    return -ECANCELED;
}
static void root_create_sized(struct stage *s, size_t size)
{
    shmalloc_ref ref;
    must_code(shmalloc_root_get_or_create(s->heap, "a root", 5, size, fill_root, NULL, &ref),
              SHMALLOC_CREATED);
}
static void root_create(struct stage *s)
{
    root_create_sized(s, SMALL);
}
static void root_create_large(struct stage *s)
{
    root_create_sized(s, LARGE);
}
static void root_refused(struct stage *s)
{
    shmalloc_ref ref;
    must_code(shmalloc_root_get_or_create(s->heap, "a root", 5, SMALL, refuse_root, NULL, &ref),
              -ECANCELED);
}

/* ---- mutex ---- */

static void lock(struct stage *s)
{
    must_work(shmalloc_mutex_lock(s->heap, &s->world->mutex));
}
static void unlock(struct stage *s)
{
    must_work(shmalloc_mutex_unlock(s->heap, &s->world->mutex));
}
static void lock_unlock(struct stage *s)
{
    lock(s);
    unlock(s);
}

static void *lock_and_end(void *arg)
{
    lock(arg);
    return NULL;
}

/* An owner died, and the next one unlocked without a word. */
static void leave_inconsistent(struct stage *s)
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, lock_and_end, s) == 0, "no thread");
    pthread_join(thread, NULL);
    must_code(shmalloc_mutex_lock(s->heap, &s->world->mutex), SHMALLOC_OWNER_DIED);
    unlock(s);
}
static void lock_inconsistent(struct stage *s)
{
    must_code(shmalloc_mutex_lock(s->heap, &s->world->mutex), SHMALLOC_OWNER_DIED);
}
static void hold_inconsistent(struct stage *s)
{
    leave_inconsistent(s);
    lock_inconsistent(s);
}
static void consistent(struct stage *s)
{
    must_work(shmalloc_mutex_consistent(s->heap, &s->world->mutex));
}

/* ---- conditions, with a mutex of their own ---- */

static void lock_for_cond(struct stage *s)
{
    must_work(shmalloc_mutex_lock(s->heap, &s->world->cond_mutex));
}
static void cond_wait(struct stage *s)
{
    must_code(shmalloc_cond_timedwait(s->heap, &s->world->cond, &s->world->cond_mutex, 1),
              -ETIMEDOUT);
}
static void waited(struct stage *s)
{
    lock_for_cond(s);
    cond_wait(s);
}
static void cond_signal(struct stage *s)
{
    must_work(shmalloc_cond_signal(s->heap, &s->world->cond));
}
static void cond_broadcast(struct stage *s)
{
    must_work(shmalloc_cond_broadcast(s->heap, &s->world->cond));
}

/* ---- threads and processes ---- */

static void *first_call(void *arg)
{
    smi_stepper_mark(&control->phase, SMI_BEGUN);
    keep_block(arg, SMALL);
    return NULL;
}
static void *last_call(void *arg)
{
    keep_many(arg, 20, SMALL);
    drop_many(arg, 10);
    keep_block(arg, LARGE);
    drop_block(arg); /* which the thread keeps */
    smi_stepper_mark(&control->phase, SMI_BEGUN);
    return NULL;
}
static void in_thread(struct stage *s, void *(*fn)(void *))
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, fn, s) == 0, "no thread");
    pthread_join(thread, NULL);
}
static void thread_begin(struct stage *s)
{
    in_thread(s, first_call);
}
static void thread_that_retired_ends(struct stage *s)
{
    in_thread(s, last_call_retires);
}
static void thread_end(struct stage *s)
{
    in_thread(s, last_call);
}
static void used_and_closed(struct stage *s)
{
    four_small(s);
    keep_many(s, 10, 300);
    drop_many(s, 5);
    must_work(shmalloc_close(s->heap));
}
static void attach(struct stage *s)
{
    s->heap = heap_open(s->path);
}
static void used(struct stage *s)
{
    link_block(s, 0, SMALL);
    keep_many(s, 10, 300);
    drop_many(s, 5);
}
/* Free storage that is due when the last one closes. */
static void used_and_due(struct stage *s)
{
    must_work(shmalloc_set_give_back(s->heap, SHMALLOC_NEVER, 0));
    much_to_trim(s);
    must_work(shmalloc_set_give_back(s->heap, 0, 0));
}
static void detach(struct stage *s)
{
    must_work(shmalloc_close(s->heap));
}
static void create(struct stage *s)
{
    create_heap(s, 0);
}
static void open_stale(struct stage *s)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_ACCEPT_UNCLEAN;
    must_work(shmalloc_open(s->path, &options, &s->heap));
}

/* A process that died between the stores of a linked step: the record is armed, the word is stored,
 * no count. */
static int die_linking(void *arg)
{
    struct stage *s = arg;
    shmalloc_heap *heap = s->heap;
    keep_many(s, 10, SMALL);
    link_block(s, 20, 600);
    drop_many(s, 5);
    struct smi_thread *t = smi_current;
    struct smf_link *link = &t->slot->link;
    uint64_t *array = smi_stack_of(t, smi_class_of(SMALL))->array;
    smi_stacks_close(t, smi_class_of(SMALL));
    link->dest = shmalloc_ref_of(heap, &s->world->word[21]);
    link->fresh = array[array[0]];
    link->fresh_array = shmalloc_ref_of(heap, array);
    link->fresh_count = array[0];
    link->old = 0;
    struct smi_slot slot;
    must_work(smi_slot_find(heap, link->fresh, &slot));
    uint64_t *bits = smi_slot_user_bits(heap, &slot);
    if (bits)
        *bits |= 1ull << (slot.index % 64);
    link->op = SMF_LINK_TAKE;
    s->world->word[21] = link->fresh;
    raise(SIGKILL);
    return 0;
}
static void somebody_died(struct stage *s)
{
    s->world->word[0] = s->world->word[1] = 0;
    must(run_child(die_linking, s) == -SIGKILL, "the victim did not die");
}
static void adopt(struct stage *s)
{
    must_work(smi_adopt(s->heap, SMI_ADOPT_ALL));
}

static int die_in_use(void *arg)
{
    struct stage *s = arg;
    create_heap(s, 0);
    keep_block(s, SMALL);
    raise(SIGKILL);
    return 0;
}
static void torn(struct stage *s) /* another boot id, and one count that a page of older bytes would
                                     leave */
{
    struct smf_header header;
    struct smf_runtime runtime;
    uint64_t free_pages;
    must(run_child(die_in_use, s) == -SIGKILL, "the victim did not die");
    int fd = open(s->path, O_RDWR | O_CLOEXEC);
    must(fd >= 0 && pread(fd, &header, sizeof(header), 0) == sizeof(header),
         "cannot read the heap");
    off_t at = (off_t)(header.areas.page_heap + offsetof(struct smf_page_heap, free_pages));
    must(pread(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime) &&
             pread(fd, &free_pages, sizeof(free_pages), at) == sizeof(free_pages),
         "cannot read the heap");
    runtime.boot_id[0] ^= 1;
    free_pages++;
    must(pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime) &&
             pwrite(fd, &free_pages, sizeof(free_pages), at) == sizeof(free_pages),
         "cannot damage the heap");
    close(fd);
}
static void recover(struct stage *s)
{
    must_code(shmalloc_recover(s->path), SHMALLOC_ECORRUPT);
}

/* ---- transactions ---- */

static void tx_once(struct stage *s) /* the thread has a log then */
{
    must_work(shmalloc_tx_begin(s->heap));
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_no_log(struct stage *s)
{
    four_small(s);
}
static void tx_written(struct stage *s)
{
    tx_no_log(s);
    tx_once(s);
}
static void tx_swap(struct stage *s)
{
    uint64_t *word = s->world->word, first = word[0];
    must_work(shmalloc_tx_add(s->heap, &word[0], sizeof(word[0])));
    must_work(shmalloc_tx_add(s->heap, &word[1], sizeof(word[1])));
    __atomic_store_n(&word[0], word[1], __ATOMIC_RELAXED);
    __atomic_store_n(&word[1], first, __ATOMIC_RELAXED);
}
static void tx_add(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    tx_swap(s);
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_alloc(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    must_work(shmalloc_tx_alloc(s->heap, SMALL, &s->world->word[8]));
    must_work(shmalloc_tx_alloc(s->heap, LARGE, &s->world->word[9]));
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_free(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    must_work(shmalloc_tx_free(s->heap, &s->world->word[3]));
    must_work(shmalloc_tx_free(s->heap, &s->world->word[2]));
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_store(struct stage *s) /* visible one after the other, so one word */
{
    must_work(shmalloc_tx_begin(s->heap));
    must_work(shmalloc_tx_alloc(s->heap, SMALL, &s->kept_ref));
    must_work(shmalloc_tx_store(s->heap, &s->world->word[8], s->kept_ref));
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_all(struct stage *s)
{
    tx_swap(s);
    must_work(shmalloc_tx_alloc(s->heap, SMALL, &s->world->word[8]));
    must_work(shmalloc_tx_free(s->heap, &s->world->word[3]));
    must_work(shmalloc_tx_add(s->heap, &s->world->word[16], 40 * sizeof(uint64_t)));
}
static void tx_mixed(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    tx_all(s);
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_lock_mixed(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    must_work(shmalloc_tx_lock(s->heap, &s->world->mutex));
    tx_all(s);
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_abort(struct stage *s)
{
    must_work(shmalloc_tx_begin(s->heap));
    tx_all(s);
    must_work(shmalloc_tx_abort(s->heap));
}
static void tx_grow(struct stage *s) /* of the log */
{
    must_work(shmalloc_tx_begin(s->heap));
    tx_swap(s);
    must_work(shmalloc_tx_add(s->heap, shmalloc_ptr(s->heap, s->world->word[5]), 20000));
    must_work(shmalloc_tx_free(s->heap, &s->world->word[3]));
    must_work(shmalloc_tx_commit(s->heap));
}
static void tx_written_medium(struct stage *s)
{
    tx_written(s);
    link_block(s, 5, 20000);
    write_block(s, 5, 20000); /* which are added and stay as they are */
}

const struct op ops[] = {
    {"transaction, first", 0, tx_no_log, tx_add},
    {"transaction, add", 0, tx_written, tx_add},
    {"transaction, alloc", 0, tx_written, tx_alloc},
    {"transaction, free", 0, tx_written, tx_free},
    {"transaction, store", 0, tx_written, tx_store},
    {"transaction, mixed", 0, tx_written, tx_mixed},
    {"transaction, mixed, hardened", OP_HARDENED, tx_written, tx_mixed},
    {"transaction, mixed, with its mutex", OP_MUTEX, tx_written, tx_lock_mixed},
    {"transaction, abort", 0, tx_written, tx_abort},
    {"transaction, longer log", 0, tx_written_medium, tx_grow},
    {"alloc from the cache", 0, one_small, take_small},
    {"alloc, refill", 0, four_small, take_small},
    {"alloc, new slab", 0, nothing, take_small},
    {"alloc, slab after a full one", 0, full_slab, take_small},
    {"alloc, slab of 8 bytes", 0, nothing, take_8},
    {"alloc, slab of 16 bytes", 0, nothing, take_16},
    {"alloc, slab of 2 KiB", 0, nothing, take_2048},
    {"alloc, zeroed", 0, four_small, zeroed_small},
    {"alloc, large", 0, nothing, take_large},
    {"alloc, large zeroed", 0, dirty_large, zeroed_large},
    {"alloc, large aligned", 0, one_small, take_aligned},
    {"alloc, large from a gap", 0, free_left, take_large},
    {"alloc, growth", 0, nothing, take_huge},
    {"alloc, growth into an old chunk", 0, grown_and_cut, take_huge},
    {"alloc, first tag", 0, one_small, take_tagged},
    {"alloc, second tag", 0, one_tagged, take_tagged},
    {"alloc, large tagged", 0, one_small, take_tagged_large},
    {"dup from the cache", 0, dup_dirty_small, dup_small},
    {"dup, refill", 0, dup_four_small, dup_small},
    {"dup, new slab", 0, dup_no_slab, dup_small},
    {"dup, large", 0, dup_no_large, dup_large},
    {"dup, large that was kept", 0, dup_large_kept, dup_large},
    {"dup, not linked", 0, dup_dirty_small, dup_outside},
    {"malloc from the cache", 0, one_small, malloc_small},
    {"malloc, refill", 0, four_small, malloc_small},
    {"malloc, large", 0, nothing, malloc_large},
    {"malloc, large that was kept", 0, large_kept, malloc_large},
    {"alloc, large that was kept", 0, large_kept, take_large},
    {"alloc, zeroed large that was kept", 0, large_kept, zeroed_large},
    {"free to the cache", 0, one_small, free_first},
    {"free, not linked", 0, one_kept, drop_block},
    {"free, longer stack", 0, stack_full, free_first},
    {"free, longer stack again", 0, stack_full_again, free_first},
    {"free, flush and retire", 0, stack_at_share, free_first},
    {"free, tagged", 0, one_tagged, free_first},
    {"free, large that is kept", 0, two_large, free_middle},
    {"free, large that is kept, not linked", 0, malloc_large, drop_block},
    {"free, large that drives one out", 0, all_kept, free_middle},
    {"free, large", 0, three_large, free_middle},
    {"free, merge left", 0, free_left, free_middle},
    {"free, merge right", 0, free_right, free_middle},
    {"free, merge both", 0, free_both, free_middle},
    {"free, punch at once", 0, at_once, free_middle},
    {"free, cut at once", 0, huge_at_once, free_middle},
    {"realloc, small to small", 0, written_small, to_medium},
    {"realloc, from stack to stack", 0, written_small_cached, to_medium},
    {"realloc, small to large", 0, written_small, to_large},
    {"realloc, small to large that was kept", 0, written_small_large_kept, to_large},
    {"realloc, large to small", 0, shrink_valid, to_small},
    {"realloc, large beside a kept one", 0, written_large_beside_kept, to_larger},
    {"realloc, large in place", 0, written_large, to_larger},
    {"realloc, large shrinks", 0, very_large, to_less_large},
    {"realloc, large moves", 0, written_large_blocked, to_larger},
    {"realloc, large moves and grows", 0, written_large_blocked, to_huge},
    {"pointer realloc, small to small", OP_LOOSE, kept_written, pointer_realloc_medium},
    {"pointer realloc, from stack to stack", OP_LOOSE, kept_written_cached, pointer_realloc_medium},
    {"pointer realloc, small to large", OP_LOOSE, kept_written, pointer_realloc_large},
    {"retire, first", 0, one_small, retire_first},
    {"retire", 0, one_retired, retire_first},
    {"retire, bag closed", 0, bag_full, retire_first},
    {"retire, bag emptied", 0, bags_full, retire_first},
    {"retire, bag emptied of all kinds", 0, bags_full_of_all_kinds, retire_first},
    {"retire, large", 0, one_retired_and_large, retire_middle},
    {"retire, large tagged", 0, one_retired_and_tagged_large, retire_middle},
    {"retire, trim", 0, bags_full_of_all_kinds, trim},
    {"retire, put", 0, one_retired, put_small},
    {"retire, put new", 0, retired_and_nothing, put_small},
    {"retire, put bag emptied", 0, bags_full, put_small},
    {"retire, put large", 0, one_retired, put_large},
    {"retire, put large for large", 0, retired_and_large, put_large},
    {"retire, read section", 0, one_retired, section},
    {"retire, thread's end", OP_OWN_MARK, four_small, thread_that_retired_ends},
    {"retire, adopt full bags", OP_ORPHANS, somebody_died_with_full_bags, adopt},
    {"trim", 0, much_to_trim, trim},
    {"trim, long stack", 0, deep_to_trim, trim},
    {"set_max_size", 0, nothing, raise_maximum},
    {"set_layout", 0, has_layout, change_layout},
    {"root set, new", 0, one_small, root_set},
    {"root set, replace", 0, has_root, root_replace},
    {"root remove", 0, has_root, root_remove},
    {"root get_or_create", 0, nothing, root_create},
    {"root get_or_create, large", 0, nothing, root_create_large},
    {"root get_or_create, refused", 0, nothing, root_refused},
    {"mutex lock, first", OP_MUTEX, nothing, lock},
    {"mutex lock", OP_MUTEX, lock_unlock, lock},
    {"mutex unlock", OP_MUTEX, lock, unlock},
    {"mutex lock, left inconsistent", OP_MUTEX, leave_inconsistent, lock_inconsistent},
    {"mutex consistent", OP_MUTEX, hold_inconsistent, consistent},
    {"mutex unlock, left inconsistent", OP_MUTEX, hold_inconsistent, unlock},
    {"cond wait", 0, lock_for_cond, cond_wait},
    {"cond signal, somebody may wait", 0, waited, cond_signal},
    {"cond broadcast, somebody may wait", 0, waited, cond_broadcast},
    {"thread's first call", OP_OWN_MARK, four_small, thread_begin},
    {"thread's end", OP_OWN_MARK, four_small, thread_end},
    {"create", OP_NO_FILE, nothing, create},
    {"open", OP_AWAY, used_and_closed, attach},
    {"close", OP_AWAY, used, detach},
    {"close, gives back", OP_AWAY, used_and_due, detach},
    {"recover, torn by a reboot", OP_NO_FILE | OP_TORN, torn, recover},
    {"adopt", OP_ORPHANS, somebody_died, adopt},
    {"hardened: alloc, new slab", OP_HARDENED, nothing, take_small},
    {"hardened: alloc from the cache", OP_HARDENED, one_small, take_small},
    {"hardened: alloc, refill", OP_HARDENED, four_small, take_small},
    {"hardened: malloc", OP_HARDENED, one_small, malloc_small},
    {"hardened: dup", OP_HARDENED, dup_dirty_small, dup_small},
    {"hardened: free", OP_HARDENED, four_small, free_fourth},
    {"hardened: free, not linked", OP_HARDENED, one_kept, drop_block},
    {"hardened: free, flush and retire", OP_HARDENED, stack_at_share, free_first},
    {"hardened: realloc, small to small", OP_HARDENED, written_small, to_medium},
    {"hardened: retire", OP_HARDENED, one_retired, retire_first},
    {"hardened: retire, bag emptied", OP_HARDENED, bags_full, retire_first},
    {"hardened: retire, put", OP_HARDENED, one_retired, put_small},
    {"hardened: retire, put large", OP_HARDENED, one_retired, put_large},
    {"hardened: retire, adopt full bags", OP_HARDENED | OP_ORPHANS, somebody_died_with_full_bags,
     adopt},
    {"hardened: alloc, tagged", OP_HARDENED, one_small, take_tagged},
    {"hardened: trim", OP_HARDENED, deep_to_trim, trim},
    {"hardened: adopt", OP_HARDENED | OP_ORPHANS, somebody_died, adopt},
};
const unsigned op_count = sizeof(ops) / sizeof(ops[0]);

const struct op early_dup = {"dup, linked before it is filled", 0, dup_dirty_small,
                             link_before_filling};

const struct op reopening = {"recovery", OP_STALE | OP_REPAIR, nothing, open_stale};

/* ---- the stepped process ---- */

static void make_world(struct stage *s, const struct op *op)
{
    shmalloc_ref ref;
    create_heap(s, op->traits & OP_HARDENED ? SHMALLOC_HARDENED : 0);
    must_code(
        shmalloc_root_get_or_create(s->heap, "world", 0, sizeof(struct world), NULL, NULL, &ref),
        SHMALLOC_CREATED);
    s->world = shmalloc_ptr(s->heap, ref);
}

_Noreturn void run_op(const struct op *op, const char *path)
{
    static struct stage stage;
    stage.path = path;
    if (!(op->traits & (OP_NO_FILE | OP_STALE)))
        make_world(&stage, op);
    if (control->survivors > 0 && !(op->traits & OP_STALE)) {
        signal_word(&control->settled);
        await_word(&control->settled, 1 + control->survivors);
    }
    op->prepare(&stage);
    if (control->survivors > 0 && op_holds_mutex(op))
        lock(&stage);
    if (!(op->traits & OP_OWN_MARK))
        smi_stepper_mark(&control->phase, SMI_BEGUN);
    op->run(&stage);
    smi_stepper_mark(&control->phase, SMI_ENDED);
    _exit(0);
}
