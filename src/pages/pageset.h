/* SPDX-License-Identifier: MIT */
/*
 * pageset.h - ordered sets of spans, kept in their descriptors.
 *
 * A digital search tree: every node is a descriptor; at depth d the next bit of the key, from the
 * top, leads left (0) or right (1); any node of a subtree may be its root. Insertion and removal
 * change two to four words whatever the size, and no path is longer than a key has bits, so each
 * fits an undo log and ends in bounded time even in a damaged file. (The idea: D. Knuth, The Art of
 * Computer Programming 3, 6.3; dlmalloc uses it for its large stacks.)
 *
 * Keys: by address: the page number. By length: the length, then the page number.
 */
#ifndef SMI_PAGESET_H
#define SMI_PAGESET_H

#include "handle/undo.h"

enum smi_order { SMI_BY_ADDRESS, SMI_BY_LENGTH };

/* Both return 0 or SHMALLOC_ECORRUPT (heap poisoned). The lock that guards the set is held. */
int smi_pageset_insert(struct smi_op *op, uint64_t *root, enum smi_order order, uint32_t page);
int smi_pageset_remove(struct smi_op *op, uint64_t *root, enum smi_order order, uint32_t page);

/* The first page, in key order, whose span has at least `length` pages (order by length), or simply
 * the first (order by address); 0 when there is none or the set is damaged. */
uint32_t smi_pageset_first(shmalloc_heap *heap, const uint64_t *root, enum smi_order order,
                           uint32_t length);

/* Call `visit` for all pages of a set, in no order; stops at a value other than 0 and returns
 * it. */
int smi_pageset_each(shmalloc_heap *heap, uint64_t root,
                     int (*visit)(shmalloc_heap *, uint32_t page, void *), void *arg);

#endif
