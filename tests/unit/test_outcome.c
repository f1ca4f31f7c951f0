/* SPDX-License-Identifier: MIT */
/* test_outcome.c - what a step that was cut off comes to: the bounds of what records may name, and
 * each rule. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "format/outcome.h"

#define SIZE (4 * SMF_GRANULE)
#define FILE_SIZE (5 * SMF_GRANULE)
#define CLASS 4u
#define USER(i) (SIZE / 2 + 8 * (i)) /* refs of users' words */

/* Memory that looks like a heap: one thread slot with empty stacks, and zeros. */
struct fixture {
    uint8_t *memory;
    struct smf_areas areas;
    struct smi_sight sight;
    uint64_t thread_ref;
    struct smf_thread *thread;
    struct smi_outcome outcome;
};

static const void *see(void *source, uint64_t ref, uint64_t len)
{
    const struct fixture *f = source;
    cr_assert(ref % 8 == 0 && len <= SIZE && ref <= SIZE - len,
              "the rules look outside the heap: %#llx", (unsigned long long)ref);
    return f->memory + ref;
}

static struct fixture *make(void)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint32_t locks;
    cr_assert(f);
    f->memory = calloc(1, FILE_SIZE);
    cr_assert(f->memory);
    smi_areas(1, &f->areas, &locks);
    f->sight = (struct smi_sight){see, f, &f->areas, SIZE, 0};
    f->thread_ref = (f->areas.end + SMF_GRANULE) & ~(SMF_GRANULE - 1);
    f->thread = (void *)(f->memory + f->thread_ref);
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        f->thread->stacks[k] = f->thread_ref + smi_inline_offset(k);
    return f;
}

static void finish(struct fixture *f)
{
    free(f->memory);
    free(f);
}

static uint64_t *word(struct fixture *f, uint64_t ref)
{
    return (uint64_t *)(void *)(f->memory + ref);
}

/* The ref of word i of the stack of CLASS. */
static uint64_t stack(const struct fixture *f, uint64_t i)
{
    return f->thread_ref + smi_inline_offset(CLASS) + 8 * i;
}

static const char *resolve(struct fixture *f, struct smf_link link)
{
    f->thread->link = link;
    const char *fault =
        smi_outcome_of_link(&f->sight, f->thread_ref, f->thread, &link, &f->outcome);
    for (uint32_t i = 0; !fault && i < f->outcome.count; i++)
        *word(f, f->outcome.change[i].ref) = f->outcome.change[i].value;
    return fault;
}

static struct smf_link give(struct fixture *f, uint64_t dest)
{
    return (struct smf_link){
        .op = SMF_LINK_GIVE, .dest = dest, .old = USER(100), .old_array = stack(f, 0)};
}

Test(outcome, a_link_names_a_word_behind_the_areas_and_inside_the_heap)
{
    struct fixture *f = make();
    cr_expect(!resolve(f, give(f, f->areas.end)));
    cr_expect(!resolve(f, give(f, SIZE - 8)));
    cr_expect(resolve(f, give(f, f->areas.end - 8)) != NULL, "a word of the fixed areas");
    cr_expect(resolve(f, give(f, SMF_PAGE)) != NULL,
              "a word of the fixed areas, behind the first page");
    cr_expect(resolve(f, give(f, SIZE)) != NULL, "a word that only the file has");
    cr_expect(resolve(f, give(f, SIZE - 4)) != NULL, "no word of 8 bytes");
    cr_expect(resolve(f, give(f, UINT64_MAX - 7)) != NULL, "a word far outside");
    cr_expect(resolve(f, give(f, 0)) != NULL, "no word");
    *word(f, stack(f, 0)) = SMF_OPEN;
    cr_expect(resolve(f, (struct smf_link){.op = SMF_LINK_SHORT_GIVE | (f->areas.end - 8),
                                           .dest = stack(f, 1)}) != NULL);
    cr_expect(resolve(f, (struct smf_link){.op = SMF_LINK_SHORT_GIVE | SIZE,
                                           .dest = stack(f, 1)}) != NULL);
    cr_expect(!resolve(
        f, (struct smf_link){.op = SMF_LINK_SHORT_GIVE | (SIZE - 8), .dest = stack(f, 1)}));
    finish(f);
}

Test(outcome, kinds_that_are_none_are_refused)
{
    struct fixture *f = make();
    struct smf_link link = give(f, USER(0));
    for (uint64_t op = 3; op < 20; op++) {
        link.op = op;
        if (op < SMF_LINK_SHORT_TAKE || (op & SMF_LINK_OP) == 7)
            cr_expect(resolve(f, link) != NULL, "operation %llu", (unsigned long long)op);
    }
    finish(f);
}

Test(outcome, a_give_is_always_finished)
{
    struct fixture *f = make();
    uint64_t block = USER(100);
    *word(f, USER(0)) = block; /* killed before the user's word changed */
    cr_expect(!resolve(f, give(f, USER(0))));
    cr_expect(*word(f, USER(0)) == 0 && *word(f, stack(f, 0)) == 1 &&
              *word(f, stack(f, 1)) == block);
    cr_expect(!resolve(f, give(f, USER(0))), "twice is harmless");
    cr_expect(*word(f, USER(0)) == 0 && *word(f, stack(f, 0)) == 1 &&
              *word(f, stack(f, 1)) == block);
    cr_expect(f->outcome.large == 0);
    finish(f);
}

Test(outcome, a_take_is_finished_when_the_user_has_the_block_and_undone_otherwise)
{
    struct fixture *f = make();
    uint64_t fresh = USER(100), old = USER(200);
    struct smf_link link = {.op = SMF_LINK_TAKE,
                            .dest = USER(0),
                            .fresh = fresh,
                            .fresh_array = stack(f, 0),
                            .fresh_count = 2};
    *word(f, stack(f, 0)) = 2;
    *word(f, USER(0)) = old;
    cr_expect(!resolve(f, link));
    cr_expect(*word(f, stack(f, 0)) == 2 && *word(f, USER(0)) == old, "undone");
    *word(f, USER(0)) = fresh;
    link.old = old; /* a large block: no array */
    cr_expect(!resolve(f, link));
    cr_expect(*word(f, stack(f, 0)) == 1 && *word(f, USER(0)) == fresh, "finished");
    cr_expect(f->outcome.large == old, "and the large block goes back");
    *word(f, USER(0)) = old;
    cr_expect(!resolve(f, link));
    cr_expect(f->outcome.large == 0, "but not when it is undone");
    finish(f);
}

Test(outcome, a_take_from_scratch_clears_it_when_done)
{
    struct fixture *f = make();
    struct smf_link link = {.op = SMF_LINK_TAKE, .dest = USER(0), .fresh = USER(100)};
    f->thread->scratch = USER(100);
    cr_expect(!resolve(f, link));
    cr_expect(f->thread->scratch == USER(100));
    *word(f, USER(0)) = USER(100);
    cr_expect(!resolve(f, link));
    cr_expect(f->thread->scratch == 0);
    f->thread->scratch = USER(300); /* somebody's else by now */
    cr_expect(!resolve(f, link));
    cr_expect(f->thread->scratch == USER(300));
    finish(f);
}

Test(outcome, stacks_are_those_of_the_thread_slot_and_counts_fit)
{
    struct fixture *f = make();
    uint64_t most = smi_inline_words(CLASS) - 1;
    struct smf_link link = {
        .op = SMF_LINK_TAKE, .dest = USER(0), .fresh = USER(100), .fresh_array = stack(f, 0)};
    cr_expect(resolve(f, link) != NULL, "count 0 has nothing to take");
    link.fresh_count = most;
    cr_expect(!resolve(f, link));
    link.fresh_count = most + 1;
    cr_expect(resolve(f, link) != NULL, "more than fit");
    link.fresh_count = 1;
    link.fresh_array = USER(50);
    cr_expect(resolve(f, link) != NULL, "no stack of this slot");
    link = give(f, USER(0));
    link.old_count = most - 1;
    cr_expect(!resolve(f, link));
    link.old_count = most;
    cr_expect(resolve(f, link) != NULL, "no room for the old block");
    f->thread->stacks[CLASS] += 64;
    link.old_count = 0;
    link.old_array = stack(f, 8);
    cr_expect(resolve(f, link) != NULL, "a stack that cannot be");
    f->thread->stacks[CLASS] = (SIZE - SMF_PAGE + smi_span_offset(CLASS)) | 2;
    link.old_array = SIZE - SMF_PAGE + smi_span_offset(CLASS);
    cr_expect(resolve(f, link) != NULL, "a span that ends behind the heap");
    f->thread->stacks[CLASS] = (SIZE - SMF_PAGE + smi_span_offset(CLASS)) | 1;
    cr_expect(!resolve(f, link));
    finish(f);
}

static struct smf_link small(uint64_t op, uint64_t dest, uint64_t fresh)
{
    return (struct smf_link){.op = op | USER(0), .dest = dest, .fresh = fresh};
}

Test(outcome, steps_on_open_stacks)
{
    struct fixture *f = make();
    uint64_t block = USER(100);
    *word(f, stack(f, 0)) = SMF_OPEN;
    *word(f, stack(f, 1)) = block;
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_TAKE, stack(f, 1), 0)));
    cr_expect(*word(f, stack(f, 1)) == block, "the user has not got it: undone");
    *word(f, USER(0)) = block;
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_TAKE, stack(f, 1), 0)));
    cr_expect(*word(f, stack(f, 1)) == 0 && *word(f, USER(0)) == block, "finished");
    *word(f, stack(f, 1)) = block; /* given: on the stack, and still in the user's word */
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 1), 0)));
    cr_expect(*word(f, stack(f, 1)) == block && *word(f, USER(0)) == 0, "finished");
    /* the stack that the old block goes to */
    uint64_t other = f->thread_ref + smi_inline_offset(CLASS + 1);
    *word(f, other) = SMF_OPEN;
    *word(f, USER(0)) = *word(f, other + 8) = USER(200); /* killed before the user got the fresh
                                                            one */
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_EXCHANGE, stack(f, 1), other + 8)));
    cr_expect(*word(f, other + 8) == 0 && *word(f, stack(f, 1)) == block, "undone");
    *word(f, other + 8) = USER(200);
    *word(f, USER(0)) = block;
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_EXCHANGE, stack(f, 1), other + 8)));
    cr_expect(*word(f, other + 8) == USER(200) && *word(f, stack(f, 1)) == 0, "finished");
    finish(f);
}

Test(outcome, words_of_open_stacks_are_the_top_or_the_next)
{
    struct fixture *f = make();
    *word(f, stack(f, 0)) = SMF_OPEN;
    *word(f, stack(f, 1)) = USER(1);
    *word(f, stack(f, 2)) = USER(2);
    cr_expect(resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 0), 0)) != NULL, "the count");
    cr_expect(resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 1), 0)) != NULL, "below the top");
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 2), 0)));
    cr_expect(!resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 3), 0)));
    cr_expect(resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 4), 0)) != NULL, "beyond the next");
    cr_expect(resolve(f, small(SMF_LINK_SHORT_EXCHANGE, stack(f, 2), stack(f, 4))) != NULL);
    *word(f, stack(f, 0)) = 2;
    cr_expect(resolve(f, small(SMF_LINK_SHORT_GIVE, stack(f, 2), 0)) != NULL, "a closed stack");
    finish(f);
}

Test(outcome, a_log_names_no_process_no_lock_and_nothing_behind_the_file)
{
    struct fixture *f = make();
    const struct smf_areas *a = &f->areas;
    const uint64_t yes[] = {SMF_STATE_OFFSET, a->directory, a->page_heap,
                            a->end,           SIZE,         FILE_SIZE - 8};
    const uint64_t no[] = {0,          SMF_STATE_OFFSET - 8, a->runtime, a->processes,
                           a->locks,   a->directory - 8,     FILE_SIZE,  FILE_SIZE - 4,
                           a->end + 1, UINT64_MAX - 7,       UINT64_MAX};
    for (size_t i = 0; i < sizeof(yes) / sizeof(*yes); i++)
        cr_expect(smi_log_may_name(a, FILE_SIZE, yes[i]), "%#llx", (unsigned long long)yes[i]);
    for (size_t i = 0; i < sizeof(no) / sizeof(*no); i++)
        cr_expect(!smi_log_may_name(a, FILE_SIZE, no[i]), "%#llx", (unsigned long long)no[i]);
    struct smf_undo log[3] = {{yes[0], 1}, {yes[1], 2}, {no[2], 3}};
    cr_expect(smi_log_fault(a, FILE_SIZE, log, 2) == 2);
    cr_expect(smi_log_fault(a, FILE_SIZE, log, 3) == 2, "the third entry");
    finish(f);
}

Test(outcome, chunks_follow_each_other)
{
    struct fixture *f = make();
    const uint32_t granule = SMF_GRANULE >> SMF_PAGE_SHIFT;
    const struct smf_areas *a = &f->areas;
    uint32_t first = (uint32_t)(((a->end + SMF_GRANULE) / SMF_GRANULE + 1) * granule);
    cr_expect(smi_chunk_follows(&(struct smf_chunk){0, first}, 0, first, a));
    cr_expect(smi_chunk_follows(&(struct smf_chunk){first, granule}, first, first + granule, a));
    cr_expect(!smi_chunk_follows(&(struct smf_chunk){0, first}, 0, first - 1, a),
              "it ends behind the limit");
    cr_expect(
        !smi_chunk_follows(&(struct smf_chunk){first + granule, granule}, first, UINT32_MAX, a),
        "a gap");
    cr_expect(!smi_chunk_follows(&(struct smf_chunk){first, 0}, first, UINT32_MAX, a), "no page");
    cr_expect(!smi_chunk_follows(&(struct smf_chunk){first, granule + 1}, first, UINT32_MAX, a),
              "part of a granule");
    cr_expect(!smi_chunk_follows(&(struct smf_chunk){0, granule}, 0, UINT32_MAX, a) ||
                  a->end < SMF_GRANULE,
              "the areas alone fill it");
    finish(f);
}
