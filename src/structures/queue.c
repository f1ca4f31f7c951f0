/* SPDX-License-Identifier: MIT */
/*
 * queue.c - a bounded queue: a ring of cells, each with a state word that says everything
 * (layout.h, smf_cell).
 *
 * A position is 64 bits; it has the cell position % capacity in its lap position / capacity. A
 * cell's word has its lap, a state, and who claimed it. `tail` and `first` say where to begin to
 * look; whoever finds a cell claimed there moves them on.
 *
 *   send     FREE -> WRITING|me; fill; FULL, which commits. A block is taken into cell.ref in
 *            between, named by the cell.
 *   take     FULL -> READING|me, which commits.
 *   ack      FREE of the next lap commits; with a block first ACKED|me, which commits; then the
 *            block is freed by the cell's word.
 *   send_ref cell.ref; a MOVE record names the user's word and the cell's; FULL commits; the word
 *   becomes 0.
 *
 * Who died, or ended: WRITING becomes an empty place, which costs nothing but its turn; ACKED is
 * finished; READING is delivered again. A claim is of the dead when the thread slot that it names
 * is nobody's, or another's by its serial; a slot is nobody's only when its link record is
 * resolved, so a cell's block is in cell.ref, or is not the queue's. Claims are looked for when
 * smf_state.claims_gone, which counts slots that came to rest with claims, or `returned` changed;
 * and by everybody who comes by such a cell, or found nothing for a while.
 *
 * Invariants (check.c):
 *   Q2  capacity is a power of two, and the block of the cells is long enough
 *   Q3  a cell's state is known, its lap is that of `first` or `tail` or next to them, who claims
 *       it is a thread slot
 *   Q4  a FREE cell has no block; others with BLOCK or REF that are FULL or READING have one, of
 *       the message's length
 *   Q5  first <= tail <= first + capacity
 *
 * Ordering: a cell's fields are stored before its state (release) and loaded after it (acquire). A
 * waiter stores that it waits, has all processors fence, and looks again; so who changes a state
 * and then looks for waiters needs no fence. If the kernel has no such fence, or a process has not
 * joined, a wake-up can be missed; then it comes a slice later.
 */
#include <errno.h>
#include <string.h>

#include <shmalloc/queue.h>

#include "life/context.h"
#include "life/adopt.h"
#include "platform/cpu.h"
#include "platform/os.h"
#include "platform/sized.h"
#include "slots/block.h"
#include "structures/queue.h"

#define SLICE_NS 20000000ull /* of a wait: longer than that nothing is missed */
#define ADOPT_EVERY 3        /* slices */
#define SPIN 1000            /* looks before the first sleep, if the other side runs beside */
#define LOOK_EVERY 1024      /* messages: one goes the long way, and looks for the dead */
#define MOST_HELPS (1u << 20) /* beyond two laps: more in one call only a damaged queue needs */

/* tests/structures/queue_kills.c plants faults, to show that it finds them. */
#ifndef SMI_PLANTED
#define SMI_PLANTED(fault) 0
#endif

/* What a shmalloc_queue is. */
struct queue {
    struct smi_use use;
    struct smf_cell *cells;
    struct smi_ring ring;
    uint64_t most;
    uint64_t reserved[2];
};
_Static_assert(sizeof(struct queue) == sizeof(shmalloc_queue), "one layout");

static inline struct smf_queue *header(const struct queue *q)
{
    return (struct smf_queue *)q->use.head;
}

static inline struct smf_cell *cell_at(const struct queue *q, uint64_t position)
{
    return &q->cells[position & q->ring.mask];
}

static inline uint64_t load_word(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void store_word(uint64_t *word, uint64_t value)
{
    SMI_BARRIER();
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    SMI_BARRIER();
}

static inline int swap_word(uint64_t *word, uint64_t from, uint64_t to)
{
    return __atomic_compare_exchange_n(word, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* ---- claims ---- */

static inline uint64_t my_name(const struct smi_thread *t)
{
    return (uint64_t)(t->slot_index + 1) << 24 | (t->slot->serial & SMF_CELL_SERIAL);
}

/* Does who claimed a cell still live? */
static int is_alive(const shmalloc_heap *heap, uint64_t who)
{
    uint64_t index = (who >> 24) - 1;
    const struct smf_thread *slot =
        index < SMF_THREADS ? smi_thread_slot(heap, (uint32_t)index) : NULL;
    return slot && load_word(&slot->owner) != 0 &&
           (SMI_LOAD(&slot->serial) & SMF_CELL_SERIAL) == (who & SMF_CELL_SERIAL);
}

/* The thread is about to claim a cell, or has none more by this claim. */
static inline void count_claim(struct smi_thread *t, uint64_t by)
{
    SMI_STORE(&t->slot->queue_claims, t->slot->queue_claims + by);
}

/* What a call needs to know. */
struct call {
    struct queue *q;
    struct smi_thread *t;
    uint64_t deadline; /* smi_os_clock; 0: not asked for yet */
    uint64_t timeout;
    uint64_t helped; /* positions that this call moved on from */
    unsigned slices;
};

static int begin_call(struct call *c, shmalloc_queue *queue, uint64_t timeout)
{
    struct queue *q = (struct queue *)(void *)queue;
    int rc = 0;
    if (!q || !q->use.heap)
        return smi_error(-EINVAL, "no queue: open one first");
    *c = (struct call){.q = q, .timeout = timeout};
    c->t = smi_structure_thread(q->use.heap, &rc);
    return c->t ? smi_structure_enter(&q->use, c->t) : rc;
}

static inline int end_call(const struct call *c, int rc)
{
    smi_structure_leave(c->t);
    return rc;
}

static int count_help(struct call *c)
{
    return ++c->helped > 2 * c->q->ring.mask + MOST_HELPS
               ? smi_structure_damaged(
                     &c->q->use, "its positions and the states of its cells contradict each other")
               : 0;
}

/* ---- waking and waiting ---- */

static inline void wake(const shmalloc_heap *heap, uint32_t *waits, uint32_t *word)
{
    /* Who waits is counted out by who wakes: a waiter that is on its way to sleep finds the word
     * changed. */
    if (SMI_UNLIKELY(SMI_LOAD(waits) != 0) && __atomic_exchange_n(waits, 0, __ATOMIC_SEQ_CST)) {
        __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
        smi_os_futex_wake(word, INT32_MAX, heap->is_private);
    }
}

/* May a sender go on? Not before half of the ring is free, or nothing is left to be taken: one
 * wake-up for many messages. */
static int can_send(const struct queue *q)
{
    uint64_t p = load_word(&header(q)->tail), half = p + (q->ring.mask + 1) / 2;
    return smi_cell_ahead(q->ring, load_word(&cell_at(q, p)->state), p) >= 0 &&
           (smi_cell_ahead(q->ring, load_word(&cell_at(q, half)->state), half) >= 0 ||
            load_word(&header(q)->first) == p);
}

static uint64_t losses(const struct queue *q)
{
    return SMI_LOAD(&q->use.heap->state->claims_gone) + SMI_LOAD(&header(q)->returned);
}

static int can_take(const struct queue *q)
{
    uint64_t p = load_word(&header(q)->first), word = load_word(&cell_at(q, p)->state);
    return smi_cell_ahead(q->ring, word, p) > 0 ||
           (smi_cell_ahead(q->ring, word, p) == 0 && smi_cell_state(word) >= SMF_CELL_FULL) ||
           losses(q) != SMI_LOAD(&header(q)->seen);
}

struct side {
    uint32_t *waits, *word;
    int (*may)(const struct queue *q);
    unsigned other; /* shift of the CPU of the other side */
};

static struct side senders(const struct queue *q)
{
    return (struct side){&header(q)->senders_wait, &header(q)->senders_word, can_send,
                         SMF_CELL_TAKER_SHIFT};
}

static struct side receivers(const struct queue *q)
{
    return (struct side){&header(q)->receivers_wait, &header(q)->receivers_word, can_take,
                         SMF_CELL_SENDER_SHIFT};
}

/* The other side can only answer meanwhile if it last ran on another processor: blind spinning was
 * the worst of all. */
static int spin_for(const struct queue *q, const struct side *side, uint64_t last)
{
    uint32_t flags = SMI_LOAD(&cell_at(q, last)->flags);
    if ((flags >> side->other & SMF_CELL_CPU) == (smi_cpu() & SMF_CELL_CPU))
        return 0;
    for (int i = 0; i < SPIN; i++) {
        if (side->may(q))
            return 1;
        smi_cpu_relax();
    }
    return 0;
}

static void sleep_at(const struct queue *q, const struct side *side, uint64_t until)
{
    uint32_t seen = __atomic_load_n(side->word, __ATOMIC_ACQUIRE);
    __atomic_store_n(side->waits, 1, __ATOMIC_SEQ_CST);
    smi_os_barrier();
    if (!side->may(q))
        smi_os_futex_wait(side->word, seen, until, q->use.heap->is_private);
}

static void look_for_the_dead(shmalloc_heap *heap)
{
    int rc, state = smi_os_cancel_off();
    if (!heap->is_private)
        smi_adopt(heap, SMI_ADOPT_SOME);
    smi_thread_enter(heap, &rc); /* and for threads of this process that ended without a word */
    smi_os_cancel_restore(state);
}

/* Wait until there may be something to do. The call uses the queue anew afterwards: it may be gone
 * by then. 0, or why the waiting has an end. `last`: the position before, in whose cell is where
 * the other side ran. */
static int wait_at(struct call *c, struct side side, uint64_t last)
{
    const struct queue *q = c->q;
    if (c->timeout == 0)
        return smi_error(-EAGAIN, "%s: the queue at %#llx is %s", q->use.heap->path,
                         (unsigned long long)q->use.ref, side.may == can_take ? "empty" : "full");
    if (c->slices++ == 0 && spin_for(q, &side, last))
        return 0;
    uint64_t now = smi_os_clock();
    if (c->deadline == 0)
        c->deadline = c->timeout > UINT64_MAX - now ? UINT64_MAX : now + c->timeout;
    if (now >= c->deadline)
        return smi_error(-ETIMEDOUT, "%s: the queue at %#llx stayed %s for %llu ns",
                         q->use.heap->path, (unsigned long long)q->use.ref,
                         side.may == can_take ? "empty" : "full", (unsigned long long)c->timeout);
    smi_structure_leave(c->t); /* the words slept on are the header's, which stays one */
    sleep_at(q, &side, c->deadline - now < SLICE_NS ? c->deadline : now + SLICE_NS);
    if (c->slices % ADOPT_EVERY == 0)
        look_for_the_dead(q->use.heap);
    return smi_structure_enter(&q->use, c->t);
}

/* ---- cells that nobody fills or empties any more ---- */

/* The cell is for the next lap. Its block is gone; where its two sides ran stays. */
static inline void set_free(const struct queue *q, struct smf_cell *cell, uint64_t position,
                            uint32_t flags)
{
    SMI_STORE(&cell->flags, flags & ~SMF_CELL_WHAT);
    store_word(&cell->state, smi_cell_word(q->ring, position + q->ring.mask + 1, SMF_CELL_FREE, 0));
}

/* The cell is ACKED by this thread: free what it has, and the cell. A ref that was sent is not the
 * queue's to free: it was received, or is the sender's still. */
static void finish_cell(const struct queue *q, struct smi_thread *t, struct smf_cell *cell,
                        uint64_t position)
{
    uint32_t flags = SMI_LOAD(&cell->flags);
    if ((flags & SMF_CELL_BLOCK) && SMI_LOAD(&cell->ref) != 0 && smi_part_give(t, &cell->ref) < 0)
        SMI_STORE(&cell->ref, 0); /* damaged, or freed by somebody else: it is not ours */
    set_free(q, cell, position, flags);
}

/* A cell that the dead claimed for writing, or for acknowledging: as if this thread had
 * acknowledged it. */
static void finish_for(struct call *c, struct smf_cell *cell, uint64_t position, uint64_t word)
{
    count_claim(c->t, 1);
    if (swap_word(&cell->state, word,
                  smi_cell_word(c->q->ring, position, SMF_CELL_ACKED, my_name(c->t)))) {
        finish_cell(c->q, c->t, cell, position);
        wake(c->q->use.heap, &header(c->q)->senders_wait, &header(c->q)->senders_word);
    }
    count_claim(c->t, -1ull);
}

/* ---- sending ---- */

/* Claim the cell at the tail: its position in *position. */
static int claim_cell(struct call *c, uint64_t *position)
{
    struct queue *q = c->q;
    for (;;) {
        uint64_t p = load_word(&header(q)->tail);
        struct smf_cell *cell = cell_at(q, p);
        uint64_t word = load_word(&cell->state);
        if (SMI_LIKELY(word == smi_cell_word(q->ring, p, SMF_CELL_FREE, 0))) {
            count_claim(c->t, 1);
            if (SMI_LIKELY(swap_word(&cell->state, word,
                                     smi_cell_word(q->ring, p, SMF_CELL_WRITING, my_name(c->t))))) {
                swap_word(&header(q)->tail, p, p + 1); /* kill before: the next one does it */
                *position = p;
                return 0;
            }
            count_claim(c->t, -1ull);
            continue;
        }
        int rc;
        if (smi_cell_ahead(q->ring, word, p) >= 0) { /* claimed: help */
            swap_word(&header(q)->tail, p, p + 1);
            rc = count_help(c);
        } else if (smi_cell_state(word) == SMF_CELL_ACKED &&
                   !is_alive(q->use.heap, smi_cell_who(word))) {
            finish_for(c, cell, p - q->ring.mask - 1, word);
            rc = count_help(c);
        } else {
            rc = wait_at(c, senders(q), p - 1);
        }
        if (rc < 0)
            return rc;
    }
}

/* What was claimed for writing is not: an empty place, which takers pass. */
static int leave_empty(struct call *c, uint64_t position, int rc)
{
    struct smf_cell *cell = cell_at(c->q, position);
    store_word(&cell->state, smi_cell_word(c->q->ring, position, SMF_CELL_ACKED, my_name(c->t)));
    finish_cell(c->q, c->t, cell, position);
    count_claim(c->t, -1ull);
    /* they may have waited for this one */
    wake(c->q->use.heap, &header(c->q)->receivers_wait, &header(c->q)->receivers_word);
    return rc;
}

/* A message becomes one. */
static inline void sent(struct call *c, struct smf_cell *cell, uint64_t position)
{
    store_word(&cell->state, smi_cell_word(c->q->ring, position, SMF_CELL_FULL, 0));
    count_claim(c->t, -1ull);
}

static int fill_with_block(struct call *c, struct smf_cell *cell, const void *data, size_t length,
                           uint32_t flags)
{
    SMI_STORE(&cell->ref, 0);
    SMI_STORE(&cell->flags, flags | SMF_CELL_BLOCK); /* kill from here: whoever skips the cell frees
                                                        what `ref` names */
    int rc = smi_part_take(c->t, length, 0, 0, &cell->ref);
    if (rc == 0)
        memcpy(smi_at(c->q->use.heap, cell->ref), data, length);
    return rc;
}

static inline uint32_t sender_cpu(const struct smf_cell *cell)
{
    return (SMI_LOAD(&cell->flags) & ~(SMF_CELL_CPU << SMF_CELL_SENDER_SHIFT | SMF_CELL_WHAT)) |
           (smi_cpu() & SMF_CELL_CPU) << SMF_CELL_SENDER_SHIFT;
}

static int send_bytes(struct call *c, const void *data, size_t length)
{
    uint64_t position;
    int rc = claim_cell(c, &position);
    if (rc < 0)
        return rc;
    struct smf_cell *cell = cell_at(c->q, position);
    uint32_t flags = sender_cpu(cell);
    SMI_STORE(&cell->length, (uint32_t)length);
    if (SMI_PLANTED(FULL_TOO_EARLY))
        store_word(&cell->state, smi_cell_word(c->q->ring, position, SMF_CELL_FULL, 0));
    if (SMI_LIKELY(length <= SMF_CELL_INLINE)) {
        SMI_STORE(&cell->flags, flags);
        memcpy(cell->data, data, length);
    } else if ((rc = fill_with_block(c, cell, data, length, flags)) < 0) {
        return leave_empty(c, position, rc);
    }
    sent(c, cell, position);
    wake(c->q->use.heap, &header(c->q)->receivers_wait, &header(c->q)->receivers_word);
    if (SMI_UNLIKELY(position % LOOK_EVERY == 0))
        look_for_the_dead(c->q->use.heap);
    return 0;
}

int shmalloc_queue_send(shmalloc_queue *queue, const void *data, size_t length, uint64_t timeout_ns)
{
    struct call c;
    int rc = begin_call(&c, queue, timeout_ns);
    if (SMI_UNLIKELY(rc < 0))
        return rc;
    if (SMI_UNLIKELY(length > c.q->most))
        return end_call(&c, smi_error(-EMSGSIZE,
                                      "%s: a message of %zu bytes; the queue at %#llx allows %llu",
                                      queue->heap->path, length, (unsigned long long)c.q->use.ref,
                                      (unsigned long long)c.q->most));
    if (SMI_UNLIKELY(!data && length > 0))
        return end_call(&c, smi_error(-EINVAL, "%s: no data", queue->heap->path));
    return end_call(&c, send_bytes(&c, data, length));
}

/* A record in flight says that the ref `old` leaves or enters the word *dest with the change of the
 * cell from `before`. */
static void arm(struct smi_thread *t, const uint64_t *dest, uint64_t old, const uint64_t *state,
                uint64_t before, uint64_t clear_when)
{
    struct smf_link *link = &t->slot->link;
    link->dest = smi_link_ref_of(t, dest);
    link->fresh = smi_link_ref_of(t, state);
    link->fresh_array = before;
    link->fresh_count = clear_when;
    link->old = old;
    link->old_array = link->old_count = 0;
    SMI_STORE(&link->op, SMF_LINK_MOVE);
}

/* Where the word is: 1 in the heap, 0 not, or -EINVAL. */
static int place_of_ref(const shmalloc_heap *heap, const void *word)
{
    uint64_t at;
    if (!word)
        return smi_error(-EINVAL, "%s: no place for the ref", heap->path);
    if (!smi_ref_of(heap, word, &at))
        return 0;
    return at % 8 == 0 ? 1
                       : smi_error(-EINVAL, "%s: the ref word at %#llx is not 8-aligned",
                                   heap->path, (unsigned long long)at);
}

static int send_block(struct call *c, shmalloc_ref *ref, int in_heap)
{
    uint64_t position, lent = *ref;
    int rc = claim_cell(c, &position);
    if (rc < 0)
        return rc;
    struct smf_cell *cell = cell_at(c->q, position);
    SMI_STORE(&cell->length, sizeof(lent));
    SMI_STORE(&cell->ref, lent);
    SMI_STORE(&cell->flags, sender_cpu(cell) | SMF_CELL_REF);
    if (in_heap)
        arm(c->t, ref, lent, &cell->state,
            smi_cell_word(c->q->ring, position, SMF_CELL_WRITING, my_name(c->t)), 1);
    sent(c, cell, position); /* kill before: the word has it; after: the queue */
    SMI_STORE(ref, 0);
    if (in_heap)
        smi_link_disarm(c->t);
    wake(c->q->use.heap, &header(c->q)->receivers_wait, &header(c->q)->receivers_word);
    return 0;
}

int shmalloc_queue_send_ref(shmalloc_queue *queue, shmalloc_ref *ref, uint64_t timeout_ns)
{
    struct call c;
    int rc = begin_call(&c, queue, timeout_ns);
    if (rc < 0)
        return rc;
    int in_heap = rc = place_of_ref(queue->heap, ref);
    if (rc >= 0)
        rc = smi_block_size(queue->heap, *ref) != 0
                 ? 0
                 : smi_error(SHMALLOC_EBADREF, "%s: %#llx is no block of this heap",
                             queue->heap->path, (unsigned long long)*ref);
    return end_call(&c, rc < 0 ? rc : send_block(&c, ref, in_heap));
}

/* ---- taking ---- */

/* What is in a cell that this thread has just taken. */
static int read_cell(const struct queue *q, struct smf_cell *cell, uint64_t position,
                     shmalloc_message *out)
{
    const shmalloc_heap *heap = q->use.heap;
    uint32_t flags = SMI_LOAD(&cell->flags);
    uint64_t ref = flags & (SMF_CELL_BLOCK | SMF_CELL_REF) ? SMI_LOAD(&cell->ref) : 0,
             length = SMI_LOAD(&cell->length);
    *out = (shmalloc_message){.data = cell->data, .length = length, .opaque = {position, 0}};
    if (SMI_LIKELY(ref == 0 && length <= SMF_CELL_INLINE &&
                   !(flags & (SMF_CELL_BLOCK | SMF_CELL_REF))))
        return 0;
    if (flags & SMF_CELL_REF) {
        out->ref = ref;
        out->data = NULL;
        return ref < smi_size(heap) ? 0 : -1;
    }
    out->data = smi_in_heap(heap, ref, length) ? smi_at(heap, ref) : NULL;
    return (flags & SMF_CELL_BLOCK) && out->data && smi_block_size(heap, ref) >= length ? 0 : -1;
}

static int damaged_message(const struct queue *q, uint64_t position)
{
    return smi_structure_damaged(&q->use, "the message at position %llu is none",
                                 (unsigned long long)position);
}

/* The message in a cell with that word becomes this thread's: 1; 0: somebody else was faster. */
static int take_cell(struct call *c, struct smf_cell *cell, uint64_t position, uint64_t word,
                     shmalloc_message *out)
{
    uint64_t name = my_name(c->t);
    count_claim(c->t, 1);
    if (SMI_UNLIKELY(!swap_word(&cell->state, word,
                                smi_cell_word(c->q->ring, position, SMF_CELL_READING, name)))) {
        count_claim(c->t, -1ull);
        return 0;
    }
    if (SMI_UNLIKELY(read_cell(c->q, cell, position, out) < 0)) { /* it stays as it was found */
        store_word(&cell->state, word);
        count_claim(c->t, -1ull);
        return damaged_message(c->q, position);
    }
    out->redelivered = smi_cell_state(word) == SMF_CELL_READING;
    out->opaque[1] = name;
    return 1;
}

/* A cell that was claimed at that position: 1 when its message is this thread's now. */
static int mend_cell(struct call *c, struct smf_cell *cell, uint64_t position, uint64_t word,
                     shmalloc_message *out)
{
    enum smf_cell_state state = smi_cell_state(word);
    if (state == SMF_CELL_FREE || state == SMF_CELL_FULL ||
        is_alive(c->q->use.heap, smi_cell_who(word)))
        return 0;
    if (state == SMF_CELL_READING && !SMI_PLANTED(REDELIVERY_LOST))
        return take_cell(c, cell, position, word, out);
    if (state == SMF_CELL_ACKED || state == SMF_CELL_WRITING)
        finish_for(c, cell, position, word);
    return 0;
}

/* Claims of those who are gone, in all cells: 1 when a message is this thread's now. There may be
 * more then. */
static int look_at_claims(struct call *c, shmalloc_message *out)
{
    struct queue *q = c->q;
    uint64_t was = SMI_LOAD(&header(q)->seen), now = losses(q),
             first = load_word(&header(q)->first);
    for (uint64_t i = 0; i <= q->ring.mask; i++) {
        uint64_t index = (first + i) & q->ring.mask;
        struct smf_cell *cell = &q->cells[index];
        uint64_t word = load_word(&cell->state);
        if (SMI_LIKELY(smi_cell_state(word) == SMF_CELL_FREE ||
                       smi_cell_state(word) == SMF_CELL_FULL))
            continue;
        int rc = mend_cell(c, cell, smi_cell_position(q->ring, index, word, first), word, out);
        if (rc != 0)
            return rc;
    }
    swap_word(&header(q)->seen, was, now);
    return 0;
}

/* What is to be done at the position `p`, whose cell has that word and is not FULL: 1: taken; 0:
 * look again. */
static int pass_cell(struct call *c, struct smf_cell *cell, uint64_t p, uint64_t word,
                     shmalloc_message *out)
{
    struct queue *q = c->q;
    int64_t laps = smi_cell_ahead(q->ring, word, p);
    enum smf_cell_state state = smi_cell_state(word);
    if (laps > 0 || (laps == 0 && (state == SMF_CELL_READING || state == SMF_CELL_ACKED))) {
        /* Whoever claimed it may have been killed before he moved `first`, and his claim been
         * looked for without success. */
        int rc = laps == 0 ? mend_cell(c, cell, p, word, out) : 0;
        swap_word(&header(q)->first, p, p + 1);
        return rc != 0 ? rc : count_help(c);
    }
    if (laps == 0 && state == SMF_CELL_WRITING && !is_alive(q->use.heap, smi_cell_who(word))) {
        finish_for(c, cell, p, word);
        return count_help(c);
    }
    int rc = wait_at(c, receivers(q), p - 1);
    if (rc == 0 && c->slices > 1) /* found nothing for a while */
        rc = look_at_claims(c, out);
    return rc;
}

static int take_next(struct call *c, shmalloc_message *out)
{
    struct queue *q = c->q;
    for (;;) {
        int rc = SMI_UNLIKELY(SMI_LOAD(&header(q)->seen) != losses(q)) ? look_at_claims(c, out) : 0;
        if (SMI_UNLIKELY(rc != 0))
            return rc < 0 ? rc : 0;
        uint64_t p = load_word(&header(q)->first);
        struct smf_cell *cell = cell_at(q, p);
        uint64_t word = load_word(&cell->state);
        if (SMI_LIKELY(word == smi_cell_word(q->ring, p, SMF_CELL_FULL, 0))) {
            rc = take_cell(c, cell, p, word, out);
            if (SMI_LIKELY(rc == 1))
                swap_word(&header(q)->first, p, p + 1); /* kill before: the next one does it */
        } else {
            rc = pass_cell(c, cell, p, word, out);
        }
        if (rc != 0)
            return rc < 0 ? rc : 0;
    }
}

int shmalloc_queue_take(shmalloc_queue *queue, shmalloc_message *out, uint64_t timeout_ns)
{
    struct call c;
    int rc = begin_call(&c, queue, timeout_ns);
    if (SMI_UNLIKELY(rc < 0))
        return rc;
    if (SMI_UNLIKELY(!out))
        return end_call(&c, smi_error(-EINVAL, "%s: no place for the message", queue->heap->path));
    rc = take_next(&c, out);
    if (SMI_UNLIKELY(rc == 0 && out->opaque[0] % LOOK_EVERY == 0))
        look_for_the_dead(queue->heap);
    return end_call(&c, rc);
}

/* ---- acknowledging ---- */

/* The cell of a message that this thread has taken. */
static int find_taken(const struct call *c, const shmalloc_message *message, struct smf_cell **out)
{
    const struct queue *q = c->q;
    if (!message)
        return smi_error(-EINVAL, "%s: no message", q->use.heap->path);
    *out = cell_at(q, message->opaque[0]);
    if (SMI_LIKELY(load_word(&(*out)->state) ==
                   smi_cell_word(q->ring, message->opaque[0], SMF_CELL_READING, my_name(c->t))))
        return 0;
    return smi_error(SHMALLOC_ENOTOWNER,
                     "%s: the message at position %llu is not taken by the calling thread, or not "
                     "any more; who took it "
                     "acknowledges it, once",
                     q->use.heap->path, (unsigned long long)message->opaque[0]);
}

/* The place is free: senders that wait for half of the ring may go on. */
static inline void free_place(struct call *c, struct smf_cell *cell, uint64_t position,
                              uint32_t flags)
{
    struct queue *q = c->q;
    flags = (flags & ~(SMF_CELL_CPU << SMF_CELL_TAKER_SHIFT)) | (smi_cpu() & SMF_CELL_CPU)
                                                                    << SMF_CELL_TAKER_SHIFT;
    set_free(q, cell, position, flags);
    count_claim(c->t, -1ull);
    if (SMI_UNLIKELY(SMI_LOAD(&header(q)->senders_wait) != 0) && can_send(q))
        wake(q->use.heap, &header(q)->senders_wait, &header(q)->senders_word);
}

static inline int ack(struct call *c, shmalloc_message *message)
{
    struct smf_cell *cell;
    int rc = find_taken(c, message, &cell);
    if (SMI_UNLIKELY(rc < 0))
        return rc;
    uint64_t position = message->opaque[0];
    uint32_t flags = SMI_LOAD(&cell->flags);
    if (SMI_UNLIKELY(flags & SMF_CELL_BLOCK)) {
        /* kill from here: anybody goes on */
        store_word(&cell->state,
                   smi_cell_word(c->q->ring, position, SMF_CELL_ACKED, my_name(c->t)));
        if (SMI_PLANTED(FREED_TWICE)) {
            static uint64_t before;
            shmalloc_free(c->q->use.heap, smi_at(c->q->use.heap, before));
            before = cell->ref;
        }
        if (smi_part_give(c->t, &cell->ref) < 0)
            SMI_STORE(&cell->ref, 0);
    }
    free_place(c, cell, position, flags);
    return 0;
}

int shmalloc_queue_ack(shmalloc_queue *queue, shmalloc_message *message)
{
    struct call c;
    int rc = begin_call(&c, queue, 0);
    return SMI_UNLIKELY(rc < 0) ? rc : end_call(&c, ack(&c, message));
}

static int ack_ref(struct call *c, shmalloc_message *message, shmalloc_ref *out, int in_heap)
{
    struct smf_cell *cell;
    int rc = find_taken(c, message, &cell);
    if (rc < 0)
        return rc;
    uint32_t flags = SMI_LOAD(&cell->flags);
    uint64_t position = message->opaque[0], ref = SMI_LOAD(&cell->ref), name = my_name(c->t);
    if (!(flags & SMF_CELL_REF))
        return smi_error(
            -EINVAL,
            "%s: the message at position %llu is no ref; acknowledge it by shmalloc_queue_ack()",
            c->q->use.heap->path, (unsigned long long)position);
    if (in_heap)
        arm(c->t, out, ref, &cell->state,
            smi_cell_word(c->q->ring, position, SMF_CELL_READING, name), 0);
    smi_link_store(out, ref); /* kill from here: undone; */
    /* and from here: the word has it */
    store_word(&cell->state, smi_cell_word(c->q->ring, position, SMF_CELL_ACKED, name));
    if (in_heap)
        smi_link_disarm(c->t);
    free_place(c, cell, position, flags);
    return 0;
}

int shmalloc_queue_ack_ref(shmalloc_queue *queue, shmalloc_message *message, shmalloc_ref *out)
{
    struct call c;
    int rc = begin_call(&c, queue, 0);
    if (rc < 0)
        return rc;
    rc = place_of_ref(queue->heap, out);
    return end_call(&c, rc < 0 ? rc : ack_ref(&c, message, out, rc));
}

int shmalloc_queue_return(shmalloc_queue *queue, shmalloc_message *message)
{
    struct call c;
    struct smf_cell *cell;
    int rc = begin_call(&c, queue, 0);
    if (rc < 0)
        return rc;
    if ((rc = find_taken(&c, message, &cell)) < 0)
        return end_call(&c, rc);
    /* kill here: found by who finds nothing */
    store_word(&cell->state, smi_cell_word(c.q->ring, message->opaque[0], SMF_CELL_READING, 0));
    __atomic_fetch_add(&header(c.q)->returned, 1, __ATOMIC_SEQ_CST);
    count_claim(c.t, -1ull);
    wake(c.q->use.heap, &header(c.q)->receivers_wait, &header(c.q)->receivers_word);
    return end_call(&c, 0);
}

/* ---- receiving ---- */

/* How long is the message that comes next? Only to refuse one that is too long before it is
 * taken. */
static int fits(const struct queue *q, size_t room, size_t *length)
{
    uint64_t p = load_word(&header(q)->first);
    struct smf_cell *cell = cell_at(q, p);
    uint64_t word = load_word(&cell->state), found = SMI_LOAD(&cell->length);
    int is_ref = (SMI_LOAD(&cell->flags) & SMF_CELL_REF) != 0;
    if (word != smi_cell_word(q->ring, p, SMF_CELL_FULL, 0) || load_word(&cell->state) != word ||
        (found <= room && !is_ref))
        return 0;
    *length = found;
    return smi_error(-EMSGSIZE,
                     is_ref ? "%s: the next message is a ref (%llu bytes, room for %zu): take it"
                            : "%s: the next message has %llu bytes, room for %zu",
                     q->use.heap->path, (unsigned long long)found, room);
}

static int receive(struct call *c, void *buffer, size_t room, size_t *length)
{
    shmalloc_message message;
    int rc = fits(c->q, room, length);
    if (SMI_UNLIKELY(rc < 0) || SMI_UNLIKELY((rc = take_next(c, &message)) < 0))
        return rc;
    *length = message.length;
    if (SMI_UNLIKELY(message.ref != 0 || message.length > room)) {
        shmalloc_queue_return((shmalloc_queue *)(void *)c->q, &message);
        return smi_error(
            -EMSGSIZE,
            "%s: the message at position %llu has %zu bytes, or is a ref; there is room for %zu",
            c->q->use.heap->path, (unsigned long long)message.opaque[0], message.length, room);
    }
    memcpy(buffer, message.data, message.length);
    return ack(c, &message);
}

int shmalloc_queue_receive(shmalloc_queue *queue, void *buffer, size_t room, size_t *length,
                           uint64_t timeout_ns)
{
    struct call c;
    int rc = begin_call(&c, queue, timeout_ns);
    if (SMI_UNLIKELY(rc < 0))
        return rc;
    if (SMI_UNLIKELY(!length || (!buffer && room > 0)))
        return end_call(&c, smi_error(-EINVAL, "%s: no place for the message or its length",
                                      queue->heap->path));
    return end_call(&c, receive(&c, buffer, room, length));
}

/* ---- making, opening, freeing ---- */

static int check_shape(const shmalloc_heap *heap, const shmalloc_queue_options *options,
                       uint64_t *capacity, uint64_t *most)
{
    shmalloc_queue_options o = SHMALLOC_QUEUE_OPTIONS_INIT;
    if (options && smi_sized_copy(&o, options, sizeof(o), sizeof(o)) < 0)
        return smi_error(-EINVAL,
                         "%s: the options' struct_size is %zu, or they ask for what this library "
                         "does not know; start "
                         "from SHMALLOC_QUEUE_OPTIONS_INIT",
                         heap->path, options->struct_size);
    *most = o.most ? o.most : 1 << 20;
    *capacity = o.capacity ? o.capacity : 1024;
    if (*capacity > SMF_QUEUE_MOST_CELLS || *most > UINT32_MAX)
        return smi_error(
            -EINVAL,
            "%s: a queue of %llu messages of up to %llu bytes; possible are %llu, of up to %llu",
            heap->path, (unsigned long long)*capacity, (unsigned long long)*most,
            SMF_QUEUE_MOST_CELLS, (unsigned long long)UINT32_MAX);
    uint64_t power = 2;
    while (power < *capacity)
        power *= 2;
    *capacity = power;
    return 0;
}

/* A queue that nobody sees yet. */
static int make(shmalloc_heap *heap, const shmalloc_queue_options *options, struct smi_thread **t,
                struct smf_queue **out)
{
    uint64_t capacity = 0, most = 0;
    struct smf_structure *head;
    int rc = check_shape(heap, options, &capacity, &most);
    if (rc < 0 || (rc = smi_structure_begin(heap, SMF_TAG_QUEUE, t, &head)) < 0)
        return rc;
    struct smf_queue *queue = *out = (struct smf_queue *)head;
    queue->capacity = capacity;
    queue->most = most;
    SMI_BARRIER();
    rc = smi_part_take(*t, capacity * sizeof(struct smf_cell), 64, 1, &queue->cells);
    if (rc < 0)
        return smi_structure_drop(*t, rc);
    /* FREE in lap 0 is all zeros, which the cells are */
    SMI_STORE(&queue->seen, SMI_LOAD(&heap->state->claims_gone));
    return 0;
}

int shmalloc_queue_create(shmalloc_heap *heap, const shmalloc_queue_options *options,
                          shmalloc_ref *out)
{
    struct smi_thread *t;
    struct smf_queue *queue;
    int rc = place_of_ref(heap, out);
    if (rc < 0 || (rc = make(heap, options, &t, &queue)) < 0)
        return rc;
    return smi_structure_publish(t, &queue->head, out);
}

/* The structure is a queue: what its header says can be. */
static int open_cells(struct smi_use *use, shmalloc_queue *out)
{
    const struct smf_queue *queue = (struct smf_queue *)use->head;
    uint64_t capacity = SMI_LOAD(&queue->capacity), cells = SMI_LOAD(&queue->cells);
    if (!smi_ring_is_possible(capacity))
        return smi_structure_damaged(use, "its capacity is %llu", (unsigned long long)capacity);
    if (cells % 64 != 0 || !smi_in_heap(use->heap, cells, capacity * sizeof(struct smf_cell)) ||
        smi_block_size(use->heap, cells) < capacity * sizeof(struct smf_cell))
        return smi_structure_damaged(use, "its cells are said to be at %#llx",
                                     (unsigned long long)cells);
    struct queue q = {.use = *use,
                      .cells = smi_at(use->heap, cells),
                      .ring = smi_ring_of(capacity),
                      .most = SMI_LOAD(&queue->most)};
    memcpy(out, &q, sizeof(q));
    return 0;
}

int shmalloc_queue_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_queue *out)
{
    struct smi_use use;
    if (!out)
        return smi_error(-EINVAL, "%s: no place for the queue", heap->path);
    int rc = smi_structure_open(heap, ref, SMF_TAG_QUEUE, &use);
    return rc < 0 ? rc : open_cells(&use, out);
}

int shmalloc_queue_open_root(shmalloc_heap *heap, const char *name,
                             const shmalloc_queue_options *options, shmalloc_queue *out)
{
    struct smi_use use;
    struct smi_thread *t;
    struct smf_queue *queue;
    uint64_t ref;
    if (!out)
        return smi_error(-EINVAL, "%s: no place for the queue", heap->path);
    int rc = smi_structure_open_root(heap, name, SMF_TAG_QUEUE, &use);
    if (rc != SHMALLOC_ENOROOT || !options)
        return rc < 0 ? rc : open_cells(&use, out);
    if ((rc = make(heap, options, &t, &queue)) < 0 ||
        (rc = smi_structure_bind(t, &queue->head, name, &ref)) < 0)
        return rc;
    int made = rc;
    rc = shmalloc_queue_open(heap, ref, out);
    return rc < 0 ? rc : made ? SHMALLOC_CREATED : 0;
}

shmalloc_ref shmalloc_queue_ref(const shmalloc_queue *queue)
{
    return ((const struct queue *)(const void *)queue)->use.ref;
}

int shmalloc_queue_free(shmalloc_heap *heap, shmalloc_ref *ref)
{
    return smi_structure_free(heap, ref, SMF_TAG_QUEUE);
}

int shmalloc_queue_remove(shmalloc_heap *heap, const char *name)
{
    return smi_structure_remove(heap, name, SMF_TAG_QUEUE);
}

int64_t shmalloc_queue_count(const shmalloc_queue *queue)
{
    const struct queue *q = (const struct queue *)(const void *)queue;
    if (!q || !q->use.heap)
        return smi_error(-EINVAL, "no queue: open one first");
    if (q->use.heap->closed)
        return smi_heap_writable(q->use.heap);
    if (load_word(&q->use.head->life) != q->use.life)
        return smi_structure_gone(&q->use);
    uint64_t first = load_word(&header(q)->first), tail = load_word(&header(q)->tail);
    int64_t count = (int64_t)(tail - first);
    return count < 0 ? 0 : count > (int64_t)q->ring.mask + 1 ? (int64_t)q->ring.mask + 1 : count;
}

/* All blocks that cells have, then the cells'. What a cell for writing has been lent is its
 * sender's; so is what was received by a thread that is about to acknowledge it. */
static int free_parts(struct smi_ending *ending, struct smf_structure *head)
{
    shmalloc_heap *heap = ending->heap;
    struct smf_queue *queue = (struct smf_queue *)head;
    uint64_t capacity = SMI_LOAD(&queue->capacity), ref = SMI_LOAD(&queue->cells);
    wake(heap, &queue->receivers_wait, &queue->receivers_word);
    wake(heap, &queue->senders_wait, &queue->senders_word);
    if (!smi_ring_is_possible(capacity) || ref % 64 != 0 ||
        !smi_in_heap(heap, ref, capacity * sizeof(struct smf_cell)) ||
        smi_block_size(heap, ref) < capacity * sizeof(struct smf_cell))
        capacity = 0;
    struct smf_cell *cells = capacity ? smi_at(heap, ref) : NULL;
    for (uint64_t i = 0; i < capacity; i++) {
        uint32_t flags = SMI_LOAD(&cells[i].flags);
        enum smf_cell_state state = smi_cell_state(SMI_LOAD(&cells[i].state));
        int lent = (flags & SMF_CELL_REF) && (state == SMF_CELL_FULL || state == SMF_CELL_READING);
        int rc = (flags & SMF_CELL_BLOCK) || lent ? smi_part_end(ending, &cells[i].ref) : 0;
        if (rc != 0)
            return rc;
    }
    return smi_part_end(ending, &queue->cells);
}

const struct smi_structure_type smi_queue_type = {
    .tag = SMF_TAG_QUEUE,
    .name = "queue",
    .check = smi_queue_check,
    .describe = smi_queue_describe,
    .each_ref = smi_queue_each_ref,
    .each_item = smi_queue_each_item,
    .free = free_parts,
};
