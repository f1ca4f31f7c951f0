/* SPDX-License-Identifier: MIT */
/* context.h - a thread's use of a heap, as the fast paths and the stacks of slots see it. */
#ifndef SMI_CONTEXT_H
#define SMI_CONTEXT_H

#include "handle/handle.h"

/* A slot stack of one class of a thread: what the long way needs. The truth is `array`, in the
 * file. */
struct smi_stack {
    uint64_t *array;   /* word 0 is the count or SMF_OPEN, then refs */
    uint64_t limit;    /* slots it may hold; what a corrupt count is compared with */
    uint64_t capacity; /* of the array */
    uint32_t batch;    /* slots that the next refill asks for */
    uint32_t is_clear; /* all words above the count are 0, or were a stack's since */
};

/* What the fast paths need of it, half a cache line. While the stack is open, `word` is the address
 * of the ref on top, or of word 0 when there is none; the words above it are 0. While it is closed,
 * or where there is none, `ref` is 0 and `end` says that there is no room. */
struct smi_top {
    _Alignas(32) uint64_t *word;
    uint64_t ref;     /* what is in it */
    uint64_t inverse; /* 2^64 divided by a slot's size, rounded up */
    uint32_t length;  /* of all slots of a slab, bytes */
    uint32_t end;     /* address of the last word that may be used, low half */
};
_Static_assert(sizeof(struct smi_top) == 1 << SMI_TOP_SHIFT, "sizeclass.h");

/* What a thread needs to use a heap. Contexts are made SMI_CONTEXTS_AT_ONCE at a time, in one
 * mapping: first a page of each, which the kernel wipes in a forked child, however it was forked,
 * then, as far behind it for all, the rest. So the fast paths compare `serves` and know that the
 * heap is open and the process not forked. Contexts of private heaps are not wiped: the child has
 * its own copy of what its own thread may touch on the fast paths. */
#define SMI_CONTEXT_PAGE 4096u
#define SMI_CONTEXTS_AT_ONCE 16u
struct smi_thread {
    /* Wiped, but for private heaps. By the kind in a page's word; the first stays all zeros, and no
     * slot begins in it. */
    _Alignas(64) struct smi_top top_of_kind[SMF_CLASSES + 1];
    const shmalloc_heap *serves; /* the heap while the fast paths may be used; in hardened heaps
                                    &smi_serves_none */
    uint8_t *base;
    uint64_t reserved;        /* of the heap's, as is `base` */
    uint64_t covered;         /* refs below it have an entry in `known` */
    const uint64_t *known;    /* heap->known, to be indexed by address */
    uint16_t top_by_8[SMI_MOST_BY_8 / 8 + 1]; /* smi_top_by_8: here it costs a forked child no page
                                                 more */
    uint64_t *section;        /* &slot->section_epoch, once this thread has begun a read section;
                                 `ousted` follows it */
    uint64_t section_began;   /* what is stored there */
    uint32_t section_depth;   /* begins minus ends */
    uint32_t section_fences;  /* this process cannot be reached by others' membarrier */
    uint64_t ousts;           /* sections in a row that ended ousted */
    uint64_t bag_bytes;       /* of what is in the bag that takes */
    struct smi_top bag;       /* that bag, as if it were an open stack; all 0: there is none */
    _Alignas(SMI_CONTEXT_PAGE) uint8_t others[(SMI_CONTEXTS_AT_ONCE - 1) * SMI_CONTEXT_PAGE];

    /* Not wiped. */
    struct smf_thread *slot;
    shmalloc_heap *heap;
    uint64_t true_epoch; /* heap->epoch at attach */
    int is_private;      /* of a private heap, also when that was closed */
    uint32_t slot_index;
    uint32_t arena;
    uint64_t name;       /* of the thread, in the owner's word of user mutexes: slot + 1, serial */
    uint64_t held_count; /* user mutexes that it holds; the first of them are noted in the slot */
    uint64_t deaths_seen; /* smf_state.adoptions, as of the last wait that it ended */
    uint64_t span_pages; /* that it keeps at most: the sum of its entries in slot->spans */
    uint32_t next_span;  /* entry whose block goes next when there is no room */
    uint32_t span_calls; /* large blocks that never took the long way; now and then one does */
    uint64_t spans_at;   /* smi_os_tick when kept blocks that nobody wanted went back last, and */
    uint64_t spans_seen[SMF_SPANS]; /* what was kept then */
    struct smi_tx *tx;   /* the private part of its transactions (tx/tx.h); NULL: it has had none */
    uint64_t room;       /* bytes of slots its arrays may still grow by */
    struct smi_thread *next_in_thread; /* this thread's contexts of other heaps; or the next in the
                                          pool */
    struct smi_thread *next_in_heap;
    struct smi_stack stacks[SMF_CLASSES];
};
_Static_assert(offsetof(struct smi_thread, others) == SMI_CONTEXT_PAGE,
               "what is wiped is one page");
_Static_assert(offsetof(struct smi_thread, slot) == SMI_CONTEXTS_AT_ONCE * SMI_CONTEXT_PAGE,
               "behind all pages that are wiped");
_Static_assert(sizeof(struct smi_thread) - offsetof(struct smi_thread, slot) <= SMI_CONTEXT_PAGE,
               "one page each");

/* Neither a heap nor NULL. */
extern const char smi_serves_none;
#define SMI_SERVES_NONE ((const shmalloc_heap *)(const void *)&smi_serves_none)

/* The context of no heap. */
extern struct smi_thread smi_nobody;

/* The stack of class k. */
static inline struct smi_stack *smi_stack_of(struct smi_thread *t, uint32_t k)
{
    return &t->stacks[k];
}

static inline struct smi_top *smi_top(struct smi_thread *t, uint32_t k)
{
    return &t->top_of_kind[1 + k];
}

static inline const struct smf_state *smi_state_of(const struct smi_thread *t)
{
    return (const struct smf_state *)(const void *)(t->base + SMF_STATE_OFFSET);
}

/* The context the calling thread used last; never NULL. */
extern _Thread_local struct smi_thread *smi_current __attribute__((tls_model("initial-exec")));

#endif
