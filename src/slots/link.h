/* SPDX-License-Identifier: MIT */
/*
 * link.h - the link record: a store to a word in the heap and the change of a stack that goes with
 * it, as one step.
 *
 * The record says what is about to happen; storing `op` arms it. Whoever releases the slot of a
 * thread that died meanwhile finishes or undoes it (smi_stacks_resolve_link). The short records are
 * for open stacks, and in line, because the fast paths use them; the full ones for closed stacks
 * and large blocks. layout.h has both.
 */
#ifndef SMI_LINK_H
#define SMI_LINK_H

#include "slots/context.h"

/* One side of a linked step: a ref and the array of the closed stack it leaves or enters; array
 * NULL: the thread's scratch, or a large block. */
struct smi_side {
    uint64_t ref;
    uint64_t *array;
};

static inline uint64_t smi_link_ref_of(const struct smi_thread *t, const uint64_t *word)
{
    return (uint64_t)((const uint8_t *)word - t->base);
}

/* The user's word changes. Release: who reads it sees what was stored to the block before. */
static inline void smi_link_store(uint64_t *holder, uint64_t ref)
{
    SMI_BARRIER();
    __atomic_store_n(holder, ref, __ATOMIC_RELEASE);
    SMI_BARRIER();
}

/* *holder := fresh.ref together with the counts that go with it. A large old block stays for the
 * caller to give back with the record still armed; old.ref 0: there is none. The stacks have been
 * seen to, and are closed. */
static inline void smi_link_take(struct smi_thread *t, uint64_t *holder, struct smi_side fresh,
                                 struct smi_side old)
{
    struct smf_link *link = &t->slot->link;
    uint64_t fresh_count = fresh.array ? fresh.array[0] : 0,
             old_count = old.array ? old.array[0] : 0;
    link->dest = smi_link_ref_of(t, holder);
    link->fresh = fresh.ref;
    link->fresh_array = fresh.array ? smi_link_ref_of(t, fresh.array) : 0;
    link->fresh_count = fresh_count;
    link->old = old.ref;
    if (old.ref != 0) {
        link->old_array = old.array ? smi_link_ref_of(t, old.array) : 0;
        link->old_count = old_count;
    }
    SMI_STORE(&link->op, SMF_LINK_TAKE); /* kill from here: undone */
    smi_link_store(holder, fresh.ref);     /* kill from here: finished */
    if (fresh.array)
        SMI_STORE(&fresh.array[0], fresh_count - 1);
    else
        SMI_STORE(&t->slot->scratch, 0);
    if (old.array) {
        SMI_STORE(&old.array[old_count + 1], old.ref);
        SMI_STORE(&old.array[0], old_count + 1);
    }
    if (old.ref == 0 || old.array)
        SMI_STORE(&link->op, SMF_LINK_NONE);
}

/* The same with `bits` beside the ref in *holder, and the old block, if there is one, into the bag:
 * its word, which is open, commits. */
static inline void smi_link_take_to_bag(struct smi_thread *t, uint64_t *holder, uint64_t bits,
                                        struct smi_side fresh, uint64_t old_ref,
                                        struct smi_top *bag)
{
    struct smf_link *link = &t->slot->link;
    uint64_t fresh_count = fresh.array ? fresh.array[0] : 0, *word = bag->word + 1;
    link->dest = smi_link_ref_of(t, holder);
    link->fresh = fresh.ref | bits;
    link->fresh_array = fresh.array ? smi_link_ref_of(t, fresh.array) : 0;
    link->fresh_count = fresh_count;
    link->old = old_ref;
    link->old_array = old_ref != 0 ? smi_link_ref_of(t, word) : 0;
    SMI_STORE(&link->op, SMF_LINK_TAKE); /* kill from here: undone */
    smi_link_store(holder, fresh.ref | bits); /* kill from here: finished */
    if (fresh.array)
        SMI_STORE(&fresh.array[0], fresh_count - 1);
    else
        SMI_STORE(&t->slot->scratch, 0);
    if (old_ref != 0) {
        SMI_STORE(word, old_ref);
        bag->word = word;
        bag->ref = old_ref;
    }
    SMI_STORE(&link->op, SMF_LINK_NONE);
}

/* *holder := 0 and the slot onto its closed stack, likewise. */
static inline void smi_link_give(struct smi_thread *t, uint64_t *holder, struct smi_side old)
{
    struct smf_link *link = &t->slot->link;
    uint64_t count = old.array[0];
    link->dest = smi_link_ref_of(t, holder);
    link->old = old.ref;
    link->old_array = smi_link_ref_of(t, old.array);
    link->old_count = count;
    SMI_STORE(&link->op, SMF_LINK_GIVE); /* kill from here: finished */
    smi_link_store(holder, 0);
    SMI_STORE(&old.array[count + 1], old.ref);
    SMI_STORE(&old.array[0], count + 1);
    SMI_STORE(&link->op, SMF_LINK_NONE);
}

/* ---- open stacks ---- */

/* What is on top leaves an open stack; the store of 0 to its word commits. In this order, so that a
 * call that a signal handler leaves by siglongjmp loses a slot at most, and gives none out
 * twice. */
static inline uint64_t smi_pop_word(struct smi_top *top)
{
    uint64_t *word = top->word, ref = top->ref, below = word[-1];
    SMI_STORE(word, 0);
    SMI_STORE(&top->word, word - 1);
    top->ref = below;
    return ref;
}

/* A slot enters one, which has room; the store to its word commits. */
static inline void smi_push_word(struct smi_top *top, uint64_t ref)
{
    uint64_t *word = top->word + 1;
    SMI_STORE(word, ref);
    SMI_STORE(&top->word, word);
    top->ref = ref;
}

static inline void smi_link_arm(struct smi_thread *t, const uint64_t *holder, enum smf_link_op op)
{
    SMI_STORE(&t->slot->link.op, smi_link_ref_of(t, holder) | op);
}

static inline void smi_link_disarm(struct smi_thread *t)
{
    SMI_STORE(&t->slot->link.op, SMF_LINK_NONE);
}

/* *holder := what is on top, which leaves the stack. */
static inline uint64_t smi_link_pop(struct smi_thread *t, uint64_t *holder, struct smi_top *top)
{
    t->slot->link.dest = smi_link_ref_of(t, top->word);
    smi_link_arm(t, holder, SMF_LINK_SHORT_TAKE); /* kill from here: undone */
    smi_link_store(holder, top->ref);             /* kill from here: finished */
    uint64_t ref = smi_pop_word(top);
    smi_link_disarm(t);
    return ref;
}

/* The same with `bits` beside the ref in *holder; the block that *holder named before enters `old`,
 * a bag or another open stack; old_ref 0: there is none. */
static inline void smi_link_publish(struct smi_thread *t, uint64_t *holder, uint64_t bits,
                                    struct smi_top *fresh, uint64_t old_ref, struct smi_top *old)
{
    uint64_t ref = fresh->ref | bits;
    t->slot->link.dest = smi_link_ref_of(t, fresh->word);
    if (old_ref != 0) {
        t->slot->link.fresh = smi_link_ref_of(t, old->word + 1);
        smi_link_arm(t, holder, SMF_LINK_SHORT_EXCHANGE); /* kill from here: undone */
        smi_push_word(old, old_ref);
    } else {
        smi_link_arm(t, holder, SMF_LINK_SHORT_TAKE);
    }
    smi_link_store(holder, ref); /* kill from here: finished */
    smi_pop_word(fresh);
    smi_link_disarm(t);
}

/* *holder, which is `ref`, enters the stack; *holder := 0. */
static inline void smi_link_push(struct smi_thread *t, uint64_t *holder, uint64_t ref,
                                 struct smi_top *top)
{
    t->slot->link.dest = smi_link_ref_of(t, top->word + 1);
    smi_link_arm(t, holder, SMF_LINK_SHORT_GIVE); /* kill from here: nothing happened */
    smi_push_word(top, ref);                    /* kill from here: finished */
    smi_link_store(holder, 0);
    smi_link_disarm(t);
}

/* *holder, which is `ref`, enters the stack `old`; what is on top of the stack `fresh`, another
 * one, takes its place. */
static inline uint64_t smi_link_exchange(struct smi_thread *t, uint64_t *holder, uint64_t ref,
                                         struct smi_top *fresh, struct smi_top *old)
{
    t->slot->link.dest = smi_link_ref_of(t, fresh->word);
    t->slot->link.fresh = smi_link_ref_of(t, old->word + 1);
    smi_link_arm(t, holder, SMF_LINK_SHORT_EXCHANGE); /* kill from here: undone */
    smi_push_word(old, ref);
    smi_link_store(holder, fresh->ref); /* kill from here: finished */
    uint64_t moved = smi_pop_word(fresh);
    smi_link_disarm(t);
    return moved;
}

#endif
