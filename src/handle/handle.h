/* SPDX-License-Identifier: MIT */
/*
 * handle.h - the handle of an open heap in this process, and the way from refs and pages to
 * addresses.
 *
 * Nothing in the handle is a truth about the heap: it caches where things are mapped. Two tables
 * lead from a granule (1 MiB of the file) to its chunk's page words and descriptors in one load. An
 * entry is filled at first use from the chunk directory and never becomes wrong, because a chunk
 * keeps its bounds for ever; whether a page exists *now* is a comparison with smf_state.size.
 */
#ifndef SMI_HANDLE_H
#define SMI_HANDLE_H

#include <pthread.h>
#include <stdint.h>

#include <shmalloc/shmalloc.h>

#include "format/layout.h"
#include "format/sizeclass.h"
#include "platform/debug.h"
#include "platform/error.h"
#include "platform/store.h"

struct smi_thread;

/* How what a dead owner of a lock left half done is repaired: a row for each range of locks, by the
 * module whose words they guard. The lock is held, or nobody else is attached. */
struct smi_repair_row {
    uint32_t first, last; /* locks, as in enum smf_lock_index */
    int (*repair)(shmalloc_heap *heap, uint32_t index);
};
#define SMI_REPAIRS 8

struct shmalloc_heap {
    /* First OS page: wiped in a forked child, however it was forked. The epoch is unique for each
     * attachment of each handle in this process, so a thread's context that carries another one
     * belongs to another heap or to the parent. 0: not attached (yet, or any more). */
    uint64_t epoch;
    uint32_t settling;        /* 1: a thread of the child is in smi_fork_attach() */
    uint32_t reopening;       /* 1: a thread is in smi_heap_descriptor(), making the descriptor
                                 anew */
    uint8_t wiped[4096 - sizeof(uint64_t) - 2 * sizeof(uint32_t)];

    uint8_t *base;     /* of the mapping */
    uint64_t reserved; /* its length, bytes; the file may be shorter, the heap not longer */
    uint64_t backed;   /* bytes of it that the file was seen to have */
    struct smf_areas areas; /* a copy, as it was validated */
    int fd;                 /* -1: none, as in a private heap; ask smi_heap_descriptor() or _look()
                               before each use */
    uint32_t mark;          /* of the description, smi_os_mark() */
    int is_private;         /* memory of this process alone, in a child a copy of it; no file */
    uint64_t allowed;       /* private: bytes that can be touched */
    uint64_t tables_open;   /* private: bytes of each table that can be stored to */
    int stays;              /* is not left when the process ends: there will be calls until the last
                               instruction */
    int read_only;
    int closed;
    unsigned handles; /* opens minus closes */
    uint64_t device, inode;
    uint8_t boot_id[16]; /* the machine's, when the heap was opened; zeros if nobody asked */
    const char *path; /* absolute if it could be had; "/proc/self/fd/N" for heaps opened by
                         descriptor */
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
    struct smi_repair_row repairs[SMI_REPAIRS]; /* ends where `repair` is NULL */
    /* smi_adopt_settle() */
    int (*settle_slot)(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);
    int hardened;

    uintptr_t *words; /* by granule: address that page 0's word would have; 0 = not looked up yet */
    uintptr_t *descriptors; /* by granule: the same for descriptors */
    uint64_t *known;        /* by page: what the fast paths know of it (pagetable.h); NULL: nothing,
                               ever */
    uint64_t known_length;  /* bytes of that table which may be written */
    uint64_t reshaped_seen; /* the highest smf_state.reshaped that this process saw */

    int process_index;   /* -1: not attached */
    void *liveness;      /* the mapping that pins this process's lock byte */
    uint64_t generation; /* at attach */
    struct smi_thread *contexts; /* of all threads of this process */
    unsigned context_count;      /* their number */
    unsigned arriving;           /* threads that make themselves a context, which is not counted
                                    yet */
    unsigned half_settled;       /* private: a forked child's first call brings the copy to rest */
    struct smi_thread *shared;   /* private: of those threads that have none of their own; NULL not
                                    made yet */
    pthread_mutex_t shared_lock; /* recursive; who uses `shared` holds it */
    struct shmalloc_heap *next;  /* in the process's list of heaps */

    uint64_t looked_at; /* smi_os_tick of the last look for dead processes and stale free memory */
    uint64_t waited_at; /* the same, of a look for dead processes by a thread that waits */
    uint64_t decayed;   /* smf_page_heap.gives as of the last complete look for stale free memory */
    uint64_t gives_before; /* and when this process attached */
    int adopt_wanted;   /* somebody died holding a lock */
    int is_older;       /* its thread slots are of an older format: until it is converted */
    int unchecked;      /* a recovery did not come to its end: closing leaves the mark as it is */
    int huge_pages;     /* were asked for */
    uint64_t prefaulted; /* bytes, at the last open that asked for it */

    char path_text[4096]; /* last, because it is seldom touched */
};

/* of a private heap's base, and so the most of its blocks */
#define SMI_PRIVATE_ALIGNMENT (1ull << 30)

_Static_assert(offsetof(struct shmalloc_heap, base) == 4096, "what is wiped is one OS page");

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

/* See that the tables of a private heap of `size` bytes can be filled; others' always can. 0 or a
 * negated errno. */
int smi_heap_open_tables(shmalloc_heap *heap, uint64_t size);

/* Bytes of each of the two tables, which are one mapping. */
uint64_t smi_handle_table_bytes(const shmalloc_heap *heap);

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
    /* acquire: pairs with the release in smi_heap_map_granule; the descriptors' entry is there
     * too */
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
               ? (struct smf_page *)SMI_LOAD(&heap->descriptors[page >> SMI_GRANULE_PAGES_SHIFT]) +
                     page
               : NULL;
}

/* The same of a page that the operation under way has found by one of those, so that the tables
 * have it. They stay although the size that is in the file may be damaged meanwhile. */
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

/* Has another process made the heap longer than this one has addresses for? What lies there cannot
 * be looked at, so spans cannot be changed here and a contradiction is no damage. */
int smi_heap_is_outgrown(const shmalloc_heap *heap);
/* SHMALLOC_EADDRESS, with a message. */
int smi_heap_outgrown(const shmalloc_heap *heap);

/* SHMALLOC_EDOUBLEFREE, with a message: the program has freed the block at `ref` before. */
int smi_heap_double_free(const shmalloc_heap *heap, uint64_t ref);

/* 0, or why the heap may not be changed: read-only, closed, poisoned. */
int smi_heap_writable(shmalloc_heap *heap);

/* The descriptor still is the one that the library opened, or is made so again (a daemon may have
 * closed it). One system call: the mark. That is enough for locks, syncs and reading. */
int smi_heap_descriptor(shmalloc_heap *heap);

/* The same, and what the file is: before the file is written to, cut or punched, for a mark can be
 * another's by chance. Not for private heaps. */
struct smi_file_info;
int smi_heap_look(shmalloc_heap *heap, struct smi_file_info *out);

/* Another description of the heap's file, to be closed; or a negative code with a message. */
int smi_heap_reopen(shmalloc_heap *heap);

/* `fd`, such a description, is the heap's from now on; what was its own before is closed. */
int smi_heap_replace_descriptor(shmalloc_heap *heap, int fd);

/* ---- handles ---- */

/* An empty handle; NULL with a message. `path` is for that. */
shmalloc_heap *smi_handle_new(const char *path);
/* A handle of the heap in the file `fd`, of which `info` is; the descriptor is the handle's if this
 * does not fail. */
int smi_handle_make(int fd, const struct smi_file_info *info, const char *path, int read_only,
                    shmalloc_heap **out);
/* The areas of the heap that is mapped. */
void smi_handle_set_areas(shmalloc_heap *heap, const struct smf_header *header);
/* The end of a handle that nobody has, or of NULL. */
void smi_handle_drop(shmalloc_heap *heap);
/* The end of one that the program had: a thread that comes with it later gets an answer instead of
 * a fault. The registry lock is held. */
void smi_handle_bury(shmalloc_heap *heap);

#endif
