/* SPDX-License-Identifier: MIT */
/*
 * stamp.c - another layout for a heap, in a header that has a checksum.
 *
 * The header changes in ten words, and each prefix of those stores would be one with a wrong
 * checksum. So the state gets a record of what the header becomes, which one store arms: the
 * checksum of the header with the new layout.
 *
 *   1  the record's name and version        killed up to here: nothing happened
 *   2  its checksum; sync                   from here: whoever reads the heap reads the new layout
 *                                           (smi_layout_settle),
 *   3  the header; sync                     and the first to attach does 3 and 4
 *   4  the record's checksum becomes 0      it is over
 *
 * A record counts only if the header with its layout has its checksum. So one of which a power cut
 * left parts counts for nothing, and the header is as it was, because it is touched after the sync
 * of 2 only. The record is disarmed after the sync of 3: so whichever of the header's sectors the
 * disk has got, it has the record, too.
 */
#include "life/stamp.h"

#include <errno.h>
#include <string.h>

#include "life/attach.h"
#include "life/context.h"
#include "life/registry.h"
#include "platform/os.h"

static int sync_layout(shmalloc_heap *heap)
{
    int rc = heap->is_private ? 0 : smi_heap_descriptor(heap);
    if (rc == 0 && !heap->is_private && (rc = smi_os_sync_file(heap->fd)) < 0)
        smi_refused(rc, "%s: cannot sync it to change its layout", heap->path);
    return rc;
}

/* Words that a kill may cut between. */
static void store_layout_words(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)from + i * sizeof(word), sizeof(word));
        SMI_STORE((uint64_t *)to + i, word);
    }
}

int smi_stamp_finish(shmalloc_heap *heap)
{
    struct smf_header next = *heap->header;
    int rc = 0;
    if (heap->state->next_checksum == 0)
        return 0;
    if (smi_layout_settle(&next, heap->state)) {
        SMI_STORE(&heap->header->layout_version, next.layout_version);
        store_layout_words(heap->header->layout_name, next.layout_name, sizeof(next.layout_name));
        SMI_STORE(&heap->header->checksum, next.checksum);
        rc = sync_layout(heap);
    }
    if (rc == 0)
        SMI_STORE(&heap->state->next_checksum, 0);
    return rc;
}

static int record_layout(shmalloc_heap *heap, const struct smf_header *next)
{
    struct smf_state *state = heap->state;
    int rc = smi_stamp_finish(heap); /* of a call that could not sync */
    if (rc < 0)
        return rc;
    SMI_STORE(&state->next_layout_version, next->layout_version);
    store_layout_words(state->next_layout_name, next->layout_name, sizeof(next->layout_name));
    SMI_STORE(&state->next_checksum, smi_hash(next, offsetof(struct smf_header, checksum)));
    rc = sync_layout(heap);
    if (rc < 0) /* nothing of the header has changed yet */
        SMI_STORE(&state->next_checksum, 0);
    return rc;
}

/* Nobody comes or goes meanwhile. Who has the heap open took it for what its layout said. */
static int change_layout(shmalloc_heap *heap, const struct smf_header *next)
{
    int others = heap->is_private ? 0 : smi_others_alive(heap);
    if (others < 0)
        return others;
    if (others)
        return smi_error(SHMALLOC_EBUSY,
                         "%s: other processes have the heap open and rely on layout \"%s\" version "
                         "%llu; close it in all "
                         "of them first",
                         heap->path, heap->header->layout_name,
                         (unsigned long long)heap->header->layout_version);
    int rc = record_layout(heap, next);
    return rc < 0 ? rc : smi_stamp_finish(heap);
}

static int change_layout_locked(shmalloc_heap *heap, const struct smf_header *next)
{
    smi_registry_lock();
    int rc = heap->is_private ? 0 : smi_heap_descriptor(heap);
    if (rc == 0 && !heap->is_private)
        rc = smi_attach_lock(heap);
    if (rc == 0) {
        rc = change_layout(heap, next);
        if (!heap->is_private)
            smi_attach_unlock(heap);
    }
    smi_registry_unlock();
    return rc;
}

int shmalloc_set_layout(shmalloc_heap *heap, const char *name, uint64_t version)
{
    struct smf_header next;
    size_t len = name ? strlen(name) : 0;
    int rc;
    if (len >= sizeof(next.layout_name))
        return smi_error(-EINVAL, "%s: layout name has %zu bytes, at most %zu fit", heap->path, len,
                         sizeof(next.layout_name) - 1);
    int cancel_state = smi_os_cancel_off();
    struct smi_thread *t = smi_thread_enter_any(heap, &rc);
    if (t) {
        smi_thread_leave_any(t);
        next = *heap->header;
        next.layout_version = version;
        memset(next.layout_name, 0, sizeof(next.layout_name));
        memcpy(next.layout_name, name ? name : "", len);
        rc = change_layout_locked(heap, &next);
    }
    smi_os_cancel_restore(cancel_state);
    return rc;
}
