/* SPDX-License-Identifier: MIT */
/* walk.c - stepping and looking, in turns; see walk.h. */
#include "crashtest/walk.h"

#include <errno.h>
#include <stdlib.h>

enum { SEEN_MAX = 1 << 20 };

/* 1: a new one; 0: seen before; < 0: there are too many. */
static int is_new(struct smi_walk *w, uint64_t sum)
{
    uint64_t at = sum % SEEN_MAX;
    if (w->every)
        return ++w->images > 0;
    for (sum |= 1; w->seen[at] != 0; at = (at + 1) % SEEN_MAX)
        if (w->seen[at] == sum)
            return 0;
    if (w->images == SEEN_MAX / 2)
        return -ENOMEM;
    w->images++;
    w->seen[at] = sum;
    return 1;
}

/* On to the next change of the file: 1; 0 at ENDED. */
static int next_change(struct smi_walk *w)
{
    uint64_t changed_at = w->stepper->steps;
    for (int rc;;) {
        if ((rc = smi_stepper_step(w->stepper)) <= 0 || (w->each && (rc = w->each(w)) < 0) ||
            (rc = smi_image_look(w->image)) != 0)
            return rc;
        if (w->patience != 0 && w->stepper->steps - changed_at == w->patience) {
            w->free_run = 1;
            return smi_stepper_finish(w->stepper);
        }
    }
}

static int walk_on(struct smi_walk *w)
{
    int rc = smi_image_look(w->image);
    if (rc < 0)
        return rc;
    do {
        if (w->image->fd >= 0 && (rc = is_new(w, w->image->sum)) > 0)
            rc = w->visit(w);
        if (rc < 0)
            return rc;
    } while ((rc = next_change(w)) > 0);
    return rc;
}

int smi_walk(struct smi_walk *w)
{
    w->images = 0;
    w->free_run = 0;
    w->seen = w->every ? NULL : calloc(SEEN_MAX, sizeof(*w->seen));
    if (!w->seen && !w->every)
        return -ENOMEM;
    int rc = walk_on(w);
    free(w->seen);
    w->seen = NULL;
    return rc;
}
