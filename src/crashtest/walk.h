/* SPDX-License-Identifier: MIT */
/*
 * walk.h - the way through an operation, instruction by instruction, with a stop at each new image
 * of the heap.
 */
#ifndef SMI_CRASHTEST_WALK_H
#define SMI_CRASHTEST_WALK_H

#include "crashtest/image.h"
#include "crashtest/stepper.h"

struct smi_walk {
    /* set by the caller */
    struct smi_stepper *stepper; /* at BEGUN */
    struct smi_image *image;
    int every; /* images that were seen before on this walk are visited, too */
    /* Called at BEGUN, and after each instruction that changed the file to something not seen: 0,
     * or a negative code, which ends it. */
    int (*visit)(struct smi_walk *walk);
    /* The same after every instruction; NULL: nothing. */
    int (*each)(struct smi_walk *walk);
    void *arg;
    uint64_t patience; /* instructions without a change, after which the rest runs at full speed; 0
                          none */

    uint64_t images; /* visited */
    int free_run;    /* the rest was not stepped through */
    uint64_t *seen;  /* sums of images, hashed */
};

/* 0 at ENDED; -1 the process failed (stepper->failure), or the image could not be looked at
 * (image->failure), or there is no memory (-ENOMEM); what visit() or each() returned. */
int smi_walk(struct smi_walk *walk);

#endif
