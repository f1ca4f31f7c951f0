/* SPDX-License-Identifier: MIT */
/*
 * retire.h - blocks that no word names any more and that somebody may still read: they wait in the
 * bags of the thread that unlinked them, until no section is left that may have found them
 * (handle/readers.h).
 *
 * What a structure does to replace a block by another, under its own lock:
 *
 *     rc = smi_fresh_make(t, size, &fresh);          the block to be; nobody has it yet
 *     fill the `size` bytes at smi_at(heap, fresh.ref)
 *     rc = smi_fresh_publish(t, &fresh, word, bits, old);
 *
 * The last is one crash-atomic step: *word := fresh.ref | bits, which was `old` with any bits, and
 * `old` is in the bag.
 */
#ifndef SMI_RETIRE_H
#define SMI_RETIRE_H

#include "slots/fast.h"

#define SMI_BAG_BYTES (1ull << 20)  /* a bag is closed when it has so many, */
#define SMI_RETIRED_AT_ONCE 65536u  /* and a larger block than this is not kept waiting */

/* Blocks that close a bag: up to SMF_BAG, which it is but in tests. For threads' next bags. */
extern uint32_t smi_bag_limit;

/* ---- retiring ---- */

/* Is there a bag with room for a block, which is not the one retired last? */
static inline int smi_bag_takes(const struct smi_thread *t, uint64_t ref)
{
    return smi_top_takes(&t->bag, ref) && SMI_LIKELY(t->bag_bytes < SMI_BAG_BYTES);
}

/* See that the thread's bag has room: the one that is full is closed, and the other one emptied.
 * Frees blocks. */
int smi_retire_make_room(struct smi_thread *t);

/* Retire the block `ref`; `holder`, if not NULL, a word in the heap that names it, becomes 0 in the
 * same crash-atomic step. SHMALLOC_EBADREF, _EDOUBLEFREE, what the page heap answers when there is
 * no room for bags, and -ENOTSUP: both bags are full, and this process may not empty one, for want
 * of a membarrier. */
int smi_retire(struct smi_thread *t, uint64_t ref, uint64_t *holder);

/* Free all that the thread has retired: the number of blocks, 0 also where this process may not; or
 * a negative code. */
int smi_retire_flush(struct smi_thread *t);

/* The slot of a thread that is gone: its section is over, what it retired is freed and its limbo
 * given back. RECOVER held; the link record is resolved. `*most` counts down what is freed. May be
 * killed and run again. 1: this process may not free what waits, because it has no membarrier and
 * others have readers. */
int smi_retire_release(shmalloc_heap *heap, struct smf_thread *slot, uint64_t *most);

/* ---- publishing ---- */

/* A block to be: still on top of the thread's stack of its class, or, if it is large, named by
 * `scratch`. Until it is published or dropped its thread makes no other call on the heap. */
struct smi_fresh {
    uint64_t ref;
    uint32_t k; /* class; SMF_CLASSES: large */
};

/* Make one of at least `size` bytes, contents indeterminate, and room in the bag. */
int smi_fresh_make_slowly(struct smi_thread *t, size_t size, struct smi_fresh *out);
static inline int smi_fresh_make(struct smi_thread *t, size_t size, struct smi_fresh *out)
{
    struct smi_top *top = smi_bag_takes(t, 0) ? smi_top_to_fill(t->heap, t, size) : NULL;
    if (SMI_UNLIKELY(!top))
        return smi_fresh_make_slowly(t, size, out);
    *out = (struct smi_fresh){top->ref, (uint32_t)(top - t->top_of_kind) - 1};
    return 0;
}

/* Nobody wants it. */
void smi_fresh_drop(struct smi_thread *t, const struct smi_fresh *fresh);

/* *holder, a word in the heap, gets the block, with `bits` from SMF_MAX_SIZE up beside its ref;
 * `old`, the block that *holder named before, is retired; 0: none. All in one crash-atomic step.
 * SHMALLOC_EBADREF or _EDOUBLEFREE of `old`, and nothing happened: the fresh block is still to be
 * dropped. */
int smi_fresh_publish_slowly(struct smi_thread *t, const struct smi_fresh *fresh, uint64_t *holder,
                             uint64_t bits, uint64_t old);
static inline int smi_fresh_publish(struct smi_thread *t, const struct smi_fresh *fresh,
                                    uint64_t *holder, uint64_t bits, uint64_t old)
{
    struct smi_top *top = &t->top_of_kind[1 + fresh->k];
    if (SMI_UNLIKELY(fresh->k >= SMF_CLASSES || top->ref != fresh->ref || !smi_serves(t, t->heap)))
        return smi_fresh_publish_slowly(t, fresh, holder, bits, old);
    if (old != 0) {
        const struct smi_top *class = smi_top_of_any(t, old);
        if (SMI_UNLIKELY(!class || !smi_bag_takes(t, old)))
            return smi_fresh_publish_slowly(t, fresh, holder, bits, old);
        t->bag_bytes += smi_slot_bytes(t, class);
    }
    smi_link_publish(t, holder, bits, top, old, &t->bag);
    return 0;
}

#endif
