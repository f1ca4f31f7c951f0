/* SPDX-License-Identifier: MIT */
/*
 * ops.h - any string of bytes is a program for a heap, checked against a mirror of what must be
 * there.
 *
 * The same decoder serves the seeded program (model.c) and whoever feeds it bytes of another
 * origin.
 */
#ifndef MODEL_OPS_H
#define MODEL_OPS_H

#include <stddef.h>
#include <stdint.h>

struct model;

struct model_counts {
    uint64_t ops, allocated, freed, resized, roots, reopened, children, killed, rests, verified;
};

/* A heap at `path`, which must not exist, and an empty mirror. `flags` as for shmalloc_open(). */
struct model *model_begin(const char *path, unsigned flags);

/* Decode and carry out all of `bytes`. A difference from the mirror aborts the program. */
void model_run(struct model *m, const uint8_t *bytes, size_t len);

/* Carried out so far. */
uint64_t model_operations(const struct model *m);

/* Compare everything: contents, sizes, tags, the list of blocks, figures, roots, soundness. */
void model_verify(struct model *m);

/* Free all that is left; as much must be free as in the beginning. Closes the heap. */
void model_end(struct model *m, struct model_counts *counts);

#endif
