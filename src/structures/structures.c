/* SPDX-License-Identifier: MIT */
/*
 * structures.c - the table of structures, and how one is made, used and freed.
 *
 * A header's life is one word, which changes by compare-and-swap: NONE, MAKING, LIVE, DYING, NONE.
 * Who makes or frees a structure has it in its thread slot's `structure` first, so whoever adopts
 * the slot finds it and goes on:
 *
 *   making   header to `structure`; MAKING; parts, each named as it is taken; LIVE; the user's
 *            word; `structure` cleared. Killed before the user's word: all of it is freed. A root
 *            is bound in the step that clears `structure`.
 *   freeing  `structure`; DYING, which commits; the user's word cleared, if it is in the heap;
 *            parts, each in a step that clears the word that names it; NONE; into the list in the
 *            step that clears `structure`. Killed after DYING: who adopts the slot goes on. A
 *            structure in it comes to the front of `structure` first, by `nested`.
 *
 * DYING refuses all later calls. Those under way are waited for: each call has the header in its
 * slot's `using_structure`. A waiting or sleeping call has not. Who is stopped in one keeps the
 * parts; then they go when the slot of the freeing thread comes to rest.
 *
 * Nothing of this holds a lock of the heap while it calls down; the list of unused headers has that
 * of a class of the library.
 */
#include "structures/structures.h"
#include "structures/map_type.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "life/context.h"
#include "life/adopt.h"
#include "look/check.h"
#include "names/roots.h"
#include "platform/os.h"
#include "slots/block.h"
#include "slots/stacks.h"
#include "slots/central.h"
#include "tx/tx.h"

static const struct smi_structure_type *const types[] = {&smi_map_type, &smi_queue_type,
                                                         &smi_vector_type};
#define TYPES (sizeof(types) / sizeof(types[0]))

const struct smi_structure_type *smi_structure_type(uint64_t tag)
{
    for (size_t i = 0; i < TYPES; i++)
        if (types[i]->tag == tag)
            return types[i];
    return NULL;
}

/* ---- headers ---- */

static uint64_t who_of(const struct smf_thread *slot, uint32_t index)
{
    return ((uint64_t)(index + 1) << 3 | slot->serial << 14) & SMF_LIFE_WHO;
}

static int is_whose(uint64_t life, uint64_t who)
{
    return (life & SMF_LIFE_WHO) == who;
}

static uint64_t life_of(uint64_t life, uint64_t who, enum smf_life state)
{
    return (life & ~(SMF_LIFE_NEXT - 1)) | who | state;
}

static int change_life(struct smf_structure *head, uint64_t from, uint64_t to)
{
    return __atomic_compare_exchange_n(&head->life, &from, to, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* The block at `ref` when it is a structure's; its tag. */
static struct smf_structure *header_at(const shmalloc_heap *heap, uint64_t ref, uint16_t *tag)
{
    *tag = 0;
    if (ref == 0 || ref % 64 != 0 || !smi_in_heap(heap, ref, SMF_STRUCTURE_BYTES))
        return NULL;
    *tag = smi_block_tag(heap, ref);
    return *tag >= SMF_TAG_RESERVED && smi_block_size(heap, ref) >= SMF_STRUCTURE_BYTES
               ? smi_at(heap, ref)
               : NULL;
}

static int no_header(shmalloc_heap *heap, const struct smf_thread *slot, uint64_t ref)
{
    return smi_heap_poison(
        heap, "the thread slot at %#llx names %#llx as a structure, which is none",
        (unsigned long long)((const uint8_t *)slot - heap->base), (unsigned long long)ref);
}

/* ---- freeing ---- */

/* Does a call of another thread have the structure? Its life was changed before. */
static int is_called(shmalloc_heap *heap, uint64_t ref, const struct smf_thread *me)
{
    if (smi_os_barrier() < 0)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *slot =
            SMI_LOAD(&heap->threads[i]) ? smi_thread_slot(heap, i) : NULL;
        if (slot && slot != me && SMI_LOAD(&slot->owner) != 0 &&
            __atomic_load_n(&slot->using_structure, __ATOMIC_ACQUIRE) == ref)
            return 1;
    }
    return 0;
}

/* The word in the heap that still names the structure forgets it. */
static void clear_holder(shmalloc_heap *heap, struct smf_structure *head, uint64_t ref)
{
    uint64_t holder = SMI_LOAD(&head->holder);
    if (holder == 0 || holder % 8 != 0 || !smi_in_heap(heap, holder, 8))
        return;
    if (SMI_LOAD((uint64_t *)smi_at(heap, holder)) == ref)
        SMI_STORE((uint64_t *)smi_at(heap, holder), 0);
    SMI_STORE(&head->holder, 0);
}

/* The structure that `nested` names comes to the front, if it is this slot's to free. */
static int push_nested(shmalloc_heap *heap, struct smf_thread *slot, uint64_t who)
{
    uint16_t tag;
    uint64_t ref = SMI_LOAD(&slot->nested), outer = SMI_LOAD(&slot->structure) & ~SMF_WHAT;
    struct smf_structure *head = header_at(heap, ref, &tag);
    if (!head)
        return no_header(heap, slot, ref);
    uint64_t life = SMI_LOAD(&head->life);
    if ((life & SMF_LIFE_STATE) == SMF_LIFE_DYING && is_whose(life, who) && outer != ref) {
        SMI_STORE(&head->next, outer);
        SMI_STORE(&slot->structure, ref | SMF_FREEING);
    }
    SMI_STORE(&slot->nested, 0);
    return 0;
}

/* `word` names a structure: 1 when it goes first. */
static int end_nested(struct smi_ending *e, uint64_t *word, struct smf_structure *head)
{
    uint64_t life = SMI_LOAD(&head->life);
    if ((life & SMF_LIFE_STATE) == SMF_LIFE_LIVE) {
        SMI_STORE(&head->holder, (uint64_t)((uint8_t *)word - e->heap->base));
        /* kill from here: forgotten, or */
        SMI_STORE(&e->slot->nested, (uint64_t)((uint8_t *)head - e->heap->base));
        /* from here on pushed */
        if (change_life(head, life, life_of(life, e->who, SMF_LIFE_DYING)))
            return push_nested(e->heap, e->slot, e->who) < 0 ? SHMALLOC_ECORRUPT : 1;
        SMI_STORE(&e->slot->nested, 0);
    }
    SMI_STORE(word, 0); /* somebody else frees it */
    return 0;
}

int smi_part_end(struct smi_ending *e, uint64_t *word)
{
    uint16_t tag;
    uint64_t ref = SMI_LOAD(word);
    if (ref == 0)
        return 0;
    if (*e->most == 0)
        return 1;
    --*e->most;
    struct smf_structure *nested = header_at(e->heap, ref, &tag);
    if (nested)
        return end_nested(e, word, nested);
    if (smi_block_size(e->heap, ref) == 0) { /* whoever lent it has freed it, or worse: that is no
                                                loss */
        SMI_STORE(word, 0);
        return 0;
    }
    int rc = smi_block_give(e->heap, ref, word);
    if (rc == SHMALLOC_EDOUBLEFREE) {
        SMI_STORE(word, 0);
        rc = 0;
    }
    return rc;
}

/* The header that the slot's `structure` names is out of use; what it named before that comes
 * next. */
static int put_aside(struct smi_ending *e, struct smf_structure *head, uint64_t then)
{
    uint64_t ref = (uint64_t)((uint8_t *)head - e->heap->base);
    return smi_central_put_aside(e->heap, &e->heap->state->structure_headers, ref, &head->next,
                                 &e->slot->structure, then ? then | SMF_FREEING : 0);
}

/* All of a DYING structure that is this slot's. 1: not yet. */
static int end_parts(struct smi_ending *e, struct smf_structure *head, uint64_t ref)
{
    const struct smi_structure_type *type = smi_structure_type(SMI_LOAD(&head->tag));
    if (!type)
        return smi_heap_poison(
            e->heap, "the structure at %#llx has tag %#llx, which this library does not know",
            (unsigned long long)ref, (unsigned long long)SMI_LOAD(&head->tag));
    clear_holder(e->heap, head, ref);
    if (is_called(e->heap, ref, e->slot))
        return 1;
    int rc = type->free(e, head);
    if (rc != 0)
        return rc;
    uint64_t then = SMI_LOAD(&head->next);
    SMI_STORE(&head->life, life_of(SMI_LOAD(&head->life), 0, SMF_LIFE_NONE));
    return put_aside(e, head, then);
}

/* Was a structure that lives, and is this slot's, published before the thread was killed? */
static int is_published(shmalloc_heap *heap, const struct smf_structure *head, uint64_t ref)
{
    uint64_t holder = SMI_LOAD(&head->holder);
    return holder != 0 && holder % 8 == 0 && smi_in_heap(heap, holder, 8) &&
           SMI_LOAD((uint64_t *)smi_at(heap, holder)) == ref;
}

/* What is to become of the structure that lives and is named by `structure`? 1: it is DYING now. */
static int decide_live(struct smi_ending *e, struct smf_structure *head, uint64_t ref,
                       uint64_t life, uint64_t what)
{
    int goes = what == SMF_UNBOUND ||
               (what == SMF_MAKING && is_whose(life, e->who) && !is_published(e->heap, head, ref));
    if (goes && change_life(head, life, life_of(life, e->who, SMF_LIFE_DYING)))
        return 1;
    SMI_STORE(&e->slot->structure, 0);
    return 0;
}

/* One header on the way from `structure` to the list. 1: it cannot go now. */
static int end_first(struct smi_ending *e)
{
    uint16_t tag;
    uint64_t word = SMI_LOAD(&e->slot->structure), ref = word & ~SMF_WHAT, what = word & SMF_WHAT;
    struct smf_structure *head = header_at(e->heap, ref, &tag);
    if (!head)
        return no_header(e->heap, e->slot, ref);
    uint64_t life = SMI_LOAD(&head->life), state = life & SMF_LIFE_STATE;
    if (state == SMF_LIFE_NONE)
        return put_aside(e, head, what == SMF_MAKING ? 0 : SMI_LOAD(&head->next));
    if (state == SMF_LIFE_LIVE && !decide_live(e, head, ref, life, what))
        return 0;
    if (state != SMF_LIFE_LIVE && !is_whose(life, e->who)) { /* another thread was faster */
        SMI_STORE(&e->slot->structure, 0);
        return 0;
    }
    return end_parts(e, head, ref);
}

/* Until the slot names no structure, or the rest has to wait: 1. */
static int end_structures(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                          uint64_t *most)
{
    struct smi_ending e = {heap, slot, who_of(slot, index), most};
    int rc = slot->nested != 0 ? push_nested(heap, slot, e.who) : 0;
    while (rc == 0 && SMI_LOAD(&slot->structure) != 0) {
        uint64_t before = SMI_LOAD(&slot->structure);
        rc = end_first(&e);
        if (rc == 1 && *most > 0 && SMI_LOAD(&slot->structure) != before) /* one in it goes first */
            rc = 0;
    }
    return rc;
}

/* The folders below call what is here only so: this one is the roof. Nothing below names it, so
 * static programs have the linker look for it (-u, in src/meson.build and the pkg-config file). */
__attribute__((constructor)) void smi_structures_announce(void)
{
    smi_map_take_part();
    smi_release_structure = end_structures;
    smi_check_structures = smi_structures_check;
}

/* ---- the thread ---- */

/* This process takes part in fences: once, and again in children. */
static void join_fences(void)
{
    static int joined;
    if (!SMI_LOAD(&joined) && smi_os_barrier_join() == 0)
        SMI_STORE(&joined, 1);
}

struct smi_thread *smi_structure_enter_long(shmalloc_heap *heap, int *rc)
{
    int state = smi_os_cancel_off();
    struct smi_thread *t = smi_thread_enter(heap, rc);
    smi_os_cancel_restore(state);
    return t;
}

#define PATIENCE_NS 1000000000ull /* with a call that has a structure which is to be freed */
#define ADOPT_AFTER_NS 20000000ull

/* The calling thread frees what its slot names. What others are in the middle of is left to
 * later. */
static int end_own(struct smi_thread *t)
{
    uint64_t most = UINT64_MAX, start = smi_os_clock(), looked = start;
    int rc, state = smi_os_cancel_off();
    while ((rc = end_structures(t->heap, t->slot, t->slot_index, &most)) == 1 &&
           smi_os_clock() - start < PATIENCE_NS) {
        smi_os_sleep(100000);
        if (smi_os_clock() - looked < ADOPT_AFTER_NS)
            continue;
        looked = smi_os_clock();
        if (!t->heap->is_private) /* who has it may be dead */
            smi_adopt(t->heap, SMI_ADOPT_SOME);
    }
    smi_os_cancel_restore(state);
    return rc;
}

/* Freeing is no part of a transaction: what the thread's own one changed in the structure would be
 * judged and given back after its blocks are gone. */
static int outside_transactions(const struct smi_thread *t)
{
    return !smi_tx_of(t) ? 0
                         : smi_error(SHMALLOC_EINTX,
                                     "%s: a structure is not freed inside a transaction; commit or "
                                     "abort it first",
                                     t->heap->path);
}

/* The thread's context, with nothing of before in its slot. */
static struct smi_thread *idle_thread(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = smi_structure_enter_long(heap, rc);
    if (!t || t->slot->structure == 0)
        return t;
    /* What goes on here may be the end of something that the thread's own transaction changed. */
    if ((*rc = outside_transactions(t)) < 0)
        return NULL;
    *rc = end_own(t);
    if (*rc == 1)
        *rc = smi_error(
            SHMALLOC_EBUSY,
            "%s: a structure that this thread freed is still used by a call of a stopped thread",
            heap->path);
    return *rc < 0 ? NULL : t;
}

/* ---- making ---- */

int smi_part_take(struct smi_thread *t, size_t size, size_t alignment, int zero, uint64_t *dest)
{
    struct smi_top *top = alignment <= 16 && !zero ? smi_top_for(t->heap, t, size) : NULL;
    uint64_t ref;
    if (SMI_LIKELY(top)) {
        smi_link_pop(t, dest, top);
        return 0;
    }
    int state = smi_os_cancel_off();
    int rc = smi_block_take(
        t, &(struct smi_request){.size = size, .alignment = alignment, .zero = zero}, dest, &ref);
    smi_os_cancel_restore(state);
    return rc;
}

int smi_part_give(struct smi_thread *t, uint64_t *word)
{
    uint64_t ref = SMI_LOAD(word);
    struct smi_top *top = smi_serves(t, t->heap) ? smi_top_of(t, ref) : NULL;
    if (!top && smi_serves(t, t->heap) && smi_pagetable_learn(t->heap, ref)) {
        t->covered = smi_pagetable_covered(t->heap);
        top = smi_top_of(t, ref);
    }
    if (SMI_LIKELY(top)) {
        smi_link_push(t, word, ref, top);
        return 0;
    }
    int state = smi_os_cancel_off();
    int rc = smi_block_free(t, ref, word);
    smi_os_cancel_restore(state);
    return rc;
}

/* A header that waits in the list, or a new one, is named by `structure`. */
static int take_header(struct smi_thread *t, uint16_t tag)
{
    uint64_t ref, *name = &t->slot->structure;
    int rc = smi_central_take_aside(t->heap, &t->heap->state->structure_headers,
                                    offsetof(struct smf_structure, next), name);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    struct smi_request request = {
        .size = SMF_STRUCTURE_BYTES, .alignment = 64, .zero = 1, .tag = tag};
    return smi_block_take(t, &request, name, &ref);
}

/* What `structure` names becomes one that is being made. */
static int prepare_header(struct smi_thread *t, uint16_t tag, struct smf_structure **out)
{
    uint16_t had;
    struct smi_slot slot;
    uint64_t ref = SMI_LOAD(&t->slot->structure);
    struct smf_structure *head = header_at(t->heap, ref, &had);
    if (!head || (SMI_LOAD(&head->life) & SMF_LIFE_STATE) != SMF_LIFE_NONE)
        return no_header(t->heap, t->slot, ref);
    SMI_STORE(&head->next, 0);
    SMI_STORE(&head->holder, 0);
    memset(head + 1, 0, SMF_STRUCTURE_BYTES - sizeof(*head));
    SMI_STORE(&head->tag, tag);
    if (had != tag && smi_slot_find(t->heap, ref, &slot) == 0 && smi_slot_tag(t->heap, &slot))
        SMI_STORE(smi_slot_tag(t->heap, &slot), tag);
    uint64_t life = SMI_LOAD(&head->life) + SMF_LIFE_NEXT;
    SMI_STORE(&head->life, life_of(life, who_of(t->slot, t->slot_index), SMF_LIFE_MAKING));
    *out = head;
    return 0;
}

int smi_structure_begin(shmalloc_heap *heap, uint16_t tag, struct smi_thread **t,
                        struct smf_structure **out)
{
    int rc;
    *t = idle_thread(heap, &rc);
    if (!*t)
        return rc;
    join_fences();
    int state = smi_os_cancel_off();
    rc = take_header(*t, tag);
    smi_os_cancel_restore(state);
    return rc < 0 ? rc : prepare_header(*t, tag, out);
}

static void live(struct smf_structure *head)
{
    uint64_t life = SMI_LOAD(&head->life);
    __atomic_store_n(&head->life, (life & ~SMF_LIFE_STATE) | SMF_LIFE_LIVE, __ATOMIC_RELEASE);
    SMI_BARRIER();
}

int smi_structure_publish(struct smi_thread *t, struct smf_structure *head, shmalloc_ref *out)
{
    uint64_t ref = (uint64_t)((uint8_t *)head - t->base), at;
    int in_heap = smi_ref_of(t->heap, out, &at);
    if (in_heap)
        SMI_STORE(&head->holder, at);
    live(head); /* kill from here: freed, */
    if (in_heap)
        smi_link_store(out, ref); /* and from here: it is the user's */
    SMI_STORE(&t->slot->structure, 0);
    if (!in_heap)
        *out = ref;
    return 0;
}

int smi_structure_drop(struct smi_thread *t, int rc)
{
    end_own(t);
    return rc;
}

int smi_structure_bind(struct smi_thread *t, struct smf_structure *head, const char *text,
                       shmalloc_ref *ref)
{
    struct smi_name name;
    uint64_t type = SMI_LOAD(&head->tag), tag = type;
    int rc = smi_name_of(t->heap, text, &name);
    if (rc < 0)
        return smi_structure_drop(t, rc);
    *ref = (uint64_t)((uint8_t *)head - t->base);
    live(head);
    int state = smi_os_cancel_off();
    rc = smi_roots_bind(t->heap, &name, &type, ref, 1, &t->slot->structure);
    smi_os_cancel_restore(state);
    if (rc == 0)
        return 1;
    smi_structure_drop(t, 0);
    if (rc == 1 && type != tag)
        return smi_error(SHMALLOC_ETYPE, "%s: root \"%s\" has type %#llx, expected %#llx (%s)",
                         t->heap->path, text, (unsigned long long)type, (unsigned long long)tag,
                         smi_structure_type(tag)->name);
    return rc < 0 ? rc : 0;
}

/* ---- using ---- */

int smi_structure_gone(const struct smi_use *use)
{
    if (SMI_LOAD(&use->heap->state->poison) != 0)
        return smi_heap_writable(use->heap);
    return smi_error(SHMALLOC_EGONE,
                     "%s: the structure at %#llx was freed; open the one that is there now, if any",
                     use->heap->path, (unsigned long long)use->ref);
}

int smi_structure_damaged(const struct smi_use *use, const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    return smi_error(
        SHMALLOC_ECORRUPT,
        "%s: the structure at %#llx is damaged: %s; `shmalloc-inspect check` says more",
        use->heap->path, (unsigned long long)use->ref, text);
}

static int other_type(const shmalloc_heap *heap, uint64_t ref, uint16_t found, uint16_t tag)
{
    const struct smi_structure_type *is = smi_structure_type(found);
    return smi_error(SHMALLOC_ETYPE, "%s: expected a %s at %#llx, found a %s", heap->path,
                     smi_structure_type(tag)->name, (unsigned long long)ref,
                     is ? is->name : "block that is no structure of this library");
}

int smi_structure_open(shmalloc_heap *heap, shmalloc_ref ref, uint16_t tag, struct smi_use *out)
{
    uint16_t found = 0;
    if (heap->closed)
        return smi_heap_writable(heap);
    struct smf_structure *head = header_at(heap, ref, &found);
    if (!head && (ref == 0 || smi_block_size(heap, ref) == 0))
        return smi_error(SHMALLOC_EBADREF,
                         "%s: %#llx is no block of this heap; is it another heap's ref?",
                         heap->path, (unsigned long long)ref);
    if (!head)
        return other_type(heap, ref, found, tag);
    uint64_t life = __atomic_load_n(&head->life, __ATOMIC_ACQUIRE);
    *out = (struct smi_use){heap, head, ref, life};
    if ((life & SMF_LIFE_STATE) != SMF_LIFE_LIVE)
        return smi_structure_gone(out);
    if (SMI_LOAD(&head->tag) != tag || found != tag)
        return other_type(heap, ref, found, tag);
    join_fences();
    return 0;
}

int smi_structure_open_root(shmalloc_heap *heap, const char *text, uint16_t tag,
                            struct smi_use *out)
{
    int rc;
    struct smi_name name;
    uint64_t type = 0, ref = 0;
    if (!heap->read_only && !heap->closed && !smi_structure_enter_long(heap, &rc) &&
        rc != SHMALLOC_EPOISONED)
        return rc;
    if (heap->closed)
        return smi_heap_writable(heap);
    if ((rc = smi_name_of(heap, text, &name)) < 0)
        return rc;
    int state = smi_os_cancel_off();
    rc = smi_roots_find(heap, &name, &type, &ref);
    smi_os_cancel_restore(state);
    if (rc == SHMALLOC_ENOROOT)
        return smi_roots_missing(heap, &name);
    if (rc == 0 && type != tag)
        return smi_error(SHMALLOC_ETYPE, "%s: root \"%s\" has type %#llx, expected %#x (%s)",
                         heap->path, text, (unsigned long long)type, tag,
                         smi_structure_type(tag)->name);
    return rc < 0 ? rc : smi_structure_open(heap, ref, tag, out);
}

/* ---- freeing, for users ---- */

int smi_structure_free(shmalloc_heap *heap, shmalloc_ref *ref, uint16_t tag)
{
    int rc;
    uint64_t at;
    struct smi_use use;
    if (!ref)
        return smi_error(-EINVAL, "%s: no ref to free", heap->path);
    struct smi_thread *t = idle_thread(heap, &rc);
    if (!t || (rc = outside_transactions(t)) < 0)
        return rc;
    int in_heap = smi_ref_of(heap, ref, &at);
    if (in_heap && at % 8 != 0)
        return smi_error(-EINVAL, "%s: the ref word at %#llx is not 8-aligned", heap->path,
                         (unsigned long long)at);
    if (*ref == 0)
        return 0;
    if ((rc = smi_structure_open(heap, *ref, tag, &use)) < 0)
        return rc;
    SMI_STORE(&use.head->holder, in_heap ? at : 0);
    SMI_STORE(&t->slot->structure, use.ref | SMF_FREEING);
    if (!change_life(use.head, use.life,
                     life_of(use.life, who_of(t->slot, t->slot_index), SMF_LIFE_DYING))) {
        SMI_STORE(&t->slot->structure, 0);
        return smi_structure_gone(&use);
    }
    if (!in_heap)
        *ref = 0;
    rc = end_own(t);
    return rc < 0 ? rc : 0;
}

int smi_structure_remove(shmalloc_heap *heap, const char *text, uint16_t tag)
{
    int rc;
    struct smi_name name;
    struct smi_use use;
    struct smi_thread *t = idle_thread(heap, &rc);
    if (!t || (rc = outside_transactions(t)) < 0 ||
        (rc = smi_structure_open_root(heap, text, tag, &use)) < 0)
        return rc;
    if ((rc = smi_name_of(heap, text, &name)) < 0)
        return rc;
    const struct smi_unbinding with = {use.ref, &t->slot->structure, use.ref | SMF_UNBOUND};
    int state = smi_os_cancel_off();
    rc = smi_roots_remove(heap, &name, &with);
    smi_os_cancel_restore(state);
    if (rc == SHMALLOC_ENOROOT)
        return smi_roots_missing(heap, &name);
    if (rc == 0)
        rc = end_own(t);
    return rc < 0 ? rc : 0;
}

/* ---- looking ---- */

int smi_structure_has_block(struct smi_view *view, uint64_t ref, uint64_t size)
{
    uint32_t slab, index;
    const struct smf_page *page = smi_view_page(view, ref >> SMF_PAGE_SHIFT);
    if (ref == 0 || !page)
        return 0;
    if (ref % SMF_PAGE == 0 && page->kind == SMF_PAGE_LARGE)
        return (uint64_t)page->page_count << SMF_PAGE_SHIFT >= size;
    page = smi_view_slot(view, ref, &slab, &index) == 0 ? smi_view_page(view, slab) : NULL;
    return page && smi_classes[page->size_class].size >= size;
}

/* The structures in a slab, which are slots that have such a tag: they keep it for ever. */
static int visit_headers(struct smi_view *view, const struct smi_span *span,
                      int (*visit)(const struct smi_structure_seen *seen, void *arg), void *arg)
{
    uint32_t k = span->page->size_class;
    for (uint32_t i = 0; i < smi_classes[k].slots; i++) {
        uint16_t tag = smi_view_slot_tag(view, span->page, i);
        if (tag < SMF_TAG_RESERVED)
            continue;
        struct smi_structure_seen seen = {smi_slot_ref(span->first_page, k, i),
                                          smi_structure_type(tag), NULL};
        seen.head = smi_view_at(view, seen.ref, SMF_STRUCTURE_BYTES);
        int rc = seen.head ? visit(&seen, arg) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

int smi_structures_each(struct smi_view *view,
                        int (*visit)(const struct smi_structure_seen *seen, void *arg), void *arg)
{
    struct smi_span span = {0};
    int rc = smi_view_settle(view, NULL, NULL);
    while (rc == 0 && smi_view_next_span(view, &span))
        if (smi_view_is_slab(view, span.page) && span.page->arena < view->header.arena_count &&
            span.page->side != 0 && smi_classes[span.page->size_class].size == SMF_STRUCTURE_BYTES)
            rc = visit_headers(view, &span, visit, arg);
    return rc;
}

const struct smi_invariant smi_structure_invariants[] = {
    {"Q1", "a structure's life, its type and its block's tag fit each other; the list of unused "
           "headers has such only; "
           "`structure` of a thread slot names a header"},
    {"Q2", "a queue's capacity is a power of two, and its cells are a block of their length"},
    {"Q3", "a queue's cell is in a known state, in the lap of the queue's positions, and claimed "
           "by a possible thread slot"},
    {"Q4",
     "a queue's cell has a block if, and only if, its message needs one, which is long enough"},
    {"Q5", "a queue's positions are no further apart than it has cells"},
    {"V1", "a vector's element, first segment and place for changes are possible; what changes is "
           "one of its elements"},
    {"V2", "a vector's elements lie in segments that are blocks of their size"},
    {NULL, NULL},
};

struct checking {
    struct smi_view *view;
    smi_report_fn *report;
    void *arg;
    uint64_t unused; /* headers that are out of use */
};

static int check_one(const struct smi_structure_seen *seen, void *arg)
{
    struct checking *c = arg;
    uint64_t state = seen->head->life & SMF_LIFE_STATE;
    if (state == SMF_LIFE_NONE)
        c->unused++;
    else if (state > SMF_LIFE_DYING)
        c->report("Q1", seen->ref, "a structure's life is in no known state", c->arg);
    else if (state == SMF_LIFE_LIVE && seen->type && seen->head->tag != seen->type->tag)
        c->report("Q1", seen->ref, "a structure is of another type than its block's tag says",
                  c->arg);
    else if (state == SMF_LIFE_LIVE && seen->type)
        seen->type->check(c->view, seen->ref, c->report, c->arg);
    return 0;
}

/* The list of headers that are out of use: each in it is, and all that are, are in it, but for
 * those of thread slots. */
static void check_list(struct checking *c)
{
    uint64_t ref = c->view->state.structure_headers, listed = 0;
    for (; ref != 0 && listed <= c->unused; listed++) {
        const struct smf_structure *head =
            ref % 64 == 0 ? smi_view_at(c->view, ref, SMF_STRUCTURE_BYTES) : NULL;
        if (!head || (head->life & SMF_LIFE_STATE) != SMF_LIFE_NONE) {
            c->report("Q1", ref,
                      "the list of unused structure headers leads to one that is in use, or none",
                      c->arg);
            return;
        }
        ref = head->next;
    }
    if (ref != 0)
        c->report("Q1", ref, "the list of unused structure headers is longer than their number",
                  c->arg);
}

static void check_slots(struct checking *c)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t at;
        const struct smf_thread *thread = smi_view_thread(c->view, i, &at);
        uint64_t ref = thread ? thread->structure & ~SMF_WHAT : 0;
        if (ref != 0 && (ref % 64 != 0 || !smi_view_at(c->view, ref, SMF_STRUCTURE_BYTES)))
            c->report("Q1", at + offsetof(struct smf_thread, structure),
                      "a thread slot names a structure that is none", c->arg);
    }
}

int smi_structures_check(struct smi_view *view, smi_report_fn *report, void *arg)
{
    struct checking c = {view, report, arg, 0};
    if (smi_format_is_older(&view->header))
        return 0;
    int rc = smi_structures_each(view, check_one, &c);
    if (rc < 0)
        return rc;
    check_list(&c);
    check_slots(&c);
    return 0;
}
