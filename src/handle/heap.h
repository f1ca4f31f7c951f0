/* SPDX-License-Identifier: MIT */
/*
 * heap.h - the handle of an open heap in this process, and the way from refs and pages to addresses.
 *
 * Nothing in the handle is a truth about the heap: it caches where things are mapped. Two tables lead
 * from a granule (1 MiB of the file) to its chunk's page words and descriptors in one load. An entry is
 * filled at first use from the chunk directory and never becomes wrong, because a chunk keeps its
 * bounds for ever; whether a page exists *now* is a comparison with smf_state.size.
 */
#ifndef SMI_HEAP_H
#define SMI_HEAP_H

#include <pthread.h>
#include <stdint.h>

#include <shmalloc/shmalloc.h>

#include "platform/debug.h"
#include "platform/error.h"
#include "format/layout.h"
#include "format/sizeclass.h"

/* Loads and stores of words that other processes see, or that a kill may cut between. Stores stay in
 * program order: on one processor a killed process's stores all arrive, so the compiler is the only
 * one to be kept from reordering. */
#define SMI_BARRIER() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#define SMI_LOAD(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define SMI_STORE(p, v)                                                                                \
    do {                                                                                               \
        SMI_BARRIER();                                                                                 \
        __atomic_store_n((p), (v), __ATOMIC_RELAXED);                                                  \
        SMI_BARRIER();                                                                                 \
    } while (0)

struct smi_thread;

/* How what a dead owner of a lock left half done is repaired: a row for each range of locks, by the module whose words
 * they guard. The lock is held, or nobody else is attached. */
struct smi_repair {
    uint32_t first, last; /* locks, as in enum smf_lock_index */
    int (*repair)(shmalloc_heap *heap, uint32_t index);
};
#define SMI_REPAIRS 8

struct shmalloc_heap {
    /* First OS page: wiped in a forked child, however it was forked. The epoch is unique for each
     * attachment of each handle in this process, so a thread's context that carries another one belongs
     * to another heap or to the parent. 0: not attached (yet, or any more). */
    uint64_t epoch;
    uint32_t gate;            /* 1: a thread of the child is in attach_child() */
    uint32_t reopening;       /* 1: a thread is in smi_heap_descriptor(), making the descriptor anew */
    uint8_t wiped[4096 - sizeof(uint64_t) - 2 * sizeof(uint32_t)];

    uint8_t *base;     /* of the mapping */
    uint64_t reserved; /* its length, bytes; the file may be shorter, the heap not longer */
    uint64_t backed;   /* bytes of it that the file was seen to have */
    struct smf_areas areas; /* a copy, as it was validated */
    int fd;                 /* -1: none, as in a private heap; ask smi_heap_descriptor() or _look() before each use */
    uint32_t mark;          /* of the description, smi_os_mark() */
    int is_private;         /* memory of this process alone, in a child a copy of it; no file */
    uint64_t allowed;       /* private: bytes that can be touched */
    uint64_t tables_open;   /* private: bytes of each table that can be stored to */
    int stays;              /* is not left when the process ends: there will be calls until the last instruction */
    int read_only;
    int closed;
    unsigned handles; /* opens minus closes */
    uint64_t device, inode;
    uint8_t boot_id[16]; /* the machine's, when the heap was opened; zeros if nobody asked */
    const char *path; /* absolute if it could be had; "/proc/self/fd/N" for heaps opened by descriptor */
    struct smf_header *header;
    struct smf_state *state;
    struct smf_runtime *runtime;
    struct smf_process *processes;
    struct smf_lock *locks;
    struct smf_chunk *directory;
    struct smf_page_heap *page_heap;
    struct smf_roots *roots;
    uint64_t *threads;
    struct smf_central *central;
    uint32_t arena_count;
    uint32_t lock_count;
    struct smi_repair repairs[SMI_REPAIRS]; /* ends where `repair` is NULL */
    int hardened;

    uintptr_t *words; /* by granule: address that page 0's word would have; 0 = not looked up yet */
    uintptr_t *descriptors; /* by granule: the same for descriptors */
    uint64_t *known;        /* by page: what the fast paths know of it (pagetable.h); NULL: nothing, ever */
    uint64_t known_length;  /* bytes of that table which may be written */
    uint64_t reshaped_seen; /* the highest smf_state.reshaped that this process saw */

    int process_index;   /* -1: not attached */
    void *liveness;      /* the mapping that pins this process's lock byte */
    uint64_t generation; /* at attach */
    struct smi_thread *contexts; /* of all threads of this process */
    unsigned context_count;      /* their number */
    unsigned arriving;           /* threads that make themselves a context, which is not counted yet */
    unsigned settling;           /* private: a forked child's first call brings the copy to rest */
    struct smi_thread *shared;   /* private: of those threads that have none of their own; NULL not made yet */
    pthread_mutex_t shared_lock; /* recursive; who uses `shared` holds it */
    struct shmalloc_heap *next;  /* in the process's list of heaps */

    uint64_t looked_at; /* smi_os_tick of the last look for dead processes and stale free memory */
    uint64_t decayed;   /* smf_page_heap.gives as of the last complete look for stale free memory */
    int adopt_wanted;   /* somebody died holding a lock */
    int is_older;       /* its thread slots are of an older format: until it is converted */
    int unchecked;      /* a recovery did not come to its end: closing leaves the mark as it is */
    int huge_pages;     /* were asked for */
    uint64_t prefaulted; /* bytes, at the last open that asked for it */

    char path_text[4096]; /* last, because it is seldom touched */
};

#define SMI_PRIVATE_ALIGNMENT (1ull << 30) /* of a private heap's base, and so the most of its blocks */

_Static_assert(offsetof(struct shmalloc_heap, base) == 4096, "what is wiped is one OS page");

/* A slot stack of one class of a thread: what the long way needs. The truth is `array`, in the file. */
struct smi_bin {
    uint64_t *array;   /* word 0 is the count or SMF_OPEN, then refs */
    uint64_t limit;    /* slots it may hold; what a corrupt count is compared with */
    uint64_t capacity; /* of the array */
    uint32_t batch;    /* slots that the next refill asks for */
    uint32_t is_clear; /* all words above the count are 0, or were a stack's since */
};

/* What the fast paths need of it, half a cache line. While the stack is open, `word` is the address of the ref on top,
 * or of word 0 when there is none; the words above it are 0. While it is closed, or where there is none, `ref` is 0 and
 * `end` says that there is no room. */
struct smi_top {
    _Alignas(32) uint64_t *word;
    uint64_t ref;     /* what is in it */
    uint64_t inverse; /* 2^64 divided by a slot's size, rounded up */
    uint32_t length;  /* of all slots of a slab, bytes */
    uint32_t end;     /* address of the last word that may be used, low half */
};
_Static_assert(sizeof(struct smi_top) == 1 << SMI_TOP_SHIFT, "sizeclass.h");

/* What a thread needs to use a heap. Contexts are made SMI_CONTEXTS_AT_ONCE at a time, in one mapping: first a page of
 * each, which the kernel wipes in a forked child, however it was forked, then, as far behind it for all, the rest. So
 * the fast paths compare `serves` and know that the heap is open and the process not forked. Contexts of private heaps are
 * not wiped: the child has its own copy of what its own thread may touch on the fast paths. */
#define SMI_CONTEXT_PAGE 4096u
#define SMI_CONTEXTS_AT_ONCE 16u
struct smi_thread {
    /* Wiped, but for private heaps. By the kind in a page's word; the first stays all zeros, and no slot begins in it. */
    _Alignas(64) struct smi_top top_of_kind[SMF_CLASSES + 1];
    const shmalloc_heap *serves; /* the heap while the fast paths may be used; in hardened heaps &smi_serves_none */
    uint8_t *base;
    uint64_t reserved;        /* of the heap's, as is `base` */
    uint64_t covered;         /* refs below it have an entry in `known` */
    const uint64_t *known;    /* heap->known, to be indexed by address */
    uint8_t unused[SMI_CONTEXT_PAGE - (SMF_CLASSES + 1) * sizeof(struct smi_top) - 5 * 8];
    uint8_t others[(SMI_CONTEXTS_AT_ONCE - 1) * SMI_CONTEXT_PAGE];

    /* Not wiped. */
    struct smf_thread *slot;
    shmalloc_heap *heap;
    uint64_t true_epoch; /* heap->epoch at attach */
    int is_private;      /* of a private heap, also when that was closed */
    uint32_t slot_index;
    uint32_t arena;
    uint64_t span_pages; /* that it keeps at most: the sum of its entries in slot->spans */
    uint32_t next_span;  /* entry whose block goes next when there is no room */
    uint32_t span_calls; /* large blocks that never took the long way; now and then one does */
    uint64_t spans_at;   /* smi_os_tick when kept blocks that nobody wanted went back last, and */
    uint64_t spans_seen[SMF_SPANS]; /* what was kept then */
    uint64_t room;       /* bytes of slots its arrays may still grow by */
    struct smi_thread *next_in_thread; /* this thread's contexts of other heaps; or the next in the pool */
    struct smi_thread *next_in_heap;
    struct smi_bin bins[SMF_CLASSES];
};
_Static_assert(offsetof(struct smi_thread, slot) == SMI_CONTEXTS_AT_ONCE * SMI_CONTEXT_PAGE,
               "behind all pages that are wiped");
_Static_assert(sizeof(struct smi_thread) - offsetof(struct smi_thread, slot) <= SMI_CONTEXT_PAGE, "one page each");

/* Neither a heap nor NULL. */
extern const char smi_serves_none;

/* The stack of class k. */
static inline struct smi_bin *smi_bin(struct smi_thread *t, uint32_t k)
{
    return &t->bins[k];
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

/* ---- addresses ---- */

/* How much of `size` bytes the mapping and the file have; the file is asked. */
uint64_t smi_heap_backed(const shmalloc_heap *heap, uint64_t size);

/* Bytes of the heap; a damaged size reaches no further than the file. */
static inline uint64_t smi_size(const shmalloc_heap *heap)
{
    uint64_t size = SMI_LOAD(&heap->state->size);
    return SMI_LIKELY(size <= SMI_LOAD(&heap->backed)) ? size : smi_heap_backed(heap, size);
}

static inline void *smi_at(const shmalloc_heap *heap, uint64_t ref)
{
    return heap->base + ref;
}

/* Does [ref, ref + len) lie inside the heap, behind the fixed areas? */
static inline int smi_in_heap(const shmalloc_heap *heap, uint64_t ref, uint64_t len)
{
    uint64_t size = smi_size(heap);
    return ref >= heap->areas.end && ref < size && len <= size - ref;
}

/* Does an address lie in this heap's part of memory? Then *ref is set. */
static inline int smi_ref_of(const shmalloc_heap *heap, const void *address, uint64_t *ref)
{
    *ref = (uint64_t)((uintptr_t)address - (uintptr_t)heap->base);
    return *ref < smi_size(heap);
}

/* See that the tables of a private heap of `size` bytes can be filled; others' always can. 0 or a negated errno. */
int smi_heap_open_tables(shmalloc_heap *heap, uint64_t size);

/* A thread slot by its number in the table; NULL when there is none. */
struct smf_thread *smi_thread_slot(const shmalloc_heap *heap, uint32_t index);

/* Fill the tables' entries of a granule from the directory; 0 when no chunk has it. */
int smi_heap_map_granule(const shmalloc_heap *heap, uint64_t granule);

#define SMI_GRANULE_PAGES_SHIFT (SMF_GRANULE_SHIFT - SMF_PAGE_SHIFT)

/* Is the page in a chunk of the heap? Then the tables have it. */
static inline int smi_has_page(const shmalloc_heap *heap, uint64_t page)
{
    uint64_t granule = page >> SMI_GRANULE_PAGES_SHIFT;
    if (SMI_UNLIKELY(page >= smi_size(heap) >> SMF_PAGE_SHIFT))
        return 0;
    /* acquire: pairs with the release in smi_heap_map_granule; the descriptors' entry is there too */
    return SMI_LIKELY(__atomic_load_n(&heap->words[granule], __ATOMIC_ACQUIRE) != 0) ||
           smi_heap_map_granule(heap, granule);
}

/* The word of a page, NULL when no chunk has the page. */
static inline uint16_t *smi_word(const shmalloc_heap *heap, uint64_t page)
{
    return smi_has_page(heap, page)
               ? (uint16_t *)SMI_LOAD(&heap->words[page >> SMI_GRANULE_PAGES_SHIFT]) + page
               : NULL;
}

/* The descriptor of a page, NULL when no chunk has the page. */
static inline struct smf_page *smi_page(const shmalloc_heap *heap, uint64_t page)
{
    return page != 0 && smi_has_page(heap, page)
               ? (struct smf_page *)SMI_LOAD(&heap->descriptors[page >> SMI_GRANULE_PAGES_SHIFT]) + page
               : NULL;
}

/* The same of a page that the operation under way has found by one of those, so that the tables have it. They stay
 * although the size that is in the file may be damaged meanwhile. */
static inline uint16_t *smi_known_word(const shmalloc_heap *heap, uint64_t page)
{
    return (uint16_t *)SMI_LOAD(&heap->words[page >> SMI_GRANULE_PAGES_SHIFT]) + page;
}

static inline struct smf_page *smi_known_page(const shmalloc_heap *heap, uint64_t page)
{
    return (struct smf_page *)SMI_LOAD(&heap->descriptors[page >> SMI_GRANULE_PAGES_SHIFT]) + page;
}

/* ---- state of the heap ---- */

/* Stop all mutation: the file contradicts itself. Returns SHMALLOC_ECORRUPT with a message. */
int smi_heap_poison(shmalloc_heap *heap, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Has another process made the heap longer than this one has addresses for? What lies there cannot be looked at, so
 * spans cannot be changed here and a contradiction is no damage. */
int smi_heap_is_outgrown(const shmalloc_heap *heap);
/* SHMALLOC_EADDRESS, with a message. */
int smi_heap_outgrown(const shmalloc_heap *heap);

/* SHMALLOC_EDOUBLEFREE, with a message: the program has freed the block at `ref` before. */
int smi_heap_double_free(const shmalloc_heap *heap, uint64_t ref);

/* 0, or why the heap may not be changed: read-only, closed, poisoned. */
int smi_heap_writable(shmalloc_heap *heap);

/* The descriptor still is the one that the library opened, or is made so again (a daemon may have closed it). One
 * system call: the mark. That is enough for locks, syncs and reading. */
int smi_heap_descriptor(shmalloc_heap *heap);

/* The same, and what the file is: before the file is written to, cut or punched, for a mark can be another's by chance.
 * Not for private heaps. */
struct smi_file_info;
int smi_heap_look(shmalloc_heap *heap, struct smi_file_info *out);

/* The process ends, and smi_process_may_leave(): leave the heap as closing does, but the mapping stays, so that what lies
 * there can be read to the last. A call that changes the heap would attach anew. */
int smi_heap_leave(shmalloc_heap *heap);

/* Another description of the heap's file, to be closed; or a negative code with a message. */
int smi_heap_reopen(shmalloc_heap *heap);

/* `fd`, such a description, is the heap's from now on; what was its own before is closed. */
int smi_heap_replace_descriptor(shmalloc_heap *heap, int fd);

#endif
