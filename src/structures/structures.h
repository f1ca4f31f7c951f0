/* SPDX-License-Identifier: MIT */
/*
 * structures.h - what the ready-made structures have in common: their headers' lives, the table of
 * their types, and the steps in which one is made and freed.
 *
 * A structure is a header (struct smf_structure and what its type adds) and parts, which are plain
 * blocks that words of the header, or of other parts, name. A header's block never becomes anything
 * else: out of use it waits in a list. So whoever remembers a header finds, by `life`, that it is
 * the same structure or that it is none.
 */
#ifndef SMI_STRUCTURES_H
#define SMI_STRUCTURES_H

#include "slots/context.h"
#include "look/check.h"
#include "look/view.h"
#include "slots/fast.h"

/* ---- the types ---- */

/* A structure that is being freed, by a thread or by who adopts its thread slot. */
struct smi_ending {
    shmalloc_heap *heap;
    struct smf_thread *slot;
    uint64_t who;   /* as in smf_structure.life */
    uint64_t *most; /* parts that may still be freed in this call */
};

/* One of a structure's elements or messages, for those who look at a file. */
struct smi_item {
    uint64_t index;     /* place: position, number */
    const char *key;    /* NULL: none, as in queues and vectors */
    uint64_t key_length;
    const void *bytes;  /* of the value; NULL when it is a ref, or cannot be read */
    uint64_t length;
    uint64_t ref;       /* of the block that the value is in, or that it is; 0 none */
    const char *note;   /* "taken"; NULL: nothing to be said */
};
typedef int smi_item_fn(const struct smi_item *item, void *arg); /* not 0: stop, and return that */

struct smi_structure_type {
    uint16_t tag;
    const char *name;
    /* What follows gets a settled view and the ref of a header whose SMF_STRUCTURE_BYTES can be
     * read. */
    /* Report what cannot be, by invariants of its own. */
    void (*check)(struct smi_view *view, uint64_t ref, smi_report_fn *report, void *arg);
    /* "1,024 cells, 17 messages, 2 taken" */
    void (*describe)(struct smi_view *view, uint64_t ref, char *text, size_t room);
    /* Refs of the blocks that belong to it, the header not included; such a block's own words are
     * not looked at. */
    int (*each_ref)(struct smi_view *view, uint64_t ref, int (*visit)(uint64_t part, void *arg),
                    void *arg);
    int (*each_item)(struct smi_view *view, uint64_t ref, smi_item_fn *visit, void *arg);
    /* Free its parts by smi_part_end(), in any order, each once. 0; what smi_part_end() says, then
     * it is called anew. */
    int (*free)(struct smi_ending *ending, struct smf_structure *head);
};

extern const struct smi_structure_type smi_map_type, smi_queue_type, smi_vector_type;

/* NULL when the library has none of that tag. */
const struct smi_structure_type *smi_structure_type(uint64_t tag);

/* ---- making and freeing ---- */

/* What *word in the heap names is freed, and *word becomes 0 in the same step; a structure is freed
 * as such. What is no block is forgotten. 0; 1: enough for now, or a structure in it goes first:
 * return that. */
int smi_part_end(struct smi_ending *ending, uint64_t *word);

/* A block of `size` bytes that the word *dest of the heap names, in one step. */
int smi_part_take(struct smi_thread *t, size_t size, size_t alignment, int zero, uint64_t *dest);
/* The block that *word names goes back, *word becomes 0. */
int smi_part_give(struct smi_thread *t, uint64_t *word);

/* A header for a structure of this type, zeroed behind smf_structure, that nobody else sees. The
 * slot of the calling thread, *t, names it. */
int smi_structure_begin(shmalloc_heap *heap, uint16_t tag, struct smi_thread **t,
                        struct smf_structure **out);
/* It is one now. By a word, in the heap or not, which gets its ref; */
int smi_structure_publish(struct smi_thread *t, struct smf_structure *head, shmalloc_ref *out);
/* or by the root `name`: 1; 0: there is one of that name and type already, which *ref is now, and
 * this one is freed. */
int smi_structure_bind(struct smi_thread *t, struct smf_structure *head, const char *name,
                       shmalloc_ref *ref);
/* It shall not be. Returns `rc`. */
int smi_structure_drop(struct smi_thread *t, int rc);

/* ---- using ---- */

/* What a handle remembers; the begin of shmalloc_queue and its kin. */
struct smi_use {
    shmalloc_heap *heap;
    struct smf_structure *head;
    uint64_t ref;
    uint64_t life;
};

/* The live structure of that type at `ref`. -EINVAL, SHMALLOC_ETYPE, SHMALLOC_EGONE,
 * SHMALLOC_EBADREF with a message. */
int smi_structure_open(shmalloc_heap *heap, shmalloc_ref ref, uint16_t tag, struct smi_use *out);
/* The same by a root's name. */
int smi_structure_open_root(shmalloc_heap *heap, const char *name, uint16_t tag,
                            struct smi_use *out);

/* Runs before main(), where structures are linked at all. */
void smi_structures_announce(void);

/* Free the structure that *ref names, and all in it. */
int smi_structure_free(shmalloc_heap *heap, shmalloc_ref *ref, uint16_t tag);
/* The same of the root `name`, which goes. */
int smi_structure_remove(shmalloc_heap *heap, const char *name, uint16_t tag);

struct smi_thread *smi_structure_enter_long(shmalloc_heap *heap, int *rc);
/* The calling thread's own context, for claims are a thread slot's. NULL with a message, *rc is
 * why. */
static inline struct smi_thread *smi_structure_thread(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = smi_current;
    if (SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch)))
        return t;
    return smi_structure_enter_long(heap, rc);
}

/* SHMALLOC_EGONE or _EPOISONED, with a message. */
int smi_structure_gone(const struct smi_use *use);

/* A call of the thread on a live structure: until it leaves, no part of it is freed. 0, or a code
 * with a message. */
static inline int smi_structure_enter(const struct smi_use *use, struct smi_thread *t)
{
    SMI_STORE(&t->slot->using_structure, use->ref);
    /* Who frees it changes `life`, has all processors fence, and looks at `using_structure`
     * then. */
    if (SMI_LIKELY(__atomic_load_n(&use->head->life, __ATOMIC_ACQUIRE) == use->life &&
                   SMI_LOAD(&use->heap->state->poison) == 0))
        return 0;
    SMI_STORE(&t->slot->using_structure, 0);
    return smi_structure_gone(use);
}

static inline void smi_structure_leave(struct smi_thread *t)
{
    __atomic_store_n(&t->slot->using_structure, 0, __ATOMIC_RELEASE);
}

/* SHMALLOC_ECORRUPT with a message: the structure contradicts itself. The heap as such may be
 * sound, and is not poisoned. */
int smi_structure_damaged(const struct smi_use *use, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- looking ---- */

/* Does a block of at least `size` bytes begin at `ref`? Whether it is free is not asked. */
int smi_structure_has_block(struct smi_view *view, uint64_t ref, uint64_t size);

struct smi_structure_seen {
    uint64_t ref;
    const struct smi_structure_type *type; /* NULL: unknown to this library */
    const struct smf_structure *head;
};

/* All structures of a view, by the tags of blocks: those that live, and others. What `visit`
 * returns other than 0 stops. */
int smi_structures_each(struct smi_view *view,
                        int (*visit)(const struct smi_structure_seen *seen, void *arg), void *arg);

/* What is checked; as smi_invariants, which has what is checked of the heap itself. */
extern const struct smi_invariant smi_structure_invariants[];

/* Check all structures. 0, or -ENOMEM. */
int smi_structures_check(struct smi_view *view, smi_report_fn *report, void *arg);

#endif
