/* SPDX-License-Identifier: MIT */
/* storage.c - files and private memory alike; see storage.h. */
#include "handle/storage.h"

#include <errno.h>

#include "platform/os.h"

int smi_storage_length(shmalloc_heap *heap, uint64_t *out)
{
    struct smi_file_info info;
    if (heap->is_private) {
        *out = heap->state->size;
        return 0;
    }
    int rc = smi_heap_look(heap, &info);
    if (rc == 0)
        *out = info.size;
    return rc;
}

/* What is cut off may still be touched, for nobody else could be stopped by that; it only is
 * empty. */
static int set_private_length(shmalloc_heap *heap, uint64_t length)
{
    uint64_t now = heap->allowed;
    if (length <= now)
        return smi_os_empty(smi_at(heap, length), now - length);
    int rc = smi_heap_open_tables(heap, length);
    if (rc == 0)
        rc = smi_os_allow(smi_at(heap, now), length - now);
    if (rc == 0)
        SMI_STORE(&heap->allowed, length);
    return rc;
}

int smi_storage_set_length(shmalloc_heap *heap, uint64_t length)
{
    struct smi_file_info info;
    if (heap->is_private)
        return set_private_length(heap, length);
    int rc = smi_heap_look(heap, &info);
    return rc < 0 ? rc : smi_os_truncate(heap->fd, length);
}

int smi_storage_reserve(shmalloc_heap *heap, uint64_t offset, uint64_t len)
{
    struct smi_file_info info;
    if (heap->is_private)
        return 0;
    int rc = smi_heap_look(heap, &info);
    return rc < 0 ? rc : smi_os_reserve(heap->fd, offset, len);
}

int smi_storage_punch(shmalloc_heap *heap, uint64_t offset, uint64_t len)
{
    struct smi_file_info info;
    if (heap->is_private)
        return smi_os_empty(smi_at(heap, offset), len);
    int rc = smi_heap_look(heap, &info);
    return rc < 0 ? rc : smi_os_punch(heap->fd, offset, len);
}

unsigned smi_storage_guards(shmalloc_heap *heap)
{
    return heap->is_private || smi_heap_descriptor(heap) < 0 ? 0 : smi_os_guards(heap->fd, NULL);
}
