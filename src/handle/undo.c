/* SPDX-License-Identifier: MIT */
/* undo.c - applying a log backwards; see undo.h. */
#include "handle/undo.h"

#include "platform/os.h"

/* May a word of the log be stored to? The log of a growth names words of the new chunk, which lie behind the
 * heap's end again when an earlier repair was killed; the file is still long enough then. */
static int can_store(shmalloc_heap *heap, uint64_t ref)
{
    struct smi_file_info info;
    if (ref % 8 != 0 || ref < SMF_STATE_OFFSET || ref > SMF_MAX_SIZE - 8 ||
        (ref >= heap->areas.runtime && ref < heap->areas.directory)) /* no operation changes processes or locks */
        return 0;
    if (ref <= smi_size(heap) - 8)
        return 1;
    if (heap->is_private)
        return ref + 8 <= heap->allowed;
    return smi_heap_look(heap, &info) == 0 && ref + 8 <= info.size;
}

/* A word that the dead process had an address for and this one has not: the file has it. */
static int store_beyond(shmalloc_heap *heap, uint64_t ref, uint64_t value)
{
    int rc = smi_os_write(heap->fd, &value, sizeof(value), ref);
    SMI_BARRIER();
    return rc < 0 ? smi_refused_change(rc, heap->fd, heap->path, "%s: cannot write a word at %#llx", heap->path,
                                       (unsigned long long)ref)
                  : 0;
}

int smi_undo_apply(shmalloc_heap *heap, uint64_t *count, struct smf_undo *log, uint32_t capacity)
{
    uint64_t n = SMI_LOAD(count);
    if (n > capacity)
        return smi_heap_poison(heap, "undo log at %#llx has %llu entries, at most %u fit",
                               (unsigned long long)((uint8_t *)count - heap->base),
                               (unsigned long long)n, capacity);
    for (uint64_t i = n; i-- > 0;) {
        int rc;
        uint64_t ref = log[i].ref;
        if (!can_store(heap, ref))
            return smi_heap_poison(heap, "undo log at %#llx names the word %#llx, which cannot be",
                                   (unsigned long long)((uint8_t *)count - heap->base),
                                   (unsigned long long)ref);
        if (ref <= heap->reserved - 8)
            SMI_STORE((uint64_t *)smi_at(heap, ref), log[i].old);
        else if ((rc = store_beyond(heap, ref, log[i].old)) < 0)
            return rc;
    }
    SMI_STORE(count, 0);
    return 0;
}
