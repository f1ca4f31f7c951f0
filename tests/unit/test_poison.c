/* SPDX-License-Identifier: MIT */
/*
 * test_poison.c - a heap that finds itself damaged stops all mutation and goes on answering
 * readers.
 *
 * The damage is done here to words whose places layout.h gives: what a program's stray store could
 * do.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "handle/handle.h"
#include "slots/context.h"
#include "support.h"

static struct fixture f;

static void begin(void)
{
    fixture_begin_heap(&f, 0);
}

static void end(void)
{
    fixture_end(&f);
}

TestSuite(poison, .init = begin, .fini = end, .timeout = 30);

/* Store to a word of the file behind the library's back. */
static void scribble(uint64_t offset, uint64_t value)
{
    int fd = open(f.path, O_RDWR);
    must(fd >= 0 && pwrite(fd, &value, 8, (off_t)offset) == 8, "scribble at %llu",
         (unsigned long long)offset);
    close(fd);
}

static struct smf_areas areas_of_default(void)
{
    struct smf_areas areas;
    uint32_t locks;
    smi_areas(4, &areas, &locks);
    return areas;
}

/* Every set of free spans leads to a page that is not free. */
static void damage_free_sets(void)
{
    uint64_t sets = areas_of_default().page_heap + offsetof(struct smf_page_heap, set);
    for (uint64_t i = 0; i <= SMF_EXACT_SETS; i++)
        scribble(sets + i * 8, 3);
    uint64_t bits = areas_of_default().page_heap + offsetof(struct smf_page_heap, set_bits);
    for (uint64_t i = 0; i < 4; i++)
        scribble(bits + i * 8, i < 3 ? UINT64_MAX : UINT64_MAX >> 1);
}

Test(poison, damage_is_found_named_and_stops_mutation_everywhere)
{
    shmalloc_ref kept = 0, ref = 7, got = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100, &kept));
    must_work(shmalloc_root_set(f.heap, "kept", 0, kept));
    pattern_fill(shmalloc_ptr(f.heap, kept), 0, 100, 1);
    damage_free_sets();
    must_code(shmalloc_ref_alloc(f.heap, 1 << 20, &ref), SHMALLOC_ECORRUPT);
    cr_assert_str_not_empty(shmalloc_errmsg());
    cr_assert_eq(ref, 7);
    must_code(shmalloc_ref_alloc(f.heap, 1 << 20, &ref), SHMALLOC_EPOISONED);
    must_code(shmalloc_ref_alloc_aligned(f.heap, 4096, 100000, &ref), SHMALLOC_EPOISONED);
    must_code(shmalloc_root_set(f.heap, "new", 0, 8), SHMALLOC_EPOISONED);
    must_code(shmalloc_root_remove(f.heap, "kept"), SHMALLOC_EPOISONED);
    cr_assert_eq(shmalloc_trim(f.heap), SHMALLOC_EPOISONED);
    cr_assert_null(shmalloc_malloc(f.heap, 1 << 20));
    /* Reading stays allowed. */
    must_work(shmalloc_root_get(f.heap, "kept", 0, &got));
    cr_assert_eq(got, kept);
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, kept), 100, 1), 100);
    must_code(shmalloc_check(f.heap), SHMALLOC_ECORRUPT);
}

static int finds_poison(void *arg)
{
    (void)arg;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    int rc = shmalloc_open(f.path, NULL, &heap);
    if (rc < 0)
        return rc != SHMALLOC_EPOISONED && rc != SHMALLOC_ECORRUPT;
    must_code(shmalloc_ref_alloc(heap, 1 << 20, &ref), SHMALLOC_EPOISONED);
    return 0;
}

Test(poison, other_processes_see_it)
{
    shmalloc_ref ref;
    damage_free_sets();
    must_code(shmalloc_ref_alloc(f.heap, 1 << 20, &ref), SHMALLOC_ECORRUPT);
    cr_assert_eq(run_child(finds_poison, NULL), 0);
}

/* Counts and refs of every word of the central heap and page heap, set to nonsense one at a time:
 * calls may fail or work, but nothing crashes and nothing hangs. */
static int survive_nonsense(void *arg)
{
    uint64_t offset = *(uint64_t *)arg;
    static const uint64_t nonsense[] = {1, 3, 0xffffffffull, 1ull << 45, UINT64_MAX};
    for (unsigned i = 0; i < sizeof(nonsense) / sizeof(nonsense[0]); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s", fixture_path(&f, "damaged"));
        unlink(path);
        shmalloc_heap *heap = heap_create(path, 0);
        shmalloc_ref refs[40] = {0};
        for (int k = 0; k < 20; k++)
            must_work(shmalloc_ref_alloc(heap, (size_t)k * 500 + 1, &refs[k]));
        memcpy(shmalloc_ptr(heap, offset), &nonsense[i], 8);
        for (int k = 0; k < 20; k++)
            shmalloc_ref_free(heap, &refs[k]);
        for (int k = 0; k < 40; k++)
            may_fail(shmalloc_ref_alloc(heap, (size_t)k * 2500 + 1, &refs[k]));
        shmalloc_trim(heap);
        may_fail(shmalloc_check(heap));
        shmalloc_stats stats = SHMALLOC_STATS_INIT;
        may_fail(shmalloc_get_stats(heap, &stats));
        shmalloc_close(heap);
    }
    return 0;
}

Test(poison, nonsense_in_any_word_of_the_page_heap_never_crashes)
{
    struct smf_areas areas = areas_of_default();
    uint64_t *offset = shared_memory(8);
    uint64_t step = 8 * 13; /* every 13th word: thirteen runs of the suite with other steps see
                               all */
    for (*offset = areas.page_heap; *offset < areas.page_heap + sizeof(struct smf_page_heap);
         *offset += step)
        cr_assert_eq(wait_child_within(start_child(survive_nonsense, offset), 20000), 0,
                     "page heap word at %llu", (unsigned long long)*offset);
}

Test(poison, nonsense_in_words_of_the_central_heap_never_crashes)
{
    struct smf_areas areas = areas_of_default();
    uint64_t *offset = shared_memory(8);
    uint64_t k20 = areas.central + 20 * sizeof(struct smf_central);
    static const size_t fields[] = {
        offsetof(struct smf_central, log_count),  offsetof(struct smf_central, set),
        offsetof(struct smf_central, pending),    offsetof(struct smf_central, slab_count),
        offsetof(struct smf_central, free_slots),
    };
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        *offset = k20 + fields[i];
        cr_assert_eq(wait_child_within(start_child(survive_nonsense, offset), 20000), 0, "field %u",
                     i);
    }
}

/* ---- what the fast paths rely on ---- */

/* Use of every kind that must not crash, whatever it finds. */
static void use_and_ignore(void)
{
    void *blocks[200];
    for (int i = 0; i < 200; i++)
        blocks[i] = shmalloc_malloc(f.heap, 40);
    for (int i = 0; i < 200; i++)
        if (blocks[i])
            shmalloc_free(f.heap, blocks[i]);
    shmalloc_trim(f.heap);
}

Test(poison, any_value_of_the_count_of_reshaped_slabs)
{
    static const uint64_t values[] = {
        0,          1,          SMF_RESHAPED,     SMF_RESHAPED - 1,    SMF_RESHAPED + 77,
        UINT64_MAX, 1ull << 63, UINT64_MAX << 20, 0x123456789abcdefull};
    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        use_and_ignore();
        f.heap->state->reshaped = values[i];
        use_and_ignore();
        cr_assert(f.heap->state->poison == 0 ||
                  f.heap->state->poison == (uint64_t)-SHMALLOC_ECORRUPT);
        must_work(shmalloc_close(f.heap));
        must_work(shmalloc_destroy(f.path));
        f.heap = heap_create(f.path, 0);
    }
}

Test(poison, a_fallen_count_of_reshaped_slabs_is_noticed)
{
    void *blocks[2000];
    for (int i = 0; i < 2000; i++)
        blocks[i] = shmalloc_malloc(f.heap, 100);
    for (int i = 0; i < 2000; i++)
        must_work(shmalloc_free(f.heap, blocks[i]));
    shmalloc_trim(f.heap); /* slabs end */
    cr_assert_gt(f.heap->state->reshaped, 0);
    use_and_ignore();
    f.heap->state->reshaped = 0;
    use_and_ignore();
    cr_assert_eq(f.heap->state->poison, (uint64_t)-SHMALLOC_ECORRUPT);
}

/* The open stack of 40 bytes, and its slots. */
static uint64_t *stack(uint64_t *count)
{
    use_and_ignore();
    void *blocks[20];
    for (int i = 0; i < 20; i++)
        blocks[i] = shmalloc_malloc(f.heap, 40);
    for (int i = 0; i < 20; i++)
        must_work(shmalloc_free(f.heap, blocks[i]));
    struct smi_stack *stack = smi_stack_of(smi_current, smi_class_of(40));
    must(stack->array[0] == SMF_OPEN, "the stack is open");
    *count = smi_stack_count(stack->array, (uint32_t)stack->capacity + 1);
    must(*count >= 10, "%llu slots", (unsigned long long)*count);
    return stack->array;
}

Test(poison, a_word_of_a_stack_that_became_0_is_noticed)
{
    uint64_t count, *array = stack(&count);
    array[count - 5] = 0;
    must_code(shmalloc_check(f.heap), SHMALLOC_ECORRUPT);
    int taken = 0;
    while (taken < 100 && shmalloc_malloc(f.heap, 40) != NULL)
        taken++;
    cr_assert_lt(taken, 10);
    cr_assert_eq(f.heap->state->poison, (uint64_t)-SHMALLOC_ECORRUPT);
}

Test(poison, a_word_above_a_stack_is_no_slot)
{
    uint64_t count, *array = stack(&count), lowest = array[1];
    array[count + 3] = lowest;
    must_code(shmalloc_check(f.heap), SHMALLOC_ECORRUPT); /* once more than once */
    void *blocks[100];
    for (int i = 0; i < 100; i++) {
        blocks[i] = shmalloc_malloc(f.heap, 40);
        for (int k = 0; blocks[i] && k < i; k++)
            cr_assert_neq(blocks[i], blocks[k], "handed out twice");
    }
}

Test(poison, any_word_of_a_stack)
{
    for (unsigned i = 0; i < 8; i++) {
        static const uint64_t values[] = {1,          7,          8,          4096,
                                          1ull << 40, UINT64_MAX, 1ull << 63, 0x7fffffffffffull};
        uint64_t count, *array = stack(&count);
        array[count - i % 3] = values[i];
        use_and_ignore();
        f.heap->state->poison = 0;
        shmalloc_close(f.heap);
        must_work(shmalloc_destroy(f.path));
        f.heap = heap_create(f.path, 0);
    }
}
