/* SPDX-License-Identifier: MIT */
/* mapping.h - the addresses of a heap in this process. */
#ifndef SMI_MAPPING_H
#define SMI_MAPPING_H

#include "handle/handle.h"

#define SMI_MAP_UNIT (2ull << 20) /* addresses are taken in multiples of that */
#define SMI_DEFAULT_MAX_SIZE (1ull << 40)

/* Map the heap with addresses to spare: `wanted` bytes, or as many as can be spared, at least
 * `size`, which a file was seen to have; at `fixed` unless that is NULL. And the tables of the
 * handle. SHMALLOC_EADDRESS. */
int smi_mapping_make(shmalloc_heap *heap, uint64_t wanted, uint64_t size, void *fixed);
void smi_mapping_drop(shmalloc_heap *heap);

#endif
