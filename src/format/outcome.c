/* SPDX-License-Identifier: MIT */
/* outcome.c - the rules for records of steps that were cut off; see outcome.h, and layout.h for the
 * records. */
#include "format/outcome.h"

static const char no_stack[] = "it names a stack that the thread slot does not have";
static const char not_next[] = "it names a word of a stack that is not the next";

static void add_change(struct smi_outcome *out, uint64_t ref, uint64_t value)
{
    out->change[out->count++] = (struct smi_change){ref, value};
}

/* Words can be users' from the end of the areas on, and an array begins where blocks do. */
static const uint64_t *look_inside(const struct smi_sight *s, uint64_t ref, uint64_t len)
{
    int is_inside = ref % 8 == 0 && ref >= s->areas->end && ref < s->size && len <= s->size - ref;
    return is_inside ? s->at(s->source, ref, len) : NULL;
}

static uint64_t load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* ---- stacks ---- */

/* The array of class k, when the stack of the thread slot can be; NULL otherwise. */
static const uint64_t *array_of(const struct smi_sight *s, uint64_t thread_ref, uint64_t stack,
                                uint32_t k)
{
    uint64_t inside =
        thread_ref + (s->is_older ? smi_older_inline_offset(k) : smi_inline_offset(k));
    return smi_stack_is_possible(inside, stack, k)
               ? look_inside(s, stack & ~(uint64_t)SMF_STACK_PAGES,
                             8ull * smi_stack_words(stack, k))
               : NULL;
}

/* Slots that the array at `ref` of a thread slot can hold; 0 when the slot has no such array. */
static uint64_t capacity_of(const struct smi_sight *s, uint64_t thread_ref,
                            const struct smf_thread *thread, uint64_t ref)
{
    for (uint32_t k = 0; ref != 0 && k < SMF_CLASSES; k++) {
        uint64_t stack = load(&thread->stacks[k]);
        if ((stack & ~(uint64_t)SMF_STACK_PAGES) == ref && array_of(s, thread_ref, stack, k))
            return smi_stack_words(stack, k) - 1;
    }
    return 0;
}

/* Does `ref` lie in the bags of the thread slot? An older one has an array there. */
static int is_in_limbo(const struct smi_sight *s, const struct smf_thread *thread, uint64_t ref)
{
    uint64_t limbo = s->is_older ? 0 : load(&thread->limbo);
    return limbo != 0 && ref - limbo < SMF_LIMBO_PAGES * SMF_PAGE;
}

/* The word at `ref` if it is the last of a bag of the thread slot, or the next one; NULL
 * otherwise. */
static const uint64_t *bag_word(const struct smi_sight *s, const struct smf_thread *thread,
                                uint64_t ref)
{
    uint64_t limbo = load(&thread->limbo);
    const struct smf_bag *bag =
        limbo % SMF_PAGE == 0
            ? (const void *)look_inside(s, limbo + (ref - limbo) / SMF_PAGE * SMF_PAGE, SMF_PAGE)
            : NULL;
    uint64_t place = (ref % SMF_PAGE - offsetof(struct smf_bag, refs)) / 8;
    return bag && place < SMF_BAG && place + 1 - smi_bag_count(bag) <= 1 ? &bag->refs[place] : NULL;
}

/* The word at `ref` if it is the one on top of an open stack or a bag of the thread slot, or the
 * next one; NULL otherwise. */
static const uint64_t *stack_word(const struct smi_sight *s, uint64_t thread_ref,
                                  const struct smf_thread *thread, uint64_t ref)
{
    if (ref % 8 == 0 && is_in_limbo(s, thread, ref))
        return bag_word(s, thread, ref);
    for (uint32_t k = 0; ref % 8 == 0 && k < SMF_CLASSES; k++) {
        uint64_t stack = load(&thread->stacks[k]), begin = stack & ~(uint64_t)SMF_STACK_PAGES,
                 place = (ref - begin) / 8;
        uint32_t words = smi_stack_words(stack, k);
        if (ref <= begin || place >= words)
            continue;
        const uint64_t *array = array_of(s, thread_ref, stack, k);
        if (array && load(&array[0]) == SMF_OPEN && place - smi_stack_count(array, words) <= 1)
            return array + place;
    }
    return NULL;
}

/* ---- links ---- */

/* The old block is counted in, or given back if it is large, or, of whatever size, retired. */
static const char *finish_old(const struct smi_sight *s, const struct smf_thread *thread,
                              const struct smf_link *link, struct smi_outcome *out)
{
    if (link->old != 0 && link->old_array == 0) {
        out->large = link->old;
    } else if (link->old != 0 && is_in_limbo(s, thread, link->old_array)) {
        add_change(out, link->old_array, link->old & SMF_REF_MASK);
    } else if (link->old != 0) {
        add_change(out, link->old_array + 8 * (link->old_count + 1), link->old);
        add_change(out, link->old_array, link->old_count + 1);
    }
    return NULL;
}

static const char *outcome_of_take(const struct smi_sight *s, uint64_t thread_ref,
                                   const struct smf_thread *thread, const struct smf_link *link,
                                   uint64_t user, struct smi_outcome *out)
{
    uint64_t scratch_ref = thread_ref + offsetof(struct smf_thread, scratch);
    const uint64_t *scratch = look_inside(s, scratch_ref, 8);
    int is_done = user == link->fresh;
    if (link->fresh_array != 0)
        add_change(out, link->fresh_array, link->fresh_count - (is_done ? 1 : 0));
    else if (is_done && scratch && load(scratch) == (link->fresh & SMF_REF_MASK))
        add_change(out, scratch_ref, 0);
    return is_done ? finish_old(s, thread, link, out) : NULL;
}

/* A ref that went from one word to another. Acquire: what was stored before the word that tells is
 * seen. */
static const char *outcome_of_move(const struct smi_sight *s, const struct smf_link *link,
                                   uint64_t user, struct smi_outcome *out)
{
    const uint64_t *word = look_inside(s, link->fresh, 8);
    if (!word)
        return "it names a word that cannot be";
    uint64_t happened = __atomic_load_n(word, __ATOMIC_ACQUIRE) != link->fresh_array;
    if (happened == link->fresh_count && user == link->old)
        add_change(out, link->dest, 0);
    return NULL;
}

static const char *outcome_of_full(const struct smi_sight *s, uint64_t thread_ref,
                                   const struct smf_thread *thread, const struct smf_link *link,
                                   uint64_t user, struct smi_outcome *out)
{
    if (link->op == SMF_LINK_MOVE)
        return outcome_of_move(s, link, user, out);
    if (link->op != SMF_LINK_TAKE && link->op != SMF_LINK_GIVE)
        return "it is of no known kind";
    if (link->op == SMF_LINK_TAKE && link->fresh_array != 0 &&
        (link->fresh_count == 0 ||
         link->fresh_count > capacity_of(s, thread_ref, thread, link->fresh_array)))
        return no_stack;
    if (link->old != 0 && is_in_limbo(s, thread, link->old_array)) {
        if (!stack_word(s, thread_ref, thread, link->old_array))
            return not_next;
    } else if (link->old != 0 && link->old_array != 0 &&
               link->old_count >= capacity_of(s, thread_ref, thread, link->old_array)) {
        return no_stack;
    }
    if (link->op == SMF_LINK_TAKE)
        return outcome_of_take(s, thread_ref, thread, link, user, out);
    if (user == link->old)
        add_change(out, link->dest, 0);
    return finish_old(s, thread, link, out);
}

static const char *outcome_of_short(const struct smi_sight *s, uint64_t thread_ref,
                                    const struct smf_thread *thread, const struct smf_link *link,
                                    uint64_t user, struct smi_outcome *out)
{
    uint64_t op = link->op & SMF_LINK_OP;
    const uint64_t *word = stack_word(s, thread_ref, thread, link->dest);
    if (!word || (op == SMF_LINK_SHORT_EXCHANGE && !stack_word(s, thread_ref, thread, link->fresh)))
        return not_next;
    uint64_t ref = load(word);
    int same = ref != 0 && (user & SMF_REF_MASK) == ref;
    if (op == SMF_LINK_SHORT_GIVE && same)
        add_change(out, smi_link_dest(link), 0);
    else if (op != SMF_LINK_SHORT_GIVE && same)
        add_change(out, link->dest, 0);
    else if (op == SMF_LINK_SHORT_EXCHANGE && ref != 0)
        add_change(out, link->fresh, 0);
    return NULL;
}

const char *smi_outcome_of_link(const struct smi_sight *sight, uint64_t thread_ref,
                                const struct smf_thread *thread, const struct smf_link *link,
                                struct smi_outcome *out)
{
    const uint64_t *user = look_inside(sight, smi_link_dest(link), 8);
    *out = (struct smi_outcome){.count = 0};
    if (!user)
        return "it names a word that cannot be";
    return smi_link_is_short(link)
               ? outcome_of_short(sight, thread_ref, thread, link, load(user), out)
               : outcome_of_full(sight, thread_ref, thread, link, load(user), out);
}

/* ---- logs ---- */

int smi_log_may_name(const struct smf_areas *areas, uint64_t file_size, uint64_t ref)
{
    return ref % 8 == 0 && ref >= SMF_STATE_OFFSET &&
           (ref < areas->runtime || ref >= areas->directory) && ref < file_size &&
           file_size - ref >= 8;
}

uint64_t smi_log_fault(const struct smf_areas *areas, uint64_t file_size,
                       const struct smf_undo *log, uint64_t count)
{
    uint64_t i = 0;
    while (i < count && smi_log_may_name(areas, file_size, log[i].ref))
        i++;
    return i;
}

/* ---- chunks ---- */

int smi_chunk_follows(const struct smf_chunk *chunk, uint64_t page, uint64_t limit,
                      const struct smf_areas *areas)
{
    uint64_t end = page + chunk->page_count;
    return chunk->first_page == page && chunk->page_count != 0 &&
           chunk->page_count % (SMF_GRANULE >> SMF_PAGE_SHIFT) == 0 && end <= limit &&
           smi_chunk_data_page(chunk, areas) < end;
}
