/* SPDX-License-Identifier: MIT */
/*
 * layout.h - every byte in the file.
 *
 * Nothing else defines what is in a heap file. All integers are little-endian and of fixed width;
 * there are no pointers, only refs (byte offsets from the start of the file, 0 = none) and page
 * numbers (ref / SMF_PAGE, 0 = none, because page 0 holds the header). "Page" means a page of
 * SMF_PAGE bytes; the kernel's are called OS pages.
 *
 *   byte 0        smf_header     identity: written at creation, has a checksum, changes only in a
 *                                conversion and when it gets another layout (life/stamp.c)
 *   byte 4096     smf_state      the few words about the whole heap that do change
 *   byte 8192     runtime area   smf_runtime, smf_process[SMF_PROCESSES], smf_lock[]: meaningless
 *                                after a reboot or in a copy; the first attacher writes it anew
 *   directory     smf_chunk[SMF_CHUNKS]
 *   page heap     smf_page_heap
 *   roots         smf_roots
 *   threads       uint64_t[SMF_THREADS]: ref of each smf_thread, 0 = not made yet
 *   central       smf_central[arenas + 1][SMF_CLASSES]; the last arena serves the library itself
 *   chunk 0's page words and descriptors, then the pages that users see
 *   chunk 1       page words, descriptors, pages
 *   ...
 *
 * The areas' places follow from the number of arenas alone (smi_areas in layout.c) and are checked
 * against the header when a file is opened.
 *
 * Who may write a field is in square brackets: [I] nobody after creation; [A] under the attach
 * lock of the file; [R] RECOVER lock; [O] roots lock; [P] page lock; [C] the class lock of its
 * class and arena; [T] the owning thread, or who adopted it under the RECOVER
 * lock; [S] the stripe's mutex.
 */
#ifndef SMI_LAYOUT_H
#define SMI_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "platform/hash.h" /* of identity checksums and root names */

#define SMF_MAGIC 0x434f4c4c414d4853ull /* "SHMALLOC" */
#define SMF_FORMAT_VERSION 3u
/* a heap of this format or later is converted at its first attach: convert.c */
#define SMF_FORMAT_OLDEST 2u
#define SMF_ENDIAN 0x01020304u

#define SMF_PAGE_SHIFT 13
#define SMF_PAGE (1ull << SMF_PAGE_SHIFT) /* 8192 bytes */
#define SMF_GRANULE_SHIFT 20
#define SMF_GRANULE (1ull << SMF_GRANULE_SHIFT) /* chunks begin and end at multiples of 1 MiB */
#define SMF_MAX_SIZE (1ull << 44)               /* 16 TiB: page numbers stay below 2^31 */

#define SMF_CLASSES 89
#define SMF_ARENAS_MAX 64 /* for users; one more serves the library itself */
#define SMF_PROCESSES 128
#define SMF_THREADS 1024
#define SMF_CHUNKS 2048
#define SMF_ROOT_BUCKETS 512
#define SMF_ROOT_NAME_MAX 255
#define SMF_EXACT_SETS 255 /* free spans of 1..255 pages have a set each, longer ones share one */

/* ---- header ---------------------------------------------------------------------------------- */

/* Feature bits a newer library may set. An unknown bit in `features_ignore` means nothing; in
 * `features_read_only` it allows read-only opens; in `features_must` it forbids the open. */
#define SMF_KNOWN_MUST 0ull
#define SMF_KNOWN_READ_ONLY 0ull
/* of smf_state.features: a thread has retired a block, and may have a limbo */
#define SMF_STATE_RETIRES 1ull
#define SMF_STATE_TRANSACTIONS 2ull /* a thread has made a transaction's log */
/* an unknown bit there forbids the open */
#define SMF_KNOWN_STATE (SMF_STATE_RETIRES | SMF_STATE_TRANSACTIONS)

#define SMF_HEAP_HARDENED 1ull /* smf_header.mode: every slab keeps an allocated bit per slot */

/* Places of the areas, bytes from the start of the file. [I] */
struct smf_areas {
    uint64_t runtime;   /* smf_runtime */
    uint64_t processes; /* smf_process[SMF_PROCESSES] */
    uint64_t locks;     /* smf_lock[lock_count] */
    uint64_t directory; /* smf_chunk[SMF_CHUNKS] */
    uint64_t page_heap; /* smf_page_heap */
    uint64_t roots;     /* smf_roots */
    uint64_t threads;   /* uint64_t[SMF_THREADS] */
    uint64_t central;   /* smf_central[arenas + 1][SMF_CLASSES] */
    uint64_t end;       /* first byte after the fixed areas, a multiple of SMF_PAGE */
};
_Static_assert(sizeof(struct smf_areas) == 72, "src/README.md");

/* Identity, at byte 0. */
struct smf_header {
    uint64_t magic;              /* SMF_MAGIC; stored last when a heap is made in a descriptor
                                    [I] */
    uint32_t format_version;     /* SMF_FORMAT_VERSION, or older                   [I], convert.c */
    uint32_t endian;             /* SMF_ENDIAN as the creator stores it                       [I] */
    uint64_t features_ignore;    /*                                                           [I] */
    uint64_t features_read_only; /*                                                           [I] */
    uint64_t features_must;      /*                                                           [I] */
    uint8_t uuid[16];            /* of this heap, random                                      [I] */
    uint32_t word_bits;          /* 64                                                        [I] */
    uint32_t page_bytes;         /* SMF_PAGE                                                  [I] */
    uint32_t os_page_bytes;      /* the creator's kernel page, 4096 on x86-64                 [I] */
    uint32_t machine;            /* ELF e_machine of the creator: 62 x86-64, 183 aarch64      [I] */
    uint64_t mutex_fingerprint;  /* hash of a fresh robust shared mutex of the creator's libc [I] */
    uint32_t mutex_bytes;        /* sizeof(pthread_mutex_t)                                   [I] */
    uint32_t class_count;        /* SMF_CLASSES                                               [I] */
    uint32_t arena_count;        /* 1..SMF_ARENAS_MAX, without the library's own              [I] */
    uint32_t lock_count;         /* smf_lock records                                          [I] */
    uint64_t mode;               /* SMF_HEAP_* bits                                           [I] */
    uint64_t fixed_base;         /* address every process maps byte 0 at; 0 = wherever        [I] */
    uint64_t layout_version;     /* of the application                               [A], stamp.c */
    char layout_name[64];        /* of the application, NUL-terminated; "" = none    [A], stamp.c */
    struct smf_areas areas;      /*                                                           [I] */
    uint64_t created_at;         /* seconds since 1970                                        [I] */
    uint64_t commit_space;       /* segments may take, percent of the heap; 0 = no commits yet
                                    [I] */
    uint64_t commit_segment;     /* bytes of a segment file; 0 = no commits yet               [I] */
    char commit_dir[256];        /* where segments are, NUL-terminated; "" = no commits yet   [I] */
    uint64_t checksum;           /* FNV-1a 64 of all bytes before it      [I], convert.c, stamp.c */
};
_Static_assert(offsetof(struct smf_header, uuid) == 40, "src/README.md");
_Static_assert(offsetof(struct smf_header, layout_name) == 120, "src/README.md");
_Static_assert(offsetof(struct smf_header, checksum) == 536, "src/README.md");
_Static_assert(sizeof(struct smf_header) == 544, "src/README.md");

#define SMF_STATE_OFFSET 4096u
#define SMF_CLEAN 1ull  /* the last process closed in order and synced: true even after a reboot */
#define SMF_IN_USE 2ull /* attached, or everybody died: exact while the machine stays up */
#define SMF_UNCHECKED 3ull /* was in use when the machine stopped or the file was copied, and
                              somebody uses it all the same, or died checking it */

/* The heap as a whole, at byte SMF_STATE_OFFSET. What is said to be kept is for parts to come: 0,
 * and ignored. */
struct smf_state {
    uint64_t size;        /* bytes that belong to the heap; the file may be longer for a moment
                             [P] */
    uint64_t chunk_count; /* entries of the directory that lie inside `size`                  [P] */
    uint64_t max_size;    /* the heap never grows beyond; multiple of SMF_GRANULE             [P] */
    uint64_t mark;        /* SMF_CLEAN, SMF_IN_USE or SMF_UNCHECKED                           [A] */
    uint64_t generation;  /* counts first attaches; stamps user mutexes; never 0 when attached
                             [A] */
    uint64_t poison;      /* 0, or the negated code of the damage that stopped all mutation */
    uint64_t sync_failed; /* 0, or the errno of a failed sync: nothing later is durable */
    uint64_t commit_sequence; /* kept for the last commit's number */
    uint64_t reserved0;
    uint64_t decay_ns;    /* free storage goes back to the file system this long after it was
                             freed; 0 at once, SMF_NEVER never                                [P] */
    uint64_t retain;      /* bytes of free storage that are kept all the same                 [P] */
    uint64_t reshaped;    /* a multiple of SMF_RESHAPED that grows after each change of a slab's
                             page words: what a process remembers of them is older (fast.h)   [P] */
    uint64_t claimed;     /* page of the large block that the owner of the page lock is about to
                             give back or resize, 0 none: repair, when its mark is
                             SMF_MARK_CLAIMED, makes that `claimed_mark` again                [P] */
    uint64_t claimed_mark;
    uint64_t reserved1[2];
    _Alignas(64) uint64_t epoch; /* of read sections: from 1 up, by atomic additions        [any] */
    uint64_t adoptions;          /* grows after thread slots were brought to rest: who waits may
                                    have waited for their threads (wait.c) [R] */
    uint64_t claims_gone;        /* grows after a thread slot with queue_claims was brought to rest
                                    [R] */
    uint64_t reserved2[5];
    _Alignas(64) uint64_t gate;  /* kept for commits: 0 = open for sections */
    /* kept for commits */
    uint64_t gate_ticket, gate_refused, durable_gate, hints_valid;
    uint64_t reserved3[3];
    uint64_t features;           /* what a heap came to use since it was made; unknown bits are
                                    refused */
    uint64_t torn;               /* kept for commits: a process died in an explicit section */
    uint64_t applying;           /* kept for followers */
    uint64_t structure_headers;  /* ref of the first smf_structure that is no structure now, 0 none:
                                    class lock of the library's arena that smi_central_put_aside()
                                    says [C] */
    uint64_t orphans;            /* ref of the first limbo that nobody's thread slot names; 0 none
                                    [R] */
    uint64_t next_checksum; /* of the header when its layout has become the next two: whoever opens
                               the heap does that (life/stamp.c); 0 = it has                  [A] */
    uint64_t next_layout_version; /*                                                          [A] */
    char next_layout_name[64];    /*                                                          [A] */
    uint64_t spare[17];
};
#define SMF_NEVER UINT64_MAX
#define SMF_RESHAPED (1ull << 20)
_Static_assert(sizeof(struct smf_state) == 512, "src/README.md");

/* ---- runtime area ---------------------------------------------------------------------------- */

#define SMF_RUNTIME_OFFSET 8192u

/* Where and when the heap is attached now. Valid only if `device`, `inode` and `boot_id` are those
 * of the file that it was read from. */
struct smf_runtime {
    uint8_t boot_id[16];    /* of the kernel                                        [A] */
    uint64_t device;        /* st_dev of the file                                   [A] */
    uint64_t inode;         /* st_ino of the file                                   [A] */
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid; robust mutexes need one  [A] */
    uint64_t generation;    /* equals smf_state.generation when complete            [A] */
    uint64_t stored;        /* bytes behind the file at creation or the last orderly close; 0
                               unknown [A] */
    uint64_t reserved;
};
_Static_assert(sizeof(struct smf_runtime) == 64, "src/README.md");

/* One attached process. Its life is the OFD lock on byte SMF_LOCK_BYTES + index of the file. */
struct smf_process {
    uint32_t state;      /* 0 free, 1 in use; in use without the lock = dead, to be adopted  [R] */
    uint32_t pid;        /* for display: in the creator's PID namespace                      [R] */
    uint64_t start_time; /* for display: field 22 of /proc/PID/stat, clock ticks since boot  [R] */
    uint64_t attached_at; /* for display: nanoseconds since 1970                             [R] */
    uint32_t uid;        /* for display                                                      [R] */
    uint32_t serial;     /* counts the claims of this entry                                  [R] */
    char name[16];       /* for display: the process's short name, NUL-terminated            [R] */
    uint64_t flags;      /* SMF_PROCESS_READS, SMF_PROCESS_FENCES                          [any] */
    uint64_t reserved;
};
_Static_assert(sizeof(struct smf_process) == 64, "src/README.md");

#define SMF_PROCESS_READS 1ull  /* of smf_process.flags: a thread of it began a read section, and */
#define SMF_PROCESS_FENCES 2ull /* has no membarrier: each section begins with a fence */

/* OFD lock bytes, far beyond any data: one for attaching and detaching, one for each process. */
#define SMF_ATTACH_BYTE (1ull << 62)
#define SMF_LOCK_BYTES (SMF_ATTACH_BYTE + 4096)

/* of a pthread_mutex_t: 40 bytes in glibc and musl on 64-bit, on aarch64 48 in glibc */
#define SMF_MUTEX_WORDS 6

/* A robust process-shared mutex on a cache line of its own. */
struct smf_lock {
    uint64_t mutex[SMF_MUTEX_WORDS];
    uint64_t waits;   /* times somebody had to wait; statistics only     */
    uint64_t repairs; /* times an owner died holding it; statistics only */
};
_Static_assert(sizeof(struct smf_lock) == 64, "src/README.md");

/* Indices into the lock array, in rank order (lower is acquired first). */
enum smf_lock_index {
    SMF_LOCK_COMMIT = 0,
    SMF_LOCK_GATE = 1,
    SMF_LOCK_ROOTS = 2,
    SMF_LOCK_RECOVER = 3,
    SMF_LOCK_CLASS_FIRST = 16, /* + arena * SMF_CLASSES + class, the library's own arena last */
    /* the page lock is the last one: lock_count - 1 */
};

/* ---- undo log -------------------------------------------------------------------------------- */

/* Before a word changes under a lock, its ref and old value are appended; count = 0 commits. */
struct smf_undo {
    uint64_t ref; /* of the word, multiple of 8 */
    uint64_t old; /* its value before           */
};
#define SMF_CLASS_LOG 30
#define SMF_PAGE_LOG 126
#define SMF_ROOT_LOG 14

/* ---- pages ----------------------------------------------------------------------------------- */

/* A run of the file with its own page words and descriptors. An entry is written once and kept when
 * the file is truncated below it, so that growing again makes the same chunk again. */
struct smf_chunk {
    uint32_t first_page; /* of the chunk, metadata included; 0 only for chunk 0              [P] */
    uint32_t page_count; /* metadata included; 0 = entry never used                          [P] */
};
_Static_assert(sizeof(struct smf_chunk) == 8, "src/README.md");

/* Page words: uint16_t per page, read by each call that goes the long way; what the short one knows
 * of them is in the process's page table. 0 in the low bits = no block starts here. [P] */
#define SMF_WORD_KIND 0x007fu     /* 0, 1 + class of a slab, or one of the next two               */
#define SMF_WORD_LARGE 0x0070u    /* first page of a large block                                  */
#define SMF_WORD_META 0x0071u     /* first page of a span the library uses                        */
#define SMF_WORD_INDEX_SHIFT 7    /* slabs: this page's place in its span, 0..31                  */
#define SMF_WORD_INDEX 0x0f80u
#define SMF_WORD_SIDE 0x1000u     /* slabs: has a side array (tags, allocated bits)               */
#define SMF_WORD_INTERNAL 0x2000u /* slabs: of the library's own arena                            */
#define SMF_WORD_ZERO 0x4000u     /* reads as zeros                                               */
#define SMF_WORD_RESERVED 0x8000u /* has blocks of the file system behind it                      */

enum smf_page_kind { /* smf_page.kind */
    SMF_PAGE_NONE = 0, /* inside a span */
    SMF_PAGE_FREE = 1, /* first page of a free span */
    SMF_PAGE_FREE_TAIL = 2, /* last page of a free span of 2 pages or more */
    SMF_PAGE_SLAB = 3,
    SMF_PAGE_LARGE = 4,
    SMF_PAGE_META = 5,
};

/*
 * Descriptor of a page, one cache line. Only a span's first page uses the fields; the bits of a
 * slab's later pages continue the bitmap of its first. The free span's tail repeats `page_count`.
 * A bit is 1 when the central heap holds the slot, 0 when a stack or the user does.
 */
struct smf_page {
    uint32_t left;       /* ordered set: page number of the child, 0 none      [P] free, [C] slab */
    uint32_t right;      /*                                                    [P] free, [C] slab */
    uint32_t page_count; /* of the span, 1..                                                  [P] */
    uint8_t kind;        /* enum smf_page_kind                                                [P] */
    uint8_t size_class;  /* slab: 0..SMF_CLASSES-1                                            [P] */
    uint8_t arena;       /* slab: 0..arena_count, the last is the library's own               [P] */
    uint8_t reserved0;
    uint16_t free_slots; /* slab: bits that are 1                                             [C] */
    uint16_t hint;       /* slab: no word of the bitmap before this one has a bit             [C] */
    uint16_t tag;        /* large: type tag;  span of the library: enum smf_purpose           [P] */
    uint16_t in_set;     /* slab: 1 while in its central heap's set of slabs with free slots  [C] */
    uint64_t side;       /* slab: ref of the side array, 0 none; free: when it became free or was
                            merged, CLOCK_MONOTONIC ns; a later time than now is of another boot;
                            large: the mark below */
    uint64_t bits[4];    /* slab: 256 slots a page                                            [C] */
};
_Static_assert(sizeof(struct smf_page) == 64, "src/README.md");

enum smf_purpose { /* of a span of kind SMF_PAGE_META, in `tag` */
    SMF_PURPOSE_SLOT = 1,  /* a thread slot */
    SMF_PURPOSE_ARRAY = 2, /* a stack's array */
    SMF_PURPOSE_LIMBO = 3, /* two bags of retired blocks */
    SMF_PURPOSE_LOG = 4,   /* a chunk of a transaction's log */
};

/* Type tags of blocks from here to 0xffff are kept for structures of the library's own; users have
 * 1 to the one before. */
#define SMF_TAG_RESERVED 0xff00u

/* The mark of a large block, in `side`: who has the block. It is the truth, and changes by
 * compare-and-swap alone, so that of two who want the block one gets it. A thread slot's `spans`
 * are only where its owner looks.
 *
 *   0                        the program
 *   smi_mark_kept(slot, i)   the thread slot of that number keeps it, freed, named by entry i of
 *                            `spans`
 *   the same | HELD          likewise, and its owner is about to use a link record or `scratch` on
 *                            it: nobody else may take it, since what such a record of a dead thread
 *                            names must not be another's by then
 *   SMF_MARK_CLAIMED         the owner of the page lock changes it: smf_state.claimed */
#define SMF_MARK_KEPT (1ull << 63)
#define SMF_MARK_CLAIMED (1ull << 62)
#define SMF_MARK_HELD (1ull << 61)

static inline uint64_t smi_mark_kept(uint32_t slot_index, uint32_t entry)
{
    return SMF_MARK_KEPT | (uint64_t)slot_index << 8 | entry;
}

/* Classes of 8 and 16 bytes have more slots than fit in descriptors: their slabs begin with a page
 * that is only bitmap, so that no allocator byte lies beside user blocks. */
#define SMF_BITS_PER_PAGE 256u

/* A slab's side array: uint16_t tag[slots], then, in hardened heaps, a bit per slot that is 1 while
 * the user has it, in uint64_t words from the next multiple of 8. */

struct smf_page_heap {
    uint64_t log_count;                  /* 0 = nothing to undo                             [P] */
    struct smf_undo log[SMF_PAGE_LOG];   /*                                                 [P] */
    uint64_t set[SMF_EXACT_SETS + 1];    /* [n-1]: spans of n pages by address; [255]: longer
                                            ones by length, then address; page number of the
                                            root, 0 = empty                                 [P] */
    uint64_t set_bits[4];                /* bit n-1: set[n-1] is not empty                  [P] */
    uint64_t free_pages;                 /* sum of all free spans                           [P] */
    uint64_t takes, gives, grows, punched_pages; /* statistics only                         [P] */
};
_Static_assert(offsetof(struct smf_page_heap, set) == 2024, "src/README.md");
_Static_assert(sizeof(struct smf_page_heap) == 4144, "src/README.md");

/* ---- central heap ---------------------------------------------------------------------------- */

struct smf_central {
    uint64_t log_count;                 /* 0 = nothing to undo                              [C] */
    struct smf_undo log[SMF_CLASS_LOG]; /*                                                  [C] */
    uint64_t set;                       /* slabs with free slots by address; root or 0      [C] */
    uint64_t pending;                   /* page of a slab that is between page heap and here; 0
                                           none; set in a [P] operation when it comes from there,
                                           in a [C] operation when it goes there                */
    uint64_t slab_count;                /*                                                  [C] */
    uint64_t free_slots;                /* bits that are 1 in all slabs                     [C] */
    uint64_t refills, flushes;          /* batches; statistics only                         [C] */
    uint64_t refilled_slots, flushed_slots; /* statistics only                              [C] */
    uint64_t slabs_made, slabs_retired; /* statistics only                                  [C] */
    uint64_t double_frees;              /* statistics only                                  [C] */
    uint64_t reserved[8];
};
_Static_assert(offsetof(struct smf_central, set) == 488, "src/README.md");
_Static_assert(sizeof(struct smf_central) == 640, "src/README.md");

/* ---- thread slots ---------------------------------------------------------------------------- */

enum smf_link_op {
    SMF_LINK_NONE = 0,
    SMF_LINK_TAKE = 1, /* *dest := fresh, then count the fresh slot out, then the old one in */
    SMF_LINK_GIVE = 2, /* *dest := 0, then count the old slot in */
    SMF_LINK_MOVE = 3, /* a ref goes from one word to another, with a third word's store: see
                          below */
    SMF_LINK_SHORT_TAKE = 4,
    SMF_LINK_SHORT_GIVE = 5,
    SMF_LINK_SHORT_EXCHANGE = 6,
};
#define SMF_LINK_OP 7ull /* the bits of `op` that are the operation */

/* A step that stores to a user's word and to a stack, or to a word of a structure: armed by storing
 * `op` last.
 *
 * A user's word may hold a ref and, in the bits from SMF_MAX_SIZE up, something else of its
 * owner's, in the short forms and in `fresh` of TAKE. Where a stack's word is meant, it may be one
 * of a bag of the thread slot's limbo, which is like an open stack; `old_array` then is the ref of
 * the very word, and `old_count` means nothing.
 *
 * The full record is for stacks that are closed, whose count commits. Repair of TAKE: if *dest ==
 * fresh the step is finished, else undone. GIVE is always finished. A side that does not come from
 * a stack has array 0: fresh is then the slot's scratch, old a large block.
 *
 * MOVE is for a ref that leaves the word `dest` (or enters it) when the word `fresh` changes from
 * the value `fresh_array`, which commits. Repair: if *dest == old, it becomes 0 when fresh_count is
 * 1 and the change happened, and when fresh_count is 0 and it did not. No stack is concerned.
 *
 * The short one is for stacks that are open, each word of which is a truth by itself. `op` holds
 * the ref of the user's word, a multiple of 8, and the operation; `dest` and `fresh` are refs of
 * words of stacks:
 *
 *   SHORT_TAKE      *op := *dest, then *dest := 0. Repair: if both are the same or *dest is 0,
 *                   finished, else undone.
 *   SHORT_GIVE      *dest := *op, then *op := 0. Repair: if both are the same, finished; if *dest
 *                   is 0, undone.
 *   SHORT_EXCHANGE  *fresh := *op, then as SHORT_TAKE. Repair: if undone, *fresh := 0. */
struct smf_link {
    uint64_t op;          /* enum smf_link_op; one store arms, one disarms     [T] */
    uint64_t dest;        /* ref of the user's word, multiple of 8             [T] */
    uint64_t fresh;       /* ref that *dest gets                               [T] */
    uint64_t fresh_array; /* ref of the stack's array it comes from, 0 = scratch [T] */
    uint64_t fresh_count; /* that array's count before                         [T] */
    uint64_t old;         /* ref that *dest had and that is freed; 0 none      [T] */
    uint64_t old_array;   /* ref of the stack's array it goes to, 0 = large    [T] */
    uint64_t old_count;   /* that array's count before                         [T] */
};
_Static_assert(sizeof(struct smf_link) == 64, "src/README.md");

static inline int smi_link_is_short(const struct smf_link *link)
{
    uint64_t op = link->op & SMF_LINK_OP;
    return op >= SMF_LINK_SHORT_TAKE && op <= SMF_LINK_SHORT_EXCHANGE;
}

/* Ref of the user's word. */
static inline uint64_t smi_link_dest(const struct smf_link *link)
{
    return smi_link_is_short(link) ? link->op & ~SMF_LINK_OP : link->dest;
}

/*
 * Cached slots of a class: a stack, in an array of words. Word 0 says how to read the others.
 *
 *   a count n   the stack is closed: words 1..n are refs, n is the next to go; what lies above
 *               means nothing
 *   SMF_OPEN    its owner pops and pushes: the refs are the words from 1 to the first 0, which the
 *               capacity bounds too; all words from there on are 0. A pop stores 0 to the last, a
 *               push a ref behind it.
 *
 * stacks[k] holds ref | pages: the ref of the array (a multiple of 64) with, in the low 6 bits, 0
 * for the array inside the thread slot or the pages of the span it lies in
 * (1..SMF_STACK_MOST_PAGES). Arrays begin at another cache line for each class: if all began where
 * a page does, they would share one set of the first-level cache.
 */
#define SMF_OPEN UINT64_MAX
#define SMF_STACK_PAGES 63u
#define SMF_STACK_MOST_PAGES 16u
#define SMF_THREAD_PAGES 4u
/* words of the inside array for classes up to 512 bytes (0..32): 9 cache lines */
#define SMF_INLINE_SMALL 72u
#define SMF_INLINE_LARGE 24u /* and above: 3 cache lines */
#define SMF_SMALL_CLASSES 33u

/*
 * A bag of retired blocks: those that no word names any more and that somebody may still read. It
 * is read as an open stack is: the refs are those before the first 0, which SMF_BAG bounds too; to
 * retire is to store behind them, to empty is to free the last. A limbo, a SMF_PAGE_META span of
 * SMF_LIMBO_PAGES, has two: one takes, the other waits until no section is left that began before
 * its stamp.
 */
#define SMF_EPOCH_MOST (1ull << 62) /* of read sections: 1 to this; more is damage */
#define SMF_LIMBO_PAGES 2u
#define SMF_BAG 1000u
struct smf_bag {
    uint64_t stamp;     /* smf_state.epoch from which on no section finds what is in it; 0: it takes
                           [T] */
    uint64_t next;      /* of the first bag of an orphaned limbo: ref of the next limbo       [R] */
    uint64_t reserved[6];
    uint64_t refs[SMF_BAG]; /*                                                                [T] */
    uint64_t zero[16];  /* of which the first ends a full bag */
};
_Static_assert(sizeof(struct smf_bag) == SMF_PAGE, "src/README.md");

#define SMF_REF_MASK (SMF_MAX_SIZE - 1) /* the ref in a word that has more than that */

/* Refs in a bag. */
static inline uint64_t smi_bag_count(const struct smf_bag *bag)
{
    uint64_t count = 0;
    while (count < SMF_BAG && __atomic_load_n(&bag->refs[count], __ATOMIC_RELAXED) != 0)
        count++;
    return count;
}

/* Large blocks that a thread freed and keeps: see the mark of a large block. An entry is ref |
 * pages. */
#define SMF_SPANS 12u
#define SMF_SPAN_MOST_PAGES 128u /* of a block that is kept: 1 MiB */

#define SMF_HELD 8u /* user mutexes of a thread that are noted; it may hold more */

/* A thread slot, at the first byte of a SMF_PAGE_META span of SMF_THREAD_PAGES. What is said to be
 * kept is for parts to come: 0, and ignored. */
struct smf_thread {
    uint64_t owner;      /* process index + 1; 0 = free slot                                 [R] */
    uint64_t serial;     /* counts the claims of this slot                                   [R] */
    uint64_t tid;        /* kernel thread id                                                 [R] */
    uint64_t start_time; /* field 22 of /proc/PID/task/TID/stat                              [R] */
    uint64_t reserved0[2];
    uint64_t scratch;    /* ref of a block that a realloc is filling; whoever adopts frees it [T] */
    uint64_t building;   /* ref of a block that is to be a root; whoever adopts frees it     [T] */
    struct smf_link link;        /* [T] */
    uint64_t spare[2];           /* page refs of array spans being exchanged; a span that no stack
                                    refers to is given back                                  [T] */
    uint64_t refilled; /* slots that came from the central heap since the claim; statistics only
                          [T] */
    uint64_t flushed;  /* slots that went there since the claim; statistics only              [T] */
    uint64_t large;    /* large blocks taken since the claim; statistics only                 [T] */
    uint64_t reserved1[3];
    uint64_t stacks[SMF_CLASSES];  /* [T] */
    uint64_t reserved2[7];
    uint64_t spans[SMF_SPANS];   /* ref | pages of large blocks that it keeps; 0 none. An entry
                                    counts only while the block's mark names it [T] */
    uint64_t reserved3[4];
    uint64_t section_epoch; /* smf_state.epoch when its read section began; 0: it is in none  [T] */
    uint64_t ousted;        /* sections that began at this epoch or before are over; only grows, by
                               compare-and-swap                                             [any] */
    uint64_t limbo;         /* ref of a span of two bags: what it retired; 0 none             [T] */
    uint64_t reserved4[5];
    uint64_t tx_state; /* serial << SMF_TX_SERIAL | enum smf_tx_phase of its transaction; the serial
                          counts the slot's transactions and is never reset [T] */
    uint64_t tx_log;   /* ref of the smf_log; 0 = none yet                                   [T] */
    uint64_t reserved5[6];
    /* kept for commits */
    uint64_t section, gate_wait, reserved6[6];
    uint64_t queue_claims; /* cells of queues that name this slot; if not 0 at its rest, claims_gone
                              grows [T] */
    uint64_t structure;    /* ref | SMF_FREEING of the smf_structure that it is making or freeing; 0
                              none [T] */
    uint64_t nested;       /* ref of one inside that, which it is about to free too; 0 none   [T] */
    uint64_t using_structure; /* ref of the smf_structure that a call of its thread is in; 0 none
                                 [T] */
    uint64_t reserved7[4];
    uint64_t held[SMF_HELD];       /* refs of user mutexes that it holds; for display only    [T] */
    uint64_t held_since[SMF_HELD]; /* CLOCK_MONOTONIC ns, coarse; for display only            [T] */
    uint64_t waits_for;            /* ref of the user mutex, or word, that it waits for, 0 none; for
                                      display only                                            [T] */
    uint64_t waits_since;          /* CLOCK_MONOTONIC ns, coarse; for display only            [T] */
    uint64_t reserved8[6];
    uint64_t reserved9[64];
    /* the inside arrays follow at SMF_THREAD_ARRAYS */
};
#define SMF_THREAD_ARRAYS 2048u
#define SMF_THREAD_ARRAYS_2 1024u /* in format 2 */
_Static_assert(sizeof(struct smf_thread) == SMF_THREAD_ARRAYS, "src/README.md");
_Static_assert(offsetof(struct smf_thread, section_epoch) % 64 == 0, "a line of its own");

static inline int smi_keeps_any(const struct smf_thread *thread)
{
    uint64_t any = 0;
    for (unsigned i = 0; i < SMF_SPANS; i++)
        any |= thread->spans[i];
    return any != 0;
}

/* Words of the inside array of class k. */
static inline uint32_t smi_inline_words(uint32_t k)
{
    return k < SMF_SMALL_CLASSES ? SMF_INLINE_SMALL : SMF_INLINE_LARGE;
}

/* Where the array of class k begins in a thread slot, or in a span of its own. In the slot the
 * arrays of the smallest classes, which most programs use most, begin where an OS page does: after
 * a fork, the first store to each page costs a copy of it. As many of larger classes as fit lie in
 * front of them. */
#define SMF_INLINE_FRONT 10u
static inline uint64_t smi_inline_offset(uint32_t k)
{
    const uint64_t front = SMF_THREAD_ARRAYS, small = 4096,
                   rest = small + 8ull * SMF_SMALL_CLASSES * SMF_INLINE_SMALL;
    uint32_t j = k - SMF_SMALL_CLASSES;
    return k < SMF_SMALL_CLASSES  ? small + 8ull * k * SMF_INLINE_SMALL
           : j < SMF_INLINE_FRONT ? front + 8ull * j * SMF_INLINE_LARGE
                                  : rest + 8ull * (j - SMF_INLINE_FRONT) * SMF_INLINE_LARGE;
}

_Static_assert(SMF_THREAD_ARRAYS + 8 * SMF_INLINE_FRONT * SMF_INLINE_LARGE <= 4096 &&
                   4096 + 8 * (SMF_SMALL_CLASSES * SMF_INLINE_SMALL +
                               (SMF_CLASSES - SMF_SMALL_CLASSES - SMF_INLINE_FRONT) *
                                   SMF_INLINE_LARGE) <=
                       SMF_THREAD_PAGES * SMF_PAGE,
               "the inside arrays fit");

/* The same in a thread slot of the format before, which is converted or only looked at: one class
 * behind the other. */
static inline uint64_t smi_older_inline_offset(uint32_t k)
{
    uint64_t small = k < SMF_SMALL_CLASSES ? k : SMF_SMALL_CLASSES;
    return SMF_THREAD_ARRAYS_2 + 8 * (small * SMF_INLINE_SMALL + (k - small) * SMF_INLINE_LARGE);
}

static inline uint64_t smi_span_offset(uint32_t k)
{
    return k % 32 * 64;
}

/* Words of the array that a stack of class k names, its count included. */
static inline uint32_t smi_stack_words(uint64_t stack, uint32_t k)
{
    uint64_t pages = stack & SMF_STACK_PAGES;
    return pages == 0 ? smi_inline_words(k)
                      : (uint32_t)((pages * SMF_PAGE - smi_span_offset(k)) / 8);
}

/* The slots in a stack whose array, word 0 included, has `words` words: its count, or those up to
 * the first 0. May be more than fit when the file is damaged. */
static inline uint64_t smi_stack_count(const uint64_t *array, uint32_t words)
{
    uint64_t count = __atomic_load_n(&array[0], __ATOMIC_RELAXED);
    if (count == SMF_OPEN)
        for (count = 0;
             count + 1 < words && __atomic_load_n(&array[count + 1], __ATOMIC_RELAXED) != 0;)
            count++;
    return count;
}

/* Can a stack of class k in a thread slot whose inside array for it is at `inside` hold that? A
 * span's bounds are not looked at. */
static inline int smi_stack_is_possible(uint64_t inside, uint64_t stack, uint32_t k)
{
    uint64_t pages = stack & SMF_STACK_PAGES, ref = stack & ~(uint64_t)SMF_STACK_PAGES;
    if (pages == 0)
        return ref == inside;
    return pages <= SMF_STACK_MOST_PAGES && ref % SMF_PAGE == smi_span_offset(k);
}

/* ---- transactions ---------------------------------------------------------------------------- */

enum smf_tx_phase {
    SMF_TX_IDLE = 0,
    SMF_TX_ACTIVE = 1,    /* whoever finds its thread dead rolls back what the log has */
    SMF_TX_COMMITTED = 2, /* and here finishes what the log defers */
};
#define SMF_TX_SERIAL 2u
#define SMF_TX_PHASE 3ull

/*
 * The log of a thread slot's transactions: spans of SMF_PURPOSE_LOG, its chunks. The first one
 * begins with this record, the others with an entry. Entries follow each other without a gap; none
 * spans two chunks. All is relative: `used` is the one word that says which entries there are.
 */
#define SMF_LOG_CHUNKS 40u
struct smf_log {
    uint64_t used; /* 0 = no entry; else the place behind the last one: number of its chunk <<
                      SMF_LOG_CHUNK | bytes from the chunk's start                          [T] */
    uint64_t reserved[7];
    uint64_t chunk[SMF_LOG_CHUNKS];  /* ref of each; 0 = not made yet. That of the first stays 0,
                                        smf_thread.tx_log names it                          [T] */
    uint64_t filled[SMF_LOG_CHUNKS]; /* bytes from the start of each to behind its last entry;
                                        counts for those before the one in `used`           [T] */
};
#define SMF_LOG_CHUNK 48u
/* of the first chunk; each next one has twice as many, if they are to be had */
#define SMF_LOG_PAGES 2u
#define SMF_LOG_PIECE 4096u    /* bytes that an entry keeps at most; what is longer takes several */
_Static_assert(sizeof(struct smf_log) == 704, "src/README.md");
_Static_assert(sizeof(struct smf_log) <= sizeof(struct smf_thread),
               "zeroed when its span is taken: pages.c");

enum smf_entry_type {
    SMF_ENTRY_ADD = 1,   /* the bytes at `ref` were these */
    SMF_ENTRY_ALLOC = 2, /* `ref` is a block that was taken, 0 none (yet, or any more) */
    SMF_ENTRY_FREE = 3,  /* `ref` is a block that the commit frees, 0 done */
    SMF_ENTRY_RETIRE = 4, /* likewise, when nobody can be reading it any more */
    SMF_ENTRY_STORE = 5, /* the word at `ref` gets this value by the commit; ref 0: done */
    SMF_ENTRY_KIND = 16, /* + the number of a kind of structure: `ref` and words that only it
                            understands; 0 done */
};
#define SMF_ENTRY_KINDS 16u
#define SMF_ENTRY_WORDS 8u /* that such an entry has at most */

/* The head of an entry; its data follow, padded to 8 bytes, and a word with the bytes of all, for
 * who walks back. */
struct smf_entry {
    uint64_t head; /* enum smf_entry_type << SMF_ENTRY_TYPE | bytes of data */
    uint64_t ref;
};
#define SMF_ENTRY_TYPE 56u

static inline uint64_t smi_entry_bytes(uint64_t len)
{
    return sizeof(struct smf_entry) + ((len + 7) & ~7ull) + sizeof(uint64_t);
}

/* ---- roots ----------------------------------------------------------------------------------- */

/* A named root: an internal block of sizeof(smf_root) + name_len + 1 bytes. */
struct smf_root {
    uint64_t next;     /* ref of the next in its bucket, 0 ends                              [O] */
    uint64_t ref;      /* what it names                                                      [O] */
    uint64_t type;     /* the user's type id, 0 none                                         [O] */
    uint32_t hash;     /* low half of FNV-1a 64 of the name                                  [O] */
    uint32_t name_len; /* 1..SMF_ROOT_NAME_MAX                                               [O] */
    /* name, NUL-terminated, follows */
};
_Static_assert(sizeof(struct smf_root) == 32, "src/README.md");

struct smf_roots {
    uint64_t log_count;                /* 0 = nothing to undo                                [O] */
    struct smf_undo log[SMF_ROOT_LOG]; /*                                                    [O] */
    uint64_t scratch;  /* ref of an smf_root not linked yet, or no longer; freed in repair   [O] */
    uint64_t sequence; /* odd while the lists change: lets a read-only process read          [O] */
    uint64_t count;    /*                                                                    [O] */
    uint64_t reserved[4];
    uint64_t bucket[SMF_ROOT_BUCKETS]; /* ref of the first smf_root                          [O] */
};
_Static_assert(sizeof(struct smf_roots) == 4384, "src/README.md");

/* ---- user mutex ------------------------------------------------------------------------------ */

/* What shmalloc_mutex holds. All zeros is a valid, unlocked one. */
struct smf_user_mutex {
    uint64_t generation; /* of the heap when `mutex` was initialised; else it is initialised anew */
    uint64_t owner;      /* bits 0..13: thread slot + 1, 0 nobody; bits 14, 15: below; above: the
                            slot's serial */
    uint64_t mutex[SMF_MUTEX_WORDS]; /* pthread_mutex_t */
};
/* an owner died, and no later one has said that what the mutex guards is consistent */
#define SMF_LEFT (1ull << 15)
#define SMF_OWNER_TX (1ull << 14) /* its transaction holds it, and unlocks it at its end */
#define SMF_OWNER_SLOT (SMF_OWNER_TX - 1)
#define SMF_OWNER_SERIAL_SHIFT 16
_Static_assert(sizeof(struct smf_user_mutex) == 64, "src/README.md");

/* What shmalloc_cond holds. All zeros is a valid one, for which nobody waits. */
struct smf_user_cond {
    uint32_t sequence; /* futex word. Bit 0: somebody may be asleep; the rest counts signals */
    uint32_t reserved0;
    uint64_t reserved1[3];
};
_Static_assert(sizeof(struct smf_user_cond) == 32, "src/README.md");

/* ---- structures ------------------------------------------------------------------------------ */

/* Block tags of the library's structures; src/structures/structures.c says what each is. */
enum smf_structure_tag {
    SMF_TAG_QUEUE = SMF_TAG_RESERVED + 1,
    SMF_TAG_VECTOR = SMF_TAG_RESERVED + 2,
    SMF_TAG_MAP = SMF_TAG_RESERVED + 3,
};

/* How far a structure's life is, in the low 3 bits of smf_structure.life. */
enum smf_life {
    SMF_LIFE_NONE = 0,   /* the header waits to be one: in the list smf_state.structure_headers, or
                            a thread slot names it */
    SMF_LIFE_MAKING = 1, /* its maker's thread slot names it */
    SMF_LIFE_LIVE = 2,
    SMF_LIFE_DYING = 3,  /* all that use it are refused; its freer's thread slot names it, or
                            another's that does */
};

/* smf_structure.life: a count of the header's lives << 32 | who | enum smf_life. `who`: the number
 * of the thread slot that makes or frees it + 1, 11 bits from bit 3 on, and its serial, the low 18
 * bits, from bit 14 on. Live, it stays its maker's. */
#define SMF_LIFE_STATE 7ull
#define SMF_LIFE_WHO 0xfffffff8ull
#define SMF_LIFE_NEXT (1ull << 32)

/* smf_thread.structure, low bits: what is to become of it when its thread is gone. */
#define SMF_MAKING 0ull   /* it never was, unless its holder names it */
#define SMF_FREEING 1ull  /* it goes if it is DYING and this slot's */
#define SMF_UNBOUND 2ull  /* it goes: no root names it any more */
#define SMF_WHAT 7ull

/* What each structure's block begins with; SMF_STRUCTURE_BYTES, at a cache line. Once made, the
 * block stays one for ever: a process that remembers it finds that `life` is another. */
struct smf_structure {
    uint64_t tag;    /* enum smf_structure_tag; the block's own while it is live */
    uint64_t life;
    uint64_t next;   /* in the list of headers; DYING: the one that is freed after it, 0 none */
    uint64_t holder; /* ref of the word in the heap that names it, while it is made or freed; 0:
                        none */
    uint64_t reserved[4];
};
#define SMF_STRUCTURE_BYTES 512u
_Static_assert(sizeof(struct smf_structure) == 64, "src/README.md");

/* A message's place. `state` is the truth: lap << 38 | enum smf_cell_state << 35 | who, where the
 * cell's turn is the position lap * capacity + its index, and who is the number of the claimant's
 * thread slot + 1 (11 bits from bit 24 on) and the low 24 bits of that slot's serial; 0 nobody. It
 * changes by compare-and-swap, or by its claimant's store. */
enum smf_cell_state {
    SMF_CELL_FREE = 0,    /* for the message of this turn; flags say neither BLOCK nor REF */
    SMF_CELL_WRITING = 1, /* by who; if that is gone, there is none in this turn */
    SMF_CELL_FULL = 2,    /* sent */
    SMF_CELL_READING = 3, /* taken by who; nobody, or gone: to be delivered again */
    SMF_CELL_ACKED = 4,   /* done with, or none; who is about to free the block: if it is gone,
                             anybody does */
};
#define SMF_CELL_LAP_SHIFT 38
#define SMF_CELL_STATE_SHIFT 35
#define SMF_CELL_WHO ((1ull << SMF_CELL_STATE_SHIFT) - 1)
#define SMF_CELL_SERIAL 0xffffffull /* of who */
#define SMF_CELL_INLINE 112u        /* bytes of a message that lie in the cell */

#define SMF_CELL_BLOCK 1u /* flags: the message is the block `ref` */
/* the message is the ref itself, and what it leads to, which the sender gave away */
#define SMF_CELL_REF 2u
/* 12 bits: where the sender ran, from bit 8 on, and the receiver, from bit 20 on */
#define SMF_CELL_CPU 0xfffu
#define SMF_CELL_SENDER_SHIFT 8
#define SMF_CELL_TAKER_SHIFT 20
#define SMF_CELL_WHAT 0xffu

struct smf_cell {
    uint64_t state;
    uint32_t length; /* of the message, bytes */
    uint32_t flags;
    union {
        uint64_t ref;
        uint8_t data[SMF_CELL_INLINE];
    };
};
_Static_assert(sizeof(struct smf_cell) == 128, "src/README.md");

struct smf_queue {
    struct smf_structure head;
    uint64_t capacity; /* cells, a power of two                                               [I] */
    uint64_t cells;    /* ref of smf_cell[capacity + 1], from the next multiple of 64 on      [I] */
    uint64_t most;     /* bytes of a message                                                  [I] */
    uint64_t reserved0[5];
    uint64_t tail;     /* position of the next message; a hint, which everybody helps to be true */
    uint64_t reserved1[7];
    uint64_t first;    /* position of the next message to be taken; likewise */
    uint64_t reserved2[7];
    uint64_t seen;     /* smf_state.claims_gone + returned when the cells were looked at for claims
                          of the dead last */
    uint64_t returned; /* messages that were taken and given back */
    uint64_t reserved3[6];
    uint32_t receivers_wait, receivers_word; /* 1: somebody may sleep on the word, which then
                                                changes */
    uint64_t reserved4[7];
    uint32_t senders_wait, senders_word;
    uint64_t reserved5[7];
};
_Static_assert(sizeof(struct smf_queue) <= SMF_STRUCTURE_BYTES, "one size for all");
#define SMF_QUEUE_MOST_CELLS (1ull << 24)

/* Elements in segments that never move: segment i has smf_vector.first << (i - 1) elements, the
 * first two have `first`. */
#define SMF_VECTOR_SEGMENTS 30u
struct smf_vector {
    struct smf_structure head;
    uint64_t mutex[8];     /* a smf_user_mutex: who changes the vector holds it */
    uint64_t element;      /* bytes of an element                                             [I] */
    uint64_t first;        /* elements of the first segment, a power of two                   [I] */
    uint64_t length;       /* elements; storing it commits */
    uint64_t sequence;     /* odd: `redo` holds the new bytes of element changing - 1 */
    uint64_t changing;
    uint64_t redo;         /* ref of a block for one element; 0: elements change by one store [I] */
    uint64_t reserved0[2];
    uint64_t segment[SMF_VECTOR_SEGMENTS]; /* refs; 0 not made yet */
    uint64_t reserved1[2];
};
_Static_assert(sizeof(struct smf_vector) <= SMF_STRUCTURE_BYTES, "one size for all");

/* One part of a map's keys: a table of its own, under a lock of its own. What readers look at, what
 * writers store often and the lock lie on a line each. */
struct smf_stripe {
    struct smf_user_mutex mutex;
    uint64_t shape; /* buckets << SMF_MOVES_BITS | moves; 0 = no bucket yet. `moves` counts words
                       that moved within a chain, and wraps [S] */
    uint64_t dir;   /* ref of a block that is an array of refs of segments; 0 = none. Segments have
                       8, 8, 16, 32 .. 512 and from the eighth on 1,024 buckets [S] */
    uint64_t reserved0[6];
    uint64_t count; /* entries [S] */
    uint64_t split; /* 0, or the number of the bucket that is being filled by a split, plus 1 [S] */
    uint64_t in_dest;   /* 0, or ref of the word that is about to become 0 or something else; then
                           the count is to be `in_count`, less 1 if the word was no 0, plus 1 if it
                           is none [S] */
    uint64_t in_before; /* 1: it was no 0 [S] */
    uint64_t in_count;  /* the count before [S] */
    uint64_t reserved1[3];
};
_Static_assert(sizeof(struct smf_stripe) == 192, "src/README.md");

/* A map. A key with hash h is in stripe h modulo their number. */
struct smf_map {
    struct smf_structure head;
    uint64_t stripes; /* a power of two up to SMF_MAP_STRIPES_MAX [I] */
    uint64_t table;   /* ref of smf_stripe[stripes], a multiple of 64 [I] */
    uint64_t options; /* SMF_MAP_NESTED or 0 [I] */
    uint64_t seed[2]; /* of its hash [I] */
    uint64_t reserved[3];
};
_Static_assert(sizeof(struct smf_map) <= SMF_STRUCTURE_BYTES, "one size for all");
#define SMF_MAP_STRIPES_MAX 256u
/* Values are 8 bytes: refs of structures, which are freed with the map. */
#define SMF_MAP_NESTED 1ull

/* A bucket, one cache line: words, 0 or tag << SMF_MAP_TAG_SHIFT | ref of an entry, and the ref of
 * the next bucket of the chain. The tag's top bit is 1, the others are bits 16..34 of the hash. */
#define SMF_MAP_SLOTS 7u
struct smf_bucket {
    uint64_t word[SMF_MAP_SLOTS];
    uint64_t next;
};
_Static_assert(sizeof(struct smf_bucket) == 64, "one cache line");
#define SMF_MAP_TAG_SHIFT 44
#define SMF_MAP_REF ((1ull << SMF_MAP_TAG_SHIFT) - 1)
#define SMF_MOVES_BITS 20
#define SMF_MAP_BUCKETS_MAX (1ull << 40) /* of a stripe */
#define SMF_MAP_CHAIN_MAX 4096u          /* buckets of a chain */

/* An entry: this, the key, the value, each filled up to a multiple of 8; then, while it is pending,
 * smf_map_pending. What is there does not change, but for a counter's value and the flags. */
struct smf_map_entry {
    uint64_t hash;
    uint64_t meta; /* flags << 48 | bytes of the key << 32 | bytes of the value */
};
#define SMF_MAP_PENDING (1ull << 48) /* of a transaction that may not be committed */
#define SMF_MAP_ABSENT (1ull << 49)  /* says that there is no such key; only while pending */

struct smf_map_pending {
    uint64_t transaction; /* whose */
    uint64_t prev;        /* the word that counts until it is committed; 0 = the key is new */
};

/* ---- derived --------------------------------------------------------------------------------- */

/* The next multiple of `unit`. */
static inline uint64_t smi_round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Where everything lies for a number of arenas; the header must agree. */
void smi_areas(uint32_t arena_count, struct smf_areas *out, uint32_t *lock_count);

/* Bytes that a chunk of `page_count` pages needs for its words and descriptors. */
static inline uint64_t smi_chunk_metadata_bytes(uint64_t page_count)
{
    return page_count * (sizeof(uint16_t) + sizeof(struct smf_page));
}

/* Byte of the file where the words of a chunk begin: its own start, or behind the fixed areas. */
static inline uint64_t smi_chunk_words_offset(const struct smf_chunk *chunk,
                                              const struct smf_areas *areas)
{
    return chunk->first_page ? (uint64_t)chunk->first_page << SMF_PAGE_SHIFT : areas->end;
}

/* First page of a chunk that can be handed out. */
static inline uint32_t smi_chunk_data_page(const struct smf_chunk *chunk,
                                           const struct smf_areas *areas)
{
    uint64_t end = smi_chunk_words_offset(chunk, areas) +
                   smi_chunk_metadata_bytes(chunk->page_count);
    return (uint32_t)((end + SMF_PAGE - 1) >> SMF_PAGE_SHIFT);
}

/* Is it of a format that is converted before it is used? */
static inline int smi_format_is_older(const struct smf_header *header)
{
    return header->format_version >= SMF_FORMAT_OLDEST &&
           header->format_version < SMF_FORMAT_VERSION;
}

/* Has a conversion stored the version, and not the checksum yet? */
int smi_layout_awaits_checksum(const struct smf_header *header);

/* Has a change of the layout begun that is not over? Then this private copy of the header gets the
 * layout that it leads to, and 1 is returned. */
int smi_layout_settle(struct smf_header *header, const struct smf_state *state);

/*
 * Is this the identity of a heap that this library, here, can use, be it after a conversion?
 * `header` is a private copy of the first bytes of the file, settled, `file_size` its length,
 * `state` the copy of its state. Sets the detail message and returns SHMALLOC_ENOTHEAP, _EVERSION,
 * _EFOREIGN or _ECORRUPT.
 */
int smi_layout_validate(const struct smf_header *header, const struct smf_state *state,
                        uint64_t file_size, int read_only, const char *path);

#endif
