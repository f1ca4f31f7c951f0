/* SPDX-License-Identifier: MIT */
/* attach.h - this process's entry in the table of a heap: claimed, and given up; whose file the
 * heap is. */
#ifndef SMI_ATTACH_H
#define SMI_ATTACH_H

#include "handle/handle.h"
#include "platform/os.h"

/* What a heap's file says of itself, read at once. */
struct smi_identity {
    struct smf_header header;
    struct smf_state state;
    struct smf_runtime runtime;
    struct smi_file_info file; /* looked at afterwards */
};

/* The attach lock: one process at a time attaches or leaves. SHMALLOC_EBUSY after ten seconds. The
 * descriptor was asked for. */
int smi_attach_lock(shmalloc_heap *heap);
void smi_attach_unlock(shmalloc_heap *heap);

/* Is another process attached? 0, 1 or a negated errno. */
int smi_others_alive(shmalloc_heap *heap);
/* `rc` with a message: the file's locks cannot be looked at. */
int smi_attach_cannot_look(const shmalloc_heap *heap, int rc);

/* The machine's boot id; `path` is for the message. */
int smi_attach_boot_id(const char *path, uint8_t out[16]);

/* SHMALLOC_EUNCLEAN if the machine stopped, or the file was copied, while the heap was in use, and
 * nobody has checked it since; else 0. */
int smi_attach_unclean(shmalloc_heap *heap);

/* Before anything of the mapping is touched, under the attach lock: when this is not the file that
 * the heap was closed in, or has fewer bytes behind it, its storage is not believed (holes.h),
 * unless the heap will be found unclean. */
int smi_attach_storage(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean);
/* The same for a reader, who can give it none: -ENOSPC where reading what is missing would need
 * more than there is. */
int smi_attach_readable(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean);

/* Become a process of the heap; the attach lock is held. When nobody else is attached, the heap is
 * taken into use in a new generation: all locks are made anew, what was in flight under them is
 * undone; SHMALLOC_EUNCLEAN unless `accept_unclean`. Else this process joins the others:
 * SHMALLOC_EFOREIGN when it cannot, SHMALLOC_EBUSY when it wants to be `alone`;
 * SHMALLOC_EPROCESSES. What the dead left is brought to rest. */
int smi_attach(shmalloc_heap *heap, int accept_unclean, int alone);

/* A value of heap->epoch that this process never had. */
uint64_t smi_attach_epoch(void);

/* Leave the heap, in order; the registry lock is held, no other thread is in a call. `cut_off`: the
 * process ends, maybe in a signal handler that interrupted a call, without a lock, of this
 * thread. */
int smi_attach_end(shmalloc_heap *heap, int cut_off);
/* Leave as a killed process does: others adopt what is left here. */
void smi_attach_drop(shmalloc_heap *heap);

#endif
