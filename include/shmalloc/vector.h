/* SPDX-License-Identifier: MIT */
/**
 * @file vector.h - an array in a heap that grows at its end: one writer at a time, readers without
 * locks.
 *
 * Elements have one size. What was appended never moves: growing copies nothing. A reader never
 * waits, whoever died or was stopped in the middle of a change, and sees each element wholly as it
 * was before or after one.
 *
 * Words are those of shmalloc.h. All calls are safe from any thread of any process at the same
 * time. A handle (shmalloc_vector) is plain memory of the caller, may be copied, is used by any
 * number of threads at once, stays valid in forked children, and needs no end.
 */
#ifndef SHMALLOC_VECTOR_H
#define SHMALLOC_VECTOR_H

#include <shmalloc/shmalloc.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A vector, as the process knows it. Filled by shmalloc_vector_open() and _open_root(). */
typedef struct shmalloc_vector {
    shmalloc_heap *heap;
    uint64_t opaque[9];
} shmalloc_vector;

/**
 * Make a vector of elements of `element` bytes, 1 to 1 MiB, and store its ref in `*out`.
 * @param out  If it points into the heap (8-aligned), making and storing are one crash-atomic step.
 * @return 0, or a negative code and no vector: -EINVAL; codes of shmalloc_ref_alloc();
 *         SHMALLOC_EBUSY: a structure that this thread freed is still used by a stopped one.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_create(shmalloc_heap *heap, size_t element, shmalloc_ref *out);

/**
 * Use the vector that `ref` names.
 * @return 0; SHMALLOC_EBADREF: no block of this heap; SHMALLOC_ETYPE: a block, but no vector;
 *         SHMALLOC_EGONE: a vector that was freed; SHMALLOC_ECORRUPT: its header is damaged;
 *         SHMALLOC_ECLOSED; -EINVAL. Works read-only.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_vector *out);

/**
 * Use the vector that the root `name` names; make it if there is no such root and `element` is not
 * 0.
 * @return 0 found; SHMALLOC_CREATED; SHMALLOC_ENOROOT; SHMALLOC_ETYPE: the root is of another type;
 *         SHMALLOC_ESIZE: the elements have another size than `element`, which is not 0; codes of
 *         _create() and _open(). Visible, crash-atomic.
 */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_vector_open_root(shmalloc_heap *heap,
                                                               const char *name, size_t element,
                                                               shmalloc_vector *out);

/** The vector's ref. */
SHMALLOC_API shmalloc_ref shmalloc_vector_ref(const shmalloc_vector *vector);

/** Free the vector `*ref` and store 0 there, in one step as shmalloc_queue_free() does. Refs in
 * elements are the
 *  program's: what they name is not freed. From then on each call on the vector is
 * SHMALLOC_EGONE. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_free(shmalloc_heap *heap, shmalloc_ref *ref);

/** Remove the root `name` and free the vector that it names, in one step. SHMALLOC_ENOROOT,
 * SHMALLOC_ETYPE. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_remove(shmalloc_heap *heap, const char *name);

/**
 * Append a copy of `*element`. Its index goes to `*index`, which may be NULL.
 * @return 0; SHMALLOC_EGONE; SHMALLOC_EREADONLY, _ECORRUPT, _EPOISONED, _ETHREADS; when it has to
 *         grow, which is when the number of elements has doubled, the codes of
 *         shmalloc_ref_alloc().
 * Visible; crash-atomic. Waits for others who change the vector.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_append(shmalloc_vector *vector, const void *element, uint64_t *index);

/**
 * Copy element `index` to `*element`.
 * @return 0; -ERANGE: there are not so many; SHMALLOC_EGONE, _ECORRUPT, _ECLOSED. Takes no lock and
 *         waits for nobody, but that it looks again when the vector changed meanwhile, and after
 *         1,000 times does it under the lock. Works read-only, and in a poisoned heap.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_get(const shmalloc_vector *vector, uint64_t index, void *element);

/** Replace element `index` by a copy of `*element`. -ERANGE; codes of _append(). Visible;
 * crash-atomic, whatever the size. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_set(shmalloc_vector *vector, uint64_t index, const void *element);

/** Let it have `length` elements, the first ones. Memory that is not needed any more is freed when
 * nobody can read it.
 *  -ERANGE: there are fewer; codes of _append(). Visible; crash-atomic. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_vector_truncate(shmalloc_vector *vector, uint64_t length);

/** Number of elements; or a negative code. Works read-only. */
SHMALLOC_API int64_t shmalloc_vector_count(const shmalloc_vector *vector);

/** Call `visit` with a copy of each element, from the first on, holding no lock; a value other than
 * 0 from it stops and is
 *  returned. Elements that are appended or cut off meanwhile may or may not be seen. Works
 *  read-only. */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_vector_each(
    const shmalloc_vector *vector, int (*visit)(uint64_t index, const void *element, void *arg),
    void *arg);

#ifdef __cplusplus
}
#endif

#endif
