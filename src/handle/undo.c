/* SPDX-License-Identifier: MIT */
/* undo.c - applying a log backwards; see undo.h. */
#include "handle/undo.h"

#include "format/outcome.h"
#include "platform/os.h"

/* Bytes that the file has, which may be longer than the heap. */
static uint64_t file_length(shmalloc_heap *heap)
{
    struct smi_file_info info;
    if (heap->is_private)
        return heap->allowed;
    return smi_heap_look(heap, &info) == 0 ? info.size : 0;
}

/* A word that the dead process had an address for and this one has not: the file has it. */
static int store_beyond(shmalloc_heap *heap, uint64_t ref, uint64_t value)
{
    int rc = smi_os_write(heap->fd, &value, sizeof(value), ref);
    SMI_BARRIER();
    return rc < 0 ? smi_refused_change(rc, heap->fd, heap->path, "%s: cannot write a word at %#llx",
                                       heap->path, (unsigned long long)ref)
                  : 0;
}

int smi_undo_apply(shmalloc_heap *heap, uint64_t *count, struct smf_undo *log, uint32_t capacity)
{
    uint64_t n = SMI_LOAD(count);
    if (n > capacity)
        return smi_heap_poison(heap, "undo log at %#llx has %llu entries, at most %u fit",
                               (unsigned long long)((uint8_t *)count - heap->base),
                               (unsigned long long)n, capacity);
    uint64_t length = smi_size(heap), fault = smi_log_fault(&heap->areas, length, log, n);
    if (fault < n) {
        length = file_length(heap);
        fault = smi_log_fault(&heap->areas, length, log, n);
    }
    for (uint64_t i = n; fault == n && i-- > 0;) {
        uint64_t ref = SMI_LOAD(&log[i].ref);
        int rc = 0;
        if (!smi_log_may_name(&heap->areas, length, ref)) /* scribbled on just now */
            fault = i;
        else if (ref <= heap->reserved - 8)
            SMI_STORE((uint64_t *)smi_at(heap, ref), log[i].old);
        else if ((rc = store_beyond(heap, ref, log[i].old)) < 0)
            return rc;
    }
    if (fault < n)
        return smi_heap_poison(heap, "undo log at %#llx names the word %#llx, which cannot be",
                               (unsigned long long)((uint8_t *)count - heap->base),
                               (unsigned long long)SMI_LOAD(&log[fault].ref));
    SMI_STORE(count, 0);
    return 0;
}
