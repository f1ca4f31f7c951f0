/* SPDX-License-Identifier: MIT */
/*
 * convert.c - from format 2 to format 3.
 *
 * Format 3 differs in the header's version, in words that format 2 writes as 0 and ignores (most of
 * smf_state, the tags of the library's spans, the marks of large blocks), and in thread slots:
 * their inside arrays lie elsewhere, behind new fields. A thread slot without an owner means the
 * same in both formats when its stacks are 0, because who claims it fills them in. So the heap is
 * first brought to a state that is sound in both, by changes each of which leaves a sound heap of
 * format 2; then one word decides.
 *
 *   1  as format 2: the logs are undone and what the dead left is adopted, as at any first attach
 *      attach.c
 *   2  words that format 2 ignores get the values that format 3 expects
 *   3  sync; thread slots: stacks become 0, then all that format 3 calls new
 *   4  the whole check; sync
 *   5  the version is stored; sync
 *   6  the checksum is stored; sync
 *
 * Crash: killed up to 4, it is a heap of format 2 that was in use, and whoever opens it begins
 * again; a library of format 2 may also just use it. From 5 on it is one of format 3 that nobody
 * has used, whose header has the checksum of format 2 until 6: this is accepted
 * (smi_layout_validate), and the next first attacher does 6. Nobody uses the heap before the sync
 * of 6 is over, so no disk ever has a header of format 2 with anything that format 3 alone knows.
 * Power cuts: the mark says "in use" since before 1, so the heap is unclean, as after any other
 * use. Whatever words of 2 and 3 the disk has got, the heap is as sound as after 1; it has all of
 * them when it has the version, and the version when it has the checksum.
 */
#include "life/convert.h"

#include <stdio.h>
#include <string.h>

#include "look/check.h"
#include "platform/os.h"

#define COMMAND "`shmalloc-inspect check --repair`"

void (*smi_convert_step)(void);

static void step(void)
{
    if (smi_convert_step)
        smi_convert_step();
}

int smi_convert_is_due(const shmalloc_heap *heap)
{
    return smi_format_is_older(heap->header);
}

int smi_convert_in_use(const shmalloc_heap *heap)
{
    return smi_error(SHMALLOC_EBUSY,
                     "%s: programs have it open with a library of file format version %u, this one "
                     "makes it version %u; "
                     "close it in all of them first, and link them with this library",
                     heap->path, heap->header->format_version, SMF_FORMAT_VERSION);
}

static int damaged_older(const shmalloc_heap *heap, const char *what)
{
    char copy[400];
    snprintf(copy, sizeof(copy), "%s", what); /* may be the last message */
    return smi_error(SHMALLOC_ECORRUPT,
                     "%s: file format version %u, and it was not made version %u because it is "
                     "damaged (%s); " COMMAND " tells what can be done",
                     heap->path, heap->header->format_version, SMF_FORMAT_VERSION, copy);
}

static int sync_heap(shmalloc_heap *heap)
{
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    rc = smi_os_sync_file(heap->fd);
    return rc < 0 ? smi_refused(rc, "%s: cannot sync it to convert it to file format version %u",
                                heap->path, SMF_FORMAT_VERSION)
                  : 0;
}

/* ---- words that format 2 ignores ---- */

/* All of the state that format 2 did not use. */
static void convert_state(struct smf_state *state)
{
    state->reserved0 = state->claimed = state->claimed_mark = 0;
    memset(state->reserved1, 0, sizeof(state->reserved1));
    memset(&state->epoch, 0, sizeof(*state) - offsetof(struct smf_state, epoch));
    state->epoch = 1;
    state->reshaped &= ~(SMF_RESHAPED - 1); /* it counted by ones */
}

int smi_convert_begin(shmalloc_heap *heap)
{
    const struct smf_header *h = heap->header;
    if (heap->state->poison != 0)
        return damaged_older(heap, "it is poisoned");
    if (h->commit_space != 0 || h->commit_segment != 0 || h->commit_dir[0] != 0)
        return damaged_older(heap,
                             "its header has a place for commits, which that version cannot make");
    heap->is_older = 1;
    convert_state(heap->state);
    step();
    return 0;
}

/* ---- thread slots ---- */

/* A stack names the inside array, which is empty; or none, since before a first claim or by a
 * conversion that was killed. */
static int is_empty(const shmalloc_heap *heap, const struct smf_thread *slot, uint32_t k)
{
    const uint8_t *array = (const uint8_t *)slot + smi_older_inline_offset(k);
    return slot->stacks[k] == 0 || (slot->stacks[k] == (uint64_t)(array - heap->base) &&
                                    *(const uint64_t *)(const void *)array == 0);
}

static int is_at_rest(const shmalloc_heap *heap, const struct smf_thread *slot)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if (!is_empty(heap, slot, k))
            return 0;
    return slot->owner == 0 && slot->link.op == SMF_LINK_NONE && slot->scratch == 0 &&
           slot->building == 0 && slot->spare[0] == 0 && slot->spare[1] == 0;
}

#define KEPT offsetof(struct smf_thread, reserved2) /* bytes that stay as they are */

/* A slot at rest holds nothing, so nothing is lost with its stacks. */
static void convert_slot(struct smf_thread *slot)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        SMI_STORE(&slot->stacks[k], 0);
    step();
    memset(slot->reserved0, 0, sizeof(slot->reserved0));
    memset(slot->reserved1, 0, sizeof(slot->reserved1));
    memset((uint8_t *)slot + KEPT, 0, SMF_THREAD_PAGES * SMF_PAGE - KEPT);
    SMI_BARRIER();
    step();
}

static int convert_slots(shmalloc_heap *heap)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        struct smf_thread *slot = smi_thread_slot(heap, i);
        struct smf_page *d = slot ? smi_page(heap, heap->threads[i] >> SMF_PAGE_SHIFT) : NULL;
        if (heap->threads[i] == 0)
            continue;
        if (!d || d->kind != SMF_PAGE_META || d->page_count != SMF_THREAD_PAGES ||
            !is_at_rest(heap, slot)) {
            char text[64];
            snprintf(text, sizeof(text), "thread slot %u is none, or not at rest without an owner",
                     i);
            return damaged_older(heap, text);
        }
        d->tag = SMF_PURPOSE_SLOT;
        convert_slot(slot);
    }
    for (uint32_t i = 0; i < SMF_PROCESSES; i++)
        heap->processes[i].flags = 0;
    return 0;
}

/* ---- the end ---- */

static int check_converted(shmalloc_heap *heap)
{
    struct smi_view view;
    struct smi_check_result result;
    struct smi_finding finding = {0};
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    rc = smi_view_of_descriptor(&view, heap->fd, heap->path);
    if (rc == 0)
        rc = smi_check(&view, 0, smi_note_finding, &finding, &result);
    smi_view_finish(&view);
    if (finding.count > 0)
        return damaged_older(heap, finding.text);
    return rc < 0 ? smi_refused(rc, "%s: cannot check it before it is converted", heap->path) : 0;
}

int smi_convert_seal(shmalloc_heap *heap)
{
    struct smf_header *header = heap->header;
    if (!smi_layout_awaits_checksum(header))
        return 0;
    int rc = sync_heap(heap); /* the killed one may not have come so far */
    if (rc < 0)
        return rc;
    SMI_STORE(&header->checksum, smi_hash(header, offsetof(struct smf_header, checksum)));
    step();
    return sync_heap(heap);
}

int smi_convert_end(shmalloc_heap *heap, int adopted)
{
    int rc = adopted;
    if (heap->state->poison != 0 || rc == SHMALLOC_ECORRUPT)
        return damaged_older(heap, shmalloc_errmsg());
    if (rc == 0)
        rc = sync_heap(heap);
    if (rc == 0)
        rc = convert_slots(heap);
    if (rc == 0)
        rc = check_converted(heap);
    if (rc == 0)
        rc = sync_heap(heap);
    if (rc < 0)
        return rc;
    step();
    SMI_STORE(&heap->header->format_version, SMF_FORMAT_VERSION);
    step();
    heap->is_older = 0;
    return smi_convert_seal(heap);
}
