/* SPDX-License-Identifier: MIT */
/*
 * Large blocks that a thread freed and keeps.
 *
 * Would fail if two threads could free one block, if what others keep were lost to who finds no
 * room, if an entry counted without the mark of its block, or if a thread that only takes kept
 * blocks never saw that the heap is poisoned.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "handle/handle.h"
#include "slots/context.h"
#include "handle/lock.h"
#include "support.h"

#define LARGE (100u << 10) /* bytes of a block that a thread keeps */
#define MOST (1u << 20)    /* of the largest */

static struct fixture f;
static struct usage before;

static void begin(void)
{
    fixture_begin_heap(&f, 0);
    before = usage_now(f.heap);
}

static void end(void)
{
    fixture_end(&f);
}

TestSuite(kept, .init = begin, .fini = end, .timeout = 60);

static void *take(size_t size)
{
    void *block = shmalloc_malloc(f.heap, size);
    must(block, "%s", shmalloc_errmsg());
    return block;
}

static uint64_t cached(void)
{
    return heap_stats(f.heap).cached;
}

static struct smf_page *page_of(const void *block)
{
    return smi_page(f.heap, shmalloc_ref_of(f.heap, block) >> SMF_PAGE_SHIFT);
}

/* ---- who has a block ---- */

Test(kept, a_block_comes_back_to_its_thread)
{
    void *block = take(LARGE);
    uint64_t takes = f.heap->page_heap->takes;
    for (int i = 0; i < 100; i++) {
        must_work(shmalloc_free(f.heap, block));
        cr_assert_eq(take(LARGE), block);
    }
    cr_assert_eq(f.heap->page_heap->takes, takes, "the page heap had no part in it");
    must_work(shmalloc_free(f.heap, block));
    cr_assert_eq(cached(), page_of(block)->page_count * SMF_PAGE);
    cr_assert_eq(heap_stats(f.heap).allocated, 0, "it does not count as allocated");
    must_be_as_before(f.heap, &before);
}

struct racer {
    void *block;
    pthread_barrier_t *barrier;
    int rc;
};

static void *free_at_once(void *arg)
{
    struct racer *racer = arg;
    void *warm = take(LARGE); /* this thread has a context, and takes the short way */
    must_work(shmalloc_free(f.heap, warm));
    pthread_barrier_wait(racer->barrier);
    racer->rc = shmalloc_free(f.heap, racer->block);
    return NULL;
}

Test(kept, of_two_who_free_a_block_at_once_one_is_told)
{
    for (int i = 0; i < 300; i++) {
        pthread_t thread[2];
        pthread_barrier_t barrier;
        void *block = take(LARGE + SMF_PAGE * (size_t)(i % 8));
        struct racer racers[2] = {{block, &barrier, 1}, {block, &barrier, 1}};
        pthread_barrier_init(&barrier, NULL, 2);
        for (int k = 0; k < 2; k++)
            must(pthread_create(&thread[k], NULL, free_at_once, &racers[k]) == 0, "pthread_create");
        for (int k = 0; k < 2; k++)
            pthread_join(thread[k], NULL);
        pthread_barrier_destroy(&barrier);
        int done = (racers[0].rc == 0) + (racers[1].rc == 0), told = racers[0].rc + racers[1].rc;
        cr_assert_eq(done, 1, "%d and %d", racers[0].rc, racers[1].rc);
        /* kept still, or its thread's end has given it back */
        cr_assert(told == SHMALLOC_EDOUBLEFREE || told == SHMALLOC_EBADREF, "%d", told);
    }
    must_be_as_before(f.heap, &before);
}

static int free_kept_of_parent(void *arg)
{
    const shmalloc_ref *ref = arg;
    shmalloc_heap *heap = fixture_join(&f);
    must_code(shmalloc_free(heap, shmalloc_ptr(heap, *ref)), SHMALLOC_EDOUBLEFREE);
    must(shmalloc_usable_size(heap, shmalloc_ptr(heap, *ref)) == 0, "a kept block is no block");
    return 0;
}

Test(kept, another_process_is_told_that_a_block_is_free)
{
    void *block = take(LARGE);
    shmalloc_ref ref = shmalloc_ref_of(f.heap, block);
    must_work(shmalloc_free(f.heap, block));
    cr_assert_eq(run_child(free_kept_of_parent, &ref), 0);
    must_be_as_before(f.heap, &before);
}

Test(kept, a_kept_block_cannot_be_resized)
{
    static const size_t sizes[] = {2 * LARGE, LARGE, LARGE / 2, 100};
    void *block = take(LARGE);
    shmalloc_ref ref = shmalloc_ref_of(f.heap, block), was = ref;
    must_work(shmalloc_free(f.heap, block));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        must_code(shmalloc_ref_realloc(f.heap, &ref, sizes[i]), SHMALLOC_EDOUBLEFREE);
        cr_assert(strstr(shmalloc_errmsg(), "is free already"), "%s", shmalloc_errmsg());
        cr_assert_eq(ref, was);
        cr_assert_null(shmalloc_realloc(f.heap, block, sizes[i]));
        cr_assert(strstr(shmalloc_errmsg(), "is free already"), "%s", shmalloc_errmsg());
    }
    cr_assert_gt(cached(), 0, "it is kept still");
    must_be_as_before(f.heap, &before);
}

/* ---- which blocks ---- */

Test(kept, too_large_ones_and_tagged_ones_go_back)
{
    shmalloc_ref ref;
    void *large = take(MOST + 1);
    must_work(shmalloc_ref_alloc_tagged(f.heap, LARGE, 3, &ref));
    must_work(shmalloc_free(f.heap, large));
    must_work(shmalloc_ref_free(f.heap, &ref));
    cr_assert_eq(cached(), 0);
}

Test(kept, a_thread_keeps_eight_mebibytes_at_most)
{
    void *blocks[40];
    for (int i = 0; i < 40; i++)
        blocks[i] = take(MOST - 4096 * (size_t)i);
    for (int i = 0; i < 40; i++) {
        must_work(shmalloc_free(f.heap, blocks[i]));
        cr_assert_leq(cached(), 8u << 20);
    }
    cr_assert_gt(cached(), 6u << 20);
    must_be_as_before(f.heap, &before);
}

static void keeps_nothing(unsigned flags, uint64_t decay_ms)
{
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_destroy(f.path));
    f.heap = heap_create(f.path, flags);
    must_work(shmalloc_set_give_back(f.heap, decay_ms, 0));
    void *block = take(LARGE);
    must_work(shmalloc_free(f.heap, block));
    cr_assert_eq(page_of(block)->kind, SMF_PAGE_FREE);
}

Test(kept, hardened_heaps_keep_none)
{
    keeps_nothing(SHMALLOC_HARDENED, 1000);
}

Test(kept, heaps_that_give_back_at_once_keep_none)
{
    keeps_nothing(0, 0);
}

Test(kept, zeroed_blocks_are_zero)
{
    void *block = take(LARGE);
    memset(block, 0xaa, LARGE);
    must_work(shmalloc_free(f.heap, block));
    void *again = shmalloc_calloc(f.heap, 1, LARGE);
    cr_assert_eq(again, block, "the test wants the same block");
    cr_assert(all_zero(again, LARGE));
    must_work(shmalloc_free(f.heap, again));
}

/* ---- room ---- */

struct holder {
    uint32_t *step;
    unsigned count;
};

static int hold_in_child(void *arg)
{
    struct holder *holder = arg;
    void *blocks[SMF_SPANS];
    f.heap = fixture_join(&f);
    for (unsigned i = 0; i < holder->count; i++)
        blocks[i] = take(MOST);
    for (unsigned i = 0; i < holder->count; i++)
        must_work(shmalloc_free(f.heap, blocks[i]));
    signal_word(&holder->step[0]);
    await_word(&holder->step[1], 1);
    for (unsigned i = 0; i < holder->count; i++) /* what was taken away is found to be gone */
        must_work(shmalloc_free(f.heap, take(MOST)));
    return 0;
}

Test(kept, what_others_keep_is_had_by_who_finds_no_room)
{
    struct holder holder = {shared_memory(2 * sizeof(uint32_t)), 2};
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 64 << 20;
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_destroy(f.path));
    must_work(shmalloc_open(f.path, &options, &f.heap));
    pid_t pid = start_child(hold_in_child, &holder);
    await_word(&holder.step[0], 1);
    cr_assert_eq(cached(), 2 * MOST, "the child keeps them");
    static void *blocks[64];
    int count = 0;
    while (count < 64 && (blocks[count] = shmalloc_malloc(f.heap, MOST)) != NULL)
        count++;
    uint64_t left = heap_stats(f.heap).largest_free_run;
    cr_assert_lt(left, MOST);
    cr_assert_eq(cached(), 0, "all of it was had");
    while (count > 0)
        must_work(shmalloc_free(f.heap, blocks[--count]));
    signal_word(&holder.step[1]);
    cr_assert_eq(wait_child(pid), 0);
    must_be_sound(f.heap);
}

/* The file cannot grow, and what there was is kept by a process that sleeps. */
static int find_room_below_a_limit(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    struct rlimit limit = {heap->state->size, heap->state->size};
    must(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
    unsigned *count = arg;
    while (shmalloc_malloc(heap, MOST))
        ++*count;
    return 0;
}

Test(kept, what_others_keep_is_had_below_a_limit_on_file_size)
{
    unsigned *count = shared_memory(sizeof(*count));
    void *blocks[4];
    for (int i = 0; i < 4; i++)
        blocks[i] = take(MOST);
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_free(f.heap, blocks[i]));
    cr_assert_eq(run_child(find_room_below_a_limit, count), 0);
    cr_assert_eq(cached(), 0, "all of it was had");
    cr_assert_geq(*count, 4);
}

Test(kept, a_block_grows_over_a_kept_neighbour)
{
    void *block = take(LARGE), *behind = take(LARGE), *guard = take(LARGE);
    cr_assert_eq((uint8_t *)behind - (uint8_t *)block, page_of(block)->page_count * SMF_PAGE);
    must_work(shmalloc_free(f.heap, behind));
    cr_assert_eq(shmalloc_realloc(f.heap, block, LARGE + 50000), block);
    cr_assert_neq(take(LARGE), behind, "the kept block is gone");
    (void)guard;
    must_be_sound(f.heap);
}

Test(kept, trim_empties_them)
{
    void *block = take(LARGE);
    must_work(shmalloc_free(f.heap, block));
    cr_assert_gt(cached(), 0);
    cr_assert_geq(shmalloc_trim(f.heap), LARGE);
    cr_assert_eq(cached(), 0);
    cr_assert_eq(page_of(block) ? page_of(block)->kind : SMF_PAGE_FREE, SMF_PAGE_FREE);
}

Test(kept, they_go_back_when_nobody_wants_them)
{
    must_work(shmalloc_set_give_back(f.heap, 1, 0));
    void *block = take(LARGE);
    must_work(shmalloc_free(f.heap, block));
    for (int i = 0; i < 1000 && cached() > 0; i++) { /* long ways, each of which looks around */
        usleep(2000);
        must_work(shmalloc_free(f.heap, take(4 * MOST)));
    }
    cr_assert_eq(cached(), 0);
}

/* ---- ends ---- */

/* Entries that no mark names, twice and beyond the heap: they count for nothing. */
static void *plant_entries(void *arg)
{
    void **blocks = arg;
    for (int i = 0; i < 3; i++)
        must_work(shmalloc_free(f.heap, blocks[i]));
    uint64_t *spans = smi_current->slot->spans, kept = shmalloc_ref_of(f.heap, blocks[0]);
    must(spans[0] - kept < SMF_PAGE, "the first entry has the first block");
    spans[8] = spans[0];
    /* the program's */
    spans[9] = shmalloc_ref_of(f.heap, blocks[3]) | page_of(blocks[3])->page_count;
    spans[10] = f.heap->state->size | 5;
    spans[11] = 7;
    return NULL;
}

Test(kept, a_thread_that_ends_gives_back_what_it_keeps_and_nothing_else)
{
    void *blocks[4];
    pthread_t thread;
    for (int i = 0; i < 4; i++)
        blocks[i] = take(LARGE);
    must(pthread_create(&thread, NULL, plant_entries, blocks) == 0, "pthread_create");
    pthread_join(thread, NULL);
    cr_assert_eq(cached(), 0);
    cr_assert_eq(heap_stats(f.heap).allocated_blocks, 1);
    must_be_sound(f.heap);
    must_work(shmalloc_free(f.heap, blocks[3]));
    must_be_as_before(f.heap, &before);
}

static int keep_and_die(void *arg)
{
    (void)arg;
    f.heap = fixture_join(&f);
    void *one = take(LARGE), *two = take(MOST);
    must_work(shmalloc_free(f.heap, one));
    must_work(shmalloc_free(f.heap, two));
    kill(getpid(), SIGKILL);
    return 0;
}

Test(kept, of_a_process_that_is_killed_they_come_back)
{
    cr_assert_eq(run_child(keep_and_die, NULL), -SIGKILL);
    must_be_as_before(f.heap, &before);
}

/* The block that *arg names is claimed, as its mark was; the claimer dies before anything else. */
static int claim_and_die(void *arg)
{
    uint64_t page = *(const shmalloc_ref *)arg >> SMF_PAGE_SHIFT;
    shmalloc_heap *heap = fixture_join(&f);
    struct smf_page *d = smi_page(heap, page);
    must_work(smi_lock_acquire(heap, smi_lock_of_pages(heap)));
    heap->state->claimed_mark = d->side;
    heap->state->claimed = page;
    d->side = SMF_MARK_CLAIMED;
    kill(getpid(), SIGKILL);
    return 0;
}

Test(kept, a_block_stays_kept_when_who_claimed_it_dies)
{
    void *block = take(LARGE);
    shmalloc_ref ref = shmalloc_ref_of(f.heap, block);
    must_work(shmalloc_free(f.heap, block));
    cr_assert_eq(run_child(claim_and_die, &ref), -SIGKILL);
    void *other = take(LARGE); /* it cannot be had; and then the page heap is repaired */
    cr_assert_neq(other, block);
    must_work(shmalloc_check(f.heap));
    cr_assert_eq(take(LARGE), block, "it is kept again");
    must_work(shmalloc_free(f.heap, block));
    must_work(shmalloc_free(f.heap, other));
    must_be_as_before(f.heap, &before);
}

Test(kept, a_block_can_be_freed_when_who_resized_it_dies)
{
    void *block = take(LARGE);
    shmalloc_ref ref = shmalloc_ref_of(f.heap, block);
    cr_assert_eq(run_child(claim_and_die, &ref), -SIGKILL);
    must_work(shmalloc_free(f.heap, block));
    must_be_as_before(f.heap, &before);
}

Test(kept, a_block_can_be_resized_when_who_resized_it_dies)
{
    void *block = take(LARGE);
    shmalloc_ref ref = shmalloc_ref_of(f.heap, block);
    cr_assert_eq(run_child(claim_and_die, &ref), -SIGKILL);
    cr_assert_geq(shmalloc_usable_size(f.heap, block), LARGE);
    must_work(shmalloc_ref_realloc(f.heap, &ref, 2 * LARGE));
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_be_as_before(f.heap, &before);
}

static int free_and_fail(shmalloc_heap *heap, void *block, void *arg)
{
    must_work(shmalloc_free(heap, block));
    if (arg)
        kill(getpid(), SIGKILL);
    return -ECANCELED;
}

static int free_and_die(void *arg)
{
    shmalloc_ref ref;
    shmalloc_heap *heap = fixture_join(&f);
    may_fail(shmalloc_root_get_or_create(heap, "root", 0, LARGE, free_and_fail, arg, &ref));
    return 0;
}

Test(kept, an_init_that_frees_its_block_costs_nobody_anything)
{
    shmalloc_ref ref;
    must_code(shmalloc_root_get_or_create(f.heap, "root", 0, LARGE, free_and_fail, NULL, &ref),
              -ECANCELED);
    void *block = take(LARGE); /* the same, which is somebody's now */
    must_code(shmalloc_root_get_or_create(f.heap, "root", 0, 8, NULL, NULL, &ref),
              SHMALLOC_CREATED);
    must_work(shmalloc_root_remove(f.heap, "root"));
    must_work(shmalloc_ref_free(f.heap, &ref));
    cr_assert_eq(run_child(free_and_die, &f), -SIGKILL);
    ref = shmalloc_ref_of(f.heap, block);
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_open(f.path, NULL, &f.heap)); /* the slots of the dead and of this thread
                                                        came back */
    block = shmalloc_ptr(f.heap, ref);
    cr_assert_geq(shmalloc_usable_size(f.heap, block), LARGE);
    must_work(shmalloc_free(f.heap, block));
    must_be_as_before(f.heap, &before);
}

/* ---- looking around ---- */

Test(kept, who_only_takes_kept_blocks_sees_that_the_heap_is_poisoned)
{
    void *block = take(LARGE);
    must_work(shmalloc_free(f.heap, block));
    f.heap->state->poison = (uint64_t)-SHMALLOC_ECORRUPT;
    int i = 0;
    while (i < 1000 && (block = shmalloc_malloc(f.heap, LARGE)) != NULL) {
        i++;
        if (shmalloc_free(f.heap, block) < 0)
            break;
    }
    cr_assert_lt(i, 1000);
    f.heap->state->poison = 0;
}
