/* SPDX-License-Identifier: MIT */
/*
 * block.h - taking and giving single blocks: what shmalloc_ref_alloc and its kin do once the thread
 * is known.
 */
#ifndef SMI_BLOCK_H
#define SMI_BLOCK_H

#include "slots/context.h"

struct smi_request {
    size_t size;
    size_t alignment; /* a power of two up to SMI_MAX_ALIGNMENT; 0 or up to 16 = the usual */
    int zero;
    const void *contents; /* `size` bytes that the block gets before anybody can see it; NULL:
                             none */
    uint16_t tag;
};
#define SMI_MAX_ALIGNMENT (1ull << 20) /* in files, whose mappings are 2 MiB-aligned */

/* Take a block. `holder`: a word in the heap that names it in the same crash-atomic step; or
 * NULL. */
int smi_block_take(struct smi_thread *t, const struct smi_request *request, uint64_t *holder,
                   uint64_t *ref);

/* Free the block `ref`; `holder`, if not NULL, becomes 0 in the same crash-atomic step. */
int smi_block_free(struct smi_thread *t, uint64_t ref, uint64_t *holder);

/* Could it be freed: 0, SHMALLOC_EBADREF or _EDOUBLEFREE. What nothing tells of a slot is not found
 * out. */
int smi_block_may_free(const struct smi_thread *t, uint64_t ref);

/* In hardened heaps a slot is the user's no more; 0: it was not. */
int smi_block_unuse(const shmalloc_heap *heap, uint64_t ref);

/* smi_block_free() of a block that is the user's no more. */
int smi_block_free_retired(struct smi_thread *t, uint64_t ref, uint64_t *holder);

/* A block that others are not to see yet: the slot on top of the stack of its class *k, where it
 * stays, or, *k being SMF_CLASSES, a large one that `scratch` names. */
int smi_block_prepare(struct smi_thread *t, size_t size, uint32_t *k, uint64_t *ref);

/* Change the size of the block *ref, which may move; `holder`, if not NULL, follows in the same
 * step. */
int smi_block_resize(struct smi_thread *t, uint64_t *ref, size_t size, uint64_t *holder);

/* Usable bytes of the block at `ref`, 0 when there is none. */
size_t smi_block_size(const shmalloc_heap *heap, uint64_t ref);
/* Is it a block that a program has? 0, or SHMALLOC_EBADREF. What other threads freed and have
 * cached is not seen, but in hardened heaps. */
int smi_block_verify(struct smi_thread *t, uint64_t ref);
uint16_t smi_block_tag(const shmalloc_heap *heap, uint64_t ref);

#endif
