/* SPDX-License-Identifier: MIT */
/*
 * ops.c - the decoder, the operations and the mirror.
 *
 * The mirror has a record for each of SLOTS places. The words of the first half are in a table in
 * the heap, so that allocating, freeing and resizing there go through link records; those of the
 * second half are in the mirror. The mirror is memory that children share, so an operation may be
 * carried out by a child that is then killed: what it finished must be there, and nothing else.
 *
 * What a broken allocator runs into: a new block that overlaps a live one, contents that changed, a
 * size or tag that is not as promised, a block in the list that the mirror does not have or the
 * other way round, figures that differ from the recount, a heap that is not sound.
 */
#include "ops.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support.h"

enum { SLOTS = 1024, LINKED = 512, ROOTS = 64 };

struct slot {
    uint64_t ref;  /* 0: empty; for linked slots a copy of the word in the heap */
    uint64_t size; /* asked for, and filled with the stamp's pattern */
    uint64_t usable;
    uint64_t stamp;
    uint16_t tag;
};

struct root {
    int bound;
    uint64_t ref, type;
};

/* What parent and children see alike. */
struct mirror {
    struct slot slots[SLOTS];
    struct root roots[ROOTS];
    uint64_t next_stamp;
    const uint8_t *at, *end; /* of the program; children go on in it */
    struct model_counts counts;
    uint32_t closed; /* the parent has left the heap to the child */
};

struct model {
    shmalloc_heap *heap;
    char path[256];
    struct mirror *mirror;
    shmalloc_ref table_ref; /* the words of linked slots, and a mutex behind them */
    struct usage empty;
    int in_child;
};

/* ---- decoding ---- */

static unsigned take8(struct model *m)
{
    return m->mirror->at < m->mirror->end ? *m->mirror->at++ : 0;
}

static unsigned take16(struct model *m)
{
    unsigned low = take8(m);
    return low | take8(m) << 8;
}

/* Mostly small, one in 16 up to 64 KiB, one in 128 up to 2 MiB. */
static size_t take_size(struct model *m)
{
    unsigned kind = take8(m), value = take16(m);
    if (kind < 2)
        return value * 32u;
    if (kind < 16)
        return value;
    return value >> (4 + kind % 12);
}

static unsigned take_slot(struct model *m)
{
    return take16(m) % SLOTS;
}

/* ---- slots ---- */

static uint64_t *table(struct model *m)
{
    return shmalloc_ptr(m->heap, m->table_ref);
}

static shmalloc_mutex *mutex(struct model *m)
{
    return (shmalloc_mutex *)(void *)(table(m) + LINKED);
}

/* The word that the library stores the slot's ref to. */
static uint64_t *word_of(struct model *m, unsigned i)
{
    return i < LINKED ? &table(m)[i] : &m->mirror->slots[i].ref;
}

static void must_hold(struct model *m, unsigned i)
{
    const struct slot *s = &m->mirror->slots[i];
    const void *block = shmalloc_ptr_range(m->heap, s->ref, s->usable);
    must(block, "slot %u: block %#llx is outside the heap", i, (unsigned long long)s->ref);
    must(*word_of(m, i) == s->ref, "slot %u: the word is %#llx, not %#llx", i,
         (unsigned long long)*word_of(m, i), (unsigned long long)s->ref);
    size_t at = pattern_check(block, s->size, s->stamp);
    must(at == s->size, "slot %u: byte %zu of %llu of block %#llx changed", i, at,
         (unsigned long long)s->size, (unsigned long long)s->ref);
    must(shmalloc_usable_size(m->heap, block) == s->usable, "slot %u: usable size changed", i);
    must(shmalloc_tag(m->heap, s->ref) == s->tag, "slot %u: tag is %u, not %u", i,
         shmalloc_tag(m->heap, s->ref), s->tag);
}

static void must_not_overlap(struct model *m, unsigned i)
{
    const struct slot *slots = m->mirror->slots, *s = &slots[i];
    for (unsigned k = 0; k < SLOTS; k++)
        must(k == i || slots[k].ref == 0 || s->ref + s->usable <= slots[k].ref ||
                 slots[k].ref + slots[k].usable <= s->ref,
             "slots %u (%#llx, %llu bytes) and %u (%#llx, %llu bytes) overlap", i,
             (unsigned long long)s->ref, (unsigned long long)s->usable, k,
             (unsigned long long)slots[k].ref, (unsigned long long)slots[k].usable);
}

/* A block has arrived in slot i, of whose bytes the first `kept` are the pattern of its stamp: fill
 * it. */
static void settle(struct model *m, unsigned i, size_t size, uint64_t alignment)
{
    struct slot *s = &m->mirror->slots[i];
    s->ref = *word_of(m, i);
    void *block = shmalloc_ptr(m->heap, s->ref);
    s->usable = shmalloc_usable_size(m->heap, block);
    must(s->ref && block, "slot %u: no block", i);
    must(s->usable >= size, "slot %u: %zu bytes asked, %llu usable", i, size,
         (unsigned long long)s->usable);
    must(s->ref % alignment == 0, "slot %u: %#llx is not aligned to %llu", i,
         (unsigned long long)s->ref, (unsigned long long)alignment);
    s->size = size;
    must_not_overlap(m, i);
}

static void free_slot(struct model *m, unsigned i)
{
    struct slot *s = &m->mirror->slots[i];
    if (s->ref == 0)
        return;
    must_hold(m, i);
    must_work(shmalloc_ref_free(m->heap, word_of(m, i)));
    must(*word_of(m, i) == 0, "slot %u: free left the word", i);
    s->ref = 0;
    m->mirror->counts.freed++;
}

enum way { PLAIN, ZEROED, TAGGED, ALIGNED, BY_POINTER, CALLOC, ALIGNED_POINTER, WAYS };

static int allocate_by(struct model *m, enum way way, size_t size, size_t alignment, uint16_t tag,
                       uint64_t *word)
{
    void *block = NULL;
    switch (way) {
    case PLAIN:
        return shmalloc_ref_alloc(m->heap, size, word);
    case ZEROED:
        return shmalloc_ref_alloc_zeroed(m->heap, size, word);
    case TAGGED:
        return shmalloc_ref_alloc_tagged(m->heap, size, tag, word);
    case ALIGNED:
        return shmalloc_ref_alloc_aligned(m->heap, alignment, size, word);
    case BY_POINTER:
        block = shmalloc_malloc(m->heap, size);
        break;
    case CALLOC:
        block = shmalloc_calloc(m->heap, size, 1);
        break;
    default:
        block = shmalloc_aligned_alloc(m->heap, alignment, size);
    }
    *word = shmalloc_ref_of(m->heap, block);
    return block ? 0 : -ENOMEM;
}

static void op_allocate(struct model *m)
{
    unsigned i = take_slot(m);
    enum way way = (enum way)(take8(m) % (i < LINKED ? ALIGNED + 1 : WAYS));
    size_t size = take_size(m);
    int aligned = way == ALIGNED || way == ALIGNED_POINTER;
    uint64_t alignment = aligned ? 1ull << take8(m) % 21 : size <= 8 ? 8 : 16;
    uint16_t tag = way == TAGGED ? (uint16_t)(take8(m) + 1) : 0;
    free_slot(m, i);
    must_work(allocate_by(m, way, size, alignment, tag, word_of(m, i)));
    struct slot *s = &m->mirror->slots[i];
    s->tag = tag;
    s->stamp = ++m->mirror->next_stamp;
    settle(m, i, size, alignment);
    void *block = shmalloc_ptr(m->heap, s->ref);
    must((way != ZEROED && way != TAGGED && way != CALLOC) || all_zero(block, size),
         "slot %u: %zu bytes are not zero", i, size);
    pattern_fill(block, 0, size, s->stamp);
    m->mirror->counts.allocated++;
}

static void op_free(struct model *m)
{
    free_slot(m, take_slot(m));
}

static void op_resize(struct model *m)
{
    unsigned i = take_slot(m);
    int by_pointer = i >= LINKED && take8(m) % 2;
    size_t size = take_size(m);
    struct slot *s = &m->mirror->slots[i];
    uint64_t old_ref = s->ref;
    size_t kept = s->ref == 0 ? 0 : s->size < size ? s->size : size;
    if (s->ref)
        must_hold(m, i);
    else
        s->stamp = ++m->mirror->next_stamp;
    if (by_pointer) {
        void *block = shmalloc_realloc(m->heap, shmalloc_ptr(m->heap, s->ref), size);
        must(block, "%s", shmalloc_errmsg());
        s->ref = shmalloc_ref_of(m->heap, block);
    } else {
        must_work(shmalloc_ref_realloc(m->heap, word_of(m, i), size));
    }
    settle(m, i, size, size <= 8 ? 8 : 16);
    if (s->ref != old_ref)
        s->tag = 0;
    void *block = shmalloc_ptr(m->heap, s->ref);
    must(pattern_check(block, kept, s->stamp) == kept, "slot %u: contents lost", i);
    pattern_fill(block, kept, size, s->stamp);
    m->mirror->counts.resized++;
}

/* A ref that is no block's first byte, given to free. */
static void op_bad_free(struct model *m)
{
    const struct slot *s = &m->mirror->slots[take_slot(m)];
    uint64_t ref = s->ref ? s->ref + 1 + take16(m) % s->usable : (uint64_t)take16(m) * 8 + 8;
    if (s->ref && ref >= s->ref + s->usable)
        return;
    uint64_t word = ref;
    if (!s->ref && ref >= 8192)
        return; /* the runtime area ends somewhere there: it is enough to hit it in unit tests */
    must_code(shmalloc_ref_free(m->heap, &word), SHMALLOC_EBADREF);
    must(word == ref, "a refused free changed the word");
}

/* ---- roots ---- */

static const char *root_name(unsigned i)
{
    static char name[300];
    int len = snprintf(name, sizeof(name), "root %u ", i);
    memset(name + len, 'x', i * 3);
    name[len + (int)i * 3] = 0;
    return name;
}

static void op_root(struct model *m)
{
    unsigned i = take8(m) % ROOTS, what = take8(m);
    struct root *r = &m->mirror->roots[i];
    uint64_t got = 0;
    m->mirror->counts.roots++;
    if (what % 4 == 0) {
        must_code(shmalloc_root_remove(m->heap, root_name(i)), r->bound ? 0 : SHMALLOC_ENOROOT);
        r->bound = 0;
    } else if (what % 4 == 1) {
        must_code(shmalloc_root_get(m->heap, root_name(i), 0, &got),
                  r->bound ? 0 : SHMALLOC_ENOROOT);
        must(!r->bound || got == r->ref, "root %u is %llu", i, (unsigned long long)got);
    } else {
        r->ref = m->mirror->slots[take_slot(m)].ref; /* a block, or 0 */
        r->type = what / 4 % 3;
        must_work(shmalloc_root_set(m->heap, root_name(i), r->type, r->ref));
        r->bound = 1;
    }
}

static int visit_root(const shmalloc_root *root, void *arg)
{
    struct model *m = arg;
    unsigned i = ROOTS;
    must(sscanf(root->name, "root %u", &i) == 1 && i < ROOTS, "unknown root %s", root->name);
    const struct root *r = &m->mirror->roots[i];
    must(strcmp(root->name, root_name(i)) == 0 && r->bound && r->ref == root->ref &&
             r->type == root->type,
         "root %u is not as it was set", i);
    return 0;
}

static void verify_roots(struct model *m)
{
    uint64_t bound = 0;
    for (unsigned i = 0; i < ROOTS; i++)
        bound += m->mirror->roots[i].bound != 0;
    must_work(shmalloc_root_each(m->heap, visit_root, m));
    must(heap_stats(m->heap).roots == bound, "stats count %llu roots, there are %llu",
         (unsigned long long)heap_stats(m->heap).roots, (unsigned long long)bound);
}

/* ---- the heap as a whole ---- */

static void op_trim(struct model *m)
{
    must(shmalloc_trim(m->heap) >= 0, "%s", shmalloc_errmsg());
}

static void op_sync(struct model *m)
{
    const struct slot *s = &m->mirror->slots[take_slot(m)];
    must_work(shmalloc_sync(m->heap, s->ref, s->ref ? s->usable : 0));
}

static int find_block(const void *key, const void *item)
{
    uint64_t ref = *(const uint64_t *)key, other = ((const shmalloc_block *)item)->ref;
    return ref < other ? -1 : ref > other;
}

static void verify_listed(const shmalloc_block *blocks, size_t count, uint64_t ref, uint64_t usable,
                          uint16_t tag)
{
    const shmalloc_block *b = bsearch(&ref, blocks, count, sizeof(*blocks), find_block);
    must(b, "block %#llx is not listed", (unsigned long long)ref);
    must(b->size == usable && b->tag == tag, "block %#llx is listed with %llu bytes and tag %u",
         (unsigned long long)ref, (unsigned long long)b->size, b->tag);
}

void model_verify(struct model *m)
{
    shmalloc_block *blocks;
    size_t listed = all_blocks(m->heap, &blocks);
    uint64_t bytes = shmalloc_usable_size(m->heap, table(m));
    size_t count = 1;
    verify_listed(blocks, listed, m->table_ref, bytes, 0);
    for (unsigned i = 0; i < SLOTS; i++) {
        const struct slot *s = &m->mirror->slots[i];
        must(s->ref || *word_of(m, i) == 0, "slot %u: word is set", i);
        if (s->ref == 0)
            continue;
        must_hold(m, i);
        verify_listed(blocks, listed, s->ref, s->usable, s->tag);
        bytes += s->usable;
        count++;
    }
    free(blocks);
    must(listed == count, "%zu blocks are listed, %zu are known", listed, count);
    shmalloc_stats stats = heap_stats(m->heap);
    must(stats.allocated == bytes && stats.allocated_blocks == count,
         "stats say %llu bytes in %llu blocks; there are %llu in %zu",
         (unsigned long long)stats.allocated, (unsigned long long)stats.allocated_blocks,
         (unsigned long long)bytes, count);
    verify_roots(m);
    must_be_sound(m->heap);
    m->mirror->counts.verified++;
}

static void op_reopen(struct model *m)
{
    if (m->in_child)
        return; /* the parent's handle is the same memory */
    must_work(shmalloc_close(m->heap));
    m->heap = heap_open(m->path);
    m->mirror->counts.reopened++;
}

/* ---- children ---- */

static void carry_out(struct model *m, unsigned count);

enum ending { EXITS, CLOSES, KILLED, KILLED_WITH_MUTEX };

static _Noreturn void end_child(struct model *m, enum ending ending)
{
    if (ending == CLOSES)
        must_work(shmalloc_close(m->heap));
    if (ending == KILLED_WITH_MUTEX)
        must(shmalloc_mutex_lock(m->heap, mutex(m)) >= 0, "%s", shmalloc_errmsg());
    if (ending >= KILLED)
        raise(SIGKILL);
    _exit(0);
}

/* The next operations are a child's, which then comes to an end. */
static void op_child(struct model *m)
{
    enum ending ending = (enum ending)(take8(m) % 4);
    unsigned count = take8(m) % 32;
    if (m->in_child)
        return;
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    must(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        die_with_parent(parent);
        m->in_child = 1;
        carry_out(m, count);
        end_child(m, ending);
    }
    int status = wait_child_within(pid, 30000);
    must(status == (ending >= KILLED ? -SIGKILL : 0), "child: status %d", status);
    m->mirror->counts.children++;
    m->mirror->counts.killed += ending >= KILLED;
    if (ending == KILLED_WITH_MUTEX) {
        must_code(shmalloc_mutex_lock(m->heap, mutex(m)), SHMALLOC_OWNER_DIED);
        must_work(shmalloc_mutex_consistent(m->heap, mutex(m)));
        must_work(shmalloc_mutex_unlock(m->heap, mutex(m)));
    }
}

/* The child is the last one on the heap when it ends; the heap is then opened from rest. */
static void op_rest(struct model *m)
{
    enum ending ending = (enum ending)(take8(m) % 4);
    unsigned count = take8(m) % 32;
    if (m->in_child)
        return;
    m->mirror->closed = 0;
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    must(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        die_with_parent(parent);
        m->in_child = 1;
        carry_out(m, 1); /* attaches beside the parent */
        signal_word(&m->mirror->closed);
        await_word(&m->mirror->closed, 2);
        carry_out(m, count);
        end_child(m, ending);
    }
    await_word(&m->mirror->closed, 1);
    must_work(shmalloc_close(m->heap));
    signal_word(&m->mirror->closed);
    int status = wait_child_within(pid, 30000);
    must(status == (ending >= KILLED ? -SIGKILL : 0), "last process: status %d", status);
    m->heap = heap_open(m->path);
    m->mirror->counts.rests++;
    m->mirror->counts.killed += ending >= KILLED;
    int rc = shmalloc_mutex_timedlock(m->heap, mutex(m), 5000000000ull);
    must(rc == 0 || rc == SHMALLOC_OWNER_DIED, "the mutex after everybody died: %d %s", rc,
         shmalloc_errmsg());
    must_work(shmalloc_mutex_unlock(m->heap, mutex(m)));
}

/* ---- the program ---- */

/* Of 256 values of the first byte, how many lead to the operation. */
static const struct {
    unsigned share;
    void (*run)(struct model *m);
} ops[] = {
    {100, op_allocate}, {72, op_free}, {44, op_resize}, {20, op_root}, {10, op_bad_free},
    {3, op_sync},       {3, op_trim},  {1, op_reopen},  {2, op_child}, {1, op_rest},
};

static void carry_out(struct model *m, unsigned count)
{
    for (; count > 0 && m->mirror->at < m->mirror->end; count--) {
        unsigned code = take8(m), i = 0;
        while (code >= ops[i].share)
            code -= ops[i++].share;
        ops[i].run(m);
        m->mirror->counts.ops++;
    }
}

struct model *model_begin(const char *path, unsigned flags)
{
    struct model *m = calloc(1, sizeof(*m));
    must(m, "out of memory");
    snprintf(m->path, sizeof(m->path), "%s", path);
    m->mirror = shared_memory(sizeof(*m->mirror));
    m->heap = heap_create(path, flags);
    m->empty = usage_now(m->heap);
    must_work(shmalloc_ref_alloc_zeroed(m->heap, LINKED * sizeof(uint64_t) + sizeof(shmalloc_mutex),
                                    &m->table_ref));
    return m;
}

void model_run(struct model *m, const uint8_t *bytes, size_t len)
{
    m->mirror->at = bytes;
    m->mirror->end = bytes + len;
    carry_out(m, UINT32_MAX);
}

uint64_t model_operations(const struct model *m)
{
    return m->mirror->counts.ops;
}

void model_end(struct model *m, struct model_counts *counts)
{
    model_verify(m);
    for (unsigned i = 0; i < SLOTS; i++)
        free_slot(m, i);
    for (unsigned i = 0; i < ROOTS; i++)
        if (m->mirror->roots[i].bound)
            must_work(shmalloc_root_remove(m->heap, root_name(i)));
    must_work(shmalloc_ref_free(m->heap, &m->table_ref));
    op_reopen(m); /* what the last killed children had cached comes back at rest */
    must_be_as_before(m->heap, &m->empty);
    must_work(shmalloc_close(m->heap));
    *counts = m->mirror->counts;
    munmap(m->mirror, sizeof(*m->mirror));
    free(m);
}
