/* SPDX-License-Identifier: MIT */
/*
 * central.h - the central heap: for each class and arena, the slabs with free slots.
 *
 * Slots move between here and the threads' stacks in batches. All functions take the locks they
 * need and return 0 or a negative code with a message.
 */
#ifndef SMI_CENTRAL_H
#define SMI_CENTRAL_H

#include "handle/handle.h"

/* The array of a stack, as its owner knows it. */
struct smi_array {
    uint64_t *array;
    uint64_t limit; /* slots it may hold; what a damaged count is compared with */
};

/* Move up to `want` slots of class k to the top of a stack's array; at least one unless it
 * fails. */
int smi_central_refill(shmalloc_heap *heap, uint32_t arena, uint32_t k, struct smi_array stack,
                       uint32_t want);

/* Move slots of class k from the top of a stack's array here until `keep` are left. A slot that is
 * free here already was freed twice: it is dropped, and SHMALLOC_EDOUBLEFREE returned at the
 * end. */
int smi_central_flush(shmalloc_heap *heap, uint32_t k, struct smi_array stack, uint32_t keep);

/* A zeroed block of the library's own for `size` bytes: its ref goes to *holder in the same step.
 * Does nothing when *holder is not 0 by then. */
int smi_central_take_own(shmalloc_heap *heap, size_t size, uint64_t *holder);

/* Free the slot `ref` without a stack, and store 0 to each of the two words that is not NULL, in
 * one step. */
int smi_central_give(shmalloc_heap *heap, uint64_t ref, uint64_t *holder, uint64_t *other);

/* Blocks that stay what they are when they are out of use wait in a list: the word *head has the
 * ref of the first, whose word at `next` has that of the next one. Each step is all or none, under
 * the lock of the library's class for SMF_STRUCTURE_BYTES. The block `ref`, which *holder names,
 * comes to the front, and *holder becomes `then`. */
int smi_central_put_aside(shmalloc_heap *heap, uint64_t *head, uint64_t ref, uint64_t *next,
                          uint64_t *holder, uint64_t then);
/* The first goes to *holder, which is 0; where that word `next` is, is `offset` bytes from the
 * block's begin. 1; 0: there is none, or none that can be believed. */
int smi_central_take_aside(shmalloc_heap *heap, uint64_t *head, uint64_t offset, uint64_t *holder);

/* Slabs without a used slot go back to the page heap. */
int smi_central_trim(shmalloc_heap *heap);

/* What a dead owner of the class lock `index` left. */
int smi_central_repair(shmalloc_heap *heap, uint32_t index);

#endif
