/* SPDX-License-Identifier: MIT */
/*
 * top_look.c - one look at a heap, for `top`.
 *
 * It reads the state, the records of the central heap, the page heap, the locks and the thread
 * slots, and of descriptors only those of large blocks that threads keep, of which each has a few:
 * its cost does not grow with the heap. Each look opens the file anew, so a heap that grew, shrank,
 * was replaced or went away meanwhile is nothing special.
 */
#include "top.h"

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/os.h"
#include "format/sizeclass.h"

static void look_at_thread(struct inspect *in, struct look *look, uint32_t i, int table_is_valid)
{
    struct smi_view *view = &in->view;
    uint64_t ref;
    const struct smf_thread *t = smi_view_thread(view, i, &ref);
    if (!t || !t->owner || t->owner > SMF_PROCESSES)
        return;
    struct thread_look *thread = &look->threads[look->thread_count++];
    *thread = (struct thread_look){.process = (uint32_t)t->owner - 1,
                                   .tid = (uint32_t)t->tid,
                                   .slot = i,
                                   .serial = t->serial,
                                   .refilled = t->refilled,
                                   .flushed = t->flushed,
                                   .large = t->large};
    thread->alive = in->users.alive[thread->process];
    const struct smf_process *process = smi_view_record(
        view, view->header.areas.processes + thread->process * sizeof(*process), sizeof(*process));
    if (process && (thread->alive || table_is_valid)) {
        memcpy(thread->name, process->name, 16);
        thread->pid = process->pid;
    }
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        struct smi_view_stack stack;
        smi_view_read_stack(view, ref, t, k, &stack);
        look->classes[k].cached += stack.count;
        thread->slots += stack.count;
        thread->bytes += (uint64_t)stack.count * smi_classes[k].size;
    }
    thread->kept = smi_view_kept(view, i, t);
    look->kept += thread->kept.bytes;
    look->cached += thread->bytes + thread->kept.bytes;
}

/* Pages that threads' slots and their arrays take. */
static uint64_t thread_pages(struct smi_view *view)
{
    uint64_t pages = 0, ref;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *t = smi_view_thread(view, i, &ref);
        pages += t ? SMF_THREAD_PAGES : 0;
        for (unsigned k = 0; t && k < SMF_CLASSES; k++)
            pages += t->stacks[k] & SMF_STACK_PAGES;
    }
    return pages;
}

static void look_at_locks(struct smi_view *view, struct look *look)
{
    const struct smf_header *h = &view->header;
    for (uint32_t i = 0; i < h->lock_count; i++) {
        const struct smf_lock *lock =
            smi_view_record(view, h->areas.locks + i * sizeof(*lock), sizeof(*lock));
        if (!lock)
            continue;
        look->waits += lock->waits;
        look->repairs += lock->repairs;
        if (i + 1 == h->lock_count)
            look->page_waits = lock->waits;
        else if (i >= SMF_LOCK_CLASS_FIRST)
            look->classes[(i - SMF_LOCK_CLASS_FIRST) % SMF_CLASSES].waits += lock->waits;
    }
}

/* Returns the pages of all slabs, the library's own too. */
static uint64_t look_at_classes(struct smi_view *view, struct look *look)
{
    const struct smf_header *h = &view->header;
    uint64_t pages = 0;
    for (uint32_t arena = 0; arena <= h->arena_count; arena++) {
        for (unsigned k = 0; k < SMF_CLASSES; k++) {
            const struct smf_central *central = smi_view_record(
                view, h->areas.central + (arena * SMF_CLASSES + k) * sizeof(*central),
                sizeof(*central));
            if (!central)
                continue;
            struct class_look *class = &look->classes[k];
            class->refilled += central->refilled_slots;
            class->flushed += central->flushed_slots;
            pages += central->slab_count * smi_class_span_pages(k);
            class->slabs += arena < h->arena_count ? central->slab_count : 0;
            class->free += arena < h->arena_count ? central->free_slots : 0;
        }
    }
    return pages;
}

/* Pages that can be handed out, in chunks that belong to the heap now. */
static uint64_t usable_pages(const struct smi_view *view)
{
    uint64_t pages = 0;
    for (uint32_t i = 0; i < view->chunk_count; i++) {
        const struct smf_chunk *chunk = &view->chunks[i];
        pages +=
            chunk->first_page + chunk->page_count - smi_chunk_data_page(chunk, &view->header.areas);
    }
    return pages;
}

/* Used is what is neither free nor cached; parts are read one after the other, so a moving heap can
 * have fewer slots than are free. */
static void add_up(struct look *look, uint64_t usable, uint64_t slabs, uint64_t threads)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        struct class_look *class = &look->classes[k];
        uint64_t all = class->slabs * smi_classes[k].slots, idle = class->free + class->cached;
        class->in_use = all > idle ? all - idle : 0;
        look->central_free += class->free * smi_classes[k].size;
        look->allocated += class->in_use * smi_classes[k].size;
    }
    uint64_t others = slabs + threads + ((look->free + look->kept) >> SMF_PAGE_SHIFT);
    look->allocated += usable > others ? (usable - others) << SMF_PAGE_SHIFT : 0;
}

int inspect_take_look(struct inspect *in, struct look *look)
{
    memset(look, 0, sizeof(*look));
    smi_view_finish(&in->view);
    int rc = inspect_open(in);
    in->view.progress = NULL;
    if (rc == 0)
        rc = smi_view_settle(&in->view, NULL, NULL);
    if (rc < 0)
        return rc;
    struct smi_view *view = &in->view;
    struct smi_file_info file = {0};
    smi_os_stat(view->fd, &file);
    memcpy(look->uuid, view->header.uuid, sizeof(look->uuid));
    look->inode = file.inode, look->device = file.device;
    look->size = view->state.size, look->max_size = view->state.max_size;
    look->file_size = view->file_size, look->poison = view->state.poison;
    look->processes = in->users.processes;
    const struct smf_page_heap *pages =
        smi_view_record(view, view->header.areas.page_heap, sizeof(*pages));
    if (pages) {
        look->free = pages->free_pages << SMF_PAGE_SHIFT;
        look->takes = pages->takes, look->gives = pages->gives, look->grows = pages->grows;
    }
    uint64_t slabs = look_at_classes(view, look);
    int table_is_valid = inspect_runtime_is_valid(in);
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        look_at_thread(in, look, i, table_is_valid);
    look_at_locks(view, look);
    add_up(look, usable_pages(view), slabs, thread_pages(view));
    look->at = smi_os_clock();
    return 0;
}
