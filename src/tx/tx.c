/* SPDX-License-Identifier: MIT */
/* tx.c - a thread's transaction; see tx.h. */
#include "tx/tx.h"

#include <errno.h>
#include <string.h>

#include "handle/lock.h"
#include "names/mutex.h"
#include "pages/pages.h"
#include "platform/os.h"
#include "slots/block.h"
#include "slots/fast.h"
#include "tx/retire.h"

#define KEPT_CHUNKS 3u /* that stay for the next transaction: 112 KiB */

_Thread_local uint64_t smi_tx_epoch;

static unsigned long long show(uint64_t ref)
{
    return (unsigned long long)ref;
}

/* ---- the log grows ---- */

static void go_on_in(struct smi_tx *x, uint64_t i, uint8_t *chunk, uint64_t bytes)
{
    uint64_t first = smi_log_first(i);
    x->used = i << SMF_LOG_CHUNK | first;
    x->next = chunk + first;
    x->room = bytes - first;
}

/* A span of `pages`, or of fewer where there is no room for as many, that *holder names. */
static int take_chunk(shmalloc_heap *heap, uint64_t pages, uint64_t *holder)
{
    struct smi_take request = {.count = pages,
                               .alignment = 1,
                               .kind = SMF_PAGE_META,
                               .tag = SMF_PURPOSE_LOG,
                               .holder = holder};
    uint32_t page;
    int zero, rc = smi_pages_take(heap, &request, &page, &zero);
    while (smi_pages_lack_room(rc) && request.count > SMF_LOG_PAGES) {
        request.count /= 2;
        rc = smi_pages_take(heap, &request, &page, &zero);
    }
    return rc;
}

static int grow(struct smi_tx *x)
{
    shmalloc_heap *heap = x->t->heap;
    struct smf_log *head = x->log.head;
    uint64_t i = (x->used >> SMF_LOG_CHUNK) + 1, bytes;
    if (i == SMF_LOG_CHUNKS)
        return smi_error(
            SHMALLOC_EFULL,
            "%s: the transaction has more to remember than its log can; make it smaller",
            heap->path);
    SMI_STORE(&head->filled[i - 1], x->used & ((1ull << SMF_LOG_CHUNK) - 1));
    int state = smi_os_cancel_off();
    int rc = SMI_LOAD(&head->chunk[i]) != 0
                 ? 0
                 : take_chunk(heap, (uint64_t)SMF_LOG_PAGES << i, &head->chunk[i]);
    smi_os_cancel_restore(state);
    if (rc < 0)
        return rc;
    uint8_t *chunk = smi_log_chunk(&x->log, i, &bytes);
    if (!chunk)
        return smi_heap_poison(heap, "chunk %llu of the transaction log of thread slot %u is none",
                               show(i), x->log.index);
    go_on_in(x, i, chunk, bytes);
    return 0;
}

/* Place for an entry with `len` bytes of data, whose head is stored; NULL and *rc otherwise.
 * append() makes it one. */
static inline struct smf_entry *place(struct smi_tx *x, enum smf_entry_type type, uint64_t ref,
                                      uint64_t len, int *rc)
{
    uint64_t bytes = smi_entry_bytes(len);
    if (SMI_UNLIKELY(bytes > x->room) && (*rc = grow(x)) < 0)
        return NULL;
    struct smf_entry *entry = (struct smf_entry *)(void *)x->next;
    entry->head = (uint64_t)type << SMF_ENTRY_TYPE | len;
    entry->ref = ref;
    ((uint64_t *)(void *)(x->next + bytes))[-1] = bytes;
    return entry;
}

static inline void append(struct smi_tx *x, uint64_t len)
{
    uint64_t bytes = smi_entry_bytes(len);
    x->used += bytes;
    x->next += bytes;
    x->room -= bytes;
    SMI_STORE(&x->log.head->used, x->used); /* kill from here: it counts */
}

static inline void cover(struct smi_tx *x, uint64_t ref, uint64_t end)
{
    x->low = ref < x->low ? ref : x->low;
    x->high = end > x->high ? end : x->high;
}

/* ---- begin and end ---- */

static int make_tx(struct smi_thread *t)
{
    shmalloc_heap *heap = t->heap;
    int rc = 0, state = smi_os_cancel_off();
    if (!t->tx && !(t->tx = smi_os_private(sizeof(*t->tx), 0)))
        rc = smi_refused(-ENOMEM, "%s: no private memory for a transaction", heap->path);
    if (rc == 0 && t->slot->tx_log == 0) {
        __atomic_fetch_or(&heap->state->features, SMF_STATE_TRANSACTIONS, __ATOMIC_RELAXED);
        rc = take_chunk(heap, SMF_LOG_PAGES, &t->slot->tx_log);
    }
    smi_os_cancel_restore(state);
    if (rc == 0)
        rc = smi_log_open(&t->tx->log, heap, t->slot, t->slot_index, t);
    if (rc == 0)
        t->tx->t = t;
    return rc;
}

int smi_tx_begin(struct smi_thread *t)
{
    struct smi_tx *x = t->tx;
    if (SMI_UNLIKELY(!x || !x->log.head)) {
        int rc = make_tx(t);
        if (rc < 0)
            return rc;
        x = t->tx;
    }
    uint64_t bytes = (uint64_t)SMF_LOG_PAGES << SMF_PAGE_SHIFT;
    go_on_in(x, 0, (uint8_t *)x->log.head, bytes);
    x->serial = (t->slot->tx_state >> SMF_TX_SERIAL) + 1;
    x->depth = 1;
    x->doomed = 0;
    x->deferred = x->mutex_count = 0;
    x->low = UINT64_MAX;
    x->high = 0;
    SMI_STORE(&t->slot->tx_state, x->serial << SMF_TX_SERIAL | SMF_TX_ACTIVE);
    smi_tx_epoch = t->true_epoch;
    return 0;
}

/* Nothing is left to be done but to say so. */
static void over(struct smi_tx *x)
{
    shmalloc_heap *heap = x->t->heap;
    if (SMI_LOAD(&x->log.head->used) != 0)
        SMI_STORE(&x->log.head->used, 0); /* kill from here: it happened, or never was */
    /* Release: who sees that it is over sees what it changed. */
    __atomic_store_n(&x->t->slot->tx_state, x->serial << SMF_TX_SERIAL | SMF_TX_IDLE,
                     __ATOMIC_RELEASE);
    SMI_BARRIER();
    smi_tx_epoch = 0;
    while (x->mutex_count > 0)
        smi_mutex_unlock_tx(x->t, smi_at(heap, x->mutex[--x->mutex_count]));
    if (SMI_UNLIKELY(x->used >> SMF_LOG_CHUNK >= KEPT_CHUNKS)) {
        int state = smi_os_cancel_off();
        smi_log_give(&x->log, KEPT_CHUNKS); /* if it fails, they stay */
        smi_os_cancel_restore(state);
    }
}

/* The log cannot be worked on, because the heap was found damaged: it is left as it is, for a
 * repair. */
static int stuck(struct smi_tx *x, int rc)
{
    smi_tx_epoch = 0;
    while (x->mutex_count > 0)
        smi_mutex_unlock_tx(x->t, smi_at(x->t->heap, x->mutex[--x->mutex_count]));
    x->log.head = NULL;
    return rc;
}

static int roll_back(struct smi_tx *x)
{
    int state = smi_os_cancel_off();
    int rc = smi_heap_writable(x->t->heap);
    if (rc == 0)
        rc = smi_log_undo(&x->log);
    smi_os_cancel_restore(state);
    if (rc < 0)
        return stuck(x, rc);
    over(x);
    return 0;
}

static int finish_tx(struct smi_tx *x)
{
    int state = smi_os_cancel_off();
    /* Release: who sees that it is committed sees what it stored before. */
    SMI_BARRIER();
    __atomic_store_n(&x->t->slot->tx_state, x->serial << SMF_TX_SERIAL | SMF_TX_COMMITTED,
                     __ATOMIC_RELEASE);
    SMI_BARRIER(); /* kill from here: others finish it */
    int rc = smi_log_finish(&x->log);
    smi_os_cancel_restore(state);
    return rc < 0 ? stuck(x, rc) : 0;
}

int smi_tx_commit(struct smi_tx *x)
{
    if (x->depth > 1) {
        x->depth--;
        return x->doomed;
    }
    if (SMI_UNLIKELY(x->doomed)) {
        int rc = roll_back(x);
        return rc < 0
                   ? rc
                   : smi_error(
                         x->doomed,
                         "%s: the transaction was rolled back, because one inside it was aborted",
                         x->t->heap->path);
    }
    if (x->deferred > 0) {
        int rc = finish_tx(x);
        if (rc < 0)
            return rc;
    }
    over(x);
    return 0;
}

int smi_tx_abort(struct smi_tx *x, int cause)
{
    if (x->depth == 1)
        return roll_back(x);
    x->depth--;
    if (x->doomed == 0)
        x->doomed = cause;
    return 0;
}

int smi_tx_end(struct smi_tx *x)
{
    return roll_back(x);
}

enum smf_tx_phase smi_tx_phase(const shmalloc_heap *heap, uint64_t name)
{
    const struct smf_thread *slot = smi_thread_slot(heap, (uint32_t)(name & 0xffff) - 1);
    if (!slot)
        return SMF_TX_IDLE;
    uint64_t state = __atomic_load_n(&slot->tx_state, __ATOMIC_ACQUIRE),
             phase = state & SMF_TX_PHASE;
    int same = (state >> SMF_TX_SERIAL & UINT64_MAX >> 16) == name >> 16;
    return same && phase <= SMF_TX_COMMITTED ? (enum smf_tx_phase)phase : SMF_TX_IDLE;
}

/* ---- mutexes ---- */

/* Place of the first mutex that is held whose ref is not below. */
static uint32_t mutex_place(const struct smi_tx *x, uint64_t ref)
{
    uint32_t low = 0, high = x->mutex_count;
    if (high > 0 && x->mutex[high - 1] < ref)
        return high;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (x->mutex[middle] < ref)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The first mutex that is held and shares a byte with [ref, end); UINT64_MAX: none. */
static inline uint64_t held_within(const struct smi_tx *x, uint64_t ref, uint64_t end)
{
    const uint64_t bytes = sizeof(shmalloc_mutex);
    if (x->mutex_count == 0 || x->mutex[0] >= end || x->mutex[x->mutex_count - 1] + bytes <= ref)
        return UINT64_MAX;
    uint32_t i = mutex_place(x, ref < bytes ? 0 : ref - bytes + 1);
    return i < x->mutex_count && x->mutex[i] < end ? x->mutex[i] : UINT64_MAX;
}

enum { FRESH = 1 };

/* What an entry says to a mutex that is to be locked. */
static int look_at_entry(const struct smi_log *log, const struct smi_logged *logged,
                         struct smf_entry *entry, void *arg)
{
    uint64_t mutex = *(const uint64_t *)arg, end = mutex + sizeof(shmalloc_mutex),
             len = logged->len;
    (void)entry;
    if (logged->type == SMF_ENTRY_ALLOC || logged->type == SMF_ENTRY_FREE ||
        logged->type == SMF_ENTRY_RETIRE)
        len = logged->ref != 0 ? smi_block_size(log->heap, logged->ref) : 0;
    else if (logged->type != SMF_ENTRY_ADD)
        return 0;
    if (logged->ref >= end || logged->ref + len <= mutex)
        return 0;
    if (logged->type == SMF_ENTRY_ALLOC)
        return FRESH;
    return smi_error(
        -EINVAL, "%s: mutex at %#llx lies in what the transaction has %s before; lock it first",
        log->heap->path, show(mutex), logged->type == SMF_ENTRY_ADD ? "added" : "freed");
}

/* Lock it now, or wait for it: 0, SHMALLOC_OWNER_DIED or why not. */
static int lock_in_tx(struct smi_tx *x, struct smf_user_mutex *m, int wait)
{
    struct smi_thread *t = x->t;
    int tried =
        smi_mutex_is_current(t->heap, m) ? smi_mutex_lock_at_once(t, m, SMF_OWNER_TX) : EBUSY;
    if (SMI_LIKELY(tried == 0))
        return 0;
    x->refused_owner = SMI_LOAD(&m->owner);
    int state = smi_os_cancel_off();
    int rc =
        tried == EOWNERDEAD || tried == ECANCELED
            ? smi_mutex_inherit(t, m, tried, SMF_OWNER_TX)
            : smi_mutex_lock(t, (shmalloc_mutex *)m,
                             wait || smi_mutex_is_beside_tx(t, m) ? UINT64_MAX : 0, SMF_OWNER_TX);
    smi_os_cancel_restore(state);
    return rc;
}

int smi_tx_lock(struct smi_tx *x, shmalloc_mutex *mutex)
{
    shmalloc_heap *heap = x->t->heap;
    struct smf_user_mutex *m = smi_mutex_of(heap, mutex);
    if (!m)
        return smi_error(-EINVAL, "%s: the mutex at %p is not an 8-aligned block of the heap",
                         heap->path, (void *)mutex);
    uint64_t ref = (uint64_t)((uint8_t *)mutex - heap->base);
    uint32_t i = mutex_place(x, ref);
    if (i < x->mutex_count && x->mutex[i] == ref)
        return 0;
    if (x->mutex_count == SMI_TX_MUTEXES)
        return smi_error(-ENOLCK, "%s: a transaction holds %u mutexes at most; make it smaller",
                         heap->path, SMI_TX_MUTEXES);
    if (x->low < ref + sizeof(*mutex) && ref < x->high) {
        int rc = smi_log_each(&x->log, look_at_entry, &ref);
        if (rc != 0)
            return rc < 0 ? rc : 0; /* in a block of its own, which nobody else knows of: nothing to
                                       lock */
    }
    int rc = lock_in_tx(x, m, i == x->mutex_count);
    if (rc == -EBUSY) {
        x->refused = ref;
        return smi_error(SHMALLOC_ECONFLICT,
                         "%s: mutex at %#llx is held, and not waited for, because the transaction "
                         "holds one at a higher "
                         "address: abort and run it again, or lock in ascending order",
                         heap->path, show(ref));
    }
    if (rc < 0)
        return rc;
    memmove(&x->mutex[i + 1], &x->mutex[i], (x->mutex_count - i) * sizeof(x->mutex[0]));
    x->mutex[i] = ref;
    x->mutex_count++;
    return rc;
}

static uint64_t owner_at(const shmalloc_heap *heap, uint64_t ref)
{
    return SMI_LOAD(&((const struct smf_user_mutex *)smi_at(heap, ref))->owner);
}

#define PATIENCE_NS 10000000ull
#define FIRST_NAP_NS 2000ull

void smi_tx_wait(const struct smi_tx *x)
{
    shmalloc_heap *heap = x->t->heap;
    /* not all alike */
    uint64_t until = smi_os_clock() + PATIENCE_NS, nap = FIRST_NAP_NS + (x->serial & 7) * 500;
    while (smi_in_heap(heap, x->refused, sizeof(shmalloc_mutex)) && smi_os_clock() < until &&
           owner_at(heap, x->refused) == x->refused_owner) {
        smi_os_sleep(nap);
        nap += nap / 2;
    }
}

/* ---- add ---- */

/* Is the word at `owner` that of a mutex which the calling thread holds beside the transaction? */
static int is_own_mutex(const struct smi_tx *x, const uint64_t *owner)
{
    uint64_t ref = smi_link_ref_of(x->t, owner) - offsetof(struct smf_user_mutex, owner);
    return smi_in_heap(x->t->heap, ref, sizeof(struct smf_user_mutex)) &&
           smi_mutex_is_beside_tx(x->t, smi_at(x->t->heap, ref));
}

/* Copy 8-aligned bytes. Returns whether one of the words is `name`. */
static inline int copy_words(uint8_t *to, const uint8_t *from, uint64_t len, uint64_t name)
{
    int any = 0;
    for (uint64_t i = 0; i + 8 <= len; i += 8) {
        uint64_t word = SMI_LOAD((const uint64_t *)(const void *)(from + i));
        *(uint64_t *)(void *)(to + i) = word;
        any |= word == name;
    }
    for (uint64_t i = len & ~7ull; i < len; i++)
        to[i] = SMI_LOAD(from + i);
    return any;
}

static int copy_bytes(uint8_t *to, const uint8_t *from, uint64_t len, uint64_t name)
{
    uint64_t before = -(uintptr_t)from % 8;
    uint64_t word;
    int any = 0;
    for (uint64_t i = 0; i < len; i++)
        to[i] = SMI_LOAD(from + i);
    for (uint64_t i = before; i + 8 <= len; i += 8) {
        memcpy(&word, to + i, sizeof(word));
        any |= word == name;
    }
    return any;
}

/* An entry for [ref, end), at most SMF_LOG_PIECE bytes, none of them a mutex's of the transaction.
 * *own: it holds a word that may make some of them another mutex's of this thread, and there is no
 * entry yet. NULL: not asked. */
static inline int add_piece(struct smi_tx *x, uint64_t ref, uint64_t end, int *own)
{
    int rc = 0, any;
    struct smf_entry *entry = place(x, SMF_ENTRY_ADD, ref, end - ref, &rc);
    if (!entry)
        return rc;
    const uint8_t *from = x->t->base + ref;
    uint64_t name = x->t->name;
    if (SMI_LIKELY(ref % 8 == 0))
        any = copy_words((uint8_t *)(entry + 1), from, end - ref, name);
    else
        any = copy_bytes((uint8_t *)(entry + 1), from, end - ref, name);
    if (own && SMI_UNLIKELY(any)) {
        *own = 1;
        return 0;
    }
    append(x, end - ref);
    return 0;
}

/* The first mutex that this thread holds beside the transaction whose owner's name is in [ref,
 * end); UINT64_MAX: none. */
static uint64_t own_within(const struct smi_tx *x, uint64_t ref, uint64_t end)
{
    for (uint64_t at = (ref + 7) & ~7ull; at + 8 <= end; at += 8) {
        const uint64_t *word = smi_at(x->t->heap, at);
        if (SMI_LOAD(word) == x->t->name && is_own_mutex(x, word))
            return at - offsetof(struct smf_user_mutex, owner);
    }
    return UINT64_MAX;
}

/* The bytes of mutexes that this thread holds are left out: they are not the transaction's to put
 * back. */
static int add_around(struct smi_tx *x, uint64_t ref, uint64_t end)
{
    int rc = 0;
    while (rc == 0 && ref < end) {
        uint64_t upto = end - ref > SMF_LOG_PIECE ? ref + SMF_LOG_PIECE : end,
                 own = own_within(x, ref, upto);
        uint64_t mutex = held_within(x, ref, upto);
        mutex = own < mutex ? own : mutex;
        if (mutex > ref)
            rc = add_piece(x, ref, mutex < upto ? mutex : upto, NULL);
        ref = mutex < upto ? mutex + sizeof(shmalloc_mutex) : upto;
    }
    return rc;
}

int smi_tx_add(struct smi_tx *x, const void *address, uint64_t len)
{
    struct smi_thread *t = x->t;
    uint64_t ref = (uint64_t)((uintptr_t)address - (uintptr_t)t->base), end = ref + len;
    unsigned i = (unsigned)(ref / 16 % SMI_TX_SEEN);
    if (x->seen[i].serial == x->serial && x->seen[i].ref <= ref && end <= x->seen[i].end &&
        end >= ref)
        return 0;
    if (SMI_UNLIKELY(len == 0 || !smi_in_heap(t->heap, ref, len)))
        return len == 0 ? 0
                        : smi_error(-EINVAL, "%s: the %llu bytes at %p are not in this heap",
                                    t->heap->path, show(len), address);
    int own = 0, rc = 0;
    if (SMI_LIKELY(len <= SMF_LOG_PIECE && held_within(x, ref, end) == UINT64_MAX))
        rc = add_piece(x, ref, end, &own);
    else
        own = 1;
    if (SMI_UNLIKELY(own))
        rc = add_around(x, ref, end);
    if (rc < 0)
        return rc;
    cover(x, ref, end);
    x->seen[i].serial = x->serial;
    x->seen[i].ref = ref;
    x->seen[i].end = end;
    return 0;
}

/* ---- blocks and words ---- */

/* Is the word in the heap? Then 1, and it has an entry. */
static int add_word(struct smi_tx *x, const uint64_t *word)
{
    uint64_t ref;
    if (!word)
        return smi_error(-EINVAL, "%s: no place for the ref", x->t->heap->path);
    if (!smi_ref_of(x->t->heap, word, &ref))
        return 0;
    if (ref % 8 != 0)
        return smi_error(-EINVAL, "%s: the ref word at %#llx is not 8-aligned", x->t->heap->path,
                         show(ref));
    int rc = smi_tx_add(x, word, sizeof(*word));
    return rc < 0 ? rc : 1;
}

static int take_logged(struct smi_tx *x, const struct smi_request *request, uint64_t *word)
{
    struct smi_thread *t = x->t;
    uint64_t ref;
    int is_plain = !request->zero && request->tag == 0 && request->alignment <= 8;
    struct smi_top *top = is_plain ? smi_top_for(t->heap, t, request->size) : NULL;
    if (SMI_LIKELY(top)) {
        smi_link_pop(t, word, top);
        return 0;
    }
    int state = smi_os_cancel_off(), rc = smi_heap_writable(t->heap);
    if (rc == 0)
        rc = smi_block_take(t, request, word, &ref);
    smi_os_cancel_restore(state);
    return rc;
}

int smi_tx_alloc(struct smi_tx *x, const struct smi_request *request, uint64_t *out)
{
    int rc = add_word(x, out);
    struct smf_entry *entry = rc >= 0 ? place(x, SMF_ENTRY_ALLOC, 0, 0, &rc) : NULL;
    if (!entry)
        return rc;
    append(x, 0);
    rc = take_logged(x, request, &entry->ref);
    if (rc < 0) /* the entry stays, for nothing */
        return rc;
    cover(x, entry->ref, entry->ref + request->size);
    SMI_STORE(out, entry->ref);
    return 0;
}

struct wanted {
    uint64_t ref;
};

static int is_freed(const struct smi_log *log, const struct smi_logged *logged,
                    struct smf_entry *entry, void *arg)
{
    (void)log;
    (void)entry;
    return (logged->type == SMF_ENTRY_FREE || logged->type == SMF_ENTRY_RETIRE) &&
           logged->ref == ((const struct wanted *)arg)->ref;
}

/* Can the commit free it? Asked now, because then it is too late. */
static int may_free(struct smi_tx *x, uint64_t ref, uint64_t *size)
{
    shmalloc_heap *heap = x->t->heap;
    const struct smi_top *top = smi_serves(x->t, heap) ? smi_top_of_any(x->t, ref) : NULL;
    int rc = !top              ? smi_block_may_free(x->t, ref)
             : top->ref == ref ? smi_heap_double_free(heap, ref)
                               : 0;
    *size = top ? smi_slot_bytes(x->t, top) : rc == 0 ? smi_block_size(heap, ref) : 0;
    if (rc == 0 && heap->hardened &&
        (rc = smi_log_each(&x->log, is_freed, &(struct wanted){ref})) > 0)
        rc = smi_heap_double_free(heap, ref);
    if (rc < 0)
        return rc;
    uint64_t mutex = held_within(x, ref, ref + *size);
    if (mutex != UINT64_MAX)
        return smi_error(-EINVAL,
                         "%s: the block at %#llx has the mutex at %#llx, which the transaction "
                         "holds until its end",
                         heap->path, show(ref), show(mutex));
    return 0;
}

/* The commit frees or retires the block. */
static int defer(struct smi_tx *x, enum smf_entry_type type, uint64_t *word)
{
    uint64_t ref = word ? SMI_LOAD(word) : 1, size = 0;
    if (ref == 0)
        return 0;
    int rc = word ? may_free(x, ref, &size) : 0;
    if (rc < 0 || (rc = add_word(x, word)) < 0 || !place(x, type, ref, 0, &rc))
        return rc;
    append(x, 0);
    x->deferred++;
    cover(x, ref, ref + size);
    SMI_STORE(word, 0);
    return 0;
}

int smi_tx_free(struct smi_tx *x, uint64_t *word)
{
    return defer(x, SMF_ENTRY_FREE, word);
}

int smi_tx_retire(struct smi_tx *x, uint64_t *word)
{
    int state = smi_os_cancel_off();
    /* when it commits it is too late */
    int rc = word && SMI_LOAD(word) != 0 ? smi_retire_make_room(x->t) : 0;
    smi_os_cancel_restore(state);
    return rc < 0 ? rc : defer(x, SMF_ENTRY_RETIRE, word);
}

int smi_tx_store(struct smi_tx *x, uint64_t *word, uint64_t value)
{
    uint64_t ref;
    int rc = 0;
    if (!smi_ref_of(x->t->heap, word, &ref) || ref % 8 != 0 ||
        !smi_in_heap(x->t->heap, ref, sizeof(*word)))
        return smi_error(-EINVAL, "%s: the word at %p is not an 8-aligned one of this heap",
                         x->t->heap->path, (void *)word);
    struct smf_entry *entry = place(x, SMF_ENTRY_STORE, ref, sizeof(value), &rc);
    if (!entry)
        return rc;
    memcpy(entry + 1, &value, sizeof(value));
    append(x, sizeof(value));
    x->deferred++;
    return 0;
}

int smi_tx_note(struct smi_tx *x, uint32_t kind, uint64_t ref, const uint64_t *words,
                uint32_t count)
{
    int rc = 0;
    uint64_t len = count * sizeof(*words);
    struct smf_entry *entry = place(x, (enum smf_entry_type)(SMF_ENTRY_KIND + kind), ref, len, &rc);
    if (!entry)
        return rc;
    memcpy(entry + 1, words, len);
    append(x, len);
    x->deferred++;
    return 0;
}

int smi_tx_note_block(struct smi_tx *x, uint32_t kind, const struct smi_request *request,
                      const uint64_t *words, uint32_t count, uint64_t **name)
{
    int rc = 0;
    uint64_t len = count * sizeof(*words);
    struct smf_entry *entry = place(x, (enum smf_entry_type)(SMF_ENTRY_KIND + kind), 0, len, &rc);
    if (!entry)
        return rc;
    memcpy(entry + 1, words, len);
    append(x, len);
    x->deferred++;
    *name = &entry->ref;
    return take_logged(x, request, &entry->ref); /* if it fails the entry stays, for nothing */
}

void smi_tx_drop(struct smi_thread *t)
{
    if (t->tx)
        smi_os_unmap(t->tx, sizeof(*t->tx));
    t->tx = NULL;
}
