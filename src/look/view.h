/* SPDX-License-Identifier: MIT */
/*
 * view.h - read-only sight of a heap: this process's mapping, or a file read with pread.
 *
 * Check, statistics, block iteration and shmalloc-inspect see a heap through a view, so that they
 * run alike on a live heap, on a file in use by others and on a damaged file. A view copies what is
 * asked for, 64 KiB at a time, into private memory: what was seen once does not change under the
 * reader, and it can be put into the state that repair would leave (smi_view_settle) without a
 * store to the heap. Every access names a range; a range outside the file is NULL, never a fault.
 */
#ifndef SMI_VIEW_H
#define SMI_VIEW_H

#include <shmalloc/shmalloc.h>

#include "format/entry.h"
#include "format/outcome.h"

#define SMI_VIEW_BLOCK (1ull << 16) /* bytes that are copied at once */

struct smi_view {
    const char *path;         /* for messages */
    uint64_t file_size;       /* bytes that can be read */
    uint64_t missing;         /* of them, those at the end that the source lacks: they read as
                                 zeros */
    struct smf_header header; /* private copies, validated by whoever made the view */
    struct smf_state state;
    const uint8_t *mapping; /* the source of the copies; NULL: */
    int fd;                 /* they come from here by pread */
    int owns_fd;            /* smi_view_finish closes it */
    int read_error;         /* errno of the first failed pread, 0 none */
    uint8_t *memory;        /* the copies, each at its ref; `reserved` bytes of address space */
    uint64_t reserved;
    uint8_t *loaded;          /* a bit for each block of `memory` that was copied */
    uint64_t bytes_read;      /* since the view was made */
    struct smf_chunk *chunks; /* entries of the directory that are sound, after smi_view_settle */
    uint32_t chunk_count;
    uint32_t in_flight; /* logs and links that smi_view_settle resolved */
    void (*progress)(const struct smi_view *view); /* called after every block; may be NULL */
};

/* One violation: which invariant ("P3"), where (a ref; 0 = the heap as a whole), and what. */
typedef void smi_report_fn(const char *invariant, uint64_t ref, const char *text, void *arg);

/* ---- bytes ---------------------------------------------------------------------------------- */

/* A view of a mapping of `file_size` bytes, all of which must stay backed: a heap that another
 * process may shorten meanwhile (shmalloc_trim) is better seen by smi_view_of_descriptor, where the
 * missing part is NULL and no SIGBUS. Finish it with smi_view_finish. */
void smi_view_of_mapping(struct smi_view *view, const void *base, uint64_t file_size,
                         const char *path);

/* A view of an open file; the descriptor stays the caller's. Header and state are read and
 * validated as far as smi_layout_validate does with `read_only`. Finish it with smi_view_finish
 * also after a failure of validation, when header and state are filled as far as the file goes. */
int smi_view_of_descriptor(struct smi_view *view, int fd, const char *path);

/* The same for the file `path`, opened read-only. */
int smi_view_open(struct smi_view *view, const char *path);

/* Forget what was copied and look again. Codes of smi_view_open. */
int smi_view_reload(struct smi_view *view);

/* Give back the memory and what the view opened. A view that was finished may be finished again. */
void smi_view_finish(struct smi_view *view);

/* `len` bytes at `ref`, or NULL when not all of them lie inside the file (or cannot be read). */
const void *smi_view_at(struct smi_view *view, uint64_t ref, uint64_t len);
/* The same for a record of 8-aligned words that a header names; it may be a damaged one. */
const void *smi_view_record(struct smi_view *view, uint64_t ref, uint64_t len);

/* `len` bytes at `ref` as they are at this moment, past the private copies. 0, or -1 as above. */
int smi_view_read_now(struct smi_view *view, uint64_t ref, uint64_t len, void *out);

/* Change a word of the private copy; the source stays as it is. 0, or -1 when there is no such
 * word. */
int smi_view_store(struct smi_view *view, uint64_t ref, uint64_t value);

/* ---- what the bytes mean -------------------------------------------------------------------- */

/* Bring the private copy to the state that the next open, or the next owner of each lock, would
 * leave: undo every armed log, finish or undo every armed link. Then read the directory. `report`
 * (may be NULL) hears what cannot be resolved. Call it after making or reloading the view and
 * before any function of this section; further calls do nothing. 0, or -ENOMEM. */
int smi_view_settle(struct smi_view *view, smi_report_fn *report, void *arg);

/* Settle a private copy that was changed once more, and read its directory anew. 0, or -ENOMEM. */
int smi_view_settle_again(struct smi_view *view, smi_report_fn *report, void *arg);

/* What the armed link record of a thread slot comes to; as smi_outcome_of_link(). The view need not
 * be settled, but its logs are undone. */
const char *smi_view_link_outcome(struct smi_view *view, uint64_t thread_ref,
                                  const struct smf_thread *thread, struct smi_outcome *out);

/* Descriptor of a page of a chunk, metadata pages too; NULL for pages outside. Its ref; 0. */
uint64_t smi_view_descriptor_ref(const struct smi_view *view, uint64_t page);
const struct smf_page *smi_view_descriptor(struct smi_view *view, uint64_t page);

/* Descriptor of a page that can be handed out; NULL for any other page. */
const struct smf_page *smi_view_page(struct smi_view *view, uint64_t page);

/* Word of a page of a chunk, metadata pages too; 0 for pages outside. */
uint16_t smi_view_word(struct smi_view *view, uint64_t page);

/* A run of pages with one purpose; kind SMF_PAGE_NONE for pages that no descriptor claims. */
struct smi_span {
    uint32_t first_page; /* set to 0 before the first call */
    uint32_t page_count;
    uint32_t chunk; /* index in the directory */
    const struct smf_page *page;
};

/* The next span in ascending order, 0 at the end. Whatever the descriptors say, every page that can
 * be handed out is visited once and spans stay inside their chunk. */
int smi_view_next_span(struct smi_view *view, struct smi_span *span);

/* Bitmap word `w` of a slab whose class was checked; 0 when it cannot be read. */
uint64_t smi_view_slab_bits(struct smi_view *view, uint32_t first_page, unsigned size_class,
                            uint32_t w);

/* Is `page` the first of a slab with a possible class, arena and length? */
int smi_view_is_slab(const struct smi_view *view, const struct smf_page *page);

/* The slot that begins at `ref`: first page of its slab in `*slab`, its number in `*index`. 0, or
 * -1 when no slot of a slab begins there. */
int smi_view_slot(struct smi_view *view, uint64_t ref, uint32_t *slab, uint32_t *index);

/* Thread slot `i`, NULL when there is none or its ref is not possible; its ref in `*ref`. */
const struct smf_thread *smi_view_thread(struct smi_view *view, uint32_t i, uint64_t *ref);

/* The stack of one class of a thread slot. */
struct smi_view_stack {
    uint64_t array;        /* ref of the count word */
    uint32_t pages;        /* of its own span, 0 = inside the thread slot */
    uint32_t count;        /* slots cached */
    int has_gap;           /* open, and a word behind the first 0 is none */
    const uint64_t *slots; /* `count` refs */
};

/* Where the inside array of a class lies in the thread slot at `thread_ref`, and whether a stack
 * can hold that: in heaps of older formats, too. */
uint64_t smi_view_inside_array(const struct smi_view *view, uint64_t thread_ref,
                               unsigned size_class);
int smi_view_stack_is_possible(const struct smi_view *view, uint64_t thread_ref, uint64_t stack,
                               unsigned size_class);
/* Has it large blocks? In heaps of older formats something else lies there. */
int smi_view_keeps_any(const struct smi_view *view, const struct smf_thread *thread);

/* The log of a thread slot's transactions, whose first chunk tx_log names; NULL when it has none
 * that can be read. */
const struct smf_log *smi_view_log(struct smi_view *view, const struct smf_thread *thread);

/* The phase of a thread slot's transaction, enum smf_tx_phase or what cannot be one. */
uint64_t smi_view_tx_phase(const struct smi_view *view, const struct smf_thread *thread);

/* Call `visit` for each entry of its log, as they were before the transaction is rolled back or
 * finished, with the entry's ref. NULL, or a few words about what is wrong, and in *at where. */
const char *smi_view_each_logged(struct smi_view *view, const struct smf_thread *thread,
                                 void (*visit)(const struct smi_logged *logged, uint64_t at,
                                               void *arg),
                                 void *arg, uint64_t *at);

/* Read a stack. NULL, or a few words about what is wrong; then only `array` and `pages` are filled.
 * */
const char *smi_view_read_stack(struct smi_view *view, uint64_t thread_ref,
                              const struct smf_thread *thread, unsigned size_class,
                              struct smi_view_stack *out);

/* Does the thread slot that the mark of a large block of `pages` pages at `ref` names keep it? */
int smi_view_is_kept(struct smi_view *view, uint64_t ref, uint64_t pages, uint64_t mark);

/* What a thread slot keeps of large blocks. */
struct smi_view_kept {
    uint32_t blocks;
    uint64_t bytes;
};

/* The large blocks that thread slot `i`, which has an owner, keeps: those that its entries name and
 * whose marks name the entries. Of a settled view. */
struct smi_view_kept smi_view_kept(struct smi_view *view, uint32_t i,
                                   const struct smf_thread *thread);

/* A cached slot and where it is cached; or a retired block, of any size, and in whose bag it is. */
struct smi_cached {
    uint64_t ref;
    uint16_t thread;
    uint8_t size_class; /* cached */
    uint8_t is_top;     /* the next to go */
    uint8_t is_retired;
};

/* All slots in the stacks of owned thread slots, and what is in their bags, ascending by ref. Free
 * `*out`. Stacks and limbos that cannot be read are left out. 0, or -ENOMEM. */
int smi_view_cached(struct smi_view *view, struct smi_cached **out, size_t *count);

/* The block that begins at `ref` and that a program has: 1, or 0 when there is none. `cached` is
 * what smi_view_cached gave. */
int smi_view_find_block(struct smi_view *view, const struct smi_cached *cached, size_t count,
                        uint64_t ref, shmalloc_block *out);

/* The two bags of a thread slot; NULL: it names none, or what cannot be one. */
const struct smf_bag *smi_view_limbo(struct smi_view *view, const struct smf_thread *thread);

/* What is in them. */
struct smi_view_retired {
    uint64_t blocks, bytes;
};
struct smi_view_retired smi_view_retired(struct smi_view *view, const struct smf_thread *thread);

/* Tag of slot `index` of a slab, 0 none. */
uint16_t smi_view_slot_tag(struct smi_view *view, const struct smf_page *slab, uint32_t index);

/* The root record at `ref`, its name's length and end checked; NULL when there is none. */
const struct smf_root *smi_view_root(struct smi_view *view, uint64_t ref);

/* ---- the heap as a whole; these settle the view themselves ---------------------------------- */

/* Bytes of the fixed areas and the chunks' words and descriptors, in a settled view. */
uint64_t smi_view_metadata_bytes(const struct smi_view *view);

/* shmalloc_get_stats and shmalloc_each_block on a view. */
int smi_view_stats(struct smi_view *view, shmalloc_stats *out);
int smi_view_each_block(struct smi_view *view,
                        int (*visit)(const shmalloc_block *block, void *arg), void *arg);

/* Roots of a view: bounded walk of every bucket. What `visit` returns other than 0 stops and is
 * returned; SHMALLOC_ECORRUPT at the end when a bucket could not be followed. */
int smi_view_each_root(struct smi_view *view, int (*visit)(const shmalloc_root *root, void *arg),
                       void *arg);

#endif
