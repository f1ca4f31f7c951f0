/* SPDX-License-Identifier: MIT */
/*
 * learn.c - what a process remembers of a page while another one changes it.
 *
 * A process ends a slab, or gives it a side array, instruction by instruction. After each
 * instruction an onlooker looks at the slab's page, as its next free of a block in there would.
 * When the change is done, what the onlooker remembers must not be current, since the page is
 * something else by then.
 *
 * Each change is run once more with a planted fault: smf_state.reshaped is raised before the page's
 * words change instead of after. Then the onlooker must remember what is wrong: else this would
 * prove nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crashtest/stepper.h"
#include "handle/pagetable.h"
#include "support.h"

#define SIZE 100 /* bytes of a block */

static struct fixture f;
static uint32_t *phase;

static void trim(shmalloc_heap *heap)
{
    must(shmalloc_trim(heap) >= 0, "trim: %s", shmalloc_errmsg());
}

static void take_tagged(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc_tagged(heap, SIZE, 7, &ref));
}

static const struct change {
    const char *name;
    void (*run)(shmalloc_heap *heap);
} changes[] = {{"a slab that ends", trim}, {"a slab that gets a side array", take_tagged}};

/* One block of a new slab, of which the page is told, given back; then the change. */
static void stepped(void *arg)
{
    const struct change *change = arg;
    shmalloc_ref ref = 0;
    shmalloc_heap *heap = heap_open(f.path);
    must_work(shmalloc_ref_alloc(heap, SIZE, &ref));
    must_work(shmalloc_root_set(heap, "block", 0, ref));
    must_work(shmalloc_ref_free(heap, &ref));
    smi_stepper_mark(phase, SMI_BEGUN);
    change->run(heap);
    smi_stepper_mark(phase, SMI_ENDED);
    _exit(0);
}

/* Is what the onlooker remembers of the page taken for true? */
static int remembers(const shmalloc_heap *heap, uint64_t page)
{
    return heap->known[page] != 0 && smi_is_current(heap->known[page], heap->state->reshaped);
}

/* 1: the onlooker remembers what is not there any more. */
static int look_on(const struct change *change, int planted)
{
    struct smi_stepper stepper = {.phase = phase};
    shmalloc_ref ref = 0;
    int rc, learned = 0;
    f.heap = heap_create(f.path, 0);
    must(smi_stepper_start(&stepper, stepped, (void *)(uintptr_t)change) == 0, "%s",
         stepper.failure);
    must_work(shmalloc_root_get(f.heap, "block", 0, &ref));
    uint64_t page = ref >> SMF_PAGE_SHIFT, reshaped = f.heap->state->reshaped;
    if (planted)
        f.heap->state->reshaped += SMF_RESHAPED;
    while ((rc = smi_stepper_step(&stepper)) == 1)
        learned += smi_pagetable_learn(f.heap, ref);
    must(rc == 0, "%s", stepper.failure);
    must(learned > 0, "%s: the page was never known", change->name);
    must(f.heap->state->reshaped > reshaped, "%s: nobody was told", change->name);
    if (planted)
        f.heap->state->reshaped = reshaped + SMF_RESHAPED; /* as if the last store had been the
                                                              first one */
    int is_wrong = remembers(f.heap, page);
    smi_stepper_kill(&stepper);
    printf("%s%s: %llu steps, learned %d times, %s\n", change->name,
           planted ? ", told too early" : "", (unsigned long long)stepper.steps, learned,
           is_wrong ? "remembered" : "forgotten");
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    must_work(shmalloc_destroy(f.path));
    return is_wrong;
}

int main(void)
{
    int failures = 0;
    phase = shared_memory(sizeof(*phase));
    fixture_begin(&f);
    for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        *phase = SMI_PREPARING;
        failures += look_on(&changes[i], 0);
        *phase = SMI_PREPARING;
        failures += !look_on(&changes[i], 1);
    }
    fixture_end(&f);
    return failures != 0;
}
