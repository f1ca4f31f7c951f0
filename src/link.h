/* SPDX-License-Identifier: MIT */
/*
 * link.h - the link record: a store to a word in the heap and the cache's counts that go with it, as one step.
 *
 * The record says what is about to happen; storing `op` arms it. Whoever releases the slot of a thread that died
 * meanwhile finishes or undoes it (smi_cache_resolve_link). In line, because the fast paths do this.
 */
#ifndef SMI_LINK_H
#define SMI_LINK_H

#include "heap.h"

/* One side of a linked step: a ref and the cache array it leaves or enters; array NULL: the thread's scratch, or
 * a large block. */
struct smi_side {
    uint64_t ref;
    uint64_t *array;
};

static inline uint64_t smi_link_ref_of(const struct smi_thread *t, const uint64_t *word)
{
    return (uint64_t)((const uint8_t *)word - t->base);
}

/* *dest := fresh.ref together with the counts that go with it. A large old block stays for the caller to give
 * back with the record still armed; old.ref 0: there is none. The stacks have been seen to. */
static inline void smi_link_take(struct smi_thread *t, uint64_t *dest, struct smi_side fresh, struct smi_side old)
{
    struct smf_link *link = &t->slot->link;
    uint64_t fresh_count = fresh.array ? fresh.array[0] : 0, old_count = old.array ? old.array[0] : 0;
    link->dest = smi_link_ref_of(t, dest);
    link->fresh = fresh.ref;
    link->fresh_array = fresh.array ? smi_link_ref_of(t, fresh.array) : 0;
    link->fresh_count = fresh_count;
    link->old = old.ref;
    if (old.ref != 0) {
        link->old_array = old.array ? smi_link_ref_of(t, old.array) : 0;
        link->old_count = old_count;
    }
    SMI_STORE(&link->op, SMF_LINK_TAKE); /* kill from here: undone */
    SMI_STORE(dest, fresh.ref);          /* kill from here: finished */
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

/* *dest := 0 and the slot onto its stack, likewise. */
static inline void smi_link_give(struct smi_thread *t, uint64_t *dest, struct smi_side old)
{
    struct smf_link *link = &t->slot->link;
    uint64_t count = old.array[0];
    link->dest = smi_link_ref_of(t, dest);
    link->old = old.ref;
    link->old_array = smi_link_ref_of(t, old.array);
    link->old_count = count;
    SMI_STORE(&link->op, SMF_LINK_GIVE); /* kill from here: finished */
    SMI_STORE(dest, 0);
    SMI_STORE(&old.array[count + 1], old.ref);
    SMI_STORE(&old.array[0], count + 1);
    SMI_STORE(&link->op, SMF_LINK_NONE);
}

#endif
