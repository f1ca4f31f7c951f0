/* SPDX-License-Identifier: MIT */
/*
 * roots.c - named roots.
 *
 * Each root is a block of the library's own arena in one of 512 chains. Under the roots lock a
 * block goes from the central heap to `scratch`, is filled, and is linked in one logged operation
 * that clears `scratch`; removal goes the other way. So repair has one rule: undo the log, free
 * what `scratch` names.
 *
 * Invariants (check.c):
 *   R1  every chain is made of allocated blocks of the library's arena, each in the chain of its
 *       hash
 *   R2  count is the number of roots
 *
 * Processes that can write read under the lock. Read-only ones, and all in a poisoned heap, read
 * without, and again if `sequence` changed meanwhile or is odd.
 */
#include "names/roots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "slots/stacks.h"
#include "slots/central.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "handle/undo.h"

#define LONGEST_CHAIN (1u << 20) /* a bound for damaged chains, far above any that is used */

int smi_name_of(shmalloc_heap *heap, const char *text, struct smi_name *out)
{
    size_t len = text ? strnlen(text, SMF_ROOT_NAME_MAX + 1) : 0;
    if (len == 0 || len > SMF_ROOT_NAME_MAX)
        return smi_error(-EINVAL, "%s: a root's name has 1 to %d bytes", heap->path,
                         SMF_ROOT_NAME_MAX);
    *out = (struct smi_name){text, (uint32_t)len, (uint32_t)smi_hash(text, len)};
    return 0;
}

static struct smi_op begin_roots(shmalloc_heap *heap)
{
    return smi_op_begin(heap, &heap->roots->log_count, heap->roots->log, SMF_ROOT_LOG);
}

/* The root at `ref`, when all of it lies in the heap. */
static struct smf_root *root_at(const shmalloc_heap *heap, uint64_t ref)
{
    if (ref % 8 != 0 || !smi_in_heap(heap, ref, sizeof(struct smf_root)))
        return NULL;
    struct smf_root *root = smi_at(heap, ref);
    uint32_t len = SMI_LOAD(&root->name_len);
    return len <= SMF_ROOT_NAME_MAX && smi_in_heap(heap, ref, sizeof(*root) + len + 1) ? root
                                                                                       : NULL;
}

static const char *name_in(const struct smf_root *root)
{
    return (const char *)(root + 1);
}

/* The word that refers to the root of that name, or to the end of its chain, when *found becomes
 * NULL; NULL in a damaged chain. */
static uint64_t *find_link(const shmalloc_heap *heap, const struct smi_name *name,
                           struct smf_root **found)
{
    uint64_t *link = &heap->roots->bucket[name->hash % SMF_ROOT_BUCKETS];
    for (uint32_t steps = 0; steps < LONGEST_CHAIN; steps++) {
        uint64_t ref = SMI_LOAD(link);
        struct smf_root *root = *found = ref ? root_at(heap, ref) : NULL;
        if (ref == 0)
            return link;
        if (!root)
            return NULL;
        if (root->hash == name->hash && root->name_len == name->len &&
            memcmp(name_in(root), name->text, name->len) == 0)
            return link;
        link = &root->next;
    }
    return NULL;
}

static int damaged_chain(const shmalloc_heap *heap, const struct smi_name *name)
{
    return smi_heap_poison((shmalloc_heap *)heap, "chain of root \"%s\" is damaged", name->text);
}

static void begin_change(shmalloc_heap *heap)
{
    SMI_STORE(&heap->roots->sequence, heap->roots->sequence | 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static void end_change(shmalloc_heap *heap)
{
    __atomic_store_n(&heap->roots->sequence, (heap->roots->sequence | 1) + 1, __ATOMIC_RELEASE);
}

/* A new root at the head of its chain. */
static int insert_root(shmalloc_heap *heap, const struct smi_name *name, uint64_t type,
                       uint64_t ref, uint64_t *scratch)
{
    struct smf_roots *roots = heap->roots;
    int rc = smi_central_take_own(heap, sizeof(struct smf_root) + name->len + 1, &roots->scratch);
    if (rc < 0)
        return rc;
    uint64_t *head = &roots->bucket[name->hash % SMF_ROOT_BUCKETS],
             made = SMI_LOAD(&roots->scratch);
    struct smf_root *root = root_at(heap, made);
    if (!root)
        return damaged_chain(heap, name);
    *root = (struct smf_root){*head, ref, type, name->hash, name->len};
    memcpy(root + 1, name->text, name->len + 1);
    begin_change(heap);
    struct smi_op op = begin_roots(heap);
    smi_set(&op, head, made);
    smi_set(&op, &roots->scratch, 0);
    smi_set(&op, &roots->count, roots->count + 1);
    if (scratch)
        smi_set(&op, scratch, 0);
    smi_op_commit(&op);
    end_change(heap);
    return 0;
}

static void replace(shmalloc_heap *heap, struct smf_root *root, uint64_t type, uint64_t ref)
{
    begin_change(heap);
    struct smi_op op = begin_roots(heap);
    smi_set(&op, &root->ref, ref);
    smi_set(&op, &root->type, type);
    smi_op_commit(&op);
    end_change(heap);
}

int smi_roots_bind(shmalloc_heap *heap, const struct smi_name *name, uint64_t *type, uint64_t *ref,
                   int absent_only, uint64_t *scratch)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_ROOTS);
    if (rc < 0)
        return rc;
    struct smf_root *root;
    uint64_t *link = find_link(heap, name, &root);
    if (!link) {
        rc = damaged_chain(heap, name);
    } else if (!root) {
        rc = insert_root(heap, name, *type, *ref, scratch);
    } else if (absent_only) {
        *type = root->type;
        *ref = root->ref;
        rc = 1;
    } else {
        replace(heap, root, *type, *ref);
    }
    smi_lock_release(heap, SMF_LOCK_ROOTS);
    return rc;
}

/* Read something under the lock; or without it, when this process may not or cannot take it: then
 * an answer counts when nothing changed meanwhile. A writer that died in the middle leaves the
 * sequence odd; then the last answer has to do. */
typedef int reader_fn(const shmalloc_heap *heap, void *arg);

static int read_unlocked(const shmalloc_heap *heap, reader_fn *reader, void *arg)
{
    int rc = SHMALLOC_ENOROOT;
    for (int tries = 0; tries < 1000; tries++) {
        uint64_t before = __atomic_load_n(&heap->roots->sequence, __ATOMIC_ACQUIRE);
        rc = reader(heap, arg);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (before % 2 == 0 && SMI_LOAD(&heap->roots->sequence) == before)
            break;
        if (tries % 100 == 99)
            smi_os_sleep(1000000);
    }
    return rc;
}

static int read_roots(const shmalloc_heap *heap, reader_fn *reader, void *arg)
{
    if (heap->read_only || SMI_LOAD(&heap->state->poison))
        return read_unlocked(heap, reader, arg);
    int rc = smi_lock_acquire((shmalloc_heap *)heap, SMF_LOCK_ROOTS);
    if (rc < 0)
        return rc;
    rc = reader(heap, arg);
    smi_lock_release((shmalloc_heap *)heap, SMF_LOCK_ROOTS);
    return rc;
}

struct question {
    const struct smi_name *name;
    uint64_t type, ref;
};

static int find_once(const shmalloc_heap *heap, void *arg)
{
    struct question *question = arg;
    struct smf_root *root;
    if (!find_link(heap, question->name, &root))
        return SHMALLOC_ECORRUPT;
    if (!root)
        return SHMALLOC_ENOROOT;
    question->type = SMI_LOAD(&root->type);
    question->ref = SMI_LOAD(&root->ref);
    return 0;
}

int smi_roots_find(const shmalloc_heap *heap, const struct smi_name *name, uint64_t *type,
                   uint64_t *ref)
{
    struct question question = {name, 0, 0};
    int rc = read_roots(heap, find_once, &question);
    if (rc == SHMALLOC_ECORRUPT)
        return damaged_chain(heap, name);
    *type = question.type;
    *ref = question.ref;
    return rc;
}

/* ---- a name that is close ---- */

#define MOST_EDITS 2
#define MOST_CANDIDATES 1000 /* a missing root must not cost more in a heap of many thousands */

/* Edits that may be between a name and what was meant: the shorter, the fewer, or all short names
 * would be alike. */
static unsigned edits_for(uint32_t len)
{
    return len < 3 ? 0 : len < 6 ? 1 : MOST_EDITS;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static unsigned least_of(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* How many bytes have to be inserted, left out, replaced or swapped with their neighbour to make
 * `b` of `a`, large and small letters being the same; `most` + 1 when it is more than that. Only
 * MOST_EDITS columns beside the diagonal count. rows[0] is of the byte before the last one, rows[1]
 * of the last one. */
static unsigned edits_between(const char *a, uint32_t a_len, const char *b, uint32_t b_len,
                              unsigned most)
{
    uint8_t memory[3][SMF_ROOT_NAME_MAX + 2], *rows[3] = {memory[0], memory[1], memory[2]};
    memset(memory, MOST_EDITS + 1, sizeof(memory));
    for (uint32_t j = 0; j <= MOST_EDITS; j++)
        rows[1][j] = (uint8_t)j;
    for (uint32_t i = 1; i <= a_len; i++) {
        uint32_t first = i > MOST_EDITS ? i - MOST_EDITS : 1,
                 last = least_of(i + MOST_EDITS, b_len);
        unsigned best = MOST_EDITS + 1;
        memset(rows[2], MOST_EDITS + 1, b_len + 1);
        rows[2][0] = (uint8_t)least_of(i, MOST_EDITS + 1);
        for (uint32_t j = first; j <= last; j++) {
            unsigned edits = rows[1][j - 1] + (lower(a[i - 1]) != lower(b[j - 1]));
            edits = least_of(edits, 1u + least_of(rows[1][j], rows[2][j - 1]));
            if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
                lower(a[i - 2]) == lower(b[j - 1]))
                edits = least_of(edits, 1u + rows[0][j - 2]);
            rows[2][j] = (uint8_t)least_of(edits, MOST_EDITS + 1);
            best = least_of(best, rows[2][j]);
        }
        if (best > most && rows[2][0] > most)
            return most + 1;
        uint8_t *oldest = rows[0];
        rows[0] = rows[1];
        rows[1] = rows[2];
        rows[2] = oldest;
    }
    return least_of(rows[1][b_len], most + 1);
}

struct candidate {
    const struct smi_name *name;
    unsigned edits; /* of the best so far; one more than allowed: none */
    char text[SMF_ROOT_NAME_MAX + 1];
};

static void consider(struct candidate *best, const struct smf_root *root)
{
    char text[SMF_ROOT_NAME_MAX + 1];
    uint32_t len = SMI_LOAD(&root->name_len);
    if (best->edits == 0 || len > SMF_ROOT_NAME_MAX || len + best->edits <= best->name->len ||
        best->name->len + best->edits <= len)
        return;
    memcpy(text, name_in(root), len);
    text[len] = 0;
    unsigned edits = edits_between(best->name->text, best->name->len, text, len, best->edits - 1);
    if (edits >= best->edits)
        return;
    best->edits = edits;
    memcpy(best->text, text, len + 1);
}

static int find_closest(const shmalloc_heap *heap, void *arg)
{
    struct candidate *best = arg;
    unsigned looked_at = 0;
    best->edits = edits_for(best->name->len) + 1;
    best->text[0] = 0;
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++)
        for (uint64_t ref = SMI_LOAD(&heap->roots->bucket[i]);
             ref != 0 && looked_at < MOST_CANDIDATES; looked_at++) {
            const struct smf_root *root = root_at(heap, ref);
            if (!root)
                break;
            consider(best, root);
            ref = SMI_LOAD(&root->next);
        }
    return 0;
}

int smi_roots_missing(const shmalloc_heap *heap, const struct smi_name *name)
{
    struct candidate best = {.name = name};
    int rc = read_roots(heap, find_closest, &best);
    if (rc == 0 && best.text[0])
        return smi_error(SHMALLOC_ENOROOT, "%s: no root \"%s\"; there is one named \"%s\"",
                         heap->path, name->text, best.text);
    return smi_error(SHMALLOC_ENOROOT, "%s: no root \"%s\"", heap->path, name->text);
}

/* ---- all roots ---- */

/* Copies of roots, each a shmalloc_root whose name follows it. */
struct list {
    char *bytes;
    size_t used, room;
};

static int append_copy(struct list *list, const struct smf_root *root)
{
    uint32_t said = SMI_LOAD(&root->name_len),
             len = said <= SMF_ROOT_NAME_MAX ? said : SMF_ROOT_NAME_MAX;
    size_t needed = (sizeof(shmalloc_root) + len + 8) & ~(size_t)7;
    if (list->used + needed > list->room) {
        size_t room = list->room * 2 + needed;
        char *bytes = realloc(list->bytes, room);
        if (!bytes)
            return smi_error(-ENOMEM, "no private memory for the list of roots");
        list->bytes = bytes;
        list->room = room;
    }
    shmalloc_root *copy = (void *)(list->bytes + list->used);
    *copy = (shmalloc_root){NULL, SMI_LOAD(&root->type), SMI_LOAD(&root->ref)};
    memcpy(copy + 1, name_in(root), len);
    ((char *)(copy + 1))[len] = 0;
    /* where smi_roots_each will look for the next: a damaged name may have a zero before its end */
    list->used += (sizeof(*copy) + strlen((char *)(copy + 1)) + 8) & ~(size_t)7;
    return 0;
}

static int copy_all(const shmalloc_heap *heap, void *arg)
{
    struct list *list = arg;
    uint32_t steps = 0;
    list->used = 0;
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++) {
        for (uint64_t ref = SMI_LOAD(&heap->roots->bucket[i]); ref != 0;) {
            const struct smf_root *root = root_at(heap, ref);
            if (!root || ++steps == LONGEST_CHAIN)
                return SHMALLOC_ECORRUPT;
            int rc = append_copy(list, root);
            if (rc < 0)
                return rc;
            ref = SMI_LOAD(&root->next);
        }
    }
    return 0;
}

int smi_roots_each(const shmalloc_heap *heap, int (*visit)(const shmalloc_root *root, void *arg),
                   void *arg)
{
    struct list list = {NULL, 0, 0};
    int rc = read_roots(heap, copy_all, &list);
    if (rc == SHMALLOC_ECORRUPT)
        rc = smi_heap_poison((shmalloc_heap *)heap, "the list of roots is damaged");
    for (size_t at = 0; rc == 0 && at < list.used;) {
        shmalloc_root *root = (void *)(list.bytes + at);
        root->name = (const char *)(root + 1);
        at += (sizeof(*root) + strlen(root->name) + 8) & ~(size_t)7;
        rc = visit(root, arg);
    }
    free(list.bytes);
    return rc;
}

int smi_roots_remove(shmalloc_heap *heap, const struct smi_name *name,
                     const struct smi_unbinding *with)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_ROOTS);
    if (rc < 0)
        return rc;
    struct smf_roots *roots = heap->roots;
    struct smf_root *root;
    uint64_t *link = find_link(heap, name, &root);
    if (!link) {
        rc = damaged_chain(heap, name);
    } else if (!root || (with && SMI_LOAD(&root->ref) != with->ref)) {
        rc = SHMALLOC_ENOROOT;
    } else {
        uint64_t ref = (uint64_t)((uint8_t *)root - heap->base);
        begin_change(heap);
        struct smi_op op = begin_roots(heap);
        smi_set(&op, link, root->next);
        smi_set(&op, &roots->scratch, ref);
        smi_set(&op, &roots->count, roots->count - 1);
        if (with)
            smi_set(&op, with->word, with->value);
        smi_op_commit(&op);
        end_change(heap);
        rc = smi_central_give(heap, ref, &roots->scratch, NULL);
    }
    smi_lock_release(heap, SMF_LOCK_ROOTS);
    return rc == SHMALLOC_ENOROOT ? smi_roots_missing(heap, name) : rc;
}

int smi_roots_repair(shmalloc_heap *heap, uint32_t index)
{
    (void)index;
    struct smf_roots *roots = heap->roots;
    /* The library's classes first: in the middle of taking or giving a root's block their logs name
     * `scratch`. */
    uint32_t own = heap->arena_count,
             longest = smi_class_of(sizeof(struct smf_root) + SMF_ROOT_NAME_MAX + 1);
    int rc = smi_lock_pass(heap, smi_lock_of_class(own, 0), smi_lock_of_class(own, longest));
    if (rc == 0)
        rc = smi_undo_apply(heap, &roots->log_count, roots->log, SMF_ROOT_LOG);
    if (rc == 0 && roots->scratch != 0)
        rc = smi_central_give(heap, roots->scratch, &roots->scratch, NULL);
    if (rc == 0 && roots->sequence % 2 != 0)
        end_change(heap);
    return rc;
}
