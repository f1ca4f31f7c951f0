/* SPDX-License-Identifier: MIT */
/* roots.h - named roots: a hash table of the library's own blocks, under the roots lock. */
#ifndef SMI_ROOTS_H
#define SMI_ROOTS_H

#include "handle/handle.h"

struct smi_name {
    const char *text;
    uint32_t len, hash;
};

/* 0, or -EINVAL for NULL, "" and more than SMF_ROOT_NAME_MAX bytes. */
int smi_name_of(shmalloc_heap *heap, const char *text, struct smi_name *out);

/* Bind the name. `absent_only`: return 1, with the root's ref and type in *ref and *type, if it is
 * bound already. `scratch`: a word that is set to 0 in the same step as the ref is published; may
 * be NULL. */
int smi_roots_bind(shmalloc_heap *heap, const struct smi_name *name, uint64_t *type, uint64_t *ref,
                   int absent_only, uint64_t *scratch);
/* 0; SHMALLOC_ENOROOT, without a message; or SHMALLOC_ECORRUPT. */
int smi_roots_find(const shmalloc_heap *heap, const struct smi_name *name, uint64_t *type,
                   uint64_t *ref);
/* SHMALLOC_ENOROOT with a message, which offers a name that is close to it. */
int smi_roots_missing(const shmalloc_heap *heap, const struct smi_name *name);
/* Unbind. `with`, if not NULL: only if the root names `ref`, and *word becomes `value` in the same
 * step. */
struct smi_unbinding {
    uint64_t ref, *word, value;
};
int smi_roots_remove(shmalloc_heap *heap, const struct smi_name *name,
                     const struct smi_unbinding *with);

/* Call `visit` for a snapshot of all roots, holding no lock. */
int smi_roots_each(const shmalloc_heap *heap, int (*visit)(const shmalloc_root *root, void *arg),
                   void *arg);

/* What a dead owner of the roots lock left. */
int smi_roots_repair(shmalloc_heap *heap, uint32_t index);

#endif
