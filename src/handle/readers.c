/* SPDX-License-Identifier: MIT */
/* readers.c - ousting sections, and waiting for them; see readers.h. */
#include "handle/readers.h"

#include "platform/os.h"

#define PATIENCE 50 /* looks for sections that are about to end, some microseconds apart */

static uint64_t no_epoch(shmalloc_heap *heap, uint64_t epoch)
{
    smi_heap_poison(heap, "the epoch of read sections is %llu, which it cannot be",
                    (unsigned long long)epoch);
    return 0;
}

uint64_t smi_readers_advance(shmalloc_heap *heap)
{
    uint64_t epoch = __atomic_add_fetch(&heap->state->epoch, 1, __ATOMIC_SEQ_CST);
    return SMI_LIKELY(epoch - 1 < SMF_EPOCH_MOST) ? epoch : no_epoch(heap, epoch);
}

int smi_readers_join(shmalloc_heap *heap, uint32_t *fences)
{
    static uint32_t joined; /* the process that has */
    struct smf_process *process = &heap->processes[heap->process_index];
    uint64_t epoch = SMI_LOAD(&heap->state->epoch);
    if (epoch - 1 >= SMF_EPOCH_MOST) {
        no_epoch(heap, epoch);
        return SHMALLOC_ECORRUPT;
    }
    if (SMI_LOAD(&joined) != smi_os_process_id() && smi_os_barrier_join() == 0)
        SMI_STORE(&joined, smi_os_process_id());
    *fences = SMI_LOAD(&joined) != smi_os_process_id();
    /* The flags before any epoch is loaded: who has no membarrier advances the epoch, and then
     * reads flags. */
    __atomic_fetch_or(&process->flags, SMF_PROCESS_READS | (*fences ? SMF_PROCESS_FENCES : 0),
                      __ATOMIC_SEQ_CST);
    return 0;
}

int smi_readers_look(shmalloc_heap *heap, const struct smf_thread *slot)
{
    uint64_t ousted = __atomic_load_n(&slot->ousted, __ATOMIC_ACQUIRE),
             epoch = SMI_LOAD(&heap->state->epoch);
    return ousted < epoch
               ? 0
               : smi_heap_poison(heap,
                                 "read sections up to epoch %llu are ousted, and it is only %llu",
                                 (unsigned long long)ousted, (unsigned long long)epoch);
}

/* Do all processes whose threads have sections fence them? */
static int all_fence(shmalloc_heap *heap)
{
    int all = 1;
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        uint64_t flags = SMI_LOAD(&heap->processes[i].flags);
        if (SMI_LOAD(&heap->processes[i].state) != 0 && (flags & SMF_PROCESS_READS) &&
            !(flags & SMF_PROCESS_FENCES))
            all = 0;
    }
    return all;
}

/* All stores of sections that began before this are seen after it. 0: they may not be. */
static int fence_readers(shmalloc_heap *heap)
{
    if (smi_os_barrier() == 0)
        return 1;
    /* A process that begins to read from here on does so in a later epoch than any stamp made
     * before. */
    return smi_readers_advance(heap) != 0 && all_fence(heap);
}

/* Oust up to `last`; 1: it was not ousted so far yet. */
static int oust(struct smf_thread *slot, uint64_t last)
{
    uint64_t was = SMI_LOAD(&slot->ousted);
    if (was >= last)
        return 0;
    while (was < last && !__atomic_compare_exchange_n(&slot->ousted, &was, last, 0,
                                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        ;
    return 1;
}

/* All slots are looked at: a thread table that was mended may have gaps. */
static int any_older(const shmalloc_heap *heap, uint64_t stamp, int ousting)
{
    int any = 0;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        struct smf_thread *slot = smi_thread_slot(heap, i);
        uint64_t began = slot ? __atomic_load_n(&slot->section_epoch, __ATOMIC_ACQUIRE) : 0;
        if (began != 0 && began < stamp)
            any |= ousting ? oust(slot, stamp - 1) : 1;
    }
    return any;
}

int smi_readers_oust(shmalloc_heap *heap, uint64_t stamp)
{
    if (!fence_readers(heap))
        return 0;
    return !any_older(heap, stamp, 1) || fence_readers(heap);
}

int smi_readers_are_gone(shmalloc_heap *heap)
{
    if (!(SMI_LOAD(&heap->state->features) & SMF_STATE_RETIRES)) /* nobody ever freed what others
                                                                    may read */
        return 1;
    uint64_t stamp = smi_readers_advance(heap);
    if (stamp == 0 || !fence_readers(heap))
        return 0;
    int any = any_older(heap, stamp, 0);
    for (int tries = 0; any && tries < PATIENCE; tries++) {
        smi_os_relax(100);
        any = any_older(heap, stamp, 0);
    }
    return !any;
}
