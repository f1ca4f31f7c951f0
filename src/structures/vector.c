/* SPDX-License-Identifier: MIT */
/*
 * vector.c - elements of one size in segments, each of which doubles the vector and never moves.
 *
 * Who changes it holds its mutex. Truths are `length` and, while `sequence` is odd, `changing` and
 * `redo`.
 *
 *   append     the segment, if there is none, taken by its word; the element; `length`, which
 *              commits
 *   set        elements of 1, 2, 4 and 8 bytes: one store. Others: the new bytes to the block
 *              `redo`; `changing`; `sequence` odd, which commits; the element; `sequence` even
 *   truncate   `length`, which commits; `sequence` + 2; segments without an element retired, each
 *              by its word
 *
 * The next owner of the mutex after a death copies `redo` once more if `sequence` is odd, and
 * counts `sequence` on: a reader that saw a length which was cut off then looks again.
 *
 * A reader reads `sequence`, `length`, the segment and the element, in a read section, and
 * `sequence` again. If that is odd, the element that changes is read from `redo`. So nobody who was
 * stopped or killed holds it up.
 *
 * Invariants (check):
 *   V1  the element's size, that of the first segment and `redo` are possible; `changing` is 1 to
 *       `length` in a change
 *   V2  `length` elements lie in segments that are blocks of their size
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/vector.h>

#include "platform/os.h"
#include "structures/structures.h"

#define MOST_ELEMENT (1u << 20)
#define FIRST_BYTES 512u /* of the first segment, at least one element */
#define TRIES 1000       /* of a reader, before it takes the lock */

/* What a shmalloc_vector is. */
struct vector {
    struct smi_use use;
    uint64_t element;
    uint64_t stride; /* bytes from one element to the next */
    uint64_t first;  /* elements of the first segment */
    uint64_t redo;
    uint64_t is_atomic; /* elements change by one store */
    uint64_t reserved;
};
_Static_assert(sizeof(struct vector) == sizeof(shmalloc_vector), "one layout");

static struct smf_vector *vector_of(const struct vector *v)
{
    return (struct smf_vector *)v->use.head;
}

/* ---- shape ---- */

static int changes_at_once(uint64_t element)
{
    return element <= 8 && (element & (element - 1)) == 0;
}

static uint64_t stride_of(uint64_t element)
{
    return changes_at_once(element) ? element : (element + 7) & ~7ull;
}

static uint64_t first_of(uint64_t element)
{
    uint64_t first = 1;
    while (2 * first * stride_of(element) <= FIRST_BYTES)
        first *= 2;
    return first;
}

/* The segment of element `index`, and its place in there. Segment 0 has `first` elements, as has
 * segment 1; the next twice as many each. */
static uint32_t segment_of(uint64_t first, uint64_t index, uint64_t *place)
{
    if (index < first) {
        *place = index;
        return 0;
    }
    uint32_t shift = (uint32_t)(63 - __builtin_clzll(index / first));
    *place = index - (first << shift);
    return 1 + shift;
}

static uint64_t elements_in(uint64_t first, uint32_t segment)
{
    return segment == 0 ? first : first << (segment - 1);
}

/* Elements before a segment. */
static uint64_t elements_before(uint64_t first, uint32_t segment)
{
    return segment == 0 ? 0 : first << (segment - 1);
}

/* ---- elements ---- */

/* Words are copied one by one, by single loads and stores: others may change them at the same
 * time. */
static void copy_in(void *to, const void *from, uint64_t bytes)
{
    uint64_t word, *target = to;
    for (uint64_t at = 0; at < bytes; at += 8) {
        word = 0;
        memcpy(&word, (const uint8_t *)from + at, bytes - at < 8 ? bytes - at : 8);
        __atomic_store_n(&target[at / 8], word, __ATOMIC_RELAXED);
    }
}

static void copy_out(void *to, const void *from, uint64_t bytes)
{
    const uint64_t *source = from;
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t word = __atomic_load_n(&source[at / 8], __ATOMIC_RELAXED);
        memcpy((uint8_t *)to + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

#define STORE_AS(type)                                                                             \
    __atomic_store_n((type *)to, *(const type *)(const void *)word, __ATOMIC_RELEASE)
static void store_at_once(void *to, const void *from, uint64_t bytes)
{
    _Alignas(8) uint8_t word[8];
    memcpy(word, from, bytes);
    SMI_BARRIER();
    if (bytes == 8)
        STORE_AS(uint64_t);
    else if (bytes == 4)
        STORE_AS(uint32_t);
    else if (bytes == 2)
        STORE_AS(uint16_t);
    else
        STORE_AS(uint8_t);
    SMI_BARRIER();
}

#define LOAD_AS(type) *(type *)(void *)word = __atomic_load_n((const type *)from, __ATOMIC_ACQUIRE)
static void load_at_once(void *to, const void *from, uint64_t bytes)
{
    _Alignas(8) uint8_t word[8];
    if (bytes == 8)
        LOAD_AS(uint64_t);
    else if (bytes == 4)
        LOAD_AS(uint32_t);
    else if (bytes == 2)
        LOAD_AS(uint16_t);
    else
        LOAD_AS(uint8_t);
    memcpy(to, word, bytes);
}

static int damaged_segment(const struct vector *v, uint32_t k)
{
    return smi_structure_damaged(
        &v->use, "its segment %u is said to be at %#llx", k,
        k < SMF_VECTOR_SEGMENTS ? (unsigned long long)SMI_LOAD(&vector_of(v)->segment[k]) : 0);
}

/* The place of an element in the segment that begins at `ref`; NULL when it is not in the heap. */
static void *place_in(const struct vector *v, uint64_t ref, uint64_t place)
{
    uint64_t offset = place * v->stride;
    return ref % 8 == 0 && smi_in_heap(v->use.heap, ref, offset + v->stride)
               ? smi_at(v->use.heap, ref + offset)
               : NULL;
}

/* ---- reading ---- */

enum { AGAIN = 1 };

/* One look at an element: 0, AGAIN, or a negative code. A section is open, but in read-only
 * handles. */
static int look_at_element(const struct vector *v, uint64_t index, void *out)
{
    struct smf_vector *vector = vector_of(v);
    int has_section = !v->use.heap->read_only;
    uint64_t place, sequence = __atomic_load_n(&vector->sequence, __ATOMIC_ACQUIRE);
    if (index >= __atomic_load_n(&vector->length, __ATOMIC_ACQUIRE))
        return -ERANGE;
    uint32_t k = segment_of(v->first, index, &place);
    uint64_t ref =
        k < SMF_VECTOR_SEGMENTS ? __atomic_load_n(&vector->segment[k], __ATOMIC_ACQUIRE) : 0;
    if (has_section && !shmalloc_read_valid(v->use.heap))
        return AGAIN;
    int changes = sequence % 2 != 0 && SMI_LOAD(&vector->changing) == index + 1;
    const void *from = changes ? place_in(v, v->redo, 0) : place_in(v, ref, place);
    if (from && ref != 0 && v->is_atomic)
        load_at_once(out, from, v->element);
    else if (from && ref != 0)
        copy_out(out, from, v->element);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (SMI_LOAD(&vector->sequence) != sequence)
        return AGAIN;
    return from && ref != 0 ? 0 : damaged_segment(v, k);
}

static int read_element(const struct vector *v, uint64_t index, void *out)
{
    int rc = v->use.heap->read_only ? 0 : shmalloc_read_begin(v->use.heap);
    if (rc < 0)
        return rc;
    rc = look_at_element(v, index, out);
    int ended = v->use.heap->read_only ? 0 : shmalloc_read_end(v->use.heap);
    return ended == SHMALLOC_EOUSTED ? AGAIN : ended < 0 ? ended : rc;
}

/* ---- changing ---- */

/* The element that `redo` has gets its bytes, and all readers look again. */
static void finish_change(const struct vector *v)
{
    struct smf_vector *vector = vector_of(v);
    uint64_t place, index = SMI_LOAD(&vector->changing) - 1, sequence = SMI_LOAD(&vector->sequence);
    if (sequence % 2 != 0 && index < SMI_LOAD(&vector->length)) {
        uint32_t k = segment_of(v->first, index, &place);
        void *to =
            k < SMF_VECTOR_SEGMENTS ? place_in(v, SMI_LOAD(&vector->segment[k]), place) : NULL;
        const void *from = place_in(v, v->redo, 0);
        if (to && from && !v->is_atomic)
            copy_in(to, from, v->stride);
    }
    SMI_BARRIER();
    __atomic_store_n(&vector->sequence, sequence + 2 - sequence % 2, __ATOMIC_RELEASE);
    SMI_BARRIER();
}

/* The mutex is the caller's: what a dead owner left is finished. */
static int lock_vector(const struct vector *v)
{
    struct smf_vector *vector = vector_of(v);
    shmalloc_mutex *mutex = (shmalloc_mutex *)(void *)vector->mutex;
    int rc = shmalloc_mutex_lock(v->use.heap, mutex);
    if (rc < 0)
        return rc;
    if (rc == SHMALLOC_OWNER_DIED) {
        finish_change(v);
        if ((rc = shmalloc_mutex_consistent(v->use.heap, mutex)) < 0)
            return rc;
    }
    if (SMI_LOAD(&vector->head.life) == v->use.life)
        return 0;
    rc = shmalloc_mutex_unlock(v->use.heap, mutex);
    return rc < 0 ? rc : smi_structure_gone(&v->use);
}

static int unlock_vector(const struct vector *v, int rc)
{
    int unlocked =
        shmalloc_mutex_unlock(v->use.heap, (shmalloc_mutex *)(void *)vector_of(v)->mutex);
    return rc < 0 ? rc : unlocked;
}

static int no_vector(void)
{
    return smi_error(-EINVAL, "no vector: open one first");
}

/* A call that changes the vector: entered and locked. */
static int begin_change_of(shmalloc_vector *vector, const void *element, struct smi_thread **t)
{
    struct vector *v = (struct vector *)(void *)vector;
    int rc = 0;
    if (!v || !v->use.heap)
        return no_vector();
    if (!element)
        return smi_error(-EINVAL, "%s: no element", v->use.heap->path);
    *t = smi_structure_thread(v->use.heap, &rc);
    if (!*t || (rc = smi_structure_enter(&v->use, *t)) < 0)
        return rc;
    if ((rc = lock_vector(v)) < 0)
        smi_structure_leave(*t);
    return rc;
}

static int end_change_of(const struct vector *v, struct smi_thread *t, int rc)
{
    rc = unlock_vector(v, rc);
    smi_structure_leave(t);
    return rc;
}

static int out_of_range(const struct vector *v, uint64_t index)
{
    return smi_error(-ERANGE, "%s: element %llu; the vector at %#llx has %llu", v->use.heap->path,
                     (unsigned long long)index, (unsigned long long)v->use.ref,
                     (unsigned long long)SMI_LOAD(&vector_of(v)->length));
}

/* Where an element is, or with a new segment will be. */
static int find_element(const struct vector *v, struct smi_thread *t, uint64_t index, int make,
                        void **out)
{
    uint64_t place;
    uint32_t k = segment_of(v->first, index, &place);
    if (k >= SMF_VECTOR_SEGMENTS)
        return make ? smi_error(SHMALLOC_EFULL,
                                "%s: a vector has at most %llu elements of this size",
                                v->use.heap->path,
                                (unsigned long long)elements_before(v->first, SMF_VECTOR_SEGMENTS))
                    : damaged_segment(v, k);
    uint64_t *word = &vector_of(v)->segment[k];
    int rc = SMI_LOAD(word) == 0 && make
                 ? smi_part_take(t, elements_in(v->first, k) * v->stride, 64, 0, word)
                 : 0;
    if (rc < 0)
        return rc;
    *out = place_in(v, SMI_LOAD(word), place);
    return *out && SMI_LOAD(word) != 0 ? 0 : damaged_segment(v, k);
}

static int append_locked(const struct vector *v, struct smi_thread *t, const void *element,
                         uint64_t *index)
{
    void *to;
    uint64_t length = SMI_LOAD(&vector_of(v)->length);
    int rc = find_element(v, t, length, 1, &to);
    if (rc < 0)
        return rc;
    if (v->is_atomic)
        store_at_once(to, element, v->element);
    else
        copy_in(to, element, v->element);
    SMI_BARRIER();
    __atomic_store_n(&vector_of(v)->length, length + 1, __ATOMIC_RELEASE);
    SMI_BARRIER();
    if (index)
        *index = length;
    return 0;
}

int shmalloc_vector_append(shmalloc_vector *vector, const void *element, uint64_t *index)
{
    struct smi_thread *t = NULL;
    struct vector *v = (struct vector *)(void *)vector;
    int rc = begin_change_of(vector, element, &t);
    return rc < 0 ? rc : end_change_of(v, t, append_locked(v, t, element, index));
}

static int set_locked(const struct vector *v, struct smi_thread *t, uint64_t index,
                      const void *element)
{
    struct smf_vector *vector = vector_of(v);
    void *to, *redo = v->is_atomic ? NULL : place_in(v, v->redo, 0);
    if (index >= SMI_LOAD(&vector->length))
        return out_of_range(v, index);
    int rc = find_element(v, t, index, 0, &to);
    if (rc < 0)
        return rc;
    if (v->is_atomic) {
        store_at_once(to, element, v->element);
        return 0;
    }
    if (!redo)
        return smi_structure_damaged(&v->use, "it has no place for changes");
    __atomic_thread_fence(__ATOMIC_RELEASE); /* who reads the bytes below sees that the change
                                                before has ended */
    copy_in(redo, element, v->element);
    SMI_STORE(&vector->changing, index + 1); /* kill before: nothing happened */
    /* kill from here: finished */
    __atomic_store_n(&vector->sequence, SMI_LOAD(&vector->sequence) | 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    finish_change(v);
    return 0;
}

int shmalloc_vector_set(shmalloc_vector *vector, uint64_t index, const void *element)
{
    struct smi_thread *t = NULL;
    struct vector *v = (struct vector *)(void *)vector;
    int rc = begin_change_of(vector, element, &t);
    return rc < 0 ? rc : end_change_of(v, t, set_locked(v, t, index, element));
}

static int truncate_locked(const struct vector *v, uint64_t length)
{
    struct smf_vector *vector = vector_of(v);
    if (length > SMI_LOAD(&vector->length))
        return out_of_range(v, length);
    SMI_STORE(&vector->length, length);
    finish_change(v); /* readers that saw the old length look again */
    for (uint32_t k = SMF_VECTOR_SEGMENTS; k-- > 0 && elements_before(v->first, k) >= length;)
        if (SMI_LOAD(&vector->segment[k]) != 0 &&
            shmalloc_retire(v->use.heap, &vector->segment[k]) < 0)
            break; /* what could not be retired is used again, or retired by the next */
    return 0;
}

int shmalloc_vector_truncate(shmalloc_vector *vector, uint64_t length)
{
    struct smi_thread *t = NULL;
    struct vector *v = (struct vector *)(void *)vector;
    int rc = begin_change_of(vector, vector, &t);
    return rc < 0 ? rc : end_change_of(v, t, truncate_locked(v, length));
}

/* ---- getting ---- */

/* The writers' lock keeps them away. */
static int get_locked(const shmalloc_vector *vector, uint64_t index, void *element)
{
    struct smi_thread *t = NULL;
    const struct vector *v = (const struct vector *)(const void *)vector;
    shmalloc_vector copy = *vector;
    int rc = begin_change_of(&copy, element, &t);
    return rc < 0 ? rc : end_change_of(v, t, look_at_element(v, index, element));
}

/* Is the vector there, for a reader? In a heap that cannot be changed there is no thread slot to
 * say so. */
static int enter_to_read(const struct vector *v, struct smi_thread **t)
{
    int rc = 0;
    *t = NULL;
    if (v->use.heap->closed)
        return smi_heap_writable(v->use.heap);
    if (v->use.heap->read_only || SMI_LOAD(&v->use.heap->state->poison) != 0)
        return __atomic_load_n(&v->use.head->life, __ATOMIC_ACQUIRE) == v->use.life
                   ? 0
                   : smi_structure_gone(&v->use);
    *t = smi_structure_thread(v->use.heap, &rc);
    return *t ? smi_structure_enter(&v->use, *t) : rc;
}

int shmalloc_vector_get(const shmalloc_vector *vector, uint64_t index, void *element)
{
    const struct vector *v = (const struct vector *)(const void *)vector;
    struct smi_thread *t;
    if (!v || !v->use.heap)
        return no_vector();
    if (!element)
        return smi_error(-EINVAL, "%s: no place for the element", v->use.heap->path);
    int rc = enter_to_read(v, &t);
    if (rc < 0)
        return rc;
    for (unsigned tries = 0;
         (rc = t ? read_element(v, index, element) : look_at_element(v, index, element)) == AGAIN;)
        if (++tries == TRIES)
            break;
    if (t)
        smi_structure_leave(t);
    if (rc == AGAIN && t)
        rc = get_locked(vector, index, element);
    return rc == -ERANGE ? out_of_range(v, index)
           : rc == AGAIN
               ? smi_error(-EAGAIN, "%s: the vector changes all the time", v->use.heap->path)
               : rc;
}

int64_t shmalloc_vector_count(const shmalloc_vector *vector)
{
    const struct vector *v = (const struct vector *)(const void *)vector;
    if (!v || !v->use.heap)
        return no_vector();
    if (v->use.heap->closed)
        return smi_heap_writable(v->use.heap);
    if (__atomic_load_n(&v->use.head->life, __ATOMIC_ACQUIRE) != v->use.life)
        return smi_structure_gone(&v->use);
    return (int64_t)(__atomic_load_n(&vector_of(v)->length, __ATOMIC_ACQUIRE) & INT64_MAX);
}

int shmalloc_vector_each(const shmalloc_vector *vector,
                         int (*visit)(uint64_t index, const void *element, void *arg), void *arg)
{
    const struct vector *v = (const struct vector *)(const void *)vector;
    int64_t count = shmalloc_vector_count(vector);
    if (count < 0)
        return (int)count;
    if (!visit)
        return smi_error(-EINVAL, "%s: nobody to call", v->use.heap->path);
    uint8_t small[256], *element = v->element <= sizeof(small) ? small : malloc(v->element);
    if (!element)
        return smi_error(-ENOMEM, "%s: no private memory for an element", v->use.heap->path);
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < (uint64_t)count; i++) {
        rc = shmalloc_vector_get(vector, i, element);
        rc = rc == -ERANGE ? 0 : rc < 0 ? rc : visit(i, element, arg);
    }
    if (element != small)
        free(element);
    return rc;
}

/* ---- making, opening, freeing ---- */

static int make_vector(shmalloc_heap *heap, size_t element, struct smi_thread **t,
                       struct smf_vector **out)
{
    struct smf_structure *head;
    if (element == 0 || element > MOST_ELEMENT)
        return smi_error(-EINVAL, "%s: elements of %zu bytes; possible are 1 to %u", heap->path,
                         element, MOST_ELEMENT);
    int rc = smi_structure_begin(heap, SMF_TAG_VECTOR, t, &head);
    if (rc < 0)
        return rc;
    struct smf_vector *vector = *out = (struct smf_vector *)head;
    vector->element = element;
    vector->first = first_of(element);
    SMI_BARRIER();
    rc = changes_at_once(element) ? 0 : smi_part_take(*t, stride_of(element), 0, 1, &vector->redo);
    return rc < 0 ? smi_structure_drop(*t, rc) : 0;
}

int shmalloc_vector_create(shmalloc_heap *heap, size_t element, shmalloc_ref *out)
{
    struct smi_thread *t;
    struct smf_vector *vector;
    uint64_t at;
    if (!out || (smi_ref_of(heap, out, &at) && at % 8 != 0))
        return smi_error(-EINVAL, "%s: no place for the ref, or one that is not 8-aligned",
                         heap->path);
    int rc = make_vector(heap, element, &t, &vector);
    return rc < 0 ? rc : smi_structure_publish(t, &vector->head, out);
}

static int open_shape(struct smi_use *use, shmalloc_vector *out)
{
    const struct smf_vector *vector = (struct smf_vector *)use->head;
    uint64_t element = SMI_LOAD(&vector->element), first = SMI_LOAD(&vector->first);
    if (element == 0 || element > MOST_ELEMENT || first != first_of(element))
        return smi_structure_damaged(
            use, "its elements have %llu bytes, and its first segment %llu of them",
            (unsigned long long)element, (unsigned long long)first);
    struct vector v = {.use = *use,
                       .element = element,
                       .stride = stride_of(element),
                       .first = first,
                       .redo = SMI_LOAD(&vector->redo),
                       .is_atomic = (uint64_t)changes_at_once(element)};
    memcpy(out, &v, sizeof(v));
    return 0;
}

int shmalloc_vector_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_vector *out)
{
    struct smi_use use;
    if (!out)
        return smi_error(-EINVAL, "%s: no place for the vector", heap->path);
    int rc = smi_structure_open(heap, ref, SMF_TAG_VECTOR, &use);
    return rc < 0 ? rc : open_shape(&use, out);
}

static int of_size(const shmalloc_vector *vector, const char *name, size_t element)
{
    const struct vector *v = (const struct vector *)(const void *)vector;
    return element == 0 || v->element == element
               ? 0
               : smi_error(SHMALLOC_ESIZE,
                           "%s: root \"%s\" is a vector of elements of %llu bytes, expected %zu",
                           v->use.heap->path, name, (unsigned long long)v->element, element);
}

int shmalloc_vector_open_root(shmalloc_heap *heap, const char *name, size_t element,
                              shmalloc_vector *out)
{
    struct smi_use use;
    struct smi_thread *t;
    struct smf_vector *vector;
    uint64_t ref;
    if (!out)
        return smi_error(-EINVAL, "%s: no place for the vector", heap->path);
    int made = 0, rc = smi_structure_open_root(heap, name, SMF_TAG_VECTOR, &use);
    if (rc == SHMALLOC_ENOROOT && element != 0) {
        if ((rc = make_vector(heap, element, &t, &vector)) < 0 ||
            (made = rc = smi_structure_bind(t, &vector->head, name, &ref)) < 0)
            return rc;
        rc = smi_structure_open(heap, ref, SMF_TAG_VECTOR, &use);
    }
    if (rc == 0)
        rc = open_shape(&use, out);
    if (rc == 0)
        rc = of_size(out, name, element);
    return rc < 0 ? rc : made ? SHMALLOC_CREATED : 0;
}

shmalloc_ref shmalloc_vector_ref(const shmalloc_vector *vector)
{
    return ((const struct vector *)(const void *)vector)->use.ref;
}

int shmalloc_vector_free(shmalloc_heap *heap, shmalloc_ref *ref)
{
    return smi_structure_free(heap, ref, SMF_TAG_VECTOR);
}

int shmalloc_vector_remove(shmalloc_heap *heap, const char *name)
{
    return smi_structure_remove(heap, name, SMF_TAG_VECTOR);
}

static int free_vector(struct smi_ending *ending, struct smf_structure *head)
{
    struct smf_vector *vector = (struct smf_vector *)head;
    int rc = smi_part_end(ending, &vector->redo);
    for (uint32_t k = SMF_VECTOR_SEGMENTS; rc == 0 && k-- > 0;)
        rc = smi_part_end(ending, &vector->segment[k]);
    return rc;
}

/* ---- looking ---- */

static const char *fault_of_shape(const struct smf_vector *vector)
{
    if (vector->element == 0 || vector->element > MOST_ELEMENT ||
        vector->first != first_of(vector->element))
        return "a vector's element or first segment is of no possible size";
    if ((vector->redo != 0) == changes_at_once(vector->element))
        return "a vector has a place for changes that needs none, or the other way round";
    if (vector->sequence % 2 != 0 && vector->changing - 1 >= vector->length)
        return "a vector's change is of an element that it has not";
    return NULL;
}

static void check_vector(struct smi_view *view, uint64_t ref, smi_report_fn *report, void *arg)
{
    const struct smf_vector *vector = smi_view_at(view, ref, sizeof(*vector));
    const char *fault = vector ? fault_of_shape(vector) : "a vector's header is not in the heap";
    if (fault) {
        report("V1", ref, fault, arg);
        return;
    }
    if (vector->redo && !smi_structure_has_block(view, vector->redo, stride_of(vector->element)))
        report("V1", ref, "a vector's place for changes is no block of an element's size", arg);
    for (uint32_t k = 0; k < SMF_VECTOR_SEGMENTS; k++) {
        uint64_t segment = vector->segment[k],
                 bytes = elements_in(vector->first, k) * stride_of(vector->element);
        if (segment ? !smi_structure_has_block(view, segment, bytes)
                    : elements_before(vector->first, k) < vector->length)
            report("V2", ref + offsetof(struct smf_vector, segment) + 8 * k,
                   "a vector's segment is missing, or no block of its size", arg);
    }
    if (vector->length > elements_before(vector->first, SMF_VECTOR_SEGMENTS))
        report("V2", ref, "a vector has more elements than its segments can hold", arg);
}

static void describe_vector(struct smi_view *view, uint64_t ref, char *text, size_t room)
{
    const struct smf_vector *vector = smi_view_at(view, ref, sizeof(*vector));
    const char *fault = vector ? fault_of_shape(vector) : "its header is not in the heap";
    unsigned segments = 0;
    for (uint32_t k = 0; !fault && k < SMF_VECTOR_SEGMENTS; k++)
        segments += vector->segment[k] != 0;
    if (fault)
        snprintf(text, room, "%s", fault);
    else
        snprintf(text, room, "%llu elements of %llu bytes, %u segments",
                 (unsigned long long)vector->length, (unsigned long long)vector->element, segments);
}

static int each_part_of_vector(struct smi_view *view, uint64_t ref,
                               int (*visit)(uint64_t part, void *arg), void *arg)
{
    const struct smf_vector *vector = smi_view_at(view, ref, sizeof(*vector));
    int rc = vector && vector->redo ? visit(vector->redo, arg) : 0;
    for (uint32_t k = 0; vector && rc == 0 && k < SMF_VECTOR_SEGMENTS; k++)
        rc = vector->segment[k] ? visit(vector->segment[k], arg) : 0;
    return rc;
}

static int each_element(struct smi_view *view, uint64_t ref, smi_item_fn *visit, void *arg)
{
    const struct smf_vector *vector = smi_view_at(view, ref, sizeof(*vector));
    int rc = 0;
    if (!vector || fault_of_shape(vector))
        return SHMALLOC_ECORRUPT;
    uint64_t stride = stride_of(vector->element),
             most = elements_before(vector->first, SMF_VECTOR_SEGMENTS);
    for (uint64_t i = 0; rc == 0 && i < vector->length && i < most; i++) {
        uint64_t place;
        uint32_t k = segment_of(vector->first, i, &place);
        struct smi_item item = {.index = i, .length = vector->element, .ref = vector->segment[k]};
        item.bytes = vector->sequence % 2 != 0 && vector->changing == i + 1
                         ? smi_view_at(view, vector->redo, vector->element)
                         : smi_view_at(view, vector->segment[k] + place * stride, vector->element);
        if (!item.bytes) /* nor will the others of the segment be there */
            return SHMALLOC_ECORRUPT;
        rc = visit(&item, arg);
    }
    return rc;
}

const struct smi_structure_type smi_vector_type = {
    .tag = SMF_TAG_VECTOR,
    .name = "vector",
    .check = check_vector,
    .describe = describe_vector,
    .each_ref = each_part_of_vector,
    .each_item = each_element,
    .free = free_vector,
};
