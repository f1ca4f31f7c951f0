/* SPDX-License-Identifier: MIT */
/*
 * repair_flight.c - what was in flight in a heap under repair: undo logs and link records.
 *
 * What is possible is resolved as the next owner of each lock would. What is not is discarded: then
 * the words of the operation keep what they have, and the rest of the plan sees to it that a slot
 * or page of which it is not known who has it stays allocated.
 *
 * A heap that is marked clean and has no thread slot with an owner has nothing in flight: a log or
 * link that says otherwise is damage, and its old entries would do harm.
 */
#include "repair_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- logs ---- */

/* Why a log that is armed must not be undone; NULL when it may. */
static const char *fault_of_log(struct smi_repair *r, uint64_t ref, uint64_t capacity,
                                const char **invariant)
{
    uint64_t count = smi_repair_word(r, ref);
    *invariant = "L1";
    if (count > capacity)
        return "has more entries than fit";
    *invariant = "L2";
    const struct smf_undo *log = smi_view_record(&r->view, ref + 8, count * sizeof(*log));
    if (count > 0 &&
        (!log || smi_log_fault(&r->view.header.areas, r->view.file_size, log, count) < count))
        return "names a word that cannot be";
    *invariant = "H3";
    return r->was_clean ? "is armed in a heap that was closed in order" : NULL;
}

/* Undo or discard. Here and not in smi_view_settle, because undoing may arm a link record that has
 * to be looked at. */
static void look_at_log(struct smi_repair *r, uint64_t ref, uint64_t capacity, const char *whose)
{
    const char *invariant, *fault = fault_of_log(r, ref, capacity, &invariant);
    uint64_t count = smi_repair_word(r, ref);
    if (count != 0 && fault)
        smi_repair_say(r, invariant, ref, "the undo log of %s is discarded: it %s", whose, fault);
    for (uint64_t i = fault ? 0 : count; i-- > 0;) {
        uint64_t entry = ref + 8 + i * sizeof(struct smf_undo);
        smi_view_store(&r->view, smi_repair_word(r, entry), smi_repair_word(r, entry + 8));
    }
    smi_view_store(&r->view, ref, 0);
}

static void look_at_logs(struct smi_repair *r)
{
    const struct smf_areas *areas = &r->view.header.areas;
    look_at_log(r, areas->page_heap, SMF_PAGE_LOG, "the page heap");
    look_at_log(r, areas->roots, SMF_ROOT_LOG, "the roots");
    for (uint32_t i = 0; i < smi_repair_centrals(r); i++)
        look_at_log(r, smi_repair_central(r, i, 0), SMF_CLASS_LOG, "a class");
}

/* ---- links ---- */

static const char *fault_of_link(struct smi_repair *r, uint64_t thread_ref,
                                 const struct smf_thread *thread, struct smi_outcome *out)
{
    return thread->owner == 0 || r->was_clean
               ? "nobody has the thread slot"
               : smi_view_link_outcome(&r->view, thread_ref, thread, out);
}

/* A change that note_changes finds, or one that comes later and is noted at once. */
static void change(struct smi_repair *r, enum smi_repair_stage stage, uint64_t ref, uint64_t value)
{
    if (stage == SMI_SETTLED)
        smi_view_store(&r->view, ref, value);
    else
        smi_repair_put(r, stage, ref, value);
}

/* The program may have the block already that the link takes from a stack: the stack loses it. */
static void take_out(struct smi_repair *r, enum smi_repair_stage stage, uint64_t thread_ref,
                     const struct smf_thread *thread, uint64_t fresh)
{
    for (uint32_t k = 0; fresh != 0 && k < SMF_CLASSES; k++) {
        struct smi_view_stack stack;
        if (smi_view_read_stack(&r->view, thread_ref, thread, k, &stack))
            continue;
        for (uint32_t i = stack.count; i-- > 0;)
            if (stack.slots[i] == fresh) {
                change(r, stage, stack.array + 8ull * (i + 1), stack.slots[stack.count - 1]);
                change(r, stage, stack.array, stack.count - 1);
                break;
            }
    }
}

static void discard_link(struct smi_repair *r, enum smi_repair_stage stage, uint32_t i,
                         uint64_t ref, const struct smf_thread *thread, const char *why)
{
    uint64_t at = ref + offsetof(struct smf_thread, link);
    smi_repair_say(
        r, thread->owner ? "L3" : "T5", at,
        "the link record of thread slot %u is discarded: %s; a block that it takes stays allocated",
        i, why);
    take_out(r, stage, ref, thread,
             smi_link_is_short(&thread->link) ? smi_repair_word(r, smi_link_dest(&thread->link))
                                              : thread->link.fresh);
    change(r, stage, at, SMF_LINK_NONE);
}

void smi_mend_link(struct smi_repair *r, uint32_t i)
{
    uint64_t ref;
    const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
    if (thread && thread->link.op != SMF_LINK_NONE)
        discard_link(r, SMI_TRUTHS, i, ref, thread,
                     "it was not looked at before the thread slot came back");
}

/* The real recovery gives a large block back that a step replaced or freed and that is nobody's
 * yet. Here `scratch`, which is empty by then, takes it: what that names is given back when the
 * thread slot is adopted. */
static void keep_large(struct smi_repair *r, uint64_t ref, uint64_t large)
{
    uint64_t at = ref + offsetof(struct smf_thread, scratch);
    const struct smf_page *d = large ? smi_view_page(&r->view, large >> SMF_PAGE_SHIFT) : NULL;
    if (d && d->side == 0 && smi_repair_word(r, at) == 0)
        smi_view_store(&r->view, at, large);
}

struct armed {
    uint64_t ref[SMF_THREADS];   /* of the thread slot */
    uint64_t large[SMF_THREADS]; /* that its link frees */
    uint32_t count;
};

static void look_at_links(struct smi_repair *r, struct armed *armed)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        struct smi_outcome outcome;
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (!thread || thread->link.op == SMF_LINK_NONE)
            continue;
        const char *fault = fault_of_link(r, ref, thread, &outcome);
        if (fault) {
            discard_link(r, SMI_SETTLED, i, ref, thread, fault);
        } else {
            armed->ref[armed->count] = ref;
            armed->large[armed->count++] = outcome.large;
        }
    }
}

/* ---- what settling changed ---- */

/* Does storing to the word at `ref` disarm something? */
static int disarms(struct smi_repair *r, uint64_t ref)
{
    const struct smf_areas *areas = &r->view.header.areas;
    uint64_t centrals = (uint64_t)smi_repair_centrals(r) * sizeof(struct smf_central);
    if (ref == areas->page_heap || ref == areas->roots ||
        (ref >= areas->central && ref - areas->central < centrals &&
         (ref - areas->central) % sizeof(struct smf_central) == 0))
        return 1;
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        if (smi_repair_word(r, areas->threads + 8ull * i) ==
            ref - offsetof(struct smf_thread, link))
            return 1;
    return 0;
}

static int is_plan_word(uint64_t ref)
{
    const uint64_t state = ref - SMF_STATE_OFFSET;
    return state != offsetof(struct smf_state, poison) && state != offsetof(struct smf_state, mark);
}

/* Words of the copy that differ from the file, of one of the two sorts. Only what settling looked
 * at was loaded. */
static int note_changes(struct smi_repair *r, int disarming)
{
    uint64_t *now = malloc(SMI_VIEW_BLOCK);
    struct smi_view *view = &r->view;
    if (!now)
        return -ENOMEM;
    for (uint64_t ref = 0; view->loaded && ref < r->file_size; ref += SMI_VIEW_BLOCK) {
        uint64_t block = ref / SMI_VIEW_BLOCK, left = r->file_size - ref;
        uint64_t len = left < SMI_VIEW_BLOCK ? left : SMI_VIEW_BLOCK;
        if (!(view->loaded[block / 8] >> block % 8 & 1) ||
            smi_view_read_now(view, ref, len, now) < 0)
            continue;
        for (uint64_t i = 0; i < len / 8; i++) {
            uint64_t at = ref + 8 * i, value = smi_repair_word(r, at);
            if (value != now[i] && at >= SMF_STATE_OFFSET && is_plan_word(at) &&
                disarms(r, at) == disarming)
                smi_repair_note(r, &r->words[SMI_SETTLED], at, value);
        }
    }
    free(now);
    return 0;
}

static int has_owners(struct smi_repair *r)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (thread && thread->owner && thread->tid)
            return 1;
    }
    return 0;
}

int smi_mend_flight(struct smi_repair *r)
{
    struct armed *armed = calloc(1, sizeof(*armed));
    if (!armed)
        return -ENOMEM;
    int clean = r->view.state.mark == SMF_CLEAN, owners = has_owners(r);
    if (clean && owners)
        smi_repair_say(r, "H3", SMF_STATE_OFFSET + offsetof(struct smf_state, mark),
                       "the heap is marked clean and threads have it; it was not closed in order");
    r->was_clean = clean && !owners;
    if (r->was_clean && r->view.state.sync_failed) {
        uint64_t at = SMF_STATE_OFFSET + offsetof(struct smf_state, sync_failed);
        smi_repair_say(r, "H3", at,
                       "the heap was closed in order, so no sync of it failed (it says code %lld)",
                       -(long long)r->view.state.sync_failed);
        smi_repair_put(r, SMI_TRUTHS, at, 0);
    }
    look_at_logs(r);
    look_at_links(r, armed);
    int rc = smi_view_settle(&r->view, NULL, NULL);
    for (uint32_t i = 0; rc == 0 && i < armed->count; i++)
        keep_large(r, armed->ref[i], armed->large[i]);
    free(armed);
    if (rc == 0)
        rc = note_changes(r, 0);
    return rc == 0 ? note_changes(r, 1) : rc;
}
